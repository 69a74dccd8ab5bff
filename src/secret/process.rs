//! What a process that holds keys does to itself before it holds one.

use rustix::mm::MlockAllFlags;
use rustix::process::{
    DumpableBehavior, Pid, Resource, Rlimit, getrlimit, prlimit, set_dumpable_behavior, setrlimit,
};

/// What [`harden_process`] achieved.
#[derive(Clone, Debug)]
pub struct Hardening {
    /// All memory, present and future, is locked (needs CAP_IPC_LOCK or an unlimited RLIMIT_MEMLOCK).
    /// Without it the data key is still locked, but cipher contexts may reach swap.
    pub all_memory_locked: bool,
    core_limit: Rlimit,
}

/// Arenas of the C library's allocator. It has eight a processor otherwise, and keeps what was free in each: by and by
/// several times what is in use, and locked.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Bytes from which on a piece of memory has a mapping of its own, which ends with it. Without being told, the C library
/// raises that to the largest piece it has ever freed, and keeps what is smaller in its arenas.
#[cfg(target_env = "gnu")]
const OWN_MAPPING: libc::c_int = 128 << 10;

/// Forbids core dumps and tracing by the same user, keeps what the allocator holds small, and locks all memory where
/// that is allowed. To be called before there are threads.
///
/// # Errors
/// What `prctl(PR_SET_DUMPABLE)` or `setrlimit(RLIMIT_CORE)` answers; neither needs a privilege.
pub fn harden_process() -> rustix::io::Result<Hardening> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    keep_allocator_small();
    let core_limit = getrlimit(Resource::Core);
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: core_limit.maximum })?;
    Ok(Hardening { all_memory_locked: lock_all_memory(), core_limit })
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "no crate wraps mallopt(3)")]
fn keep_allocator_small() {
    // SAFETY: it takes numbers and touches nothing that is allocated. Nothing is lost if it fails.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
    }
}

#[cfg(not(target_env = "gnu"))]
fn keep_allocator_small() {}

/// Gives a child the limit on core dumps that the process had before [`harden_process`].
///
/// # Errors
/// What `prlimit(2)` answers, `ESRCH` where the child is gone.
pub fn restore_core_limit(hardening: &Hardening, child: u32) -> rustix::io::Result<()> {
    let pid = i32::try_from(child).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
    prlimit(Some(pid), Resource::Core, hardening.core_limit).map(drop)
}

/// With a finite limit, `MCL_FUTURE` would make later allocations fail once the limit is reached:
/// so everything is locked only where the limit does not apply.
fn lock_all_memory() -> bool {
    let unlimited = getrlimit(Resource::Memlock).current.is_none() || has_cap_ipc_lock();
    unlimited
        && rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
            .is_ok()
}

fn has_cap_ipc_lock() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(rustix::thread::CapabilitySet::IPC_LOCK))
}

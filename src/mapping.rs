//! Files in memory, read and written where they lie: without a system call, without the lock of the file, and without a
//! copy where what is written is made on the way.
//!
//! Where such a file has been cut short, or its file system is full, touching it raises SIGBUS (mmap(2), "SIGBUS"). That
//! is caught: memory of no file takes its place, so that what is under way comes to its end, and does not
//! count. From then on the mapping is of no use, and read(2) and write(2) say what is wrong.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::fs::File;
use std::marker::PhantomData;
use std::ptr::{NonNull, copy_nonoverlapping, null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence, fence};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munlock, munmap};
use rustix::process::{Resource, getrlimit};
use zeroize::Zeroize;

/// Bytes, of a file's memory, whose place other memory takes: few, so that a system that promises no more memory than it
/// has can give them.
const REPLACED: usize = 2 << 20;
const PROTECTION: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

thread_local! {
    /// What this thread is at, or null. Without a destructor, so that a signal may look at it.
    static UNDER_WAY: Cell<*const Mapping> = const { Cell::new(null()) };
}

/// What a SIGBUS led to before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// The beginning of a file, shared with everybody who has it open.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
    /// It is not the file's memory any more, or is about to be so no more.
    lost: AtomicBool,
}

// SAFETY: the memory has no ties to a thread, and lasts as long as `self`.
unsafe impl Send for Mapping {}
// SAFETY: it is reached by address only. Others may change it meanwhile, other processes included, as they may change any
// file that is read: no reference to it is ever made, and what comes of it is bytes. Of this process, nobody changes bytes
// that another thread is at: `reach` asks that of its callers.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The first `length` bytes of `file`, which is open for reading and writing; `None` if the system refuses, allows the
    /// process only so many addresses (RLIMIT_AS), which others may need, or keeps SIGBUS from it, as a parent may ask.
    pub(crate) fn of(file: &File, length: usize) -> Option<Self> {
        if getrlimit(Resource::As).current.is_some() || is_blocked(libc::SIGBUS) || !catch_bus_errors() {
            return None;
        }
        // SAFETY: a new mapping, where there was none.
        let mapped = unsafe { mmap(null_mut(), length, PROTECTION, MapFlags::SHARED, file, 0) };
        let start = NonNull::new(mapped.ok()?.cast::<u8>())?;
        // SAFETY: these bytes were mapped just now; neither call changes what they hold. Ciphertext may be swapped out,
        // where all else is locked, and is of no use in a core dump.
        unsafe {
            let _ = munlock(start.as_ptr().cast(), length);
            let _ = madvise(start.as_ptr().cast(), length, Advice::LinuxDontDump);
        }
        Some(Self { start, length, lost: AtomicBool::new(false) })
    }

    /// Does `work` on the `length` bytes at `at`: false if it was not done, or on memory that is not the file's. Callers see
    /// to it that no thread writes bytes that another one is at.
    pub(crate) fn reach(&self, at: usize, length: usize, work: impl FnOnce(&Window)) -> bool {
        let is_within = at.checked_add(length).is_some_and(|end| end <= self.length);
        if !is_within || self.lost.load(Ordering::Relaxed) {
            return false;
        }
        let under_way = UnderWay::begin(self);
        // SAFETY: `at` lies within the mapping, and so do `length` bytes from there.
        work(&Window { start: unsafe { self.start.add(at) }, length, _of: PhantomData });
        drop(under_way);
        // Whoever has replaced the memory has said so before; who has been at what replaced it sees that.
        fence(Ordering::SeqCst);
        let is_lost = self.lost.load(Ordering::Relaxed);
        if is_lost {
            wipe_signal_stack();
        }
        !is_lost
    }

    fn holds(&self, address: usize) -> bool {
        (self.start.as_ptr().addr()..self.start.as_ptr().addr() + self.length).contains(&address)
    }

    /// Puts memory of no file around `address`, which is the mapping's; false if there is none. In a signal: one system
    /// call, no lock.
    fn lose(&self, address: usize) -> bool {
        self.lost.store(true, Ordering::SeqCst);
        let offset = (address - self.start.as_ptr().addr()) & !(REPLACED - 1);
        let length = REPLACED.min(self.length - offset);
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: these bytes lie within the mapping, from the beginning of a page on, and nobody has a reference to them.
        unsafe { mmap_anonymous(self.start.as_ptr().add(offset).cast(), length, PROTECTION, flags) }.is_ok()
    }
}

/// For as long as a thread is at a mapping.
struct UnderWay;

impl UnderWay {
    fn begin(mapping: &Mapping) -> Self {
        UNDER_WAY.set(mapping);
        compiler_fence(Ordering::SeqCst);
        Self
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        UNDER_WAY.set(null());
    }
}

/// Bytes of a mapping, which others may change at any time: there is no reference to them, only an address.
pub struct Window<'a> {
    start: NonNull<u8>,
    length: usize,
    _of: PhantomData<&'a Mapping>,
}

#[allow(clippy::len_without_is_empty, reason = "nobody wants none")]
impl Window<'_> {
    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Where they begin. They may be read and written while `self` is borrowed.
    pub fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Fills `buffer`, which is as long.
    ///
    /// # Panics
    /// If it is not.
    pub fn read(&self, buffer: &mut [u8]) {
        assert_eq!(buffer.len(), self.length);
        // SAFETY: as many bytes are mapped here as `buffer` has, and it has none of them.
        unsafe { copy_nonoverlapping(self.start(), buffer.as_mut_ptr(), self.length) };
    }

    /// Writes `data` at `at`.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn write(&self, at: usize, data: &[u8]) {
        assert!(at.checked_add(data.len()).is_some_and(|end| end <= self.length));
        // SAFETY: as many bytes are mapped at `at` as `data` has, and it has none of them.
        unsafe { copy_nonoverlapping(data.as_ptr(), self.start().add(at), data.len()) };
    }

    /// True if one of the parts of `step` bytes, which are 16 at least, begins with 16 zeros.
    pub fn has_zeros_each(&self, step: usize) -> bool {
        (0..self.length).step_by(step.max(16)).any(|at| {
            let beginning = self.length - at >= 16;
            // SAFETY: 16 bytes are mapped there, which need no alignment.
            beginning && unsafe { self.start().add(at).cast::<u128>().read_unaligned() } == 0
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `of` mapped these bytes, and nobody is left who would reach them.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// True if this thread, and so those that it starts, does not get that signal (pthread_sigmask(3)): where the kernel raises
/// it all the same, it kills.
fn is_blocked(signal: c_int) -> bool {
    // SAFETY: a set of signals is numbers, for which zero will do; it is filled in below.
    let mut blocked = unsafe { std::mem::zeroed::<libc::sigset_t>() };
    // SAFETY: the set lives, and nothing is changed.
    let known = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, null(), &raw mut blocked) } == 0;
    // SAFETY: the set was filled in.
    !known || unsafe { libc::sigismember(&raw const blocked, signal) } != 0
}

/// Once for the process; false if the system refuses.
fn catch_bus_errors() -> bool {
    static CAUGHT: OnceLock<bool> = OnceLock::new();
    *CAUGHT.get_or_init(|| {
        // SAFETY: for this structure, all zero is the default action; it is filled in below.
        let (mut ours, mut before) = unsafe { std::mem::zeroed::<(libc::sigaction, libc::sigaction)>() };
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
        ours.sa_sigaction = handler as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the structure lives, and nothing is changed.
        let known = unsafe { libc::sigaction(libc::SIGBUS, null(), &raw mut before) } == 0;
        let _ = BEFORE.set(before);
        // SAFETY: the structure lives, and the handler does what a handler may do.
        known && unsafe { libc::sigaction(libc::SIGBUS, &raw const ours, null_mut()) } == 0
    })
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel tells a handler that asks for it what has happened, and where.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // By what this thread does; a signal that was sent has another code (sigaction(2), "The siginfo_t argument").
    let is_own = (libc::BUS_ADRALN..=libc::BUS_MCEERR_AR).contains(&code);
    // SAFETY: null, or what the function borrows in which this thread was interrupted.
    let mapping = unsafe { UNDER_WAY.get().as_ref() };
    if is_own && mapping.is_some_and(|mapping| mapping.holds(address) && mapping.lose(address)) {
        return;
    }
    let Some(before) = BEFORE.get() else { return };
    if is_own {
        // It comes again after the return, and then leads to what it would have led to without us.
        // SAFETY: the structure is what sigaction filled in.
        unsafe { libc::sigaction(signal, before, null_mut()) };
    } else if before.sa_sigaction != libc::SIG_IGN {
        // Who sends it wants an end.
        // SAFETY: for this structure, all zero is the default action; `raise` takes a number only.
        unsafe {
            libc::sigaction(signal, &std::mem::zeroed(), null_mut());
            libc::raise(signal);
        }
    }
}

/// Where the kernel has put this thread's registers for the handler: a cipher's, of which some may hold what has to be
/// wiped (sigaltstack(2); the standard library gives its threads such a stack).
fn wipe_signal_stack() {
    // SAFETY: for this structure, all zero is no stack.
    let mut stack = unsafe { std::mem::zeroed::<libc::stack_t>() };
    // SAFETY: the structure lives, and nothing is changed.
    let known = unsafe { libc::sigaltstack(null(), &raw mut stack) } == 0;
    if known && stack.ss_flags & libc::SS_DISABLE == 0 {
        // SAFETY: this memory is the thread's, for its signals, and none is being handled.
        unsafe { std::slice::from_raw_parts_mut(stack.ss_sp.cast::<u8>(), stack.ss_size) }.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const LENGTH: usize = 1 << 20;

    fn in_memory() -> (File, Mapping) {
        let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(LENGTH as u64).unwrap();
        let mapping = Mapping::of(&file, LENGTH).unwrap();
        (file, mapping)
    }

    fn write(mapping: &Mapping, at: usize, data: &[u8]) -> bool {
        mapping.reach(at, data.len(), |window| window.write(0, data))
    }

    fn read(mapping: &Mapping, at: usize, buffer: &mut [u8]) -> bool {
        mapping.reach(at, buffer.len(), |window| window.read(buffer))
    }

    fn signal_stack_is_wiped() -> bool {
        // SAFETY: for this structure, all zero is no stack.
        let mut stack = unsafe { std::mem::zeroed::<libc::stack_t>() };
        // SAFETY: the structure lives, and nothing is changed.
        assert_eq!(unsafe { libc::sigaltstack(null(), &raw mut stack) }, 0);
        assert_eq!(stack.ss_flags & libc::SS_DISABLE, 0, "the standard library's");
        // SAFETY: this memory is the thread's, for its signals, and none is being handled.
        let bytes = unsafe { std::slice::from_raw_parts(stack.ss_sp.cast::<u8>(), stack.ss_size) };
        bytes.iter().all(|byte| *byte == 0)
    }

    #[test]
    fn the_file_and_its_mapping_hold_the_same() {
        let (file, mapping) = in_memory();
        assert!(write(&mapping, 5000, &[7; 9000]));
        let mut back = [0; 9000];
        file.read_exact_at(&mut back, 5000).unwrap();
        assert_eq!(back, [7; 9000]);
        file.write_all_at(&[8; 100], 13_000).unwrap();
        assert!(read(&mapping, 5000, &mut back));
        assert!(back[..8000] == [7; 8000] && back[8000..8100] == [8; 100] && back[8100..] == [7; 900]);
    }

    #[test]
    fn zeros_are_found_where_parts_begin() {
        let (_file, mapping) = in_memory();
        let zeros = |at, length| {
            let mut found = None;
            assert!(mapping.reach(at, length, |window| found = Some(window.has_zeros_each(512))));
            found.unwrap()
        };
        assert!(write(&mapping, 0, &[7; LENGTH]));
        assert!(!zeros(0, LENGTH) && !zeros(0, 1));
        assert!(write(&mapping, 512 * 5, &[0; 15]) && !zeros(0, LENGTH));
        assert!(write(&mapping, 512 * 5, &[0; 16]) && zeros(0, LENGTH) && zeros(512 * 5, 16));
        assert!(!zeros(0, 512 * 5) && !zeros(512 * 6, 4096));
    }

    #[test]
    fn what_is_not_mapped_is_not_copied() {
        let (_file, mapping) = in_memory();
        for (at, length) in [(LENGTH, 1), (LENGTH - 1, 2), (usize::MAX, 2)] {
            assert!(!read(&mapping, at, &mut vec![0; length]) && !write(&mapping, at, &vec![0; length]));
        }
        assert!(write(&mapping, LENGTH - 1, &[1]));
    }

    #[test]
    fn nothing_is_mapped_where_bus_errors_cannot_be_caught() {
        let (file, _mapping) = in_memory();
        std::thread::spawn(move || {
            // SAFETY: for this structure, zero is a set of nothing; it lives, and the mask is this thread's.
            unsafe {
                let mut set = std::mem::zeroed::<libc::sigset_t>();
                libc::sigaddset(&raw mut set, libc::SIGBUS);
                assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, null_mut()), 0);
            }
            assert!(Mapping::of(&file, LENGTH).is_none());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_file_that_is_cut_short_ends_the_mapping_and_nothing_else() {
        for is_read in [true, false] {
            let (file, mapping) = in_memory();
            assert!(write(&mapping, 0, &[7; LENGTH]));
            file.set_len(LENGTH as u64 / 2).unwrap();
            let mut data = vec![1; LENGTH / 2];
            assert!(if is_read { read(&mapping, 1, &mut data[1..]) } else { write(&mapping, 1, &data[1..]) });
            assert!(!if is_read { read(&mapping, 1, &mut data) } else { write(&mapping, 1, &data) });
            assert!(!read(&mapping, 0, &mut [0]) && !write(&mapping, 0, &[9]), "for good");
            assert!(signal_stack_is_wiped());
            let mut first = [0];
            file.read_exact_at(&mut first, 0).unwrap();
            assert_eq!(first, [7], "what is left of the file stays as it is");
        }
    }

    /// Other memory takes the place of what is around the fault, wherever that is, and of nothing else.
    #[test]
    fn what_is_far_from_the_end_of_the_file_stays_the_files() {
        const LONG: usize = 5 << 20 | 4096;
        let file = File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        for (at, length) in
            [(LONG - 1, 1), (3 << 20, 2 << 20), (4 << 20, 1), ((4 << 20) - 1, 1), (3 << 20, LONG - (3 << 20))]
        {
            file.set_len(LONG as u64).unwrap();
            let mapping = Mapping::of(&file, LONG).unwrap();
            assert!(write(&mapping, 0, &[7; LONG]));
            file.set_len(3 << 20).unwrap();
            assert!(!write(&mapping, at, &vec![8; length]));
            file.write_all_at(&[9; 10], 100).unwrap();
            // SAFETY: the first bytes are mapped, and nobody else is at them.
            let first = unsafe { mapping.start.add(100).read() };
            assert_eq!(first, 9, "{at}");
        }
    }

    /// Copies beside the one that meets the end of the file fail with it, or have succeeded before.
    #[test]
    fn whoever_copies_meanwhile_learns_of_it() {
        let (file, mapping) = in_memory();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let (file, mapping) = (&file, &mapping);
                scope.spawn(move || {
                    let at = usize::from(thread) * 4096;
                    for round in (0..=250).cycle() {
                        let data = [round; 4096];
                        let written = write(mapping, at, &data);
                        let mut held = [0; 4096];
                        file.read_exact_at(&mut held, at as u64).unwrap();
                        assert!(!written || held == data);
                        if !written {
                            break;
                        }
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            file.set_len(LENGTH as u64 / 2).unwrap();
            assert!(!write(&mapping, LENGTH - 1, &[1]));
        });
    }
}

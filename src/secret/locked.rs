//! The mapping behind every secret.

use std::io;
use std::ptr::NonNull;

use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use zeroize::Zeroize;

/// Why a secret could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The kernel gave no memory that can be locked: RLIMIT_MEMLOCK is used up, or no memory is left.
    #[error(
        "cannot lock {length} bytes of memory for a key: {source}; raise the locked-memory limit (ulimit -l, LimitMEMLOCK=)"
    )]
    Lock {
        /// Bytes asked for.
        length: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The data key is not 64 bytes long.
    #[error("the data key has {got} bytes instead of 64")]
    Length {
        /// Bytes that came.
        got: usize,
    },
    /// Both halves of the XTS key are the same.
    #[error("both halves of the data key are equal, which AES-XTS forbids")]
    EqualHalves,
    /// The key did not arrive whole.
    #[error("reading the data key: {0}")]
    Read(io::Error),
}

/// Magic number of secret memory's file system (linux/magic.h, SECRETMEM_MAGIC).
const SECRETMEM_MAGIC: i64 = 0x5345_434d;

/// Bytes in a locked mapping of their own; wiped on drop.
pub struct LockedBytes {
    start: NonNull<u8>,
    length: usize,
    mapped: usize,
    /// The memory's own descriptor, where it has one.
    descriptor: Option<OwnedFd>,
    /// Somebody else needs the memory: it is not wiped here.
    left: bool,
}

// SAFETY: the mapping belongs to this value alone and is reached through `&self` or `&mut self` only,
// so it may move to and be shared with other threads as a `Vec<u8>` may.
unsafe impl Send for LockedBytes {}
// SAFETY: as above; `&LockedBytes` gives `&[u8]` only.
unsafe impl Sync for LockedBytes {}

impl LockedBytes {
    /// `length` zero bytes (at least one).
    ///
    /// # Errors
    /// [`SecretError::Lock`] if neither `memfd_secret` nor `mlock` gives the memory.
    pub fn zeroed(length: usize) -> Result<Self, SecretError> {
        let page = rustix::param::page_size();
        let mapped = length.max(1).next_multiple_of(page);
        map_secret(length.max(1), mapped)
            .map(|(start, descriptor)| (start, Some(descriptor)))
            .or_else(|_| map_locked(mapped).map(|start| (start, None)))
            .map(|(start, descriptor)| Self { start, length, mapped, descriptor, left: false })
            .map_err(|source| SecretError::Lock { length, source })
    }

    /// Maps secret memory that another value's [`LockedBytes::descriptor`] names, in this process or the one before.
    /// It stays as it is when this value is dropped, unless that is changed by [`LockedBytes::claim`].
    ///
    /// # Errors
    /// [`SecretError::Lock`] for what is not secret memory or cannot be mapped.
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, SecretError> {
        let opened = secret_length(&descriptor).and_then(|length| {
            let mapped = length.next_multiple_of(rustix::param::page_size());
            Ok((length, mapped, map_descriptor(&descriptor, mapped)?))
        });
        let (length, mapped, start) = opened.map_err(|source| SecretError::Lock { length: 0, source })?;
        Ok(Self { start, length, mapped, descriptor: Some(descriptor), left: true })
    }

    /// Has the memory wiped when this value is dropped: nobody needs it any longer than that.
    pub fn claim(&mut self) {
        self.left = false;
    }

    /// The memory's descriptor, by which a successor process maps the same memory. None where the kernel has no
    /// `memfd_secret(2)`.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor.as_ref().map(AsFd::as_fd)
    }

    /// Gives the mapping up without wiping it, and the memory's descriptor away. Without one, the memory is wiped.
    pub fn leave(mut self) -> Option<OwnedFd> {
        let descriptor = self.descriptor.take()?;
        self.left = true;
        Some(descriptor)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` maps `mapped >= length` initialised (zero-filled by the kernel) bytes for as long as
        // `self` lives, and `&self` keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// The bytes, to be written.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for LockedBytes {
    #[inline(never)]
    fn drop(&mut self) {
        if !self.left {
            self.as_mut_slice().zeroize();
        }
        // SAFETY: `start` and `mapped` are what `mmap` gave; nothing refers to the mapping after this.
        let unmapped = unsafe { mm::munmap(self.start.as_ptr().cast(), self.mapped) };
        debug_assert!(unmapped.is_ok(), "munmap of a mapping of our own");
    }
}

/// Memory that even the kernel has no mapping of (`memfd_secret(2)`, Linux 5.14); locked by its nature.
fn map_secret(length: usize, mapped: usize) -> io::Result<(NonNull<u8>, OwnedFd)> {
    // SAFETY: the call takes one flag and no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: `fd` was just opened and is owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // Its length is set once and for all: the kernel refuses a second time (mm/secretmem.c, secretmem_setattr).
    rustix::fs::ftruncate(&fd, length as u64)?;
    Ok((map_descriptor(&fd, mapped)?, fd))
}

fn map_descriptor(fd: &OwnedFd, mapped: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new shared mapping at an address of the kernel's choice aliases nothing of ours; the file is secret
    // memory, which has its full length already and cannot shrink under the mapping.
    let start = unsafe {
        mm::mmap(std::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, 0)
    }?;
    NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Length of what must be secret memory: of anything else the length could change under a mapping.
fn secret_length(fd: &OwnedFd) -> io::Result<usize> {
    if rustix::fs::fstatfs(fd)?.f_type != SECRETMEM_MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor is not secret memory"));
    }
    let length = usize::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or_default();
    if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(length) }
}

/// Anonymous memory, locked and hidden from core dumps and from children.
fn map_locked(mapped: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new private mapping at an address of the kernel's choice aliases nothing of ours.
    let start = unsafe {
        mm::mmap_anonymous(
            std::ptr::null_mut(),
            mapped,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    }?;
    if let Err(error) = guard(start, mapped) {
        // SAFETY: the mapping is ours and nothing refers to it.
        let unmapped = unsafe { mm::munmap(start, mapped) };
        debug_assert!(unmapped.is_ok(), "munmap of a mapping of our own");
        return Err(error.into());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

/// Locks a mapping, leaves it out of core dumps, and empties it in children.
fn guard(start: *mut std::ffi::c_void, mapped: usize) -> rustix::io::Result<()> {
    // SAFETY: the range is a mapping of the caller's own, and locking changes nothing that it holds.
    unsafe { mm::mlock(start, mapped) }?;
    // SAFETY: as above; the advice is about core dumps only.
    unsafe { mm::madvise(start, mapped, Advice::LinuxDontDump) }?;
    // SAFETY: as above; the advice is about children only.
    unsafe { mm::madvise(start, mapped, Advice::LinuxWipeOnFork) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_mapping_is_zero_and_writable() {
        let secret = |mapped| map_secret(100, mapped).map(|(start, _)| start);
        // A kernel may lack memfd_secret; map_locked is asserted below.
        for start in [map_locked(4096), secret(4096)].into_iter().flatten() {
            let mut bytes = LockedBytes { start, length: 100, mapped: 4096, descriptor: None, left: false };
            assert_eq!(bytes.as_slice(), [0; 100]);
            bytes.as_mut_slice().fill(0xa5);
            assert_eq!(bytes.as_slice(), [0xa5; 100]);
        }
        assert!(map_locked(4096).is_ok());
    }

    #[test]
    fn a_descriptor_names_the_same_memory() {
        let mut bytes = LockedBytes::zeroed(100).unwrap();
        bytes.as_mut_slice().fill(7);
        let Some(descriptor) = bytes.descriptor() else {
            return assert!(map_secret(1, 4096).is_err(), "secret memory has a descriptor");
        };
        let same = LockedBytes::from_descriptor(descriptor.try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(same.as_slice(), [7; 100]);
        drop(same);
        assert_eq!(bytes.as_slice(), [7; 100], "a reader leaves it as it is");
        let mut same =
            LockedBytes::from_descriptor(bytes.descriptor().unwrap().try_clone_to_owned().unwrap()).unwrap();
        same.claim();
        drop(same);
        assert_eq!(bytes.as_slice(), [0; 100], "its last owner wipes it");
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(LockedBytes::from_descriptor(file.into()), Err(SecretError::Lock { .. })));
    }

    #[test]
    fn the_fallback_is_locked_undumped_and_wiped_on_fork() {
        let start = map_locked(4096).expect("one page can be locked");
        let bytes = LockedBytes { start, length: 4096, mapped: 4096, descriptor: None, left: false };
        let address = format!("{:x}-", bytes.as_slice().as_ptr().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let entry = maps.split_once(&address).expect("the mapping is listed").1;
        let flags = entry.lines().find(|line| line.starts_with("VmFlags:")).expect("flags");
        for flag in [" lo", " dd", " wf"] {
            assert!(flags.contains(flag), "{flag} missing from {flags}");
        }
    }
}

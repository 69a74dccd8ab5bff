//! Secrets in memory: locked, left out of core dumps, unreadable after a fork, wiped when dropped.
//!
//! A [`LockedBytes`] is a mapping of its own, so a secret never moves: moving the Rust value moves a pointer.
//! It comes from `memfd_secret(2)` where the kernel has it (such pages are taken out of the kernel's own
//! mapping, so that neither `/proc/PID/mem` nor `ptrace` reads them), and else from anonymous memory with
//! `mlock`, `MADV_DONTDUMP` and `MADV_WIPEONFORK`.
//!
//! Nothing here implements `Debug`, `Display`, `Clone` or serde: a secret cannot be printed or copied by accident.

#[allow(unsafe_code, reason = "mappings, their locking and the slices over them")]
mod locked;
mod process;

use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::rand::{GetRandomFlags, getrandom};

pub use locked::{LockedBytes, SecretError};
pub use process::{Hardening, harden_process, restore_core_limit};

/// A 64-byte AES-256-XTS data key: two AES-256 keys that differ, the data half first (IEEE 1619-2018, 5.1).
pub struct DataKey {
    bytes: LockedBytes,
}

impl DataKey {
    /// Length of an AES-256-XTS key in bytes.
    pub const LEN: usize = 64;

    /// Fills a new key by `fill`, which gets [`DataKey::LEN`] zero bytes of locked memory to write to.
    ///
    /// # Errors
    /// [`SecretError::Lock`] without lockable memory, [`SecretError::EqualHalves`] for a key whose halves are
    /// equal (XTS is not secure with such a key: FIPS 140-3 implementation guidance C.I), or `fill`'s own error.
    pub fn fill_with<E: From<SecretError>>(fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut bytes = LockedBytes::zeroed(Self::LEN)?;
        fill(bytes.as_mut_slice())?;
        let key = Self { bytes };
        if equal(key.data_half(), key.tweak_half()) {
            return Err(SecretError::EqualHalves.into());
        }
        Ok(key)
    }

    /// Copies a key out of `source`; the caller wipes the source.
    ///
    /// # Errors
    /// [`SecretError::Length`] unless `source` is [`DataKey::LEN`] bytes long; otherwise as [`DataKey::fill_with`].
    pub fn copy_from(source: &[u8]) -> Result<Self, SecretError> {
        Self::fill_with(|target| {
            if source.len() != target.len() {
                return Err(SecretError::Length { got: source.len() });
            }
            target.copy_from_slice(source);
            Ok(())
        })
    }

    /// Reads a key from a pipe or socket straight into locked memory.
    ///
    /// # Errors
    /// [`SecretError::Read`] where the source ends early or fails; otherwise as [`DataKey::fill_with`].
    pub fn read_from(mut source: impl Read) -> Result<Self, SecretError> {
        Self::fill_with(|target| source.read_exact(target).map_err(SecretError::Read))
    }

    /// Takes the key over that a predecessor left in secret memory. Dropped, it stays there for another try, until
    /// [`DataKey::claim`] says that there will be none.
    ///
    /// # Errors
    /// As [`LockedBytes::from_descriptor`] and [`DataKey::copy_from`].
    pub fn from_descriptor(descriptor: OwnedFd) -> Result<Self, SecretError> {
        let bytes = LockedBytes::from_descriptor(descriptor)?;
        let length = bytes.as_slice().len();
        if length != Self::LEN {
            return Err(SecretError::Length { got: length });
        }
        let key = Self { bytes };
        if equal(key.data_half(), key.tweak_half()) { Err(SecretError::EqualHalves) } else { Ok(key) }
    }

    /// Has the key wiped when it is dropped: whoever took it over is its owner now.
    pub fn claim(&mut self) {
        self.bytes.claim();
    }

    /// Secret memory's descriptor, for a successor; none on kernels without `memfd_secret(2)`.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.bytes.descriptor()
    }

    /// Leaves the key to a successor: its memory stays as it is for as long as somebody holds a descriptor of it.
    /// None on kernels without `memfd_secret(2)`, where the key is wiped.
    pub fn leave(self) -> Option<OwnedFd> {
        self.bytes.leave()
    }

    /// All 64 bytes. For the cipher, and for what authenticates with the key; never for a log or a copy.
    pub fn expose(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// The first 32 bytes: the key that encrypts data (`Key1` of IEEE 1619).
    pub fn data_half(&self) -> &[u8] {
        &self.expose()[..Self::LEN / 2]
    }

    /// The last 32 bytes: the key that encrypts the tweak (`Key2` of IEEE 1619).
    pub fn tweak_half(&self) -> &[u8] {
        &self.expose()[Self::LEN / 2..]
    }
}

/// Fills `bytes` from the kernel's generator, straight into the caller's memory. AWS-LC's own is left alone: it seeds
/// itself from the processor's jitter first, which takes longer than all the rest of a volume's start.
///
/// # Errors
/// The operating system's.
pub fn random(mut bytes: &mut [u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        // Without flags: it waits until the kernel's generator is seeded, after which it does not fail.
        match getrandom(&mut *bytes, GetRandomFlags::empty()) {
            Ok(count) => bytes = &mut bytes[count..],
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Compares in time that depends on the lengths only.
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distinct() -> Vec<u8> {
        (0..64).collect()
    }

    #[test]
    fn holds_what_it_was_given() {
        let key = DataKey::copy_from(&distinct()).expect("a good key");
        assert_eq!(key.expose(), distinct());
        assert_eq!(key.data_half()[0], 0);
        assert_eq!(key.tweak_half()[0], 32);
    }

    #[test]
    fn refuses_equal_halves_and_wrong_lengths() {
        assert!(matches!(DataKey::copy_from(&[7; 64]), Err(SecretError::EqualHalves)));
        assert!(matches!(DataKey::copy_from(&[7; 63]), Err(SecretError::Length { got: 63 })));
        assert!(matches!(DataKey::copy_from(&[7; 65]), Err(SecretError::Length { got: 65 })));
    }

    #[test]
    fn reads_exactly_one_key() {
        let mut long = distinct();
        long.push(99);
        assert!(DataKey::read_from(&long[..]).is_ok());
        assert!(matches!(DataKey::read_from(&long[..63]), Err(SecretError::Read(_))));
    }

    #[test]
    fn random_bytes_fill_all_of_it() {
        random(&mut []).unwrap();
        // Longer than what one call gives whole.
        let (mut one, mut two) = (vec![0; 100_000], vec![0; 100_000]);
        random(&mut one).unwrap();
        random(&mut two).unwrap();
        assert_ne!(one, two);
        // 64 zero bytes in a row are no chance's.
        assert!(one.chunks(64).all(|part| part.iter().any(|byte| *byte != 0)));
    }

    #[test]
    fn equality_looks_at_every_byte() {
        let a = distinct();
        for i in 0..a.len() {
            let mut b = a.clone();
            b[i] ^= 1;
            assert!(!equal(&a, &b), "byte {i}");
        }
        assert!(equal(&a, &distinct()));
        assert!(!equal(&a, &a[..63]));
    }
}

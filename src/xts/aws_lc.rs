//! AES-256-XTS from AWS-LC (`EVP_aes_256_xts`, crypto/fipsmodule/cipher/e_aes.c).
//!
//! A context carries the tweak of the sector at work, so no two threads may share one. There is a context per
//! core and direction; a thread keeps to one of them while it is free, and never waits while another is.
//! `EVP_CIPHER_CTX_free` wipes the expanded keys (`OPENSSL_free` cleanses what it frees).

use std::cell::Cell;
use std::ffi::c_int;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;

use aws_lc_sys::{
    EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_CipherInit_ex, EVP_CipherUpdate,
    EVP_aes_256_xts,
};

use super::{SectorCipher, assert_whole_sectors};
use crate::geometry::SectorSize;
use crate::mapping::Window;
use crate::secret::DataKey;

/// Most contexts in one direction; more cores than this share.
const MAX_CONTEXTS: usize = 64;

/// Tweaks that are written before the first of them is needed. AWS-LC reads a tweak as one vector, and a processor makes
/// such a read wait for as long as the two halves are still on their way to the cache: for sectors of 512 bytes that
/// is an eighth of the time.
const AHEAD: usize = 8;

pub(super) struct AwsLc {
    encrypt: Contexts,
    decrypt: Contexts,
    sector: SectorSize,
}

impl AwsLc {
    pub(super) fn new(key: &DataKey, sector: SectorSize) -> Self {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MAX_CONTEXTS);
        let contexts = |direction| Contexts {
            all: (0..count).map(|_| Mutex::new(Context::new(key, direction))).collect(),
        };
        Self { encrypt: contexts(Direction::Encrypt), decrypt: contexts(Direction::Decrypt), sector }
    }

    /// One data unit of any length from 16 bytes, as published vectors have them.
    #[cfg(test)]
    pub(super) fn unit(&self, encrypt: bool, number: u128, unit: &mut [u8]) {
        let contexts = if encrypt { &self.encrypt } else { &self.decrypt };
        let there = unit.as_mut_ptr();
        // SAFETY: the bytes are borrowed to be read and written.
        unsafe { contexts.take().apply(&number.to_le_bytes(), there, there, unit.len()) };
    }

    /// # Safety
    /// `length` bytes, which are whole sectors, may be read from `from` on and written from `to` on, which are the same
    /// or apart.
    unsafe fn apply(&self, contexts: &Contexts, first: u64, from: *const u8, to: *mut u8, length: usize) {
        let sector = self.sector.bytes();
        let mut context = contexts.take();
        let (mut number, mut at) = (u128::from(first), 0);
        while at + sector <= length {
            let mut tweaks = [[0; 16]; AHEAD];
            let count = ((length - at) / sector).min(AHEAD);
            for tweak in &mut tweaks[..count] {
                *tweak = number.to_le_bytes();
                number += 1;
            }
            for tweak in &tweaks[..count] {
                // SAFETY: a sector lies before `length`.
                unsafe { context.apply(tweak, from.add(at), to.add(at), sector) };
                at += sector;
            }
        }
    }

    fn apply_in_place(&self, contexts: &Contexts, first: u64, data: &mut [u8]) {
        assert_whole_sectors(data, self.sector);
        let there = data.as_mut_ptr();
        // SAFETY: the bytes are borrowed to be read and written.
        unsafe { self.apply(contexts, first, there, there, data.len()) };
    }
}

impl SectorCipher for AwsLc {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        self.apply_in_place(&self.encrypt, first, data);
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        self.apply_in_place(&self.decrypt, first, data);
    }

    fn encrypt_into(&self, first: u64, data: &[u8], target: &Window) {
        assert_whole_sectors(data, self.sector);
        assert_eq!(data.len(), target.len());
        // SAFETY: as many bytes are borrowed to be read as may be written where `target` is, which is apart.
        unsafe { self.apply(&self.encrypt, first, data.as_ptr(), target.start(), data.len()) };
    }

    fn decrypt_from(&self, first: u64, source: &Window, data: &mut [u8]) {
        assert_whole_sectors(data, self.sector);
        assert_eq!(data.len(), source.len());
        // SAFETY: as many bytes are borrowed to be written as may be read where `source` is, which is apart.
        unsafe { self.apply(&self.decrypt, first, source.start(), data.as_mut_ptr(), data.len()) };
    }

    fn sector_size(&self) -> SectorSize {
        self.sector
    }
}

struct Contexts {
    all: Box<[Mutex<Context>]>,
}

impl Contexts {
    fn take(&self) -> MutexGuard<'_, Context> {
        let own = own_number() % self.all.len();
        for index in (own..self.all.len()).chain(0..own) {
            match self.all[index].try_lock() {
                Ok(context) => return context,
                // A context has no state between two sectors, so a panic cannot have left a bad one.
                Err(TryLockError::Poisoned(poisoned)) => return poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        self.all[own].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Numbers threads in the order in which they come here first, so that they spread over the contexts.
fn own_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: Cell<Option<usize>> = const { Cell::new(None) });
    OWN.with(|own| {
        own.get().unwrap_or_else(|| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            own.set(Some(number));
            number
        })
    })
}

#[derive(Clone, Copy)]
enum Direction {
    Decrypt = 0,
    Encrypt = 1,
}

/// Keeps the direction that the context was made for.
const SAME_DIRECTION: c_int = -1;

struct Context(NonNull<EVP_CIPHER_CTX>);

// SAFETY: a context is plain memory without ties to a thread (AWS-LC, include/openssl/cipher.h); `&mut self` on
// every use keeps it to one thread at a time.
unsafe impl Send for Context {}

impl Context {
    fn new(key: &DataKey, direction: Direction) -> Self {
        // SAFETY: takes nothing and returns a new context or null.
        let context = NonNull::new(unsafe { EVP_CIPHER_CTX_new() });
        // Memory for a few hundred bytes: as with Rust's own allocator there is no going on without it.
        let Some(context) = context else {
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; 512]>())
        };
        let context = Self(context);
        // SAFETY: the context is valid and ours alone, the cipher is a static, the key has the 64 bytes that the
        // cipher reads, and a null engine and tweak are allowed.
        let ok = unsafe {
            EVP_CipherInit_ex(
                context.0.as_ptr(),
                EVP_aes_256_xts(),
                ptr::null_mut(),
                key.expose().as_ptr(),
                ptr::null(),
                direction as c_int,
            )
        };
        assert_eq!(ok, 1, "AWS-LC refuses a key of 64 bytes with unequal halves");
        context
    }

    /// One data unit of at least 16 bytes; its number is the tweak.
    ///
    /// # Safety
    /// `unit` bytes may be read from `from` on and written from `to` on, which are the same or apart.
    unsafe fn apply(&mut self, tweak: &[u8; 16], from: *const u8, to: *mut u8, unit: usize) {
        let length = c_int::try_from(unit).unwrap_or_default();
        let mut written = 0;
        // SAFETY: the context is valid, keyed and ours alone; the tweak has the 16 bytes that are read.
        let ready = unsafe {
            EVP_CipherInit_ex(
                self.0.as_ptr(),
                ptr::null(),
                ptr::null_mut(),
                ptr::null(),
                tweak.as_ptr(),
                SAME_DIRECTION,
            )
        };
        // SAFETY: `length` bytes may be read and written; XTS allows that they are the same.
        let done = unsafe { EVP_CipherUpdate(self.0.as_ptr(), to, &raw mut written, from, length) };
        // Going on would hand out plaintext for ciphertext.
        assert!(ready == 1 && done == 1 && written == length, "AWS-LC refuses a data unit of {length} bytes");
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context came from `EVP_CIPHER_CTX_new` and is not used after this.
        unsafe { EVP_CIPHER_CTX_free(self.0.as_ptr()) }
    }
}

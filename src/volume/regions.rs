//! Who may touch which sectors when.
//!
//! A request that covers part of a sector reads the sector, changes it and writes it back, which must not undo what
//! another request wrote to the same sector meanwhile. So the volume is divided into regions, each with a
//! readers-writer lock from a fixed set: whole sectors are written with the lock shared, part of a sector is changed
//! with the lock held alone. Clients that write whole sectors never wait for each other.
//!
//! A sector that is read half before it was written and half after deciphers to noise, where a plain disk would have
//! returned old bytes or new ones; neither the page cache nor a device promises that this does not happen. So writes
//! are counted, in slots for a few sectors each, and a read during which something was written there is done again
//! with the region's lock held alone (as after a
//! failed read_seqbegin_or_lock of the kernel's include/linux/seqlock.h).

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use crate::geometry::ByteRange;

/// Bytes in a region: large, so that few requests cross into a second one.
pub(super) const REGION: u64 = 32 << 20;
/// Locks; regions share them in turn.
const LOCKS: usize = 64;
/// Bytes that a slot counts writes to: small, so that few reads meet writes to other sectors.
const CHUNK: u64 = 64 << 10;
/// Slots; chunks share them in turn.
const SLOTS: usize = 4096;
/// In a slot, a write that is under way. Below it, those that have ended are counted: at a million a second, it takes
/// nine years until they are as many.
const UNDER_WAY: u64 = 1 << 48;

pub(super) struct Regions {
    locks: Box<[RwLock<()>]>,
    slots: Box<[AtomicU64]>,
}

/// While it lives, whole sectors of one range may be written.
pub(super) struct Writing<'a> {
    regions: &'a Regions,
    range: ByteRange,
    _shared: RwLockReadGuard<'a, ()>,
}

impl Regions {
    pub(super) fn new() -> Self {
        Self {
            locks: (0..LOCKS).map(|_| RwLock::new(())).collect(),
            slots: (0..SLOTS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn lock(&self, offset: u64) -> &RwLock<()> {
        &self.locks[usize::try_from(offset / REGION % LOCKS as u64).unwrap_or_default()]
    }

    fn slots(&self, range: ByteRange) -> impl Iterator<Item = &AtomicU64> {
        let (first, end) = (range.start() / CHUNK, range.end().div_ceil(CHUNK));
        (first..end).map(|chunk| &self.slots[usize::try_from(chunk % SLOTS as u64).unwrap_or_default()])
    }

    // The locks guard no data of their own, so one poisoned by a panic is as good as any other.

    fn shared(&self, offset: u64) -> RwLockReadGuard<'_, ()> {
        self.lock(offset).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn shared_now(&self, offset: u64) -> Option<RwLockReadGuard<'_, ()>> {
        match self.lock(offset).try_read() {
            Ok(shared) => Some(shared),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The sector at `offset`, to be read and written back: nobody else reads or writes it.
    pub(super) fn alone(&self, offset: u64) -> RwLockWriteGuard<'_, ()> {
        self.lock(offset).write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whole sectors of one region, to be written.
    pub(super) fn write(&self, range: ByteRange) -> Writing<'_> {
        self.writing(range, self.shared(range.start()))
    }

    /// The same, if nobody has to be waited for.
    pub(super) fn write_now(&self, range: ByteRange) -> Option<Writing<'_>> {
        Some(self.writing(range, self.shared_now(range.start())?))
    }

    fn writing<'a>(&'a self, range: ByteRange, shared: RwLockReadGuard<'a, ()>) -> Writing<'a> {
        for slot in self.slots(range) {
            slot.fetch_add(UNDER_WAY, Ordering::Relaxed);
        }
        // What is written comes after what was counted.
        fence(Ordering::Release);
        Writing { regions: self, range, _shared: shared }
    }

    /// What has been written in `range` so far, as a number that changes with every write; `None` during one.
    fn written(&self, range: ByteRange) -> Option<u64> {
        let counts = self.slots(range).map(|slot| slot.load(Ordering::Acquire));
        counts.into_iter().try_fold(0_u64, |sum, count| (count < UNDER_WAY).then(|| sum.wrapping_add(count)))
    }

    /// True if nothing was written in `range` while `read` read it; false if so, and if it returned false.
    fn undisturbed<E>(&self, range: ByteRange, read: impl FnOnce() -> Result<bool, E>) -> Result<bool, E> {
        let Some(before) = self.written(range) else { return Ok(false) };
        let is_read = read()?;
        // What was read comes before what is counted.
        fence(Ordering::Acquire);
        Ok(is_read && self.written(range) == Some(before))
    }

    /// Reads whole sectors of one region by `read`, each as one write left it. `read` may be called twice.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn read<E>(&self, range: ByteRange, mut read: impl FnMut() -> Result<(), E>) -> Result<(), E> {
        let shared = self.shared(range.start());
        if self.undisturbed(range, || read().map(|()| true))? {
            return Ok(());
        }
        drop(shared);
        let _alone = self.alone(range.start());
        read()
    }

    /// The same if nobody has to be waited for; false otherwise, and if `read` returned false.
    ///
    /// # Errors
    /// Those of `read`.
    pub(super) fn read_now<E>(
        &self,
        range: ByteRange,
        read: impl FnOnce() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let Some(_shared) = self.shared_now(range.start()) else { return Ok(false) };
        self.undisturbed(range, read)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        for slot in self.regions.slots(self.range) {
            // One under way less, one that has ended more.
            slot.fetch_sub(UNDER_WAY - 1, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn range(offset: u64, length: u64) -> ByteRange {
        ByteRange::within(offset, length, u64::MAX).unwrap()
    }

    #[test]
    fn what_was_written_while_it_was_read_is_read_again() {
        let regions = Regions::new();
        for (written, expected) in [(range(8192, 4096), 2), (range(0, REGION), 2), (range(CHUNK, 4096), 1)] {
            let mut reads = 0;
            let read = regions.read(range(8192, 4096), || {
                reads += 1;
                if reads == 1 {
                    drop(regions.write(written));
                }
                Ok::<_, Infallible>(())
            });
            assert_eq!((read, reads), (Ok(()), expected), "{written:?}");
            let disturbed = regions.read_now(range(8192, 4096), || {
                drop(regions.write(written));
                Ok::<_, Infallible>(true)
            });
            assert_eq!(disturbed, Ok(expected == 1), "{written:?}");
        }
        assert_eq!(regions.read_now(range(0, 512), || Ok::<_, Infallible>(true)), Ok(true));
        assert_eq!(regions.read_now(range(0, 512), || Ok::<_, Infallible>(false)), Ok(false));
    }

    #[test]
    fn nobody_reads_what_is_being_written() {
        let regions = Regions::new();
        let written = AtomicU64::new(0);
        let two = [regions.write(range(0, 2 * CHUNK)), regions.write(range(CHUNK, 4096))];
        let now = regions.read_now(range(CHUNK, 512), || Err(()));
        assert_eq!(now, Ok(false), "and it is not even tried");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let seen = regions.read(range(CHUNK, 512), || {
                    assert_eq!(written.load(Ordering::SeqCst), 2);
                    Ok::<_, Infallible>(())
                });
                assert_eq!(seen, Ok(()));
            });
            for writing in two {
                std::thread::sleep(std::time::Duration::from_millis(20));
                written.fetch_add(1, Ordering::SeqCst);
                drop(writing);
            }
        });
        assert_eq!(
            regions.slots.iter().map(|slot| slot.load(Ordering::SeqCst)).sum::<u64>(),
            3,
            "all have ended"
        );
    }
}

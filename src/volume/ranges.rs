//! Who may touch which sectors when: a lock on ranges.
//!
//! A request that covers part of a sector reads the sector, changes it and writes it back, which must not undo what
//! another request wrote to the same sector meanwhile. A sector that is read half before it is written and half after
//! deciphers to noise wherever the cut goes through a cipher block, or lies between a hole and data, where a plain
//! disk would have returned old bytes and new ones; two writes of one sector could even leave such a cut for good.
//! Neither the page cache nor a device promises that none of this happens.
//!
//! So every request holds the range of whole sectors that it reads or writes: reads share it, writes and changes have
//! it to themselves. Whoever overlaps waits, in the order of arrival; all others go on. The volume is divided into
//! regions, whose ranges are kept in lists of their own. A list is locked only to look through the requests that are
//! being served in its regions: no more than there are threads, and a handful but for a client that means harm.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use crate::geometry::ByteRange;

/// Bytes in a region: large, so that few requests cross into a second one.
pub(super) const REGION: u64 = 32 << 20;
/// Lists; regions share them in turn.
const LISTS: usize = 64;

/// What a range is held for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Beside others that read.
    Read,
    /// Alone.
    Write,
}

/// The ranges of a volume that are held or waited for.
pub(super) struct Ranges {
    lists: Box<[List]>,
}

/// Apart from the next one by more than a cache line, and the one that is fetched with it.
#[derive(Default)]
#[repr(align(128))]
struct List(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    /// In the order of arrival.
    entries: Vec<Entry>,
    last: u64,
}

struct Entry {
    number: u64,
    range: ByteRange,
    purpose: Use,
    /// Those before it that it waits for.
    in_the_way: usize,
    /// Who waits, until nobody is in the way.
    waits: Option<Thread>,
}

impl Entry {
    fn conflicts(&self, range: ByteRange, purpose: Use) -> bool {
        let overlaps = self.range.start() < range.end() && range.start() < self.range.end();
        overlaps && (purpose == Use::Write || self.purpose == Use::Write)
    }
}

impl Entries {
    fn in_the_way(&self, range: ByteRange, purpose: Use) -> usize {
        self.entries.iter().filter(|entry| entry.conflicts(range, purpose)).count()
    }

    fn enter(&mut self, range: ByteRange, purpose: Use, in_the_way: usize) -> u64 {
        self.last += 1;
        let waits = (in_the_way > 0).then(std::thread::current);
        self.entries.push(Entry { number: self.last, range, purpose, in_the_way, waits });
        self.last
    }

    fn waits(&self, number: u64) -> bool {
        self.entries.iter().any(|entry| entry.number == number && entry.in_the_way > 0)
    }

    /// Lets those go on that waited for nobody else.
    fn leave(&mut self, number: u64) {
        let Some(place) = self.entries.iter().position(|entry| entry.number == number) else { return };
        let left = self.entries.remove(place);
        for later in &mut self.entries[place..] {
            if later.conflicts(left.range, left.purpose) {
                later.in_the_way -= 1;
                if later.in_the_way == 0
                    && let Some(thread) = later.waits.take()
                {
                    thread.unpark();
                }
            }
        }
    }
}

impl List {
    // Nothing that can panic happens to a list halfway.
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A range that is held, until it is dropped. A thread that waits for one has no other, so nobody
/// waits in a circle.
#[must_use = "the range is released at once"]
pub(super) struct Hold<'a> {
    list: &'a List,
    number: u64,
}

impl Ranges {
    pub(super) fn new() -> Self {
        Self { lists: (0..LISTS).map(|_| List::default()).collect() }
    }

    fn list(&self, range: ByteRange) -> &List {
        &self.lists[usize::try_from(range.start() / REGION % LISTS as u64).unwrap_or_default()]
    }

    /// Whole sectors of one region; waits for whoever has them.
    pub(super) fn hold(&self, range: ByteRange, purpose: Use) -> Hold<'_> {
        let list = self.list(range);
        let mut entries = list.lock();
        let in_the_way = entries.in_the_way(range, purpose);
        let number = entries.enter(range, purpose, in_the_way);
        drop(entries);
        let hold = Hold { list, number };
        if in_the_way > 0 {
            while list.lock().waits(number) {
                std::thread::park();
            }
        }
        hold
    }

    /// The same, if no other request has to be waited for.
    pub(super) fn hold_now(&self, range: ByteRange, purpose: Use) -> Option<Hold<'_>> {
        let list = self.list(range);
        let mut entries = list.lock();
        if entries.in_the_way(range, purpose) > 0 {
            return None;
        }
        let number = entries.enter(range, purpose, 0);
        Some(Hold { list, number })
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.list.lock().leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn range(offset: u64, length: u64) -> ByteRange {
        ByteRange::within(offset, length, u64::MAX).unwrap()
    }

    #[test]
    fn only_who_overlaps_and_writes_is_in_the_way() {
        let ranges = Ranges::new();
        let first = ranges.hold(range(8192, 8192), Use::Read);
        let now = |offset, length, purpose| ranges.hold_now(range(offset, length), purpose).is_some();
        assert!(now(8192, 4096, Use::Read) && now(0, 1 << 20, Use::Read));
        assert!(now(0, 8192, Use::Write) && now(16384, 4096, Use::Write), "side by side");
        assert!(!now(12288, 4096, Use::Write) && !now(0, 8193, Use::Write));
        drop(first);
        let second = ranges.hold(range(8192, 8192), Use::Write);
        assert!(!now(8192, 4096, Use::Read) && !now(0, 1 << 20, Use::Read));
        // Another region with the same list.
        assert!(now(8192 + REGION * LISTS as u64, 4096, Use::Write));
        drop(second);
        assert!(now(0, 1 << 20, Use::Write));
        assert!(ranges.lists.iter().all(|list| list.lock().entries.is_empty()));
    }

    /// A reader that comes after a waiting writer waits for it: writers are not kept out by readers without end.
    #[test]
    fn whoever_comes_first_goes_first() {
        let ranges = &Ranges::new();
        let order = &AtomicUsize::new(0);
        let waiting = |count| {
            while ranges.lists[0].lock().entries.iter().filter(|entry| entry.in_the_way > 0).count() < count {
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let goes = |range, purpose, place| {
            move || {
                let hold = ranges.hold(range, purpose);
                assert_eq!(order.fetch_add(1, Ordering::SeqCst), place);
                drop(hold);
            }
        };
        std::thread::scope(|scope| {
            let first = ranges.hold(range(0, 4096), Use::Read);
            scope.spawn(goes(range(0, 8192), Use::Write, 0));
            waiting(1);
            assert!(ranges.hold_now(range(0, 4096), Use::Read).is_none());
            scope.spawn(goes(range(4096, 4096), Use::Read, 1));
            waiting(2);
            drop(first);
        });
        assert_eq!(order.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_range_is_had_by_one_at_a_time() {
        let ranges = Ranges::new();
        let users: Vec<AtomicUsize> = (0..8).map(|_| AtomicUsize::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let (ranges, users) = (&ranges, &users);
                scope.spawn(move || {
                    for round in 0..2000_usize {
                        let (first, count) = ((round * 5 + thread) % 6, 1 + round % 3);
                        let range = range(first as u64 * 512, count as u64 * 512);
                        let hold = if round % 7 == 0 {
                            ranges.hold_now(range, Use::Write)
                        } else {
                            Some(ranges.hold(range, Use::Write))
                        };
                        let Some(hold) = hold else { continue };
                        let mine = &users[first..(first + count).min(8)];
                        assert!(mine.iter().all(|user| user.fetch_add(1, Ordering::SeqCst) == 0));
                        std::thread::yield_now();
                        assert!(mine.iter().all(|user| user.fetch_sub(1, Ordering::SeqCst) == 1));
                        drop(hold);
                    }
                });
            }
        });
    }
}

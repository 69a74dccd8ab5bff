//! Memory for the data of requests in flight, within bounds.
//!
//! A connection borrows a buffer for every request that moves data, or for small ones together, and gives it back
//! with the reply, so that what it holds is what its client has in flight. [`CONNECTION`] is the most; whoever wants
//! to receive then waits for an earlier request to be done, which holds up this client and nobody else. Beyond
//! [`GUARANTEED`] the bytes come from an [`Allowance`] that all connections share. Where it is used up, a connection
//! goes on with what is guaranteed to it: clients that leave their replies unread slow others down, and never stop
//! them.
//!
//! Buffers that are given back are kept for the next request, as long as requests keep coming. They have held
//! plaintext, so they are wiped before their memory goes anywhere else.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::pages::{self, Pages};

/// Bytes that move in one piece; the largest buffer.
pub(super) const PIECE: usize = 1 << 20;
const _: () = assert!(PIECE == pages::HALF, "else it would not come from a huge page");
/// The smallest buffer.
pub(super) const SMALL: usize = 16 << 10;
/// What is read ahead, and replies that leave together, have room in it.
pub(super) const MEDIUM: usize = 256 << 10;
/// Sizes of buffers: most requests are either as small as a page, or as large as a kernel sends them by default.
const SIZES: [usize; 4] = [SMALL, 128 << 10, MEDIUM, PIECE];
/// Most bytes of a connection: 128 requests of 128 KiB, or 16 that move whole pieces.
const CONNECTION: usize = 16 << 20;
/// Bytes that a connection always gets: one buffer of any size.
const GUARANTEED: usize = PIECE;
/// Bytes of all connections together, [`GUARANTEED`] of each left out.
const SHARED: usize = 256 << 20;

/// What connections may take beyond the guaranteed buffer.
pub(super) struct Allowance {
    left: AtomicUsize,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { left: AtomicUsize::new(SHARED) }
    }
}

impl Allowance {
    fn take(&self, bytes: usize) -> bool {
        let take = |left: usize| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.left.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The buffers of a connection.
pub(super) struct Pool {
    allowance: Arc<Allowance>,
    /// Large buffers are for a disk, past the page cache, which takes them in one piece.
    in_one_piece: bool,
    shelf: Mutex<Shelf>,
    returned: Condvar,
}

#[derive(Default)]
struct Shelf {
    /// Buffers that nobody uses, by size.
    free: [Vec<Pages>; SIZES.len()],
    /// Bytes of all buffers, free or borrowed.
    held: usize,
    waiting: bool,
}

/// A buffer for as long as it is needed. What it holds at first is unspecified, and nobody else's.
pub(super) struct Buffer<'a> {
    pool: &'a Pool,
    class: usize,
    pages: Pages,
    length: usize,
}

impl Pool {
    /// `in_one_piece`: large buffers are for a disk, past the page cache.
    pub(super) fn new(allowance: Arc<Allowance>, in_one_piece: bool) -> Self {
        Self { allowance, in_one_piece, shelf: Mutex::default(), returned: Condvar::new() }
    }

    /// `length` bytes, at most [`PIECE`]; waits until the connection may have as many.
    ///
    /// One thread at a time may call this, and no thread that has a buffer already.
    pub(super) fn borrow(&self, length: usize) -> Buffer<'_> {
        let class = class(length);
        let mut shelf = self.shelf();
        let pages = loop {
            if let Some(pages) = shelf.free[class].pop() {
                break pages;
            }
            if self.charge(&mut shelf, SIZES[class]) {
                drop(shelf);
                break self.make(class);
            }
            if !self.drop_free(&mut shelf, 0) {
                shelf.waiting = true;
                shelf = self.returned.wait(shelf).unwrap_or_else(PoisonError::into_inner);
            }
        };
        Buffer { pool: self, class, pages, length }
    }

    /// The same, if nobody has to be waited for; also for a thread that has buffers.
    pub(super) fn borrow_now(&self, length: usize) -> Option<Buffer<'_>> {
        let class = class(length);
        let mut shelf = self.shelf();
        let pages = match shelf.free[class].pop() {
            Some(pages) => pages,
            None if self.charge(&mut shelf, SIZES[class])
                // Of other sizes, there may be some that nobody uses.
                || self.drop_free(&mut shelf, 0) && self.charge(&mut shelf, SIZES[class]) =>
            {
                drop(shelf);
                self.make(class)
            }
            None => return None,
        };
        Some(Buffer { pool: self, class, pages, length })
    }

    /// Frees what nobody uses, but for one buffer at most.
    pub(super) fn trim(&self) {
        self.drop_free(&mut self.shelf(), 1);
    }

    /// Bytes of all buffers, those that nobody uses included.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.shelf().held
    }

    fn make(&self, class: usize) -> Pages {
        let make = if self.in_one_piece { Pages::in_one_piece } else { Pages::new };
        make(SIZES[class])
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a new buffer of `size` bytes, if there may be one.
    fn charge(&self, shelf: &mut Shelf, size: usize) -> bool {
        let then = shelf.held + size;
        let fits = then <= CONNECTION && self.allowance.take(beyond(then) - beyond(shelf.held));
        if fits {
            shelf.held = then;
        }
        fits
    }

    /// Frees all but `kept` of the buffers that nobody uses; false if there was nothing to free.
    fn drop_free(&self, shelf: &mut Shelf, kept: usize) -> bool {
        let mut excess = shelf.free.iter().map(Vec::len).sum::<usize>().saturating_sub(kept);
        let some = excess > 0;
        // The largest first.
        let mut freed = 0;
        for (size, free) in SIZES.iter().zip(&mut shelf.free).rev() {
            let going = excess.min(free.len());
            excess -= going;
            free.truncate(free.len() - going);
            freed += size * going;
        }
        self.discharge(shelf, freed);
        some
    }

    /// Strikes off `bytes` that are freed.
    fn discharge(&self, shelf: &mut Shelf, bytes: usize) {
        let left = shelf.held - bytes;
        self.allowance.give_back(beyond(shelf.held) - beyond(left));
        shelf.held = left;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.drop_free(&mut self.shelf(), 0);
    }
}

/// The place in [`SIZES`] of the smallest buffer that has `length` bytes.
fn class(length: usize) -> usize {
    debug_assert!(length <= PIECE);
    SIZES.iter().position(|size| length <= *size).unwrap_or(SIZES.len() - 1)
}

/// Bytes that count against the allowance.
fn beyond(held: usize) -> usize {
    held.saturating_sub(GUARANTEED)
}

impl Buffer<'_> {
    /// Lends its memory to a transfer, which begins with its first byte; until it is back, the buffer has none.
    pub(super) fn lend(&mut self) -> Pages {
        std::mem::take(&mut self.pages)
    }

    /// Takes its memory back.
    pub(super) fn take_back(&mut self, pages: Pages) {
        self.pages = pages;
    }
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.pages.first(self.length)
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.pages.first_mut(self.length)
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let mut shelf = self.pool.shelf();
        if self.pages.is_empty() {
            // Whoever it was lent to has not returned it, and frees it.
            self.pool.discharge(&mut shelf, SIZES[self.class]);
        } else {
            shelf.free[self.class].push(std::mem::take(&mut self.pages));
        }
        if std::mem::take(&mut shelf.waiting) {
            drop(shelf);
            self.pool.returned.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn left(allowance: &Allowance) -> usize {
        allowance.left.load(Ordering::Relaxed)
    }

    #[test]
    fn a_buffer_is_as_long_as_asked_for_and_is_used_again() {
        let pool = Pool::new(Arc::default(), true);
        for length in [0, 1, SMALL, SMALL + 1, PIECE] {
            assert_eq!(pool.borrow(length).len(), length);
        }
        let held = pool.shelf().held;
        for length in [0, 1, SMALL, SMALL + 1, PIECE] {
            assert_eq!(pool.borrow(length).len(), length);
        }
        assert_eq!(pool.shelf().held, held);
        pool.trim();
        assert_eq!(pool.shelf().held, SMALL, "one is kept, the smallest");
    }

    #[test]
    fn a_connection_that_has_all_it_may_have_waits_for_its_own() {
        let pool = Pool::new(Arc::default(), true);
        let mut all: Vec<_> = (0..CONNECTION / PIECE).map(|_| pool.borrow(PIECE)).collect();
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|threads| {
            threads.spawn(|| sender.send(pool.borrow(1).len()).unwrap());
            assert!(receiver.recv_timeout(Duration::from_millis(50)).is_err());
            // Of another size: it is freed to make room.
            all.pop();
            assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(1));
        });
    }

    #[test]
    fn one_connection_gets_its_buffer_whatever_others_hold() {
        let allowance = Arc::new(Allowance::default());
        let greedy: Vec<_> = (0..SHARED / (CONNECTION - GUARANTEED) + 2)
            .map(|_| Pool::new(allowance.clone(), false))
            .collect();
        let mut held = Vec::new();
        for pool in &greedy {
            for _ in 0..CONNECTION / PIECE {
                let shelf = pool.shelf();
                let another = beyond(shelf.held + PIECE) - beyond(shelf.held);
                drop(shelf);
                if another <= left(&allowance) {
                    held.push(pool.borrow(PIECE));
                }
            }
        }
        assert_eq!(left(&allowance), 0, "the shared bytes are gone");
        let modest = Pool::new(allowance.clone(), false);
        for length in [SMALL, PIECE, SMALL + 1, 1, PIECE] {
            drop(modest.borrow(length));
        }
        assert!(modest.shelf().held <= GUARANTEED);
        drop(held);
        drop(greedy);
        drop(modest);
        assert_eq!(left(&allowance), SHARED, "all of it is back");
    }

    #[test]
    fn memory_that_is_lent_and_never_returned_is_not_counted_any_more() {
        let pool = Pool::new(Arc::default(), true);
        let mut buffer = pool.borrow(SMALL);
        let pages = buffer.lend();
        buffer.take_back(pages);
        assert_eq!(buffer.len(), SMALL);
        drop(buffer.lend());
        drop(buffer);
        assert_eq!(pool.held(), 0);
    }

    proptest! {
        #[test]
        fn what_is_held_and_what_is_left_add_up(
            steps in prop::collection::vec((0..2_usize, 0..=PIECE, any::<bool>()), 1..80),
        ) {
            let allowance = Arc::new(Allowance::default());
            let pools = [Pool::new(allowance.clone(), false), Pool::new(allowance.clone(), false)];
            let mut borrowed: [Vec<Buffer<'_>>; 2] = Default::default();
            for (which, length, give_back) in steps {
                if give_back {
                    borrowed[which].pop();
                } else if pools[which].shelf().held + PIECE <= CONNECTION {
                    borrowed[which].push(pools[which].borrow(length));
                } else {
                    pools[which].trim();
                }
                let counted: usize = pools.iter().map(|pool| beyond(pool.shelf().held)).sum();
                prop_assert_eq!(SHARED - left(&allowance), counted);
                for (pool, borrowed) in pools.iter().zip(&borrowed) {
                    let used: usize = borrowed.iter().map(|buffer| SIZES[buffer.class]).sum();
                    let shelf = pool.shelf();
                    let free: usize = shelf.free.iter().zip(SIZES).map(|(free, size)| free.len() * size).sum();
                    prop_assert_eq!(shelf.held, used + free);
                    prop_assert!(shelf.held <= CONNECTION);
                }
            }
        }
    }
}

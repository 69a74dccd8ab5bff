//! How many processors there are, and how many of them may be kept busy by what only pays on an idle one.

use std::num::NonZero;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Processors that this process may use, as its control group and its affinity have them.
pub(super) fn processors() -> usize {
    static PROCESSORS: LazyLock<usize> =
        LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get));
    *PROCESSORS
}

/// For clients that are looked out for: one processor is always left to the others.
pub(super) fn lookouts() -> &'static Seats {
    static LOOKOUTS: LazyLock<Seats> = LazyLock::new(|| Seats::beside(1));
    &LOOKOUTS
}

/// For threads that serve while another one of their connection receives: one processor is left to that one, and one to
/// the client.
pub(super) fn helpers() -> &'static Seats {
    static HELPERS: LazyLock<Seats> = LazyLock::new(|| Seats::beside(2));
    &HELPERS
}

/// Processors that are free for one purpose, as far as that purpose knows; shared by all connections.
pub(super) struct Seats {
    free: AtomicUsize,
}

impl Seats {
    /// All but `others`.
    fn beside(others: usize) -> Self {
        Self::new(processors().saturating_sub(others))
    }

    pub(super) fn new(free: usize) -> Self {
        Self { free: AtomicUsize::new(free) }
    }

    /// One of them, until it is dropped; `None` if all are taken.
    pub(super) fn take(&self) -> Option<Seat<'_>> {
        let take = |free: usize| free.checked_sub(1);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok().map(|_| Seat(self))
    }
}

#[must_use = "the seat is given back at once"]
pub(super) struct Seat<'a>(&'a Seats);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_have_a_seat_as_there_are() {
        let seats = Seats::new(2);
        let (first, _second) = (seats.take().unwrap(), seats.take().unwrap());
        assert!(seats.take().is_none());
        drop(first);
        assert!(seats.take().is_some());
        assert!(Seats::new(0).take().is_none());
    }

    #[test]
    fn processors_are_left_to_others() {
        let seats = Seats::beside(processors() - 1);
        let _only = seats.take().unwrap();
        assert!(seats.take().is_none());
        for none in [0, 1] {
            assert!(Seats::beside(processors() + none).take().is_none());
        }
    }
}

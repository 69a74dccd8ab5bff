//! How many connections each peer has, and which of them have not chosen an export yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::Peer;

/// The seats of each peer that has any.
#[derive(Clone, Default)]
pub(super) struct Seats(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    peers: HashMap<Peer, Taken>,
    /// The last seat's number.
    last: u64,
}

/// A peer's seats.
#[derive(Default)]
struct Taken {
    count: usize,
    /// Those of clients in the handshake, the oldest first, each with what tells its client to leave.
    haggling: BTreeMap<u64, oneshot::Sender<()>>,
}

/// What a peer that may have so many seats got.
pub(super) enum Got {
    /// One that was free.
    Free(Seat),
    /// That of its client which has been in the handshake for the longest.
    Displaced(Seat),
    /// Nothing: every seat has a client that is past the handshake.
    Nothing,
}

impl Seats {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for a client that begins its handshake. Where its peer has `most` already, it gets that of the peer's
    /// client which has been in the handshake for the longest: those who connect and say nothing keep nobody out.
    pub(super) fn take(&self, peer: Peer, most: usize) -> Got {
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        let taken = table.peers.entry(peer).or_default();
        let displaced = if taken.count < most {
            taken.count += 1;
            false
        } else {
            let Some((_, leave)) = taken.haggling.pop_first() else { return Got::Nothing };
            // Nobody listens if that client is leaving anyway.
            let _ = leave.send(());
            true
        };
        let (leave, left) = oneshot::channel();
        taken.haggling.insert(number, leave);
        let seat =
            Seat { peer, seats: self.clone(), number, left: Some(left), settled: AtomicBool::new(false) };
        if displaced { Got::Displaced(seat) } else { Got::Free(seat) }
    }

    /// A seat for a client that is past its handshake, however many there are.
    pub(super) fn keep(&self, peer: Peer) -> Seat {
        self.lock().peers.entry(peer).or_default().count += 1;
        Seat { peer, seats: self.clone(), number: 0, left: None, settled: AtomicBool::new(true) }
    }
}

/// One connection of a peer.
pub(super) struct Seat {
    peer: Peer,
    seats: Seats,
    /// Among those in the handshake.
    number: u64,
    /// What comes when another client gets it.
    left: Option<oneshot::Receiver<()>>,
    /// The client has chosen its export.
    settled: AtomicBool,
}

impl Seat {
    /// What returns when another client has got this seat; never once it is settled. To be asked for once.
    pub(super) fn lost(&mut self) -> impl Future<Output = ()> + use<> {
        let left = self.left.take();
        async move {
            if let Some(left) = left
                && left.await.is_ok()
            {
                return;
            }
            std::future::pending::<()>().await;
        }
    }

    /// The client has chosen its export and can keep its seat; false if another has got it meanwhile.
    pub(super) fn settle(&self) -> bool {
        let mut table = self.seats.lock();
        let taken = table.peers.get_mut(&self.peer);
        if taken.is_some_and(|taken| taken.haggling.remove(&self.number).is_some()) {
            self.settled.store(true, Ordering::Relaxed);
        }
        self.settled.load(Ordering::Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        // One that another client has got is given back by that one.
        if !self.settle() {
            return;
        }
        let mut table = self.seats.lock();
        if let Some(taken) = table.peers.get_mut(&self.peer) {
            taken.count -= 1;
            if taken.count == 0 {
                table.peers.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Peer = Peer::User(1);
    const OTHER: Peer = Peer::User(2);

    impl Seats {
        fn free(&self, peer: Peer) -> Option<Seat> {
            match self.take(peer, 2) {
                Got::Free(seat) => Some(seat),
                Got::Displaced(_) | Got::Nothing => None,
            }
        }

        fn settled(&self, peer: Peer) -> Seat {
            let seat = self.free(peer).unwrap();
            assert!(seat.settle());
            seat
        }
    }

    fn is_lost(seat: &mut Seat) -> bool {
        is_ready(seat.lost())
    }

    fn is_ready(waiting: impl Future<Output = ()>) -> bool {
        let waiting = std::pin::pin!(waiting);
        waiting.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn a_seat_is_free_again_once_its_connection_has_gone() {
        let seats = Seats::default();
        let first = seats.settled(ONE);
        let _second = seats.settled(ONE);
        assert!(matches!(seats.take(ONE, 2), Got::Nothing));
        assert!(seats.free(OTHER).is_some(), "another peer has seats of its own");
        drop(first);
        assert!(seats.free(ONE).is_some());
        assert_eq!(seats.lock().peers.len(), 1, "whoever has gone is forgotten");
    }

    #[test]
    fn the_oldest_in_the_handshake_gives_its_seat_to_a_new_client() {
        let seats = Seats::default();
        let (mut oldest, mut second) = (seats.free(ONE).unwrap(), seats.free(ONE).unwrap());
        let Got::Displaced(third) = seats.take(ONE, 2) else { panic!("no seat") };
        assert!(is_lost(&mut oldest) && !oldest.settle());
        let second_lost = second.lost();
        assert!(second.settle() && !is_ready(second_lost));
        drop(oldest);
        assert_eq!(seats.lock().peers[&ONE].count, 2, "the third has the first's");
        assert!(third.settle());
        assert!(matches!(seats.take(ONE, 2), Got::Nothing), "whoever has chosen its export stays");
        drop((second, third));
        assert!(seats.lock().peers.is_empty());
    }

    #[test]
    fn a_client_that_is_kept_counts_and_is_not_displaced() {
        let seats = Seats::default();
        let mut kept = [ONE; 3].map(|peer| seats.keep(peer));
        assert!(matches!(seats.take(ONE, 2), Got::Nothing));
        assert!(kept.iter_mut().all(|seat| !is_lost(seat) && seat.settle()));
        drop(kept);
        assert!(seats.lock().peers.is_empty());
    }
}

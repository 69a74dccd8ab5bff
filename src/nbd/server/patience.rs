//! How the next request is waited for: awake for a moment, as long as that pays, and then asleep.
//!
//! A client with one request at a time sends the next one some microseconds after it has the reply to the last. To fall
//! asleep and to be woken takes longer than that. So whoever has come back soon several times is expected to do it again,
//! and looked out for; once in vain, and it has to come back soon several times more. A client that lets longer pass
//! between its requests, and one that is gone, cost nothing. And never are all processors busy with looking out.
//!
//! The rest of a large request is waited for in the same way, and for the same reason: a Unix socket holds a fifth of
//! 1 MiB, so that both sides would fall asleep and be woken again for every fifth. Where one
//! thread does all, it takes less proof, for the client is known to be about to send it, and looks out for longer, for
//! the client itself may have to be woken first.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::processors::{Seats, lookouts};

/// How long it is looked out for the next request.
const MOMENT: Duration = Duration::from_micros(50);
/// The same for the rest of one on a Unix socket, by a thread that does all: others would want its processor.
const MOMENT_OF_REST: Duration = Duration::from_micros(300);
/// What it takes to fall asleep and to be woken: what has come so much later than a moment, to one who slept, would have
/// come within the moment to one who looked out.
const WAKE_UP: Duration = Duration::from_micros(50);
/// So many have to come that soon before the next one is looked out for.
const PROOF: u32 = 16;
/// The same for the rest of one, on a Unix socket.
const PROOF_OF_REST: u32 = 1;

/// What one client is expected to do.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// How long it is looked out for one.
    moment: Duration,
    /// How many have to come soon after one that did not.
    proof: u32,
    /// Requests that have to come soon yet.
    unproven: u32,
    /// Shared with other clients; `None` where one cannot look.
    lookouts: Option<&'static Seats>,
}

impl Patience {
    /// Of a client that nothing is known of.
    pub(super) fn new(can_look: bool) -> Self {
        Self { moment: MOMENT, proof: PROOF, unproven: PROOF, lookouts: can_look.then(lookouts) }
    }

    /// The same for the rest of large requests, where one can look. What comes over TCP, comes as the network has it.
    pub(super) fn with_rest(is_unix: bool) -> Self {
        let usual = Self::new(true);
        if !is_unix {
            return usual;
        }
        Self { moment: MOMENT_OF_REST, proof: PROOF_OF_REST, unproven: PROOF_OF_REST, ..usual }
    }

    /// Of one who has come back soon as often as it takes.
    #[cfg(test)]
    pub(super) fn proven() -> Self {
        Self { unproven: 0, lookouts: Some(Box::leak(Box::new(Seats::new(1)))), ..Self::new(true) }
    }

    /// Whether the next one is looked out for.
    #[cfg(test)]
    pub(super) fn is_proven(&self) -> bool {
        self.unproven == 0
    }

    /// Waits by `look`, which looks whether it has come, or sleeps until it has: `look(true)` sleeps.
    ///
    /// # Errors
    /// Those of `look`.
    pub(super) fn wait<T>(&mut self, mut look: impl FnMut(bool) -> io::Result<Option<T>>) -> io::Result<T> {
        let began = Instant::now();
        if let Some(come) = self.look_out(|| look(false))? {
            return Ok(come);
        }
        loop {
            if let Some(come) = look(true)? {
                self.came_after(began.elapsed());
                return Ok(come);
            }
        }
    }

    /// The part of it that is awake, by a `look` that never sleeps: `None` if that was in vain, or is not expected to pay.
    ///
    /// # Errors
    /// Those of `look`.
    pub(super) fn look_out<T, E>(
        &mut self,
        mut look: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        let lookout = self.lookouts.filter(|_| self.unproven == 0).and_then(Seats::take);
        let Some(_lookout) = lookout else { return Ok(None) };
        let began = Instant::now();
        loop {
            if let Some(come) = look()? {
                return Ok(Some(come));
            }
            if began.elapsed() >= self.moment {
                self.unproven = self.proof;
                return Ok(None);
            }
            // Whoever else has work to do goes first.
            thread::yield_now();
        }
    }

    /// It has come so long after it was waited for first, whether awake or asleep.
    pub(super) fn came_after(&mut self, time: Duration) {
        if time < self.moment + WAKE_UP {
            self.unproven = self.unproven.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(unproven: u32, lookouts: usize) -> Patience {
        let lookouts = Some(Box::leak(Box::new(Seats::new(lookouts))) as &Seats);
        Patience { unproven, lookouts, ..Patience::new(true) }
    }

    /// Waits for what comes at once, or late, to one who sleeps, and never to one who looks; how often it was looked for.
    fn looks(patience: &mut Patience, late: bool) -> usize {
        let mut looks = 0;
        let wait = patience.wait(|sleeps| {
            looks += usize::from(!sleeps);
            if late {
                thread::sleep(MOMENT + WAKE_UP);
            }
            Ok(sleeps.then_some(()))
        });
        wait.unwrap();
        looks
    }

    #[test]
    fn who_comes_back_soon_is_looked_out_for_until_it_was_in_vain() {
        let mut patience = patience(PROOF, 1);
        for _ in 0..2 {
            // On a busy machine some may seem to be late.
            while patience.unproven > 0 {
                assert_eq!(looks(&mut patience, false), 0);
            }
            assert!(looks(&mut patience, false) > 0);
            assert!(patience.unproven >= PROOF - 1, "in vain");
        }
    }

    /// By one who sleeps elsewhere, and tells of it.
    #[test]
    fn the_rest_of_a_request_is_looked_out_for_after_less_proof() {
        let mut rest = Patience { lookouts: patience(0, 1).lookouts, ..Patience::with_rest(true) };
        let looks = |rest: &mut Patience, come: Option<()>| {
            let mut looks = 0;
            let seen = rest.look_out(|| {
                looks += 1;
                Ok::<_, ()>(come)
            });
            assert_eq!(seen, Ok(come.filter(|()| looks > 0)));
            looks
        };
        for _ in 0..2 {
            rest.came_after(MOMENT_OF_REST + WAKE_UP);
            assert_eq!(looks(&mut rest, None), 0, "that was not soon");
            for _ in 0..PROOF_OF_REST {
                assert_eq!(looks(&mut rest, None), 0);
                rest.came_after(Duration::ZERO);
            }
            assert_eq!(looks(&mut rest, Some(())), 1);
            assert!(looks(&mut rest, None) > 0, "in vain");
        }
    }

    #[test]
    fn who_takes_its_time_is_never_looked_out_for() {
        let mut patience = patience(PROOF, 1);
        for _ in 0..2 * PROOF {
            assert_eq!(looks(&mut patience, true), 0);
        }
    }

    #[test]
    fn as_many_are_looked_out_for_as_leave_a_processor_to_others() {
        let mut first = patience(0, 1);
        let mut second = Patience { ..first };
        let wait = first.wait(|_| {
            assert_eq!(looks(&mut second, false), 0);
            Ok(Some(()))
        });
        wait.unwrap();
        assert!(looks(&mut second, false) > 0);
        assert_eq!(looks(&mut patience(0, 0), false), 0, "there is one processor");
        assert_eq!(looks(&mut Patience { lookouts: None, ..first }, false), 0);
    }

    #[test]
    fn what_has_come_is_seen_without_sleep() {
        let mut patience = patience(0, 1);
        assert_eq!(patience.wait(|sleeps| Ok((!sleeps).then_some(7))).unwrap(), 7);
        assert!(patience.wait::<()>(|_| Err(io::ErrorKind::BrokenPipe.into())).is_err());
        assert!(patience.lookouts.unwrap().take().is_some(), "nobody looks out any more");
    }
}

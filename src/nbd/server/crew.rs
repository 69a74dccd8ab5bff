//! The threads of a connection: who has the turn to receive, and how many there have to be.
//!
//! One thread at a time has the turn, and with it what is received from. A thread that has a request passes the turn on
//! and serves, or lays it down, where that is likely to take less time than to wake another one. So a connection has
//! enough threads as long as there is one left to take the turn, and while there is, nothing here costs more than a lock
//! that is held for a few instructions.
//!
//! A connection begins with one thread, for most are idle. Up to a steady number are added at once when the turn is
//! passed on and nobody is there to take it: as many as keep the processors busy with copying and ciphering while one
//! waits for the client, or a disk busy where each request waits for that. More are of use only when those are stuck, in
//! a slow device, say, and that shows in nothing being received for a while: then [`Crew::look`], which is called now and
//! then, asks for as many again, up to [`MOST`]. It also sends home the threads that have not been needed since it was
//! called last.

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Threads that a connection has at most: as many requests are in flight, and one more is received.
pub(super) const MOST: usize = 129;

pub(super) struct Crew<T> {
    /// Threads that it keeps while it is busy.
    steady: usize,
    state: Mutex<State<T>>,
    passed: Condvar,
}

struct State<T> {
    /// Here while nobody has the turn.
    turn: Option<T>,
    threads: usize,
    /// Threads that wait for the turn.
    waiting: usize,
    /// Of those, how many are to end.
    dismissed: usize,
    /// The fewest that waited when the turn was passed on, since the last [`Look::Window`].
    spare: usize,
    /// How often the turn was passed on.
    passes: u64,
    /// The same when [`Crew::look`] was called last, and at the last [`Look::Window`].
    seen: (u64, u64),
}

impl<T> State<T> {
    /// Threads that wait for the turn and are to go on waiting.
    fn free(&self) -> usize {
        self.waiting - self.dismissed.min(self.waiting)
    }
}

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Whether there are enough threads.
    Glance,
    /// Also whether there are too many: at longer intervals, so that a pause between two requests ends none.
    Window,
}

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Threads are at work, and there are enough.
    Busy,
    /// All threads are at work and have been for a while: this many more would be of use.
    Stuck(usize),
    /// The same, and there are fewer than it keeps while it is busy.
    Short,
    /// Requests are in flight, but none has come since the last [`Look::Window`].
    Quiet,
    /// No request is in flight, and none has come since the last look, with [`Look::Window`] since the last one of
    /// these; then all threads but the one that waits for a request are sent home.
    Idle,
}

/// The turn. Dropped, it is passed on, even by a thread that panics.
pub(super) struct Turn<'a, T> {
    crew: &'a Crew<T>,
    held: Option<T>,
}

impl<T> Crew<T> {
    /// No threads yet; the turn is free.
    pub(super) fn new(turn: T, steady: usize) -> Self {
        let state = State {
            turn: Some(turn),
            threads: 0,
            waiting: 0,
            dismissed: 0,
            spare: usize::MAX,
            passes: 0,
            seen: (0, 0),
        };
        Self { steady, state: Mutex::new(state), passed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a thread that is about to start; false if there are enough.
    pub(super) fn join(&self) -> bool {
        let mut state = self.state();
        let joins = state.threads < MOST;
        state.threads += usize::from(joins);
        joins
    }

    /// A thread that has joined ends, or has not started after all.
    pub(super) fn leave(&self) {
        self.state().threads -= 1;
        // If it was dismissed, or has met the end of it all, the next one has to learn of it as well.
        self.passed.notify_one();
    }

    /// Waits for the turn; `None` for a thread that is not needed any more, and has left by that.
    pub(super) fn wait(&self) -> Option<Turn<'_, T>> {
        let mut state = self.state();
        loop {
            if state.dismissed > 0 {
                state.dismissed -= 1;
                // Here rather than later: nobody may count on it from now on.
                state.threads -= 1;
                return None;
            }
            if let Some(held) = state.turn.take() {
                return Some(Turn { crew: self, held: Some(held) });
            }
            state.waiting += 1;
            state = self.passed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
    }

    /// What is received from, for whoever comes after the last thread; `None` if a thread has it.
    pub(super) fn dismiss(&self) -> Option<T> {
        self.state().turn.take()
    }

    /// Calls `view` on what is received from; `None` if a thread has it.
    pub(super) fn view<R>(&self, view: impl FnOnce(&T) -> R) -> Option<R> {
        self.state().turn.as_ref().map(view)
    }

    /// What was laid down is passed on, if nobody has taken it meanwhile: true if a thread should be added, which has joined
    /// already.
    pub(super) fn pass_on(&self) -> bool {
        let state = self.state();
        state.turn.is_some() && self.call(state)
    }

    /// Wakes one who waits for the turn; true if there is none, and a thread should be added, which has joined already.
    fn call(&self, mut state: MutexGuard<'_, State<T>>) -> bool {
        let free = state.free();
        let wanted = free == 0 && state.threads < self.steady;
        state.threads += usize::from(wanted);
        drop(state);
        if free > 0 {
            self.passed.notify_one();
        }
        wanted
    }

    /// Threads that have joined and not left.
    pub(super) fn threads(&self) -> usize {
        self.state().threads
    }

    /// Of those, how many there are for requests that are stuck.
    pub(super) fn extra(&self) -> usize {
        self.threads().saturating_sub(self.steady)
    }

    /// Looks whether there are as many threads as there have to be.
    pub(super) fn look(&self, closely: Look) -> Seen {
        let mut state = self.state();
        let (glance, window) = state.seen;
        let receives = state.turn.is_none();
        let at_work = state.threads.saturating_sub(state.waiting + usize::from(receives));
        state.seen.0 = state.passes;
        if closely == Look::Window {
            state.seen.1 = state.passes;
            let spare = std::mem::replace(&mut state.spare, usize::MAX).min(state.waiting);
            let quiet = window == state.passes;
            let idle = quiet && at_work == 0;
            let kept = if idle { 1 } else { self.steady };
            state.dismissed = spare.min(state.threads.saturating_sub(kept));
            if state.dismissed > 0 {
                self.passed.notify_all();
            }
            return match (idle, quiet) {
                (true, _) => Seen::Idle,
                (_, true) => Seen::Quiet,
                _ => Seen::Busy,
            };
        }
        // A request that has come and gone since the last look may have left threads that are not needed.
        if at_work == 0 && glance == state.passes {
            return Seen::Idle;
        }
        if receives || glance != state.passes {
            return Seen::Busy;
        }
        if state.waiting > 0 {
            // It was laid down for longer than a moment.
            self.passed.notify_one();
            return Seen::Busy;
        }
        if state.threads < self.steady {
            return Seen::Short;
        }
        Seen::Stuck(state.threads.min(MOST - state.threads))
    }
}

impl<T> Turn<'_, T> {
    /// Passes the turn on; true if a thread should be added, which has joined already.
    pub(super) fn pass(mut self) -> bool {
        self.hand_back(true)
    }

    /// Lays it down for a moment: whoever comes by takes it, which is this thread, as a rule, and nobody is woken for it. If
    /// the moment is a long one, [`Crew::look`] sees to it that somebody takes it.
    pub(super) fn lay_down(mut self) {
        self.hand_back(false);
    }

    /// Keeps it, having served a request with it.
    pub(super) fn keep(&self) {
        self.crew.state().passes += 1;
    }

    fn hand_back(&mut self, at_once: bool) -> bool {
        let Some(held) = self.held.take() else { return false };
        let mut state = self.crew.state();
        state.turn = Some(held);
        state.passes += 1;
        state.spare = state.spare.min(state.free().saturating_sub(usize::from(at_once)));
        at_once && self.crew.call(state)
    }
}

impl<T> Drop for Turn<'_, T> {
    fn drop(&mut self) {
        if self.hand_back(true) {
            // Nobody will start it: the turn was not passed on for a request.
            self.crew.leave();
        }
    }
}

impl<T> Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.held {
            Some(held) => held,
            None => unreachable!("it is taken out only where the turn itself ends"),
        }
    }
}

impl<T> DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.held {
            Some(held) => held,
            None => unreachable!("it is taken out only where the turn itself ends"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use super::*;

    const STEADY: usize = 4;

    fn crew_of(threads: usize) -> Crew<u64> {
        let crew = Crew::new(0, STEADY);
        (0..threads).for_each(|_| assert!(crew.join()));
        crew
    }

    /// A thread of the crew takes the turn and passes it on: it is at work from then on.
    fn goes_to_work(crew: &Crew<u64>) -> bool {
        crew.wait().unwrap().pass()
    }

    fn until(holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_turn_is_one_threads_at_a_time_and_comes_round() {
        let crew = Arc::new(crew_of(8));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let crew = crew.clone();
                std::thread::spawn(move || {
                    for _ in 0..2000 {
                        let mut turn = crew.wait().unwrap();
                        let before = *turn;
                        std::hint::spin_loop();
                        *turn = before + 1;
                        assert!(!turn.pass(), "there are more than enough");
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(crew.dismiss(), Some(16_000));
    }

    #[test]
    fn threads_are_added_at_once_while_nobody_is_there_to_take_the_turn() {
        let crew = crew_of(1);
        for threads in 2..=STEADY {
            assert!(goes_to_work(&crew));
            assert_eq!(crew.threads(), threads);
        }
        assert!(!goes_to_work(&crew), "more only if these are stuck");
    }

    #[test]
    fn nobody_is_added_while_one_waits() {
        let crew = crew_of(2);
        let turn = crew.wait().unwrap();
        std::thread::scope(|threads| {
            let other = threads.spawn(|| drop(crew.wait()));
            until(|| crew.state().waiting == 1);
            assert!(!turn.pass());
            other.join().unwrap();
        });
    }

    #[test]
    fn a_turn_that_is_laid_down_wakes_nobody_until_that_takes_long() {
        let crew = crew_of(2);
        let turn = crew.wait().unwrap();
        std::thread::scope(|threads| {
            let other = threads.spawn(|| drop(crew.wait()));
            until(|| crew.state().waiting == 1);
            turn.lay_down();
            let first = crew.look(Look::Glance);
            std::thread::sleep(Duration::from_millis(20));
            let was_woken = other.is_finished();
            let second = crew.look(Look::Glance);
            until(|| other.is_finished());
            assert_eq!((first, was_woken, second), (Seen::Busy, false, Seen::Busy));
        });
    }

    #[test]
    fn who_has_laid_the_turn_down_takes_it_up_again() {
        let crew = crew_of(1);
        for _ in 0..3 {
            crew.wait().unwrap().lay_down();
            assert_eq!(crew.threads(), 1, "nobody is added");
        }
        // And one who does not come back for long leaves it to others.
        assert_eq!(crew.look(Look::Glance), Seen::Busy);
        assert_eq!(crew.look(Look::Glance), Seen::Short);
    }

    #[test]
    fn what_was_laid_down_can_be_passed_on() {
        let crew = crew_of(1);
        let turn = crew.wait().unwrap();
        assert!(!crew.pass_on(), "it is not there");
        turn.lay_down();
        assert!(crew.pass_on());
        assert_eq!(crew.threads(), 2);
        std::thread::scope(|threads| {
            let turn = crew.wait().unwrap();
            let other = threads.spawn(|| drop(crew.wait()));
            until(|| crew.state().waiting == 1);
            turn.lay_down();
            let adds = crew.pass_on();
            until(|| other.is_finished());
            assert!(!adds, "there is one who waits");
        });
    }

    #[test]
    fn a_turn_that_is_dropped_is_passed_on_and_adds_nobody() {
        let crew = crew_of(1);
        drop(crew.wait().unwrap());
        assert_eq!(crew.threads(), 1);
        assert!(crew.view(|_| ()).is_some());
    }

    #[test]
    fn a_crew_that_is_stuck_is_doubled_up_to_a_limit() {
        let crew = crew_of(STEADY);
        for _ in 0..STEADY {
            goes_to_work(&crew);
        }
        assert_eq!(crew.look(Look::Glance), Seen::Busy, "something has come since the last look");
        let mut sizes = Vec::new();
        while let Seen::Stuck(more) = crew.look(Look::Glance) {
            if more == 0 {
                break;
            }
            (0..more).for_each(|_| assert!(crew.join()));
            // All of them get stuck as well.
            for _ in 0..more {
                goes_to_work(&crew);
            }
            assert_eq!(crew.look(Look::Glance), Seen::Busy);
            sizes.push(crew.threads());
        }
        assert_eq!(sizes, [8, 16, 32, 64, 128, MOST]);
        assert!(!crew.join());
    }

    #[test]
    fn a_crew_with_somebody_left_to_receive_is_not_stuck() {
        let crew = crew_of(3);
        goes_to_work(&crew);
        goes_to_work(&crew);
        let turn = crew.wait().unwrap();
        for _ in 0..3 {
            assert_eq!(crew.look(Look::Glance), Seen::Busy);
        }
        assert_eq!(crew.look(Look::Window), Seen::Busy);
        assert_eq!(crew.look(Look::Window), Seen::Quiet, "in flight, and nothing comes");
        drop(turn);
    }

    #[test]
    fn who_is_not_needed_is_sent_home_and_one_stays() {
        let crew = crew_of(20);
        let left = AtomicUsize::new(0);
        std::thread::scope(|threads| {
            let turn = crew.wait().unwrap();
            for _ in 0..19 {
                threads.spawn(|| match crew.wait() {
                    None => {
                        left.fetch_add(1, Ordering::SeqCst);
                    }
                    Some(_turn) => crew.leave(),
                });
            }
            until(|| crew.state().waiting == 19);
            assert_eq!(crew.look(Look::Glance), Seen::Idle);
            assert_eq!(left.load(Ordering::SeqCst), 0, "only a close look sends anybody home");
            assert_eq!(crew.look(Look::Window), Seen::Idle);
            until(|| left.load(Ordering::SeqCst) == 19);
            assert_eq!(crew.threads(), 1);
            // One has come and gone, and may have brought a thread: whoever stops looking now leaves it here.
            crew.state().passes += 1;
            assert_eq!(crew.look(Look::Glance), Seen::Busy);
            assert_eq!(crew.look(Look::Glance), Seen::Idle);
            drop(turn);
        });
    }

    #[test]
    fn a_busy_crew_keeps_its_steady_threads() {
        let crew = crew_of(STEADY + 3);
        std::thread::scope(|threads| {
            let turn = crew.wait().unwrap();
            let others: Vec<_> = (0..STEADY + 2).map(|_| threads.spawn(|| crew.wait().is_none())).collect();
            until(|| crew.state().waiting == STEADY + 2);
            // A request has come: not idle, but few are needed.
            crew.state().passes += 1;
            assert_eq!(crew.look(Look::Window), Seen::Busy);
            until(|| crew.threads() == STEADY);
            assert_eq!(crew.look(Look::Window), Seen::Idle);
            until(|| crew.threads() == 1);
            assert!(others.into_iter().all(|other| other.join().unwrap()));
            drop(turn);
        });
    }
}

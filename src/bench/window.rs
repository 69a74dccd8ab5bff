//! How long something is measured, and what is taken from it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::BenchError;

/// Most times that are measured after one that is not; the median of an odd number is one of them.
const ROUNDS: usize = 5;

/// Something that is done again and again, and returns how much of it has been done.
pub(super) type Work<'a> = dyn FnMut() -> Result<u64, BenchError> + 'a;

/// A share of the time, and the flag that cuts it short.
#[derive(Clone, Copy)]
pub(super) struct Window<'a> {
    pub(super) length: Duration,
    pub(super) stop: &'a AtomicBool,
}

impl Window<'_> {
    /// How much each of `works` does in a second: the median of several times, after one for warming up. They take
    /// turns, so that all meet the same machine. Once the window's time is over, no further round begins: on a machine
    /// so slow that there was but the first, that one counts.
    pub(super) fn rates(&self, works: &mut [&mut Work<'_>]) -> Result<Vec<f64>, BenchError> {
        let turns = u32::try_from((ROUNDS + 1) * works.len()).unwrap_or(u32::MAX);
        let turn = self.length / turns.max(1);
        let mut rates = vec![Vec::with_capacity(ROUNDS + 1); works.len()];
        let began = Instant::now();
        for round in 0..=ROUNDS {
            if round > 0 && began.elapsed() >= self.length {
                break;
            }
            for (work, rates) in works.iter_mut().zip(&mut rates) {
                rates.push(self.rate(turn, work)?);
            }
        }
        Ok(rates
            .into_iter()
            .map(|rates| median(rates.get(1..).filter(|warm| !warm.is_empty()).unwrap_or(&rates)))
            .collect())
    }

    /// The rate of `work` alone.
    pub(super) fn rate_of(&self, work: &mut Work<'_>) -> Result<f64, BenchError> {
        Ok(self.rates(&mut [work])?.first().copied().unwrap_or_default())
    }

    /// At least once, and until `turn` is over.
    fn rate(&self, turn: Duration, work: &mut Work<'_>) -> Result<f64, BenchError> {
        let (began, mut done) = (Instant::now(), 0);
        loop {
            self.go_on()?;
            done += work()?;
            let elapsed = began.elapsed();
            if elapsed >= turn && !elapsed.is_zero() {
                return Ok(done as f64 / elapsed.as_secs_f64());
            }
        }
    }

    /// An error once it is to end.
    pub(super) fn go_on(&self) -> Result<(), BenchError> {
        if self.stop.load(Ordering::Relaxed) { Err(BenchError::Stopped) } else { Ok(()) }
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_one_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 9.0, 2.0, 8.0]), 3.0);
        assert_eq!(median(&[]), 0.0);
    }

    /// Who had a turn, one after the other, when each thing that was done took a millisecond or more.
    fn turns(length: Duration) -> Vec<char> {
        let (stop, turns) = (AtomicBool::new(false), std::cell::RefCell::new(Vec::new()));
        let work = |name| {
            turns.borrow_mut().push(name);
            std::thread::sleep(Duration::from_millis(1));
            Ok(7)
        };
        let rates =
            Window { length, stop: &stop }.rates(&mut [&mut || work('a'), &mut || work('b')]).unwrap();
        assert!(rates.len() == 2 && rates.iter().all(|rate| *rate > 0.0 && *rate <= 7000.0), "{rates:?}");
        let mut turns = turns.into_inner();
        turns.dedup();
        turns
    }

    #[test]
    fn all_take_as_many_turns() {
        let turns = turns(Duration::from_millis(100));
        assert!(turns.len() <= 2 * (ROUNDS + 1), "{turns:?}");
        assert!(turns.chunks(2).all(|round| round == ['a', 'b']), "{turns:?}");
    }

    #[test]
    fn no_round_begins_when_the_time_is_over() {
        assert_eq!(turns(Duration::ZERO), ['a', 'b'], "once each where there is no time at all");
        // What has been done once takes longer than all of the time.
        assert_eq!(turns(Duration::from_millis(1)), ['a', 'b']);
    }

    #[test]
    fn it_stops_at_once() {
        let stop = AtomicBool::new(false);
        let window = Window { length: Duration::from_secs(3600), stop: &stop };
        let stopped = window.rate_of(&mut || {
            stop.store(true, Ordering::Relaxed);
            Ok(1)
        });
        assert!(matches!(stopped, Err(BenchError::Stopped)));
    }
}

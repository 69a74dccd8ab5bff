//! What clients can bring about as often as they like, and is logged seldom.

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the same thing is logged: a client that tries again and again must not fill the log.
const SELDOM: Duration = Duration::from_secs(60);

/// Something that is said once in [`SELDOM`].
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<(Option<Instant>, u64)>);

impl Seldom {
    /// Not yet said.
    pub(super) const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// How often it was left unsaid since it was last said, if at all; `None` if it is not to be said this time either.
    pub(super) fn say(&self) -> Option<Option<NonZero<u64>>> {
        let (last, unsaid) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < SELDOM) {
            *unsaid += 1;
            return None;
        }
        *last = Some(Instant::now());
        Some(NonZero::new(std::mem::take(unsaid)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_often_is_said_seldom_and_counted() {
        let seldom = Seldom::default();
        assert_eq!(seldom.say(), Some(None));
        assert_eq!((seldom.say(), seldom.say()), (None, None));
        seldom.0.lock().unwrap().0 = None;
        assert_eq!(seldom.say(), Some(NonZero::new(2)));
    }
}

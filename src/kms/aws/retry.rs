//! What is tried again, how soon, and until when.
//!
//! The SDK's own retries are switched off: when its deadline ends in a pause, it no longer knows the error that
//! it was retrying, nor how often it tried; and it cannot tell apart what KMS means by one code. The pauses are
//! the SDK's: exponential, each a random part of its full length, so that a fleet that was throttled together
//! does not come back together.
//!
//! All KMS calls are safe to repeat, CreateGrant because grants are named.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use super::super::error::Attempts;
use super::super::{ErrorClass, KmsError};
use crate::secret;

/// Most attempts where nothing says that the next one will fare better: one and four more.
const ATTEMPTS: u32 = 5;
/// How much longer the pauses are while a key store is away.
const SLOW: u32 = 5;
/// How long a grant may take to reach every host of KMS (developer guide, "Eventual consistency").
pub(super) const PROPAGATION: time::Duration = time::Duration::minutes(5);

/// How long pauses are and how long a call may take.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    /// The longest that the first pause can be.
    pub(super) first: Duration,
    /// The longest that any pause can be.
    pub(super) longest: Duration,
    /// For the call with all its attempts and pauses.
    pub(super) deadline: Duration,
}

/// Whether a failed attempt is followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It is not: nothing changes by itself.
    Never,
    /// A few times.
    Few,
    /// Until the deadline: it ends by itself.
    Until,
    /// Until the deadline, with long pauses.
    Slowly,
}

impl Again {
    /// Judges an answer of the service. `granted` is when the grant was made that alone gives the right to this
    /// call, if the call did not send the grant's token.
    pub(super) fn after(error: &KmsError, granted: Option<OffsetDateTime>) -> Self {
        match error.class {
            ErrorClass::Throttled => Self::Until,
            ErrorClass::Unreachable => Self::Few,
            ErrorClass::Unusable => Self::in_state(error),
            ErrorClass::Denied if error.lacks_permission() && granted.is_some_and(is_spreading) => {
                Self::Until
            }
            _ => Self::Never,
        }
    }

    /// The states Creating, Updating and Unavailable end by themselves; Disabled and the others do not.
    /// LimitExceededException, which the SDK takes for throttling, is KMS's quota of grants per key.
    fn in_state(error: &KmsError) -> Self {
        if error.code.as_deref() != Some("KMSInvalidStateException") {
            return Self::Never;
        }
        let message = error.message.to_lowercase();
        match message {
            _ if message.contains("creating") || message.contains("updating") => Self::Until,
            _ if message.contains("unavailable") => Self::Slowly,
            _ => Self::Never,
        }
    }
}

fn is_spreading(made: OffsetDateTime) -> bool {
    OffsetDateTime::now_utc() - made < PROPAGATION
}

/// The attempts of one call.
pub(super) struct Tries {
    pace: Pace,
    started: Instant,
    made: u32,
    last: Option<KmsError>,
    /// An attempt has got no answer.
    unanswered: bool,
}

impl Tries {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, started: Instant::now(), made: 0, last: None, unanswered: false }
    }

    /// Makes an attempt, cut off at the deadline.
    ///
    /// # Errors
    /// The deadline has come: what the attempt before met, or `late` if there was none.
    pub(super) async fn attempt<T>(
        &mut self,
        attempt: impl Future<Output = T>,
        late: impl FnOnce() -> KmsError,
    ) -> Result<T, KmsError> {
        self.made += 1;
        self.bound(attempt, late).await
    }

    /// Does what is no attempt itself, cut off at the deadline.
    ///
    /// # Errors
    /// As [`Tries::attempt`].
    pub(super) async fn bound<T>(
        &mut self,
        work: impl Future<Output = T>,
        late: impl FnOnce() -> KmsError,
    ) -> Result<T, KmsError> {
        match tokio::time::timeout_at(self.started + self.pace.deadline, work).await {
            Ok(outcome) => Ok(outcome),
            Err(_) => {
                self.unanswered = true;
                let error = self.last.take().unwrap_or_else(late);
                Err(self.sign(error))
            }
        }
    }

    /// Waits for the next attempt.
    ///
    /// # Errors
    /// The error that it was given, where no other attempt is to be made.
    pub(super) async fn pause(&mut self, error: KmsError, again: Again) -> Result<(), KmsError> {
        self.unanswered |= !error.is_definite();
        let left = self.pace.deadline.saturating_sub(self.started.elapsed());
        let first = match again {
            Again::Slowly => SLOW * self.pace.first,
            Again::Few if self.made < ATTEMPTS => self.pace.first,
            Again::Until => self.pace.first,
            Again::Never | Again::Few => return Err(self.sign(error)),
        };
        // What is left may be too little for a pause that helps.
        if left < self.pace.first {
            return Err(self.sign(error));
        }
        let doubled = first.saturating_mul(1 << (self.made - 1).min(16));
        let pause = doubled.min(self.pace.longest).min(left).mul_f64(random_part());
        tracing::info!(
            call = error.call,
            code = error.code,
            ?pause,
            "a KMS call is tried again after a pause"
        );
        self.last = Some(error);
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Says in the error how often and how long it was tried.
    fn sign(&self, error: KmsError) -> KmsError {
        let seconds = self.started.elapsed().as_secs();
        let attempts = Attempts { made: self.made, seconds, unanswered: self.unanswered };
        KmsError { attempts: (self.made > 1).then_some(attempts), ..error }
    }
}

/// From 0 to 1, evenly distributed.
fn random_part() -> f64 {
    let mut bytes = [0; 4];
    // Without random bytes pauses have half their length, all alike.
    match secret::random(&mut bytes) {
        Ok(()) => f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(class: ErrorClass, code: &str, message: &str) -> KmsError {
        KmsError { code: Some(code.into()), ..KmsError::new("Decrypt", class, message) }
    }

    #[test]
    fn only_what_passes_by_itself_is_tried_again() {
        use ErrorClass::{Corrupt, Denied, Throttled, Unreachable, Unusable};
        for (class, code, message, again) in [
            (Throttled, "ThrottlingException", "Rate exceeded", Again::Until),
            (Unreachable, "KMSInternalException", "", Again::Few),
            (Unusable, "KMSInvalidStateException", "k is Creating.", Again::Until),
            (Unusable, "KMSInvalidStateException", "k is updating.", Again::Until),
            (Unusable, "KMSInvalidStateException", "k is unavailable.", Again::Slowly),
            (Unusable, "KMSInvalidStateException", "k is pending import.", Again::Never),
            (Unusable, "DisabledException", "k is updating.", Again::Never),
            (Unusable, "LimitExceededException", "", Again::Never),
            (Unusable, "NotFoundException", "", Again::Never),
            (Denied, "AccessDeniedException", "", Again::Never),
            (Corrupt, "InvalidCiphertextException", "", Again::Never),
        ] {
            assert_eq!(Again::after(&error(class, code, message), None), again, "{code} {message}");
        }
    }

    #[test]
    fn a_denial_may_be_a_young_grant_that_is_spreading() {
        let ago = |minutes| Some(OffsetDateTime::now_utc() - time::Duration::minutes(minutes));
        let denied = error(ErrorClass::Denied, "AccessDeniedException", "");
        assert_eq!(Again::after(&denied, ago(4)), Again::Until);
        assert_eq!(Again::after(&denied, ago(6)), Again::Never);
        let expired = error(ErrorClass::Denied, "ExpiredTokenException", "");
        assert_eq!(Again::after(&expired, ago(1)), Again::Never);
    }

    fn pace() -> Pace {
        Pace {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(20),
            deadline: Duration::from_secs(60),
        }
    }

    #[test]
    fn jitter_is_there() {
        let parts: Vec<f64> = (0..100).map(|_| random_part()).collect();
        assert!(parts.iter().all(|part| (0.0..=1.0).contains(part)));
        assert!(parts.iter().any(|part| *part < 0.3) && parts.iter().any(|part| *part > 0.7));
    }

    #[tokio::test]
    async fn the_last_error_outlives_the_deadline() {
        let mut tries = Tries::new(Pace { deadline: Duration::from_millis(20), ..pace() });
        let busy = error(ErrorClass::Throttled, "ThrottlingException", "Rate exceeded");
        // No pause of use is left.
        let ended = tries.pause(busy.clone(), Again::Until).await.expect_err("the deadline");
        assert_eq!(ended.code, busy.code);
        // The next attempt hangs.
        tries.last = Some(busy.clone());
        tries.made = 1;
        let late = || error(ErrorClass::Unreachable, "", "late");
        let ended = tries.attempt(std::future::pending::<()>(), late).await.expect_err("the deadline");
        assert_eq!((ended.code, ended.attempts.map(|all| all.made)), (busy.code, Some(2)));
        let ended = tries.attempt(std::future::pending::<()>(), late).await.expect_err("the deadline");
        assert_eq!(ended.message, "late");
    }
}

//! Orders to fail, for tests: every error that a KMS can give, over real HTTP.
//!
//! | `POST /_control/...` | body |
//! |---|---|
//! | `faults` | `{operation, code, status, message, times, delay_ms, garbage}`: the next `times` (1) calls of the operation wait, then fail with the code if there is one, or get an answer that is none |
//! | `rate` | `{operation, per_second}`: more calls than that are throttled |
//! | `clock` | `{advance_s}`: moves the clock of key states, grants and rotations |
//! | `grants` | `{delay_ms}`: how long a grant's making and ending take to reach every call |
//! | `reset` | `{}`: forgets all faults and rates |

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::engine::Tuning;

/// The orders in force.
#[derive(Default)]
pub(crate) struct Faults {
    orders: Mutex<Orders>,
}

#[derive(Default)]
struct Orders {
    faults: Vec<Fault>,
    rates: HashMap<String, Bucket>,
}

/// What becomes of a call.
pub(crate) enum Verdict {
    /// It goes through.
    Pass,
    /// It fails.
    Fail {
        /// HTTP status.
        status: u16,
        /// Error code.
        code: String,
        /// Error message.
        message: String,
    },
    /// It gets an answer that makes no sense.
    Garbage,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    operation: String,
    #[serde(default)]
    code: Option<String>,
    #[serde(default = "bad_request")]
    status: u16,
    #[serde(default)]
    message: String,
    #[serde(default = "once")]
    times: u32,
    #[serde(default)]
    delay_ms: u64,
    #[serde(default)]
    garbage: bool,
}

fn bad_request() -> u16 {
    400
}

fn once() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rate {
    operation: String,
    per_second: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Clock {
    advance_s: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Grants {
    delay_ms: u64,
}

/// Calls that are left, topped up as time goes by to at most one second's worth.
struct Bucket {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let gained = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + gained).min(self.per_second);
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

impl Faults {
    /// Takes an order.
    ///
    /// # Errors
    /// A message for whoever wrote the test.
    pub(crate) fn order(
        &self,
        path: &str,
        headers: &HeaderMap,
        body: &[u8],
        tuning: &Tuning,
    ) -> Result<(), String> {
        // A page in a browser cannot send this type to another origin without being asked first.
        if headers.get(CONTENT_TYPE).is_none_or(|value| value != "application/json") {
            return Err("orders have the content type application/json".into());
        }
        match path {
            "/_control/faults" => {
                let fault = parse(body)?;
                self.orders().faults.push(fault);
            }
            "/_control/rate" => {
                let Rate { operation, per_second } = parse(body)?;
                let per_second = f64::from(per_second);
                let bucket = Bucket { per_second, left: per_second, at: Instant::now() };
                self.orders().rates.insert(operation, bucket);
            }
            "/_control/clock" => tuning.advance_clock(parse::<Clock>(body)?.advance_s),
            "/_control/grants" => tuning.delay_grants(parse::<Grants>(body)?.delay_ms),
            "/_control/reset" => *self.orders() = Orders::default(),
            _ => return Err(format!("there is no {path}")),
        }
        Ok(())
    }

    /// Decides about a call of `operation`, and waits if it was ordered to.
    pub(crate) async fn judge(&self, operation: &str) -> Verdict {
        let (delay, verdict) = self.decide(operation);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        verdict
    }

    fn decide(&self, operation: &str) -> (Duration, Verdict) {
        let mut orders = self.orders();
        if orders.rates.get_mut(operation).is_some_and(|bucket| !bucket.take(Instant::now())) {
            let (code, message) = ("ThrottlingException".into(), "Rate exceeded".into());
            return (Duration::ZERO, Verdict::Fail { status: 400, code, message });
        }
        let fault = orders.faults.iter_mut().find(|fault| fault.operation == operation && fault.times > 0);
        let Some(fault) = fault else {
            return (Duration::ZERO, Verdict::Pass);
        };
        fault.times -= 1;
        let verdict = match &fault.code {
            _ if fault.garbage => Verdict::Garbage,
            Some(code) => {
                Verdict::Fail { status: fault.status, code: code.clone(), message: fault.message.clone() }
            }
            None => Verdict::Pass,
        };
        (Duration::from_millis(fault.delay_ms), verdict)
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket { per_second: 2.0, left: 2.0, at: start };
        assert_eq!([(); 3].map(|()| bucket.take(start)), [true, true, false]);
        assert!(bucket.take(start + Duration::from_millis(500)));
        assert!(!bucket.take(start + Duration::from_millis(500)));
    }
}

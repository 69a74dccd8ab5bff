//! What happens while a volume is served: signals, the command's end, orders through the control socket, news of
//! the KMS key.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};

use super::child::Captive;
use super::successor::{self, Successor};
use super::watch::WhenUnusable;
use crate::cli::failure::Failure;
use crate::cli::signals::{RestartSignals, Signal, Signals};
use crate::control::{Bound, Command, Order, Refusal, RefusalKind, RewrapRequest};
use crate::engine::{EngineError, Running};
use crate::envelope::watch::{Change, KeyStatus, Observed, Watch};
use crate::envelope::{KeyRequest, Rewrapped, Target};
use crate::kms::KmsError;

/// Exit code of a volume that was detached because of its key.
const KEY_UNUSABLE: u8 = 4;
/// Orders that wait to be dealt with.
const ORDERS: usize = 16;

/// Name of the control socket's descriptor, for a successor.
pub(super) const CONTROL: &str = "sealblk-control";

/// How serving ended.
pub(super) enum Outcome {
    /// The volume ends.
    End(Ended),
    /// A successor goes on; with the control socket.
    HandOver(Successor, Option<Bound>),
}

/// Why serving ended, and what to exit with.
pub(super) struct Ended {
    pub(super) reason: String,
    pub(super) code: ExitCode,
}

/// What is to be done about the KMS key's state.
pub(super) struct Watching {
    /// How often it is looked at.
    pub(super) interval: Option<Duration>,
    /// What is done once it is unusable.
    pub(super) policy: WhenUnusable,
}

/// A volume with everybody who has a say about it.
pub(super) struct Attendance<'a> {
    running: &'a mut Running,
    child: Option<Captive>,
    watch: Option<Watch>,
    policy: WhenUnusable,
    /// The last change of the key's state that was written down.
    last_change: Option<Change>,
    control: Control,
    /// Rewraps that are under way.
    rewraps: JoinSet<Moved>,
}

/// The control socket's server, if there is one.
struct Control {
    orders: mpsc::Receiver<Order>,
    /// Kept where nobody listens, so that the channel stays open.
    _sender: mpsc::Sender<Order>,
    served: Option<(oneshot::Sender<Infallible>, JoinHandle<Bound>)>,
}

/// What a turn of the loop comes to, unless it goes on.
enum Left {
    End(Ended),
    HandOver(Successor),
}

/// A rewrap's outcome.
struct Moved {
    order: Order,
    result: Result<Rewrapped, EngineError>,
}

impl<'a> Attendance<'a> {
    pub(super) async fn begin(
        running: &'a mut Running,
        child: Option<Captive>,
        watching: &Watching,
        control: Option<Bound>,
    ) -> Self {
        let watch = match watching.interval {
            Some(interval) => watch(running, interval).await,
            None => None,
        };
        let control = Control::begin(control);
        Self {
            running,
            child,
            watch,
            policy: watching.policy,
            last_change: None,
            control,
            rewraps: JoinSet::new(),
        }
    }

    /// Until something ends the volume. A panic on the way ends it as well, in order.
    pub(super) async fn attend(mut self, signals: &mut Signals, restarts: &mut RestartSignals) -> Outcome {
        let left = caught(self.serve(signals, restarts)).await;
        if caught(self.settle()).await.is_none() {
            tracing::error!("rewraps that were under way may be unrecorded");
        }
        let control = self.control.end().await;
        match left {
            Some(Left::End(ended)) => Outcome::End(ended),
            Some(Left::HandOver(successor)) => Outcome::HandOver(successor, control),
            None => Outcome::End(Ended { reason: "internal error".into(), code: ExitCode::FAILURE }),
        }
    }

    async fn serve(&mut self, signals: &mut Signals, restarts: &mut RestartSignals) -> Left {
        let mut news = self.watch.as_ref().map(Watch::subscribe);
        loop {
            let child = async {
                match &mut self.child {
                    Some(child) => child.end().await,
                    None => std::future::pending().await,
                }
            };
            let changed = async {
                let Some(news) = &mut news else { return std::future::pending().await };
                match news.changed().await {
                    Ok(()) => news.borrow_and_update().clone(),
                    Err(_) => std::future::pending().await,
                }
            };
            let left = tokio::select! {
                ended = child => Some(Left::End(ended)),
                signal = signals.next() => self.signalled(signal, signal.name()).map(Left::End),
                successor = restarts.next() => self.leave_to(successor),
                Some(order) = self.control.orders.recv() => self.ordered(order),
                Some(moved) = self.rewraps.join_next() => self.moved(moved.ok()).await,
                status = changed => self.key_changed(&status).map(Left::End),
            };
            if let Some(left) = left {
                return left;
            }
        }
    }

    /// A signal ends the volume, by way of its command if there is one.
    fn signalled(&mut self, signal: Signal, reason: &str) -> Option<Ended> {
        match &mut self.child {
            Some(child) => {
                child.signal(signal);
                None
            }
            None => Some(Ended { reason: reason.into(), code: ExitCode::SUCCESS }),
        }
    }

    /// A volume that was not started for it is not left to anybody, nor one that nobody would take.
    fn leave_to(&self, successor: Successor) -> Option<Left> {
        if successor == Successor::Managed && !successor::is_managed() {
            tracing::warn!(
                "no service manager has started this process, so there is nobody to leave the volume to"
            );
            return None;
        }
        if self.running.is_restartable() {
            return Some(Left::HandOver(successor));
        }
        tracing::warn!("the volume was started without --restartable, so no successor can take it over");
        None
    }

    fn ordered(&mut self, order: Order) -> Option<Left> {
        match order.command.clone() {
            Command::Status => {
                let (status, key) = (self.running.status(), self.key_status());
                tokio::spawn(async move {
                    let mut status = json!(status.await);
                    status["key_state"] = key.map_or(Value::Null, |key| json!(key));
                    order.answer(Ok(status));
                });
                None
            }
            Command::Key => {
                order.answer(self.key_status().map(|status| json!(status)).ok_or_else(not_watched));
                None
            }
            Command::PollKey => {
                match self.watch.as_ref().map(Watch::poll_now) {
                    Some(polled) => drop(tokio::spawn(async move { order.answer(Ok(json!(polled.await))) })),
                    None => order.answer(Err(not_watched())),
                }
                None
            }
            Command::Rewrap(request) => {
                self.rewrap(order, *request);
                None
            }
            Command::Stop(request) => {
                order.answer(Ok(json!({ "stopping": true })));
                let reason = request.reason.unwrap_or_else(|| "control socket".into());
                self.signalled(Signal::Terminate, &reason).map(Left::End)
            }
            Command::Restart => {
                let left = self.leave_to(Successor::Myself);
                order.answer(match left {
                    Some(_) => Ok(json!({ "restarting": true })),
                    None => {
                        let message = "the volume was started without --restartable";
                        Err(Refusal::new(RefusalKind::Conflict, "not-restartable", message, 2))
                    }
                });
                left
            }
        }
    }

    fn key_status(&self) -> Option<KeyStatus> {
        self.watch.as_ref().map(Watch::status)
    }

    fn rewrap(&mut self, order: Order, request: RewrapRequest) {
        let RewrapRequest { to_key, provider, grantee, retiring, keep_others } = request;
        let provider = provider.unwrap_or_else(|| self.running.provider());
        let key = KeyRequest { key: to_key, context: Default::default(), grantee, retiring, preflight: true };
        let target = Target { provider, request: key, keep_others, with_token: false };
        let moving = self.running.rewrap(target);
        self.rewraps.spawn(async move { Moved { order, result: moving.await } });
    }

    /// One has ended; none if it has panicked.
    async fn moved(&mut self, moved: Option<Moved>) -> Option<Left> {
        // Whether or not it says that it succeeded: the old grant is ended after the key has moved.
        if let Some(key) = self.running.record_moves()
            && let Some(watch) = &self.watch
            && let Ok(kms) = self.running.provisioner().await
        {
            watch.retarget(kms, key, None);
        }
        // Also after a failure: journal and envelope are other files than before. While another one is under way nobody
        // can tell which, and its end comes here, too.
        if self.rewraps.is_empty() {
            successor::refresh(self.running, None).await;
        }
        if let Some(moved) = moved {
            moved.answer();
        }
        None
    }

    /// Before the volume is left: rewraps that have ended are answered, the others given up.
    async fn settle(&mut self) {
        self.rewraps.abort_all();
        while let Some(ended) = self.rewraps.join_next().await {
            if let Ok(moved) = ended {
                moved.answer();
            }
        }
        self.running.record_moves();
    }

    fn key_changed(&mut self, status: &KeyStatus) -> Option<Ended> {
        let state = status.known.as_ref().map(|known| &known.state);
        if status.changes.back() != self.last_change.as_ref() {
            self.last_change = status.changes.back().cloned();
            self.running.key_changed(status);
        }
        let usable = match state {
            Some(Observed::Usable) => true,
            Some(Observed::Unusable(_) | Observed::Gone) => false,
            Some(Observed::Denied | Observed::Unknown) | None => return None,
        };
        match (self.policy, usable) {
            (WhenUnusable::Keep, _) | (WhenUnusable::Detach, true) => None,
            (WhenUnusable::Freeze, _) => {
                if self.running.is_frozen() == usable {
                    self.running.freeze(!usable);
                }
                None
            }
            (WhenUnusable::Detach, false) => {
                let state = state.map(ToString::to_string).unwrap_or_default();
                if let Some(child) = &mut self.child {
                    child.signal(Signal::Terminate);
                }
                let reason = format!("its KMS key is {state}");
                Some(Ended { reason, code: KEY_UNUSABLE.into() })
            }
        }
    }
}

impl Moved {
    fn answer(self) {
        self.order.answer(self.result.map(|rewrapped| describe(&rewrapped)).map_err(refusal));
    }
}

impl Control {
    fn begin(bound: Option<Bound>) -> Self {
        let (sender, orders) = mpsc::channel(ORDERS);
        let served = bound.map(|bound| {
            let (stop, stopped) = oneshot::channel::<Infallible>();
            // Ends when the other half is dropped.
            let stopped = async move { drop(stopped.await) };
            (stop, tokio::spawn(bound.serve(Vec::new(), sender.clone(), stopped)))
        });
        Self { orders, _sender: sender, served }
    }

    /// The socket again; its file goes with it.
    async fn end(mut self) -> Option<Bound> {
        self.orders.close();
        // Nobody deals with them any more, and their clients would wait until they are cut off.
        while self.orders.try_recv().is_ok() {}
        let (stop, served) = self.served.take()?;
        drop(stop);
        served.await.ok()
    }
}

/// Watches the volume's key, if the KMS can be opened for that.
async fn watch(running: &Running, interval: Duration) -> Option<Watch> {
    let opened = running.provisioner().await;
    let kms = opened.inspect_err(|error| tracing::warn!(%error, "the KMS key is not watched")).ok()?;
    Some(Watch::spawn(kms, running.key().await, interval, running.health.as_ref()))
}

fn not_watched() -> Refusal {
    let message = "the KMS key is not watched; start the volume with --watch-key TIME";
    Refusal::new(RefusalKind::Conflict, "not-watched", message, 2)
}

/// What a rewrap did, for people and programs.
pub(in crate::cli) fn describe(rewrapped: &Rewrapped) -> Value {
    let left = rewrapped
        .left
        .iter()
        .map(|(grant, error)| json!({ "grant": grant.grant, "error": error.to_string() }));
    json!({
        "kms_key": rewrapped.key,
        "key_material": rewrapped.material,
        "grant": rewrapped.grant_id,
        "verified": rewrapped.verified,
        "grants_left": left.collect::<Vec<_>>(),
    })
}

fn refusal(error: EngineError) -> Refusal {
    let code = match &error {
        EngineError::Kms(KmsError { code: Some(code), .. }) => code.clone(),
        _ => "rewrap-failed".into(),
    };
    let failure = Failure::from(error);
    Refusal::new(RefusalKind::Kms, &code, failure.to_string(), failure.code())
}

/// The future's output, or `None` if it panics.
async fn caught<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Some(output)),
        Err(_) => Poll::Ready(None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_end_like_another() {
        assert_eq!(caught(async { 1 }).await, Some(1));
        assert_eq!(caught(async { panic!("as in a bug") }).await, None::<()>);
    }
}

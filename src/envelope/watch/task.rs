//! The task that polls.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::status::{KeyStatus, News, Observed};
use crate::kms::{KeyRef, KeyService};

/// Least time between polls of a key that may not be described: somebody has to change a policy first.
const DENIED_INTERVAL: Duration = Duration::from_secs(3600);

/// What the watch's owner may ask of it.
pub(super) enum Ask {
    /// Poll now.
    Poll(oneshot::Sender<KeyStatus>),
    /// Watch another key, of which this is known.
    Retarget(Target, Box<KeyStatus>),
}

/// Through whom to ask.
pub(super) struct Target {
    pub(super) kms: Arc<dyn KeyService>,
    /// Its state has been read already.
    pub(super) described: bool,
}

pub(super) struct Watcher {
    target: Target,
    interval: Duration,
    status: watch::Sender<KeyStatus>,
    asked: mpsc::UnboundedReceiver<Ask>,
    /// Who waits for the next poll to end.
    waiting: Vec<oneshot::Sender<KeyStatus>>,
}

impl Watcher {
    pub(super) fn new(
        target: Target,
        interval: Duration,
        status: watch::Sender<KeyStatus>,
        asked: mpsc::UnboundedReceiver<Ask>,
    ) -> Self {
        Self { target, interval, status, asked, waiting: Vec::new() }
    }

    /// Runs until the watch is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let at_once = !self.target.described || !self.waiting.is_empty();
            let pause = if at_once {
                Duration::ZERO
            } else {
                pause(self.interval, &self.status.borrow().current.state)
            };
            let asked = tokio::select! {
                () = tokio::time::sleep(pause) => None,
                asked = self.asked.recv(), if !at_once => match asked {
                    Some(ask) => Some(ask),
                    None => return,
                },
            };
            match asked {
                Some(Ask::Poll(reply)) => self.waiting.push(reply),
                Some(Ask::Retarget(target, status)) => self.retarget(target, *status),
                None => self.poll().await,
            }
        }
    }

    /// One poll. Who asks meanwhile waits for the next, since this one may have been answered already.
    async fn poll(&mut self) {
        self.target.described = true;
        let waiting = std::mem::take(&mut self.waiting);
        let (kms, key) = (self.target.kms.clone(), KeyRef::from(&self.status.borrow().key));
        let health = kms.health(&key);
        tokio::pin!(health);
        loop {
            tokio::select! {
                // Who asked before the answer came shares the next poll.
                biased;
                Some(asked) = self.asked.recv() => match asked {
                    Ask::Poll(reply) => self.waiting.push(reply),
                    Ask::Retarget(target, status) => {
                        self.retarget(target, *status);
                        break;
                    }
                },
                told = &mut health => {
                    let mut news = Vec::new();
                    self.status.send_modify(|status| news = status.observe(&told, super::now()));
                    news.iter().for_each(|news| tell(key.as_str(), news));
                    break;
                }
            }
        }
        for reply in waiting {
            // Who asked may have gone.
            let _ = reply.send(self.status.borrow().clone());
        }
    }

    fn retarget(&mut self, target: Target, status: KeyStatus) {
        self.target = target;
        self.status.send_modify(|old| {
            let changes = std::mem::take(&mut old.changes);
            *old = KeyStatus { changes, ..status };
        });
    }
}

/// The time to the next poll: a fifth less to a fifth more than the interval.
pub(super) fn pause(interval: Duration, state: &Observed) -> Duration {
    let base = if *state == Observed::Denied { interval.max(DENIED_INTERVAL) } else { interval };
    let [.., a, b, c, d] = *Uuid::new_v4().as_bytes();
    let random = f64::from(u32::from_le_bytes([a, b, c, d])) / f64::from(u32::MAX);
    base.mul_f64(0.8 + 0.4 * random)
}

fn tell(key: &str, news: &News) {
    if news.is_bad() {
        tracing::warn!(key, "{news}");
    } else {
        tracing::info!(key, "{news}");
    }
}

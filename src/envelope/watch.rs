//! The state of a volume's KMS key, watched while the volume is served.
//!
//! A running volume needs no KMS, so a key that was disabled shows only when a volume is next opened, which may be
//! too late: a deleted key opens nothing again. A task therefore describes the key once in a while, far from any
//! I/O, and tells what changed, in the log and in a [`KeyStatus`]. It changes nothing itself.
//!
//! A KMS that does not answer says nothing about the key: the last known state stays, and the outage is told once
//! when it begins and once when it ends.

mod status;
mod task;

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::task::{Ask, Target, Watcher};
use crate::kms::{KeyArn, KeyHealth, KeyService};

pub use status::{Change, Failed, KeyStatus, Observation, Observed};

/// Time between two polls unless the user says otherwise.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);

/// A running watch. It ends at once when it is dropped.
pub struct Watch {
    status: watch::Receiver<KeyStatus>,
    asks: mpsc::UnboundedSender<Ask>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Watches `key` through `kms` every `interval`, give or take a fifth, so that a fleet that started together
    /// does not ask together. An hour passes between polls while the principal may not describe the key.
    ///
    /// `first` is what the start was told about the key; the first poll comes an interval later, or at once if
    /// nothing was told. To be called within a tokio runtime.
    pub fn spawn(
        kms: Arc<dyn KeyService>,
        key: KeyArn,
        interval: Duration,
        first: Option<&KeyHealth>,
    ) -> Self {
        let (asks, asked) = mpsc::unbounded_channel();
        let (sender, status) = watch::channel(KeyStatus::begin(key, first, now()));
        let target = Target { kms, described: first.is_some() };
        let task = tokio::spawn(Watcher::new(target, interval, sender, asked).run());
        Self { status, asks, task }
    }

    /// What is known about the key now.
    pub fn status(&self) -> KeyStatus {
        self.status.borrow().clone()
    }

    /// Tells each new status.
    pub fn subscribe(&self) -> watch::Receiver<KeyStatus> {
        self.status.clone()
    }

    /// Polls now, and returns what is known then. Takes as long as one DescribeKey with its retries. The future
    /// does not borrow the watch; it ends with the last known status if the watch ends first.
    pub fn poll_now(&self) -> impl Future<Output = KeyStatus> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let sent = self.asks.send(Ask::Poll(reply)).is_ok();
        let status = self.status.clone();
        async move {
            match answer.await {
                Ok(polled) if sent => polled,
                _ => status.borrow().clone(),
            }
        }
    }

    /// Watches another key from now on: the volume has been rewrapped. What was known about the old one is
    /// forgotten, its changes stay in the history. `first` as in [`Watch::spawn`].
    pub fn retarget(&self, kms: Arc<dyn KeyService>, key: KeyArn, first: Option<&KeyHealth>) {
        let target = Target { kms, described: first.is_some() };
        let status = KeyStatus::begin(key, first, now());
        // The task ends only with the watch.
        let _ = self.asks.send(Ask::Retarget(target, Box::new(status)));
    }

    /// Ends the watch and waits until it has ended; a call that is under way is abandoned.
    pub async fn stop(mut self) {
        self.task.abort();
        // It was cancelled, which is what was wanted.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The time, in whole seconds: nothing here is known more exactly.
fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now)
}

#[cfg(test)]
mod tests;

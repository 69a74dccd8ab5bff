//! What is known about a key, and what each poll changes in it. No I/O, and no clock.

use std::collections::VecDeque;
use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;

use crate::kms::{ErrorClass, KeyArn, KeyHealth, KeyState, KmsError};

/// Most changes that are remembered; the oldest go first.
const HISTORY: usize = 64;

/// What a poll told about the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "key_state", rename_all = "snake_case")]
pub enum Observed {
    /// It wraps and unwraps.
    Usable,
    /// It exists and does neither: its key state, never `Enabled`.
    Unusable(KeyState),
    /// There is no such key (any more).
    Gone,
    /// The principal may not describe it, so nothing is known.
    Denied,
    /// The KMS gave no answer, so nothing new is known.
    Unknown,
}

impl Observed {
    /// True if it says something about the key.
    pub fn is_definite(&self) -> bool {
        match self {
            Self::Usable | Self::Unusable(_) | Self::Gone => true,
            Self::Denied | Self::Unknown => false,
        }
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usable => f.write_str("usable"),
            Self::Unusable(state) => f.write_str(state.name()),
            Self::Gone => f.write_str("gone"),
            Self::Denied => f.write_str("not to be described"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// One poll's outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Observation {
    /// The outcome.
    #[serde(flatten)]
    pub state: Observed,
    /// When it was told, in UTC.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// When the key will be deleted, if that is scheduled.
    #[serde(with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub deletion: Option<OffsetDateTime>,
}

impl Observation {
    fn of(health: &KeyHealth, at: OffsetDateTime) -> Self {
        let state = match &health.state {
            KeyState::Enabled => Observed::Usable,
            other => Observed::Unusable(other.clone()),
        };
        Self { state, at, deletion: health.deletion }
    }

    fn of_error(error: &KmsError, at: OffsetDateTime) -> Self {
        let code = error.code.as_deref().unwrap_or_default();
        let state = match error.class {
            ErrorClass::Unusable if code == "NotFoundException" => Observed::Gone,
            // Credentials that have expired are of this class too, and may be fresh at the next poll.
            ErrorClass::Denied if code.starts_with("AccessDenied") || code == "NotAuthorized" => {
                Observed::Denied
            }
            _ => Observed::Unknown,
        };
        Self { state, at, deletion: None }
    }

    fn says_the_same(&self, other: &Self) -> bool {
        self.state == other.state && self.deletion == other.deletion
    }
}

/// A change from one definite state to another, or of the day of deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// The key.
    pub key: KeyArn,
    /// What it was.
    pub from: Observation,
    /// What it is.
    pub to: Observation,
}

/// A poll that told nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failed {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What was tried and what came back.
    pub message: String,
}

/// All that is known about a volume's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    /// The key.
    pub key: KeyArn,
    /// The last poll's outcome, or what the volume's start was told.
    pub current: Observation,
    /// Since when polls have had that outcome.
    #[serde(with = "time::serde::rfc3339")]
    pub since: OffsetDateTime,
    /// The last outcome that says something about the key: the same as `current`, but in an outage or where the
    /// key may not be described.
    pub known: Option<Observation>,
    /// Since when that is known.
    #[serde(with = "time::serde::rfc3339::option")]
    pub known_since: Option<OffsetDateTime>,
    /// When the KMS last said something about the key.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_success: Option<OffsetDateTime>,
    /// The last poll that told nothing.
    pub last_error: Option<Failed>,
    /// The key's newest material, where the service tells.
    pub material: Option<String>,
    /// The changes since the volume's start, oldest first, at most 64.
    pub changes: VecDeque<Change>,
}

/// What a poll brought that is worth a line in the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The key's state, or the day of its deletion, is another.
    Changed(Change),
    /// The key has new material.
    Rotated,
    /// From now on nothing is heard.
    Silent(Observed, String),
    /// The KMS tells about the key again, since when it did not.
    Heard(OffsetDateTime),
}

impl KeyStatus {
    /// What the start of a volume was told about its key.
    pub(super) fn begin(key: KeyArn, first: Option<&KeyHealth>, at: OffsetDateTime) -> Self {
        let known = first.map(|health| Observation::of(health, at));
        let nothing = Observation { state: Observed::Unknown, at, deletion: None };
        Self {
            key,
            current: known.clone().unwrap_or(nothing),
            since: at,
            known_since: known.as_ref().map(|_| at),
            last_success: known.as_ref().map(|_| at),
            known,
            last_error: None,
            material: first.and_then(|health| health.material.clone()),
            changes: VecDeque::new(),
        }
    }

    /// Takes in what a poll at `at` brought.
    pub(super) fn observe(&mut self, told: &Result<KeyHealth, KmsError>, at: OffsetDateTime) -> Vec<News> {
        let (observation, failure) = match told {
            Ok(health) => (Observation::of(health, at), None),
            Err(error) => (Observation::of_error(error, at), Some(error.to_string())),
        };
        let mut news = self.hear(&observation, failure);
        if observation.state.is_definite() {
            news.extend(self.learn(&observation));
        }
        if let Ok(health) = told {
            if health.material != self.material && self.material.is_some() && health.material.is_some() {
                news.push(News::Rotated);
            }
            self.material = health.material.clone().or(self.material.take());
        }
        if observation.state != self.current.state {
            self.since = at;
        }
        self.current = observation;
        news
    }

    /// Whether the KMS tells anything.
    fn hear(&mut self, observation: &Observation, failure: Option<String>) -> Vec<News> {
        let definite = observation.state.is_definite();
        let failure = failure.filter(|_| !definite);
        let mut news = Vec::new();
        if let Some(message) = &failure {
            // A volume that was started without a word about its key has `Unknown` and no error yet.
            if self.current.state != observation.state || self.last_error.is_none() {
                news.push(News::Silent(observation.state.clone(), message.clone()));
            }
            self.last_error = Some(Failed { at: observation.at, message: message.clone() });
        } else if !self.current.state.is_definite() && self.last_error.is_some() {
            news.push(News::Heard(self.since));
        }
        news
    }

    /// What a definite observation changes.
    fn learn(&mut self, observation: &Observation) -> Option<News> {
        self.last_success = Some(observation.at);
        let before = self.known.replace(observation.clone());
        if before.as_ref().is_some_and(|before| before.says_the_same(observation)) {
            return None;
        }
        self.known_since = Some(observation.at);
        // The first word about a key is news if it is bad.
        let usable = Observation { state: Observed::Usable, at: self.since, deletion: None };
        let from = before.unwrap_or(usable);
        if from.says_the_same(observation) {
            return None;
        }
        let change = Change { key: self.key.clone(), from, to: observation.clone() };
        if self.changes.len() == HISTORY {
            self.changes.pop_front();
        }
        self.changes.push_back(change.clone());
        Some(News::Changed(change))
    }
}

impl News {
    /// True if somebody should know; the rest is for the record.
    pub(super) fn is_bad(&self) -> bool {
        match self {
            Self::Changed(change) => change.to.state != Observed::Usable,
            Self::Silent(..) => true,
            Self::Rotated | Self::Heard(_) => false,
        }
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed(change) => describe(change, f),
            Self::Rotated => f.write_str(
                "the KMS key has new material; what the old one wrapped stays readable, and rewrapping to the \
                 same key moves a volume to the new one",
            ),
            Self::Silent(Observed::Denied, message) => write!(
                f,
                "the KMS key's state cannot be watched, which is tried again hourly; the volume that is served \
                 goes on: {message}"
            ),
            Self::Silent(_, message) => write!(
                f,
                "the KMS key's state is not known for now; the volume that is served goes on: {message}"
            ),
            Self::Heard(since) => {
                write!(f, "the KMS tells the key's state again; it had not since {}", minute(*since))
            }
        }
    }
}

fn describe(change: &Change, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const LOSS: &str =
        "new volumes under it and reopening this one will fail; the volume that is served goes on";
    match &change.to.state {
        Observed::Usable => write!(f, "the KMS key is usable again; it was {}", change.from.state),
        Observed::Gone => write!(
            f,
            "the KMS key is gone, and nothing can open this volume again once it ends: copy its data elsewhere \
             while the volume is served"
        ),
        state => {
            write!(f, "the KMS key is {state}: {LOSS}")?;
            match change.to.deletion {
                Some(date) => write!(
                    f,
                    "; it will be deleted on {}; then nothing can open the volume again: before that, cancel \
                     the deletion, enable the key, and rewrap the volume to another",
                    date.date()
                ),
                None => f.write_str("; make it usable before the volume has to be opened again"),
            }
        }
    }
}

/// `2026-01-31 23:59 UTC`.
fn minute(time: OffsetDateTime) -> String {
    format!("{} {:02}:{:02} UTC", time.date(), time.hour(), time.minute())
}

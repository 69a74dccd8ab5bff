//! The teardown record: what became of a volume, for whoever must prove its erasure.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::ExportName;
use crate::envelope::VolumeId;
use crate::kms::{EncryptionContext, KeyArn, Released};
use crate::store::Disposal;

/// One JSON object per volume. Fields are only ever added.
#[derive(Debug, Serialize)]
pub struct Record {
    /// The volume.
    pub volume: VolumeId,
    /// The KMS key that wrapped its data key.
    pub kms_key: KeyArn,
    /// `local` or `aws`.
    pub provider: &'static str,
    /// The whole context, as the KMS's event log shows it.
    pub encryption_context: EncryptionContext,
    /// The cipher, by dm-crypt's name.
    pub cipher: &'static str,
    /// Bytes in a sector.
    pub sector_size: usize,
    /// Bytes in the volume.
    pub size: u64,
    /// Bytes that clients wrote.
    pub bytes_written: u64,
    /// Names that it was served under.
    pub exports: Vec<ExportName>,
    /// Connections that were served.
    pub connections: u64,
    /// Connections that did not finish in the time for draining and were cut.
    pub connections_cut: usize,
    /// What ended it.
    pub reason: String,
    /// True once nothing refers to the volume any more, so that its cipher's keys and buffers are wiped.
    pub keys_wiped: bool,
    /// The grant.
    pub grant: GrantEnd,
    /// The backing.
    pub backing: BackingEnd,
    /// When each step happened, in order.
    pub steps: Vec<Step>,
}

impl Record {
    /// True if nothing is left over.
    pub fn is_complete(&self) -> bool {
        let ended = matches!((&self.grant.ended, &self.backing.ended), (Ended::Ended(_), Ended::Ended(_)));
        ended && self.keys_wiped
    }
}

impl Record {
    /// For the audit log, in its spelling.
    pub(super) fn summary(&self) -> Map<String, Value> {
        let fields = [
            ("keyId", json!(self.kms_key)),
            ("reason", json!(self.reason)),
            ("keysWiped", json!(self.keys_wiped)),
            ("bytesWritten", json!(self.bytes_written)),
            ("grant", json!(self.grant)),
            ("backing", json!(self.backing)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// How the grant ended.
#[derive(Debug, Serialize)]
pub struct GrantEnd {
    /// Its id.
    pub id: Option<String>,
    /// How.
    #[serde(flatten)]
    pub ended: Ended<GrantEnding>,
}

/// What has become of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GrantEnding {
    /// RetireGrant succeeded.
    Retired,
    /// RetireGrant was refused, RevokeGrant succeeded.
    Revoked,
    /// There was no such grant any more.
    AlreadyGone,
    /// It is the envelope's, and whoever provisioned ends it (`sealblk retire`).
    Kept,
}

impl From<Released> for GrantEnding {
    fn from(released: Released) -> Self {
        match released {
            Released::Retired => Self::Retired,
            Released::Revoked => Self::Revoked,
            Released::AlreadyGone => Self::AlreadyGone,
        }
    }
}

/// How the backing ended.
#[derive(Debug, Serialize)]
pub struct BackingEnd {
    /// What it was.
    pub place: String,
    /// How.
    #[serde(flatten)]
    pub ended: Ended<Disposal>,
}

/// An ending, or why there was none.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended<T> {
    /// It ended so.
    Ended(T),
    /// It did not end; the journal keeps what is needed to try again.
    Failed(String),
}

/// Something that happened to a volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// What.
    pub step: Cow<'static, str>,
    /// When (UTC, RFC 3339).
    pub at: String,
}

impl Step {
    /// Now.
    pub fn now(step: &'static str) -> Self {
        tracing::info!(step, "volume");
        // A year beyond 9999 cannot be written; no clock shows it.
        let at = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        Self { step: step.into(), at }
    }
}

//! The audit log: what was asked of a key management service, and what became of volumes.
//!
//! One JSON object a line in `audit.jsonl` in the state directory. KMS calls have CloudTrail's names and fields, and
//! the service's id for the request, so that the two logs join. What happens to a volume has the same form under
//! the event source `sealblk`. Lines are appended and synced, one write each under a lock that all processes
//! share; nothing rewrites them. Files are rotated by size.
//!
//! | module | what |
//! |---|---|
//! | `file` | appending, rotation |
//! | `read` | all lines of all files, oldest first |
//! | `filter` | which lines are wanted |

mod file;
mod filter;
mod read;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use self::file::LogFile;
pub use self::filter::{Filter, parse_time};
pub use self::read::{Line, Reader};
use crate::kms::{CallRecord, Place, Witness, whole_seconds};

/// Name of the file that is written to.
pub const FILE: &str = "audit.jsonl";
/// Files that are kept beside it, `.1` the youngest.
pub const ROTATED: u32 = 8;
/// Bytes after which a file is rotated.
const LIMIT: u64 = 16 << 20;

/// The audit log cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the audit log {path}: {source}; {advice}", path = path.display())]
pub struct AuditError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What came back.
    pub source: io::Error,
    /// What to do.
    pub advice: &'static str,
}

/// The audit log of a state directory. Clones write to the same file.
#[derive(Clone)]
pub struct AuditLog {
    file: Arc<LogFile>,
    directory: PathBuf,
}

impl AuditLog {
    /// Opens the log of a state directory; makes both if they are missing, with modes 0700 and 0600.
    ///
    /// # Errors
    /// [`AuditError`] if it cannot be made or opened, or if what lies in its place is no file of the caller's own
    /// that others cannot read.
    pub fn open(state: &Path) -> Result<Self, AuditError> {
        Self::with_limit(state, LIMIT)
    }

    fn with_limit(state: &Path, limit: u64) -> Result<Self, AuditError> {
        let directory = std::path::absolute(state).unwrap_or_else(|_| state.into());
        let file = LogFile::open(&directory, limit).map_err(|source| AuditError {
            action: "open",
            path: directory.join(FILE),
            source,
            advice: "check the directory's permissions and free space",
        })?;
        Ok(Self { file: Arc::new(file), directory })
    }

    /// Keeps what is called for a volume.
    pub fn for_volume(&self, volume: &str) -> Arc<dyn Witness> {
        Arc::new(Scribe { log: self.clone(), volume: Some(volume.into()) })
    }

    /// Keeps what is called for no volume.
    pub fn for_nobody(&self) -> Arc<dyn Witness> {
        Arc::new(Scribe { log: self.clone(), volume: None })
    }

    /// The witness of the process that named `place`.
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub fn at(place: Place) -> Result<Arc<dyn Witness>, AuditError> {
        let log = Self::open(&place.directory)?;
        Ok(Arc::new(Scribe { log, volume: place.volume }))
    }

    /// Writes down what happened to a volume. A line that cannot be written is an error in the log of the process,
    /// and nothing else: the volume goes on.
    pub fn volume(&self, event: &str, volume: &str, details: Map<String, Value>) {
        let now = OffsetDateTime::now_utc();
        self.write(&VolumeRecord {
            event_version: CallRecord::VERSION,
            event_time: whole_seconds(now),
            event_source: "sealblk",
            event_name: event,
            user_agent: CallRecord::AGENT,
            request_parameters: Value::Null,
            response_elements: Value::Null,
            additional_event_data: details,
            event_id: uuid::Uuid::new_v4().to_string(),
            event_type: "SealblkVolumeEvent",
            sealblk: Origin::new(Some(volume), "host", now),
        });
    }

    fn write(&self, record: &impl Serialize) {
        let written =
            serde_json::to_vec(record).map_err(io::Error::from).and_then(|line| self.file.append(line));
        if let Err(error) = written {
            let path = self.directory.join(FILE);
            tracing::error!(path = %path.display(), %error, "a record is missing in the audit log");
        }
    }
}

/// What sealblk adds to CloudTrail's fields.
#[derive(Serialize)]
struct Origin<'a> {
    volume: Option<&'a str>,
    role: &'a str,
    pid: u32,
    /// When the line was made: as `eventTime`, with the fraction of the second.
    time: String,
}

impl<'a> Origin<'a> {
    fn new(volume: Option<&'a str>, role: &'a str, at: OffsetDateTime) -> Self {
        Self { volume, role, pid: std::process::id(), time: at.format(&Rfc3339).unwrap_or_default() }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VolumeRecord<'a> {
    event_version: &'static str,
    event_time: String,
    event_source: &'static str,
    event_name: &'a str,
    user_agent: &'static str,
    request_parameters: Value,
    response_elements: Value,
    additional_event_data: Map<String, Value>,
    #[serde(rename = "eventID")]
    event_id: String,
    event_type: &'static str,
    sealblk: Origin<'a>,
}

/// Writes calls down.
struct Scribe {
    log: AuditLog,
    volume: Option<String>,
}

impl Witness for Scribe {
    fn saw(&self, call: &CallRecord) {
        #[derive(Serialize)]
        struct Noted<'a> {
            #[serde(flatten)]
            call: &'a CallRecord,
            sealblk: Origin<'a>,
        }
        self.log.write(&Noted { call, sealblk: Origin::new(self.volume.as_deref(), call.role, call.at) });
    }

    fn place(&self) -> Place {
        Place { directory: self.log.directory.clone(), volume: self.volume.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volumes_events_and_calls_are_found_by_its_id() {
        let lab = tempfile::tempdir().expect("a directory");
        let log = AuditLog::open(lab.path()).expect("opened");
        let details = serde_json::json!({ "size": 4096 });
        log.volume("VolumeStarted", "vol-1", details.as_object().cloned().unwrap_or_default());
        let mut call = CallRecord::begun("kms.amazonaws.com", "Decrypt", "eu-west-1");
        call.role = "host";
        call.on("arn:aws:kms:eu-west-1:111122223333:key/1");
        // As the process that unwraps does it.
        let elsewhere = AuditLog::at(log.for_volume("vol-1").place()).expect("opened");
        elsewhere.saw(&call);
        log.for_nobody().saw(&call);
        let mut reader = Reader::open(lab.path()).expect("opened");
        let mut next =
            || reader.next_line().expect("readable").and_then(|line| line.record).expect("a record");
        let (event, bound, unbound) = (next(), next(), next());
        assert_eq!(event["eventType"], "SealblkVolumeEvent");
        assert_eq!(event["eventSource"], "sealblk");
        assert_eq!(event["additionalEventData"], details);
        assert_eq!([&event["sealblk"]["volume"], &bound["sealblk"]["volume"]], ["vol-1", "vol-1"]);
        assert!(unbound["sealblk"]["volume"].is_null());
        assert_eq!(bound["sealblk"]["role"], "host");
        assert_eq!(bound["resources"][0]["accountId"], "111122223333");
        assert!(bound["requestID"].is_null(), "it got no answer");
    }
}

//! Who is told of each call to a key management service.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

/// Is told of every attempt of every call, once its outcome is known and before the caller is.
///
/// It must not fail and not take long: a record that cannot be kept stops no volume.
pub trait Witness: Send + Sync {
    /// One attempt, of a call that succeeded, failed, or got no answer.
    fn saw(&self, call: &CallRecord);

    /// Where another process reports what it does on this witness's behalf.
    fn place(&self) -> Place;
}

/// What another process needs to report to the same place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The state directory.
    pub directory: PathBuf,
    /// The volume that the calls are made for.
    pub volume: Option<String>,
}

/// One attempt of a call, in the form of CloudTrail's records (AWS CloudTrail user guide, "CloudTrail record
/// contents"). Never holds a blob, a plaintext or a token.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallRecord {
    /// CloudTrail's version of the form.
    pub event_version: &'static str,
    /// Who called, where that is known: AWS does not tell the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_identity: Option<Value>,
    /// When the call was made: UTC, whole seconds, `Z`.
    pub event_time: String,
    /// `kms.amazonaws.com` or `sts.amazonaws.com`.
    pub event_source: &'static str,
    /// The operation.
    pub event_name: &'static str,
    /// The region of the service.
    pub aws_region: String,
    /// Where the call came from, where that is known.
    #[serde(rename = "sourceIPAddress", skip_serializing_if = "Option::is_none")]
    pub source_ip_address: Option<String>,
    /// The program that called.
    pub user_agent: String,
    /// The service's error code, if it gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// The service's words, or why no answer came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// The request without its secrets and blobs.
    pub request_parameters: Value,
    /// What the call made; null for one that only reads.
    pub response_elements: Value,
    /// The key material or the grant that the call was about.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub additional_event_data: Map<String, Value>,
    /// The service's id for the request: null if no answer came.
    #[serde(rename = "requestID")]
    pub request_id: Option<String>,
    /// The record's own id.
    #[serde(rename = "eventID")]
    pub event_id: String,
    /// True for a call that changes nothing, as CloudTrail sees it.
    pub read_only: bool,
    /// The keys that the call was on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<Resource>,
    /// `AwsApiCall`.
    pub event_type: &'static str,
    /// True: keys are managed, not read.
    pub management_event: bool,
    /// The account of the key, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipient_account_id: Option<String>,
    /// `Management`.
    pub event_category: &'static str,
    /// As whom the program called: `provisioner`, `host` or `admin`.
    #[serde(skip)]
    pub role: &'static str,
    /// When the outcome was known.
    #[serde(skip)]
    pub at: OffsetDateTime,
}

/// A key that a call was on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resource {
    /// The key's account, where it is known.
    #[serde(rename = "accountId", skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// `AWS::KMS::Key`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The key's ARN.
    #[serde(rename = "ARN")]
    pub arn: String,
}

impl Resource {
    /// The key of this ARN, in the account that the ARN names.
    pub fn key(arn: &str) -> Self {
        Self { account: account_of(arn).map(String::from), kind: "AWS::KMS::Key", arn: arn.into() }
    }
}

/// The account in an ARN (`arn:PARTITION:SERVICE:REGION:ACCOUNT:...`).
fn account_of(arn: &str) -> Option<&str> {
    arn.starts_with("arn:").then(|| arn.split(':').nth(4)).flatten().filter(|account| !account.is_empty())
}

impl CallRecord {
    /// `eventVersion` of the form that is written.
    pub const VERSION: &'static str = "1.11";

    /// `userAgent` of this program's own calls.
    pub const AGENT: &'static str = concat!("sealblk/", env!("CARGO_PKG_VERSION"));

    /// A record of a call that begins now, without an outcome.
    pub fn begun(event_source: &'static str, event_name: &'static str, region: &str) -> Self {
        let now = OffsetDateTime::now_utc();
        Self {
            event_version: Self::VERSION,
            user_identity: None,
            event_time: whole_seconds(now),
            event_source,
            event_name,
            aws_region: region.into(),
            source_ip_address: None,
            user_agent: Self::AGENT.into(),
            error_code: None,
            error_message: None,
            request_parameters: Value::Null,
            response_elements: Value::Null,
            additional_event_data: Map::new(),
            request_id: None,
            event_id: uuid::Uuid::new_v4().to_string(),
            read_only: false,
            resources: Vec::new(),
            event_type: "AwsApiCall",
            management_event: true,
            recipient_account_id: None,
            event_category: "Management",
            role: "",
            at: now,
        }
    }

    /// Names a key that the call was on, and its account as the record's own.
    pub fn on(&mut self, arn: &str) {
        let resource = Resource::key(arn);
        self.recipient_account_id = self.recipient_account_id.take().or_else(|| resource.account.clone());
        if !self.resources.contains(&resource) {
            self.resources.push(resource);
        }
    }
}

/// CloudTrail's times: UTC, whole seconds, `Z`.
pub fn whole_seconds(at: OffsetDateTime) -> String {
    use time::format_description::well_known::Rfc3339;
    let at = at.to_offset(time::UtcOffset::UTC);
    // Neither fails between the years 0 and 9999.
    at.replace_nanosecond(0).ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

/// Forgets what it sees: for tests of other things.
#[cfg(test)]
pub(crate) struct Nobody;

#[cfg(test)]
impl Witness for Nobody {
    fn saw(&self, _: &CallRecord) {}

    fn place(&self) -> Place {
        Place { directory: "/nonexistent".into(), volume: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_brings_its_account() {
        let mut record = CallRecord::begun("kms.amazonaws.com", "Decrypt", "eu-west-1");
        record.on("arn:aws:kms:eu-west-1:111122223333:key/1");
        record.on("arn:aws:kms:eu-west-1:111122223333:key/1");
        record.on("arn:aws:kms:eu-west-1:444455556666:key/2");
        assert_eq!(record.recipient_account_id.as_deref(), Some("111122223333"));
        let accounts: Vec<_> =
            record.resources.iter().map(|resource| resource.account.as_deref().unwrap_or_default()).collect();
        assert_eq!(accounts, ["111122223333", "444455556666"]);
        assert_eq!(Resource::key("alias/x").account, None);
    }

    #[test]
    fn times_have_whole_seconds() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_500_000_000).expect("in range");
        assert_eq!(whole_seconds(at), "1970-01-01T00:00:01Z");
    }
}

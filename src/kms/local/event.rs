//! The event log: one CloudTrail record a call, whether it succeeded or not.
//!
//! A record holds what CloudTrail's does: never a blob, a plaintext or a token.

use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use super::engine::{Caller, Identity};
use super::failure::Failure;
use super::principal::PrincipalRecord;

/// What a call leaves for its record beside its parameters.
#[derive(Default)]
pub(crate) struct Effects {
    /// ARNs of the keys that the call was on.
    pub(crate) keys: Vec<String>,
    /// `responseElements`; none for a call that only reads.
    pub(crate) response: Option<Value>,
    /// `additionalEventData`.
    pub(crate) additional: Map<String, Value>,
}

/// Everything that a record is made of.
pub(crate) struct Happened<'a> {
    pub(crate) operation: &'static str,
    pub(crate) read_only: bool,
    pub(crate) parameters: Value,
    pub(crate) identity: &'a Identity,
    pub(crate) principal: &'a PrincipalRecord,
    pub(crate) caller: &'a Caller,
    pub(crate) at: OffsetDateTime,
    pub(crate) request_id: &'a str,
    pub(crate) effects: Effects,
    pub(crate) failure: Option<&'a Failure>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Record<'a> {
    event_version: &'static str,
    user_identity: Value,
    event_time: String,
    event_source: &'static str,
    event_name: &'static str,
    aws_region: &'a str,
    #[serde(rename = "sourceIPAddress")]
    source_ip_address: &'a str,
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<&'a str>,
    request_parameters: Value,
    response_elements: Option<Value>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    additional_event_data: Map<String, Value>,
    #[serde(rename = "requestID")]
    request_id: &'a str,
    #[serde(rename = "eventID")]
    event_id: String,
    read_only: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resources: Vec<Value>,
    event_type: &'static str,
    management_event: bool,
    recipient_account_id: &'a str,
    event_category: &'static str,
}

impl Happened<'_> {
    /// The record as one line of JSON.
    ///
    /// # Errors
    /// KMSInternalException if the time cannot be written (outside of the years 0 to 9999).
    pub(crate) fn line(self) -> Result<String, Failure> {
        let account = &self.identity.account;
        let resource = |arn| json!({"accountId": account, "type": "AWS::KMS::Key", "ARN": arn});
        let record = Record {
            event_version: "1.11",
            user_identity: user_identity(self.principal, account)?,
            event_time: timestamp(self.at)?,
            event_source: "kms.amazonaws.com",
            event_name: self.operation,
            aws_region: &self.identity.region,
            source_ip_address: &self.caller.source,
            user_agent: &self.caller.agent,
            error_code: self.failure.map(Failure::code),
            error_message: self.failure.map(Failure::message),
            request_parameters: self.parameters,
            response_elements: self.effects.response,
            additional_event_data: self.effects.additional,
            request_id: self.request_id,
            event_id: Uuid::new_v4().to_string(),
            read_only: self.read_only,
            resources: self.effects.keys.iter().map(resource).collect(),
            event_type: "AwsApiCall",
            management_event: true,
            recipient_account_id: account,
            event_category: "Management",
        };
        serde_json::to_string(&record).map_err(Failure::internal)
    }
}

fn user_identity(principal: &PrincipalRecord, account: &str) -> Result<Value, Failure> {
    Ok(json!({
        "type": "IAMUser",
        "principalId": principal.principal_id,
        "arn": principal.arn,
        "accountId": account,
        "accessKeyId": principal.access_key_id,
        "userName": principal.name.as_str(),
        "sessionContext": {
            "sessionIssuer": {},
            "webIdFederationData": {},
            "attributes": { "mfaAuthenticated": "false", "creationDate": timestamp(principal.created)? },
        },
    }))
}

/// CloudTrail's times: UTC, whole seconds, `Z`.
fn timestamp(at: OffsetDateTime) -> Result<String, Failure> {
    at.replace_nanosecond(0).map_err(Failure::internal)?.format(&Rfc3339).map_err(Failure::internal)
}

/// CloudTrail's spelling of a request or an answer: the names of its own fields begin in lower case, and nothing
/// below the constraints of a grant is a field.
pub(crate) fn spelled_for_events(fields: impl Serialize) -> Result<Value, Failure> {
    let Value::Object(fields) = serde_json::to_value(fields).map_err(Failure::internal)? else {
        return Ok(Value::Null);
    };
    let lowered = fields.into_iter().map(|(name, value)| match value {
        Value::Object(inner) if matches!(name.as_str(), "Constraints" | "KeyMetadata") => {
            let inner = inner.into_iter().map(|(name, value)| (lower_first(&name), value)).collect();
            (lower_first(&name), Value::Object(inner))
        }
        value => (lower_first(&name), value),
    });
    Ok(Value::Object(lowered.collect()))
}

fn lower_first(name: &str) -> String {
    let mut characters = name.chars();
    characters.next().into_iter().flat_map(char::to_lowercase).chain(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_lowered_and_context_keys_are_not() {
        let request = json!({"KeyId": "k", "Constraints": {"EncryptionContextSubset": {"Team": "X"}},
            "EncryptionContext": {"Team": "X"}});
        let spelled = json!({"keyId": "k", "constraints": {"encryptionContextSubset": {"Team": "X"}},
            "encryptionContext": {"Team": "X"}});
        assert_eq!(spelled_for_events(request).expect("json"), spelled);
    }

    #[test]
    fn times_have_whole_seconds() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_500_000_000).expect("in range");
        assert_eq!(timestamp(at).expect("in range"), "1970-01-01T00:00:01Z");
    }
}

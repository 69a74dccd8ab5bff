//! The event log: one CloudTrail record a call, whether it succeeded or not.
//!
//! A record holds what CloudTrail's does: never a blob, a plaintext or a token.

use serde::Serialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::engine::{Caller, Identity};
use super::failure::Failure;
use super::principal::PrincipalRecord;
use crate::kms::{CallRecord, Resource, whole_seconds};

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
    pub(crate) source: &'static str,
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

impl Happened<'_> {
    /// The record.
    pub(crate) fn record(self) -> CallRecord {
        let account = &self.identity.account;
        let resource = |arn: &String| Resource { account: Some(account.clone()), ..Resource::key(arn) };
        CallRecord {
            user_identity: Some(user_identity(self.principal, account)),
            event_time: whole_seconds(self.at),
            source_ip_address: Some(self.caller.source.clone()),
            user_agent: self.caller.agent.clone(),
            error_code: self.failure.map(|failure| failure.code().into()),
            error_message: self.failure.map(|failure| failure.message().into()),
            request_parameters: self.parameters,
            response_elements: self.effects.response.unwrap_or_default(),
            additional_event_data: self.effects.additional,
            request_id: Some(self.request_id.into()),
            read_only: self.read_only,
            resources: self.effects.keys.iter().map(resource).collect(),
            recipient_account_id: Some(account.clone()),
            role: self.principal.name.as_str(),
            ..CallRecord::begun(self.source, self.operation, &self.identity.region)
        }
    }
}

fn user_identity(principal: &PrincipalRecord, account: &str) -> Value {
    json!({
        "type": "IAMUser",
        "principalId": principal.principal_id,
        "arn": principal.arn,
        "accountId": account,
        "accessKeyId": principal.access_key_id,
        "userName": principal.name.as_str(),
        "sessionContext": {
            "sessionIssuer": {},
            "webIdFederationData": {},
            "attributes": { "mfaAuthenticated": "false", "creationDate": whole_seconds(principal.created) },
        },
    })
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
}

//! Key policies: putting, reading, listing.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::authorise::Access;
use super::super::call::Call;
use super::super::engine::Operation;
use super::super::failure::Failure;
use super::super::policy::{ConditionKeys, Document, Kind};
use super::super::record::KeyRecord;
use super::keys::Nothing;
use super::length_within;
use super::listing::{check_marker, page};

/// The one name that a key's policy can have.
const NAME: &str = "default";
/// Longest policy in characters that the API takes (AWS KMS API reference, PutKeyPolicy).
const MAX_CHARACTERS: usize = 131_072;
/// Longest policy in bytes that a key may have (AWS KMS developer guide, "Resource quotas").
const MAX_BYTES: usize = 32_768;

/// Gives a key a policy.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct PutKeyPolicy {
    pub(crate) key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) policy_name: Option<String>,
    pub(crate) policy: String,
    pub(crate) bypass_policy_lockout_safety_check: bool,
}

/// Checks a policy for a key, and that the caller can still change it afterwards unless that is not asked for.
///
/// # Errors
/// MalformedPolicyDocumentException, ValidationException, LimitExceededException.
pub(super) fn check_policy(
    call: &Call<'_>,
    record: &KeyRecord,
    text: &str,
    bypass: bool,
) -> Result<(), Failure> {
    length_within("policy", text.chars().count(), 1..=MAX_CHARACTERS)?;
    if text.len() > MAX_BYTES {
        let message = format!("The policy has {} bytes; a key policy has {MAX_BYTES} at most.", text.len());
        return Err(Failure::new("LimitExceededException", message));
    }
    if !text.chars().all(|c| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{ff}')) {
        let pattern = "satisfy regular expression pattern: [\\u0009\\u000A\\u000D\\u0020-\\u00FF]+";
        return Err(Failure::constraint("policy", "[not shown]", pattern));
    }
    let document = Document::read(text, Kind::Key).map_err(Failure::malformed_policy)?;
    if bypass {
        return Ok(());
    }
    let access = Access { facts: bypass_fact(false), ..Access::default() };
    call.decide_under(&document, PutKeyPolicy::NAME, record, &access, false).map_err(
        |failure| match failure {
            Failure::Api { .. } => Failure::new(
                "MalformedPolicyDocumentException",
                "The new key policy will not allow you to update the key policy in the future.",
            ),
            other => other,
        },
    )
}

/// What policies may ask about a call that puts one.
pub(super) fn bypass_fact(bypass: bool) -> ConditionKeys {
    let mut facts = ConditionKeys::default();
    facts.add("kms:BypassPolicyLockoutSafetyCheck", bypass.to_string());
    facts
}

fn check_name(name: Option<&str>) -> Result<(), Failure> {
    match name {
        None | Some(NAME) => Ok(()),
        Some(_) => Err(Failure::not_found("No such policy exists")),
    }
}

impl Operation for PutKeyPolicy {
    const NAME: &'static str = "PutKeyPolicy";
    const READ_ONLY: bool = false;
    type Answer = Nothing;

    fn run(&self, call: &mut Call<'_>) -> Result<Nothing, Failure> {
        let mut record = call.key(&self.key_id)?;
        let bypass = self.bypass_policy_lockout_safety_check;
        let access = Access { facts: bypass_fact(bypass), ..Access::default() };
        call.decide(Self::NAME, &record, &access, false)?;
        check_name(self.policy_name.as_deref())?;
        check_policy(call, &record, &self.policy, bypass)?;
        record.policy = Some(self.policy.clone());
        call.save(&record)?;
        call.effects.response = Some(json!({"keyId": record.arn}));
        Ok(Nothing {})
    }
}

/// Tells a key's policy.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct GetKeyPolicy {
    pub(crate) key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) policy_name: Option<String>,
}

/// A policy, as it was put.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PolicyAnswer {
    pub(crate) policy: String,
    pub(crate) policy_name: &'static str,
}

impl Operation for GetKeyPolicy {
    const NAME: &'static str = "GetKeyPolicy";
    const READ_ONLY: bool = true;
    type Answer = PolicyAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<PolicyAnswer, Failure> {
        let record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        check_name(self.policy_name.as_deref())?;
        Ok(PolicyAnswer { policy: call.key_policy_text(&record), policy_name: NAME })
    }
}

/// Lists the names of a key's policies: there is one.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ListKeyPolicies {
    pub(crate) key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) marker: Option<String>,
}

/// Names of policies.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct PolicyNamesAnswer {
    pub(crate) policy_names: Vec<&'static str>,
    pub(crate) truncated: bool,
}

impl Operation for ListKeyPolicies {
    const NAME: &'static str = "ListKeyPolicies";
    const READ_ONLY: bool = true;
    type Answer = PolicyNamesAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<PolicyNamesAnswer, Failure> {
        let record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        let names = page([NAME], |name| String::from(*name), self.limit, check_marker(&self.marker)?)?;
        Ok(PolicyNamesAnswer { policy_names: names.entries, truncated: false })
    }
}

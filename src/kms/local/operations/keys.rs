//! Keys: making, describing, enabling, deleting.

use serde::{Deserialize, Serialize};
use serde_json::json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::super::authorise::Access;
use super::super::call::Call;
use super::super::engine::Operation;
use super::super::event::spelled_for_events;
use super::super::failure::Failure;
use super::super::record::{KeyRecord, MaterialId};
use super::super::wire::Token;
use super::policies::{bypass_fact, check_policy};
use super::{length_within, one_of, within};
use crate::kms::KeyState;

const SPECS: [&str; 10] = [
    "SYMMETRIC_DEFAULT",
    "RSA_2048",
    "RSA_3072",
    "RSA_4096",
    "ECC_NIST_P256",
    "ECC_NIST_P384",
    "ECC_NIST_P521",
    "ECC_SECG_P256K1",
    "HMAC_256",
    "HMAC_512",
];
/// Longest description in characters (AWS KMS API reference, CreateKey).
const MAX_DESCRIPTION: usize = 8192;
/// Waiting times of a deletion in days (AWS KMS API reference, ScheduleKeyDeletion).
const DELETION_DAYS: std::ops::RangeInclusive<u16> = 7..=30;
const DEFAULT_DELETION_DAYS: u16 = 30;

/// Makes a key. Only symmetric ones get material; others exist to be refused.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CreateKey {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_usage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_spec: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) customer_master_key_spec: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) multi_region: Option<bool>,
    /// The key policy; without one, the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<String>,
    pub(crate) bypass_policy_lockout_safety_check: bool,
}

/// A key's description, in the answers of CreateKey and DescribeKey.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct KeyAnswer {
    pub(crate) key_metadata: KeyMetadata,
}

/// What the API tells about a key.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct KeyMetadata {
    #[serde(rename = "AWSAccountId")]
    pub(crate) account: String,
    pub(crate) key_id: Uuid,
    pub(crate) arn: String,
    #[serde(with = "time::serde::timestamp")]
    pub(crate) creation_date: OffsetDateTime,
    pub(crate) enabled: bool,
    pub(crate) description: String,
    pub(crate) key_usage: String,
    pub(crate) key_state: KeyState,
    #[serde(with = "time::serde::timestamp::option", skip_serializing_if = "Option::is_none")]
    pub(crate) deletion_date: Option<OffsetDateTime>,
    pub(crate) origin: String,
    pub(crate) key_manager: &'static str,
    pub(crate) customer_master_key_spec: String,
    pub(crate) key_spec: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) encryption_algorithms: Vec<&'static str>,
    pub(crate) multi_region: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current_key_material_id: Option<MaterialId>,
}

impl KeyMetadata {
    fn of(record: &KeyRecord, account: &str) -> Self {
        let encryption_algorithms = match record.spec.as_str() {
            "SYMMETRIC_DEFAULT" => vec!["SYMMETRIC_DEFAULT"],
            spec if spec.starts_with("RSA") && record.usage == "ENCRYPT_DECRYPT" => {
                vec!["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"]
            }
            _ => Vec::new(),
        };
        Self {
            account: account.into(),
            key_id: record.id,
            arn: record.arn.clone(),
            creation_date: record.created,
            enabled: record.state == KeyState::Enabled,
            description: record.description.clone(),
            key_usage: record.usage.clone(),
            key_state: record.state.clone(),
            deletion_date: record.deletion,
            origin: record.origin.clone(),
            key_manager: "CUSTOMER",
            customer_master_key_spec: record.spec.clone(),
            key_spec: record.spec.clone(),
            encryption_algorithms,
            multi_region: false,
            current_key_material_id: record.current().map(|material| material.id),
        }
    }
}

impl CreateKey {
    fn check(&self) -> Result<(&str, &str, &str), Failure> {
        length_within("description", self.description.chars().count(), 0..=MAX_DESCRIPTION)?;
        let spec = self.key_spec.as_deref().or(self.customer_master_key_spec.as_deref());
        let spec = spec.unwrap_or("SYMMETRIC_DEFAULT");
        one_of("keySpec", spec, &SPECS)?;
        let origin = self.origin.as_deref().unwrap_or("AWS_KMS");
        one_of("origin", origin, &["AWS_KMS", "EXTERNAL"])?;
        let usages: &[&str] = match spec.split('_').next() {
            Some("RSA") => &["ENCRYPT_DECRYPT", "SIGN_VERIFY"],
            Some("ECC") => &["SIGN_VERIFY", "KEY_AGREEMENT"],
            Some("HMAC") => &["GENERATE_VERIFY_MAC"],
            _ => &["ENCRYPT_DECRYPT"],
        };
        let usage = self.key_usage.as_deref().unwrap_or("ENCRYPT_DECRYPT");
        if !usages.contains(&usage) {
            return Err(Failure::validation(format!(
                "KeyUsage {usage} is not compatible with KeySpec {spec}"
            )));
        }
        if self.multi_region == Some(true) {
            return Err(unsupported("multi-Region keys"));
        }
        Ok((spec, usage, origin))
    }
}

impl CreateKey {
    fn authorise(&self, call: &Call<'_>, spec: &str, usage: &str, origin: &str) -> Result<(), Failure> {
        let mut facts = bypass_fact(self.bypass_policy_lockout_safety_check);
        for (name, value) in [("kms:KeySpec", spec), ("kms:KeyUsage", usage), ("kms:KeyOrigin", origin)] {
            facts.add(name, value);
        }
        call.authorise_with(Self::NAME, "*", &facts)
    }
}

fn unsupported(what: &str) -> Failure {
    Failure::new("UnsupportedOperationException", format!("The embedded KMS has no {what}."))
}

impl Operation for CreateKey {
    const NAME: &'static str = "CreateKey";
    const READ_ONLY: bool = false;
    type Answer = KeyAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<KeyAnswer, Failure> {
        let (spec, usage, origin) = self.check()?;
        self.authorise(call, spec, usage, origin)?;
        let id = Uuid::new_v4();
        let state = if origin == "EXTERNAL" { KeyState::PendingImport } else { KeyState::Enabled };
        let mut record = KeyRecord {
            id,
            arn: call.arn(&format!("key/{id}")),
            description: self.description.clone(),
            spec: spec.into(),
            usage: usage.into(),
            origin: origin.into(),
            state,
            created: call.now,
            deletion: None,
            materials: Vec::new(),
            rotation: None,
            grants: Vec::new(),
            policy: self.policy.clone(),
        };
        if let Some(policy) = &self.policy {
            check_policy(call, &record, policy, self.bypass_policy_lockout_safety_check)?;
        }
        if spec == "SYMMETRIC_DEFAULT" && origin == "AWS_KMS" {
            call.add_material(&mut record, None)?;
        }
        call.save(&record)?;
        call.touch(&record);
        let answer = KeyAnswer { key_metadata: KeyMetadata::of(&record, &call.identity.account) };
        call.effects.response = Some(spelled_for_events(&answer)?);
        Ok(answer)
    }
}

/// Tells about a key.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct DescribeKey {
    pub(crate) key_id: String,
    #[serde(skip_serializing)]
    pub(crate) grant_tokens: Vec<Token>,
}

impl Operation for DescribeKey {
    const NAME: &'static str = "DescribeKey";
    const READ_ONLY: bool = true;
    type Answer = KeyAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<KeyAnswer, Failure> {
        let record = call.key_or_alias(&self.key_id)?;
        call.authorise(Self::NAME, &record, &Access { tokens: &self.grant_tokens, ..Access::default() })?;
        Ok(KeyAnswer { key_metadata: KeyMetadata::of(&record, &call.identity.account) })
    }
}

/// An answer without content.
#[derive(Serialize)]
pub(crate) struct Nothing {}

/// Lets a key be used.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct EnableKey {
    pub(crate) key_id: String,
}

/// Stops a key from being used, until it is enabled again.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct DisableKey {
    pub(crate) key_id: String,
}

fn switch(call: &mut Call<'_>, operation: &str, key: &str, to: KeyState) -> Result<Nothing, Failure> {
    let mut record = call.key(key)?;
    call.authorise_by_policy(operation, &record)?;
    record.require_state(&[KeyState::Enabled, KeyState::Disabled])?;
    record.state = to;
    call.save(&record)?;
    call.effects.response = Some(json!({"keyId": record.arn}));
    Ok(Nothing {})
}

impl Operation for EnableKey {
    const NAME: &'static str = "EnableKey";
    const READ_ONLY: bool = false;
    type Answer = Nothing;

    fn run(&self, call: &mut Call<'_>) -> Result<Nothing, Failure> {
        switch(call, Self::NAME, &self.key_id, KeyState::Enabled)
    }
}

impl Operation for DisableKey {
    const NAME: &'static str = "DisableKey";
    const READ_ONLY: bool = false;
    type Answer = Nothing;

    fn run(&self, call: &mut Call<'_>) -> Result<Nothing, Failure> {
        switch(call, Self::NAME, &self.key_id, KeyState::Disabled)
    }
}

/// Deletes a key after a wait, during which it cannot be used.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ScheduleKeyDeletion {
    pub(crate) key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pending_window_in_days: Option<u16>,
}

/// When the key goes.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DeletionAnswer {
    pub(crate) key_id: String,
    #[serde(with = "time::serde::timestamp")]
    pub(crate) deletion_date: OffsetDateTime,
    pub(crate) key_state: KeyState,
    pub(crate) pending_window_in_days: u16,
}

impl Operation for ScheduleKeyDeletion {
    const NAME: &'static str = "ScheduleKeyDeletion";
    const READ_ONLY: bool = false;
    type Answer = DeletionAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<DeletionAnswer, Failure> {
        let days = self.pending_window_in_days.unwrap_or(DEFAULT_DELETION_DAYS);
        within("pendingWindowInDays", days, DELETION_DAYS)?;
        let mut record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        record.require_state(&[KeyState::Enabled, KeyState::Disabled, KeyState::PendingImport])?;
        let deletion_date = call.now + Duration::days(days.into());
        record.state = KeyState::PendingDeletion;
        record.deletion = Some(deletion_date);
        call.save(&record)?;
        let answer = DeletionAnswer {
            key_id: record.arn,
            deletion_date,
            key_state: record.state,
            pending_window_in_days: days,
        };
        call.effects.response = Some(spelled_for_events(&answer)?);
        Ok(answer)
    }
}

/// Takes a scheduled deletion back; the key is disabled then.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CancelKeyDeletion {
    pub(crate) key_id: String,
}

/// Which key it was.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct KeyIdAnswer {
    pub(crate) key_id: String,
}

impl Operation for CancelKeyDeletion {
    const NAME: &'static str = "CancelKeyDeletion";
    const READ_ONLY: bool = false;
    type Answer = KeyIdAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<KeyIdAnswer, Failure> {
        let mut record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        if record.state != KeyState::PendingDeletion {
            let message = format!("{} is not pending deletion.", record.arn);
            return Err(Failure::new("KMSInvalidStateException", message));
        }
        let importing = record.origin == "EXTERNAL" && record.materials.is_empty();
        record.state = if importing { KeyState::PendingImport } else { KeyState::Disabled };
        record.deletion = None;
        call.save(&record)?;
        call.effects.response = Some(json!({"keyId": record.arn}));
        Ok(KeyIdAnswer { key_id: record.arn })
    }
}

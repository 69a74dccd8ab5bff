//! Grants: retiring and revoking.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::authorise::Access;
use super::super::call::Call;
use super::super::engine::Operation;
use super::super::failure::Failure;
use super::super::record::{Grant, KeyRecord, MaterialId};
use super::super::token::{self, Named};
use super::super::wire::Token;
use super::grants::grant_id;
use super::keys::Nothing;
use super::length_within;

/// Ends a grant, as one who may retire it.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RetireGrant {
    #[serde(skip_serializing)]
    pub(crate) grant_token: Option<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grant_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dry_run: Option<bool>,
}

/// Ends a grant, as one who rules the key.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RevokeGrant {
    pub(crate) key_id: String,
    pub(crate) grant_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dry_run: Option<bool>,
}

/// The live grant of this id.
fn live(record: &KeyRecord, id: MaterialId) -> Option<&Grant> {
    record.grants.iter().find(|grant| grant.id == id && grant.ended.is_none())
}

fn no_such_grant(record: &KeyRecord, id: MaterialId) -> Failure {
    Failure::not_found(format!("Grant {id} on {} is not found.", record.arn))
}

/// Ends a grant: at once, or once the propagation delay is over.
fn end(
    call: &mut Call<'_>,
    mut record: KeyRecord,
    id: MaterialId,
    at_once: bool,
) -> Result<Nothing, Failure> {
    if at_once {
        record.grants.retain(|grant| grant.id != id);
    } else {
        let ending = record.grants.iter_mut().filter(|grant| grant.id == id);
        ending.for_each(|grant| grant.ended = Some(call.now));
    }
    call.save(&record)?;
    call.effects.response = Some(json!({"keyId": record.arn}));
    Ok(Nothing {})
}

impl RetireGrant {
    /// The grant, by its token or by its key and id.
    fn find(&self, call: &mut Call<'_>) -> Result<(KeyRecord, Grant), Failure> {
        match (&self.grant_token, &self.key_id, &self.grant_id) {
            (Some(token), None, None) => {
                length_within("grantToken", token.0.len(), 1..=8192)?;
                let named = Named::verify(token, &call.token_secret()?)?;
                find_by_token(call, named.key, named.grant)
            }
            (None, Some(key), Some(id)) => {
                let id = grant_id(id)?;
                let record = call.key(key)?;
                let grant = live(&record, id).cloned().ok_or_else(|| no_such_grant(&record, id))?;
                Ok((record, grant))
            }
            _ => Err(Failure::validation("Please specify either a grant token, or a key ID and a grant ID.")),
        }
    }

    fn authorise(call: &Call<'_>, record: &KeyRecord, grant: &Grant) -> Result<(), Failure> {
        let caller = &call.principal.arn;
        let as_grantee = grant.grantee == *caller && grant.operations.iter().any(|name| name == Self::NAME);
        let granted = grant.retiring.as_ref() == Some(caller) || as_grantee;
        call.decide(Self::NAME, record, &Access::default(), granted)
    }
}

fn find_by_token(call: &mut Call<'_>, key: Uuid, id: MaterialId) -> Result<(KeyRecord, Grant), Failure> {
    let record = call.load(key)?.ok_or_else(token::invalid)?;
    call.touch(&record);
    let grant = live(&record, id).cloned().ok_or_else(token::invalid)?;
    Ok((record, grant))
}

impl Operation for RetireGrant {
    const NAME: &'static str = "RetireGrant";
    const READ_ONLY: bool = false;
    type Answer = Nothing;

    fn run(&self, call: &mut Call<'_>) -> Result<Nothing, Failure> {
        let (record, grant) = self.find(call)?;
        call.effects.additional.insert("grantId".into(), json!(grant.id));
        Self::authorise(call, &record, &grant)?;
        call.dry_run(self.dry_run)?;
        end(call, record, grant.id, self.grant_token.is_some())
    }

    /// CloudTrail shows none, whichever way the grant was named.
    fn parameters(&self) -> Result<Value, Failure> {
        Ok(Value::Null)
    }
}

impl Operation for RevokeGrant {
    const NAME: &'static str = "RevokeGrant";
    const READ_ONLY: bool = false;
    type Answer = Nothing;

    fn run(&self, call: &mut Call<'_>) -> Result<Nothing, Failure> {
        let id = grant_id(&self.grant_id)?;
        let record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        live(&record, id).ok_or_else(|| no_such_grant(&record, id))?;
        call.dry_run(self.dry_run)?;
        end(call, record, id, false)
    }
}

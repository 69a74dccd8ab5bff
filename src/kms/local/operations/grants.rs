//! Grants: making and listing.

use serde::{Deserialize, Serialize};
use serde_json::json;
use time::OffsetDateTime;

use super::super::authorise::Access;
use super::super::call::Call;
use super::super::engine::Operation;
use super::super::failure::Failure;
use super::super::policy::ConditionKeys;
use super::super::record::{Constraints, Grant, KeyRecord, MaterialId};
use super::super::token::Named;
use super::super::wire::Token;
use super::listing::{check_marker, page};
use super::{length_within, one_of};
use crate::kms::KeyState;

/// What a grant on a symmetric key may allow.
const OPERATIONS: [&str; 9] = [
    "Decrypt",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
    "CreateGrant",
    "RetireGrant",
    "DescribeKey",
];
/// Most grants on one key (AWS KMS developer guide, "Resource quotas").
const MAX_GRANTS: usize = 50_000;

/// Gives a principal some rights.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CreateGrant {
    pub(crate) key_id: String,
    pub(crate) grantee_principal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retiring_principal: Option<String>,
    pub(crate) operations: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) constraints: Option<Constraints>,
    #[serde(skip_serializing)]
    pub(crate) grant_tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dry_run: Option<bool>,
}

/// The grant that was made.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct GrantAnswer {
    pub(crate) grant_id: MaterialId,
    pub(crate) grant_token: Token,
}

impl CreateGrant {
    fn check(&self) -> Result<(), Failure> {
        check_principal("granteePrincipal", &self.grantee_principal)?;
        self.retiring_principal.as_deref().map_or(Ok(()), |arn| check_principal("retiringPrincipal", arn))?;
        length_within("operations", self.operations.len(), 1..=OPERATIONS.len())?;
        self.operations.iter().try_for_each(|operation| one_of("operations", operation, &OPERATIONS))?;
        if let Some(name) = &self.name {
            let fits = name.chars().all(|c| c.is_ascii_alphanumeric() || ":/_-".contains(c));
            length_within("name", name.len(), 1..=256)?;
            if !fits {
                let pattern = "satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$";
                return Err(Failure::constraint("name", name, pattern));
            }
        }
        let constraints = self.constraints.iter().flat_map(|constraints| {
            [&constraints.encryption_context_subset, &constraints.encryption_context_equals]
        });
        constraints.flatten().try_for_each(|pairs| pairs.check_constraint())
    }

    /// Checks the caller's right: by policy, or by a grant of its own that allows no less than the new one.
    fn authorise(&self, call: &Call<'_>, record: &KeyRecord) -> Result<(), Failure> {
        let granted = call.grants_of_tokens(record, &self.grant_tokens)?;
        let covers = |grant: &Grant| {
            self.operations.iter().all(|operation| grant.operations.contains(operation))
                && (grant.constraints.is_none() || grant.constraints == self.constraints)
        };
        let granted = call.granting(Self::NAME, record, &Access::default(), &granted).any(covers);
        call.decide(Self::NAME, record, &Access { facts: self.facts(), ..Access::default() }, granted)
    }

    /// What policies may ask about the grant: its constraint stands for the encryption context.
    fn facts(&self) -> ConditionKeys {
        let mut facts = ConditionKeys::default();
        facts.add("kms:GranteePrincipal", &self.grantee_principal);
        for operation in &self.operations {
            facts.add("kms:GrantOperations", operation);
        }
        if let Some(retiring) = &self.retiring_principal {
            facts.add("kms:RetiringPrincipal", retiring);
        }
        if let Some(constraints) = &self.constraints {
            for (kind, pairs) in [
                ("EncryptionContextSubset", &constraints.encryption_context_subset),
                ("EncryptionContextEquals", &constraints.encryption_context_equals),
            ] {
                let Some(pairs) = pairs else { continue };
                facts.add("kms:GrantConstraintType", kind);
                facts.add_context(pairs);
            }
        }
        facts
    }

    /// True if `grant` is what an earlier, identical call made.
    fn made(&self, grant: &Grant) -> bool {
        grant.ended.is_none()
            && self.name.is_some()
            && grant.name == self.name
            && grant.grantee == self.grantee_principal
            && grant.retiring == self.retiring_principal
            && grant.operations == self.operations
            && grant.constraints == self.constraints
    }

    fn grant(&self, call: &Call<'_>) -> Result<Grant, Failure> {
        Ok(Grant {
            id: MaterialId::random()?,
            name: self.name.clone(),
            grantee: self.grantee_principal.clone(),
            retiring: self.retiring_principal.clone(),
            operations: self.operations.clone(),
            constraints: self.constraints.clone(),
            issuer: call.principal.arn.clone(),
            created: call.now,
            ended: None,
        })
    }
}

/// Checks a principal's form: an account, an IAM or STS ARN, or an AWS service.
fn check_principal(field: &str, principal: &str) -> Result<(), Failure> {
    length_within(field, principal.len(), 1..=256)?;
    let characters = principal.chars().all(|c| c.is_ascii_alphanumeric() || "_+=,.@:/-".contains(c));
    let account = principal.len() == 12 && principal.bytes().all(|byte| byte.is_ascii_digit());
    let arn = ["arn:aws:iam::", "arn:aws:sts::"].iter().any(|prefix| principal.starts_with(prefix));
    if characters && (account || arn || principal.ends_with(".amazonaws.com")) {
        return Ok(());
    }
    Err(Failure::new("InvalidArnException", format!("ARN does not refer to a valid principal: {principal}")))
}

impl Operation for CreateGrant {
    const NAME: &'static str = "CreateGrant";
    const READ_ONLY: bool = false;
    type Answer = GrantAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<GrantAnswer, Failure> {
        self.check()?;
        let mut record = call.key(&self.key_id)?;
        self.authorise(call, &record)?;
        record.require_symmetric(Self::NAME)?;
        record.require_state(&[KeyState::Enabled, KeyState::Unavailable])?;
        let known = record.grants.iter().find(|grant| self.made(grant)).map(|grant| grant.id);
        if known.is_none() && record.grants.iter().filter(|grant| grant.ended.is_none()).count() >= MAX_GRANTS
        {
            let message = format!("{} has {MAX_GRANTS} grants, the most a key can have.", record.arn);
            return Err(Failure::new("LimitExceededException", message));
        }
        call.dry_run(self.dry_run)?;
        let grant_id = match known {
            Some(id) => id,
            None => {
                let grant = self.grant(call)?;
                let id = grant.id;
                record.grants.push(grant);
                call.save(&record)?;
                id
            }
        };
        let grant_token = Named { key: record.id, grant: grant_id }.issue(&call.token_secret()?)?;
        call.effects.response = Some(json!({"grantId": grant_id, "keyId": record.arn}));
        Ok(GrantAnswer { grant_id, grant_token })
    }
}

/// Lists a key's grants.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ListGrants {
    pub(crate) key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grant_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) grantee_principal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) marker: Option<String>,
}

/// Lists the grants that a principal may retire, over all keys.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ListRetirableGrants {
    pub(crate) retiring_principal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) marker: Option<String>,
}

/// Some grants.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct GrantsAnswer {
    pub(crate) grants: Vec<GrantEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_marker: Option<String>,
    pub(crate) truncated: bool,
}

/// One grant.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct GrantEntry {
    pub(crate) key_id: String,
    pub(crate) grant_id: MaterialId,
    /// Empty for a grant without a name.
    pub(crate) name: String,
    #[serde(with = "time::serde::timestamp")]
    pub(crate) creation_date: OffsetDateTime,
    pub(crate) grantee_principal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) retiring_principal: Option<String>,
    pub(crate) issuing_account: String,
    pub(crate) operations: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) constraints: Option<Constraints>,
}

/// Lists in the order of the grants' ids. A grant that has ended is not listed, even while it lingers.
fn list<'r>(
    call: &Call<'_>,
    grants: impl Iterator<Item = (&'r KeyRecord, &'r Grant)>,
    limit: Option<u16>,
    marker: &Option<String>,
) -> Result<GrantsAnswer, Failure> {
    let mut live: Vec<_> = grants.filter(|(_, grant)| grant.ended.is_none()).collect();
    live.sort_by_key(|(_, grant)| grant.id.to_string());
    let page = page(live, |(_, grant)| grant.id.to_string(), limit, check_marker(marker)?)?;
    let entries = page.entries.into_iter().map(|(record, grant)| GrantEntry {
        key_id: record.arn.clone(),
        grant_id: grant.id,
        name: grant.name.clone().unwrap_or_default(),
        creation_date: grant.created,
        grantee_principal: grant.grantee.clone(),
        retiring_principal: grant.retiring.clone(),
        issuing_account: format!("arn:aws:iam::{}:root", call.identity.account),
        operations: grant.operations.clone(),
        constraints: grant.constraints.clone(),
    });
    let truncated = page.next_marker.is_some();
    Ok(GrantsAnswer { grants: entries.collect(), next_marker: page.next_marker, truncated })
}

impl Operation for ListGrants {
    const NAME: &'static str = "ListGrants";
    const READ_ONLY: bool = true;
    type Answer = GrantsAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<GrantsAnswer, Failure> {
        let wanted = self.grant_id.as_deref().map(grant_id).transpose()?;
        let record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        let grants = record.grants.iter().filter(|grant| {
            wanted.is_none_or(|id| grant.id == id)
                && self.grantee_principal.as_ref().is_none_or(|grantee| grant.grantee == *grantee)
        });
        list(call, grants.map(|grant| (&record, grant)), self.limit, &self.marker)
    }
}

impl Operation for ListRetirableGrants {
    const NAME: &'static str = "ListRetirableGrants";
    const READ_ONLY: bool = true;
    type Answer = GrantsAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<GrantsAnswer, Failure> {
        check_principal("retiringPrincipal", &self.retiring_principal)?;
        call.authorise_without_key(Self::NAME, "*")?;
        let records = call.all_keys()?;
        let grants = records.iter().flat_map(|record| record.grants.iter().map(move |grant| (record, grant)));
        let wanted = grants.filter(|(_, grant)| grant.retiring.as_ref() == Some(&self.retiring_principal));
        list(call, wanted, self.limit, &self.marker)
    }
}

/// Reads a grant's id.
///
/// # Errors
/// InvalidGrantIdException for what is not 64 hexadecimal digits.
pub(super) fn grant_id(text: &str) -> Result<MaterialId, Failure> {
    text.parse()
        .map_err(|_| Failure::new("InvalidGrantIdException", format!("The grant ID '{text}' is not valid.")))
}

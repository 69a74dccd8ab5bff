//! Aliases: names for keys.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use super::super::call::{Alias, Call};
use super::super::engine::Operation;
use super::super::failure::Failure;
use super::super::record::KeyRecord;
use super::keys::Nothing;
use super::length_within;
use super::listing::{check_marker, page};
use crate::kms::KeyState;

/// States in which a key may get an alias.
const NAMEABLE: [KeyState; 3] = [KeyState::Enabled, KeyState::Disabled, KeyState::PendingImport];

/// Names a key.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct CreateAlias {
    pub(crate) alias_name: String,
    pub(crate) target_key_id: String,
}

/// Moves a name to another key.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct UpdateAlias {
    pub(crate) alias_name: String,
    pub(crate) target_key_id: String,
}

/// Takes a name away.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct DeleteAlias {
    pub(crate) alias_name: String,
}

/// Checks a name's form (AWS KMS API reference, CreateAlias).
fn check(name: &str) -> Result<(), Failure> {
    length_within("aliasName", name.len(), 1..=256)?;
    let Some(rest) = name.strip_prefix("alias/") else {
        let message = "Alias must start with the prefix \"alias/\". Please see \
                       https://docs.aws.amazon.com/kms/latest/developerguide/kms-alias.html";
        return Err(Failure::validation(message));
    };
    let fits = !rest.is_empty() && rest.chars().all(|c| c.is_ascii_alphanumeric() || "/_-".contains(c));
    if !fits {
        return Err(Failure::constraint(
            "aliasName",
            name,
            "satisfy regular expression pattern: ^[a-zA-Z0-9:/_-]+$",
        ));
    }
    if rest.starts_with("aws/") {
        let message = "Aliases that begin with alias/aws/ are reserved for AWS.";
        return Err(Failure::new("InvalidAliasNameException", message));
    }
    Ok(())
}

/// An alias is given by whoever may on both sides: the alias by its own policies, the key by the key's as well.
fn authorise(call: &Call<'_>, action: &str, name: &str, record: &KeyRecord) -> Result<(), Failure> {
    call.authorise_without_key(action, &call.arn(name))?;
    call.authorise_by_policy(action, record)
}

fn not_found(call: &Call<'_>, name: &str) -> Failure {
    Failure::not_found(format!("Alias {} is not found.", call.arn(name)))
}

impl Operation for CreateAlias {
    const NAME: &'static str = "CreateAlias";
    const READ_ONLY: bool = false;
    type Answer = Nothing;

    fn run(&self, call: &mut Call<'_>) -> Result<Nothing, Failure> {
        check(&self.alias_name)?;
        let record = call.key(&self.target_key_id)?;
        authorise(call, Self::NAME, &self.alias_name, &record)?;
        record.require_state(&NAMEABLE)?;
        let mut aliases = call.aliases()?;
        if aliases.0.contains_key(&self.alias_name) {
            let message = format!("An alias with the name {} already exists", call.arn(&self.alias_name));
            return Err(Failure::new("AlreadyExistsException", message));
        }
        let alias = Alias { key: record.id, created: call.now, updated: call.now };
        aliases.0.insert(self.alias_name.clone(), alias);
        call.save_aliases(&aliases)?;
        Ok(Nothing {})
    }
}

impl Operation for UpdateAlias {
    const NAME: &'static str = "UpdateAlias";
    const READ_ONLY: bool = false;
    type Answer = Nothing;

    fn run(&self, call: &mut Call<'_>) -> Result<Nothing, Failure> {
        check(&self.alias_name)?;
        let record = call.key(&self.target_key_id)?;
        authorise(call, Self::NAME, &self.alias_name, &record)?;
        record.require_state(&NAMEABLE)?;
        let mut aliases = call.aliases()?;
        let missing = not_found(call, &self.alias_name);
        let alias = aliases.0.get_mut(&self.alias_name).ok_or(missing)?;
        alias.key = record.id;
        alias.updated = call.now;
        call.save_aliases(&aliases)?;
        Ok(Nothing {})
    }
}

impl Operation for DeleteAlias {
    const NAME: &'static str = "DeleteAlias";
    const READ_ONLY: bool = false;
    type Answer = Nothing;

    fn run(&self, call: &mut Call<'_>) -> Result<Nothing, Failure> {
        check(&self.alias_name)?;
        call.authorise_without_key(Self::NAME, &call.arn(&self.alias_name))?;
        let mut aliases = call.aliases()?;
        let alias = aliases.0.remove(&self.alias_name).ok_or_else(|| not_found(call, &self.alias_name))?;
        if let Some(record) = call.load(alias.key)? {
            call.touch(&record);
        }
        call.save_aliases(&aliases)?;
        Ok(Nothing {})
    }
}

/// Lists aliases, all or one key's.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ListAliases {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) marker: Option<String>,
}

/// Some aliases.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AliasesAnswer {
    pub(crate) aliases: Vec<AliasEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_marker: Option<String>,
    pub(crate) truncated: bool,
}

/// One alias.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AliasEntry {
    pub(crate) alias_name: String,
    pub(crate) alias_arn: String,
    pub(crate) target_key_id: Uuid,
    #[serde(with = "time::serde::timestamp")]
    pub(crate) creation_date: OffsetDateTime,
    #[serde(with = "time::serde::timestamp")]
    pub(crate) last_updated_date: OffsetDateTime,
}

impl Operation for ListAliases {
    const NAME: &'static str = "ListAliases";
    const READ_ONLY: bool = true;
    type Answer = AliasesAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<AliasesAnswer, Failure> {
        call.authorise_without_key(Self::NAME, "*")?;
        let key = self.key_id.as_deref().map(|key| call.key(key)).transpose()?.map(|record| record.id);
        let aliases = call.aliases()?.0;
        let wanted = aliases.into_iter().filter(|(_, alias)| key.is_none_or(|key| alias.key == key));
        let page = page(wanted, |(name, _)| name.clone(), self.limit, check_marker(&self.marker)?)?;
        let aliases = page.entries.into_iter().map(|(name, alias)| AliasEntry {
            alias_arn: call.arn(&name),
            alias_name: name,
            target_key_id: alias.key,
            creation_date: alias.created,
            last_updated_date: alias.updated,
        });
        let truncated = page.next_marker.is_some();
        Ok(AliasesAnswer { aliases: aliases.collect(), next_marker: page.next_marker, truncated })
    }
}

//! One call under way: the state it sees, who makes it, and what its record will say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::engine::Identity;
use super::event::Effects;
use super::failure::Failure;
use super::files::{Files, KEYS, MATERIALS, TOKEN_SECRET};
use super::principal::PrincipalRecord;
use super::record::{KeyRecord, Material, MaterialId, RotationKind, random};
use super::token;
use crate::kms::KeyState;
use crate::secret::LockedBytes;

const ALIASES: &str = "aliases.json";
/// Length of a master key's material in bytes.
const MATERIAL: usize = 32;

/// One call under way.
pub(crate) struct Call<'a> {
    pub(crate) files: &'a Files<'a>,
    pub(crate) identity: &'a Identity,
    pub(crate) principal: &'a PrincipalRecord,
    /// `aws:SecureTransport`.
    pub(crate) secure: bool,
    pub(crate) now: OffsetDateTime,
    pub(crate) grant_delay: Duration,
    pub(crate) effects: Effects,
    /// The key as the call named it, for the error if there is no such key.
    pub(crate) named: Option<String>,
    /// Keys that the call named by an alias, with that alias: `kms:RequestAlias`.
    pub(crate) aliases_used: BTreeMap<Uuid, String>,
}

/// All aliases by name, `alias/...`.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Aliases(pub(crate) BTreeMap<String, Alias>);

/// A name for a key.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Alias {
    pub(crate) key: Uuid,
    #[serde(with = "time::serde::timestamp::milliseconds")]
    pub(crate) created: OffsetDateTime,
    #[serde(with = "time::serde::timestamp::milliseconds")]
    pub(crate) updated: OffsetDateTime,
}

impl Call<'_> {
    /// ARN of something in this account.
    pub(crate) fn arn(&self, resource: &str) -> String {
        format!("arn:aws:kms:{}:{}:{resource}", self.identity.region, self.identity.account)
    }

    /// Ends a dry run. Called after all checks and before the first change.
    ///
    /// # Errors
    /// DryRunOperationException if `dry_run`.
    pub(crate) fn dry_run(&self, dry_run: Option<bool>) -> Result<(), Failure> {
        if dry_run == Some(true) {
            return Err(Failure::new(
                "DryRunOperationException",
                "The request would have succeeded, but the DryRun option is set.",
            ));
        }
        Ok(())
    }

    /// Finds a key by id or ARN.
    ///
    /// # Errors
    /// NotFoundException, InvalidArnException (also for the ARN of an alias) or ValidationException.
    pub(crate) fn key(&mut self, reference: &str) -> Result<KeyRecord, Failure> {
        self.find(reference, false)
    }

    /// Finds a key by id, ARN, alias or alias ARN.
    ///
    /// # Errors
    /// NotFoundException, InvalidArnException or ValidationException.
    pub(crate) fn key_or_alias(&mut self, reference: &str) -> Result<KeyRecord, Failure> {
        self.find(reference, true)
    }

    fn find(&mut self, reference: &str, aliases: bool) -> Result<KeyRecord, Failure> {
        if reference.is_empty() || reference.len() > 2048 {
            let constraint = "have length between 1 and 2048";
            return Err(Failure::constraint("keyId", reference.get(..64).unwrap_or(reference), constraint));
        }
        self.named = Some(reference.into());
        let resource = self.resource(reference)?;
        let id = if resource.starts_with("alias/") {
            if !aliases {
                return Err(self.alias_refused(reference));
            }
            let missing = || Failure::not_found(format!("Alias {} is not found.", self.arn(resource)));
            let id = self.aliases()?.0.get(resource).ok_or_else(missing)?.key;
            self.aliases_used.insert(id, resource.into());
            id
        } else {
            // Other spellings that the parser takes (braces, no hyphens, capitals) name no key in AWS KMS either.
            let id = Uuid::parse_str(resource).ok().filter(|id| id.to_string() == resource);
            id.ok_or_else(|| Failure::not_found(format!("Invalid keyId '{reference}'")))?
        };
        let missing = Failure::not_found(format!("Key '{}' does not exist", self.arn(&format!("key/{id}"))));
        let record = self.load(id)?.ok_or(missing)?;
        self.touch(&record);
        Ok(record)
    }

    /// What a reference names: `alias/NAME`, or a key id (perhaps not a good one).
    fn resource<'r>(&self, reference: &'r str) -> Result<&'r str, Failure> {
        if !reference.starts_with("arn:") {
            return Ok(reference);
        }
        let invalid = || Failure::new("InvalidArnException", format!("Invalid arn {reference}"));
        let parts: Vec<&str> = reference.splitn(6, ':').collect();
        let [_, "aws", "kms", region, account, resource] = parts[..] else {
            return Err(invalid());
        };
        let named = resource.strip_prefix("key/").or(resource.starts_with("alias/").then_some(resource));
        let named = named.filter(|name| !name.is_empty()).ok_or_else(invalid)?;
        if region != self.identity.region || account != self.identity.account {
            return Err(Failure::not_found(format!("Key '{reference}' does not exist")));
        }
        Ok(named)
    }

    fn alias_refused(&self, reference: &str) -> Failure {
        if reference.starts_with("arn:") {
            return Failure::new("InvalidArnException", format!("{reference} is not a key ARN"));
        }
        Failure::not_found(format!("Invalid keyId '{reference}'"))
    }

    /// Notes that the call is on this key.
    pub(crate) fn touch(&mut self, record: &KeyRecord) {
        if !self.effects.keys.contains(&record.arn) {
            self.effects.keys.push(record.arn.clone());
        }
    }

    /// Loads a key; one past its deletion date is deleted first, material and all.
    ///
    /// # Errors
    /// [`Failure::Storage`].
    pub(crate) fn load(&self, id: Uuid) -> Result<Option<KeyRecord>, Failure> {
        let Some(mut record) = self.files.read::<KeyRecord>(&document(id))? else {
            return Ok(None);
        };
        if record.deletion.is_some_and(|deletion| deletion <= self.now) {
            self.delete(&record)?;
            return Ok(None);
        }
        let (now, delay) = (self.now, self.grant_delay);
        record.grants.retain(|grant| grant.ended.is_none() || grant.is_everywhere(now, delay));
        Ok(Some(record))
    }

    fn delete(&self, record: &KeyRecord) -> Result<(), Failure> {
        record.materials.iter().try_for_each(|material| self.files.remove(&material_file(material.id)))?;
        let mut aliases = self.aliases()?;
        aliases.0.retain(|_, alias| alias.key != record.id);
        self.save_aliases(&aliases)?;
        self.files.remove(&document(record.id))
    }

    /// Every key, ordered by id.
    ///
    /// # Errors
    /// [`Failure::Storage`].
    pub(crate) fn all_keys(&self) -> Result<Vec<KeyRecord>, Failure> {
        let mut records = Vec::new();
        for name in self.files.list(KEYS)? {
            let id = Uuid::parse_str(&name)
                .map_err(|_| Failure::Storage(format!("{KEYS}/{name}.json is not the embedded KMS's")))?;
            records.extend(self.load(id)?);
        }
        Ok(records)
    }

    /// Writes a key.
    ///
    /// # Errors
    /// [`Failure::Storage`].
    pub(crate) fn save(&self, record: &KeyRecord) -> Result<(), Failure> {
        self.files.write(&document(record.id), record)
    }

    /// All aliases.
    ///
    /// # Errors
    /// [`Failure::Storage`].
    pub(crate) fn aliases(&self) -> Result<Aliases, Failure> {
        Ok(self.files.read(ALIASES)?.unwrap_or_default())
    }

    /// Writes all aliases.
    ///
    /// # Errors
    /// [`Failure::Storage`].
    pub(crate) fn save_aliases(&self, aliases: &Aliases) -> Result<(), Failure> {
        self.files.write(ALIASES, aliases)
    }

    /// Gives a key new material, for new blobs. The caller saves the key afterwards, so a crash in between leaves
    /// a file that nothing names.
    ///
    /// # Errors
    /// [`Failure::Storage`], or KMSInternalException without random bytes or lockable memory.
    pub(crate) fn add_material(
        &self,
        record: &mut KeyRecord,
        rotated: Option<RotationKind>,
    ) -> Result<(), Failure> {
        let id = MaterialId::random()?;
        let mut bytes = LockedBytes::zeroed(MATERIAL).map_err(Failure::memory)?;
        random(bytes.as_mut_slice())?;
        self.files.write_secret(&material_file(id), &bytes)?;
        record.materials.push(Material { id, since: self.now, rotated });
        Ok(())
    }

    /// Reads a material for the length of this call.
    ///
    /// # Errors
    /// [`Failure::Storage`] if its file is missing or has the wrong length.
    pub(crate) fn material(&self, id: MaterialId) -> Result<LockedBytes, Failure> {
        self.files.read_secret(&material_file(id), MATERIAL)
    }

    /// Notes the material for `additionalEventData`.
    pub(crate) fn note_material(&mut self, field: &str, id: MaterialId) {
        self.effects.additional.insert(field.into(), json!(id));
    }

    /// Reads the secret of grant tokens.
    ///
    /// # Errors
    /// [`Failure::Storage`].
    pub(crate) fn token_secret(&self) -> Result<LockedBytes, Failure> {
        self.files.read_secret(TOKEN_SECRET, token::SECRET)
    }

    /// Checks that the key is enabled.
    ///
    /// # Errors
    /// As [`KeyRecord::require_state`].
    pub(crate) fn require_enabled(&self, record: &KeyRecord) -> Result<(), Failure> {
        record.require_state(&[KeyState::Enabled])
    }
}

fn document(id: Uuid) -> String {
    format!("{KEYS}/{id}.json")
}

fn material_file(id: MaterialId) -> String {
    format!("{MATERIALS}/{id}.key")
}

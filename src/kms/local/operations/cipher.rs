//! Encrypt, Decrypt and ReEncrypt.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::authorise::Access;
use super::super::blob::{MAX_BLOB, MAX_PLAINTEXT, Sealed, invalid_ciphertext};
use super::super::call::Call;
use super::super::engine::Operation;
use super::super::failure::Failure;
use super::super::pairs::Pairs;
use super::super::policy::ConditionKeys;
use super::super::record::{KeyRecord, MaterialId};
use super::super::wire::{Blob, Secret, Token};
use super::data_keys::wrap;
use super::{length_within, one_of};

/// The one algorithm of symmetric keys.
const ALGORITHM: &str = "SYMMETRIC_DEFAULT";

/// An algorithm's name as a request gives it.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Algorithm(String);

impl Default for Algorithm {
    fn default() -> Self {
        Self(ALGORITHM.into())
    }
}

impl Algorithm {
    fn check(&self, field: &str) -> Result<(), Failure> {
        one_of(field, &self.0, &[ALGORITHM])
    }
}

/// Encrypts up to 4096 bytes.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Encrypt {
    pub(crate) key_id: String,
    #[serde(skip_serializing)]
    pub(crate) plaintext: Option<Secret>,
    #[serde(skip_serializing_if = "Pairs::is_empty")]
    pub(crate) encryption_context: Pairs,
    pub(crate) encryption_algorithm: Algorithm,
    #[serde(skip_serializing)]
    pub(crate) grant_tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dry_run: Option<bool>,
}

/// A blob, and what it is under.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct EncryptAnswer {
    pub(crate) ciphertext_blob: Blob,
    pub(crate) key_id: String,
    pub(crate) encryption_algorithm: &'static str,
}

impl Operation for Encrypt {
    const NAME: &'static str = "Encrypt";
    const READ_ONLY: bool = true;
    type Answer = EncryptAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<EncryptAnswer, Failure> {
        let plaintext = self.plaintext.as_ref().map_or(&[][..], Secret::expose);
        length_within("plaintext", plaintext.len(), 1..=MAX_PLAINTEXT)?;
        self.encryption_algorithm.check("encryptionAlgorithm")?;
        self.encryption_context.check()?;
        let mut record = call.key_or_alias(&self.key_id)?;
        let access = Access::to_use(&self.encryption_context, &self.grant_tokens);
        call.authorise(Self::NAME, &record, &access)?;
        record.require_symmetric(Self::NAME)?;
        call.require_enabled(&record)?;
        call.dry_run(self.dry_run)?;
        let wrapped = wrap(call, &mut record, &self.encryption_context, plaintext)?;
        call.note_material("keyMaterialId", wrapped.material);
        Ok(EncryptAnswer {
            ciphertext_blob: wrapped.blob,
            key_id: record.arn,
            encryption_algorithm: ALGORITHM,
        })
    }
}

/// A blob to be opened: by whom, under which right.
struct Opening<'a> {
    action: &'static str,
    blob: &'a Blob,
    key: Option<&'a str>,
    context: &'a Pairs,
    tokens: &'a [Token],
}

impl Opening<'_> {
    /// Finds the blob's key.
    fn key(&self, call: &mut Call<'_>) -> Result<KeyRecord, Failure> {
        self.context.check()?;
        match self.key {
            Some(key) => call.key_or_alias(key),
            None => self.key_of_blob(call),
        }
    }

    /// Checks the right to a key, its kind and its state. `facts` is what policies may ask beside the context.
    fn require(&self, call: &Call<'_>, record: &KeyRecord, facts: ConditionKeys) -> Result<(), Failure> {
        let access = Access { facts, ..Access::to_use(self.context, self.tokens) };
        call.authorise(self.action, record, &access)?;
        record.require_symmetric(self.action)?;
        call.require_enabled(record)
    }

    fn key_of_blob(&self, call: &mut Call<'_>) -> Result<KeyRecord, Failure> {
        let id = self.sealed()?.header.key;
        let record = call.load(id)?.ok_or_else(|| {
            // Which of these it is, AWS KMS does not say either.
            let message = "The ciphertext refers to a customer master key that does not exist, does not exist in \
                           this region, or you are not allowed to access.";
            Failure::new("AccessDeniedException", message)
        })?;
        call.touch(&record);
        Ok(record)
    }

    fn sealed(&self) -> Result<Sealed<'_>, Failure> {
        length_within("ciphertextBlob", self.blob.0.len(), 1..=MAX_BLOB)?;
        Sealed::parse(&self.blob.0).ok_or_else(invalid_ciphertext)
    }

    /// Opens the blob.
    fn open(&self, call: &Call<'_>, record: &KeyRecord) -> Result<(Secret, MaterialId), Failure> {
        let sealed = self.sealed()?;
        if sealed.header.key != record.id {
            return Err(incorrect_key(sealed.header.key, call));
        }
        let material = sealed.header.material;
        // Materials are never forgotten while their key lives, so an unknown one is a damaged header.
        if !record.materials.iter().any(|known| known.id == material) {
            return Err(invalid_ciphertext());
        }
        Ok((sealed.open(&call.material(material)?, self.context)?, material))
    }
}

/// A blob of another key that exists is IncorrectKey; one whose key id means nothing is damaged.
fn incorrect_key(id: Uuid, call: &Call<'_>) -> Failure {
    match call.load(id) {
        Ok(Some(_)) => Failure::new(
            "IncorrectKeyException",
            "The key ID in the request does not identify a CMK that can perform this operation.",
        ),
        Ok(None) => invalid_ciphertext(),
        Err(failure) => failure,
    }
}

/// Opens a blob.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Decrypt {
    #[serde(skip_serializing)]
    pub(crate) ciphertext_blob: Blob,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_id: Option<String>,
    #[serde(skip_serializing_if = "Pairs::is_empty")]
    pub(crate) encryption_context: Pairs,
    pub(crate) encryption_algorithm: Algorithm,
    #[serde(skip_serializing)]
    pub(crate) grant_tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dry_run: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) dry_run_modifiers: Vec<String>,
}

/// What was in a blob.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DecryptAnswer {
    pub(crate) plaintext: Secret,
    pub(crate) key_id: String,
    pub(crate) encryption_algorithm: &'static str,
    pub(crate) key_material_id: MaterialId,
}

impl Decrypt {
    /// True if the call asks for the caller's right alone.
    fn ignores_ciphertext(&self) -> Result<bool, Failure> {
        for modifier in &self.dry_run_modifiers {
            one_of("dryRunModifiers", modifier, &["IGNORE_CIPHERTEXT"])?;
        }
        if !self.dry_run_modifiers.is_empty() && self.dry_run != Some(true) {
            return Err(Failure::validation("DryRunModifiers can only be used when DryRun is true."));
        }
        Ok(!self.dry_run_modifiers.is_empty())
    }
}

impl Operation for Decrypt {
    const NAME: &'static str = "Decrypt";
    const READ_ONLY: bool = true;
    type Answer = DecryptAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<DecryptAnswer, Failure> {
        self.encryption_algorithm.check("encryptionAlgorithm")?;
        let ignores_ciphertext = self.ignores_ciphertext()?;
        let opening = Opening {
            action: Self::NAME,
            blob: &self.ciphertext_blob,
            key: self.key_id.as_deref(),
            context: &self.encryption_context,
            tokens: &self.grant_tokens,
        };
        let record = opening.key(call)?;
        opening.require(call, &record, ConditionKeys::default())?;
        if ignores_ciphertext {
            call.dry_run(self.dry_run)?;
        }
        let (plaintext, material) = opening.open(call, &record)?;
        call.dry_run(self.dry_run)?;
        call.note_material("keyMaterialId", material);
        Ok(DecryptAnswer {
            plaintext,
            key_id: record.arn,
            encryption_algorithm: ALGORITHM,
            key_material_id: material,
        })
    }
}

/// Moves a blob to another key, context or material without showing what is in it.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ReEncrypt {
    #[serde(skip_serializing)]
    pub(crate) ciphertext_blob: Blob,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source_key_id: Option<String>,
    #[serde(skip_serializing_if = "Pairs::is_empty")]
    pub(crate) source_encryption_context: Pairs,
    pub(crate) source_encryption_algorithm: Algorithm,
    pub(crate) destination_key_id: String,
    #[serde(skip_serializing_if = "Pairs::is_empty")]
    pub(crate) destination_encryption_context: Pairs,
    pub(crate) destination_encryption_algorithm: Algorithm,
    #[serde(skip_serializing)]
    pub(crate) grant_tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dry_run: Option<bool>,
}

/// The new blob, and what both were under.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ReEncryptAnswer {
    pub(crate) ciphertext_blob: Blob,
    pub(crate) source_key_id: String,
    pub(crate) key_id: String,
    pub(crate) source_encryption_algorithm: &'static str,
    pub(crate) destination_encryption_algorithm: &'static str,
    pub(crate) source_key_material_id: MaterialId,
    pub(crate) destination_key_material_id: MaterialId,
}

impl ReEncrypt {
    /// Checks the right to the key of the new blob, its kind and its state.
    fn require(&self, call: &Call<'_>, record: &KeyRecord, facts: ConditionKeys) -> Result<(), Failure> {
        const ACTION: &str = "ReEncryptTo";
        let access =
            Access { facts, ..Access::to_use(&self.destination_encryption_context, &self.grant_tokens) };
        call.authorise(ACTION, record, &access)?;
        record.require_symmetric(ACTION)?;
        call.require_enabled(record)
    }
}

impl Operation for ReEncrypt {
    const NAME: &'static str = "ReEncrypt";
    const READ_ONLY: bool = true;
    type Answer = ReEncryptAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<ReEncryptAnswer, Failure> {
        self.source_encryption_algorithm.check("sourceEncryptionAlgorithm")?;
        self.destination_encryption_algorithm.check("destinationEncryptionAlgorithm")?;
        let opening = Opening {
            action: "ReEncryptFrom",
            blob: &self.ciphertext_blob,
            key: self.source_key_id.as_deref(),
            context: &self.source_encryption_context,
            tokens: &self.grant_tokens,
        };
        self.destination_encryption_context.check()?;
        let source = opening.key(call)?;
        let mut destination = call.key_or_alias(&self.destination_key_id)?;
        let mut facts = ConditionKeys::default();
        facts.add("kms:ReEncryptOnSameKey", (source.id == destination.id).to_string());
        opening.require(call, &source, facts.clone())?;
        self.require(call, &destination, facts)?;
        let (plaintext, from) = opening.open(call, &source)?;
        call.dry_run(self.dry_run)?;
        let wrapped = wrap(call, &mut destination, &self.destination_encryption_context, plaintext.expose())?;
        call.note_material("sourceKeyMaterialId", from);
        call.note_material("destinationKeyMaterialId", wrapped.material);
        Ok(ReEncryptAnswer {
            ciphertext_blob: wrapped.blob,
            source_key_id: source.arn,
            key_id: destination.arn,
            source_encryption_algorithm: ALGORITHM,
            destination_encryption_algorithm: ALGORITHM,
            source_key_material_id: from,
            destination_key_material_id: wrapped.material,
        })
    }
}

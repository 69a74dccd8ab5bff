//! Data keys and random bytes.

use serde::{Deserialize, Serialize};
use time::Duration;

use super::super::authorise::Access;
use super::super::blob::Header;
use super::super::call::Call;
use super::super::engine::Operation;
use super::super::failure::Failure;
use super::super::pairs::Pairs;
use super::super::record::{KeyRecord, MaterialId, RotationKind, random};
use super::super::wire::{Blob, Secret, Token};
use super::{one_of, within};
use crate::secret::LockedBytes;

/// Lengths of a data key in bytes (AWS KMS API reference, GenerateDataKey).
const DATA_KEY_BYTES: std::ops::RangeInclusive<u32> = 1..=1024;

/// A blob that was made, and under what.
pub(crate) struct Wrapped {
    pub(crate) blob: Blob,
    pub(crate) material: MaterialId,
}

/// Encrypts under a key's newest material, making that first if automatic rotation says so.
///
/// # Errors
/// KMSInvalidStateException for a key without material, or [`Failure::Storage`].
pub(crate) fn wrap(
    call: &Call<'_>,
    record: &mut KeyRecord,
    context: &Pairs,
    plaintext: &[u8],
) -> Result<Wrapped, Failure> {
    rotate_if_due(call, record)?;
    let Some(material) = record.current().map(|material| material.id) else {
        return Err(Failure::new("KMSInvalidStateException", format!("{} has no key material.", record.arn)));
    };
    let header = Header { key: record.id, material };
    let blob = header.seal(&call.material(material)?, context, plaintext)?;
    Ok(Wrapped { blob: Blob(blob), material })
}

fn rotate_if_due(call: &Call<'_>, record: &mut KeyRecord) -> Result<(), Failure> {
    let now = call.now;
    let Some(rotation) = record.rotation.as_mut().filter(|rotation| rotation.next <= now) else {
        return Ok(());
    };
    rotation.next = now + Duration::days(rotation.period_days.into());
    call.add_material(record, Some(RotationKind::Automatic))?;
    call.save(record)
}

/// How long a data key should be.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct DataKeyRequest {
    pub(crate) key_id: String,
    #[serde(skip_serializing_if = "Pairs::is_empty")]
    pub(crate) encryption_context: Pairs,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_spec: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) number_of_bytes: Option<u32>,
    #[serde(skip_serializing)]
    pub(crate) grant_tokens: Vec<Token>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dry_run: Option<bool>,
}

impl DataKeyRequest {
    fn length(&self) -> Result<usize, Failure> {
        let bytes = match (self.key_spec.as_deref(), self.number_of_bytes) {
            (Some(spec), None) => {
                one_of("keySpec", spec, &["AES_256", "AES_128"])?;
                if spec == "AES_256" { 32 } else { 16 }
            }
            (None, Some(bytes)) => within("numberOfBytes", bytes, DATA_KEY_BYTES)?,
            _ => return Err(Failure::validation("Please specify either number of bytes or key spec.")),
        };
        usize::try_from(bytes).map_err(Failure::internal)
    }

    fn generate(&self, call: &mut Call<'_>, action: &str) -> Result<(KeyRecord, Secret, Wrapped), Failure> {
        let length = self.length()?;
        self.encryption_context.check()?;
        let mut record = call.key_or_alias(&self.key_id)?;
        let access = Access::to_use(&self.encryption_context, &self.grant_tokens);
        call.authorise(action, &record, &access)?;
        record.require_symmetric(action)?;
        call.require_enabled(&record)?;
        call.dry_run(self.dry_run)?;
        let plaintext = random_secret(length)?;
        let wrapped = wrap(call, &mut record, &self.encryption_context, plaintext.expose())?;
        call.note_material("keyMaterialId", wrapped.material);
        Ok((record, plaintext, wrapped))
    }
}

fn random_secret(length: usize) -> Result<Secret, Failure> {
    let mut bytes = LockedBytes::zeroed(length).map_err(Failure::memory)?;
    random(bytes.as_mut_slice())?;
    Ok(Secret(bytes))
}

/// Makes a data key and gives it in clear and wrapped.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct GenerateDataKey(pub(crate) DataKeyRequest);

/// A data key.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct DataKeyAnswer {
    pub(crate) ciphertext_blob: Blob,
    pub(crate) plaintext: Secret,
    pub(crate) key_id: String,
    pub(crate) key_material_id: MaterialId,
}

impl Operation for GenerateDataKey {
    const NAME: &'static str = "GenerateDataKey";
    const READ_ONLY: bool = true;
    type Answer = DataKeyAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<DataKeyAnswer, Failure> {
        let (record, plaintext, wrapped) = self.0.generate(call, Self::NAME)?;
        Ok(DataKeyAnswer {
            ciphertext_blob: wrapped.blob,
            plaintext,
            key_id: record.arn,
            key_material_id: wrapped.material,
        })
    }
}

/// Makes a data key and gives it wrapped only.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct GenerateDataKeyWithoutPlaintext(pub(crate) DataKeyRequest);

/// A blob, and what it is under.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct WrappedAnswer {
    pub(crate) ciphertext_blob: Blob,
    pub(crate) key_id: String,
    pub(crate) key_material_id: MaterialId,
}

impl Operation for GenerateDataKeyWithoutPlaintext {
    const NAME: &'static str = "GenerateDataKeyWithoutPlaintext";
    const READ_ONLY: bool = true;
    type Answer = WrappedAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<WrappedAnswer, Failure> {
        let (record, _, wrapped) = self.0.generate(call, Self::NAME)?;
        Ok(WrappedAnswer {
            ciphertext_blob: wrapped.blob,
            key_id: record.arn,
            key_material_id: wrapped.material,
        })
    }
}

/// Gives random bytes.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct GenerateRandom {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) number_of_bytes: Option<u32>,
}

/// Random bytes.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RandomAnswer {
    pub(crate) plaintext: Secret,
}

impl Operation for GenerateRandom {
    const NAME: &'static str = "GenerateRandom";
    const READ_ONLY: bool = true;
    type Answer = RandomAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<RandomAnswer, Failure> {
        let Some(bytes) = self.number_of_bytes else {
            return Err(Failure::constraint("numberOfBytes", "null", "not be null"));
        };
        within("numberOfBytes", bytes, DATA_KEY_BYTES)?;
        call.authorise_without_key(Self::NAME, "*")?;
        Ok(RandomAnswer { plaintext: random_secret(usize::try_from(bytes).map_err(Failure::internal)?)? })
    }
}

//! Rotation: new material for new blobs, while old blobs open with the old.

use serde::{Deserialize, Serialize};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::super::call::Call;
use super::super::engine::Operation;
use super::super::failure::Failure;
use super::super::record::{KeyRecord, MaterialId, Rotation, RotationKind};
use super::keys::{KeyIdAnswer, Nothing};
use super::listing::{check_marker, page};
use super::{one_of, within};
use crate::kms::KeyState;

/// Days between automatic rotations (AWS KMS API reference, EnableKeyRotation).
const PERIOD_DAYS: std::ops::RangeInclusive<u16> = 90..=2560;
const DEFAULT_PERIOD_DAYS: u16 = 365;
/// Most rotations on demand of one key (AWS KMS developer guide, "Resource quotas").
const MAX_ON_DEMAND: usize = 25;

/// Checks that a key's material is the KMS's to rotate.
fn require_rotatable(record: &KeyRecord) -> Result<(), Failure> {
    if record.spec == "SYMMETRIC_DEFAULT" && record.origin == "AWS_KMS" {
        return Ok(());
    }
    let message = format!("{} cannot be rotated.", record.arn);
    Err(Failure::new("UnsupportedOperationException", message))
}

/// Rotates now.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RotateKeyOnDemand {
    pub(crate) key_id: String,
}

impl Operation for RotateKeyOnDemand {
    const NAME: &'static str = "RotateKeyOnDemand";
    const READ_ONLY: bool = false;
    type Answer = KeyIdAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<KeyIdAnswer, Failure> {
        let mut record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        call.require_enabled(&record)?;
        require_rotatable(&record)?;
        let on_demand = Some(RotationKind::OnDemand);
        if record.materials.iter().filter(|material| material.rotated == on_demand).count() >= MAX_ON_DEMAND {
            let message =
                format!("{} was rotated on demand {MAX_ON_DEMAND} times, the most it can be.", record.arn);
            return Err(Failure::new("LimitExceededException", message));
        }
        call.add_material(&mut record, on_demand)?;
        call.save(&record)?;
        call.effects.response = Some(json!({"keyId": record.arn}));
        Ok(KeyIdAnswer { key_id: record.arn })
    }
}

/// Turns automatic rotation on, or changes its period.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct EnableKeyRotation {
    pub(crate) key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rotation_period_in_days: Option<u16>,
}

impl Operation for EnableKeyRotation {
    const NAME: &'static str = "EnableKeyRotation";
    const READ_ONLY: bool = false;
    type Answer = Nothing;

    fn run(&self, call: &mut Call<'_>) -> Result<Nothing, Failure> {
        let period_days = self.rotation_period_in_days.unwrap_or(DEFAULT_PERIOD_DAYS);
        within("rotationPeriodInDays", period_days, PERIOD_DAYS)?;
        let mut record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        call.require_enabled(&record)?;
        require_rotatable(&record)?;
        record.rotation = Some(Rotation { period_days, next: call.now + Duration::days(period_days.into()) });
        call.save(&record)?;
        call.effects.response = Some(json!({"keyId": record.arn}));
        Ok(Nothing {})
    }
}

/// Turns automatic rotation off.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct DisableKeyRotation {
    pub(crate) key_id: String,
}

impl Operation for DisableKeyRotation {
    const NAME: &'static str = "DisableKeyRotation";
    const READ_ONLY: bool = false;
    type Answer = Nothing;

    fn run(&self, call: &mut Call<'_>) -> Result<Nothing, Failure> {
        let mut record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        call.require_enabled(&record)?;
        require_rotatable(&record)?;
        record.rotation = None;
        call.save(&record)?;
        call.effects.response = Some(json!({"keyId": record.arn}));
        Ok(Nothing {})
    }
}

/// Tells whether automatic rotation is on.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct GetKeyRotationStatus {
    pub(crate) key_id: String,
}

/// Whether automatic rotation is on, and when it comes next.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RotationStatusAnswer {
    pub(crate) key_id: String,
    pub(crate) key_rotation_enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rotation_period_in_days: Option<u16>,
    #[serde(with = "time::serde::timestamp::option", skip_serializing_if = "Option::is_none")]
    pub(crate) next_rotation_date: Option<OffsetDateTime>,
}

impl Operation for GetKeyRotationStatus {
    const NAME: &'static str = "GetKeyRotationStatus";
    const READ_ONLY: bool = true;
    type Answer = RotationStatusAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<RotationStatusAnswer, Failure> {
        let record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        require_rotatable(&record)?;
        // AWS KMS says "off" while a key waits for its deletion, and remembers the setting for after a cancel.
        let rotation = record.rotation.filter(|_| record.state != KeyState::PendingDeletion);
        Ok(RotationStatusAnswer {
            key_id: record.arn,
            key_rotation_enabled: rotation.is_some(),
            rotation_period_in_days: rotation.as_ref().map(|rotation| rotation.period_days),
            next_rotation_date: rotation.map(|rotation| rotation.next),
        })
    }
}

/// Lists a key's rotations, or all of its materials.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ListKeyRotations {
    pub(crate) key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) include_key_material: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) marker: Option<String>,
}

/// Some rotations.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RotationsAnswer {
    pub(crate) rotations: Vec<RotationEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_marker: Option<String>,
    pub(crate) truncated: bool,
}

/// One rotation, by the material it brought; a key's first material came without a rotation.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct RotationEntry {
    pub(crate) key_id: String,
    pub(crate) key_material_id: MaterialId,
    pub(crate) key_material_state: &'static str,
    #[serde(with = "time::serde::timestamp::option", skip_serializing_if = "Option::is_none")]
    pub(crate) rotation_date: Option<OffsetDateTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rotation_type: Option<RotationKind>,
}

impl Operation for ListKeyRotations {
    const NAME: &'static str = "ListKeyRotations";
    const READ_ONLY: bool = true;
    type Answer = RotationsAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<RotationsAnswer, Failure> {
        let include = self.include_key_material.as_deref().unwrap_or("ROTATIONS_ONLY");
        one_of("includeKeyMaterial", include, &["ROTATIONS_ONLY", "ALL_KEY_MATERIAL"])?;
        let record = call.key(&self.key_id)?;
        call.authorise_by_policy(Self::NAME, &record)?;
        require_rotatable(&record)?;
        let current = record.current().map(|material| material.id);
        let wanted = record.materials.iter().enumerate();
        let wanted = wanted.filter(|(_, material)| include != "ROTATIONS_ONLY" || material.rotated.is_some());
        // Ordered by age, so a marker is a place in that order: six digits are enough for any age of a key.
        let page = page(wanted, |(age, _)| format!("{age:06}"), self.limit, check_marker(&self.marker)?)?;
        let rotations = page.entries.into_iter().map(|(_, material)| RotationEntry {
            key_id: record.arn.clone(),
            key_material_id: material.id,
            key_material_state: if Some(material.id) == current { "CURRENT" } else { "NON_CURRENT" },
            rotation_date: material.rotated.map(|_| material.since),
            rotation_type: material.rotated,
        });
        let truncated = page.next_marker.is_some();
        Ok(RotationsAnswer { rotations: rotations.collect(), next_marker: page.next_marker, truncated })
    }
}

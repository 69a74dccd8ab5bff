//! The data key's life: made wrapped, leased, unwrapped once, and its grant ended.
//!
//! The order is Fargate's (AWS, "Managing AWS KMS keys for Fargate ephemeral storage"): describe the key; dry-run
//! both calls without the volume's id; then make the wrapped key and the grant with the volume's id added.
//! Whoever provisions never sees the plaintext; whoever unwraps needs nothing but the grant.

pub mod watch;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::geometry::{SectorSize, VolumeSize};
use crate::kms::{
    CheckOutcome, ContextError, EncryptionContext, KeyArn, KeyRef, KeyService, KmsError, Lease, LeaseSpec,
    Principal, WrappedKey,
};
use crate::secret::DataKey;

/// The cipher of every volume, by dm-crypt's name.
pub const CIPHER: &str = "aes-xts-plain64";
/// Context key that holds the volume's id.
const CONTEXT_VOLUME: &str = "sealblk:volume";
/// Context key that holds what decides how bytes are read: cipher, sector size and size.
const CONTEXT_LAYOUT: &str = "sealblk:layout";

/// A volume's name in contexts, grants and records: `vol-` and 17 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VolumeId(String);

impl VolumeId {
    /// A new, random one.
    pub fn random() -> Self {
        let digits = uuid::Uuid::new_v4().simple().to_string();
        Self(format!("vol-{}", &digits[..17]))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What decides how a volume's bytes are read; bound to the wrapped key by its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sector size.
    pub sector: SectorSize,
    /// Size.
    pub size: VolumeSize,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{CIPHER}/{}/{}", self.sector, self.size.bytes())
    }
}

/// What a new volume's key should be.
#[derive(Clone, Debug)]
pub struct KeyRequest {
    /// The KMS key that wraps.
    pub key: KeyRef,
    /// The user's pairs.
    pub context: EncryptionContext,
    /// May unwrap; by default the service's own choice ([`KeyService::parties`]).
    pub grantee: Option<Principal>,
    /// May end the grant; by default as above.
    pub retiring: Option<Principal>,
    /// Dry-run both calls first.
    pub preflight: bool,
}

/// The context of a volume's key: the user's pairs and sealblk's two.
///
/// # Errors
/// A [`ContextError`] if they do not fit a grant together.
pub fn bind(
    users: &EncryptionContext,
    volume: &VolumeId,
    layout: Layout,
) -> Result<EncryptionContext, ContextError> {
    let mut context = users.clone();
    context.insert(CONTEXT_VOLUME, volume.as_str())?;
    context.insert(CONTEXT_LAYOUT, &layout.to_string())?;
    Ok(context)
}

/// A volume's key before it is made: everything is checked, nothing exists.
pub struct Prepared {
    /// The KMS key, by its ARN.
    pub key: KeyArn,
    /// The whole context.
    pub context: EncryptionContext,
    /// The grant to be made.
    pub lease: LeaseSpec,
}

/// Resolves and judges the KMS key and, unless told otherwise, dry-runs what will be done with it.
///
/// # Errors
/// The [`KmsError`] of the first call or check that failed; nothing has been made.
pub async fn prepare(
    kms: &dyn KeyService,
    request: &KeyRequest,
    volume: &VolumeId,
    context: EncryptionContext,
) -> Result<Prepared, KmsError> {
    let health = kms.health(&request.key).await?;
    health.require_usable()?;
    let (grantee, retiring) = match (&request.grantee, &request.retiring) {
        (Some(grantee), Some(retiring)) => (grantee.clone(), retiring.clone()),
        (grantee, retiring) => {
            let own = kms.parties().await?;
            (grantee.clone().unwrap_or(own.grantee), retiring.clone().unwrap_or(own.retiring))
        }
    };
    let lease = LeaseSpec { grantee, retiring, name: volume.to_string() };
    if request.preflight {
        // As Fargate does it: before the volume has an id.
        let preflight = kms.preflight(&health.arn, &context.without(CONTEXT_VOLUME), &lease).await?;
        for check in &preflight.checks {
            if let CheckOutcome::CannotTell(why) = &check.outcome {
                tracing::warn!(call = check.call, "preflight cannot tell: {why}");
            }
        }
        preflight.require_passed()?;
    }
    Ok(Prepared { key: health.arn, context, lease })
}

impl Prepared {
    /// Makes the wrapped key.
    ///
    /// # Errors
    /// The call's.
    pub async fn generate(&self, kms: &dyn KeyService) -> Result<WrappedKey, KmsError> {
        let length = u16::try_from(DataKey::LEN).unwrap_or(u16::MAX);
        kms.generate(&self.key, &self.context, length).await
    }

    /// Makes the grant.
    ///
    /// # Errors
    /// The call's. A grant that was made without an answer getting through can be found by its name.
    pub async fn lease(&self, kms: &dyn KeyService) -> Result<Lease, KmsError> {
        kms.lease(&self.key, &self.context, &self.lease).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_binds_volume_and_layout() {
        let mut users = EncryptionContext::default();
        users.insert_text("team=data").unwrap();
        let size = VolumeSize::new(1 << 30, SectorSize::B4096).unwrap();
        let volume = VolumeId::random();
        let context = bind(&users, &volume, Layout { sector: SectorSize::B4096, size }).unwrap();
        let pairs: Vec<_> = context.pairs().collect();
        assert_eq!(
            pairs,
            [
                ("sealblk:layout", "aes-xts-plain64/4096/1073741824"),
                ("sealblk:volume", volume.as_str()),
                ("team", "data"),
            ]
        );
    }

    #[test]
    fn seven_pairs_of_the_user_are_one_too_many() {
        let size = VolumeSize::new(4096, SectorSize::B4096).unwrap();
        let layout = Layout { sector: SectorSize::B4096, size };
        let mut users = EncryptionContext::default();
        for i in 0..6 {
            users.insert_text(&format!("k{i}=v")).unwrap();
        }
        assert!(bind(&users, &VolumeId::random(), layout).is_ok());
        users.insert_text("k6=v").unwrap();
        assert_eq!(bind(&users, &VolumeId::random(), layout), Err(ContextError::Pairs(9)));
    }

    #[test]
    fn volume_ids_look_like_ebs_ones_and_differ() {
        let (a, b) = (VolumeId::random(), VolumeId::random());
        assert_ne!(a, b);
        assert!(a.as_str().len() == 21 && a.as_str().starts_with("vol-"));
    }
}

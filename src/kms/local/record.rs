//! What the state directory keeps about a key.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::failure::Failure;
use super::pairs::Pairs;
use crate::hex;
use crate::kms::KeyState;
use crate::secret;

/// Name of one key material: 32 random bytes, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MaterialId([u8; Self::LEN]);

impl MaterialId {
    /// Length in bytes.
    pub(crate) const LEN: usize = 32;

    /// Takes the id as a blob holds it.
    pub(crate) fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// A new id.
    ///
    /// # Errors
    /// KMSInternalException if the system gives no random bytes.
    pub(crate) fn random() -> Result<Self, Failure> {
        let mut bytes = [0; Self::LEN];
        random(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The id as a blob holds it.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for MaterialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for MaterialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MaterialId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = hex::decode(text).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or("not 64 hexadecimal digits")
    }
}

impl Serialize for MaterialId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MaterialId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A key: everything but its material.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyRecord {
    pub(crate) id: Uuid,
    pub(crate) arn: String,
    pub(crate) description: String,
    pub(crate) spec: String,
    pub(crate) usage: String,
    pub(crate) origin: String,
    pub(crate) state: KeyState,
    #[serde(with = "time::serde::timestamp::milliseconds")]
    pub(crate) created: OffsetDateTime,
    /// Set while the state is PendingDeletion.
    #[serde(with = "time::serde::timestamp::milliseconds::option")]
    pub(crate) deletion: Option<OffsetDateTime>,
    /// Oldest first; the last one is in use. Empty for a key that has none (asymmetric, PendingImport).
    pub(crate) materials: Vec<Material>,
    /// Set while automatic rotation is on.
    pub(crate) rotation: Option<Rotation>,
    pub(crate) grants: Vec<Grant>,
    /// The key policy as it was put; without one, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<String>,
}

/// One of a key's materials; its 32 bytes have a file of their own.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Material {
    pub(crate) id: MaterialId,
    #[serde(with = "time::serde::timestamp::milliseconds")]
    pub(crate) since: OffsetDateTime,
    /// How it came; `None` for a key's first material.
    pub(crate) rotated: Option<RotationKind>,
}

/// What made a new material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RotationKind {
    /// Its time had come.
    #[serde(rename = "AUTOMATIC")]
    Automatic,
    /// RotateKeyOnDemand.
    #[serde(rename = "ON_DEMAND")]
    OnDemand,
}

/// Automatic rotation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rotation {
    pub(crate) period_days: u16,
    #[serde(with = "time::serde::timestamp::milliseconds")]
    pub(crate) next: OffsetDateTime,
}

/// A grant.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Grant {
    /// 64 hexadecimal digits.
    pub(crate) id: MaterialId,
    pub(crate) name: Option<String>,
    pub(crate) grantee: String,
    pub(crate) retiring: Option<String>,
    pub(crate) operations: Vec<String>,
    pub(crate) constraints: Option<Constraints>,
    pub(crate) issuer: String,
    #[serde(with = "time::serde::timestamp::milliseconds")]
    pub(crate) created: OffsetDateTime,
    /// When it was retired or revoked. It stays until the propagation delay is over.
    #[serde(with = "time::serde::timestamp::milliseconds::option")]
    pub(crate) ended: Option<OffsetDateTime>,
}

/// Under which encryption contexts a grant holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Constraints {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) encryption_context_subset: Option<Pairs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) encryption_context_equals: Option<Pairs>,
}

impl KeyRecord {
    /// The material that new blobs are under.
    pub(crate) fn current(&self) -> Option<&Material> {
        self.materials.last()
    }

    /// Checks that the key's state is one of `allowed`.
    ///
    /// # Errors
    /// DisabledException or KMSInvalidStateException (AWS KMS developer guide, "Key states").
    pub(crate) fn require_state(&self, allowed: &[KeyState]) -> Result<(), Failure> {
        if allowed.contains(&self.state) {
            return Ok(());
        }
        let (code, is) = match &self.state {
            KeyState::Disabled => ("DisabledException", "disabled"),
            KeyState::PendingDeletion => ("KMSInvalidStateException", "pending deletion"),
            KeyState::PendingImport => ("KMSInvalidStateException", "pending import"),
            KeyState::Unavailable => ("KMSInvalidStateException", "unavailable"),
            other => ("KMSInvalidStateException", other.name()),
        };
        Err(Failure::new(code, format!("{} is {is}.", self.arn)))
    }

    /// Checks that the key can wrap data, whatever its state.
    ///
    /// # Errors
    /// InvalidKeyUsageException for an asymmetric key: none of the embedded KMS's can be used.
    pub(crate) fn require_symmetric(&self, action: &str) -> Result<(), Failure> {
        if self.spec == "SYMMETRIC_DEFAULT" && self.usage == "ENCRYPT_DECRYPT" {
            return Ok(());
        }
        Err(Failure::new(
            "InvalidKeyUsageException",
            format!(
                "{} key spec is {} and key usage is {} which is not valid for {action}.",
                self.arn, self.spec, self.usage
            ),
        ))
    }
}

impl Grant {
    /// True from `delay` after its making until `delay` after its end; without a delay, whatever the clock says of
    /// the time of its making, for a clock may be set back.
    pub(crate) fn is_everywhere(&self, now: OffsetDateTime, delay: Duration) -> bool {
        match self.ended {
            Some(ended) => now < ended + delay,
            None => delay.is_zero() || now >= self.created + delay,
        }
    }
}

impl Constraints {
    /// True if the constraints let a call with `context` through.
    pub(crate) fn admit(&self, context: &Pairs) -> bool {
        let subset = self.encryption_context_subset.as_ref().is_none_or(|pairs| pairs.is_subset_of(context));
        subset && self.encryption_context_equals.as_ref().is_none_or(|pairs| pairs.equals(context))
    }
}

/// Fills `bytes` from the system's generator.
///
/// # Errors
/// KMSInternalException if it gives none.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), Failure> {
    secret::random(bytes)
        .map_err(|error| Failure::internal(format!("the system gives no random bytes: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn material_ids_are_64_hex_digits() {
        let id = MaterialId::random().expect("random");
        let text = id.to_string();
        assert_eq!(text.len(), 64);
        assert_eq!(text.parse(), Ok(id));
        for bad in ["", "zz", &"g".repeat(64), &"0".repeat(63), &"é".repeat(32)] {
            assert!(bad.parse::<MaterialId>().is_err(), "{bad}");
        }
    }
}

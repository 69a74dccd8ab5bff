//! What the API's JSON carries beside text and numbers: blobs, secrets and tokens, each in base64.
//!
//! A secret's base64 is written straight into the (wiped) buffer of the answer, never into a string of its own.

use base64::Engine;
use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::secret::LockedBytes;

/// Bytes that are no secret.
#[derive(Default)]
pub(crate) struct Blob(pub(crate) Vec<u8>);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(&self.0, &STANDARD))
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(D::Error::custom)
    }
}

/// Bytes that are a secret, in locked memory.
pub(crate) struct Secret(pub(crate) LockedBytes);

impl Secret {
    /// A copy in locked memory of its own.
    ///
    /// # Errors
    /// As [`LockedBytes::zeroed`].
    pub(crate) fn copy_from(source: &[u8]) -> Result<Self, crate::secret::SecretError> {
        let mut bytes = LockedBytes::zeroed(source.len())?;
        bytes.as_mut_slice().copy_from_slice(source);
        Ok(Self(bytes))
    }

    /// The bytes, for an answer or a cipher.
    pub(crate) fn expose(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.expose(), &STANDARD))
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = Zeroizing::new(STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)?);
        Self::copy_from(&bytes).map_err(D::Error::custom)
    }
}

/// A grant token: neither printed nor logged, wiped on drop.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Token(#[serde(with = "text")] pub(crate) Zeroizing<String>);

/// Text that is wiped on drop.
pub(crate) mod text {
    use super::{Deserialize, Deserializer, Serializer, Zeroizing};

    pub(crate) fn serialize<S: Serializer>(
        text: &Zeroizing<String>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Zeroizing<String>, D::Error> {
        String::deserialize(deserializer).map(Zeroizing::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_and_secrets_are_base64() {
        assert_eq!(serde_json::to_string(&Blob(vec![0, 1, 255])).expect("json"), "\"AAH/\"");
        assert_eq!(serde_json::from_str::<Blob>("\"AAH/\"").expect("json").0, [0, 1, 255]);
        assert!(serde_json::from_str::<Blob>("\"A\"").is_err());
        let secret: Secret = serde_json::from_str("\"AAH/\"").expect("json");
        assert_eq!(secret.expose(), [0, 1, 255]);
        assert_eq!(serde_json::to_string(&secret).expect("json"), "\"AAH/\"");
    }
}

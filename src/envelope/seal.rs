//! What proves that an envelope belongs to its data key.

use aws_lc_rs::hkdf::{self, HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::hmac::{self, HMAC_SHA256};

use crate::hex;
use crate::secret::{DataKey, LockedBytes, SecretError, equal};

/// 32 bytes derived from the data key (HKDF-SHA-256, RFC 5869). They authenticate the envelope (HMAC-SHA-256) and
/// stand in for the data key where two wrapped keys are to be compared after the raw key has been wiped; the data
/// key cannot be computed from them.
pub struct SealKey(LockedBytes);

/// So that no other use of the data key could derive the same bytes.
const SALT: &[u8] = b"sealblk envelope seal, version 1";

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        SealKey::LEN
    }
}

impl SealKey {
    const LEN: usize = 32;

    /// Derives the seal key of a data key.
    ///
    /// # Errors
    /// [`SecretError::Lock`] without lockable memory.
    pub fn derive(key: &DataKey) -> Result<Self, SecretError> {
        let mut bytes = LockedBytes::zeroed(Self::LEN)?;
        let extracted: hkdf::Prk = Salt::new(HKDF_SHA256, SALT).extract(key.expose());
        let filled = extracted.expand(&[], Length).and_then(|okm| okm.fill(bytes.as_mut_slice()));
        // It fails for lengths over 255 hashes only.
        filled.unwrap_or_else(|_| unreachable!("32 bytes are one hash"));
        Ok(Self(bytes))
    }

    /// The MAC of `text`, as hexadecimal digits.
    pub(super) fn mac(&self, text: &[u8]) -> String {
        hex::encode(hmac::sign(&hmac::Key::new(HMAC_SHA256, self.0.as_slice()), text).as_ref())
    }

    /// True if both come from the same data key; takes the same time whatever they hold.
    pub fn is_same(&self, other: &Self) -> bool {
        equal(self.0.as_slice(), other.0.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(first: u8) -> SealKey {
        let key: Vec<u8> = (first..first + 64).collect();
        SealKey::derive(&DataKey::copy_from(&key).unwrap()).unwrap()
    }

    #[test]
    fn the_derivation_stays_what_it_is() {
        // Python: hmac.new(HKDF(SHA256, 32, salt, b"").derive(bytes(range(64))), b"text", "sha256").hexdigest()
        assert_eq!(seal(0).mac(b"text"), "3bbc27878eaab68868b4eba86918303e371003dba15460d318614457cb9101be");
    }

    #[test]
    fn different_keys_differ() {
        assert!(seal(0).is_same(&seal(0)));
        assert!(!seal(0).is_same(&seal(1)));
        assert_ne!(seal(0).mac(b"text"), seal(1).mac(b"text"));
        assert_ne!(seal(0).mac(b"text"), seal(0).mac(b"Text"));
    }
}

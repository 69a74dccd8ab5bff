//! Grant tokens: a grant's name, authenticated by a secret of the state directory, so none needs to be kept.
//!
//! base64url of key id (16 bytes), grant id (32), nonce (16) and HMAC-SHA-256 (32) over the first three.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::failure::Failure;
use super::record::{MaterialId, random};
use super::wire::Token;
use crate::secret::LockedBytes;

const NONCE: usize = 16;
const SIGNED: usize = 16 + MaterialId::LEN + NONCE;

/// Length of the directory's secret in bytes.
pub(crate) const SECRET: usize = 32;
/// Most tokens in one call (AWS KMS API reference, GrantTokens).
pub(crate) const MAX_TOKENS: usize = 10;

/// The grant that a genuine token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) key: Uuid,
    pub(crate) grant: MaterialId,
}

impl Named {
    /// A fresh token; each is as good as the next.
    ///
    /// # Errors
    /// KMSInternalException if the system gives no random bytes.
    pub(crate) fn issue(&self, secret: &LockedBytes) -> Result<Token, Failure> {
        let mut nonce = [0; NONCE];
        random(&mut nonce)?;
        let signed = [&self.key.as_bytes()[..], self.grant.as_bytes(), &nonce].concat();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_slice()), &signed);
        Ok(Token(Zeroizing::new(URL_SAFE_NO_PAD.encode([&signed, tag.as_ref()].concat()))))
    }

    /// Reads a token.
    ///
    /// # Errors
    /// InvalidGrantTokenException for one that was not issued with this secret.
    pub(crate) fn verify(token: &Token, secret: &LockedBytes) -> Result<Self, Failure> {
        let bytes = URL_SAFE_NO_PAD.decode(token.0.as_bytes()).map_err(|_| invalid())?;
        let (signed, tag) = bytes.split_first_chunk::<SIGNED>().ok_or_else(invalid)?;
        hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret.as_slice()), signed, tag)
            .map_err(|_| invalid())?;
        let (key, rest) = signed.split_first_chunk::<16>().ok_or_else(invalid)?;
        let (grant, _) = rest.split_first_chunk::<{ MaterialId::LEN }>().ok_or_else(invalid)?;
        Ok(Self { key: Uuid::from_bytes(*key), grant: MaterialId::from_bytes(*grant) })
    }
}

/// Not a token of this directory, or one whose grant has ended.
pub(crate) fn invalid() -> Failure {
    Failure::new("InvalidGrantTokenException", "The specified grant token is not valid.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(fill: u8) -> LockedBytes {
        let mut bytes = LockedBytes::zeroed(SECRET).expect("lockable memory");
        bytes.as_mut_slice().fill(fill);
        bytes
    }

    #[test]
    fn tokens_differ_and_all_hold() {
        let named = Named { key: Uuid::from_bytes([1; 16]), grant: MaterialId::from_bytes([2; 32]) };
        let (one, two) = (named.issue(&secret(1)).expect("issued"), named.issue(&secret(1)).expect("issued"));
        assert_ne!(*one.0, *two.0);
        for token in [one, two] {
            assert_eq!(Named::verify(&token, &secret(1)).ok(), Some(named));
            assert!(Named::verify(&token, &secret(2)).is_err());
        }
    }

    #[test]
    fn no_changed_character_passes() {
        let named = Named { key: Uuid::from_bytes([1; 16]), grant: MaterialId::from_bytes([2; 32]) };
        let good = named.issue(&secret(1)).expect("issued");
        for at in 0..good.0.len() {
            let mut bad = good.0.as_bytes().to_vec();
            bad[at] = if bad[at] == b'A' { b'B' } else { b'A' };
            let bad = Token(Zeroizing::new(String::from_utf8(bad).expect("ASCII")));
            assert!(Named::verify(&bad, &secret(1)).is_err(), "character {at}");
        }
        for bad in ["", "x", &good.0[4..]] {
            assert!(Named::verify(&Token(Zeroizing::new(bad.into())), &secret(1)).is_err());
        }
    }
}

//! Ciphertext blobs: AES-256-GCM under one of a key's materials.
//!
//! A blob names its key and material, so it opens without being told them:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 1 |
//! | 16 | key id |
//! | 32 | material id |
//! | 12 | nonce, random |
//! | n | ciphertext |
//! | 16 | tag |
//!
//! The associated data is the first 49 bytes and the encryption context. Random 96-bit nonces are good for 2^32
//! blobs under one material (NIST SP 800-38D, 8.3); rotation starts a new count.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use uuid::Uuid;

use super::failure::Failure;
use super::pairs::Pairs;
use super::record::{MaterialId, random};
use super::wire::Secret;
use crate::secret::LockedBytes;

const VERSION: u8 = 1;
const HEADER: usize = 1 + 16 + MaterialId::LEN;
const NONCE: usize = 12;
const TAG: usize = 16;

/// Longest plaintext in bytes (AWS KMS API reference, Encrypt).
pub(crate) const MAX_PLAINTEXT: usize = 4096;
/// Longest blob that is looked at (AWS KMS API reference, CiphertextBlob).
pub(crate) const MAX_BLOB: usize = 6144;

/// Which key and material a blob is under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) key: Uuid,
    pub(crate) material: MaterialId,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        [&[VERSION], &self.key.as_bytes()[..], self.material.as_bytes()].concat()
    }

    fn associated_data(&self, context: &Pairs) -> Aad<Vec<u8>> {
        let mut bytes = self.encode();
        context.encode(&mut bytes);
        Aad::from(bytes)
    }

    /// Encrypts `plaintext` under `material`, which is the one that the header names.
    ///
    /// # Errors
    /// KMSInternalException without lockable memory or random bytes.
    pub(crate) fn seal(
        &self,
        material: &LockedBytes,
        context: &Pairs,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let mut in_place = Secret::copy_from(plaintext).map_err(Failure::memory)?;
        let mut nonce = [0; NONCE];
        random(&mut nonce)?;
        let tag = cipher(material)?
            .seal_in_place_separate_tag(
                Nonce::from(&nonce),
                self.associated_data(context),
                in_place.0.as_mut_slice(),
            )
            .map_err(|_| Failure::internal("encryption failed"))?;
        Ok([&self.encode(), &nonce[..], in_place.expose(), tag.as_ref()].concat())
    }
}

/// A blob whose form is right; whether it is genuine shows when it is opened.
#[derive(Debug)]
pub(crate) struct Sealed<'a> {
    /// What it is under.
    pub(crate) header: Header,
    nonce: [u8; NONCE],
    ciphertext: &'a [u8],
}

impl<'a> Sealed<'a> {
    /// Takes a blob apart; `None` for what cannot be one.
    pub(crate) fn parse(blob: &'a [u8]) -> Option<Self> {
        let (header, rest) = blob.split_first_chunk::<HEADER>()?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE>()?;
        let (version, ids) = header.split_first()?;
        let (key, material) = ids.split_first_chunk::<16>()?;
        if *version != VERSION || ciphertext.len() < TAG || ciphertext.len() - TAG > MAX_PLAINTEXT {
            return None;
        }
        let material = MaterialId::from_bytes(material.try_into().ok()?);
        Some(Self { header: Header { key: Uuid::from_bytes(*key), material }, nonce: *nonce, ciphertext })
    }

    /// Decrypts with `material`, which is the one that the header names.
    ///
    /// # Errors
    /// InvalidCiphertextException if blob, material and context do not belong together.
    pub(crate) fn open(&self, material: &LockedBytes, context: &Pairs) -> Result<Secret, Failure> {
        let mut in_place = Secret::copy_from(self.ciphertext).map_err(Failure::memory)?;
        let nonce = Nonce::from(&self.nonce);
        let opened = cipher(material)?
            .open_in_place(nonce, self.header.associated_data(context), in_place.0.as_mut_slice())
            .map_err(|_| invalid_ciphertext())?;
        Secret::copy_from(opened).map_err(Failure::memory)
    }
}

/// AWS KMS says no more than the code here, so as not to tell what was wrong; neither does this.
pub(crate) fn invalid_ciphertext() -> Failure {
    Failure::new(
        "InvalidCiphertextException",
        "The ciphertext is damaged, or its encryption context is not the one given.",
    )
}

fn cipher(material: &LockedBytes) -> Result<LessSafeKey, Failure> {
    UnboundKey::new(&AES_256_GCM, material.as_slice())
        .map(LessSafeKey::new)
        .map_err(|_| Failure::internal("the key material is not 32 bytes long"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::pairs::pairs;
    use super::*;

    fn material(fill: u8) -> LockedBytes {
        let mut bytes = LockedBytes::zeroed(32).expect("lockable memory");
        bytes.as_mut_slice().fill(fill);
        bytes
    }

    fn header() -> Header {
        Header { key: Uuid::from_bytes([1; 16]), material: MaterialId::from_bytes([2; 32]) }
    }

    fn blob(plaintext: &[u8]) -> Vec<u8> {
        header().seal(&material(7), &pairs(&[("ab", "c")]), plaintext).expect("sealed")
    }

    fn open(blob: &[u8], with: u8, context: &Pairs) -> Result<Vec<u8>, Failure> {
        let sealed = Sealed::parse(blob).ok_or_else(invalid_ciphertext)?;
        sealed.open(&material(with), context).map(|secret| secret.expose().to_vec())
    }

    #[test]
    fn opens_with_its_material_and_context_only() {
        let blob = blob(b"secret");
        let context = pairs(&[("ab", "c")]);
        assert_eq!(open(&blob, 7, &context).expect("opens"), b"secret");
        assert_eq!(Sealed::parse(&blob).expect("parses").header, header());
        assert!(open(&blob, 8, &context).is_err());
        for wrong in
            [pairs(&[]), pairs(&[("a", "bc")]), pairs(&[("AB", "c")]), pairs(&[("ab", "c"), ("d", "")])]
        {
            assert_eq!(open(&blob, 7, &wrong).expect_err("refused").code(), "InvalidCiphertextException");
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let good = blob(&[9; 64]);
        let context = pairs(&[("ab", "c")]);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&bad, 7, &context).is_err(), "bit {bit}");
        }
        for end in 0..good.len() {
            assert!(open(&good[..end], 7, &context).is_err(), "cut to {end}");
        }
    }

    #[test]
    fn the_longest_plaintext_fits() {
        let blob = blob(&[1; MAX_PLAINTEXT]);
        assert!(blob.len() <= MAX_BLOB, "{}", blob.len());
        assert_eq!(open(&blob, 7, &pairs(&[("ab", "c")])).expect("opens").len(), MAX_PLAINTEXT);
        assert_ne!(blob, self::blob(&[1; MAX_PLAINTEXT]), "a fresh nonce each time");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(mut bytes: Vec<u8>, versioned: bool) {
            if versioned && !bytes.is_empty() { bytes[0] = VERSION; }
            let _ = Sealed::parse(&bytes);
        }
    }
}

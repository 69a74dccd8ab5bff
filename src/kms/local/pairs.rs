//! Encryption contexts as the API takes them: string pairs, larger than what a grant constraint holds.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::failure::Failure;
use crate::kms::EncryptionContext;

/// An encryption context of a request or a constraint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Pairs(BTreeMap<String, String>);

impl Pairs {
    /// Most bytes in keys and values together. AWS KMS limits the encoded context to 8192 bytes.
    const MAX_BYTES: usize = 8192;

    /// The pairs, ordered by key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    /// True without a pair. Such a context is the same as none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends the one encoding of these pairs: their number, then each key and value behind its length, ordered
    /// by key; all numbers are 32-bit big-endian. No two contexts share an encoding.
    pub(crate) fn encode(&self, to: &mut Vec<u8>) {
        to.extend(length(self.0.len()));
        for text in self.0.iter().flat_map(|(key, value)| [key, value]) {
            to.extend(length(text.len()));
            to.extend(text.as_bytes());
        }
    }

    /// True if each of these pairs is in `context`: keys compared without regard to case, values exactly
    /// (AWS KMS API reference, GrantConstraints).
    pub(crate) fn is_subset_of(&self, context: &Self) -> bool {
        self.0.iter().all(|(key, value)| {
            let key = key.to_lowercase();
            context.0.iter().any(|(other, found)| other.to_lowercase() == key && found == value)
        })
    }

    /// As [`Pairs::is_subset_of`], and `context` has no other pair.
    pub(crate) fn equals(&self, context: &Self) -> bool {
        self.0.len() == context.0.len() && self.is_subset_of(context)
    }

    /// Checks a context of a cryptographic operation.
    ///
    /// # Errors
    /// ValidationException for one that is too long.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let bytes: usize = self.0.iter().map(|(key, value)| key.len() + value.len()).sum();
        if bytes > Self::MAX_BYTES {
            return Err(Failure::validation(format!(
                "EncryptionContext must be no longer than {} bytes",
                Self::MAX_BYTES
            )));
        }
        Ok(())
    }

    /// Checks a context of a grant constraint.
    ///
    /// # Errors
    /// ValidationException over [`EncryptionContext`]'s limits, which are a constraint's.
    pub(crate) fn check_constraint(&self) -> Result<(), Failure> {
        let mut context = EncryptionContext::default();
        self.0
            .iter()
            .try_for_each(|(key, value)| context.insert(key, value))
            .map_err(|error| Failure::validation(format!("Invalid grant constraint: {error}")))
    }
}

impl From<&EncryptionContext> for Pairs {
    fn from(context: &EncryptionContext) -> Self {
        Self(context.pairs().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

/// Lengths are far below 2^32: a request is at most some hundred kilobytes long.
fn length(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
pub(crate) fn pairs(pairs: &[(&str, &str)]) -> Pairs {
    Pairs(pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect())
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::prelude::*;

    use super::*;

    fn encoded(pairs: &Pairs) -> Vec<u8> {
        let mut bytes = Vec::new();
        pairs.encode(&mut bytes);
        bytes
    }

    #[test]
    fn the_encoding_tells_apart_what_concatenation_does_not() {
        assert_ne!(encoded(&pairs(&[("ab", "c")])), encoded(&pairs(&[("a", "bc")])));
        assert_ne!(encoded(&pairs(&[("a", "")])), encoded(&pairs(&[])));
        assert_eq!(encoded(&pairs(&[("b", "1"), ("a", "2")])), encoded(&pairs(&[("a", "2"), ("b", "1")])));
    }

    #[test]
    fn constraints_ignore_the_case_of_keys_alone() {
        let context = pairs(&[("Team", "Data"), ("job", "7")]);
        assert!(pairs(&[("team", "Data")]).is_subset_of(&context));
        assert!(!pairs(&[("team", "data")]).is_subset_of(&context));
        assert!(!pairs(&[("team", "Data")]).equals(&context));
        assert!(pairs(&[("TEAM", "Data"), ("JOB", "7")]).equals(&context));
        assert!(pairs(&[]).is_subset_of(&context));
    }

    #[test]
    fn constraints_hold_8_pairs_and_384_characters() {
        let many = |n: usize| Pairs((0..n).map(|i| (format!("k{i}"), String::new())).collect());
        assert!(many(8).check_constraint().is_ok());
        assert!(many(9).check_constraint().is_err());
        assert!(pairs(&[("k", &"v".repeat(383))]).check_constraint().is_ok());
        assert!(pairs(&[("k", &"v".repeat(384))]).check_constraint().is_err());
        assert!(pairs(&[("k", &"v".repeat(384))]).check().is_ok());
        assert!(pairs(&[("k", &"v".repeat(8192))]).check().is_err());
    }

    proptest! {
        // Few letters and short texts, so that near misses are common.
        #[test]
        fn the_encoding_is_injective(
            a in btree_map("[ab]{0,3}", "[ab]{0,3}", 0..3),
            b in btree_map("[ab]{0,3}", "[ab]{0,3}", 0..3),
        ) {
            let (a, b) = (Pairs(a), Pairs(b));
            prop_assert_eq!(a == b, encoded(&a) == encoded(&b));
        }
    }
}

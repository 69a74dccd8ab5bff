//! The encryption context: what a wrapped key is bound to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// String pairs that stand in the wrapped key's associated data, in the grant's constraint and, in clear, in the
/// KMS's event log. At most 8 pairs and 384 characters, the most a grant constraint holds (AWS KMS, CreateGrant).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EncryptionContext(BTreeMap<String, String>);

/// Why a context was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// A pair is not of the form `key=value`.
    #[error("encryption context {0:?} is not of the form key=value")]
    Form(String),
    /// An empty key.
    #[error("an encryption context key is empty")]
    EmptyKey,
    /// A key with a prefix that is not the user's to use.
    #[error("encryption context key {0:?} has a reserved prefix (aws: and sealblk: are not yours to use)")]
    Reserved(String),
    /// Two keys that a grant constraint does not tell apart.
    #[error(
        "encryption context keys {0:?} and {1:?} differ by nothing but case, which grants do not tell apart"
    )]
    SameButForCase(String, String),
    /// Too many pairs.
    #[error("the encryption context has {0} pairs, sealblk's own two included; a grant holds at most 8")]
    Pairs(usize),
    /// Too many characters.
    #[error(
        "the encryption context has {0} characters in keys and values, sealblk's own included; a grant holds at most 384"
    )]
    Characters(usize),
}

impl EncryptionContext {
    /// Most pairs.
    pub const MAX_PAIRS: usize = 8;
    /// Most characters in all keys and values together.
    pub const MAX_CHARACTERS: usize = 384;
    /// Prefixes that users may not use.
    const RESERVED: [&'static str; 2] = ["aws:", "sealblk:"];

    /// Adds `key=value`.
    ///
    /// # Errors
    /// [`ContextError::EmptyKey`], [`ContextError::SameButForCase`] (also for a key given twice),
    /// [`ContextError::Pairs`] or [`ContextError::Characters`].
    pub fn insert(&mut self, key: &str, value: &str) -> Result<(), ContextError> {
        if key.is_empty() {
            return Err(ContextError::EmptyKey);
        }
        if let Some(known) = self.0.keys().find(|known| known.to_lowercase() == key.to_lowercase()) {
            return Err(ContextError::SameButForCase(known.clone(), key.into()));
        }
        let pairs = self.0.len() + 1;
        if pairs > Self::MAX_PAIRS {
            return Err(ContextError::Pairs(pairs));
        }
        let characters = self.characters() + key.chars().count() + value.chars().count();
        if characters > Self::MAX_CHARACTERS {
            return Err(ContextError::Characters(characters));
        }
        self.0.insert(key.into(), value.into());
        Ok(())
    }

    /// Adds what a user wrote: `key=value`, or Spark's form `key1:value1,key2:value2`.
    ///
    /// # Errors
    /// As [`EncryptionContext::insert`], and [`ContextError::Form`] or [`ContextError::Reserved`].
    pub fn insert_text(&mut self, text: &str) -> Result<(), ContextError> {
        if let Some((key, value)) = text.split_once('=') {
            return self.insert_pair(key, value);
        }
        for pair in text.split(',') {
            let (key, value) = pair.split_once(':').ok_or_else(|| ContextError::Form(pair.into()))?;
            self.insert_pair(key.trim(), value.trim())?;
        }
        Ok(())
    }

    /// The same pairs, checked as a user's are: for those that were read from a file.
    ///
    /// # Errors
    /// As [`EncryptionContext::insert_text`].
    pub fn checked(&self) -> Result<Self, ContextError> {
        let mut checked = Self::default();
        self.pairs().try_for_each(|(key, value)| checked.insert_pair(key, value))?;
        Ok(checked)
    }

    /// Adds a user's pair.
    ///
    /// # Errors
    /// As [`EncryptionContext::insert`], and [`ContextError::Reserved`].
    pub fn insert_pair(&mut self, key: &str, value: &str) -> Result<(), ContextError> {
        let lower = key.to_lowercase();
        if Self::RESERVED.iter().any(|prefix| lower.starts_with(prefix)) {
            return Err(ContextError::Reserved(key.into()));
        }
        self.insert(key, value)
    }

    fn characters(&self) -> usize {
        self.0.iter().map(|(key, value)| key.chars().count() + value.chars().count()).sum()
    }

    /// The pairs, ordered by key.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The same pairs but for the one of `key`.
    #[must_use]
    pub fn without(&self, key: &str) -> Self {
        Self(self.0.iter().filter(|(known, _)| *known != key).map(|(k, v)| (k.clone(), v.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(texts: &[&str]) -> Result<EncryptionContext, ContextError> {
        let mut context = EncryptionContext::default();
        texts.iter().try_for_each(|text| context.insert_text(text))?;
        Ok(context)
    }

    #[test]
    fn both_forms_mean_the_same() {
        assert_eq!(context(&["team=data", "job=7"]), context(&["team:data,job:7"]));
        assert_eq!(context(&["a=b=c"]).expect("fine").pairs().next(), Some(("a", "b=c")));
        assert_eq!(context(&["url=https://x"]).expect("fine").pairs().next(), Some(("url", "https://x")));
    }

    #[test]
    fn bad_pairs_are_refused() {
        assert_eq!(context(&["lonely"]), Err(ContextError::Form("lonely".into())));
        assert_eq!(context(&["=x"]), Err(ContextError::EmptyKey));
        assert_eq!(context(&["aws:ebs:id=x"]), Err(ContextError::Reserved("aws:ebs:id".into())));
        assert_eq!(context(&["AWS:x=y"]), Err(ContextError::Reserved("AWS:x".into())));
        assert_eq!(context(&["sealblk:volume=y"]), Err(ContextError::Reserved("sealblk:volume".into())));
        assert_eq!(
            context(&["Team=a", "team=b"]),
            Err(ContextError::SameButForCase("Team".into(), "team".into()))
        );
    }

    #[test]
    fn the_limits_are_those_of_a_grant() {
        let nine: Vec<String> = (0..9).map(|i| format!("k{i}=v")).collect();
        let nine: Vec<&str> = nine.iter().map(String::as_str).collect();
        assert!(context(&nine[..8]).is_ok());
        assert_eq!(context(&nine), Err(ContextError::Pairs(9)));
        assert!(context(&[&format!("k={}", "é".repeat(383))]).is_ok());
        assert_eq!(context(&[&format!("k={}", "é".repeat(384))]), Err(ContextError::Characters(385)));
    }
}

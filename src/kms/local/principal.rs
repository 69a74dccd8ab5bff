//! Who may call the embedded KMS. What each may do is in its policy.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::failure::Failure;
use super::record::random;

/// One of the embedded principals. Every state directory has all four.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrincipalName {
    /// May do everything.
    Admin,
    /// Makes wrapped keys and grants; never sees a data key.
    Provisioner,
    /// May do nothing but what a grant gives it.
    Host,
    /// May look at everything but data.
    Auditor,
}

impl PrincipalName {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Provisioner, Self::Host, Self::Auditor];

    /// The user name, as in the ARN.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Provisioner => "provisioner",
            Self::Host => "host",
            Self::Auditor => "auditor",
        }
    }
}

impl fmt::Display for PrincipalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A principal with its credentials: an IAM user, since those have lasting access keys.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PrincipalRecord {
    pub(crate) name: PrincipalName,
    pub(crate) arn: String,
    pub(crate) principal_id: String,
    pub(crate) access_key_id: String,
    #[serde(with = "super::wire::text")]
    pub(crate) secret_access_key: Zeroizing<String>,
    #[serde(with = "time::serde::timestamp::milliseconds")]
    pub(crate) created: OffsetDateTime,
}

impl PrincipalRecord {
    /// A principal of `account` with new credentials.
    ///
    /// # Errors
    /// KMSInternalException if the system gives no random bytes.
    pub(crate) fn new(name: PrincipalName, account: &str, created: OffsetDateTime) -> Result<Self, Failure> {
        let mut secret = Zeroizing::new([0; 30]);
        random(&mut *secret)?;
        Ok(Self {
            name,
            arn: format!("arn:aws:iam::{account}:user/{name}"),
            principal_id: unique_id("AIDA")?,
            access_key_id: unique_id("AKIA")?,
            secret_access_key: Zeroizing::new(STANDARD.encode(secret.as_slice())),
            created,
        })
    }
}

/// An IAM unique id: a prefix that tells the kind and 16 characters of base 32.
fn unique_id(prefix: &str) -> Result<String, Failure> {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    let characters = bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)]));
    Ok(prefix.chars().chain(characters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_have_the_form_of_awss() {
        let record = PrincipalRecord::new(PrincipalName::Host, "123456789012", OffsetDateTime::UNIX_EPOCH);
        let record = record.expect("random");
        assert_eq!(record.arn, "arn:aws:iam::123456789012:user/host");
        assert_eq!((record.access_key_id.len(), record.secret_access_key.len()), (20, 40));
        assert!(record.access_key_id.starts_with("AKIA"));
    }
}

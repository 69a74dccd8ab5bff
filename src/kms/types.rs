//! The vocabulary of [`KeyService`](super::KeyService).

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{ErrorClass, KmsError};

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Takes the text as it is; the service judges it.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text! {
    /// A KMS key as a user names it: key id, key ARN, `alias/NAME` or alias ARN.
    KeyRef
}
text! {
    /// A KMS key's ARN. Aliases may be moved to another key, so only this is stored and named in calls.
    KeyArn
}
text! {
    /// A principal's ARN: account, user or role.
    Principal
}

impl KeyArn {
    /// The region in the ARN; empty for what is no ARN.
    pub fn region(&self) -> &str {
        self.0.split(':').nth(3).unwrap_or_default()
    }
}

impl From<&KeyArn> for KeyRef {
    fn from(arn: &KeyArn) -> Self {
        Self(arn.0.clone())
    }
}

/// What a service can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// The service keeps the context in its associated data, so a wrong one cannot unwrap.
    pub binds_context: bool,
    /// The service has grants, so a host needs no other right.
    pub grants: bool,
    /// Longest wrapped key in bytes.
    pub max_wrapped: usize,
}

/// The principals of a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parties {
    /// May unwrap.
    pub grantee: Principal,
    /// May end the grant.
    pub retiring: Principal,
}

/// State of a KMS key (AWS KMS developer guide, "Key states").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyState {
    /// Usable.
    Enabled,
    /// Disabled by its owner.
    Disabled,
    /// Waits for its deletion; nothing is unwrapped meanwhile.
    PendingDeletion,
    /// Has no key material yet.
    PendingImport,
    /// Its key store cannot be reached.
    Unavailable,
    /// Another state, by its name.
    #[serde(untagged)]
    Other(String),
}

impl KeyState {
    /// The state's name as AWS KMS writes it.
    pub fn name(&self) -> &str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
            Self::PendingImport => "PendingImport",
            Self::Unavailable => "Unavailable",
            Self::Other(name) => name,
        }
    }

    /// Reads the name that AWS KMS writes.
    pub fn from_name(name: &str) -> Self {
        match name {
            "Enabled" => Self::Enabled,
            "Disabled" => Self::Disabled,
            "PendingDeletion" => Self::PendingDeletion,
            "PendingImport" => Self::PendingImport,
            "Unavailable" => Self::Unavailable,
            other => Self::Other(other.into()),
        }
    }
}

/// What DescribeKey tells about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyHealth {
    /// The key.
    pub arn: KeyArn,
    /// Its state.
    pub state: KeyState,
    /// Its kind, `SYMMETRIC_DEFAULT` for one that can wrap data keys.
    pub spec: String,
    /// Its use, `ENCRYPT_DECRYPT` for one that can wrap data keys.
    pub usage: String,
    /// Where its material comes from: `AWS_KMS` or `EXTERNAL`; custom key stores make no 64-byte data keys.
    pub origin: String,
    /// `CUSTOMER`, or `AWS` for keys whose grants and policies are not the user's to make.
    pub manager: String,
    /// When it will be deleted, if that is scheduled.
    pub deletion: Option<OffsetDateTime>,
    /// Its newest key material, where the service tells.
    pub material: Option<String>,
}

impl KeyHealth {
    /// Checks that the key can wrap data keys now.
    ///
    /// # Errors
    /// [`ErrorClass::Unusable`], saying what is wrong with the key.
    pub fn require_usable(&self) -> Result<(), KmsError> {
        self.conditions().iter().try_for_each(|condition| self.require(condition))
    }

    /// What has to be true of a key that wraps data keys, one by one.
    pub fn conditions(&self) -> [KeyCondition<'_>; 5] {
        let condition = |what, is, needed| KeyCondition { what, is, needed };
        [
            condition("key state", self.state.name(), &["Enabled"][..]),
            condition("key spec", &self.spec, &["SYMMETRIC_DEFAULT"][..]),
            condition("key usage", &self.usage, &["ENCRYPT_DECRYPT"][..]),
            condition("origin", &self.origin, &["AWS_KMS", "EXTERNAL"][..]),
            condition("key manager", &self.manager, &["CUSTOMER"][..]),
        ]
    }

    /// Checks one of [`KeyHealth::conditions`].
    ///
    /// # Errors
    /// [`ErrorClass::Unusable`], saying what is wrong with the key.
    pub fn require(&self, condition: &KeyCondition<'_>) -> Result<(), KmsError> {
        let KeyCondition { what, is, needed } = condition;
        if needed.contains(is) {
            return Ok(());
        }
        let needed = needed.join(" or ");
        let mut message = format!("its {what} is {is}, and {needed} is needed");
        if let Some(deletion) = self.deletion {
            message.push_str(&format!(" (it will be deleted on {})", deletion.date()));
        }
        Err(KmsError::new("DescribeKey", ErrorClass::Unusable, message).on_key(self.arn.as_str()))
    }
}

/// Something that has to be true of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyCondition<'a> {
    /// What of the key, such as `key state`.
    pub what: &'static str,
    /// What it is.
    pub is: &'a str,
    /// What it may be.
    pub needed: &'static [&'static str],
}

/// A data key wrapped by a KMS key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The key that wrapped it.
    pub key: KeyArn,
    /// The service's opaque bytes, at most 6144. Not secret, and not logged.
    pub blob: Vec<u8>,
    /// Which of the key's materials wrapped it, where the service tells.
    pub material: Option<String>,
}

/// What a grant should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseSpec {
    /// May unwrap.
    pub grantee: Principal,
    /// May end the grant.
    pub retiring: Principal,
    /// Makes a repeated request give the same grant: `[a-zA-Z0-9:/_-]{1,256}`.
    pub name: String,
}

/// A grant that was made.
pub struct Lease {
    /// The grant's id (64 hexadecimal digits).
    pub grant_id: String,
    /// Makes the grant usable at once, before it has reached every host of the service.
    pub token: GrantToken,
}

/// A grant token. Neither printed nor logged; wiped on drop.
pub struct GrantToken(Zeroizing<String>);

impl GrantToken {
    /// Takes a token (1 to 8192 characters; the service judges it).
    pub fn new(token: String) -> Self {
        Self(Zeroizing::new(token))
    }

    /// The token, for a call's parameters only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// What entitles a host to unwrap, as far as the caller knows it; nothing, for one that has the right anyway.
#[derive(Clone, Copy, Default)]
pub struct Permit<'a> {
    /// The grant's token.
    pub token: Option<&'a GrantToken>,
    /// When the grant was made. Without a token, a denial may be that of a grant which has not reached every host of
    /// the service yet, so for five minutes from here on it is not final. A token needs no such time.
    pub made: Option<OffsetDateTime>,
}

impl<'a> From<Option<&'a GrantToken>> for Permit<'a> {
    /// A grant of unknown age.
    fn from(token: Option<&'a GrantToken>) -> Self {
        Self { token, made: None }
    }
}

/// Which grant to end.
pub enum GrantRef<'a> {
    /// By its token, known to whoever made it.
    Token {
        /// The key it is on.
        key: &'a KeyArn,
        /// Its id, for a second try by RevokeGrant.
        grant_id: &'a str,
        /// Its token: ends the grant even before it has reached every host of the service.
        token: &'a GrantToken,
    },
    /// By its id, as a later process knows it.
    Id {
        /// The key it is on.
        key: &'a KeyArn,
        /// Its id.
        grant_id: &'a str,
    },
    /// By its name, for a maker that died before it learnt the id. No such grant counts as ended.
    Name {
        /// The key it is on.
        key: &'a KeyArn,
        /// Its name.
        name: &'a str,
    },
}

/// How a grant ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Released {
    /// RetireGrant succeeded.
    Retired,
    /// RetireGrant was refused, RevokeGrant succeeded.
    Revoked,
    /// There was no such grant any more.
    AlreadyGone,
}

/// The outcome of every check before a volume is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Preflight {
    /// In the order they were made.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// The call that was tried.
    pub call: &'static str,
    /// What came back.
    pub outcome: CheckOutcome,
}

/// What a dry run told.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckOutcome {
    /// The call would succeed.
    Pass,
    /// The call would fail.
    Fail(KmsError),
    /// The service ignores dry runs, so nothing is known; what the call made was undone.
    CannotTell(String),
}

impl Preflight {
    /// # Errors
    /// The first failed check's.
    pub fn require_passed(self) -> Result<(), KmsError> {
        for check in self.checks {
            if let CheckOutcome::Fail(error) = check.outcome {
                return Err(error);
            }
        }
        Ok(())
    }
}

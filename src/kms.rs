//! Key management services: where a data key is made, wrapped and unwrapped.
//!
//! [`KeyService`] is what the rest of the program sees. Behind it stand AWS KMS ([`aws`]) and the embedded KMS
//! ([`local`]), which keeps its keys in a directory and has the same rules: key states, encryption contexts,
//! grants. This is the only module that names an AWS crate.
//!
//! No implementation is called when a client connects, reads or writes: only at a volume's start and end.

pub mod aws;
mod context;
mod error;
pub mod isolate;
pub mod local;
pub mod policy;
mod types;
mod witness;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use context::{ContextError, EncryptionContext};
pub use error::{Attempts, ErrorClass, KmsError};
pub use types::{
    Caps, Check, CheckOutcome, GrantRef, GrantToken, KeyArn, KeyCondition, KeyHealth, KeyRef, KeyState,
    Lease, LeaseSpec, Parties, Permit, Preflight, Principal, Released, WrappedKey,
};
#[cfg(test)]
pub(crate) use witness::Nobody;
pub use witness::{CallRecord, Place, Resource, Witness, whole_seconds};

use crate::secret::DataKey;

/// One key management service, used under one identity.
///
/// Every error is a [`KmsError`] that names the call, the key and, where the service told it, the principal.
/// Every call may be repeated: [`KeyService::lease`] because its grants are named.
#[async_trait]
pub trait KeyService: Send + Sync {
    /// What this service can do.
    fn caps(&self) -> Caps;

    /// The principals that a grant names unless the user says otherwise.
    async fn parties(&self) -> Result<Parties, KmsError>;

    /// Resolves `key` to its ARN and reads its state (DescribeKey). Succeeds for an unusable key as well:
    /// [`KeyHealth::require_usable`] judges.
    async fn health(&self, key: &KeyRef) -> Result<KeyHealth, KmsError>;

    /// Dry runs of [`KeyService::generate`] and [`KeyService::lease`]; makes no lasting state.
    async fn preflight(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        lease: &LeaseSpec,
    ) -> Result<Preflight, KmsError>;

    /// Makes a data key of `length` bytes (1 to 1024) and returns it wrapped; the caller never sees the plaintext
    /// (GenerateDataKeyWithoutPlaintext).
    async fn generate(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        length: u16,
    ) -> Result<WrappedKey, KmsError>;

    /// Gives `spec.grantee` the right to unwrap under a context that holds all of `context` (CreateGrant with
    /// operation Decrypt and EncryptionContextSubset). Repeating it with the same name gives the same grant.
    async fn lease(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        spec: &LeaseSpec,
    ) -> Result<Lease, KmsError>;

    /// Unwraps a 64-byte data key into locked memory (Decrypt, naming the key). The plaintext passes through
    /// memory of this process that is not locked; [`isolate`] keeps that out of the process that serves.
    async fn unwrap(
        &self,
        wrapped: &WrappedKey,
        context: &EncryptionContext,
        permit: Permit<'_>,
    ) -> Result<DataKey, KmsError>;

    /// Wraps a data key that came from another service (Encrypt). As with [`KeyService::unwrap`], the plaintext
    /// passes through memory of this process that is not locked.
    async fn wrap(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        data_key: &DataKey,
    ) -> Result<WrappedKey, KmsError>;

    /// Wraps the same data key under `to`, inside the service (ReEncrypt). With the same key: under its newest
    /// material.
    async fn rewrap(
        &self,
        wrapped: &WrappedKey,
        from: &EncryptionContext,
        to: &KeyArn,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError>;

    /// Ends a grant: RetireGrant, else RevokeGrant. Works in every key state, and a grant that is gone already
    /// counts as ended.
    async fn release(&self, grant: &GrantRef) -> Result<Released, KmsError>;
}

/// Which service, and as whom: enough to open it again in another process. Holds no credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "provider", rename_all = "lowercase", deny_unknown_fields)]
pub enum Provider {
    /// The embedded KMS.
    Local {
        /// Its state directory.
        directory: PathBuf,
    },
    /// AWS KMS, or what speaks its protocol.
    Aws(aws::Settings),
}

/// Kind of a key management service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderKind {
    /// The embedded KMS.
    Local,
    /// AWS KMS, or what speaks its protocol.
    Aws,
}

impl ProviderKind {
    /// As `--kms` and documents spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Aws => "aws",
        }
    }
}

impl std::fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Provider {
    /// Its kind.
    pub fn kind(&self) -> ProviderKind {
        match self {
            Self::Local { .. } => ProviderKind::Local,
            Self::Aws(_) => ProviderKind::Aws,
        }
    }

    /// The same, in the region of `key` if that is an ARN.
    #[must_use]
    pub fn for_key(self, key: &str) -> Self {
        let region = KeyArn::new(key).region().to_owned();
        match self {
            Self::Aws(settings) if !region.is_empty() => {
                Self::Aws(aws::Settings { region: Some(region), ..settings })
            }
            other => other,
        }
    }

    /// True if both reach the same service in the same region, so that it can wrap anew what it wrapped itself.
    pub fn is_same_service(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Local { directory: one }, Self::Local { directory: other }) => one == other,
            (Self::Aws(one), Self::Aws(other)) => {
                one.endpoint == other.endpoint && one.region == other.region
            }
            (Self::Local { .. } | Self::Aws(_), _) => false,
        }
    }

    /// Longest time that a call may take with all its retries, once repeated without a token that was refused.
    pub fn patience(&self) -> Duration {
        match self {
            Self::Local { .. } => Duration::from_secs(30),
            Self::Aws(settings) => 2 * settings.deadline(),
        }
    }

    /// Opens the service under `role`'s identity; `witness` is told of each call. Makes the embedded KMS's directory
    /// if it is missing; calls no network.
    ///
    /// # Errors
    /// [`ErrorClass::Config`] for settings that cannot work, [`ErrorClass::Storage`] for a state directory that
    /// cannot be used.
    pub async fn open(&self, role: Role, witness: Arc<dyn Witness>) -> Result<Arc<dyn KeyService>, KmsError> {
        Ok(match self {
            Self::Local { directory } => {
                let directory = directory.clone();
                // It waits for the directory's lock.
                let opened =
                    tokio::task::spawn_blocking(move || local::LocalKms::open(&directory, role, witness))
                        .await;
                Arc::new(opened.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
            }
            Self::Aws(settings) => Arc::new(aws::AwsKms::open(settings, role, witness).await?),
        })
    }
}

/// On whose behalf a service is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Makes wrapped keys and grants; never unwraps.
    Provisioner,
    /// Unwraps through its grant and has no other right.
    Host,
}

impl Role {
    /// The role's name, as records have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Provisioner => "provisioner",
            Self::Host => "host",
        }
    }
}

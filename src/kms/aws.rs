//! AWS KMS through the AWS SDK.
//!
//! A `session` is one identity's client, configured by a `connector`, and makes every call. One file per group of
//! calls stands on it: `health`, `data_key`, `grant`, `preflight`, `identity`. `failure` is the only place that
//! reads the SDK's errors, `retry` the only one that decides about retries, `endpoint` the only one that decides
//! where requests go, `record` the one that tells the witness of every attempt.
//!
//! What the environment may decide: credentials, profile, region, proxy, FIPS and dual-stack endpoints. What it
//! may not: the address of KMS (`AWS_ENDPOINT_URL*`, `endpoint_url` of a profile), because whoever sets it would
//! be handed the calls, unseen.

mod connector;
mod data_key;
mod endpoint;
mod failure;
mod grant;
mod health;
mod identity;
mod preflight;
mod record;
mod retry;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use self::connector::Connector;
use self::session::Session;
use super::{
    Caps, EncryptionContext, GrantRef, KeyArn, KeyHealth, KeyRef, KeyService, KmsError, Lease, LeaseSpec,
    Parties, Permit, Preflight, Released, Role, Witness, WrappedKey,
};
use crate::secret::DataKey;

/// Longest wrapped key in bytes (API reference, Decrypt, CiphertextBlob).
const MAX_WRAPPED: usize = 6144;

/// How AWS KMS is reached. Holds no credentials: those come from the SDK's default chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Region; without it, what the SDK's default chain finds.
    pub region: Option<String>,
    /// KMS endpoint instead of the region's own: `https://...`, or `http://` to a loopback address.
    pub endpoint: Option<String>,
    /// STS endpoint (for the caller's identity); without it, the KMS endpoint if that is loopback, else the region's own.
    pub sts_endpoint: Option<String>,
    /// Profile of the shared configuration files for the provisioner's calls.
    pub provisioner_profile: Option<String>,
    /// Profile of the shared configuration files for the host's call (Decrypt).
    pub host_profile: Option<String>,
    /// Seconds for one attempt of a call; 10 if not given.
    pub attempt_timeout: Option<u64>,
    /// Seconds for a call with all its retries; 60 if not given.
    pub deadline: Option<u64>,
}

impl Settings {
    fn profile(&self, role: Role) -> Option<&str> {
        match role {
            Role::Provisioner => self.provisioner_profile.as_deref(),
            Role::Host => self.host_profile.as_deref(),
        }
    }

    fn attempt_timeout(&self) -> Duration {
        Duration::from_secs(self.attempt_timeout.unwrap_or(10))
    }

    pub(super) fn deadline(&self) -> Duration {
        Duration::from_secs(self.deadline.unwrap_or(60))
    }
}

/// AWS KMS under one identity.
pub struct AwsKms {
    session: Session,
}

impl AwsKms {
    /// Reads the SDK's configuration for `role`; `witness` is told of each attempt of each call. Calls neither KMS nor STS; without a region in `settings`, in the
    /// environment or in the profile, the instance metadata service is asked for one.
    ///
    /// # Errors
    /// [`ErrorClass::Config`](super::ErrorClass::Config) without a region, or for an endpoint that may not be used.
    pub async fn open(settings: &Settings, role: Role, witness: Arc<dyn Witness>) -> Result<Self, KmsError> {
        Self::connect(Connector::new(settings.clone()), role, witness).await
    }

    async fn connect(connector: Connector, role: Role, witness: Arc<dyn Witness>) -> Result<Self, KmsError> {
        Ok(Self { session: Session::open(connector, role, witness).await? })
    }
}

#[async_trait]
impl KeyService for AwsKms {
    fn caps(&self) -> Caps {
        Caps { binds_context: true, grants: true, max_wrapped: MAX_WRAPPED }
    }

    async fn parties(&self) -> Result<Parties, KmsError> {
        identity::parties(&self.session).await
    }

    async fn health(&self, key: &KeyRef) -> Result<KeyHealth, KmsError> {
        health::describe(&self.session, key).await
    }

    async fn preflight(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        lease: &LeaseSpec,
    ) -> Result<Preflight, KmsError> {
        Ok(preflight::run(&self.session, key, context, lease).await)
    }

    async fn generate(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        length: u16,
    ) -> Result<WrappedKey, KmsError> {
        data_key::generate(&self.session, key, context, length).await
    }

    async fn lease(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        spec: &LeaseSpec,
    ) -> Result<Lease, KmsError> {
        grant::create(&self.session, key, context, spec).await
    }

    async fn unwrap(
        &self,
        wrapped: &WrappedKey,
        context: &EncryptionContext,
        permit: Permit<'_>,
    ) -> Result<DataKey, KmsError> {
        data_key::unwrap(&self.session, wrapped, context, permit).await
    }

    async fn wrap(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        data_key: &DataKey,
    ) -> Result<WrappedKey, KmsError> {
        data_key::wrap(&self.session, key, context, data_key).await
    }

    async fn rewrap(
        &self,
        wrapped: &WrappedKey,
        from: &EncryptionContext,
        to: &KeyArn,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        data_key::rewrap(&self.session, wrapped, from, to, context).await
    }

    async fn release(&self, grant: &GrantRef) -> Result<Released, KmsError> {
        grant::release(&self.session, grant).await
    }
}

/// A context as the SDK wants it.
fn pairs(context: &EncryptionContext) -> std::collections::HashMap<String, String> {
    context.pairs().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

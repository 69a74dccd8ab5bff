//! The provisioner's side: checks, then the wrapped key and the grant.

use super::document::{Grant, Slot};
use super::{CONTEXT_VOLUME, Document, EnvelopeError};
use crate::kms::{
    CheckOutcome, EncryptionContext, KeyArn, KeyHealth, KeyRef, KeyService, KmsError, Lease, LeaseSpec,
    Principal, Provider, WrappedKey,
};
use crate::secret::DataKey;

/// What a new volume's key should be.
#[derive(Clone, Debug)]
pub struct KeyRequest {
    /// The KMS key that wraps.
    pub key: KeyRef,
    /// The user's pairs.
    pub context: EncryptionContext,
    /// May unwrap; by default the service's own choice ([`KeyService::parties`]).
    pub grantee: Option<Principal>,
    /// May end the grant; by default as above.
    pub retiring: Option<Principal>,
    /// Dry-run both calls first.
    pub preflight: bool,
}

/// A volume's key before it is made: everything is checked, nothing exists.
pub struct Prepared {
    /// The KMS key, by its ARN.
    pub key: KeyArn,
    /// The whole context.
    pub context: EncryptionContext,
    /// The grant to be made.
    pub lease: LeaseSpec,
    /// What the KMS told about the key.
    pub health: KeyHealth,
}

/// Resolves and judges the KMS key and, unless told otherwise, dry-runs what will be done with it.
///
/// # Errors
/// The [`KmsError`] of the first call or check that failed; nothing has been made.
pub async fn prepare(
    kms: &dyn KeyService,
    request: &KeyRequest,
    name: String,
    context: EncryptionContext,
) -> Result<Prepared, KmsError> {
    let health = kms.health(&request.key).await?;
    health.require_usable()?;
    let (grantee, retiring) = match (&request.grantee, &request.retiring) {
        (Some(grantee), Some(retiring)) => (grantee.clone(), retiring.clone()),
        (grantee, retiring) => {
            let own = kms.parties().await?;
            (grantee.clone().unwrap_or(own.grantee), retiring.clone().unwrap_or(own.retiring))
        }
    };
    let lease = LeaseSpec { grantee, retiring, name };
    if request.preflight {
        // As Fargate does it: before the volume has an id.
        let preflight = kms.preflight(&health.arn, &context.without(CONTEXT_VOLUME), &lease).await?;
        for check in &preflight.checks {
            if let CheckOutcome::CannotTell(why) = &check.outcome {
                tracing::warn!(call = check.call, "preflight cannot tell: {why}");
            }
        }
        preflight.require_passed()?;
    }
    Ok(Prepared { key: health.arn.clone(), context, lease, health })
}

impl Prepared {
    /// Makes the wrapped key.
    async fn generate(&self, kms: &dyn KeyService) -> Result<WrappedKey, KmsError> {
        let length = u16::try_from(DataKey::LEN).unwrap_or(u16::MAX);
        kms.generate(&self.key, &self.context, length).await
    }
}

/// A grant that may exist from now on.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The KMS.
    pub provider: Provider,
    /// The key.
    pub key: KeyArn,
    /// The grant's name.
    pub name: String,
}

/// Remembers, across a crash, which grants there may be. Each entry is on disk when its method returns.
pub trait Ledger: Send {
    /// CreateGrant is about to be called.
    ///
    /// # Errors
    /// The entry could not be written.
    fn expect(&mut self, grant: Expected) -> Result<(), EnvelopeError>;

    /// The last expected grant's id.
    ///
    /// # Errors
    /// As above.
    fn made(&mut self, id: &str) -> Result<(), EnvelopeError>;

    /// CreateGrant was refused: the last expected grant is not there.
    ///
    /// # Errors
    /// As above.
    fn refused(&mut self) -> Result<(), EnvelopeError>;

    /// A grant that was there before, and is to be ended soon.
    ///
    /// # Errors
    /// As above.
    fn will_end(&mut self, provider: &Provider, key: &KeyArn, id: &str) -> Result<(), EnvelopeError>;

    /// A grant has been ended, or is the envelope's own: there is nothing left to remember.
    ///
    /// # Errors
    /// As above.
    fn settled(&mut self, id: &str) -> Result<(), EnvelopeError>;
}

/// Makes the grant, remembering first that it may be there. One whose making got no answer is found by its name.
pub(super) async fn lease(
    kms: &dyn KeyService,
    provider: &Provider,
    prepared: &Prepared,
    ledger: &mut dyn Ledger,
) -> Result<Lease, EnvelopeError> {
    let Prepared { key, context, lease: spec, .. } = prepared;
    ledger.expect(Expected { provider: provider.clone(), key: key.clone(), name: spec.name.clone() })?;
    match kms.lease(key, context, spec).await {
        Ok(lease) => {
            ledger.made(&lease.grant_id)?;
            Ok(lease)
        }
        Err(error) => {
            if error.is_definite() {
                ledger.refused()?;
            }
            Err(error.into())
        }
    }
}

/// Makes a new volume's first slot: the wrapped key, and the grant by which a host unwraps it.
///
/// # Errors
/// The calls', or the ledger's. The document is without a slot then.
pub async fn provision(
    document: &mut Document,
    kms: &dyn KeyService,
    provider: &Provider,
    prepared: &Prepared,
    with_token: bool,
    ledger: &mut dyn Ledger,
) -> Result<Lease, EnvelopeError> {
    let wrapped = prepared.generate(kms).await?;
    let lease = lease(kms, provider, prepared, ledger).await?;
    let mut slot = Slot::new(provider.kind(), wrapped);
    slot.grant = Some(prepared.grant(&lease, with_token));
    document.slots.push(slot);
    Ok(lease)
}

impl Prepared {
    /// The grant as a document keeps it; `with_token` lets its token travel there.
    pub(super) fn grant(&self, lease: &Lease, with_token: bool) -> Grant {
        let LeaseSpec { grantee, retiring, name } = self.lease.clone();
        Grant::new(lease.grant_id.clone(), name, grantee, retiring, with_token.then_some(&lease.token))
    }
}

//! From an envelope to its data key.

use std::path::PathBuf;
use std::sync::Arc;

use super::EnvelopeError;
use super::document::{Document, Grant, MAX_SLOTS, Pending, Slot};
use super::seal::SealKey;
use crate::kms::isolate::{self, Transfer};
use crate::kms::{ErrorClass, GrantToken, KeyService, KmsError, Permit, Provider, Role, Witness, WrappedKey};
use crate::secret::DataKey;

/// Who unwraps: a KMS, reached from a process of its own.
#[derive(Clone)]
pub struct Unwrapper {
    /// The program that unwraps ([`isolate`]).
    pub helper: PathBuf,
    /// The KMS.
    pub provider: Provider,
    /// Is told of each call.
    pub witness: Arc<dyn Witness>,
}

impl Unwrapper {
    /// The KMS under the provisioner's identity.
    ///
    /// # Errors
    /// As [`Provider::open`].
    pub async fn provisioner(&self) -> Result<Arc<dyn KeyService>, KmsError> {
        self.provider.open(Role::Provisioner, self.witness.clone()).await
    }

    /// The same at another KMS.
    #[must_use]
    pub fn at(&self, provider: &Provider) -> Self {
        Self { provider: provider.clone(), ..self.clone() }
    }

    /// Unwraps a slot's key; its grant's token, if it travels in the document, comes before `token`.
    ///
    /// # Errors
    /// The KMS's.
    pub async fn unwrap(
        &self,
        document: &Document,
        slot: &Slot,
        token: Option<&GrantToken>,
    ) -> Result<DataKey, KmsError> {
        let own = slot.grant.as_ref().and_then(Grant::token);
        let permit = permit(slot, own.as_ref().or(token));
        let (context, wrapped) = (document.whole_context(), slot.wrapped());
        let patience = self.provider.patience();
        isolate::unwrap(&self.helper, &self.provider, &wrapped, &context, permit, patience, &*self.witness)
            .await
    }

    /// Wraps a slot's key at another service, as [`Unwrapper::unwrap`] would unwrap it.
    ///
    /// # Errors
    /// Either KMS's.
    pub async fn transfer(
        &self,
        document: &Document,
        slot: &Slot,
        token: Option<&GrantToken>,
        to: Transfer<'_>,
    ) -> Result<WrappedKey, KmsError> {
        let own = slot.grant.as_ref().and_then(Grant::token);
        let permit = permit(slot, own.as_ref().or(token));
        let (context, wrapped) = (document.whole_context(), slot.wrapped());
        isolate::transfer(&self.helper, &self.provider, &wrapped, &context, permit, to, &*self.witness).await
    }
}

fn permit<'a>(slot: &Slot, token: Option<&'a GrantToken>) -> Permit<'a> {
    Permit { token, made: slot.grant.as_ref().map(Grant::created) }
}

/// What an unlock brings.
pub struct Unlocked {
    /// The data key.
    pub key: DataKey,
    /// What it proves the envelope with.
    pub seal: SealKey,
    /// The document has changed: it was sealed, or its pending slot taken in.
    pub changed: bool,
}

/// Unwraps the data key through the first slot that works, and checks the document with it. One that was never
/// unlocked before is sealed; a pending slot whose data key is the right one is taken in.
///
/// # Errors
/// [`EnvelopeError::NoSlot`], [`EnvelopeError::Forged`], [`EnvelopeError::Unbound`], or the first slot's
/// [`KmsError`].
pub async fn unlock(
    document: &mut Document,
    by: &Unwrapper,
    token: Option<&GrantToken>,
) -> Result<Unlocked, EnvelopeError> {
    let kind = by.provider.kind();
    let pending = document.since_seal.pending.as_ref().map(|pending| &pending.slot);
    let slots = pending.into_iter().chain(&document.slots).filter(|slot| slot.provider == kind);
    let mut first_error = None;
    for (number, slot) in slots.enumerate() {
        match by.unwrap(document, slot, token).await {
            Ok(key) => {
                let seal = SealKey::derive(&key)?;
                let is_pending = number == 0 && pending.is_some_and(|pending| std::ptr::eq(pending, slot));
                match document.verify(&seal) {
                    Some(false) if is_pending => {
                        tracing::warn!("the pending slot holds another data key, and is passed over");
                        first_error.get_or_insert(forged(document));
                        continue;
                    }
                    Some(false) => return Err(forged(document)),
                    Some(true) | None => {}
                }
                let changed = accept(document, &seal, is_pending);
                return Ok(Unlocked { key, seal, changed });
            }
            Err(error) => {
                tracing::info!(key = %slot.key, %error, "a slot of the envelope does not open");
                first_error.get_or_insert_with(|| explained(document, error));
            }
        }
    }
    Err(first_error
        .unwrap_or_else(|| EnvelopeError::NoSlot { volume: document.volume.clone(), provider: kind }))
}

fn accept(document: &mut Document, seal: &SealKey, pending: bool) -> bool {
    if pending {
        take_in_pending(document);
    }
    if pending || !document.is_sealed() {
        document.seal(seal);
        return true;
    }
    false
}

/// Makes the pending slot the first one; unless the others are to stay, their grants have had their day.
pub(super) fn take_in_pending(document: &mut Document) {
    let Some(Pending { slot, keep_others }) = document.since_seal.pending.take() else { return };
    if !keep_others {
        let dropped = std::mem::take(&mut document.slots);
        document.since_seal.superseded.extend(dropped.iter().filter_map(Slot::as_superseded));
    }
    document.slots.insert(0, slot);
    // A pending slot is written by who has no MAC: it must not make an envelope that nobody can read.
    let too_many = document.slots.split_off(document.slots.len().min(MAX_SLOTS));
    document.since_seal.superseded.extend(too_many.iter().filter_map(Slot::as_superseded));
}

fn forged(document: &Document) -> EnvelopeError {
    EnvelopeError::Forged { volume: document.volume.clone() }
}

/// A KMS that does not take the wrapped key for this context says no more; the document knows what that means.
fn explained(document: &Document, error: KmsError) -> EnvelopeError {
    match error.class {
        // One that was never written was made just now, and by this process.
        _ if document.revision() == 0 => error.into(),
        ErrorClass::Corrupt => EnvelopeError::Unbound { volume: document.volume.clone(), error },
        ErrorClass::Denied => EnvelopeError::NotGranted { volume: document.volume.clone(), error },
        _ => error.into(),
    }
}

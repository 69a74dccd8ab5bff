//! The same data key under another KMS key, or under the newest material of the same one.
//!
//! The order survives a crash after each step: the new wrapped key stands in the envelope as pending before
//! anything refers to it; its grant is made; it is unwrapped once and compared with the volume's own; only then are
//! the old slots dropped, and their grants ended last. Until then the old way opens the volume, from then on the
//! new one, and the ledger knows of every grant that the envelope does not name.

use super::EnvelopeError;
use super::document::{Document, MAX_SLOTS, Pending, Slot, Superseded};
use super::file::{self, EnvelopeFile};
use super::provision::{KeyRequest, Ledger, Prepared, lease, prepare};
use super::seal::SealKey;
use super::unlock::{Unwrapper, take_in_pending};
use crate::kms::isolate::Transfer;
use crate::kms::{
    ErrorClass, GrantRef, GrantToken, KeyArn, KeyService, KmsError, Lease, Provider, WrappedKey,
};

/// An envelope in use.
pub struct Held {
    /// The document.
    pub document: Document,
    /// Its file; none for a volume that nobody opens again.
    pub file: Option<EnvelopeFile>,
    /// The volume's own, once it is unlocked.
    pub seal: Option<SealKey>,
    /// The first slot's grant token, where it is known.
    pub token: Option<GrantToken>,
}

impl Held {
    /// Writes the document to its file, if it has one.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`].
    pub fn save(&mut self) -> Result<(), EnvelopeError> {
        self.file.as_mut().map_or(Ok(()), |file| file.write(&mut self.document))
    }
}

/// Where a data key is to go.
pub struct Target {
    /// The KMS.
    pub provider: Provider,
    /// The key and the grant's principals; the context stays the volume's.
    pub request: KeyRequest,
    /// The slots that are there stay beside the new one.
    pub keep_others: bool,
    /// The grant token travels in the document.
    pub with_token: bool,
}

/// What a rewrap did.
pub struct Rewrapped {
    /// The KMS key that wraps the data key now.
    pub key: KeyArn,
    /// Which of its materials, where the service tells.
    pub material: Option<String>,
    /// The new grant's id.
    pub grant_id: String,
    /// False if this side may not unwrap: the host verifies the new slot when it opens the volume next.
    pub verified: bool,
    /// Grants that could not be ended now, with the reason; the envelope remembers them.
    pub left: Vec<(Superseded, KmsError)>,
}

/// Moves `held`'s data key to `target`.
///
/// # Errors
/// An [`EnvelopeError`]; the volume opens as before, and what was made until then is undone, or known to the ledger.
pub async fn rewrap(
    held: &mut Held,
    source: &Unwrapper,
    target: &Target,
    ledger: &mut dyn Ledger,
) -> Result<Rewrapped, EnvelopeError> {
    if target.keep_others && held.document.slots.len() >= MAX_SLOTS {
        return Err(EnvelopeError::NoRoom { volume: held.document.volume.clone() });
    }
    let kms = source.at(&target.provider).provisioner().await?;
    let prepared = prepare_for(held, target, &*kms).await?;
    let wrapped = wrap_anew(held, source, target, &prepared.key).await?;
    let (key, material) = (wrapped.key.clone(), wrapped.material.clone());
    note_old_grants(held, source, target, ledger)?;
    // What an earlier rewrap left half done is dropped with its grant.
    let given_up = held.document.since_seal.pending.take();
    held.document.since_seal.superseded.extend(given_up.iter().filter_map(|old| old.slot.as_superseded()));
    held.document.since_seal.retired = None;
    let slot = Slot::new(target.provider.kind(), wrapped);
    held.document.since_seal.pending = Some(Pending { slot, keep_others: target.keep_others });
    held.save()?;
    let lease = match lease(&*kms, &target.provider, &prepared, ledger).await {
        Ok(lease) => lease,
        Err(error) => {
            withdraw(held, &*kms, None, ledger).await;
            return Err(error);
        }
    };
    match admit(held, source, target, &prepared, &lease).await {
        Ok(verified) => {
            let Lease { grant_id, token } = lease;
            held.token = Some(token);
            let left = end_superseded(held, source, ledger).await;
            keep_own(held, ledger);
            Ok(Rewrapped { key, material, grant_id, verified, left })
        }
        Err(error) => {
            withdraw(held, &*kms, Some(&lease), ledger).await;
            Err(error)
        }
    }
}

/// What is asked for. Whoever is not named stays who it was, where the MAC has proved who that is; else it is the
/// service's choice, and refused if the document says otherwise: whoever can write it could name themselves there.
async fn prepare_for(held: &Held, target: &Target, kms: &dyn KeyService) -> Result<Prepared, EnvelopeError> {
    let document = &held.document;
    let own = document.slots.iter().find(|slot| slot.provider == target.provider.kind());
    let grant = own.and_then(|slot| slot.grant.as_ref());
    let mut request = target.request.clone();
    if let Some(grant) = grant.filter(|_| held.seal.is_some()) {
        request.grantee.get_or_insert_with(|| grant.grantee.clone());
        request.retiring.get_or_insert_with(|| grant.retiring.clone());
    }
    let is_named = request.grantee.is_some();
    let prepared = prepare(kms, &request, document.next_grant_name(), document.whole_context()).await?;
    match grant {
        Some(grant) if !is_named && grant.grantee != prepared.lease.grantee => Err(EnvelopeError::Grantee {
            volume: document.volume.clone(),
            says: grant.grantee.clone(),
            chosen: prepared.lease.grantee,
        }),
        _ => Ok(prepared),
    }
}

/// The data key wrapped by `to`.
async fn wrap_anew(
    held: &Held,
    source: &Unwrapper,
    target: &Target,
    to: &KeyArn,
) -> Result<WrappedKey, EnvelopeError> {
    let document = &held.document;
    let kind = source.provider.kind();
    let slot = document.slots.iter().find(|slot| slot.provider == kind);
    let slot =
        slot.ok_or_else(|| EnvelopeError::NoSlot { volume: document.volume.clone(), provider: kind })?;
    let context = document.whole_context();
    if source.provider.is_same_service(&target.provider) && slot.key.region() == to.region() {
        let kms = source.provisioner().await?;
        return Ok(kms.rewrap(&slot.wrapped(), &context, to, &context).await?);
    }
    let to = Transfer { provider: &target.provider, key: to, context: &context };
    Ok(source.transfer(document, slot, held.token.as_ref(), to).await?)
}

/// What is dropped later has to be ended later, also if this process is gone by then.
fn note_old_grants(
    held: &Held,
    source: &Unwrapper,
    target: &Target,
    ledger: &mut dyn Ledger,
) -> Result<(), EnvelopeError> {
    let document = &held.document;
    let slots = document.slots.iter().filter(|_| !target.keep_others);
    let dropped = slots.chain(document.since_seal.pending.iter().map(|pending| &pending.slot));
    for old in dropped.filter_map(Slot::as_superseded).filter(|old| old.provider == source.provider.kind()) {
        ledger.will_end(&source.provider, &old.key, &old.grant)?;
    }
    Ok(())
}

/// What the envelope names is its own, and nobody's leftover: not even if the file has another name, or is not to be
/// found, by the time somebody looks. A volume without a file has its grants in the ledger only.
fn keep_own(held: &Held, ledger: &mut dyn Ledger) {
    let own = held.document.grants().filter(|_| held.file.is_some());
    for grant in own {
        if let Err(error) = ledger.settled(&grant.grant) {
            tracing::warn!(%error, "the journal still lists a grant that the envelope needs");
        }
    }
}

/// Gives the pending slot its grant, verifies it and takes it in. Tells whether it was verified.
async fn admit(
    held: &mut Held,
    source: &Unwrapper,
    target: &Target,
    prepared: &Prepared,
    lease: &Lease,
) -> Result<bool, EnvelopeError> {
    if let Some(pending) = &mut held.document.since_seal.pending {
        pending.slot.grant = Some(prepared.grant(lease, target.with_token));
    }
    held.save()?;
    if let Some(file) = held.file.as_ref().filter(|_| !target.with_token) {
        file::write_token(&file::token_path(file.path()), &lease.token)?;
    }
    let verified = verify(held, &source.at(&target.provider), &lease.token).await?;
    if verified {
        take_in_pending(&mut held.document);
        if let Some(seal) = &held.seal {
            held.document.seal(seal);
        }
        held.save()?;
    }
    Ok(verified)
}

/// Unwraps the pending slot and compares its data key with the volume's own, by what is derived from it. False if
/// this side is not the grant's grantee, and so can leave it to the host only.
async fn verify(held: &mut Held, by: &Unwrapper, token: &GrantToken) -> Result<bool, EnvelopeError> {
    let Some(pending) = &held.document.since_seal.pending else { return Ok(false) };
    let key = match by.unwrap(&held.document, &pending.slot, Some(token)).await {
        Err(error) if error.class == ErrorClass::Denied && held.seal.is_none() => {
            tracing::info!(%error, "the host verifies the new slot when it opens the volume");
            return Ok(false);
        }
        key => key?,
    };
    let theirs = SealKey::derive(&key)?;
    let is_same = match &held.seal {
        Some(own) => own.is_same(&theirs),
        // Of a volume that was never opened there is nothing to compare with, and nothing to lose.
        None => held.document.verify(&theirs).unwrap_or(true),
    };
    if !is_same {
        let key = pending.slot.key.to_string();
        return Err(EnvelopeError::AnotherKey { volume: held.document.volume.clone(), key });
    }
    if held.seal.is_none() && held.document.is_sealed() {
        held.seal = Some(theirs);
    }
    Ok(true)
}

/// Ends the grants of dropped slots. What the provider at hand cannot end stays in the document, and in the ledger.
async fn end_superseded(
    held: &mut Held,
    source: &Unwrapper,
    ledger: &mut dyn Ledger,
) -> Vec<(Superseded, KmsError)> {
    let kind = source.provider.kind();
    let all = held.document.since_seal.superseded.iter().filter(|old| old.provider == kind).cloned();
    let all: Vec<_> = all.collect();
    let mut left = Vec::new();
    let kms = match source.provisioner().await {
        Ok(kms) => kms,
        Err(error) => return all.into_iter().map(|old| (old, error.clone())).collect(),
    };
    for old in all {
        let is_needed = held.document.grants().any(|own| own.grant == old.grant);
        let end = GrantRef::Id { key: &old.key, grant_id: &old.grant };
        let ended = if is_needed { Ok(()) } else { kms.release(&end).await.map(drop) };
        let noted = match ended {
            Ok(()) => {
                held.document.since_seal.superseded.retain(|other| *other != old);
                held.save().and_then(|()| ledger.settled(&old.grant))
            }
            Err(error) => {
                left.push((old, error));
                Ok(())
            }
        };
        // The slot has moved already: what is still noted is looked at again, and found to have ended.
        if let Err(error) = noted {
            tracing::warn!(%error, "the end of an old grant could not be noted");
        }
    }
    left
}

/// Takes a pending slot back that could not be admitted. What fails here is the ledger's to end.
async fn withdraw(held: &mut Held, kms: &dyn KeyService, made: Option<&Lease>, ledger: &mut dyn Ledger) {
    let Some(pending) = held.document.since_seal.pending.take() else { return };
    if let Err(error) = held.save() {
        tracing::warn!(%error, "the envelope still has a pending slot, which the next opening passes over");
        return;
    }
    keep_own(held, ledger);
    let Some(Lease { grant_id, token }) = made else { return };
    let grant = GrantRef::Token { key: &pending.slot.key, grant_id, token };
    let ended = kms.release(&grant).await.map_err(EnvelopeError::from);
    if let Err(error) = ended.and_then(|_| ledger.settled(grant_id)) {
        tracing::warn!(%error, "the new grant is left over; the next start or `sealblk gc` retires it");
    }
}

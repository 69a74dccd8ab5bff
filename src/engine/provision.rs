//! Envelopes without a volume: made, moved and retired by whoever provisions.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::EngineError;
use super::journal::{Entry, EnvelopeNote, Note};
use super::start::clear_away;
use super::sweep::abandon;
use crate::audit::AuditLog;
use crate::envelope::{
    self, Document, EnvelopeError, EnvelopeFile, Held, KeyRequest, Layout, Life, Rewrapped, Superseded,
    Target, Unwrapper, VolumeId, bind, file,
};
use crate::kms::{
    ErrorClass, GrantRef, GrantToken, KeyArn, KeyRef, KmsError, Lease, Principal, Provider, Released, Role,
    Witness,
};

/// An envelope to be made.
pub struct Order {
    /// Size and sector size.
    pub layout: Layout,
    /// How long the volume will live.
    pub life: Life,
    /// The KMS.
    pub provider: Provider,
    /// The KMS key and what the data key is bound to.
    pub request: KeyRequest,
    /// Where the envelope goes; nothing may be there.
    pub envelope: PathBuf,
    /// Where the grant token goes.
    pub token: TokenPlace,
    /// Directory of journals.
    pub state: PathBuf,
    /// Where KMS calls and the volume's events are written down.
    pub audit: AuditLog,
}

/// How a grant token travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// In a file of its own, beside the envelope ([`file::token_path`]).
    File,
    /// In the envelope.
    Envelope,
    /// Not at all: the grant works without it some minutes later.
    Nowhere,
}

/// An envelope that was made.
pub struct Provisioned {
    /// The volume.
    pub volume: VolumeId,
    /// The KMS key.
    pub key: KeyArn,
    /// The grant's id.
    pub grant_id: String,
    /// Who may open it.
    pub grantee: Principal,
}

/// Makes a wrapped key, its grant and the envelope that holds both. Needs no right to unwrap.
///
/// # Errors
/// An [`EngineError`]; nothing is left then, or what is left is in the journal.
pub async fn provision(order: Order) -> Result<Provisioned, EngineError> {
    clear_away(&order.state, &order.audit).await;
    let volume = VolumeId::random();
    let context = bind(&order.request.context, &volume, order.layout)?;
    for path in [order.envelope.clone(), file::token_path(&order.envelope)] {
        if path.symlink_metadata().is_ok() {
            return Err(EnvelopeError::Exists(path).into());
        }
    }
    let kms = order.provider.open(Role::Provisioner, order.audit.for_volume(volume.as_str())).await?;
    let prepared = envelope::prepare(&*kms, &order.request, volume.to_string(), context).await?;
    let mut journal = Entry::create(&order.state, note(&volume, &order.envelope))?;
    let mut document = Document::new(volume.clone(), order.life, order.layout, order.request.context.clone());
    let with_token = order.token == TokenPlace::Envelope;
    let made = async {
        let lease =
            envelope::provision(&mut document, &*kms, &order.provider, &prepared, with_token, &mut journal)
                .await?;
        write(&order, &mut document, &lease)?;
        Ok(lease.grant_id)
    };
    match made.await {
        Ok(grant_id) => {
            journal.remove();
            let details = [
                ("keyId", json!(prepared.key)),
                ("grantId", json!(grant_id)),
                ("envelope", json!(order.envelope)),
            ];
            order.audit.volume("VolumeProvisioned", volume.as_str(), map(details));
            Ok(Provisioned { volume, key: prepared.key, grant_id, grantee: prepared.lease.grantee })
        }
        Err(error) => {
            abandon(&journal, &order.audit).await;
            Err(error)
        }
    }
}

fn map<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The token first, so that an envelope that is there is whole. Of two that are made at once under one name, one is
/// refused at the token.
fn write(order: &Order, document: &mut Document, lease: &Lease) -> Result<(), EngineError> {
    let _locked = match order.token {
        TokenPlace::File => Some(file::create_token(&file::token_path(&order.envelope), &lease.token)?),
        TokenPlace::Envelope | TokenPlace::Nowhere => None,
    };
    EnvelopeFile::create(&order.envelope, document)?;
    Ok(())
}

fn note(volume: &VolumeId, envelope: &Path) -> Note {
    let path = std::path::absolute(envelope).unwrap_or_else(|_| envelope.into());
    Note { envelope: Some(EnvelopeNote { path, undo_unless_sealed: false }), ..Note::new(volume) }
}

/// Moves a stored envelope's data key ([`envelope::rewrap()`]).
///
/// # Errors
/// An [`EngineError`]; the envelope opens as before then.
pub async fn rewrap(
    mut held: Held,
    by: Unwrapper,
    target: Target,
    state: &Path,
    audit: &AuditLog,
) -> Result<Rewrapped, EngineError> {
    clear_away(state, audit).await;
    let path = held.file.as_ref().map(|file| file.path().to_path_buf()).unwrap_or_default();
    let mut journal = Entry::create(state, note(&held.document.volume, &path))?;
    match envelope::rewrap(&mut held, &by, &target, &mut journal).await {
        Ok(rewrapped) => {
            // What could not be ended is tried again by the next start.
            if rewrapped.left.is_empty() {
                journal.remove();
            }
            let details = [
                ("keyId", json!(rewrapped.key)),
                ("grantId", json!(rewrapped.grant_id)),
                ("envelope", json!(path)),
            ];
            audit.volume("VolumeRewrapped", held.document.volume.as_str(), map(details));
            Ok(rewrapped)
        }
        Err(error) => {
            abandon(&journal, audit).await;
            Err(error.into())
        }
    }
}

/// Ends every grant that an envelope names; afterwards no host opens it without a new one. With `erase` the
/// envelope goes too, and with it the last way to the data, unless a grant is left. `providers` has one of each kind
/// that the envelope names.
pub async fn retire(held: Held, providers: &[Provider], erase: bool, audit: &AuditLog) -> Retired {
    let witness = audit.for_volume(held.document.volume.as_str());
    let superseded = held.document.since_seal.superseded.clone();
    let mut ends = Vec::new();
    for (number, grant) in held.document.grants().chain(superseded).enumerate() {
        // The token is the first slot's, but after a rewrap that did not come to its end.
        let token = held.token.as_ref().filter(|_| number == 0);
        let end = end_grant(providers, &grant, token, &witness).await;
        ends.push((grant, end));
    }
    let failed = ends.iter().any(|(_, end)| end.is_err());
    let volume = held.document.volume.clone();
    let count = ends.len();
    let noted = note_ends(held, &ends, erase && !failed);
    let erased = erase && !failed && noted.is_ok();
    let details = [("erased", json!(erased)), ("grants", json!(count)), ("failed", json!(failed))];
    audit.volume("VolumeRetired", volume.as_str(), map(details));
    Retired { ends, noted }
}

/// Removes the envelope, or writes down what is left in it.
fn note_ends(mut held: Held, ends: &[End], erase: bool) -> Result<(), EnvelopeError> {
    if !erase {
        let own: Vec<_> = held.document.grants().collect();
        let left = ends.iter().filter(|(grant, end)| end.is_err() && !own.contains(grant));
        held.document.since_seal.superseded = left.map(|(grant, _)| grant.clone()).collect();
        let all_ended = ends.iter().all(|(_, end)| end.is_ok());
        held.document.since_seal.retired = all_ended.then(time::OffsetDateTime::now_utc);
        return held.save();
    }
    held.file.map_or(Ok(()), EnvelopeFile::remove)
}

/// A grant, and how it ended.
pub type End = (Superseded, Result<Released, KmsError>);

/// What became of an envelope that was to be retired.
pub struct Retired {
    /// Its grants.
    pub ends: Vec<End>,
    /// Whether the envelope could be written or removed.
    pub noted: Result<(), EnvelopeError>,
}

/// Ends one grant. A key that the KMS does not know is no proof that its grants are gone: it may be another KMS's.
async fn end_grant(
    providers: &[Provider],
    grant: &Superseded,
    token: Option<&GrantToken>,
    witness: &Arc<dyn Witness>,
) -> Result<Released, KmsError> {
    let provider = providers.iter().find(|provider| provider.kind() == grant.provider).ok_or_else(|| {
        let message = format!("it is at a KMS of kind {}, which was not named", grant.provider);
        KmsError::new("RetireGrant", ErrorClass::Config, message).on_key(grant.key.as_str())
    })?;
    let kms = provider.open(Role::Provisioner, witness.clone()).await?;
    match kms.health(&KeyRef::from(&grant.key)).await {
        Err(error) if error.code.as_deref() == Some("NotFoundException") => return Err(error),
        _ => {}
    }
    let by_id = GrantRef::Id { key: &grant.key, grant_id: &grant.grant };
    let Some(token) = token else { return kms.release(&by_id).await };
    let by_token = GrantRef::Token { key: &grant.key, grant_id: &grant.grant, token };
    // The token is the quick way, but it may be another grant's.
    match (kms.release(&by_token).await, kms.release(&by_id).await) {
        (Ok(ended), Ok(Released::AlreadyGone)) => Ok(ended),
        (_, end) => end,
    }
}

//! The way back: from a volume that is served to its record.

use std::sync::Arc;

use super::journal::{Entry, GrantNote};
use super::record::{BackingEnd, GrantEnding};
use super::running::Keep;
use super::sweep::abandon;
use super::{Ended, GrantEnd, Record, Running, Step};
use crate::envelope::{self, Held};
use crate::kms::{GrantRef, KmsError, Role, Witness};
use crate::nbd::server::Signal;
use crate::store::{Disposal, Leftover};

impl Running {
    /// Ends the volume and tells how. Does not fail: what could not be ended is said in the record and, for the
    /// grant, kept in the journal.
    pub async fn teardown(mut self, reason: String) -> Record {
        self.happened("stopping");
        // Duplicates, which would keep clients waiting in a queue that nobody serves.
        self.sockets.clear();
        // The server is gone only if its task panicked, and then there is nothing to stop.
        let _ = self.stop.send(Signal::End);
        let served = self.server.await.unwrap_or_else(|error| {
            tracing::error!(%error, "the server ended early");
            Default::default()
        });
        self.steps.push(Step::now("drained"));
        let bytes_written = self.volume.bytes_written();
        // The last reference drops cipher and store: the keys are wiped before anything else is done.
        self.key_kept = None;
        let keys_wiped = Arc::into_inner(self.volume).is_some();
        if !keys_wiped {
            tracing::error!("something still refers to the volume; its keys are wiped when the process ends");
        }
        self.steps.push(Step::now("keys-wiped"));
        let mut keep = self.keep.lock_owned().await;
        let Keep { held, journal } = &mut *keep;
        held.seal = None;
        let grant = if self.owns_grants {
            end_grants(held, journal, &self.by.witness).await
        } else {
            Ended::Ended(GrantEnding::Kept)
        };
        self.steps.push(Step::now("grant-released"));
        let backing = dispose(self.leftover).await;
        drop(self.private);
        // Last, since whatever is still there is known by it alone.
        if matches!((&grant, &backing), (Ended::Ended(_), Ended::Ended(_))) {
            // Of an envelope's volume, it may know a grant of a rewrap that came to nothing.
            match self.owns_grants || journal.note().grants.is_empty() {
                true => journal.remove(),
                false => abandon(journal, &self.audit).await,
            }
        }
        self.steps.push(Step::now("backing-removed"));
        let document = &held.document;
        let slot = &document.slots[0];
        let record = Record {
            volume: self.id,
            kms_key: slot.key.clone(),
            provider: slot.provider.as_str(),
            encryption_context: document.whole_context(),
            cipher: envelope::CIPHER,
            sector_size: self.layout.sector.bytes(),
            size: self.layout.size.bytes(),
            bytes_written,
            exports: self.exports,
            connections: served.connections,
            connections_cut: served.cut_off,
            reason,
            keys_wiped,
            grant: GrantEnd { id: slot.grant.as_ref().map(|grant| grant.id.clone()), ended: grant },
            backing: BackingEnd { place: self.backing, ended: backing },
            steps: self.steps,
        };
        self.audit.volume("VolumeStopped", record.volume.as_str(), record.summary());
        record
    }
}

/// Ends every grant that this run has made. Tells how the first slot's ended, or what failed.
async fn end_grants(held: &Held, journal: &Entry, witness: &Arc<dyn Witness>) -> Ended<GrantEnding> {
    let main =
        held.document.slots.first().and_then(|slot| slot.grant.as_ref()).map(|grant| grant.id.as_str());
    let mut ended = Ended::Ended(GrantEnding::Kept);
    for note in &journal.note().grants {
        let is_main = note.id.as_deref() == main;
        match release(note, held, is_main, witness.clone()).await {
            Ok(GrantEnding::AlreadyGone) if note.id.is_none() => {
                tracing::warn!("a grant may still appear; the next start or `sealblk gc` looks again");
                ended = Ended::Failed("its grant may still appear".into());
            }
            Ok(ending) if is_main && !matches!(ended, Ended::Failed(_)) => ended = Ended::Ended(ending),
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "a grant is left over; the next start or `sealblk gc` retires it");
                ended = Ended::Failed(error.to_string());
            }
        }
    }
    ended
}

async fn release(
    note: &GrantNote,
    held: &Held,
    is_main: bool,
    witness: Arc<dyn Witness>,
) -> Result<GrantEnding, KmsError> {
    let kms = note.provider.open(Role::Provisioner, witness).await?;
    let by_token = match (&held.token, &note.id) {
        // The token ends the grant even before it has reached every host of the service.
        (Some(token), Some(grant_id)) if is_main => Some(GrantRef::Token { key: &note.key, grant_id, token }),
        _ => None,
    };
    let Some(reference) = by_token.or_else(|| note.reference()) else { return Ok(GrantEnding::Kept) };
    Ok(kms.release(&reference).await?.into())
}

async fn dispose(leftover: Leftover) -> Ended<Disposal> {
    // A whole disk may take its time to discard; a signal must get through meanwhile.
    let disposed =
        tokio::task::spawn_blocking(|| leftover.dispose().map_err(|error| error.to_string())).await;
    match disposed.unwrap_or_else(|panic| Err(panic.to_string())) {
        Ok(disposal) => Ended::Ended(disposal),
        Err(error) => {
            tracing::error!(%error, "the backing is left over");
            Ended::Failed(error)
        }
    }
}

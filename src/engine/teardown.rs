//! The way back: from a volume that is served to its record.

use std::sync::Arc;

use super::record::BackingEnd;
use super::{Ended, GrantEnd, Record, Running, Step};
use crate::envelope;
use crate::kms::{GrantRef, Provider};
use crate::nbd::server::Signal;

impl Running {
    /// Ends the volume and tells how. Does not fail: what could not be ended is said in the record and, for the
    /// grant, kept in the journal.
    pub async fn teardown(mut self, reason: String) -> Record {
        self.steps.push(Step::now("stopping"));
        // The server is gone only if its task panicked, and then there is nothing to stop.
        let _ = self.stop.send(Signal::End);
        let served = self.server.await.unwrap_or_else(|error| {
            tracing::error!(%error, "the server ended early");
            Default::default()
        });
        self.steps.push(Step::now("drained"));
        let bytes_written = self.volume.bytes_written();
        // The last reference drops cipher and store: the keys are wiped before anything else is done.
        let keys_wiped = Arc::into_inner(self.volume).is_some();
        if !keys_wiped {
            tracing::error!("something still refers to the volume; its keys are wiped when the process ends");
        }
        self.steps.push(Step::now("keys-wiped"));
        let grant = GrantRef::Token { key: &self.key, grant_id: &self.grant_id, token: &self.token };
        let grant = match self.kms.release(&grant).await {
            Ok(released) => Ended::Ended(released),
            Err(error) => {
                tracing::error!(%error, "the grant is left over; the next start or `sealblk gc` retires it");
                Ended::Failed(error.to_string())
            }
        };
        self.steps.push(Step::now("grant-released"));
        let leftover = self.leftover;
        // A whole disk may take its time to discard; a signal must get through meanwhile.
        let disposed =
            tokio::task::spawn_blocking(|| leftover.dispose().map_err(|error| error.to_string())).await;
        let backing = match disposed.unwrap_or_else(|panic| Err(panic.to_string())) {
            Ok(disposal) => Ended::Ended(disposal),
            Err(error) => {
                tracing::error!(%error, "the backing is left over");
                Ended::Failed(error)
            }
        };
        if matches!((&grant, &backing), (Ended::Ended(_), Ended::Ended(_))) {
            self.journal.remove();
        }
        drop(self.private);
        self.steps.push(Step::now("backing-removed"));
        Record {
            volume: self.id,
            kms_key: self.key,
            provider: match self.provider {
                Provider::Local { .. } => "local",
                Provider::Aws(_) => "aws",
            },
            encryption_context: self.context,
            cipher: envelope::CIPHER,
            sector_size: self.layout.sector.bytes(),
            size: self.layout.size.bytes(),
            bytes_written,
            connections: served.connections,
            connections_cut: served.cut_off,
            reason,
            keys_wiped,
            grant: GrantEnd { id: self.grant_id, ended: grant },
            backing: BackingEnd { place: self.backing, ended: backing },
            steps: self.steps,
        }
    }
}

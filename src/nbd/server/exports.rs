//! What clients may choose, and what a client and the server agreed on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::block::BlockDevice;
use crate::nbd::wire::TransmissionFlags;

/// What a client may choose.
pub struct Export {
    /// Its name; at most 4096 bytes.
    pub name: String,
    /// A text for people; at most 4096 bytes.
    pub description: String,
    /// What is served.
    pub device: Arc<dyn BlockDevice>,
    /// Refuses changes, whatever the device takes.
    pub read_only: bool,
}

impl Export {
    /// True if clients of this export may change nothing.
    pub fn is_read_only(&self) -> bool {
        self.read_only || self.device.features().read_only
    }

    /// What clients are told that it can do.
    pub(super) fn flags(&self) -> TransmissionFlags {
        use TransmissionFlags as Flags;
        let all = Flags::HAS_FLAGS
            .and(Flags::SEND_FLUSH)
            .and(Flags::SEND_FUA)
            .and(Flags::CAN_MULTI_CONN)
            .and(Flags::SEND_CACHE);
        if self.is_read_only() {
            all.and(Flags::READ_ONLY)
        } else {
            all.and(Flags::SEND_TRIM).and(Flags::SEND_WRITE_ZEROES).and(Flags::SEND_FAST_ZERO)
        }
    }
}

/// The exports of a server, in the order in which they are listed. The first one is the default export, which the
/// empty name stands for.
pub struct Exports(Vec<Arc<Export>>);

impl Exports {
    /// One or more of them, each with a name of its own.
    pub fn new(exports: Vec<Export>) -> Self {
        debug_assert!(!exports.is_empty(), "there is nothing to serve");
        Self(exports.into_iter().map(Arc::new).collect())
    }

    /// The export that a client means by `name`.
    pub(super) fn find(&self, name: &str) -> Option<&Arc<Export>> {
        self.0
            .iter()
            .find(|export| export.name == name)
            .or_else(|| self.0.first().filter(|_| name.is_empty()))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Export> {
        self.0.iter().map(|export| &**export)
    }
}

/// How replies are written ("Transmission phase").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replies {
    /// Simple replies; compact requests.
    #[default]
    Simple,
    /// Structured replies to READ and BLOCK_STATUS; compact requests.
    Structured,
    /// Extended requests and extended replies, with 64-bit lengths.
    Extended,
}

/// What client and server agreed on in the handshake, besides the export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agreed {
    /// How replies are written.
    pub replies: Replies,
    /// The client has selected the metadata context `base:allocation` for its export.
    pub allocation: bool,
}

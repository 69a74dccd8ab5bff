//! The data key's life: made wrapped, leased, unwrapped once, moved to another KMS key, and its grants ended.
//!
//! An envelope ([`Document`]) holds everything about a volume's key but the key. Who provisions makes it and never
//! sees the plaintext ([`provision()`]); who unlocks it needs nothing but the grant ([`unlock()`]); [`rewrap()`] puts the
//! same data key under another KMS key, in an order that no crash can harm.
//!
//! The order of the calls is Fargate's (AWS, "Managing AWS KMS keys for Fargate ephemeral storage"): describe the
//! key; dry-run both calls without the volume's id; then make the wrapped key and the grant with the volume's id
//! added.

mod canonical;
mod document;
pub mod file;
mod provision;
mod rewrap;
mod seal;
mod unlock;

pub mod watch;

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use document::{Changes, Document, Flaw, Grant, Life, Pending, Slot, Superseded};
pub use file::EnvelopeFile;
pub use provision::{Expected, KeyRequest, Ledger, Prepared, prepare, provision};
pub use rewrap::{Held, Rewrapped, Target, rewrap};
pub use seal::SealKey;
pub use unlock::{Unlocked, Unwrapper, unlock};

use crate::geometry::{SectorSize, VolumeSize};
use crate::kms::{ContextError, EncryptionContext, KmsError, Principal, ProviderKind};
use crate::secret::SecretError;

/// The cipher of every volume, by dm-crypt's name.
pub const CIPHER: &str = "aes-xts-plain64";
/// Context key that holds the volume's id.
const CONTEXT_VOLUME: &str = "sealblk:volume";
/// Context key that holds what decides how bytes are read: cipher, sector size and size.
const CONTEXT_LAYOUT: &str = "sealblk:layout";

/// Why an envelope cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// A file of it cannot be read or written.
    #[error("{action} {path}: {source}; check the path, its permissions and the free space", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// Another process has it.
    #[error("envelope {path} is in use by another sealblk; stop it first, or reach it through its control socket", path = _0.display())]
    InUse(PathBuf),
    /// Its name is taken.
    #[error("envelope {path} exists already, and is not overwritten; choose another path", path = _0.display())]
    Exists(PathBuf),
    /// It is not a whole envelope.
    #[error("envelope {path}: {flaw}", path = path.display())]
    Flaw {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// Somebody without the data key has changed it.
    #[error(
        "the envelope of {volume} does not fit its mac: it was changed by somebody who does not have the data key; use a copy that was not"
    )]
    Forged {
        /// The volume.
        volume: VolumeId,
    },
    /// The KMS does not take the wrapped key for what the envelope says.
    #[error(
        "the envelope of {volume}: volume, cipher, sector_size, size, context, key or wrapped is not what the data key was wrapped with: {error}"
    )]
    Unbound {
        /// The volume.
        volume: VolumeId,
        /// What came back.
        error: KmsError,
    },
    /// It has no slot for the KMS that was chosen.
    #[error("the envelope of {volume} has no slot of a KMS of kind {provider}; choose its own with --kms")]
    NoSlot {
        /// The volume.
        volume: VolumeId,
        /// The kind that was looked for.
        provider: ProviderKind,
    },
    /// It has as many slots as it may have.
    #[error(
        "the envelope of {volume} has eight slots, which is the most; rewrap it without --keep, which leaves one"
    )]
    NoRoom {
        /// The volume.
        volume: VolumeId,
    },
    /// A rewrapped key turned out to be another one.
    #[error(
        "the data key of {volume} under KMS key {key} is not the volume's: nothing was changed; check what answers in the KMS's place"
    )]
    AnotherKey {
        /// The volume.
        volume: VolumeId,
        /// The KMS key.
        key: String,
    },
    /// The KMS does not let the caller unwrap what the envelope says.
    #[error(
        "the envelope of {volume} does not open: its grant has ended, or its volume, cipher, sector_size, size, context or key is not what was granted: {error}"
    )]
    NotGranted {
        /// The volume.
        volume: VolumeId,
        /// What came back.
        error: KmsError,
    },
    /// A rewrap would let somebody else open the volume.
    #[error(
        "the envelope of {volume} says that {says} opens it, and this would let {chosen}: name who may with --grantee"
    )]
    Grantee {
        /// The volume.
        volume: VolumeId,
        /// Who the envelope says it is.
        says: Principal,
        /// Who it would be.
        chosen: Principal,
    },
    /// A KMS call.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// Memory for a key.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The encryption context.
    #[error(transparent)]
    Context(#[from] ContextError),
}

/// A volume's name in contexts, grants and records: `vol-` and 17 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId(String);

impl VolumeId {
    /// A new, random one.
    pub fn random() -> Self {
        let digits = uuid::Uuid::new_v4().simple().to_string();
        Self(format!("vol-{}", &digits[..17]))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no volume id.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no volume id: vol- and 17 hexadecimal digits in lower case")]
pub struct NoVolumeId(String);

impl TryFrom<String> for VolumeId {
    type Error = NoVolumeId;

    /// It names files, so nothing else is let in.
    fn try_from(text: String) -> Result<Self, NoVolumeId> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_id =
            text.strip_prefix("vol-").is_some_and(|rest| rest.len() == 17 && rest.bytes().all(is_digit));
        if is_id { Ok(Self(text)) } else { Err(NoVolumeId(text)) }
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> Self {
        id.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What decides how a volume's bytes are read; bound to the wrapped key by its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sector size.
    pub sector: SectorSize,
    /// Size.
    pub size: VolumeSize,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{CIPHER}/{}/{}", self.sector, self.size.bytes())
    }
}

/// The context of a volume's key: the user's pairs and sealblk's two.
///
/// # Errors
/// A [`ContextError`] if they do not fit a grant together.
pub fn bind(
    users: &EncryptionContext,
    volume: &VolumeId,
    layout: Layout,
) -> Result<EncryptionContext, ContextError> {
    let mut context = users.clone();
    context.insert(CONTEXT_VOLUME, volume.as_str())?;
    context.insert(CONTEXT_LAYOUT, &layout.to_string())?;
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_binds_volume_and_layout() {
        let mut users = EncryptionContext::default();
        users.insert_text("team=data").unwrap();
        let size = VolumeSize::new(1 << 30, SectorSize::B4096).unwrap();
        let volume = VolumeId::random();
        let context = bind(&users, &volume, Layout { sector: SectorSize::B4096, size }).unwrap();
        let pairs: Vec<_> = context.pairs().collect();
        assert_eq!(
            pairs,
            [
                ("sealblk:layout", "aes-xts-plain64/4096/1073741824"),
                ("sealblk:volume", volume.as_str()),
                ("team", "data"),
            ]
        );
    }

    #[test]
    fn seven_pairs_of_the_user_are_one_too_many() {
        let size = VolumeSize::new(4096, SectorSize::B4096).unwrap();
        let layout = Layout { sector: SectorSize::B4096, size };
        let mut users = EncryptionContext::default();
        for i in 0..6 {
            users.insert_text(&format!("k{i}=v")).unwrap();
        }
        assert!(bind(&users, &VolumeId::random(), layout).is_ok());
        users.insert_text("k6=v").unwrap();
        assert_eq!(bind(&users, &VolumeId::random(), layout), Err(ContextError::Pairs(9)));
    }

    #[test]
    fn volume_ids_look_like_ebs_ones_and_differ() {
        let (a, b) = (VolumeId::random(), VolumeId::random());
        assert_ne!(a, b);
        for id in [a, b] {
            assert_eq!(VolumeId::try_from(id.to_string()), Ok(id));
        }
        for bad in [
            "",
            "vol-",
            "vol-0123456789abcdef",
            "vol-0123456789abcdef0g",
            "vol-../../../../etc/",
            "VOL-0123456789abcdef01",
        ] {
            assert_eq!(VolumeId::try_from(bad.to_owned()), Err(NoVolumeId(bad.into())));
        }
    }
}

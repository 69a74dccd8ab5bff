//! The envelope document: everything about a volume's key but the key.
//!
//! Three things keep it what it was. What decides how bytes are read stands in the encryption context, so the KMS
//! itself unwraps nothing for a changed one. A digest of every field finds damage and names the field. From the
//! first unlock on a MAC, by a key derived from the data key, covers everything but what the provisioner, who never
//! has that key, may still have to change ([`Changes`]). docs/envelope.md goes through it field by field.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::canonical;
use super::seal::SealKey;
use super::{CIPHER, Layout, VolumeId, bind};
use crate::geometry::{SectorSize, VolumeSize};
use crate::kms::{EncryptionContext, GrantToken, KeyArn, Principal, ProviderKind, WrappedKey};
use crate::secret::equal;

/// The version of the format that this program writes and reads.
const FORMAT: u32 = 1;
/// Longest document in bytes: many times what a few slots take.
pub(super) const MAX_LENGTH: u64 = 256 * 1024;
/// Most slots, so that an unlock ends.
pub(super) const MAX_SLOTS: usize = 8;
/// What neither the digests nor the MAC cover: themselves.
const NOT_DIGESTED: [&str; 2] = ["digests", "mac"];
/// The field that the provisioner changes without the data key.
const CHANGES: &str = "since_seal";

/// Why a text is not a whole envelope.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Not JSON, or a field missing, unknown or of the wrong kind.
    #[error("it cannot be read: {0}")]
    Form(String),
    /// Of another version.
    #[error(
        "its format is {0}, and this program knows {FORMAT} only; use the version of sealblk that wrote it"
    )]
    Format(u32),
    /// A value that no volume has.
    #[error("its {field} cannot be: {why}")]
    Value {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A field is not what was written.
    #[error("its {0} does not fit its digest: the file is damaged, or was changed by hand")]
    Digest(String),
}

/// How long a volume lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// Its backing is cleared away when it ends.
    Ephemeral,
    /// Its backing stays, to be opened again with the envelope.
    Durable,
}

/// A volume's envelope.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    #[serde(rename = "sealblk_envelope")]
    format: u32,
    /// Counts the writings.
    revision: u64,
    /// The volume.
    pub volume: VolumeId,
    /// How long it lives.
    pub life: Life,
    cipher: String,
    sector_size: u32,
    size: u64,
    /// The user's pairs; the whole context has two more ([`Document::whole_context`]).
    context: EncryptionContext,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    /// Ways to the data key, each enough by itself; the first that works is taken.
    pub slots: Vec<Slot>,
    /// What the provisioner did since the last seal.
    pub since_seal: Changes,
    digests: Map<String, Value>,
    /// 64 hexadecimal digits, from the first unlock on.
    mac: Option<String>,
}

/// The data key wrapped by one KMS key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slot {
    /// The KMS's kind.
    pub provider: ProviderKind,
    /// The KMS key.
    pub key: KeyArn,
    #[serde(with = "base64_text")]
    wrapped: Vec<u8>,
    material: Option<String>,
    /// The grant by which a host unwraps it.
    pub grant: Option<Grant>,
}

/// A grant that was made for a slot.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// May unwrap.
    pub grantee: Principal,
    /// May retire it.
    pub retiring: Principal,
    #[serde(with = "time::serde::rfc3339")]
    created: OffsetDateTime,
    /// The grant token, if it is to travel here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

/// What changes without the data key, and so is not under the MAC. None of it opens anything by itself.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changes {
    /// A new slot that no host has verified yet. It is believed only if its data key verifies the MAC.
    pub pending: Option<Pending>,
    /// Grants of slots that were dropped, to be ended by whoever may.
    pub superseded: Vec<Superseded>,
    /// When `sealblk retire` ended the grants.
    #[serde(with = "time::serde::rfc3339::option")]
    pub retired: Option<OffsetDateTime>,
}

/// A slot on its way in.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// The slot.
    pub slot: Slot,
    /// The other slots stay beside it.
    pub keep_others: bool,
}

/// A grant whose slot is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Superseded {
    /// The KMS's kind.
    pub provider: ProviderKind,
    /// The key it is on.
    pub key: KeyArn,
    /// Its id.
    pub grant: String,
}

impl Document {
    /// A new volume's envelope, without a slot.
    pub fn new(volume: VolumeId, life: Life, layout: Layout, context: EncryptionContext) -> Self {
        Self {
            format: FORMAT,
            revision: 0,
            volume,
            life,
            cipher: CIPHER.into(),
            sector_size: u32::try_from(layout.sector.bytes()).unwrap_or(u32::MAX),
            size: layout.size.bytes(),
            context,
            created: now(),
            slots: Vec::new(),
            since_seal: Changes::default(),
            digests: Map::new(),
            mac: None,
        }
    }

    /// Reads a document and checks all that can be checked without the data key.
    ///
    /// # Errors
    /// The first [`Flaw`].
    pub fn parse(text: &str) -> Result<Self, Flaw> {
        #[derive(Deserialize)]
        struct Format {
            sealblk_envelope: u32,
        }
        // What serde says names fields and places, and quotes no value longer than a word.
        let unreadable = |error: serde_json::Error| Flaw::Form(error.to_string());
        let Format { sealblk_envelope: format } = serde_json::from_str(text).map_err(unreadable)?;
        if format != FORMAT {
            return Err(Flaw::Format(format));
        }
        let document: Self = serde_json::from_str(text).map_err(unreadable)?;
        document.check_digests()?;
        document.check_values()?;
        Ok(document)
    }

    fn check_digests(&self) -> Result<(), Flaw> {
        let right = self.digests_of_fields();
        let differs = |name: &&String| right.get(*name) != self.digests.get(*name);
        match right.keys().chain(self.digests.keys()).find(differs) {
            Some(name) => Err(Flaw::Digest(name.clone())),
            None => Ok(()),
        }
    }

    fn check_values(&self) -> Result<(), Flaw> {
        let flaw = |field, why: String| Flaw::Value { field, why };
        if self.cipher != CIPHER {
            return Err(flaw("cipher", format!("{:?} is not {CIPHER}", self.cipher)));
        }
        self.try_layout().map_err(|why| flaw("size or sector_size", why))?;
        let checked = self.context.checked().and_then(|context| bind(&context, &self.volume, self.layout()));
        checked.map_err(|error| flaw("context", error.to_string()))?;
        if self.slots.is_empty() && self.since_seal.pending.is_none() {
            return Err(flaw("slots", "there is none".into()));
        }
        if self.slots.len() > MAX_SLOTS {
            return Err(flaw("slots", format!("{} are more than {MAX_SLOTS}", self.slots.len())));
        }
        Ok(())
    }

    fn try_layout(&self) -> Result<Layout, String> {
        let sector: SectorSize = self.sector_size.to_string().parse().map_err(|error| format!("{error}"))?;
        let size = VolumeSize::new(self.size, sector).map_err(|error| error.to_string())?;
        Ok(Layout { sector, size })
    }

    /// The document as text, with its digests made anew.
    pub fn render(&mut self) -> String {
        self.revision += 1;
        self.digests = self.digests_of_fields();
        // Strings, numbers, lists and maps: nothing that JSON cannot hold.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    fn fields(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        }
    }

    fn digests_of_fields(&self) -> Map<String, Value> {
        let fields = self.fields().into_iter().filter(|(name, _)| !NOT_DIGESTED.contains(&name.as_str()));
        fields.map(|(name, value)| (name, canonical::digest(&value).into())).collect()
    }

    /// What the MAC covers. The revision is left out: the provisioner counts its writings too.
    fn sealed_text(&self) -> Vec<u8> {
        let mut fields = self.fields();
        for name in NOT_DIGESTED.into_iter().chain([CHANGES, "revision"]) {
            fields.remove(name);
        }
        canonical::encode(&Value::Object(fields))
    }

    /// Puts the whole document under the data key's MAC.
    pub fn seal(&mut self, key: &SealKey) {
        self.mac = Some(key.mac(&self.sealed_text()));
    }

    /// True if a host has unlocked the volume before.
    pub fn is_sealed(&self) -> bool {
        self.mac.is_some()
    }

    /// True if the MAC is the data key's; `None` if there is none yet.
    pub fn verify(&self, key: &SealKey) -> Option<bool> {
        let mac = self.mac.as_ref()?;
        Some(equal(mac.as_bytes(), key.mac(&self.sealed_text()).as_bytes()))
    }

    /// How bytes are read.
    pub fn layout(&self) -> Layout {
        // Both makers of a document have checked it.
        self.try_layout().unwrap_or_else(|why| unreachable!("{why}"))
    }

    /// The user's pairs and sealblk's own: what the data key is wrapped under.
    pub fn whole_context(&self) -> EncryptionContext {
        bind(&self.context, &self.volume, self.layout()).unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// When the volume was made.
    pub fn created(&self) -> OffsetDateTime {
        self.created
    }

    /// How often the document was written.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Name for the next grant: no two slots' grants share one.
    pub fn next_grant_name(&self) -> String {
        let number = uuid::Uuid::new_v4().simple().to_string();
        format!("{}:{}", self.volume, &number[..8])
    }

    /// The slots, a pending one last.
    pub fn all_slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().chain(self.since_seal.pending.iter().map(|pending| &pending.slot))
    }

    /// Every grant that the slots have, with its key.
    pub fn grants(&self) -> impl Iterator<Item = Superseded> {
        self.all_slots().filter_map(Slot::as_superseded)
    }
}

impl Slot {
    /// A slot without a grant yet.
    pub fn new(provider: ProviderKind, wrapped: WrappedKey) -> Self {
        let WrappedKey { key, blob, material } = wrapped;
        Self { provider, key, wrapped: blob, material, grant: None }
    }

    /// The wrapped key, as a KMS takes it.
    pub fn wrapped(&self) -> WrappedKey {
        WrappedKey { key: self.key.clone(), blob: self.wrapped.clone(), material: self.material.clone() }
    }

    /// Which of the KMS key's materials wrapped it, where the service tells.
    pub fn material(&self) -> Option<&str> {
        self.material.as_deref()
    }

    /// True if its grant's token travels in the document.
    pub fn carries_token(&self) -> bool {
        self.grant.as_ref().is_some_and(|grant| grant.token.is_some())
    }

    /// Its grant, as one that is to be ended.
    pub fn as_superseded(&self) -> Option<Superseded> {
        let grant = self.grant.as_ref()?;
        Some(Superseded { provider: self.provider, key: self.key.clone(), grant: grant.id.clone() })
    }
}

impl Grant {
    /// A grant that was made just now; `token` only if it is to travel in the document.
    pub fn new(
        id: String,
        name: String,
        grantee: Principal,
        retiring: Principal,
        token: Option<&GrantToken>,
    ) -> Self {
        let token = token.map(|token| token.expose().to_owned());
        Self { id, name, grantee, retiring, created: now(), token }
    }

    /// When it was made.
    pub fn created(&self) -> OffsetDateTime {
        self.created
    }

    /// The token, if it travels here.
    pub fn token(&self) -> Option<GrantToken> {
        self.token.clone().map(GrantToken::new)
    }
}

/// A file is read by people too: whole seconds do.
fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

mod base64_text {
    use super::{Engine, STANDARD};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        // Not the decoder's message, which quotes a byte of it.
        STANDARD.decode(text).map_err(|_| serde::de::Error::custom("a wrapped key that is not base64"))
    }
}

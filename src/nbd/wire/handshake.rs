//! "Handshake phase", fixed newstyle.

use super::{WireError, take};

const NBDMAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const IHAVEOPT: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Longest option data that is read: a name and a query list of the longest strings the protocol allows
/// (4096 bytes each), and room to spare.
pub const MAX_OPTION_LENGTH: u32 = 64 * 1024;
/// "Strings": at most 4096 bytes.
const MAX_STRING: usize = 4096;

/// NBD_FLAG_FIXED_NEWSTYLE and NBD_FLAG_NO_ZEROES.
pub const HANDSHAKE_FLAGS: u16 = 0b11;

/// What the server says first.
pub const GREETING: [u8; 18] = {
    let mut bytes = [0; 18];
    let (magic, option, flags) =
        (NBDMAGIC.to_be_bytes(), IHAVEOPT.to_be_bytes(), HANDSHAKE_FLAGS.to_be_bytes());
    let mut i = 0;
    while i < 8 {
        bytes[i] = magic[i];
        bytes[8 + i] = option[i];
        i += 1;
    }
    bytes[16] = flags[0];
    bytes[17] = flags[1];
    bytes
};

/// The client's answer to [`GREETING`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFlags {
    /// Leave out the 124 zero bytes after NBD_OPT_EXPORT_NAME.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// Reads NBD_FLAG_C_FIXED_NEWSTYLE (bit 0) and NBD_FLAG_C_NO_ZEROES (bit 1).
    ///
    /// # Errors
    /// [`WireError::ClientFlags`] for other bits: "If the server receives unknown flags, it MUST terminate".
    pub fn decode(bytes: [u8; 4]) -> Result<Self, WireError> {
        let flags = u32::from_be_bytes(bytes);
        if flags & !u32::from(HANDSHAKE_FLAGS) != 0 {
            return Err(WireError::ClientFlags(flags));
        }
        Ok(Self { no_zeroes: flags & 2 != 0 })
    }
}

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident($type:ty) { $($(#[$value_doc:meta])* $value:ident = $number:expr),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub $type);

        impl $name {
            $($(#[$value_doc])* pub const $value: Self = Self($number);)*
        }
    };
}
pub(super) use codes;

codes! {
    /// "Option types".
    OptionCode(u32) {
        /// Choose an export and begin, the old way: no way to report an error.
        EXPORT_NAME = 1,
        /// End the session.
        ABORT = 2,
        /// List the exports.
        LIST = 3,
        /// Describe an export.
        INFO = 6,
        /// Describe an export and begin.
        GO = 7,
    }
}

codes! {
    /// "Option reply types".
    OptionReply(u32) {
        /// Done.
        ACK = 1,
        /// One export.
        SERVER = 2,
        /// One piece of information on an export.
        INFO = 3,
        /// The option is not known.
        ERR_UNSUP = 1 << 31 | 1,
        /// The option's data makes no sense.
        ERR_INVALID = 1 << 31 | 3,
        /// There is no such export.
        ERR_UNKNOWN = 1 << 31 | 6,
        /// The server is about to end.
        ERR_SHUTDOWN = 1 << 31 | 7,
        /// The option's data is too long.
        ERR_TOO_BIG = 1 << 31 | 9,
    }
}

codes! {
    /// "NBD_REP_INFO" information types.
    InfoType(u16) {
        /// Size and transmission flags.
        EXPORT = 0,
        /// Canonical name.
        NAME = 1,
        /// Text for people.
        DESCRIPTION = 2,
        /// Block size constraints.
        BLOCK_SIZE = 3,
    }
}

impl OptionReply {
    /// The reply with its header.
    pub fn encode(self, option: OptionCode, data: &[u8]) -> Vec<u8> {
        debug_assert!(data.len() <= MAX_OPTION_LENGTH as usize);
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let mut bytes = Vec::with_capacity(20 + data.len());
        bytes.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        bytes.extend_from_slice(&option.0.to_be_bytes());
        bytes.extend_from_slice(&self.0.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    }
}

/// What stands before each option's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// The option.
    pub code: OptionCode,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionHeader {
    /// Bytes on the wire.
    pub const LENGTH: usize = 16;

    /// Reads a header.
    ///
    /// # Errors
    /// [`WireError::Magic`] for anything that is no option. The length is the caller's to judge: an option that
    /// is too long still deserves an answer.
    pub fn decode(bytes: [u8; Self::LENGTH]) -> Result<Self, WireError> {
        let mut rest = &bytes[..];
        let magic = u64::from_be_bytes(take(&mut rest)?);
        if magic != IHAVEOPT {
            return Err(WireError::Magic(magic));
        }
        let code = OptionCode(u32::from_be_bytes(take(&mut rest)?));
        Ok(Self { code, length: u32::from_be_bytes(take(&mut rest)?) })
    }
}

/// Data of NBD_OPT_INFO and NBD_OPT_GO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoRequest {
    /// The export's name; empty for the default one.
    pub name: String,
    /// What the client wants to know besides [`InfoType::EXPORT`]; unknown types are to be ignored.
    pub wanted: Vec<InfoType>,
}

impl InfoRequest {
    /// Reads: 32 bits name length, name, 16 bits count, that many 16-bit types.
    ///
    /// # Errors
    /// [`WireError::Malformed`] for lengths that do not fit, a name over 4096 bytes, or one that is not UTF-8.
    pub fn decode(mut data: &[u8]) -> Result<Self, WireError> {
        let length = u32::from_be_bytes(take(&mut data)?) as usize;
        if length > MAX_STRING {
            return Err(WireError::Malformed);
        }
        let (name, mut data) = data.split_at_checked(length).ok_or(WireError::Malformed)?;
        let name = String::from_utf8(name.to_vec()).map_err(|_| WireError::Malformed)?;
        let count = u16::from_be_bytes(take(&mut data)?);
        let wanted = (0..count)
            .map(|_| Ok(InfoType(u16::from_be_bytes(take(&mut data)?))))
            .collect::<Result<_, _>>()?;
        if data.is_empty() { Ok(Self { name, wanted }) } else { Err(WireError::Malformed) }
    }
}

/// "Transmission flags".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// The field is valid.
    pub const HAS_FLAGS: Self = Self(1 << 0);
    /// The export is read-only.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// NBD_CMD_FLUSH is served.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// NBD_CMD_FLAG_FUA is served.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// NBD_CMD_TRIM is served.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// NBD_CMD_WRITE_ZEROES is served.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// Several connections see each other's writes and flush for each other.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    /// NBD_CMD_CACHE is served.
    pub const SEND_CACHE: Self = Self(1 << 10);
    /// NBD_CMD_FLAG_FAST_ZERO is served.
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Answer to NBD_OPT_EXPORT_NAME, which has no header.
pub struct ExportReply {
    /// Bytes in the export.
    pub size: u64,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportReply {
    /// With the 124 zero bytes unless both sides agreed to leave them out.
    pub fn encode(&self, client: ClientFlags) -> Vec<u8> {
        let mut bytes = self.size.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.flags.0.to_be_bytes());
        bytes.resize(bytes.len() + if client.no_zeroes { 0 } else { 124 }, 0);
        bytes
    }
}

/// Data of an NBD_INFO_EXPORT reply.
pub fn export_info(size: u64, flags: TransmissionFlags) -> Vec<u8> {
    [&InfoType::EXPORT.0.to_be_bytes()[..], &size.to_be_bytes(), &flags.0.to_be_bytes()].concat()
}

/// Data of an NBD_INFO_BLOCK_SIZE reply: smallest, preferred and largest request in bytes.
pub fn block_size_info(minimum: u32, preferred: u32, maximum: u32) -> Vec<u8> {
    let sizes = [minimum, preferred, maximum].map(u32::to_be_bytes).concat();
    [&InfoType::BLOCK_SIZE.0.to_be_bytes()[..], &sizes].concat()
}

/// Data of an NBD_INFO_NAME or NBD_INFO_DESCRIPTION reply.
pub fn text_info(kind: InfoType, text: &str) -> Vec<u8> {
    [&kind.0.to_be_bytes()[..], text.as_bytes()].concat()
}

/// Data of an NBD_REP_SERVER reply: an export's name and description.
pub fn server_entry(name: &str, description: &str) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[..], name.as_bytes(), description.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn greeting_and_headers_have_the_published_bytes() {
        assert_eq!(&GREETING, b"NBDMAGICIHAVEOPT\0\x03");
        let reply = OptionReply::ERR_UNSUP.encode(OptionCode(99), b"no");
        assert_eq!(reply, b"\0\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x63\x80\0\0\x01\0\0\0\x02no");
        let header = OptionHeader::decode(*b"IHAVEOPT\0\0\0\x07\0\0\0\x06").unwrap();
        assert_eq!(header, OptionHeader { code: OptionCode::GO, length: 6 });
        assert!(matches!(OptionHeader::decode(*b"GET / HTTP/1.1\r\n"), Err(WireError::Magic(_))));
    }

    #[test]
    fn client_flags() {
        assert_eq!(ClientFlags::decode([0, 0, 0, 3]), Ok(ClientFlags { no_zeroes: true }));
        assert_eq!(ClientFlags::decode([0, 0, 0, 1]), Ok(ClientFlags { no_zeroes: false }));
        assert_eq!(ClientFlags::decode([0, 0, 0, 4]), Err(WireError::ClientFlags(4)));
    }

    #[test]
    fn info_requests() {
        let good = b"\0\0\0\x03vol\0\x02\0\x03\0\x63";
        let request = InfoRequest { name: "vol".into(), wanted: vec![InfoType::BLOCK_SIZE, InfoType(0x63)] };
        assert_eq!(InfoRequest::decode(good), Ok(request));
        for length in 0..good.len() {
            assert_eq!(InfoRequest::decode(&good[..length]), Err(WireError::Malformed), "{length} bytes");
        }
        assert_eq!(InfoRequest::decode(b"\0\0\0\0\0\0x"), Err(WireError::Malformed));
        assert_eq!(InfoRequest::decode(b"\0\0\0\x01\xff\0\0"), Err(WireError::Malformed));
        assert_eq!(InfoRequest::decode(b"\xff\xff\xff\xff"), Err(WireError::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = InfoRequest::decode(&data);
            if let Some(header) = data.first_chunk() {
                let _ = OptionHeader::decode(*header);
            }
        }
    }
}

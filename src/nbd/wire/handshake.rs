//! "Handshake phase", fixed newstyle.

mod context;
mod export;

pub use context::{ALLOCATION, ALLOCATION_CONTEXT, ContextRequest, context_entry};
pub use export::{
    ExportReply, InfoRequest, InfoType, TransmissionFlags, block_size_info, export_info, server_entry,
    text_info,
};

use super::{WireError, take};

const NBDMAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const IHAVEOPT: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Longest option data that is kept: a name and a query list of the longest strings the protocol allows
/// (4096 bytes each), and room to spare.
pub const MAX_OPTION_LENGTH: u32 = 64 * 1024;
/// "Strings": at most 4096 bytes.
pub const MAX_STRING: usize = 4096;

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
    /// The client speaks fixed newstyle; one that does not say so gets no TLS.
    pub fixed_newstyle: bool,
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
        Ok(Self { fixed_newstyle: flags & 1 != 0, no_zeroes: flags & 2 != 0 })
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
        /// Go on under TLS.
        STARTTLS = 5,
        /// Describe an export.
        INFO = 6,
        /// Describe an export and begin.
        GO = 7,
        /// Structured replies in transmission.
        STRUCTURED_REPLY = 8,
        /// Name the metadata contexts of an export.
        LIST_META_CONTEXT = 9,
        /// Select metadata contexts of an export.
        SET_META_CONTEXT = 10,
        /// Extended requests and replies in transmission (the extension of that name).
        EXTENDED_HEADERS = 11,
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
        /// One metadata context.
        META_CONTEXT = 4,
        /// The option is not known.
        ERR_UNSUP = 1 << 31 | 1,
        /// The option is known, and not allowed here.
        ERR_POLICY = 1 << 31 | 2,
        /// The option's data makes no sense, or the option does not at this point.
        ERR_INVALID = 1 << 31 | 3,
        /// Nothing goes without TLS.
        ERR_TLS_REQD = 1 << 31 | 5,
        /// There is no such export.
        ERR_UNKNOWN = 1 << 31 | 6,
        /// The server is about to end.
        ERR_SHUTDOWN = 1 << 31 | 7,
        /// The option's data is too long.
        ERR_TOO_BIG = 1 << 31 | 9,
        /// Extended headers are agreed on, and the option makes no sense with them (the extension of that name).
        ERR_EXT_HEADER_REQD = 1 << 31 | 10,
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

/// Takes a string that stands behind its length ("Strings": UTF-8, at most 4096 bytes, no NUL).
fn text(data: &mut &[u8]) -> Result<String, WireError> {
    let length = u32::from_be_bytes(take(data)?) as usize;
    if length > MAX_STRING {
        return Err(WireError::Malformed);
    }
    let (text, rest) = data.split_at_checked(length).ok_or(WireError::Malformed)?;
    *data = rest;
    let text = str::from_utf8(text).map_err(|_| WireError::Malformed)?;
    if text.contains('\0') { Err(WireError::Malformed) } else { Ok(text.into()) }
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
        for bits in 0..4 {
            let flags = ClientFlags { fixed_newstyle: bits & 1 != 0, no_zeroes: bits & 2 != 0 };
            assert_eq!(ClientFlags::decode([0, 0, 0, bits]), Ok(flags));
        }
        assert_eq!(ClientFlags::decode([0, 0, 0, 4]), Err(WireError::ClientFlags(4)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (InfoRequest::decode(&data), ContextRequest::decode(&data));
            if let Some(header) = data.first_chunk() {
                let _ = OptionHeader::decode(*header);
            }
        }
    }
}

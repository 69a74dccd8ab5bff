//! "Request message", compact and extended.

use super::super::handshake::{ALLOCATION_CONTEXT, codes};
use super::super::{WireError, take};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;

/// Bytes of a compact request's header.
pub const REQUEST_LENGTH: usize = 28;
/// Bytes of an extended request's header.
pub const EXTENDED_REQUEST_LENGTH: usize = 32;

codes! {
    /// "Request types".
    Command(u16) {
        /// NBD_CMD_READ.
        READ = 0,
        /// NBD_CMD_WRITE; its payload is the data.
        WRITE = 1,
        /// NBD_CMD_DISC; has no reply.
        DISC = 2,
        /// NBD_CMD_FLUSH.
        FLUSH = 3,
        /// NBD_CMD_TRIM.
        TRIM = 4,
        /// NBD_CMD_CACHE.
        CACHE = 5,
        /// NBD_CMD_WRITE_ZEROES.
        WRITE_ZEROES = 6,
        /// NBD_CMD_BLOCK_STATUS; in extended requests it may have a payload, a [`StatusFilter`].
        BLOCK_STATUS = 7,
    }
}

/// "Command flags".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// NBD_CMD_FLAG_FUA: reply once the effect is on stable storage.
    pub const FUA: Self = Self(1 << 0);
    /// NBD_CMD_FLAG_NO_HOLE: allocate the zeros.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// NBD_CMD_FLAG_DF: send what is read as one chunk.
    pub const DF: Self = Self(1 << 2);
    /// NBD_CMD_FLAG_REQ_ONE: describe one extent only.
    pub const REQ_ONE: Self = Self(1 << 3);
    /// NBD_CMD_FLAG_FAST_ZERO: fail rather than be as slow as writing.
    pub const FAST_ZERO: Self = Self(1 << 4);
    /// NBD_CMD_FLAG_PAYLOAD_LEN: the length of an extended request counts the payload that follows it.
    pub const PAYLOAD_LEN: Self = Self(1 << 5);

    /// Both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// True if all of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True if nothing but `allowed` is set.
    pub const fn only(self, allowed: Self) -> bool {
        self.0 & !allowed.0 == 0
    }
}

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How.
    pub flags: CommandFlags,
    /// What.
    pub command: Command,
    /// The client's name for the request; comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes; at most 2^32-1 in a compact request.
    pub length: u64,
}

impl Request {
    /// Reads a compact header.
    ///
    /// # Errors
    /// [`WireError::Magic`]: the client has lost its place, and nothing that follows can be understood.
    pub fn decode(bytes: &[u8; REQUEST_LENGTH]) -> Result<Self, WireError> {
        let mut rest = &bytes[..];
        let start = Self::decode_start(&mut rest, REQUEST_MAGIC)?;
        Ok(Self { length: u32::from_be_bytes(take(&mut rest)?).into(), ..start })
    }

    /// Reads an extended header ("NBD_OPT_EXTENDED_HEADERS").
    ///
    /// # Errors
    /// [`WireError::Magic`], also for a compact header: once agreed on, only extended ones are legal.
    pub fn decode_extended(bytes: &[u8; EXTENDED_REQUEST_LENGTH]) -> Result<Self, WireError> {
        let mut rest = &bytes[..];
        let start = Self::decode_start(&mut rest, EXTENDED_REQUEST_MAGIC)?;
        Ok(Self { length: u64::from_be_bytes(take(&mut rest)?), ..start })
    }

    /// What both have in common: all but the length.
    fn decode_start(rest: &mut &[u8], expected: u32) -> Result<Self, WireError> {
        let magic = u32::from_be_bytes(take(rest)?);
        if magic != expected {
            return Err(WireError::Magic(magic.into()));
        }
        Ok(Self {
            flags: CommandFlags(u16::from_be_bytes(take(rest)?)),
            command: Command(u16::from_be_bytes(take(rest)?)),
            cookie: u64::from_be_bytes(take(rest)?),
            offset: u64::from_be_bytes(take(rest)?),
            length: 0,
        })
    }
}

/// Payload of NBD_CMD_BLOCK_STATUS ("NBD_FLAG_BLOCK_STATUS_PAYLOAD"): the range's length, which the header has no
/// room for then, and the contexts to describe, of which there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusFilter {
    /// Bytes to describe.
    pub length: u64,
}

impl StatusFilter {
    /// Bytes on the wire, with one context.
    pub const LENGTH: usize = 12;

    /// Reads a payload that asks for the one context there is, [`ALLOCATION_CONTEXT`].
    ///
    /// # Errors
    /// [`WireError::Malformed`] for another context.
    pub fn decode(bytes: &[u8; Self::LENGTH]) -> Result<Self, WireError> {
        let mut rest = &bytes[..];
        let length = u64::from_be_bytes(take(&mut rest)?);
        let context = u32::from_be_bytes(take(&mut rest)?);
        if context == ALLOCATION_CONTEXT { Ok(Self { length }) } else { Err(WireError::Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPACT: &[u8; 28] = b"\x25\x60\x95\x13\0\x01\0\x06\0\0\0\0\0\0\0\x2a\0\0\0\0\0\x01\0\0\0\0\x10\0";
    const EXTENDED: &[u8; 32] =
        b"\x21\xe4\x1c\x71\0\x28\0\x07\0\0\0\0\0\0\0\x2a\0\0\0\0\0\x01\0\0\0\0\0\x10\0\0\0\0";

    #[test]
    fn compact_requests_have_the_published_bytes() {
        let request = Request {
            flags: CommandFlags::FUA,
            command: Command::WRITE_ZEROES,
            cookie: 42,
            offset: 65536,
            length: 4096,
        };
        assert_eq!(Request::decode(COMPACT), Ok(request));
        for at in 0..4 {
            let mut bad = *COMPACT;
            bad[at] ^= 1;
            assert!(matches!(Request::decode(&bad), Err(WireError::Magic(_))));
        }
    }

    #[test]
    fn extended_requests_have_the_published_bytes() {
        let request = Request {
            flags: CommandFlags::REQ_ONE.and(CommandFlags::PAYLOAD_LEN),
            command: Command::BLOCK_STATUS,
            cookie: 42,
            offset: 65536,
            length: 1 << 36,
        };
        assert_eq!(Request::decode_extended(EXTENDED), Ok(request));
    }

    #[test]
    fn each_magic_belongs_to_its_own_form() {
        let mut compact = *COMPACT;
        compact.copy_from_slice(&EXTENDED[..28]);
        assert_eq!(Request::decode(&compact), Err(WireError::Magic(0x21e4_1c71)));
        let mut extended = *EXTENDED;
        extended[..28].copy_from_slice(COMPACT);
        assert_eq!(Request::decode_extended(&extended), Err(WireError::Magic(0x2560_9513)));
    }

    #[test]
    fn a_filter_names_the_one_context() {
        let mut bytes = *b"\0\0\0\x01\0\0\0\x02\0\0\0\x01";
        assert_eq!(StatusFilter::decode(&bytes), Ok(StatusFilter { length: (1 << 32) + 2 }));
        bytes[11] = 2;
        assert_eq!(StatusFilter::decode(&bytes), Err(WireError::Malformed));
    }
}

//! "Transmission phase", simple replies.

use super::handshake::codes;
use super::{WireError, take};

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;

/// Bytes of a request's header.
pub const REQUEST_LENGTH: usize = 28;
/// Bytes of a simple reply's header.
pub const SIMPLE_REPLY_LENGTH: usize = 16;
/// Most payload in one request or reply: 64 MiB, as nbdkit has it; clients send 48 MiB and more.
pub const MAX_PAYLOAD: u32 = 64 << 20;

codes! {
    /// "Request types".
    Command(u16) {
        /// NBD_CMD_READ.
        READ = 0,
        /// NBD_CMD_WRITE; the only command that carries a payload.
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
    /// NBD_CMD_FLAG_FAST_ZERO: fail rather than be as slow as writing.
    pub const FAST_ZERO: Self = Self(1 << 4);

    /// True if all of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True if nothing but `allowed` is set.
    pub const fn only(self, allowed: Self) -> bool {
        self.0 & !allowed.0 == 0
    }
}

/// "Error values": the only ones that may stand in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum NbdError {
    /// NBD_EPERM: the export is read-only.
    Permission = 1,
    /// NBD_EIO.
    Io = 5,
    /// NBD_EINVAL: a command, flag or range that makes no sense.
    Invalid = 22,
    /// NBD_ENOSPC: no space, or a write past the end.
    NoSpace = 28,
    /// NBD_ENOTSUP: only for [`CommandFlags::FAST_ZERO`].
    NotSupported = 95,
    /// NBD_ESHUTDOWN: the server is about to end.
    Shutdown = 108,
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
    /// Bytes.
    pub length: u32,
}

impl Request {
    /// Reads a header.
    ///
    /// # Errors
    /// [`WireError::Magic`]: the client has lost its place, and nothing that follows can be understood.
    pub fn decode(bytes: &[u8; REQUEST_LENGTH]) -> Result<Self, WireError> {
        let mut rest = &bytes[..];
        let magic = u32::from_be_bytes(take(&mut rest)?);
        if magic != REQUEST_MAGIC {
            return Err(WireError::Magic(magic.into()));
        }
        Ok(Self {
            flags: CommandFlags(u16::from_be_bytes(take(&mut rest)?)),
            command: Command(u16::from_be_bytes(take(&mut rest)?)),
            cookie: u64::from_be_bytes(take(&mut rest)?),
            offset: u64::from_be_bytes(take(&mut rest)?),
            length: u32::from_be_bytes(take(&mut rest)?),
        })
    }
}

/// Header of a simple reply; a successful read's data follows it.
pub fn simple_reply(cookie: u64, result: Result<(), NbdError>) -> [u8; SIMPLE_REPLY_LENGTH] {
    let error = result.map_or_else(|error| error as u32, |()| 0);
    let mut bytes = [0; SIMPLE_REPLY_LENGTH];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_have_the_published_bytes() {
        let bytes = b"\x25\x60\x95\x13\0\x01\0\x06\0\0\0\0\0\0\0\x2a\0\0\0\0\0\x01\0\0\0\0\x10\0";
        let request = Request {
            flags: CommandFlags::FUA,
            command: Command::WRITE_ZEROES,
            cookie: 42,
            offset: 65536,
            length: 4096,
        };
        assert_eq!(Request::decode(bytes), Ok(request));
        let mut bad = *bytes;
        bad[0] = 0;
        assert!(matches!(Request::decode(&bad), Err(WireError::Magic(_))));
        let reply = simple_reply(42, Err(NbdError::NoSpace));
        assert_eq!(&reply, b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\0\x2a");
        assert_eq!(simple_reply(0, Ok(()))[4..], [0; 12]);
    }
}

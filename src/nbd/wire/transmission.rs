//! "Transmission phase".

mod reply;
mod request;

pub use reply::{Chunk, Content, Head, STATE_HOLE_AND_ZERO, descriptor_32, descriptor_64, simple_reply};
pub use request::{Command, CommandFlags, EXTENDED_REQUEST_LENGTH, REQUEST_LENGTH, Request, StatusFilter};

/// Most payload in one request or reply: 64 MiB, as nbdkit has it; clients send 48 MiB and more.
pub const MAX_PAYLOAD: u32 = 64 << 20;

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
    /// NBD_EOVERFLOW: only for [`CommandFlags::DF`], where the data does not fit one chunk.
    Overflow = 75,
    /// NBD_ENOTSUP: only for [`CommandFlags::FAST_ZERO`].
    NotSupported = 95,
    /// NBD_ESHUTDOWN: the server is about to end.
    Shutdown = 108,
}

impl NbdError {
    /// For people, in replies that have room for it; at most [`Head::MESSAGE`] bytes.
    pub const fn message(self) -> &'static str {
        match self {
            Self::Permission => "the export is read-only or frozen",
            Self::Io => "the backing failed; the server's log has more",
            Self::Invalid => "no such command, flag, range or length",
            Self::NoSpace => "past the end of the export, or the backing is full",
            Self::Overflow => "too long to be sent as one chunk",
            Self::NotSupported => "would not be faster than writing zeros",
            Self::Shutdown => "the server is about to end",
        }
    }
}

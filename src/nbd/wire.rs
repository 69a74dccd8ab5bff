//! NBD on the wire: constants and types, to and from bytes. No I/O.
//!
//! Codes are integer newtypes with named values, so that one we do not know survives decoding and can be answered.
//! All integers are big-endian. Section names are those of doc/proto.md.

mod handshake;
mod transmission;

pub use handshake::{
    ALLOCATION, ALLOCATION_CONTEXT, ClientFlags, ContextRequest, ExportReply, GREETING, HANDSHAKE_FLAGS,
    InfoRequest, InfoType, MAX_OPTION_LENGTH, MAX_STRING, OptionCode, OptionHeader, OptionReply,
    TransmissionFlags, block_size_info, context_entry, export_info, server_entry, text_info,
};
pub use transmission::{
    Chunk, Command, CommandFlags, Content, EXTENDED_REQUEST_LENGTH, Head, MAX_PAYLOAD, NbdError,
    REQUEST_LENGTH, Request, STATE_HOLE_AND_ZERO, StatusFilter, descriptor_32, descriptor_64, simple_reply,
};

/// Bytes that no NBD client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not the magic number that belongs here.
    #[error("bad magic number {0:#x}")]
    Magic(u64),
    /// Handshake flags that were not offered.
    #[error("unknown client flags {0:#x}")]
    ClientFlags(u32),
    /// Longer than anything that makes sense here.
    #[error("length {0} is too large")]
    Length(u32),
    /// A message whose parts do not add up.
    #[error("malformed message")]
    Malformed,
}

/// Takes `N` bytes off the front.
fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], WireError> {
    let (front, rest) = bytes.split_first_chunk().ok_or(WireError::Malformed)?;
    *bytes = rest;
    Ok(*front)
}

//! "Simple reply message", "Structured reply chunk message", and the extended form of the latter.

use super::super::handshake::ALLOCATION_CONTEXT;
use super::NbdError;

const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// NBD_REPLY_FLAG_DONE: the last chunk of a reply.
const DONE: u16 = 1;

/// NBD_STATE_HOLE and NBD_STATE_ZERO of `base:allocation`: takes no space, and reads as zeros.
pub const STATE_HOLE_AND_ZERO: u32 = 3;

/// All of a reply or chunk but the bytes that are read, or the descriptors of a status.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; Self::MOST],
    length: usize,
}

impl Head {
    /// Most bytes of a message for people.
    pub const MESSAGE: usize = 64;
    /// The longest one: an extended header, error, length of the message, message and offset.
    const MOST: usize = 32 + 4 + 2 + Self::MESSAGE + 8;

    const fn new() -> Self {
        Self { bytes: [0; Self::MOST], length: 0 }
    }

    fn put<const N: usize>(self, bytes: [u8; N]) -> Self {
        self.put_slice(&bytes)
    }

    fn put_slice(mut self, bytes: &[u8]) -> Self {
        self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
        self.length += bytes.len();
        self
    }

    /// On the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Header of a simple reply; a successful read's data follows it.
pub fn simple_reply(cookie: u64, result: Result<(), NbdError>) -> Head {
    let error = result.map_or_else(|error| error as u32, |()| 0);
    Head::new().put(SIMPLE_REPLY_MAGIC.to_be_bytes()).put(error.to_be_bytes()).put(cookie.to_be_bytes())
}

/// "Structured reply types": what a chunk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// NBD_REPLY_TYPE_NONE: nothing that earlier chunks have not said. Always the last one.
    None,
    /// NBD_REPLY_TYPE_OFFSET_DATA: `length` bytes of the export, at least one, which follow the head.
    Data {
        /// Of the first byte, in the export.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// NBD_REPLY_TYPE_OFFSET_HOLE: zeros, which are not sent.
    Hole {
        /// Of the first byte, in the export.
        offset: u64,
        /// Bytes; at least one.
        length: u32,
    },
    /// NBD_REPLY_TYPE_BLOCK_STATUS, and NBD_REPLY_TYPE_BLOCK_STATUS_EXT in extended replies: the status of
    /// [`ALLOCATION_CONTEXT`], `count` descriptors, at least one, which follow the head.
    Status {
        /// Descriptors: [`descriptor_32`], in extended replies [`descriptor_64`].
        count: u32,
    },
    /// NBD_REPLY_TYPE_ERROR.
    Error(NbdError),
    /// NBD_REPLY_TYPE_ERROR_OFFSET: what earlier chunks have told stays valid.
    ErrorAt(NbdError, u64),
}

impl Content {
    const fn code(self, extended: bool) -> u16 {
        match self {
            Self::None => 0,
            Self::Data { .. } => 1,
            Self::Hole { .. } => 2,
            Self::Status { .. } if extended => 6,
            Self::Status { .. } => 5,
            Self::Error(_) => 1 << 15 | 1,
            Self::ErrorAt(..) => 1 << 15 | 2,
        }
    }

    /// Bytes after the chunk's header.
    fn length(self, extended: bool) -> u64 {
        match self {
            Self::None => 0,
            Self::Data { length, .. } => 8 + u64::from(length),
            Self::Hole { .. } => 12,
            Self::Status { count } if extended => 8 + 16 * u64::from(count),
            Self::Status { count } => 4 + 8 * u64::from(count),
            Self::Error(error) => 6 + error.message().len() as u64,
            Self::ErrorAt(error, _) => 14 + error.message().len() as u64,
        }
    }

    fn put(self, head: Head, extended: bool) -> Head {
        match self {
            Self::None => head,
            Self::Data { offset, .. } => head.put(offset.to_be_bytes()),
            Self::Hole { offset, length } => head.put(offset.to_be_bytes()).put(length.to_be_bytes()),
            Self::Status { count } => {
                let head = head.put(ALLOCATION_CONTEXT.to_be_bytes());
                if extended { head.put(count.to_be_bytes()) } else { head }
            }
            Self::Error(error) => put_error(head, error),
            Self::ErrorAt(error, offset) => put_error(head, error).put(offset.to_be_bytes()),
        }
    }
}

fn put_error(head: Head, error: NbdError) -> Head {
    let message = error.message();
    debug_assert!(message.len() <= Head::MESSAGE);
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    head.put((error as u32).to_be_bytes()).put(length.to_be_bytes()).put_slice(message.as_bytes())
}

/// One chunk of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Of the request.
    pub cookie: u64,
    /// Of the request; comes back in extended replies.
    pub offset: u64,
    /// No chunk follows.
    pub last: bool,
    /// What it says.
    pub content: Content,
}

impl Chunk {
    /// As a structured reply's chunk.
    pub fn encode(&self) -> Head {
        // At most a piece of data, or descriptors for a buffer.
        let length = u32::try_from(self.content.length(false)).unwrap_or(u32::MAX);
        let head = self.put_start(STRUCTURED_REPLY_MAGIC, false).put(length.to_be_bytes());
        self.content.put(head, false)
    }

    /// As an extended reply's chunk.
    pub fn encode_extended(&self) -> Head {
        let head = self.put_start(EXTENDED_REPLY_MAGIC, true).put(self.offset.to_be_bytes());
        self.content.put(head.put(self.content.length(true).to_be_bytes()), true)
    }

    fn put_start(&self, magic: u32, extended: bool) -> Head {
        let flags = if self.last { DONE } else { 0 };
        Head::new()
            .put(magic.to_be_bytes())
            .put(flags.to_be_bytes())
            .put(self.content.code(extended).to_be_bytes())
            .put(self.cookie.to_be_bytes())
    }
}

/// A descriptor of NBD_REPLY_TYPE_BLOCK_STATUS.
pub fn descriptor_32(length: u32, state: u32) -> [u8; 8] {
    (u64::from(length) << 32 | u64::from(state)).to_be_bytes()
}

/// A descriptor of NBD_REPLY_TYPE_BLOCK_STATUS_EXT.
pub fn descriptor_64(length: u64, state: u32) -> [u8; 16] {
    (u128::from(length) << 64 | u128::from(state)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structured(last: bool, content: Content) -> Vec<u8> {
        Chunk { cookie: 42, offset: 7, last, content }.encode().as_bytes().to_vec()
    }

    fn extended(last: bool, content: Content) -> Vec<u8> {
        Chunk { cookie: 42, offset: 7, last, content }.encode_extended().as_bytes().to_vec()
    }

    #[test]
    fn simple_replies_have_the_published_bytes() {
        let failed = simple_reply(42, Err(NbdError::NoSpace));
        assert_eq!(failed.as_bytes(), b"\x67\x44\x66\x98\0\0\0\x1c\0\0\0\0\0\0\0\x2a");
        assert_eq!(simple_reply(0, Ok(())).as_bytes(), b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn structured_chunks_have_the_published_bytes() {
        let start = b"\x66\x8e\x33\xef";
        let cookie = b"\0\0\0\0\0\0\0\x2a";
        let with = |parts: &[&[u8]]| parts.concat();
        assert_eq!(structured(true, Content::None), with(&[start, b"\0\x01\0\0", cookie, &[0; 4]]));
        let data = Content::Data { offset: 0x1234, length: 3 };
        let bytes = with(&[start, b"\0\0\0\x01", cookie, b"\0\0\0\x0b", b"\0\0\0\0\0\0\x12\x34"]);
        assert_eq!(structured(false, data), bytes);
        let hole = Content::Hole { offset: 0x1234, length: 0x1000 };
        let rest = b"\0\0\0\0\0\0\x12\x34\0\0\x10\0";
        assert_eq!(structured(true, hole), with(&[start, b"\0\x01\0\x02", cookie, b"\0\0\0\x0c", rest]));
        let status = Content::Status { count: 2 };
        assert_eq!(
            structured(true, status),
            with(&[start, b"\0\x01\0\x05", cookie, b"\0\0\0\x14", b"\0\0\0\x01"])
        );
    }

    #[test]
    fn structured_errors_have_the_published_bytes_and_a_message() {
        let text = NbdError::Io.message();
        let length = u8::try_from(text.len()).unwrap();
        let start = b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x2a\0\0\0";
        let error = [&start[..], &[6 + length], b"\0\0\0\x05\0", &[length], text.as_bytes()].concat();
        assert_eq!(structured(true, Content::Error(NbdError::Io)), error);
        let start = b"\x66\x8e\x33\xef\0\0\x80\x02\0\0\0\0\0\0\0\x2a\0\0\0";
        let offset = b"\0\0\0\0\0\0\0\x63";
        let error =
            [&start[..], &[14 + length], b"\0\0\0\x05\0", &[length], text.as_bytes(), offset].concat();
        assert_eq!(structured(false, Content::ErrorAt(NbdError::Io, 99)), error);
    }

    #[test]
    fn extended_chunks_have_the_published_bytes() {
        let start = b"\x6e\x8a\x27\x8c";
        let names = b"\0\0\0\0\0\0\0\x2a\0\0\0\0\0\0\0\x07";
        let with = |parts: &[&[u8]]| parts.concat();
        assert_eq!(extended(true, Content::None), with(&[start, b"\0\x01\0\0", names, &[0; 8]]));
        let data = Content::Data { offset: 9, length: 3 };
        let rest = b"\0\0\0\0\0\0\0\x0b\0\0\0\0\0\0\0\x09";
        assert_eq!(extended(false, data), with(&[start, b"\0\0\0\x01", names, rest]));
        let status = Content::Status { count: 2 };
        let rest = b"\0\0\0\0\0\0\0\x28\0\0\0\x01\0\0\0\x02";
        assert_eq!(extended(true, status), with(&[start, b"\0\x01\0\x06", names, rest]));
        let text = NbdError::Shutdown.message();
        let length = u8::try_from(text.len()).unwrap();
        let rest = [b"\0\0\0\0\0\0\0", &[6 + length][..], b"\0\0\0\x6c\0", &[length], text.as_bytes()];
        assert_eq!(
            extended(true, Content::Error(NbdError::Shutdown)),
            with(&[start, b"\0\x01\x80\x01", names, &rest.concat()])
        );
    }

    #[test]
    fn descriptors_have_the_published_bytes() {
        assert_eq!(&descriptor_32(0x1_0000, 3), b"\0\x01\0\0\0\0\0\x03");
        assert_eq!(&descriptor_64(1 << 32, 3), b"\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\x03");
    }

    #[test]
    fn every_error_has_its_number_and_a_message_that_fits() {
        for (error, number) in [
            (NbdError::Permission, 1),
            (NbdError::Io, 5),
            (NbdError::Invalid, 22),
            (NbdError::NoSpace, 28),
            (NbdError::Overflow, 75),
            (NbdError::NotSupported, 95),
            (NbdError::Shutdown, 108),
        ] {
            assert_eq!(error as u32, number);
            assert!((1..=Head::MESSAGE).contains(&error.message().len()));
            let longest = extended(true, Content::ErrorAt(error, u64::MAX));
            assert_eq!(longest.len(), 32 + 14 + error.message().len());
        }
    }
}

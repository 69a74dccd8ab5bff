//! Replies, held against the specification ("Transmission phase").
//!
//! Every request has exactly one reply. It is complete with its simple reply, or with the one chunk that has
//! NBD_REPLY_FLAG_DONE; what comes for a cookie that no request in flight has fails the test, so a second reply
//! does, and so does a byte too many, which is taken for the beginning of a reply.

use std::io;

use super::{
    BLOCK_STATUS, Client, DF, FAST_ZERO, FLUSH, Mode, READ, REQ_ONE, Stream, TRIM, WRITE, WRITE_ZEROES,
};

const DONE: u16 = 1;

const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const STATUS: u16 = 5;
const STATUS_EXT: u16 = 6;
const ERROR: u16 = 1 << 15 | 1;
const ERROR_OFFSET: u16 = 1 << 15 | 2;

/// "Error values", but for the two that have a place of their own.
const ERRORS: [u32; 6] = [1, 5, 12, 22, 28, 108];
/// For NBD_CMD_READ with NBD_CMD_FLAG_DF.
const EOVERFLOW: u32 = 75;
/// For NBD_CMD_WRITE_ZEROES with NBD_CMD_FLAG_FAST_ZERO.
const ENOTSUP: u32 = 95;

/// A complete reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reply {
    /// 0 for none; the first one, if there were several.
    pub(crate) error: u32,
    /// All of what a successful read read, holes as zeros.
    pub(crate) data: Vec<u8>,
    /// Bytes of it that came as holes.
    pub(crate) holes: u64,
    /// Lengths and flags that a block status told of.
    pub(crate) extents: Vec<(u64, u64)>,
    /// Chunks that it came in; 0 for a simple reply.
    pub(crate) chunks: usize,
}

/// A request in flight, and what has come of its reply.
pub(super) struct Expected {
    flags: u16,
    command: u16,
    offset: u64,
    length: u64,
    /// Parts of a read that are there: first byte and the one after the last.
    filled: Vec<(u64, u64)>,
    reply: Reply,
}

/// What stands before a structured or extended chunk's payload.
struct Chunk {
    flags: u16,
    kind: u16,
    cookie: u64,
    length: u64,
}

impl<S: Stream> Client<S> {
    /// A simple reply or a chunk; returned with its cookie if the reply is complete with it.
    pub(super) fn piece_of_reply(&mut self) -> io::Result<Option<(u64, Reply)>> {
        let magic = u32::from_be_bytes(self.take()?);
        match (self.mode, magic) {
            (Mode::Simple | Mode::Structured, 0x6744_6698) => self.simple().map(Some),
            (Mode::Structured, 0x668e_33ef) => {
                let (flags, kind) = (self.half()?, self.half()?);
                let (cookie, length) = (u64::from_be_bytes(self.take()?), u32::from_be_bytes(self.take()?));
                self.chunk(Chunk { flags, kind, cookie, length: length.into() })
            }
            (Mode::Extended, 0x6e8a_278c) => {
                let (flags, kind) = (self.half()?, self.half()?);
                let (cookie, offset) = (u64::from_be_bytes(self.take()?), u64::from_be_bytes(self.take()?));
                let length = u64::from_be_bytes(self.take()?);
                let asked = self.expected(cookie).offset;
                assert_eq!(offset, asked, "an extended reply names the offset of its request");
                self.chunk(Chunk { flags, kind, cookie, length })
            }
            (mode, magic) => panic!("no reply in mode {mode:?} begins with {magic:#x}"),
        }
    }

    fn half(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.take()?))
    }

    fn expected(&self, cookie: u64) -> &Expected {
        let expected = self.in_flight.get(&cookie);
        expected.unwrap_or_else(|| panic!("a reply to {cookie}, which is answered or was never asked"))
    }

    fn simple(&mut self) -> io::Result<(u64, Reply)> {
        let (error, cookie) = (u32::from_be_bytes(self.take()?), u64::from_be_bytes(self.take()?));
        let expected = self.expected(cookie);
        let structured = self.mode == Mode::Structured;
        assert!(
            !structured || !matches!(expected.command, READ | BLOCK_STATUS),
            "a simple reply to command {} after structured ones were agreed on",
            expected.command
        );
        expected.assert_legal(error);
        let length = if expected.command == READ && error == 0 { expected.length } else { 0 };
        let mut data = vec![0; usize::try_from(length).unwrap()];
        self.fill(&mut data)?;
        self.in_flight.remove(&cookie);
        Ok((cookie, Reply { error, data, ..Reply::default() }))
    }

    fn chunk(&mut self, chunk: Chunk) -> io::Result<Option<(u64, Reply)>> {
        assert_eq!(chunk.flags & !DONE, 0, "unknown reply flags");
        let most = self.expected(chunk.cookie).length.saturating_add(8).max(1 << 24);
        assert!(chunk.length <= most, "a chunk of {} bytes to a request of {most}", chunk.length);
        let mut payload = vec![0; usize::try_from(chunk.length).unwrap()];
        self.fill(&mut payload)?;
        let (mode, context) = (self.mode, self.context);
        let expected = self.in_flight.get_mut(&chunk.cookie).unwrap();
        expected.reply.chunks += 1;
        expected.take(chunk.kind, &payload, mode, context);
        if chunk.kind == NONE {
            assert_eq!(chunk.flags, DONE, "a chunk of no type is the last one");
        }
        if chunk.flags & DONE == 0 {
            return Ok(None);
        }
        let expected = self.in_flight.remove(&chunk.cookie).unwrap();
        Ok(Some((chunk.cookie, expected.complete())))
    }
}

impl Expected {
    pub(super) fn new(flags: u16, command: u16, offset: u64, length: u64) -> Self {
        Self { flags, command, offset, length, filled: Vec::new(), reply: Reply::default() }
    }

    fn assert_legal(&self, error: u32) {
        let legal = match error {
            0 => true,
            EOVERFLOW => self.command == READ && self.flags & DF != 0,
            ENOTSUP => self.command == WRITE_ZEROES && self.flags & FAST_ZERO != 0,
            error => ERRORS.contains(&error),
        };
        assert!(legal, "error {error} to command {} with flags {:#x}", self.command, self.flags);
    }

    fn take(&mut self, kind: u16, payload: &[u8], mode: Mode, context: Option<u32>) {
        match (kind, self.command) {
            (NONE, _) => assert!(payload.is_empty(), "a chunk of no type has no payload"),
            (OFFSET_DATA, READ) => {
                let (offset, data) = payload.split_first_chunk().unwrap();
                assert!(!data.is_empty(), "a chunk of data without data");
                let start = self.fills(u64::from_be_bytes(*offset), data.len() as u64);
                self.reply.data[start..start + data.len()].copy_from_slice(data);
            }
            (OFFSET_HOLE, READ) => {
                let (offset, length) = payload.split_first_chunk().unwrap();
                let length = u32::from_be_bytes(length.try_into().unwrap()).into();
                assert_ne!(length, 0, "a hole of no length");
                self.fills(u64::from_be_bytes(*offset), length);
                self.reply.holes += length;
            }
            (STATUS, BLOCK_STATUS) => self.take_status(payload, context, false),
            (STATUS_EXT, BLOCK_STATUS) if mode == Mode::Extended => self.take_status(payload, context, true),
            (ERROR | ERROR_OFFSET, _) => self.take_error(payload, kind == ERROR_OFFSET),
            (kind, command) => panic!("a chunk of type {kind:#x} in reply to command {command}"),
        }
    }

    /// Where in the read's data the part begins that came now, which must not have come before.
    fn fills(&mut self, offset: u64, length: u64) -> usize {
        let start = offset.checked_sub(self.offset).expect("a part before the beginning of the read");
        let end = start + length;
        assert!(end <= self.length, "a part beyond the end of the read");
        assert!(
            self.filled.iter().all(|(first, last)| end <= *first || *last <= start),
            "a part comes twice"
        );
        self.filled.push((start, end));
        self.reply.data.resize(usize::try_from(self.length).unwrap(), 0);
        usize::try_from(start).unwrap()
    }

    fn take_status(&mut self, payload: &[u8], context: Option<u32>, extended: bool) {
        assert!(self.reply.extents.is_empty(), "two chunks for one metadata context");
        let (id, mut extents) = payload.split_first_chunk().unwrap();
        assert_eq!(Some(u32::from_be_bytes(*id)), context);
        let size = if extended { 16 } else { 8 };
        if extended {
            let (count, rest) = extents.split_first_chunk().unwrap();
            extents = rest;
            assert_eq!(u32::from_be_bytes(*count) as usize * size, extents.len());
        }
        assert!(
            !extents.is_empty() && extents.len().is_multiple_of(size),
            "{} bytes of extents",
            extents.len()
        );
        let number = |bytes: &[u8]| bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        let pairs = extents.chunks(size).map(|pair| (number(&pair[..size / 2]), number(&pair[size / 2..])));
        self.reply.extents = pairs.collect();
        let (last, others) = self.reply.extents.split_last().unwrap();
        let before: u64 = others.iter().map(|(length, _)| length).sum();
        assert!(others.iter().all(|(length, _)| *length > 0) && last.0 > 0, "an extent of no length");
        assert!(before < self.length, "extents begin beyond the range that was asked for");
        if self.flags & REQ_ONE != 0 {
            assert!(others.is_empty() && last.0 <= self.length, "more than the one extent asked for");
        }
    }

    fn take_error(&mut self, payload: &[u8], with_offset: bool) {
        let (error, rest) = payload.split_first_chunk().unwrap();
        let (length, rest) = rest.split_first_chunk().unwrap();
        let (message, rest) = rest.split_at(u16::from_be_bytes(*length).into());
        assert!(std::str::from_utf8(message).is_ok());
        if with_offset {
            let offset = u64::from_be_bytes(rest.try_into().unwrap());
            assert!(offset >= self.offset && offset - self.offset < self.length, "an error elsewhere");
        } else {
            assert!(rest.is_empty(), "{} bytes after an error", rest.len());
        }
        let error = u32::from_be_bytes(*error);
        assert_ne!(error, 0, "a chunk of an error without an error");
        self.assert_legal(error);
        if self.reply.error == 0 {
            self.reply.error = error;
        }
    }

    fn complete(self) -> Reply {
        let mut reply = self.reply;
        if reply.error != 0 {
            return reply;
        }
        match self.command {
            READ => {
                let filled: u64 = self.filled.iter().map(|(first, last)| last - first).sum();
                assert_eq!(filled, self.length, "a read is complete without all of its data");
                assert!(self.flags & DF == 0 || self.filled.len() <= 1, "a read in parts, which DF forbids");
                reply.data.resize(usize::try_from(self.length).unwrap(), 0);
            }
            BLOCK_STATUS => assert!(!reply.extents.is_empty(), "a block status without extents"),
            WRITE | FLUSH | TRIM | WRITE_ZEROES => assert_eq!(reply.chunks, 1),
            _ => {}
        }
        reply
    }
}

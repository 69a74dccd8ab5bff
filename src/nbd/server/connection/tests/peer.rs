//! A client that accepts legal replies only: of the form that was agreed on, to requests that were made, once each,
//! and with contents that fit the request.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::super::super::Replies;
use crate::nbd::wire::Command;

pub(super) const FUA: u16 = 1;
pub(super) const DF: u16 = 4;
pub(super) const REQ_ONE: u16 = 8;
pub(super) const PAYLOAD_LEN: u16 = 32;

pub(super) struct Peer {
    pub(super) stream: UnixStream,
    replies: Replies,
    cookies: u64,
    asked: HashMap<u64, Asked>,
}

struct Asked {
    command: Command,
    flags: u16,
    offset: u64,
    length: u64,
    parts: Vec<Part>,
}

/// What a chunk, or a simple reply, said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Data(u64, Vec<u8>),
    Hole(u64, u64),
    /// Lengths and states.
    Status(Vec<(u64, u64)>),
    Error(u32),
    ErrorAt(u32, u64),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) cookie: u64,
    pub(super) parts: Vec<Part>,
}

impl Reply {
    /// The error, 0 if there is none.
    pub(super) fn error(&self) -> u32 {
        let mut errors = self.parts.iter().filter_map(|part| match part {
            Part::Error(error) | Part::ErrorAt(error, _) => Some(*error),
            _ => None,
        });
        errors.next_back().unwrap_or(0)
    }

    /// What was read from `offset`, holes filled in; what was not told of is 0xAA.
    pub(super) fn data(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0xAA; length];
        for part in &self.parts {
            match part {
                Part::Data(at, data) => {
                    let at = usize::try_from(at - offset).unwrap();
                    bytes[at..at + data.len()].copy_from_slice(data);
                }
                Part::Hole(at, length) => {
                    let at = usize::try_from(at - offset).unwrap();
                    bytes[at..at + usize::try_from(*length).unwrap()].fill(0);
                }
                _ => {}
            }
        }
        bytes
    }
}

impl Peer {
    pub(super) fn new(stream: UnixStream, replies: Replies) -> Self {
        Self { stream, replies, cookies: 100, asked: HashMap::new() }
    }

    /// A request's bytes, without its payload; its reply is expected from now on.
    pub(super) fn request(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u64,
    ) -> (u64, Vec<u8>) {
        self.cookies += 1;
        let cookie = self.cookies;
        let extended = self.replies == Replies::Extended;
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(command.0.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        if extended {
            bytes.extend(length.to_be_bytes());
        } else {
            bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        }
        self.asked.insert(cookie, Asked { command, flags, offset, length, parts: Vec::new() });
        (cookie, bytes)
    }

    /// Sends a request and returns its cookie.
    pub(super) fn ask(&mut self, command: Command, flags: u16, offset: u64, length: u64) -> u64 {
        let (cookie, bytes) = self.request(command, flags, offset, length);
        self.stream.write_all(&bytes).unwrap();
        cookie
    }

    /// Sends a request and waits for its reply, which must be the next one.
    pub(super) fn done(&mut self, command: Command, flags: u16, offset: u64, length: u64) -> Reply {
        let cookie = self.ask(command, flags, offset, length);
        let reply = self.reply();
        assert_eq!(reply.cookie, cookie);
        reply
    }

    /// Sends a write with the flags that its form asks for, and waits for its reply.
    pub(super) fn write(&mut self, flags: u16, offset: u64, data: &[u8]) -> Reply {
        let payload = if self.replies == Replies::Extended { PAYLOAD_LEN } else { 0 };
        let (cookie, bytes) = self.request(Command::WRITE, flags | payload, offset, data.len() as u64);
        self.stream.write_all(&[&bytes, data].concat()).unwrap();
        let reply = self.reply();
        assert_eq!(reply.cookie, cookie);
        reply
    }

    /// How many replies are still to come.
    pub(super) fn outstanding(&self) -> usize {
        self.asked.len()
    }

    /// Takes chunks until a reply is complete.
    pub(super) fn reply(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.chunk() {
                return reply;
            }
        }
    }

    /// The stream ends here.
    pub(super) fn assert_closed(&mut self) {
        assert_eq!(self.stream.read(&mut [0]).unwrap_or(0), 0, "something follows");
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn take_vec(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn take_u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take())
    }

    fn take_u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take())
    }

    fn chunk(&mut self) -> Option<Reply> {
        match (self.take_u32(), self.replies) {
            (0x6744_6698, Replies::Simple | Replies::Structured) => Some(self.simple()),
            (0x668e_33ef, Replies::Structured) | (0x6e8a_278c, Replies::Extended) => self.structured(),
            (magic, replies) => panic!("{magic:#x} in {replies:?}"),
        }
    }

    fn simple(&mut self) -> Reply {
        let (error, cookie) = (self.take_u32(), self.take_u64());
        let asked = self.asked.remove(&cookie).expect("a request without a reply yet");
        assert!(asked.parts.is_empty(), "a simple reply after chunks");
        let mut parts = Vec::new();
        if self.replies == Replies::Structured {
            assert!(asked.command != Command::READ && asked.command != Command::BLOCK_STATUS);
        }
        if error != 0 {
            parts.push(Part::Error(legal(error)));
        } else if asked.command == Command::READ {
            parts.push(Part::Data(asked.offset, self.take_vec(asked.length)));
        }
        Reply { cookie, parts }
    }

    fn structured(&mut self) -> Option<Reply> {
        let (flags, kind) = (u16::from_be_bytes(self.take()), u16::from_be_bytes(self.take()));
        let cookie = self.take_u64();
        let extended = self.replies == Replies::Extended;
        let offset = if extended { Some(self.take_u64()) } else { None };
        let length = if extended { self.take_u64() } else { self.take_u32().into() };
        assert!(flags <= 1, "unknown flags {flags:#x}");
        let part = self.part(kind, length);
        let asked = self.asked.get_mut(&cookie).expect("a request whose reply is not complete");
        assert!(offset.is_none_or(|offset| offset == asked.offset));
        assert!(part.is_some() || flags == 1, "NBD_REPLY_TYPE_NONE is the last chunk");
        if let Some(part) = part {
            asked.accept(part);
        }
        if flags == 0 {
            return None;
        }
        let asked = self.asked.remove(&cookie).unwrap();
        asked.assert_complete();
        Some(Reply { cookie, parts: asked.parts })
    }

    fn part(&mut self, kind: u16, length: u64) -> Option<Part> {
        Some(match kind {
            0 => {
                assert_eq!(length, 0);
                return None;
            }
            1 => {
                assert!(length >= 9);
                Part::Data(self.take_u64(), self.take_vec(length - 8))
            }
            2 => {
                assert_eq!(length, 12);
                Part::Hole(self.take_u64(), self.take_u32().into())
            }
            5 => {
                assert!(self.replies == Replies::Structured && length > 4);
                assert_eq!((self.take_u32(), (length - 4) % 8), (1, 0));
                let pairs = (0..(length - 4) / 8).map(|_| (self.take_u32().into(), self.take_u32().into()));
                Part::Status(pairs.collect())
            }
            6 => {
                assert!(self.replies == Replies::Extended);
                assert_eq!((self.take_u32(), (length - 8) % 16), (1, 0));
                assert_eq!(u64::from(self.take_u32()), (length - 8) / 16);
                let pairs = (0..(length - 8) / 16).map(|_| (self.take_u64(), self.take_u64()));
                Part::Status(pairs.collect())
            }
            0x8001 | 0x8002 => {
                let error = legal(self.take_u32());
                let message = u16::from_be_bytes(self.take()).into();
                assert!(!String::from_utf8(self.take_vec(message)).unwrap().is_empty());
                let rest = length - 6 - message;
                if kind == 0x8001 {
                    assert_eq!(rest, 0);
                    Part::Error(error)
                } else {
                    assert_eq!(rest, 8);
                    Part::ErrorAt(error, self.take_u64())
                }
            }
            other => panic!("chunk of type {other:#x}"),
        })
    }
}

impl Asked {
    fn accept(&mut self, part: Part) {
        let inside = |offset: u64, length: u64| {
            offset >= self.offset && length > 0 && offset + length <= self.offset + self.length
        };
        match &part {
            Part::Data(offset, data) => {
                assert!(self.command == Command::READ && inside(*offset, data.len() as u64));
            }
            Part::Hole(offset, length) => {
                assert!(self.command == Command::READ && inside(*offset, *length));
                assert_eq!(self.flags & DF, 0, "what may not be fragmented is data");
            }
            Part::Status(extents) => {
                assert!(self.command == Command::BLOCK_STATUS && self.parts.is_empty());
                assert!(!extents.is_empty() && extents.iter().all(|(length, _)| *length > 0));
                assert!(self.flags & REQ_ONE == 0 || extents.len() == 1);
                assert!(extents.windows(2).all(|pair| pair[0].1 != pair[1].1), "neighbours differ");
                let sum: u64 = extents.iter().map(|(length, _)| length).sum();
                assert!(self.flags & PAYLOAD_LEN != 0 || sum <= self.length);
            }
            Part::ErrorAt(_, offset) => assert!(inside(*offset, 1)),
            Part::Error(_) => assert!(self.parts.is_empty(), "not mixed with contents"),
        }
        self.parts.push(part);
    }

    /// Without an error, contents cover the range without overlap; unfragmented ones are one chunk.
    fn assert_complete(&self) {
        let failed = self.parts.iter().any(|part| matches!(part, Part::Error(_) | Part::ErrorAt(..)));
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for part in &self.parts {
            match part {
                Part::Data(offset, data) => ranges.push((*offset, data.len() as u64)),
                Part::Hole(offset, length) => ranges.push((*offset, *length)),
                _ => {}
            }
        }
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "chunks overlap");
        assert!(self.flags & DF == 0 || ranges.len() <= 1);
        if self.command == Command::READ && !failed {
            assert_eq!(ranges.iter().map(|(_, length)| length).sum::<u64>(), self.length);
        }
        if self.command == Command::BLOCK_STATUS && !failed {
            assert_eq!(self.parts.len(), 1);
        }
    }
}

/// "Error values".
fn legal(error: u32) -> u32 {
    assert!([1, 5, 12, 22, 28, 75, 95, 108].contains(&error), "{error} is no error of NBD");
    error
}

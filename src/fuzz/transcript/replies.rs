//! Replies in transmission, and the requests that they belong to.

use std::collections::HashMap;

use super::{Agreed, Bytes, Mode};

const SIMPLE: u64 = 0x6744_6698;
const STRUCTURED: u64 = 0x668e_33ef;
const EXTENDED: u64 = 0x6e8a_278c;

const READ: u16 = 0;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;
const DF: u16 = 1 << 2;
const REQ_ONE: u16 = 1 << 3;
const FAST_ZERO: u16 = 1 << 4;

/// A request, and what has come of its reply.
pub(super) struct Asked {
    flags: u16,
    command: u16,
    offset: u64,
    length: u64,
    /// Parts of a read that have come: first byte and the one after the last, from the read's beginning.
    filled: Vec<(u64, u64)>,
    has_status: bool,
    failed: bool,
}

/// Requests that are to be answered.
pub(super) struct Replies {
    pub(super) agreed: Agreed,
    pub(super) asked: HashMap<u64, Asked>,
}

impl Replies {
    /// Takes every reply, and panics unless each request has one.
    pub(super) fn check(mut self, output: &mut Bytes<'_>) {
        while !output.0.is_empty() {
            self.piece(output).unwrap_or_else(|| panic!("half a reply at the end"));
        }
        assert!(self.asked.is_empty(), "{} requests are not answered", self.asked.len());
    }

    fn asked(&mut self, cookie: u64) -> &mut Asked {
        let asked = self.asked.get_mut(&cookie);
        asked.unwrap_or_else(|| panic!("a reply to {cookie}, which is answered or was never asked"))
    }

    fn piece(&mut self, output: &mut Bytes<'_>) -> Option<()> {
        match (self.agreed.mode, output.number(4)?) {
            (Mode::Simple | Mode::Structured, SIMPLE) => self.simple(output),
            (Mode::Structured, STRUCTURED) | (Mode::Extended, EXTENDED) => self.chunk(output),
            (mode, magic) => panic!("no reply in mode {mode:?} begins with {magic:#x}"),
        }
    }

    fn simple(&mut self, output: &mut Bytes<'_>) -> Option<()> {
        let (error, cookie) = (output.number(4)?, output.number(8)?);
        let simple = self.agreed.mode == Mode::Simple;
        let asked = self.asked(cookie);
        let must_be_structured = matches!(asked.command, READ | BLOCK_STATUS);
        assert!(simple || !must_be_structured, "a simple reply where structured ones were agreed on");
        asked.assert_legal(error);
        if error == 0 {
            let length = if asked.command == READ { asked.length } else { 0 };
            output.take(usize::try_from(length).ok()?)?;
        }
        self.asked.remove(&cookie);
        Some(())
    }

    fn chunk(&mut self, output: &mut Bytes<'_>) -> Option<()> {
        let (flags, kind, cookie) = (output.half()?, output.half()?, output.number(8)?);
        let Agreed { mode, context } = self.agreed;
        let asked = self.asked(cookie);
        let width = if mode == Mode::Extended {
            assert_eq!(output.number(8)?, asked.offset, "an extended reply names the offset of its request");
            8
        } else {
            4
        };
        let length = output.length(width)?;
        let mut payload = Bytes(output.take(length)?);
        let taken = match kind {
            0 => (flags == 1).then_some(()),
            1 | 2 if asked.command == READ => asked.data(&mut payload, kind == 2),
            5 if asked.command == BLOCK_STATUS => asked.status(&mut payload, context, 4),
            6 if mode == Mode::Extended && asked.command == BLOCK_STATUS => {
                asked.status(&mut payload, context, 8)
            }
            0x8001 | 0x8002 => asked.error(&mut payload, kind == 0x8002),
            _ => None,
        };
        let fits = taken.is_some() && payload.0.is_empty() && flags & !1 == 0;
        assert!(fits, "a chunk of type {kind:#x}, flags {flags:#x} and {length} bytes");
        if flags == 1 {
            asked.assert_complete();
            self.asked.remove(&cookie);
        }
        Some(())
    }
}

impl Asked {
    pub(super) fn new(flags: u16, command: u16, offset: u64, length: u64) -> Self {
        Self { flags, command, offset, length, filled: Vec::new(), has_status: false, failed: false }
    }

    /// A block status with a payload has its length there.
    pub(super) fn take_payload(&mut self, mut payload: Bytes<'_>) {
        if let (BLOCK_STATUS, Some(length)) = (self.command, payload.number(8)) {
            self.length = length;
        }
    }

    /// "Error values".
    fn assert_legal(&self, error: u64) {
        let legal = match error {
            0 | 1 | 5 | 12 | 22 | 28 | 108 => true,
            75 => self.command == READ && self.flags & DF != 0,
            95 => self.command == WRITE_ZEROES && self.flags & FAST_ZERO != 0,
            _ => false,
        };
        assert!(legal, "error {error} in reply to command {} with flags {:#x}", self.command, self.flags);
    }

    fn data(&mut self, payload: &mut Bytes<'_>, is_hole: bool) -> Option<()> {
        let start = payload.number(8)?.checked_sub(self.offset)?;
        let length = if is_hole { payload.number(4)? } else { payload.0.len() as u64 };
        if !is_hole {
            payload.take(payload.0.len())?;
        }
        let end = start.checked_add(length)?;
        assert!(length > 0 && end <= self.length, "a part of {length} bytes at {start} of {}", self.length);
        let apart = self.filled.iter().all(|(first, last)| end <= *first || *last <= start);
        assert!(apart, "a part of a read comes twice");
        self.filled.push((start, end));
        Some(())
    }

    fn status(&mut self, payload: &mut Bytes<'_>, context: Option<u32>, width: usize) -> Option<()> {
        assert!(!self.has_status, "a second chunk for the one metadata context");
        self.has_status = true;
        assert_eq!(payload.number(4)?, u64::from(context?), "the metadata context that was selected");
        if width == 8 {
            let count = payload.length(4)?;
            assert_eq!(count * 16, payload.0.len(), "the number of extents");
        }
        let (mut covered, mut count) = (0_u64, 0);
        while !payload.0.is_empty() {
            let (length, flags) = (payload.number(width)?, payload.number(width)?);
            assert!(length > 0 && covered < self.length, "an extent of {length} bytes after {covered}");
            assert!(flags & !3 == 0, "flags {flags:#x} of base:allocation");
            covered = covered.checked_add(length)?;
            count += 1;
        }
        assert!(count > 0, "a block status without extents");
        let one = count == 1 && covered <= self.length;
        assert!(self.flags & REQ_ONE == 0 || one, "more than the one extent that was asked for");
        Some(())
    }

    fn error(&mut self, payload: &mut Bytes<'_>, with_offset: bool) -> Option<()> {
        let (error, length) = (payload.number(4)?, payload.length(2)?);
        assert_ne!(error, 0, "a chunk of an error without an error");
        self.assert_legal(error);
        assert!(std::str::from_utf8(payload.take(length)?).is_ok());
        if with_offset {
            let at = payload.number(8)?.checked_sub(self.offset)?;
            assert!(at < self.length, "an error elsewhere");
        }
        self.failed = true;
        Some(())
    }

    fn assert_complete(&self) {
        if self.failed {
            return;
        }
        let filled: u64 = self.filled.iter().map(|(first, last)| last - first).sum();
        assert!(self.command != READ || filled == self.length, "a read of {filled} bytes of {}", self.length);
        assert!(self.flags & DF == 0 || self.filled.len() < 2, "a read in parts, which DF forbids");
        assert!(self.command != BLOCK_STATUS || self.has_status, "a block status without extents");
    }
}

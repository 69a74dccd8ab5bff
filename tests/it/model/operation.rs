//! Requests, and the errors that the specification names for them.

use std::fmt;
use std::ops::Range;

use super::random::Random;
use crate::raw::{
    BLOCK_STATUS, CACHE, DF, FAST_ZERO, FLUSH, FUA, Mode, NO_HOLE, PAYLOAD_LEN, READ, REQ_ONE, TRIM, WRITE,
    WRITE_ZEROES,
};

pub(super) const OK: u32 = 0;
pub(super) const EPERM: u32 = 1;
pub(super) const EINVAL: u32 = 22;
pub(super) const ENOSPC: u32 = 28;
pub(super) const EOVERFLOW: u32 = 75;
pub(super) const ENOTSUP: u32 = 95;

/// Most bytes in one READ or WRITE (docs/nbd.md).
const MAX_PAYLOAD: u64 = 64 << 20;
/// Most bytes in a READ with NBD_CMD_FLAG_DF (docs/nbd.md).
const MAX_CHUNK: u64 = 1 << 20;

/// What a test knows of the volume that it drives.
#[derive(Clone, Copy, Debug)]
pub(super) struct Export {
    pub(super) size: u64,
    pub(super) sector: u64,
    pub(super) discard: bool,
    pub(super) read_only: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Operation {
    pub(super) command: u16,
    pub(super) flags: u16,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// What the data of a WRITE is made of; 0 for zeros.
    seed: u64,
}

impl Operation {
    pub(super) fn new(command: u16, flags: u16, offset: u64, length: u64) -> Self {
        Self { command, flags, offset, length, seed: 0 }
    }

    pub(super) fn write(random: &mut Random, offset: u64, length: u64) -> Self {
        Self { command: WRITE, flags: 0, offset, length, seed: random.number() }
    }

    /// Any request on any range, good or bad.
    pub(super) fn any(random: &mut Random, export: &Export, mode: Mode) -> Self {
        let command = random.one_of(&[
            READ,
            READ,
            READ,
            READ,
            WRITE,
            WRITE,
            WRITE,
            WRITE,
            WRITE,
            WRITE,
            TRIM,
            TRIM,
            WRITE_ZEROES,
            WRITE_ZEROES,
            BLOCK_STATUS,
            BLOCK_STATUS,
            CACHE,
            FLUSH,
        ]);
        let command = if random.once_in(80) { random.one_of(&[8, 9, 99, u16::MAX]) } else { command };
        let (offset, length) = place(random, export, command, mode);
        Self { flags: flags(random, command, mode), ..Self::on(random, command, offset, length) }
    }

    /// A good request on a part of `window`.
    pub(super) fn inside(random: &mut Random, window: &Range<u64>) -> Self {
        let command =
            random.one_of(&[READ, READ, READ, WRITE, WRITE, WRITE, TRIM, WRITE_ZEROES, BLOCK_STATUS, CACHE]);
        let start = window.start + random.below(window.end - window.start);
        let length = 1 + random.below(window.end - start);
        let whole = random.once_in(4);
        let range = if whole { window.clone() } else { start..start + length };
        Self {
            flags: if command == WRITE_ZEROES { random.one_of(&[0, NO_HOLE, FUA]) } else { 0 },
            ..Self::on(random, command, range.start, range.end - range.start)
        }
    }

    fn on(random: &mut Random, command: u16, offset: u64, length: u64) -> Self {
        let seed = if random.once_in(12) { 0 } else { random.number() };
        match command {
            FLUSH => Self { command, flags: 0, offset: 0, length: 0, seed },
            _ => Self { command, flags: 0, offset, length, seed },
        }
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(self.length)
    }

    /// The grains of `grain` bytes that it touches.
    pub(super) fn touched(&self, grain: u64) -> Range<u64> {
        let range = self.range();
        if range.is_empty() { 0..0 } else { range.start / grain..range.end.div_ceil(grain) }
    }

    /// Those that lie inside it as a whole.
    pub(super) fn whole(&self, grain: u64) -> Range<u64> {
        let Range { start, end } = self.range();
        start.div_ceil(grain)..(end / grain).max(start.div_ceil(grain))
    }

    pub(super) fn changes(&self) -> bool {
        matches!(self.command, WRITE | TRIM | WRITE_ZEROES)
    }

    /// The data of a WRITE.
    pub(super) fn data(&self) -> Vec<u8> {
        let length = if self.command == WRITE { self.length as usize } else { 0 };
        if self.seed == 0 { vec![0; length] } else { Random::bytes(self.seed, length) }
    }

    /// With which errors it may be answered; with [`OK`] alone if nothing is wrong with it. A request that errs in
    /// several ways may be told of any of them.
    pub(super) fn outcomes(&self, export: &Export, mode: Mode) -> Vec<u32> {
        let mut errors = Vec::new();
        let beyond = self.offset.checked_add(self.length).is_none_or(|end| end > export.size);
        if self.flags & !legal_flags(self.command, mode) != 0 || self.command > BLOCK_STATUS {
            errors.push(EINVAL);
        }
        if self.changes() && export.read_only {
            errors.push(EPERM);
        }
        if beyond && self.command != FLUSH {
            errors.push(if matches!(self.command, WRITE | WRITE_ZEROES) { ENOSPC } else { EINVAL });
        }
        match self.command {
            READ => {
                if self.length > MAX_PAYLOAD {
                    errors.push(EINVAL);
                }
                if self.length > MAX_CHUNK && self.flags & DF != 0 {
                    errors.push(EOVERFLOW);
                }
            }
            BLOCK_STATUS if mode == Mode::Simple || self.length == 0 => errors.push(EINVAL),
            WRITE_ZEROES if self.flags & FAST_ZERO != 0 && (self.flags & NO_HOLE != 0 || !export.discard) => {
                errors.push(ENOTSUP);
            }
            _ => {}
        }
        if errors.is_empty() {
            errors.push(OK);
        }
        errors
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const COMMANDS: [&str; 8] =
            ["READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES", "BLOCK_STATUS"];
        match COMMANDS.get(usize::from(self.command)) {
            Some(name) => write!(f, "{name}")?,
            None => write!(f, "command {}", self.command)?,
        }
        write!(f, " flags {:#x} offset {} length {}", self.flags, self.offset, self.length)
    }
}

/// Flags that a command may have in a mode ("Command flags"). The client sets NBD_CMD_FLAG_PAYLOAD_LEN by itself.
fn legal_flags(command: u16, mode: Mode) -> u16 {
    FUA | match command {
        READ if mode != Mode::Simple => DF,
        WRITE if mode == Mode::Extended => PAYLOAD_LEN,
        WRITE_ZEROES => NO_HOLE | FAST_ZERO,
        BLOCK_STATUS => REQ_ONE,
        _ => 0,
    }
}

fn flags(random: &mut Random, command: u16, mode: Mode) -> u16 {
    if random.once_in(40) {
        // PAYLOAD_LEN promises a payload, which the client sends with a WRITE only.
        return random.below(1 << 16) as u16 & !if mode == Mode::Extended { PAYLOAD_LEN } else { 0 };
    }
    let fua = if random.once_in(12) { FUA } else { 0 };
    fua | match command {
        READ if mode != Mode::Simple => random.one_of(&[0, 0, DF]),
        WRITE_ZEROES => random.one_of(&[0, 0, 0, NO_HOLE, FAST_ZERO, FAST_ZERO | NO_HOLE]),
        BLOCK_STATUS => random.one_of(&[0, 0, REQ_ONE]),
        _ => 0,
    }
}

/// Offset and length: most often small, at borders or beside them; sometimes long, at the end, or beyond it.
fn place(random: &mut Random, export: &Export, command: u16, mode: Mode) -> (u64, u64) {
    let moves_data = matches!(command, READ | WRITE);
    let length = length(random, export, moves_data);
    if random.once_in(25) {
        return beyond(random, export, length, moves_data, mode);
    }
    let last = export.size.saturating_sub(length);
    let offset = match random.below(8) {
        0 => 0,
        1 => last,
        2 => last.saturating_sub(random.below(export.sector)),
        // Regions of the volume's locks, and other round numbers.
        3 | 4 => {
            let border = random.one_of(&[4 << 10, 64 << 10, 256 << 10, 1 << 20, 32 << 20, 64 << 20]);
            let border = random.below(export.size / border) * border;
            (border + random.below(2 * export.sector)).saturating_sub(random.one_of(&[
                0,
                export.sector,
                length,
            ]))
        }
        5 | 6 => random.below(last + 1) / export.sector * export.sector,
        _ => random.below(last + 1),
    };
    (offset.min(last), length)
}

fn length(random: &mut Random, export: &Export, moves_data: bool) -> u64 {
    let sector = export.sector;
    let near = |random: &mut Random, length: u64| (length + random.below(5)).saturating_sub(2);
    match random.below(400) {
        0..12 => 0,
        12..70 => 1 + random.below(16),
        70..150 => {
            let sectors = 1 + random.below(9);
            near(random, sectors * sector)
        }
        150..190 => (1 + random.below(16)) * sector,
        190..300 => 1 + random.below(64 << 10),
        300..350 => 1 + random.below(1 << 20),
        350..370 => {
            let pieces = 1 + random.below(4);
            near(random, pieces << 20)
        }
        370..397 => 1 + random.below(4 << 20),
        _ if moves_data => (48 << 20) + random.below((16 << 20) + 1),
        _ => 1 + random.below(export.size),
    }
    .min(export.size)
}

/// A range that is not in the export. What carries data is short, since the server has to take it off the stream.
fn beyond(random: &mut Random, export: &Export, length: u64, moves_data: bool, mode: Mode) -> (u64, u64) {
    let short = if moves_data { length.min(1 << 20) } else { length }.max(1);
    match random.below(5) {
        0 => (export.size, short),
        1 => (export.size - short.min(export.size) + 1, short),
        2 => (u64::MAX - random.below(short), short),
        3 if !moves_data && mode == Mode::Extended => (random.below(export.size), u64::MAX - random.below(9)),
        3 if !moves_data => (random.below(export.size), u64::from(u32::MAX) - random.below(9)),
        _ => (export.size + random.below(1 << 40), short),
    }
}

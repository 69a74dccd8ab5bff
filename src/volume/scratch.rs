//! Requests for part of a sector.

use zeroize::Zeroizing;

use super::bytes;
use crate::geometry::{ByteRange, SectorSize};

/// One sector on the stack, for requests that cover part of it; wiped, since it holds plaintext.
pub(super) struct Scratch {
    bytes: Zeroizing<[u8; SectorSize::B4096.bytes()]>,
    length: usize,
    /// The sector's first byte.
    pub(super) offset: u64,
    part: std::ops::Range<usize>,
}

impl Scratch {
    pub(super) fn of(part: ByteRange, sector: SectorSize) -> Self {
        let covering = part.covering(sector);
        let start = usize::try_from(part.start() - covering.start()).unwrap_or_default();
        Self {
            bytes: Zeroizing::new([0; SectorSize::B4096.bytes()]),
            length: sector.bytes(),
            offset: covering.start(),
            part: start..start + bytes(part),
        }
    }

    pub(super) fn sector(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }

    pub(super) fn part(&mut self) -> &mut [u8] {
        &mut self.bytes[self.part.clone()]
    }
}

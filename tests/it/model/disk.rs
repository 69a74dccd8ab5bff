//! What a volume must hold: an array of bytes, and which sectors cannot be holes.

use std::ops::Range;

use super::operation::{Export, Operation};
use crate::raw::{NO_HOLE, TRIM, WRITE};

/// NBD_STATE_HOLE and NBD_STATE_ZERO ("Metadata contexts").
const HOLE: u64 = 1;
const ZERO: u64 = 2;

pub(super) struct Disk {
    export: Export,
    pub(super) bytes: Vec<u8>,
    /// Sectors that were written, whole or in part, and not discarded since.
    written: Vec<bool>,
}

pub(super) fn indices(range: &Range<u64>) -> Range<usize> {
    range.start as usize..range.end as usize
}

impl Disk {
    /// A volume that nobody has written to.
    pub(super) fn new(export: Export) -> Self {
        let sectors = (export.size / export.sector) as usize;
        Self { export, bytes: vec![0; export.size as usize], written: vec![false; sectors] }
    }

    /// What a change sets, and to what; `None` to zeros.
    fn effect(&self, operation: &Operation) -> (Range<u64>, Option<Vec<u8>>) {
        match operation.command {
            WRITE => (operation.range(), Some(operation.data())),
            // As docs/nbd.md has it; the specification leaves it open.
            TRIM if self.export.discard => {
                let (sector, whole) = (self.export.sector, operation.whole(self.export.sector));
                (whole.start * sector..whole.end * sector, None)
            }
            TRIM => (0..0, None),
            _ => (operation.range(), None),
        }
    }

    /// Sectors that a change leaves as holes, or may leave so.
    fn discards(&self, operation: &Operation) -> Range<u64> {
        let keeps = operation.command == WRITE || operation.flags & NO_HOLE != 0 || !self.export.discard;
        if keeps { 0..0 } else { operation.whole(self.export.sector) }
    }

    fn allocates(&self, operation: &Operation) -> Range<u64> {
        if operation.command == TRIM { 0..0 } else { operation.touched(self.export.sector) }
    }

    /// Does what a change does that succeeds.
    pub(super) fn change(&mut self, operation: &Operation) {
        match self.effect(operation) {
            (range, Some(data)) => self.bytes[indices(&range)].copy_from_slice(&data),
            (range, None) => self.bytes[indices(&range)].fill(0),
        }
        let (allocated, discarded) = (self.allocates(operation), self.discards(operation));
        self.written[indices(&allocated)].fill(true);
        self.written[indices(&discarded)].fill(false);
    }

    /// Fails unless `data` is what stands at `offset`.
    pub(super) fn check_data(&self, offset: u64, data: &[u8]) {
        let expected = &self.bytes[offset as usize..][..data.len()];
        if data != expected {
            let wrong = (0..data.len()).filter(|at| data[*at] != expected[*at]);
            let (first, last) = (wrong.clone().next().unwrap(), wrong.clone().next_back().unwrap());
            panic!(
                "{} wrong bytes from {} to {}; the first one is {:#x} instead of {:#x}",
                wrong.count(),
                offset + first as u64,
                offset + last as u64,
                data[first],
                expected[first]
            );
        }
    }

    /// Fails if an extent is none of the range's, or is called a hole and cannot be one. `may_change` are changes
    /// that were in flight meanwhile.
    pub(super) fn check_status(
        &self,
        operation: &Operation,
        extents: &[(u64, u64)],
        may_change: &[Operation],
    ) {
        let told: u64 = extents.iter().map(|(length, _)| length).sum();
        assert!((1..=operation.length).contains(&told), "{told} bytes told of: {extents:?}");
        assert!(extents.windows(2).all(|pair| pair[0].1 != pair[1].1), "neighbours alike: {extents:?}");
        let mut end = operation.offset;
        for (length, state) in extents {
            let extent = end..end + length;
            end = extent.end;
            match *state {
                0 => {}
                state if state == HOLE | ZERO => self.check_hole(&extent, may_change),
                state => panic!("state {state} of {extent:?}"),
            }
        }
    }

    fn check_hole(&self, hole: &Range<u64>, may_change: &[Operation]) {
        let sector = self.export.sector;
        let discarded =
            |number: u64| may_change.iter().any(|operation| self.discards(operation).contains(&number));
        for number in hole.start / sector..hole.end.div_ceil(sector) {
            let whole = number * sector..(number + 1) * sector;
            let part = whole.start.max(hole.start)..whole.end.min(hole.end);
            let is_zero = self.bytes[indices(&part)].iter().all(|byte| *byte == 0);
            let can_be = is_zero && !self.written[number as usize] || discarded(number);
            assert!(can_be, "the hole {hole:?} holds the written sector {number}, zeros: {is_zero}");
        }
    }

    /// Whatever in `window` a reader may see while `changes` are in flight, by their outcomes in any order.
    pub(super) fn outcomes(&self, window: &Range<u64>, changes: &[Operation]) -> Outcomes {
        let effects = changes.iter().map(|change| self.effect(change)).filter(|(range, _)| !range.is_empty());
        Outcomes {
            window: window.clone(),
            before: self.bytes[indices(window)].to_vec(),
            effects: effects.collect(),
        }
    }

    /// Takes over what `changes` have left in `window`, in whatever order they were done.
    pub(super) fn adopt(&mut self, window: &Range<u64>, changes: &[Operation], data: &[u8]) {
        self.bytes[indices(window)].copy_from_slice(data);
        let all = |of: fn(&Self, &Operation) -> Range<u64>| -> Vec<Range<u64>> {
            changes.iter().map(|change| of(self, change)).collect()
        };
        let (allocated, discarded) = (all(Self::allocates), all(Self::discards));
        allocated.iter().for_each(|sectors| self.written[indices(sectors)].fill(true));
        // One of these may have come last.
        discarded.iter().for_each(|sectors| self.written[indices(sectors)].fill(false));
    }
}

/// What changes in flight at once may make of a window.
pub(super) struct Outcomes {
    window: Range<u64>,
    before: Vec<u8>,
    effects: Vec<(Range<u64>, Option<Vec<u8>>)>,
}

impl Outcomes {
    /// Fails unless every byte is what it was before or what one of the changes made of it. After `all` changes are
    /// done, one that was changed cannot be what it was before.
    pub(super) fn check(&self, offset: u64, data: &[u8], all: bool) {
        for (at, byte) in (offset..).zip(data) {
            let covering = || self.effects.iter().filter(|(range, _)| range.contains(&at));
            let made = |(range, data): &(Range<u64>, Option<Vec<u8>>)| {
                data.as_ref().map_or(0, |data| data[(at - range.start) as usize])
            };
            let before = self.before[(at - self.window.start) as usize];
            let as_before = *byte == before && (!all || covering().next().is_none());
            assert!(
                as_before || covering().any(|effect| made(effect) == *byte),
                "byte {at} is {byte:#x}, was {before:#x} before, and {:x?} of the changes in flight made it",
                covering().map(made).collect::<Vec<_>>()
            );
        }
    }
}

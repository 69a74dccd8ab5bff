//! What clients asked for and were told, and what a volume may hold in the end.

use std::ops::Range;

use crate::raw::{FLUSH, FUA, TRIM};

/// A request that was answered.
#[derive(Default)]
pub(super) struct Step {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) offset: u64,
    pub(super) length: u64,
    /// Of a WRITE; all others set zeros.
    pub(super) data: Vec<u8>,
    /// Entries in the disk's log before it was sent.
    pub(super) begun: usize,
    /// And when its reply came.
    pub(super) ended: usize,
}

impl Step {
    /// The bytes that it sets. A TRIM leaves sectors alone that it covers in part.
    fn range(&self, sector: u64) -> Range<usize> {
        let (start, end) = (self.offset, self.offset + self.length);
        let (start, end) = match self.command {
            FLUSH => (0, 0),
            TRIM => (start.next_multiple_of(sector), end / sector * sector),
            _ => (start, end),
        };
        start as usize..end.max(start) as usize
    }

    /// Sectors that it sets, reads or leaves alone.
    pub(super) fn overlaps(&self, other: &Self, sector: u64) -> bool {
        let sectors = |step: &Self| step.offset / sector..(step.offset + step.length).div_ceil(sector);
        let (ours, theirs) = (sectors(self), sectors(other));
        ours.start < theirs.end && theirs.start < ours.end
    }

    fn byte(&self, at: usize) -> u8 {
        self.data.get(at - self.offset as usize).copied().unwrap_or(0)
    }
}

pub(super) struct History {
    size: usize,
    sector: u64,
    steps: Vec<Step>,
}

impl History {
    pub(super) fn new(size: u64, sector: u64) -> Self {
        Self { size: size as usize, sector, steps: Vec::new() }
    }

    pub(super) fn add(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// The writes of whole sectors with these flags.
    pub(super) fn whole_writes(&self, flags: u16) -> impl Iterator<Item = &Step> {
        let is_plain = move |step: &&Step| step.flags == flags && !step.data.is_empty();
        let is_whole = |step: &&Step| (step.offset | step.length).is_multiple_of(self.sector);
        self.steps.iter().filter(is_plain).filter(is_whole)
    }

    fn apply(&self, steps: &[Step], bytes: &mut [u8]) {
        for step in steps {
            let range = step.range(self.sector);
            if step.data.is_empty() {
                bytes[range].fill(0);
            } else {
                bytes[range].copy_from_slice(&step.data);
            }
        }
    }

    /// Fails unless `data` may be what is left after a cut at that entry of the log: every byte as it was at the last
    /// flush that was answered before, or as a later request made it, and no older than one with FUA that was answered.
    /// Sectors of steps that `is_torn` is true for may hold anything.
    pub(super) fn check(
        &self,
        cut: usize,
        data: &[u8],
        is_torn: impl Fn(&Step) -> bool,
    ) -> Result<(), String> {
        let promised = self
            .steps
            .iter()
            .rposition(|step| step.command == FLUSH && step.ended <= cut)
            .map_or(0, |flush| flush + 1);
        let (before, after) = self.steps.split_at(promised);
        let after = &after[..after.iter().take_while(|step| step.begun < cut).count()];
        let mut flushed = vec![0; self.size];
        self.apply(before, &mut flushed);
        let mut latest = flushed.clone();
        self.apply(after, &mut latest);
        let sector = self.sector as usize;
        let torn: Vec<&Step> = self.steps.iter().filter(|step| is_torn(step)).collect();
        for start in (0..self.size).step_by(sector) {
            let part = start..start + sector;
            let whole = Step { offset: start as u64, length: self.sector, ..Step::default() };
            if torn.iter().any(|step| step.overlaps(&whole, self.sector)) {
                continue;
            }
            if data[part.clone()] != latest[part.clone()] {
                for at in part {
                    self.check_byte(cut, at, data[at], flushed[at], after)?;
                }
            }
        }
        Ok(())
    }

    fn check_byte(&self, cut: usize, at: usize, is: u8, flushed: u8, after: &[Step]) -> Result<(), String> {
        let mut may_be = vec![flushed];
        for step in after.iter().filter(|step| step.range(self.sector).contains(&at)) {
            if step.flags & FUA != 0 && step.ended <= cut {
                may_be.clear();
            }
            may_be.push(step.byte(at));
        }
        if may_be.contains(&is) {
            return Ok(());
        }
        Err(format!(
            "byte {at} is {is:#x} after the power was cut at entry {cut} of the log, and not one of {may_be:x?}"
        ))
    }
}

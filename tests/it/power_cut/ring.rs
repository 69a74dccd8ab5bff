//! A disk that is written to by io_uring, where nobody sees the writes come in.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use sealblk::block::Extents;
use sealblk::geometry::ByteRange;
use sealblk::ring::{Ring, Rings};
use sealblk::store::Store;

use super::disk::Disk;
use super::history::Step;
use crate::raw::{FLUSH, FUA};

/// What it holds is looked at whenever it is flushed, and that is its log: an entry where a flush begins, and one
/// where it has ended.
pub(super) struct RingDisk {
    file: File,
    size: usize,
    rings: Rings,
    /// What was flushed, from what was there at first.
    flushed: Mutex<Vec<Vec<u8>>>,
    /// What was written by threads that waited for that, and where.
    waited_for: Mutex<HashSet<(u64, Vec<u8>)>>,
}

impl RingDisk {
    pub(super) fn new(size: usize) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size as u64).unwrap();
        let flushed = Mutex::new(vec![vec![0; size]]);
        Self { file, size, rings: Rings::default(), flushed, waited_for: Mutex::default() }
    }

    /// Whether these bytes, which have been written, went by a ring.
    pub(super) fn has_not_waited_for(&self, offset: u64, enciphered: Vec<u8>) -> bool {
        !self.waited_for.lock().unwrap().contains(&(offset, enciphered))
    }
}

impl Disk for RingDisk {
    fn entries(&self) -> usize {
        (self.flushed.lock().unwrap().len() - 1) * 2
    }

    fn store(self: &Arc<Self>) -> Box<dyn Store> {
        Box::new(Flushed(self.clone()))
    }

    /// A look at the file while it is written to may find half of a sector as it was. Of steps under way, that is, and
    /// not of one that flushes for itself: its data was there before it looked.
    fn tears(&self, cut: usize, step: &Step) -> bool {
        let looks = (cut / 2 * 2..=cut.next_multiple_of(2)).step_by(2);
        let flushes = step.flags & FUA != 0;
        looks.into_iter().any(|look| {
            step.begun < look
                && (step.ended > look || step.ended == look && !flushes && step.command != FLUSH)
        })
    }

    fn after_a_cut(&self, cut: usize, sector: usize, mut keeps: impl FnMut(usize) -> bool) -> Vec<u8> {
        let flushed = self.flushed.lock().unwrap();
        let mut bytes = flushed[cut / 2].clone();
        if cut % 2 == 1 {
            for at in (0..self.size).step_by(sector).filter(|at| keeps(*at)) {
                bytes[at..at + sector].copy_from_slice(&flushed[cut / 2 + 1][at..at + sector]);
            }
        }
        bytes
    }
}

struct Flushed(Arc<RingDisk>);

impl Store for Flushed {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.file.read_exact_at(buffer, offset)
    }

    fn always_waits(&self) -> bool {
        true
    }

    fn ring(&self) -> Option<Ring<'_>> {
        self.0.rings.ring(&self.0.file)
    }

    fn extents(&self, range: ByteRange, _: usize, extents: &mut Extents) -> io::Result<()> {
        extents.push(range.length(), false);
        Ok(())
    }

    fn prefetch(&self, _: ByteRange) {}

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.waited_for.lock().unwrap().insert((offset, data.to_vec()));
        self.0.file.write_all_at(data, offset)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.0.file.write_all_at(&vec![0; range.length() as usize], range.start())
    }

    fn discards_quickly(&self) -> bool {
        true
    }

    fn flush(&self) -> io::Result<()> {
        // Of two flushes at once, the one that has looked earlier must not be entered later.
        let mut flushed = self.0.flushed.lock().unwrap();
        let mut all = vec![0; self.0.size];
        self.0.file.read_exact_at(&mut all, 0)?;
        flushed.push(all);
        Ok(())
    }
}

//! A disk whose writes are under way at once, by io_uring, where nobody sees them come in.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sealblk::block::Extents;
use sealblk::geometry::ByteRange;
use sealblk::ring::{Ring, Rings};
use sealblk::store::Store;

use super::disk::Disk;

/// What it holds is looked at whenever it is flushed, and that is its log: an entry where a flush begins, and one
/// where it has ended.
pub(super) struct RingDisk {
    file: File,
    size: usize,
    rings: Rings,
    /// What was flushed, from what was there at first.
    flushed: Mutex<Vec<Vec<u8>>>,
    rings_made: AtomicUsize,
}

impl RingDisk {
    pub(super) fn new(size: usize) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size as u64).unwrap();
        let flushed = Mutex::new(vec![vec![0; size]]);
        Self { file, size, rings: Rings::default(), flushed, rings_made: AtomicUsize::new(0) }
    }

    /// Threads that had requests under way.
    pub(super) fn rings_made(&self) -> usize {
        self.rings_made.load(Ordering::Relaxed)
    }
}

impl Disk for RingDisk {
    fn entries(&self) -> usize {
        (self.flushed.lock().unwrap().len() - 1) * 2
    }

    fn store(self: &Arc<Self>) -> Box<dyn Store> {
        Box::new(Flushed(self.clone()))
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
        self.0.rings_made.fetch_add(1, Ordering::Relaxed);
        Some(self.0.rings.ring(&self.0.file).expect("io_uring is allowed, and there are few threads"))
    }

    fn extents(&self, range: ByteRange, _: usize, extents: &mut Extents) -> io::Result<()> {
        extents.push(range.length(), false);
        Ok(())
    }

    fn prefetch(&self, _: ByteRange) {}

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.file.write_all_at(data, offset)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.0.file.write_all_at(&vec![0; range.length() as usize], range.start())
    }

    fn discards_quickly(&self) -> bool {
        true
    }

    fn flush(&self) -> io::Result<()> {
        let mut all = vec![0; self.0.size];
        self.0.file.read_exact_at(&mut all, 0)?;
        self.0.flushed.lock().unwrap().push(all);
        Ok(())
    }
}

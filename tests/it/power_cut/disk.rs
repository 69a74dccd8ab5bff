//! Disks with a cache that is lost when the power is cut.

use std::io;
use std::sync::{Arc, Mutex};

use sealblk::block::Extents;
use sealblk::geometry::ByteRange;
use sealblk::store::Store;

use super::history::Step;

/// A disk with a log of what it was told.
pub(super) trait Disk {
    /// Entries in the log.
    fn entries(&self) -> usize;

    /// As the volume has it.
    fn store(self: &Arc<Self>) -> Box<dyn Store>;

    /// True if the write of `step` may have been caught halfway in what is left after a cut.
    fn tears(&self, _cut: usize, _step: &Step) -> bool {
        false
    }

    /// What is on the disk if the power is cut after `cut` entries: everything before the last flush among them, and
    /// of what came after, those sectors that `keeps` is true for.
    fn after_a_cut(&self, cut: usize, sector: usize, keeps: impl FnMut(usize) -> bool) -> Vec<u8>;
}

enum Entry {
    Write(usize, Vec<u8>),
    Discard(usize, usize),
    Flush,
}

struct State {
    bytes: Vec<u8>,
    log: Vec<Entry>,
}

/// It logs each write and discard.
pub(super) struct LoggedDisk {
    at_first: Vec<u8>,
    state: Mutex<State>,
    at_once: bool,
}

impl LoggedDisk {
    pub(super) fn holding(bytes: Vec<u8>, at_once: bool) -> Self {
        Self { at_first: bytes.clone(), state: Mutex::new(State { bytes, log: Vec::new() }), at_once }
    }
}

impl Disk for LoggedDisk {
    fn entries(&self) -> usize {
        self.state.lock().unwrap().log.len()
    }

    fn store(self: &Arc<Self>) -> Box<dyn Store> {
        Box::new(Logged(self.clone()))
    }

    fn after_a_cut(&self, cut: usize, sector: usize, mut keeps: impl FnMut(usize) -> bool) -> Vec<u8> {
        let state = self.state.lock().unwrap();
        let log = &state.log[..cut];
        let flushed = log.iter().rposition(|entry| matches!(entry, Entry::Flush)).unwrap_or(0);
        let mut bytes = self.at_first.clone();
        for (number, entry) in log.iter().enumerate() {
            let (start, length) = match entry {
                Entry::Write(start, data) => (*start, data.len()),
                Entry::Discard(start, length) => (*start, *length),
                Entry::Flush => continue,
            };
            assert_eq!((start % sector, length % sector), (0, 0), "the volume writes whole sectors");
            for at in (0..length).step_by(sector) {
                if number < flushed || keeps(start + at) {
                    match entry {
                        Entry::Write(_, data) => {
                            bytes[start + at..][..sector].copy_from_slice(&data[at..][..sector]);
                        }
                        Entry::Discard(..) | Entry::Flush => bytes[start + at..][..sector].fill(0),
                    }
                }
            }
        }
        bytes
    }
}

struct Logged(Arc<LoggedDisk>);

impl Store for Logged {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&self.0.state.lock().unwrap().bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn writes_at_once(&self) -> bool {
        self.0.at_once
    }

    fn extents(&self, range: ByteRange, _: usize, extents: &mut Extents) -> io::Result<()> {
        extents.push(range.length(), false);
        Ok(())
    }

    fn prefetch(&self, _: ByteRange) {}

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let state = &mut *self.0.state.lock().unwrap();
        state.bytes[offset as usize..][..data.len()].copy_from_slice(data);
        state.log.push(Entry::Write(offset as usize, data.to_vec()));
        Ok(())
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        let (start, length) = (range.start() as usize, range.length() as usize);
        let state = &mut *self.0.state.lock().unwrap();
        state.bytes[start..start + length].fill(0);
        state.log.push(Entry::Discard(start, length));
        Ok(())
    }

    fn discards_quickly(&self) -> bool {
        true
    }

    fn flush(&self) -> io::Result<()> {
        self.0.state.lock().unwrap().log.push(Entry::Flush);
        Ok(())
    }
}

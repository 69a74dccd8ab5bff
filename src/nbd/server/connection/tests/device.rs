//! A device in memory with holes, that can be made to fail, to panic and to get stuck.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};

use super::lanes::{SlowLane, Step};
use crate::block::{BlockDevice, BlockError, Extents, Features, Lane, Zeroes};

/// In bytes.
pub(super) const SIZE: u64 = 8 << 20;
/// Holes begin and end at multiples of this.
pub(super) const BLOCK: usize = 4096;

pub(super) struct Device {
    contents: Mutex<Contents>,
    gate: Mutex<Gate>,
    changed: Condvar,
    /// Reads and writes of this byte fail.
    pub(super) bad: AtomicU64,
    /// Reads of this byte panic.
    pub(super) deadly: AtomicU64,
    pub(super) flushes: AtomicUsize,
    /// Where what was asked to be fetched begins.
    fetched: Mutex<Vec<u64>>,
    /// Has lanes.
    pub(super) is_slow: AtomicBool,
    /// Of writes it cannot be told whether they wait, and they get stuck, not reads.
    pub(super) holds_writes: AtomicBool,
    /// Its lanes take no writes.
    pub(super) refuses: AtomicBool,
    steps: Mutex<Vec<Step>>,
}

struct Contents {
    bytes: Vec<u8>,
    /// By block.
    is_hole: Vec<bool>,
}

#[derive(Default)]
struct Gate {
    closed: bool,
    /// Reads, or writes, that wait for it to be opened.
    waiting: usize,
}

impl Default for Device {
    /// All of it is a hole.
    fn default() -> Self {
        let size = usize::try_from(SIZE).unwrap();
        let contents = Contents { bytes: vec![0; size], is_hole: vec![true; size / BLOCK] };
        Self {
            contents: Mutex::new(contents),
            gate: Mutex::default(),
            changed: Condvar::new(),
            bad: AtomicU64::new(u64::MAX),
            deadly: AtomicU64::new(u64::MAX),
            flushes: AtomicUsize::new(0),
            fetched: Mutex::default(),
            is_slow: AtomicBool::new(false),
            holds_writes: AtomicBool::new(false),
            refuses: AtomicBool::new(false),
            steps: Mutex::default(),
        }
    }
}

impl Device {
    /// Reads, or writes, get stuck from now on.
    pub(super) fn close_gate(&self) {
        self.gate.lock().unwrap().closed = true;
    }

    pub(super) fn open_gate(&self) {
        self.gate.lock().unwrap().closed = false;
        self.changed.notify_all();
    }

    pub(super) fn fetched(&self) -> Vec<u64> {
        self.fetched.lock().unwrap().clone()
    }

    /// Waits until that many of them are stuck.
    pub(super) fn await_stuck(&self, count: usize) {
        let gate = self.gate.lock().unwrap();
        drop(self.changed.wait_while(gate, |gate| gate.waiting < count).unwrap());
    }

    pub(super) fn note(&self, step: Step) {
        self.steps.lock().unwrap().push(step);
    }

    /// What its lanes have done.
    pub(super) fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap().clone()
    }

    /// A read that is not held up at the gate.
    pub(super) fn copy(
        &self,
        offset: u64,
        buffer: &mut [u8],
        extents: &mut Extents,
    ) -> Result<(), BlockError> {
        let length = buffer.len() as u64;
        self.check(offset, length)?;
        let start = usize::try_from(offset).unwrap();
        buffer.copy_from_slice(&self.contents.lock().unwrap().bytes[start..start + buffer.len()]);
        if length > 0 { self.status(offset, length, usize::MAX, extents) } else { Ok(()) }
    }

    pub(super) fn pass_gate(&self) {
        let mut gate = self.gate.lock().unwrap();
        gate.waiting += 1;
        self.changed.notify_all();
        gate = self.changed.wait_while(gate, |gate| gate.closed).unwrap();
        gate.waiting -= 1;
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        assert!(offset.checked_add(length).is_some_and(|end| end <= SIZE), "the server checks ranges");
        let holds = |byte: &AtomicU64| (offset..offset + length).contains(&byte.load(Ordering::SeqCst));
        if holds(&self.deadly) {
            // Once: whoever tries again is let through.
            self.deadly.store(u64::MAX, Ordering::SeqCst);
            panic!("a device that panics, as the test wants it");
        }
        if holds(&self.bad) {
            return Err(BlockError::Io(std::io::Error::other("as the test wants it")));
        }
        Ok(())
    }

    /// Makes the range hold zeros; whole blocks become holes.
    fn clear(&self, offset: u64, length: u64) {
        let (start, end) = (usize::try_from(offset).unwrap(), usize::try_from(offset + length).unwrap());
        let mut contents = self.contents.lock().unwrap();
        contents.bytes[start..end].fill(0);
        let blocks = start.div_ceil(BLOCK)..end / BLOCK;
        if !blocks.is_empty() {
            contents.is_hole[blocks].fill(true);
        }
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        SIZE
    }

    fn features(&self) -> Features {
        let always_waits = self.is_slow.load(Ordering::SeqCst);
        Features { read_only: false, preferred_block: u32::try_from(BLOCK).unwrap(), always_waits }
    }

    fn read(&self, offset: u64, buffer: &mut [u8], extents: &mut Extents) -> Result<(), BlockError> {
        if !self.holds_writes.load(Ordering::SeqCst) {
            self.pass_gate();
        }
        self.copy(offset, buffer, extents)
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8], extents: &mut Extents) -> Result<bool, BlockError> {
        if self.gate.lock().unwrap().closed && !self.holds_writes.load(Ordering::SeqCst) {
            return Ok(false);
        }
        self.read(offset, buffer, extents).map(|()| true)
    }

    fn write_now(&self, offset: u64, data: &mut [u8]) -> Result<bool, BlockError> {
        if self.holds_writes.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let mut written = data.to_vec();
        // As by enciphering.
        data.fill(0xEE);
        self.write(offset, &mut written, false).map(|()| true)
    }

    fn status(&self, offset: u64, length: u64, most: usize, extents: &mut Extents) -> Result<(), BlockError> {
        self.check(offset, length)?;
        let contents = self.contents.lock().unwrap();
        let mut at = offset;
        while at < offset + length {
            let block = usize::try_from(at).unwrap() / BLOCK;
            let end = ((block + 1) * BLOCK) as u64;
            let is_hole = contents.is_hole[block];
            let another = extents.as_slice().last().is_none_or(|last| last.is_hole != is_hole);
            if another && extents.as_slice().len() == most {
                break;
            }
            extents.push(end.min(offset + length) - at, is_hole);
            at = end;
        }
        Ok(())
    }

    fn cache(&self, offset: u64, length: u64) -> Result<(), BlockError> {
        self.fetched.lock().unwrap().push(offset);
        self.check(offset, length)
    }

    fn write(&self, offset: u64, data: &mut [u8], durable: bool) -> Result<(), BlockError> {
        if self.holds_writes.load(Ordering::SeqCst) {
            self.pass_gate();
        }
        self.check(offset, data.len() as u64)?;
        let start = usize::try_from(offset).unwrap();
        let end = start + data.len();
        {
            let mut contents = self.contents.lock().unwrap();
            contents.bytes[start..end].copy_from_slice(data);
            contents.is_hole[start / BLOCK..end.div_ceil(BLOCK)].fill(false);
        }
        data.fill(0xEE);
        if durable { self.flush() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), BlockError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64, durable: bool) -> Result<(), BlockError> {
        self.write_zeroes(offset, length, Zeroes::default(), durable)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes, durable: bool) -> Result<(), BlockError> {
        self.check(offset, length)?;
        if how.fast {
            return Err(BlockError::NotSupported);
        }
        self.clear(offset, length);
        if durable { self.flush() } else { Ok(()) }
    }

    fn lane(&self) -> Option<Box<dyn Lane + '_>> {
        self.is_slow.load(Ordering::SeqCst).then(|| Box::new(SlowLane::of(self)) as Box<dyn Lane + '_>)
    }

    fn stop(&self) {
        self.open_gate();
    }
}

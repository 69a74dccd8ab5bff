//! Bytes in memory, and devices on them, of which one is used at a time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::block::{BlockDevice, BlockError, Extents, Features, Zeroes};

/// In bytes.
pub(super) const SIZE: u64 = 512 << 20;
const STRIPE: u64 = 1 << 20;

/// What outlives the servers.
pub(super) struct Memory {
    stripes: Vec<Mutex<Vec<u8>>>,
    users: AtomicUsize,
}

impl Default for Memory {
    fn default() -> Self {
        let stripes = (0..SIZE / STRIPE).map(|_| Mutex::default()).collect();
        Self { stripes, users: AtomicUsize::new(0) }
    }
}

impl Memory {
    pub(super) fn device(self: &Arc<Self>) -> Device {
        self.users.fetch_add(1, Ordering::SeqCst);
        Device(self.clone())
    }

    /// Devices that are not dropped yet.
    pub(super) fn users(&self) -> usize {
        self.users.load(Ordering::SeqCst)
    }

    /// Calls `each` with the parts of a range and where in the range they begin.
    fn parts(&self, offset: u64, length: usize, mut each: impl FnMut(&mut [u8], usize)) {
        let (offset, stripe) = (usize::try_from(offset).unwrap(), usize::try_from(STRIPE).unwrap());
        let mut done = 0;
        while done < length {
            let at = offset + done;
            let start = at % stripe;
            let part = (stripe - start).min(length - done);
            let mut bytes = self.stripes[at / stripe].lock().unwrap();
            bytes.resize(stripe, 0);
            each(&mut bytes[start..start + part], done);
            done += part;
        }
    }
}

pub(super) struct Device(Arc<Memory>);

impl Drop for Device {
    fn drop(&mut self) {
        self.0.users.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BlockDevice for Device {
    fn size(&self) -> u64 {
        SIZE
    }

    fn features(&self) -> Features {
        Features { read_only: false, preferred_block: 4096, always_waits: false }
    }

    fn read(&self, offset: u64, buffer: &mut [u8], extents: &mut Extents) -> Result<(), BlockError> {
        extents.push(buffer.len() as u64, false);
        self.0.parts(offset, buffer.len(), |part, at| buffer[at..at + part.len()].copy_from_slice(part));
        Ok(())
    }

    fn status(&self, _: u64, length: u64, _: usize, extents: &mut Extents) -> Result<(), BlockError> {
        extents.push(length, false);
        Ok(())
    }

    fn cache(&self, _: u64, _: u64) -> Result<(), BlockError> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &mut [u8], durable: bool) -> Result<(), BlockError> {
        self.0.parts(offset, data.len(), |part, at| part.copy_from_slice(&data[at..at + part.len()]));
        data.fill(0xEE);
        if durable { self.flush() } else { Ok(()) }
    }

    /// Takes its time, so that hand-overs meet it.
    fn flush(&self) -> Result<(), BlockError> {
        std::thread::sleep(Duration::from_millis(3));
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64, durable: bool) -> Result<(), BlockError> {
        self.write_zeroes(offset, length, Zeroes::default(), durable)
    }

    fn write_zeroes(&self, offset: u64, length: u64, _: Zeroes, durable: bool) -> Result<(), BlockError> {
        self.0.parts(offset, length.try_into().unwrap(), |part, _| part.fill(0));
        if durable { self.flush() } else { Ok(()) }
    }

    /// No client may see a request fail because its server hands over.
    fn stop(&self) {}
}

//! What the fuzz targets in `fuzz/` do with their bytes. Compiled for fuzzing, and for the tests, which replay the
//! corpora that stand beside the targets.
//!
//! Each function panics at a fault and returns at anything else, whatever the bytes are.
#![allow(clippy::panic, clippy::missing_panics_doc, reason = "a panic is how a fault is told, said above")]

mod peer;
mod transcript;

use std::sync::Arc;

use crate::block::{BlockDevice, BlockError, Extents, Features, Zeroes};
use crate::nbd::server::{Agreed, Export, Exports, Replies, fuzz};

/// Bytes of the exports' device: more than moves in one piece, and little enough to be read many times.
const SIZE: u64 = (2 << 20) + (64 << 10);

/// The option parser and the handshake: what a client sends from its flags on. The first byte says how the server is
/// set up.
pub fn options(data: &[u8]) {
    let Some((setup, input)) = data.split_first() else { return };
    let device = Arc::new(Nothing { size: SIZE });
    let export = |name: &str, read_only| Export {
        name: name.into(),
        description: if read_only { String::new() } else { "for everything".into() },
        device: device.clone(),
        read_only,
    };
    let exports = Exports::new(vec![export("vol", setup & 1 != 0), export("other", setup & 2 != 0)]);
    let output = fuzz::haggle(input, &exports);
    transcript::handshake(input, &output);
}

/// The request parser and the check of requests. Each record is a byte that says how requests look, eight bytes for
/// the size of the device, and a header.
pub fn requests(data: &[u8]) {
    for record in data.chunks(1 + 8 + fuzz::LONGEST_REQUEST) {
        let Some((setup, rest)) = record.split_first() else { return };
        let Some((size, header)) = rest.split_first_chunk() else { return };
        let device = Arc::new(Nothing { size: u64::from_be_bytes(*size) });
        let export =
            Export { name: String::new(), description: String::new(), device, read_only: setup & 1 != 0 };
        let replies = match setup >> 1 & 3 {
            0 => Replies::Simple,
            1 => Replies::Structured,
            _ => Replies::Extended,
        };
        let allocation = replies != Replies::Simple && setup & 8 == 0;
        fuzz::check(header, &export, Agreed { replies, allocation });
    }
}

/// A whole connection: what a client sends from its flags on, to an encrypted volume in memory. The first byte says
/// how the volume is set up, how the bytes travel, and whether the client stays to read the replies.
pub fn connection(data: &[u8]) {
    let Some((setup, input)) = data.split_first() else { return };
    let input = transcript::with_cookies(input, setup & peer::ZEROS != 0);
    if let Some(output) = peer::converse(*setup, &input) {
        transcript::conversation(&input, &output);
    }
}

/// A device of any size that holds nothing.
struct Nothing {
    size: u64,
}

impl BlockDevice for Nothing {
    fn size(&self) -> u64 {
        self.size
    }

    fn features(&self) -> Features {
        Features { read_only: false, preferred_block: 4096, always_waits: false }
    }

    fn read(&self, _: u64, _: &mut [u8], _: &mut Extents) -> Result<(), BlockError> {
        Err(BlockError::Stopped)
    }

    fn status(&self, _: u64, _: u64, _: usize, _: &mut Extents) -> Result<(), BlockError> {
        Err(BlockError::Stopped)
    }

    fn cache(&self, _: u64, _: u64) -> Result<(), BlockError> {
        Err(BlockError::Stopped)
    }

    fn write(&self, _: u64, _: &mut [u8], _: bool) -> Result<(), BlockError> {
        Err(BlockError::Stopped)
    }

    fn flush(&self) -> Result<(), BlockError> {
        Err(BlockError::Stopped)
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> Result<(), BlockError> {
        Err(BlockError::Stopped)
    }

    fn write_zeroes(&self, _: u64, _: u64, _: Zeroes, _: bool) -> Result<(), BlockError> {
        Err(BlockError::Stopped)
    }

    fn stop(&self) {}
}

#[cfg(test)]
mod tests;

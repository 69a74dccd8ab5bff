//! How fast memory is copied: what everything else is held against.

use std::hint::black_box;

use super::window::Window;
use super::{BenchError, CopyFigure, giga};

/// Bytes that are copied before the first ones come again: more than most caches have.
const LENGTH: usize = 64 << 20;
/// Bytes per call.
const PIECE: usize = 1 << 20;

pub(super) fn measure(window: Window<'_>) -> Result<CopyFigure, BenchError> {
    // No zeros: those would be pages that are there only once they are written to.
    let (from, mut to) = (vec![0xa5_u8; LENGTH], vec![0x5a_u8; LENGTH]);
    let mut start = 0;
    let rate = window.rate_of(&mut || {
        to[start..start + PIECE].copy_from_slice(&from[start..start + PIECE]);
        black_box(&mut to);
        start = (start + PIECE) % LENGTH;
        Ok(PIECE as u64)
    })?;
    Ok(CopyFigure { cores: 1, gigabytes_per_second: giga(rate) })
}

//! Reads and writes of whole sectors that are under way at once.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::EncryptedVolume;
use super::ranges::{Hold, Use};
use crate::block::{DEPTH, Direction, Event, Extents, Lane, Readiness, Transfer};
use crate::geometry::ByteRange;
use crate::ring::{Ended, Ring};

/// One thread's requests to a volume.
pub(super) struct VolumeLane<'a> {
    volume: &'a EncryptedVolume,
    ring: Ring<'a>,
    /// What the transfers hold, by their tokens. Let go of after the ring, which waits for them.
    holds: Vec<Option<Hold<'a>>>,
}

impl<'a> VolumeLane<'a> {
    /// `None` where the store has no use for it.
    pub(super) fn of(volume: &'a EncryptedVolume) -> Option<Self> {
        let ring = volume.store.ring()?;
        Some(Self { volume, ring, holds: (0..DEPTH).map(|_| None).collect() })
    }

    /// What a transfer has to hold, if it may be one.
    fn wanted(&self, direction: Direction, offset: u64, length: usize) -> Option<(ByteRange, Use)> {
        let purpose = match direction {
            Direction::Read => Use::Read,
            Direction::Write if self.volume.is_frozen() => return None,
            Direction::Write => Use::Write,
        };
        Some((self.volume.whole(offset, length)?, purpose))
    }

    /// The sectors of a transfer, if it has nothing to wait for.
    fn hold(&self, transfer: &Transfer) -> Option<Hold<'a>> {
        let (range, purpose) = self.wanted(transfer.direction, transfer.offset, transfer.length)?;
        // Never by waiting: those that are held here already would be waited for in a circle.
        self.volume.ranges.hold_now(range, purpose)
    }

    fn finish(&mut self, transfer: &mut Transfer, extents: &mut Extents) {
        match transfer.direction {
            Direction::Read => {
                extents.clear();
                self.volume.decipher(transfer.offset, transfer.data(), extents);
            }
            Direction::Write => {
                self.volume.written.fetch_add(transfer.length as u64, Ordering::Relaxed);
            }
        }
    }
}

impl Lane for VolumeLane<'_> {
    fn takes(&self, direction: Direction, offset: u64, length: usize) -> bool {
        self.wanted(direction, offset, length).is_some()
    }

    fn prepare(&self, offset: u64, data: &mut [u8]) -> usize {
        let sector = self.volume.sector;
        let whole = data.len() - data.len() % sector.bytes();
        if whole > 0 {
            self.volume.cipher.encrypt(sector.number(offset), &mut data[..whole]);
        }
        whole
    }

    fn begin(&mut self, mut transfer: Transfer) -> Result<(), Transfer> {
        let (volume, offset, prepared) = (self.volume, transfer.offset, transfer.prepared);
        let Some(hold) = self.hold(&transfer) else {
            if prepared > 0 {
                volume.cipher.decrypt(volume.sector.number(offset), &mut transfer.data()[..prepared]);
            }
            return Err(transfer);
        };
        self.holds[transfer.token] = Some(hold);
        if transfer.direction == Direction::Write {
            // What came with its last bytes.
            let first = volume.sector.number(offset + prepared as u64);
            volume.cipher.encrypt(first, &mut transfer.data()[prepared..]);
        }
        self.ring.begin(transfer);
        Ok(())
    }

    fn under_way(&self) -> usize {
        self.ring.under_way()
    }

    fn watch(&mut self, descriptor: BorrowedFd<'_>, readiness: Readiness, token: usize) {
        self.ring.watch(descriptor, readiness, token);
    }

    fn hand_over(&mut self) -> io::Result<()> {
        self.ring.hand_over()
    }

    fn look(&mut self) -> io::Result<()> {
        self.ring.look()
    }

    fn has_more(&self) -> bool {
        self.ring.has_ended()
    }

    fn wait(&mut self, at_most: Option<Duration>) -> io::Result<()> {
        self.ring.wait(at_most)
    }

    fn next(&mut self, extents: &mut Extents) -> Option<Event> {
        Some(match self.ring.next_ended()? {
            Ended::Watch(token) => Event::Ready(token),
            Ended::Transfer(mut transfer, result) => {
                // The bytes are the transfer's own by now.
                self.holds[transfer.token] = None;
                if result.is_ok() {
                    self.finish(&mut transfer, extents);
                }
                Event::Done(transfer, result.map_err(Into::into))
            }
        })
    }
}

//! Small requests that are taken off the stream as they are, and served without the turn to receive: while they are
//! copied and ciphered, or wait after all, another thread may receive. To send once for several is what it saves.
//!
//! To wake that other thread costs more than to serve a few of them: it is done where they move much, and there is a
//! processor for it.
//!
//! Requests of a batch wait for each other. So there are batches only while requests need not wait for a medium, as far as
//! the last ones tell ([`Pace`]). The first one that has to wait all the same has what follows it fetched meanwhile.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::buffers::Buffer;
use super::connection::Connection;
use super::incoming::READ_AHEAD;
use super::inline::{TOGETHER, small, tells_holes};
use super::processors::Seat;
use super::receiver::Receiver;
use super::reply::{Gathered, HEAD, Hangup, Pending};
use super::request::nbd_error;
use crate::block::{BlockError, Extents};
use crate::nbd::server::Replies;
use crate::nbd::wire::{Command, Request};

/// Bytes from which on it is worth it to pass the turn on before they are moved.
const MUCH: usize = 128 << 10;
/// Bytes of which the page cache, too, has all or none: what is written in part is read first.
const PAGE: u32 = 4096;
/// Requests in a row that did not have to wait before there are batches.
const PROOF: u32 = 32;
/// A write that has taken longer has waited for a medium, or for another request: not only for a processor.
const QUICK: Duration = Duration::from_millis(5);

/// How the last requests of a connection went.
#[derive(Default)]
pub(super) struct Pace(AtomicU32);

impl Pace {
    pub(super) fn has_waited(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    pub(super) fn has_not_waited(&self) {
        let another = |count| if count < PROOF { Some(count + 1) } else { None };
        // There are enough, if it is none.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, another);
    }

    /// Calls `write`, which does not say whether it waits.
    pub(super) fn time<T>(&self, write: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = write();
        if began.elapsed() < QUICK {
            self.has_not_waited();
        } else {
            self.has_waited();
        }
        result
    }

    fn is_quick(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= PROOF
    }
}

/// Whole small requests that are still to be judged. Dropped before all are served, it ends the connection.
#[must_use = "every request is answered"]
pub(super) struct Batch<'a> {
    connection: &'a Connection,
    memory: Buffer<'a>,
    /// Of `memory`: those that are still to be served.
    requests: Range<usize>,
    /// For all replies.
    gathered: Option<Gathered<'a>>,
    /// For the thread that serves them, if another one goes on at once.
    _seat: Option<Seat<'static>>,
}

/// Small requests that follow each other.
#[derive(Default)]
struct Stretch {
    requests: usize,
    /// Bytes on the stream.
    length: usize,
    /// Bytes of data that they move.
    moved: usize,
    begins_with_write: bool,
}

impl Stretch {
    /// As many as are in `bytes`, and whose replies leave together. A write of less than whole blocks, of `block` bytes,
    /// reads first, and is none of them.
    fn of(bytes: &[u8], replies: Replies, block: u64) -> Self {
        let (mut all, mut room) = (Self::default(), TOGETHER);
        while let Some((request, length)) = small(&bytes[all.length..], replies)
            && length <= bytes.len() - all.length
        {
            let writes = request.command == Command::WRITE;
            if writes && !(request.offset | request.length).is_multiple_of(block) {
                break;
            }
            let data = usize::try_from(request.length).unwrap_or(usize::MAX);
            // Of a write, too: one thread is not to have all the work.
            let Some(left) = room.checked_sub(HEAD + data) else { break };
            room = left;
            all.begins_with_write |= all.requests == 0 && writes;
            all.requests += 1;
            all.length += length;
            all.moved += data;
        }
        all
    }
}

impl<'a> Batch<'a> {
    /// The requests that are here, if it is much that they move, and another thread has a processor to go on at once.
    pub(super) fn of_much(receiver: &mut Receiver, connection: &'a Connection) -> Option<Self> {
        let mut seat = None;
        let takes_seat = |stretch: &Stretch| {
            seat = if stretch.moved >= MUCH { connection.helpers().take() } else { None };
            seat.is_some()
        };
        let batch = Self::take(receiver, connection, takes_seat)?;
        Some(batch.with(seat))
    }

    /// The requests that are here, if the first is a write, of which it cannot be told whether it has to wait.
    pub(super) fn of_writes(receiver: &mut Receiver, connection: &'a Connection) -> Option<Self> {
        Self::take(receiver, connection, |stretch| stretch.begins_with_write)
    }

    fn take(
        receiver: &mut Receiver,
        connection: &'a Connection,
        is_wanted: impl FnOnce(&Stretch) -> bool,
    ) -> Option<Self> {
        let features = connection.device().features();
        if !connection.pace().is_quick() || features.always_waits {
            return None;
        }
        let block = features.preferred_block.max(PAGE).into();
        let stretch = Stretch::of(receiver.here(), receiver.replies(), block);
        if !is_wanted(&stretch) {
            return None;
        }
        let mut memory = connection.pool().borrow_now(READ_AHEAD)?;
        let room = connection.pool().borrow_now(TOGETHER)?;
        let requests = receiver.exchange(&mut memory, stretch.length);
        let gathered = Some(Gathered::new(connection.outgoing(), room));
        Some(Self { connection, memory, requests, gathered, _seat: None })
    }

    fn with(mut self, seat: Option<Seat<'static>>) -> Self {
        self._seat = seat;
        self
    }

    /// Serves all of them; the replies are still to be sent.
    ///
    /// # Errors
    /// [`Hangup`] where the connection has to end.
    pub(super) fn serve(mut self, extents: &mut Extents) -> Result<Gathered<'a>, Hangup> {
        let gone = || Hangup::Io(io::ErrorKind::ConnectionAborted.into());
        let mut gathered = self.gathered.take().ok_or_else(gone)?;
        let mut has_waited = false;
        while let Some((request, length)) =
            small(&self.memory[self.requests.clone()], self.connection.replies())
        {
            if self.connection.is_cut() {
                return Err(gone());
            }
            let (now, later) = self.memory[self.requests.clone()].split_at_mut(length);
            let waits = || {
                if !std::mem::replace(&mut has_waited, true) {
                    fetch(later, self.connection);
                }
            };
            serve_one(&request, now, self.connection, &mut gathered, extents, waits);
            self.requests.start += length;
        }
        Ok(gathered)
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if !self.requests.is_empty() {
            self.connection.cut();
        }
    }
}

/// Serves the request that `bytes` are. Calls `waits` before it waits for what is read.
fn serve_one<'a>(
    request: &Request,
    bytes: &mut [u8],
    connection: &'a Connection,
    gathered: &mut Gathered<'a>,
    extents: &mut Extents,
    waits: impl FnOnce(),
) {
    let pending = Pending::new(*request, connection.outgoing());
    if let Err(error) = connection.judge(request) {
        return gathered.answer(pending, Err(error));
    }
    if request.command == Command::WRITE {
        let data = bytes.len() - usize::try_from(request.length).unwrap_or_default();
        let write = || connection.device().write(request.offset, &mut bytes[data..], false);
        let result = connection.pace().time(write);
        return gathered.answer(pending, result.map_err(nbd_error));
    }
    match read(request, connection, gathered.data(request), extents, waits) {
        Ok(()) if is_one_hole(request, connection, extents) => gathered.answer_hole(pending),
        // Holes that are not all of it are sent as the zeros that they are.
        Ok(()) => gathered.answer_read(pending),
        Err(error) => gathered.answer(pending, Err(nbd_error(error))),
    }
}

/// Calls `waits` before it waits.
fn read(
    request: &Request,
    connection: &Connection,
    data: &mut [u8],
    extents: &mut Extents,
    waits: impl FnOnce(),
) -> Result<(), BlockError> {
    let device = connection.device();
    extents.clear();
    if matches!(device.read_now(request.offset, data, extents), Ok(true)) {
        return Ok(());
    }
    connection.pace().has_waited();
    waits();
    extents.clear();
    device.read(request.offset, data, extents)
}

fn is_one_hole(request: &Request, connection: &Connection, extents: &Extents) -> bool {
    tells_holes(connection, request, extents) && extents.as_slice().len() == 1
}

/// Has what the reads in `bytes` want fetched, all at once.
fn fetch(mut bytes: &[u8], connection: &Connection) {
    while let Some((request, length)) = small(bytes, connection.replies()) {
        bytes = &bytes[length..];
        if request.command == Command::READ && connection.judge(&request).is_ok() {
            // A hint: the read itself meets the error.
            let _ = connection.device().cache(request.offset, request.length);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nbd::wire::CommandFlags;

    const BLOCK: u64 = 512;

    fn encoded(command: Command, length: u32) -> Vec<u8> {
        let mut bytes = [&0x2560_9513_u32.to_be_bytes()[..], &CommandFlags(0).0.to_be_bytes()].concat();
        bytes.extend(command.0.to_be_bytes());
        bytes.extend([0; 16]);
        bytes.extend(length.to_be_bytes());
        let payload = if command == Command::WRITE { length as usize } else { 0 };
        bytes.extend(vec![9; payload.min(1 << 20)]);
        bytes
    }

    proptest! {
        /// Whatever is here: whole small requests, no more of them than have room for their replies.
        #[test]
        fn a_stretch_is_whole_requests_whose_replies_leave_together(
            requests in prop::collection::vec((any::<bool>(), prop_oneof![0..100_u32, 0..200_000_u32, (1..130_u32).prop_map(|blocks| blocks * 512)]), 0..40),
            cut in 0..300_000_usize,
        ) {
            let all: Vec<_> = requests
                .iter()
                .map(|(writes, length)| encoded(if *writes { Command::WRITE } else { Command::READ }, *length))
                .collect();
            let bytes = all.concat();
            let bytes = &bytes[..bytes.len().min(cut)];
            let stretch = Stretch::of(bytes, Replies::Simple, BLOCK);
            let whole = &all[..stretch.requests];
            prop_assert_eq!(whole.concat().len(), stretch.length);
            prop_assert!(stretch.length <= bytes.len());
            let moved: usize = requests[..stretch.requests].iter().map(|(_, length)| *length as usize).sum();
            prop_assert_eq!(moved, stretch.moved);
            prop_assert!(moved + stretch.requests * HEAD <= TOGETHER);
            // And the next one is of part of a block, not whole, not small, or one too many.
            if let Some((writes, length)) = requests.get(stretch.requests) {
                let in_part = *writes && u64::from(*length) % BLOCK != 0;
                let length = *length as usize;
                let is_whole = stretch.length + all[stretch.requests].len() <= bytes.len();
                let is_small = (1..=64 << 10).contains(&length);
                prop_assert!(in_part || !is_whole || !is_small || moved + length + (stretch.requests + 1) * HEAD > TOGETHER);
            }
        }
    }
}

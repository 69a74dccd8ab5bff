//! What has ended, and how much of it is answered before the client and the device have their turns again.

use super::{CLIENT_SENDS, PAUSE, Traffic};
use crate::block::{BlockError, Direction, Event, Transfer};
use crate::nbd::server::request::nbd_error;

/// So many ends at most.
const TOGETHER: usize = 8;
/// And no further one once so many bytes have been read: the client, and then the device, may have nothing to do until they
/// are deciphered, for some 15 µs where the processor has VAES, and sent.
const MUCH: usize = 128 << 10;
/// A shorter read counts as so many bytes, so that four are answered at a time: its reply takes longer than its bytes.
const LEAST: usize = MUCH / 4;

impl Traffic<'_> {
    /// Puts replies to what has ended into the queue.
    pub(super) fn harvest(&mut self) {
        // For a client to wake up takes as long as several replies, which are made meanwhile.
        let most = if std::mem::take(&mut self.client_sleeps) { 1 } else { TOGETHER };
        let mut bytes = 0;
        for _ in 0..most {
            if bytes >= MUCH {
                break;
            }
            let Some(event) = self.lane.next(&mut self.extents) else { break };
            match event {
                Event::Done(transfer, result) => {
                    if transfer.direction == Direction::Read && result.is_ok() {
                        bytes += transfer.length.max(LEAST);
                    }
                    self.answer(transfer, result);
                }
                // It stays as it is, and has been seen.
                Event::Ready(PAUSE) => {}
                Event::Ready(token) => {
                    self.watched[token] = false;
                    self.readable |= token == CLIENT_SENDS;
                }
            }
        }
    }

    fn answer(&mut self, transfer: Transfer, result: Result<(), BlockError>) {
        let Some((pending, mut buffer)) = self.waiting[transfer.token].take() else { return };
        self.free.push(transfer.token);
        buffer.take_back(transfer.pages);
        match (transfer.direction, result) {
            (Direction::Read, Ok(())) => {
                let least = self.connection.device().features().preferred_block.into();
                self.queue.answer_read(pending, buffer, &self.extents, least);
            }
            (Direction::Read, Err(error)) => self.queue.answer_failed_read(pending, nbd_error(error)),
            (Direction::Write, result) => self.queue.answer(pending, result.map_err(nbd_error)),
        }
    }
}

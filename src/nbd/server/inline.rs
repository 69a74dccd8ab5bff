//! Small requests that are here: served by one thread one after the other, and answered together. Handing each to
//! another thread would cost more than serving it.
//!
//! Those that need not wait for anything and are quickly done are served here, by the thread that has the turn to
//! receive. What may wait, or is more work and has a processor for it, goes without the turn, as a
//! [`Batch`](super::batch::Batch).

use super::buffers::{Buffer, MEDIUM};
use super::connection::Connection;
use super::receiver::{Receiver, request_at};
use super::reply::{Gathered, Pending};
use super::request::nbd_error;
use crate::block::Extents;
use crate::nbd::server::Replies;
use crate::nbd::wire::{Command, CommandFlags, Request};

/// Most bytes that such a request moves.
pub(super) const SMALL: usize = 64 << 10;
/// Bytes of replies that leave together.
pub(super) const TOGETHER: usize = MEDIUM;

/// The small request that `bytes` begin with, and its length with its data, not all of which need be there.
pub(super) fn small(bytes: &[u8], replies: Replies) -> Option<(Request, usize)> {
    let (request, header) = request_at(bytes, replies)?;
    payload(&request).map(|payload| (request, header + payload))
}

/// True if a small request is here, with its data.
pub(super) fn is_here(receiver: &Receiver) -> bool {
    small(receiver.here(), receiver.replies()).is_some_and(|(_, length)| length <= receiver.here().len())
}

/// True if a request may be small, and less than all of it is here.
pub(super) fn is_half_here(receiver: &Receiver) -> bool {
    match receiver.peek() {
        Some((request, header)) => {
            payload(&request).is_some_and(|payload| header + payload > receiver.here().len())
        }
        None => receiver.has_half_a_header(),
    }
}

/// Serves the small requests that are here, up to the first one that may have to wait, for which a thread is better;
/// `None` if that is the first of all, or none is here.
pub(super) fn serve<'a>(
    receiver: &mut Receiver,
    connection: &'a Connection,
    extents: &mut Extents,
) -> Option<Gathered<'a>> {
    if !is_here(receiver) {
        return None;
    }
    // Without memory for it, a request waits its turn like all others.
    let room: Buffer<'a> = connection.pool().borrow_now(TOGETHER)?;
    let mut gathered = Gathered::new(connection.outgoing(), room);
    let replies = receiver.replies();
    receiver.during(|receiver| {
        while let Some((request, length)) = small(receiver.here(), replies)
            && length <= receiver.here().len()
            && serve_one(receiver.at_here(length), &request, connection, &mut gathered, extents)
        {
            receiver.use_here(length);
        }
    });
    if gathered.is_empty() { None } else { Some(gathered) }
}

/// Bytes of the payload, of a small request that asks for nothing special.
fn payload(request: &Request) -> Option<usize> {
    let plain = |allowed: CommandFlags| request.flags.only(allowed);
    match request.command {
        _ if request.length > SMALL as u64 || request.length == 0 => None,
        Command::READ if plain(CommandFlags::DF) => Some(0),
        Command::WRITE if plain(CommandFlags::PAYLOAD_LEN) => usize::try_from(request.length).ok(),
        _ => None,
    }
}

/// True if what was read has a hole that is worth telling.
pub(super) fn tells_holes(connection: &Connection, request: &Request, extents: &Extents) -> bool {
    let least = u64::from(connection.device().features().preferred_block);
    connection.outgoing().in_chunks()
        && !request.flags.contains(CommandFlags::DF)
        && extents.as_slice().iter().any(|extent| extent.is_hole && extent.length >= least)
}

/// Serves the request that `bytes` are; false if it is left for a thread that can wait.
fn serve_one<'a>(
    bytes: &mut [u8],
    request: &Request,
    connection: &'a Connection,
    gathered: &mut Gathered<'a>,
    extents: &mut Extents,
) -> bool {
    let device = connection.device();
    let is_read = request.command == Command::READ;
    let length = usize::try_from(request.length).unwrap_or(usize::MAX);
    if !gathered.fits(if is_read { length } else { 0 }) || connection.judge(request).is_err() {
        return false;
    }
    let pending = Pending::new;
    if !is_read {
        let data = bytes.len() - length;
        match device.write_now(request.offset, &mut bytes[data..]) {
            Ok(false) => return false,
            Ok(true) => {
                connection.pace().has_not_waited();
                gathered.answer(pending(*request, connection.outgoing()), Ok(()));
            }
            Err(error) => gathered.answer(pending(*request, connection.outgoing()), Err(nbd_error(error))),
        }
        return true;
    }
    extents.clear();
    // An error is met once more by the thread that can wait, which answers with it.
    if !matches!(device.read_now(request.offset, gathered.data(request), extents), Ok(true)) {
        connection.pace().has_waited();
        return false;
    }
    connection.pace().has_not_waited();
    match (tells_holes(connection, request, extents), extents.as_slice()) {
        (false, _) => gathered.answer_read(pending(*request, connection.outgoing())),
        (true, [_]) => gathered.answer_hole(pending(*request, connection.outgoing())),
        // In several chunks.
        (true, _) => return false,
    }
    true
}

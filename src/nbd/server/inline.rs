//! Small requests that are here and need not wait for anything: served by the thread that has the turn to receive,
//! one after the other, and answered together. Handing each to another thread would cost more than serving it.

use super::buffers::Buffer;
use super::connection::Connection;
use super::receiver::Receiver;
use super::reply::{Gathered, Pending};
use super::request::nbd_error;
use crate::block::Extents;
use crate::nbd::wire::{Command, CommandFlags, Request};

/// Most bytes that such a request moves.
const SMALL: u64 = 16 << 10;
/// Bytes of replies that leave together.
const TOGETHER: usize = 128 << 10;

/// True if a request is small, and all of it is here.
pub(super) fn is_here(receiver: &Receiver) -> bool {
    receiver.peek().is_some_and(|(request, header)| {
        payload(&request).is_some_and(|payload| header + payload <= receiver.here())
    })
}

/// True if a request may be small, and less than all of it is here.
pub(super) fn is_half_here(receiver: &Receiver) -> bool {
    match receiver.peek() {
        Some((request, header)) => {
            payload(&request).is_some_and(|payload| header + payload > receiver.here())
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
    receiver.during(|receiver| {
        while is_here(receiver)
            && let Some((request, header)) = receiver.peek()
            && let Some(payload) = payload(&request)
            && serve_one(receiver, connection, &request, header + payload, &mut gathered, extents)
        {}
    });
    if gathered.is_empty() { None } else { Some(gathered) }
}

/// Bytes of the payload, of a small request that asks for nothing special.
fn payload(request: &Request) -> Option<usize> {
    let plain = |allowed: CommandFlags| request.flags.only(allowed);
    match request.command {
        _ if request.length > SMALL || request.length == 0 => None,
        Command::READ if plain(CommandFlags::DF) => Some(0),
        Command::WRITE if plain(CommandFlags::PAYLOAD_LEN) => usize::try_from(request.length).ok(),
        _ => None,
    }
}

/// True if what was read has a hole that is worth telling.
fn tells_holes(connection: &Connection, request: &Request, extents: &Extents) -> bool {
    let least = u64::from(connection.device().features().preferred_block);
    connection.outgoing().in_chunks()
        && !request.flags.contains(CommandFlags::DF)
        && extents.as_slice().iter().any(|extent| extent.is_hole && extent.length >= least)
}

/// False if the request is left for a thread that can wait.
fn serve_one<'a>(
    receiver: &mut Receiver,
    connection: &'a Connection,
    request: &Request,
    length: usize,
    gathered: &mut Gathered<'a>,
    extents: &mut Extents,
) -> bool {
    let device = connection.device();
    let is_read = request.command == Command::READ;
    let fits = gathered.fits(if is_read { usize::try_from(request.length).unwrap_or(usize::MAX) } else { 0 });
    if !fits || connection.judge(request).is_err() {
        return false;
    }
    let pending = |connection: &'a Connection| Pending::new(*request, connection.outgoing());
    if is_read {
        extents.clear();
        // An error is met once more by the thread that can wait, which answers with it.
        if !matches!(device.read_now(request.offset, gathered.data(request), extents), Ok(true)) {
            return false;
        }
        match (tells_holes(connection, request, extents), extents.as_slice()) {
            (false, _) => gathered.answer_read(pending(connection)),
            (true, [_]) => gathered.answer_hole(pending(connection)),
            // In several chunks.
            (true, _) => return false,
        }
        receiver.use_here(length);
        return true;
    }
    let payload = usize::try_from(request.length).unwrap_or_default();
    let (_, data) = receiver.at_here(length).split_at_mut(length - payload);
    match device.write_now(request.offset, data) {
        Ok(false) => return false,
        Ok(true) => gathered.answer(pending(connection), Ok(())),
        Err(error) => gathered.answer(pending(connection), Err(nbd_error(error))),
    }
    receiver.use_here(length);
    true
}

//! Which requests are for a lane.

use super::Traffic;
use crate::block::{Direction, Lane};
use crate::nbd::server::buffers::PIECE;
use crate::nbd::server::connection::Connection;
use crate::nbd::server::receiver::Receiver;
use crate::nbd::wire::{Command, CommandFlags, Request};

impl Traffic<'_> {
    /// True if what comes next may be one: it is of whole blocks, and nothing else is known against it.
    pub(in crate::nbd::server) fn suits(receiver: &Receiver, connection: &Connection) -> bool {
        let block = u64::from(connection.device().features().preferred_block);
        receiver.peek().is_none_or(|(request, _)| {
            (request.offset | request.length).is_multiple_of(block) && direction(&request).is_some()
        })
    }
}

/// Which way a request's data goes, and its length, if it is one for `lane`.
pub(super) fn taken(request: &Request, lane: &dyn Lane) -> Option<(Direction, usize)> {
    let (direction, length) = (direction(request)?, usize::try_from(request.length).ok()?);
    lane.takes(direction, request.offset, length).then_some((direction, length))
}

/// Of one that asks for nothing else, and fits a buffer.
fn direction(request: &Request) -> Option<Direction> {
    if !(1..=PIECE as u64).contains(&request.length) {
        return None;
    }
    match request.command {
        Command::READ if request.flags.only(CommandFlags::DF) => Some(Direction::Read),
        Command::WRITE if request.flags.only(CommandFlags::PAYLOAD_LEN) => Some(Direction::Write),
        _ => None,
    }
}

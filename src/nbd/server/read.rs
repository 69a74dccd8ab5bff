//! Answering NBD_CMD_READ: in one piece, or in several that each pass through the same buffer.

use std::ops::Range;

use super::buffers::PIECE;
use super::reply::{Answered, Hangup, Pending};
use super::request::nbd_error;
use crate::block::{BlockDevice, Extent, Extents};
use crate::nbd::wire::{CommandFlags, Content, Request};

/// Reads what is asked for and sends it. `buffer` has room for the first piece, `extents` may hold anything.
///
/// A simple reply goes out in one go: once it has begun nobody else sends until it is complete, and an error that
/// comes late ends the connection. Of a reply in chunks, other replies can come between any two, holes are told
/// instead of sent, and a late error is one more chunk.
///
/// # Errors
/// [`Hangup`] where the connection has to end.
pub(super) fn answer(
    pending: Pending<'_>,
    device: &dyn BlockDevice,
    buffer: &mut [u8],
    extents: &mut Extents,
) -> Result<Answered, Hangup> {
    if pending.in_chunks() {
        in_chunks(pending, device, buffer, extents)
    } else {
        in_one_go(pending, device, buffer, extents)
    }
}

fn in_one_go(
    pending: Pending<'_>,
    device: &dyn BlockDevice,
    buffer: &mut [u8],
    extents: &mut Extents,
) -> Result<Answered, Hangup> {
    let mut read = |offset, piece: &mut [u8]| {
        extents.clear();
        device.read(offset, piece, extents).map_err(nbd_error)
    };
    let mut pieces = pieces(pending.request());
    let (offset, first) = pieces.next().unwrap_or((pending.request().offset, 0));
    let first = &mut buffer[..first];
    if let Err(error) = read(offset, first) {
        return pending.finish(Err(error));
    }
    let Some((mut offset, mut length)) = pieces.next() else {
        return pending.finish_simple(Ok(()), first);
    };
    let mut reply = pending.begin_simple(first)?;
    loop {
        let piece = &mut buffer[..length];
        if read(offset, piece).is_err() {
            return Err(reply.give_up());
        }
        reply.more(piece)?;
        match pieces.next() {
            Some(next) => (offset, length) = next,
            None => return Ok(reply.finish()),
        }
    }
}

fn in_chunks(
    mut pending: Pending<'_>,
    device: &dyn BlockDevice,
    buffer: &mut [u8],
    extents: &mut Extents,
) -> Result<Answered, Hangup> {
    let request = *pending.request();
    let end = request.offset + request.length;
    let whole = request.flags.contains(CommandFlags::DF);
    let least = if whole { u64::MAX } else { device.features().preferred_block.into() };
    for (offset, length) in pieces(&request) {
        let piece = &mut buffer[..length];
        extents.clear();
        if let Err(error) = device.read(offset, piece, extents) {
            return pending.finish_chunk(Content::ErrorAt(nbd_error(error), offset), &[]);
        }
        for (range, is_hole) in parts(extents.as_slice(), length, least) {
            let at = offset + range.start as u64;
            let last = offset + range.end as u64 == end;
            // No longer than a piece.
            let length = u32::try_from(range.len()).unwrap_or(u32::MAX);
            let (content, data) = if is_hole {
                (Content::Hole { offset: at, length }, &[][..])
            } else {
                (Content::Data { offset: at, length }, &piece[range])
            };
            if last {
                return pending.finish_chunk(content, data);
            }
            pending.chunk(content, data)?;
        }
    }
    // Nothing was asked for.
    pending.finish_chunk(Content::None, &[])
}

/// Offsets and lengths of the pieces that a request's data moves in. For requests that passed the check.
pub(super) fn pieces(request: &Request) -> impl Iterator<Item = (u64, usize)> + use<> {
    let Request { offset, length, .. } = *request;
    let piece = PIECE as u64;
    (0..length.div_ceil(piece)).map(move |number| {
        let start = number * piece;
        (offset + start, usize::try_from(length - start).map_or(PIECE, |rest| rest.min(PIECE)))
    })
}

/// Ranges of a piece of `length` bytes, in order, each with whether it is a hole of at least `least` bytes.
/// What is not known to be one is data.
pub(super) fn parts(
    extents: &[Extent],
    length: usize,
    least: u64,
) -> impl Iterator<Item = (Range<usize>, bool)> {
    let (mut extents, mut at, mut hole) = (extents.iter(), 0, None);
    std::iter::from_fn(move || {
        let start = at;
        while hole.is_none() && at < length {
            let Some(extent) = extents.next() else {
                at = length;
                break;
            };
            let end =
                usize::try_from(extent.length).map_or(length, |more| length.min(at.saturating_add(more)));
            if extent.is_hole && (end - at) as u64 >= least {
                hole = Some(end);
            } else {
                at = end;
            }
        }
        if at > start {
            return Some((start..at, false));
        }
        at = hole.take()?;
        Some((start..at, true))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extents(lengths: &[(u64, bool)]) -> Extents {
        let mut extents = Extents::default();
        lengths.iter().for_each(|(length, is_hole)| extents.push(*length, *is_hole));
        extents
    }

    #[test]
    fn short_holes_are_sent_as_data() {
        let extents = extents(&[(10, true), (10, false), (9, true), (1, false), (30, true), (40, false)]);
        let parts: Vec<_> = parts(extents.as_slice(), 100, 10).collect();
        assert_eq!(parts, [(0..10, true), (10..30, false), (30..60, true), (60..100, false)]);
    }

    #[test]
    fn pieces_follow_each_other() {
        let request = |length| Request {
            flags: CommandFlags(0),
            command: crate::nbd::wire::Command::READ,
            cookie: 0,
            offset: 5,
            length,
        };
        let piece = PIECE as u64;
        assert_eq!(pieces(&request(0)).count(), 0);
        assert_eq!(pieces(&request(1)).collect::<Vec<_>>(), [(5, 1)]);
        assert_eq!(pieces(&request(piece)).collect::<Vec<_>>(), [(5, PIECE)]);
        assert_eq!(pieces(&request(piece + 1)).collect::<Vec<_>>(), [(5, PIECE), (5 + piece, 1)]);
    }

    proptest! {
        #[test]
        fn parts_cover_the_piece_and_agree_with_the_extents(
            lengths in prop::collection::vec((1..50_u64, any::<bool>()), 0..20),
            length in 0..400_usize,
            least in 1..40_u64,
        ) {
            let extents = extents(&lengths);
            let is_hole: Vec<bool> = extents
                .as_slice()
                .iter()
                .flat_map(|extent| (0..extent.length).map(|_| extent.is_hole))
                .chain(std::iter::repeat(false))
                .take(length)
                .collect();
            let mut end = 0;
            for (range, hole) in parts(extents.as_slice(), length, least) {
                prop_assert_eq!(range.start, end);
                prop_assert!(!range.is_empty());
                if hole {
                    prop_assert!(range.len() as u64 >= least);
                    prop_assert!(is_hole[range.clone()].iter().all(|hole| *hole));
                } else {
                    let longest = is_hole[range.clone()].split(|hole| !hole).map(<[bool]>::len).max();
                    prop_assert!(longest.unwrap_or(0) as u64 <= least.saturating_sub(1));
                }
                end = range.end;
            }
            prop_assert_eq!(end, length);
        }
    }
}

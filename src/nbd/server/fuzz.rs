//! The insides of the server that are fuzzed on their own. Compiled for tests and fuzzing only.
#![allow(clippy::panic, clippy::missing_panics_doc, reason = "a panic is how a fault is told")]

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::request::check as check_request;
use super::{Agreed, Export, Exports, Replies, Signal, handshake};
use crate::geometry::ByteRange;
use crate::nbd::wire::{Command, CommandFlags, EXTENDED_REQUEST_LENGTH, MAX_PAYLOAD, Request};

/// Bytes of the longest header of a request.
pub const LONGEST_REQUEST: usize = EXTENDED_REQUEST_LENGTH;

/// What the server says in a handshake to a client that says `input`.
pub fn haggle(input: &[u8], exports: &Exports) -> Vec<u8> {
    let mut stream = Recorded { input, output: Vec::new() };
    let (_stop, stopped) = watch::channel(Signal::Run);
    {
        let mut haggling = pin!(handshake::haggle(&mut stream, exports, None, stopped, || true));
        let mut context = Context::from_waker(Waker::noop());
        // Whoever reads much may be asked to let others run, but not for ever.
        let ended = (0..1000).any(|_| haggling.as_mut().poll(&mut context).is_ready());
        assert!(ended, "a handshake waits although all is there");
    }
    stream.output
}

/// Decodes and checks a request's header, and panics if one passes that must not be served.
pub fn check(header: &[u8], export: &Export, agreed: Agreed) {
    let decoded = match agreed.replies {
        Replies::Extended => header.first_chunk().map(Request::decode_extended),
        Replies::Simple | Replies::Structured => header.first_chunk().map(Request::decode),
    };
    let Some(Ok(request)) = decoded else { return };
    if check_request(&request, export, agreed).is_ok() {
        assert_may_be_served(&request, export, agreed);
    }
}

fn assert_may_be_served(request: &Request, export: &Export, agreed: Agreed) {
    use CommandFlags as Flags;
    let Request { flags, command, offset, length, .. } = *request;
    let changes = [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES].contains(&command);
    assert!(!(changes && export.is_read_only()), "{request:?} on a read-only export");
    let range = ByteRange::within(offset, length, export.device.size());
    assert!(range.is_some() || command == Command::FLUSH, "{request:?} on {} bytes", export.device.size());
    assert!(command != Command::READ || length <= MAX_PAYLOAD.into(), "{request:?} asks for too much");
    let belongs = |flag, commands: &[Command]| !flags.contains(flag) || commands.contains(&command);
    let flags_belong = belongs(Flags::NO_HOLE, &[Command::WRITE_ZEROES])
        && belongs(Flags::FAST_ZERO, &[Command::WRITE_ZEROES])
        && belongs(Flags::DF, &[Command::READ])
        && belongs(Flags::REQ_ONE, &[Command::BLOCK_STATUS])
        && belongs(Flags::PAYLOAD_LEN, &[Command::WRITE, Command::BLOCK_STATUS])
        && flags.0 < 1 << 6;
    assert!(flags_belong, "{request:?} has a flag of another command");
    let simple = agreed.replies == Replies::Simple;
    assert!(!(simple && flags.contains(Flags::DF)), "{request:?} has a flag of another mode");
    let status = command == Command::BLOCK_STATUS;
    assert!(!status || (agreed.allocation && length > 0), "{request:?} without a metadata context");
}

/// A client whose every word is there already.
struct Recorded<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl AsyncRead for Recorded<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.input.split_at(self.input.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.input = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Recorded<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

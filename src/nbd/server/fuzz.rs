//! The insides of the server that are fuzzed on their own. Compiled for tests and fuzzing only.
#![allow(clippy::panic, clippy::missing_panics_doc, reason = "a panic is how a fault is told")]

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::request::check as check_request;
use super::{Export, Exports, handshake};
use crate::geometry::ByteRange;
use crate::nbd::wire::{Command, CommandFlags, Request};

/// Bytes of the longest header of a request: an extended one.
pub const LONGEST_REQUEST: usize = 32;

/// What the server says in a handshake to a client that says `input`.
pub fn haggle(input: &[u8], exports: &Exports) -> Vec<u8> {
    let mut stream = Recorded { input, output: Vec::new() };
    {
        let mut haggling = pin!(handshake::haggle(&mut stream, exports));
        let ended = haggling.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(ended.is_ready(), "a handshake waits although all is there");
    }
    stream.output
}

/// Decodes and checks a request's header, and panics if one passes that must not be served.
pub fn check(header: &[u8], export: &Export) {
    let Some(header) = header.first_chunk() else { return };
    let Ok(request) = Request::decode(header) else { return };
    if check_request(&request, export).is_err() {
        return;
    }
    let Request { flags, command, offset, length, .. } = request;
    let changes = [Command::WRITE, Command::TRIM, Command::WRITE_ZEROES].contains(&command);
    assert!(!(changes && export.is_read_only()), "{request:?} on a read-only export");
    if command != Command::FLUSH {
        let range = ByteRange::within(offset, length.into(), export.device.size());
        assert!(range.is_some(), "{request:?} on {} bytes", export.device.size());
    }
    let fast = command != Command::WRITE_ZEROES && flags.contains(CommandFlags::FAST_ZERO);
    assert!(!fast, "{request:?} has a flag of another command");
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

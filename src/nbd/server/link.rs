//! What a client in transmission is reached by: several threads read from it and write to it, in turns.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;

use super::patience::Patience;
use super::socket::Socket;
use super::tls::TlsSocket;

/// A connection's byte stream in both directions.
pub(super) enum Link {
    /// The socket itself.
    Plain(Socket),
    /// The socket under TLS.
    Tls(Box<TlsSocket>),
}

impl Link {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(socket) => socket.as_fd(),
            Self::Tls(socket) => socket.as_fd(),
        }
    }

    /// Whether a successor can go on with it, by [`Link::into_socket`].
    pub(super) fn can_be_handed_over(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Sends what there is room for just now; nothing under TLS, which may have to wait in the middle of a record.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if that is nothing.
    pub(super) fn send_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.send_now(slices),
            Self::Tls(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Receives what is there just now; nothing at the end of the stream. Under TLS nothing is ever there just now.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing is there.
    pub(super) fn receive_now(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.receive_now(slices),
            Self::Tls(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// The socket whose bytes are the stream's; `None` under TLS.
    pub(super) fn plain(&self) -> Option<&Socket> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) => None,
        }
    }

    /// How the rest of a large request is waited for by a thread that nobody else works beside.
    pub(super) fn rest(&self) -> Patience {
        match self {
            Self::Plain(socket) => Patience::with_rest(matches!(socket, Socket::Unix(_))),
            Self::Tls(_) => Patience::new(false),
        }
    }

    /// Ends one or both directions, also for a thread that waits in a read or a write.
    pub(super) fn shutdown(&self, how: Shutdown) {
        match self {
            Self::Plain(socket) => socket.shutdown(how),
            Self::Tls(socket) => socket.shutdown(how),
        }
    }

    /// The socket, for a successor; `None` where it cannot go on without what this process knows, and is ended.
    pub(super) fn into_socket(self) -> Option<Socket> {
        match self {
            Self::Plain(socket) => Some(socket),
            // The keys, and how many records they have been used for, stay in this process.
            Self::Tls(socket) => {
                socket.shutdown(Shutdown::Both);
                None
            }
        }
    }
}

impl Read for &Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match *self {
            Link::Plain(socket) => { socket }.read(buffer),
            Link::Tls(socket) => { &**socket }.read(buffer),
        }
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match *self {
            Link::Plain(socket) => { socket }.read_vectored(buffers),
            Link::Tls(socket) => { &**socket }.read_vectored(buffers),
        }
    }
}

impl Write for &Link {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match *self {
            Link::Plain(socket) => { socket }.write_vectored(slices),
            Link::Tls(socket) => { &**socket }.write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

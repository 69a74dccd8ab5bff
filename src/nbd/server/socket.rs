//! A client's stream: asynchronous while it haggles, blocking while it transmits.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes on their way to a client on a Unix socket.
const ROOM: usize = 512 << 10;

/// An accepted stream. One of a vsock is held as a Unix stream: once connected, the kernel takes the same calls for both.
pub(super) enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

macro_rules! either {
    ($self:expr, $stream:ident => $body:expr) => {
        match $self {
            Self::Unix($stream) => $body,
            Self::Tcp($stream) => $body,
        }
    };
}

impl Stream {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, stream => stream.as_fd())
    }

    pub(super) fn into_blocking(self) -> io::Result<Socket> {
        let socket = match self {
            Self::Unix(stream) => Socket::Unix(stream.into_std()?),
            Self::Tcp(stream) => Socket::Tcp(stream.into_std()?),
        };
        socket.set_blocking()?;
        socket.widen();
        Ok(socket)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A stream that several threads read from and write to, in turns.
pub(super) enum Socket {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

impl Socket {
    pub(super) fn set_blocking(&self) -> io::Result<()> {
        either!(self, stream => stream.set_nonblocking(false))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        either!(self, stream => stream.as_fd())
    }

    /// Makes room for a large reply: by default a Unix socket holds a fifth of 1 MiB, and both sides fall asleep and
    /// wake up again for every fifth. The kernel gives what it allows (`net.core.wmem_max`), more to the privileged. The
    /// room that TCP has follows the client.
    fn widen(&self) {
        if let Self::Unix(stream) = self {
            let _ = set_socket_send_buffer_size_force(stream, ROOM)
                .or_else(|_| set_socket_send_buffer_size(stream, ROOM));
        }
    }

    /// Sends what there is room for just now.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if that is nothing.
    pub(super) fn send_now(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        Ok(sendmsg(self.as_fd(), slices, &mut SendAncillaryBuffer::default(), flags)?)
    }

    /// Receives what is there just now; nothing at the end of the stream.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if nothing is there.
    pub(super) fn receive_now(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let flags = RecvFlags::DONTWAIT;
        Ok(recvmsg(self.as_fd(), slices, &mut RecvAncillaryBuffer::default(), flags)?.bytes)
    }

    /// Ends one or both directions, also for a thread that waits in a read or a write.
    pub(super) fn shutdown(&self, how: Shutdown) {
        // The peer may have gone first; there is nothing left to end then.
        let _ = either!(self, stream => stream.shutdown(how));
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        match socket {
            Socket::Unix(stream) => stream.into(),
            Socket::Tcp(stream) => stream.into(),
        }
    }
}

impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match *self {
            Socket::Unix(stream) => (&*stream).read(buffer),
            Socket::Tcp(stream) => (&*stream).read(buffer),
        }
    }

    fn read_vectored(&mut self, buffers: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match *self {
            Socket::Unix(stream) => (&*stream).read_vectored(buffers),
            Socket::Tcp(stream) => (&*stream).read_vectored(buffers),
        }
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match *self {
            Socket::Unix(stream) => (&*stream).write_vectored(slices),
            Socket::Tcp(stream) => (&*stream).write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! The reading side of a connection: reads ahead, and stops between two requests when it is asked to.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::socket::Socket;

/// Bytes read ahead: headers and the data of small writes come in with few system calls.
const READ_AHEAD: usize = 64 << 10;

/// Asks all connections of a server to stop reading at the end of a request.
pub(super) struct Pause {
    asked: AtomicBool,
    /// Becomes readable with `asked` and stays so: nobody reads it, so it wakes everybody.
    event: OwnedFd,
}

impl Pause {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { asked: AtomicBool::new(false), event })
    }

    pub(super) fn ask(&self) -> io::Result<()> {
        self.asked.store(true, Ordering::Release);
        rustix::io::write(&self.event, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// Waits until there is something to read on `socket`, or a pause is asked for: true, whatever else there is.
    fn comes_first(&self, socket: &Socket) -> io::Result<bool> {
        loop {
            let wanted = [
                PollFd::new(&self.event, PollFlags::IN),
                PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
            ];
            let mut descriptors = wanted;
            match poll(&mut descriptors, None) {
                Ok(_) => return Ok(!descriptors[0].revents().is_empty()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What comes after a request.
pub(super) enum Next {
    /// Another one, or at least its first byte.
    Request,
    /// Nothing: the client has ended the stream.
    End,
    /// A pause was asked for, and every byte that was taken from the socket has been used.
    Pause,
}

/// Everything that a client sends in transmission.
pub(super) struct Incoming {
    stream: BufReader<Half>,
    pause: Option<Arc<Pause>>,
}

impl Incoming {
    /// With `pause`, one more system call is made wherever a request is waited for.
    pub(super) fn new(socket: Arc<Socket>, pause: Option<Arc<Pause>>) -> Self {
        Self { stream: BufReader::with_capacity(READ_AHEAD, Half(socket)), pause }
    }

    /// Waits where a request may begin.
    pub(super) fn next(&mut self) -> io::Result<Next> {
        if let Some(pause) = &self.pause
            && self.stream.buffer().is_empty()
            && pause.comes_first(&self.stream.get_ref().0)?
        {
            return Ok(Next::Pause);
        }
        Ok(if self.stream.fill_buf()?.is_empty() { Next::End } else { Next::Request })
    }

    /// Fills `bytes` with the next part of a request. Reads ahead no more once a pause is asked for.
    pub(super) fn take(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if !self.pause.as_ref().is_some_and(|pause| pause.is_asked()) {
            return self.stream.read_exact(bytes);
        }
        let there = self.stream.buffer().len().min(bytes.len());
        let (there, missing) = bytes.split_at_mut(there);
        self.stream.read_exact(there)?;
        self.stream.get_mut().read_exact(missing)
    }
}

/// The reading side of the shared socket.
struct Half(Arc<Socket>);

impl Read for Half {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(buffer)
    }
}

//! Pipes whose reads and writes end at a deadline.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A pipe that another process may neglect. Unbuffered: what is read goes from the kernel to the caller's memory.
pub(super) struct Timed<P> {
    pipe: P,
    deadline: Instant,
}

impl<P: AsFd> Timed<P> {
    pub(super) fn new(pipe: P, deadline: Instant) -> Self {
        Self { pipe, deadline }
    }

    /// Waits until the pipe is ready, or broken, which the operation after it then tells.
    fn wait(&self, for_what: PollFlags) -> io::Result<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
            match poll(&mut [PollFd::new(&self.pipe, for_what)], Some(&timeout)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<P: AsFd + Read> Read for Timed<P> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(PollFlags::IN)?;
        self.pipe.read(buffer)
    }
}

impl<P: AsFd + Write> Write for Timed<P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(PollFlags::OUT)?;
        // A pipe that polls as writable has room for this much, so the write does not block (pipe(7), PIPE_BUF).
        self.pipe.write(&bytes[..bytes.len().min(rustix::pipe::PIPE_BUF)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

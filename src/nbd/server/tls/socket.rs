//! A connection under TLS in transmission: one thread reads while another writes.
//!
//! The session, which has the keys, is locked for as long as it enciphers or deciphers, and never while the socket
//! is waited for. Records must reach the socket in the order in which they were made: whoever takes them from the
//! session holds `outgoing` until they are sent. What the session has to send on its own account (a key update, an
//! alert) goes with the next records, or at once if nobody is sending: a reader does not wait for writers.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::net::SendFlags;
use rustls::ServerConnection;

use super::super::socket::Socket;

/// Plaintext that is enciphered at a time, in bytes: eight records, so that the reader seldom waits for long.
const PIECE: usize = 128 << 10;
/// Ciphertext that is read from the socket at a time, in bytes.
const READ_AHEAD: usize = 128 << 10;

pub(in crate::nbd::server) struct TlsSocket {
    socket: Socket,
    /// This side has ended reading.
    deaf: AtomicBool,
    session: Mutex<ServerConnection>,
    incoming: Mutex<Incoming>,
    /// Records on their way.
    outgoing: Mutex<Vec<u8>>,
}

/// Ciphertext that the session has not been given yet.
struct Incoming {
    bytes: Vec<u8>,
    used: usize,
    end: usize,
}

impl TlsSocket {
    /// After the TLS handshake; the session may hold what came in with its last message.
    pub(in crate::nbd::server) fn new(socket: Socket, mut session: ServerConnection) -> Self {
        session.set_buffer_limit(Some(PIECE));
        let incoming = Incoming { bytes: vec![0; READ_AHEAD], used: 0, end: 0 };
        Self {
            socket,
            deaf: AtomicBool::new(false),
            session: Mutex::new(session),
            incoming: Mutex::new(incoming),
            outgoing: Mutex::default(),
        }
    }

    pub(in crate::nbd::server) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// As shutdown(2); before the sending side is ended, the client is told so, if that takes no waiting.
    pub(in crate::nbd::server) fn shutdown(&self, how: Shutdown) {
        if !matches!(how, Shutdown::Write) {
            self.deaf.store(true, Ordering::Release);
        }
        if !matches!(how, Shutdown::Read) {
            self.say_farewell();
        }
        self.socket.shutdown(how);
    }

    fn say_farewell(&self) {
        // Somebody is in the middle of a record, behind which nothing else can go.
        let Ok(mut outgoing) = self.outgoing.try_lock() else { return };
        {
            let mut session = lock(&self.session);
            session.send_close_notify();
            collect(&mut session, &mut outgoing);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        // Whoever has gone, or takes nothing, misses nothing either.
        let _ = rustix::net::send(self.socket.as_fd(), &outgoing, flags);
        outgoing.clear();
    }

    /// Sends what the session wants to send on its own account. If others are sending, it goes with theirs.
    fn send_own(&self) -> io::Result<()> {
        let Ok(mut outgoing) = self.outgoing.try_lock() else { return Ok(()) };
        collect(&mut lock(&self.session), &mut outgoing);
        self.send(&mut outgoing)
    }

    fn send(&self, outgoing: &mut Vec<u8>) -> io::Result<()> {
        let sent = { &self.socket }.write_all(outgoing);
        outgoing.clear();
        sent
    }

    /// Deciphers what is there into `buffer`, which is not empty; `None` if that is nothing.
    fn decipher(&self, incoming: &mut Incoming, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut session = lock(&self.session);
        let mut filled = 0;
        while filled < buffer.len() {
            match session.reader().read(&mut buffer[filled..]) {
                // The client has said that it sends no more.
                Ok(0) => return Ok(Some(filled)),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let is_last = incoming.is_empty();
                    match incoming.give(&mut session) {
                        Ok(false) if is_last => break,
                        Ok(_) => {}
                        Err(error) => {
                            // What came before the fault is still to be used; the error comes again.
                            filled += session.reader().read(&mut buffer[filled..]).unwrap_or(0);
                            return if filled > 0 { Ok(Some(filled)) } else { Err(error) };
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok((filled > 0).then_some(filled))
    }
}

impl Read for &TlsSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let mut incoming = lock(&self.incoming);
        loop {
            let deciphered = self.decipher(&mut incoming, buffer);
            if lock(&self.session).wants_write() {
                self.send_own()?;
            }
            if let Some(count) = deciphered? {
                return Ok(count);
            }
            if incoming.fill(&self.socket)? == 0 {
                // Without TLS's own word for the end, anybody may have cut the stream.
                let ended = self.deaf.load(Ordering::Acquire);
                return if ended { Ok(0) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

impl Write for &TlsSocket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buffer)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut outgoing = lock(&self.outgoing);
        let taken = {
            let mut session = lock(&self.session);
            let taken = session.writer().write_vectored(slices)?;
            collect(&mut session, &mut outgoing);
            taken
        };
        self.send(&mut outgoing)?;
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Incoming {
    fn is_empty(&self) -> bool {
        self.used == self.end
    }

    /// Gives the session a part, if there is one, and has it deciphered; true if there is plaintext or the end.
    /// To be called only while there is none, or the session takes no more.
    fn give(&mut self, session: &mut ServerConnection) -> io::Result<bool> {
        // Nothing at all would be taken for the stream's end.
        if !self.is_empty() {
            self.used += session.read_tls(&mut &self.bytes[self.used..self.end])?;
        }
        let state = session
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(state.plaintext_bytes_to_read() > 0 || state.peer_has_closed())
    }

    /// Once it is empty; returns how many bytes came, 0 at the stream's end.
    fn fill(&mut self, mut socket: &Socket) -> io::Result<usize> {
        loop {
            match socket.read(&mut self.bytes) {
                Ok(count) => {
                    (self.used, self.end) = (0, count);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Takes the records that are ready; whoever calls this holds them until they are sent.
fn collect(session: &mut ServerConnection, outgoing: &mut Vec<u8>) {
    while session.wants_write() {
        // Writing to a vector cannot fail.
        if session.write_tls(outgoing).is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panics ends its connection.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;

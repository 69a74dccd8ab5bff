//! An NBD client of a few lines that says what it is told to, sense or nonsense (doc/proto.md).
//!
//! There are two ways to use it in transmission. [`Client::request`] and [`Client::send`] send whatever the test
//! likes, and the test reads what comes back. [`Client::submit`] sends requests as they should be, any number of
//! them, in each of the three reply modes; [`Client::finished`] and [`Client::reply_to`] hold what comes back
//! against the specification: see [`replies`].

mod replies;
mod stream;
mod tests;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::PATIENCE;
use replies::Expected;
pub(crate) use replies::Reply;
pub(crate) use stream::Stream;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1 << 0;
pub(crate) const NO_HOLE: u16 = 1 << 1;
pub(crate) const DF: u16 = 1 << 2;
pub(crate) const REQ_ONE: u16 = 1 << 3;
pub(crate) const FAST_ZERO: u16 = 1 << 4;
pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;

pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const LIST: u32 = 3;
pub(crate) const INFO: u32 = 6;
pub(crate) const GO: u32 = 7;
pub(crate) const STRUCTURED_REPLY: u32 = 8;
pub(crate) const LIST_META_CONTEXT: u32 = 9;
pub(crate) const SET_META_CONTEXT: u32 = 10;
pub(crate) const EXTENDED_HEADERS: u32 = 11;

pub(crate) const ACK: u32 = 1;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const ERR_UNSUP: u32 = 1 << 31 | 1;
pub(crate) const ERR_INVALID: u32 = 1 << 31 | 3;
pub(crate) const ERR_UNKNOWN: u32 = 1 << 31 | 6;
pub(crate) const ERR_TOO_BIG: u32 = 1 << 31 | 9;

/// The metadata context that every server with BLOCK_STATUS has.
pub(crate) const ALLOCATION: &str = "base:allocation";

/// How requests and replies look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies, and block status.
    Structured,
    /// Extended requests and replies, and block status.
    Extended,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Simple, Self::Structured, Self::Extended];
}

/// A connection. Reading from it ends with an error after [`PATIENCE`], not never.
pub(crate) struct Client<S = UnixStream> {
    pub(crate) stream: S,
    /// What came while the client was busy sending.
    inbox: VecDeque<u8>,
    cookie: u64,
    mode: Mode,
    /// The server's number for [`ALLOCATION`].
    context: Option<u32>,
    in_flight: HashMap<u64, Expected>,
    finished: HashMap<u64, Reply>,
}

impl Client {
    /// Connects and takes the greeting; what follows is the test's.
    pub(crate) fn greeted(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        client.take_greeting();
        client
    }

    /// Connects and does nothing.
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::over(stream)
    }

    /// Through the handshake by NBD_OPT_GO on the default export.
    pub(crate) fn ready(socket: &Path) -> Self {
        Self::ready_in(socket, Mode::Simple)
    }

    /// Through the handshake in one of the modes, by NBD_OPT_GO on the default export.
    pub(crate) fn ready_in(socket: &Path, mode: Mode) -> Self {
        let mut client = Self::haggling(socket);
        client.negotiate(mode);
        assert_eq!(client.choose(GO, ""), Ok(()));
        client
    }

    /// Greeted, and the client's flags (both) sent.
    pub(crate) fn haggling(socket: &Path) -> Self {
        let mut client = Self::greeted(socket);
        client.send(&3_u32.to_be_bytes());
        client
    }
}

impl<S: Stream> Client<S> {
    /// On a stream on which nothing has happened yet.
    pub(crate) fn over(stream: S) -> Self {
        Self {
            stream,
            inbox: VecDeque::new(),
            cookie: 0,
            mode: Mode::Simple,
            context: None,
            in_flight: HashMap::new(),
            finished: HashMap::new(),
        }
    }

    pub(crate) fn take_greeting(&mut self) {
        assert_eq!(&self.take::<16>().unwrap(), b"NBDMAGICIHAVEOPT");
        assert_eq!(self.take().unwrap(), [0, 3], "fixed newstyle, and zeroes left out on demand");
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Exactly `N` bytes.
    pub(crate) fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let here = self.inbox.len().min(bytes.len());
        self.inbox.read_exact(&mut bytes[..here])?;
        self.stream.read_exact(&mut bytes[here..])
    }

    /// What was taken, to be taken again.
    pub(crate) fn puts_back(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().rev() {
            self.inbox.push_front(*byte);
        }
    }

    fn number(&mut self) -> u32 {
        u32::from_be_bytes(self.take().unwrap())
    }

    /// An option; `length` is what its header says, whatever the data's is.
    pub(crate) fn option_of_length(&mut self, option: u32, length: u32, data: &[u8]) {
        let header = [&b"IHAVEOPT"[..], &option.to_be_bytes(), &length.to_be_bytes()].concat();
        self.send(&[&header, data].concat());
    }

    pub(crate) fn option(&mut self, option: u32, data: &[u8]) {
        self.option_of_length(option, u32::try_from(data.len()).unwrap(), data);
    }

    /// The reply to an option: its type and data.
    pub(crate) fn option_reply(&mut self, option: u32) -> (u32, Vec<u8>) {
        assert_eq!(u64::from_be_bytes(self.take().unwrap()), 0x0003_e889_0455_65a9);
        assert_eq!(self.number(), option);
        let (kind, length) = (self.number(), self.number());
        let mut data = vec![0; length as usize];
        self.fill(&mut data).unwrap();
        (kind, data)
    }

    /// NBD_OPT_GO or NBD_OPT_INFO on an export: refused with an error, or described.
    pub(crate) fn choose(&mut self, option: u32, name: &str) -> Result<(), u32> {
        self.option(option, &[&string(name)[..], &[0, 0]].concat());
        loop {
            match self.option_reply(option).0 {
                REP_INFO => {}
                ACK => return Ok(()),
                error => return Err(error),
            }
        }
    }

    /// Asks for a mode and, where it has block status, for [`ALLOCATION`] of the default export.
    pub(crate) fn negotiate(&mut self, mode: Mode) {
        let option = match mode {
            Mode::Simple => return,
            Mode::Structured => STRUCTURED_REPLY,
            Mode::Extended => EXTENDED_HEADERS,
        };
        self.option(option, b"");
        assert_eq!(self.option_reply(option).0, ACK, "{mode:?}");
        self.mode = mode;
        self.option(SET_META_CONTEXT, &meta_context("", &[ALLOCATION]));
        let (kind, data) = self.option_reply(SET_META_CONTEXT);
        assert_eq!((kind, &data[4..]), (REP_META_CONTEXT, ALLOCATION.as_bytes()));
        self.context = Some(u32::from_be_bytes(*data.first_chunk().unwrap()));
        assert_eq!(self.option_reply(SET_META_CONTEXT), (ACK, Vec::new()));
    }

    /// A compact request's header; returns its cookie. The reply is the test's to read.
    pub(crate) fn request(&mut self, flags: u16, command: u16, offset: u64, length: u32) -> u64 {
        self.cookie += 1;
        let header = header(flags, command, self.cookie, offset, length);
        self.send(&header);
        self.cookie
    }

    /// A simple reply: error and cookie.
    pub(crate) fn reply(&mut self) -> io::Result<(u32, u64)> {
        assert_eq!(u32::from_be_bytes(self.take()?), 0x6744_6698);
        Ok((u32::from_be_bytes(self.take()?), u64::from_be_bytes(self.take()?)))
    }

    /// The simple reply to the only request on its way: its error, 0 for none.
    pub(crate) fn answer(&mut self, cookie: u64) -> u32 {
        let (error, answered) = self.reply().unwrap();
        assert_eq!(answered, cookie);
        error
    }

    /// A request in the connection's mode, with its data if it is a write; returns its cookie. What comes in
    /// meanwhile is taken, so that neither side waits for the other, however many requests are on their way.
    pub(crate) fn submit(&mut self, flags: u16, command: u16, offset: u64, length: u64, data: &[u8]) -> u64 {
        assert_eq!(data.len() as u64, if command == WRITE { length } else { 0 });
        self.cookie += 1;
        let cookie = self.cookie;
        let bytes = encoded(self.mode, flags, command, cookie, offset, length, data);
        self.in_flight.insert(cookie, Expected::new(flags, command, offset, length));
        self.stream.exchange(&bytes, &mut self.inbox).unwrap();
        cookie
    }

    /// Requests whose reply is not complete yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The next reply that is complete, and the cookie of its request. Any number of others may have begun.
    ///
    /// # Errors
    /// What reading met before a reply was complete. Panics at whatever the specification forbids.
    pub(crate) fn finished(&mut self) -> io::Result<(u64, Reply)> {
        if let Some(cookie) = self.finished.keys().next().copied() {
            return Ok((cookie, self.finished.remove(&cookie).unwrap()));
        }
        loop {
            if let Some(finished) = self.piece_of_reply()? {
                return Ok(finished);
            }
        }
    }

    /// The reply to one request; others that are complete before it are kept for later.
    pub(crate) fn reply_to(&mut self, cookie: u64) -> Reply {
        assert!(self.in_flight.contains_key(&cookie) || self.finished.contains_key(&cookie), "{cookie}");
        while !self.finished.contains_key(&cookie) {
            if let Some((cookie, reply)) = self.piece_of_reply().unwrap() {
                self.finished.insert(cookie, reply);
            }
        }
        self.finished.remove(&cookie).unwrap()
    }

    /// A request and the reply to it.
    pub(crate) fn ask(&mut self, flags: u16, command: u16, offset: u64, length: u64) -> Reply {
        let cookie = self.submit(flags, command, offset, length, b"");
        self.reply_to(cookie)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let cookie = self.submit(0, WRITE, offset, data.len() as u64, data);
        assert_eq!(self.reply_to(cookie).error, 0);
    }

    pub(crate) fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let reply = self.ask(0, READ, offset, length as u64);
        assert_eq!(reply.error, 0);
        reply.data
    }

    /// NBD_CMD_DISC, and then [`Client::hear_out`].
    pub(crate) fn part(mut self) -> HashMap<u64, Reply> {
        self.stream.exchange(&encoded(self.mode, 0, DISC, 0, 0, 0, b""), &mut self.inbox).unwrap();
        self.hear_out()
    }

    /// All replies that are still to come, and the end of the stream: not a byte too many. For a client that has
    /// said in one way or another that it will send no more.
    pub(crate) fn hear_out(mut self) -> HashMap<u64, Reply> {
        let mut replies = std::mem::take(&mut self.finished);
        while self.in_flight() > 0 {
            replies.extend(self.piece_of_reply().unwrap());
        }
        let mut rest = Vec::from(self.inbox);
        self.stream.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty(), "{} bytes after the last reply", rest.len());
        replies
    }

    /// Waits until the server hangs up; fails if it does not.
    pub(crate) fn is_hung_up_on(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => {}
            // What the client had sent and the server not read.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server does not hang up: {error}"),
        }
    }
}

/// A compact request's header.
pub(crate) fn header(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    [
        &0x2560_9513_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// An extended request's header.
pub(crate) fn extended_header(flags: u16, command: u16, cookie: u64, offset: u64, length: u64) -> Vec<u8> {
    [
        &0x21e4_1c71_u32.to_be_bytes()[..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &length.to_be_bytes(),
    ]
    .concat()
}

/// A whole request in one of the modes, as it should be.
pub(crate) fn encoded(
    mode: Mode,
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u64,
    data: &[u8],
) -> Vec<u8> {
    let header = match mode {
        Mode::Extended if command == WRITE => {
            extended_header(flags | PAYLOAD_LEN, command, cookie, offset, length)
        }
        Mode::Extended => extended_header(flags, command, cookie, offset, length),
        _ => header(flags, command, cookie, offset, length.try_into().unwrap()),
    };
    [&header, data].concat()
}

/// A string after its length, as options have them.
pub(crate) fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], text.as_bytes()].concat()
}

/// Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
pub(crate) fn meta_context(export: &str, queries: &[&str]) -> Vec<u8> {
    let count = u32::try_from(queries.len()).unwrap().to_be_bytes();
    let queries: Vec<u8> = queries.iter().flat_map(|query| string(query)).collect();
    [&string(export)[..], &count, &queries].concat()
}

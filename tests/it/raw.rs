//! An NBD client of a few lines that says what it is told to, sense or nonsense (doc/proto.md).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::support::PATIENCE;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;

pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const LIST: u32 = 3;
pub(crate) const INFO: u32 = 6;
pub(crate) const GO: u32 = 7;

pub(crate) const ACK: u32 = 1;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const ERR_UNSUP: u32 = 1 << 31 | 1;
pub(crate) const ERR_INVALID: u32 = 1 << 31 | 3;
pub(crate) const ERR_UNKNOWN: u32 = 1 << 31 | 6;
pub(crate) const ERR_TOO_BIG: u32 = 1 << 31 | 9;

/// A connection. Reading from it ends with an error after [`PATIENCE`], not never.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    cookie: u64,
}

impl Client {
    /// Connects and takes the greeting; what follows is the test's.
    pub(crate) fn greeted(socket: &Path) -> Self {
        let mut client = Self::connect(socket);
        assert_eq!(&client.take::<16>().unwrap(), b"NBDMAGICIHAVEOPT");
        assert_eq!(client.take().unwrap(), [0, 3], "fixed newstyle, and zeroes left out on demand");
        client
    }

    /// Connects and does nothing.
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream, cookie: 0 }
    }

    /// Through the handshake by NBD_OPT_GO on the default export.
    pub(crate) fn ready(socket: &Path) -> Self {
        let mut client = Self::haggling(socket);
        assert_eq!(client.choose(GO, ""), Ok(()));
        client
    }

    /// Greeted, and the client's flags (both) sent.
    pub(crate) fn haggling(socket: &Path) -> Self {
        let mut client = Self::greeted(socket);
        client.send(&3_u32.to_be_bytes());
        client
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Exactly `N` bytes.
    pub(crate) fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
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
        self.stream.read_exact(&mut data).unwrap();
        (kind, data)
    }

    /// NBD_OPT_GO or NBD_OPT_INFO on an export: refused with an error, or described.
    pub(crate) fn choose(&mut self, option: u32, name: &str) -> Result<(), u32> {
        let length = u32::try_from(name.len()).unwrap();
        self.option(option, &[&length.to_be_bytes()[..], name.as_bytes(), &[0, 0]].concat());
        loop {
            match self.option_reply(option).0 {
                REP_INFO => {}
                ACK => return Ok(()),
                error => return Err(error),
            }
        }
    }

    /// A request's header; returns its cookie.
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

    /// The reply to the only request on its way: its error, 0 for none.
    pub(crate) fn answer(&mut self, cookie: u64) -> u32 {
        let (error, answered) = self.reply().unwrap();
        assert_eq!(answered, cookie);
        error
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let cookie = self.request(0, WRITE, offset, u32::try_from(data.len()).unwrap());
        self.send(data);
        assert_eq!(self.answer(cookie), 0);
    }

    pub(crate) fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let cookie = self.request(0, READ, offset, u32::try_from(length).unwrap());
        assert_eq!(self.answer(cookie), 0);
        let mut data = vec![0; length];
        self.stream.read_exact(&mut data).unwrap();
        data
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

/// A request's header.
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

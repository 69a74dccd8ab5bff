//! A client as simple as can be: it sends a batch of requests, and the next once all are answered.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// A request's magic number ("Request message").
const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Bytes of a simple reply before its data; its error stands at [`ERROR`] ("Simple reply message").
const REPLY_LENGTH: usize = 16;
const ERROR: std::ops::Range<usize> = 4..8;
/// A server that says nothing for so long is taken for dead.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// NBD_CMD_READ.
    Read,
    /// NBD_CMD_WRITE.
    Write,
}

/// A connection in transmission, with simple replies.
pub struct Client(UnixStream);

impl Client {
    /// NBD_OPT_GO to the default export.
    ///
    /// # Errors
    /// The socket's, and of a server that refuses.
    pub fn negotiate(mut stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        // NBD_FLAG_C_FIXED_NEWSTYLE and NBD_FLAG_C_NO_ZEROES; the option with no name and no information requests.
        let go = [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7, 0, 0, 0, 6], &[0; 6]].concat();
        stream.write_all(&go)?;
        stream.read_exact(&mut [0; 18])?;
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head)?;
            let [.., a, b, c, d, e, f, g, h] = head;
            stream.read_exact(&mut vec![0; u32::from_be_bytes([e, f, g, h]) as usize])?;
            match u32::from_be_bytes([a, b, c, d]) {
                // NBD_REP_ACK ends what NBD_REP_INFO began.
                1 => return Ok(Self(stream)),
                3 => {}
                other => return Err(io::Error::other(format!("the server refuses the export ({other:#x})"))),
            }
        }
    }

    /// Sends all of `batch` at once and reads all replies. The requests of reads and the replies to writes are few
    /// bytes, which the sockets hold: nobody waits for ever.
    ///
    /// # Errors
    /// The socket's, and of a request that was not done.
    pub fn exchange(&mut self, batch: &mut Batch) -> io::Result<()> {
        batch.move_on();
        self.0.write_all(&batch.requests)?;
        // What is answered with an error comes without data, and the rest is waited for in vain.
        self.0.read_exact(&mut batch.replies)?;
        match batch.replies.chunks_exact(batch.reply).find(|reply| reply[ERROR] != [0; 4]) {
            None => Ok(()),
            Some(reply) => {
                Err(io::Error::other(format!("the server answers with error {:?}", &reply[ERROR])))
            }
        }
    }
}

/// Requests of one kind and length that are sent together, again and again, each time elsewhere.
pub struct Batch {
    requests: Vec<u8>,
    replies: Vec<u8>,
    /// Bytes of one request and of one reply, with their data.
    request: usize,
    reply: usize,
    /// Bytes that each is about.
    length: u32,
    places: u64,
    place: u64,
}

impl Batch {
    /// `depth` requests for `length` bytes each, spread over the first `area` bytes, of which there are at least
    /// `length`.
    pub fn new(operation: Operation, length: u32, depth: usize, area: u64) -> Self {
        let (command, sent, received) = match operation {
            Operation::Read => (0_u16, 0, length as usize),
            Operation::Write => (1, length as usize, 0),
        };
        let mut one = [&REQUEST_MAGIC.to_be_bytes()[..], &[0, 0], &command.to_be_bytes(), &[0; 16]].concat();
        one.extend(length.to_be_bytes());
        one.resize(one.len() + sent, 0x5a);
        let reply = REPLY_LENGTH + received;
        Self {
            requests: one.repeat(depth),
            replies: vec![0; depth * reply],
            request: one.len(),
            reply,
            length,
            places: (area / u64::from(length)).max(1),
            place: 0,
        }
    }

    /// Requests.
    pub fn depth(&self) -> usize {
        self.requests.len() / self.request
    }

    /// Bytes that all of them are about.
    pub fn bytes(&self) -> u64 {
        self.depth() as u64 * u64::from(self.length)
    }

    /// Gives each request another offset, a multiple of its length.
    fn move_on(&mut self) {
        for request in self.requests.chunks_exact_mut(self.request) {
            // A prime: every place comes once before the first comes again, unless it divides their number.
            let offset = self.place * 40_487 % self.places * u64::from(self.length);
            self.place += 1;
            request[16..24].copy_from_slice(&offset.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::nbd::wire::{Command, Request};

    #[test]
    fn requests_are_the_protocols_and_go_everywhere() {
        for (operation, command) in [(Operation::Read, Command::READ), (Operation::Write, Command::WRITE)] {
            let mut batch = Batch::new(operation, 4096, 4, 64 << 12);
            assert_eq!((batch.depth(), batch.bytes()), (4, 4 << 12));
            let mut offsets = HashSet::new();
            for _ in 0..16 {
                batch.move_on();
                for bytes in batch.requests.chunks_exact(batch.request) {
                    let request = Request::decode(bytes[..28].try_into().unwrap()).unwrap();
                    assert_eq!((request.command, request.length), (command, 4096));
                    assert_eq!(bytes.len() - 28, if operation == Operation::Write { 4096 } else { 0 });
                    offsets.insert(request.offset);
                }
            }
            assert_eq!(offsets, (0..64).map(|place| place << 12).collect());
        }
    }

    /// A server that has said what it has to say already.
    fn after(says: &[u8]) -> UnixStream {
        let (server, client) = UnixStream::pair().unwrap();
        (&server).write_all(says).unwrap();
        server.shutdown(std::net::Shutdown::Write).unwrap();
        // What the client sends is taken, and read by nobody.
        std::mem::forget(server);
        client
    }

    #[test]
    fn errors_are_seen() {
        let reply = |kind: u32| [&[0; 12][..], &kind.to_be_bytes(), &[0; 4]].concat();
        let refusing = [&[0; 18][..], &reply(3), &reply(0x8000_0006)].concat();
        let refused = Client::negotiate(after(&refusing)).err().unwrap();
        assert!(refused.to_string().contains("0x80000006"), "{refused}");
        assert!(Client::negotiate(after(&[0; 18])).is_err(), "cut short");

        let serving = [&[0; 18][..], &reply(1), &[0; 16], &[0, 0, 0, 0, 0, 0, 0, 28], &[0; 8]].concat();
        let mut client = Client::negotiate(after(&serving)).unwrap();
        let failed = client.exchange(&mut Batch::new(Operation::Write, 512, 2, 512)).unwrap_err();
        assert!(failed.to_string().contains("28"), "{failed}");
    }
}

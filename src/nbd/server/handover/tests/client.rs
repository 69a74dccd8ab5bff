//! A client that keeps many requests in flight and knows what has to come back.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::nbd::wire::{Command, CommandFlags};

/// Requests in flight at most. Each has a slot of the client's region to itself.
const DEPTH: usize = 8;
/// Bytes of a slot: requests are larger than what the server moves in one piece.
const SLOT: usize = 3 << 20;
/// Requests in a client's life.
const REQUESTS: u64 = 200;

/// xorshift64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    /// Less than `end` of them.
    pub(super) fn microseconds(&mut self, end: u64) -> Duration {
        Duration::from_micros(self.next() % end)
    }
}

/// The whole handshake for the default export.
pub(super) fn haggle(stream: &mut (impl Read + Write)) -> io::Result<()> {
    stream.read_exact(&mut [0; 18])?;
    choose(stream)
}

/// What follows the greeting: NBD_OPT_EXPORT_NAME without zeroes.
pub(super) fn choose(stream: &mut (impl Read + Write)) -> io::Result<()> {
    stream.write_all(&[&3_u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 1, 0, 0, 0, 0]].concat())?;
    stream.read_exact(&mut [0; 10])
}

pub(super) fn request(command: Command, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.0.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

pub(super) fn read_request(cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    request(Command::READ, 0, cookie, offset, length)
}

/// Cookie and error of the next reply.
pub(super) fn reply(stream: &mut impl Read) -> (u64, u32) {
    let mut header = [0; 16];
    stream.read_exact(&mut header).unwrap();
    assert_eq!(header[..4], 0x6744_6698_u32.to_be_bytes());
    let error = u32::from_be_bytes(header[4..8].try_into().unwrap());
    (u64::from_be_bytes(header[8..].try_into().unwrap()), error)
}

/// A request in flight.
struct Sent {
    command: Command,
    slot: usize,
    range: Range<usize>,
}

pub(super) struct Client {
    /// First byte of its region, which no other client touches.
    base: u64,
    seed: u64,
    state: Mutex<State>,
    answered: Condvar,
}

struct State {
    /// What its region holds, by slot.
    model: Vec<Vec<u8>>,
    free: Vec<usize>,
    sent: HashMap<u64, Sent>,
}

impl Client {
    pub(super) fn new(region: usize, seed: u64) -> Self {
        let state =
            State { model: vec![vec![0; SLOT]; DEPTH], free: (0..DEPTH).collect(), sent: HashMap::new() };
        let base = (region * DEPTH * SLOT) as u64;
        Self { base, seed, state: Mutex::new(state), answered: Condvar::new() }
    }

    /// Its life, from the handshake to NBD_CMD_DISC, which it sends with requests still in flight.
    pub(super) fn run(&self, mut incoming: impl Read + Write + Send, mut outgoing: impl Write + Send) {
        haggle(&mut incoming).unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| self.send(&mut outgoing));
            self.receive(&mut incoming);
        });
    }

    fn send(&self, outgoing: &mut impl Write) {
        let mut random = Random(self.seed | 1);
        for cookie in 0..REQUESTS {
            let bytes = self.make(cookie, &mut random);
            // In pieces that end anywhere, with pauses at some of the ends.
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let most = if random.below(2) == 0 { 64 } else { 1 << 20 };
                let (piece, after) = rest.split_at(rest.len().min(1 + random.below(most)));
                outgoing.write_all(piece).unwrap();
                rest = after;
                match random.below(40) {
                    0 => std::thread::sleep(random.microseconds(6_000)),
                    1..10 => std::thread::yield_now(),
                    _ if rest.len() < 100 => {}
                    _ => {
                        let (piece, after) = rest.split_at(random.below(rest.len()));
                        outgoing.write_all(piece).unwrap();
                        rest = after;
                    }
                }
            }
            if random.below(50) == 0 {
                // Idle for a while.
                std::thread::sleep(random.microseconds(20_000));
            }
        }
        outgoing.write_all(&request(Command::DISC, 0, 0, 0, 0)).unwrap();
    }

    /// The next request in a slot that is free, and its effect on the model.
    fn make(&self, cookie: u64, random: &mut Random) -> Vec<u8> {
        let state = self.state.lock().unwrap();
        let mut state = self.answered.wait_while(state, |state| state.free.is_empty()).unwrap();
        let slot = state.free.pop().unwrap();
        let most = [600, 600, 600, 70_000, 70_000, 70_000, 1_500_000, SLOT][random.below(8)];
        let length = random.below(most);
        let start = random.below(SLOT - length);
        let range = start..start + length;
        let kinds = [Command::READ, Command::WRITE, Command::READ, Command::WRITE];
        let rare = [Command::FLUSH, Command::TRIM, Command::WRITE_ZEROES, Command::CACHE];
        let kinds = if random.below(5) == 0 { rare } else { kinds };
        let command = kinds[random.below(4)];
        let flags = if random.below(8) == 0 { CommandFlags::FUA.0 } else { 0 };
        let offset = self.base + (slot * SLOT + start) as u64;
        let mut bytes = if command == Command::FLUSH {
            request(command, flags, cookie, 0, 0)
        } else {
            request(command, flags, cookie, offset, u32::try_from(length).unwrap())
        };
        let model = &mut state.model[slot][range.clone()];
        match command {
            Command::WRITE => {
                for word in model.chunks_mut(8) {
                    word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]);
                }
                bytes.extend_from_slice(model);
            }
            Command::TRIM | Command::WRITE_ZEROES => model.fill(0),
            _ => {}
        }
        assert!(state.sent.insert(cookie, Sent { command, slot, range }).is_none());
        bytes
    }

    fn receive(&self, incoming: &mut impl Read) {
        for _ in 0..REQUESTS {
            let (cookie, error) = reply(incoming);
            assert_eq!(error, 0, "request {cookie}");
            // A reply to what was not asked, or the second one, finds nothing here.
            let sent = self.state.lock().unwrap().sent.remove(&cookie).unwrap();
            let mut data = vec![0; if sent.command == Command::READ { sent.range.len() } else { 0 }];
            incoming.read_exact(&mut data).unwrap();
            let mut state = self.state.lock().unwrap();
            if sent.command == Command::READ {
                assert!(data == state.model[sent.slot][sent.range], "request {cookie} read other bytes");
            }
            state.free.push(sent.slot);
            self.answered.notify_one();
        }
        assert_eq!(incoming.read(&mut [0]).unwrap(), 0, "nothing follows the last reply");
    }
}

//! Clients that send random requests, many at a time, and hold the replies against the model.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use super::disk::{Disk, indices};
use super::operation::{Export, OK, Operation};
use super::random::Random;
use crate::raw::{BLOCK_STATUS, Client, FLUSH, Mode, READ, Reply, WRITE};

/// Most requests on their way at once, over all connections.
const MOST_IN_FLIGHT: usize = 96;
/// Bytes of a small request: a few dozen of them fit in a socket's buffer.
const SMALL: u64 = 2048;
/// Requests that a failure shows.
const REMEMBERED: usize = 60;
/// Most bytes of a read that checks what was left somewhere.
const STEP: u64 = 8 << 20;

/// What a failure shows: how to repeat it, and what was asked last.
pub(super) struct Log {
    title: String,
    lines: VecDeque<String>,
    count: u64,
}

impl Log {
    fn note(&mut self, line: fmt::Arguments<'_>) {
        self.count += 1;
        if self.lines.len() == REMEMBERED {
            self.lines.pop_front();
        }
        self.lines.push_back(format!("{:>6} {line}", self.count));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines: Vec<_> = self.lines.iter().map(String::as_str).collect();
            println!("{}; the last of what was sent (>), answered (<) and found wrong:", self.title);
            println!("{}", lines.join("\n"));
        }
    }
}

/// A request that is on its way.
struct Flight {
    client: usize,
    mode: Mode,
    cookie: u64,
    operation: Operation,
}

pub(super) struct Driver {
    socket: PathBuf,
    export: Export,
    random: Random,
    clients: Vec<(Mode, Client)>,
    pub(super) disk: Disk,
    in_flight: Vec<Flight>,
    log: Log,
}

impl Driver {
    /// A client in each mode, on a volume that holds what `disk` says.
    pub(super) fn new(socket: PathBuf, export: Export, disk: Disk, seed: u64, title: String) -> Self {
        let clients = Mode::ALL.map(|mode| (mode, Client::ready_in(&socket, mode))).into();
        let log = Log { title, lines: VecDeque::new(), count: 0 };
        Self { socket, export, random: Random::new(seed), clients, disk, in_flight: Vec::new(), log }
    }

    /// `count` times something at random; leaves requests in flight. What is sent depends on the seed alone, and not on
    /// when replies come.
    pub(super) fn go(&mut self, count: usize) {
        for _ in 0..count {
            match self.random.below(100) {
                0..3 => self.storm(),
                3 => self.renew(),
                4..7 if !self.export.read_only => self.neighbours(),
                _ => self.one(u64::MAX),
            }
        }
    }

    /// Puts `count` requests in flight, beside no larger ones, whose replies fit in the sockets' buffers: a server
    /// that is to hand over its clients waits for those that do not read, and then cuts them.
    pub(super) fn put_in_flight(&mut self, count: usize) {
        self.settle_where(|flight| flight.operation.length > SMALL);
        (0..count).for_each(|_| self.one(SMALL));
    }

    /// Flushes, leaves, comes back, and finds everything as it was left. Returns what the volume holds, and how many
    /// requests were answered.
    pub(super) fn finish(mut self) -> (Disk, u64) {
        self.settle_all();
        let flush = Operation::new(FLUSH, 0, 0, 0);
        self.submit(0, flush);
        self.settle_all();
        for (_, client) in std::mem::take(&mut self.clients) {
            client.part();
        }
        self.clients = Mode::ALL.map(|mode| (mode, Client::ready_in(&self.socket, mode))).into();
        for offset in (0..self.export.size).step_by(STEP as usize) {
            let (client, length) = (self.any_client(), STEP.min(self.export.size - offset));
            self.submit(client, Operation::new(READ, 0, offset, length));
        }
        self.submit(1, Operation::new(BLOCK_STATUS, 0, 0, self.export.size));
        self.submit(2, Operation::new(BLOCK_STATUS, 0, 0, self.export.size));
        self.settle_all();
        let Self { disk, log, .. } = self;
        (disk, log.count)
    }

    fn any_client(&mut self) -> usize {
        self.random.below(self.clients.len() as u64) as usize
    }

    /// Any request of at most `most` bytes, beside others that have nothing to do with it.
    fn one(&mut self, most: u64) {
        let client = self.any_client();
        let mut operation = Operation::any(&mut self.random, &self.export, self.clients[client].0);
        operation.length = operation.length.min(most);
        if operation.outcomes(&self.export, self.clients[client].0).contains(&OK) {
            self.settle_before(&operation);
            if operation.changes() {
                self.disk.change(&operation);
            }
        }
        self.submit(client, operation);
    }

    fn submit(&mut self, client: usize, operation: Operation) {
        while self.in_flight.len() >= MOST_IN_FLIGHT {
            let oldest = self.in_flight.swap_remove(0);
            self.settle(&oldest);
        }
        let (mode, connection) = &mut self.clients[client];
        self.log.note(format_args!("> {mode:?} {operation:?}"));
        let Operation { flags, command, offset, length, .. } = operation;
        let (mode, cookie) = (*mode, connection.submit(flags, command, offset, length, &operation.data()));
        self.in_flight.push(Flight { client, mode, cookie, operation });
    }

    /// Waits for what `operation` must not meet: changes in the same bytes, and where a status is asked for, changes in
    /// the same sectors, which are holes or not as a whole.
    fn settle_before(&mut self, operation: &Operation) {
        let sector = self.export.sector;
        self.settle_where(|other| {
            let other = &other.operation;
            let grain = if [operation.command, other.command].contains(&BLOCK_STATUS) { sector } else { 1 };
            let (ours, theirs) = (operation.touched(grain), other.touched(grain));
            let meets = theirs.start < ours.end && ours.start < theirs.end;
            meets && (other.changes() || operation.changes())
        });
    }

    fn settle_all(&mut self) {
        self.settle_where(|_| true);
    }

    fn settle_where(&mut self, which: impl Fn(&Flight) -> bool) {
        for flight in self.take_where(which) {
            self.settle(&flight);
        }
    }

    fn take_where(&mut self, which: impl Fn(&Flight) -> bool) -> Vec<Flight> {
        let (taken, others) = std::mem::take(&mut self.in_flight).into_iter().partition(which);
        self.in_flight = others;
        taken
    }

    fn settle(&mut self, flight: &Flight) {
        let reply = self.clients[flight.client].1.reply_to(flight.cookie);
        self.judge(flight, &reply);
    }

    fn judge(&mut self, flight: &Flight, reply: &Reply) {
        self.check_error(flight, reply);
        match flight.operation.command {
            READ if reply.error == OK => self.disk.check_data(flight.operation.offset, &reply.data),
            BLOCK_STATUS if reply.error == OK => {
                self.disk.check_status(&flight.operation, &reply.extents, &[]);
            }
            _ => {}
        }
    }

    fn check_error(&mut self, flight: &Flight, reply: &Reply) {
        let Flight { mode, operation, .. } = flight;
        self.log.note(format_args!("< {mode:?} {operation:?}: {}", reply.error));
        let outcomes = operation.outcomes(&self.export, *mode);
        assert!(outcomes.contains(&reply.error), "error {} and not one of {outcomes:?}", reply.error);
    }

    /// Short writes side by side, in flight at once: most change a sector that others change as well.
    fn neighbours(&mut self) {
        let first = self.random.below(self.export.size - (1 << 14));
        let mut next = first;
        for _ in 0..40 {
            let (client, length) = (self.any_client(), 1 + self.random.below(200));
            let operation = Operation::write(&mut self.random, next, length);
            self.settle_before(&operation);
            self.disk.change(&operation);
            self.submit(client, operation);
            next += length;
        }
        let all = Operation::new(READ, 0, first, next - first);
        self.settle_before(&all);
        let client = self.any_client();
        self.submit(client, all);
    }

    /// Requests that all meet in one place, in flight at once: each byte is as one of them made it.
    fn storm(&mut self) {
        let window = self.window();
        self.settle_before(&Operation::new(WRITE, 0, window.start, window.end - window.start));
        let count = 2 + self.random.below(20);
        let operations: Vec<_> = (0..count).map(|_| Operation::inside(&mut self.random, &window)).collect();
        let mut changes = operations.clone();
        changes.retain(|operation| operation.changes() && !self.export.read_only);
        let outcomes = self.disk.outcomes(&window, &changes);
        self.log.note(format_args!("storm in {window:?}"));
        let mut flights = Vec::new();
        for operation in operations {
            let client = self.any_client();
            self.submit(client, operation);
            flights.extend(self.in_flight.pop());
        }
        for flight in flights {
            let reply = self.clients[flight.client].1.reply_to(flight.cookie);
            self.check_error(&flight, &reply);
            match flight.operation.command {
                READ if reply.error == OK => outcomes.check(flight.operation.offset, &reply.data, false),
                BLOCK_STATUS if reply.error == OK => {
                    self.disk.check_status(&flight.operation, &reply.extents, &changes);
                }
                _ => {}
            }
        }
        let client = self.any_client();
        let left = self.clients[client].1.read(window.start, indices(&window).len());
        self.log.note(format_args!("the storm in {window:?} is over"));
        outcomes.check(window.start, &left, true);
        self.disk.adopt(&window, &changes, &left);
    }

    fn window(&mut self) -> Range<u64> {
        let most = self.random.one_of(&[64, 1024, 8 << 10, 48 << 10]);
        let length = 1 + self.random.below(most);
        let borders = [self.export.sector, 1 << 20, 32 << 20];
        let border = self.random.one_of(&borders) * (1 + self.random.below(2));
        let anywhere = self.random.below(self.export.size - length);
        let start =
            if self.random.once_in(2) { border - self.random.below(length.min(border)) } else { anywhere };
        start..start + length
    }

    /// A client leaves, with or without a word, and another comes in its place.
    fn renew(&mut self) {
        let index = self.any_client();
        let orderly = self.random.once_in(2);
        let mode = self.random.one_of(&Mode::ALL);
        self.log.note(format_args!("{:?} leaves, orderly: {orderly}, {mode:?} comes", self.clients[index].0));
        if !orderly {
            // Of changes nobody could say whether they were done.
            self.settle_where(|flight| flight.client == index && flight.operation.changes());
        }
        let its = self.take_where(|flight| flight.client == index);
        let successor = (mode, Client::ready_in(&self.socket, mode));
        let (_, client) = std::mem::replace(&mut self.clients[index], successor);
        if orderly {
            let mut replies = client.part();
            for flight in its {
                let reply = replies.remove(&flight.cookie).expect("a reply to what came before NBD_CMD_DISC");
                self.judge(&flight, &reply);
            }
        }
    }
}

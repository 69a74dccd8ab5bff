//! Reads and writes that the device has under way at once, while the thread that began them goes on receiving.
//!
//! Where a device offers a [`Lane`], as one does whose every request waits for a disk, the thread with the turn to
//! receive begins each request on the lane, waits for the client and the device alike, and answers what has ended, in
//! whatever order that is. So a deep queue of the client's is as deep at the disk, and costs one thread. A device may
//! tell of many ends at once: they are answered a few at a time, so that it has the client's next requests before the
//! last of them is.
//!
//! A client's socket holds little of a long write, so the client and this thread pass it on to each other bit by bit.
//! What has come is made ready for the device while the client sends on ([`Lane::prepare`]), and the rest is looked out
//! for: then the one writes into the socket while the other reads from it and enciphers, and neither falls asleep.
//!
//! What a lane does not take goes to a thread that can wait, as everywhere else; before this one waits for anything else,
//! it has nothing under way any more, for nobody else would notice its end.

mod ends;
mod fit;
mod payload;

use std::os::fd::BorrowedFd;
use std::thread;
use std::time::{Duration, Instant};

use self::payload::Payload;
use super::buffers::Buffer;
use super::connection::Connection;
use super::crew::Turn;
use super::incoming::Now;
use super::patience::Patience;
use super::receiver::{Job, Receiver};
use super::reply::{Hangup, Pending, Queue, Sent};
use crate::block::{DEPTH, Direction, Extents, Lane, Readiness, Transfer};

/// Tokens of what is watched.
const CLIENT_SENDS: usize = 0;
const CLIENT_READS: usize = 1;
const PAUSE: usize = 2;

/// Between two looks whether somebody else is still sending.
const SENDING: Duration = Duration::from_millis(20);
/// How long a client with nothing under way is waited for on its lane, which Linux counts as waiting for a disk.
const PATIENCE: Duration = Duration::from_millis(20);

/// One thread's requests that are under way, and their replies.
pub(super) struct Traffic<'a> {
    connection: &'a Connection,
    lane: Box<dyn Lane + 'a>,
    /// By the tokens of their transfers, to which the buffers' memory is lent.
    waiting: Vec<Option<(Pending<'a>, Buffer<'a>)>>,
    free: Vec<usize>,
    queue: Queue<'a>,
    payload: Option<Payload<'a>>,
    /// How the rest of a large payload is waited for.
    rest: Patience,
    /// Since when that is.
    wanted_since: Option<Instant>,
    /// By token, what the lane watches just now.
    watched: [bool; 3],
    /// There may be something to read from the client.
    readable: bool,
    /// When this thread waited last, it had sent all that it had begun to, and had read all replies: the next one may have
    /// to wake it up.
    client_sleeps: bool,
    /// The last wait was in vain.
    is_tired: bool,
    /// The stream has ended in the middle of a write's data.
    is_cut_short: bool,
    /// Of what has ended last; kept for the memory it has.
    extents: Extents,
}

/// What a thread does next that has served what it can.
pub(super) enum Then<'a> {
    /// Nothing is under way: [`Receiver::wait`] tells whether there is more.
    Wait,
    /// Nothing is under way, and the next request is to be received in the usual way.
    Receive,
    /// [`Traffic::finish`], without the turn.
    Finish,
    /// That, and then to serve a request that has to wait for another one.
    Serve(Pending<'a>, Job<'a>),
}

/// Why no further request is begun.
enum Stop<'a> {
    /// Nothing more is here.
    Here,
    /// Something that is under way has to end first.
    Memory,
    /// The next request is none for a lane.
    Other,
    /// This one has to wait for another one.
    Refused(Pending<'a>, Job<'a>),
}

impl<'a> Traffic<'a> {
    /// `None` where the device has no use for it, or as many lanes as it may. Under TLS, that a socket is ready does not say
    /// that a request is.
    pub(super) fn of(connection: &'a Connection) -> Option<Self> {
        connection.socket()?;
        Some(Self {
            connection,
            lane: connection.device().lane()?,
            waiting: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            queue: Queue::new(connection.outgoing()),
            payload: None,
            rest: connection.rest(),
            wanted_since: None,
            watched: [false; 3],
            readable: true,
            client_sleeps: false,
            is_tired: false,
            is_cut_short: false,
            extents: Extents::default(),
        })
    }

    /// Serves requests for as long as this thread can without waiting for one of them alone.
    ///
    /// # Errors
    /// A [`Hangup`] where the connection has to end.
    pub(super) fn serve(&mut self, turn: &mut Turn<'_, Receiver>) -> Result<Then<'a>, Hangup> {
        // What comes next may be the middle of a write's data, until this has returned.
        turn.suspend();
        loop {
            let stop = self.begin_all(turn)?;
            let sent = match self.hand_out(turn) {
                Ok(sent) => sent,
                Err(hangup) => {
                    if let Stop::Refused(pending, _) = stop {
                        pending.forsake();
                    }
                    return Err(hangup);
                }
            };
            // For the overseer: what has come, and what has ended, is to be looked at.
            turn.keep();
            self.connection.overseer().stir();
            let wants_more = matches!(stop, Stop::Here);
            if let Some(then) = self.then(stop, sent, turn) {
                if !self.is_cut_short {
                    turn.resume();
                }
                return Ok(then);
            }
            let came = wants_more && (self.readable && self.read(turn)? || self.look_out(turn)?);
            if came && !self.readable {
                continue;
            }
            // If more may be there, and yet more behind it, what is under way does not wait for that.
            if !came && !self.lane.has_more() {
                self.wait(turn, wants_more, sent)?;
            }
            self.lane.look()?;
            self.harvest();
        }
    }

    /// Hands what has begun to the device, and the replies to the client.
    fn hand_out(&mut self, receiver: &Receiver) -> Result<Sent, Hangup> {
        self.lane.hand_over()?;
        let some = self.queue.len() > 0;
        let sent = self.queue.send_now()?;
        if some && self.lane.has_more() && !receiver.reads_no_more() {
            // The device is to have the client's next requests while more replies are made.
            self.readable = true;
            if sent == Sent::All {
                // On the same processor, the client would otherwise not run before all of them are, and the device have
                // nothing to do meanwhile. With nothing left to send, this comes again only after more has ended.
                thread::yield_now();
            }
        }
        Ok(sent)
    }

    /// What to do instead of waiting for what is under way, and for more, if anything.
    fn then(&self, stop: Stop<'a>, sent: Sent, receiver: &Receiver) -> Option<Then<'a>> {
        let is_idle = self.is_idle();
        match stop {
            Stop::Refused(pending, job) => Some(Then::Serve(pending, job)),
            // Nobody else knows what of a payload has come.
            _ if sent == Sent::NotNow && self.payload.is_none() => Some(Then::Finish),
            Stop::Other | Stop::Memory if is_idle => Some(Then::Receive),
            Stop::Other => Some(Then::Finish),
            Stop::Here if is_idle && self.payload.is_none() => {
                let is_over = receiver.reads_no_more();
                match receiver.here().len() {
                    0 if is_over || self.is_tired => Some(Then::Wait),
                    1.. if is_over => Some(Then::Receive),
                    _ => None,
                }
            }
            Stop::Here | Stop::Memory => None,
        }
    }

    fn is_idle(&self) -> bool {
        self.lane.under_way() == 0 && self.queue.len() == 0
    }

    /// Waits for the client and for what is under way.
    fn wait(&mut self, receiver: &Receiver, wants_more: bool, sent: Sent) -> Result<(), Hangup> {
        self.watch_all(receiver, wants_more, sent);
        self.client_sleeps = wants_more && self.payload.is_none() && self.queue.len() == 0;
        let at_most = match sent {
            // Who else is sending does not tell when that is done.
            Sent::NotNow => Some(SENDING),
            _ if self.is_idle() && self.payload.is_none() => Some(PATIENCE),
            _ => None,
        };
        self.lane.wait(at_most)?;
        self.is_tired = !self.lane.has_more();
        Ok(())
    }

    /// Waits for the end of all that is under way, and sends all replies.
    ///
    /// # Errors
    /// A [`Hangup`] where the connection has to end.
    pub(super) fn finish(&mut self) -> Result<(), Hangup> {
        let mut sent = Ok(Sent::All);
        // First, for others may wait for the sectors, whether this client reads or not.
        while self.lane.under_way() > 0 {
            self.lane.wait(None)?;
            self.harvest();
            // What has ended does not wait for what takes longest.
            sent = sent.and_then(|_| self.queue.send_now());
        }
        sent.and_then(|_| self.queue.send())
    }

    /// Waits awake for the rest of a write's data, as long as nothing has ended: true if some of it has come, or its end.
    fn look_out(&mut self, receiver: &mut Receiver) -> Result<bool, Hangup> {
        let Some(is_large) = self.payload.as_ref().map(Payload::is_large) else { return Ok(false) };
        self.lane.look()?;
        if self.lane.has_more() {
            return Ok(false);
        }
        if !is_large {
            // Its header may have come by itself. On the same processor, the client now sends the rest, and perhaps more.
            thread::yield_now();
            return self.read(receiver);
        }
        self.wanted_since.get_or_insert_with(Instant::now);
        // A copy, for `read` needs all of this.
        let mut rest = self.rest;
        let came = rest.look_out(|| {
            if self.read(receiver)? {
                return Ok(Some(true));
            }
            self.lane.look()?;
            Ok::<_, Hangup>(self.lane.has_more().then_some(false))
        });
        self.rest = rest;
        Ok(came? == Some(true))
    }

    /// Reads what the client has sent; false if that is nothing yet.
    fn read(&mut self, receiver: &mut Receiver) -> Result<bool, Hangup> {
        let now = match &mut self.payload {
            Some(payload) => payload.read(receiver)?,
            None => receiver.read_now(&mut [], 0)?,
        };
        match now {
            Now::Came { all, .. } => {
                if let Some(since) = self.wanted_since.take() {
                    self.rest.came_after(since.elapsed());
                }
                self.readable = !all;
            }
            Now::Nothing => self.readable = false,
            Now::End => {
                self.readable = false;
                // What was received before is answered all the same.
                self.is_cut_short |= self.payload.take().is_some();
                receiver.end_reading();
            }
        }
        Ok(now != Now::Nothing)
    }

    fn watch_all(&mut self, receiver: &Receiver, wants_more: bool, sent: Sent) {
        let Some(socket) = self.connection.socket() else { return };
        if let Some(pause) = receiver.pause_event() {
            self.watch(pause, Readiness::Input, PAUSE);
        }
        if wants_more && !self.readable && (self.payload.is_some() || !receiver.reads_no_more()) {
            self.watch(socket, Readiness::Input, CLIENT_SENDS);
        }
        if sent == Sent::NoRoom {
            self.watch(socket, Readiness::Room, CLIENT_READS);
        }
    }

    fn watch(&mut self, descriptor: BorrowedFd<'_>, readiness: Readiness, token: usize) {
        if !std::mem::replace(&mut self.watched[token], true) {
            self.lane.watch(descriptor, readiness, token);
        }
    }

    /// Begins the requests that are here, up to the first one that is none for a lane.
    fn begin_all(&mut self, receiver: &mut Receiver) -> Result<Stop<'a>, Hangup> {
        loop {
            if self.payload.as_mut().is_some_and(|payload| !payload.fill(receiver, &*self.lane)) {
                return Ok(Stop::Here);
            }
            if let Some(payload) = self.payload.take() {
                if let Some(refused) = self.begin(payload, Direction::Write) {
                    return Ok(refused);
                }
                continue;
            }
            let Some((request, header)) = receiver.peek() else {
                let part = receiver.here().is_empty() || receiver.has_half_a_header();
                return Ok(if part { Stop::Here } else { Stop::Other });
            };
            let judged = self.connection.judge(&request).ok();
            let Some((direction, length)) = judged.and_then(|()| fit::taken(&request, &*self.lane)) else {
                return Ok(Stop::Other);
            };
            // Replies take memory too, until they are read.
            if self.lane.under_way() + self.queue.len() >= DEPTH {
                return Ok(Stop::Memory);
            }
            let Some(buffer) = self.connection.pool().borrow_now(length) else {
                return Ok(Stop::Memory);
            };
            let Some(token) = self.free.pop() else { return Ok(Stop::Memory) };
            receiver.use_here(header);
            let payload = Payload::new(request, buffer, token);
            match direction {
                Direction::Write => self.payload = Some(payload),
                Direction::Read => {
                    if let Some(refused) = self.begin(payload, direction) {
                        return Ok(refused);
                    }
                }
            }
        }
    }

    /// Gives back what the lane does not take.
    fn begin(&mut self, payload: Payload<'a>, direction: Direction) -> Option<Stop<'a>> {
        let Payload { request, mut buffer, token, prepared, .. } = payload;
        let pending = Pending::new(request, self.connection.outgoing());
        let (offset, length, pages) = (request.offset, buffer.len(), buffer.lend());
        match self.lane.begin(Transfer { token, direction, offset, length, pages, prepared }) {
            Ok(()) => {
                self.waiting[token] = Some((pending, buffer));
                None
            }
            Err(transfer) => {
                buffer.take_back(transfer.pages);
                self.free.push(token);
                let job = if direction == Direction::Read { Job::Read } else { Job::Write };
                Some(Stop::Refused(pending, job(buffer)))
            }
        }
    }
}

impl Drop for Traffic<'_> {
    fn drop(&mut self) {
        for (pending, _) in self.waiting.iter_mut().filter_map(Option::take) {
            // The connection has met its end meanwhile.
            pending.forsake();
        }
    }
}

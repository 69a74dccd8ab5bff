//! One thread of a connection: receives a request when it has the turn, passes the turn on, serves and answers.

use super::batch::Batch;
use super::buffers::Buffer;
use super::connection::Connection;
use super::crew::Turn;
use super::inline;
use super::read;
use super::receiver::{Job, Receiver};
use super::reply::{Answered, DESCRIPTOR, Gathered, Hangup, Pending};
use super::request::{nbd_error, perform};
use super::traffic::{Then, Traffic};
use crate::block::{BlockDevice, Extents};
use crate::nbd::wire::CommandFlags;

pub(super) struct Worker<'a> {
    connection: &'a Connection,
    device: &'a dyn BlockDevice,
    /// Of the request in hand; kept for the memory it has.
    extents: Extents,
    /// Requests under way, once the thread has had the turn; `None` where the device, or this connection, has no use
    /// for it.
    traffic: Option<Traffic<'a>>,
}

/// What a thread does without the turn.
enum Task<'a> {
    Serve(Pending<'a>, Job<'a>),
    Send(Gathered<'a>),
    Batch(Batch<'a>),
    /// Nothing but what is under way.
    Finish,
}

/// What a thread does that has the turn.
enum Step<'a> {
    /// Waits for more requests.
    Again,
    /// Ends: there will be no more.
    End,
    /// Passes the turn on.
    Pass(Task<'a>),
    /// Lays it down: that will not take long.
    LayDown(Task<'a>),
}

/// Why a thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// There will be no more requests.
    Over,
    /// Others are enough; it has left the crew already.
    Dismissed,
}

impl<'a> Worker<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self { connection, device: connection.device(), extents: Extents::default(), traffic: None }
    }

    /// Serves until there is nothing more to do. `recruit` starts another thread, which has joined already.
    pub(super) fn run(mut self, recruit: impl Fn()) -> End {
        while let Some(turn) = self.connection.crew().wait() {
            if self.connection.is_cut() {
                // What was read ahead of a client that is gone is not worth serving.
                return End::Over;
            }
            let task = match self.receive(turn, &recruit) {
                Ok(Some(task)) => task,
                Ok(None) => return End::Over,
                Err(hangup) => {
                    // No more requests; those that others are serving are still to be answered.
                    tracing::debug!(reason = %hangup, "no more requests");
                    return End::Over;
                }
            };
            if let Some(Err(hangup)) = self.traffic.as_mut().map(Traffic::finish) {
                tracing::debug!(reason = %hangup, "connection ends");
                self.connection.cut();
                // Not to be served by a thread that may hold its sectors, or what it would wait for otherwise.
                if let Task::Serve(pending, _) = task {
                    pending.forsake();
                }
                return End::Over;
            }
            let answered = match task {
                Task::Finish => continue,
                Task::Serve(pending, job) => self.serve(pending, job),
                Task::Send(gathered) => gathered.send(),
                Task::Batch(batch) => self.serve_batch(batch, &recruit),
            };
            match answered {
                Ok(Answered { .. }) => {}
                Err(hangup) => {
                    tracing::debug!(reason = %hangup, "connection ends");
                    self.connection.cut();
                    return End::Over;
                }
            }
        }
        End::Dismissed
    }

    /// Serves requests for as long as it can with the turn in hand, and returns with what is to be done without it;
    /// `None` when there is nothing more to do.
    fn receive(
        &mut self,
        mut turn: Turn<'_, Receiver>,
        recruit: impl Fn(),
    ) -> Result<Option<Task<'a>>, Hangup> {
        while turn.wait()? {
            // One that takes only what is none for a lane needs none, and others may.
            if self.traffic.is_none() && Traffic::suits(&turn, self.connection) {
                self.traffic = Traffic::of(self.connection);
            }
            let step = match &mut self.traffic {
                Some(traffic) => match traffic.serve(&mut turn).inspect_err(|_| self.connection.cut())? {
                    Then::Wait => Step::Again,
                    Then::Receive => self.receive_one(&mut turn)?,
                    Then::Finish => Step::Pass(Task::Finish),
                    Then::Serve(pending, job) => Step::Pass(Task::Serve(pending, job)),
                },
                None => self.serve_inline(&mut turn)?,
            };
            match step {
                Step::Again => {}
                Step::End => return Ok(None),
                Step::Pass(task) => {
                    if turn.pass() {
                        recruit();
                    }
                    self.connection.overseer().stir();
                    return Ok(Some(task));
                }
                Step::LayDown(task) => {
                    turn.lay_down();
                    self.connection.overseer().stir();
                    return Ok(Some(task));
                }
            }
        }
        Ok(None)
    }

    /// Serves the small requests that are here and need not wait, takes those that may have to, or receives one request.
    fn serve_inline(&mut self, turn: &mut Turn<'_, Receiver>) -> Result<Step<'a>, Hangup> {
        while inline::is_half_here(turn) && turn.more()? {}
        self.connection.overseer().stir();
        if let Some(batch) = Batch::of_much(turn, self.connection) {
            return Ok(Step::Pass(Task::Batch(batch)));
        }
        match inline::serve(turn, self.connection, &mut self.extents) {
            Some(gathered) => match gathered.send_now().inspect_err(|_| self.connection.cut())? {
                Ok(Answered { .. }) => {
                    turn.keep();
                    self.connection.overseer().stir();
                    Ok(Step::Again)
                }
                Err(rest) => Ok(Step::Pass(Task::Send(rest))),
            },
            None => match Batch::of_writes(turn, self.connection) {
                Some(batch) => Ok(Step::LayDown(Task::Batch(batch))),
                None => self.receive_one(turn),
            },
        }
    }

    fn receive_one(&mut self, turn: &mut Turn<'_, Receiver>) -> Result<Step<'a>, Hangup> {
        let Some((request, job)) = turn.receive(self.connection)? else { return Ok(Step::End) };
        Ok(Step::Pass(Task::Serve(Pending::new(request, self.connection.outgoing()), job)))
    }

    fn serve_batch(&mut self, batch: Batch<'a>, recruit: impl Fn()) -> Result<Answered, Hangup> {
        match batch.serve(&mut self.extents)?.send_now()? {
            Ok(answered) => Ok(answered),
            Err(rest) => {
                // The client may read no more before somebody receives what it sends.
                if self.connection.crew().pass_on() {
                    recruit();
                }
                rest.send()
            }
        }
    }

    fn serve(&mut self, pending: Pending<'_>, job: Job<'_>) -> Result<Answered, Hangup> {
        match job {
            Job::Answer(result) => pending.finish(result),
            Job::Read(mut buffer) => read::answer(pending, self.device, &mut buffer, &mut self.extents),
            Job::Write(mut buffer) => {
                let request = pending.request();
                let durable = request.flags.contains(CommandFlags::FUA);
                let mut write = || self.device.write(request.offset, &mut buffer, durable);
                let result = if durable { write() } else { self.connection.pace().time(write) };
                // Whoever waits for memory need not wait for this client to read as well.
                drop(buffer);
                pending.finish(result.map_err(nbd_error))
            }
            Job::Status(buffer) => self.describe(pending, buffer),
            Job::Perform => {
                let result = perform(pending.request(), self.device);
                pending.finish(result)
            }
        }
    }

    /// NBD_CMD_BLOCK_STATUS: as many extents as the buffer has room for; the client asks again for the rest.
    fn describe(&mut self, pending: Pending<'_>, mut room: Buffer<'_>) -> Result<Answered, Hangup> {
        let request = *pending.request();
        let one = request.flags.contains(CommandFlags::REQ_ONE);
        let most = if one { 1 } else { room.len() / DESCRIPTOR };
        let mut extents = Extents::default();
        match self.device.status(request.offset, request.length, most, &mut extents) {
            Ok(()) => pending.finish_status(extents.as_slice(), &mut room),
            Err(error) => pending.finish(Err(nbd_error(error))),
        }
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The request in hand will not be answered: its client must not wait for it.
            self.connection.cut();
        }
    }
}

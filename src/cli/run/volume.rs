//! One volume, from what was asked for, or from a predecessor, to its record.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::RunArgs;
use super::attend::{Attendance, CONTROL, Ended, Outcome, Watching};
use super::child::{self, ProcessLimits};
use super::parent::{self, PARENT};
use super::successor::{self, Successor};
use crate::audit::AuditLog;
use crate::cli::options::Switch;
use crate::cli::output::{self, Event};
use crate::cli::record_file::RecordFile;
use crate::cli::signals::{self, RestartSignals, Signal, Signals};
use crate::cli::{Failure, options};
use crate::control::{self, Bound};
use crate::descriptors::{self, Named};
use crate::engine::{
    self, EngineError, Handover, Newcomers, Record, Running, Serving, Source, Specification, sweep,
};

/// Where a volume comes from.
pub(super) enum Origin {
    /// It is started.
    Start(Box<(Source, Specification)>),
    /// A predecessor served it.
    Predecessor(Predecessor),
}

/// What a predecessor left.
pub(super) struct Predecessor {
    handover: Handover,
    /// Names of all descriptors.
    names: Vec<String>,
    control: Option<OwnedFd>,
    /// The process that it was to end with.
    parent: Option<OwnedFd>,
    audit: AuditLog,
}

impl Origin {
    /// A restartable volume that a predecessor left goes before one that is to be started: what its service manager
    /// passes besides are sockets that the volume has already.
    pub(super) fn of(
        args: &RunArgs,
        state: PathBuf,
        mut inherited: Vec<Named>,
        serving: Result<Serving, Failure>,
    ) -> Result<(Self, Serving), Failure> {
        let names = inherited.iter().map(|one| one.name.clone()).collect();
        let handover = Handover::find(&mut inherited).filter(|_| args.restartable);
        let mut take = |name: &str| {
            let place = inherited.iter().position(|one| one.name == name)?;
            Some(inherited.swap_remove(place).descriptor)
        };
        let control = take(CONTROL);
        if let Some(handover) = handover {
            let parent = take(PARENT);
            let audit = AuditLog::open(&state)?;
            // The volume is worth more than new clients.
            let serving = serving.unwrap_or_else(|error| {
                tracing::error!(
                    %error,
                    "the volume goes on with the clients that it has and accepts no others: mend what is wrong, then \
                     restart again (SIGUSR2)"
                );
                Serving { newcomers: Newcomers::Refused, ..Serving::default() }
            });
            return Ok((Self::Predecessor(Predecessor { handover, names, control, parent, audit }), serving));
        }
        let serving = serving?;
        let source = args.source()?;
        let specification = args.specification(state, &source, inherited, serving.clone())?;
        Ok((Self::Start(Box::new((source, specification))), serving))
    }

    /// The process that the volume is to end with, if it is to: what a predecessor has watched is watched on.
    pub(super) fn parent(&mut self, asked: Option<Switch>) -> Result<Option<OwnedFd>, Failure> {
        match self {
            Self::Predecessor(Predecessor { parent: parent @ Some(_), .. }) => Ok(parent.take()),
            Self::Predecessor(_) => parent::watched(asked, false),
            Self::Start(start) => parent::watched(asked, !start.1.inherited.is_empty()),
        }
    }

    fn audit(&self) -> AuditLog {
        match self {
            Self::Start(start) => start.1.audit.clone(),
            Self::Predecessor(predecessor) => predecessor.audit.clone(),
        }
    }
}

/// A volume that is served, with its control socket, or the signal that came before it was.
enum Begun {
    Serving(Box<Running>, Option<Bound>),
    Interrupted(Signal),
}

/// The predecessor's control socket. Without it, as where somebody removed its file, the volume goes on all the same.
fn adopt(socket: Option<OwnedFd>) -> Option<Bound> {
    let adopted = Bound::from_fd(socket?);
    adopted.inspect_err(|error| tracing::warn!(%error, "the volume goes on without a control socket")).ok()
}

/// The process that the volume is to end with, as a descriptor with a name.
fn parent_of(signals: &Signals) -> std::io::Result<Option<Named>> {
    let named = |parent: &OwnedFd| Ok(Named { name: PARENT.into(), descriptor: parent.try_clone()? });
    signals.parent().map(named).transpose()
}

/// One volume.
pub(super) struct Volume<'a> {
    pub(super) args: &'a RunArgs,
    pub(super) json: bool,
    pub(super) watching: Watching,
    pub(super) serving: Serving,
}

impl Volume<'_> {
    pub(super) async fn run(
        self,
        origin: Origin,
        parent: Option<OwnedFd>,
        record: Option<RecordFile>,
        limits: &ProcessLimits,
    ) -> Result<ExitCode, Failure> {
        let mut signals = signals::handle(Signals::with_parent(parent))?;
        let mut restarts = signals::handle(RestartSignals::new())?;
        signals::handle(descriptors::release_signals())?;
        let audit = origin.audit();
        let (mut running, mut control) = match self.begin(origin, &mut signals).await? {
            Begun::Serving(running, control) => (*running, control),
            Begun::Interrupted(signal) => return Ok(signal.exit_code()),
        };
        let mut child = match child::start(&self.args.command, &running, limits) {
            Ok(child) => child,
            Err(ended) => return self.end(running, ended, record).await,
        };
        loop {
            let attendance = Attendance::begin(&mut running, child.take(), &self.watching, control).await;
            let (successor, socket) = match attendance.attend(&mut signals, &mut restarts).await {
                Outcome::End(ended) => return self.end(running, ended, record).await,
                Outcome::HandOver(successor, socket) => (successor, socket),
            };
            if let Err(why) = successor::check(&running).await {
                tracing::error!(why, "the volume cannot go over to a successor; this process goes on");
                // Rewraps that were given up may have replaced files that the service manager holds.
                successor::refresh(&running, None).await;
                control = socket;
                continue;
            }
            let handover = running.hand_over().await.map_err(EngineError::from)?;
            let socket = successor::named(socket).map_err(EngineError::from)?;
            let error = if successor == Successor::Managed {
                match successor::leave_to_manager(&handover, socket.as_ref()) {
                    Ok(()) => return Ok(ExitCode::SUCCESS),
                    Err(error) => error,
                }
            } else {
                let parent = signals::handle(parent_of(&signals))?;
                signals::handle(signals.hold(&mut restarts).await)?;
                let besides: Vec<_> = socket.iter().chain(&parent).collect();
                let error = successor::execute(&handover, &besides);
                signals::handle(descriptors::release_signals())?;
                error
            };
            tracing::error!(%error, "the volume cannot go over to a successor; this process goes on");
            running = engine::resume(handover, &audit, options::helper(), &self.serving).await?;
            control = adopt(socket.map(|socket| socket.descriptor));
            successor::refresh(&running, None).await;
        }
    }

    async fn begin(&self, origin: Origin, signals: &mut Signals) -> Result<Begun, Failure> {
        let (running, control) = match origin {
            Origin::Predecessor(Predecessor { handover, names, control, parent: _, audit }) => {
                let running = engine::resume(handover, &audit, options::helper(), &self.serving).await?;
                successor::forget_clients(&names);
                (running, adopt(control))
            }
            Origin::Start(start) => {
                let (source, specification) = *start;
                let (state, audit) = (specification.state.clone(), specification.audit.clone());
                let control = specification.control.clone();
                let control = || control.as_deref().map(control::bind).transpose().map_err(Failure::from);
                tokio::select! {
                    started = engine::start(source, specification, control) => started?,
                    signal = signals.next() => {
                        // What the interrupted start had made is in its journal, as after a crash. A second signal
                        // leaves it there.
                        tokio::select! {
                            _ = sweep(&state, &audit, false) => {}
                            _ = signals.next() => {}
                        }
                        return Ok(Begun::Interrupted(signal));
                    }
                }
            }
        };
        self.announce(&running, signals.parent().is_some()).await;
        let socket = control.as_ref().and_then(|control| control.as_fd().try_clone_to_owned().ok());
        let socket = socket.map(|descriptor| Named { name: CONTROL.into(), descriptor });
        successor::announce(&running, socket.as_ref()).await;
        Ok(Begun::Serving(Box::new(running), control))
    }

    async fn end(
        &self,
        running: Running,
        ended: Ended,
        record: Option<RecordFile>,
    ) -> Result<ExitCode, Failure> {
        successor::withdraw(&running);
        let is_activated = running.is_activated();
        // Signals of its own: one that comes now means that it takes too long.
        let mut signals = signals::handle(Signals::new())?;
        let teardown = tokio::select! {
            teardown = running.teardown(ended.reason) => teardown,
            signal = signals.next() => {
                output::note("interrupted: what is left over is cleared away by the next start, or by `sealblk gc`");
                return Ok(signal.exit_code());
            }
        };
        self.report(&teardown, is_activated, record)?;
        let left_over = self.args.command.is_empty() && !teardown.is_complete();
        Ok(if left_over { ExitCode::FAILURE } else { ended.code })
    }

    /// Says where the volume is, and what ends it.
    async fn announce(&self, running: &Running, ends_with_parent: bool) {
        let key = running.key().await;
        if self.json {
            let details = json!({
                "volume": running.id,
                "kms_key": key,
                "uri": running.uris.first(),
                "uris": running.uris,
                "exports": running.exports(),
                "pid": std::process::id(),
            });
            output::line(Event { event: "serving", details }.json());
        } else if self.args.command.is_empty() {
            let is_activated = running.is_activated();
            let end = match (is_activated, ends_with_parent) {
                (false, false) => "Ctrl-C ends it",
                (false, true) => "Ctrl-C ends it, or the end of the process that started it",
                (true, false) => "SIGTERM ends it",
                (true, true) => "it ends with the process that started it",
            };
            output::note(format!("sealblk: serving {} under {key}; {end}", running.id));
            // A client that has made a socket for itself is nobody else's address.
            let is_private = is_activated && ends_with_parent && !self.args.clients.listens();
            for uri in running.uris.iter().filter(|_| !is_private) {
                if is_activated {
                    output::note(uri);
                } else {
                    output::line(uri);
                }
            }
        }
    }

    fn report(&self, record: &Record, is_activated: bool, file: Option<RecordFile>) -> Result<(), Failure> {
        let line = Event { event: "teardown", details: record }.json();
        if let Some(file) = file {
            // The record must not be lost with the disk that was to hold it.
            file.append(&line).inspect_err(|_| output::note(&line))?;
            if self.json {
                output::line(line);
            }
        } else if self.json || (self.args.command.is_empty() && !is_activated) {
            output::line(line);
        } else {
            // The command may have used stdout for its own output, and so may whoever passed the sockets.
            output::note(line);
        }
        Ok(())
    }
}

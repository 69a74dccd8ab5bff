//! `sealblk run`: one ephemeral volume in the foreground.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::process::Child;
use tokio::runtime::Runtime;

use super::Failure;
use super::options::{KmsOptions, Switch};
use super::output::{self, Event};
use super::record_file::RecordFile;
use super::signals::{Signal, Signals};
use crate::audit::AuditLog;
use crate::engine::{self, Record, Running, Specification, journal};
use crate::envelope::Layout;
use crate::geometry::{SectorSize, VolumeSize, parse_size};
use crate::kms::isolate;
use crate::nbd::server::Address;
use crate::secret::{Hardening, harden_process, restore_core_limit};
use crate::store::Backing;
use crate::volume::Options;
use crate::xts::Implementation;

const EXAMPLES: &str = "\
Examples:
  sealblk run --size 10G
      serves until Ctrl-C, and prints the URI to connect to
  sealblk run --size 1G -- sh -c 'nbdcopy disk.img \"$uri\"'
      serves while the command runs; it sees $uri, $unixsocket, $exportname and $SEALBLK_URI
  sealblk run --size 100G --kms aws --key alias/scratch --context team=data --backing /dev/nvme1n1
      key under AWS KMS, ciphertext on a whole disk";

/// Serves an encrypted scratch volume whose key exists in memory only.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// Size: a number of bytes, or 10G (GiB), 10GB (10^9 bytes), and so with K, M, T
    #[arg(long, env = "SEALBLK_SIZE")]
    size: String,

    /// Bytes enciphered as one unit: 4096, or 512 for clients that need it
    #[arg(long, default_value = "4096", value_name = "4096|512")]
    sector_size: String,

    /// Where the ciphertext lies: a directory (an unnamed file in it), a file, a block device, or `memory`
    /// [default: $TMPDIR or /var/tmp]
    #[arg(long, env = "SEALBLK_BACKING", value_name = "DIR|FILE|BLOCKDEV|memory")]
    backing: Option<String>,

    /// Give space back on trim and zeros; `off` hides which sectors are used
    #[arg(long, default_value = "on", value_name = "on|off")]
    discard: Switch,

    /// Refuse writes
    #[arg(long)]
    read_only: bool,

    /// Code that enciphers
    #[arg(long, default_value = "aws-lc")]
    cipher: CipherCode,

    /// Where clients connect: unix:PATH or tcp:HOST:PORT (repeatable) [default: a private Unix socket]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,

    /// Listen on addresses that are not loopback: whoever sees the network sees the data
    #[arg(long)]
    insecure: bool,

    /// Name of the export
    #[arg(long, default_value = "", value_name = "NAME", hide_default_value = true)]
    export: String,

    /// Append the teardown record to FILE instead of printing it
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,

    #[command(flatten)]
    kms: KmsOptions,

    /// Command to run while the volume is served; its exit status becomes sealblk's
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum CipherCode {
    /// AWS-LC, with the CPU's AES instructions
    AwsLc,
    /// Plain Rust
    Portable,
}

impl RunArgs {
    fn specification(&self, state: PathBuf) -> Result<Specification, Failure> {
        let sector: SectorSize = self.sector_size.parse()?;
        let size = VolumeSize::new(parse_size(&self.size)?, sector)?;
        let listen = self.listen.iter().map(|text| text.parse()).collect::<Result<Vec<Address>, _>>()?;
        if self.export.len() > 4096 {
            return Err(Failure::Usage("--export has more than 4096 bytes, the most that NBD allows".into()));
        }
        let backing = match &self.backing {
            Some(text) => Backing::from_argument(text)?,
            None => {
                Backing::Directory(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into()).into())
            }
        };
        Ok(Specification {
            layout: Layout { sector, size },
            options: Options { read_only: self.read_only, discard: self.discard == Switch::On },
            implementation: match self.cipher {
                CipherCode::AwsLc => Implementation::AwsLc,
                CipherCode::Portable => Implementation::Portable,
            },
            provider: self.kms.provider(&state)?,
            key: self.kms.key_request()?,
            listen,
            insecure: self.insecure,
            export: self.export.clone(),
            backing,
            audit: AuditLog::open(&state)?,
            state,
            helper: "/proc/self/exe".into(),
        })
    }
}

pub(super) fn run(args: RunArgs, state: PathBuf, json: bool) -> Result<ExitCode, Failure> {
    let specification = args.specification(state)?;
    let record = args.record.as_deref().map(RecordFile::open).transpose()?;
    let hardening = harden()?;
    let runtime = runtime()?;
    let result = runtime.block_on(run_volume(&args, json, specification, record, &hardening));
    // A helper that still waits for a KMS must not hold the exit up.
    runtime.shutdown_background();
    result
}

/// The hidden command behind [`isolate::unwrap`].
pub(super) fn unwrap() -> Result<ExitCode, Failure> {
    runtime()?
        .block_on(isolate::serve_stdio(|place| AuditLog::at(place).map_err(|error| error.to_string())))
        .map_err(|source| Failure::Process { action: "answer the parent process", source })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn runtime() -> Result<Runtime, Failure> {
    let made = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    made.map_err(|source| Failure::Process { action: "start the runtime", source })
}

pub(super) fn harden() -> Result<Hardening, Failure> {
    let hardening = harden_process()
        .map_err(|error| Failure::Process { action: "forbid core dumps", source: error.into() })?;
    if !hardening.all_memory_locked {
        tracing::warn!(
            "only the data key is locked in memory; give CAP_IPC_LOCK or LimitMEMLOCK=infinity to lock everything"
        );
    }
    Ok(hardening)
}

async fn run_volume(
    args: &RunArgs,
    json: bool,
    specification: Specification,
    record: Option<RecordFile>,
    hardening: &Hardening,
) -> Result<ExitCode, Failure> {
    let mut signals = handle_signals()?;
    let (state, audit) = (specification.state.clone(), specification.audit.clone());
    let running = tokio::select! {
        started = engine::start(specification) => started?,
        signal = signals.next() => {
            // What the interrupted start had made is in its journal, as after a crash. A second signal leaves it there.
            tokio::select! {
                _ = journal::sweep(&state, &audit) => {}
                _ = signals.next() => {}
            }
            return Ok(signal.exit_code());
        }
    };
    announce(args, json, &running);
    let child = match args.command.split_first() {
        None => Ok(None),
        Some((program, arguments)) => spawn(program, arguments, &running, args, hardening).map(Some),
    };
    let ended = match child {
        // In a task of its own, so that a panic in it ends in the teardown as well.
        Ok(child) => tokio::spawn(wait(child, signals))
            .await
            .unwrap_or_else(|_| Ended { reason: "internal error".into(), code: ExitCode::FAILURE }),
        Err(ended) => ended,
    };
    // Signals of its own, since the task has kept the others: one that comes now means that it takes too long.
    let mut signals = handle_signals()?;
    let teardown = tokio::select! {
        teardown = running.teardown(ended.reason) => teardown,
        signal = signals.next() => {
            output::note("interrupted: what is left over is cleared away by the next start, or by `sealblk gc`");
            return Ok(signal.exit_code());
        }
    };
    report(args, json, &teardown, record)?;
    let left_over = args.command.is_empty() && !teardown.is_complete();
    Ok(if left_over { ExitCode::FAILURE } else { ended.code })
}

pub(super) fn handle_signals() -> Result<Signals, Failure> {
    Signals::new().map_err(|source| Failure::Process { action: "handle signals", source })
}

fn announce(args: &RunArgs, json: bool, running: &Running) {
    if json {
        let details = json!({
            "volume": running.id,
            "kms_key": running.key,
            "uri": running.uris.first(),
            "uris": running.uris,
            "pid": std::process::id(),
        });
        output::line(Event { event: "serving", details }.json());
    } else if args.command.is_empty() {
        output::note(format!("sealblk: serving {} under {}; Ctrl-C ends it", running.id, running.key));
        for uri in &running.uris {
            output::line(uri);
        }
    }
}

/// Why serving ended, and what to exit with.
struct Ended {
    reason: String,
    code: ExitCode,
}

fn spawn(
    program: &str,
    arguments: &[String],
    running: &Running,
    args: &RunArgs,
    hardening: &Hardening,
) -> Result<Child, Ended> {
    let uri = running.uris.first().map_or("", String::as_str);
    let child = tokio::process::Command::new(program)
        .args(arguments)
        .env("uri", uri)
        .env("SEALBLK_URI", uri)
        .env("unixsocket", running.socket.as_deref().unwrap_or(Path::new("")))
        .env("exportname", &args.export)
        .spawn();
    match child {
        Ok(child) => {
            // A child that has ended already needs no limit.
            let _ = child.id().map(|pid| restore_core_limit(hardening, pid));
            Ok(child)
        }
        Err(error) => {
            output::note(format!("error: cannot run {program:?}: {error}"));
            // As shells have it: not found, or found and not to be run.
            let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            Err(Ended { reason: format!("command could not be run: {error}"), code: code.into() })
        }
    }
}

/// Waits for the command's end, or for a signal where there is no command. A signal is passed on to the command,
/// unless it is a terminal's, which reaches the command by itself; the second one kills it.
async fn wait(child: Option<Child>, mut signals: Signals) -> Ended {
    let Some(mut child) = child else {
        let signal = signals.next().await;
        return Ended { reason: signal.name().into(), code: ExitCode::SUCCESS };
    };
    let mut passed_on = false;
    loop {
        tokio::select! {
            status = child.wait() => return match status {
                Ok(status) => Ended { reason: format!("command ended: {status}"), code: code_of(status) },
                Err(error) => Ended { reason: format!("command lost: {error}"), code: ExitCode::FAILURE },
            },
            signal = signals.next() => {
                let by_terminal = signal == Signal::Interrupt && io::stdin().is_terminal();
                match passed_on {
                    true => Signal::Kill.send(child.id()),
                    false if by_terminal => {}
                    false => signal.send(child.id()),
                }
                passed_on = true;
            }
        }
    }
}

/// As shells have it: 128 and the signal's number for a command that a signal ended.
fn code_of(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

fn report(args: &RunArgs, json: bool, record: &Record, file: Option<RecordFile>) -> Result<(), Failure> {
    let line = Event { event: "teardown", details: record }.json();
    if let Some(file) = file {
        // The record must not be lost with the disk that was to hold it.
        file.append(&line).inspect_err(|_| output::note(&line))?;
        if json {
            output::line(line);
        }
    } else if args.command.is_empty() || json {
        output::line(line);
    } else {
        // The command may have used stdout for its own output.
        output::note(line);
    }
    Ok(())
}

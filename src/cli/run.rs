//! `sealblk run`: one volume in the foreground.

mod attend;
mod child;
mod parent;
mod storage;
mod successor;
mod volume;
mod watch;

pub(super) use attend::describe as describe_rewrap;
pub(super) use storage::BACKING;
pub(super) use successor::{PROBE, Successor};

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use tokio::runtime::Runtime;

use self::child::ProcessLimits;
use self::storage::StorageArgs;
use self::volume::{Origin, Volume};
use self::watch::WatchArgs;
use super::clients::ClientOptions;
use super::envelopes::open_envelope;
use super::open_files::OpenFiles;
use super::options::{KmsOptions, Switch, layout};
use super::record_file::RecordFile;
use super::tls::TlsOptions;
use super::{Failure, options};
use crate::audit::AuditLog;
use crate::config::Config;
use crate::descriptors::{self, Named};
use crate::engine::{Envelope, NewKey, Newcomers, Serving, Source, Specification};
use crate::envelope::Life;
use crate::envelope::file::token_path;
use crate::files::unfinished;
use crate::kms::isolate;
use crate::nbd::server::Address;
use crate::secret::{Hardening, harden_process};
use crate::store::Backing;

const EXAMPLES: &str = "\
Examples:
  sealblk run --size 10G
      serves until Ctrl-C, and prints the URI to connect to
  sealblk run --size 1G -- sh -c 'nbdcopy disk.img \"$uri\"'
      serves while the command runs; it sees $uri, $unixsocket, $exportname and $SEALBLK_URI
  sealblk run --size 100G --kms aws --key alias/scratch --context team=data --backing /dev/nvme1n1
      key under AWS KMS, ciphertext on a whole disk
  sealblk run --size 100G --durable db.envelope --backing /srv/db.img
      makes a volume that stays; from the second time on: run --envelope db.envelope --backing /srv/db.img
  sealblk run --envelope task.envelope --kms aws
      opens what `sealblk provision` made, with no right but the grant";

/// Serves an encrypted volume: a scratch one whose key exists in memory only, or an envelope's.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct RunArgs {
    /// Size: a number of bytes, or 10G (GiB), 10GB (10^9 bytes), and so with K, M, T
    #[arg(long, env = "SEALBLK_SIZE", required_unless_present = "envelope")]
    size: Option<String>,

    /// Open the volume of this envelope (`sealblk provision`, or `--durable` once)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["durable", "sector_size", "grantee", "retiring"])]
    envelope: Option<PathBuf>,

    /// Keep the volume: its backing stays, and FILE becomes its envelope
    #[arg(long, value_name = "FILE", requires = "backing")]
    durable: Option<PathBuf>,

    /// File with the envelope's grant token [default: the envelope's name and .token, if there is such a file]
    #[arg(long, value_name = "FILE", requires = "envelope")]
    grant_token: Option<PathBuf>,

    /// Write the seal of the first unlock into the envelope; `off` for one that cannot be written
    #[arg(long, default_value = "on", value_name = "on|off", hide_default_value = true)]
    seal: Switch,

    #[command(flatten)]
    storage: StorageArgs,

    /// Append the teardown record to FILE instead of printing it
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,

    /// Let a successor process take the volume over, with its clients: SIGUSR2 re-executes, SIGUSR1 leaves it to
    /// systemd's descriptor store. Keeps the data key in secret memory for as long as the volume is served
    #[arg(long, conflicts_with = "command")]
    restartable: bool,

    /// End, as at SIGTERM, when the process that started sealblk has ended; `off` for never [default: on where a client
    /// has started sealblk and passed it a socket (LISTEN_FDS), as nbdcopy does]
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    exit_with_parent: Option<Switch>,

    /// Take commands on this socket: unix:PATH (docs/control.md)
    #[arg(long, value_name = "unix:PATH")]
    control: Option<String>,

    #[command(flatten)]
    watch: WatchArgs,

    #[command(flatten)]
    clients: ClientOptions,

    #[command(flatten)]
    tls: TlsOptions,

    #[command(flatten)]
    kms: KmsOptions,

    /// Command to run while the volume is served; its exit status becomes sealblk's
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl RunArgs {
    /// Takes from the file what no flag or variable said.
    fn inherit(&mut self, config: &Config) {
        self.storage.inherit(config);
        self.watch.inherit(config);
        self.clients.inherit(config);
        self.tls.inherit(config);
        self.kms.inherit(config);
    }

    /// The key that is to be made, or the envelope that is to be opened.
    fn source(&self) -> Result<Source, Failure> {
        let Some(path) = &self.envelope else {
            let size = self.size.as_deref().unwrap_or_default();
            let layout = layout(size, self.storage.sector_size())?;
            let (request, envelope) = (self.kms.key_request()?, self.durable.clone());
            return Ok(Source::New(NewKey { layout, request, envelope }));
        };
        let held = open_envelope(path, self.grant_token.as_deref())?;
        let (Some(file), document, token) = (held.file, held.document, held.token) else {
            return Err(Failure::Usage("the envelope has no file".into()));
        };
        if let Some(size) = &self.size
            && layout(size, None)?.size != document.layout().size
        {
            let has = document.layout().size.bytes();
            return Err(Failure::Usage(format!(
                "--size {size} is not the envelope's size, {has} bytes; leave it out"
            )));
        }
        if self.seal == Switch::Off && document.life == Life::Durable && !document.is_sealed() {
            return Err(Failure::Usage(
                "--seal off is not for the first opening of a durable volume: unsealed, its data would be taken for \
                 somebody else's the next time"
                    .into(),
            ));
        }
        Ok(Source::Envelope(Box::new(Envelope { file, document, token, seal: self.seal == Switch::On })))
    }

    /// Whether addresses that others reach over a network may be served.
    fn is_open(&self) -> bool {
        self.clients.is_insecure() || self.tls.is_required()
    }

    /// How clients are served; files and users are looked up.
    fn serving(&self, open_files: &OpenFiles) -> Result<Serving, Failure> {
        let newcomers = if self.is_open() { Newcomers::Everywhere } else { Newcomers::Local };
        Ok(Serving { tls: self.tls.load()?, newcomers, ..self.clients.serving(open_files)? })
    }

    fn control(&self) -> Result<Option<PathBuf>, Failure> {
        let path = |text: &String| match text.parse()? {
            Address::Unix(path) => Ok(std::path::absolute(&path).unwrap_or(path)),
            Address::Tcp(_) | Address::Vsock { .. } => {
                Err(Failure::Usage(format!("--control {text:?} is not of the form unix:PATH")))
            }
        };
        self.control.as_ref().map(path).transpose()
    }

    /// The envelope and what is written beside it must not take the place of the backing.
    fn require_apart(&self, backing: &Backing) -> Result<(), Failure> {
        let (Some(envelope), Backing::File(backing)) =
            (self.durable.as_ref().or(self.envelope.as_ref()), backing)
        else {
            return Ok(());
        };
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
        let token = token_path(envelope);
        let taken = [envelope.clone(), token.clone(), unfinished(envelope), unfinished(&token)];
        match taken.iter().find(|taken| absolute(taken) == absolute(backing)) {
            None => Ok(()),
            Some(taken) => Err(Failure::Usage(format!(
                "--backing {}: that name is the envelope's own; choose another",
                taken.display()
            ))),
        }
    }

    fn specification(
        &self,
        state: PathBuf,
        source: &Source,
        inherited: Vec<Named>,
        serving: Serving,
    ) -> Result<Specification, Failure> {
        let listen = self.clients.listen()?;
        let mut terms = self.clients.terms()?;
        terms.open = self.is_open();
        let backing = self.storage.backing()?;
        self.require_apart(&backing)?;
        let provider = match source {
            Source::New(_) => self.kms.provider(&state)?,
            Source::Envelope(envelope) => self.kms.provider_of(&envelope.document, &state)?,
        };
        Ok(Specification {
            options: self.storage.options(source.is_durable())?,
            implementation: self.storage.implementation()?,
            provider,
            listen,
            terms,
            inherited,
            exports: self.clients.exports()?,
            serving,
            restartable: self.restartable,
            control: self.control()?,
            backing,
            direct: self.storage.is_direct(),
            audit: AuditLog::open(&state)?,
            state,
            helper: options::helper(),
        })
    }
}

pub(super) fn run(
    mut args: RunArgs,
    config: &Config,
    state: PathBuf,
    json: bool,
) -> Result<ExitCode, Failure> {
    // Before anything else is opened that could have the same numbers.
    let inherited = descriptors::take()?;
    // The file's are for volumes that have such sockets, and need not fit this one.
    args.clients.require_sockets()?;
    args.inherit(config);
    let open_files = OpenFiles::raise();
    // Before the key of TLS is read.
    let hardening = harden()?;
    let serving = args.serving(&open_files);
    let (mut origin, serving) = Origin::of(&args, state, inherited, serving)?;
    let parent = origin.parent(args.exit_with_parent)?;
    let watching = args.watch.watching(args.envelope.is_some())?;
    let record = args.record.as_deref().map(RecordFile::open).transpose()?;
    let runtime = runtime()?;
    let volume = Volume { args: &args, json, watching, serving };
    let result =
        runtime.block_on(volume.run(origin, parent, record, &ProcessLimits { hardening, open_files }));
    // A helper that still waits for a KMS must not hold the exit up.
    runtime.shutdown_background();
    result
}

/// Refuses what no volume could be started with, whatever else its flags are: a backing that is none, and an action on
/// a key that is not looked at.
pub(super) fn require_startable(config: &Config) -> Result<(), Failure> {
    let mut storage = StorageArgs::of_environment();
    storage.inherit(config);
    storage.backing()?;
    let mut watch = WatchArgs::default();
    watch.inherit(config);
    watch.watching(false).map(drop)
}

/// Tells a predecessor which version of a volume's state this program takes over, once everything is read that a
/// successor with these arguments reads.
pub(super) fn probe(mut args: RunArgs, config: &Config) -> Result<ExitCode, Failure> {
    args.inherit(config);
    // Silently: nothing is served here.
    harden_process()
        .map_err(|error| Failure::Process { action: "forbid core dumps", source: error.into() })?;
    args.serving(&OpenFiles::raise())?;
    args.watch.watching(args.envelope.is_some())?;
    successor::answer(args.is_open());
    Ok(ExitCode::SUCCESS)
}

/// The hidden command behind [`isolate::unwrap`].
pub(super) fn unwrap() -> Result<ExitCode, Failure> {
    // The parent may have held them for a successor of its own.
    super::signals::handle(descriptors::release_signals())?;
    runtime()?
        .block_on(isolate::serve_stdio(|place| AuditLog::at(place).map_err(|error| error.to_string())))
        .map_err(|source| Failure::Process { action: "answer the parent process", source })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn runtime() -> Result<Runtime, Failure> {
    // Signals come to the main thread alone: once that one holds them for a successor, none is lost.
    let held = || drop(descriptors::hold_signals());
    let made = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .on_thread_start(held)
        .enable_all()
        .build();
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

//! Commands and flags; how a failure becomes an exit code.

mod audit;
mod bench;
mod clients;
mod config;
mod envelopes;
mod failure;
mod gc;
mod inspect;
mod kms;
mod manual;
mod open_files;
mod options;
mod output;
mod policy;
mod preflight;
mod record_file;
mod run;
mod signals;
mod tls;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

pub use failure::Failure;

use crate::config::{AbsolutePath, Config, Level};
use crate::kms::isolate;
use crate::telemetry;

/// Encrypted scratch disks over NBD, with the data key under your own KMS key.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Configuration file; '' or none for no file [default: /etc/sealblk/sealblk.toml, if it exists]
    // Not a path to clap, which refuses empty ones.
    #[arg(long, global = true, env = "SEALBLK_CONFIG", value_name = "FILE")]
    config: Option<OsString>,

    /// Directory for journals, the audit log and the embedded KMS [default: /var/lib/sealblk for root, else
    /// $XDG_STATE_HOME/sealblk or ~/.local/state/sealblk]
    #[arg(long, global = true, env = "SEALBLK_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,

    /// Log level of sealblk itself: off, error, warn, info, debug or trace; logs go to stderr [default: warn]
    #[arg(long, global = true, env = "SEALBLK_LOG", value_name = "LEVEL")]
    log: Option<LevelFilter>,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 internal; 2 usage; 3 KMS denied; 4 KMS key unusable; 5 KMS unreachable or throttled; \
6 wrapped key damaged; 7 storage; 8 network address. Under `run -- COMMAND`: COMMAND's own.";

#[derive(Subcommand)]
enum Command {
    /// Serve an encrypted scratch volume until COMMAND ends, or until SIGINT, SIGTERM or SIGHUP
    Run(Box<run::RunArgs>),
    /// Make the envelope of a volume: wrapped key and grant, for a host to open
    Provision(Box<envelopes::ProvisionArgs>),
    /// Move a volume's data key to another KMS key, or to its key's newest material
    Rewrap(Box<envelopes::RewrapArgs>),
    /// End an envelope's grants
    Retire(Box<envelopes::RetireArgs>),
    /// Show an envelope or a served volume
    Inspect(inspect::InspectArgs),
    /// Retire the grants of volumes whose process died, and remove what they left
    Gc(gc::GcArgs),
    /// Show the audit log: KMS calls, and what happened to volumes
    Audit(audit::AuditArgs),
    /// Use and serve the embedded KMS
    Kms(kms::KmsArgs),
    /// Print the settings in force, and where each comes from
    Config(Box<config::ConfigArgs>),
    /// Check a KMS key and the permissions on it before a volume needs them
    Preflight(Box<preflight::PreflightArgs>),
    /// Print least-privilege policies for provisioner and host
    Policy(policy::PolicyArgs),
    /// Measure this host's cipher and a connection to itself, and say what limits them
    Bench(bench::BenchArgs),
    /// Print a shell's completions
    Completions(manual::CompletionsArgs),
    /// Write man pages
    Man(manual::ManArgs),
}

/// Runs the command line to its exit code.
pub fn main() -> ExitCode {
    // Not one of the commands: help, completions and man pages show what users may use.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == isolate::HIDDEN_COMMAND) {
        telemetry::init(LevelFilter::WARN);
        return exit(run::unwrap());
    }
    if std::env::args_os().nth(1).is_some_and(|argument| argument == run::PROBE) {
        return exit(probe());
    }
    let matches = Cli::command().get_matches();
    match Cli::from_arg_matches(&matches) {
        Ok(cli) => exit(run_command(cli, &matches)),
        Err(error) => error.exit(),
    }
}

/// The hidden command behind a hand-over: whether this program, with the command line that follows, takes over what a
/// predecessor serves.
fn probe() -> Result<ExitCode, Failure> {
    let cli = Cli::try_parse_from(std::env::args_os().skip(2)).unwrap_or_else(|error| error.exit());
    let config = cli.configuration()?;
    match cli.command {
        Command::Run(args) => run::probe(*args, &config),
        _ => Err(Failure::Usage("only `sealblk run` takes a volume over".into())),
    }
}

impl Cli {
    /// The configuration file, where the command has a use for it.
    fn configuration(&self) -> Result<Config, Failure> {
        match self.command {
            Command::Completions(_) | Command::Man(_) => Ok(Config::default()),
            _ => Ok(Config::load(self.config.as_deref().map(Path::new))?),
        }
    }
}

fn run_command(mut cli: Cli, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let config = cli.configuration()?;
    options::fall_back(&mut cli.log, &config.settings.log, |Level(level)| *level);
    options::fall_back(&mut cli.state_dir, &config.settings.state_dir, |AbsolutePath(path)| path.clone());
    telemetry::init(cli.log.unwrap_or(LevelFilter::WARN));
    let json = cli.json;
    let state = || {
        let state = cli.state_dir.map_or_else(options::default_state, Ok)?;
        // Journals are JSON and name the sockets and files below it.
        match state.to_str() {
            Some(_) => Ok(state),
            None => Err(Failure::Usage(format!("state directory {} is not UTF-8", state.display()))),
        }
    };
    match cli.command {
        Command::Run(args) => run::run(*args, &config, state()?, json),
        Command::Provision(args) => envelopes::provision(*args, &config, state()?, json),
        Command::Rewrap(args) => envelopes::rewrap(*args, &config, state()?, json),
        Command::Retire(args) => envelopes::retire(*args, &config, &state()?, json),
        Command::Inspect(args) => inspect::inspect(&args, &state()?, json),
        Command::Gc(args) => gc::gc(&args, &state()?, json),
        Command::Audit(args) => audit::audit(&args, &state()?, json),
        Command::Kms(args) => kms::kms(args, state, json),
        Command::Config(args) => config::config(*args, &config, matches, &state()?, json),
        Command::Preflight(args) => preflight::preflight(*args, &config, &state()?, json),
        Command::Policy(args) => policy::policy(&args, json),
        Command::Bench(args) => bench::bench(&args, json),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}

fn exit(result: Result<ExitCode, Failure>) -> ExitCode {
    result.unwrap_or_else(|failure| {
        output::error(&failure);
        ExitCode::from(failure.code())
    })
}

//! Commands and flags; how a failure becomes an exit code.

mod failure;
mod gc;
mod kms;
mod manual;
mod options;
mod output;
mod policy;
mod preflight;
mod record_file;
mod run;
mod signals;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;

pub use failure::Failure;

use crate::kms::isolate;
use crate::telemetry;

/// Encrypted scratch disks over NBD, with the data key under your own KMS key.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Directory for journals and the embedded KMS [default: /var/lib/sealblk for root, else
    /// $XDG_STATE_HOME/sealblk or ~/.local/state/sealblk]
    #[arg(long, global = true, env = "SEALBLK_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,

    /// Log level of sealblk itself: off, error, warn, info, debug or trace; logs go to stderr
    #[arg(long, global = true, env = "SEALBLK_LOG", default_value = "warn", value_name = "LEVEL")]
    log: LevelFilter,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 internal; 2 usage; 3 KMS denied; 4 KMS key unusable; 5 KMS unreachable or throttled; \
6 wrapped key damaged; 7 storage; 8 network address. Under `run -- COMMAND`: COMMAND's own.";

#[derive(Subcommand)]
enum Command {
    /// Serve an encrypted scratch volume until COMMAND ends, or until SIGINT, SIGTERM or SIGHUP
    Run(Box<run::RunArgs>),
    /// Retire the grants of volumes whose process died, and remove what they left
    Gc(gc::GcArgs),
    /// Use and serve the embedded KMS
    Kms(kms::KmsArgs),
    /// Check a KMS key and the permissions on it before a volume needs them
    Preflight(Box<preflight::PreflightArgs>),
    /// Print least-privilege policies for provisioner and host
    Policy(policy::PolicyArgs),
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
    let cli = Cli::parse();
    telemetry::init(cli.log);
    exit(run_command(cli))
}

fn run_command(cli: Cli) -> Result<ExitCode, Failure> {
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
        Command::Run(args) => run::run(*args, state()?, json),
        Command::Gc(args) => gc::gc(&args, &state()?, json),
        Command::Kms(args) => kms::kms(args, state, json),
        Command::Preflight(args) => preflight::preflight(&args, &state()?, json),
        Command::Policy(args) => policy::policy(&args, json),
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

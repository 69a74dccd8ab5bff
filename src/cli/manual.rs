//! `sealblk completions` and `sealblk man`: generated from the flags themselves.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure};

#[derive(Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Args)]
pub(super) struct ManArgs {
    /// Directory for the pages
    #[arg(default_value = ".")]
    directory: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    clap_complete::generate(args.shell, &mut Cli::command(), "sealblk", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    clap_mangen::generate_to(Cli::command(), &args.directory).map_err(|source| Failure::File {
        action: "write man pages to",
        what: args.directory.display().to_string(),
        source,
    })?;
    Ok(ExitCode::SUCCESS)
}

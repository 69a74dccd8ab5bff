//! `sealblk gc`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::{Failure, output, run};
use crate::engine::journal;

/// Every start does the same first; this does it now.
#[derive(Args)]
pub(super) struct GcArgs {}

pub(super) fn gc(_: &GcArgs, state: &Path) -> Result<ExitCode, Failure> {
    let swept = run::runtime()?.block_on(journal::sweep(state));
    for entry in &swept {
        let volume =
            entry.volume.as_ref().map_or_else(|| entry.path.display().to_string(), ToString::to_string);
        match &entry.outcome {
            Ok(released) => output::line(format!("{volume}: grant {}", describe(*released))),
            Err(error) => output::line(format!("{volume}: left as it is: {error}")),
        }
    }
    match swept.iter().filter(|entry| entry.outcome.is_err()).count() {
        0 => {
            output::line(format!("{} dead volumes cleared away", swept.len()));
            Ok(ExitCode::SUCCESS)
        }
        left => Err(Failure::Leftovers(left)),
    }
}

fn describe(released: crate::kms::Released) -> &'static str {
    match released {
        crate::kms::Released::Retired => "retired",
        crate::kms::Released::Revoked => "revoked",
        crate::kms::Released::AlreadyGone => "was gone already",
    }
}

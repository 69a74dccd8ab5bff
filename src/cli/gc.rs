//! `sealblk gc`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Failure, output, run};
use crate::audit::AuditLog;
use crate::engine::journal;
use crate::kms::Released;

/// Every start does the same first; this does it now.
#[derive(Args)]
pub(super) struct GcArgs {}

pub(super) fn gc(_: &GcArgs, state: &Path, json: bool) -> Result<ExitCode, Failure> {
    let swept = run::runtime()?.block_on(journal::sweep(state, &AuditLog::open(state)?));
    for entry in &swept {
        let volume =
            entry.volume.as_ref().map_or_else(|| entry.path.display().to_string(), ToString::to_string);
        match &entry.outcome {
            Ok(released) if json => output::line(json!({ "volume": volume, "grant": released })),
            Ok(released) => output::line(format!("{volume}: grant {}", describe(*released))),
            Err(error) if json => output::line(json!({ "volume": volume, "error": error.to_string() })),
            Err(error) => output::line(format!("{volume}: left as it is: {error}")),
        }
    }
    let left = swept.iter().filter(|entry| entry.outcome.is_err()).count();
    if left > 0 {
        return Err(Failure::Leftovers(left));
    }
    if !json {
        output::line(format!("cleared away: {}", swept.len()));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(released: Released) -> &'static str {
    match released {
        Released::Retired => "retired",
        Released::Revoked => "revoked",
        Released::AlreadyGone => "was gone already",
    }
}

//! `sealblk gc`.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::{Failure, output, run};
use crate::audit::AuditLog;
use crate::engine::{Deed, Swept, sweep};
use crate::kms::Released;

/// Every start does the same first; this does it now.
#[derive(Args)]
pub(super) struct GcArgs {
    /// Show what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn gc(args: &GcArgs, state: &Path, json: bool) -> Result<ExitCode, Failure> {
    let swept = run::runtime()?.block_on(sweep(state, &AuditLog::open(state)?, args.dry_run));
    for entry in &swept {
        let volume =
            entry.volume.as_ref().map_or_else(|| entry.path.display().to_string(), ToString::to_string);
        let error = entry.outcome.as_ref().err().map(ToString::to_string);
        if json {
            output::line(json!({ "volume": volume, "deeds": entry.deeds, "error": error }));
            continue;
        }
        for deed in &entry.deeds {
            output::line(format!("{volume}: {}", describe(deed, args.dry_run)));
        }
        if let Some(error) = error {
            output::line(format!("{volume}: left as it is: {error}"));
        }
    }
    summarise(&swept, args.dry_run, json)
}

fn summarise(swept: &[Swept], dry_run: bool, json: bool) -> Result<ExitCode, Failure> {
    let left = swept.iter().filter(|entry| entry.outcome.is_err()).count();
    if left > 0 {
        return Err(Failure::Leftovers(left));
    }
    if !json {
        let what = if dry_run { "to be cleared away" } else { "cleared away" };
        output::line(format!("{what}: {}", swept.len()));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(deed: &Deed, dry_run: bool) -> String {
    match deed {
        Deed::Grant { ended: Some(Released::Retired), .. } => "grant retired".into(),
        Deed::Grant { ended: Some(Released::Revoked), .. } => "grant revoked".into(),
        Deed::Grant { ended: Some(Released::AlreadyGone), .. } => "grant was gone already".into(),
        Deed::Grant { grant, ended: None } => format!("would end grant {grant}"),
        Deed::File { path } if dry_run => format!("would remove {}", path.display()),
        Deed::File { path } => format!("removed {}", path.display()),
    }
}

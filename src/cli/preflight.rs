//! `sealblk preflight`: would a volume start, and if not, why.

mod checks;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::json;

use self::checks::{Check, Outcome, Plan};
use super::options::{KmsOptions, fall_back, layout};
use super::output::{self, Event};
use super::{Failure, run};
use crate::audit::AuditLog;
use crate::config::{Config, Sector};
use crate::envelope::{self, VolumeId};
use crate::kms::{Role, policy};

const EXAMPLES: &str = "\
Exit code: 0 if no check failed, else that of the first failure, as `run` would have it.

Examples:
  sealblk preflight --kms aws --key alias/scratch --context team=data
  sealblk preflight --kms aws --key alias/scratch --json";

/// Describes the KMS key and dry-runs what a volume does with it. Nothing is made, but for the embedded KMS's
/// alias/sealblk.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct PreflightArgs {
    /// Size of the volume to come: a part of its encryption context
    #[arg(long, env = "SEALBLK_SIZE", default_value = "1G")]
    size: String,

    /// Sector size of the volume to come: likewise [default: 4096]
    #[arg(long, value_name = "4096|512")]
    sector_size: Option<String>,

    /// Check also what moving a volume to another KMS key needs
    #[arg(long)]
    rewrap: bool,

    #[command(flatten)]
    kms: KmsOptions,
}

pub(super) fn preflight(
    mut args: PreflightArgs,
    config: &Config,
    state: &Path,
    json: bool,
) -> Result<ExitCode, Failure> {
    args.kms.inherit(config);
    fall_back(&mut args.sector_size, &config.settings.defaults.sector_size, |Sector(size)| size.to_string());
    let layout = layout(&args.size, args.sector_size.as_deref())?;
    let request = args.kms.key_request()?;
    let context = envelope::bind(&request.context, &VolumeId::random(), layout)?;
    let provider = args.kms.provider(state)?;
    let plan = Plan { request, context: context.without(policy::CONTEXT_VOLUME), rewrap: args.rewrap };
    let witness = AuditLog::open(state)?.for_nobody();
    let runtime = run::runtime()?;
    let checks = runtime.block_on(async { plan.run(provider.open(Role::Provisioner, witness).await).await });
    report(checks, json)
}

/// Prints every check, and fails with the first failure.
fn report(mut checks: Vec<Check>, json: bool) -> Result<ExitCode, Failure> {
    for check in &checks {
        if json {
            output::line(Event { event: "check", details: check }.json());
        } else {
            output::line(human(check));
        }
    }
    let count = |outcome| checks.iter().filter(|check| check.outcome == outcome).count();
    let summary = Summary {
        pass: count(Outcome::Pass),
        fail: count(Outcome::Fail),
        cannot_tell: count(Outcome::CannotTell),
        exit_code: 0,
    };
    let failure = checks.iter_mut().find_map(|check| check.error.take()).map(Failure::Kms);
    let summary = Summary { exit_code: failure.as_ref().map_or(0, Failure::code), ..summary };
    if json {
        output::line(Event { event: "summary", details: &summary }.json());
    } else {
        let Summary { pass, fail, cannot_tell, .. } = summary;
        output::line(format!("{pass} passed, {fail} failed, {cannot_tell} cannot be told"));
    }
    failure.map_or(Ok(ExitCode::SUCCESS), Err)
}

#[derive(Serialize)]
struct Summary {
    pass: usize,
    fail: usize,
    cannot_tell: usize,
    exit_code: u8,
}

/// A row of the table, and below it what would help.
fn human(check: &Check) -> String {
    let (word, colour) = match check.outcome {
        Outcome::Pass => ("pass", "32"),
        Outcome::Fail => ("FAIL", "1;31"),
        Outcome::CannotTell => ("cannot tell", "33"),
    };
    let shown = format!("{word:<11}");
    let shown = match std::io::stdout().is_terminal() {
        true => format!("\x1b[{colour}m{shown}\x1b[0m"),
        false => shown,
    };
    let row = format!("{shown}  {:<42}  {}", check.check, check.detail);
    let mut text = row.trim_end().to_owned();
    if let Some(permission) = &check.permission {
        let who = check.principal.as_deref().unwrap_or("the provisioner");
        text.push_str(&format!("\n             missing: {permission}, for {who}"));
    }
    if let (Some(statement), Some(policy)) = (&check.statement, check.policy) {
        let statement = json!(statement);
        text.push_str(&format!(
            "\n             a statement of the {policy}'s policy that gives it: {statement}"
        ));
    }
    if let Some(hint) = check.hint {
        text.push_str(&format!("\n             {hint}"));
    }
    text
}

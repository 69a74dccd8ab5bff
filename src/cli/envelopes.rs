//! `sealblk provision`, `retire` and `rewrap`: the envelope's life.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hyper::Method;
use serde_json::{Value, json};

use super::inspect::{Named, PATIENCE, ask, named};
use super::options::{KmsOptions, Switch, layout};
use super::output::{self, Event};
use super::run::{self, describe_rewrap};
use super::{Failure, options};
use crate::audit::AuditLog;
use crate::config::Config;
use crate::control::RewrapRequest;
use crate::engine::provision::{Order, TokenPlace, provision as make, retire as end, rewrap as shift};
use crate::envelope::{EnvelopeFile, Held, KeyRequest, Life, Slot, Target, Unwrapper, file};
use crate::kms::{KeyRef, Principal};

/// A rewrap makes half a dozen KMS calls, each with its retries.
const REWRAP_PATIENCE: Duration = Duration::from_secs(600);

/// Makes a wrapped key, its grant and an envelope with both; needs no right to unwrap.
#[derive(Args)]
pub(super) struct ProvisionArgs {
    /// Size: a number of bytes, or 10G (GiB), 10GB (10^9 bytes), and so with K, M, T
    #[arg(long, env = "SEALBLK_SIZE")]
    size: String,

    /// Bytes enciphered as one unit: 4096, or 512 for clients that need it [default: 4096]
    #[arg(long, value_name = "4096|512")]
    sector_size: Option<String>,

    /// Where the envelope goes; nothing may be there
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// The volume's backing stays when it ends, and opens again
    #[arg(long)]
    durable: bool,

    /// Where the grant token goes: FILE.token, the envelope itself, or nowhere (the grant works without it after
    /// some minutes)
    #[arg(long, default_value = "file", value_name = "file|envelope|none")]
    token: TokenArg,

    #[command(flatten)]
    kms: KmsOptions,
}

#[derive(Clone, Copy, ValueEnum)]
enum TokenArg {
    File,
    Envelope,
    None,
}

/// Ends an envelope's grants, so that no host opens it any more.
#[derive(Args)]
pub(super) struct RetireArgs {
    /// The envelope
    envelope: PathBuf,

    /// Remove the envelope and its token too: the data is lost for good
    #[arg(long)]
    erase: bool,

    /// File with the envelope's grant token [default: the envelope's name and .token, if there is such a file]
    #[arg(long, value_name = "FILE")]
    grant_token: Option<PathBuf>,

    #[command(flatten)]
    kms: KmsOptions,
}

/// Puts a volume's data key under another KMS key, or under the newest material of its own.
#[derive(Args)]
pub(super) struct RewrapArgs {
    /// An envelope, a served volume's id, or its control socket as unix:PATH
    what: String,

    /// The KMS key to go to: id, ARN or alias/NAME [default: the one it is under, for its newest material]
    #[arg(long, value_name = "ID")]
    to_key: Option<String>,

    /// The KMS to go to, local[:DIR] or aws [default: the one it is at]
    #[arg(long, value_name = "local[:DIR]|aws")]
    to_kms: Option<String>,

    /// Keep the slots that are there beside the new one
    #[arg(long)]
    keep: bool,

    /// File with the envelope's grant token [default: the envelope's name and .token, if there is such a file]
    #[arg(long, value_name = "FILE")]
    grant_token: Option<PathBuf>,

    #[command(flatten)]
    kms: KmsOptions,
}

/// Opens an envelope and the token that came with it.
pub(super) fn open_envelope(path: &Path, token: Option<&Path>) -> Result<Held, Failure> {
    let (envelope, document) = EnvelopeFile::open(path)?;
    let named = token.map(Path::to_path_buf);
    // Beside the envelope itself, not beside a symbolic link to it.
    let beside = file::token_path(envelope.path());
    let token = file::read_token(named.as_deref().unwrap_or(&beside))?;
    if let (Some(named), None) = (&named, &token) {
        return Err(Failure::Usage(format!("--grant-token {}: no token is there", named.display())));
    }
    Ok(Held { document, file: Some(envelope), seal: None, token })
}

pub(super) fn provision(
    mut args: ProvisionArgs,
    config: &Config,
    state: PathBuf,
    json: bool,
) -> Result<ExitCode, Failure> {
    args.kms.inherit(config);
    let order = Order {
        layout: layout(&args.size, args.sector_size.as_deref())?,
        life: if args.durable { Life::Durable } else { Life::Ephemeral },
        provider: args.kms.provider(&state)?,
        request: args.kms.key_request()?,
        envelope: args.output.clone(),
        token: match args.token {
            TokenArg::File => TokenPlace::File,
            TokenArg::Envelope => TokenPlace::Envelope,
            TokenArg::None => TokenPlace::Nowhere,
        },
        audit: AuditLog::open(&state)?,
        state,
    };
    let made = run::runtime()?.block_on(make(order))?;
    let path = args.output.display();
    if json {
        let details = json!({
            "volume": made.volume, "kms_key": made.key, "grant": made.grant_id, "grantee": made.grantee,
            "envelope": args.output,
        });
        output::line(Event { event: "provisioned", details }.json());
    } else {
        output::line(format!("{path}: {} under {}; {} may open it", made.volume, made.key, made.grantee));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn retire(
    mut args: RetireArgs,
    config: &Config,
    state: &Path,
    json: bool,
) -> Result<ExitCode, Failure> {
    args.kms.inherit(config);
    let held = open_envelope(&args.envelope, args.grant_token.as_deref())?;
    let providers = args.kms.providers_of(&held.document, state)?;
    let volume = held.document.volume.clone();
    let retired = run::runtime()?.block_on(end(held, &providers, args.erase, &AuditLog::open(state)?));
    let mut failed = None;
    for (grant, ended) in retired.ends {
        let how = match &ended {
            Ok(released) => json!(released),
            Err(error) => json!({ "error": error.to_string() }),
        };
        if json {
            let details =
                json!({ "volume": volume, "kms_key": grant.key, "grant": grant.grant, "ended": how });
            output::line(Event { event: "retired", details }.json());
        } else {
            let how = how.as_str().map_or_else(|| "left as it is".into(), |how| how.replace('-', " "));
            output::line(format!("{volume}: grant {} on {}: {how}", grant.grant, grant.key));
        }
        failed = failed.or(ended.err());
    }
    retired.noted?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

pub(super) fn rewrap(
    mut args: RewrapArgs,
    config: &Config,
    state: PathBuf,
    json: bool,
) -> Result<ExitCode, Failure> {
    args.kms.inherit(config);
    let moved = match named(&args.what, &state)? {
        Named::Socket(_) if args.grant_token.is_some() => {
            let why = "--grant-token is for a stored envelope; a served volume has its token";
            return Err(Failure::Usage(why.into()));
        }
        Named::Socket(path) => rewrap_served(&args, &path, &state)?,
        Named::Envelope(path) => rewrap_stored(&args, &path, &state)?,
    };
    if json {
        output::line(Event { event: "rewrapped", details: moved }.json());
    } else {
        let text = |field: &str| moved[field].as_str().unwrap_or("-").to_owned();
        output::line(format!("{}: under {} now, grant {}", args.what, text("kms_key"), text("grant")));
        if moved["verified"] == false {
            output::note("the new slot is pending: the host verifies it when it opens the volume next");
        }
        for left in moved["grants_left"].as_array().into_iter().flatten() {
            output::note(format!("the old grant is left over, for the next start or `sealblk gc`: {left}"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn rewrap_served(args: &RewrapArgs, socket: &Path, state: &Path) -> Result<Value, Failure> {
    let runtime = run::runtime()?;
    let to_key = match &args.to_key {
        Some(key) => key.clone(),
        None => {
            let status = runtime.block_on(ask(socket, Method::GET, "/v1/volume", None, PATIENCE))?;
            status["kms_key"].as_str().unwrap_or_default().into()
        }
    };
    let provider = args.to_kms.as_ref().map(|kms| args.kms.provider_named(kms, state)).transpose()?;
    let request = RewrapRequest {
        to_key: KeyRef::new(to_key),
        provider,
        grantee: args.kms.grantee.as_ref().map(Principal::new),
        retiring: args.kms.retiring.as_ref().map(Principal::new),
        keep_others: args.keep,
    };
    runtime.block_on(ask(socket, Method::POST, "/v1/volume/rewrap", Some(json!(request)), REWRAP_PATIENCE))
}

fn rewrap_stored(args: &RewrapArgs, path: &Path, state: &Path) -> Result<Value, Failure> {
    let held = open_envelope(path, args.grant_token.as_deref())?;
    let source = args.kms.provider_of(&held.document, state)?;
    let provider = match &args.to_kms {
        Some(kms) => args.kms.provider_named(kms, state)?,
        None => source.clone(),
    };
    let provider = provider.for_key(args.to_key.as_deref().unwrap_or_default());
    let own = held.document.slots.first().map(|slot| slot.key.to_string()).unwrap_or_default();
    let with_token = held.document.slots.iter().any(Slot::carries_token);
    let request = KeyRequest {
        key: KeyRef::new(args.to_key.clone().unwrap_or(own)),
        context: Default::default(),
        grantee: args.kms.grantee.as_ref().map(Principal::new),
        retiring: args.kms.retiring.as_ref().map(Principal::new),
        preflight: args.kms.preflight != Some(Switch::Off),
    };
    let target = Target { provider, request, keep_others: args.keep, with_token };
    let audit = AuditLog::open(state)?;
    let witness = audit.for_volume(held.document.volume.as_str());
    let by = Unwrapper { helper: options::helper(), provider: source, witness };
    // The data key passes through this process's locked memory, for comparison.
    run::harden()?;
    let rewrapped = run::runtime()?.block_on(shift(held, by, target, state, &audit))?;
    Ok(describe_rewrap(&rewrapped))
}

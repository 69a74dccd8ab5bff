//! `sealblk kms`: the embedded KMS's keys, its event log and its HTTP face.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpListener;

use super::output::{self, Event};
use super::signals::{self, Signals};
use super::{Failure, options, run};
use crate::audit::AuditLog;
use crate::kms::KeyRef;
use crate::kms::local::{Admin, KeyListing, PrincipalName, ServeOptions, serve};
use crate::nbd::server::ListenError;

#[derive(Args)]
pub(super) struct KmsArgs {
    /// The embedded KMS's directory [default: kms in the state directory]
    #[arg(long, global = true, env = "SEALBLK_KMS_DIR", value_name = "DIR")]
    dir: Option<PathBuf>,

    #[command(subcommand)]
    command: KmsCommand,
}

#[derive(Subcommand)]
enum KmsCommand {
    /// Make a key
    Create {
        /// A name for it: alias/NAME
        #[arg(long)]
        alias: Option<String>,
        /// A text for people
        #[arg(long, default_value = "", hide_default_value = true)]
        description: String,
    },
    /// List the keys
    List,
    /// Make a disabled key usable again
    Enable(KeyArg),
    /// Make a key unusable until it is enabled; volumes that are served go on
    Disable(KeyArg),
    /// Delete a key after a waiting period; what it wrapped is lost then
    ScheduleDeletion {
        #[command(flatten)]
        key: KeyArg,
        /// Waiting period
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u16).range(7..=30))]
        days: u16,
    },
    /// Take a deletion back; leaves the key disabled
    CancelDeletion(KeyArg),
    /// Give a key new material; what the old one wrapped stays readable
    Rotate(KeyArg),
    /// Show a key's policy
    GetKeyPolicy(KeyArg),
    /// Give a key another policy
    PutKeyPolicy {
        /// Key id, ARN or alias/NAME
        key: String,
        /// The policy, as `aws kms put-key-policy` takes it; - for standard input
        file: PathBuf,
        /// Take a policy under which the administrator could not put another
        #[arg(long)]
        bypass_policy_lockout_safety_check: bool,
    },
    /// Show a principal's own policy
    GetUserPolicy {
        /// Whose
        principal: PrincipalArg,
    },
    /// Give a principal another policy of its own
    PutUserPolicy {
        /// Whose
        principal: PrincipalArg,
        /// The policy, as IAM has it; - for standard input
        file: PathBuf,
    },
    /// Show the event log
    Events,
    /// Show credentials for the HTTP face, as shell assignments
    Credentials {
        /// Whose
        #[arg(default_value = "provisioner")]
        principal: PrincipalArg,
    },
    /// Serve the embedded KMS to AWS clients over HTTP
    Serve {
        /// HOST:PORT; port 0 lets the kernel choose
        #[arg(long, default_value = "127.0.0.1:8200")]
        listen: String,
        /// Listen on an address that is not loopback: plaintext keys cross the network in clear
        #[arg(long)]
        insecure: bool,
        /// Take orders at /_control/ to fail, slow down and throttle calls: for tests
        #[arg(long)]
        control: bool,
    },
}

#[derive(Args)]
struct KeyArg {
    /// Key id, ARN or alias/NAME
    #[arg(default_value = "alias/sealblk")]
    key: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrincipalArg {
    Admin,
    Provisioner,
    Host,
    Auditor,
}

impl From<PrincipalArg> for PrincipalName {
    fn from(argument: PrincipalArg) -> Self {
        match argument {
            PrincipalArg::Admin => Self::Admin,
            PrincipalArg::Provisioner => Self::Provisioner,
            PrincipalArg::Host => Self::Host,
            PrincipalArg::Auditor => Self::Auditor,
        }
    }
}

pub(super) fn kms(
    args: KmsArgs,
    state: impl FnOnce() -> Result<PathBuf, Failure>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let admin = open(args.dir, state, args.command.calls())?;
    match args.command {
        KmsCommand::Create { alias, description } => {
            show(&[admin.create(&description, alias.as_deref())?], json);
        }
        KmsCommand::List => show(&admin.list()?, json),
        KmsCommand::Enable(key) => show(&[admin.enable(&key.reference())?], json),
        KmsCommand::Disable(key) => show(&[admin.disable(&key.reference())?], json),
        KmsCommand::ScheduleDeletion { key, days } => {
            show(&[admin.schedule_deletion(&key.reference(), days)?], json);
        }
        KmsCommand::CancelDeletion(key) => show(&[admin.cancel_deletion(&key.reference())?], json),
        KmsCommand::Rotate(key) => show(&[admin.rotate(&key.reference())?], json),
        KmsCommand::GetKeyPolicy(key) => output::line(admin.key_policy(&key.reference())?),
        KmsCommand::PutKeyPolicy { key, file, bypass_policy_lockout_safety_check } => {
            admin.put_key_policy(&KeyRef::new(key), &text_of(&file)?, bypass_policy_lockout_safety_check)?;
        }
        KmsCommand::GetUserPolicy { principal } => output::line(admin.user_policy(principal.into())?),
        KmsCommand::PutUserPolicy { principal, file } => {
            admin.put_user_policy(principal.into(), &text_of(&file)?)?;
        }
        KmsCommand::Events => events(&admin, json)?,
        KmsCommand::Credentials { principal } => credentials(&admin, principal.into(), json)?,
        KmsCommand::Serve { listen, insecure, control } => {
            // Its answers hold plaintext keys.
            run::harden()?;
            let options = ServeOptions { faults: control, insecure };
            run::runtime()?.block_on(serve_http(&admin, &listen, options, json))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl KmsCommand {
    /// True for those that make calls, which go into the audit log.
    fn calls(&self) -> bool {
        !matches!(self, Self::Events | Self::Credentials { .. } | Self::Serve { .. })
    }
}

fn open(
    directory: Option<PathBuf>,
    state: impl FnOnce() -> Result<PathBuf, Failure>,
    calls: bool,
) -> Result<Admin, Failure> {
    if let (Some(directory), false) = (&directory, calls) {
        return Ok(Admin::open(directory)?);
    }
    let state = state()?;
    let directory = directory.unwrap_or_else(|| options::local_kms(&state));
    if !calls {
        return Ok(Admin::open(&directory)?);
    }
    // First, since no call may be made that it cannot show.
    let audit = AuditLog::open(&state)?;
    Ok(Admin::open(&directory)?.witnessed_by(audit.for_nobody()))
}

impl KeyArg {
    fn reference(&self) -> KeyRef {
        KeyRef::new(&self.key)
    }
}

/// A policy's file, or standard input for `-`.
fn text_of(file: &Path) -> Result<String, Failure> {
    let read = match file.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(file),
    };
    let what = format!("the policy {}", file.display());
    read.map_err(|source| Failure::File { action: "read", what, source })
}

fn show(keys: &[KeyListing], json: bool) {
    for key in keys {
        let date = |time: time::OffsetDateTime| time.format(&Rfc3339).unwrap_or_default();
        if json {
            output::line(json!({
                "arn": key.arn,
                "aliases": key.aliases,
                "state": key.state.name(),
                "spec": key.spec,
                "description": key.description,
                "created": date(key.created),
                "deletion": key.deletion.map(date),
                "material": key.material,
            }));
        } else {
            let deletion = key.deletion.map(|at| format!(" (on {})", at.date())).unwrap_or_default();
            let aliases = key.aliases.join(" ");
            output::line(format!("{}  {}{deletion}  {aliases}", key.arn, key.state.name()));
        }
    }
}

fn events(admin: &Admin, json: bool) -> Result<(), Failure> {
    for line in admin.events()?.lines() {
        let line =
            line.map_err(|source| Failure::File { action: "read", what: "the event log".into(), source })?;
        output::line(if json { line } else { summary(&line) });
    }
    Ok(())
}

/// One event in one line: when, who, what, how it went, on what, under which context.
fn summary(line: &str) -> String {
    let event: Value = serde_json::from_str(line).unwrap_or_default();
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or("-").to_owned();
    let context =
        ["/requestParameters/encryptionContext", "/requestParameters/constraints/encryptionContextSubset"]
            .iter()
            .find_map(|pointer| event.pointer(pointer))
            .map(ToString::to_string)
            .unwrap_or_default();
    let outcome = event.get("errorCode").and_then(Value::as_str).unwrap_or("ok");
    let key = text("/resources/0/ARN");
    let key = key.rsplit('/').next().unwrap_or_default();
    format!(
        "{}  {:<11}  {:<31}  {outcome:<24}  {key}  {context}",
        text("/eventTime"),
        text("/userIdentity/userName"),
        text("/eventName"),
    )
}

fn credentials(admin: &Admin, principal: PrincipalName, json: bool) -> Result<(), Failure> {
    let credentials = admin.credentials(principal)?;
    if json {
        output::line(json!({
            "Version": 1,
            "AccessKeyId": credentials.access_key_id,
            "SecretAccessKey": *credentials.secret_access_key,
            "Region": credentials.region,
            "Arn": credentials.principal,
        }));
    } else {
        output::line(format!("export AWS_ACCESS_KEY_ID={}", credentials.access_key_id));
        output::line(format!("export AWS_SECRET_ACCESS_KEY={}", *credentials.secret_access_key));
        output::line(format!("export AWS_REGION={0} AWS_DEFAULT_REGION={0}", credentials.region));
    }
    Ok(())
}

async fn serve_http(admin: &Admin, listen: &str, options: ServeOptions, json: bool) -> Result<(), Failure> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => ListenError::InUse(listen.into()),
        _ => ListenError::Io { address: listen.into(), source },
    };
    let mut signals = signals::handle(Signals::new())?;
    let listener = TcpListener::bind(listen).await.map_err(failed)?;
    options.check(&listener)?;
    let endpoint = format!("http://{}", listener.local_addr().map_err(failed)?);
    if json {
        let details = json!({ "endpoint": endpoint, "pid": std::process::id() });
        output::line(Event { event: "serving", details }.json());
    } else {
        output::note("sealblk kms: serving; `sealblk kms credentials` shows credentials; Ctrl-C ends it");
        output::line(&endpoint);
    }
    // Whoever waits for the endpoint reads it from a pipe.
    let _ = std::io::stdout().flush();
    serve(admin, listener, options, async {
        signals.next().await;
    })
    .await?;
    Ok(())
}

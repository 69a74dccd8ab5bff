//! `sealblk inspect`: an envelope, or a volume that is served; and how a served one is found.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hyper::Method;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use super::{Failure, output, run};
use crate::control::Client;
use crate::engine::journal;
use crate::envelope::{Document, Slot, file};

/// A running volume answers at once, unless a rewrap is under way.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Shows an envelope, or a volume that is served.
#[derive(Args)]
pub(super) struct InspectArgs {
    /// An envelope, a served volume's id, or its control socket as unix:PATH; none for all volumes that are served
    /// here
    what: Option<String>,

    /// Ask the KMS for the key's state now
    #[arg(long)]
    poll: bool,
}

/// What a user named.
pub(super) enum Named {
    Envelope(PathBuf),
    Socket(PathBuf),
}

/// A file, or the control socket of a volume that is served on this host.
pub(super) fn named(what: &str, state: &Path) -> Result<Named, Failure> {
    if let Some(path) = what.strip_prefix("unix:") {
        return Ok(Named::Socket(path.into()));
    }
    if !what.starts_with("vol-") || Path::new(what).exists() {
        return Ok(Named::Envelope(what.into()));
    }
    let living = journal::living(state).into_iter().find(|note| note.volume.as_str() == what);
    match living {
        Some(journal::Note { control: Some(path), .. }) => Ok(Named::Socket(path)),
        Some(_) => {
            Err(Failure::Usage(format!("{what} is served without a control socket: start it with --control")))
        }
        None => Err(Failure::Usage(format!(
            "{what} is neither a file nor served on this host (state directory {})",
            state.display()
        ))),
    }
}

/// Asks a running volume.
pub(super) async fn ask(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<Value>,
    within: Duration,
) -> Result<Value, Failure> {
    let client = Client::connect(socket, within).await?;
    Ok(client.call(method, path, body.as_ref(), within).await?)
}

pub(super) fn inspect(args: &InspectArgs, state: &Path, json: bool) -> Result<ExitCode, Failure> {
    let Some(what) = &args.what else {
        return Ok(list(state, json));
    };
    match named(what, state)? {
        Named::Envelope(path) => show_envelope(&path, json)?,
        Named::Socket(path) => {
            let runtime = run::runtime()?;
            if args.poll {
                runtime.block_on(ask(&path, Method::POST, "/v1/volume/key/poll", None, PATIENCE))?;
            }
            let status = runtime.block_on(ask(&path, Method::GET, "/v1/volume", None, PATIENCE))?;
            if json { output::line(status) } else { show(&status, 0) }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(state: &Path, json: bool) -> ExitCode {
    for note in journal::living(state) {
        let control = note.control.as_ref().map(|path| format!("unix:{}", path.display()));
        if json {
            output::line(json!({ "volume": note.volume, "control": control }));
        } else {
            output::line(format!(
                "{}  {}",
                note.volume,
                control.unwrap_or_else(|| "no control socket".into())
            ));
        }
    }
    ExitCode::SUCCESS
}

fn show_envelope(path: &Path, json: bool) -> Result<(), Failure> {
    let document = file::read(path)?;
    let facts = facts(&document);
    if json {
        output::line(facts);
    } else {
        show(&facts, 0);
    }
    Ok(())
}

/// What an envelope says; neither wrapped keys nor tokens.
fn facts(document: &Document) -> Value {
    let slot = |slot: &Slot| {
        json!({
            "provider": slot.provider.as_str(),
            "kms_key": slot.key,
            "key_material": slot.material(),
            "grant": slot.grant.as_ref().map(|grant| json!({
                "id": grant.id, "name": grant.name, "grantee": grant.grantee, "retiring": grant.retiring,
            })),
        })
    };
    let date = |time: time::OffsetDateTime| time.format(&Rfc3339).unwrap_or_default();
    let layout = document.layout();
    json!({
        "volume": document.volume,
        "life": document.life,
        "layout": layout.to_string(),
        "size": layout.size.bytes(),
        "sector_size": layout.sector.bytes(),
        "encryption_context": document.whole_context(),
        "created": date(document.created()),
        "revision": document.revision(),
        "sealed": document.is_sealed(),
        "slots": document.slots.iter().map(slot).collect::<Vec<_>>(),
        "pending": document.since_seal.pending.as_ref().map(|pending| slot(&pending.slot)),
        "superseded_grants": document.since_seal.superseded.len(),
        "retired": document.since_seal.retired.map(date),
    })
}

/// A value for people: one line a field, what belongs to it below and further in.
fn show(value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    let Value::Object(fields) = value else { return };
    for (name, field) in fields {
        match field {
            Value::Object(inner) if !inner.is_empty() => {
                output::line(format!("{indent}{name}:"));
                show(field, depth + 1);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for item in items {
                    output::line(format!("{indent}{name}:"));
                    show(item, depth + 1);
                }
            }
            Value::String(text) => output::line(format!("{indent}{name}: {text}")),
            other => output::line(format!("{indent}{name}: {other}")),
        }
    }
}

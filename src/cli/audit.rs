//! `sealblk audit`: shows the audit log.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::signals::{self, Signals};
use super::{Failure, output, run};
use crate::audit::{Filter, Line, Reader, parse_time};

/// How often `--follow` looks for more.
const PAUSE: Duration = Duration::from_millis(200);

/// Shows KMS calls and what happened to volumes, oldest first. --json prints the lines as they were written.
#[derive(Args)]
pub(super) struct AuditArgs {
    /// Of this volume
    #[arg(long, value_name = "ID")]
    volume: Option<String>,

    /// Of this name, such as Decrypt
    #[arg(long, value_name = "NAME")]
    event: Option<String>,

    /// On this key: ARN or id
    #[arg(long, value_name = "ARN")]
    key: Option<String>,

    /// Not before this time: 2026-03-01 or 2026-03-01T12:00:00Z
    #[arg(long, value_name = "TIME")]
    since: Option<String>,

    /// Before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,

    /// Calls that failed or got no answer
    #[arg(long)]
    errors: bool,

    /// With this request id
    #[arg(long, value_name = "ID")]
    request: Option<String>,

    /// Wait for more, until SIGINT, SIGTERM or SIGHUP
    #[arg(long)]
    follow: bool,
}

impl AuditArgs {
    fn filter(&self) -> Result<Filter, Failure> {
        let time = |flag: &str, text: &Option<String>| {
            let Some(text) = text else { return Ok(None) };
            let wrong = || {
                format!("{flag} {text:?} is no time: write 2026-03-01, or 2026-03-01T12:00:00Z with a zone")
            };
            parse_time(text).map(Some).ok_or_else(|| Failure::Usage(wrong()))
        };
        Ok(Filter {
            volume: self.volume.clone(),
            event: self.event.clone(),
            key: self.key.clone(),
            since: time("--since", &self.since)?,
            until: time("--until", &self.until)?,
            errors: self.errors,
            request: self.request.clone(),
        })
    }
}

pub(super) fn audit(args: &AuditArgs, state: &Path, json: bool) -> Result<ExitCode, Failure> {
    let filter = args.filter()?;
    let mut view = View { reader: Reader::open(state)?, filter, json, damaged: 0 };
    if args.follow {
        run::runtime()?.block_on(view.follow())?;
    } else {
        view.show_all()?;
        if let Some(line) = view.reader.unfinished() {
            view.show(&line);
        }
    }
    match view.damaged {
        0 => Ok(ExitCode::SUCCESS),
        damaged => Err(Failure::Damaged(damaged)),
    }
}

struct View {
    reader: Reader,
    filter: Filter,
    json: bool,
    damaged: usize,
}

impl View {
    async fn follow(&mut self) -> Result<(), Failure> {
        let mut signals = signals::handle(Signals::new())?;
        loop {
            self.show_all()?;
            tokio::select! {
                _ = signals.next() => return Ok(()),
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    fn show_all(&mut self) -> Result<(), Failure> {
        while let Some(line) = self.reader.next_line()? {
            self.show(&line);
        }
        Ok(())
    }

    fn show(&mut self, line: &Line) {
        match &line.record {
            Some(record) if self.filter.wants(record) => {
                output::line(if self.json { line.text.clone() } else { summary(record) });
            }
            Some(_) => {}
            None => {
                self.damaged += 1;
                let (file, number) = (line.file.display(), line.number);
                output::note(format!("{file} line {number} is damaged, and skipped"));
            }
        }
    }
}

/// A record in one line: when, as whom, what, how it went, for which volume, on what, under which request.
fn summary(record: &Value) -> String {
    let text = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
    let outcome = match (text("/errorCode"), text("/errorMessage")) {
        (Some(code), _) => code,
        (None, Some(_)) => "no answer",
        (None, None) => "ok",
    };
    let key = text("/resources/0/ARN").or(text("/requestParameters/keyId")).unwrap_or("-");
    let details = &record["additionalEventData"];
    let about = match text("/eventType") {
        Some("SealblkVolumeEvent") if details.is_object() => details.to_string(),
        Some("SealblkVolumeEvent") => String::new(),
        _ => format!("{}  {}", key.rsplit('/').next().unwrap_or_default(), text("/requestID").unwrap_or("-")),
    };
    let line = format!(
        "{}  {:<21}  {:<11}  {:<31}  {outcome:<24}  {about}",
        text("/eventTime").unwrap_or("-"),
        text("/sealblk/volume").unwrap_or("-"),
        text("/sealblk/role").unwrap_or("-"),
        text("/eventName").unwrap_or("-"),
    );
    // What a service said must not steer the terminal.
    line.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

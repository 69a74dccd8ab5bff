//! `sealblk bench`: what this host can do, and what limits it.

mod progress;
mod table;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use tokio::runtime::Handle;

use self::progress::Progress;
use super::output::{self, Event};
use super::signals::{self, Signals};
use super::{Failure, run};
use crate::bench::{BenchError, Figures, Host, Limits, measure};
use crate::secret::harden_process;

const EXAMPLES: &str = "\
Examples:
  sealblk bench
      a table, and two sentences about what limits this host
  sealblk bench --json
      one object a line: host, cipher, copy, loopback, limit
  sealblk bench --seconds 30
      steadier figures on a busy machine";

/// Measures the cipher, memory and one connection to a volume in this process's memory. Asks no KMS, leaves nothing
/// behind and takes 300 MiB while it runs. Figures of a machine that does something else besides are lower.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct BenchArgs {
    /// Time that all of it takes, about
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..=60))]
    seconds: u8,
}

pub(super) fn bench(args: &BenchArgs, json: bool) -> Result<ExitCode, Failure> {
    // Its keys are nobody's, but they are kept as all others. That not all memory could be locked matters to nobody.
    harden_process()
        .map_err(|error| Failure::Process { action: "forbid core dumps", source: error.into() })?;
    let runtime = run::runtime()?;
    let time = Duration::from_secs(args.seconds.into());
    let result = runtime.block_on(until_signal(time, json));
    // What does not end after a second signal must not hold the exit up.
    runtime.shutdown_background();
    result
}

/// Measures on a thread of its own. The first signal ends that in order, and at once; the next one without order.
async fn until_signal(time: Duration, json: bool) -> Result<ExitCode, Failure> {
    let mut signals = signals::handle(Signals::new())?;
    let stop = Arc::new(AtomicBool::new(false));
    let (runtime, stopping) = (Handle::current(), stop.clone());
    let mut measuring = tokio::task::spawn_blocking(move || {
        let mut progress = Progress::new(json);
        measure(time, &runtime, &stopping, &mut |what, done| progress.show(what, done))
    });
    let (result, code) = tokio::select! {
        result = &mut measuring => (result, None),
        signal = signals.next() => {
            stop.store(true, Ordering::Relaxed);
            tokio::select! {
                result = &mut measuring => (result, Some(signal.exit_code())),
                signal = signals.next() => return Ok(signal.exit_code()),
            }
        }
    };
    let result = result.unwrap_or_else(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        // Nobody cancels it.
        Err(_) => Err(BenchError::Stopped),
    });
    match (result, code) {
        (Err(BenchError::Stopped), Some(code)) => return Ok(code),
        (figures, _) => report(&figures?, json),
    }
    Ok(ExitCode::SUCCESS)
}

fn report(figures: &Figures, json: bool) {
    let host = Host::this();
    let limits = Limits::of(figures, &host);
    if !json {
        return output::line(table::render(figures, &host, &limits));
    }
    output::line(Event { event: "host", details: &host }.json());
    for figure in &figures.cipher {
        output::line(Event { event: "cipher", details: figure }.json());
    }
    output::line(Event { event: "copy", details: &figures.copy }.json());
    for figure in &figures.loopback {
        output::line(Event { event: "loopback", details: figure }.json());
    }
    output::line(Event { event: "limit", details: &limits }.json());
}

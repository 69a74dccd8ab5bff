//! Logs: what is written, where, and what never is.
//!
//! Levels: `error`, somebody must act; `warn`, somebody should know; `info`, a volume's steps; `debug`, each
//! connection. Logs go to stderr, so that stdout is free for a command's own output. What libraries log is capped
//! at `warn`: below it the AWS SDK prints access key ids and requests, grant tokens among them, and with
//! `LOG_SENSITIVE_BODIES` in the environment the answer to Decrypt. No setting may switch that on.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Switches logging on for the process, for our own code at `level`. Later calls change nothing.
pub fn init(level: LevelFilter) {
    let filter = Targets::new().with_target("sealblk", level).with_default(level.min(LevelFilter::WARN));
    let stderr = std::io::stderr();
    let colour = stderr.is_terminal();
    let format =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour).with_target(false);
    // A second call finds the first one's subscriber in place.
    let _ = tracing_subscriber::registry().with(format.with_filter(filter)).try_init();
}

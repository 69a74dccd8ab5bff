//! What is to be done about the KMS key's state.

use clap::{Args, ValueEnum};

use super::attend::Watching;
use crate::cli::Failure;
use crate::cli::options::fall_back;
use crate::config::{Config, Interval, KeyUnusable};
use crate::envelope::watch::DEFAULT_INTERVAL;

#[derive(Args, Default)]
pub(super) struct WatchArgs {
    /// How often the KMS key's state is looked at, `off` for never [default: 60s; off with --envelope]
    #[arg(long, value_name = "TIME|off")]
    watch_key: Option<String>,

    /// What to do once the KMS key is disabled, scheduled for deletion or gone [default: keep]
    #[arg(long, value_name = "keep|freeze|detach")]
    when_key_unusable: Option<WhenUnusable>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum WhenUnusable {
    /// Go on serving
    Keep,
    /// Refuse writes until the key is usable again
    Freeze,
    /// Tear the volume down
    Detach,
}

impl WatchArgs {
    /// Takes from the file what no flag said.
    pub(super) fn inherit(&mut self, config: &Config) {
        let watch = &config.settings.watch;
        fall_back(&mut self.watch_key, &watch.interval, ToString::to_string);
        fall_back(&mut self.when_key_unusable, &watch.when_key_unusable, |what| match what {
            KeyUnusable::Keep => WhenUnusable::Keep,
            KeyUnusable::Freeze => WhenUnusable::Freeze,
            KeyUnusable::Detach => WhenUnusable::Detach,
        });
    }

    /// For a volume of an envelope's, or of a key that is made.
    pub(super) fn watching(&self, is_envelopes: bool) -> Result<Watching, Failure> {
        let policy = self.when_key_unusable.unwrap_or(WhenUnusable::Keep);
        // A host with nothing but its grant may not look at the key; one that is to act on it has to.
        let blind = is_envelopes && policy == WhenUnusable::Keep;
        let default = if blind { Interval::Off } else { Interval::Every(DEFAULT_INTERVAL) };
        let interval = self.watch_key.clone().map_or(Ok(default), Interval::try_from);
        let interval = match interval.map_err(|why| Failure::Usage(format!("--watch-key: {why}")))? {
            Interval::Off if policy != WhenUnusable::Keep => {
                let why =
                    "--when-key-unusable has nothing to act on with --watch-key off; leave one of them out";
                return Err(Failure::Usage(why.into()));
            }
            Interval::Off => None,
            Interval::Every(interval) => Some(interval),
        };
        Ok(Watching { interval, policy })
    }
}

//! Where and how a volume's ciphertext is kept.

use clap::{Args, ValueEnum};

use crate::cli::Failure;
use crate::cli::options::{Switch, fall_back};
use crate::config::{self, BackingText, Cipher, Config, Sector};
use crate::store::Backing;
use crate::volume::Options;
use crate::xts::Implementation;

/// Variable of `--backing`.
pub(in crate::cli) const BACKING: &str = "SEALBLK_BACKING";

#[derive(Args, Default)]
pub(super) struct StorageArgs {
    /// Bytes enciphered as one unit: 4096, or 512 for clients that need it [default: 4096]
    #[arg(long, value_name = "4096|512")]
    sector_size: Option<String>,

    /// Where the ciphertext lies: a directory (an unnamed file in it), a file, a block device, or `memory`
    /// [default: $TMPDIR or /var/tmp]
    #[arg(long, env = BACKING, value_name = "DIR|FILE|BLOCKDEV|memory")]
    backing: Option<String>,

    /// Give space back on trim and zeros; `off` hides which sectors are used [default: on]
    #[arg(long, value_name = "on|off")]
    discard: Option<Switch>,

    /// Read and write the backing past the page cache (O_DIRECT): for volumes larger than memory, which would only
    /// push other data out of it [default: off]
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true, default_missing_value = "on")]
    direct: Option<Switch>,

    /// What a flush does: `honour` it, data reaches the disk; or `ignore` it, for a volume whose data need not survive
    /// this machine's next crash [default: honour]
    #[arg(long)]
    flush: Option<Flush>,

    /// Refuse writes
    #[arg(long)]
    read_only: bool,

    /// Code that enciphers; the ciphertext is the same [default: auto]
    #[arg(long)]
    cipher: Option<CipherCode>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Flush {
    /// Data reaches the disk before a flush, or a write with FUA, is answered
    Honour,
    /// Both are answered at once: the data dies with its key anyway
    Ignore,
}

#[derive(Clone, Copy, ValueEnum)]
enum CipherCode {
    /// The fastest on this CPU
    Auto,
    /// AWS-LC, with the CPU's AES instructions
    AwsLc,
    /// VAES, on vectors of 512 bits if the CPU has AVX-512, else of 256: the fastest where there is VAES
    Vaes,
    /// Plain Rust
    Portable,
}

impl StorageArgs {
    /// As of a command line without flags.
    pub(super) fn of_environment() -> Self {
        Self { backing: std::env::var(BACKING).ok(), ..Self::default() }
    }

    /// Takes from the file what no flag or variable said.
    pub(super) fn inherit(&mut self, config: &Config) {
        let file = &config.settings.defaults;
        fall_back(&mut self.backing, &file.backing, |BackingText(text)| text.clone());
        fall_back(&mut self.sector_size, &file.sector_size, |Sector(size)| size.to_string());
        fall_back(&mut self.discard, &file.discard, |on| Switch::from(*on));
        fall_back(&mut self.direct, &file.direct, |on| Switch::from(*on));
        fall_back(&mut self.flush, &file.flush, |flush| match flush {
            config::Flush::Honour => Flush::Honour,
            config::Flush::Ignore => Flush::Ignore,
        });
        fall_back(&mut self.cipher, &file.cipher, |cipher| match cipher {
            Cipher::Auto => CipherCode::Auto,
            Cipher::AwsLc => CipherCode::AwsLc,
            Cipher::Vaes => CipherCode::Vaes,
            Cipher::Portable => CipherCode::Portable,
        });
    }

    pub(super) fn sector_size(&self) -> Option<&str> {
        self.sector_size.as_deref()
    }

    /// # Errors
    /// [`Failure`] for a backing that is none.
    pub(super) fn backing(&self) -> Result<Backing, Failure> {
        match &self.backing {
            Some(text) => Ok(Backing::from_argument(text)?),
            None => {
                Ok(Backing::Directory(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into()).into()))
            }
        }
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct == Some(Switch::On)
    }

    /// # Errors
    /// [`Failure::Usage`] where flushes are to be ignored of a volume whose data is to stay.
    pub(super) fn options(&self, is_durable: bool) -> Result<Options, Failure> {
        let flush = self.flush != Some(Flush::Ignore);
        if is_durable && !flush && !self.read_only {
            return Err(Failure::Usage(
                "flushes are not ignored for a durable volume, which is there to outlive a crash: use --flush honour, \
                 whatever the configuration says"
                    .into(),
            ));
        }
        Ok(Options { read_only: self.read_only, discard: self.discard != Some(Switch::Off), flush })
    }

    /// # Errors
    /// [`Failure::Usage`] for one that this processor cannot do.
    pub(super) fn implementation(&self) -> Result<Implementation, Failure> {
        choose(self.cipher, &Implementation::available().collect::<Vec<_>>())
    }
}

fn choose(cipher: Option<CipherCode>, available: &[Implementation]) -> Result<Implementation, Failure> {
    let wanted = match cipher {
        None | Some(CipherCode::Auto) => Implementation::fastest(),
        Some(CipherCode::AwsLc) => Implementation::AwsLc,
        Some(CipherCode::Vaes) => Implementation::Vaes,
        Some(CipherCode::Portable) => Implementation::Portable,
    };
    if !available.contains(&wanted) {
        return Err(Failure::Usage(format!(
            "this processor cannot do --cipher {}, which needs AES, VAES, VPCLMULQDQ and AVX2: use --cipher auto, for \
                 the fastest that it can, whatever the configuration says",
            wanted.name()
        )));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_processor_cannot_do_is_refused() {
        let both = [Implementation::AwsLc, Implementation::Portable];
        let Err(Failure::Usage(message)) = choose(Some(CipherCode::Vaes), &both) else { panic!("accepted") };
        assert!(message.contains("--cipher vaes") && message.contains("--cipher auto"), "{message}");
        assert_eq!(choose(Some(CipherCode::Portable), &both).unwrap(), Implementation::Portable);
        let all = [&both[..], &[Implementation::Vaes]].concat();
        assert_eq!(choose(Some(CipherCode::Vaes), &all).unwrap(), Implementation::Vaes);
        for cipher in [None, Some(CipherCode::Auto)] {
            assert_eq!(choose(cipher, &all).unwrap(), Implementation::fastest());
        }
    }
}

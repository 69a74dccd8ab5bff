//! The configuration file: what holds where neither a flag nor a variable says otherwise.
//!
//! TOML, read once at the start. What is not known is refused and not passed over: a misspelt key in a file that
//! chooses the KMS key would otherwise mean that data are encrypted under another one. So is a file that somebody
//! else could have written. docs/configuration.md has every key.

mod choices;
mod file;
mod values;

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

pub use choices::{Cipher, Flush, KeyUnusable, TlsMode};
pub use file::FileError;
pub use values::{
    AbsolutePath, BackingText, ClientName, ClientNames, Context, Count, Interval, Level, Names,
};
pub use values::{ProviderText, Seconds, Sector, SocketMode, Text};

/// A value, and where in the file it stands; `None` if the file does not name it.
pub type Setting<T> = Option<Spanned<T>>;

/// Where the file is looked for if none is named.
pub const DEFAULT_PATH: &str = "/etc/sealblk/sealblk.toml";

/// Why a configuration file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read, or may not be trusted.
    #[error("configuration file {}: {error}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What came back.
        error: FileError,
    },
    /// What stands in it.
    #[error("{}, line {line}: {}{message}", .path.display(), .key.as_ref().map(|key| format!("{key}: ")).unwrap_or_default())]
    Content {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// `section.key`, if a key is to blame.
        key: Option<String>,
        /// What is wrong, and what is allowed.
        message: String,
    },
}

/// A file's settings.
#[derive(Debug, Default)]
pub struct Config {
    path: Option<PathBuf>,
    text: String,
    /// What the file says.
    pub settings: Settings,
}

/// Where a setting stands.
#[derive(Clone, Debug)]
pub struct Place {
    path: PathBuf,
    line: usize,
    key: &'static str,
}

impl Place {
    /// The refusal of what stands there.
    pub fn refused(&self, message: impl Into<String>) -> ConfigError {
        let (path, line, key) = (self.path.clone(), self.line, Some(self.key.into()));
        ConfigError::Content { path, line, key, message: message.into() }
    }
}

/// The file's keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Directory for journals and the embedded KMS.
    pub state_dir: Setting<AbsolutePath>,
    /// Log level.
    pub log: Setting<Level>,
    /// `[kms]`.
    pub kms: Kms,
    /// `[encryption]`.
    pub encryption: Encryption,
    /// `[defaults]`.
    pub defaults: Defaults,
    /// `[watch]`.
    pub watch: Watch,
    /// `[sockets]`.
    pub sockets: Sockets,
    /// `[limits]`.
    pub limits: Limits,
    /// `[tls]`.
    pub tls: Tls,
}

/// Which KMS, and how it is reached.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Kms {
    /// `local`, `local:DIR` or `aws`.
    pub provider: Setting<ProviderText>,
    /// AWS region.
    pub region: Setting<Text>,
    /// AWS KMS endpoint.
    pub endpoint: Setting<Text>,
    /// AWS STS endpoint.
    pub sts_endpoint: Setting<Text>,
    /// AWS profile for the calls that provision.
    pub provisioner_profile: Setting<Text>,
    /// AWS profile for Decrypt.
    pub host_profile: Setting<Text>,
    /// For one attempt of a call, 1 to 300 seconds.
    pub attempt_timeout: Setting<Seconds<300>>,
    /// For a call with all its retries, 1 to 3600 seconds.
    pub deadline: Setting<Seconds<3600>>,
}

/// What every volume's key is made with, unless the volume says otherwise.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Encryption {
    /// The KMS key; empty for the embedded KMS's own.
    pub key: Setting<String>,
    /// The encryption context.
    pub context: Setting<Context>,
    /// Principal that may unwrap.
    pub grantee: Setting<Text>,
    /// Principal that may retire the grant.
    pub retiring: Setting<Text>,
    /// Whether calls are tried dry first.
    pub preflight: Setting<bool>,
}

/// What every volume is made with, unless it says otherwise.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Defaults {
    /// Where the ciphertext lies.
    pub backing: Setting<BackingText>,
    /// The unit of encryption.
    pub sector_size: Setting<Sector>,
    /// Whether holes are punched for TRIM and WRITE_ZEROES.
    pub discard: Setting<bool>,
    /// Whether the backing is read and written past the page cache.
    pub direct: Setting<bool>,
    /// What a flush does.
    pub flush: Setting<Flush>,
    /// Code that enciphers.
    pub cipher: Setting<Cipher>,
}

/// Watching the KMS key of a volume that is served.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Watch {
    /// How often the key is looked at.
    pub interval: Setting<Interval>,
    /// What is done once it cannot be used any more.
    pub when_key_unusable: Setting<KeyUnusable>,
}

/// Unix sockets of volumes.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Sockets {
    /// Mode of their files.
    pub mode: Setting<SocketMode>,
    /// Whom the files are given to.
    pub owner: Setting<Text>,
    /// Who may connect besides.
    pub allow_users: Setting<Names>,
}

/// How many clients there may be.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Limits {
    /// Connections at once.
    pub connections: Setting<Count>,
    /// Connections of one peer at once.
    pub connections_per_peer: Setting<Count>,
}

/// TLS on NBD.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct Tls {
    /// When it is spoken.
    pub mode: Setting<TlsMode>,
    /// The server's certificate.
    pub cert: Setting<AbsolutePath>,
    /// Its private key.
    pub key: Setting<AbsolutePath>,
    /// CAs of clients.
    pub client_ca: Setting<AbsolutePath>,
    /// Names of clients.
    pub allow: Setting<ClientNames>,
}

impl Config {
    /// Reads `path`; without one, [`DEFAULT_PATH`] if it exists. An empty path and `none` mean no file.
    ///
    /// # Errors
    /// [`ConfigError::File`] for a named file that is not there, for what is no regular file, is larger than 1 MiB,
    /// is not UTF-8, or could have been written by others than root and the caller; [`ConfigError::Content`] for
    /// what is not TOML, for unknown keys and for wrong values.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, named) = match path {
            Some(path) if path.as_os_str().is_empty() || path == Path::new("none") => {
                return Ok(Self::default());
            }
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        match file::read(path) {
            Ok(text) => Self::parse(path, text),
            Err(FileError::NotFound) if !named => Ok(Self::default()),
            Err(error) => Err(ConfigError::File { path: path.into(), error }),
        }
    }

    /// Reads `text`, the content of `path`.
    ///
    /// # Errors
    /// [`ConfigError::Content`].
    pub fn parse(path: &Path, text: String) -> Result<Self, ConfigError> {
        match toml::from_str(&text) {
            Ok(settings) => Ok(Self { path: Some(path.into()), text, settings }),
            Err(error) => Err(content_error(path, &text, error)),
        }
    }

    /// The file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Where `setting`, whose name is `key`, stands.
    pub fn place<T>(&self, key: &'static str, setting: &Spanned<T>) -> Place {
        Place { path: self.path.clone().unwrap_or_default(), line: self.line(setting), key }
    }

    /// The line on which a setting's value starts, counted from 1.
    pub fn line<T>(&self, setting: &Spanned<T>) -> usize {
        line_of(&self.text, &setting.span())
    }
}

fn line_of(text: &str, span: &Range<usize>) -> usize {
    text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
}

fn content_error(path: &Path, text: &str, mut error: toml::de::Error) -> ConfigError {
    let line = error.span().map_or(1, |span| line_of(text, &span));
    let message = error.message().to_owned();
    // Without the text, the crate's own rendering ends in "in `section.key`", which it tells by no other way.
    error.set_input(None);
    let rendered = error.to_string();
    let key = rendered.strip_prefix(&message).and_then(|rest| rest.trim().strip_prefix("in `"));
    let key = key.and_then(|key| key.strip_suffix('`')).map(printable);
    // Rust's name for a type says nothing to a user.
    let message = printable(&message).replace("expected i64", "expected a whole number");
    ConfigError::Content { path: path.into(), line, key, message }
}

/// What a file holds goes to a terminal only in one line and without control characters.
fn printable(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines
        .join("; ")
        .chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests;

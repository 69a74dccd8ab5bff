//! Values that are one of a few words.

use serde::Deserialize;

/// When TLS is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    /// Never.
    Off,
    /// With clients that ask for it.
    On,
    /// With all.
    Require,
}

/// Code that enciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cipher {
    /// The fastest on this processor.
    Auto,
    /// AWS-LC.
    AwsLc,
    /// VAES, on vectors of 512 or 256 bits.
    Vaes,
    /// Plain Rust.
    Portable,
}

/// What a flush does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flush {
    /// Data reaches the disk before it is answered.
    Honour,
    /// It is answered at once.
    Ignore,
}

/// What is done with a volume whose KMS key cannot be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyUnusable {
    /// It goes on.
    Keep,
    /// It refuses writes.
    Freeze,
    /// It ends.
    Detach,
}

//! Types of values. Each says what it takes when it is given something else.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use tracing::level_filters::LevelFilter;

use crate::geometry::SectorSize;
use crate::kms::EncryptionContext;

/// A string that is not empty and has no control characters, 4096 bytes at most.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Text(pub String);

impl TryFrom<String> for Text {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text {
            text if text.is_empty() => Err("must not be empty; leave the key out for the default"),
            text if text.len() > 4096 => Err("has more than 4096 bytes"),
            text if text.contains(char::is_control) => Err("has control characters in it"),
            text => Ok(Self(text)),
        }
    }
}

/// A path from the root: what stands in a file does not depend on where a process was started.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Text")]
pub struct AbsolutePath(pub PathBuf);

impl TryFrom<Text> for AbsolutePath {
    type Error = String;

    fn try_from(Text(text): Text) -> Result<Self, String> {
        if text.starts_with('/') {
            Ok(Self(text.into()))
        } else {
            Err(format!("{text:?} is not an absolute path"))
        }
    }
}

/// `memory`, or a directory, file or block device by its absolute path.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Text")]
pub struct BackingText(pub String);

impl TryFrom<Text> for BackingText {
    type Error = String;

    fn try_from(Text(text): Text) -> Result<Self, String> {
        if text == "memory" || text.starts_with('/') {
            Ok(Self(text))
        } else {
            Err(format!("{text:?} is neither `memory` nor an absolute path"))
        }
    }
}

/// `local`, `local:DIR` or `aws`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Text")]
pub struct ProviderText(pub String);

impl TryFrom<Text> for ProviderText {
    type Error = String;

    fn try_from(Text(text): Text) -> Result<Self, String> {
        if text == "local" || text == "aws" || text.starts_with("local:/") {
            Ok(Self(text))
        } else {
            Err(format!("{text:?} is neither `local`, `local:DIR` (an absolute path) nor `aws`"))
        }
    }
}

/// A log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Level(pub LevelFilter);

impl TryFrom<String> for Level {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let level = match text.as_str() {
            "off" => LevelFilter::OFF,
            "error" => LevelFilter::ERROR,
            "warn" => LevelFilter::WARN,
            "info" => LevelFilter::INFO,
            "debug" => LevelFilter::DEBUG,
            "trace" => LevelFilter::TRACE,
            _ => {
                return Err(format!(
                    "{text:?} is none of `off`, `error`, `warn`, `info`, `debug` and `trace`"
                ));
            }
        };
        Ok(Self(level))
    }
}

/// Whole seconds, 1 to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Seconds<const MAX: u64>(pub u64);

impl<const MAX: u64> TryFrom<i64> for Seconds<MAX> {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        let seconds = u64::try_from(number).ok().filter(|seconds| (1..=MAX).contains(seconds));
        seconds.map(Self).ok_or_else(|| format!("{number} is not a number of seconds from 1 to {MAX}"))
    }
}

/// How many, 1 to 100,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Count(pub u32);

impl TryFrom<i64> for Count {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        let count = u32::try_from(number).ok().filter(|count| (1..=100_000).contains(count));
        count.map(Self).ok_or_else(|| format!("{number} is not a number from 1 to 100000"))
    }
}

/// Permission bits in octal, `0` to `0777`. A string: as numbers, `660` and `0o660` would be different ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMode(pub u32);

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| plain && *mode <= 0o777);
        mode.map(Self).ok_or_else(|| format!("{text:?} is not a mode in octal from 0000 to 0777"))
    }
}

impl<'de> Deserialize<'de> for SocketMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ModeVisitor)
    }
}

struct ModeVisitor;

impl Visitor<'_> for ModeVisitor {
    type Value = SocketMode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mode in octal as a string, like \"0660\" with its quotes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SocketMode, E> {
        text.parse().map_err(E::custom)
    }
}

/// A list of strings, each as [`Text`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Vec<Text>")]
pub struct Names(pub Vec<String>);

impl From<Vec<Text>> for Names {
    fn from(names: Vec<Text>) -> Self {
        Self(names.into_iter().map(|Text(name)| name).collect())
    }
}

/// A name that a client's certificate may have: a DNS name, a URI, an e-mail address or a common name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Text")]
pub struct ClientName(pub String);

impl TryFrom<Text> for ClientName {
    type Error = String;

    /// Refuses what would never keep anybody out or let anybody in as it was meant.
    fn try_from(Text(text): Text) -> Result<Self, String> {
        let address = text.trim_start_matches("IP:").trim_start_matches("IP Address:");
        let address = address.trim_start_matches('[').trim_end_matches(']');
        if let Some(prefix) = notation(&text) {
            return Err(format!("{text:?} has {prefix:?} before the name; leave that out"));
        }
        if is_list(&text) {
            return Err(format!(
                "{text:?} would be one name with a comma in it; for several, give --tls-allow for each, or a list in \
                 the file"
            ));
        }
        let why = if text.trim() != text {
            "has spaces around it"
        } else if is_host(&text) && (text.starts_with('.') || text.ends_with('.')) {
            "begins or ends with a dot, which no DNS name in a certificate does"
        } else if text.contains('*') {
            "has a wildcard, and names are compared as a whole"
        } else if address.parse::<IpAddr>().is_ok() {
            "is an IP address, and those are not compared"
        } else {
            return Ok(Self(text));
        };
        Err(format!("{text:?} {why}; give a whole DNS name, URI, e-mail address or common name"))
    }
}

impl FromStr for ClientName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("must not be empty; leave the option out to allow any name".into());
        }
        Text::try_from(text.to_owned())?.try_into()
    }
}

/// What stands before a name where `openssl` prints it.
fn notation(text: &str) -> Option<&str> {
    ["DNS:", "URI:", "email:", "CN=", "CN =", "/CN="]
        .into_iter()
        .find_map(|prefix| text.get(..prefix.len()).filter(|start| start.eq_ignore_ascii_case(prefix)))
}

/// Whether it can be meant as a DNS name only.
fn is_host(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

/// Whether it can be meant as several names only. A common name may have a comma, as in "Doe, Jane".
fn is_list(text: &str) -> bool {
    let is_name = |part: &str| part.contains(['.', '@']) && !part.contains([' ', '/']);
    text.contains(',') && text.split(',').all(|part| is_name(part.trim()))
}

/// A list of one or more names: an empty one would switch off what it seems to make strict.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<ClientName>")]
pub struct ClientNames(pub Vec<ClientName>);

impl TryFrom<Vec<ClientName>> for ClientNames {
    type Error = &'static str;

    fn try_from(names: Vec<ClientName>) -> Result<Self, Self::Error> {
        if names.is_empty() {
            return Err(
                "must not be an empty list, which allows nobody; leave the key out to allow any name",
            );
        }
        Ok(Self(names))
    }
}

/// 4096 or 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Sector(pub SectorSize);

impl TryFrom<i64> for Sector {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match number {
            512 => Ok(Self(SectorSize::B512)),
            4096 => Ok(Self(SectorSize::B4096)),
            _ => Err(format!("{number} is neither 4096 nor 512")),
        }
    }
}

/// How often something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Interval {
    /// Never.
    Off,
    /// Every so often: whole seconds, 1 second to 24 hours.
    Every(Duration),
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Every(interval) => write!(f, "{}s", interval.as_secs()),
        }
    }
}

impl TryFrom<String> for Interval {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let units = [('s', 1), ('m', 60), ('h', 3600)];
        let seconds = units.iter().find_map(|(unit, factor)| {
            let digits = text.strip_suffix(*unit)?;
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let number: u64 = digits.parse().ok().filter(|_| plain)?;
            number.checked_mul(*factor).filter(|seconds| (1..=86_400).contains(seconds))
        });
        let seconds = seconds.ok_or_else(|| {
            format!("{text:?} is neither `off` nor a time from `1s` to `24h` (units s, m, h)")
        })?;
        Ok(Self::Every(Duration::from_secs(seconds)))
    }
}

/// An encryption context: a table of strings, or Spark's form `key1:value1,key2:value2`. Empty means none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context(pub EncryptionContext);

impl<'de> Deserialize<'de> for Context {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContextVisitor)
    }
}

struct ContextVisitor;

impl<'de> Visitor<'de> for ContextVisitor {
    type Value = Context;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of strings, or a string like \"key1:value1,key2:value2\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Context, E> {
        let mut context = EncryptionContext::default();
        if !text.is_empty() {
            context.insert_text(text).map_err(E::custom)?;
        }
        Ok(Context(context))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Context, A::Error> {
        let mut context = EncryptionContext::default();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            context.insert_pair(&key, &value).map_err(de::Error::custom)?;
        }
        Ok(Context(context))
    }
}

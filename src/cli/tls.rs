//! Flags about TLS.

use std::path::PathBuf;
use std::sync::Arc;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, ValueEnum};

use super::Failure;
use super::options::fall_back;
use crate::config::{AbsolutePath, Config, SomeNames, TlsMode as FileMode};
use crate::nbd::server::{Tls, TlsMode, TlsSettings};

/// When TLS is spoken, and with what.
#[derive(Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsOptions {
    /// Speak TLS: `off`, `on` (with clients that ask for it) or `require` [default: require with --tls-cert, else off]
    #[arg(long, value_name = "off|on|require")]
    tls: Option<Mode>,

    /// The server's certificate and those between it and its CA, as PEM. Files are read anew when they change
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,

    /// The certificate's private key, as PEM, not encrypted
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,

    /// CAs of clients, as PEM: under TLS, a client must have a certificate that one of them has signed
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,

    /// Name that a client's certificate must have: a DNS name, URI or e-mail address among its alternative names, or
    /// the subject's common name if it has none of these (repeatable; one of them will do) [default: any]
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    tls_allow: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Off,
    On,
    Require,
}

impl TlsOptions {
    /// Takes from the file what no flag said. With `--tls off`, nothing; and flags of certificates go before a file's
    /// `off`, since they mean nothing without TLS.
    pub(super) fn inherit(&mut self, config: &Config) {
        let file = &config.settings.tls;
        let path = |AbsolutePath(path): &AbsolutePath| path.clone();
        let named = self.tls_cert.is_some() || self.tls_key.is_some() || self.tls_client_ca.is_some();
        let named = named || !self.tls_allow.is_empty();
        match file.mode.as_ref().map(toml::Spanned::get_ref) {
            _ if self.tls.is_some() => {}
            Some(FileMode::Off) if !named => self.tls = Some(Mode::Off),
            Some(FileMode::On) => self.tls = Some(Mode::On),
            Some(FileMode::Require) => self.tls = Some(Mode::Require),
            Some(FileMode::Off) | None => {}
        }
        if self.tls == Some(Mode::Off) {
            return;
        }
        fall_back(&mut self.tls_cert, &file.cert, path);
        fall_back(&mut self.tls_key, &file.key, path);
        fall_back(&mut self.tls_client_ca, &file.client_ca, path);
        if let Some(SomeNames(names)) = file.allow.as_ref().map(toml::Spanned::get_ref)
            && self.tls_allow.is_empty()
        {
            self.tls_allow.clone_from(names);
        }
    }

    /// Whether clients get nowhere without TLS.
    pub(super) fn is_required(&self) -> bool {
        self.mode() == Mode::Require
    }

    /// What clients are met with, its files read.
    pub(super) fn load(&self) -> Result<Option<Arc<Tls>>, Failure> {
        let missing = |why: &str| Err(Failure::Usage(why.into()));
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return missing("a certificate and its key belong together: give both --tls-cert and --tls-key");
        }
        if self.tls_client_ca.is_some() && self.tls_cert.is_none() {
            return missing(
                "--tls-client-ca is for a server that has a certificate itself: give --tls-cert and --tls-key",
            );
        }
        if !self.tls_allow.is_empty() && self.tls_client_ca.is_none() {
            return missing(
                "--tls-allow is about clients' certificates: give --tls-client-ca, which says who signs them",
            );
        }
        if self.tls_client_ca.is_some() && !self.is_required() {
            return missing(
                "--tls-client-ca and --tls-allow keep nobody out unless TLS is required, since a client need not ask \
                 for it: give --tls require, or leave them out",
            );
        }
        let mode = match self.mode() {
            Mode::Off => return Ok(None),
            Mode::On => TlsMode::On,
            Mode::Require => TlsMode::Require,
        };
        let (Some(cert), Some(key)) = (self.tls_cert.clone(), self.tls_key.clone()) else {
            return missing(
                "--tls on and --tls require need a certificate and its key: give --tls-cert and --tls-key",
            );
        };
        let (client_ca, allow) = (self.tls_client_ca.clone(), self.tls_allow.clone());
        Ok(Some(Arc::new(Tls::load(TlsSettings { mode, cert, key, client_ca, allow })?)))
    }

    fn mode(&self) -> Mode {
        self.tls.unwrap_or(if self.tls_cert.is_some() { Mode::Require } else { Mode::Off })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        tls: TlsOptions,
    }

    /// Flags over a file that says `file` in its section.
    fn tls(flags: &[&str], file: &str) -> TlsOptions {
        let config = Config::parse(Path::new("x.toml"), format!("[tls]\n{file}")).unwrap();
        let mut tls = Line::parse_from([&["x"], flags].concat()).tls;
        tls.inherit(&config);
        tls
    }

    const PAIR: [&str; 2] = ["--tls-cert=/c", "--tls-key=/k"];

    #[test]
    fn clients_are_known_only_where_tls_is_required() {
        let known = "cert = '/c'\nkey = '/k'\nclient_ca = '/a'\nallow = ['n']";
        let ca = [&PAIR[..], &["--tls-client-ca=/a"]].concat();
        for (flags, file) in [
            ([&ca[..], &["--tls=on"]].concat(), ""),
            ([&ca[..], &["--tls=off"]].concat(), ""),
            ([&ca[..], &["--tls=on", "--tls-allow=n"]].concat(), ""),
            (ca.clone(), "mode = 'on'"),
            (vec!["--tls=on"], known),
        ] {
            match tls(&flags, file).load() {
                Err(Failure::Usage(why)) => {
                    assert!(why.contains("--tls require"), "{flags:?}, {file}: {why}");
                }
                other => panic!("{flags:?}, {file}: {:?}", other.err()),
            }
        }
        // The files are asked for, and are not there.
        assert!(matches!(tls(&[], known).load(), Err(Failure::Tls(_))));
        assert!(tls(&["--tls=off"], known).load().unwrap().is_none());
        assert!(tls(&[], &format!("mode = 'off'\n{known}")).load().unwrap().is_none());
    }

    #[test]
    fn flags_of_certificates_go_before_a_files_off() {
        assert!(tls(&PAIR, "mode = 'off'").is_required());
        assert!(matches!(tls(&PAIR[..1], "mode = 'off'").load(), Err(Failure::Usage(_))));
        assert!(!tls(&PAIR, "mode = 'on'").is_required());
        assert!(!tls(&["--tls=off"], "mode = 'require'").is_required());
    }

    #[test]
    fn an_empty_name_of_a_client_is_refused() {
        assert!(Line::try_parse_from(["x", "--tls-allow="]).is_err());
    }
}

//! Flags about TLS.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::Failure;
use super::options::fall_back;
use crate::config::{AbsolutePath, Config, Names, TlsMode as FileMode};
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
    /// the subject's common name (repeatable; one of them will do) [default: any]
    #[arg(long, value_name = "NAME")]
    tls_allow: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Off,
    On,
    Require,
}

impl TlsOptions {
    /// Takes from the file what no flag said.
    pub(super) fn inherit(&mut self, config: &Config) {
        let file = &config.settings.tls;
        let path = |AbsolutePath(path): &AbsolutePath| path.clone();
        fall_back(&mut self.tls, &file.mode, |mode| match mode {
            FileMode::Off => Mode::Off,
            FileMode::On => Mode::On,
            FileMode::Require => Mode::Require,
        });
        fall_back(&mut self.tls_cert, &file.cert, path);
        fall_back(&mut self.tls_key, &file.key, path);
        fall_back(&mut self.tls_client_ca, &file.client_ca, path);
        if let Some(Names(names)) = file.allow.as_ref().map(toml::Spanned::get_ref)
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

//! Flags about TLS.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::Failure;
use super::config::inherit;
use crate::config::{AbsolutePath, ClientName, ClientNames, Config, Place, TlsMode as FileMode};
use crate::nbd::server::{Tls, TlsMode, TlsSettings};

/// When TLS is spoken, and with what.
#[derive(Default, Args)]
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
    #[arg(long, value_name = "NAME")]
    tls_allow: Vec<ClientName>,

    /// Of what the file said and no flag.
    #[arg(skip)]
    places: Places,
}

/// Where settings stand that came from the file.
#[derive(Clone, Debug, Default)]
struct Places {
    mode: Option<Place>,
    cert: Option<Place>,
    key: Option<Place>,
    client_ca: Option<Place>,
    allow: Option<Place>,
}

/// What settings are called where one of them was given.
struct Words {
    cert: &'static str,
    key: &'static str,
    client_ca: &'static str,
    allow: &'static str,
    require: &'static str,
}

const FLAGS: Words = Words {
    cert: "--tls-cert",
    key: "--tls-key",
    client_ca: "--tls-client-ca",
    allow: "--tls-allow",
    require: "--tls require",
};

const KEYS: Words = Words {
    cert: "tls.cert",
    key: "tls.key",
    client_ca: "tls.client_ca",
    allow: "tls.allow",
    require: "tls.mode = \"require\"",
};

/// In the words of the file for a setting that came from there.
fn refused(place: Option<&Place>, message: impl Fn(&Words) -> String) -> Failure {
    match place {
        Some(place) => place.refused(message(&KEYS)).into(),
        None => Failure::Usage(message(&FLAGS)),
    }
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
        let off = file.mode.as_ref().is_some_and(|mode| *mode.get_ref() == FileMode::Off);
        if !(off && named) {
            self.places.mode = inherit(&mut self.tls, config, "tls.mode", &file.mode, Mode::of);
        }
        if self.tls == Some(Mode::Off) {
            return;
        }
        self.places.cert = inherit(&mut self.tls_cert, config, "tls.cert", &file.cert, path);
        self.places.key = inherit(&mut self.tls_key, config, "tls.key", &file.key, path);
        self.places.client_ca =
            inherit(&mut self.tls_client_ca, config, "tls.client_ca", &file.client_ca, path);
        if let Some(setting) = file.allow.as_ref().filter(|_| self.tls_allow.is_empty()) {
            let ClientNames(names) = setting.get_ref();
            self.tls_allow.clone_from(names);
            self.places.allow = Some(config.place("tls.allow", setting));
        }
    }

    /// Whether clients get nowhere without TLS.
    pub(super) fn is_required(&self) -> bool {
        self.mode() == Mode::Require
    }

    /// What clients are met with, its files read.
    pub(super) fn load(&self) -> Result<Option<Arc<Tls>>, Failure> {
        self.require_consistent()?;
        let mode = match self.mode() {
            Mode::Off => return Ok(None),
            Mode::On => TlsMode::On,
            Mode::Require => TlsMode::Require,
        };
        let (Some(cert), Some(key)) = (self.tls_cert.clone(), self.tls_key.clone()) else {
            return Err(refused(self.places.mode.as_ref(), |Words { cert, key, .. }| {
                format!("TLS needs a certificate and its key: give {cert} and {key}")
            }));
        };
        let client_ca = self.tls_client_ca.clone();
        let allow = self.tls_allow.iter().map(|ClientName(name)| name.clone()).collect();
        Ok(Some(Arc::new(Tls::load(TlsSettings { mode, cert, key, client_ca, allow })?)))
    }

    /// That nothing was given which means nothing without something else.
    fn require_consistent(&self) -> Result<(), Failure> {
        let places = &self.places;
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(refused(
                places.cert.as_ref().or(places.key.as_ref()),
                |Words { cert, key, .. }| {
                    format!("a certificate and its key belong together: give both {cert} and {key}")
                },
            ));
        }
        if self.tls_client_ca.is_some() && self.tls_cert.is_none() {
            return Err(refused(places.client_ca.as_ref(), |Words { cert, key, client_ca, .. }| {
                format!("{client_ca} is for a server that has a certificate itself: give {cert} and {key}")
            }));
        }
        if !self.tls_allow.is_empty() && self.tls_client_ca.is_none() {
            return Err(refused(places.allow.as_ref(), |Words { client_ca, allow, .. }| {
                format!("{allow} is about clients' certificates: give {client_ca}, which says who signs them")
            }));
        }
        if self.tls_client_ca.is_some() && !self.is_required() {
            return Err(refused(places.mode.as_ref(), |Words { client_ca, allow, require, .. }| {
                format!(
                    "{client_ca} and {allow} keep nobody out unless TLS is required, since a client need not ask for \
                     it: give {require}, or leave them out"
                )
            }));
        }
        Ok(())
    }

    fn mode(&self) -> Mode {
        self.tls.unwrap_or(if self.tls_cert.is_some() { Mode::Require } else { Mode::Off })
    }

    /// The mode in force, in one word.
    pub(super) fn mode_name(&self) -> &'static str {
        match self.mode() {
            Mode::Off => "off",
            Mode::On => "on",
            Mode::Require => "require",
        }
    }
}

impl Mode {
    fn of(mode: &FileMode) -> Self {
        match mode {
            FileMode::Off => Self::Off,
            FileMode::On => Self::On,
            FileMode::Require => Self::Require,
        }
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
                Err(Failure::Usage(why)) if file != "mode = 'on'" => {
                    assert!(why.contains("--tls require"), "{flags:?}, {file}: {why}");
                }
                Err(Failure::Config(why)) if file == "mode = 'on'" => {
                    assert!(why.to_string().contains("tls.mode = \"require\""), "{flags:?}, {file}: {why}");
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
    fn what_is_wrong_is_named_by_who_said_it() {
        for (flags, file, words) in [
            (&[][..], "cert = '/c'", &["x.toml, line 2: tls.cert: ", "both tls.cert and tls.key"][..]),
            (&[], "\nkey = '/k'", &["x.toml, line 3: tls.key: ", "both tls.cert and tls.key"]),
            (&[], "client_ca = '/a'", &["line 2: tls.client_ca: ", "give tls.cert and tls.key"]),
            (&[], "allow = ['n']", &["line 2: tls.allow: ", "give tls.client_ca"]),
            (&[], "mode = 'require'", &["line 2: tls.mode: ", "give tls.cert and tls.key"]),
            (&["--tls=on"], "", &["give --tls-cert and --tls-key"]),
            (&["--tls-cert=/c"], "mode = 'off'", &["both --tls-cert and --tls-key"]),
            (&["--tls-allow=n"], "cert = '/c'\nkey = '/k'", &["--tls-allow", "--tls-client-ca"]),
        ] {
            let error = tls(flags, file).load().err().unwrap();
            assert_eq!(error.code(), 2);
            let said = error.to_string();
            assert!(words.iter().all(|word| said.contains(word)), "{flags:?}, {file:?}: {said}");
            assert_eq!(said.contains("--tls"), !flags.is_empty(), "{said}");
        }
    }

    #[test]
    fn names_that_no_client_can_have_are_refused() {
        for (name, why) in [
            ("", "leave the option out"),
            (" ", "spaces"),
            ("*.example", "wildcard"),
            ("10.0.0.1", "IP address"),
            ("DNS:a.example", "leave that out"),
            ("a.example,b.example", "give --tls-allow for each"),
        ] {
            let said = Line::try_parse_from(["x", &format!("--tls-allow={name}")]).err().unwrap().to_string();
            assert!(said.contains(why), "{name:?}: {said}");
        }
    }
}

//! `sealblk config`: the settings in force.

use std::path::Path;
use std::process::ExitCode;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use serde_json::{Map, Value, json};
use toml::Spanned;

use super::clients::ClientOptions;
use super::options::{DEFAULT_KEY, KmsOptions, Switch};
use super::run::{self, BACKING};
use super::tls::TlsOptions;
use super::{Failure, output};
use crate::config::{
    AbsolutePath, Cipher, ClientName, Config, Count, Flush, Interval, KeyUnusable, Place, Setting, SocketMode,
};
use crate::secret::harden_process;

/// Takes the file's setting `key` if no flag gave one, and tells where it stands.
pub(super) fn inherit<T, F>(
    flag: &mut Option<T>,
    config: &Config,
    key: &'static str,
    file: &Setting<F>,
    convert: impl Fn(&F) -> T,
) -> Option<Place> {
    let setting = file.as_ref().filter(|_| flag.is_none())?;
    *flag = Some(convert(setting.get_ref()));
    Some(config.place(key, setting))
}

/// Flags of `run` about the key may be given, and count.
#[derive(Args)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    kms: KmsOptions,
}

/// The table under way.
struct Table<'a> {
    config: &'a Config,
    matches: &'a ArgMatches,
    rows: Vec<(&'static str, Value, String)>,
}

impl Table<'_> {
    /// Adds a setting that a flag may give.
    fn add<T, F>(
        &mut self,
        name: &'static str,
        flag: &str,
        value: Option<T>,
        file: &Setting<F>,
        default: &str,
    ) where
        Value: From<T>,
    {
        let id = flag.replace('-', "_");
        let source = match self.matches.value_source(&id) {
            Some(ValueSource::CommandLine) => format!("flag --{flag}"),
            Some(ValueSource::EnvVariable) => format!("environment {}", variable(flag)),
            _ => self.file_or_default(file),
        };
        self.push(name, value, source, default);
    }

    /// Adds a setting that stands in the file or nowhere, or in `variable`.
    fn add_file<F>(
        &mut self,
        name: &'static str,
        variable: Option<(&str, String)>,
        file: &Setting<F>,
        show: impl Fn(&F) -> Value,
        default: &str,
    ) {
        let (value, source) = match variable {
            Some((name, value)) => (Some(value.into()), format!("environment {name}")),
            None => (file.as_ref().map(|value| show(value.get_ref())), self.file_or_default(file)),
        };
        self.push(name, value, source, default);
    }

    fn push<T>(&mut self, name: &'static str, value: Option<T>, source: String, default: &str)
    where
        Value: From<T>,
    {
        // Numbers and booleans are such in JSON, wherever they come from.
        let default = || match default {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        self.rows.push((name, value.map_or_else(default, Value::from), source));
    }

    fn file_or_default<F>(&self, file: &Setting<F>) -> String {
        file.as_ref().map_or_else(|| "default".into(), |setting| self.place(setting))
    }

    fn place<F>(&self, setting: &Spanned<F>) -> String {
        let path = self.config.path().unwrap_or(Path::new("")).display();
        format!("{path}:{}", self.config.line(setting))
    }

    /// Says what an empty key does to the rest.
    fn go_back_to_the_hosts_own(&mut self) {
        let reason = self.rows.iter().find(|row| row.0 == "encryption.key").map(|row| row.2.clone());
        let reason = format!("empty key: {}", reason.unwrap_or_default());
        for (name, value, source) in &mut self.rows {
            match *name {
                "kms.provider" => (*value, *source) = ("local".into(), reason.clone()),
                "encryption.key" => (*value, *source) = (DEFAULT_KEY.into(), reason.clone()),
                "encryption.grantee" | "encryption.retiring" if value.is_null() => *source = reason.clone(),
                _ => {}
            }
        }
    }
}

/// The variable of a flag.
fn variable(flag: &str) -> String {
    format!("SEALBLK_{}", flag.replace('-', "_").to_uppercase())
}

pub(super) fn config(
    mut args: ConfigArgs,
    config: &Config,
    matches: &ArgMatches,
    state: &Path,
    json: bool,
) -> Result<ExitCode, Failure> {
    args.kms.inherit(config);
    // What would be refused by `run` is refused here.
    args.kms.provider(state)?;
    let mut clients = ClientOptions::default();
    clients.inherit(config);
    clients.terms()?;
    clients.users()?;
    let tls = tls(config)?;
    run::require_startable(config)?;
    let matches = matches.subcommand_matches("config").unwrap_or(matches);
    let mut table = Table { config, matches, rows: Vec::new() };
    let settings = &config.settings;
    table.add("state_dir", "state-dir", Some(state.to_string_lossy().into_owned()), &settings.state_dir, "");
    let level = matches.get_one::<tracing::level_filters::LevelFilter>("log").copied();
    let level = level.or(settings.log.as_ref().map(|level| level.get_ref().0));
    table.add("log", "log", level.map(|level| level.to_string()), &settings.log, "warn");
    kms_rows(&mut table, &args.kms)?;
    volume_rows(&mut table);
    client_rows(&mut table);
    tls_rows(&mut table, &tls);
    if args.kms.is_hosts_own() {
        table.go_back_to_the_hosts_own();
    }
    print(&table.rows, json);
    Ok(ExitCode::SUCCESS)
}

/// What the file says of TLS, with its files read.
fn tls(config: &Config) -> Result<TlsOptions, Failure> {
    let mut tls = TlsOptions::default();
    tls.inherit(config);
    // Before the key is read.
    harden_process()
        .map_err(|error| Failure::Process { action: "forbid core dumps", source: error.into() })?;
    tls.load()?;
    Ok(tls)
}

fn kms_rows(table: &mut Table, flags: &KmsOptions) -> Result<(), Failure> {
    let (kms, encryption) = (&table.config.settings.kms, &table.config.settings.encryption);
    table.add("kms.provider", "kms", flags.kms.clone(), &kms.provider, "local");
    table.add("kms.region", "region", flags.region.clone(), &kms.region, "");
    table.add("kms.endpoint", "kms-endpoint", flags.kms_endpoint.clone(), &kms.endpoint, "");
    table.add("kms.sts_endpoint", "sts-endpoint", flags.sts_endpoint.clone(), &kms.sts_endpoint, "");
    let (provisioner, host) = (flags.provisioner_profile.clone(), flags.host_profile.clone());
    table.add("kms.provisioner_profile", "provisioner-profile", provisioner, &kms.provisioner_profile, "");
    table.add("kms.host_profile", "host-profile", host, &kms.host_profile, "");
    let attempt = flags.kms_attempt_timeout;
    table.add("kms.attempt_timeout", "kms-attempt-timeout", attempt, &kms.attempt_timeout, "10");
    table.add("kms.deadline", "kms-deadline", flags.kms_deadline, &kms.deadline, "60");
    table.add("encryption.key", "key", flags.key.clone(), &encryption.key, DEFAULT_KEY);
    let context: Map<String, Value> =
        flags.context()?.pairs().map(|(key, value)| (key.into(), value.into())).collect();
    table.add("encryption.context", "context", Some(Value::Object(context)), &encryption.context, "");
    table.add("encryption.grantee", "grantee", flags.grantee.clone(), &encryption.grantee, "");
    table.add("encryption.retiring", "retiring", flags.retiring.clone(), &encryption.retiring, "");
    let preflight = flags.preflight != Some(Switch::Off);
    table.add("encryption.preflight", "preflight", Some(preflight), &encryption.preflight, "");
    Ok(())
}

fn volume_rows(table: &mut Table) {
    let (defaults, watch) = (&table.config.settings.defaults, &table.config.settings.watch);
    let backing = std::env::var(BACKING).ok().map(|value| (BACKING, value));
    table.add_file("defaults.backing", backing, &defaults.backing, |text| text.0.clone().into(), "");
    let sector = |size: &crate::config::Sector| size.0.bytes().into();
    table.add_file("defaults.sector_size", None, &defaults.sector_size, sector, "4096");
    table.add_file("defaults.discard", None, &defaults.discard, |on| (*on).into(), "true");
    let flush = |flush: &Flush| match flush {
        Flush::Honour => "honour".into(),
        Flush::Ignore => "ignore".into(),
    };
    table.add_file("defaults.flush", None, &defaults.flush, flush, "honour");
    table.add_file("defaults.direct", None, &defaults.direct, |on| (*on).into(), "false");
    let cipher = |cipher: &Cipher| match cipher {
        Cipher::Auto => "auto".into(),
        Cipher::AwsLc => "aws-lc".into(),
        Cipher::Vaes => "vaes".into(),
        Cipher::Portable => "portable".into(),
    };
    table.add_file("defaults.cipher", None, &defaults.cipher, cipher, "auto");
    let interval = |interval: &Interval| match interval {
        Interval::Off => "off".into(),
        Interval::Every(duration) => format!("{}s", duration.as_secs()).into(),
    };
    table.add_file("watch.interval", None, &watch.interval, interval, "");
    let action = |action: &KeyUnusable| match action {
        KeyUnusable::Keep => "keep".into(),
        KeyUnusable::Freeze => "freeze".into(),
        KeyUnusable::Detach => "detach".into(),
    };
    table.add_file("watch.when_key_unusable", None, &watch.when_key_unusable, action, "");
}

fn client_rows(table: &mut Table) {
    let (sockets, limits) = (&table.config.settings.sockets, &table.config.settings.limits);
    // As a number, it would be shown in decimal.
    let mode = |mode: &SocketMode| format!("{:04o}", mode.0).into();
    table.add_file("sockets.mode", None, &sockets.mode, mode, "0600");
    table.add_file("sockets.owner", None, &sockets.owner, |text| text.0.clone().into(), "");
    table.add_file("sockets.allow_users", None, &sockets.allow_users, |users| users.0.clone().into(), "");
    let count = |count: &Count| count.0.into();
    table.add_file("limits.connections", None, &limits.connections, count, "1024");
    table.add_file("limits.connections_per_peer", None, &limits.connections_per_peer, count, "256");
}

fn tls_rows(table: &mut Table, options: &TlsOptions) {
    let tls = &table.config.settings.tls;
    let mode = options.mode_name();
    table.add_file("tls.mode", None, &tls.mode, |_| mode.into(), mode);
    let path = |path: &AbsolutePath| path.0.to_string_lossy().into_owned().into();
    table.add_file("tls.cert", None, &tls.cert, path, "");
    table.add_file("tls.key", None, &tls.key, path, "");
    table.add_file("tls.client_ca", None, &tls.client_ca, path, "");
    table.add_file(
        "tls.allow",
        None,
        &tls.allow,
        |names| names.0.iter().map(|ClientName(name)| name.as_str()).collect(),
        "",
    );
}

fn print(rows: &[(&'static str, Value, String)], json: bool) {
    for (name, value, source) in rows {
        if json {
            output::line(json!({ "setting": name, "value": value, "source": source }));
            continue;
        }
        let value = match value {
            Value::Null => "-".into(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        output::line(format!("{name:<25}  {value:<35}  {source}"));
    }
}

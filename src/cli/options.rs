//! Flags that several commands share, and what they default to.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::Failure;
use crate::config::{Config, Context, ProviderText, Seconds, Setting, Text};
use crate::envelope::{Document, KeyRequest, Layout};
use crate::geometry::{SectorSize, VolumeSize, parse_size};
use crate::kms::{EncryptionContext, KeyRef, Principal, Provider, ProviderKind, aws};

/// The embedded KMS makes it on first use.
pub(super) const DEFAULT_KEY: &str = "alias/sealblk";

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    On,
    Off,
}

impl From<bool> for Switch {
    fn from(on: bool) -> Self {
        if on { Self::On } else { Self::Off }
    }
}

/// Takes the file's setting if neither a flag nor a variable gave one.
pub(super) fn fall_back<T, F>(flag: &mut Option<T>, file: &Setting<F>, convert: impl Fn(&F) -> T) {
    if flag.is_none() {
        *flag = file.as_ref().map(|setting| convert(setting.get_ref()));
    }
}

/// Which KMS, and which key of it.
#[derive(Args)]
#[command(next_help_heading = "KMS")]
pub(super) struct KmsOptions {
    /// `local` (the embedded KMS; `local:DIR` with its directory) or `aws` [default: local]
    #[arg(long, env = "SEALBLK_KMS", value_name = "local[:DIR]|aws")]
    pub(super) kms: Option<String>,

    /// KMS key: id, ARN or alias/NAME; alias/sealblk is made on first use in the embedded KMS. '' goes back to that
    /// key, whatever --kms says [default: alias/sealblk]
    #[arg(long, env = "SEALBLK_KEY")]
    pub(super) key: Option<String>,

    /// Encryption context, KEY=VALUE (repeatable) or KEY:VALUE,KEY:VALUE; shown in clear in the KMS's event log.
    /// Takes the place of the file's context as a whole; '' means none
    #[arg(long, env = "SEALBLK_CONTEXT", value_name = "KEY=VALUE")]
    context: Vec<String>,

    /// The file's context, if no other was given.
    #[arg(skip)]
    file_context: Option<EncryptionContext>,

    /// Principal that may unwrap [default: the caller's role; in the embedded KMS its host]
    #[arg(long, value_name = "ARN")]
    pub(super) grantee: Option<String>,

    /// Principal that may retire the grant [default: the caller's role; in the embedded KMS its provisioner]
    #[arg(long, value_name = "ARN")]
    pub(super) retiring: Option<String>,

    /// Dry-run the calls that make the key and the grant before making them [default: on]
    #[arg(long, value_name = "on|off")]
    pub(super) preflight: Option<Switch>,

    /// AWS region
    #[arg(long, value_name = "REGION")]
    pub(super) region: Option<String>,

    /// AWS KMS endpoint; plain http only to loopback. AWS_ENDPOINT_URL and its like are ignored
    #[arg(long, env = "SEALBLK_KMS_ENDPOINT", value_name = "URL")]
    pub(super) kms_endpoint: Option<String>,

    /// AWS STS endpoint [default: the KMS endpoint if that is loopback]
    #[arg(long, env = "SEALBLK_STS_ENDPOINT", value_name = "URL")]
    pub(super) sts_endpoint: Option<String>,

    /// AWS profile for the calls that provision
    #[arg(long, value_name = "NAME")]
    pub(super) provisioner_profile: Option<String>,

    /// AWS profile for Decrypt
    #[arg(long, value_name = "NAME")]
    pub(super) host_profile: Option<String>,

    /// Seconds for one attempt of a KMS call
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=300))]
    pub(super) kms_attempt_timeout: Option<u64>,

    /// Seconds for a KMS call with all its retries
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) kms_deadline: Option<u64>,
}

impl KmsOptions {
    /// Takes from the file what no flag or variable said.
    pub(super) fn inherit(&mut self, config: &Config) {
        let (kms, encryption) = (&config.settings.kms, &config.settings.encryption);
        fall_back(&mut self.kms, &kms.provider, |ProviderText(text)| text.clone());
        fall_back(&mut self.key, &encryption.key, Clone::clone);
        fall_back(&mut self.preflight, &encryption.preflight, |on| Switch::from(*on));
        if self.context.is_empty() {
            fall_back(&mut self.file_context, &encryption.context, |Context(context)| context.clone());
        }
        let text = |Text(text): &Text| text.clone();
        if !self.is_hosts_own() {
            // The file's principals are those of its key, and the embedded KMS does not know them.
            fall_back(&mut self.grantee, &encryption.grantee, text);
            fall_back(&mut self.retiring, &encryption.retiring, text);
        }
        fall_back(&mut self.region, &kms.region, text);
        fall_back(&mut self.kms_endpoint, &kms.endpoint, text);
        fall_back(&mut self.sts_endpoint, &kms.sts_endpoint, text);
        fall_back(&mut self.provisioner_profile, &kms.provisioner_profile, text);
        fall_back(&mut self.host_profile, &kms.host_profile, text);
        fall_back(&mut self.kms_attempt_timeout, &kms.attempt_timeout, |Seconds(seconds)| *seconds);
        fall_back(&mut self.kms_deadline, &kms.deadline, |Seconds(seconds)| *seconds);
    }

    /// Whether an empty value asks for the key that the host owns, in its own embedded KMS.
    pub(super) fn is_hosts_own(&self) -> bool {
        self.key.as_deref() == Some("")
    }

    pub(super) fn provider(&self, state: &Path) -> Result<Provider, Failure> {
        let kms = if self.is_hosts_own() { "local" } else { self.kms.as_deref().unwrap_or("local") };
        self.provider_named(kms, state)
    }

    /// The KMS of an envelope, unless a flag names another; AWS's region is that of the key's ARN then.
    pub(super) fn provider_of(&self, document: &Document, state: &Path) -> Result<Provider, Failure> {
        let first = document.all_slots().next();
        let kind = first.map_or(ProviderKind::Local, |slot| slot.provider);
        let provider = self.provider_named(self.kms.as_deref().unwrap_or(kind.as_str()), state)?;
        Ok(self.in_own_region(provider, document))
    }

    /// Each KMS that an envelope names, reached as the flags say.
    pub(super) fn providers_of(&self, document: &Document, state: &Path) -> Result<Vec<Provider>, Failure> {
        let mut providers = vec![self.provider_of(document, state)?];
        for kind in [ProviderKind::Local, ProviderKind::Aws] {
            if providers[0].kind() != kind {
                let provider = self.provider_named(kind.as_str(), state)?;
                providers.push(self.in_own_region(provider, document));
            }
        }
        Ok(providers)
    }

    fn in_own_region(&self, provider: Provider, document: &Document) -> Provider {
        let own = document.all_slots().find(|slot| slot.provider == ProviderKind::Aws);
        match own {
            Some(slot) if self.region.is_none() => provider.for_key(slot.key.as_str()),
            _ => provider,
        }
    }

    /// A KMS by its name on the command line, reached as the other flags say.
    pub(super) fn provider_named(&self, kms: &str, state: &Path) -> Result<Provider, Failure> {
        match kms.split_once(':').unwrap_or((kms, "")) {
            ("local", "") => Ok(Provider::Local { directory: local_kms(state) }),
            ("local", directory) => Ok(Provider::Local { directory: absolute(Path::new(directory)) }),
            ("aws", "") => Ok(Provider::Aws(aws::Settings {
                region: self.region.clone(),
                endpoint: self.kms_endpoint.clone(),
                sts_endpoint: self.sts_endpoint.clone(),
                provisioner_profile: self.provisioner_profile.clone(),
                host_profile: self.host_profile.clone(),
                attempt_timeout: self.kms_attempt_timeout,
                deadline: self.kms_deadline,
            })),
            _ => Err(Failure::Usage(format!("--kms {kms:?} is neither local, local:DIR nor aws"))),
        }
    }

    pub(super) fn key_request(&self) -> Result<KeyRequest, Failure> {
        let key = self.key.as_deref().filter(|key| !key.is_empty()).unwrap_or(DEFAULT_KEY);
        Ok(KeyRequest {
            key: KeyRef::new(key),
            context: self.context()?,
            grantee: self.grantee.as_ref().map(Principal::new),
            retiring: self.retiring.as_ref().map(Principal::new),
            preflight: self.preflight != Some(Switch::Off),
        })
    }

    /// The encryption context that is in force.
    pub(super) fn context(&self) -> Result<EncryptionContext, Failure> {
        let mut context = self.file_context.clone().unwrap_or_default();
        for text in self.context.iter().filter(|text| !text.is_empty()) {
            context.insert_text(text)?;
        }
        Ok(context)
    }
}

/// A volume's size and sector size, as flags give them.
pub(super) fn layout(size: &str, sector: Option<&str>) -> Result<Layout, Failure> {
    let sector = sector.map_or(Ok(SectorSize::B4096), str::parse)?;
    Ok(Layout { sector, size: VolumeSize::new(parse_size(size)?, sector)? })
}

/// The program that unwraps in a process of its own: this one, whatever its name is by now.
pub(super) fn helper() -> PathBuf {
    "/proc/self/exe".into()
}

/// Where the embedded KMS lives in a state directory.
pub(super) fn local_kms(state: &Path) -> PathBuf {
    absolute(&state.join("kms"))
}

/// A journal is read by later processes, which start elsewhere.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

/// What a user's later commands find again; never a directory that others can write to, as journals are trusted.
pub(super) fn default_state() -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/sealblk".into());
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
    let base = base.ok_or_else(|| Failure::Usage("no HOME to keep state in: give --state-dir DIR".into()))?;
    Ok(base.join("sealblk"))
}

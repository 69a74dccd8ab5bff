//! Flags that several commands share, and what they default to.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::Failure;
use crate::envelope::KeyRequest;
use crate::kms::{EncryptionContext, KeyRef, Principal, Provider, aws};

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    On,
    Off,
}

/// Which KMS, and which key of it.
#[derive(Args)]
#[command(next_help_heading = "KMS")]
pub(super) struct KmsOptions {
    /// `local` (the embedded KMS; `local:DIR` with its directory) or `aws`
    #[arg(long, env = "SEALBLK_KMS", default_value = "local", value_name = "local[:DIR]|aws")]
    kms: String,

    /// KMS key: id, ARN or alias/NAME; alias/sealblk is made on first use in the embedded KMS
    #[arg(long, env = "SEALBLK_KEY", default_value = "alias/sealblk")]
    key: String,

    /// Encryption context, KEY=VALUE (repeatable) or KEY:VALUE,KEY:VALUE; shown in clear in the KMS's event log
    #[arg(long, value_name = "KEY=VALUE")]
    context: Vec<String>,

    /// Principal that may unwrap [default: the caller's role; in the embedded KMS its host]
    #[arg(long, value_name = "ARN")]
    grantee: Option<String>,

    /// Principal that may retire the grant [default: the caller's role; in the embedded KMS its provisioner]
    #[arg(long, value_name = "ARN")]
    retiring: Option<String>,

    /// Dry-run the calls that make the key and the grant before making them
    #[arg(long, default_value = "on", value_name = "on|off")]
    preflight: Switch,

    /// AWS region
    #[arg(long, value_name = "REGION")]
    region: Option<String>,

    /// AWS KMS endpoint; plain http only to loopback. AWS_ENDPOINT_URL and its like are ignored
    #[arg(long, env = "SEALBLK_KMS_ENDPOINT", value_name = "URL")]
    kms_endpoint: Option<String>,

    /// AWS STS endpoint [default: the KMS endpoint if that is loopback]
    #[arg(long, env = "SEALBLK_STS_ENDPOINT", value_name = "URL")]
    sts_endpoint: Option<String>,

    /// AWS profile for the calls that provision
    #[arg(long, value_name = "NAME")]
    provisioner_profile: Option<String>,

    /// AWS profile for Decrypt
    #[arg(long, value_name = "NAME")]
    host_profile: Option<String>,

    /// Seconds for one attempt of a KMS call
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=300))]
    kms_attempt_timeout: Option<u64>,

    /// Seconds for a KMS call with all its retries
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    kms_deadline: Option<u64>,
}

impl KmsOptions {
    pub(super) fn provider(&self, state: &Path) -> Result<Provider, Failure> {
        match self.kms.split_once(':').unwrap_or((&self.kms, "")) {
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
            _ => Err(Failure::Usage(format!("--kms {:?} is neither local, local:DIR nor aws", self.kms))),
        }
    }

    pub(super) fn key_request(&self) -> Result<KeyRequest, Failure> {
        let mut context = EncryptionContext::default();
        for text in &self.context {
            context.insert_text(text)?;
        }
        Ok(KeyRequest {
            key: KeyRef::new(&self.key),
            context,
            grantee: self.grantee.as_ref().map(Principal::new),
            retiring: self.retiring.as_ref().map(Principal::new),
            preflight: self.preflight == Switch::On,
        })
    }
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

//! AWS KMS through the AWS SDK.

use serde::{Deserialize, Serialize};

/// How AWS KMS is reached. Holds no credentials: those come from the SDK's default chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Region; without it, what the SDK's default chain finds.
    pub region: Option<String>,
    /// KMS endpoint instead of the region's own: `https://...`, or `http://` to a loopback address.
    pub endpoint: Option<String>,
    /// STS endpoint (for the caller's identity); without it, the KMS endpoint if that is loopback, else the region's own.
    pub sts_endpoint: Option<String>,
    /// Profile of the shared configuration files for the provisioner's calls.
    pub provisioner_profile: Option<String>,
    /// Profile of the shared configuration files for the host's call (Decrypt).
    pub host_profile: Option<String>,
    /// Seconds for one attempt of a call.
    pub attempt_timeout: Option<u64>,
    /// Seconds for a call with all its retries.
    pub deadline: Option<u64>,
}

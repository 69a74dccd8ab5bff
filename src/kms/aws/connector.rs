//! How clients are configured.

use std::time::Duration;

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, ConfigLoader, Region, SdkConfig};
use aws_sdk_kms::config::SharedCredentialsProvider;

use super::super::{ErrorClass, KmsError, Role};
use super::record::Recorder;
use super::retry::Pace;
use super::{Settings, endpoint};

/// The SDK's own default, set here because the other timeouts would be read beside it.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3100);

/// What is needed to make clients, again if credentials expire.
#[derive(Clone)]
pub(super) struct Connector {
    settings: Settings,
    tuning: Tuning,
}

/// What tests set and users do not.
#[derive(Clone)]
pub(super) struct Tuning {
    pub(super) first_backoff: Duration,
    pub(super) longest_backoff: Duration,
    /// Shared configuration files instead of the user's.
    #[allow(deprecated, reason = "the alias is of a type in a crate that nothing else here needs")]
    pub(super) profile_files: Option<aws_config::profile::profile_file::ProfileFiles>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            first_backoff: Duration::from_secs(1),
            longest_backoff: Duration::from_secs(20),
            profile_files: None,
        }
    }
}

impl Connector {
    pub(super) fn new(settings: Settings) -> Self {
        Self::tuned(settings, Tuning::default())
    }

    pub(super) fn tuned(settings: Settings, tuning: Tuning) -> Self {
        Self { settings, tuning }
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How calls are retried: by us, see [`retry`](super::retry).
    pub(super) fn pace(&self) -> Pace {
        Pace {
            first: self.tuning.first_backoff,
            longest: self.tuning.longest_backoff,
            deadline: self.settings.deadline(),
        }
    }

    /// What the SDK finds for `role`: region, credentials, profile.
    pub(super) async fn load(&self, role: Role) -> Result<SdkConfig, KmsError> {
        endpoint::check(&self.settings)?;
        let config = self.loader(role).load().await;
        if config.region().is_none() {
            let message = "no AWS region is known; give one in the settings (region), in AWS_REGION, or in the \
                           profile of the shared configuration file";
            return Err(KmsError::new("configuration", ErrorClass::Config, message));
        }
        // The SDK would say so as well, but not before the first call and not in terms of what to change.
        if self.settings.endpoint.is_some() && config.use_fips() == Some(true) {
            let message = "AWS_USE_FIPS_ENDPOINT (or use_fips_endpoint of the profile) and an endpoint are both set; \
                           unset one of them";
            return Err(KmsError::new("configuration", ErrorClass::Config, message));
        }
        Ok(match self.settings.profile(role) {
            Some(profile) => self.with_profile(config, profile),
            None => config,
        })
    }

    /// Credentials of the profile, whatever the environment holds. The default chain would prefer
    /// `AWS_ACCESS_KEY_ID`, and host and provisioner would be one identity though two were asked for.
    fn with_profile(&self, config: SdkConfig, profile: &str) -> SdkConfig {
        let base = ProviderConfig::default()
            .with_region(config.region().cloned())
            .with_use_fips(config.use_fips())
            .with_use_dual_stack(config.use_dual_stack());
        let mut provider = ProfileFileCredentialsProvider::builder().configure(&base).profile_name(profile);
        if let Some(files) = &self.tuning.profile_files {
            provider = provider.profile_files(files.clone());
        }
        let provider = SharedCredentialsProvider::new(provider.build());
        config.into_builder().credentials_provider(provider).build()
    }

    fn loader(&self, role: Role) -> ConfigLoader {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(self.settings.attempt_timeout())
            .operation_timeout(self.settings.deadline())
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .timeout_config(timeouts)
            .app_name(AppName::new("sealblk").unwrap_or_else(|_| unreachable!("letters only")));
        if let Some(region) = &self.settings.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = self.settings.profile(role) {
            loader = loader.profile_name(profile);
        }
        if let Some(files) = &self.tuning.profile_files {
            loader = loader.profile_files(files.clone());
        }
        loader
    }

    /// A KMS client. The endpoint is set after the shared configuration was taken over, also when it is `None`:
    /// that drops whatever endpoint the environment or a profile named.
    pub(super) fn kms(&self, config: &SdkConfig) -> aws_sdk_kms::Client {
        let mut builder = aws_sdk_kms::config::Builder::from(config);
        builder.set_endpoint_url(self.settings.endpoint.clone());
        let builder = builder.retry_config(RetryConfig::disabled()).interceptor(Recorder);
        aws_sdk_kms::Client::from_conf(builder.build())
    }

    /// An STS client; its endpoint as in [`Connector::kms`].
    pub(super) fn sts(&self, config: &SdkConfig) -> aws_sdk_sts::Client {
        let mut builder = aws_sdk_sts::config::Builder::from(config);
        builder.set_endpoint_url(endpoint::of_sts(&self.settings).map(Into::into));
        let builder = builder.retry_config(RetryConfig::disabled()).interceptor(Recorder);
        aws_sdk_sts::Client::from_conf(builder.build())
    }
}

//! One identity's client, and how a call is made with it.

use std::future::Future;
use std::sync::Arc;

use aws_config::Region;
use aws_sdk_kms::Client;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use tokio::sync::RwLock;

use super::super::{ErrorClass, KmsError, Role, Witness};
use super::connector::Connector;
use super::failure::{self, Call};
use super::record;
use super::retry::{Again, Tries};

/// KMS under one identity.
pub(super) struct Session {
    connector: Connector,
    role: Role,
    client: RwLock<Client>,
    witness: Arc<dyn Witness>,
    region: String,
    /// Where requests go, for error messages.
    place: String,
}

impl Session {
    pub(super) async fn open(
        connector: Connector,
        role: Role,
        witness: Arc<dyn Witness>,
    ) -> Result<Self, KmsError> {
        let config = connector.load(role).await?;
        let region = config.region().map_or("", Region::as_ref).to_owned();
        let place = match &connector.settings().endpoint {
            Some(endpoint) => endpoint.clone(),
            None => format!("AWS KMS in {region}"),
        };
        let client = RwLock::new(connector.kms(&config));
        Ok(Self { connector, role, client, witness, region, place })
    }

    pub(super) fn connector(&self) -> &Connector {
        &self.connector
    }

    /// Makes a call, as often as its errors ask for; once more with newly read credentials if the service no
    /// longer accepts those it got.
    pub(super) async fn call<T, E, F>(
        &self,
        call: Call<'_>,
        send: impl Fn(Client) -> F,
    ) -> Result<T, KmsError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E>>>,
    {
        let mut tries = Tries::new(self.connector.pace());
        let (mut renewed, mut clock_set) = (false, false);
        loop {
            let client = self.client.read().await.clone();
            // The SDK's futures are large, and each layer around one would take its size again.
            let sent = Box::pin(send(client));
            let sent = self.witnessed(&call, self.role, &self.region, sent);
            let error = match tries.attempt(sent, || call.late(&self.place)).await? {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if !clock_set && failure::is_of_clock(&error) {
                // From the answer's date on, this client signs with the service's time.
                clock_set = true;
                tracing::warn!(call = call.operation, "this host's clock differs from the service's");
            } else if !renewed && failure::is_of_credentials(&error) {
                renewed = true;
                tracing::info!(call = call.operation, "credentials were not accepted; reading them again");
                tries.bound(self.renew(), || call.late("the source of credentials")).await??;
            } else {
                let (error, again) = judge(error, &call, &self.place);
                tries.pause(error, again).await?;
            }
        }
    }

    /// Has the witness told of the attempt that `sending` makes.
    pub(super) async fn witnessed<T, E>(
        &self,
        call: &Call<'_>,
        role: Role,
        region: &str,
        sending: impl Future<Output = Result<T, SdkError<E>>>,
    ) -> Result<T, SdkError<E>>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        record::scope(call, role, region, Arc::clone(&self.witness), sending).await
    }

    /// A client made anew: the SDK keeps credentials until the expiry they named, and profiles for ever.
    async fn renew(&self) -> Result<(), KmsError> {
        let client = self.connector.kms(&self.connector.load(self.role).await?);
        *self.client.write().await = client;
        Ok(())
    }
}

/// The error as ours, and whether to try again.
pub(super) fn judge<E>(error: SdkError<E>, call: &Call<'_>, place: &str) -> (KmsError, Again)
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    // What was never sent, for want of credentials say, has had its own retries.
    let sent = !matches!(error, SdkError::ConstructionFailure(_));
    let error = failure::translate(error, call, place);
    let again = if sent || error.class != ErrorClass::Unreachable {
        Again::after(&error, call.granted())
    } else {
        Again::Never
    };
    (error, again)
}

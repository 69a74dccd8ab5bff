//! One identity's client, and how a call is made with it.

use std::future::Future;
use std::sync::Arc;

use aws_config::Region;
use aws_sdk_kms::Client;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use tokio::sync::RwLock;

use super::super::{KmsError, Role, Witness};
use super::connector::Connector;
use super::failure::{self, Call};
use super::record;

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

    /// Makes a call; once more with newly read credentials if the service no longer accepts those it got.
    pub(super) async fn call<T, E, F>(
        &self,
        call: Call<'_>,
        send: impl Fn(Client) -> F,
    ) -> Result<T, KmsError>
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
        F: Future<Output = Result<T, SdkError<E>>>,
    {
        let client = self.client.read().await.clone();
        let mut result = self.witnessed(&call, self.role, &self.region, send(client)).await;
        if result.as_ref().is_err_and(failure::is_of_credentials) {
            tracing::info!(call = call.operation, "credentials were not accepted; reading them again");
            let again = send(self.renew().await?);
            result = self.witnessed(&call, self.role, &self.region, again).await;
        }
        result.map_err(|error| failure::translate(error, &call, &self.place))
    }

    /// Has the witness told of each attempt that `sending` makes.
    pub(super) async fn witnessed<T>(
        &self,
        call: &Call<'_>,
        role: Role,
        region: &str,
        sending: impl Future<Output = T>,
    ) -> T {
        record::scope(call, role, region, Arc::clone(&self.witness), sending).await
    }

    /// A client made anew: the SDK keeps credentials until the expiry they named, and profiles for ever.
    async fn renew(&self) -> Result<Client, KmsError> {
        let client = self.connector.kms(&self.connector.load(self.role).await?);
        *self.client.write().await = client.clone();
        Ok(client)
    }
}

//! Tells the witness of each attempt of a call.
//!
//! With the SDK's own retries off, one send is one attempt. Only an interceptor sees its request and the head of the
//! answer, whatever the call; what it cannot know (who calls, on which key, with which token) travels beside the
//! send in a task-local value. An attempt counts from the moment its request is handed to the network; one that is
//! dropped without an end, at the call's deadline or because the volume's start was interrupted, is told of as the
//! value goes.

mod parts;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_sdk_kms::config::interceptors::{
    BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
    FinalizerInterceptorContextRef,
};
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kms::error::{BoxError, ProvideErrorMetadata, SdkError};
use serde_json::{Value, json};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::super::{CallRecord, GrantToken, Role, Witness};
use super::failure::{self, Call};

/// Longest `userAgent` in characters (AWS CloudTrail user guide, "Record contents").
const MAX_AGENT: usize = 1024;

tokio::task_local! {
    static WITNESSED: Witnessed;
}

/// Makes an attempt of a call, telling `witness` of it.
pub(super) async fn scope<T, E>(
    call: &Call<'_>,
    role: Role,
    region: &str,
    witness: Arc<dyn Witness>,
    sending: impl Future<Output = Result<T, SdkError<E>>>,
) -> Result<T, SdkError<E>>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let witnessed = Witnessed {
        operation: call.operation,
        key: call.key.map(Into::into),
        grant: call.grant.map(Into::into),
        token: call.token.map(|token| Zeroizing::new(GrantToken::expose(token).into())),
        role,
        region: region.into(),
        witness,
        state: Mutex::default(),
    };
    let attempt = async {
        let result = sending.await;
        WITNESSED.with(|attempt| attempt.end(result.as_ref().err()));
        result
    };
    WITNESSED.scope(witnessed, attempt).await
}

/// An attempt that is told of.
struct Witnessed {
    operation: &'static str,
    key: Option<String>,
    grant: Option<String>,
    token: Option<Zeroizing<String>>,
    role: Role,
    region: String,
    witness: Arc<dyn Witness>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    parameters: Value,
    /// There once the request may have reached the service, until the end is known.
    pending: Option<CallRecord>,
}

impl Witnessed {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, agent: Option<&str>) {
        let source = match self.operation {
            "GetCallerIdentity" => "sts.amazonaws.com",
            _ => "kms.amazonaws.com",
        };
        let mut record = CallRecord::begun(source, self.operation, &self.region);
        record.role = self.role.name();
        record.read_only = !matches!(self.operation, "CreateGrant" | "RetireGrant" | "RevokeGrant");
        if let Some(agent) = agent {
            record.user_agent = agent.chars().take(MAX_AGENT).collect();
        }
        let mut state = self.state();
        record.request_parameters = state.parameters.clone();
        state.pending = Some(record);
    }

    fn answered(&self, context: &FinalizerInterceptorContextRef<'_>) {
        let mut state = self.state();
        let Some(record) = state.pending.as_mut() else { return };
        let id = context.response().and_then(|response| response.headers().get("x-amzn-requestid"));
        record.request_id = id.map(|id| self.clean(id));
        if let Some(told) = parts::told(context) {
            self.succeed(record, told);
        }
    }

    fn end<E>(&self, error: Option<&SdkError<E>>)
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let pending = self.state().pending.take();
        let Some(mut record) = pending else { return };
        if let Some(error) = error {
            self.fail(&mut record, error);
        }
        self.tell(record);
    }

    fn succeed(&self, record: &mut CallRecord, told: parts::Told) {
        self.name_keys(record, told.key.as_deref());
        let key = record.resources.first().map(|resource| resource.arn.clone());
        record.response_elements = match (record.read_only, told.grant) {
            (true, _) => Value::Null,
            (false, Some(grant)) => json!({ "grantId": grant, "keyId": key }),
            (false, None) => json!({ "keyId": key }),
        };
        let materials = told.materials.into_iter().map(|(name, id)| (name.into(), json!(id)));
        record.additional_event_data.extend(materials);
        if let Some(grant) = self.grant.as_ref() {
            record.additional_event_data.insert("grantId".into(), json!(grant));
        }
    }

    fn fail<E>(&self, record: &mut CallRecord, error: &SdkError<E>)
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        self.name_keys(record, None);
        record.error_code = error.code().map(|code| self.clean(code));
        record.error_message = Some(match (error.message(), error) {
            (Some(text), _) => self.clean(text),
            (None, SdkError::ServiceError(answer)) => {
                format!("HTTP status {}", answer.raw().status().as_u16())
            }
            (None, _) => self.clean(&failure::root(error)),
        });
    }

    /// The keys, as far as their ARNs are known: what the service said, what the request named, what is meant.
    fn name_keys(&self, record: &mut CallRecord, told: Option<&str>) {
        let named = ["sourceKeyId", "destinationKeyId", "keyId"]
            .map(|field| record.request_parameters[field].as_str().map(String::from));
        let keys =
            told.map(String::from).into_iter().chain(named.into_iter().flatten()).chain(self.key.clone());
        for key in keys.filter(|key| key.starts_with("arn:") && key.contains(":key/")) {
            record.on(&key);
        }
    }

    fn clean(&self, text: &str) -> String {
        failure::clean(text, self.token.as_ref().map(|token| token.as_str()))
    }

    fn tell(&self, mut record: CallRecord) {
        record.at = OffsetDateTime::now_utc();
        self.witness.saw(&record);
    }
}

impl Drop for Witnessed {
    fn drop(&mut self) {
        let pending = self.state().pending.take();
        if let Some(mut record) = pending {
            self.name_keys(&mut record, None);
            record.error_message = Some("given up before an answer came".into());
            self.tell(record);
        }
    }
}

/// The interceptor of every client.
#[derive(Debug)]
pub(super) struct Recorder;

impl Intercept for Recorder {
    fn name(&self) -> &'static str {
        "audit record"
    }

    fn read_before_serialization(
        &self,
        context: &BeforeSerializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        WITNESSED.try_with(|attempt| attempt.state().parameters = parts::parameters(context))?;
        Ok(())
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let agent = context.request().headers().get("user-agent");
        WITNESSED.try_with(|attempt| attempt.begin(agent))?;
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        WITNESSED.try_with(|attempt| attempt.answered(context))?;
        Ok(())
    }
}

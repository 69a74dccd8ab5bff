//! Tells the witness of each attempt of a call.
//!
//! The SDK retries by itself, so only one of its interceptors sees every attempt. What it cannot know (who calls, on
//! which key, with which token) travels beside the call in a task-local value. An attempt counts from the moment
//! its request is handed to the network; one that is dropped without an end, because the volume's start was
//! interrupted, is told of as the value goes.

mod parts;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_sdk_kms::config::interceptors::{
    BeforeSerializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
    FinalizerInterceptorContextRef,
};
use aws_sdk_kms::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_kms::error::BoxError;
use serde_json::{Value, json};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::super::{CallRecord, GrantToken, Role, Witness};
use super::failure::{self, Call};
use super::retry;

/// Longest `userAgent` in characters (AWS CloudTrail user guide, "Record contents").
const MAX_AGENT: usize = 1024;

tokio::task_local! {
    static WITNESSED: Witnessed;
}

/// Makes a call, telling `witness` of each attempt.
pub(super) async fn scope<T>(
    call: &Call<'_>,
    role: Role,
    region: &str,
    witness: Arc<dyn Witness>,
    sending: impl Future<Output = T>,
) -> T {
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
    WITNESSED.scope(witnessed, sending).await
}

/// A call whose attempts are told of.
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
    /// An attempt whose request may have reached the service, and whose end is not known yet.
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

    fn end(&self, context: &FinalizerInterceptorContextRef<'_>) {
        let Some(mut record) = self.state().pending.take() else { return };
        let id = context.response().and_then(|response| response.headers().get("x-amzn-requestid"));
        record.request_id = id.map(|id| self.clean(id));
        match parts::told(context) {
            Some(told) => self.succeed(&mut record, told),
            None => self.fail(&mut record, context),
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

    fn fail(&self, record: &mut CallRecord, context: &FinalizerInterceptorContextRef<'_>) {
        self.name_keys(record, None);
        let status = context.response().map(|response| response.status().as_u16());
        let answered = retry::metadata(context.inner());
        record.error_code = answered.and_then(|error| error.code()).map(|code| self.clean(code));
        let message = match (answered, context.output_or_error(), status) {
            (Some(error), ..) if error.message().is_some() => error.message().map(|text| self.clean(text)),
            (Some(_), _, Some(status)) => Some(format!("HTTP status {status}")),
            (_, Some(Err(error)), _) => Some(self.clean(&failure::root(error))),
            _ => None,
        };
        record.error_message = message;
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
        WITNESSED.try_with(|call| call.state().parameters = parts::parameters(context))?;
        Ok(())
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let agent = context.request().headers().get("user-agent");
        WITNESSED.try_with(|call| call.begin(agent))?;
        Ok(())
    }

    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        WITNESSED.try_with(|call| call.end(context))?;
        Ok(())
    }
}

//! The SDK's errors as ours.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::super::{ErrorClass, GrantToken, KeyArn, KmsError, Permit};

/// Longest message taken from a service, in characters.
const MAX_MESSAGE: usize = 1000;

/// Shortest run of base64 characters that is cut out of messages: shorter than the base64 of any 64-byte key (86),
/// wrapped key or grant token, longer than any word of an ARN that KMS gives.
const MIN_OPAQUE: usize = 80;

/// A call, as errors name it.
#[derive(Clone, Copy)]
pub(super) struct Call<'a> {
    /// The operation, as AWS names it.
    pub(super) operation: &'static str,
    /// The key, as it was named.
    pub(super) key: Option<&'a str>,
    /// The grant, where its id is known.
    pub(super) grant: Option<&'a str>,
    /// The token that is sent.
    pub(super) token: Option<&'a GrantToken>,
    granted: Option<OffsetDateTime>,
    dry: bool,
}

impl<'a> Call<'a> {
    /// A call that names no key.
    pub(super) fn new(operation: &'static str) -> Self {
        Self { operation, key: None, grant: None, token: None, granted: None, dry: false }
    }

    /// A call on a key.
    pub(super) fn on(operation: &'static str, key: &'a KeyArn) -> Self {
        Self { key: Some(key.as_str()), ..Self::new(operation) }
    }

    /// A call on a key, however it is named.
    pub(super) fn on_named(operation: &'static str, key: &'a str) -> Self {
        Self { key: Some(key), ..Self::new(operation) }
    }

    /// The call sends this token, so an answer may quote it.
    pub(super) fn with_token(self, token: Option<&'a GrantToken>) -> Self {
        Self { token, ..self }
    }

    /// The call relies on a grant.
    pub(super) fn with_permit(self, permit: Permit<'a>) -> Self {
        Self { token: permit.token, granted: permit.made, ..self }
    }

    /// The call is about this grant.
    pub(super) fn with_grant(self, grant_id: &'a str) -> Self {
        Self { grant: Some(grant_id), ..self }
    }

    /// The call is marked DryRun.
    pub(super) fn dry(self) -> Self {
        Self { dry: true, ..self }
    }

    /// When the grant was made that the call relies on without its token.
    pub(super) fn granted(&self) -> Option<OffsetDateTime> {
        self.granted.filter(|_| self.token.is_none())
    }

    /// The deadline came before any answer.
    pub(super) fn late(&self, place: &str) -> KmsError {
        self.error(ErrorClass::Unreachable, format!("no answer from {place} in time"))
    }

    /// An error of this call.
    pub(super) fn error(&self, class: ErrorClass, message: impl Into<String>) -> KmsError {
        let error = KmsError::new(self.operation, class, message);
        match self.key {
            Some(key) => error.on_key(key),
            None => error,
        }
    }

    /// The answer lacks `what` or has it wrong.
    pub(super) fn nonsense(&self, what: &str) -> KmsError {
        self.error(ErrorClass::Nonsense, format!("the answer has {what}"))
    }

    /// Checks that the answer is about the key that was named.
    pub(super) fn require_key(&self, key: &KeyArn, answered: Option<&str>) -> Result<(), KmsError> {
        match answered {
            Some(answered) if answered == key.as_str() => Ok(()),
            Some(answered) => {
                let message = format!("the answer is about another key, {}", self.clean(answered));
                Err(self.error(ErrorClass::Corrupt, message))
            }
            None => Err(self.nonsense("no KeyId")),
        }
    }

    /// As [`clean`], for this call's token.
    fn clean(&self, text: &str) -> String {
        clean(text, self.token.map(GrantToken::expose))
    }
}

/// A service's text without what must not be shown: the call's token, anything as long as a key.
pub(super) fn clean(text: &str, token: Option<&str>) -> String {
    let text = match token {
        Some(token) if !token.is_empty() => text.replace(token, "[token]"),
        _ => text.to_owned(),
    };
    let opaque = |c: char| c.is_ascii_alphanumeric() || "+/=_-".contains(c);
    let mut clean = String::new();
    let mut rest = text.as_str();
    while let Some(first) = rest.chars().next() {
        let run = rest.find(|c| !opaque(c)).unwrap_or(rest.len());
        let length = run.max(first.len_utf8());
        match run {
            MIN_OPAQUE.. => clean.push_str("[...]"),
            _ => clean.extend(rest[..length].chars().map(|c| if c.is_control() { ' ' } else { c })),
        }
        rest = &rest[length..];
    }
    clean.chars().take(MAX_MESSAGE).collect()
}

/// True where other credentials of the same identity may be accepted.
pub(super) fn is_of_credentials<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let codes = [
        "ExpiredTokenException",
        "ExpiredToken",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "SignatureDoesNotMatch",
    ];
    error.code().is_some_and(|code| codes.contains(&code))
}

/// How far this host's clock may be off before it is blamed for a signature that was not accepted: AWS accepts
/// five minutes, and the SDK corrects its signing time beyond four.
const CLOCK: time::Duration = time::Duration::minutes(4);

/// True where the request may have been refused for its date alone. The SDK has seen the answer's date as well, and
/// signs the client's next request with it.
pub(super) fn is_of_clock<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let codes = ["InvalidSignatureException", "SignatureDoesNotMatch", "RequestTimeTooSkewed"];
    let theirs = error.raw_response().and_then(|response| response.headers().get("date"));
    let theirs = theirs.and_then(|date| OffsetDateTime::parse(date, &Rfc2822).ok());
    error.code().is_some_and(|code| codes.contains(&code))
        && theirs.is_some_and(|theirs| (OffsetDateTime::now_utc() - theirs).abs() > CLOCK)
}

/// The one place where an SDK error becomes ours. `place` says where the request went.
pub(super) fn translate<E>(error: SdkError<E>, call: &Call<'_>, place: &str) -> KmsError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    let request_id = error.request_id().map(|id| call.clean(id));
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    let translated = match &error {
        SdkError::ServiceError(answer) => of_answer(answer.err(), status, call),
        SdkError::TimeoutError(_) => {
            call.error(ErrorClass::Unreachable, format!("no answer from {place} in time: {}", root(&error)))
        }
        _ => of_transport(&error, call, place),
    };
    KmsError { request_id, ..translated }
}

/// No answer, or a broken one.
fn of_transport(error: &(dyn Error + 'static), call: &Call<'_>, place: &str) -> KmsError {
    if let Some(credentials) = find::<CredentialsError>(error) {
        return of_credentials(credentials, call);
    }
    if find::<hyper::Error>(error).is_some_and(hyper::Error::is_parse) {
        return call.error(ErrorClass::Nonsense, format!("the answer of {place} is not HTTP"));
    }
    call.error(ErrorClass::Unreachable, format!("cannot reach {place}: {}", call.clean(&root(error))))
}

/// No credentials to sign the call with.
fn of_credentials(error: &CredentialsError, call: &Call<'_>) -> KmsError {
    let class = match error {
        CredentialsError::InvalidConfiguration(_) => ErrorClass::Config,
        CredentialsError::ProviderTimedOut(_) => ErrorClass::Unreachable,
        _ => ErrorClass::Denied,
    };
    call.error(class, format!("no AWS credentials: {}", call.clean(&root(error))))
}

/// The service answered with an error, or with what cannot be read.
fn of_answer(error: &impl ProvideErrorMetadata, status: u16, call: &Call<'_>) -> KmsError {
    let Some(code) = error.code() else { return of_unreadable(status, call) };
    let class = ErrorClass::of_code(code).unwrap_or(match status {
        500.. => ErrorClass::Unreachable,
        401 | 403 => ErrorClass::Denied,
        429 => ErrorClass::Throttled,
        _ => ErrorClass::Config,
    });
    if class == ErrorClass::DryRun && !call.dry {
        return call.error(ErrorClass::Nonsense, format!("{code}, though the call was no dry run"));
    }
    let text = error.message().unwrap_or("no message came with the error code");
    KmsError {
        code: Some(call.clean(code)),
        principal: principal(text).map(|principal| call.clean(principal)),
        ..call.error(class, call.clean(text))
    }
}

/// An answer without an error code is not from KMS. Gateways answer 500 to 599 so when what stands behind them is
/// down; anything else means that something else listens there.
fn of_unreadable(status: u16, call: &Call<'_>) -> KmsError {
    match status {
        429 => call.error(ErrorClass::Throttled, "HTTP status 429 without an error code"),
        500.. => call.error(ErrorClass::Unreachable, format!("HTTP status {status} without an error code")),
        _ => call.error(
            ErrorClass::Nonsense,
            format!("HTTP status {status} with a body that is not an answer of AWS KMS"),
        ),
    }
}

/// Who was denied: `User: ARN is not authorized to perform: ...`.
fn principal(message: &str) -> Option<&str> {
    let (principal, _) = message.strip_prefix("User: ")?.split_once(" is not authorized")?;
    principal.starts_with("arn:").then_some(principal)
}

/// The text of the innermost cause, which is the one that says what happened ("Connection refused").
pub(super) fn root(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&cause| cause.source())
}

//! What can go wrong with a KMS, and what to do about it.

mod advice;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::secret::SecretError;

/// What an error means for the caller. Each class has its exit code and its advice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorClass {
    /// The service did not answer, or answered that it cannot just now; retries are used up.
    Unreachable,
    /// Over a request quota; retries are used up.
    Throttled,
    /// The key cannot be used until somebody acts: disabled, pending deletion, not found, of the wrong kind,
    /// or at its limit of grants.
    Unusable,
    /// The principal may not do that, or its credentials are not accepted.
    Denied,
    /// The wrapped key does not belong to this key or context, or is damaged.
    Corrupt,
    /// The request or the settings can never work.
    Config,
    /// The grant or its token is not known (any more).
    Grant,
    /// The embedded KMS's state directory cannot be read or written.
    Storage,
    /// Not a failure: a dry run that would have succeeded.
    DryRun,
    /// The answer makes no sense.
    Nonsense,
}

impl ErrorClass {
    /// Classifies an AWS KMS error code (API reference, "Common errors" and each operation's "Errors");
    /// `None` for a code that is not known.
    pub fn of_code(code: &str) -> Option<Self> {
        Some(match code {
            "DryRunOperationException" => Self::DryRun,
            "ThrottlingException"
            | "Throttling"
            | "ThrottledException"
            | "RequestThrottled"
            | "RequestLimitExceeded"
            | "SlowDown"
            | "TooManyRequestsException" => Self::Throttled,
            "KMSInternalException"
            | "InternalFailure"
            | "InternalServerError"
            | "ServiceUnavailableException"
            | "ServiceUnavailable"
            | "DependencyTimeoutException"
            | "KeyUnavailableException"
            | "RequestTimeout" => Self::Unreachable,
            "DisabledException"
            | "KMSInvalidStateException"
            | "NotFoundException"
            | "LimitExceededException"
            | "InvalidKeyUsageException"
            | "UnsupportedOperationException" => Self::Unusable,
            "AccessDeniedException"
            | "AccessDenied"
            | "NotAuthorized"
            | "OptInRequired"
            | "ExpiredTokenException"
            | "ExpiredToken"
            | "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidSignatureException"
            | "SignatureDoesNotMatch"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException" => Self::Denied,
            "InvalidCiphertextException" | "IncorrectKeyException" => Self::Corrupt,
            "InvalidGrantTokenException" | "InvalidGrantIdException" => Self::Grant,
            "InvalidArnException"
            | "ValidationException"
            | "ValidationError"
            | "InvalidAliasNameException"
            | "InvalidMarkerException"
            | "MalformedPolicyDocumentException"
            | "SerializationException"
            | "UnknownOperationException"
            | "AlreadyExistsException"
            | "TagException" => Self::Config,
            _ => return None,
        })
    }
}

/// How often a call was tried, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempts {
    /// Attempts, 2 or more.
    pub made: u32,
    /// Whole seconds from the first to the end of the last.
    pub seconds: u64,
    /// One of them at least got no answer, and so may have had its effect.
    pub unanswered: bool,
}

/// A KMS call that failed: what was tried, on what, what came back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmsError {
    /// The operation, as AWS KMS names it.
    pub call: String,
    /// What to do about it.
    pub class: ErrorClass,
    /// The service's error code, if it gave one.
    pub code: Option<String>,
    /// What came back, in the service's own words where it spoke. Never holds a token, blob or key.
    pub message: String,
    /// The key, as it was named in the call.
    pub key: Option<String>,
    /// Who called, where that is known.
    pub principal: Option<String>,
    /// The service's id for the request; joins with its event log.
    pub request_id: Option<String>,
    /// How often it was tried, if more than once; all else here is about the last attempt that got an answer.
    #[serde(default)]
    pub attempts: Option<Attempts>,
}

impl ErrorClass {
    /// True if the service has said no: the call had no effect.
    fn is_refusal(self) -> bool {
        !matches!(self, Self::Unreachable | Self::Nonsense | Self::Storage)
    }
}

impl KmsError {
    /// An error of `call`.
    pub fn new(call: &str, class: ErrorClass, message: impl Into<String>) -> Self {
        Self {
            call: call.into(),
            class,
            code: None,
            message: message.into(),
            key: None,
            principal: None,
            request_id: None,
            attempts: None,
        }
    }

    /// A data key that `call` brought but that could not be kept: no lockable memory, or not an XTS key.
    pub fn of_secret(call: &str, error: &SecretError) -> Self {
        let class = match error {
            SecretError::Lock { .. } => ErrorClass::Config,
            SecretError::Length { .. } | SecretError::EqualHalves => ErrorClass::Nonsense,
            SecretError::Read(_) => ErrorClass::Unreachable,
        };
        Self::new(call, class, error.to_string())
    }

    /// True if the service has refused the call, so that it had no effect; false if that is not known: of several
    /// attempts the last error is told, and an earlier one may have got through without its answer.
    pub fn is_definite(&self) -> bool {
        !self.attempts.is_some_and(|attempts| attempts.unanswered) && self.class.is_refusal()
    }

    /// Names the key.
    #[must_use]
    pub fn on_key(mut self, key: &str) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Credentials that are not accepted are [`ErrorClass::Denied`] too, but no permission would help there.
    pub(super) fn lacks_permission(&self) -> bool {
        self.class == ErrorClass::Denied
            && self.code.as_ref().is_some_and(|code| code.starts_with("AccessDenied"))
    }
}

impl fmt::Display for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(f, "KMS key {key}: {} failed", self.call)?,
            None => write!(f, "KMS: {} failed", self.call)?,
        }
        if let Some(principal) = &self.principal {
            write!(f, " for {principal}")?;
        }
        write!(f, ": {}", self.message)?;
        let details: Vec<String> = [
            self.code.clone(),
            self.lacks_permission().then(|| format!("missing permission kms:{}", self.call)),
            self.request_id.as_ref().map(|id| format!("request {id}")),
            self.attempts.map(|all| format!("{} attempts in {} s", all.made, all.seconds)),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !details.is_empty() {
            write!(f, " ({})", details.join(", "))?;
        }
        write!(f, "; {}", advice::of(self))
    }
}

impl std::error::Error for KmsError {}

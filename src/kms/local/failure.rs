//! Why a call failed, in the API's terms. The codes and messages are those of AWS KMS.

use std::borrow::Cow;
use std::fmt::Display;
use std::path::Path;

use super::engine::Failed;
use crate::kms::{ErrorClass, KmsError};
use crate::secret::SecretError;

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the API answers.
    Api {
        /// The error code, `...Exception`.
        code: Cow<'static, str>,
        /// For a person.
        message: String,
    },
    /// The state directory failed. In process the message names the file; over HTTP it stays general.
    Storage(String),
    /// The process may not lock memory for a key. Over HTTP as general as the one above.
    Memory(String),
}

impl Failure {
    /// An error of the API.
    pub(crate) fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self::Api { code: code.into(), message: message.into() }
    }

    /// A request that does not fit the API's model.
    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationException", message)
    }

    /// One parameter outside of its constraint, in the words of AWS's request validation.
    pub(crate) fn constraint(field: &str, value: impl Display, constraint: &str) -> Self {
        Self::validation(format!(
            "1 validation error detected: Value '{value}' at '{field}' failed to satisfy constraint: Member must {constraint}"
        ))
    }

    /// A policy that was refused.
    pub(crate) fn malformed_policy(why: impl Display) -> Self {
        Self::new("MalformedPolicyDocumentException", format!("The policy was not taken: {why}."))
    }

    /// Nothing has that name.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new("NotFoundException", message)
    }

    /// Something that cannot go wrong for a reason that the caller could mend.
    pub(crate) fn internal(message: impl Display) -> Self {
        Self::new("KMSInternalException", message.to_string())
    }

    /// `doing` (such as "cannot read") failed on a file of the state directory.
    pub(crate) fn storage(doing: &str, path: &Path, error: impl Display) -> Self {
        Self::Storage(format!("{doing} {}: {error}", path.display()))
    }

    /// No memory for a secret.
    pub(crate) fn memory(error: SecretError) -> Self {
        Self::Memory(error.to_string())
    }

    /// The code on the wire.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Api { code, .. } => code,
            Self::Storage(_) | Self::Memory(_) => "KMSInternalException",
        }
    }

    /// The message on the wire.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Api { message, .. } => message,
            Self::Storage(_) | Self::Memory(_) => {
                "The request failed because of an internal error of the key store."
            }
        }
    }

    /// The HTTP status of the answer.
    pub(crate) fn status(&self) -> u16 {
        match self.code() {
            "KMSInternalException" | "DependencyTimeoutException" | "KeyUnavailableException" => 500,
            _ => 400,
        }
    }
}

/// The one way from an error of the API to the seam's.
pub(crate) fn kms_error(call: &str, principal: &str, failed: Failed) -> KmsError {
    let (class, code, message) = match failed.failure {
        Failure::Api { code, message } => {
            (ErrorClass::of_code(&code).unwrap_or(ErrorClass::Nonsense), Some(code.into_owned()), message)
        }
        Failure::Storage(message) => (ErrorClass::Storage, None, message),
        Failure::Memory(message) => (ErrorClass::Config, None, message),
    };
    let mut error = KmsError::new(call, class, message);
    error.code = code;
    error.key = failed.key;
    error.principal = Some(principal.into());
    error.request_id = Some(failed.request_id);
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(failure: Failure) -> Failed {
        Failed { failure, request_id: "r".into(), key: Some("k".into()) }
    }

    #[test]
    fn becomes_a_kms_error_with_everything_that_is_known() {
        let error = kms_error("Decrypt", "host", failed(Failure::new("DisabledException", "k is disabled.")));
        assert_eq!(error.class, ErrorClass::Unusable);
        assert_eq!(error.code.as_deref(), Some("DisabledException"));
        assert_eq!(error.key.as_deref(), Some("k"));
        assert_eq!(error.principal.as_deref(), Some("host"));
        assert_eq!(error.request_id.as_deref(), Some("r"));
    }

    #[test]
    fn storage_names_the_file_in_process_only() {
        let failure = Failure::storage("cannot read", Path::new("/x/y.json"), "no");
        assert!(!failure.message().contains("/x/y.json"));
        assert_eq!((failure.code(), failure.status()), ("KMSInternalException", 500));
        let error = kms_error("Decrypt", "host", failed(failure));
        assert_eq!(error.class, ErrorClass::Storage);
        assert!(error.message.contains("/x/y.json"), "{error}");
    }
}

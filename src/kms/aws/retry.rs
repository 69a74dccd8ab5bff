//! Where this program differs with the SDK about which errors to retry.
//!
//! The SDK retries, with exponential jittered backoff: no connection and no answer, HTTP 500, 502, 503 and 504,
//! and the error codes of throttling. All KMS calls are safe to repeat, CreateGrant because grants are named.

use aws_sdk_kms::config::interceptors::InterceptorContext;
use aws_sdk_kms::config::retry::{ClassifyRetry, RetryAction};
use aws_sdk_kms::error::{ErrorMetadata, ProvideErrorMetadata};
use aws_sdk_kms::operation::create_grant::CreateGrantError;
use aws_sdk_kms::operation::decrypt::DecryptError;
use aws_sdk_kms::operation::describe_key::DescribeKeyError;
use aws_sdk_kms::operation::generate_data_key_without_plaintext::GenerateDataKeyWithoutPlaintextError;
use aws_sdk_kms::operation::list_grants::ListGrantsError;
use aws_sdk_kms::operation::re_encrypt::ReEncryptError;
use aws_sdk_kms::operation::retire_grant::RetireGrantError;
use aws_sdk_kms::operation::revoke_grant::RevokeGrantError;
use aws_sdk_sts::operation::get_caller_identity::GetCallerIdentityError;

/// Overrules the SDK's classifiers: it runs after them.
#[derive(Debug)]
pub(super) struct KmsRetry;

impl ClassifyRetry for KmsRetry {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        let Some(error) = metadata(context) else { return RetryAction::NoActionIndicated };
        match error.code() {
            // The SDK takes it for throttling; in KMS it is the quota of grants per key, which no wait changes.
            Some("LimitExceededException") => RetryAction::RetryForbidden,
            Some("KMSInvalidStateException") if passes_soon(error) => RetryAction::server_error(),
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "KMS error code"
    }
}

/// The states Creating and Updating end by themselves; Disabled, PendingDeletion and the others do not.
fn passes_soon(error: &ErrorMetadata) -> bool {
    let message = error.message().unwrap_or_default().to_lowercase();
    message.contains("creating") || message.contains("updating")
}

/// The error that the service answered with, of any call that is made here.
pub(super) fn metadata(context: &InterceptorContext) -> Option<&ErrorMetadata> {
    metadata_of::<DecryptError>(context)
        .or_else(|| metadata_of::<CreateGrantError>(context))
        .or_else(|| metadata_of::<GenerateDataKeyWithoutPlaintextError>(context))
        .or_else(|| metadata_of::<ReEncryptError>(context))
        .or_else(|| metadata_of::<DescribeKeyError>(context))
        .or_else(|| metadata_of::<ListGrantsError>(context))
        .or_else(|| metadata_of::<RetireGrantError>(context))
        .or_else(|| metadata_of::<RevokeGrantError>(context))
        .or_else(|| metadata_of::<GetCallerIdentityError>(context))
}

fn metadata_of<E>(context: &InterceptorContext) -> Option<&ErrorMetadata>
where
    E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
{
    let error = context.output_or_error()?.err()?.as_operation_error()?;
    error.downcast_ref::<E>().map(ProvideErrorMetadata::meta)
}

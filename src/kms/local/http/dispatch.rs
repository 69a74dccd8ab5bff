//! The operations by their names on the wire.

use zeroize::Zeroizing;

use super::super::engine::{Caller, Engine, Failed, Operation};
use super::super::failure::Failure;
use super::super::operations::aliases::{CreateAlias, DeleteAlias, ListAliases, UpdateAlias};
use super::super::operations::cipher::{Decrypt, Encrypt, ReEncrypt};
use super::super::operations::data_keys::{GenerateDataKey, GenerateDataKeyWithoutPlaintext, GenerateRandom};
use super::super::operations::ending::{RetireGrant, RevokeGrant};
use super::super::operations::grants::{CreateGrant, ListGrants, ListRetirableGrants};
use super::super::operations::keys::{
    CancelKeyDeletion, CreateKey, DescribeKey, DisableKey, EnableKey, ScheduleKeyDeletion,
};
use super::super::operations::listing::ListKeys;
use super::super::operations::policies::{GetKeyPolicy, ListKeyPolicies, PutKeyPolicy};
use super::super::operations::rotation::{
    DisableKeyRotation, EnableKeyRotation, GetKeyRotationStatus, ListKeyRotations, RotateKeyOnDemand,
};
use super::server::Reply;

/// Room for the longest answer that holds a plaintext (4096 bytes beside a 6144-byte blob, both in base64), so that
/// the buffer never grows and leaves an unwiped copy behind.
const ANSWER: usize = 16 * 1024;

/// A failure that a test ordered, and its HTTP status.
pub(crate) struct Ordered {
    pub(crate) status: u16,
    pub(crate) failure: Failure,
}

/// Runs the operation `name` with the parameters in `body`, or has it fail as ordered.
pub(crate) fn dispatch(
    name: &str,
    engine: &Engine,
    caller: &Caller,
    body: &[u8],
    ordered: Option<Ordered>,
) -> Reply {
    let run = match name {
        "CancelKeyDeletion" => run::<CancelKeyDeletion>,
        "CreateAlias" => run::<CreateAlias>,
        "CreateGrant" => run::<CreateGrant>,
        "CreateKey" => run::<CreateKey>,
        "Decrypt" => run::<Decrypt>,
        "DeleteAlias" => run::<DeleteAlias>,
        "DescribeKey" => run::<DescribeKey>,
        "DisableKey" => run::<DisableKey>,
        "DisableKeyRotation" => run::<DisableKeyRotation>,
        "EnableKey" => run::<EnableKey>,
        "EnableKeyRotation" => run::<EnableKeyRotation>,
        "Encrypt" => run::<Encrypt>,
        "GenerateDataKey" => run::<GenerateDataKey>,
        "GenerateDataKeyWithoutPlaintext" => run::<GenerateDataKeyWithoutPlaintext>,
        "GenerateRandom" => run::<GenerateRandom>,
        "GetKeyPolicy" => run::<GetKeyPolicy>,
        "GetKeyRotationStatus" => run::<GetKeyRotationStatus>,
        "ListAliases" => run::<ListAliases>,
        "ListGrants" => run::<ListGrants>,
        "ListKeyPolicies" => run::<ListKeyPolicies>,
        "ListKeyRotations" => run::<ListKeyRotations>,
        "ListKeys" => run::<ListKeys>,
        "ListRetirableGrants" => run::<ListRetirableGrants>,
        "PutKeyPolicy" => run::<PutKeyPolicy>,
        "ReEncrypt" => run::<ReEncrypt>,
        "RetireGrant" => run::<RetireGrant>,
        "RevokeGrant" => run::<RevokeGrant>,
        "RotateKeyOnDemand" => run::<RotateKeyOnDemand>,
        "ScheduleKeyDeletion" => run::<ScheduleKeyDeletion>,
        "UpdateAlias" => run::<UpdateAlias>,
        _ => return Reply::failure(&unknown_operation()),
    };
    run(engine, caller, body, ordered)
}

/// No such operation here, though AWS KMS may have it.
pub(crate) fn unknown_operation() -> Failure {
    Failure::new("UnknownOperationException", "The embedded KMS has no such operation.")
}

fn run<O: Operation>(engine: &Engine, caller: &Caller, body: &[u8], ordered: Option<Ordered>) -> Reply {
    let operation: O = match serde_json::from_slice(body) {
        Ok(operation) => operation,
        Err(error) => return Reply::failure(&unreadable(&error)),
    };
    if let Some(Ordered { status, failure }) = ordered {
        let Failed { failure, request_id, .. } = engine.refuse(caller, &operation, failure);
        return Reply::error(status, request_id, failure.code(), failure.message());
    }
    match engine.call(caller, &operation) {
        Ok(done) => answer(&done.answer, done.request_id),
        Err(failed) => {
            log_storage(O::NAME, &failed);
            let Failed { failure, request_id, .. } = failed;
            Reply::error(failure.status(), request_id, failure.code(), failure.message())
        }
    }
}

fn answer<A: serde::Serialize>(answer: &A, request_id: String) -> Reply {
    let mut body = Zeroizing::new(Vec::with_capacity(ANSWER));
    match serde_json::to_writer(&mut *body, answer) {
        Ok(()) => Reply::json(200, request_id, body),
        Err(error) => Reply::failure(&Failure::internal(error)),
    }
}

/// The place alone is told: serde's message may quote what it could not read, and that may be a secret.
fn unreadable(error: &serde_json::Error) -> Failure {
    Failure::new(
        "SerializationException",
        format!("The request could not be read at line {} column {}.", error.line(), error.column()),
    )
}

fn log_storage(call: &str, failed: &Failed) {
    if let Failure::Storage(message) = &failed.failure {
        tracing::error!(call, request_id = %failed.request_id, "{message}");
    }
}

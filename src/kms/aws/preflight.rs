//! Dry runs of what provisioning does.

use super::super::{
    Check, CheckOutcome, EncryptionContext, ErrorClass, GrantRef, GrantToken, KeyArn, KmsError, LeaseSpec,
    Preflight,
};
use super::failure::Call;
use super::session::Session;
use super::{grant, pairs};
use crate::secret::DataKey;

/// What a service says that runs calls in earnest that were marked DryRun.
const IGNORED: &str = "the endpoint ignores DryRun";

/// Both checks; one that fails does not keep the other from being made, so that the user learns all at once.
pub(super) async fn run(
    session: &Session,
    key: &KeyArn,
    context: &EncryptionContext,
    lease: &LeaseSpec,
) -> Preflight {
    let checks = vec![
        Check {
            call: "GenerateDataKeyWithoutPlaintext",
            outcome: outcome(try_generate(session, key, context).await),
        },
        Check { call: "CreateGrant", outcome: outcome(try_lease(session, key, context, lease).await) },
    ];
    Preflight { checks }
}

/// A dry run always fails; the question is how. `Ok` says what the service did instead.
fn outcome(result: Result<String, KmsError>) -> CheckOutcome {
    match result {
        Ok(told) => CheckOutcome::CannotTell(told),
        Err(error) if error.class == ErrorClass::DryRun => CheckOutcome::Pass,
        Err(error) => CheckOutcome::Fail(error),
    }
}

async fn try_generate(
    session: &Session,
    key: &KeyArn,
    context: &EncryptionContext,
) -> Result<String, KmsError> {
    let length = i32::try_from(DataKey::LEN).unwrap_or(i32::MAX);
    session
        .call(Call::on("GenerateDataKeyWithoutPlaintext", key).dry(), |client| {
            client
                .generate_data_key_without_plaintext()
                .key_id(key.as_str())
                .number_of_bytes(length)
                .set_encryption_context(Some(pairs(context)))
                .dry_run(true)
                .send()
        })
        .await?;
    Ok(IGNORED.into())
}

async fn try_lease(
    session: &Session,
    key: &KeyArn,
    context: &EncryptionContext,
    spec: &LeaseSpec,
) -> Result<String, KmsError> {
    let call = Call::on("CreateGrant", key).dry();
    let made = session
        .call(call, |client| grant::fill(client.create_grant(), key, context, spec).dry_run(true).send())
        .await?;
    let (Some(grant_id), Some(token)) = (made.grant_id, made.grant_token.map(GrantToken::new)) else {
        return Ok(IGNORED.into());
    };
    let made = GrantRef::Token { key, grant_id: &grant_id, token: &token };
    Ok(match grant::release(session, &made).await {
        Ok(_) => IGNORED.into(),
        Err(error) => format!("{IGNORED}, and the grant {grant_id} that it made could not be ended: {error}"),
    })
}

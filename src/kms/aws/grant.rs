//! CreateGrant, RetireGrant, RevokeGrant, ListGrants.

use aws_sdk_kms::operation::create_grant::builders::CreateGrantFluentBuilder;
use aws_sdk_kms::types::{GrantConstraints, GrantOperation};

use super::super::{
    EncryptionContext, ErrorClass, GrantRef, GrantToken, KeyArn, KmsError, Lease, LeaseSpec, Released,
};
use super::failure::Call;
use super::pairs;
use super::session::Session;

/// Grants asked for in one answer (ListGrants, Limit: 1 to 100).
const PAGE: i32 = 100;
/// Twice the pages that the quota of 50,000 grants per key fills: beyond it, the service is going in circles.
const MAX_PAGES: usize = 1000;

/// Makes a grant to unwrap under `context`.
pub(super) async fn create(
    session: &Session,
    key: &KeyArn,
    context: &EncryptionContext,
    spec: &LeaseSpec,
) -> Result<Lease, KmsError> {
    let call = Call::on("CreateGrant", key);
    let answer = session.call(call, |client| fill(client.create_grant(), key, context, spec).send()).await?;
    match (answer.grant_id, answer.grant_token) {
        (Some(grant_id), Some(token)) => Ok(Lease { grant_id, token: GrantToken::new(token) }),
        _ => Err(call.nonsense("no GrantId or no GrantToken")),
    }
}

/// The request, which a dry run must share with the call it stands for.
pub(super) fn fill(
    request: CreateGrantFluentBuilder,
    key: &KeyArn,
    context: &EncryptionContext,
    spec: &LeaseSpec,
) -> CreateGrantFluentBuilder {
    request
        .key_id(key.as_str())
        .grantee_principal(spec.grantee.as_str())
        .retiring_principal(spec.retiring.as_str())
        .operations(GrantOperation::Decrypt)
        .constraints(GrantConstraints::builder().set_encryption_context_subset(Some(pairs(context))).build())
        .name(&spec.name)
}

/// Ends a grant.
pub(super) async fn release(session: &Session, grant: &GrantRef<'_>) -> Result<Released, KmsError> {
    match *grant {
        GrantRef::Token { key, grant_id, token } => {
            match retire_by_token(session, key, grant_id, token).await {
                // The token may be unknown while the grant still stands.
                Ok(Released::AlreadyGone) => end(session, key, grant_id).await,
                Err(error) if error.class == ErrorClass::Denied => {
                    revoke(session, key, grant_id, error).await
                }
                result => result,
            }
        }
        GrantRef::Id { key, grant_id } => end(session, key, grant_id).await,
        GrantRef::Name { key, name } => release_named(session, key, name).await,
    }
}

/// RetireGrant by token: works before the grant has reached the whole service.
async fn retire_by_token(
    session: &Session,
    key: &KeyArn,
    grant_id: &str,
    token: &GrantToken,
) -> Result<Released, KmsError> {
    let call = Call::on("RetireGrant", key).with_grant(grant_id).with_token(Some(token));
    let result = session.call(call, |client| client.retire_grant().grant_token(token.expose()).send()).await;
    gone_or(result.map(drop), Released::Retired)
}

/// RetireGrant by id, else RevokeGrant.
async fn end(session: &Session, key: &KeyArn, grant_id: &str) -> Result<Released, KmsError> {
    let call = Call::on("RetireGrant", key).with_grant(grant_id);
    let result = session
        .call(call, |client| client.retire_grant().key_id(key.as_str()).grant_id(grant_id).send())
        .await;
    match gone_or(result.map(drop), Released::Retired) {
        Err(error) if error.class == ErrorClass::Denied => revoke(session, key, grant_id, error).await,
        result => result,
    }
}

/// RevokeGrant, for a principal that may not retire; `denied` says why it is tried.
async fn revoke(
    session: &Session,
    key: &KeyArn,
    grant_id: &str,
    denied: KmsError,
) -> Result<Released, KmsError> {
    let call = Call::on("RevokeGrant", key);
    let result = session
        .call(call, |client| client.revoke_grant().key_id(key.as_str()).grant_id(grant_id).send())
        .await;
    gone_or(result.map(drop), Released::Revoked).map_err(|error| {
        let message = format!("{} (and RetireGrant: {})", error.message, denied.message);
        KmsError { message, ..error }
    })
}

/// A grant that is not there has ended.
fn gone_or(result: Result<(), KmsError>, done: Released) -> Result<Released, KmsError> {
    match result {
        Ok(()) => Ok(done),
        Err(error) if error.class == ErrorClass::Grant => Ok(Released::AlreadyGone),
        Err(error) if error.code.as_deref() == Some("NotFoundException") => Ok(Released::AlreadyGone),
        Err(error) => Err(error),
    }
}

/// Ends every grant of that name. There is one, unless an emulator made another for each repeated request.
async fn release_named(session: &Session, key: &KeyArn, name: &str) -> Result<Released, KmsError> {
    let mut released = Released::AlreadyGone;
    for grant_id in find(session, key, name).await? {
        released = end(session, key, &grant_id).await?;
    }
    Ok(released)
}

/// The ids of all grants with this name.
async fn find(session: &Session, key: &KeyArn, name: &str) -> Result<Vec<String>, KmsError> {
    let call = Call::on("ListGrants", key);
    let mut found = Vec::new();
    let mut marker = None;
    for _ in 0..MAX_PAGES {
        let page = session
            .call(call, |client| {
                client.list_grants().key_id(key.as_str()).limit(PAGE).set_marker(marker.clone()).send()
            })
            .await?;
        let named = page.grants().iter().filter(|grant| grant.name() == Some(name));
        found.extend(named.filter_map(|grant| grant.grant_id().map(String::from)));
        if !page.truncated {
            return Ok(found);
        }
        marker = Some(page.next_marker.ok_or_else(|| call.nonsense("no NextMarker though it is truncated"))?);
    }
    Err(call.nonsense(&format!("no end after {MAX_PAGES} pages")))
}

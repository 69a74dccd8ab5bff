//! GenerateDataKeyWithoutPlaintext, Decrypt, ReEncrypt.

use aws_sdk_kms::primitives::Blob;
use zeroize::Zeroizing;

use super::super::{EncryptionContext, ErrorClass, KeyArn, KmsError, Permit, WrappedKey};
use super::failure::Call;
use super::session::Session;
use super::{MAX_WRAPPED, pairs};
use crate::secret::DataKey;

/// Makes a wrapped data key of `length` bytes.
pub(super) async fn generate(
    session: &Session,
    key: &KeyArn,
    context: &EncryptionContext,
    length: u16,
) -> Result<WrappedKey, KmsError> {
    let call = Call::on("GenerateDataKeyWithoutPlaintext", key);
    let answer = session
        .call(call, |client| {
            client
                .generate_data_key_without_plaintext()
                .key_id(key.as_str())
                .number_of_bytes(length.into())
                .set_encryption_context(Some(pairs(context)))
                .send()
        })
        .await?;
    call.require_key(key, answer.key_id())?;
    wrapped(&call, key, answer.ciphertext_blob, answer.key_material_id)
}

/// Unwraps a data key. A token that the service does not know (any more) is left out in a second try: its grant
/// may have reached the whole service by now, and then needs none. A denial is final then: a grant whose token is
/// refused has ended rather than not arrived.
pub(super) async fn unwrap(
    session: &Session,
    wrapped: &WrappedKey,
    context: &EncryptionContext,
    permit: Permit<'_>,
) -> Result<DataKey, KmsError> {
    match decrypt(session, wrapped, context, permit).await {
        Err(error) if error.class == ErrorClass::Grant && permit.token.is_some() => {
            tracing::warn!(key = %wrapped.key, "the grant token was refused; trying without it");
            decrypt(session, wrapped, context, Permit::default()).await
        }
        result => result,
    }
}

async fn decrypt(
    session: &Session,
    wrapped: &WrappedKey,
    context: &EncryptionContext,
    permit: Permit<'_>,
) -> Result<DataKey, KmsError> {
    let call = Call::on("Decrypt", &wrapped.key).with_permit(permit);
    let answer = session
        .call(call, |client| {
            client
                .decrypt()
                .key_id(wrapped.key.as_str())
                .ciphertext_blob(Blob::new(wrapped.blob.clone()))
                .set_encryption_context(Some(pairs(context)))
                .set_grant_tokens(permit.token.map(|token| vec![token.expose().to_owned()]))
                .send()
        })
        .await?;
    // First of all into a Vec that is wiped on every way out.
    let plaintext = answer.plaintext.map(|blob| Zeroizing::new(blob.into_inner()));
    call.require_key(&wrapped.key, answer.key_id.as_deref())?;
    let plaintext = plaintext.ok_or_else(|| call.nonsense("no Plaintext"))?;
    DataKey::copy_from(&plaintext)
        .map_err(|error| KmsError::of_secret(call.operation, &error).on_key(wrapped.key.as_str()))
}

/// Wraps a data key that came from elsewhere.
pub(super) async fn wrap(
    session: &Session,
    key: &KeyArn,
    context: &EncryptionContext,
    data_key: &DataKey,
) -> Result<WrappedKey, KmsError> {
    let call = Call::on("Encrypt", key);
    let answer = session
        .call(call, |client| {
            client
                .encrypt()
                .key_id(key.as_str())
                .plaintext(Blob::new(data_key.expose()))
                .set_encryption_context(Some(pairs(context)))
                .send()
        })
        .await?;
    call.require_key(key, answer.key_id())?;
    wrapped(&call, key, answer.ciphertext_blob, None)
}

/// Wraps the same data key under `to`, inside the service.
pub(super) async fn rewrap(
    session: &Session,
    old: &WrappedKey,
    from: &EncryptionContext,
    to: &KeyArn,
    context: &EncryptionContext,
) -> Result<WrappedKey, KmsError> {
    let call = Call::on("ReEncrypt", &old.key);
    let answer = session
        .call(call, |client| {
            client
                .re_encrypt()
                .ciphertext_blob(Blob::new(old.blob.clone()))
                .source_key_id(old.key.as_str())
                .set_source_encryption_context(Some(pairs(from)))
                .destination_key_id(to.as_str())
                .set_destination_encryption_context(Some(pairs(context)))
                .send()
        })
        .await?;
    call.require_key(to, answer.key_id())?;
    wrapped(&call, to, answer.ciphertext_blob, answer.destination_key_material_id)
}

fn wrapped(
    call: &Call<'_>,
    key: &KeyArn,
    blob: Option<Blob>,
    material: Option<String>,
) -> Result<WrappedKey, KmsError> {
    let blob = blob.map(Blob::into_inner).unwrap_or_default();
    if blob.is_empty() || blob.len() > MAX_WRAPPED {
        return Err(
            call.nonsense(&format!("a CiphertextBlob of {} bytes instead of 1 to {MAX_WRAPPED}", blob.len()))
        );
    }
    Ok(WrappedKey { key: key.clone(), blob, material })
}

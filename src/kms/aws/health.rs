//! DescribeKey.

use aws_sdk_kms::types::KeyMetadata;
use time::OffsetDateTime;

use super::super::{KeyArn, KeyHealth, KeyRef, KeyState, KmsError};
use super::failure::Call;
use super::session::Session;

/// Resolves a key and reads its state.
pub(super) async fn describe(session: &Session, key: &KeyRef) -> Result<KeyHealth, KmsError> {
    let call = Call::on_named("DescribeKey", key.as_str());
    let answer = session.call(call, |client| client.describe_key().key_id(key.as_str()).send()).await?;
    let metadata = answer.key_metadata.ok_or_else(|| call.nonsense("no KeyMetadata"))?;
    read(&metadata, &call)
}

/// Emulators leave out what CreateKey was not told, so an absent field is CreateKey's default. The dry runs find
/// out if that was wrong.
fn read(metadata: &KeyMetadata, call: &Call<'_>) -> Result<KeyHealth, KmsError> {
    let arn = metadata.arn().ok_or_else(|| call.nonsense("no Arn"))?;
    let state = metadata.key_state().ok_or_else(|| call.nonsense("no KeyState"))?;
    Ok(KeyHealth {
        arn: KeyArn::new(arn),
        state: KeyState::from_name(state.as_str()),
        spec: metadata.key_spec().map_or("SYMMETRIC_DEFAULT", |spec| spec.as_str()).into(),
        usage: metadata.key_usage().map_or("ENCRYPT_DECRYPT", |usage| usage.as_str()).into(),
        origin: metadata.origin().map_or("AWS_KMS", |origin| origin.as_str()).into(),
        manager: metadata.key_manager().map_or("CUSTOMER", |manager| manager.as_str()).into(),
        deletion: metadata
            .deletion_date()
            .and_then(|date| OffsetDateTime::from_unix_timestamp(date.secs()).ok()),
        material: metadata.current_key_material_id().map(Into::into),
    })
}

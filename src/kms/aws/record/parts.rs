//! The parts of a record that the SDK's types hold, in CloudTrail's spelling.

use std::collections::HashMap;

use aws_sdk_kms::config::interceptors::{
    BeforeSerializationInterceptorContextRef, FinalizerInterceptorContextRef,
};
use aws_sdk_kms::operation::create_grant::{CreateGrantInput, CreateGrantOutput};
use aws_sdk_kms::operation::decrypt::{DecryptInput, DecryptOutput};
use aws_sdk_kms::operation::describe_key::{DescribeKeyInput, DescribeKeyOutput};
use aws_sdk_kms::operation::encrypt::{EncryptInput, EncryptOutput};
use aws_sdk_kms::operation::generate_data_key_without_plaintext::{
    GenerateDataKeyWithoutPlaintextInput, GenerateDataKeyWithoutPlaintextOutput,
};
use aws_sdk_kms::operation::list_grants::ListGrantsInput;
use aws_sdk_kms::operation::re_encrypt::{ReEncryptInput, ReEncryptOutput};
use aws_sdk_kms::operation::revoke_grant::RevokeGrantInput;
use aws_sdk_kms::types::EncryptionAlgorithmSpec;
use serde_json::{Map, Value, json};

/// `requestParameters`: the fields that were given. What is not named here (blobs, plaintexts, tokens) is in no
/// record.
pub(super) fn parameters(context: &BeforeSerializationInterceptorContextRef<'_>) -> Value {
    let input = context.input();
    let fields = if let Some(it) = input.downcast_ref::<DescribeKeyInput>() {
        vec![("keyId", json!(it.key_id))]
    } else if let Some(it) = input.downcast_ref::<GenerateDataKeyWithoutPlaintextInput>() {
        vec![
            ("keyId", json!(it.key_id)),
            ("encryptionContext", pairs(it.encryption_context.as_ref())),
            ("numberOfBytes", json!(it.number_of_bytes)),
            ("dryRun", json!(it.dry_run)),
        ]
    } else if let Some(it) = input.downcast_ref::<CreateGrantInput>() {
        grant(it)
    } else if let Some(it) = input.downcast_ref::<DecryptInput>() {
        vec![
            ("keyId", json!(it.key_id)),
            ("encryptionContext", pairs(it.encryption_context.as_ref())),
            ("encryptionAlgorithm", algorithm(it.encryption_algorithm.as_ref())),
            ("dryRun", json!(it.dry_run)),
        ]
    } else if let Some(it) = input.downcast_ref::<EncryptInput>() {
        vec![
            ("keyId", json!(it.key_id)),
            ("encryptionContext", pairs(it.encryption_context.as_ref())),
            ("encryptionAlgorithm", algorithm(it.encryption_algorithm.as_ref())),
            ("dryRun", json!(it.dry_run)),
        ]
    } else if let Some(it) = input.downcast_ref::<ReEncryptInput>() {
        vec![
            ("sourceKeyId", json!(it.source_key_id)),
            ("sourceEncryptionContext", pairs(it.source_encryption_context.as_ref())),
            ("sourceEncryptionAlgorithm", algorithm(it.source_encryption_algorithm.as_ref())),
            ("destinationKeyId", json!(it.destination_key_id)),
            ("destinationEncryptionContext", pairs(it.destination_encryption_context.as_ref())),
            ("destinationEncryptionAlgorithm", algorithm(it.destination_encryption_algorithm.as_ref())),
            ("dryRun", json!(it.dry_run)),
        ]
    } else if let Some(it) = input.downcast_ref::<RevokeGrantInput>() {
        vec![("keyId", json!(it.key_id)), ("grantId", json!(it.grant_id)), ("dryRun", json!(it.dry_run))]
    } else if let Some(it) = input.downcast_ref::<ListGrantsInput>() {
        vec![("keyId", json!(it.key_id)), ("limit", json!(it.limit)), ("marker", json!(it.marker))]
    } else {
        // GetCallerIdentity has none, and of RetireGrant CloudTrail shows none.
        Vec::new()
    };
    given(fields)
}

fn grant(it: &CreateGrantInput) -> Vec<(&'static str, Value)> {
    let operations = it.operations().iter().map(|operation| json!(operation.as_str())).collect();
    let constraints = it.constraints().map_or(Value::Null, |constraints| {
        given(vec![
            ("encryptionContextSubset", pairs(constraints.encryption_context_subset())),
            ("encryptionContextEquals", pairs(constraints.encryption_context_equals())),
        ])
    });
    vec![
        ("keyId", json!(it.key_id)),
        ("granteePrincipal", json!(it.grantee_principal)),
        ("retiringPrincipal", json!(it.retiring_principal)),
        ("operations", Value::Array(operations)),
        ("constraints", constraints),
        ("name", json!(it.name)),
        ("dryRun", json!(it.dry_run)),
    ]
}

/// Symmetric keys have one algorithm; a request that names none means it, and CloudTrail shows it.
fn algorithm(given: Option<&EncryptionAlgorithmSpec>) -> Value {
    json!(given.map_or("SYMMETRIC_DEFAULT", |algorithm| algorithm.as_str()))
}

fn pairs(context: Option<&HashMap<String, String>>) -> Value {
    context.filter(|pairs| !pairs.is_empty()).map_or(Value::Null, |pairs| json!(pairs))
}

/// The fields that are there; null if there are none.
fn given(fields: Vec<(&'static str, Value)>) -> Value {
    let fields: Map<_, _> = fields
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.into(), value))
        .collect();
    if fields.is_empty() { Value::Null } else { Value::Object(fields) }
}

/// What an answer tells.
#[derive(Default)]
pub(super) struct Told {
    /// The key's ARN.
    pub(super) key: Option<String>,
    /// The id of a grant that was made.
    pub(super) grant: Option<String>,
    /// Key materials, by their names in `additionalEventData`.
    pub(super) materials: Vec<(&'static str, String)>,
}

/// Reads a successful answer; `None` for an attempt without one.
pub(super) fn told(context: &FinalizerInterceptorContextRef<'_>) -> Option<Told> {
    let output = context.output_or_error()?.ok()?;
    let mut told = Told::default();
    if let Some(it) = output.downcast_ref::<DescribeKeyOutput>() {
        told.key = it.key_metadata().and_then(|metadata| metadata.arn().map(Into::into));
    } else if let Some(it) = output.downcast_ref::<GenerateDataKeyWithoutPlaintextOutput>() {
        told.key.clone_from(&it.key_id);
        told.materials = vec![("keyMaterialId", it.key_material_id.clone().unwrap_or_default())];
    } else if let Some(it) = output.downcast_ref::<CreateGrantOutput>() {
        told.grant.clone_from(&it.grant_id);
    } else if let Some(it) = output.downcast_ref::<DecryptOutput>() {
        told.key.clone_from(&it.key_id);
        told.materials = vec![("keyMaterialId", it.key_material_id.clone().unwrap_or_default())];
    } else if let Some(it) = output.downcast_ref::<EncryptOutput>() {
        told.key.clone_from(&it.key_id);
    } else if let Some(it) = output.downcast_ref::<ReEncryptOutput>() {
        told.materials = vec![
            ("sourceKeyMaterialId", it.source_key_material_id.clone().unwrap_or_default()),
            ("destinationKeyMaterialId", it.destination_key_material_id.clone().unwrap_or_default()),
        ];
    }
    told.materials.retain(|(_, id)| !id.is_empty());
    Some(told)
}

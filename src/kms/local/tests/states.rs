//! What each state of a key lets through.

use super::super::operations::aliases::CreateAlias;
use super::super::operations::cipher::{Decrypt, Encrypt, ReEncrypt};
use super::super::operations::data_keys::GenerateDataKeyWithoutPlaintext;
use super::super::operations::ending::{RetireGrant, RevokeGrant};
use super::super::operations::grants::{CreateGrant, ListGrants};
use super::super::operations::keys::{
    CancelKeyDeletion, DescribeKey, DisableKey, EnableKey, ScheduleKeyDeletion,
};
use super::*;

const ADMIN: PrincipalName = PrincipalName::Admin;

struct Prepared {
    world: World,
    arn: String,
    blob: Value,
    grants: Vec<Value>,
}

/// A key with a blob and three grants, then brought into `state`.
fn prepared(state: &KeyState) -> Prepared {
    let world = World::new();
    let arn = world.key(json!({}));
    let wrapped =
        world.call::<GenerateDataKeyWithoutPlaintext>(ADMIN, json!({"KeyId": arn, "NumberOfBytes": 64}));
    let grant = json!({"KeyId": arn, "GranteePrincipal": world.arn(ADMIN), "Operations": ["Decrypt"]});
    let grants = (0..3).map(|_| world.call::<CreateGrant>(ADMIN, grant.clone()).expect("a grant")).collect();
    world.set_state(&arn, state);
    Prepared { world, arn, blob: wrapped.expect("a blob")["CiphertextBlob"].clone(), grants }
}

#[test]
fn cryptography_needs_an_enabled_key_and_says_what_is_wrong() {
    let table = [
        (KeyState::Enabled, None),
        (KeyState::Disabled, Some(("DisabledException", "is disabled."))),
        (KeyState::PendingDeletion, Some(("KMSInvalidStateException", "is pending deletion."))),
        (KeyState::PendingImport, Some(("KMSInvalidStateException", "is pending import."))),
        (KeyState::Unavailable, Some(("KMSInvalidStateException", "is unavailable."))),
    ];
    for (state, refusal) in table {
        let Prepared { world, arn, blob, .. } = prepared(&state);
        let expected = refusal.map(|(code, ending)| (code, format!("{arn} {ending}")));
        let outcomes = [
            world.call::<GenerateDataKeyWithoutPlaintext>(ADMIN, json!({"KeyId": arn, "NumberOfBytes": 64})),
            world.call::<Decrypt>(ADMIN, json!({"CiphertextBlob": blob})),
            world.call::<Encrypt>(ADMIN, json!({"KeyId": arn, "Plaintext": "AA=="})),
            world.call::<ReEncrypt>(ADMIN, json!({"CiphertextBlob": blob, "DestinationKeyId": arn})),
        ];
        for outcome in outcomes {
            assert_eq!(outcome.err(), expected, "{state:?}");
        }
        let dry = json!({"KeyId": arn, "NumberOfBytes": 64, "DryRun": true});
        let dry = world.code::<GenerateDataKeyWithoutPlaintext>(ADMIN, dry);
        assert_eq!(dry, expected.map_or("DryRunOperationException", |(code, _)| code));
    }
}

#[test]
fn grants_may_be_made_on_enabled_and_unavailable_keys() {
    for (state, refusal) in [
        (KeyState::Enabled, None),
        (KeyState::Unavailable, None),
        (KeyState::Disabled, Some("DisabledException")),
        (KeyState::PendingDeletion, Some("KMSInvalidStateException")),
        (KeyState::PendingImport, Some("KMSInvalidStateException")),
    ] {
        let Prepared { world, arn, .. } = prepared(&state);
        let grant = json!({"KeyId": arn, "GranteePrincipal": world.arn(ADMIN), "Operations": ["Decrypt"]});
        let outcome = world.call::<CreateGrant>(ADMIN, grant);
        assert_eq!(outcome.err().map(|(code, _)| code), refusal, "{state:?}");
    }
}

#[test]
fn looking_and_tearing_down_work_in_every_state() {
    for state in [
        KeyState::Enabled,
        KeyState::Disabled,
        KeyState::PendingDeletion,
        KeyState::PendingImport,
        KeyState::Unavailable,
    ] {
        let Prepared { world, arn, grants, .. } = prepared(&state);
        let described = world.call::<DescribeKey>(ADMIN, json!({"KeyId": arn})).expect("described");
        assert_eq!(described["KeyMetadata"]["KeyState"], json!(state));
        assert_eq!(described["KeyMetadata"]["Enabled"], json!(state == KeyState::Enabled));
        let listed = world.call::<ListGrants>(ADMIN, json!({"KeyId": arn})).expect("listed");
        assert_eq!(listed["Grants"].as_array().map(Vec::len), Some(3));
        let [one, two, three] = &grants[..] else { panic!("three grants") };
        world.call::<RetireGrant>(ADMIN, json!({"GrantToken": one["GrantToken"]})).expect("retired");
        let by_id = json!({"KeyId": arn, "GrantId": two["GrantId"]});
        world.call::<RetireGrant>(ADMIN, by_id).expect("retired");
        world
            .call::<RevokeGrant>(ADMIN, json!({"KeyId": arn, "GrantId": three["GrantId"]}))
            .expect("revoked");
    }
}

#[test]
fn a_key_goes_through_its_life() {
    let world = World::new();
    let arn = world.key(json!({"Description": "d"}));
    let key = json!({"KeyId": arn});
    let state = || {
        let described = world.call::<DescribeKey>(ADMIN, key.clone()).expect("described");
        text(&described["KeyMetadata"]["KeyState"])
    };
    world.call::<DisableKey>(ADMIN, key.clone()).expect("disabled");
    assert_eq!(state(), "Disabled");
    world.call::<EnableKey>(ADMIN, key.clone()).expect("enabled");
    assert_eq!(world.code::<CancelKeyDeletion>(ADMIN, key.clone()), "KMSInvalidStateException");
    for days in [6, 31] {
        let schedule = json!({"KeyId": arn, "PendingWindowInDays": days});
        assert_eq!(world.code::<ScheduleKeyDeletion>(ADMIN, schedule), "ValidationException");
    }
    let scheduled = world.call::<ScheduleKeyDeletion>(ADMIN, json!({"KeyId": arn, "PendingWindowInDays": 7}));
    assert_eq!(scheduled.expect("scheduled")["KeyState"], "PendingDeletion");
    assert_eq!(world.code::<EnableKey>(ADMIN, key.clone()), "KMSInvalidStateException");
    assert_eq!(world.code::<ScheduleKeyDeletion>(ADMIN, key.clone()), "KMSInvalidStateException");
    let alias = json!({"AliasName": "alias/a", "TargetKeyId": arn});
    assert_eq!(world.code::<CreateAlias>(ADMIN, alias), "KMSInvalidStateException");
    world.call::<CancelKeyDeletion>(ADMIN, key.clone()).expect("cancelled");
    assert_eq!(state(), "Disabled");
}

#[test]
fn a_key_past_its_deletion_date_is_gone_with_its_material_and_aliases() {
    let world = World::new();
    let arn = world.key(json!({}));
    world.call::<CreateAlias>(ADMIN, json!({"AliasName": "alias/a", "TargetKeyId": arn})).expect("named");
    world
        .call::<ScheduleKeyDeletion>(ADMIN, json!({"KeyId": arn, "PendingWindowInDays": 7}))
        .expect("scheduled");
    let materials = || std::fs::read_dir(world.directory.path().join("materials")).expect("listed").count();
    world.engine.tuning.advance_clock(7 * 86_400 - 60);
    assert!(world.call::<DescribeKey>(ADMIN, json!({"KeyId": "alias/a"})).is_ok());
    assert_eq!(materials(), 1);
    world.engine.tuning.advance_clock(61);
    let (code, message) = world.call::<DescribeKey>(ADMIN, json!({"KeyId": arn})).expect_err("gone");
    assert_eq!((code, message), ("NotFoundException", format!("Key '{arn}' does not exist")));
    assert_eq!(world.code::<DescribeKey>(ADMIN, json!({"KeyId": "alias/a"})), "NotFoundException");
    assert_eq!(materials(), 0);
}

#[test]
fn keys_of_other_kinds_are_refused() {
    let world = World::new();
    for parameters in [
        json!({"KeySpec": "RSA_2048", "KeyUsage": "ENCRYPT_DECRYPT"}),
        json!({"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY"}),
    ] {
        let arn = world.key(parameters);
        let wanted = json!({"KeyId": arn, "NumberOfBytes": 64});
        assert_eq!(world.code::<GenerateDataKeyWithoutPlaintext>(ADMIN, wanted), "InvalidKeyUsageException");
    }
    let arn = world.key(json!({"Origin": "EXTERNAL"}));
    let wanted = json!({"KeyId": arn, "NumberOfBytes": 64});
    assert_eq!(world.code::<GenerateDataKeyWithoutPlaintext>(ADMIN, wanted), "KMSInvalidStateException");
    let multi = json!({"MultiRegion": true});
    assert_eq!(world.code::<CreateKey>(ADMIN, multi), "UnsupportedOperationException");
}

//! Data keys, contexts, blobs, rotation, aliases, references.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::operations::aliases::{CreateAlias, DeleteAlias, ListAliases, UpdateAlias};
use super::super::operations::cipher::{Decrypt, Encrypt, ReEncrypt};
use super::super::operations::data_keys::{GenerateDataKey, GenerateDataKeyWithoutPlaintext, GenerateRandom};
use super::super::operations::keys::{DescribeKey, DisableKey};
use super::super::operations::listing::ListKeys;
use super::super::operations::rotation::{
    DisableKeyRotation, EnableKeyRotation, GetKeyRotationStatus, ListKeyRotations, RotateKeyOnDemand,
};
use super::*;

const ADMIN: PrincipalName = PrincipalName::Admin;

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(text(value)).expect("base64")
}

#[test]
fn data_keys_have_the_length_that_was_asked_for() {
    let world = World::new();
    let arn = world.key(json!({}));
    for (length, got) in [
        (json!({"NumberOfBytes": 64}), 64),
        (json!({"NumberOfBytes": 1}), 1),
        (json!({"NumberOfBytes": 1024}), 1024),
        (json!({"KeySpec": "AES_256"}), 32),
        (json!({"KeySpec": "AES_128"}), 16),
    ] {
        let mut request = length.clone();
        request["KeyId"] = json!(arn);
        let answer = world.call::<GenerateDataKey>(ADMIN, request).expect("a data key");
        assert_eq!(bytes(&answer["Plaintext"]).len(), got);
        assert!(bytes(&answer["CiphertextBlob"]).len() <= 6144);
        let opened = world.call::<Decrypt>(ADMIN, json!({"CiphertextBlob": answer["CiphertextBlob"]}));
        let opened = opened.expect("opened without a key id");
        assert_eq!(opened["Plaintext"], answer["Plaintext"]);
        assert_eq!(opened["KeyMaterialId"], answer["KeyMaterialId"]);
    }
    for bad in [
        json!({"NumberOfBytes": 0}),
        json!({"NumberOfBytes": 1025}),
        json!({"KeySpec": "AES_192"}),
        json!({"KeySpec": "AES_256", "NumberOfBytes": 32}),
        json!({}),
    ] {
        let mut request = bad.clone();
        request["KeyId"] = json!(arn);
        assert_eq!(
            world.code::<GenerateDataKeyWithoutPlaintext>(ADMIN, request),
            "ValidationException",
            "{bad}"
        );
    }
}

#[test]
fn a_blob_opens_under_its_key_and_context_only() {
    let world = World::new();
    let (arn, other) = (world.key(json!({})), world.key(json!({})));
    let request = json!({"KeyId": arn, "Plaintext": "c2VjcmV0", "EncryptionContext": {"ab": "c", "x": "y"}});
    let blob = world.call::<Encrypt>(ADMIN, request).expect("encrypted")["CiphertextBlob"].clone();
    let open = |context: Value, more: Value| {
        let mut request = json!({"CiphertextBlob": blob, "EncryptionContext": context});
        for (name, value) in more.as_object().expect("an object") {
            request[name] = value.clone();
        }
        world.call::<Decrypt>(ADMIN, request)
    };
    let right = json!({"x": "y", "ab": "c"});
    assert_eq!(open(right.clone(), json!({})).expect("opened")["Plaintext"], "c2VjcmV0");
    assert_eq!(open(right.clone(), json!({"KeyId": arn})).expect("opened")["KeyId"], json!(arn));
    for wrong in [json!({}), json!({"a": "bc", "x": "y"}), json!({"AB": "c", "x": "y"}), json!({"ab": "c"})] {
        let code = open(wrong.clone(), json!({})).expect_err("refused").0;
        assert_eq!(code, "InvalidCiphertextException", "{wrong}");
    }
    assert_eq!(open(right.clone(), json!({"KeyId": other})).expect_err("refused").0, "IncorrectKeyException");
    let dry = json!({"DryRun": true});
    assert_eq!(open(right.clone(), dry.clone()).expect_err("dry").0, "DryRunOperationException");
    assert_eq!(open(json!({}), dry).expect_err("checked first").0, "InvalidCiphertextException");
    assert_eq!(
        open(right, json!({"DryRunModifiers": ["IGNORE_CIPHERTEXT"]})).expect_err("no").0,
        "ValidationException"
    );
}

#[test]
fn damaged_and_foreign_blobs_are_refused() {
    let world = World::new();
    let arn = world.key(json!({}));
    let wrapped =
        world.call::<GenerateDataKey>(ADMIN, json!({"KeyId": arn, "NumberOfBytes": 64})).expect("made");
    let good = bytes(&wrapped["CiphertextBlob"]);
    let open = |blob: &[u8], key: Option<&str>| {
        world.call::<Decrypt>(ADMIN, json!({"CiphertextBlob": STANDARD.encode(blob), "KeyId": key}))
    };
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert_eq!(open(&bad, Some(&arn)).expect_err("refused").0, "InvalidCiphertextException", "byte {at}");
        let code = open(&bad, None).expect_err("refused").0;
        assert!(matches!(code, "InvalidCiphertextException" | "AccessDeniedException"), "byte {at}: {code}");
    }
    assert_eq!(open(&[], None).expect_err("empty").0, "ValidationException");
    assert_eq!(open(&vec![1; 6145], None).expect_err("too long").0, "ValidationException");
    assert_eq!(open(&vec![1; 6144], None).expect_err("nonsense").0, "InvalidCiphertextException");
    let elsewhere = World::new();
    let foreign = json!({"CiphertextBlob": wrapped["CiphertextBlob"]});
    assert_eq!(elsewhere.code::<Decrypt>(ADMIN, foreign), "AccessDeniedException");
}

#[test]
fn plaintexts_and_contexts_have_their_limits() {
    let world = World::new();
    let arn = world.key(json!({}));
    let encrypt = |length: usize| {
        world.call::<Encrypt>(ADMIN, json!({"KeyId": arn, "Plaintext": STANDARD.encode(vec![7; length])}))
    };
    assert!(encrypt(4096).is_ok());
    assert_eq!(encrypt(4097).expect_err("too long").0, "ValidationException");
    assert_eq!(encrypt(0).expect_err("empty").0, "ValidationException");
    let long = json!({"KeyId": arn, "NumberOfBytes": 64, "EncryptionContext": {"k": "v".repeat(8192)}});
    assert_eq!(world.code::<GenerateDataKeyWithoutPlaintext>(ADMIN, long), "ValidationException");
    let rsa = json!({"KeyId": arn, "Plaintext": "AA==", "EncryptionAlgorithm": "RSAES_OAEP_SHA_256"});
    assert_eq!(world.code::<Encrypt>(ADMIN, rsa), "ValidationException");
    let random = world.call::<GenerateRandom>(ADMIN, json!({"NumberOfBytes": 32})).expect("random");
    assert_eq!(bytes(&random["Plaintext"]).len(), 32);
    assert_eq!(world.code::<GenerateRandom>(ADMIN, json!({})), "ValidationException");
}

#[test]
fn reencrypt_changes_key_and_context() {
    let world = World::new();
    let (from, to) = (world.key(json!({})), world.key(json!({})));
    let request = json!({"KeyId": from, "NumberOfBytes": 64, "EncryptionContext": {"a": "1"}});
    let old = world.call::<GenerateDataKey>(ADMIN, request).expect("a data key");
    let mut request = json!({"CiphertextBlob": old["CiphertextBlob"], "SourceEncryptionContext": {"a": "1"},
        "DestinationKeyId": to, "DestinationEncryptionContext": {"b": "2"}});
    let new = world.call::<ReEncrypt>(PrincipalName::Provisioner, request.clone()).expect("moved");
    assert_eq!((&new["SourceKeyId"], &new["KeyId"]), (&json!(from), &json!(to)));
    let opened =
        json!({"CiphertextBlob": new["CiphertextBlob"], "KeyId": to, "EncryptionContext": {"b": "2"}});
    assert_eq!(world.call::<Decrypt>(ADMIN, opened).expect("opened")["Plaintext"], old["Plaintext"]);
    request["SourceKeyId"] = json!(to);
    assert_eq!(world.code::<ReEncrypt>(ADMIN, request.clone()), "IncorrectKeyException");
    request["SourceKeyId"] = json!(from);
    request["SourceEncryptionContext"] = json!({});
    assert_eq!(world.code::<ReEncrypt>(ADMIN, request.clone()), "InvalidCiphertextException");
    assert_eq!(world.code::<ReEncrypt>(PrincipalName::Host, request), "AccessDeniedException");
}

#[test]
fn rotation_keeps_old_blobs_open() {
    let world = World::new();
    let arn = world.key(json!({}));
    let generate = || {
        world.call::<GenerateDataKey>(ADMIN, json!({"KeyId": arn, "NumberOfBytes": 64})).expect("a data key")
    };
    let old = generate();
    world.call::<RotateKeyOnDemand>(ADMIN, json!({"KeyId": arn})).expect("rotated");
    let described = world.call::<DescribeKey>(ADMIN, json!({"KeyId": arn})).expect("described");
    let new = generate();
    assert_ne!(old["KeyMaterialId"], new["KeyMaterialId"]);
    assert_eq!(described["KeyMetadata"]["CurrentKeyMaterialId"], new["KeyMaterialId"]);
    assert_eq!(text(&new["KeyMaterialId"]).len(), 64);
    let opened =
        world.call::<Decrypt>(ADMIN, json!({"CiphertextBlob": old["CiphertextBlob"]})).expect("opened");
    assert_eq!((&opened["Plaintext"], &opened["KeyMaterialId"]), (&old["Plaintext"], &old["KeyMaterialId"]));
    let moved = json!({"CiphertextBlob": old["CiphertextBlob"], "DestinationKeyId": arn});
    let moved = world.call::<ReEncrypt>(ADMIN, moved).expect("moved");
    assert_eq!(moved["DestinationKeyMaterialId"], new["KeyMaterialId"]);
    let rotations = world.call::<ListKeyRotations>(ADMIN, json!({"KeyId": arn})).expect("listed");
    assert_eq!(rotations["Rotations"].as_array().map(Vec::len), Some(1));
    assert_eq!(rotations["Rotations"][0]["RotationType"], "ON_DEMAND");
    let all = json!({"KeyId": arn, "IncludeKeyMaterial": "ALL_KEY_MATERIAL"});
    let all = world.call::<ListKeyRotations>(ADMIN, all).expect("listed");
    assert_eq!(all["Rotations"][1]["KeyMaterialState"], "CURRENT");
    for _ in 1..25 {
        world.call::<RotateKeyOnDemand>(ADMIN, json!({"KeyId": arn})).expect("rotated");
    }
    assert_eq!(world.code::<RotateKeyOnDemand>(ADMIN, json!({"KeyId": arn})), "LimitExceededException");
}

#[test]
fn automatic_rotation_comes_when_it_is_due() {
    let world = World::new();
    let arn = world.key(json!({}));
    let key = json!({"KeyId": arn});
    for days in [89, 2561] {
        let enable = json!({"KeyId": arn, "RotationPeriodInDays": days});
        assert_eq!(world.code::<EnableKeyRotation>(ADMIN, enable), "ValidationException");
    }
    world.call::<EnableKeyRotation>(ADMIN, json!({"KeyId": arn, "RotationPeriodInDays": 90})).expect("on");
    let status = world.call::<GetKeyRotationStatus>(PrincipalName::Auditor, key.clone()).expect("status");
    assert_eq!((&status["KeyRotationEnabled"], &status["RotationPeriodInDays"]), (&json!(true), &json!(90)));
    let material = || {
        let request = json!({"KeyId": arn, "NumberOfBytes": 64});
        world.call::<GenerateDataKey>(ADMIN, request).expect("a data key")["KeyMaterialId"].clone()
    };
    let first = material();
    assert_eq!(material(), first);
    world.engine.tuning.advance_clock(91 * 86_400);
    assert_ne!(material(), first);
    world.call::<DisableKeyRotation>(ADMIN, key.clone()).expect("off");
    let status = world.call::<GetKeyRotationStatus>(ADMIN, key.clone()).expect("status");
    assert_eq!(status["KeyRotationEnabled"], json!(false));
    world.call::<DisableKey>(ADMIN, key.clone()).expect("disabled");
    assert_eq!(world.code::<RotateKeyOnDemand>(ADMIN, key), "DisabledException");
}

#[test]
fn aliases_name_keys() {
    let world = World::new();
    let (one, two) = (world.key(json!({})), world.key(json!({})));
    let alias = |name: &str, key: &str| json!({"AliasName": name, "TargetKeyId": key});
    world.call::<CreateAlias>(ADMIN, alias("alias/a", &one)).expect("named");
    assert_eq!(world.code::<CreateAlias>(ADMIN, alias("alias/a", &two)), "AlreadyExistsException");
    assert_eq!(world.code::<CreateAlias>(ADMIN, alias("alias/aws/x", &one)), "InvalidAliasNameException");
    for bad in ["a", "alias/", "alias/a b", ""] {
        assert_eq!(world.code::<CreateAlias>(ADMIN, alias(bad, &one)), "ValidationException", "{bad}");
    }
    let target = |reference: &str| {
        let described = world.call::<DescribeKey>(ADMIN, json!({"KeyId": reference})).expect("described");
        text(&described["KeyMetadata"]["Arn"])
    };
    assert_eq!(target("alias/a"), one);
    let arn = one.split("key/").next().expect("a prefix").to_string() + "alias/a";
    assert_eq!(target(&arn), one);
    world.call::<UpdateAlias>(ADMIN, alias("alias/a", &two)).expect("moved");
    assert_eq!(target("alias/a"), two);
    let listed = world.call::<ListAliases>(PrincipalName::Auditor, json!({"KeyId": two})).expect("listed");
    assert_eq!(listed["Aliases"][0]["AliasArn"], json!(arn));
    assert_eq!(world.code::<UpdateAlias>(ADMIN, alias("alias/b", &two)), "NotFoundException");
    assert_eq!(world.code::<DisableKey>(ADMIN, json!({"KeyId": "alias/a"})), "NotFoundException");
    assert_eq!(world.code::<DisableKey>(ADMIN, json!({"KeyId": arn})), "InvalidArnException");
    world.call::<DeleteAlias>(ADMIN, json!({"AliasName": "alias/a"})).expect("removed");
    assert_eq!(world.code::<DescribeKey>(ADMIN, json!({"KeyId": "alias/a"})), "NotFoundException");
}

#[test]
fn references_that_name_no_key_are_told_apart() {
    let world = World::new();
    let arn = world.key(json!({}));
    let region = arn.replace("us-east-1", "eu-west-1");
    let braced = format!("{{{}}}", arn.rsplit('/').next().expect("an id"));
    for (reference, code) in [
        ("", "ValidationException"),
        ("nonsense", "NotFoundException"),
        ("../kms", "NotFoundException"),
        ("12345678-1234-1234-1234-123456789012", "NotFoundException"),
        ("alias/none", "NotFoundException"),
        (braced.as_str(), "NotFoundException"),
        (region.as_str(), "NotFoundException"),
        ("arn:aws:kms", "InvalidArnException"),
        ("arn:aws:s3:us-east-1:1:key/x", "InvalidArnException"),
    ] {
        assert_eq!(world.code::<DescribeKey>(ADMIN, json!({"KeyId": reference})), code, "{reference}");
    }
    let listed = world.call::<ListKeys>(PrincipalName::Auditor, json!({})).expect("listed");
    assert_eq!(listed["Keys"][0]["KeyArn"], json!(arn));
    assert_eq!(world.code::<ListKeys>(ADMIN, json!({"Marker": "a b"})), "InvalidMarkerException");
    assert_eq!(world.code::<CreateKey>(PrincipalName::Provisioner, json!({})), "AccessDeniedException");
}

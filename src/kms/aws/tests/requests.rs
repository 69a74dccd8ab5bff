//! The requests as they stand on the wire, and what is read out of good answers.

use super::*;
use crate::kms::{CheckOutcome, ErrorClass, KeyRef, KeyService, KeyState};

#[tokio::test]
async fn describe_key() {
    let metadata = json!({
        "Arn": ARN, "KeyId": "1234abcd", "KeyState": "PendingDeletion", "KeySpec": "SYMMETRIC_DEFAULT",
        "KeyUsage": "ENCRYPT_DECRYPT", "Origin": "EXTERNAL", "KeyManager": "AWS", "DeletionDate": 1.8e9,
        "CurrentKeyMaterialId": "m2"
    });
    let (server, kms) = pair([Reply::ok(json!({"KeyMetadata": metadata}))]).await;
    let health = kms.health(&KeyRef::new("alias/sealblk")).await.expect("an answer");
    assert_eq!(server.operations(), ["describekey"]);
    assert_eq!(server.requests()[0].body, json!({"KeyId": "alias/sealblk"}));
    assert_eq!(health.arn, key());
    assert_eq!(health.state, KeyState::PendingDeletion);
    assert_eq!((health.spec.as_str(), health.usage.as_str()), ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT"));
    assert_eq!((health.origin.as_str(), health.manager.as_str()), ("EXTERNAL", "AWS"));
    assert_eq!(health.deletion.map(|date| date.unix_timestamp()), Some(1_800_000_000));
    assert_eq!(health.material.as_deref(), Some("m2"));
}

#[tokio::test]
async fn describe_key_of_an_emulator() {
    let (_server, kms) =
        pair([Reply::ok(json!({"KeyMetadata": {"Arn": ARN, "KeyId": "k", "KeyState": "Enabled"}}))]).await;
    let health = kms.health(&KeyRef::new(ARN)).await.expect("an answer");
    assert_eq!(health.require_usable(), Ok(()));
}

#[tokio::test]
async fn generate_data_key_without_plaintext() {
    let (server, kms) = pair([Reply::ok(generated())]).await;
    let wrapped = kms.generate(&key(), &context(), 64).await.expect("a wrapped key");
    assert_eq!(server.operations(), ["generatedatakeywithoutplaintext"]);
    let expected =
        json!({"KeyId": ARN, "NumberOfBytes": 64, "EncryptionContext": {"volume": "v1", "tenant": "t1"}});
    assert_eq!(server.requests()[0].body, expected);
    assert_eq!((wrapped.key.as_str(), wrapped.blob.as_slice()), (ARN, &b"wrapped"[..]));
    assert_eq!(wrapped.material.as_deref(), Some("m1"));
}

fn grant_request() -> Value {
    json!({
        "KeyId": ARN,
        "GranteePrincipal": "arn:aws:iam::111122223333:role/Host",
        "RetiringPrincipal": "arn:aws:iam::111122223333:role/Provisioner",
        "Operations": ["Decrypt"],
        "Constraints": {"EncryptionContextSubset": {"volume": "v1", "tenant": "t1"}},
        "Name": "sealblk:v1:1"
    })
}

#[tokio::test]
async fn create_grant() {
    let (server, kms) = pair([Reply::ok(json!({"GrantId": GRANT, "GrantToken": TOKEN}))]).await;
    let lease = kms.lease(&key(), &context(), &spec()).await.expect("a grant");
    assert_eq!(server.operations(), ["creategrant"]);
    assert_eq!(server.requests()[0].body, grant_request());
    assert_eq!((lease.grant_id.as_str(), lease.token.expose()), (GRANT, TOKEN));
}

#[tokio::test]
async fn decrypt() {
    let (server, kms) = pair([decrypted()]).await;
    let data_key = kms.unwrap(&wrapped(), &context(), Some(&token()).into()).await.expect("a data key");
    assert_eq!(server.operations(), ["decrypt"]);
    let expected = json!({
        "KeyId": ARN, "CiphertextBlob": "d3JhcHBlZA==", "GrantTokens": [TOKEN],
        "EncryptionContext": {"volume": "v1", "tenant": "t1"}
    });
    assert_eq!(server.requests()[0].body, expected);
    assert_eq!(data_key.expose(), plaintext().0);
}

#[tokio::test]
async fn re_encrypt() {
    let answer = json!({
        "KeyId": OTHER_ARN, "SourceKeyId": ARN, "CiphertextBlob": "bmV3", "DestinationKeyMaterialId": "m2"
    });
    let (server, kms) = pair([Reply::ok(answer)]).await;
    let other = KeyArn::new(OTHER_ARN);
    let mut new = EncryptionContext::default();
    new.insert("volume", "v2").expect("a good pair");
    let rewrapped = kms.rewrap(&wrapped(), &context(), &other, &new).await.expect("a wrapped key");
    assert_eq!(server.operations(), ["reencrypt"]);
    let expected = json!({
        "CiphertextBlob": "d3JhcHBlZA==",
        "SourceKeyId": ARN, "SourceEncryptionContext": {"volume": "v1", "tenant": "t1"},
        "DestinationKeyId": OTHER_ARN, "DestinationEncryptionContext": {"volume": "v2"}
    });
    assert_eq!(server.requests()[0].body, expected);
    assert_eq!((rewrapped.key, rewrapped.blob.as_slice()), (other, &b"new"[..]));
    assert_eq!(rewrapped.material.as_deref(), Some("m2"));
}

#[tokio::test]
async fn requests_say_who_sends_them() {
    let (server, kms) = pair([decrypted()]).await;
    kms.unwrap(&wrapped(), &context(), Permit::default()).await.map(drop).expect("a data key");
    assert!(server.requests()[0].head.contains("app/sealblk"), "{:?}", server.requests());
}

fn would_succeed() -> Reply {
    let message = "The request would have succeeded, but the DryRun option is set.";
    Reply::error(400, "DryRunOperationException", message)
}

#[tokio::test]
async fn preflight_of_aws() {
    let (server, kms) = pair([would_succeed()]).await;
    let preflight = kms.preflight(&key(), &context(), &spec()).await.expect("checks");
    assert!(preflight.checks.iter().all(|check| check.outcome == CheckOutcome::Pass), "{preflight:?}");
    assert_eq!(server.operations(), ["generatedatakeywithoutplaintext", "creategrant"]);
    let mut grant = grant_request();
    grant["DryRun"] = json!(true);
    assert_eq!(server.requests()[1].body, grant);
    assert_eq!(server.requests()[0].body["DryRun"], json!(true));
    assert_eq!(server.requests()[0].body["NumberOfBytes"], json!(64));
}

#[tokio::test]
async fn preflight_without_a_permission() {
    let denied = Reply::error(400, "AccessDeniedException", "User: arn:x is not authorized");
    let (_server, kms) = pair([would_succeed(), denied]).await;
    let preflight = kms.preflight(&key(), &context(), &spec()).await.expect("checks");
    assert_eq!(preflight.checks[0].outcome, CheckOutcome::Pass);
    let error = preflight.require_passed().expect_err("CreateGrant is denied");
    assert_eq!((error.call.as_str(), error.class), ("CreateGrant", ErrorClass::Denied));
}

#[tokio::test]
async fn preflight_of_a_service_that_ignores_dry_run_undoes_the_grant() {
    let made = Reply::ok(json!({"GrantId": GRANT, "GrantToken": TOKEN}));
    let (server, kms) = pair([Reply::ok(generated()), made.clone(), Reply::ok(json!({}))]).await;
    let preflight = kms.preflight(&key(), &context(), &spec()).await.expect("checks");
    let unknown = |check: &crate::kms::Check| matches!(check.outcome, CheckOutcome::CannotTell(_));
    assert!(preflight.checks.iter().all(unknown), "{preflight:?}");
    assert_eq!(server.operations()[2], "retiregrant");
    assert_eq!(server.requests()[2].body, json!({"GrantToken": TOKEN}));

    let broken = Reply::error(400, "ValidationException", "no");
    let (_server, kms) = pair([Reply::ok(generated()), made, broken]).await;
    let preflight = kms.preflight(&key(), &context(), &spec()).await.expect("checks");
    let CheckOutcome::CannotTell(told) = &preflight.checks[1].outcome else { panic!("{preflight:?}") };
    assert!(told.contains(GRANT) && told.contains("could not be ended"), "{told}");
}

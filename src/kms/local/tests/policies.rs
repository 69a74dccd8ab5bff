//! The policies of keys and principals through the API.

use super::super::Admin;
use super::super::operations::aliases::CreateAlias;
use super::super::operations::cipher::{Decrypt, ReEncrypt};
use super::super::operations::data_keys::GenerateDataKeyWithoutPlaintext;
use super::super::operations::ending::{RetireGrant, RevokeGrant};
use super::super::operations::grants::CreateGrant;
use super::super::operations::keys::{DescribeKey, DisableKey};
use super::super::operations::policies::{GetKeyPolicy, ListKeyPolicies, PutKeyPolicy};
use super::*;

const ADMIN: PrincipalName = PrincipalName::Admin;
const PROVISIONER: PrincipalName = PrincipalName::Provisioner;
const HOST: PrincipalName = PrincipalName::Host;
const AUDITOR: PrincipalName = PrincipalName::Auditor;

/// A key policy under which the administrator alone may do everything, and these statements hold.
fn policy(world: &World, statements: &[Value]) -> String {
    let admin = json!({"Effect": "Allow", "Principal": {"AWS": world.arn(ADMIN)}, "Action": "kms:*", "Resource": "*"});
    let statements: Vec<&Value> = [&admin].into_iter().chain(statements).collect();
    json!({"Version": "2012-10-17", "Statement": statements}).to_string()
}

fn allow(world: &World, who: PrincipalName, action: &str, condition: Value) -> Value {
    json!({"Effect": "Allow", "Principal": {"AWS": world.arn(who)}, "Action": action, "Resource": "*",
        "Condition": condition})
}

impl World {
    fn put(&self, arn: &str, policy: &str) -> Result<Value, (&'static str, String)> {
        self.call::<PutKeyPolicy>(ADMIN, json!({"KeyId": arn, "PolicyName": "default", "Policy": policy}))
    }

    /// True if the provisioner may have a data key under this context.
    fn generates(&self, key: &str, context: Value) -> bool {
        let request =
            json!({"KeyId": key, "NumberOfBytes": 64, "EncryptionContext": context, "DryRun": true});
        match self.code::<GenerateDataKeyWithoutPlaintext>(PROVISIONER, request) {
            "DryRunOperationException" => true,
            "AccessDeniedException" => false,
            other => panic!("{other}"),
        }
    }
}

#[test]
fn a_key_policy_is_put_told_and_listed() {
    let world = World::new();
    let arn = world.key(json!({}));
    let told = world.call::<GetKeyPolicy>(AUDITOR, json!({"KeyId": arn})).expect("told");
    assert!(text(&told["Policy"]).contains(":root") && told["PolicyName"] == "default");
    // To the byte, as AWS KMS gives it back.
    let policy = format!(" \n{}", policy(&world, &[]));
    assert_eq!(world.put(&arn, &policy).expect("put"), json!({}));
    let told =
        world.call::<GetKeyPolicy>(ADMIN, json!({"KeyId": arn, "PolicyName": "default"})).expect("told");
    assert_eq!(told, json!({"Policy": policy, "PolicyName": "default"}));
    let listed = world.call::<ListKeyPolicies>(ADMIN, json!({"KeyId": arn})).expect("listed");
    assert_eq!(listed, json!({"PolicyNames": ["default"], "Truncated": false}));
    assert_eq!(
        world.code::<GetKeyPolicy>(ADMIN, json!({"KeyId": arn, "PolicyName": "other"})),
        "NotFoundException"
    );
    let denied = world.call::<GetKeyPolicy>(AUDITOR, json!({"KeyId": arn})).expect_err("not let in any more");
    assert!(
        denied.1.ends_with("because no resource-based policy allows the kms:GetKeyPolicy action"),
        "{denied:?}"
    );
    let event =
        world.events().into_iter().find(|event| event["eventName"] == "PutKeyPolicy").expect("recorded");
    assert_eq!(event["requestParameters"]["policyName"], "default");
    assert_eq!(event["requestParameters"]["bypassPolicyLockoutSafetyCheck"], false);
    assert_eq!(event["responseElements"], json!({"keyId": arn}));
}

#[test]
fn policies_that_are_refused_change_nothing() {
    let world = World::new();
    let arn = world.key(json!({}));
    let locked_out = json!({"Version": "2012-10-17", "Statement": []}).to_string();
    let denied = {
        let mut statement = allow(&world, ADMIN, "kms:PutKeyPolicy", json!({}));
        statement["Effect"] = json!("Deny");
        policy(&world, &[statement])
    };
    let unmet = policy(&world, &[]).replace("\"kms:*\"", "\"kms:Get*\"");
    let long = |bytes: usize| {
        let policy = policy(&world, &[]);
        format!("{policy}{}", " ".repeat(bytes - policy.len()))
    };
    world.put(&arn, &long(32_768)).expect("the longest that there is");
    for (policy, code) in [
        (locked_out.as_str(), "MalformedPolicyDocumentException"),
        (&denied, "MalformedPolicyDocumentException"),
        (&unmet, "MalformedPolicyDocumentException"),
        ("{}", "MalformedPolicyDocumentException"),
        ("", "ValidationException"),
        ("\u{2028}", "ValidationException"),
        (&long(32_769), "LimitExceededException"),
        (&long(131_073), "ValidationException"),
    ] {
        assert_eq!(world.put(&arn, policy).expect_err("refused").0, code, "{:.60}", policy);
        let create = json!({"Policy": policy});
        assert_eq!(world.code::<super::super::operations::keys::CreateKey>(ADMIN, create), code);
    }
    let told = world.call::<GetKeyPolicy>(ADMIN, json!({"KeyId": arn})).expect("told");
    assert_eq!(text(&told["Policy"]), long(32_768));
    let bypass = json!({"KeyId": arn, "Policy": locked_out, "BypassPolicyLockoutSafetyCheck": true});
    world.call::<PutKeyPolicy>(ADMIN, bypass).expect("bypassed");
    assert_eq!(world.put(&arn, &policy(&world, &[])).expect_err("locked out").0, "AccessDeniedException");
    assert_eq!(world.code::<DisableKey>(ADMIN, json!({"KeyId": arn})), "AccessDeniedException");
}

#[test]
fn a_key_is_made_with_its_policy() {
    let world = World::new();
    let statement = allow(&world, PROVISIONER, "kms:DescribeKey", json!({}));
    let arn = world.key(json!({"Policy": policy(&world, &[statement])}));
    world.call::<DescribeKey>(PROVISIONER, json!({"KeyId": arn})).expect("allowed");
    assert!(!world.generates(&arn, json!({})), "its own policy counts for nothing here");
    let locked_out = json!({"Statement": []}).to_string();
    world.key(json!({"Policy": locked_out, "BypassPolicyLockoutSafetyCheck": true}));
}

#[test]
fn conditions_see_the_call() {
    let world = World::new();
    let arn = world.key(json!({}));
    let alias = json!({"AliasName": "alias/x", "TargetKeyId": arn});
    world.call::<CreateAlias>(ADMIN, alias).expect("named");
    let under = |condition: Value| {
        let statement = allow(&world, PROVISIONER, "kms:GenerateDataKeyWithoutPlaintext", condition);
        world.put(&arn, &policy(&world, &[statement])).expect("put");
    };
    let team = json!({"team": "data"});
    for (condition, allowed) in [
        (json!({"StringEquals": {"kms:EncryptionContext:Team": "data"}}), true),
        (json!({"StringEquals": {"kms:EncryptionContext:team": "Data"}}), false),
        (json!({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": "team"}}), true),
        (json!({"ForAllValues:StringEquals": {"kms:EncryptionContextKeys": "job"}}), false),
        (
            json!({"StringEquals": {"kms:KeySpec": "SYMMETRIC_DEFAULT", "kms:KeyUsage": "ENCRYPT_DECRYPT"}}),
            true,
        ),
        (json!({"StringEquals": {"kms:KeyOrigin": "EXTERNAL"}}), false),
        (json!({"StringEquals": {"kms:CallerAccount": world.engine.identity.account}}), true),
        (json!({"StringEquals": {"aws:PrincipalAccount": "000000000000"}}), false),
        (json!({"ArnLike": {"aws:PrincipalArn": "arn:aws:iam::*:user/provisioner"}}), true),
        (json!({"StringEquals": {"aws:PrincipalType": "User"}}), true),
        (json!({"Bool": {"aws:SecureTransport": "true"}}), true),
        (json!({"StringLike": {"kms:ViaService": "*"}}), false),
        (json!({"ArnLike": {"aws:SourceArn": "*"}}), false),
        (json!({"ForAnyValue:StringEquals": {"kms:ResourceAliases": "alias/x"}}), true),
        (json!({"StringEquals": {"kms:RequestAlias": "alias/x"}}), false),
        (json!({"StringEquals": {"kms:EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}}), true),
    ] {
        under(condition.clone());
        assert_eq!(world.generates(&arn, team.clone()), allowed, "{condition}");
    }
    under(json!({"StringEquals": {"kms:RequestAlias": "alias/x"}}));
    assert!(world.generates("alias/x", team));
}

#[test]
fn a_grant_is_judged_by_what_it_would_give() {
    let world = World::new();
    let arn = world.key(json!({}));
    let condition = json!({
        "StringEquals": {
            "kms:EncryptionContext:team": "data",
            "kms:GrantConstraintType": "EncryptionContextSubset",
            "kms:GranteePrincipal": world.arn(HOST),
            "kms:RetiringPrincipal": world.arn(PROVISIONER),
        },
        "ForAllValues:StringEquals": {"kms:GrantOperations": "Decrypt"},
        "Bool": {"kms:GrantIsForAWSResource": "false"},
    });
    let statement = allow(&world, PROVISIONER, "kms:CreateGrant", condition);
    world.put(&arn, &policy(&world, &[statement])).expect("put");
    let good = json!({
        "KeyId": arn, "GranteePrincipal": world.arn(HOST), "RetiringPrincipal": world.arn(PROVISIONER),
        "Operations": ["Decrypt"], "Constraints": {"EncryptionContextSubset": {"team": "data", "volume": "v"}},
    });
    for (change, value) in [
        ("Operations", json!(["Decrypt", "GenerateDataKey"])),
        ("Operations", json!(["Encrypt"])),
        ("GranteePrincipal", json!(world.arn(AUDITOR))),
        ("RetiringPrincipal", json!(world.arn(HOST))),
        ("RetiringPrincipal", Value::Null),
        ("Constraints", json!({"EncryptionContextEquals": {"team": "data"}})),
        ("Constraints", json!({"EncryptionContextSubset": {"team": "other"}})),
        ("Constraints", json!({"EncryptionContextSubset": {"volume": "v"}})),
        ("Constraints", Value::Null),
    ] {
        let mut request = good.clone();
        request[change] = value;
        // A dry run is denied before it is one.
        request["DryRun"] = json!(true);
        assert_eq!(
            world.code::<CreateGrant>(PROVISIONER, request.clone()),
            "AccessDeniedException",
            "{request}"
        );
    }
    world.call::<CreateGrant>(PROVISIONER, good).expect("the one that may be");
}

#[test]
fn a_deny_ends_what_a_grant_gives() {
    let world = World::new();
    let arn = world.key(json!({}));
    let generate = json!({"KeyId": arn, "NumberOfBytes": 64});
    let blob = world.call::<GenerateDataKeyWithoutPlaintext>(ADMIN, generate).expect("a blob");
    let request = json!({"KeyId": arn, "GranteePrincipal": world.arn(HOST), "Operations": ["Decrypt"],
        "RetiringPrincipal": world.arn(PROVISIONER)});
    let grant = world.call::<CreateGrant>(ADMIN, request).expect("granted");
    let decrypt = json!({"CiphertextBlob": blob["CiphertextBlob"], "GrantTokens": [grant["GrantToken"]]});
    // Beside a key policy that does not name the grantee at all.
    world.put(&arn, &policy(&world, &[])).expect("put");
    world.call::<Decrypt>(HOST, decrypt.clone()).expect("granted");
    let deny = |action: &str| json!({"Effect": "Deny", "Principal": "*", "Action": action, "Resource": "*"});
    world.put(&arn, &policy(&world, &[deny("kms:Decrypt"), deny("kms:RetireGrant")])).expect("put");
    let (code, message) = world.call::<Decrypt>(HOST, decrypt).expect_err("denied");
    assert_eq!(code, "AccessDeniedException");
    assert!(
        message.ends_with(&format!("{arn} with an explicit deny in a resource-based policy")),
        "{message}"
    );
    let grant = json!({"KeyId": arn, "GrantId": grant["GrantId"]});
    assert_eq!(world.code::<RetireGrant>(PROVISIONER, grant.clone()), "AccessDeniedException");
    world.call::<RevokeGrant>(ADMIN, grant).expect("revoked");
}

#[test]
fn reencrypt_asks_both_keys() {
    let world = World::new();
    let (one, two) = (world.key(json!({})), world.key(json!({})));
    let blob = world
        .call::<GenerateDataKeyWithoutPlaintext>(ADMIN, json!({"KeyId": one, "NumberOfBytes": 64}))
        .expect("a blob");
    let move_to = |key: &String| {
        let request =
            json!({"CiphertextBlob": blob["CiphertextBlob"], "DestinationKeyId": key, "DryRun": true});
        world.call::<ReEncrypt>(PROVISIONER, request).expect_err("a dry run").0
    };
    assert_eq!(move_to(&two), "DryRunOperationException");
    let same = json!({"Bool": {"kms:ReEncryptOnSameKey": "true"}});
    world.put(&one, &policy(&world, &[allow(&world, PROVISIONER, "kms:ReEncrypt*", same)])).expect("put");
    assert_eq!((move_to(&one), move_to(&two)), ("DryRunOperationException", "AccessDeniedException"));
    let from = allow(&world, PROVISIONER, "kms:ReEncryptFrom", json!({}));
    world.put(&one, &policy(&world, &[from])).expect("put");
    assert_eq!((move_to(&one), move_to(&two)), ("AccessDeniedException", "DryRunOperationException"));
}

#[test]
fn a_directory_of_an_earlier_version_has_the_default_policies() {
    let world = World::new();
    let arn = world.key(json!({}));
    let id = arn.rsplit('/').next().expect("an id");
    let stored =
        std::fs::read_to_string(world.directory.path().join(format!("keys/{id}.json"))).expect("read");
    assert!(!stored.contains("policy"), "a key with the default policy is stored as it always was");
    let principals = std::fs::read_to_string(world.directory.path().join("principals.json")).expect("read");
    assert!(!principals.contains("policy"));
    assert!(!world.directory.path().join("policies.json").exists());
    assert!(world.generates(&arn, json!({})));
}

/// Each call reads the policies anew, so a KMS that is being served obeys those that another process put.
#[test]
fn a_policy_is_obeyed_by_every_process() {
    let world = World::new();
    let arn = world.key(json!({}));
    let other = Admin::open(world.directory.path()).expect("opened");
    assert!(world.generates(&arn, json!({})));
    let none = json!({"Version": "2012-10-17", "Statement": []}).to_string();
    other.put_user_policy(PROVISIONER, &none).expect("put");
    assert!(!world.generates(&arn, json!({})));
    assert_eq!(other.user_policy(PROVISIONER).expect("told"), none);
    let bad = other.put_user_policy(PROVISIONER, "{\"Statement\": [{}]}").expect_err("refused");
    assert_eq!(bad.code.as_deref(), Some("MalformedPolicyDocumentException"));
    std::fs::write(world.directory.path().join("policies.json"), "{\"provisioner\": \"{}\"}")
        .expect("written");
    let damaged = world.code::<DescribeKey>(PROVISIONER, json!({"KeyId": arn}));
    assert_eq!(damaged, "KMSInternalException", "a policy that cannot be read lets nobody in");
}

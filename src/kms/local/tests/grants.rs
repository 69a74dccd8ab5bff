//! Grants: constraints, tokens, names, delay, ends, limits.

use super::super::operations::cipher::Decrypt;
use super::super::operations::data_keys::{GenerateDataKey, GenerateDataKeyWithoutPlaintext};
use super::super::operations::ending::{RetireGrant, RevokeGrant};
use super::super::operations::grants::{CreateGrant, ListGrants, ListRetirableGrants};
use super::super::operations::keys::DescribeKey;
use super::*;

const ADMIN: PrincipalName = PrincipalName::Admin;
const PROVISIONER: PrincipalName = PrincipalName::Provisioner;
const HOST: PrincipalName = PrincipalName::Host;

struct Volume {
    world: World,
    arn: String,
    blob: Value,
}

/// A key and a blob under the context {volume: v1, Team: Data}.
fn volume() -> Volume {
    let world = World::new();
    let arn = world.key(json!({}));
    let request = json!({"KeyId": arn, "NumberOfBytes": 64, "EncryptionContext": context()});
    let wrapped = world.call::<GenerateDataKeyWithoutPlaintext>(PROVISIONER, request).expect("a blob");
    Volume { world, arn, blob: wrapped["CiphertextBlob"].clone() }
}

fn context() -> Value {
    json!({"volume": "v1", "Team": "Data"})
}

impl Volume {
    fn request(&self, more: &Value) -> Value {
        let mut request = json!({
            "KeyId": self.arn,
            "GranteePrincipal": self.world.arn(HOST),
            "RetiringPrincipal": self.world.arn(PROVISIONER),
            "Operations": ["Decrypt"],
        });
        for (name, value) in more.as_object().expect("an object") {
            request[name] = value.clone();
        }
        request
    }

    fn grant(&self, more: Value) -> Value {
        self.world.call::<CreateGrant>(PROVISIONER, self.request(&more)).expect("a grant")
    }

    fn refused(&self, more: Value) -> &'static str {
        self.world.code::<CreateGrant>(PROVISIONER, self.request(&more))
    }

    fn unwrap(&self, tokens: &[&Value]) -> Result<Value, (&'static str, String)> {
        let request = json!({"KeyId": self.arn, "CiphertextBlob": self.blob, "EncryptionContext": context(),
            "GrantTokens": tokens});
        self.world.call::<Decrypt>(HOST, request)
    }

    fn unwrap_code(&self, tokens: &[&Value]) -> &'static str {
        self.unwrap(tokens).expect_err("refused").0
    }
}

#[test]
fn the_host_has_no_right_but_its_grant() {
    let volume = volume();
    let (code, message) = volume.unwrap(&[]).expect_err("refused");
    let (host, arn) = (volume.world.arn(HOST), &volume.arn);
    assert_eq!(code, "AccessDeniedException");
    assert_eq!(
        message,
        format!(
            "User: {host} is not authorized to perform: kms:Decrypt on resource: {arn} because no identity-based \
             policy allows the kms:Decrypt action"
        )
    );
    volume.grant(json!({}));
    assert_eq!(volume.unwrap(&[]).expect("unwrapped")["KeyId"], json!(volume.arn));
    let describe = json!({"KeyId": volume.arn});
    assert_eq!(volume.world.code::<DescribeKey>(HOST, describe), "AccessDeniedException");
    let decrypt = json!({"CiphertextBlob": volume.blob, "EncryptionContext": context()});
    assert_eq!(volume.world.code::<Decrypt>(PROVISIONER, decrypt), "AccessDeniedException");
    let generate = json!({"KeyId": volume.arn, "NumberOfBytes": 64});
    assert_eq!(volume.world.code::<GenerateDataKey>(PROVISIONER, generate), "AccessDeniedException");
}

#[test]
fn constraints_are_enforced() {
    let subset = |pairs: Value| json!({"Constraints": {"EncryptionContextSubset": pairs}});
    let equals = |pairs: Value| json!({"Constraints": {"EncryptionContextEquals": pairs}});
    for (grant, allows) in [
        (subset(context()), true),
        (subset(json!({"volume": "v1"})), true),
        (subset(json!({"VOLUME": "v1", "team": "Data"})), true),
        (subset(json!({"volume": "V1"})), false),
        (subset(json!({"volume": "v1", "job": "7"})), false),
        (equals(context()), true),
        (equals(json!({"VOLUME": "v1", "team": "Data"})), true),
        (equals(json!({"volume": "v1"})), false),
    ] {
        let volume = volume();
        volume.grant(grant.clone());
        assert_eq!(volume.unwrap(&[]).is_ok(), allows, "{grant}");
    }
}

#[test]
fn constraints_names_and_principals_are_checked() {
    let volume = volume();
    let pairs = |n: usize, length: usize| -> Value {
        let pairs = (0..n).map(|i| (format!("k{i}"), json!("v".repeat(length))));
        json!({"Constraints": {"EncryptionContextSubset": Value::Object(pairs.collect())}})
    };
    volume.grant(pairs(8, 46));
    assert_eq!(volume.refused(pairs(9, 1)), "ValidationException");
    assert_eq!(volume.refused(pairs(8, 47)), "ValidationException");
    for name in ["", "a b", "é", &"n".repeat(257)] {
        assert_eq!(volume.refused(json!({"Name": name})), "ValidationException", "{name}");
    }
    volume.grant(json!({"Name": format!("a:b/c_d-{}", "n".repeat(248))}));
    for principal in ["nobody", "arn:aws:s3:::bucket", "arn:aws:iam::1:user/a b"] {
        assert_eq!(
            volume.refused(json!({"GranteePrincipal": principal})),
            "InvalidArnException",
            "{principal}"
        );
    }
    volume.grant(json!({"GranteePrincipal": "fargate.us-east-1.amazonaws.com"}));
    assert_eq!(volume.refused(json!({"Operations": []})), "ValidationException");
    assert_eq!(volume.refused(json!({"Operations": ["Sign"]})), "ValidationException");
    assert_eq!(volume.refused(json!({"KeyId": "alias/none"})), "NotFoundException");
}

#[test]
fn a_name_makes_a_repeated_call_give_the_same_grant_and_another_token() {
    let volume = volume();
    let (one, two) = (volume.grant(json!({"Name": "v1:1"})), volume.grant(json!({"Name": "v1:1"})));
    assert_eq!(one["GrantId"], two["GrantId"]);
    assert_ne!(one["GrantToken"], two["GrantToken"]);
    volume.unwrap(&[&one["GrantToken"]]).expect("the first token holds");
    volume.unwrap(&[&two["GrantToken"]]).expect("and so does the second");
    let other = volume.grant(json!({"Name": "v1:1", "Operations": ["Decrypt", "DescribeKey"]}));
    assert_ne!(one["GrantId"], other["GrantId"], "the same name for something else is another grant");
    assert_ne!(volume.grant(json!({}))["GrantId"], volume.grant(json!({}))["GrantId"]);
}

#[test]
fn a_fresh_grant_needs_its_token_until_the_delay_is_over() {
    let volume = volume();
    volume.world.engine.tuning.delay_grants(300_000);
    let grant = volume.grant(json!({}));
    assert_eq!(volume.unwrap_code(&[]), "AccessDeniedException");
    volume.unwrap(&[&grant["GrantToken"]]).expect("its token works at once");
    volume.world.engine.tuning.advance_clock(301);
    volume.unwrap(&[]).expect("it is everywhere now");
}

#[test]
fn an_ended_grant_lingers_unless_its_token_ended_it() {
    let volume = volume();
    volume.world.engine.tuning.delay_grants(300_000);
    let revoked = volume.grant(json!({}));
    volume.world.engine.tuning.advance_clock(301);
    let by_id = json!({"KeyId": volume.arn, "GrantId": revoked["GrantId"]});
    volume.world.call::<RevokeGrant>(PROVISIONER, by_id.clone()).expect("revoked");
    volume.unwrap(&[]).expect("it still works");
    assert_eq!(volume.world.code::<RevokeGrant>(PROVISIONER, by_id), "NotFoundException");
    let listed = volume.world.call::<ListGrants>(ADMIN, json!({"KeyId": volume.arn})).expect("listed");
    assert_eq!(listed["Grants"], json!([]));
    volume.world.engine.tuning.advance_clock(301);
    assert_eq!(volume.unwrap_code(&[]), "AccessDeniedException");

    let retired = volume.grant(json!({}));
    volume.world.engine.tuning.advance_clock(301);
    let by_token = json!({"GrantToken": retired["GrantToken"]});
    volume.world.call::<RetireGrant>(PROVISIONER, by_token.clone()).expect("retired");
    assert_eq!(volume.unwrap_code(&[]), "AccessDeniedException");
    assert_eq!(volume.unwrap_code(&[&retired["GrantToken"]]), "InvalidGrantTokenException");
    assert_eq!(volume.world.code::<RetireGrant>(PROVISIONER, by_token), "InvalidGrantTokenException");
}

#[test]
fn who_may_retire() {
    let volume = volume();
    let retire = |who, grant: &Value| {
        volume.world.call::<RetireGrant>(who, json!({"GrantToken": grant["GrantToken"]}))
    };
    let plain = volume.grant(json!({}));
    assert_eq!(retire(HOST, &plain).expect_err("not the grantee").0, "AccessDeniedException");
    assert_eq!(retire(PrincipalName::Auditor, &plain).expect_err("no").0, "AccessDeniedException");
    retire(PROVISIONER, &plain).expect("the retiring principal");
    retire(HOST, &volume.grant(json!({"Operations": ["Decrypt", "RetireGrant"]}))).expect("the grantee");
    let others = volume.grant(json!({"RetiringPrincipal": volume.world.arn(ADMIN)}));
    assert_eq!(retire(PROVISIONER, &others).expect_err("another's").0, "AccessDeniedException");
    retire(ADMIN, &others).expect("the admin");
    let both = json!({"GrantToken": "x", "KeyId": volume.arn, "GrantId": plain["GrantId"]});
    assert_eq!(volume.world.code::<RetireGrant>(ADMIN, both), "ValidationException");
    let odd = json!({"KeyId": volume.arn, "GrantId": "zz"});
    assert_eq!(volume.world.code::<RetireGrant>(ADMIN, odd), "InvalidGrantIdException");
}

#[test]
fn dry_runs_change_nothing() {
    let volume = volume();
    assert_eq!(volume.refused(json!({"DryRun": true})), "DryRunOperationException");
    let grant = volume.grant(json!({}));
    let retire = json!({"GrantToken": grant["GrantToken"], "DryRun": true});
    assert_eq!(volume.world.code::<RetireGrant>(PROVISIONER, retire.clone()), "DryRunOperationException");
    assert_eq!(volume.world.code::<RetireGrant>(HOST, retire), "AccessDeniedException");
    let revoke = json!({"KeyId": volume.arn, "GrantId": grant["GrantId"], "DryRun": true});
    assert_eq!(volume.world.code::<RevokeGrant>(PROVISIONER, revoke), "DryRunOperationException");
    let listed = volume.world.call::<ListGrants>(PROVISIONER, json!({"KeyId": volume.arn})).expect("listed");
    assert_eq!(listed["Grants"].as_array().map(Vec::len), Some(1));
    let probe = json!({"KeyId": volume.arn, "EncryptionContext": context(), "DryRun": true,
        "DryRunModifiers": ["IGNORE_CIPHERTEXT"]});
    assert_eq!(volume.world.code::<Decrypt>(HOST, probe), "DryRunOperationException");
}

#[test]
fn tokens_are_checked_and_counted() {
    let volume = volume();
    let grant = volume.grant(json!({}));
    assert_eq!(volume.unwrap_code(&[&json!("forged")]), "InvalidGrantTokenException");
    volume.unwrap(&[&grant["GrantToken"]; 10]).expect("ten are fine");
    assert_eq!(volume.unwrap_code(&[&grant["GrantToken"]; 11]), "ValidationException");
    let other = volume.world.key(json!({}));
    let elsewhere = volume.grant(json!({"KeyId": other}));
    volume.unwrap(&[&elsewhere["GrantToken"]]).expect("another key's token is of no use and no harm");
}

#[test]
fn a_grantee_may_pass_on_what_it_has_and_no_more() {
    let volume = volume();
    let constraint = json!({"EncryptionContextSubset": {"volume": "v1"}});
    volume.grant(json!({"Operations": ["Decrypt", "CreateGrant"], "Constraints": constraint}));
    let pass_on = |more| volume.world.call::<CreateGrant>(HOST, volume.request(&more));
    pass_on(json!({"Constraints": constraint})).expect("the same");
    assert_eq!(pass_on(json!({})).expect_err("wider context").0, "AccessDeniedException");
    let more = json!({"Constraints": constraint, "Operations": ["Encrypt"]});
    assert_eq!(pass_on(more).expect_err("other operation").0, "AccessDeniedException");
}

#[test]
fn grants_are_listed_by_key_and_by_retiring_principal() {
    let volume = volume();
    let ids: Vec<Value> = (0..5).map(|_| volume.grant(json!({}))["GrantId"].clone()).collect();
    let page = json!({"KeyId": volume.arn, "Limit": 3});
    let page = volume.world.call::<ListGrants>(PROVISIONER, page).expect("a page");
    assert_eq!((&page["Truncated"], page["Grants"].as_array().map(Vec::len)), (&json!(true), Some(3)));
    let rest = json!({"KeyId": volume.arn, "Marker": page["NextMarker"]});
    let rest = volume.world.call::<ListGrants>(PROVISIONER, rest).expect("a page");
    assert_eq!((&rest["Truncated"], rest["Grants"].as_array().map(Vec::len)), (&json!(false), Some(2)));
    let one = json!({"KeyId": volume.arn, "GrantId": ids[0]});
    let one = volume.world.call::<ListGrants>(PROVISIONER, one).expect("one");
    assert_eq!(one["Grants"][0]["GrantId"], ids[0]);
    let retirable = json!({"RetiringPrincipal": volume.world.arn(PROVISIONER)});
    let retirable = volume.world.call::<ListRetirableGrants>(ADMIN, retirable).expect("listed");
    assert_eq!(retirable["Grants"].as_array().map(Vec::len), Some(5));
}

#[test]
fn a_key_has_at_most_50000_grants() {
    let volume = volume();
    volume.grant(json!({"Name": "known"}));
    volume.world.edit(&volume.arn, |document| {
        let other = document["grants"][0].clone();
        let grants = document["grants"].as_array_mut().expect("an array");
        grants.resize(50_000, other);
    });
    assert_eq!(volume.refused(json!({})), "LimitExceededException");
    volume.grant(json!({"Name": "known"}));
}

//! Policies that `sealblk policy` prints, put into the embedded KMS: a volume needs all of them, and no more.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::remote_kms::keys;
use crate::support::{Lab, assert_fails, assert_succeeds, finish, text};

const ARGS: [&str; 4] = ["--size", "64M", "--context", "team=data"];
const OF_PERMISSIONS: [&str; 3] =
    ["SealblkDescribeKey", "SealblkMakeWrappedKeys", "SealblkGrantDecryptToTheHost"];

/// A lab with a key `alias/sealblk`, and the policies for it.
struct World {
    lab: Lab,
    printed: Value,
}

fn arn(lab: &Lab, principal: &str) -> String {
    keys(lab, principal)["Arn"].as_str().unwrap().into()
}

fn json_of(lab: &Lab, args: &[&str]) -> Value {
    let output = finish(lab.sealblk(args));
    assert_succeeds(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

impl World {
    fn new(more: &[&str]) -> Self {
        let lab = Lab::new();
        let created = json_of(&lab, &["kms", "create", "--alias", "alias/sealblk", "--json"]);
        let [admin, provisioner, host] = ["admin", "provisioner", "host"].map(|name| arn(&lab, name));
        let key = created["arn"].as_str().unwrap();
        let args =
            ["policy", "--key", key, "--provisioner", &provisioner, "--host", &host, "--admin", &admin];
        let printed = json_of(&lab, &[&args[..], &["--context", "team=data"], more].concat());
        Self { lab, printed }
    }

    fn file(&self, policy: &Value) -> PathBuf {
        let path = self.lab.path("policy.json");
        std::fs::write(&path, policy.to_string()).unwrap();
        path
    }

    fn put(&self, args: &[&str], policy: &Value) {
        let file = self.file(policy);
        let output = finish(self.lab.sealblk([&["kms"], args, &[file.to_str().unwrap()]].concat()));
        assert_succeeds(&output);
        assert_eq!(text(&output.stdout), "");
    }

    fn put_key(&self, policy: &Value) {
        self.put(&["put-key-policy", "alias/sealblk"], policy);
    }

    fn put_user(&self, principal: &str, policy: &Value) {
        self.put(&["put-user-policy", principal], policy);
    }

    fn runs(&self) {
        assert_succeeds(&self.lab.run(&ARGS, "true"));
    }

    fn is_denied(&self, words: &[&str]) {
        let words =
            [&["error: KMS key arn:", "is not authorized to perform", "AccessDeniedException"], words]
                .concat();
        assert_fails(&self.lab.run(&ARGS, "true"), 3, &words);
    }
}

fn nothing() -> Value {
    json!({"Version": "2012-10-17", "Statement": []})
}

fn statement<'a>(policy: &'a mut Value, sid: &str) -> &'a mut Value {
    let statements = policy["Statement"].as_array_mut().unwrap();
    statements.iter_mut().find(|statement| statement["Sid"] == sid).unwrap()
}

/// The policy with one condition's value changed, for each condition of its statements that `wanted` names.
fn narrowed(policy: &Value, wanted: &[&str]) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for sid in wanted {
        let mut original = policy.clone();
        let conditions = statement(&mut original, sid)["Condition"].clone();
        for (operator, keys) in conditions.as_object().into_iter().flatten() {
            for key in keys.as_object().unwrap().keys() {
                let mut changed = policy.clone();
                let value = if operator == "Null" { "false" } else { "something else" };
                statement(&mut changed, sid)["Condition"][operator][key] = json!(value);
                all.push((format!("{sid}, {key}"), changed));
            }
        }
    }
    all
}

fn without(policy: &Value, sid: &str) -> Value {
    let mut policy = policy.clone();
    policy["Statement"].as_array_mut().unwrap().retain(|statement| statement["Sid"] != sid);
    policy
}

/// Nobody but the administrator is left to the account's policies, and those give nothing.
#[test]
fn a_volume_runs_under_the_printed_key_policy_and_nothing_else() {
    let world = World::new(&[]);
    let key = &world.printed["keyPolicy"];
    world.put_user("provisioner", &nothing());
    world.put_user("host", &world.printed["hostPolicy"]);
    world.is_denied(&["no identity-based policy allows the kms:DescribeKey"]);
    world.put_key(key);
    world.runs();
    for sid in OF_PERMISSIONS {
        world.put_key(&without(key, sid));
        world.is_denied(&["no resource-based policy allows", ":user/provisioner"]);
    }
    let narrowed = narrowed(key, &OF_PERMISSIONS);
    assert_eq!(
        narrowed.len(),
        6,
        "context twice, and the grant's type, grantee, retiring principal, operations"
    );
    for (what, policy) in narrowed {
        world.put_key(&policy);
        let output = world.lab.run(&ARGS, "true");
        assert_eq!(output.status.code(), Some(3), "{what}: {}", text(&output.stderr));
    }
    world.put_key(key);
    let other_context = world.lab.run(&["--size", "64M", "--context", "team=other"], "true");
    assert_fails(&other_context, 3, &["kms:GenerateDataKeyWithoutPlaintext", "no resource-based policy"]);
    world.runs();
    assert!(world.lab.journals().is_empty());
}

/// Under AWS's default key policy.
#[test]
fn a_volume_runs_under_the_printed_policies_of_its_principals() {
    let world = World::new(&["--rewrap", "--from-other-provider"]);
    let own = &world.printed["provisionerPolicy"];
    world.put_user("provisioner", own);
    world.put_user("host", &world.printed["hostPolicy"]);
    world.runs();
    for (what, policy) in narrowed(own, &OF_PERMISSIONS) {
        world.put_user("provisioner", &policy);
        let output = world.lab.run(&ARGS, "true");
        assert_fails(&output, 3, &["no identity-based policy allows"]);
        assert!(!text(&output.stderr).contains("panicked"), "{what}");
    }
    let sids: Vec<_> =
        own["Statement"].as_array().unwrap().iter().map(|statement| statement["Sid"].clone()).collect();
    assert_eq!(sids.len(), 6, "{sids:?}");
}

/// The host's policy is a guard rail: it allows nothing, and its Denies win over the grant.
#[test]
fn the_printed_host_policy_keeps_the_host_to_its_volumes() {
    let world = World::new(&[]);
    let host = &world.printed["hostPolicy"];
    world.put_user("host", host);
    world.runs();
    let narrowed = narrowed(host, &["OnlyVolumesOfSealblk", "OnlyThisContext1"]);
    assert_eq!(narrowed.len(), 2);
    for (_, policy) in narrowed {
        world.put_user("host", &policy);
        world.is_denied(&["kms:Decrypt", ":user/host", "with an explicit deny in an identity-based policy"]);
    }
    let mut policy = host.clone();
    statement(&mut policy, "NothingButDecrypt")["NotAction"] = json!("kms:Encrypt");
    world.put_user("host", &policy);
    world.is_denied(&["kms:Decrypt", "with an explicit deny in an identity-based policy"]);
    assert!(world.lab.journals().is_empty(), "a start that was refused ends its grant");
}

#[test]
fn a_deny_in_the_key_policy_wins_over_the_grant() {
    let world = World::new(&[]);
    let mut policy = world.printed["keyPolicy"].clone();
    let host = arn(&world.lab, "host");
    policy["Statement"].as_array_mut().unwrap().push(json!({
        "Effect": "Deny", "Principal": {"AWS": host}, "Action": "kms:Decrypt", "Resource": "*",
    }));
    world.put_key(&policy);
    world.is_denied(&["kms:Decrypt", ":user/host", "with an explicit deny in a resource-based policy"]);
}

#[test]
fn policies_are_shown_as_they_were_put() {
    let world = World::new(&[]);
    let default = json_of(&world.lab, &["kms", "get-key-policy"]);
    assert_eq!(default["Id"], "key-default-1");
    assert!(default["Statement"][0]["Principal"]["AWS"].as_str().unwrap().ends_with(":root"));
    world.put_key(&world.printed["keyPolicy"]);
    assert_eq!(json_of(&world.lab, &["kms", "get-key-policy", "alias/sealblk"]), world.printed["keyPolicy"]);
    let auditor = json_of(&world.lab, &["kms", "get-user-policy", "auditor"]);
    assert_eq!(auditor["Statement"][0]["Action"], json!(["kms:Describe*", "kms:List*", "kms:Get*"]));
    world.put_user("auditor", &nothing());
    assert_eq!(json_of(&world.lab, &["kms", "get-user-policy", "auditor"]), nothing());
}

#[test]
fn policies_that_are_not_taken() {
    let world = World::new(&[]);
    let refused = |args: &[&str], policy: &Value, words: &[&str]| {
        let file = world.file(policy);
        let output = finish(world.lab.sealblk([&["kms"], args, &[file.to_str().unwrap()]].concat()));
        assert_fails(&output, 2, &[&["MalformedPolicyDocumentException"], words].concat());
    };
    let put_key = ["put-key-policy", "alias/sealblk"];
    let lockout = without(&world.printed["keyPolicy"], "KeyAdministration");
    refused(&put_key, &lockout, &["will not allow you to update the key policy in the future"]);
    refused(&["put-user-policy", "host"], &lockout, &["Principal"]);
    refused(&put_key, &json!({"Statement": [], "Note": ""}), &["Note"]);
    let file = world.file(&lockout);
    let bypass = ["kms", "put-key-policy", "--bypass-policy-lockout-safety-check", "alias/sealblk"];
    assert_succeeds(&finish(world.lab.sealblk([&bypass[..], &[file.to_str().unwrap()]].concat())));
    let locked_out = finish(world.lab.sealblk(["kms", "disable"]));
    assert_fails(&locked_out, 3, &["no resource-based policy allows"]);
    world.runs();

    let missing = finish(world.lab.sealblk(["kms", "put-user-policy", "host", "/nonexistent"]));
    assert_fails(&missing, 7, &["/nonexistent", "No such file"]);
}

#[test]
fn one_policy_alone_and_its_spelling() {
    let lab = Lab::new();
    let [key, provisioner, host] = [
        "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        "arn:aws:iam::111122223333:role/Scheduler",
        "arn:aws:iam::111122223333:role/Worker",
    ];
    let args = ["policy", "--key", key, "--provisioner", provisioner, "--host", host];
    let all = json_of(&lab, &args);
    for (which, name) in [("key", "keyPolicy"), ("provisioner", "provisionerPolicy"), ("host", "hostPolicy")]
    {
        assert_eq!(json_of(&lab, &[&args[..], &["--only", which]].concat()), all[name]);
    }
    let root = &all["keyPolicy"]["Statement"][0];
    assert_eq!(root["Principal"]["AWS"], "arn:aws:iam::111122223333:root");
    assert!(!all["hostPolicy"].to_string().contains("\"Allow\""));
    assert!(!all.to_string().contains("kms:Encrypt\"") && !all.to_string().contains("ReEncrypt"));
    assert!(!lab.state().exists(), "it asks no KMS");
    let service = ["policy", "--key", key, "--provisioner", "emr-serverless.amazonaws.com", "--host", host];
    let source = ["--source-arn", "arn:aws:emr-serverless:us-east-1:111122223333:/applications/a"];
    let bound = json_of(&lab, &[&service[..], &source].concat());
    let condition = &bound["keyPolicy"]["Statement"][1]["Condition"];
    assert_eq!(condition["StringEquals"]["aws:SourceAccount"], "111122223333");
    assert_eq!(condition["ArnLike"]["aws:SourceArn"], source[1]);
    assert!(bound["provisionerPolicy"].is_null());
}

#[test]
fn arns_that_are_none() {
    let good = [
        ("--key", "arn:aws:kms:us-east-1:111122223333:key/k"),
        ("--provisioner", "arn:aws:iam::111122223333:role/P"),
        ("--host", "arn:aws:iam::111122223333:user/h"),
    ];
    for (flag, value, word) in [
        ("--key", "alias/sealblk", "--key"),
        ("--key", "arn:aws:kms:us-east-1:111122223333:alias/x", "aliases"),
        ("--key", "arn:aws:kms:us-east-1:1111:key/k", "--key"),
        ("--provisioner", "alice", "--provisioner"),
        ("--provisioner", "arn:aws:iam::111122223333:root", "--provisioner"),
        ("--host", "arn:aws:iam::111122223333:role/*", "--host"),
        ("--host", "ec2.amazonaws.com", "--host"),
        ("--host", "arn:aws:iam::111122223333:role/P", "are the same"),
        ("--admin", "arn:aws:s3:::bucket", "--admin"),
        ("--source-arn", "arn:aws:x:us-east-1:111122223333:y", "lock the provisioner out"),
        ("--context", "sealblk:volume=x", "reserved"),
    ] {
        let mut args = vec!["policy"];
        for (name, fine) in good.iter().filter(|(name, _)| *name != flag) {
            args.extend([*name, *fine]);
        }
        args.extend([flag, value]);
        assert_fails(&finish(Lab::new().sealblk(args)), 2, &[word]);
    }
    let service = ["policy", "--key", good[0].1, "--provisioner", "x.amazonaws.com", "--host", good[2].1];
    let bad_source = [&service[..], &["--source-arn", "arn:aws:x:::y"]].concat();
    assert_fails(&finish(Lab::new().sealblk(bad_source)), 2, &["--source-arn"]);
    let none_of_its_own = [&service[..], &["--only", "provisioner"]].concat();
    assert_fails(&finish(Lab::new().sealblk(none_of_its_own)), 2, &["no policy of its own"]);
}

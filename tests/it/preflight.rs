//! `sealblk preflight`: what it tells about a key and about the permissions on it.

use std::process::Output;

use serde_json::{Value, json};

use crate::peer::nobody;
use crate::remote_kms::{RemoteKms, keys, with_credentials};
use crate::support::{Lab, assert_fails, assert_succeeds, finish, text};

const DRY_RUNS: [&str; 2] = ["GenerateDataKeyWithoutPlaintext, dry run", "CreateGrant, dry run"];

fn lab() -> Lab {
    let lab = Lab::new();
    assert_succeeds(&finish(lab.sealblk(["kms", "create", "--alias", "alias/sealblk"])));
    lab
}

fn preflight(lab: &Lab, args: &[&str]) -> Output {
    finish(lab.sealblk([&["preflight"], args].concat()))
}

/// The objects of `--json`: the checks, and the summary behind them.
fn told(output: &Output) -> (Vec<Value>, Value) {
    let mut lines: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let summary = lines.pop().unwrap();
    assert_eq!(summary["event"], "summary");
    assert!(lines.iter().all(|check| check["event"] == "check"), "{lines:?}");
    (lines, summary)
}

fn named<'a>(checks: &'a [Value], name: &str) -> &'a Value {
    checks.iter().find(|check| check["check"] == name).unwrap_or_else(|| panic!("no {name} in {checks:?}"))
}

fn put_provisioners(lab: &Lab, statements: Value) {
    let file = lab.path("policy.json");
    std::fs::write(&file, json!({"Version": "2012-10-17", "Statement": statements}).to_string()).unwrap();
    let put = lab.sealblk(["kms", "put-user-policy", "provisioner", file.to_str().unwrap()]);
    assert_succeeds(&finish(put));
}

#[test]
fn a_healthy_key() {
    let lab = lab();
    let output = preflight(&lab, &["--context", "team=data"]);
    assert_succeeds(&output);
    let table = text(&output.stdout);
    for row in ["KMS is reachable", "DescribeKey", "key state", "parties", DRY_RUNS[0], DRY_RUNS[1]] {
        assert!(table.lines().any(|line| line.starts_with("pass ") && line.contains(row)), "{row}: {table}");
    }
    assert!(table.contains("cannot tell  Decrypt by the host"), "{table}");
    assert!(table.contains("user/provisioner") && table.contains("user/host"), "{table}");
    assert!(table.ends_with("10 passed, 0 failed, 1 cannot be told\n"), "{table}");
    assert!(!table.contains('\u{1b}'), "no colours in a file");
    assert_eq!(text(&output.stderr), "");
    let grants = |event: &Value| event["eventName"] == "CreateGrant" && event.get("errorCode").is_none();
    assert!(!lab.events().iter().any(grants), "nothing was made");
}

#[test]
fn json_is_one_object_a_check_and_a_summary() {
    let lab = lab();
    let output = preflight(&lab, &["--json", "--rewrap"]);
    assert_succeeds(&output);
    let (checks, summary) = told(&output);
    assert_eq!(checks.len(), 12);
    assert_eq!(summary, json!({"event": "summary", "pass": 10, "fail": 0, "cannot_tell": 2, "exit_code": 0}));
    assert_eq!(named(&checks, "key state")["detail"], "Enabled");
    assert_eq!(named(&checks, "ReEncrypt")["outcome"], "cannot-tell");
    for check in &checks {
        assert!(["pass", "cannot-tell"].contains(&check["outcome"].as_str().unwrap()), "{check}");
        assert!(check["detail"].is_string() && check.get("error").is_none(), "{check}");
    }
    let off = told(&preflight(&lab, &["--json", "--preflight", "off"])).0;
    assert!(DRY_RUNS.iter().all(|name| named(&off, name)["outcome"] == "cannot-tell"));
}

#[test]
fn a_disabled_key() {
    let lab = lab();
    assert_succeeds(&finish(lab.sealblk(["kms", "disable"])));
    let output = preflight(&lab, &["--json"]);
    assert_fails(&output, 4, &["its key state is Disabled, and Enabled is needed"]);
    let (checks, summary) = told(&output);
    assert_eq!(named(&checks, "key state")["outcome"], "fail");
    assert_eq!(named(&checks, "key spec")["outcome"], "pass", "later checks go on");
    for name in DRY_RUNS {
        let check = named(&checks, name);
        assert_eq!(
            (&check["outcome"], &check["error"]["code"]),
            (&json!("fail"), &json!("DisabledException"))
        );
        assert!(check["hint"].as_str().unwrap().contains("not a permission"), "{check}");
        assert!(check.get("statement").is_none(), "no policy helps");
    }
    assert_eq!((&summary["fail"], &summary["exit_code"]), (&json!(3), &json!(4)));
}

#[test]
fn an_unknown_key() {
    let lab = lab();
    let output = preflight(&lab, &["--key", "alias/none"]);
    assert_fails(&output, 4, &["alias/none", "NotFoundException"]);
    let table = text(&output.stdout);
    assert!(
        table.contains("pass         KMS is reachable") && table.contains("FAIL         DescribeKey"),
        "{table}"
    );
    assert!(table.contains("cannot tell  CreateGrant, dry run"), "{table}");
    let other_account = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    assert_fails(&preflight(&lab, &["--key", other_account]), 4, &["NotFoundException"]);
    assert_fails(&preflight(&lab, &["--key", "arn:nonsense"]), 2, &["InvalidArnException"]);
}

#[test]
fn a_provisioner_that_may_not_make_grants() {
    let lab = lab();
    let allowed = ["kms:DescribeKey", "kms:GenerateDataKeyWithoutPlaintext"];
    put_provisioners(&lab, json!([{"Effect": "Allow", "Action": allowed, "Resource": "*"}]));
    let output = preflight(&lab, &["--json", "--context", "team=data"]);
    assert_fails(&output, 3, &["CreateGrant", "no identity-based policy"]);
    let (checks, _) = told(&output);
    assert_eq!(named(&checks, DRY_RUNS[0])["outcome"], "pass");
    let failed = named(&checks, DRY_RUNS[1]);
    assert_eq!(
        (&failed["permission"], &failed["policy"]),
        (&json!("kms:CreateGrant"), &json!("provisioner"))
    );
    assert!(failed["principal"].as_str().unwrap().ends_with(":user/provisioner"));
    assert!(failed["hint"].as_str().unwrap().contains("kms:ViaService"));
    // The statement that it names is the one that helps.
    let allowed = json!({"Effect": "Allow", "Action": allowed, "Resource": "*"});
    put_provisioners(&lab, json!([allowed, failed["statement"]]));
    assert_succeeds(&preflight(&lab, &["--context", "team=data"]));
    let table = text(&preflight(&lab, &["--context", "team=other"]).stdout);
    assert!(table.contains("missing: kms:CreateGrant, for arn:aws:iam::"), "{table}");
    assert!(table.contains("\"kms:EncryptionContext:team\":\"other\""), "{table}");
}

#[test]
fn a_provisioner_that_may_do_nothing_or_is_denied() {
    let lab = lab();
    put_provisioners(&lab, json!([]));
    let output = preflight(&lab, &["--json"]);
    assert_fails(&output, 3, &["kms:DescribeKey"]);
    let (checks, summary) = told(&output);
    assert_eq!(summary["fail"], 3, "every call is tried, the key's ARN being in the refusal");
    assert_eq!(named(&checks, "DescribeKey")["statement"]["Action"], "kms:DescribeKey");
    put_provisioners(
        &lab,
        json!([
            {"Effect": "Allow", "Action": "kms:*", "Resource": "*"},
            {"Effect": "Deny", "Action": "kms:CreateGrant", "Resource": "*"},
        ]),
    );
    let (checks, _) = told(&preflight(&lab, &["--json"]));
    let denied = named(&checks, DRY_RUNS[1]);
    assert!(denied["hint"].as_str().unwrap().contains("Deny wins") && denied.get("statement").is_none());
}

/// Where the key's policy keeps the account out, the statement that helps is one of the key's.
#[test]
fn a_key_policy_without_the_provisioner() {
    let lab = lab();
    let admin = keys(&lab, "admin")["Arn"].clone();
    let all = json!({"Effect": "Allow", "Principal": {"AWS": admin}, "Action": "kms:*", "Resource": "*"});
    let put = |statements: Value| {
        let file = lab.path("key-policy.json");
        std::fs::write(&file, json!({"Statement": statements}).to_string()).unwrap();
        let put = lab.sealblk(["kms", "put-key-policy", "alias/sealblk", file.to_str().unwrap()]);
        assert_succeeds(&finish(put));
    };
    put(json!([all]));
    let output = preflight(&lab, &["--json"]);
    assert_fails(&output, 3, &["no resource-based policy allows"]);
    let (checks, _) = told(&output);
    let statements: Vec<&Value> = checks.iter().filter_map(|check| check.get("statement")).collect();
    assert_eq!(statements.len(), 3, "{checks:?}");
    assert!(checks.iter().filter_map(|check| check.get("policy")).all(|policy| policy == "key"));
    put(json!([all, statements[0], statements[1], statements[2]]));
    assert_succeeds(&preflight(&lab, &[]));
}

fn on(lab: &Lab, address: &str, args: &[&str]) -> Output {
    let endpoint = format!("http://{address}");
    let fixed = ["preflight", "--kms", "aws", "--region", "us-east-1", "--kms-endpoint", &endpoint];
    let more = ["--provisioner-profile", "provisioner", "--host-profile", "host"];
    let patience = ["--kms-attempt-timeout", "1", "--kms-deadline", "15"];
    finish(with_credentials(lab, lab.sealblk([&fixed, &more[..], &patience, args].concat())))
}

#[test]
fn over_http_and_an_endpoint_where_nobody_is() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    let output = on(&lab, &kms.address, &["--json"]);
    assert_succeeds(&output);
    let (checks, _) = told(&output);
    let parties = named(&checks, "parties")["detail"].as_str().unwrap();
    assert!(parties.contains("user/provisioner, host arn:") && parties.ends_with("user/host"), "{parties}");
    put_provisioners(&lab, json!([]));
    let (checks, _) = told(&on(&lab, &kms.address, &["--json"]));
    assert!(named(&checks, DRY_RUNS[1])["statement"].is_object(), "{checks:?}");
    let nobody = nobody();
    let output = on(&lab, &nobody, &["--json"]);
    assert_fails(&output, 5, &["DescribeKey failed", &nobody]);
    let (checks, summary) = told(&output);
    assert_eq!((&checks[0]["check"], &checks[0]["outcome"]), (&json!("KMS is reachable"), &json!("fail")));
    assert_eq!((&summary["fail"], &summary["pass"]), (&json!(1), &json!(0)));
}

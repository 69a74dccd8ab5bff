//! KMS keys that cannot be used, and encryption contexts that no grant could hold.

use crate::leavings::{calls, refused, refused_at_once};
use crate::remote_kms::RemoteKms;
use crate::support::{Lab, assert_succeeds, finish, python, text};

/// Makes a key and returns its ARN.
fn key(lab: &Lab, alias: &str) -> String {
    let output = finish(lab.sealblk(["kms", "create", "--alias", alias, "--json"]));
    assert_succeeds(&output);
    let key: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    key["arn"].as_str().unwrap().into()
}

/// No data key was made under a key that cannot be used.
fn unusable(lab: &Lab, key: &str, words: &[&str]) {
    for preflight in ["on", "off"] {
        let args = ["--size", "1M", "--key", key, "--preflight", preflight];
        refused(lab, &args, 4, &[words, &["error: KMS key", "DescribeKey", "--key"]].concat());
    }
    assert_eq!(calls(lab, "GenerateDataKeyWithoutPlaintext"), 0);
    assert_eq!(calls(lab, "CreateGrant"), 0);
}

#[test]
fn an_unknown_key() {
    let lab = Lab::new();
    for name in ["1234abcd-12ab-34cd-56ef-1234567890ab", "alias/none"] {
        unusable(&lab, name, &[name, "NotFoundException", "request "]);
    }
    let arn = key(&lab, "alias/known");
    // The right Region and account, and a key that is not there.
    let other = format!("{}/1234abcd-12ab-34cd-56ef-1234567890ab", arn.rsplit_once('/').unwrap().0);
    unusable(&lab, &other, &[&other, "NotFoundException"]);
}

#[test]
fn what_is_no_key() {
    let lab = Lab::new();
    for name in [" ", "not a key", "arn:aws:s3:::bucket", "alias/"] {
        let args = ["--size", "1M", "--key", name];
        let output = finish(lab.sealblk([&["run"], &args[..], &["--", "true"]].concat()));
        let code = output.status.code();
        assert!(matches!(code, Some(2 | 4)), "{name:?}: {code:?}: {}", text(&output.stderr));
    }
    assert_eq!(calls(&lab, "CreateGrant"), 0);
}

#[test]
fn a_disabled_key() {
    let lab = Lab::new();
    let arn = key(&lab, "alias/off");
    assert_succeeds(&finish(lab.sealblk(["kms", "disable", "alias/off"])));
    unusable(&lab, "alias/off", &[&arn, "key state is Disabled", "Enabled is needed"]);
    unusable(&lab, &arn, &[&arn, "Disabled"]);
    // And it is the state that was in the way, nothing else.
    assert_succeeds(&finish(lab.sealblk(["kms", "enable", "alias/off"])));
    assert_succeeds(&lab.run(&["--size", "1M", "--key", "alias/off"], "true"));
}

#[test]
fn a_key_pending_deletion() {
    let lab = Lab::new();
    let arn = key(&lab, "alias/doomed");
    assert_succeeds(&finish(lab.sealblk(["kms", "schedule-deletion", "alias/doomed", "--days", "7"])));
    unusable(&lab, "alias/doomed", &[&arn, "PendingDeletion", "will be deleted on"]);
}

const ASYMMETRIC: &str = "\
import boto3, sys
key = boto3.client('kms').create_key(KeySpec=sys.argv[1], KeyUsage=sys.argv[2])
print(key['KeyMetadata']['Arn'])
";

#[test]
fn an_asymmetric_key() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    for (spec, usage) in [("RSA_2048", "ENCRYPT_DECRYPT"), ("ECC_NIST_P256", "SIGN_VERIFY")] {
        let mut client = python();
        client.args(["-c", ASYMMETRIC, spec, usage]);
        let output = finish(kms.as_admin(&lab, client));
        assert_succeeds(&output);
        let arn = text(&output.stdout).trim().to_owned();
        unusable(&lab, &arn, &[&arn, spec, "SYMMETRIC_DEFAULT is needed"]);
    }
}

#[test]
fn a_reserved_prefix() {
    for pair in ["aws:ebs:id=vol-1", "AWS:x=y", "sealblk:volume=vol-1", "Sealblk:x=y"] {
        let name = pair.split_once('=').unwrap().0;
        refused_at_once(&["--size", "1M", "--context", pair], 2, &[name, "reserved prefix"]);
    }
}

#[test]
fn more_pairs_than_a_grant_holds() {
    let pairs: Vec<String> = (0..8).map(|i| format!("k{i}:v")).collect();
    let text = |count: usize| pairs[..count].join(",");
    for (count, told) in [(7, "9 pairs"), (8, "pairs")] {
        refused_at_once(&["--size", "1M", "--context", &text(count)], 2, &[told, "at most 8"]);
    }
    // Six of the user's and sealblk's two are what fits.
    assert_succeeds(&Lab::new().run(&["--size", "1M", "--context", &text(6)], "true"));
}

#[test]
fn more_characters_than_a_grant_holds() {
    let long = format!("note={}", "x".repeat(380));
    refused_at_once(&["--size", "1M", "--context", &long], 2, &["characters", "at most 384"]);
}

#[test]
fn keys_that_differ_by_nothing_but_case() {
    let args = ["--size", "1M", "--context", "Team=a", "--context", "team=b"];
    refused_at_once(&args, 2, &["\"Team\"", "\"team\"", "case"]);
    refused_at_once(&["--size", "1M", "--context", "a=1", "--context", "a=2"], 2, &["\"a\""]);
}

#[test]
fn what_is_no_pair() {
    for (pair, word) in [("lonely", "key=value"), ("=x", "empty"), ("a:b,c", "key=value")] {
        refused_at_once(&["--size", "1M", "--context", pair], 2, &["encryption context", word]);
    }
}

//! The data key's whole life: provisioned by one, opened by another, revoked, disabled, rotated, moved, retired.
//!
//! Three principals of the embedded KMS behind its HTTP face: a provisioner who may not decrypt, a host that may
//! do nothing but what its grant allows, an auditor.

mod durable;
mod misuse;

use std::path::Path;

use serde_json::Value;

use crate::enveloped::{Load, Pair, assert_verified, facts, fio};
use crate::leavings::live_grants;
use crate::remote_kms::keys;
use crate::support::{Volume, assert_fails, assert_succeeds, finish, text};

fn text_of<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

#[test]
fn the_host_calls_decrypt_and_nothing_else() {
    let pair = Pair::new();
    let checked = finish(pair.provisioner(&["preflight", "--size", "64M"]));
    assert_succeeds(&checked);
    pair.provision(&["--context", "team=data"]);
    let sealed_not_yet = facts(&pair.lab, &pair.envelope());
    assert_eq!(sealed_not_yet["sealed"], false);
    assert!(pair.lab.path("envelope.token").exists());

    let volume = Volume::spawn(pair.run(&[]));
    let mut verify = fio(&volume.uri);
    verify.args(["--rw=randrw", "--bsrange=512-64k", "--size=16M"]);
    assert_verified(&finish(verify));
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_eq!((text_of(&record, "/grant/ended"), &record["keys_wiped"]), ("kept", &Value::Bool(true)));
    assert_eq!(record["encryption_context"]["team"], "data");

    assert_eq!(facts(&pair.lab, &pair.envelope())["sealed"], true);
    assert_eq!(pair.calls_of("host"), ["Decrypt"]);
    assert!(!pair.calls_of("provisioner").contains(&"Decrypt".to_owned()));
    let (key, grant) = (text_of(&record, "/kms_key"), text_of(&record, "/grant/id"));
    let grants = pair.boto3(
        "auditor",
        &format!("[print(g['GrantId'], g['GranteePrincipal'], g['Operations']) for g in kms.list_grants(KeyId='{key}')['Grants']]"),
    );
    assert_eq!(grants, format!("{grant} {} ['Decrypt']", text_of(&keys(&pair.lab, "host"), "/Arn")));
}

#[test]
fn the_provisioner_cannot_open_what_it_made() {
    let pair = Pair::new();
    pair.provision(&[]);
    let envelope = pair.envelope();
    let path = envelope.to_str().unwrap();
    let run = ["run", "--host-profile", "provisioner", "--envelope", path, "--", "true"];
    let output = finish(pair.provisioner(&run));
    let provisioner = keys(&pair.lab, "provisioner");
    assert_fails(
        &output,
        3,
        &["Decrypt failed", text_of(&provisioner, "/Arn"), "missing permission kms:Decrypt"],
    );
    assert_eq!(facts(&pair.lab, &envelope)["sealed"], false);
}

#[test]
fn revoked_while_it_is_served() {
    let pair = Pair::new();
    pair.provision(&[]);
    let volume = Volume::spawn(pair.run(&[]));
    let load = Load::start(&volume);
    let facts = facts(&pair.lab, &pair.envelope());
    let (key, grant) = (text_of(&facts, "/slots/0/kms_key"), text_of(&facts, "/slots/0/grant/id"));
    pair.boto3("admin", &format!("kms.revoke_grant(KeyId='{key}', GrantId='{grant}')"));
    assert_eq!(pair.boto3("auditor", &format!("print(kms.list_grants(KeyId='{key}')['Grants'])")), "[]");
    load.verify();
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_fails(&pair.reopen(), 3, &["Decrypt failed", "user/host", "missing permission kms:Decrypt"]);
}

#[test]
fn disabled_and_doomed_while_it_is_served() {
    let pair = Pair::new();
    pair.provision(&[]);
    let volume = Volume::spawn(pair.run(&[]));
    let load = Load::start(&volume);
    pair.admin(&["disable"]);
    let other = pair.lab.path("other");
    let new = ["provision", "--size", "1M", "-o", other.to_str().unwrap()];
    assert_fails(&finish(pair.provisioner(&new)), 4, &["Disabled"]);
    pair.admin(&["schedule-deletion", "--days", "7"]);
    assert_fails(&finish(pair.provisioner(&new)), 4, &["PendingDeletion"]);
    assert!(!other.exists());
    load.verify();
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_fails(&pair.reopen(), 4, &["Decrypt"]);
    pair.admin(&["cancel-deletion"]);
    pair.admin(&["enable"]);
    assert_succeeds(&pair.reopen());
}

/// What the old material wrapped stays readable; a rewrap moves it to the newest.
#[test]
fn rotated_twice() {
    let pair = Pair::new();
    pair.provision(&[]);
    let envelope = pair.envelope();
    let material = || text_of(&facts(&pair.lab, &envelope), "/slots/0/key_material").to_owned();
    let first = material();
    for _ in 0..2 {
        let key = facts(&pair.lab, &envelope);
        let rotate = format!("kms.rotate_key_on_demand(KeyId='{}')", text_of(&key, "/slots/0/kms_key"));
        pair.boto3("admin", &rotate);
        assert_succeeds(&pair.reopen());
        assert_eq!(material(), first);
    }
    let host = keys(&pair.lab, "host");
    let host = ["--grantee", text_of(&host, "/Arn")];
    let rewrap = finish(pair.provisioner(&[&["rewrap", envelope.to_str().unwrap()], &host[..]].concat()));
    assert_succeeds(&rewrap);
    assert_succeeds(&pair.reopen());
    let newest = material();
    assert_ne!(newest, first);
    let key = facts(&pair.lab, &envelope);
    let current = format!(
        "print(kms.describe_key(KeyId='{}')['KeyMetadata']['CurrentKeyMaterialId'])",
        text_of(&key, "/slots/0/kms_key")
    );
    assert_eq!(pair.boto3("auditor", &current), newest);
}

/// Who moves the key is not the grantee: the host verifies the new slot when it opens the volume next.
#[test]
fn moved_by_the_provisioner_and_verified_by_the_host() {
    let pair = Pair::new();
    pair.provision(&[]);
    assert_succeeds(&pair.reopen());
    let envelope = pair.envelope();
    let before = facts(&pair.lab, &envelope);
    pair.admin(&["create", "--alias", "alias/next"]);
    let rewrap = ["rewrap", envelope.to_str().unwrap(), "--to-key", "alias/next"];
    let host = text_of(&before, "/slots/0/grant/grantee");
    // The envelope alone is not believed about who may open it.
    assert_fails(&finish(pair.provisioner(&rewrap)), 2, &[host, "user/provisioner", "--grantee"]);
    assert_eq!(live_grants(&pair.lab.events()).len(), 1);
    let output = finish(pair.provisioner(&[&rewrap[..], &["--grantee", host]].concat()));
    assert_succeeds(&output);
    assert!(text(&output.stderr).contains("pending"), "{}", text(&output.stderr));

    let moved = facts(&pair.lab, &envelope);
    assert_eq!(moved["slots"], before["slots"], "the old way stays until the host has tried the new one");
    assert_ne!(text_of(&moved, "/pending/kms_key"), text_of(&before, "/slots/0/kms_key"));
    assert_eq!(moved["pending"]["grant"]["grantee"], before["slots"][0]["grant"]["grantee"]);

    assert_succeeds(&pair.reopen());
    let after = facts(&pair.lab, &envelope);
    assert_eq!((&after["pending"], &after["slots"][0]), (&Value::Null, &moved["pending"]));
    assert_eq!(after["slots"].as_array().unwrap().len(), 1);
    // The host may not end the old grant, and leaves it to the provisioner.
    assert_eq!(after["superseded_grants"], 1);
    assert_succeeds(&finish(pair.provisioner(&["retire", envelope.to_str().unwrap()])));
    assert!(live_grants(&pair.lab.events()).is_empty());
    assert_fails(&pair.reopen(), 3, &["Decrypt failed"]);
    assert!(pair.calls_of("host").iter().all(|call| call == "Decrypt"));
}

/// A run with the credentials of both sides, which can move its own key.
fn both(pair: &Pair, envelope: &Path, socket: &Path) -> Volume {
    let control = format!("unix:{}", socket.display());
    let args = ["run", "--json", "--envelope", envelope.to_str().unwrap(), "--control", &control];
    Volume::spawn(pair.host(&[&args[..], &["--provisioner-profile", "provisioner"]].concat()))
}

#[test]
fn moved_while_it_is_served_and_the_old_key_doomed() {
    let pair = Pair::new();
    pair.provision(&[]);
    pair.admin(&["create", "--alias", "alias/next"]);
    let (envelope, socket) = (pair.envelope(), pair.lab.path("control"));
    let volume = both(&pair, &envelope, &socket);
    let before = facts(&pair.lab, &envelope);
    let load = Load::start(&volume);
    let id = text_of(&volume.serving, "/volume").to_owned();
    assert_succeeds(&finish(pair.host(&["rewrap", &id, "--to-key", "alias/next"])));
    let after = facts(&pair.lab, &envelope);
    assert_ne!(after["slots"][0]["kms_key"], before["slots"][0]["kms_key"]);
    assert_eq!((&after["pending"], &after["superseded_grants"]), (&Value::Null, &Value::from(0)));
    pair.admin(&["disable"]);
    pair.admin(&["schedule-deletion", "--days", "7"]);
    load.verify();
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_eq!(record["kms_key"], after["slots"][0]["kms_key"]);
    assert_succeeds(&pair.reopen());
    let live = live_grants(&pair.lab.events());
    assert_eq!(live.into_iter().collect::<Vec<_>>(), [text_of(&after, "/slots/0/grant/id")]);
}

#[test]
fn retired() {
    let pair = Pair::new();
    pair.provision(&[]);
    let (envelope, token) = (pair.envelope(), pair.lab.path("envelope.token"));
    assert_succeeds(&pair.reopen());
    let retire = ["retire", envelope.to_str().unwrap()];
    let output = finish(pair.provisioner(&retire));
    assert_succeeds(&output);
    assert!(text(&output.stdout).contains("retired"), "{}", text(&output.stdout));
    assert!(facts(&pair.lab, &envelope)["retired"].is_string());
    assert!(live_grants(&pair.lab.events()).is_empty());
    assert_fails(&pair.reopen(), 3, &["Decrypt failed"]);
    // Once more, for good: that the grant is gone is no failure.
    let output = finish(pair.provisioner(&[&retire[..], &["--erase"]].concat()));
    assert_succeeds(&output);
    assert!(text(&output.stdout).contains("already gone"), "{}", text(&output.stdout));
    assert!(!envelope.exists() && !token.exists());
    assert_fails(&pair.reopen(), 7, &["envelope", "No such file"]);
}

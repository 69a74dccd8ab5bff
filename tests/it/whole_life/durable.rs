//! Volumes that stay, and scratch ones that do not, at the embedded KMS.

use std::path::Path;

use serde_json::Value;

use super::text_of;
use crate::enveloped::{facts, kms, pattern, read, write};
use crate::leavings::{World, live_grants};
use crate::remote_kms::{RemoteKms, keys, with_credentials};
use crate::support::{Lab, Volume, assert_fails, assert_succeeds, finish, text};

/// A volume of 16 MiB made by `run --durable`, with something written at its beginning.
fn made(lab: &Lab) -> Vec<u8> {
    let bytes = pattern(1 << 20, 1);
    let args = ["--size", "16M", "--durable", "envelope", "--backing"];
    let volume = Volume::start(lab, &[&args[..], &[lab.path("backing").to_str().unwrap()]].concat());
    write(lab, &volume, &bytes);
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_eq!(
        (&record["backing"]["ended"], &record["grant"]["ended"]),
        (&"preserved".into(), &"kept".into())
    );
    bytes
}

fn opened(lab: &Lab, args: &[&str]) -> Volume {
    let backing = lab.path("backing");
    Volume::start(lab, &[&["--envelope", "envelope", "--backing", backing.to_str().unwrap()], args].concat())
}

#[test]
fn what_was_written_is_read_back() {
    let lab = Lab::new();
    let bytes = made(&lab);
    assert!(lab.journals().is_empty());
    let raw = std::fs::read(lab.path("backing")).unwrap();
    assert_eq!(raw.len(), 16 << 20);
    assert!(!raw.windows(32).any(|window| window == &bytes[4096..4128]), "plaintext on the backing");
    for _ in 0..2 {
        let volume = opened(&lab, &["--size", "16M"]);
        assert_eq!(read(&lab, &volume, bytes.len()), bytes);
        assert!(volume.stop().0.success());
    }
    let facts = facts(&lab, &lab.path("envelope"));
    assert_eq!((&facts["life"], &facts["sealed"]), (&"durable".into(), &Value::Bool(true)));
    assert_eq!(live_grants(&lab.events()).len(), 1);
}

/// Envelope, token and backing are copied; nothing else of the first host is needed.
#[test]
fn on_another_host() {
    let lab = Lab::new();
    let bytes = made(&lab);
    let other = Lab::new();
    for name in ["envelope", "envelope.token", "backing"] {
        std::fs::copy(lab.path(name), other.path(name)).unwrap();
    }
    let kms = format!("local:{}", lab.state().join("kms").display());
    let volume = opened(&other, &["--kms", &kms]);
    assert_eq!(read(&other, &volume, bytes.len()), bytes);
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert!(other.journals().is_empty());
    // The same wrapped key at a KMS that is another one.
    let own = ["run", "--envelope", "envelope", "--backing", "backing", "--", "true"];
    let output = finish(other.sealblk(own));
    assert!(matches!(output.status.code(), Some(4 | 6)), "{}", text(&output.stderr));
    assert_fails(&output, output.status.code().unwrap(), &["Decrypt"]);
}

#[test]
fn provisioned_first_and_opened_later() {
    let lab = Lab::new();
    assert_succeeds(&finish(lab.sealblk(["provision", "--size", "16M", "--durable", "-o", "envelope"])));
    let bytes = pattern(1 << 20, 2);
    let volume = opened(&lab, &[]);
    write(&lab, &volume, &bytes);
    assert!(volume.stop().0.success());
    let volume = opened(&lab, &["--read-only"]);
    assert_eq!(read(&lab, &volume, bytes.len()), bytes);
    assert!(volume.stop().0.success());
}

#[test]
fn a_scratch_volume_begins_anew() {
    let lab = Lab::new();
    assert_succeeds(&finish(lab.sealblk(["provision", "--size", "16M", "-o", "envelope"])));
    for _ in 0..2 {
        let volume = opened(&lab, &[]);
        assert_eq!(read(&lab, &volume, 4096), [0; 4096], "nothing of the last time");
        write(&lab, &volume, &pattern(4096, 3));
        let (status, record) = volume.stop();
        assert!(status.success(), "{record}");
        assert_eq!(record["backing"]["ended"], "removed");
        assert!(!lab.path("backing").exists());
    }
}

#[test]
fn moved_where_it_lies() {
    let lab = Lab::new();
    let bytes = made(&lab);
    let before = facts(&lab, &lab.path("envelope"));
    kms(&lab, &["create", "--alias", "alias/next"]);
    let output = finish(lab.sealblk(["rewrap", "envelope", "--to-key", "alias/next"]));
    assert_succeeds(&output);
    let after = facts(&lab, &lab.path("envelope"));
    assert_ne!(text_of(&after, "/slots/0/kms_key"), text_of(&before, "/slots/0/kms_key"));
    assert_eq!((&after["pending"], &after["superseded_grants"]), (&Value::Null, &Value::from(0)));
    assert_eq!(after["slots"].as_array().unwrap().len(), 1);
    kms(&lab, &["disable"]);
    kms(&lab, &["schedule-deletion", "--days", "7"]);
    let volume = opened(&lab, &[]);
    assert_eq!(read(&lab, &volume, bytes.len()), bytes);
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_eq!(record["kms_key"], after["slots"][0]["kms_key"]);
    let live = live_grants(&lab.events());
    assert_eq!(live.into_iter().collect::<Vec<_>>(), [text_of(&after, "/slots/0/grant/id")]);
    assert!(lab.journals().is_empty());
}

/// With both slots kept, either key is enough.
#[test]
fn beside_the_old_key() {
    let lab = Lab::new();
    let bytes = made(&lab);
    kms(&lab, &["create", "--alias", "alias/next"]);
    assert_succeeds(&finish(lab.sealblk(["rewrap", "envelope", "--to-key", "alias/next", "--keep"])));
    assert_eq!(facts(&lab, &lab.path("envelope"))["slots"].as_array().unwrap().len(), 2);
    for key in ["alias/next", "alias/sealblk"] {
        kms(&lab, &["disable", key]);
        let volume = opened(&lab, &[]);
        assert_eq!(read(&lab, &volume, bytes.len()), bytes);
        assert!(volume.stop().0.success());
        kms(&lab, &["enable", key]);
    }
    assert_eq!(live_grants(&lab.events()).len(), 2);
}

/// Eight slots are the most: a ninth would make an envelope that nobody can read.
#[test]
fn eight_ways_and_no_ninth() {
    let lab = Lab::new();
    let bytes = made(&lab);
    for _ in 1..8 {
        assert_succeeds(&finish(lab.sealblk(["rewrap", "envelope", "--keep"])));
    }
    let before = std::fs::read(lab.path("envelope")).unwrap();
    assert_fails(&finish(lab.sealblk(["rewrap", "envelope", "--keep"])), 2, &["eight slots", "--keep"]);
    assert_eq!(std::fs::read(lab.path("envelope")).unwrap(), before);
    let volume = opened(&lab, &[]);
    assert_eq!(read(&lab, &volume, bytes.len()), bytes);
    assert!(volume.stop().0.success());
    assert_succeeds(&finish(lab.sealblk(["rewrap", "envelope"])));
    assert_eq!(facts(&lab, &lab.path("envelope"))["slots"].as_array().unwrap().len(), 1);
    assert_eq!(live_grants(&lab.events()).len(), 1);
}

/// After a rewrap of the served volume its grants are the envelope's, wherever that lies when somebody looks.
#[test]
fn moved_while_served_then_killed_and_renamed() {
    let lab = Lab::new();
    let bytes = made(&lab);
    let control = format!("unix:{}", lab.path("control").display());
    let volume = opened(&lab, &["--control", &control]);
    assert_succeeds(&finish(lab.sealblk(["rewrap", &control])));
    assert_succeeds(&finish(lab.sealblk(["rewrap", &control, "--keep"])));
    assert_fails(&finish(lab.sealblk(["rewrap", &control, "--to-key", "alias/none"])), 4, &["alias/none"]);
    volume.signal(9);
    drop(volume.end());
    let elsewhere = lab.path("elsewhere");
    std::fs::rename(lab.path("envelope"), &elsewhere).unwrap();
    assert_succeeds(&finish(lab.sealblk(["gc"])));
    std::fs::rename(&elsewhere, lab.path("envelope")).unwrap();
    assert_eq!(live_grants(&lab.events()).len(), 2);
    let volume = opened(&lab, &[]);
    assert_eq!(read(&lab, &volume, bytes.len()), bytes);
    assert!(volume.stop().0.success());
}

#[test]
fn through_a_symbolic_link() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("kept")).unwrap();
    assert_succeeds(&finish(lab.sealblk(["provision", "--size", "1M", "-o", "kept/envelope"])));
    std::os::unix::fs::symlink("kept/envelope", lab.path("link")).unwrap();
    let token = lab.path("kept/envelope.token");
    let args = ["run", "--envelope", "link", "--grant-token", token.to_str().unwrap(), "--", "true"];
    assert_succeeds(&finish(lab.sealblk(args)));
    assert!(Path::new(&lab.path("link")).symlink_metadata().unwrap().is_symlink());
    assert_eq!(facts(&lab, &lab.path("kept/envelope"))["sealed"], true);
}

/// What the dead process left is not taken for a leftover, even if its envelope lies elsewhere by then.
#[test]
fn killed_and_renamed() {
    let lab = Lab::new();
    let backing = lab.path("backing");
    let args = ["--size", "16M", "--durable", "first", "--backing", backing.to_str().unwrap()];
    let volume = Volume::start(&lab, &args);
    let bytes = pattern(1 << 20, 4);
    write(&lab, &volume, &bytes);
    volume.signal(9);
    drop(volume.end());
    for name in ["", ".token"] {
        std::fs::rename(lab.path(&format!("first{name}")), lab.path(&format!("envelope{name}"))).unwrap();
    }
    assert_eq!(lab.journals().len(), 1);
    assert_succeeds(&finish(lab.sealblk(["gc"])));
    assert!(lab.journals().is_empty());
    assert_eq!(live_grants(&lab.events()).len(), 1);
    let volume = opened(&lab, &[]);
    assert_eq!(read(&lab, &volume, bytes.len()), bytes);
    assert!(volume.stop().0.success());
}

/// Before it is sealed, a durable volume is not there yet: all of it is cleared away.
#[test]
fn a_start_that_fails_leaves_nothing() {
    let lab = Lab::new();
    kms(&lab, &["create", "--alias", "alias/sealblk"]);
    let before = World::of(&lab);
    let grantee = "arn:aws:iam::111122223333:user/nobody";
    let args = ["run", "--size", "1M", "--durable", "envelope", "--backing", "backing", "--grantee", grantee];
    assert_fails(&finish(lab.sealblk(args)), 3, &["Decrypt failed"]);
    assert_eq!(World::of(&lab), before);
}

/// From the embedded KMS to one that is reached as AWS is, which could be in another account or region.
#[test]
fn moved_to_another_service() {
    let lab = Lab::new();
    let bytes = made(&lab);
    let other = Lab::new();
    let remote = RemoteKms::start(&other);
    let endpoint = format!("http://{}", remote.address);
    let aws = ["--region", "us-east-1", "--kms-endpoint", &endpoint];
    let profiles = ["--provisioner-profile", "provisioner", "--host-profile", "host"];
    let host = keys(&other, "host");
    let to = ["--to-kms", "aws", "--to-key", "alias/sealblk", "--grantee", text_of(&host, "/Arn")];
    let rewrap = lab.sealblk([&["rewrap", "envelope"], &aws[..], &profiles, &to].concat());
    assert_succeeds(&finish(with_credentials(&other, rewrap)));
    let facts = facts(&lab, &lab.path("envelope"));
    assert_eq!((&facts["slots"][0]["provider"], &facts["pending"]), (&"aws".into(), &Value::Null));
    assert_eq!(facts["slots"].as_array().unwrap().len(), 1);
    assert!(live_grants(&lab.events()).is_empty(), "the old grant has ended");
    // The first KMS is not needed any more, and the kind of the second stands in the envelope.
    std::fs::remove_dir_all(lab.state().join("kms")).unwrap();
    let args = ["run", "--json", "--envelope", "envelope", "--backing", "backing"];
    let run = lab.sealblk([&args, &aws[..], &profiles].concat());
    let volume = Volume::spawn(with_credentials(&other, run));
    assert_eq!(read(&lab, &volume, bytes.len()), bytes);
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_eq!(record["provider"], "aws");
}

/// What would be cleared away is told, and nothing is done about it.
#[test]
fn leftovers_are_looked_at_first() {
    let lab = Lab::new();
    assert_succeeds(&finish(lab.sealblk(["provision", "--size", "1M", "-o", "envelope"])));
    let volume = opened(&lab, &[]);
    volume.signal(9);
    drop(volume.end());
    let before = World::of(&lab);
    for _ in 0..2 {
        let output = finish(lab.sealblk(["gc", "--dry-run"]));
        assert_succeeds(&output);
        let told = text(&output.stdout);
        assert!(told.contains(lab.path("backing").to_str().unwrap()), "{told}");
        assert!(!told.contains("grant"), "the envelope's is no leftover: {told}");
        assert_eq!(World::of(&lab), before);
    }
    assert_succeeds(&finish(lab.sealblk(["gc"])));
    assert!(!lab.path("backing").exists() && lab.path("envelope").exists() && lab.journals().is_empty());
    assert_eq!(World::of(&lab).grants, before.grants);
    let volume = opened(&lab, &[]);
    assert!(volume.stop().0.success());
}

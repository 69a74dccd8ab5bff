//! Envelopes, backings and tokens that are not what they should be.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::enveloped::{facts, kms};
use crate::leavings::{World, live_grants, refused_at_once};
use crate::support::{Lab, Volume, assert_fails, assert_succeeds, finish, text, tool, wait};

fn provisioned(args: &[&str]) -> Lab {
    let lab = Lab::new();
    let fixed = ["provision", "--size", "1M", "-o", "envelope"];
    assert_succeeds(&finish(lab.sealblk([&fixed, args].concat())));
    lab
}

fn run(lab: &Lab, args: &[&str]) -> Output {
    finish(lab.sealblk([&["run", "--envelope", "envelope"], args, &["--", "true"]].concat()))
}

/// Refused, and everything as it was.
fn refused(lab: &Lab, args: &[&str], code: i32, words: &[&str]) {
    let before = (World::of(lab), std::fs::read(lab.path("envelope")).unwrap());
    assert_fails(&run(lab, args), code, words);
    assert!(before == (World::of(lab), std::fs::read(lab.path("envelope")).unwrap()), "{words:?}");
}

/// Whoever comes second touches nothing of the first one's.
#[test]
fn two_make_it_at_once() {
    for _ in 0..3 {
        let lab = Lab::new();
        kms(&lab, &["create", "--alias", "alias/sealblk"]);
        let make = || {
            let mut command = lab.sealblk(["provision", "--size", "1M", "-o", "envelope"]);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            command.spawn().unwrap()
        };
        let codes = [make(), make()].map(|mut child| wait(&mut child).code().unwrap());
        assert!(codes == [0, 7] || codes == [7, 0] || codes == [7, 7], "{codes:?}");
        if codes.contains(&0) {
            assert_succeeds(&run(&lab, &[]));
            assert_eq!(live_grants(&lab.events()).len(), 1);
        }
    }
}

#[test]
fn the_backing_in_the_envelopes_own_place() {
    let lab = Lab::new();
    let before = World::of(&lab);
    for backing in ["new", "new.token", "new.new", "./new.token.new"] {
        let args = ["run", "--size", "1M", "--durable", "new", "--backing", backing, "--", "true"];
        assert_fails(&finish(lab.sealblk(args)), 2, &[backing.trim_start_matches("./"), "envelope's own"]);
    }
    assert_eq!(World::of(&lab), before);
}

#[test]
fn another_process_has_the_envelope() {
    let lab = provisioned(&[]);
    let volume = Volume::start(&lab, &["--envelope", "envelope"]);
    assert_fails(&run(&lab, &[]), 7, &["envelope", "is in use by another sealblk"]);
    for command in ["rewrap", "retire"] {
        assert_fails(&finish(lab.sealblk([command, "envelope"])), 7, &["is in use by another sealblk"]);
    }
    assert_eq!(facts(&lab, &lab.path("envelope"))["sealed"], true, "looking at it is no use of it");
    assert!(volume.stop().0.success());
    assert_succeeds(&run(&lab, &[]));
}

#[test]
fn another_process_has_the_backing() {
    let lab = provisioned(&["--durable"]);
    let volume = Volume::start(&lab, &["--envelope", "envelope", "--backing", "backing"]);
    std::fs::copy(lab.path("envelope"), lab.path("copy")).unwrap();
    let args = ["run", "--envelope", "copy", "--backing", "backing", "--", "true"];
    assert_fails(&finish(lab.sealblk(args)), 7, &["backing", "is in use by another process"]);
    assert!(volume.stop().0.success());
    assert_succeeds(&finish(lab.sealblk(args)));
}

#[test]
fn backings_that_do_not_fit() {
    let lab = provisioned(&["--durable"]);
    for fleeting in ["memory", "."] {
        refused(&lab, &["--backing", fleeting], 2, &["durable", "--backing"]);
    }
    refused(&lab, &[], 2, &["durable", "--backing"]);
    assert_succeeds(&run(&lab, &["--backing", "backing"]));
    // From now on it holds what must not be lost.
    refused(&lab, &["--backing", "missing"], 7, &["missing", "No such file"]);
    assert!(!lab.path("missing").exists());
    std::fs::write(lab.path("short"), vec![1; 1 << 19]).unwrap();
    refused(&lab, &["--backing", "short"], 7, &["short", "524288 bytes", "1048576"]);
    refused(&lab, &["--backing", "memory"], 2, &["durable", "--backing"]);
    let new = ["run", "--size", "1M", "--durable", "new", "--backing", "memory", "--", "true"];
    assert_fails(&finish(lab.sealblk(new)), 2, &["durable", "--backing"]);
    assert!(!lab.path("new").exists() && !lab.path("new.token").exists());
}

/// Tokens are checked by the KMS: one that belongs to another grant is none.
#[test]
fn tokens_that_do_not_fit() {
    let lab = provisioned(&[]);
    refused(&lab, &["--grant-token", "missing"], 2, &["--grant-token missing"]);
    std::fs::write(lab.path("empty"), "").unwrap();
    refused(&lab, &["--grant-token", "empty"], 2, &["--grant-token empty"]);
    std::fs::write(lab.path("garbage"), "garbage").unwrap();
    assert_fails(&run(&lab, &["--grant-token", "garbage"]), 3, &["Decrypt", "InvalidGrantToken"]);
    assert!(!text(&run(&lab, &["--grant-token", "garbage"]).stderr).contains("garbage"));
    assert_succeeds(&finish(lab.sealblk(["provision", "--size", "1M", "-o", "other"])));
    assert_succeeds(&run(&lab, &["--grant-token", "other.token"]));
}

#[test]
fn a_token_in_the_envelope_or_nowhere() {
    for (place, carried) in [("envelope", true), ("none", false)] {
        let lab = provisioned(&["--token", place]);
        assert!(!lab.path("envelope.token").exists());
        let text_of_it = std::fs::read_to_string(lab.path("envelope")).unwrap();
        assert_eq!(text_of_it.contains("\"token\""), carried);
        assert_succeeds(&run(&lab, &[]));
    }
}

#[test]
fn another_size() {
    let lab = provisioned(&[]);
    refused(&lab, &["--size", "2M"], 2, &["--size 2M", "1048576 bytes"]);
    assert_succeeds(&run(&lab, &["--size", "1M"]));
}

#[test]
fn what_is_there_already_stays() {
    let lab = Lab::new();
    kms(&lab, &["create", "--alias", "alias/sealblk"]);
    std::fs::create_dir(lab.path("directory")).unwrap();
    std::fs::write(lab.path("file"), "precious").unwrap();
    std::fs::write(lab.path("lonely.token"), "precious").unwrap();
    std::os::unix::fs::symlink("nowhere", lab.path("link")).unwrap();
    let before = World::of(&lab);
    for name in ["file", "directory", "link", "lonely"] {
        let output = finish(lab.sealblk(["provision", "--size", "1M", "-o", name]));
        assert_fails(&output, 7, &[name, "exists already"]);
    }
    let durable = ["run", "--size", "1M", "--durable", "file", "--backing", "backing", "--", "true"];
    assert_fails(&finish(lab.sealblk(durable)), 7, &["file", "exists already"]);
    let missing = finish(lab.sealblk(["provision", "--size", "1M", "-o", "no/such/envelope"]));
    assert_fails(&missing, 7, &["no/such/envelope", "No such file"]);
    assert_eq!(World::of(&lab), before);
    assert_eq!(std::fs::read(lab.path("file")).unwrap(), b"precious");
    assert!(lab.journals().is_empty());
}

/// Runs `sealblk ARGS` where the envelope's directory is mounted read-only.
fn read_only(lab: &Lab, args: &[&str]) -> Command {
    let inner = lab.sealblk(args);
    let mut outer = tool("unshare");
    outer.args(if is_root() { &["--mount"][..] } else { &["--mount", "--user", "--map-root-user"] });
    let script = "mount --bind ro ro && mount -o remount,bind,ro ro && exec \"$@\"";
    outer.args(["sh", "-uc", script, "sh"]).arg(inner.get_program()).args(inner.get_args());
    outer.current_dir(inner.get_current_dir().unwrap());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

fn is_root() -> bool {
    let mut id = Command::new("id");
    id.arg("-u");
    finish(id).stdout == b"0\n"
}

#[test]
fn an_envelope_that_cannot_be_written() {
    let lab = Lab::new();
    let directory: PathBuf = lab.path("ro");
    std::fs::create_dir(&directory).unwrap();
    assert_succeeds(&finish(lab.sealblk(["provision", "--size", "1M", "-o", "ro/envelope"])));
    let run = ["run", "--envelope", "ro/envelope"];
    let output = finish(read_only(&lab, &[&run[..], &["--", "true"]].concat()));
    assert_fails(&output, 7, &["write", "ro/envelope", "Read-only file system"]);
    assert!(lab.journals().is_empty());
    for _ in 0..2 {
        let output = finish(read_only(&lab, &[&run[..], &["--seal", "off", "--", "true"]].concat()));
        assert_succeeds(&output);
    }
    assert_eq!(facts(&lab, &directory.join("envelope"))["sealed"], false);
    assert_eq!(live_grants(&lab.events()).len(), 1, "the grant is the envelope's");
    // Sealed, there is nothing to write any more.
    assert_succeeds(&finish(lab.sealblk([&run[..], &["--", "true"]].concat())));
    assert_succeeds(&finish(read_only(&lab, &[&run[..], &["--", "true"]].concat())));
}

/// Unsealed, a durable volume would be taken for one that is new, and its data for somebody else's.
#[test]
fn a_durable_volume_has_to_be_sealed() {
    let lab = provisioned(&["--durable"]);
    refused(&lab, &["--seal", "off", "--backing", "backing"], 2, &["--seal off", "durable"]);
    assert!(!lab.path("backing").exists());
    assert_succeeds(&run(&lab, &["--backing", "backing"]));
    assert_succeeds(&run(&lab, &["--seal", "off", "--backing", "backing"]));
}

/// A scratch volume's data dies with its key; a durable one's is there to stay.
#[test]
fn flushes_of_a_durable_volume_are_not_ignored() {
    let words = ["error: flushes", "durable", "--flush honour"];
    refused_at_once(&["--size=1M", "--durable=envelope", "--backing=file", "--flush=ignore"], 2, &words);
    let lab = provisioned(&["--durable"]);
    refused(&lab, &["--flush=ignore", "--backing", "backing"], 2, &words);
    assert_succeeds(&run(&lab, &["--backing", "backing"]));
    assert_succeeds(&run(&lab, &["--flush=ignore", "--read-only", "--backing", "backing"]));
    assert_succeeds(&run(&provisioned(&[]), &["--flush=ignore"]));
}

#[test]
fn what_is_no_envelope() {
    let lab = Lab::new();
    kms(&lab, &["create", "--alias", "alias/sealblk"]);
    std::fs::create_dir(lab.path("directory")).unwrap();
    std::fs::write(lab.path("long"), vec![b' '; 256 * 1024 + 1]).unwrap();
    std::fs::write(lab.path("binary"), [0xff; 100]).unwrap();
    std::fs::write(lab.path("empty"), "").unwrap();
    std::fs::write(lab.path("other"), "{\"sealblk_envelope\": 2}").unwrap();
    let cases: [(&str, i32, &str); 6] = [
        ("missing", 7, "No such file"),
        ("directory", 7, "not a regular file"),
        ("long", 7, "longer than 262144 bytes"),
        ("binary", 6, "not text"),
        ("empty", 6, "cannot be read"),
        ("other", 6, "its format is 2"),
    ];
    for (name, code, words) in cases {
        let open = ["run", "--envelope", name, "--", "true"];
        for command in [&open[..], &["inspect", name], &["rewrap", name], &["retire", name]] {
            assert_fails(&finish(lab.sealblk(command)), code, &[name, words]);
        }
    }
    assert!(lab.journals().is_empty());
}

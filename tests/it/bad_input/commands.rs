//! COMMAND's own failures, and a record that cannot be written.

use crate::leavings::{World, refused, refused_at_once};
use crate::support::{Lab, assert_succeeds, finish, text};

/// Runs COMMAND under a volume: its exit code, and the record, which is always printed.
fn code_of(command: &[&str], reason: &str) -> Option<i32> {
    let lab = Lab::new();
    let before = World::of(&lab);
    let mut run = lab.sealblk([&["run", "--size", "1M", "--"], command].concat());
    // A directory that may not be searched would make "not found" a "permission denied" (execvp(3)).
    run.env("PATH", "/usr/bin:/bin");
    let output = finish(run);
    let stderr = text(&output.stderr);
    let record: serde_json::Value = serde_json::from_str(stderr.lines().last().unwrap()).expect(&stderr);
    assert!(record["reason"].as_str().unwrap().contains(reason), "{record}");
    assert_eq!(record["keys_wiped"], true, "{record}");
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    assert_eq!(World::of(&lab), before);
    output.status.code()
}

#[test]
fn a_command_that_is_not_there() {
    assert_eq!(code_of(&["sealblk-no-such-command"], "could not be run"), Some(127));
    assert_eq!(code_of(&["/nonexistent/command"], "could not be run"), Some(127));
}

#[test]
fn a_command_that_cannot_be_executed() {
    let lab = Lab::new();
    let path = lab.path("data");
    std::fs::write(&path, "no program").unwrap();
    assert_eq!(code_of(&[path.to_str().unwrap()], "could not be run"), Some(126));
    assert_eq!(code_of(&["/"], "could not be run"), Some(126));
}

#[test]
fn a_command_that_a_signal_ends() {
    for signal in [9, 11, 15] {
        let script = format!("kill -{signal} $$");
        assert_eq!(code_of(&["sh", "-c", &script], &format!("signal: {signal}")), Some(128 + signal));
    }
}

#[test]
fn a_commands_own_status() {
    for status in [0, 1, 5, 99, 255] {
        let script = format!("exit {status}");
        assert_eq!(code_of(&["sh", "-c", &script], &format!("exit status: {status}")), Some(status));
    }
}

#[test]
fn what_a_command_sees() {
    let lab = Lab::new();
    let script = "[ \"$uri\" = \"$SEALBLK_URI\" ] && [ -S \"$unixsocket\" ] && [ \"$exportname\" = data ]";
    assert_succeeds(&lab.run(&["--size", "1M", "--export", "data"], script));
}

/// Found out while it costs nothing: before the KMS is asked for anything.
#[test]
fn a_record_that_cannot_be_written() {
    for (path, told) in [
        ("/nonexistent/record", "No such file"),
        ("/", "Is a directory"),
        // Not even root makes a file there.
        ("/sys/sealblk-record", "denied"),
    ] {
        refused_at_once(&["--size", "1M", "--record", path], 7, &["error: open record", path, told]);
    }
}

/// The record's file is opened early; where no volume follows, none of it may stay.
#[test]
fn a_record_of_nothing() {
    let lab = Lab::new();
    let record = lab.path("record");
    let args = ["--size", "1M", "--key", "alias/none", "--record", record.to_str().unwrap()];
    refused(&lab, &args, 4, &["alias/none"]);
    // A file that was there before stays, with what it holds.
    std::fs::write(&record, "earlier\n").unwrap();
    refused(&lab, &args, 4, &["alias/none"]);
    assert_eq!(std::fs::read(&record).unwrap(), b"earlier\n");
}

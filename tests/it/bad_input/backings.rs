//! Files and directories that a volume cannot lie on.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use crate::leavings::{refused, refused_at_once, refuses};
use crate::support::{Lab, Volume, assert_succeeds, finish, mounted, text, tool};

/// A file with a name, made of nothing but a hole.
fn sparse(lab: &Lab, name: &str, size: u64) -> String {
    let path = lab.path(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn a_file_that_another_volume_lies_on() {
    let lab = Lab::new();
    let path = lab.path("backing");
    let path = path.to_str().unwrap();
    let volume = Volume::start(&lab, &["--size", "1M", "--backing", path]);
    refused(
        &lab,
        &["--size", "1M", "--backing", path],
        7,
        &["error: backing", path, "in use", "choose another"],
    );
    let (status, record) = volume.stop();
    assert!(status.success(), "the first user is not disturbed: {record}");
}

#[test]
fn a_file_that_is_too_small() {
    let lab = Lab::new();
    let path = sparse(&lab, "small", 4096);
    let words = [path.as_str(), "4096 bytes", "needs 1048576", "larger"];
    refused(&lab, &["--size", "1M", "--backing", &path], 7, &words);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096, "it stays as it was");
}

#[test]
fn a_file_that_holds_data() {
    let lab = Lab::new();
    let path = lab.path("precious");
    std::fs::write(&path, vec![7; 2 << 20]).unwrap();
    let name = path.to_str().unwrap();
    refused(&lab, &["--size", "1M", "--backing", name], 7, &[name, "holds data", "another path"]);
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 2 << 20]);

    // One byte after a long hole, beyond the volume's own end.
    let name = sparse(&lab, "last", 8 << 20);
    let mut file = File::options().write(true).open(&name).unwrap();
    file.seek(SeekFrom::End(-1)).unwrap();
    file.write_all(b"!").unwrap();
    refused(&lab, &["--size", "1M", "--backing", &name], 7, &[&name, "holds data"]);
    assert_eq!(std::fs::read(&name).unwrap().last(), Some(&b'!'));
}

#[test]
fn a_directory_that_is_missing() {
    refused_at_once_but_for_checks("/nonexistent/backing", "No such file");
}

/// sysfs lets nobody make a file, so this is read-only for root and everybody else, wherever tests run.
#[test]
fn a_directory_where_nobody_may_write() {
    refused_at_once_but_for_checks("/sys/sealblk", "");
    refused_at_once_but_for_checks("/sys", "");
}

/// The backing is opened after the key was checked and before anything is made.
fn refused_at_once_but_for_checks(path: &str, told: &str) {
    let lab = Lab::new();
    refused(&lab, &["--size", "1M", "--backing", path], 7, &["error: backing", path, told]);
    assert_eq!(crate::leavings::calls(&lab, "GenerateDataKeyWithoutPlaintext"), 0);
    assert_eq!(crate::leavings::calls(&lab, "CreateGrant"), 0);
}

#[test]
fn a_read_only_file_system() {
    let lab = Lab::new();
    let script =
        "mount -t tmpfs tmpfs mnt && truncate -s 1M mnt/file && mount -o remount,bind,ro mnt && exec \"$@\"";
    for backing in ["mnt", "mnt/new", "mnt/file"] {
        let command = mounted(&lab, script, &["--size", "1M", "--backing", backing, "--", "true"]);
        refuses(&lab, command, 7, &["error: backing", backing, "is read-only"]);
    }
}

/// What would be left lies on a file system that vanishes with the script, so the script looks itself.
const FULL: &str = "mount -t tmpfs -o size=1M tmpfs mnt || exit 90
head -c 2M /dev/zero >mnt/filler 2>/dev/null
\"$@\"; code=$?
[ \"$(ls -A mnt)\" = filler ] || exit 91
exit $code";

#[test]
fn a_full_disk() {
    let lab = Lab::new();
    for backing in ["mnt", "mnt/volume"] {
        let command = mounted(&lab, FULL, &["--size", "64M", "--backing", backing, "--", "true"]);
        refuses(&lab, command, 7, &["error: backing", backing, "no space left", "free some"]);
    }
}

/// A disk that fills up later is the client's error to deal with; the volume goes on.
#[test]
fn a_disk_that_fills_up() {
    let lab = Lab::new();
    let script = "mount -t tmpfs -o size=8M tmpfs mnt && exec \"$@\"";
    let client = "PATH=/usr/bin:$PATH exec nbdsh --connect \"$uri\" --command \"$SCRIPT\"";
    drop(tool("nbdsh"));
    let args = ["--size", "64M", "--backing", "mnt", "--", "sh", "-c", client];
    let mut command = mounted(&lab, script, &args);
    command.env("SCRIPT", include_str!("../scripts/fill.py"));
    let output = finish(command);
    assert_succeeds(&output);
    assert!(text(&output.stdout).contains("ENOSPC"), "{}", text(&output.stdout));
    assert_eq!(
        text(&output.stderr).matches("no space left on the backing").count(),
        1,
        "said, and not each time"
    );
}

/// What is left of a file can be read; what is gone is an error, and the log says why, once.
#[test]
fn a_file_that_is_cut_short_while_it_is_served() {
    let lab = Lab::new();
    let client = "PATH=/usr/bin:$PATH exec nbdsh --connect \"$uri\" --command \"$SCRIPT\"";
    drop(tool("nbdsh"));
    for (script, is_mapped) in [("\"$@\"", false), ("mount -t tmpfs -o size=16M tmpfs mnt && \"$@\"", true)] {
        let args = ["--size", "8M", "--backing", "mnt/volume", "--", "sh", "-c", client];
        let mut command = mounted(&lab, script, &args);
        command.env("BACKING", "mnt/volume").env("SCRIPT", include_str!("../scripts/cut.py"));
        let output = finish(command);
        assert_succeeds(&output);
        assert_eq!(text(&output.stdout).lines().filter(|line| *line == "EIO").count(), 4);
        let log = text(&output.stderr);
        assert_eq!(log.matches("shorter than the volume").count(), 1, "{log}");
        assert_eq!(log.matches("the volume's file was cut short").count(), usize::from(is_mapped), "{log}");
    }
}

#[test]
fn other_kinds_of_file() {
    let lab = Lab::new();
    let mut mkfifo = tool("mkfifo");
    mkfifo.arg(lab.path("fifo"));
    assert_succeeds(&finish(mkfifo));
    let fifo = lab.path("fifo");
    for path in ["/dev/null", fifo.to_str().unwrap()] {
        refused(&lab, &["--size", "1M", "--backing", path], 7, &[path, "neither a directory"]);
    }
    refused_at_once(&["--size", "1M", "--backing", "/dev/null"], 7, &["block device"]);
}

#[test]
fn a_state_directory_that_cannot_be_written() {
    let lab = Lab::new();
    let kms = lab.path("kms");
    let kms = format!("local:{}", kms.display());
    let mut command = lab.sealblk(["run", "--size", "1M", "--kms", &kms, "--", "true"]);
    command.env("SEALBLK_STATE_DIR", "/sys/sealblk");
    let output = finish(command);
    crate::support::assert_fails(
        &output,
        7,
        &["cannot open the audit log", "/sys/sealblk/audit.jsonl", "permissions"],
    );
    assert!(!lab.path("kms").exists(), "no call was made that the audit log cannot show");
}

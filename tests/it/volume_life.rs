//! A whole volume's life under fio with verify, on every kind of backing, sector size and address.

use crate::support::{Lab, Volume, assert_succeeds, finish, text, tool};

const FIO: &str = "nbdinfo \"$uri\" && fio --name=v --ioengine=nbd --uri=\"$uri\" --rw=randrw --bsrange=512-256k \
                   --size=64M --verify=crc32c --verify_fatal=1 --verify_state_save=0 --iodepth=32";

fn verify(args: &[&str]) -> String {
    drop((tool("fio"), tool("nbdinfo")));
    let lab = Lab::new();
    let output = lab.run(&[&["--size", "128M"], args].concat(), FIO);
    assert_succeeds(&output);
    let record = text(&output.stderr).lines().last().unwrap_or_default().to_owned();
    let record: serde_json::Value = serde_json::from_str(&record).expect("the record is the last line");
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    assert_eq!(record["keys_wiped"], true, "{record}");
    assert!(record["bytes_written"].as_u64() >= Some(16 << 20), "{record}");
    assert!(lab.journals().is_empty());
    text(&output.stdout)
}

#[test]
fn an_unnamed_file() {
    verify(&[]);
}

#[test]
fn sectors_of_512_bytes() {
    let seen = verify(&["--sector-size", "512"]);
    assert!(seen.contains("block_size_preferred: 512"), "{seen}");
}

#[test]
fn over_tcp() {
    let seen = verify(&["--listen", "tcp:127.0.0.1:0", "--export", "scratch"]);
    assert!(seen.contains("export=\"scratch\""), "{seen}");
}

#[test]
fn a_named_file_which_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backing");
    verify(&["--backing", path.to_str().unwrap()]);
    assert!(!path.exists());
}

#[test]
fn memory() {
    verify(&["--backing", "memory"]);
}

#[test]
fn the_portable_cipher() {
    verify(&["--backing", "memory", "--cipher", "portable"]);
}

#[test]
fn without_discard() {
    verify(&["--backing", "memory", "--discard", "off"]);
}

#[test]
fn four_connections() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "256M", "--backing", "memory"]);
    let mut fio = tool("fio");
    fio.args([
        "--name=v",
        "--ioengine=nbd",
        "--rw=randrw",
        "--bsrange=512-256k",
        "--size=32M",
        "--numjobs=4",
    ])
    .args(["--offset_increment=64M", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"])
    .args(["--iodepth=32", "--group_reporting", &format!("--uri={}", volume.uri)]);
    assert_succeeds(&finish(fio));
    let (status, record) = volume.stop();
    assert!(status.success());
    assert!(record["connections"].as_u64() >= Some(4), "{record}");
    assert_eq!(record["connections_cut"], 0, "{record}");
    assert_eq!(record["reason"], "SIGTERM");
}

//! A whole volume's life under fio with verify, on every kind of backing, sector size and address.

use sealblk::xts::Implementation;

use crate::restart::{SIGUSR2, await_successor};
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
fn past_the_page_cache() {
    verify(&["--backing", "/var/tmp", "--direct"]);
}

/// The flags of the backing's open file (proc_pid_fdinfo(5)).
fn backing_flags(pid: &serde_json::Value) -> u32 {
    let proc = std::path::PathBuf::from(format!("/proc/{pid}"));
    let is_backing = |entry: &std::fs::DirEntry| {
        let name = std::fs::read_link(entry.path()).unwrap_or_default();
        name.starts_with("/var/tmp") && name.to_string_lossy().ends_with("(deleted)")
    };
    let file = std::fs::read_dir(proc.join("fd")).unwrap().map(Result::unwrap).find(is_backing).unwrap();
    let told = std::fs::read_to_string(proc.join("fdinfo").join(file.file_name())).unwrap();
    let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    u32::from_str_radix(flags.trim(), 8).unwrap()
}

#[test]
fn a_successor_passes_the_page_cache_by_as_well() {
    const O_DIRECT: u32 = if cfg!(target_arch = "aarch64") { 0o200_000 } else { 0o40_000 };
    let lab = Lab::new();
    let args = ["--size", "16M", "--backing", "/var/tmp", "--restartable"];
    let volume = Volume::start(&lab, &args);
    assert_eq!(backing_flags(&volume.serving["pid"]) & O_DIRECT, 0);
    assert!(volume.stop().0.success());
    let mut volume = Volume::start(&lab, &[&args[..], &["--direct"]].concat());
    assert_ne!(backing_flags(&volume.serving["pid"]) & O_DIRECT, 0);
    volume.signal(SIGUSR2);
    await_successor(&mut volume);
    assert_ne!(backing_flags(&volume.serving["pid"]) & O_DIRECT, 0);
    assert!(volume.stop().0.success());
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
fn every_cipher() {
    for cipher in Implementation::available() {
        verify(&["--backing", "memory", "--cipher", cipher.name()]);
    }
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

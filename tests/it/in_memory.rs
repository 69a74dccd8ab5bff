//! Volumes in memory, whose files are mapped: what others do to the file, to the process and to its limits.

use std::os::unix::process::ExitStatusExt;

use crate::raw::Client;
use crate::support::{Lab, Volume, assert_succeeds, finish, mounted, text, tool, wait, within};

const SIGBUS: i32 = 7;
const LONG: usize = 1 << 20;
const REQUESTS: u64 = 64;
const SIZE: &str = "64M";

/// A volume that is written from end to end twice: at first into holes, and then where the file lies.
fn written_in_place(volume: &Volume) {
    let mut client = Client::ready(&volume.socket());
    for round in 0..2u8 {
        for number in 0..REQUESTS {
            client.write(number << 20, &vec![round ^ number as u8; LONG]);
        }
    }
    for number in 0..REQUESTS {
        assert!(client.read(number << 20, LONG) == vec![1 ^ number as u8; LONG], "{number}");
    }
}

/// What the kernel says of each mapping of the volume's file: "lo" for one that is locked, "dd" for one that is not dumped
/// (proc_pid_smaps(5), `VmFlags`).
fn mappings(volume: &Volume) -> Vec<String> {
    let maps = std::fs::read_to_string(format!("/proc/{}/smaps", volume.child.id())).unwrap();
    let of_file = |line: &&str| line.contains(" rw-s ") && line.contains("/memfd:sealblk ");
    let mut lines = maps.lines();
    let mut found = Vec::new();
    while lines.find(of_file).is_some() {
        found.push(lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap().to_owned());
    }
    found
}

/// Where all memory is locked (as for root), ciphertext is not; and it is of no use in a core dump.
#[test]
fn what_is_mapped_of_a_volume_may_be_swapped() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", SIZE, "--backing", "memory"]);
    written_in_place(&volume);
    let mappings = mappings(&volume);
    let [flags] = &mappings[..] else { panic!("{mappings:?}") };
    let flags: Vec<&str> = flags.split_whitespace().collect();
    assert!(!flags.contains(&"lo") && flags.contains(&"dd"), "{flags:?}");
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
}

/// The server's own handler of SIGBUS is for what its mapping raises, and for nothing else.
#[test]
fn a_bus_error_that_is_sent_ends_the_process() {
    let lab = Lab::new();
    let mut volume = Volume::start(&lab, &["--size", SIZE, "--backing", "memory"]);
    written_in_place(&volume);
    volume.signal(SIGBUS);
    assert_eq!(wait(&mut volume.child).signal(), Some(SIGBUS));
}

/// Where addresses are limited (RLIMIT_AS), others may need those that a mapping would take.
#[test]
fn a_process_with_few_addresses_maps_nothing() {
    let lab = Lab::new();
    let mut limited = tool("prlimit");
    limited.arg("--as=4294967296");
    let volume = Volume::spawn(within(
        limited,
        &lab.sealblk(["run", "--json", "--size", SIZE, "--backing", "memory"]),
    ));
    written_in_place(&volume);
    assert!(mappings(&volume).is_empty());
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
}

/// Somebody punches holes into the file, and then its file system is full: the mapping has no memory to give.
#[test]
fn a_file_system_that_is_full_where_the_file_was_written() {
    let lab = Lab::new();
    let script = "mount -t tmpfs -o size=16M tmpfs mnt && exec \"$@\"";
    let client = "PATH=/usr/bin:$PATH exec nbdsh --connect \"$uri\" --command \"$SCRIPT\"";
    drop((tool("nbdsh"), tool("fallocate")));
    let args = ["--size", "8M", "--backing", "mnt/volume", "--", "sh", "-c", client];
    let mut command = mounted(&lab, script, &args);
    command.env("SCRIPT", include_str!("scripts/punch.py"));
    let output = finish(command);
    assert_succeeds(&output);
    assert_eq!(text(&output.stdout).lines().next(), Some("ENOSPC"), "{}", text(&output.stdout));
}

//! Block devices: loop devices, since every machine can make those. Needs root, or sudo that asks no password.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::leavings::refused;
use crate::support::{Lab, Volume, assert_fails, assert_succeeds, finish, text, tool};
use crate::tampering::change;

const SIZE: u64 = 4 << 20;

/// A loop device over a file full of data.
pub(crate) struct Device {
    pub(crate) path: String,
    file: PathBuf,
}

fn as_root(script: &str) -> String {
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command = if root { tool("sh") } else { Command::new("sudo") };
    command.args(if root { &["-ec"][..] } else { &["-n", "sh", "-ec"] }).arg(script);
    let output = finish(command);
    assert!(output.status.success(), "loop devices need root: {script}: {}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

impl Device {
    fn new(lab: &Lab, options: &str) -> Self {
        Self::of_size(lab, options, SIZE)
    }

    pub(crate) fn of_size(lab: &Lab, options: &str, size: u64) -> Self {
        drop(tool("losetup"));
        let file = lab.path("disk");
        std::fs::write(&file, vec![7; usize::try_from(size).unwrap()]).unwrap();
        let script = format!("losetup {options} --find --show {}", file.display());
        let device = Self { path: as_root(&script), file };
        as_root(&format!("chown {} {}", owner(&device.file), device.path));
        device
    }

    fn content(&self) -> Vec<u8> {
        as_root(&format!("blockdev --flushbufs {}", self.path));
        std::fs::read(&self.file).unwrap()
    }
}

fn owner(file: &Path) -> u32 {
    std::fs::metadata(file).unwrap().uid()
}

impl Drop for Device {
    fn drop(&mut self) {
        as_root(&format!("losetup --detach {}", self.path));
    }
}

#[test]
fn a_device_holds_a_volume_and_nothing_afterwards() {
    let lab = Lab::new();
    let device = Device::new(&lab, "");
    let script = "qemu-io -f raw -c 'read -P 0 0 4M' -c 'write -P 0xab 0 1M' -c 'read -P 0xab 0 1M' \"$uri\"";
    drop(tool("qemu-io"));
    assert_succeeds(&lab.run(&["--size", "4M", "--backing", &device.path], script));
    assert!(device.content().iter().all(|byte| *byte == 0), "neither the old data nor ciphertext is left");
}

#[test]
fn a_device_that_is_too_small() {
    let lab = Lab::new();
    let device = Device::new(&lab, "");
    let words = [device.path.as_str(), "has 4194304 bytes", "needs 8388608"];
    refused(&lab, &["--size", "8M", "--backing", &device.path], 7, &words);
    assert!(device.content().iter().all(|byte| *byte == 7), "its data is not discarded for a refusal");
}

#[test]
fn a_device_that_another_volume_lies_on() {
    let lab = Lab::new();
    let device = Device::new(&lab, "");
    let args = ["--size", "4M", "--backing", device.path.as_str()];
    let volume = Volume::start(&lab, &args);
    refused(&lab, &args, 7, &[&device.path, "in use"]);
    assert!(volume.stop().0.success());
}

/// As a mounted file system holds its device: exclusively (open(2), O_EXCL without O_CREAT).
#[test]
fn a_device_that_somebody_holds() {
    const O_EXCL: i32 = 0o200;
    let lab = Lab::new();
    let device = Device::new(&lab, "");
    let holder = File::options().read(true).custom_flags(O_EXCL).open(&device.path).unwrap();
    refused(&lab, &["--size", "4M", "--backing", &device.path], 7, &[&device.path, "in use", "mounted"]);
    drop(holder);
    assert!(device.content().iter().all(|byte| *byte == 7), "its data is not discarded for a refusal");
}

#[test]
fn a_read_only_device() {
    let lab = Lab::new();
    let device = Device::new(&lab, "--read-only");
    refused(&lab, &["--size", "4M", "--backing", &device.path], 7, &["error: backing", &device.path]);
    assert!(device.content().iter().all(|byte| *byte == 7));
}

/// A durable volume's data outlives its runs, and an envelope that says that there is none.
#[test]
fn a_device_keeps_a_durable_volume() {
    let lab = Lab::new();
    let device = Device::new(&lab, "");
    drop(tool("qemu-io"));
    let write = "qemu-io -f raw -c 'read -P 0 0 4M' -c 'write -P 0xab 0 1M' -c flush \"$uri\"";
    let durable = ["--size", "4M", "--durable", "envelope", "--backing", &device.path];
    assert_succeeds(&lab.run(&durable, write));
    let kept = device.content();
    let original = serde_json::from_slice(&std::fs::read(lab.path("envelope")).unwrap()).unwrap();
    assert!(change(&lab, &original, "/life", "ephemeral".into()));
    let open = ["--envelope", "envelope", "--backing", &device.path];
    assert_fails(&lab.run(&open, "true"), 6, &["does not fit its mac"]);
    assert!(device.content() == kept);
    assert!(change(&lab, &original, "/life", "durable".into()));
    let read = "qemu-io -r -f raw -c 'read -P 0xab 0 1M' \"$uri\"";
    assert_succeeds(&lab.run(&open, read));
    assert!(device.content() == kept);
}

/// The device punches no hole smaller than its blocks; that says nothing of larger ones.
#[test]
fn a_device_with_larger_blocks_than_the_volumes_sectors() {
    let lab = Lab::new();
    let device = Device::new(&lab, "--sector-size 4096");
    drop(tool("qemu-io"));
    let script = "qemu-io -f raw -c 'write -P 0xab 0 1M' -c 'write -z -u 512 1k' -c 'write -z -u -n 64k 64k' \
        -c 'read -P 0xab 0 512' -c 'read -P 0 512 1k' -c 'read -P 0xab 1536 64000' -c 'read -P 0 64k 64k' \"$uri\"";
    assert_succeeds(&lab.run(&["--size", "4M", "--sector-size", "512", "--backing", &device.path], script));
}

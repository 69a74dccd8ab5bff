//! Clients that err, by accident or by intent, beside one that does not: that one never notices, the server's memory
//! does not grow with what is asked of it, nothing of them is left when they are gone, and the volume ends in order.

mod crowds;
mod encrypted;
mod floods;
mod haggling;
mod slow;
mod transmission;
mod truncated;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::raw::{Client, DISC};
use crate::support::{Lab, Volume, assert_succeeds, entries, eventually, finish, tool};

const SIZE: u64 = 16 << 20;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// Where the one that does not err neither reads nor writes.
const ELSEWHERE: u64 = 9 << 20;

/// In KiB: what docs/nbd.md says of the buffers of 128 connections, and another third for everything else.
const MEMORY: u64 = 512 << 10;

/// Writes and reads back without end, on a connection of its own, and fails if anything is amiss.
struct Bystander {
    rounds: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Bystander {
    fn start(socket: PathBuf) -> Self {
        let (rounds, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stop) = (rounds.clone(), enough.clone());
        let thread = std::thread::spawn(move || {
            let mut client = Client::ready(&socket);
            while !stop.load(Ordering::Relaxed) {
                let round = count.fetch_add(1, Ordering::Relaxed);
                let data = vec![u8::try_from(round % 251).unwrap(); 70_000];
                let offset = round * 4999 % (SIZE / 2);
                client.write(offset, &data);
                assert!(client.read(offset, data.len()) == data, "round {round}");
            }
            client.request(0, DISC, 0, 0);
        });
        Self { rounds, enough, thread }
    }

    /// Two more rounds begin, so one has been served from beginning to end.
    fn is_served(&self) {
        let seen = self.rounds.load(Ordering::Relaxed);
        eventually("the bystander is served", || {
            assert!(!self.thread.is_finished(), "the bystander failed");
            self.rounds.load(Ordering::Relaxed) > seen + 1
        });
    }

    fn stop(self) {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Serves a volume to a bystander and to `misbehave`, of whose clients nothing may be left once they are gone.
fn beside(misbehave: impl FnOnce(&Path)) {
    beside_with(&[], misbehave);
}

/// The same with arguments for `sealblk run`.
fn beside_with(args: &[&str], misbehave: impl FnOnce(&Path)) {
    beside_in(&Lab::new(), args, misbehave);
}

fn beside_in(lab: &Lab, args: &[&str], misbehave: impl FnOnce(&Path)) {
    let volume = start(lab, args);
    let idle = Held::by(&volume);
    serve(&volume, misbehave);
    eventually(&format!("the server, which had {idle:?}, lets go of its clients"), || {
        Held::by(&volume).is_within(&idle)
    });
    end(lab, volume);
}

/// Serves a volume to a bystander and to `misbehave`; what that returns stays alive beyond the volume's end.
/// Returns the teardown record.
fn beside_to_the_end<T>(misbehave: impl FnOnce(&Path) -> T) -> Value {
    let lab = Lab::new();
    let volume = start(&lab, &[]);
    let kept = serve(&volume, misbehave);
    let record = end(&lab, volume);
    drop(kept);
    record
}

/// A volume that has had a client.
fn start(lab: &Lab, args: &[&str]) -> Volume {
    let size = SIZE.to_string();
    let volume = Volume::start(lab, &[&["--size", &size, "--backing", "memory"], args].concat());
    Client::ready(&volume.socket()).part();
    volume
}

fn serve<T>(volume: &Volume, misbehave: impl FnOnce(&Path) -> T) -> T {
    let bystander = Bystander::start(volume.socket());
    bystander.is_served();
    let kept = misbehave(&volume.socket());
    bystander.is_served();
    bystander.stop();
    kept
}

fn end(lab: &Lab, volume: Volume) -> Value {
    let mut nbdinfo = tool("nbdinfo");
    nbdinfo.arg(&volume.uri);
    assert_succeeds(&finish(nbdinfo));
    let peak = peak_memory(&volume);
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_eq!(record["keys_wiped"], true, "{record}");
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    assert!(peak < MEMORY, "the server took {peak} KiB of memory");
    assert!(lab.journals().is_empty());
    record
}

/// In KiB, at its peak.
fn peak_memory(volume: &Volume) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", volume.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// What a client takes of the server, besides memory.
#[derive(Debug)]
struct Held {
    threads: usize,
    descriptors: usize,
}

impl Held {
    fn by(volume: &Volume) -> Self {
        let count = |what: &str| entries(format!("/proc/{}/{what}", volume.child.id()).as_ref()).len();
        Self { threads: count("task"), descriptors: count("fd") }
    }

    fn is_within(&self, other: &Self) -> bool {
        self.threads <= other.threads && self.descriptors <= other.descriptors
    }
}

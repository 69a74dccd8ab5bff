//! Clients that err, by accident or by intent, beside one that does not: that one never notices, the server's memory
//! does not grow with what is asked of it, nothing of them is left when they are gone, and the volume ends in order.

mod crowds;
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

/// In KiB: what the server may take, the volume's own 16 MiB included.
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

/// Serves a volume to a bystander and to `misbehave`, of which nothing may be left once its clients are gone.
fn beside(misbehave: impl FnOnce(&Path)) {
    beside_with(&[], misbehave);
}

/// The same with arguments for `sealblk run`.
fn beside_with(args: &[&str], misbehave: impl FnOnce(&Path)) {
    serve(args, |volume| {
        let before = Held::by(volume);
        misbehave(&volume.socket());
        eventually(&format!("the server, which had {before:?}, lets go of its clients"), || {
            Held::by(volume).is_within(&before)
        });
    });
}

/// Serves a volume to a bystander and to `misbehave`; what that returns stays alive beyond the volume's end.
/// Returns the teardown record.
fn beside_to_the_end<T>(misbehave: impl FnOnce(&Path) -> T) -> Value {
    serve(&[], |volume| misbehave(&volume.socket())).1
}

fn serve<T>(args: &[&str], misbehave: impl FnOnce(&Volume) -> T) -> (T, Value) {
    let lab = Lab::new();
    let size = SIZE.to_string();
    let volume = Volume::start(&lab, &[&["--size", &size, "--backing", "memory"], args].concat());
    let bystander = Bystander::start(volume.socket());
    bystander.is_served();
    let kept = misbehave(&volume);
    bystander.is_served();
    bystander.stop();
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
    (kept, record)
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

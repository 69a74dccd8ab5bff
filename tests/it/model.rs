//! Volumes against a model: thousands of random requests, in all three reply modes, from several connections and many
//! at once, and an array of bytes that says what has to be answered.
//!
//! A request is held back while one is in flight that it must not meet, so that there is one right answer to it; in a
//! storm, requests meet on purpose, and each byte may be as any of them made it. What is sent follows from a seed,
//! which every run prints, and every failure together with the last requests. When replies come does not, so a
//! failure that depends on timing may take several runs.

mod disk;
mod driver;
mod operation;
pub(crate) mod random;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::process::Command;

use disk::Disk;
use driver::Driver;
use operation::Export;

use crate::bad_input::devices::Device;
use crate::direct::without_io_uring;
use crate::restart::{SIGUSR2, await_successor};
use crate::support::{Lab, Volume};

/// Two of the regions that the volume is divided into and part of a third, and a READ of the largest size fits in.
const SIZE: u64 = (72 << 20) + (3 << 12);
/// Steps of the model on each volume; some are many requests.
const STEPS: usize = 450;
pub(crate) const SEED: &str = "SEALBLK_MODEL_SEED";

pub(crate) fn seed() -> u64 {
    match std::env::var(SEED) {
        Ok(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a hexadecimal number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    }
}

/// One volume of the matrix.
struct Cell {
    test: &'static str,
    seed: u64,
    export: Export,
}

/// Both sector sizes, with discard and without.
fn cells(test: &'static str) -> impl Iterator<Item = Cell> {
    let seed = seed();
    println!("{SEED}={seed:#x}");
    [(4096, true), (4096, false), (512, true), (512, false)].into_iter().map(move |(sector, discard)| Cell {
        test,
        seed,
        export: Export { size: SIZE, sector, discard, read_only: false },
    })
}

impl Cell {
    fn start(&self, lab: &Lab, args: &[&str]) -> Volume {
        Volume::spawn(self.command(lab, args))
    }

    fn command(&self, lab: &Lab, args: &[&str]) -> Command {
        let (size, sector) = (format!("--size={SIZE}"), format!("--sector-size={}", self.export.sector));
        let discard = if self.export.discard { "--discard=on" } else { "--discard=off" };
        lab.sealblk([&["run", "--json", size.as_str(), &sector, discard], args].concat())
    }

    fn driver(&self, volume: &Volume, export: Export, disk: Disk) -> Driver {
        let title = format!(
            "{:?} failed; repeat it by {SEED}={:#x} cargo test --test it model::{}",
            export, self.seed, self.test
        );
        Driver::new(volume.socket(), export, disk, self.seed, title)
    }

    /// A volume's life with the model beside it; what it holds in the end.
    fn check(&self, volume: Volume) -> Disk {
        let mut driver = self.driver(&volume, self.export, Disk::new(self.export));
        driver.go(STEPS);
        let (disk, replies) = driver.finish();
        println!("{:?}: {replies} requests and replies", self.export);
        assert!(volume.stop().0.success());
        disk
    }
}

#[test]
fn in_memory() {
    for cell in cells("in_memory") {
        let lab = Lab::new();
        cell.check(cell.start(&lab, &["--backing=memory"]));
    }
}

#[test]
fn in_a_directory() {
    for cell in cells("in_a_directory") {
        let lab = Lab::new();
        cell.check(cell.start(&lab, &[&format!("--backing={}", lab.path("run").display())]));
    }
}

/// Where a file system takes O_DIRECT, its blocks are no larger than pages.
#[test]
fn past_the_page_cache() {
    for cell in cells("past_the_page_cache").filter(|cell| cell.export.sector == 4096) {
        let lab = Lab::new();
        cell.check(cell.start(&lab, &["--backing=/var/tmp", "--direct"]));
    }
}

#[test]
fn past_the_page_cache_without_io_uring() {
    for cell in cells("past_the_page_cache_without_io_uring").filter(|cell| cell.export.sector == 4096) {
        let lab = Lab::new();
        let run = cell.command(&lab, &["--backing=/var/tmp", "--direct"]);
        cell.check(Volume::spawn(without_io_uring(&run)));
    }
}

#[test]
fn with_flushes_ignored() {
    for cell in cells("with_flushes_ignored").step_by(3) {
        let lab = Lab::new();
        cell.check(cell.start(&lab, &["--backing=/var/tmp", "--flush=ignore"]));
    }
}

/// A named file, which keeps a durable volume: another run serves it read-only.
#[test]
fn in_a_file_and_then_read_only() {
    for cell in cells("in_a_file_and_then_read_only") {
        let lab = Lab::new();
        let disk = cell.check(cell.start(&lab, &["--durable=envelope", "--backing=file"]));
        let again = ["--envelope=envelope", "--backing=file", "--read-only"];
        let volume = Volume::start(&lab, &again);
        let mut driver = cell.driver(&volume, Export { read_only: true, ..cell.export }, disk);
        driver.go(STEPS / 3);
        driver.finish();
        assert!(volume.stop().0.success());
    }
}

#[test]
fn on_a_block_device() {
    for cell in cells("on_a_block_device") {
        let lab = Lab::new();
        let device = Device::of_size(&lab, "", SIZE);
        cell.check(cell.start(&lab, &[&format!("--backing={}", device.path)]));
    }
}

#[test]
fn over_restarts() {
    cells("over_restarts").step_by(3).for_each(|cell| over_restarts_on(&cell, &["--backing=memory"]));
}

#[test]
fn over_restarts_past_the_page_cache() {
    let direct = ["--backing=/var/tmp", "--direct"];
    let cells = cells("over_restarts_past_the_page_cache").filter(|cell| cell.export.sector == 4096);
    cells.for_each(|cell| over_restarts_on(&cell, &direct));
}

/// Successor processes take over with requests in flight.
fn over_restarts_on(cell: &Cell, backing: &[&str]) {
    let lab = Lab::new();
    let mut volume = cell.start(&lab, &[backing, &["--restartable", "--watch-key=off"]].concat());
    let mut driver = cell.driver(&volume, cell.export, Disk::new(cell.export));
    for _ in 0..3 {
        driver.go(STEPS / 9);
        driver.put_in_flight(30);
        volume.signal(SIGUSR2);
        driver.put_in_flight(30);
        await_successor(&mut volume);
    }
    driver.finish();
    assert!(volume.stop().0.success());
}

//! What a power cut leaves: after NBD_CMD_FLUSH, or a request with NBD_CMD_FLAG_FUA, the data is there.
//!
//! The backing logs what it is told, as dm-log-writes does, and the power is cut after each entry of the log. Of what
//! was not flushed by then, a disk may have kept everything, nothing, or any of the sectors. From each of these
//! disks the volume is opened again, with the same key, and must hold what was promised.

mod disk;
mod history;
mod ring;

use std::sync::Arc;

use sealblk::block::{BlockDevice, Extents};
use sealblk::geometry::{SectorSize, VolumeSize};
use sealblk::nbd::server::{Address, Export, Exports, Limits, Listener, Resumed, Signal, Terms, serve};
use sealblk::secret::DataKey;
use sealblk::volume::{EncryptedVolume, Options};
use sealblk::xts::{Implementation, SectorCipher};

use self::disk::{Disk, LoggedDisk};
use self::history::{History, Step};
use self::ring::RingDisk;
use crate::model::random::Random;
use crate::raw::{Client, FLUSH, FUA, Mode, NO_HOLE, TRIM, WRITE, WRITE_ZEROES};
use crate::support::Lab;

/// One volume that is written to, and on what.
struct Case {
    size: u64,
    sector: SectorSize,
    /// Most bytes in a request.
    longest: u64,
    /// Rounds of requests that are under way together, one to five.
    steps: usize,
    /// The backing lets small requests be served without waiting.
    at_once: bool,
    /// Whether flushes reach the backing.
    flush: bool,
}

const SMALL: Case = Case {
    size: 96 << 10,
    sector: SectorSize::B4096,
    longest: 12 << 10,
    steps: 60,
    at_once: false,
    flush: true,
};

impl Case {
    fn cipher(&self) -> Box<dyn SectorCipher> {
        let key = DataKey::copy_from(&(0..64).collect::<Vec<u8>>()).unwrap();
        Implementation::fastest().cipher(&key, self.sector)
    }

    fn volume(&self, disk: &Arc<impl Disk>) -> EncryptedVolume {
        let size = VolumeSize::new(self.size, self.sector).unwrap();
        let options = Options { read_only: false, discard: true, flush: self.flush };
        EncryptedVolume::new(disk.store(), self.cipher(), size, options)
    }

    fn request(&self, random: &mut Random) -> Step {
        let length = 1 + random.below(self.longest);
        let offset = random.below(self.size - length + 1);
        // Half of them in whole sectors.
        let grain = if random.once_in(2) { self.sector.bytes() as u64 } else { 1 };
        let (offset, length) = (offset / grain * grain, length.next_multiple_of(grain));
        let length = length.min(self.size - offset);
        let fua = if random.once_in(4) { FUA } else { 0 };
        let (flags, command) = match random.below(12) {
            0..7 => (fua, WRITE),
            7 => (fua, TRIM),
            8 => (fua, WRITE_ZEROES),
            9 => (fua | NO_HOLE, WRITE_ZEROES),
            _ => return Step { command: FLUSH, ..Step::default() },
        };
        let data =
            if command == WRITE { Random::bytes(random.number(), length as usize) } else { Vec::new() };
        Step { flags, command, offset, length, data, ..Step::default() }
    }

    /// One request, or several that are under way at once: none of the same sectors, and no flush among others, so that
    /// it does not matter which of them is served first.
    fn together(&self, random: &mut Random) -> Vec<Step> {
        let sector = self.sector.bytes() as u64;
        let mut steps = vec![self.request(random)];
        for _ in 0..random.below(5) {
            let next = self.request(random);
            let stands_alone = |step: &Step| step.command == FLUSH || step.overlaps(&next, sector);
            if next.command != FLUSH && !steps.iter().any(stands_alone) {
                steps.push(next);
            }
        }
        steps
    }

    /// Serves the volume to clients that write to it in turns, and flush for each other.
    fn live(&self, disk: &Arc<impl Disk>, random: &mut Random) -> History {
        let lab = Lab::new();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (stop, stopped) = tokio::sync::watch::channel(Signal::Run);
        let device = Arc::new(self.volume(disk));
        let export = Export { name: String::new(), description: String::new(), device, read_only: false };
        let socket = lab.path("socket");
        let address = Address::Unix(socket.clone());
        let listener = runtime.block_on(Listener::bind(&address, Terms::default())).unwrap();
        let exports = Exports::new(vec![export]);
        let limits = Limits::default();
        let serving =
            runtime.spawn(serve(vec![listener], exports, None, limits, Resumed::default(), stopped));
        let mut clients = Mode::ALL.map(|mode| Client::ready_in(&socket, mode));
        let mut history = History::new(self.size, self.sector.bytes() as u64);
        for _ in 0..self.steps {
            let client = &mut clients[random.below(3) as usize];
            let under_way = self.together(random).into_iter().map(|mut step| {
                step.begun = disk.entries();
                let cookie = client.submit(step.flags, step.command, step.offset, step.length, &step.data);
                (cookie, step)
            });
            for (cookie, mut step) in under_way.collect::<Vec<_>>() {
                assert_eq!(client.reply_to(cookie).error, 0);
                step.ended = disk.entries();
                history.add(step);
            }
        }
        clients.into_iter().for_each(|client| drop(client.part()));
        stop.send(Signal::End).unwrap();
        runtime.block_on(serving).unwrap();
        history
    }

    /// Cuts the power everywhere; returns what was found wrong first, if anything was.
    fn cut_everywhere(&self, disk: &impl Disk, history: &History, random: &mut Random) -> Result<(), String> {
        let sector = self.sector.bytes();
        for cut in 0..=disk.entries() {
            for kept in [0, 1, 2] {
                let left = disk.after_a_cut(cut, sector, |_| match kept {
                    0 => false,
                    1 => true,
                    _ => random.once_in(2),
                });
                let volume = self.volume(&Arc::new(LoggedDisk::holding(left, self.at_once)));
                let mut data = vec![0; self.size as usize];
                volume.read(0, &mut data, &mut Extents::default()).unwrap();
                history.check(cut, &data, |step| disk.tears(cut, step))?;
            }
        }
        Ok(())
    }

    fn run(&self) -> Result<(), String> {
        self.run_on(&Arc::new(LoggedDisk::holding(vec![0; self.size as usize], self.at_once))).map(drop)
    }

    fn run_on(&self, disk: &Arc<impl Disk>) -> Result<History, String> {
        let seed = crate::model::seed();
        println!("{}={seed:#x}", crate::model::SEED);
        let mut random = Random::new(seed);
        let history = self.live(disk, &mut random);
        assert!(disk.entries() > self.steps / 3, "the backing was hardly told anything");
        self.cut_everywhere(&**disk, &history, &mut random)?;
        Ok(history)
    }
}

#[test]
fn what_was_flushed_is_there() {
    for sector in [SectorSize::B4096, SectorSize::B512] {
        for at_once in [false, true] {
            assert_eq!(Case { sector, at_once, ..SMALL }.run(), Ok(()));
        }
    }
}

/// Longer than what the server takes in at a time.
#[test]
fn what_was_flushed_of_large_requests_is_there() {
    assert_eq!(Case { size: 4 << 20, longest: 3 << 20, steps: 5, ..SMALL }.run(), Ok(()));
}

/// As past the page cache.
#[test]
fn what_was_flushed_is_there_where_writes_go_by_io_uring() {
    for sector in [SectorSize::B4096, SectorSize::B512] {
        let case = Case { sector, ..SMALL };
        let disk = Arc::new(RingDisk::new(case.size as usize));
        let history = case.run_on(&disk).unwrap_or_else(|wrong| panic!("{wrong}"));
        let cipher = case.cipher();
        let goes_by_ring = |step: &&Step| {
            let mut data = step.data.clone();
            cipher.encrypt(sector.number(step.offset), &mut data);
            disk.has_not_waited_for(step.offset, data)
        };
        let plain = history.whole_writes(0).count();
        let by_ring = history.whole_writes(0).filter(goes_by_ring).count();
        assert!(by_ring > plain / 2, "{by_ring} of {plain} by io_uring: is it allowed here?");
        // They never do, which shows that those that do not are known.
        assert_eq!(history.whole_writes(FUA).filter(goes_by_ring).count(), 0);
    }
}

#[test]
fn what_was_flushed_is_missing_where_flushes_are_ignored() {
    let wrong = Case { flush: false, ..SMALL }.run().unwrap_err();
    assert!(wrong.contains("after the power was cut"), "{wrong}");
}

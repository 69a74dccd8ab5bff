//! The volume against a model, and its promises about concurrency and ciphertext.

#![allow(clippy::cast_possible_truncation, reason = "the low bits are what test data is made of")]

mod discards;
mod lanes;
mod model;
mod stores;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use self::stores::Kind;
use super::*;
use crate::secret::DataKey;
use crate::store::Backing;
use crate::xts::Implementation;

const SIZE: usize = 64 * 1024;

fn volume_over(store: Box<dyn Store>, sector: SectorSize, discard: bool) -> EncryptedVolume {
    let key = DataKey::copy_from(&(0..64).collect::<Vec<u8>>()).unwrap();
    let cipher = Implementation::fastest().cipher(&key, sector);
    let size = VolumeSize::new(SIZE as u64, sector).unwrap();
    EncryptedVolume::new(store, cipher, size, Options { read_only: false, discard, flush: true })
}

fn volume_in_memory() -> EncryptedVolume {
    volume_over(Kind::Memory.open(), SectorSize::B4096, true)
}

/// Bytes that differ by place, so that a misplaced write shows.
fn pattern(fill: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| fill.wrapping_add((i % 251) as u8)).collect()
}

/// Each thread owns every eighth run of seven bytes; all of them share every sector.
#[test]
fn concurrent_neighbours_lose_nothing() {
    const THREADS: usize = 8;
    const RUN: usize = 7;
    let volume = Arc::new(volume_in_memory());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let volume = volume.clone();
            scope.spawn(move || {
                for round in 0..20u8 {
                    for at in (thread * RUN..SIZE - RUN).step_by(THREADS * RUN) {
                        let mine = [round ^ thread as u8; RUN];
                        volume.write(at as u64, &mut mine.clone(), false).unwrap();
                        let mut back = [0xff; RUN];
                        volume.read(at as u64, &mut back, &mut Extents::default()).unwrap();
                        assert_eq!(back, mine, "thread {thread}, offset {at}");
                    }
                }
            });
        }
    });
}

/// Whole-sector writers beside writers of single bytes in the same sectors.
#[test]
fn whole_sectors_and_parts_of_them_do_not_tear() {
    let volume = volume_in_memory();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2000u64 {
                volume.write(0, &mut [7; 4096], false).unwrap();
                volume.write(4096 * (1 + round % 4), &mut [8; 4096], false).unwrap();
            }
        });
        scope.spawn(|| {
            for _ in 0..2000 {
                volume.write(100, &mut [7; 9], false).unwrap();
            }
        });
    });
    let mut sector = [0; 4096];
    volume.read(0, &mut sector, &mut Extents::default()).unwrap();
    assert_eq!(sector, [7; 4096]);
}

/// A byte is written into a hole while the whole sector is read: the other bytes are nobody's to change.
#[test]
fn a_sector_is_not_read_while_it_is_changed_by_halves() {
    let (half_written, reader) = std::sync::mpsc::channel();
    let volume = volume_over(Box::new(stores::ByHalves::new(half_written)), SectorSize::B4096, true);
    std::thread::scope(|scope| {
        scope.spawn(|| volume.write(100, &mut [7], false).unwrap());
        reader.recv().unwrap();
        let mut two = [0xee; 8192];
        volume.read(0, &mut two, &mut Extents::default()).unwrap();
        assert!([0, 7].contains(&std::mem::take(&mut two[100])));
        assert_eq!(two, [0; 8192]);
    });
}

/// The same for a sector that is written as a whole: what is read is what it was or what it becomes.
#[test]
fn a_sector_is_not_read_while_it_is_written_by_halves() {
    for length in [4096, 8192] {
        let (half_written, reader) = std::sync::mpsc::channel();
        let volume = volume_over(Box::new(stores::ByHalves::new(half_written)), SectorSize::B4096, true);
        volume.write(0, &mut vec![1; length], false).unwrap();
        reader.recv().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| volume.write(0, &mut vec![2; length], false).unwrap());
            reader.recv().unwrap();
            let mut data = vec![0; 16384];
            let mut read_now = |at: usize| {
                volume.read_now(at as u64, &mut data[at..at + 4096], &mut Extents::default()).unwrap()
            };
            assert!(!read_now(0) && read_now(12288));
            volume.read(0, &mut data[..8000], &mut Extents::default()).unwrap();
            assert!(data[..4096].iter().all(|byte| *byte == 2), "{:?}", &data[..4096]);
            assert!(data[4096..8000].iter().all(|byte| usize::from(*byte) == (length - 4096) / 2048));
        });
    }
}

/// Reads the ciphertext behind a volume through a second descriptor.
fn ciphertext(sector: SectorSize, use_it: impl FnOnce(&EncryptedVolume)) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backing");
    let (store, mut leftover) = Backing::File(path.clone()).open_new(SIZE as u64).unwrap();
    leftover.give_name().unwrap();
    let key = DataKey::copy_from(&(0..64).collect::<Vec<u8>>()).unwrap();
    let cipher = Implementation::Portable.cipher(&key, sector);
    let size = VolumeSize::new(SIZE as u64, sector).unwrap();
    let volume = EncryptedVolume::new(
        Box::new(store),
        cipher,
        size,
        Options { read_only: false, discard: false, flush: true },
    );
    use_it(&volume);
    std::fs::read(path).unwrap()
}

#[test]
fn the_store_holds_xts_ciphertext_and_nothing_else() {
    for sector in [SectorSize::B512, SectorSize::B4096] {
        let plain = pattern(3, 8192);
        let stored = ciphertext(sector, |volume| volume.write(16384, &mut plain.clone(), true).unwrap());
        let key = DataKey::copy_from(&(0..64).collect::<Vec<u8>>()).unwrap();
        let mut expected = plain;
        Implementation::fastest().cipher(&key, sector).encrypt(16384 / sector.bytes() as u64, &mut expected);
        assert_eq!(&stored[16384..24576], expected);
        assert!(stored[..16384].iter().chain(&stored[24576..]).all(|byte| *byte == 0));
    }
}

#[test]
fn without_discard_zeros_look_like_data() {
    let stored = ciphertext(SectorSize::B4096, |volume| {
        let how = Zeroes { may_discard: true, fast: false };
        volume.write_zeroes(0, SIZE as u64, how, true).unwrap();
        volume.trim(0, SIZE as u64, true).unwrap();
        let fast = Zeroes { may_discard: true, fast: true };
        assert!(matches!(volume.write_zeroes(0, 4096, fast, false), Err(BlockError::NotSupported)));
        let mut all = vec![1; SIZE];
        volume.read(0, &mut all, &mut Extents::default()).unwrap();
        assert_eq!(all, vec![0; SIZE]);
    });
    assert!(stored.chunks(16).all(|block| block != [0; 16]));
}

/// A store whose flush fails once, as a kernel reports a failed write-back.
struct ForgetfulStore {
    fails: AtomicBool,
    full: bool,
}

impl Store for ForgetfulStore {
    fn read(&self, _: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
        if self.full { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn extents(&self, range: ByteRange, _: usize, extents: &mut Extents) -> std::io::Result<()> {
        extents.push(range.length(), false);
        Ok(())
    }

    fn prefetch(&self, _: ByteRange) {}

    fn discard(&self, _: ByteRange) -> std::io::Result<()> {
        Ok(())
    }

    fn discards_quickly(&self) -> bool {
        true
    }

    fn flush(&self) -> std::io::Result<()> {
        if self.fails.swap(false, Ordering::Relaxed) { Err(std::io::Error::other("lost")) } else { Ok(()) }
    }
}

fn volume_that_fails(store: ForgetfulStore) -> EncryptedVolume {
    volume_over(Box::new(store), SectorSize::B512, true)
}

#[test]
fn a_failed_flush_is_never_forgotten() {
    let volume = volume_that_fails(ForgetfulStore { fails: true.into(), full: false });
    assert!(matches!(volume.flush(), Err(BlockError::Io(_))));
    assert!(matches!(volume.flush(), Err(BlockError::LostWrites)));
    assert!(matches!(volume.write(0, &mut [1; 512], true), Err(BlockError::LostWrites)));
    // Whatever meets the failure first, it is for all of the volume's acknowledged writes.
    let volume = volume_that_fails(ForgetfulStore { fails: true.into(), full: false });
    assert!(matches!(volume.write(3, &mut [1; 5], true), Err(BlockError::Io(_))));
    assert!(matches!(volume.flush(), Err(BlockError::LostWrites)));
}

#[test]
fn a_predecessor_that_says_nothing_of_flushes_honoured_them() {
    let told = |text: &str| serde_json::from_str::<Options>(text).unwrap().flush;
    assert!(told(r#"{"read_only":false,"discard":true}"#));
    assert!(!told(r#"{"read_only":false,"discard":true,"flush":false,"later":1}"#));
}

#[test]
fn a_flush_that_is_ignored_does_not_reach_the_store() {
    let volume = volume_that_fails(ForgetfulStore { fails: true.into(), full: false });
    let volume = EncryptedVolume { options: Options { flush: false, ..volume.options }, ..volume };
    volume.flush().unwrap();
    for (offset, length) in [(0, 512), (3, 5)] {
        volume.write(offset, &mut vec![1; length], true).unwrap();
    }
    volume.write_zeroes(0, 512, Zeroes { may_discard: true, fast: false }, true).unwrap();
    volume.trim(0, 512, true).unwrap();
    assert!(!volume.past().flush_failed, "the store that would have failed was not asked");
}

#[test]
fn a_full_disk_is_told_and_loses_nothing_else() {
    let volume = volume_that_fails(ForgetfulStore { fails: false.into(), full: true });
    for durable in [false, true] {
        assert!(matches!(volume.write(0, &mut [1; 512], durable), Err(BlockError::NoSpace)));
        assert!(matches!(volume.write(3, &mut [1; 5], durable), Err(BlockError::NoSpace)));
    }
    assert!(volume.flush().is_ok());
}

#[test]
fn long_requests_end_when_the_volume_is_stopped() {
    let volume = volume_in_memory();
    volume.stop();
    for may_discard in [false, true] {
        let how = Zeroes { may_discard, fast: false };
        assert!(matches!(volume.write_zeroes(0, SIZE as u64, how, false), Err(BlockError::Stopped)));
    }
    assert!(matches!(volume.trim(0, SIZE as u64, false), Err(BlockError::Stopped)));
}

/// In memory, and with requests long enough to be served where the file lies: the file is cut short, as anybody may do
/// who can write to it, while requests are served.
#[test]
fn a_file_in_memory_that_is_cut_short_costs_what_was_cut_and_nothing_else() {
    let file =
        std::fs::File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(SIZE as u64).unwrap();
    let store = crate::store::FileStore::new(file.try_clone().unwrap());
    let volume = volume_over(Box::new(store), SectorSize::B4096, true);
    let plain = pattern(5, SIZE);
    let half = SIZE / 2;
    let read = |start: usize, length: usize| {
        let mut data = vec![0; length];
        volume.read(start as u64, &mut data, &mut Extents::default()).map(|()| data)
    };
    for _ in 0..2 {
        volume.write(0, &mut plain.clone(), false).unwrap();
        assert!(read(0, SIZE).unwrap() == plain);
    }
    file.set_len(half as u64).unwrap();
    assert!(matches!(read(half, half), Err(BlockError::CutShort)));
    assert!(read(0, half).unwrap() == plain[..half]);
    // A write makes the file longer again, as it would be without all this.
    volume.write(half as u64, &mut plain[half..].to_vec(), false).unwrap();
    assert!(read(0, SIZE).unwrap() == plain);
    let store = crate::store::FileStore::new(file.try_clone().unwrap());
    let volume = volume_over(Box::new(store), SectorSize::B4096, true);
    let mut data = vec![0; SIZE];
    volume.read(0, &mut data, &mut Extents::default()).unwrap();
    file.set_len(half as u64).unwrap();
    volume.write(half as u64, &mut plain[half..].to_vec(), false).unwrap();
    volume.read(0, &mut data, &mut Extents::default()).unwrap();
    assert!(data == plain, "what is being written is not lost with the mapping");
}

/// Sectors that somebody else punched out of a file in memory are zeros, as they would be on a disk.
#[test]
fn a_hole_in_a_file_in_memory_is_seen_where_none_is_known() {
    let file =
        std::fs::File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(SIZE as u64).unwrap();
    let store = crate::store::FileStore::new(file.try_clone().unwrap());
    let volume = volume_over(Box::new(store), SectorSize::B4096, true);
    let mut plain = pattern(5, SIZE);
    volume.write(0, &mut plain.clone(), false).unwrap();
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, flags, 8192, 4096).unwrap();
    plain[8192..12288].fill(0);
    let (mut data, mut extents) = (vec![1; SIZE], Extents::default());
    volume.read(0, &mut data, &mut extents).unwrap();
    assert!(data == plain);
    assert_eq!(extents.as_slice().len(), 3);
}

/// A cipher that looks, when it is wiped, whether a file is still open.
struct Wiped {
    cipher: Box<dyn SectorCipher>,
    descriptor: String,
    inode: u64,
    was_open: Arc<AtomicBool>,
}

impl SectorCipher for Wiped {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        self.cipher.encrypt(first, data);
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        self.cipher.decrypt(first, data);
    }

    fn sector_size(&self) -> SectorSize {
        self.cipher.sector_size()
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        let is_open = std::fs::metadata(&self.descriptor).is_ok_and(|now| now.ino() == self.inode);
        self.was_open.store(is_open, Ordering::Relaxed);
    }
}

/// To unmap a large file takes seconds.
#[test]
fn keys_are_wiped_before_the_file_is_unmapped() {
    let file =
        std::fs::File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(SIZE as u64).unwrap();
    let descriptor = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    let (inode, was_open) = (file.metadata().unwrap().ino(), Arc::new(AtomicBool::new(false)));
    let key = DataKey::copy_from(&(0..64).collect::<Vec<u8>>()).unwrap();
    let cipher = Implementation::fastest().cipher(&key, SectorSize::B4096);
    let cipher = Wiped { cipher, descriptor, inode, was_open: Arc::clone(&was_open) };
    let size = VolumeSize::new(SIZE as u64, SectorSize::B4096).unwrap();
    let options = Options { read_only: false, discard: true, flush: true };
    let store = Box::new(crate::store::FileStore::new(file));
    drop(EncryptedVolume::new(store, Box::new(cipher), size, options));
    assert!(was_open.load(Ordering::Relaxed));
}

/// Of a volume in memory, in requests that are served where it lies: each sector is what was written or discarded.
#[test]
fn sectors_are_discarded_while_they_are_used_in_place() {
    let volume = volume_in_memory();
    let (plain, served) = (pattern(5, SIZE), AtomicU64::new(0));
    let whole = ByteRange::within(0, SIZE as u64, SIZE as u64).unwrap();
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            for round in 0..300u64 {
                // By write(2), where sectors were discarded, and in place.
                for _ in 0..3 {
                    volume.write(0, &mut plain.clone(), false).unwrap();
                    served.fetch_add(volume.store.in_place(whole, &mut |_| {}).into(), Ordering::Relaxed);
                }
                volume.trim(round % 14 * 4096, 12288, false).unwrap();
            }
        });
        while !busy.is_finished() {
            let mut data = vec![1; SIZE];
            volume.read(0, &mut data, &mut Extents::default()).unwrap();
            for (sector, expected) in data.chunks(4096).zip(plain.chunks(4096)) {
                assert!(sector == expected || sector.iter().all(|byte| *byte == 0));
            }
        }
    });
    assert_eq!(served.into_inner(), 900);
}

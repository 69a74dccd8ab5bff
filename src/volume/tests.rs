//! The volume against a plain array of bytes, and its promises about concurrency and ciphertext.

#![allow(clippy::cast_possible_truncation, reason = "the low bits are what test data is made of")]

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::secret::DataKey;
use crate::store::{Backing, Leftover};
use crate::xts::Implementation;

const SIZE: usize = 64 * 1024;

fn volume_of(size: usize, sector: SectorSize, discard: bool) -> (EncryptedVolume, Leftover) {
    let (store, leftover) = Backing::Memory.open_new(size as u64).unwrap();
    let key = DataKey::copy_from(&(0..64).collect::<Vec<u8>>()).unwrap();
    let cipher = Implementation::AwsLc.cipher(&key, sector);
    let size = VolumeSize::new(size as u64, sector).unwrap();
    let options = Options { read_only: false, discard };
    (EncryptedVolume::new(Box::new(store), cipher, size, options), leftover)
}

#[derive(Clone, Debug)]
enum Operation {
    Read,
    Write { fill: u8, durable: bool },
    Zero { may_discard: bool, durable: bool },
    Trim { durable: bool },
    Flush,
}

fn operations() -> impl Strategy<Value = Vec<(Operation, usize, usize)>> {
    let operation = prop_oneof![
        4 => Just(Operation::Read),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(fill, durable)| Operation::Write { fill, durable }),
        2 => (any::<bool>(), any::<bool>())
            .prop_map(|(may_discard, durable)| Operation::Zero { may_discard, durable }),
        1 => any::<bool>().prop_map(|durable| Operation::Trim { durable }),
        1 => Just(Operation::Flush),
    ];
    // Offsets and lengths near sector boundaries are the interesting ones.
    let place = (0..SIZE / 512, 0usize..512, any::<bool>())
        .prop_map(|(sector, byte, aligned)| sector * 512 + if aligned { 0 } else { byte });
    proptest::collection::vec((operation, place.clone(), place), 1..40)
}

/// Bytes that differ by place, so that a misplaced write shows.
fn pattern(fill: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| fill.wrapping_add((i % 251) as u8)).collect()
}

fn apply(volume: &EncryptedVolume, model: &mut [u8], operation: &Operation, offset: usize, length: usize) {
    let target = offset..offset + length;
    let (at, count) = (offset as u64, length as u64);
    match *operation {
        Operation::Read => {
            let mut got = vec![0xee; length];
            volume.read(at, &mut got, &mut Extents::default()).unwrap();
            assert_eq!(got, &model[target]);
        }
        Operation::Write { fill, durable } => {
            let mut data = pattern(fill, length);
            model[target].copy_from_slice(&data);
            volume.write(at, &mut data, durable).unwrap();
        }
        Operation::Zero { may_discard, durable } => {
            volume.write_zeroes(at, count, Zeroes { may_discard, fast: false }, durable).unwrap();
            model[target].fill(0);
        }
        Operation::Trim { durable } => {
            volume.trim(at, count, durable).unwrap();
            // What a trimmed range reads as is unspecified: take over what it is, outside it nothing may change.
            volume.read(at, &mut model[target], &mut Extents::default()).unwrap();
        }
        Operation::Flush => volume.flush().unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn behaves_like_an_array(operations in operations(), small: bool, discard: bool) {
        let sector = if small { SectorSize::B512 } else { SectorSize::B4096 };
        let (volume, _leftover) = volume_of(SIZE, sector, discard);
        let mut model = vec![0; SIZE];
        for (operation, from, to) in &operations {
            let (start, end) = (from.min(to), from.max(to));
            apply(&volume, &mut model, operation, *start, end - start);
        }
        let mut all = vec![1; SIZE];
        volume.read(0, &mut all, &mut Extents::default()).unwrap();
        prop_assert_eq!(all, model);
    }
}

/// Each thread owns every eighth run of seven bytes; all of them share every sector.
#[test]
fn concurrent_neighbours_lose_nothing() {
    const THREADS: usize = 8;
    const RUN: usize = 7;
    let (volume, _leftover) = volume_of(SIZE, SectorSize::B4096, true);
    let volume = Arc::new(volume);
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
    let (volume, _leftover) = volume_of(SIZE, SectorSize::B4096, true);
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

/// Reads the ciphertext behind a volume through a second descriptor.
fn ciphertext(sector: SectorSize, use_it: impl FnOnce(&EncryptedVolume)) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backing");
    let (store, mut leftover) = Backing::File(path.clone()).open_new(SIZE as u64).unwrap();
    leftover.give_name().unwrap();
    let key = DataKey::copy_from(&(0..64).collect::<Vec<u8>>()).unwrap();
    let cipher = Implementation::Portable.cipher(&key, sector);
    let size = VolumeSize::new(SIZE as u64, sector).unwrap();
    let volume =
        EncryptedVolume::new(Box::new(store), cipher, size, Options { read_only: false, discard: false });
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
        Implementation::AwsLc.cipher(&key, sector).encrypt(16384 / sector.bytes() as u64, &mut expected);
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

fn volume_over(store: ForgetfulStore) -> EncryptedVolume {
    let key = DataKey::copy_from(&(0..64).collect::<Vec<u8>>()).unwrap();
    let cipher = Implementation::AwsLc.cipher(&key, SectorSize::B512);
    let size = VolumeSize::new(SIZE as u64, SectorSize::B512).unwrap();
    EncryptedVolume::new(Box::new(store), cipher, size, Options { read_only: false, discard: true })
}

#[test]
fn a_failed_flush_is_never_forgotten() {
    let volume = volume_over(ForgetfulStore { fails: true.into(), full: false });
    assert!(matches!(volume.flush(), Err(BlockError::Io(_))));
    assert!(matches!(volume.flush(), Err(BlockError::LostWrites)));
    assert!(matches!(volume.write(0, &mut [1; 512], true), Err(BlockError::LostWrites)));
    // Whatever meets the failure first, it is for all of the volume's acknowledged writes.
    let volume = volume_over(ForgetfulStore { fails: true.into(), full: false });
    assert!(matches!(volume.write(3, &mut [1; 5], true), Err(BlockError::Io(_))));
    assert!(matches!(volume.flush(), Err(BlockError::LostWrites)));
}

#[test]
fn a_full_disk_is_told_and_loses_nothing_else() {
    let volume = volume_over(ForgetfulStore { fails: false.into(), full: true });
    for durable in [false, true] {
        assert!(matches!(volume.write(0, &mut [1; 512], durable), Err(BlockError::NoSpace)));
        assert!(matches!(volume.write(3, &mut [1; 5], durable), Err(BlockError::NoSpace)));
    }
    assert!(volume.flush().is_ok());
}

#[test]
fn long_requests_end_when_the_volume_is_stopped() {
    let (volume, _leftover) = volume_of(SIZE, SectorSize::B4096, true);
    volume.stop();
    for may_discard in [false, true] {
        let how = Zeroes { may_discard, fast: false };
        assert!(matches!(volume.write_zeroes(0, SIZE as u64, how, false), Err(BlockError::Stopped)));
    }
    assert!(matches!(volume.trim(0, SIZE as u64, false), Err(BlockError::Stopped)));
}

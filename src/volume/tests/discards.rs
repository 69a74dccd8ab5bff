//! Long discards: what the store is told, and who waits for them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use super::*;
use crate::store::FileStore;

const LONG: u64 = 4 * REGION;

/// A file in memory that tells of every discard before it makes it, and waits until it may.
struct Watched {
    store: FileStore,
    quick: bool,
    discards: Mutex<Sender<ByteRange>>,
    may_go_on: Option<Mutex<Receiver<()>>>,
}

impl Store for Watched {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        self.store.read(offset, buffer)
    }

    fn extents(&self, range: ByteRange, most: usize, extents: &mut Extents) -> std::io::Result<()> {
        self.store.extents(range, most, extents)
    }

    fn prefetch(&self, _: ByteRange) {}

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.store.write(offset, data)
    }

    fn discard(&self, range: ByteRange) -> std::io::Result<()> {
        self.discards.lock().unwrap().send(range).unwrap();
        if let Some(may_go_on) = &self.may_go_on {
            // Whoever may not go on any more because the test has failed goes on.
            let _ = may_go_on.lock().unwrap_or_else(PoisonError::into_inner).recv();
        }
        self.store.discard(range)
    }

    fn discards_quickly(&self) -> bool {
        self.quick
    }

    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

fn watched(quick: bool, may_go_on: Option<Receiver<()>>) -> (EncryptedVolume, Receiver<ByteRange>) {
    let (discards, seen) = channel();
    let store = Backing::Memory.open_new(LONG).unwrap().0;
    let store = Watched { store, quick, discards: discards.into(), may_go_on: may_go_on.map(Mutex::new) };
    let key = DataKey::copy_from(&(0..64).collect::<Vec<u8>>()).unwrap();
    let cipher = Implementation::fastest().cipher(&key, SectorSize::B4096);
    let options = Options { read_only: false, discard: true, flush: true };
    let size = VolumeSize::new(LONG, SectorSize::B4096).unwrap();
    (EncryptedVolume::new(Box::new(store), cipher, size, options), seen)
}

/// Data of `length` bytes from `offset`, by requests of a MiB at most.
fn write(volume: &EncryptedVolume, offset: u64, length: u64) {
    for piece in volume.range(offset, length).pieces(1 << 20) {
        volume.write(piece.start(), &mut vec![7; bytes(piece)], false).unwrap();
    }
}

fn is_zero(volume: &EncryptedVolume) -> bool {
    let mut all = vec![1; LONG as usize];
    volume.read(0, &mut all, &mut Extents::default()).unwrap();
    all.iter().all(|byte| *byte == 0)
}

#[test]
fn holes_are_passed_over_and_data_is_discarded_in_small_pieces() {
    for (quick, most) in [(true, 8 << 20), (false, 256 << 10)] {
        let (volume, seen) = watched(quick, None);
        let how = Zeroes { may_discard: true, fast: false };
        volume.write_zeroes(0, LONG, how, false).unwrap();
        assert_eq!(seen.try_iter().count(), 0, "all was one hole");
        // One sector in the first region; the second and half of the third dense.
        write(&volume, 40960, 4096);
        write(&volume, REGION, REGION * 3 / 2);
        volume.write_zeroes(5, LONG - 5, how, false).unwrap();
        let seen: Vec<ByteRange> = seen.try_iter().collect();
        let dense = (0..REGION * 3 / 2 / most).map(|at| volume.range(REGION + at * most, most));
        assert_eq!(seen[0].start(), 40960);
        assert!(seen[0].length() <= 2 << 20, "{seen:?}: a sector, or the large page it lies in");
        let later: Vec<_> = seen.into_iter().skip_while(|piece| piece.end() <= REGION).collect();
        assert!(later.into_iter().eq(dense));
        assert!(is_zero(&volume));
    }
}

#[test]
fn a_piece_holds_few_extents() {
    let (volume, seen) = watched(true, None);
    for offset in (0..LONG).step_by(64 << 10) {
        write(&volume, offset, 4096);
    }
    let counted = |range| {
        let mut extents = Extents::default();
        volume.store.extents(range, usize::MAX, &mut extents).unwrap();
        extents.as_slice().iter().filter(|extent| !extent.is_hole).count()
    };
    let before = counted(volume.range(0, LONG));
    volume.trim(0, LONG, false).unwrap();
    let discards: Vec<ByteRange> = seen.try_iter().collect();
    assert!(discards.len() >= before.div_ceil(64), "{} for {before} extents", discards.len());
    assert!(is_zero(&volume));
}

/// While one piece is being discarded, another one of the same region is read and written.
#[test]
fn a_long_discard_keeps_nobody_from_the_rest() {
    let (go_on, may_go_on) = channel();
    let (volume, seen) = watched(true, Some(may_go_on));
    write(&volume, 0, REGION);
    std::thread::scope(|scope| {
        scope.spawn(|| volume.trim(0, LONG, false).unwrap());
        let first = seen.recv().unwrap();
        assert_eq!(first.start(), 0);
        let mut sector = [0; 4096];
        let mut extents = Extents::default();
        assert!(!volume.read_now(0, &mut sector, &mut extents).unwrap());
        volume.read(first.end(), &mut sector, &mut extents).unwrap();
        assert_eq!(sector, [7; 4096]);
        volume.write(first.end(), &mut [9; 4096], false).unwrap();
        drop(go_on);
    });
    assert!(is_zero(&volume));
}

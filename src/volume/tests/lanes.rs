//! Writes whose data is enciphered as it comes in, and the lanes that take them or do not.

use std::path::Path;

use super::*;
use crate::block::{Direction, Event, Transfer};
use crate::pages::Pages;
use crate::store::FileStore;

/// Past the page cache, on a disk mostly.
fn volume() -> EncryptedVolume {
    let sector = SectorSize::B4096;
    let file = tempfile::tempfile_in("/var/tmp").unwrap();
    file.set_len(SIZE as u64).unwrap();
    let store = FileStore::new(file).past_the_cache(Path::new("test"), sector.bytes()).unwrap();
    volume_over(Box::new(store), sector, true)
}

fn lane(volume: &EncryptedVolume) -> Box<dyn Lane + '_> {
    volume.lane().expect("io_uring, which the kernel or the container refuses here")
}

/// A write of `data`, which comes in `step` bytes at a time; and how many of them were prepared.
fn coming(lane: &dyn Lane, token: usize, offset: u64, data: &[u8], step: usize) -> Transfer {
    let (mut pages, mut prepared) = (Pages::new(data.len()), 0);
    let bytes = pages.first_mut(data.len());
    for came in (0..data.len()).step_by(step) {
        let end = data.len().min(came + step);
        bytes[came..end].copy_from_slice(&data[came..end]);
        prepared += lane.prepare(offset + prepared as u64, &mut bytes[prepared..end]);
    }
    Transfer { token, direction: Direction::Write, offset, length: data.len(), pages, prepared }
}

/// Its end.
fn end(lane: &mut dyn Lane) {
    lane.wait(None).unwrap();
    assert!(matches!(lane.next(&mut Extents::default()), Some(Event::Done(_, Ok(())))));
}

#[test]
fn what_is_enciphered_bit_by_bit_is_the_same() {
    let volume = volume();
    let mut lane = lane(&volume);
    for (number, step) in [1, 511, 512, 5000, 8192, 12_288].into_iter().enumerate() {
        let (offset, data) = (4096 * number as u64, pattern(number as u8, 12_288));
        let write = coming(&*lane, number, offset, &data, step);
        assert_eq!(write.prepared, data.len(), "by {step}");
        assert!(lane.begin(write).is_ok());
        end(&mut *lane);
        let mut read = vec![0; data.len()];
        volume.read(offset, &mut read, &mut Extents::default()).unwrap();
        assert!(read == data, "by {step}");
    }
    // The end of it had not been prepared.
    let data = pattern(77, 8192);
    let mut write = coming(&*lane, 0, 0, &data[..4096], 512);
    let mut pages = Pages::new(data.len());
    pages.first_mut(data.len()).copy_from_slice(&[write.data(), &data[4096..]].concat());
    assert!(lane.begin(Transfer { length: data.len(), pages, ..write }).is_ok());
    end(&mut *lane);
    let mut read = vec![0; data.len()];
    volume.read(0, &mut read, &mut Extents::default()).unwrap();
    assert!(read == data);
}

#[test]
fn what_is_refused_comes_back_as_it_was() {
    let volume = volume();
    let (mut lane, mut other) = (lane(&volume), lane(&volume));
    let data = pattern(3, 8192);
    let comes_back = |other: &mut dyn Lane, offset: u64, data: &[u8], why: &str| {
        let write = coming(other, 0, offset, data, 5000);
        let mut refused = other.begin(write).expect_err(why);
        assert!(refused.data() == data, "{why}");
    };
    let held = coming(&*lane, 0, 4096, &data, 8192);
    assert!(lane.begin(held).is_ok());
    comes_back(&mut *other, 0, &data, "others have a sector of it");
    end(&mut *lane);
    let takes = |direction, offset, length| other.takes(direction, offset, length);
    assert!(takes(Direction::Write, 4096, 8192) && takes(Direction::Read, 4096, 8192));
    for (offset, length) in [(0, 8000), (512, 8192), (512, 512)] {
        assert!(!takes(Direction::Write, offset, length) && !takes(Direction::Read, offset, length));
    }
    volume.freeze(true);
    assert!(!takes(Direction::Write, 0, 8192) && takes(Direction::Read, 0, 8192));
    comes_back(&mut *other, 0, &data, "it was frozen meanwhile");
    volume.freeze(false);
    let write = coming(&*other, 0, 0, &data, 5000);
    assert!(other.begin(write).is_ok());
    end(&mut *other);
}

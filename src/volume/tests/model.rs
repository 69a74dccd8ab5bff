//! The volume against a plain array of bytes, and a plain list of the sectors that are holes.

use proptest::prelude::*;

use super::stores::{Grainy, Kind};
use super::{SIZE, pattern, volume_over};
use crate::block::{BlockDevice, Extent, Extents, Zeroes};
use crate::geometry::{ByteRange, SectorSize};
use crate::volume::EncryptedVolume;

#[derive(Clone, Debug)]
enum Operation {
    Read,
    Write { fill: u8, durable: bool },
    Zero { may_discard: bool, durable: bool },
    Trim { durable: bool },
    Status { most: usize },
    Cache,
    Flush,
}

fn operations() -> impl Strategy<Value = Vec<(Operation, usize, usize)>> {
    let operation = prop_oneof![
        4 => Just(Operation::Read),
        4 => (any::<u8>(), any::<bool>()).prop_map(|(fill, durable)| Operation::Write { fill, durable }),
        3 => (any::<bool>(), any::<bool>())
            .prop_map(|(may_discard, durable)| Operation::Zero { may_discard, durable }),
        2 => any::<bool>().prop_map(|durable| Operation::Trim { durable }),
        4 => prop_oneof![1..4_usize, Just(usize::MAX)].prop_map(|most| Operation::Status { most }),
        1 => Just(Operation::Cache),
        1 => Just(Operation::Flush),
    ];
    // Offsets and lengths near sector boundaries are the interesting ones.
    let place = (0..SIZE / 512, 0usize..512, any::<bool>())
        .prop_map(|(sector, byte, aligned)| sector * 512 + if aligned { 0 } else { byte });
    proptest::collection::vec((operation, place.clone(), place), 1..40)
}

struct Model {
    bytes: Vec<u8>,
    /// One a sector.
    holes: Vec<bool>,
    sector: SectorSize,
    discard: bool,
    kind: Kind,
}

impl Model {
    fn new(sector: SectorSize, discard: bool, kind: Kind) -> Self {
        Self { bytes: vec![0; SIZE], holes: vec![true; SIZE / sector.bytes()], sector, discard, kind }
    }

    fn set(&mut self, range: ByteRange, is_hole: bool) {
        let sectors = self.sector.number(range.start())..self.sector.number(range.end());
        self.holes[sectors.start as usize..sectors.end as usize].fill(is_hole);
    }

    /// What `range` is, as exactly as can be known.
    fn extents(&self, range: ByteRange) -> Extents {
        let mut extents = Extents::default();
        for piece in range.pieces(self.sector.bytes() as u64) {
            extents.push(piece.length(), self.holes[self.sector.number(piece.start()) as usize]);
        }
        extents
    }

    fn apply(&mut self, volume: &EncryptedVolume, operation: &Operation, range: ByteRange) {
        let target = range.start() as usize..range.end() as usize;
        let (at, length) = (range.start(), range.length());
        let body = range.split(self.sector).body;
        match *operation {
            Operation::Read => {
                let (mut got, mut extents) = (vec![0xee; target.len()], Extents::default());
                let now = volume.read_now(at, &mut got, &mut extents).unwrap();
                assert!(now == (body == range) || self.kind != Kind::Memory || length == 0);
                if !now {
                    extents.clear();
                    volume.read(at, &mut got, &mut extents).unwrap();
                }
                assert_eq!(got, self.bytes[target]);
                assert_eq!(extents, self.extents(range));
            }
            Operation::Write { fill, durable } => {
                let mut data = pattern(fill, target.len());
                self.bytes[target].copy_from_slice(&data);
                if length > 0 {
                    self.set(range.covering(self.sector), false);
                }
                let now = !durable && volume.write_now(at, &mut data).unwrap();
                assert!(now == (body == range && !durable) || self.kind != Kind::Memory || length == 0);
                if !now {
                    volume.write(at, &mut data, durable).unwrap();
                }
            }
            Operation::Zero { may_discard, durable } => {
                volume.write_zeroes(at, length, Zeroes { may_discard, fast: false }, durable).unwrap();
                self.bytes[target].fill(0);
                if length > 0 {
                    self.set(range.covering(self.sector), false);
                }
                self.set(body, may_discard && self.discard);
            }
            Operation::Trim { durable } => {
                volume.trim(at, length, durable).unwrap();
                // What a trimmed range reads as is unspecified: take over what it is, outside it nothing may change.
                volume.read(at, &mut self.bytes[target], &mut Extents::default()).unwrap();
                if self.discard && self.kind != Kind::NeverPunches {
                    self.set(body, true);
                }
            }
            Operation::Status { most } => {
                let mut extents = Extents::default();
                volume.status(at, length, most, &mut extents).unwrap();
                self.check_status(range, most, &extents);
            }
            Operation::Cache => volume.cache(at, length).unwrap(),
            Operation::Flush => volume.flush().unwrap(),
        }
    }

    fn check_status(&self, range: ByteRange, most: usize, extents: &Extents) {
        let told = extents.as_slice();
        assert!(told.len() <= most && told.is_empty() == range.is_empty(), "{told:?}");
        let mut at = range.start();
        for &Extent { length, is_hole } in told {
            let extent = ByteRange::within(at, length, range.end()).unwrap();
            assert!(!extent.is_empty());
            if is_hole {
                // Data may be said of what is a hole, since a store need not know; the other way round nothing may.
                assert_eq!(self.extents(extent).as_slice(), [Extent { length, is_hole }], "{told:?}");
            }
            at = extent.end();
        }
        if self.kind == Kind::Grainy(Grainy::EXACT) && most == usize::MAX {
            assert_eq!(*extents, self.extents(range));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn behaves_like_an_array(operations in operations(), small: bool, discard: bool, kind in 0..Kind::ALL.len()) {
        let sector = if small { SectorSize::B512 } else { SectorSize::B4096 };
        let kind = Kind::ALL[kind];
        let volume = volume_over(kind.open(), sector, discard);
        let mut model = Model::new(sector, discard, kind);
        for (operation, from, to) in &operations {
            let (start, end) = (*from.min(to) as u64, *from.max(to) as u64);
            model.apply(&volume, operation, ByteRange::within(start, end - start, SIZE as u64).unwrap());
        }
        let all = ByteRange::within(0, SIZE as u64, SIZE as u64).unwrap();
        model.apply(&volume, &Operation::Read, all);
    }
}

/// A client that asks again from where an answer ended comes to the end, and by holes that are few.
#[test]
fn a_status_goes_on_where_the_last_one_ended() {
    for kind in Kind::ALL {
        let volume = volume_over(kind.open(), SectorSize::B512, true);
        for at in (0..SIZE as u64).step_by(8192) {
            volume.write(at, &mut pattern(1, 4096), false).unwrap();
        }
        for most in [1, 2, 7] {
            let (mut at, mut answers) = (0, 0);
            while at < SIZE as u64 {
                let mut extents = Extents::default();
                volume.status(at, SIZE as u64 - at, most, &mut extents).unwrap();
                at += extents.as_slice().iter().map(|extent| extent.length).sum::<u64>();
                answers += 1;
            }
            assert!(answers <= SIZE / 512, "{kind:?}: {answers} answers");
        }
    }
}

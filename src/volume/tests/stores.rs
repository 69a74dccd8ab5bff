//! Stores that a volume may lie on: the real ones, and ones that know their space in odd ways.

use std::io;
use std::sync::Mutex;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::SIZE;
use crate::block::Extents;
use crate::geometry::ByteRange;
use crate::store::{Backing, FileStore, Store};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Memory,
    File,
    NeverPunches,
    Grainy(Grainy),
}

impl Kind {
    pub(super) const ALL: [Self; 5] = [
        Self::Memory,
        Self::File,
        Self::NeverPunches,
        Self::Grainy(Grainy::EXACT),
        Self::Grainy(Grainy { shrunk: 137 }),
    ];

    pub(super) fn open(self) -> Box<dyn Store> {
        match self {
            Self::Memory => Box::new(opened(&Backing::Memory)),
            Self::File => Box::new(opened(&Backing::Directory(std::env::temp_dir()))),
            Self::NeverPunches => Box::new(NeverPunches(opened(&Backing::Memory))),
            Self::Grainy(grainy) => Box::new(GrainyStore { grainy, bytes: Mutex::new(vec![0; SIZE]) }),
        }
    }
}

fn opened(backing: &Backing) -> FileStore {
    // What would clear it away may go: neither kind has a name.
    backing.open_new(SIZE as u64).unwrap().0
}

/// A file system without holes.
struct NeverPunches(FileStore);

impl Store for NeverPunches {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, buffer)
    }

    fn extents(&self, range: ByteRange, most: usize, extents: &mut Extents) -> io::Result<()> {
        self.0.extents(range, most, extents)
    }

    fn prefetch(&self, range: ByteRange) {
        self.0.prefetch(range);
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.0.write(range.start(), &vec![0; range.length() as usize])
    }

    fn discards_quickly(&self) -> bool {
        false
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Every run of zeros is a hole, in the middle of a sector's ciphertext too, less some bytes at both of its ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grainy {
    pub(super) shrunk: usize,
}

impl Grainy {
    pub(super) const EXACT: Self = Self { shrunk: 0 };
}

struct GrainyStore {
    grainy: Grainy,
    bytes: Mutex<Vec<u8>>,
}

fn within(range: ByteRange) -> std::ops::Range<usize> {
    range.start() as usize..range.end() as usize
}

impl Store for GrainyStore {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn extents(&self, range: ByteRange, most: usize, extents: &mut Extents) -> io::Result<()> {
        let bytes = &self.bytes.lock().unwrap()[within(range)];
        let mut holes = 0;
        for run in bytes.chunk_by(|one, next| (*one == 0) == (*next == 0)) {
            let shrunk = if run[0] == 0 { self.grainy.shrunk.min(run.len() / 2) } else { 0 };
            if run[0] != 0 {
                extents.push(run.len() as u64, false);
                continue;
            }
            holes += 1;
            if holes > most {
                break;
            }
            extents.push(shrunk as u64, false);
            extents.push((run.len() - 2 * shrunk) as u64, true);
            extents.push(shrunk as u64, false);
        }
        Ok(())
    }

    fn prefetch(&self, _: ByteRange) {}

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.bytes.lock().unwrap()[within(range)].fill(0);
        Ok(())
    }

    fn discards_quickly(&self) -> bool {
        true
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes the second half of what it is given a while after the first one, and says so in between.
pub(super) struct ByHalves {
    bytes: Mutex<Vec<u8>>,
    half_written: Mutex<Sender<()>>,
}

impl ByHalves {
    pub(super) fn new(half_written: Sender<()>) -> Self {
        Self { bytes: Mutex::new(vec![0; SIZE]), half_written: Mutex::new(half_written) }
    }
}

impl Store for ByHalves {
    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        self.read(offset, buffer).map(|()| true)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn extents(&self, range: ByteRange, _: usize, extents: &mut Extents) -> io::Result<()> {
        extents.push(range.length(), false);
        Ok(())
    }

    fn prefetch(&self, _: ByteRange) {}

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        // In the middle of a cipher block.
        let (start, half) = (offset as usize, data.len() / 2 + 3);
        self.bytes.lock().unwrap()[start..][..half].copy_from_slice(&data[..half]);
        self.half_written.lock().unwrap().send(()).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        self.bytes.lock().unwrap()[start + half..][..data.len() - half].copy_from_slice(&data[half..]);
        Ok(())
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        self.bytes.lock().unwrap()[within(range)].fill(0);
        Ok(())
    }

    fn discards_quickly(&self) -> bool {
        true
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}

//! [`Store`] over a file descriptor.

mod direct;
mod present;

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, FallocateFlags, FsWord, SeekFrom, fadvise, fallocate, fstatfs, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use self::direct::Direct;
use self::present::Present;
use super::Store;
use super::error::StoreError;
use crate::block::Extents;
use crate::geometry::ByteRange;
use crate::mapping::Window;
use crate::ring::{Ring, Rings};

/// Most bytes that one hint fetches: a READ is no longer.
const MOST_PREFETCHED: u64 = 64 << 20;
/// Bytes a call: more than a read-ahead window is ignored (Linux, mm/readahead.c, `force_page_cache_ra`), and this is
/// the usual one.
const WINDOW: u64 = 128 << 10;
/// Bytes of a write through the page cache that takes long enough for others to sleep meanwhile.
const LONG: usize = 512 << 10;
/// File systems that let one write at a time into a file, by statfs(2): tmpfs, ext2 to ext4, XFS, btrfs.
const ONE_AT_A_TIME: [FsWord; 4] = [IN_MEMORY, EXT4, 0x5846_5342, 0x9123_683e];
/// `EXT4_SUPER_MAGIC` (statfs(2)), and that of ext2 and ext3.
const EXT4: FsWord = 0xef53;
/// Bytes written at once into ext4's page cache. Since Linux 6.16 it keeps what is written at once as one folio, and walks
/// through the heads of all of a folio's blocks at each later write to one of them (fs/ext4/inode.c,
/// `ext4_set_inode_mapping_order`, `ext4_block_write_begin`).
const FOLIO: usize = 64 << 10;
/// `TMPFS_MAGIC` (statfs(2)): files that lie in memory, those of memfd_create(2) included.
const IN_MEMORY: FsWord = 0x0102_1994;

/// A file, a block device or a file in memory.
pub struct FileStore {
    file: File,
    /// Set by the first attempt that the file or its file system refuses.
    cannot_punch: AtomicBool,
    /// Set by the first attempt to read without waiting that it refuses.
    cannot_tell: AtomicBool,
    in_memory: bool,
    /// Where it lies in memory and is mapped.
    present: Option<Present>,
    direct: Option<Direct>,
    /// Held for a long write to a file through the page cache, where the file system lets one at a time into a file: who
    /// waits for that spins, on a processor that clients need, and who waits here sleeps.
    writing: Option<Mutex<()>>,
    /// Bytes that one system call writes through the page cache.
    at_once: usize,
    rings: Rings,
}

impl FileStore {
    /// Takes over `file`, which is open for reading and writing and long enough.
    pub fn new(file: File) -> Self {
        // Of a device's node, it would be told where the node is.
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        let system = fstatfs(&file).ok().filter(|_| is_file).map(|system| system.f_type);
        let in_memory = system == Some(IN_MEMORY);
        // In memory, there is nothing to pass by.
        let direct = if in_memory { None } else { Direct::of(&file) };
        let present = in_memory.then(|| Present::of(&file)).flatten();
        let (cannot_punch, cannot_tell) = (AtomicBool::new(false), AtomicBool::new(false));
        let one_at_a_time = system.is_some_and(|system| ONE_AT_A_TIME.contains(&system));
        let writing = (one_at_a_time && direct.is_none()).then(Mutex::default);
        let at_once = if system == Some(EXT4) && direct.is_none() { FOLIO } else { usize::MAX };
        let rings = Rings::default();
        Self { file, cannot_punch, cannot_tell, in_memory, present, direct, writing, at_once, rings }
    }

    /// Past the page cache from now on, in whole sectors of `sector` bytes. `path` is the file's.
    ///
    /// # Errors
    /// [`StoreError::NoDirect`] where file or file system cannot, [`StoreError::Alignment`] where sectors are too
    /// small for it.
    pub fn past_the_cache(self, path: &Path, sector: usize) -> Result<Self, StoreError> {
        let direct = Some(Direct::begin(&self.file, path, sector)?);
        Ok(Self { direct, writing: None, present: None, at_once: usize::MAX, ..self })
    }

    /// The first byte from `at` on that is not in a hole; `end` if that is further.
    ///
    /// lseek(2): the file offset that it moves is used by nobody, and where holes are not known of, as on a block
    /// device, all is data.
    fn next_data(&self, at: u64, end: u64) -> io::Result<u64> {
        match seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) => Ok(data.min(end)),
            // Past the last data: in the file's last hole, or past its end, where a read fails too.
            Err(Errno::NXIO) => match seek(&self.file, SeekFrom::End(0))?.min(end) {
                length if length > at => Ok(length),
                _ => Err(io::ErrorKind::UnexpectedEof.into()),
            },
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(at),
            Err(error) => Err(error.into()),
        }
    }

    /// The first byte from `data` on that is in a hole; `end` if that is further.
    fn next_hole(&self, data: u64, end: u64) -> io::Result<u64> {
        match seek(&self.file, SeekFrom::Hole(data)) {
            Ok(hole) => Ok(hole.min(end)),
            Err(Errno::NXIO) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(end),
            Err(error) => Err(error.into()),
        }
    }

    /// All-zero ciphertext is a hole by definition, so zeros written do the same as a hole punched.
    fn write_zeros(&self, range: ByteRange) -> io::Result<()> {
        const STEP: usize = 64 * 1024;
        static ZEROS: [u8; STEP] = [0; STEP];
        range.pieces(STEP as u64).try_for_each(|piece| {
            let length = usize::try_from(piece.length()).unwrap_or(STEP);
            self.write(piece.start(), &ZEROS[..length])
        })
    }
}

impl Store for FileStore {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.direct {
            Some(direct) if !direct.takes(buffer) => direct.bounce(buffer.len(), |at, aligned| {
                self.file.read_exact_at(aligned, offset + at as u64)?;
                buffer[at..at + aligned.len()].copy_from_slice(aligned);
                Ok(())
            }),
            _ => {
                self.file.read_exact_at(buffer, offset)?;
                if let Some(present) = &self.present {
                    present.seen(offset, buffer);
                }
                Ok(())
            }
        }
    }

    fn read_now(&self, offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        if self.in_memory {
            return self.read(offset, buffer).map(|()| true);
        }
        if self.direct.is_some() {
            return Ok(false);
        }
        let length = buffer.len();
        if self.cannot_tell.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match preadv2(&self.file, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
            // Fewer, if the page cache has only the beginning.
            Ok(read) => Ok(read == length),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(Errno::OPNOTSUPP) => {
                self.cannot_tell.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn always_waits(&self) -> bool {
        self.direct.is_some()
    }

    fn writes_at_once(&self) -> bool {
        self.in_memory
    }

    fn in_place(&self, range: ByteRange, work: &mut dyn FnMut(&Window)) -> bool {
        self.present.as_ref().is_some_and(|present| present.reach(range, work))
    }

    fn ring(&self) -> Option<Ring<'_>> {
        // What the page cache has is there sooner without.
        self.direct.as_ref().and_then(|_| self.rings.ring(&self.file))
    }

    fn extents(&self, range: ByteRange, most: usize, extents: &mut Extents) -> io::Result<()> {
        let (mut at, end) = (range.start(), range.end());
        for _ in 0..most {
            if at == end {
                return Ok(());
            }
            let data = self.next_data(at, end)?;
            extents.push(data - at, true);
            at = if data < end { self.next_hole(data, end)? } else { end };
            // None, if the data was discarded between the two calls.
            extents.push(at - data, false);
        }
        if at == range.start() {
            extents.push(range.length(), false);
        }
        Ok(())
    }

    fn prefetch(&self, range: ByteRange) {
        // Past the page cache, nobody would look there for it.
        if self.direct.is_some() {
            return;
        }
        let fetched =
            range.pieces(WINDOW).take_while(|piece| piece.start() - range.start() < MOST_PREFETCHED);
        for piece in fetched {
            // The kernel itself does nothing for a file in memory.
            let _ = fadvise(&self.file, piece.start(), NonZeroU64::new(piece.length()), Advice::WillNeed);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &self.direct {
            Some(direct) if !direct.takes(data) => direct.bounce(data.len(), |at, aligned| {
                aligned.copy_from_slice(&data[at..at + aligned.len()]);
                self.file.write_all_at(aligned, offset + at as u64)
            }),
            _ => {
                let long = self.writing.as_ref().filter(|_| data.len() >= LONG);
                let _turn = long.map(|writing| writing.lock().unwrap_or_else(PoisonError::into_inner));
                for (number, piece) in data.chunks(self.at_once).enumerate() {
                    self.file.write_all_at(piece, offset + (number * self.at_once) as u64)?;
                }
                if let Some(present) = &self.present {
                    present.written(offset, data.len());
                }
                Ok(())
            }
        }
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if let Some(present) = &self.present {
            present.forget(range);
        }
        if self.discards_quickly() {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            loop {
                match fallocate(&self.file, flags, range.start(), range.length()) {
                    Ok(()) => return Ok(()),
                    Err(Errno::INTR) => {}
                    // Smaller than the device's blocks, or not at their borders: others may be punched.
                    Err(Errno::INVAL) => break,
                    Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                        self.cannot_punch.store(true, Ordering::Relaxed);
                        break;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.write_zeros(range)
    }

    fn discards_quickly(&self) -> bool {
        !self.cannot_punch.load(Ordering::Relaxed)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::present::PIECE;
    use super::*;

    fn store(size: u64) -> FileStore {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        FileStore::new(file)
    }

    fn range(offset: u64, length: u64) -> ByteRange {
        ByteRange::within(offset, length, u64::MAX).unwrap()
    }

    #[test]
    fn discard_reads_as_zeros_with_and_without_holes() {
        for cannot_punch in [false, true] {
            let store = store(1 << 20);
            store.cannot_punch.store(cannot_punch, Ordering::Relaxed);
            store.write(0, &[7; 1 << 20]).unwrap();
            store.discard(range(4096, 300_000)).unwrap();
            let mut all = vec![1; 1 << 20];
            store.read(0, &mut all).unwrap();
            let zeros = 4096..304_096;
            assert!(all.iter().enumerate().all(|(i, byte)| *byte == if zeros.contains(&i) { 0 } else { 7 }));
        }
    }

    #[test]
    fn what_is_written_piece_by_piece_is_written_where_it_belongs() {
        let mut store = store(1 << 20);
        let is_ext4 = fstatfs(&store.file).unwrap().f_type == EXT4;
        assert_eq!(store.at_once, if is_ext4 { FOLIO } else { usize::MAX });
        store.at_once = 4096;
        let data: Vec<u8> = (0..100_001_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        for length in [0, 1, 4096, 8191, 100_001] {
            store.discard(range(0, 1 << 20)).unwrap();
            store.write(777, &data[..length]).unwrap();
            let mut all = vec![1; 1 << 20];
            store.read(0, &mut all).unwrap();
            assert!(all[777..777 + length] == data[..length]);
            assert!(all[..777].iter().chain(&all[777 + length..]).all(|byte| *byte == 0));
        }
    }

    /// The system takes no offset beyond 2^63, as a device takes none within its blocks.
    #[test]
    fn a_hole_that_cannot_be_punched_keeps_no_other_from_it() {
        let store = store(1 << 20);
        let refused = store.discard(range(1 << 63, 4096)).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        assert!(store.discards_quickly());
    }

    /// On a disk, mostly, as the backing of a volume that names none.
    fn past_the_cache() -> FileStore {
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(1 << 20).unwrap();
        FileStore::new(file).past_the_cache(Path::new("test"), 4096).unwrap()
    }

    #[test]
    fn memory_need_not_be_aligned_to_pass_the_cache_by() {
        let store = past_the_cache();
        assert_eq!(store.at_once, usize::MAX);
        let duplicate = FileStore::new(store.file.try_clone().unwrap());
        assert!(duplicate.direct.is_some(), "so are all duplicates");
        let mut data: Vec<u8> = (0..600_001_u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
        for start in [0, 1, 8, 4095] {
            let written = data[start..start + 503_808].to_vec();
            store.write(8192, &data[start..start + 503_808]).unwrap();
            data[start..start + 503_808].fill(0);
            store.read(8192, &mut data[start..start + 503_808]).unwrap();
            assert!(data[start..start + 503_808] == written);
        }
        store.discard(range(4096, 65536)).unwrap();
        store.cannot_punch.store(true, Ordering::Relaxed);
        store.discard(range(69_632, 200_704)).unwrap();
        let mut zeros = vec![1; 266_240];
        store.read(4096, &mut zeros).unwrap();
        assert!(zeros.iter().all(|byte| *byte == 0));
        assert!(!store.read_now(0, &mut zeros).unwrap(), "it has to wait for the disk");
        assert_eq!(
            store.read((1 << 20) - 4096, &mut [0; 8192]).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    #[test]
    fn what_cannot_pass_the_cache_by_says_so() {
        let proc = FileStore::new(File::open("/proc/self/status").unwrap());
        let refused = proc.past_the_cache(Path::new("proc"), 4096).err().unwrap();
        assert!(matches!(refused, StoreError::NoDirect { .. }), "{refused}");
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        let refused = FileStore::new(file).past_the_cache(Path::new("test"), 100).err().unwrap();
        assert!(refused.to_string().contains("a sector of 100"), "{refused}");
    }

    #[test]
    fn what_is_in_memory_is_read_now_and_a_device_whose_node_is_there_is_not() {
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let store = FileStore::new(memory.into());
        store.write(0, b"data").unwrap();
        let mut data = [0; 4];
        assert!(store.read_now(0, &mut data).unwrap() && store.writes_at_once());
        assert_eq!(&data, b"data");
        assert_eq!(store.read_now(1, &mut data).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(!FileStore::new(File::open("/dev/zero").unwrap()).writes_at_once());
    }

    /// As many bytes as [`PIECE`].
    const LENGTH: usize = 32 << 10;

    /// What work on a range in place sees, if it is done.
    fn there(store: &FileStore, range: ByteRange) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(range.length()).unwrap()];
        store.in_place(range, &mut |window| window.read(&mut bytes)).then_some(bytes)
    }

    #[test]
    fn what_is_known_to_be_there_is_used_in_place_and_a_hole_is_not() {
        let [disk, memory] = stores();
        disk.write(0, &[7; 1 << 20]).unwrap();
        // Of a temporary directory that lies in memory, it is.
        assert_eq!(there(&disk, range(0, 1 << 20)).is_some(), disk.in_memory);
        let piece = PIECE;
        assert_eq!(there(&memory, range(0, piece)), None);
        memory.write(piece, &vec![7; 3 * LENGTH]).unwrap();
        let taken = space_taken(&memory);
        assert_eq!(there(&memory, range(piece + 4096, piece)), Some(vec![7; LENGTH]));
        assert_eq!(there(&memory, range(2 * piece - 4096, 4096)), Some(vec![7; 4096]));
        for (start, length) in [(0, piece), (piece - 4096, piece), (4 * piece - 4096, piece), (piece, 4095)] {
            assert!(there(&memory, range(start, length)).is_none(), "{start}, and {length} bytes");
        }
        memory.discard(range(2 * piece, 4096)).unwrap();
        assert_eq!(there(&memory, range(2 * piece, piece)), None);
        assert_eq!(space_taken(&memory), taken - 4096, "a hole was not touched");
        memory.write(6 * piece + piece / 2, &vec![7; LENGTH]).unwrap();
        for start in [6 * piece, 6 * piece + piece / 2, 7 * piece] {
            assert!(there(&memory, range(start, piece / 2)).is_none(), "half a piece");
        }
    }

    /// A durable volume's, and a predecessor's, of which nothing is known at first.
    #[test]
    fn what_was_there_before_is_found_by_reading_it() {
        let [_, memory] = stores();
        memory.write(PIECE, &vec![7; 2 * LENGTH]).unwrap();
        let again = FileStore::new(memory.file.try_clone().unwrap());
        assert_eq!(there(&again, range(PIECE, PIECE)), None);
        again.read(0, &mut vec![0; 4 * LENGTH]).unwrap();
        assert!(there(&again, range(PIECE, PIECE)).is_some() && there(&again, range(0, PIECE)).is_none());
        again.read(PIECE, &mut vec![0; 3 * LENGTH]).unwrap();
        assert_eq!(there(&again, range(PIECE, 2 * PIECE)), Some(vec![7; 2 * LENGTH]));
        assert_eq!(there(&again, range(2 * PIECE, 2 * PIECE)), None);
        memory.write(PIECE * 3, &vec![7; LENGTH - 4096]).unwrap();
        again.read(PIECE * 3, &mut vec![0; LENGTH]).unwrap();
        assert_eq!(there(&again, range(3 * PIECE, PIECE)), None, "it ends with a hole");
        memory.write(PIECE * 4 - 1, &[7]).unwrap();
        again.read(PIECE * 3 - 4096, &mut vec![0; 2 * LENGTH]).unwrap();
        assert!(there(&again, range(2 * PIECE, 2 * PIECE)).is_some(), "a page with one byte is there");
    }

    #[test]
    fn of_a_file_that_was_cut_short_reads_and_writes_tell() {
        let [_, memory] = stores();
        memory.write(0, &vec![7; 4 * LENGTH]).unwrap();
        memory.file.set_len(PIECE).unwrap();
        assert!(there(&memory, range(0, PIECE)).is_some());
        assert_eq!(there(&memory, range(PIECE, PIECE)), None);
        assert_eq!(there(&memory, range(0, PIECE)), None, "from then on");
        let mut data = vec![0; LENGTH];
        assert_eq!(memory.read(PIECE, &mut data).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        memory.read(0, &mut data).unwrap();
        assert!(data.iter().all(|byte| *byte == 7));
        memory.write(PIECE, &vec![8; LENGTH]).unwrap();
        memory.read(PIECE, &mut data).unwrap();
        assert!(data.iter().all(|byte| *byte == 8));
    }

    fn space_taken(store: &FileStore) -> u64 {
        std::os::unix::fs::MetadataExt::blocks(&store.file.metadata().unwrap()) * 512
    }

    #[test]
    fn a_hole_takes_no_space() {
        let store = store(1 << 20);
        store.write(0, &[7; 1 << 20]).unwrap();
        store.flush().unwrap();
        let full = space_taken(&store);
        store.discard(range(0, 1 << 20)).unwrap();
        assert!(space_taken(&store) < full / 2);
    }

    #[test]
    fn reading_past_the_end_is_an_error() {
        let mut buffer = [0; 10];
        assert_eq!(store(5).read(0, &mut buffer).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    /// Larger than any block or page that a file system may keep as a whole.
    const APART: u64 = 8 << 20;

    fn extents(store: &FileStore, range: ByteRange, most: usize) -> Vec<(u64, bool)> {
        let mut extents = Extents::default();
        store.extents(range, most, &mut extents).unwrap();
        extents.as_slice().iter().map(|extent| (extent.length, extent.is_hole)).collect()
    }

    fn stores() -> [FileStore; 2] {
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        [tempfile::tempfile().unwrap(), memory.into()].map(|file| {
            file.set_len(4 * APART).unwrap();
            FileStore::new(file)
        })
    }

    #[test]
    fn extents_tell_what_was_written() {
        for store in stores() {
            assert_eq!(extents(&store, range(0, 4 * APART), 9), [(4 * APART, true)]);
            assert_eq!(extents(&store, range(5, 1), 9), [(1, true)]);
            store.write(APART, &vec![7; 8 << 20]).unwrap();
            let whole = [(APART, true), (APART, false), (2 * APART, true)];
            assert_eq!(extents(&store, range(0, 4 * APART), 9), whole);
            assert_eq!(extents(&store, range(0, 4 * APART), 1), whole[..2]);
            assert_eq!(extents(&store, range(APART + 3, APART), 1), [(APART - 3, false)]);
            assert_eq!(extents(&store, range(APART + 3, APART), 2), [(APART - 3, false), (3, true)]);
            assert_eq!(extents(&store, range(APART - 1, 2), 9), [(1, true), (1, false)]);
            assert_eq!(extents(&store, range(7, 0), 9), []);
            store.discard(range(APART, APART)).unwrap();
            assert_eq!(extents(&store, range(0, 4 * APART), 9), [(4 * APART, true)]);
        }
    }

    #[test]
    fn extents_past_the_end_are_an_error() {
        for store in stores() {
            let mut extents = Extents::default();
            let past = store.extents(range(3 * APART, 2 * APART), 9, &mut extents).unwrap_err();
            assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    /// Whoever looks while others write and discard always gets on, and says nothing of what it was not asked for.
    #[test]
    fn extents_of_a_file_that_changes() {
        for store in stores() {
            std::thread::scope(|scope| {
                let change = |start| {
                    for _ in 0..500 {
                        store.write(start, &[7; 65536]).unwrap();
                        store.discard(range(start, 65536)).unwrap();
                    }
                };
                let busy = [APART, APART + 65536].map(|start| scope.spawn(move || change(start)));
                for round in (0..70_000)
                    .cycle()
                    .step_by(41)
                    .take_while(|_| !busy.iter().all(|thread| thread.is_finished()))
                {
                    let asked = range(APART - 4096 + round, 80_000);
                    let told: u64 = extents(&store, asked, 2).iter().map(|extent| extent.0).sum();
                    assert!((1..=asked.length()).contains(&told), "{told} bytes");
                }
            });
        }
    }

    #[test]
    fn a_hint_changes_nothing() {
        for store in stores() {
            store.write(10, b"data").unwrap();
            store.prefetch(range(0, 4 * APART));
            store.prefetch(range(0, 1 << 60));
            let mut data = [0; 6];
            store.read(9, &mut data).unwrap();
            assert_eq!(&data, b"\0data\0");
        }
    }
}

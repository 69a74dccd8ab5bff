//! [`Store`] over a file descriptor.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::Store;
use crate::geometry::ByteRange;

/// A file, a block device or a file in memory.
pub struct FileStore {
    file: File,
    /// Set by the first attempt that the file or its file system refuses.
    cannot_punch: AtomicBool,
}

impl FileStore {
    /// Takes over `file`, which is open for reading and writing and long enough.
    pub fn new(file: File) -> Self {
        Self { file, cannot_punch: AtomicBool::new(false) }
    }

    /// All-zero ciphertext is a hole by definition, so zeros written do the same as a hole punched.
    fn write_zeros(&self, range: ByteRange) -> io::Result<()> {
        const STEP: usize = 64 * 1024;
        static ZEROS: [u8; STEP] = [0; STEP];
        range.pieces(STEP as u64).try_for_each(|piece| {
            let length = usize::try_from(piece.length()).unwrap_or(STEP);
            self.file.write_all_at(&ZEROS[..length], piece.start())
        })
    }
}

impl Store for FileStore {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn discard(&self, range: ByteRange) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        if self.discards_quickly() {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            loop {
                match fallocate(&self.file, flags, range.start(), range.length()) {
                    Ok(()) => return Ok(()),
                    Err(Errno::INTR) => {}
                    Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            self.cannot_punch.store(true, Ordering::Relaxed);
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
}

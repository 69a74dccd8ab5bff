//! The file that a teardown record goes to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::Failure;

/// Open for appending. One that was made here and holds nothing at the end is removed again.
pub(super) struct RecordFile {
    file: File,
    path: PathBuf,
    made: bool,
}

impl RecordFile {
    /// Opens `path` before anything is made, so that a bad one is found while it costs nothing.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let (opened, made) = match options().create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (options().open(path), false),
            opened => (opened, true),
        };
        let file = opened.map_err(|source| failure("open record", path, source))?;
        Ok(Self { file, path: path.into(), made })
    }

    /// Appends a line: on disk when this returns.
    pub(super) fn append(mut self, line: &str) -> Result<(), Failure> {
        self.made = false;
        self.write(line).map_err(|source| failure("write record", &self.path, source))
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        self.lock()?;
        if self.file.metadata()?.nlink() == 0 {
            // Another volume had made it and took it away again, having nothing to write.
            self.file = options().create(true).open(&self.path)?;
        }
        self.file.write_all(format!("{line}\n").as_bytes())?;
        match self.file.sync_all() {
            // A pipe or a terminal has nothing to sync.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        }
    }

    /// Keeps other volumes that write to the same file out.
    fn lock(&self) -> io::Result<()> {
        Ok(flock(&self.file, FlockOperation::LockExclusive)?)
    }
}

impl Drop for RecordFile {
    fn drop(&mut self) {
        let is_empty = || Ok::<_, io::Error>(self.file.metadata()?.len() == 0);
        if self.made && self.lock().and_then(|()| is_empty()).unwrap_or(false) {
            // It may have been moved away; then there is nothing to remove.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600);
    options
}

fn failure(action: &'static str, path: &Path, source: io::Error) -> Failure {
    Failure::File { action, what: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_volumes_may_share_a_file_that_one_of_them_made() {
        let lab = tempfile::tempdir().unwrap();
        let path = lab.path().join("record");
        let (maker, other) = (RecordFile::open(&path).unwrap(), RecordFile::open(&path).unwrap());
        drop(maker);
        assert!(!path.exists(), "nothing went into it");
        other.append("a line").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a line\n");

        let (maker, other) = (RecordFile::open(&path).unwrap(), RecordFile::open(&path).unwrap());
        other.append("another").unwrap();
        drop(maker);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "a line\nanother\n");
    }
}

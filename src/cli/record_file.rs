//! The file that a teardown record goes to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Failure;

/// Open for appending. One that was made here and holds nothing at the end is removed again.
pub(super) struct RecordFile {
    file: File,
    path: PathBuf,
    unused: bool,
}

impl RecordFile {
    /// Opens `path` before anything is made, so that a bad one is found while it costs nothing.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let mut options = OpenOptions::new();
        options.append(true).mode(0o600);
        let (opened, unused) = match options.clone().create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (options.open(path), false),
            made => (made, true),
        };
        let file = opened.map_err(|source| failure("open record", path, source))?;
        Ok(Self { file, path: path.into(), unused })
    }

    /// Appends a line: on disk when this returns.
    pub(super) fn append(mut self, line: &str) -> Result<(), Failure> {
        self.unused = false;
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        let synced = written.and_then(|()| match self.file.sync_all() {
            // A pipe or a terminal has nothing to sync.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            synced => synced,
        });
        synced.map_err(|source| failure("write record", &self.path, source))
    }
}

impl Drop for RecordFile {
    fn drop(&mut self) {
        if self.unused
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the empty record");
        }
    }
}

fn failure(action: &'static str, path: &Path, source: io::Error) -> Failure {
    Failure::File { action, what: path.display().to_string(), source }
}

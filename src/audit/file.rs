//! Appending to the log, and rotating it.
//!
//! Whoever writes holds an exclusive `flock(2)` on the file that has the name. Rotation takes the name away from
//! that file, so a writer that gets the lock looks whether the name is still the file's, and opens anew if not.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, OFlags, flock};

use super::{FILE, ROTATED};

/// The file that is written to.
pub(super) struct LogFile {
    path: PathBuf,
    limit: u64,
    file: Mutex<File>,
}

impl LogFile {
    /// Opens the log in `directory`, rotating it beyond `limit` bytes.
    pub(super) fn open(directory: &Path, limit: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let path = directory.join(FILE);
        let file = Mutex::new(open_own(&path, true)?);
        Ok(Self { path, limit, file })
    }

    /// Appends a line, which has no end of line yet: on disk when this returns.
    pub(super) fn append(&self, mut line: Vec<u8>) -> io::Result<()> {
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let locked = Locked::take(&file)?;
            if !is_named(&file, &self.path)? {
                drop(locked);
                *file = open_own(&self.path, true)?;
                continue;
            }
            let length = file.metadata()?.len();
            if length > 0 && length + line.len() as u64 > self.limit {
                rotate(&self.path)?;
                continue;
            }
            return write(&file, length, line);
        }
    }
}

/// Writes a line at the end, or nothing.
fn write(mut file: &File, length: u64, mut line: Vec<u8>) -> io::Result<()> {
    // A crash may have cut the line before this one short.
    if length > 0 && last_byte(file)? != b'\n' {
        line.insert(0, b'\n');
    }
    let written = file.write_all(&line).and_then(|()| file.sync_data());
    // A disk that is full takes part of a line: the log holds whole ones only.
    written.or_else(|error| file.set_len(length).and(Err(error)))
}

fn last_byte(mut file: &File) -> io::Result<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// Moves every file one further, the oldest out of existence. The caller holds the lock of the one at `path`.
fn rotate(path: &Path) -> io::Result<()> {
    for number in (1..ROTATED).rev() {
        match fs::rename(rotated(path, number), rotated(path, number + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, rotated(path, 1))?;
    sync_parent(path)
}

/// The name of a rotated file.
pub(super) fn rotated(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Opens a file that is the caller's own and nobody else's; `writing` makes it if it is missing.
pub(super) fn open_own(path: &Path, writing: bool) -> io::Result<File> {
    // O_NONBLOCK: a FIFO in its place must not hang the process. It means nothing to a file.
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let existed = fs::symlink_metadata(path).is_ok();
    let file = OpenOptions::new()
        .read(true)
        .append(writing)
        .create(writing)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|error| match rustix::io::Errno::from_io_error(&error) {
            Some(rustix::io::Errno::LOOP) => refused("it is a symbolic link"),
            _ => error,
        })?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(refused("it is no regular file"));
    }
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused("another user owns it"));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(refused("other users may read or write it; chmod it to 0600"));
    }
    if writing && !existed {
        sync_parent(path)?;
    }
    Ok(file)
}

fn refused(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

/// True if `path` is still the name of `file`.
pub(super) fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a new name, or a change of names, last.
fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Holds a file's lock. The lock is the open file's, so a clone of it is what unlocks.
pub(super) struct Locked(File);

impl Locked {
    /// Waits until nobody else writes.
    pub(super) fn take(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
        Ok(Self(file))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Fails for no file that could be locked, and the last clone's end unlocks it too.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn lines(path: &Path) -> Vec<String> {
        fs::read_to_string(path).unwrap_or_default().lines().map(String::from).collect()
    }

    #[test]
    fn lines_are_appended_whole_and_private_over_restarts() {
        let lab = tempfile::tempdir().expect("a directory");
        let directory = lab.path().join("a/b");
        for line in ["one", "two"] {
            LogFile::open(&directory, 1 << 20).expect("opened").append(line.into()).expect("appended");
        }
        let path = directory.join(FILE);
        assert_eq!(lines(&path), ["one", "two"]);
        assert_eq!(fs::metadata(&path).expect("made").permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(&directory).expect("made").permissions().mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_line_that_was_cut_short_spoils_no_other() {
        let lab = tempfile::tempdir().expect("a directory");
        let log = LogFile::open(lab.path(), 1 << 20).expect("opened");
        log.append("one".into()).expect("appended");
        let mut file = OpenOptions::new().append(true).open(&log.path).expect("opened");
        file.write_all(b"tw").expect("written");
        log.append("three".into()).expect("appended");
        assert_eq!(lines(&log.path), ["one", "tw", "three"]);
    }

    #[test]
    fn a_full_file_is_moved_on_and_the_oldest_goes() {
        let lab = tempfile::tempdir().expect("a directory");
        let log = LogFile::open(lab.path(), 8).expect("opened");
        for number in 10..35 {
            log.append(format!("{number}").into()).expect("appended");
        }
        // Two lines of three bytes fit into eight; nine files are kept.
        assert_eq!(lines(&log.path), ["34"]);
        for number in 1..=ROTATED {
            let first = 34 - 2 * number;
            assert_eq!(lines(&rotated(&log.path, number)), [first.to_string(), (first + 1).to_string()]);
        }
        assert!(!rotated(&log.path, ROTATED + 1).exists());
        log.append("longer than a file may be".into()).expect("a line is never split");
        assert_eq!(lines(&log.path), ["longer than a file may be"]);
    }

    #[test]
    fn writers_beside_each_other_lose_nothing() {
        let lab = tempfile::tempdir().expect("a directory");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let directory = lab.path();
                // Each opens the file for itself, as a process does.
                scope.spawn(move || {
                    let log = LogFile::open(directory, 200).expect("opened");
                    for number in 0..25 {
                        log.append(format!("{writer} {number}").into()).expect("appended");
                    }
                });
            }
        });
        let path = lab.path().join(FILE);
        let mut all = lines(&path);
        all.extend((1..=ROTATED).flat_map(|number| lines(&rotated(&path, number))));
        let expected: BTreeSet<_> =
            (0..4).flat_map(|writer| (0..25).map(move |number| format!("{writer} {number}"))).collect();
        assert_eq!(all.len(), 100);
        assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), expected);
        assert!(rotated(&path, 1).exists(), "it was rotated meanwhile");
    }

    #[test]
    fn what_is_not_ones_own_is_refused() {
        let refusal = |make: &dyn Fn(&Path)| {
            let lab = tempfile::tempdir().expect("a directory");
            make(&lab.path().join(FILE));
            LogFile::open(lab.path(), 100).map(drop).expect_err("refused").to_string()
        };
        let link = |path: &Path| std::os::unix::fs::symlink("/dev/null", path).expect("linked");
        assert!(refusal(&link).contains("symbolic link"));
        assert!(refusal(&|path| fs::create_dir(path).expect("made")).contains("directory"));
        let readable = |path: &Path| {
            fs::write(path, "").expect("made");
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("chmod");
        };
        assert!(refusal(&readable).contains("0600"));
        let fifo = |path: &Path| {
            let status = std::process::Command::new("mkfifo").args(["-m", "600"]).arg(path).status();
            assert!(status.is_ok_and(|status| status.success()));
        };
        assert!(refusal(&fifo).contains("no regular file"));
    }

    #[test]
    fn a_disk_that_is_full_takes_no_part_of_a_line() {
        let lab = tempfile::tempdir().expect("a directory");
        let log = LogFile::open(lab.path(), 1 << 20).expect("opened");
        log.append("one".into()).expect("appended");
        // A descriptor that cannot be written stands in for the disk.
        let unwritable = File::open(&log.path).expect("opened");
        assert!(write(&unwritable, 4, b"two\n".to_vec()).is_err());
        assert_eq!(lines(&log.path), ["one"]);
    }
}

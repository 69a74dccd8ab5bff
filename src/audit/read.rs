//! All lines, oldest first.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::file::{Locked, is_named, open_own, rotated};
use super::{AuditError, FILE, ROTATED};

/// One line of the log.
#[derive(Debug)]
pub struct Line {
    /// The file that it stands in, by the name that it had when it was opened.
    pub file: PathBuf,
    /// Its number there, from 1.
    pub number: u64,
    /// As it was written, without the end of line. What is no UTF-8 is replaced.
    pub text: String,
    /// What it says; `None` for a line that is damaged.
    pub record: Option<Value>,
}

/// Reads the log of a state directory, and what is appended to it meanwhile.
pub struct Reader {
    path: PathBuf,
    current: Option<Part>,
    newer: VecDeque<Part>,
}

impl Reader {
    /// Opens all files there are; no log at all reads as an empty one.
    ///
    /// # Errors
    /// [`AuditError`] for a file that cannot be opened or is not the caller's own.
    pub fn open(state: &Path) -> Result<Self, AuditError> {
        let path = state.join(FILE);
        let mut newer = open_all(&path).map_err(|source| failed(&path, source))?;
        Ok(Self { path, current: newer.pop_front(), newer })
    }

    /// The next whole line; `None` if there is none yet.
    ///
    /// # Errors
    /// [`AuditError`] if a file cannot be read.
    pub fn next_line(&mut self) -> Result<Option<Line>, AuditError> {
        self.advance().map_err(|source| failed(&self.path, source))
    }

    /// A line at the very end that has no end itself: cut short by a crash, or just being written.
    pub fn unfinished(&mut self) -> Option<Line> {
        self.current.as_mut().and_then(Part::unfinished)
    }

    fn advance(&mut self) -> io::Result<Option<Line>> {
        loop {
            if let Some(line) = self.current.as_mut().map_or(Ok(None), Part::next)? {
                return Ok(Some(line));
            }
            if self.newer.is_empty() {
                self.look_for_newer()?;
            }
            let Some(next) = self.newer.pop_front() else { return Ok(None) };
            // A file that has a successor was written to the end before, but perhaps after the last look at it.
            if let Some(line) = self.current.as_mut().map_or(Ok(None), Part::next)? {
                self.newer.push_front(next);
                return Ok(Some(line));
            }
            let mut done = self.current.replace(next);
            if let Some(line) = done.as_mut().and_then(Part::unfinished) {
                return Ok(Some(line));
            }
        }
    }

    /// Takes up the files that came after the current one, if that is not the youngest any more.
    fn look_for_newer(&mut self) -> io::Result<()> {
        let Some(current) = &self.current else {
            self.newer = open_all(&self.path)?;
            return Ok(());
        };
        if is_named(current.lines.get_ref(), &self.path)? {
            return Ok(());
        }
        let own = current.identity()?;
        let mut all = open_all(&self.path)?;
        while let Some(part) = all.pop_front() {
            if part.identity()? == own {
                self.newer = all;
                return Ok(());
            }
        }
        // It has been rotated out of existence: everything there is came later.
        self.newer = open_all(&self.path)?;
        Ok(())
    }
}

fn failed(path: &Path, source: io::Error) -> AuditError {
    AuditError { action: "read", path: path.into(), source, advice: "check the directory's permissions" }
}

/// One file.
struct Part {
    name: PathBuf,
    lines: BufReader<File>,
    number: u64,
    /// What stands behind the last end of line.
    rest: Vec<u8>,
}

impl Part {
    fn new(name: PathBuf, file: File) -> Self {
        Self { name, lines: BufReader::new(file), number: 0, rest: Vec::new() }
    }

    fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = self.lines.get_ref().metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// The next whole line that is not empty.
    fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            self.lines.read_until(b'\n', &mut self.rest)?;
            if self.rest.last() != Some(&b'\n') {
                return Ok(None);
            }
            self.rest.pop();
            self.number += 1;
            if !self.rest.is_empty() {
                return Ok(Some(self.take()));
            }
        }
    }

    fn unfinished(&mut self) -> Option<Line> {
        if self.rest.is_empty() {
            return None;
        }
        self.number += 1;
        Some(Line { record: None, ..self.take() })
    }

    fn take(&mut self) -> Line {
        let bytes = std::mem::take(&mut self.rest);
        let record = serde_json::from_slice(&bytes).ok().filter(Value::is_object);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Line { file: self.name.clone(), number: self.number, text, record }
    }
}

/// All files, the oldest first. None is renamed meanwhile: rotation needs the lock of the youngest.
fn open_all(path: &Path) -> io::Result<VecDeque<Part>> {
    loop {
        let youngest = open_if_there(path)?;
        let locked = youngest.as_ref().map(Locked::take).transpose()?;
        if let Some(file) = &youngest
            && !is_named(file, path)?
        {
            continue;
        }
        let mut parts = VecDeque::new();
        for name in (1..=ROTATED).rev().map(|number| rotated(path, number)) {
            if let Some(file) = open_if_there(&name)? {
                parts.push_back(Part::new(name, file));
            }
        }
        parts.extend(youngest.map(|file| Part::new(path.into(), file)));
        drop(locked);
        return Ok(parts);
    }
}

fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match open_own(path, false) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::file::LogFile;
    use super::*;

    fn log(directory: &Path) -> LogFile {
        LogFile::open(directory, 30).expect("opened")
    }

    fn rest(reader: &mut Reader) -> Vec<String> {
        std::iter::from_fn(|| reader.next_line().expect("readable")).map(|line| line.text).collect()
    }

    fn note(number: u32) -> String {
        format!("{{\"number\":{number}}}")
    }

    #[test]
    fn lines_come_in_order_over_all_files_and_as_they_are_appended() {
        let lab = tempfile::tempdir().expect("a directory");
        let mut reader = Reader::open(lab.path()).expect("no log is an empty one");
        assert!(rest(&mut reader).is_empty());
        let log = log(lab.path());
        let mut next = 0;
        let mut append = |count: u32| {
            (next..next + count).for_each(|number| log.append(note(number).into()).expect("appended"));
            next += count;
            (next - count..next).map(note).collect::<Vec<_>>()
        };
        // Two lines fit into a file: within one, over one rotation, over several.
        for count in [1, 1, 2, 5, 1] {
            assert_eq!(append(count), rest(&mut reader));
        }
        assert_eq!(
            rest(&mut Reader::open(lab.path()).expect("opened")),
            (0..10).map(note).collect::<Vec<_>>()
        );
        append(30);
        let late = rest(&mut reader);
        assert_eq!(late.last(), Some(&note(39)), "the reader goes on where there is something left");
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let lab = tempfile::tempdir().expect("a directory");
        let path = lab.path().join(FILE);
        log(lab.path()).append(note(1).into()).expect("appended");
        let mut text = fs::read(&path).expect("read");
        text.extend(b"\xff\n\n3\n{\"cut");
        fs::write(&path, text).expect("written");
        let mut reader = Reader::open(lab.path()).expect("opened");
        let mut next =
            || reader.next_line().expect("readable").map(|line| (line.number, line.record.is_some()));
        assert_eq!(
            [next(), next(), next(), next()],
            [Some((1, true)), Some((2, false)), Some((4, false)), None]
        );
        let line = reader.unfinished().expect("a line");
        assert_eq!((line.number, line.text.as_str(), line.record.is_none()), (5, "{\"cut", true));
        assert_eq!(line.file, path);
    }
}

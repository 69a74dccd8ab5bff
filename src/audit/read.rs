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

//! An envelope on disk, and the grant token beside it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::EnvelopeError;
use super::document::{Document, Flaw, MAX_LENGTH};
use crate::files;
use crate::kms::GrantToken;

/// Longest grant token in bytes (API reference, Decrypt, GrantTokens).
const MAX_TOKEN: u64 = 8192;

/// An envelope's file, locked against other processes of this host.
pub struct EnvelopeFile {
    path: PathBuf,
    lock: File,
}

impl EnvelopeFile {
    /// Opens and locks the envelope at `path`; one that is named by a symbolic link is replaced where it lies.
    ///
    /// # Errors
    /// [`EnvelopeError::InUse`] if another process has it; otherwise as [`read`].
    pub fn open(path: &Path) -> Result<(Self, Document), EnvelopeError> {
        let path = fs::canonicalize(path).map_err(failed("open", path))?;
        let locked = files::lock_if_free(&path).map_err(failed("open", &path))?;
        let lock = locked.ok_or_else(|| EnvelopeError::InUse(path.clone()))?;
        let document = parse(&lock, &path)?;
        Ok((Self { path, lock }, document))
    }

    /// Writes a new envelope to a name that does not exist: on disk when this returns.
    ///
    /// # Errors
    /// [`EnvelopeError::Exists`] for a name that does, [`EnvelopeError::Io`].
    pub fn create(path: &Path, document: &mut Document) -> Result<Self, EnvelopeError> {
        let path = std::path::absolute(path).map_err(failed("make", path))?;
        let lock =
            files::create(&path, document.render().as_bytes()).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => EnvelopeError::Exists(path.clone()),
                _ => failed("make", &path)(error),
            })?;
        Ok(Self { path, lock })
    }

    /// Replaces the envelope by `document`: on disk when this returns.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`]; what was there before is whole then.
    pub fn write(&mut self, document: &mut Document) -> Result<(), EnvelopeError> {
        self.lock =
            files::replace(&self.path, document.render().as_bytes()).map_err(failed("write", &self.path))?;
        Ok(())
    }

    /// Removes the envelope and the token beside it.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`].
    pub fn remove(self) -> Result<(), EnvelopeError> {
        let token = token_path(&self.path);
        files::remove(&token).map_err(failed("remove", &token))?;
        files::remove(&self.path).map_err(failed("remove", &self.path))
    }

    /// Takes over a predecessor's, with its lock.
    pub fn adopt(path: PathBuf, lock: File) -> Self {
        Self { path, lock }
    }

    /// Holds the lock.
    pub fn lock(&self) -> &File {
        &self.lock
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads an envelope without locking it.
///
/// # Errors
/// [`EnvelopeError::Io`], [`EnvelopeError::Flaw`].
pub fn read(path: &Path) -> Result<Document, EnvelopeError> {
    parse(&files::open(path).map_err(failed("open", path))?, path)
}

fn parse(file: &File, path: &Path) -> Result<Document, EnvelopeError> {
    let flawed = |flaw| EnvelopeError::Flaw { path: path.into(), flaw };
    let text = read_text(file, MAX_LENGTH).map_err(|error| match error.kind() {
        // One bit is enough for that.
        io::ErrorKind::InvalidData => flawed(Flaw::Form("it is not text in UTF-8".into())),
        _ => failed("read", path)(error),
    })?;
    Document::parse(&text).map_err(flawed)
}

fn read_text(file: &File, most: u64) -> io::Result<Zeroizing<String>> {
    // A directory can be opened, and fails to be read in words that do not help.
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {most} bytes")));
    }
    Ok(text)
}

/// Where the grant token of the envelope at `path` lies, unless it travels in the envelope.
pub fn token_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(".token");
    name.into()
}

/// Reads a grant token; `None` if there is no such file.
///
/// # Errors
/// [`EnvelopeError::Io`].
pub fn read_token(path: &Path) -> Result<Option<GrantToken>, EnvelopeError> {
    let file = match files::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed("open", path))?,
    };
    let text = read_text(&file, MAX_TOKEN).map_err(failed("read", path))?;
    let token = text.trim_end();
    Ok((!token.is_empty()).then(|| GrantToken::new(token.to_owned())))
}

/// Writes a new envelope's grant token to a name that does not exist: on disk when this returns. Whoever finds the
/// token locked and no envelope yet knows that somebody is making it.
///
/// # Errors
/// [`EnvelopeError::Exists`] for a name that does, [`EnvelopeError::Io`].
pub fn create_token(path: &Path, token: &GrantToken) -> Result<File, EnvelopeError> {
    files::create(path, token.expose().as_bytes()).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => EnvelopeError::Exists(path.into()),
        _ => failed("make", path)(error),
    })
}

/// Writes a grant token (mode 0600): on disk when this returns.
///
/// # Errors
/// [`EnvelopeError::Io`].
pub fn write_token(path: &Path, token: &GrantToken) -> Result<(), EnvelopeError> {
    files::replace(path, token.expose().as_bytes()).map(drop).map_err(failed("write", path))
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EnvelopeError {
    let path = path.to_path_buf();
    move |source| EnvelopeError::Io { action, path, source }
}

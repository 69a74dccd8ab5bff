//! Reading a file whose content decides under which key data are encrypted.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Most bytes of a configuration file.
const MAX_SIZE: u64 = 1 << 20;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is none.
    #[error("there is no such file; name another with --config, or `none` for no file")]
    NotFound,
    /// The system refused.
    #[error("cannot read it: {0}")]
    Io(io::Error),
    /// A directory, a device, a pipe.
    #[error("it is not a regular file")]
    NotRegular,
    /// Others may write to it.
    #[error(
        "it has mode {0:04o}, so others than its owner may write to it and choose your keys: chmod go-w it"
    )]
    Writable(u32),
    /// Somebody else's.
    #[error("it belongs to user {owner}; it must belong to root or to the caller (user {caller}): chown it")]
    Owner {
        /// The file's owner.
        owner: u32,
        /// Who reads it.
        caller: u32,
    },
    /// More than 1 MiB.
    #[error("it is larger than 1 MiB, the most that is read")]
    TooLarge,
    /// Bytes that are no text.
    #[error("line {0} is not UTF-8")]
    NotUtf8(usize),
}

/// The file's text, if nobody but root and the caller could have written it.
pub(super) fn read(path: &Path) -> Result<String, FileError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => FileError::NotFound,
        _ => FileError::Io(error),
    };
    // Opening a pipe must not wait for its writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).map_err(failed)?;
    check(&file)?;
    let mut bytes = Vec::new();
    // It may grow after the check.
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(FileError::TooLarge);
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        FileError::NotUtf8(valid.filter(|byte| **byte == b'\n').count() + 1)
    })
}

/// Looks at the open file, so that nobody can put another in its place.
fn check(file: &File) -> Result<(), FileError> {
    let metadata = file.metadata().map_err(FileError::Io)?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular);
    }
    trusted(metadata.mode(), metadata.uid(), rustix::process::geteuid().as_raw())?;
    if metadata.len() > MAX_SIZE {
        return Err(FileError::TooLarge);
    }
    Ok(())
}

fn trusted(mode: u32, owner: u32, caller: u32) -> Result<(), FileError> {
    if mode & 0o022 != 0 {
        return Err(FileError::Writable(mode & 0o7777));
    }
    if owner != 0 && owner != caller {
        return Err(FileError::Owner { owner, caller });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_root_and_the_caller_may_have_written_it() {
        assert!(trusted(0o100_644, 0, 1000).is_ok());
        assert!(trusted(0o100_600, 1000, 1000).is_ok());
        assert!(matches!(
            trusted(0o100_644, 1001, 1000),
            Err(FileError::Owner { owner: 1001, caller: 1000 })
        ));
        assert!(
            matches!(trusted(0o100_644, 1001, 0), Err(FileError::Owner { .. })),
            "root trusts nobody either"
        );
        assert!(matches!(trusted(0o100_664, 0, 0), Err(FileError::Writable(0o664))));
        assert!(matches!(trusted(0o100_646, 1000, 1000), Err(FileError::Writable(0o646))));
    }

    #[test]
    fn what_is_no_file_of_text() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(matches!(read(directory.path()), Err(FileError::NotRegular)));
        assert!(matches!(read(Path::new("/dev/null")), Err(FileError::NotRegular)));
        let path = directory.path().join("file");
        assert!(matches!(read(&path), Err(FileError::NotFound)));
        assert!(matches!(read(&path.join("below")), Err(FileError::NotFound)));
        std::fs::write(&path, vec![b'#'; 1 << 20]).expect("written");
        // Whatever the umask is.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("changed");
        assert_eq!(read(&path).expect("1 MiB is read").len(), 1 << 20);
        std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).expect("written");
        assert!(matches!(read(&path), Err(FileError::TooLarge)));
        std::fs::write(&path, b"log = 'warn'\n# \xff\n").expect("written");
        assert!(matches!(read(&path), Err(FileError::NotUtf8(2))));
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_writer() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo");
        assert!(made.success());
        assert!(matches!(read(&path), Err(FileError::NotRegular)));
    }
}

//! Where a volume's clients connect: the addresses that were asked for, sockets that were inherited, or a socket of
//! its own.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{EngineError, ExportName, Specification};
use crate::descriptors::Named;
use crate::envelope::EnvelopeError;
use crate::nbd::server::{Address, Listener, Terms};

/// Binds the addresses that were asked for, and takes the sockets that were inherited.
pub(super) async fn listen(specification: &mut Specification) -> Result<Vec<Listener>, EngineError> {
    let mut listeners = Vec::new();
    for address in &specification.listen {
        listeners.push(Listener::bind(address, specification.terms).await?);
    }
    for Named { name, descriptor } in specification.inherited.drain(..) {
        listeners.push(Listener::inherit(descriptor, &name, specification.terms)?);
    }
    Ok(listeners)
}

/// Binds a socket of the volume's own.
pub(super) async fn listen_privately(
    directory: PathBuf,
    listeners: &mut Vec<Listener>,
) -> Result<PrivateDirectory, EngineError> {
    let private = PrivateDirectory::make(directory)?;
    listeners.push(Listener::bind(&Address::Unix(private.socket()), Terms::default()).await?);
    Ok(private)
}

/// A directory that nobody else can enter, for one socket; both are removed on drop.
pub(super) struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    /// A name that nobody else has.
    pub(super) fn named() -> PathBuf {
        let parent = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
        let name = format!("sealblk-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        parent.unwrap_or_else(std::env::temp_dir).join(name)
    }

    fn make(path: PathBuf) -> Result<Self, EnvelopeError> {
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source: io::Error| EnvelopeError::Io {
            action: "make directory",
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Takes over a predecessor's.
    pub(super) fn adopt(path: PathBuf) -> Self {
        Self(path)
    }

    /// Leaves it to a successor.
    pub(super) fn leave(mut self) {
        self.0 = PathBuf::new();
    }

    fn socket(&self) -> PathBuf {
        private_socket(&self.0)
    }
}

/// The socket in a private directory.
pub(super) fn private_socket(directory: &Path) -> PathBuf {
    directory.join("nbd.sock")
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        if self.0.as_os_str().is_empty() {
            return;
        }
        // Its listener removes the socket as well; whichever comes second finds nothing.
        let _ = std::fs::remove_file(self.socket());
        if let Err(error) = std::fs::remove_dir(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "cannot remove the socket's directory");
        }
    }
}

/// Each export at each listener that a URI can name; `secure` if TLS is required.
pub(super) fn uris(exports: &[ExportName], listeners: &[Listener], secure: bool) -> Vec<String> {
    let each = exports.iter().flat_map(|export| listeners.iter().map(move |listener| (export, listener)));
    each.filter_map(|(export, listener)| listener.uri(&export.name, secure)).collect()
}

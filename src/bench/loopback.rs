//! A volume in memory that this process serves to itself over a Unix socket.

use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::client::{Batch, Client, Operation};
use super::window::Window;
use super::{BenchError, LoopbackFigure};
use crate::block::BlockDevice;
use crate::geometry::{SectorSize, VolumeSize};
use crate::mapping;
use crate::nbd::server::{Export, Exports, Limits, Listener, Resumed, Served, Signal, Terms, serve};
use crate::store::Backing;
use crate::volume::{EncryptedVolume, Options};
use crate::xts::SectorCipher;

/// More than most caches have.
const SIZE: u64 = 128 << 20;
/// And what is written however slow this machine is.
const LEAST: u64 = 8 << 20;
/// The sector size of a volume unless another is asked for.
pub(super) const SECTOR: SectorSize = SectorSize::B4096;
const LARGE: u32 = 1 << 20;
/// Large requests that are sent together.
const LARGE_DEPTH: usize = 8;

/// Requests of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) operation: Operation,
    pub(super) length: u32,
    pub(super) depth: usize,
}

/// What is measured.
pub(super) const PATTERNS: [Pattern; 4] = [
    Pattern { operation: Operation::Read, length: 4096, depth: 1 },
    Pattern { operation: Operation::Read, length: 4096, depth: 32 },
    Pattern { operation: Operation::Read, length: LARGE, depth: LARGE_DEPTH },
    Pattern { operation: Operation::Write, length: LARGE, depth: LARGE_DEPTH },
];

/// Leaves everything as it is. It is for finding out what a cipher costs and stands here, where no volume of a user's
/// can come by it.
pub(super) struct NoCipher;

impl SectorCipher for NoCipher {
    fn encrypt(&self, _: u64, _: &mut [u8]) {}

    fn decrypt(&self, _: u64, _: &mut [u8]) {}

    fn encrypt_into(&self, _: u64, data: &[u8], target: &mapping::Window) {
        target.write(0, data);
    }

    fn sector_size(&self) -> SectorSize {
        SECTOR
    }
}

/// A server with a client of its own. Dropped, it ends, and with it the volume and its cipher.
pub struct Loopback {
    // First to be dropped: a server that ends waits for its clients.
    client: Client,
    /// Bytes that hold data, from the volume's start.
    area: u64,
    _server: Server,
}

impl Loopback {
    /// Serves a volume of 128 MiB under `cipher` on `runtime`, and writes all of it, or as much as `until` leaves
    /// time for. Not to be called from within a task of the runtime.
    ///
    /// # Errors
    /// A [`BenchError`].
    pub fn start(
        runtime: &Handle,
        cipher: Box<dyn SectorCipher>,
        until: Instant,
    ) -> Result<Self, BenchError> {
        let size = VolumeSize::new(SIZE, cipher.sector_size())?;
        let (store, _) = Backing::Memory.open_new(SIZE)?;
        let options = Options { read_only: false, discard: true, flush: true };
        let volume = EncryptedVolume::new(Box::new(store), cipher, size, options);
        let area = fill(&volume, until)?;
        let (server, stream) = Server::start(runtime, volume)?;
        let client = Client::negotiate(stream).map_err(failed)?;
        Ok(Self { client, area, _server: server })
    }

    /// Has both keep to the smaller of their areas: more of one would be in the processor's cache than of the other.
    pub(super) fn keep_within(&mut self, other: &mut Self) {
        self.area = self.area.min(other.area);
        other.area = self.area;
    }

    /// Requests that reach everywhere that holds data.
    pub fn batch(&self, operation: Operation, length: u32, depth: usize) -> Batch {
        Batch::new(operation, length, depth, self.area)
    }

    /// Sends a batch and waits for its replies; returns the number of requests.
    ///
    /// # Errors
    /// A [`BenchError`].
    pub fn exchange(&mut self, batch: &mut Batch) -> Result<u64, BenchError> {
        self.client.exchange(batch).map_err(failed)?;
        Ok(batch.depth() as u64)
    }
}

/// Writes from the volume's start on, for what was never written is not deciphered; returns how much was.
fn fill(volume: &EncryptedVolume, until: Instant) -> Result<u64, BenchError> {
    let (mut piece, mut filled) = (vec![0; LARGE as usize], 0);
    while filled < SIZE && (filled < LEAST || Instant::now() < until) {
        piece.fill(0x5a);
        volume.write(filled, &mut piece, false).map_err(BenchError::Fill)?;
        filled += u64::from(LARGE);
    }
    Ok(filled)
}

struct Server {
    runtime: Handle,
    stop: watch::Sender<Signal>,
    serving: Option<JoinHandle<Served>>,
}

impl Server {
    /// With a connection to it. The socket has no name in the file system, so whatever ends the process, nothing is
    /// left of it; nobody but this user and root is served.
    fn start(runtime: &Handle, volume: EncryptedVolume) -> Result<(Self, UnixStream), BenchError> {
        let device = Arc::new(volume);
        let export = Export { name: String::new(), description: String::new(), device, read_only: false };
        let (socket, stream) = connected().map_err(failed)?;
        let (stop, stopping) = watch::channel(Signal::Run);
        let entered = runtime.enter();
        let listener = Listener::inherit(socket, "", Terms::default())?;
        let exports = Exports::new(vec![export]);
        let serving = serve(vec![listener], exports, None, Limits::default(), Resumed::default(), stopping);
        let serving = Some(runtime.spawn(serving));
        drop(entered);
        Ok((Self { runtime: runtime.clone(), stop, serving }, stream))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(Signal::End);
        if let Some(serving) = self.serving.take() {
            // A panic in there has been reported where it was.
            let _ = self.runtime.block_on(serving);
        }
    }
}

/// A listening socket and a connection to it.
fn connected() -> io::Result<(OwnedFd, UnixStream)> {
    let name = format!("sealblk-bench-{}", uuid::Uuid::new_v4());
    let address = SocketAddr::from_abstract_name(name)?;
    let listener = UnixListener::bind_addr(&address)?;
    let stream = UnixStream::connect_addr(&address)?;
    Ok((listener.into(), stream))
}

fn failed(source: io::Error) -> BenchError {
    BenchError::Io { action: "talk to the server in this process", source }
}

/// Measures a pattern on an encrypted volume and on one without a cipher, in turns.
pub(super) fn measure(
    pattern: Pattern,
    encrypted: &mut Loopback,
    plain: &mut Loopback,
    window: Window<'_>,
) -> Result<[LoopbackFigure; 2], BenchError> {
    let Pattern { operation, length, depth } = pattern;
    let [mut first, mut second] = [&*encrypted, &*plain].map(|one| one.batch(operation, length, depth));
    let rates =
        window.rates(&mut [&mut || encrypted.exchange(&mut first), &mut || plain.exchange(&mut second)])?;
    let figure = |encrypted: bool| {
        let rate = rates.get(usize::from(!encrypted)).copied().unwrap_or_default();
        LoopbackFigure::new(operation, length, depth, encrypted, rate)
    };
    Ok([figure(true), figure(false)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_that_are_compared_hold_data_in_the_same_area() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let start = |until| Loopback::start(runtime.handle(), Box::new(NoCipher), until).unwrap();
        let (late, early) = (Instant::now(), Instant::now() + std::time::Duration::from_secs(3600));
        for [first, second] in [[late, early], [early, late]] {
            let (mut one, mut other) = (start(first), start(second));
            assert_eq!(one.area.max(other.area), SIZE);
            one.keep_within(&mut other);
            assert_eq!((one.area, other.area), (LEAST, LEAST));
        }
    }
}

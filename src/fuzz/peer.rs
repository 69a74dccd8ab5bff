//! A client that sends what it is given, to a server of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::SIZE;
use crate::geometry::{SectorSize, VolumeSize};
use crate::nbd::server::{Address, Export, Exports, Limits, Listener, Resumed, Served, Signal, Terms, serve};
use crate::secret::DataKey;
use crate::store::Backing;
use crate::volume::{EncryptedVolume, Options};
use crate::xts::Implementation;

// The bits of the byte that sets a conversation up.
const READ_ONLY: u8 = 1 << 0;
const SMALL_SECTORS: u8 = 1 << 1;
const DISCARD: u8 = 1 << 2;
/// In pieces of a few bytes each, which the server sees one by one.
const IN_PIECES: u8 = 1 << 3;
/// The client sends more zeros than move in one piece after its bytes.
pub(super) const ZEROS: u8 = 1 << 4;
/// The client reads a little of what it is sent, and is gone.
const VANISHES: u8 = 1 << 5;

/// Nothing in a conversation takes as long, but a fault.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server sends in answer to `input`; nothing if the client does not stay to read it.
///
/// Panics if the connection does not come to its end, or outlives its client.
pub(super) fn converse(setup: u8, input: &[u8]) -> Option<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    let (output, served) = runtime.block_on(async {
        // A target of libFuzzer does not begin as Rust's programs do, which ignore this signal: with somebody who
        // waits for it, writing to a client that is gone is an error as well, and not the end of the process.
        let _pipe = signal(SignalKind::pipe()).unwrap_or_else(|error| panic!("no signals: {error}"));
        let both = async {
            let (stop, stopped) = watch::channel(Signal::Run);
            let (listener, path) = listener().await;
            let exports = Exports::new(vec![Export {
                name: "vol".into(),
                description: "a volume".into(),
                device: Arc::new(volume(setup)),
                read_only: false,
            }]);
            let limits = Limits::default();
            let serving =
                tokio::spawn(serve(vec![listener], exports, None, limits, Resumed::default(), stopped));
            let output = client(setup, input, &path).await;
            let _ = stop.send(Signal::End);
            let served = serving.await.unwrap_or_else(|error| panic!("the server failed: {error}"));
            (output, served)
        };
        tokio::time::timeout(PATIENCE, both)
            .await
            .unwrap_or_else(|_| panic!("a connection that does not end"))
    });
    let Served { cut_off, .. } = served;
    assert_eq!(cut_off, 0, "a connection outlives its client");
    (setup & VANISHES == 0).then_some(output)
}

async fn listener() -> (Listener, std::path::PathBuf) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("sealblk-fuzz-{}-{number}", std::process::id()));
    let bound = Listener::bind(&Address::Unix(path.clone()), Terms::default()).await;
    (bound.unwrap_or_else(|error| panic!("{error}")), path)
}

fn volume(setup: u8) -> EncryptedVolume {
    let sector = if setup & SMALL_SECTORS != 0 { SectorSize::B512 } else { SectorSize::B4096 };
    let made = Backing::Memory.open_new(SIZE);
    let (store, _) = made.unwrap_or_else(|error| panic!("no memory for a volume: {error}"));
    let key: Vec<u8> = (0..64).collect();
    let key = DataKey::copy_from(&key).unwrap_or_else(|error| panic!("no memory for a key: {error}"));
    let cipher = Implementation::fastest().cipher(&key, sector);
    let size = VolumeSize::new(SIZE, sector).unwrap_or_else(|error| panic!("{error}"));
    let options = Options { read_only: setup & READ_ONLY != 0, discard: setup & DISCARD != 0, flush: true };
    EncryptedVolume::new(Box::new(store), cipher, size, options)
}

/// Sends and reads at the same time, so that neither side waits for the other.
async fn client(setup: u8, input: &[u8], path: &std::path::Path) -> Vec<u8> {
    let connected = UnixStream::connect(path).await;
    let (mut reader, mut writer) =
        connected.unwrap_or_else(|error| panic!("cannot connect: {error}")).into_split();
    let piece = if setup & IN_PIECES != 0 { 7 } else { usize::MAX };
    let send = async move {
        for piece in input.chunks(piece.min(input.len()).max(1)) {
            // The server may have hung up, as it should on most of what is sent here.
            if writer.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = writer.shutdown().await;
    };
    let mut output = Vec::new();
    if setup & VANISHES != 0 {
        let mut some = [0; 100];
        let read = async { while !matches!(reader.read(&mut some).await, Ok(0 | 50..) | Err(_)) {} };
        tokio::select! { () = send => {}, () = read => {} }
        return output;
    }
    // The end of the stream, or a reset after all of it because the server left some of the input unread.
    let (_, _) = tokio::join!(send, reader.read_to_end(&mut output));
    output
}

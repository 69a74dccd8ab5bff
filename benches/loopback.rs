//! One connection over a Unix socket to a server in this process: 4 KiB and 1 MiB, reads and writes, at a depth of 1
//! and more. The client is as simple as can be: it sends a batch of requests, and the next once all are answered.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sealblk::geometry::{SectorSize, VolumeSize};
use sealblk::nbd::server::{Address, Export, Exports, Limits, Listener, Resumed, Signal, Terms, serve};
use sealblk::secret::DataKey;
use sealblk::store::Backing;
use sealblk::volume::{EncryptedVolume, Options};
use sealblk::xts::Implementation;

const SIZE: u64 = 256 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;

fn exports() -> Exports {
    let bytes: Vec<u8> = (0..64).collect();
    let key = DataKey::copy_from(&bytes).expect("a good key");
    let (store, _) = Backing::Memory.open_new(SIZE).expect("a file in memory");
    let size = VolumeSize::new(SIZE, SectorSize::B4096).expect("a good size");
    let cipher = Implementation::AwsLc.cipher(&key, SectorSize::B4096);
    let options = Options { read_only: false, discard: true, flush: true };
    let device = Arc::new(EncryptedVolume::new(Box::new(store), cipher, size, options));
    Exports::new(vec![Export { name: String::new(), description: String::new(), device, read_only: false }])
}

/// A compact request at offset 0.
fn request(command: u16, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).expect("a small request");
    let start = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0], &command.to_be_bytes()].concat();
    [&start[..], &[0; 16], &length.to_be_bytes()].concat()
}

/// A connection in transmission, with simple replies.
struct Client(UnixStream);

impl Client {
    /// NBD_OPT_GO to the default export.
    fn connect(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).expect("a server");
        let go = [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7, 0, 0, 0, 6], &[0; 6]].concat();
        stream.write_all(&go).expect("a server");
        stream.read_exact(&mut [0; 18]).expect("a greeting");
        loop {
            let mut head = [0; 20];
            stream.read_exact(&mut head).expect("a reply");
            let length = u32::from_be_bytes([head[16], head[17], head[18], head[19]]);
            stream.read_exact(&mut vec![0; length as usize]).expect("a reply");
            // NBD_REP_ACK ends what NBD_REP_INFO began.
            if head[15] == 1 {
                return Self(stream);
            }
        }
    }

    /// Sends `batch` at once and reads all replies, again and again, with offsets spread over the volume. The
    /// requests of reads and the replies to writes are few bytes, which the sockets hold: nobody waits for ever.
    fn exchange(&mut self, batch: &mut Batch, batches: u64) {
        for number in 0..batches {
            batch.move_on(number);
            self.0.write_all(&batch.requests).expect("a server");
            self.0.read_exact(&mut batch.replies).expect("replies");
        }
    }
}

/// Requests of one kind and length that are sent together.
struct Batch {
    requests: Vec<u8>,
    replies: Vec<u8>,
    depth: usize,
    length: usize,
}

impl Batch {
    fn new(command: u16, length: usize, depth: usize) -> Self {
        let (sent, received) = if command == WRITE { (length, 0) } else { (0, length) };
        let one = [request(command, length), vec![0x5a; sent]].concat();
        Self { requests: one.repeat(depth), replies: vec![0; depth * (16 + received)], depth, length }
    }

    /// Gives each request another offset, a multiple of its length.
    fn move_on(&mut self, number: u64) {
        let places = SIZE / self.length as u64;
        let each = self.requests.len() / self.depth;
        for (place, request) in (number * self.depth as u64..).zip(self.requests.chunks_exact_mut(each)) {
            // Coprime to the number of places, a power of two: every place comes once before the first comes again.
            let offset = place * 40_503 % places * self.length as u64;
            request[16..24].copy_from_slice(&offset.to_be_bytes());
        }
    }
}

fn loopback(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let (stop, stopping) = tokio::sync::watch::channel(Signal::Run);
    let listener = runtime.block_on(Listener::bind(&Address::Unix(path.clone()), Terms::default()));
    let listener = listener.expect("a free address");
    let limits = Limits::default();
    let serving = runtime.spawn(serve(vec![listener], exports(), None, limits, Resumed::default(), stopping));
    let mut client = Client::connect(&path);
    client.exchange(&mut Batch::new(WRITE, 1 << 20, 8), SIZE >> 23);

    let mut group = criterion.benchmark_group("loopback");
    for (size, length, depths) in [("4k", 4096, [1, 32]), ("1M", 1 << 20, [1, 8])] {
        for (name, command) in [("read", READ), ("write", WRITE)] {
            for depth in depths {
                let mut batch = Batch::new(command, length, depth);
                let id = BenchmarkId::new(format!("{name} {size}"), format!("qd{depth}"));
                group.throughput(Throughput::Bytes((length * depth) as u64));
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|batches| {
                        let began = Instant::now();
                        client.exchange(&mut batch, batches);
                        began.elapsed()
                    });
                });
            }
        }
    }
    group.finish();
    drop(client);
    stop.send_replace(Signal::End);
    runtime.block_on(serving).expect("an orderly end");
}

criterion_group!(benches, loopback);
criterion_main!(benches);

//! One connection over a Unix socket to a server in this process: 4 KiB and 1 MiB, reads and writes, at a depth of 1
//! and more. The client is as simple as can be, a thread that sends and one that receives.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

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
    let options = Options { read_only: false, discard: true };
    let device = Arc::new(EncryptedVolume::new(Box::new(store), cipher, size, options));
    Exports::new(vec![Export { name: String::new(), description: String::new(), device, read_only: false }])
}

fn request(command: u16, offset: u64, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).expect("a small request");
    let start = [&0x2560_9513_u32.to_be_bytes()[..], &[0, 0], &command.to_be_bytes(), &[0; 8]].concat();
    [&start[..], &offset.to_be_bytes(), &length.to_be_bytes()].concat()
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

    /// So many requests, `depth` of them sent at once, and answered before the next are.
    fn exchange(&mut self, command: u16, length: usize, depth: usize, count: u64) {
        let (sent, received) = if command == WRITE { (length, 0) } else { (0, length) };
        let mut replies = vec![0; depth * (16 + received)];
        let mut number = 0;
        while number < count {
            let mut batch = Vec::with_capacity(depth * (28 + sent));
            for place in number..number + depth as u64 {
                // Spread over the volume, each at a multiple of its length.
                let offset = place * 40_503 % (SIZE / length as u64) * length as u64;
                batch.extend(request(command, offset, length));
                batch.resize(batch.len() + sent, 0x5a);
            }
            std::thread::scope(|scope| {
                // The server need not take more before its replies are read.
                let mut sender = &self.0;
                if batch.len() > 64 << 10 {
                    scope.spawn(move || sender.write_all(&batch).expect("a server"));
                } else {
                    sender.write_all(&batch).expect("a server");
                }
                (&self.0).read_exact(&mut replies).expect("replies");
            });
            number += depth as u64;
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
    client.exchange(WRITE, 1 << 20, 8, SIZE >> 20);

    let mut group = criterion.benchmark_group("loopback");
    for (size, length, depths) in [("4k", 4096, [1, 32]), ("1M", 1 << 20, [1, 8])] {
        group.throughput(Throughput::Bytes(length as u64));
        for (name, command) in [("read", READ), ("write", WRITE)] {
            for depth in depths {
                group.bench_function(
                    BenchmarkId::new(format!("{name} {size}"), format!("qd{depth}")),
                    |bencher| {
                        // Whole batches are timed, and counted for as many requests as were asked for.
                        bencher.iter_custom(|count| {
                            let batches = count.div_ceil(depth as u64) * depth as u64;
                            let began = std::time::Instant::now();
                            client.exchange(command, length, depth, batches);
                            began.elapsed().mul_f64(count as f64 / batches as f64)
                        });
                    },
                );
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

//! One connection over a Unix socket to a server in this process: 4 KiB and 1 MiB, reads and writes, at a depth of 1
//! and more. The client is as simple as can be: it sends a batch of requests, and the next once all are answered.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sealblk::bench::{Loopback, Operation};
use sealblk::geometry::SectorSize;
use sealblk::secret::DataKey;
use sealblk::xts::Implementation;

/// More than it takes to fill the volume.
const FILLING: Duration = Duration::from_secs(60);

fn loopback(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let bytes: Vec<u8> = (0..64).collect();
    let key = DataKey::copy_from(&bytes).expect("a good key");
    let cipher = Implementation::fastest().cipher(&key, SectorSize::B4096);
    let mut server = Loopback::start(runtime.handle(), cipher, Instant::now() + FILLING).expect("a server");

    let mut group = criterion.benchmark_group("loopback");
    for (size, length, depths) in [("4k", 4096, [1, 32]), ("1M", 1 << 20, [1, 8])] {
        for (name, operation) in [("read", Operation::Read), ("write", Operation::Write)] {
            for depth in depths {
                let mut batch = server.batch(operation, length, depth);
                let id = BenchmarkId::new(format!("{name} {size}"), format!("qd{depth}"));
                group.throughput(Throughput::Bytes(batch.bytes()));
                group.bench_function(id, |bencher| {
                    bencher.iter_custom(|batches| {
                        let began = Instant::now();
                        for _ in 0..batches {
                            server.exchange(&mut batch).expect("replies");
                        }
                        began.elapsed()
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, loopback);
criterion_main!(benches);

//! AES-256-XTS in memory: both implementations, both sector sizes, both directions.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sealblk::geometry::SectorSize;
use sealblk::secret::DataKey;
use sealblk::xts::Implementation;

/// Bytes per call: a large request's piece.
const PIECE: usize = 256 * 1024;

fn cipher(criterion: &mut Criterion) {
    let bytes: Vec<u8> = (0..64).collect();
    let key = DataKey::copy_from(&bytes).expect("a good key");
    let mut group = criterion.benchmark_group("aes-256-xts");
    group.throughput(Throughput::Bytes(PIECE as u64));
    for (name, implementation) in [("aws-lc", Implementation::AwsLc), ("portable", Implementation::Portable)]
    {
        for sector in [SectorSize::B512, SectorSize::B4096] {
            let cipher = implementation.cipher(&key, sector);
            let mut data = vec![0xa5; PIECE];
            group.bench_function(BenchmarkId::new(format!("{name}/encrypt"), sector), |bencher| {
                bencher.iter(|| cipher.encrypt(7, &mut data));
            });
            group.bench_function(BenchmarkId::new(format!("{name}/decrypt"), sector), |bencher| {
                bencher.iter(|| cipher.decrypt(7, &mut data));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, cipher);
criterion_main!(benches);

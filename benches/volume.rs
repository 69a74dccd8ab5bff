//! An encrypted volume on a file in memory, without a protocol: 4 KiB and 1 MiB, reads and writes, one thread.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sealblk::block::{BlockDevice, Extents};
use sealblk::geometry::{SectorSize, VolumeSize};
use sealblk::secret::DataKey;
use sealblk::store::Backing;
use sealblk::volume::{EncryptedVolume, Options};
use sealblk::xts::Implementation;

/// Larger than the processor's caches.
const SIZE: u64 = 256 << 20;

/// A volume without holes.
fn volume(sector: SectorSize) -> EncryptedVolume {
    let bytes: Vec<u8> = (0..64).collect();
    let key = DataKey::copy_from(&bytes).expect("a good key");
    let (store, _) = Backing::Memory.open_new(SIZE).expect("a file in memory");
    let size = VolumeSize::new(SIZE, sector).expect("a good size");
    let options = Options { read_only: false, discard: true, flush: true };
    let cipher = Implementation::fastest().cipher(&key, sector);
    let volume = EncryptedVolume::new(Box::new(store), cipher, size, options);
    for offset in (0..SIZE).step_by(1 << 20) {
        volume.write(offset, &mut vec![0x5a; 1 << 20], false).expect("room in memory");
    }
    volume
}

/// The next of offsets that are spread over the volume, each a multiple of `length`.
fn next(offset: &mut u64, length: usize) -> u64 {
    let places = SIZE / length as u64;
    // Coprime to the number of places, a power of two: every place comes once before the first comes again.
    *offset = (*offset + 40_503) % places;
    *offset * length as u64
}

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("volume");
    for sector in [SectorSize::B512, SectorSize::B4096] {
        let volume = volume(sector);
        for (name, length) in [("4k", 4096), ("1M", 1 << 20)] {
            group.throughput(Throughput::Bytes(length as u64));
            let (mut buffer, mut offset, mut extents) = (vec![0; length], 0, Extents::default());
            group.bench_function(BenchmarkId::new(format!("read {name}"), sector), |bencher| {
                bencher.iter(|| {
                    extents.clear();
                    volume.read(next(&mut offset, length), &mut buffer, &mut extents).expect("memory");
                });
            });
            group.bench_function(BenchmarkId::new(format!("write {name}"), sector), |bencher| {
                // What was ciphertext is written again as if it were data: its content costs nothing.
                bencher.iter(|| volume.write(next(&mut offset, length), &mut buffer, false).expect("memory"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);

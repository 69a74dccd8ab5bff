//! AES-256-XTS in memory: each implementation, both sector sizes, both directions; then the fastest one beside this
//! machine's OpenSSL, in turns, so that both meet the same machine.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::print_stderr, reason = "what criterion does not measure is told as criterion tells it")]

use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group};
use sealblk::geometry::SectorSize;
use sealblk::secret::DataKey;
use sealblk::xts::Implementation;

/// Bytes per call: a large request's piece.
const PIECE: usize = 256 * 1024;
/// In which OpenSSL and the cipher take turns, and how long each turn is.
const ROUNDS: usize = 5;
const TURN: Duration = Duration::from_secs(1);

fn key() -> DataKey {
    let bytes: Vec<u8> = (0..64).collect();
    DataKey::copy_from(&bytes).expect("a good key")
}

fn cipher(criterion: &mut Criterion) {
    let key = key();
    let mut group = criterion.benchmark_group("aes-256-xts");
    group.throughput(Throughput::Bytes(PIECE as u64));
    for implementation in Implementation::available() {
        let name = implementation.name();
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

/// Bytes a second of `openssl speed`, which ciphers one sector again and again.
fn openssl(sector: SectorSize, encrypt: bool) -> f64 {
    let mut command = Command::new("openssl");
    command.args(["speed", "-mr", "-elapsed", "-evp", "aes-256-xts", "-seconds"]);
    command.args([TURN.as_secs().to_string(), "-bytes".into(), sector.bytes().to_string()]);
    if !encrypt {
        command.arg("-decrypt");
    }
    let output = command.output().expect("openssl starts; scripts/setup bench installs it");
    let said = String::from_utf8_lossy(&output.stdout);
    // +F:25:AES-256-XTS:2024349696.00
    let figure = said.lines().find(|line| line.starts_with("+F:")).and_then(|line| line.rsplit(':').next());
    figure.and_then(|figure| figure.trim().parse().ok()).expect("a figure of openssl speed")
}

/// Bytes a second of the fastest cipher, which also takes each sector's number in, on one sector again and again.
fn sealblk(sector: SectorSize, encrypt: bool) -> f64 {
    let cipher = Implementation::fastest().cipher(&key(), sector);
    let mut data = vec![0xa5; sector.bytes()];
    let (began, mut sectors) = (Instant::now(), 0_u32);
    while began.elapsed() < TURN {
        for _ in 0..1000 {
            if encrypt {
                cipher.encrypt(7, &mut data);
            } else {
                cipher.decrypt(7, &mut data);
            }
            sectors += 1;
        }
    }
    f64::from(sectors) * sector.bytes() as f64 / began.elapsed().as_secs_f64()
}

/// What 4 KiB sectors have to reach, as a multiple of OpenSSL.
const WANTED: f64 = 1.6;

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn beside_openssl() {
    let name = Implementation::fastest().name();
    for sector in [SectorSize::B512, SectorSize::B4096] {
        for (direction, encrypt) in [("encrypt", true), ("decrypt", false)] {
            let rounds = (0..ROUNDS).map(|_| (sealblk(sector, encrypt), openssl(sector, encrypt)));
            let (ours, theirs): (Vec<f64>, Vec<f64>) = rounds.unzip();
            let ratio = median(ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs).collect());
            let (ours, theirs) = (median(ours) / 1e9, median(theirs) / 1e9);
            let judged = match (sector, ratio >= WANTED) {
                (SectorSize::B512, _) => String::new(),
                (SectorSize::B4096, met) => {
                    format!("; target at least {WANTED}: {}", if met { "met" } else { "not met" })
                }
            };
            eprintln!(
                "aes-256-xts/{direction}/{sector}: {name} {ours:.2} GB/s, OpenSSL {theirs:.2}, ratio {ratio:.2}{judged}"
            );
        }
    }
}

criterion_group!(benches, cipher);

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
    // Only where it is measured: not where `cargo test` runs everything once, and not beside a filter.
    if std::env::args().skip(1).eq(["--bench"]) {
        beside_openssl();
    }
}

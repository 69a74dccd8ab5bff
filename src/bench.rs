//! What this machine can do: how fast its processor enciphers and copies, how much one connection to a volume moves,
//! and which of these holds the others up.
//!
//! The time is shared out beforehand, so that a slow machine gets worse figures and not a longer wait. What is
//! compared is measured in turns. The ciphers are the volume's own, the volume is one as any other, in memory, and so
//! is the server, but for its key, which comes from no KMS.

mod cipher;
mod client;
mod copy;
mod host;
mod limits;
mod loopback;
mod window;

use std::io;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::runtime::Handle;

pub use client::{Batch, Client, Operation};
pub use host::Host;
pub use limits::{Limit, Limits};
pub use loopback::Loopback;

use self::cipher::{Case, random_key};
use self::loopback::{NoCipher, PATTERNS, Pattern, SECTOR};
use self::window::Window;
use crate::block::BlockError;
use crate::geometry::{GeometryError, SectorSize};
use crate::nbd::server::ListenError;
use crate::secret::SecretError;
use crate::store::StoreError;
use crate::xts::Implementation;

/// Shares of the time for one figure of the cipher or of copying.
const SHORT: u32 = 1;
/// And for a pattern on two volumes.
const LONG: u32 = 6;
/// The part of the time that is left for making volumes and the like.
const PREPARATION: f64 = 0.1;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A key that could not be kept.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Memory for a volume.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The size of a volume.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The volume could not be filled.
    #[error("fill a volume in memory: {0}; the benchmark needs 300 MiB of memory")]
    Fill(#[source] BlockError),
    /// An implementation enciphers otherwise than another, or does not decipher what it has enciphered.
    #[error(
        "the cipher {0} gives wrong results on this processor; do not store anything with it, and report this with the \
         processor's model"
    )]
    Cipher(&'static str),
    /// Threads and sockets.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What came back.
        source: io::Error,
    },
    /// It was told to end.
    #[error("interrupted")]
    Stopped,
}

/// To ciphertext or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Plaintext to ciphertext, as for a write.
    Encrypt,
    /// Back, as for a read.
    Decrypt,
}

/// How fast sectors are enciphered in memory.
#[derive(Clone, Debug, Serialize)]
pub struct CipherFigure {
    /// The implementation, as `--cipher` names it.
    pub cipher: &'static str,
    /// Bytes in a sector.
    pub sector_bytes: usize,
    /// To ciphertext or back.
    pub direction: Direction,
    /// Threads at once.
    pub cores: usize,
    /// 10^9 bytes a second, of all threads.
    pub gigabytes_per_second: f64,
}

/// How fast memory is copied.
#[derive(Clone, Debug, Serialize)]
pub struct CopyFigure {
    /// Threads at once.
    pub cores: usize,
    /// 10^9 bytes a second.
    pub gigabytes_per_second: f64,
}

/// What one connection over a Unix socket does.
#[derive(Clone, Debug, Serialize)]
pub struct LoopbackFigure {
    /// Of each request.
    pub operation: Operation,
    /// Bytes that a request is about.
    pub request_bytes: u32,
    /// Requests that are sent together; the next ones are once all are answered.
    pub depth: usize,
    /// The volume is encrypted by the fastest cipher, or else by none.
    pub encrypted: bool,
    /// Requests answered in a second.
    pub requests_per_second: f64,
    /// 10^9 bytes a second.
    pub gigabytes_per_second: f64,
}

impl LoopbackFigure {
    /// From the requests that were answered in a second.
    pub fn new(
        operation: Operation,
        request_bytes: u32,
        depth: usize,
        encrypted: bool,
        requests_per_second: f64,
    ) -> Self {
        Self {
            operation,
            request_bytes,
            depth,
            encrypted,
            requests_per_second: significant(requests_per_second),
            gigabytes_per_second: giga(requests_per_second * f64::from(request_bytes)),
        }
    }

    /// The kind of requests, for people: `read 4 KiB, depth 32`.
    pub fn title(&self) -> String {
        requests(self.operation, self.request_bytes, self.depth)
    }
}

/// All that was measured.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Each implementation that there is for this processor on one core, then the fastest on all.
    pub cipher: Vec<CipherFigure>,
    /// Memory.
    pub copy: CopyFigure,
    /// Patterns of requests, each encrypted first and without a cipher then.
    pub loopback: Vec<LoopbackFigure>,
}

/// Measures everything in about `time`, within which volumes are made as well. Before each step, `observe` is told
/// what comes and which part of all is done, from 0 to 1. Not to be called from within a task of `runtime`.
///
/// # Errors
/// A [`BenchError`]: [`BenchError::Stopped`] soon after `stop` was set. Keys are wiped and memory is given back
/// whatever comes.
pub fn measure(
    time: Duration,
    runtime: &Handle,
    stop: &AtomicBool,
    observe: &mut dyn FnMut(&str, f64),
) -> Result<Figures, BenchError> {
    cipher::check()?;
    let cases = cases(std::thread::available_parallelism().map_or(1, usize::from));
    let shares = SHORT * (count(&cases) + 1) + LONG * count(&PATTERNS);
    let share = time.mul_f64(1.0 - PREPARATION) / shares;
    let mut done = 0;
    let mut begin = |what: &str, shares_of_it: u32| {
        observe(what, f64::from(done) / f64::from(shares));
        done += shares_of_it;
        Window { length: share * shares_of_it, stop }
    };

    let key = random_key()?;
    let cipher = cases.into_iter().map(|case| cipher::measure(case, &key, begin(&describe(case), SHORT)));
    let cipher = cipher.collect::<Result<_, _>>()?;
    drop(key);
    let copy = copy::measure(begin("copy memory", SHORT))?;
    let [mut encrypted, mut plain] = volumes(runtime, time.mul_f64(PREPARATION / 2.0))?;
    let mut loopback = Vec::new();
    for pattern in PATTERNS {
        let Pattern { operation, length, depth } = pattern;
        let window = begin(&requests(operation, length, depth), LONG);
        loopback.extend(loopback::measure(pattern, &mut encrypted, &mut plain, window)?);
    }
    Ok(Figures { cipher, copy, loopback })
}

fn cases(cores: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for implementation in Implementation::available() {
        for sector in [SectorSize::B4096, SectorSize::B512] {
            for direction in [Direction::Encrypt, Direction::Decrypt] {
                cases.push(Case { implementation, sector, direction, cores: 1 });
            }
        }
    }
    for direction in [Direction::Encrypt, Direction::Decrypt] {
        cases.push(Case { implementation: Implementation::fastest(), sector: SECTOR, direction, cores });
    }
    cases
}

/// An encrypted volume and one without a cipher, each made in `time` at most, with data in the same area.
fn volumes(runtime: &Handle, time: Duration) -> Result<[Loopback; 2], BenchError> {
    let cipher = Implementation::fastest().cipher(&random_key()?, SECTOR);
    let mut encrypted = Loopback::start(runtime, cipher, Instant::now() + time)?;
    let mut plain = Loopback::start(runtime, Box::new(NoCipher), Instant::now() + time)?;
    encrypted.keep_within(&mut plain);
    Ok([encrypted, plain])
}

fn count<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}

fn describe(case: Case) -> String {
    let direction = match case.direction {
        Direction::Encrypt => "encrypt",
        Direction::Decrypt => "decrypt",
    };
    let cores = if case.cores == 1 { String::new() } else { format!(" on {} cores", case.cores) };
    format!("{direction} {}-byte sectors, {}{cores}", case.sector, case.implementation.name())
}

fn requests(operation: Operation, length: u32, depth: usize) -> String {
    let operation = match operation {
        Operation::Read => "read",
        Operation::Write => "write",
    };
    let length = match length {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes >> 20),
        bytes => format!("{} KiB", bytes >> 10),
    };
    format!("{operation} {length}, depth {depth}")
}

/// 10^9 bytes a second, from bytes a second.
fn giga(rate: f64) -> f64 {
    significant(rate / 1e9)
}

/// Four digits: the next one is another at every run.
fn significant(figure: f64) -> f64 {
    if figure <= 0.0 || !figure.is_finite() {
        return 0.0;
    }
    let shift = 3.0 - figure.log10().floor();
    // Dividing by a whole number of tenths, hundredths and so on prints as few digits; multiplying may not.
    if shift >= 0.0 {
        let unit = 10_f64.powf(shift);
        (figure * unit).round() / unit
    } else {
        let unit = 10_f64.powf(-shift);
        (figure / unit).round() * unit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_four_digits() {
        for (figure, shown) in [
            (10.934_56, "10.93"),
            (0.001_234_56, "0.001235"),
            (45_123.4, "45120"),
            (9.999_96, "10"),
            (0.0, "0"),
        ] {
            assert_eq!(significant(figure).to_string(), shown);
        }
    }

    /// All that is promised, on whatever machine, in hardly any time.
    #[test]
    fn everything_is_measured() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut seen = Vec::new();
        let figures = measure(
            Duration::from_millis(100),
            runtime.handle(),
            &AtomicBool::new(false),
            &mut |what, done| {
                assert!((0.0..1.0).contains(&done), "{what}: {done}");
                seen.push((what.to_owned(), done));
            },
        );
        let figures = figures.unwrap();
        // Two sizes of sectors in two directions, and the fastest on all cores.
        let ciphers = 4 * Implementation::available().count() + 2;
        assert_eq!((figures.cipher.len(), figures.loopback.len()), (ciphers, 8));
        assert!(figures.cipher.iter().all(|figure| figure.gigabytes_per_second > 0.0), "{figures:?}");
        assert!(figures.loopback.iter().all(|figure| figure.requests_per_second > 0.0), "{figures:?}");
        assert!(figures.copy.gigabytes_per_second > 0.0);
        assert_eq!(seen.len(), ciphers + 1 + 4);
        assert!(seen.is_sorted_by(|(_, before), (_, after)| before < after), "{seen:?}");
        assert_eq!(seen[0].0, "encrypt 4096-byte sectors, aws-lc");
        assert_eq!(seen[seen.len() - 1].0, "write 1 MiB, depth 8");
    }

    #[test]
    fn it_stops_in_the_middle() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let stop = AtomicBool::new(false);
        let stopped = measure(Duration::from_millis(100), runtime.handle(), &stop, &mut |what, _| {
            stop.store(what.starts_with("read"), std::sync::atomic::Ordering::Relaxed);
        });
        assert!(matches!(stopped, Err(BenchError::Stopped)));
    }
}

//! How fast sectors are enciphered and deciphered, in buffers that stay in the processor's cache.

use std::thread;

use super::window::Window;
use super::{BenchError, CipherFigure, Direction, giga};
use crate::geometry::SectorSize;
use crate::secret::{self, DataKey, SecretError};
use crate::xts::{Implementation, SectorCipher};

/// Bytes per call: a large request's piece, half of a common L2 cache.
const PIECE: usize = 256 * 1024;

/// What one figure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) implementation: Implementation,
    pub(super) sector: SectorSize,
    pub(super) direction: Direction,
    /// Threads at once.
    pub(super) cores: usize,
}

/// A key that nobody knows and that is used for nothing else.
pub(super) fn random_key() -> Result<DataKey, SecretError> {
    DataKey::fill_with(|bytes| secret::random(bytes).map_err(SecretError::Read))
}

/// That all implementations agree on this processor: a figure of one that errs is worth nothing.
pub(super) fn check() -> Result<(), BenchError> {
    let key = random_key()?;
    for sector in [SectorSize::B4096, SectorSize::B512] {
        // More than are enciphered together, and no multiple of that.
        let plain: Vec<u8> = (0..=u8::MAX).cycle().take(21 * sector.bytes()).collect();
        let mut agreed = plain.clone();
        Implementation::Portable.cipher(&key, sector).encrypt(1, &mut agreed);
        for implementation in Implementation::available() {
            let cipher = implementation.cipher(&key, sector);
            let mut data = plain.clone();
            cipher.encrypt(1, &mut data);
            let enciphered = data == agreed;
            cipher.decrypt(1, &mut data);
            if !enciphered || data != plain {
                return Err(BenchError::Cipher(implementation.name()));
            }
        }
    }
    Ok(())
}

/// Measures one case, on as many threads as it says, which share a cipher as a volume's do.
pub(super) fn measure(case: Case, key: &DataKey, window: Window<'_>) -> Result<CipherFigure, BenchError> {
    let cipher = case.implementation.cipher(key, case.sector);
    let rate = match case.cores {
        1 => one_core(case, &*cipher, window)?,
        _ => all_cores(case, &*cipher, window)?,
    };
    Ok(CipherFigure {
        cipher: case.implementation.name(),
        sector_bytes: case.sector.bytes(),
        direction: case.direction,
        cores: case.cores,
        gigabytes_per_second: giga(rate),
    })
}

fn one_core(case: Case, cipher: &dyn SectorCipher, window: Window<'_>) -> Result<f64, BenchError> {
    let mut data = vec![0xa5; PIECE];
    window.rate_of(&mut || {
        match case.direction {
            Direction::Encrypt => cipher.encrypt(7, &mut data),
            Direction::Decrypt => cipher.decrypt(7, &mut data),
        }
        Ok(PIECE as u64)
    })
}

/// Each thread measures itself while the others work; what they did before all had started warms up only.
fn all_cores(case: Case, cipher: &dyn SectorCipher, window: Window<'_>) -> Result<f64, BenchError> {
    thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, || one_core(case, cipher, window));
        let threads: Result<Vec<_>, _> = (0..case.cores).map(spawn).collect();
        let threads = threads.map_err(|source| BenchError::Io { action: "start a thread", source })?;
        let rates = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        rates.sum()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_implementations_agree() {
        assert!(check().is_ok());
    }

    #[test]
    fn no_key_is_the_same() {
        assert_ne!(random_key().unwrap().expose(), random_key().unwrap().expose());
    }

    #[test]
    fn one_core_and_several_are_measured() {
        let (stop, key) = (AtomicBool::new(false), random_key().unwrap());
        let every = Implementation::available().flat_map(|one| [(one, 1), (one, 3)]);
        for (implementation, cores) in every {
            let sector = SectorSize::B512;
            let case = Case { implementation, sector, direction: Direction::Decrypt, cores };
            let window = Window { length: Duration::from_millis(1), stop: &stop };
            let figure = measure(case, &key, window).unwrap();
            assert_eq!(
                (figure.cipher, figure.sector_bytes, figure.cores),
                (implementation.name(), 512, cores)
            );
            assert!(figure.gigabytes_per_second > 0.0);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let case = Case {
            cores: 3,
            ..Case {
                implementation: Implementation::AwsLc,
                sector: SectorSize::B512,
                direction: Direction::Encrypt,
                cores: 1,
            }
        };
        let window = Window { length: Duration::from_secs(3600), stop: &stop };
        assert!(matches!(measure(case, &key, window), Err(BenchError::Stopped)));
    }
}

//! What holds a connection up, as the figures tell it.

use serde::Serialize;

use super::loopback::SECTOR;
use super::{Direction, Figures, Host, Operation};
use crate::xts::Implementation;

/// Bytes of the small requests that are looked at.
const SMALL: u32 = 4096;

/// What takes most of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// Encryption.
    Cipher,
    /// Everything else: system calls, waking up, copying.
    Sockets,
}

/// What limits a connection of this machine.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// Of requests that are sent one at a time.
    pub small_reads: Limit,
    /// Of large requests, many at a time.
    pub large_reads: Limit,
    /// How much more of them a connection would move without a cipher, in percent of that; 0 if that is lost in noise.
    pub encryption_costs_percent: f64,
    /// The same for people: two sentences.
    pub text: String,
}

/// The figures that decide.
#[derive(Clone, Copy, Debug)]
struct Reads {
    /// GB/s of the cipher on one core.
    cipher: f64,
    /// GB/s of large reads, encrypted and without a cipher.
    encrypted: f64,
    plain: f64,
    /// Microseconds of a small read that is alone.
    small: f64,
}

impl Limits {
    /// From what was measured on `host`.
    pub fn of(figures: &Figures, host: &Host) -> Self {
        let cipher = figures.cipher.iter().find(|figure| {
            let alike = (figure.cipher, figure.sector_bytes, figure.cores);
            alike == (Implementation::fastest().name(), SECTOR.bytes(), 1)
                && figure.direction == Direction::Decrypt
        });
        let read = |encrypted: bool, is_small: bool| {
            figures.loopback.iter().find(|figure| {
                figure.operation == Operation::Read
                    && figure.encrypted == encrypted
                    && (figure.request_bytes == SMALL) == is_small
                    && (figure.depth == 1) == is_small
            })
        };
        let large = |encrypted| read(encrypted, false).map_or(0.0, |figure| figure.gigabytes_per_second);
        let reads = Reads {
            cipher: cipher.map_or(0.0, |figure| figure.gigabytes_per_second),
            encrypted: large(true),
            plain: large(false),
            small: read(true, true).map_or(0.0, |figure| 1e6 / figure.requests_per_second),
        };
        reads.judge(host)
    }
}

impl Reads {
    fn judge(self, host: &Host) -> Limits {
        // Over half of the time goes where most of it goes.
        let is_halved = self.encrypted * 2.0 < self.plain;
        let large =
            if is_halved && self.cipher < self.encrypted * 2.0 { Limit::Cipher } else { Limit::Sockets };
        let small = if self.small_cipher() * 2.0 > self.small { Limit::Cipher } else { Limit::Sockets };
        let lost = (1.0 - self.encrypted / self.plain).max(0.0) * 100.0;
        Limits {
            small_reads: small,
            large_reads: large,
            encryption_costs_percent: if lost.is_finite() { lost.round() } else { 0.0 },
            text: format!("{} {}", self.about_large(large, host), self.about_small(small)),
        }
    }

    /// Microseconds of a small read in the cipher.
    fn small_cipher(self) -> f64 {
        f64::from(SMALL) / (self.cipher * 1e3)
    }

    fn about_large(self, limit: Limit, host: &Host) -> String {
        let Self { cipher, encrypted, plain, .. } = self;
        let times = cipher / encrypted;
        match limit {
            Limit::Sockets if times >= 1.0 && encrypted > 0.9 * plain => format!(
                "Large reads: the cipher does {cipher:.2} GB/s on a core, {times:.1} times what one connection moves: \
                 sockets and copies limit it, not encryption."
            ),
            // Either figure may have been of a bad moment.
            Limit::Sockets if encrypted * 2.0 < plain => format!(
                "Large reads: one connection moves {encrypted:.2} GB/s with the cipher, and {plain:.2} without one, \
                 though the cipher does {cipher:.2} on a core: this host was busy with something else; measure again."
            ),
            Limit::Sockets => format!(
                "Large reads: one connection moves {encrypted:.2} GB/s with the cipher, and {plain:.2} without one: \
                 sockets and copies limit it more than encryption."
            ),
            Limit::Cipher => format!(
                "Large reads: the cipher limits one connection to {encrypted:.2} GB/s, without one it moves {plain:.2}{}.",
                lacking(host)
            ),
        }
    }

    fn about_small(self, limit: Limit) -> String {
        let why = match limit {
            Limit::Cipher => "the cipher limits them as well",
            Limit::Sockets => "system calls and wake-ups limit them",
        };
        format!(
            "Small reads, one at a time: of {:.1} µs, {:.1} are the cipher's: {why}.",
            self.small,
            self.small_cipher()
        )
    }
}

/// Why the cipher is slow, if the processor is the reason.
fn lacking(host: &Host) -> &'static str {
    match (host.has("aes"), host.has("vaes")) {
        (Some(false), _) => ": this CPU has no AES instructions, or the hypervisor hides them",
        (_, Some(false)) => {
            ": this CPU has AES instructions, but not those for several blocks at once (VAES)"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{CipherFigure, CopyFigure, LoopbackFigure};

    fn host(architecture: &'static str, instruction_sets: &[&'static str]) -> Host {
        let (cpu, kernel) = ("a".into(), "6.1".into());
        Host { cpu, cores: 2, kernel, architecture, instruction_sets: instruction_sets.to_vec() }
    }

    const QUICK: Reads = Reads { cipher: 10.92, encrypted: 2.6, plain: 3.25, small: 22.0 };
    const SLOW: Reads = Reads { cipher: 0.1, encrypted: 0.12, plain: 3.0, small: 60.0 };

    #[test]
    fn a_quick_cipher_leaves_it_to_the_sockets() {
        let limits = Reads { encrypted: 3.0, ..QUICK }.judge(&host("x86_64", &["aes", "vaes", "avx512"]));
        assert_eq!((limits.large_reads, limits.small_reads), (Limit::Sockets, Limit::Sockets));
        assert_eq!(limits.encryption_costs_percent, 8.0);
        assert_eq!(
            limits.text,
            "Large reads: the cipher does 10.92 GB/s on a core, 3.6 times what one connection moves: sockets and copies \
             limit it, not encryption. Small reads, one at a time: of 22.0 µs, 0.4 are the cipher's: system calls and \
             wake-ups limit them."
        );
    }

    #[test]
    fn a_slow_cipher_limits_and_says_what_the_processor_lacks() {
        for (architecture, sets, lacks) in [
            ("x86_64", &[][..], "moves 3.00: this CPU has no AES instructions"),
            ("x86_64", &["aes"], "not those for several blocks at once"),
            ("x86_64", &["aes", "avx512"], "not those for several blocks at once"),
            ("x86_64", &["aes", "vaes"], "without one it moves 3.00. "),
            ("x86_64", &["aes", "vaes", "avx512"], "without one it moves 3.00. "),
            ("aarch64", &[], "no AES instructions"),
            ("aarch64", &["aes"], "without one it moves 3.00. "),
            ("riscv64", &[], "without one it moves 3.00. "),
        ] {
            let limits = SLOW.judge(&host(architecture, sets));
            assert_eq!((limits.large_reads, limits.small_reads), (Limit::Cipher, Limit::Cipher));
            assert_eq!(limits.encryption_costs_percent, 96.0);
            assert!(limits.text.contains("limits one connection to 0.12 GB/s"), "{}", limits.text);
            assert!(limits.text.contains(lacks), "{architecture} {sets:?}: {}", limits.text);
        }
    }

    #[test]
    fn noise_costs_nothing_and_what_encryption_costs_is_not_passed_over() {
        let limits = Reads { encrypted: 3.3, ..QUICK }.judge(&host("x86_64", &["aes"]));
        assert_eq!(limits.encryption_costs_percent, 0.0);
        for reads in [QUICK, Reads { cipher: 2.0, ..QUICK }] {
            let limits = reads.judge(&host("x86_64", &["aes"]));
            assert_eq!(limits.large_reads, Limit::Sockets);
            assert!(limits.text.contains("limit it more than encryption"), "{}", limits.text);
        }
    }

    #[test]
    fn the_cipher_is_not_blamed_for_what_a_busy_host_takes() {
        let reads = Reads { cipher: 9.0, encrypted: 1.2, plain: 3.0, small: 22.0 };
        let limits = reads.judge(&host("x86_64", &["aes"]));
        assert_eq!(limits.large_reads, Limit::Sockets);
        assert!(
            limits.text.contains("the cipher does 9.00 on a core: this host was busy"),
            "{}",
            limits.text
        );
    }

    #[test]
    fn the_right_figures_decide() {
        let cipher = |direction, sector_bytes, cores, gigabytes_per_second| CipherFigure {
            cipher: Implementation::fastest().name(),
            sector_bytes,
            direction,
            cores,
            gigabytes_per_second,
        };
        let loopback = LoopbackFigure::new;
        let figures = Figures {
            cipher: vec![
                CipherFigure { cipher: "portable", ..cipher(Direction::Decrypt, 4096, 1, 0.5) },
                cipher(Direction::Encrypt, 4096, 1, 1.0),
                cipher(Direction::Decrypt, 512, 1, 2.0),
                cipher(Direction::Decrypt, 4096, 2, 3.0),
                cipher(Direction::Decrypt, 4096, 1, 8.0),
            ],
            copy: CopyFigure { cores: 1, gigabytes_per_second: 9.0 },
            loopback: vec![
                loopback(Operation::Read, 4096, 32, true, 400_000.0),
                loopback(Operation::Read, 4096, 1, false, 90_000.0),
                loopback(Operation::Read, 4096, 1, true, 50_000.0),
                loopback(Operation::Write, 1_000_000, 8, true, 1.0),
                loopback(Operation::Read, 1_000_000, 8, false, 2500.0),
                loopback(Operation::Read, 1_000_000, 8, true, 2300.0),
            ],
        };
        let limits = Limits::of(&figures, &host("x86_64", &["aes"]));
        assert!(limits.text.contains("does 8.00 GB/s on a core, 3.5 times"), "{}", limits.text);
        assert!(limits.text.contains("of 20.0 µs, 0.5 are"), "{}", limits.text);
        assert_eq!(limits.encryption_costs_percent, 8.0);
    }
}

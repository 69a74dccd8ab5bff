//! The figures for people.

use crate::bench::{CipherFigure, Direction, Figures, Host, Limits, LoopbackFigure};

/// Everything, without the last newline.
pub(super) fn render(figures: &Figures, host: &Host, limits: &Limits) -> String {
    let mut lines = about(host);
    lines.push(String::new());
    lines.extend(ciphers(&figures.cipher));
    lines.push(String::new());
    let copy = &figures.copy;
    lines.push(format!(
        "{:<24}{:>6}{:>12}",
        "Memory copy, GB/s",
        copy.cores,
        number(copy.gigabytes_per_second)
    ));
    lines.push(String::new());
    lines.extend(connections(&figures.loopback));
    lines.push(String::new());
    lines.extend(limits.text.split_inclusive(". ").map(|sentence| sentence.trim_end().to_owned()));
    lines.join("\n")
}

fn about(host: &Host) -> Vec<String> {
    let sets = match host.instruction_sets.join(", ") {
        none if none.is_empty() => "no AES instructions".into(),
        sets => sets,
    };
    vec![
        format!("CPU     {}, cores: {}", host.cpu, host.cores),
        format!("        {} with {sets}", host.architecture),
        format!("Kernel  {}", host.kernel),
    ]
}

/// A row for each implementation and number of cores, with a column for each sector size and direction.
fn ciphers(figures: &[CipherFigure]) -> Vec<String> {
    let mut rows: Vec<(&str, usize)> = Vec::new();
    // The last ones are on all cores, and have a row of their own even if that is one.
    let (alone, together) = figures.split_at(figures.len().saturating_sub(2));
    let mut lines = vec![
        format!(
            "{:<24}{:>6}{:>24}{:>24}",
            "AES-256-XTS, GB/s", "cores", "4096-byte sectors", "512-byte sectors"
        ),
        format!("{:<30}{:>12}{:>12}{:>12}{:>12}", "", "encrypt", "decrypt", "encrypt", "decrypt"),
    ];
    for figure in alone {
        if !rows.contains(&(figure.cipher, figure.cores)) {
            rows.push((figure.cipher, figure.cores));
        }
    }
    lines.extend(rows.into_iter().map(|row| cipher_row(row, alone)));
    lines.extend(together.first().map(|first| cipher_row((first.cipher, first.cores), together)));
    lines
}

fn cipher_row((cipher, cores): (&str, usize), figures: &[CipherFigure]) -> String {
    let mut row = format!("{cipher:<24}{cores:>6}");
    for sector in [4096, 512] {
        for direction in [Direction::Encrypt, Direction::Decrypt] {
            let found = figures.iter().find(|figure| {
                (figure.cipher, figure.cores, figure.sector_bytes, figure.direction)
                    == (cipher, cores, sector, direction)
            });
            row.push_str(&format!(
                "{:>12}",
                found.map_or("-".into(), |figure| number(figure.gigabytes_per_second))
            ));
        }
    }
    row
}

/// A row for each pattern: encrypted, without a cipher, and what the difference is.
fn connections(figures: &[LoopbackFigure]) -> Vec<String> {
    let mut lines = vec![
        format!(
            "{:<30}{:>24}{:>24}{:>12}",
            "One connection, Unix socket", "encrypted", "no cipher", "encryption"
        ),
        format!(
            "{:<30}{:>12}{:>12}{:>12}{:>12}{:>12}",
            "", "requests/s", "GB/s", "requests/s", "GB/s", "costs"
        ),
    ];
    lines.extend(figures.chunks_exact(2).map(|pair| {
        let [encrypted, plain] = [&pair[0], &pair[1]];
        let mut row = format!("{:<30}", encrypted.title());
        for figure in [encrypted, plain] {
            let (requests, moved) = (figure.requests_per_second, figure.gigabytes_per_second);
            row.push_str(&format!("{requests:>12.0}{:>12}", number(moved)));
        }
        let lost = (1.0 - encrypted.requests_per_second / plain.requests_per_second).max(0.0) * 100.0;
        row.push_str(&format!("{lost:>10.0} %"));
        row
    }));
    lines
}

/// With as many decimals as say something.
fn number(figure: f64) -> String {
    match figure {
        large if large >= 99.95 => format!("{large:.0}"),
        medium if medium >= 9.995 => format!("{medium:.1}"),
        small if small >= 0.0995 => format!("{small:.2}"),
        tiny => format!("{tiny:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{CopyFigure, Limit, Operation};

    #[test]
    fn numbers_have_the_decimals_that_say_something() {
        for (figure, shown) in
            [(123.4, "123"), (99.96, "100"), (21.84, "21.8"), (9.999, "10.0"), (5.123, "5.12")]
        {
            assert_eq!(number(figure), shown);
        }
        assert_eq!((number(0.184), number(0.0035)), ("0.18".into(), "0.0035".into()));
    }

    fn cipher(cipher: &'static str, sector_bytes: usize, cores: usize) -> [CipherFigure; 2] {
        [(Direction::Encrypt, 10.93), (Direction::Decrypt, 10.5)].map(|(direction, gigabytes_per_second)| {
            CipherFigure { cipher, sector_bytes, direction, cores, gigabytes_per_second }
        })
    }

    #[test]
    fn the_table() {
        let loopback = LoopbackFigure::new;
        let figures = Figures {
            cipher: [
                cipher("aws-lc", 4096, 1),
                cipher("aws-lc", 512, 1),
                cipher("portable", 4096, 1),
                cipher("aws-lc", 4096, 2),
            ]
            .concat(),
            copy: CopyFigure { cores: 1, gigabytes_per_second: 11.2 },
            loopback: vec![
                loopback(Operation::Read, 4096, 1, true, 45_000.0),
                loopback(Operation::Read, 4096, 1, false, 50_000.0),
                loopback(Operation::Write, 1 << 20, 8, true, 2500.0),
                loopback(Operation::Write, 1 << 20, 8, false, 2400.0),
            ],
        };
        let host = Host {
            cpu: "AMD EPYC".into(),
            cores: 2,
            kernel: "6.1.0".into(),
            architecture: "x86_64",
            instruction_sets: vec!["aes", "vaes"],
        };
        let limits = Limits {
            small_reads: Limit::Sockets,
            large_reads: Limit::Sockets,
            encryption_costs_percent: 0.0,
            text: "One. Two.".into(),
        };
        let shown = render(&figures, &host, &limits);
        let expected = "\
CPU     AMD EPYC, cores: 2
        x86_64 with aes, vaes
Kernel  6.1.0

AES-256-XTS, GB/s        cores       4096-byte sectors        512-byte sectors
                                   encrypt     decrypt     encrypt     decrypt
aws-lc                       1        10.9        10.5        10.9        10.5
portable                     1        10.9        10.5           -           -
aws-lc                       2        10.9        10.5           -           -

Memory copy, GB/s            1        11.2

One connection, Unix socket                  encrypted               no cipher  encryption
                                requests/s        GB/s  requests/s        GB/s       costs
read 4 KiB, depth 1                  45000        0.18       50000        0.20        10 %
write 1 MiB, depth 8                  2500        2.62        2400        2.52         0 %

One.
Two.";
        assert_eq!(shown, expected, "\n{shown}");
    }
}

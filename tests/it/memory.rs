//! All readable memory of a process (`/proc/PID/mem`), and what is looked for in it.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;

use aho_corasick::AhoCorasick;
use base64::Engine;

/// Bytes that must not be found, with a name for the report.
pub(crate) struct Needle {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

impl Needle {
    pub(crate) fn new(name: impl Into<String>, bytes: &[u8]) -> Self {
        Self { name: name.into(), bytes: bytes.to_vec() }
    }

    /// `bytes` as they are, and as base64 text writes them.
    pub(crate) fn raw_and_base64(name: &str, bytes: &[u8]) -> [Self; 2] {
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        // The last characters depend on what follows in a longer text.
        let text = text.trim_end_matches('=');
        [Self::new(name, bytes), Self::new(format!("{name}, base64"), &text.as_bytes()[..text.len() - 1])]
    }
}

/// A needle that was found.
pub(crate) struct Hit {
    pub(crate) name: String,
    pub(crate) address: u64,
    mapping: String,
}

impl fmt::Display for Hit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x} in {}", self.name, self.address, self.mapping)
    }
}

/// Panics if anything was found.
pub(crate) fn assert_none(hits: &[Hit]) {
    if let Some(first) = hits.first() {
        panic!("{} hits, the first: {first}", hits.len());
    }
}

/// A readable mapping's address and contents.
struct Mapping {
    start: u64,
    line: String,
    bytes: Vec<u8>,
}

/// Reads every mapping that can be read. `memfd_secret` cannot: that is its point.
fn mappings(pid: u32) -> Vec<Mapping> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().filter_map(|line| read_mapping(&memory, line)).collect()
}

fn read_mapping(memory: &File, line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let readable = fields.next()?.starts_with('r');
    if !readable || line.contains("[v") {
        return None;
    }
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    let (start, end) = (number(start), number(end));
    let mut bytes = vec![0; (end - start) as usize];
    // Pages that go away or cannot be read (a hole behind a file's end) leave zeros.
    for (index, page) in bytes.chunks_mut(4096).enumerate() {
        let _ = memory.read_exact_at(page, start + index as u64 * 4096);
    }
    Some(Mapping { start, line: line.to_owned(), bytes })
}

/// Every place where a needle stands.
pub(crate) fn scan(pid: u32, needles: &[Needle]) -> Vec<Hit> {
    let searcher = AhoCorasick::new(needles.iter().map(|needle| &needle.bytes)).unwrap();
    let mut hits = Vec::new();
    for mapping in mappings(pid) {
        for found in searcher.find_overlapping_iter(&mapping.bytes) {
            hits.push(Hit {
                name: needles[found.pattern().as_usize()].name.clone(),
                address: mapping.start + found.start() as u64,
                mapping: mapping.line.clone(),
            });
        }
    }
    hits
}

/// An AES-256 key schedule as FIPS 197 writes it: 15 round keys, of which the first two are the key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Schedule(pub(crate) [u8; 240]);

impl Schedule {
    pub(crate) fn expand(key: &[u8]) -> Self {
        let mut words = [0; 240];
        words[..32].copy_from_slice(key);
        for at in (32..240).step_by(4) {
            let word = next_word(&words[at - 32..at], at / 4);
            words[at..at + 4].copy_from_slice(&word);
        }
        Self(words)
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.0[..32]
    }

    /// The round keys for enciphering, and those for deciphering by the equivalent inverse cipher (FIPS 197, 5.3.5).
    pub(crate) fn round_keys(&self, name: &str) -> Vec<Needle> {
        let keys = self.0.chunks(16).enumerate();
        keys.flat_map(|(round, key)| {
            let inverse: Vec<u8> = key.chunks(4).flat_map(inverse_mix_column).collect();
            [
                Needle::new(format!("{name}, round key {round}"), key),
                Needle::new(format!("{name}, inverse round key {round}"), &inverse),
            ]
        })
        .collect()
    }
}

/// The word that follows 32 bytes of a schedule; `index` counts words from the schedule's start.
fn next_word(last: &[u8], index: usize) -> [u8; 4] {
    let mut word = [last[28], last[29], last[30], last[31]];
    if index.is_multiple_of(8) {
        word.rotate_left(1);
        word = word.map(substitute);
        word[0] ^= 1 << (index / 8 - 1);
    } else if index % 8 == 4 {
        word = word.map(substitute);
    }
    std::array::from_fn(|i| word[i] ^ last[i])
}

fn multiply(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 != 0 { 0x1b } else { 0 };
        b >>= 1;
    }
    product
}

/// The S-box (FIPS 197, 5.1.1), computed once.
fn substitute(byte: u8) -> u8 {
    static BOX: std::sync::LazyLock<[u8; 256]> = std::sync::LazyLock::new(|| {
        std::array::from_fn(|x| {
            let inverse = (1..=255).find(|y| multiply(x as u8, *y) == 1).unwrap_or(0);
            (0..5).fold(0x63, |sum, shift| sum ^ inverse.rotate_left(shift))
        })
    });
    BOX[usize::from(byte)]
}

fn inverse_mix_column(column: &[u8]) -> [u8; 4] {
    const FACTORS: [u8; 4] = [0x0e, 0x0b, 0x0d, 0x09];
    std::array::from_fn(|row| (0..4).fold(0, |sum, i| sum ^ multiply(column[i], FACTORS[(i + 4 - row) % 4])))
}

/// Every complete AES-256 key schedule in the process, whatever its key: address and schedule.
pub(crate) fn find_schedules(pid: u32) -> Vec<(u64, Schedule)> {
    let mut found = Vec::new();
    for mapping in mappings(pid) {
        for at in (0..mapping.bytes.len().saturating_sub(240)).step_by(4) {
            let here = &mapping.bytes[at..at + 240];
            // The first derived word fits by chance once in 2^32; zeros fit never.
            if here[..8] != [0; 8] && next_word(&here[..32], 8) == here[32..36] {
                let schedule = Schedule::expand(&here[..32]);
                if schedule.0 == here {
                    found.push((mapping.start + at as u64, schedule));
                }
            }
        }
    }
    found
}

/// AES-256-XTS keys that a cipher is keyed with: two schedules in one structure, the data half's before the tweak
/// half's, as AWS-LC has them (`EVP_AES_XTS_CTX`: 248 bytes apart), and RustCrypto and our own (with the data half's
/// inverse keys in between: 480 bytes apart). Other schedules, of random generators, have no such neighbour.
pub(crate) fn find_xts_keys(pid: u32) -> HashSet<Vec<u8>> {
    let schedules = find_schedules(pid);
    let mut keys = HashSet::new();
    for (address, data) in &schedules {
        let neighbour = |(other, _): &&(u64, Schedule)| [248, 480].contains(&other.wrapping_sub(*address));
        keys.extend(schedules.iter().find(neighbour).map(|(_, tweak)| [data.key(), tweak.key()].concat()));
    }
    keys
}

#[test]
fn the_schedule_is_that_of_fips_197() {
    let key: Vec<u8> = (0..32).collect();
    let schedule = Schedule::expand(&key);
    // FIPS 197, C.3: round 14's key of AES-256 with key 00..1f.
    let last =
        [0x24, 0xfc, 0x79, 0xcc, 0xbf, 0x09, 0x79, 0xe9, 0x37, 0x1a, 0xc2, 0x3c, 0x6d, 0x68, 0xde, 0x36];
    assert_eq!(schedule.0[224..], last);
    // The same appendix: the inverse cipher's key schedule, round 1 (of round key 13).
    let inverse = schedule.round_keys("k").into_iter().find(|k| k.name == "k, inverse round key 13").unwrap();
    assert_eq!(inverse.bytes[..4], [0x34, 0xf1, 0xd1, 0xff]);
}

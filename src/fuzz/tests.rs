//! The corpora, one by one, so that what fuzzing once found is looked at by every run of the tests.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Fails with the names of the inputs that show a fault.
fn replay(target: &str, harness: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<_> = std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() > 5, "{} holds {} inputs", corpus.display(), inputs.len());
    let fails = |path: &std::path::PathBuf| {
        let data = std::fs::read(path).unwrap();
        catch_unwind(AssertUnwindSafe(|| harness(&data))).is_err()
    };
    inputs.retain(fails);
    assert!(inputs.is_empty(), "{target} fails on {inputs:?}");
}

#[test]
fn options() {
    replay("options", super::options);
}

#[test]
fn requests() {
    replay("requests", super::requests);
}

#[test]
fn connection() {
    replay("connection", super::connection);
}

/// The harness itself: a reply too many, one too few, and half of one are faults that it finds.
#[test]
fn a_wrong_transcript_is_found() {
    let flush = b"\x25\x60\x95\x13\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let handshake = b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0";
    let input = super::transcript::with_cookies(&[&handshake[..], flush, flush].concat(), false);
    let good = super::peer::converse(0, &input).unwrap();
    let last = good.len() - 16;
    let judge = |output: &[u8]| catch_unwind(|| super::transcript::conversation(&input, output)).is_ok();
    assert!(judge(&good));
    assert!(!judge(&good[..last]), "a reply is missing");
    assert!(!judge(&good[..last + 3]), "half a reply is missing");
    assert!(!judge(&[&good[..], &good[last..]].concat()), "a reply comes twice");
    assert!(!judge(&[&good[..], b"x"].concat()), "a byte too many");
    assert!(!judge(&[&good[..last], &[0; 16]].concat()), "no reply");
    assert!(!judge(&good[18..]), "no greeting");
}

//! Sizes and sector sizes.

use crate::leavings::refused_at_once;

#[test]
fn a_volume_of_nothing() {
    refused_at_once(&["--size", "0"], 2, &["error:", "size 0"]);
}

#[test]
fn an_incomplete_last_sector() {
    let words = ["5000", "not a multiple of the sector size 4096", "8192"];
    refused_at_once(&["--size", "5000"], 2, &words);
    refused_at_once(&["--size", "1000", "--sector-size", "512"], 2, &["1000", "sector size 512"]);
}

/// The size that is advised must be one that is taken: not 0.
#[test]
fn less_than_a_sector() {
    refused_at_once(&["--size", "100"], 2, &["100", "sector size 4096", "is 4096"]);
}

#[test]
fn more_than_one_key_may_encrypt() {
    refused_at_once(&["--size", "257T"], 2, &["256 TiB", "IEEE 1619"]);
    // One sector too many.
    refused_at_once(&["--size", "281474976714752"], 2, &["281474976714752", "256 TiB"]);
    // More than can be counted.
    for huge in ["99999999999999999999", "99999999T"] {
        refused_at_once(&["--size", huge], 2, &[huge, "256 TiB"]);
    }
}

#[test]
fn no_size_at_all() {
    for nonsense in ["", "ten", "1.5G", "10X", "0x1000"] {
        refused_at_once(&["--size", nonsense], 2, &[&format!("{nonsense:?}"), "K, M, G, T"]);
    }
    refused_at_once(&["--size=-1G"], 2, &["-1G"]);
    refused_at_once(&[], 2, &["--size"]);
}

#[test]
fn another_sector_size() {
    for sector in ["0", "1024", "8192", "4k"] {
        refused_at_once(&["--size", "1M", "--sector-size", sector], 2, &[sector, "512 or 4096"]);
    }
}

//! qemu-io: patterns written and read back, odd places and requests in flight.

use super::{Served, Way};

#[test]
fn patterns() {
    for way in Way::ALL {
        let served = Served::start(way, &["--size", "16M"]);
        served.qemu_io(&[
            "write -P 0xab 1000 50000",
            "read -P 0xab 1000 50000",
            "read -P 0 51000 4096",
            "read -P 0 0 1000",
            "write -P 0x44 4095 2",
            "read -P 0xab 1000 3095",
            "read -P 0x44 4095 2",
            "read -P 0xab 4097 46903",
            "write -f -P 0x33 0 512",
            "read -P 0x33 0 512",
            "writev -P 0x55 8M 4k 1000 64k",
            "readv -P 0x55 8M 64k 5096",
            "flush",
        ]);
        served.stop();
    }
}

#[test]
fn many_requests_in_flight() {
    for way in Way::ALL {
        let served = Served::start(way, &["--size", "64M"]);
        let each =
            |what: &str| (0..32).map(|i| format!("{what} -P {} {}k 1000k", i + 1, i * 1999 + 1)).collect();
        let [writes, reads]: [Vec<String>; 2] = ["aio_write", "aio_read"].map(each);
        let flush = "aio_flush".to_owned();
        let commands: Vec<&str> =
            writes.iter().chain([&flush]).chain(&reads).chain([&flush]).map(String::as_str).collect();
        served.qemu_io(&commands);
        served.stop();
    }
}

/// Zeros and discards read as zeros, give their space back unless told otherwise, and touch nothing beside them.
#[test]
fn zeros_and_discards() {
    for way in Way::ALL {
        let served = Served::start(way, &["--size", "64M"]);
        served.qemu_io(&["write -P 0x11 0 16M", "flush"]);
        let full = served.allocated();
        assert!(full >= 16 << 20, "{full}");
        served.qemu_io(&[
            "write -z 1M 1M",
            "write -z -f 3000000 5001",
            "read -P 0 1M 1M",
            "read -P 0 3000000 5001",
        ]);
        assert!(served.allocated() >= full, "{} of {full}", served.allocated());
        served.qemu_io(&["write -z -u 4M 4M", "write -z -u -n 8M 1M", "discard 12M 2M", "flush"]);
        let left = served.allocated();
        assert!(left <= full - (7 << 20), "{left} of {full}");
        served.qemu_io(&[
            "read -P 0 4M 5M",
            "read -P 0x11 0 1M",
            "read -P 0x11 2M 902848",
            "read -P 0x11 3005001 1189303",
            "read -P 0x11 9M 3M",
            "read -P 0x11 14M 2M",
            "read -P 0 16M 1M",
        ]);
        served.stop();
    }
}

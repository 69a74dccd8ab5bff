//! fio's engine `nbd`, which checks what it reads against what it wrote.

use super::{Served, Way, run};

/// `fio ARGS` with `jobs` connections, each on a part of the disk of its own.
fn fio(served: &Served, jobs: u32, args: &[&str]) {
    let fixed = [
        "--name=t",
        "--ioengine=nbd",
        "--iodepth=16",
        "--randseed=7",
        "--size=4M",
        "--offset_increment=4M",
        "--verify_state_save=0",
    ];
    let own = [format!("--uri={}", served.volume.uri), format!("--numjobs={jobs}")];
    let all = fixed.iter().chain(args).copied().chain(own.iter().map(String::as_str));
    // fio's nbd engine allows no directory of certificates in a URI.
    run(served.at_home("fio"), all);
}

#[test]
fn verifies_on_1_4_and_16_connections() {
    for way in Way::ALL {
        let served = Served::start(way, &["--size", "64M"]);
        for jobs in [1, 4, 16] {
            let verified = ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"];
            fio(&served, jobs, &[&["--rw=randwrite", "--bsrange=512-64k"], &verified[..]].concat());
            fio(&served, jobs, &[&["--rw=randrw", "--bs=4k", "--fsync=16"], &verified[..]].concat());
        }
        let record = served.stop();
        assert!(record["connections"].as_u64() >= Some(42), "{record}");
    }
}

#[test]
fn trims_what_it_wrote() {
    for way in Way::ALL {
        let served = Served::start(way, &["--size", "64M"]);
        fio(&served, 4, &["--rw=randtrimwrite", "--bs=64k"]);
        fio(&served, 4, &["--rw=randtrim", "--bsrange=512-256k"]);
        served.stop();
    }
}

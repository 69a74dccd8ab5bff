//! nbdcopy with four connections: whole disks, sparse ones staying so.

use super::{Served, Way, allocated, peer, run, sparse_image};

/// Without threads for them, nbdcopy opens no more connections than the machine has cores.
const MANY: [&str; 5] = ["--connections=4", "--threads=4", "--requests=16", "--sparse=4096", "--flush"];

/// 10 GiB with 50 MiB of data, in 50 pieces.
#[test]
fn a_sparse_disk_stays_sparse_both_ways() {
    const SIZE: u64 = 10 << 30;
    let pieces: Vec<(u64, u64)> = (0..50).map(|i| (i * (205 << 20) + i * 4096, 1 << 20)).collect();
    for way in Way::ALL {
        let served = Served::start(way, &["--size", "10G"]);
        let [image, back] = ["image", "back"].map(|name| served.lab.path(name));
        sparse_image(&image, SIZE, &pieces);
        let [source, target] = [&image, &back].map(|path| path.to_str().unwrap());
        run(peer("nbdcopy"), [&MANY[..], &[source, &served.uri()]].concat());
        // Some metadata of the file system may be counted with the data.
        let (data, slack) = (50 << 20, 1 << 20);
        assert!((data..=data + slack).contains(&served.allocated()), "{}", served.allocated());
        run(peer("nbdcopy"), [&MANY[..], &[&served.uri(), target]].concat());
        assert!((data..=data + slack).contains(&allocated(&back)), "{}", allocated(&back));
        assert_eq!(std::fs::metadata(&back).unwrap().len(), SIZE);
        run(peer("qemu-img"), ["compare", "-f", "raw", "-F", "raw", source, target]);
        let record = served.stop();
        assert!(record["connections"].as_u64() >= Some(8), "{record}");
        assert_eq!(record["bytes_written"], data, "{record}");
    }
}

/// A disk that held something else: what is a hole in the image is zeros afterwards, and old data is gone.
#[test]
fn over_an_older_disk() {
    for way in Way::ALL {
        let served = Served::start(way, &["--size", "64M"]);
        served.qemu_io(&["write -P 0x77 0 64M"]);
        let image = served.lab.path("image");
        sparse_image(&image, 64 << 20, &[(0, 4096), (7 << 20, 3 << 20)]);
        run(peer("nbdcopy"), [&MANY[..], &[image.to_str().unwrap(), &served.uri()]].concat());
        let back = served.lab.path("back");
        run(peer("nbdcopy"), [&MANY[..], &[&served.uri(), back.to_str().unwrap()]].concat());
        assert!(std::fs::read(&back).unwrap() == std::fs::read(&image).unwrap(), "the copy differs");
        assert!(served.allocated() <= 4 << 20, "{}", served.allocated());
        served.stop();
    }
}

//! qemu-img: images into a volume and out of it.

use serde_json::Value;

use super::{Served, Way, allocated, peer, run, sparse_image};

/// Where data is in the image: both ends, odd sectors, and more than one request's worth.
const PIECES: [(u64, u64); 4] =
    [(0, 8 << 10), (1_003_520, 700_416), (16 << 20, 9 << 20), ((48 << 20) - 4096, 4096)];

/// `qemu-img ARGS`, with the volume's place at the end.
fn qemu_img(served: &Served, command: &str, args: &[&str]) -> String {
    let (object, image) = served.image();
    let all = [command].into_iter().chain(object.iter().map(String::as_str)).chain(args.iter().copied());
    run(peer("qemu-img"), all.chain([image.as_str()]))
}

#[test]
fn converts_compares_and_maps() {
    for way in Way::ALL {
        let served = Served::start(way, &["--size", "48M"]);
        let [image, back] = ["image", "back"].map(|name| served.lab.path(name));
        sparse_image(&image, 48 << 20, &PIECES);
        let [source, target] = [&image, &back].map(|path| path.to_str().unwrap());
        let opened = format!("driver=file,filename={source}");
        // The volume is empty, so that its holes need not be written.
        let fixed = ["-n", "--target-is-zero", "-f", "raw", "--target-image-opts", "-m", "16", "-W"];
        qemu_img(&served, "convert", &[&fixed[..], &[source]].concat());
        qemu_img(&served, "compare", &["--image-opts", &opened]);
        let map: Value =
            serde_json::from_str(&qemu_img(&served, "map", &["--output=json", "--image-opts"])).unwrap();
        let data: Vec<(u64, u64)> = map
            .as_array()
            .unwrap()
            .iter()
            .filter(|extent| extent["data"] == true)
            .map(|extent| (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap()))
            .collect();
        assert_eq!(data, PIECES, "{map}");
        assert!(map.as_array().unwrap().iter().all(|extent| extent["zero"] != extent["data"]), "{map}");

        let (object, volume) = served.image();
        let out = ["convert", "-O", "raw", "-m", "16", "-W", "--image-opts", &volume, target];
        let (command, rest) = out.split_first().unwrap();
        run(
            peer("qemu-img"),
            [*command].into_iter().chain(object.iter().map(String::as_str)).chain(rest.iter().copied()),
        );
        assert!(std::fs::read(&back).unwrap() == std::fs::read(&image).unwrap(), "the copy differs");
        assert!(allocated(&back) <= allocated(&image), "{} of {}", allocated(&back), allocated(&image));
        served.stop();
    }
}

/// Differences are found: a comparison that always succeeds would prove nothing.
#[test]
fn compares_what_differs() {
    let served = Served::start(Way::Tls, &["--size", "48M"]);
    let image = served.lab.path("image");
    sparse_image(&image, 48 << 20, &PIECES);
    let (object, volume) = served.image();
    let opened = format!("driver=file,filename={}", image.display());
    let mut compare = peer("qemu-img");
    compare.arg("compare").args(object).args(["--image-opts", &opened, &volume]);
    let output = crate::support::finish(compare);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(crate::support::text(&output.stdout).contains("mismatch at offset 0"), "{output:?}");
    served.stop();
}

/// Without TLS: `qemu-img bench` has no option for certificates.
#[test]
fn benches() {
    for way in [Way::Unix, Way::Tcp] {
        let served = Served::start(way, &["--size", "48M"]);
        let fixed = ["-c", "2000", "-d", "64", "-s", "4096", "-S", "20480", "--image-opts"];
        let writes = ["-w", "--pattern=7", "--flush-interval=100", "--no-drain"];
        qemu_img(&served, "bench", &[&writes[..], &fixed].concat());
        qemu_img(&served, "bench", &fixed);
        served.qemu_io(&["read -P 7 0 4k", "read -P 0 4k 16k", "read -P 7 20k 4k", "read -P 7 39980k 4k"]);
        served.stop();
    }
}

//! Programs and libraries that others wrote, each as its users use it.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::Value;

use crate::raw::{Client, ERR_UNKNOWN, EXPORT_NAME, GO, INFO};
use crate::support::{Lab, Volume, assert_succeeds, finish, text, tool};

/// `NAME ARGS` succeeds; what it prints.
fn run(name: &str, args: &[&str]) -> String {
    let mut command = tool(name);
    command.args(args);
    let output = finish(command);
    assert_succeeds(&output);
    text(&output.stdout)
}

/// nbdsh, with a Python that has its module: Debian's own.
fn nbdsh(volume: &Volume, script: &str) {
    let mut command: Command = tool("nbdsh");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/bin:{path}")).args(["--connect", &volume.uri, "--command", script]);
    assert_succeeds(&finish(command));
}

fn stops_in_order(volume: Volume) -> Value {
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_eq!(record["keys_wiped"], true, "{record}");
    assert_eq!(record["connections_cut"], 0, "{record}");
    record
}

/// Data at both ends and at odd places, and holes between.
fn sparse_image(lab: &Lab, size: usize) -> (std::path::PathBuf, Vec<u8>) {
    let mut content = vec![0; size];
    for (start, length) in [(0, 5000), (1_000_001, 700_000), (size / 2, 1 << 20), (size - 77, 77)] {
        let bytes = content[start..start + length].iter_mut().enumerate();
        bytes.for_each(|(i, byte)| *byte = u8::try_from(i % 251 + 1).unwrap());
    }
    let path = lab.path("image");
    let mut file = std::fs::File::create(&path).unwrap();
    file.set_len(size as u64).unwrap();
    for (number, block) in content.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|b| *b != 0))
    {
        file.seek(SeekFrom::Start(number as u64 * 4096)).unwrap();
        file.write_all(block).unwrap();
    }
    (path, content)
}

#[test]
fn nbdinfo_describes_the_export() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "64M", "--export", "scratch", "--sector-size", "512"]);
    let socket = format!("nbd+unix:///?socket={}", volume.socket().display());
    for args in [&["--json", volume.uri.as_str()][..], &["--json", "--list", &socket]] {
        let all: Value = serde_json::from_str(&run("nbdinfo", args)).unwrap();
        assert_eq!(all["protocol"], "newstyle-fixed");
        let export = &all["exports"][0];
        assert_eq!(export["export-name"], "scratch", "{all}");
        assert_eq!(export["export-size"], 64 << 20);
        assert_eq!(
            (&export["block_size_minimum"], &export["block_size_preferred"]),
            (&1.into(), &512.into())
        );
        assert_eq!(export["is_read_only"], false);
        for can in
            ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_fast_zero", "can_cache"]
        {
            assert_eq!(export[can], true, "{can}");
        }
        let description = export["description"].as_str().unwrap();
        assert!(description.contains(volume.serving["volume"].as_str().unwrap()), "{description}");
    }
    stops_in_order(volume);
}

#[test]
fn nbdcopy_there_and_back() {
    let lab = Lab::new();
    let (image, content) = sparse_image(&lab, 64 << 20);
    let back = lab.path("back");
    let volume = Volume::start(&lab, &["--size", "64M"]);
    let (image, target) = (image.to_str().unwrap(), back.to_str().unwrap());
    // Without threads for them, nbdcopy opens no more connections than the machine has cores.
    let many = ["--connections=4", "--threads=4", "--requests=16", "--flush"];
    run("nbdcopy", &[&many[..], &[image, &volume.uri]].concat());
    run("nbdcopy", &[&many[..], &[&volume.uri, target]].concat());
    assert!(std::fs::read(&back).unwrap() == content, "the copy differs");
    let record = stops_in_order(volume);
    assert!(record["connections"].as_u64() >= Some(8), "{record}");
}

#[test]
fn nbdsh_with_every_request() {
    let lab = Lab::new();
    for sector in ["4096", "512"] {
        let volume = Volume::start(&lab, &["--size", "16M", "--sector-size", sector]);
        nbdsh(&volume, include_str!("scripts/shell.py"));
        stops_in_order(volume);
    }
}

#[test]
fn a_volume_that_takes_no_writes() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "1M", "--read-only"]);
    nbdsh(&volume, include_str!("scripts/read_only.py"));
    let info: Value = serde_json::from_str(&run("nbdinfo", &["--json", &volume.uri])).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true);
    assert_eq!(info["exports"][0]["can_trim"], false, "{info}");
    let record = stops_in_order(volume);
    assert_eq!(record["bytes_written"], 0);
}

#[test]
fn qemu_io_with_patterns() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "16M"]);
    let commands = [
        "write -P 0xab 1000 50000",
        "read -P 0xab 1000 50000",
        "read -P 0 51000 4096",
        "aio_write -P 0x11 1M 4M",
        "aio_write -P 0x22 6M 64k",
        "aio_flush",
        "flush",
        "read -P 0x11 1M 4M",
        "read -P 0x22 6M 64k",
        "write -z 2M 1M",
        "write -z -u 3M 512k",
        "read -P 0 2M 1536k",
        "write -f -P 0x33 0 512",
        "read -P 0x33 0 512",
        "discard 1M 1M",
        "read -P 0x11 4M 1M",
    ];
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let args: Vec<&str> = ["-f", "raw"].into_iter().chain(commands).chain([volume.uri.as_str()]).collect();
    let said = run("qemu-io", &args);
    assert!(!said.contains("failed"), "{said}");
    stops_in_order(volume);
}

#[test]
fn qemu_img_converts_and_compares() {
    let lab = Lab::new();
    let (image, content) = sparse_image(&lab, 32 << 20);
    let image = image.to_str().unwrap();
    let volume = Volume::start(&lab, &["--size", "32M"]);
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", "-m", "16", "-W", image, &volume.uri]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", image, &volume.uri]);
    assert!(Client::ready(&volume.socket()).read(0, content.len()) == content);
    stops_in_order(volume);
}

#[test]
fn nbd_client_lists_the_exports() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "1M", "--export", "one", "--listen", "tcp:127.0.0.1:0"]);
    let port = volume.uri.rsplit_once(':').unwrap().1.split_once('/').unwrap().0;
    assert!(run("nbd-client", &["-l", "127.0.0.1", port]).contains("one: sealblk vol-"));
    stops_in_order(volume);
}

#[test]
fn fio_trims_what_it_wrote() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "64M"]);
    let uri = format!("--uri={}", volume.uri);
    let fixed = ["--name=t", "--ioengine=nbd", "--size=64M", "--iodepth=16", "--randseed=7", &uri];
    run("fio", &[&fixed[..], &["--rw=randtrimwrite", "--bs=64k"]].concat());
    run("fio", &[&fixed[..], &["--rw=randtrim", "--bsrange=512-256k"]].concat());
    let verify = [
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ];
    run("fio", &[&fixed[..], &verify, &["--size=16M"]].concat());
    stops_in_order(volume);
}

/// The only client here that is Rust, and the only one that never leaves the old way to choose an export.
#[test]
fn the_nbd_crate() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "4M", "--export", "old"]);
    let stream = UnixStream::connect(volume.socket()).unwrap();
    let export = nbd::client::handshake(&stream, b"old").unwrap();
    assert_eq!((export.size, export.readonly, export.send_flush), (4 << 20, false, true));
    let mut client = nbd::client::NbdClient::new(&stream, &export);
    let data: Vec<u8> = (0..100_000_u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
    client.seek(SeekFrom::Start(12_345)).unwrap();
    client.write_all(&data).unwrap();
    client.flush().unwrap();
    client.seek(SeekFrom::Start(12_345)).unwrap();
    let mut back = vec![0; data.len()];
    client.read_exact(&mut back).unwrap();
    assert!(back == data);
    drop(stream);
    stops_in_order(volume);
}

/// A client that came by NBD_OPT_EXPORT_NAME was told no block size, so it may ask for any bytes.
#[test]
fn odd_bytes_by_the_old_way() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "4M", "--export", "old", "--sector-size", "4096"]);
    for no_zeroes in [true, false] {
        let mut client = Client::greeted(&volume.socket());
        client.send(&(1 + 2 * u32::from(no_zeroes)).to_be_bytes());
        client.option(EXPORT_NAME, b"old");
        assert_eq!(u64::from_be_bytes(client.take().unwrap()), 4 << 20);
        let flags = u16::from_be_bytes(client.take().unwrap());
        assert_eq!(flags & 0b1_0000_0000 | flags & 1, 0b1_0000_0001, "HAS_FLAGS and CAN_MULTI_CONN");
        if !no_zeroes {
            assert_eq!(client.take().unwrap(), [0; 124]);
        }
        let data: Vec<u8> = (0..(1_u32 << 20) + 14).map(|i| u8::try_from(i % 247).unwrap()).collect();
        client.write(1, &data);
        assert_eq!(client.read(0, 1), [0], "the byte before");
        assert!(client.read(1, data.len()) == data);
        assert_eq!(client.read(1 + data.len() as u64, 9), [0; 9], "the bytes after");
    }
    stops_in_order(volume);
}

#[test]
fn a_name_that_is_not_served() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "1M", "--export", "right"]);
    let mut client = Client::haggling(&volume.socket());
    for wrong in ["wrong", "Right", "right ", "righ"] {
        assert_eq!(client.choose(INFO, wrong), Err(ERR_UNKNOWN), "{wrong}");
        assert_eq!(client.choose(GO, wrong), Err(ERR_UNKNOWN), "{wrong}");
    }
    // The same connection may choose again.
    assert_eq!(client.choose(GO, "right"), Ok(()));
    assert_eq!(client.read(0, 1), [0]);
    // The old way knows no error, so all that a server can do is to hang up.
    let mut client = Client::haggling(&volume.socket());
    client.option(EXPORT_NAME, b"wrong");
    client.is_hung_up_on();
    stops_in_order(volume);
}

#[test]
fn several_addresses_are_one_volume() {
    let lab = Lab::new();
    let [first, second] = ["a.sock", "b.sock"].map(|name| lab.path(name));
    let [a, b] = [&first, &second].map(|path| format!("unix:{}", path.display()));
    let args = ["--size", "1M", "--listen", &a, "--listen", &b, "--listen", "tcp:127.0.0.1:0"];
    let volume = Volume::start(&lab, &args);
    let uris = volume.serving["uris"].as_array().unwrap().clone();
    assert_eq!(uris.len(), 3);
    Client::ready(&first).write(1234, b"seen from everywhere");
    assert_eq!(Client::ready(&second).read(1234, 20), b"seen from everywhere");
    let tcp = uris[2].as_str().unwrap();
    assert!(tcp.starts_with("nbd://127.0.0.1:"), "{tcp}");
    run("qemu-io", &["-f", "raw", "-c", "read -P 0x65 1235 2", tcp]);
    let record = stops_in_order(volume);
    assert_eq!(record["connections"], 3, "{record}");
    assert!(!first.exists() && !second.exists());
}

/// Names and paths with characters that a URI must not hold as they are.
#[test]
fn a_uri_with_odd_characters() {
    let lab = Lab::new();
    let listen = format!("unix:{}", lab.path("a b&c#d.sock").display());
    let volume = Volume::start(&lab, &["--size", "1M", "--listen", &listen, "--export", "mü/ ?&%"]);
    let info: Value = serde_json::from_str(&run("nbdinfo", &["--json", &volume.uri])).unwrap();
    assert_eq!(info["exports"][0]["export-name"], "mü/ ?&%");
    stops_in_order(volume);
}

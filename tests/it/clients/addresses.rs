//! Names and addresses of a volume, as clients use them.

use serde_json::Value;

use super::{peer, run, stops_in_order};
use crate::raw::{Client, ERR_UNKNOWN, EXPORT_NAME, GO, INFO};
use crate::support::{Lab, Volume};

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
    run(peer("qemu-io"), ["-f", "raw", "-c", "read -P 0x65 1235 2", tcp]);
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
    let info: Value = serde_json::from_str(&run(peer("nbdinfo"), ["--json", &volume.uri])).unwrap();
    assert_eq!(info["exports"][0]["export-name"], "mü/ ?&%");
    stops_in_order(volume);
}

//! Where clients were to connect.

use std::net::TcpListener;

use crate::leavings::{refused, refused_at_once, refuses};
use crate::support::{Lab, Volume, assert_succeeds, finish, tool};

#[test]
fn a_socket_that_another_volume_listens_on() {
    let lab = Lab::new();
    let address = format!("unix:{}", lab.path("nbd.sock").display());
    let volume = Volume::start(&lab, &["--size", "1M", "--listen", &address]);
    refused(
        &lab,
        &["--size", "1M", "--listen", &address],
        8,
        &["error: cannot listen on", &address, "in use", "choose"],
    );
    let mut nbdinfo = tool("nbdinfo");
    nbdinfo.arg(&volume.uri);
    assert_succeeds(&finish(nbdinfo));
    assert!(volume.stop().0.success());
}

#[test]
fn a_socket_path_that_is_a_file() {
    let lab = Lab::new();
    let path = lab.path("file");
    std::fs::write(&path, "precious").unwrap();
    let address = format!("unix:{}", path.display());
    refused(
        &lab,
        &["--size", "1M", "--listen", &address],
        8,
        &[&address, "a file that is no socket is there", "remove the file"],
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn a_socket_path_that_is_too_long() {
    let path = format!("/tmp/{}", "x".repeat(103));
    refused_at_once(&["--size", "1M", "--listen", &format!("unix:{path}")], 2, &[&path, "107", "shorter"]);
}

/// The path that sealblk chooses itself may be too long as well; its directory must not be left.
#[test]
fn a_private_socket_whose_path_is_too_long() {
    let lab = Lab::new();
    let deep = lab.path(&"d".repeat(90));
    std::fs::create_dir(&deep).unwrap();
    let mut command = lab.sealblk(["run", "--size", "1M", "--", "true"]);
    command.env("XDG_RUNTIME_DIR", &deep);
    refuses(&lab, command, 2, &["error: socket path", deep.to_str().unwrap(), "107"]);
}

#[test]
fn a_socket_in_a_directory_that_is_missing() {
    let address = "unix:/nonexistent/nbd.sock";
    refused_at_once(&["--size", "1M", "--listen", address], 8, &["listen on", address, "No such file"]);
}

#[test]
fn a_port_in_use() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp:{}", other.local_addr().unwrap());
    refused_at_once(&["--size", "1M", "--listen", &address], 8, &[&address, "in use"]);
}

/// The first address could be had; its socket must go with the second one's failure.
#[test]
fn the_second_of_two_addresses() {
    let lab = Lab::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = format!("unix:{}", lab.path("nbd.sock").display());
    let tcp = format!("tcp:{}", other.local_addr().unwrap());
    refused(&lab, &["--size", "1M", "--listen", &unix, "--listen", &tcp], 8, &[&tcp, "in use"]);
    refused(&lab, &["--size", "1M", "--listen", &unix, "--listen", &unix], 8, &[&unix, "in use"]);
}

#[test]
fn a_network_that_sees_the_data() {
    for address in ["tcp:0.0.0.0:0", "tcp:[::]:0"] {
        refused_at_once(
            &["--size", "1M", "--listen", address],
            2,
            &["not loopback", "--insecure", "--tls-cert", "--tls-key"],
        );
    }
    let args = ["--size", "1M", "--listen", "tcp:0.0.0.0:0", "--insecure"];
    assert_succeeds(&Lab::new().run(&args, "true"));
}

#[test]
fn what_is_no_address() {
    for address in ["/run/nbd.sock", "unix:", "tcp:localhost", "vsock:", "vsock:1:2:3", "vsock:x", ""] {
        let words = [&format!("{address:?}"), "unix:PATH", "tcp:HOST:PORT", "vsock:PORT"];
        refused_at_once(&["--size", "1M", "--listen", address], 2, &words);
    }
    for (address, range) in [("tcp:127.0.0.1:99999", "0 to 65535"), ("vsock:4294967295:1", "0 to 4294967294")]
    {
        refused_at_once(&["--size", "1M", "--listen", address], 2, &[address, "out of range", range]);
    }
}

#[test]
fn an_export_name_that_is_too_long() {
    refused_at_once(&["--size", "1M", "--export", &"x".repeat(4097)], 2, &["--export", "4096"]);
}

//! Where clients connect, who may, how many, and what they may choose.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::certificates::Certificates;
use crate::leavings::{World, refused, refused_at_once, refuses};
use crate::raw::Client;
use crate::support::{
    Lab, PATIENCE, Volume, assert_fails, assert_succeeds, eventually, finish, text, tool, wait,
};

/// A user whom no machine knows by a name.
const STRANGER: &str = "54321";

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// nbdinfo as the stranger. Needs root, or sudo that asks no password.
fn as_stranger(lab: &Lab, uri: &str) -> Output {
    std::fs::set_permissions(lab.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
    drop((tool("setpriv"), tool("nbdinfo")));
    let mut command = if is_root() { tool("setpriv") } else { Command::new("sudo") };
    if !is_root() {
        command.args(["-n", "setpriv"]);
    }
    command.args(["--reuid", STRANGER, "--regid", STRANGER, "--clear-groups", "nbdinfo", "--size", uri]);
    finish(command)
}

fn unix(lab: &Lab, name: &str) -> (PathBuf, String) {
    let path = lab.path(name);
    let address = format!("unix:{}", path.display());
    (path, address)
}

/// A volume whose log goes to the file `log`.
fn logged(lab: &Lab, args: &[&str]) -> (Volume, PathBuf) {
    let log = lab.path("log");
    let mut command = lab.sealblk(["run", "--json", "--size=1M"].iter().chain(args));
    command.stderr(std::fs::File::create(&log).unwrap());
    (Volume::spawn(command), log)
}

fn warnings(log: &Path, word: &str) -> usize {
    std::fs::read_to_string(log).unwrap().lines().filter(|line| line.contains(word)).count()
}

/// The server has closed the connection without a word.
fn assert_shut(stream: &mut UnixStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match stream.read(&mut [0; 32]) {
        Ok(0) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("the client was not refused: {other:?}"),
    }
}

/// The connection is open, and nobody has said a word for half a second.
fn assert_waits(stream: &mut UnixStream) {
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let error = stream.read(&mut [0; 32]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
}

#[test]
fn a_stranger_is_refused_whatever_the_mode_and_let_in_if_named() {
    let lab = Lab::new();
    let (path, address) = unix(&lab, "nbd.sock");
    let (volume, log) = logged(&lab, &["--listen", &address, "--socket-mode=0666"]);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o666);
    for _ in 0..20 {
        assert!(!as_stranger(&lab, &volume.uri).status.success());
    }
    assert_eq!(warnings(&log, "--allow-user 54321"), 1, "it is said what to do, and not twenty times");
    drop(Client::ready(&path));
    assert!(volume.stop().0.success());
    for allowed in [STRANGER, "any"] {
        let args = ["--listen", &address, "--socket-mode=0666", "--allow-user", allowed];
        let (volume, log) = logged(&lab, &args);
        assert_succeeds(&as_stranger(&lab, &volume.uri));
        assert_eq!(warnings(&log, "--allow-user"), 0);
        assert!(volume.stop().0.success());
    }
}

#[test]
fn a_socket_is_given_to_its_owner_who_may_connect() {
    let lab = Lab::new();
    let (path, address) = unix(&lab, "nbd.sock");
    let owner = format!("{STRANGER}:{STRANGER}");
    let args = ["--size=1M", "--listen", &address, "--socket-owner", &owner, "--socket-mode=0640"];
    if !is_root() {
        refused(&lab, &args, 8, &["cannot give", "nbd.sock", "CAP_CHOWN", STRANGER]);
        return;
    }
    let volume = Volume::start(&lab, &args);
    let file = std::fs::metadata(&path).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (54321, 54321, 0o640));
    assert_succeeds(&as_stranger(&lab, &volume.uri));
    assert!(volume.stop().0.success());
    assert!(!path.exists());
}

#[test]
fn flags_about_sockets_that_make_no_sense() {
    for mode in ["", "8", "1777", "rw", "0o600", "-1"] {
        refused_at_once(&["--size=1M", &format!("--socket-mode={mode}")], 2, &["--socket-mode", "octal"]);
    }
    for owner in ["", ":", "no-such-user", "0:no-such-group"] {
        refused_at_once(&["--size=1M", "--listen=unix:s", "--socket-owner", owner], 2, &["--socket-owner"]);
    }
    refused_at_once(&["--size=1M", "--allow-user=no-such-user"], 2, &["--allow-user", "no-such-user"]);
    for flag in ["--max-connections", "--max-connections-per-peer"] {
        for number in ["0", "-1", "100001", "many", "99999999999999999999"] {
            let words = [flag, number, "give a number from 1 to 100000: how many c"];
            refused_at_once(&["--size=1M", &format!("{flag}={number}")], 2, &words);
        }
    }
}

#[test]
fn flags_about_sockets_need_a_socket_that_they_are_about() {
    for flag in ["--socket-mode", "--socket-owner"] {
        for listen in [&[][..], &["--listen=tcp:127.0.0.1:0"]] {
            let args = [&["--size=1M", flag, "0"], listen].concat();
            refused_at_once(&args, 2, &[flag, "there is none", "--listen unix:PATH"]);
        }
    }
}

/// Each says what was tried, what came back and what to do.
#[test]
fn addresses_that_cannot_be_listened_on() {
    let lab = Lab::new();
    let directory = lab.path("").display().to_string();
    let directory = directory.trim_end_matches('/');
    std::fs::write(lab.path("file"), "precious").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = format!("tcp:{}", port.local_addr().unwrap());
    let (used, address) = unix(&lab, "used.sock");
    let _used = UnixListener::bind(&used).unwrap();
    let path = |name: &str| format!("unix:{directory}/{name}");
    let made = format!("make the directory {directory}/no");
    for (address, words) in [
        (path("no/x"), ["No such file or directory", &made]),
        (path("file/x"), ["Not a directory", "choose another path"]),
        (format!("unix:{directory}"), ["a directory is there", "choose another path"]),
        (path("file"), ["a file that is no socket is there", "remove the file"]),
        (address, ["in use", "stop what uses it"]),
        (taken, ["in use", "stop what uses it"]),
        ("tcp:192.0.2.1:10809".into(), ["Cannot assign requested address", "`ip address` shows"]),
        ("tcp:no-such-host.invalid:10809".into(), ["lookup", "see how it is spelled"]),
        ("vsock:77:10809".into(), ["os error", "; "]),
    ] {
        let words = [&format!("error: cannot listen on {address}: "), words[0], words[1]];
        refused(&lab, &["--size=1M", "--insecure", "--listen", &address], 8, &words);
    }
    assert_eq!(std::fs::read(lab.path("file")).unwrap(), b"precious");
    let long = format!("unix:/tmp/{}", "x".repeat(103));
    refused_at_once(&["--size=1M", "--listen", &long], 2, &["has 108 bytes", "107 is the most", "shorter"]);
}

#[test]
fn a_port_for_root_is_refused_to_others() {
    let lab = Lab::new();
    let sealblk = lab.sealblk(["run", "--size=1M", "--listen=tcp:127.0.0.1:1", "--", "true"]);
    let mut command = tool("setpriv");
    // Root without the right to it.
    command.args(["--inh-caps=-net_bind_service", "--bounding-set=-net_bind_service"]);
    if !is_root() {
        command = Command::new("env");
    }
    command.envs(sealblk.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.arg(sealblk.get_program()).args(sealblk.get_args());
    refuses(&lab, command, 8, &["tcp:127.0.0.1:1", "Permission denied", "below 1024", "a greater one"]);
}

#[test]
fn a_relative_path_is_shown_as_one_that_clients_find_from_anywhere() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size=1M", "--listen=unix:s"]);
    let path = lab.path("").canonicalize().unwrap().join("s");
    assert_eq!(volume.socket(), path);
    drop(Client::ready(&path));
    assert!(volume.stop().0.success());
    assert!(!path.exists());
    // One that is too long as a whole is bound all the same, for clients that start beside it.
    let deep = lab.path(&"d".repeat(100));
    std::fs::create_dir(&deep).unwrap();
    let mut command = lab.sealblk(["run", "--json", "--size=1M", "--listen=unix:s"]);
    command.current_dir(&deep);
    let volume = Volume::spawn(command);
    assert!(deep.join("s").exists());
    assert!(volume.stop().0.success());
    assert!(!deep.join("s").exists());
}

#[test]
fn idle_clients_do_not_lock_others_out() {
    let lab = Lab::new();
    let (path, address) = unix(&lab, "nbd.sock");
    let (volume, _) = logged(&lab, &["--listen", &address]);
    let idle: Vec<_> = (0..200).map(|_| Client::greeted(&path)).collect();
    drop(Client::ready(&path));
    drop(idle);
    assert!(volume.stop().0.success());
}

#[test]
fn a_peer_with_its_share_of_connections_gets_no_more_until_one_ends() {
    let lab = Lab::new();
    let (path, address) = unix(&lab, "nbd.sock");
    let (volume, log) =
        logged(&lab, &["--listen", &address, "--listen=tcp:127.0.0.1:0", "--max-connections-per-peer=2"]);
    let one = Client::ready(&path);
    let _another = Client::ready(&path);
    for _ in 0..20 {
        assert_shut(&mut UnixStream::connect(&path).unwrap());
    }
    assert_eq!(warnings(&log, "--max-connections-per-peer"), 1);
    assert_eq!(warnings(&log, "unsaid"), 0, "nothing has been left unsaid yet");
    // By another transport, a peer is another one.
    let mut nbdinfo = tool("nbdinfo");
    nbdinfo.arg("--size").arg(volume.serving["uris"][1].as_str().unwrap());
    assert_succeeds(&finish(nbdinfo));
    drop(one);
    eventually("a place is free again", || {
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        matches!(client.read(&mut [0; 18]), Ok(18))
    });
    assert!(volume.stop().0.success());
}

#[test]
fn clients_of_a_peer_that_choose_no_export_give_way_to_newer_ones() {
    let lab = Lab::new();
    let (path, address) = unix(&lab, "nbd.sock");
    let (volume, log) = logged(&lab, &["--listen", &address, "--max-connections-per-peer=3"]);
    let mut busy = Client::ready(&path);
    let mut silent: Vec<_> = (0..20).map(|_| Client::greeted(&path)).collect();
    // Two are left beside the busy one, of which the older makes room.
    let mut newest = Client::ready(&path);
    assert_eq!((busy.read(0, 512).len(), newest.read(0, 512).len()), (512, 512));
    assert_waits(&mut silent.pop().unwrap().stream);
    for mut client in silent {
        assert_shut(&mut client.stream);
    }
    assert_eq!(warnings(&log, "--max-connections-per-peer"), 1);
    assert!(volume.stop().0.success());
}

#[test]
fn a_client_for_whom_there_is_no_room_waits_and_other_listeners_are_served() {
    let lab = Lab::new();
    let (first, address) = unix(&lab, "first.sock");
    let (second, other) = unix(&lab, "second.sock");
    let (volume, log) = logged(&lab, &["--listen", &address, "--listen", &other, "--max-connections=1"]);
    // There is room for one: a listener that nobody connects to has no claim to it.
    let before = Client::ready(&first);
    assert_eq!(warnings(&log, "--max-connections"), 0, "nobody waits");
    drop(before);
    let here = Client::ready(&second);
    let mut waits = UnixStream::connect(&first).unwrap();
    assert_waits(&mut waits);
    assert_eq!(warnings(&log, "--max-connections"), 1);
    drop(here);
    waits.set_read_timeout(Some(PATIENCE)).unwrap();
    waits.read_exact(&mut [0; 18]).unwrap();
    drop(waits);
    assert!(volume.stop().0.success());
}

#[test]
fn connections_are_fitted_to_the_descriptors_there_may_be_and_commands_keep_their_own_limit() {
    let lab = Lab::new();
    let limited = |limit: &str, args: &str| {
        let mut shell = lab.sealblk([] as [&str; 0]);
        let program = shell.get_program().to_owned();
        let mut command = Command::new("sh");
        command.envs(shell.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.arg("-c").arg(format!("{limit}; exec \"$0\" run --size=1M {args}")).arg(program);
        shell.arg("unused");
        finish(command)
    };
    let output = limited("ulimit -n 164", "-- true");
    assert_succeeds(&output);
    let warned = text(&output.stderr);
    assert!(
        warned.contains("only 36 connections") && warned.contains("1024") && warned.contains("164"),
        "{warned}"
    );
    // The limit is the command's once it runs, but not yet at its first instruction.
    let output = limited("ulimit -Sn 200", "-- sh -c 'sleep 1; ulimit -Sn'");
    assert_succeeds(&output);
    assert_eq!(text(&output.stdout).trim(), "200");
}

#[test]
fn vsock_is_a_network_with_uris_and_ports_of_its_own() {
    for address in ["vsock:10809", "vsock:1:10809"] {
        refused_at_once(
            &["--size=1M", "--listen", address],
            2,
            &[address, "not loopback", "--insecure", "--tls"],
        );
    }
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size=1M", "--listen=vsock:0", "--insecure", "--export=e"]);
    let (host, rest) = volume.uri.strip_prefix("nbd+vsock://").unwrap().split_once(':').unwrap();
    let port = rest.strip_suffix("/e").unwrap();
    assert_eq!(host, "2", "by this guests know their host");
    assert!(port.parse::<u32>().unwrap() >= 1024);
    let taken = format!("vsock:{port}");
    refused(&lab, &["--size=1M", "--listen", &taken, "--insecure"], 8, &[&taken, "in use"]);
    assert!(volume.stop().0.success());
}

fn listed(uri: &str) -> Value {
    let mut nbdinfo = tool("nbdinfo");
    nbdinfo.args(["--list", "--json"]).arg(uri);
    let output = finish(nbdinfo);
    assert_succeeds(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn one_volume_has_several_names_some_of_which_may_change_nothing() {
    let lab = Lab::new();
    let args = [
        "--size=1M",
        "--export=main",
        "--export=other",
        "--read-only-export=view",
        "--listen=tcp:127.0.0.1:0",
    ];
    let volume = Volume::start(&lab, &args);
    let uris: Vec<&str> =
        volume.serving["uris"].as_array().unwrap().iter().map(|uri| uri.as_str().unwrap()).collect();
    assert_eq!(uris[0], volume.uri);
    let names: Vec<_> = uris.iter().map(|uri| uri.rsplit_once('/').unwrap().1).collect();
    assert_eq!(names, ["main", "other", "view"]);
    let list = listed(uris[0].strip_suffix("main").unwrap());
    let exports = list["exports"].as_array().unwrap();
    let shown = |field: &str| exports.iter().map(|export| export[field].clone()).collect::<Vec<_>>();
    assert_eq!(shown("export-name"), ["main", "other", "view"]);
    assert_eq!(shown("is_read_only"), [false, false, true]);
    let write = |uri: &str| {
        let mut qemu = tool("qemu-io");
        qemu.args(["-f", "raw", "-c", "write -P 7 0 64k", uri]);
        finish(qemu)
    };
    assert_succeeds(&write(uris[1]));
    assert!(!write(uris[2]).status.success());
    let mut qemu = tool("qemu-io");
    qemu.args(["-r", "-f", "raw", "-c", "read -P 7 0 64k", uris[2]]);
    assert_succeeds(&finish(qemu));
    assert_eq!(volume.serving["exports"][2], serde_json::json!({ "name": "view", "read_only": true }));
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_eq!(record["exports"][0]["name"], "main");
}

#[test]
fn a_read_only_name_stands_beside_the_default_export() {
    let lab = Lab::new();
    let script = "test \"$exportname\" = '' && nbdinfo --json \"$uri\" | grep '\"is_read_only\": false'";
    assert_succeeds(&lab.run(&["--size=1M", "--read-only-export=view"], script));
    let script = "nbdinfo --list --json \"$uri\" | grep -c '\"is_read_only\": true'";
    let output = lab.run(&["--size=1M", "--read-only-export=view", "--read-only"], script);
    assert_succeeds(&output);
    assert_eq!(text(&output.stdout).trim(), "2");
    refused_at_once(
        &["--size=1M", "--read-only-export="],
        2,
        &["the empty name", "--read-only instead", "--export"],
    );
    let script = "nbdinfo --list --json \"$uri\" | grep -c '\"is_read_only\": true'";
    let output = lab.run(&["--size=1M", "--export=w", "--read-only-export="], script);
    assert_eq!(text(&output.stdout).trim(), "1", "with a name of its own for those who write, there is one");
}

#[test]
fn names_that_are_too_long_or_taken() {
    let long = "x".repeat(4097);
    refused_at_once(&["--size=1M", "--read-only-export", &long], 2, &["--read-only-export", "4097", "4096"]);
    let twice = [["--export=a", "--export=a"], ["--export=a", "--read-only-export=a"]];
    for [one, other] in twice {
        refused_at_once(&["--size=1M", one, other], 2, &["\"a\"", "another export"]);
    }
    let longest = "x".repeat(4096);
    assert_succeeds(&Lab::new().run(&["--size=1M", "--export", &longest], "true"));
}

/// What the file says holds for every volume, and flags go before it.
#[test]
fn the_configuration_file_has_sockets_limits_and_tls() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let (path, address) = unix(&lab, "nbd.sock");
    let [cert, key] = ["server-cert.pem", "server-key.pem"].map(|file| certificates.good.join(file));
    let content = format!(
        "[sockets]\nmode = \"0640\"\n[limits]\nconnections_per_peer = 1\n[tls]\ncert = {cert:?}\nkey = {key:?}\n"
    );
    std::fs::write(lab.path("sealblk.toml"), content).unwrap();
    std::fs::set_permissions(lab.path("sealblk.toml"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let start = |more: &[&str]| {
        let mut command =
            lab.sealblk(["run", "--json", "--size=1M", "--listen", &address].iter().chain(more));
        command.env("SEALBLK_CONFIG", lab.path("sealblk.toml"));
        Volume::spawn(command)
    };
    let volume = start(&[]);
    assert!(volume.uri.starts_with("nbds+unix://"), "{}", volume.uri);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
    let (mut one, _other) = (Client::greeted(&path), Client::greeted(&path));
    assert_shut(&mut one.stream);
    assert!(volume.stop().0.success());
    let volume = start(&["--tls=off", "--socket-mode=0600", "--max-connections-per-peer=2"]);
    assert!(volume.uri.starts_with("nbd+unix://"), "{}", volume.uri);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let (mut one, _other) = (Client::greeted(&path), Client::greeted(&path));
    assert_waits(&mut one.stream);
    assert!(volume.stop().0.success());
    let mut shown = lab.sealblk(["config"]);
    shown.env("SEALBLK_CONFIG", lab.path("sealblk.toml"));
    let shown = text(&finish(shown).stdout);
    for row in ["sockets.mode", "limits.connections_per_peer", "tls.cert"] {
        let line = shown.lines().find(|line| line.starts_with(row)).unwrap();
        assert!(line.contains("sealblk.toml:"), "{line}");
    }
}

/// libnbd's own way to start a server: it binds the socket, and its standard output is the pipeline's.
#[test]
fn libnbd_starts_a_volume_on_a_socket_of_its_own() {
    let lab = Lab::new();
    let mut nbdinfo = tool("nbdinfo");
    let sealblk = lab.sealblk(["run", "--size=10M", "--export=e"]);
    nbdinfo
        .args(["--json", "--list", "--", "["])
        .arg(sealblk.get_program())
        .args(sealblk.get_args())
        .arg("]");
    nbdinfo.envs(sealblk.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = finish(nbdinfo);
    assert_succeeds(&output);
    let info: Value = serde_json::from_slice(&output.stdout).expect("nothing but nbdinfo's own output");
    assert_eq!(info["exports"][0]["export-name"], "e");
    let said = text(&output.stderr);
    assert!(said.contains("it ends with the process that started it"), "{said}");
    assert!(!said.contains("nbd+unix") && !said.contains("Ctrl-C"), "{said}");
    eventually("the volume ends in order", || lab.journals().is_empty());
    assert!(World::of(&lab).grants.is_empty());
    assert!(crate::support::entries(&lab.path("run")).is_empty(), "no private socket was made");

    let image = lab.path("image");
    std::fs::write(&image, vec![9; 10 << 20]).unwrap();
    let mut nbdcopy = tool("nbdcopy");
    nbdcopy.arg("--").arg(&image).arg("[").arg(sealblk.get_program()).args(sealblk.get_args()).arg("]");
    nbdcopy.envs(sealblk.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert_succeeds(&finish(nbdcopy));
}

/// `sealblk ARGS` with `descriptors` as those that systemd passes.
fn activated(lab: &Lab, redirections: &str, count: &str, args: &[&str]) -> Command {
    let sealblk = lab.sealblk([&["run"], args].concat());
    let mut command = Command::new("bash");
    command.envs(sealblk.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let script = format!("export LISTEN_PID=$$ LISTEN_FDS={count}; exec \"$@\" {redirections}");
    command.arg("-c").arg(script).arg("bash").arg(sealblk.get_program()).args(sealblk.get_args());
    command.stdin(Stdio::null());
    command
}

#[test]
fn inherited_descriptors_that_are_no_listeners() {
    let lab = Lab::new();
    let words = ["error: inherited descriptor 3", "not a listening", "ListenStream="];
    refuses(&lab, activated(&lab, "3</dev/null", "1", &["--size=1M", "--", "true"]), 8, &words);
    let (path, _) = unix(&lab, "peer.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    // Bash itself has descriptors from 10 on.
    let missing = activated(&lab, "3</dev/null", "2", &["--size=1M", "--", "true"]);
    assert_fails(
        &finish(missing),
        8,
        &["descriptor 4", "LISTEN_FDS=2", "Bad file descriptor", "passes open sockets"],
    );
    let many = activated(&lab, "3</dev/null", "abc", &["--size=1M", "--", "true"]);
    assert_fails(&finish(many), 8, &["LISTEN_FDS=\"abc\" is not a number", "unsets both"]);
    let mut named = activated(&lab, "3</dev/null", "1", &["--size=1M", "--", "true"]);
    named.env("LISTEN_FDNAMES", "a:b");
    assert_fails(&finish(named), 8, &["LISTEN_FDNAMES=\"a:b\"", "LISTEN_FDS=1", "as many names"]);
    let datagrams = activated(&lab, "3<>/dev/udp/127.0.0.1/9", "1", &["--size=1M", "--", "true"]);
    refuses(&lab, datagrams, 8, &words);
    let mut bad = activated(&lab, "", "0", &["--size=1M", "--", "true"]);
    bad.env("LISTEN_PID", "1").env("LISTEN_FDS", "many");
    assert_succeeds(&finish(bad));
}

/// A volume on the sockets of systemd-socket-activate, which starts it with the first client. `args` are `run`'s.
fn by_systemd(lab: &Lab, sockets: &[&str], args: &[&str]) -> Command {
    let sealblk = lab.sealblk([&["run", "--json"], args].concat());
    let mut command = tool("systemd-socket-activate");
    for socket in sockets {
        command.arg("--listen").arg(socket);
    }
    for (name, value) in sealblk.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        command.arg(format!("--setenv={}={}", name.display(), value.display()));
    }
    // As a socket unit without FileDescriptorName= has it: sealblk's own names begin so, too.
    let names = vec!["sealblk-run@build.socket"; sockets.len()].join(":");
    command.arg(format!("--fdname={names}")).arg(sealblk.get_program()).args(sealblk.get_args());
    command.current_dir(lab.path(""));
    command
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Connects as soon as somebody listens.
fn connect(path: &Path) -> UnixStream {
    eventually("somebody listens", || UnixStream::connect(path).is_ok());
    UnixStream::connect(path).unwrap()
}

#[test]
fn systemd_passes_sockets_that_stay_when_the_volume_ends() {
    let lab = Lab::new();
    let (path, _) = unix(&lab, "systemd.sock");
    let (own, address) = unix(&lab, "own.sock");
    let tcp = format!("127.0.0.1:{}", free_port());
    let sockets = [path.to_str().unwrap(), &tcp];
    let command = by_systemd(&lab, &sockets, &["--size=1M", "--listen", &address, "--restartable"]);
    let starting = {
        let path = path.clone();
        std::thread::spawn(move || connect(&path))
    };
    let mut volume = Volume::spawn(command);
    let mut early = starting.join().unwrap();
    early.read_exact(&mut [0; 18]).unwrap();
    let uris = volume.serving["uris"].to_string();
    assert_eq!(volume.serving["uris"].as_array().unwrap().len(), 3, "{uris}");
    assert!(
        uris.contains("own.sock") && uris.contains("systemd.sock") && uris.contains("nbd://127.0.0.1:"),
        "{uris}"
    );
    let mut client = Client::ready(&path);
    client.write(0, &[7; 4096]);
    volume.signal(12);
    eventually("the successor serves", || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut volume.stdout, &mut line).unwrap();
        line.contains("serving")
    });
    assert_eq!(client.read(0, 4096), [7; 4096]);
    drop((early, client));
    assert!(volume.stop().0.success());
    assert!(path.exists(), "it is systemd's");
    assert!(!own.exists());
}

#[test]
fn inherited_sockets_have_the_same_rules() {
    let lab = Lab::new();
    let connect = |port: u16| {
        std::thread::spawn(move || {
            eventually("somebody listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        })
    };
    let port = free_port();
    let connecting = connect(port);
    let open = by_systemd(&lab, &[&format!("0.0.0.0:{port}")], &["--size=1M", "--", "true"]);
    assert_fails(&finish(open), 2, &["0.0.0.0", "not loopback", "--insecure", "--tls"]);
    connecting.join().unwrap();
    let connecting = connect(port);
    let open = by_systemd(&lab, &[&format!("0.0.0.0:{port}")], &["--size=1M", "--insecure", "--", "true"]);
    assert_succeeds(&finish(open));
    connecting.join().unwrap();

    let (path, _) = unix(&lab, "systemd.sock");
    let starting = {
        let path = path.clone();
        std::thread::spawn(move || super::transports::connect(&path))
    };
    let volume = Volume::spawn(by_systemd(&lab, &[path.to_str().unwrap()], &["--size=1M"]));
    drop(starting.join().unwrap());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert!(!as_stranger(&lab, &volume.uri).status.success());
    drop(Client::ready(&path));
    assert!(volume.stop().0.success());
}

/// Without a command, URIs and record go to standard error: standard output is whose who passed the sockets.
#[test]
fn an_activated_volume_leaves_standard_output_alone() {
    let lab = Lab::new();
    let (path, _) = unix(&lab, "systemd.sock");
    // As under systemd itself, whose end is nobody's.
    let sealblk = lab.sealblk(["run", "--size=1M", "--exit-with-parent=off"]);
    let mut command = tool("systemd-socket-activate");
    command.arg("--listen").arg(&path);
    for (name, value) in sealblk.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        command.arg(format!("--setenv={}={}", name.display(), value.display()));
    }
    command.arg(sealblk.get_program()).args(sealblk.get_args());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut client = connect(&path);
    client.read_exact(&mut [0; 18]).unwrap();
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert!(wait(&mut child).success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "");
    let said = text(&output.stderr);
    assert!(said.contains("SIGTERM ends it"), "{said}");
    assert!(said.contains("nbd+unix:///?socket=") && said.contains("\"event\":\"teardown\""), "{said}");
}

//! Volumes that end with the process that started them (`--exit-with-parent`).

use std::io::BufRead;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::leavings::{World, refused_at_once};
use crate::raw::Client;
use crate::support::{Lab, Volume, entries, eventually, finish, python, text, tool, wait};

/// A client that starts `sealblk run ARGS` on a socket that it has made.
fn by_client(lab: &Lab, args: &[&str]) -> Command {
    let sealblk = lab.sealblk([&["run", "--json", "--size=1M", "--backing=data"], args].concat());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/scripts/passes_socket.py");
    started_by(lab, python().arg(script).arg(lab.path("passed.sock")), &sealblk)
}

/// `sealblk` as arguments of `starter`, in its directory and environment.
fn started_by(lab: &Lab, starter: &mut Command, sealblk: &Command) -> Command {
    let mut command = Command::new(starter.get_program());
    command.args(starter.get_args()).arg(sealblk.get_program()).args(sealblk.get_args());
    command.envs(sealblk.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(lab.path(""));
    command
}

/// A shell that starts `sealblk run ARGS` and waits for it.
fn by_shell(lab: &Lab, args: &[&str]) -> Command {
    let sealblk = lab.sealblk([&["run", "--json", "--size=1M", "--backing=data"], args].concat());
    started_by(lab, Command::new("sh").args(["-c", "\"$@\" & wait", "sh"]), &sealblk)
}

/// SIGKILL to the process that has started the volume. What the volume prints from then on, to its end.
fn abandoned(lab: &Lab, volume: Volume) -> Value {
    volume.signal(9);
    // Whoever has its standard output is sealblk alone by now.
    let (status, record) = volume.end();
    assert!(!status.success());
    assert!(World::of(lab).grants.is_empty(), "the grant is retired");
    assert_eq!(lab.journals(), Vec::<std::path::PathBuf>::new());
    assert!(!lab.path("data").exists(), "the backing is gone");
    assert_eq!(entries(&lab.path("run")), Vec::<std::path::PathBuf>::new(), "so is a private socket");
    record
}

fn signal_server(volume: &Volume, signal: &str) {
    let pid = volume.serving["pid"].to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[test]
fn a_volume_that_a_client_has_started_ends_with_that_client() {
    let lab = Lab::new();
    let record = abandoned(&lab, Volume::spawn(by_client(&lab, &[])));
    assert_eq!(record["reason"], "parent process ended");
    assert_eq!(record["keys_wiped"], true);
}

/// The successor watches on, and is not taken in by whoever has become its parent meanwhile.
#[test]
fn a_successor_ends_with_the_client_too() {
    let lab = Lab::new();
    let mut volume = Volume::spawn(by_client(&lab, &["--restartable"]));
    for _ in 0..2 {
        signal_server(&volume, "-USR2");
        let mut line = String::new();
        volume.stdout.read_line(&mut line).unwrap();
        assert!(line.contains("\"serving\""), "{line}");
    }
    assert_eq!(abandoned(&lab, volume)["reason"], "parent process ended");

    let lab = Lab::new();
    let mut volume = Volume::spawn(by_client(&lab, &["--restartable"]));
    // Both at once: the successor finds its parent dead, or the volume ends before there is one.
    signal_server(&volume, "-USR2");
    volume.signal(9);
    wait(&mut volume.child);
    let (_, record) = volume.end();
    assert_eq!(record["event"], "teardown");
}

#[test]
fn libnbd_is_killed_and_its_volume_ends() {
    let lab = Lab::new();
    let sealblk = lab.sealblk(["run", "--size=1M", "--backing=data"]);
    let quoted: Vec<_> = [sealblk.get_program()].into_iter().chain(sealblk.get_args()).collect();
    let script = format!(
        "h.connect_systemd_socket_activation({quoted:?})\nh.pwrite(b'7' * 4096, 0)\nimport os\nos.kill(os.getpid(), 9)"
    );
    let mut nbdsh = tool("nbdsh");
    nbdsh.envs(sealblk.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // The system's Python has libnbd.
    nbdsh.env("PATH", format!("/usr/bin:{}", std::env::var("PATH").unwrap_or_default()));
    nbdsh.current_dir(lab.path("")).arg("-c").arg(script);
    // To the end of its standard error, which is the volume's as well.
    let said = text(&finish(nbdsh).stderr);
    assert!(said.contains("\"reason\":\"parent process ended\""), "{said}");
    assert!(World::of(&lab).grants.is_empty() && lab.journals().is_empty() && !lab.path("data").exists());
}

#[test]
fn the_flag_is_for_any_parent_and_ends_a_command_too() {
    let lab = Lab::new();
    let record = abandoned(&lab, Volume::spawn(by_shell(&lab, &["--exit-with-parent"])));
    assert_eq!(record["reason"], "parent process ended");
    let volume = Volume::spawn(by_shell(&lab, &["--exit-with-parent=on", "--", "sleep", "1000"]));
    let record = abandoned(&lab, volume);
    assert!(record["reason"].as_str().unwrap().contains("SIGTERM"), "{record}");
    refused_at_once(&["--size=1M", "--exit-with-parent=maybe"], 2, &["--exit-with-parent", "on", "off"]);
}

/// A volume serves on after the process that has started it was killed.
fn assert_stays(lab: &Lab, command: Command, socket: impl FnOnce(&Volume) -> std::path::PathBuf) {
    let mut volume = Volume::spawn(command);
    let socket = socket(&volume);
    volume.signal(9);
    wait(&mut volume.child);
    drop(Client::ready(&socket));
    signal_server(&volume, "-TERM");
    let (_, record) = volume.end();
    assert_eq!(record["reason"], "SIGTERM");
    eventually("the volume ends in order", || lab.journals().is_empty());
}

#[test]
fn others_stay_as_do_those_that_systemd_has_started() {
    let lab = Lab::new();
    assert_stays(&lab, by_shell(&lab, &[]), Volume::socket);
    let passed = |lab: &Lab| lab.path("passed.sock");
    let lab = Lab::new();
    assert_stays(&lab, by_client(&lab, &["--exit-with-parent=off"]), |_| passed(&lab));
    let lab = Lab::new();
    let mut service = by_client(&lab, &[]);
    service.env("AS_SYSTEMD", "1");
    assert_stays(&lab, service, |_| passed(&lab));
}

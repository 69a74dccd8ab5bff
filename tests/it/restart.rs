//! A restartable volume goes over to a successor process, with its clients: by re-execution, under load, while the
//! KMS key is disabled, and with another program under the old name.

use std::collections::BTreeSet;
use std::io::{BufRead, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::certificates::Certificates;
use crate::raw::{Client, Mode};
use crate::support::{
    Lab, PATIENCE, Volume, assert_fails, assert_succeeds, eventually, finish, text, tool, wait,
};

const SIGUSR1: i32 = 10;
pub(crate) const SIGUSR2: i32 = 12;

/// fio at work on a volume, with verification.
pub(crate) struct Load {
    command: Command,
    child: Child,
    output: PathBuf,
    jobs: usize,
    /// How often it has begun.
    runs: usize,
}

impl Load {
    /// Writes and verifies `mebibytes`, which `jobs` connections share out among themselves.
    pub(crate) fn start(lab: &Lab, uri: &str, jobs: usize, mebibytes: usize) -> Self {
        let share = mebibytes / jobs;
        let output = lab.path("fio");
        let mut command = tool("fio");
        command
            .args(["--name=v", "--ioengine=nbd", "--rw=randrw", "--bsrange=512-256k", "--iodepth=16"])
            .args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=0"])
            .args([format!("--size={share}M"), format!("--offset_increment={share}M")])
            .args([format!("--numjobs={jobs}"), format!("--uri={uri}")])
            .arg(format!("--output={}", output.display()))
            .stdout(Stdio::null());
        let child = command.spawn().unwrap();
        Self { command, child, output, jobs, runs: 1 }
    }

    /// Begins again if it is at its end.
    fn keep_up(&mut self) {
        if self.child.try_wait().unwrap().is_some() {
            self.check();
            self.child = self.command.spawn().unwrap();
            self.runs += 1;
        }
    }

    /// To its end: no error, no byte wrong, and something was written. Returns how often it has begun.
    pub(crate) fn assert_unharmed(mut self) -> usize {
        self.check();
        self.runs
    }

    fn check(&mut self) {
        let status = wait(&mut self.child);
        let report = std::fs::read_to_string(&self.output).unwrap_or_default();
        assert!(status.success(), "{status}: {report}");
        assert_eq!(report.matches("err= 0:").count(), self.jobs, "{report}");
        assert_eq!(report.matches("\n  write: ").count(), self.jobs, "{report}");
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // A test that failed leaves it running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the successor has said that it serves.
pub(crate) fn await_successor(volume: &mut Volume) {
    let mut line = String::new();
    volume.stdout.read_line(&mut line).unwrap();
    let serving: Value =
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("no successor: {line:?}: {:?}", volume.child));
    assert_eq!((&serving["event"], &serving["volume"]), (&"serving".into(), &volume.serving["volume"]));
    assert_eq!(serving["pid"], volume.child.id());
    assert_eq!(serving["uris"], volume.serving["uris"]);
}

fn reexecute(volume: &mut Volume) {
    volume.signal(SIGUSR2);
    await_successor(volume);
}

/// What the process has open: links of /proc/PID/fd, sorted, without the numbers of inodes.
fn open_files(volume: &Volume) -> Vec<String> {
    let mut links: Vec<String> = std::fs::read_dir(format!("/proc/{}/fd", volume.child.id()))
        .unwrap()
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|link| link.to_string_lossy().split(":[").next().unwrap_or_default().to_owned())
        .collect();
    links.sort();
    links
}

/// Nothing more than before is open; clients' sockets are closed soon after their clients have gone.
fn assert_eventually_open(volume: &Volume, before: &[String]) {
    let end = Instant::now() + PATIENCE;
    while open_files(volume).len() > before.len() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    let now = open_files(volume);
    assert!(now.len() <= before.len(), "{before:?}\n{now:?}");
}

fn steps(record: &Value) -> Vec<&str> {
    record["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect()
}

/// The record of a volume that ended in order after `restarts` restarts.
fn assert_orderly(record: &Value, restarts: usize) {
    assert_eq!(record["event"], "teardown", "{record}");
    assert_eq!(record["keys_wiped"], true, "{record}");
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    assert_eq!(record["backing"]["ended"], "removed", "{record}");
    let steps = steps(record);
    let count = |name: &str| steps.iter().filter(|step| **step == name).count();
    assert_eq!((count("handing-over"), count("resumed")), (restarts, restarts), "{steps:?}");
    for once in ["unlocked", "serving", "stopping", "drained", "keys-wiped", "grant-released"] {
        assert_eq!(count(once), 1, "{once}: {steps:?}");
    }
}

fn restart_under(load: &mut Load, volume: &mut Volume) {
    load.keep_up();
    std::thread::sleep(Duration::from_millis(200));
    reexecute(volume);
}

/// Ten restarts while fio writes and verifies.
fn ten_times_under_load(listen: &str, jobs: usize, backing: &str, meanwhile: impl FnOnce(&Lab, &Volume)) {
    let lab = Lab::new();
    let listen = listen.replace("LAB", lab.path("").to_str().unwrap());
    let backing = backing.replace("LAB", lab.path("").to_str().unwrap());
    let args =
        ["--size=256M", "--restartable", "--watch-key=off", "--listen", &listen, "--backing", &backing];
    let mut volume = Volume::start(&lab, &args);
    // The server is all there once it has served somebody.
    assert_succeeds(&finish(size(&volume.uri)));
    let before = open_files(&volume);
    let mut load = Load::start(&lab, &volume.uri, jobs, 256);
    restart_under(&mut load, &mut volume);
    meanwhile(&lab, &volume);
    for _ in 1..10 {
        restart_under(&mut load, &mut volume);
    }
    let runs = load.assert_unharmed();
    assert_eventually_open(&volume, &before);
    let volume_id = volume.serving["volume"].clone();
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_orderly(&record, 10);
    // Each job of fio's asks for the size in a connection of its own.
    assert_eq!(
        (&record["volume"], &record["connections"]),
        (&volume_id, &(1 + 2 * jobs * runs).into()),
        "{record}"
    );
    assert!(record["bytes_written"].as_u64() > Some(16 << 20), "{record}");
    assert_eq!(lab.journals(), Vec::<PathBuf>::new());
    let left: Vec<_> = std::fs::read_dir(lab.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    let expected: BTreeSet<_> = ["run", "state", "fio"].map(Into::into).into();
    assert_eq!(BTreeSet::from_iter(left), expected);
}

#[test]
fn ten_times_under_load_on_a_unix_socket() {
    ten_times_under_load("unix:LAB/nbd", 1, "memory", |_, _| {});
}

#[test]
fn ten_times_under_load_with_four_clients_on_tcp() {
    ten_times_under_load("tcp:127.0.0.1:0", 4, "LAB", |_, _| {});
}

#[test]
fn ten_times_under_load_with_four_clients_and_a_named_file() {
    ten_times_under_load("unix:LAB/nbd", 4, "LAB/file", |_, _| {});
}

fn size(uri: &str) -> Command {
    let mut nbdinfo = tool("nbdinfo");
    nbdinfo.args(["--size", uri]);
    nbdinfo
}

fn key_of(volume: &Volume) -> &str {
    volume.serving["kms_key"].as_str().unwrap()
}

fn calls(lab: &Lab, operation: &str) -> usize {
    lab.events().iter().filter(|event| event["eventName"] == operation).count()
}

/// No restart asks the KMS anything, so it does not matter that the key is disabled and about to be deleted.
#[test]
fn ten_times_under_load_with_a_key_that_is_disabled() {
    ten_times_under_load("tcp:127.0.0.1:0", 1, "LAB/file", |lab, volume| {
        for order in [vec!["kms", "disable"], vec!["kms", "schedule-deletion"]] {
            assert_succeeds(&finish(lab.sealblk(order.iter().chain(&[key_of(volume)]))));
        }
        assert_eq!(calls(lab, "Decrypt"), 1, "{:?}", lab.events());
    });
}

/// A copy of the program that a test may replace. Not made by this process: what another test starts meanwhile would
/// have the copy open for writing too, until it is executed itself, and until then nobody may execute the copy.
fn copy_program(to: &Path) {
    let mut copy = tool("cp");
    copy.arg(env!("CARGO_BIN_EXE_sealblk")).arg(to);
    assert_succeeds(&finish(copy));
}

fn installed(lab: &Lab) -> PathBuf {
    let program = lab.path("bin");
    copy_program(&program);
    program
}

/// `sealblk run ARGS` by another program file.
fn run_by(lab: &Lab, program: &Path, args: &[&str]) -> Volume {
    let like = lab.sealblk(["run"]);
    let mut command = Command::new(program);
    command.args(["run", "--json", "--watch-key=off"]).args(args).current_dir(lab.path(""));
    for (name, value) in like.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Volume::spawn(command)
}

fn program_of(volume: &Volume) -> PathBuf {
    std::fs::read_link(format!("/proc/{}/exe", volume.child.id())).unwrap()
}

#[test]
fn an_upgrade_takes_the_new_file_of_the_old_name() {
    let lab = Lab::new();
    let program = installed(&lab);
    let mut volume = run_by(&lab, &program, &["--size=64M", "--restartable", "--backing=memory"]);
    let load = Load::start(&lab, &volume.uri, 1, 64);
    for _ in 0..2 {
        let new = lab.path("bin.new");
        copy_program(&new);
        std::fs::rename(new, &program).unwrap();
        assert_ne!(program_of(&volume), program, "the old file is still run, without a name");
        reexecute(&mut volume);
        assert_eq!(program_of(&volume), program);
    }
    load.assert_unharmed();
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_orderly(&record, 2);
}

/// What cannot be executed leaves the volume where it was, any number of times.
fn stays(what: &str, break_it: impl Fn(&Path)) {
    let lab = Lab::new();
    let program = installed(&lab);
    let socket = lab.path("nbd");
    let listen = format!("--listen=unix:{}", socket.display());
    let args = ["--size=64M", "--restartable", "--backing=memory", &listen];
    let mut volume = run_by(&lab, &program, &args);
    let load = Load::start(&lab, &volume.uri, 2, 64);
    break_it(&program);
    let running = program_of(&volume);
    for _ in 0..3 {
        volume.signal(SIGUSR2);
        std::thread::sleep(Duration::from_millis(200));
    }
    load.assert_unharmed();
    assert_eq!(program_of(&volume), running, "{what}");
    // It is as restartable as before.
    let new = lab.path("bin.new");
    copy_program(&new);
    std::fs::rename(new, &program).unwrap();
    reexecute(&mut volume);
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_eq!(record["grant"]["ended"], "retired", "{what}: {record}");
    assert!(!socket.exists());
}

#[test]
fn a_program_that_is_gone_leaves_the_volume_where_it_was() {
    stays("gone", |program| std::fs::remove_file(program).unwrap());
}

#[test]
fn a_program_that_may_not_be_executed_leaves_the_volume_where_it_was() {
    stays("mode", |program| {
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o600)).unwrap();
    });
}

#[test]
fn a_program_of_no_known_format_leaves_the_volume_where_it_was() {
    stays("format", |program| {
        let new = program.with_extension("new");
        std::fs::write(&new, "\x7fELF and nothing more").unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(new, program).unwrap();
    });
}

#[test]
fn a_program_that_is_no_successor_leaves_the_volume_where_it_was() {
    for script in ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho 4711\n"] {
        stays(script, |program| {
            let new = program.with_extension("new");
            std::fs::write(&new, script).unwrap();
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::rename(new, program).unwrap();
        });
    }
}

/// A volume with a log, its arguments, and a client that stays.
fn logged(lab: &Lab, args: &[String]) -> (Volume, PathBuf) {
    let log = lab.path("log");
    let first = ["run", "--json", "--size=64M", "--backing=memory", "--watch-key=off", "--restartable"];
    let mut command = lab.sealblk(first.map(String::from).iter().chain(args));
    command.stderr(std::fs::File::create(&log).unwrap());
    (Volume::spawn(command), log)
}

fn await_said(log: &Path, words: &[&str]) {
    let said = || std::fs::read_to_string(log).unwrap();
    let end = Instant::now() + PATIENCE;
    while !words.iter().all(|word| said().contains(word)) {
        assert!(Instant::now() < end, "{words:?} are missing from {}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A certificate has been renewed, its key not yet: the process that serves goes on, and so it does when a restart
/// falls into that time.
#[test]
fn a_key_that_does_not_fit_its_certificate_leaves_the_volume_where_it_was() {
    let lab = Lab::new();
    let good = Certificates::new(&lab).good;
    let [cert, key] = ["cert", "key"].map(|part| good.join(format!("server-{part}.pem")));
    let flags = [format!("--tls-cert={}", cert.display()), format!("--tls-key={}", key.display())];
    let (mut volume, log) = logged(&lab, &[&flags[..], &["--tls=on".into()]].concat());
    let mut client = Client::ready_in(&volume.socket(), Mode::Structured);
    client.write(0, b"before");
    let fitting = std::fs::read(&key).unwrap();
    std::fs::copy(good.join("client-key.pem"), &key).unwrap();
    volume.signal(SIGUSR2);
    await_said(&log, &["this process goes on", "server-key.pem"]);
    assert_eq!(client.read(0, 6), b"before");
    std::fs::write(&key, fitting).unwrap();
    reexecute(&mut volume);
    assert_eq!(client.read(0, 6), b"before");
    client.part();
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_orderly(&record, 1);
}

/// The file is looked at anew by a successor, and an address that others reach is not served in the clear by it.
#[test]
fn a_successor_that_requires_tls_no_more_does_not_get_an_open_address() {
    let lab = Lab::new();
    let good = Certificates::new(&lab).good;
    let config = lab.path("config.toml");
    let configure = |mode: &str| {
        let text = format!(
            "[tls]\nmode = {mode:?}\ncert = '{0}/server-cert.pem'\nkey = '{0}/server-key.pem'\n",
            good.display()
        );
        std::fs::write(&config, text).unwrap();
        std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    configure("require");
    let args = [format!("--config={}", config.display()), "--listen=tcp:0.0.0.0:0".into()];
    let (mut volume, log) = logged(&lab, &args);
    for mode in ["on", "off"] {
        configure(mode);
        volume.signal(SIGUSR2);
        await_said(&log, &["this process goes on", "require TLS again"]);
        std::fs::write(&log, "").unwrap();
        assert!(volume.child.try_wait().unwrap().is_none());
    }
    configure("require");
    reexecute(&mut volume);
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_orderly(&record, 1);
}

/// A request to the control socket: status and body of the answer.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}")))
}

#[test]
fn without_the_flag_nothing_is_handed_over() {
    let lab = Lab::new();
    let control = lab.path("control");
    let volume = Volume::start(
        &lab,
        &["--size=64M", "--backing=memory", "--control", &format!("unix:{}", control.display())],
    );
    let load = Load::start(&lab, &volume.uri, 1, 64);
    for signal in [SIGUSR1, SIGUSR2] {
        volume.signal(signal);
    }
    let (status, answer) = ask(&control, "POST", "/v1/volume/restart", "{}");
    assert_eq!((status, &answer["error"]["exit_code"]), (409, &2.into()), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("--restartable"), "{answer}");
    load.assert_unharmed();
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_orderly(&record, 0);
}

/// Without a service manager there is nobody to leave the volume to.
#[test]
fn sigusr1_without_a_service_manager_changes_nothing() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size=64M", "--backing=memory", "--restartable"]);
    let load = Load::start(&lab, &volume.uri, 1, 64);
    for _ in 0..3 {
        volume.signal(SIGUSR1);
        std::thread::sleep(Duration::from_millis(100));
    }
    load.assert_unharmed();
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_orderly(&record, 0);
}

#[test]
fn a_captive_command_and_restartable_do_not_go_together() {
    let lab = Lab::new();
    assert_fails(&lab.run(&["--size=1M", "--restartable"], "true"), 2, &["--restartable", "COMMAND"]);
}

/// As after a cleaner of temporary files: the volume is worth more than its control socket.
#[test]
fn a_control_socket_without_its_file_does_not_cost_the_volume() {
    let lab = Lab::new();
    let control = lab.path("control");
    let listen = format!("--control=unix:{}", control.display());
    let args = ["--size=64M", "--backing=memory", "--restartable", "--watch-key=off", &listen];
    let mut volume = Volume::start(&lab, &args);
    qemu_io(&volume.uri, &["write -P 0x66 0 1M"]);
    std::fs::remove_file(&control).unwrap();
    for _ in 0..2 {
        reexecute(&mut volume);
        qemu_io(&volume.uri, &["read -P 0x66 0 1M"]);
    }
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_orderly(&record, 2);
}

/// Signals that come faster than restarts are done: none kills the volume.
#[test]
fn signals_in_quick_succession_harm_nobody() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size=64M", "--backing=memory", "--restartable"]);
    let load = Load::start(&lab, &volume.uri, 1, 64);
    for _ in 0..40 {
        volume.signal(SIGUSR2);
        std::thread::sleep(Duration::from_millis(7));
    }
    load.assert_unharmed();
    volume.signal(SIGUSR2);
    let (status, record) = volume.stop();
    assert!(status.success(), "{status}: {record}");
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    assert!(steps(&record).iter().filter(|step| **step == "resumed").count() > 1, "{record}");
}

/// Clients that come in all stages: none is refused, none is cut.
#[test]
fn clients_that_connect_meanwhile_wait() {
    let lab = Lab::new();
    let mut volume = Volume::start(&lab, &["--size=64M", "--backing=memory", "--restartable"]);
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (done, uri) = (done.clone(), volume.uri.clone());
            std::thread::spawn(move || {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    let output = finish(size(&uri));
                    assert_succeeds(&output);
                    assert_eq!(text(&output.stdout).trim(), "67108864");
                    count += 1;
                }
                count
            })
        })
        .collect();
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(100));
        reexecute(&mut volume);
    }
    done.store(true, Ordering::Relaxed);
    let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    let (status, record) = volume.stop();
    assert!(status.success());
    assert!(served > 0 && record["connections"] == served, "{served}: {record}");
    assert_orderly(&record, 10);
}

/// One client does nothing, one has not chosen its export yet: the one goes on, the other is let finish first.
#[test]
fn an_idle_client_and_one_in_its_handshake_go_on() {
    let lab = Lab::new();
    let mut volume = Volume::start(&lab, &["--size=64M", "--backing=memory", "--restartable"]);
    let script = "h.pwrite(b'x' * 4096, 8192); print('ready', flush=True); input(); \
                  assert h.pread(4096, 8192) == bytearray(b'x' * 4096); h.shutdown(); print('done')";
    let mut idle = tool("nbdsh")
        .env("PATH", "/usr/bin:/bin")
        .args(["-u", &volume.uri, "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(idle.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let mut haggling = UnixStream::connect(volume.socket()).unwrap();
    haggling.read_exact(&mut [0; 18]).unwrap();
    volume.signal(SIGUSR2);
    std::thread::sleep(Duration::from_millis(300));
    // Fixed newstyle, no zeroes; then NBD_OPT_EXPORT_NAME with the empty name: size and flags are the answer.
    haggling.write_all(&3u32.to_be_bytes()).unwrap();
    haggling.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    let mut export = [0; 10];
    haggling.read_exact(&mut export).unwrap();
    assert_eq!(export[..8], (64u64 << 20).to_be_bytes());
    await_successor(&mut volume);
    // NBD_CMD_READ of the idle client's bytes, by the other one, from the successor.
    let request = [&b"\x25\x60\x95\x13\0\0\0\0cookie!!"[..], &8192u64.to_be_bytes(), &4096u32.to_be_bytes()];
    haggling.write_all(&request.concat()).unwrap();
    let mut reply = vec![0; 16 + 4096];
    haggling.read_exact(&mut reply).unwrap();
    assert_eq!(reply, [&b"\x67\x44\x66\x98\0\0\0\0cookie!!"[..], &[b'x'; 4096]].concat());
    drop(haggling);
    idle.stdin.take().unwrap().write_all(b"\n").unwrap();
    line.clear();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "done\n");
    assert!(wait(&mut idle).success());
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_orderly(&record, 1);
    assert_eq!(record["connections"], 2);
}

/// A volume under a service manager with a descriptor store, which starts it again.
struct Service {
    manager: Child,
    log: PathBuf,
    record: PathBuf,
    socket: PathBuf,
}

impl Service {
    fn start(lab: &Lab, args: &[&str]) -> Self {
        let [log, record, socket] = ["log", "record", "nbd"].map(|name| lab.path(name));
        let like = lab.sealblk(["run", "--restartable", "--watch-key=off"]);
        let mut command = tool("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/scripts/manager.py")).arg(&log);
        command.arg(like.get_program()).args(like.get_args()).args(args).current_dir(lab.path(""));
        command.arg("--record").arg(&record).arg(format!("--listen=unix:{}", socket.display()));
        for (name, value) in like.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let manager = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let service = Self { manager, log, record, socket };
        service.await_line("ready", 1);
        service
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    fn lines(&self, word: &str) -> Vec<String> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter(|line| line.split(' ').next() == Some(word)).map(Into::into).collect()
    }

    fn await_line(&self, word: &str, count: usize) {
        eventually(&format!("{word} in the manager's log"), || self.lines(word).len() >= count);
        assert_eq!(self.lines(word).len(), count, "{:?}", std::fs::read_to_string(&self.log));
    }

    fn signal(&mut self, signal: i32) {
        writeln!(self.manager.stdin.as_mut().unwrap(), "{signal}").unwrap();
    }

    /// A signal, and the successor that serves after it.
    fn replace(&mut self, signal: i32) {
        let before = self.lines("ready").len();
        self.signal(signal);
        self.await_line("ready", before + 1);
    }

    /// SIGTERM, the end and the record.
    fn stop(mut self) -> Value {
        self.signal(15);
        assert!(wait(&mut self.manager).success());
        let exits = self.lines("exit");
        // Nothing is left in the store.
        assert_eq!(exits.last().map(|line| line.trim()), Some("exit 0"), "{exits:?}");
        assert!(!self.socket.exists());
        serde_json::from_str(&std::fs::read_to_string(&self.record).unwrap()).unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // The manager kills its process when its orders end.
        drop(self.manager.stdin.take());
        let _ = self.manager.wait();
    }
}

#[test]
fn a_service_manager_hands_the_volume_on_and_clients_do_not_notice() {
    let lab = Lab::new();
    let mut service = Service::start(&lab, &["--size=256M", "--backing=memory"]);
    let load = Load::start(&lab, &service.uri(), 2, 256);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(200));
        service.replace(SIGUSR1);
        service.replace(SIGUSR2);
    }
    load.assert_unharmed();
    assert_eq!(calls(&lab, "Decrypt"), 1);
    assert_orderly(&service.stop(), 10);
    assert_eq!(lab.journals(), Vec::<PathBuf>::new());
}

/// What a client wrote is read from the successor of a process that was killed, which asked no KMS.
#[test]
fn after_a_crash_the_successor_serves_the_same_data() {
    let lab = Lab::new();
    let control = format!("--control=unix:{}", lab.path("control").display());
    let mut service = Service::start(
        &lab,
        &["--size=64M", "--backing=LAB", &control]
            .map(|arg| if arg == "--backing=LAB" { "--backing=file" } else { arg }),
    );
    let uri = service.uri();
    let io = |command: &str| {
        let mut io = tool("qemu-io");
        io.args(["-f", "raw", &uri, "-c", command]);
        assert_succeeds(&finish(io));
    };
    io("write -P 0x5a 1M 3M");
    assert_succeeds(&finish(lab.sealblk(["kms", "disable", "alias/sealblk"])));
    let events = lab.events().len();
    for pattern in 1..4 {
        // One client is connected when the process dies.
        let attached = UnixStream::connect(&service.socket).unwrap();
        service.replace(9);
        drop(attached);
        io("read -P 0x5a 1M 3M");
        io(&format!("write -P {pattern} 8M 1M"));
        io(&format!("read -P {pattern} 8M 1M"));
    }
    assert_eq!(lab.events().len(), events, "a successor asks no KMS");
    let (status, told) = ask(&lab.path("control"), "GET", "/v1/volume", "");
    assert_eq!((status, &told["size"]), (200, &(64 << 20).into()), "{told}");
    assert_succeeds(&finish(lab.sealblk(["kms", "enable", "alias/sealblk"])));
    let record = service.stop();
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    assert_eq!(steps(&record).iter().filter(|step| **step == "resumed").count(), 3, "{record}");
    assert_eq!(lab.journals(), Vec::<PathBuf>::new());
    assert!(!lab.path("file").exists() && !lab.path("control").exists());
}

/// As where a process dies in a rewrap, after it has replaced its files and before the manager was given their locks.
#[test]
fn after_a_crash_the_successor_has_the_files_that_have_the_names() {
    let lab = Lab::new();
    let mut service = Service::start(&lab, &["--size=64M", "--durable=volume.envelope", "--backing=data"]);
    let envelope = lab.path("volume.envelope");
    let files = [lab.journals(), vec![envelope.clone()]].concat();
    assert_eq!(files.len(), 2, "{files:?}");
    for file in &files {
        let copy = lab.path("copy");
        std::fs::copy(file, &copy).unwrap();
        std::fs::rename(copy, file).unwrap();
    }
    service.replace(9);
    // Whoever sweeps now leaves the volume alone, and nobody else opens it.
    assert_succeeds(&finish(lab.sealblk(["gc"])));
    assert_eq!(lab.journals(), files[..1]);
    let opened = ["run", "--envelope=volume.envelope", "--backing=data"];
    assert_fails(&finish(lab.sealblk(opened)), 7, &["volume.envelope"]);
    let record = service.stop();
    assert_eq!(record["keys_wiped"], true, "{record}");
    assert_eq!(lab.journals(), Vec::<PathBuf>::new());
}

/// `sealblk run` as a successor of nobody.
fn inherit(lab: &Lab, script: &str) -> std::process::Output {
    let like = lab.sealblk(["run", "--restartable", "--size=1M", "--backing=memory", "--watch-key=off"]);
    let mut command = lab.sealblk::<&str>([]);
    let program = command.get_program().to_owned();
    let environment: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    command = tool("bash");
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.arg("-c").arg(format!("{script} exec \"$@\"")).arg("bash").arg(program).args(like.get_args());
    finish(command)
}

#[test]
fn what_cannot_be_inherited_is_refused() {
    let lab = Lab::new();
    for (script, code, words) in [
        ("export SEALBLK_INHERITED=\"$$;sealblk-state=77\";", 1, &["Bad file descriptor"][..]),
        ("export SEALBLK_INHERITED=\"$$;sealblk-state=1\";", 1, &["sealblk-state has descriptor 1"]),
        ("export SEALBLK_INHERITED=\"$$;sealblk-state=x\";", 1, &["SEALBLK_INHERITED cannot be read"]),
        ("export SEALBLK_INHERITED=nonsense;", 1, &["SEALBLK_INHERITED cannot be read"]),
        ("exec 9</dev/null; export SEALBLK_INHERITED=\"$$;sealblk-state=9\";", 2, &["not secret memory"]),
        (
            "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=sealblk-state; exec 3</dev/null;",
            2,
            &["not secret memory"],
        ),
        (
            "export LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=sealblk-state:a:b; exec 3</dev/null;",
            8,
            &["descriptor 4", "LISTEN_FDS=3", "Bad file"],
        ),
    ] {
        let output = inherit(&lab, script);
        assert_fails(&output, code, words);
    }
    assert_eq!(lab.journals(), Vec::<PathBuf>::new());
}

/// qemu-io's commands on a volume, which all succeed.
fn qemu_io(uri: &str, commands: &[&str]) {
    let mut io = tool("qemu-io");
    io.args(["-f", "raw", uri]);
    for command in commands {
        io.args(["-c", command]);
    }
    assert_succeeds(&finish(io));
}

/// Restart, rewrap, restart; then the envelope opens the volume under its new key, and that goes over, too.
fn an_envelope_goes_along(lab: &Lab, first: &[&str], again: &[&str]) {
    let control = lab.path("control");
    let listen = format!("--control=unix:{}", control.display());
    let mut volume = Volume::start(lab, &[first, &["--restartable", &listen]].concat());
    qemu_io(&volume.uri, &["write -P 0x33 0 5M"]);
    reexecute(&mut volume);
    assert_succeeds(&finish(lab.sealblk(["kms", "create", "--alias", "alias/next"])));
    let (status, answer) = ask(&control, "POST", "/v1/volume/rewrap", "{\"to_key\":\"alias/next\"}");
    assert_eq!(status, 200, "{answer}");
    assert_ne!(&answer["kms_key"], &volume.serving["kms_key"]);
    // By the control socket this time.
    let (status, restarting) = ask(&control, "POST", "/v1/volume/restart", "{}");
    assert_eq!((status, &restarting["restarting"]), (200, &true.into()), "{restarting}");
    await_successor(&mut volume);
    qemu_io(&volume.uri, &["read -P 0x33 0 5M", "write -P 0x44 5M 1M"]);
    let (_, told) = ask(&control, "GET", "/v1/volume", "");
    assert_eq!(told["kms_key"], answer["kms_key"]);
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_eq!((&record["kms_key"], &record["keys_wiped"]), (&answer["kms_key"], &true.into()), "{record}");
    let mut volume = Volume::start(lab, &[again, &["--restartable"]].concat());
    assert_eq!(volume.serving["kms_key"], answer["kms_key"]);
    reexecute(&mut volume);
    if again.contains(&"--backing=data") {
        qemu_io(&volume.uri, &["read -P 0x33 0 5M", "read -P 0x44 5M 1M"]);
    }
    assert!(volume.stop().0.success());
    assert_eq!(lab.journals(), Vec::<PathBuf>::new());
}

#[test]
fn a_durable_volume_goes_over_is_rewrapped_and_opens_again() {
    let lab = Lab::new();
    an_envelope_goes_along(
        &lab,
        &["--size=64M", "--durable=volume.envelope", "--backing=data"],
        &["--envelope=volume.envelope", "--backing=data"],
    );
}

#[test]
fn a_provisioned_volume_goes_over_and_is_rewrapped() {
    let lab = Lab::new();
    assert_succeeds(&finish(lab.sealblk(["provision", "--size", "64M", "--output", "volume.envelope"])));
    let opened = ["--envelope=volume.envelope", "--backing=memory"];
    an_envelope_goes_along(&lab, &opened, &opened);
}

/// With the drop-in for restarts and without.
#[test]
fn the_units_are_what_systemd_understands() {
    let lab = Lab::new();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    for unit in ["sealblk-run@.service", "sealblk-open@.service", "sealblk-run@.socket"] {
        let content = std::fs::read_to_string(units.join(unit)).unwrap();
        let content = content.replace("/usr/local/bin/sealblk", env!("CARGO_BIN_EXE_sealblk"));
        std::fs::write(lab.path(unit), content).unwrap();
    }
    let verify = || {
        let mut verify = tool("systemd-analyze");
        verify.env("SYSTEMD_UNIT_PATH", format!("{}:", lab.path("").display())).arg("verify");
        verify.args(
            ["sealblk-run@x.service", "sealblk-open@x.service", "sealblk-run@x.socket"]
                .map(|unit| lab.path(unit)),
        );
        let output = finish(verify);
        assert_succeeds(&output);
        assert_eq!(text(&output.stderr), "");
    };
    verify();
    for unit in ["sealblk-run@.service.d", "sealblk-open@.service.d"] {
        std::fs::create_dir(lab.path(unit)).unwrap();
        std::fs::copy(units.join("restartable.conf"), lab.path(unit).join("restartable.conf")).unwrap();
    }
    verify();
}

//! Where the data key stands while a volume is served, and that it stands nowhere afterwards.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{BufRead, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

use base64::Engine;
use sealblk::xts::Implementation;

use crate::memory::{Needle, Schedule, assert_none, find_schedules, find_xts_keys, scan};
use crate::remote_kms::{RemoteKms, run_patiently_on};
use crate::support::{Lab, Volume, assert_succeeds, entries, eventually, finish, text, tool, wait};

/// Passes everything on between a client and a server, and keeps what the server says.
struct Recorder {
    address: String,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    fn before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let recorded = heard.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(upstream) = TcpStream::connect(&server) else { continue };
                let (to, from) = (upstream.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || pass_on(from, to, |_| {}));
                let recorded = recorded.clone();
                std::thread::spawn(move || {
                    pass_on(upstream, client, |bytes| recorded.lock().unwrap().extend_from_slice(bytes));
                });
            }
        });
        Self { address, heard }
    }

    /// What an answer said in this field.
    fn field(&self, name: &str) -> String {
        let heard = String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned();
        let after = heard.split(&format!("\"{name}\":\"")).nth(1).expect("an answer with the field");
        after.split('"').next().unwrap().to_owned()
    }

    /// The data key in the answer to Decrypt.
    fn data_key(&self) -> Vec<u8> {
        base64::engine::general_purpose::STANDARD.decode(self.field("Plaintext")).unwrap()
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, mut keep: impl FnMut(&[u8])) {
    let mut buffer = [0; 16384];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        keep(&buffer[..count]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// Reads and writes, so that every worker's stack and every context has seen work.
fn exercise(uri: &str) {
    let mut fio = tool("fio");
    fio.args([
        "--name=v",
        "--ioengine=nbd",
        "--rw=randrw",
        "--bsrange=512-256k",
        "--size=32M",
        "--iodepth=32",
    ])
    .args(["--verify=crc32c", "--verify_state_save=0", &format!("--uri={uri}")]);
    assert_succeeds(&finish(fio));
}

/// While a volume is served: `key` stands nowhere in one piece, and its halves only where a whole key schedule
/// begins, which is the cipher's context.
fn assert_confined(pid: u32, key: &[u8]) {
    let [data, tweak] = [&key[..32], &key[32..]];
    let schedules = find_schedules(pid);
    let contexts: HashSet<u64> = schedules.iter().map(|(address, _)| *address).collect();
    assert_eq!(find_xts_keys(pid), HashSet::from([key.to_vec()]), "the scan misses the cipher");
    assert_none(&scan(pid, &Needle::raw_and_base64("data key", key)));
    let halves = [Needle::raw_and_base64("data half", data), Needle::raw_and_base64("tweak half", tweak)];
    let mut outside = scan(pid, halves.as_flattened());
    outside.retain(|hit| !contexts.contains(&hit.address));
    assert_none(&outside);
}

/// After a teardown, in a process that lives on: neither key nor round key of either half stands anywhere.
fn assert_gone(pid: u32, key: &[u8]) {
    let mut needles: Vec<Needle> = Needle::raw_and_base64("data key", key).into();
    for (name, half) in [("data half", &key[..32]), ("tweak half", &key[32..])] {
        needles.extend(Needle::raw_and_base64(name, half));
        needles.extend(Schedule::expand(half).round_keys(name));
    }
    assert_none(&scan(pid, &needles));
}

/// 64 bytes that can stand in an environment variable.
fn canary() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    bytes.iter().map(|byte| byte | 1).collect()
}

/// The same scan finds what was planted: raw and as base64.
fn assert_finds(pid: u32, canary: &[u8]) {
    let needles = Needle::raw_and_base64("canary", canary);
    let hits = scan(pid, &needles);
    for needle in &needles {
        assert!(hits.iter().any(|hit| hit.name == needle.name), "{} is not found", needle.name);
    }
}

fn plant(command: &mut std::process::Command, canary: &[u8]) {
    let text = base64::engine::general_purpose::STANDARD.encode(canary);
    command.env("SEALBLK_TEST_CANARY", OsStr::from_bytes(canary)).env("SEALBLK_TEST_CANARY_TEXT", text);
}

/// Over the AWS provider: the test knows the key because it listens to the wire; the process lives on after its
/// teardown because the KMS does not answer RetireGrant.
#[test]
fn through_the_aws_provider() {
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    let recorder = Recorder::before(server.address.clone());
    let canary = canary();
    let mut command = run_patiently_on(&lab, &recorder.address, &["--json", "--size", "64M"]);
    plant(&mut command, &canary);
    let mut volume = Volume::spawn(command);
    let key = recorder.data_key();
    assert_eq!(key.len(), 64);
    exercise(&volume.uri);
    let pid = volume.child.id();
    assert_confined(pid, &key);
    assert_finds(pid, &canary);

    server.pause();
    volume.signal(15);
    eventually("the keys are wiped", || find_xts_keys(pid).is_empty());
    assert_gone(pid, &key);
    assert_finds(pid, &canary);
    assert!(volume.child.try_wait().unwrap().is_none(), "the process was to live on");
    server.resume();
    assert!(wait(&mut volume.child).success());
}

#[test]
fn no_log_at_any_level_holds_a_secret() {
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    let recorder = Recorder::before(server.address.clone());
    let args = ["--size", "1M", "--log", "trace", "--", "true"];
    let mut command = run_patiently_on(&lab, &recorder.address, &args);
    // The SDK's own switch for printing bodies, and the usual one for printing everything.
    command.env("LOG_SENSITIVE_BODIES", "true").env("RUST_LOG", "trace").env("SEALBLK_LOG", "trace");
    let output = finish(command);
    assert_succeeds(&output);
    let log = text(&output.stderr);
    assert!(log.contains("unlocked"), "{log}");
    for secret in ["Plaintext", "CiphertextBlob", "GrantToken"].map(|field| recorder.field(field)) {
        // Not even a piece of it.
        assert!(!log.contains(&secret[..24]), "{log}");
    }
}

/// With the embedded KMS nobody outside sees the key: it is learnt from the cipher's contexts themselves. The
/// process lives on because its record goes to a pipe that is full.
fn through_the_embedded_kms(cipher: &str, restartable: bool) {
    let lab = Lab::new();
    let pipe = lab.path("record");
    assert_succeeds(&finish({
        let mut mkfifo = tool("mkfifo");
        mkfifo.arg(&pipe);
        mkfifo
    }));
    let mut full = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    full.write_all(&[b'\n'; 65536]).unwrap();
    let canary = canary();
    let mut command = lab.sealblk(["run", "--json", "--size", "64M", "--cipher", cipher, "--record"]);
    command.arg(&pipe);
    if restartable {
        command.arg("--restartable");
    }
    plant(&mut command, &canary);
    let mut volume = Volume::spawn(command);
    exercise(&volume.uri);
    if restartable {
        // SIGUSR2; the successor says that it serves.
        volume.signal(12);
        volume.stdout.read_line(&mut String::new()).unwrap();
        exercise(&volume.uri);
    }
    let pid = volume.child.id();
    let found = find_xts_keys(pid);
    let [key] = &found.iter().collect::<Vec<_>>()[..] else {
        panic!("{} XTS keys instead of one", found.len())
    };
    assert_confined(pid, key);
    for master in entries(&lab.state().join("kms/materials")) {
        // The embedded KMS held its master key for the length of a call, in this very process.
        let master = std::fs::read(master).unwrap();
        let mut needles: Vec<Needle> = Needle::raw_and_base64("master key", &master).into();
        needles.extend(Schedule::expand(&master).round_keys("master key"));
        assert_none(&scan(pid, &needles));
    }
    volume.signal(15);
    eventually("the keys are wiped", || find_xts_keys(pid).is_empty());
    assert_gone(pid, key);
    assert_finds(pid, &canary);
    assert!(volume.child.try_wait().unwrap().is_none(), "the process was to live on");
    full.read_exact(&mut [0; 65536]).unwrap();
    assert!(wait(&mut volume.child).success());
}

#[test]
fn through_the_embedded_kms_with_every_cipher() {
    for cipher in Implementation::available() {
        through_the_embedded_kms(cipher.name(), false);
    }
}

/// The key is kept for successors, where nobody reads it; what a predecessor had in its memory went with that.
#[test]
fn through_the_embedded_kms_and_a_restart() {
    for cipher in Implementation::available() {
        through_the_embedded_kms(cipher.name(), true);
    }
}

/// No core dump, no tracing by the same user, and locked memory: as the kernel tells it.
fn assert_hardened(pid: u32) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let capabilities = u64::from_str_radix(&field("CapEff:"), 16).unwrap();
    let kilobytes: u64 = field("VmLck:").trim_end_matches(" kB").parse().unwrap();
    // CAP_IPC_LOCK is bit 14. Without it only the data key is locked, and that one is wiped by now.
    assert!(capabilities & 1 << 14 == 0 || kilobytes > 1000, "{kilobytes} kB are locked");
    // The files of a process that is not dumpable belong to root, whoever runs it (proc(5)).
    let owner = std::fs::metadata(format!("/proc/{pid}/status")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 0);
}

#[test]
fn every_process_with_keys_is_hardened() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "1M", "--backing", "memory"]);
    assert_hardened(volume.child.id());
    let (status, _) = volume.stop();
    assert!(status.success());
    assert_hardened(RemoteKms::start(&Lab::new()).pid());
}

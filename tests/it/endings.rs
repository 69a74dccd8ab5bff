//! How volumes end in order: by signals, with a command, with clients at work; and the record of it.

use std::io::BufRead;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::leavings::World;
use crate::peer::silent;
use crate::raw::{Client, READ, WRITE, header};
use crate::remote_kms::{RemoteKms, run_on_with_patience, with_credentials};
use crate::support::{Lab, Volume, assert_succeeds, eventually, finish, text, wait};

const SIZE: u64 = 64 << 20;
const ESHUTDOWN: u32 = 108;

#[test]
fn every_signal_ends_a_volume_with_its_record() {
    for (signal, name) in [(2, "SIGINT"), (15, "SIGTERM"), (1, "SIGHUP")] {
        let lab = Lab::new();
        let before = World::of(&lab);
        let volume = Volume::start(&lab, &["--size", "1M", "--context", "team=data"]);
        Client::ready(&volume.socket()).write(5, &[1; 1000]);
        let serving = volume.serving.clone();
        volume.signal(signal);
        let (status, record) = volume.end();
        assert_eq!(status.code(), Some(0), "{name}: {record}");
        assert_eq!(record["reason"], name);
        assert_eq!(record["volume"], serving["volume"]);
        is_complete(&record);
        assert_eq!(record["bytes_written"], 1000);
        assert_eq!(record["encryption_context"]["team"], "data");
        assert_eq!(World::of(&lab), before);
    }
}

/// All that somebody needs who must prove the erasure.
fn is_complete(record: &Value) {
    assert_eq!(record["event"], "teardown");
    assert_eq!(record["encryption_context"]["sealblk:volume"], record["volume"]);
    let steps: Vec<&str> =
        record["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    let order =
        ["started", "listening", "key-checked", "backing-opened", "provisioned", "unlocked", "serving"];
    let end = ["stopping", "drained", "keys-wiped", "grant-released", "backing-removed"];
    assert_eq!(steps, [&order[..], &end].concat());
    let times: Vec<&str> =
        record["steps"].as_array().unwrap().iter().map(|step| step["at"].as_str().unwrap()).collect();
    assert!(times.iter().all(|time| time.ends_with('Z') && time.contains('T')), "{times:?}");
    assert!(record["kms_key"].as_str().unwrap().starts_with("arn:aws:kms:"));
    assert_eq!(record["grant"]["id"].as_str().unwrap().len(), 64);
    let expected = json!({"cipher": "aes-xts-plain64", "sector_size": 4096, "size": 1 << 20, "provider": "local",
        "keys_wiped": true, "connections_cut": 0});
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&record[field], value, "{field}");
    }
    assert_eq!(
        (&record["grant"]["ended"], &record["backing"]["ended"]),
        (&"retired".into(), &"removed".into())
    );
}

#[test]
fn without_json_the_uri_and_the_record_are_the_output() {
    let lab = Lab::new();
    let mut command = lab.sealblk(["run", "--size", "1M"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let uri = lines.next().unwrap().unwrap();
    assert!(uri.starts_with("nbd+unix:///?socket="), "{uri}");
    let kill = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let record: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    is_complete(&record);
    assert!(lines.next().is_none() && wait(&mut child).success());
}

/// What a captive command prints, line by line.
fn next_line(volume: &mut Volume) -> String {
    let mut line = String::new();
    volume.stdout.read_line(&mut line).unwrap();
    line.trim().into()
}

#[test]
fn a_signal_is_passed_to_the_command() {
    for (signal, name) in [(2, "INT"), (15, "TERM"), (1, "HUP")] {
        let lab = Lab::new();
        let script = format!("trap 'echo {name}; exit 7' {name}; echo ready; while :; do sleep 0.1; done");
        let mut volume = Volume::start(&lab, &["--size", "1M", "--", "sh", "-c", &script]);
        assert_eq!(next_line(&mut volume), "ready");
        volume.signal(signal);
        assert_eq!(next_line(&mut volume), name);
        let (status, record) = volume.end();
        assert_eq!(status.code(), Some(7), "the command decides: {record}");
        is_complete(&record);
    }
}

#[test]
fn a_second_signal_kills_a_command_that_ignores_the_first() {
    let lab = Lab::new();
    let script = "trap 'echo ignored' TERM; echo ready; while :; do sleep 0.1; done";
    let mut volume = Volume::start(&lab, &["--size", "1M", "--", "sh", "-c", script]);
    assert_eq!(next_line(&mut volume), "ready");
    volume.signal(15);
    assert_eq!(next_line(&mut volume), "ignored");
    volume.signal(15);
    let (status, record) = volume.end();
    assert_eq!(status.code(), Some(128 + 9), "{record}");
    assert!(record["reason"].as_str().unwrap().contains("signal: 9"), "{record}");
    is_complete(&record);
}

#[test]
fn records_are_appended() {
    let lab = Lab::new();
    let file = lab.path("records");
    for number in 1..=3 {
        let output = lab.run(&["--size", "1M", "--record", file.to_str().unwrap()], "true");
        assert_succeeds(&output);
        assert!(!text(&output.stderr).contains("teardown"), "it is in the file instead");
        let lines = std::fs::read_to_string(&file).unwrap();
        let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len(), number);
        is_complete(&records[number - 1]);
        assert!(number == 1 || records[number - 1]["volume"] != records[number - 2]["volume"]);
    }
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

/// /dev/full takes every open and no byte: the record is not lost with the disk that was to hold it.
#[test]
fn a_record_that_finds_no_space() {
    let lab = Lab::new();
    let output = lab.run(&["--size", "1M", "--record", "/dev/full"], "true");
    crate::support::assert_fails(&output, 7, &["write record", "/dev/full", "No space left"]);
    let stderr = text(&output.stderr);
    let record = stderr.lines().find(|line| line.starts_with('{')).expect(&stderr);
    is_complete(&serde_json::from_str(record).unwrap());
}

/// Writes as fast as it can, whatever becomes of it.
fn flood(client: &Client) -> std::thread::JoinHandle<()> {
    let mut stream = client.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        use std::io::Write;
        let data = vec![7; 256 << 10];
        for cookie in 0.. {
            let request = header(0, WRITE, cookie, cookie * 4099 % (SIZE / 2), 256 << 10);
            if stream.write_all(&request).and_then(|()| stream.write_all(&data)).is_err() {
                return;
            }
        }
    })
}

#[test]
fn clients_at_work_are_answered_or_told() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "64M", "--backing", "memory"]);
    let mut client = Client::ready(&volume.socket());
    let writer = flood(&client);
    assert_eq!(client.reply().unwrap().0, 0);
    volume.signal(15);
    // Whole replies until the server hangs up, each for another request, and nothing but done or refused.
    let mut answered = std::collections::BTreeSet::new();
    while let Ok((error, cookie)) = client.reply() {
        assert!(error == 0 || error == ESHUTDOWN, "{error}");
        assert!(answered.insert(cookie), "answered twice");
    }
    writer.join().unwrap();
    let (status, record) = volume.end();
    assert!(status.success());
    assert_eq!((&record["keys_wiped"], &record["connections_cut"]), (&true.into(), &0.into()), "{record}");
    assert!(record["bytes_written"].as_u64() >= Some(256 << 10), "{record}");
}

/// The request is in the server's hands before the signal comes, so its answer must be whole.
#[test]
fn a_large_read_is_finished() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "64M", "--backing", "memory"]);
    let mut client = Client::ready(&volume.socket());
    let cookie = client.request(0, READ, 0, 48 << 20);
    assert_eq!(client.answer(cookie), 0);
    volume.signal(15);
    let mut data = vec![1; 48 << 20];
    std::io::Read::read_exact(&mut client.stream, &mut data).unwrap();
    assert!(data.iter().all(|byte| *byte == 0));
    let (status, record) = volume.end();
    assert!(status.success());
    assert_eq!(record["connections_cut"], 0, "{record}");
}

/// A start that waits for its KMS can be ended, and leaves nothing.
#[test]
fn a_signal_during_the_start() {
    let lab = Lab::new();
    let socket = format!("unix:{}", lab.path("socket").display());
    let mut patient = run_on_with_patience(&lab, &silent(), ["300", "3600"], &["--listen", &socket]);
    let before = World::of(&lab);
    let mut child = patient.stdout(Stdio::null()).spawn().unwrap();
    // A socket that was asked for is made before the KMS is asked.
    eventually("the start is under way", || World::of(&lab) != before);
    let kill = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    assert_eq!(wait(&mut child).code(), Some(128 + 15));
    assert_eq!(World::of(&lab), before);
}

/// A volume ends without its KMS, too: the record and the exit code say what is left, and it is retired later.
#[test]
fn a_kms_that_is_away_at_the_end() {
    let lab = Lab::new();
    drop(RemoteKms::start(&lab));
    // An address that no other test uses: its port must be free when the KMS comes back.
    let kms = RemoteKms::serve(&lab, "127.0.0.2:0");
    let before = World::of(&lab);
    let mut command = run_on_with_patience(&lab, &kms.address, ["5", "10"], &["--json"]);
    command.stdout(Stdio::piped());
    let volume = Volume::spawn(command);
    let address = kms.address.clone();
    kms.stop();
    // Neither a new connection nor its requests need the KMS.
    let mut client = Client::ready(&volume.socket());
    client.write(0, b"without a KMS");
    assert_eq!(client.read(0, 13), b"without a KMS");
    drop(client);
    let (status, record) = volume.stop();
    assert_eq!(status.code(), Some(1), "{record}");
    assert!(record["grant"]["failed"].as_str().unwrap().contains("RetireGrant"), "{record}");
    assert_eq!((&record["keys_wiped"], &record["backing"]["ended"]), (&true.into(), &"removed".into()));
    assert_eq!(lab.journals().len(), 1);

    let gc = || finish(with_credentials(&lab, lab.sealblk(["gc"])));
    let output = gc();
    crate::support::assert_fails(&output, 1, &["error:", "leftovers"]);
    assert!(text(&output.stdout).contains("left as it is"), "{}", text(&output.stdout));
    assert_eq!(lab.journals().len(), 1, "the journal stays until its grant is retired");

    let _kms = RemoteKms::serve(&lab, &address);
    let output = gc();
    assert_succeeds(&output);
    assert!(text(&output.stdout).contains("grant retired"), "{}", text(&output.stdout));
    assert_eq!(World::of(&lab), before);
}

/// Somebody's file that has taken the backing's name is not the volume's to remove.
#[test]
fn another_file_in_the_backings_place() {
    let lab = Lab::new();
    let backing = lab.path("backing");
    let volume = Volume::start(&lab, &["--size", "1M", "--backing", backing.to_str().unwrap()]);
    std::fs::remove_file(&backing).unwrap();
    std::fs::write(&backing, "precious").unwrap();
    let (status, record) = volume.stop();
    assert!(status.success(), "{record}");
    assert_eq!(std::fs::read(&backing).unwrap(), b"precious");
    assert!(lab.journals().is_empty());
}

/// Half a request at the end takes no reply from the whole ones before it.
#[test]
fn requests_in_flight_are_answered_beside_half_a_request() {
    const ZERO: u16 = 6;
    const NO_HOLE: u16 = 2;
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "16M", "--backing", "memory", "--cipher", "portable"]);
    let mut client = Client::ready(&volume.socket());
    let cookie = client.request(NO_HOLE, ZERO, 0, 16 << 20);
    client.send(&[&header(0, WRITE, 78, 0, 4096)[..], &[7; 100]].concat());
    volume.signal(15);
    assert_eq!(client.answer(cookie), 0);
    let (status, record) = volume.end();
    assert!(status.success());
    assert_eq!(record["connections_cut"], 0, "{record}");
}

//! The watch on a served volume's KMS key, seen through the control socket and by clients.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::control_socket::curl;
use crate::enveloped::{Pair, kms, pattern, read, write};
use crate::remote_kms::RemoteKms;
use crate::support::{Lab, Volume, assert_succeeds, eventually, finish, text, tool};

/// `run --watch-key 1s --control ARGS` under the embedded KMS, with its log in a file.
struct Watched {
    lab: Lab,
    volume: Volume,
    socket: PathBuf,
}

impl Watched {
    fn start(args: &[&str]) -> Self {
        Self::at(Lab::new(), args)
    }

    fn at(lab: Lab, args: &[&str]) -> Self {
        let socket = lab.path("control");
        let control = format!("unix:{}", socket.display());
        let fixed = ["run", "--json", "--size", "1M", "--watch-key", "1s", "--control", &control];
        let mut command = lab.sealblk([&fixed, args].concat());
        command
            .env("SEALBLK_LOG", "info")
            .stderr(Stdio::from(std::fs::File::create(lab.path("log")).unwrap()));
        Self { volume: Volume::spawn(command), lab, socket }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.lab.path("log")).unwrap()
    }

    fn key(&self) -> Value {
        let (status, answer) = curl(&self.socket, "GET", "/v1/volume/key", None);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    fn until(&self, state: &str) -> Value {
        let names = |key: &Value| key["current"]["state"] == state || key["current"]["key_state"] == state;
        eventually(state, || names(&self.key()));
        self.key()
    }

    fn id(&self) -> String {
        self.volume.serving["volume"].as_str().unwrap().into()
    }

    fn status(&self) -> Value {
        let output = finish(self.lab.sealblk(["inspect", "--json", &self.id()]));
        assert_succeeds(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What a write of one sector comes to, by errno's name.
    fn write(&self) -> String {
        let script = "try:\n    h.pwrite(b'x' * 4096, 0, 0)\n    print('written')\n\
                      except nbd.Error as error:\n    print(error.errno)";
        let mut shell = tool("nbdsh");
        // Debian's own Python has the module, whatever comes first in the path.
        shell.env("PATH", "/usr/bin:/bin").args(["--uri", &self.volume.uri, "-c", script]);
        let output = finish(shell);
        assert_succeeds(&output);
        text(&output.stdout).trim().into()
    }
}

#[test]
fn every_change_is_told() {
    let watched = Watched::start(&[]);
    assert_eq!(watched.key()["current"]["state"], "usable");
    kms(&watched.lab, &["disable"]);
    watched.until("Disabled");
    kms(&watched.lab, &["enable"]);
    watched.until("usable");
    kms(&watched.lab, &["schedule-deletion", "--days", "7"]);
    let doomed = watched.until("PendingDeletion");
    assert!(doomed["current"]["deletion"].is_string(), "{doomed}");
    kms(&watched.lab, &["cancel-deletion"]);
    watched.until("Disabled");
    let seen = watched.key();
    let changes: Vec<_> = seen["changes"].as_array().unwrap().iter().map(|change| &change["to"]).collect();
    let states: Vec<_> = changes.iter().map(|to| (&to["state"], &to["key_state"])).collect();
    let unusable = |state: &str| (json!("unusable"), json!(state));
    let expected = [
        unusable("Disabled"),
        (json!("usable"), Value::Null),
        unusable("PendingDeletion"),
        unusable("Disabled"),
    ];
    assert_eq!(states, expected.each_ref().map(|(state, key_state)| (state, key_state)));
    assert_eq!(watched.status()["key_state"], watched.key());
    assert_eq!(watched.write(), "written", "the key's state is no affair of the volume's");
    let log = watched.log();
    for words in [
        "the KMS key is Disabled: new volumes under it and reopening this one will fail",
        "the KMS key is usable again; it was Disabled",
        "the KMS key is PendingDeletion",
        "it will be deleted on 20",
    ] {
        assert!(log.contains(words), "{words}: {log}");
    }
    let (status, record) = watched.volume.stop();
    assert!(status.success());
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
}

#[test]
fn frozen_and_thawed() {
    let watched = Watched::start(&["--when-key-unusable", "freeze"]);
    let bytes = pattern(8192, 1);
    write(&watched.lab, &watched.volume, &bytes);
    kms(&watched.lab, &["disable"]);
    watched.until("Disabled");
    eventually("frozen", || watched.status()["read_only"] == true);
    assert_eq!(watched.write(), "EPERM");
    assert_eq!(read(&watched.lab, &watched.volume, bytes.len()), bytes);
    // Out of one bad state into the next: still frozen, once.
    kms(&watched.lab, &["schedule-deletion", "--days", "7"]);
    watched.until("PendingDeletion");
    assert_eq!(watched.write(), "EPERM");
    kms(&watched.lab, &["cancel-deletion"]);
    kms(&watched.lab, &["enable"]);
    watched.until("usable");
    eventually("thawed", || watched.status()["read_only"] == false);
    assert_eq!(watched.write(), "written");
    let (status, record) = watched.volume.stop();
    assert!(status.success());
    let steps: Vec<_> = record["steps"].as_array().unwrap().iter().map(|step| &step["step"]).collect();
    assert_eq!(steps.iter().filter(|step| **step == "frozen").count(), 1, "{record}");
    assert_eq!(steps.iter().filter(|step| **step == "thawed").count(), 1, "{record}");
}

#[test]
fn detached() {
    let watched = Watched::start(&["--when-key-unusable", "detach"]);
    kms(&watched.lab, &["disable"]);
    let (status, record) = watched.volume.end();
    assert_eq!(status.code(), Some(4), "{record}");
    assert_eq!(record["reason"], "its KMS key is Disabled");
    assert_eq!((&record["keys_wiped"], &record["grant"]["ended"]), (&json!(true), &json!("retired")));
    assert!(watched.lab.journals().is_empty() && !watched.socket.exists());
}

/// The command is told to end, and the exit code still says why.
#[test]
fn detached_from_a_command() {
    let lab = Lab::new();
    let args = ["run", "--json", "--size", "1M", "--watch-key", "1s", "--when-key-unusable", "detach"];
    let script = "trap 'kill $!; touch told; exit 0' TERM; sleep 1000 & touch ready; wait";
    let volume = Volume::spawn(lab.sealblk([&args[..], &["--", "sh", "-c", script]].concat()));
    eventually("the command runs", || lab.path("ready").exists());
    kms(&lab, &["disable"]);
    let (status, record) = volume.end();
    assert_eq!((status.code(), &record["reason"]), (Some(4), &json!("its KMS key is Disabled")));
    eventually("the command is told", || lab.path("told").exists());
}

#[test]
fn not_watched() {
    let lab = Lab::new();
    let socket = lab.path("control");
    let control = format!("unix:{}", socket.display());
    let volume = Volume::start(&lab, &["--size", "1M", "--watch-key", "off", "--control", &control]);
    let described = || lab.events().iter().filter(|event| event["eventName"] == "DescribeKey").count();
    let at_the_start = described();
    let id = volume.serving["volume"].as_str().unwrap();
    for (method, path) in [("GET", "/v1/volume/key"), ("POST", "/v1/volume/key/poll")] {
        let (status, answer) = curl(&socket, method, path, None);
        assert_eq!((status, &answer["error"]["code"]), (409, &json!("not-watched")), "{answer}");
    }
    let poll = finish(lab.sealblk(["inspect", "--poll", id]));
    crate::support::assert_fails(&poll, 2, &["--watch-key"]);
    assert_eq!(curl(&socket, "GET", "/v1/volume", None).1["key_state"], Value::Null);
    assert!(volume.stop().0.success());
    assert_eq!(described(), at_the_start);
}

#[test]
fn asked_for_now() {
    let lab = Lab::new();
    let socket = lab.path("control");
    let control = format!("unix:{}", socket.display());
    let volume = Volume::start(&lab, &["--size", "1M", "--watch-key", "1h", "--control", &control]);
    let state = |answer: &Value| answer["current"]["key_state"].clone();
    kms(&lab, &["disable"]);
    assert_eq!(state(&curl(&socket, "GET", "/v1/volume/key", None).1), Value::Null);
    assert_eq!(state(&curl(&socket, "POST", "/v1/volume/key/poll", None).1), "Disabled");
    assert_eq!(state(&curl(&socket, "GET", "/v1/volume/key", None).1), "Disabled");
    kms(&lab, &["enable"]);
    let id = volume.serving["volume"].as_str().unwrap();
    let output = finish(lab.sealblk(["inspect", "--poll", "--json", id]));
    assert_succeeds(&output);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["key_state"]["current"]["state"], "usable");
    assert!(volume.stop().0.success());
}

/// An outage says nothing about the key, and so nothing is done about it.
#[test]
fn the_kms_is_away() {
    let pair = Pair::new();
    let Pair { lab, kms: server } = pair;
    let endpoint = format!("http://{}", server.address);
    let aws = ["--kms", "aws", "--region", "us-east-1", "--kms-endpoint", &endpoint];
    let socket = lab.path("control");
    let control = format!("unix:{}", socket.display());
    let fixed = ["run", "--json", "--size", "1M", "--watch-key", "1s", "--when-key-unusable", "detach"];
    let patience = ["--kms-attempt-timeout", "1", "--kms-deadline", "2", "--control", &control];
    let profiles = ["--provisioner-profile", "provisioner", "--host-profile", "host"];
    let mut command = lab.sealblk([&fixed[..], &aws, &patience, &profiles].concat());
    command.env("SEALBLK_LOG", "info").stderr(Stdio::from(std::fs::File::create(lab.path("log")).unwrap()));
    let volume = Volume::spawn(crate::remote_kms::with_credentials(&lab, command));
    let key = || curl(&socket, "GET", "/v1/volume/key", None).1;
    let address = server.address.clone();
    server.stop();
    eventually("the outage is noticed", || key()["current"]["state"] == "unknown");
    let seen = key();
    assert_eq!((&seen["known"]["state"], &seen["changes"]), (&json!("usable"), &json!([])));
    assert!(seen["last_error"]["message"].as_str().unwrap().contains("DescribeKey"), "{seen}");
    let bytes = pattern(4096, 1);
    write(&lab, &volume, &bytes);
    assert_eq!(read(&lab, &volume, bytes.len()), bytes);
    let server = RemoteKms::serve(&lab, &address);
    eventually("the KMS is heard again", || key()["current"]["state"] == "usable");
    let log = std::fs::read_to_string(lab.path("log")).unwrap();
    assert_eq!(log.matches("the KMS key's state is not known for now").count(), 1, "{log}");
    assert_eq!(log.matches("the KMS tells the key's state again").count(), 1, "{log}");
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    drop(server);
}

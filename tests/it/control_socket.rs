//! The control socket of `run --control`, asked with curl and with sealblk's own commands.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::enveloped::{facts, kms};
use crate::support::{Lab, Volume, assert_fails, assert_succeeds, finish, text, tool};

/// An HTTP request through a control socket, made by curl: status and answer.
pub(crate) fn curl(socket: &Path, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
    let mut curl = tool("curl");
    curl.args(["-sS", "-X", method, "-w", "\n%{http_code}", "--unix-socket"]).arg(socket);
    curl.args(body.iter().flat_map(|body| ["-d", body]));
    curl.arg(format!("http://localhost{path}")).stdin(Stdio::null());
    let output = finish(curl);
    assert_succeeds(&output);
    let said = text(&output.stdout);
    let (answer, status) = said.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), serde_json::from_str(answer).unwrap())
}

fn control(lab: &Lab) -> String {
    format!("unix:{}", lab.path("control").display())
}

fn started(lab: &Lab, args: &[&str]) -> (Volume, PathBuf) {
    let volume = Volume::start(lab, &[&["--size", "1M", "--control", &control(lab)], args].concat());
    (volume, lab.path("control"))
}

fn id(volume: &Volume) -> String {
    volume.serving["volume"].as_str().unwrap().into()
}

#[test]
fn what_a_volume_says() {
    let lab = Lab::new();
    let (volume, socket) = started(&lab, &["--context", "team=data", "--export", "scratch"]);
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let (status, version) = curl(&socket, "GET", "/v1/version", None);
    assert_eq!((status, &version["name"], &version["api"]), (200, &json!("sealblk"), &json!(["v1"])));
    let (status, said) = curl(&socket, "GET", "/v1/volume", None);
    assert_eq!(status, 200, "{said}");
    let expected = json!({
        "volume": id(&volume), "life": "ephemeral", "provider": "local", "cipher": "aes-xts-plain64",
        "sector_size": 4096, "size": 1 << 20, "bytes_written": 0, "read_only": false, "envelope": null,
        "kms_key": volume.serving["kms_key"], "uris": volume.serving["uris"], "pid": volume.child.id(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&said[field], value, "{field}");
    }
    assert_eq!(said["encryption_context"]["team"], "data");
    assert!(said["grant"].is_string() && said["key_material"].is_string(), "{said}");
    let steps = said["steps"].as_array().unwrap();
    assert_eq!(steps.last().unwrap()["step"], "serving");
    for way in [id(&volume), control(&lab)] {
        let output = finish(lab.sealblk(["inspect", "--json", &way]));
        assert_succeeds(&output);
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(shown["volume"], said["volume"]);
        let people = text(&finish(lab.sealblk(["inspect", &way])).stdout);
        assert!(
            people.contains("cipher: aes-xts-plain64\n") && people.contains("  team: data\n"),
            "{people}"
        );
    }
    assert!(volume.stop().0.success());
    assert!(!socket.exists());
}

#[test]
fn what_is_served_here() {
    let lab = Lab::new();
    let nothing = finish(lab.sealblk(["inspect"]));
    assert_succeeds(&nothing);
    assert_eq!(text(&nothing.stdout), "");
    let (first, _) = started(&lab, &[]);
    let second = Volume::start(&lab, &["--size", "1M"]);
    let output = finish(lab.sealblk(["inspect", "--json"]));
    assert_succeeds(&output);
    let mut listed: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    listed.sort_by_key(|one| one["control"].is_null());
    assert_eq!(
        listed,
        [
            json!({ "volume": id(&first), "control": control(&lab) }),
            json!({ "volume": id(&second), "control": null }),
        ]
    );
    let people = text(&finish(lab.sealblk(["inspect"])).stdout);
    assert!(people.contains(&format!("{}  {}\n", id(&first), control(&lab))), "{people}");
    assert!(people.contains(&format!("{}  no control socket\n", id(&second))), "{people}");
    assert_fails(
        &finish(lab.sealblk(["inspect", &id(&second)])),
        2,
        &["without a control socket", "--control"],
    );
    let unknown = "vol-0123456789abcdef0";
    for command in [&["inspect", unknown][..], &["rewrap", unknown]] {
        assert_fails(&finish(lab.sealblk(command)), 2, &[unknown, "neither a file nor served on this host"]);
    }
    let gone = id(&first);
    assert!(first.stop().0.success() && second.stop().0.success());
    assert_fails(&finish(lab.sealblk(["inspect", &gone])), 2, &[&gone]);
    assert_fails(&finish(lab.sealblk(["inspect", &control(&lab)])), 8, &["no control socket"]);
}

#[test]
fn stopped_with_a_reason() {
    let lab = Lab::new();
    let (volume, socket) = started(&lab, &[]);
    for bad in [r#"{"reason": "two\nlines"}"#, r#"{"why": "x"}"#, "[]"] {
        let (status, answer) = curl(&socket, "POST", "/v1/volume/stop", Some(bad));
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("bad-request")), "{answer}");
    }
    let (status, answer) = curl(&socket, "POST", "/v1/volume/stop", Some(r#"{"reason": "maintenance"}"#));
    assert_eq!((status, answer), (200, json!({ "stopping": true })));
    let (status, record) = volume.end();
    assert!(status.success());
    assert_eq!((&record["reason"], &record["grant"]["ended"]), (&json!("maintenance"), &json!("retired")));
    assert!(!socket.exists());
}

#[test]
fn stopped_without_one() {
    let lab = Lab::new();
    let (volume, socket) = started(&lab, &["--", "sleep", "1000"]);
    assert_eq!(curl(&socket, "POST", "/v1/volume/stop", None).0, 200);
    let (status, record) = volume.end();
    assert_eq!(status.code(), Some(128 + 15), "the command's, which the signal ended: {record}");
    assert!(lab.journals().is_empty() && !socket.exists());
}

/// A rewrap that fails leaves everything as it was.
#[test]
fn moved_to_nowhere() {
    let lab = Lab::new();
    let envelope = lab.path("envelope");
    assert_succeeds(&finish(lab.sealblk(["provision", "--size", "1M", "-o", "envelope"])));
    let control = control(&lab);
    let volume = Volume::start(&lab, &["--envelope", "envelope", "--control", &control]);
    let before = facts(&lab, &envelope);
    let rewrap = |key: &str| finish(lab.sealblk(["rewrap", &id(&volume), "--to-key", key]));
    assert_fails(&rewrap("alias/nowhere"), 4, &["alias/nowhere", "DescribeKey failed"]);
    kms(&lab, &["create", "--alias", "alias/next"]);
    kms(&lab, &["disable", "alias/next"]);
    assert_fails(&rewrap("alias/next"), 4, &["Disabled"]);
    let socket = lab.path("control");
    let (status, answer) = curl(&socket, "POST", "/v1/volume/rewrap", Some(r#"{"to_key": "alias/next"}"#));
    assert_eq!((status, &answer["error"]["exit_code"]), (502, &json!(4)), "{answer}");
    let (status, answer) = curl(&socket, "POST", "/v1/volume/rewrap", Some("{}"));
    assert_eq!((status, &answer["error"]["exit_code"]), (400, &json!(2)), "{answer}");
    let mut after = facts(&lab, &envelope);
    after["revision"] = before["revision"].clone();
    assert_eq!(after, before);
    kms(&lab, &["enable", "alias/next"]);
    assert_succeeds(&rewrap("alias/next"));
    assert_ne!(facts(&lab, &envelope)["slots"][0]["kms_key"], before["slots"][0]["kms_key"]);
    assert!(volume.stop().0.success());
    assert!(lab.journals().is_empty());
}

/// A scratch volume of `run` is moved too; its grants end with it.
#[test]
fn a_scratch_volume_is_moved() {
    let lab = Lab::new();
    let (volume, _) = started(&lab, &[]);
    kms(&lab, &["create", "--alias", "alias/next"]);
    let output = finish(lab.sealblk(["rewrap", "--json", &id(&volume), "--to-key", "alias/next"]));
    assert_succeeds(&output);
    let moved: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&moved["event"], &moved["verified"]), (&json!("rewrapped"), &json!(true)), "{moved}");
    assert_ne!(moved["kms_key"], volume.serving["kms_key"]);
    // Twice to the same key: each time with a grant of its own.
    let again = finish(lab.sealblk(["rewrap", "--json", &id(&volume)]));
    assert_succeeds(&again);
    let again: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_ne!(again["grant"], moved["grant"]);
    let moved = again;
    assert_eq!(crate::leavings::live_grants(&lab.events()).len(), 1);
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_eq!((&record["kms_key"], &record["grant"]["id"]), (&moved["kms_key"], &moved["grant"]));
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    assert!(crate::leavings::live_grants(&lab.events()).is_empty());
}

#[test]
fn other_users_are_refused() {
    let lab = Lab::new();
    let root = finish({
        let mut id = tool("id");
        id.arg("-u");
        id
    });
    // Becoming somebody else is root's alone; for others the socket's mode says enough.
    let (volume, socket) = started(&lab, &[]);
    assert_eq!(socket.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    if root.stdout == b"0\n" {
        // Even where everybody may reach the socket.
        for (path, mode) in [(lab.path(""), 0o755), (socket.clone(), 0o666)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        let mut other = tool("setpriv");
        other.args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-sS", "--unix-socket"]);
        other.arg(&socket).arg("http://localhost/v1/volume").stdin(Stdio::null());
        let output = finish(other);
        assert_succeeds(&output);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["error"]["code"], "peer-not-allowed", "{answer}");
        assert!(answer.get("volume").is_none(), "{answer}");
    }
    assert!(volume.stop().0.success());
}

#[test]
fn sockets_that_cannot_be_made() {
    let lab = Lab::new();
    let (volume, socket) = started(&lab, &[]);
    let start = |control: &str| lab.run(&["--size", "1M", "--control", control], "true");
    assert_fails(&start(&control(&lab)), 8, &[socket.to_str().unwrap(), "in use"]);
    assert_eq!(curl(&socket, "GET", "/v1/version", None).0, 200, "its owner has it still");
    assert_fails(&start("tcp:127.0.0.1:0"), 2, &["--control", "unix:PATH"]);
    assert_fails(&start("control"), 2, &["control"]);
    assert_fails(&start(&format!("unix:/tmp/{}", "x".repeat(120))), 2, &["107 is the most"]);
    assert_fails(&start("unix:no/such/socket"), 8, &["no/such/socket", "No such file"]);
    std::fs::write(lab.path("file"), "precious").unwrap();
    assert_fails(&start("unix:file"), 8, &["file"]);
    assert_eq!(std::fs::read(lab.path("file")).unwrap(), b"precious");
    assert_eq!(lab.journals().len(), 1, "the first volume's");
    assert!(volume.stop().0.success());
}

/// A process that dies leaves its socket, and the next one takes its place.
#[test]
fn a_dead_ones_socket() {
    let lab = Lab::new();
    let (volume, socket) = started(&lab, &[]);
    volume.signal(9);
    drop(volume.end());
    assert!(socket.exists());
    assert_fails(&finish(lab.sealblk(["inspect", &control(&lab)])), 8, &["nobody listens"]);
    let (volume, socket) = started(&lab, &[]);
    assert_eq!(curl(&socket, "GET", "/v1/version", None).0, 200);
    assert!(volume.stop().0.success());
    assert!(!socket.exists());
}

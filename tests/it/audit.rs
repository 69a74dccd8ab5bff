//! The audit log: joined with the KMS's own, and what it keeps to itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::peer::proxy;
use crate::remote_kms::{RemoteKms, keys, run_on, run_patiently_on, with_credentials};
use crate::support::{Lab, Volume, assert_fails, assert_succeeds, finish, text};

/// `sealblk audit --json ARGS`, line by line.
fn audit(lab: &Lab, args: &[&str]) -> Vec<Value> {
    let output = finish(lab.sealblk([&["audit", "--json"], args].concat()));
    assert_succeeds(&output);
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Name, key and error of each call, by request id.
fn by_request(records: &[Value]) -> BTreeMap<String, [String; 3]> {
    let calls = records.iter().filter(|record| record["eventType"] == "AwsApiCall");
    calls
        .map(|record| {
            let id = record["requestID"].as_str().expect("every call was answered").to_owned();
            let fields = ["/eventName", "/requestParameters/keyId", "/errorCode"];
            (id, fields.map(|field| record.pointer(field).unwrap_or(&Value::Null).to_string()))
        })
        .collect()
}

/// The audit log, after it was found to have the same calls as the KMS's own.
fn joined(lab: &Lab) -> Vec<Value> {
    let (ours, theirs) = (audit(lab, &[]), lab.events());
    assert_eq!(by_request(&ours), by_request(&theirs));
    let calls = ours.iter().filter(|record| record["eventType"] == "AwsApiCall").count();
    assert_eq!(calls, theirs.len(), "none is there twice");
    ours
}

fn count(records: &[Value], name: &str, error: Option<&str>) -> usize {
    let is = |record: &&Value| record["eventName"] == name && record["errorCode"].as_str() == error;
    records.iter().filter(is).count()
}

#[test]
fn a_whole_life_joins_the_embedded_kms_field_by_field() {
    let lab = Lab::new();
    assert_succeeds(&finish(lab.sealblk(["run", "--size", "64M", "--", "true"])));
    assert_succeeds(&finish(lab.sealblk(["kms", "disable"])));
    assert_fails(&finish(lab.sealblk(["run", "--size", "64M", "--", "true"])), 4, &["Disabled"]);
    assert_fails(&finish(lab.sealblk(["kms", "rotate"])), 4, &["DisabledException"]);
    let records = joined(&lab);
    for (name, error) in [
        ("CreateKey", None),
        ("CreateAlias", None),
        ("DescribeKey", Some("NotFoundException")),
        ("Decrypt", None),
        ("RetireGrant", None),
        ("DisableKey", None),
        ("RotateKeyOnDemand", Some("DisabledException")),
    ] {
        assert_eq!(count(&records, name, error), 1, "{name}");
    }
    let mut calls: Vec<_> =
        records.iter().filter(|record| record["eventType"] == "AwsApiCall").cloned().collect();
    for call in &mut calls {
        assert!(call.as_object_mut().unwrap().remove("sealblk").is_some());
        assert!(lab.events().contains(call), "{call}");
    }
    // The child that unwraps reports its call itself, for the same volume.
    let of = |name: &str| {
        audit(&lab, &["--event", name]).into_iter().find(|it| it["errorCode"].is_null()).unwrap()
    };
    let (granted, decrypted) = (of("CreateGrant"), of("Decrypt"));
    assert_eq!(decrypted["sealblk"]["volume"], granted["requestParameters"]["name"]);
    assert_eq!(decrypted["sealblk"]["role"], "host");
    assert_ne!(decrypted["sealblk"]["pid"], granted["sealblk"]["pid"]);
}

/// Provisioned, opened, watched, moved while it is served and where it lies, retired: each call of every process is
/// in both logs, and the volume's own events are between them.
#[test]
fn an_envelopes_life_joins() {
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    let endpoint = format!("http://{}", server.address);
    let aws = ["--kms", "aws", "--region", "us-east-1", "--kms-endpoint", &endpoint];
    let profiles = ["--provisioner-profile", "provisioner", "--host-profile", "host"];
    let both = |command: &str, args: &[&str]| {
        with_credentials(&lab, lab.sealblk([&[command], &aws[..], &profiles[..], args].concat()))
    };
    assert_succeeds(&finish(both("provision", &["--size", "16M", "-o", "envelope"])));
    let control = format!("unix:{}", lab.path("control").display());
    let run = ["--envelope", "envelope", "--watch-key", "1s", "--control", &control, "--json"];
    let volume = Volume::spawn(both("run", &run));
    assert_succeeds(&finish(lab.sealblk(["kms", "create", "--alias", "alias/next"])));
    assert_succeeds(&finish(both("rewrap", &[&control, "--to-key", "alias/next"])));
    assert_succeeds(&finish(lab.sealblk(["inspect", &control, "--poll"])));
    let (status, _) = volume.stop();
    assert!(status.success());
    assert_succeeds(&finish(both("rewrap", &["envelope", "--to-key", "alias/sealblk"])));
    assert_succeeds(&finish(both("retire", &["envelope", "--erase"])));
    let records = joined(&lab);
    for name in ["VolumeProvisioned", "VolumeStarted", "VolumeRewrapped", "VolumeStopped", "VolumeRetired"] {
        assert!(count(&records, name, None) > 0, "{name}");
    }
    for (name, times) in [("ReEncrypt", 2), ("CreateGrant", 3), ("RetireGrant", 3)] {
        assert_eq!(count(&records, name, None), times, "{name}");
    }
    let volumes: BTreeSet<_> = records.iter().filter_map(|it| it["sealblk"]["volume"].as_str()).collect();
    assert_eq!(volumes.len(), 1, "all of it is of one volume: {volumes:?}");
}

#[test]
fn every_attempt_over_http_joins_also_those_that_fail() {
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    let throttle = |operation: &str| {
        let code = "ThrottlingException";
        server.order("faults", &json!({ "operation": operation, "code": code, "message": "Rate exceeded" }));
    };
    throttle("CreateGrant");
    throttle("Decrypt");
    throttle("GetCallerIdentity");
    assert_succeeds(&finish(run_on(&lab, &server.address, &["--", "true"])));
    let auditor = keys(&lab, "auditor");
    let args = ["--grantee", auditor["Arn"].as_str().unwrap(), "--", "true"];
    assert_fails(&finish(run_on(&lab, &server.address, &args)), 3, &["Decrypt failed"]);
    let records = joined(&lab);
    for (name, error, times) in [
        ("CreateGrant", Some("ThrottlingException"), 1),
        ("CreateGrant", Some("DryRunOperationException"), 2),
        ("CreateGrant", None, 2),
        ("Decrypt", Some("ThrottlingException"), 1),
        ("Decrypt", Some("AccessDeniedException"), 1),
        ("Decrypt", None, 1),
        ("RetireGrant", None, 2),
    ] {
        assert_eq!(count(&records, name, error), times, "{name} {error:?}");
    }
    let events = lab.events();
    let calls = records.iter().filter(|record| record["eventType"] == "AwsApiCall");
    for record in calls.filter(|record| record["sealblk"]["role"] != "admin") {
        let event = events.iter().find(|event| event["requestID"] == record["requestID"]).unwrap();
        for field in
            ["eventSource", "awsRegion", "userAgent", "requestParameters", "readOnly", "errorMessage"]
        {
            assert_eq!(record[field], event[field], "{field} of {record}");
        }
        if record["errorCode"].is_null() {
            for field in ["responseElements", "additionalEventData", "resources"] {
                assert_eq!(record[field], event[field], "{field} of {record}");
            }
        }
    }
}

#[test]
fn no_answer_is_an_attempt_too() {
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    let address = server.address.clone();
    server.stop();
    assert_fails(&finish(run_on(&lab, &address, &["--", "true"])), 5, &["DescribeKey failed"]);
    let attempts = audit(&lab, &["--event", "describekey", "--errors"]);
    assert_eq!(attempts.len(), 5);
    for attempt in attempts {
        assert!(attempt["requestID"].is_null() && attempt["errorMessage"].is_string(), "{attempt}");
    }
}

#[test]
fn secrets_stay_out() {
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    let answers = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&answers);
    let address = proxy(server.address.clone(), move |_, answer| {
        let text = String::from_utf8_lossy(answer).into_owned();
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        seen.lock().unwrap().extend(serde_json::from_str::<Value>(&body));
    });
    assert_succeeds(&finish(run_patiently_on(&lab, &address, &["--size", "1M", "--", "true"])));
    let log = std::fs::read_to_string(lab.state().join("audit.jsonl")).unwrap();
    assert!(log.contains("RetireGrant"));
    for secret in ["GrantToken", "CiphertextBlob", "Plaintext"] {
        let answers = answers.lock().unwrap();
        let value = answers.iter().find_map(|answer| answer[secret].as_str()).expect(secret);
        assert!(value.len() > 64 && !log.contains(value), "{secret}");
    }
}

#[test]
fn a_killed_process_leaves_whole_lines_and_the_next_goes_on() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "64M"]);
    let id = volume.serving["volume"].as_str().unwrap().to_owned();
    volume.signal(9);
    volume.end();
    assert_succeeds(&finish(lab.sealblk(["run", "--size", "64M", "--", "true"])));
    joined(&lab);
    // The second process ended the first one's grant, and says for which volume.
    assert_eq!(count(&audit(&lab, &["--volume", &id]), "RetireGrant", None), 1);
}

#[test]
fn a_log_that_cannot_be_kept_stops_the_start_and_no_volume() {
    let lab = Lab::new();
    let path = lab.state().join("audit.jsonl");
    let volume = Volume::start(&lab, &["--size", "64M"]);
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    let calls = lab.events().len();
    for command in [&["run", "--size", "64M", "--", "true"][..], &["kms", "create"], &["gc"], &["audit"]] {
        assert_fails(&finish(lab.sealblk(command)), 7, &["the audit log", "symbolic link"]);
    }
    assert_eq!(lab.events().len(), calls);
}

#[test]
fn it_is_shown_and_filtered_and_damage_is_told() {
    let lab = Lab::new();
    assert!(audit(&lab, &[]).is_empty(), "no log is an empty one");
    assert_succeeds(&finish(lab.sealblk(["run", "--size", "64M", "--", "true"])));
    let all = audit(&lab, &[]);
    let wrong = audit(&lab, &["--errors"]);
    assert_eq!(wrong.len(), 1, "the key was not there at first, and dry runs went well: {wrong:?}");
    let id = all[3]["requestID"].as_str().unwrap();
    assert_eq!(audit(&lab, &["--request", id]), [all[3].clone()]);
    assert!(audit(&lab, &["--until", "2020-01-01"]).is_empty());
    assert_eq!(audit(&lab, &["--since", "2020-01-01T00:00:00Z"]), all);
    let key = all.iter().find_map(|record| record.pointer("/resources/0/ARN")).unwrap().as_str().unwrap();
    assert!(!audit(&lab, &["--key", key]).is_empty() && audit(&lab, &["--key", "other"]).is_empty());
    let shown = text(&finish(lab.sealblk(["audit"])).stdout);
    assert_eq!(shown.lines().count(), all.len());
    assert!(shown.lines().any(|line| line.contains("Decrypt") && line.contains("host")), "{shown}");
    assert_fails(&finish(lab.sealblk(["audit", "--since", "soon"])), 2, &["--since", "soon"]);
    let path = lab.state().join("audit.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{{\"cut\n{whole}")).unwrap();
    let output = finish(lab.sealblk(["audit", "--json"]));
    assert_fails(&output, 1, &["audit.jsonl line 1 is damaged"]);
    assert_eq!(text(&output.stdout), whole);
}

//! The event log against real CloudTrail records (AWS guides of EMR Serverless, ECS on Fargate, Keyspaces).

use super::super::operations::cipher::Decrypt;
use super::super::operations::data_keys::{GenerateDataKey, GenerateDataKeyWithoutPlaintext};
use super::super::operations::ending::RetireGrant;
use super::super::operations::grants::CreateGrant;
use super::super::operations::keys::DescribeKey;
use super::*;

const ADMIN: PrincipalName = PrincipalName::Admin;

/// Fields that one side alone may have: in which samples (by the start of their names), which, and why.
const ALLOWED: [(&str, &str, &str); 9] = [
    (
        "keyspaces-",
        "userIdentity.invokedBy",
        "names an AWS service that calls for the user; nobody does here",
    ),
    ("keyspaces-", "sharedEventID", "joins the records of several accounts; there is one"),
    ("fargate-", "sharedEventID", "the same"),
    (
        "keyspaces-",
        "additionalEventData",
        "holds keyMaterialId alone, which came in 2025; the sample is older",
    ),
    ("fargate-Generate", "additionalEventData", "the same"),
    ("keyspaces-CreateGrant", "responseElements.keyId", "the sample is of 2021; Fargate's of 2024 has it"),
    ("keyspaces-Decrypt", "requestParameters.keyId", "the sample's call names no key; this one does"),
    ("emr-serverless-Decrypt", "requestParameters.keySpec", "Decrypt has no such parameter"),
    (
        "emr-serverless-Decrypt",
        "requestParameters.encryptionAlgorithm",
        "left out there, and in no other sample",
    ),
];

/// Compares the names and types of all fields, at every depth.
fn compare(name_of_sample: &str, path: &str, sample: &Value, event: &Value, differences: &mut Vec<String>) {
    let (Value::Object(theirs), Value::Object(ours)) = (sample, event) else {
        if std::mem::discriminant(sample) != std::mem::discriminant(event) {
            differences.push(format!("{path}: {sample} and {event}"));
        }
        if let (Some(theirs), Some(ours)) = (sample.get(0), event.get(0)) {
            compare(name_of_sample, &format!("{path}[]"), theirs, ours, differences);
        }
        return;
    };
    // The identity of an AWS service that calls by itself: no such thing calls here.
    if path == "userIdentity" && sample["type"] == "AWSService" {
        return;
    }
    let names: std::collections::BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    for name in names {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match (theirs.get(name), ours.get(name)) {
            (Some(theirs), Some(ours)) => compare(name_of_sample, &path, theirs, ours, differences),
            _ if may_differ(name_of_sample, &path) => {}
            (theirs, _) => {
                differences.push(format!("{path} only in the {}", theirs.map_or("event", |_| "sample")));
            }
        }
    }
}

fn may_differ(sample: &str, path: &str) -> bool {
    ALLOWED.iter().any(|(samples, allowed, _)| sample.starts_with(samples) && *allowed == path)
}

fn assert_like(sample: &str, event: &Value) {
    let path = format!("{}/tests/data/cloudtrail/{sample}.json", env!("CARGO_MANIFEST_DIR"));
    let sample_text = std::fs::read_to_string(path).expect("a sample");
    let sample_event: Value = serde_json::from_str(&sample_text).expect("JSON");
    let mut differences = Vec::new();
    compare(sample, "", &sample_event, event, &mut differences);
    assert!(differences.is_empty(), "{sample}: {differences:#?}\n{event:#}");
    for name in [
        "eventName",
        "readOnly",
        "eventType",
        "eventCategory",
        "managementEvent",
        "errorCode",
        "errorMessage",
    ] {
        assert_eq!(sample_event.get(name), event.get(name), "{sample}");
    }
}

/// The parameters of a sample, as the call had them.
fn parameters(sample: &str, arn: &str) -> Value {
    let path = format!("{}/tests/data/cloudtrail/{sample}.json", env!("CARGO_MANIFEST_DIR"));
    let sample: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("a sample")).expect("JSON");
    let upper = |name: &str| name[..1].to_uppercase() + &name[1..];
    let mut request = json!({"KeyId": arn});
    for (name, value) in sample["requestParameters"].as_object().into_iter().flatten() {
        request[upper(name)] = match (name.as_str(), value) {
            ("keyId", _) => json!(arn),
            ("constraints", value) => json!({"EncryptionContextSubset": value["encryptionContextSubset"]}),
            (_, value) => value.clone(),
        };
    }
    request
}

#[test]
fn calls_leave_the_records_of_the_samples() {
    let world = World::new();
    let arn = world.key(json!({}));
    let last = || world.events().pop().expect("an event");
    let repeat = |sample: &str, outcome: Result<Value, (&'static str, String)>| {
        assert_like(sample, &last());
        outcome.ok()
    };
    let sample = "fargate-GenerateDataKeyWithoutPlaintext";
    repeat(sample, world.call::<GenerateDataKeyWithoutPlaintext>(ADMIN, parameters(sample, &arn)));
    let sample = "fargate-GenerateDataKeyWithoutPlaintext-dry-run";
    repeat(sample, world.call::<GenerateDataKeyWithoutPlaintext>(ADMIN, parameters(sample, &arn)));
    let sample = "fargate-CreateGrant-dry-run";
    repeat(sample, world.call::<CreateGrant>(ADMIN, parameters(sample, &arn)));
    let sample = "keyspaces-CreateGrant";
    repeat(sample, world.call::<CreateGrant>(ADMIN, parameters(sample, &arn)));
    let sample = "fargate-CreateGrant";
    let grant = repeat(sample, world.call::<CreateGrant>(ADMIN, parameters(sample, &arn))).expect("a grant");
    let retire = json!({"GrantToken": grant["GrantToken"]});
    repeat("fargate-RetireGrant", world.call::<RetireGrant>(ADMIN, retire));
    let sample = "keyspaces-DescribeKey";
    repeat(sample, world.call::<DescribeKey>(ADMIN, parameters(sample, &arn)));
    for family in ["keyspaces", "emr-serverless"] {
        let sample = format!("{family}-GenerateDataKey");
        let made = repeat(&sample, world.call::<GenerateDataKey>(ADMIN, parameters(&sample, &arn)));
        let sample = format!("{family}-Decrypt");
        let mut request = parameters(&sample, &arn);
        request["CiphertextBlob"] = made.expect("a data key")["CiphertextBlob"].clone();
        repeat(&sample, world.call::<Decrypt>(ADMIN, request)).expect("opened");
    }
}

#[test]
fn failures_leave_records_and_secrets_none() {
    let world = World::new();
    let arn = world.key(json!({}));
    let made =
        world.call::<GenerateDataKey>(ADMIN, json!({"KeyId": arn, "NumberOfBytes": 64})).expect("made");
    let grant =
        json!({"KeyId": arn, "GranteePrincipal": world.arn(PrincipalName::Host), "Operations": ["Decrypt"]});
    let grant = world.call::<CreateGrant>(ADMIN, grant).expect("granted");
    let decrypt = json!({"CiphertextBlob": made["CiphertextBlob"], "GrantTokens": [grant["GrantToken"]]});
    world.call::<Decrypt>(PrincipalName::Host, decrypt.clone()).expect("opened");
    let mut wrong = decrypt;
    wrong["EncryptionContext"] = json!({"a": "b"});
    world.code::<Decrypt>(PrincipalName::Host, wrong);
    let events = world.events();
    let failed = events.last().expect("an event");
    assert_eq!(failed["errorCode"], "InvalidCiphertextException");
    assert_eq!(failed["resources"][0]["ARN"], json!(arn));
    assert_eq!(failed["userIdentity"]["userName"], "host");
    assert_eq!(failed["responseElements"], Value::Null);
    assert_eq!(events.iter().filter(|event| event["eventName"] == "Decrypt").count(), 2);
    let log = std::fs::read_to_string(world.engine.events()).expect("the log");
    for secret in [&made["Plaintext"], &made["CiphertextBlob"], &grant["GrantToken"]] {
        assert!(!log.contains(&text(secret)[..24]));
    }
    let ids: std::collections::BTreeSet<String> =
        events.iter().map(|event| text(&event["requestID"])).collect();
    assert_eq!(ids.len(), events.len());
}

//! deploy/aws: what is shipped to watch a KMS key speaks up for the events that it should, and for no others.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::remote_kms::RemoteKms;
use crate::support::{Lab, assert_succeeds, finish, python, text};

/// What an administrator does to a key, and what others then try. Prints the key's ARN.
const ADMINISTRATION: &str = r#"
import boto3, botocore
kms = boto3.client("kms")

def refused(**call):
    try:
        kms.generate_data_key_without_plaintext(NumberOfBytes=64, **call)
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
    raise AssertionError("not refused")

key = kms.create_key()["KeyMetadata"]["Arn"]
kms.generate_data_key_without_plaintext(KeyId=key, NumberOfBytes=64)
grantee = boto3.client("sts").get_caller_identity()["Arn"]
grant = kms.create_grant(KeyId=key, GranteePrincipal=grantee, Operations=["Decrypt"])["GrantId"]
kms.revoke_grant(KeyId=key, GrantId=grant)
kms.disable_key(KeyId=key)
assert refused(KeyId=key) == "DisabledException"
kms.enable_key(KeyId=key)
kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)
assert refused(KeyId=key) == "KMSInvalidStateException"
kms.cancel_key_deletion(KeyId=key)
try:
    kms.cancel_key_deletion(KeyId=key)
except botocore.exceptions.ClientError:
    pass
else:
    raise AssertionError("cancelled twice")
print(key)
"#;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/aws")
}

fn file(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

/// The events of [`ADMINISTRATION`] in a KMS that also has another key with a life of its own; the key's ARN.
fn events() -> (String, Vec<Value>) {
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    let mut script = python();
    script.args(["-c", ADMINISTRATION]);
    let output = finish(server.as_admin(&lab, script));
    assert_succeeds(&output);
    for command in ["disable", "enable"] {
        assert_succeeds(&finish(lab.sealblk(["kms", command, "alias/sealblk"])));
    }
    (text(&output.stdout).trim().to_owned(), lab.events())
}

/// As EventBridge delivers what CloudTrail wrote.
fn delivered(detail: &Value) -> Value {
    json!({
        "version": "0", "source": "aws.kms", "detail-type": "AWS API Call via CloudTrail",
        "account": "111122223333", "region": detail["awsRegion"], "resources": [], "detail": detail,
    })
}

/// EventBridge's patterns, as far as they are used here: values, `prefix` and `exists`; a list in the pattern means
/// any of it, a list in the event any of its elements.
fn matches(pattern: &Value, event: Option<&Value>) -> bool {
    match (pattern, event) {
        (Value::Object(_), Some(Value::Array(elements))) => {
            elements.iter().any(|element| matches(pattern, Some(element)))
        }
        (Value::Object(fields), event) => {
            fields.iter().all(|(name, pattern)| matches(pattern, event.and_then(|event| event.get(name))))
        }
        (Value::Array(alternatives), event) => {
            alternatives.iter().any(|alternative| matches_one(alternative, event))
        }
        (other, _) => panic!("no pattern: {other}"),
    }
}

fn matches_one(alternative: &Value, event: Option<&Value>) -> bool {
    if let Some(exists) = alternative.get("exists") {
        return event.is_some() == exists.as_bool().unwrap();
    }
    let fits = |value: &Value| match alternative.get("prefix") {
        Some(prefix) => value.as_str().is_some_and(|text| text.starts_with(prefix.as_str().unwrap())),
        None => value == alternative,
    };
    match event {
        Some(Value::Array(elements)) => elements.iter().any(fits),
        Some(value) => fits(value),
        None => false,
    }
}

/// CloudWatch Logs' filter patterns, as far as they are used here: `{ $.a = word && $.b = "text" }`, where `*`
/// stands for any text at a value's start or end.
fn filtered(pattern: &str, event: &Value) -> bool {
    let inner = pattern.strip_prefix("{ ").and_then(|rest| rest.strip_suffix(" }")).expect(pattern);
    inner.split(" && ").all(|term| {
        let (selector, value) = term.split_once(" = ").expect(term);
        let value = value.trim_matches('"');
        let field = selector.strip_prefix("$.").expect(selector);
        let text = event[field].as_str();
        text.is_some_and(|text| match (value.strip_prefix('*'), value.strip_suffix('*')) {
            (Some(end), None) => text.ends_with(end),
            (None, Some(start)) => text.starts_with(start),
            _ => text == value,
        })
    })
}

/// Puts the template's parameters in place: with a key, or with none.
fn resolved(value: &Value, key: Option<&str>) -> Option<Value> {
    match value {
        Value::Object(fields) => {
            if let Some(choice) = fields.get("Fn::If") {
                assert_eq!(choice[0], "OneKey");
                return resolved(&choice[if key.is_some() { 1 } else { 2 }], key);
            }
            match fields.get("Ref").and_then(Value::as_str) {
                Some("KeyArn") => Some(key.unwrap().into()),
                Some("AWS::NoValue") => None,
                Some(other) => panic!("{other} in a pattern"),
                None => Some(
                    fields
                        .iter()
                        .filter_map(|(name, value)| Some((name.clone(), resolved(value, key)?)))
                        .collect(),
                ),
            }
        }
        Value::Array(elements) => {
            Some(elements.iter().filter_map(|element| resolved(element, key)).collect())
        }
        plain => Some(plain.clone()),
    }
}

fn template_pattern(rule: &str, key: Option<&str>) -> Value {
    let template = file("template.json");
    resolved(&template["Resources"][rule]["Properties"]["EventPattern"], key).unwrap()
}

fn names_that_match(pattern: &Value, events: &[Value]) -> Vec<String> {
    let hits = events.iter().filter(|event| matches(pattern, Some(&delivered(event))));
    hits.map(|event| event["eventName"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn calls_that_change_a_key_are_told_of_and_no_others() {
    let (key, mut events) = events();
    let changes = ["RevokeGrant", "DisableKey", "EnableKey", "ScheduleKeyDeletion", "CancelKeyDeletion"];
    let of_every_key = [&changes[..], &["DisableKey", "EnableKey"]].concat();
    assert_eq!(names_that_match(&file("key-changes.json"), &events), of_every_key);
    assert_eq!(names_that_match(&template_pattern("KeyChanges", Some(&key)), &events), changes);
    let failed = |event: &&Value| event["eventName"] == "CancelKeyDeletion" && event["errorCode"].is_string();
    assert_eq!(events.iter().filter(failed).count(), 1, "there was a failed call to leave out");

    // What the embedded KMS has no operation for, in the form of one that it has.
    let disabled = events.iter().find(|event| event["eventName"] == "DisableKey").unwrap().clone();
    let renamed =
        ["PutKeyPolicy", "DeleteImportedKeyMaterial", "GetKeyPolicy", "DisableKeyRotation"].map(|name| {
            let mut event = disabled.clone();
            event["eventName"] = name.into();
            event
        });
    let told = names_that_match(&template_pattern("KeyChanges", Some(&key)), &renamed);
    assert_eq!(told, ["PutKeyPolicy", "DeleteImportedKeyMaterial"]);

    // Events of AWS's own, none of which changes a key.
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/cloudtrail");
    events = std::fs::read_dir(data)
        .unwrap()
        .map(|entry| serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap())
        .collect();
    assert!(events.len() > 5 && events.iter().all(|event| event["eventName"].is_string()));
    assert!(names_that_match(&file("key-changes.json"), &events).is_empty());
}

#[test]
fn what_kms_does_by_itself() {
    let key = "arn:aws:kms:eu-west-1:111122223333:key/1";
    let native = |kind: &str, key: &str| json!({ "source": "aws.kms", "detail-type": kind, "resources": [key], "detail": { "key-id": "1" } });
    let (all, one) = (file("key-lifecycle.json"), template_pattern("KeyLifecycle", Some(key)));
    for kind in ["KMS CMK Deletion", "KMS CMK Rotation", "KMS Imported Key Material Expiration"] {
        assert!(matches(&all, Some(&native(kind, key))) && matches(&one, Some(&native(kind, key))), "{kind}");
        assert!(!matches(&one, Some(&native(kind, "arn:aws:kms:eu-west-1:111122223333:key/2"))), "{kind}");
    }
    assert!(!matches(&all, Some(&native("KMS CMK Creation", key))));
    assert!(!matches(&all, Some(&delivered(&json!({ "eventName": "DisableKey" })))));
}

#[test]
fn calls_in_vain_are_counted() {
    let (key, events) = events();
    let counted = |name: &str| -> Vec<&Value> {
        let filter = file(name);
        let pattern = filter["filterPattern"].as_str().unwrap();
        events.iter().filter(|event| filtered(pattern, event)).collect()
    };
    for (name, code) in [
        ("metric-filter-disabled.json", "DisabledException"),
        ("metric-filter-pending-deletion.json", "KMSInvalidStateException"),
    ] {
        let hits = counted(name);
        assert_eq!(hits.len(), 1, "{name}: {hits:?}");
        assert_eq!(hits[0]["errorCode"], code);
        assert_eq!(hits[0]["eventName"], "GenerateDataKeyWithoutPlaintext");
        assert!(hits[0]["errorMessage"].as_str().unwrap().starts_with(&key), "{}", hits[0]);
    }
    let neighbours = events.iter().filter(|event| event["errorMessage"].is_string()).count();
    assert!(neighbours > 2, "there are failed calls that are not counted");
}

#[test]
fn the_template_has_what_the_files_have() {
    assert_eq!(template_pattern("KeyChanges", None), file("key-changes.json"));
    assert_eq!(template_pattern("KeyLifecycle", None), file("key-lifecycle.json"));
    let resources = &file("template.json")["Resources"];
    let alarm = file("alarm.json");
    for (resource, name) in [
        ("DisabledFilter", "metric-filter-disabled.json"),
        ("PendingDeletionFilter", "metric-filter-pending-deletion.json"),
    ] {
        let filter = file(name);
        assert_eq!(resources[resource]["Properties"]["FilterPattern"], filter["filterPattern"]);
        let metric = &filter["metricTransformations"][0];
        assert_eq!(metric["metricNamespace"], alarm["Namespace"]);
        assert_eq!(metric["metricName"], alarm["MetricName"]);
        let template = &resources[resource]["Properties"]["MetricTransformations"][0];
        assert_eq!(template["MetricName"], alarm["MetricName"]);
    }
    let properties = &resources["UnusableKeyAlarm"]["Properties"];
    for (name, value) in alarm.as_object().unwrap().iter().filter(|(name, _)| *name != "AlarmName") {
        assert_eq!(&properties[name], value, "{name}");
    }
}

#[test]
fn cloudformation_would_take_the_template() {
    let mut lint = python();
    lint.args(["-c", "import sys; from cfnlint.runner import main; sys.exit(main())"]);
    lint.arg(folder().join("template.json"));
    let output = finish(lint);
    assert_succeeds(&output);
    assert_eq!(text(&output.stdout), "");
}

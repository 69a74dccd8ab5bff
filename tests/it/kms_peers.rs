//! The same volume life at other KMSs: moto, and our own behind its HTTP face, where grants are enforced.

use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::remote_kms::{RemoteKms, keys, run_patiently_on};
use crate::support::{Lab, Volume, assert_fails, assert_succeeds, eventually, finish, python, text, tool};

const LIFE: &str = "fio --name=v --ioengine=nbd --uri=\"$uri\" --rw=randrw --bsrange=512-64k --size=16M \
                    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --iodepth=16";

/// moto, which knows no grants, no dry runs and no key states, but speaks the protocol.
struct Moto {
    child: Child,
    endpoint: String,
}

impl Moto {
    fn start() -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = "from moto.server import main; import sys; main(sys.argv[1:])";
        let mut command = python();
        command.args(["-c", server, "-H", "127.0.0.1", "-p", &free.to_string()]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        eventually("moto listens", || TcpStream::connect(("127.0.0.1", free)).is_ok());
        Self { child, endpoint: format!("http://127.0.0.1:{free}") }
    }

    /// Runs Python with `kms`, a boto3 client of this server.
    fn boto3(&self, script: &str) -> String {
        let mut command = python();
        let client = format!("import boto3; kms = boto3.client('kms', endpoint_url='{}')\n", self.endpoint);
        command.arg("-c").arg(client + script);
        for (name, value) in ENVIRONMENT {
            command.env(name, value);
        }
        let output = finish(command);
        assert_succeeds(&output);
        text(&output.stdout).trim().to_owned()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const ENVIRONMENT: [(&str, &str); 4] = [
    ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    ("AWS_DEFAULT_REGION", "us-east-1"),
    ("AWS_EC2_METADATA_DISABLED", "true"),
];

#[test]
fn a_volume_at_moto() {
    drop(tool("fio"));
    let (lab, moto) = (Lab::new(), Moto::start());
    let key = moto.boto3(
        "key = kms.create_key(KeySpec='SYMMETRIC_DEFAULT', KeyUsage='ENCRYPT_DECRYPT')['KeyMetadata']['Arn']\n\
         kms.create_alias(AliasName='alias/scratch', TargetKeyId=key)\n\
         print(key)",
    );
    let mut command = lab.sealblk(["run", "--size", "64M", "--kms", "aws", "--region", "us-east-1"]);
    command.args(["--kms-endpoint", &moto.endpoint, "--key", "alias/scratch", "--context", "team=data"]);
    command.args(["--", "sh", "-c", LIFE]).envs(ENVIRONMENT);
    let output = finish(command);
    assert_succeeds(&output);
    let stderr = text(&output.stderr);
    // moto ignores DryRun, which is said, and what the dry run made is undone.
    assert!(stderr.contains("ignores DryRun"), "{stderr}");
    let record: Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
    assert_eq!((record["kms_key"].as_str(), record["provider"].as_str()), (Some(&*key), Some("aws")));
    assert_eq!(record["encryption_context"]["team"], "data");
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    assert_eq!(moto.boto3(&format!("print(len(kms.list_grants(KeyId='{key}')['Grants']))")), "0");
}

/// Who made which call, in order, dry runs marked.
fn calls(lab: &Lab) -> Vec<String> {
    let events = lab.events();
    let call = |event: &Value| {
        let dry = if event["requestParameters"]["dryRun"] == true { " (dry)" } else { "" };
        format!(
            "{} {}{dry}",
            event["userIdentity"]["userName"].as_str().unwrap(),
            event["eventName"].as_str().unwrap()
        )
    };
    events.iter().map(call).filter(|call| !call.starts_with("admin")).collect()
}

#[test]
fn the_host_decrypts_through_its_grant() {
    drop(tool("fio"));
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    let args = ["--size", "64M", "--", "sh", "-c", LIFE];
    assert_succeeds(&finish(run_patiently_on(&lab, &server.address, &args)));
    let expected = [
        "provisioner DescribeKey",
        "provisioner GetCallerIdentity",
        "host GetCallerIdentity",
        "provisioner GenerateDataKeyWithoutPlaintext (dry)",
        "provisioner CreateGrant (dry)",
        "provisioner GenerateDataKeyWithoutPlaintext",
        "provisioner CreateGrant",
        "host Decrypt",
        "provisioner RetireGrant",
    ];
    // No call while clients connected, read and wrote.
    assert_eq!(calls(&lab), expected);
}

#[test]
fn without_its_grant_the_host_is_denied() {
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    let (auditor, host) = (keys(&lab, "auditor"), keys(&lab, "host"));
    // A grant for somebody else.
    let args = ["--size", "64M", "--grantee", auditor["Arn"].as_str().unwrap(), "--", "true"];
    let output = finish(run_patiently_on(&lab, &server.address, &args));
    assert_fails(
        &output,
        3,
        &["Decrypt failed", host["Arn"].as_str().unwrap(), "missing permission kms:Decrypt"],
    );
    let calls = calls(&lab);
    assert_eq!(calls.last().map(String::as_str), Some("provisioner RetireGrant"), "{calls:?}");
    assert!(lab.journals().is_empty());
}

#[test]
fn a_grant_revoked_before_the_host_uses_it_opens_nothing() {
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    server.order("faults", &json!({ "operation": "Decrypt", "delay_ms": 3000, "times": 1 }));
    let mut command = run_patiently_on(&lab, &server.address, &["--size", "64M", "--", "true"]);
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    let made = || {
        lab.events().into_iter().find(|event| {
            event["eventName"] == "CreateGrant" && event.get("errorCode").is_none_or(Value::is_null)
        })
    };
    eventually("the grant is made", || made().is_some());
    let grant = made().unwrap();
    let text_of = |pointer: &str| grant.pointer(pointer).unwrap().as_str().unwrap().to_owned();
    let script = format!(
        "import boto3; boto3.client('kms', endpoint_url='{}').revoke_grant(KeyId='{}', GrantId='{}')",
        format_args!("http://{}", server.address),
        text_of("/responseElements/keyId"),
        text_of("/responseElements/grantId"),
    );
    let mut revoke = python();
    revoke.args(["-c", &script]);
    assert_succeeds(&finish(server.as_admin(&lab, revoke)));
    let output = child.wait_with_output().unwrap();
    assert_fails(&output, 3, &["Decrypt failed", "missing permission kms:Decrypt"]);
    assert!(lab.journals().is_empty());
}

/// Disabled while it is served: nothing notices; a new volume is refused.
#[test]
fn a_disabled_key_stops_new_volumes_only() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "64M", "--backing", "memory"]);
    let mut fio = tool("fio");
    fio.args(["--name=v", "--ioengine=nbd", "--rw=randwrite", "--bs=4k-64k", "--size=32M", "--rate=,16m"])
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            &format!("--uri={}", volume.uri),
        ]);
    let load = std::thread::spawn(move || finish(fio));
    std::thread::sleep(Duration::from_millis(500));
    assert_succeeds(&finish(lab.sealblk(["kms", "disable"])));
    assert_fails(&lab.run(&["--size", "1M"], "true"), 4, &["Disabled", "arn:aws:kms", "--key"]);
    assert_succeeds(&finish(lab.sealblk(["kms", "schedule-deletion", "--days", "7"])));
    assert_fails(&lab.run(&["--size", "1M"], "true"), 4, &["PendingDeletion"]);
    assert_succeeds(&load.join().unwrap());
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
}

/// Every operation and error of AWS KMS that the embedded one has, driven by AWS's own Python client.
#[test]
fn boto3_drives_the_http_face() {
    let lab = Lab::new();
    let server = RemoteKms::start(&lab);
    let mut script = python();
    script.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/boto3/kms_serve.py"));
    script
        .env("SEALBLK_KMS_ENDPOINT", format!("http://{}", server.address))
        .env("SEALBLK_KMS_EVENTS", lab.state().join("kms/events.jsonl"));
    for name in ["admin", "provisioner", "host", "auditor"] {
        let principal = keys(&lab, name);
        let upper = name.to_uppercase();
        for (field, variable) in [("Arn", "ARN"), ("AccessKeyId", "KEY_ID"), ("SecretAccessKey", "SECRET")] {
            script.env(format!("SEALBLK_{upper}_{variable}"), principal[field].as_str().unwrap());
        }
        script.env("AWS_REGION", principal["Region"].as_str().unwrap());
    }
    let output = finish(script);
    assert_succeeds(&output);
    assert!(text(&output.stdout).contains("25 passed"), "{}", text(&output.stdout));
}

//! Every error of a KMS, over real HTTP: the exit code, what the message says, how often the call was tried, and that
//! nothing is left behind.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::leavings::{World, refuses};
use crate::peer::{http, interrupter, nobody, parrot, shouter, silent};
use crate::remote_kms::{RemoteKms, run_on_with_patience, with_credentials};
use crate::support::{Lab, assert_succeeds, finish, text};

/// What a message about the key must begin with, once the key's ARN is known.
const KEY: &str = "error: KMS key arn:aws:kms:us-east-1:";

/// A KMS whose calls are counted on their way.
struct Watched {
    lab: Lab,
    kms: RemoteKms,
    address: String,
    counts: Arc<Mutex<BTreeMap<String, u32>>>,
}

impl Watched {
    fn start() -> Self {
        let lab = Lab::new();
        let kms = RemoteKms::start(&lab);
        let counts = Arc::<Mutex<BTreeMap<String, u32>>>::default();
        let counted = Arc::clone(&counts);
        let address = interrupter(kms.address.clone(), move |request, _| {
            *counted.lock().unwrap().entry(operation(request)).or_default() += 1;
            true
        });
        Self { lab, kms, address, counts }
    }

    /// The next `times` calls of `operation` fail.
    fn fault(&self, operation: &str, error: &Error, times: u32) {
        let Error { status, code, message } = error;
        let order = json!({
            "operation": operation, "code": code, "status": status, "message": message, "times": times
        });
        self.kms.order("faults", &order);
    }

    /// Calls of `operation` since this was asked last.
    fn tries(&self, operation: &str) -> u32 {
        let mut counts = std::mem::take(&mut *self.counts.lock().unwrap());
        counts.remove(&operation.to_lowercase()).unwrap_or_default()
    }

    fn command(&self, deadline: &str, args: &[&str]) -> std::process::Command {
        let args = [&["--preflight", "off"], args, &["--", "true"]].concat();
        run_on_with_patience(&self.lab, &self.address, ["10", deadline], &args)
    }

    /// A run fails, and the call that failed was tried so often.
    fn refused(&self, operation: &str, error: &Error, row: (i32, u32, &[&str])) {
        let (exit, tries, words) = row;
        self.fault(operation, error, 1000);
        let failed = format!("{operation} failed");
        let key = match (operation, exit) {
            ("DescribeKey", _) => "error: KMS key alias/sealblk: ",
            _ => KEY,
        };
        let words = [&[key, &failed, error.message, error.code, "request "][..], words].concat();
        let output = refuses(&self.lab, self.command("30", &[]), exit, &words);
        assert_eq!(self.tries(operation), tries, "{operation} {}: {}", error.code, text(&output.stderr));
        self.kms.order("reset", &json!({}));
    }

    /// A run succeeds in spite of faults, and the call was made so often.
    fn passes(&self, operation: &str, faults: &[(&Error, u32)], tries: u32) -> Value {
        for (error, times) in faults {
            self.fault(operation, error, *times);
        }
        let output = finish(self.command("60", &["--json"]));
        assert_succeeds(&output);
        assert_eq!(
            self.tries(operation),
            tries,
            "{operation} {}: {}",
            faults[0].0.code,
            text(&output.stderr)
        );
        self.kms.order("reset", &json!({}));
        let stdout = text(&output.stdout);
        stdout.lines().map(|line| serde_json::from_str(line).unwrap()).next_back().unwrap()
    }
}

/// The operation of a request, in lower case.
fn operation(request: &[u8]) -> String {
    let request = text(request).to_lowercase();
    let target = request.split_once("trentservice.").map_or("getcalleridentity", |(_, rest)| rest);
    target.split(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default().into()
}

/// An error as the KMS answers it.
struct Error {
    status: u16,
    code: &'static str,
    message: &'static str,
}

const fn error(code: &'static str, message: &'static str) -> Error {
    Error { status: 400, code, message }
}

const fn outage(code: &'static str) -> Error {
    Error { status: 500, code, message: "it broke" }
}

const DENIED: Error = error(
    "AccessDeniedException",
    "User: arn:aws:sts::111122223333:assumed-role/R/i-0 is not authorized to perform: it",
);
const GONE: Error = error("NotFoundException", "it does not exist");
const TOKEN: Error = error("InvalidGrantTokenException", "the token is not valid");
const GRANT_ID: Error = error("InvalidGrantIdException", "the grant is not valid");
const THROTTLED: Error = error("ThrottlingException", "Rate exceeded");
const DISABLED: Error = error("DisabledException", "the key is disabled.");

/// Errors that no wait changes. Every call of a start meets those that it can meet.
#[test]
fn what_is_refused_for_good() {
    let watched = Watched::start();
    let state = |message| error("KMSInvalidStateException", message);
    let enable: &[&str] = &["enable it", "--key"];
    for (operation, error, row) in [
        ("DescribeKey", &GONE, (4, 1, &["check the key's name"][..])),
        ("DescribeKey", &error("InvalidArnException", "no such form"), (2, 1, &["correct the setting"])),
        ("DescribeKey", &DENIED, (3, 1, &["missing permission kms:DescribeKey"])),
        ("GenerateDataKeyWithoutPlaintext", &DISABLED, (4, 1, enable)),
        (
            "GenerateDataKeyWithoutPlaintext",
            &state("it is pending import."),
            (4, 1, &["import its key material"]),
        ),
        (
            "GenerateDataKeyWithoutPlaintext",
            &error("InvalidKeyUsageException", "not for that"),
            (4, 1, &["symmetric"]),
        ),
        (
            "GenerateDataKeyWithoutPlaintext",
            &error("UnsupportedOperationException", "not with that"),
            (4, 1, &["symmetric"]),
        ),
        ("GenerateDataKeyWithoutPlaintext", &error("ValidationException", "too long"), (2, 1, &["correct"])),
        ("GenerateDataKeyWithoutPlaintext", &DENIED, (3, 1, &["missing permission kms:Generate"])),
        (
            "GenerateDataKeyWithoutPlaintext",
            &error("DryRunOperationException", "though the call was no dry run"),
            (5, 1, &["check that the endpoint is a KMS"]),
        ),
        ("CreateGrant", &error("LimitExceededException", "too many"), (4, 1, &["grants that nobody needs"])),
        ("CreateGrant", &DENIED, (3, 1, &["missing permission kms:CreateGrant", "assumed-role/R/i-0"])),
        ("CreateGrant", &DISABLED, (4, 1, enable)),
        ("CreateGrant", &GONE, (4, 1, &["check the key's name"])),
        ("Decrypt", &DISABLED, (4, 1, enable)),
        (
            "Decrypt",
            &error("DisabledException", "it is pending deletion."),
            (4, 1, &["cancel its deletion", "--key"]),
        ),
        ("Decrypt", &state("it is pending deletion."), (4, 1, &["cancel its deletion", "--key"])),
        // With its token, a grant needs no time to spread.
        ("Decrypt", &DENIED, (3, 1, &["missing permission kms:Decrypt", "for arn:aws:sts::111122223333:"])),
        ("Decrypt", &error("InvalidCiphertextException", "no"), (6, 1, &["belong together"])),
        ("Decrypt", &error("IncorrectKeyException", "no"), (6, 1, &["name the KMS key that wrapped it"])),
        // Once more without the token.
        ("Decrypt", &TOKEN, (3, 2, &["make a new grant"])),
        ("Decrypt", &GRANT_ID, (3, 2, &["make a new grant"])),
        // Once more with the credentials read again.
        ("Decrypt", &error("ExpiredTokenException", "no"), (3, 2, &["renew the credentials", "2 attempts"])),
        ("Decrypt", &error("UnrecognizedClientException", "no"), (3, 2, &["still exist", "2 attempts"])),
        ("CreateGrant", &error("InvalidSignatureException", "no"), (3, 2, &["clock", "2 attempts"])),
    ] {
        watched.refused(operation, error, row);
    }
}

/// Errors that pass: the run does not notice.
#[test]
fn what_passes_is_waited_for() {
    let watched = Watched::start();
    let before = World::of(&watched.lab);
    let state = |message| error("KMSInvalidStateException", message);
    for (operation, faults, tries) in [
        ("DescribeKey", &[(&THROTTLED, 1)][..], 2),
        ("GenerateDataKeyWithoutPlaintext", &[(&outage("KeyUnavailableException"), 1)], 2),
        ("CreateGrant", &[(&THROTTLED, 1), (&outage("DependencyTimeoutException"), 1)], 3),
        ("Decrypt", &[(&outage("KMSInternalException"), 2)], 3),
        ("RetireGrant", &[(&THROTTLED, 1), (&outage("KMSInternalException"), 1)], 3),
        ("CreateGrant", &[(&state("it is Creating."), 1)], 2),
        ("Decrypt", &[(&state("it is updating."), 1)], 2),
        ("Decrypt", &[(&state("it is unavailable."), 1)], 2),
        // The grant needs no token any more.
        ("Decrypt", &[(&TOKEN, 1)], 2),
        ("CreateGrant", &[(&error("ExpiredTokenException", "no"), 1)], 2),
    ] {
        let record = watched.passes(operation, faults, tries);
        assert_eq!(record["grant"]["ended"], "retired", "{record}");
    }
    assert_eq!(World::of(&watched.lab), before);
}

/// Decrypt without a token, through a grant that was made some minutes ago: the hidden command's own protocol, since
/// an envelope tells the age that its grant has.
#[test]
fn a_young_grant_is_given_time_to_spread() {
    let watched = Watched::start();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (minutes, tries, code) in [(1, 3, "DisabledException"), (6, 1, "AccessDeniedException")] {
        watched.fault("Decrypt", &DENIED, 2);
        watched.fault("Decrypt", &DISABLED, 1);
        let request = json!({
            "provider": {
                "provider": "aws", "region": "us-east-1", "host_profile": "host",
                "endpoint": format!("http://{}", watched.address),
            },
            "wrapped": {"key": "arn:aws:kms:us-east-1:1:key/x", "blob": [1], "material": null},
            "context": {}, "token": null, "granted": now - minutes * 60,
            "witness": {"directory": watched.lab.state(), "volume": null},
        });
        let mut child = with_credentials(&watched.lab, watched.lab.sealblk(["unwrap-key"]));
        child.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = child.spawn().unwrap();
        child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let (kind, error) = output.stdout.split_first().unwrap();
        let error: Value = serde_json::from_slice(error).unwrap();
        assert_eq!((kind, error["code"].as_str()), (&1, Some(code)), "{error}");
        assert_eq!(watched.tries("Decrypt"), tries, "{error}");
        watched.kms.order("reset", &json!({}));
    }
}

/// An envelope knows when its grant was made, so a host without the token waits for the grant.
#[test]
fn an_envelope_without_its_token_is_waited_for() {
    let watched = Watched::start();
    // Makes the credentials.
    assert_succeeds(&finish(watched.command("30", &[])));
    let endpoint = format!("http://{}", watched.address);
    let kms = ["--kms", "aws", "--region", "us-east-1", "--kms-endpoint", &endpoint];
    let kms = [&kms[..], &["--provisioner-profile", "provisioner", "--host-profile", "host"]].concat();
    let sealblk = |args: &[&str], end: &[&str]| {
        finish(with_credentials(&watched.lab, watched.lab.sealblk([args, &kms, end].concat())))
    };
    assert_succeeds(&sealblk(&["provision", "--size", "1M", "--output", "envelope"], &[]));
    std::fs::remove_file(watched.lab.path("envelope.token")).unwrap();
    watched.tries("Decrypt");
    watched.fault("Decrypt", &DENIED, 2);
    assert_succeeds(&sealblk(&["run", "--envelope", "envelope"], &["--", "true"]));
    assert_eq!(watched.tries("Decrypt"), 3);
}

/// Throttling outlasts the few attempts that an outage gets.
#[test]
fn throttling_ends_at_the_deadline_with_the_quota() {
    let watched = Watched::start();
    for (operation, quota) in [
        ("CreateGrant", "\"CreateGrant request rate\", by default 50 a second"),
        ("Decrypt", "\"Cryptographic operations (symmetric) request rate\""),
    ] {
        watched.fault(operation, &THROTTLED, 1000);
        let words = [KEY, "Rate exceeded (ThrottlingException, request ", quota, "--kms-deadline"];
        let output = refuses(&watched.lab, watched.command("4", &[]), 5, &words);
        let (tries, stderr) = (watched.tries(operation), text(&output.stderr));
        // The last one may have been cut off before it was sent.
        let told = |tries: u32| stderr.contains(&format!("{tries} attempts in "));
        assert!(tries > 1 && (told(tries) || told(tries + 1)), "{tries}: {stderr}");
        watched.kms.order("reset", &json!({}));
    }
}

/// How RetireGrant and RevokeGrant may fail, and what the record then says.
#[test]
fn how_a_grant_ends() {
    let watched = Watched::start();
    for error in [&GONE, &TOKEN, &GRANT_ID] {
        // By the token, then by the id.
        let record = watched.passes("RetireGrant", &[(error, 2)], 2);
        assert_eq!(record["grant"]["ended"], "already-gone", "{record}");
    }
    let record = watched.passes("RetireGrant", &[(&DENIED, 1)], 1);
    assert_eq!(record["grant"]["ended"], "revoked", "{record}");
    watched.fault("RetireGrant", &DENIED, 1);
    let record = watched.passes("RevokeGrant", &[(&THROTTLED, 1)], 2);
    assert_eq!(record["grant"]["ended"], "revoked", "{record}");
    watched.fault("RetireGrant", &DENIED, 1);
    let record = watched.passes("RevokeGrant", &[(&GONE, 1)], 1);
    assert_eq!(record["grant"]["ended"], "already-gone", "{record}");
}

/// The first call of a run on whatever listens there fails like that.
fn unreachable(address: &str, exit: i32, words: &[&str]) {
    let lab = Lab::new();
    let words = [&["error: KMS key alias/sealblk: DescribeKey failed: "], words].concat();
    refuses(&lab, run_on_with_patience(&lab, address, ["1", "4"], &["--", "true"]), exit, &words);
}

#[test]
fn no_service_there() {
    let page = "<html>not here</html>";
    for (address, exit, words) in [
        (nobody(), 5, &["refused", "attempts in ", "check the network"][..]),
        (silent(), 5, &["no answer", "attempts in ", "check the network"]),
        (
            parrot(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{\"KeyMeta".to_vec()),
            5,
            &["attempts in ", "check the network"],
        ),
        (parrot(http("500 Oops", "text/html", page)), 5, &["HTTP status 500", "attempts in "]),
        (parrot(http("502 Bad Gateway", "application/json", "{}")), 5, &["HTTP status 502", "attempts in "]),
        (
            parrot(http("429 Slow Down", "text/html", page)),
            5,
            &["HTTP status 429", "DescribeKey request rate"],
        ),
        (parrot(http("403 Forbidden", "text/html", page)), 5, &["HTTP status 403", "is a KMS"]),
        (
            parrot(http("400 Bad Request", "application/x-amz-json-1.1", "{\"message\":\"no\"}")),
            5,
            &["HTTP status 400", "is a KMS"],
        ),
    ] {
        unreachable(&address, exit, words);
    }
}

#[test]
fn what_is_not_tls() {
    let lab = Lab::new();
    // Makes the credentials.
    drop(run_on_with_patience(&lab, "127.0.0.1:9", ["1", "4"], &[]));
    for address in [shouter(b"\x15\x03\x03 this is no TLS\r\n".to_vec()), shouter(Vec::new())] {
        let endpoint = format!("https://{address}");
        let mut command = lab.sealblk(["run", "--size", "1M", "--kms", "aws", "--region", "us-east-1"]);
        command.args(["--kms-deadline", "4", "--provisioner-profile", "provisioner"]);
        command.args(["--kms-endpoint", &endpoint, "--", "true"]);
        let words = ["DescribeKey failed", &endpoint, "attempts in ", "check the network"];
        refuses(&lab, with_credentials(&lab, command), 5, &words);
    }
}

/// The KMS does what it is asked, and the connection breaks before or in the middle of its answer. The call is
/// repeated, and CreateGrant's name makes the second grant the first one.
#[test]
fn an_answer_that_breaks_off() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    let before = World::of(&lab);
    for wanted in ["describekey", "generatedatakeywithoutplaintext", "creategrant", "decrypt", "retiregrant"]
    {
        for keep in [0, 25] {
            let broken = Arc::new(Mutex::new(0));
            let count = Arc::clone(&broken);
            let address = interrupter(kms.address.clone(), move |request, answer| {
                let mut count = count.lock().unwrap();
                if operation(request) == wanted {
                    *count += 1;
                }
                let cut = operation(request) == wanted && *count == 1;
                if cut {
                    answer.truncate(keep);
                }
                !cut
            });
            let args = ["--preflight", "off", "--", "true"];
            assert_succeeds(&finish(run_on_with_patience(&lab, &address, ["10", "30"], &args)));
            // A grant that is gone by its token is looked for by its id as well.
            let expected = if wanted == "retiregrant" { 3 } else { 2 };
            assert_eq!(*broken.lock().unwrap(), expected, "{wanted}, {keep} bytes");
            assert_eq!(World::of(&lab), before, "left behind after {wanted}, {keep} bytes");
        }
    }
}

//! A KMS that is away, slow, busy, denies, or is none; a wrapped key that was damaged on its way.

use serde_json::json;

use crate::leavings::{calls, refuses};
use crate::peer::{http, nobody, parrot, proxy, silent};
use crate::remote_kms::{RemoteKms, run_on, run_on_with_patience, with_credentials};
use crate::support::{Lab, assert_fails, assert_succeeds, finish, text};

/// A run on whatever listens at `address` fails with exit code 5 in the first call.
fn unreachable(address: &str, words: &[&str]) -> String {
    let lab = Lab::new();
    let words = [&["error: KMS key alias/sealblk: DescribeKey failed"][..], words].concat();
    let output = refuses(&lab, run_on(&lab, address, &["--", "true"]), 5, &words);
    text(&output.stderr)
}

/// What all the failures below are compared with.
#[test]
fn a_kms_that_works() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    assert_succeeds(&finish(kms.run(&lab, &["--", "true"])));
    assert_eq!(calls(&lab, "RetireGrant"), 1);
}

#[test]
fn a_kms_that_is_away() {
    let address = nobody();
    unreachable(&address, &[&address, "refused", "check the network"]);
}

#[test]
fn a_kms_that_never_answers() {
    let address = silent();
    unreachable(&address, &["no answer", &address, "in time", "try again"]);
}

#[test]
fn a_kms_that_hangs_up() {
    unreachable(&parrot(Vec::new()), &["cannot reach"]);
}

#[test]
fn what_answers_and_is_no_kms() {
    let page = "<html><body>It works!</body></html>";
    for answer in [
        http("200 OK", "text/html", page),
        http("404 Not Found", "text/html", page),
        http("200 OK", "application/x-amz-json-1.1", ""),
        http("200 OK", "application/x-amz-json-1.1", "{}"),
        http("200 OK", "application/x-amz-json-1.1", "[1, 2"),
        http("200 OK", "application/x-amz-json-1.1", "{\"KeyMetadata\":{}}"),
        http("400 Bad Request", "application/x-amz-json-1.1", "\u{fffd}\u{0}"),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
    ] {
        let message = unreachable(&parrot(answer.clone()), &["check that the endpoint is a KMS"]);
        assert!(!message.contains("It works"), "the page is not dumped on the user: {message}");
    }
}

#[test]
fn a_gateway_without_a_kms_behind_it() {
    let address = parrot(http("503 Service Unavailable", "text/html", "<html>sorry</html>"));
    unreachable(&address, &["503", "try again"]);
}

#[test]
fn a_kms_that_throttles() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    kms.fail("DescribeKey", "ThrottlingException", 400);
    let words = ["DescribeKey failed", "ThrottlingException", "try again later"];
    refuses(&lab, kms.run(&lab, &["--", "true"]), 5, &words);
}

/// Throttled a few times only, which the retries are for.
#[test]
fn a_kms_that_is_busy_for_a_moment() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    for operation in
        ["DescribeKey", "GenerateDataKeyWithoutPlaintext", "CreateGrant", "Decrypt", "RetireGrant"]
    {
        kms.order("faults", &json!({"operation": operation, "code": "ThrottlingException", "times": 1}));
    }
    assert_succeeds(&finish(kms.run(&lab, &["--", "true"])));
    assert!(crate::leavings::World::of(&lab).grants.is_empty());
}

/// Each call of the key's life fails in turn, with the dry runs left out so that the call itself is met.
#[test]
fn every_call_that_fails() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    for operation in ["DescribeKey", "GenerateDataKeyWithoutPlaintext", "CreateGrant", "Decrypt"] {
        for (code, status, exit) in [
            ("AccessDeniedException", 400, 3),
            ("DisabledException", 400, 4),
            ("KMSInvalidStateException", 400, 4),
            ("NotFoundException", 400, 4),
        ] {
            kms.fail(operation, code, status);
            let failed = format!("{operation} failed");
            let words = ["error: KMS key", &failed, code, "request "];
            refuses(&lab, kms.run(&lab, &["--preflight", "off", "--", "true"]), exit, &words);
            kms.order("reset", &json!({}));
        }
    }
}

/// After all retries. They take their time, so only the call with most to undo is tried.
#[test]
fn a_decrypt_that_fails_inside_the_kms() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    kms.fail("Decrypt", "KMSInternalException", 500);
    let words = ["error: KMS key", "Decrypt failed", "KMSInternalException", "request ", "try again"];
    refuses(&lab, kms.run(&lab, &["--", "true"]), 5, &words);
    assert_eq!((calls(&lab, "CreateGrant"), calls(&lab, "RetireGrant")), (1, 1));
}

#[test]
fn a_missing_permission_is_named() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    for operation in ["GenerateDataKeyWithoutPlaintext", "CreateGrant", "Decrypt"] {
        kms.fail(operation, "AccessDeniedException", 400);
        let missing = format!("missing permission kms:{operation}");
        refuses(&lab, kms.run(&lab, &["--", "true"]), 3, &[&missing, "give the principal"]);
        kms.order("reset", &json!({}));
    }
}

/// With the dry runs on, a permission that is missing is found before anything is made.
#[test]
fn a_dry_run_makes_nothing() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    kms.fail("CreateGrant", "AccessDeniedException", 400);
    refuses(&lab, kms.run(&lab, &["--", "true"]), 3, &["CreateGrant"]);
    assert_eq!(calls(&lab, "GenerateDataKeyWithoutPlaintext"), 0);
}

#[test]
fn garbage_in_the_middle() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    for operation in ["GenerateDataKeyWithoutPlaintext", "Decrypt"] {
        kms.order("faults", &json!({"operation": operation, "garbage": true, "times": 1000}));
        let failed = format!("{operation} failed");
        let words = [&failed, "check that the endpoint is a KMS"];
        refuses(&lab, kms.run(&lab, &["--preflight", "off", "--", "true"]), 5, &words);
        kms.order("reset", &json!({}));
    }
}

/// Nobody knows whether the grant was made, and lists lag behind: the journal keeps its name for a later look.
#[test]
fn garbage_instead_of_a_grant() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    kms.order("faults", &json!({"operation": "CreateGrant", "garbage": true, "times": 1000}));
    let output = finish(kms.run(&lab, &["--preflight", "off", "--", "true"]));
    assert_fails(&output, 5, &["CreateGrant failed", "grant may still appear"]);
    assert_eq!(lab.journals().len(), 1);
    let gc = finish(with_credentials(&lab, lab.sealblk(["gc"])));
    assert_fails(&gc, 1, &["leftovers"]);
    assert!(text(&gc.stdout).contains("may still appear"), "{}", text(&gc.stdout));
    assert_eq!(lab.journals().len(), 1);
}

/// CreateGrant reached the KMS, and its answer did not reach us: the grant is found by its name, and retired.
#[test]
fn a_grant_whose_answer_is_lost() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    let address = proxy(kms.address.clone(), |request, answer| {
        if text(request).contains("TrentService.CreateGrant")
            || text(request).contains("trentservice.creategrant")
        {
            answer.clear();
        }
    });
    let command = run_on_with_patience(&lab, &address, ["1", "2"], &["--preflight", "off", "--", "true"]);
    refuses(&lab, command, 5, &["CreateGrant failed"]);
    assert!(calls(&lab, "CreateGrant") > 0 && calls(&lab, "RetireGrant") == 1);
}

/// A call that hangs after the grant was made: the grant must not be left.
#[test]
fn a_decrypt_that_hangs() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    kms.order("faults", &json!({"operation": "Decrypt", "delay_ms": 30_000, "times": 1000}));
    refuses(&lab, kms.run(&lab, &["--", "true"]), 5, &["Decrypt failed", "in time"]);
    assert_eq!((calls(&lab, "CreateGrant"), calls(&lab, "RetireGrant")), (1, 1));
}

/// Where in the wrapped key's base64 a character is changed, as a part of its length in percent.
fn damage(request: &[u8], answer: &mut [u8], percent: usize) {
    const FIELD: &str = "\"CiphertextBlob\":\"";
    if !text(request).to_lowercase().contains("trentservice.generatedatakeywithoutplaintext") {
        return;
    }
    let whole = text(answer);
    // A dry run has none.
    let Some((before, after)) = whole.split_once(FIELD) else { return };
    let length = after.find('"').unwrap();
    // Not the last four: what they hold beyond the last byte must be zero in well-formed base64.
    let place = before.len() + FIELD.len() + (length - 5) * percent / 100;
    answer[place] = if answer[place] == b'A' { b'B' } else { b'A' };
}

#[test]
fn a_wrapped_key_that_was_damaged() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    for percent in [0, 25, 50, 75, 100] {
        let address = proxy(kms.address.clone(), move |request, answer| damage(request, answer, percent));
        let words = ["error: KMS key", "Decrypt failed", "InvalidCiphertextException", "belong together"];
        refuses(&lab, run_on(&lab, &address, &["--", "true"]), 6, &words);
    }
    assert_eq!(calls(&lab, "RetireGrant"), 5, "a grant was made each time, and retired");
    // The proxy itself is not what fails.
    let address = proxy(kms.address.clone(), |_, _| ());
    assert_succeeds(&finish(run_on(&lab, &address, &["--", "true"])));
}

#[test]
fn settings_that_can_never_work() {
    let lab = Lab::new();
    for (args, words) in [
        (["--kms-endpoint", "http://192.0.2.1:8200"], ["endpoint", "loopback"]),
        (["--kms-endpoint", "ftp://127.0.0.1"], ["endpoint", "https://"]),
        (["--kms-deadline", "0"], ["--kms-deadline", "3600"]),
    ] {
        let mut command = lab.sealblk(["run", "--size", "1M", "--kms", "aws", "--region", "us-east-1"]);
        command.args(args).args(["--", "true"]);
        refuses(&lab, command, 2, &words);
    }
    refuses(
        &lab,
        lab.sealblk(["run", "--size", "1M", "--kms", "vault", "--", "true"]),
        2,
        &["vault", "local"],
    );
}

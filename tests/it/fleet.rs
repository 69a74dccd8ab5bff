//! A hundred volumes that start together on one KMS whose quotas are too small for them.

use std::process::{Child, Stdio};
use std::sync::{Arc, Barrier, Mutex};

use serde_json::json;

use crate::leavings::{World, calls};
use crate::peer::interrupter;
use crate::remote_kms::{RemoteKms, run_patiently_on};
use crate::support::{Lab, text};

const STARTS: usize = 100;

/// All wait for the first answer until all have asked. CreateGrant's quota is less than AWS's 50, since a hundred
/// debug builds on few cores do not exceed that.
#[test]
fn a_hundred_starts_against_a_quota() {
    let lab = Lab::new();
    let kms = RemoteKms::start(&lab);
    let before = World::of(&lab);
    for (operation, per_second) in [("CreateGrant", 10), ("RetireGrant", 30)] {
        kms.order("rate", &json!({"operation": operation, "per_second": per_second}));
    }
    let (together, throttled) = (Arc::new(Barrier::new(STARTS)), Arc::new(Mutex::new(0)));
    let count = Arc::clone(&throttled);
    let address = interrupter(kms.address.clone(), move |request, answer| {
        if text(request).to_lowercase().contains("trentservice.describekey") {
            together.wait();
        }
        if text(answer).contains("ThrottlingException") {
            *count.lock().unwrap() += 1;
        }
        true
    });
    let start = |_| -> Child {
        let patience = ["--kms-attempt-timeout", "170", "--kms-deadline", "170"];
        let volume = ["--size", "16M", "--backing", "memory", "--preflight", "off", "--", "true"];
        let mut command = run_patiently_on(&lab, &address, &[&patience[..], &volume].concat());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut all: Vec<Child> = (0..STARTS).map(start).collect();
    // Their own deadlines end them.
    let ends: Vec<_> = all.iter_mut().map(|child| child.wait().unwrap().code()).collect();
    assert_eq!(ends, [Some(0); STARTS]);
    assert!(*throttled.lock().unwrap() > 0, "nothing was throttled");
    assert_eq!((calls(&lab, "CreateGrant"), calls(&lab, "RetireGrant")), (STARTS, STARTS));
    assert_eq!(World::of(&lab), before);
}

//! The embedded KMS itself: files that are damaged, and addresses that it must not be served on.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use crate::leavings::{World, refuses};
use crate::support::{Lab, assert_fails, assert_succeeds, entries, finish};

/// Every file that the embedded KMS cannot do without.
fn vital_files(directory: &Path) -> Vec<PathBuf> {
    let of = |path: PathBuf| if path.is_dir() { vital_files(&path) } else { vec![path] };
    let spare = |path: &PathBuf| path.ends_with("lock") || path.ends_with("events.jsonl");
    entries(directory).into_iter().flat_map(of).filter(|path| !spare(path)).collect()
}

#[test]
fn a_damaged_file_is_named_and_ends_nothing_else() {
    let lab = Lab::new();
    assert_succeeds(&lab.run(&["--size", "1M"], "true"));
    let before = World::of(&lab);
    let files = vital_files(&lab.state().join("kms"));
    assert!(files.len() >= 6, "{files:?}");
    for file in &files {
        let content = std::fs::read(file).unwrap();
        for damaged in [&b""[..], &content[..content.len() / 2], &[0xa5; 300]] {
            std::fs::write(file, damaged).unwrap();
            let output = lab.run(&["--size", "1M"], "true");
            assert_fails(&output, 7, &["error: KMS", "failed", file.to_str().unwrap(), "check"]);
        }
        std::fs::write(file, content).unwrap();
    }
    // A grant that was made under a damaged file would be a live one now.
    assert_eq!(World::of(&lab), before);
    assert_succeeds(&lab.run(&["--size", "1M"], "true"));
}

#[test]
fn a_directory_that_is_not_the_kmss() {
    let lab = Lab::new();
    let file = lab.path("file");
    std::fs::write(&file, "precious").unwrap();
    let kms = format!("local:{}", file.display());
    let args = ["run", "--size", "1M", "--kms", &kms, "--", "true"];
    refuses(&lab, lab.sealblk(args), 7, &["error: KMS", file.to_str().unwrap()]);
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

/// Refused before anything is announced: whoever waits for the endpoint must not be given one.
#[test]
fn the_http_face_on_a_network() {
    let lab = Lab::new();
    let serve = ["kms", "serve", "--listen", "0.0.0.0:0"];
    refuses(&lab, lab.sealblk(serve), 2, &["not a loopback", "unencrypted"]);
    let with_faults = [&serve[..], &["--insecure", "--control"]].concat();
    refuses(&lab, lab.sealblk(with_faults), 2, &["not a loopback", "fault injection"]);
}

#[test]
fn the_http_face_on_an_address_that_cannot_be_had() {
    let lab = Lab::new();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    refuses(&lab, lab.sealblk(["kms", "serve", "--listen", &address]), 8, &[&address, "in use"]);
    refuses(&lab, lab.sealblk(["kms", "serve", "--listen", "nonsense"]), 8, &["listen on nonsense"]);
}

#[test]
fn keys_that_are_not_there() {
    let lab = Lab::new();
    for command in ["enable", "disable", "rotate", "cancel-deletion", "schedule-deletion"] {
        let output = finish(lab.sealblk(["kms", command, "alias/none"]));
        assert_fails(&output, 4, &["error: KMS key alias/none", "NotFoundException"]);
    }
    assert_succeeds(&finish(lab.sealblk(["kms", "create", "--alias", "alias/one"])));
    let again = finish(lab.sealblk(["kms", "create", "--alias", "alias/one"]));
    assert_fails(&again, 2, &["alias/one", "AlreadyExistsException"]);
}

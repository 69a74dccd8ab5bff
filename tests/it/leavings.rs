//! What a run leaves behind: files, journals, sockets and grants, compared before and after.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Lab, assert_fails, entries, finish, text};

/// All that a test's runs can leave. Whatever a run adds to it must be gone after its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct World {
    files: BTreeSet<PathBuf>,
    pub(crate) grants: BTreeSet<String>,
}

impl World {
    pub(crate) fn of(lab: &Lab) -> Self {
        let mut files = BTreeSet::new();
        walk(lab, &lab.path(""), &mut files);
        Self { files, grants: live_grants(&lab.events()) }
    }
}

/// Everything in the lab but the embedded KMS's own files, the audit log, and the directories that state lies in.
fn walk(lab: &Lab, directory: &Path, found: &mut BTreeSet<PathBuf>) {
    let kept = ["kms", "audit.jsonl"].map(|name| lab.state().join(name));
    for path in entries(directory).into_iter().filter(|path| !kept.contains(path)) {
        // A symbolic link is counted and not followed.
        let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        if is_directory {
            walk(lab, &path, found);
        }
        if !path.starts_with(lab.state()) || !is_directory {
            found.insert(path);
        }
    }
}

/// Ids of the grants that were made and have not ended, out of the KMS's own event log.
pub(crate) fn live_grants(events: &[Value]) -> BTreeSet<String> {
    let mut live = BTreeSet::new();
    for event in events.iter().filter(|event| event.get("errorCode").is_none_or(Value::is_null)) {
        let id = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).map(String::from);
        match event["eventName"].as_str() {
            Some("CreateGrant") => live.extend(id("/responseElements/grantId")),
            Some("RetireGrant") => drop(live.remove(&id("/additionalEventData/grantId").unwrap())),
            Some("RevokeGrant") => drop(live.remove(&id("/requestParameters/grantId").unwrap())),
            _ => {}
        }
    }
    live
}

/// How often the event log shows a call that went through.
pub(crate) fn calls(lab: &Lab, name: &str) -> usize {
    let succeeded =
        |event: &&Value| event["eventName"] == name && event.get("errorCode").is_none_or(Value::is_null);
    lab.events().iter().filter(succeeded).count()
}

/// `sealblk run ARGS -- true` fails with that exit code and those words, and leaves nothing behind. The command
/// makes a run that should have failed end at once.
pub(crate) fn refused(lab: &Lab, args: &[&str], code: i32, words: &[&str]) -> Output {
    refuses(lab, lab.sealblk([&["run"], args, &["--", "true"]].concat()), code, words)
}

/// As [`refused`], before the KMS is asked for anything.
pub(crate) fn refused_at_once(args: &[&str], code: i32, words: &[&str]) {
    let lab = Lab::new();
    refused(&lab, args, code, words);
    assert!(lab.events().is_empty(), "the KMS was called for {args:?}");
}

/// As [`refused`], for any command.
pub(crate) fn refuses(lab: &Lab, command: Command, code: i32, words: &[&str]) -> Output {
    let before = World::of(lab);
    let output = finish(command);
    assert_fails(&output, code, words);
    assert_eq!(text(&output.stdout), "", "nothing was served");
    assert_eq!(World::of(lab), before, "left behind by a run that failed");
    output
}

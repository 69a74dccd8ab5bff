//! Volumes whose process was killed: what is left of them, and how it is cleared away.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::{Value, json};

use crate::leavings::{World, calls, live_grants};
use crate::raw::Client;
use crate::support::{Lab, Volume, assert_fails, assert_succeeds, entries, finish, text, tool, wait};

fn kill(volume: &mut Volume) {
    volume.child.kill().unwrap();
    wait(&mut volume.child);
}

/// `sealblk gc --json`: the volumes that were cleared away, with how their grants ended.
fn gc(lab: &Lab) -> Vec<(String, String)> {
    let output = finish(lab.sealblk(["gc", "--json"]));
    assert_succeeds(&output);
    let lines = text(&output.stdout);
    let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    values.map(|v| (v["volume"].as_str().unwrap().into(), grant_of(&v))).collect()
}

/// How the one grant of a volume ended.
fn grant_of(cleared: &Value) -> String {
    let deeds = cleared["deeds"].as_array().unwrap();
    let mut grants = deeds.iter().filter(|deed| deed["deed"] == "grant");
    let ended = grants.next().map_or("none", |deed| deed["ended"].as_str().unwrap());
    assert!(grants.next().is_none(), "{cleared}");
    ended.into()
}

fn name(volume: &Volume) -> String {
    volume.serving["volume"].as_str().unwrap().into()
}

#[test]
fn an_anonymous_backing_leaves_no_file() {
    let lab = Lab::new();
    let before = World::of(&lab);
    let disk = lab.path("disk");
    fs::create_dir(&disk).unwrap();
    let mut volume = Volume::start(&lab, &["--size", "8M", "--backing", disk.to_str().unwrap()]);
    Client::ready(&volume.socket()).write(0, &[7; 1 << 20]);
    assert!(entries(&disk).is_empty(), "it has no name while it is served");
    kill(&mut volume);
    assert!(entries(&disk).is_empty());
    fs::remove_dir(&disk).unwrap();

    assert_eq!(lab.journals().len(), 1);
    assert_eq!(live_grants(&lab.events()).len(), 1);
    assert_eq!(gc(&lab), [(name(&volume), "retired".into())]);
    assert_eq!(calls(&lab, "RetireGrant"), 1);
    assert_eq!(World::of(&lab), before, "private directory and socket are gone as well");
    assert_eq!(gc(&lab), [], "there is nothing left to do");
}

#[test]
fn the_next_start_clears_away() {
    let lab = Lab::new();
    let before = World::of(&lab);
    let (backing, socket) = (lab.path("backing"), lab.path("nbd.sock"));
    let listen = format!("unix:{}", socket.display());
    let args = ["--size", "8M", "--backing", backing.to_str().unwrap(), "--listen", &listen];
    let mut volume = Volume::start(&lab, &args);
    Client::ready(&volume.socket()).write(0, &[7; 1 << 20]);
    kill(&mut volume);
    assert!(backing.exists() && socket.exists());

    // On the same backing and address, which are free again.
    assert_succeeds(&lab.run(&args, "true"));
    assert_eq!((calls(&lab, "CreateGrant"), calls(&lab, "RetireGrant")), (2, 2));
    assert_eq!(World::of(&lab), before);
}

#[test]
fn gc_clears_named_files_away_and_no_others() {
    let lab = Lab::new();
    let (backing, socket) = (lab.path("backing"), lab.path("nbd.sock"));
    let listen = format!("unix:{}", socket.display());
    let args = ["--size", "1M", "--backing", backing.to_str().unwrap(), "--listen", &listen];
    let mut volume = Volume::start(&lab, &args);
    kill(&mut volume);
    // Somebody has put files of their own in their places.
    fs::rename(&backing, lab.path("moved")).unwrap();
    fs::write(&backing, "precious").unwrap();
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "precious").unwrap();
    assert_eq!(gc(&lab).len(), 1);
    assert_eq!(fs::read(&backing).unwrap(), b"precious");
    assert_eq!(fs::read(&socket).unwrap(), b"precious");
}

/// A journal names what a file was made as, not what stands there: a backing that was there before stays, too.
#[test]
fn a_backing_that_was_there_before_stays() {
    let lab = Lab::new();
    let backing = lab.path("backing");
    fs::File::create(&backing).unwrap().set_len(1 << 20).unwrap();
    let mut volume = Volume::start(&lab, &["--size", "1M", "--backing", backing.to_str().unwrap()]);
    kill(&mut volume);
    assert_eq!(gc(&lab).len(), 1);
    assert!(backing.exists());
}

#[test]
fn a_living_volume_is_left_alone() {
    let lab = Lab::new();
    let backing = lab.path("backing");
    let volume = Volume::start(&lab, &["--size", "1M", "--backing", backing.to_str().unwrap()]);
    let mut dead = Volume::start(&lab, &["--size", "1M"]);
    Client::ready(&volume.socket()).write(0, b"alive");
    kill(&mut dead);
    assert_eq!(gc(&lab), [(name(&dead), "retired".into())]);
    assert!(backing.exists());
    assert_eq!(lab.journals().len(), 1);
    assert_eq!(live_grants(&lab.events()).len(), 1);
    assert_eq!(Client::ready(&volume.socket()).read(0, 5), b"alive");
    let mut nbdinfo = tool("nbdinfo");
    nbdinfo.arg(&volume.uri);
    assert_succeeds(&finish(nbdinfo));
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
}

/// A grant must end in every state of its key, or a disabled key would keep it for ever.
#[test]
fn the_grant_of_a_disabled_key_is_retired() {
    let lab = Lab::new();
    let mut volume = Volume::start(&lab, &["--size", "1M"]);
    kill(&mut volume);
    assert_succeeds(&finish(lab.sealblk(["kms", "disable"])));
    assert_eq!(gc(&lab), [(name(&volume), "retired".into())]);
    assert!(live_grants(&lab.events()).is_empty());
}

#[test]
fn a_key_that_is_disabled_ends_no_volume() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "1M"]);
    assert_succeeds(&finish(lab.sealblk(["kms", "schedule-deletion", "--days", "7"])));
    let calls_so_far = lab.events().len();
    let mut client = Client::ready(&volume.socket());
    client.write(0, b"still here");
    assert_eq!(client.read(0, 10), b"still here");
    drop(client);
    assert_eq!(lab.events().len(), calls_so_far, "a client costs no KMS call");
    let (status, record) = volume.stop();
    assert!(status.success());
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
}

#[test]
fn a_journal_that_cannot_be_read_stays() {
    let lab = Lab::new();
    let mut volume = Volume::start(&lab, &["--size", "1M"]);
    kill(&mut volume);
    let journal = lab.journals().pop().unwrap();
    let content = fs::read(&journal).unwrap();
    fs::write(&journal, "{\"volume\":").unwrap();
    let output = finish(lab.sealblk(["gc"]));
    crate::support::assert_fails(&output, 1, &["error:", "leftovers"]);
    assert!(text(&output.stdout).contains(journal.to_str().unwrap()), "{}", text(&output.stdout));
    // Nor does it keep others from starting.
    assert_succeeds(&lab.run(&["--size", "1M"], "true"));
    fs::write(&journal, content).unwrap();
    assert_eq!(gc(&lab).len(), 1);
}

/// Whoever finds a journal learns which volume it was and under which key, and cannot open it.
#[test]
fn no_key_and_no_token_stand_in_the_journal() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "1M"]);
    let journal = fs::read_to_string(lab.journals().pop().unwrap()).unwrap().to_lowercase();
    for secret in ["token", "plaintext", "ciphertext", "blob", "secret"] {
        assert!(!journal.contains(secret), "{secret}: {journal}");
    }
    assert!(volume.stop().0.success());
}

/// Journals say which files to remove: those that others may write are not believed.
#[test]
fn journals_that_others_may_write() {
    let lab = Lab::new();
    let (volumes, precious) = (lab.state().join("volumes"), lab.path("precious"));
    fs::create_dir_all(&volumes).unwrap();
    fs::set_permissions(&volumes, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(&precious, "precious").unwrap();
    let identity = fs::metadata(&precious).unwrap();
    let planted = json!({
        "volume": "vol-0", "provider": { "provider": "local", "directory": lab.state().join("kms") },
        "key": "arn:aws:kms:us-east-1:0:key/0", "grant_name": "vol-0", "grant_expected": false, "grant_id": null,
        "sockets": [], "directory": null,
        "backing": { "path": precious, "device": identity.dev(), "inode": identity.ino() },
    });
    fs::write(volumes.join("vol-0.json"), planted.to_string()).unwrap();
    let output = finish(lab.sealblk(["gc"]));
    assert!(text(&output.stderr).contains("others"), "{}", text(&output.stderr));
    assert!(precious.exists());
    assert_fails(&lab.run(&["--size", "1M"], "true"), 7, &["volumes", "others"]);
}

//! SIGKILL at every single step of a volume's life, and what is left of it after one start or `sealblk gc`: no grant,
//! no backing, no half envelope; and no volume is lost.
//!
//! The steps are counted, not sampled: an operation is run and killed at its first step, then at its second, until a
//! run comes to its end. Each run has a directory of its own, with the embedded KMS in it, whose writes are steps too.

mod steps;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use self::steps::{Kill, Steps, every};
use crate::remote_kms::{RemoteKms, with_credentials, write_credentials};
use crate::support::{Lab, assert_succeeds, entries, finish, text};

const PROVISION: [&str; 5] = ["provision", "--size", "1M", "--output", "env"];
const OPEN: [&str; 5] = ["run", "--envelope", "env", "--backing", "data"];
const REWRAP: [&str; 4] = ["rewrap", "env", "--to-key", "alias/second"];
/// Data that was acknowledged, and how it is looked for.
const WRITE: &str = "qemu-io -f raw -c 'write -P 90 0 64k' -c flush \"$uri\" && : >acknowledged";
const READ: &str = "qemu-io -f raw -c 'read -P 90 0 64k' \"$uri\"";

/// Longer than a grant may take to appear, and than an unfinished journal is left alone.
const LONG_AGO: Duration = Duration::from_secs(660);

/// A lab, and how the KMS in it is reached.
struct Stage {
    lab: Lab,
    /// None: in the process.
    remote: Option<RemoteKms>,
}

impl Stage {
    /// Without anything; the first command makes the embedded KMS.
    fn empty() -> Self {
        Self { lab: Lab::new(), remote: None }
    }

    /// With the keys `alias/sealblk` and `alias/second`.
    fn with_keys(steps: Steps) -> Self {
        let mut stage = Self::empty();
        for alias in ["alias/sealblk", "alias/second"] {
            stage.succeed(&["kms", "create", "--alias", alias]);
        }
        stage.serve_kms(steps);
        stage
    }

    /// And with `env`, which nobody has opened yet.
    fn provisioned(steps: Steps) -> Self {
        let stage = Self::with_keys(steps);
        stage.succeed(&PROVISION);
        stage
    }

    /// And with `env` and `data`, which hold what was acknowledged.
    fn durable(steps: Steps) -> Self {
        let stage = Self::with_keys(steps);
        stage.succeed(
            &[&["run", "--size", "1M", "--durable", "env", "--backing", "data"], script(WRITE)].concat(),
        );
        stage
    }

    /// A copy, to be spoilt.
    fn copy(&self, steps: Steps) -> Self {
        let mut copy = Self::empty();
        let mut cp = Command::new("cp");
        cp.arg("-a").arg(self.lab.path(".")).arg(copy.lab.path("."));
        assert_succeeds(&finish(cp));
        copy.serve_kms(steps);
        copy
    }

    /// Where the network is to be killed on, the embedded KMS is spoken to over HTTP, as AWS's would be.
    fn serve_kms(&mut self, steps: Steps) {
        if steps == Steps::Network {
            write_credentials(&self.lab);
            self.remote = Some(RemoteKms::serve(&self.lab, "127.0.0.1:0"));
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let Some(remote) = &self.remote else { return self.lab.sealblk(args) };
        let mut args: Vec<_> = args.iter().map(|arg| String::from(*arg)).collect();
        if ["provision", "run", "rewrap", "retire"].contains(&args[0].as_str()) {
            args.splice(1..1, remote.options());
        }
        with_credentials(&self.lab, self.lab.sealblk(args))
    }

    fn finish(&self, args: &[&str]) -> Output {
        finish(self.command(args))
    }

    fn succeed(&self, args: &[&str]) -> String {
        let output = self.finish(args);
        assert_succeeds(&output);
        text(&output.stdout)
    }

    fn has(&self, name: &str) -> bool {
        self.lab.path(name).symlink_metadata().is_ok()
    }

    /// One `gc` or, by turns, one start. What is left then is a grant that may still appear, whose journal waits for
    /// it: ten minutes later it is gone too.
    fn settle(&self, kill: &Kill) {
        if kill.number.is_multiple_of(2) {
            let output = self.finish(&["gc"]);
            let is_waiting = text(&output.stdout).contains("may still appear");
            assert_eq!(output.status.code(), Some(i32::from(is_waiting)), "{output:?}");
        } else {
            self.succeed(&["run", "--size", "1M", "--", "true"]);
        }
        for journal in self.lab.journals() {
            let is_unfinished = journal.extension().is_some_and(|extension| extension == "new");
            assert!(is_unfinished || has_unanswered_grant(&journal), "{}", journal.display());
            fs::File::open(&journal).unwrap().set_modified(SystemTime::now() - LONG_AGO).unwrap();
        }
        self.succeed(&["gc"]);
        assert_eq!(self.lab.journals(), [] as [PathBuf; 0]);
    }

    /// What lies around but for the state, by name.
    fn files(&self) -> BTreeSet<String> {
        let all = entries(&self.lab.path("")).into_iter().chain(entries(&self.lab.path("run")));
        let names = all.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
        names.filter(|name| !["state", "run", "credentials"].contains(&name.as_str())).collect()
    }

    fn assert_files(&self, names: &[&str]) {
        assert_eq!(self.files(), names.iter().map(|name| String::from(*name)).collect());
    }

    /// Ids of the grants that live, out of the KMS's keys: its event log may lack the last call of a killed process.
    fn grants(&self) -> BTreeSet<String> {
        let grants = self.keys().into_iter().flat_map(|key| key["grants"].as_array().unwrap().clone());
        grants.filter(|grant| grant["ended"].is_null()).map(|grant| string(&grant["id"])).collect()
    }

    /// The KMS's keys.
    fn keys(&self) -> Vec<Value> {
        let paths = entries(&self.lab.state().join("kms/keys"));
        let whole = paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        whole.map(|path| json(path)).collect()
    }

    /// Ids of the grants that the envelope has: those that open it, and those that whoever provisions has still to
    /// end, some of which may have ended already.
    fn named(&self) -> [BTreeSet<String>; 2] {
        let envelope = json(&self.lab.path("env"));
        let since_seal = &envelope["since_seal"];
        let slots = envelope["slots"].as_array().unwrap().iter().chain(Some(&since_seal["pending"]["slot"]));
        let superseded = since_seal["superseded"].as_array().unwrap();
        [
            slots.filter_map(|slot| slot.pointer("/grant/id").map(string)).collect(),
            superseded.iter().map(|old| string(&old["grant"])).collect(),
        ]
    }

    /// The envelope opens, with the data that was acknowledged if there is any, and nothing is left of it.
    fn opens(&self) {
        let (files, grants, [opening, ending]) = (self.files(), self.grants(), self.named());
        assert!(opening.is_subset(&grants), "{opening:?} is in the envelope, and {grants:?} live");
        assert!(
            grants.is_subset(&(&opening | &ending)),
            "{grants:?} live, {opening:?} and {ending:?} are known"
        );
        // qemu-io fails where it reads something else, and so does `run`.
        let look = if self.has("acknowledged") { script(READ) } else { &["--", "true"] };
        self.succeed(&[&OPEN, look].concat());
        assert_eq!(self.files(), files);
        assert!(self.grants().is_subset(&grants), "opening makes no grant");
    }

    /// As [`Stage::opens`], under the one KMS key that the envelope names, whatever becomes of the other.
    fn opens_under_one_key(&self) {
        let key = string(&json(&self.lab.path("env"))["slots"][0]["key"]);
        for other in self.keys().iter().map(|other| string(&other["arn"])).filter(|other| *other != key) {
            self.succeed(&["kms", "disable", &other]);
        }
        self.opens();
    }
}

fn script(text: &str) -> &[&str] {
    // Leaked: a test's few words.
    Box::leak(Box::new(["--", "sh", "-c", Box::leak(text.to_owned().into_boxed_str())]))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn string(value: &Value) -> String {
    value.as_str().unwrap().into()
}

/// True if CreateGrant was under way when the journal's process was killed.
fn has_unanswered_grant(journal: &Path) -> bool {
    json(journal)["grants"].as_array().unwrap().iter().any(|grant| grant["id"].is_null())
}

fn provisions(name: &str, steps: Steps, start: fn(Steps) -> Stage) {
    every(name, steps, || {
        let template = start(steps);
        move |kill| {
            let stage = template.copy(steps);
            kill.run(&stage.command(&PROVISION));
            stage.settle(kill);
            if stage.has("env") {
                stage.assert_files(&["env", "env.token"]);
                stage.opens();
            } else {
                assert!(!kill.survived());
                stage.assert_files(&[]);
                assert_eq!(stage.grants(), BTreeSet::new());
            }
        }
    });
}

#[test]
fn provision_on_a_new_kms() {
    provisions("provision on a new KMS", Steps::Files, |_| Stage::empty());
}

#[test]
fn provision_over_http() {
    provisions("provision over HTTP", Steps::Network, Stage::with_keys);
}

fn ephemeral(name: &str, steps: Steps, args: &[&str]) {
    every(name, steps, || {
        let template = Stage::with_keys(steps);
        move |kill| {
            let stage = template.copy(steps);
            kill.run(&stage.command(&[&["run", "--size", "1M"], args, &["--", "true"]].concat()));
            stage.settle(kill);
            stage.assert_files(&[]);
            assert_eq!(stage.grants(), BTreeSet::new());
        }
    });
}

#[test]
fn an_ephemeral_volume_on_named_files() {
    let args = ["--backing", "data", "--listen", "unix:nbd", "--control", "unix:control"];
    ephemeral("run", Steps::Files, &args);
}

#[test]
fn an_ephemeral_volume_with_a_private_socket() {
    ephemeral("run with a private socket", Steps::Files, &["--backing", "memory"]);
}

#[test]
fn an_ephemeral_volume_over_http() {
    ephemeral("run over HTTP", Steps::Network, &["--backing", "data"]);
}

#[test]
fn a_durable_volumes_first_run() {
    every("run --durable", Steps::Files, || {
        let template = Stage::with_keys(Steps::Files);
        move |kill| {
            let stage = template.copy(Steps::Files);
            let run = ["run", "--size", "1M", "--durable", "env", "--backing", "data"];
            kill.run(&stage.command(&[&run, script(WRITE)].concat()));
            stage.settle(kill);
            if stage.has("env") {
                stage.opens();
                assert!(!kill.survived() || stage.has("acknowledged"));
            } else {
                stage.assert_files(&[]);
                assert_eq!(stage.grants(), BTreeSet::new());
            }
        }
    });
}

fn reopens(name: &str, start: fn(Steps) -> Stage) {
    every(name, Steps::Files, || {
        let template = start(Steps::Files);
        move |kill| {
            let stage = template.copy(Steps::Files);
            let files = stage.files();
            kill.run(&stage.command(&[&OPEN[..], &["--listen", "unix:nbd", "--", "true"]].concat()));
            stage.settle(kill);
            assert_eq!(stage.files(), files);
            stage.opens();
        }
    });
}

#[test]
fn a_provisioned_volumes_first_run() {
    reopens("run --envelope, first", Stage::provisioned);
}

#[test]
fn a_durable_volumes_later_run() {
    reopens("run --envelope, durable", Stage::durable);
}

fn rewraps(name: &str, steps: Steps, start: fn(Steps) -> Stage, args: &[&str]) {
    every(name, steps, || {
        let template = start(steps);
        move |kill| {
            let stage = template.copy(steps);
            let files = stage.files();
            kill.run(&stage.command(args));
            stage.settle(kill);
            assert_eq!(stage.files(), files);
            stage.opens_under_one_key();
            stage.succeed(&["retire", "env", "--erase"]);
            assert_eq!(stage.grants(), BTreeSet::new(), "the envelope knew them all");
        }
    });
}

#[test]
fn rewrap_of_a_stored_envelope() {
    rewraps("rewrap", Steps::Files, Stage::durable, &REWRAP);
}

#[test]
fn rewrap_of_an_envelope_that_nobody_has_opened() {
    rewraps("rewrap of a new envelope", Steps::Files, Stage::provisioned, &REWRAP);
}

#[test]
fn rewrap_over_http() {
    rewraps("rewrap over HTTP", Steps::Network, Stage::durable, &REWRAP);
}

#[test]
fn rewrap_of_a_served_volume() {
    let order = format!("{} rewrap unix:control --to-key alias/second", env!("CARGO_BIN_EXE_sealblk"));
    let args = [&OPEN[..], &["--control", "unix:control"], script(&order)].concat();
    rewraps("rewrap, served", Steps::Files, Stage::durable, &args);
}

fn retires(name: &str, args: &[&str]) {
    every(name, Steps::Files, || {
        let template = Stage::durable(Steps::Files);
        move |kill| {
            let stage = template.copy(Steps::Files);
            kill.run(&stage.command(args));
            // Nothing is left to be cleared away: whoever asked for it asks again.
            if stage.has("env") {
                stage.succeed(args);
            }
            assert_eq!(stage.grants(), BTreeSet::new());
            let kept: &[&str] = if args.contains(&"--erase") { &[] } else { &["env", "env.token"] };
            stage.assert_files(&[&["acknowledged", "data"], kept].concat());
        }
    });
}

#[test]
fn retire() {
    retires("retire", &["retire", "env"]);
}

#[test]
fn retire_and_erase() {
    retires("retire --erase", &["retire", "env", "--erase"]);
}

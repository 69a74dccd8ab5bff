//! Envelopes at the embedded KMS behind its HTTP face, each side with its own credentials and state directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::remote_kms::{RemoteKms, keys, with_credentials};
use crate::support::{Lab, Volume, assert_succeeds, finish, python, text, tool};

/// A KMS, a provisioner and a host.
pub(crate) struct Pair {
    pub(crate) lab: Lab,
    pub(crate) kms: RemoteKms,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let lab = Lab::new();
        let kms = RemoteKms::start(&lab);
        Self { lab, kms }
    }

    pub(crate) fn envelope(&self) -> PathBuf {
        self.lab.path("envelope")
    }

    /// `sealblk ARGS --kms aws` with the credentials of one principal, and nobody else's.
    fn as_one(&self, flag: &str, principal: &str, state: &str, args: &[&str]) -> Command {
        let endpoint = format!("http://{}", self.kms.address);
        let (command, rest) = args.split_first().unwrap();
        let kms = ["--kms", "aws", "--region", "us-east-1", "--kms-endpoint", &endpoint, flag, principal];
        let mut command = self.lab.sealblk([&[*command], &kms[..], rest].concat());
        command.env("SEALBLK_STATE_DIR", self.lab.path(state));
        with_credentials(&self.lab, command)
    }

    pub(crate) fn provisioner(&self, args: &[&str]) -> Command {
        self.as_one("--provisioner-profile", "provisioner", "provisioner", args)
    }

    pub(crate) fn host(&self, args: &[&str]) -> Command {
        self.as_one("--host-profile", "host", "host", args)
    }

    /// An envelope of 64 MiB for the host.
    pub(crate) fn provision(&self, args: &[&str]) {
        let (host, envelope) = (keys(&self.lab, "host"), self.envelope());
        let host = host["Arn"].as_str().unwrap();
        let fixed = ["provision", "--size", "64M", "--grantee", host, "-o", envelope.to_str().unwrap()];
        assert_succeeds(&finish(self.provisioner(&[&fixed, args].concat())));
    }

    /// `run --envelope` on the host.
    pub(crate) fn run(&self, args: &[&str]) -> Command {
        let envelope = self.envelope();
        self.host(&[&["run", "--json", "--envelope", envelope.to_str().unwrap()], args].concat())
    }

    /// Tries to open the envelope, for a moment.
    pub(crate) fn reopen(&self) -> Output {
        finish(self.run(&["--", "true"]))
    }

    /// `sealblk kms ARGS`.
    pub(crate) fn admin(&self, args: &[&str]) {
        kms(&self.lab, args);
    }

    /// Runs Python with `kms`, a boto3 client under the credentials of `principal`.
    pub(crate) fn boto3(&self, principal: &str, script: &str) -> String {
        let own = keys(&self.lab, principal);
        let mut command = python();
        command.arg("-c").arg(format!("import boto3; kms = boto3.client('kms')\n{script}"));
        command
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.kms.address))
            .env("AWS_ACCESS_KEY_ID", own["AccessKeyId"].as_str().unwrap())
            .env("AWS_SECRET_ACCESS_KEY", own["SecretAccessKey"].as_str().unwrap())
            .env("AWS_DEFAULT_REGION", "us-east-1")
            .env("AWS_EC2_METADATA_DISABLED", "true");
        let output = finish(command);
        assert_succeeds(&output);
        text(&output.stdout).trim().to_owned()
    }

    /// Names of the calls that a principal made.
    pub(crate) fn calls_of(&self, principal: &str) -> Vec<String> {
        let events = self.lab.events();
        let own = events.iter().filter(|event| event["userIdentity"]["userName"] == principal);
        own.map(|event| event["eventName"].as_str().unwrap().to_owned()).collect()
    }
}

/// `sealblk kms ARGS` in a lab.
pub(crate) fn kms(lab: &Lab, args: &[&str]) {
    assert_succeeds(&finish(lab.sealblk([&["kms"], args].concat())));
}

/// `sealblk inspect --json FILE`.
pub(crate) fn facts(lab: &Lab, envelope: &Path) -> Value {
    let output = finish(lab.sealblk(["inspect", "--json", envelope.to_str().unwrap()]));
    assert_succeeds(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// fio writing and verifying, over and over.
pub(crate) struct Load {
    enough: Arc<AtomicBool>,
    rounds: JoinHandle<()>,
}

impl Load {
    /// Begins; I/O has been verified once when this returns.
    pub(crate) fn start(volume: &Volume) -> Self {
        let (enough, uri) = (Arc::new(AtomicBool::new(false)), volume.uri.clone());
        let round = move || {
            let mut fio = fio(&uri);
            fio.args(["--rw=randwrite", "--bs=4k-64k", "--size=8M", "--rate=,16m"]);
            assert_verified(&finish(fio));
        };
        round();
        let told = enough.clone();
        let rounds = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                round();
            }
            // All of this one lies behind what the test did meanwhile.
            round();
        });
        Self { enough, rounds }
    }

    /// Panics unless every round was verified, the one that begins now too.
    pub(crate) fn verify(self) {
        self.enough.store(true, Ordering::Relaxed);
        self.rounds.join().unwrap();
    }
}

pub(crate) fn fio(uri: &str) -> Command {
    let mut fio = tool("fio");
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"];
    fio.args(["--name=v", "--ioengine=nbd", "--iodepth=8", &format!("--uri={uri}")]).args(verify);
    fio
}

/// fio found nothing wrong, and wrote.
pub(crate) fn assert_verified(output: &Output) {
    assert_succeeds(output);
    let said = text(&output.stdout);
    assert!(said.contains("err= 0") && said.contains("WRITE:"), "{said}");
}

/// Writes `bytes` at the volume's beginning.
pub(crate) fn write(lab: &Lab, volume: &Volume, bytes: &[u8]) {
    let file = lab.path("written");
    std::fs::write(&file, bytes).unwrap();
    let mut copy = tool("nbdcopy");
    copy.args(["--flush", file.to_str().unwrap(), &volume.uri]);
    assert_succeeds(&finish(copy));
}

/// The volume's beginning.
pub(crate) fn read(lab: &Lab, volume: &Volume, length: usize) -> Vec<u8> {
    let file = lab.path("read");
    let mut copy = tool("nbdcopy");
    copy.args([&volume.uri, file.to_str().unwrap()]);
    assert_succeeds(&finish(copy));
    let mut bytes = std::fs::read(file).unwrap();
    bytes.truncate(length);
    bytes
}

/// Bytes that compress to little and are no zeros.
pub(crate) fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 ^ (at >> 12) as u8 ^ seed | 1).collect()
}

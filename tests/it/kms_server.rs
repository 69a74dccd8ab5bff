//! `sealblk kms serve`, and who calls it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{Lab, assert_succeeds, finish, text};

/// The embedded KMS behind its HTTP face, with the key `alias/sealblk`.
pub(crate) struct KmsServer {
    child: Child,
    pub(crate) endpoint: String,
    state: std::path::PathBuf,
}

impl KmsServer {
    /// In a state directory of its own, with the control path on.
    pub(crate) fn start(lab: &Lab) -> Self {
        let state = lab.path("kms-state");
        let mut create = lab.sealblk(["kms", "create", "--alias", "alias/sealblk"]);
        create.env("SEALBLK_STATE_DIR", &state);
        assert_succeeds(&finish(create));
        let mut serve = lab.sealblk(["kms", "serve", "--json", "--control", "--listen", "127.0.0.1:0"]);
        let mut child = serve.env("SEALBLK_STATE_DIR", &state).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).unwrap();
        Self { child, endpoint: event["endpoint"].as_str().unwrap().into(), state }
    }

    /// HOST:PORT.
    pub(crate) fn address(&self) -> String {
        self.endpoint.trim_start_matches("http://").into()
    }

    /// Runs `sealblk kms ARGS --json` on the server's directory.
    pub(crate) fn admin(&self, lab: &Lab, args: &[&str]) -> Vec<Value> {
        let mut command = lab.sealblk([&["kms", "--json"], args].concat());
        command.env("SEALBLK_STATE_DIR", &self.state);
        let output = finish(command);
        assert_succeeds(&output);
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Access key, secret, region and ARN of a principal.
    pub(crate) fn principal(&self, name: &str) -> Value {
        let mut ask = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        ask.args(["kms", "credentials", name, "--json"]).env("SEALBLK_STATE_DIR", &self.state);
        serde_json::from_slice(&finish(ask).stdout).unwrap()
    }

    /// Lets `command` call as `principal`.
    pub(crate) fn credentials(&self, command: &mut Command, principal: &str) {
        let answer = self.principal(principal);
        command
            .env("AWS_ACCESS_KEY_ID", answer["AccessKeyId"].as_str().unwrap())
            .env("AWS_SECRET_ACCESS_KEY", answer["SecretAccessKey"].as_str().unwrap())
            .env("AWS_REGION", answer["Region"].as_str().unwrap())
            .env("AWS_DEFAULT_REGION", answer["Region"].as_str().unwrap())
            .env("AWS_EC2_METADATA_DISABLED", "true");
    }

    /// Tells the control path to fail, delay or throttle calls.
    pub(crate) fn order(&self, what: &str, body: &str) {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        let length = body.len();
        let request = format!(
            "POST /_control/{what} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}",
            self.address(),
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    }

    /// Its directory, with events.jsonl.
    pub(crate) fn directory(&self) -> std::path::PathBuf {
        self.state.join("kms")
    }

    /// Stops answering, as a network that drops everything.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        assert!(
            Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success()
        );
    }
}

impl Drop for KmsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

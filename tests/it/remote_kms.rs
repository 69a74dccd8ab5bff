//! The embedded KMS behind its HTTP face, and `--kms aws` pointed at it, or at something that is no KMS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Lab, PATIENCE, assert_succeeds, finish, wait};

/// `sealblk kms serve --control` on a key `alias/sealblk`.
pub(crate) struct RemoteKms {
    child: Child,
    pub(crate) address: String,
}

impl RemoteKms {
    pub(crate) fn start(lab: &Lab) -> Self {
        assert_succeeds(&finish(lab.sealblk(["kms", "create", "--alias", "alias/sealblk"])));
        write_credentials(lab);
        Self::serve(lab, "127.0.0.1:0")
    }

    /// On an address, for one that comes back after it was away.
    pub(crate) fn serve(lab: &Lab, address: &str) -> Self {
        let mut command = lab.sealblk(["kms", "serve", "--control", "--json", "--listen", address]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let serving: Value = serde_json::from_str(&line).expect("the KMS is served");
        let address = serving["endpoint"].as_str().unwrap().strip_prefix("http://").unwrap().into();
        Self { child, address }
    }

    /// An order to fail; see src/kms/local/http/control.rs.
    pub(crate) fn order(&self, what: &str, body: &Value) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = body.to_string();
        write!(
            stream,
            "POST /_control/{what} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 2"), "{answer}");
    }

    /// Every call of `operation` fails with `code`, as often as it is tried.
    pub(crate) fn fail(&self, operation: &str, code: &str, status: u16) {
        let message = format!("{code} as ordered");
        let fault = json!({
            "operation": operation, "code": code, "status": status, "message": message, "times": 1000,
        });
        self.order("faults", &fault);
    }

    /// A client of AWS's under the administrator's credentials.
    pub(crate) fn as_admin(&self, lab: &Lab, mut client: Command) -> Command {
        let admin = keys(lab, "admin");
        client
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.address))
            .env("AWS_ACCESS_KEY_ID", admin["AccessKeyId"].as_str().unwrap())
            .env("AWS_SECRET_ACCESS_KEY", admin["SecretAccessKey"].as_str().unwrap())
            .env("AWS_REGION", admin["Region"].as_str().unwrap())
            .env("AWS_DEFAULT_REGION", admin["Region"].as_str().unwrap())
            .env("AWS_EC2_METADATA_DISABLED", "true");
        client
    }

    /// The options of `run` and others for this KMS.
    pub(crate) fn options(&self) -> Vec<String> {
        options_for(&self.address)
    }

    /// `sealblk run --kms aws ARGS` on this KMS.
    pub(crate) fn run(&self, lab: &Lab, args: &[&str]) -> Command {
        run_on(lab, &self.address, args)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops answering, as a network that drops everything.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid().to_string()]).status().unwrap().success());
    }

    pub(crate) fn stop(mut self) {
        self.child.kill().unwrap();
        wait(&mut self.child);
    }
}

impl Drop for RemoteKms {
    fn drop(&mut self) {
        // A test that failed leaves its server running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `sealblk run --kms aws ARGS` on whatever listens at `address`, with deadlines that a test can wait for.
pub(crate) fn run_on(lab: &Lab, address: &str, args: &[&str]) -> Command {
    // Enough for all attempts with the pauses between them: a deadline in a pause hides what came back.
    run_on_with_patience(lab, address, ["1", "15"], args)
}

/// As [`run_on`], with these seconds for an attempt and for a call.
pub(crate) fn run_on_with_patience(lab: &Lab, address: &str, seconds: [&str; 2], args: &[&str]) -> Command {
    if !credentials(lab).exists() {
        write_credentials(lab);
    }
    let patience = ["--size", "1M", "--kms-attempt-timeout", seconds[0], "--kms-deadline", seconds[1]];
    run_patiently_on(lab, address, &[&patience, args].concat())
}

/// `sealblk run --kms aws ARGS` on whatever listens at `address`, each side with its own credentials.
pub(crate) fn run_patiently_on(lab: &Lab, address: &str, args: &[&str]) -> Command {
    let options = options_for(address);
    let args = args.iter().map(|arg| String::from(*arg));
    with_credentials(lab, lab.sealblk(["run".into()].into_iter().chain(options).chain(args)))
}

/// The options of `run` and others for whatever listens at `address`.
fn options_for(address: &str) -> Vec<String> {
    let endpoint = format!("http://{address}");
    let fixed = ["--kms", "aws", "--region", "us-east-1", "--kms-endpoint", &endpoint];
    let profiles = ["--provisioner-profile", "provisioner", "--host-profile", "host"];
    fixed.into_iter().chain(profiles).map(String::from).collect()
}

/// What the AWS SDK reads its profiles from.
pub(crate) fn with_credentials(lab: &Lab, mut command: Command) -> Command {
    command
        .env("AWS_SHARED_CREDENTIALS_FILE", credentials(lab))
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_EC2_METADATA_DISABLED", "true");
    command
}

/// Profiles of the provisioner and the host, for [`with_credentials`].
pub(crate) fn write_credentials(lab: &Lab) {
    let profiles = ["provisioner", "host"].map(|name| profile(lab, name)).concat();
    std::fs::write(credentials(lab), profiles).unwrap();
}

fn credentials(lab: &Lab) -> PathBuf {
    lab.path("credentials")
}

/// Access key, secret, region and ARN of a principal.
pub(crate) fn keys(lab: &Lab, principal: &str) -> Value {
    let output = finish(lab.sealblk(["kms", "credentials", principal, "--json"]));
    assert_succeeds(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn profile(lab: &Lab, principal: &str) -> String {
    let keys = keys(lab, principal);
    assert_eq!(keys["Region"], "us-east-1");
    format!(
        "[{principal}]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys["AccessKeyId"].as_str().unwrap(),
        keys["SecretAccessKey"].as_str().unwrap()
    )
}

//! What every test needs: a state directory of its own, the binary in it, and the clients.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// For anything that a healthy program does at once, on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A directory with state, backings and sockets of one test.
pub(crate) struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let lab = Self { directory: tempfile::tempdir().unwrap() };
        std::fs::create_dir(lab.path("run")).unwrap();
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// `sealblk ARGS`, not started yet.
    pub(crate) fn sealblk<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command.args(args).env("SEALBLK_STATE_DIR", self.state()).current_dir(self.directory.path());
        // What the machine is configured with is none of a test's business.
        command.env("SEALBLK_CONFIG", "none");
        // Private sockets lie here, so that a test sees what is left of them.
        command.env("XDG_RUNTIME_DIR", self.path("run"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// `sealblk run ARGS -- sh -c SCRIPT`, to its end.
    pub(crate) fn run(&self, args: &[&str], script: &str) -> Output {
        finish(self.sealblk([&["run"], args, &["--", "sh", "-c", script]].concat()))
    }

    /// The embedded KMS's event log.
    pub(crate) fn events(&self) -> Vec<Value> {
        let output = finish(self.sealblk(["kms", "events", "--json"]));
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Journals of volumes that did not end in order.
    pub(crate) fn journals(&self) -> Vec<PathBuf> {
        entries(&self.state().join("volumes"))
    }
}

pub(crate) fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
}

/// A volume that is being served by `sealblk run --json`.
pub(crate) struct Volume {
    pub(crate) child: Child,
    pub(crate) stdout: BufReader<ChildStdout>,
    pub(crate) uri: String,
    pub(crate) serving: Value,
}

impl Volume {
    pub(crate) fn start(lab: &Lab, args: &[&str]) -> Self {
        Self::spawn(lab.sealblk(["run", "--json"].iter().chain(args)))
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let serving: Value =
            serde_json::from_str(&line).unwrap_or_else(|_| panic!("not served: {:?}", child.wait()));
        assert_eq!(serving["event"], "serving");
        Self { uri: serving["uri"].as_str().unwrap().into(), child, stdout, serving }
    }

    /// The socket in a `nbd+unix` URI.
    pub(crate) fn socket(&self) -> PathBuf {
        self.uri.split_once("socket=").unwrap().1.into()
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY would be needed for libc's kill: the shell's does as well.
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// SIGTERM, and everything until the end: exit status and teardown record.
    pub(crate) fn stop(self) -> (ExitStatus, Value) {
        self.signal(15);
        self.end()
    }

    /// Waits for the end: exit status and teardown record.
    pub(crate) fn end(mut self) -> (ExitStatus, Value) {
        let status = wait(&mut self.child);
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let record = rest.lines().last().map(|line| serde_json::from_str(line).unwrap()).unwrap_or_default();
        (status, record)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // A test that failed leaves its server running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child's end, not for ever.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < end, "process {} does not end", child.id());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a command to its end and captures what it prints. A command that does not end fails the test.
pub(crate) fn finish(mut command: Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    receiver
        .recv_timeout(3 * PATIENCE)
        .unwrap_or_else(|_| panic!("{command:?} ({pid}) does not end"))
        .unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Panics unless `output` has the exit code and its stderr holds each of `words`.
pub(crate) fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{:?}: {stderr}", output.status.signal());
    for word in words {
        assert!(stderr.contains(word), "{word:?} is missing from: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

pub(crate) fn assert_succeeds(output: &Output) {
    assert!(output.status.success(), "{}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr));
}

/// A client program; where it is missing the test fails and says how to get it.
pub(crate) fn tool(name: &str) -> Command {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(name).is_file()))
        || Path::new("/usr/sbin").join(name).is_file();
    assert!(found, "{name} is missing: run scripts/setup test");
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// The Python with the test peers of tests/requirements.txt.
pub(crate) fn python() -> Command {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    assert!(python.is_file(), "{} is missing: run scripts/setup test", python.display());
    Command::new(python)
}

/// `outer` with `inner` as its last arguments, and in its place.
pub(crate) fn within(mut outer: Command, inner: &Command) -> Command {
    outer.arg(inner.get_program()).args(inner.get_args());
    outer.current_dir(inner.get_current_dir().unwrap());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(name, value),
            None => outer.env_remove(name),
        };
    }
    outer
}

/// `sealblk run ARGS` where SCRIPT has mounted something on `mnt` that nobody else sees and that goes with it. An
/// ordinary user may mount in a user namespace, so no test needs root for this.
pub(crate) fn mounted(lab: &Lab, script: &str, args: &[&str]) -> Command {
    let mut outer = tool("unshare");
    let is_root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    outer.args(if is_root { &["--mount"][..] } else { &["--mount", "--user", "--map-root-user"] });
    outer.args(["sh", "-uc", script, "sh"]);
    std::fs::create_dir_all(lab.path("mnt")).unwrap();
    within(outer, &lab.sealblk([&["run"], args].concat()))
}

/// Tries until it works, or fails the test.
pub(crate) fn eventually(what: &str, mut attempt: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !attempt() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

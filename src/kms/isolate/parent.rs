//! The side that serves the disk and gets the key.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::pipe::Timed;
use super::{
    ERROR_FOLLOWS, HIDDEN_COMMAND, KEY_FOLLOWS, MAX_JSON, MAX_REQUEST, Outgoing, WRAPPED_FOLLOWS, Wrap,
};
use crate::kms::{
    EncryptionContext, ErrorClass, GrantToken, KeyArn, KmsError, Permit, Provider, Witness, WrappedKey,
};
use crate::secret::{DataKey, SecretError};

/// Unwraps a data key in a child process: `executable` (`/proc/self/exe` but for tests) run with
/// [`HIDDEN_COMMAND`]. The child is killed `deadline` after its start and always waited for, also if this future
/// is dropped. The child reports its call where `witness` says.
///
/// # Errors
/// What the child's own unwrap says; else [`ErrorClass::Unreachable`] for a child that ends or takes too long,
/// [`ErrorClass::Nonsense`] for one that answers wrongly, [`ErrorClass::Config`] if it cannot be started or the
/// request is longer than 64 KiB.
pub async fn unwrap(
    executable: &Path,
    provider: &Provider,
    wrapped: &WrappedKey,
    context: &EncryptionContext,
    permit: Permit<'_>,
    deadline: Duration,
    witness: &dyn Witness,
) -> Result<DataKey, KmsError> {
    let request = outgoing(provider, wrapped, context, permit, witness);
    match ask(executable, &request, deadline).await? {
        Answer::Key(key) => Ok(key),
        Answer::Wrapped(_) => Err(failure(ErrorClass::Nonsense, "the unwrapping process gave no key")),
    }
}

/// Where a data key is to go.
pub struct Transfer<'a> {
    /// The service.
    pub provider: &'a Provider,
    /// Its key.
    pub key: &'a KeyArn,
    /// The context there.
    pub context: &'a EncryptionContext,
}

/// Unwraps a data key, as the host, and wraps it with a key of another service, as the provisioner (Encrypt): both
/// in the child process, so that no plaintext comes here. Otherwise as [`unwrap`].
///
/// # Errors
/// As [`unwrap`]; and those of the other service's call.
pub async fn transfer(
    executable: &Path,
    provider: &Provider,
    wrapped: &WrappedKey,
    context: &EncryptionContext,
    permit: Permit<'_>,
    to: Transfer<'_>,
    witness: &dyn Witness,
) -> Result<WrappedKey, KmsError> {
    let mut request = outgoing(provider, wrapped, context, permit, witness);
    request.wrap = Some(Wrap { provider: to.provider, key: to.key.clone(), context: to.context });
    match ask(executable, &request, provider.patience() + to.provider.patience()).await? {
        Answer::Wrapped(wrapped) => Ok(wrapped),
        Answer::Key(_) => Err(failure(ErrorClass::Nonsense, "the unwrapping process gave a key unasked")),
    }
}

/// What comes back.
enum Answer {
    Key(DataKey),
    Wrapped(WrappedKey),
}

fn outgoing<'a>(
    provider: &'a Provider,
    wrapped: &'a WrappedKey,
    context: &'a EncryptionContext,
    permit: Permit<'a>,
    witness: &dyn Witness,
) -> Outgoing<'a> {
    let Permit { token, made } = permit;
    let (token, granted) = (token.map(GrantToken::expose), made.map(OffsetDateTime::unix_timestamp));
    Outgoing { provider, wrapped, context, token, granted, witness: witness.place(), wrap: None }
}

async fn ask(executable: &Path, request: &Outgoing<'_>, deadline: Duration) -> Result<Answer, KmsError> {
    let key = request.wrapped.key.clone();
    let request = encode(request).map_err(|error| error.on_key(key.as_str()))?;
    let mut command = Command::new(executable);
    command.arg(HIDDEN_COMMAND).stdin(Stdio::piped()).stdout(Stdio::piped());
    // A thread of its own until the child is gone: the child's parent-death signal is tied to the thread that
    // started it.
    tokio::task::spawn_blocking(move || converse(&mut command, &request, Instant::now() + deadline))
        .await
        .unwrap_or_else(|panic| Err(failure(ErrorClass::Unreachable, panic.to_string())))
        .map_err(|error| KmsError { key: error.key.clone().or(Some(key.as_str().into())), ..error })
}

/// The request as JSON, in a buffer that never grows: growing would leave copies of the token behind.
fn encode(request: &Outgoing<'_>) -> Result<Zeroizing<Vec<u8>>, KmsError> {
    let mut buffer = Zeroizing::new(vec![0; MAX_REQUEST]);
    let mut rest = buffer.as_mut_slice();
    serde_json::to_writer(&mut rest, request)
        .map_err(|_| failure(ErrorClass::Config, "the request is longer than 64 KiB"))?;
    let length = MAX_REQUEST - rest.len();
    buffer.truncate(length);
    Ok(buffer)
}

fn converse(command: &mut Command, request: &[u8], deadline: Instant) -> Result<Answer, KmsError> {
    let program = command.get_program().to_owned();
    let child = command.spawn().map_err(|error| {
        failure(ErrorClass::Config, format!("cannot start {}: {error}", program.display()))
    })?;
    let mut child = Reaped(child);
    let stdin = child.0.stdin.take().map(|pipe| Timed::new(pipe, deadline));
    let stdout = child.0.stdout.take().map(|pipe| Timed::new(pipe, deadline));
    let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else {
        return Err(failure(ErrorClass::Config, "the unwrapping process has no pipes"));
    };
    // A child that does not read its request may have said why not, so its answer is read all the same.
    let sent = stdin.write_all(request);
    drop(stdin);
    receive(stdout, &mut child).map_err(|error| match sent {
        Err(cause) if cause.kind() == io::ErrorKind::TimedOut => late(),
        _ => error,
    })
}

/// Reads the answer. The key goes from the pipe straight into locked memory.
fn receive(mut answer: impl Read, child: &mut Reaped) -> Result<Answer, KmsError> {
    let mut status = [0];
    answer.read_exact(&mut status).map_err(|error| broken(&error, child))?;
    match status[0] {
        KEY_FOLLOWS => receive_key(answer, child).map(Answer::Key),
        WRAPPED_FOLLOWS => receive_json(answer, child).map(Answer::Wrapped),
        ERROR_FOLLOWS => Err(receive_json(answer, child).unwrap_or_else(|error| error)),
        _ => Err(failure(ErrorClass::Nonsense, "the unwrapping process gave no answer of its protocol")),
    }
}

fn receive_key(mut answer: impl Read, child: &mut Reaped) -> Result<DataKey, KmsError> {
    let key = DataKey::read_from(&mut answer).map_err(|error| match error {
        SecretError::Read(error) => broken(&error, child),
        error => KmsError::of_secret("Decrypt", &error),
    })?;
    match answer.read(&mut [0]) {
        Ok(0) => Ok(key),
        Ok(_) => Err(failure(ErrorClass::Nonsense, "the unwrapping process gave more than a key")),
        Err(error) => Err(broken(&error, child)),
    }
}

fn receive_json<T: DeserializeOwned>(answer: impl Read, child: &mut Reaped) -> Result<T, KmsError> {
    let mut json = Vec::new();
    match answer.take(MAX_JSON as u64).read_to_end(&mut json) {
        Ok(_) => serde_json::from_slice(&json).map_err(|error| {
            failure(ErrorClass::Nonsense, format!("the unwrapping process gave no readable answer: {error}"))
        }),
        Err(error) => Err(broken(&error, child)),
    }
}

/// The child took too long, or its pipe ended early and its exit status tells more.
fn broken(error: &io::Error, child: &mut Reaped) -> KmsError {
    match error.kind() {
        io::ErrorKind::TimedOut => late(),
        io::ErrorKind::UnexpectedEof => {
            let end = child.end().map_or_else(|error| error.to_string(), |status| status.to_string());
            let message = format!("the unwrapping process ended without a whole answer ({end})");
            failure(ErrorClass::Unreachable, message)
        }
        _ => failure(ErrorClass::Unreachable, format!("cannot read from the unwrapping process: {error}")),
    }
}

fn late() -> KmsError {
    failure(ErrorClass::Unreachable, "the unwrapping process gave no answer in time")
}

fn failure(class: ErrorClass, message: impl Into<String>) -> KmsError {
    KmsError::new("Decrypt", class, message)
}

/// A child that does not outlive this value.
struct Reaped(Child);

impl Reaped {
    /// How the child ended. It closed its stdout, so it ends by itself within moments or never: then it is killed.
    fn end(&mut self) -> io::Result<std::process::ExitStatus> {
        for _ in 0..50 {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.0.kill()?;
        self.0.wait()
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail only where the child has been waited for already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::witness::Nobody;

    const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd";

    /// Runs a shell script in the child's place.
    async fn unwrap_with(script: &str, deadline: Duration) -> Result<DataKey, KmsError> {
        let directory = tempfile::tempdir().expect("a directory");
        let executable = directory.path().join("child");
        // Another process writes it: a descriptor open for writing here could be inherited by a child of another
        // test, and the file be busy (ETXTBSY) for as long.
        let written = Command::new("/bin/sh")
            .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1\" && chmod 700 \"$1\"", "sh"])
            .args([executable.as_os_str(), script.as_ref()])
            .status();
        assert!(written.is_ok_and(|status| status.success()));
        ask(&executable, deadline).await
    }

    async fn ask(executable: &Path, deadline: Duration) -> Result<DataKey, KmsError> {
        let provider = Provider::Local { directory: "/state".into() };
        let wrapped = WrappedKey { key: KeyArn::new(ARN), blob: vec![7; 6144], material: None };
        let token = GrantToken::new("t".repeat(8192));
        let context = EncryptionContext::default();
        unwrap(executable, &provider, &wrapped, &context, Some(&token).into(), deadline, &Nobody).await
    }

    async fn refusal(script: &str) -> KmsError {
        let error = unwrap_with(script, Duration::from_secs(20)).await.map(drop).expect_err(script);
        assert_eq!(error.key.as_deref(), Some(ARN), "{script}");
        error
    }

    const KEY: &str = "0123456789abcdef0123456789abcdeffedcba9876543210fedcba9876543210";

    #[tokio::test]
    async fn takes_a_key_and_gives_the_whole_request() {
        let script = format!("[ $1 = unwrap-key ] && [ $(wc -c) -gt 20000 ] && printf '\\000{KEY}'");
        let key = unwrap_with(&script, Duration::from_secs(20)).await.expect("a key");
        assert_eq!(key.expose(), KEY.as_bytes());
    }

    #[tokio::test]
    async fn a_child_that_does_not_read_may_answer() {
        assert!(unwrap_with(&format!("printf '\\000{KEY}'"), Duration::from_secs(20)).await.is_ok());
    }

    #[tokio::test]
    async fn passes_the_childs_error_on() {
        let error = KmsError::new("Decrypt", ErrorClass::Denied, "no").on_key(ARN);
        let json = serde_json::to_string(&error).expect("JSON");
        assert_eq!(refusal(&format!("cat >/dev/null; printf '\\001%s' '{json}'")).await, error);
    }

    #[tokio::test]
    async fn a_wrong_answer_is_nonsense() {
        for script in [
            "printf 'Hello'",
            "printf '\\001Hello'",
            "printf '\\001'",
            &format!("printf '\\000{KEY}x'"),
            // Halves that are equal make no XTS key.
            "printf '\\000'; printf '%064d' 0",
        ] {
            assert_eq!(refusal(script).await.class, ErrorClass::Nonsense, "{script}");
        }
    }

    #[tokio::test]
    async fn a_child_that_dies_tells_how() {
        for (script, end) in [
            ("exit 3", "exit status: 3"),
            ("kill -9 $$", "signal: 9"),
            (&format!("printf '\\000{}'", &KEY[1..]), "exit status: 0"),
            ("exec >&-; exec sleep 100", "signal: 9"),
        ] {
            let error = refusal(script).await;
            assert_eq!(error.class, ErrorClass::Unreachable, "{script}");
            assert!(error.message.contains("without a whole answer"), "{error}");
            assert!(error.message.contains(end), "{error}");
        }
    }

    #[tokio::test]
    async fn a_child_that_hangs_is_killed_and_reaped() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pid");
        // The second script's own child keeps the pipe open after the first is dead.
        for script in ["exec sleep 100", "sleep 5; exit", "cat >/dev/null; printf '\\000'; exec sleep 100"] {
            let start = Instant::now();
            let script = format!("echo $$ >{}; {script}", file.display());
            let error = unwrap_with(&script, Duration::from_millis(400)).await.map(drop).expect_err("late");
            assert_eq!(error.class, ErrorClass::Unreachable);
            assert!(error.message.contains("in time"), "{error}");
            assert!(start.elapsed() < Duration::from_secs(4), "{script}");
            let pid = std::fs::read_to_string(&file).expect("the child ran");
            assert!(!Path::new("/proc").join(pid.trim()).exists(), "neither alive nor a zombie: {script}");
        }
    }

    #[tokio::test]
    async fn names_an_executable_that_cannot_be_started() {
        let error = ask(Path::new("/nonexistent/sealblk"), Duration::from_secs(1)).await.map(drop);
        let error = error.expect_err("no such file");
        assert_eq!(error.class, ErrorClass::Config);
        assert!(error.message.contains("/nonexistent/sealblk"), "{error}");
    }
}

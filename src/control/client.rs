//! The asking end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::UnixStream;

use super::ControlError;

/// Longest answer in bytes that is taken.
const MAX_ANSWER: usize = 1024 * 1024;

/// A running sealblk's control socket.
pub struct Client {
    path: PathBuf,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    error: Explained,
}

#[derive(Deserialize)]
struct Explained {
    code: String,
    message: String,
    exit_code: u8,
}

impl Client {
    /// Makes sure, `within` a time, that a sealblk listens on `path` and lets this user in.
    ///
    /// # Errors
    /// Each of [`ControlError`]'s that begins at the client.
    pub async fn connect(path: &Path, within: Duration) -> Result<Self, ControlError> {
        let client = Self { path: path.into() };
        let version = client.call(Method::GET, "/v1/version", None, within).await?;
        match version.get("name").and_then(Value::as_str) {
            Some("sealblk") => Ok(client),
            _ => Err(client.not_sealblk("it does not say that it is one")),
        }
    }

    /// Asks, and waits `within` a time for the answer: a rewrap may take minutes. `target` is a path such as
    /// `/v1/volume`. Each call has a connection of its own.
    ///
    /// # Errors
    /// [`ControlError::Refused`] for an answer that is a refusal; otherwise as [`Client::connect`].
    pub async fn call(
        &self,
        method: Method,
        target: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<Value, ControlError> {
        let asked = self.ask(method, target, body);
        let timeout = || ControlError::Timeout { path: self.path.clone(), within };
        tokio::time::timeout(within, asked).await.map_err(|_| timeout())?
    }

    async fn ask(&self, method: Method, target: &str, body: Option<&Value>) -> Result<Value, ControlError> {
        let stream = UnixStream::connect(&self.path).await.map_err(|error| self.cannot_connect(error))?;
        let lost = |error: hyper::Error| self.lost(&error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::new(body.into()))
            .map_err(|error| self.not_sealblk(&format!("no such request can be made: {error}")))?;
        let answered = async {
            let response = sender.send_request(request).await.map_err(lost)?;
            self.read(response).await
        };
        tokio::pin!(answered);
        tokio::pin!(connection);
        tokio::select! {
            answer = &mut answered => answer,
            // The connection ends when all of it was received; what was received is read then.
            _ = &mut connection => answered.await,
        }
    }

    async fn read(&self, response: Response<Incoming>) -> Result<Value, ControlError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| ControlError::Lost {
            path: self.path.clone(),
            what: format!("while reading the answer: {error}"),
        })?;
        let bytes = body.to_bytes();
        let not_ours = |_| self.not_sealblk(&format!("it answers HTTP status {status} in another form"));
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(not_ours);
        }
        let ErrorAnswer { error } = serde_json::from_slice(&bytes).map_err(not_ours)?;
        Err(ControlError::Refused {
            status: status.as_u16(),
            code: error.code,
            message: error.message,
            exit_code: error.exit_code,
        })
    }

    fn cannot_connect(&self, source: io::Error) -> ControlError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::NotFound => ControlError::Absent(path),
            io::ErrorKind::ConnectionRefused => ControlError::NobodyListens(path),
            io::ErrorKind::PermissionDenied => ControlError::Permission(path),
            _ => ControlError::Connect { path, source },
        }
    }

    fn lost(&self, error: &hyper::Error) -> ControlError {
        if error.is_parse() {
            return self.not_sealblk(&format!("it does not speak HTTP: {error}"));
        }
        ControlError::Lost { path: self.path.clone(), what: error.to_string() }
    }

    fn not_sealblk(&self, what: &str) -> ControlError {
        ControlError::NotSealblk { path: self.path.clone(), what: what.into() }
    }
}

//! From an HTTP request to its answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::super::engine::{Caller, Engine};
use super::super::failure::Failure;
use super::super::principal::PrincipalRecord;
use super::control::{Faults, Verdict};
use super::dispatch::{self, Ordered};
use super::{sigv4, sts};

/// Longest request body in bytes. The largest real ones hold a blob, two contexts and ten grant tokens.
const MAX_BODY: usize = 256 * 1024;
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest `userAgent` in characters (AWS CloudTrail user guide, "Record contents").
const MAX_AGENT: usize = 1024;
const JSON: &str = "application/x-amz-json-1.1";
const TARGET: &str = "x-amz-target";

/// What a connection needs to answer.
pub(crate) struct Server {
    engine: Arc<Engine>,
    faults: Option<Faults>,
}

/// An answer of either protocol. The body may hold a plaintext, so it is wiped when sent.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) request_id: String,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Reply {
    /// An answer of the JSON protocol.
    pub(crate) fn json(status: u16, request_id: String, body: Zeroizing<Vec<u8>>) -> Self {
        Self { status, content_type: JSON, request_id, body }
    }

    /// An error of the JSON protocol.
    pub(crate) fn error(status: u16, request_id: String, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"__type": code, "message": message});
        Self::json(status, request_id, Zeroizing::new(body.to_string().into_bytes()))
    }

    /// A failure before any operation ran.
    pub(crate) fn failure(failure: &Failure) -> Self {
        Self::error(failure.status(), Uuid::new_v4().to_string(), failure.code(), failure.message())
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = plain(self.status, Bytes::from_owner(self.body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if let Ok(id) = HeaderValue::from_str(&self.request_id) {
            headers.insert("x-amzn-requestid", id);
        }
        response
    }
}

fn plain(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// Which protocol and operation a request is for.
enum Wanted {
    Kms(String),
    Sts(String),
}

impl Wanted {
    fn of(headers: &HeaderMap, body: &[u8]) -> Option<Self> {
        match headers.get(TARGET) {
            Some(target) => {
                target.to_str().ok()?.strip_prefix("TrentService.").map(|name| Self::Kms(name.into()))
            }
            None => sts::action(body).map(Self::Sts),
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Kms(name) | Self::Sts(name) => name,
        }
    }

    fn error(&self, status: u16, code: &str, message: &str) -> Reply {
        match self {
            Self::Kms(_) => Reply::error(status, Uuid::new_v4().to_string(), code, message),
            Self::Sts(_) => sts::error(status, code, message),
        }
    }
}

impl Server {
    /// A server for `engine`, which takes orders to fail if it has `faults`.
    pub(crate) fn new(engine: Arc<Engine>, faults: Option<Faults>) -> Self {
        Self { engine, faults }
    }

    /// Answers one request.
    pub(crate) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Full<Bytes>> {
        let (parts, body) = request.into_parts();
        if body.size_hint().lower() > MAX_BODY as u64 {
            return plain(413, "the body is too long\n");
        }
        let body = match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => return plain(413, "the body is too long or broken off\n"),
            Err(_) => return plain(408, "the body came too slowly\n"),
        };
        match (&parts.method, parts.uri.path(), &self.faults) {
            (&Method::POST, "/", _) => self.call(parts, body, peer).await,
            (&Method::POST, path, Some(faults)) if path.starts_with("/_control/") => {
                match faults.order(path, &parts.headers, &body, &self.engine.tuning) {
                    Ok(()) => plain(200, "{}\n"),
                    Err(error) => plain(400, format!("{error}\n")),
                }
            }
            _ => plain(404, "this is a KMS: POST /\n"),
        }
    }

    async fn call(self: Arc<Self>, parts: Parts, body: Bytes, peer: SocketAddr) -> Response<Full<Bytes>> {
        let Some(wanted) = Wanted::of(&parts.headers, &body) else {
            return Reply::failure(&dispatch::unknown_operation()).into_response();
        };
        let mut ordered = None;
        if let Some(faults) = &self.faults {
            match faults.judge(wanted.name()).await {
                Verdict::Pass => {}
                Verdict::Fail { status, code, message } => {
                    ordered = Some(Ordered { status, failure: Failure::new(code, message) });
                }
                Verdict::Garbage => return plain(200, "<html>this is no KMS</html>"),
            }
        }
        let reply =
            tokio::task::spawn_blocking(move || self.reply(&wanted, &parts, &body, peer, ordered)).await;
        reply.unwrap_or_else(|stopped| Reply::failure(&Failure::internal(stopped))).into_response()
    }

    fn reply(
        &self,
        wanted: &Wanted,
        parts: &Parts,
        body: &[u8],
        peer: SocketAddr,
        ordered: Option<Ordered>,
    ) -> Reply {
        match wanted {
            Wanted::Kms(name) => match (self.authenticate(parts, body, "kms"), ordered) {
                (Ok(principal), ordered) => {
                    dispatch::dispatch(name, &self.engine, &caller(principal, parts, peer), body, ordered)
                }
                // As with AWS, who is not known is on no record.
                (Err(_), Some(Ordered { status, failure })) => {
                    wanted.error(status, failure.code(), failure.message())
                }
                (Err(failure), None) => Reply::failure(&failure),
            },
            Wanted::Sts(name) => {
                let principal = self.authenticate(parts, body, "sts");
                let caller = principal.as_ref().ok().map(|principal| caller(principal, parts, peer));
                let reply = match &ordered {
                    Some(Ordered { status, failure }) => {
                        wanted.error(*status, failure.code(), failure.message())
                    }
                    None => sts::reply(name, principal, &self.engine.identity.account),
                };
                match caller.filter(|_| name == "GetCallerIdentity") {
                    Some(caller) => self.noted(&caller, reply, ordered.map(|ordered| ordered.failure)),
                    None => reply,
                }
            }
        }
    }

    /// The answer of STS, once it is on record.
    fn noted(&self, caller: &Caller, reply: Reply, failure: Option<Failure>) -> Reply {
        match self.engine.note_identity(caller, &reply.request_id, failure.as_ref()) {
            Ok(()) => reply,
            Err(failure) => sts::error(failure.status(), failure.code(), failure.message()),
        }
    }

    fn authenticate(&self, parts: &Parts, body: &[u8], service: &str) -> Result<&PrincipalRecord, Failure> {
        let region = &self.engine.identity.region;
        // The signature's clock is the real one, whatever a test did to the keys' clock.
        sigv4::verify(parts, body, region, service, self.engine.principals(), OffsetDateTime::now_utc())
    }
}

fn caller(principal: &PrincipalRecord, parts: &Parts, peer: SocketAddr) -> Caller {
    let agent = parts.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("-");
    Caller {
        secure: false,
        name: principal.name,
        source: peer.ip().to_string(),
        agent: agent.chars().take(MAX_AGENT).collect(),
        // Whoever called over HTTP keeps an audit log of its own.
        witness: None,
    }
}

//! From an HTTP request to a command.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::{Method, Request, Uri};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::{Command, Refusal, RefusalKind, RewrapRequest, StopRequest};

/// Longest body in bytes that is taken.
const MAX_BODY: usize = 64 * 1024;
/// Longest body in bytes that is read before it is refused: a client that is still sending reads no answer.
const MAX_THROWN_AWAY: usize = 1024 * 1024;
/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Most characters of a reason.
const MAX_REASON: usize = 256;
/// The exit code of wrong use.
const EXIT_USAGE: u8 = 2;

/// What a request asks.
pub(super) enum Asked {
    /// Which program this is.
    Version,
    /// Something of the volume.
    Volume(Command),
}

/// A body that says nothing: none at all, or `{}`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Clone, Copy)]
enum Route {
    Version,
    Status,
    Key,
    PollKey,
    Rewrap,
    Stop,
    Restart,
}

const ROUTES: [(&str, &str, Route); 7] = [
    ("GET", "/v1/version", Route::Version),
    ("GET", "/v1/volume", Route::Status),
    ("GET", "/v1/volume/key", Route::Key),
    ("POST", "/v1/volume/key/poll", Route::PollKey),
    ("POST", "/v1/volume/rewrap", Route::Rewrap),
    ("POST", "/v1/volume/stop", Route::Stop),
    ("POST", "/v1/volume/restart", Route::Restart),
];

/// Reads a request to its end and checks it; nothing later checks it again.
pub(super) async fn read(request: Request<Incoming>) -> Result<Asked, Refusal> {
    let route = route(request.method(), request.uri())?;
    let body = tokio::time::timeout(BODY_TIMEOUT, body(request.into_body())).await.unwrap_or_else(|_| {
        let message = format!("the body did not come within {} s", BODY_TIMEOUT.as_secs());
        Err(Refusal::new(RefusalKind::Slow, "too-slow", message, EXIT_USAGE))
    })?;
    Ok(match route {
        Route::Version => parse(&body).map(|Nothing {}| Asked::Version)?,
        Route::Status => parse(&body).map(|Nothing {}| Asked::Volume(Command::Status))?,
        Route::Key => parse(&body).map(|Nothing {}| Asked::Volume(Command::Key))?,
        Route::PollKey => parse(&body).map(|Nothing {}| Asked::Volume(Command::PollKey))?,
        Route::Restart => parse(&body).map(|Nothing {}| Asked::Volume(Command::Restart))?,
        Route::Rewrap => Asked::Volume(Command::Rewrap(Box::new(rewrap(&body)?))),
        Route::Stop => Asked::Volume(Command::Stop(stop(&body)?)),
    })
}

fn route(method: &Method, uri: &Uri) -> Result<Route, Refusal> {
    let path = uri.path();
    let Some((allowed, _, route)) = ROUTES.iter().find(|(_, known, _)| *known == path) else {
        let message = format!("there is no {path}; docs/control.md has the paths, and all begin with /v1/");
        return Err(Refusal::new(RefusalKind::NotFound, "not-found", message, EXIT_USAGE));
    };
    if method != allowed {
        let message = format!("{path} takes {allowed}, not {method}");
        return Err(Refusal::new(RefusalKind::Method(allowed), "method-not-allowed", message, EXIT_USAGE));
    }
    if uri.query().is_some() {
        return Err(invalid(format!("{path} takes no query; what it needs goes into the body")));
    }
    Ok(*route)
}

async fn body(mut body: Incoming) -> Result<Vec<u8>, Refusal> {
    let too_large = || {
        let message = format!("the body is longer than {MAX_BODY} bytes");
        Refusal::new(RefusalKind::TooLarge, "too-large", message, EXIT_USAGE)
    };
    if body.size_hint().lower() > MAX_THROWN_AWAY as u64 {
        return Err(too_large());
    }
    let (mut kept, mut length) = (Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| invalid(format!("the body is broken off or damaged: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        length += data.len();
        if length <= MAX_BODY {
            kept.extend_from_slice(data);
        } else if length > MAX_THROWN_AWAY {
            break;
        }
    }
    if length > MAX_BODY { Err(too_large()) } else { Ok(kept) }
}

fn rewrap(body: &[u8]) -> Result<RewrapRequest, Refusal> {
    if body.is_empty() {
        return Err(invalid("a rewrap needs a body: {\"to_key\": \"...\"}".into()));
    }
    let request: RewrapRequest = from_json(body)?;
    let principals = [&request.grantee, &request.retiring].into_iter().flatten();
    if request.to_key.as_str().is_empty() || principals.into_iter().any(|name| name.as_str().is_empty()) {
        return Err(invalid("to_key, grantee and retiring must not be empty".into()));
    }
    Ok(request)
}

fn stop(body: &[u8]) -> Result<StopRequest, Refusal> {
    let request: StopRequest = parse(body)?;
    let odd = |reason: &String| reason.chars().count() > MAX_REASON || reason.contains(char::is_control);
    if request.reason.as_ref().is_some_and(odd) {
        let message = format!("a reason has at most {MAX_REASON} characters, and no control characters");
        return Err(invalid(message));
    }
    Ok(request)
}

/// A body that may be left out.
fn parse<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, Refusal> {
    if body.is_empty() { Ok(T::default()) } else { from_json(body) }
}

fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    // Of an array, serde would take the fields in order.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(invalid("the body is not a JSON object".into()));
    }
    serde_json::from_slice(body).map_err(|error| invalid(format!("the body: {error}")))
}

fn invalid(message: String) -> Refusal {
    Refusal::new(RefusalKind::Invalid, "bad-request", message, EXIT_USAGE)
}

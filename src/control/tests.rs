//! The control socket over real sockets: its client, requests that no client sends, and peers that send none.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use hyper::Method;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::process;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;

/// Long enough for a machine that is busy with all the other tests.
const WITHIN: Duration = Duration::from_secs(60);
/// A user that no test runs as.
const NOBODY: u32 = 65534;

struct Served {
    directory: TempDir,
    path: PathBuf,
    orders: mpsc::Receiver<Order>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Bound>,
}

fn serve(others: &[u32]) -> Served {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    serve_bound(bind(&path).unwrap(), directory, others)
}

fn serve_bound(bound: Bound, directory: TempDir, others: &[u32]) -> Served {
    let path = bound.path().to_path_buf();
    let (sender, orders) = mpsc::channel(8);
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let serving = tokio::spawn(bound.serve(others.to_vec(), sender, shutdown));
    Served { directory, path, orders, stop, serving }
}

impl Served {
    async fn client(&self) -> Client {
        Client::connect(&self.path, WITHIN).await.unwrap()
    }

    /// Answers every order with the command it carries.
    fn echo(&mut self) -> JoinHandle<()> {
        let (_, none) = mpsc::channel(1);
        let mut orders = std::mem::replace(&mut self.orders, none);
        tokio::spawn(async move {
            while let Some(order) = orders.recv().await {
                let text = format!("{:?}", order.command);
                order.answer(Ok(json!({ "command": text })));
            }
        })
    }

    /// Sends bytes and reads what comes until the server closes.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.path).await.unwrap();
        stream.write_all(request).await.unwrap();
        rest(&mut stream).await
    }

    async fn post(&self, path: &str, body: &str) -> String {
        let length = body.len();
        self.raw(
            format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes(),
        )
        .await
    }
}

async fn rest(stream: &mut UnixStream) -> String {
    let mut answer = Vec::new();
    let outcome = tokio::time::timeout(WITHIN, stream.read_to_end(&mut answer)).await.unwrap();
    // The server may close without having read all of a request that it refuses.
    assert!(outcome.is_ok() || !answer.is_empty(), "closed without an answer");
    String::from_utf8(answer).unwrap()
}

/// Status, and the body's `error`.
fn error_of(answer: &str) -> (u16, Value) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    (status, body["error"].clone())
}

#[tokio::test]
async fn every_request_becomes_its_command() {
    let mut it = serve(&[]);
    it.echo();
    let client = it.client().await;
    let rewrap = json!({"to_key": "alias/b", "provider": {"provider": "aws", "region": "eu-west-1"}});
    let stop = json!({"reason": "maintenance"});
    for (method, path, body, command) in [
        (Method::GET, "/v1/volume", None, "Status"),
        (Method::GET, "/v1/volume/key", None, "Key"),
        (Method::POST, "/v1/volume/key/poll", None, "PollKey"),
        (Method::POST, "/v1/volume/restart", Some(json!({})), "Restart"),
        (Method::POST, "/v1/volume/rewrap", Some(rewrap), "region: Some(\"eu-west-1\")"),
        (Method::POST, "/v1/volume/stop", Some(stop), "Stop(StopRequest { reason: Some(\"maintenance\") })"),
        (Method::POST, "/v1/volume/stop", None, "Stop(StopRequest { reason: None })"),
    ] {
        let answer = client.call(method, path, body.as_ref(), WITHIN).await.unwrap();
        assert!(answer["command"].as_str().unwrap().contains(command), "{path}: {answer}");
    }
    let version = client.call(Method::GET, "/v1/version", None, WITHIN).await.unwrap();
    assert_eq!((&version["name"], &version["pid"]), (&json!("sealblk"), &json!(std::process::id())));
}

#[tokio::test]
async fn refusals_reach_the_client_as_they_are() {
    let mut it = serve(&[]);
    let client = it.client().await;
    for (kind, status) in [
        (RefusalKind::Conflict, 409),
        (RefusalKind::Kms, 502),
        (RefusalKind::Internal, 500),
        (RefusalKind::Invalid, 400),
        (RefusalKind::Ending, 503),
    ] {
        let asked = client.call(Method::GET, "/v1/volume", None, WITHIN);
        let answer = async {
            let order = it.orders.recv().await.unwrap();
            assert_eq!(order.peer.uid, rustix::process::geteuid().as_raw());
            assert_eq!(order.peer.pid, Some(std::process::id().try_into().unwrap()));
            order.answer(Err(Refusal::new(kind, "some-code", "because", 4)));
        };
        let (outcome, ()) = tokio::join!(asked, answer);
        let error = outcome.unwrap_err();
        let ControlError::Refused { status: got, code, message, exit_code } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((*got, &code[..], &message[..], *exit_code), (status, "some-code", "because", 4));
    }
    let asked = client.call(Method::POST, "/v1/volume/stop", None, WITHIN);
    let (outcome, ()) = tokio::join!(asked, async { drop(it.orders.recv().await) });
    assert!(matches!(outcome, Err(ControlError::Refused { status: 503, .. })), "a dropped order");
    drop(it.orders);
    let nobody = client.call(Method::GET, "/v1/volume", None, WITHIN).await;
    assert!(matches!(nobody, Err(ControlError::Refused { status: 503, .. })));
}

#[tokio::test]
async fn bad_requests_are_refused_and_send_no_order() {
    let mut it = serve(&[]);
    for (path, body, message) in [
        ("/v1/volume/rewrap", "", "needs a body"),
        ("/v1/volume/rewrap", "{}", "to_key"),
        ("/v1/volume/rewrap", "{\"to_key\":\"\"}", "must not be empty"),
        ("/v1/volume/rewrap", "{\"to_key\":\"a\",\"grantee\":\"\"}", "must not be empty"),
        ("/v1/volume/rewrap", "{\"to_key\":\"a\",\"colour\":1}", "unknown field `colour`"),
        ("/v1/volume/rewrap", "{\"to_key\":\"a\",\"provider\":{\"provider\":\"x\"}}", "unknown variant"),
        ("/v1/volume/rewrap", "{\"to_key\":\"a\"", "EOF"),
        ("/v1/volume/rewrap", "[\"a\"]", "not a JSON object"),
        ("/v1/volume/stop", "{\"reason\":\"a\\nb\"}", "control characters"),
        ("/v1/volume/stop", "\u{0}\u{1}", "not a JSON object"),
        ("/v1/volume/restart", "{\"now\":true}", "unknown field"),
        ("/v1/volume/restart?now=1", "", "no query"),
    ] {
        let (status, error) = error_of(&it.post(path, body).await);
        assert_eq!((status, &error["code"], &error["exit_code"]), (400, &json!("bad-request"), &json!(2)));
        assert!(error["message"].as_str().unwrap().contains(message), "{path} {body}: {error}");
    }
    let long = format!("{{\"reason\":\"{}\"}}", "x".repeat(257));
    assert_eq!(error_of(&it.post("/v1/volume/stop", &long).await).0, 400);
    for path in ["/", "/v1", "/v1/volume/", "/v2/volume", "/v1/volume/%6bey", "/v1/volume/key/poll/x"] {
        let (status, error) = error_of(&it.post(path, "").await);
        assert_eq!((status, &error["code"], &error["exit_code"]), (404, &json!("not-found"), &json!(2)));
    }
    assert!(it.orders.try_recv().is_err());
}

#[tokio::test]
async fn another_method_is_refused_with_the_right_one() {
    let it = serve(&[]);
    for (method, path, allowed) in [
        ("POST", "/v1/volume", "GET"),
        ("DELETE", "/v1/volume/key", "GET"),
        ("GET", "/v1/volume/rewrap", "POST"),
        ("PUT", "/v1/volume/stop", "POST"),
    ] {
        let answer = it.raw(format!("{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await;
        assert!(answer.contains(&format!("\r\nallow: {allowed}\r\n")), "{answer}");
        assert_eq!(error_of(&answer).0, 405);
    }
}

#[tokio::test]
async fn long_bodies_and_headers_and_garbage_are_refused() {
    let mut it = serve(&[]);
    it.echo();
    let fits = format!("{}{{}}", " ".repeat(65_534));
    assert!(it.post("/v1/volume/stop", &fits).await.starts_with("HTTP/1.1 200"));
    let (status, error) = error_of(&it.post("/v1/volume/stop", &format!(" {fits}")).await);
    assert_eq!((status, &error["code"]), (413, &json!("too-large")));
    let announced = "POST /v1/volume/stop HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n";
    assert_eq!(error_of(&it.raw(announced.as_bytes()).await).0, 413);
    let mut chunked =
        b"POST /v1/volume/stop HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..20 {
        chunked.extend(format!("1000\r\n{}\r\n", " ".repeat(4096)).bytes());
    }
    chunked.extend(b"0\r\n\r\n");
    assert_eq!(error_of(&it.raw(&chunked).await).0, 413);
    let header = format!("GET /v1/volume HTTP/1.1\r\nhost: x\r\na: {}", "x".repeat(17_000));
    assert!(it.raw(header.as_bytes()).await.starts_with("HTTP/1.1 431"));
    assert!(it.raw(b"\x16\x03\x01\x00\xff\xff garbage\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    assert!(it.client().await.call(Method::GET, "/v1/volume", None, WITHIN).await.is_ok());
}

#[tokio::test]
async fn silent_and_slow_peers_hold_up_nobody_and_are_dropped() {
    let mut it = serve(&[]);
    it.echo();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(UnixStream::connect(&it.path).await.unwrap());
    }
    let mut slow = UnixStream::connect(&it.path).await.unwrap();
    slow.write_all(b"GET /v1/volume HTTP/1.1\r\nhost:").await.unwrap();
    let mut stuck = UnixStream::connect(&it.path).await.unwrap();
    let begun = b"POST /v1/volume/stop HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{";
    stuck.write_all(begun).await.unwrap();
    let client = it.client().await;
    assert!(client.call(Method::GET, "/v1/volume", None, WITHIN).await.is_ok());
    assert_eq!(error_of(&rest(&mut stuck).await).0, 408);
    rest(&mut slow).await;
    for mut stream in silent {
        rest(&mut stream).await;
    }
}

#[tokio::test]
async fn a_request_may_take_long_while_others_are_answered() {
    let mut it = serve(&[]);
    let client = it.client().await;
    let path = it.path.clone();
    let rewrap = tokio::spawn(async move {
        let client = Client::connect(&path, WITHIN).await.unwrap();
        let body = json!({"to_key": "alias/b"});
        client.call(Method::POST, "/v1/volume/rewrap", Some(&body), WITHIN).await
    });
    let rewrapping = it.orders.recv().await.unwrap();
    it.echo();
    assert!(client.call(Method::GET, "/v1/volume", None, WITHIN).await.is_ok());
    rewrapping.answer(Ok(json!({"slot": 1})));
    assert_eq!(rewrap.await.unwrap().unwrap(), json!({"slot": 1}));
}

#[tokio::test]
async fn the_end_answers_what_is_in_flight_and_removes_the_socket() {
    let mut it = serve(&[]);
    let client = it.client().await;
    let idle = UnixStream::connect(&it.path).await.unwrap();
    let asked = tokio::spawn(async move { client.call(Method::POST, "/v1/volume/stop", None, WITHIN).await });
    let order = it.orders.recv().await.unwrap();
    it.stop.send(()).unwrap();
    order.answer(Ok(json!({"ending": true})));
    assert_eq!(asked.await.unwrap().unwrap(), json!({"ending": true}));
    let bound = it.serving.await.unwrap();
    assert!(it.path.exists());
    drop((bound, idle));
    assert!(!it.path.exists());
}

#[tokio::test]
async fn a_request_that_is_never_answered_does_not_hold_up_the_end() {
    let mut it = serve(&[]);
    let client = it.client().await;
    let asked = tokio::spawn(async move { client.call(Method::GET, "/v1/volume", None, WITHIN).await });
    let order = it.orders.recv().await.unwrap();
    it.stop.send(()).unwrap();
    tokio::time::timeout(WITHIN, it.serving).await.unwrap().unwrap();
    assert!(matches!(asked.await.unwrap(), Err(ControlError::Lost { .. })));
    order.answer(Ok(Value::Null));
}

#[tokio::test]
async fn the_socket_is_private_and_never_taken_from_others() {
    let it = serve(&[]);
    assert_eq!(fs::metadata(&it.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(bind(&it.path), Err(ControlError::Listen(ListenError::InUse(_)))));
    let file = it.directory.path().join("file");
    fs::write(&file, "precious").unwrap();
    assert!(matches!(bind(&file), Err(ControlError::Listen(ListenError::Occupied { .. }))));
    let dead = it.directory.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert_eq!(bind(&dead).unwrap().path(), dead);
}

#[tokio::test]
async fn a_socket_goes_from_one_owner_to_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("control");
    let socket = bind(&path).unwrap().into_fd().unwrap();
    assert!(path.exists(), "it is listened on still");
    let waiting = tokio::spawn({
        let path = path.clone();
        async move { Client::connect(&path, WITHIN).await.map(|_| ()) }
    });
    let bound = Bound::from_fd(socket).unwrap();
    let copy = bound.as_fd().try_clone_to_owned().unwrap();
    let it = serve_bound(bound, directory, &[]);
    waiting.await.unwrap().unwrap();
    it.stop.send(()).unwrap();
    drop(it.serving.await.unwrap());
    assert!(!path.exists());
    assert!(matches!(Bound::from_fd(copy), Err(ControlError::Descriptor(_))), "its file is gone");
    let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(Bound::from_fd(one.into()), Err(ControlError::Descriptor(_))));
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(Bound::from_fd(file.into()), Err(ControlError::Descriptor(_))));
}

/// What a process of user [`NOBODY`] is answered. Needs root, as the tests of block devices do.
async fn ask_as_nobody(it: &Served) -> String {
    fs::set_permissions(it.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&it.path, fs::Permissions::from_mode(0o666)).unwrap();
    let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); \
                  s.sendall(b'GET /v1/version HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n'); \
                  print(s.makefile(newline='').read(), end='')";
    let user = NOBODY.to_string();
    let mut command = if rustix::process::geteuid().is_root() {
        process::Command::new("setpriv")
    } else {
        let mut sudo = process::Command::new("sudo");
        sudo.args(["-n", "setpriv"]);
        sudo
    };
    let asked = command
        .args(["--reuid", &user, "--clear-groups", "/usr/bin/python3", "-c", script])
        .arg(&it.path)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    String::from_utf8(asked.stdout).unwrap()
}

#[tokio::test]
async fn other_users_are_turned_away_unless_allowed() {
    let it = serve(&[]);
    let (status, error) = error_of(&ask_as_nobody(&it).await);
    assert_eq!((status, &error["code"]), (403, &json!("peer-not-allowed")));
    assert!(error["message"].as_str().unwrap().contains("user 65534 may not control this volume"));
    let it = serve(&[NOBODY]);
    assert!(ask_as_nobody(&it).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn the_client_says_what_is_wrong_with_a_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let connect = || async { Client::connect(&path, WITHIN).await.err().unwrap() };
    assert!(matches!(connect().await, ControlError::Absent(_)));
    fs::write(&path, "").unwrap();
    assert!(matches!(connect().await, ControlError::NobodyListens(_)));
    fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let web = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
    for (answer, says) in [
        ("NBDMAGIC IHAVEOPT 123\r\n\r\n", "does not speak HTTP"),
        (web, "does not say that it is one"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", "in another form"),
        ("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 2\r\n\r\nno", "in another form"),
    ] {
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let read = stream.read(&mut [0; 4096]).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            read
        };
        let (error, read) = tokio::join!(connect(), serve);
        assert!(read > 0 && matches!(error, ControlError::NotSealblk { .. }), "{answer}: {error:?}");
        assert!(error.to_string().contains(says), "{error}");
    }
    let close = async { drop(listener.accept().await.unwrap()) };
    assert!(matches!(tokio::join!(connect(), close).0, ControlError::Lost { .. }));
    let hurried = Client::connect(&path, Duration::from_millis(20)).await;
    assert!(matches!(hurried, Err(ControlError::Timeout { .. })));
    drop(listener);
    assert!(matches!(connect().await, ControlError::NobodyListens(_)));
}

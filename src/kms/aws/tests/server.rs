//! An HTTP/1.1 server that gives canned answers and keeps what it was asked.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What comes back for one request.
#[derive(Clone)]
pub(super) enum Reply {
    /// A status and a body, as awsJson1_1.
    Answer(u16, String),
    /// These bytes, then the end of the connection.
    Raw(&'static str),
    /// Nothing, for ever.
    Silence,
}

impl Reply {
    pub(super) fn ok(body: Value) -> Self {
        Self::Answer(200, body.to_string())
    }

    /// An error as KMS writes it.
    pub(super) fn error(status: u16, code: &str, message: &str) -> Self {
        Self::Answer(status, json!({"__type": code, "message": message}).to_string())
    }
}

/// What was asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// The operation, `TrentService.` cut off; for STS the form.
    pub(super) operation: String,
    pub(super) body: Value,
    /// All headers, in lower case.
    pub(super) head: String,
}

pub(super) struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Gives the replies in turn, and the last one from then on.
    pub(super) async fn start(replies: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its number"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let replies = Arc::new(Mutex::new(replies.into_iter().collect()));
        let kept = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&replies), Arc::clone(&kept)));
            }
        });
        Self { url, requests }
    }

    pub(super) fn url(&self) -> String {
        self.url.clone()
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }

    /// The operations asked for, in order.
    pub(super) fn operations(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.operation).collect()
    }
}

async fn serve(
    stream: TcpStream,
    replies: Arc<Mutex<VecDeque<Reply>>>,
    requests: Arc<Mutex<Vec<Request>>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let request = read(&mut stream).await?;
        requests.lock().expect("no panic").push(request);
        let reply = {
            let mut replies = replies.lock().expect("no panic");
            if replies.len() > 1 { replies.pop_front() } else { replies.front().cloned() }
        };
        match reply? {
            Reply::Answer(status, body) => {
                let head = format!(
                    "HTTP/1.1 {status} Canned\r\ncontent-type: application/x-amz-json-1.1\r\n\
                     x-amzn-requestid: request-1\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).await.ok()?;
            }
            Reply::Raw(bytes) => {
                stream.write_all(bytes.as_bytes()).await.ok()?;
                return Some(());
            }
            Reply::Silence => std::future::pending().await,
        }
    }
}

/// One request; `None` when the client has hung up.
pub(super) async fn read(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let head = head.to_lowercase();
    let length = header(&head, "content-length")?.parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let text = String::from_utf8(body).ok()?;
    let operation = match header(&head, "x-amz-target") {
        Some(target) => target.trim_start_matches("trentservice.").to_owned(),
        None => text.clone(),
    };
    Some(Request { operation, body: serde_json::from_str(&text).unwrap_or(Value::Null), head })
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

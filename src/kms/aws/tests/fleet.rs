//! Many starts at once on one thread.

use std::sync::Arc;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

use super::*;
use crate::kms::{KeyRef, KeyService, KmsError};

const STARTS: usize = 100;

/// Answers each call at once, and CreateGrant in earnest only when all starts wait for it together.
async fn attend(stream: TcpStream, all: Arc<Barrier>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let request = server::read(&mut stream).await?;
        let dry = request.body["DryRun"] == true;
        let (status, body) = match request.operation.as_str() {
            _ if dry => (400, json!({"__type": "DryRunOperationException", "message": "would succeed"})),
            "describekey" => (200, json!({"KeyMetadata": {"Arn": ARN, "KeyState": "Enabled", "KeyId": "k"}})),
            "creategrant" => {
                all.wait().await;
                (200, json!({"GrantId": GRANT, "GrantToken": TOKEN}))
            }
            _ => (200, generated()),
        };
        let body = body.to_string();
        let head = format!("HTTP/1.1 {status} Canned\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.ok()?;
    }
}

async fn start(kms: Arc<AwsKms>) -> Result<(), KmsError> {
    let arn = kms.health(&KeyRef::new("alias/x")).await?.arn;
    kms.preflight(&arn, &context(), &spec()).await?.require_passed()?;
    kms.generate(&arn, &context(), 64).await?;
    kms.lease(&arn, &context(), &spec()).await.map(drop)
}

/// A call that held its thread while it waits would keep the hundredth from being made, for ever. The runtime of a
/// test has one thread, and the server runs on it too.
#[tokio::test]
async fn a_hundred_starts_wait_together_on_one_thread() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its number"));
    let all = Arc::new(Barrier::new(STARTS));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(attend(stream, Arc::clone(&all)));
        }
    });
    // No attempt is given up on a busy machine: its successor would be counted as another start.
    let settings = Settings { endpoint: Some(url), attempt_timeout: Some(300), ..Settings::default() };
    let settings = Settings { deadline: Some(300), ..settings };
    let kms = Arc::new(open(settings).await);
    let starts: Vec<_> = (0..STARTS).map(|_| tokio::spawn(start(Arc::clone(&kms)))).collect();
    for started in starts {
        started.await.expect("no panic").expect("a grant");
    }
}

//! Many starts at once on one thread.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Barrier;

use super::*;
use crate::kms::local::{Admin, PrincipalName, ServeOptions, serve};
use crate::kms::{GrantRef, KeyRef, KeyService, Lease, Released};

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

/// An order to the embedded KMS: no more calls of the operation than that in a second.
async fn limit(address: &str, operation: &str, per_second: u32) {
    let body = json!({"operation": operation, "per_second": per_second}).to_string();
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let head = format!(
        "POST /_control/rate HTTP/1.1\r\nhost: kms\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.expect("an order");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Makes a data key and its grant.
async fn provision(kms: Arc<AwsKms>, key: KeyArn, spec: LeaseSpec) -> Result<Lease, KmsError> {
    kms.generate(&key, &context(), 64).await?;
    kms.lease(&key, &context(), &spec).await
}

/// AWS's default quotas: 50 CreateGrant and 30 RetireGrant a second. The first second's worth gets through at once and
/// the others come again, each after a pause of its own, until they do.
#[tokio::test]
async fn a_hundred_starts_get_through_the_quotas() {
    let directory = tempfile::tempdir().expect("a directory");
    let admin = Admin::open(directory.path()).expect("a KMS");
    let key = admin.create("", None).expect("a key").arn;
    let credentials = admin.credentials(PrincipalName::Provisioner).expect("known");
    let host = admin.credentials(PrincipalName::Host).expect("known").principal;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its number").to_string();
    let options = ServeOptions { faults: true, insecure: false };
    tokio::spawn(async move { serve(&admin, listener, options, std::future::pending()).await });
    limit(&address, "CreateGrant", 50).await;
    limit(&address, "RetireGrant", 30).await;

    let profiles = format!(
        "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        credentials.access_key_id, *credentials.secret_access_key
    );
    let tuning = Tuning { profile_files: tuning(&profiles).profile_files, ..Tuning::default() };
    let endpoint = Some(format!("http://{address}"));
    let settings = Settings { endpoint, region: Some(credentials.region.clone()), ..Settings::default() };
    let connector = Connector::tuned(settings, tuning);
    let kms = Arc::new(connect(connector, Role::Provisioner).await.expect("settings"));
    let starts: Vec<_> = (0..STARTS)
        .map(|number| {
            let (grantee, retiring) = (Principal::new(&host), Principal::new(&credentials.principal));
            let spec = LeaseSpec { grantee, retiring, name: format!("volume-{number}") };
            tokio::spawn(provision(Arc::clone(&kms), key.clone(), spec))
        })
        .collect();
    let mut ends = Vec::new();
    for started in starts {
        let lease = started.await.expect("no panic").expect("a grant");
        let (kms, key) = (Arc::clone(&kms), key.clone());
        ends.push(async move {
            let grant = GrantRef::Token { key: &key, grant_id: &lease.grant_id, token: &lease.token };
            kms.release(&grant).await
        });
    }
    let ends: Vec<_> = ends.into_iter().map(tokio::spawn).collect();
    for ended in ends {
        assert_eq!(ended.await.expect("no panic"), Ok(Released::Retired));
    }
}

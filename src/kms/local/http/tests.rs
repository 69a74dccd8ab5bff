//! Tests of the HTTP face: the AWS SDK as its client, and requests that no SDK sends.

use std::net::SocketAddr;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::error::ProvideErrorMetadata;
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{GrantConstraints, GrantOperation};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::super::PrincipalName;
use super::*;

struct Served {
    directory: TempDir,
    admin: Admin,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), KmsError>>,
}

async fn served(faults: bool) -> Served {
    let directory = tempfile::tempdir().expect("a directory");
    let admin = Admin::open(directory.path()).expect("a KMS");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = oneshot::channel::<()>();
    let kms = admin.clone();
    let serving = tokio::spawn(async move {
        let shutdown = async {
            let _ = stopped.await;
        };
        serve(&kms, listener, ServeOptions { faults, insecure: false }, shutdown).await
    });
    Served { directory, admin, address, stop, serving }
}

impl Served {
    fn client(&self, name: PrincipalName, forge: impl FnOnce(&mut String, &mut String)) -> Client {
        let credentials = self.admin.credentials(name).expect("known");
        let mut id = credentials.access_key_id.clone();
        let mut secret = credentials.secret_access_key.to_string();
        forge(&mut id, &mut secret);
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(format!("http://{}", self.address))
            .region(Region::new(credentials.region))
            .retry_config(RetryConfig::disabled())
            .credentials_provider(Credentials::new(id, secret, None, None, "test"))
            .build();
        Client::from_conf(config)
    }

    fn honest(&self, name: PrincipalName) -> Client {
        self.client(name, |_, _| {})
    }

    /// Sends bytes and reads what comes until the server closes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("an end").expect("an answer");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn post(&self, path: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        self.raw(&format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
        ))
        .await
    }
}

#[tokio::test]
async fn the_aws_sdk_goes_through_a_volumes_life() {
    let it = served(false).await;
    let key = it.admin.create("", None).expect("made").arn;
    let (provisioner, host) = (it.honest(PrincipalName::Provisioner), it.honest(PrincipalName::Host));
    let generate = provisioner.generate_data_key_without_plaintext().key_id(key.as_str()).number_of_bytes(64);
    let wrapped = generate.encryption_context("volume", "v1").send().await.expect("wrapped");
    let blob = wrapped.ciphertext_blob().expect("a blob").clone();
    let decrypt = || host.decrypt().ciphertext_blob(blob.clone()).encryption_context("volume", "v1");
    let denied = decrypt().send().await.expect_err("no grant yet");
    assert_eq!(denied.code(), Some("AccessDeniedException"));
    assert!(denied.request_id().is_some());
    let constraints = GrantConstraints::builder().encryption_context_subset("volume", "v1").build();
    let grant = provisioner
        .create_grant()
        .key_id(key.as_str())
        .grantee_principal(it.admin.credentials(PrincipalName::Host).expect("known").principal)
        .operations(GrantOperation::Decrypt)
        .constraints(constraints);
    let token = grant.send().await.expect("granted").grant_token.expect("a token");
    let opened = decrypt().key_id(key.as_str()).grant_tokens(token).send().await.expect("opened");
    assert_eq!(opened.plaintext().map(Blob::as_ref).map(<[u8]>::len), Some(64));
    assert_eq!(opened.key_material_id(), wrapped.key_material_id());
    let described = provisioner.describe_key().key_id(key.as_str()).send().await.expect("described");
    assert!(described.key_metadata().is_some_and(|metadata| metadata.creation_date().is_some()));
}

#[tokio::test]
async fn signatures_decide_who_calls() {
    let it = served(false).await;
    let stranger = it.client(PrincipalName::Admin, |id, _| *id = "AKIAAAAAAAAAAAAAAAAA".into());
    assert_eq!(
        stranger.list_keys().send().await.expect_err("refused").code(),
        Some("UnrecognizedClientException")
    );
    let forger = it.client(PrincipalName::Admin, |_, secret| secret.push('x'));
    assert_eq!(
        forger.list_keys().send().await.expect_err("refused").code(),
        Some("InvalidSignatureException")
    );
    let target = "x-amz-target: TrentService.ListKeys\r\n";
    let unsigned = it.post("/", target, "{}").await;
    assert!(unsigned.starts_with("HTTP/1.1 400") && unsigned.contains("MissingAuthenticationTokenException"));
    let odd = it.post("/", &format!("{target}authorization: AWS4-HMAC-SHA256 Credential=x\r\n"), "{}").await;
    assert!(odd.contains("IncompleteSignatureException"), "{odd}");
}

#[tokio::test]
async fn requests_that_no_client_sends_are_refused() {
    let it = served(false).await;
    assert!(
        it.raw("GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.starts_with("HTTP/1.1 404")
    );
    assert!(it.post("/", "x-amz-target: S3.List\r\n", "{}").await.contains("UnknownOperationException"));
    assert!(it.post("/", "", "nonsense").await.contains("UnknownOperationException"));
    assert!(
        it.post("/_control/reset", "content-type: application/json\r\n", "{}")
            .await
            .starts_with("HTTP/1.1 404")
    );
    let long =
        format!("POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", 1 << 30);
    assert!(it.raw(&long).await.starts_with("HTTP/1.1 413"));
}

#[tokio::test]
async fn orders_need_to_be_json_and_known() {
    let it = served(true).await;
    let json = "content-type: application/json\r\n";
    assert!(it.post("/_control/reset", "", "{}").await.starts_with("HTTP/1.1 400"));
    assert!(it.post("/_control/reset", json, "{}").await.starts_with("HTTP/1.1 200"));
    assert!(it.post("/_control/nothing", json, "{}").await.starts_with("HTTP/1.1 400"));
    assert!(it.post("/_control/faults", json, "{\"operation\":7}").await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn storage_failures_do_not_tell_paths() {
    let it = served(false).await;
    let key = it.admin.create("", None).expect("made");
    let path = it.directory.path().join(format!("materials/{}.key", key.material.expect("an id")));
    std::fs::remove_file(&path).expect("removed");
    let client = it.honest(PrincipalName::Provisioner);
    let generate = client.generate_data_key_without_plaintext().key_id(key.arn.as_str()).number_of_bytes(64);
    let error = generate.send().await.expect_err("no material");
    assert_eq!(error.code(), Some("KMSInternalException"));
    assert_eq!(error.raw_response().map(|response| response.status().as_u16()), Some(500));
    assert!(!error.message().unwrap_or_default().contains("materials"));
}

#[tokio::test]
async fn only_loopback_is_served_unless_asked() {
    let it = served(false).await;
    let anywhere = || async { TcpListener::bind("0.0.0.0:0").await.expect("a port") };
    let insecure = ServeOptions { faults: false, insecure: true };
    let faulty = ServeOptions { faults: true, insecure: true };
    for options in [ServeOptions::default(), faulty] {
        let refused = serve(&it.admin, anywhere().await, options, async {}).await.expect_err("refused");
        assert_eq!(refused.class, ErrorClass::Config);
    }
    serve(&it.admin, anywhere().await, insecure, async {}).await.expect("served");
}

#[tokio::test]
async fn shutdown_ends_idle_connections() {
    let it = served(false).await;
    it.honest(PrincipalName::Admin).list_keys().send().await.expect("listed, and the connection kept");
    let idle = TcpStream::connect(it.address).await.expect("connected");
    it.stop.send(()).expect("still serving");
    let ended = tokio::time::timeout(Duration::from_secs(4), it.serving).await.expect("in time");
    ended.expect("no panic").expect("in order");
    drop(idle);
    assert!(TcpStream::connect(it.address).await.is_err());
}

//! Where requests go, as whom, and what the environment may say about it.

use std::process::{Command, Output};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;

use super::*;
use crate::kms::{ErrorClass, KeyRef, KeyService, Parties};

fn caller(arn: &str) -> Reply {
    Reply::Answer(
        200,
        format!(
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
             <Arn>{arn}</Arn><UserId>u</UserId><Account>111122223333</Account></GetCallerIdentityResult>\
             </GetCallerIdentityResponse>"
        ),
    )
}

#[tokio::test]
async fn without_a_host_profile_one_identity_is_both_parties() {
    let (server, kms) = pair([caller("arn:aws:sts::111122223333:assumed-role/Dev/alice")]).await;
    let role = Principal::new("arn:aws:iam::111122223333:role/Dev");
    assert_eq!(kms.parties().await, Ok(Parties { grantee: role.clone(), retiring: role }));
    assert_eq!(server.operations(), ["Action=GetCallerIdentity&Version=2011-06-15"]);
}

#[tokio::test]
async fn a_host_profile_is_the_grantee() {
    let server = Server::start([
        caller("arn:aws:iam::111122223333:role/Provisioner"),
        caller("arn:aws:sts::111122223333:assumed-role/Host/i-0"),
    ])
    .await;
    let kms = open(Settings { host_profile: Some("host".into()), ..settings(&server) }).await;
    let parties = kms.parties().await.expect("two answers");
    assert_eq!(parties.retiring.as_str(), "arn:aws:iam::111122223333:role/Provisioner");
    assert_eq!(parties.grantee.as_str(), "arn:aws:iam::111122223333:role/Host");
    assert!(server.requests()[1].head.contains("credential=akidhost/"), "{:?}", server.requests());
}

#[tokio::test]
async fn sts_that_refuses_is_an_error() {
    let refusal = "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidClientTokenId</Code>\
                   <Message>The security token is invalid</Message></Error><RequestId>r</RequestId></ErrorResponse>";
    let (_server, kms) = pair([Reply::Answer(403, refusal.into())]).await;
    let error = kms.parties().await.expect_err("refused");
    assert_eq!((error.call.as_str(), error.class), ("GetCallerIdentity", ErrorClass::Denied));
    assert!(!error.to_string().contains("missing permission"), "{error}");
}

#[tokio::test]
async fn the_role_chooses_the_profile() {
    let server = Server::start([decrypted()]).await;
    let settings = Settings { host_profile: Some("host".into()), ..settings(&server) };
    for (role, credential) in [(Role::Host, "akidhost/"), (Role::Provisioner, "akidprovisioner/")] {
        let connector = Connector::tuned(settings.clone(), tuning(PROFILES));
        let kms = connect(connector, role).await.expect("settings");
        kms.unwrap(&wrapped(), &context(), Permit::default()).await.map(drop).expect("a data key");
        let head = server.requests().pop().expect("a request").head;
        assert!(head.contains(&format!("credential={credential}")), "{role:?}: {head}");
    }
}

#[tokio::test]
async fn a_profile_that_is_missing_is_named() {
    let server = Server::start([decrypted()]).await;
    let settings = Settings {
        provisioner_profile: Some("nobody".into()),
        region: Some("x".into()),
        ..settings(&server)
    };
    let kms = open(settings).await;
    let error = kms.health(&KeyRef::new(ARN)).await.expect_err("no credentials");
    assert!(matches!(error.class, ErrorClass::Config | ErrorClass::Denied), "{error}");
    assert!(error.message.contains("nobody"), "{error}");
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn fips_and_an_endpoint_exclude_each_other() {
    let profiles = PROFILES.replace("[default]", "[default]\nuse_fips_endpoint = true");
    let opened = |endpoint: Option<&str>| {
        let settings = Settings { endpoint: endpoint.map(Into::into), ..Settings::default() };
        connect(Connector::tuned(settings, tuning(&profiles)), Role::Provisioner)
    };
    let error = opened(Some("https://kms.example.com")).await.map(drop).expect_err("both");
    assert_eq!(error.class, ErrorClass::Config);
    assert!(error.message.contains("AWS_USE_FIPS_ENDPOINT"), "{error}");
    assert!(opened(None).await.is_ok());
}

#[tokio::test]
async fn plain_http_to_another_host_is_refused_before_any_call() {
    let settings = Settings { endpoint: Some("http://192.0.2.1".into()), ..Settings::default() };
    let error = AwsKms::open(&settings, Role::Host, Arc::new(Nobody)).await.map(drop).expect_err("http");
    assert_eq!(error.class, ErrorClass::Config);
}

/// Set in a child process: the test that started it is to do the child's part.
const CHILD: &str = "SEALBLK_TEST_CHILD";
/// The server that a child is to call.
const CHILD_SERVER: &str = "SEALBLK_TEST_SERVER";

fn in_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs the child's part of a test in a process with this environment alone.
fn in_environment(test: &str, variables: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "--nocapture", &format!("kms::aws::tests::endpoints::{test}")])
        .env_clear()
        .env(CHILD, "1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_CONFIG_FILE", "/nonexistent")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
        .envs(variables.iter().copied())
        .output()
        .expect("a child")
}

fn assert_ran(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

const ALL_REDIRECTED: [(&str, &str); 6] = [
    ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
    ("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:9"),
    ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9"),
    ("AWS_ACCESS_KEY_ID", "AKIDENVIRONMENT"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    ("AWS_REGION", "eu-west-1"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_does_not_redirect_calls() {
    if in_child() {
        return child_calls_the_server().await;
    }
    let server = Server::start([decrypted(), caller("arn:aws:iam::111122223333:user/alice")]).await;
    let url = server.url();
    let variables = [&ALL_REDIRECTED[..], &[(CHILD_SERVER, url.as_str())]].concat();
    assert_ran(&in_environment("the_environment_does_not_redirect_calls", &variables));
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.head.contains("credential=akidenvironment/")));
}

async fn child_calls_the_server() {
    let endpoint = std::env::var(CHILD_SERVER).expect("a server");
    let settings = Settings { endpoint: Some(endpoint), ..Settings::default() };
    let kms = AwsKms::open(&settings, Role::Host, Arc::new(Nobody)).await.expect("settings");
    kms.unwrap(&wrapped(), &context(), Permit::default()).await.map(drop).expect("a data key");
    kms.parties().await.expect("a caller");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roles_profile_wins_over_keys_in_the_environment() {
    if in_child() {
        return child_has_a_profile().await;
    }
    let server = Server::start([decrypted()]).await;
    let url = server.url();
    let variables = [&ALL_REDIRECTED[..], &[(CHILD_SERVER, url.as_str())]].concat();
    assert_ran(&in_environment("a_roles_profile_wins_over_keys_in_the_environment", &variables));
    assert!(server.requests()[0].head.contains("credential=akidhost/"), "{:?}", server.requests());
}

async fn child_has_a_profile() {
    let endpoint = std::env::var(CHILD_SERVER).expect("a server");
    let settings =
        Settings { endpoint: Some(endpoint), host_profile: Some("host".into()), ..Settings::default() };
    let connector = Connector::tuned(settings, tuning(PROFILES));
    let kms = connect(connector, Role::Host).await.expect("settings");
    kms.unwrap(&wrapped(), &context(), Permit::default()).await.map(drop).expect("a data key");
}

/// A proxy sees which host is asked for, and lets nothing out.
#[tokio::test(flavor = "multi_thread")]
async fn the_environment_chooses_fips_and_proxy_but_no_host() {
    if in_child() {
        return child_asks_the_region().await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let proxy = format!("http://{}", listener.local_addr().expect("its number"));
    let asked = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a connection");
        BufReader::new(stream).lines().next_line().await
    });
    let variables = [("AWS_USE_FIPS_ENDPOINT", "true"), ("https_proxy", proxy.as_str())];
    assert_ran(&in_environment(
        "the_environment_chooses_fips_and_proxy_but_no_host",
        &[&ALL_REDIRECTED[..], &variables].concat(),
    ));
    let line = tokio::time::timeout(Duration::from_secs(5), asked).await.expect("the proxy is asked");
    let line = line.expect("no panic").expect("a line");
    assert_eq!(line.as_deref(), Some("CONNECT kms-fips.eu-west-1.amazonaws.com:443 HTTP/1.1"));
}

async fn child_asks_the_region() {
    let settings = Settings { deadline: Some(2), ..Settings::default() };
    let kms = AwsKms::open(&settings, Role::Host, Arc::new(Nobody)).await.expect("settings");
    let error = kms.health(&KeyRef::new(ARN)).await.expect_err("the proxy lets nothing out");
    assert_eq!(error.class, ErrorClass::Unreachable);
    assert!(error.message.contains("AWS KMS in eu-west-1"), "{error}");
}

#[tokio::test]
async fn no_region_is_an_error_that_says_how_to_give_one() {
    if in_child() {
        return child_has_no_region().await;
    }
    assert_ran(&in_environment("no_region_is_an_error_that_says_how_to_give_one", &[]));
}

async fn child_has_no_region() {
    let error = AwsKms::open(&Settings::default(), Role::Host, Arc::new(Nobody))
        .await
        .map(drop)
        .expect_err("no region");
    assert_eq!(error.class, ErrorClass::Config);
    assert!(error.message.contains("AWS_REGION"), "{error}");
}

#[tokio::test]
async fn no_credentials_is_an_error_before_any_call() {
    if in_child() {
        return child_has_no_credentials().await;
    }
    assert_ran(&in_environment("no_credentials_is_an_error_before_any_call", &[("AWS_REGION", "eu-west-1")]));
}

async fn child_has_no_credentials() {
    let kms = AwsKms::open(&Settings::default(), Role::Host, Arc::new(Nobody)).await.expect("settings");
    let error = kms.health(&KeyRef::new(ARN)).await.expect_err("no credentials");
    assert_eq!(error.class, ErrorClass::Denied, "{error}");
    assert!(error.message.starts_with("no AWS credentials"), "{error}");
}

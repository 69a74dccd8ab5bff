//! AWS KMS calls over real HTTP to a small server, so that the SDK's own parsing and retries are part of the test.

mod endpoints;
mod failures;
mod fleet;
mod grants;
mod records;
mod requests;
mod server;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use self::server::{Reply, Server};
use super::connector::{Connector, Tuning};
use super::{AwsKms, Settings};
use crate::kms::witness::Nobody;
use crate::kms::{
    EncryptionContext, GrantToken, KeyArn, KmsError, LeaseSpec, Permit, Principal, Role, WrappedKey,
};

const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
const OTHER_ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321";
const GRANT: &str = "abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789";
const TOKEN: &str = "AQpANfakeTOKEN";

/// Shared configuration whose endpoint must not be used: nothing listens on port 9.
const PROFILES: &str = "
[default]
region = eu-west-1
endpoint_url = http://127.0.0.1:9
aws_access_key_id = AKIDPROVISIONER
aws_secret_access_key = secret

[profile host]
region = eu-west-1
services = redirected
aws_access_key_id = AKIDHOST
aws_secret_access_key = secret

[services redirected]
kms =
  endpoint_url = http://127.0.0.1:9
sts =
  endpoint_url = http://127.0.0.1:9
";

#[allow(deprecated, reason = "as in Tuning")]
fn tuning(profiles: &str) -> Tuning {
    use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
    let files = ProfileFiles::builder().with_contents(ProfileFileKind::Config, profiles).build();
    Tuning {
        first_backoff: Duration::from_millis(1),
        longest_backoff: Duration::from_millis(2),
        profile_files: Some(files),
    }
}

fn settings(server: &Server) -> Settings {
    Settings { endpoint: Some(server.url()), attempt_timeout: Some(5), ..Settings::default() }
}

async fn open(settings: Settings) -> AwsKms {
    connect(Connector::tuned(settings, tuning(PROFILES)), Role::Provisioner).await.expect("settings")
}

async fn connect(connector: Connector, role: Role) -> Result<AwsKms, KmsError> {
    AwsKms::connect(connector, role, Arc::new(Nobody)).await
}

/// A server with these answers and a client of it.
async fn pair(replies: impl IntoIterator<Item = Reply>) -> (Server, AwsKms) {
    let server = Server::start(replies).await;
    let kms = open(settings(&server)).await;
    (server, kms)
}

fn key() -> KeyArn {
    KeyArn::new(ARN)
}

fn context() -> EncryptionContext {
    let mut context = EncryptionContext::default();
    context.insert("volume", "v1").expect("a good pair");
    context.insert("tenant", "t1").expect("a good pair");
    context
}

fn wrapped() -> WrappedKey {
    WrappedKey { key: key(), blob: b"wrapped".to_vec(), material: None }
}

fn token() -> GrantToken {
    GrantToken::new(TOKEN.into())
}

fn spec() -> LeaseSpec {
    LeaseSpec {
        grantee: Principal::new("arn:aws:iam::111122223333:role/Host"),
        retiring: Principal::new("arn:aws:iam::111122223333:role/Provisioner"),
        name: "sealblk:v1:1".into(),
    }
}

/// 64 bytes whose halves differ, and their base64.
fn plaintext() -> (Vec<u8>, String) {
    use base64::Engine;
    let bytes: Vec<u8> = (0..64).collect();
    let text = base64::engine::general_purpose::STANDARD.encode(&bytes);
    (bytes, text)
}

fn decrypted() -> Reply {
    Reply::ok(json!({"KeyId": ARN, "Plaintext": plaintext().1, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"}))
}

fn generated() -> Value {
    json!({"KeyId": ARN, "CiphertextBlob": "d3JhcHBlZA==", "KeyMaterialId": "m1"})
}

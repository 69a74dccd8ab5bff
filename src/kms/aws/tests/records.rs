//! What the witness is told.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Mutex;

use super::*;
use crate::kms::{CallRecord, KeyService, Place, Witness};

/// Remembers.
#[derive(Default)]
struct Memory(Mutex<Vec<CallRecord>>);

impl Memory {
    fn calls(&self) -> Vec<CallRecord> {
        self.0.lock().expect("no panic").clone()
    }

    /// Of each attempt: the call, the error code, the error message, the request id.
    fn told(&self) -> Vec<[Option<String>; 4]> {
        let told = |call: CallRecord| {
            [Some(call.event_name.into()), call.error_code, call.error_message, call.request_id]
        };
        self.calls().into_iter().map(told).collect()
    }
}

impl Witness for Memory {
    fn saw(&self, call: &CallRecord) {
        self.0.lock().expect("no panic").push(call.clone());
    }

    fn place(&self) -> Place {
        Place { directory: PathBuf::new(), volume: None }
    }
}

async fn watched(replies: impl IntoIterator<Item = Reply>) -> (Server, AwsKms, Arc<Memory>) {
    let server = Server::start(replies).await;
    let (kms, memory) = remembered(settings(&server)).await;
    (server, kms, memory)
}

async fn remembered(settings: Settings) -> (AwsKms, Arc<Memory>) {
    let memory = Arc::new(Memory::default());
    let connector = Connector::tuned(settings, tuning(PROFILES));
    let kms = AwsKms::connect(connector, Role::Host, memory.clone()).await.expect("settings");
    (kms, memory)
}

#[tokio::test]
async fn every_attempt_is_told_of_without_secrets() {
    let said = format!("token {TOKEN} is slow");
    let replies = [Reply::error(400, "ThrottlingException", &said), Reply::Raw("HTTP/1.1 200"), decrypted()];
    let (server, kms, memory) = watched(replies).await;
    kms.unwrap(&wrapped(), &context(), Some(&token()).into()).await.expect("the third attempt");
    let calls = memory.calls();
    assert_eq!(calls.len(), server.requests().len());
    let [throttled, broken, done] = &calls[..] else { panic!("three attempts: {calls:?}") };
    assert_eq!(throttled.error_code.as_deref(), Some("ThrottlingException"));
    assert_eq!(throttled.error_message.as_deref(), Some("token [token] is slow"));
    assert_eq!((broken.request_id.as_deref(), broken.error_code.as_deref()), (None, None));
    assert!(broken.error_message.is_some());
    assert_eq!((done.request_id.as_deref(), done.error_message.as_deref()), (Some("request-1"), None));
    for call in &calls {
        assert_eq!((call.event_name, call.role, call.read_only), ("Decrypt", "host", true));
        assert_eq!(call.request_parameters["encryptionContext"], json!({"tenant": "t1", "volume": "v1"}));
        assert_eq!(call.resources[0].arn, ARN);
        let line = serde_json::to_string(call).expect("JSON");
        assert!(
            !line.contains(TOKEN) && !line.contains(&plaintext().1) && !line.contains("d3JhcHBlZA"),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_is_told_of() {
    let (server, kms, memory) = watched([Reply::Silence]).await;
    let (key, context) = (wrapped(), context());
    tokio::select! {
        _ = kms.unwrap(&key, &context, Permit::default()) => panic!("no answer comes"),
        () = async {
            while server.requests().is_empty() {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    let calls = memory.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].request_id, None);
    assert!(calls[0].error_message.as_deref().is_some_and(|why| why.contains("given up")));
}

fn row(fields: [&str; 4]) -> [Option<String>; 4] {
    fields.map(|field| (!field.is_empty()).then(|| field.to_owned()))
}

#[tokio::test]
async fn every_kind_of_attempt_is_told_of_once() {
    let server = Server::start([
        Reply::error(400, "ThrottlingException", "Rate exceeded"),
        Reply::Answer(502, "<html>Bad Gateway</html>".into()),
        Reply::error(400, "ExpiredTokenException", "old"),
        Reply::error(400, "InvalidGrantTokenException", &format!("{TOKEN} is gone")),
        Reply::Silence,
        decrypted(),
    ])
    .await;
    let (kms, memory) = remembered(Settings { attempt_timeout: Some(1), ..settings(&server) }).await;
    kms.unwrap(&wrapped(), &context(), Some(&token()).into()).await.map(drop).expect("a data key");
    let mut told = memory.told();
    assert_eq!(told.len(), server.requests().len());
    assert!(told[4][2].take().is_some(), "why no answer came");
    let expected = [
        ["Decrypt", "ThrottlingException", "Rate exceeded", "request-1"],
        ["Decrypt", "", "HTTP status 502", "request-1"],
        ["Decrypt", "ExpiredTokenException", "old", "request-1"],
        ["Decrypt", "InvalidGrantTokenException", "[token] is gone", "request-1"],
        ["Decrypt", "", "", ""],
        ["Decrypt", "", "", "request-1"],
    ];
    assert_eq!(told, expected.map(row));
    let ids: HashSet<_> = memory.calls().into_iter().map(|call| call.event_id).collect();
    assert_eq!(ids.len(), told.len());
}

#[tokio::test]
async fn an_attempt_that_the_deadline_cuts_off_is_told_of() {
    let server = Server::start([Reply::error(400, "ThrottlingException", "no"), Reply::Silence]).await;
    let (kms, memory) =
        remembered(Settings { attempt_timeout: Some(60), deadline: Some(1), ..settings(&server) }).await;
    assert!(kms.unwrap(&wrapped(), &context(), Permit::default()).await.is_err());
    let told = memory.told();
    assert_eq!(told.len(), server.requests().len());
    assert_eq!(told[1][3], None);
    assert!(told[1][2].is_some(), "why no answer came");
}

#[tokio::test]
async fn the_callers_identity_is_told_of_at_each_attempt() {
    let xml = "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:iam::111122223333:user/a</Arn>\
               </GetCallerIdentityResult></GetCallerIdentityResponse>";
    let down = Reply::Answer(503, String::new());
    let server = Server::start([down, Reply::Answer(200, xml.into())]).await;
    let (kms, memory) = remembered(settings(&server)).await;
    kms.parties().await.expect("a caller");
    let expected = [
        ["GetCallerIdentity", "", "HTTP status 503", "request-1"],
        ["GetCallerIdentity", "", "", "request-1"],
    ];
    assert_eq!(memory.told(), expected.map(row));
}

#[tokio::test]
async fn what_was_never_sent_is_not_told_of() {
    let server = Server::start([decrypted()]).await;
    let profile = Some("nobody".into());
    let settings = Settings { host_profile: profile, region: Some("x".into()), ..settings(&server) };
    let (kms, memory) = remembered(settings).await;
    assert!(kms.unwrap(&wrapped(), &context(), Permit::default()).await.is_err());
    assert!(memory.told().is_empty() && server.requests().is_empty());
}

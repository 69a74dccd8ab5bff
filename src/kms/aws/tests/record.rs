//! What the witness is told of a call's attempts.

use std::sync::Mutex;

use super::*;
use crate::kms::{CallRecord, KeyService, Place, Witness};

/// Keeps what it is told.
#[derive(Default)]
struct Keeper(Mutex<Vec<CallRecord>>);

impl Witness for Keeper {
    fn saw(&self, call: &CallRecord) {
        self.0.lock().expect("no panic").push(call.clone());
    }

    fn place(&self) -> Place {
        Nobody.place()
    }
}

impl Keeper {
    /// Of each attempt: the call, the error code, the error message, the request id.
    fn told(&self) -> Vec<[Option<String>; 4]> {
        let calls = self.0.lock().expect("no panic");
        let told = |call: &CallRecord| {
            let name = Some(call.event_name.to_owned());
            [name, call.error_code.clone(), call.error_message.clone(), call.request_id.clone()]
        };
        calls.iter().map(told).collect()
    }
}

async fn watched(settings: Settings) -> (Arc<Keeper>, AwsKms) {
    let keeper = Arc::new(Keeper::default());
    let connector = Connector::tuned(settings, tuning(PROFILES));
    let kms = AwsKms::connect(connector, Role::Host, keeper.clone()).await.expect("settings");
    (keeper, kms)
}

fn row(fields: [&str; 4]) -> [Option<String>; 4] {
    fields.map(|field| (!field.is_empty()).then(|| field.to_owned()))
}

#[tokio::test]
async fn every_attempt_is_told_of_once() {
    let server = Server::start([
        Reply::error(400, "ThrottlingException", "Rate exceeded"),
        Reply::Answer(502, "<html>Bad Gateway</html>".into()),
        Reply::error(400, "ExpiredTokenException", "old"),
        Reply::error(400, "InvalidGrantTokenException", &format!("{TOKEN} is gone")),
        Reply::Silence,
        decrypted(),
    ])
    .await;
    let (keeper, kms) = watched(Settings { attempt_timeout: Some(1), ..settings(&server) }).await;
    kms.unwrap(&wrapped(), &context(), Some(&token()).into()).await.map(drop).expect("a data key");
    let mut told = keeper.told();
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
    let ids: std::collections::HashSet<_> =
        keeper.0.lock().expect("no panic").iter().map(|call| call.event_id.clone()).collect();
    assert_eq!(ids.len(), told.len());
}

#[tokio::test]
async fn an_attempt_that_the_deadline_cuts_off_is_told_of() {
    let server = Server::start([Reply::error(400, "ThrottlingException", "no"), Reply::Silence]).await;
    let (keeper, kms) =
        watched(Settings { attempt_timeout: Some(60), deadline: Some(1), ..settings(&server) }).await;
    assert!(kms.unwrap(&wrapped(), &context(), Permit::default()).await.is_err());
    let told = keeper.told();
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
    let (keeper, kms) = watched(settings(&server)).await;
    kms.parties().await.expect("a caller");
    let expected = [
        ["GetCallerIdentity", "", "HTTP status 503", "request-1"],
        ["GetCallerIdentity", "", "", "request-1"],
    ];
    assert_eq!(keeper.told(), expected.map(row));
}

#[tokio::test]
async fn what_was_never_sent_is_not_told_of() {
    let server = Server::start([decrypted()]).await;
    let profile = Some("nobody".into());
    let settings = Settings { host_profile: profile, region: Some("x".into()), ..settings(&server) };
    let (keeper, kms) = watched(settings).await;
    assert!(kms.unwrap(&wrapped(), &context(), Permit::default()).await.is_err());
    assert!(keeper.told().is_empty() && server.requests().is_empty());
}

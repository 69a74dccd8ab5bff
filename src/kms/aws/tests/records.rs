//! What the witness is told.

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
    let memory = Arc::new(Memory::default());
    let connector = Connector::tuned(settings(&server), tuning(PROFILES));
    let kms = AwsKms::connect(connector, Role::Host, memory.clone()).await.expect("settings");
    (server, kms, memory)
}

#[tokio::test]
async fn every_attempt_is_told_of_without_secrets() {
    let said = format!("token {TOKEN} is slow");
    let replies = [Reply::error(400, "ThrottlingException", &said), Reply::Raw("HTTP/1.1 200"), decrypted()];
    let (server, kms, memory) = watched(replies).await;
    kms.unwrap(&wrapped(), &context(), Some(&token())).await.expect("the third attempt");
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
        _ = kms.unwrap(&key, &context, None) => panic!("no answer comes"),
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

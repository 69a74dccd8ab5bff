//! The watch on a key service that does as it is told, and on the embedded KMS.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use time::Duration as Days;
use tokio::sync::Notify;

use super::status::News;
use super::task::pause;
use super::*;
use crate::kms::local::{Admin, LocalKms};
use crate::kms::{
    Caps, EncryptionContext, ErrorClass, GrantRef, KeyRef, KeyState, KmsError, Lease, LeaseSpec, Nobody,
    Parties, Permit, Preflight, Released, Role, WrappedKey,
};
use crate::secret::DataKey;

const HOUR: Duration = Duration::from_secs(3600);

/// Answers DescribeKey as it was last told to, and knows no other call.
struct Scripted {
    told: Mutex<Result<KeyHealth, KmsError>>,
    polls: AtomicUsize,
    /// Who is asked waits for `go` if true.
    slow: bool,
    asked: Notify,
    go: Notify,
}

impl Scripted {
    fn new(told: Result<KeyHealth, KmsError>, slow: bool) -> Arc<Self> {
        let polls = AtomicUsize::new(0);
        Arc::new(Self { told: Mutex::new(told), polls, slow, asked: Notify::new(), go: Notify::new() })
    }

    fn tell(&self, told: Result<KeyHealth, KmsError>) {
        *self.told.lock().unwrap() = told;
    }
}

fn not_scripted() -> KmsError {
    KmsError::new("any", ErrorClass::Config, "not scripted")
}

#[async_trait]
impl KeyService for Scripted {
    fn caps(&self) -> Caps {
        Caps { binds_context: true, grants: true, max_wrapped: 1 }
    }

    async fn parties(&self) -> Result<Parties, KmsError> {
        Err(not_scripted())
    }

    async fn health(&self, _: &KeyRef) -> Result<KeyHealth, KmsError> {
        let told = self.told.lock().unwrap().clone();
        self.polls.fetch_add(1, Ordering::Relaxed);
        self.asked.notify_one();
        if self.slow {
            self.go.notified().await;
        }
        told
    }

    async fn preflight(
        &self,
        _: &KeyArn,
        _: &EncryptionContext,
        _: &LeaseSpec,
    ) -> Result<Preflight, KmsError> {
        Err(not_scripted())
    }

    async fn generate(&self, _: &KeyArn, _: &EncryptionContext, _: u16) -> Result<WrappedKey, KmsError> {
        Err(not_scripted())
    }

    async fn lease(&self, _: &KeyArn, _: &EncryptionContext, _: &LeaseSpec) -> Result<Lease, KmsError> {
        Err(not_scripted())
    }

    async fn unwrap(
        &self,
        _: &WrappedKey,
        _: &EncryptionContext,
        _: Permit<'_>,
    ) -> Result<DataKey, KmsError> {
        Err(not_scripted())
    }

    async fn wrap(&self, _: &KeyArn, _: &EncryptionContext, _: &DataKey) -> Result<WrappedKey, KmsError> {
        Err(not_scripted())
    }

    async fn rewrap(
        &self,
        _: &WrappedKey,
        _: &EncryptionContext,
        _: &KeyArn,
        _: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        Err(not_scripted())
    }

    async fn release(&self, _: &GrantRef) -> Result<Released, KmsError> {
        Err(not_scripted())
    }
}

fn arn() -> KeyArn {
    KeyArn::new("arn:aws:kms:eu-west-1:111122223333:key/a")
}

fn health(state: KeyState) -> KeyHealth {
    KeyHealth {
        arn: arn(),
        state,
        spec: "SYMMETRIC_DEFAULT".into(),
        usage: "ENCRYPT_DECRYPT".into(),
        origin: "AWS_KMS".into(),
        manager: "CUSTOMER".into(),
        deletion: None,
        material: Some("m1".into()),
    }
}

fn failed(class: ErrorClass, code: &str) -> KmsError {
    KmsError { code: Some(code.into()), ..KmsError::new("DescribeKey", class, "no") }
}

fn outage() -> KmsError {
    KmsError::new("DescribeKey", ErrorClass::Unreachable, "no route to host")
}

fn at(minute: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Days::minutes(minute)
}

fn begun() -> KeyStatus {
    KeyStatus::begin(arn(), Some(&health(KeyState::Enabled)), at(0))
}

#[test]
fn changes_are_told_once_and_remembered() {
    let mut status = begun();
    assert_eq!(status.observe(&Ok(health(KeyState::Enabled)), at(1)), []);
    assert_eq!((status.since, status.last_success), (at(0), Some(at(1))));
    let news = status.observe(&Ok(health(KeyState::Disabled)), at(2));
    let [bad @ News::Changed(change)] = &news[..] else { panic!("{news:?}") };
    assert!(bad.is_bad());
    assert_eq!(change.to.state, Observed::Unusable(KeyState::Disabled));
    let text = bad.to_string();
    assert!(text.contains("is Disabled: new volumes under it and reopening this one will fail"), "{text}");
    assert!(text.contains("the volume that is served goes on"), "{text}");
    assert_eq!(status.observe(&Ok(health(KeyState::Disabled)), at(3)), []);
    assert_eq!((status.since, status.known_since), (at(2), Some(at(2))));
    let news = status.observe(&Ok(health(KeyState::Enabled)), at(4));
    assert!(matches!(&news[..], [News::Changed(_)]) && !news[0].is_bad());
    assert_eq!(news[0].to_string(), "the KMS key is usable again; it was Disabled");
    assert_eq!(status.changes.len(), 2);
}

#[test]
fn a_deletion_is_told_with_its_day_and_again_when_the_day_moves() {
    let mut status = begun();
    let doomed = |days| KeyHealth {
        deletion: Some(OffsetDateTime::UNIX_EPOCH + Days::days(days)),
        ..health(KeyState::PendingDeletion)
    };
    let news = status.observe(&Ok(doomed(10)), at(1));
    let text = news[0].to_string();
    assert!(text.contains("is PendingDeletion") && text.contains("deleted on 1970-01-11"), "{text}");
    assert!(text.contains("before that, cancel the deletion"), "{text}");
    assert_eq!(status.observe(&Ok(doomed(10)), at(2)), []);
    assert!(status.observe(&Ok(doomed(20)), at(3))[0].to_string().contains("1970-01-21"));
    let gone = failed(ErrorClass::Unusable, "NotFoundException");
    let news = status.observe(&Err(gone.clone()), at(4));
    assert!(news[0].to_string().contains("the KMS key is gone") && news[0].is_bad());
    assert_eq!((&status.current.state, status.current.deletion), (&Observed::Gone, None));
    assert_eq!(status.observe(&Err(gone), at(5)), []);
    assert_eq!(status.last_error, None, "a key that is gone is an answer");
}

#[test]
fn an_outage_changes_nothing_that_was_known_and_is_told_twice() {
    let mut status = begun();
    status.observe(&Ok(health(KeyState::Disabled)), at(1));
    let known = status.known.clone();
    let news = status.observe(&Err(outage()), at(2));
    assert!(matches!(&news[..], [News::Silent(Observed::Unknown, _)]) && news[0].is_bad());
    let throttled = failed(ErrorClass::Throttled, "ThrottlingException");
    assert_eq!(status.observe(&Err(throttled), at(3)), []);
    assert_eq!((&status.current.state, status.since), (&Observed::Unknown, at(2)));
    assert_eq!((&status.known, status.last_success), (&known, Some(at(1))));
    assert_eq!(status.last_error.as_ref().map(|error| error.at), Some(at(3)));
    let news = status.observe(&Ok(health(KeyState::Disabled)), at(4));
    assert_eq!(news, [News::Heard(at(2))]);
    assert!(news[0].to_string().ends_with("it had not since 1970-01-01 00:02 UTC"), "{}", news[0]);
    assert_eq!((status.changes.len(), status.known_since), (1, Some(at(1))));
    status.observe(&Err(outage()), at(5));
    let news = status.observe(&Ok(health(KeyState::Enabled)), at(6));
    assert!(matches!(&news[..], [News::Heard(_), News::Changed(_)]), "what changed in an outage is told");
}

#[test]
fn a_key_that_may_not_be_described_is_said_once() {
    let mut status = begun();
    let denied = failed(ErrorClass::Denied, "AccessDeniedException");
    let news = status.observe(&Err(denied.clone()), at(1));
    assert!(matches!(&news[..], [News::Silent(Observed::Denied, _)]));
    assert!(news[0].to_string().contains("missing permission kms:DescribeKey"), "{}", news[0]);
    assert_eq!(status.observe(&Err(denied), at(2)), []);
    assert_eq!(status.known.as_ref().map(|known| &known.state), Some(&Observed::Usable));
    let expired = failed(ErrorClass::Denied, "ExpiredTokenException");
    let mut other = begun();
    other.observe(&Err(expired), at(1));
    assert_eq!(other.current.state, Observed::Unknown, "credentials may be fresh at the next poll");
}

#[test]
fn nothing_known_at_first_is_news_only_if_it_is_bad() {
    let mut good = KeyStatus::begin(arn(), None, at(0));
    assert_eq!((&good.current.state, &good.known), (&Observed::Unknown, &None));
    assert_eq!(good.observe(&Ok(health(KeyState::Enabled)), at(1)), []);
    assert_eq!((good.known_since, good.since), (Some(at(1)), at(1)));
    let mut bad = KeyStatus::begin(arn(), None, at(0));
    assert!(matches!(&bad.observe(&Err(outage()), at(1))[..], [News::Silent(..)]));
    assert_eq!(bad.observe(&Err(outage()), at(2)), []);
    let news = bad.observe(&Ok(health(KeyState::PendingImport)), at(3));
    assert!(matches!(&news[..], [News::Heard(_), News::Changed(_)]));
}

#[test]
fn rotation_is_no_change_of_state() {
    let mut status = begun();
    let rotated = KeyHealth { material: Some("m2".into()), ..health(KeyState::Enabled) };
    assert_eq!(status.observe(&Ok(rotated.clone()), at(1)), [News::Rotated]);
    assert!(!News::Rotated.is_bad());
    let untold = KeyHealth { material: None, ..health(KeyState::Enabled) };
    assert_eq!(status.observe(&Ok(untold), at(2)), []);
    assert_eq!(status.observe(&Ok(rotated), at(3)), []);
    assert_eq!((status.material.as_deref(), status.changes.len()), (Some("m2"), 0));
}

#[test]
fn history_is_bounded() {
    let mut status = begun();
    for minute in 0..100 {
        let state = if minute % 2 == 0 { KeyState::Disabled } else { KeyState::Enabled };
        status.observe(&Ok(health(state)), at(minute));
    }
    assert_eq!(status.changes.len(), 64);
    assert_eq!(status.changes.back().map(|change| change.to.at), Some(at(99)));
    assert_eq!(status.changes.front().map(|change| change.to.at), Some(at(36)));
}

#[test]
fn a_status_is_shown_in_snake_case_and_rfc_3339() {
    let mut status = begun();
    status.observe(&Ok(health(KeyState::Disabled)), at(1));
    status.observe(&Err(outage()), at(2));
    let shown = serde_json::to_value(&status).unwrap();
    assert_eq!(shown["key"], arn().as_str());
    assert_eq!(shown["current"], serde_json::json!({"state": "unknown", "at": "1970-01-01T00:02:00Z"}));
    assert_eq!(shown["since"], "1970-01-01T00:02:00Z");
    assert_eq!(
        shown["known"],
        serde_json::json!({"state": "unusable", "key_state": "Disabled", "at": "1970-01-01T00:01:00Z"})
    );
    assert_eq!(shown["last_success"], "1970-01-01T00:01:00Z");
    assert!(shown["last_error"]["message"].as_str().unwrap().contains("no route to host"));
    assert_eq!(shown["changes"][0]["from"]["state"], "usable");
    assert_eq!(serde_json::to_value(begun()).unwrap()["last_error"], serde_json::Value::Null);
}

#[test]
fn pauses_are_jittered_and_long_where_nothing_may_be_read() {
    let minute = Duration::from_secs(60);
    let pauses: Vec<_> = (0..200).map(|_| pause(minute, &Observed::Usable)).collect();
    assert!(pauses.iter().all(|pause| (48..=72).contains(&pause.as_secs())), "{pauses:?}");
    assert!(pauses.iter().any(|pause| *pause < minute) && pauses.iter().any(|pause| *pause > minute));
    assert!(pause(minute, &Observed::Denied) >= HOUR.mul_f64(0.8));
    assert!(pause(24 * HOUR, &Observed::Denied) >= 19 * HOUR);
}

#[tokio::test]
async fn polls_go_on_by_themselves() {
    let kms = Scripted::new(Ok(health(KeyState::Enabled)), false);
    let first = health(KeyState::Enabled);
    let watch = Watch::spawn(kms.clone(), arn(), Duration::from_millis(1), Some(&first));
    let mut status = watch.subscribe();
    for state in [KeyState::Disabled, KeyState::Enabled, KeyState::PendingDeletion] {
        kms.tell(Ok(health(state.clone())));
        let told = move |status: &KeyStatus| match &status.current.state {
            Observed::Usable => state == KeyState::Enabled,
            Observed::Unusable(other) => *other == state,
            _ => false,
        };
        status.wait_for(told).await.unwrap();
    }
    assert_eq!(watch.status().changes.len(), 3);
    assert!(kms.polls.load(Ordering::Relaxed) >= 3);
    watch.stop().await;
    assert!(status.changed().await.is_err(), "nothing is left to tell");
}

#[tokio::test]
async fn the_first_poll_waits_unless_nothing_is_known() {
    let kms = Scripted::new(Ok(health(KeyState::Disabled)), false);
    let told = Watch::spawn(kms.clone(), arn(), HOUR, Some(&health(KeyState::Enabled)));
    let untold = Watch::spawn(kms.clone(), arn(), HOUR, None);
    untold.subscribe().wait_for(|status| status.known.is_some()).await.unwrap();
    assert_eq!(kms.polls.load(Ordering::Relaxed), 1);
    assert_eq!(told.status().current.state, Observed::Usable);
    assert_eq!(told.poll_now().await.current.state, Observed::Unusable(KeyState::Disabled));
}

#[tokio::test]
async fn who_asks_during_a_poll_gets_the_next_ones_answer() {
    let kms = Scripted::new(Ok(health(KeyState::Enabled)), true);
    let watch = Watch::spawn(kms.clone(), arn(), HOUR, None);
    kms.asked.notified().await;
    kms.tell(Ok(health(KeyState::Disabled)));
    let asked = [watch.poll_now(), watch.poll_now()].map(tokio::spawn);
    kms.go.notify_one();
    kms.asked.notified().await;
    kms.go.notify_one();
    for answer in asked {
        assert_eq!(answer.await.unwrap().current.state, Observed::Unusable(KeyState::Disabled));
    }
}

#[tokio::test]
async fn a_poll_that_hangs_holds_up_neither_another_key_nor_the_end() {
    let hanging = Scripted::new(Ok(health(KeyState::Enabled)), true);
    let watch = Watch::spawn(hanging.clone(), arn(), HOUR, None);
    hanging.asked.notified().await;
    let other = KeyArn::new("arn:aws:kms:eu-west-1:111122223333:key/b");
    let prompt = Scripted::new(Ok(health(KeyState::Disabled)), false);
    watch.retarget(prompt, other.clone(), None);
    let mut status = watch.subscribe();
    status.wait_for(|status| status.key == other && status.known.is_some()).await.unwrap();
    watch.retarget(hanging.clone(), arn(), Some(&health(KeyState::Enabled)));
    let unanswered = watch.poll_now();
    hanging.asked.notified().await;
    assert_eq!(watch.status().changes.len(), 1, "the history outlives the key");
    drop(watch);
    assert_eq!(unanswered.await.key, arn());
    while status.changed().await.is_ok() {}
}

#[tokio::test]
async fn the_embedded_kms_is_watched() {
    let directory = tempfile::tempdir().unwrap();
    let admin = Admin::open(directory.path()).unwrap();
    let arn = admin.create("", None).unwrap().arn;
    let key = KeyRef::from(&arn);
    let kms = Arc::new(LocalKms::open(directory.path(), Role::Provisioner, Arc::new(Nobody)).unwrap());
    let first = kms.health(&key).await.unwrap();
    let watch = Watch::spawn(kms, arn, HOUR, Some(&first));
    let state = |status: KeyStatus| status.current.state;
    admin.disable(&key).unwrap();
    assert_eq!(state(watch.poll_now().await), Observed::Unusable(KeyState::Disabled));
    admin.enable(&key).unwrap();
    assert_eq!(state(watch.poll_now().await), Observed::Usable);
    let deletion = admin.schedule_deletion(&key, 7).unwrap().deletion;
    let doomed = watch.poll_now().await;
    assert_eq!(doomed.current.state, Observed::Unusable(KeyState::PendingDeletion));
    let day = |date: Option<OffsetDateTime>| date.map(OffsetDateTime::unix_timestamp);
    assert!(deletion.is_some() && day(doomed.current.deletion) == day(deletion));
    admin.cancel_deletion(&key).unwrap();
    assert_eq!(state(watch.poll_now().await), Observed::Unusable(KeyState::Disabled));
    admin.enable(&key).unwrap();
    let material = admin.rotate(&key).unwrap().material;
    let rotated = watch.poll_now().await;
    assert_eq!((rotated.material.clone(), rotated.changes.len()), (material, 5));
    assert_eq!(state(rotated), Observed::Usable);
}

//! The in-process faces, several handles on one directory, and damaged directories.

use std::fs;
use std::io::BufRead;
use std::sync::Arc;

use super::super::{Admin, DEFAULT_ALIAS, LocalKms};
use super::*;
use crate::kms::witness::Nobody;
use crate::kms::{
    CheckOutcome, EncryptionContext, ErrorClass, GrantRef, GrantToken, KeyArn, KeyRef, KeyService, LeaseSpec,
    Permit, Released, Role,
};

struct Handles {
    directory: TempDir,
    provisioner: LocalKms,
    host: LocalKms,
    admin: Admin,
}

fn handles() -> Handles {
    let directory = tempfile::tempdir().expect("a directory");
    let open = |role| LocalKms::open(directory.path(), role, Arc::new(Nobody)).expect("opened");
    let (provisioner, host) = (open(Role::Provisioner), open(Role::Host));
    let admin = Admin::open(directory.path()).expect("opened");
    Handles { directory, provisioner, host, admin }
}

fn context() -> EncryptionContext {
    let mut context = EncryptionContext::default();
    context.insert("volume", "v1").expect("a pair");
    context
}

impl Handles {
    async fn key(&self) -> KeyArn {
        self.provisioner.health(&KeyRef::new(DEFAULT_ALIAS)).await.expect("the default key").arn
    }

    async fn spec(&self, name: &str) -> LeaseSpec {
        let parties = self.provisioner.parties().await.expect("known");
        LeaseSpec { grantee: parties.grantee, retiring: parties.retiring, name: name.into() }
    }
}

#[tokio::test]
async fn a_volume_goes_through_its_life() {
    let it = handles();
    let key = it.key().await;
    let spec = it.spec("v1:1").await;
    let preflight = it.provisioner.preflight(&key, &context(), &spec).await.expect("asked");
    assert!(preflight.checks.iter().all(|check| check.outcome == CheckOutcome::Pass), "{preflight:?}");
    let wrapped = it.provisioner.generate(&key, &context(), 64).await.expect("wrapped");
    assert_eq!(wrapped.key, key);
    let denied = it.host.unwrap(&wrapped, &context(), Permit::default()).await.err().expect("no grant yet");
    assert_eq!((denied.class, denied.code.as_deref()), (ErrorClass::Denied, Some("AccessDeniedException")));
    assert_eq!(denied.key.as_deref(), Some(key.as_str()));
    assert!(denied.principal.is_some_and(|arn| arn.ends_with(":user/host")) && denied.request_id.is_some());
    let lease = it.provisioner.lease(&key, &context(), &spec).await.expect("granted");
    let one = it.host.unwrap(&wrapped, &context(), Some(&lease.token).into()).await.expect("unwrapped");
    it.admin.rotate(&KeyRef::from(&key)).expect("rotated");
    let rewrapped = it.provisioner.rewrap(&wrapped, &context(), &key, &context()).await.expect("rewrapped");
    assert_ne!(wrapped.material, rewrapped.material);
    let two = it.host.unwrap(&rewrapped, &context(), Some(&lease.token).into()).await.expect("unwrapped");
    assert!(one.expose() == two.expose());
    let grant = GrantRef::Token { key: &key, grant_id: &lease.grant_id, token: &lease.token };
    assert_eq!(it.provisioner.release(&grant).await.expect("ended"), Released::Retired);
    assert_eq!(it.provisioner.release(&grant).await.expect("ended"), Released::AlreadyGone);
    let gone =
        it.host.unwrap(&wrapped, &context(), Permit::default()).await.err().expect("no grant any more");
    assert_eq!(gone.class, ErrorClass::Denied);
}

#[tokio::test]
async fn grants_end_by_token_id_and_name() {
    let it = handles();
    let key = it.key().await;
    let lease = it.provisioner.lease(&key, &context(), &it.spec("a").await).await.expect("granted");
    let damaged = GrantToken::new("damaged".into());
    let by_token = GrantRef::Token { key: &key, grant_id: &lease.grant_id, token: &damaged };
    assert_eq!(it.provisioner.release(&by_token).await.expect("ended"), Released::Retired);
    let lease = it.provisioner.lease(&key, &context(), &it.spec("b").await).await.expect("granted");
    let by_id = GrantRef::Id { key: &key, grant_id: &lease.grant_id };
    assert_eq!(it.provisioner.release(&by_id).await.expect("ended"), Released::Retired);
    let mut spec = it.spec("c").await;
    spec.retiring = spec.grantee.clone();
    it.provisioner.lease(&key, &context(), &spec).await.expect("granted");
    let by_name = GrantRef::Name { key: &key, name: "c" };
    assert_eq!(it.provisioner.release(&by_name).await.expect("ended"), Released::Revoked);
    assert_eq!(it.provisioner.release(&by_name).await.expect("ended"), Released::AlreadyGone);
}

#[tokio::test]
async fn the_default_key_is_made_once_and_other_names_are_not_made() {
    let it = handles();
    let host = it.host.health(&KeyRef::new(DEFAULT_ALIAS)).await.expect_err("only the provisioner makes it");
    assert_eq!(host.class, ErrorClass::Unusable);
    let reference = KeyRef::new(DEFAULT_ALIAS);
    let other = LocalKms::open(it.directory.path(), Role::Provisioner, Arc::new(Nobody)).expect("opened");
    let (one, two) = tokio::join!(it.provisioner.health(&reference), other.health(&reference));
    assert_eq!(one.expect("made").arn, two.expect("found").arn);
    assert_eq!(it.admin.list().expect("listed").len(), 1);
    let unknown = it.provisioner.health(&KeyRef::new("alias/other")).await.expect_err("not made");
    assert_eq!(unknown.code.as_deref(), Some("NotFoundException"));
    assert_eq!(unknown.key.as_deref(), Some("alias/other"));
}

#[tokio::test]
async fn a_disabled_key_is_seen_by_every_handle() {
    let it = handles();
    let key = it.key().await;
    let reference = KeyRef::new(DEFAULT_ALIAS);
    it.admin.disable(&reference).expect("disabled");
    let refused = it.provisioner.generate(&key, &context(), 64).await.err().expect("refused");
    assert_eq!((refused.class, refused.code.as_deref()), (ErrorClass::Unusable, Some("DisabledException")));
    assert_eq!(refused.message, format!("{key} is disabled."));
    assert!(it.provisioner.health(&reference).await.expect("read").require_usable().is_err());
    it.admin.enable(&reference).expect("enabled");
    it.provisioner.generate(&key, &context(), 64).await.expect("usable again");
}

#[test]
fn the_administrator_makes_lists_and_ends_keys() {
    let it = handles();
    let key = it.admin.create("mine", Some("alias/mine")).expect("made");
    assert_eq!(key.aliases, ["alias/mine"]);
    let reference = KeyRef::new("alias/mine");
    let ending = it.admin.schedule_deletion(&reference, 7).expect("scheduled");
    assert_eq!((&ending.state, ending.deletion.is_some()), (&KeyState::PendingDeletion, true));
    assert_eq!(it.admin.cancel_deletion(&reference).expect("cancelled").state, KeyState::Disabled);
    it.admin.enable(&reference).expect("enabled");
    assert_ne!(it.admin.rotate(&reference).expect("rotated").material, key.material);
    assert!(it.admin.create("again", Some("alias/mine")).is_err());
    let live = |key: &&super::super::KeyListing| key.state == KeyState::Enabled;
    assert_eq!(it.admin.list().expect("listed").iter().filter(live).count(), 1);
    let events: Vec<String> = it.admin.events().expect("a log").lines().map_while(Result::ok).collect();
    assert!(events.iter().any(|line| line.contains("\"eventName\":\"RotateKeyOnDemand\"")));
    let credentials = it.admin.credentials(PrincipalName::Host).expect("known");
    assert!(credentials.principal.ends_with(":user/host") && credentials.access_key_id.starts_with("AKIA"));
}

#[test]
fn many_writers_lose_nothing() {
    let it = handles();
    let path = Arc::new(it.directory.path().to_path_buf());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let path = Arc::clone(&path);
            std::thread::spawn(move || {
                let admin = Admin::open(&path).expect("opened");
                for _ in 0..5 {
                    admin.create("", None).expect("made");
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    assert_eq!(it.admin.list().expect("listed").len(), 20);
}

#[test]
fn damaged_and_foreign_directories_are_named() {
    let foreign = tempfile::tempdir().expect("a directory");
    fs::write(foreign.path().join("precious.txt"), "x").expect("written");
    let error = Admin::open(foreign.path()).err().expect("refused");
    assert_eq!(error.class, ErrorClass::Storage);
    assert!(error.message.contains(&foreign.path().display().to_string()), "{error}");

    let it = handles();
    let key = it.admin.create("", None).expect("made");
    let id = key.arn.as_str().rsplit('/').next().expect("an id");
    let document = it.directory.path().join(format!("keys/{id}.json"));
    let whole = fs::read(&document).expect("read");
    fs::write(&document, &whole[..whole.len() / 2]).expect("cut short");
    let error = it.admin.describe(&KeyRef::from(&key.arn)).expect_err("damaged");
    assert_eq!(error.class, ErrorClass::Storage);
    assert!(error.message.contains(&document.display().to_string()), "{error}");
    fs::write(&document, &whole).expect("mended");

    let material = it.directory.path().join(format!("materials/{}.key", key.material.expect("an id")));
    fs::write(&material, "short").expect("written");
    let kms = LocalKms::open(it.directory.path(), Role::Provisioner, Arc::new(Nobody)).expect("opened");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let error = runtime.block_on(kms.generate(&key.arn, &context(), 64)).err().expect("damaged");
    assert_eq!(error.class, ErrorClass::Storage);
    assert!(error.message.contains(&material.display().to_string()), "{error}");

    fs::write(it.directory.path().join("kms.json"), "{\"format\":2,\"account\":\"1\",\"region\":\"r\"}")
        .expect("written");
    assert!(Admin::open(it.directory.path()).err().expect("refused").message.contains("kms.json"));
}

#[test]
fn no_document_holds_key_material() {
    let it = handles();
    let key = it.admin.create("", None).expect("made");
    let path = it.directory.path().join(format!("materials/{}.key", key.material.expect("an id")));
    let material = fs::read(path).expect("read");
    let id = key.arn.as_str().rsplit('/').next().expect("an id");
    let document = fs::read(it.directory.path().join(format!("keys/{id}.json"))).expect("read");
    assert!(!document.windows(8).any(|window| window == &material[..8]));
}

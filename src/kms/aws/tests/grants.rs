//! How grants end.

use super::*;
use crate::kms::{ErrorClass, GrantRef, KeyService, KmsError, Released};

fn done() -> Reply {
    Reply::Answer(200, String::new())
}

fn refused(code: &str) -> Reply {
    Reply::error(400, code, "no")
}

async fn release(replies: &[Reply], grant: GrantRef<'_>) -> (Result<Released, KmsError>, Server) {
    let (server, kms) = pair(replies.to_vec()).await;
    (kms.release(&grant).await, server)
}

#[tokio::test]
async fn by_token_first() {
    let (key, token) = (key(), token());
    let grant = || GrantRef::Token { key: &key, grant_id: GRANT, token: &token };
    let by_id = json!({"KeyId": ARN, "GrantId": GRANT});

    let (released, server) = release(&[done()], grant()).await;
    assert_eq!(released, Ok(Released::Retired));
    assert_eq!(server.requests()[0].body, json!({"GrantToken": TOKEN}));

    // A token that is not known says nothing about the grant.
    let (released, server) = release(&[refused("InvalidGrantTokenException"), done()], grant()).await;
    assert_eq!(released, Ok(Released::Retired));
    assert_eq!(server.requests()[1].body, by_id);

    let (released, server) = release(&[refused("AccessDeniedException"), done()], grant()).await;
    assert_eq!(released, Ok(Released::Revoked));
    assert_eq!(server.operations(), ["retiregrant", "revokegrant"]);
    assert_eq!(server.requests()[1].body, by_id);
}

#[tokio::test]
async fn a_grant_that_is_gone_has_ended() {
    let (key, token) = (key(), token());
    for code in ["NotFoundException", "InvalidGrantTokenException", "InvalidGrantIdException"] {
        let (released, _) =
            release(&[refused(code)], GrantRef::Token { key: &key, grant_id: GRANT, token: &token }).await;
        assert_eq!(released, Ok(Released::AlreadyGone), "{code}");
        let (released, server) = release(&[refused(code)], GrantRef::Id { key: &key, grant_id: GRANT }).await;
        assert_eq!(released, Ok(Released::AlreadyGone), "{code}");
        assert_eq!(server.operations(), ["retiregrant"]);
        let replies = [refused("AccessDeniedException"), refused(code)];
        let (released, server) = release(&replies, GrantRef::Id { key: &key, grant_id: GRANT }).await;
        assert_eq!(released, Ok(Released::AlreadyGone), "{code}");
        assert_eq!(server.operations(), ["retiregrant", "revokegrant"]);
    }
}

#[tokio::test]
async fn neither_retired_nor_revoked_is_an_error_that_tells_both() {
    let key = key();
    let retire = Reply::error(400, "AccessDeniedException", "not kms:RetireGrant");
    let revoke = Reply::error(400, "AccessDeniedException", "not kms:RevokeGrant");
    let (released, _) = release(&[retire, revoke], GrantRef::Id { key: &key, grant_id: GRANT }).await;
    let error = released.expect_err("denied twice");
    assert_eq!((error.call.as_str(), error.class), ("RevokeGrant", ErrorClass::Denied));
    assert!(
        error.message.contains("kms:RetireGrant") && error.message.contains("kms:RevokeGrant"),
        "{error}"
    );
}

#[tokio::test]
async fn by_name_through_all_pages() {
    let key = key();
    let named = GrantRef::Name { key: &key, name: "sealblk:v1:1" };
    let first = json!({
        "Grants": [{"GrantId": "a", "Name": "sealblk:v1:2"}, {"GrantId": "b"}], "Truncated": true, "NextMarker": "m"
    });
    let second = json!({"Grants": [{"GrantId": GRANT, "Name": "sealblk:v1:1"}], "Truncated": false});
    let (released, server) = release(&[Reply::ok(first), Reply::ok(second), done()], named).await;
    assert_eq!(released, Ok(Released::Retired));
    let bodies: Vec<Value> = server.requests().into_iter().map(|request| request.body).collect();
    assert_eq!(
        bodies,
        [
            json!({"KeyId": ARN, "Limit": 100}),
            json!({"KeyId": ARN, "Limit": 100, "Marker": "m"}),
            json!({"KeyId": ARN, "GrantId": GRANT}),
        ]
    );
}

#[tokio::test]
async fn by_a_name_that_no_grant_has() {
    let key = key();
    let named = || GrantRef::Name { key: &key, name: "sealblk:v1:1" };
    let (released, server) = release(&[Reply::ok(json!({"Grants": [], "Truncated": false}))], named()).await;
    assert_eq!(released, Ok(Released::AlreadyGone));
    assert_eq!(server.operations(), ["listgrants"]);

    let (released, _) = release(&[Reply::ok(json!({"Truncated": true}))], named()).await;
    assert_eq!(released.expect_err("no way on").class, ErrorClass::Nonsense);
}

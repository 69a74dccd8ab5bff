//! What each failure becomes, and how often a call is tried.

use super::*;
use crate::kms::{ErrorClass, KeyRef, KeyService, KmsError};

/// Every retry used up: one try and four more.
const ALL: usize = 5;

async fn unwrap_against(reply: Reply, token: Option<&GrantToken>) -> (KmsError, usize) {
    let (server, kms) = pair([reply]).await;
    let error = kms.unwrap(&wrapped(), &context(), token.into()).await.map(drop).expect_err("a failure");
    assert_eq!(error.call, "Decrypt");
    assert_eq!(error.key.as_deref(), Some(ARN));
    (error, server.requests().len())
}

#[tokio::test]
async fn each_code_has_its_class_and_its_number_of_tries() {
    use ErrorClass::{Config, Corrupt, Denied, Grant, Unreachable, Unusable};
    for (status, code, class, tries) in [
        (500, "KMSInternalException", Unreachable, ALL),
        (500, "DependencyTimeoutException", Unreachable, ALL),
        (500, "KeyUnavailableException", Unreachable, ALL),
        (503, "NeverHeardOfException", Unreachable, ALL),
        (400, "DisabledException", Unusable, 1),
        (400, "KMSInvalidStateException", Unusable, 1),
        (400, "NotFoundException", Unusable, 1),
        (400, "LimitExceededException", Unusable, 1),
        (400, "InvalidKeyUsageException", Unusable, 1),
        (400, "UnsupportedOperationException", Unusable, 1),
        (400, "AccessDeniedException", Denied, 1),
        (400, "InvalidGrantIdException", Grant, 1),
        (400, "InvalidGrantTokenException", Grant, 1),
        (400, "InvalidCiphertextException", Corrupt, 1),
        (400, "IncorrectKeyException", Corrupt, 1),
        (400, "InvalidArnException", Config, 1),
        (400, "ValidationException", Config, 1),
        (400, "NeverHeardOfException", Config, 1),
        (403, "NeverHeardOfException", Denied, 1),
        // Credentials are read again once.
        (400, "ExpiredTokenException", Denied, 2),
        (400, "UnrecognizedClientException", Denied, 2),
        (400, "InvalidSignatureException", Denied, 2),
    ] {
        let (error, requests) =
            unwrap_against(Reply::error(status, code, "What the service says."), None).await;
        assert_eq!((error.class, requests), (class, tries), "{status} {code}");
        assert_eq!(error.code.as_deref(), Some(code));
        assert_eq!(error.message, "What the service says.");
        assert_eq!(error.attempts.map_or(1, |all| all.made as usize), tries, "{code}");
        assert_eq!(error.request_id.as_deref(), Some("request-1"), "{code}");
    }
}

/// Longer than an outage is waited for: the quota is there again in the next second, for whoever comes first.
#[tokio::test]
async fn throttling_is_waited_for_until_the_deadline() {
    for code in ["ThrottlingException", "TooManyRequestsException"] {
        let mut replies = vec![Reply::error(400, code, "Rate exceeded"); 3 * ALL];
        replies.push(decrypted());
        let (server, kms) = pair(replies).await;
        assert!(kms.unwrap(&wrapped(), &context(), Permit::default()).await.is_ok());
        assert_eq!(server.requests().len(), 3 * ALL + 1);
    }
}

#[tokio::test]
async fn a_throttled_call_ends_with_what_it_met_and_the_quota() {
    let server = Server::start([Reply::error(400, "ThrottlingException", "Rate exceeded")]).await;
    let kms = open(Settings { deadline: Some(1), ..settings(&server) }).await;
    let error = kms.lease(&key(), &context(), &spec()).await.map(drop).expect_err("no end of it");
    assert_eq!((error.class, error.code.as_deref()), (ErrorClass::Throttled, Some("ThrottlingException")));
    assert_eq!((&*error.message, error.request_id.as_deref()), ("Rate exceeded", Some("request-1")));
    // The last attempt may have been cut off before it was sent.
    let (made, sent) = (error.attempts.map_or(1, |all| all.made as usize), server.requests().len());
    assert!(sent > ALL && (made == sent || made == sent + 1), "{made} attempts, {sent} requests");
    assert!(error.to_string().contains("\"CreateGrant request rate\", by default 50 a second"), "{error}");
}

#[tokio::test]
async fn the_last_error_is_not_lost_to_an_attempt_that_hangs() {
    let server = Server::start([Reply::error(500, "KMSInternalException", "oops"), Reply::Silence]).await;
    let kms = open(Settings { deadline: Some(1), ..settings(&server) }).await;
    let error = kms.health(&KeyRef::new(ARN)).await.expect_err("the deadline");
    assert_eq!((error.code.as_deref(), &*error.message), (Some("KMSInternalException"), "oops"));
    assert_eq!(error.attempts.map(|all| all.made), Some(2));
}

/// SDKs take it for throttling; in KMS it is the quota of grants per key.
#[tokio::test]
async fn the_quota_of_grants_is_not_waited_for() {
    let (server, kms) = pair([Reply::error(400, "LimitExceededException", "no")]).await;
    let error = kms.lease(&key(), &context(), &spec()).await.map(drop).expect_err("over the quota");
    assert_eq!((error.class, server.requests().len()), (ErrorClass::Unusable, 1));
}

#[tokio::test]
async fn a_state_that_passes_is_waited_for() {
    for state in ["creating", "updating", "unavailable"] {
        let busy = Reply::error(400, "KMSInvalidStateException", &format!("{ARN} is {state}."));
        let (server, kms) = pair([busy.clone(), busy, decrypted()]).await;
        assert!(kms.unwrap(&wrapped(), &context(), Permit::default()).await.is_ok());
        assert_eq!(server.requests().len(), 3);
    }
}

#[tokio::test]
async fn a_young_grant_without_its_token_is_waited_for() {
    let denied = Reply::error(400, "AccessDeniedException", "User: arn:aws:iam::1:user/h is not authorized");
    let refused = Reply::error(400, "InvalidGrantTokenException", "no");
    let now = time::OffsetDateTime::now_utc();
    let token = token();
    for (token, minutes, replies, tries) in [
        (None, 1, vec![denied.clone(), denied.clone(), decrypted()], Ok(3)),
        (None, 6, vec![denied.clone(), decrypted()], Err(1)),
        (Some(&token), 1, vec![denied.clone(), decrypted()], Err(1)),
        // A refused token is dropped, once: its grant has ended.
        (Some(&token), 1, vec![refused, denied, decrypted()], Err(2)),
    ] {
        let (server, kms) = pair(replies).await;
        let permit = Permit { token, made: Some(now - time::Duration::minutes(minutes)) };
        let outcome = kms.unwrap(&wrapped(), &context(), permit).await.map(drop);
        let requests = server.requests().len();
        let told = outcome.map(|()| requests).map_err(|error| (error.class, requests));
        assert_eq!(told, tries.map_err(|tries| (ErrorClass::Denied, tries)));
    }
}

/// The SDK learns the service's time from the answer and signs the next request with it.
#[tokio::test]
async fn a_clock_that_is_wrong_is_set_by_the_answer() {
    let stale = Reply::Raw(
        "HTTP/1.1 400 Bad Request\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-length: 58\r\n\r\n\
         {\"__type\":\"InvalidSignatureException\",\"message\":\"expired\"}",
    );
    let (server, kms) = pair([stale, decrypted()]).await;
    assert!(kms.unwrap(&wrapped(), &context(), Permit::default()).await.is_ok());
    assert!(server.requests()[1].head.contains("x-amz-date: 19941106t08"), "{}", server.requests()[1].head);
}

#[tokio::test]
async fn a_dry_runs_answer_to_another_call_is_nonsense() {
    let (server, kms) = pair([Reply::error(400, "DryRunOperationException", "would have succeeded")]).await;
    let error = kms.generate(&key(), &context(), 64).await.map(drop).expect_err("no data key");
    assert_eq!((error.class, server.requests().len()), (ErrorClass::Nonsense, 1));
    assert!(error.message.contains("DryRunOperationException"), "{error}");
}

#[tokio::test]
async fn an_outage_that_ends_is_not_seen() {
    let down = Reply::Answer(502, "<html>Bad Gateway</html>".into());
    let (server, kms) = pair([down, Reply::Raw(""), Reply::Raw("HTTP/1.1 200"), decrypted()]).await;
    let key = kms.unwrap(&wrapped(), &context(), Permit::default()).await.expect("the fourth try");
    assert_eq!(key.expose(), plaintext().0);
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn access_denied_names_the_principal() {
    let message = "User: arn:aws:sts::111122223333:assumed-role/Host/i-0 is not authorized to perform: \
                   kms:Decrypt on resource: x because no identity-based policy allows the kms:Decrypt action";
    let denied = Reply::error(400, "AccessDeniedException", message);
    let (error, requests) = unwrap_against(denied, Some(&token())).await;
    assert_eq!(requests, 1);
    assert_eq!(error.principal.as_deref(), Some("arn:aws:sts::111122223333:assumed-role/Host/i-0"));
    assert!(error.to_string().contains("missing permission kms:Decrypt, request request-1"), "{error}");
}

#[tokio::test]
async fn a_refused_token_is_dropped_once() {
    let refused = Reply::error(400, "InvalidGrantTokenException", "no");
    let (server, kms) = pair([refused.clone(), decrypted()]).await;
    assert!(kms.unwrap(&wrapped(), &context(), Some(&token()).into()).await.is_ok());
    let requests = server.requests();
    assert_eq!(requests[0].body["GrantTokens"], json!([TOKEN]));
    assert_eq!(requests[1].body["GrantTokens"], Value::Null);

    let (error, requests) = unwrap_against(refused, Some(&token())).await;
    assert_eq!((error.class, requests), (ErrorClass::Grant, 2));
}

#[tokio::test]
async fn nonsense_is_called_so() {
    for reply in [
        Reply::Answer(200, String::new()),
        Reply::Answer(200, "{}".into()),
        Reply::Answer(200, "<html>Welcome</html>".into()),
        Reply::Answer(200, "[1, 2".into()),
        Reply::ok(json!({"KeyId": ARN, "Plaintext": "AAAA"})),
        Reply::ok(json!({"KeyId": ARN, "Plaintext": "not base64"})),
        Reply::ok(json!({"KeyId": ARN, "Plaintext": 7})),
        Reply::ok(json!({"KeyId": ARN})),
        Reply::ok(json!({"Plaintext": plaintext().1})),
        Reply::Answer(404, "<html>Not Found</html>".into()),
        Reply::Answer(403, "<Error><Code>AccessDenied</Code></Error>".into()),
        Reply::Answer(302, String::new()),
    ] {
        let (error, requests) = unwrap_against(reply, None).await;
        assert_eq!((error.class, requests), (ErrorClass::Nonsense, 1), "{error}");
        assert!(!error.message.contains(&plaintext().1));
    }
}

#[tokio::test]
async fn what_is_not_http_is_nonsense() {
    let (error, _) = unwrap_against(Reply::Raw("SSH-2.0-OpenSSH_9.2\r\n"), None).await;

    assert_eq!(error.class, ErrorClass::Nonsense, "{error}");
}

#[tokio::test]
async fn a_gateways_error_page_is_an_outage() {
    let (error, requests) = unwrap_against(Reply::Answer(502, "<html>".into()), None).await;
    assert_eq!((error.class, requests), (ErrorClass::Unreachable, ALL));
    assert_eq!(error.message, "HTTP status 502 without an error code");
}

#[tokio::test]
async fn another_key_in_the_answer_is_refused() {
    let reply = Reply::ok(json!({"KeyId": OTHER_ARN, "Plaintext": plaintext().1}));
    let (error, _) = unwrap_against(reply, None).await;
    assert_eq!(error.class, ErrorClass::Corrupt);
    assert!(error.message.contains(OTHER_ARN), "{error}");
}

#[tokio::test]
async fn a_data_key_with_equal_halves_is_refused() {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode([7; 64]);
    let (error, _) = unwrap_against(Reply::ok(json!({"KeyId": ARN, "Plaintext": text})), None).await;
    assert_eq!(error.class, ErrorClass::Nonsense);
}

#[tokio::test]
async fn a_wrapped_key_must_have_a_possible_length() {
    for blob in [String::new(), "AAAA".repeat(2049)] {
        let (_server, kms) = pair([Reply::ok(json!({"KeyId": ARN, "CiphertextBlob": blob}))]).await;
        let error = kms.generate(&key(), &context(), 64).await.map(drop).expect_err("a bad length");
        assert_eq!(error.class, ErrorClass::Nonsense);
    }
}

#[tokio::test]
async fn messages_hold_neither_token_nor_key() {
    let key = plaintext().1;
    let echo = format!("Value '{TOKEN}' and '{key}' at {ARN} are\nwrong, é");
    let (error, _) = unwrap_against(Reply::error(400, "ValidationException", &echo), Some(&token())).await;
    assert_eq!(error.message, format!("Value '[token]' and '[...]' at {ARN} are wrong, é"));
}

#[tokio::test]
async fn a_server_that_never_answers_is_left_after_the_attempts_time() {
    let server = Server::start([Reply::Silence, decrypted()]).await;
    let kms = open(Settings { attempt_timeout: Some(1), ..settings(&server) }).await;
    assert!(kms.unwrap(&wrapped(), &context(), Permit::default()).await.is_ok());
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let server = Server::start([Reply::Silence]).await;
    let kms = open(Settings { deadline: Some(1), ..settings(&server) }).await;
    let start = std::time::Instant::now();
    let error = kms.health(&KeyRef::new("alias/x")).await.expect_err("no answer");
    assert!(start.elapsed() < Duration::from_secs(4));
    assert_eq!(error.class, ErrorClass::Unreachable);
    assert!(error.message.contains("in time"), "{error}");
    assert_eq!(error.key.as_deref(), Some("alias/x"));
}

#[tokio::test]
async fn connection_refused_is_said_with_the_address() {
    let kms = open(Settings { endpoint: Some("http://127.0.0.1:9".into()), ..Settings::default() }).await;
    let error = kms.health(&KeyRef::new(ARN)).await.expect_err("nobody listens");
    assert_eq!(error.class, ErrorClass::Unreachable);
    assert!(error.message.contains("http://127.0.0.1:9"), "{error}");
    assert!(error.message.contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_and_a_server_without_tls() {
    let server = Server::start([Reply::Raw("")]).await;
    for (endpoint, said) in [
        ("https://kms.invalid".to_owned(), "failed to lookup address"),
        (server.url().replace("http://", "https://"), ""),
    ] {
        let kms =
            open(Settings { endpoint: Some(endpoint.clone()), deadline: Some(2), ..Settings::default() })
                .await;
        let error = kms.health(&KeyRef::new(ARN)).await.expect_err("no service");

        assert_eq!(error.class, ErrorClass::Unreachable, "{error}");
        assert!(error.message.contains(&endpoint), "{error}");
        assert!(error.message.contains(said), "{error}");
    }
}

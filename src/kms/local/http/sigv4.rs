//! AWS Signature Version 4, verified (IAM user guide, "Create a signed AWS API request").
//!
//! Only what KMS clients send: POST to `/` without a query, the body hashed, signed in the header.

use aws_lc_rs::{digest, hmac};
use hyper::HeaderMap;
use hyper::http::request::Parts;
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};
use zeroize::Zeroizing;

use super::super::failure::Failure;
use super::super::principal::PrincipalRecord;
use crate::hex;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// How far the client's clock may be off.
const MAX_SKEW: Duration = Duration::minutes(15);

/// What the Authorization header says.
struct Authorization<'a> {
    access_key: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    signed_headers: &'a str,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn parse(header: &'a str) -> Option<Self> {
        let rest = header.strip_prefix(ALGORITHM)?;
        let field =
            |name: &str| rest.split(',').find_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='));
        let scope: Vec<&str> = field("Credential")?.split('/').collect();
        let [access_key, date, region, service, "aws4_request"] = scope[..] else { return None };
        Some(Self {
            access_key,
            date,
            region,
            service,
            signed_headers: field("SignedHeaders")?,
            signature: field("Signature")?,
        })
    }

    fn scope(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }

    /// True if the headers that decide what is done are under the signature.
    fn covers(&self, headers: &HeaderMap) -> bool {
        let signed = |name: &str| self.signed_headers.split(';').any(|header| header == name);
        signed("host")
            && signed("x-amz-date")
            && (!headers.contains_key("x-amz-target") || signed("x-amz-target"))
    }
}

/// Finds the principal that signed the request.
///
/// # Errors
/// MissingAuthenticationTokenException, IncompleteSignatureException, UnrecognizedClientException or
/// InvalidSignatureException (also for a clock that is more than 15 minutes off).
pub(crate) fn verify<'p>(
    parts: &Parts,
    body: &[u8],
    region: &str,
    service: &str,
    principals: &'p [PrincipalRecord],
    now: OffsetDateTime,
) -> Result<&'p PrincipalRecord, Failure> {
    let header = header(&parts.headers, "authorization")
        .ok_or_else(|| Failure::new("MissingAuthenticationTokenException", "Missing Authentication Token"))?;
    let authorization = Authorization::parse(&header).ok_or_else(incomplete)?;
    let stamp = self::header(&parts.headers, "x-amz-date").ok_or_else(incomplete)?;
    let principal = principals
        .iter()
        .find(|principal| principal.access_key_id == authorization.access_key)
        .ok_or_else(|| {
        Failure::new("UnrecognizedClientException", "The security token included in the request is invalid.")
    })?;
    check_scope(&authorization, region, service)?;
    check_clock(&authorization, &stamp, now)?;
    let canonical = canonical_request(parts, body, &authorization).ok_or_else(mismatch)?;
    let text = format!(
        "{ALGORITHM}\n{stamp}\n{}\n{}",
        authorization.scope(),
        hex::encode(sha256(canonical.as_bytes()).as_ref())
    );
    let signature = hex::decode(authorization.signature).ok_or_else(mismatch)?;
    let key = signing_key(&principal.secret_access_key, &authorization);
    hmac::verify(&key, text.as_bytes(), &signature).map_err(|_| mismatch())?;
    Ok(principal)
}

fn incomplete() -> Failure {
    Failure::new("IncompleteSignatureException", "The Authorization header or X-Amz-Date is not complete.")
}

fn mismatch() -> Failure {
    Failure::new(
        "InvalidSignatureException",
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
         Access Key and signing method. Consult the service documentation for details.",
    )
}

fn check_scope(authorization: &Authorization<'_>, region: &str, service: &str) -> Result<(), Failure> {
    let wrong = |what: &str, is: &str| {
        let message = format!("Credential should be scoped to a valid {what}, not '{is}'.");
        Err(Failure::new("InvalidSignatureException", message))
    };
    if authorization.region != region {
        return wrong("region", authorization.region);
    }
    if authorization.service != service {
        return wrong("service", authorization.service);
    }
    Ok(())
}

fn check_clock(authorization: &Authorization<'_>, stamp: &str, now: OffsetDateTime) -> Result<(), Failure> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let at = PrimitiveDateTime::parse(stamp, format).map_err(|_| incomplete())?.assume_utc();
    if !stamp.starts_with(authorization.date) {
        return Err(mismatch());
    }
    if (now - at).abs() > MAX_SKEW {
        let message =
            format!("Signature expired or not yet valid: {stamp} is more than 15 minutes from now.");
        return Err(Failure::new("InvalidSignatureException", message));
    }
    Ok(())
}

/// `None` if the request is of a form that this server has no use for, or leaves a header unsigned that counts.
fn canonical_request(parts: &Parts, body: &[u8], authorization: &Authorization<'_>) -> Option<String> {
    if parts.uri.query().is_some_and(|query| !query.is_empty()) || !authorization.covers(&parts.headers) {
        return None;
    }
    let mut canonical = format!("{}\n{}\n\n", parts.method, parts.uri.path());
    for name in authorization.signed_headers.split(';') {
        canonical.push_str(&format!("{name}:{}\n", header(&parts.headers, name)?));
    }
    canonical.push_str(&format!(
        "\n{}\n{}",
        authorization.signed_headers,
        hex::encode(sha256(body).as_ref())
    ));
    Some(canonical)
}

/// A header's values in canonical form: joined by commas, each with single spaces and none around it.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let mut values = Vec::new();
    for value in headers.get_all(name) {
        values.push(value.to_str().ok()?.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
    }
    (!values.is_empty()).then(|| values.join(","))
}

fn signing_key(secret: &str, authorization: &Authorization<'_>) -> hmac::Key {
    let secret = Zeroizing::new(format!("AWS4{secret}"));
    let mut key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    for part in [authorization.date, authorization.region, authorization.service, "aws4_request"] {
        key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref());
    }
    key
}

fn sha256(bytes: &[u8]) -> digest::Digest {
    digest::digest(&digest::SHA256, bytes)
}

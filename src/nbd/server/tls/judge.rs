//! What clients will think of a certificate: they judge it, not the server, which says at its start what they will find.

use std::path::Path;
use std::time::SystemTime;

use ::aws_lc_rs::signature::RsaKeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_cert::Certificate;
use x509_cert::der::asn1::{ObjectIdentifier, UintRef};
use x509_cert::der::{Decode, Reader, SliceReader};
use x509_cert::ext::pkix::{BasicConstraints, ExtendedKeyUsage};

use super::files::{Role, TlsError, unusable};
use super::refusal::printable;

/// rsaEncryption (RFC 8017, appendix C).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
/// id-kp-serverAuth (RFC 5280, 4.2.1.12).
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
/// anyExtendedKeyUsage.
const ANYTHING: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37.0");
/// Bits of the shortest RSA key that the library signs or verifies with.
const SHORTEST_RSA: usize = 2048;
/// Of a key that is shorter.
pub(super) const SHORT: &str = "its RSA key is too short, and must have at least 2048 bits";

/// Refuses what every client would refuse at any time, and warns of what depends on the clock.
pub(super) fn server(path: &Path, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
    let parsed =
        Certificate::from_der(certificate).map_err(|error| unusable(Role::Certificate, path, &error))?;
    for_servers(path, &parsed)?;
    warn_of_time(path, &parsed);
    Ok(())
}

/// Refuses a CA by which no client's certificate could be verified.
pub(super) fn client_ca(path: &Path, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
    // What this parser does not take, the library that verifies has its own word on.
    let Ok(parsed) = Certificate::from_der(certificate) else { return Ok(()) };
    if rsa_bits(&parsed).is_some_and(|bits| bits < SHORTEST_RSA) {
        return Err(unusable(Role::ClientCa, path, &SHORT));
    }
    for_authorities(path, &parsed)
}

/// The library asks of a client CA only that it has signed what a client shows. A certificate that is no CA's and that
/// another has signed lets nobody in, not even its owner; but one that has signed itself does.
fn for_authorities(path: &Path, certificate: &Certificate) -> Result<(), TlsError> {
    let body = certificate.tbs_certificate();
    let is_ca = match body.get_extension::<BasicConstraints>() {
        Ok(found) => found.map(|(_, constraints)| constraints.ca),
        // The library has its own word on that.
        Err(_) => return Ok(()),
    };
    let subject = printable(&body.subject().to_string());
    match (is_ca, body.subject() == body.issuer()) {
        // Before there were extensions, a CA's was known by signing itself.
        (Some(true), _) | (None, true) => {}
        (Some(false), true) => tracing::warn!(
            client_ca = %path.display(),
            subject,
            "a certificate among the TLS client CAs is no CA's (CA:FALSE); its owner may come, and may sign for others"
        ),
        (Some(false) | None, false) => return Err(TlsError::NoCa { path: path.into(), subject }),
    }
    Ok(())
}

/// Whether a key that is of no use is an RSA key that is too short.
pub(super) fn is_short(key: &PrivateKeyDer<'_>) -> bool {
    let pair = match key {
        PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
        _ => return false,
    };
    pair.is_err_and(|error| error.to_string() == "TooSmall")
}

/// Bits of the public key's modulus, if it is an RSA key.
fn rsa_bits(certificate: &Certificate) -> Option<usize> {
    let info = certificate.tbs_certificate().subject_public_key_info();
    if info.algorithm.oid != RSA {
        return None;
    }
    let mut reader = SliceReader::new(info.subject_public_key.as_bytes()?).ok()?;
    let bits = reader.sequence(|inner| {
        let modulus = UintRef::decode(inner)?.as_bytes();
        UintRef::decode(inner)?;
        let zeros = modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
        Ok::<_, x509_cert::der::Error>(modulus.len() * 8 - zeros)
    });
    bits.ok()
}

/// A certificate that says what it is for has to be for servers, or for anything, which some clients take.
fn for_servers(path: &Path, certificate: &Certificate) -> Result<(), TlsError> {
    match certificate.tbs_certificate().get_extension::<ExtendedKeyUsage>() {
        Ok(Some((_, ExtendedKeyUsage(uses))))
            if !uses.contains(&SERVER_AUTH) && !uses.contains(&ANYTHING) =>
        {
            let reason = "its extended key usage is without serverAuth, so clients would refuse it";
            Err(unusable(Role::Certificate, path, &reason))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(unusable(Role::Certificate, path, &error)),
    }
}

fn warn_of_time(path: &Path, certificate: &Certificate) {
    let (validity, now) = (certificate.tbs_certificate().validity(), SystemTime::now());
    let certificate = path.display();
    if now > validity.not_after.to_system_time() {
        let since = validity.not_after.to_date_time();
        tracing::warn!(%certificate, %since, "the TLS certificate has expired; clients will refuse it: renew it");
    } else if now < validity.not_before.to_system_time() {
        let until = validity.not_before.to_date_time();
        tracing::warn!(%certificate, %until, "the TLS certificate is not valid yet; clients will refuse it: check the clock");
    }
}

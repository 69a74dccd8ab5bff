//! Which clients may come: those whose certificates have one of the allowed names.

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Takes what another verifier takes, if it has one of these names.
#[derive(Debug)]
pub(super) struct Allowed {
    trusted: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl Allowed {
    pub(super) fn new(trusted: Arc<dyn ClientCertVerifier>, names: &[String]) -> Self {
        Self { trusted, names: names.to_vec() }
    }
}

impl ClientCertVerifier for Allowed {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.trusted.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.trusted.verify_client_cert(end_entity, intermediates, now)?;
        // The client is told that access is denied (RFC 8446, 6.2).
        let denied = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        match Certificate::from_der(end_entity) {
            Ok(parsed) if self.names.iter().any(|name| has_name(&parsed, name)) => Ok(verified),
            Ok(parsed) => {
                let subject = parsed.tbs_certificate().subject();
                tracing::warn!(%subject, "a client's certificate is valid, and has none of the allowed names");
                Err(denied)
            }
            Err(_) => Err(Error::InvalidCertificate(CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trusted.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trusted.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trusted.supported_verify_schemes()
    }
}

/// By an alternative name or the subject's common name. DNS names are the same in any case (RFC 4343).
pub(super) fn has_name(certificate: &Certificate, wanted: &str) -> bool {
    let body = certificate.tbs_certificate();
    let alternative = body.get_extension::<SubjectAltName>().ok().flatten();
    let alternative = alternative.map_or_else(Vec::new, |(_, SubjectAltName(names))| names);
    let by_alternative = alternative.iter().any(|name| match name {
        GeneralName::DnsName(name) => name.as_str().eq_ignore_ascii_case(wanted),
        GeneralName::Rfc822Name(name) | GeneralName::UniformResourceIdentifier(name) => {
            name.as_str() == wanted
        }
        GeneralName::OtherName(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EdiPartyName(_)
        | GeneralName::IpAddress(_)
        | GeneralName::RegisteredId(_) => false,
    });
    by_alternative || common_name(certificate).is_some_and(|name| name == wanted)
}

fn common_name(certificate: &Certificate) -> Option<String> {
    let name = certificate.tbs_certificate().subject().common_name().ok().flatten()?;
    Some(name.value().into_owned())
}

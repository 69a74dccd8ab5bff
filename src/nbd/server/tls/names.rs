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

use super::refusal::{Reason, Refusals, fault, printable};

/// Takes what another verifier takes, if it has one of these names, or there are none. Warns of what it does not take.
#[derive(Debug)]
pub(super) struct Allowed {
    trusted: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
    refused: Refusals,
}

impl Allowed {
    pub(super) fn new(trusted: Arc<dyn ClientCertVerifier>, names: &[String]) -> Self {
        Self { trusted, names: names.to_vec(), refused: Refusals::default() }
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
        let taken = self.trusted.verify_client_cert(end_entity, intermediates, now);
        // Not all that is good enough for the verifier can be read here; then it has no name that could be allowed.
        let parsed = Certificate::from_der(end_entity).ok();
        let is_allowed = |name: &String| parsed.as_ref().is_some_and(|parsed| has_name(parsed, name));
        let (reason, fault) = match &taken {
            Err(error) => fault(error),
            Ok(_) if self.names.is_empty() || self.names.iter().any(is_allowed) => return taken,
            Ok(_) => (Reason::Name, "it has none of the allowed names".into()),
        };
        if let Some(unsaid) = self.refused.say(reason) {
            let subject = parsed.map(|parsed| parsed.tbs_certificate().subject().to_string());
            let subject = printable(subject.as_deref().unwrap_or("unreadable"));
            tracing::warn!(subject, unsaid, "a client's certificate is refused: {fault}");
        }
        // The client is told that access is denied (RFC 8446, 6.2).
        taken.and(Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)))
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

/// By an alternative name or, only where there are none, the subject's common name: a CA that may sign for some names
/// only (name constraints, RFC 5280, 4.2.1.10) may still write any common name. DNS names are the same in any case (RFC 4343).
pub(super) fn has_name(certificate: &Certificate, wanted: &str) -> bool {
    let body = certificate.tbs_certificate();
    let SubjectAltName(alternative) = match body.get_extension::<SubjectAltName>() {
        Ok(Some((_, names))) => names,
        Ok(None) => return common_name(certificate).is_some_and(|name| name == wanted),
        Err(_) => return false,
    };
    alternative.iter().any(|name| match name {
        GeneralName::DnsName(name) => name.as_str().eq_ignore_ascii_case(wanted),
        GeneralName::Rfc822Name(name) | GeneralName::UniformResourceIdentifier(name) => {
            name.as_str() == wanted
        }
        GeneralName::OtherName(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EdiPartyName(_)
        | GeneralName::IpAddress(_)
        | GeneralName::RegisteredId(_) => false,
    })
}

fn common_name(certificate: &Certificate) -> Option<String> {
    let name = certificate.tbs_certificate().subject().common_name().ok().flatten()?;
    Some(name.value().into_owned())
}

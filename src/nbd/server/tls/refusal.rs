//! Why a TLS handshake failed, in words for the log.

use std::io;

use std::num::NonZero;

use rustls::{AlertDescription, CertificateError, Error};

use crate::nbd::server::seldom::Seldom;

/// Characters of what somebody else chose.
const MAX_LENGTH: usize = 256;

/// For the log: on one line, and not at any length.
pub(super) fn printable(text: &str) -> String {
    text.escape_default().take(MAX_LENGTH).collect()
}

/// What somebody has to mend before a client gets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The client's certificate...
    Missing,
    Issuer,
    Expired,
    NotYet,
    Purpose,
    Name,
    /// ... is damaged, or unfit in another way.
    Unfit,
    /// No version, cipher or kind of signature is both sides'.
    NothingInCommon,
    /// The client has ended the handshake: it does not know the CA, ...
    ServerIssuer,
    /// ... the server's certificate has expired, ...
    ServerExpired,
    /// ... it is bad, as one with another name is, ...
    ServerBad,
    /// ... or anything else.
    Alert,
}

/// Each reason is logged seldom, and by itself: who has mended one sees the next.
#[derive(Debug, Default)]
pub(super) struct Refusals([Seldom; Reason::Alert as usize + 1]);

impl Refusals {
    /// As [`Seldom::say`].
    pub(super) fn say(&self, reason: Reason) -> Option<Option<NonZero<u64>>> {
        self.0[reason as usize].say()
    }
}

/// What the administrator of one side has to mend. Not what whoever reaches the socket may bring about by hanging up
/// or by sending what is no TLS; and not a client's certificate, which its verifier has told of.
pub(super) fn reason(error: &io::Error) -> Option<(Reason, String)> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::NoCertificatesPresented => {
            let why = "it has shown no certificate, having none, or none that a CA in the client CA file has signed";
            (Reason::Missing, why.into())
        }
        Error::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled) => return None,
        Error::AlertReceived(alert) => (
            server_fault(*alert),
            format!(
                "it has ended the handshake, saying {alert:?}: it may not trust the server's certificate"
            ),
        ),
        Error::PeerIncompatible(_) => (Reason::NothingInCommon, printable(&error.to_string())),
        _ => return None,
    })
}

/// Why a client does not take the server's certificate.
fn server_fault(alert: AlertDescription) -> Reason {
    match alert {
        AlertDescription::UnknownCA => Reason::ServerIssuer,
        AlertDescription::CertificateExpired => Reason::ServerExpired,
        AlertDescription::BadCertificate => Reason::ServerBad,
        _ => Reason::Alert,
    }
}

/// Why a client's certificate is not taken.
pub(super) fn fault(error: &Error) -> (Reason, String) {
    use CertificateError as Fault;
    let (reason, fault) = match error {
        Error::InvalidCertificate(Fault::UnknownIssuer) => {
            (Reason::Issuer, "no CA in the client CA file has signed it")
        }
        Error::InvalidCertificate(Fault::Expired | Fault::ExpiredContext { .. }) => {
            (Reason::Expired, "it has expired")
        }
        Error::InvalidCertificate(Fault::NotValidYet | Fault::NotValidYetContext { .. }) => {
            (Reason::NotYet, "it is not valid yet")
        }
        Error::InvalidCertificate(Fault::InvalidPurpose | Fault::InvalidPurposeContext { .. }) => {
            (Reason::Purpose, "its extended key usage is without clientAuth")
        }
        other => return (Reason::Unfit, printable(&other.to_string())),
    };
    (reason, fault.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_calls_itself_stays_on_one_line_and_short() {
        assert_eq!(printable("CN=worker"), "CN=worker");
        assert_eq!(printable("CN=a\nb\u{1b}[2J\u{202e}"), "CN=a\\nb\\u{1b}[2J\\u{202e}");
        assert_eq!(printable(&"x".repeat(10_000)).len(), MAX_LENGTH);
    }

    #[test]
    fn whoever_hangs_up_or_sends_rubbish_is_not_worth_a_warning() {
        let of = |error: Error| reason(&io::Error::other(error));
        assert_eq!(reason(&io::ErrorKind::UnexpectedEof.into()), None);
        assert_eq!(of(Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)), None);
        assert_eq!(of(Error::DecryptError), None);
        assert_eq!(of(Error::AlertReceived(AlertDescription::CloseNotify)), None);
        assert!(of(Error::NoCertificatesPresented).is_some());
        let (reason, why) = of(Error::AlertReceived(AlertDescription::UnknownCA)).unwrap();
        assert!(reason == Reason::ServerIssuer && why.contains("UnknownCA"), "{why}");
    }

    #[test]
    fn each_reason_is_said_by_itself() {
        let refusals = Refusals::default();
        for reason in [
            Reason::Missing,
            Reason::Issuer,
            Reason::Expired,
            Reason::NotYet,
            Reason::Purpose,
            Reason::Name,
            Reason::Unfit,
            Reason::NothingInCommon,
            Reason::ServerIssuer,
            Reason::ServerExpired,
            Reason::ServerBad,
            Reason::Alert,
        ] {
            assert_eq!(refusals.say(reason), Some(None), "{reason:?}");
            assert_eq!(refusals.say(reason), None, "{reason:?}");
        }
    }
}

//! Why a TLS handshake failed, in words for the log.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Characters of what somebody else chose.
const MAX_LENGTH: usize = 256;

/// For the log: on one line, and not at any length.
pub(super) fn printable(text: &str) -> String {
    text.escape_default().take(MAX_LENGTH).collect()
}

/// What the administrator of one side has to mend. Not what whoever reaches the socket may bring about by hanging up
/// or by sending what is no TLS; and not a client's certificate, which its verifier has told of.
pub(super) fn reason(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::NoCertificatesPresented => {
            "it has shown no certificate, having none, or none that a CA in the client CA file has signed"
                .into()
        }
        Error::AlertReceived(AlertDescription::CloseNotify | AlertDescription::UserCanceled) => return None,
        Error::AlertReceived(alert) => {
            format!("it has ended the handshake, saying {alert:?}: it may not trust the server's certificate")
        }
        Error::PeerIncompatible(_) => printable(&error.to_string()),
        _ => return None,
    })
}

/// Why a client's certificate is not taken.
pub(super) fn fault(error: &Error) -> String {
    use CertificateError as Fault;
    let fault = match error {
        Error::InvalidCertificate(Fault::UnknownIssuer) => "no CA in the client CA file has signed it",
        Error::InvalidCertificate(Fault::Expired | Fault::ExpiredContext { .. }) => "it has expired",
        Error::InvalidCertificate(Fault::NotValidYet | Fault::NotValidYetContext { .. }) => {
            "it is not valid yet"
        }
        Error::InvalidCertificate(Fault::InvalidPurpose | Fault::InvalidPurposeContext { .. }) => {
            "its extended key usage is without clientAuth"
        }
        other => return printable(&other.to_string()),
    };
    fault.into()
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
        assert!(of(Error::AlertReceived(AlertDescription::UnknownCA)).unwrap().contains("UnknownCA"));
    }
}

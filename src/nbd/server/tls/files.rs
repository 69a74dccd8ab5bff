//! From files to what rustls needs.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{InconsistentKeys, RootCertStore, ServerConfig, SupportedCipherSuite};
use zeroize::{Zeroize, Zeroizing};

use super::TlsSettings;
use super::judge;
use super::names::Allowed;

/// Longer than any chain of certificates, short enough to be read whole.
const MAX_FILE: u32 = 1 << 20;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The server's certificate.
    Certificate,
    /// Its private key.
    Key,
    /// The CAs of clients.
    ClientCa,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Certificate => "TLS certificate",
            Self::Key => "TLS private key",
            Self::ClientCa => "TLS client CA",
        })
    }
}

/// Why TLS cannot be spoken with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// What the operating system answered.
    #[error("cannot read {role} {path}: {source}; give the path of a PEM file that this user may read")]
    Read {
        /// What it is for.
        role: Role,
        /// Where it is.
        path: PathBuf,
        /// What came back.
        source: io::Error,
    },
    /// A directory, a pipe, or far too much.
    #[error("{role} {path} is not a regular file of at most 1 MiB; give the path of a PEM file")]
    NotPem {
        /// What it is for.
        role: Role,
        /// Where it is.
        path: PathBuf,
    },
    /// Damaged PEM.
    #[error("{role} {path} is damaged: {source}; write it anew")]
    Pem {
        /// What it is for.
        role: Role,
        /// Where it is.
        path: PathBuf,
        /// What came back.
        source: pem::Error,
    },
    /// PEM without what is looked for, or none at all.
    #[error("{role} {path} has no part \"{wanted}\"; give a PEM file")]
    Missing {
        /// What it is for.
        role: Role,
        /// Where it is.
        path: PathBuf,
        /// What its parts should begin with.
        wanted: &'static str,
    },
    /// A key that asks for a passphrase.
    #[error(
        "TLS private key {path} is encrypted, and there is nobody to ask for its passphrase; decrypt it with \
         `openssl pkey -in {path} -out NEW.pem`, and give NEW.pem"
    )]
    Encrypted {
        /// Where it is.
        path: PathBuf,
    },
    /// What is in it is of no use.
    #[error("{role} {path} cannot be used: {reason}; make a new one")]
    Unusable {
        /// What it is for.
        role: Role,
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate that signs no other.
    #[error(
        "TLS client CA {path} has a certificate in it that is no CA's (CA:TRUE), that of {subject}; give the \
         certificate of the CA that signs those of clients"
    )]
    NoCa {
        /// Where it is.
        path: PathBuf,
        /// Whose it is.
        subject: String,
    },
    /// The key is another certificate's.
    #[error("TLS private key {key} does not belong to TLS certificate {cert}; give both of one pair")]
    Mismatch {
        /// Where the key is.
        key: PathBuf,
        /// Where the certificate is.
        cert: PathBuf,
    },
}

/// What tells that a file has changed: device, inode, bytes, and the time of the last change, that of owner and mode
/// included (ctime), in seconds and nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);
/// The certificate's, the key's and the CA's; `None` for one that is not there.
pub(super) type Stamps = [Option<Stamp>; 3];

/// Follows symbolic links, which is how some swap all files at once.
pub(super) fn stamps(settings: &TlsSettings) -> Stamps {
    let TlsSettings { cert, key, client_ca, .. } = settings;
    [Some(cert), Some(key), client_ca.as_ref()].map(|path| {
        let found = fs::metadata(path?).ok()?;
        Some((found.dev(), found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
    })
}

/// Reads all files.
pub(super) fn read(settings: &TlsSettings) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(Role::Certificate, &settings.cert)?;
    let key = CertifiedKey::new(chain, signing_key(&settings.key)?);
    match key.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            let (key, cert) = (settings.key.clone(), settings.cert.clone());
            return Err(TlsError::Mismatch { key, cert });
        }
        Err(error) => return Err(unusable(Role::Certificate, &settings.cert, &error)),
    }
    let provider = Arc::new(provider());
    // The provider has ciphers of both versions, so this cannot fail for lack of them.
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(Role::Certificate, &settings.cert, &error))?;
    let builder = match &settings.client_ca {
        Some(path) => builder.with_client_cert_verifier(verifier(path, &settings.allow)?),
        None => builder.with_no_client_auth(),
    };
    // Only now: files that cannot be read are tried again for each client.
    judge::server(&settings.cert, &key.cert[0])?;
    warn_of_rights(&settings.key);
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    // Connections last for long, and a client that resumes a session is not asked for its certificate again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Without those ciphers of TLS 1.2 that may encipher so many records and no more (AES-GCM): keys cannot be changed
/// there, and rustls ends a session that has reached the limit and takes what is written after it for sent.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| match suite {
        SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit == u64::MAX,
        SupportedCipherSuite::Tls13(_) => true,
    });
    provider
}

fn verifier(path: &Path, allow: &[String]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let failed = |error: &dyn fmt::Display| unusable(Role::ClientCa, path, error);
    let mut roots = RootCertStore::empty();
    for certificate in certificates(Role::ClientCa, path)? {
        judge::client_ca(path, &certificate)?;
        roots.add(certificate).map_err(|error| failed(&error))?;
    }
    let provider = Arc::new(provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|error| failed(&error))?;
    Ok(Arc::new(Allowed::new(verifier, allow)))
}

/// At least one.
fn certificates(role: Role, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = contents(role, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|source| TlsError::Pem { role, path: path.into(), source })?;
    if found.is_empty() {
        return Err(TlsError::Missing { role, path: path.into(), wanted: "BEGIN CERTIFICATE" });
    }
    Ok(found)
}

/// What is left of the file in memory is wiped; rustls keeps the key itself.
fn signing_key(path: &Path) -> Result<Arc<dyn rustls::sign::SigningKey>, TlsError> {
    let role = Role::Key;
    let bytes = contents(role, path)?;
    let mut key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|source| match source {
        _ if is_encrypted(&bytes) => TlsError::Encrypted { path: path.into() },
        pem::Error::NoItemsFound => {
            TlsError::Missing { role, path: path.into(), wanted: "BEGIN PRIVATE KEY" }
        }
        source => TlsError::Pem { role, path: path.into(), source },
    })?;
    let signing = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| {
        if judge::is_short(&key) { unusable(role, path, &judge::SHORT) } else { unusable(role, path, &error) }
    });
    key.zeroize();
    signing
}

/// In PKCS #8's form, or in the one before it (RFC 1421, 4.6.1.1).
fn is_encrypted(pem: &[u8]) -> bool {
    let has = |mark: &[u8]| pem.windows(mark.len()).any(|part| part == mark);
    has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED")
}

fn warn_of_rights(path: &Path) {
    if fs::metadata(path).is_ok_and(|found| found.mode() & 0o004 != 0) {
        tracing::warn!(
            key = %path.display(),
            "every user of this machine may read the TLS private key; take that right away (chmod o-r)"
        );
    }
}

fn contents(role: Role, path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let failed = |source| TlsError::Read { role, path: path.into(), source };
    let found = fs::metadata(path).map_err(failed)?;
    // A pipe is not opened at all, for that could take for ever.
    if !found.is_file() || found.len() > MAX_FILE.into() {
        return Err(TlsError::NotPem { role, path: path.into() });
    }
    // With room for all of it, so that growing leaves no copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize));
    File::open(path).and_then(|file| file.take(MAX_FILE.into()).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}

pub(super) fn unusable(role: Role, path: &Path, reason: &dyn fmt::Display) -> TlsError {
    TlsError::Unusable { role, path: path.into(), reason: reason.to_string() }
}

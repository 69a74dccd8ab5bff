use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// A certificate that signs itself, and its key, as PEM files.
pub(in crate::nbd::server) struct Pair {
    directory: tempfile::TempDir,
}

impl Pair {
    pub(in crate::nbd::server) fn new() -> Self {
        let pair = Self { directory: tempfile::tempdir().unwrap() };
        pair.renew("localhost");
        pair
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Another pair in place of the old one.
    fn renew(&self, name: &str) {
        self.make(name, &EC);
    }

    /// A pair of any kind in place of the old one.
    fn make(&self, name: &str, kind: &[&str]) {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes"])
            .args(kind)
            .args(["-days", "30", "-subj", &format!("/CN={name}"), "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", "new-key", "-out", "new-cert"])
            .current_dir(self.directory.path())
            .output()
            .expect("openssl is missing: run scripts/setup test");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        fs::rename(self.path("new-key"), self.path("key")).unwrap();
        fs::rename(self.path("new-cert"), self.path("cert")).unwrap();
    }

    pub(in crate::nbd::server) fn settings(&self) -> TlsSettings {
        let (cert, key) = (self.path("cert"), self.path("key"));
        TlsSettings { mode: TlsMode::Require, cert, key, client_ca: None, allow: Vec::new() }
    }

    /// A client that trusts the certificate.
    pub(in crate::nbd::server) fn client(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
    ) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("cert")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        ClientConnection::new(Arc::new(config), name).unwrap()
    }
}

const EC: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

fn load(settings: TlsSettings) -> Result<(), String> {
    Tls::load(settings).map(drop).map_err(|error| error.to_string())
}

#[test]
fn every_file_that_cannot_be_used_is_named_with_its_fault() {
    let (pair, other) = (Pair::new(), Pair::new());
    let file = |name: &str, content: &str| {
        let path = pair.path(name);
        fs::write(&path, content).unwrap();
        path
    };
    let empty = file("empty", "");
    let damaged = file("damaged", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n");
    let nonsense = file("nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let bad_key = file("bad-key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    let locked =
        file("locked", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let old_locked = file(
        "old-locked",
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n",
    );
    let decrypted = |path: &Path| format!("openssl pkey -in {} -out", path.display());
    let (unlock, old_unlock) = (decrypted(&locked), decrypted(&old_locked));
    let absent = pair.path("absent");
    let directory = pair.directory.path().to_path_buf();
    let huge = pair.path("huge");
    fs::File::create(&huge).unwrap().set_len((1 << 20) + 1).unwrap();
    let good = || pair.settings();
    let cert = |cert: &Path| TlsSettings { cert: cert.into(), ..good() };
    let key = |key: &Path| TlsSettings { key: key.into(), ..good() };
    let ca = |ca: &Path| TlsSettings { client_ca: Some(ca.into()), ..good() };
    assert_eq!(load(good()), Ok(()));
    assert_eq!(load(ca(&pair.path("cert"))), Ok(()));
    for (settings, role, path, fault) in [
        (cert(&absent), Role::Certificate, &absent, "No such file"),
        (cert(&directory), Role::Certificate, &directory, "not a regular file"),
        (cert(&huge), Role::Certificate, &huge, "at most 1 MiB"),
        (cert(&empty), Role::Certificate, &empty, "no part \"BEGIN CERTIFICATE\""),
        (cert(&damaged), Role::Certificate, &damaged, "damaged"),
        (cert(&nonsense), Role::Certificate, &nonsense, "cannot be used"),
        (key(&absent), Role::Key, &absent, "No such file"),
        (key(&empty), Role::Key, &empty, "no part \"BEGIN PRIVATE KEY\""),
        (key(&pair.path("cert")), Role::Key, &pair.path("cert"), "BEGIN PRIVATE KEY"),
        (key(&locked), Role::Key, &locked, "encrypted"),
        (key(&locked), Role::Key, &locked, &unlock),
        (key(&old_locked), Role::Key, &old_locked, "encrypted"),
        (key(&old_locked), Role::Key, &old_locked, &old_unlock),
        (key(&bad_key), Role::Key, &bad_key, "cannot be used"),
        (key(&other.path("key")), Role::Key, &other.path("key"), "does not belong to TLS certificate"),
        (ca(&absent), Role::ClientCa, &absent, "No such file"),
        (ca(&empty), Role::ClientCa, &empty, "no part"),
        (ca(&nonsense), Role::ClientCa, &nonsense, "cannot be used"),
    ] {
        let error = load(settings).unwrap_err();
        for word in [&role.to_string(), &path.display().to_string(), fault] {
            assert!(error.contains(word), "{word:?} is missing from: {error}");
        }
    }
}

#[test]
fn what_every_client_would_refuse_is_refused_at_the_start() {
    let short = Pair::new();
    short.make("rsa", &["-newkey", "rsa:1024"]);
    let error = load(short.settings()).unwrap_err();
    assert!(error.contains("TLS private key") && error.contains("at least 2048"), "{error}");
    assert!(error.ends_with("; make a new one"), "{error}");
    let long = Pair::new();
    let error = load(TlsSettings { client_ca: Some(short.path("cert")), ..long.settings() }).unwrap_err();
    assert!(error.contains("TLS client CA") && error.contains("at least 2048"), "{error}");
    for (usage, fine) in [
        ("serverAuth", true),
        ("clientAuth,serverAuth", true),
        ("clientAuth", false),
        ("emailProtection", false),
        ("anyExtendedKeyUsage", true),
    ] {
        let pair = Pair::new();
        pair.make("x", &[&EC[..], &["-addext", &format!("extendedKeyUsage={usage}")]].concat());
        let loaded = load(pair.settings());
        assert_eq!(loaded.is_ok(), fine, "{usage}: {loaded:?}");
        assert!(loaded.err().is_none_or(|error| error.contains("serverAuth")), "{usage}");
    }
}

#[test]
fn a_client_ca_is_one() {
    let (pair, server) = (Pair::new(), Pair::new());
    let loaded = || load(TlsSettings { client_ca: Some(pair.path("cert")), ..server.settings() });
    let make = |subject: &str, more: &[&str]| {
        let made = Command::new("openssl")
            .args(["req", "-x509", "-nodes", "-config", "conf", "-subj", subject])
            .args(EC)
            .args(more)
            .args(["-keyout", "key", "-out", "cert"])
            .current_dir(pair.directory.path())
            .output()
            .expect("openssl is missing: run scripts/setup test");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    assert_eq!(loaded(), Ok(()), "who owns it comes in by it");
    // Without the extension that says so.
    fs::write(pair.path("conf"), "[req]\ndistinguished_name=name\n[name]\n").unwrap();
    make("/CN=an old CA", &[]);
    assert_eq!(loaded(), Ok(()));
    for (name, kind) in [("ca-cert", "cert"), ("ca-key", "key")] {
        fs::copy(pair.path(kind), pair.path(name)).unwrap();
    }
    let signed = ["-CA", "ca-cert", "-CAkey", "ca-key"];
    make("/CN=another CA", &[&signed[..], &["-addext", "basicConstraints=critical,CA:TRUE"]].concat());
    assert_eq!(loaded(), Ok(()));
    for more in [&[][..], &["-addext", "basicConstraints=critical,CA:FALSE"]] {
        make("/CN=worker", &[&signed[..], more].concat());
        let error = loaded().unwrap_err();
        for word in ["TLS client CA", &pair.path("cert").display().to_string(), "no CA's", "CN=worker"] {
            assert!(error.contains(word), "{word:?} is missing from: {error}");
        }
    }
}

#[test]
fn files_are_read_anew_when_they_change_and_kept_while_they_are_of_no_use() {
    let pair = Pair::new();
    let tls = Tls::load(pair.settings()).unwrap();
    let first = tls.config();
    assert!(Arc::ptr_eq(&first, &tls.config()), "nothing has changed");
    pair.renew("renewed");
    let second = tls.config();
    assert!(!Arc::ptr_eq(&first, &second));
    fs::write(pair.path("key"), "rubbish").unwrap();
    assert!(Arc::ptr_eq(&second, &tls.config()), "rubbish has taken the key's place");
    fs::remove_file(pair.path("cert")).unwrap();
    assert!(Arc::ptr_eq(&second, &tls.config()), "the certificate is gone");
    pair.renew("again");
    let third = tls.config();
    assert!(!Arc::ptr_eq(&second, &third));
    assert!(Arc::ptr_eq(&third, &tls.config()));
}

#[test]
fn a_key_that_can_be_read_again_is_taken() {
    let pair = Pair::new();
    let tls = Tls::load(pair.settings()).unwrap();
    let first = tls.config();
    let mode = |mode| fs::set_permissions(pair.path("key"), Permissions::from_mode(mode)).unwrap();
    pair.renew("renewed");
    mode(0);
    // Root may read everything, but for these; they are this thread's.
    let all = capabilities(None).unwrap();
    let mut few = all;
    few.effective -= CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
    set_capabilities(None, few).unwrap();
    assert!(fs::read(pair.path("key")).is_err());
    assert!(Arc::ptr_eq(&first, &tls.config()), "the key cannot be read");
    assert!(Arc::ptr_eq(&first, &tls.config()));
    let unreadable = stamps(&pair.settings());
    // Longer than the clock that files are stamped by takes for a tick.
    std::thread::sleep(Duration::from_millis(20));
    mode(0o600);
    assert!(stamps(&pair.settings()) != unreadable, "a change of mode shows");
    assert!(!Arc::ptr_eq(&first, &tls.config()));
    set_capabilities(None, all).unwrap();
}

#[test]
fn what_kept_files_from_being_read_need_not_show_in_them() {
    let pair = Pair::new();
    let tls = Tls::load(pair.settings()).unwrap();
    let first = tls.config();
    pair.renew("renewed");
    let before = tls.current.lock().unwrap().stamps;
    fs::rename(pair.path("key"), pair.path("away")).unwrap();
    assert!(Arc::ptr_eq(&first, &tls.config()));
    assert!(tls.current.lock().unwrap().stamps == before, "the next client's arrival tries again");
    fs::rename(pair.path("away"), pair.path("key")).unwrap();
    assert!(!Arc::ptr_eq(&first, &tls.config()));
}

/// A certificate of this subject, and perhaps with an extension.
fn parsed(subject: &str, extension: Option<&str>) -> x509_cert::Certificate {
    let directory = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "30", "-subj", subject])
        .args(extension.into_iter().flat_map(|extension| ["-addext", extension]))
        .args(["-keyout", "key", "-out", "cert"])
        .current_dir(directory.path())
        .output()
        .expect("openssl is missing: run scripts/setup test");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let certificate = CertificateDer::from_pem_file(directory.path().join("cert")).unwrap();
    x509_cert::der::Decode::from_der(&certificate).unwrap()
}

#[test]
fn a_certificate_has_its_alternative_names() {
    let names =
        "subjectAltName=DNS:Worker.Example,URI:spiffe://example/worker,email:worker@example.org,IP:10.0.0.1";
    let parsed = parsed("/O=Example/CN=the worker", Some(names));
    for (name, has) in [
        ("worker.example", true),
        ("WORKER.EXAMPLE", true),
        ("spiffe://example/worker", true),
        ("spiffe://example/WORKER", false),
        ("worker@example.org", true),
        ("the worker", false),
        ("worker", false),
        ("Example", false),
        ("10.0.0.1", false),
        ("", false),
    ] {
        assert_eq!(names::has_name(&parsed, name), has, "{name}");
    }
}

#[test]
fn a_common_name_counts_where_there_are_no_alternative_names() {
    let alone = parsed("/O=Example/CN=the worker", None);
    for (name, has) in [("the worker", true), ("The Worker", false), ("Example", false), ("", false)] {
        assert_eq!(names::has_name(&alone, name), has, "{name}");
    }
    let unnamed = parsed("/CN=the worker", Some("subjectAltName=IP:10.0.0.1"));
    assert!(!names::has_name(&unnamed, "the worker"), "an address is an alternative name as well");
}

//! Certificates for tests of TLS: short-lived, with EC keys, made with the `openssl` command.

use std::path::{Path, PathBuf};

use crate::support::{Lab, assert_succeeds, entries, finish, text, tool};

/// Validity of what is valid, and of what is not any more, as ASN.1 times.
pub(crate) const VALID: [&str; 2] = ["20200101000000Z", "20491231235959Z"];
const EXPIRED: [&str; 2] = ["20200101000000Z", "20200102000000Z"];

/// What `openssl ca` is told in a file only: names of every kind are signed, and a list of serial numbers is not kept.
const CONFIGURATION: &str = "\
[ca]\ndefault_ca = any\n[any]\ndatabase = ../index\ndefault_md = sha256\nrand_serial = yes\nunique_subject = no\npolicy = names\n\
[names]\ncommonName = supplied\n\
[server]\nbasicConstraints = critical,CA:FALSE\nkeyUsage = digitalSignature,keyEncipherment\n\
extendedKeyUsage = serverAuth\nsubjectAltName = DNS:localhost,IP:127.0.0.1,IP:::1\n\
[client]\nbasicConstraints = critical,CA:FALSE\nkeyUsage = digitalSignature,keyEncipherment\n\
extendedKeyUsage = clientAuth\nsubjectAltName = DNS:worker.example\n";

/// Directories as libnbd (nbd_set_tls_certificates) and QEMU (tls-creds-x509) read them: `ca-cert.pem`,
/// `server-cert.pem`, `server-key.pem`, `client-cert.pem` and `client-key.pem`. The CA is the same in all.
///
/// A server's certificate is for localhost, 127.0.0.1 and ::1. A client's has the common name `worker` and the
/// alternative name `worker.example`.
pub(crate) struct Certificates {
    /// All in order.
    pub(crate) good: PathBuf,
    /// `ca-cert.pem` alone: a client that has no certificate.
    pub(crate) anonymous: PathBuf,
    /// Server and client trust the CA, but their certificates are of another.
    pub(crate) stranger: PathBuf,
    /// The certificates ended in the year 2020.
    pub(crate) expired: PathBuf,
}

impl Certificates {
    pub(crate) fn new(lab: &Lab) -> Self {
        let [good, anonymous, stranger, expired, other] =
            ["good", "anonymous", "stranger", "expired", "other"].map(|name| lab.path("tls").join(name));
        for directory in [&good, &anonymous, &stranger, &expired, &other] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::write(lab.path("tls").join("openssl.conf"), CONFIGURATION).unwrap();
        std::fs::write(lab.path("tls").join("index"), "").unwrap();
        for (directory, name) in [(&good, "sealblk test CA"), (&other, "another CA")] {
            authority(directory, name);
        }
        for directory in [&anonymous, &stranger, &expired] {
            std::fs::copy(good.join("ca-cert.pem"), directory.join("ca-cert.pem")).unwrap();
        }
        for (directory, issuer, validity) in
            [(&good, &good, VALID), (&stranger, &other, VALID), (&expired, &good, EXPIRED)]
        {
            issue(directory, issuer, "server", validity);
            issue(directory, issuer, "client", validity);
        }
        Self { good, anonymous, stranger, expired }
    }
}

/// `ca-cert.pem` and `ca-key.pem` in `directory`.
fn authority(directory: &Path, name: &str) {
    let subject = format!("/CN={name}");
    let usage = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"];
    let mut args = vec!["req", "-x509", "-days", "3650", "-subj", &subject, "-out", "ca-cert.pem"];
    args.extend(usage);
    args.extend(new_key("ca-key.pem"));
    openssl(directory, &args);
}

/// A new `KIND-cert.pem` and `KIND-key.pem` in `directory`, signed with the CA in `issuer`; `kind` is `server` or
/// `client`.
pub(crate) fn issue(directory: &Path, issuer: &Path, kind: &str, validity: [&str; 2]) {
    let [request, key, certificate] = ["request", "key", "cert"].map(|part| format!("{kind}-{part}.pem"));
    let subject = if kind == "server" { "/CN=localhost" } else { "/CN=worker" };
    let [ca, ca_key] = ["ca-cert.pem", "ca-key.pem"].map(|file| issuer.join(file));
    let mut args = vec!["req", "-subj", subject, "-out", &request];
    args.extend(new_key(&key));
    openssl(directory, &args);
    let [ca, ca_key] = [ca.to_str().unwrap(), ca_key.to_str().unwrap()];
    let mut args =
        vec!["ca", "-batch", "-notext", "-config", "../openssl.conf", "-cert", ca, "-keyfile", ca_key];
    args.extend(["-extensions", kind, "-startdate", validity[0], "-enddate", validity[1]]);
    args.extend(["-outdir", ".", "-in", &request, "-out", &certificate]);
    openssl(directory, &args);
}

fn new_key(file: &str) -> [&str; 7] {
    ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", file]
}

fn openssl(directory: &Path, args: &[&str]) {
    let mut command = tool("openssl");
    command.args(args).current_dir(directory);
    assert_succeeds(&finish(command));
}

#[test]
fn each_directory_holds_what_its_name_says() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let said = |directory: &Path, kind: &str| {
        let mut command = tool("openssl");
        command.args(["verify", "-CAfile", "ca-cert.pem", "-purpose", &format!("ssl{kind}")]);
        command.arg(format!("{kind}-cert.pem")).current_dir(directory);
        let output = finish(command);
        (output.status.success(), text(&output.stderr))
    };
    for kind in ["server", "client"] {
        assert!(said(&certificates.good, kind).0, "{}", said(&certificates.good, kind).1);
        for (directory, reason) in
            [(&certificates.stranger, "unable to get local issuer"), (&certificates.expired, "has expired")]
        {
            let (trusted, why) = said(directory, kind);
            assert!(!trusted && why.contains(reason), "{kind} in {}: {why}", directory.display());
        }
    }
    assert_eq!(entries(&certificates.anonymous), [certificates.anonymous.join("ca-cert.pem")]);
}

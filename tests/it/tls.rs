//! TLS: each mode, with right and wrong certificates, and clients that others wrote.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::certificates::{Certificates, VALID, issue};
use crate::raw::{
    ACK, Client, ERR_INVALID, ERR_UNSUP, EXPORT_NAME, EXTENDED_HEADERS, GO, INFO, LIST, Mode, READ,
    SET_META_CONTEXT, STRUCTURED_REPLY, Stream,
};
use crate::support::{Lab, PATIENCE, Volume, assert_fails, assert_succeeds, eventually, finish, text, tool};

const ABORT: u32 = 2;
const STARTTLS: u32 = 5;
const ERR_POLICY: u32 = 1 << 31 | 2;
const ERR_TLS_REQD: u32 = 1 << 31 | 5;

/// A client's end of a connection under TLS.
type Secured = StreamOwned<ClientConnection, UnixStream>;

impl Stream for Secured {
    /// For conversations that both sides' buffers hold.
    fn exchange(&mut self, out: &[u8], _: &mut VecDeque<u8>) -> io::Result<()> {
        self.write_all(out)?;
        self.flush()
    }
}

/// `run`'s arguments for the certificate in `directory`.
fn served_with(directory: &Path) -> Vec<String> {
    let [cert, key] = ["server-cert.pem", "server-key.pem"].map(|file| path(&directory.join(file)));
    ["--size", "128M", "--backing", "memory", "--tls-cert", &cert, "--tls-key", &key].map(Into::into).into()
}

fn path(path: &Path) -> String {
    path.to_str().unwrap().into()
}

fn start(lab: &Lab, args: &[String], more: &[&str]) -> Volume {
    let args: Vec<&str> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Volume::start(lab, &args)
}

/// The volume's URI for a client with the certificates in `directory`.
fn uri(volume: &Volume, directory: &Path) -> String {
    let uri = volume.uri.replacen("nbd+unix", "nbds+unix", 1);
    let with = if uri.contains('?') { '&' } else { '?' };
    format!("{uri}{with}tls-certificates={}", directory.display())
}

fn nbdinfo(uri: &str) -> Output {
    let mut command = tool("nbdinfo");
    command.args(["--json", uri]);
    finish(command)
}

fn nbdsh(uri: &str, script: &str) -> Output {
    let mut command = tool("nbdsh");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/bin:{path}")).args([
        "--command",
        &format!("h.set_uri_allow_local_file(True); h.connect_uri({uri:?})"),
        "--command",
        script,
    ]);
    finish(command)
}

fn stops_in_order(volume: Volume) {
    let (status, record) = volume.stop();
    assert!(status.success() && record["connections_cut"] == 0, "{record}");
}

/// What a client trusts, and what it shows if it has a certificate.
fn trusting(directory: &Path) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join("ca-cert.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    if !directory.join("client-cert.pem").exists() {
        return builder.with_no_client_auth();
    }
    let certificate = CertificateDer::from_pem_file(directory.join("client-cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("client-key.pem")).unwrap();
    builder.with_client_auth_cert(vec![certificate], key).unwrap()
}

/// STARTTLS and the TLS handshake.
fn secure(client: Client, directory: &Path) -> io::Result<Client<Secured>> {
    secure_by(client, trusting(directory))
}

fn secure_by(mut client: Client, config: ClientConfig) -> io::Result<Client<Secured>> {
    client.option(STARTTLS, b"");
    assert_eq!(client.option_reply(STARTTLS), (ACK, Vec::new()));
    let name = ServerName::try_from("localhost").unwrap();
    let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = client.stream;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    Ok(Client::over(StreamOwned::new(session, stream)))
}

fn haggling(volume: &Volume, directory: &Path) -> Client<Secured> {
    secure(Client::haggling(&volume.socket()), directory).unwrap()
}

/// The server's certificate, as a new client meets it.
fn shown(volume: &Volume, directory: &Path) -> CertificateDer<'static> {
    let client = haggling(volume, directory);
    client.stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

#[test]
fn where_tls_is_required_nothing_goes_without_it() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let volume = start(&lab, &served_with(&certificates.good), &["--export", "disk"]);
    assert!(volume.uri.starts_with("nbds+unix:///disk?socket="), "{}", volume.uri);
    assert_succeeds(&nbdinfo(&uri(&volume, &certificates.good)));
    assert_succeeds(&nbdinfo(&uri(&volume, &certificates.anonymous)));
    assert!(!nbdinfo(&volume.uri.replacen("nbds", "nbd", 1)).status.success());
    let mut client = Client::haggling(&volume.socket());
    for option in [LIST, INFO, GO, STRUCTURED_REPLY, SET_META_CONTEXT, EXTENDED_HEADERS, 99] {
        client.option(option, b"");
        assert_eq!(client.option_reply(option).0, ERR_TLS_REQD, "option {option}");
    }
    client.option(STARTTLS, b"please");
    assert_eq!(client.option_reply(STARTTLS).0, ERR_INVALID);
    let mut client = secure(client, &certificates.good).unwrap();
    client.option(STARTTLS, b"");
    assert_eq!(client.option_reply(STARTTLS).0, ERR_INVALID, "once is enough");
    client.option(99, b"");
    assert_eq!(client.option_reply(99).0, ERR_UNSUP);
    client.negotiate(Mode::Extended);
    assert_eq!(client.choose(GO, "disk"), Ok(()));
    client.write(5, b"under TLS");
    assert_eq!(client.read(4, 11), b"\0under TLS\0");
    let mut client = Client::haggling(&volume.socket());
    client.option(EXPORT_NAME, b"disk");
    client.is_hung_up_on();
    let mut client = Client::haggling(&volume.socket());
    client.option(ABORT, b"");
    assert_eq!(client.option_reply(ABORT).0, ACK);
    client.is_hung_up_on();
    stops_in_order(volume);
}

#[test]
fn with_tls_on_each_client_has_what_it_asks_for() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let volume = start(&lab, &served_with(&certificates.good), &["--tls", "on"]);
    assert!(volume.uri.starts_with("nbd+unix:"), "{}", volume.uri);
    let mut plain = Client::ready_in(&volume.socket(), Mode::Structured);
    let script = "assert h.get_tls_negotiated(); h.pwrite(b'secured', 1 << 20); h.flush()";
    assert_succeeds(&nbdsh(&uri(&volume, &certificates.good), script));
    assert_eq!(plain.read(1 << 20, 7), b"secured");
    // What was agreed on in the clear does not hold under TLS.
    let mut client = Client::haggling(&volume.socket());
    client.negotiate(Mode::Extended);
    let mut client = secure(client, &certificates.good).unwrap();
    assert_eq!(client.choose(GO, ""), Ok(()));
    let cookie = client.request(0, READ, 1 << 20, 7);
    assert_eq!(client.answer(cookie), 0, "a simple reply");
    assert_eq!(client.take::<7>().unwrap(), *b"secured");
    plain.part();
    stops_in_order(volume);
}

#[test]
fn without_tls_nobody_gets_it() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    for more in [&["--size", "1M"][..], &["--size", "1M", "--tls", "off"]] {
        let volume = Volume::start(&lab, more);
        let mut client = Client::haggling(&volume.socket());
        client.option(STARTTLS, b"");
        assert_eq!(client.option_reply(STARTTLS).0, ERR_POLICY);
        assert_eq!(client.choose(GO, ""), Ok(()));
        assert!(!nbdinfo(&uri(&volume, &certificates.good)).status.success(), "the client insists on TLS");
        drop(client);
        stops_in_order(volume);
    }
}

#[test]
fn clients_are_asked_for_certificates_and_names() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let Certificates { good, anonymous, stranger, expired } = &certificates;
    let ca = path(&good.join("ca-cert.pem"));
    for (allow, welcome) in [
        (&[][..], true),
        (&["--tls-allow", "worker.example"], true),
        (&["--tls-allow", "worker"], false),
        (&["--tls-allow", "somebody.example", "--tls-allow", "WORKER.example"], true),
        (&["--tls-allow", "somebody.example"], false),
    ] {
        let volume = start(&lab, &served_with(good), &[&["--tls-client-ca", &ca][..], allow].concat());
        let output = nbdinfo(&uri(&volume, good));
        assert_eq!(output.status.success(), welcome, "{allow:?}: {}", text(&output.stderr));
        for wrong in [anonymous, stranger, expired] {
            let output = nbdinfo(&uri(&volume, wrong));
            assert!(!output.status.success(), "{allow:?}: {} was let in", wrong.display());
        }
        stops_in_order(volume);
    }
}

#[test]
fn a_client_that_is_refused_is_logged_with_the_reason() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let Certificates { good, anonymous, stranger, expired } = &certificates;
    let ca = path(&good.join("ca-cert.pem"));
    let known = ["--tls-client-ca", &ca];
    let named = [&known[..], &["--tls-allow", "somebody.example"]].concat();
    let log = lab.path("log");
    let refused = |server: &Path, more: &[&str], client: &Path| {
        let mut command =
            lab.sealblk(["run", "--json"].iter().map(ToString::to_string).chain(served_with(server)));
        command.args(more).stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
        let volume = Volume::spawn(command);
        // Nobody needs to know of these.
        drop(Client::haggling(&volume.socket()));
        for sent in [&b""[..], b"rubbish that is not TLS"] {
            let mut client = Client::haggling(&volume.socket());
            client.option(STARTTLS, b"");
            assert_eq!(client.option_reply(STARTTLS), (ACK, Vec::new()));
            client.stream.write_all(sent).unwrap();
        }
        // Said once, however often it tries.
        for _ in 0..2 {
            // In TLS 1.3, a client is done before its certificate has been looked at.
            let secured = secure(Client::haggling(&volume.socket()), client);
            assert!(secured.and_then(|mut client| client.stream.read(&mut [0])).is_err());
        }
        stops_in_order(volume);
        std::fs::read_to_string(&log).unwrap()
    };
    for (server, more, client, why) in [
        (good, &known[..], anonymous, "it has shown no certificate"),
        (good, &known, stranger, "no CA in the client CA file has signed it"),
        (good, &known, expired, "it has expired"),
        (good, &named, good, "it has none of the allowed names"),
        (stranger, &[], good, "it may not trust the server's certificate"),
    ] {
        let said = refused(server, more, client);
        assert_eq!(said.matches(" WARN ").count(), 1, "{why}: {said}");
        assert!(said.contains(why), "{why}: {said}");
        assert!(said.contains("client{peer=\"user "), "{why}: {said}");
        assert_eq!(
            said.contains("CN=worker"),
            why.contains("CA") || why.contains("expired") || why.contains("names"),
            "{said}"
        );
    }
}

#[test]
fn each_reason_for_a_refusal_is_logged_by_itself() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let Certificates { good, anonymous, stranger, expired } = &certificates;
    let others = ["early", "misused"].map(|name| lab.path("tls").join(name));
    let [early, misused] = &others;
    for directory in &others {
        std::fs::create_dir(directory).unwrap();
        std::fs::copy(good.join("ca-cert.pem"), directory.join("ca-cert.pem")).unwrap();
    }
    issue(early, good, "client", ["20400101000000Z", VALID[1]]);
    for kind in ["cert", "key"] {
        let [from, to] = ["server", "client"].map(|role| format!("{role}-{kind}.pem"));
        std::fs::copy(good.join(from), misused.join(to)).unwrap();
    }
    // AES-GCM in TLS 1.2, which the server has not.
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| format!("{suite:?}").contains("TLS_ECDHE_ECDSA_WITH_AES_256_GCM"));
    let incompatible = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let log = lab.path("log");
    let ca = path(&good.join("ca-cert.pem"));
    let mut command = lab.sealblk(["run", "--json"].iter().map(ToString::to_string).chain(served_with(good)));
    command.args(["--tls-client-ca", &ca, "--tls-allow", "somebody.example"]);
    let volume = Volume::spawn({
        command.stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
        command
    });
    let refusals = [
        (trusting(good), "it has none of the allowed names"),
        (trusting(misused), "its extended key usage is without clientAuth"),
        (trusting(stranger), "no CA in the client CA file has signed it"),
        (trusting(expired), "it has expired"),
        (trusting(early), "it is not valid yet"),
        (trusting(anonymous), "it has shown no certificate"),
        (trusting(&lab.path("tls").join("other")), "saying UnknownCA"),
        (incompatible, "NoCipherSuitesInCommon"),
    ];
    for _ in 0..2 {
        for (config, why) in &refusals {
            let secured = secure_by(Client::haggling(&volume.socket()), config.clone());
            let refused = secured.and_then(|mut client| client.stream.read(&mut [0]));
            assert!(refused.is_err(), "{why}: was let in");
        }
    }
    stops_in_order(volume);
    let said = std::fs::read_to_string(&log).unwrap();
    for (_, why) in &refusals {
        assert_eq!(said.matches(why).count(), 1, "{why}: {said}");
    }
    assert_eq!(said.matches(" WARN ").count(), refusals.len(), "{said}");
}

#[test]
fn a_client_ca_that_signs_itself_and_no_other_lets_in_its_owner() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let Certificates { good, stranger, .. } = &certificates;
    let mut command = tool("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    command.args(["-subj", "/CN=pinned", "-addext", "basicConstraints=critical,CA:FALSE"]);
    command.args(["-keyout", "client-key.pem", "-out", "client-cert.pem"]).current_dir(stranger);
    assert_succeeds(&finish(command));
    let pinned = path(&stranger.join("client-cert.pem"));
    let volume = start(&lab, &served_with(good), &["--tls-client-ca", &pinned, "--tls-allow", "pinned"]);
    assert_succeeds(&nbdinfo(&uri(&volume, stranger)));
    assert!(!nbdinfo(&uri(&volume, good)).status.success());
    stops_in_order(volume);
    let leaf = path(&good.join("client-cert.pem"));
    let args = [&["run".into()][..], &served_with(good), &["--tls-client-ca".into(), leaf.clone()]].concat();
    assert_fails(&finish(lab.sealblk(&args)), 8, &["TLS client CA", &leaf, "no CA's", "CN=worker"]);
}

#[test]
fn libnbd_does_not_say_that_it_distrusts_the_server() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let log = lab.path("log");
    for (level, said) in [("info", ""), ("debug", "tls handshake eof")] {
        let mut command = lab.sealblk(
            ["--log", level, "run", "--json"]
                .iter()
                .map(ToString::to_string)
                .chain(served_with(&certificates.stranger)),
        );
        // On a Unix socket, where no name was called, it does not verify the server's certificate.
        command.args(["--listen", "tcp:127.0.0.1:0"]);
        command.stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
        let volume = Volume::spawn(command);
        assert!(!nbdinfo(&uri(&volume, &certificates.good)).status.success());
        stops_in_order(volume);
        let log = std::fs::read_to_string(&log).unwrap();
        assert!(log.contains(said) && !log.contains(" WARN "), "{log}");
    }
}

#[test]
fn clients_refuse_a_server_that_they_should_not_trust() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    for (directory, warning) in [(&certificates.stranger, None), (&certificates.expired, Some("has expired"))]
    {
        let log = lab.path("log");
        let mut command =
            lab.sealblk(["run", "--json"].iter().map(ToString::to_string).chain(served_with(directory)));
        command.stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
        let volume = Volume::spawn(command);
        assert!(secure(Client::haggling(&volume.socket()), &certificates.good).is_err());
        let said = std::fs::read_to_string(&log).unwrap();
        assert!(warning.is_none_or(|warning| said.contains(warning)), "{said}");
        // Only its end of it is over.
        stops_in_order(volume);
    }
}

#[test]
fn new_certificates_are_taken_as_they_come() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let good = &certificates.good;
    let log = lab.path("log");
    // As a mounted secret is laid out: what is served is behind a link, which is swapped.
    let current = lab.path("tls").join("current");
    symlink("good", &current).unwrap();
    let mut command =
        lab.sealblk(["run", "--json"].iter().map(ToString::to_string).chain(served_with(&current)));
    command.stderr(Stdio::from(std::fs::File::create(&log).unwrap()));
    let volume = Volume::spawn(command);
    let warnings = || std::fs::read_to_string(&log).unwrap().matches("cannot be used").count();
    let first = shown(&volume, good);
    let mut before = haggling(&volume, good);
    issue(good, good, "server", VALID);
    let second = shown(&volume, good);
    assert!(second != first, "the files were replaced");
    std::fs::create_dir(lab.path("tls").join("next")).unwrap();
    let next = lab.path("tls").join("next");
    std::fs::copy(good.join("ca-cert.pem"), next.join("ca-cert.pem")).unwrap();
    issue(&next, good, "server", VALID);
    let swap = |target: &str| {
        symlink(target, lab.path("tls").join("new")).unwrap();
        std::fs::rename(lab.path("tls").join("new"), &current).unwrap();
    };
    swap("next");
    let third = shown(&volume, good);
    assert!(third != second, "the link was swapped");
    assert_eq!(warnings(), 0);
    std::fs::write(next.join("server-key.pem"), "rubbish").unwrap();
    for _ in 0..3 {
        assert!(shown(&volume, good) == third, "rubbish has taken the key's place");
    }
    assert_eq!(warnings(), 1, "said once");
    swap("nowhere");
    for _ in 0..3 {
        assert!(shown(&volume, good) == third, "the files are gone");
    }
    assert_eq!(warnings(), 2);
    swap("good");
    assert!(shown(&volume, good) == second, "what is good again is taken again");
    // Who came first stays as it was.
    assert_eq!(before.choose(GO, ""), Ok(()));
    assert_eq!(before.read(0, 2), [0; 2]);
    drop(before);
    stops_in_order(volume);
}

#[test]
fn what_comes_in_the_clear_after_starttls_is_not_taken_for_tls() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let volume = start(&lab, &served_with(&certificates.good), &["--tls", "on"]);
    let mut client = Client::haggling(&volume.socket());
    let option = |option: u32| [&b"IHAVEOPT"[..], &option.to_be_bytes(), &[0; 4]].concat();
    client.send(&[option(STARTTLS), option(STRUCTURED_REPLY), option(LIST)].concat());
    assert_eq!(client.option_reply(STARTTLS), (ACK, Vec::new()));
    // At most an alert in the clear comes back, and the end.
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
    assert!(rest.len() <= 7 && rest.first().is_none_or(|kind| *kind == 21), "{rest:?}");
    stops_in_order(volume);
}

#[test]
fn sessions_end_with_a_farewell() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let volume = start(&lab, &served_with(&certificates.good), &[]);
    let mut leaving = haggling(&volume, &certificates.good);
    leaving.option(ABORT, b"");
    assert_eq!(leaving.option_reply(ABORT).0, ACK);
    assert_eq!(leaving.stream.read(&mut [0]).unwrap(), 0, "cut off without TLS's own end");
    let mut parting = haggling(&volume, &certificates.good);
    assert_eq!(parting.choose(GO, ""), Ok(()));
    assert!(parting.part().is_empty());
    let mut staying = haggling(&volume, &certificates.good);
    assert_eq!(staying.choose(GO, ""), Ok(()));
    assert_eq!(staying.read(7, 3), [0; 3]);
    volume.signal(15);
    assert_eq!(staying.stream.read(&mut [0]).unwrap(), 0, "cut off without TLS's own end");
    let (status, record) = volume.end();
    assert!(status.success() && record["connections_cut"] == 0, "{record}");
}

#[test]
fn keys_are_updated_in_the_middle_of_a_conversation() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let volume = start(&lab, &served_with(&certificates.good), &[]);
    let mut client = haggling(&volume, &certificates.good);
    client.negotiate(Mode::Structured);
    assert_eq!(client.choose(GO, ""), Ok(()));
    for round in 0..8_u8 {
        client.stream.conn.refresh_traffic_keys().unwrap();
        client.write(u64::from(round) * 70_000, &[round + 1; 70_000]);
        assert_eq!(client.read(u64::from(round) * 70_000, 70_000), [round + 1; 70_000]);
    }
    client.part();
    stops_in_order(volume);
}

#[test]
fn large_requests_and_many_at_once() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let volume = start(&lab, &served_with(&certificates.good), &[]);
    let script = "\
size = 64 << 20
data = bytes(range(251)) * (size // 251 + 1)
data = bytearray(data[:size])
h.pwrite(data, 12345)
assert h.pread(size, 12345) == data
reads = [(nbd.Buffer(70000), place * 99991) for place in range(200)]
cookies = [h.aio_pread(buffer, place) for buffer, place in reads]
writes = [h.aio_pwrite(bytearray([place % 256]) * 5000, (100 << 20) + place * 5000) for place in range(100)]
for cookie in cookies + writes:
    while not h.aio_command_completed(cookie):
        h.poll(-1)
whole = bytes(12345) + bytes(data) + bytes(1 << 20)
for buffer, place in reads:
    assert buffer.to_bytearray() == whole[place:place + 70000], place
for place in range(100):
    assert h.pread(5000, (100 << 20) + place * 5000) == bytearray([place % 256]) * 5000
h.shutdown()";
    assert_succeeds(&nbdsh(&uri(&volume, &certificates.good), script));
    stops_in_order(volume);
}

#[test]
fn nbdcopy_there_and_back_by_four_connections() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let volume = start(&lab, &served_with(&certificates.good), &[]);
    let content: Vec<u8> = (0..128_usize << 20).map(|at| u8::try_from(at / 4099 % 256).unwrap()).collect();
    let [there, back] = ["there", "back"].map(|name| lab.path(name));
    std::fs::write(&there, &content).unwrap();
    let uri = uri(&volume, &certificates.good);
    for (from, to) in [(path(&there), uri.clone()), (uri.clone(), path(&back))] {
        let mut command = tool("nbdcopy");
        command.args(["--connections=4", "--threads=4", "--requests=16", "--flush", &from, &to]);
        assert_succeeds(&finish(command));
    }
    assert!(std::fs::read(&back).unwrap() == content);
    stops_in_order(volume);
}

#[test]
fn a_network_may_be_listened_on_where_tls_is_required() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let args = served_with(&certificates.good);
    let open = ["--listen", "tcp:0.0.0.0:0"];
    let refused: Vec<&str> =
        ["run", "--tls", "on"].into_iter().chain(open).chain(args.iter().map(String::as_str)).collect();
    assert_fails(&finish(lab.sealblk(&refused)), 2, &["not loopback", "--tls-cert", "--tls-key"]);
    let volume = start(&lab, &args, &open);
    let port = volume.uri.rsplit(':').next().unwrap().trim_end_matches('/');
    let uri = format!("nbds://127.0.0.1:{port}/?tls-certificates={}", certificates.good.display());
    assert!(volume.uri.starts_with("nbds://0.0.0.0:"), "{}", volume.uri);
    assert_succeeds(&nbdinfo(&uri));
    stops_in_order(volume);
}

#[test]
fn what_does_not_go_together_is_said_before_anything_is_made() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let file = |directory: &PathBuf, name: &str| path(&directory.join(name));
    let (cert, key) =
        (file(&certificates.good, "server-cert.pem"), file(&certificates.good, "server-key.pem"));
    let (other, absent) = (file(&certificates.stranger, "server-key.pem"), path(&lab.path("absent")));
    for (args, code, words) in [
        (&["--tls", "on"][..], 2, &["--tls-cert"][..]),
        (&["--tls-cert", &cert], 2, &["--tls-key"]),
        (&["--tls-cert", &cert, "--tls-key", &key, "--tls-allow", "x"], 2, &["--tls-client-ca"]),
        (&["--tls-cert", &cert, "--tls-key", &other], 8, &["does not belong to", &other, &cert]),
        (&["--tls-cert", &absent, "--tls-key", &key], 8, &["cannot read TLS certificate", &absent]),
        (&["--tls-cert", &cert, "--tls-key", &cert], 8, &["TLS private key", "BEGIN PRIVATE KEY"]),
    ] {
        assert_fails(&finish(lab.sealblk([&["run", "--size", "1M"], args].concat())), code, words);
        assert!(lab.journals().is_empty());
    }
}

#[test]
fn a_tls_handshake_that_hangs_does_not_stop_the_end() {
    let lab = Lab::new();
    let certificates = Certificates::new(&lab);
    let volume = start(&lab, &served_with(&certificates.good), &[]);
    let mut client = Client::haggling(&volume.socket());
    client.option(STARTTLS, b"");
    assert_eq!(client.option_reply(STARTTLS), (ACK, Vec::new()));
    let began = std::time::Instant::now();
    volume.signal(15);
    client.is_hung_up_on();
    assert!(began.elapsed() < PATIENCE.min(Duration::from_secs(8)), "{:?}", began.elapsed());
    eventually("the volume's end", || !volume.socket().exists());
    assert!(volume.end().0.success());
}

//! Clients that stay attached while one server after the other serves them.

mod client;
mod device;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::client::{Client, Random, haggle, read_request, reply, request};
use self::device::{Memory, SIZE};
use super::super::tls::tests::Pair;
use super::super::{
    Address, Exports, Limits, Listener, Served, Signal, Terms, Tls, TlsMode, TlsSettings, serve,
};
use super::*;
use crate::nbd::wire::Command;

const LIMITS: Limits = Limits {
    connections: 64,
    connections_per_peer: 64,
    handshake: Duration::from_secs(20),
    drain: Duration::from_secs(20),
    restartable: true,
};

/// A server and its successors, one at a time.
struct Servers {
    runtime: Runtime,
    directory: tempfile::TempDir,
    memory: Arc<Memory>,
    limits: Limits,
    tls: Option<Arc<Tls>>,
    now: Option<(watch::Sender<Signal>, JoinHandle<Served>)>,
}

impl Servers {
    /// Listens on a Unix and a TCP socket.
    fn start(limits: Limits) -> (Self, std::net::SocketAddr) {
        Self::start_with(limits, None)
    }

    fn start_with(limits: Limits, tls: Option<Arc<Tls>>) -> (Self, std::net::SocketAddr) {
        let directory = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        let mut servers = Self { runtime, directory, memory: Arc::default(), limits, tls, now: None };
        let addresses = [Address::Unix(servers.path()), Address::Tcp("127.0.0.1:0".into())];
        let listeners = addresses
            .map(|address| servers.runtime.block_on(Listener::bind(&address, Terms::default())).unwrap());
        let tcp = listeners[1].uri("", false).unwrap();
        let tcp = tcp.trim_start_matches("nbd://").trim_end_matches('/').parse().unwrap();
        servers.succeed(Handed { listeners: listeners.into(), connections: Vec::new() }, 0);
        (servers, tcp)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn connect(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        haggle(&mut stream).unwrap();
        stream
    }

    fn connect_under_tls(&self, pair: &Pair) -> StreamOwned<ClientConnection, UnixStream> {
        let mut stream = UnixStream::connect(self.path()).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&[&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 5, 0, 0, 0, 0]].concat()).unwrap();
        stream.read_exact(&mut [0; 20]).unwrap();
        let mut client = pair.client(&rustls::version::TLS13);
        while client.is_handshaking() {
            client.complete_io(&mut stream).unwrap();
        }
        let mut stream = StreamOwned::new(client, stream);
        stream.write_all(&[&b"IHAVEOPT"[..], &[0, 0, 0, 1, 0, 0, 0, 0]].concat()).unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        stream
    }

    /// Starts the next server on a device of its own over the same bytes.
    fn succeed(&mut self, handed: Handed, served: u64) {
        self.succeed_as(handed, served, "");
    }

    fn succeed_as(&mut self, handed: Handed, served: u64, name: &str) {
        let device = Arc::new(self.memory.device());
        let export = Export { name: name.into(), description: String::new(), device, read_only: false };
        let (stop, stopped) = watch::channel(Signal::Run);
        let resumed = Resumed { connections: handed.connections, served };
        let serving = self.runtime.spawn(serve(
            handed.listeners,
            Exports::new(vec![export]),
            self.tls.clone(),
            self.limits,
            resumed,
            stopped,
        ));
        self.now = Some((stop, serving));
    }

    fn signal(&self, signal: Signal) {
        // It may have ended already, of an earlier signal.
        self.now.as_ref().unwrap().0.send_replace(signal);
    }

    fn ended(&mut self) -> Served {
        let (_, serving) = self.now.take().unwrap();
        let served = self.runtime.block_on(serving).unwrap();
        assert_eq!(self.memory.users(), 0, "nobody uses the device of a server that has ended");
        served
    }

    fn hand_over(&mut self) -> (Handed, Served) {
        self.signal(Signal::HandOver);
        let mut served = self.ended();
        (served.handed.take().unwrap(), served)
    }

    /// One hand-over by which every client stays; returns how many are attached.
    fn restart(&mut self) -> usize {
        let (handed, served) = self.hand_over();
        assert_eq!(served.cut_off, 0);
        let attached = handed.connections.len();
        let handed = self.travel(handed);
        self.succeed(handed, served.connections);
        attached
    }

    /// What happens to sockets on their way to another process.
    fn travel(&self, handed: Handed) -> Handed {
        let _runtime = self.runtime.enter();
        let listeners = handed.listeners.into_iter().map(|listener| {
            let (descriptor, description) = listener.into_parts();
            Listener::from_parts(descriptor, through_text(&description)).unwrap()
        });
        let connections = handed.connections.into_iter().map(|connection| {
            let (descriptor, told) = connection.into_parts();
            HandedConnection::from_parts(descriptor, through_text(&told)).unwrap()
        });
        Handed { listeners: listeners.collect(), connections: connections.collect() }
    }

    fn end(&mut self) -> Served {
        self.signal(Signal::End);
        self.ended()
    }
}

fn through_text<T: Serialize + serde::de::DeserializeOwned>(value: &T) -> T {
    serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap()
}

/// No more bytes: the server has closed the connection.
fn assert_closed(mut stream: impl Read) {
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

fn assert_answers(stream: &mut (impl Read + Write), cookie: u64) {
    stream.write_all(&read_request(cookie, 0, 512)).unwrap();
    assert_eq!(reply(stream), (cookie, 0));
    stream.read_exact(&mut [0; 512]).unwrap();
}

#[test]
fn busy_clients_notice_nothing() {
    let (mut servers, tcp) = Servers::start(LIMITS);
    let mut random = Random(7);
    let (mut clients, mut attached) = (Vec::new(), 0);
    for round in 0..60 {
        if round % 6 == 0 {
            let region = clients.len();
            let path = servers.path();
            let seed = random.next();
            // Its own handshake falls anywhere into the hand-overs that follow.
            clients.push(std::thread::spawn(move || {
                if region % 2 == 0 {
                    let stream = UnixStream::connect(path).unwrap();
                    Client::new(region, seed).run(stream.try_clone().unwrap(), stream);
                } else {
                    let stream = TcpStream::connect(tcp).unwrap();
                    Client::new(region, seed).run(stream.try_clone().unwrap(), stream);
                }
            }));
        }
        std::thread::sleep(random.microseconds(8_000));
        attached += servers.restart();
    }
    let started = clients.len();
    // They go on until they have done what they wanted; a hand-over now and then meanwhile.
    while clients.iter().any(|client| !client.is_finished()) {
        std::thread::sleep(random.microseconds(40_000));
        attached += servers.restart();
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    let served = servers.end();
    assert_eq!((served.connections, served.cut_off), (started as u64, 0));
    assert!(attached > started, "clients were attached while servers changed");
}

#[test]
fn idle_clients_are_woken_and_stay() {
    let (mut servers, tcp) = Servers::start(LIMITS);
    let mut unix: Vec<_> = (0..5).map(|_| servers.connect()).collect();
    let mut network = TcpStream::connect(tcp).unwrap();
    haggle(&mut network).unwrap();
    assert_answers(&mut network, 1);
    for round in 0..20 {
        assert_eq!(servers.restart(), 6);
        unix.iter_mut().for_each(|stream| assert_answers(stream, round));
        assert_answers(&mut network, round);
    }
    assert_eq!(servers.end().connections, 6);
    unix.into_iter().for_each(assert_closed);
}

#[test]
fn a_request_that_is_half_there_is_answered_once() {
    let (mut servers, _) = Servers::start(LIMITS);
    let mut stream = servers.connect();
    const LENGTH: u32 = 300 << 10;
    let data = vec![7; LENGTH as usize];
    let whole = [&request(Command::WRITE, 0, 2, 4096, LENGTH)[..], &data].concat();
    // In the header, between header and data, in the data; with and without a whole request before it.
    for cut in [1, 27, 28, 29, 5000, 200 << 10, whole.len() - 1] {
        for before in [0, 3] {
            for cookie in &[10, 11, 12][..before] {
                stream.write_all(&read_request(*cookie, 0, 0)).unwrap();
            }
            stream.write_all(&whole[..cut]).unwrap();
            // Half of it is taken by now, or is not: both are right.
            std::thread::sleep(Duration::from_millis(2));
            servers.signal(Signal::HandOver);
            std::thread::sleep(Duration::from_millis(2));
            let rest = [&whole[cut..], &read_request(3, 4096, 512)].concat();
            let mut sending = stream.try_clone().unwrap();
            // More than the socket holds: if the predecessor has taken nothing, this waits for the successor.
            let sender = std::thread::spawn(move || sending.write_all(&rest).unwrap());
            assert_eq!(servers.restart(), 1);
            sender.join().unwrap();
            let mut answered = Vec::new();
            for _ in 0..before + 2 {
                let (cookie, error) = reply(&mut stream);
                assert_eq!(error, 0);
                if cookie == 3 {
                    stream.read_exact(&mut [0; 512]).unwrap();
                }
                answered.push(cookie);
            }
            answered.sort_unstable();
            assert_eq!(answered, [&[2, 3], &[10, 11, 12][..before]].concat());
        }
    }
    let mut written = vec![0; data.len()];
    stream.write_all(&read_request(4, 4096, LENGTH)).unwrap();
    assert_eq!(reply(&mut stream), (4, 0));
    stream.read_exact(&mut written).unwrap();
    assert!(written == data);
}

#[test]
fn a_client_that_stalls_in_a_payload_is_cut_and_holds_nobody_up() {
    let (mut servers, _) = Servers::start(Limits { drain: Duration::from_secs(2), ..LIMITS });
    let (mut stalled, mut idle) = (servers.connect(), servers.connect());
    stalled.write_all(&request(Command::WRITE, 0, 1, 0, 4 << 20)).unwrap();
    // More than the socket holds, so the server is in the middle of it.
    stalled.write_all(&vec![0; 2 << 20]).unwrap();
    let (handed, served) = servers.hand_over();
    assert_eq!((handed.connections.len(), served.cut_off), (1, 1));
    servers.succeed(handed, served.connections);
    assert_closed(stalled);
    assert_answers(&mut idle, 1);
    assert_eq!(servers.end().connections, 2);
}

#[test]
fn clients_under_tls_end_in_order_and_hold_nobody_up() {
    let pair = Pair::new();
    let tls = Tls::load(TlsSettings { mode: TlsMode::On, ..pair.settings() }).unwrap();
    let (mut servers, _) = Servers::start_with(LIMITS, Some(Arc::new(tls)));
    let mut idle = servers.connect();
    let [mut halfway, mut updating, mut busy] = [(); 3].map(|()| servers.connect_under_tls(&pair));
    assert_answers(&mut halfway, 1);
    halfway.conn.writer().write_all(&read_request(2, 0, 512)).unwrap();
    let mut record = Vec::new();
    halfway.conn.write_tls(&mut record).unwrap();
    halfway.sock.write_all(&record[..record.len() - 5]).unwrap();
    // A record without any request.
    updating.conn.refresh_traffic_keys().unwrap();
    updating.conn.write_tls(&mut updating.sock).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let requests: Vec<u8> = (0..50).flat_map(|cookie| request(Command::FLUSH, 0, cookie, 0, 0)).collect();
    busy.write_all(&requests).unwrap();
    let began = Instant::now();
    let (handed, served) = servers.hand_over();
    assert!(began.elapsed() < LIMITS.drain / 2, "{:?}", began.elapsed());
    assert_eq!((handed.connections.len(), served.cut_off), (1, 0));
    servers.succeed(handed, served.connections);
    assert_answers(&mut idle, 1);
    let mut answered: Vec<_> = (0..50).map(|_| reply(&mut busy)).collect();
    answered.sort_unstable();
    assert!(answered.iter().map(|(cookie, _)| *cookie).eq(0..50), "each has its answer");
    let shutdown = 108;
    assert!(answered.iter().all(|(_, error)| [0, shutdown].contains(error)), "{answered:?}");
    for mut gone in [halfway, updating, busy] {
        assert_eq!(gone.read(&mut [0]).unwrap(), 0, "cut off without TLS's own end");
    }
    assert_eq!(servers.end().connections, 4);
}

#[test]
fn a_client_that_leaves_or_errs_meanwhile_is_gone() {
    let (mut servers, _) = Servers::start(LIMITS);
    let mut stays = servers.connect();
    for round in 0..20 {
        let (mut leaves, mut errs, closes) = (servers.connect(), servers.connect(), servers.connect());
        let last = [read_request(round, 0, 512), request(Command::DISC, 0, 0, 0, 0)].concat();
        leaves.write_all(&last).unwrap();
        errs.write_all(&[0x55; 100]).unwrap();
        drop(closes);
        servers.restart();
        assert_eq!(reply(&mut leaves), (round, 0));
        leaves.read_exact(&mut [0; 512]).unwrap();
        assert_closed(leaves);
        assert_closed(errs);
        assert_answers(&mut stays, round);
    }
    assert_eq!(servers.restart(), 1);
    assert_eq!(servers.end().connections, 61);
}

#[test]
fn a_client_that_comes_meanwhile_is_served() {
    let (mut servers, tcp) = Servers::start(LIMITS);
    let mut halfway = UnixStream::connect(servers.path()).unwrap();
    halfway.read_exact(&mut [0; 18]).unwrap();
    servers.signal(Signal::HandOver);
    // It has begun with the predecessor, which waits for it.
    client::choose(&mut halfway).unwrap();
    let (handed, served) = servers.hand_over();
    assert_eq!((handed.connections.len(), served.connections), (1, 1));
    // Nobody accepts now.
    let (unix, network) = (UnixStream::connect(servers.path()).unwrap(), TcpStream::connect(tcp).unwrap());
    let handed = servers.travel(handed);
    servers.succeed(handed, served.connections);
    for stream in [&mut &unix as &mut dyn Both, &mut &network] {
        let mut stream = stream;
        haggle(&mut stream).unwrap();
        assert_answers(&mut stream, 5);
    }
    assert_answers(&mut halfway, 6);
    assert_eq!(servers.end().connections, 3);
}

trait Both: Read + Write {}

impl<T: Read + Write> Both for T {}

#[test]
fn a_client_that_does_not_choose_is_cut_at_its_deadline() {
    let (mut servers, _) = Servers::start(Limits { handshake: Duration::from_millis(100), ..LIMITS });
    let mut silent = UnixStream::connect(servers.path()).unwrap();
    silent.read_exact(&mut [0; 18]).unwrap();
    assert_eq!(servers.restart(), 0);
    assert_closed(silent);
    assert_eq!(servers.end().connections, 0);
}

#[test]
fn a_sockets_file_belongs_to_the_successor() {
    let (mut servers, _) = Servers::start(LIMITS);
    let (handed, _) = servers.hand_over();
    let mut listeners = handed.listeners.into_iter();
    let (descriptor, description) = listeners.next().unwrap().into_parts();
    assert!(servers.path().exists());
    let _runtime = servers.runtime.enter();
    let listener = Listener::from_parts(descriptor, description).unwrap();
    assert_eq!(listener.path(), Some(&*servers.path()));
    drop(listener);
    assert!(!servers.path().exists());
}

#[test]
fn a_client_is_kept_only_for_what_it_was_told() {
    let (mut servers, _) = Servers::start(LIMITS);
    let (first, mut second) = (servers.connect(), servers.connect());
    let (mut handed, served) = servers.hand_over();
    handed.connections[0].told.size += 512;
    let other = handed.connections.remove(0);
    let cut = [other, handed.connections.remove(0)].map(HandedConnection::into_parts);
    handed.connections = cut.map(|(fd, told)| HandedConnection::from_parts(fd, told).unwrap()).into();
    servers.succeed(handed, served.connections);
    // The table of live connections does not tell which client came first.
    let mut first = first;
    let answers = [&mut first, &mut second].map(|stream| {
        let sent = stream.write_all(&read_request(1, 0, 0));
        sent.is_ok() && stream.read(&mut [0; 16]).is_ok_and(|length| length == 16)
    });
    assert_eq!(answers.iter().filter(|answered| **answered).count(), 1);
    let (handed, served) = servers.hand_over();
    assert_eq!((handed.connections.len(), served.connections), (1, 2));
    servers.succeed_as(handed, served.connections, "another");
    let (handed, served) = servers.hand_over();
    assert_eq!((handed.connections.len(), served.connections, served.cut_off), (0, 2, 0));
}

#[test]
fn without_preparation_an_idle_client_is_cut() {
    let limits = Limits { drain: Duration::from_millis(50), restartable: false, ..LIMITS };
    let (mut servers, _) = Servers::start(limits);
    let mut idle = servers.connect();
    assert_answers(&mut idle, 1);
    let (handed, served) = servers.hand_over();
    assert_eq!((handed.listeners.len(), handed.connections.len(), served.cut_off), (2, 0, 1));
    assert_closed(idle);
}

#[test]
fn an_end_that_comes_while_clients_haggle_is_an_end() {
    let (mut servers, _) = Servers::start(LIMITS);
    let stays = servers.connect();
    let mut halfway = UnixStream::connect(servers.path()).unwrap();
    halfway.read_exact(&mut [0; 18]).unwrap();
    servers.signal(Signal::HandOver);
    servers.signal(Signal::End);
    // Its handshake is finished, or cut.
    let _ = client::choose(&mut halfway);
    let served = servers.ended();
    assert!(served.handed.is_none());
    assert_eq!(served.connections, 1);
    assert_closed(stays);
    assert!(!servers.path().exists());
}

#[test]
fn a_hand_over_that_nobody_takes_up_is_an_end() {
    let (mut servers, _) = Servers::start(LIMITS);
    let mut stream = servers.connect();
    assert_answers(&mut stream, 1);
    let (handed, served) = servers.hand_over();
    drop(handed);
    assert_eq!(served.connections, 1);
    assert_closed(stream);
    assert!(!servers.path().exists());
}

#[test]
fn only_the_right_descriptors_are_taken() {
    let runtime = Runtime::new().unwrap();
    let _runtime = runtime.enter();
    let directory = tempfile::tempdir().unwrap();
    let told =
        || ConnectionDescription { export: String::new(), size: SIZE, flags: 0, agreed: Agreed::default() };
    let path = directory.path().join("socket");
    let unix_listener = || std::os::unix::net::UnixListener::bind(&path).unwrap();
    let tcp_listener = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = || std::os::unix::net::UnixDatagram::unbound().unwrap();
    let unix = || ListenerDescription::Unix { path: Some(path.clone()), identity: Some((0, 0)) };
    let file = || OwnedFd::from(tempfile::tempfile().unwrap());
    for wrong in [file(), datagrams().into(), tcp_listener().into()] {
        let refused = HandedConnection::from_parts(wrong, told());
        assert!(matches!(refused, Err(ResumeError::Kind { expected: "connection", .. })));
    }
    let pair = || UnixStream::pair().unwrap().0;
    for wrong in [file(), datagrams().into(), pair().into(), tcp_listener().into()] {
        assert!(matches!(Listener::from_parts(wrong, unix()), Err(ResumeError::Kind { .. })));
    }
    for wrong in [file(), pair().into(), unix_listener().into()] {
        let refused = Listener::from_parts(wrong, ListenerDescription::Tcp {});
        assert!(matches!(refused, Err(ResumeError::Kind { expected: "listening TCP socket", .. })));
    }
    assert!(path.exists());
}

#[test]
fn a_connection_is_in_blocking_mode_and_a_description_says_all_that_it_knows() {
    let (stream, _peer) = UnixStream::pair().unwrap();
    stream.set_nonblocking(true).unwrap();
    let told = ConnectionDescription { export: "é".into(), size: 1, flags: 2, agreed: Agreed::default() };
    let connection = HandedConnection::from_parts(stream.into(), told.clone()).unwrap();
    let (descriptor, same) = connection.into_parts();
    assert_eq!(told, same);
    let flags = rustix::fs::fcntl_getfl(descriptor.as_fd()).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    let text = r#"{"export":"","size":1,"flags":1,"structured":true}"#;
    assert!(serde_json::from_str::<ConnectionDescription>(text).is_err(), "of a later version");
    let tcp = serde_json::to_string(&ListenerDescription::Tcp {}).unwrap();
    assert_eq!(tcp, r#"{"kind":"tcp"}"#);
}

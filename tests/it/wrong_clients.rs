//! Clients that err, by accident or by intent, beside one that does not: that one never notices, the server's memory
//! does not grow with what is asked of it, and the volume ends in order.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::raw::{
    Client, DISC, ERR_INVALID, ERR_TOO_BIG, ERR_UNKNOWN, ERR_UNSUP, GO, INFO, LIST, READ, WRITE, header,
};
use crate::support::{Lab, Volume, assert_succeeds, eventually, finish, tool};

const SIZE: u64 = 16 << 20;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;

/// Writes and reads back without end, on a connection of its own, and fails if anything is amiss.
struct Bystander {
    rounds: Arc<AtomicU64>,
    enough: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Bystander {
    fn start(socket: PathBuf) -> Self {
        let (rounds, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stop) = (rounds.clone(), enough.clone());
        let thread = std::thread::spawn(move || {
            let mut client = Client::ready(&socket);
            while !stop.load(Ordering::Relaxed) {
                let round = count.fetch_add(1, Ordering::Relaxed);
                let data = vec![u8::try_from(round % 251).unwrap(); 70_000];
                let offset = round * 4999 % (SIZE / 2);
                client.write(offset, &data);
                assert!(client.read(offset, data.len()) == data, "round {round}");
            }
            client.request(0, DISC, 0, 0);
        });
        Self { rounds, enough, thread }
    }

    /// Two more rounds begin, so one has been served from beginning to end.
    fn is_served(&self) {
        let seen = self.rounds.load(Ordering::Relaxed);
        eventually("the bystander is served", || {
            assert!(!self.thread.is_finished(), "the bystander failed");
            self.rounds.load(Ordering::Relaxed) > seen + 1
        });
    }

    fn stop(self) {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Serves a volume to a bystander and to `misbehave`; what that returns stays alive beyond the volume's end.
fn beside<T>(misbehave: impl FnOnce(&Path) -> T) -> Value {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", &SIZE.to_string(), "--backing", "memory"]);
    let bystander = Bystander::start(volume.socket());
    bystander.is_served();
    let kept = misbehave(&volume.socket());
    bystander.is_served();
    bystander.stop();
    let mut nbdinfo = tool("nbdinfo");
    nbdinfo.arg(&volume.uri);
    assert_succeeds(&finish(nbdinfo));
    let peak = peak_memory(&volume);
    let (status, record) = volume.stop();
    drop(kept);
    assert!(status.success(), "{record}");
    assert_eq!(record["keys_wiped"], true, "{record}");
    assert_eq!(record["grant"]["ended"], "retired", "{record}");
    assert!(peak < 512 << 10, "the server took {peak} KiB of memory");
    assert!(lab.journals().is_empty());
    record
}

/// In KiB, the volume's own 16 MiB included.
fn peak_memory(volume: &Volume) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", volume.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn garbage_instead_of_a_handshake() {
    beside(|socket| {
        for garbage in
            [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 4096], &[0; 64], b"\x16\x03\x01\x02\0"]
        {
            let mut client = Client::greeted(socket);
            client.send(garbage);
            // So that the shortest one is at its end, too.
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            client.is_hung_up_on();
        }
    });
}

/// "If the server receives unknown flags, it MUST terminate the session."
#[test]
fn client_flags_that_nobody_knows() {
    beside(|socket| {
        for flags in [4_u32, 1 << 31, u32::MAX] {
            let mut client = Client::greeted(socket);
            client.send(&flags.to_be_bytes());
            client.is_hung_up_on();
        }
    });
}

#[test]
fn garbage_instead_of_an_option() {
    beside(|socket| {
        let mut client = Client::haggling(socket);
        client.send(&[7; 16]);
        client.is_hung_up_on();
    });
}

#[test]
fn garbage_instead_of_a_request() {
    beside(|socket| {
        let mut client = Client::ready(socket);
        client.send(&[7; 28]);
        client.is_hung_up_on();
        // After a good request, whose reply is not lost.
        let mut client = Client::ready(socket);
        client.write(0, b"x");
        client.send(&[0; 4096]);
        client.is_hung_up_on();
    });
}

#[test]
fn half_a_header_and_gone() {
    beside(|socket| {
        drop(Client::connect(socket));
        drop(Client::greeted(socket));
        let mut haggling = Client::haggling(socket);
        haggling.send(b"IHAVE");
        drop(haggling);
        let mut client = Client::ready(socket);
        client.send(&header(0, READ, 1, 0, 512)[..13]);
        drop(client);
    });
}

/// Silence is no offence in transmission; it must not hold up the volume's end, either.
#[test]
fn half_a_header_and_silence() {
    let record = beside(|socket| {
        let mut client = Client::ready(socket);
        client.send(&header(0, READ, 1, 0, 512)[..13]);
        let mut writer = Client::ready(socket);
        writer.send(&header(0, WRITE, 1, 0, 65536));
        writer.send(&[1; 1000]);
        (client, writer)
    });
    assert_eq!(record["connections_cut"], 0, "{record}");
}

#[test]
fn a_write_of_4_gib() {
    beside(|socket| {
        let mut client = Client::ready(socket);
        client.request(0, WRITE, 0, u32::MAX);
        client.is_hung_up_on();
    });
}

/// A read's length promises nothing of the client's, so it can be refused and the connection goes on.
#[test]
fn a_read_of_4_gib() {
    beside(|socket| {
        let mut client = Client::ready(socket);
        let cookie = client.request(0, READ, 0, u32::MAX);
        assert_eq!(client.answer(cookie), EINVAL);
        client.write(9 << 20, b"still here");
        assert_eq!(client.read(9 << 20, 10), b"still here");
    });
}

#[test]
fn ranges_and_commands_that_do_not_exist() {
    beside(|socket| {
        let mut client = Client::ready(socket);
        for (command, offset, length, error) in [
            (READ, SIZE, 1, EINVAL),
            (READ, u64::MAX, 1, EINVAL),
            (READ, u64::MAX - 5, 512, EINVAL),
            (4, SIZE - 1, u32::MAX, EINVAL),
            (6, SIZE - 1, u32::MAX, ENOSPC),
            (7, 0, 512, EINVAL),
            (8, 0, 0, EINVAL),
            (0xffff, 0, 0, EINVAL),
        ] {
            let cookie = client.request(0, command, offset, length);
            assert_eq!(client.answer(cookie), error, "command {command} at {offset}");
        }
        let cookie = client.request(1 << 15, READ, 0, 1);
        assert_eq!(client.answer(cookie), EINVAL, "an unknown flag");
        // The payload of a write that is refused must not be taken for requests.
        let cookie = client.request(0, WRITE, SIZE - 1, 28);
        client.send(&header(0, READ, 99, 0, 1));
        assert_eq!(client.answer(cookie), ENOSPC);
        assert_eq!(client.read(9 << 20, 1), [0]);
    });
}

#[test]
fn an_option_of_4_gib() {
    beside(|socket| {
        let mut client = Client::haggling(socket);
        client.option_of_length(GO, u32::MAX, b"");
        assert_eq!(client.option_reply(GO).0, ERR_TOO_BIG);
        client.is_hung_up_on();
    });
}

#[test]
fn options_that_make_no_sense() {
    beside(|socket| {
        let mut client = Client::haggling(socket);
        client.option(99, b"?");
        assert_eq!(client.option_reply(99).0, ERR_UNSUP);
        for data in
            [&b""[..], b"\xff\xff\xff\xff", b"\0\0\0\x05vol\0\0", b"\0\0\0\0\xff\xff", b"\0\0\0\0\0\0x"]
        {
            client.option(INFO, data);
            assert_eq!(client.option_reply(INFO).0, ERR_INVALID, "{data:?}");
        }
        client.option(LIST, b"x");
        assert_eq!(client.option_reply(LIST).0, ERR_INVALID);
        assert_eq!(client.choose(INFO, &"x".repeat(4096)), Err(ERR_UNKNOWN));
        // None of this has used up the connection.
        assert_eq!(client.choose(GO, ""), Ok(()));
        assert_eq!(client.read(9 << 20, 3), [0; 3]);
    });
}

#[test]
fn options_without_end() {
    beside(|socket| {
        let mut client = Client::haggling(socket);
        let option = [&b"IHAVEOPT"[..], &99_u32.to_be_bytes(), &[0; 4]].concat();
        let mut writer = client.stream.try_clone().unwrap();
        let flood = std::thread::spawn(move || {
            // Until nobody takes them any more.
            while writer.write_all(&option).is_ok() {}
        });
        client.is_hung_up_on();
        flood.join().unwrap();
    });
}

/// The one slow test: the limit is 10 s for the whole handshake, so answering now and then does not stretch it.
#[test]
fn a_handshake_left_hanging() {
    beside(|socket| {
        let mut silent = Client::connect(socket);
        let mut slow = Client::haggling(socket);
        let hung_up = std::thread::spawn(move || silent.is_hung_up_on());
        let list = [&b"IHAVEOPT"[..], &LIST.to_be_bytes(), &[0; 4]].concat();
        while !hung_up.is_finished() && slow.stream.write_all(&list).is_ok() {
            std::thread::sleep(Duration::from_secs(1));
        }
        hung_up.join().unwrap();
        slow.is_hung_up_on();
    });
}

/// Asks for as much as fits into the sockets and then some, and reads nothing of it.
fn ask_and_never_read(socket: &Path) -> Client {
    let mut client = Client::ready(socket);
    client.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let reads: Vec<u8> = (0..50_000).flat_map(|cookie| header(0, READ, cookie, 0, 1 << 20)).collect();
    let error = client.stream.write_all(&reads).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "the server takes 50 GB of reads");
    client
}

#[test]
fn a_client_that_never_reads_its_replies() {
    beside(|socket| drop(ask_and_never_read(socket)));
}

/// It may hold up the end as long as others may to finish; then it is cut.
#[test]
fn a_client_that_never_reads_its_replies_until_the_end() {
    let record = beside(ask_and_never_read);
    assert_eq!(record["connections_cut"], 1, "{record}");
}

/// More clients than are served at once: the others wait, and are served when there is room again.
#[test]
fn a_crowd() {
    beside(|socket| {
        let crowd: Vec<Client> = (0..120).map(|_| Client::ready(socket)).collect();
        let waiting: Vec<Client> = (0..40).map(|_| Client::connect(socket)).collect();
        drop(crowd);
        for mut client in waiting {
            assert_eq!(&client.take::<18>().unwrap(), b"NBDMAGICIHAVEOPT\0\x03");
        }
    });
}

//! Volumes past the page cache, whose requests are under way at once: in what order clients are answered, and what is
//! done where the kernel refuses io_uring.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::raw::{Client, Mode};
use crate::support::{Lab, Volume, tool};

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const FUA: u16 = 1;
/// On a disk, mostly, where a file system takes O_DIRECT.
const ARGS: [&str; 3] = ["--size=64M", "--backing=/var/tmp", "--direct"];

/// The same command, for which the kernel refuses io_uring.
pub(crate) fn without_io_uring(command: &Command) -> Command {
    let mut wrapped = tool("python3");
    wrapped.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/scripts/without_io_uring.py"));
    wrapped.arg(command.get_program()).args(command.get_args());
    wrapped.current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

fn run(lab: &Lab, args: &[&str]) -> Command {
    lab.sealblk(["run", "--json"].iter().chain(&ARGS).chain(args))
}

/// Bytes that tell where they belong.
fn pattern(offset: u64, length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| ((offset + at) / 512 % 251) as u8).collect()
}

/// The volume's io_uring instances (proc_pid_fd(5)).
fn rings(volume: &Volume) -> usize {
    let links = std::fs::read_dir(format!("/proc/{}/fd", volume.child.id())).unwrap();
    let is_ring = |link: &std::path::PathBuf| link.to_string_lossy().contains("[io_uring]");
    links.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).filter(is_ring).count()
}

/// Everything at once: whole sectors and parts of them, sectors that others are writing, flushes and FUA.
fn requests_of_all_kinds_meet(volume: &Volume, mode: Mode) {
    let mut client = Client::ready_in(&volume.socket(), mode);
    let mut expected = Vec::new();
    for number in 0..300_u64 {
        let offset = number * 49_152;
        // The last ones reach into those that follow, and are enciphered before that shows.
        let length = [4096, 16_384, 512, 5000, 131_072, 397_312][number as usize % 6];
        let data = pattern(offset, length);
        let flags = if number % 7 == 0 { FUA } else { 0 };
        client.submit(flags, WRITE, offset, length as u64, &data);
        // They meet on purpose: the same bytes, and a neighbour in the same sector.
        client.submit(0, WRITE, offset, length as u64, &data);
        client.submit(0, READ, offset, 4096, b"");
        if number % 11 == 0 {
            client.submit(0, FLUSH, 0, 0, b"");
        }
        expected.push((offset, data));
    }
    while client.in_flight() > 0 {
        let (_, reply) = client.finished().unwrap();
        assert_eq!(reply.error, 0);
    }
    for (offset, data) in expected {
        assert!(client.read(offset, data.len()) == data, "at {offset}");
    }
    client.part();
}

#[test]
fn requests_of_all_kinds_meet_each_other() {
    let lab = Lab::new();
    let volume = Volume::spawn(run(&lab, &[]));
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        requests_of_all_kinds_meet(&volume, mode);
    }
    assert!(volume.stop().0.success());
}

#[test]
fn a_ring_is_used_where_the_kernel_allows_it() {
    let lab = Lab::new();
    let volume = Volume::spawn(run(&lab, &[]));
    let mut client = Client::ready(&volume.socket());
    client.write(0, &pattern(0, 4096));
    assert!(rings(&volume) > 0);
    client.part();
    assert!(volume.stop().0.success());
}

#[test]
fn where_the_kernel_refuses_io_uring_threads_do_its_work_and_the_log_says_so() {
    let lab = Lab::new();
    let log = lab.path("log");
    let mut command = without_io_uring(&run(&lab, &[]));
    command.stderr(std::fs::File::create(&log).unwrap());
    let volume = Volume::spawn(command);
    requests_of_all_kinds_meet(&volume, Mode::Extended);
    requests_of_all_kinds_meet(&volume, Mode::Simple);
    assert_eq!(rings(&volume), 0);
    assert!(volume.stop().0.success());
    let said = std::fs::read_to_string(log).unwrap();
    assert_eq!(said.matches("io_uring cannot be used here").count(), 1, "{said}");
}

/// What was asked before is answered, whatever a client leaves half said.
#[test]
fn a_client_that_stops_in_the_middle_of_its_data_is_answered() {
    let lab = Lab::new();
    let volume = Volume::spawn(run(&lab, &[]));
    let mut client = Client::ready(&volume.socket());
    let data = pattern(0, 1 << 20);
    client.write(0, &data);
    for length in [4096_u32, 1 << 20] {
        let reads: Vec<u64> = (0..8).map(|number| client.request(0, READ, number * 4096, 4096)).collect();
        let write = client.request(0, WRITE, 8 << 20, length);
        client.send(&data[..1000]);
        let mut answered = Vec::new();
        for _ in &reads {
            let (error, cookie) = client.reply().unwrap();
            assert_eq!(error, 0);
            let mut sector = vec![0; 4096];
            client.fill(&mut sector).unwrap();
            answered.push(cookie);
        }
        answered.sort_unstable();
        assert_eq!(answered, reads);
        client.send(&data[1000..length as usize]);
        assert_eq!(client.answer(write), 0);
        assert!(client.read(8 << 20, length as usize) == data[..length as usize]);
    }
    client.part();
    assert!(volume.stop().0.success());
}

/// One that writes on and on before it reads a reply, far more than sockets hold.
#[test]
fn a_client_that_reads_late_loses_nothing() {
    let lab = Lab::new();
    let volume = Volume::spawn(run(&lab, &[]));
    let mut client = Client::ready(&volume.socket());
    let data = pattern(0, 8 << 20);
    client.write(0, &data);
    // Fewer bytes than a connection may have in flight.
    let cookies: Vec<u64> = (0..12).map(|number| client.request(0, READ, number << 19, 1 << 19)).collect();
    let write = client.request(0, WRITE, 16 << 20, 1 << 20);
    client.send(&data[..1 << 20]);
    let mut left = cookies.len() + 1;
    while left > 0 {
        let (error, cookie) = client.reply().unwrap();
        assert_eq!(error, 0);
        if cookie != write {
            let number = cookies.iter().position(|one| *one == cookie).unwrap();
            let mut part = vec![0; 1 << 19];
            client.fill(&mut part).unwrap();
            assert!(part == data[number << 19..][..1 << 19]);
        }
        left -= 1;
    }
    client.part();
    assert!(volume.stop().0.success());
}

/// A client that is gone leaves nothing under way behind, and nothing open.
#[test]
fn clients_that_vanish_leave_nothing() {
    let lab = Lab::new();
    let volume = Volume::spawn(run(&lab, &[]));
    let open = || std::fs::read_dir(format!("/proc/{}/fd", volume.child.id())).unwrap().count();
    drop(Client::ready(&volume.socket()));
    let socket: &Path = &volume.socket();
    crate::support::eventually("the first client is gone", || rings(&volume) == 0);
    let before = open();
    for _ in 0..20 {
        let mut client = Client::ready(socket);
        for number in 0..100 {
            client.request(0, READ, number * 65_536, 65_536);
        }
        let data = pattern(0, 4096);
        client.request(0, WRITE, 0, 4096);
        client.send(&data);
        client.request(0, WRITE, 4096, 1 << 20);
        client.send(&data);
    }
    crate::support::eventually("the others are gone", || open() <= before && rings(&volume) == 0);
    let mut client = Client::ready(socket);
    assert_eq!(client.read(32 << 20, 4096), vec![0; 4096]);
    client.part();
    assert!(volume.stop().0.success());
}

/// Replies that nobody reads take memory as well: at some point, nothing more is received.
#[test]
fn a_client_that_writes_and_never_reads_is_kept_waiting() {
    let lab = Lab::new();
    let volume = Volume::spawn(run(&lab, &[]));
    let client = Client::ready(&volume.socket());
    let mut stream = client.stream;
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut write = [&0x2560_9513_u32.to_be_bytes()[..], &0_u16.to_be_bytes(), &WRITE.to_be_bytes()].concat();
    write.extend([0; 16]);
    write.extend(4096_u32.to_be_bytes());
    write.extend([7; 4096]);
    // Far more than sockets hold, and than a connection may have in flight.
    let sent = (0..30_000).take_while(|_| stream.write_all(&write).is_ok()).count();
    assert!(sent < 30_000, "{sent} writes were received, and none of their replies was read");
    drop(stream);
    let mut other = Client::ready(&volume.socket());
    assert_eq!(other.read(0, 4096), vec![7; 4096]);
    other.part();
    assert!(volume.stop().0.success());
}

/// What was received whole is answered when the volume ends, or the client says no more, in the middle of a write's data.
#[test]
fn what_came_before_a_half_write_is_answered_at_the_end() {
    // Of the second, a part is enciphered by then.
    let halves = [(65_536, 100), (1 << 20, 300_000)];
    for (by_signal, (length, sent)) in [true, false].into_iter().flat_map(|by| halves.map(|half| (by, half)))
    {
        let lab = Lab::new();
        let volume = Volume::spawn(run(&lab, &[]));
        let mut client = Client::ready(&volume.socket());
        let data = pattern(0, 65_536);
        let mut cookies = Vec::new();
        for number in 0..64 {
            cookies.push(client.request(0, WRITE, number * 65_536, 65_536));
            client.send(&data);
        }
        client.request(0, WRITE, 0, length);
        client.send(&pattern(0, sent));
        if by_signal {
            // So much has been received by then.
            let (error, cookie) = client.reply().unwrap();
            assert_eq!(error, 0);
            cookies.retain(|one| *one != cookie);
            volume.signal(15);
        } else {
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        }
        let mut answered = 0;
        while let Ok((error, _)) = client.reply() {
            // NBD_ESHUTDOWN: it was read ahead when the signal came, and had not begun.
            assert!(error == 0 || by_signal && error == 108, "{error}");
            answered += 1;
        }
        // At a signal, what the socket still holds is not received any more.
        assert!(by_signal || answered == cookies.len(), "{answered} of {}", cookies.len());
        assert!(if by_signal { volume.end().0 } else { volume.stop().0 }.success());
    }
}

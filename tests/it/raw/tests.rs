//! The client itself, with a server that is not ours: what it takes for a good reply is not only our own idea.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use super::{
    ACK, BLOCK_STATUS, CACHE, Client, DF, EXTENDED_HEADERS, FAST_ZERO, FLUSH, FUA, Mode, NO_HOLE, READ,
    REQ_ONE, TRIM, WRITE, WRITE_ZEROES,
};
use crate::support::{eventually, tool};

const SIZE: u64 = 16 << 20;

/// qemu-nbd with a sparse file.
struct Qemu {
    directory: tempfile::TempDir,
    child: Child,
}

impl Qemu {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let mut command = tool("qemu-nbd");
        command.args(["--persistent", "--shared=4", "--format=raw", "--discard=unmap", "--socket"]);
        command.arg(directory.path().join("socket")).arg(&image);
        let child = command.stderr(Stdio::null()).spawn().unwrap();
        let qemu = Self { directory, child };
        eventually("qemu-nbd listens", || UnixStream::connect(qemu.socket()).is_ok());
        qemu
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Every command, many at once.
fn converse(mut client: Client) {
    let mode = client.mode;
    client.write(1 << 20, &[7; 70_000]);
    assert_eq!(client.read((1 << 20) - 1, 3), [0, 7, 7]);
    for (flags, command) in
        [(0, FLUSH), (FUA, TRIM), (0, CACHE), (NO_HOLE | FUA, WRITE_ZEROES), (FAST_ZERO, WRITE_ZEROES)]
    {
        let length = if command == FLUSH { 0 } else { 65536 };
        let offset = if command == FLUSH { 0 } else { 4 << 20 };
        assert_eq!(client.ask(flags, command, offset, length).error, 0, "command {command}");
    }
    if mode != Mode::Simple {
        assert_eq!(client.ask(DF, READ, 1 << 20, 65536).data, [7; 65536]);
        let status = client.ask(0, BLOCK_STATUS, 0, SIZE);
        assert_eq!(status.extents.iter().map(|(length, _)| length).sum::<u64>(), SIZE);
        assert!(status.extents.len() > 1, "{status:?}");
        assert_eq!(client.ask(REQ_ONE, BLOCK_STATUS, 0, SIZE).extents, status.extents[..1]);
        assert!(client.ask(0, READ, 0, 8 << 20).holes > 0);
    }
    assert_eq!(client.ask(0, READ, SIZE, 1).error, 22);
    let big = vec![3; 2 << 20];
    let mut reads = Vec::new();
    for number in 0..40 {
        client.submit(0, WRITE, 8 << 20, big.len() as u64, &big);
        reads.push(client.submit(0, READ, number << 8, 2 << 20, b""));
    }
    assert_eq!(client.reply_to(reads[30]).data.len(), 2 << 20);
    // QEMU forgets what is in flight at NBD_CMD_DISC.
    while client.in_flight() > 0 {
        let (cookie, reply) = client.finished().unwrap();
        assert_eq!(reply.error, 0, "{cookie}");
    }
    assert!(client.part().values().all(|reply| reply.error == 0));
}

#[test]
fn the_raw_client_understands_qemu() {
    let qemu = Qemu::start();
    // Extended headers came with QEMU 8.2.
    let mut client = Client::haggling(&qemu.socket());
    client.option(EXTENDED_HEADERS, b"");
    let extends = client.option_reply(EXTENDED_HEADERS).0 == ACK;
    for mode in Mode::ALL.into_iter().filter(|mode| extends || *mode != Mode::Extended) {
        converse(Client::ready_in(&qemu.socket(), mode));
    }
}

/// What fails must fail: a second reply, one to nobody, and half a reply after the last.
#[test]
fn the_raw_client_notices_a_reply_too_many() {
    let reply = |cookie: u8| [&0x6744_6698_u32.to_be_bytes()[..], &[0; 11], &[cookie]].concat();
    for (replies, good) in [
        (reply(1), true),
        ([reply(1), reply(1)].concat(), false),
        ([reply(2), reply(1)].concat(), false),
        ([&reply(1)[..], b"x"].concat(), false),
        (Vec::new(), false),
    ] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&replies).unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        let mut client = Client::over(ours);
        client.submit(0, FLUSH, 0, 0, b"");
        let parted = std::panic::catch_unwind(AssertUnwindSafe(|| client.part()));
        assert_eq!(parted.is_ok(), good, "{replies:?}");
    }
}

//! Volumes beside each other, on one state directory and one KMS.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};

use crate::leavings::{World, calls};
use crate::raw::Client;
use crate::support::{Lab, Volume, assert_succeeds, finish, text, wait};

/// Of several that find no default key, one makes it and the others use it.
#[test]
fn first_starts_at_once_make_one_key() {
    let lab = Lab::new();
    let start = |_| -> Child {
        let mut command = lab.sealblk(["run", "--size", "1M", "--", "true"]);
        command.stderr(Stdio::null()).spawn().unwrap()
    };
    let mut all: Vec<Child> = (0..6).map(start).collect();
    assert!(all.iter_mut().all(|child| wait(child).success()));
    let list = finish(lab.sealblk(["kms", "list"]));
    assert_succeeds(&list);
    assert_eq!(text(&list.stdout).lines().count(), 1, "{}", text(&list.stdout));
    assert_eq!((calls(&lab, "CreateGrant"), calls(&lab, "RetireGrant")), (6, 6));
    assert!(lab.journals().is_empty());
}

#[test]
fn each_volume_has_its_own_data_and_end() {
    let lab = Lab::new();
    let before = World::of(&lab);
    let mut volumes: Vec<Volume> = (0..4).map(|_| Volume::start(&lab, &["--size", "1M"])).collect();
    for (number, volume) in (1..).zip(&volumes) {
        Client::ready(&volume.socket()).write(0, &[number; 5000]);
    }
    let first = volumes.remove(0);
    assert!(first.stop().0.success());
    for (number, volume) in (2..).zip(&volumes) {
        assert_eq!(Client::ready(&volume.socket()).read(0, 5000), [number; 5000]);
    }
    assert_eq!((lab.journals().len(), World::of(&lab).grants.len()), (3, 3));
    assert!(volumes.into_iter().all(|volume| volume.stop().0.success()));
    assert_eq!(World::of(&lab), before);
}

/// Several clients write slices of the same sectors at once: every sector is read, changed and written back, and no
/// neighbour's bytes are lost.
#[test]
fn neighbours_in_a_sector() {
    const SLICE: usize = 100;
    const WRITERS: usize = 4;
    const ROUNDS: usize = 300;
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "1M", "--backing", "memory"]);
    let writers = (0..WRITERS).map(|writer| {
        let socket = volume.socket();
        std::thread::spawn(move || {
            let mut client = Client::ready(&socket);
            let byte = u8::try_from(writer + 1).unwrap();
            for round in 0..ROUNDS {
                client.write(((round * WRITERS + writer) * SLICE) as u64, &[byte; SLICE]);
            }
        })
    });
    writers.collect::<Vec<_>>().into_iter().for_each(|writer| writer.join().unwrap());
    let all = Client::ready(&volume.socket()).read(0, ROUNDS * WRITERS * SLICE);
    for (number, slice) in all.chunks(SLICE).enumerate() {
        let expected = u8::try_from(number % WRITERS + 1).unwrap();
        assert!(slice.iter().all(|byte| *byte == expected), "slice {number} lost bytes");
    }
    assert!(volume.stop().0.success());
}

#[test]
fn a_private_socket_is_its_owners_alone() {
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "1M"]);
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&volume.socket()), 0o600);
    assert_eq!(mode(volume.socket().parent().unwrap()), 0o700);
    assert_eq!(mode(&lab.journals()[0]), 0o600);
    assert!(volume.stop().0.success());
}

/// The C library's allocator keeps what is freed, apart for each of its arenas. One that is not the first lies in
/// mappings of 64 MiB (glibc, malloc/arena.c, `HEAP_MAX_SIZE`), each at a multiple of that.
#[test]
fn freed_memory_is_kept_in_few_places() {
    const HEAP: u64 = 64 << 20;
    let lab = Lab::new();
    let volume = Volume::start(&lab, &["--size", "64M", "--backing", "memory"]);
    for _ in 0..4 {
        let clients = (0..8).map(|number| {
            let socket = volume.socket();
            std::thread::spawn(move || {
                let mut client = Client::ready(&socket);
                for offset in [0, 1 << 20, 2 << 20] {
                    client.write((number << 23) + offset, &vec![7; 1 << 20]);
                    client.read((number << 23) + offset, 1 << 20);
                }
            })
        });
        clients.collect::<Vec<_>>().into_iter().for_each(|client| client.join().unwrap());
    }
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", volume.child.id())).unwrap();
    let is_heap = |line: &&str| {
        let start = line.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok());
        line.contains(" rw-p ") && !line.contains(['/', '[']) && start.is_some_and(|start| start % HEAP == 0)
    };
    let heaps: Vec<&str> = maps.lines().filter(is_heap).collect();
    assert!(heaps.len() <= 2, "{heaps:#?}");
}

//! `sealblk bench`: every figure is there, in both forms, and nothing is left of it.

use std::process::Stdio;

use serde_json::{Value, json};

use sealblk::xts::Implementation;

use crate::support::{Lab, assert_fails, assert_succeeds, entries, eventually, finish, text, tool, wait};

#[test]
fn json_has_every_figure() {
    let lab = Lab::new();
    let output = finish(lab.sealblk(["bench", "--seconds", "2", "--json"]));
    assert_succeeds(&output);
    assert_eq!(text(&output.stderr), "", "no progress where nobody looks");
    let all: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = all.iter().map(|one| one["event"].as_str().unwrap()).collect();
    let ciphers: Vec<_> = Implementation::available().map(Implementation::name).collect();
    // Each with two sizes of sectors in two directions, then the fastest one on all cores.
    let count_of_ciphers = 4 * ciphers.len() + 2;
    let middle = [&vec!["cipher"; count_of_ciphers][..], &["copy"], &["loopback"; 8]].concat();
    assert_eq!(events, [&["host"][..], &middle, &["limit"]].concat());

    let host = &all[0];
    let cores = host["cores"].as_u64().unwrap();
    assert!(cores >= 1 && !host["cpu"].as_str().unwrap().is_empty(), "{host}");
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(host["kernel"], release.trim());
    assert_eq!(host["architecture"], std::env::consts::ARCH);
    assert!(host["instruction_sets"].is_array());

    for figure in &all[1..all.len() - 1] {
        assert!(figure["gigabytes_per_second"].as_f64().unwrap() > 0.0, "{figure}");
    }
    let count = |wanted: Value| {
        let is_wanted =
            |one: &&Value| wanted.as_object().unwrap().iter().all(|(key, value)| one[key] == *value);
        all.iter().filter(is_wanted).count()
    };
    for cipher in ciphers {
        for sector in [4096, 512] {
            for direction in ["encrypt", "decrypt"] {
                let one = json!({"cipher": cipher, "sector_bytes": sector, "direction": direction});
                let on_all = cipher == Implementation::fastest().name() && sector == 4096;
                assert_eq!(count(one), 1 + usize::from(on_all), "{cipher} {sector} {direction}");
            }
        }
    }
    assert_eq!(
        count(json!({"event": "cipher", "cores": cores})),
        if cores == 1 { count_of_ciphers } else { 2 }
    );
    for encrypted in [true, false] {
        for (operation, bytes, depth) in
            [("read", 4096, 1), ("read", 4096, 32), ("read", 1 << 20, 8), ("write", 1 << 20, 8)]
        {
            let wanted = json!({"operation": operation, "request_bytes": bytes, "depth": depth, "encrypted": encrypted});
            assert_eq!(count(wanted.clone()), 1, "{wanted}");
        }
    }
    for figure in &all[count_of_ciphers + 2..all.len() - 1] {
        assert!(figure["requests_per_second"].as_f64().unwrap() > 0.0, "{figure}");
    }
    let limit = all.last().unwrap();
    for which in ["small_reads", "large_reads"] {
        assert!(["cipher", "sockets"].contains(&limit[which].as_str().unwrap()), "{limit}");
    }
    assert!(limit["encryption_costs_percent"].as_f64().unwrap() >= 0.0, "{limit}");
    assert!(limit["text"].as_str().unwrap().starts_with("Large reads: "), "{limit}");
}

#[test]
fn the_table_has_every_row() {
    let lab = Lab::new();
    let output = finish(lab.sealblk(["bench", "--seconds", "1"]));
    assert_succeeds(&output);
    assert_eq!(text(&output.stderr), "", "no progress where nobody looks");
    let table = text(&output.stdout);
    for row in [
        "CPU ",
        "Kernel ",
        "AES-256-XTS, GB/s ",
        "aws-lc ",
        "portable ",
        "Memory copy, GB/s ",
        "One connection, Unix socket ",
        "read 4 KiB, depth 1 ",
        "read 4 KiB, depth 32 ",
        "read 1 MiB, depth 8 ",
        "write 1 MiB, depth 8 ",
        "Large reads: ",
        "Small reads, one at a time: ",
    ] {
        assert!(table.lines().any(|line| line.starts_with(row)), "{row}: {table}");
    }
    assert!(!table.contains('\u{1b}'), "no bar in a file");
    assert!(!lab.state().exists(), "no state is needed");
    assert!(entries(&lab.path("run")).is_empty(), "no socket has a name");
}

/// The most memory that it ever had of its own is what the documents say, and the volumes' less.
#[test]
fn it_takes_no_more_memory_than_it_says() {
    let lab = Lab::new();
    let mut command = lab.sealblk(["bench", "--seconds", "2", "--json"]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.strip_suffix(" kB"));
        most = most.max(own.map_or(0, |own| own.trim().parse::<u64>().unwrap()));
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!((100 << 10..200 << 10).contains(&most), "{most} KiB");
}

#[test]
fn times_without_sense_are_refused() {
    let lab = Lab::new();
    for wrong in ["0", "61", "-1", "1.5", "soon", ""] {
        let output = finish(lab.sealblk(["bench", &format!("--seconds={wrong}")]));
        assert_fails(&output, 2, &["--seconds"]);
        assert_eq!(text(&output.stdout), "");
    }
}

#[test]
fn a_terminal_sees_a_bar_that_goes_away() {
    let lab = Lab::new();
    let mut script = tool("script");
    let command = format!("'{}' bench --seconds 1 >table", env!("CARGO_BIN_EXE_sealblk"));
    script.args(["-qec", &command, "/dev/null"]).current_dir(lab.path("run")).env("SEALBLK_CONFIG", "none");
    let output = finish(script);
    assert_succeeds(&output);
    let shown = text(&output.stdout);
    let lines: Vec<_> = shown.split("\r\u{1b}[K").collect();
    // Ciphers, a copy and four patterns of requests.
    let steps = 4 * Implementation::available().count() + 2 + 1 + 4;
    assert!(
        lines.len() == steps + 2 && lines[1].starts_with("[--") && lines[steps].contains("write 1 MiB"),
        "{shown:?}"
    );
    assert!(lines[0].is_empty() && lines[steps + 1].is_empty(), "{shown:?}");
    assert!(!shown.contains('\n'), "one line only: {shown:?}");
    let table = std::fs::read_to_string(lab.path("run/table")).unwrap();
    assert!(table.starts_with("CPU ") && !table.contains('\u{1b}'), "{table}");
}

/// Signals that a process catches, as /proc has them.
fn catches(pid: u32, signal: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
    u64::from_str_radix(&mask, 16).unwrap() >> (signal - 1) & 1 == 1
}

#[test]
fn a_signal_ends_it_and_nothing_is_left() {
    let lab = Lab::new();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut command = lab.sealblk(["bench", "--seconds", "60", "--json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        eventually("signals are handled", || catches(pid, if signal == "INT" { 2 } else { 15 }));
        let sent = tool("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
        assert!(sent.success());
        assert_eq!(wait(&mut child).code(), Some(code));
        let output = child.wait_with_output().unwrap();
        assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), String::new()));
    }
    assert!(!lab.state().exists() && entries(&lab.path("run")).is_empty());
}

#[test]
fn too_little_lockable_memory_is_said() {
    let lab = Lab::new();
    // Root may lock as much as it likes, unless it is without that capability.
    let is_root = rustix::process::geteuid().is_root();
    let mut shell = tool(if is_root { "setpriv" } else { "env" });
    shell.args(is_root.then_some("--bounding-set=-ipc_lock"));
    shell.args(["sh", "-c", "ulimit -l 0 && exec \"$0\" bench --seconds 1", env!("CARGO_BIN_EXE_sealblk")]);
    shell.env("SEALBLK_CONFIG", "none").env("SEALBLK_STATE_DIR", lab.state());
    let output = finish(shell);
    assert_fails(&output, 2, &["cannot lock 64 bytes", "LimitMEMLOCK="]);
    assert_eq!(text(&output.stdout), "");
}

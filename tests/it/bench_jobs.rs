//! The job files in benches/fio, run by the commands that they tell their readers to run.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Lab, assert_succeeds, entries, finish, text, tool};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The job files: name and text.
fn jobs() -> Vec<(PathBuf, String)> {
    let files = entries(&root().join("benches/fio"));
    assert!(files.len() >= 4, "{files:?}");
    files.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The command in the comment that starts with this word, as a shell takes it.
fn command<'a>(job: &'a str, word: &str) -> &'a str {
    let mut lines = job.lines().filter_map(|line| line.strip_prefix("#   "));
    lines.find(|line| line.starts_with(word)).unwrap()
}

/// Runs it in the repository's root; what it prints.
fn shell(lab: &Lab, command: &str) -> String {
    let mut shell = tool("sh");
    // fio must be there: its absence would be told as an error of the command's.
    tool("fio");
    shell.args(["-c", command]).current_dir(root());
    let sealblk = lab.sealblk([""; 0]);
    shell.envs(sealblk.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = finish(shell);
    assert_succeeds(&output);
    text(&output.stdout)
}

#[test]
fn run_on_a_volume_over_nbd() {
    for (path, job) in jobs() {
        let lab = Lab::new();
        let small = format!("{} run --json --backing memory --size 64M ", env!("CARGO_BIN_EXE_sealblk"));
        let command = command(&job, "sealblk run").replace("sealblk run --size 4G ", &small);
        assert!(command.starts_with(&small) && command.contains(path.file_name().unwrap().to_str().unwrap()));
        let said = shell(&lab, &command);
        let record: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        assert!(record["bytes_written"].as_u64() >= Some(1 << 20), "{record}");
    }
}

/// A file stands for the device, and psync for io_uring, which containers may forbid.
#[test]
fn run_on_a_device() {
    for (path, job) in jobs() {
        let lab = Lab::new();
        let file = lab.path("device");
        std::fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
        let command = command(&job, "fio ").replace("/dev/nbd0", file.to_str().unwrap());
        let said = shell(&lab, &command.replace("io_uring --direct=1", "psync"));
        assert!(said.contains("WRITE: "), "{}: {said}", path.display());
    }
}

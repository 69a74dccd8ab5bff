//! Runs that are killed at every step: how the steps are counted stands in `kill_at.c` beside this file.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{assert_succeeds, finish, text, tool};

/// Threads that share an operation's steps. The modules's tests run beside each other as well.
const WORKERS: usize = 2;
/// More than any operation has; one that never comes to its end is stopped here.
const MOST: usize = 2000;
/// What `kill_at` answers for a program that it killed.
const KILLED: i32 = 137;

/// Which system calls are steps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Steps {
    /// Those on files, names and disks.
    Files,
    /// And on sockets.
    Network,
}

/// One run that is to be killed at its step `number`.
pub(crate) struct Kill {
    pub(crate) number: usize,
    steps: Steps,
    log: tempfile::NamedTempFile,
    survived: Cell<bool>,
}

impl Kill {
    /// Runs the command until it is killed, or has fewer steps and succeeds.
    pub(crate) fn run(&self, command: &Command) -> Output {
        let mut watched = Command::new(kill_at());
        watched.arg(self.number.to_string()).arg(self.log.path());
        watched.arg(if self.steps == Steps::Network { "network" } else { "files" });
        watched.arg(command.get_program()).args(command.get_args());
        watched.current_dir(command.get_current_dir().unwrap());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => watched.env(name, value),
                None => watched.env_remove(name),
            };
        }
        let output = finish(watched);
        let killed = output.status.code() == Some(KILLED);
        if killed {
            assert_eq!(self.log().len(), self.number, "it is killed at this step and at no later one");
        } else {
            assert_succeeds(&output);
            assert!(self.log().len() < self.number, "it had fewer steps");
        }
        self.survived.set(!killed);
        output
    }

    /// True if the run had fewer steps than [`Kill::number`].
    pub(crate) fn survived(&self) -> bool {
        self.survived.get()
    }

    /// A line for each step that was begun.
    fn log(&self) -> Vec<String> {
        text(&std::fs::read(self.log.path()).unwrap()).lines().map(String::from).collect()
    }
}

/// Tells with a failed assertion where the run was killed.
impl Drop for Kill {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail = &log[log.len().saturating_sub(8)..];
            println!("killed at step {}, after and at:\n  {}", self.number, tail.join("\n  "));
        }
    }
}

/// Makes `attempt` for every step of an operation, from the first until one survives. Each worker has an attempt of
/// its own from `prepare`.
pub(crate) fn every<A: FnMut(&Kill)>(name: &str, steps: Steps, prepare: impl Fn() -> A + Sync) {
    let next = AtomicUsize::new(1);
    let last = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut attempt = prepare();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    assert!(number < MOST, "{name} does not come to its end");
                    let log = tempfile::NamedTempFile::new().unwrap();
                    let kill = Kill { number, steps, log, survived: Cell::new(false) };
                    attempt(&kill);
                    if kill.survived() {
                        last.fetch_max(kill.log().len(), Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
    let steps = last.into_inner();
    assert!(steps > 10, "{name} has {steps} steps only: are they counted?");
    println!("{name}: killed at each of {steps} steps");
}

/// The program that counts and kills, compiled once.
fn kill_at() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/kills/kill_at.c");
        // Test runs beside this one must not see half of it.
        let made = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap().into_temp_path();
        let mut gcc = tool("gcc");
        gcc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&made).arg(source);
        assert_succeeds(&finish(gcc));
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kill_at");
        made.persist(&program).unwrap();
        program
    })
}

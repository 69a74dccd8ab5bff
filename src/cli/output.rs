//! What commands print.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use super::Failure;

/// One line to stderr, red where that is a terminal.
pub(super) fn error(failure: &Failure) {
    let label = if std::io::stderr().is_terminal() { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{label} {failure}");
}

/// A line to stdout. A reader that has gone away is not an error: what was asked for has been done.
pub(super) fn line(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A line to stderr for people.
pub(super) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// An event as one JSON object on one line, `event` first.
#[derive(Serialize)]
pub(super) struct Event<'a, T: Serialize> {
    pub(super) event: &'a str,
    #[serde(flatten)]
    pub(super) details: T,
}

impl<T: Serialize> Event<'_, T> {
    /// The line.
    pub(super) fn json(&self) -> String {
        // Records are strings, numbers, maps and lists: nothing that JSON cannot hold.
        serde_json::to_string(self).unwrap_or_default()
    }
}

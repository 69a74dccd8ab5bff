//! A line that is written again and again while something takes its time.

use std::io::{IsTerminal, Write};

/// Characters of the bar; with what follows it the line stays within 80 columns.
const WIDTH: usize = 30;
/// To the line's start, and nothing is left of it.
const CLEAR: &str = "\r\x1b[K";

/// The line, on stderr where that is a terminal and people read it, and nowhere else. Dropped, it vanishes.
pub(super) struct Progress {
    shown: bool,
}

impl Progress {
    pub(super) fn new(json: bool) -> Self {
        Self { shown: !json && std::io::stderr().is_terminal() }
    }

    /// Shows what is at work, and the part of all that is done, from 0 to 1.
    pub(super) fn show(&mut self, what: &str, done: f64) {
        if self.shown {
            write(&format!("{CLEAR}{}", line(what, done)));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            write(CLEAR);
        }
    }
}

fn write(text: &str) {
    // With stderr gone there is nobody left to see it.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the bar's width")]
fn line(what: &str, done: f64) -> String {
    let done = done.clamp(0.0, 1.0);
    let full = (done * WIDTH as f64) as usize;
    format!("[{}{}] {:>3.0} %  {what}", "#".repeat(full), "-".repeat(WIDTH - full), done * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_grows() {
        let half = format!("[{}{}]  50 %  x", "#".repeat(15), "-".repeat(15));
        assert_eq!(line("x", 0.5), half);
        assert!(line("x", 0.0).starts_with("[-") && line("x", 2.0).contains("#] 100 %"));
        assert!(line("encrypt 4096-byte sectors, aws-lc on 128 cores", 1.0).len() < 90);
    }
}

//! A Rust file, read far enough for the rules: comments, strings and tests told apart from code.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// One file in three views of equal length, so that a position means the same in each.
pub(crate) struct Source {
    /// Path from the root of the project.
    pub(crate) path: PathBuf,
    /// The file as it is.
    pub(crate) text: String,
    /// With comments and the insides of literals blanked.
    pub(crate) code: String,
    /// As `code`, with items under `#[cfg(test)]` blanked too; empty for a file of tests.
    pub(crate) shipped: String,
}

impl Source {
    pub(crate) fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let code = blank_comments_and_literals(&text);
        let tests = is_test_file(&path);
        let shipped =
            if tests { code.replace(|letter| letter != '\n', " ") } else { blank(&code, &test_items(&code)) };
        Self { path, text, code, shipped }
    }

    /// `path:line: message` for what stands at `position`.
    pub(crate) fn finding(&self, position: usize, message: &str) -> String {
        format!("{}:{}: {message}", self.path.display(), line_of(&self.text, position) + 1)
    }
}

/// A module's tests in a file of their own: `tests.rs`, or anything in a folder `tests`.
fn is_test_file(path: &Path) -> bool {
    path.with_extension("").components().any(|part| part.as_os_str() == "tests")
}

/// The number of line ends before `position`.
pub(crate) fn line_of(text: &str, position: usize) -> usize {
    text.as_bytes()[..position].iter().filter(|byte| **byte == b'\n').count()
}

pub(crate) fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Every place where `word` stands alone.
pub(crate) fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = text.as_bytes();
    text.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let end = at + word.len();
        (*at == 0 || !is_word(bytes[at - 1])) && (end == bytes.len() || !is_word(bytes[end]))
    })
}

/// Where the bracket that opens at `open` closes; the end of the text if it never does.
pub(crate) fn matching(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return at;
        }
    }
    code.len()
}

/// The `{` or `;` that ends an item's head, which starts at `from`.
pub(crate) fn end_of_head(code: &str, from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(byte) = code.as_bytes().get(at) {
        match byte {
            b'{' | b';' => return Some(at),
            b'(' | b'[' => at = matching(code, at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// The items under `#[cfg(test)]`.
fn test_items(code: &str) -> Vec<Range<usize>> {
    code.match_indices("#[cfg(test)]")
        .map(|(start, _)| {
            let end = match end_of_head(code, start + "#[cfg(test)]".len()) {
                Some(head) if code.as_bytes()[head] == b'{' => matching(code, head),
                Some(head) => head,
                None => code.len(),
            };
            start..(end + 1).min(code.len())
        })
        .collect()
}

/// `text` with `ranges` overwritten by spaces; line ends stay.
fn blank(text: &str, ranges: &[Range<usize>]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for range in ranges {
        bytes[range.clone()].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    String::from_utf8(bytes).expect("whole characters were replaced")
}

fn blank_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &text[at..];
        let end = if rest.starts_with("//") {
            at + rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            at + block_comment(rest)
        } else if bytes[at] == b'"' {
            at + string(rest)
        } else if let Some(length) = raw_string(text, at) {
            at + length
        } else if let Some(length) = character(rest) {
            at + length
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        let inner = if rest.starts_with('/') { at..end } else { at + 1..end - 1 };
        ranges.push(inner);
        at = end;
    }
    blank(text, &ranges)
}

/// Length of the block comment that `rest` starts with; they nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// Length of the string that `rest` starts with.
fn string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in rest.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Length of the raw string (`r"`, `r#"`, `br#"`, `cr#"`) that starts at `at`.
fn raw_string(text: &str, at: usize) -> Option<usize> {
    if at > 0 && is_word(text.as_bytes()[at - 1]) {
        return None;
    }
    let rest = &text[at..];
    let prefix = ["r", "br", "cr"].into_iter().find(|prefix| {
        rest.strip_prefix(prefix).is_some_and(|tail| tail.trim_start_matches('#').starts_with('"'))
    })?;
    let hashes = rest[prefix.len()..].bytes().take_while(|byte| *byte == b'#').count();
    let open = prefix.len() + hashes + 1;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(rest[open..].find(&close).map_or(rest.len(), |end| open + end + close.len()))
}

/// Length of the character literal that `rest` starts with; none for a lifetime.
fn character(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    if inner.starts_with('\\') {
        return inner[2..].find('\'').map(|end| end + 4);
    }
    let first = inner.chars().next()?;
    inner[first.len_utf8()..].starts_with('\'').then(|| first.len_utf8() + 2)
}

#[test]
fn comments_and_literals_are_no_code() {
    let text =
        "a(\"{ \\\" //\"); // { \"\nb('{', '\\'', '\\u{7b}', r#\"{\"#, br\"{\"); /* { /* { */ */ c::<'x>()";
    let source = Source::new("src/a.rs", text);
    assert_eq!(source.code.len(), text.len());
    assert!(!source.code.contains('{'), "{}", source.code);
    for kept in ["a(\"", "b('", "c::<'x>()"] {
        assert!(source.code.contains(kept), "{kept} in {}", source.code);
    }
}

#[test]
fn items_for_tests_are_not_shipped() {
    let text = "#[cfg(test)]\nuse x::y;\nfn kept() {}\n#[cfg(test)]\n#[path = \"t.rs\"]\nmod tests { fn gone() {} }\nfn kept_too() {}\n";
    let source = Source::new("src/a.rs", text);
    assert!(source.shipped.contains("kept") && source.shipped.contains("kept_too"));
    assert!(!source.shipped.contains("gone") && !source.shipped.contains("x::y"));
    assert!(Source::new("src/a/tests.rs", "fn gone() {}").shipped.trim().is_empty());
}

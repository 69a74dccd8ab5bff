//! Rules that look at one file.

use std::path::Path;

use crate::source::{Source, end_of_head, line_of, matching, words};

/// Most lines of a file, tests left out.
const FILE_LINES: usize = 400;
/// Most lines of a function; 40 is what to aim at.
const FUNCTION_LINES: usize = 70;
/// The modules that may hold `unsafe`: descriptors by number, mapped files, huge pages, locked memory, memory that the
/// kernel uses, the calls into AWS-LC, and instructions that not every processor has.
const UNSAFE_MODULES: [&str; 6] = ["descriptors", "mapping", "pages", "ring", "secret", "xts"];
/// What one writes to come back later. In two parts, so that this file does not hold them.
const REMINDERS: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
/// Folders in which people have their home directories.
const HOMES: [&str; 3] = [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];

pub(crate) fn lengths(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    let tests = source.code.lines().zip(source.shipped.lines());
    let blanked =
        tests.filter(|(code, shipped)| !code.trim().is_empty() && shipped.trim().is_empty()).count();
    let lines = source.text.lines().count() - blanked;
    if !source.shipped.trim().is_empty() && lines > FILE_LINES {
        findings.push(source.finding(0, &format!("{lines} lines without tests; {FILE_LINES} at most")));
    }
    for (at, name, length) in functions(&source.shipped) {
        if length > FUNCTION_LINES {
            findings
                .push(source.finding(at, &format!("fn {name} has {length} lines; {FUNCTION_LINES} at most")));
        }
    }
    findings
}

/// Where each function with a body starts, its name and its lines.
fn functions(code: &str) -> Vec<(usize, &str, usize)> {
    words(code, "fn")
        .filter_map(|at| {
            let name = code[at + 2..].trim_start().split(['(', '<']).next()?.trim();
            let open = end_of_head(code, at).filter(|open| code.as_bytes()[*open] == b'{')?;
            let close = matching(code, open).min(code.len() - 1);
            (!name.is_empty()).then(|| (at, name, line_of(code, close) - line_of(code, at) + 1))
        })
        .collect()
}

pub(crate) fn unsafe_code(source: &Source) -> Vec<String> {
    let path = source.path.with_extension("");
    let module = path.iter().nth(1).and_then(|part| part.to_str()).unwrap_or_default();
    let allowed = UNSAFE_MODULES.contains(&module);
    words(&source.code, "unsafe")
        .filter_map(|at| {
            if !allowed {
                Some(
                    source.finding(
                        at,
                        "unsafe stands in descriptors, mapping, pages, ring, secret and xts only",
                    ),
                )
            } else if !explained(source, at) {
                Some(source.finding(at, "unsafe without a SAFETY comment before it"))
            } else {
                None
            }
        })
        .collect()
}

/// Whether the statement or item at `position` has a SAFETY comment above it: `// SAFETY: ...`, or a section
/// `# Safety` in the documentation of an `unsafe fn`.
fn explained(source: &Source, position: usize) -> bool {
    let text: Vec<&str> = source.text.lines().map(str::trim).collect();
    let code: Vec<&str> = source.code.lines().map(str::trim).collect();
    let mut line = line_of(&source.text, position);
    while line > 0 {
        let above = line - 1;
        let (is_comment, is_attribute) = (text[above].starts_with("//"), code[above].starts_with("#["));
        if is_comment && (text[above].contains("SAFETY:") || text[above].ends_with("# Safety")) {
            return true;
        }
        let ended = code[above].is_empty() || code[above].ends_with([';', '{', '}', ',']);
        let continued = code[line].starts_with(['.', '?']) || code[line].starts_with("else");
        if !is_comment && !is_attribute && ended && !continued {
            return false;
        }
        line = above;
    }
    false
}

pub(crate) fn lint_reasons(source: &Source) -> Vec<String> {
    let starts = source.code.match_indices('#').map(|(at, _)| at);
    starts
        .filter_map(|at| {
            let open = at + 1 + usize::from(source.code[at + 1..].starts_with('!'));
            let attribute = source.code[open..].starts_with('[').then(|| {
                let close = matching(&source.code, open);
                &source.code[open..close]
            })?;
            let lints = ["allow", "expect"].into_iter().flat_map(|word| words(attribute, word));
            let unreasoned = |start: usize| {
                let open = attribute[start..].find('(').map(|offset| start + offset)?;
                let inner = &attribute[open..matching(attribute, open)];
                (words(inner, "reason").count() == 0).then_some(())
            };
            lints.filter_map(unreasoned).next()?;
            Some(source.finding(at, "a lint is allowed or expected without a reason"))
        })
        .collect()
}

pub(crate) fn unfinished(source: &Source) -> Vec<String> {
    let macros = ["todo!", "unimplemented!"].into_iter().flat_map(|name| {
        let bare = &name[..name.len() - 1];
        words(&source.code, bare).filter(move |at| source.code[at + bare.len()..].starts_with('!'))
    });
    let ignored = source.code.match_indices("#[ignore").map(|(at, _)| at);
    let code =
        macros.chain(ignored).map(|at| source.finding(at, "unfinished code or a test that is left out"));
    code.chain(reminders(&source.path, &source.text)).collect()
}

pub(crate) fn reminders(path: &Path, text: &str) -> Vec<String> {
    found(
        path,
        text,
        &REMINDERS.map(|word| words(text, word).collect::<Vec<_>>()).concat(),
        "a reminder; do it, or file it",
    )
}

pub(crate) fn home_paths(path: &Path, text: &str) -> Vec<String> {
    let starts_path = |at: &usize| {
        *at == 0
            || !matches!(text.as_bytes()[at - 1], b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'}')
    };
    let homes =
        HOMES.map(|home| text.match_indices(home).map(|(at, _)| at).filter(starts_path).collect::<Vec<_>>());
    found(path, text, &homes.concat(), "a path in somebody's home directory")
}

fn found(path: &Path, text: &str, positions: &[usize], message: &str) -> Vec<String> {
    let line = |at: &usize| line_of(text, *at) + 1;
    positions.iter().map(|at| format!("{}:{}: {message}", path.display(), line(at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rule: fn(&Source) -> Vec<String>, path: &str, text: &str) -> usize {
        rule(&Source::new(path, text)).len()
    }

    #[test]
    fn long_files_and_functions_are_found() {
        let body = |lines: usize| format!("fn long(a: [u8; 4]) -> u8 {{\n{}}}\n", "    x();\n".repeat(lines));
        assert_eq!(count(lengths, "src/a.rs", &body(68)), 0);
        assert_eq!(count(lengths, "src/a.rs", &body(69)), 1);
        assert_eq!(count(lengths, "src/a.rs", &"use a::b;\n".repeat(400)), 0);
        assert_eq!(count(lengths, "src/a.rs", &"use a::b;\n".repeat(401)), 1);
        let tested =
            |lines| format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "use a::b;\n".repeat(lines), body(500));
        assert_eq!(count(lengths, "src/a.rs", &tested(400)), 0);
        assert_eq!(count(lengths, "src/a.rs", &tested(401)), 1);
        assert_eq!(count(lengths, "src/a/tests.rs", &body(500)), 0);
        assert_eq!(
            count(lengths, "src/a.rs", "trait T { fn f(&self); fn g(&self) {} }\ntype F = fn(u8);\n"),
            0
        );
    }

    #[test]
    fn unsafe_in_the_wrong_place_or_unexplained_is_found() {
        let explained = "fn f() {\n    // SAFETY: because,\n    // and so on.\n    let a = unsafe { g() }\n        .h()\n        .and_then(|()| unsafe { i() });\n}\n";
        assert_eq!(count(unsafe_code, "src/secret/locked.rs", explained), 0);
        assert_eq!(
            count(
                unsafe_code,
                "src/xts.rs",
                "/// Does.\n///\n/// # Safety\n/// Be careful.\npub unsafe fn f() {}"
            ),
            0
        );
        assert_eq!(count(unsafe_code, "src/volume.rs", explained), 2);
        assert_eq!(count(unsafe_code, "src/secret.rs", "fn f() {\n    g();\n    unsafe { g() }\n}"), 1);
        assert_eq!(
            count(
                unsafe_code,
                "src/secret.rs",
                "// SAFETY: fine.\nunsafe impl A for B {}\nunsafe impl C for B {}"
            ),
            1
        );
        assert_eq!(count(unsafe_code, "src/volume.rs", "#![deny(unsafe_code)] // unsafe\n"), 0);
    }

    #[test]
    fn lints_without_a_reason_are_found() {
        for bad in
            ["#[allow(dead_code)]", "#![expect(a::b, c)]", "#[cfg_attr(x, allow(y))]", "#[\n allow(a)\n]"]
        {
            assert_eq!(count(lint_reasons, "src/a.rs", bad), 1, "{bad}");
        }
        for good in
            ["#[allow(a, reason = \"x\")]", "#[derive(Debug)] fn expect() { a.expect(\"#[allow(a)]\") }"]
        {
            assert_eq!(count(lint_reasons, "src/a.rs", good), 0, "{good}");
        }
        assert_eq!(count(lint_reasons, "src/a.rs", "#[allow(a)]\n#[allow(b, reason = \"x\")]"), 1);
    }

    #[test]
    fn unfinished_work_is_found() {
        for bad in ["fn f() { todo!() }", "unimplemented!(\"x\")", "#[ignore]", "#[ignore = \"slow\"]"] {
            assert_eq!(count(unfinished, "src/a.rs", bad), 1, "{bad}");
        }
        for word in REMINDERS {
            assert_eq!(count(unfinished, "src/a.rs", &format!("// {word}: later")), 1, "{word}");
        }
        assert_eq!(count(unfinished, "src/a.rs", "let todo_list = \"todo!\"; // XXXX, ignored"), 0);
    }

    #[test]
    fn home_directories_are_found() {
        for home in HOMES {
            let count = |text: &str| home_paths(Path::new("a.md"), text).len();
            assert_eq!(count(&format!("see {home}ann/x")), 1, "{home}");
            assert_eq!(count(&format!("see example.org{home}ann and $DIR/srv{home}x")), 0, "{home}");
        }
    }
}

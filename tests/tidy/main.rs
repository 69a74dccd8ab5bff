//! Rules about the source that neither the compiler nor clippy holds: which module may use which, how long a file
//! or function may be, where `unsafe` may stand, and what a text must not hold.
//!
//! Each rule is a function from a text to its findings, and has a test on small bad inputs: a rule that finds
//! nothing anywhere proves nothing.

mod layers;
mod rules;
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use layers::Layers;
use source::Source;

/// Folders that hold no text of ours.
const SKIPPED: [&str; 2] = ["target", ".git"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file under `folder`, with its path from the root of the project.
fn texts(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).into_iter().flatten() {
            let path = entry.expect("a readable folder").path();
            if path.file_name().is_some_and(|name| SKIPPED.iter().any(|skipped| name == *skipped)) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                found.push((path.strip_prefix(root()).expect("below the root").to_path_buf(), text));
            }
        }
    }
    found.sort();
    found
}

/// Every Rust file under `folder`.
fn sources(folder: &str) -> Vec<Source> {
    let rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    texts(folder)
        .into_iter()
        .filter(|(path, _)| rust(path))
        .map(|(path, text)| Source::new(path, text))
        .collect()
}

/// Everything written in Rust: the program, its tests, benchmarks and fuzz targets.
fn all_sources() -> Vec<Source> {
    ["src", "tests", "benches", "fuzz", "examples"].into_iter().flat_map(sources).collect()
}

fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n  {}\n", findings.len(), findings.join("\n  "));
}

#[test]
fn modules_use_lower_layers_only() {
    let document = fs::read_to_string(root().join("docs/architecture.md")).expect("docs/architecture.md");
    let layers = Layers::parse(&document).expect("the tables of docs/architecture.md");
    let sources = sources("src");
    assert!(!sources.is_empty());
    assert_none(&sources.iter().flat_map(|source| layers.check(source)).collect::<Vec<_>>());
}

#[test]
fn files_and_functions_are_short() {
    assert_none(&sources("src").iter().flat_map(rules::lengths).collect::<Vec<_>>());
}

#[test]
fn unsafe_stands_where_it_may_and_says_why() {
    assert_none(&sources("src").iter().flat_map(rules::unsafe_code).collect::<Vec<_>>());
}

#[test]
fn allowed_lints_have_reasons() {
    assert_none(&all_sources().iter().flat_map(rules::lint_reasons).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_for_later() {
    assert_none(&all_sources().iter().flat_map(rules::unfinished).collect::<Vec<_>>());
    let prose = ["docs", "deploy", "scripts", "systemd", ".ci"].into_iter().flat_map(texts);
    assert_none(&prose.flat_map(|(path, text)| rules::reminders(&path, &text)).collect::<Vec<_>>());
}

#[test]
fn no_text_names_a_home_directory() {
    assert_none(&texts("").iter().flat_map(|(path, text)| rules::home_paths(path, text)).collect::<Vec<_>>());
}

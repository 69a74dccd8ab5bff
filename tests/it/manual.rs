//! What the program says about itself.

use crate::support::{Lab, assert_fails, assert_succeeds, entries, finish, text, tool};

fn said(args: &[&str]) -> String {
    let output = finish(Lab::new().sealblk(args));
    assert_succeeds(&output);
    assert_eq!(text(&output.stderr), "", "{args:?}");
    text(&output.stdout)
}

#[test]
fn completions_that_their_shells_can_read() {
    for (shell, word) in [("bash", "--sector-size"), ("zsh", "--sector-size"), ("fish", "sector-size")] {
        let script = said(&["completions", shell]);
        assert!(script.contains(word), "{shell}");
        assert!(!script.contains("unwrap-key"), "{shell} completes a command that is not the user's");
    }
    let lab = Lab::new();
    std::fs::write(lab.path("completions"), said(&["completions", "bash"])).unwrap();
    let mut bash = tool("bash");
    bash.args(["-ec", "source \"$1\"; complete -p sealblk", "bash"]).arg(lab.path("completions"));
    let output = finish(bash);
    assert_succeeds(&output);
    assert!(text(&output.stdout).contains("sealblk"));
    assert_fails(&finish(lab.sealblk(["completions", "cmd"])), 2, &["cmd", "bash"]);
}

#[test]
fn a_man_page_for_every_command() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("man")).unwrap();
    assert_succeeds(&finish(lab.sealblk(["man", "man"])));
    let pages: Vec<String> =
        entries(&lab.path("man")).iter().map(|p| p.file_name().unwrap().to_str().unwrap().into()).collect();
    for page in ["sealblk.1", "sealblk-run.1", "sealblk-gc.1", "sealblk-kms.1", "sealblk-kms-serve.1"] {
        assert!(pages.iter().any(|name| name == page), "{page} is not among {pages:?}");
    }
    let run = std::fs::read_to_string(lab.path("man/sealblk-run.1")).unwrap();
    assert!(run.starts_with(".ie") && run.contains("Examples:"), "{run}");
    assert!(!pages.iter().any(|name| name.contains("unwrap")), "a hidden command has no page");
    assert_fails(
        &finish(lab.sealblk(["man", "/nonexistent"])),
        7,
        &["man pages", "/nonexistent", "No such file"],
    );
}

/// Tables in the documents name a test for each row: each is there.
#[test]
fn every_test_that_a_document_names_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for document in ["docs/systems.md", "docs/protocol.md"] {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        let names: Vec<_> = text.split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect();
        assert!(names.len() > 20, "{document}: {names:?}");
        for name in names.into_iter().filter(|name| !name.contains("MODULE")) {
            assert!(is_test(root, name), "{document}: {name} is no test");
        }
    }
}

/// Whether a black-box test, one of their modules, or a unit test has this name.
fn is_test(root: &std::path::Path, name: &str) -> bool {
    let (module, test) = name.rsplit_once("::").unwrap();
    let has = |place: &str, module: &str| {
        let module = root.join(place).join(module.replace("::", "/"));
        let source = std::fs::read_to_string(module.with_extension("rs")).unwrap_or_default();
        source.contains(&format!("fn {test}(")) || module.join(format!("{test}.rs")).exists()
    };
    // Unit tests stand in a file of their own, or at the end of what they test.
    let unit = module.strip_suffix("::tests").is_some_and(|tested| has("src", tested));
    has("tests/it", module) || has("src", module) || unit
}

#[test]
fn help_for_every_command() {
    let kms =
        ["create", "list", "enable", "disable", "schedule-deletion", "cancel-deletion", "rotate", "events"];
    let policies = ["get-key-policy", "put-key-policy", "get-user-policy", "put-user-policy"];
    let kms =
        kms.iter().chain(&policies).chain(&["credentials", "serve"]).map(|command| vec!["kms", command]);
    let top = [
        "run",
        "provision",
        "rewrap",
        "retire",
        "inspect",
        "gc",
        "audit",
        "kms",
        "config",
        "policy",
        "preflight",
        "bench",
        "completions",
        "man",
    ]
    .map(|command| vec![command]);
    for command in top.into_iter().chain(kms).chain([vec![]]) {
        let help = said(&[&command[..], &["--help"]].concat());
        assert!(help.contains("Usage: sealblk"), "{help}");
        assert!(said(&[&command[..], &["-h"]].concat()).contains("Usage: sealblk"));
    }
    let help = said(&["run", "--help"]);
    for word in ["Examples:", "$uri", "--size", "10GB", "--context", "--listen"] {
        assert!(help.contains(word), "{word} is missing from {help}");
    }
    assert!(said(&["--help"]).contains("Exit codes: 0 done"));
    assert!(said(&["--version"]).starts_with("sealblk "));
}

#[test]
fn usage_errors() {
    let lab = Lab::new();
    for (args, word) in [
        (&[][..], "Usage"),
        (&["fly"], "fly"),
        (&["run", "--size", "1M", "--fast"], "--fast"),
        (&["run", "--size", "1M", "--discard", "maybe"], "maybe"),
        (&["run", "--size", "1M", "--cipher", "rot13"], "rot13"),
        (&["run", "--size", "1M", "stray"], "stray"),
        (&["kms", "schedule-deletion", "--days", "6"], "7..=30"),
        (&["bench", "--seconds", "0"], "1..=60"),
        (&["--log", "loud", "gc"], "loud"),
    ] {
        assert_fails(&finish(lab.sealblk(args)), 2, &[word]);
    }
    assert!(entries(&lab.state()).is_empty(), "nothing was made");
}

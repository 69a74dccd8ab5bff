//! The layers: what docs/architecture.md says about who may use whom, held against every path in the source.

use std::path::Path;

use crate::source::{Source, end_of_head, is_word, matching, words};

/// The document's two tables.
pub(crate) struct Layers {
    /// Modules by layer, lowest first. Of one row, a module may use those written before it.
    rows: Vec<(usize, Vec<String>)>,
    /// A module and what it must not use although the layers allow it.
    strangers: Vec<(String, Vec<String>)>,
}

impl Layers {
    /// Reads the rows `| 0 | `a`, `b` | ... |` and ``| `a` | `b`, `c` | ... |``.
    pub(crate) fn parse(document: &str) -> Result<Self, String> {
        let (mut rows, mut strangers) = (Vec::new(), Vec::new());
        for line in document.lines().filter(|line| line.starts_with('|')) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, first, second, _, _] = cells[..] else { continue };
            if let Ok(layer) = first.parse() {
                rows.push((layer, quoted(second)));
            } else if let [module] = &quoted(first)[..] {
                strangers.push((module.clone(), quoted(second)));
            }
        }
        if rows.is_empty() || strangers.is_empty() {
            return Err(format!("found {} layers and {} rules about strangers", rows.len(), strangers.len()));
        }
        let layers = Self { rows, strangers };
        for (module, others) in &layers.strangers {
            if let Some(unknown) = others.iter().chain([module]).find(|name| layers.place(name).is_none()) {
                return Err(format!("{unknown} is in no layer"));
            }
        }
        Ok(layers)
    }

    /// Layer, row and place in the row.
    fn place(&self, module: &str) -> Option<(usize, usize, usize)> {
        self.rows.iter().enumerate().find_map(|(row, (layer, modules))| {
            modules.iter().position(|name| name == module).map(|place| (*layer, row, place))
        })
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        self.rows.iter().flat_map(|(_, modules)| modules)
    }

    /// The name in the tables of what has this path below the crate's root: `kms::aws` belongs to `kms`.
    fn module(&self, path: &[String]) -> String {
        let two = path.iter().take(2).map(String::as_str).collect::<Vec<_>>().join("::");
        if self.place(&two).is_some() { two } else { path.first().cloned().unwrap_or_default() }
    }

    fn may_use(&self, user: &str, used: &str) -> Result<(), String> {
        let rank = |name: &str| self.place(name).ok_or(format!("{name} is not in the table of layers"));
        let ((user_layer, user_row, user_place), (layer, row, place)) = (rank(user)?, rank(used)?);
        if layer > user_layer || (layer == user_layer && (row != user_row || place > user_place)) {
            return Err(format!("{user} (layer {user_layer}) uses {used} (layer {layer})"));
        }
        let stranger = |(module, others): &(String, Vec<String>)| {
            module == user
                && others.iter().any(|other| other == used || used.starts_with(&format!("{other}::")))
        };
        if self.strangers.iter().any(stranger) {
            return Err(format!("{user} must not know {used}"));
        }
        Ok(())
    }

    pub(crate) fn check(&self, source: &Source) -> Vec<String> {
        let own = module_path(&source.path);
        let user = match own.first() {
            None => return Vec::new(), // lib.rs declares every module and uses none
            Some(_) if source.path == Path::new("src/main.rs") => "main.rs".to_string(),
            Some(_) => self.module(&own),
        };
        // A module that is only a folder of others (`nbd`) has no row, and may use nothing but them.
        let is_folder = own.len() == 1 && self.names().any(|name| name.starts_with(&format!("{user}::")));
        if self.place(&user).is_none() && !is_folder {
            return vec![source.finding(0, &format!("{user} is not in the table of layers"))];
        }
        let mut findings = aws_crates(source, &user);
        for (at, path) in crate_paths(source, &own) {
            let used = self.module(&path);
            let own_folder = own.first() == path.first() && (is_folder || self.place(&used).is_none());
            if used.is_empty() || used == user || own_folder {
                continue;
            }
            if let Err(message) = self.may_use(&user, &used) {
                findings.push(source.finding(at, &message));
            }
        }
        findings.dedup();
        findings
    }
}

/// What stands between backquotes.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(String::from).collect()
}

/// `src/kms/aws.rs` is `[kms, aws]`; `src/lib.rs` is empty.
fn module_path(path: &Path) -> Vec<String> {
    let path = path.with_extension("");
    let mut parts: Vec<String> =
        path.iter().skip(1).map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod" || last == "lib") {
        parts.pop();
    }
    parts
}

/// The AWS SDK is named in `kms` alone; AWS-LC is a library of ciphers and may be named by others.
fn aws_crates(source: &Source, user: &str) -> Vec<String> {
    let code = &source.shipped;
    let starts = code.match_indices("aws_").map(|(at, _)| at);
    let named = starts.filter(|at| *at == 0 || !is_word(code.as_bytes()[at - 1])).filter(|at| {
        let name = identifier(&code[*at..]);
        let after = &code[at + name.len()..];
        let before = code[..*at].trim_end();
        let is_crate = after.starts_with("::") || before.ends_with("use") || before.ends_with("crate");
        is_crate && !name.starts_with("aws_lc")
    });
    let message = |at| source.finding(at, &format!("{user} names an AWS crate; only kms may"));
    if user == "kms" { Vec::new() } else { named.map(message).collect() }
}

/// Every path that starts at the crate's root or above the module, from the root on, with where it stands.
fn crate_paths(source: &Source, own: &[String]) -> Vec<(usize, Vec<String>)> {
    let code = &source.shipped;
    let mut found = Vec::new();
    for root in ["crate", "sealblk"] {
        for at in words(code, root) {
            let tail = code[at + root.len()..].trim_start();
            let macro_path = code[..at].ends_with('$');
            if let Some(tree) = tail.strip_prefix("::") {
                found.extend(leaves(tree, &[]).into_iter().map(|path| (at, path)));
            } else if root == "crate" && tail.starts_with("as ") && !macro_path {
                found.push((at, vec!["the whole crate".into()]));
            }
        }
    }
    for at in words(code, "super").filter(|at| !code[..*at].ends_with("super::")) {
        let mut base = [own, &inline_modules(code, at)].concat();
        let mut tail = &code[at..];
        while let Some(rest) = tail.strip_prefix("super::") {
            base.pop();
            tail = rest;
        }
        found.extend(leaves(tail, &base).into_iter().map(|path| (at, path)));
    }
    found
}

/// The names of the `mod name { ... }` blocks around `at`, outermost first.
fn inline_modules(code: &str, at: usize) -> Vec<String> {
    words(code, "mod")
        .take_while(|start| *start < at)
        .filter(|start| {
            end_of_head(code, *start)
                .is_some_and(|head| code.as_bytes()[head] == b'{' && head < at && at < matching(code, head))
        })
        .map(|start| identifier(code[start + "mod".len()..].trim_start()).to_string())
        .collect()
}

/// The paths of a use tree (`a::{b, c::d}`) or of an expression's path (`a::b(...)`).
fn leaves(tree: &str, base: &[String]) -> Vec<Vec<String>> {
    let tree = tree.trim_start();
    if tree.starts_with('{') {
        let inner = &tree[1..matching(tree, 0)];
        return parts(inner).into_iter().flat_map(|part| leaves(part, base)).collect();
    }
    let name = identifier(tree);
    let path =
        if name.is_empty() || name == "self" { base.to_vec() } else { [base, &[name.to_string()]].concat() };
    match tree[name.len()..].trim_start().strip_prefix("::") {
        Some(rest) if !name.is_empty() => leaves(rest, &path),
        _ => vec![path],
    }
}

/// Splits at the commas that stand in no inner bracket.
fn parts(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_i32, 0, Vec::new());
    for (at, byte) in list.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&list[start..]);
    parts.into_iter().filter(|part| !part.trim().is_empty()).collect()
}

fn identifier(text: &str) -> &str {
    let end = text.bytes().position(|byte| !is_word(byte)).unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: &str = "
| Layer | Module | Owns |
|---|---|---|
| 0 | `secret` | keys |
| 1 | `nbd::wire` | types |
| 1 | `block` | what is served |
| 1 | `kms` | KMS |
| 2 | `volume` | sectors |
| 3 | `nbd::server` | connections |
| 6 | `config`, `cli`, `main.rs` | flags |

| Module | Must not know | Why |
|---|---|---|
| `nbd::server` | `kms`, `secret`, `volume` | ... |
| `kms` | `block`, `volume` | ... |
";

    fn findings(path: &str, text: &str) -> Vec<String> {
        Layers::parse(TABLES).expect("good tables").check(&Source::new(path, text))
    }

    #[test]
    fn lower_layers_may_be_used() {
        for (path, text) in [
            ("src/volume.rs", "use crate::block::{BlockDevice, Error};\nuse crate::kms::{self, aws::X};"),
            ("src/volume/fill.rs", "use super::Volume; fn f() { super::super::secret::wipe() }"),
            ("src/kms/aws/client.rs", "use super::super::context; use super::*; use aws_sdk_kms::Client;"),
            ("src/nbd/server.rs", "use crate::nbd::wire::Request; use super::wire; use crate::{nbd, block};"),
            ("src/nbd/server/session.rs", "use super::super::wire; use crate::nbd::server::x;"),
            ("src/cli.rs", "use crate::config::Config;"),
            ("src/main.rs", "use sealblk::cli;"),
            ("src/secret.rs", "use aws_lc_rs::x; mod inner { use super::y; }"),
            ("src/block.rs", "// crate::volume\nconst X: &str = \"crate::volume\";"),
            ("src/block.rs", "#[cfg(test)]\nmod tests { use crate::volume::X; }"),
            ("src/nbd.rs", "pub mod wire; pub use self::server::X; use crate::nbd::wire::Y;"),
            ("src/block.rs", "mod aws_lc; use aws_lc::X;"),
            ("src/lib.rs", "pub mod volume;"),
        ] {
            assert_eq!(findings(path, text), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn others_may_not() {
        for (path, text) in [
            ("src/block.rs", "use crate::volume::Volume;"),
            ("src/block.rs", "use crate::kms::Key;"),
            ("src/block.rs", "use crate::{secret, volume::{A, B}};"),
            ("src/block.rs", "use crate::{\n    secret::{A, B},\n    nbd::server,\n};"),
            ("src/block.rs", "fn f() { crate::volume::g::<u8>() }"),
            ("src/block.rs", "use super::volume;"),
            ("src/block.rs", "mod inner { use super::super::volume; }"),
            ("src/block/file.rs", "use super::super::volume::X;"),
            ("src/block.rs", "use crate as all;"),
            ("src/nbd/wire.rs", "use super::server::X;"),
            ("src/nbd/server.rs", "use crate::secret::DataKey;"),
            ("src/nbd/server.rs", "use crate::volume::Volume;"),
            ("src/kms/local.rs", "use crate::block::X;"),
            ("src/volume.rs", "use aws_sdk_kms::Client;"),
            ("src/config.rs", "use crate::cli::X;"),
            ("src/engine.rs", "fn f() {}"),
            ("src/nbd/transport.rs", "fn f() {}"),
            ("src/nbd.rs", "use crate::block::X;"),
        ] {
            assert_eq!(findings(path, text).len(), 1, "{path}: {text}");
        }
    }

    #[test]
    fn tables_that_do_not_fit_are_refused() {
        assert!(Layers::parse("no table").is_err());
        assert!(Layers::parse(&TABLES.replace("| `kms` | `block`", "| `kms` | `blocks`")).is_err());
    }
}

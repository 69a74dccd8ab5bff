//! The configuration file: what it settles, what goes before it, and what is refused.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::certificates::Certificates;
use crate::support::{Lab, assert_fails, assert_succeeds, entries, finish, text};

/// A configuration file, whatever the umask.
fn write(lab: &Lab, content: &str) -> PathBuf {
    let path = lab.path("sealblk.toml");
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    path
}

/// `sealblk ARGS` with this configuration.
fn configured(lab: &Lab, content: &str, args: &[&str]) -> Command {
    let mut command = lab.sealblk(args);
    command.env("SEALBLK_CONFIG", write(lab, content));
    command
}

/// The teardown record of a volume that ends at once.
fn record(mut command: Command) -> Value {
    command.args(["--", "true"]);
    let output = finish(command);
    assert_succeeds(&output);
    serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap()
}

/// The user's pairs in a record.
fn users(record: &Value) -> Value {
    let pairs = record["encryption_context"].as_object().unwrap().iter();
    pairs.filter(|(key, _)| !key.starts_with("sealblk:")).map(|(k, v)| (k.clone(), v.clone())).collect()
}

const RUN: [&str; 4] = ["run", "--json", "--size", "1M"];

const FILE: &str = "\
[encryption]
key = \"alias/of-the-file\"
context = { team = \"file\", stage = \"test\" }

[defaults]
backing = \"memory\"
sector_size = 512
";

fn with_keys(lab: &Lab) {
    for alias in ["alias/of-the-file", "alias/of-the-flag"] {
        assert_succeeds(&finish(lab.sealblk(["kms", "create", "--alias", alias])));
    }
}

fn key_of(lab: &Lab, alias: &str) -> Value {
    let output = finish(lab.sealblk(["kms", "list", "--json"]));
    let keys = text(&output.stdout);
    let mut keys = keys.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    keys.find(|key| key["aliases"].as_array().unwrap().contains(&alias.into())).unwrap()["arn"].clone()
}

#[test]
fn a_volume_takes_its_settings_from_the_file() {
    let lab = Lab::new();
    with_keys(&lab);
    let record = record(configured(&lab, FILE, &RUN));
    assert_eq!(record["kms_key"], key_of(&lab, "alias/of-the-file"));
    assert_eq!(users(&record), json!({ "team": "file", "stage": "test" }));
    assert_eq!(record["sector_size"], 512);
    assert!(record["backing"]["place"].to_string().contains("memory"), "{record}");
    let events = lab.events();
    let made = events.iter().find(|event| event["eventName"] == "Decrypt").expect("a Decrypt");
    assert_eq!(made["requestParameters"]["encryptionContext"]["team"], "file", "{made}");
}

#[test]
fn a_flag_goes_before_a_variable_and_that_before_the_file() {
    let lab = Lab::new();
    with_keys(&lab);
    let mut by_variable = configured(&lab, FILE, &RUN);
    by_variable.env("SEALBLK_KEY", "alias/of-the-flag").env("SEALBLK_CONTEXT", "job:7,team:variable");
    let by_variable = record(by_variable);
    assert_eq!(by_variable["kms_key"], key_of(&lab, "alias/of-the-flag"));
    assert_eq!(
        users(&by_variable),
        json!({ "team": "variable", "job": "7" }),
        "the file's context is gone as a whole"
    );
    assert_eq!(by_variable["sector_size"], 512, "and the rest is the file's");

    let mut by_flag = configured(&lab, FILE, &RUN);
    by_flag.env("SEALBLK_KEY", "alias/of-nobody").env("SEALBLK_CONTEXT", "team:variable");
    by_flag.args(["--key", "alias/of-the-flag", "--context", "team=flag", "--sector-size", "4096"]);
    let by_flag = record(by_flag);
    assert_eq!(by_flag["kms_key"], key_of(&lab, "alias/of-the-flag"));
    assert_eq!(users(&by_flag), json!({ "team": "flag" }));
    assert_eq!(by_flag["sector_size"], 4096);
    let contexts: Vec<Value> = lab
        .events()
        .iter()
        .filter(|event| event["eventName"] == "Decrypt")
        .map(|event| event["requestParameters"]["encryptionContext"]["team"].clone())
        .collect();
    assert_eq!(contexts, ["variable", "flag"]);
}

#[test]
fn an_empty_value_goes_back() {
    const AWS: &str = "\
[kms]
provider = \"aws\"
endpoint = \"http://127.0.0.1:9\"

[encryption]
key = \"arn:aws:kms:eu-west-1:111122223333:key/00000000-0000-0000-0000-000000000000\"
context = \"team:file\"
grantee = \"arn:aws:iam::111122223333:role/host\"
retiring = \"arn:aws:iam::111122223333:role/provisioner\"
";
    let lab = Lab::new();
    let mut flag = configured(&lab, AWS, &RUN);
    flag.args(["--key", ""]);
    let flag = record(flag);
    assert_eq!(flag["provider"], "local");
    assert_eq!(flag["kms_key"], key_of(&lab, "alias/sealblk"));
    assert_eq!(users(&flag), json!({ "team": "file" }), "the context is inherited all the same");

    let mut variable = configured(&lab, AWS, &RUN);
    variable.env("SEALBLK_KEY", "").env("SEALBLK_CONTEXT", "").env("SEALBLK_KMS", "aws");
    let variable = record(variable);
    assert_eq!((&variable["kms_key"], users(&variable)), (&flag["kms_key"], json!({})));

    let file = record(configured(&lab, "kms.provider = 'aws'\nencryption.key = ''\n", &RUN));
    assert_eq!(file["kms_key"], flag["kms_key"]);

    let mut without = configured(&lab, AWS, &RUN);
    without.args(["--config", ""]);
    assert_eq!(record(without)["kms_key"], flag["kms_key"], "no file, no key of the file");
}

fn refused(content: &str, words: &[&str]) {
    let lab = Lab::new();
    for args in [&RUN[..], &["gc"], &["kms", "list"], &["config"]] {
        assert_fails(&finish(configured(&lab, content, args)), 2, words);
    }
    assert!(entries(&lab.state()).is_empty(), "nothing was made");
}

#[test]
fn a_file_that_is_wrong_stops_every_command_that_would_use_it() {
    refused("\n[encryption]\nkeys = 'alias/a'\n", &["sealblk.toml, line 3", "`keys`", "`key`, `context`"]);
    refused("[defaults]\ndiscard = 'on'\n", &["sealblk.toml, line 2", "defaults.discard", "a boolean"]);
    refused("log = 'warn'\nlog = 'info'\n", &["line 2", "duplicate key"]);
    let lab = Lab::new();
    assert_succeeds(&finish(configured(&lab, "not TOML", &["completions", "bash"])));
}

/// By a value that only one command uses: that one, and the one that is asked first.
#[test]
fn what_run_would_refuse_is_refused_before() {
    let lab = Lab::new();
    for (content, code, words) in [
        ("[tls]\ncert = '/c'\n", 2, &["sealblk.toml, line 2: tls.cert: ", "tls.key"][..]),
        ("[tls]\nmode = 'on'\n", 2, &["sealblk.toml, line 2: tls.mode: ", "tls.cert and tls.key"]),
        ("[tls]\nclient_ca = '/a'\n", 2, &["sealblk.toml, line 2: tls.client_ca: "]),
        ("[tls]\ncert = '/absent/c'\nkey = '/k'\n", 8, &["cannot read TLS certificate /absent/c"]),
        ("[tls]\nallow = ['*.example']\n", 2, &["sealblk.toml, line 2: tls.allow: ", "wildcard"]),
        ("[sockets]\nmode = 660\n", 2, &["sealblk.toml, line 2: sockets.mode: ", "\"0660\" with its quotes"]),
        (
            "\n[sockets]\nowner = 'no such user'\n",
            2,
            &["sealblk.toml, line 3: sockets.owner: ", "no such user"],
        ),
        (
            "[sockets]\nallow_users = ['4294967295']\n",
            2,
            &["sealblk.toml, line 2: sockets.allow_users: ", "out of range"],
        ),
        (
            "[watch]\ninterval = 'off'\nwhen_key_unusable = 'freeze'\n",
            2,
            &["--when-key-unusable has nothing to act on with --watch-key off"],
        ),
        ("[watch]\nwhen_key_unusable = 'detach'\ninterval = 'off'\n", 2, &["nothing to act on"]),
        ("[defaults]\nbacking = '/dev/null'\n", 7, &["/dev/null"]),
    ] {
        let [run, config] = [&RUN[..], &["config"]].map(|args| finish(configured(&lab, content, args)));
        assert_fails(&run, code, words);
        assert_fails(&config, code, words);
        assert_eq!(text(&run.stderr), text(&config.stderr), "in the same words");
        assert!(!text(&run.stderr).contains("--tls-"), "no flag was given: {}", text(&run.stderr));
    }
}

#[test]
fn a_certificate_makes_tls_required_and_the_settings_say_so() {
    let lab = Lab::new();
    let good = Certificates::new(&lab).good;
    let mode = |content: &str| {
        let output = finish(configured(&lab, content, &["config"]));
        assert_succeeds(&output);
        let said = text(&output.stdout);
        let row = said.lines().find(|line| line.starts_with("tls.mode ")).unwrap();
        row.split_whitespace().nth(1).unwrap().to_owned()
    };
    let pair =
        format!("cert = {:?}\nkey = {:?}\n", good.join("server-cert.pem"), good.join("server-key.pem"));
    assert_eq!(mode(""), "off");
    assert_eq!(mode(&format!("[tls]\n{pair}")), "require");
    assert_eq!(mode(&format!("[tls]\nmode = 'on'\n{pair}")), "on");
    assert_eq!(mode(&format!("[tls]\nmode = 'off'\n{pair}")), "off");
}

#[test]
fn a_file_that_cannot_be_trusted_or_read() {
    let lab = Lab::new();
    let load =
        |path: PathBuf| -> Output { finish(lab.sealblk(["config", "--config", path.to_str().unwrap()])) };
    let path = write(&lab, FILE);
    assert_succeeds(&load(path.clone()));
    for mode in [0o664, 0o646] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let words = ["sealblk.toml", &format!("{mode:04o}"), "chmod go-w"];
        assert_fails(&load(path.clone()), 2, &words);
    }
    assert_fails(&load(lab.path("missing.toml")), 2, &["missing.toml", "no such file", "--config"]);
    assert_fails(&load(lab.path("run")), 2, &["not a regular file"]);
    assert_fails(&load(write(&lab, &"#".repeat((1 << 20) + 1))), 2, &["1 MiB"]);
    std::fs::write(&path, b"# fine\n# \xff").unwrap();
    assert_fails(&load(path), 2, &["line 2", "UTF-8"]);
}

#[test]
fn the_settings_in_force_and_where_each_comes_from() {
    let lab = Lab::new();
    let mut command = configured(&lab, FILE, &["config", "--json", "--region", "eu-west-1"]);
    command.env("SEALBLK_KMS", "aws");
    let output = finish(command);
    assert_succeeds(&output);
    let rows: Vec<Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let file = |line: u32| json!(format!("{}:{line}", lab.path("sealblk.toml").display()));
    for (name, value, source) in [
        ("state_dir", json!(lab.state()), json!("environment SEALBLK_STATE_DIR")),
        ("log", json!("warn"), json!("default")),
        ("kms.provider", json!("aws"), json!("environment SEALBLK_KMS")),
        ("kms.region", json!("eu-west-1"), json!("flag --region")),
        ("encryption.key", json!("alias/of-the-file"), file(2)),
        ("encryption.context", json!({ "team": "file", "stage": "test" }), file(3)),
        ("defaults.sector_size", json!(512), file(7)),
        ("defaults.discard", json!(true), json!("default")),
        ("defaults.flush", json!("honour"), json!("default")),
        ("kms.deadline", json!(60), json!("default")),
    ] {
        let row = rows.iter().find(|row| row["setting"] == name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!((&row["value"], &row["source"]), (&value, &source), "{name}");
    }
    let output = finish(configured(&lab, FILE, &["config", "--key", ""]));
    let said = text(&output.stdout);
    let row = said.lines().find(|line| line.starts_with("encryption.key")).unwrap();
    assert!(row.contains("alias/sealblk") && row.ends_with("empty key: flag --key"), "{said}");
}

#[test]
fn state_and_log_come_from_the_file_too() {
    let lab = Lab::new();
    let state = lab.path("of-the-file");
    let file = format!("state_dir = {state:?}\nlog = 'error'\n[defaults]\nbacking = 'memory'\n");
    let mut command = configured(&lab, &file, &RUN);
    command.env_remove("SEALBLK_STATE_DIR");
    assert_eq!(record(command)["provider"], "local");
    assert!(state.join("kms").is_dir() && !lab.state().exists());
}

use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/x.toml"), text.into())
}

fn refused(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

fn pairs(config: &Config) -> Vec<(&str, &str)> {
    config.settings.encryption.context.as_ref().expect("a context").get_ref().0.pairs().collect()
}

#[test]
fn an_empty_file_settles_nothing() {
    let config = parse("").expect("fine");
    assert!(config.settings.kms.provider.is_none() && config.settings.encryption.key.is_none());
    assert_eq!(config.path(), Some(Path::new("/etc/x.toml")));
}

#[test]
fn the_documented_example_is_valid_and_so_is_each_line_that_it_comments_out() {
    let example = include_str!("../../docs/sealblk.toml");
    parse(example).expect("as it stands");
    let all: Vec<&str> = example.lines().map(|line| line.strip_prefix("#:").unwrap_or(line)).collect();
    assert!(all.len() > example.lines().filter(|line| !line.starts_with("#:")).count());
    let config = parse(&all.join("\n")).expect("with every setting");
    let settings = &config.settings;
    let watch = settings.watch.interval.as_ref().expect("an interval");
    assert_eq!(*watch.get_ref(), Interval::Every(Duration::from_secs(60)));
    assert!(settings.kms.deadline.is_some() && settings.defaults.cipher.is_some());
    assert!(
        settings.state_dir.is_some() && settings.log.is_some() && settings.encryption.preflight.is_some()
    );
}

#[test]
fn sockets_limits_and_tls() {
    let text = "[sockets]\nmode = '0660'\nallow_users = ['backup', '1000']\n[limits]\nconnections = 5\n[tls]\nmode = 'on'";
    let settings = parse(text).expect("fine").settings;
    assert_eq!(*settings.sockets.mode.expect("a mode").get_ref(), SocketMode(0o660));
    assert_eq!(settings.sockets.allow_users.expect("users").get_ref().0, ["backup", "1000"]);
    assert_eq!(*settings.limits.connections.expect("a limit").get_ref(), Count(5));
    assert_eq!(*settings.tls.mode.expect("a mode").get_ref(), TlsMode::On);
    for (wrong, word) in [
        ("[sockets]\nmode = '0999'", "octal"),
        ("[sockets]\nmode = '1777'", "0777"),
        ("[sockets]\nallow_users = 'root'", "sequence"),
        ("[limits]\nconnections = 0", "from 1 to 100000"),
        ("[limits]\nconnection = 1", "connections_per_peer"),
        ("[tls]\nmode = 'maybe'", "require"),
        ("[tls]\nallow = []", "empty list"),
        ("[tls]\nallow = ['']", "empty"),
        ("[tls]\ncert = 'relative.pem'", "absolute"),
        ("[sockets]\nmode = 660", "\"0660\" with its quotes"),
        ("[sockets]\nmode = 0o660", "\"0660\" with its quotes"),
        ("[tls]\nallow = ['*.example']", "wildcard"),
        ("[tls]\nallow = ['fine.example', ' x']", "spaces around"),
    ] {
        assert!(refused(wrong).contains(word), "{wrong}: {}", refused(wrong));
    }
}

#[test]
fn a_mode_is_octal_with_and_without_a_zero() {
    for text in ["660", "0660", "00660"] {
        let settings = parse(&format!("[sockets]\nmode = '{text}'")).expect(text).settings;
        assert_eq!(*settings.sockets.mode.expect("a mode").get_ref(), SocketMode(0o660), "{text}");
    }
}

#[test]
fn names_of_clients_are_such_as_can_be_met() {
    let name = |text: &str| text.parse::<ClientName>().map(|ClientName(name)| name);
    for fine in [
        "worker.example",
        "spiffe://example/worker",
        "urn:uuid:1",
        "worker@example.org",
        "the worker",
        "10.0.0.1.example",
        "Doe, Jane",
        "Doe,Jane",
        "https://example/a.b,c.d",
        "Example Inc.",
        "Example Ltd., London",
    ] {
        assert_eq!(name(fine).as_deref(), Ok(fine));
    }
    for (wrong, why) in [
        ("", "empty"),
        (" ", "spaces"),
        ("worker.example ", "spaces"),
        ("*.example", "wildcard"),
        ("10.0.0.1", "IP address"),
        ("::1", "IP address"),
        ("[::1]", "IP address"),
        ("a\nb", "control"),
        ("DNS:worker.example", "\"DNS:\""),
        ("dns:worker.example", "\"dns:\""),
        ("URI:spiffe://example/worker", "\"URI:\""),
        ("email:worker@example.org", "\"email:\""),
        ("IP Address:10.0.0.1", "is an IP address"),
        ("CN=worker", "\"CN=\""),
        ("CN = worker", "\"CN =\""),
        ("/CN=worker", "\"/CN=\""),
        ("worker.example.", "dot"),
        (".example", "dot"),
        ("a.example,b.example", "--tls-allow for each"),
        ("a.example, b.example", "--tls-allow for each"),
    ] {
        let said = name(wrong).expect_err(wrong);
        assert!(said.contains(why), "{wrong:?}: {said}");
    }
}

#[test]
fn a_setting_knows_its_line() {
    let config = parse("log = 'info'\n\n[encryption]\n# a comment\nkey = 'alias/a'\n").expect("fine");
    let key = config.settings.encryption.key.as_ref().expect("a key");
    assert_eq!((key.get_ref().as_str(), config.line(key)), ("alias/a", 5));
    assert_eq!(config.line(config.settings.log.as_ref().expect("a level")), 1);
}

#[test]
fn a_context_in_each_form() {
    for text in [
        "[encryption]\ncontext = 'team:data,job:7'",
        "[encryption]\ncontext = { team = 'data', job = '7' }",
        "[encryption.context]\nteam = 'data'\njob = '7'",
    ] {
        assert_eq!(pairs(&parse(text).expect(text)), [("job", "7"), ("team", "data")], "{text}");
    }
    assert_eq!(pairs(&parse("[encryption.context]\n'a=b' = 'c'").expect("fine")), [("a=b", "c")]);
    assert!(pairs(&parse("[encryption]\ncontext = ''").expect("fine")).is_empty());
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_what_is_allowed() {
    for (text, words) in [
        ("\n\ncolour = 'red'", &["/etc/x.toml, line 3", "`colour`", "`state_dir`, `log`"][..]),
        ("[kms]\nregoin = 'eu'", &["line 2", "kms: ", "`regoin`", "`region`"]),
        ("[volume]\n", &["line 1", "`volume`", "`defaults`"]),
        ("[kms]\n\nregion = 5", &["line 3", "kms.region", "integer `5`", "a string"]),
        ("kms = 'aws'", &["line 1", "kms: ", "a table"]),
        ("log = 'loud'", &["line 1", "log: ", "\"loud\"", "`debug`"]),
        ("state_dir = 'state'", &["state_dir", "absolute"]),
        ("[kms]\nprovider = 'gcp'", &["line 2", "kms.provider", "`aws`"]),
        ("[kms]\nprovider = 'local:kms'", &["kms.provider", "absolute"]),
        ("[kms]\nendpoint = ''", &["kms.endpoint", "empty"]),
        ("[kms]\nendpoint = \"a\\u001b\"", &["kms.endpoint", "control"]),
        ("[kms]\nattempt_timeout = 301", &["kms.attempt_timeout", "301", "1 to 300"]),
        ("[kms]\ndeadline = -1", &["kms.deadline", "-1", "1 to 3600"]),
        ("[kms]\ndeadline = '60'", &["kms.deadline", "string \"60\"", "a whole number"]),
        ("[encryption]\npreflight = 'on'", &["encryption.preflight", "a boolean"]),
        ("[encryption]\ncontext = 7", &["encryption.context", "table of strings", "key1:value1"]),
        ("[encryption]\ncontext = 'lonely'", &["encryption.context", "lonely"]),
        ("[encryption.context]\na = '1'\nb = 2", &["line 3", "encryption.context.b", "a string"]),
        ("[encryption.context]\n'sealblk:id' = '1'", &["encryption.context", "reserved"]),
        ("[encryption.context]\na = '1'\nA = '2'", &["encryption.context", "case"]),
        ("[defaults]\nsector_size = 1024", &["line 2", "defaults.sector_size", "4096 nor 512"]),
        ("[defaults]\nbacking = 'disk.img'", &["defaults.backing", "`memory`", "absolute"]),
        (
            "[defaults]\ncipher = 'rot13'",
            &["defaults.cipher", "rot13", "`auto`", "`aws-lc`", "`vaes`", "`portable`"],
        ),
        ("[defaults]\nflush = 'never'", &["defaults.flush", "never", "`honour` or `ignore`"]),
        ("[watch]\ninterval = '1d'", &["watch.interval", "1d", "`off`"]),
        ("[watch]\ninterval = '0s'", &["watch.interval"]),
        ("[watch]\ninterval = '+5s'", &["watch.interval"]),
        ("[watch]\ninterval = '25h'", &["watch.interval", "`24h`"]),
        ("[watch]\ninterval = '99999999999999999999h'", &["watch.interval"]),
        ("[watch]\nwhen_key_unusable = 'panic'", &["watch.when_key_unusable", "`freeze`"]),
        ("log = 'warn'\nlog = 'info'", &["line 2", "duplicate key"]),
        ("[kms]\n[kms]", &["line 2", "duplicate key"]),
        ("log = ", &["line 1"]),
        ("[kms\n", &["line 1"]),
    ] {
        let said = refused(text);
        for word in words {
            assert!(said.contains(word), "{text:?}: {word:?} is missing from {said:?}");
        }
        assert!(!said.contains('\n'), "one line: {said:?}");
    }
}

#[test]
fn control_characters_of_a_file_do_not_reach_the_terminal() {
    let said = refused("\"\\u001b[2J\" = 1");
    assert!(said.contains("\\u{1b}[2J") && !said.contains('\x1b'), "{said:?}");
}

#[test]
fn nesting_without_end_is_refused() {
    for unit in ["[", "{a=", "a."] {
        refused(&format!("log = {}", unit.repeat(100_000)));
        refused(&unit.repeat(100_000));
    }
}

#[test]
fn intervals() {
    let interval = |text: &str| Interval::try_from(text.to_owned());
    assert_eq!(interval("off"), Ok(Interval::Off));
    for (text, seconds) in [("1s", 1), ("60s", 60), ("5m", 300), ("24h", 86_400)] {
        assert_eq!(interval(text), Ok(Interval::Every(Duration::from_secs(seconds))));
    }
}

#[test]
fn a_named_file_must_be_there() {
    let missing = Config::load(Some(Path::new("/nonexistent/x.toml"))).expect_err("no such file").to_string();
    assert!(missing.contains("/nonexistent/x.toml") && missing.contains("no such file"), "{missing}");
    for none in ["", "none"] {
        assert_eq!(Config::load(Some(Path::new(none))).expect("no file").path(), None);
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn nor_one_that_is_nearly_right(lines in prop::collection::vec(prop_oneof![
        "\\[(kms|encryption|encryption\\.context|defaults|watch)\\]",
        "(log|key|context|provider|interval|deadline|sector_size|a|\"\") = (\"[^\"]{0,9}\"|-?[0-9]{1,20}|true|\\{a = \"b\"\\}|\\[1, \\{|'''|1e400|1979-05-27)",
        "[\\[\\]{}='\"#.,a\\\\]{0,20}",
    ], 0..12)) {
        if let Err(error) = parse(&lines.join("\n")) {
            prop_assert!(error.to_string().starts_with("/etc/x.toml, line "));
        }
    }
}

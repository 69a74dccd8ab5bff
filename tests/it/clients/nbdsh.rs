//! nbdsh, libnbd in Python: each request and each option by itself.

use serde_json::Value;

use super::{Served, Way, peer, run};

const CONNECT: &str = include_str!("../scripts/connect.py");

/// Runs the scripts, one after the other, with `environment`.
fn nbdsh(scripts: &[&str], environment: &[(&str, &str)]) {
    let mut command = peer("nbdsh");
    command.envs(environment.iter().copied());
    run(command, scripts.iter().flat_map(|script| ["--command", script]));
}

/// Every request by `way`, with simple, structured and extended replies.
fn every_request(way: Way, sector: &str) {
    for replies in ["simple", "structured", "extended"] {
        let served = Served::start(way, &["--size", "6G", "--sector-size", sector]);
        let environment = [("URI", served.uri()), ("REPLIES", replies.into()), ("SECTOR", sector.into())];
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
        nbdsh(&[CONNECT, include_str!("../scripts/commands.py")], &environment);
        served.stop();
    }
}

#[test]
fn every_request_over_unix() {
    every_request(Way::Unix, "512");
    every_request(Way::Unix, "4096");
}

#[test]
fn every_request_over_tcp() {
    every_request(Way::Tcp, "4096");
}

#[test]
fn every_request_under_tls() {
    every_request(Way::Tls, "4096");
}

#[test]
fn a_volume_that_takes_no_writes() {
    for way in Way::ALL {
        for replies in ["simple", "structured", "extended"] {
            let served = Served::start(way, &["--size", "1M", "--read-only"]);
            let scripts = [CONNECT, include_str!("../scripts/read_only.py")];
            nbdsh(&scripts, &[("URI", &served.uri()), ("REPLIES", replies)]);
            let info = run(peer("nbdinfo"), ["--json", &served.uri()]);
            let info: Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["exports"][0]["is_read_only"], true);
            assert_eq!(info["exports"][0]["can_trim"], false, "{info}");
            let record = served.stop();
            assert_eq!(record["bytes_written"], 0);
        }
    }
}

#[test]
fn every_option() {
    for way in Way::ALL {
        let exports = ["--export", "first", "--export", "second", "--read-only-export", "fixed"];
        let served = Served::start(way, &[&["--size", "16M"], &exports[..]].concat());
        nbdsh(&[include_str!("../scripts/options.py")], &[("URI", &served.uri())]);
        served.stop();
    }
}

#[test]
fn tls_by_hand() {
    let served = Served::start(Way::Tls, &["--size", "16M"]);
    let certificates = served.certificates.display().to_string();
    let environment = [("PORT", served.port()), ("CERTIFICATES", &certificates)];
    nbdsh(&[include_str!("../scripts/starttls.py")], &environment);
    served.stop();
}

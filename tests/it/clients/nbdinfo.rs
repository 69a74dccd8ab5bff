//! nbdinfo, by which users look at an export.

use serde_json::Value;

use super::{Served, Way, peer, run};

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&run(peer("nbdinfo"), [&["--json"], args].concat())).unwrap()
}

#[test]
fn describes_the_export() {
    for way in Way::ALL {
        let served = Served::start(way, &["--size", "64M", "--export", "scratch", "--sector-size", "512"]);
        let all = json(&[&served.uri()]);
        assert_eq!((&all["protocol"], &all["TLS"]), (&"newstyle-fixed".into(), &(way == Way::Tls).into()));
        assert_eq!((&all["structured"], &all["extended"]), (&true.into(), &true.into()), "{all}");
        let export = &all["exports"][0];
        assert_eq!(export["export-name"], "scratch", "{all}");
        assert_eq!(export["export-size"], 64 << 20);
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
        let sizes = ["minimum", "preferred", "maximum"].map(|which| &export[format!("block_size_{which}")]);
        assert_eq!(sizes, [&1.into(), &512.into(), &Value::from(64 << 20)]);
        for (what, is) in [
            ("is_read_only", false),
            ("is_rotational", false),
            ("can_cache", true),
            ("can_df", true),
            ("can_fast_zero", true),
            ("can_flush", true),
            ("can_fua", true),
            ("can_multi_conn", true),
            ("can_trim", true),
            ("can_zero", true),
        ] {
            assert_eq!(export[what], is, "{what}");
        }
        let description = export["description"].as_str().unwrap();
        assert!(description.contains(served.volume.serving["volume"].as_str().unwrap()), "{description}");
        served.stop();
    }
}

#[test]
fn lists_every_export() {
    let exports = ["--export", "one", "--read-only-export", "two", "--export", "three"];
    for way in Way::ALL {
        let served = Served::start(way, &[&["--size", "1M"], &exports[..]].concat());
        let all = json(&["--list", &served.uri()]);
        let found: Vec<_> = all["exports"].as_array().unwrap().iter().collect();
        let names_and_read_only = found.iter().map(|export| {
            (export["export-name"].as_str().unwrap(), export["is_read_only"].as_bool().unwrap())
        });
        // Those that may be written to come first.
        assert_eq!(
            names_and_read_only.collect::<Vec<_>>(),
            [("one", false), ("three", false), ("two", true)]
        );
        served.stop();
    }
}

/// Holes and data as they were written, to the sector.
#[test]
fn maps_holes_and_data() {
    for way in Way::ALL {
        let served = Served::start(way, &["--size", "64M"]);
        served.qemu_io(&["write -P 1 1M 192k", "write -P 2 5M 4k", "write -z -u 1088k 64k"]);
        let all: Value =
            serde_json::from_str(&run(peer("nbdinfo"), ["--map", "--json", &served.uri()])).unwrap();
        let map: Vec<(u64, u64, u64)> = all
            .as_array()
            .unwrap()
            .iter()
            .map(|extent| ["offset", "length", "type"].map(|key| extent[key].as_u64().unwrap()))
            .map(|[offset, length, kind]| (offset, length, kind))
            .collect();
        let (data, hole) = (0, 3);
        let expected = [
            (0, 1024, hole),
            (1024, 64, data),
            (1088, 64, hole),
            (1152, 64, data),
            (1216, 3904, hole),
            (5120, 4, data),
            (5124, 60_412, hole),
        ];
        assert_eq!(map, expected.map(|(offset, length, kind)| (offset << 10, length << 10, kind)));
        let totals = run(peer("nbdinfo"), ["--map", "--totals", &served.uri()]);
        let totals: Vec<Vec<&str>> = totals.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            totals,
            [vec!["135168", "0.2%", "0", "data"], vec!["66973696", "99.8%", "3", "hole,zero"]]
        );
        served.stop();
    }
}

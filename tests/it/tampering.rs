//! Envelopes that were damaged, or changed by somebody who knows the format and not the data key.

use std::collections::BTreeMap;
use std::process::Output;

use sealblk::envelope::{Document, Flaw};
use serde_json::{Value, json};

use crate::enveloped::{Pair, facts, kms};
use crate::leavings::live_grants;
use crate::support::{Lab, assert_fails, assert_succeeds, finish, text};

/// A lab with an envelope that was opened once, so that it is sealed; its token travels in it, so that it has
/// every field.
fn sealed(args: &[&str]) -> Lab {
    let lab = unsealed(args);
    assert_succeeds(&run(&lab, &[]));
    lab
}

fn unsealed(args: &[&str]) -> Lab {
    let lab = Lab::new();
    let fixed =
        ["provision", "--size", "1M", "--context", "team=data", "--token", "envelope", "-o", "envelope"];
    assert_succeeds(&finish(lab.sealblk([&fixed, args].concat())));
    lab
}

fn run(lab: &Lab, args: &[&str]) -> Output {
    finish(lab.sealblk([&["run", "--envelope", "envelope"], args, &["--", "true"]].concat()))
}

fn value_of(document: &Document) -> Value {
    serde_json::to_value(document).unwrap()
}

/// A cosmic ray: every bit of the file once. The digests find it, or it is in the MAC, or it means nothing.
#[test]
fn every_bit() {
    let lab = sealed(&[]);
    let file = std::fs::read(lab.path("envelope")).unwrap();
    let original = value_of(&Document::parse(std::str::from_utf8(&file).unwrap()).unwrap());
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for bit in 0..8 * file.len() {
        let mut damaged = file.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let Ok(damaged) = std::str::from_utf8(&damaged) else {
            *seen.entry("not text").or_default() += 1;
            continue;
        };
        let kind = match Document::parse(damaged) {
            Err(flaw) => named(&flaw, &original),
            Ok(document) => {
                let mut value = value_of(&document);
                if value == original {
                    // RFC 3339 knows more than one letter there.
                    assert!(matches!(file[bit / 8], b'T' | b'Z'), "bit {bit}");
                    "means the same"
                } else {
                    // The next test is about that.
                    value["mac"] = original["mac"].clone();
                    assert_eq!(value, original, "bit {bit}");
                    "another mac"
                }
            }
        };
        *seen.entry(kind).or_default() += 1;
    }
    println!("{} bits: {seen:?}", 8 * file.len());
    assert!(seen["a digest"] > seen["another mac"] && seen["another mac"] > 0, "{seen:?}");
}

/// What kind of flaw it is; panics unless its text says where it is.
fn named(flaw: &Flaw, original: &Value) -> &'static str {
    let said = flaw.to_string();
    match flaw {
        Flaw::Form(_) => {
            assert!(said.starts_with("it cannot be read: ") && said.contains(" line "), "{said}");
            "not the form"
        }
        Flaw::Format(_) => "another format",
        Flaw::Digest(_) => {
            let names_field = original.as_object().unwrap().keys().any(|field| said.contains(field));
            assert!(names_field, "{said}");
            "a digest"
        }
        Flaw::Value { field, .. } => {
            assert!(said.contains(field), "{said}");
            "a value"
        }
    }
}

#[test]
fn damaged_files_are_told_apart_from_unreadable_ones() {
    let lab = sealed(&[]);
    let file = std::fs::read(lab.path("envelope")).unwrap();
    let at = |word: &str| file.windows(word.len()).position(|window| window == word.as_bytes()).unwrap();
    // 1048576 becomes 3048576, and then no text at all.
    let size = at("1048576");
    let (wrapped, mac) = (at("\"wrapped\": \"") + 20, at("\"mac\": \"") + 8);
    // In base64 as in hexadecimal.
    let other_digit = |place: usize| if file[place] == b'1' { b'2' } else { b'1' };
    for (place, byte, words) in [
        (size, b'3', "its size does not fit its digest"),
        (size, b'1' | 1 << 7, "not text"),
        (at("\"life\""), b' ', "cannot be read"),
        (wrapped, other_digit(wrapped), "slots"),
        (mac, other_digit(mac), "mac"),
    ] {
        let mut damaged = file.clone();
        damaged[place] = byte;
        std::fs::write(lab.path("envelope"), &damaged).unwrap();
        assert_fails(&run(&lab, &[]), 6, &["envelope", words]);
        assert_eq!(std::fs::read(lab.path("envelope")).unwrap(), damaged);
    }
    assert!(lab.journals().is_empty());
}

/// Writes the envelope with one field changed, and digests that fit.
pub(crate) fn change(lab: &Lab, original: &Value, pointer: &str, to: Value) -> bool {
    let mut changed = original.clone();
    *changed.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = to;
    // Not every value can be read back, and then there is nothing to write.
    let Ok(mut document) = serde_json::from_value::<Document>(changed) else { return false };
    std::fs::write(lab.path("envelope"), document.render()).unwrap();
    true
}

/// An envelope, one of another volume, and a host that may decrypt without a grant: nothing keeps it out but the
/// encryption context and the MAC.
struct Adversary {
    lab: Lab,
    original: Value,
    theirs: Value,
}

impl Adversary {
    fn new(lab: Lab) -> Self {
        kms(&lab, &["create", "--alias", "alias/next"]);
        let other = ["provision", "--size", "1M", "-o", "other", "--key", "alias/next", "--token", "none"];
        assert_succeeds(&finish(lab.sealblk(other)));
        let read = |name| serde_json::from_slice(&std::fs::read(lab.path(name)).unwrap()).unwrap();
        Self { original: read("envelope"), theirs: read("other"), lab }
    }

    fn may_decrypt(self) -> Self {
        let allow = json!({"Effect": "Allow", "Action": "kms:Decrypt", "Resource": "*"});
        let file = self.lab.path("policy.json");
        let policy = json!({"Version": "2012-10-17", "Statement": [allow]});
        std::fs::write(&file, policy.to_string()).unwrap();
        kms(&self.lab, &["put-user-policy", "host", file.to_str().unwrap()]);
        self
    }

    fn try_with(&self, pointer: &str, to: &Value, args: &[&str]) -> Output {
        assert!(change(&self.lab, &self.original, pointer, to.clone()), "{pointer} {to}");
        run(&self.lab, args)
    }

    /// Refused with this exit code and these words, and the envelope is not touched.
    fn refused(&self, pointer: &str, to: &Value, code: i32, words: &str) {
        assert!(change(&self.lab, &self.original, pointer, to.clone()), "{pointer} {to}");
        let before = std::fs::read(self.lab.path("envelope")).unwrap();
        println!("{pointer}: {to}");
        assert_fails(&run(&self.lab, &["--kms", "local"]), code, &[words]);
        assert_eq!(std::fs::read(self.lab.path("envelope")).unwrap(), before);
    }

    /// Fields that the encryption context binds, or that are the wrapped key.
    fn bound(&self) -> [(&'static str, Value); 8] {
        let slot = &self.theirs["slots"][0];
        [
            ("/volume", json!("vol-0123456789abcdef0")),
            ("/sector_size", json!(512)),
            ("/size", json!(2 << 20)),
            ("/context/team", json!("date")),
            ("/context", json!({})),
            ("/slots/0/key", slot["key"].clone()),
            ("/slots/0/wrapped", slot["wrapped"].clone()),
            ("/slots/0/wrapped", json!("AAAA")),
        ]
    }

    /// Fields that only the MAC covers.
    fn covered(&self) -> [(&'static str, Value); 10] {
        let (own, their) = (&self.original["slots"][0], &self.theirs["slots"][0]);
        [
            ("/created", json!("2020-01-01T00:00:00Z")),
            ("/slots/0/material", json!("0")),
            ("/slots/0/material", Value::Null),
            ("/slots/0/grant/id", their["grant"]["id"].clone()),
            ("/slots/0/grant/name", json!("other")),
            ("/slots/0/grant/grantee", json!("arn:aws:iam::111122223333:user/mallory")),
            ("/slots/0/grant/retiring", json!("arn:aws:iam::111122223333:user/mallory")),
            ("/slots/0/grant/created", json!("2020-01-01T00:00:00Z")),
            ("/slots/0/grant", Value::Null),
            ("/slots", json!([own, their])),
        ]
    }
}

const MAC: &str = "does not fit its mac";
const UNBOUND: &str =
    "volume, cipher, sector_size, size, context, key or wrapped is not what the data key was wrapped with";
const NOT_GRANTED: &str = "its volume, cipher, sector_size, size, context or key is not what was granted";

#[test]
fn whatever_is_changed_in_a_sealed_envelope() {
    let adversary = Adversary::new(sealed(&[])).may_decrypt();
    assert_succeeds(&run(&adversary.lab, &[]));
    for (pointer, to) in adversary.bound() {
        adversary.refused(pointer, &to, 6, UNBOUND);
    }
    for (pointer, to) in adversary.covered() {
        adversary.refused(pointer, &to, 6, MAC);
    }
    adversary.refused("/cipher", &json!("aes-cbc-plain"), 6, "its cipher cannot be");
    adversary.refused("/slots", &json!([]), 6, "its slots cannot be: there is none");
    adversary.refused("/slots/0/provider", &json!("aws"), 2, "no slot of a KMS of kind local");
    adversary.refused("/slots/0/grant/token", &json!("other"), 3, "InvalidGrantToken");
    for mac in ["", "0", &"0".repeat(64)] {
        adversary.refused("/mac", &json!(mac), 6, MAC);
    }
    assert!(adversary.lab.journals().is_empty());
}

/// The grant is for one context: another one is refused before anything is decrypted, as at AWS.
#[test]
fn whatever_is_changed_under_a_grant() {
    for lab in [sealed(&[]), unsealed(&[])] {
        let adversary = Adversary::new(lab);
        for (pointer, to) in adversary.bound() {
            match pointer {
                "/slots/0/wrapped" => adversary.refused(pointer, &to, 6, UNBOUND),
                _ => adversary.refused(pointer, &to, 3, NOT_GRANTED),
            }
        }
    }
}

#[test]
fn how_long_it_lives() {
    let adversary = Adversary::new(sealed(&[])).may_decrypt();
    std::fs::write(adversary.lab.path("backing"), vec![1; 1 << 20]).unwrap();
    let output = adversary.try_with("/life", &json!("durable"), &["--backing", "backing"]);
    assert_fails(&output, 6, &[MAC]);
    assert_eq!(std::fs::read(adversary.lab.path("backing")).unwrap(), vec![1; 1 << 20]);

    let lab = unsealed(&["--durable"]);
    assert_succeeds(&run(&lab, &["--backing", "backing"]));
    std::fs::write(lab.path("backing"), vec![1; 1 << 20]).unwrap();
    let adversary = Adversary::new(lab).may_decrypt();
    let output = adversary.try_with("/life", &json!("ephemeral"), &["--backing", "backing"]);
    assert_fails(&output, 6, &[MAC]);
    assert_fails(&adversary.try_with("/life", &json!("ephemeral"), &[]), 6, &[MAC]);
    // Without the MAC the volume would be a new one, for which what is there is somebody else's.
    let output = adversary.try_with("/mac", &Value::Null, &["--backing", "backing"]);
    assert_fails(&output, 7, &["backing", "holds data"]);
    assert_eq!(std::fs::read(adversary.lab.path("backing")).unwrap(), vec![1; 1 << 20]);
}

/// What the provisioner changes without the data key, and so anybody: it opens nothing, and keeps nothing shut.
#[test]
fn what_no_mac_covers() {
    let adversary = Adversary::new(sealed(&[])).may_decrypt();
    let grants = live_grants(&adversary.lab.events());
    let theirs = &adversary.theirs["slots"][0];
    let old = json!([{ "provider": "local", "key": theirs["key"], "grant": theirs["grant"]["id"] }]);
    for (pointer, to) in [
        ("/revision", json!(77)),
        ("/since_seal/superseded", old),
        ("/since_seal/retired", json!("2020-01-01T00:00:00Z")),
        ("/since_seal/pending", json!({ "slot": theirs, "keep_others": false })),
        ("/since_seal/pending", json!({ "slot": theirs, "keep_others": true })),
    ] {
        let output = adversary.try_with(pointer, &to, &["--json"]);
        assert_succeeds(&output);
        let record: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
        let own = &adversary.original["slots"][0];
        assert_eq!(
            (&record["kms_key"], &record["grant"]["id"]),
            (&own["key"], &own["grant"]["id"]),
            "{pointer}"
        );
    }
    assert_eq!(live_grants(&adversary.lab.events()), grants);
    // A MAC that is taken away leaves what there was before it, and the host makes one anew.
    assert_succeeds(&adversary.try_with("/mac", &Value::Null, &[]));
    assert_eq!(facts(&adversary.lab, &adversary.lab.path("envelope"))["sealed"], true);
    for (pointer, to) in adversary.bound() {
        let mut bare = adversary.original.clone();
        bare["mac"] = Value::Null;
        assert!(change(&adversary.lab, &bare, pointer, to));
        assert_fails(&run(&adversary.lab, &[]), 6, &[UNBOUND]);
    }
}

/// Before the first unlock: the KMS refuses what it can tell, and the rest decides nothing about the data.
#[test]
fn whatever_is_changed_before_the_first_unlock() {
    let adversary = Adversary::new(unsealed(&[])).may_decrypt();
    for (pointer, to) in adversary.bound() {
        adversary.refused(pointer, &to, 6, UNBOUND);
    }
    adversary.refused("/cipher", &json!("aes-cbc-plain"), 6, "its cipher cannot be");
    adversary.refused("/mac", &json!("0".repeat(64)), 6, MAC);
    for (pointer, to) in adversary.covered().into_iter().chain([("/revision", json!(77))]) {
        assert_succeeds(&adversary.try_with(pointer, &to, &[]));
    }
    let durable = adversary.try_with("/life", &json!("durable"), &["--backing", "backing"]);
    assert_succeeds(&durable);
    assert!(adversary.lab.path("backing").exists());
}

/// A data key that the adversary knows, wrapped by the right key under the right context.
#[test]
fn another_data_key() {
    let pair = Pair::new();
    pair.provision(&[]);
    assert_succeeds(&pair.reopen());
    let mut original: Value = serde_json::from_slice(&std::fs::read(pair.envelope()).unwrap()).unwrap();
    let facts = facts(&pair.lab, &pair.envelope());
    let (key, context) = (&facts["slots"][0]["kms_key"], &facts["encryption_context"]);
    let wrapped = pair.boto3(
        "admin",
        &format!(
            "import base64\nblob = kms.generate_data_key_without_plaintext(KeyId={key}, NumberOfBytes=64, \
             EncryptionContext={context})['CiphertextBlob']\nprint(base64.b64encode(blob).decode())"
        ),
    );
    assert!(change(&pair.lab, &original, "/slots/0/wrapped", json!(wrapped)));
    assert_fails(&pair.reopen(), 6, &[MAC]);
    let mut slot = original["slots"][0].clone();
    slot["wrapped"] = json!(wrapped);
    assert!(change(
        &pair.lab,
        &original,
        "/since_seal/pending",
        json!({ "slot": slot, "keep_others": false })
    ));
    let output = pair.reopen();
    assert_succeeds(&output);
    assert!(
        text(&output.stderr).contains("holds another data key, and is passed over"),
        "{}",
        text(&output.stderr)
    );
    // Behind a slot that does not open, it is refused as well.
    original["slots"][0]["wrapped"] = json!("AAAA");
    assert!(change(
        &pair.lab,
        &original,
        "/since_seal/pending",
        json!({ "slot": slot, "keep_others": false })
    ));
    assert_fails(&pair.reopen(), 6, &[MAC]);
}

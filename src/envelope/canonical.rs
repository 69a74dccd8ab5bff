//! One encoding for each JSON value, whatever wrote it and in which order.

use aws_lc_rs::digest::{SHA256, digest as sha256};
use serde_json::Value;

use crate::hex;

/// The value as bytes: its kind, its length and its parts; a map's pairs ordered by key. No two values that differ
/// have the same bytes, as each part's length stands before it.
pub(super) fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(value, &mut bytes);
    bytes
}

/// The first 8 bytes of a value's SHA-256, as hexadecimal digits: for finding damage, not for keeping anybody out.
pub(super) fn digest(value: &Value) -> String {
    hex::encode(&sha256(&SHA256, &encode(value)).as_ref()[..8])
}

fn append(value: &Value, bytes: &mut Vec<u8>) {
    match value {
        Value::Null => bytes.push(b'n'),
        Value::Bool(flag) => bytes.extend([b'b', u8::from(*flag)]),
        Value::Number(number) => text(b'i', &number.to_string(), bytes),
        Value::String(string) => text(b's', string, bytes),
        Value::Array(items) => {
            count(b'l', items.len(), bytes);
            items.iter().for_each(|item| append(item, bytes));
        }
        Value::Object(pairs) => {
            count(b'm', pairs.len(), bytes);
            let mut pairs: Vec<_> = pairs.iter().collect();
            pairs.sort_by_key(|(name, _)| *name);
            for (name, item) in pairs {
                text(b's', name, bytes);
                append(item, bytes);
            }
        }
    }
}

fn text(kind: u8, text: &str, bytes: &mut Vec<u8>) {
    count(kind, text.len(), bytes);
    bytes.extend(text.as_bytes());
}

fn count(kind: u8, count: usize, bytes: &mut Vec<u8>) {
    bytes.push(kind);
    bytes.extend((count as u64).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn order_does_not_matter_and_everything_else_does() {
        let read = |text: &str| encode(&serde_json::from_str(text).unwrap());
        assert_eq!(read(r#"{"a":1,"b":[true,null]}"#), read(r#"{ "b": [true, null], "a": 1 }"#));
        let all = [
            json!({"a": 1}),
            json!({"a": "1"}),
            json!({"a": [1]}),
            json!({"a": null}),
            json!({"a": false}),
            json!({"a": true}),
            json!({"": {"a": 1}}),
            json!(["a", 1]),
            json!(["a1"]),
            json!(["a", "1"]),
            json!([["a"], "1"]),
            json!([["a", "1"]]),
        ];
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                assert_ne!(encode(one), encode(other), "{one} {other}");
                assert_ne!(digest(one), digest(other), "{one} {other}");
            }
        }
    }
}

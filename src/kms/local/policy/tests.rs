//! Tests of the evaluator: its rules here, AWS's own documents in `documents`.

mod documents;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::pairs::pairs;
use super::super::principal::PrincipalName;
use super::*;

const ACCOUNT: &str = "111122223333";
const ALICE: &str = "arn:aws:iam::111122223333:user/alice";
const KEY: &str = "arn:aws:kms:us-east-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

pub(super) fn request(action: &str) -> Request {
    let mut keys = ConditionKeys::default();
    keys.add("kms:CallerAccount", ACCOUNT);
    Request {
        caller: PolicyCaller::Iam { arn: ALICE.into(), account: ACCOUNT.into() },
        action: format!("kms:{action}"),
        resource: KEY.into(),
        keys,
    }
}

fn document(kind: Kind, statements: Value) -> Document {
    let text = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
    Document::read(&text, kind).unwrap()
}

fn key(effect: &str, principal: Value) -> Document {
    let statement =
        json!({"Effect": effect, "Principal": principal, "Action": "kms:Decrypt", "Resource": "*"});
    document(Kind::Key, statement)
}

fn own(effect: &str) -> Document {
    document(Kind::Identity, json!([{"Effect": effect, "Action": "kms:Decrypt", "Resource": KEY}]))
}

/// What a condition makes of a request with these condition keys, in a statement that would allow it.
fn holds(condition: Value, keys: &[(&str, &str)]) -> bool {
    let statement = json!({"Effect": "Allow", "Action": "*", "Resource": "*", "Condition": condition});
    let policy = document(Kind::Identity, statement);
    let mut request = request("Decrypt");
    keys.iter().for_each(|(name, value)| request.keys.add(name, *value));
    decide(&request, None, Some(&policy), false).is_ok()
}

fn refused(text: &str) -> String {
    Document::read(text, Kind::Identity).unwrap_err().to_string()
}

#[test]
fn who_decides() {
    let root = || json!({"AWS": "arn:aws:iam::111122223333:root"});
    let other = || json!({"AWS": "arn:aws:iam::111122223333:user/bob"});
    let (allow, deny, nothing) = (own("Allow"), own("Deny"), document(Kind::Identity, json!([])));
    let it = request("Decrypt");
    for (key_policy, identity, granted, expected) in [
        // The key policy for the caller itself is enough.
        (key("Allow", json!({"AWS": ALICE})), &nothing, false, Ok(())),
        (key("Allow", json!("*")), &nothing, false, Ok(())),
        (key("Allow", json!({"AWS": ["arn:aws:iam::999999999999:root", ALICE]})), &nothing, false, Ok(())),
        // For its account, the caller's own policy decides.
        (key("Allow", root()), &allow, false, Ok(())),
        (key("Allow", json!({"AWS": ACCOUNT})), &allow, false, Ok(())),
        (key("Allow", root()), &nothing, false, Err(Refusal::NotInIdentityPolicy)),
        // Without either, the caller's own policy counts for nothing.
        (key("Allow", other()), &allow, false, Err(Refusal::NotInKeyPolicy)),
        (key("Allow", json!({"AWS": "999999999999"})), &allow, false, Err(Refusal::NotInKeyPolicy)),
        (
            key("Allow", json!({"CanonicalUser": "x", "Federated": "y"})),
            &allow,
            false,
            Err(Refusal::NotInKeyPolicy),
        ),
        // Deny wins, wherever it stands, over a grant as well.
        (key("Allow", json!({"AWS": ALICE})), &deny, false, Err(Refusal::DeniedByIdentity)),
        (key("Allow", json!({"AWS": ALICE})), &deny, true, Err(Refusal::DeniedByIdentity)),
        (key("Deny", root()), &allow, true, Err(Refusal::DeniedByKey)),
        (key("Deny", other()), &nothing, true, Ok(())),
        // A grant is enough beside policies that say nothing.
        (key("Allow", other()), &nothing, true, Ok(())),
    ] {
        assert_eq!(decide(&it, Some(&key_policy), Some(identity), granted), expected, "{key_policy:?}");
    }
}

#[test]
fn not_principal_takes_all_but_those_it_names() {
    let policy = |effect: &str, names: Value| {
        let statement =
            json!({"Effect": effect, "NotPrincipal": names, "Action": "kms:Decrypt", "Resource": "*"});
        document(Kind::Key, json!([statement]))
    };
    let deny = |names| decide(&request("Decrypt"), Some(&policy("Deny", names)), None, true).is_err();
    assert!(deny(json!({"AWS": "arn:aws:iam::111122223333:user/bob"})));
    assert!(!deny(json!({"AWS": ["arn:aws:iam::111122223333:user/bob", ALICE]})));
    assert!(!deny(json!({"AWS": "arn:aws:iam::111122223333:root"})));
    let allow = |names| decide(&request("Decrypt"), Some(&policy("Allow", names)), None, false).is_ok();
    assert!(allow(json!({"AWS": "arn:aws:iam::111122223333:user/bob"})));
    assert!(!allow(json!({"AWS": ALICE})));
}

#[test]
fn actions_and_resources() {
    let allowed = |statement: Value, action: &str| {
        let policy = document(Kind::Identity, statement);
        decide(&request(action), None, Some(&policy), false).is_ok()
    };
    let of = |name: &str, value: Value| {
        let mut statement = json!({"Effect": "Allow", "Resource": "*"});
        statement[name] = value;
        statement
    };
    assert!(allowed(of("Action", json!("*")), "Decrypt"));
    assert!(allowed(
        of("Action", json!(["kms:Encrypt", "KMS:generatedatakey*"])),
        "GenerateDataKeyWithoutPlaintext"
    ));
    assert!(!allowed(of("Action", json!("kms:GenerateDataKey")), "GenerateDataKeyWithoutPlaintext"));
    assert!(allowed(of("Action", json!("kms:?ecrypt")), "Decrypt"));
    assert!(!allowed(of("Action", json!("s3:*")), "Decrypt"));
    assert!(allowed(of("NotAction", json!("kms:Put*")), "Decrypt"));
    assert!(!allowed(of("NotAction", json!(["kms:Put*", "kms:Decrypt"])), "Decrypt"));
    let on = |name: &str, value: Value| {
        let mut statement = json!({"Effect": "Allow", "Action": "kms:*"});
        statement[name] = value;
        allowed(statement, "Decrypt")
    };
    assert!(on("Resource", json!(["arn:aws:s3:::x", KEY])));
    assert!(on("Resource", json!("arn:aws:kms:*:111122223333:key/????abcd-*")));
    assert!(!on("Resource", json!("arn:aws:kms:us-east-1:111122223333:KEY/*")), "resources keep their case");
    assert!(!on("NotResource", json!(KEY)));
    assert!(on("NotResource", json!("arn:aws:kms:us-east-1:111122223333:key/other")));
}

#[test]
fn operators() {
    let team = "kms:EncryptionContext:Team";
    for (operator, wanted, found, expected) in [
        ("StringEquals", json!("Data"), Some("Data"), true),
        ("StringEquals", json!(["x", "Data"]), Some("Data"), true),
        ("StringEquals", json!("Data"), Some("data"), false),
        ("StringEquals", json!("Dat*"), Some("Data"), false),
        ("StringEquals", json!("Data"), None, false),
        ("StringEqualsIfExists", json!("Data"), None, true),
        ("StringEqualsIfExists", json!("Data"), Some("x"), false),
        ("StringNotEquals", json!("Data"), Some("x"), true),
        ("StringNotEquals", json!(["x", "Data"]), Some("Data"), false),
        ("StringNotEquals", json!("Data"), None, true),
        ("StringEqualsIgnoreCase", json!("DATA"), Some("data"), true),
        ("StringNotEqualsIgnoreCase", json!("DATA"), Some("data"), false),
        ("StringLike", json!("D?t*"), Some("Data"), true),
        ("StringLike", json!("D?"), Some("Data"), false),
        ("StringNotLike", json!("D*"), Some("Data"), false),
        ("ArnEquals", json!("arn:aws:iam::*:role/x"), Some("arn:aws:iam::111122223333:role/x"), true),
        ("ArnLike", json!("arn:aws:iam::*:role/x"), Some("arn:aws:iam::111122223333:role/y"), false),
        ("ArnLike", json!("arn:*:role/x"), Some("arn:aws:iam::111122223333:role/y"), false),
        ("ArnNotLike", json!("arn:aws:iam::*:role/x"), Some("arn:aws:iam::111122223333:role/y"), true),
        ("ArnNotEquals", json!("arn:aws:iam::*:role/x"), None, true),
        ("Bool", json!(true), Some("true"), true),
        ("Bool", json!("false"), Some("true"), false),
        ("Bool", json!("false"), None, false),
        ("Null", json!("true"), None, true),
        ("Null", json!(false), None, false),
        ("Null", json!("false"), Some(""), true),
        ("ForAllValues:StringEquals", json!(["a", "b"]), None, true),
        ("ForAnyValue:StringEquals", json!(["a", "b"]), None, false),
        ("ForAnyValue:StringEqualsIfExists", json!(["a", "b"]), None, true),
    ] {
        let keys: Vec<_> = found.map(|value| ("kms:encryptioncontext:TEAM", value)).into_iter().collect();
        let condition = json!({operator: {team: wanted.clone()}});
        assert_eq!(holds(condition, &keys), expected, "{operator} {wanted} of {found:?}");
    }
}

#[test]
fn keys_with_several_values() {
    let operations = |names: &[&'static str]| -> Vec<(&str, &str)> {
        names.iter().map(|name| ("kms:GrantOperations", *name)).collect()
    };
    let (one, two) = (operations(&["Decrypt"]), operations(&["Decrypt", "Encrypt"]));
    for (operator, wanted, of_one, of_two) in [
        ("ForAllValues:StringEquals", json!("Decrypt"), true, false),
        ("ForAllValues:StringEquals", json!(["Decrypt", "Encrypt"]), true, true),
        ("ForAnyValue:StringEquals", json!("Decrypt"), true, true),
        ("ForAnyValue:StringEquals", json!("Encrypt"), false, true),
        ("ForAllValues:StringNotEquals", json!("Encrypt"), true, false),
        ("ForAnyValue:StringNotEquals", json!("Decrypt"), false, true),
        ("ForAllValues:StringLike", json!("De*"), true, false),
        // Of a key that should have one value, each has to pass: no second pair slips in beside the first.
        ("StringEquals", json!("Decrypt"), true, false),
        ("StringNotEquals", json!("Decrypt"), false, true),
    ] {
        let condition = json!({operator: {"kms:GrantOperations": wanted}});
        assert_eq!(holds(condition.clone(), &one), of_one, "{condition}");
        assert_eq!(holds(condition.clone(), &two), of_two, "{condition}");
    }
}

#[test]
fn an_encryption_context_is_a_key_for_each_pair() {
    let mut keys = ConditionKeys::default();
    keys.add_context(&pairs(&[("Team", "Data"), ("aws:x:arn", "y")]));
    assert_eq!(keys.values("kms:encryptioncontext:team"), Some(&["Data".to_string()][..]));
    assert_eq!(keys.values("kms:encryptioncontext:aws:x:arn"), Some(&["y".to_string()][..]));
    assert_eq!(keys.values("kms:encryptioncontextkeys").map(<[_]>::len), Some(2));
    assert_eq!(keys.values("kms:encryptioncontext:other"), None);
}

#[test]
fn every_line_of_a_condition_must_hold() {
    let both = json!({"StringEquals": {"kms:KeySpec": "S", "kms:KeyUsage": "U"}, "Bool": {"aws:SecureTransport": "true"}});
    let all = [("kms:KeySpec", "S"), ("kms:KeyUsage", "U"), ("aws:SecureTransport", "true")];
    assert!(holds(both.clone(), &all));
    for missing in 0..all.len() {
        let some: Vec<_> =
            all.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, key)| *key).collect();
        assert!(!holds(both.clone(), &some), "without {:?}", all[missing]);
    }
}

#[test]
fn what_is_not_known_is_refused() {
    let statement = |more: Value| {
        let mut statement = json!({"Effect": "Allow", "Action": "kms:*", "Resource": "*"});
        for (name, value) in more.as_object().unwrap() {
            statement[name] = value.clone();
        }
        json!({"Version": "2012-10-17", "Statement": [statement]})
    };
    let condition =
        |operator: &str, key: &str, value: Value| statement(json!({"Condition": {operator: {key: value}}}));
    for (bad, word) in [
        (json!([]), "object"),
        (json!({"Statement": [], "Author": "me"}), "Author"),
        (json!({"Version": "2012-10-18", "Statement": []}), "Version"),
        (json!({"Version": "2012-10-17"}), "Statement"),
        (json!({"Id": 7, "Statement": []}), "Id"),
        (statement(json!({"Conditions": {}})), "Conditions"),
        (statement(json!({"Effect": "allow"})), "Effect"),
        (statement(json!({"Action": []})), "empty"),
        (statement(json!({"Action": "Decrypt"})), "Decrypt"),
        (statement(json!({"NotAction": "kms:Decrypt"})), "NotAction"),
        (statement(json!({"Resource": 7})), "string"),
        (statement(json!({"Principal": "*"})), "Principal"),
        (statement(json!({"Resource": "arn:aws:kms:*:*:key/${aws:username}"})), "variables"),
        (condition("StringEquals", "kms:KeySpec", json!("${aws:username}")), "variables"),
        (condition("StringEqual", "kms:KeySpec", json!("x")), "StringEqual"),
        (condition("DateLessThan", "kms:KeySpec", json!("x")), "DateLessThan"),
        (condition("NullIfExists", "kms:KeySpec", json!("true")), "NullIfExists"),
        (condition("ForSomeValues:StringEquals", "kms:KeySpec", json!("x")), "ForSomeValues"),
        (condition("StringEquals", "kms:Colour", json!("x")), "kms:Colour"),
        (condition("StringEquals", "kms:EncryptionContext:", json!("x")), "kms:EncryptionContext:"),
        (condition("StringEquals", "kms:KeySpec", json!([])), "value"),
        (condition("StringEquals", "kms:KeySpec", json!({"a": 1})), "value"),
        (condition("Bool", "aws:SecureTransport", json!("yes")), "true or false"),
        (statement(json!({"Condition": {"StringEquals": {}}})), "StringEquals"),
        (statement(json!({"Condition": []})), "Condition"),
    ] {
        assert!(refused(&bad.to_string()).contains(word), "{bad}: {}", refused(&bad.to_string()));
    }
    let twice = r#"{"Statement": {"Effect": "Deny", "Action": "*", "Resource": "*", "Resource": "x"}}"#;
    assert!(refused(twice).contains("\"Resource\" stands there twice"));
    assert!(refused("{").contains("JSON"));
}

#[test]
fn principals_that_are_none_are_refused() {
    let key = |principal: Value| {
        let statement =
            json!({"Effect": "Allow", "Principal": principal, "Action": "kms:*", "Resource": "*"});
        Document::read(&json!({"Statement": statement}).to_string(), Kind::Key)
    };
    for good in [
        json!("*"),
        json!({"AWS": "*"}),
        json!({"AWS": ["111122223333", "arn:aws:iam::111122223333:role/path/r"]}),
        json!({"AWS": "arn:aws:sts::111122223333:assumed-role/r/s", "Service": "x.amazonaws.com"}),
        json!({"CanonicalUser": "abc", "Federated": "cognito-identity.amazonaws.com"}),
    ] {
        assert!(key(good.clone()).is_ok(), "{good}");
    }
    for bad in [
        json!("alice"),
        json!([]),
        json!({}),
        json!({"AWS": "alice"}),
        json!({"AWS": "1111"}),
        json!({"AWS": "arn:aws:iam::111122223333:user/*"}),
        json!({"AWS": "arn:aws:s3:::bucket"}),
        json!({"Service": "*"}),
        json!({"Robot": "r2"}),
    ] {
        assert!(key(bad.clone()).is_err(), "{bad}");
    }
    let without = json!({"Statement": {"Effect": "Allow", "Action": "kms:*", "Resource": "*"}}).to_string();
    assert!(Document::read(&without, Kind::Key).is_err());
}

#[test]
fn the_default_policies_let_each_principal_do_its_part() {
    let key = Document::read(&key_default(ACCOUNT), Kind::Key).unwrap();
    let may = |name, action: &str| {
        let own = Document::read(identity_default(name), Kind::Identity).unwrap();
        decide(&request(action), Some(&key), Some(&own), false).is_ok()
    };
    // Admin, provisioner, host, auditor.
    for (action, expected) in [
        ("Decrypt", [true, false, false, false]),
        ("GenerateDataKey", [true, false, false, false]),
        ("GenerateDataKeyWithoutPlaintext", [true, true, false, false]),
        ("CreateGrant", [true, true, false, false]),
        ("RevokeGrant", [true, true, false, false]),
        ("RetireGrant", [true, false, false, false]),
        ("ListGrants", [true, true, false, true]),
        ("ReEncryptFrom", [true, true, false, false]),
        ("ReEncryptTo", [true, true, false, false]),
        ("Encrypt", [true, true, false, false]),
        ("DescribeKey", [true, true, false, true]),
        ("GetKeyPolicy", [true, false, false, true]),
        ("ListKeys", [true, false, false, true]),
        ("PutKeyPolicy", [true, false, false, false]),
        ("DisableKey", [true, false, false, false]),
    ] {
        assert_eq!(PrincipalName::ALL.map(|name| may(name, action)), expected, "{action}");
    }
}

proptest! {
    /// Whatever else a policy says, one Deny for everybody is the end of it.
    #[test]
    fn deny_wins_among_any_statements(allows in 0usize..4, at in 0usize..4, granted: bool) {
        let statement = |effect: &str| {
            json!({"Effect": effect, "Principal": "*", "Action": "kms:*", "Resource": "*"})
        };
        let mut statements = vec![statement("Allow"); allows];
        let without = document(Kind::Key, json!(statements));
        prop_assert_eq!(decide(&request("Decrypt"), Some(&without), None, granted).is_ok(), granted || allows > 0);
        statements.insert(at.min(allows), statement("Deny"));
        let with = document(Kind::Key, json!(statements));
        prop_assert_eq!(decide(&request("Decrypt"), Some(&with), None, granted), Err(Refusal::DeniedByKey));
    }

    /// An operator and its negation never agree where the request has the key.
    #[test]
    fn a_negated_operator_says_the_opposite(wanted in "[ab*?]{1,3}", found in "[ab]{1,3}") {
        for (plain, negated) in [
            ("StringEquals", "StringNotEquals"),
            ("StringEqualsIgnoreCase", "StringNotEqualsIgnoreCase"),
            ("StringLike", "StringNotLike"),
            ("ArnLike", "ArnNotLike"),
        ] {
            let with = |operator: &str| holds(json!({operator: {"kms:KeySpec": wanted}}), &[("kms:KeySpec", &found)]);
            prop_assert_ne!(with(plain), with(negated));
        }
    }

    /// No text, however strange, brings the reader down.
    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
        let _ = Document::read(&text, Kind::Key);
        let _ = Document::read(&format!("{{\"Statement\":{{\"Effect\":{text}}}}}"), Kind::Identity);
    }
}

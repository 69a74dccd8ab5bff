//! Policies that AWS's own services print in their documentation: each allows what it says, and nothing beside it.
//!
//! Three of them are single statements, to be put among those of a key policy, and two have a `Sid` beside
//! `Statement`, where the language has none. AWS takes neither as a document, and so does this reader; a user puts
//! the statement into a document and the `Sid` where it belongs, and [`load`] does the same.

use std::path::Path;

use serde_json::{Value, json};

use super::super::super::pairs::pairs;
use super::*;

const VIA_EMR: (&str, &str) = ("kms:ViaService", "emr-serverless.region.amazonaws.com");
const VIA_FLINK: (&str, &str) = ("kms:ViaService", "kinesisanalytics.us-east-1.amazonaws.com");
const FLINK_ARN: &str = "arn:aws:kinesisanalytics:us-east-1:123456789012:application/MyCmkApplication";
const OPERATOR: &str = "arn:aws:iam::123456789012:role/Operator";
const FLINK_KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn text_of(name: &str) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/policies");
    std::fs::read_to_string(directory.join(name)).unwrap()
}

fn load(name: &str, kind: Kind) -> Document {
    let text = text_of(name);
    let mut value: Value = serde_json::from_str(&text).unwrap();
    if Document::read(&text, kind).is_err() {
        let object = value.as_object_mut().unwrap();
        if object.contains_key("Statement") {
            assert!(object.remove("Sid").is_some(), "{name} has nothing wrong that is known");
        } else {
            value = json!({"Version": "2012-10-17", "Statement": [value]});
        }
    }
    Document::read(&value.to_string(), kind).unwrap()
}

/// One request: who, what, under which encryption context, with which other condition keys.
#[derive(Clone)]
struct Asked {
    caller: PolicyCaller,
    action: &'static str,
    resource: &'static str,
    keys: Vec<(&'static str, &'static str)>,
    context: Vec<(&'static str, &'static str)>,
}

impl Asked {
    fn by(caller: &str, action: &'static str) -> Self {
        let account = caller.split(':').nth(4).unwrap_or_default().to_string();
        let caller = match caller.ends_with(".amazonaws.com") {
            true => PolicyCaller::Service(caller.into()),
            false => PolicyCaller::Iam { arn: caller.into(), account },
        };
        Self { caller, action, resource: FLINK_KEY, keys: Vec::new(), context: Vec::new() }
    }

    fn on(self, resource: &'static str) -> Self {
        Self { resource, ..self }
    }

    fn with(mut self, key: (&'static str, &'static str)) -> Self {
        self.keys.push(key);
        self
    }

    fn under(mut self, name: &'static str, value: &'static str) -> Self {
        self.context.push((name, value));
        self
    }

    /// With a value of the same condition key changed, or the key left out.
    fn but(mut self, name: &str, value: Option<&'static str>) -> Self {
        let (before, others) = self.keys.iter().partition::<Vec<_>, _>(|(key, _)| *key == name);
        self.keys = others;
        self.keys.extend(value.map(|value| (before[0].0, value)));
        self
    }

    fn request(&self) -> Request {
        let mut keys = ConditionKeys::default();
        self.keys.iter().for_each(|(name, value)| keys.add(name, *value));
        keys.add_context(&pairs(&self.context));
        Request {
            caller: self.caller.clone(),
            action: format!("kms:{}", self.action),
            resource: self.resource.into(),
            keys,
        }
    }
}

fn key_policy_allows(policy: &Document, asked: &Asked) -> bool {
    decide(&asked.request(), Some(policy), None, false).is_ok()
}

/// Under AWS's default key policy, which leaves it to the caller's own.
fn own_policy_allows(policy: &Document, asked: &Asked) -> bool {
    decide(&asked.request(), None, Some(policy), false).is_ok()
}

fn check(name: &str, allows: impl Fn(&Asked) -> bool, yes: &[Asked], no: &[Asked]) {
    for (asked, expected) in
        yes.iter().map(|asked| (asked, true)).chain(no.iter().map(|asked| (asked, false)))
    {
        let (action, keys, context) = (asked.action, &asked.keys, &asked.context);
        let caller = &asked.caller;
        assert_eq!(allows(asked), expected, "{name}: {action} by {caller:?} with {keys:?} under {context:?}");
    }
}

#[test]
fn single_statements_and_a_stray_sid_are_no_documents() {
    for (name, kind, word) in [
        ("emr-serverless-1.json", Kind::Key, "Effect"),
        ("emr-serverless-2-Enable-GDK-and-Decrypt.json", Kind::Identity, "Sid"),
        ("emr-serverless-3-Enable-DescribeKey.json", Kind::Key, "Action"),
        ("emr-serverless-4-Enable-GDK-and-Decrypt.json", Kind::Key, "Action"),
    ] {
        let error = Document::read(&text_of(name), kind).unwrap_err().to_string();
        assert!(error.contains("is no element of a policy"), "{name}, {word}: {error}");
    }
}

#[test]
fn emr_serverless_as_a_service() {
    let policy = load("emr-serverless-1.json", Kind::Key);
    let good = |action| {
        Asked::by("emr-serverless.amazonaws.com", action)
            .with((
                "aws:SourceArn",
                "arn:aws:emr-serverless:region:aws-account-id:/applications/application-id",
            ))
            .with(("aws:SourceAccount", "aws-account-id"))
            .under("applicationId", "application-id")
    };
    let mut other_service = good("Decrypt");
    other_service.caller = PolicyCaller::Service("emr.amazonaws.com".into());
    let mut a_user = good("Decrypt");
    a_user.caller = Asked::by(ALICE, "Decrypt").caller;
    let mut other_context = good("Decrypt");
    other_context.context = vec![("applicationId", "other")];
    let mut no_context = good("Decrypt");
    no_context.context.clear();
    check(
        "emr-serverless-1",
        |asked| key_policy_allows(&policy, asked),
        &[good("Decrypt"), good("GenerateDataKey"), good("Decrypt").under("more", "x")],
        &[
            good("GenerateDataKeyWithoutPlaintext"),
            good("Encrypt"),
            good("Decrypt")
                .but("aws:SourceArn", Some("arn:aws:emr-serverless:region:aws-account-id:/applications/x")),
            good("Decrypt").but("aws:SourceArn", None),
            good("Decrypt").but("aws:SourceAccount", Some("other")),
            other_service,
            a_user,
            other_context,
            no_context,
        ],
    );
}

#[test]
fn emr_serverless_as_a_users_own_policies() {
    for (name, describes) in
        [("emr-serverless-2-Enable-GDK-and-Decrypt.json", false), ("emr-serverless-5.json", true)]
    {
        let policy = load(name, Kind::Identity);
        let good = |action| Asked::by(ALICE, action).on("key-arn");
        let (mut yes, mut no) = (
            vec![good("Decrypt"), good("GenerateDataKey")],
            vec![good("Encrypt"), good("CreateGrant"), good("Decrypt").on("other-arn")],
        );
        if describes { &mut yes } else { &mut no }.push(good("DescribeKey"));
        check(name, |asked| own_policy_allows(&policy, asked), &yes, &no);
    }
}

#[test]
fn emr_serverless_in_a_key_policy_for_a_user() {
    const USER: &str = "arn:aws:iam::111122223333:user/user-name";
    let describe = load("emr-serverless-3-Enable-DescribeKey.json", Kind::Key);
    check(
        "emr-serverless-3",
        |asked| key_policy_allows(&describe, asked),
        &[Asked::by(USER, "DescribeKey")],
        &[
            Asked::by(USER, "Decrypt"),
            Asked::by(ALICE, "DescribeKey"),
            Asked::by("arn:aws:iam::999999999999:user/user-name", "DescribeKey"),
        ],
    );
    let policy = load("emr-serverless-4-Enable-GDK-and-Decrypt.json", Kind::Key);
    let good = |action| Asked::by(USER, action).with(VIA_EMR).under("key", "value");
    check(
        "emr-serverless-4",
        |asked| key_policy_allows(&policy, asked),
        &[
            good("Decrypt"),
            good("GenerateDataKey"),
            Asked::by(USER, "Decrypt").with(VIA_EMR).under("KEY", "value"),
        ],
        &[
            good("DescribeKey"),
            good("Decrypt").but("kms:ViaService", None),
            good("Decrypt").but("kms:ViaService", Some("s3.region.amazonaws.com")),
            Asked::by(USER, "Decrypt").with(VIA_EMR).under("key", "Value"),
            Asked::by(USER, "Decrypt").with(VIA_EMR).under("other", "value"),
            Asked::by(USER, "Decrypt").with(VIA_EMR),
            Asked::by(ALICE, "Decrypt").with(VIA_EMR).under("key", "value"),
        ],
    );
}

#[test]
fn keyspaces() {
    const LEAD: &str = "arn:aws:iam::111122223333:user/db-lead";
    const TEAM: &str = "arn:aws:iam::111122223333:role/db-team";
    const VIA: (&str, &str) = ("kms:ViaService", "cassandra.us-east-1.amazonaws.com");
    let policy = load("keyspaces-1-key-policy-cassandra.json", Kind::Key);
    let lead = |action| Asked::by(LEAD, action).with(VIA);
    let lead_may = [
        "Encrypt",
        "Decrypt",
        "ReEncryptFrom",
        "ReEncryptTo",
        "GenerateDataKey",
        "GenerateDataKeyWithoutPlaintext",
        "DescribeKey",
        "CreateGrant",
    ];
    let team_may = ["DescribeKey", "GetKeyPolicy", "ListGrants", "RevokeGrant"];
    let yes: Vec<_> =
        lead_may.map(lead).into_iter().chain(team_may.map(|action| Asked::by(TEAM, action))).collect();
    check(
        "keyspaces",
        |asked| key_policy_allows(&policy, asked),
        &yes,
        &[
            lead("RevokeGrant"),
            lead("PutKeyPolicy"),
            lead("Decrypt").but("kms:ViaService", None),
            lead("Decrypt").but("kms:ViaService", Some("cassandra.us-east-1.example.com")),
            lead("Decrypt").but("kms:ViaService", Some("s3.us-east-1.amazonaws.com")),
            Asked::by(ALICE, "Decrypt").with(VIA),
            Asked::by(TEAM, "Decrypt").with(VIA),
            Asked::by(TEAM, "CreateGrant").with(VIA),
            Asked::by("arn:aws:iam::111122223333:role/db-lead", "Decrypt").with(VIA),
        ],
    );
}

/// CreateGrant as it is asked for a running application.
fn grant(asked: Asked) -> Asked {
    asked
        .with(("kms:GrantConstraintType", "EncryptionContextSubset"))
        .with(("kms:GrantOperations", "Decrypt"))
        .under("aws:kinesisanalytics:arn", FLINK_ARN)
}

#[test]
fn managed_flink_key_policy_for_the_operator() {
    let policy = load("managed-flink-1-MyMsfCmkApplicationKeyPolicy.json", Kind::Key);
    let operator = |action| Asked::by(OPERATOR, action).with(VIA_FLINK);
    let bound = |action| operator(action).under("aws:kinesisanalytics:arn", FLINK_ARN);
    check(
        "managed-flink-1",
        |asked| key_policy_allows(&policy, asked),
        &[
            operator("DescribeKey"),
            bound("Decrypt"),
            bound("GenerateDataKey"),
            bound("GenerateDataKeyWithoutPlaintext"),
            grant(operator("CreateGrant")),
        ],
        &[
            operator("DescribeKey").but("kms:ViaService", None),
            operator("Decrypt"),
            operator("Decrypt").under("aws:kinesisanalytics:arn", "arn:aws:kinesisanalytics:other"),
            bound("Decrypt").but("kms:ViaService", Some("s3.us-east-1.amazonaws.com")),
            bound("Encrypt"),
            grant(operator("CreateGrant")).with(("kms:GrantOperations", "Encrypt")),
            grant(operator("CreateGrant")).but("kms:GrantConstraintType", Some("EncryptionContextEquals")),
            grant(operator("CreateGrant")).but("kms:GrantConstraintType", None),
            grant(operator("CreateGrant")).but("kms:ViaService", None),
            grant(Asked::by("arn:aws:iam::123456789012:role/Other", "CreateGrant").with(VIA_FLINK)),
        ],
    );
}

#[test]
fn managed_flink_key_policy_for_the_services() {
    const APPLICATION: &str = "kinesisanalytics.amazonaws.com";
    const INFRASTRUCTURE: &str = "infrastructure.kinesisanalytics.amazonaws.com";
    let policy = load("managed-flink-1-MyMsfCmkApplicationKeyPolicy.json", Kind::Key);
    let from = |service, action| {
        Asked::by(service, action)
            .with(("aws:SourceArn", FLINK_ARN))
            .with(("aws:SourceAccount", "123456789012"))
    };
    let bound = |asked: Asked| asked.under("aws:kinesisanalytics:arn", FLINK_ARN);
    check(
        "managed-flink-1",
        |asked| key_policy_allows(&policy, asked),
        &[
            from(APPLICATION, "DescribeKey"),
            from(INFRASTRUCTURE, "DescribeKey"),
            bound(from(APPLICATION, "GenerateDataKey")),
            bound(Asked::by(APPLICATION, "Decrypt")),
            bound(Asked::by(INFRASTRUCTURE, "Decrypt")),
            bound(Asked::by(INFRASTRUCTURE, "GenerateDataKeyWithoutPlaintext")),
            grant(Asked::by(INFRASTRUCTURE, "CreateGrant")),
        ],
        &[
            from(APPLICATION, "DescribeKey")
                .but("aws:SourceArn", Some("arn:aws:kinesisanalytics:us-east-1:1:x")),
            from(APPLICATION, "DescribeKey").but("aws:SourceAccount", None),
            from("ec2.amazonaws.com", "DescribeKey"),
            bound(Asked::by(APPLICATION, "GenerateDataKey")),
            bound(Asked::by(INFRASTRUCTURE, "GenerateDataKey")),
            Asked::by(INFRASTRUCTURE, "Decrypt").under("aws:kinesisanalytics:arn", "other"),
            Asked::by(INFRASTRUCTURE, "Decrypt"),
            grant(Asked::by(APPLICATION, "CreateGrant")),
            grant(Asked::by(INFRASTRUCTURE, "CreateGrant")).with(("kms:GrantOperations", "GenerateDataKey")),
        ],
    );
}

#[test]
fn managed_flink_policy_of_the_operator() {
    let policy = load("managed-flink-2.json", Kind::Identity);
    let operator = |action| Asked::by(OPERATOR, action).with(VIA_FLINK);
    let bound = |action| operator(action).under("aws:kinesisanalytics:arn", FLINK_ARN);
    check(
        "managed-flink-2",
        |asked| own_policy_allows(&policy, asked),
        &[
            operator("DescribeKey"),
            bound("Decrypt"),
            bound("GenerateDataKey"),
            bound("GenerateDataKeyWithoutPlaintext"),
            grant(operator("CreateGrant")),
        ],
        &[
            operator("DescribeKey").on("arn:aws:kms:us-east-1:123456789012:key/other"),
            operator("DescribeKey").but("kms:ViaService", None),
            operator("Decrypt"),
            bound("Decrypt").but("kms:ViaService", None),
            bound("Encrypt"),
            bound("DisableKey"),
            grant(operator("CreateGrant")).with(("kms:GrantOperations", "CreateGrant")),
            grant(operator("CreateGrant")).but("kms:GrantConstraintType", None),
        ],
    );
}

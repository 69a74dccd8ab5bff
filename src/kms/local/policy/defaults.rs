//! What holds until somebody puts another policy.

use super::super::principal::PrincipalName;

/// A key's policy as AWS KMS gives it to a key that is made without one: it lets the account's own policies decide.
pub(crate) fn key_default(account: &str) -> String {
    format!(
        r#"{{
  "Version": "2012-10-17",
  "Id": "key-default-1",
  "Statement": [
    {{
      "Sid": "Enable IAM User Permissions",
      "Effect": "Allow",
      "Principal": {{ "AWS": "arn:aws:iam::{account}:root" }},
      "Action": "kms:*",
      "Resource": "*"
    }}
  ]
}}"#
    )
}

/// A principal's own policy.
pub(crate) fn identity_default(name: PrincipalName) -> &'static str {
    match name {
        PrincipalName::Admin => ADMIN,
        PrincipalName::Provisioner => PROVISIONER,
        PrincipalName::Host => HOST,
        PrincipalName::Auditor => AUDITOR,
    }
}

const ADMIN: &str = r#"{
  "Version": "2012-10-17",
  "Statement": [
    { "Sid": "Everything", "Effect": "Allow", "Action": "kms:*", "Resource": "*" }
  ]
}"#;

/// Never a call that shows a data key. Encrypt moves a volume's key here from another provider.
const PROVISIONER: &str = r#"{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "MakeWrappedKeysAndGrants",
      "Effect": "Allow",
      "Action": [
        "kms:DescribeKey",
        "kms:GenerateDataKeyWithoutPlaintext",
        "kms:CreateGrant",
        "kms:ListGrants",
        "kms:RevokeGrant",
        "kms:ReEncryptFrom",
        "kms:ReEncryptTo",
        "kms:Encrypt"
      ],
      "Resource": "*"
    }
  ]
}"#;

/// A grant is all that it has.
const HOST: &str = r#"{
  "Version": "2012-10-17",
  "Statement": []
}"#;

const AUDITOR: &str = r#"{
  "Version": "2012-10-17",
  "Statement": [
    {
      "Sid": "Look",
      "Effect": "Allow",
      "Action": ["kms:Describe*", "kms:List*", "kms:Get*"],
      "Resource": "*"
    }
  ]
}"#;

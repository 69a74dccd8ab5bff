//! Least-privilege policies for a volume's key: what provisioner and host need, and nothing beside it.
//!
//! The conditions are those of the systems that do the same inside of AWS: Managed Flink's on grants
//! (EncryptionContextSubset, Decrypt alone), EMR Serverless's on the encryption context. Two of theirs are left out,
//! since a daemon that calls for itself could never meet them: `kms:ViaService` holds for calls that a service makes
//! for its user, `kms:GrantIsForAWSResource` for services that are integrated with AWS KMS.
//!
//! Policies come statement by statement, so that whoever lacks one permission can be shown the one that gives it.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{EncryptionContext, KeyArn, Principal};

const VERSION: &str = "2012-10-17";
/// Context key that holds a volume's id. Dry runs are made before there is one.
pub const CONTEXT_VOLUME: &str = "sealblk:volume";

/// Who does what with which key.
#[derive(Clone, Debug)]
pub struct Subjects {
    /// The KMS key.
    pub key: KeyArn,
    /// Makes wrapped keys and grants: the ARN of a user or role, or a service (`NAME.amazonaws.com`).
    pub provisioner: Principal,
    /// Unwraps.
    pub host: Principal,
    /// Pairs of the encryption context that every volume has.
    pub context: EncryptionContext,
}

/// For which resource a service calls: `aws:SourceArn` and `aws:SourceAccount`. Only calls by a service principal
/// have them.
#[derive(Clone, Debug)]
pub struct Source {
    /// The resource's ARN; `*` and `?` are wildcards.
    pub arn: String,
    /// Its account.
    pub account: String,
}

/// Something that a provisioner has to be allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// kms:DescribeKey.
    Describe,
    /// kms:GenerateDataKeyWithoutPlaintext, under the context.
    Generate,
    /// kms:CreateGrant, for nothing but Decrypt by the host under the context.
    Grant,
    /// kms:ListGrants and kms:RevokeGrant, to end what a dead process left.
    EndGrants,
    /// kms:ReEncryptFrom and kms:ReEncryptTo, to move a wrapped key to this KMS key or from it.
    Rewrap,
    /// kms:Encrypt, to take over a volume from another provider.
    Import,
}

impl Permission {
    /// What every provisioner needs.
    pub const ALWAYS: [Self; 4] = [Self::Describe, Self::Generate, Self::Grant, Self::EndGrants];

    fn sid(self) -> &'static str {
        match self {
            Self::Describe => "SealblkDescribeKey",
            Self::Generate => "SealblkMakeWrappedKeys",
            Self::Grant => "SealblkGrantDecryptToTheHost",
            Self::EndGrants => "SealblkEndGrants",
            Self::Rewrap => "SealblkRewrap",
            Self::Import => "SealblkTakeOverFromAnotherProvider",
        }
    }

    fn actions(self) -> &'static [&'static str] {
        match self {
            Self::Describe => &["kms:DescribeKey"],
            Self::Generate => &["kms:GenerateDataKeyWithoutPlaintext"],
            Self::Grant => &["kms:CreateGrant"],
            Self::EndGrants => &["kms:ListGrants", "kms:RevokeGrant"],
            Self::Rewrap => &["kms:ReEncryptFrom", "kms:ReEncryptTo"],
            Self::Import => &["kms:Encrypt"],
        }
    }
}

/// A policy, ready to be put.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    version: &'static str,
    statement: Vec<Statement>,
}

/// One statement of a policy.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Statement {
    sid: String,
    effect: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_action: Option<Value>,
    resource: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<Value>,
}

impl Statement {
    fn of(sid: impl Into<String>, effect: &'static str, resource: &str) -> Self {
        Self {
            sid: sid.into(),
            effect,
            principal: None,
            action: None,
            not_action: None,
            resource: resource.into(),
            condition: None,
        }
    }
}

/// True for an AWS service's name, which stands where an ARN could.
pub fn is_service(principal: &Principal) -> bool {
    principal.as_str().ends_with(".amazonaws.com")
}

impl Subjects {
    /// The statement of the provisioner's own policy that gives a permission.
    pub fn statement(&self, permission: Permission) -> Statement {
        let condition = self.conditions(permission);
        Statement {
            action: Some(one_or_many(permission.actions())),
            condition: (!condition.is_empty()).then_some(Value::Object(condition)),
            ..Statement::of(permission.sid(), "Allow", self.key.as_str())
        }
    }

    /// The same for the key's policy; `source` binds a service to the resource that it calls for.
    pub fn key_statement(&self, permission: Permission, source: Option<&Source>) -> Statement {
        let mut conditions = self.conditions(permission);
        let service = is_service(&self.provisioner);
        if let Some(source) = source.filter(|_| service) {
            add(&mut conditions, "ArnLike", "aws:SourceArn", &source.arn);
            add(&mut conditions, "StringEquals", "aws:SourceAccount", &source.account);
        }
        let kind = if service { "Service" } else { "AWS" };
        Statement {
            principal: Some(json!({ kind: self.provisioner })),
            // In a key's policy this is the key.
            resource: "*".into(),
            condition: (!conditions.is_empty()).then_some(Value::Object(conditions)),
            ..self.statement(permission)
        }
    }

    /// The key's policy. `admin` rules the key alone; without one, the account's own policies decide who does, as
    /// AWS KMS has it by default.
    pub fn key_policy(
        &self,
        permissions: &[Permission],
        admin: Option<&Principal>,
        source: Option<&Source>,
    ) -> Policy {
        let ruler = match admin {
            Some(admin) => Statement {
                principal: Some(json!({ "AWS": admin })),
                action: Some(json!(ADMINISTRATION)),
                ..Statement::of("KeyAdministration", "Allow", "*")
            },
            None => Statement {
                principal: Some(json!({ "AWS": self.account_root() })),
                action: Some(json!("kms:*")),
                ..Statement::of("EnableIamPolicies", "Allow", "*")
            },
        };
        let needed = permissions.iter().map(|permission| self.key_statement(*permission, source));
        Policy { version: VERSION, statement: [ruler].into_iter().chain(needed).collect() }
    }

    /// The provisioner's own policy; a service has none.
    pub fn provisioner_policy(&self, permissions: &[Permission]) -> Option<Policy> {
        let statement = permissions.iter().map(|permission| self.statement(*permission)).collect();
        (!is_service(&self.provisioner)).then_some(Policy { version: VERSION, statement })
    }

    /// The host's own policy. Its grant gives it Decrypt, so there is nothing to allow: this is a guard rail that
    /// denies everything else of KMS, and Decrypt under a context that is no volume's of these.
    pub fn host_policy(&self) -> Policy {
        let every = format!("arn:{}:kms:*:*:*", self.partition());
        let decrypt_if = |sid: String, condition: Value| Statement {
            action: Some(json!("kms:Decrypt")),
            condition: Some(condition),
            ..Statement::of(sid, "Deny", "*")
        };
        let mut statement = vec![
            Statement {
                not_action: Some(json!("kms:Decrypt")),
                ..Statement::of("NothingButDecrypt", "Deny", &every)
            },
            Statement {
                action: Some(json!(WITHOUT_RESOURCE)),
                ..Statement::of("NothingBesideKeys", "Deny", "*")
            },
            decrypt_if(
                "OnlyVolumesOfSealblk".into(),
                json!({ "Null": { format!("kms:EncryptionContext:{CONTEXT_VOLUME}"): "true" } }),
            ),
        ];
        for (at, (name, value)) in self.context.pairs().enumerate() {
            let condition = json!({ "StringNotEquals": { format!("kms:EncryptionContext:{name}"): value } });
            statement.push(decrypt_if(format!("OnlyThisContext{}", at + 1), condition));
        }
        Policy { version: VERSION, statement }
    }

    fn conditions(&self, permission: Permission) -> Map<String, Value> {
        let mut conditions = Map::new();
        if matches!(permission, Permission::Describe | Permission::EndGrants) {
            return conditions;
        }
        for (name, value) in self.context.pairs() {
            add(&mut conditions, "StringEquals", &format!("kms:EncryptionContext:{name}"), value);
        }
        if permission == Permission::Grant {
            add(&mut conditions, "StringEquals", "kms:GrantConstraintType", "EncryptionContextSubset");
            add(&mut conditions, "StringEquals", "kms:GranteePrincipal", self.host.as_str());
            if !is_service(&self.provisioner) {
                add(&mut conditions, "StringEquals", "kms:RetiringPrincipal", self.provisioner.as_str());
            }
            add(&mut conditions, "ForAllValues:StringEquals", "kms:GrantOperations", "Decrypt");
        }
        conditions
    }

    fn part(&self, at: usize) -> &str {
        self.key.as_str().split(':').nth(at).unwrap_or_default()
    }

    fn partition(&self) -> &str {
        self.part(1)
    }

    fn account_root(&self) -> String {
        format!("arn:{}:iam::{}:root", self.partition(), self.part(4))
    }
}

/// What AWS's console gives to key administrators: everything about the key, nothing with it.
const ADMINISTRATION: [&str; 15] = [
    "kms:Create*",
    "kms:Describe*",
    "kms:Enable*",
    "kms:List*",
    "kms:Put*",
    "kms:Update*",
    "kms:Revoke*",
    "kms:Disable*",
    "kms:Get*",
    "kms:Delete*",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:ScheduleKeyDeletion",
    "kms:CancelKeyDeletion",
    "kms:RotateKeyOnDemand",
];
/// Calls that are on no key or alias.
const WITHOUT_RESOURCE: [&str; 5] =
    ["kms:CreateKey", "kms:GenerateRandom", "kms:List*", "kms:*CustomKeyStore", "kms:*CustomKeyStores"];

fn add(conditions: &mut Map<String, Value>, operator: &str, key: &str, value: &str) {
    let keys = conditions.entry(operator).or_insert_with(|| json!({}));
    keys[key] = json!(value);
}

fn one_or_many(actions: &[&str]) -> Value {
    match actions {
        [one] => json!(one),
        many => json!(many),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subjects() -> Subjects {
        let mut context = EncryptionContext::default();
        context.insert_text("team=data").unwrap();
        Subjects {
            key: KeyArn::new("arn:aws-cn:kms:cn-north-1:111122223333:key/k"),
            provisioner: Principal::new("arn:aws-cn:iam::111122223333:role/P"),
            host: Principal::new("arn:aws-cn:iam::111122223333:role/H"),
            context,
        }
    }

    #[test]
    fn a_grant_may_be_the_one_that_is_needed_and_no_other() {
        let it = subjects();
        assert_eq!(
            json!(it.statement(Permission::Grant)),
            json!({
                "Sid": "SealblkGrantDecryptToTheHost",
                "Effect": "Allow",
                "Action": "kms:CreateGrant",
                "Resource": it.key,
                "Condition": {
                    "StringEquals": {
                        "kms:EncryptionContext:team": "data",
                        "kms:GrantConstraintType": "EncryptionContextSubset",
                        "kms:GranteePrincipal": it.host,
                        "kms:RetiringPrincipal": it.provisioner,
                    },
                    "ForAllValues:StringEquals": { "kms:GrantOperations": "Decrypt" },
                },
            })
        );
        assert_eq!(json!(it.statement(Permission::Describe)).get("Condition"), None);
    }

    #[test]
    fn a_service_is_bound_to_its_resource_and_has_no_policy_of_its_own() {
        let source = Source { arn: "arn:aws:x:r:111122223333:app/*".into(), account: "111122223333".into() };
        let user = subjects();
        let service = Subjects { provisioner: Principal::new("x.amazonaws.com"), ..subjects() };
        let statement = json!(service.key_statement(Permission::Describe, Some(&source)));
        assert_eq!(statement["Principal"], json!({ "Service": "x.amazonaws.com" }));
        assert_eq!(statement["Condition"]["ArnLike"]["aws:SourceArn"], json!(source.arn));
        assert_eq!(statement["Condition"]["StringEquals"]["aws:SourceAccount"], json!(source.account));
        assert!(service.provisioner_policy(&Permission::ALWAYS).is_none());
        assert_eq!(json!(user.key_statement(Permission::Describe, Some(&source))).get("Condition"), None);
    }

    #[test]
    fn without_an_administrator_the_account_decides() {
        let it = subjects();
        let policy = json!(it.key_policy(&Permission::ALWAYS, None, None));
        assert_eq!(policy["Statement"][0]["Principal"]["AWS"], "arn:aws-cn:iam::111122223333:root");
        let policy = json!(it.key_policy(&Permission::ALWAYS, Some(&it.host), None));
        assert_eq!(policy["Statement"][0]["Principal"]["AWS"], json!(it.host));
        assert_eq!(policy["Statement"].as_array().map(Vec::len), Some(5));
    }
}

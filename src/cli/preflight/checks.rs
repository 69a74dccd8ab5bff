//! The checks of a preflight, each with what is missing where it failed.

use std::sync::Arc;

use serde::Serialize;

use crate::envelope::KeyRequest;
use crate::kms::policy::{Permission, Statement, Subjects};
use crate::kms::{
    CheckOutcome, EncryptionContext, ErrorClass, KeyArn, KeyHealth, KeyService, KmsError, LeaseSpec, Parties,
    Principal,
};

const GENERATE: &str = "GenerateDataKeyWithoutPlaintext";
const GRANT: &str = "CreateGrant";
/// Name of the grant that is tried; it is never made.
const TRIAL: &str = "sealblk-preflight";

const NOT_REACHED: &str = "an earlier check failed";
const BY_STATE: &str = "the key's state or kind is the reason, not a permission";
const BY_DENY: &str = "a Deny wins over every Allow: it has to go, no statement helps against it";
const BY_CONDITION: &str = "if a policy gives this already, one of its conditions is not met: kms:ViaService, \
    kms:GrantIsForAWSResource and aws:SourceArn never are by a daemon that calls for itself; an encryption context \
    must be given by --context";

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    Pass,
    Fail,
    CannotTell,
}

/// One check.
#[derive(Serialize)]
pub(super) struct Check {
    pub(super) check: &'static str,
    pub(super) outcome: Outcome,
    pub(super) detail: String,
    /// What is missing: `kms:ACTION`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) permission: Option<String>,
    /// Who lacks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) principal: Option<String>,
    /// Whose policy would give it: `key` or `provisioner`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<&'static str>,
    /// By this statement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) statement: Option<Statement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<KmsError>,
}

impl Check {
    fn plain(check: &'static str, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            check,
            outcome,
            detail: detail.into(),
            permission: None,
            principal: None,
            policy: None,
            statement: None,
            hint: None,
            error: None,
        }
    }

    fn pass(check: &'static str, detail: impl Into<String>) -> Self {
        Self::plain(check, Outcome::Pass, detail)
    }

    fn cannot_tell(check: &'static str, why: impl Into<String>) -> Self {
        Self::plain(check, Outcome::CannotTell, why)
    }

    /// `permission` is what the call needs, and `subjects` who it is about, where that is known.
    fn fail(
        check: &'static str,
        error: KmsError,
        permission: Option<Permission>,
        subjects: Option<&Subjects>,
    ) -> Self {
        let mut failed = Self::plain(check, Outcome::Fail, &error.message);
        let lacks = error.code.as_deref().is_some_and(|code| code.starts_with("AccessDenied"));
        if lacks {
            failed.permission = Some(format!("kms:{}", error.call));
            let provisioner = || subjects.map(|subjects| subjects.provisioner.to_string());
            failed.principal = error.principal.clone().or_else(provisioner);
            let denied = error.message.contains("explicit deny");
            failed.hint = Some(if denied { BY_DENY } else { BY_CONDITION });
            // Where the key's policy does not let the account in, the caller's own counts for nothing.
            let of_key = error.message.contains("no resource-based policy");
            if let (Some(permission), Some(subjects), false) = (permission, subjects, denied) {
                failed.policy = Some(if of_key { "key" } else { "provisioner" });
                failed.statement = Some(match of_key {
                    true => subjects.key_statement(permission, None),
                    false => subjects.statement(permission),
                });
            }
        } else if error.class == ErrorClass::Unusable && permission.is_some() {
            failed.hint = Some(BY_STATE);
        }
        failed.error = Some(error);
        failed
    }
}

/// What to check.
pub(super) struct Plan {
    pub(super) request: KeyRequest,
    /// The whole context but for the volume's id.
    pub(super) context: EncryptionContext,
    pub(super) rewrap: bool,
}

impl Plan {
    /// Makes every check that can be made, whatever came of those before it.
    pub(super) async fn run(&self, opened: Result<Arc<dyn KeyService>, KmsError>) -> Vec<Check> {
        let described = match opened {
            Ok(kms) => {
                let health = kms.health(&self.request.key).await;
                Ok((kms, health))
            }
            Err(error) => Err(error),
        };
        let mut checks = Vec::new();
        let told = match described {
            Ok((kms, health)) if health.as_ref().err().is_none_or(is_answer) => {
                checks.push(Check::pass("KMS is reachable", ""));
                Some((kms, health))
            }
            Ok((_, Err(error))) | Err(error) => {
                checks.push(Check::fail("KMS is reachable", error, None, None));
                None
            }
            Ok((_, Ok(_))) => None,
        };
        match told {
            Some((kms, health)) => self.ask(&*kms, health, &mut checks).await,
            None => {
                checks.push(Check::cannot_tell("DescribeKey", NOT_REACHED));
                self.unknown_key(&mut checks);
                checks.push(Check::cannot_tell("parties", NOT_REACHED));
                self.untried(NOT_REACHED, &mut checks);
            }
        }
        self.never_told(&mut checks);
        checks
    }

    /// The checks against a KMS that answers.
    async fn ask(&self, kms: &dyn KeyService, health: Result<KeyHealth, KmsError>, checks: &mut Vec<Check>) {
        let parties = self.parties(kms).await;
        let key = match &health {
            Ok(health) => Some(health.arn.clone()),
            Err(error) => key_of(error),
        };
        let subjects = parties.as_ref().ok().zip(key.clone()).map(|(parties, key)| Subjects {
            key,
            provisioner: parties.retiring.clone(),
            host: parties.grantee.clone(),
            context: self.request.context.clone(),
        });
        match health {
            Ok(health) => {
                checks.push(Check::pass("DescribeKey", health.arn.as_str()));
                checks.extend(health.conditions().iter().map(|condition| match health.require(condition) {
                    Ok(()) => Check::pass(condition.what, condition.is),
                    Err(error) => Check::fail(condition.what, error, None, None),
                }));
            }
            Err(error) => {
                checks.push(Check::fail("DescribeKey", error, Some(Permission::Describe), subjects.as_ref()));
                self.unknown_key(checks);
            }
        }
        match (parties, key) {
            (Err(error), _) => {
                checks.push(Check::fail("parties", error, None, None));
                self.untried("who unwraps is not known: give --grantee and --retiring", checks);
            }
            (Ok(parties), key) => {
                let who = format!("provisioner {}, host {}", parties.retiring, parties.grantee);
                checks.push(Check::pass("parties", who));
                match key {
                    Some(key) => self.dry_runs(kms, &key, &parties, subjects.as_ref(), checks).await,
                    None => self.untried("the key's ARN is not known", checks),
                }
            }
        }
    }

    async fn dry_runs(
        &self,
        kms: &dyn KeyService,
        key: &KeyArn,
        parties: &Parties,
        subjects: Option<&Subjects>,
        checks: &mut Vec<Check>,
    ) {
        if !self.request.preflight {
            return self.untried("--preflight is off", checks);
        }
        let Parties { grantee, retiring } = parties.clone();
        let lease = LeaseSpec { grantee, retiring, name: TRIAL.into() };
        let outcomes = match kms.preflight(key, &self.context, &lease).await {
            Ok(preflight) => preflight.checks,
            Err(error) => {
                checks.push(Check::fail("dry runs", error, None, None));
                return;
            }
        };
        for tried in outcomes {
            let (name, permission) = match tried.call {
                GRANT => ("CreateGrant, dry run", Some(Permission::Grant)),
                GENERATE => ("GenerateDataKeyWithoutPlaintext, dry run", Some(Permission::Generate)),
                call => (call, None),
            };
            checks.push(match tried.outcome {
                CheckOutcome::Pass => Check::pass(name, "would succeed"),
                CheckOutcome::CannotTell(why) => Check::cannot_tell(name, why),
                CheckOutcome::Fail(error) => Check::fail(name, error, permission, subjects),
            });
        }
    }

    /// Who provisions and who unwraps, as a volume would have it.
    async fn parties(&self, kms: &dyn KeyService) -> Result<Parties, KmsError> {
        let KeyRequest { grantee, retiring, .. } = &self.request;
        if let (Some(grantee), Some(retiring)) = (grantee, retiring) {
            return Ok(Parties { grantee: grantee.clone(), retiring: retiring.clone() });
        }
        let own = kms.parties().await?;
        let or = |given: &Option<Principal>, own| given.clone().unwrap_or(own);
        Ok(Parties { grantee: or(grantee, own.grantee), retiring: or(retiring, own.retiring) })
    }

    fn unknown_key(&self, checks: &mut Vec<Check>) {
        let what = ["key state", "key spec", "key usage", "origin", "key manager"];
        checks.extend(what.map(|what| Check::cannot_tell(what, "DescribeKey tells, and it failed")));
    }

    fn untried(&self, why: &str, checks: &mut Vec<Check>) {
        checks.push(Check::cannot_tell("GenerateDataKeyWithoutPlaintext, dry run", why));
        checks.push(Check::cannot_tell("CreateGrant, dry run", why));
    }

    /// What no call can tell beforehand.
    fn never_told(&self, checks: &mut Vec<Check>) {
        if self.rewrap {
            let why = "ReEncrypt cannot be tried without a wrapped key; `sealblk policy --rewrap` prints what it needs";
            checks.push(Check::cannot_tell("ReEncrypt", why));
        }
        let why = "the host's right is its grant, which is made with the volume";
        checks.push(Check::cannot_tell("Decrypt by the host", why));
    }
}

/// True if the KMS itself has answered, if only to refuse.
fn is_answer(error: &KmsError) -> bool {
    match error.class {
        ErrorClass::Unusable | ErrorClass::Corrupt | ErrorClass::Grant | ErrorClass::DryRun => true,
        // Without a code there were no credentials to ask with.
        ErrorClass::Denied => error.code.is_some(),
        // An ARN that is none is refused by the KMS; settings that cannot work never reach one.
        ErrorClass::Config => error.request_id.is_some(),
        ErrorClass::Unreachable | ErrorClass::Throttled | ErrorClass::Storage | ErrorClass::Nonsense => false,
    }
}

/// The ARN of the key that a refusal is about: as the call named it, or as the message does.
fn key_of(error: &KmsError) -> Option<KeyArn> {
    let named =
        error.message.split_once("on resource: ").and_then(|(_, rest)| rest.split_whitespace().next());
    let is_key = |text: &&str| text.starts_with("arn:") && text.contains(":kms:") && text.contains(":key/");
    let found = error.code.as_deref() != Some("NotFoundException");
    error.key.as_deref().filter(is_key).or(named.filter(is_key)).filter(|_| found).map(KeyArn::new)
}

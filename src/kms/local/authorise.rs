//! Who may do what: the key's policy, the principal's own, and grants.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::call::Call;
use super::failure::Failure;
use super::files::{Files, USER_POLICIES};
use super::pairs::Pairs;
use super::policy::{self, ConditionKeys, Document, Kind, PolicyCaller, Request};
use super::principal::PrincipalName;
use super::record::{Grant, KeyRecord, MaterialId};
use super::token::{self, MAX_TOKENS, Named};
use super::wire::Token;

/// What is asked for beside the key.
#[derive(Default)]
pub(crate) struct Access<'a> {
    /// The encryption context of a cryptographic operation; grant constraints hold for those only.
    pub(crate) context: Option<&'a Pairs>,
    /// Grant tokens of the call.
    pub(crate) tokens: &'a [Token],
    /// Condition keys that this operation alone has.
    pub(crate) facts: ConditionKeys,
}

impl<'a> Access<'a> {
    /// For a cryptographic operation.
    pub(crate) fn to_use(context: &'a Pairs, tokens: &'a [Token]) -> Self {
        Self { context: Some(context), tokens, ..Self::default() }
    }
}

/// The principals' own policies that were put, as they were put.
#[derive(Default, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct UserPolicies(BTreeMap<PrincipalName, String>);

impl UserPolicies {
    /// Reads them.
    ///
    /// # Errors
    /// [`Failure::Storage`].
    pub(crate) fn load(files: &Files<'_>) -> Result<Self, Failure> {
        Ok(files.read(USER_POLICIES)?.unwrap_or_default())
    }

    /// A principal's policy.
    pub(crate) fn of(&self, name: PrincipalName) -> &str {
        self.0.get(&name).map_or(policy::identity_default(name), String::as_str)
    }

    /// Replaces a principal's policy.
    ///
    /// # Errors
    /// MalformedPolicyDocumentException, or [`Failure::Storage`].
    pub(crate) fn put(mut self, files: &Files<'_>, name: PrincipalName, text: &str) -> Result<(), Failure> {
        Document::read(text, Kind::Identity).map_err(Failure::malformed_policy)?;
        self.0.insert(name, text.into());
        files.write(USER_POLICIES, &self)
    }
}

impl Call<'_> {
    /// Checks that the caller may do `kms:ACTION` with the key, by policy or by a grant.
    ///
    /// # Errors
    /// AccessDeniedException, InvalidGrantTokenException, or ValidationException for too many tokens.
    pub(crate) fn authorise(
        &self,
        action: &str,
        record: &KeyRecord,
        access: &Access<'_>,
    ) -> Result<(), Failure> {
        let tokens = self.grants_of_tokens(record, access.tokens)?;
        let granted = self.granting(action, record, access, &tokens).next().is_some();
        self.decide(action, record, access, granted)
    }

    /// Checks that policies let the caller do `kms:ACTION` with the key, where no grant could.
    ///
    /// # Errors
    /// AccessDeniedException.
    pub(crate) fn authorise_by_policy(&self, action: &str, record: &KeyRecord) -> Result<(), Failure> {
        self.decide(action, record, &Access::default(), false)
    }

    /// Checks that the caller's own policy lets it do `kms:ACTION` with `resource`: an alias, or `*`.
    ///
    /// # Errors
    /// AccessDeniedException.
    pub(crate) fn authorise_without_key(&self, action: &str, resource: &str) -> Result<(), Failure> {
        self.authorise_with(action, resource, &ConditionKeys::default())
    }

    /// As [`Call::authorise_without_key`], with condition keys that this operation alone has.
    ///
    /// # Errors
    /// AccessDeniedException.
    pub(crate) fn authorise_with(
        &self,
        action: &str,
        resource: &str,
        facts: &ConditionKeys,
    ) -> Result<(), Failure> {
        let mut keys = self.own_facts();
        keys.extend(facts);
        let request = self.policy_request(action, resource, keys);
        let identity = self.identity_policy()?;
        policy::decide(&request, None, Some(&identity), false).map_err(|refusal| denied(&request, refusal))
    }

    /// Checks the policies on a call; `granted` says that a grant allows it.
    ///
    /// # Errors
    /// AccessDeniedException, or [`Failure::Storage`] for a stored policy that is damaged.
    pub(crate) fn decide(
        &self,
        action: &str,
        record: &KeyRecord,
        access: &Access<'_>,
        granted: bool,
    ) -> Result<(), Failure> {
        let key = self.key_policy(record)?;
        self.decide_under(&key, action, record, access, granted)
    }

    /// As [`Call::decide`], under a key policy that the key does not have yet.
    ///
    /// # Errors
    /// As [`Call::decide`].
    pub(crate) fn decide_under(
        &self,
        key: &Document,
        action: &str,
        record: &KeyRecord,
        access: &Access<'_>,
        granted: bool,
    ) -> Result<(), Failure> {
        let mut facts = self.own_facts();
        self.add_key_facts(&mut facts, record)?;
        if let Some(context) = access.context {
            facts.add_context(context);
            facts.add("kms:EncryptionAlgorithm", "SYMMETRIC_DEFAULT");
        }
        facts.extend(&access.facts);
        let request = self.policy_request(action, &record.arn, facts);
        let identity = self.identity_policy()?;
        policy::decide(&request, Some(key), Some(&identity), granted)
            .map_err(|refusal| denied(&request, refusal))
    }

    /// The text of a key's policy.
    pub(crate) fn key_policy_text(&self, record: &KeyRecord) -> String {
        record.policy.clone().unwrap_or_else(|| policy::key_default(&self.identity.account))
    }

    fn key_policy(&self, record: &KeyRecord) -> Result<Document, Failure> {
        let stored =
            |malformed| Failure::Storage(format!("the stored policy of {}: {malformed}", record.arn));
        Document::read(&self.key_policy_text(record), Kind::Key).map_err(stored)
    }

    fn identity_policy(&self) -> Result<Document, Failure> {
        let name = self.principal.name;
        let stored =
            |malformed| Failure::Storage(format!("{USER_POLICIES}: the policy of {name}: {malformed}"));
        Document::read(UserPolicies::load(self.files)?.of(name), Kind::Identity).map_err(stored)
    }

    fn policy_request(&self, action: &str, resource: &str, keys: ConditionKeys) -> Request {
        let (arn, account) = (self.principal.arn.clone(), self.identity.account.clone());
        Request {
            caller: PolicyCaller::Iam { arn, account },
            action: format!("kms:{action}"),
            resource: resource.into(),
            keys,
        }
    }

    /// Condition keys of the caller.
    fn own_facts(&self) -> ConditionKeys {
        let mut facts = ConditionKeys::default();
        for (name, value) in [
            ("aws:PrincipalArn", self.principal.arn.as_str()),
            ("aws:PrincipalAccount", &self.identity.account),
            ("aws:PrincipalType", "User"),
            ("aws:PrincipalIsAWSService", "false"),
            ("aws:userid", &self.principal.principal_id),
            ("aws:username", self.principal.name.as_str()),
            ("aws:SecureTransport", if self.secure { "true" } else { "false" }),
            ("kms:CallerAccount", &self.identity.account),
            ("kms:GrantIsForAWSResource", "false"),
        ] {
            facts.add(name, value);
        }
        facts
    }

    /// Condition keys of the key.
    fn add_key_facts(&self, facts: &mut ConditionKeys, record: &KeyRecord) -> Result<(), Failure> {
        for (name, value) in [
            ("kms:KeySpec", record.spec.as_str()),
            ("kms:CustomerMasterKeySpec", &record.spec),
            ("kms:KeyUsage", &record.usage),
            ("kms:CustomerMasterKeyUsage", &record.usage),
            ("kms:KeyOrigin", &record.origin),
            ("kms:MultiRegion", "false"),
        ] {
            facts.add(name, value);
        }
        for (name, _) in self.aliases()?.0.iter().filter(|(_, alias)| alias.key == record.id) {
            facts.add("kms:ResourceAliases", name);
        }
        if let Some(alias) = self.aliases_used.get(&record.id) {
            facts.add("kms:RequestAlias", alias);
        }
        Ok(())
    }

    /// The caller's grants that allow `kms:ACTION` now.
    pub(crate) fn granting<'r>(
        &self,
        action: &str,
        record: &'r KeyRecord,
        access: &Access<'_>,
        granted: &[MaterialId],
    ) -> impl Iterator<Item = &'r Grant> {
        record.grants.iter().filter(move |grant| {
            grant.grantee == self.principal.arn
                && grant.operations.iter().any(|operation| operation == action)
                && (granted.contains(&grant.id) || grant.is_everywhere(self.now, self.grant_delay))
                && match (&grant.constraints, access.context) {
                    (Some(constraints), Some(context)) => constraints.admit(context),
                    _ => true,
                }
        })
    }

    /// The grants on this key that the call's tokens name.
    ///
    /// # Errors
    /// InvalidGrantTokenException for a token that is not genuine or whose grant has ended, ValidationException
    /// for too many.
    pub(crate) fn grants_of_tokens(
        &self,
        record: &KeyRecord,
        tokens: &[Token],
    ) -> Result<Vec<MaterialId>, Failure> {
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        if tokens.len() > MAX_TOKENS {
            let constraint = format!("have length less than or equal to {MAX_TOKENS}");
            return Err(Failure::constraint(
                "grantTokens",
                format!("[{} tokens]", tokens.len()),
                &constraint,
            ));
        }
        let secret = self.token_secret()?;
        let mut granted = Vec::new();
        for token in tokens {
            let named = Named::verify(token, &secret)?;
            // A token for another key is genuine, and of no use here.
            if named.key == record.id {
                let known = record.grants.iter().any(|grant| grant.id == named.grant);
                granted.push(known.then_some(named.grant).ok_or_else(token::invalid)?);
            }
        }
        Ok(granted)
    }
}

/// A refusal in AWS's words.
fn denied(request: &Request, refusal: policy::Refusal) -> Failure {
    let Request { caller, action, resource, .. } = request;
    let caller = match caller {
        PolicyCaller::Iam { arn, .. } => arn,
        PolicyCaller::Service(name) => name,
    };
    let words = refusal.words(action);
    Failure::new(
        "AccessDeniedException",
        format!("User: {caller} is not authorized to perform: {action} on resource: {resource} {words}"),
    )
}

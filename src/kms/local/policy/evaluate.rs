//! A request held against policies.

use super::document::{Document, Effect, List, PrincipalElement, Statement};
use super::{PolicyCaller, Request, pattern};

/// Why a request is refused, in AWS's words: what stands behind "is not authorized to perform: ...".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A Deny in the key's policy.
    DeniedByKey,
    /// A Deny in the caller's policy.
    DeniedByIdentity,
    /// The key's policy lets neither the caller nor its account in.
    NotInKeyPolicy,
    /// The key's policy leaves it to the caller's, which does not allow it.
    NotInIdentityPolicy,
}

impl Refusal {
    /// The end of the message; `action` is `kms:ACTION`.
    pub(crate) fn words(self, action: &str) -> String {
        match self {
            Self::DeniedByKey => "with an explicit deny in a resource-based policy".into(),
            Self::DeniedByIdentity => "with an explicit deny in an identity-based policy".into(),
            Self::NotInKeyPolicy => format!("because no resource-based policy allows the {action} action"),
            Self::NotInIdentityPolicy => {
                format!("because no identity-based policy allows the {action} action")
            }
        }
    }
}

/// How far a key policy's Allow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Nobody,
    /// The caller's account: its own policies decide.
    Account,
    /// The caller.
    Caller,
}

/// Decides. `key` is the policy of the key that the call is on, `None` for a call on no key; `identity` the
/// caller's own, if it has one; `granted` says that a grant allows the call.
///
/// # Errors
/// The [`Refusal`].
pub(crate) fn decide(
    request: &Request,
    key: Option<&Document>,
    identity: Option<&Document>,
    granted: bool,
) -> Result<(), Refusal> {
    if key.is_some_and(|policy| policy.reach(Effect::Deny, request) > Reach::Nobody) {
        return Err(Refusal::DeniedByKey);
    }
    if identity.is_some_and(|policy| policy.reach(Effect::Deny, request) > Reach::Nobody) {
        return Err(Refusal::DeniedByIdentity);
    }
    let reach = key.map_or(Reach::Account, |policy| policy.reach(Effect::Allow, request));
    if granted || reach == Reach::Caller {
        return Ok(());
    }
    if reach == Reach::Nobody {
        return Err(Refusal::NotInKeyPolicy);
    }
    let allowed = identity.is_some_and(|policy| policy.reach(Effect::Allow, request) == Reach::Caller);
    allowed.then_some(()).ok_or(Refusal::NotInIdentityPolicy)
}

impl Document {
    /// The farthest that statements of this effect reach in the request.
    fn reach(&self, effect: Effect, request: &Request) -> Reach {
        let statements = self.statements.iter().filter(|statement| statement.effect == effect);
        statements.map(|statement| statement.reach(request)).max().unwrap_or(Reach::Nobody)
    }
}

impl Statement {
    fn reach(&self, request: &Request) -> Reach {
        let applies = self.actions.covers(|action| pattern::fits_any_case(action, &request.action))
            && self.resources.covers(|resource| pattern::fits(resource, &request.resource))
            && self.conditions.iter().all(|condition| condition.holds(&request.keys));
        match &self.principals {
            _ if !applies => Reach::Nobody,
            None => Reach::Caller,
            Some(principals) => principals.reach(&request.caller),
        }
    }
}

impl<T> List<T> {
    fn covers(&self, fits: impl FnMut(&T) -> bool) -> bool {
        self.items.iter().any(fits) != self.inverted
    }
}

impl List<PrincipalElement> {
    fn reach(&self, caller: &PolicyCaller) -> Reach {
        let named = self.items.iter().map(|item| item.reach(caller)).max().unwrap_or(Reach::Nobody);
        match (self.inverted, named) {
            (false, reach) => reach,
            (true, Reach::Nobody) => Reach::Caller,
            (true, Reach::Account | Reach::Caller) => Reach::Nobody,
        }
    }
}

impl PrincipalElement {
    fn reach(&self, caller: &PolicyCaller) -> Reach {
        let (itself, account) = match (self, caller) {
            (Self::Everybody, _) => (true, false),
            (Self::Account(named), PolicyCaller::Iam { account, .. }) => (false, named == account),
            (Self::Arn(named), PolicyCaller::Iam { arn, .. }) => (named == arn, false),
            (Self::Service(named), PolicyCaller::Service(service)) => (named == service, false),
            (Self::Arn(_) | Self::Account(_), PolicyCaller::Service(_)) => (false, false),
            (Self::Service(_), PolicyCaller::Iam { .. }) | (Self::Foreign, _) => (false, false),
        };
        match (itself, account) {
            (true, _) => Reach::Caller,
            (false, true) => Reach::Account,
            (false, false) => Reach::Nobody,
        }
    }
}

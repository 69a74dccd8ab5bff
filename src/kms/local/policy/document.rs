//! A policy document: JSON in, statements out. What is not known is refused.

use serde_json::{Map, Value};

use super::condition::Condition;
use super::strict::Strict;

/// A policy that was read.
#[derive(Debug)]
pub(crate) struct Document {
    pub(super) statements: Vec<Statement>,
}

/// Whose policy it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A key's: each statement names principals.
    Key,
    /// A principal's own: none does.
    Identity,
}

/// Why a document was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(String);

/// A refusal that says `why`.
pub(super) fn malformed(why: impl Into<String>) -> Malformed {
    Malformed(why.into())
}

#[derive(Debug)]
pub(super) struct Statement {
    pub(super) effect: Effect,
    /// `None` in a principal's own policy.
    pub(super) principals: Option<List<PrincipalElement>>,
    pub(super) actions: List<String>,
    pub(super) resources: List<String>,
    pub(super) conditions: Vec<Condition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Allow,
    Deny,
}

/// An element, or its `Not...`.
#[derive(Debug)]
pub(super) struct List<T> {
    pub(super) inverted: bool,
    pub(super) items: Vec<T>,
}

/// One of a statement's principals.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PrincipalElement {
    /// `*`.
    Everybody,
    /// An account, by its id or the ARN of its root.
    Account(String),
    /// A user, role or session.
    Arn(String),
    /// An AWS service.
    Service(String),
    /// A canonical user or a federated one: kept, and nobody here is one.
    Foreign,
}

impl Document {
    /// Reads a document.
    ///
    /// # Errors
    /// [`Malformed`] for what is not JSON, lacks an element or has one that is not known, at any depth.
    pub(crate) fn read(text: &str, kind: Kind) -> Result<Self, Malformed> {
        let Strict(value) =
            serde_json::from_str(text).map_err(|error| malformed(format!("it is not JSON: {error}")))?;
        let Value::Object(object) = value else { return Err(malformed("it is not a JSON object")) };
        known_only(&object, &["Version", "Id", "Statement"], "policy")?;
        let has_variables = match object.get("Version").map(Value::as_str) {
            None | Some(Some("2008-10-17")) => false,
            Some(Some("2012-10-17")) => true,
            Some(_) => return Err(malformed("its Version is neither 2012-10-17 nor 2008-10-17")),
        };
        text_or_nothing(&object, "Id")?;
        let statements = match object.get("Statement") {
            None => return Err(malformed("it has no Statement")),
            Some(Value::Array(list)) => list.iter().collect(),
            Some(single) => vec![single],
        };
        let statements: Vec<_> = statements
            .into_iter()
            .map(|statement| Statement::read(statement, kind))
            .collect::<Result<_, _>>()?;
        if has_variables && statements.iter().any(Statement::has_variables) {
            return Err(malformed("policy variables (${...}) are not known to the embedded KMS"));
        }
        Ok(Self { statements })
    }
}

impl Statement {
    fn read(value: &Value, kind: Kind) -> Result<Self, Malformed> {
        const KNOWN: [&str; 9] = [
            "Sid",
            "Effect",
            "Principal",
            "NotPrincipal",
            "Action",
            "NotAction",
            "Resource",
            "NotResource",
            "Condition",
        ];
        let object = value.as_object().ok_or_else(|| malformed("a Statement is not an object"))?;
        known_only(object, &KNOWN, "statement")?;
        text_or_nothing(object, "Sid")?;
        let effect = match object.get("Effect").and_then(Value::as_str) {
            Some("Allow") => Effect::Allow,
            Some("Deny") => Effect::Deny,
            _ => return Err(malformed("a statement's Effect is neither Allow nor Deny")),
        };
        let actions = either(object, "Action")?.ok_or_else(|| malformed("a statement has no Action"))?;
        let actions = actions.try_map(texts)?;
        if let Some(bad) = actions.items.iter().find(|action| !is_action(action)) {
            return Err(malformed(format!("{bad:?} is not an action such as kms:Decrypt")));
        }
        let resources =
            either(object, "Resource")?.ok_or_else(|| malformed("a statement has no Resource"))?;
        let principals = either(object, "Principal")?.map(|list| list.try_map(principals)).transpose()?;
        match (kind, &principals) {
            (Kind::Key, None) => return Err(malformed("a statement of a key policy names no Principal")),
            (Kind::Identity, Some(_)) => {
                return Err(malformed("a statement of a principal's own policy names a Principal"));
            }
            _ => {}
        }
        let conditions = object.get("Condition").map_or(Ok(Vec::new()), Condition::read)?;
        Ok(Self { effect, principals, actions, resources: resources.try_map(texts)?, conditions })
    }

    fn has_variables(&self) -> bool {
        let conditions = self.conditions.iter().flat_map(Condition::texts);
        self.resources.items.iter().chain(conditions).any(|text| text.contains("${"))
    }
}

impl List<&Value> {
    fn try_map<T>(self, read: impl Fn(&Value) -> Result<Vec<T>, Malformed>) -> Result<List<T>, Malformed> {
        let mut items = Vec::new();
        for item in self.items {
            items.extend(read(item)?);
        }
        if items.is_empty() {
            return Err(malformed("an Action, Resource or Principal is empty"));
        }
        Ok(List { inverted: self.inverted, items })
    }
}

/// The element `name`, or else its `Not...`; both together are refused.
fn either<'v>(object: &'v Map<String, Value>, name: &str) -> Result<Option<List<&'v Value>>, Malformed> {
    let list = |inverted| move |value| List { inverted, items: vec![value] };
    match (object.get(name), object.get(&format!("Not{name}"))) {
        (Some(_), Some(_)) => Err(malformed(format!("a statement has both {name} and Not{name}"))),
        (plain, inverted) => Ok(plain.map(list(false)).or(inverted.map(list(true)))),
    }
}

fn known_only(object: &Map<String, Value>, known: &[&str], of: &str) -> Result<(), Malformed> {
    match object.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(malformed(format!("{name:?} is no element of a {of}"))),
        None => Ok(()),
    }
}

fn text_or_nothing(object: &Map<String, Value>, name: &str) -> Result<(), Malformed> {
    match object.get(name) {
        None | Some(Value::String(_)) => Ok(()),
        Some(_) => Err(malformed(format!("{name} is not a string"))),
    }
}

/// A string, or a list of strings.
fn texts(value: &Value) -> Result<Vec<String>, Malformed> {
    let text = |value: &Value| {
        let text = value.as_str().filter(|text| !text.is_empty());
        text.map(String::from)
            .ok_or_else(|| malformed("an element is neither a string nor a list of strings"))
    };
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        single => text(single).map(|text| vec![text]),
    }
}

fn is_action(action: &str) -> bool {
    let named = action.split_once(':').is_some_and(|(service, name)| !service.is_empty() && !name.is_empty());
    action == "*" || named
}

fn principals(value: &Value) -> Result<Vec<PrincipalElement>, Malformed> {
    if value.as_str() == Some("*") {
        return Ok(vec![PrincipalElement::Everybody]);
    }
    let kinds = value.as_object().ok_or_else(|| malformed("a Principal is neither \"*\" nor an object"))?;
    let mut found = Vec::new();
    for (kind, named) in kinds {
        for name in texts(named)? {
            found.push(match kind.as_str() {
                "AWS" => aws_principal(&name)?,
                "Service" if name.contains('*') => return Err(invalid(&name)),
                "Service" => PrincipalElement::Service(name),
                "CanonicalUser" | "Federated" => PrincipalElement::Foreign,
                _ => return Err(malformed(format!("{kind:?} is no kind of Principal"))),
            });
        }
    }
    Ok(found)
}

fn invalid(name: &str) -> Malformed {
    malformed(format!("{name:?} is not a valid principal"))
}

fn aws_principal(name: &str) -> Result<PrincipalElement, Malformed> {
    let is_account = |text: &str| text.len() == 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    if name == "*" {
        return Ok(PrincipalElement::Everybody);
    }
    if is_account(name) {
        return Ok(PrincipalElement::Account(name.into()));
    }
    let parts: Vec<&str> = name.splitn(6, ':').collect();
    match parts[..] {
        // A wildcard within an ARN is none here: AWS refuses it as well.
        _ if name.contains(['*', '?']) => Err(invalid(name)),
        ["arn", _, "iam", "", account, "root"] if is_account(account) => {
            Ok(PrincipalElement::Account(account.into()))
        }
        ["arn", _, "iam" | "sts", "", account, resource] if is_account(account) && resource.contains('/') => {
            Ok(PrincipalElement::Arn(name.into()))
        }
        _ => Err(invalid(name)),
    }
}

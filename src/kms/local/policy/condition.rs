//! Conditions: an operator, a condition key and the values that a policy asks for.

use serde_json::Value;

use super::document::{Malformed, malformed};
use super::{ConditionKeys, pattern};

/// Condition keys that the embedded KMS knows, in lower case; beside them `kms:EncryptionContext:KEY`. Those that no
/// call here has (`kms:ViaService`) count as absent, as they do at AWS for a caller that is no service.
const KEYS: [&str; 27] = [
    "aws:principalaccount",
    "aws:principalarn",
    "aws:principalisawsservice",
    "aws:principaltype",
    "aws:securetransport",
    "aws:sourceaccount",
    "aws:sourcearn",
    "aws:userid",
    "aws:username",
    "kms:bypasspolicylockoutsafetycheck",
    "kms:calleraccount",
    "kms:customermasterkeyspec",
    "kms:customermasterkeyusage",
    "kms:encryptionalgorithm",
    "kms:encryptioncontextkeys",
    "kms:grantconstrainttype",
    "kms:granteeprincipal",
    "kms:grantisforawsresource",
    "kms:grantoperations",
    "kms:keyorigin",
    "kms:keyspec",
    "kms:keyusage",
    "kms:multiregion",
    "kms:reencryptonsamekey",
    "kms:requestalias",
    "kms:resourcealiases",
    "kms:retiringprincipal",
];
const VIA_SERVICE: &str = "kms:viaservice";
const CONTEXT: &str = "kms:encryptioncontext:";

/// One line of a `Condition` block.
#[derive(Debug)]
pub(super) struct Condition {
    quantity: Quantity,
    comparison: Comparison,
    /// The comparison must fail for each value that is asked for.
    negated: bool,
    /// A request without the key passes.
    if_exists: bool,
    /// In lower case.
    key: String,
    values: Vec<String>,
}

/// How many of a request's values have to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quantity {
    /// No set operator: the key has one value. Of one that has more after all, each has to pass.
    Single,
    ForAllValues,
    ForAnyValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Equals,
    EqualsIgnoreCase,
    Like,
    Arn,
    Bool,
    Null,
}

impl Condition {
    /// Reads the whole `Condition` block of a statement.
    pub(super) fn read(block: &Value) -> Result<Vec<Self>, Malformed> {
        let operators = block.as_object().ok_or_else(|| malformed("Condition is not an object"))?;
        let mut conditions = Vec::new();
        for (operator, keys) in operators {
            let keys = keys.as_object().filter(|keys| !keys.is_empty());
            for (key, values) in
                keys.ok_or_else(|| malformed(format!("{operator} names no condition key")))?
            {
                conditions.push(Self::of(operator, key, values)?);
            }
        }
        Ok(conditions)
    }

    fn of(operator: &str, key: &str, values: &Value) -> Result<Self, Malformed> {
        let lower = key.to_lowercase();
        let of_context = lower.strip_prefix(CONTEXT).is_some_and(|name| !name.is_empty());
        if !of_context && lower != VIA_SERVICE && !KEYS.contains(&lower.as_str()) {
            return Err(malformed(format!("the condition key {key} is not known to the embedded KMS")));
        }
        let (quantity, comparison, negated, if_exists) = read_operator(operator)?;
        let values = read_values(values)?;
        let is_truth = matches!(comparison, Comparison::Bool | Comparison::Null);
        if is_truth && !values.iter().all(|value| is_bool(value)) {
            return Err(malformed(format!("{operator} of {key} takes true or false")));
        }
        Ok(Self { quantity, comparison, negated, if_exists, key: lower, values })
    }

    /// The texts in which a policy variable could stand.
    pub(super) fn texts(&self) -> impl Iterator<Item = &String> {
        self.values.iter()
    }

    /// True if the request meets this condition.
    pub(super) fn holds(&self, keys: &ConditionKeys) -> bool {
        let found = keys.values(&self.key);
        if self.comparison == Comparison::Null {
            return self.values.iter().any(|wanted| wanted.eq_ignore_ascii_case("true") == found.is_none());
        }
        let Some(found) = found else {
            return self.if_exists
                || match self.quantity {
                    Quantity::Single => self.negated,
                    Quantity::ForAllValues => true,
                    Quantity::ForAnyValue => false,
                };
        };
        match self.quantity {
            Quantity::ForAllValues => found.iter().all(|value| self.matches(value) != self.negated),
            Quantity::ForAnyValue => found.iter().any(|value| self.matches(value) != self.negated),
            Quantity::Single => found.iter().all(|value| self.matches(value)) != self.negated,
        }
    }

    /// True if the request's value is one of those that are asked for.
    fn matches(&self, found: &str) -> bool {
        self.values.iter().any(|wanted| match self.comparison {
            Comparison::Equals => wanted == found,
            Comparison::EqualsIgnoreCase => wanted.to_lowercase() == found.to_lowercase(),
            Comparison::Like => pattern::fits(wanted, found),
            Comparison::Arn => pattern::fits_arn(wanted, found),
            Comparison::Bool | Comparison::Null => wanted.eq_ignore_ascii_case(found),
        })
    }
}

fn read_operator(operator: &str) -> Result<(Quantity, Comparison, bool, bool), Malformed> {
    let unknown = || malformed(format!("the condition operator {operator} is not known to the embedded KMS"));
    let (quantity, rest) = match operator.split_once(':') {
        None => (Quantity::Single, operator),
        Some(("ForAllValues", rest)) => (Quantity::ForAllValues, rest),
        Some(("ForAnyValue", rest)) => (Quantity::ForAnyValue, rest),
        Some(_) => return Err(unknown()),
    };
    let (name, if_exists) = rest.strip_suffix("IfExists").map_or((rest, false), |name| (name, true));
    let (comparison, negated) = match name {
        "StringEquals" => (Comparison::Equals, false),
        "StringNotEquals" => (Comparison::Equals, true),
        "StringEqualsIgnoreCase" => (Comparison::EqualsIgnoreCase, false),
        "StringNotEqualsIgnoreCase" => (Comparison::EqualsIgnoreCase, true),
        "StringLike" => (Comparison::Like, false),
        "StringNotLike" => (Comparison::Like, true),
        "ArnEquals" | "ArnLike" => (Comparison::Arn, false),
        "ArnNotEquals" | "ArnNotLike" => (Comparison::Arn, true),
        "Bool" => (Comparison::Bool, false),
        "Null" if !if_exists && quantity == Quantity::Single => (Comparison::Null, false),
        _ => return Err(unknown()),
    };
    Ok((quantity, comparison, negated, if_exists))
}

fn is_bool(value: &str) -> bool {
    value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false")
}

fn read_values(values: &Value) -> Result<Vec<String>, Malformed> {
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(truth) => Ok(truth.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(malformed("a condition's value is neither a string nor a list of strings")),
    };
    match values {
        Value::Array(list) if list.is_empty() => Err(malformed("a condition has no value")),
        Value::Array(list) => list.iter().map(one).collect(),
        value => one(value).map(|value| vec![value]),
    }
}

//! Policies: who may do what, in AWS's policy language and by its rules.
//!
//! A `document` is read once and refused if it holds anything that is not known here, for a condition that is
//! passed over would let in what it was to keep out. `evaluate` holds a request against the key's policy and the
//! caller's own; `condition` has the operators, `pattern` the wildcards, `defaults` what holds where nobody put
//! anything else.
//!
//! | what is there | decides |
//! |---|---|
//! | Deny in either policy | no, whatever else allows it, a grant included |
//! | a grant | yes |
//! | Allow in the key policy, for the caller or for everybody | yes |
//! | Allow in the key policy for the caller's account, and Allow in the caller's policy | yes |
//! | anything less | no |

mod condition;
mod defaults;
mod document;
mod evaluate;
mod pattern;
mod strict;
#[cfg(test)]
mod tests;

pub(crate) use defaults::{identity_default, key_default};
pub(crate) use document::{Document, Kind};
pub(crate) use evaluate::{Refusal, decide};

use std::collections::BTreeMap;

use super::pairs::Pairs;

/// A call as policies see it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) caller: PolicyCaller,
    /// `kms:ACTION`.
    pub(crate) action: String,
    /// ARN of the key or alias, or `*` for a call that is on none.
    pub(crate) resource: String,
    pub(crate) keys: ConditionKeys,
}

/// Who makes a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PolicyCaller {
    /// A user or role.
    Iam {
        arn: String,
        /// 12 digits.
        account: String,
    },
    /// An AWS service, such as `emr-serverless.amazonaws.com`. The embedded KMS has none that calls it.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "policies that name services are decided in tests only")
    )]
    Service(String),
}

/// The values of condition keys, by name; names are compared without regard to case, values are not.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConditionKeys(BTreeMap<String, Vec<String>>);

impl ConditionKeys {
    /// Adds a value.
    pub(crate) fn add(&mut self, name: &str, value: impl Into<String>) {
        self.0.entry(name.to_lowercase()).or_default().push(value.into());
    }

    /// Adds an encryption context: a key for each pair, and one with the names of all.
    pub(crate) fn add_context(&mut self, pairs: &Pairs) {
        for (name, value) in pairs.iter() {
            self.add(&format!("kms:EncryptionContext:{name}"), value);
            self.add("kms:EncryptionContextKeys", name);
        }
    }

    /// Adds all of `others`.
    pub(crate) fn extend(&mut self, others: &Self) {
        for (name, values) in &others.0 {
            self.0.entry(name.clone()).or_default().extend_from_slice(values);
        }
    }

    /// The values of a key; none if the request has no such key.
    fn values(&self, lower_name: &str) -> Option<&[String]> {
        self.0.get(lower_name).map(Vec::as_slice).filter(|values| !values.is_empty())
    }
}

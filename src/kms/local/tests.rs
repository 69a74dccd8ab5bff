//! Tests of the embedded KMS as a whole, in the JSON that its clients speak.

mod calls;
mod events;
mod grants;
mod policies;
mod service;
mod states;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::engine::{Caller, Engine, Operation};
use super::failure::Failure;
use super::operations::keys::CreateKey;
use super::principal::PrincipalName;
use crate::kms::KeyState;

/// A KMS in a directory of its own.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) engine: Engine,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let engine = Engine::open(directory.path()).expect("a new KMS");
        Self { directory, engine }
    }

    /// Makes a call; the error is its code and message.
    pub(crate) fn call<O: Operation>(
        &self,
        who: PrincipalName,
        parameters: Value,
    ) -> Result<Value, (&'static str, String)> {
        let operation: O = serde_json::from_value(parameters).expect("parameters of the right types");
        let done = self.engine.call(&Caller::in_process(who, None), &operation).map_err(|failed| {
            assert!(!failed.request_id.is_empty());
            (known_code(&failed.failure), failed.failure.message().to_string())
        })?;
        Ok(serde_json::to_value(done.answer).expect("JSON"))
    }

    /// The code of a call that must fail.
    pub(crate) fn code<O: Operation>(&self, who: PrincipalName, parameters: Value) -> &'static str {
        self.call::<O>(who, parameters).expect_err("a failure").0
    }

    /// The ARN of a new key.
    pub(crate) fn key(&self, parameters: Value) -> String {
        let answer = self.call::<CreateKey>(PrincipalName::Admin, parameters).expect("a key");
        text(&answer["KeyMetadata"]["Arn"])
    }

    pub(crate) fn arn(&self, name: PrincipalName) -> String {
        self.engine.principal(name).expect("a principal").arn.clone()
    }

    /// Changes a stored key by hand, to reach a state that no call leads to.
    pub(crate) fn set_state(&self, arn: &str, state: &KeyState) {
        self.edit(arn, |document| document["state"] = json!(state));
    }

    pub(crate) fn edit(&self, arn: &str, change: impl FnOnce(&mut Value)) {
        let id = arn.rsplit('/').next().expect("an id");
        let path = self.directory.path().join(format!("keys/{id}.json"));
        let stored = std::fs::read(&path).expect("the document");
        let mut document = serde_json::from_slice(&stored).expect("JSON");
        change(&mut document);
        std::fs::write(&path, document.to_string()).expect("written");
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.engine.events()).expect("the log");
        log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().expect("a string").into()
}

/// The code of a failure that nobody ordered.
fn known_code(failure: &Failure) -> &'static str {
    match failure {
        Failure::Api { code: std::borrow::Cow::Borrowed(code), .. } => code,
        _ => "KMSInternalException",
    }
}

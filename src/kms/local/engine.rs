//! Runs calls: one at a time over all processes, each with its record in the event log.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::authorise::UserPolicies;
use super::call::Call;
use super::event::{Effects, Happened, spelled_for_events};
use super::failure::Failure;
use super::files::{Directory, Files, IDENTITY, KEYS, MATERIALS, NOT_A_KMS, PRINCIPALS, TOKEN_SECRET};
use super::principal::{PrincipalName, PrincipalRecord};
use super::record::random;
use super::token;
use crate::kms::{CallRecord, Witness};
use crate::secret::LockedBytes;

const EVENTS: &str = "events.jsonl";
const FORMAT: u32 = 1;
const REGION: &str = "us-east-1";

/// An operation of the API: its parameters, spelled as on the wire.
///
/// What serialises goes into the event log, so blobs, plaintexts and tokens do not.
pub(crate) trait Operation: Serialize + DeserializeOwned + Send + 'static {
    /// Its name in the API.
    const NAME: &'static str;
    /// True if it changes nothing, as CloudTrail sees it.
    const READ_ONLY: bool;
    /// What it answers.
    type Answer: Serialize + Send + 'static;

    /// Checks and does it. Checks come first and `Call::dry_run` after the last of them.
    ///
    /// # Errors
    /// Any of the API's.
    fn run(&self, call: &mut Call<'_>) -> Result<Self::Answer, Failure>;

    /// The record's `requestParameters`.
    ///
    /// # Errors
    /// KMSInternalException for what JSON cannot hold.
    fn parameters(&self) -> Result<Value, Failure> {
        spelled_for_events(self)
    }
}

/// Who calls, from where.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) name: PrincipalName,
    /// `sourceIPAddress` of the record.
    pub(crate) source: String,
    /// `userAgent` of the record.
    pub(crate) agent: String,
    /// Is told as well, if the caller is within this process.
    pub(crate) witness: Option<Arc<dyn Witness>>,
    /// Nobody sees the call on its way: `aws:SecureTransport`.
    pub(crate) secure: bool,
}

impl Caller {
    /// A caller within this process.
    pub(crate) fn in_process(name: PrincipalName, witness: Option<Arc<dyn Witness>>) -> Self {
        Self { name, source: "127.0.0.1".into(), agent: CallRecord::AGENT.into(), witness, secure: true }
    }
}

/// An answer.
pub(crate) struct Done<A> {
    pub(crate) answer: A,
    pub(crate) request_id: String,
}

/// A call that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) request_id: String,
    /// The key's ARN, or what the call named if no key was found.
    pub(crate) key: Option<String>,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, request_id: Uuid::new_v4().to_string(), key: None }
    }
}

/// Which account and region the state directory plays.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    format: u32,
    pub(crate) account: String,
    pub(crate) region: String,
}

/// What tests change about a running KMS.
#[derive(Default)]
pub(crate) struct Tuning {
    clock_ahead_s: AtomicI64,
    grant_delay_ms: AtomicU64,
}

impl Tuning {
    /// Moves the clock of key states, grants and rotations forward by `seconds`.
    pub(crate) fn advance_clock(&self, seconds: i64) {
        self.clock_ahead_s.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Sets how long a grant's making and ending take to reach every call.
    pub(crate) fn delay_grants(&self, milliseconds: u64) {
        self.grant_delay_ms.store(milliseconds, Ordering::Relaxed);
    }

    fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + Duration::seconds(self.clock_ahead_s.load(Ordering::Relaxed))
    }

    fn grant_delay(&self) -> Duration {
        let milliseconds = self.grant_delay_ms.load(Ordering::Relaxed);
        Duration::milliseconds(i64::try_from(milliseconds).unwrap_or(i64::MAX))
    }
}

/// A KMS in a state directory.
pub(crate) struct Engine {
    directory: Directory,
    pub(crate) identity: Identity,
    principals: Vec<PrincipalRecord>,
    pub(crate) tuning: Tuning,
}

impl Engine {
    /// Opens a state directory, or makes one where nothing is.
    ///
    /// # Errors
    /// [`Failure::Storage`] for a directory that is not a KMS's, is damaged or cannot be used.
    pub(crate) fn open(root: &Path) -> Result<Self, Failure> {
        let directory = Directory::open(root)?;
        let files = directory.lock()?;
        if !files.has(IDENTITY) {
            initialise(&files, root)?;
        }
        let identity: Identity = files.require(IDENTITY)?;
        if identity.format != FORMAT {
            let why = format!("its format is {}, and this version knows {FORMAT} only", identity.format);
            return Err(Failure::storage("cannot use", &directory.path(IDENTITY), why));
        }
        let principals: Vec<PrincipalRecord> = files.require(PRINCIPALS)?;
        if !PrincipalName::ALL.iter().all(|name| principals.iter().any(|record| record.name == *name)) {
            let why = "a principal is missing";
            return Err(Failure::storage("cannot use", &directory.path(PRINCIPALS), why));
        }
        drop(files);
        Ok(Self { directory, identity, principals, tuning: Tuning::default() })
    }

    /// All principals.
    pub(crate) fn principals(&self) -> &[PrincipalRecord] {
        &self.principals
    }

    /// One principal.
    ///
    /// # Errors
    /// KMSInternalException, never after [`Engine::open`]: it saw all of them.
    pub(crate) fn principal(&self, name: PrincipalName) -> Result<&PrincipalRecord, Failure> {
        self.principals
            .iter()
            .find(|record| record.name == name)
            .ok_or_else(|| Failure::internal("a principal is missing"))
    }

    /// A principal's own policy.
    ///
    /// # Errors
    /// [`Failure::Storage`].
    pub(crate) fn user_policy(&self, name: PrincipalName) -> Result<String, Failure> {
        Ok(UserPolicies::load(&self.directory.lock()?)?.of(name).into())
    }

    /// Replaces a principal's own policy.
    ///
    /// # Errors
    /// MalformedPolicyDocumentException, or [`Failure::Storage`].
    pub(crate) fn put_user_policy(&self, name: PrincipalName, policy: &str) -> Result<(), Failure> {
        let files = self.directory.lock()?;
        UserPolicies::load(&files)?.put(&files, name, policy)
    }

    /// Path of the event log.
    pub(crate) fn events(&self) -> PathBuf {
        self.directory.path(EVENTS)
    }

    /// Makes one call.
    ///
    /// # Errors
    /// The operation's, or [`Failure::Storage`].
    pub(crate) fn call<O: Operation>(
        &self,
        caller: &Caller,
        operation: &O,
    ) -> Result<Done<O::Answer>, Failed> {
        self.session()?.call(caller, operation)
    }

    /// Answers a call with a failure that was ordered, and records it as any other.
    pub(crate) fn refuse<O: Operation>(&self, caller: &Caller, operation: &O, ordered: Failure) -> Failed {
        match self.session() {
            Ok(session) => session.attempt(caller, operation, Some(ordered)).err(),
            Err(failure) => Some(failure.into()),
        }
        .unwrap_or_else(|| Failure::internal("an ordered failure succeeded").into())
    }

    /// Records a call of another service that the HTTP face answers: GetCallerIdentity of STS.
    ///
    /// # Errors
    /// [`Failure::Storage`].
    pub(crate) fn note_identity(
        &self,
        caller: &Caller,
        request_id: &str,
        failure: Option<&Failure>,
    ) -> Result<(), Failure> {
        let happened = Happened {
            source: "sts.amazonaws.com",
            operation: "GetCallerIdentity",
            read_only: true,
            parameters: Value::Null,
            identity: &self.identity,
            principal: self.principal(caller.name)?,
            caller,
            at: self.tuning.now(),
            request_id,
            effects: Effects::default(),
            failure,
        };
        self.session()?.note(caller, happened)
    }

    /// Keeps everybody else out for several calls.
    ///
    /// # Errors
    /// [`Failure::Storage`] if the directory cannot be locked.
    pub(crate) fn session(&self) -> Result<Session<'_>, Failure> {
        Ok(Session { engine: self, files: self.directory.lock()? })
    }
}

/// Calls under one hold of the lock.
pub(crate) struct Session<'a> {
    engine: &'a Engine,
    files: Files<'a>,
}

impl Session<'_> {
    /// Makes one call.
    ///
    /// # Errors
    /// As [`Engine::call`].
    pub(crate) fn call<O: Operation>(
        &self,
        caller: &Caller,
        operation: &O,
    ) -> Result<Done<O::Answer>, Failed> {
        self.attempt(caller, operation, None)
    }

    fn attempt<O: Operation>(
        &self,
        caller: &Caller,
        operation: &O,
        ordered: Option<Failure>,
    ) -> Result<Done<O::Answer>, Failed> {
        let request_id = Uuid::new_v4().to_string();
        let mut key = None;
        self.recorded(caller, operation, ordered, &request_id, &mut key)
            .map(|answer| Done { answer, request_id: request_id.clone() })
            .map_err(|failure| Failed { failure, request_id, key })
    }

    fn recorded<O: Operation>(
        &self,
        caller: &Caller,
        operation: &O,
        ordered: Option<Failure>,
        request_id: &str,
        key: &mut Option<String>,
    ) -> Result<O::Answer, Failure> {
        let engine = self.engine;
        let principal = engine.principal(caller.name)?;
        let at = engine.tuning.now();
        let mut call = Call {
            files: &self.files,
            identity: &engine.identity,
            principal,
            secure: caller.secure,
            now: at,
            grant_delay: engine.tuning.grant_delay(),
            effects: Effects::default(),
            named: None,
            aliases_used: BTreeMap::new(),
        };
        let outcome = ordered.map_or_else(|| operation.run(&mut call), Err);
        *key = call.effects.keys.first().cloned().or(call.named);
        let happened = Happened {
            source: "kms.amazonaws.com",
            operation: O::NAME,
            read_only: O::READ_ONLY,
            parameters: operation.parameters()?,
            identity: &engine.identity,
            principal,
            caller,
            at,
            request_id,
            effects: call.effects,
            failure: outcome.as_ref().err(),
        };
        // Without a record there is no answer: nothing is given out that the log does not show.
        self.note(caller, happened)?;
        outcome
    }

    fn note(&self, caller: &Caller, happened: Happened<'_>) -> Result<(), Failure> {
        let record = happened.record();
        self.files.append(EVENTS, &serde_json::to_string(&record).map_err(Failure::internal)?)?;
        if let Some(witness) = &caller.witness {
            witness.saw(&record);
        }
        Ok(())
    }
}

/// Makes a new KMS. Its identity is written last, so that a crash on the way shows as a directory that is none.
fn initialise(files: &Files<'_>, root: &Path) -> Result<(), Failure> {
    if !files.is_new()? {
        return Err(Failure::storage("cannot make a KMS in", root, NOT_A_KMS));
    }
    let mut number = [0; 8];
    random(&mut number)?;
    let account = format!("{:012}", u64::from_be_bytes(number) % 1_000_000_000_000);
    let now = OffsetDateTime::now_utc();
    let principals: Vec<_> = PrincipalName::ALL
        .iter()
        .map(|name| PrincipalRecord::new(*name, &account, now))
        .collect::<Result<_, _>>()?;
    let mut secret = LockedBytes::zeroed(token::SECRET).map_err(Failure::memory)?;
    random(secret.as_mut_slice())?;
    files.make_directory(KEYS)?;
    files.make_directory(MATERIALS)?;
    files.write_secret(TOKEN_SECRET, &secret)?;
    files.write(PRINCIPALS, &principals)?;
    files.write(IDENTITY, &Identity { format: FORMAT, account, region: REGION.into() })
}

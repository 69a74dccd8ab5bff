//! The embedded KMS as its administrator sees it: what the `sealblk kms` commands do.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::engine::{Caller, Engine, Operation};
use super::failure::{Failure, kms_error};
use super::operations::aliases::{CreateAlias, ListAliases};
use super::operations::keys::{
    CancelKeyDeletion, CreateKey, DescribeKey, DisableKey, EnableKey, KeyMetadata, ScheduleKeyDeletion,
};
use super::operations::listing::ListKeys;
use super::operations::policies::{GetKeyPolicy, PutKeyPolicy};
use super::operations::rotation::RotateKeyOnDemand;
use super::principal::PrincipalName;
use super::service::{arn_of, open_engine};
use crate::kms::{KeyArn, KeyRef, KeyState, KmsError, Witness};

/// The embedded KMS, with every right. Its calls are short but block on the directory's lock, and each leaves its
/// record in the event log.
#[derive(Clone)]
pub struct Admin {
    engine: Arc<Engine>,
    witness: Option<Arc<dyn Witness>>,
}

/// A key as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyListing {
    /// The key.
    pub arn: KeyArn,
    /// Its names, `alias/...`, sorted.
    pub aliases: Vec<String>,
    /// Its state.
    pub state: KeyState,
    /// Its kind, such as `SYMMETRIC_DEFAULT`.
    pub spec: String,
    /// What its maker said about it.
    pub description: String,
    /// When it was made.
    pub created: OffsetDateTime,
    /// When it will be deleted, if that is scheduled.
    pub deletion: Option<OffsetDateTime>,
    /// Its newest material (64 hexadecimal digits), if it has any.
    pub material: Option<String>,
}

/// What an AWS client needs to call [`serve`](super::serve).
pub struct Credentials {
    /// The principal's ARN.
    pub principal: String,
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: String,
    /// `AWS_SECRET_ACCESS_KEY`; wiped on drop.
    pub secret_access_key: Zeroizing<String>,
    /// `AWS_REGION`, the one that signatures must name.
    pub region: String,
}

impl Admin {
    /// Opens the KMS in `directory`, which is made if nothing is there.
    ///
    /// # Errors
    /// As [`LocalKms::open`](super::LocalKms::open).
    pub fn open(directory: &Path) -> Result<Self, KmsError> {
        open_engine(directory, PrincipalName::Admin).map(|engine| Self { engine, witness: None })
    }

    /// Has `witness` told of each call from now on.
    #[must_use]
    pub fn witnessed_by(self, witness: Arc<dyn Witness>) -> Self {
        Self { witness: Some(witness), ..self }
    }

    /// The engine behind it, for the HTTP face.
    pub(crate) fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine)
    }

    /// Makes a symmetric key, and an alias (`alias/...`) for it if one is given.
    ///
    /// # Errors
    /// AlreadyExistsException, ValidationException or InvalidAliasNameException for the alias, in which case no key
    /// is left behind but one that waits for its deletion; [`ErrorClass::Storage`](crate::kms::ErrorClass).
    pub fn create(&self, description: &str, alias: Option<&str>) -> Result<KeyListing, KmsError> {
        let request = CreateKey { description: description.into(), ..CreateKey::default() };
        let metadata = self.call(request)?.key_metadata;
        if let Some(name) = alias {
            let arn = metadata.arn.clone();
            if let Err(error) = self.call(CreateAlias { alias_name: name.into(), target_key_id: arn.clone() })
            {
                self.call(ScheduleKeyDeletion { key_id: arn, pending_window_in_days: Some(7) })?;
                return Err(error);
            }
        }
        Ok(listing(metadata, alias.map(String::from).into_iter().collect()))
    }

    /// All keys with their aliases, ordered by key id.
    ///
    /// # Errors
    /// [`ErrorClass::Storage`](crate::kms::ErrorClass).
    pub fn list(&self) -> Result<Vec<KeyListing>, KmsError> {
        let mut listings = Vec::new();
        let mut marker = None;
        loop {
            let page = self.call(ListKeys { limit: None, marker: marker.take() })?;
            for key in page.keys {
                listings.push(self.describe(&KeyRef::new(key.key_arn))?);
            }
            marker = page.next_marker;
            if marker.is_none() {
                return Ok(listings);
            }
        }
    }

    /// One key, by id, ARN or alias.
    ///
    /// # Errors
    /// NotFoundException or InvalidArnException; [`ErrorClass::Storage`](crate::kms::ErrorClass).
    pub fn describe(&self, key: &KeyRef) -> Result<KeyListing, KmsError> {
        let metadata = self.metadata(key)?;
        let request =
            ListAliases { key_id: Some(metadata.arn.clone()), limit: Some(1000), ..ListAliases::default() };
        let aliases = self.call(request)?.aliases;
        Ok(listing(metadata, aliases.into_iter().map(|alias| alias.alias_name).collect()))
    }

    /// Lets a key (by id, ARN or alias) be used.
    ///
    /// # Errors
    /// KMSInvalidStateException for a key that waits for its deletion; otherwise as [`Admin::describe`].
    pub fn enable(&self, key: &KeyRef) -> Result<KeyListing, KmsError> {
        self.on(key, |key_id| EnableKey { key_id })
    }

    /// Stops a key (by id, ARN or alias) from being used.
    ///
    /// # Errors
    /// As [`Admin::enable`].
    pub fn disable(&self, key: &KeyRef) -> Result<KeyListing, KmsError> {
        self.on(key, |key_id| DisableKey { key_id })
    }

    /// Has a key (by id, ARN or alias) deleted in `days` (7 to 30) days; until then it cannot be used.
    ///
    /// # Errors
    /// ValidationException for other numbers of days; otherwise as [`Admin::enable`].
    pub fn schedule_deletion(&self, key: &KeyRef, days: u16) -> Result<KeyListing, KmsError> {
        self.on(key, |key_id| ScheduleKeyDeletion { key_id, pending_window_in_days: Some(days) })
    }

    /// Takes a scheduled deletion back; the key is disabled then.
    ///
    /// # Errors
    /// KMSInvalidStateException for a key that waits for no deletion; otherwise as [`Admin::describe`].
    pub fn cancel_deletion(&self, key: &KeyRef) -> Result<KeyListing, KmsError> {
        self.on(key, |key_id| CancelKeyDeletion { key_id })
    }

    /// Gives a key new material for new blobs; old blobs open as before.
    ///
    /// # Errors
    /// DisabledException or KMSInvalidStateException, LimitExceededException after 25 times,
    /// UnsupportedOperationException for a key that is not symmetric; otherwise as [`Admin::describe`].
    pub fn rotate(&self, key: &KeyRef) -> Result<KeyListing, KmsError> {
        self.on(key, |key_id| RotateKeyOnDemand { key_id })
    }

    /// The event log: one CloudTrail record a line, oldest first.
    ///
    /// # Errors
    /// [`ErrorClass::Storage`](crate::kms::ErrorClass) if the log cannot be read.
    pub fn events(&self) -> Result<Box<dyn BufRead>, KmsError> {
        let path = self.engine.events();
        match File::open(&path) {
            Ok(file) => Ok(Box::new(BufReader::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Box::new(io::empty())),
            Err(error) => Err(kms_error(
                "events",
                arn_of(&self.engine, PrincipalName::Admin),
                Failure::storage("cannot read", &path, error).into(),
            )),
        }
    }

    /// The credentials of a principal.
    ///
    /// # Errors
    /// None that [`Admin::open`] would not have given.
    pub fn credentials(&self, name: PrincipalName) -> Result<Credentials, KmsError> {
        let record = self
            .engine
            .principal(name)
            .map_err(|failure| kms_error("credentials", name.as_str(), failure.into()))?;
        Ok(Credentials {
            principal: record.arn.clone(),
            access_key_id: record.access_key_id.clone(),
            secret_access_key: record.secret_access_key.clone(),
            region: self.engine.identity.region.clone(),
        })
    }

    /// A key's policy (key by id, ARN or alias), as it was put.
    ///
    /// # Errors
    /// As [`Admin::describe`], or AccessDeniedException if the policy keeps the administrator out.
    pub fn key_policy(&self, key: &KeyRef) -> Result<String, KmsError> {
        let key_id = self.metadata(key)?.arn;
        self.call(GetKeyPolicy { key_id, policy_name: None }).map(|answer| answer.policy)
    }

    /// Gives a key (by id, ARN or alias) another policy. `bypass` leaves out the check that the administrator can
    /// still change it afterwards.
    ///
    /// # Errors
    /// MalformedPolicyDocumentException; otherwise as [`Admin::key_policy`].
    pub fn put_key_policy(&self, key: &KeyRef, policy: &str, bypass: bool) -> Result<(), KmsError> {
        let request = PutKeyPolicy {
            key_id: self.metadata(key)?.arn,
            policy_name: None,
            policy: policy.into(),
            bypass_policy_lockout_safety_check: bypass,
        };
        self.call(request).map(|_| ())
    }

    /// A principal's own policy.
    ///
    /// # Errors
    /// [`ErrorClass::Storage`](crate::kms::ErrorClass).
    pub fn user_policy(&self, name: PrincipalName) -> Result<String, KmsError> {
        self.engine
            .user_policy(name)
            .map_err(|failure| kms_error("GetUserPolicy", name.as_str(), failure.into()))
    }

    /// Gives a principal another policy of its own. It takes part in no policy itself: who may write the directory
    /// may do this, so nobody is locked out for good.
    ///
    /// # Errors
    /// MalformedPolicyDocumentException, or [`ErrorClass::Storage`](crate::kms::ErrorClass).
    pub fn put_user_policy(&self, name: PrincipalName, policy: &str) -> Result<(), KmsError> {
        self.engine
            .put_user_policy(name, policy)
            .map_err(|failure| kms_error("PutUserPolicy", name.as_str(), failure.into()))
    }

    fn on<O: Operation>(
        &self,
        key: &KeyRef,
        operation: impl FnOnce(String) -> O,
    ) -> Result<KeyListing, KmsError> {
        let arn = self.metadata(key)?.arn;
        self.call(operation(arn.clone()))?;
        self.describe(&KeyRef::new(arn))
    }

    fn metadata(&self, key: &KeyRef) -> Result<KeyMetadata, KmsError> {
        let request = DescribeKey { key_id: key.as_str().into(), ..DescribeKey::default() };
        self.call(request).map(|answer| answer.key_metadata)
    }

    fn call<O: Operation>(&self, operation: O) -> Result<O::Answer, KmsError> {
        let caller = Caller::in_process(PrincipalName::Admin, self.witness.clone());
        self.engine
            .call(&caller, &operation)
            .map(|done| done.answer)
            .map_err(|failed| kms_error(O::NAME, arn_of(&self.engine, PrincipalName::Admin), failed))
    }
}

fn listing(metadata: KeyMetadata, aliases: Vec<String>) -> KeyListing {
    KeyListing {
        arn: KeyArn::new(metadata.arn),
        aliases,
        state: metadata.key_state,
        spec: metadata.key_spec,
        description: metadata.description,
        created: metadata.creation_date,
        deletion: metadata.deletion_date,
        material: metadata.current_key_material_id.map(|id| id.to_string()),
    }
}

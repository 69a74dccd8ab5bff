//! [`KeyService`] on the embedded KMS, in process.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use zeroize::Zeroizing;

use super::engine::{Caller, Engine, Failed, Operation};
use super::failure::{Failure, kms_error};
use super::operations::aliases::CreateAlias;
use super::operations::cipher::{Decrypt, Encrypt, ReEncrypt};
use super::operations::data_keys::{DataKeyRequest, GenerateDataKeyWithoutPlaintext};
use super::operations::ending::{RetireGrant, RevokeGrant};
use super::operations::grants::{CreateGrant, GrantAnswer, ListGrants};
use super::operations::keys::{CreateKey, DescribeKey, KeyAnswer, KeyMetadata};
use super::pairs::Pairs;
use super::principal::PrincipalName;
use super::record::Constraints;
use super::wire::{Blob, Secret, Token};
use crate::kms::{
    Caps, Check, CheckOutcome, EncryptionContext, ErrorClass, GrantRef, GrantToken, KeyArn, KeyHealth,
    KeyRef, KeyService, KmsError, Lease, LeaseSpec, Parties, Permit, Preflight, Principal, Released, Role,
    Witness, WrappedKey,
};
use crate::secret::DataKey;

/// The alias that is made, with a key, when the provisioner first asks for it.
pub const DEFAULT_ALIAS: &str = "alias/sealblk";

/// The embedded KMS as one of its principals sees it.
pub struct LocalKms {
    engine: Arc<Engine>,
    caller: Caller,
}

impl LocalKms {
    /// Opens the KMS in `directory`, which is made if nothing is there, as the principal of `role`; `witness` is told
    /// of each call.
    ///
    /// # Errors
    /// [`ErrorClass::Storage`], naming the file, for a directory that is not a KMS's, is damaged, is open to other
    /// users or cannot be used.
    pub fn open(directory: &Path, role: Role, witness: Arc<dyn Witness>) -> Result<Self, KmsError> {
        let name = match role {
            Role::Provisioner => PrincipalName::Provisioner,
            Role::Host => PrincipalName::Host,
        };
        let engine = open_engine(directory, name)?;
        Ok(Self { engine, caller: Caller::in_process(name, Some(witness)) })
    }

    /// Makes one call on a thread that may block.
    async fn call<O: Operation + Sync>(&self, operation: O) -> Result<O::Answer, KmsError> {
        self.blocking(O::NAME, move |engine, caller| engine.call(caller, &operation).map(|done| done.answer))
            .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(&Engine, &Caller) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, KmsError> {
        let (engine, caller) = (Arc::clone(&self.engine), self.caller.clone());
        let name = caller.name;
        let outcome = tokio::task::spawn_blocking(move || work(&engine, &caller))
            .await
            .unwrap_or_else(|stopped| Err(Failure::internal(stopped).into()));
        outcome.map_err(|failed| kms_error(call, arn_of(&self.engine, name), failed))
    }

    async fn describe(&self, key: &KeyRef) -> Result<KeyMetadata, KmsError> {
        let request = DescribeKey { key_id: key.as_str().into(), ..DescribeKey::default() };
        if key.as_str() != DEFAULT_ALIAS || self.caller.name != PrincipalName::Provisioner {
            return self.call(request).await.map(|answer| answer.key_metadata);
        }
        let described =
            self.blocking("DescribeKey", move |engine, caller| describe_or_make(engine, caller, &request));
        described.await.map(|answer| answer.key_metadata)
    }

    /// RetireGrant, else RevokeGrant.
    async fn end(&self, key: &str, id: &str, token: Option<&GrantToken>) -> Result<Released, KmsError> {
        let by_id =
            || RetireGrant { key_id: Some(key.into()), grant_id: Some(id.into()), ..RetireGrant::default() };
        let retire = match token {
            Some(token) => RetireGrant { grant_token: Some(wire_token(token)), ..RetireGrant::default() },
            None => by_id(),
        };
        let mut outcome = self.call(retire).await;
        // A token that is refused may be damaged, so only the grant's id tells whether it is gone.
        if token.is_some() && outcome.as_ref().is_err_and(|error| error.class == ErrorClass::Grant) {
            outcome = self.call(by_id()).await;
        }
        let error = match outcome {
            Ok(_) => return Ok(Released::Retired),
            Err(error) if is_gone(&error) => return Ok(Released::AlreadyGone),
            Err(error) => error,
        };
        if error.class != ErrorClass::Denied {
            return Err(error);
        }
        let revoke = RevokeGrant { key_id: key.into(), grant_id: id.into(), dry_run: None };
        match self.call(revoke).await {
            Ok(_) => Ok(Released::Revoked),
            Err(error) if is_gone(&error) => Ok(Released::AlreadyGone),
            Err(error) => Err(error),
        }
    }

    async fn grant_of_name(&self, key: &KeyArn, name: &str) -> Result<Option<String>, KmsError> {
        let mut marker = None;
        loop {
            let request = ListGrants {
                key_id: key.as_str().into(),
                limit: Some(1000),
                marker: marker.take(),
                ..ListGrants::default()
            };
            let page = self.call(request).await?;
            if let Some(grant) = page.grants.iter().find(|grant| grant.name == name) {
                return Ok(Some(grant.grant_id.to_string()));
            }
            marker = page.next_marker;
            if marker.is_none() {
                return Ok(None);
            }
        }
    }
}

/// Opens a KMS for one of its principals.
pub(crate) fn open_engine(directory: &Path, name: PrincipalName) -> Result<Arc<Engine>, KmsError> {
    Engine::open(directory).map(Arc::new).map_err(|failure| kms_error("open", name.as_str(), failure.into()))
}

/// The principal's ARN, for a message.
pub(crate) fn arn_of(engine: &Engine, name: PrincipalName) -> &str {
    engine.principal(name).map_or(name.as_str(), |record| record.arn.as_str())
}

fn describe_or_make(engine: &Engine, caller: &Caller, request: &DescribeKey) -> Result<KeyAnswer, Failed> {
    // One hold of the lock, so that of two processes that start together one makes the key.
    let session = engine.session()?;
    let described = session.call(caller, request);
    if !described.as_ref().is_err_and(|failed| failed.failure.code() == "NotFoundException") {
        return described.map(|done| done.answer);
    }
    let admin = Caller::in_process(PrincipalName::Admin, caller.witness.clone());
    let create = CreateKey { description: "Default key of sealblk".into(), ..CreateKey::default() };
    let key = session.call(&admin, &create)?.answer.key_metadata.arn;
    session.call(&admin, &CreateAlias { alias_name: DEFAULT_ALIAS.into(), target_key_id: key })?;
    session.call(caller, request).map(|done| done.answer)
}

fn is_gone(error: &KmsError) -> bool {
    error.class == ErrorClass::Grant || error.code.as_deref() == Some("NotFoundException")
}

fn wire_token(token: &GrantToken) -> Token {
    Token(Zeroizing::new(token.expose().into()))
}

fn generate(
    key: &KeyArn,
    context: &EncryptionContext,
    length: u16,
    dry_run: bool,
) -> GenerateDataKeyWithoutPlaintext {
    GenerateDataKeyWithoutPlaintext(DataKeyRequest {
        key_id: key.as_str().into(),
        encryption_context: context.into(),
        number_of_bytes: Some(length.into()),
        dry_run: dry_run.then_some(true),
        ..DataKeyRequest::default()
    })
}

fn create_grant(key: &KeyArn, context: &EncryptionContext, spec: &LeaseSpec, dry_run: bool) -> CreateGrant {
    CreateGrant {
        key_id: key.as_str().into(),
        grantee_principal: spec.grantee.as_str().into(),
        retiring_principal: Some(spec.retiring.as_str().into()),
        operations: vec![Decrypt::NAME.into()],
        constraints: Some(Constraints {
            encryption_context_subset: Some(context.into()),
            encryption_context_equals: None,
        }),
        name: Some(spec.name.clone()),
        dry_run: dry_run.then_some(true),
        ..CreateGrant::default()
    }
}

/// Reads the outcome of a dry run, which is always an error.
fn check<T>(call: &'static str, outcome: Result<T, KmsError>) -> Check {
    let outcome = match outcome {
        Err(error) if error.class == ErrorClass::DryRun => CheckOutcome::Pass,
        Err(error) => CheckOutcome::Fail(error),
        Ok(_) => CheckOutcome::CannotTell("the dry run was carried out".into()),
    };
    Check { call, outcome }
}

#[async_trait]
impl KeyService for LocalKms {
    fn caps(&self) -> Caps {
        Caps { binds_context: true, grants: true, max_wrapped: super::blob::MAX_BLOB }
    }

    async fn parties(&self) -> Result<Parties, KmsError> {
        let arn = |name| Principal::new(arn_of(&self.engine, name));
        Ok(Parties { grantee: arn(PrincipalName::Host), retiring: arn(PrincipalName::Provisioner) })
    }

    async fn health(&self, key: &KeyRef) -> Result<KeyHealth, KmsError> {
        let metadata = self.describe(key).await?;
        Ok(KeyHealth {
            arn: KeyArn::new(metadata.arn),
            state: metadata.key_state,
            spec: metadata.key_spec,
            usage: metadata.key_usage,
            origin: metadata.origin,
            manager: metadata.key_manager.into(),
            deletion: metadata.deletion_date,
            material: metadata.current_key_material_id.map(|id| id.to_string()),
        })
    }

    async fn preflight(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        lease: &LeaseSpec,
    ) -> Result<Preflight, KmsError> {
        let length = u16::try_from(DataKey::LEN).unwrap_or(u16::MAX);
        let generated = self.call(generate(key, context, length, true)).await;
        let granted = self.call(create_grant(key, context, lease, true)).await;
        let checks =
            vec![check(GenerateDataKeyWithoutPlaintext::NAME, generated), check(CreateGrant::NAME, granted)];
        Ok(Preflight { checks })
    }

    async fn generate(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        length: u16,
    ) -> Result<WrappedKey, KmsError> {
        let answer = self.call(generate(key, context, length, false)).await?;
        Ok(WrappedKey {
            key: KeyArn::new(answer.key_id),
            blob: answer.ciphertext_blob.0,
            material: Some(answer.key_material_id.to_string()),
        })
    }

    async fn lease(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        spec: &LeaseSpec,
    ) -> Result<Lease, KmsError> {
        let GrantAnswer { grant_id, grant_token } =
            self.call(create_grant(key, context, spec, false)).await?;
        Ok(Lease { grant_id: grant_id.to_string(), token: GrantToken::new(grant_token.0.to_string()) })
    }

    async fn unwrap(
        &self,
        wrapped: &WrappedKey,
        context: &EncryptionContext,
        permit: Permit<'_>,
    ) -> Result<DataKey, KmsError> {
        let request = Decrypt {
            ciphertext_blob: Blob(wrapped.blob.clone()),
            key_id: Some(wrapped.key.as_str().into()),
            grant_tokens: permit.token.map(wire_token).into_iter().collect(),
            encryption_context: context.into(),
            ..Decrypt::default()
        };
        let answer = self.call(request).await?;
        DataKey::copy_from(answer.plaintext.expose()).map_err(|error| {
            KmsError::new(Decrypt::NAME, ErrorClass::Nonsense, error.to_string()).on_key(wrapped.key.as_str())
        })
    }

    async fn wrap(
        &self,
        key: &KeyArn,
        context: &EncryptionContext,
        data_key: &DataKey,
    ) -> Result<WrappedKey, KmsError> {
        let plaintext = Secret::copy_from(data_key.expose())
            .map_err(|error| KmsError::of_secret(Encrypt::NAME, &error).on_key(key.as_str()))?;
        let request = Encrypt {
            key_id: key.as_str().into(),
            plaintext: Some(plaintext),
            encryption_context: Pairs::from(context),
            ..Encrypt::default()
        };
        let answer = self.call(request).await?;
        Ok(WrappedKey { key: KeyArn::new(answer.key_id), blob: answer.ciphertext_blob.0, material: None })
    }

    async fn rewrap(
        &self,
        wrapped: &WrappedKey,
        from: &EncryptionContext,
        to: &KeyArn,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let request = ReEncrypt {
            ciphertext_blob: Blob(wrapped.blob.clone()),
            source_key_id: Some(wrapped.key.as_str().into()),
            source_encryption_context: Pairs::from(from),
            destination_key_id: to.as_str().into(),
            destination_encryption_context: Pairs::from(context),
            ..ReEncrypt::default()
        };
        let answer = self.call(request).await?;
        Ok(WrappedKey {
            key: KeyArn::new(answer.key_id),
            blob: answer.ciphertext_blob.0,
            material: Some(answer.destination_key_material_id.to_string()),
        })
    }

    async fn release(&self, grant: &GrantRef) -> Result<Released, KmsError> {
        match grant {
            GrantRef::Token { key, grant_id, token } => self.end(key.as_str(), grant_id, Some(token)).await,
            GrantRef::Id { key, grant_id } => self.end(key.as_str(), grant_id, None).await,
            GrantRef::Name { key, name } => match self.grant_of_name(key, name).await {
                Ok(Some(id)) => self.end(key.as_str(), &id, None).await,
                Ok(None) => Ok(Released::AlreadyGone),
                Err(error) if is_gone(&error) => Ok(Released::AlreadyGone),
                Err(error) => Err(error),
            },
        }
    }
}

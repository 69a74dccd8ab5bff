//! Who may do what: the principal's policy, or else a grant.

use super::call::Call;
use super::failure::Failure;
use super::pairs::Pairs;
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
}

impl Call<'_> {
    /// Checks that the caller may do `kms:ACTION` with the key.
    ///
    /// # Errors
    /// AccessDeniedException, InvalidGrantTokenException, or ValidationException for too many tokens.
    pub(crate) fn authorise(
        &self,
        action: &str,
        record: &KeyRecord,
        access: &Access<'_>,
    ) -> Result<(), Failure> {
        let granted = self.grants_of_tokens(record, access.tokens)?;
        if self.principal.name.may(action) || self.granting(action, record, access, &granted).next().is_some()
        {
            return Ok(());
        }
        Err(self.denied(action, &record.arn, " and no grant"))
    }

    /// Checks that the caller's policy allows `kms:ACTION` where no grant could.
    ///
    /// # Errors
    /// AccessDeniedException.
    pub(crate) fn authorise_by_policy(&self, action: &str, resource: &str) -> Result<(), Failure> {
        if self.principal.name.may(action) {
            return Ok(());
        }
        Err(self.denied(action, resource, ""))
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

    /// A refusal in AWS's words.
    pub(crate) fn denied(&self, action: &str, resource: &str, nor: &str) -> Failure {
        let user = &self.principal.arn;
        Failure::new(
            "AccessDeniedException",
            format!(
                "User: {user} is not authorized to perform: kms:{action} on resource: {resource} because no \
                 identity-based policy{nor} allows the kms:{action} action"
            ),
        )
    }
}

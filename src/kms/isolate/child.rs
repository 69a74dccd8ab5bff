//! The side that talks to the KMS.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::process::{Signal, set_parent_process_death_signal};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::{ERROR_FOLLOWS, Incoming, KEY_FOLLOWS, MAX_REQUEST, WRAPPED_FOLLOWS, Wrap};
use crate::kms::{ErrorClass, GrantToken, KmsError, Permit, Place, Role, Witness, WrappedKey};
use crate::secret::{DataKey, harden_process};

/// The whole of the hidden command: hardens the process, answers one request on stdin and stdout. `report` opens
/// the place where the parent wants to find the call; if that fails, no call is made, and its message is the answer.
///
/// The caller must log to stderr only, and end the process afterwards.
///
/// # Errors
/// The process could not be hardened, or nobody took the answer. A failed unwrap is an answer.
pub async fn serve_stdio(report: impl FnOnce(Place) -> Result<Arc<dyn Witness>, String>) -> io::Result<()> {
    // A parent that dies before this line closes both pipes: the request is cut short or the answer goes nowhere.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    harden_process()?;
    // Not through std's handles, which buffer: the key would stay in their heap.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    serve(input, output, report).await
}

/// Answers one request.
async fn serve(
    input: impl Read,
    mut output: impl Write,
    report: impl FnOnce(Place) -> Result<Arc<dyn Witness>, String>,
) -> io::Result<()> {
    match answer(input, report).await {
        Ok(Answer::Key(key)) => {
            output.write_all(&[KEY_FOLLOWS])?;
            output.write_all(key.expose())?;
        }
        Ok(Answer::Wrapped(wrapped)) => {
            output.write_all(&[WRAPPED_FOLLOWS])?;
            output.write_all(&serde_json::to_vec(&wrapped)?)?;
        }
        Err(error) => {
            output.write_all(&[ERROR_FOLLOWS])?;
            output.write_all(&serde_json::to_vec(&error)?)?;
        }
    }
    output.flush()
}

/// What the parent asked for.
enum Answer {
    Key(DataKey),
    Wrapped(WrappedKey),
}

async fn answer(
    input: impl Read,
    report: impl FnOnce(Place) -> Result<Arc<dyn Witness>, String>,
) -> Result<Answer, KmsError> {
    let Incoming { provider, wrapped, context, token, granted, witness, wrap } = read_request(input)?;
    let token = token.map(GrantToken::new);
    let made = granted.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let permit = Permit { token: token.as_ref(), made };
    let witness = report(witness).map_err(|why| KmsError::new("Decrypt", ErrorClass::Storage, why))?;
    let key = provider.open(Role::Host, witness.clone()).await?.unwrap(&wrapped, &context, permit).await?;
    let Some(Wrap { provider, key: to, context }) = wrap else { return Ok(Answer::Key(key)) };
    let kms = provider.open(Role::Provisioner, witness).await?;
    Ok(Answer::Wrapped(kms.wrap(&to, &context, &key).await?))
}

fn read_request(input: impl Read) -> Result<Incoming, KmsError> {
    let refuse = |why: String| KmsError::new("Decrypt", ErrorClass::Config, why);
    // One byte of room beyond the limit shows that it was passed; the buffer never grows, as growing would leave
    // copies of the token behind.
    let mut json = Zeroizing::new(Vec::with_capacity(MAX_REQUEST + 1));
    input
        .take(MAX_REQUEST as u64 + 1)
        .read_to_end(&mut json)
        .map_err(|error| refuse(format!("cannot read the request: {error}")))?;
    if json.len() > MAX_REQUEST {
        return Err(refuse("the request is longer than 64 KiB".into()));
    }
    // serde's messages may quote the input, so only the place is told.
    serde_json::from_slice(&json)
        .map_err(|error| refuse(format!("the request cannot be read (column {})", error.column())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kms::isolate::Outgoing;
    use crate::kms::witness::Nobody;
    use crate::kms::{EncryptionContext, KeyArn, Provider, aws};

    async fn refusal(input: &[u8]) -> KmsError {
        let mut output = Vec::new();
        serve(input, &mut output, |_| Ok(Arc::new(Nobody))).await.expect("a Vec takes everything");
        assert_eq!(output[0], ERROR_FOLLOWS);
        serde_json::from_slice(&output[1..]).expect("an error as JSON")
    }

    #[tokio::test]
    async fn refuses_what_is_no_request_and_quotes_none_of_it() {
        let long = format!("\"{}\"", "secret-token".repeat(10_000));
        for input in ["", "{", "null", "{\"token\":\"secret-token\"}", "\"secret-token\"", &long] {
            let error = refusal(input.as_bytes()).await;
            assert_eq!(error.class, ErrorClass::Config);
            assert!(!error.message.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn answers_with_the_providers_error() {
        let settings = aws::Settings { endpoint: Some("http://example.com".into()), ..Default::default() };
        let request = Outgoing {
            provider: &Provider::Aws(settings),
            wrapped: &WrappedKey { key: KeyArn::new("arn"), blob: vec![1], material: None },
            context: &EncryptionContext::default(),
            token: Some("secret-token"),
            granted: Some(0),
            witness: Nobody.place(),
            wrap: None,
        };
        let error = refusal(&serde_json::to_vec(&request).expect("JSON")).await;
        assert_eq!(error.class, ErrorClass::Config);
        assert!(error.message.contains("loopback"), "{error}");
    }
}

//! What to do about a KMS error.

use super::{ErrorClass, KmsError};

/// What the user should do, as the end of a message.
pub(super) fn of(error: &KmsError) -> String {
    match error.class {
        ErrorClass::Throttled => throttled(&error.call),
        ErrorClass::Unusable => unusable(error).into(),
        ErrorClass::Denied => denied(error).into(),
        ErrorClass::Unreachable if error.code.is_some() => {
            "the service itself has failed, so try again later".into()
        }
        ErrorClass::Unreachable => "check the network, the region and the endpoint, then try again".into(),
        ErrorClass::Corrupt => corrupt(error).into(),
        ErrorClass::Config => "correct the setting".into(),
        ErrorClass::Grant => "make a new grant, since this one has ended or its token is not valid".into(),
        ErrorClass::Storage => "check the directory's permissions and free space".into(),
        ErrorClass::DryRun => "send the call without DryRun".into(),
        ErrorClass::Nonsense => "check that the endpoint is a KMS".into(),
    }
}

/// The request quota that counts a call: its name in Service Quotas and its default in calls a second (AWS KMS
/// developer guide, "Request quotas").
fn quota(call: &str) -> Option<(&'static str, &'static str)> {
    Some(match call {
        "CreateGrant" => ("CreateGrant request rate", "50"),
        "RetireGrant" => ("RetireGrant request rate", "30"),
        "RevokeGrant" => ("RevokeGrant request rate", "30"),
        "ListGrants" => ("ListGrants request rate", "100"),
        "DescribeKey" => ("DescribeKey request rate", "2000"),
        "Decrypt" | "GenerateDataKeyWithoutPlaintext" | "ReEncrypt" => {
            ("Cryptographic operations (symmetric) request rate", "10000 or more, by Region,")
        }
        _ => return None,
    })
}

fn throttled(call: &str) -> String {
    let Some((name, rate)) = quota(call) else {
        return "try again later, or ask for a higher request quota".into();
    };
    format!(
        "over the quota {name:?}, by default {rate} a second for the whole account and Region: try again later, \
         start fewer volumes at once, allow more time with --kms-deadline, or ask for more in Service Quotas"
    )
}

/// KMS gives one code for several states, and the state itself in the message.
fn unusable(error: &KmsError) -> &'static str {
    let message = error.message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    match error.code.as_deref() {
        Some("LimitExceededException") => {
            "end grants that nobody needs (ListGrants shows them, sealblk gc ends those of dead volumes), ask for a \
             higher quota of grants per key, or choose another key with --key"
        }
        Some("NotFoundException") => {
            "check the key's name, Region and account, or choose another key with --key"
        }
        Some("InvalidKeyUsageException" | "UnsupportedOperationException") => {
            "choose a symmetric encryption key with --key"
        }
        _ if says(&["pending deletion", "pendingdeletion", "pendingreplicadeletion"]) => {
            "cancel its deletion and enable it, or choose another with --key"
        }
        _ if says(&["pending import", "pendingimport"]) => {
            "import its key material, or choose another with --key"
        }
        _ if says(&["unavailable"]) => "connect its custom key store, or choose another with --key",
        _ if says(&["creating", "updating"]) => "try again in a minute, or choose another with --key",
        Some("DisabledException") => "enable it, or choose another with --key",
        _ if says(&["disabled"]) => "enable it, or choose another with --key",
        _ => "make the key usable, or choose another with --key",
    }
}

fn denied(error: &KmsError) -> &'static str {
    match error.code.as_deref() {
        None => "set up AWS credentials for it: a profile, variables or the instance's role",
        Some("ExpiredTokenException" | "ExpiredToken") => {
            "renew the credentials, which were read again in vain"
        }
        Some("UnrecognizedClientException" | "InvalidClientTokenId") => {
            "use credentials of this partition that still exist; they were read again in vain"
        }
        Some("InvalidSignatureException" | "SignatureDoesNotMatch") => {
            "check the secret access key and this host's clock; the credentials were read again in vain"
        }
        Some(_) => "give the principal this permission, or use other credentials",
    }
}

fn corrupt(error: &KmsError) -> &'static str {
    match error.code.as_deref() {
        Some("IncorrectKeyException") => {
            "name the KMS key that wrapped it; wrapped key, KMS key and encryption context must belong together"
        }
        _ => "use the wrapped key, KMS key and encryption context that belong together",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(class: ErrorClass, code: Option<&str>, message: &str) -> String {
        of(&KmsError { code: code.map(Into::into), ..KmsError::new("Decrypt", class, message) })
    }

    #[test]
    fn a_key_is_made_usable_in_the_way_of_its_state() {
        let about = |code, message| advice(ErrorClass::Unusable, code, message);
        assert!(about(Some("DisabledException"), "arn is disabled.").starts_with("enable it"));
        for code in ["DisabledException", "KMSInvalidStateException"] {
            assert!(about(Some(code), "arn is pending deletion.").starts_with("cancel its deletion"));
        }
        assert!(about(None, "its key state is PendingDeletion").starts_with("cancel its deletion"));
        assert!(about(None, "its key state is Disabled").starts_with("enable it"));
        assert!(about(Some("KMSInvalidStateException"), "arn is pending import.").starts_with("import"));
        assert!(about(Some("KMSInvalidStateException"), "arn is unavailable.").contains("key store"));
        assert!(about(Some("LimitExceededException"), "no").contains("ListGrants"));
    }

    #[test]
    fn a_quota_is_named_for_every_call() {
        for (call, name) in [
            ("CreateGrant", "\"CreateGrant request rate\", by default 50 a second"),
            ("RetireGrant", "\"RetireGrant request rate\", by default 30 a second"),
            ("RevokeGrant", "\"RevokeGrant request rate\", by default 30 a second"),
            ("ListGrants", "\"ListGrants request rate\", by default 100 a second"),
            ("DescribeKey", "\"DescribeKey request rate\", by default 2000 a second"),
            ("Decrypt", "\"Cryptographic operations (symmetric) request rate\""),
            ("GetCallerIdentity", "request quota"),
        ] {
            let error = KmsError::new(call, ErrorClass::Throttled, "Rate exceeded");
            assert!(of(&error).contains(name), "{}", of(&error));
        }
    }
}

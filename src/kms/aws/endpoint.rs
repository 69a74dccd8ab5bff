//! Which endpoints may be used.

use std::net::IpAddr;

use hyper::Uri;

use super::super::{ErrorClass, KmsError};
use super::Settings;

/// Checks both endpoints, before any request.
pub(super) fn check(settings: &Settings) -> Result<(), KmsError> {
    for (name, endpoint) in [("KMS", &settings.endpoint), ("STS", &settings.sts_endpoint)] {
        if let Some(endpoint) = endpoint {
            check_one(endpoint).map_err(|why| {
                let message = format!("the {name} endpoint {endpoint:?} cannot be used: {why}");
                KmsError::new("configuration", ErrorClass::Config, message)
            })?;
        }
    }
    Ok(())
}

/// Where GetCallerIdentity goes; `None` is the region's own endpoint. An emulator on loopback answers for STS as
/// well, and credentials made for it would mean nothing to AWS.
pub(super) fn of_sts(settings: &Settings) -> Option<&str> {
    let kms = settings.endpoint.as_deref();
    let emulator = kms.filter(|endpoint| endpoint.parse().is_ok_and(|uri| is_loopback(&uri)));
    settings.sts_endpoint.as_deref().or(emulator)
}

fn check_one(endpoint: &str) -> Result<(), &'static str> {
    let uri: Uri = endpoint.parse().map_err(|_| "it is not a URL")?;
    if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
        return Err("it must name a host, and no user");
    }
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_loopback(&uri) => Ok(()),
        Some("http") => Err("http is allowed to a loopback address only; use https"),
        _ => Err("it must start with https://, or with http:// and a loopback address"),
    }
}

fn is_loopback(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_goes_to_loopback_only() {
        for good in [
            "https://kms.eu-west-1.amazonaws.com",
            "https://vpce-1.kms.eu-west-1.vpce.amazonaws.com:443/",
            "http://127.0.0.1:4566",
            "http://127.9.9.9",
            "http://[::1]:8080",
            "http://localhost:8080",
        ] {
            assert_eq!(check_one(good), Ok(()), "{good}");
        }
        for bad in [
            "http://10.0.0.1:8080",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://127.0.0.1@example.com",
            "https://user@example.com",
            "http://0.0.0.0",
            "ftp://127.0.0.1",
            "kms.eu-west-1.amazonaws.com",
            "/kms",
            "",
        ] {
            assert!(check_one(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_names_the_endpoint() {
        let settings = Settings { sts_endpoint: Some("http://10.0.0.1".into()), ..Settings::default() };
        let error = check(&settings).unwrap_err();
        assert_eq!(error.class, ErrorClass::Config);
        assert!(error.message.starts_with("the STS endpoint \"http://10.0.0.1\""), "{error}");
    }

    #[test]
    fn sts_follows_a_loopback_kms() {
        let settings = |kms: Option<&str>, sts: Option<&str>| Settings {
            endpoint: kms.map(Into::into),
            sts_endpoint: sts.map(Into::into),
            ..Settings::default()
        };
        assert_eq!(of_sts(&settings(None, None)), None);
        assert_eq!(of_sts(&settings(Some("https://kms.example.com"), None)), None);
        assert_eq!(of_sts(&settings(Some("http://[::1]:1"), None)), Some("http://[::1]:1"));
        assert_eq!(of_sts(&settings(Some("http://[::1]:1"), Some("https://sts"))), Some("https://sts"));
    }
}

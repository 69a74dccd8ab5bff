//! Addresses as users write them.

use std::str::FromStr;

use super::network::ANY;
use super::{Address, ListenError};

impl FromStr for Address {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        let form = || ListenError::Form(text.into());
        let number = |what, number: &str, most| {
            if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(form());
            }
            // The number of a vsock above these stands for any.
            number.parse().ok().filter(|parsed| *parsed <= most).ok_or_else(|| {
                let (address, number) = (text.into(), number.into());
                ListenError::Range { address, what, number, most }
            })
        };
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", host)) => {
                let (name, port) = host.rsplit_once(':').ok_or_else(form)?;
                number("port", port, u16::MAX.into())?;
                if name.is_empty() { Err(form()) } else { Ok(Self::Tcp(host.into())) }
            }
            Some(("vsock", numbers)) => {
                let (cid, port) = match numbers.split_once(':') {
                    Some((cid, port)) => (Some(number("CID", cid, ANY - 1)?), port),
                    None => (None, numbers),
                };
                Ok(Self::Vsock { cid, port: number("port", port, ANY - 1)? })
            }
            _ => Err(form()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!("unix:/run/x".parse::<Address>().unwrap(), Address::Unix("/run/x".into()));
        assert_eq!("tcp:[::1]:10809".parse::<Address>().unwrap(), Address::Tcp("[::1]:10809".into()));
        let vsock = |cid, port| Address::Vsock { cid, port };
        assert_eq!("vsock:10809".parse::<Address>().unwrap(), vsock(None, 10809));
        assert_eq!("vsock:3:0".parse::<Address>().unwrap(), vsock(Some(3), 0));
        let bad = ["", "unix:", "tcp:host", "tcp:host:", "tcp:host:x", "tcp:host:-1", "tcp::5", "/run/x"];
        let bad_vsock = ["vsock:", "vsock:x", "vsock:1:2:3", "vsock:-1:2", "vsock:1:", "vsock::1"];
        for bad in bad.iter().chain(&bad_vsock) {
            assert!(matches!(bad.parse::<Address>(), Err(ListenError::Form(_))), "{bad}");
        }
    }

    #[test]
    fn numbers_that_are_too_great_are_told_from_a_wrong_form() {
        for (text, words) in [
            ("tcp:host:65536", ["port 65536", "0 to 65535"]),
            ("tcp:host:99999999999999999999", ["port 99999999999999999999", "0 to 65535"]),
            ("vsock:4294967295", ["port 4294967295", "0 to 4294967294"]),
            ("vsock:4294967295:1", ["CID 4294967295", "0 to 4294967294"]),
        ] {
            let said = text.parse::<Address>().unwrap_err().to_string();
            assert!(words.iter().all(|word| said.contains(word)), "{text}: {said}");
        }
    }
}

//! Which lines are wanted.

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

/// Which lines are wanted: those that every given condition holds for.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Of this volume.
    pub volume: Option<String>,
    /// Of this name, whatever the case.
    pub event: Option<String>,
    /// On a key whose ARN is this or ends in `/` and this.
    pub key: Option<String>,
    /// Not before.
    pub since: Option<OffsetDateTime>,
    /// Before.
    pub until: Option<OffsetDateTime>,
    /// Calls that failed or got no answer. A dry run that went well is no failure, though its record has an error code.
    pub errors: bool,
    /// With this request id.
    pub request: Option<String>,
}

impl Filter {
    /// True if the record is wanted.
    pub fn wants(&self, record: &Value) -> bool {
        let is = |pointer: &str, wanted: &Option<String>| {
            wanted
                .as_ref()
                .is_none_or(|wanted| record.pointer(pointer).and_then(Value::as_str) == Some(wanted))
        };
        is("/sealblk/volume", &self.volume)
            && is("/requestID", &self.request)
            && self.wants_event(record)
            && self.key.as_ref().is_none_or(|key| is_on(record, key))
            && self.wants_time(record)
            && (!self.errors || has_failed(record))
    }

    fn wants_event(&self, record: &Value) -> bool {
        let name = record["eventName"].as_str().unwrap_or_default();
        self.event.as_ref().is_none_or(|event| event.eq_ignore_ascii_case(name))
    }

    fn wants_time(&self, record: &Value) -> bool {
        if self.since.is_none() && self.until.is_none() {
            return true;
        }
        let text =
            record.pointer("/sealblk/time").or_else(|| record.get("eventTime")).and_then(Value::as_str);
        let Some(at) = text.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok()) else { return false };
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }
}

fn is_on(record: &Value, key: &str) -> bool {
    let is = |name: &Value| {
        let name = name.as_str().unwrap_or_default();
        name == key || name.strip_suffix(key).is_some_and(|before| before.ends_with('/'))
    };
    let resources = record["resources"].as_array().map_or(&[][..], Vec::as_slice);
    resources.iter().any(|resource| is(&resource["ARN"])) || is(&record["requestParameters"]["keyId"])
}

fn has_failed(record: &Value) -> bool {
    match record["errorCode"].as_str() {
        Some(code) => code != "DryRunOperationException",
        None => record["errorMessage"].is_string(),
    }
}

/// Reads a time: RFC 3339 (`2026-03-01T12:00:00Z`), or a date (`2026-03-01`), which begins at midnight UTC.
pub fn parse_time(text: &str) -> Option<OffsetDateTime> {
    let day = format_description!("[year]-[month]-[day]");
    let date = || Date::parse(text, day).ok().map(|date| date.midnight().assume_utc());
    OffsetDateTime::parse(text, &Rfc3339).ok().or_else(date)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd";

    fn record() -> Value {
        json!({
            "eventName": "Decrypt", "eventTime": "2026-03-01T12:00:00Z", "requestID": "r1",
            "errorCode": "DisabledException", "resources": [{ "ARN": ARN }],
            "sealblk": { "volume": "vol-1", "time": "2026-03-01T12:00:00.5Z" },
        })
    }

    fn text(text: &str) -> Option<String> {
        Some(text.into())
    }

    #[test]
    fn each_condition_counts() {
        let record = record();
        let at = |text| Some(parse_time(text).expect("a time"));
        for filter in [
            Filter::default(),
            Filter { volume: text("vol-1"), event: text("decrypt"), ..Filter::default() },
            Filter { key: text(ARN), request: text("r1"), errors: true, ..Filter::default() },
            Filter { key: text("1234abcd"), ..Filter::default() },
            Filter { since: at("2026-03-01"), until: at("2026-03-01T12:00:00.6Z"), ..Filter::default() },
        ] {
            assert!(filter.wants(&record), "{filter:?}");
        }
        for filter in [
            Filter { volume: text("vol-2"), ..Filter::default() },
            Filter { event: text("Encrypt"), ..Filter::default() },
            Filter { key: text("abcd"), ..Filter::default() },
            Filter { request: text("r"), ..Filter::default() },
            Filter { since: at("2026-03-02"), ..Filter::default() },
            Filter { until: at("2026-03-01T12:00:00.5Z"), ..Filter::default() },
            Filter { until: at("2026-03-01T13:00:00+01:00"), ..Filter::default() },
        ] {
            assert!(!filter.wants(&record), "{filter:?}");
        }
    }

    #[test]
    fn an_error_is_what_somebody_must_look_at() {
        let filter = Filter { errors: true, ..Filter::default() };
        let mut record = record();
        record["errorCode"] = json!("DryRunOperationException");
        record["errorMessage"] = json!("The request would have succeeded");
        assert!(!filter.wants(&record));
        record["errorCode"] = Value::Null;
        assert!(filter.wants(&record), "no answer came");
        record["errorMessage"] = Value::Null;
        assert!(!filter.wants(&record));
    }

    #[test]
    fn times_are_dates_or_moments() {
        assert_eq!(parse_time("2026-03-01"), parse_time("2026-03-01T00:00:00Z"));
        assert_eq!(parse_time("2026-03-01T01:00:00+01:00"), parse_time("2026-03-01"));
        for bad in ["", "yesterday", "2026-13-01", "2026-03-01T25:00:00Z"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }
}

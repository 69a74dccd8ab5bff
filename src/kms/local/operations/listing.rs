//! Lists that come in pages.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::super::call::Call;
use super::super::engine::Operation;
use super::super::failure::Failure;
use super::within;

/// Most entries of a page, and how many there are unless the call says.
const MAX_PAGE: u16 = 1000;
const DEFAULT_PAGE: u16 = 100;

/// One page of a list.
pub(crate) struct Page<T> {
    pub(crate) entries: Vec<T>,
    /// Asks for the next page, if there is one.
    pub(crate) next_marker: Option<String>,
}

/// Cuts a page out of `entries`, which are ordered by `name`: a marker is the name of the last entry before it, so
/// entries may come and go between two pages.
///
/// # Errors
/// ValidationException for a limit out of range.
pub(crate) fn page<T>(
    entries: impl IntoIterator<Item = T>,
    name: impl Fn(&T) -> String,
    limit: Option<u16>,
    marker: Option<&str>,
) -> Result<Page<T>, Failure> {
    let limit = within("limit", limit.unwrap_or(DEFAULT_PAGE), 1..=MAX_PAGE)?;
    let mut rest =
        entries.into_iter().filter(|entry| marker.is_none_or(|marker| name(entry).as_str() > marker));
    let entries: Vec<T> = rest.by_ref().take(limit.into()).collect();
    let more = rest.next().is_some();
    let next_marker = entries.last().filter(|_| more).map(&name);
    Ok(Page { entries, next_marker })
}

/// Lists all keys.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct ListKeys {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) marker: Option<String>,
}

/// Some keys.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct KeysAnswer {
    pub(crate) keys: Vec<KeyEntry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next_marker: Option<String>,
    pub(crate) truncated: bool,
}

/// One key.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct KeyEntry {
    pub(crate) key_id: Uuid,
    pub(crate) key_arn: String,
}

impl Operation for ListKeys {
    const NAME: &'static str = "ListKeys";
    const READ_ONLY: bool = true;
    type Answer = KeysAnswer;

    fn run(&self, call: &mut Call<'_>) -> Result<KeysAnswer, Failure> {
        call.authorise_without_key(Self::NAME, "*")?;
        let page =
            page(call.all_keys()?, |record| record.id.to_string(), self.limit, check_marker(&self.marker)?)?;
        let keys = page.entries.into_iter().map(|record| KeyEntry { key_id: record.id, key_arn: record.arn });
        let truncated = page.next_marker.is_some();
        Ok(KeysAnswer { keys: keys.collect(), next_marker: page.next_marker, truncated })
    }
}

/// Checks that a marker could be one: an alias name, a key id or a grant id.
///
/// # Errors
/// InvalidMarkerException.
pub(crate) fn check_marker(marker: &Option<String>) -> Result<Option<&str>, Failure> {
    let fits = |marker: &str| {
        let characters = marker.chars().all(|c| c.is_ascii_alphanumeric() || "/_-".contains(c));
        (1..=256).contains(&marker.len()) && characters
    };
    match marker.as_deref() {
        Some(marker) if !fits(marker) => {
            Err(Failure::new("InvalidMarkerException", "The marker is not one that an earlier page gave."))
        }
        marker => Ok(marker),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_join_to_the_whole_list() {
        let all: Vec<String> = (10..35).map(|n| n.to_string()).collect();
        let mut seen = Vec::new();
        let mut marker = None;
        loop {
            let got = page(all.clone(), Clone::clone, Some(10), marker.as_deref()).expect("a page");
            seen.extend(got.entries);
            marker = got.next_marker;
            if marker.is_none() {
                break;
            }
        }
        assert_eq!(seen, all);
        assert!(page(all.clone(), Clone::clone, Some(0), None).is_err());
        assert!(page(all, Clone::clone, Some(1001), None).is_err());
        assert!(check_marker(&Some("a b".into())).is_err());
    }
}

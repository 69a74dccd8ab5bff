//! Metadata contexts ("Metadata querying", NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT).

use super::text;
use crate::nbd::wire::{WireError, take};

/// The one context there is ("`base:` metadata namespace"): which parts are allocated, which read as zeros.
pub const ALLOCATION: &str = "base:allocation";
/// The number that stands for [`ALLOCATION`] in replies to NBD_CMD_BLOCK_STATUS. Ours to choose.
pub const ALLOCATION_CONTEXT: u32 = 1;

/// More queries than any client has, few enough to be looked at one by one.
const MAX_QUERIES: u32 = 1024;

/// Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRequest {
    /// The export's name; empty for the default one.
    pub name: String,
    /// Contexts, or patterns of them, each in a namespace; those of unknown namespaces are to be ignored.
    pub queries: Vec<String>,
}

impl ContextRequest {
    /// Reads: 32 bits name length, name, 32 bits count, and for each query 32 bits length and the query.
    ///
    /// # Errors
    /// [`WireError::Length`] for more than 1024 queries; [`WireError::Malformed`] for lengths that do not fit, and
    /// strings over 4096 bytes, with a NUL, or not in UTF-8.
    pub fn decode(mut data: &[u8]) -> Result<Self, WireError> {
        let name = text(&mut data)?;
        let count = u32::from_be_bytes(take(&mut data)?);
        if count > MAX_QUERIES {
            return Err(WireError::Length(count));
        }
        let queries = (0..count).map(|_| text(&mut data)).collect::<Result<_, _>>()?;
        if data.is_empty() { Ok(Self { name, queries }) } else { Err(WireError::Malformed) }
    }

    /// Whether NBD_OPT_LIST_META_CONTEXT is to name [`ALLOCATION`]: no query asks for all there is, and the
    /// namespace alone for all in it.
    pub fn lists_allocation(&self) -> bool {
        self.queries.is_empty()
            || self.selects_allocation()
            || self.queries.iter().any(|query| query == "base:")
    }

    /// Whether NBD_OPT_SET_META_CONTEXT selects [`ALLOCATION`].
    pub fn selects_allocation(&self) -> bool {
        self.queries.iter().any(|query| query == ALLOCATION)
    }
}

/// Data of an NBD_REP_META_CONTEXT reply.
pub fn context_entry(id: u32, name: &str) -> Vec<u8> {
    [&id.to_be_bytes()[..], name.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(queries: &[&str]) -> ContextRequest {
        ContextRequest { name: String::new(), queries: queries.iter().map(ToString::to_string).collect() }
    }

    #[test]
    fn requests() {
        let good = b"\0\0\0\x03vol\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x02x:";
        let request =
            ContextRequest { name: "vol".into(), queries: vec!["base:allocation".into(), "x:".into()] };
        assert_eq!(ContextRequest::decode(good), Ok(request));
        for length in 0..good.len() {
            assert_eq!(ContextRequest::decode(&good[..length]), Err(WireError::Malformed), "{length} bytes");
        }
        assert_eq!(ContextRequest::decode(b"\0\0\0\0\0\0\0\0x"), Err(WireError::Malformed));
        assert_eq!(ContextRequest::decode(b"\0\0\0\0\0\0\0\x01\0\0\0\x01\xff"), Err(WireError::Malformed));
        assert_eq!(ContextRequest::decode(b"\0\0\0\0\0\0\x04\x01"), Err(WireError::Length(1025)));
    }

    #[test]
    fn what_queries_ask_for() {
        for (queries, listed, selected) in [
            (&[][..], true, false),
            (&["base:"], true, false),
            (&["base:allocation"], true, true),
            (&["x:y", "base:allocation"], true, true),
            (&["base:alloc"], false, false),
            (&["base"], false, false),
            (&["qemu:allocation-depth"], false, false),
            (&["x-base:allocation"], false, false),
        ] {
            let request = asked(queries);
            assert_eq!(
                (request.lists_allocation(), request.selects_allocation()),
                (listed, selected),
                "{queries:?}"
            );
        }
    }
}

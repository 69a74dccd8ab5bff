//! Unwrapping in a process of its own.
//!
//! An unwrap over HTTPS leaves the data key, and its base64 text, in TLS buffers, in the HTTP body and in the heap
//! of the AWS SDK, and none of them wipes. So a child process does it: it hands the 64 bytes over a pipe, from
//! locked memory to locked memory, and ends; the kernel wipes its pages before anybody gets them.
//!
//! The child is the same executable, run with [`HIDDEN_COMMAND`]. On its stdin comes one JSON document and the
//! end of file; on its stdout goes one byte, 0 with the key, 1 with the error or 2 with a wrapped key, both as
//! JSON. A key that moves to another service never leaves the child in clear. Its stderr is the parent's, for logs.
//!
//! The child reports its call itself, to the [`Place`] that the request names, and before it answers: handed back
//! over the pipe, a record would be lost with a parent or a child that dies between call and answer.

mod child;
mod parent;
mod pipe;

use serde::{Deserialize, Serialize};

pub use child::serve_stdio;
pub use parent::{Transfer, transfer, unwrap};

use super::{EncryptionContext, KeyArn, Place, Provider, WrappedKey};

/// The command that makes the executable a child: `sealblk unwrap-key`. Not for users; kept out of `--help`.
pub const HIDDEN_COMMAND: &str = "unwrap-key";

/// First byte of an answer: the 64 bytes of the data key follow.
const KEY_FOLLOWS: u8 = 0;
/// First byte of an answer: a [`KmsError`](super::KmsError) follows as JSON.
const ERROR_FOLLOWS: u8 = 1;

/// First byte of an answer: a [`WrappedKey`] follows as JSON.
const WRAPPED_FOLLOWS: u8 = 2;

/// Longest request in bytes: a wrapped key of 6144 bytes as JSON numbers, a token of 8192 characters, paths and
/// endpoints, with room.
const MAX_REQUEST: usize = 64 * 1024;
/// Longest error, or wrapped key, in bytes.
const MAX_JSON: usize = 32 * 1024;

/// What the child needs. `T` is the token's text, which must not outlive the call: a borrowed text in the parent,
/// in the child one that becomes a [`GrantToken`](super::GrantToken).
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request<P, W, C, T> {
    provider: P,
    wrapped: W,
    context: C,
    token: Option<T>,
    /// When the grant was made, in seconds since 1970.
    granted: Option<i64>,
    /// Where the child reports its call.
    witness: Place,
    /// Wrap the key anew instead of handing it over.
    wrap: Option<Wrap<P, C>>,
}

/// What the data key is to be wrapped with.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wrap<P, C> {
    provider: P,
    key: KeyArn,
    context: C,
}

/// As the parent writes it.
type Outgoing<'a> = Request<&'a Provider, &'a WrappedKey, &'a EncryptionContext, &'a str>;
/// As the child reads it.
type Incoming = Request<Provider, WrappedKey, EncryptionContext, String>;

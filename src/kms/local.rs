//! The embedded KMS: the symmetric part of AWS KMS in a directory, for a machine without AWS and for tests.
//!
//! It keeps keys, grants and an event log as AWS KMS does, and refuses what AWS KMS refuses: a wrong encryption
//! context, a disabled key, a principal without a grant. Several processes may use one directory at once. It
//! answers in process ([`LocalKms`], [`Admin`]) or over HTTP to any AWS client ([`serve`]); both go through the
//! same calls.
//!
//! | module | what |
//! |---|---|
//! | `engine`, `call` | one call: lock, load, check, change, record |
//! | `operations` | the operations of the API |
//! | `authorise`, `policy`, `principal`, `token` | who may do what |
//! | `blob`, `pairs`, `wire`, `hex` | ciphertext blobs, encryption contexts, JSON |
//! | `files`, `record` | the state directory |
//! | `event`, `failure` | the event log, the API's errors |
//! | `service`, `admin`, `http` | the faces |
//!
//! Anyone who may read the directory has its keys: it stands in for a KMS's interface, not for its hardware.

mod admin;
mod authorise;
mod blob;
mod call;
mod engine;
mod event;
mod failure;
mod files;
mod http;
mod operations;
mod pairs;
mod policy;
mod principal;
mod record;
mod service;
mod token;
mod wire;

#[cfg(test)]
mod tests;

pub use admin::{Admin, Credentials, KeyListing};
pub use http::{ServeOptions, serve};
pub use principal::PrincipalName;
pub use service::{DEFAULT_ALIAS, LocalKms};

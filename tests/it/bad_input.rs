//! What a user, a machine or a KMS can get wrong before a volume is served: each ends with its exit code and a
//! message that says what was tried, on what, what came back and what to do, and leaves nothing behind.

mod addresses;
mod backings;
mod commands;
pub(crate) mod devices;
mod embedded;
mod keys;
mod kms;
mod sizes;

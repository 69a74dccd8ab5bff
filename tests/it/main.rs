//! Black-box tests: the built binary, driven by real clients.
//!
//! One test crate with a module per behaviour, since every crate links the whole program anew.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test says what it expects by failing, and its numbers are small"
)]

mod ciphertext;
mod kms_peers;
mod kms_server;
mod memory;
mod secrets;
mod support;
mod volume_life;

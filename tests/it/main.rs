//! Black-box tests: the built binary, driven by real clients.
//!
//! One test crate with a module per behaviour, since every crate links the whole program anew.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests say what they expect by failing, their helpers too"
)]

mod bad_input;
mod clients;
mod endings;
mod interrupted;
mod leavings;
mod manual;
mod peer;
mod raw;
mod remote_kms;
mod support;
mod together;
mod volume_life;
mod wrong_clients;

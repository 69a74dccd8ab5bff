//! Black-box tests: the built binary, driven by real clients.
//!
//! One test crate with a module per behaviour, since every crate links the whole program anew.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a test says what it expects by failing, its helpers too, and its numbers are small"
)]

mod audit;
mod bad_input;
mod bench;
mod bench_jobs;
mod certificates;
mod ciphertext;
mod clients;
mod config;
mod control_socket;
mod deploy;
mod direct;
mod endings;
mod enveloped;
mod fleet;
mod handshake;
mod in_memory;
mod interrupted;
mod key_state;
mod kills;
mod kms_errors;
mod kms_peers;
mod leavings;
mod manual;
mod memory;
mod model;
mod peer;
mod policies;
mod power_cut;
mod preflight;
mod raw;
mod remote_kms;
mod restart;
mod secrets;
mod support;
mod tampering;
mod tls;
mod together;
mod transports;
mod volume_life;
mod whole_life;
mod with_parent;
mod wrong_clients;

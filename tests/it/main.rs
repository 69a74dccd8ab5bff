//! Black-box tests: the built binary, driven by real clients.
//!
//! One test crate with a module per behaviour, since every crate links the whole program anew.

mod ciphertext;
mod kms_peers;
mod kms_server;
mod memory;
mod secrets;
mod support;
mod volume_life;

//! sealblk: encrypted scratch disks over NBD, with the data key under the user's own KMS key.
//!
//! The library holds everything but the parsing of flags. docs/architecture.md has the table of layers.

pub mod audit;
pub mod bench;
pub mod block;
pub mod cli;
pub mod config;
pub mod control;
#[allow(unsafe_code, reason = "descriptors by number")]
pub mod descriptors;
pub mod engine;
pub mod envelope;
pub mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod geometry;
mod hex;
pub mod kms;
#[allow(unsafe_code, reason = "memory of a file, and the signal where it ends")]
mod mapping;
pub mod nbd;
#[allow(unsafe_code, reason = "two owners of the halves of one huge page")]
pub mod pages;
#[allow(unsafe_code, reason = "memory that the kernel reads and writes meanwhile")]
pub mod ring;
pub mod secret;
pub mod store;
pub mod telemetry;
pub mod volume;
pub mod xts;

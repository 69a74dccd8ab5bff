//! Network Block Device protocol (NetworkBlockDevice/nbd, doc/proto.md).

pub mod server;
pub mod wire;

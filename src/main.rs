//! The `sealblk` command.

fn main() {}

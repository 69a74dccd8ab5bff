//! The `sealblk` command: parse, run, exit.

use std::process::ExitCode;

/// Freed memory is wiped: what libraries leave behind (grant tokens, request bodies, the plaintext that
/// `sealblk kms serve` answers with) does not stay in the heap.
#[global_allocator]
static ALLOCATOR: zeroizing_alloc::ZeroAlloc<std::alloc::System> =
    zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    sealblk::cli::main()
}

//! Round keys that the compiler puts on a stack, and how they go from there.

use std::hint::black_box;
use std::thread;

/// Runs `expand` on a thread of its own: round keys stay in vector registers, and the kernel writes those to the stack
/// of a thread that a signal interrupts later (signal(7), the frame's xsave area).
pub(super) fn apart<T: Send>(expand: impl FnOnce() -> Box<T> + Send) -> Box<T> {
    let expanded = thread::scope(|scope| {
        let expanding = scope.spawn(|| {
            let keys = below(expand);
            wipe::<{ 32 * 1024 }>();
            keys
        });
        expanding.join()
    });
    expanded.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// In a frame of its own, which [`wipe`] then overwrites.
#[inline(never)]
fn below<T>(function: impl FnOnce() -> T) -> T {
    function()
}

/// Overwrites `BYTES` of stack below the caller's frame, where the calls before this one had theirs. (`zeroize` writes
/// bytes one by one, which here takes longer than the cipher.)
#[inline(never)]
pub(super) fn wipe<const BYTES: usize>() {
    // What is looked at has to be there.
    black_box(&mut [0_u8; BYTES]);
}

//! Round keys that the compiler puts on a stack or leaves in registers, and how they go from there.

use std::thread;

use zeroize::Zeroize;

/// Runs `expand` on a thread of its own, since round keys would stay in this one's vector registers, and the kernel
/// writes those to the stack of a thread that a signal interrupts (signal(7), the frame's xsave area). Where no thread
/// is to be had it runs on this one all the same: a volume is worth more than that.
pub(super) fn apart<T: Send>(expand: impl Fn() -> Box<T> + Sync) -> Box<T> {
    let expand_and_wipe = || {
        let keys = below(&expand);
        wipe::<4096>();
        keys
    };
    thread::scope(|scope| match thread::Builder::new().spawn_scoped(scope, expand_and_wipe) {
        Ok(expanding) => expanding.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        Err(_) => expand_and_wipe(),
    })
}

/// In a frame of its own, which [`wipe`] then overwrites.
#[inline(never)]
fn below<T>(function: impl Fn() -> T) -> T {
    function()
}

/// Overwrites `WORDS` times eight bytes of stack below the caller's frame, where the calls before this one had theirs.
#[inline(never)]
pub(super) fn wipe<const WORDS: usize>() {
    let mut below = [0_u64; WORDS];
    below.zeroize();
}

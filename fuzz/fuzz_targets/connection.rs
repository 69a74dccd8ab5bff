#![no_main]

use std::time::{Duration, Instant};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let before = threads();
    sealblk::fuzz::connection(data);
    wait_for_threads(before);
});

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}

/// Until no more than `before` are left: what belongs to a thread that is just ending is looked for on nobody, and
/// taken for a leak.
fn wait_for_threads(before: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while threads() > before {
        assert!(Instant::now() < deadline, "a connection's threads outlive it");
        std::thread::yield_now();
    }
}

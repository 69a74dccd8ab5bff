#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sealblk::fuzz::requests(data));

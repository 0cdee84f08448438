//! `cargo fuzz run description`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::description(data));

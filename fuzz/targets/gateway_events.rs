//! `cargo fuzz run gateway_events`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::gateway_events(data));

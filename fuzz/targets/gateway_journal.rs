//! `cargo fuzz run gateway_journal`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::gateway_journal(data));

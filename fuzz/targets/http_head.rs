//! `cargo fuzz run http_head`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::http_head(data));

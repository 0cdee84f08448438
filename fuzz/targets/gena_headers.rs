//! `cargo fuzz run gena_headers`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::gena_headers(data));

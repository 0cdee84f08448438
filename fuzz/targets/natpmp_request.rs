//! `cargo fuzz run natpmp_request`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::natpmp_request(data));

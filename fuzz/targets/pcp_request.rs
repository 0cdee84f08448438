//! `cargo fuzz run pcp_request`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::pcp_request(data));

//! `cargo fuzz run pcp_response`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::pcp_response(data));

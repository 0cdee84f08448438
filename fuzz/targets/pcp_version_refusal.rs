//! `cargo fuzz run pcp_version_refusal`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::pcp_version_refusal(data));

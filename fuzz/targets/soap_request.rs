//! `cargo fuzz run soap_request`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::soap_request(data));

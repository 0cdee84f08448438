//! `cargo fuzz run soap_answer`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::soap_answer(data));

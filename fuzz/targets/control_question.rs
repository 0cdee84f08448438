//! `cargo fuzz run control_question`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::control_question(data));

//! `cargo fuzz run policy_rules`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::policy_rules(data));

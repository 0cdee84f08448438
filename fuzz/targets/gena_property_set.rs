//! `cargo fuzz run gena_property_set`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::gena_property_set(data));

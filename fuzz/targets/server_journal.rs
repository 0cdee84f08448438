//! `cargo fuzz run server_journal`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::server_journal(data));

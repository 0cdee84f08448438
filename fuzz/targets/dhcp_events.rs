//! `cargo fuzz run dhcp_events`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::dhcp_events(data));

//! `cargo fuzz run dhcp_hook`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::dhcp_hook(data));

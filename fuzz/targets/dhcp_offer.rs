//! `cargo fuzz run dhcp_offer`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::dhcp_offer(data));

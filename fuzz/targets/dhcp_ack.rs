//! `cargo fuzz run dhcp_ack`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::dhcp_ack(data));

//! `cargo fuzz run isp_router_events`: see README.md.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::isp_router_events(data));

//! The test activities that the slides of draft -02 name (IETF 81; iwf.md section 7, D-16), against providers that do what
//! the slides' server did, which in the open are ours alone: an AFTR with a PCP server that portferry, without a NAT of its own, asks
//! in plain IPv6; and `portferry pcp-server` behind which portferry's NAT is the second. Real processes and real bytes as in
//! `end_to_end`, so it needs root, and TUN devices for the AFTR.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test slides
//! ```
//!
//! | slides | tests |
//! |---|---|
//! | add pinhole, delete pinhole | [`pinholes`] |
//! | on reboot fetch the CPE's mappings from the server | [`reboot`] |
//! | refresh by lifetime | [`refresh`] |
//! | PREFER_FAILURE, DESCRIPTION, plain IPv6 transport | [`wire_format`] |
//! | 120 s hold of a deleted external address and port; quota (open question 3) | [`limits`] |
//! | uTorrent, eMule, BitComet, Azureus, Shareaza | [`clients`] |
//! | OpenWrt | none: nothing has been tried on it |

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod clients;
mod limits;
mod pinholes;
mod reboot;
mod refresh;
mod wire_format;

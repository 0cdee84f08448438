//! A short soak (`docs/soak.md`), so that it stays playable: mixed load, reloads, a provider that forgets, flushed tables and dead links, and then
//! nothing is left of it all. How fast answers come is not judged here. Needs root, see [`lab::netns`].
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test soak
//! ```

mod common;

use std::process::Command;

use common::interworking_subject;
use lab::netns;
use lab::subject::Subject;

/// Issue 7: descriptors, mappings, pinholes and rules are as many as before, and both processes are the ones that they were.
#[test]
fn nothing_is_left_of_a_short_one() {
    let Some(Subject::Portferry(program)) = interworking_subject() else { return };
    let mut soak = Command::new(env!("CARGO_BIN_EXE_lab-soak"));
    let played = soak.args(["--seconds", "20", "--leftovers"]).env("PF_SUBJECT", program).output();
    let played = played.expect("it runs");
    let said = netns::text(&played);
    assert!(played.status.success(), "{said}");
    // All of it was played: each kind of request, and each fault.
    for word in [
        "UPnP AddPortMapping",
        "PCP MAP",
        "NAT-PMP mapping",
        "SSDP M-SEARCH",
        "GENA SUBSCRIBE",
        "bad HTTP",
        "UPnP AddPinhole",
        "half-open connection",
        "Reload",
        "StateLoss",
        "Flush",
        "Cable",
        "Line",
    ] {
        assert!(said.contains(word), "{word} is missing in\n{said}");
    }
}

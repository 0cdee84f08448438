//! The seeded simulation of a home under attack: many seeds, each the same run every time.
//!
//! `PF_SEED=7` runs that seed only and prints everything that happened, `PF_SEEDS=20000` so many of them, from `PF_FIRST_SEED` on.

use lab::siege::{run, run_with_trace};
use lab::simulation::test_seeds;

/// Seeds of an ordinary run.
const SEEDS: u64 = 50;
/// What has to happen in that many at least once.
const EVERYTHING: [&str; 35] = [
    "ANNOUNCE",
    "MAP",
    "NAT-PMP requests",
    "PEER",
    "acts of the intruder",
    "control requests",
    "control requests of IPv6",
    "control requests of the intruder",
    "floods of the intruder",
    "floods of the server",
    "honest servers",
    "hostile servers",
    "intruders denied by rules",
    "intruders that wait for the owner",
    "killed",
    "pinholes as ever",
    "pinholes as ever after trouble",
    "pinholes by PCP",
    "pinholes by UPnP",
    "quotas tried",
    "refusals",
    "refusals of the intruder",
    "requests of nobody",
    "served as ever",
    "served at once",
    "servers that begin anew",
    "silences",
    "subscriptions attacked",
    "successes in NAT-PMP",
    "successes in PCP",
    "successes in UPnP",
    "successes of the intruder",
    "troubled servers",
    "deletes in PCP and NAT-PMP",
    "filters",
];

/// Decisions 27 and 28, K-3, the security policy's rows of owners, quotas, sources and answers, and invariants 3 to 6: whatever a host of the LAN
/// or the provider's server does, what others have is theirs, nobody hears success for what is not there, everybody is answered in time, nothing
/// is mapped beyond policy, and in the end nothing is left.
#[test]
fn nothing_is_stolen_and_everybody_is_served() {
    test_seeds(SEEDS, &EVERYTHING, run, run_with_trace);
}

#[test]
fn the_same_seed_is_the_same_siege() {
    let lines = |seed| run_with_trace(seed).1;
    assert!(lines(3) == lines(3));
    assert!(lines(3) != lines(4));
}

//! The seeded simulation: many seeds, each the same run every time.
//!
//! `PF_SEED=7` runs that seed only and prints everything that happened, `PF_SEEDS=100000` so many of them, from
//! `PF_FIRST_SEED` on.

use lab::simulation::{run, run_with_trace, test_seeds};

/// Seeds of an ordinary run.
const SEEDS: u64 = 1000;
/// What has to happen in that many at least once.
const EVERYTHING: [&str; 31] = [
    "AddPortMapping",
    "AddAnyPortMapping",
    "DeletePortMapping",
    "DeletePortMappingRange",
    "descriptions compared",
    "hosts released",
    "killed",
    "killed when the disk was full",
    "leases over",
    "lines changed",
    "mappings lost",
    "mappings moved by the provider",
    "names followed",
    "orphans given back",
    "ports held by a probe",
    "ports taken by another subscriber",
    "promised ports asked for",
    "ranges deleted at once",
    "ranges deleted in part",
    "recoveries in turn",
    "refreshed for long",
    "scans",
    "scans in the calm",
    "settings changed",
    "state directories lost",
    "stops",
    "stops that keep",
    "strays given back",
    "the disk is full",
    "the provider restarts",
    "views of subscribers compared",
];

/// table, NAT rules and the provider's table agree, whatever happens, in both deployments; decisions
/// 1 and 2: each request is answered once and in time; decisions 16 and 17, T-2, T-6, A-10: see the drills.
#[test]
fn everybody_agrees_whatever_happens() {
    test_seeds(SEEDS, &EVERYTHING, run, run_with_trace);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let lines = |seed| run_with_trace(seed).1;
    assert!(lines(3) == lines(3));
    assert!(lines(3) != lines(4));
}

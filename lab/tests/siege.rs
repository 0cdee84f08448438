//! The seeded simulation of a home under attack: many seeds, each the same run every time.
//!
//! `PF_SEED=7` runs that seed only and prints everything that happened, `PF_SEEDS=20000` so many of them, from `PF_FIRST_SEED` on.

use lab::siege::{run, run_with_trace};
use lab::simulation::sweep;

/// Seeds of an ordinary run.
const SEEDS: u64 = 50;
/// What has to happen in that many at least once.
const EVERYTHING: [&str; 33] = [
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

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Decisions 27 and 28, K-3, the security policy's rows of owners, quotas, sources and answers, and invariants 3 to 6: whatever a host of the LAN
/// or the provider's server does, what others have is theirs, nobody hears success for what is not there, everybody is answered in time, nothing
/// is mapped beyond policy, and in the end nothing is left.
#[test]
fn nothing_is_stolen_and_everybody_is_served() {
    if let Some(seed) = number("PF_SEED") {
        let (result, trace) = run_with_trace(seed);
        for (at, line) in &trace {
            println!("{:>10}.{:03} s  {line}", at.as_millis() / 1000, at.as_millis() % 1000);
        }
        match result {
            Ok(tally) => return println!("{tally:?}"),
            Err(failure) => panic!("{failure}"),
        }
    }
    let count = number("PF_SEEDS").unwrap_or(SEEDS);
    let (tally, failures) = sweep(number("PF_FIRST_SEED").unwrap_or(1), count, run);
    println!("{count} seeds: {tally:?}");
    for what in EVERYTHING {
        let enough = count < SEEDS || !failures.is_empty() || tally.counts.contains_key(what);
        assert!(enough, "{what}: never in {count} seeds, so that nothing is proved of it");
    }
    if let Some(first) = failures.first() {
        let all: Vec<String> =
            failures.iter().map(|failure| format!("seed {}: {}", failure.seed, failure.what)).collect();
        panic!("{} seeds failed\n{}\n\n{first}", failures.len(), all.join("\n"));
    }
}

#[test]
fn the_same_seed_is_the_same_siege() {
    let lines = |seed| run_with_trace(seed).1;
    assert!(lines(3) == lines(3));
    assert!(lines(3) != lines(4));
}

//! When a request is repeated: decision 1, RFC 6887 §8.1.1.

use super::*;

/// Decision 1: at 0, 1 and 3 s, then RFC 6887 §8.1.1, each the same octets.
#[test]
fn urgent_requests_are_repeated_at_1_and_3_seconds() {
    for seed in 0..50 {
        let mut rig = Rig::with_seed(seed);
        let first = rig.input(Input::Ask(FLOW, want()));
        let repeated: Vec<(u64, Output)> =
            rig.run(5000).into_iter().filter(|(_, output)| *output != Output::Silent).collect();
        let again = first[0].clone();
        assert_eq!(repeated, [(1000, again.clone()), (3000, again)], "seed {seed}");
        let later = sent(&rig.run(100_000));
        assert_schedule(3000, 3000, &later);
    }
}

/// RFC 6887 §8.1.1: (1 + RAND) × 3 s, then (1 + RAND) × min(2 × RTprev, 1024 s), for ever, nonce included.
#[test]
fn requests_are_repeated_on_the_schedule_of_the_rfc() {
    for seed in 0..50 {
        let mut rig = Rig::with_seed(seed);
        let want = Want { urgent: false, ..endless() };
        let first = rig.ask(FLOW, want);
        let repeated = sent(&rig.run(10_000_000));
        assert!(repeated.len() > 15, "seed {seed}");
        assert!(repeated.iter().all(|(_, request)| *request == first), "seed {seed}: byte for byte");
        assert_schedule(0, 3000, &repeated);
    }
}

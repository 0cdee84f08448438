//! Many seeds at once, and what a test does with them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::{Failure, Tally, Trace};

/// More failing seeds than this tell nothing new.
const ENOUGH: usize = 20;

/// Runs `count` seeds from `first` on, on as many threads as there are processors; those that failed come in their order.
fn sweep(
    first: u64,
    count: u64,
    run: impl Fn(u64) -> Result<Tally, Box<Failure>> + Sync,
) -> (Tally, Vec<Failure>) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, failed) = (AtomicU64::new(first), AtomicUsize::new(0));
    let results = Mutex::new((Tally::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut tally = Tally::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count || failed.load(Ordering::Relaxed) >= ENOUGH {
                        break;
                    }
                    match run(seed) {
                        Ok(more) => tally.add(&more),
                        Err(failure) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            results.lock().expect("no thread panics").1.push(*failure);
                        }
                    }
                }
                results.lock().expect("no thread panics").0.add(&tally);
            });
        }
    });
    let (tally, mut failures) = results.into_inner().expect("no thread panics");
    failures.sort_by_key(|failure| failure.seed);
    (tally, failures)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Runs `seeds` of them, in which each of `everything` has to happen at least once. By the environment, `PF_SEED` is the only one, of which is
/// printed all that happened, `PF_SEEDS` is how many there are, and `PF_FIRST_SEED` is the first.
///
/// # Panics
///
/// If a seed fails, with all that did and the story of the first, or if something has not happened.
pub fn test_seeds(
    seeds: u64,
    everything: &[&str],
    run: impl Fn(u64) -> Result<Tally, Box<Failure>> + Sync,
    run_with_trace: impl Fn(u64) -> (Result<Tally, Box<Failure>>, Trace),
) {
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
    let count = number("PF_SEEDS").unwrap_or(seeds);
    let (tally, failures) = sweep(number("PF_FIRST_SEED").unwrap_or(1), count, run);
    println!("{count} seeds: {tally:?}");
    for what in everything {
        let enough = count < seeds || !failures.is_empty() || tally.counts.contains_key(what);
        assert!(enough, "{what}: never in {count} seeds, so that nothing is proved of it");
    }
    if let Some(first) = failures.first() {
        let all: Vec<String> =
            failures.iter().map(|failure| format!("seed {}: {}", failure.seed, failure.what)).collect();
        panic!("{} seeds failed\n{}\n\n{first}", failures.len(), all.join("\n"));
    }
}

//! Many seeds at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::{Failure, Tally};

/// More failing seeds than this tell nothing new.
const ENOUGH: usize = 20;

/// Runs `count` seeds from `first` on, on as many threads as there are processors; those that failed come in their order.
pub fn sweep(
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

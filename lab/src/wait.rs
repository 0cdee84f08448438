//! Waiting with a deadline, never for a fixed time.

use std::thread;
use std::time::{Duration, Instant};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks until `look` finds something or `within` has passed; it looks at least once, and once more at the end.
pub fn poll<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        let last = Instant::now() >= deadline;
        if let Some(found) = look() {
            return Some(found);
        }
        if last {
            return None;
        }
        thread::sleep(PAUSE);
    }
}

/// Like [`poll`].
///
/// # Panics
///
/// If nothing was found: `what` names what was waited for.
#[track_caller]
pub fn eventually<T>(what: &str, within: Duration, look: impl FnMut() -> Option<T>) -> T {
    match poll(within, look) {
        Some(found) => found,
        None => panic!("waited {within:?} in vain for {what}"),
    }
}

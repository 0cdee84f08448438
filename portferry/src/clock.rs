//! The one clock: milliseconds since the machine started, suspend included, so that leases and lifetimes end on time
//! after a nap.

use engine::time::Instant;
use rustix::time::{ClockId, clock_gettime};

/// Now.
pub fn now() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let millis = u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000;
    Instant::from_millis(seconds * 1000 + millis)
}

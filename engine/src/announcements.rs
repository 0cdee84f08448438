//! When a server says unasked, by multicast, that it has begun anew or has another address (RFC 6887 §14.1.3, RFC 6886 §3.2.1).

use crate::time::{Duration, Instant};

/// So often, with doubling gaps; the first of them is a quarter of a second.
pub const TIMES: u32 = 10;
const FIRST_GAP: Duration = Duration::from_millis(250);

/// A run of announcements.
#[derive(Debug, Default)]
pub struct Announcements {
    next: Option<Instant>,
    done: u32,
}

impl Announcements {
    /// Begins one; what is left of an earlier one is not said any more.
    pub fn begin(&mut self, now: Instant) {
        *self = Self { next: Some(now), done: 0 };
    }

    /// When the next one is due; `None` when all is said.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether one is to be said now, of `times` in all.
    pub fn is_due(&mut self, now: Instant, times: u32) -> bool {
        if self.next.is_none_or(|at| at > now) {
            return false;
        }
        let gap = FIRST_GAP * 2_u32.pow(self.done);
        self.done += 1;
        self.next = (self.done < times.min(TIMES)).then_some(now + gap);
        true
    }
}

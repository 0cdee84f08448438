//! Time as the engine knows it: a number that the caller passes in. Nothing here reads a clock.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Add, Sub};
pub use std::time::Duration;

/// A point in time in milliseconds since an arbitrary start. The daemon feeds it from the boot-time clock, which
/// never goes back and counts suspend; tests write literals.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Instant(u64);

impl Instant {
    /// `ms` milliseconds after the start.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// `s` seconds after the start.
    pub const fn from_secs(s: u64) -> Self {
        Self(s * 1000)
    }

    /// Milliseconds since the start.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Whole seconds since the start, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1000
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Whole seconds from `now` until `self`, rounded up; zero when `self` is past.
    pub fn secs_left(self, now: Instant) -> u32 {
        u32::try_from(self.0.saturating_sub(now.0).div_ceil(1000)).unwrap_or(u32::MAX)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, d: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(d.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Instant> for Instant {
    type Output = Duration;

    fn sub(self, earlier: Instant) -> Duration {
        self.since(earlier)
    }
}

/// Alarms, at most one for each key, in the order in which they are due. Every operation costs the logarithm of
/// the number of alarms, so that a large mapping table does not slow a turn.
#[derive(Debug)]
pub struct Timers<K> {
    at: BTreeMap<K, Instant>,
    queue: BTreeSet<(Instant, K)>,
}

impl<K: Copy + Ord> Default for Timers<K> {
    fn default() -> Self {
        Self { at: BTreeMap::new(), queue: BTreeSet::new() }
    }
}

impl<K: Copy + Ord> Timers<K> {
    /// Sets the alarm of `key`; an earlier one for the same key is gone.
    pub fn set(&mut self, key: K, at: Instant) {
        self.cancel(key);
        self.at.insert(key, at);
        self.queue.insert((at, key));
    }

    /// Removes the alarm of `key`; whether there was one.
    pub fn cancel(&mut self, key: K) -> bool {
        let at = self.at.remove(&key);
        if let Some(at) = at {
            self.queue.remove(&(at, key));
        }
        at.is_some()
    }

    /// Takes out one alarm that is due at `now`; call until `None`.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let &(at, key) = self.queue.first()?;
        if at > now {
            return None;
        }
        self.cancel(key);
        Some(key)
    }

    /// Whose alarms come next, the next first.
    pub fn upcoming(&self) -> impl Iterator<Item = K> {
        self.queue.iter().map(|&(_, key)| key)
    }

    /// How many alarms there are.
    pub fn count(&self) -> usize {
        self.at.len()
    }

    /// When the next alarm is due.
    pub fn next(&self) -> Option<Instant> {
        self.queue.first().map(|&(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_is_due_once_and_only_from_its_time_on() {
        let mut timers = Timers::default();
        timers.set('a', Instant::from_secs(2));
        timers.set('b', Instant::from_secs(1));
        timers.set('a', Instant::from_secs(3));
        assert_eq!(timers.next(), Some(Instant::from_secs(1)));
        assert_eq!(timers.upcoming().collect::<String>(), "ba");
        assert_eq!(timers.pop_due(Instant::from_secs(2)), Some('b'));
        assert_eq!(timers.pop_due(Instant::from_secs(2)), None);
        assert_eq!(timers.pop_due(Instant::from_secs(3)), Some('a'));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn seconds_left_round_up_and_never_wrap() {
        let end = Instant::from_millis(10_001);
        assert_eq!(end.secs_left(Instant::from_millis(0)), 11);
        assert_eq!(end.secs_left(Instant::from_millis(10_001)), 0);
        assert_eq!(end.secs_left(Instant::from_millis(20_000)), 0);
        assert_eq!(Instant::from_millis(u64::MAX).secs_left(Instant::default()), u32::MAX);
    }
}

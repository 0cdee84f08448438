//! How often each subscriber may ask: a bucket of tokens each, in bounded memory whoever pretends to be whom.
//!
//! A bucket is kept as the time when it is full again, and forgotten then. When too many are kept, the one that is full
//! soonest goes: its owner loses nothing by it, but gains the few tokens that were missing. So sources that are made up push
//! each other out, and who floods in its own name stays limited.

use std::collections::{BTreeMap, BTreeSet};

use crate::time::Instant;

/// Buckets that are kept.
const MAX_BUCKETS: usize = 16_384;

/// Microseconds: a thousand tokens in a second are too many for milliseconds.
type Micros = u64;

/// A bucket of tokens: each datagram takes one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate {
    /// Tokens that come in each second; at least one does.
    pub per_second: u32,
    /// Tokens that the bucket holds; at least one.
    pub burst: u32,
}

/// See the module's description. `K` is whoever has a bucket.
#[derive(Debug)]
pub struct Limits<K> {
    full_at: BTreeMap<K, Micros>,
    by_time: BTreeSet<(Micros, K)>,
}

impl<K> Default for Limits<K> {
    fn default() -> Self {
        Self { full_at: BTreeMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Copy + Ord> Limits<K> {
    /// Takes a token out of the bucket of `subscriber`; false when there is none.
    pub fn admit(&mut self, now: Instant, rate: Rate, subscriber: K) -> bool {
        let now = now.as_millis().saturating_mul(1000);
        let token = 1_000_000 / u64::from(rate.per_second.max(1));
        let bucket = token.saturating_mul(rate.burst.max(1).into());
        let full_at = self.full_at.get(&subscriber).copied().unwrap_or(now).max(now).saturating_add(token);
        if full_at - now > bucket {
            return false;
        }
        self.forget(subscriber);
        while self.by_time.first().is_some_and(|&(at, _)| at <= now) || self.by_time.len() >= MAX_BUCKETS {
            let Some(&(_, other)) = self.by_time.first() else { break };
            self.forget(other);
        }
        self.full_at.insert(subscriber, full_at);
        self.by_time.insert((full_at, subscriber));
        true
    }

    fn forget(&mut self, subscriber: K) {
        if let Some(at) = self.full_at.remove(&subscriber) {
            self.by_time.remove(&(at, subscriber));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 5 };

    fn host(n: u32) -> Ipv4Addr {
        Ipv4Addr::from(n)
    }

    fn admitted(limits: &mut Limits<Ipv4Addr>, ms: u64, subscriber: Ipv4Addr, tries: u32) -> usize {
        let now = Instant::from_millis(ms);
        (0..tries).filter(|_| limits.admit(now, RATE, subscriber)).count()
    }

    #[test]
    fn a_burst_and_then_so_many_a_second() {
        let mut limits = Limits::default();
        assert_eq!(admitted(&mut limits, 1000, host(1), 100), 5);
        assert_eq!(admitted(&mut limits, 1099, host(1), 100), 0);
        assert_eq!(admitted(&mut limits, 1100, host(1), 100), 1);
        assert_eq!(admitted(&mut limits, 1350, host(1), 100), 2);
        assert_eq!(admitted(&mut limits, 1350, host(2), 100), 5, "another's is another's");
        assert_eq!(admitted(&mut limits, 60_000, host(1), 100), 5, "no more than it holds");
        let nothing = Rate { per_second: 0, burst: 0 };
        assert!(limits.admit(Instant::from_secs(100), nothing, host(3)), "no settings shut everybody out");
        assert!(!limits.admit(Instant::from_secs(100), nothing, host(3)));
    }

    #[test]
    fn made_up_sources_take_no_memory_and_free_nobody_who_floods() {
        let mut limits = Limits::default();
        assert_eq!(admitted(&mut limits, 1000, host(1), 100), 5);
        for n in 2..100_000 {
            assert_eq!(admitted(&mut limits, 1000, host(n), 1), 1, "everybody has a bucket");
            assert!(limits.full_at.len() <= MAX_BUCKETS);
        }
        assert_eq!(limits.full_at.len(), limits.by_time.len());
        assert_eq!(admitted(&mut limits, 1000, host(1), 100), 0, "the flood's is still empty");
        assert_eq!(admitted(&mut limits, 3000, host(1), 1), 1);
        assert_eq!((limits.full_at.len(), limits.by_time.len()), (1, 1), "what is full is forgotten");
    }
}

//! Which mappings the server may have filters for that nobody wants any more. They add up with every request and stay with
//! the mapping until one of prefix length 0 drops them (RFC 6887 §13.3), also over a crash and a change of the
//! router's address: whoever gets the mapping next would let in that remote peer only, and wonder.

use std::net::{IpAddr, Ipv4Addr};

use wire::pcp::Protocol;

use super::nonces::Client;
use super::remembered::Remembered;
use crate::time::{Duration, Instant};

/// Nobody has this many at once.
const MOST: usize = 4096;
/// What was stored is stored anew after this time, so that an old line is one of a mapping that has ended.
const REFRESH: Duration = Duration::from_secs(12 * 3600);

/// A mapping that may have filters at the server, by what the server knows it by.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Filtered {
    /// Where its requests came from; `None` for a third party, whose mapping is the same whoever asks.
    pub source: Option<IpAddr>,
    /// The LAN host that it is for; `None` when it is the packet's own source.
    pub third_party: Option<Ipv4Addr>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port as the server sees it.
    pub internal_port: u16,
}

impl Filtered {
    pub(super) fn new(source: IpAddr, (third_party, protocol, internal_port): Client) -> Self {
        Self { source: third_party.is_none().then_some(source), third_party, protocol, internal_port }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Filters {
    /// When it was stored; nothing for what an earlier life has stored.
    stored: Remembered<Filtered, Option<Instant>>,
}

impl Default for Filters {
    fn default() -> Self {
        Self { stored: Remembered::new(MOST) }
    }
}

impl Filters {
    /// What an earlier life has stored.
    pub fn restored(filtered: impl IntoIterator<Item = Filtered>) -> Self {
        let mut filters = Self::default();
        for filtered in filtered {
            filters.stored.keep(filtered, None);
        }
        filters
    }

    /// Whether there may be any.
    pub(super) fn are_at(&self, filtered: Filtered) -> bool {
        self.stored.peek(filtered).is_some()
    }

    /// The server holds it, and nobody here knows with what.
    pub(super) fn suspect(&mut self, filtered: Filtered) {
        if !self.are_at(filtered) {
            self.stored.keep(filtered, None);
        }
    }

    /// A request is about to go out that makes one, or drops those that there may be; whether that has to be stored.
    pub(super) fn note(&mut self, now: Instant, filtered: Filtered) -> bool {
        let fresh = |stored: &Option<Instant>| stored.is_some_and(|stored| now < stored + REFRESH);
        if self.stored.peek(filtered).is_some_and(fresh) {
            return false;
        }
        self.stored.keep(filtered, Some(now));
        true
    }

    /// The server has none. What is stored ends by itself.
    pub(super) fn forget(&mut self, filtered: Filtered) {
        self.stored.take(filtered);
    }
}

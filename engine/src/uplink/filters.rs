//! Which mappings the server may have filters for that nobody wants any more. They add up with every request and stay with
//! the mapping until one of prefix length 0 drops them (RFC 6887 §13.3), also over a crash and a change of the
//! router's address: whoever gets the mapping next would let in that remote peer only, and wonder.

use std::net::IpAddr;

use wire::pcp::Protocol;

use super::nonces::Client;
use super::remembered::Remembered;
use crate::time::{Duration, Instant};

/// Nobody has this many at once.
const MOST: usize = 4096;
/// What was stored is stored anew after this time. A mapping stands for a day at most without being asked for, so what was
/// stored longer ago than both together is no more; the daemon keeps it for two days.
const REFRESH: Duration = Duration::from_secs(12 * 3600);

/// A mapping that may have filters at the server, by what the server knows it by.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Filtered {
    /// Where its requests came from. `None` for a third party that is named in IPv4, whose mapping is the same whoever asks; in
    /// DS-Lite the AFTR tells hosts apart by the B4's IPv6 address, too. An IPv6 address is one host's whoever asks.
    pub source: Option<IpAddr>,
    /// The LAN host that it is for; `None` when it is the packet's own source.
    pub third_party: Option<IpAddr>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port as the server sees it.
    pub internal_port: u16,
}

impl Filtered {
    pub(super) fn new(source: IpAddr, (third_party, protocol, internal_port): Client) -> Self {
        let told_apart = third_party.is_none_or(|host| host.is_ipv4() && source.is_ipv6());
        let source = told_apart.then_some(source);
        Self { source, third_party, protocol, internal_port }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Filters {
    known: Remembered<Filtered, Known>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// The server may have some.
    there: bool,
    /// When this was stored; nothing for what an earlier life has stored.
    stored: Option<Instant>,
}

impl Default for Filters {
    fn default() -> Self {
        Self { known: Remembered::new(MOST) }
    }
}

impl Filters {
    /// What an earlier life has stored.
    pub fn restored(filtered: impl IntoIterator<Item = Filtered>) -> Self {
        let mut filters = Self::default();
        for filtered in filtered {
            filters.suspect(filtered);
        }
        filters
    }

    /// Whether there may be any.
    pub(super) fn are_at(&self, filtered: Filtered) -> bool {
        self.known.peek(filtered).is_some_and(|known| known.there)
    }

    /// The server holds it, and nobody here knows with what.
    pub(super) fn suspect(&mut self, filtered: Filtered) {
        let stored = self.known.peek(filtered).and_then(|known| known.stored);
        self.known.keep(filtered, Known { there: true, stored });
    }

    /// A request is about to go out that makes one, or drops those that there may be; whether that has to be stored.
    pub(super) fn note(&mut self, now: Instant, filtered: Filtered) -> bool {
        let before = self.known.peek(filtered).and_then(|known| known.stored);
        let fresh = before.is_some_and(|stored| now < stored + REFRESH);
        let stored = if fresh { before } else { Some(now) };
        self.known.keep(filtered, Known { there: true, stored });
        !fresh
    }

    /// The server has none. What is stored ends by itself, and need not be stored again so soon.
    pub(super) fn forget(&mut self, filtered: Filtered) {
        if let Some(known) = self.known.peek(filtered).copied() {
            self.known.keep(filtered, Known { there: false, ..known });
        }
    }
}

//! How much each source is answered: SSDP is an amplifier, and who searches in another's name chooses the victim.
//!
//! Within a second a source hears each search once, and five complete sets at most. Beyond that it has what it could have heard at a steady
//! pace, and three times what it has sent: what UDA has us answer to one short datagram is more than that, so a source may run into debt,
//! by those five sets. In bounded memory, whoever pretends to be whom.

use std::collections::BTreeMap;
use std::net::IpAddr;

use wire::ssdp::{MAX_SENT, Target};

use crate::time::{Duration, Instant};

/// Datagrams to one source within a second: five complete sets.
const ANSWERS_PER_SOURCE: usize = 50;
/// Octets that a source may be answered beyond what it has earned.
const DEBT: usize = ANSWERS_PER_SOURCE * MAX_SENT;
/// What each octet earns that a source sends, in octets.
const PER_OCTET: usize = 3;
/// What each millisecond earns, in octets: two or three answers a second.
const PER_MILLISECOND: usize = 1;
/// Sources that are remembered.
pub(super) const MAX_SOURCES: usize = 512;
/// Of those, the ones over IPv6, where a host has as many addresses as it wants: they never take all places.
pub(super) const SOURCES_OVER_IPV6: usize = MAX_SOURCES / 2;
const SECOND: Duration = Duration::from_secs(1);

/// By interface, too: a link-local address says nothing without.
pub(super) type Source = (u32, IpAddr);

/// What one source was answered.
#[derive(Debug)]
struct Answered {
    /// The running second began then.
    since: Instant,
    datagrams: usize,
    searches: Vec<(u16, Target)>,
    /// Octets that it has not earned yet …
    owed: usize,
    /// … at this time.
    at: Instant,
}

impl Answered {
    fn owed(&self, now: Instant) -> usize {
        let passed = usize::try_from((now - self.at).as_millis()).unwrap_or(usize::MAX);
        self.owed.saturating_sub(passed.saturating_mul(PER_MILLISECOND))
    }
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Budget {
    sources: BTreeMap<Source, Answered>,
}

impl Budget {
    /// Whether a search of so many octets, for `target` and by that port, may be answered with `answers`, which are spent then.
    pub(super) fn spend(
        &mut self,
        now: Instant,
        source: Source,
        (port, target, octets): (u16, &Target, usize),
        datagrams: usize,
        answers: impl FnOnce() -> Vec<Vec<u8>>,
    ) -> Option<Vec<Vec<u8>>> {
        if !self.sources.contains_key(&source) && !self.make_room(now, source) {
            return None;
        }
        let fresh = || Answered { since: now, datagrams: 0, searches: Vec::new(), owed: 0, at: now };
        let answered = self.sources.entry(source).or_insert_with(fresh);
        if now - answered.since >= SECOND {
            *answered = Answered { owed: answered.owed(now), ..fresh() };
        }
        answered.owed = answered.owed(now).saturating_sub(octets.saturating_mul(PER_OCTET));
        answered.at = now;
        let search = (port, target.clone());
        if answered.datagrams + datagrams > ANSWERS_PER_SOURCE || answered.searches.contains(&search) {
            return None;
        }
        let answers = answers();
        let owed = answered.owed + answers.iter().map(Vec::len).sum::<usize>();
        if owed > DEBT {
            return None;
        }
        answered.owed = owed;
        answered.datagrams += datagrams;
        answered.searches.push(search);
        Some(answers)
    }

    /// Whether there is room for one more source. What owes nothing is forgotten; then whoever owes least, if its second is over.
    fn make_room(&mut self, now: Instant, (_, from): Source) -> bool {
        let v6 = |all: &BTreeMap<Source, Answered>| all.keys().filter(|(_, source)| source.is_ipv6()).count();
        let full = |all: &BTreeMap<Source, Answered>| {
            all.len() >= MAX_SOURCES || from.is_ipv6() && v6(all) >= SOURCES_OVER_IPV6
        };
        if !full(&self.sources) {
            return true;
        }
        self.sources.retain(|_, answered| now - answered.since < SECOND || answered.owed(now) > 0);
        if !full(&self.sources) {
            return true;
        }
        let only_v6 = self.sources.len() < MAX_SOURCES;
        let over = self.sources.iter().filter(|((_, source), answered)| {
            now - answered.since >= SECOND && (!only_v6 || source.is_ipv6())
        });
        let Some((&least, _)) = over.min_by_key(|(_, answered)| answered.owed(now)) else { return false };
        self.sources.remove(&least);
        true
    }

    /// How many sources are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.sources.len()
    }
}

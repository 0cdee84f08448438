//! Every mapping there is, and every index over them. Each operation costs the logarithm of their number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use wire::pcp::{Filter, Nonce, Protocol};

use super::interface::{Arrival, Binding, Inside, Requester, Subscriber, Ticket, filters_let_in};
use super::journal::MappingKey;
use crate::time::{Duration, Instant, Timers};

/// A mapping of the server.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerMapping {
    /// 0: all protocols.
    pub protocol: Protocol,
    /// The host inside.
    pub inside: Inside,
    /// 0: all ports.
    pub internal_port: u16,
    /// Address and port outside; port 0: all ports.
    pub external: SocketAddr,
    /// 1, or the size of a PORT_SET.
    pub ports: u16,
    /// The only remote endpoint it is for, if PEER made it.
    pub peer: Option<SocketAddr>,
    /// What proves that it is the client's; `None` for one of NAT-PMP, which is its source address'.
    pub nonce: Option<Nonce>,
    /// Whose packet asked for it first.
    pub requester: Requester,
    /// Whose quota it counts against.
    pub subscriber: Subscriber,
    /// Who may come in; empty: everybody.
    pub filters: Vec<Filter>,
    /// A text for people, never empty.
    pub description: Option<String>,
    /// When it ends unless it is renewed.
    pub ends: Instant,
    /// The lifetime that was granted last.
    pub(super) granted: Duration,
    /// Until when it is stored.
    pub(super) stored_until: Instant,
    /// Its external port of the other protocol is kept for the same host (N-6).
    pub(super) companion: bool,
    /// Where the last request about it came from, and how it was made strict; for mapping updates.
    pub(super) asked: Option<LastAsked>,
    /// The data plane has it.
    pub(super) open: bool,
    /// What the data plane has not answered yet.
    pub(super) busy: Option<Ticket>,
}

/// What a mapping update has to repeat (RFC 6887 §14.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct LastAsked {
    pub(super) arrival: Arrival,
    pub(super) strict: bool,
    pub(super) suggested: (IpAddr, u16),
}

impl ServerMapping {
    /// What tells it from all others.
    #[must_use]
    pub fn key(&self) -> MappingKey {
        MappingKey::new(self.inside, self.protocol, self.internal_port, self.peer)
    }

    /// What the data plane has to do for it.
    pub(super) fn binding(&self) -> Binding {
        Binding {
            protocol: self.protocol,
            inside: self.inside,
            internal_port: self.internal_port,
            external: self.external,
            ports: self.ports,
            filters: self.filters.clone(),
            peer: self.peer,
        }
    }

    /// Whether a packet from `remote` may come in.
    #[must_use]
    pub fn lets_in(&self, remote: SocketAddr) -> bool {
        self.peer.is_none_or(|peer| peer == remote) && filters_let_in(&self.filters, remote)
    }

    /// What it counts in its subscriber's quota, beside what [the pool](super::pool::Pool::charged) counts.
    fn charge(&self) -> u32 {
        if self.external.is_ipv6() { self.ports.into() } else { 1 }
    }

    /// Whether the data plane has it; what waits for the data plane is not there yet.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }
}

/// What one subscriber has.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Account {
    /// Its mappings; a pinhole's ports each, for the pool does not know them.
    pub(super) ports: u32,
    /// Changes that the data plane has not answered yet.
    pub(super) busy: usize,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    mappings: BTreeMap<MappingKey, ServerMapping>,
    /// Mappings of MAP and NAT-PMP.
    by_requester: BTreeSet<(Requester, MappingKey)>,
    /// Remote endpoints of the mappings that PEER made, by what MAP's would have as its key.
    outbound: BTreeSet<(MappingKey, SocketAddr)>,
    /// A subscriber without mappings is not in it.
    accounts: BTreeMap<Subscriber, Account>,
    /// Of what is open.
    ends: Timers<MappingKey>,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.mappings.len()
    }

    /// How many the data plane has.
    pub(super) fn open(&self) -> usize {
        self.ends.count()
    }

    /// How many subscribers have a mapping, or wait for one.
    pub(super) fn subscribers(&self) -> usize {
        self.accounts.len()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &ServerMapping> {
        self.mappings.values()
    }

    pub(super) fn get(&self, key: &MappingKey) -> Option<&ServerMapping> {
        self.mappings.get(key)
    }

    pub(super) fn account(&self, subscriber: Subscriber) -> Account {
        self.accounts.get(&subscriber).copied().unwrap_or_default()
    }

    /// The mappings of MAP from `key` on, whosever they are.
    pub(super) fn from(
        &self,
        bounds: impl std::ops::RangeBounds<MappingKey>,
    ) -> impl Iterator<Item = &ServerMapping> {
        self.mappings.range(bounds).map(|(_, mapping)| mapping)
    }

    /// The keys of what MAP and NAT-PMP made at the wish of `requester`.
    pub(super) fn made_by(
        &self,
        requester: Requester,
        behind: std::ops::Bound<MappingKey>,
    ) -> impl Iterator<Item = &ServerMapping> {
        use std::ops::Bound;
        let first = MappingKey {
            addr: std::net::Ipv6Addr::UNSPECIFIED,
            softwire: None,
            protocol: Protocol::ALL,
            peer: None,
            port: 0,
        };
        let lower = match behind {
            Bound::Excluded(key) => Bound::Excluded((requester, key)),
            Bound::Included(key) => Bound::Included((requester, key)),
            Bound::Unbounded => Bound::Included((requester, first)),
        };
        self.by_requester
            .range((lower, Bound::Unbounded))
            .take_while(move |(other, _)| *other == requester)
            .map(|(_, key)| &self.mappings[key])
    }

    /// The mappings of MAP whose internal ports are among the `ports` from `port` on, in their order.
    pub(super) fn overlapping(
        &self,
        inside: Inside,
        protocol: Protocol,
        port: u16,
        ports: u16,
    ) -> Vec<MappingKey> {
        let key = |port| MappingKey::new(inside, protocol, port, None);
        if port == 0 {
            return self.mappings.get(&key(0)).map(ServerMapping::key).into_iter().collect();
        }
        let last = port.saturating_add(ports.max(1) - 1);
        let begun = self.mappings.range(key(1)..key(port)).next_back();
        let begun = begun.filter(|(found, mapping)| mapping.ports > port - found.port);
        let others = self.mappings.range(key(port)..=key(last));
        begun.into_iter().chain(others).map(|(key, _)| *key).collect()
    }

    /// Whether PEER has made a mapping of the internal endpoint that `key` names.
    pub(super) fn has_outbound(&self, key: &MappingKey) -> bool {
        let behind = self.outbound.range((*key, SocketAddr::from(([0; 4], 0)))..).next();
        behind.is_some_and(|(other, _)| other == key)
    }

    pub(super) fn insert(&mut self, mapping: ServerMapping) {
        let key = mapping.key();
        match key.peer {
            None => drop(self.by_requester.insert((mapping.requester, key))),
            Some(peer) => drop(self.outbound.insert((MappingKey { peer: None, ..key }, peer))),
        }
        let account = self.accounts.entry(mapping.subscriber).or_default();
        account.ports += mapping.charge();
        account.busy += usize::from(mapping.busy.is_some());
        if mapping.open {
            self.ends.set(key, mapping.ends);
        }
        let before = self.mappings.insert(key, mapping);
        debug_assert!(before.is_none(), "a key is looked up before it is given to another mapping");
    }

    pub(super) fn remove(&mut self, key: &MappingKey) -> Option<ServerMapping> {
        let mapping = self.mappings.remove(key)?;
        self.by_requester.remove(&(mapping.requester, *key));
        if let Some(peer) = key.peer {
            self.outbound.remove(&(MappingKey { peer: None, ..*key }, peer));
        }
        self.ends.cancel(*key);
        if let Some(account) = self.accounts.get_mut(&mapping.subscriber) {
            account.ports -= mapping.charge();
            account.busy -= usize::from(mapping.busy.is_some());
            if account.ports == 0 {
                self.accounts.remove(&mapping.subscriber);
            }
        }
        Some(mapping)
    }

    /// Changes one, and every index with it. What it is for and who has asked for it stays, and so does the number of its
    /// ports.
    pub(super) fn change(&mut self, key: &MappingKey, change: impl FnOnce(&mut ServerMapping)) {
        let Some(mapping) = self.mappings.get_mut(key) else { return };
        let before = (mapping.open, mapping.ends, mapping.busy.is_some());
        change(mapping);
        let after = (mapping.open, mapping.ends, mapping.busy.is_some());
        if mapping.open && (before.0, before.1) != (after.0, after.1) {
            self.ends.set(*key, mapping.ends);
        }
        if let Some(account) = self.accounts.get_mut(&mapping.subscriber) {
            account.busy = account.busy + usize::from(after.2) - usize::from(before.2);
        }
    }

    /// One mapping whose lifetime is over; it is looked at again at `again`, unless its end changes.
    pub(super) fn ended(&mut self, now: Instant, again: Instant) -> Option<MappingKey> {
        let key = self.ends.pop_due(now)?;
        self.ends.set(key, again);
        Some(key)
    }

    pub(super) fn next_end(&self) -> Option<Instant> {
        self.ends.next()
    }
}

#[cfg(test)]
impl Table {
    /// The indexes say what the mappings say.
    pub(super) fn check(&self) {
        let made: BTreeSet<_> = self
            .all()
            .filter(|mapping| mapping.peer.is_none())
            .map(|mapping| (mapping.requester, mapping.key()))
            .collect();
        assert_eq!(self.by_requester, made);
        let peers =
            self.mappings.keys().filter_map(|key| Some((MappingKey { peer: None, ..*key }, key.peer?)));
        assert_eq!(self.outbound, peers.collect());
        let mut accounts: BTreeMap<Subscriber, Account> = BTreeMap::new();
        for (key, mapping) in &self.mappings {
            assert_eq!(mapping.key(), *key);
            let account = accounts.entry(mapping.subscriber).or_default();
            account.ports += mapping.charge();
            account.busy += usize::from(mapping.busy.is_some());
        }
        assert_eq!(self.accounts, accounts);
        assert_eq!(self.open(), self.all().filter(|mapping| mapping.open).count());
    }
}

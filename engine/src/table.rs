//! The mapping table: the one record of what is mapped. What the kernel, the PCP server, control points and the
//! status page are told derives from it.
//!
//! Every operation costs at most the logarithm of the table's size, except those whose answer is a list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use wire::pcp::Protocol;

use crate::claims::Claims;
use crate::notice::Cause;
use crate::status::MappingStatus;
use crate::time::Instant;
use crate::uplink::FlowId;

/// What identifies a mapping here. IGD's key has the remote host too (spec A-1); one external port with several
/// remote hosts would be one PCP mapping with several filters that cannot be dropped singly, so it is refused.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The external port at the provider's NAT.
    pub external_port: u16,
}

/// How a mapping is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Health {
    /// Granted, and renewed when it was due.
    Active,
    /// The last renewal failed; it still stands until its lifetime ends, and is tried again.
    Degraded,
    /// Its owner asked for its deletion, and the PCP server has not confirmed it yet.
    Deleting,
}

/// One mapping that a control point made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mapping {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address and port at the provider's NAT.
    pub external: SocketAddrV4,
    /// The LAN host and its port.
    pub internal: SocketAddrV4,
    /// The port of the router's own NAT in between, if it has one.
    pub nat_port: Option<u16>,
    /// The only remote host that may come in; `None` for all.
    pub remote_peer: Option<Ipv4Addr>,
    /// The name that it was given by; it is looked up again at every renewal.
    pub remote_name: Option<String>,
    /// The control point's own words.
    pub description: String,
    /// Made by AddPortMapping: its owner counts on this very external port.
    pub strict: bool,
    /// When it was made.
    pub created: Instant,
    /// Which of all it was, counted over all starts: of several for one port of a host the first counts for what that sends.
    pub made: u64,
    /// When its owner last asked for it.
    pub asked_at: Instant,
    /// Who of its owner counts on it, by which protocol (R-33, decision 14).
    pub claims: Claims<Instant>,
    /// When the lifetime that the PCP server granted ends.
    pub lifetime_ends: Instant,
    /// How it is doing.
    pub health: Health,
    /// The PCP server in use has granted it, so it tells the external address.
    pub confirmed: bool,
    /// The PCP client's handle for it.
    pub flow: FlowId,
}

impl Mapping {
    /// See [`Key`].
    pub fn key(&self) -> Key {
        Key { protocol: self.protocol, external_port: self.external.port() }
    }

    /// As it is shown at this time.
    pub fn status(&self, now: Instant) -> MappingStatus {
        MappingStatus {
            protocol: self.protocol,
            external: self.external,
            nat_port: self.nat_port,
            internal: self.internal,
            remote_peer: self.remote_peer,
            remote_name: self.remote_name.clone(),
            description: self.description.clone(),
            age: now - self.created,
            asked_by: self.claims.asked_by(now),
            lease_left: self.lease_ends().map(|end| end - now),
            lifetime_left: self.lifetime_ends - now,
            health: self.health,
        }
    }

    /// When nobody counts on it any more; `None` for never.
    pub fn lease_ends(&self) -> Option<Instant> {
        self.claims.end()
    }

    fn tells_address(&self) -> bool {
        self.confirmed && self.health != Health::Deleting
    }
}

/// What one host has.
#[derive(Debug)]
struct HostMappings {
    count: usize,
    /// The external address of the last answer about one of them.
    external: Ipv4Addr,
}

/// A mapping that may have changed.
#[derive(Debug, Default)]
pub struct Touched {
    /// As it was before; `None`: it was not there.
    pub before: Option<Mapping>,
    /// Why it was taken out, if it was.
    pub cause: Option<Cause>,
}

#[derive(Debug)]
struct Slot {
    mapping: Mapping,
    position: usize,
}

/// See the module's description.
#[derive(Debug, Default)]
pub struct MappingTable {
    /// Boxed, for the map has places that are empty: as ports come in rising order nearly half of them.
    by_key: BTreeMap<Key, Box<Slot>>,
    /// The order that GetGenericPortMappingEntry counts in: no gaps, and a removal moves only the last entry.
    order: Vec<Key>,
    by_flow: BTreeMap<FlowId, Key>,
    by_host: BTreeMap<Ipv4Addr, HostMappings>,
    host_addresses_changed: u32,
    by_internal: BTreeSet<(Protocol, SocketAddrV4, u16)>,
    /// How many tell the external address.
    telling: usize,
    /// What may have changed since somebody last asked.
    touched: BTreeMap<FlowId, Touched>,
}

impl MappingTable {
    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether there is one that tells the external address: confirmed by the PCP server, and not being deleted.
    pub fn tells_address(&self) -> bool {
        self.telling > 0
    }

    /// How many of them lead to `host`.
    pub fn held_by(&self, host: Ipv4Addr) -> usize {
        self.by_host.get(&host).map_or(0, |mappings| mappings.count)
    }

    /// The external address as `host` knows it: that of the last answer about one of its mappings (RFC 6970 §4.1).
    pub fn external_of(&self, host: Ipv4Addr) -> Option<Ipv4Addr> {
        self.by_host.get(&host).map(|mappings| mappings.external).filter(|addr| !addr.is_unspecified())
    }

    /// Counts up whenever [`external_of`](Self::external_of) of any host has changed.
    pub fn host_addresses_changed(&self) -> u32 {
        self.host_addresses_changed
    }

    /// The way to the Internet is another one: nobody has an external address there yet.
    pub fn forget_externals(&mut self) {
        let mut known = self.by_host.values_mut().filter(|host| !host.external.is_unspecified()).peekable();
        if known.peek().is_some() {
            self.host_addresses_changed = self.host_addresses_changed.wrapping_add(1);
        }
        known.for_each(|host| host.external = Ipv4Addr::UNSPECIFIED);
    }

    /// The PCP server has answered about the mapping with this key.
    pub fn note_external(&mut self, key: Key) {
        let Some(slot) = self.by_key.get(&key) else { return };
        let (host, external) = (*slot.mapping.internal.ip(), *slot.mapping.external.ip());
        let mappings = self.by_host.get_mut(&host).expect("every mapping is counted for its host");
        if mappings.external != external {
            mappings.external = external;
            self.host_addresses_changed = self.host_addresses_changed.wrapping_add(1);
        }
    }

    /// The mapping with this key.
    pub fn find(&self, key: Key) -> Option<&Mapping> {
        self.by_key.get(&key).map(|slot| &slot.mapping)
    }

    /// The mapping that this flow keeps.
    pub fn find_flow(&self, flow: FlowId) -> Option<&Mapping> {
        self.find(*self.by_flow.get(&flow)?)
    }

    /// A mapping that leads to this port of this host.
    pub fn find_internal(&self, protocol: Protocol, internal: SocketAddrV4) -> Option<&Mapping> {
        let range = (protocol, internal, 0)..=(protocol, internal, u16::MAX);
        let &(_, _, external_port) = self.by_internal.range(range).next()?;
        self.find(Key { protocol, external_port })
    }

    /// All mappings that lead to this port of this host.
    pub fn of_internal(
        &self,
        protocol: Protocol,
        internal: SocketAddrV4,
    ) -> impl Iterator<Item = &Mapping> + Clone {
        let range = (protocol, internal, 0)..=(protocol, internal, u16::MAX);
        let key =
            move |&(_, _, external_port): &(Protocol, SocketAddrV4, u16)| Key { protocol, external_port };
        self.by_internal.range(range).filter_map(move |one| self.find(key(one)))
    }

    /// The mapping at `index`, counted from 0 without gaps.
    pub fn nth(&self, index: usize) -> Option<&Mapping> {
        self.find(*self.order.get(index)?)
    }

    /// All mappings, by protocol and external port.
    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.by_key.values().map(|slot| &slot.mapping)
    }

    /// The mappings of `protocol` with external ports from `first` to `last`, in the order of the ports.
    pub fn range(&self, protocol: Protocol, first: u16, last: u16) -> impl Iterator<Item = &Mapping> {
        let key = |external_port| Key { protocol, external_port };
        // An empty range for a `first` that is past `last`: the map would panic.
        let range = (first <= last).then(|| self.by_key.range(key(first)..=key(last)));
        range.into_iter().flatten().map(|(_, slot)| &slot.mapping)
    }

    /// What may be different from when this was last called.
    pub fn take_touched(&mut self) -> BTreeMap<FlowId, Touched> {
        std::mem::take(&mut self.touched)
    }

    fn touch(touched: &mut BTreeMap<FlowId, Touched>, mapping: &Mapping) {
        touched.entry(mapping.flow).or_insert_with(|| Touched { before: Some(mapping.clone()), cause: None });
    }

    /// Takes in a new mapping. Its key and its flow are free: the caller has looked.
    pub fn insert(&mut self, mapping: Mapping) {
        let key = mapping.key();
        debug_assert!(!self.by_key.contains_key(&key), "the caller looks before it inserts");
        self.by_flow.insert(mapping.flow, key);
        self.touched.entry(mapping.flow).or_default();
        let external = *mapping.external.ip();
        let host = self.by_host.entry(*mapping.internal.ip()).or_insert(HostMappings { count: 0, external });
        host.count += 1;
        self.by_internal.insert((key.protocol, mapping.internal, key.external_port));
        self.order.push(key);
        self.telling += usize::from(mapping.tells_address());
        self.by_key.insert(key, Box::new(Slot { mapping, position: self.order.len() - 1 }));
        self.note_external(key);
    }

    /// Changes a mapping in place; its key, flow and internal client must stay (see [`rekey`](Self::rekey) and
    /// [`repoint`](Self::repoint)).
    pub fn update(&mut self, key: Key, change: impl FnOnce(&mut Mapping)) {
        if let Some(slot) = self.by_key.get_mut(&key) {
            let (flow, internal) = (slot.mapping.flow, slot.mapping.internal);
            Self::touch(&mut self.touched, &slot.mapping);
            self.telling -= usize::from(slot.mapping.tells_address());
            change(&mut slot.mapping);
            self.telling += usize::from(slot.mapping.tells_address());
            debug_assert!(
                (slot.mapping.key(), slot.mapping.flow, slot.mapping.internal) == (key, flow, internal),
                "an update leaves key, flow and internal client alone"
            );
        }
    }

    /// Moves a mapping to another external address and port; false, and nothing done, when that key is taken.
    pub fn rekey(&mut self, key: Key, external: SocketAddrV4) -> bool {
        let new = Key { external_port: external.port(), ..key };
        if new != key && self.by_key.contains_key(&new) {
            return false;
        }
        if let Some(mut slot) = self.by_key.remove(&key) {
            Self::touch(&mut self.touched, &slot.mapping);
            let internal = slot.mapping.internal;
            self.by_internal.remove(&(key.protocol, internal, key.external_port));
            self.by_internal.insert((key.protocol, internal, new.external_port));
            slot.mapping.external = external;
            self.order[slot.position] = new;
            self.by_flow.insert(slot.mapping.flow, new);
            self.by_key.insert(new, slot);
        }
        true
    }

    /// Leads a mapping to another port of the same host.
    pub fn repoint(&mut self, key: Key, internal: SocketAddrV4) {
        if let Some(slot) = self.by_key.get_mut(&key) {
            Self::touch(&mut self.touched, &slot.mapping);
            let old = std::mem::replace(&mut slot.mapping.internal, internal);
            debug_assert_eq!(old.ip(), internal.ip(), "a mapping stays with its host");
            self.by_internal.remove(&(key.protocol, old, key.external_port));
            self.by_internal.insert((key.protocol, internal, key.external_port));
        }
    }

    /// Takes out the mapping with this key, for this reason.
    pub fn remove(&mut self, key: Key, cause: Cause) -> Option<Mapping> {
        let Slot { mapping, position } = *self.by_key.remove(&key)?;
        Self::touch(&mut self.touched, &mapping);
        self.touched.entry(mapping.flow).or_default().cause = Some(cause);
        self.telling -= usize::from(mapping.tells_address());
        self.order.swap_remove(position);
        if let Some(moved) = self.order.get(position) {
            self.by_key.get_mut(moved).expect("`order` and `by_key` hold the same keys").position = position;
        }
        self.by_flow.remove(&mapping.flow);
        self.by_internal.remove(&(key.protocol, mapping.internal, key.external_port));
        let host = *mapping.internal.ip();
        let held = self.by_host.get_mut(&host).expect("every mapping is counted for its host");
        held.count -= 1;
        if held.count == 0 {
            self.by_host.remove(&host);
            self.host_addresses_changed = self.host_addresses_changed.wrapping_add(1);
        }
        Some(mapping)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::Asker;

    fn mapping(port: u16, host: u8, flow: u64) -> Mapping {
        Mapping {
            protocol: Protocol::TCP,
            external: SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), port),
            internal: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, host), 80),
            nat_port: None,
            remote_peer: None,
            remote_name: None,
            description: String::new(),
            strict: true,
            created: Instant::default(),
            made: 0,
            asked_at: Instant::default(),
            claims: Claims::of(Asker::Igd, None),
            lifetime_ends: Instant::default(),
            health: Health::Active,
            confirmed: true,
            flow: FlowId(flow),
        }
    }

    fn key(external_port: u16) -> Key {
        Key { protocol: Protocol::TCP, external_port }
    }

    fn check(table: &MappingTable) {
        assert_eq!(table.order.len(), table.by_key.len());
        assert_eq!(table.order.len(), table.by_flow.len());
        assert_eq!(table.order.len(), table.by_host.values().map(|host| host.count).sum::<usize>());
        assert_eq!(table.order.len(), table.by_internal.len());
        let telling = table.iter().filter(|mapping| mapping.tells_address()).count();
        assert_eq!((table.telling, table.tells_address()), (telling, telling > 0));
        for (position, key) in table.order.iter().enumerate() {
            let slot = &table.by_key[key];
            assert_eq!((slot.position, slot.mapping.key()), (position, *key));
            assert_eq!(table.by_flow[&slot.mapping.flow], *key);
            assert!(table.by_internal.contains(&(key.protocol, slot.mapping.internal, key.external_port)));
        }
    }

    /// Spec A-7: 0..n-1, contiguous, compacted on delete.
    #[test]
    fn indexes_have_no_gaps() {
        let mut table = MappingTable::default();
        for n in 0..10_u16 {
            table.insert(mapping(5000 + n, 2, u64::from(n)));
            check(&table);
        }
        for port in [5003, 5009, 5000, 5005] {
            assert!(table.remove(key(port), Cause::Deleted).is_some());
            check(&table);
        }
        assert!(table.remove(key(5003), Cause::Deleted).is_none());
        let mut seen: Vec<u16> = (0..6).map(|i| table.nth(i).unwrap().external.port()).collect();
        seen.sort_unstable();
        assert_eq!(seen, [5001, 5002, 5004, 5006, 5007, 5008]);
        assert!(table.nth(6).is_none());
        assert_eq!(table.held_by(Ipv4Addr::new(10, 0, 0, 2)), 6);
    }

    #[test]
    fn a_moved_mapping_keeps_its_place_and_never_lands_on_another() {
        let mut table = MappingTable::default();
        table.insert(mapping(5000, 2, 1));
        table.insert(mapping(5001, 3, 2));
        let to = |port| SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 8), port);
        assert!(!table.rekey(key(5000), to(5001)));
        assert!(table.rekey(key(5000), to(6000)));
        check(&table);
        assert_eq!(table.nth(0).unwrap().external, to(6000));
        assert_eq!(table.find_flow(FlowId(1)).unwrap().external, to(6000));
        assert!(table.rekey(key(6000), SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 6000)));
        check(&table);
    }

    #[test]
    fn ranges_are_inclusive_and_of_one_protocol() {
        let mut table = MappingTable::default();
        for port in [1, 500, 501, 65535] {
            table.insert(mapping(port, 2, u64::from(port)));
        }
        table.insert(Mapping { protocol: Protocol::UDP, ..mapping(500, 2, 9999) });
        let ports = |first, last| -> Vec<u16> {
            table.range(Protocol::TCP, first, last).map(|m| m.external.port()).collect()
        };
        assert_eq!(ports(0, 65535), [1, 500, 501, 65535]);
        assert_eq!(ports(500, 500), [500]);
        assert_eq!(ports(502, 65534), []);
        assert_eq!(ports(501, 500), []);
    }
}

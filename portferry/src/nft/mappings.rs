//! What our table holds, kept here too: a change is turned into the elements that go and come, and the flows that it ends.
//! Nothing of this speaks to the kernel.
//!
//! An element belongs to one mapping or is shared by several (a host's own packets leave by one port, however many lead
//! to theirs); who has it is a range of an ordered set, so that a change costs the logarithm of the table's size.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddrV4},
};

use super::batch::{Batch, Kind};
use super::conntrack::Flows;
use super::ruleset::{self, Entry, SETS};
use super::{Change, Nat1Rule, TCP, TableConfig, UDP, invalid};

/// What the kernel looks a packet up by: protocol, external port, remote peer.
type Key = (u8, u16, Option<Ipv4Addr>);

const FIRST_KEY: Key = (0, 0, None);
const LAST_KEY: Key = (u8::MAX, u16::MAX, Some(Ipv4Addr::BROADCAST));

/// A mapping in the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Held {
    internal: SocketAddrV4,
    outermost: Option<SocketAddrV4>,
    /// The lower the older.
    made: u64,
}

/// An element of one of the kernel's maps and sets, by what it is for.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Slot {
    /// The way in by a port of the WAN address.
    Port(Key),
    /// The way in by the outermost address and port, for all or one remote peer.
    Hairpin(u8, SocketAddrV4, Option<Ipv4Addr>),
    /// What a LAN host's own packets leave by.
    Source(u8, SocketAddrV4),
    /// What other LAN hosts see them come from.
    HairpinSource(u8, SocketAddrV4),
    /// A port of the WAN address that nobody else's packets may leave by.
    Mapped(u8, u16),
    /// An address that stands for mappings: an outermost one, or the WAN's.
    Address(Ipv4Addr),
    /// To whom all or one remote peer may come.
    Marked(u8, SocketAddrV4, Option<Ipv4Addr>),
}

/// What the kernel's maps and sets hold.
#[derive(Debug, Default)]
pub(super) struct Table {
    hairpin: bool,
    masquerade: bool,
    marks: bool,
    wan_addresses: BTreeSet<Ipv4Addr>,
    mappings: BTreeMap<Key, Held>,
    /// How many of them each host has; none has none.
    hosts: BTreeMap<Ipv4Addr, usize>,
    /// Who has a part in each element, the oldest first.
    shares: BTreeSet<(Slot, u64, Key)>,
    /// How many were ever made.
    made: u64,
}

/// The difference that some changes have made.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) removed: Vec<Entry>,
    pub(super) added: Vec<Entry>,
    pub(super) flows: BTreeSet<Flows>,
    /// How to go back, the last step first.
    undo: Vec<(Key, Option<Held>)>,
}

/// What was there before.
#[derive(Default)]
struct Before {
    slots: BTreeMap<Slot, Option<Entry>>,
    mappings: BTreeMap<Key, Option<Held>>,
}

impl Table {
    /// An empty one, as [`ruleset::recreate`] makes it.
    pub(super) fn new(config: &TableConfig) -> Self {
        let wan_addresses = config.wan_addresses.iter().copied().collect();
        let TableConfig { hairpin, masquerade, .. } = *config;
        Self { hairpin, masquerade, marks: config.mark.is_some(), wan_addresses, ..Self::default() }
    }

    /// All mappings, the oldest first.
    pub(super) fn rules(&self) -> impl Iterator<Item = Nat1Rule> {
        let mut all: Vec<_> = self.mappings.iter().collect();
        all.sort_by_key(|(_, held)| held.made);
        all.into_iter().map(|(&key, held)| rule(key, held))
    }

    pub(super) fn len(&self) -> usize {
        self.mappings.len()
    }

    pub(super) fn held_by(&self, host: Ipv4Addr) -> usize {
        self.hosts.get(&host).copied().unwrap_or_default()
    }

    /// All elements that the kernel is to have, of [`SETS`].
    pub(super) fn entries(&self) -> Vec<Entry> {
        let addresses = self.wan_addresses.iter().filter(|_| self.hairpin);
        let own = addresses.clone().map(|addr| Slot::Address(*addr));
        let slots: BTreeSet<Slot> = self.shares.iter().map(|(slot, ..)| *slot).chain(own).collect();
        let shared = slots.into_iter().filter_map(|slot| self.entry(slot));
        shared.chain(addresses.map(|addr| ruleset::wan_address(*addr))).collect()
    }

    /// The mappings of a port of the WAN address, one for each remote peer.
    pub(super) fn at(&self, protocol: u8, external_port: u16) -> impl Iterator<Item = Nat1Rule> {
        let (first, last) = ((protocol, external_port, None), (protocol, external_port, LAST_KEY.2));
        self.mappings.range(first..=last).map(|(&key, held)| rule(key, held))
    }

    pub(super) fn holds(&self, rule: &Nat1Rule) -> bool {
        self.mappings.get(&key(rule)).is_some_and(|held| held.internal == rule.internal)
    }

    /// Makes `changes`, all or, with any error, none; what the kernel has to be told to follow.
    pub(super) fn change(&mut self, changes: &[Change]) -> io::Result<Plan> {
        let (mut plan, mut before) = (Plan::default(), Before::default());
        let made = changes.iter().try_for_each(|change| match change {
            Change::Add(new) => self.add(&mut plan, &mut before, new, None),
            Change::Remove(old) => self.remove(&mut plan, &mut before, old).map(drop),
            Change::Replace { old, new } => {
                // It is the same mapping, as old as it was.
                let made = self.remove(&mut plan, &mut before, old)?;
                self.add(&mut plan, &mut before, new, Some(made))
            }
        });
        if let Err(error) = made {
            self.undo(&plan);
            return Err(error);
        }
        for (slot, old) in before.slots {
            let new = self.entry(slot);
            if old == new {
                continue;
            }
            // NAT is decided by a flow's first packet. Only UDP's flows begin anew without their hosts' doing.
            if let Slot::Source(UDP, internal) | Slot::HairpinSource(UDP, internal) = slot {
                plan.flows.insert(Flows::From { protocol: UDP, internal });
            }
            plan.removed.extend(old);
            plan.added.extend(new);
        }
        for (key, old) in before.mappings {
            self.end_flows(&mut plan.flows, key, old);
        }
        Ok(plan)
    }

    /// Takes the changes of a plan back.
    pub(super) fn undo(&mut self, plan: &Plan) {
        for &(key, held) in plan.undo.iter().rev() {
            self.set(key, held);
        }
    }

    /// The WAN interface has these addresses; what the kernel has to be told to follow.
    pub(super) fn readdress(&mut self, addresses: &[Ipv4Addr]) -> Plan {
        let mut plan = Plan::default();
        if !self.hairpin {
            return plan;
        }
        let new: BTreeSet<Ipv4Addr> = addresses.iter().copied().collect();
        let changed: Vec<Ipv4Addr> = self.wan_addresses.symmetric_difference(&new).copied().collect();
        let before: Vec<_> = changed.iter().map(|&addr| self.entry(Slot::Address(addr))).collect();
        let old = std::mem::replace(&mut self.wan_addresses, new);
        for (addr, before) in changed.into_iter().zip(before) {
            let entry = ruleset::wan_address(addr);
            let changed = if old.contains(&addr) { &mut plan.removed } else { &mut plan.added };
            changed.push(entry);
            let after = self.entry(Slot::Address(addr));
            if before != after {
                plan.removed.extend(before);
                plan.added.extend(after);
            }
        }
        plan
    }

    fn add(
        &mut self,
        plan: &mut Plan,
        before: &mut Before,
        new: &Nat1Rule,
        made: Option<u64>,
    ) -> io::Result<()> {
        new.check()?;
        let there = self.mappings.get(&key(new));
        if let Some(there) = there.filter(|there| there.internal != new.internal) {
            let message = format!("{new:?}: the external port is mapped to {}", there.internal);
            return Err(io::Error::new(ErrorKind::AlreadyExists, message));
        }
        let made = there.map(|there| there.made).or(made).unwrap_or_else(|| {
            self.made += 1;
            self.made
        });
        let held = Held { internal: new.internal, outermost: new.outermost, made };
        self.put(plan, before, key(new), Some(held));
        Ok(())
    }

    fn remove(&mut self, plan: &mut Plan, before: &mut Before, old: &Nat1Rule) -> io::Result<u64> {
        old.check()?;
        match self.mappings.get(&key(old)) {
            Some(held) if held.internal == old.internal => {
                let made = held.made;
                self.put(plan, before, key(old), None);
                Ok(made)
            }
            _ => Err(io::Error::new(ErrorKind::NotFound, format!("{old:?} is not mapped"))),
        }
    }

    fn put(&mut self, plan: &mut Plan, before: &mut Before, key: Key, new: Option<Held>) {
        let old = self.mappings.get(&key).copied();
        if old == new {
            return;
        }
        for held in old.iter().chain(&new) {
            for slot in self.slots(key, held) {
                before.slots.entry(slot).or_insert_with(|| self.entry(slot));
            }
        }
        before.mappings.entry(key).or_insert(old);
        plan.undo.push((key, old));
        self.set(key, new);
    }

    fn set(&mut self, key: Key, new: Option<Held>) {
        if let Some(old) = self.mappings.remove(&key) {
            for slot in self.slots(key, &old) {
                self.shares.remove(&(slot, old.made, key));
            }
            if let btree_map::Entry::Occupied(mut host) = self.hosts.entry(*old.internal.ip()) {
                *host.get_mut() -= 1;
                if *host.get() == 0 {
                    host.remove();
                }
            }
        }
        if let Some(new) = new {
            for slot in self.slots(key, &new) {
                self.shares.insert((slot, new.made, key));
            }
            *self.hosts.entry(*new.internal.ip()).or_default() += 1;
            self.mappings.insert(key, new);
        }
    }

    /// What a mapping has a part in.
    fn slots(&self, key: Key, held: &Held) -> Vec<Slot> {
        let (protocol, external_port, remote_peer) = key;
        let mut slots = vec![Slot::Port(key), Slot::Source(protocol, held.internal)];
        if self.masquerade {
            slots.push(Slot::Mapped(protocol, external_port));
        }
        if self.marks {
            slots.push(Slot::Marked(protocol, held.internal, remote_peer));
        }
        if let Some(outermost) = held.outermost.filter(|_| self.hairpin) {
            slots.push(Slot::Hairpin(protocol, outermost, remote_peer));
            slots.push(Slot::HairpinSource(protocol, held.internal));
            slots.push(Slot::Address(*outermost.ip()));
        }
        slots
    }

    /// The element that the kernel is to have now, if any.
    fn entry(&self, slot: Slot) -> Option<Entry> {
        let mut sharers = self.shares.range((slot, 0, FIRST_KEY)..=(slot, u64::MAX, LAST_KEY));
        let sharer = match slot {
            // The provider gives it to one at a time: an older one is about to go.
            Slot::Hairpin(..) => sharers.next_back(),
            _ => sharers.next(),
        };
        let winner = sharer.map(|&(_, _, key)| (key, self.mappings[&key]));
        if let (Slot::Address(addr), None) = (slot, winner) {
            return self.wan_addresses.contains(&addr).then(|| ruleset::hairpin_address(addr));
        }
        let ((_, external_port, _), held) = winner?;
        Some(match slot {
            Slot::Port((protocol, port, peer)) => ruleset::port(protocol, port, peer, held.internal),
            Slot::Hairpin(protocol, outermost, peer) => {
                ruleset::hairpin(protocol, outermost, peer, held.internal)
            }
            Slot::Source(protocol, internal) => ruleset::source(protocol, internal, external_port),
            Slot::HairpinSource(protocol, internal) => {
                ruleset::hairpin_source(protocol, internal, held.outermost.expect("or it has no part in it"))
            }
            Slot::Mapped(protocol, port) => ruleset::mapped(protocol, port),
            Slot::Address(addr) => ruleset::hairpin_address(addr),
            Slot::Marked(protocol, internal, peer) => ruleset::marked(protocol, internal, peer),
        })
    }

    /// Flows that the table would treat otherwise now than when they began, by a mapping that was `old` before.
    fn end_flows(&self, flows: &mut BTreeSet<Flows>, key: Key, old: Option<Held>) {
        let (protocol, external_port, remote_peer) = key;
        let new = self.mappings.get(&key).copied();
        let internal = |held: Option<Held>| held.map(|held| held.internal);
        let outermost = |held: Option<Held>| {
            held.filter(|_| self.hairpin).and_then(|held| Some((held.outermost?, held.internal)))
        };
        if internal(old) != internal(new) {
            if let Some(internal) = internal(old) {
                flows.insert(Flows::Mapped { protocol, external_port, internal, remote_peer });
            }
            // TCP needs no such thing: a refused connection leaves nothing that the next attempt would run into.
            if new.is_some() && protocol == UDP {
                flows.insert(Flows::Unanswered { protocol, external_port });
            }
        }
        if outermost(old) != outermost(new) {
            // To end a mapping's flows the kernel looks at all there are: those by the same port have just been ended, whatever the address.
            let ended =
                |outermost: SocketAddrV4| internal(old) != internal(new) && outermost.port() == external_port;
            if let Some((outermost, internal)) = outermost(old).filter(|(outermost, _)| !ended(*outermost)) {
                flows.insert(Flows::Hairpin { protocol, outermost, internal, remote_peer });
            }
            if let Some((outermost, _)) = outermost(new).filter(|_| protocol == UDP) {
                flows.insert(Flows::Missed { protocol, outermost });
            }
        }
    }
}

impl Plan {
    /// The mappings that these changes have ended, or changed.
    pub(super) fn gone(&self) -> Vec<Nat1Rule> {
        self.undo.iter().filter_map(|(key, held)| Some(rule(*key, held.as_ref()?))).collect()
    }

    /// Whether the kernel's maps and sets stay as they are.
    pub(super) fn changes_nothing(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// All that goes before all that comes: an element can be replaced only by deleting it first.
    pub(super) fn write(&self, batch: &mut Batch, table: &str) {
        for (kind, entries) in [(Kind::DelElement, &self.removed), (Kind::NewElement, &self.added)] {
            for set in SETS {
                let wanted = entries.iter().filter(|entry| entry.set == set);
                let elements: Vec<_> = wanted.map(|entry| entry.element.clone()).collect();
                batch.elements(kind, table, set, &elements);
            }
        }
    }
}

impl Nat1Rule {
    fn check(&self) -> io::Result<()> {
        let host = self.internal.ip();
        let bad = !matches!(self.protocol, TCP | UDP)
            || self.external_port == 0
            || self.internal.port() == 0
            || self.outermost.is_some_and(|outermost| outermost.port() == 0)
            || host.is_unspecified()
            || host.is_loopback()
            || host.is_multicast()
            || host.is_broadcast();
        if bad {
            return Err(invalid(format!("{self:?} is no unicast TCP or UDP mapping")));
        }
        Ok(())
    }
}

fn key(rule: &Nat1Rule) -> Key {
    (rule.protocol, rule.external_port, rule.remote_peer)
}

fn rule((protocol, external_port, remote_peer): Key, held: &Held) -> Nat1Rule {
    let Held { internal, outermost, .. } = *held;
    Nat1Rule { protocol, external_port, internal, remote_peer, outermost }
}

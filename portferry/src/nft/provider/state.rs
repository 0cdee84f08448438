//! What the table holds, and what a change makes of it. No kernel here.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use super::super::batch::{Batch, Element, Kind};
use super::ruleset::{self, Family, Level, Set, Shape};
use super::{Binding, Change, Filter};

/// What a packet from outside is looked up by. A mapping has one, a PORT_SET one for each port.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Slot {
    pub(super) external: IpAddr,
    /// 0: all.
    pub(super) protocol: u8,
    /// 0: all.
    pub(super) port: u16,
    pub(super) peer: Option<SocketAddr>,
}

/// What is mapped: protocol, internal address and port (0: all), and the remote endpoint of a PEER mapping. It has one
/// mapping (RFC 6887 §11.3).
type Inside = (u8, SocketAddr, Option<SocketAddr>);

/// Which external address a host's flows have.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Paired {
    external: Ipv4Addr,
    /// Mappings of the host by external address. More than one address only while a subscriber moves.
    mappings: BTreeMap<Ipv4Addr, usize>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    slots: BTreeMap<Slot, Arc<Binding>>,
    insides: BTreeMap<Inside, Slot>,
    pairs: BTreeMap<Ipv4Addr, Paired>,
    /// How many external addresses of IPv4 have a protocol's port mapped.
    taken: BTreeMap<(u8, u16), usize>,
    /// Filters' shapes that have a set.
    shapes: BTreeSet<Shape>,
}

/// What some changes have touched, as it was.
#[derive(Debug, Default)]
pub(super) struct Step {
    slots: BTreeMap<Slot, Option<Arc<Binding>>>,
    insides: BTreeMap<Inside, Option<Slot>>,
    pairs: BTreeMap<Ipv4Addr, Option<Paired>>,
    taken: BTreeMap<(u8, u16), Option<usize>>,
    shapes: Vec<Shape>,
}

/// What the kernel's table is to be told.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Delta {
    pub(super) shapes: Vec<Shape>,
    pub(super) removed: Vec<(Set, Vec<u8>)>,
    pub(super) elements: Vec<(Set, Cell)>,
}

/// Key and value of an element; a set's value is empty.
type Cell = (Vec<u8>, Vec<u8>);

impl State {
    pub(super) fn change(&mut self, step: &mut Step, change: &Change) -> io::Result<()> {
        match change {
            Change::Open(new) => self.open(step, new),
            Change::Replace { old, new } => {
                self.close(step, old)?;
                self.open(step, new)
            }
            Change::Close(old) => self.close(step, old),
        }
    }

    fn open(&mut self, step: &mut Step, new: &Binding) -> io::Result<()> {
        let held = |slot: Slot| self.slots.get(&slot).map(|held| **held == *new);
        if new.slots().all(|(slot, _)| held(slot) == Some(true)) {
            return Ok(());
        }
        if new.slots().any(|(slot, inside)| held(slot).is_some() || self.insides.contains_key(&inside)) {
            return Err(io::Error::new(ErrorKind::AlreadyExists, format!("another mapping has it: {new:?}")));
        }
        let binding = Arc::new(new.clone());
        for (slot, inside) in new.slots() {
            step.slots.entry(slot).or_insert(None);
            self.slots.insert(slot, binding.clone());
            step.insides.entry(inside).or_insert(None);
            self.insides.insert(inside, slot);
            if let Some(taken) = slot.takes() {
                step.taken.entry(taken).or_insert_with(|| self.taken.get(&taken).copied());
                *self.taken.entry(taken).or_default() += 1;
            }
        }
        if let Some((host, external)) = new.pair() {
            step.pairs.entry(host).or_insert_with(|| self.pairs.get(&host).cloned());
            let paired =
                self.pairs.entry(host).or_insert_with(|| Paired { external, mappings: BTreeMap::new() });
            *paired.mappings.entry(external).or_default() += 1;
        }
        Ok(())
    }

    fn close(&mut self, step: &mut Step, old: &Binding) -> io::Result<()> {
        let same = |held: &Binding| Binding { filters: Vec::new(), ..held.clone() } == unfiltered(old);
        if old.ports == 0
            || !old.slots().all(|(slot, _)| self.slots.get(&slot).is_some_and(|held| same(held)))
        {
            return Err(io::Error::new(ErrorKind::NotFound, format!("not mapped: {old:?}")));
        }
        for (slot, inside) in old.slots() {
            let held = self.slots.remove(&slot);
            step.slots.entry(slot).or_insert(held);
            let held = self.insides.remove(&inside);
            step.insides.entry(inside).or_insert(held);
            if let Some(taken) = slot.takes() {
                step.taken.entry(taken).or_insert_with(|| self.taken.get(&taken).copied());
                let count = self.taken.get_mut(&taken).expect("each port is counted");
                *count -= 1;
                if *count == 0 {
                    self.taken.remove(&taken);
                }
            }
        }
        if let Some((host, external)) = old.pair() {
            step.pairs.entry(host).or_insert_with(|| self.pairs.get(&host).cloned());
            let paired = self.pairs.get_mut(&host).expect("a mapped host is paired");
            let count = paired.mappings.get_mut(&external).expect("each mapping is counted");
            *count -= 1;
            if *count == 0 {
                paired.mappings.remove(&external);
            }
            match paired.mappings.keys().next() {
                None => drop(self.pairs.remove(&host)),
                Some(_) if paired.mappings.contains_key(&paired.external) => {}
                Some(other) => paired.external = *other,
            }
        }
        Ok(())
    }

    /// As it was before `step`.
    pub(super) fn undo(&mut self, step: Step) {
        fn restore<K: Ord, V>(map: &mut BTreeMap<K, V>, old: BTreeMap<K, Option<V>>) {
            for (key, value) in old {
                match value {
                    Some(value) => map.insert(key, value),
                    None => map.remove(&key),
                };
            }
        }
        restore(&mut self.slots, step.slots);
        restore(&mut self.insides, step.insides);
        restore(&mut self.pairs, step.pairs);
        restore(&mut self.taken, step.taken);
        for shape in step.shapes {
            self.shapes.remove(&shape);
        }
    }

    /// The difference between the state before `step` and now.
    pub(super) fn delta(&mut self, step: &mut Step) -> Delta {
        // Each element's value, if it was there before, and if it is now.
        let mut cells = BTreeMap::<_, [Option<Vec<u8>>; 2]>::new();
        let mut note = |when: usize, set: Set, (key, value): Cell| {
            cells.entry((set, key)).or_default()[when] = Some(value);
        };
        for (slot, old) in &step.slots {
            for (when, binding) in [old.as_ref(), self.slots.get(slot)].into_iter().enumerate() {
                if let Some(binding) = binding {
                    slot_cells(slot, binding, &mut |set, cell| note(when, set, cell));
                }
            }
        }
        for (taken, old) in &step.taken {
            for (when, count) in [old.as_ref(), self.taken.get(taken)].into_iter().enumerate() {
                if count.is_some() {
                    note(when, Set::Taken, taken_cell(*taken));
                }
            }
        }
        for (host, old) in &step.pairs {
            for (when, paired) in [old.as_ref(), self.pairs.get(host)].into_iter().enumerate() {
                if let Some(paired) = paired {
                    note(when, Set::Pairs, pair_cell(*host, paired));
                }
            }
        }
        let mut delta = Delta::default();
        for ((set, key), [old, new]) in cells {
            if old == new {
                continue;
            }
            if old.is_some() {
                delta.removed.push((set, key.clone()));
            }
            if let Some(value) = new {
                if let Set::Allowed(shape) = set
                    && self.shapes.insert(shape)
                {
                    step.shapes.push(shape);
                    delta.shapes.push(shape);
                }
                delta.elements.push((set, (key, value)));
            }
        }
        delta
    }

    /// All that an empty table is to be told. Shapes that nothing uses any more are forgotten.
    pub(super) fn everything(&mut self) -> Delta {
        let mut delta = Delta::default();
        let mut note = |set: Set, cell: Cell| delta.elements.push((set, cell));
        for (slot, binding) in &self.slots {
            slot_cells(slot, binding, &mut note);
        }
        for taken in self.taken.keys() {
            note(Set::Taken, taken_cell(*taken));
        }
        for (host, paired) in &self.pairs {
            note(Set::Pairs, pair_cell(*host, paired));
        }
        delta.elements.sort_unstable();
        delta.elements.dedup();
        for (set, _) in &delta.elements {
            if let Set::Allowed(shape) = set
                && delta.shapes.last() != Some(shape)
            {
                delta.shapes.push(*shape);
            }
        }
        self.shapes = delta.shapes.iter().copied().collect();
        delta
    }

    pub(super) fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.slots
            .iter()
            .filter(|(slot, binding)| slot.port == binding.external.port())
            .map(|(_, binding)| &**binding)
    }

    pub(super) fn slot(&self, slot: &Slot) -> Option<&Binding> {
        self.slots.get(slot).map(|binding| &**binding)
    }

    /// Whether flows of this slot's port may be those of another mapping: one of all ports, or a PEER's beside a MAP's.
    pub(super) fn has_others(&self, slot: &Slot) -> bool {
        let Slot { external, protocol, port, .. } = *slot;
        let all = |protocol| Slot { external, protocol, port: 0, peer: None };
        let first = Slot { peer: None, ..*slot };
        let mut of_port =
            self.slots.range(first..).map(|(slot, _)| slot).take_while(|other| {
                (other.external, other.protocol, other.port) == (external, protocol, port)
            });
        self.slots.contains_key(&all(protocol))
            || self.slots.contains_key(&all(0))
            || of_port.any(|other| other != slot)
    }

    /// Whom a packet from `remote` reaches that comes for an external endpoint.
    pub(super) fn destination(
        &self,
        protocol: u8,
        external: SocketAddr,
        remote: SocketAddr,
    ) -> Option<SocketAddr> {
        let by =
            |protocol, port, peer| self.slots.get(&Slot { external: external.ip(), protocol, port, peer });
        let binding = by(protocol, external.port(), Some(remote))
            .or_else(|| by(protocol, external.port(), None))
            .or_else(|| by(protocol, 0, None))
            .or_else(|| by(0, 0, None))?;
        let internal = binding.internal_of(external.port());
        self.admits(protocol, internal, remote).then_some(internal)
    }

    /// Whether the filters of the mapping that an internal endpoint has let `remote` in. An endpoint that has a mapping
    /// of its own has that one's, whatever led to it.
    fn admits(&self, protocol: u8, internal: SocketAddr, remote: SocketAddr) -> bool {
        let all = SocketAddr::new(internal.ip(), 0);
        let by = |inside: Inside| self.insides.get(&inside).and_then(|slot| self.slots.get(slot));
        by((protocol, internal, Some(remote))).is_some()
            || by((protocol, internal, None))
                .or_else(|| by((protocol, all, None)))
                .or_else(|| by((0, all, None)))
                .is_some_and(|binding| binding.lets_in(remote))
    }

    /// Whether the external endpoint is mapped, for answers of `remote` or for all, and not to `internal`.
    pub(super) fn is_another_ones(
        &self,
        protocol: u8,
        external: SocketAddr,
        remote: SocketAddr,
        internal: SocketAddr,
    ) -> bool {
        let owner = |peer| {
            let slot = Slot { external: external.ip(), protocol, port: external.port(), peer };
            self.slots.get(&slot).map(|binding| binding.internal_of(external.port()))
        };
        external.port() != 0
            && owner(Some(remote)).or_else(|| owner(None)).is_some_and(|owner| owner != internal)
    }
}

impl Slot {
    /// Protocol and port that dynamic translation keeps off.
    fn takes(&self) -> Option<(u8, u16)> {
        (self.external.is_ipv4() && self.port != 0 && self.peer.is_none())
            .then_some((self.protocol, self.port))
    }
}

impl Step {
    /// The slots that were touched, and what they were.
    pub(super) fn slots(&self) -> impl Iterator<Item = (&Slot, Option<&Binding>)> {
        self.slots.iter().map(|(slot, was)| (slot, was.as_deref()))
    }
}

impl Delta {
    pub(super) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.elements.is_empty()
    }

    /// All that goes before all that comes: an element can be replaced only by deleting it first.
    pub(super) fn write(&self, batch: &mut Batch, table: &str) {
        self.write_shapes(batch, table);
        for of_one_set in self.removed.chunk_by(|a, b| a.0 == b.0) {
            let elements: Vec<_> =
                of_one_set.iter().map(|(_, key)| Element { key: key.clone(), value: Vec::new() }).collect();
            batch.elements(Kind::DelElement, table, &of_one_set[0].0.name(), &elements);
        }
        write(batch, table, &self.elements);
    }

    pub(super) fn write_shapes(&self, batch: &mut Batch, table: &str) {
        for (number, shape) in (1..).zip(&self.shapes) {
            ruleset::shape(batch, table, number, *shape);
        }
    }
}

/// Adds elements, ordered by set.
pub(super) fn write(batch: &mut Batch, table: &str, elements: &[(Set, Cell)]) {
    for of_one_set in elements.chunk_by(|a, b| a.0 == b.0) {
        let elements: Vec<_> = of_one_set
            .iter()
            .map(|(_, (key, value))| Element { key: key.clone(), value: value.clone() })
            .collect();
        batch.elements(Kind::NewElement, table, &of_one_set[0].0.name(), &elements);
    }
}

fn slot_cells(slot: &Slot, binding: &Binding, note: &mut impl FnMut(Set, Cell)) {
    let family = Family::of(slot.external);
    let v4 = family == Family::V4;
    let level = Level::of(slot.protocol, slot.port);
    let internal = binding.internal_of(slot.port);
    let external = SocketAddr::new(slot.external, slot.port);
    let (outer, inner) = (key(slot.protocol, level, external), key(slot.protocol, level, internal));
    let with = |key: &[u8], more: &[u8]| [key, more].concat();
    let nothing = Vec::new;
    if let Some(peer) = slot.peer {
        let peer = endpoint(peer);
        if v4 {
            note(Set::Peers, (with(&outer, &peer), endpoint(internal)));
            note(Set::PeerSources, (with(&inner, &peer), endpoint(external)));
        }
        note(Set::MappedPeers(family), (with(&inner, &peer), nothing()));
        return;
    }
    if v4 {
        let host = key(0, Level::Host, internal);
        match level {
            Level::Port => {
                note(Set::Ports, (outer.clone(), endpoint(internal)));
                note(Set::Sources, (inner.clone(), endpoint(external)));
                note(Set::Owners, (with(&outer, &host), nothing()));
                note(Set::Reserved, (outer, nothing()));
            }
            Level::Protocol => note(Set::Protocols, (outer, host)),
            Level::Host => note(Set::Hosts, (outer, host)),
        }
    }
    note(Set::Mapped(family, level), (inner.clone(), nothing()));
    if binding.filters.is_empty() {
        return;
    }
    note(Set::Filtered(family, level), (inner.clone(), nothing()));
    for (len, mut allowed, port) in binding.filters.iter().filter_map(|filter| filter.of(family)) {
        if port != 0 {
            push_port(&mut allowed, port);
        }
        let shape = Shape { family, level, len, with_port: port != 0 };
        note(Set::Allowed(shape), (with(&inner, &allowed), nothing()));
    }
}

fn taken_cell((protocol, port): (u8, u16)) -> Cell {
    let mut key = vec![protocol, 0, 0, 0];
    push_port(&mut key, port);
    (key, Vec::new())
}

fn pair_cell(host: Ipv4Addr, paired: &Paired) -> Cell {
    (host.octets().to_vec(), paired.external.octets().to_vec())
}

fn unfiltered(binding: &Binding) -> Binding {
    Binding { filters: Vec::new(), ..binding.clone() }
}

impl Binding {
    /// Each slot with what is behind it.
    fn slots(&self) -> impl Iterator<Item = (Slot, Inside)> {
        (0..self.ports).map(|n| {
            // What would pass the last port has been refused; a `Close` of it finds nothing.
            let port = |first: u16| first.saturating_add(n);
            let slot = Slot {
                external: self.external.ip(),
                protocol: self.protocol,
                port: port(self.external.port()),
                peer: self.peer,
            };
            let internal = SocketAddr::new(self.internal.ip(), port(self.internal.port()));
            (slot, (self.protocol, internal, self.peer))
        })
    }

    /// The internal endpoint behind one of its external ports.
    fn internal_of(&self, external_port: u16) -> SocketAddr {
        let port = match self.external.port() {
            0 => external_port,
            first => self.internal.port().wrapping_add(external_port.wrapping_sub(first)),
        };
        SocketAddr::new(self.internal.ip(), port)
    }

    fn pair(&self) -> Option<(Ipv4Addr, Ipv4Addr)> {
        match (self.internal.ip(), self.external.ip()) {
            (IpAddr::V4(internal), IpAddr::V4(external)) => Some((internal, external)),
            _ => None,
        }
    }

    /// Whether another one under the same external port leads to somebody else.
    pub(super) fn leads_elsewhere(&self, other: &Binding) -> bool {
        let port = |of: &Binding| of.internal.port().wrapping_sub(of.external.port());
        (self.internal.ip(), port(self)) != (other.internal.ip(), port(other))
    }

    /// Whether it certainly lets in all that another one does.
    pub(super) fn lets_in_whom(&self, other: &Binding) -> bool {
        self.filters.is_empty()
            || (!other.filters.is_empty() && other.filters.iter().all(|filter| self.filters.contains(filter)))
    }

    /// Whether its filters let `remote` in.
    fn lets_in(&self, remote: SocketAddr) -> bool {
        let addr = match remote.ip() {
            IpAddr::V4(addr) => addr.to_ipv6_mapped(),
            IpAddr::V6(addr) => addr,
        };
        self.filters.is_empty()
            || self.filters.iter().any(|filter| {
                (u128::from(addr) ^ filter.prefix) & filter.mask() == 0
                    && (filter.port == 0 || filter.port == remote.port())
            })
    }
}

impl Filter {
    fn mask(&self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.len)).unwrap_or(0)
    }

    /// Prefix length, network and port for packets of a family; `None`: lets none of them in.
    fn of(&self, family: Family) -> Option<(u8, Vec<u8>, u16)> {
        const V4_MAPPED: u128 = 0xffff << 32;
        let network = self.prefix & self.mask();
        match family {
            Family::V6 => Some((self.len, network.to_be_bytes().to_vec(), self.port)),
            Family::V4 if self.len >= 96 => {
                let v4 = network & u128::from(u32::MAX);
                (network - v4 == V4_MAPPED).then(|| {
                    let v4 = u32::try_from(v4).expect("masked to 32 bits");
                    (self.len - 96, v4.to_be_bytes().to_vec(), self.port)
                })
            }
            Family::V4 => (V4_MAPPED & self.mask() == network).then(|| (0, vec![0; 4], self.port)),
        }
    }
}

fn push_addr(octets: &mut Vec<u8>, addr: IpAddr) {
    match addr {
        IpAddr::V4(addr) => octets.extend(addr.octets()),
        IpAddr::V6(addr) => octets.extend(addr.octets()),
    }
}

fn push_port(octets: &mut Vec<u8>, port: u16) {
    super::super::rule::push_port(octets, port);
}

/// An element's key for a mapping: protocol, address and port, as far as it names them.
fn key(protocol: u8, level: Level, endpoint: SocketAddr) -> Vec<u8> {
    let mut octets = Vec::with_capacity(44);
    if level != Level::Host {
        octets.extend([protocol, 0, 0, 0]);
    }
    push_addr(&mut octets, endpoint.ip());
    if level == Level::Port {
        push_port(&mut octets, endpoint.port());
    }
    octets
}

fn endpoint(endpoint: SocketAddr) -> Vec<u8> {
    let mut octets = Vec::with_capacity(20);
    push_addr(&mut octets, endpoint.ip());
    push_port(&mut octets, endpoint.port());
    octets
}

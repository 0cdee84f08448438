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

/// A socket inside: protocol, address and port, and the remote endpoint it is mapped for.
type Source = (u8, SocketAddr, Option<SocketAddr>);

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
    /// Mappings of each source, oldest first; its flows leave by the first.
    sources: BTreeMap<Source, Vec<Slot>>,
    pairs: BTreeMap<Ipv4Addr, Paired>,
    /// Filters' shapes that have a set.
    shapes: BTreeSet<Shape>,
}

/// What some changes have touched, as it was.
#[derive(Debug, Default)]
pub(super) struct Step {
    slots: BTreeMap<Slot, Option<Arc<Binding>>>,
    sources: BTreeMap<Source, Option<Vec<Slot>>>,
    pairs: BTreeMap<Ipv4Addr, Option<Paired>>,
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
        if new.slots().any(|(slot, _)| held(slot).is_some()) {
            return Err(io::Error::new(ErrorKind::AlreadyExists, format!("another mapping has it: {new:?}")));
        }
        let binding = Arc::new(new.clone());
        for (slot, internal) in new.slots() {
            step.slots.entry(slot).or_insert(None);
            self.slots.insert(slot, binding.clone());
            if let Some(source) = source(new, internal) {
                self.holders(step, source).push(slot);
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
        for (slot, internal) in old.slots() {
            let held = self.slots.remove(&slot);
            step.slots.entry(slot).or_insert(held);
            if let Some(source) = source(old, internal) {
                self.holders(step, source).retain(|holder| *holder != slot);
                if self.sources[&source].is_empty() {
                    self.sources.remove(&source);
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

    fn holders<'a>(&'a mut self, step: &mut Step, source: Source) -> &'a mut Vec<Slot> {
        step.sources.entry(source).or_insert_with(|| self.sources.get(&source).cloned());
        self.sources.entry(source).or_default()
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
        restore(&mut self.sources, step.sources);
        restore(&mut self.pairs, step.pairs);
        for shape in step.shapes {
            self.shapes.remove(&shape);
        }
    }

    /// The difference between the state before `step` and now.
    pub(super) fn delta(&mut self, step: &mut Step) -> Delta {
        let mut cells: BTreeMap<(Set, Vec<u8>), [Option<Vec<u8>>; 2]> = BTreeMap::new();
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
        for (source, old) in &step.sources {
            for (when, holders) in [old.as_ref(), self.sources.get(source)].into_iter().enumerate() {
                if let Some(first) = holders.and_then(|holders| holders.first()) {
                    source_cells(source, first, &mut |set, cell| note(when, set, cell));
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

    /// All that an empty table is to be told.
    pub(super) fn everything(&self) -> Delta {
        let mut delta = Delta::default();
        let mut note = |set: Set, cell: Cell| delta.elements.push((set, cell));
        for (slot, binding) in &self.slots {
            slot_cells(slot, binding, &mut note);
        }
        for (source, holders) in &self.sources {
            source_cells(source, &holders[0], &mut note);
        }
        for (host, paired) in &self.pairs {
            note(Set::Pairs, pair_cell(*host, paired));
        }
        delta.elements.sort_unstable();
        delta.elements.dedup();
        delta.shapes = self.shapes.iter().copied().collect();
        delta
    }

    pub(super) fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.slots
            .iter()
            .filter(|(slot, binding)| slot.port == binding.external.port())
            .map(|(_, binding)| &**binding)
    }

    /// Whom a packet from `remote` reaches that comes for an external endpoint.
    pub(super) fn destination(
        &self,
        protocol: u8,
        external: SocketAddr,
        remote: SocketAddr,
    ) -> Option<SocketAddr> {
        let slot = |protocol, port, peer| Slot { external: external.ip(), protocol, port, peer };
        let by = |slot: Slot| self.slots.get(&slot);
        if let Some(binding) = by(slot(protocol, external.port(), Some(remote))) {
            return Some(binding.internal);
        }
        let binding = by(slot(protocol, external.port(), None))
            .or_else(|| by(slot(protocol, 0, None)))
            .or_else(|| by(slot(0, 0, None)))?;
        binding.lets_in(remote).then(|| binding.internal_of(external.port()))
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

impl Step {
    /// The slots that were touched.
    pub(super) fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.keys()
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
    let internal = binding.internal_of(slot.port);
    let level = Level::of(slot.protocol, slot.port);
    let mut key = Vec::with_capacity(44);
    if level != Level::Host {
        key.extend([slot.protocol, 0, 0, 0]);
    }
    push_addr(&mut key, slot.external);
    if level == Level::Port {
        push_port(&mut key, slot.port);
    }
    if let Some(peer) = slot.peer {
        push_endpoint(&mut key, peer);
        if family == Family::V4 {
            note(Set::Peers, (key.clone(), endpoint(internal)));
        }
        note(Set::MappedPeers(family), (key, Vec::new()));
        return;
    }
    if family == Family::V4 {
        let mut host = Vec::with_capacity(4);
        push_addr(&mut host, internal.ip());
        match level {
            Level::Port => note(Set::Ports, (key.clone(), endpoint(internal))),
            Level::Protocol => note(Set::Protocols, (key.clone(), host)),
            Level::Host => note(Set::Hosts, (key.clone(), host)),
        }
    }
    note(Set::Mapped(family, level), (key.clone(), Vec::new()));
    if binding.filters.is_empty() {
        return;
    }
    note(Set::Filtered(family, level), (key.clone(), Vec::new()));
    for (len, network, port) in binding.filters.iter().filter_map(|filter| filter.of(family)) {
        let mut key = key.clone();
        key.extend(network);
        if port != 0 {
            push_port(&mut key, port);
        }
        note(Set::Allowed(Shape { family, level, len, with_port: port != 0 }), (key, Vec::new()));
    }
}

fn source_cells((protocol, internal, peer): &Source, slot: &Slot, note: &mut impl FnMut(Set, Cell)) {
    let mut key = Vec::with_capacity(20);
    key.extend([*protocol, 0, 0, 0]);
    push_endpoint(&mut key, *internal);
    let external = endpoint(SocketAddr::new(slot.external, slot.port));
    match peer {
        Some(peer) => {
            push_endpoint(&mut key, *peer);
            note(Set::PeerSources, (key, external));
        }
        None => {
            note(Set::Sources, (key.clone(), external));
            note(Set::MappedSources, (key, Vec::new()));
        }
    }
}

fn pair_cell(host: Ipv4Addr, paired: &Paired) -> Cell {
    (host.octets().to_vec(), paired.external.octets().to_vec())
}

/// IPv4 only: nothing else is translated.
fn source(binding: &Binding, internal: SocketAddr) -> Option<Source> {
    (internal.is_ipv4() && internal.port() != 0).then_some((binding.protocol, internal, binding.peer))
}

fn unfiltered(binding: &Binding) -> Binding {
    Binding { filters: Vec::new(), ..binding.clone() }
}

impl Binding {
    /// Each slot with the internal endpoint behind it.
    fn slots(&self) -> impl Iterator<Item = (Slot, SocketAddr)> {
        (0..self.ports).map(|n| {
            // What would pass the last port has been refused; a `Close` of it finds nothing.
            let port = |first: u16| first.saturating_add(n);
            let slot = Slot {
                external: self.external.ip(),
                protocol: self.protocol,
                port: port(self.external.port()),
                peer: self.peer,
            };
            (slot, SocketAddr::new(self.internal.ip(), port(self.internal.port())))
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
    super::rule::push_port(octets, port);
}

fn push_endpoint(octets: &mut Vec<u8>, endpoint: SocketAddr) {
    push_addr(octets, endpoint.ip());
    push_port(octets, endpoint.port());
}

fn endpoint(endpoint: SocketAddr) -> Vec<u8> {
    let mut octets = Vec::with_capacity(20);
    push_endpoint(&mut octets, endpoint);
    octets
}

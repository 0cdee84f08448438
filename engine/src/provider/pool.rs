//! External addresses and ports: who has which, which are free, held back or kept for somebody. Finding one, taking it and
//! giving it back each cost the logarithm of what there is.
//!
//! One internal endpoint has one external endpoint, however many mappings it has (endpoint-independent mapping, RFC 4787): MAP
//! and PEER of the same internal port share it, and the last of them gives it back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use wire::pcp::{CLIENT_PORT, Nonce, Protocol, SERVER_PORT};

use super::config::ServerConfig;
use super::interface::{Inside, Subscriber};
use super::reason::Reason;
use super::runs::Runs;
use crate::time::{Duration, Instant, Timers};

/// Where the search for a port begins that nobody has suggested.
const FIRST_PICK: u16 = 40_000;

/// How many runs of free ports are looked at for a set of ports, where rules allow some ports only.
const MAX_LOOKS: usize = 64;

/// An internal endpoint; for a set of ports, its first one. Port 0: all ports.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Endpoint {
    pub(super) inside: Inside,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
}

/// Who wants an external endpoint, and which.
#[derive(Clone, Debug)]
pub(super) struct Want {
    pub(super) endpoint: Endpoint,
    pub(super) subscriber: Subscriber,
    pub(super) nonce: Option<Nonce>,
    /// `None` and 0: no preference.
    pub(super) suggested: (Option<Ipv4Addr>, u16),
    /// The suggestion or nothing.
    pub(super) strict: bool,
    /// So many in a row, or fewer.
    pub(super) ports: u16,
    /// The parity that the first of them must have.
    pub(super) parity: Option<u16>,
    /// A flow of the same internal endpoint has the suggested place: what is held for that endpoint is its own, by whatever nonce.
    pub(super) has_flow: bool,
    /// The same port of TCP and UDP shall be kept for the same host (N-6).
    pub(super) companion: bool,
    /// The ports that the rules allow.
    pub(super) allowed: Runs,
}

/// What an internal endpoint has outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Use {
    pub(super) external: SocketAddrV4,
    pub(super) ports: u16,
    pub(super) subscriber: Subscriber,
    /// Mappings that share it.
    users: usize,
    companion: bool,
}

/// Ports in a row that go to nobody but their last owner.
#[derive(Clone, Copy, Debug)]
struct Held {
    /// `None`: something else on this machine has them.
    owner: Option<Owner>,
    ports: u16,
    until: Instant,
}

/// Who may have held ports again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    pub(super) endpoint: Endpoint,
    pub(super) nonce: Option<Nonce>,
    pub(super) subscriber: Subscriber,
}

impl Held {
    fn is_of(&self, want: &Want) -> bool {
        let same = |nonce: Option<Nonce>| nonce == want.nonce || want.has_flow;
        self.owner.is_some_and(|owner| owner.endpoint == want.endpoint && same(owner.nonce))
    }

    fn is_of_host(&self, inside: Inside) -> bool {
        self.owner.is_some_and(|owner| owner.endpoint.inside == inside)
    }

    fn subscriber(&self) -> Option<Subscriber> {
        self.owner.map(|owner| owner.subscriber)
    }
}

/// What counts in each subscriber's quota beside its mappings, of which each counts as one: the other ports of sets, and what
/// is held. So nobody has more by giving back, nor by leaving one mapping of a set. Who has none of these is not in it.
#[derive(Debug, Default)]
struct Charges(BTreeMap<Subscriber, u32>);

impl Charges {
    fn add(&mut self, subscriber: Option<Subscriber>, ports: u16) {
        if let Some(subscriber) = subscriber.filter(|_| ports > 0) {
            *self.0.entry(subscriber).or_default() += u32::from(ports);
        }
    }

    fn take(&mut self, subscriber: Option<Subscriber>, ports: u16) {
        if let Some(subscriber) = subscriber
            && let Some(charged) = self.0.get_mut(&subscriber)
        {
            *charged -= u32::from(ports);
            if *charged == 0 {
                self.0.remove(&subscriber);
            }
        }
    }
}

/// What becomes of ports that nobody uses any more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Freed {
    /// Anybody may have them.
    Free,
    /// For so long, who had them with this nonce may have them again, and nobody else.
    Held(Option<Nonce>, Duration),
    /// For so long nobody may have them: something else on this machine does.
    Taken(Duration),
}

/// One protocol of one external address.
#[derive(Debug, Default)]
struct Space {
    /// All that may be given out.
    base: Runs,
    free: Runs,
    used: BTreeMap<u16, (Endpoint, u16)>,
    held: BTreeMap<u16, Held>,
    /// Kept for the host that has the same port of the other protocol (N-6).
    reserved: BTreeMap<u16, (Inside, Subscriber)>,
    /// How many of these each subscriber has.
    tenants: BTreeMap<Subscriber, usize>,
}

#[derive(Debug, Default)]
struct Address {
    spaces: BTreeMap<Protocol, Space>,
    /// Free in TCP and in UDP.
    both: Runs,
    /// Where the search for a port goes on that nobody has suggested.
    next_pick: Option<u16>,
    /// Subscribers that have this address.
    subscribers: usize,
    /// Everything of a protocol that is not mapped otherwise.
    wildcards: BTreeMap<Protocol, (Endpoint, Subscriber)>,
}

#[derive(Debug, Default)]
pub(super) struct Pool {
    addresses: BTreeMap<Ipv4Addr, Address>,
    uses: BTreeMap<Endpoint, Use>,
    /// The address of each subscriber that has an external endpoint, and how many it has.
    paired: BTreeMap<Subscriber, (Ipv4Addr, usize)>,
    /// How many subscribers each address has.
    by_load: BTreeSet<(usize, Ipv4Addr)>,
    hold_ends: Timers<(Ipv4Addr, Protocol, u16)>,
    charges: Charges,
}

/// TCP for UDP and the other way round: the two share companions (N-6).
fn companion_of(protocol: Protocol) -> Option<Protocol> {
    match protocol {
        Protocol::TCP => Some(Protocol::UDP),
        Protocol::UDP => Some(Protocol::TCP),
        _ => None,
    }
}

impl Space {
    fn new(config: &ServerConfig, addr: Ipv4Addr, protocol: Protocol) -> Self {
        let mut base = Runs::default();
        let (first, last) = ((*config.ports.start()).max(1), *config.ports.end());
        if first <= last {
            base.add(first, last);
        }
        if protocol == Protocol::UDP {
            base.cut(CLIENT_PORT, SERVER_PORT);
        }
        for fixed in &config.statics {
            if fixed.external.ip() == addr && fixed.protocol == protocol && fixed.external.port() != 0 {
                base.cut(fixed.external.port(), fixed.external.port());
            }
        }
        Self { free: base.clone(), base, ..Self::default() }
    }

    fn has_tenant(&mut self, subscriber: impl Into<Option<Subscriber>>) {
        if let Some(subscriber) = subscriber.into() {
            *self.tenants.entry(subscriber).or_default() += 1;
        }
    }

    fn loses_tenant(&mut self, subscriber: impl Into<Option<Subscriber>>) {
        let Some(subscriber) = subscriber.into() else { return };
        if let Some(count) = self.tenants.get_mut(&subscriber) {
            *count -= 1;
            if *count == 0 {
                self.tenants.remove(&subscriber);
            }
        }
    }

    /// The hold that `port` is in: its first port.
    fn hold_of(&self, port: u16) -> Option<(u16, &Held)> {
        let (&first, held) = self.held.range(..=port).next_back()?;
        (port - first < held.ports).then_some((first, held))
    }

    fn user_of(&self, port: u16) -> Option<Endpoint> {
        let (&first, &(endpoint, ports)) = self.used.range(..=port).next_back()?;
        (port - first < ports).then_some(endpoint)
    }

    /// Ports that nobody uses, and that are neither held nor kept for another host than the owner's.
    fn free_for(&self, first: u16, last: u16, owner: Option<Owner>) -> Vec<(u16, u16)> {
        let mut left = Runs::default();
        self.base.within(first, last).for_each(|(first, last)| left.add(first, last));
        let used = self.used.range(..=last).rev().map(|(&port, &(_, ports))| (port, ports));
        let held = self.held.range(..=last).rev().map(|(&port, held)| (port, held.ports));
        let reaches = |&(port, ports): &(u16, u16)| port + (ports - 1) >= first;
        for (port, ports) in used.take_while(reaches).chain(held.take_while(reaches)) {
            left.cut(port, port + (ports - 1));
        }
        for (&port, (inside, _)) in self.reserved.range(first..=last) {
            if owner.is_none_or(|owner| owner.endpoint.inside != *inside) {
                left.cut(port, port);
            }
        }
        left.within(first, last).collect()
    }

    /// How many ports from `port` on `want` can have.
    fn in_a_row(&self, port: u16, want: &Want) -> u16 {
        let own = self.hold_of(port).filter(|&(first, held)| first == port && held.is_of(want));
        let kept = self.reserved.get(&port).is_some_and(|(inside, _)| *inside == want.endpoint.inside);
        match own {
            Some((_, held)) => held.ports,
            None if kept && self.base.contains(port, port) && self.user_of(port).is_none() => {
                u16::from(self.hold_of(port).is_none())
            }
            None => self.free.in_a_row(port),
        }
    }

    /// Whether the same host may have this one, too.
    fn can_accompany(&self, port: u16, want: &Want) -> bool {
        let of_host = |inside: Inside| inside == want.endpoint.inside;
        match (self.user_of(port), self.reserved.get(&port), self.hold_of(port)) {
            (Some(user), _, _) => of_host(user.inside),
            (None, Some((inside, _)), _) => of_host(*inside),
            (None, None, Some((_, held))) => held.is_of_host(want.endpoint.inside),
            (None, None, None) => true,
        }
    }
}

impl Address {
    fn new(config: &ServerConfig, addr: Ipv4Addr) -> Self {
        let mut new = Self::default();
        for protocol in [Protocol::TCP, Protocol::UDP].iter().chain(&config.protocols) {
            new.spaces.insert(*protocol, Space::new(config, addr, *protocol));
        }
        let tcp: Vec<(u16, u16)> = new.free_of(Protocol::TCP, 0, u16::MAX);
        for (first, last) in tcp {
            for (first, last) in new.free_of(Protocol::UDP, first, last) {
                new.both.add(first, last);
            }
        }
        new
    }

    fn free_of(&self, protocol: Protocol, first: u16, last: u16) -> Vec<(u16, u16)> {
        self.spaces.get(&protocol).map(|space| space.free.within(first, last).collect()).unwrap_or_default()
    }

    fn cut(&mut self, protocol: Protocol, first: u16, last: u16) {
        if let Some(space) = self.spaces.get_mut(&protocol) {
            space.free.cut(first, last);
        }
        if companion_of(protocol).is_some() {
            self.both.cut(first, last);
        }
    }

    /// Gives ports out again: those that may be, and are not kept for somebody.
    fn free(&mut self, protocol: Protocol, first: u16, last: u16) {
        let Some(space) = self.spaces.get_mut(&protocol) else { return };
        let mut back = Runs::default();
        space.base.within(first, last).for_each(|(first, last)| back.add(first, last));
        space.reserved.range(first..=last).for_each(|(&port, _)| back.cut(port, port));
        back.within(first, last).for_each(|(first, last)| space.free.add(first, last));
        let Some(other) = companion_of(protocol) else { return };
        for (first, last) in back.within(first, last) {
            for (first, last) in self.free_of(other, first, last) {
                self.both.add(first, last);
            }
        }
    }

    /// Whether somebody else has everything of this protocol.
    fn is_anothers(&self, protocol: Protocol, subscriber: Subscriber) -> bool {
        [protocol, Protocol::ALL]
            .iter()
            .any(|protocol| self.wildcards.get(protocol).is_some_and(|(_, other)| *other != subscriber))
    }

    /// Whether `want` can have everything of its protocol.
    fn can_be_all(&self, want: &Want) -> bool {
        let protocol = want.endpoint.protocol;
        let alone = |space: &Space| space.tenants.keys().all(|other| *other == want.subscriber);
        let others =
            |all: Protocol| self.wildcards.get(&all).is_some_and(|(_, other)| *other != want.subscriber);
        if self.wildcards.contains_key(&protocol) || others(Protocol::ALL) {
            false
        } else if protocol == Protocol::ALL {
            self.spaces.values().all(alone) && !self.wildcards.keys().any(|other| others(*other))
        } else {
            self.spaces.get(&protocol).is_none_or(alone)
        }
    }
}

impl Pool {
    pub(super) fn new(config: &ServerConfig) -> Self {
        let mut new = Self::default();
        for &addr in &config.pool {
            new.addresses.insert(addr, Address::new(config, addr));
            new.by_load.insert((0, addr));
        }
        new
    }

    /// The pool after other settings. Who has an address that still is one keeps everything there; the others are moved, with
    /// their ports where those are free. Told are the endpoints that are not where they were; without an external
    /// endpoint, if there is none for them.
    pub(super) fn rebuild(
        &mut self,
        now: Instant,
        config: &ServerConfig,
        allowed: impl Fn(Endpoint) -> Runs,
    ) -> Vec<(Endpoint, Option<SocketAddrV4>)> {
        let old = std::mem::replace(self, Self::new(config));
        let (stay, go): (Vec<_>, Vec<_>) =
            old.uses.into_iter().partition(|(_, of)| self.addresses.contains_key(of.external.ip()));
        for (endpoint, of) in stay {
            self.occupy(endpoint, of);
        }
        for (addr, address) in old.addresses {
            for (protocol, space) in address.spaces {
                for (first, held) in space.held {
                    self.hold_what_is_free(addr, protocol, first, held);
                }
            }
        }
        let mut moved = Vec::new();
        for (endpoint, of) in go {
            let want = Want {
                endpoint,
                subscriber: of.subscriber,
                nonce: None,
                suggested: (None, of.external.port()),
                strict: false,
                ports: of.ports,
                parity: None,
                companion: of.companion,
                has_flow: false,
                allowed: allowed(endpoint),
            };
            let found = self.find(now, &want).ok().filter(|&(_, ports)| ports == of.ports);
            if let Some((external, _)) = found {
                self.occupy(endpoint, Use { external, ..of });
            }
            moved.push((endpoint, found.map(|(external, _)| external)));
        }
        moved
    }

    /// What the internal endpoint has outside; also one port of a set.
    pub(super) fn of(&self, endpoint: Endpoint) -> Option<(Endpoint, Use)> {
        let (&first, &of) = self.uses.range(..=endpoint).next_back()?;
        let same = first.inside == endpoint.inside && first.protocol == endpoint.protocol;
        let within = |port: u16| port == endpoint.port || port != 0 && endpoint.port - port < of.ports;
        (same && within(first.port)).then_some((first, of))
    }

    /// How many internal ports from this one on have nothing outside yet; at least this one.
    pub(super) fn gap_behind(&self, endpoint: Endpoint) -> u16 {
        use std::ops::Bound;
        let behind = self.uses.range((Bound::Excluded(endpoint), Bound::Unbounded)).next();
        let next = behind.filter(|(next, _)| {
            next.inside == endpoint.inside && next.protocol == endpoint.protocol && endpoint.port != 0
        });
        next.map_or(u16::MAX, |(next, _)| next.port - endpoint.port)
    }

    /// Who has that external port.
    pub(super) fn user_of(&self, addr: Ipv4Addr, protocol: Protocol, port: u16) -> Option<Endpoint> {
        self.addresses.get(&addr)?.spaces.get(&protocol)?.user_of(port)
    }

    /// The address that a subscriber has or would have.
    pub(super) fn address_of(&self, subscriber: Subscriber) -> Option<Ipv4Addr> {
        let paired = self.paired.get(&subscriber).map(|&(addr, _)| addr);
        paired.or_else(|| self.by_load.first().map(|&(_, addr)| addr))
    }

    /// An external endpoint for `want`, which has none: address, first port (0 for all) and how many.
    pub(super) fn find(&mut self, now: Instant, want: &Want) -> Result<(SocketAddrV4, u16), Reason> {
        if self.addresses.is_empty() {
            return Err(Reason::NoAddress);
        }
        let (suggested, port) = want.suggested;
        let protocol = want.endpoint.protocol;
        let suggested = suggested.filter(|suggested| want.strict || self.addresses.contains_key(suggested));
        let candidates: Vec<Ipv4Addr> = match (self.paired.get(&want.subscriber), suggested) {
            (Some(&(paired, _)), _) => vec![paired],
            (None, Some(suggested)) if want.strict => vec![suggested],
            (None, suggested) => {
                let others = self.by_load.iter().map(|&(_, addr)| addr);
                suggested.into_iter().chain(others.filter(|&addr| Some(addr) != suggested)).collect()
            }
        };
        let mut found = None;
        for addr in
            candidates.into_iter().filter(|&addr| !want.strict || suggested.is_none_or(|it| it == addr))
        {
            let Some(address) = self.addresses.get(&addr) else { continue };
            if want.endpoint.port == 0 {
                // RFC 6887 §11.3: in its entirety, or not.
                let whole = address.can_be_all(want) && !(want.strict && port != 0);
                found = whole.then_some((addr, 0, 1));
            } else if !address.is_anothers(protocol, want.subscriber) {
                self.end_hold(now, addr, protocol, port);
                // Holds that are over may still be in the way.
                let mut picked = self.pick(addr, want);
                if picked.is_none() && !want.strict && self.end_holds(now, usize::MAX) > 0 {
                    picked = self.pick(addr, want);
                }
                found = picked.map(|(port, ports)| (addr, port, ports));
            }
            if found.is_some() {
                break;
            }
        }
        let none = match want.endpoint.port {
            _ if want.strict => Reason::CannotProvide,
            0 => Reason::UnsupportedProtocol,
            _ => Reason::NoPort,
        };
        found.map(|(addr, port, ports)| (SocketAddrV4::new(addr, port), ports)).ok_or(none)
    }

    /// What counts in a subscriber's quota, but for its mappings, of which each counts as one.
    pub(super) fn charged(&self, subscriber: Subscriber) -> u32 {
        self.charges.0.get(&subscriber).copied().unwrap_or(0)
    }

    /// How many of so many ports from `external` on are held for who wants them.
    pub(super) fn held_for(&self, want: &Want, external: SocketAddrV4, ports: u16) -> u16 {
        let address = self.addresses.get(external.ip());
        let space = address.and_then(|address| address.spaces.get(&want.endpoint.protocol));
        let held = space.and_then(|space| space.held.get(&external.port())).filter(|held| held.is_of(want));
        held.map_or(0, |held| held.ports.min(ports))
    }

    /// The most ports that the suggestion could have back out of a hold.
    pub(super) fn suggested_hold(&self, want: &Want) -> u16 {
        let (addr, port) = want.suggested;
        let paired = self.paired.get(&want.subscriber).map(|&(addr, _)| addr);
        let one = paired.or(addr);
        let addresses = self.addresses.keys().filter(|&&addr| one.is_none_or(|one| one == addr));
        let held = |&addr: &Ipv4Addr| self.held_for(want, SocketAddrV4::new(addr, port), u16::MAX);
        addresses.map(held).max().unwrap_or(0)
    }

    fn pick(&mut self, addr: Ipv4Addr, want: &Want) -> Option<(u16, u16)> {
        let address = self.addresses.get_mut(&addr)?;
        let protocol = want.endpoint.protocol;
        let other = companion_of(protocol).filter(|_| want.companion);
        let space = address.spaces.get(&protocol)?;
        let port = want.suggested.1;
        let accompanied = || {
            let other = other.and_then(|other| address.spaces.get(&other));
            other.is_none_or(|other| other.can_accompany(port, want))
        };
        let even = want.parity.is_none_or(|parity| port % 2 == parity);
        let suggested = if port != 0 && even && want.allowed.contains(port, port) && accompanied() {
            space.in_a_row(port, want).min(want.allowed.in_a_row(port)).min(want.ports)
        } else {
            0
        };
        if suggested == want.ports || want.strict && port != 0 {
            return (suggested > 0).then_some((port, suggested));
        }
        let free = if other.is_some() { &address.both } else { &space.free };
        let found = if want.ports > 1 {
            rows(free, &space.base, want)
        } else {
            let from = address.next_pick.unwrap_or(FIRST_PICK);
            let around =
                want.allowed.within(from, u16::MAX).chain(want.allowed.within(0, from.saturating_sub(1)));
            let mut around = around.filter_map(|(first, last)| free.first_in(first, last));
            around.next().map(|port| (port, 1))
        };
        match found {
            Some((_, ports)) if ports <= suggested => Some((port, suggested)),
            None if suggested > 0 => Some((port, suggested)),
            Some((first, ports)) => {
                if want.ports == 1 {
                    address.next_pick = first.checked_add(1);
                }
                Some((first, ports))
            }
            None => None,
        }
    }

    /// Takes what [`find`](Self::find) has found, for a first mapping.
    pub(super) fn take(&mut self, want: &Want, external: SocketAddrV4, ports: u16) {
        let (subscriber, companion) = (want.subscriber, want.companion);
        self.occupy(want.endpoint, Use { external, ports, subscriber, users: 1, companion });
    }

    /// Another mapping of the same internal endpoint.
    pub(super) fn share(&mut self, endpoint: Endpoint) {
        if let Some(of) = self.uses.get_mut(&endpoint) {
            of.users += 1;
        }
    }

    /// Keeps the companion of what an endpoint has for the same host, if it is nobody's (N-6).
    pub(super) fn accompany(&mut self, endpoint: Endpoint) {
        let Some(of) = self.uses.get(&endpoint).filter(|of| !of.companion) else { return };
        let (addr, port, subscriber) = (*of.external.ip(), of.external.port(), of.subscriber);
        if self.reserve(addr, endpoint, port, subscriber) {
            self.uses.entry(endpoint).and_modify(|of| of.companion = true);
        }
    }

    fn occupy(&mut self, endpoint: Endpoint, mut of: Use) {
        let (addr, port) = (*of.external.ip(), of.external.port());
        let Some(address) = self.addresses.get_mut(&addr) else { return };
        if endpoint.port == 0 {
            address.wildcards.insert(endpoint.protocol, (endpoint, of.subscriber));
        } else {
            let last = port + (of.ports - 1);
            address.cut(endpoint.protocol, port, last);
            let space = address.spaces.entry(endpoint.protocol).or_default();
            space.used.insert(port, (endpoint, of.ports));
            space.has_tenant(of.subscriber);
            // What was held for it: the first ports of a hold.
            if let Some(held) = space.held.remove(&port) {
                self.hold_ends.cancel((addr, endpoint.protocol, port));
                space.loses_tenant(held.subscriber());
                self.charges.take(held.subscriber(), held.ports);
                if let (Some(first), 1..) = (last.checked_add(1), held.ports.saturating_sub(of.ports)) {
                    let rest = Held { ports: held.ports - of.ports, ..held };
                    space.has_tenant(held.subscriber());
                    self.charges.add(rest.subscriber(), rest.ports);
                    space.held.insert(first, rest);
                    self.hold_ends.set((addr, endpoint.protocol, first), held.until);
                }
            }
            of.companion = of.companion && self.reserve(addr, endpoint, port, of.subscriber);
        }
        self.charges.add(Some(of.subscriber), of.ports - 1);
        self.uses.insert(endpoint, of);
        let (_, count) = self.paired.entry(of.subscriber).or_insert((addr, 0));
        *count += 1;
        if *count == 1 {
            self.load(addr, 1);
        }
    }

    /// Keeps the companion port for the host; false when there is none, or somebody else has it.
    fn reserve(&mut self, addr: Ipv4Addr, endpoint: Endpoint, port: u16, subscriber: Subscriber) -> bool {
        let Some(other) = companion_of(endpoint.protocol) else { return false };
        let Some(address) = self.addresses.get_mut(&addr) else { return false };
        let Some(space) = address.spaces.get_mut(&other) else { return false };
        let taken = space.user_of(port).is_some_and(|user| user.inside != endpoint.inside)
            || space.reserved.contains_key(&port)
            || space.hold_of(port).is_some_and(|(_, held)| !held.is_of_host(endpoint.inside));
        if taken {
            return false;
        }
        space.reserved.insert(port, (endpoint.inside, subscriber));
        space.has_tenant(subscriber);
        address.cut(other, port, port);
        true
    }

    fn release_companion(&mut self, addr: Ipv4Addr, protocol: Protocol, port: u16) {
        let Some(other) = companion_of(protocol) else { return };
        let Some(address) = self.addresses.get_mut(&addr) else { return };
        let Some(space) = address.spaces.get_mut(&other) else { return };
        if let Some((_, subscriber)) = space.reserved.remove(&port) {
            space.loses_tenant(subscriber);
            if space.user_of(port).is_none() && space.hold_of(port).is_none() {
                address.free(other, port, port);
            }
        }
    }

    fn load(&mut self, addr: Ipv4Addr, by: isize) {
        let Some(address) = self.addresses.get_mut(&addr) else { return };
        self.by_load.remove(&(address.subscribers, addr));
        address.subscribers = address.subscribers.saturating_add_signed(by);
        self.by_load.insert((address.subscribers, addr));
    }

    /// Holds ports for who had them before a restart, as far as nobody has them.
    pub(super) fn restore_hold(&mut self, external: SocketAddrV4, ports: u16, owner: Owner, until: Instant) {
        let held = Held { owner: Some(owner), ports, until };
        self.hold_what_is_free(*external.ip(), owner.endpoint.protocol, external.port(), held);
    }

    fn hold_what_is_free(&mut self, addr: Ipv4Addr, protocol: Protocol, first: u16, held: Held) {
        let space = self.addresses.get(&addr).and_then(|address| address.spaces.get(&protocol));
        let Some(space) = space.filter(|_| held.ports > 0) else { return };
        for (first, last) in space.free_for(first, first.saturating_add(held.ports - 1), held.owner) {
            self.insert_hold(addr, protocol, first, Held { ports: last - first + 1, ..held });
        }
    }

    fn insert_hold(&mut self, addr: Ipv4Addr, protocol: Protocol, first: u16, held: Held) {
        let Some(address) = self.addresses.get_mut(&addr) else { return };
        let Some(space) = address.spaces.get_mut(&protocol) else { return };
        space.has_tenant(held.subscriber());
        space.held.insert(first, held);
        address.cut(protocol, first, first + (held.ports - 1));
        self.charges.add(held.subscriber(), held.ports);
        self.hold_ends.set((addr, protocol, first), held.until);
    }

    /// One mapping of the internal endpoint has gone. With the last one its external endpoint goes; true if its ports are held.
    pub(super) fn give_back(&mut self, now: Instant, endpoint: Endpoint, freed: Freed) -> bool {
        let Some(of) = self.uses.get_mut(&endpoint) else { return false };
        of.users -= 1;
        if of.users > 0 {
            return false;
        }
        let of = *of;
        self.uses.remove(&endpoint);
        self.charges.take(Some(of.subscriber), of.ports - 1);
        let (addr, port) = (*of.external.ip(), of.external.port());
        if let Some((_, count)) = self.paired.get_mut(&of.subscriber) {
            *count -= 1;
            if *count == 0 {
                self.paired.remove(&of.subscriber);
                self.load(addr, -1);
            }
        }
        let Some(address) = self.addresses.get_mut(&addr) else { return false };
        if endpoint.port == 0 {
            address.wildcards.remove(&endpoint.protocol);
            return false;
        }
        let Some(space) = address.spaces.get_mut(&endpoint.protocol) else { return false };
        space.used.remove(&port);
        space.loses_tenant(of.subscriber);
        let (owner, hold) = match freed {
            Freed::Free => (None, Duration::ZERO),
            Freed::Held(nonce, hold) => (Some(Owner { endpoint, nonce, subscriber: of.subscriber }), hold),
            Freed::Taken(hold) => (None, hold),
        };
        if hold.is_zero() {
            address.free(endpoint.protocol, port, port + (of.ports - 1));
        } else {
            self.insert_hold(
                addr,
                endpoint.protocol,
                port,
                Held { owner, ports: of.ports, until: now + hold },
            );
        }
        if of.companion {
            self.release_companion(addr, endpoint.protocol, port);
        }
        !hold.is_zero()
    }

    /// Holds that are over are forgotten, a few with each datagram: no single one has to clear a pile away. Returns how many.
    pub(super) fn end_holds(&mut self, now: Instant, most: usize) -> usize {
        let mut ended = 0;
        while ended < most
            && let Some((addr, protocol, first)) = self.hold_ends.pop_due(now)
        {
            self.end_that_hold(addr, protocol, first);
            ended += 1;
        }
        ended
    }

    /// Forgets the hold that this port is in, if it is over.
    fn end_hold(&mut self, now: Instant, addr: Ipv4Addr, protocol: Protocol, port: u16) {
        let space = self.addresses.get(&addr).and_then(|address| address.spaces.get(&protocol));
        let over = space.and_then(|space| space.hold_of(port)).filter(|(_, held)| held.until <= now);
        if let Some((first, _)) = over {
            self.hold_ends.cancel((addr, protocol, first));
            self.end_that_hold(addr, protocol, first);
        }
    }

    fn end_that_hold(&mut self, addr: Ipv4Addr, protocol: Protocol, first: u16) {
        let Some(address) = self.addresses.get_mut(&addr) else { return };
        let Some(space) = address.spaces.get_mut(&protocol) else { return };
        if let Some(held) = space.held.remove(&first) {
            space.loses_tenant(held.subscriber());
            self.charges.take(held.subscriber(), held.ports);
            address.free(protocol, first, first + (held.ports - 1));
        }
    }
}

/// Ports in a row for a set, as many as are wanted or as there are.
fn rows(free: &Runs, base: &Runs, want: &Want) -> Option<(u16, u16)> {
    let everything = base.within(0, u16::MAX).all(|(first, last)| want.allowed.contains(first, last));
    if everything {
        return free.row(want.ports, want.parity);
    }
    let mut allowed = Runs::default();
    let looks = want.allowed.within(0, u16::MAX).flat_map(|(first, last)| free.within(first, last));
    looks.take(MAX_LOOKS).for_each(|(first, last)| allowed.add(first, last));
    allowed.row(want.ports, want.parity)
}

#[cfg(test)]
impl Pool {
    /// The indexes say what the uses and holds say, and no port is in two places.
    pub(super) fn check(&self) {
        let mut paired: BTreeMap<Subscriber, (Ipv4Addr, usize)> = BTreeMap::new();
        for (endpoint, of) in &self.uses {
            assert!(of.users > 0);
            paired.entry(of.subscriber).or_insert((*of.external.ip(), 0)).1 += 1;
            let address = &self.addresses[of.external.ip()];
            if endpoint.port == 0 {
                assert_eq!(address.wildcards[&endpoint.protocol], (*endpoint, of.subscriber));
                continue;
            }
            let space = &address.spaces[&endpoint.protocol];
            assert_eq!(space.used[&of.external.port()], (*endpoint, of.ports));
            if of.companion
                && let Some(other) = companion_of(endpoint.protocol)
            {
                assert_eq!(address.spaces[&other].reserved[&of.external.port()].0, endpoint.inside);
            }
        }
        assert_eq!(self.paired, paired);
        let mut load: BTreeMap<Ipv4Addr, usize> = self.addresses.keys().map(|&addr| (addr, 0)).collect();
        for (addr, _) in paired.values() {
            *load.get_mut(addr).expect("an address of the pool") += 1;
        }
        assert_eq!(self.by_load, load.iter().map(|(&addr, &count)| (count, addr)).collect());
        let (mut used, mut holds) = (0, 0);
        let mut charges: BTreeMap<Subscriber, u32> = BTreeMap::new();
        for address in self.addresses.values() {
            for space in address.spaces.values() {
                let mut left = space.base.clone();
                let mut tenants: BTreeMap<Subscriber, usize> = BTreeMap::new();
                for (&port, (endpoint, ports)) in &space.used {
                    let last = port + (ports - 1);
                    assert!(!space.base.contains(port, last) || left.contains(port, last), "{port} twice");
                    left.cut(port, last);
                    *tenants.entry(self.uses[endpoint].subscriber).or_default() += 1;
                    used += 1;
                }
                for (&port, held) in &space.held {
                    assert!(left.contains(port, port + (held.ports - 1)), "{port} is held and used");
                    left.cut(port, port + (held.ports - 1));
                    if let Some(subscriber) = held.subscriber() {
                        *tenants.entry(subscriber).or_default() += 1;
                        *charges.entry(subscriber).or_default() += u32::from(held.ports);
                    }
                    holds += 1;
                }
                for (&port, (_, subscriber)) in &space.reserved {
                    left.cut(port, port);
                    *tenants.entry(*subscriber).or_default() += 1;
                }
                assert_eq!(space.free, left);
                assert_eq!(space.tenants, tenants);
            }
            let mut both = Runs::default();
            for (first, last) in address.free_of(Protocol::TCP, 0, u16::MAX) {
                for (first, last) in address.free_of(Protocol::UDP, first, last) {
                    both.add(first, last);
                }
            }
            assert_eq!(address.both, both);
        }
        assert_eq!(used, self.uses.keys().filter(|endpoint| endpoint.port != 0).count());
        assert_eq!(holds, self.holds());
        for of in self.uses.values().filter(|of| of.ports > 1) {
            *charges.entry(of.subscriber).or_default() += u32::from(of.ports - 1);
        }
        assert_eq!(charges, self.charges.0);
    }

    /// Ports that are held for a subscriber.
    pub(super) fn held_by(&self, subscriber: Subscriber) -> u32 {
        let spaces = self.addresses.values().flat_map(|address| address.spaces.values());
        let held = spaces.flat_map(|space| space.held.values());
        held.filter(|held| held.subscriber() == Some(subscriber)).map(|held| u32::from(held.ports)).sum()
    }

    /// Who has what held until when.
    pub(super) fn owned_holds(&self) -> Vec<String> {
        let spaces = self.addresses.iter().flat_map(|(addr, address)| {
            address.spaces.iter().map(move |(protocol, space)| (addr, protocol, space))
        });
        let held = spaces.flat_map(|(addr, protocol, space)| {
            space.held.iter().map(move |(port, held)| (addr, protocol, port, held))
        });
        held.filter(|one| one.3.owner.is_some()).map(|one| format!("{one:?}")).collect()
    }

    /// How many holds there are.
    pub(super) fn holds(&self) -> usize {
        let spaces = self.addresses.values().flat_map(|address| address.spaces.values());
        spaces.map(|space| space.held.len()).sum()
    }

    /// Whether there is an alarm for each hold.
    pub(super) fn hold_alarms(&mut self) -> usize {
        std::iter::from_fn(|| self.hold_ends.pop_due(Instant::from_millis(u64::MAX))).count()
    }
}

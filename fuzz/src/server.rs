//! The provider's server as a whole: octets are its settings, and then a sequence of datagrams, of what the data plane says, and
//! of time.
//!
//! What must hold whatever comes: no panic; no answer to who is outside, none longer than its protocol allows, one at most
//! for each mapping that a datagram is about; no external port for two hosts; what waits is bounded; and what is stored
//! stands again after a restart.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use engine::provider::{
    AclRule, Arrival, Binding, Description, FlowQuery, Inside, MappingKey, NatChange, NatRefused, Output,
    PreferFailure, Prefix, Rate, Record, Server, ServerConfig, StaticMapping, StoredHold, StoredMapping,
    ThirdParty, Ticket,
};
use engine::time::{Duration, Instant};
use wire::pcp::{self, Prefix64, Protocol};

/// Datagrams that may come of one: as many as an overlapping request can meet mappings, and those that waited.
const MAX_ANSWERS: usize = 200;
/// Outputs of one step.
const MAX_OUTPUTS: usize = 20_000;

struct Octets<'a> {
    left: &'a [u8],
}

impl<'a> Octets<'a> {
    fn next(&mut self) -> u8 {
        let Some((&first, rest)) = self.left.split_first() else { return 0 };
        self.left = rest;
        first
    }

    fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.left.split_at(most.min(self.left.len()));
        self.left = rest;
        taken
    }
}

struct Run<'a> {
    octets: Octets<'a>,
    server: Server,
    now: Instant,
    tickets: VecDeque<(Ticket, NatChange)>,
    questions: VecDeque<(Ticket, FlowQuery)>,
    bindings: Vec<Binding>,
    store: BTreeMap<MappingKey, (Instant, StoredMapping)>,
    holds: Vec<(Instant, StoredHold)>,
    epoch_began: Instant,
    /// The data plane does at once what it is told.
    obeys: bool,
}

/// Octets as a sequence of events into a server.
pub fn server_events(data: &[u8]) {
    let mut octets = Octets { left: data };
    let config = config(&mut octets);
    let now = Instant::from_secs(1000);
    let mut run = Run {
        octets,
        server: Server::new(now, config, now),
        now,
        tickets: VecDeque::new(),
        questions: VecDeque::new(),
        bindings: Vec::new(),
        store: BTreeMap::new(),
        holds: Vec::new(),
        epoch_began: now,
        obeys: true,
    };
    run.perform();
    while !run.octets.left.is_empty() {
        run.step();
        run.check();
    }
    run.obeys = true;
    while run.outcome(0) {}
    run.check();
}

fn pool() -> [Ipv4Addr; 2] {
    [Ipv4Addr::new(198, 51, 100, 7), Ipv4Addr::new(198, 51, 100, 8)]
}

fn config(octets: &mut Octets<'_>) -> ServerConfig {
    let pool = pool();
    let flags = octets.next();
    let on = |bit: u8| flags & (1 << bit) != 0;
    let more = octets.next();
    let also = |bit: u8| more & (1 << bit) != 0;
    let mut config = ServerConfig::new(pool[..usize::from(more >> 6).min(2)].to_vec());
    // The usual case: there is one.
    if config.pool.is_empty() {
        config.pool = vec![pool[0]];
    }
    (config.all_ports, config.all_protocols, config.firewall, config.nat64) = (on(0), on(0), on(1), on(2));
    (config.query, config.natpmp, config.peer) = (on(3), !on(4), !on(4));
    if on(5) {
        let internal = vec![Prefix::ALL_V4, Prefix::ALL_V6];
        let rule = |client| ThirdParty { client, internal: internal.clone() };
        config.third_party = vec![rule(Prefix::ALL_V4), rule(Prefix::ALL_V6)];
    }
    if on(6) {
        config.b4 = vec![Prefix::new(b4().into(), 64)];
        config.prefix64 = vec![Prefix64 { prefix: vec![0; 12], suffix: vec![], ipv4_prefixes: vec![] }];
    }
    if on(7) {
        let client = Prefix::ALL_V4;
        config.acl =
            vec![AclRule { allow: false, client, ports: 2000..=2999, protocol: Some(Protocol::TCP) }];
        config.statics = vec![StaticMapping {
            protocol: Protocol::TCP,
            inside: Inside { softwire: None, addr: host(0) },
            internal_port: 22,
            external: (pool[0], 2222).into(),
        }];
    }
    config.description = if also(0) { Description::Malformed } else { Description::Stored };
    config.prefer_failure = if also(1) { PreferFailure::PassedOver } else { PreferFailure::Honoured };
    config.rate = also(2).then_some(Rate { per_second: 5, burst: 20 });
    config.quota = if also(3) { 3 } else { 100 };
    if also(4) {
        config.ports = 2000..=2010;
    }
    if also(5) {
        config.hold = Duration::ZERO;
    }
    config
}

fn b4() -> Ipv6Addr {
    "2001:db8:b4::1".parse().expect("an address")
}

/// Hosts of either family.
fn host(n: u8) -> IpAddr {
    match n % 6 {
        4 => "2001:db8:1::10".parse().expect("an address"),
        5 => b4().into(),
        n => Ipv4Addr::new(192, 0, 2, 10 + n).into(),
    }
}

impl Run<'_> {
    fn step(&mut self) {
        let what = self.octets.next();
        match what % 16 {
            0..=8 => self.datagram(what >> 4),
            9 | 10 => {
                let count = self.octets.next();
                (0..count).all(|_| self.outcome(what >> 4));
            }
            11 | 12 => {
                let secs = u64::from(self.octets.next()) * u64::from(what >> 4);
                self.pass(Duration::from_secs(secs));
            }
            13 => self.obeys = what & 0x10 != 0,
            14 => {
                let mut config = self.server.config().clone();
                match what >> 4 {
                    0 => config.pool.reverse(),
                    1 => config.pool.truncate(1),
                    2 => config.pool.clear(),
                    3 => config.pool.push(Ipv4Addr::new(198, 51, 100, self.octets.next() % 4)),
                    4 => config.ports = 2005..=2020,
                    5 => config.protocols = [Protocol::UDP].into(),
                    6 => config.quota = 1,
                    _ => config.hold = Duration::from_secs(5),
                }
                self.server.reconfigure(self.now, config);
            }
            _ if what & 0x10 == 0 => {
                self.server.lose_state(self.now);
                self.perform();
                // What is forgotten is not tried again.
                while self.outcome(0) {}
            }
            _ => self.restart(),
        }
        self.perform();
    }

    fn pass(&mut self, time: Duration) {
        let to = self.now + time;
        let mut turns = 0;
        while let Some(at) = self.server.next_timeout().filter(|&at| at <= to) {
            turns = if at > self.now { 0 } else { turns + 1 };
            assert!(turns < 100, "it spins");
            self.now = self.now.max(at);
            self.server.handle_timeout(self.now);
            self.perform();
        }
        self.now = to;
    }

    fn datagram(&mut self, how: u8) {
        let from = host(self.octets.next());
        let len = usize::from(self.octets.next()) * if how & 4 != 0 { 5 } else { 1 };
        let mut payload = self.octets.take(len).to_vec();
        if how & 1 == 0 && payload.len() >= pcp::HEADER_LEN && payload[0] != 0 {
            payload[0] = pcp::VERSION;
            payload[1] &= 0x7f;
            payload[8..24].copy_from_slice(&pcp::ip_to_wire(from).octets());
        }
        let softwire = (how & 2 != 0 && from.is_ipv4()).then(b4);
        let to = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let arrival =
            Arrival { from: SocketAddr::new(from, 4321), to, softwire, interface: 0, inside: how & 8 == 0 };
        let before = self.server.counters().sent;
        self.server.handle_datagram(self.now, &arrival, &payload);
        assert!(arrival.inside || self.server.counters().sent == before, "an answer to who is outside");
    }

    /// The data plane answers the oldest question, or says what became of the oldest change; false if there is neither.
    fn outcome(&mut self, how: u8) -> bool {
        if let Some((ticket, flow)) = self.questions.pop_front() {
            let [addr, other] = pool();
            let external = match how {
                0 => flow.remote.map(|remote| SocketAddrV4::new(addr, remote.port())),
                1..=4 => Some(SocketAddrV4::new(other, flow.internal_port)),
                5..=8 => Some(SocketAddrV4::new(addr, 2000 + u16::from(how))),
                _ => None,
            };
            self.server.handle_flow(self.now, ticket, external);
            self.perform();
            return true;
        }
        let Some((ticket, change)) = self.tickets.pop_front() else { return false };
        let refused = match how {
            1 => Some(NatRefused::Failed),
            2 => Some(NatRefused::Full),
            3 => Some(NatRefused::Taken),
            4 => Some(NatRefused::Unfit),
            _ => None,
        };
        let outcome = match refused {
            Some(refused) => Err(refused),
            None => self.carry_out(change).ok_or(NatRefused::Failed),
        };
        self.server.handle_nat(self.now, ticket, outcome);
        self.perform();
        true
    }

    /// `None` when that is not possible, as what was lost on the way can make it.
    fn carry_out(&mut self, change: NatChange) -> Option<()> {
        let remove = |bindings: &mut Vec<Binding>, old: &Binding| {
            let at = bindings.iter().position(|there| there == old)?;
            Some(bindings.remove(at))
        };
        match change {
            NatChange::Open(new) => self.bindings.push(new),
            NatChange::Close(old) => drop(remove(&mut self.bindings, &old)?),
            NatChange::Replace { old, new } => {
                remove(&mut self.bindings, &old)?;
                self.bindings.push(new);
            }
        }
        Some(())
    }

    fn restart(&mut self) {
        while self.outcome(0) {}
        self.bindings.clear();
        let stored = self.store.values().filter_map(|(at, stored)| {
            let left = (*at + stored.left) - self.now;
            (!left.is_zero()).then(|| StoredMapping { left, ..stored.clone() })
        });
        let stored: Vec<StoredMapping> = stored.collect();
        self.store = stored.iter().map(|one| (one.key, (self.now, one.clone()))).collect();
        self.server = Server::new(self.now, self.server.config().clone(), self.epoch_began);
        self.holds.retain(|(at, hold)| *at + hold.left > self.now);
        let left = |(at, hold): &(Instant, StoredHold)| StoredHold {
            left: (*at + hold.left) - self.now,
            ..hold.clone()
        };
        self.server.restore(self.now, stored, self.holds.iter().map(left).collect());
        self.server.announce(self.now);
    }

    fn perform(&mut self) {
        let (mut outputs, mut sent) = (0, 0);
        while let Some(output) = self.server.poll_output() {
            outputs += 1;
            assert!(outputs < MAX_OUTPUTS);
            match output {
                Output::Send { bytes, .. } => {
                    sent += 1;
                    assert!(bytes.len() <= pcp::MAX_LEN && sent <= MAX_ANSWERS);
                    assert!(bytes[1] & 0x80 != 0, "a response");
                }
                Output::Multicast { bytes, .. } => assert!(bytes.len() <= pcp::MAX_LEN),
                Output::Nat { ticket, change } => {
                    self.tickets.push_back((ticket, change));
                    if self.obeys {
                        self.outcome(0);
                    }
                }
                Output::Flow { ticket, flow } => {
                    self.questions.push_back((ticket, flow));
                    if self.obeys {
                        self.outcome(0);
                    }
                }
                Output::Store(Record::Epoch) => self.epoch_began = self.now,
                Output::Store(Record::Clear) => {
                    self.store.clear();
                    self.holds.clear();
                }
                Output::Store(Record::Hold(hold)) => self.holds.push((self.now, hold)),
                Output::Store(Record::Put(stored)) => {
                    self.store.insert(stored.key, (self.now, stored));
                }
                Output::Store(Record::Remove(key)) => drop(self.store.remove(&key)),
                Output::Notice(notice) => assert!(notice.to_string().len() < 200),
            }
        }
    }

    fn check(&self) {
        let mut ports: BTreeMap<(IpAddr, Protocol, u16), (Inside, u16)> = BTreeMap::new();
        for mapping in self.server.mappings() {
            let (stored_at, stored) = &self.store[&mapping.key()];
            assert!(*stored_at + stored.left >= mapping.ends, "a promise that a restart would break");
            // The data plane has refused to close it, and is asked again: whoever has its port by now has it rightly.
            if mapping.ends <= self.now {
                continue;
            }
            for n in 0..mapping.ports {
                let (external, internal) = (mapping.external.port() + n, mapping.internal_port + n);
                let owner = (mapping.inside, internal);
                let all = mapping.internal_port == 0;
                let other = ports.insert((mapping.external.ip(), mapping.protocol, external), owner);
                // Something that has not moved yet may be where something else is now.
                let settled = self.tickets.is_empty();
                assert!(
                    all || !settled || other.is_none_or(|other| other == owner),
                    "{mapping:?} and {other:?}"
                );
            }
        }
        if self.tickets.is_empty() && self.obeys {
            assert_eq!(self.bindings.len(), self.server.mappings().count());
        }
    }
}

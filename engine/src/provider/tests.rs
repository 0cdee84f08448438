//! The server in virtual time: RFC 6887's server half and RFC 6886's, row by row. After every datagram the table, its indexes, the
//! pool of ports and what the data plane was told are compared.

use std::net::{Ipv6Addr, SocketAddrV4};

use wire::pcp::{
    Body, Filter, MapData, NO_ADDR_V4, Nonce, OptionCode, PcpOption, PeerData, PortSet, Protocol, Request,
    Response, ResultCode,
};

use super::*;

mod announcements;
mod checks;
mod deployments;
mod flows;
mod holds;
mod large;
mod limits;
mod mapping;
mod natpmp;
mod options;
mod peers;
mod port_sets;
mod query;
mod random;
mod restart;
mod two_phases;
mod updates;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const EXTERNAL_2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
/// The server's own address.
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Where everybody asks.
const INTERFACE: u32 = 3;
const START: Instant = Instant::from_secs(1000);

fn at(secs: u64) -> Instant {
    Instant::from_secs(1000 + secs)
}

/// What the data plane makes of what it is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Nat {
    Obeys,
    Refuses(NatRefused),
    /// It does it, and says so when it is [asked](Bench::nat_answers).
    Hesitates,
}

/// A server, its data plane, its store, and everybody who hears it.
#[derive(Debug)]
struct Bench {
    config: ServerConfig,
    server: Server,
    nat: Nat,
    /// Where everybody asks.
    interface: u32,
    /// What the data plane has.
    bindings: Vec<Binding>,
    /// Of what it was told, it has not said what became of it.
    tickets: VecDeque<(Ticket, NatChange)>,
    changes: usize,
    /// Flows that hosts have begun by themselves: from where, to where, and where they go out.
    flows: Vec<((IpAddr, u16), SocketAddr, SocketAddrV4)>,
    questions: VecDeque<(Ticket, FlowQuery)>,
    /// They are not answered at once.
    ponders: bool,
    asked: usize,
    sent: VecDeque<(SocketAddr, IpAddr, Option<Ipv6Addr>, Vec<u8>)>,
    multicasts: Vec<(Instant, SocketAddr, Vec<u8>)>,
    store: BTreeMap<MappingKey, (Instant, StoredMapping)>,
    held: Vec<(Instant, StoredHold)>,
    epoch_began: Option<Instant>,
    records: usize,
    notices: Vec<Notice>,
}

impl Bench {
    fn new(config: ServerConfig) -> Self {
        Self::started(START, config, START)
    }

    fn started(now: Instant, config: ServerConfig, epoch_began: Instant) -> Self {
        let mut bench = Self {
            server: Server::new(now, config.clone(), epoch_began),
            config,
            nat: Nat::Obeys,
            interface: INTERFACE,
            bindings: Vec::new(),
            tickets: VecDeque::new(),
            changes: 0,
            flows: Vec::new(),
            questions: VecDeque::new(),
            ponders: false,
            asked: 0,
            sent: VecDeque::new(),
            multicasts: Vec::new(),
            store: BTreeMap::new(),
            held: Vec::new(),
            epoch_began: None,
            records: 0,
            notices: Vec::new(),
        };
        bench.perform(now);
        bench
    }

    /// Its settings, to be changed while it runs; nobody is told.
    fn config_mut(&mut self) -> &mut ServerConfig {
        &mut self.config
    }

    fn set(mut self, change: impl FnOnce(&mut ServerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    fn apply_settings(&mut self, now: Instant) {
        if self.config != *self.server.config() {
            self.server.reconfigure_quietly(now, self.config.clone());
            self.perform(now);
        }
    }

    fn mappings(&self) -> Vec<&ServerMapping> {
        self.server.mappings().collect()
    }

    fn datagram(&mut self, now: Instant, arrival: &Arrival, payload: &[u8]) {
        self.apply_settings(now);
        self.timeout(now);
        self.server.handle_datagram(now, arrival, payload);
        self.perform(now);
    }

    /// What is answered to a datagram that comes so; `None` for silence.
    fn answer(&mut self, now: Instant, arrival: &Arrival, payload: &[u8]) -> Option<Vec<u8>> {
        self.sent.clear();
        self.datagram(now, arrival, payload);
        let (to, from, softwire, bytes) = self.sent.pop_front()?;
        assert_eq!((to, from, softwire), (arrival.from, arrival.to, arrival.softwire));
        assert!(bytes.len() <= pcp::MAX_LEN && self.sent.is_empty(), "one answer");
        Some(bytes)
    }

    fn timeout(&mut self, now: Instant) {
        loop {
            self.server.handle_timeout(now);
            self.perform(now);
            // More than are done in one turn.
            if self.server.next_timeout().is_none_or(|at| at > now) {
                break;
            }
        }
    }

    fn perform(&mut self, now: Instant) {
        while let Some(output) = self.server.poll_output() {
            match output {
                Output::Send { to, from, softwire, interface, bytes } => {
                    assert_eq!(interface, self.interface, "by the interface that it was asked by");
                    self.sent.push_back((to, from, softwire, bytes));
                }
                Output::Multicast { group, bytes } => self.multicasts.push((now, group, bytes)),
                Output::Nat { ticket, change } => {
                    self.changes += 1;
                    self.tickets.push_back((ticket, change));
                    if self.nat != Nat::Hesitates {
                        self.nat_answers(now);
                    }
                }
                Output::Flow { ticket, flow } => {
                    self.questions.push_back((ticket, flow));
                    if !self.ponders {
                        self.flow_answers(now);
                    }
                }
                Output::Store(record) => {
                    self.records += 1;
                    match record {
                        Record::Epoch => self.epoch_began = Some(now),
                        Record::Clear => {
                            self.store.clear();
                            self.held.clear();
                        }
                        Record::Put(stored) => drop(self.store.insert(stored.key, (now, stored))),
                        Record::Remove(key) => drop(self.store.remove(&key)),
                        Record::Hold(hold) => {
                            let ports = |hold: &StoredHold| (hold.external, hold.key.protocol, hold.ports);
                            self.held.retain(|(_, old)| ports(old) != ports(&hold));
                            self.held.push((now, hold));
                        }
                    }
                }
                Output::Notice(notice) => {
                    assert!(notice.to_string().len() > 10);
                    self.notices.push(notice);
                }
            }
        }
        self.check();
    }

    /// The data plane says where a flow goes out that it was asked for.
    fn flow_answers(&mut self, now: Instant) {
        let (ticket, flow) = self.questions.pop_front().expect("there is one");
        self.asked += 1;
        let FlowQuery { inside, protocol, internal_port, remote } = flow;
        let is_it = |(from, to, _): &&((IpAddr, u16), SocketAddr, SocketAddrV4)| {
            *from == (inside.addr, internal_port) && remote.is_none_or(|remote| remote == *to)
        };
        let found = self.flows.iter().find(is_it).filter(|_| protocol == Protocol::TCP);
        self.server.handle_flow(now, ticket, found.map(|&(.., external)| external));
    }

    /// The data plane says what became of the oldest change that it was told.
    fn nat_answers(&mut self, now: Instant) {
        let (ticket, change) = self.tickets.pop_front().expect("there is one");
        if let Nat::Refuses(refused) = self.nat {
            return self.server.handle_nat(now, ticket, Err(refused));
        }
        match change {
            NatChange::Open(binding) => self.add(binding),
            NatChange::Close(binding) => self.take_away(&binding),
            NatChange::Replace { old, new } => {
                self.take_away(&old);
                self.add(new);
            }
        }
        self.server.handle_nat(now, ticket, Ok(()));
    }

    /// What the store has at `now`, as it reads it: what is over is not there.
    fn stored(&self, now: Instant) -> (Vec<StoredMapping>, Vec<StoredHold>) {
        let left = |at: Instant, left: Duration| Some((at + left) - now).filter(|left| !left.is_zero());
        let mapping = |(at, stored): &(Instant, StoredMapping)| {
            Some(StoredMapping { left: left(*at, stored.left)?, ..stored.clone() })
        };
        let hold = |(at, stored): &(Instant, StoredHold)| {
            Some(StoredHold { left: left(*at, stored.left)?, ..stored.clone() })
        };
        (self.store.values().filter_map(mapping).collect(), self.held.iter().filter_map(hold).collect())
    }

    /// All that wait have their answer.
    fn nat_answers_all(&mut self, now: Instant) {
        while !self.tickets.is_empty() {
            self.nat_answers(now);
            self.perform(now);
        }
    }

    fn take_away(&mut self, binding: &Binding) {
        let at = self.bindings.iter().position(|there| there == binding);
        self.bindings.remove(at.unwrap_or_else(|| panic!("{binding:?} is not there")));
    }

    fn add(&mut self, binding: Binding) {
        let external = |b: &Binding| (b.external.ip(), b.external.port(), b.external.port() + (b.ports - 1));
        for there in &self.bindings {
            let ((addr, first, last), (other, from, to)) = (external(&binding), external(there));
            let same_port =
                addr == other && there.protocol == binding.protocol && first <= to && from <= last;
            let same_host = there.inside == binding.inside
                && (there.peer, binding.peer) != (None, None)
                && there.internal_port.wrapping_sub(from) == binding.internal_port.wrapping_sub(first);
            assert!(!same_port || same_host, "{binding:?} beside {there:?}");
        }
        self.bindings.push(binding);
    }

    /// Table, indexes, ports, data plane and store agree.
    fn check(&self) {
        self.server.table.check();
        self.server.pool.check();
        let asked = self.server.pending.values().filter(|pending| pending.asker.is_some()).count();
        assert_eq!(self.server.asked, asked);
        if self.server.pending.is_empty() && self.nat != Nat::Hesitates && !self.ponders {
            let mut table: Vec<String> =
                self.server.mappings().map(|mapping| format!("{:?}", mapping.binding())).collect();
            let mut there: Vec<String> = self.bindings.iter().map(|b| format!("{b:?}")).collect();
            table.sort();
            there.sort();
            assert_eq!(table, there);
            assert!(self.server.waiting.values().all(VecDeque::is_empty), "nobody waits for nothing");
            assert!(self.server.batches.is_empty());
            assert_eq!(self.server.table.len(), table.len());
        }
        for mapping in self.server.mappings() {
            let (stored_at, stored) = &self.store[&mapping.key()];
            assert!(
                *stored_at + stored.left >= mapping.ends,
                "a promise that a restart would break: {mapping:?}"
            );
            let kept = (stored.external, stored.ports, stored.nonce, &stored.filters, &stored.description);
            let there =
                (mapping.external, mapping.ports, mapping.nonce, &mapping.filters, &mapping.description);
            assert_eq!(kept, there);
        }
        // While a restart is under way there is more in the store.
        if self.server.pending.values().all(|pending| pending.asker.is_some()) {
            assert_eq!(self.store.len(), self.server.mappings().count(), "what is gone is not stored");
        }
    }

    /// How often that was the reason.
    fn refusals(&self, reason: Reason) -> u64 {
        self.server.counters().refusals(reason)
    }
}

fn config() -> ServerConfig {
    // Rates have their own tests.
    ServerConfig { rate: None, ..ServerConfig::new(vec![EXTERNAL]) }
}

fn server() -> Bench {
    Bench::new(config())
}

/// THIRD_PARTY for everybody.
fn anybody() -> Vec<ThirdParty> {
    let rule = |client| ThirdParty { client, internal: vec![Prefix::ALL_V4, Prefix::ALL_V6] };
    vec![rule(Prefix::ALL_V4), rule(Prefix::ALL_V6)]
}

fn arrival(from: impl Into<IpAddr>) -> Arrival {
    let from = SocketAddr::new(from.into(), 4321);
    let to = if from.is_ipv4() { SERVER.into() } else { "2001:db8::1".parse().expect("an address") };
    Arrival { from, to, softwire: None, interface: INTERFACE, inside: true }
}

fn data(nonce: u8, internal_port: u16, external_port: u16) -> MapData {
    MapData {
        nonce: Nonce([nonce; 12]),
        protocol: Protocol::TCP,
        internal_port,
        external_port,
        external_addr: NO_ADDR_V4,
    }
}

fn map(lifetime: u32, map: MapData, options: &[PcpOption]) -> Request {
    let client_addr = CLIENT.to_ipv6_mapped();
    Request { lifetime, client_addr, body: Body::Map(map), options: options.to_vec() }
}

fn by(client: impl Into<IpAddr>, request: Request) -> Request {
    Request { client_addr: pcp::ip_to_wire(client.into()), ..request }
}

/// What the server answers to a datagram from `from`.
fn raw(bench: &mut Bench, now: Instant, from: Ipv4Addr, bytes: &[u8]) -> Option<Vec<u8>> {
    bench.answer(now, &arrival(from), bytes)
}

fn ask(bench: &mut Bench, now: Instant, request: &Request) -> Response {
    let from = pcp::ip_from_wire(request.client_addr);
    let answer = bench.answer(now, &arrival(from), &request.to_bytes());
    Response::parse(&answer.expect("no silence")).expect("well-formed")
}

/// Result, lifetime and external port of the answer to a MAP request.
fn outcome(bench: &mut Bench, now: Instant, request: &Request) -> (ResultCode, u32, u16) {
    let response = ask(bench, now, request);
    let Body::Map(map) = response.body else { panic!("{response:?}") };
    (response.result, response.lifetime, map.external_port)
}

fn filter(addr: Ipv6Addr, prefix_len: u8) -> PcpOption {
    PcpOption::Filter(Filter { prefix_len, remote_port: 0, remote_addr: addr })
}

fn third(addr: impl Into<IpAddr>) -> PcpOption {
    PcpOption::ThirdParty(pcp::ip_to_wire(addr.into()))
}

fn text(octets: &[u8]) -> PcpOption {
    PcpOption::Description(octets.to_vec())
}

fn unknown(code: u8) -> PcpOption {
    PcpOption::Unknown { code: OptionCode(code), data: vec![0; 4] }
}

fn peer_data(nonce: u8, internal_port: u16, remote_port: u16) -> PeerData {
    let MapData { nonce, protocol, external_port, external_addr, .. } = data(nonce, internal_port, 0);
    let remote_addr = Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped();
    PeerData { nonce, protocol, internal_port, external_port, external_addr, remote_port, remote_addr }
}

const fn port_set(size: u16, first_internal_port: u16, parity: bool) -> PcpOption {
    PcpOption::PortSet(PortSet { size, first_internal_port, parity })
}

/// Octets from groups of hexadecimal digits.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(char::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("hexadecimal"))
        .collect()
}

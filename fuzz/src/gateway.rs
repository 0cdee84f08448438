//! The gateway as a whole: octets are a sequence of events and the answers to its effects.
//!
//! The world here is hostile and cheap: a few hosts and ports, a PCP server and a kernel that answer what the octets
//! say, or not at all. What must hold whatever they do is asserted along the way.

mod hosts;
mod isp_router;
mod laws;
mod pinholes;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;

use engine::device::{DeviceConfig, Devices, IgdVersion};
use engine::entropy::SeededEntropy;
use engine::gateway::{
    AddPortMapping, Config, Counters, Effect, Event, Gateway, GetSpecific, LanInterface, LookupId, NatMode,
    NatTicket, RequestId, Wan,
};
use engine::nat::{NatChange, NatFailure, NatRule};
use engine::policy::{ByDefault, Device, HardwareAddress, InterfaceAddress, Known, Policy, Verb};
use engine::prefix::{Prefix, ThirdParty};
use engine::ssdp::Outgoing;
use engine::time::{Duration, Instant};
use engine::uplink::{HttpOutcome, HttpRequest};
use wire::description::Uuid;
use wire::pcp::{self, Body, MapData, Protocol, ResultCode};
use wire::{natpmp, soap, ssdp};

use isp_router::Router;
pub use isp_router::isp_router_events;

const ANSWER_WITHIN: Duration = Duration::from_millis(3500);
/// So many timeouts may be due at one moment.
const MAX_TIMEOUTS: usize = 1000;
/// So many effects may come of one event, with as few mappings as an input can make.
const MAX_EFFECTS: usize = 20_000;
/// Requests to the PCP server that may still be answered.
const REMEMBERED: usize = 8;

/// The octets, one after the other; zeros after the last one.
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

    /// One of so many.
    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.next()) % choices.len()]
    }
}

struct Run<'a> {
    octets: Octets<'a>,
    gateway: Gateway,
    config: Config,
    now: Instant,
    wan: Wan,
    /// The socket that was asked for and is not there yet.
    opening: Option<SocketAddr>,
    open: bool,
    server: SocketAddr,
    requests: VecDeque<pcp::Request>,
    /// Requests that wait for their answers; counters wait for the shell, so they have no time limit.
    asked: BTreeMap<RequestId, Instant>,
    counting: BTreeSet<RequestId>,
    /// Names that are being looked up.
    lookups: Vec<LookupId>,
    /// Exchanges of HTTP on their way.
    exchanges: Vec<HttpRequest>,
    /// Searches that were sent since somebody last answered.
    searched: bool,
    /// The provider's router speaks UPnP, and nobody there anything else.
    router: Option<Router>,
    subscribing: Option<RequestId>,
    sids: Vec<Uuid>,
    /// Events on their way.
    notified: BTreeSet<Uuid>,
    next_request: u64,
    outcomes: VecDeque<(NatTicket, Result<(), NatFailure>)>,
    /// Flows that somebody asks about.
    flows: VecDeque<RequestId>,
    rules: BTreeMap<(Protocol, u16, Option<Ipv4Addr>), NatRule>,
    v6: pinholes::Ipv6,
    kernel_failed: bool,
    /// As the neighbour table shows them.
    cards: BTreeMap<IpAddr, HardwareAddress>,
    /// Protocol, host and external port of what stood after the last step.
    stood: BTreeSet<(Protocol, IpAddr, u16)>,
    /// The same of what has ever stood, and its internal ports.
    seen: BTreeSet<(Protocol, IpAddr, u16)>,
    seen_internal: BTreeSet<(Protocol, SocketAddrV4)>,
    /// The server, the kernel and the socket answer at once, without being told to by an octet.
    helpful: bool,
    stopping: bool,
    stopped: bool,
}

/// The gateway's on the LAN, beside an IPv4 address.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Octets as a sequence of events into a gateway.
pub fn gateway_events(data: &[u8]) {
    gateway_with(data, None);
}

/// What a gateway says of itself.
pub(crate) fn device() -> DeviceConfig {
    DeviceConfig {
        seed: [7; 16],
        token: [7; 16],
        boot_id: 1,
        friendly_name: "Router".to_owned(),
        http_port: 5000,
        igd_version: IgdVersion::Auto,
        server: "Linux/6 UPnP/1.1 portferry/0".to_owned(),
        version: "0".to_owned(),
    }
}

/// So many are remembered.
const MOST_SEEN: usize = 10_000;

thread_local! {
    /// Documents are the same for ever, and take more time than a run.
    static VERSIONS: [(IgdVersion, Rc<Devices>); 3] =
        [IgdVersion::Auto, IgdVersion::V1, IgdVersion::V2].map(|igd_version| {
            (igd_version, Rc::new(Devices::new(&DeviceConfig { igd_version, ..device() })))
        });
    /// Messages of SSDP that were looked at before.
    static SEEN: RefCell<HashSet<Vec<u8>>> = RefCell::default();
}

fn gateway_with(data: &[u8], router: Option<Router>) {
    let mut octets = Octets { left: data };
    let mode = octets.next();
    let link = InterfaceAddress { addr: IpAddr::from([192, 168, 1, 1]), prefix_len: 24 };
    let hosts = Prefix::new(link.addr, link.prefix_len);
    let third_party = ThirdParty { client: hosts, internal: vec![hosts] };
    let (igd_version, devices) = VERSIONS.with(|all| all[usize::from(mode >> 6) % 3].clone());
    let config = Config {
        nat: if mode & 1 == 0 { NatMode::Own } else { NatMode::None },
        answer_within: ANSWER_WITHIN,
        external_address_probe: mode & 2 == 0,
        add_port_mapping: [AddPortMapping::PreferFailure, AddPortMapping::Hold, AddPortMapping::AnyThenHold]
            [usize::from(mode >> 3) % 3],
        get_specific: if mode & 16 == 0 { GetSpecific::Probe } else { GetSpecific::Local },
        optimistic_delete: mode & 32 != 0,
        policy: Policy { mappings_per_host: 6, mappings: 12, ..Policy::default() },
        firewall_servers: vec![pinholes::server()],
        third_party: vec![third_party],
        ..Config::new(DeviceConfig { igd_version, ..device() })
    };
    let mut run = Run {
        octets,
        gateway: Gateway::with_devices(config.clone(), devices, Box::new(SeededEntropy::new(mode.into()))),
        config,
        now: Instant::default(),
        wan: Wan { name: "wan0".to_owned(), ..Wan::default() },
        opening: None,
        open: false,
        server: SocketAddr::from(([100, 64, 0, 1], pcp::SERVER_PORT)),
        requests: VecDeque::new(),
        asked: BTreeMap::new(),
        counting: BTreeSet::new(),
        lookups: Vec::new(),
        exchanges: Vec::new(),
        searched: false,
        router,
        subscribing: None,
        sids: Vec::new(),
        notified: BTreeSet::new(),
        next_request: 0,
        outcomes: VecDeque::new(),
        flows: VecDeque::new(),
        rules: BTreeMap::new(),
        v6: pinholes::Ipv6::default(),
        kernel_failed: false,
        cards: BTreeMap::new(),
        stood: BTreeSet::new(),
        seen: BTreeSet::new(),
        seen_internal: BTreeSet::new(),
        helpful: mode & 4 == 0,
        stopping: false,
        stopped: false,
    };
    let v6 = InterfaceAddress { addr: IpAddr::V6(LINK_LOCAL), prefix_len: 64 };
    let addresses = vec![link, v6, pinholes::link()];
    run.handle(Event::Lan(vec![LanInterface { index: 2, name: "lan0".to_owned(), addresses }]));
    run.wan(Some(2));
    if run.router.is_some() {
        // Until it has been looked for, and found if it answers.
        run.advance(Duration::from_secs(40));
    }
    while !run.octets.left.is_empty() && !run.stopped {
        run.step();
        run.check();
    }
    run.end();
}

impl Run<'_> {
    fn step(&mut self) {
        match self.octets.next() % 16 {
            0 => {
                if let Some(next) = self.gateway.next_timeout() {
                    self.advance(next.since(self.now).min(Duration::from_secs(4000)));
                }
            }
            1 => {
                let exponent = self.octets.next() % 23;
                self.advance(Duration::from_millis(1 << exponent));
            }
            2..=4 => self.ask_for_mapping(),
            5 => self.ask_anything(),
            6 if self.router.is_some() => {
                let shape = self.octets.next();
                self.router_answers(shape);
            }
            6 => self.answer(),
            7 => self.subscribe(),
            8 => {
                let length = usize::from(self.octets.next());
                let bytes = self.octets.take(length);
                match length % 16 {
                    15 => self.handle(Event::UplinkUnreachable(self.server)),
                    14 => self.handle(Event::Scouted { from: self.server, bytes }),
                    _ => self.handle(Event::Uplink { from: self.server, bytes }),
                }
                // So does the provider's router, where it is looked for or asked.
                let from = SocketAddr::new(self.server.ip(), ssdp::PORT);
                self.handle(Event::SearchAnswer { from, bytes });
                if let Some(request) = self.exchanges.pop() {
                    let outcome = HttpOutcome::Answer { status: 200, body: bytes.to_vec() };
                    self.handle(Event::Http { id: request.id, outcome });
                }
            }
            9 => {
                let epoch = u32::from(self.octets.next());
                let response = pcp::Response {
                    result: ResultCode(self.octets.next() % 3),
                    lifetime: 0,
                    epoch,
                    body: Body::Announce,
                    options: Vec::new(),
                };
                let from = self.octets.one_of(&[self.server, SocketAddr::from(([100, 64, 0, 9], 1))]);
                self.handle(Event::Announcement { from, bytes: &response.to_bytes() });
            }
            10 => self.kernel_answers(),
            11 => {
                let last = self.octets.one_of(&[None, Some(2), Some(2), Some(3)]);
                self.wan(last);
            }
            12 => self.socket_opens(),
            13 => self.search(),
            14 => {
                let shape = self.octets.next();
                let most = usize::from(shape % 12);
                let (pcp, nat_pmp) = (shape & 0x40 == 0, shape & 0x80 == 0);
                let rules: &[&str] = match shape & 0x10 {
                    0 => &[],
                    _ => &[
                        "allow 80 192.168.1.10 8080",
                        "deny 8081 0.0.0.0/0 0-65535 tcp",
                        "deny 0-65535 192.168.1.12 9090",
                    ],
                };
                let rules = rules.iter().map(|rule| rule.parse().expect("they are rules")).collect();
                let default = if shape & 0x20 == 0 { ByDefault::Allow } else { ByDefault::Ask };
                let policy = Policy { mappings_per_host: most, rules, default, ..self.config.policy.clone() };
                self.config = Config { policy, pcp, nat_pmp, ..self.config.clone() };
                self.cards.clear(); // who is looked up depends on the settings
                self.handle(Event::Reconfigure(Box::new(self.config.clone())));
            }
            _ => match self.octets.next() {
                255 => {
                    self.stopping = true;
                    self.handle(Event::Stop);
                }
                number @ 230..=254 => self.step_v6(number),
                number @ 220..=229 => self.decide(number),
                number if !self.lookups.is_empty() => {
                    let addresses = match number & 3 {
                        0 => vec![],
                        1 => vec![Ipv4Addr::new(192, 168, 1, 10)],
                        last => vec![Ipv4Addr::new(203, 0, 113, last)],
                    };
                    let lookup = self.lookups.swap_remove(usize::from(number) % self.lookups.len());
                    self.handle(Event::Resolved { lookup, addresses });
                }
                number => {
                    let request = RequestId(number.into());
                    self.counting.remove(&request);
                    self.handle(Event::Counters { request, counters: Some(Counters::default()) });
                }
            },
        }
    }

    /// The owner decides about a host, or the neighbour table shows its network card.
    fn decide(&mut self, number: u8) {
        let host = IpAddr::from([192, 168, 1, 10 + self.octets.next() % 3]);
        if number == 229 {
            let card = HardwareAddress([2, 0, 0, 0, 0, self.octets.next() % 3]);
            self.cards.insert(host, card);
            return self.gateway.know(host, Known { also: Vec::new(), hardware: Some(card) });
        }
        let verb = [Verb::Allow, Verb::Deny, Verb::Forget][usize::from(number % 3)];
        let device = self.gateway.resolve_device(Device::Address(host));
        self.handle(Event::Consent { device, verb, addresses: vec![host] });
        let asks = self.config.policy.default == ByDefault::Ask;
        if verb == Verb::Deny && asks {
            let left = self.gateway.mappings(self.now).any(|one| IpAddr::V4(*one.internal.ip()) == host);
            assert!(!left, "what a denied host has is given back");
        }
    }

    /// The PCP server answers one of the last requests, as the octets say.
    fn answer(&mut self) {
        let which = usize::from(self.octets.next());
        let Some(request) = self.requests.get(which % self.requests.len().max(1)).cloned() else { return };
        let shape = self.octets.next();
        let result = match shape & 3 {
            3 => ResultCode(self.octets.next() % 32),
            _ => ResultCode::SUCCESS,
        };
        self.answer_with(&request, shape, result);
    }

    fn answer_with(&mut self, request: &pcp::Request, shape: u8, result: ResultCode) {
        let (internal, suggested) = match &request.body {
            Body::Map(map) => (map.internal_port, map.external_port),
            Body::Peer(peer) => (peer.internal_port, peer.external_port),
            _ => return,
        };
        let wish = if suggested < 1024 { 40_000 + internal % 1000 } else { suggested };
        let external_port = if shape & 4 == 0 { wish } else { wish ^ 1 };
        let address = match shape >> 3 & 7 {
            7 => Ipv4Addr::UNSPECIFIED,
            6 => Ipv4Addr::new(198, 51, 100, 2),
            _ => Ipv4Addr::new(198, 51, 100, 1),
        };
        let lifetime = match shape >> 6 {
            0 => request.lifetime.min(3600),
            1 => 120,
            2 => request.lifetime,
            _ => 0,
        };
        let external_addr = address.to_ipv6_mapped();
        let body = match &request.body {
            Body::Map(map) => Body::Map(MapData { external_port, external_addr, ..*map }),
            Body::Peer(peer) => Body::Peer(pcp::PeerData { external_port, external_addr, ..*peer }),
            other => other.clone(),
        };
        let epoch = 1000 + u32::try_from(self.now.as_secs()).unwrap_or(0);
        let response = pcp::Response {
            result,
            lifetime,
            epoch: if shape == 0xa5 { 3 } else { epoch },
            body,
            options: request.options.clone(),
        };
        self.handle(Event::Uplink { from: self.server, bytes: &response.to_bytes() });
    }

    fn kernel_answers(&mut self) {
        if let Some((ticket, outcome)) = self.outcomes.pop_front() {
            self.handle(Event::Nat { ticket, outcome });
        }
        if let Some(request) = self.flows.pop_front() {
            let octet = self.octets.left.first().copied().unwrap_or_default();
            let port = (octet & 1 == 0).then_some(5000 + u16::from(octet % 8));
            self.handle(Event::FlowFound { request, port });
        }
    }

    fn socket_opens(&mut self) {
        let Some(server) = self.opening.take() else { return };
        match self.wan.addresses.first() {
            Some(&addr) => {
                self.open = true;
                self.handle(Event::UplinkOpened { server, source: IpAddr::V4(addr) });
            }
            None => self.handle(Event::UplinkFailed { server, error: "unreachable".to_owned() }),
        }
    }

    fn wan(&mut self, last: Option<u8>) {
        self.wan = Wan { name: "wan0".to_owned(), ..Wan::default() };
        if let Some(last) = last {
            // Every third address is that of another line.
            self.wan.name = if last % 3 == 0 { "wan1" } else { "wan0" }.to_owned();
            self.wan.up = true;
            self.wan.addresses = vec![Ipv4Addr::new(100, 64, 0, last)];
            self.wan.router = Some(self.server.ip());
        }
        self.handle(Event::Wan(self.wan.clone()));
    }

    /// Lets time pass; every timeout comes when it is due.
    fn advance(&mut self, span: Duration) {
        let until = self.now + span;
        let mut here = 0;
        while let Some(next) = self.gateway.next_timeout().filter(|&next| next <= until) {
            here = if next > self.now { 0 } else { here + 1 };
            assert!(here < MAX_TIMEOUTS, "a timeout does not move on");
            self.now = self.now.max(next);
            self.handle(Event::Timeout);
        }
        self.now = until;
    }

    fn handle(&mut self, event: Event<'_>) {
        self.gateway.handle(self.now, event);
        let mut effects = Vec::new();
        while let Some(effect) = self.gateway.poll_effect() {
            effects.push(effect);
            assert!(effects.len() < MAX_EFFECTS, "one event has too many effects");
        }
        let (mut to_answer, mut to_firewall) = (Vec::new(), Vec::new());
        for effect in effects {
            match effect {
                Effect::FirewallUplink(_) | Effect::Firewall { .. } | Effect::ReadPinhole { .. } => {
                    to_firewall.extend(self.perform_v6(effect));
                }
                effect => to_answer.extend(self.perform(effect)),
            }
        }
        if self.router.is_some() && std::mem::take(&mut self.searched) {
            self.router_is_searched();
        }
        if self.helpful {
            if self.router.is_some() {
                self.router_answers(0);
            }
            while !(self.outcomes.is_empty() && self.flows.is_empty()) {
                self.kernel_answers();
            }
            self.socket_opens();
            self.firewall_opens(0);
            for request in to_firewall {
                self.firewall_answers(&request, 0);
            }
            for request in to_answer {
                if self.router.is_none() {
                    self.answer_with(&request, 0, ResultCode::SUCCESS);
                }
            }
        }
    }

    /// Performs an effect; the request, if it is one to the PCP server.
    fn perform(&mut self, effect: Effect) -> Option<pcp::Request> {
        match effect {
            Effect::Reply { request, answer } => {
                assert!(self.asked.remove(&request).is_some(), "{request:?} is answered twice");
                self.counting.remove(&request);
                let text = answer.unwrap_or_else(soap::fault);
                let read = soap::decode_answer(text.as_bytes());
                assert_ne!(read, Err(soap::AnswerError::Malformed), "{text}");
            }
            Effect::ReadCounters { request } => assert!(self.counting.insert(request)),
            Effect::Resolve { lookup, .. } => self.lookups.push(lookup),
            Effect::FindFlow { request, .. } => self.flows.push_back(request),
            Effect::Store(_) | Effect::Changed(_) => {}
            Effect::Subscribed { request, answer } => {
                assert_eq!(self.subscribing.take(), Some(request));
                if let Ok(Some((sid, _))) = answer {
                    self.sids.push(sid);
                }
            }
            Effect::Notify(event) => {
                assert!(event.body.len() < 4096 && event.callbacks.iter().all(|url| url.port == 5000));
                assert!(self.notified.insert(event.sid), "one event of a subscription is on its way");
            }
            Effect::OpenUplink { server } => {
                (self.opening, self.open) = (Some(server), false);
            }
            Effect::CloseUplink => (self.opening, self.open) = (None, false),
            Effect::Send { to, bytes } => {
                // While the next socket is being opened there is none: such a datagram is lost on the way.
                assert!(self.open || self.opening.is_some(), "a datagram without a socket");
                assert!(to == self.server && bytes.len() <= pcp::MAX_LEN);
                let Ok(request) = pcp::Request::parse(&bytes) else {
                    let request = natpmp::Request::parse(&bytes).expect("what is sent is a request");
                    assert_eq!(request.to_bytes(), bytes);
                    return None;
                };
                self.requests.push_front(request.clone());
                self.requests.truncate(REMEMBERED);
                return self.open.then_some(request);
            }
            Effect::Search { bytes, .. } => {
                assert!(ssdp::parse(&bytes).is_ok());
                self.searched = true;
            }
            Effect::EndSearch => {}
            Effect::Http(request) => self.router_is_asked(request),
            Effect::Scout { bytes, .. } => assert!(bytes.len() <= pcp::HEADER_LEN),
            Effect::Ssdp(Outgoing { local, to, bytes, .. }) => {
                assert_eq!(local.is_ipv4(), to.is_ipv4());
                assert!(bytes.len() <= ssdp::MAX_SENT);
                // Every run begins with the same announcements, and would be about little else.
                SEEN.with_borrow_mut(|seen| {
                    if !seen.contains(&bytes) {
                        assert!(ssdp::parse(&bytes).is_ok());
                        if seen.len() < MOST_SEEN {
                            seen.insert(bytes);
                        }
                    }
                });
            }
            Effect::LanSend { bytes, .. } => {
                let is_answer =
                    natpmp::Response::parse(&bytes).is_ok() || pcp::Response::parse(&bytes).is_ok();
                // A refusal of what is no whole request is no whole answer.
                assert!(is_answer || bytes.get(3).is_some_and(|result| *result != 0), "{bytes:?}");
            }
            Effect::FirewallUplink(_) | Effect::Firewall { .. } | Effect::ReadPinhole { .. } => {
                unreachable!("the caller has taken these out")
            }
            Effect::Nat { ticket, change } => {
                let outcome = self.kernel(change);
                self.outcomes.push_back((ticket, outcome));
            }
            Effect::Notice(notice) => assert!(notice.to_string().len() < 2000),
            Effect::Stopped => {
                assert!(self.stopping && !self.stopped, "the gateway stops once, when told to");
                self.stopped = true;
                // What the kernel has not answered by then goes with the whole table.
                self.kernel_failed |= !self.outcomes.is_empty();
                let unanswered = self.asked.keys().find(|&id| !self.counting.contains(id));
                assert_eq!(unanswered, None, "whoever waits is answered before the end");
                self.asked.clear(); // the connections end with the caller
            }
        }
        None
    }

    /// The kernel does as it is told, or fails if an octet says so.
    fn kernel(&mut self, change: NatChange) -> Result<(), NatFailure> {
        if !self.helpful && self.octets.left.first().is_some_and(|octet| octet % 16 == 15) {
            if let NatChange::Reserve { .. } = change {
                return Err(NatFailure::PortInUse);
            }
            self.kernel_failed = true;
            return Err(NatFailure::Kernel("no".to_owned()));
        }
        // Two flows of one port may leave by one port, to several remote hosts.
        let key = |rule: NatRule| (rule.protocol, rule.port, rule.remote_peer);
        let as_it_should = match change {
            NatChange::Reserve { protocol, port, .. } => {
                !self.rules.keys().any(|&(other, by, _)| (other, by) == (protocol, port))
            }
            NatChange::Move { .. } => true,
            NatChange::Install { rule, .. } => self.rules.insert(key(rule), rule).is_none(),
            NatChange::Replace { old, new, .. } => {
                let was = self.rules.remove(&key(old)) == Some(old);
                self.rules.insert(key(new), new).is_none() && was
            }
            NatChange::Remove(rule) => self.rules.remove(&key(rule)) == Some(rule),
        };
        assert!(as_it_should || self.kernel_failed, "{change:?} does not fit {:?}", self.rules);
        Ok(())
    }
}

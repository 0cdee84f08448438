//! The gateway in virtual time, as protocol scenarios: control points on one side, a PCP server on the other, the
//! router's kernel in between, all of them simulated by [`Lab`].

mod actions;
mod alone;
mod arguments;
mod changes;
mod crossings;
mod deployments;
mod eventing;
mod hairpin;
mod isp_router;
mod lan_random;
mod lan_server;
mod life;
mod links;
mod names;
mod nat_pmp;
mod one_host;
mod orphans;
mod peer;
mod pinholes;
mod policy;
mod restart;
mod servers;
mod specific;
mod strategies;
mod suspend;
mod trouble;
mod unreachable;
mod wans;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use wire::description::Uuid;
use wire::pcp::{Body, MapData, Nonce, PcpOption, Protocol, Request, Response, ResultCode};
use wire::services::{Face, Service};
use wire::soap::{self, SoapError, decode_answer, encode_call};

use super::*;
use crate::device::{DeviceConfig, IgdVersion};
use crate::entropy::SeededEntropy;
use crate::gena::{Delivery, Notification};
use crate::journal::{Record, StoredMapping, StoredNonce};
use crate::nat::{NatChange, NatFailure};
use crate::policy::{Decided, Device, Policy};
use crate::provider::{Provider, ProviderConfig, ProviderMapping, Speaks};
use crate::time::Duration;
use crate::uplink::igd_model::IgdModel;
use crate::uplink::{Filtered, HttpId, HttpOutcome, HttpRequest};

/// The router's WAN address.
const W: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// The provider's external address.
const E: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const ALICE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
const BOB: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 11);

fn server() -> SocketAddr {
    "192.0.2.1:5351".parse().unwrap()
}

fn config(nat: NatMode) -> Config {
    Config {
        nat,
        servers: vec![server()],
        ..Config::new(DeviceConfig {
            seed: [7; 16],
            token: [7; 16],
            boot_id: 1,
            friendly_name: "portferry".into(),
            http_port: 5000,
            igd_version: IgdVersion::Auto,
            server: "Linux/6 UPnP/1.1 portferry/0.1".into(),
            version: "0.1".into(),
        })
    }
}

fn lan() -> Vec<LanInterface> {
    let addresses = vec![InterfaceAddress { addr: IpAddr::V4(LAN), prefix_len: 24 }];
    vec![LanInterface { index: 3, name: "lan0".into(), addresses }]
}

fn wan(addresses: &[Ipv4Addr]) -> Wan {
    Wan {
        name: "wan0".into(),
        up: !addresses.is_empty(),
        addresses: addresses.to_vec(),
        addresses_v6: Vec::new(),
        router: Some(server().ip()),
        router_v6: None,
        bits_per_second: Some(1_000_000_000),
        servers: None,
        is_spare: false,
        offered: Vec::new(),
    }
}

/// What the PCP server makes of one MAP request that is not the probe's, in place of its ordinary service.
#[derive(Clone, Copy, Debug)]
enum Reaction {
    /// As the provider does.
    Serve,
    /// The datagram is lost on the way.
    Lose,
    /// The provider does what it does, and its answer is lost.
    LoseAnswer,
    /// An error, and its lifetime.
    Refuse(ResultCode, u32),
    /// A success with this external address and port, whatever was asked.
    Grant(Ipv4Addr, u16),
    /// The same for so many seconds.
    GrantFor(u32, Ipv4Addr, u16),
}

/// What follows from an effect.
enum Next {
    Nat(NatTicket, Result<(), NatFailure>),
    Datagram(SocketAddr, Vec<u8>),
    Opened(SocketAddr),
    Failed(SocketAddr),
    Scouted(SocketAddr, Vec<u8>),
    Counters(RequestId),
    SearchAnswer(SocketAddr, Vec<u8>),
    Http(HttpId, HttpOutcome),
    FirewallOpened(SocketAddr, IpAddr),
    FirewallDatagram(SocketAddr, Vec<u8>),
    PinholeRead(RequestId, Option<u32>),
    FlowFound(RequestId, Option<u16>),
}

/// What a control point hears: the values of the out arguments, or an error code.
type Heard = Result<Vec<String>, u16>;

struct Lab {
    gateway: Gateway,
    /// Milliseconds.
    now: u64,
    /// PCP servers that can be reached.
    providers: BTreeMap<SocketAddr, Provider>,
    /// What becomes of the next MAP requests; when empty, they are served.
    script: VecDeque<Reaction>,
    /// Every datagram to the server is lost.
    silent: bool,
    /// The router's NAT.
    rules: Vec<NatRule>,
    /// By which external address and port the kernel leads LAN hosts to a rule.
    hairpins: BTreeMap<(Protocol, u16), SocketAddrV4>,
    /// Ports that the router's own programs use.
    in_use: Vec<(Protocol, u16)>,
    /// The kernel refuses every change.
    broken: bool,
    /// NAT outcomes wait for [`Lab::release_nat`].
    slow_nat: bool,
    held: Vec<Next>,
    /// No socket can be opened.
    no_socket: bool,
    /// The uplink's socket: the server it leads to.
    socket: Option<SocketAddr>,
    /// Which of the sockets it is; what is on its way to an older one is lost.
    generation: u64,
    /// What delays, doubles and loses the answers of the servers, if anything does.
    weather: Option<SeededEntropy>,
    /// Answers on their way: when they arrive, in which order they were sent, to which socket.
    in_flight: BTreeMap<(u64, u64), (u64, SocketAddr, Vec<u8>)>,
    answers: u64,
    /// The provider knew a client of ours by another nonce than the one it used.
    wrong_nonces: usize,
    source: IpAddr,
    counters: Option<Counters>,
    /// Shell that never tells the counters.
    mute: bool,
    /// Everything that the gateway wanted, and when.
    effects: Vec<(u64, Effect)>,
    heard: BTreeMap<RequestId, Heard>,
    /// What a crash would leave.
    store: BTreeMap<(Protocol, u16), StoredMapping>,
    /// When each of them was stored.
    stored_at: BTreeMap<(Protocol, u16), u64>,
    probe_nonce: Option<StoredNonce>,
    /// What the owner has decided.
    decided: BTreeMap<Device, Decided>,
    filtered: Vec<Filtered>,
    /// Names that the gateway wants looked up.
    lookups: Vec<(LookupId, String)>,
    subscribed: BTreeMap<RequestId, Result<Option<(Uuid, Duration)>, SubscribeError>>,
    /// Events that were sent, and when.
    events: Vec<(u64, Notification)>,
    next_id: u64,
    /// The router in front of us speaks UPnP.
    isp: Option<IgdModel>,
    /// Searches that went out, and where.
    sought: Vec<(SocketAddrV4, Vec<u8>)>,
    follower: changes::Follower,
    pinholes: pinholes::Outside,
    /// What LAN hosts have begun, to whom, and by which port of the WAN address it leaves.
    flows: BTreeMap<(Protocol, SocketAddrV4, SocketAddrV4), u16>,
    /// A shell that does not say.
    blind: bool,
}

impl Lab {
    /// A gateway that knows nothing yet.
    fn new(config: Config) -> Self {
        Self::seeded(config, 1)
    }

    fn seeded(config: Config, seed: u64) -> Self {
        let third_party = config.nat == NatMode::None;
        let settings = ProviderConfig { third_party, ..ProviderConfig::new(E) };
        Self {
            gateway: Gateway::new(config, Box::new(SeededEntropy::new(seed))),
            now: 0,
            providers: BTreeMap::from([(server(), Provider::new(Instant::default(), settings))]),
            script: VecDeque::new(),
            silent: false,
            rules: Vec::new(),
            hairpins: BTreeMap::new(),
            in_use: Vec::new(),
            broken: false,
            slow_nat: false,
            held: Vec::new(),
            no_socket: false,
            socket: None,
            generation: 0,
            weather: None,
            in_flight: BTreeMap::new(),
            answers: 0,
            wrong_nonces: 0,
            source: IpAddr::V4(W),
            counters: Some(Counters::default()),
            mute: false,
            effects: Vec::new(),
            heard: BTreeMap::new(),
            store: BTreeMap::new(),
            stored_at: BTreeMap::new(),
            probe_nonce: None,
            decided: BTreeMap::new(),
            filtered: Vec::new(),
            lookups: Vec::new(),
            subscribed: BTreeMap::new(),
            events: Vec::new(),
            next_id: 0,
            isp: None,
            sought: Vec::new(),
            follower: changes::Follower::default(),
            pinholes: pinholes::Outside::default(),
            flows: BTreeMap::new(),
            blind: false,
        }
    }

    /// A gateway at work: LAN and WAN are up, the probe has told the external address; ten seconds have passed.
    fn up(nat: NatMode) -> Self {
        Self::up_with(config(nat))
    }

    fn up_with(config: Config) -> Self {
        let mut lab = Self::new(config);
        lab.bring_up();
        lab
    }

    fn bring_up(&mut self) {
        self.event(Event::Lan(lan()));
        let IpAddr::V4(source) = self.source else { panic!("the usual WAN has IPv4") };
        self.event(Event::Wan(wan(&[source])));
        self.run(10_000);
        self.effects.clear();
    }

    fn instant(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    fn provider(&mut self) -> &mut Provider {
        self.providers.get_mut(&server()).unwrap()
    }

    /// One turn, and all turns that follow from it at the same moment.
    fn event(&mut self, event: Event<'_>) {
        self.gateway.handle(self.instant(), event);
        let mut queue = VecDeque::new();
        self.perform(&mut queue);
        while let Some(next) = queue.pop_front() {
            self.follow(next);
            self.perform(&mut queue);
        }
    }

    fn follow(&mut self, next: Next) {
        let now = self.instant();
        let counters = self.counters;
        self.gateway.handle(
            now,
            match &next {
                Next::Nat(ticket, outcome) => Event::Nat { ticket: *ticket, outcome: outcome.clone() },
                Next::Datagram(from, bytes) => Event::Uplink { from: *from, bytes },
                Next::Scouted(from, bytes) => Event::Scouted { from: *from, bytes },
                Next::Opened(server) => Event::UplinkOpened { server: *server, source: self.source },
                Next::Failed(server) => Event::UplinkFailed { server: *server, error: "no route".into() },
                Next::SearchAnswer(from, bytes) => Event::SearchAnswer { from: *from, bytes },
                Next::Http(id, outcome) => Event::Http { id: *id, outcome: outcome.clone() },
                Next::Counters(request) => Event::Counters { request: *request, counters },
                Next::FirewallOpened(server, source) => {
                    Event::FirewallUplink(UplinkEvent::Opened { server: *server, source: *source })
                }
                Next::FirewallDatagram(from, bytes) => {
                    Event::FirewallUplink(UplinkEvent::Datagram { from: *from, bytes })
                }
                Next::PinholeRead(request, value) => Event::PinholeRead { request: *request, value: *value },
                Next::FlowFound(request, port) => Event::FlowFound { request: *request, port: *port },
            },
        );
    }

    fn perform(&mut self, queue: &mut VecDeque<Next>) {
        while let Some(effect) = self.gateway.poll_effect() {
            self.effects.push((self.now, effect.clone()));
            match effect {
                Effect::Reply { request, answer } => {
                    let heard = hear(&answer);
                    assert!(self.heard.insert(request, heard).is_none(), "{request:?} is answered once");
                }
                Effect::ReadCounters { request } if !self.mute => queue.push_back(Next::Counters(request)),
                Effect::OpenUplink { server } if self.no_socket => {
                    (self.socket, self.generation) = (None, self.generation + 1);
                    queue.push_back(Next::Failed(server));
                }
                Effect::OpenUplink { server } => {
                    self.socket = Some(server);
                    self.generation += 1;
                    queue.push_back(Next::Opened(server));
                }
                Effect::CloseUplink => {
                    self.socket = None;
                    self.generation += 1;
                }
                Effect::Send { to, bytes } => {
                    assert_eq!(self.socket, Some(to), "only by the open socket");
                    match self.serve(to, &bytes) {
                        Some(answer) if self.weather.is_some() => self.put_in_flight(to, &answer),
                        Some(answer) => queue.push_back(Next::Datagram(to, answer)),
                        None => {}
                    }
                }
                Effect::Scout { to, bytes } => {
                    let firewall = self.pinholes.serve(self.instant(), to, &bytes);
                    let answer = firewall.or_else(|| self.serve(to, &bytes));
                    queue.extend(answer.map(|answer| Next::Scouted(to, answer)));
                }
                Effect::Nat { ticket, change } => {
                    let next = Next::Nat(ticket, self.change_nat(change));
                    if self.slow_nat { self.held.push(next) } else { queue.push_back(next) }
                }
                Effect::FirewallUplink(effect) => {
                    self.pinholes.uplink(Instant::from_millis(self.now), effect, queue);
                }
                Effect::Firewall { ticket, change } => {
                    let next = Next::Nat(ticket, self.pinholes.change(change));
                    if self.slow_nat { self.held.push(next) } else { queue.push_back(next) }
                }
                Effect::ReadPinhole { request, what } => {
                    queue.push_back(Next::PinholeRead(request, self.pinholes.read(what)));
                }
                Effect::FindFlow { request, protocol, internal, remote } if !self.blind => {
                    let port = self.flows.get(&(protocol, internal, remote)).copied();
                    queue.push_back(Next::FlowFound(request, port));
                }
                Effect::Stopped => {
                    assert_eq!(self.gateway.poll_effect(), None, "Stopped is the last effect");
                }
                Effect::Subscribed { request, answer } => {
                    assert!(
                        self.subscribed.insert(request, answer).is_none(),
                        "{request:?} is answered once"
                    );
                }
                Effect::Notify(event) => self.events.push((self.now, event)),
                Effect::Store(record) => self.stored(record),
                Effect::Changed(change) => self.follower.follow(change),
                Effect::Resolve { lookup, name } => self.lookups.push((lookup, name)),
                Effect::Search { to, bytes } => self.seek(to, bytes, queue),
                Effect::Http(request) => self.asked(&request, queue),
                Effect::ReadCounters { .. }
                | Effect::Ssdp(_)
                | Effect::EndSearch
                | Effect::FindFlow { .. }
                | Effect::LanSend { .. }
                | Effect::Notice(_) => {}
            }
        }
        self.follower.check(&self.gateway, self.instant());
        self.check_hairpins();
    }

    /// The router in front answers a search that it is meant by.
    fn seek(&mut self, to: SocketAddrV4, bytes: Vec<u8>, queue: &mut VecDeque<Next>) {
        use wire::ssdp::{Message, Sender, Target, parse, search_response};
        let Ok(Message::Search(search)) = parse(&bytes) else { panic!("we send well-formed searches") };
        self.sought.push((to, bytes));
        let is_igd =
            matches!(&search.target, Target::Device { name, version: 1 } if name == "InternetGatewayDevice");
        if self.isp.is_some() && is_igd && !to.ip().is_multicast() {
            let location = format!("http://{}:5000/desc.xml", to.ip());
            let sender = Sender { location: &location, server: "x", max_age: 1800, boot_id: 1, config_id: 1 };
            let answer = search_response(&sender, &search.target, "uuid:x", None);
            queue.push_back(Next::SearchAnswer(SocketAddr::V4(to), answer.into_bytes()));
        }
    }

    fn asked(&mut self, request: &HttpRequest, queue: &mut VecDeque<Next>) {
        let (now, source) = (self.instant(), self.source);
        let IpAddr::V4(source) = source else { panic!("UPnP is of IPv4") };
        assert_eq!(request.to, SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 5000));
        let outcome = self.isp.as_mut().map_or(HttpOutcome::Failed, |isp| isp.answer(now, source, request));
        queue.push_back(Next::Http(request.id, outcome));
    }

    /// The answer arrives later than others, twice, or never.
    fn put_in_flight(&mut self, from: SocketAddr, answer: &[u8]) {
        let weather = self.weather.as_mut().expect("the caller looked");
        let copies = match weather.up_to(Duration::from_millis(20)).as_millis() {
            0 => 0,
            1 | 2 => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let longest = match weather.up_to(Duration::from_millis(20)).as_millis() {
                0 => 6000,
                1..5 => 1500,
                _ => 60,
            };
            let delay =
                5 + u64::try_from(weather.up_to(Duration::from_millis(longest - 5)).as_millis()).unwrap();
            self.answers += 1;
            let letter = (self.generation, from, answer.to_vec());
            self.in_flight.insert((self.now + delay, self.answers), letter);
        }
    }

    /// When something happens without anybody's doing.
    fn next(&self) -> Option<u64> {
        let timeout = self.gateway.next_timeout().map(Instant::as_millis);
        let arrival = self.in_flight.first_key_value().map(|(&(at, _), _)| at);
        timeout.into_iter().chain(arrival).min()
    }

    fn stored(&mut self, record: Record) {
        match record {
            Record::Put(mapping) => {
                let key = (mapping.protocol, mapping.external.port());
                self.stored_at.insert(key, self.now);
                self.store.insert(key, mapping);
            }
            Record::Move(before, mapping) => {
                self.store.remove(&(mapping.protocol, before));
                self.stored(Record::Put(mapping));
            }
            Record::Remove(protocol, port) => {
                self.store.remove(&(protocol, port));
            }
            Record::Clear => self.store.clear(),
            // Nothing is written: it is the lease that keeps it from coming back.
            Record::Ended(..) => {}
            Record::Probe(nonce) => self.probe_nonce = Some(nonce),
            Record::Filtered(filtered) => self.filtered.push(filtered),
            Record::PutPinhole(pinhole) => drop(self.pinholes.stored.insert(pinhole.id, pinhole)),
            Record::RemovePinhole(id) => drop(self.pinholes.stored.remove(&id)),
            Record::Consent(decided) => drop(self.decided.insert(decided.device, decided)),
            Record::NoConsent(device) => drop(self.decided.remove(&device)),
        }
    }

    /// The kernel, as exact as ours: a rule is removed by itself only.
    fn change_nat(&mut self, change: NatChange) -> Result<(), NatFailure> {
        let refused = Err(NatFailure::Kernel("refused".into()));
        if self.broken {
            return refused;
        }
        let hairpin = match change {
            NatChange::Install { rule, external } | NatChange::Replace { new: rule, external, .. } => {
                Some(((rule.protocol, rule.port), external))
            }
            NatChange::Move { protocol, port, external } => Some(((protocol, port), external)),
            NatChange::Remove(rule) => Some(((rule.protocol, rule.port), None)),
            NatChange::Reserve { .. } => None,
        };
        if let Some((place, external)) = hairpin {
            self.hairpins.remove(&place);
            self.hairpins.extend(external.map(|external| (place, external)));
        }
        match change {
            NatChange::Move { .. } => Ok(()),
            NatChange::Reserve { protocol, port, addr } => {
                assert_eq!(IpAddr::V4(addr), self.source);
                if self.in_use.contains(&(protocol, port)) { Err(NatFailure::PortInUse) } else { Ok(()) }
            }
            NatChange::Install { rule, .. } => {
                let covers = |other: &NatRule| {
                    // Two flows of one port may leave by one port.
                    let peers = [rule.remote_peer, other.remote_peer];
                    let both =
                        peers[0] == peers[1] || peers.contains(&None) || rule.internal != other.internal;
                    (other.protocol, other.port) == (rule.protocol, rule.port) && both
                };
                let taken = self.rules.iter().any(covers);
                assert!(!taken, "{rule:?} would cover another rule");
                self.rules.push(rule);
                Ok(())
            }
            NatChange::Replace { old, new, .. } => match self.rules.iter_mut().find(|rule| **rule == old) {
                Some(rule) => {
                    *rule = new;
                    Ok(())
                }
                None => refused,
            },
            NatChange::Remove(old) => {
                let before = self.rules.len();
                self.rules.retain(|rule| *rule != old);
                assert_eq!(self.rules.len() + 1, before, "{old:?} is there to be removed");
                Ok(())
            }
        }
    }

    fn serve(&mut self, to: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let now = self.instant();
        let from = SocketAddr::from((self.source, 49_152));
        if self.silent {
            return None;
        }
        let provider = self.providers.get_mut(&to)?;
        if bytes.first() == Some(&wire::natpmp::VERSION) || provider.config_mut().speaks != Speaks::Pcp {
            return provider.handle_datagram(now, from, bytes);
        }
        let request = Request::parse(bytes).expect("we send well-formed requests");
        if !matches!(request.body, Body::Map(_)) {
            return provider.handle_datagram(now, from, bytes);
        }
        let reaction = if is_probe(&request) { None } else { self.script.pop_front() };
        let body = |external_port, external_addr: Ipv4Addr| match request.body {
            Body::Map(map) => {
                Body::Map(MapData { external_port, external_addr: external_addr.to_ipv6_mapped(), ..map })
            }
            _ => unreachable!("only MAP comes here"),
        };
        let epoch = u32::try_from(self.now / 1000).unwrap();
        let answer = |result, lifetime, body| {
            let options = request.options.clone();
            Some(Response { result, lifetime, epoch, body, options }.to_bytes())
        };
        match reaction.unwrap_or(Reaction::Serve) {
            Reaction::Serve => {
                let answer = provider.handle_datagram(now, from, bytes);
                let served = answer.as_deref().and_then(|answer| Response::parse(answer).ok());
                let refused = served.is_some_and(|served| served.result == ResultCode::NOT_AUTHORIZED);
                let map = map_of(&request);
                // One that insists on another port than the one whose delete is on its way does not take that over.
                let elsewhere = |m: ProviderMapping| {
                    (m.protocol, m.internal.port()) == (map.protocol, map.internal_port)
                        && m.external.port() != map.external_port
                };
                let insists = request.options.contains(&PcpOption::PreferFailure);
                let meant = request.lifetime == 0 || insists && provider.mappings().any(elsewhere);
                self.wrong_nonces += usize::from(refused && !meant);
                answer
            }
            Reaction::Lose => None,
            Reaction::LoseAnswer => {
                provider.handle_datagram(now, from, bytes);
                None
            }
            Reaction::Refuse(result, lifetime) => answer(result, lifetime, request.body.clone()),
            Reaction::Grant(addr, port) => answer(ResultCode::SUCCESS, 3600, body(port, addr)),
            Reaction::GrantFor(lifetime, addr, port) => {
                answer(ResultCode::SUCCESS, lifetime, body(port, addr))
            }
        }
    }

    /// Lets the NAT's outcomes out.
    fn release_nat(&mut self) {
        for next in std::mem::take(&mut self.held) {
            self.follow(next);
            let mut queue = VecDeque::new();
            self.perform(&mut queue);
            while let Some(next) = queue.pop_front() {
                self.follow(next);
                self.perform(&mut queue);
            }
        }
    }

    /// Lets time pass until `to`, in milliseconds.
    fn run(&mut self, to: u64) {
        let mut turns = 0;
        while let Some(at) = self.next().filter(|&at| at <= to) {
            if at > self.now {
                turns = 0;
            }
            self.now = self.now.max(at);
            match self.in_flight.first_entry().filter(|letter| letter.key().0 <= at) {
                Some(letter) => {
                    let (generation, from, bytes) = letter.remove();
                    if generation == self.generation {
                        self.event(Event::Uplink { from, bytes: &bytes });
                    }
                }
                None => {
                    turns += 1;
                    assert!(turns < 10, "it does not spin");
                    self.event(Event::Timeout);
                }
            }
        }
        self.now = to;
        for provider in self.providers.values_mut() {
            provider.handle_timeout(Instant::from_millis(to));
        }
    }

    /// Lets `secs` seconds pass.
    fn pass(&mut self, secs: u64) {
        self.run(self.now + secs * 1000);
    }

    // Control points

    /// `from` calls an action; the answer comes when it comes.
    fn start(&mut self, from: Ipv4Addr, version: u8, action: &str, args: &[(&str, &str)]) -> RequestId {
        self.start_from(IpAddr::V4(from), &[], version, action, args)
    }

    /// Likewise somebody who has other addresses, too.
    fn start_from(
        &mut self,
        from: IpAddr,
        also: &[IpAddr],
        version: u8,
        action: &str,
        args: &[(&str, &str)],
    ) -> RequestId {
        self.next_id += 1;
        let id = RequestId(self.next_id);
        let service = Service::ALL.into_iter().find(|service| service.action(action).is_some()).unwrap();
        let version = version.min(service.highest_version());
        let service_type = service.service_type(version);
        let face = if version == 1 { Face::V1 } else { Face::V2 };
        let header = format!("\"{service_type}#{action}\"");
        let body = encode_call(&service_type, action, args);
        match soap::decode(service, face, Some(&header), body.as_bytes()) {
            Ok(request) => {
                let also = also.to_vec();
                self.event(Event::Control(ControlRequest { id, from, also, face, request }));
            }
            Err(SoapError::Upnp(error)) => {
                self.heard.insert(id, Err(error.code));
            }
            Err(SoapError::BadRequest) => panic!("{body}"),
        }
        id
    }

    /// `from` calls an action that is answered at once.
    fn call(&mut self, from: Ipv4Addr, version: u8, action: &str, args: &[(&str, &str)]) -> Heard {
        let id = self.start(from, version, action, args);
        self.heard(id).unwrap_or_else(|| panic!("{action} is not answered yet"))
    }

    fn heard(&self, id: RequestId) -> Option<Heard> {
        self.heard.get(&id).cloned()
    }

    fn start_add(&mut self, host: Ipv4Addr, version: u8, add: Add) -> RequestId {
        let action = if add.any { "AddAnyPortMapping" } else { "AddPortMapping" };
        self.start(host, version, action, &borrowed(&add.args(host)))
    }

    fn add(&mut self, host: Ipv4Addr, version: u8, add: Add) -> Heard {
        let id = self.start_add(host, version, add);
        self.heard(id).expect("answered at once")
    }

    fn start_delete(&mut self, host: Ipv4Addr, version: u8, port: u16) -> RequestId {
        self.start(host, version, "DeletePortMapping", &borrowed(&key(port)))
    }

    fn delete(&mut self, host: Ipv4Addr, version: u8, port: u16) -> Heard {
        let id = self.start_delete(host, version, port);
        self.heard(id).expect("answered at once")
    }

    // What is to be seen

    /// What the gateway wanted since the last look, without notices, what followers are told, and what is said by multicast.
    fn seen(&mut self) -> Vec<Effect> {
        let quiet = |effect: &Effect| match effect {
            Effect::Notice(_) | Effect::Changed(_) | Effect::Ssdp(_) => true,
            Effect::LanSend { to, .. } => to.ip().is_multicast(),
            _ => false,
        };
        self.effects.drain(..).map(|(_, effect)| effect).filter(|effect| !quiet(effect)).collect()
    }

    fn notices(&self) -> Vec<Notice> {
        let notice = |effect: &Effect| match effect {
            Effect::Notice(notice) => Some(notice.clone()),
            _ => None,
        };
        self.effects.iter().filter_map(|(_, effect)| notice(effect)).collect()
    }

    /// The MAP requests that went out since the last [`Lab::seen`], but those of the probe; a list is no MAP request.
    fn sent(&self) -> Vec<(u64, Request)> {
        self.all_sent().into_iter().filter(|(_, request)| !is_probe(request)).collect()
    }

    fn all_sent(&self) -> Vec<(u64, Request)> {
        let request = |(at, effect): &(u64, Effect)| match effect {
            Effect::Send { bytes, .. } => Request::parse(bytes).ok().map(|request| (*at, request)),
            _ => None,
        };
        let is_map = |(_, request): &(u64, Request)| matches!(request.body, Body::Map(_));
        self.effects.iter().filter_map(request).filter(is_map).collect()
    }

    /// The provider's mappings but the probe's: external port and internal address and port.
    fn upstream(&self) -> Vec<(u16, SocketAddrV4)> {
        let mappings = self.providers[&server()].mappings();
        mappings.filter(|m| m.internal.port() != 9).map(|m| (m.external.port(), m.internal)).collect()
    }

    /// The gateway's mappings: external port and internal address and port.
    fn mapped(&self) -> Vec<(u16, SocketAddrV4)> {
        let mappings = self.gateway.mappings(self.instant());
        mappings.map(|m| (m.external.port(), m.internal)).collect()
    }

    fn status(&self) -> Status {
        self.gateway.status(self.instant())
    }

    /// ConnectionStatus and ExternalIPAddress, as control points hear them.
    fn connection(&mut self) -> (String, String) {
        let status = self.call(ALICE, 1, "GetStatusInfo", &[]).unwrap().remove(0);
        (status, self.call(ALICE, 1, "GetExternalIPAddress", &[]).unwrap().remove(0))
    }
}

/// The arguments of AddPortMapping and AddAnyPortMapping, with the usual values.
#[derive(Clone, Copy, Debug)]
struct Add {
    any: bool,
    external: u16,
    internal: u16,
    client: Option<Ipv4Addr>,
    lease: u32,
    remote: &'static str,
    description: &'static str,
}

/// AddPortMapping of the same external and internal port for an hour.
fn port(port: u16) -> Add {
    Add {
        any: false,
        external: port,
        internal: port,
        client: None,
        lease: 3600,
        remote: "",
        description: "test",
    }
}

/// AddAnyPortMapping of the same.
fn any(external: u16) -> Add {
    Add { any: true, ..port(external) }
}

impl Add {
    fn to(self, internal: u16) -> Self {
        Self { internal, ..self }
    }

    fn args(self, host: Ipv4Addr) -> Vec<(&'static str, String)> {
        vec![
            ("NewRemoteHost", self.remote.to_owned()),
            ("NewExternalPort", self.external.to_string()),
            ("NewProtocol", "TCP".to_owned()),
            ("NewInternalPort", self.internal.to_string()),
            ("NewInternalClient", self.client.unwrap_or(host).to_string()),
            ("NewEnabled", "1".to_owned()),
            ("NewPortMappingDescription", self.description.to_owned()),
            ("NewLeaseDuration", self.lease.to_string()),
        ]
    }
}

/// The key of a TCP mapping for anybody.
fn key(port: u16) -> Vec<(&'static str, String)> {
    vec![
        ("NewRemoteHost", String::new()),
        ("NewExternalPort", port.to_string()),
        ("NewProtocol", "TCP".to_owned()),
    ]
}

fn borrowed<'a>(args: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    args.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

fn hear(answer: &Result<String, UpnpError>) -> Heard {
    match answer {
        Ok(envelope) => {
            let answer = decode_answer(envelope.as_bytes()).expect("a well-formed answer");
            Ok(answer.values.into_iter().map(|(_, value)| value).collect())
        }
        Err(error) => Err(error.code),
    }
}

fn connected(addr: Ipv4Addr) -> (String, String) {
    ("Connected".into(), addr.to_string())
}

fn done() -> Heard {
    Ok(Vec::new())
}

fn is_probe(request: &Request) -> bool {
    matches!(request.body, Body::Map(map) if map.internal_port == 9)
}

fn map_of(request: &Request) -> MapData {
    match request.body {
        Body::Map(map) => map,
        _ => panic!("{request:?}"),
    }
}

fn at(host: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(host, port)
}

fn tcp(port: u16, internal: SocketAddrV4) -> NatRule {
    NatRule { protocol: Protocol::TCP, port, internal, remote_peer: None }
}

const BOTH: [NatMode; 2] = [NatMode::Own, NatMode::None];

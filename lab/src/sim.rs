//! A world in virtual time: one gateway, the provider's PCP server behind a link that may lose and delay, the router's
//! own NAT, and LAN hosts that speak SOAP and SSDP. Everything is seeded: the same seed is the same run.
//!
//! No socket, thread or clock is used, and nothing sleeps. What a shell must never see of a gateway (two answers to one
//! request, a rule installed twice, a timer that never moves on) is collected in [`World::violations`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use engine::device::{DeviceConfig, IgdVersion};
use engine::entropy::{Entropy, SeededEntropy};
use engine::gateway::{
    Config, ControlRequest, Counters, Effect, Event, Gateway, LanInterface, LookupId, NatMode, NatTicket,
    RequestId, Wan,
};
use engine::nat::{NatChange, NatFailure, NatRule};
use engine::notice::Notice;
use engine::policy::InterfaceAddress;
use engine::provider::{Provider, ProviderConfig};
use engine::time::{Duration, Instant};
use wire::pcp::{self, Body, MapData, NO_ADDR_V4, Nonce, PcpOption, Protocol, ResultCode};
use wire::services::{Face, Service};
use wire::soap::{self, Answer, AnswerError, SoapError};
use wire::ssdp;

/// The gateway's address on the LAN, a /24.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// The router's first address towards the provider.
pub const WAN: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// The provider's PCP server, which is the WAN's default router too.
pub const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(100, 64, 0, 1), pcp::SERVER_PORT);
/// The external address of the provider's NAT.
pub const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// Another subscriber of the same provider.
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 77);

/// The kernel's number of the only LAN interface.
const LAN_INDEX: u32 = 2;
/// How long the kernel takes for a socket, and usually for a rule.
const KERNEL: Duration = Duration::from_millis(1);
/// More turns than this without time passing, and a timer is stuck.
const MAX_TURNS: usize = 20_000;

/// How the link between router and provider treats datagrams, both ways.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// The share that is lost, 0 to 1.
    pub loss: f64,
    /// One way.
    pub delay: Duration,
    /// Up to so much more, so that datagrams overtake each other.
    pub jitter: Duration,
    /// So many of the next ones are lost, whatever `loss` says.
    pub lose_next: u32,
}

/// How the PCP server behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Server {
    /// As [`Provider`] does.
    Serves,
    /// It says nothing, and what reaches it changes nothing.
    Silent,
    /// Every MAP request is refused with this result, for so many seconds; the mappings stay.
    Refuses(ResultCode, u32),
    /// It knows NAT-PMP only and says so in eight octets (RFC 6886 §3.5).
    NatPmpOnly,
}

/// The world before it begins to turn.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The gateway's.
    pub config: Config,
    /// The provider's.
    pub provider: ProviderConfig,
    /// See [`Server`].
    pub server: Server,
    /// See [`Link`].
    pub link: Link,
    /// Ports of the WAN address that the router itself uses.
    pub ports_in_use: BTreeSet<(Protocol, u16)>,
    /// The same seed is the same run.
    pub seed: u64,
}

impl Default for Setup {
    /// A router with a NAT of its own, a well-behaved provider, a link of 10 ms without loss.
    fn default() -> Self {
        let device = DeviceConfig {
            seed: [7; 16],
            token: [7; 16],
            boot_id: 1,
            friendly_name: "Router".to_owned(),
            http_port: 5000,
            igd_version: IgdVersion::Auto,
            server: "Linux/6 UPnP/1.1 portferry/0".to_owned(),
            version: "0".to_owned(),
        };
        let config = Config::new(device);
        let delay = Duration::from_millis(10);
        Self {
            config,
            provider: ProviderConfig::new(EXTERNAL),
            server: Server::Serves,
            link: Link { loss: 0.0, delay, jitter: Duration::ZERO, lose_next: 0 },
            ports_in_use: BTreeSet::new(),
            seed: 1,
        }
    }
}

/// The router's own NAT: what the kernel would hold.
#[derive(Debug)]
pub struct Nat {
    rules: BTreeMap<(Protocol, u16), NatRule>,
    /// Ports of the WAN address that the router itself uses.
    pub ports_in_use: BTreeSet<(Protocol, u16)>,
    /// Every change fails with these words.
    pub broken: Option<String>,
    /// How long the kernel takes to say what became of a change; the change itself is there at once.
    pub takes: Duration,
}

impl Default for Nat {
    fn default() -> Self {
        Self { rules: BTreeMap::new(), ports_in_use: BTreeSet::new(), broken: None, takes: KERNEL }
    }
}

impl Nat {
    /// The rules, by protocol and port of the WAN address.
    pub fn rules(&self) -> impl Iterator<Item = &NatRule> {
        self.rules.values()
    }

    /// The rule of a port of the WAN address.
    #[must_use]
    pub fn rule(&self, protocol: Protocol, port: u16) -> Option<&NatRule> {
        self.rules.get(&(protocol, port))
    }

    /// What the kernel says to `change`, and what is wrong with asking for it.
    fn apply(&mut self, change: NatChange) -> (Result<(), NatFailure>, Option<String>) {
        if let Some(words) = &self.broken {
            return (Err(NatFailure::Kernel(words.clone())), None);
        }
        let key = |rule: NatRule| (rule.protocol, rule.port);
        let wrong = match change {
            NatChange::Reserve { protocol, port, .. } if self.ports_in_use.contains(&(protocol, port)) => {
                return (Err(NatFailure::PortInUse), None);
            }
            NatChange::Reserve { protocol, port, .. } => self
                .rules
                .contains_key(&(protocol, port))
                .then(|| format!("{protocol} {port} reserved while mapped")),
            NatChange::Install(rule) => {
                let old = self.rules.insert(key(rule), rule);
                old.map(|old| format!("{rule:?} installed over {old:?}"))
            }
            NatChange::Replace { old, new } => {
                let there = self.rules.insert(key(new), new);
                (there != Some(old) || key(old) != key(new))
                    .then(|| format!("{old:?} replaced by {new:?}, but there was {there:?}"))
            }
            NatChange::Remove(rule) => {
                let there = self.rules.remove(&key(rule));
                (there != Some(rule)).then(|| format!("{rule:?} removed, but there was {there:?}"))
            }
        };
        (Ok(()), wrong)
    }
}

/// A request to the PCP server as it left the gateway.
#[derive(Clone, Debug)]
pub struct Sent {
    /// When.
    pub at: Instant,
    /// What.
    pub request: pcp::Request,
}

/// The answer to a control request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// When it was asked.
    pub asked_at: Instant,
    /// When it was answered.
    pub at: Instant,
    /// The out arguments, or the error code; 400 for what is no SOAP, 0 for an answer that cannot be read.
    pub answer: Result<Answer, u16>,
}

/// What a LAN host heard in answer to a search.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// The host.
    pub to: SocketAddr,
    /// What.
    pub message: ssdp::Message,
}

/// What is on its way.
#[derive(Debug)]
enum Parcel {
    ToServer { from: SocketAddr, bytes: Vec<u8> },
    ToGateway { socket: u64, bytes: Vec<u8> },
    Announcement(Vec<u8>),
    Opened { server: SocketAddr, socket: u64 },
    Nat { ticket: NatTicket, outcome: Result<(), NatFailure> },
    Resolved(LookupId, String),
    Counters(RequestId),
}

/// See the module's description.
pub struct World {
    now: Instant,
    /// The gateway; its effects are always drained.
    pub gateway: Gateway,
    /// The provider's server and NAT.
    pub provider: Provider,
    /// How the server behaves at the moment.
    pub server: Server,
    /// How the link behaves at the moment.
    pub link: Link,
    /// The router's own NAT.
    pub nat: Nat,
    /// What the resolver knows.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// How long it takes to say so.
    pub resolver_takes: Duration,
    config: Config,
    server_started: Instant,
    wan: Wan,
    /// The uplink's socket: its number, and whether it is there.
    socket: u64,
    open: bool,
    /// A socket was asked for and is not there yet.
    opening: bool,
    parcels: BTreeMap<(Instant, u64), Parcel>,
    next_parcel: u64,
    asked: BTreeMap<RequestId, (Instant, String)>,
    replies: BTreeMap<RequestId, Reply>,
    next_request: u64,
    sent: Vec<Sent>,
    notices: Vec<(Instant, Notice)>,
    heard: Vec<Heard>,
    strangers: BTreeMap<(Protocol, u16), Nonce>,
    stopped: bool,
    entropy: SeededEntropy,
    trace: Vec<(Instant, String)>,
    violations: Vec<String>,
}

impl World {
    /// A world at time 0 whose gateway has just been told of its interfaces; nothing has been delivered yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let Setup { config, provider, server, link, ports_in_use, seed } = setup;
        let now = Instant::default();
        let mut world = Self {
            now,
            gateway: Gateway::new(config.clone(), Box::new(SeededEntropy::new(seed))),
            provider: Provider::new(now, provider),
            server,
            link,
            nat: Nat { ports_in_use, ..Nat::default() },
            names: BTreeMap::new(),
            resolver_takes: KERNEL,
            config,
            server_started: now,
            wan: Wan { name: "wan0".to_owned(), ..Wan::default() },
            socket: 0,
            open: false,
            opening: false,
            parcels: BTreeMap::new(),
            next_parcel: 0,
            asked: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_request: 0,
            sent: Vec::new(),
            notices: Vec::new(),
            heard: Vec::new(),
            strangers: BTreeMap::new(),
            stopped: false,
            entropy: SeededEntropy::new(seed ^ 0x5eed),
            trace: Vec::new(),
            violations: Vec::new(),
        };
        let link = InterfaceAddress { addr: IpAddr::V4(GATEWAY), prefix_len: 24 };
        let lan = LanInterface { index: LAN_INDEX, name: "lan0".to_owned(), addresses: vec![link] };
        world.handle(Event::Lan(vec![lan]));
        world.wan_up(WAN);
        world
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The gateway's settings as they are now.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every datagram that the gateway sent to the PCP server.
    #[must_use]
    pub fn sent(&self) -> &[Sent] {
        &self.sent
    }

    /// Everything that the person who runs the router was told.
    #[must_use]
    pub fn notices(&self) -> &[(Instant, Notice)] {
        &self.notices
    }

    /// Every answer to a search.
    #[must_use]
    pub fn heard(&self) -> &[Heard] {
        &self.heard
    }

    /// What must never happen, in words.
    #[must_use]
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// What has happened so far, a line each.
    #[must_use]
    pub fn trace(&self) -> &[(Instant, String)] {
        &self.trace
    }

    /// Whether the gateway has come to its end.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// The router's address towards the provider, if it has one.
    #[must_use]
    pub fn wan_address(&self) -> Option<Ipv4Addr> {
        self.wan.addresses.first().copied()
    }

    /// Writes a line into the trace.
    pub fn note(&mut self, line: impl Display) {
        self.trace.push((self.now, line.to_string()));
    }

    /// Lets `span` pass.
    pub fn run(&mut self, span: Duration) {
        self.run_until(self.now + span);
    }

    /// Lets time pass until `until`.
    pub fn run_until(&mut self, until: Instant) {
        let mut turns = 0;
        while let Some(next) = self.next_due().filter(|&next| next <= until) {
            turns = if next > self.now { 0 } else { turns + 1 };
            if turns > MAX_TURNS {
                return self.violation(format!("{MAX_TURNS} turns without time passing"));
            }
            self.now = self.now.max(next);
            self.turn();
        }
        self.now = self.now.max(until);
    }

    /// Lets time pass until the request is answered, or until `until`.
    pub fn run_until_reply(&mut self, id: RequestId, until: Instant) -> Option<Reply> {
        while !self.replies.contains_key(&id) {
            match self.next_due().filter(|&next| next <= until) {
                Some(next) => self.run_until(self.now.max(next)),
                None => break,
            }
            if !self.violations.is_empty() {
                break;
            }
        }
        self.replies.get(&id).cloned()
    }

    fn next_due(&self) -> Option<Instant> {
        let parcel = self.parcels.first_key_value().map(|(&(at, _), _)| at);
        [parcel, self.provider.next_timeout(), self.gateway.next_timeout()].into_iter().flatten().min()
    }

    /// One thing that is due: a parcel, the provider's timer, the gateway's timer, in this order.
    fn turn(&mut self) {
        if let Some(entry) = self.parcels.first_entry().filter(|entry| entry.key().0 <= self.now) {
            let parcel = entry.remove();
            self.deliver(parcel);
        } else if self.provider.next_timeout().is_some_and(|at| at <= self.now) {
            self.provider.handle_timeout(self.now);
        } else {
            self.handle(Event::Timeout);
        }
        while let Some(event) = self.provider.poll_event() {
            let (word, mapping) = match &event {
                engine::provider::NatEvent::Opened(mapping) => ("opens", mapping),
                engine::provider::NatEvent::Closed(mapping) => ("closes", mapping),
            };
            let line =
                format!("provider {word} {} {} -> {}", mapping.protocol, mapping.external, mapping.internal);
            self.note(line);
        }
    }

    fn post(&mut self, after: Duration, parcel: Parcel) {
        self.next_parcel += 1;
        self.parcels.insert((self.now + after, self.next_parcel), parcel);
    }

    /// Sends by the link, which may lose it.
    fn post_by_link(&mut self, parcel: Parcel) {
        let unlucky = self.entropy.unit() < self.link.loss;
        let delay = self.link.delay + self.entropy.up_to(self.link.jitter);
        if self.link.lose_next > 0 || unlucky {
            self.link.lose_next = self.link.lose_next.saturating_sub(1);
            return self.note("the link loses it");
        }
        self.post(delay, parcel);
    }

    fn deliver(&mut self, parcel: Parcel) {
        let server = SocketAddr::V4(SERVER);
        match parcel {
            Parcel::ToServer { from, bytes } => {
                if let Some(answer) = self.serve(from, &bytes) {
                    self.post_by_link(Parcel::ToGateway { socket: self.socket, bytes: answer });
                }
            }
            Parcel::ToGateway { socket, bytes } => {
                let line = pcp::Response::parse(&bytes)
                    .map_or_else(|_| format!("<- {bytes:?}"), |response| format!("<- {response}"));
                self.note(line);
                if self.open && socket == self.socket {
                    self.handle(Event::Uplink { from: server, bytes: &bytes });
                }
            }
            Parcel::Announcement(bytes) if self.wan.up => {
                self.note("<- ANNOUNCE by multicast");
                self.handle(Event::Announcement { from: server, bytes: &bytes });
            }
            Parcel::Announcement(_) => {}
            Parcel::Opened { server, socket } if socket == self.socket => match self.wan_address() {
                Some(addr) => {
                    (self.open, self.opening) = (true, false);
                    self.handle(Event::UplinkOpened { server, source: IpAddr::V4(addr) });
                }
                None => {
                    self.handle(Event::UplinkFailed { server, error: "network is unreachable".to_owned() });
                }
            },
            Parcel::Opened { .. } => {}
            Parcel::Nat { ticket, outcome } => self.handle(Event::Nat { ticket, outcome }),
            Parcel::Resolved(lookup, name) => {
                let addresses = self.names.get(&name).cloned().unwrap_or_default();
                self.handle(Event::Resolved { lookup, addresses });
            }
            Parcel::Counters(request) => {
                self.handle(Event::Counters { request, counters: Some(Counters::default()) });
            }
        }
    }

    fn serve(&mut self, from: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let epoch = u32::try_from((self.now - self.server_started).as_secs()).unwrap_or(u32::MAX);
        match self.server {
            Server::Serves => self.provider.handle_datagram(self.now, from, bytes),
            Server::Silent => None,
            Server::Refuses(result, lifetime) => Some(pcp::error_response(bytes, result, lifetime, epoch)),
            Server::NatPmpOnly => {
                let mut answer = vec![0, 128, 0, 1];
                answer.extend(epoch.to_be_bytes());
                Some(answer)
            }
        }
    }

    fn handle(&mut self, event: Event<'_>) {
        self.gateway.handle(self.now, event);
        while let Some(effect) = self.gateway.poll_effect() {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { request, answer } => self.on_reply(request, answer),
            Effect::ReadCounters { request } => self.post(KERNEL, Parcel::Counters(request)),
            Effect::Resolve { lookup, name } => {
                self.post(self.resolver_takes, Parcel::Resolved(lookup, name));
            }
            Effect::OpenUplink { server } => {
                self.socket += 1;
                (self.open, self.opening) = (false, true);
                self.post(KERNEL, Parcel::Opened { server, socket: self.socket });
            }
            Effect::CloseUplink => {
                self.socket += 1;
                (self.open, self.opening) = (false, false);
            }
            Effect::Send { to, bytes } => self.on_send(to, bytes),
            // Announcements come all day long, and are for the engine's own tests to read.
            Effect::Ssdp { to, bytes, .. } if to.ip().is_multicast() && bytes.len() <= ssdp::MAX_SENT => {}
            Effect::Ssdp { to, bytes, .. } => match ssdp::parse(&bytes) {
                Ok(message) if bytes.len() <= ssdp::MAX_SENT => {
                    self.heard.push(Heard { at: self.now, to, message });
                }
                _ => self.violation(format!("{} octets that are no SSDP sent to {to}", bytes.len())),
            },
            Effect::Nat { ticket, change } => {
                let (outcome, wrong) = self.nat.apply(change);
                let line = format!("NAT1 {} {}", described(change), outcome_words(&outcome));
                self.note(line);
                if let Some(wrong) = wrong {
                    self.violation(wrong);
                }
                self.post(self.nat.takes, Parcel::Nat { ticket, outcome });
            }
            Effect::Subscribed { .. } | Effect::Notify(_) => {
                self.violation("an event, though no host of this world subscribes".to_owned());
            }
            Effect::Store(_) => {}
            Effect::Notice(notice) => {
                let line = format!("notice: {notice}");
                self.note(line);
                self.notices.push((self.now, notice));
            }
            Effect::Stopped => {
                self.stopped = true;
                self.note("the gateway has stopped");
            }
        }
    }

    fn on_send(&mut self, to: SocketAddr, bytes: Vec<u8>) {
        let (Ok(request), true) = (pcp::Request::parse(&bytes), bytes.len() <= pcp::MAX_LEN) else {
            return self.violation(format!("{} octets that are no PCP request sent to {to}", bytes.len()));
        };
        let line = format!("-> {request}");
        self.note(line);
        self.sent.push(Sent { at: self.now, request });
        let (true, Some(addr)) = (self.open, self.wan_address()) else {
            // While the next socket is being opened there is none: lost on the way.
            if !self.opening {
                self.violation(format!("a datagram to {to} without a socket"));
            }
            return;
        };
        let from = SocketAddr::new(IpAddr::V4(addr), 50_000);
        if to == SocketAddr::V4(SERVER) {
            self.post_by_link(Parcel::ToServer { from, bytes });
        }
    }

    fn on_reply(&mut self, id: RequestId, answer: Result<String, wire::error::UpnpError>) {
        let Some((asked_at, who)) = self.asked.remove(&id) else {
            return self
                .violation(format!("an answer to {id:?}, which is answered already or was never asked"));
        };
        let text = answer.unwrap_or_else(soap::fault);
        let answer = soap::decode_answer(text.as_bytes()).map_err(|error| match error {
            AnswerError::Fault { code, .. } => code,
            AnswerError::Malformed => 0,
        });
        if answer == Err(0) {
            self.violation(format!("an answer that cannot be read: {text}"));
        }
        let line = match &answer {
            Ok(answer) => {
                let values: Vec<String> =
                    answer.values.iter().map(|(name, value)| format!(" {name}={value:?}")).collect();
                format!("{who}: ok{}", values.concat())
            }
            Err(code) => format!("{who}: error {code}"),
        };
        self.note(line);
        self.replies.insert(id, Reply { asked_at, at: self.now, answer });
    }

    fn violation(&mut self, words: String) {
        self.note(format!("VIOLATION: {words}"));
        self.violations.push(words);
    }

    /// A control point calls an action of `service`, speaking `version` of it.
    pub fn call(
        &mut self,
        from: Ipv4Addr,
        service: Service,
        version: u8,
        action: &str,
        args: &[(&str, &str)],
    ) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let service_type = service.service_type(version);
        let body = soap::encode_call(&service_type, action, args);
        let header = format!("\"{service_type}#{action}\"");
        let face = if version < 2 { Face::V1 } else { Face::V2 };
        self.asked.insert(id, (self.now, from.to_string()));
        match soap::decode(service, face, Some(&header), body.as_bytes()) {
            Ok(request) => {
                self.handle(Event::Control(ControlRequest { id, from: IpAddr::V4(from), face, request }));
            }
            Err(SoapError::Upnp(error)) => self.on_reply(id, Err(error)),
            Err(SoapError::BadRequest) => {
                self.asked.remove(&id);
                self.replies.insert(id, Reply { asked_at: self.now, at: self.now, answer: Err(400) });
            }
        }
        id
    }

    /// A control point searches; the answers come to [`World::heard`].
    pub fn search(&mut self, from: SocketAddrV4, target: &ssdp::Target, mx: u8) {
        let text = ssdp::search(ssdp::HOST_V4, target, Some(mx));
        self.note(format!("{from} searches for {target}"));
        let from = SocketAddr::V4(from);
        self.handle(Event::Ssdp { interface: LAN_INDEX, from, bytes: text.as_bytes() });
    }

    /// The WAN interface comes up with this address, the provider's server being its default router.
    pub fn wan_up(&mut self, addr: Ipv4Addr) {
        self.note(format!("WAN up with {addr}"));
        self.wan = Wan {
            up: true,
            addresses: vec![addr],
            router: Some(IpAddr::V4(*SERVER.ip())),
            ..self.wan.clone()
        };
        self.handle(Event::Wan(self.wan.clone()));
    }

    /// The WAN interface goes down and loses its address.
    pub fn wan_down(&mut self) {
        self.note("WAN down");
        self.wan = Wan { name: self.wan.name.clone(), ..Wan::default() };
        self.handle(Event::Wan(self.wan.clone()));
    }

    /// The gateway has other settings from now on.
    pub fn reconfigure(&mut self, config: Config) {
        self.config = config.clone();
        self.handle(Event::Reconfigure(Box::new(config)));
    }

    /// The gateway is to take everything back and stop.
    pub fn stop(&mut self) {
        self.handle(Event::Stop);
    }

    /// The PCP server restarts without its mappings, and says so by multicast if `announced`.
    pub fn lose_state(&mut self, announced: bool) {
        self.note("the provider loses its state");
        self.server_started = self.now;
        let announcement = self.provider.lose_state(self.now);
        if announced && self.server != Server::Silent {
            self.post_by_link(Parcel::Announcement(announcement));
        }
    }

    /// Another subscriber takes an external port; false when it cannot be had.
    pub fn occupy(&mut self, protocol: Protocol, port: u16, lifetime: u32) -> bool {
        let mut nonce = Nonce([0; 12]);
        self.entropy.fill(&mut nonce.0);
        self.strangers.insert((protocol, port), nonce);
        self.ask_as_stranger(protocol, port, nonce, lifetime)
    }

    /// That subscriber gives the port back.
    pub fn vacate(&mut self, protocol: Protocol, port: u16) -> bool {
        let nonce = self.strangers.remove(&(protocol, port));
        nonce.is_some_and(|nonce| self.ask_as_stranger(protocol, port, nonce, 0))
    }

    fn ask_as_stranger(&mut self, protocol: Protocol, port: u16, nonce: Nonce, lifetime: u32) -> bool {
        let (external_port, options) =
            if lifetime == 0 { (0, vec![]) } else { (port, vec![PcpOption::PreferFailure]) };
        let data = MapData { nonce, protocol, internal_port: port, external_port, external_addr: NO_ADDR_V4 };
        let client_addr = pcp::mapped(STRANGER);
        let request = pcp::Request { lifetime, client_addr, body: Body::Map(data), options };
        let from = SocketAddr::new(IpAddr::V4(STRANGER), 50_000);
        let answer = self.provider.handle_datagram(self.now, from, &request.to_bytes());
        let response = answer.and_then(|bytes| pcp::Response::parse(&bytes).ok());
        response.is_some_and(|response| response.result == ResultCode::SUCCESS)
    }

    /// Where a packet from `remote` to this port of the provider's external address ends up.
    #[must_use]
    pub fn reach(&self, protocol: Protocol, port: u16, remote: Ipv4Addr) -> Option<SocketAddrV4> {
        let mapping = self.provider.mappings().find(|mapping| {
            mapping.protocol == protocol && mapping.external.port() == port && mapping.lets_in(remote)
        })?;
        if self.config.nat == NatMode::None {
            return Some(mapping.internal);
        }
        if Some(*mapping.internal.ip()) != self.wan_address() {
            return None;
        }
        let rule = self.nat.rule(protocol, mapping.internal.port())?;
        rule.remote_peer.is_none_or(|peer| peer == remote).then_some(rule.internal)
    }
}

fn described(change: NatChange) -> String {
    let rule = |rule: NatRule| format!("{} {} -> {}", rule.protocol, rule.port, rule.internal);
    match change {
        NatChange::Reserve { protocol, port, .. } => format!("reserves {protocol} {port}"),
        NatChange::Install(new) => format!("installs {}", rule(new)),
        NatChange::Replace { new, .. } => format!("repoints {}", rule(new)),
        NatChange::Remove(old) => format!("removes {}", rule(old)),
    }
}

fn outcome_words(outcome: &Result<(), NatFailure>) -> String {
    match outcome {
        Ok(()) => String::new(),
        Err(failure) => format!("FAILS: {failure:?}"),
    }
}

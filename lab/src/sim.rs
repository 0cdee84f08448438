//! A world in virtual time: one gateway, the provider's PCP server behind a link that may lose and delay, the router's
//! own NAT, and LAN hosts that speak SOAP and SSDP. Everything is seeded: the same seed is the same run.
//!
//! No socket, thread or clock is used, and nothing sleeps. What a shell must never see of a gateway (two answers to one
//! request, a rule installed twice, a timer that never moves on) is collected in [`World::violations`].

mod clients;
mod disk;
mod follower;
mod hosts;
mod ipv6;
mod nat;
mod subscribers;
mod tamper;
mod upstream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use engine::device::{DeviceConfig, IgdVersion};
use engine::entropy::SeededEntropy;
use engine::gateway::{Config, Counters, Effect, Event, Gateway, LookupId, NatTicket, RequestId, Wan};
use engine::gena::{Delivery, SubscribeError};
use engine::nat::NatFailure;
use engine::notice::Notice;
use engine::provider::{Provider, ProviderConfig};
use engine::ssdp::Outgoing;
use engine::time::{Duration, Instant};
use wire::description::Uuid;
use wire::error::UpnpError;
use wire::natpmp;
use wire::pcp::{self, Nonce, Protocol};
use wire::ssdp;

pub use clients::{Flow, LanAnswer};
use disk::{Disk, Installation};
use follower::Follower;
pub use hosts::{Heard, Reply};
use ipv6::Ipv6;
pub use ipv6::{GATEWAY_V6, WAN_V6};
pub use nat::Nat;
use nat::{described, outcome_words};
pub use subscribers::{Callback, Subscription, Told};
use tamper::Tamper;
pub use upstream::{Answered, Dropped, Link, Sent, Server};

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

/// How the router comes by any other WAN address than [`WAN`].
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SecondLine {
    /// Its one line has another address then.
    #[default]
    None,
    /// It has another line, as good as the first one, and one of them is up at a time.
    Equal,
    /// The other line is its spare one.
    Spare,
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
    /// See [`SecondLine`].
    pub second_line: SecondLine,
    /// Ports of the WAN address that the router itself uses.
    pub ports_in_use: BTreeSet<(Protocol, u16)>,
    /// What the resolver knows.
    pub names: BTreeMap<String, Vec<Ipv4Addr>>,
    /// How long it takes to say so.
    pub resolver_takes: Duration,
    /// There is IPv6; and a firewall of the provider's that speaks PCP.
    pub ipv6: (bool, bool),
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
            link: Link { loss: 0.0, delay, jitter: Duration::ZERO, lose_next: 0, doubled: 0.0 },
            second_line: SecondLine::None,
            ports_in_use: BTreeSet::new(),
            names: BTreeMap::new(),
            resolver_takes: KERNEL,
            ipv6: (false, false),
            seed: 1,
        }
    }
}

/// What is on its way.
#[derive(Clone, Debug)]
enum Parcel {
    ToServer { sent: Instant, socket: u64, from: SocketAddr, bytes: Vec<u8> },
    ToGateway { issued: Instant, socket: u64, bytes: Vec<u8> },
    Announcement(Vec<u8>),
    Opened { server: SocketAddr, socket: u64 },
    Nat { ticket: NatTicket, outcome: Result<(), NatFailure> },
    Resolved(LookupId, String),
    Counters(RequestId),
    StoreRetry,
    Event { sid: Uuid, seq: u32, values: Vec<(String, String)>, delivery: Delivery },
    Scouted { from: SocketAddr, bytes: Vec<u8> },
    FirewallOpened(SocketAddr),
    ToFirewall(Vec<u8>),
    PinholeRead { request: RequestId, value: Option<u32> },
}

/// What the gateway says to the world, in its order.
#[derive(Clone, Debug)]
pub enum Happening {
    /// A control request is answered: see [`World::reply`].
    Answered(RequestId),
    /// The person who runs the router is told.
    Noticed(Box<Notice>),
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
    second_line: SecondLine,
    /// The uplink's socket: its number, and whether it is there.
    socket: u64,
    open: bool,
    /// A socket was asked for and is not there yet.
    opening: bool,
    /// The address of the last one, and when it was another one than that of the one before.
    source: Option<Ipv4Addr>,
    readdressed: Instant,
    parcels: BTreeMap<(Instant, u64), Parcel>,
    next_parcel: u64,
    asked: BTreeMap<RequestId, (Instant, String)>,
    replies: BTreeMap<RequestId, Reply>,
    next_request: u64,
    sent: Vec<Sent>,
    notices: Vec<(Instant, Notice)>,
    heard: Vec<Heard>,
    strangers: BTreeMap<(Protocol, u16), Nonce>,
    happenings: Vec<Happening>,
    answers: Vec<Answered>,
    dropped: Vec<Dropped>,
    wrong_nonces: Vec<Sent>,
    troubled: Instant,
    announced: Instant,
    disk: Disk,
    /// Nothing can be written to it.
    full: bool,
    /// Something of this turn could not be stored; everything is again.
    store_failed: bool,
    storing_works: bool,
    /// So many times everything stored was lost: each time it is another installation.
    installation: u64,
    alive: bool,
    /// The gateway is killed after so many more effects.
    fuse: Option<u32>,
    starts: u32,
    /// Changes of the router's own NAT whose outcome is not told yet.
    tickets: BTreeSet<NatTicket>,
    /// When the last of them is told.
    nat_told: Instant,
    /// Those that failed, to be told before anything else happens.
    nat_refusals: VecDeque<(NatTicket, Result<(), NatFailure>)>,
    /// Flows that hosts have begun, the ports by which they leave, and what is to be told of them.
    flows: BTreeMap<Flow, u16>,
    found_flows: VecDeque<(RequestId, Option<u16>)>,
    lan_answers: Vec<LanAnswer>,
    v6: Ipv6,
    tamper: Tamper,
    /// The most effects that one event has had.
    most_effects: usize,
    subscriptions: BTreeMap<Uuid, Subscription>,
    gena_answers: BTreeMap<RequestId, Result<Option<(Uuid, Duration)>, SubscribeError>>,
    /// Who knows nothing but what the gateway tells of changes.
    follower: Follower,
    stopped: bool,
    entropy: SeededEntropy,
    trace: Vec<(Instant, String)>,
    violations: Vec<String>,
}

impl World {
    /// A world at time 0 whose gateway has just been told of its interfaces; nothing has been delivered yet.
    #[must_use]
    pub fn new(setup: Setup) -> Self {
        let Setup {
            config, provider, server, link, second_line, ports_in_use, names, resolver_takes, ..
        } = setup;
        let ((is_there, firewall), seed) = (setup.ipv6, setup.seed);
        let now = Instant::default();
        let mut world = Self {
            now,
            gateway: Gateway::new(config.clone(), Box::new(Installation::new(0, seed))),
            provider: Provider::new(now, provider),
            server,
            link,
            nat: Nat::new(ports_in_use),
            names,
            resolver_takes,
            config,
            server_started: now,
            wan: Wan { name: "wan0".to_owned(), ..Wan::default() },
            second_line,
            socket: 0,
            open: false,
            opening: false,
            source: None,
            readdressed: now,
            parcels: BTreeMap::new(),
            next_parcel: 0,
            asked: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_request: 0,
            sent: Vec::new(),
            notices: Vec::new(),
            heard: Vec::new(),
            strangers: BTreeMap::new(),
            happenings: Vec::new(),
            answers: Vec::new(),
            dropped: Vec::new(),
            wrong_nonces: Vec::new(),
            troubled: now,
            announced: now,
            disk: Disk::default(),
            full: false,
            store_failed: false,
            storing_works: false,
            installation: 0,
            alive: true,
            fuse: None,
            starts: 0,
            tickets: BTreeSet::new(),
            nat_told: now,
            nat_refusals: VecDeque::new(),
            flows: BTreeMap::new(),
            found_flows: VecDeque::new(),
            lan_answers: Vec::new(),
            v6: Ipv6::new(is_there, firewall),
            tamper: Tamper::default(),
            most_effects: 0,
            subscriptions: BTreeMap::new(),
            gena_answers: BTreeMap::new(),
            follower: Follower::default(),
            stopped: false,
            entropy: SeededEntropy::new(seed ^ 0x5eed),
            trace: Vec::new(),
            violations: Vec::new(),
        };
        world.wan = world.wan_with(WAN);
        world.note(format!("WAN up with {WAN}"));
        world.tell_interfaces();
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

    /// Everything that the gateway answered and told, in its order.
    #[must_use]
    pub fn happenings(&self) -> &[Happening] {
        &self.happenings
    }

    /// Whether the router's own NAT has said what became of every change.
    #[must_use]
    pub fn nat_is_quiet(&self) -> bool {
        self.tickets.is_empty()
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

    /// When the gateway last had a socket with another address than the one before.
    #[must_use]
    pub fn readdressed(&self) -> Instant {
        self.readdressed
    }

    /// Writes a line into the trace.
    pub fn note(&mut self, line: impl Display) {
        self.trace.push((self.now, line.to_string()));
    }

    /// The most effects that one event has had so far.
    #[must_use]
    pub fn most_effects(&self) -> usize {
        self.most_effects
    }

    /// One thing that is due until then happens, and time moves on to it; false when there is none, and it is `until`.
    pub fn turn_until(&mut self, until: Instant) -> bool {
        match self.next_due().filter(|&next| next <= until) {
            Some(next) => {
                self.now = self.now.max(next);
                self.turn();
                true
            }
            None => {
                self.now = self.now.max(until);
                false
            }
        }
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

    /// When something happens without anybody's doing.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        let parcel = self.parcels.first_key_value().map(|(&(at, _), _)| at);
        let gateway = self.gateway.next_timeout().filter(|_| self.alive);
        [parcel, self.provider.next_timeout(), gateway].into_iter().flatten().min()
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
            let (word, it) = match &event {
                engine::provider::NatEvent::Opened(it) => ("opens", it),
                engine::provider::NatEvent::Closed(it) => ("closes", it),
            };
            let internal = SocketAddr::new(it.inside.addr, it.internal_port);
            let line = format!("provider {word} {} {} -> {internal}", it.protocol, it.external);
            self.note(line);
        }
    }

    fn post(&mut self, after: Duration, parcel: Parcel) {
        self.next_parcel += 1;
        self.parcels.insert((self.now + after, self.next_parcel), parcel);
    }

    fn deliver(&mut self, parcel: Parcel) {
        let server = SocketAddr::V4(SERVER);
        match parcel {
            Parcel::ToServer { sent, socket, from, bytes } => self.on_arrival(sent, socket, from, &bytes),
            Parcel::ToGateway { issued, socket, bytes } => {
                let response = pcp::Response::parse(&bytes);
                match (&response, natpmp::Response::parse(&bytes)) {
                    (Ok(response), _) => self.note(format!("<- {response}")),
                    (Err(_), Ok(response)) => self.note(format!("<- {response}")),
                    _ => self.note(format!("<- {bytes:?}")),
                }
                if self.open && socket == self.socket {
                    if let Ok(response) = response {
                        self.answers.push(Answered { issued, at: self.now, response });
                    }
                    self.handle(Event::Uplink { from: server, bytes: &bytes });
                } else {
                    self.troubled = self.now;
                }
            }
            Parcel::Announcement(bytes) if self.wan.up => {
                self.note("<- ANNOUNCE by multicast");
                if self.open {
                    self.announced = self.now;
                }
                self.handle(Event::Announcement { from: server, bytes: &bytes });
            }
            Parcel::Announcement(_) => {}
            Parcel::Opened { server, socket } if socket == self.socket => match self.wan_address() {
                Some(addr) => {
                    (self.open, self.opening) = (true, false);
                    if self.source.replace(addr) != Some(addr) {
                        self.readdressed = self.now;
                    }
                    self.handle(Event::UplinkOpened { server, source: IpAddr::V4(addr) });
                }
                None => {
                    self.handle(Event::UplinkFailed { server, error: "network is unreachable".to_owned() });
                }
            },
            Parcel::Opened { .. } => {}
            Parcel::Nat { ticket, outcome } => {
                self.tickets.remove(&ticket);
                self.handle(Event::Nat { ticket, outcome });
            }
            Parcel::Resolved(lookup, name) => {
                let addresses = self.names.get(&name).cloned().unwrap_or_default();
                self.handle(Event::Resolved { lookup, addresses });
            }
            Parcel::StoreRetry => self.retry_to_store(),
            Parcel::Event { sid, seq, values, delivery } => self.on_event(sid, seq, values, delivery),
            Parcel::Counters(request) => {
                self.handle(Event::Counters { request, counters: Some(Counters::default()) });
            }
            Parcel::Scouted { .. }
            | Parcel::FirewallOpened(_)
            | Parcel::ToFirewall(_)
            | Parcel::PinholeRead { .. } => self.deliver_v6(parcel),
        }
    }

    fn handle(&mut self, event: Event<'_>) {
        if !self.alive {
            return;
        }
        self.gateway.handle(self.now, event);
        let mut effects = 0;
        while let Some(effect) = self.gateway.poll_effect() {
            effects += 1;
            self.most_effects = self.most_effects.max(effects);
            match &mut self.fuse {
                Some(0) => return self.kill(),
                Some(left) => *left -= 1,
                None => {}
            }
            self.perform(effect);
        }
        if let Some(wrong) = self.follower.error(&self.gateway, self.now) {
            self.violation(format!("who follows the mappings is wrong: {wrong}"));
        }
        if std::mem::take(&mut self.store_failed) {
            return self.handle(Event::StoreFailed("no space left".to_owned()));
        }
        if std::mem::take(&mut self.storing_works) {
            return self.handle(Event::StoreWorks);
        }
        if let Some((request, port)) = self.found_flows.pop_front() {
            return self.handle(Event::FlowFound { request, port });
        }
        if let Some((ticket, outcome)) = self.nat_refusals.pop_front() {
            self.handle(Event::Nat { ticket, outcome });
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Reply { request, answer } => {
                // A success counts on what was stored.
                let failed = self.store_failed;
                self.on_reply(
                    request,
                    if failed { answer.and(Err(UpnpError::ACTION_FAILED)) } else { answer },
                );
            }
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
            // No router of these networks speaks UPnP.
            Effect::Search { .. } | Effect::EndSearch | Effect::Http(_) => {}
            Effect::LanSend { to, bytes, .. } => self.on_lan_send(to, bytes),
            Effect::FindFlow { request, protocol, internal, remote } => {
                let port = self.flows.get(&(protocol, internal, remote)).copied();
                self.found_flows.push_back((request, port));
            }
            Effect::FirewallUplink(effect) => self.on_firewall_uplink(effect),
            Effect::Firewall { ticket, change } => self.change_firewall(ticket, change),
            Effect::ReadPinhole { request, what } => self.read_pinhole(request, what),
            Effect::Scout { to, bytes } => self.on_scout(to, &bytes),
            // Announcements come all day long, and are for the engine's own tests to read.
            Effect::Ssdp(Outgoing { to, bytes, .. })
                if to.ip().is_multicast() && bytes.len() <= ssdp::MAX_SENT => {}
            Effect::Ssdp(Outgoing { to, bytes, .. }) => match ssdp::parse(&bytes) {
                Ok(message) if bytes.len() <= ssdp::MAX_SENT => {
                    self.heard.push(Heard { at: self.now, to, message });
                }
                _ => self.violation(format!("{} octets that are no SSDP sent to {to}", bytes.len())),
            },
            Effect::Nat { ticket, change } => {
                let told_at_once = self.nat.refuse_next;
                let (outcome, wrong) = self.nat.apply(change, self.tickets.is_empty());
                let line = format!("NAT1 {} {}", described(change), outcome_words(&outcome));
                self.note(line);
                if let Some(wrong) = wrong {
                    self.violation(wrong);
                }
                if self.nat.refuse_next < told_at_once {
                    return self.nat_refusals.push_back((ticket, outcome));
                }
                self.tickets.insert(ticket);
                // They are made, and told, one after the other.
                self.nat_told = self.nat_told.max(self.now + self.nat.takes);
                let after = self.nat_told - self.now;
                self.post(after, Parcel::Nat { ticket, outcome });
            }
            Effect::Subscribed { request, answer } => {
                self.gena_answers.insert(request, answer);
            }
            Effect::Notify(event) => self.on_notify(event),
            Effect::Store(record) => self.store(record),
            Effect::Changed(change) => {
                if let Some(wrong) = self.follower.follow(change) {
                    self.violation(format!("who follows the mappings is told of {wrong}"));
                }
            }
            Effect::Notice(notice) => {
                let line = format!("notice: {notice}");
                self.note(line);
                self.happenings.push(Happening::Noticed(Box::new(notice.clone())));
                self.notices.push((self.now, notice));
            }
            Effect::Stopped => {
                self.stopped = true;
                self.note("the gateway has stopped");
            }
        }
    }

    fn violation(&mut self, words: String) {
        self.note(format!("VIOLATION: {words}"));
        self.violations.push(words);
    }

    /// The WAN interface comes up with this address, the provider's server being its default router.
    pub fn wan_up(&mut self, addr: Ipv4Addr) {
        self.note(format!("WAN up with {addr}"));
        self.troubled = self.now;
        self.wan = self.wan_with(addr);
        self.handle(Event::Wan(self.wan.clone()));
    }

    fn wan_with(&self, addr: Ipv4Addr) -> Wan {
        let router = Some(IpAddr::V4(*SERVER.ip()));
        let is_second = addr != WAN && self.second_line != SecondLine::None;
        let has_firewall = self.v6.is_there.then_some(ipv6::firewall());
        Wan {
            name: self.line_of(addr).to_owned(),
            up: true,
            addresses: vec![addr],
            router,
            is_spare: is_second && self.second_line == SecondLine::Spare,
            addresses_v6: self.v6.is_there.then_some(WAN_V6).into_iter().collect(),
            router_v6: has_firewall.and_then(|at| match at {
                SocketAddr::V6(at) => Some(at),
                SocketAddr::V4(_) => None,
            }),
            ..self.wan.clone()
        }
    }

    /// The WAN interface that has this address.
    #[must_use]
    pub fn line_of(&self, addr: Ipv4Addr) -> &'static str {
        if addr == WAN || self.second_line == SecondLine::None { "wan0" } else { "wan1" }
    }

    /// Whether the router has a spare line; and whether that is in use, or was the last one that was.
    #[must_use]
    pub fn has_spare(&self) -> (bool, bool) {
        (self.second_line == SecondLine::Spare, self.wan.is_spare)
    }

    /// The WAN interface goes down and loses its address.
    pub fn wan_down(&mut self) {
        self.note("WAN down");
        self.troubled = self.now;
        self.wan = Wan { name: self.wan.name.clone(), is_spare: self.wan.is_spare, ..Wan::default() };
        self.handle(Event::Wan(self.wan.clone()));
    }

    /// The gateway has other settings from now on.
    pub fn reconfigure(&mut self, config: Config) {
        self.config = config.clone();
        self.handle(Event::Reconfigure(Box::new(config)));
    }

    /// The DHCP server says that this host is gone.
    pub fn release(&mut self, host: impl Into<IpAddr>) {
        self.handle(Event::Release(host.into()));
    }

    /// The gateway is to take everything back and stop.
    pub fn stop(&mut self) {
        self.end_subscriptions(); // a byebye says so (E-9)
        self.handle(Event::Stop);
    }
}

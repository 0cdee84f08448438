//! WANIPv6FirewallControl:1 (igd.md 8) and MAP over IPv6 (RFC 6887 §2.2): one table of pinholes, this router's firewall, and the
//! provider's where there is one.

mod faults;
mod provider;
mod switched_off;
mod third_party;

use std::collections::{BTreeMap, BTreeSet};

use wire::pcp::{Filter, Opcode};

use super::*;
use crate::claims::Asker;
use crate::gateway::{LanArrival, PinholeReading, UplinkEffect};
use crate::journal::StoredPinhole;
use crate::notice::{PinholeEnd, PinholeNews};
use crate::pinholes::{Endpoint, FirewallChange, Flows};

const OK: ResultCode = ResultCode::SUCCESS;
const MINE: Nonce = Nonce([1; 12]);
const OTHERS: Nonce = Nonce([2; 12]);
/// On the LAN.
pub(super) const CAROL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
pub(super) const DAVE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11);
const LAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// The router's WAN side, and who asks from outside.
const W6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const PEER: &str = "2001:db8:9::1";

fn firewall() -> SocketAddr {
    "[2001:db8::1]:5351".parse().unwrap()
}

/// What the kernel and the provider's firewall have.
#[derive(Default)]
pub(super) struct Outside {
    /// What this router lets in.
    pub(super) open: BTreeSet<Flows>,
    broken: bool,
    /// The kernel closes nothing.
    sticks: bool,
    packets: Option<u32>,
    pub(super) stored: BTreeMap<u16, StoredPinhole>,
    provider: Option<Model>,
    /// Where the socket leads to.
    socket: Option<SocketAddr>,
}

/// The provider's firewall, as RFC 6887 has it.
#[derive(Default)]
pub(super) struct Model {
    began: Instant,
    /// By host, protocol and port: the nonce, and whom it lets in.
    open: BTreeMap<(Ipv6Addr, Protocol, u16), (Nonce, Vec<Filter>)>,
    lifetime: u32,
    refuses: Option<ResultCode>,
    most_filters: usize,
    /// It does not know FILTER at all.
    no_filters: bool,
    silent: bool,
    /// A prefix translator's (RFC 6296).
    prefix: Option<u16>,
    requests: usize,
}

impl Outside {
    pub(super) fn serve(&mut self, now: Instant, to: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        self.provider.as_mut().filter(|_| to == firewall())?.answer(now, bytes)
    }

    pub(super) fn uplink(&mut self, now: Instant, effect: UplinkEffect, queue: &mut VecDeque<Next>) {
        match effect {
            UplinkEffect::Open(server) => {
                self.socket = Some(server);
                queue.push_back(Next::FirewallOpened(server, W6.into()));
            }
            UplinkEffect::Close => self.socket = None,
            UplinkEffect::Send { to, bytes } => {
                assert_eq!(self.socket, Some(to), "only by the open socket");
                let answer = self.serve(now, to, &bytes);
                queue.extend(answer.map(|answer| Next::FirewallDatagram(to, answer)));
            }
        }
    }

    pub(super) fn change(&mut self, change: FirewallChange) -> Result<(), NatFailure> {
        match change {
            FirewallChange::Open(_) if self.broken => return Err(NatFailure::Kernel("refused".into())),
            FirewallChange::Close(_) if self.sticks => return Err(NatFailure::Kernel("busy".into())),
            FirewallChange::Open(flows) => assert!(self.open.insert(flows), "{flows} is open already"),
            // What could not be opened is closed all the same.
            FirewallChange::Close(flows) => drop(self.open.remove(&flows)),
        }
        Ok(())
    }

    pub(super) fn read(&self, what: PinholeReading) -> Option<u32> {
        match what {
            PinholeReading::Packets(flows) => self.packets.filter(|_| self.open.contains(&flows)),
            PinholeReading::Timeout(protocol) => Some(if protocol == Protocol::UDP { 120 } else { 7200 }),
        }
    }
}

impl Model {
    fn answer(&mut self, now: Instant, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.silent {
            return None;
        }
        let request = Request::parse(bytes).expect("we send well-formed requests");
        let epoch = u32::try_from((now - self.began).as_secs()).unwrap();
        let answer = |result, lifetime, body| {
            let options = request.options.clone();
            Some(Response { result, lifetime, epoch, body, options }.to_bytes())
        };
        let Body::Map(map) = request.body else { return answer(OK, 0, Body::Announce) };
        self.requests += 1;
        assert_eq!(request.client_addr, W6);
        if let Some(result) = self.refuses.filter(|_| request.lifetime > 0) {
            return answer(result, 30, request.body.clone());
        }
        let filters = request.options.iter().any(|option| matches!(option, PcpOption::Filter(_)));
        if self.no_filters && filters {
            return answer(ResultCode::UNSUPP_OPTION, 30, request.body.clone());
        }
        let host = request.options.iter().find_map(|option| match option {
            PcpOption::ThirdParty(host) => Some(*host),
            _ => None,
        });
        let host = host.expect("a pinhole is for a LAN host");
        let key = (host, map.protocol, map.internal_port);
        if self.open.get(&key).is_some_and(|(nonce, _)| *nonce != map.nonce) {
            return answer(ResultCode::NOT_AUTHORIZED, 30, request.body.clone());
        }
        if request.lifetime == 0 {
            self.open.remove(&key);
            return answer(OK, 0, request.body.clone());
        }
        let mut filters = self.open.get(&key).map(|(_, filters)| filters.clone()).unwrap_or_default();
        for option in &request.options {
            match option {
                PcpOption::Filter(Filter { prefix_len: 0, .. }) => filters.clear(),
                PcpOption::Filter(filter) if !filters.contains(filter) => filters.push(*filter),
                _ => {}
            }
        }
        if filters.len() > self.most_filters {
            return answer(ResultCode::EXCESSIVE_REMOTE_PEERS, 30, request.body.clone());
        }
        self.open.insert(key, (map.nonce, filters));
        let mut external = host.segments();
        external[2] = self.prefix.unwrap_or(external[2]);
        let body =
            Body::Map(MapData { external_port: map.internal_port, external_addr: external.into(), ..map });
        answer(OK, request.lifetime.min(self.lifetime), body)
    }
}

pub(super) fn wan6() -> Wan {
    let router = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)), 5351);
    let SocketAddr::V6(router) = router else { unreachable!() };
    Wan { addresses_v6: vec![W6], router_v6: Some(router), ..wan(&[W]) }
}

pub(super) fn lan6() -> Vec<LanInterface> {
    let mut lan = lan();
    for addr in ["2001:db8:1::1", "fe80::1"] {
        lan[0].addresses.push(InterfaceAddress { addr: addr.parse().unwrap(), prefix_len: 64 });
    }
    lan
}

pub(super) fn model() -> Model {
    Model { lifetime: 7200, most_filters: 8, ..Model::default() }
}

impl Lab {
    /// A gateway at work on a network with IPv6, whose provider has a firewall, or has none.
    pub(super) fn up6(provider: Option<Model>) -> Self {
        let named = provider.is_some();
        let firewall_servers = if named { vec![firewall()] } else { Vec::new() };
        let mut lab = Self::new(Config { firewall_servers, ..config(NatMode::Own) });
        lab.pinholes.provider = provider;
        lab.pinholes.packets = Some(0);
        lab.event(Event::Lan(lan6()));
        lab.event(Event::Wan(wan6()));
        lab.run(10_000);
        lab.effects.clear();
        lab
    }

    fn model(&mut self) -> &mut Model {
        self.pinholes.provider.as_mut().unwrap()
    }

    fn start_hole(&mut self, from: IpAddr, action: &str, args: &[(&str, String)]) -> RequestId {
        self.start_from(from, &[], 1, action, &borrowed(args))
    }

    fn hole(&mut self, from: Ipv6Addr, action: &str, args: &[(&str, String)]) -> Heard {
        let id = self.start_hole(from.into(), action, args);
        self.heard(id).unwrap_or_else(|| panic!("{action} is not answered yet"))
    }

    pub(super) fn open(&mut self, host: Ipv6Addr, pinhole: &Hole) -> Heard {
        self.hole(host, "AddPinhole", &pinhole.args(host))
    }

    pub(super) fn of_id(&mut self, from: Ipv6Addr, action: &str, id: &str) -> Heard {
        self.hole(from, action, &[("UniqueID", id.to_owned())])
    }

    /// What a PCP client at port 4000 of an IPv6 host hears in that turn.
    pub(super) fn pcp6(&mut self, host: Ipv6Addr, request: &Request) -> Option<Response> {
        let before = self.effects.len();
        let arrival =
            LanArrival { interface: 3, local: IpAddr::V6(LAN6), from: SocketAddr::from((host, 4000)) };
        self.event(Event::Lan5351 { arrival, bytes: &request.to_bytes() });
        let sent = |(_, effect): &(u64, Effect)| match effect {
            Effect::LanSend { local, to, bytes, .. } if *to == arrival.from => {
                assert_eq!(*local, arrival.local);
                Some(Response::parse(bytes).unwrap())
            }
            _ => None,
        };
        let mut all: Vec<Response> = self.effects[before..].iter().filter_map(sent).collect();
        assert!(all.len() < 2, "{all:?}");
        all.pop()
    }

    /// Result, lifetime, external address and port.
    pub(super) fn map6(&mut self, host: Ipv6Addr, map: &Map6) -> (ResultCode, u32, SocketAddr) {
        let answer = self.pcp6(host, &map.request(host)).expect("answered at once");
        let Body::Map(data) = answer.body else { panic!("{answer:?}") };
        assert_eq!((data.nonce, data.internal_port), (map.nonce, map.port));
        (answer.result, answer.lifetime, SocketAddr::from((data.external_addr, data.external_port)))
    }

    /// What both firewalls let in is what the table says, and what is stored.
    pub(super) fn agrees(&mut self) {
        let now = self.instant();
        let all = self.gateway.pinholes(now);
        let open: BTreeSet<Flows> = all.iter().filter(|one| one.is_open).map(|one| one.flows).collect();
        assert_eq!(open, self.pinholes.open);
        let stored: BTreeSet<Flows> = self.pinholes.stored.values().map(|one| one.flows).collect();
        assert_eq!(open, stored);
        if let Some(model) = &self.pinholes.provider {
            let there: BTreeSet<_> = model.open.keys().copied().collect();
            let here: BTreeSet<_> =
                open.iter().map(|flows| (flows.to.addr, flows.to.protocol, flows.to.port)).collect();
            assert_eq!(there, here);
        }
    }
}

/// The arguments of AddPinhole.
#[derive(Clone, Debug)]
pub(super) struct Hole {
    remote: &'static str,
    remote_port: u16,
    client: Option<&'static str>,
    port: u16,
    protocol: u16,
    lease: u32,
}

pub(super) fn hole(port: u16) -> Hole {
    Hole { remote: "", remote_port: 0, client: None, port, protocol: 6, lease: 3600 }
}

impl Hole {
    fn args(&self, host: Ipv6Addr) -> Vec<(&'static str, String)> {
        let client = self.client.map_or_else(|| host.to_string(), str::to_owned);
        vec![
            ("RemoteHost", self.remote.to_owned()),
            ("RemotePort", self.remote_port.to_string()),
            ("InternalClient", client),
            ("InternalPort", self.port.to_string()),
            ("Protocol", self.protocol.to_string()),
            ("LeaseTime", self.lease.to_string()),
        ]
    }
}

/// A MAP request over IPv6.
#[derive(Clone, Debug)]
pub(super) struct Map6 {
    nonce: Nonce,
    pub(super) protocol: Protocol,
    port: u16,
    external: u16,
    external_addr: Ipv6Addr,
    pub(super) lifetime: u32,
    options: Vec<PcpOption>,
}

pub(super) fn map6(port: u16) -> Map6 {
    let (protocol, external_addr) = (Protocol::TCP, Ipv6Addr::UNSPECIFIED);
    Map6 { nonce: MINE, protocol, port, external: port, external_addr, lifetime: 3600, options: Vec::new() }
}

impl Map6 {
    fn with(self, options: &[PcpOption]) -> Self {
        Self { options: options.to_vec(), ..self }
    }

    pub(super) fn request(&self, host: Ipv6Addr) -> Request {
        let body = Body::Map(MapData {
            nonce: self.nonce,
            protocol: self.protocol,
            internal_port: self.port,
            external_port: self.external,
            external_addr: self.external_addr,
        });
        Request { lifetime: self.lifetime, client_addr: host, body, options: self.options.clone() }
    }
}

fn filter(prefix_len: u8, addr: &str, remote_port: u16) -> PcpOption {
    PcpOption::Filter(Filter { prefix_len, remote_port, remote_addr: addr.parse().unwrap() })
}

fn flows(host: Ipv6Addr, port: u16) -> Flows {
    let to = Endpoint { addr: host, protocol: Protocol::TCP, port };
    Flows { to, remote: None, remote_port: None }
}

fn at6(host: Ipv6Addr, port: u16) -> SocketAddr {
    SocketAddr::from((host, port))
}

/// igd.md 8: every action, without and with a firewall of the provider's.
#[test]
fn a_pinhole_from_first_to_last() {
    for provider in [None, Some(model())] {
        let mut lab = Lab::up6(provider);
        assert_eq!(lab.hole(CAROL, "GetFirewallStatus", &[]), Ok(vec!["1".into(), "1".into()]));
        let id = lab.open(CAROL, &hole(8080)).unwrap().remove(0);
        lab.agrees();
        assert_eq!(lab.pinholes.open, BTreeSet::from([flows(CAROL, 8080)]));
        assert_eq!(lab.open(CAROL, &hole(8080)), Ok(vec![id.clone()]), "it is the same one");
        assert_eq!(lab.of_id(CAROL, "GetPinholePackets", &id), Ok(vec!["0".into()]));
        assert_eq!(lab.of_id(CAROL, "CheckPinholeWorking", &id), Err(709), "nothing has come in");
        lab.pinholes.packets = Some(3);
        assert_eq!(lab.of_id(CAROL, "GetPinholePackets", &id), Ok(vec!["3".into()]));
        assert_eq!(lab.of_id(CAROL, "CheckPinholeWorking", &id), Ok(vec!["1".into()]));
        lab.pinholes.packets = None;
        assert_eq!(lab.of_id(CAROL, "GetPinholePackets", &id), Err(501), "it cannot be read");
        let update = |lease: u32| [("UniqueID", id.clone()), ("NewLeaseTime", lease.to_string())];
        assert_eq!(lab.hole(CAROL, "UpdatePinhole", &update(86_400)), done());
        lab.pass(86_399);
        lab.agrees();
        assert_eq!(lab.pinholes.open.len(), 1, "it lasts as long as it was asked for");
        assert_eq!(lab.of_id(CAROL, "DeletePinhole", &id), done());
        assert!(lab.pinholes.open.is_empty());
        lab.agrees();
        for action in ["DeletePinhole", "GetPinholePackets", "CheckPinholeWorking"] {
            assert_eq!(lab.of_id(CAROL, action, &id), Err(704), "{action}");
        }
        assert_eq!(lab.hole(CAROL, "UpdatePinhole", &update(60)), Err(704));
        assert!(lab.gateway.is_idle());
    }
}

/// The lease is over: it is closed, at the provider's, too. Q-5: a lease is clamped, never refused.
#[test]
fn leases_end() {
    for (lease, lasts) in [(1, 1), (600, 600), (0, 86_400), (86_400, 86_400), (u32::MAX, 86_400)] {
        let mut lab = Lab::up6(Some(model()));
        lab.open(CAROL, &Hole { lease, ..hole(8080) }).unwrap();
        lab.run(lab.now + lasts * 1000 - 1);
        assert_eq!(lab.pinholes.open.len(), 1, "{lease}");
        lab.effects.clear();
        lab.pass(1);
        assert!(lab.pinholes.open.is_empty(), "{lease}");
        lab.agrees();
        let ended = lab
            .notices()
            .into_iter()
            .any(|notice| matches!(notice, Notice::Pinhole(PinholeNews::Closed(_, PinholeEnd::LeaseEnded))));
        assert!(ended);
    }
}

/// igd.md 8, its errors, and what the decoder leaves to us.
#[test]
fn what_cannot_be_asked_for() {
    let mut lab = Lab::up6(None);
    for (asked, code) in [
        (Hole { client: Some(""), ..hole(8080) }, 708),
        (Hole { client: Some("::"), ..hole(8080) }, 708),
        (Hole { client: Some("2001:db8:1::11"), ..hole(8080) }, 606), // another host's
        (Hole { client: Some("2001:db8:2::10"), ..hole(8080) }, 606), // off the LAN
        (Hole { client: Some("2001:db8:1::1"), ..hole(8080) }, 606),  // the router's
        (Hole { client: Some("192.168.1.10"), ..hole(8080) }, 402),
        (Hole { client: Some("::ffff:192.168.1.10"), ..hole(8080) }, 402),
        (Hole { client: Some("carol"), ..hole(8080) }, 402),
        (Hole { client: Some("2001:db8:1::10%eth0"), ..hole(8080) }, 402),
        (Hole { client: Some("ff02::1"), ..hole(8080) }, 402),
        (hole(0), 706),
        (hole(80), 606), // below 1024
        (Hole { protocol: 65_535, ..hole(8080) }, 707),
        (Hole { protocol: 0, ..hole(8080) }, 705),
        (Hole { protocol: 50, ..hole(8080) }, 705),
        (Hole { protocol: 132, ..hole(8080) }, 705),
        (Hole { remote: "example.org", ..hole(8080) }, 402),
        (Hole { remote: "203.0.113.9", ..hole(8080) }, 402),
        (Hole { remote: "ff0e::1", ..hole(8080) }, 402),
    ] {
        assert_eq!(lab.open(CAROL, &asked), Err(code), "{asked:?}");
    }
    for (remote, remote_port) in [("", 0), ("*", 0), ("::", 0), (PEER, 0), (PEER, 53), ("", 53)] {
        let asked = Hole { remote, remote_port, ..hole(8080) };
        assert!(lab.open(CAROL, &asked).is_ok(), "{asked:?}");
    }
    assert_eq!(lab.pinholes.open.len(), 4, "three of them are one");
    lab.agrees();
    let timeout = |protocol: &str| {
        let mut args = hole(8080).args(CAROL);
        args.pop();
        args[4].1 = protocol.to_owned();
        args
    };
    assert_eq!(lab.hole(CAROL, "GetOutboundPinholeTimeout", &timeout("17")), Ok(vec!["120".into()]));
    assert_eq!(lab.hole(CAROL, "GetOutboundPinholeTimeout", &timeout("6")), Ok(vec!["7200".into()]));
    assert_eq!(lab.hole(CAROL, "GetOutboundPinholeTimeout", &timeout("65535")), Err(707));
}

/// Decision 27, on every path; who speaks over IPv4 and is not known to be the same host has no pinhole to touch.
#[test]
fn a_pinhole_is_its_hosts_alone() {
    let mut lab = Lab::up6(None);
    let id = lab.open(CAROL, &hole(8080)).unwrap().remove(0);
    for stranger in [IpAddr::V6(DAVE), IpAddr::V4(ALICE)] {
        for action in ["DeletePinhole", "GetPinholePackets", "CheckPinholeWorking", "UpdatePinhole"] {
            let mut args = vec![("UniqueID", id.clone())];
            args.extend((action == "UpdatePinhole").then(|| ("NewLeaseTime", "60".to_owned())));
            let asked = lab.start_hole(stranger, action, &args);
            assert_eq!(lab.heard(asked), Some(Err(606)), "{stranger} {action}");
        }
        let asked = lab.start_hole(stranger, "AddPinhole", &hole(8080).args(CAROL));
        assert_eq!(lab.heard(asked), Some(Err(606)), "{stranger}");
    }
    // By PCP it is another program's of the same host, or another host's: neither ends it.
    let delete = Map6 { lifetime: 0, ..map6(8080) };
    assert_eq!(lab.map6(CAROL, &delete).0, ResultCode::NOT_AUTHORIZED);
    assert_eq!(lab.map6(DAVE, &delete).0, OK, "of its own port, where nothing is");
    lab.agrees();
    assert_eq!(lab.pinholes.open, BTreeSet::from([flows(CAROL, 8080)]));
}

/// K-3: a host is one by all of its addresses, and has one quota.
#[test]
fn who_speaks_over_ipv4_may_open_its_own() {
    let mut lab = Lab::up6(None);
    let both = [IpAddr::V6(CAROL), IpAddr::V6("2001:db8:1::12".parse().unwrap())];
    let from = IpAddr::V4(ALICE);
    let id = lab.start_from(from, &both, 1, "AddPinhole", &borrowed(&hole(8080).args(CAROL)));
    let number = lab.heard(id).unwrap().unwrap().remove(0);
    let id = lab.start_from(from, &both, 1, "AddPinhole", &borrowed(&hole(8080).args(DAVE)));
    assert_eq!(lab.heard(id), Some(Err(606)));
    assert_eq!(lab.of_id(DAVE, "DeletePinhole", &number), Err(606));
    let id = lab.start_from(from, &both, 1, "DeletePinhole", &[("UniqueID", &number)]);
    assert_eq!(lab.heard(id), Some(done()));
    lab.agrees();
}

/// Decision 27: a host has so many at most, and 701 says so; PCP's word for it is USER_EX_QUOTA.
#[test]
fn quotas() {
    let mut lab = Lab::new(Config {
        policy: Policy { mappings_per_host: 2, mappings: 3, ..Policy::default() },
        ..config(NatMode::Own)
    });
    lab.event(Event::Lan(lan6()));
    lab.event(Event::Wan(wan6()));
    lab.run(10_000);
    lab.open(CAROL, &hole(8080)).unwrap();
    assert_eq!(lab.map6(CAROL, &map6(8081)).0, OK);
    assert_eq!(lab.open(CAROL, &hole(8082)), Err(701));
    assert_eq!(lab.map6(CAROL, &map6(8082)).0, ResultCode::USER_EX_QUOTA);
    assert!(lab.open(CAROL, &hole(8080)).is_ok(), "what it has it may renew");
    assert!(lab.open(CAROL, &hole(8081)).is_ok());
    lab.is_known(DAVE, 0x11);
    lab.open(DAVE, &hole(8080)).unwrap();
    assert_eq!(lab.open(DAVE, &hole(8081)), Err(701), "there are three");
    lab.agrees();
}

/// 703 to everything, and an event; what there is goes, and PCP's MAP is not authorized.
#[test]
fn switched_off() {
    let mut lab = Lab::up6(Some(model()));
    lab.open(CAROL, &hole(8080)).unwrap();
    let settings = Config { pinholes: false, firewall_servers: vec![firewall()], ..config(NatMode::Own) };
    lab.event(Event::Reconfigure(Box::new(settings.clone())));
    assert!(lab.pinholes.open.is_empty() && lab.pinholes.stored.is_empty());
    assert!(lab.model().open.is_empty(), "at the provider, too (security policy)");
    assert_eq!(lab.status().firewall, None);
    assert_eq!(lab.hole(CAROL, "GetFirewallStatus", &[]), Ok(vec!["1".into(), "0".into()]));
    assert_eq!(lab.open(CAROL, &hole(8080)), Err(703));
    assert_eq!(lab.open(CAROL, &hole(0)), Err(703), "before anything else (igd.md 8)");
    assert_eq!(lab.of_id(CAROL, "DeletePinhole", "1"), Err(703));
    assert_eq!(lab.map6(CAROL, &map6(8080)).0, ResultCode::NOT_AUTHORIZED);
    lab.event(Event::Reconfigure(Box::new(Config { pinholes: true, ..settings })));
    assert!(lab.open(CAROL, &hole(8080)).is_ok());
    lab.run(lab.now + 10_000);
    lab.agrees();
}

/// RFC 6887 §11.3, §13.3 and §15 over IPv6, line by line.
#[test]
fn map_over_ipv6() {
    let mut lab = Lab::up6(None);
    let own = at6(CAROL, 8080);
    assert_eq!(lab.map6(CAROL, &map6(8080)), (OK, 3600, own));
    assert_eq!(lab.pinholes.open, BTreeSet::from([flows(CAROL, 8080)]));
    // Whatever is suggested, the address is the host's own.
    let suggested = Map6 { external: 9999, external_addr: "2001:db8:7::7".parse().unwrap(), ..map6(8080) };
    assert_eq!(lab.map6(CAROL, &suggested), (OK, 3600, own));
    let prefer = [PcpOption::PreferFailure];
    for (map, result) in [
        (map6(8080).with(&prefer), OK),
        (Map6 { external_addr: CAROL, ..map6(8080).with(&prefer) }, OK),
        (suggested.clone().with(&prefer), ResultCode::CANNOT_PROVIDE_EXTERNAL),
        (Map6 { external: 9999, ..map6(8080).with(&prefer) }, ResultCode::CANNOT_PROVIDE_EXTERNAL),
        (Map6 { external: 0, ..map6(8080).with(&prefer) }, ResultCode::MALFORMED_OPTION),
        (Map6 { nonce: OTHERS, ..map6(8080) }, ResultCode::NOT_AUTHORIZED),
        (Map6 { nonce: OTHERS, lifetime: 0, ..map6(8080) }, ResultCode::NOT_AUTHORIZED),
        (Map6 { protocol: Protocol::SCTP, ..map6(8080) }, ResultCode::UNSUPP_PROTOCOL),
        (Map6 { protocol: Protocol(0), ..map6(8080) }, ResultCode::MALFORMED_REQUEST),
        (Map6 { protocol: Protocol(0), ..map6(0) }, ResultCode::UNSUPP_PROTOCOL),
        (map6(0), ResultCode::UNSUPP_PROTOCOL),
        (map6(80), ResultCode::NOT_AUTHORIZED),
        (map6(8081).with(&[PcpOption::ThirdParty(DAVE)]), ResultCode::UNSUPP_OPTION),
        (map6(8081).with(&[filter(64, "2001:db8:9::", 0)]), ResultCode::EXCESSIVE_REMOTE_PEERS),
        (map6(8081).with(&[filter(128, "::ffff:203.0.113.9", 0)]), ResultCode::MALFORMED_OPTION),
        (Map6 { lifetime: 0, ..map6(8080).with(&prefer) }, ResultCode::MALFORMED_OPTION),
        (Map6 { lifetime: 0, ..map6(9000) }, OK),
    ] {
        assert_eq!(lab.map6(CAROL, &map).0, result, "{map:?}");
        lab.pass(1);
    }
    // The client's address in the header is the packet's.
    let forged = lab.pcp6(CAROL, &map6(8082).request(DAVE)).unwrap();
    assert_eq!(forged.result, ResultCode::ADDRESS_MISMATCH);
    // Lifetimes are 2 minutes to a day (§15).
    for (asked, granted) in [(1, 120), (7200, 7200), (u32::MAX, 86_400)] {
        assert_eq!(lab.map6(CAROL, &Map6 { lifetime: asked, ..map6(8083) }).1, granted);
    }
    assert_eq!(
        lab.map6(CAROL, &Map6 { lifetime: 0, ..map6(8083) }),
        (OK, 0, at6(Ipv6Addr::UNSPECIFIED, 8083))
    );
    lab.agrees();
    assert_eq!(lab.pinholes.open, BTreeSet::from([flows(CAROL, 8080)]));
    lab.pass(3600);
    lab.agrees();
    assert!(lab.pinholes.open.is_empty());
    // ANNOUNCE tells the epoch.
    let announce = Request { lifetime: 0, client_addr: CAROL, body: Body::Announce, options: Vec::new() };
    let told = lab.pcp6(CAROL, &announce).unwrap();
    assert_eq!((told.result, told.body.opcode()), (OK, Opcode::ANNOUNCE));
}

/// RFC 6887 §13.3: one remote host and perhaps its port; a renewal leaves it, prefix length 0 drops it. There is one mapping.
#[test]
fn filters_of_pcp() {
    let mut lab = Lab::up6(Some(model()));
    let remote = |remote: Option<&str>, remote_port| Flows {
        remote: remote.map(|addr| addr.parse().unwrap()),
        remote_port,
        ..flows(CAROL, 8080)
    };
    let other = "2001:db8:9::2";
    for (options, result, open) in [
        (vec![filter(128, PEER, 53)], OK, remote(Some(PEER), Some(53))),
        (vec![], OK, remote(Some(PEER), Some(53))),
        (vec![filter(128, other, 0)], ResultCode::EXCESSIVE_REMOTE_PEERS, remote(Some(PEER), Some(53))),
        (vec![filter(0, "::", 0), filter(128, other, 0)], OK, remote(Some(other), None)),
        (vec![filter(0, "::", 0)], OK, remote(None, None)),
        (vec![filter(128, PEER, 0)], OK, remote(Some(PEER), None)),
    ] {
        assert_eq!(lab.map6(CAROL, &map6(8080).with(&options)).0, result, "{options:?}");
        lab.run(lab.now); // what it replaces goes when it is stored
        lab.agrees();
        assert_eq!(lab.pinholes.open, BTreeSet::from([open]), "{options:?}");
        let there = &lab.model().open[&(CAROL, Protocol::TCP, 8080)].1;
        let expected: Vec<Filter> = open
            .remote
            .map(|addr| Filter {
                prefix_len: 128,
                remote_port: open.remote_port.unwrap_or(0),
                remote_addr: addr,
            })
            .into_iter()
            .collect();
        assert_eq!(*there, expected, "{options:?}");
        lab.pass(1);
    }
}

/// One table: what UPnP has opened serves a PCP client of the same host, and stands until both have let it go.
#[test]
fn both_protocols_share_a_pinhole() {
    let mut lab = Lab::up6(Some(model()));
    let id = lab.open(CAROL, &hole(8080)).unwrap().remove(0);
    assert_eq!(lab.map6(CAROL, &map6(8080)).0, OK);
    assert_eq!(lab.pinholes.stored.len(), 1);
    assert_eq!(lab.of_id(CAROL, "DeletePinhole", &id), done());
    lab.agrees();
    assert_eq!(lab.pinholes.open.len(), 1, "PCP counts on it");
    assert_eq!(lab.of_id(CAROL, "DeletePinhole", &id), Err(704), "UPnP does no more");
    assert_eq!(lab.open(CAROL, &hole(8080)), Ok(vec![id]));
    assert_eq!(lab.map6(CAROL, &Map6 { lifetime: 0, ..map6(8080) }).0, OK);
    lab.agrees();
    assert_eq!(lab.pinholes.open.len(), 1, "UPnP counts on it");
    lab.pass(3600);
    lab.agrees();
    assert!(lab.pinholes.open.is_empty());
}

/// Two control points that ask for the same at once share one exchange, and both hear of it.
#[test]
fn the_same_twice_is_one() {
    let mut lab = Lab::up6(Some(model()));
    lab.slow_nat = true;
    let first = lab.start_hole(CAROL.into(), "AddPinhole", &hole(8080).args(CAROL));
    let second = lab.start_hole(CAROL.into(), "AddPinhole", &hole(8080).args(CAROL));
    let pcp = lab.pcp6(CAROL, &map6(8080).request(CAROL));
    assert_eq!(pcp, None);
    let before = lab.effects.len();
    lab.slow_nat = false;
    lab.release_nat();
    assert!(lab.heard(first).unwrap().is_ok());
    assert_eq!(lab.heard(first), lab.heard(second));
    let told = lab.effects[before..].iter().any(|(_, effect)| matches!(effect, Effect::LanSend { .. }));
    assert!(told, "and so does the PCP client");
    assert_eq!(lab.model().requests, 1);
    lab.agrees();
}

/// Every argument of AddPinhole and UpdatePinhole as it should not be sent, and as it is all the same: uda.md 8, Q-5, Q-12, and the
/// security policy's rule of numbers and addresses.
#[test]
fn odd_arguments() {
    let long: &'static str = "2001:db8:1::10                                                                ";
    for (argument, sent, code) in [
        ("RemoteHost", None, Ok(())),
        ("RemoteHost", Some("  "), Ok(())),
        ("RemoteHost", Some(" 2001:db8:9::1 "), Ok(())),
        ("RemoteHost", Some("2001:db8:9::1::"), Err(402)),
        ("RemoteHost", Some("[2001:db8:9::1]"), Err(402)),
        ("RemotePort", None, Ok(())),
        ("RemotePort", Some(""), Ok(())),
        ("RemotePort", Some("0053"), Ok(())),
        ("RemotePort", Some("-1"), Err(402)),
        ("RemotePort", Some("65536"), Err(601)),
        ("InternalClient", None, Err(402)),
        ("InternalClient", Some("  "), Err(708)),
        ("InternalClient", Some(long), Ok(())),
        ("InternalClient", Some("2001:0DB8:0001::0010"), Ok(())),
        ("InternalClient", Some("2001:db8:1:10"), Err(402)),
        ("InternalPort", None, Err(402)),
        ("InternalPort", Some(""), Err(402)),
        ("InternalPort", Some("0x1f90"), Err(402)),
        ("InternalPort", Some("65536"), Err(601)),
        ("InternalPort", Some(" 8080 "), Ok(())),
        ("Protocol", None, Err(402)),
        ("Protocol", Some("TCP"), Err(402)),
        ("Protocol", Some("65536"), Err(601)),
        ("LeaseTime", None, Ok(())),
        ("LeaseTime", Some("-1"), Ok(())),
        ("LeaseTime", Some("99999999999"), Ok(())),
        ("LeaseTime", Some("an hour"), Ok(())),
    ] {
        let mut lab = Lab::up6(None);
        let mut args = hole(8080).args(CAROL);
        let place = args.iter().position(|(name, _)| *name == argument).unwrap();
        match sent {
            Some(text) => args[place].1 = text.to_owned(),
            None => drop(args.remove(place)),
        }
        assert_eq!(lab.hole(CAROL, "AddPinhole", &args).map(drop), code, "{argument} {sent:?}");
        args.insert(place, (argument, "1".to_owned()));
        args.insert(place, (argument, "1".to_owned()));
        assert_eq!(lab.hole(CAROL, "AddPinhole", &args), Err(402), "{argument} twice");
        assert_eq!(lab.pinholes.open.len(), usize::from(code.is_ok()));
    }
    let mut lab = Lab::up6(None);
    let id = lab.open(CAROL, &hole(8080)).unwrap().remove(0);
    for (args, code) in [
        (vec![("UniqueID", id.clone())], Ok(())),
        (vec![("UniqueID", format!(" {id} ")), ("NewLeaseTime", "60".into())], Ok(())),
        (vec![("NewLeaseTime", "60".into())], Err(402)),
        (vec![("UniqueID", "65536".into()), ("NewLeaseTime", "60".into())], Err(601)),
        (vec![("UniqueID", "-1".into()), ("NewLeaseTime", "60".into())], Err(402)),
        (vec![("UniqueID", String::new()), ("NewLeaseTime", "60".into())], Err(402)),
    ] {
        assert_eq!(lab.hole(CAROL, "UpdatePinhole", &args).map(drop), code, "{args:?}");
    }
}

/// RFC 6887 §15: a delete takes all that the client has of this port, also what it has just asked for.
#[test]
fn a_delete_in_the_middle_of_a_change() {
    let mut lab = Lab::up6(Some(model()));
    assert_eq!(lab.map6(CAROL, &map6(8080).with(&[filter(128, PEER, 0)])).0, OK);
    lab.model().silent = true;
    let filtered = map6(8080).with(&[filter(0, "::", 0), filter(128, "2001:db8:9::2", 0)]);
    assert_eq!(lab.pcp6(CAROL, &filtered.request(CAROL)), None, "the provider is asked");
    let before = lab.effects.len();
    let delete = Map6 { lifetime: 0, ..map6(8080) };
    assert_eq!(lab.map6(CAROL, &delete), (OK, 0, at6(Ipv6Addr::UNSPECIFIED, 8080)));
    let said = lab.effects[before..].iter().filter(|(_, effect)| matches!(effect, Effect::LanSend { .. }));
    assert_eq!(said.count(), 1, "the question is answered no more");
    lab.model().silent = false;
    lab.pass(60);
    lab.agrees();
    assert!(lab.pinholes.open.is_empty() && lab.gateway.is_idle());
}

/// A claim whose owner heard 501 counts for nobody.
#[test]
fn a_claim_that_was_refused_is_none() {
    let mut lab = Lab::up6(Some(model()));
    lab.model().silent = true;
    assert_eq!(lab.pcp6(CAROL, &map6(8080).request(CAROL)), None);
    let id = lab.start_hole(CAROL.into(), "AddPinhole", &Hole { lease: 86_400, ..hole(8080) }.args(CAROL));
    lab.run(lab.now + 3600);
    assert_eq!(lab.heard(id), Some(Err(501)));
    lab.model().silent = false;
    lab.pass(10);
    lab.agrees();
    assert_eq!(lab.pinholes.open.len(), 1, "PCP's");
    lab.map6(CAROL, &Map6 { lifetime: 0, ..map6(8080) });
    lab.pass(1);
    lab.agrees();
    assert!(lab.pinholes.open.is_empty());
}

/// Decision 28, §15: a prefix that has gone takes its pinholes along, unless it comes back soon.
#[test]
fn a_lan_that_is_renumbered() {
    let mut lab = Lab::up6(Some(model()));
    lab.open(CAROL, &Hole { lease: 86_400, ..hole(8080) }).unwrap();
    lab.event(Event::Lan(lan()));
    lab.pass(300);
    lab.event(Event::Lan(lan6()));
    lab.pass(700);
    assert_eq!(lab.pinholes.open.len(), 1);
    lab.event(Event::Lan(lan()));
    lab.pass(601);
    lab.agrees();
    assert!(lab.pinholes.open.is_empty());
}

/// Decision 18 for IPv6: the DHCP server says that the host is gone.
#[test]
fn a_release() {
    let mut lab = Lab::up6(Some(model()));
    for host in [CAROL, DAVE] {
        lab.open(host, &hole(8080)).unwrap();
    }
    lab.event(Event::Release(CAROL.into()));
    lab.pass(1);
    lab.agrees();
    assert_eq!(lab.pinholes.open, BTreeSet::from([flows(DAVE, 8080)]));
}

//! PEER on the LAN side (RFC 6887 §12, RFC 7648): what is told of a flow that a host has begun, or is about to begin, and how long that
//! is so.

use wire::pcp::{Filter, OptionCode, PeerData};

use super::lan_server::{MINE, Map, OTHERS, map};
use super::pinholes::{CAROL, map6, model};
use super::*;
use crate::gateway::LanArrival;
use crate::pinholes::{Endpoint, Flows};
use crate::prefix::ThirdParty;

const OK: ResultCode = ResultCode::SUCCESS;
/// Somebody out there.
const REMOTE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const REMOTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);

/// A PEER request.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    nonce: Nonce,
    protocol: Protocol,
    internal: u16,
    remote: (IpAddr, u16),
    suggested: (IpAddr, u16),
    lifetime: u32,
    options: Vec<PcpOption>,
}

/// UDP from this port, for an hour.
pub(super) fn peer(port: u16) -> Peer {
    Peer {
        nonce: MINE,
        protocol: Protocol::UDP,
        internal: port,
        remote: (REMOTE.into(), 3478),
        suggested: (Ipv4Addr::UNSPECIFIED.into(), 0),
        lifetime: 3600,
        options: Vec::new(),
    }
}

fn peer6(port: u16) -> Peer {
    Peer { remote: (REMOTE6.into(), 3478), suggested: (Ipv6Addr::UNSPECIFIED.into(), 0), ..peer(port) }
}

impl Peer {
    fn with(self, option: PcpOption) -> Self {
        Self { options: [self.options, vec![option]].concat(), ..self }
    }

    fn suggests(self, addr: Ipv4Addr, port: u16) -> Self {
        Self { suggested: (addr.into(), port), ..self }
    }

    pub(super) fn request(&self, host: IpAddr) -> Request {
        let wire = |addr: IpAddr| match addr {
            IpAddr::V4(addr) => addr.to_ipv6_mapped(),
            IpAddr::V6(addr) => addr,
        };
        let data = PeerData {
            nonce: self.nonce,
            protocol: self.protocol,
            internal_port: self.internal,
            external_port: self.suggested.1,
            external_addr: wire(self.suggested.0),
            remote_port: self.remote.1,
            remote_addr: wire(self.remote.0),
        };
        let (lifetime, options) = (self.lifetime, self.options.clone());
        Request { lifetime, client_addr: wire(host), body: Body::Peer(data), options }
    }
}

/// Result, lifetime, external address and port.
type Told = (ResultCode, u32, SocketAddr);

fn told(answer: &Response, peer: &Peer) -> Told {
    let Body::Peer(data) = answer.body else { panic!("{answer:?}") };
    assert_eq!((data.nonce, data.internal_port), (peer.nonce, peer.internal));
    assert_eq!((data.protocol, data.remote_port), (peer.protocol, peer.remote.1));
    let external = SocketAddr::new(IpAddr::V6(data.external_addr).to_canonical(), data.external_port);
    (answer.result, answer.lifetime, external)
}

fn outside(port: u16) -> SocketAddr {
    SocketAddr::from((E, port))
}

impl Lab {
    /// The provider serves PEER.
    fn up_with_peer(nat: NatMode) -> Self {
        let mut lab = Self::up(nat);
        lab.provider().config_mut().peer = true;
        lab
    }

    pub(super) fn peer(&mut self, host: Ipv4Addr, peer: &Peer) -> Told {
        let answer = self.pcp(host, &peer.request(host.into()));
        told(&answer, peer)
    }

    /// The host sends to the remote peer, and that leaves by this port.
    pub(super) fn flows_by(&mut self, host: Ipv4Addr, peer: &Peer, port: u16) {
        self.flows.insert((peer.protocol, at(host, peer.internal), at(REMOTE, peer.remote.1)), port);
    }

    /// What was asked of the provider in PEER.
    fn relayed(&self) -> Vec<(Request, PeerData)> {
        let request = |(_, effect): &(u64, Effect)| match effect {
            Effect::Send { bytes, .. } => Request::parse(bytes).ok(),
            _ => None,
        };
        let all = self.effects.iter().filter_map(request);
        all.filter_map(|request| match request.body {
            Body::Peer(data) => Some((request, data)),
            _ => None,
        })
        .collect()
    }

    fn holds(&self, host: Ipv4Addr, port: u16, by: u16) -> bool {
        let rule = NatRule {
            protocol: Protocol::UDP,
            port: by,
            internal: at(host, port),
            remote_peer: Some(REMOTE),
        };
        self.rules.contains(&rule) && self.gateway.peer_rules().any(|one| one == rule)
    }
}

/// RFC 6887 §12.3, RFC 7648 §3: the provider is asked about the flow as that comes to it, by a nonce of our own; the client hears what it
/// says, by our epoch. What has been said lately is said again, and no mapping is made of it.
#[test]
fn a_flow_that_is_there() {
    for nat in BOTH {
        let mut lab = Lab::up_with_peer(nat);
        let by = if nat == NatMode::Own { 7000 } else { 5000 };
        lab.flows_by(ALICE, &peer(5000), by);
        let first = lab.peer(ALICE, &peer(5000).suggests(Ipv4Addr::UNSPECIFIED, 0));
        let (result, lifetime, external) = first;
        assert_eq!((result, lifetime, external.ip()), (OK, 3600, IpAddr::V4(E)), "{nat:?}");
        let asked = lab.relayed();
        let [(request, data)] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!((data.protocol, data.internal_port, data.remote_port), (Protocol::UDP, by, 3478));
        assert_eq!((data.remote_addr, request.lifetime), (REMOTE.to_ipv6_mapped(), 3600));
        assert_ne!(data.nonce, MINE, "nonces stay on their side");
        let third_party = PcpOption::ThirdParty(ALICE.to_ipv6_mapped());
        let expected = if nat == NatMode::Own { vec![] } else { vec![third_party] };
        assert_eq!(request.options, expected);
        assert_eq!(lab.mapped(), [], "it is no mapping");
        assert_eq!(lab.holds(ALICE, 5000, by), nat == NatMode::Own, "but it stays where it is");

        lab.effects.clear();
        lab.pass(1);
        assert_eq!(lab.peer(ALICE, &Peer { lifetime: 86_400, ..peer(5000) }), (OK, 3599, external));
        lab.pass(100);
        assert_eq!(lab.peer(ALICE, &peer(5000)), (OK, 3499, external), "three quarters are left");
        assert_eq!(lab.peer(ALICE, &Peer { lifetime: 120, ..peer(5000) }).1, 3499, "§12.1: no shorter");
        let ask = Peer { lifetime: 0, ..peer(5000) };
        assert_eq!(lab.peer(ALICE, &ask), (OK, 3499, external), "nor does it end by that");
        assert_eq!(lab.relayed().len(), 0);
        lab.pass(1000);
        assert_eq!(lab.peer(ALICE, &peer(5000)), (OK, 3600, external), "less is left: asked again");
        assert_eq!(lab.relayed().iter().map(|(_, data)| data.nonce).collect::<Vec<_>>(), [asked[0].1.nonce]);

        // §12.3, the simple threat model.
        let other = Peer { nonce: OTHERS, ..peer(5000) };
        assert_eq!(lab.peer(ALICE, &other).0, ResultCode::NOT_AUTHORIZED);
        assert_eq!(lab.peer(ALICE, &Peer { lifetime: 0, ..other.clone() }).0, ResultCode::NOT_AUTHORIZED);
        lab.pass(3601);
        assert_eq!((lab.rules.len(), lab.gateway.nat_ports_in_use()), (0, 0), "{nat:?}: over");
        assert_eq!(lab.peer(ALICE, &other).0, OK);
        assert!(lab.gateway.is_idle());
    }
}

/// RFC 7648 §3.2: no more than what the provider has granted, 120 s at least and a day at most.
#[test]
fn lifetimes() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    for (port, asked, most, told) in [
        (5000, 1, 7200, 120),
        (5001, u32::MAX, 600, 600),
        (5002, 3600, 600, 600),
        (5003, u32::MAX, 86_400, 86_400),
    ] {
        lab.provider().config_mut().longest = most;
        let one = Peer { lifetime: asked, ..peer(port) };
        lab.flows_by(ALICE, &one, port);
        assert_eq!(lab.peer(ALICE, &one).1, told, "{asked}, {most}");
    }
}

/// RFC 6887 §12.3, §13, in their order: what is answered before anything is asked of anybody.
#[test]
fn rfc6887_12_row_by_row() {
    use ResultCode as R;
    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.effects.clear();
    let all = Filter { prefix_len: 128, remote_port: 0, remote_addr: REMOTE.to_ipv6_mapped() };
    let to = |addr: Ipv4Addr| Peer { remote: (addr.into(), 3478), ..peer(5000) };
    let unknown = |code| PcpOption::Unknown { code: OptionCode(code), data: vec![1, 2, 3, 4] };
    let rows = [
        ("§12: no port", Peer { internal: 0, ..peer(5000) }, R::MALFORMED_REQUEST),
        ("§12: no protocol", Peer { protocol: Protocol::ALL, ..peer(5000) }, R::MALFORMED_REQUEST),
        ("§12.1: no remote port", Peer { remote: (REMOTE.into(), 0), ..peer(5000) }, R::MALFORMED_REQUEST),
        ("§12.3: a remote peer of another family", peer6(5000), R::MALFORMED_REQUEST),
        ("§12.3: nobody", to(Ipv4Addr::UNSPECIFIED), R::MALFORMED_REQUEST),
        ("§12.3: loopback", to(Ipv4Addr::LOCALHOST), R::MALFORMED_REQUEST),
        ("§12.3: a group", to(Ipv4Addr::new(224, 0, 0, 1)), R::MALFORMED_REQUEST),
        ("§12.3: everybody", to(Ipv4Addr::BROADCAST), R::MALFORMED_REQUEST),
        ("§12.3: a neighbour", to(BOB), R::MALFORMED_REQUEST),
        ("§7.4: SCTP", Peer { protocol: Protocol(132), ..peer(5000) }, R::UNSUPP_PROTOCOL),
        ("§13.2", peer(5000).with(PcpOption::PreferFailure), R::MALFORMED_REQUEST),
        ("§7.3: FILTER", peer(5000).with(PcpOption::Filter(all)), R::MALFORMED_OPTION),
        ("THIRD_PARTY", peer(5000).with(PcpOption::ThirdParty(BOB.to_ipv6_mapped())), R::UNSUPP_OPTION),
        ("§7.3: an unknown mandatory option", peer(5000).with(unknown(100)), R::UNSUPP_OPTION),
        ("a low port (decision 27)", peer(123), R::NOT_AUTHORIZED),
    ];
    for (what, one, result) in rows {
        lab.pass(1);
        assert_eq!((lab.peer(ALICE, &one).0, what), (result, what));
    }
    let nothing = Peer { lifetime: 0, ..peer(5000) }.suggests(E, 9);
    assert_eq!(
        lab.peer(ALICE, &nothing),
        (OK, 0, outside(9)),
        "§12.1: nothing to tell of, which is no error"
    );
    let asks = |(_, effect): &(u64, Effect)| matches!(effect, Effect::FindFlow { .. } | Effect::Send { .. });
    assert!(!lab.effects.iter().any(asks));
    let words = PcpOption::Description(b"game".to_vec());
    assert_eq!(lab.peer(ALICE, &peer(5000).with(words)).0, OK, "RFC 7220");
}

/// RFC 6887 §12.3: where there is no flow there is one from now on, by a port that is known; a place that is suggested is given, or none.
#[test]
fn a_flow_that_is_to_be() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    let (result, lifetime, external) = lab.peer(ALICE, &peer(5000));
    assert_eq!((result, lifetime, lab.mapped()), (OK, 3600, vec![(external.port(), at(ALICE, 5000))]));
    assert_eq!((lab.relayed().len(), lab.rules[0].remote_peer), (0, Some(REMOTE)), "that one alone comes in");
    let filters =
        |(_, request): &(u64, Request)| request.options.iter().any(|one| matches!(one, PcpOption::Filter(_)));
    assert!(lab.sent().len() == 1 && lab.sent().iter().all(filters));
    assert!(lab.sent().iter().all(|(_, request)| map_of(request).nonce != MINE));
    // By then it sends, by the mapping's port; and to somebody else, too, whom nobody has asked about.
    lab.flows_by(ALICE, &peer(5000), lab.rules[0].port);
    lab.pass(10);
    assert_eq!(lab.peer(ALICE, &peer(5000)), (OK, 3590, external));
    let elsewhere = Peer { remote: (REMOTE.into(), 9), ..peer(5000) };
    assert_eq!(lab.peer(ALICE, &elsewhere), (OK, 3590, external), "§12.3: one place for one port");
    lab.pass(2000);
    assert_eq!(lab.peer(ALICE, &peer(5000)), (OK, 3600, external), "it is renewed");
    assert_eq!(lab.peer(ALICE, &Peer { nonce: OTHERS, ..peer(5000) }).0, ResultCode::NOT_AUTHORIZED);

    let wish = peer(5001).suggests(E, 6000);
    assert_eq!(lab.peer(ALICE, &wish), (OK, 3600, outside(6000)));
    assert_eq!(lab.peer(BOB, &wish).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "it is another host's");
    assert_eq!(lab.peer(BOB, &wish.suggests(W, 6001)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "an address");
    assert_eq!(lab.peer(BOB, &peer(5002).suggests(E, 80)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    lab.pass(3601);
    assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0));
    assert!(lab.gateway.is_idle());
}

/// RFC 6887 §11.3, §12.3, §15: MAP and PEER of one port share its place, and neither ends what the other has.
#[test]
fn beside_map() {
    for nonce in [MINE, OTHERS] {
        let mut lab = Lab::up_with_peer(NatMode::Own);
        let (.., external) = lab.peer(ALICE, &peer(5000));
        let mapped = Map { nonce, protocol: Protocol::UDP, external: 0, lifetime: 600, ..map(5000) };
        let delete = Map { lifetime: 0, external: 0, ..mapped.clone() };
        assert_eq!(lab.map(ALICE, &delete).0, ResultCode::NOT_AUTHORIZED, "§15: it is none of MAP's");
        assert_eq!(lab.map(ALICE, &mapped), (OK, 600, external.port()), "§11.3: its place");
        assert_eq!((lab.rules.len(), lab.rules[0].remote_peer), (1, None), "everybody comes in");
        assert_eq!(lab.map(ALICE, &delete), (OK, 0, 0));
        assert_eq!(lab.mapped(), [(external.port(), at(ALICE, 5000))], "PEER's is still there");
        lab.pass(1000);
        assert_eq!(lab.peer(ALICE, &peer(5000)), (OK, 3600, external));
    }
    // By MAP's nonce its time is PEER's to make longer; by another one it is told, and no more.
    let mut lab = Lab::up_with_peer(NatMode::Own);
    let mapped = Map { protocol: Protocol::UDP, lifetime: 600, ..map(5000) };
    assert_eq!(lab.map(ALICE, &mapped), (OK, 600, 5000));
    let other = Peer { nonce: OTHERS, remote: (REMOTE.into(), 9), ..peer(5000) };
    assert_eq!(lab.peer(ALICE, &other), (OK, 600, outside(5000)));
    lab.pass(100);
    assert_eq!(lab.peer(ALICE, &other), (OK, 500, outside(5000)));
    assert_eq!(lab.peer(ALICE, &peer(5000)), (OK, 3600, outside(5000)));
    lab.pass(600);
    assert_eq!(lab.mapped(), [(5000, at(ALICE, 5000))]);
    lab.pass(3600);
    assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0));
}

/// K-3, RFC 6887 §12.3: what UPnP has mapped is told as it is; a flow that was there before leaves by another port, and is that.
#[test]
fn beside_upnp() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 300, ..port(8080) }), done());
    let one = Peer { protocol: Protocol::TCP, ..peer(8080) };
    assert_eq!(lab.peer(ALICE, &one), (OK, 300, outside(8080)));
    lab.pass(100);
    assert_eq!(lab.peer(ALICE, &one), (OK, 200, outside(8080)));
    let older = Peer { remote: (REMOTE.into(), 443), ..one };
    lab.flows_by(ALICE, &older, 40_000);
    let (result, lifetime, external) = lab.peer(ALICE, &older);
    assert_eq!((result, lifetime, lab.relayed()[0].1.internal_port), (OK, 3600, 40_000));
    assert_ne!(external, outside(8080));
    assert_eq!(lab.rules.len(), 2, "each by its port");
    assert_eq!(lab.delete(ALICE, 1, 8080), done());
}

/// RFC 6887 §7.4: what the provider refuses, and what nobody can say.
#[test]
fn refusals() {
    use ResultCode as R;
    let ask = |lab: &mut Lab| {
        lab.flows_by(ALICE, &peer(5000), 5000);
        let (result, lifetime, _) = lab.peer(ALICE, &peer(5000));
        (result, lifetime)
    };
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(ask(&mut lab), (R::UNSUPP_OPCODE, 1800), "the provider does not serve it");
    lab.flows.clear();
    assert_eq!(lab.peer(ALICE, &peer(5000)).0, OK, "but it serves MAP");

    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.event(Event::Wan(wan(&[])));
    assert_eq!(ask(&mut lab), (R::NETWORK_FAILURE, 30), "there is no way to it");

    let mut lab = Lab::new(config(NatMode::Own));
    lab.provider().config_mut().speaks = Speaks::NatPmp;
    lab.bring_up();
    assert_eq!(ask(&mut lab), (R::UNSUPP_OPCODE, 1800), "NAT-PMP knows mappings alone");

    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.broken = true;
    assert_eq!(ask(&mut lab), (OK, 120), "the kernel remembers it for a while by itself");
    assert_eq!((lab.rules.len(), lab.gateway.nat_ports_in_use()), (0, 0));

    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.flows_by(ALICE, &peer(5000), 5001);
    assert_eq!(lab.map(BOB, &Map { protocol: Protocol::UDP, ..map(5001) }), (OK, 3600, 5001));
    let taken = lab.peer(ALICE, &peer(5000)).0;
    assert_eq!(taken, R::CANNOT_PROVIDE_EXTERNAL, "to the provider it would be another one's mapping");
    assert_eq!(lab.relayed().len(), 0);

    // Nobody found: this router's NAT is the last one.
    let mut lab = Lab::new(Config { servers: Vec::new(), ..config(NatMode::Own) });
    lab.providers.clear();
    lab.bring_up();
    lab.flows_by(ALICE, &peer(5000), 7000);
    assert_eq!(lab.peer(ALICE, &peer(5000)), (OK, 3600, SocketAddr::from((W, 7000))));
}

/// The silence of the provider is the answer, 20 s at most; and who does not wait alone is answered with the others.
#[test]
fn silence() {
    for nat in BOTH {
        let mut lab = Lab::up_with_peer(nat);
        lab.flows_by(ALICE, &peer(5000), 5000);
        lab.silent = true;
        let (host, bytes) = (IpAddr::V4(ALICE), peer(5000).request(ALICE.into()).to_bytes());
        assert_eq!(lab.datagram(ALICE, &bytes), [] as [Vec<u8>; 0]);
        assert_eq!(lab.datagram(ALICE, &bytes), [] as [Vec<u8>; 0], "it is worked on");
        let other = Peer { nonce: OTHERS, ..peer(5000) };
        assert_eq!(lab.datagram(ALICE, &other.request(host).to_bytes()), [] as [Vec<u8>; 0]);
        lab.pass(5);
        assert_eq!(lab.relayed().len(), 2);
        // The same, from another port of the client's.
        let arrival =
            LanArrival { interface: 3, local: IpAddr::V4(LAN), from: SocketAddr::from((ALICE, 4000)) };
        let later = Peer { lifetime: 1800, ..peer(5000) }.request(host).to_bytes();
        lab.event(Event::Lan5351 { arrival, bytes: &later });
        lab.silent = false;
        let before = lab.effects.len();
        lab.pass(10);
        let lifetimes: Vec<u32> =
            lab.sent_to(ALICE, before).iter().map(|bytes| Response::parse(bytes).unwrap().lifetime).collect();
        assert_eq!(lifetimes, [3600, 3600], "{nat:?}");
        lab.silent = true;
        lab.flows_by(ALICE, &peer(5001), 5001);
        assert!(lab.datagram(ALICE, &peer(5001).request(host).to_bytes()).is_empty());
        lab.pass(21);
        let asked = lab.relayed().len();
        lab.pass(100);
        assert_eq!((lab.relayed().len(), lab.gateway.is_idle()), (asked, true), "it is given up");
        // A shell that does not say is no reason to wait for ever.
        lab.blind = true;
        assert!(lab.gateway.is_idle());
        drop(lab.datagram(ALICE, &peer(5002).request(host).to_bytes()));
        lab.pass(21);
        assert!(lab.gateway.is_idle(), "{nat:?}");
    }
}

/// One host has so many questions at once, and is remembered with as many flows as it may have mappings.
#[test]
fn there_is_an_end_to_them() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.silent = true;
    for port in 5000..5016 {
        lab.flows_by(ALICE, &peer(port), port);
        assert!(lab.datagram(ALICE, &peer(port).request(ALICE.into()).to_bytes()).is_empty());
    }
    assert_eq!(lab.peer(ALICE, &peer(6000)).0, ResultCode::USER_EX_QUOTA);
    lab.pass(30);
    lab.silent = false;
    let policy = Policy { mappings_per_host: 3, ..Policy::default() };
    lab.event(Event::Reconfigure(Box::new(Config { policy, ..config(NatMode::Own) })));
    lab.pass(60);
    for (port, result) in [(5000, OK), (5001, OK), (5002, OK), (5003, ResultCode::USER_EX_QUOTA), (5000, OK)]
    {
        lab.pass(5);
        assert_eq!(lab.peer(ALICE, &peer(port)).0, result, "{port}");
    }
}

/// Two remote hosts of one port: it leaves by one port, each comes in, and the port is free when both have ended.
#[test]
fn two_flows_of_one_port() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    let other = Ipv4Addr::new(203, 0, 113, 10);
    let second = Peer { remote: (other.into(), 3478), lifetime: 600, ..peer(5000) };
    lab.flows_by(ALICE, &peer(5000), 7000);
    lab.flows.insert((Protocol::UDP, at(ALICE, 5000), at(other, 3478)), 7000);
    let third = Peer { remote: (REMOTE.into(), 9), ..peer(5000) };
    lab.flows_by(ALICE, &third, 7000);
    for one in [&peer(5000), &second, &third] {
        assert_eq!(lab.peer(ALICE, one).0, OK);
    }
    assert_eq!((lab.rules.len(), lab.gateway.nat_ports_in_use()), (2, 1));
    lab.pass(700);
    assert_eq!((lab.rules.len(), lab.holds(ALICE, 5000, 7000)), (1, true));
    // The kernel has forgotten the flow, and the rule has not.
    lab.flows.clear();
    assert_eq!(lab.peer(ALICE, &peer(5000)).0, OK);
    assert_eq!(lab.relayed().last().unwrap().1.internal_port, 7000);
    // It leaves by another port.
    lab.flows_by(ALICE, &third, 7001);
    lab.pass(700);
    assert_eq!(lab.peer(ALICE, &third).0, OK);
    assert!(lab.holds(ALICE, 5000, 7000) && lab.holds(ALICE, 5000, 7001));
    lab.event(Event::Release(ALICE.into()));
    assert_eq!((lab.rules.len(), lab.gateway.nat_ports_in_use()), (0, 0), "the host is gone");
}

/// RFC 7648 §3.2, RFC 6887 §8.5: what the provider forgets of flows is not made anew from here, so clients hear of another epoch.
#[test]
fn the_provider_forgets() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.flows_by(ALICE, &peer(5000), 5000);
    let (.., external) = lab.peer(ALICE, &peer(5000));
    lab.pass(100);
    let epoch = |lab: &mut Lab| lab.pcp(ALICE, &peer(5000).request(ALICE.into())).epoch;
    assert!(epoch(&mut lab) >= 100);
    lab.effects.clear();
    lab.provider_forgets();
    lab.provider().config_mut().peer = true;
    let again = peer(5000).suggests(E, external.port());
    assert_eq!(lab.peer(ALICE, &again), (OK, 3600, external), "§16.3.1: in its old place");
    assert_eq!(lab.relayed().len(), 1);
    assert!(epoch(&mut lab) < 2);
}

/// At the end, or where another line is in use, nothing is left of them; what is kept over a stop is.
#[test]
fn they_end_with_what_they_go_by() {
    for keep_on_stop in [false, true] {
        let mut lab = Lab::up_with(Config { keep_on_stop, ..config(NatMode::Own) });
        lab.provider().config_mut().peer = true;
        lab.flows_by(ALICE, &peer(5000), 5000);
        assert_eq!(lab.peer(ALICE, &peer(5000)).0, OK);
        lab.event(Event::Stop);
        assert_eq!(lab.rules.len(), usize::from(keep_on_stop));
    }
    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.flows_by(ALICE, &peer(5000), 5000);
    lab.slow_nat = true;
    assert!(lab.datagram(ALICE, &peer(5000).request(ALICE.into()).to_bytes()).is_empty());
    lab.event(Event::Wan(wan(&[])));
    lab.slow_nat = false;
    lab.release_nat();
    assert_eq!((lab.rules.len(), lab.gateway.nat_ports_in_use()), (0, 0), "what came too late goes again");
    assert!(lab.gateway.is_idle());
}

/// A mapping that PEER has made comes back after a crash, with its nonce; what was only told is asked again.
#[test]
fn a_crash() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    let (.., external) = lab.peer(ALICE, &peer(5000));
    lab.flows_by(ALICE, &peer(5001), 5001);
    let (.., told) = lab.peer(ALICE, &peer(5001));
    lab.crash(config(NatMode::Own), 1, 1000);
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(60);
    let left = lab.peer(ALICE, &Peer { lifetime: 0, ..peer(5000) });
    assert_eq!((left.0, left.2), (OK, external));
    assert_eq!(lab.peer(ALICE, &peer(5000)).2, external);
    assert_eq!(lab.peer(ALICE, &peer(5001)), (OK, 3600, told), "by the same nonce as before");
}

/// RFC 6887 §2.2, §12.3: nothing is translated, and a pinhole of that remote host and port makes it last.
#[test]
fn over_ipv6() {
    for provider in [None, Some(model())] {
        let mut lab = Lab::up6(provider);
        let mut ask = |peer: &Peer| {
            let answer = lab.pcp6(CAROL, &peer.request(CAROL.into())).expect("answered at once");
            let told = told(&answer, peer);
            lab.agrees();
            (told, lab.pinholes.open.clone())
        };
        let own = |port| SocketAddr::from((CAROL, port));
        let flows = |port, remote_port| Flows {
            to: Endpoint { addr: CAROL, protocol: Protocol::UDP, port },
            remote: Some(REMOTE6),
            remote_port: Some(remote_port),
        };
        let one = BTreeSet::from([flows(5000, 3478)]);
        assert_eq!(ask(&peer6(5000)), ((OK, 3600, own(5000)), one.clone()));
        let zero = Peer { lifetime: 0, ..peer6(5000) };
        assert_eq!(ask(&zero), ((OK, 3600, own(5000)), one.clone()));
        let other = Peer { nonce: OTHERS, ..peer6(5000) };
        assert_eq!(ask(&other).0.0, ResultCode::NOT_AUTHORIZED);
        assert_eq!(
            ask(&Peer { lifetime: 0, ..peer6(5001) }).0,
            (OK, 0, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
        );
        let elsewhere = Peer { suggested: (Ipv6Addr::UNSPECIFIED.into(), 9), ..peer6(5001) };
        assert_eq!(ask(&elsewhere).0.0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
        let suggests = Peer { suggested: (Ipv6Addr::UNSPECIFIED.into(), 9), ..peer6(5000) };
        assert_eq!(ask(&suggests).0, (OK, 3600, own(5000)), "what is there is told");
        assert_eq!(ask(&peer(5000)).0.0, ResultCode::MALFORMED_REQUEST);
        let two = BTreeSet::from([flows(5000, 3478), flows(5000, 9)]);
        let second = Peer { nonce: OTHERS, remote: (REMOTE6.into(), 9), lifetime: 600, ..peer6(5000) };
        assert_eq!(ask(&second), ((OK, 600, own(5000)), two), "another flow");
        let mut delete = map6(5000);
        (delete.protocol, delete.lifetime) = (Protocol::UDP, 0);
        assert_eq!(lab.map6(CAROL, &delete).0, ResultCode::NOT_AUTHORIZED, "§15: it is none of MAP's");
        lab.pass(700);
        assert_eq!(lab.pinholes.open, one);
        lab.pass(3000);
        lab.agrees();
        assert!(lab.pinholes.open.is_empty());
    }
}

/// RFC 6887 §13.1: what is told is of the third party's flow, and the option is repeated.
#[test]
fn of_somebody_else() {
    for nat in BOTH {
        let third_party = vec![ThirdParty {
            client: "192.168.1.10".parse().unwrap(),
            internal: vec!["192.168.1.0/25".parse().unwrap()],
        }];
        let mut lab = Lab::up_with(Config { third_party, ..config(nat) });
        lab.provider().config_mut().peer = true;
        let option = PcpOption::ThirdParty(BOB.to_ipv6_mapped());
        let of_bob = peer(5000).with(option.clone());
        let by = if nat == NatMode::Own { 7000 } else { 5000 };
        lab.flows_by(BOB, &of_bob, by);
        for lifetime in [3600, 3600, 0] {
            let answer = lab.pcp(ALICE, &Peer { lifetime, ..of_bob.clone() }.request(ALICE.into()));
            assert_eq!((answer.result, answer.lifetime), (OK, 3600), "{nat:?}");
            assert_eq!(answer.options, std::slice::from_ref(&option), "{nat:?} {lifetime}");
        }
        assert_eq!(lab.holds(BOB, 5000, by), nat == NatMode::Own);
        let whom = |(request, data): (Request, PeerData)| (request.options, data.internal_port);
        let asked: Vec<_> = lab.relayed().into_iter().map(whom).collect();
        let expected = if nat == NatMode::Own { vec![] } else { vec![option.clone()] };
        assert_eq!(asked, [(expected, by)], "{nat:?}");
        let noted = Notice::ForThirdParty(ALICE.into(), Protocol::UDP, at(BOB, 5000).into());
        assert_eq!(lab.notices().iter().filter(|&notice| *notice == noted).count(), 1, "{nat:?}");
        let theirs = Peer { nonce: OTHERS, ..peer(5000) };
        assert_eq!(lab.peer(BOB, &theirs).0, ResultCode::NOT_AUTHORIZED, "{nat:?}: told apart by the nonce");

        // A flow that is to be: the mapping is the third party's, and so is what is told of it.
        let to_be = peer(5001).with(option.clone());
        for _ in 0..2 {
            let answer = lab.pcp(ALICE, &to_be.request(ALICE.into()));
            assert_eq!((answer.result, &answer.options[..]), (OK, std::slice::from_ref(&option)), "{nat:?}");
            assert!(lab.mapped().iter().all(|&(_, internal)| internal == at(BOB, 5001)), "{nat:?}");
            let theirs = Peer { nonce: OTHERS, ..peer(5001) };
            assert_eq!(lab.peer(BOB, &theirs).0, ResultCode::NOT_AUTHORIZED, "{nat:?}");
        }
        assert_eq!(lab.peer(ALICE, &Peer { lifetime: 0, ..peer(5001) }).1, 0, "{nat:?}: it is not Alice's");
        let may_not = |lab: &mut Lab, from: Ipv4Addr, of: Ipv4Addr| {
            let one = peer(5002).with(PcpOption::ThirdParty(of.to_ipv6_mapped()));
            lab.pcp(from, &one.request(from.into())).result
        };
        assert_eq!(may_not(&mut lab, BOB, ALICE), ResultCode::UNSUPP_OPTION);
        assert_eq!(may_not(&mut lab, ALICE, ALICE), ResultCode::MALFORMED_REQUEST);
    }
}

/// `[lan] pcp = false` (security policy): what was promised ends, and so does what is on its way.
#[test]
fn switched_off() {
    for nat in BOTH {
        let mut lab = Lab::up_with_peer(nat);
        let by = if nat == NatMode::Own { 7000 } else { 5000 };
        lab.flows_by(ALICE, &peer(5000), by);
        assert_eq!(lab.peer(ALICE, &peer(5000)).0, OK);
        assert_eq!(lab.peer(ALICE, &peer(5001)).0, OK);
        lab.silent = true;
        lab.flows_by(BOB, &peer(5002), 7002);
        assert!(lab.datagram(BOB, &peer(5002).request(BOB.into()).to_bytes()).is_empty());
        assert!(!lab.gateway.is_idle(), "{nat:?}");
        lab.event(Event::Reconfigure(Box::new(Config { pcp: false, ..lab.gateway.config.clone() })));
        lab.silent = false;
        assert_eq!(lab.gateway.peer_rules().count(), 0, "{nat:?}");
        lab.pass(7200);
        assert_eq!(
            (lab.mapped(), lab.rules.len(), lab.gateway.nat_ports_in_use()),
            (vec![], 0, 0),
            "{nat:?}"
        );
        assert!(lab.gateway.is_idle(), "{nat:?}");
    }
}

/// The kernel lets a flow leave by a port that a program of the router listens on; what comes for that is the router's.
#[test]
fn a_port_of_the_router() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.in_use.push((Protocol::UDP, 51_820));
    lab.flows_by(ALICE, &peer(51_820), 51_820);
    assert_eq!(lab.peer(ALICE, &peer(51_820)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    assert_eq!((lab.rules.len(), lab.gateway.nat_ports_in_use()), (0, 0));
    assert!(lab.gateway.is_idle());
    // What is never given is not asked for either.
    lab.effects.clear();
    lab.flows_by(ALICE, &peer(5000), 5351);
    assert_eq!(lab.peer(ALICE, &peer(5000)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    assert_eq!(lab.relayed().len(), 0);
}

/// What the host sends to somebody new leaves by the oldest rule of its port.
#[test]
fn a_flow_beside_another() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.flows_by(ALICE, &peer(5000), 7000);
    assert_eq!(lab.peer(ALICE, &peer(5000)).0, OK);
    let other = Peer { remote: (Ipv4Addr::new(203, 0, 113, 10).into(), 3478), ..peer(5000) };
    assert_eq!(lab.peer(ALICE, &other).0, OK);
    assert_eq!(lab.relayed().iter().map(|(_, data)| data.internal_port).collect::<Vec<_>>(), [7000, 7000]);
    assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 2));
    // A mapping that is younger has another port; one that is older is what counts.
    let mapped = Map { protocol: Protocol::UDP, external: 0, ..map(5000) };
    assert_eq!(lab.map(ALICE, &mapped).0, OK);
    let third = Peer { remote: (Ipv4Addr::new(203, 0, 113, 11).into(), 3478), ..peer(5000) };
    assert_eq!(lab.peer(ALICE, &third).0, OK);
    assert_eq!(lab.relayed().last().unwrap().1.internal_port, 7000);
    let mapped = Map { protocol: Protocol::UDP, ..map(5001) };
    assert_eq!(lab.map(ALICE, &mapped), (OK, 3600, 5001));
    let one = Peer { remote: (REMOTE.into(), 9), ..peer(5001) };
    lab.flows_by(ALICE, &one, 7001);
    assert_eq!(lab.peer(ALICE, &one).0, OK);
    assert_eq!(lab.peer(ALICE, &peer(5001)).2, outside(5001));
}

/// RFC 7648 §3.2: what was promised of a state that the provider has lost is not promised again.
#[test]
fn less_after_a_loss() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.flows_by(ALICE, &peer(5000), 5000);
    let long = Peer { lifetime: 86_400, ..peer(5000) };
    assert_eq!(lab.peer(ALICE, &long).0, OK);
    lab.provider_forgets();
    lab.provider().config_mut().peer = true;
    lab.provider().config_mut().longest = 120;
    lab.pass(100);
    let (result, lifetime, _) = lab.peer(ALICE, &long);
    assert_eq!((result, lifetime), (OK, 120));
    lab.pass(60);
    lab.effects.clear();
    assert_eq!((lab.peer(ALICE, &long).1, lab.relayed().len()), (120, 1), "asked again in time");
}

/// The server knows nothing of what it has said to another address of ours.
#[test]
fn another_wan_address() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.flows_by(ALICE, &peer(5000), 5000);
    assert_eq!(lab.peer(ALICE, &peer(5000)).0, OK);
    lab.pass(100);
    let other = Ipv4Addr::new(100, 64, 0, 77);
    lab.source = other.into();
    lab.event(Event::Wan(wan(&[other])));
    lab.pass(60);
    lab.effects.clear();
    let answer = lab.pcp(ALICE, &peer(5000).request(ALICE.into()));
    assert_eq!((answer.result, lab.relayed().len()), (OK, 1));
    assert!(answer.epoch < 100);
}

/// Who has asked first has it, also while that is on its way, and after a crash.
#[test]
fn two_nonces() {
    let other = Peer { nonce: OTHERS, ..peer(5000) };
    let mut lab = Lab::up_with_peer(NatMode::Own);
    lab.silent = true;
    assert!(lab.datagram(ALICE, &peer(5000).request(ALICE.into()).to_bytes()).is_empty());
    assert!(lab.datagram(ALICE, &other.request(ALICE.into()).to_bytes()).is_empty());
    lab.silent = false;
    let before = lab.effects.len();
    lab.pass(10);
    let told: Vec<_> =
        lab.sent_to(ALICE, before).iter().map(|bytes| Response::parse(bytes).unwrap().result).collect();
    assert_eq!(told, [OK, ResultCode::NOT_AUTHORIZED]);
    assert_eq!(lab.peer(ALICE, &peer(5000)).0, OK);
    lab.crash(config(NatMode::Own), 1, 1000);
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(60);
    assert_eq!(lab.peer(ALICE, &other).0, ResultCode::NOT_AUTHORIZED);
    assert_eq!(lab.peer(ALICE, &peer(5000)).0, OK);
    assert_eq!(lab.peer(ALICE, &other).0, ResultCode::NOT_AUTHORIZED);
}

/// RFC 6887 §12.1: PEER makes nothing shorter, whoever asks.
#[test]
fn nobody_makes_it_shorter() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    let (.., external) = lab.peer(ALICE, &peer(5000));
    let mapped = Map { nonce: OTHERS, protocol: Protocol::UDP, external: 0, lifetime: 600, ..map(5000) };
    assert_eq!(lab.map(ALICE, &mapped).0, OK);
    let short = Peer { nonce: OTHERS, remote: (REMOTE.into(), 9), lifetime: 120, ..peer(5000) };
    assert_eq!(lab.peer(ALICE, &short).0, OK);
    assert_eq!(lab.map(ALICE, &Map { lifetime: 0, external: 0, ..mapped }).0, OK);
    lab.pass(1000);
    assert_eq!(lab.peer(ALICE, &Peer { lifetime: 0, ..peer(5000) }), (OK, 2600, external));
    assert_eq!(lab.mapped(), [(external.port(), at(ALICE, 5000))]);
}

/// What has gone is not told of any more.
#[test]
fn what_has_gone() {
    let mut lab = Lab::up_with_peer(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 300, ..port(8080) }), done());
    let one = Peer { protocol: Protocol::TCP, ..peer(8080) };
    assert_eq!(lab.peer(ALICE, &one).1, 300);
    assert_eq!(lab.delete(ALICE, 1, 8080), done());
    assert_eq!(lab.peer(ALICE, &Peer { lifetime: 0, ..one }).1, 0);
    lab.flows_by(ALICE, &peer(5000), 5000);
    assert_eq!(lab.peer(ALICE, &peer(5000)).1, 3600);
    lab.provider_forgets();
    lab.pass(100);
    assert_eq!(lab.peer(ALICE, &Peer { lifetime: 0, ..peer(5000) }).1, 0);
}

/// RFC 6887 §8.3: who does not serve it is not asked again for as long as it has said so.
#[test]
fn it_is_not_served() {
    let mut lab = Lab::up(NatMode::Own);
    lab.flows_by(ALICE, &peer(5000), 5000);
    lab.flows_by(BOB, &peer(5000), 5001);
    for host in [ALICE, BOB, ALICE] {
        assert_eq!(lab.peer(host, &peer(5000)).0, ResultCode::UNSUPP_OPCODE);
    }
    assert_eq!(lab.relayed().len(), 1);
    lab.pass(1801);
    assert_eq!(lab.peer(BOB, &peer(5000)).0, ResultCode::UNSUPP_OPCODE);
    assert_eq!(lab.relayed().len(), 2);
}

/// Each of several rules of one port that the kernel would not remove goes in the end, also when somebody else has the port by then.
#[test]
fn rules_that_the_kernel_would_not_remove() {
    for taken in [false, true] {
        let mut lab = Lab::up_with_peer(NatMode::Own);
        let other = Ipv4Addr::new(203, 0, 113, 10);
        lab.flows_by(ALICE, &peer(5000), 7000);
        lab.flows.insert((Protocol::UDP, at(ALICE, 5000), at(other, 3478)), 7000);
        assert_eq!(lab.peer(ALICE, &peer(5000)).0, OK);
        assert_eq!(lab.peer(ALICE, &Peer { remote: (other.into(), 3478), ..peer(5000) }).0, OK);
        lab.broken = true;
        lab.event(Event::Release(ALICE.into()));
        lab.pass(65);
        assert_eq!((lab.rules.len(), lab.gateway.peer_rules().count()), (2, 0));
        lab.broken = false;
        if taken {
            let mapped = Map { protocol: Protocol::UDP, ..map(7000) };
            assert_eq!(lab.map(BOB, &mapped).0, OK);
            assert_eq!(lab.rules.iter().map(|rule| rule.internal).collect::<Vec<_>>(), [at(BOB, 7000)]);
        }
        lab.pass(11);
        assert_eq!(lab.rules.len(), usize::from(taken));
        assert!(lab.gateway.is_idle());
    }
}

//! PCP and NAT-PMP on the LAN side (RFC 6887, RFC 6886, RFC 7648), and the one table that all protocols share.

mod given_back;
mod prefer_failure;
mod switched_off;
mod third_party;

use wire::natpmp::{self, Transport};
use wire::pcp::{Filter, Nonce, Opcode, OptionCode};

use super::*;
use crate::gateway::LanArrival;
use crate::table::Health;

pub(super) const MINE: Nonce = Nonce([1; 12]);
pub(super) const OTHERS: Nonce = Nonce([2; 12]);

/// A MAP request of TCP.
#[derive(Clone, Debug)]
pub(super) struct Map {
    pub(super) nonce: Nonce,
    pub(super) protocol: Protocol,
    pub(super) internal: u16,
    pub(super) external: u16,
    pub(super) external_addr: Ipv4Addr,
    pub(super) lifetime: u32,
    pub(super) options: Vec<PcpOption>,
}

/// The same external port as internal, for an hour.
pub(super) fn map(port: u16) -> Map {
    Map {
        nonce: MINE,
        protocol: Protocol::TCP,
        internal: port,
        external: port,
        external_addr: Ipv4Addr::UNSPECIFIED,
        lifetime: 3600,
        options: Vec::new(),
    }
}

impl Map {
    fn with(self, option: PcpOption) -> Self {
        Self { options: [self.options, vec![option]].concat(), ..self }
    }

    pub(super) fn request(&self, host: Ipv4Addr) -> Request {
        let map = MapData {
            nonce: self.nonce,
            protocol: self.protocol,
            internal_port: self.internal,
            external_port: self.external,
            external_addr: self.external_addr.to_ipv6_mapped(),
        };
        let (client_addr, body) = (host.to_ipv6_mapped(), Body::Map(map));
        Request { lifetime: self.lifetime, client_addr, body, options: self.options.clone() }
    }
}

fn filter(prefix_len: u8, addr: Ipv4Addr) -> PcpOption {
    let remote_addr = if prefix_len == 0 { Ipv4Addr::UNSPECIFIED } else { addr };
    PcpOption::Filter(Filter { prefix_len, remote_port: 0, remote_addr: remote_addr.to_ipv6_mapped() })
}

/// What a client hears: result, lifetime, external port.
pub(super) type Told = (ResultCode, u32, u16);

impl Lab {
    /// A datagram from port 4000 of a host; what comes back there in that turn.
    pub(super) fn datagram(&mut self, from: Ipv4Addr, bytes: &[u8]) -> Vec<Vec<u8>> {
        let before = self.effects.len();
        let arrival =
            LanArrival { interface: 3, local: IpAddr::V4(LAN), from: SocketAddr::from((from, 4000)) };
        self.event(Event::Lan5351 { arrival, bytes });
        self.sent_to(from, before)
    }

    /// What a host was sent since there were so many effects.
    pub(super) fn sent_to(&self, host: Ipv4Addr, since: usize) -> Vec<Vec<u8>> {
        let sent = |(_, effect): &(u64, Effect)| match effect {
            Effect::LanSend { interface: 3, local, to, bytes } if to.ip() == IpAddr::V4(host) => {
                assert_eq!((*local, to.port()), (IpAddr::V4(LAN), 4000), "from where it was asked");
                Some(bytes.clone())
            }
            _ => None,
        };
        self.effects[since.min(self.effects.len())..].iter().filter_map(sent).collect()
    }

    /// The provider's server loses its state, and says so.
    pub(super) fn provider_forgets(&mut self) {
        let now = self.instant();
        let bytes = self.provider().lose_state(now);
        self.event(Event::Announcement { from: server(), bytes: &bytes });
    }

    pub(super) fn pcp(&mut self, host: Ipv4Addr, request: &Request) -> Response {
        let answers = self.datagram(host, &request.to_bytes());
        let [answer] = &answers[..] else { panic!("{request:?}: {answers:?}") };
        Response::parse(answer).expect("a well-formed answer")
    }

    pub(super) fn map(&mut self, host: Ipv4Addr, map: &Map) -> Told {
        let answer = self.pcp(host, &map.request(host));
        let Body::Map(data) = answer.body else { panic!("{answer:?}") };
        assert_eq!((data.nonce, data.internal_port), (map.nonce, map.internal));
        if answer.result == ResultCode::SUCCESS && answer.lifetime > 0 {
            assert_eq!(data.external_addr, E.to_ipv6_mapped());
        }
        (answer.result, answer.lifetime, data.external_port)
    }

    pub(super) fn nat_pmp(&mut self, host: Ipv4Addr, request: natpmp::Request) -> natpmp::Response {
        let answers = self.datagram(host, &request.to_bytes());
        let [answer] = &answers[..] else { panic!("{request:?}: {answers:?}") };
        natpmp::Response::parse(answer).expect("a well-formed answer")
    }

    /// Result, lifetime, external port.
    pub(super) fn nat_pmp_map(
        &mut self,
        host: Ipv4Addr,
        internal: u16,
        external: u16,
        lifetime: u32,
    ) -> (u16, u32, u16) {
        match self.nat_pmp(host, nat_pmp(internal, external, lifetime)) {
            natpmp::Response::Map { result, internal_port, external_port, lifetime, .. } => {
                assert_eq!(internal_port, internal);
                (result.0, lifetime, external_port)
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(super) fn nat_pmp(internal_port: u16, external_port: u16, lifetime: u32) -> natpmp::Request {
    natpmp::Request::Map { protocol: Transport::Tcp, internal_port, external_port, lifetime }
}

const OK: ResultCode = ResultCode::SUCCESS;

/// RFC 6887 §11, RFC 7648 §3: a mapping for the host that asks, by its own nonce here and by the gateway's there; it is in the one
/// table, and whoever lists that sees it.
#[test]
fn a_pcp_client_gets_its_port() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.map(ALICE, &map(8080)), (OK, 3600, 8080), "{nat:?}");
        assert_eq!((lab.mapped(), lab.upstream().len()), (vec![(8080, at(ALICE, 8080))], 1));
        assert!(
            lab.sent().iter().all(|(_, request)| map_of(request).nonce != MINE),
            "nonces stay on their side"
        );
        let listed = lab.call(BOB, 1, "GetGenericPortMappingEntry", &[("NewPortMappingIndex", "0")]).unwrap();
        assert_eq!(listed[1..], ["8080", "TCP", "8080", &ALICE.to_string(), "1", "PCP", "3600"]);
        // Again: the same one, whatever is suggested, and nothing is asked upstream as long as three quarters are left.
        lab.effects.clear();
        lab.pass(100);
        assert_eq!(lab.map(ALICE, &Map { external: 9999, ..map(8080) }), (OK, 3500, 8080));
        assert_eq!(lab.sent().len(), 0);
        lab.pass(1000);
        assert_eq!(lab.map(ALICE, &map(8080)), (OK, 3600, 8080));
        assert_eq!(lab.sent().len(), 1, "less is left: the provider is asked (RFC 7648 §3.2)");
        let gone = Map { lifetime: 0, external: 0, ..map(8080) };
        assert_eq!(lab.map(ALICE, &gone), (OK, 0, 0));
        assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0), "{nat:?}");
        assert_eq!(lab.map(ALICE, &gone), (OK, 0, 0), "what is not there is deleted (§15)");
    }
}

/// RFC 7648 §3.2: the client is told no more than what the provider has granted; what is told lasts, and ends.
#[test]
fn lifetimes() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().longest = 600;
        assert_eq!(lab.map(ALICE, &map(8080)), (OK, 600, 8080));
        assert_eq!(lab.map(BOB, &Map { lifetime: 1, ..map(8081) }), (OK, 120, 8081), "§15: no shorter ones");
        assert_eq!(lab.map(BOB, &Map { lifetime: u32::MAX, ..map(8082) }), (OK, 600, 8082));
        lab.pass(130);
        assert_eq!(lab.mapped().len(), 2, "{nat:?}");
        lab.pass(480);
        assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0));
    }
}

/// RFC 6887 §8.2 and §11.3 in their order: what is answered before anything is asked of the provider.
#[test]
fn rfc6887_8_2_row_by_row() {
    use ResultCode as R;
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.map(ALICE, &map(8080)), (OK, 3600, 8080));
    lab.effects.clear();
    let request = |map: Map| map.request(ALICE).to_bytes();
    let with = |offset: usize, octet: u8| {
        let mut bytes = request(map(5000));
        bytes[offset] = octet;
        bytes
    };
    let third_party = PcpOption::ThirdParty(BOB.to_ipv6_mapped());
    let unknown = |code| PcpOption::Unknown { code: OptionCode(code), data: vec![1, 2, 3, 4] };
    let peer = Ipv4Addr::new(203, 0, 113, 9);
    let rows: Vec<(Vec<u8>, Option<R>, &str)> = vec![
        (vec![], None, "nothing"),
        (vec![2], None, "one octet"),
        (with(1, 0x81), None, "a response"),
        (with(0, 1), Some(R::UNSUPP_VERSION), "version 1"),
        (with(0, 3), Some(R::UNSUPP_VERSION), "version 3"),
        (request(map(5000))[..23].to_vec(), None, "no whole header"),
        (request(map(5000))[..40].to_vec(), Some(R::MALFORMED_REQUEST), "no whole MAP"),
        ([request(map(5000)), vec![0; 3]].concat(), Some(R::MALFORMED_REQUEST), "no multiple of 4"),
        ([request(map(5000)), vec![0; 1100]].concat(), Some(R::MALFORMED_REQUEST), "more than 1100"),
        (map(5000).request(BOB).to_bytes(), Some(R::ADDRESS_MISMATCH), "somebody else's address"),
        (with(1, 2), Some(R::MALFORMED_REQUEST), "too short for PEER"),
        (with(1, 99), Some(R::UNSUPP_OPCODE), "an unknown opcode"),
        (request(map(5000).with(third_party)), Some(R::UNSUPP_OPTION), "THIRD_PARTY from the LAN"),
        (request(map(5000).with(unknown(100))), Some(R::UNSUPP_OPTION), "an unknown mandatory option"),
        (
            request(map(5000).with(PcpOption::PreferFailure).with(PcpOption::PreferFailure)),
            Some(R::MALFORMED_OPTION),
            "PREFER_FAILURE twice",
        ),
        (
            request(Map { protocol: Protocol(0), ..map(5000) }),
            Some(R::MALFORMED_REQUEST),
            "a port of no protocol",
        ),
        (request(Map { protocol: Protocol(0), ..map(0) }), Some(R::UNSUPP_PROTOCOL), "everything"),
        (request(map(0)), Some(R::UNSUPP_PROTOCOL), "all ports"),
        (request(Map { protocol: Protocol(132), ..map(5000) }), Some(R::UNSUPP_PROTOCOL), "SCTP"),
        (request(Map { nonce: OTHERS, ..map(8080) }), Some(R::NOT_AUTHORIZED), "another nonce"),
        (
            request(Map { nonce: OTHERS, lifetime: 0, ..map(8080) }),
            Some(R::NOT_AUTHORIZED),
            "another nonce's delete",
        ),
        (
            request(Map { lifetime: 0, ..map(8080) }.with(PcpOption::PreferFailure)),
            Some(R::MALFORMED_OPTION),
            "a delete that prefers failure",
        ),
        (
            request(Map { external: 8081, ..map(8080) }.with(PcpOption::PreferFailure)),
            Some(R::CANNOT_PROVIDE_EXTERNAL),
            "it has another port",
        ),
        (
            request(Map { external_addr: W, ..map(5000) }.with(PcpOption::PreferFailure)),
            Some(R::CANNOT_PROVIDE_EXTERNAL),
            "another address",
        ),
        (
            request(map(5000).with(filter(128, peer)).with(filter(128, ALICE))),
            Some(R::EXCESSIVE_REMOTE_PEERS),
            "two remote hosts",
        ),
        (request(map(5000).with(filter(120, peer))), Some(R::EXCESSIVE_REMOTE_PEERS), "a remote network"),
        (request(map(80)), Some(R::NOT_AUTHORIZED), "a low port (decision 27)"),
    ];
    for (bytes, result, what) in rows {
        let answers = lab.datagram(ALICE, &bytes);
        let told = answers.first().map(|answer| Response::parse(answer).expect(what).result);
        assert_eq!((told, answers.len() <= 1), (result, true), "{what}");
        lab.pass(1); // not too many
    }
    assert_eq!((lab.sent().len(), lab.mapped().len()), (0, 1), "nothing of it went upstream");
    // The remaining lifetime of who has it (§11.3).
    let told = lab.map(ALICE, &Map { nonce: OTHERS, ..map(8080) });
    assert!(told.0 == R::NOT_AUTHORIZED && (3500..3600).contains(&told.1), "{told:?}");
    // What is optional and unknown is passed over (§7.3).
    assert_eq!(lab.map(ALICE, &map(5000).with(unknown(200))), (OK, 3600, 5000));
}

/// Security policy: only from the LAN, by the interface that it is on; never from ourselves; not too many.
#[test]
fn who_is_heard() {
    let mut lab = Lab::up(NatMode::Own);
    let bytes = map(8080).request(ALICE).to_bytes();
    let local = IpAddr::V4(LAN);
    let from = |host: Ipv4Addr| SocketAddr::from((host, 4000));
    for (arrival, what) in [
        (LanArrival { interface: 4, local, from: from(ALICE) }, "another interface"),
        (LanArrival { interface: 3, local: IpAddr::V4(W), from: from(ALICE) }, "the WAN's address"),
        (LanArrival { interface: 3, local, from: from(Ipv4Addr::new(203, 0, 113, 9)) }, "from outside"),
        (LanArrival { interface: 3, local, from: from(LAN) }, "ourselves"),
        (LanArrival { interface: 3, local, from: from(Ipv4Addr::new(192, 168, 1, 255)) }, "a broadcast"),
    ] {
        let before = lab.effects.len();
        lab.event(Event::Lan5351 { arrival, bytes: &bytes });
        let sent = lab.effects[before..].iter().any(|(_, effect)| matches!(effect, Effect::LanSend { .. }));
        assert_eq!((sent, lab.mapped()), (false, vec![]), "{what}");
    }
    assert_eq!(lab.status().lan_served.ignored, 5);
    let announce = Request {
        lifetime: 0,
        client_addr: ALICE.to_ipv6_mapped(),
        body: Body::Announce,
        options: Vec::new(),
    };
    let answered = (0..1000).filter(|_| !lab.datagram(ALICE, &announce.to_bytes()).is_empty()).count();
    assert_eq!(answered, 500, "a burst");
    let of_bob = Request { client_addr: BOB.to_ipv6_mapped(), ..announce };
    assert_eq!(lab.pcp(BOB, &of_bob).result, OK, "another host's is another's");
    // Switched off there is nobody.
    for (pcp, nat_pmp, heard) in [(false, false, 0), (false, true, 1)] {
        let mut lab = Lab::up_with(Config { pcp, nat_pmp, ..config(NatMode::Own) });
        let answers = lab.datagram(ALICE, &bytes);
        assert_eq!(answers.len(), heard);
        let refused = natpmp::ResultCode::UNSUPPORTED_VERSION;
        assert!(answers.iter().all(|answer| answer[2..4] == refused.0.to_be_bytes()), "{answers:?}");
    }
}

/// RFC 6887 §8.2 and §9 over IPv6, and the security policy: from where it was asked, at whichever address; ANNOUNCE is answered, the rest is
/// refused; NAT-PMP is a version that is not spoken.
#[test]
fn who_is_heard_over_ipv6() {
    let addr = |text: &str| text.parse::<IpAddr>().unwrap();
    let own = |text: &str, prefix_len| InterfaceAddress { addr: addr(text), prefix_len };
    let lan = || {
        let mut lan = lan();
        lan[0].addresses.extend([own("fe80::1", 64), own("2001:db8:7::1", 64), own("fd00:7::1", 64)]);
        lan
    };
    let announce = |host: IpAddr| {
        let IpAddr::V6(client_addr) = host else { panic!("{host}") };
        Request { lifetime: 0, client_addr, body: Body::Announce, options: Vec::new() }
    };
    let ask = |lab: &mut Lab, interface, local: &str, from: &str, bytes: &[u8]| {
        let before = lab.effects.len();
        let (local, from) = (addr(local), from.parse().unwrap());
        lab.event(Event::Lan5351 { arrival: LanArrival { interface, local, from }, bytes });
        let answers = lab.effects[before..].iter().filter_map(|(_, effect)| match effect {
            Effect::LanSend { interface: 3, local: at, to, bytes } if *to == from => {
                assert_eq!(*at, local, "from where it was asked");
                Some(bytes.clone())
            }
            Effect::LanSend { .. } => panic!("{effect:?}"),
            _ => None,
        });
        answers.collect::<Vec<_>>()
    };
    let up = |config: Config| {
        let mut lab = Lab::up_with(config);
        lab.event(Event::Lan(lan()));
        lab.pass(300);
        lab
    };
    let mut lab = up(config(NatMode::Own));
    for (interface, local, from, heard) in [
        (3, "fe80::1", "[fe80::10%3]:4000", true),
        (3, "2001:db8:7::1", "[2001:db8:7::10]:4000", true),
        (3, "fd00:7::1", "[fd00:7::10]:4000", true),
        (3, "fd00:7::1", "[2001:db8:7::10]:4000", true),
        (4, "fe80::1", "[fe80::10%4]:4000", false), // another interface
        (3, "fe80::2", "[fe80::10%3]:4000", false), // not ours
        (3, "2001:db8:7::1", "[2001:db8:8::10]:4000", false), // from outside
        (3, "2001:db8:7::1", "[2001:db8:7::1]:4000", false), // ourselves
        (3, "fe80::1", "[fe80::1%3]:4000", false),
        (3, "fe80::1", "[::]:4000", false),
        (3, "fe80::1", "[ff02::1%3]:4000", false),
    ] {
        let request = announce(from.parse::<SocketAddr>().unwrap().ip());
        let answers = ask(&mut lab, interface, local, from, &request.to_bytes());
        assert_eq!(answers.len(), usize::from(heard), "{from} at {local}");
        for answer in answers {
            let answer = Response::parse(&answer).unwrap();
            assert_eq!((answer.result, answer.body), (OK, Body::Announce), "{from} at {local}");
        }
    }
    let (at, from) = ("2001:db8:7::1", "[2001:db8:7::10]:4000");
    let host: Ipv6Addr = "2001:db8:7::10".parse().unwrap();
    let nat_pmp = natpmp::Request::ExternalAddress.to_bytes();
    let others = announce(addr("2001:db8:7::11"));
    for (bytes, result, version) in [
        (nat_pmp.clone(), ResultCode::UNSUPP_VERSION, 2),
        (others.to_bytes(), ResultCode::ADDRESS_MISMATCH, 2),
    ] {
        let answers = ask(&mut lab, 3, at, from, &bytes);
        let [answer] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!((answer[0], answer[3]), (version, result.0), "{answer:?}");
    }
    assert_eq!(lab.mapped(), vec![]);
    let answered =
        (0..1000).filter(|_| !ask(&mut lab, 3, at, from, &announce(host.into()).to_bytes()).is_empty());
    assert!(answered.count() < 500, "a burst, of which some is gone");
    // With NAT-PMP alone there is nobody over IPv6.
    let mut lab = up(Config { pcp: false, ..config(NatMode::Own) });
    assert_eq!(ask(&mut lab, 3, at, from, &announce(host.into()).to_bytes()), Vec::<Vec<u8>>::new());
    assert_eq!(ask(&mut lab, 3, at, from, &nat_pmp), Vec::<Vec<u8>>::new());
}

/// RFC 6887 §14.1.3: over IPv6 from each of our addresses to all nodes of the link, and PCP's announcement only.
#[test]
fn announcements_over_ipv6() {
    let own = |text: &str| InterfaceAddress { addr: text.parse().unwrap(), prefix_len: 64 };
    for (pcp, nat_pmp) in [(true, true), (true, false), (false, true)] {
        let mut lab = Lab::new(Config { pcp, nat_pmp, ..config(NatMode::Own) });
        let mut lan = lan();
        lan[0].addresses.extend([own("fe80::1"), own("2001:db8:7::1")]);
        lab.event(Event::Lan(lan));
        lab.event(Event::Wan(wan(&[W])));
        lab.run(300_000);
        let of = |local: &str| {
            let local: IpAddr = local.parse().unwrap();
            let sent = lab.effects.iter().filter_map(|(_, effect)| match effect {
                Effect::LanSend { interface: 3, local: from, to, bytes } if *from == local => {
                    Some((*to, bytes))
                }
                _ => None,
            });
            sent.map(|(to, bytes)| (to.to_string(), bytes.clone())).collect::<Vec<_>>()
        };
        let of_link = of("fe80::1");
        assert_eq!(of_link, of("2001:db8:7::1"));
        assert_eq!(of_link.len(), if pcp { 11 } else { 0 });
        for (to, bytes) in of_link {
            assert_eq!(to, "[ff02::1]:5350");
            assert_eq!(
                Response::parse(&bytes).map(|said| (said.result, said.body)),
                Ok((OK, Body::Announce))
            );
        }
        assert!(of(&LAN.to_string()).iter().all(|(to, _)| to == "224.0.0.1:5350"));
    }
}

/// A client repeats what is not answered yet; it is answered once, and a silent provider is silence, not a lie.
#[test]
fn a_slow_provider() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.silent = true;
        let bytes = map(8080).request(ALICE).to_bytes();
        for _ in 0..3 {
            assert_eq!(lab.datagram(ALICE, &bytes), [] as [Vec<u8>; 0]);
            lab.pass(3);
        }
        lab.silent = false;
        let before = lab.effects.len();
        lab.datagram(ALICE, &bytes);
        lab.pass(30);
        let told = lab.sent_to(ALICE, before);
        assert_eq!(told.len(), 1, "{nat:?}");
        assert_eq!(Response::parse(&told[0]).unwrap().result, OK);
        assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))]);
        // Without a way out it is said, so that the client tries something else.
        lab.event(Event::Wan(wan(&[])));
        assert_eq!(lab.map(ALICE, &map(8081)).0, ResultCode::NETWORK_FAILURE);
    }
}

/// PREFER_FAILURE (RFC 6887 §13.2), and without it any port.
#[test]
fn ports_that_are_taken() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(BOB, 1, port(8080)), done());
        let strict = map(8080).with(PcpOption::PreferFailure);
        assert_eq!(
            lab.map(ALICE, &strict).0,
            ResultCode::CANNOT_PROVIDE_EXTERNAL,
            "{nat:?}: another host has it"
        );
        let (result, _, other) = lab.map(ALICE, &map(8080));
        assert_eq!((result, other == 8080), (OK, false));
        lab.script = [Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 30)].into();
        let strict = map(8081).with(PcpOption::PreferFailure);
        assert_eq!(
            lab.map(ALICE, &strict).0,
            ResultCode::CANNOT_PROVIDE_EXTERNAL,
            "another subscriber has it"
        );
        lab.script = [Reaction::Refuse(ResultCode::USER_EX_QUOTA, 30)].into();
        assert_eq!(lab.map(ALICE, &map(8082)).0, ResultCode::USER_EX_QUOTA);
        lab.script = [Reaction::Refuse(ResultCode::UNSUPP_OPCODE, 30)].into();
        assert_eq!(lab.map(ALICE, &map(8083)).0, ResultCode::NETWORK_FAILURE, "that is not about the client");
    }
}

/// RFC 6887 §13.3: one remote host is let in, here and there; a request without the option changes nothing, prefix length 0 everything.
#[test]
fn filters() {
    let (one, two) = (Ipv4Addr::new(203, 0, 113, 9), Ipv4Addr::new(203, 0, 113, 10));
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        let peer = |lab: &Lab| lab.gateway.mappings(lab.instant()).next().unwrap().remote_peer;
        assert_eq!(lab.map(ALICE, &map(8080).with(filter(128, one))), (OK, 3600, 8080));
        assert_eq!(lab.map(ALICE, &map(8080)), (OK, 3600, 8080));
        assert_eq!(peer(&lab), Some(one), "{nat:?}");
        let replaced = map(8080).with(filter(0, one)).with(filter(128, two));
        assert_eq!(lab.map(ALICE, &replaced), (OK, 3600, 8080));
        assert_eq!(peer(&lab), Some(two));
        assert_eq!(lab.map(ALICE, &map(8080).with(filter(0, one))), (OK, 3600, 8080));
        assert_eq!(peer(&lab), None);
        let rules: Vec<_> = lab.rules.iter().map(|rule| rule.remote_peer).collect();
        assert_eq!(rules, if nat == NatMode::Own { vec![None] } else { vec![] });
    }
}

/// RFC 6886, N-5 to N-10.
#[test]
fn a_nat_pmp_client_gets_its_port() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        let external = lab.nat_pmp(ALICE, natpmp::Request::ExternalAddress);
        let (result, epoch) = (natpmp::ResultCode::SUCCESS, 10);
        assert_eq!(external, natpmp::Response::ExternalAddress { result, epoch, addr: E });
        assert_eq!(lab.nat_pmp_map(ALICE, 8080, 8080, 7200), (0, 7200, 8080), "{nat:?}");
        assert_eq!(
            lab.nat_pmp_map(ALICE, 8080, 9999, 60),
            (0, 60, 8080),
            "N-5: the one there is; N-7: as asked"
        );
        assert_ne!(lab.nat_pmp_map(BOB, 8080, 8080, 60).2, 8080, "N-6: another one");
        assert_eq!(lab.nat_pmp_map(ALICE, 8080, 0, 0), (0, 0, 0));
        assert_eq!(lab.nat_pmp_map(ALICE, 8080, 0, 0), (0, 0, 0), "N-8: again, the same");
        for port in [5000, 5001] {
            assert_eq!(lab.nat_pmp_map(ALICE, port, port, 600), (0, 600, port));
        }
        assert_eq!(lab.nat_pmp_map(ALICE, 0, 0, 0), (0, 0, 0), "N-9: all of the host's");
        assert_eq!(lab.mapped().len(), 1, "but not another's");
        assert_eq!(lab.nat_pmp_map(ALICE, 0, 5, 0).0, 2);
        lab.pass(70);
        assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0));
        // N-10: what fails names its port and nothing else.
        lab.script = [Reaction::Refuse(ResultCode::NO_RESOURCES, 30)].into();
        let refused = lab.nat_pmp_map(ALICE, 8080, 8080, 7200);
        assert_eq!((refused.1, refused.2), (0, 0));
        // N-1, N-2.
        lab.pass(60);
        assert_eq!(lab.datagram(ALICE, &[0, 99]).concat()[..4], [0, 128 + 99, 0, 5]);
        assert_eq!(lab.datagram(ALICE, &[0, 128]).len(), 0);
        lab.event(Event::Wan(wan(&[])));
        let natpmp::Response::ExternalAddress { result, addr, .. } =
            lab.nat_pmp(ALICE, natpmp::Request::ExternalAddress)
        else {
            panic!("the question was another one");
        };
        assert_eq!((result.0, addr), (3, Ipv4Addr::UNSPECIFIED));
    }
}

/// One program asks by all three protocols for the same port, as file-sharing programs do: it is one mapping, and it stands until the
/// last of them has let it go, in whatever order.
#[test]
fn one_mapping_by_all_protocols() {
    for nat in BOTH {
        for order in 0..6 {
            let mut lab = Lab::up(nat);
            let mut all = ["igd", "pcp", "nat-pmp"];
            all.swap(0, order % 3);
            if order > 2 {
                all.swap(1, 2);
            }
            for what in all {
                match what {
                    "igd" => assert_eq!(lab.add(ALICE, 1, port(8080)), done()),
                    "pcp" => assert_eq!(lab.map(ALICE, &map(8080)).0, OK),
                    _ => assert_eq!(lab.nat_pmp_map(ALICE, 8080, 8080, 3600).0, 0),
                }
            }
            assert_eq!((lab.mapped().len(), lab.upstream().len()), (1, 1), "{nat:?} {all:?}");
            for (n, what) in all.into_iter().enumerate() {
                assert_eq!(lab.mapped().len(), 1, "{nat:?} {all:?}: {n} have let it go");
                match what {
                    "igd" => assert_eq!(lab.delete(ALICE, 1, 8080), done()),
                    "pcp" => assert_eq!(lab.map(ALICE, &Map { lifetime: 0, ..map(8080) }).0, OK),
                    _ => assert_eq!(lab.nat_pmp_map(ALICE, 8080, 0, 0).0, 0),
                }
            }
            assert_eq!(
                (lab.mapped(), lab.upstream(), lab.rules.len()),
                (vec![], vec![], 0),
                "{nat:?} {all:?}"
            );
            assert!(lab.store.is_empty());
        }
    }
}

/// The same at the same moment, while the provider has not answered yet: all are answered, and there is one mapping.
#[test]
fn all_protocols_at_once() {
    for nat in BOTH {
        for order in 0..3 {
            let mut lab = Lab::up(nat);
            lab.silent = true;
            let before = lab.effects.len();
            let mut added = None;
            for what in [order, (order + 1) % 3, (order + 2) % 3] {
                match what {
                    0 => added = Some(lab.start_add(ALICE, 1, port(8080))),
                    1 => drop(lab.datagram(ALICE, &map(8080).request(ALICE).to_bytes())),
                    _ => drop(lab.datagram(ALICE, &nat_pmp(8080, 8080, 3600).to_bytes())),
                }
            }
            lab.silent = false;
            lab.pass(3);
            assert_eq!(lab.heard(added.unwrap()), Some(done()), "{nat:?} {order}");
            assert_eq!(lab.sent_to(ALICE, before).len(), 2, "{nat:?} {order}");
            assert_eq!((lab.mapped().len(), lab.upstream().len()), (1, 1), "{nat:?} {order}");
        }
    }
}

/// Nobody takes or ends what another host, or another protocol of the same host, counts on.
#[test]
fn mappings_are_protected_from_each_other() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.map(ALICE, &map(8080)).0, OK);
        assert_eq!(lab.add(BOB, 1, port(8080)), Err(718), "{nat:?}: UPnP of another host");
        assert_ne!(lab.nat_pmp_map(BOB, 8080, 8080, 60).2, 8080, "NAT-PMP of another host");
        assert_eq!(lab.delete(BOB, 2, 8080), Err(606));
        assert_eq!(lab.delete(ALICE, 2, 8080), Err(606), "it was not made by UPnP");
        let range =
            [("NewStartPort", "1024"), ("NewEndPort", "65535"), ("NewProtocol", "TCP"), ("NewManage", "1")];
        assert_eq!(lab.call(ALICE, 2, "DeletePortMappingRange", &range), Err(730));
        assert_eq!(lab.add(ALICE, 2, port(8080).to(9090)), Err(718), "PCP was told that it leads to 8080");
        assert_eq!(lab.nat_pmp_map(ALICE, 8080, 0, 0).0, 2, "nor by NAT-PMP");
        assert_eq!(lab.add(BOB, 1, port(7070)), done());
        assert_eq!(
            lab.map(BOB, &Map { lifetime: 0, ..map(7070) }).0,
            ResultCode::NOT_AUTHORIZED,
            "nor by PCP"
        );
        assert!(
            lab.mapped().contains(&(8080, at(ALICE, 8080))) && lab.mapped().contains(&(7070, at(BOB, 7070)))
        );
    }
}

/// N-6: the same port of the other protocol is kept for the host that has it by NAT-PMP.
#[test]
fn the_companion_port_is_reserved() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.nat_pmp_map(ALICE, 8080, 8080, 3600), (0, 3600, 8080));
        let udp = |port| Map { protocol: Protocol::UDP, ..map(port) };
        let strict = udp(8080).with(PcpOption::PreferFailure);
        assert_eq!(lab.map(BOB, &strict).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "{nat:?}");
        let (result, _, port) = lab.map(BOB, &udp(8080));
        assert_eq!((result, port == 8080), (OK, false), "any other will do");
        assert_eq!(lab.map(ALICE, &strict), (OK, 3600, 8080), "it is kept for her");
    }
}

/// Decision 18: a host that is released while it waits for what another protocol of it has asked for gets nothing.
#[test]
fn a_host_that_is_released_while_it_waits() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.silent = true;
        lab.datagram(ALICE, &map(8080).request(ALICE).to_bytes());
        let added = lab.start_add(ALICE, 1, port(8080));
        assert_eq!(lab.heard(added), None);
        lab.event(Event::Release(ALICE.into()));
        lab.silent = false;
        lab.pass(30);
        assert_eq!(
            (lab.heard(added), lab.mapped(), lab.upstream()),
            (Some(Err(501)), vec![], vec![]),
            "{nat:?}"
        );
    }
}

/// Decision 27: the quota counts what a host has by whatever protocol.
#[test]
fn one_quota_for_all_protocols() {
    let mut lab = Lab::up(NatMode::Own);
    let mut settings = config(NatMode::Own);
    settings.policy.mappings_per_host = 3;
    lab.event(Event::Reconfigure(Box::new(settings)));
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    assert_eq!(lab.map(ALICE, &map(8081)).0, OK);
    assert_eq!(lab.nat_pmp_map(ALICE, 8082, 8082, 60).0, 0);
    assert_eq!(lab.map(ALICE, &map(8083)).0, ResultCode::USER_EX_QUOTA);
    assert_eq!(lab.nat_pmp_map(ALICE, 8084, 8084, 60).0, 4);
    assert_eq!(lab.add(ALICE, 2, port(8085)), Err(728));
    assert_eq!(lab.map(BOB, &map(8083)).0, OK);
    assert_eq!(lab.map(ALICE, &map(8080)).0, OK, "what it has counts once");
}

/// Decision 16: what was acknowledged survives a crash, with its nonce: the client is known again, and nobody else.
#[test]
fn a_crash() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.map(ALICE, &map(8080)).0, OK);
        assert_eq!(lab.nat_pmp_map(BOB, 8081, 8081, 7200).0, 0);
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        lab.crash(config(nat), 77, 5000);
        lab.bring_up();
        lab.pass(60);
        assert_eq!(lab.mapped().len(), 2, "{nat:?}");
        assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
        assert_eq!(lab.map(ALICE, &Map { nonce: OTHERS, ..map(8080) }).0, ResultCode::NOT_AUTHORIZED);
        assert_eq!(lab.map(ALICE, &Map { lifetime: 0, ..map(8080) }).0, OK);
        assert_eq!(lab.mapped().len(), 2, "UPnP counts on it");
        assert_eq!(lab.delete(ALICE, 1, 8080), done());
        assert_eq!(lab.mapped(), [(8081, at(BOB, 8081))]);
        lab.pass(7200);
        assert_eq!((lab.mapped(), lab.upstream()), (vec![], vec![]), "{nat:?}");
    }
}

/// What was told is what is stored: a mapping that the provider gave for less than was asked does not come back after its end.
#[test]
fn what_has_ended_does_not_come_back() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().longest = 600;
        assert_eq!(lab.map(ALICE, &Map { lifetime: 86_400, ..map(8080) }), (OK, 600, 8080));
        assert_eq!(lab.nat_pmp_map(BOB, 8081, 8081, 7200), (0, 600, 8081));
        lab.pass(700);
        assert_eq!(lab.mapped(), []);
        lab.crash(config(nat), 77, 1000);
        lab.bring_up();
        lab.pass(60);
        assert_eq!((lab.mapped(), lab.upstream()), (vec![], vec![]), "{nat:?}");
    }
}

/// A client that ends while the provider is slow: nothing comes to stand that nobody would let go.
#[test]
fn a_delete_of_what_is_on_its_way() {
    for nat in BOTH {
        for protocol in ["pcp", "nat-pmp", "all"] {
            let mut lab = Lab::up(nat);
            lab.silent = true;
            if protocol == "pcp" {
                assert_eq!(lab.datagram(ALICE, &map(8080).request(ALICE).to_bytes()).len(), 0);
                assert_eq!(lab.map(ALICE, &Map { lifetime: 0, ..map(8080) }).0, OK);
            } else {
                assert_eq!(lab.datagram(ALICE, &nat_pmp(8080, 8080, 3600).to_bytes()).len(), 0);
                let port = if protocol == "all" { 0 } else { 8080 };
                assert_eq!(lab.nat_pmp_map(ALICE, port, 0, 0).0, 0);
            }
            lab.silent = false;
            let before = lab.effects.len();
            lab.pass(60);
            assert_eq!((lab.mapped(), lab.upstream()), (vec![], vec![]), "{nat:?} {protocol}");
            assert_eq!(lab.sent_to(ALICE, before).len(), 0, "it has heard what there is to hear");
            assert!(lab.gateway.is_idle());
        }
    }
}

/// RFC 6887 §11.3: a suggestion that is left to nobody is none, unless it is the only port that is wanted.
#[test]
fn ports_that_are_left_to_nobody() {
    let mut lab = Lab::up(NatMode::Own);
    for (protocol, external) in [(Protocol::TCP, 443), (Protocol::UDP, 5351), (Protocol::UDP, 5350)] {
        let wish = Map { protocol, external, ..map(8080) };
        let strict = wish.clone().with(PcpOption::PreferFailure);
        assert_eq!(lab.map(ALICE, &strict).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "{external}");
        let (result, _, port) = lab.map(ALICE, &wish);
        assert!((result, port == external) == (OK, false), "{external}: {port}");
        assert_eq!(lab.map(ALICE, &Map { lifetime: 0, ..wish }).0, OK);
    }
    let (result, _, port) = lab.nat_pmp_map(ALICE, 8080, 80, 60);
    assert_eq!((result, port == 80), (0, false));
    let nothing = Map { external: 0, ..map(5000) }.with(PcpOption::PreferFailure);
    assert_eq!(lab.map(ALICE, &nothing).0, ResultCode::MALFORMED_OPTION, "§13.2");
}

/// The same client asks for something else while the first is on its way: neither is lost, and policy is asked both times.
#[test]
fn another_request_meanwhile() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        let peer = Ipv4Addr::new(203, 0, 113, 9);
        lab.silent = true;
        for asked in [map(8080).with(filter(128, peer)), map(8080), Map { external: 80, ..map(8080) }] {
            assert_eq!(lab.datagram(ALICE, &asked.request(ALICE).to_bytes()).len(), 0, "{nat:?}");
        }
        lab.silent = false;
        let before = lab.effects.len();
        lab.pass(15);
        assert_eq!(lab.sent_to(ALICE, before).len(), 3, "{nat:?}");
        let mapping = lab.gateway.mappings(lab.instant()).next().unwrap();
        assert_eq!((mapping.external.port(), mapping.remote_peer), (8080, Some(peer)), "{nat:?}");
    }
}

/// A filter that cannot be set is not said to be: with a NAT of ours that enforces it, otherwise the provider has to.
#[test]
fn a_filter_that_is_refused() {
    let peer = Ipv4Addr::new(203, 0, 113, 9);
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.map(ALICE, &map(8080)).0, OK);
        lab.script = [Reaction::Refuse(ResultCode::EXCESSIVE_REMOTE_PEERS, 30)].into();
        let told = lab.map(ALICE, &map(8080).with(filter(128, peer))).0;
        let own = nat == NatMode::Own;
        assert_eq!(told, if own { OK } else { ResultCode::EXCESSIVE_REMOTE_PEERS }, "{nat:?}");
        let stands = |lab: &Lab| lab.gateway.mappings(lab.instant()).next().unwrap().remote_peer;
        assert_eq!(stands(&lab), own.then_some(peer));
        if own {
            lab.broken = true;
            let other = map(8080).with(filter(0, peer)).with(filter(128, Ipv4Addr::new(203, 0, 113, 10)));
            assert_eq!(lab.map(ALICE, &other).0, ResultCode::NO_RESOURCES, "the kernel will not");
            assert_eq!(stands(&lab), Some(peer));
        }
    }
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.map(ALICE, &map(8080).with(filter(128, peer))).0, OK);
    let second = map(8080).with(filter(128, Ipv4Addr::new(203, 0, 113, 10)));
    assert_eq!(lab.map(ALICE, &second).0, ResultCode::EXCESSIVE_REMOTE_PEERS, "they add up (§13.3)");
}

/// The epochs that clients were told by multicast, and how.
fn announced(lab: &Lab, since: usize) -> Vec<(u64, &'static str, u32, Option<Ipv4Addr>)> {
    let announcement = |(at, effect): &(u64, Effect)| match effect {
        Effect::LanSend { interface: 3, local, to, bytes } if to.ip().is_multicast() => {
            assert_eq!((*local, to.to_string().as_str()), (IpAddr::V4(LAN), "224.0.0.1:5350"));
            match natpmp::Response::parse(bytes) {
                Ok(natpmp::Response::ExternalAddress { epoch, addr, .. }) => {
                    Some((*at, "NAT-PMP", epoch, Some(addr)))
                }
                _ => {
                    let response = Response::parse(bytes).unwrap();
                    assert_eq!((response.body.opcode(), response.result), (Opcode::ANNOUNCE, OK));
                    Some((*at, "PCP", response.epoch, None))
                }
            }
        }
        _ => None,
    };
    lab.effects[since.min(lab.effects.len())..].iter().filter_map(announcement).collect()
}

/// RFC 6887 §8.5 and §14.1.3, RFC 6886 §3.2.1: a start, and another external address, are announced ten times; the epoch is our own,
/// and begins anew only then: what the provider forgets is made anew without a client's knowing.
#[test]
fn epochs_and_announcements() {
    let mut lab = Lab::new(config(NatMode::Own));
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    lab.run(300_000);
    let all = announced(&lab, 0);
    let of_pcp: Vec<u64> = all.iter().filter(|one| one.1 == "PCP").map(|one| one.0).collect();
    assert_eq!(of_pcp.len(), 11, "once before the address was known, and ten times since: {of_pcp:?}");
    assert!(of_pcp[1..].windows(2).all(|pair| pair[1] > pair[0]), "{of_pcp:?}");
    assert!(all.iter().all(|&(at, _, epoch, _)| u64::from(epoch) == at / 1000), "{all:?}");
    assert_eq!(all.iter().filter(|one| one.3 == Some(E)).count(), 10);
    // The provider loses its state: clients need not know.
    assert_eq!(lab.map(ALICE, &map(8080)).0, OK);
    let before = lab.effects.len();
    lab.provider_forgets();
    lab.pass(20);
    assert_eq!((lab.upstream().len(), announced(&lab, before).len()), (1, 0));
    // Another address.
    let other = Ipv4Addr::new(198, 51, 100, 9);
    let before = lab.effects.len();
    lab.provider().config_mut().external = other;
    lab.provider_forgets();
    lab.pass(300);
    let all = announced(&lab, before);
    assert_eq!(all.iter().filter(|one| one.3 == Some(other)).count(), 10, "{all:?}");
    assert!(all.first().is_some_and(|one| one.2 == 0), "{all:?}");
    let told: Vec<_> =
        lab.sent_to(ALICE, before).iter().map(|bytes| Response::parse(bytes).unwrap()).collect();
    let addr = |response: &Response| match response.body {
        Body::Map(map) => map.external_addr,
        _ => panic!("{response:?}"),
    };
    assert_eq!(told.len(), 3, "the client is told itself, too (§14.2)");
    assert!(told.iter().all(|response| addr(response) == other.to_ipv6_mapped() && response.lifetime > 0));
}

/// RFC 6887 §14.2: a client hears of another port, or that it has none any more, three times or until it asks.
#[test]
fn a_client_hears_what_becomes_of_its_mapping() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().longest = 600;
        assert_eq!(lab.map(ALICE, &Map { lifetime: 86_400, ..map(8080) }), (OK, 600, 8080));
        let ends = lab.now + 600_000;
        lab.pass(100);
        let before = lab.effects.len();
        lab.script = [Reaction::Grant(E, 9999)].into();
        lab.provider_forgets();
        lab.pass(20);
        let told: Vec<_> =
            lab.sent_to(ALICE, before).iter().map(|bytes| Response::parse(bytes).unwrap()).collect();
        let ports: Vec<u16> = told
            .iter()
            .map(|response| match response.body {
                Body::Map(map) => map.external_port,
                _ => panic!("{response:?}"),
            })
            .collect();
        assert_eq!(ports, [9999; 3], "{nat:?}: it is not gone, for a PCP client can be told");
        for (at, effect) in &lab.effects[before..] {
            if let Effect::LanSend { to, bytes, .. } = effect
                && to.ip() == IpAddr::V4(ALICE)
            {
                let told = u64::from(Response::parse(bytes).unwrap().lifetime);
                assert!(at + told * 1000 <= ends, "{nat:?}: no longer than it has, by part of a second");
            }
        }
        let before = lab.effects.len();
        lab.event(Event::Release(ALICE.into()));
        lab.pass(10);
        let told: Vec<_> =
            lab.sent_to(ALICE, before).iter().map(|bytes| Response::parse(bytes).unwrap()).collect();
        assert_eq!(told.len(), 3);
        assert!(told.iter().all(|response| (response.result, response.lifetime) == (OK, 0)), "{told:?}");
        assert_eq!(lab.mapped(), []);
    }
}

/// It is told three times, and not of what has ended meanwhile.
#[test]
fn a_client_hears_nothing_of_what_has_ended_since() {
    for nat in BOTH {
        let mut lab = Lab::up_with(Config { recovery_wait: Duration::ZERO, ..config(nat) });
        assert_eq!(lab.map(ALICE, &Map { lifetime: 120, ..map(8080) }), (OK, 120, 8080));
        let ends = lab.now + 120_000;
        lab.run(ends - 1400);
        let before = lab.effects.len();
        lab.script = [Reaction::Grant(E, 9999)].into();
        lab.provider_forgets();
        lab.pass(5);
        assert_eq!(lab.mapped(), [], "its lifetime is over");
        let told: Vec<(u64, u64)> = lab.effects[before..]
            .iter()
            .filter_map(|(at, effect)| match effect {
                Effect::LanSend { to, bytes, .. } if to.ip() == IpAddr::V4(ALICE) => {
                    Some((*at, Response::parse(bytes).unwrap().lifetime.into()))
                }
                _ => None,
            })
            .collect();
        assert!(
            (1..3).contains(&told.len()) && told.iter().all(|(at, seconds)| at + seconds * 1000 <= ends),
            "{nat:?}: {told:?}, and it ends at {ends}"
        );
    }
}

/// RFC 7648 §3.2: nor does it hear of more than the provider has given it at its new place.
#[test]
fn a_moved_mapping_may_have_less_time() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.map(ALICE, &map(8080)), (OK, 3600, 8080));
        let before = lab.effects.len();
        lab.script = [Reaction::GrantFor(120, E, 9999)].into();
        lab.provider_forgets();
        lab.pass(20);
        let told: Vec<u32> =
            lab.sent_to(ALICE, before).iter().map(|bytes| Response::parse(bytes).unwrap().lifetime).collect();
        assert!(told.len() == 3 && told.iter().all(|&lifetime| lifetime <= 120), "{nat:?}: {told:?}");
    }
}

/// DESCRIPTION (RFC 7220): kept as text, repeated as it is kept, and shown to control points.
#[test]
fn descriptions() {
    let mut lab = Lab::up(NatMode::Own);
    let described = |octets: &[u8]| map(8080).with(PcpOption::Description(octets.to_vec()));
    for (octets, kept) in [(&b"a\nb<c>"[..], Some("a b<c>")), (&[0xff, 0xfe], None)] {
        let answer = lab.pcp(ALICE, &described(octets).request(ALICE));
        let echoed = answer.options.iter().find_map(|option| match option {
            PcpOption::Description(octets) => Some(String::from_utf8(octets.clone()).unwrap()),
            _ => None,
        });
        assert_eq!(echoed.as_deref(), kept);
    }
    let mapping = lab.gateway.mappings(lab.instant()).next().unwrap();
    assert_eq!(mapping.description, "a b<c>");
}

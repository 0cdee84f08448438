//! NAT-PMP (RFC 6886), row by row, and what it and PCP are to each other.

use wire::natpmp::{self, Request as NatPmp, Response as Answer, ResultCode as Code, Transport};

use super::*;

const NATPMP_MAP: fn(Transport, u16, u16, u32) -> NatPmp =
    |protocol, internal_port, external_port, lifetime| NatPmp::Map {
        protocol,
        internal_port,
        external_port,
        lifetime,
    };

fn ask_natpmp(bench: &mut Bench, now: Instant, from: Ipv4Addr, request: NatPmp) -> Answer {
    let answer = raw(bench, now, from, &request.to_bytes()).expect("no silence");
    Answer::parse(&answer).expect("well-formed")
}

/// Result, external port and lifetime.
fn natpmp(bench: &mut Bench, now: Instant, from: Ipv4Addr, request: NatPmp) -> (Code, u16, u32) {
    let NatPmp::Map { protocol: asked, internal_port: port, .. } = request else { panic!("a map request") };
    let answer = ask_natpmp(bench, now, from, request);
    let Answer::Map { result, epoch, protocol, internal_port, external_port, lifetime } = answer else {
        panic!("{answer:?}")
    };
    assert_eq!((protocol, internal_port), (asked, port), "N-10");
    assert_eq!(epoch, bench.server.epoch(now), "N-12");
    (result, external_port, lifetime)
}

/// N-1, N-2, N-3, N-12: which datagrams are answered, and with which octets.
#[test]
fn datagrams() {
    for (what, bytes, expected) in [
        ("external address", hex("0000"), Some("00800000 00000007 c6336407")),
        ("and octets behind it", hex("0000 ffff"), Some("00800000 00000007 c6336407")),
        ("unknown opcode", hex("0003"), Some("00830005")),
        ("unknown opcode, returned whole", hex("007f0102 03040506"), Some("00ff0005 03040506")),
        ("a response", hex("0080"), None),
        ("a map request cut short", hex("00010000 00500050 000000"), None),
        ("map", hex("00010000 00500c38 00000e10"), Some("00810000 00000007 00500c38 00000e10")),
        ("map for nothing", hex("00010000 00000c38 00000e10"), Some("00810002 00000007 00000000 00000000")),
    ] {
        let mut bench = server();
        assert_eq!(raw(&mut bench, at(7), CLIENT, &bytes), expected.map(hex), "{what}");
        let outside = Arrival { inside: false, ..arrival(CLIENT) };
        assert_eq!(bench.answer(at(7), &outside, &bytes), None, "N-3: {what}");
    }
    // No external address: NETWORK_FAILURE, and it is told for how long the table stands.
    let mut bench = Bench::new(ServerConfig { pool: vec![], ..config() });
    assert_eq!(raw(&mut bench, at(7), CLIENT, &[0, 0]), Some(hex("00800003 00000007 00000000")));
    let got = natpmp(&mut bench, at(7), CLIENT, NATPMP_MAP(Transport::Tcp, 80, 8080, 60));
    assert_eq!(got, (Code::NETWORK_FAILURE, 0, 0), "N-10");
}

/// N-4, N-5, N-7: made, told, renewed.
#[test]
fn mappings() {
    let mut bench = server().set(|config| config.longest = 7200);
    let tcp = |external, lifetime| NATPMP_MAP(Transport::Tcp, 80, external, lifetime);
    assert_eq!(natpmp(&mut bench, at(0), CLIENT, tcp(8080, 3600)), (Code::SUCCESS, 8080, 3600));
    let mapping = bench.mappings()[0];
    assert_eq!((mapping.inside.addr, mapping.nonce), (CLIENT.into(), None));
    assert_eq!(natpmp(&mut bench, at(10), CLIENT, tcp(9999, 3600)), (Code::SUCCESS, 8080, 3600), "N-5");
    assert_eq!(natpmp(&mut bench, at(10), CLIENT, tcp(0, 100_000)), (Code::SUCCESS, 8080, 7200), "N-7");
    assert_eq!(natpmp(&mut bench, at(10), CLIENT, tcp(0, 5)), (Code::SUCCESS, 8080, 5), "never longer");
    bench.timeout(at(15));
    assert_eq!(bench.mappings().len(), 0);
    // N-6: the port is held, for others.
    assert_eq!(natpmp(&mut bench, at(16), OTHER, tcp(8080, 60)).1, 40_000);
    assert_eq!(natpmp(&mut bench, at(16), CLIENT, tcp(8080, 60)).1, 8080);
}

/// N-8: one is deleted, whatever port is suggested; so is one that is not there.
#[test]
fn deletes() {
    let mut bench = server();
    let gone = (Code::SUCCESS, 0, 0);
    natpmp(&mut bench, at(0), CLIENT, NATPMP_MAP(Transport::Tcp, 80, 8080, 3600));
    assert_eq!(natpmp(&mut bench, at(1), CLIENT, NATPMP_MAP(Transport::Udp, 80, 8080, 0)), gone);
    assert_eq!(natpmp(&mut bench, at(1), OTHER, NATPMP_MAP(Transport::Tcp, 80, 8080, 0)), gone);
    assert_eq!(bench.mappings().len(), 1, "that was another one");
    assert_eq!(natpmp(&mut bench, at(1), CLIENT, NATPMP_MAP(Transport::Tcp, 80, 1, 0)), gone);
    assert_eq!(bench.mappings().len(), 0);
    assert_eq!(natpmp(&mut bench, at(1), CLIENT, NATPMP_MAP(Transport::Tcp, 80, 1, 0)), gone);
}

/// N-9: all of one protocol, of this client; what is not its own to delete is told with a result.
#[test]
fn delete_all() {
    let mut bench = server();
    let all = |protocol| NATPMP_MAP(protocol, 0, 0, 0);
    let gone = (Code::SUCCESS, 0, 0);
    assert_eq!(natpmp(&mut bench, at(0), CLIENT, all(Transport::Tcp)), gone, "nothing is there");
    for port in 1..=100 {
        natpmp(&mut bench, at(0), CLIENT, NATPMP_MAP(Transport::Tcp, port, 0, 3600));
    }
    natpmp(&mut bench, at(0), CLIENT, NATPMP_MAP(Transport::Udp, 1, 0, 3600));
    natpmp(&mut bench, at(0), OTHER, NATPMP_MAP(Transport::Tcp, 1, 0, 3600));
    assert_eq!(natpmp(&mut bench, at(1), CLIENT, all(Transport::Tcp)), gone);
    let left: Vec<_> = bench.mappings().iter().map(|m| (m.inside.addr, m.protocol)).collect();
    assert_eq!(left, [(CLIENT.into(), Protocol::UDP), (OTHER.into(), Protocol::TCP)]);
    // What PCP has made stays.
    outcome(&mut bench, at(2), &map(600, MapData { protocol: Protocol::UDP, ..data(1, 7, 7777) }, &[]));
    assert_eq!(natpmp(&mut bench, at(2), CLIENT, all(Transport::Udp)), (Code::NOT_AUTHORIZED, 0, 0));
    let left: Vec<_> = bench.mappings().iter().map(|m| (m.inside.addr, m.internal_port)).collect();
    assert_eq!(left, [(CLIENT.into(), 7), (OTHER.into(), 1)]);
    for (external, lifetime) in [(5, 0), (0, 5)] {
        let odd = NATPMP_MAP(Transport::Tcp, 0, external, lifetime);
        assert_eq!(natpmp(&mut bench, at(3), CLIENT, odd), (Code::NOT_AUTHORIZED, 0, 0));
    }
    // As long as the data plane refuses, nothing is gone.
    natpmp(&mut bench, at(4), CLIENT, NATPMP_MAP(Transport::Tcp, 9, 0, 3600));
    bench.nat = Nat::Refuses(NatRefused::Failed);
    assert_eq!(natpmp(&mut bench, at(5), CLIENT, all(Transport::Tcp)), (Code::NETWORK_FAILURE, 0, 0));
    assert_eq!(bench.mappings().len(), 3);
}

/// N-6: the same port of the other protocol is kept for the same host, against PCP and NAT-PMP alike, until the mapping goes; no
/// mapping of the other protocol is made.
#[test]
fn companions() {
    let mut bench = server().set(|config| config.hold = Duration::ZERO);
    let udp = |internal, external| NATPMP_MAP(Transport::Udp, internal, external, 3600);
    natpmp(&mut bench, at(0), CLIENT, NATPMP_MAP(Transport::Tcp, 80, 8080, 3600));
    assert_eq!(bench.mappings().len(), 1, "RFC 6886 §3.3: none of the other protocol");
    assert_eq!(natpmp(&mut bench, at(1), OTHER, udp(80, 8080)).1, 40_000);
    let strict =
        map(600, MapData { protocol: Protocol::UDP, ..data(1, 81, 8080) }, &[PcpOption::PreferFailure]);
    let got = outcome(&mut bench, at(1), &by(OTHER, strict.clone()));
    assert_eq!(got.0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    assert_eq!(natpmp(&mut bench, at(2), CLIENT, udp(99, 8080)).1, 8080, "its own host");
    // The companion of a companion: both stand until both are gone.
    natpmp(&mut bench, at(3), CLIENT, NATPMP_MAP(Transport::Tcp, 80, 0, 0));
    let tcp = map(600, data(1, 82, 8080), &[PcpOption::PreferFailure]);
    assert_eq!(outcome(&mut bench, at(3), &by(OTHER, tcp.clone())).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    natpmp(&mut bench, at(4), CLIENT, NATPMP_MAP(Transport::Udp, 99, 0, 0));
    assert_eq!(outcome(&mut bench, at(4), &by(OTHER, tcp)).0, ResultCode::SUCCESS);
    // PCP's mappings reserve nothing, but a port whose companion is another's is not for NAT-PMP.
    assert_eq!(natpmp(&mut bench, at(5), CLIENT, udp(70, 8080)).1, 40_001);
    assert_eq!(natpmp(&mut bench, at(5), OTHER, udp(70, 8080)).1, 8080, "its own companion");
    assert_eq!(outcome(&mut bench, at(6), &strict).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
}

/// N-5, N-8: PCP's mapping is told and lasts longer if that is asked, but NAT-PMP neither shortens nor deletes it. A static one
/// likewise. NAT-PMP's mapping is its address', which takes it over with a nonce.
#[test]
fn whose_mapping_it_is() {
    let host = |addr: Ipv4Addr| Inside { softwire: None, addr: addr.into() };
    let fixed = StaticMapping {
        protocol: Protocol::TCP,
        inside: host(CLIENT),
        internal_port: 22,
        external: (EXTERNAL, 2222).into(),
    };
    let mut bench = server().set(|config| config.statics = vec![fixed]);
    let tcp = |port, lifetime| NATPMP_MAP(Transport::Tcp, port, 0, lifetime);
    outcome(&mut bench, at(0), &map(600, data(1, 80, 8080), &[]));
    let ends = |bench: &Bench| bench.mappings()[0].ends;
    assert_eq!(natpmp(&mut bench, at(1), CLIENT, tcp(80, 60)), (Code::SUCCESS, 8080, 60), "N-7");
    assert_eq!(ends(&bench), at(600), "not shortened");
    assert_eq!(natpmp(&mut bench, at(1), CLIENT, tcp(80, 900)), (Code::SUCCESS, 8080, 900));
    assert_eq!(natpmp(&mut bench, at(2), CLIENT, tcp(80, 0)), (Code::NOT_AUTHORIZED, 0, 0));
    assert_eq!(bench.refusals(Reason::IsAnothers), 1);
    assert_eq!(outcome(&mut bench, at(3), &map(0, data(1, 80, 0), &[])).0, ResultCode::SUCCESS);
    assert_eq!(natpmp(&mut bench, at(4), CLIENT, tcp(22, 900)), (Code::SUCCESS, 2222, 900));
    assert_eq!(natpmp(&mut bench, at(4), CLIENT, tcp(22, 0)), (Code::NOT_AUTHORIZED, 0, 0));
    assert_eq!(bench.mappings().len(), 0);
    // The other way round.
    natpmp(&mut bench, at(5), CLIENT, tcp(80, 900));
    let port = bench.mappings()[0].external.port();
    bench.config_mut().third_party = anybody();
    let foreign = by(OTHER, map(600, data(9, 80, 0), &[third(CLIENT)]));
    assert_eq!(outcome(&mut bench, at(5), &foreign), (ResultCode::NOT_AUTHORIZED, 900, 0));
    assert_eq!(outcome(&mut bench, at(5), &map(600, data(2, 80, 0), &[])), (ResultCode::SUCCESS, 600, port));
    assert_eq!(outcome(&mut bench, at(6), &map(600, data(3, 80, 0), &[])).0, ResultCode::NOT_AUTHORIZED);
    assert_eq!(
        natpmp(&mut bench, at(7), CLIENT, tcp(80, 0)),
        (Code::NOT_AUTHORIZED, 0, 0),
        "it is PCP's now"
    );
}

/// N-6: an error when there is no port, and quotas are one with PCP's.
#[test]
fn no_port() {
    let mut bench = server().set(|config| (config.ports, config.quota) = (2000..=2001, 2));
    let tcp = |port| NATPMP_MAP(Transport::Tcp, port, 0, 3600);
    natpmp(&mut bench, at(0), CLIENT, tcp(1));
    outcome(&mut bench, at(0), &map(600, data(1, 2, 0), &[]));
    assert_eq!(natpmp(&mut bench, at(0), CLIENT, tcp(3)), (Code::OUT_OF_RESOURCES, 0, 0));
    assert_eq!(natpmp(&mut bench, at(0), OTHER, tcp(3)), (Code::OUT_OF_RESOURCES, 0, 0));
    let of = |reason| bench.refusals(reason);
    assert_eq!((of(Reason::QuotaExceeded), of(Reason::NoPort)), (1, 1));
    assert_eq!(bench.notices.last(), Some(&Notice::PortsUsedUp(EXTERNAL)));
    let told = bench.notices.len();
    natpmp(&mut bench, at(1), OTHER, tcp(3));
    assert_eq!(bench.notices.len(), told, "told once");
}

#[test]
fn the_address_is_the_subscribers() {
    let mut bench = Bench::new(ServerConfig { pool: vec![EXTERNAL, EXTERNAL_2], ..config() });
    let address = |bench: &mut Bench, from| match ask_natpmp(bench, at(0), from, NatPmp::ExternalAddress) {
        Answer::ExternalAddress { result: natpmp::ResultCode::SUCCESS, addr, .. } => addr,
        other => panic!("{other:?}"),
    };
    natpmp(&mut bench, at(0), CLIENT, NATPMP_MAP(Transport::Tcp, 1, 0, 3600));
    natpmp(&mut bench, at(0), OTHER, NATPMP_MAP(Transport::Tcp, 1, 0, 3600));
    assert_eq!((address(&mut bench, CLIENT), address(&mut bench, OTHER)), (EXTERNAL, EXTERNAL_2));
}

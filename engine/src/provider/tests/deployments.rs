//! DS-Lite in both modes, an IPv6 firewall, NAT64.

use super::*;

fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

const LAN_HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 20);

fn b4(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0xb4, n, 0, 0, 0, 1)
}

fn aftr() -> Bench {
    server().set(|config| {
        config.b4 = vec!["2001:db8:b4::/48".parse().expect("a prefix")];
        config.query = true;
    })
}

/// Plain mode: native IPv6, and THIRD_PARTY names the host behind the B4. Encapsulation mode: IPv4 within the softwire. Either way
/// the mapping is told apart by softwire and inner address (RFC 6333), and the B4 is one subscriber.
#[test]
fn two_modes_of_ds_lite() {
    let mut bench = aftr();
    let wanted = |n: u8, port| map(600, data(n, 80, port), &[]);
    let plain = |bench: &mut Bench, b4: Ipv6Addr, request: Request, host: Ipv4Addr| {
        let request = Request { options: vec![third(host)], ..by(b4, request) };
        let response = ask(bench, at(0), &request);
        let Body::Map(map) = response.body else { panic!("{response:?}") };
        (response.result, map.external_port, response.options)
    };
    let within = |bench: &mut Bench, b4: Ipv6Addr, request: Request, host: Ipv4Addr| {
        let arrival = Arrival { softwire: Some(b4), ..arrival(host) };
        let answer = bench.answer(at(0), &arrival, &by(host, request).to_bytes()).expect("an answer");
        let response = Response::parse(&answer).expect("well-formed");
        let Body::Map(map) = response.body else { panic!("{response:?}") };
        (response.result, map.external_port)
    };
    let done = |port| (ResultCode::SUCCESS, port, vec![third(LAN_HOST)]);
    assert_eq!(plain(&mut bench, b4(1), wanted(1, 9001), LAN_HOST), done(9001));
    assert_eq!(plain(&mut bench, b4(2), wanted(2, 9002), LAN_HOST), done(9002), "the same address elsewhere");
    assert_eq!(within(&mut bench, b4(3), wanted(3, 9003), LAN_HOST), (ResultCode::SUCCESS, 9003));
    // The same host by the other way is the same mapping, if it is the same nonce.
    assert_eq!(within(&mut bench, b4(1), wanted(1, 0), LAN_HOST), (ResultCode::SUCCESS, 9001));
    assert_eq!(within(&mut bench, b4(2), wanted(1, 0), LAN_HOST), (ResultCode::NOT_AUTHORIZED, 0));
    let inside: Vec<_> = bench.bindings.iter().map(|b| (b.inside.softwire, b.inside.addr)).collect();
    let host = |n| (Some(b4(n)), IpAddr::V4(LAN_HOST));
    assert_eq!(inside, [host(1), host(2), host(3)]);
    let subscribers: Vec<_> = bench.mappings().iter().map(|m| m.subscriber).collect();
    assert_eq!(subscribers, [1, 2, 3].map(|n| Subscriber::Softwire(b4(n))));
    // Who is no B4 may not, and a B4's IPv4 source is compared as any other.
    assert_eq!(plain(&mut bench, v6("2001:db8:1::1"), wanted(1, 0), LAN_HOST).0, ResultCode::UNSUPP_OPTION);
    let spoofed = Arrival { softwire: Some(b4(1)), ..arrival(OTHER) };
    let answer = bench.answer(at(0), &spoofed, &by(LAN_HOST, wanted(1, 0)).to_bytes()).expect("an answer");
    assert_eq!(answer[3], ResultCode::ADDRESS_MISMATCH.0);
    // NAT-PMP within the softwire.
    let arrival = Arrival { softwire: Some(b4(3)), ..arrival(LAN_HOST) };
    let answer = bench.answer(at(0), &arrival, &hex("00010000 0050232b 00000e10"));
    assert_eq!(answer, Some(hex("00810000 00000000 0050232b 00000e10")));
}

/// A B4 that talks outside of its softwire lists what it has made for its hosts, page by page, and nobody else's.
#[test]
fn a_b4_lists_its_hosts() {
    let mut bench = aftr();
    let made = |bench: &mut Bench, n: u16, host: Ipv4Addr, internal, port| {
        let request =
            by(b4(n), map(600, data(u8::try_from(n).expect("few"), internal, port), &[third(host)]));
        assert_eq!(ask(bench, at(0), &request).result, ResultCode::SUCCESS);
    };
    for internal in 1..=30 {
        made(&mut bench, 1, LAN_HOST, internal, 9000 + internal);
    }
    made(&mut bench, 1, HOST, 80, 9900);
    made(&mut bench, 2, LAN_HOST, 80, 9901);
    let body = || Body::Get(pcp::GetData::ALL);
    let mut options = vec![];
    let mut ports = Vec::new();
    loop {
        let request = Request { lifetime: 0, client_addr: b4(1), body: body(), options };
        let page = ask(&mut bench, at(1), &request).options;
        ports.extend(page.iter().map(|option| match option {
            PcpOption::Next(next) => {
                assert_eq!(next.nonce, Nonce([1; 12]));
                next.external_port
            }
            other => panic!("{other:?}"),
        }));
        let Some(PcpOption::Next(last)) = page.last() else { panic!("never empty") };
        if !last.more {
            break;
        }
        options = vec![PcpOption::Next(last.clone())];
    }
    let expected: Vec<u16> = [9900].into_iter().chain(9001..=9030).collect();
    assert_eq!(ports, expected);
    // One host's, by THIRD_PARTY.
    let options = vec![third(HOST)];
    let request = Request { lifetime: 0, client_addr: b4(1), body: body(), options };
    assert_eq!(ask(&mut bench, at(1), &request).options.len(), 2);
}

/// A pinhole: the same address and port outside, whatever is suggested; ports below 1024 too, unless a rule denies them.
#[test]
fn ipv6_firewall() {
    let host = v6("2001:db8:1::20");
    let mut bench = server().set(|config| config.firewall = true);
    let wanted = |internal, port, addr: Ipv6Addr| {
        by(host, map(600, MapData { external_addr: addr, ..data(1, internal, port) }, &[]))
    };
    let strict = |request: Request| Request { options: vec![PcpOption::PreferFailure], ..request };
    for (what, request, expected) in [
        ("no wish", wanted(80, 0, Ipv6Addr::UNSPECIFIED), Ok(80)),
        ("another port", wanted(81, 9090, Ipv6Addr::UNSPECIFIED), Ok(81)),
        ("another address", wanted(82, 82, v6("2001:db8::9")), Ok(82)),
        ("strict, itself", strict(wanted(83, 83, host)), Ok(83)),
        ("strict, any address", strict(wanted(84, 84, Ipv6Addr::UNSPECIFIED)), Ok(84)),
        ("strict, another port", strict(wanted(85, 86, host)), Err(11)),
        ("strict, another address", strict(wanted(85, 85, v6("2001:db8::9"))), Err(11)),
        ("an IPv4 address", wanted(86, 0, NO_ADDR_V4), Ok(86)),
    ] {
        let response = ask(&mut bench, at(0), &request);
        let Body::Map(map) = response.body else { panic!("{response:?}") };
        match expected {
            Ok(port) => {
                let got = (response.result, map.external_port, map.external_addr);
                assert_eq!(got, (ResultCode::SUCCESS, port, host), "{what}");
                let binding = bench.bindings.last().expect("it is open");
                assert_eq!(binding.external, SocketAddr::new(host.into(), port), "{what}");
            }
            Err(code) => assert_eq!(response.result.0, code, "{what}"),
        }
    }
    let filter_of = |addr: &str| filter(v6(addr), 32);
    let request = |addr| Request { options: vec![filter_of(addr)], ..wanted(80, 0, Ipv6Addr::UNSPECIFIED) };
    assert_eq!(ask(&mut bench, at(1), &request("2001:db8::")).result, ResultCode::SUCCESS);
    assert_eq!(ask(&mut bench, at(1), &request("::ffff:0:0")).result, ResultCode::MALFORMED_OPTION);
    // PEER towards IPv6.
    let remote = PeerData { remote_addr: v6("2001:db8:9::9"), ..peer_data(1, 90, 443) };
    let request = Request { body: Body::Peer(remote), ..wanted(1, 0, Ipv6Addr::UNSPECIFIED) };
    let response = ask(&mut bench, at(1), &request);
    assert!(
        matches!(response.body, Body::Peer(peer) if (peer.external_port, peer.external_addr) == (90, host))
    );
    let deny = AclRule { allow: false, client: Prefix::ALL_V6, ports: 0..=1023, protocol: None };
    bench.config_mut().acl = vec![deny];
    assert_eq!(
        ask(&mut bench, at(2), &wanted(22, 0, Ipv6Addr::UNSPECIFIED)).result,
        ResultCode::NOT_AUTHORIZED
    );
    assert_eq!(ask(&mut bench, at(2), &wanted(2222, 0, Ipv6Addr::UNSPECIFIED)).result, ResultCode::SUCCESS);
    bench.config_mut().firewall = false;
    let response = ask(&mut bench, at(3), &wanted(2223, 0, Ipv6Addr::UNSPECIFIED));
    assert_eq!(response.result, ResultCode::UNSUPP_PROTOCOL);
}

/// One IPv6 subscriber is a prefix.
#[test]
fn ipv6_subscribers() {
    let mut bench = server().set(|config| {
        (config.firewall, config.subscriber_bits, config.quota) = (true, 56, 2);
    });
    let mut ask = |host: &str, port| {
        let wanted = MapData { external_addr: Ipv6Addr::UNSPECIFIED, ..data(1, port, 0) };
        ask(&mut bench, at(0), &by(v6(host), map(600, wanted, &[]))).result
    };
    assert_eq!(ask("2001:db8:0:ff01::1", 80), ResultCode::SUCCESS);
    assert_eq!(ask("2001:db8:0:ff02::1", 80), ResultCode::SUCCESS);
    assert_eq!(ask("2001:db8:0:ff42::9", 80), ResultCode::USER_EX_QUOTA);
    assert_eq!(ask("2001:db8:0:fe01::1", 80), ResultCode::SUCCESS, "another subscriber");
}

/// NAT64: an IPv6 host that suggests an IPv4 address gets one of the pool; beside a firewall, the family decides.
#[test]
fn nat64() {
    let host = v6("2001:db8:1::20");
    let prefix = |octet| pcp::Prefix64 {
        prefix: vec![0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, octet],
        suffix: vec![],
        ipv4_prefixes: vec![],
    };
    let asked =
        PcpOption::Prefix64(pcp::Prefix64 { prefix: vec![0; 12], suffix: vec![], ipv4_prefixes: vec![] });
    for (firewall, addr, external) in [
        (false, NO_ADDR_V4, SocketAddr::from((EXTERNAL, 9090))),
        (false, Ipv6Addr::UNSPECIFIED, (EXTERNAL, 9090).into()),
        (false, EXTERNAL.to_ipv6_mapped(), (EXTERNAL, 9090).into()),
        (true, NO_ADDR_V4, (EXTERNAL, 9090).into()),
        (true, Ipv6Addr::UNSPECIFIED, (host, 80).into()),
    ] {
        let mut bench = server().set(|config| {
            (config.nat64, config.firewall) = (true, firewall);
            config.prefix64 = vec![prefix(0), prefix(1)];
        });
        let wanted = MapData { external_addr: addr, ..data(1, 80, 9090) };
        let request = by(host, map(600, wanted, &[unknown(200), asked.clone(), text(b"web")]));
        let response = ask(&mut bench, at(0), &request);
        let Body::Map(map) = response.body else { panic!("{response:?}") };
        assert_eq!(SocketAddr::new(pcp::ip_from_wire(map.external_addr), map.external_port), external);
        let prefixes = [0, 1].map(|octet| PcpOption::Prefix64(prefix(octet)));
        assert_eq!(response.options, [&[text(b"web")][..], &prefixes].concat(), "RFC 7225");
        assert_eq!((bench.bindings[0].inside.addr, bench.bindings[0].external), (host.into(), external));
        // A renewal and a delete find it, whatever they suggest.
        let renewal = by(host, map_request(600, Ipv6Addr::UNSPECIFIED));
        assert_eq!(ask(&mut bench, at(1), &renewal).result, ResultCode::SUCCESS);
        assert_eq!(bench.mappings()[0].external, external);
        assert_eq!(ask(&mut bench, at(1), &by(host, map_request(0, NO_ADDR_V4))).result, ResultCode::SUCCESS);
        assert_eq!(bench.mappings().len(), 0);
        // Only ::/96 asks.
        let wrong = PcpOption::Prefix64(prefix(0));
        let request = by(host, super::map(600, wanted, &[wrong]));
        assert_eq!(ask(&mut bench, at(2), &request).result, ResultCode::MALFORMED_OPTION);
    }
}

fn map_request(lifetime: u32, addr: Ipv6Addr) -> Request {
    map(lifetime, MapData { external_addr: addr, ..data(1, 80, 0) }, &[])
}

/// RFC 4787's "paired": all of one subscriber in one address, subscribers spread over all of them.
#[test]
fn address_pools() {
    let pool = vec![EXTERNAL, EXTERNAL_2];
    let mut bench = Bench::new(ServerConfig { pool, ports: 2000..=2003, ..config() });
    let external = |bench: &mut Bench, client: Ipv4Addr, port, addr: Ipv6Addr| {
        let wanted = MapData { external_addr: addr, ..data(1, port, 0) };
        let response = ask(bench, at(0), &by(client, map(600, wanted, &[])));
        let Body::Map(map) = response.body else { panic!("{response:?}") };
        (response.result == ResultCode::SUCCESS).then(|| pcp::ip_from_wire(map.external_addr))
    };
    let client = |n| Ipv4Addr::new(192, 0, 2, n);
    let (one, two) = (Some(IpAddr::V4(EXTERNAL)), Some(IpAddr::V4(EXTERNAL_2)));
    assert_eq!(external(&mut bench, client(1), 1, NO_ADDR_V4), one);
    assert_eq!(external(&mut bench, client(2), 1, NO_ADDR_V4), two);
    assert_eq!(external(&mut bench, client(1), 2, NO_ADDR_V4), one);
    assert_eq!(
        external(&mut bench, client(1), 3, EXTERNAL_2.to_ipv6_mapped()),
        one,
        "paired, whatever it suggests"
    );
    assert_eq!(
        external(&mut bench, client(3), 1, EXTERNAL.to_ipv6_mapped()),
        one,
        "as it was before a restart"
    );
    // That address is used up: who has it gets no other one, who has none does.
    assert_eq!(external(&mut bench, client(1), 4, NO_ADDR_V4), None);
    assert_eq!(bench.refusals(Reason::NoPort), 1);
    assert_eq!(external(&mut bench, client(4), 1, EXTERNAL.to_ipv6_mapped()), two);
    // A strict one is the suggested address or nothing.
    for (n, addr, port, expected) in [
        (1, EXTERNAL_2, 2003, ResultCode::CANNOT_PROVIDE_EXTERNAL),
        (5, EXTERNAL, 2000, ResultCode::CANNOT_PROVIDE_EXTERNAL),
        (5, EXTERNAL_2, 2003, ResultCode::SUCCESS),
        (6, OTHER, 2002, ResultCode::CANNOT_PROVIDE_EXTERNAL),
    ] {
        let wanted = MapData { external_addr: addr.to_ipv6_mapped(), ..data(1, 9, port) };
        let request = by(client(n), map(600, wanted, &[PcpOption::PreferFailure]));
        assert_eq!(ask(&mut bench, at(0), &request).result, expected, "{n} {addr}:{port}");
    }
}

/// RFC 6887 §11.3: UDP 5350 and 5351 are PCP's own, and no pinholes.
#[test]
fn pinholes_for_pcp_itself() {
    let mut bench = server().set(|config| config.firewall = true);
    let host = v6("2001:db8:1::20");
    for (protocol, port, size, result) in [
        (Protocol::UDP, 5350, 1, Err(ResultCode::NOT_AUTHORIZED)),
        (Protocol::UDP, 5351, 1, Err(ResultCode::NOT_AUTHORIZED)),
        (Protocol::TCP, 5351, 1, Ok(1)),
        (Protocol::UDP, 5340, 20, Ok(10)),
        (Protocol::UDP, 5352, 1, Ok(1)),
    ] {
        let wanted = MapData { protocol, external_addr: Ipv6Addr::UNSPECIFIED, ..data(1, port, 0) };
        let options: Vec<_> = (size > 1).then(|| port_set(size, port, false)).into_iter().collect();
        let answer = ask(&mut bench, at(0), &by(host, map(600, wanted, &options)));
        let ports = bench.bindings.iter().find(|b| (b.protocol, b.internal_port) == (protocol, port));
        assert_eq!(ports.map(|b| b.ports).ok_or(answer.result), result, "{protocol} {port}");
    }
}

/// When an address goes, a mapping gets a port that the rules allow who asked for it, not the host that it is for.
#[test]
fn rules_are_about_who_asked() {
    let rule = |allow, client: &str, ports| AclRule {
        allow,
        client: client.parse().expect("a prefix"),
        ports,
        protocol: None,
    };
    let mut bench = server().set(|config| {
        config.third_party = anybody();
        config.acl = vec![rule(true, "192.0.2.10", 3000..=3001), rule(false, "0.0.0.0/0", 0..=65535)];
    });
    let request = map(600, data(1, 80, 3000), &[third(HOST)]);
    assert_eq!(outcome(&mut bench, at(0), &request), (ResultCode::SUCCESS, 600, 3000));
    bench.config_mut().pool = vec![EXTERNAL_2];
    bench.apply_settings(at(1));
    let external: Vec<_> = bench.mappings().iter().map(|mapping| mapping.external).collect();
    assert_eq!(external, [SocketAddr::from((EXTERNAL_2, 3000))]);
}

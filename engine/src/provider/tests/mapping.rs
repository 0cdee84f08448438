use super::*;

/// RFC 6887 §11.1, §11.3, §13.2, §13.3: what a MAP request may not ask, and how it is told.
#[test]
fn senseless_map_requests() {
    let all = |internal_port| MapData { protocol: Protocol::ALL, ..data(1, internal_port, 0) };
    let any = filter(EXTERNAL.to_ipv6_mapped(), 128);
    for (what, request, result, lifetime) in [
        ("all protocols, one port", map(600, all(80), &[]), ResultCode::MALFORMED_REQUEST, 1800),
        ("all protocols", map(600, all(0), &[]), ResultCode::UNSUPP_PROTOCOL, 1800),
        ("all ports", map(600, data(1, 0, 0), &[]), ResultCode::UNSUPP_PROTOCOL, 1800),
        (
            "SCTP",
            map(600, MapData { protocol: Protocol::SCTP, ..data(1, 80, 0) }, &[]),
            ResultCode::UNSUPP_PROTOCOL,
            1800,
        ),
        (
            "PREFER_FAILURE without a port",
            map(600, data(1, 80, 0), &[PcpOption::PreferFailure]),
            ResultCode::MALFORMED_OPTION,
            1800,
        ),
        (
            "delete with PREFER_FAILURE",
            map(0, data(1, 80, 9090), &[PcpOption::PreferFailure]),
            ResultCode::MALFORMED_OPTION,
            1800,
        ),
        ("delete with FILTER", map(0, data(1, 80, 0), &[any]), ResultCode::MALFORMED_OPTION, 1800),
    ] {
        let mut bench = server();
        let response = ask(&mut bench, at(0), &request);
        let (body, options) = (request.body.clone(), request.options.clone());
        let expected = Response { result, lifetime, epoch: 0, body, options };
        assert_eq!(response, expected, "{what}: everything comes back");
    }
}

/// RFC 6887 §11.3 (simple threat model): another nonce gets NOT_AUTHORIZED for as long as the mapping stands, even
/// for a delete; a delete of nothing succeeds (§15).
#[test]
fn a_mapping_belongs_to_its_nonce() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(3600, data(1, 8080, 9090), &[]));
    let refused = |left| (ResultCode::NOT_AUTHORIZED, left, 9090);
    assert_eq!(outcome(&mut bench, at(600), &map(3600, data(2, 8080, 9090), &[])), refused(3000));
    assert_eq!(outcome(&mut bench, at(601), &map(0, data(2, 8080, 9090), &[])), refused(2999));
    assert_eq!(bench.mappings().len(), 1);
    let done = (ResultCode::SUCCESS, 0, 0);
    assert_eq!(outcome(&mut bench, at(602), &map(0, data(1, 8080, 0), &[])), done);
    assert_eq!(bench.mappings().len(), 0);
    assert_eq!(outcome(&mut bench, at(603), &map(0, data(2, 8080, 0), &[])), done, "nothing to delete");
}

/// RFC 6887 §11.3: one mapping for an internal port, whatever is suggested later.
#[test]
fn an_internal_port_has_one_mapping() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(600, data(1, 8080, 9090), &[]));
    let got = outcome(&mut bench, at(1), &map(600, data(1, 8080, 5000), &[]));
    assert_eq!(got, (ResultCode::SUCCESS, 600, 9090));
    let strict = |map_data| map(600, map_data, &[PcpOption::PreferFailure]);
    let got = outcome(&mut bench, at(2), &strict(data(1, 8080, 5000)));
    assert_eq!(got, (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 5000));
    let elsewhere = MapData { external_addr: OTHER.to_ipv6_mapped(), ..data(1, 8080, 9090) };
    let got = outcome(&mut bench, at(3), &strict(elsewhere));
    assert_eq!(got, (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 9090), "the address is part of the suggestion");
    let here = MapData { external_addr: EXTERNAL.to_ipv6_mapped(), ..data(1, 8080, 9090) };
    assert_eq!(outcome(&mut bench, at(4), &strict(here)), (ResultCode::SUCCESS, 600, 9090));
}

/// RFC 6887 §13.2 and K-17: what the three kinds of server make of PREFER_FAILURE on a port that is taken.
#[test]
fn prefer_failure_of_three_kinds() {
    for (kind, expected) in [
        (PreferFailure::Honoured, (ResultCode::CANNOT_PROVIDE_EXTERNAL, 590, 9090)),
        (PreferFailure::PassedOver, (ResultCode::SUCCESS, 600, 40_000)),
        (PreferFailure::Unsupported, (ResultCode::UNSUPP_OPTION, 1800, 9090)),
    ] {
        let mut bench = server();
        bench.config_mut().prefer_failure = kind;
        outcome(&mut bench, at(0), &map(600, data(1, 8080, 9090), &[]));
        let request = map(600, data(2, 8081, 9090), &[PcpOption::PreferFailure]);
        assert_eq!(outcome(&mut bench, at(10), &request), expected, "{kind:?}");
    }
}

/// RFC 6887 §11.3: without PREFER_FAILURE another port is assigned; none that is in use.
#[test]
fn other_ports_are_assigned() {
    let mut bench = server();
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..50 {
        let (result, _, port) = outcome(&mut bench, at(0), &map(600, data(1, 1000 + n, 9090), &[]));
        assert_eq!(result, ResultCode::SUCCESS);
        assert!(seen.insert(port), "{port} twice");
    }
    assert!(seen.contains(&9090));
}

/// RFC 6887 §15: more or less than was asked.
#[test]
fn lifetimes_are_clamped() {
    for (asked, granted) in [(1, 120), (120, 120), (3600, 3600), (86_400, 86_400), (u32::MAX, 86_400)] {
        let got = outcome(&mut server(), at(0), &map(asked, data(1, 80, 9090), &[]));
        assert_eq!(got, (ResultCode::SUCCESS, granted, 9090));
    }
    let mut bench = server();
    bench.config_mut().shortest = 100;
    bench.config_mut().longest = 50;
    let got = outcome(&mut bench, at(0), &map(60, data(1, 80, 9090), &[]));
    assert_eq!(got, (ResultCode::SUCCESS, 100, 9090), "no settings make it panic");
}

/// RFC 6887 §13.2: the error's lifetime is the remainder of the mapping in the way, or what the server likes.
#[test]
fn conflicts_last_as_long_as_is_set_up() {
    for (set, taken, held, own) in
        [(None, 590, 30, 30), (Some(5), 5, 5, 5), (Some(86_400), 86_400, 86_400, 86_400)]
    {
        let mut bench = server();
        bench.config_mut().conflict_lifetime = set;
        outcome(&mut bench, at(0), &map(600, data(1, 8080, 9090), &[]));
        outcome(&mut bench, at(0), &map(600, data(1, 8081, 9091), &[]));
        outcome(&mut bench, at(1), &map(0, data(1, 8081, 0), &[]));
        for (what, wish, lifetime) in [
            ("taken", data(2, 8082, 9090), taken),
            ("held", data(2, 8082, 9091), held),
            ("its own mapping is elsewhere", data(1, 8080, 9092), own),
        ] {
            let got = outcome(&mut bench, at(10), &map(600, wish, &[PcpOption::PreferFailure]));
            let expected = (ResultCode::CANNOT_PROVIDE_EXTERNAL, lifetime, wish.external_port);
            assert_eq!(got, expected, "{set:?}, {what}");
        }
        let got = outcome(&mut bench, at(10), &map(600, data(2, 8082, 9090), &[]));
        assert_eq!((got.0, got.1), (ResultCode::SUCCESS, 600), "no failure is preferred");
    }
}

/// RFC 6887 §11.3: the whole answer, with the suggestion granted; the data plane hears of it, and of a renewal it does not.
#[test]
fn a_mapping_is_made() {
    let mut bench = server();
    let request = map(3600, data(1, 8080, 9090), &[PcpOption::PreferFailure]);
    let assigned = MapData { external_addr: EXTERNAL.to_ipv6_mapped(), ..data(1, 8080, 9090) };
    let expected = Response {
        result: ResultCode::SUCCESS,
        lifetime: 3600,
        epoch: 5,
        body: Body::Map(assigned),
        options: vec![PcpOption::PreferFailure],
    };
    assert_eq!(ask(&mut bench, at(5), &request), expected);
    let binding = Binding {
        protocol: Protocol::TCP,
        inside: Inside { softwire: None, addr: CLIENT.into() },
        internal_port: 8080,
        external: (EXTERNAL, 9090).into(),
        ports: 1,
        filters: vec![],
        peer: None,
    };
    assert_eq!((&bench.bindings[..], bench.changes), (&[binding][..], 1));
    assert_eq!(ask(&mut bench, at(100), &request), Response { epoch: 100, ..expected });
    assert_eq!((bench.changes, bench.server.next_timeout()), (1, Some(at(3700))));
    bench.timeout(at(3699));
    assert_eq!(bench.mappings().len(), 1);
    bench.timeout(at(3700));
    assert_eq!((bench.mappings().len(), bench.bindings.len(), bench.server.next_timeout()), (0, 0, None));
    assert_eq!((bench.server.counters().grants(Kind::Map), bench.server.counters().ended), (2, 1));
}

/// RFC 6887 §11.1, §11.3, §15.1: protocol and internal port, made and deleted, where all of it is on and where nothing is.
#[test]
fn protocols_and_ports() {
    let everything = |config: &mut ServerConfig| {
        (config.all_ports, config.all_protocols) = (true, true);
        config.protocols.extend([Protocol::SCTP, Protocol(47)]);
    };
    for (what, protocol, internal_port, plain, all, delete) in [
        ("TCP, one port", Protocol::TCP, 80, 0, 0, 0),
        ("TCP, all ports", Protocol::TCP, 0, 9, 0, 0),
        ("SCTP, one port", Protocol::SCTP, 80, 9, 0, 0),
        ("DCCP, nowhere", Protocol::DCCP, 80, 9, 9, 0),
        ("DCCP, all ports", Protocol::DCCP, 0, 9, 9, 0),
        ("GRE, which has no ports", Protocol(47), 0, 9, 0, 0),
        ("all protocols", Protocol::ALL, 0, 9, 0, 0),
        ("all protocols, one port", Protocol::ALL, 80, 3, 3, 3),
    ] {
        for (setting, expected) in [(false, plain), (true, all)] {
            let mut bench = server();
            if setting {
                everything(bench.config_mut());
            }
            let wanted = MapData { protocol, ..data(1, internal_port, 9090) };
            let (result, lifetime, port) = outcome(&mut bench, at(0), &map(600, wanted, &[]));
            assert_eq!((result.0, lifetime), (expected, if expected == 0 { 600 } else { 1800 }), "{what}");
            if result == ResultCode::SUCCESS {
                assert_eq!(port, if internal_port == 0 { 0 } else { 9090 }, "{what}");
                let foreign = MapData { nonce: Nonce([9; 12]), ..wanted };
                let refused = (ResultCode::NOT_AUTHORIZED, 600, 9090);
                assert_eq!(outcome(&mut bench, at(0), &map(600, foreign, &[])), refused, "{what}");
                assert_eq!(outcome(&mut bench, at(0), &map(0, foreign, &[])), refused, "{what}");
            }
            let (result, lifetime, _) = outcome(&mut bench, at(1), &map(0, wanted, &[]));
            assert_eq!((result.0, lifetime), (delete, if delete == 0 { 0 } else { 1800 }), "delete {what}");
            assert_eq!((bench.mappings().len(), bench.bindings.len()), (0, 0), "{what}");
        }
    }
}

/// RFC 6887 §11.3: "in its entirety", or UNSUPP_PROTOCOL: whoever has all of an address shares it with nobody else.
#[test]
fn all_ports_are_all_of_them() {
    let pool = vec![EXTERNAL, EXTERNAL_2];
    let mut bench = Bench::new(ServerConfig {
        pool,
        all_ports: true,
        all_protocols: true,
        hold: Duration::ZERO,
        ..config()
    });
    let of = |client: u8| Ipv4Addr::new(192, 0, 2, client);
    let mut wanted = |client, protocol, internal, lifetime| {
        let wanted = MapData { protocol, ..data(1, internal, 0) };
        let response = ask(&mut bench, at(0), &by(of(client), map(lifetime, wanted, &[])));
        let Body::Map(map) = response.body else { panic!("{response:?}") };
        (response.result.0, pcp::ip_from_wire(map.external_addr))
    };
    let (one, two): (IpAddr, IpAddr) = (EXTERNAL.into(), EXTERNAL_2.into());
    assert_eq!(wanted(1, Protocol::TCP, 80, 600), (0, one));
    // The address that nobody has anything of, and only there.
    assert_eq!(wanted(2, Protocol::ALL, 0, 600), (0, two));
    assert_eq!(wanted(2, Protocol::UDP, 80, 600), (0, two), "one of its own beside it");
    assert_eq!(wanted(3, Protocol::TCP, 80, 600), (0, one));
    assert_eq!(wanted(1, Protocol::TCP, 0, 600).0, 9, "another has a port");
    assert_eq!(wanted(1, Protocol::UDP, 0, 600), (0, one));
    assert_eq!(wanted(3, Protocol::UDP, 80, 600).0, 8, "all of UDP is another's");
    assert_eq!(wanted(3, Protocol::TCP, 81, 600), (0, one));
    assert_eq!(wanted(4, Protocol::ALL, 0, 600).0, 9);
    wanted(1, Protocol::UDP, 0, 0);
    assert_eq!(wanted(3, Protocol::UDP, 80, 600), (0, one));
}

/// RFC 6887 §11.3, §15.1: who asks for a static mapping is told where it is; nobody changes or deletes it, and its port is
/// given to nobody.
#[test]
fn static_mappings() {
    let fixed = StaticMapping {
        protocol: Protocol::TCP,
        inside: Inside { softwire: None, addr: CLIENT.into() },
        internal_port: 22,
        external: (EXTERNAL, 2222).into(),
    };
    let mut bench = Bench::new(ServerConfig { statics: vec![fixed], ..config() });
    let strict = [PcpOption::PreferFailure];
    let host = [filter(OTHER.to_ipv6_mapped(), 128)];
    for (what, request, expected) in [
        ("asked for", map(600, data(1, 22, 0), &[]), (ResultCode::SUCCESS, u32::MAX, 2222)),
        ("by another nonce", map(600, data(2, 22, 5000), &[]), (ResultCode::SUCCESS, u32::MAX, 2222)),
        ("insisted on", map(600, data(1, 22, 2222), &strict), (ResultCode::SUCCESS, u32::MAX, 2222)),
        ("elsewhere", map(600, data(1, 22, 5000), &strict), (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 5000)),
        ("for some", map(600, data(1, 22, 0), &host), (ResultCode::UNSUPP_OPTION, 1800, 0)),
        ("deleted", map(0, data(1, 22, 0), &[]), (ResultCode::NOT_AUTHORIZED, 1800, 0)),
        (
            "taken",
            by(OTHER, map(600, data(1, 1, 2222), &strict)),
            (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 2222),
        ),
        (
            "of UDP",
            by(OTHER, map(600, MapData { protocol: Protocol::UDP, ..data(1, 1, 2222) }, &strict)),
            (ResultCode::SUCCESS, 600, 2222),
        ),
    ] {
        assert_eq!(outcome(&mut bench, at(0), &request), expected, "{what}");
    }
    assert_eq!(bench.changes, 1, "only that of UDP");
    let response = ask(&mut bench, at(0), &map(600, data(7, 22, 0), &[]));
    assert!(matches!(response.body, Body::Map(map) if map.nonce == Nonce([7; 12])), "the request's nonce");
}

/// RFC 6887 §11.3, §15.1 in the order of the text: the nonce comes before what makes no sense, and a delete copies what it
/// suggests.
#[test]
fn order_of_the_checks() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(600, data(1, 80, 9090), &[]));
    let senseless = |n, lifetime| map(lifetime, data(n, 80, 0), &[PcpOption::PreferFailure]);
    assert_eq!(outcome(&mut bench, at(0), &senseless(2, 600)).0, ResultCode::NOT_AUTHORIZED);
    assert_eq!(outcome(&mut bench, at(0), &senseless(1, 600)).0, ResultCode::MALFORMED_OPTION);
    assert_eq!(outcome(&mut bench, at(0), &senseless(2, 0)).0, ResultCode::NOT_AUTHORIZED);
    assert_eq!(outcome(&mut bench, at(0), &senseless(1, 0)).0, ResultCode::MALFORMED_OPTION);
    let wanted = MapData { external_addr: OTHER.to_ipv6_mapped(), ..data(1, 80, 5555) };
    let response = ask(&mut bench, at(1), &map(0, wanted, &[text(b"bye")]));
    let expected = (ResultCode::SUCCESS, 0, Body::Map(wanted), vec![]);
    assert_eq!((response.result, response.lifetime, response.body, response.options), expected);
    assert_eq!(
        outcome(&mut bench, at(1), &map(0, data(1, 0, 0), &[])),
        (ResultCode::SUCCESS, 0, 0),
        "none is there"
    );
}

/// RFC 6887 §11.3: a suggestion never does harm; one that cannot be is as none.
#[test]
fn suggestions_that_cannot_be() {
    for (n, addr) in
        ["127.0.0.1", "224.0.0.1", "255.255.255.255", "203.0.113.1", "::1", "2001:db8::1", "ff02::1", "::"]
            .iter()
            .enumerate()
    {
        let addr = pcp::ip_to_wire(addr.parse().expect("an address"));
        for port in [0, 1, 1023, 9090] {
            let wanted = MapData { external_addr: addr, ..data(1, 80, port) };
            let response = ask(&mut server(), at(0), &map(600, wanted, &[]));
            let Body::Map(map) = response.body else { panic!("{response:?}") };
            let expected = if port == 9090 { 9090 } else { 40_000 };
            let got = (response.result, map.external_port, map.external_addr);
            assert_eq!(got, (ResultCode::SUCCESS, expected, EXTERNAL.to_ipv6_mapped()), "{addr} {port}");
        }
        let wanted = MapData { external_addr: addr, ..data(1, 80, 9090) };
        let got = outcome(&mut server(), at(0), &map(600, wanted, &[PcpOption::PreferFailure]));
        let is_none = n == 7;
        assert_eq!(got.0 == ResultCode::SUCCESS, is_none, "{addr}");
    }
}

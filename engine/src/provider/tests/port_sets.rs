//! PORT_SET (RFC 7753).

use super::*;

/// Result, external port, and size and first internal port of the set in the answer.
fn set_of(bench: &mut Bench, now: Instant, request: &Request) -> (ResultCode, u16, Option<(u16, u16)>) {
    let response = ask(bench, now, request);
    let Body::Map(map) = response.body else { panic!("{response:?}") };
    let set = response.options.iter().find_map(|option| match option {
        PcpOption::PortSet(set) => Some((set.size, set.first_internal_port)),
        _ => None,
    });
    (response.result, map.external_port, set)
}

/// RFC 7753 §4.2: as many as there are, never more than asked, at least one; one port has no PORT_SET in its answer.
#[test]
fn sizes() {
    for (what, ports, most, quota, asked, suggested, expected) in [
        ("as asked", 2000..=2999, 100, 1000, 10, 2100, (2100, Some(10))),
        ("the server's own limit", 2000..=2999, 32, 1000, 100, 2100, (2100, Some(32))),
        ("as many as possible", 2000..=2999, 100, 1000, u16::MAX, 2100, (2100, Some(100))),
        ("the quota's rest", 2000..=2999, 100, 7, 10, 2100, (2100, Some(7))),
        ("more than there are", 2000..=2004, 100, 1000, 10, 0, (2000, Some(5))),
        ("one port", 2000..=2000, 100, 1000, 10, 0, (2000, None)),
        ("one asked", 2000..=2999, 100, 1000, 1, 2100, (2100, None)),
        ("where it is off", 2000..=2999, 1, 1000, 10, 2100, (2100, None)),
        ("no room behind the suggestion", 2000..=2999, 100, 1000, 10, 2995, (2000, Some(10))),
        ("beside the pool", 2000..=2999, 100, 1000, 10, 80, (2000, Some(10))),
        ("over the end of the internal ports", 2000..=2999, 100, 1000, 10, 2100, (2100, Some(10))),
    ] {
        let mut bench = Bench::new(ServerConfig { ports, port_set: most, quota, ..config() });
        let request = map(600, data(1, 5000, suggested), &[port_set(asked, 5000, false)]);
        let (port, size) = expected;
        let expected = (ResultCode::SUCCESS, port, size.map(|size| (size, 5000)));
        assert_eq!(set_of(&mut bench, at(0), &request), expected, "{what}");
        assert_eq!(bench.bindings[0].ports, size.unwrap_or(1), "{what}");
        // Renewed as it is, with the option or without.
        assert_eq!(set_of(&mut bench, at(1), &request), expected, "{what}");
        assert_eq!(set_of(&mut bench, at(1), &map(600, data(1, 5000, 0), &[])), expected, "{what}");
    }
    let request = map(600, data(1, 65_534, 0), &[port_set(10, 65_534, false)]);
    assert_eq!(set_of(&mut server(), at(0), &request), (ResultCode::SUCCESS, 1024, Some((2, 65_534))));
}

/// RFC 7753 §4.2, O-5.
#[test]
fn what_makes_no_sense() {
    for (what, options) in [
        ("PREFER_FAILURE", vec![PcpOption::PreferFailure, port_set(2, 80, false)]),
        ("PREFER_FAILURE behind it", vec![port_set(2, 80, false), PcpOption::PreferFailure]),
        ("another first port", vec![port_set(2, 81, false)]),
        ("no ports", vec![port_set(0, 80, false)]),
        ("twice", vec![port_set(2, 80, false), port_set(2, 80, false)]),
    ] {
        let mut bench = server();
        let got = outcome(&mut bench, at(0), &map(600, data(1, 80, 9090), &options));
        assert_eq!(got, (ResultCode::MALFORMED_OPTION, 1800, 9090), "{what}");
        assert_eq!(bench.changes, 0, "{what}");
    }
}

/// RFC 7753 §4.2: the first external port is even when the first internal one is, or odd.
#[test]
fn parity() {
    for (internal, suggested, expected) in
        [(5000, 2100, 2100), (5000, 2101, 2000), (5001, 2101, 2101), (5001, 2100, 2001), (5001, 0, 2001)]
    {
        let mut bench = Bench::new(ServerConfig { ports: 2000..=2999, ..config() });
        let request = map(600, data(1, internal, suggested), &[port_set(4, internal, true)]);
        let got = set_of(&mut bench, at(0), &request);
        assert_eq!(got, (ResultCode::SUCCESS, expected, Some((4, internal))), "{internal} {suggested}");
    }
}

/// RFC 7753 §4.4: one entity; §4.4.1: a request over several mappings renews or deletes each, with an answer each.
#[test]
fn overlaps() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(600, data(1, 100, 2100), &[]));
    let set = map(600, data(1, 101, 2201), &[port_set(50, 101, false)]);
    assert_eq!(set_of(&mut bench, at(0), &set), (ResultCode::SUCCESS, 2201, Some((50, 101))));
    // RFC 7753 §5.3.
    let both = map(1200, data(1, 100, 0), &[port_set(60, 100, false)]);
    bench.sent.clear();
    bench.datagram(at(10), &arrival(CLIENT), &both.to_bytes());
    let mut answers = Vec::new();
    while let Some((.., bytes)) = bench.sent.pop_front() {
        let response = Response::parse(&bytes).expect("well-formed");
        let Body::Map(map) = response.body else { panic!("{response:?}") };
        answers.push((response.lifetime, map.internal_port, map.external_port, response.options));
    }
    assert_eq!(answers, [(1200, 100, 2100, vec![]), (1200, 101, 2201, vec![port_set(50, 101, false)])]);
    assert!(bench.mappings().iter().all(|mapping| mapping.ends == at(1210)));
    // A port within the set is the set's.
    let within = map(600, data(1, 120, 0), &[]);
    assert_eq!(set_of(&mut bench, at(20), &within), (ResultCode::SUCCESS, 2201, Some((50, 101))));
    let foreign = map(600, data(2, 120, 0), &[]);
    assert_eq!(outcome(&mut bench, at(20), &foreign).0, ResultCode::NOT_AUTHORIZED);
    assert_eq!(outcome(&mut bench, at(20), &map(0, data(2, 101, 0), &[])).0, ResultCode::NOT_AUTHORIZED);
    // All of it goes at once, and all of it is held for who had it.
    let delete = map(0, data(1, 101, 0), &[port_set(50, 101, false)]);
    let response = ask(&mut bench, at(30), &delete);
    assert_eq!((response.result, response.options), (ResultCode::SUCCESS, vec![port_set(50, 101, false)]));
    assert_eq!(bench.mappings().len(), 1);
    for port in [2201, 2225, 2250] {
        let strict = by(OTHER, map(600, data(3, 1, port), &[PcpOption::PreferFailure]));
        assert_eq!(outcome(&mut bench, at(31), &strict).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "{port}");
    }
    // Fewer of them than before: the rest stays held.
    let fewer = map(600, data(1, 101, 2201), &[port_set(20, 101, false)]);
    assert_eq!(set_of(&mut bench, at(31), &fewer), (ResultCode::SUCCESS, 2201, Some((20, 101))));
    let strict = by(OTHER, map(600, data(3, 1, 2250), &[PcpOption::PreferFailure]));
    assert_eq!(outcome(&mut bench, at(149), &strict).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    assert_eq!(outcome(&mut bench, at(150), &strict).0, ResultCode::SUCCESS);
}

/// A set ends where an outbound mapping begins, and PEER of a port within it is in its place there.
#[test]
fn beside_peer() {
    let mut bench = server();
    let peer = |port| {
        let body = Body::Peer(peer_data(1, port, 443));
        Request { lifetime: 600, client_addr: CLIENT.to_ipv6_mapped(), body, options: vec![] }
    };
    let port = |response: Response| match response.body {
        Body::Peer(peer) => peer.external_port,
        other => panic!("{other:?}"),
    };
    ask(&mut bench, at(0), &peer(105));
    let set = map(600, data(1, 100, 2100), &[port_set(10, 100, false)]);
    assert_eq!(set_of(&mut bench, at(0), &set), (ResultCode::SUCCESS, 2100, Some((5, 100))));
    assert_eq!(port(ask(&mut bench, at(0), &peer(103))), 2103);
    // The list tells of the set.
    bench.config_mut().query = true;
    let get = Request {
        lifetime: 0,
        client_addr: CLIENT.to_ipv6_mapped(),
        body: Body::Get(pcp::GetData::ALL),
        options: vec![],
    };
    let listed = ask(&mut bench, at(1), &get).options;
    let [PcpOption::Next(next)] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((next.external_port, &next.options[..]), (2100, &[port_set(5, 100, false)][..]));
}

/// What one request is answered with is bounded by the largest set there is, and each mapping but the first costs as much as a
/// request of its own.
#[test]
fn a_request_over_many_mappings() {
    let mut bench = server();
    for port in 1..=1000 {
        outcome(&mut bench, at(0), &map(600, data(1, port, 0), &[]));
    }
    let all = |nonce, lifetime| map(lifetime, data(nonce, 1, 0), &[port_set(u16::MAX, 1, false)]);
    let answers = |bench: &mut Bench, now, request: &Request| {
        bench.sent.clear();
        bench.datagram(now, &arrival(CLIENT), &request.to_bytes());
        std::mem::take(&mut bench.sent).len()
    };
    assert_eq!(answers(&mut bench, at(1), &all(1, 600)), 64);
    assert_eq!(answers(&mut bench, at(1), &all(2, 600)), 1, "another's nonce is refused once");
    assert_eq!(bench.refusals(Reason::ForeignNonce), 64);
    bench.config_mut().port_set = u16::MAX;
    assert_eq!(answers(&mut bench, at(2), &all(1, 600)), usize::from(MAX_PORT_SET));
    bench.config_mut().rate = Some(Rate { per_second: 1, burst: 10 });
    assert_eq!(answers(&mut bench, at(3), &all(1, 600)), 10);
    assert_eq!(answers(&mut bench, at(5), &all(1, 600)), 2, "those that have come in since");
    assert_eq!(bench.refusals(Reason::RateLimited), 2);
    bench.config_mut().rate = None;
    assert_eq!(answers(&mut bench, at(6), &all(1, 0)), 64, "so many wait for the data plane at most");
    assert_eq!(bench.mappings().len(), 1000 - 64);
}

/// A request over mappings of which each is being changed is carried out once, when all of them can be.
#[test]
fn a_request_that_waits_for_many() {
    let mut bench = server();
    for port in 1..=10 {
        outcome(&mut bench, at(0), &map(600, data(1, port, 0), &[]));
    }
    bench.nat = Nat::Hesitates;
    let host = filter(OTHER.to_ipv6_mapped(), 128);
    let set = port_set(10, 1, false);
    bench.sent.clear();
    for request in [map(700, data(1, 1, 0), &[set.clone(), host]), map(800, data(1, 1, 0), &[set])] {
        bench.datagram(at(1), &arrival(CLIENT), &request.to_bytes());
    }
    assert_eq!((bench.tickets.len(), bench.sent.len()), (10, 0));
    bench.nat_answers_all(at(2));
    assert_eq!(bench.sent.len(), 20);
    assert!(bench.mappings().iter().all(|mapping| (mapping.filters.len(), mapping.ends) == (1, at(802))));
}

/// A set has as many ports as the data plane can take at once with all its filters; filters that are too many for it are
/// refused.
#[test]
fn sets_with_filters() {
    let host = |n: u8| filter(Ipv4Addr::new(203, 0, 113, n).to_ipv6_mapped(), 128);
    for (filters, size) in [(0, 256), (1, 192), (5, 64), (32, 11)] {
        let mut bench = server().set(|config| config.port_set = 256);
        let options: Vec<_> = (0..filters).map(host).chain([port_set(256, 100, false)]).collect();
        let made = ask(&mut bench, at(0), &map(600, data(1, 100, 0), &options));
        assert_eq!(made.options.last(), Some(&port_set(size, 100, false)), "{filters}");
        // What is there already costs nothing.
        assert_eq!(outcome(&mut bench, at(1), &map(600, data(1, 100, 0), &options)).0, ResultCode::SUCCESS);
        let more: Vec<_> = (100..132 - filters).map(host).collect();
        let result = if size == 11 { ResultCode::SUCCESS } else { ResultCode::EXCESSIVE_REMOTE_PEERS };
        assert_eq!(outcome(&mut bench, at(2), &map(600, data(1, 100, 0), &more)).0, result, "{filters}");
    }
}

/// O-8: who asks for one port of a set is told of the whole set; where the answer has no room for that, it is refused.
#[test]
fn a_set_that_was_not_asked_for() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(600, data(1, 100, 0), &[port_set(4, 100, false)]));
    let text_of = |len: usize| text(&vec![b'x'; len]);
    let mut longest = 0;
    for filters in 38..=42 {
        let host = |n: u8| filter(Ipv4Addr::new(203, 0, 113, n % 20).to_ipv6_mapped(), 128);
        for len in [4, 8, 12, 16, 20, 24] {
            let options: Vec<_> = (0..filters).map(host).chain([text_of(len)]).collect();
            let request = map(600, data(1, 102, 0), &options);
            if request.to_bytes().len() > pcp::MAX_LEN {
                continue;
            }
            let response = ask(&mut bench, at(1), &request);
            let fits = request.to_bytes().len() + 12 <= pcp::MAX_LEN;
            let expected = if fits { ResultCode::SUCCESS } else { ResultCode::MALFORMED_REQUEST };
            assert_eq!(response.result, expected, "{filters} {len}");
            longest = longest.max(response.to_bytes().len());
        }
    }
    assert_eq!(longest, pcp::MAX_LEN);
}

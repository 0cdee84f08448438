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

//! PEER (RFC 6887 §12).

use super::*;

fn peer(lifetime: u32, data: PeerData, options: &[PcpOption]) -> Request {
    let client_addr = CLIENT.to_ipv6_mapped();
    Request { lifetime, client_addr, body: Body::Peer(data), options: options.to_vec() }
}

/// Result, lifetime and external port.
fn peered(bench: &mut Bench, now: Instant, request: &Request) -> (ResultCode, u32, u16) {
    let response = ask(bench, now, request);
    let (Body::Peer(got), Body::Peer(asked)) = (&response.body, &request.body) else { panic!("{response:?}") };
    let echoed = |data: &PeerData| PeerData { external_port: 0, external_addr: NO_ADDR_V4, ..*data };
    assert_eq!(echoed(got), echoed(asked), "RFC 6887 §12.3: copied");
    (response.result, response.lifetime, got.external_port)
}

/// RFC 6887 §12.2, §12.3: what a PEER request may not ask.
#[test]
fn malformed_requests() {
    let good = peer_data(1, 80, 443);
    let remote = |addr: &str| PeerData { remote_addr: pcp::ip_to_wire(addr.parse().expect("an address")), ..good };
    for (what, data, options, result) in [
        ("as it should be", good, vec![], 0),
        ("all protocols", PeerData { protocol: Protocol::ALL, ..good }, vec![], 3),
        ("all ports", PeerData { internal_port: 0, ..good }, vec![], 3),
        ("remote port 0", PeerData { remote_port: 0, ..good }, vec![], 3),
        ("SCTP", PeerData { protocol: Protocol::SCTP, ..good }, vec![], 9),
        ("to nobody", remote("0.0.0.0"), vec![], 3),
        ("to a loopback address", remote("127.0.0.1"), vec![], 3),
        ("to a group", remote("224.0.0.251"), vec![], 3),
        ("to everybody", remote("255.255.255.255"), vec![], 3),
        ("to the other family", remote("2001:db8::9"), vec![], 3),
        ("PREFER_FAILURE", good, vec![PcpOption::PreferFailure], 3),
        ("FILTER", good, vec![filter(EXTERNAL.to_ipv6_mapped(), 128)], 6),
        ("THIRD_PARTY where it is off", good, vec![third(HOST)], 5),
        ("an unknown mandatory option", good, vec![unknown(99)], 5),
        ("an unknown optional option", good, vec![unknown(199)], 0),
    ] {
        let mut bench = server();
        let (got, lifetime, _) = peered(&mut bench, at(0), &peer(600, data, &options));
        assert_eq!((got.0, lifetime), (result, if result == 0 { 600 } else { 1800 }), "{what}");
        assert_eq!(bench.mappings().len(), usize::from(result == 0), "{what}");
    }
    let mut bench = server().set(|config| config.peer = false);
    assert_eq!(ask(&mut bench, at(0), &peer(600, good, &[])).result, ResultCode::UNSUPP_OPCODE);
}

/// RFC 6887 §12.3: one five-tuple, its nonce, and no way to shorten or delete it.
#[test]
fn a_five_tuple() {
    let mut bench = server();
    let wanted = PeerData { external_port: 9090, ..peer_data(1, 80, 443) };
    assert_eq!(peered(&mut bench, at(0), &peer(3600, wanted, &[])), (ResultCode::SUCCESS, 3600, 9090));
    let binding = bench.bindings[0].clone();
    let remote: SocketAddr = "203.0.113.9:443".parse().expect("an endpoint");
    assert_eq!((binding.peer, binding.external), (Some(remote), (EXTERNAL, 9090).into()));
    assert!(binding.lets_in(remote) && !binding.lets_in("203.0.113.9:80".parse().expect("an endpoint")));
    // Again, with any suggestion: the same one.
    let again = |lifetime| peer(lifetime, PeerData { external_port: 5000, ..wanted }, &[]);
    assert_eq!(peered(&mut bench, at(100), &again(600)), (ResultCode::SUCCESS, 3500, 9090), "not shortened");
    assert_eq!(peered(&mut bench, at(100), &again(0)), (ResultCode::SUCCESS, 3500, 9090), "not deleted");
    assert_eq!(peered(&mut bench, at(100), &again(7200)), (ResultCode::SUCCESS, 7200, 9090));
    // Another nonce, which is told how long it is so.
    let foreign = PeerData { nonce: Nonce([9; 12]), ..wanted };
    assert_eq!(peered(&mut bench, at(200), &peer(600, foreign, &[])), (ResultCode::NOT_AUTHORIZED, 7100, 9090));
    // Another remote endpoint, by any nonce: another mapping, in the same place (endpoint-independent mapping).
    let other = PeerData { remote_port: 80, external_port: 0, ..foreign };
    assert_eq!(peered(&mut bench, at(200), &peer(600, other, &[])), (ResultCode::SUCCESS, 600, 9090));
    let elsewhere = PeerData { remote_port: 81, external_port: 9091, ..foreign };
    assert_eq!(
        peered(&mut bench, at(200), &peer(600, elsewhere, &[])),
        (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 9091)
    );
    assert_eq!(bench.mappings().len(), 2);
    // A delete of what is not there makes nothing.
    let none = PeerData { remote_port: 82, ..wanted };
    assert_eq!(peered(&mut bench, at(200), &peer(0, none, &[])), (ResultCode::SUCCESS, 0, 9090));
    assert_eq!(bench.mappings().len(), 2);
    bench.timeout(at(800));
    assert_eq!(bench.mappings().len(), 1);
    bench.timeout(at(7300));
    assert_eq!((bench.mappings().len(), bench.server.pool.holds()), (0, 1), "the port goes with the last of them");
}

/// RFC 6887 §12.3: a suggestion is honoured, or it is an error; without one, any will do.
#[test]
fn suggestions() {
    let mut bench = server();
    outcome(&mut bench, at(0), &by(OTHER, map(600, data(7, 80, 9090), &[])));
    for (port, addr, expected) in [
        (9090, NO_ADDR_V4, (ResultCode::CANNOT_PROVIDE_EXTERNAL, 600, 9090)),
        (80, NO_ADDR_V4, (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 80)),
        (0, OTHER.to_ipv6_mapped(), (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 0)),
        (9091, OTHER.to_ipv6_mapped(), (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 9091)),
        (9091, EXTERNAL.to_ipv6_mapped(), (ResultCode::SUCCESS, 600, 9091)),
    ] {
        let wanted = PeerData { external_port: port, external_addr: addr, ..peer_data(1, 81, 443) };
        assert_eq!(peered(&mut bench, at(0), &peer(600, wanted, &[])), expected, "{port} {addr}");
    }
    for (n, addr) in [(1, NO_ADDR_V4), (2, Ipv6Addr::UNSPECIFIED), (3, EXTERNAL.to_ipv6_mapped())] {
        let wanted = PeerData { external_addr: addr, ..peer_data(1, n, 443) };
        assert_eq!(peered(&mut bench, at(0), &peer(600, wanted, &[])).0, ResultCode::SUCCESS, "{addr}");
    }
}

/// RFC 6887 §11.3, §15.1: MAP and PEER of one internal port are in one place; each ends by itself, and MAP does not delete what
/// PEER has made.
#[test]
fn beside_map() {
    let mut bench = server();
    peered(&mut bench, at(0), &peer(600, PeerData { external_port: 9090, ..peer_data(1, 80, 443) }, &[]));
    assert_eq!(outcome(&mut bench, at(1), &map(0, data(1, 80, 0), &[])), (ResultCode::NOT_AUTHORIZED, 1800, 0));
    let strict = map(600, data(2, 80, 9191), &[PcpOption::PreferFailure]);
    assert_eq!(outcome(&mut bench, at(1), &strict).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    let inbound = map(3600, data(2, 80, 9191), &[]);
    assert_eq!(outcome(&mut bench, at(1), &inbound), (ResultCode::SUCCESS, 3600, 9090), "a copy of it");
    assert_eq!(bench.bindings.len(), 2);
    bench.timeout(at(600));
    assert_eq!(outcome(&mut bench, at(601), &inbound), (ResultCode::SUCCESS, 3600, 9090));
    // What is mapped for everybody is told, whatever is suggested.
    let wanted = PeerData { external_port: 5000, ..peer_data(3, 80, 443) };
    assert_eq!(peered(&mut bench, at(602), &peer(600, wanted, &[])), (ResultCode::SUCCESS, 600, 9090));
    assert_eq!(outcome(&mut bench, at(603), &map(0, data(2, 80, 0), &[])), (ResultCode::SUCCESS, 0, 0));
    let taken = by(OTHER, map(600, data(4, 80, 9090), &[PcpOption::PreferFailure]));
    assert_eq!(outcome(&mut bench, at(604), &taken).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "PEER has it still");
    bench.timeout(at(1202));
    assert_eq!(outcome(&mut bench, at(1321), &taken).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "held");
    assert_eq!(outcome(&mut bench, at(1322), &taken).0, ResultCode::SUCCESS);
}

#[test]
fn third_parties_and_statics() {
    let mut bench = server().set(|config| config.third_party = anybody());
    let response = ask(&mut bench, at(0), &peer(600, peer_data(1, 80, 443), &[third(HOST), text(b"game")]));
    assert_eq!((response.result, response.options), (ResultCode::SUCCESS, vec![third(HOST), text(b"game")]));
    assert_eq!(bench.bindings[0].inside.addr, IpAddr::V4(HOST));
    let fixed = StaticMapping {
        protocol: Protocol::TCP,
        inside: Inside { softwire: None, addr: CLIENT.into() },
        internal_port: 22,
        external: (EXTERNAL, 2222).into(),
    };
    bench.config_mut().statics = vec![fixed];
    let got = peered(&mut bench, at(0), &peer(600, peer_data(1, 22, 443), &[]));
    assert_eq!(got, (ResultCode::SUCCESS, u32::MAX, 2222));
    assert_eq!(bench.bindings.len(), 1, "nothing is recorded");
}

//! RFC 6887 §11.3, §12.3: a host's own flow and a mapping of the same internal endpoint have one place.

use super::*;

/// A server with a flow from port 80 to 203.0.113.9:443, which goes out by port 50000.
fn with_flow() -> Bench {
    let mut bench = server();
    let remote: SocketAddr = "203.0.113.9:443".parse().expect("an endpoint");
    bench.flows.push(((CLIENT.into(), 80), remote, SocketAddrV4::new(EXTERNAL, 50_000)));
    bench
}

fn peer(data: PeerData) -> Request {
    Request { body: Body::Peer(data), ..map(600, super::data(1, 1, 1), &[]) }
}

fn place(bench: &mut Bench, now: Instant, request: &Request) -> (u8, Ipv4Addr, u16) {
    let response = ask(bench, now, request);
    let (addr, port) = match response.body {
        Body::Map(data) => (data.external_addr, data.external_port),
        Body::Peer(data) => (data.external_addr, data.external_port),
        other => panic!("{other:?}"),
    };
    (response.result.0, addr.to_ipv4_mapped().expect("IPv4"), port)
}

/// §12.3: "the Suggested External Address and Port values in the request are ignored", for a flow that is there; for any other
/// they are honoured or refused.
#[test]
fn peer_tells_where_its_flow_is() {
    let mut bench = with_flow();
    let wanted = PeerData { external_port: 9090, ..peer_data(1, 80, 443) };
    assert_eq!(place(&mut bench, at(0), &peer(wanted)), (0, EXTERNAL, 50_000));
    let other = PeerData { external_port: 9090, ..peer_data(1, 81, 443) };
    assert_eq!(place(&mut bench, at(0), &peer(other)), (0, EXTERNAL, 9090));
    assert_eq!(bench.asked, 2);
    // What has a mapping already is not asked for.
    assert_eq!(place(&mut bench, at(1), &peer(wanted)), (0, EXTERNAL, 50_000));
    assert_eq!(place(&mut bench, at(1), &peer(peer_data(2, 80, 80))), (0, EXTERNAL, 50_000));
    assert_eq!(place(&mut bench, at(1), &map(600, data(3, 80, 0), &[])), (0, EXTERNAL, 50_000));
    assert_eq!(bench.asked, 3, "another five-tuple has a flow of its own");
    // A suggestion is ignored where the flow is there, whatever made its place; where the place is another one, nothing is told
    // that is not so.
    let mut bench = with_flow();
    outcome(&mut bench, at(0), &map(600, data(3, 80, 50_000), &[]));
    assert_eq!(place(&mut bench, at(0), &peer(wanted)), (0, EXTERNAL, 50_000));
    let mut bench = with_flow();
    outcome(&mut bench, at(0), &map(600, data(3, 80, 9090), &[]));
    let conflict = ResultCode::CANNOT_PROVIDE_EXTERNAL.0;
    assert_eq!(place(&mut bench, at(0), &peer(wanted)).0, conflict);
    assert_eq!(place(&mut bench, at(0), &peer(peer_data(1, 80, 80))), (0, EXTERNAL, 9090), "no flow");
    // What was freed a moment ago is held for this internal endpoint, and the flow is there still.
    let mut bench = with_flow();
    outcome(&mut bench, at(0), &map(600, data(3, 80, 50_000), &[]));
    outcome(&mut bench, at(1), &map(0, data(3, 80, 0), &[]));
    assert_eq!(place(&mut bench, at(2), &peer(wanted)), (0, EXTERNAL, 50_000));
    // Where the port is not one that may be had, there is no mapping that would say something else.
    let mut bench = with_flow().set(|config| config.ports = 1024..=40_000);
    bench.apply_settings(at(0));
    let (result, ..) = place(&mut bench, at(0), &peer(peer_data(1, 80, 443)));
    assert_eq!((ResultCode(result), bench.mappings().len()), (ResultCode::CANNOT_PROVIDE_EXTERNAL, 0));
}

/// §11.3: what a client leaves to us it gets where its own flow is. What it suggests, or where there is no such flow, it gets as
/// ever.
#[test]
fn map_joins_a_flow_where_the_port_is_left_to_us() {
    for (request, port, asked) in [
        (map(600, data(1, 80, 0), &[]), Some(50_000), 1),
        (map(600, data(1, 80, 9090), &[]), Some(9090), 0),
        (map(600, data(1, 80, 9090), &[PcpOption::PreferFailure]), Some(9090), 0),
        (map(600, data(1, 80, 0), &[port_set(8, 80, false)]), None, 0),
        (map(600, data(1, 81, 0), &[]), None, 1),
        (map(600, MapData { protocol: Protocol::UDP, ..data(1, 80, 0) }, &[]), None, 1),
    ] {
        let mut bench = with_flow();
        let (result, addr, got) = place(&mut bench, at(0), &request);
        assert_eq!((result, addr), (0, EXTERNAL), "{request:?}");
        assert!(port.map_or(got != 50_000, |port| port == got), "{request:?}: {got}");
        assert_eq!(bench.asked, asked, "{request:?}");
    }
    // NAT-PMP: TCP, internal port 80, any external port, for an hour.
    let mut bench = with_flow();
    let answer = raw(&mut bench, at(0), CLIENT, &hex("00020000 00500000 00000e10")).expect("an answer");
    assert_eq!(answer[10..12], 50_000_u16.to_be_bytes());
    // Somebody else's port is not given away; another one will do.
    let mut bench = with_flow();
    outcome(&mut bench, at(0), &by(OTHER, map(600, data(1, 80, 50_000), &[])));
    let (result, _, port) = place(&mut bench, at(0), &map(600, data(1, 80, 0), &[]));
    assert!(result == 0 && port != 50_000);
}

fn results(bench: &mut Bench) -> Vec<u8> {
    let answers = std::mem::take(&mut bench.sent);
    answers.iter().map(|(.., bytes)| Response::parse(bytes).expect("well-formed").result.0).collect()
}

/// While the data plane is asked, the request waits, others about the same mapping behind it; it is asked once.
#[test]
fn requests_wait_for_the_answer() {
    let mut bench = with_flow();
    bench.ponders = true;
    let first = map(600, data(1, 80, 0), &[]).to_bytes();
    let foreign = map(600, data(2, 80, 0), &[]).to_bytes();
    for request in [&first, &first, &foreign, &foreign] {
        assert_eq!(bench.answer(at(0), &arrival(CLIENT), request), None);
    }
    assert_eq!((bench.questions.len(), bench.refusals(Reason::Retransmission)), (1, 2));
    bench.flow_answers(at(1));
    bench.perform(at(1));
    assert_eq!(results(&mut bench), [ResultCode::NOT_AUTHORIZED.0, 0]);
    assert_eq!(bench.mappings()[0].external.port(), 50_000);

    // A delete comes after what it deletes, in whatever words; so does whoever suggests a port, or wants a set.
    for (what, then) in [
        ("PCP", map(0, data(1, 80, 0), &[]).to_bytes()),
        ("NAT-PMP", hex("00020000 00500000 00000000")),
        ("NAT-PMP, all", hex("00020000 00000000 00000000")),
        ("a suggestion", map(600, data(2, 80, 9090), &[]).to_bytes()),
        ("NAT-PMP with a suggestion", hex("00020000 00502382 00000e10")),
        ("a set", map(600, data(2, 79, 9090), &[port_set(8, 79, false)]).to_bytes()),
    ] {
        let mut bench = with_flow();
        bench.ponders = true;
        for request in [&first, &then] {
            assert_eq!(bench.answer(at(0), &arrival(CLIENT), request), None, "{what}");
        }
        assert_eq!((bench.questions.len(), bench.tickets.len(), bench.changes), (1, 0, 0), "{what}");
        bench.flow_answers(at(1));
        bench.perform(at(1));
        bench.ponders = false;
        let left: Vec<u16> = bench.mappings().iter().map(|mapping| mapping.external.port()).collect();
        let deleted = what == "PCP";
        assert_eq!(left, if deleted { vec![] } else { vec![50_000] }, "{what}");
        assert_eq!(bench.sent.len(), 2, "{what}: each has its answer");
    }

    // Too many questions are met with silence, each subscriber's by themselves, and what is lost meanwhile is nobody's.
    let mut bench = with_flow();
    bench.ponders = true;
    for port in 1000..1300 {
        assert_eq!(bench.answer(at(0), &arrival(CLIENT), &map(600, data(1, port, 0), &[]).to_bytes()), None);
    }
    assert_eq!((bench.questions.len(), bench.refusals(Reason::Busy)), (64, 236));
    let others = by(OTHER, map(600, data(1, 80, 0), &[]));
    assert_eq!(bench.answer(at(0), &arrival(OTHER), &others.to_bytes()), None);
    assert_eq!(bench.questions.len(), 65);
    bench.server.lose_state(at(1));
    for _ in 0..65 {
        bench.flow_answers(at(2));
    }
    bench.perform(at(2));
    assert_eq!((results(&mut bench), bench.tickets.len()), (vec![], 0));
    assert_eq!(bench.answer(at(3), &arrival(CLIENT), &map(600, data(1, 1000, 0), &[]).to_bytes()), None);
    assert_eq!(bench.questions.len(), 1, "it is asked again");
    // Who has no room for a mapping is not asked about.
    let mut bench = with_flow().set(|config| config.quota = 1);
    outcome(&mut bench, at(0), &map(600, data(1, 81, 9090), &[]));
    assert_eq!(outcome(&mut bench, at(0), &map(600, data(2, 80, 0), &[])).0, ResultCode::USER_EX_QUOTA);
    assert_eq!(bench.asked, 0);
}

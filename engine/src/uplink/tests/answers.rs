//! Which answers are believed: RFC 6887 §8.3, §11.4, the security policy.

use super::*;

/// RFC 6887 §15 and the security policy: a success lasts 24 h at most, an error 30 min at most.
#[test]
fn lifetimes_are_clamped() {
    for (granted, believed) in [(1, 1), (86_400, 86_400), (86_401, 86_400), (u32::MAX, 86_400)] {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, want());
        rig.answer(&rig.success(&request, granted));
        assert_eq!(rig.client.grant(FLOW).unwrap().lifetime, Duration::from_secs(believed), "{granted}");
    }
    for (said, believed) in [(0, 0), (30, 30), (1800, 1800), (u32::MAX, 1800)] {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, want());
        let out = rig.answer(&rig.error(&request, ResultCode::NOT_AUTHORIZED, said));
        let refused = Output::Refused(FLOW, ResultCode::NOT_AUTHORIZED, Duration::from_secs(believed));
        assert_eq!(out, [Output::Answering, refused], "{said}");
        assert!(!rig.client.has(FLOW));
    }
}

/// Security policy: 0 to a request for a mapping is no success.
#[test]
fn a_lifetime_of_0_is_a_failure() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, want());
    let out = rig.answer(&rig.success(&request, 0));
    let refused = Output::Refused(FLOW, ResultCode::NETWORK_FAILURE, Duration::ZERO);
    assert_eq!(out, [Output::Answering, refused]);

    let (mut rig, request) = Rig::holding(want(), 400);
    let out = rig.answer(&rig.success(&request, 0));
    assert_eq!(out, [Output::RenewalRefused(FLOW, ResultCode::NETWORK_FAILURE)]);
    assert!(rig.client.has(FLOW), "it stands until its lifetime ends");
}

/// T-6, RFC 6887 §8.3 and §11.4, and the security policy's never-believe row by row: ignored, counted, without an
/// effect; the right answer afterwards is accepted.
#[test]
fn what_is_never_believed() {
    let third_party = Want { third_party: Some(LAN_HOST.into()), ..want() };
    type Forge = fn(&Rig, &Request) -> (SocketAddr, Vec<u8>);
    let map = |forge: fn(&mut MapData, &mut Response)| {
        move |rig: &Rig, request: &Request| {
            let mut response = rig.success(request, 3600);
            let Body::Map(mut map) = response.body else { unreachable!() };
            forge(&mut map, &mut response);
            if let Body::Map(_) = response.body {
                response.body = Body::Map(map);
            }
            (server(), response.to_bytes())
        }
    };
    let bytes = |forge: fn(&mut Vec<u8>)| {
        move |rig: &Rig, request: &Request| {
            let mut bytes = rig.success(request, 3600).to_bytes();
            forge(&mut bytes);
            (server(), bytes)
        }
    };
    let other_source: Forge =
        |rig, request| ("192.0.2.2:5351".parse().unwrap(), rig.success(request, 9).to_bytes());
    let other_port: Forge =
        |rig, request| ("192.0.2.1:5350".parse().unwrap(), rig.success(request, 9).to_bytes());
    let request_back: Forge = |_, request| (server(), request.to_bytes());
    type Row<'a> = (&'a str, Box<dyn Fn(&Rig, &Request) -> (SocketAddr, Vec<u8>)>);
    let rows: Vec<Row<'_>> = vec![
        ("another source", Box::new(other_source)),
        ("another port of the server", Box::new(other_port)),
        ("a request that comes back", Box::new(request_back)),
        ("R clear", Box::new(bytes(|bytes| bytes[1] = 1))),
        ("empty", Box::new(bytes(Vec::clear))),
        ("three octets", Box::new(bytes(|bytes| bytes.truncate(3)))),
        ("shorter than a header", Box::new(bytes(|bytes| bytes.truncate(20)))),
        ("shorter than MAP", Box::new(bytes(|bytes| bytes.truncate(56)))),
        ("not a multiple of 4", Box::new(bytes(|bytes| bytes.push(0)))),
        ("longer than 1100", Box::new(bytes(|bytes| bytes.resize(1104, 0)))),
        ("version 1", Box::new(bytes(|bytes| bytes[0] = 1))),
        ("another nonce", Box::new(map(|map, _| map.nonce.0[11] ^= 1))),
        ("another protocol", Box::new(map(|map, _| map.protocol = Protocol::UDP))),
        ("another internal port", Box::new(map(|map, _| map.internal_port += 1))),
        ("no THIRD_PARTY", Box::new(map(|_, response| response.options.clear()))),
        (
            "another THIRD_PARTY",
            Box::new(map(|_, response| {
                let other = Ipv4Addr::new(10, 0, 0, 6);
                response.options[0] = PcpOption::ThirdParty(other.to_ipv6_mapped());
            })),
        ),
        ("an IPv6 external address", Box::new(map(|map, _| map.external_addr = Ipv6Addr::LOCALHOST))),
        (
            "another opcode",
            Box::new(map(|map, response| {
                response.body = Body::Peer(PeerData {
                    nonce: map.nonce,
                    protocol: map.protocol,
                    internal_port: map.internal_port,
                    external_port: map.external_port,
                    external_addr: map.external_addr,
                    remote_port: 1,
                    remote_addr: NO_ADDR_V4,
                });
            })),
        ),
        ("an unknown opcode", Box::new(map(|_, r| r.body = Body::Other(Opcode(99), vec![0; 36])))),
        (
            "an error with another nonce",
            Box::new(map(|map, response| {
                map.nonce.0[0] ^= 1;
                response.result = ResultCode::NOT_AUTHORIZED;
            })),
        ),
        (
            "an ANNOUNCE that is refused",
            Box::new(map(|_, response| {
                response.body = Body::Announce;
                response.options.clear();
                response.result = ResultCode::UNSUPP_OPCODE;
            })),
        ),
    ];
    for (what, forge) in rows {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, third_party.clone());
        let due = rig.client.next_timeout();
        let (from, bytes) = forge(&rig, &request);
        assert_eq!(rig.input(Input::Datagram(from, &bytes)), [], "{what}");
        assert_eq!(rig.client.ignored(), 1, "{what}");
        assert_eq!((rig.client.is_answering(), rig.client.last_heard()), (None, None), "{what}");
        assert_eq!(rig.client.next_timeout(), due, "{what}");
        let out = rig.answer(&rig.success(&request, 3600));
        assert!(matches!(out[..], [Output::Answering, Output::Granted(FLOW, _)]), "{what}: {out:?}");
        assert_eq!(rig.client.ignored(), 1, "{what}");
    }
}

/// RFC 6887 §13.1: without the option in the request there is none in the answer.
#[test]
fn an_uninvited_third_party_is_not_believed() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, want());
    let mut response = rig.success(&request, 3600);
    response.options.push(PcpOption::ThirdParty(LAN_HOST.to_ipv6_mapped()));
    assert_eq!(rig.answer(&response), []);
    assert_eq!(rig.client.ignored(), 1);
}

/// RFC 6887 §11.4: an answer is judged by what was asked, not by the external port; the asker compares (§13.2).
#[test]
fn another_external_port_is_reported_as_it_came() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, want());
    let mut response = rig.success(&request, 3600);
    let Body::Map(map) = &mut response.body else { unreachable!() };
    map.external_port = 8081;
    rig.answer(&response);
    assert_eq!(rig.client.grant(FLOW).unwrap().external, SocketAddr::from((EXTERNAL, 8081)));
}

/// RFC 6887 §14.2: an unsolicited MAP response is an ordinary one.
#[test]
fn a_mapping_update_is_a_renewal() {
    let (mut rig, request) = Rig::holding(want(), 3600);
    rig.now = 5000;
    let mut update = rig.success(&request, 600);
    let Body::Map(map) = &mut update.body else { unreachable!() };
    map.external_port = 9090;
    let since = Instant::from_secs(5);
    let grant =
        Grant { external: SocketAddr::from((EXTERNAL, 9090)), lifetime: Duration::from_secs(600), since };
    assert_eq!(rig.answer(&update), [Output::Granted(FLOW, grant)]);
}

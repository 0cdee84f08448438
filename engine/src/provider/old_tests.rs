//! The PCP server in virtual time: RFC 6887's server half, row by row.

use std::net::Ipv6Addr;

use wire::pcp::{Filter, GetData, NO_ADDR_V4, NextMapping, OptionCode, PeerData, PortSet};

use super::*;

const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const START: Instant = Instant::from_secs(1000);

fn provider() -> Provider {
    Provider::new(START, ProviderConfig::new(EXTERNAL))
}

fn at(secs: u64) -> Instant {
    Instant::from_secs(1000 + secs)
}

fn data(nonce: u8, internal_port: u16, external_port: u16) -> MapData {
    MapData {
        nonce: Nonce([nonce; 12]),
        protocol: Protocol::TCP,
        internal_port,
        external_port,
        external_addr: NO_ADDR_V4,
    }
}

fn map(lifetime: u32, map: MapData, options: &[PcpOption]) -> Request {
    let client_addr = CLIENT.to_ipv6_mapped();
    Request { lifetime, client_addr, body: Body::Map(map), options: options.to_vec() }
}

/// What the server answers to a datagram from `from`.
fn raw(provider: &mut Provider, now: Instant, from: Ipv4Addr, bytes: &[u8]) -> Option<Vec<u8>> {
    provider.handle_datagram(now, SocketAddr::from((from, 4321)), bytes)
}

fn ask(provider: &mut Provider, now: Instant, request: &Request) -> Response {
    let from = pcp::ip_from_wire(request.client_addr);
    let answer = provider.handle_datagram(now, SocketAddr::new(from, 4321), &request.to_bytes());
    Response::parse(&answer.expect("no silence")).expect("well-formed")
}

/// Result, lifetime and external port of the answer to a MAP request.
fn outcome(provider: &mut Provider, now: Instant, request: &Request) -> (ResultCode, u32, u16) {
    let response = ask(provider, now, request);
    let Body::Map(map) = response.body else { panic!("{response:?}") };
    (response.result, response.lifetime, map.external_port)
}

fn filter(addr: Ipv6Addr, prefix_len: u8) -> PcpOption {
    PcpOption::Filter(Filter { prefix_len, remote_port: 0, remote_addr: addr })
}

/// RFC 6887 §11.3: the whole answer, with the suggestion granted; and the NAT hears of it.
#[test]
fn a_mapping_is_made() {
    let mut provider = provider();
    let request = map(3600, data(1, 8080, 9090), &[PcpOption::PreferFailure]);
    let assigned = MapData { external_addr: EXTERNAL.to_ipv6_mapped(), ..data(1, 8080, 9090) };
    let expected = Response {
        result: ResultCode::SUCCESS,
        lifetime: 3600,
        epoch: 5,
        body: Body::Map(assigned),
        options: vec![PcpOption::PreferFailure],
    };
    assert_eq!(ask(&mut provider, at(5), &request), expected);
    let mapping = ProviderMapping {
        protocol: Protocol::TCP,
        external: SocketAddrV4::new(EXTERNAL, 9090),
        internal: SocketAddrV4::new(CLIENT, 8080),
        subscriber: IpAddr::V4(CLIENT),
        filters: Vec::new(),
        description: None,
        ends: at(3605),
        nonce: Nonce([1; 12]),
    };
    assert_eq!(provider.mappings().collect::<Vec<_>>(), [&mapping]);
    assert_eq!(provider.poll_event(), Some(NatEvent::Opened(mapping.clone())));
    // Renewed, it is the same one; the NAT need not hear.
    assert_eq!(ask(&mut provider, at(100), &request), Response { epoch: 100, ..expected });
    assert_eq!(provider.poll_event(), None);
    assert_eq!(provider.next_timeout(), Some(at(3700)));
    provider.handle_timeout(at(3700));
    assert_eq!(provider.poll_event(), Some(NatEvent::Closed(ProviderMapping { ends: at(3700), ..mapping })));
    assert_eq!((provider.mappings().count(), provider.next_timeout()), (0, None));
}

/// RFC 6887 §8.2, in its order: silence, or which result; the most telling one when several fit.
#[test]
fn requests_are_checked_in_the_order_of_the_rfc() {
    let good = map(3600, data(1, 8080, 9090), &[]);
    let bytes = |forge: fn(&mut Vec<u8>)| {
        let mut bytes = good.to_bytes();
        forge(&mut bytes);
        bytes
    };
    let options = |options: &[PcpOption]| map(3600, data(1, 8080, 9090), options).to_bytes();
    let unknown = |code| PcpOption::Unknown { code: wire::pcp::OptionCode(code), data: vec![0; 4] };
    let peer = PeerData {
        nonce: Nonce([1; 12]),
        protocol: Protocol::TCP,
        internal_port: 1,
        external_port: 0,
        external_addr: NO_ADDR_V4,
        remote_port: 1,
        remote_addr: NO_ADDR_V4,
    };
    let announce = |option| Request { body: Body::Announce, ..map(0, data(1, 1, 1), &[option]) }.to_bytes();
    let host = PcpOption::ThirdParty(HOST.to_ipv6_mapped());
    let port_set = PcpOption::PortSet(PortSet { size: 2, first_internal_port: 8080, parity: false });
    for (what, from, bytes, expected) in [
        ("one octet", CLIENT, vec![2], None),
        ("R set", CLIENT, bytes(|b| b[1] |= 0x80), None),
        ("short and of another version", CLIENT, vec![1, 1, 0, 0], Some(1)),
        ("NAT-PMP", CLIENT, vec![0, 0], Some(1)),
        ("version 3", CLIENT, bytes(|b| b[0] = 3), Some(1)),
        ("shorter than a header", CLIENT, bytes(|b| b.truncate(20)), None),
        ("longer than 1100", CLIENT, bytes(|b| b.resize(1104, 0)), Some(3)),
        ("no multiple of 4", CLIENT, bytes(|b| b.push(0)), Some(3)),
        ("shorter than MAP", CLIENT, bytes(|b| b.truncate(56)), Some(3)),
        ("from another address", OTHER, bytes(|_| ()), Some(12)),
        ("from another address, unknown opcode", OTHER, bytes(|b| b[1] = 77), Some(12)),
        ("unknown opcode", CLIENT, bytes(|b| b[1] = 77), Some(4)),
        ("PEER", CLIENT, Request { body: Body::Peer(peer), ..good.clone() }.to_bytes(), Some(4)),
        ("option beyond the end", CLIENT, bytes(|b| b.extend([3, 0, 0, 20])), Some(6)),
        (
            "PREFER_FAILURE twice",
            CLIENT,
            options(&[PcpOption::PreferFailure, PcpOption::PreferFailure]),
            Some(6),
        ),
        ("THIRD_PARTY where it is not allowed", CLIENT, options(&[host]), Some(5)),
        ("unknown mandatory option", CLIENT, options(&[unknown(100)]), Some(5)),
        ("unknown optional option", CLIENT, options(&[unknown(200)]), Some(0)),
        ("PORT_SET, which is optional", CLIENT, options(&[port_set]), Some(0)),
        ("ANNOUNCE with a mandatory option", CLIENT, announce(PcpOption::PreferFailure), Some(5)),
        ("ANNOUNCE with an optional option", CLIENT, announce(unknown(200)), Some(0)),
        ("IPv4 prefix below 96", CLIENT, options(&[filter(EXTERNAL.to_ipv6_mapped(), 95)]), Some(6)),
    ] {
        let mut provider = provider();
        let answer = raw(&mut provider, at(7), from, &bytes);
        assert_eq!(answer.as_ref().map(|answer| answer[3]), expected, "{what}");
        if let (Some(answer), Some(1..)) = (answer, expected) {
            assert_eq!(answer[0], 2, "{what}");
            assert_eq!(answer[1], bytes[1] | 0x80, "{what}");
            assert_eq!(answer[8..12], [0, 0, 0, 7], "{what}: epoch");
            assert_eq!(provider.mappings().count(), 0, "{what}: O-6, no state is changed");
            assert_eq!(provider.poll_event(), None, "{what}");
        }
    }
}

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
        let mut provider = provider();
        let response = ask(&mut provider, at(0), &request);
        let (body, options) = (request.body.clone(), request.options.clone());
        let expected = Response { result, lifetime, epoch: 0, body, options };
        assert_eq!(response, expected, "{what}: everything comes back");
    }
}

/// RFC 6887 §11.3 (simple threat model): another nonce gets NOT_AUTHORIZED for as long as the mapping stands, even
/// for a delete; a delete of nothing succeeds (§15).
#[test]
fn a_mapping_belongs_to_its_nonce() {
    let mut provider = provider();
    outcome(&mut provider, at(0), &map(3600, data(1, 8080, 9090), &[]));
    let refused = |left| (ResultCode::NOT_AUTHORIZED, left, 9090);
    assert_eq!(outcome(&mut provider, at(600), &map(3600, data(2, 8080, 9090), &[])), refused(3000));
    assert_eq!(outcome(&mut provider, at(601), &map(0, data(2, 8080, 9090), &[])), refused(2999));
    assert_eq!(provider.mappings().count(), 1);
    let done = (ResultCode::SUCCESS, 0, 0);
    assert_eq!(outcome(&mut provider, at(602), &map(0, data(1, 8080, 0), &[])), done);
    assert_eq!(provider.mappings().count(), 0);
    assert_eq!(outcome(&mut provider, at(603), &map(0, data(2, 8080, 0), &[])), done, "nothing to delete");
}

/// RFC 6887 §11.3: one mapping for an internal port, whatever is suggested later.
#[test]
fn an_internal_port_has_one_mapping() {
    let mut provider = provider();
    outcome(&mut provider, at(0), &map(600, data(1, 8080, 9090), &[]));
    let got = outcome(&mut provider, at(1), &map(600, data(1, 8080, 5000), &[]));
    assert_eq!(got, (ResultCode::SUCCESS, 600, 9090));
    let strict = |map_data| map(600, map_data, &[PcpOption::PreferFailure]);
    let got = outcome(&mut provider, at(2), &strict(data(1, 8080, 5000)));
    assert_eq!(got, (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 5000));
    let elsewhere = MapData { external_addr: OTHER.to_ipv6_mapped(), ..data(1, 8080, 9090) };
    let got = outcome(&mut provider, at(3), &strict(elsewhere));
    assert_eq!(got, (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 9090), "the address is part of the suggestion");
    let here = MapData { external_addr: EXTERNAL.to_ipv6_mapped(), ..data(1, 8080, 9090) };
    assert_eq!(outcome(&mut provider, at(4), &strict(here)), (ResultCode::SUCCESS, 600, 9090));
}

/// RFC 6887 §13.2 and K-17: what the three kinds of server make of PREFER_FAILURE on a port that is taken.
#[test]
fn prefer_failure_of_three_kinds() {
    for (kind, expected) in [
        (PreferFailure::Honoured, (ResultCode::CANNOT_PROVIDE_EXTERNAL, 590, 9090)),
        (PreferFailure::PassedOver, (ResultCode::SUCCESS, 600, 40_000)),
        (PreferFailure::Unsupported, (ResultCode::UNSUPP_OPTION, 1800, 9090)),
    ] {
        let mut provider = provider();
        provider.config_mut().prefer_failure = kind;
        outcome(&mut provider, at(0), &map(600, data(1, 8080, 9090), &[]));
        let request = map(600, data(2, 8081, 9090), &[PcpOption::PreferFailure]);
        assert_eq!(outcome(&mut provider, at(10), &request), expected, "{kind:?}");
    }
}

/// RFC 6887 §11.3, §15 and D-15: which ports are given out. UDP 5350 and 5351 never, none below 1024, none that is
/// taken or was freed less than 120 s ago, except to who had it: same internal address, port and nonce.
#[test]
fn ports_that_are_not_given_out() {
    let strict = [PcpOption::PreferFailure];
    let mut provider = provider();
    for (protocol, port, free) in [
        (Protocol::UDP, 5350, false),
        (Protocol::UDP, 5351, false),
        (Protocol::UDP, 5352, true),
        (Protocol::TCP, 5351, true),
        (Protocol::TCP, 80, false),
        (Protocol::TCP, 1023, false),
        (Protocol::TCP, 1024, true),
        (Protocol::TCP, 65535, true),
    ] {
        let wanted = MapData { protocol, ..data(9, port, port) };
        let (result, ..) = outcome(&mut provider, at(0), &map(600, wanted, &strict));
        assert_eq!(result == ResultCode::SUCCESS, free, "{protocol} {port}");
    }
    outcome(&mut provider, at(0), &map(3600, data(1, 8080, 9090), &strict));
    outcome(&mut provider, at(100), &map(0, data(1, 8080, 0), &[]));
    let taken = (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 9090);
    for other in [data(2, 8080, 9090), data(1, 8081, 9090)] {
        assert_eq!(outcome(&mut provider, at(219), &map(600, other, &strict)), taken);
    }
    let again = outcome(&mut provider, at(219), &map(600, data(1, 8080, 9090), &strict));
    assert_eq!(again, (ResultCode::SUCCESS, 600, 9090), "its last owner");
    outcome(&mut provider, at(220), &map(0, data(1, 8080, 0), &[]));
    assert_eq!(outcome(&mut provider, at(339), &map(600, data(2, 8081, 9090), &strict)), taken);
    let freed = outcome(&mut provider, at(340), &map(600, data(2, 8081, 9090), &strict));
    assert_eq!(freed, (ResultCode::SUCCESS, 600, 9090));
    // What ends by itself is held, too.
    provider.handle_timeout(at(2000));
    assert_eq!(outcome(&mut provider, at(2001), &map(600, data(3, 8082, 9090), &strict)), taken);
}

/// RFC 6887 §11.3: without PREFER_FAILURE another port is assigned; none that is in use.
#[test]
fn other_ports_are_assigned() {
    let mut provider = provider();
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..50 {
        let (result, _, port) = outcome(&mut provider, at(0), &map(600, data(1, 1000 + n, 9090), &[]));
        assert_eq!(result, ResultCode::SUCCESS);
        assert!(seen.insert(port), "{port} twice");
    }
    assert!(seen.contains(&9090));
}

/// RFC 6887 §15: more or less than was asked.
#[test]
fn lifetimes_are_clamped() {
    for (asked, granted) in [(1, 120), (120, 120), (3600, 3600), (86_400, 86_400), (u32::MAX, 86_400)] {
        let got = outcome(&mut provider(), at(0), &map(asked, data(1, 80, 9090), &[]));
        assert_eq!(got, (ResultCode::SUCCESS, granted, 9090));
    }
    let mut provider = provider();
    provider.config_mut().shortest = 100;
    provider.config_mut().longest = 50;
    let got = outcome(&mut provider, at(0), &map(60, data(1, 80, 9090), &[]));
    assert_eq!(got, (ResultCode::SUCCESS, 100, 9090), "no settings make it panic");
}

/// RFC 6887 §7.4: USER_EX_QUOTA is one subscriber's.
#[test]
fn quotas_are_per_subscriber() {
    let mut provider = provider();
    provider.config_mut().quota = 2;
    for port in [1, 2] {
        outcome(&mut provider, at(0), &map(600, data(1, port, 0), &[]));
    }
    let third = outcome(&mut provider, at(0), &map(600, data(1, 3, 9090), &[]));
    assert_eq!(third, (ResultCode::USER_EX_QUOTA, 30, 9090));
    let other = Request { client_addr: OTHER.to_ipv6_mapped(), ..map(600, data(1, 3, 9090), &[]) };
    assert_eq!(outcome(&mut provider, at(0), &other), (ResultCode::SUCCESS, 600, 9090));
    let renewed = outcome(&mut provider, at(1), &map(600, data(1, 1, 0), &[]));
    assert_eq!(renewed.0, ResultCode::SUCCESS);
    outcome(&mut provider, at(2), &map(0, data(1, 1, 0), &[]));
    assert_eq!(outcome(&mut provider, at(3), &map(600, data(1, 3, 0), &[])).0, ResultCode::SUCCESS);
}

/// RFC 6887 §13.1.
#[test]
fn third_party() {
    let mut provider = provider();
    provider.config_mut().third_party = true;
    let host = PcpOption::ThirdParty(HOST.to_ipv6_mapped());
    let response = ask(&mut provider, at(0), &map(600, data(1, 80, 9090), std::slice::from_ref(&host)));
    assert_eq!((response.result, response.options), (ResultCode::SUCCESS, vec![host]));
    let internal: Vec<_> =
        provider.mappings().map(|mapping| (mapping.internal, mapping.subscriber)).collect();
    assert_eq!(internal, [(SocketAddrV4::new(HOST, 80), IpAddr::V4(CLIENT))]);
    let own = PcpOption::ThirdParty(CLIENT.to_ipv6_mapped());
    let got = outcome(&mut provider, at(0), &map(600, data(1, 80, 9091), &[own]));
    assert_eq!(got.0, ResultCode::MALFORMED_REQUEST, "it equals the source");
    let ipv6 = PcpOption::ThirdParty("2001:db8::1".parse().unwrap());
    assert_eq!(
        outcome(&mut provider, at(0), &map(600, data(1, 80, 9091), &[ipv6])).0,
        ResultCode::UNSUPP_PROTOCOL
    );
}

/// RFC 6887 §13.3: filters accumulate, a prefix of 0 drops those before it, too many change nothing.
#[test]
fn filters() {
    let mut provider = provider();
    let peer = |n: u8| Ipv4Addr::new(203, 0, 113, n);
    let host = |n| filter(peer(n).to_ipv6_mapped(), 128);
    let lets_in = |provider: &Provider, n| provider.mappings().next().unwrap().lets_in(peer(n));
    let with = |options: &[PcpOption], provider: &mut Provider| {
        let response = ask(provider, at(0), &map(600, data(1, 80, 9090), options));
        assert_eq!(response.options, options, "what was processed comes back");
        (response.result, std::iter::from_fn(|| provider.poll_event()).count())
    };
    let done = |events| (ResultCode::SUCCESS, events);
    assert_eq!(with(&[], &mut provider), done(1));
    assert!(lets_in(&provider, 1));
    assert_eq!(with(&[host(1)], &mut provider), done(1));
    assert_eq!((lets_in(&provider, 1), lets_in(&provider, 2)), (true, false));
    assert_eq!(with(&[host(1)], &mut provider), done(0));
    assert_eq!(with(&[host(2)], &mut provider), done(1));
    assert_eq!((lets_in(&provider, 1), lets_in(&provider, 2)), (true, true));
    assert_eq!(with(&[filter(Ipv6Addr::UNSPECIFIED, 0), host(3)], &mut provider), done(1));
    assert_eq!((lets_in(&provider, 1), lets_in(&provider, 3)), (false, true));
    assert_eq!(with(&[filter(peer(0).to_ipv6_mapped(), 96 + 24)], &mut provider), done(1));
    assert!(lets_in(&provider, 200));
    let many: Vec<PcpOption> = (0..40).map(host).collect();
    let before: Vec<ProviderMapping> = provider.mappings().cloned().collect();
    assert_eq!(with(&many, &mut provider), (ResultCode::EXCESSIVE_REMOTE_PEERS, 0));
    assert_eq!(provider.mappings().cloned().collect::<Vec<_>>(), before);
}

/// RFC 6887 §8.5 and §14.1: seconds since the state was lost; ANNOUNCE asks and tells.
#[test]
fn epoch_and_announce() {
    let mut provider = provider();
    let announce = Request {
        lifetime: 0,
        client_addr: CLIENT.to_ipv6_mapped(),
        body: Body::Announce,
        options: Vec::new(),
    };
    let told = |epoch| Response {
        result: ResultCode::SUCCESS,
        lifetime: 0,
        epoch,
        body: Body::Announce,
        options: Vec::new(),
    };
    assert_eq!(ask(&mut provider, at(77), &announce), told(77));
    outcome(&mut provider, at(80), &map(600, data(1, 80, 9090), &[]));
    assert!(matches!(provider.poll_event(), Some(NatEvent::Opened(_))));
    assert_eq!(Response::parse(&provider.lose_state(at(100))), Ok(told(0)));
    assert!(matches!(provider.poll_event(), Some(NatEvent::Closed(_))));
    assert_eq!((provider.mappings().count(), provider.next_timeout()), (0, None));
    assert_eq!(ask(&mut provider, at(103), &announce), told(3));
    let got = outcome(&mut provider, at(104), &map(600, data(2, 80, 9090), &[PcpOption::PreferFailure]));
    assert_eq!(got, (ResultCode::SUCCESS, 600, 9090), "no hold is remembered either");
}

/// RFC 6887 §13.2: the error's lifetime is the remainder of the mapping in the way, or what the server likes.
#[test]
fn conflicts_last_as_long_as_is_set_up() {
    for (set, taken, held, own) in
        [(None, 590, 30, 30), (Some(5), 5, 5, 5), (Some(86_400), 86_400, 86_400, 86_400)]
    {
        let mut provider = provider();
        provider.config_mut().conflict_lifetime = set;
        outcome(&mut provider, at(0), &map(600, data(1, 8080, 9090), &[]));
        outcome(&mut provider, at(0), &map(600, data(1, 8081, 9091), &[]));
        outcome(&mut provider, at(1), &map(0, data(1, 8081, 0), &[]));
        for (what, wish, lifetime) in [
            ("taken", data(2, 8082, 9090), taken),
            ("held", data(2, 8082, 9091), held),
            ("its own mapping is elsewhere", data(1, 8080, 9092), own),
        ] {
            let got = outcome(&mut provider, at(10), &map(600, wish, &[PcpOption::PreferFailure]));
            let expected = (ResultCode::CANNOT_PROVIDE_EXTERNAL, lifetime, wish.external_port);
            assert_eq!(got, expected, "{set:?}, {what}");
        }
        let got = outcome(&mut provider, at(10), &map(600, data(2, 8082, 9090), &[]));
        assert_eq!((got.0, got.1), (ResultCode::SUCCESS, 600), "no failure is preferred");
    }
}

/// RFC 6887 §15 and D-15: holds that are over are forgotten, two for each new one, and holds that last are not.
#[test]
fn holds_do_not_pile_up() {
    let mut provider = provider();
    provider.config_mut().quota = 5000;
    for port in 1..=500 {
        outcome(&mut provider, at(0), &map(600, data(1, port, 0), &[]));
    }
    for port in 1..=500 {
        outcome(&mut provider, at(1), &map(0, data(1, port, 0), &[]));
    }
    assert_eq!(provider.held.len(), 500);
    for n in 0..250 {
        outcome(&mut provider, at(121), &map(600, data(2, 1000 + n, 20_000 + n), &[]));
        outcome(&mut provider, at(121), &map(0, data(2, 1000 + n, 0), &[]));
    }
    assert_eq!(provider.held.len(), 250, "the new ones");
    let strict = |n: u16| map(600, data(3, 9, 20_000 + n), &[PcpOption::PreferFailure]);
    assert_eq!(outcome(&mut provider, at(240), &strict(0)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    assert_eq!(outcome(&mut provider, at(241), &strict(0)).0, ResultCode::SUCCESS);
    // Its last owner may have it at once, and then it is not held: the old hold's end does not matter any more.
    outcome(&mut provider, at(242), &map(0, data(3, 9, 0), &[]));
    assert_eq!(outcome(&mut provider, at(300), &strict(0)).0, ResultCode::SUCCESS);
    outcome(&mut provider, at(350), &map(0, data(3, 9, 0), &[]));
    for n in 0..250 {
        outcome(&mut provider, at(363), &map(600, data(2, 1000 + n, 30_000 + n), &[]));
        outcome(&mut provider, at(363), &map(0, data(2, 1000 + n, 0), &[]));
    }
    let other = map(600, data(4, 10, 20_000), &[PcpOption::PreferFailure]);
    assert_eq!(outcome(&mut provider, at(469), &other).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    assert_eq!(outcome(&mut provider, at(470), &other).0, ResultCode::SUCCESS);
    let ends = std::iter::from_fn(|| provider.hold_ends.pop_due(at(10_000))).count();
    assert_eq!(ends, provider.held.len(), "an alarm for each");
}

/// The indexes say what the mappings say, whatever has happened.
#[test]
fn indexes_follow_the_mappings() {
    let mut provider = provider();
    provider.config_mut().third_party = true;
    (provider.config_mut().quota, provider.config_mut().longest) = (6, 900);
    let mut dice = 1_u64;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u16::try_from((dice >> 33) % sides).expect("few sides")
    };
    let mut refused = 0;
    for step in 0..3000 {
        let lifetime = 300 * u32::from(roll(4));
        let octet = roll(2);
        let from = if roll(2) == 0 { CLIENT } else { OTHER };
        let third = PcpOption::ThirdParty(Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped());
        let options = if roll(3) == 0 { vec![third] } else { Vec::new() };
        let wanted = data(u8::try_from(octet).expect("0 or 1"), 1 + roll(12), 9000 + roll(20));
        let request = Request { client_addr: from.to_ipv6_mapped(), ..map(lifetime, wanted, &options) };
        let now = at(step * 20);
        refused += u32::from(outcome(&mut provider, now, &request).0 == ResultCode::USER_EX_QUOTA);
        if roll(500) == 0 {
            provider.lose_state(now);
        }
        let by_internal: BTreeMap<Internal, Port> = provider
            .mappings()
            .map(|mapping| (mapping.key(), (mapping.protocol, mapping.external.port())))
            .collect();
        let mut by_subscriber: BTreeMap<IpAddr, BTreeMap<Internal, Port>> = BTreeMap::new();
        for mapping in provider.mappings() {
            let port = (mapping.protocol, mapping.external.port());
            by_subscriber.entry(mapping.subscriber).or_default().insert(mapping.key(), port);
        }
        assert_eq!(provider.by_internal, by_internal, "step {step}");
        assert_eq!(provider.by_subscriber, by_subscriber, "step {step}");
        assert!(by_subscriber.values().all(|own| own.len() <= 6), "step {step}");
        assert!(provider.held.keys().all(|port| !provider.mappings.contains_key(port)), "step {step}");
    }
    assert!(refused > 0, "the quota has been met");
}

// DESCRIPTION (RFC 7220)

fn text(octets: &[u8]) -> PcpOption {
    PcpOption::Description(octets.to_vec())
}

fn provider_with(description: Description) -> Provider {
    let mut provider = provider();
    provider.config_mut().description = description;
    provider
}

/// RFC 7220, K-17: what three kinds of server keep of a text and tell of it, in a new mapping.
#[test]
fn descriptions_of_three_kinds() {
    let ascii = vec![b'a'; 200];
    // An e with an acute accent takes two octets: here across the limit, and just within it.
    let cut = ["a".repeat(127), "\u{e9}tude".to_owned()].concat().into_bytes();
    let exact = ["a".repeat(126), "\u{e9}tude".to_owned()].concat().into_bytes();
    let long = vec![b'a'; 1016];
    for (what, sent, kept) in [
        ("short", "seed".as_bytes(), Some("seed".as_bytes())),
        ("no multiple of 4", b"seedX", Some(b"seedX")),
        ("cut at 128", &ascii, Some(&ascii[..128])),
        ("the longest", &long, Some(&long[..128])),
        ("cut before a character", &cut, Some(&cut[..127])),
        ("cut behind a character", &exact, Some(&exact[..128])),
        ("not UTF-8", b"ab\xff\xfe", None),
        ("nothing", b"", Some(b"")),
    ] {
        for kind in [Description::Ignored, Description::Stored, Description::Malformed] {
            let mut provider = provider_with(kind);
            let response = ask(&mut provider, at(0), &map(600, data(1, 80, 9090), &[text(sent)]));
            let kept = if kind == Description::Ignored { None } else { kept };
            if kind == Description::Malformed && !sent.len().is_multiple_of(4) {
                let got = (response.result, response.lifetime, response.options);
                assert_eq!(got, (ResultCode::MALFORMED_OPTION, 1800, vec![text(sent)]), "{kind:?}, {what}");
                assert_eq!(provider.mappings().count(), 0, "{kind:?}, {what}");
                continue;
            }
            let got = (response.result, response.options);
            assert_eq!(got, (ResultCode::SUCCESS, kept.map(text).into_iter().collect()), "{kind:?}, {what}");
            let kept = kept.filter(|kept| !kept.is_empty());
            let stored = provider.mappings().next().and_then(|mapping| mapping.description.clone());
            assert_eq!(stored.as_deref().map(str::as_bytes), kept, "{kind:?}, {what}");
        }
    }
}

/// RFC 7220: a renewal with a text changes it, with an empty one erases it, and without one leaves it.
#[test]
fn descriptions_change_by_renewal() {
    let mut provider = provider_with(Description::Stored);
    for (what, options, kept) in [
        ("made without", vec![], None),
        ("set", vec![text(b"one")], Some("one")),
        ("left out", vec![], Some("one")),
        ("changed", vec![text(b"another")], Some("another")),
        ("not UTF-8", vec![text(b"\xc3")], Some("another")),
        ("erased", vec![text(b"")], None),
        ("set again, beside another option", vec![PcpOption::PreferFailure, text(b"three")], Some("three")),
    ] {
        let response = ask(&mut provider, at(1), &map(600, data(1, 80, 9090), &options));
        assert_eq!(response.result, ResultCode::SUCCESS, "{what}");
        let unread = |option: &PcpOption| *option != text(b"\xc3");
        assert_eq!(response.options, options.into_iter().filter(unread).collect::<Vec<_>>(), "{what}");
        let mapping = provider.mappings().next().expect("it stands");
        assert_eq!(mapping.description.as_deref(), kept, "{what}");
    }
    assert!(matches!(provider.poll_event(), Some(NatEvent::Opened(_))));
    assert_eq!(provider.poll_event(), None, "the NAT does not care");
    // A refused request changes nothing (O-6).
    let foreign = ask(&mut provider, at(2), &map(600, data(2, 80, 9090), &[text(b"mine now")]));
    assert_eq!(foreign.result, ResultCode::NOT_AUTHORIZED);
    let mapping = provider.mappings().next().expect("it stands");
    assert_eq!(mapping.description.as_deref(), Some("three"));
    // There is nothing to describe in a delete.
    let deleted = ask(&mut provider, at(3), &map(0, data(1, 80, 0), &[text(b"gone")]));
    assert_eq!((deleted.result, deleted.options), (ResultCode::SUCCESS, vec![]));
}

// GET and NEXT (wire::pcp::query)

fn querying() -> Provider {
    let mut provider = provider_with(Description::Stored);
    provider.config_mut().query = true;
    provider
}

fn get(filters: GetData, options: &[PcpOption]) -> Request {
    let client_addr = CLIENT.to_ipv6_mapped();
    Request { lifetime: 0, client_addr, body: Body::Get(filters), options: options.to_vec() }
}

/// A NEXT as a client sends it.
fn seen(internal: Ipv4Addr, protocol: Protocol, internal_port: u16) -> PcpOption {
    PcpOption::Next(NextMapping {
        nonce: Nonce::default(),
        protocol,
        more: false,
        internal_addr: internal.to_ipv6_mapped(),
        external_addr: Ipv6Addr::UNSPECIFIED,
        lifetime: 0,
        internal_port,
        external_port: 0,
        options: Vec::new(),
    })
}

fn listed(response: &Response) -> Vec<&NextMapping> {
    let mut next = Vec::new();
    for option in &response.options {
        if let PcpOption::Next(mapping) = option {
            next.push(mapping);
        }
    }
    next
}

/// External ports of the list that answers `request`; `Err` is another result than SUCCESS.
fn ports(provider: &mut Provider, request: &Request) -> Result<Vec<u16>, ResultCode> {
    let response = ask(provider, at(10), request);
    match response.result {
        ResultCode::SUCCESS => Ok(listed(&response).iter().map(|next| next.external_port).collect()),
        other => {
            let expected = (other.recommended_lifetime(), &request.body, &request.options);
            assert_eq!((response.lifetime, &response.body, &response.options), expected);
            Err(other)
        }
    }
}

/// Off unless it is wanted: UNSUPP_OPCODE, however the request goes on; and only then is it looked at (RFC 6887 §8.2).
#[test]
fn get_is_an_unknown_opcode_unless_it_is_wanted() {
    let whole = get(GetData::ALL, &[]).to_bytes();
    let broken = [&whole[..], &[224, 0, 0, 4, 0, 0, 0, 0]].concat();
    for (what, bytes, off, on) in [
        ("whole", whole.clone(), 4, 192),
        ("cut short", whole[..60].to_vec(), 4, 3),
        ("an option that cannot be read", broken, 4, 6),
        ("no multiple of 4", whole[..63].to_vec(), 3, 3),
        ("another opcode of private use", [&[2, 99], &whole[2..]].concat(), 4, 4),
    ] {
        for (query, expected) in [(false, off), (true, on)] {
            let mut provider = provider();
            provider.config_mut().query = query;
            let answer = raw(&mut provider, at(7), CLIENT, &bytes).expect("no silence");
            assert_eq!((answer[1], answer[3]), (bytes[1] | 0x80, expected), "{what}, query {query}");
        }
    }
    assert!(!ProviderConfig::new(EXTERNAL).query);
}

/// The whole answer: filters as they came, then every mapping in the order of internal address, protocol and port, with
/// what it was made with.
#[test]
fn a_list_tells_all_there_is() {
    let mut provider = querying();
    provider.config_mut().third_party = true;
    let host = PcpOption::ThirdParty(HOST.to_ipv6_mapped());
    let peer = filter(OTHER.to_ipv6_mapped(), 128);
    let udp = MapData { protocol: Protocol::UDP, ..data(3, 70, 9093) };
    for (wish, options) in [
        (data(1, 80, 9091), vec![]),
        (udp, vec![]),
        (data(2, 443, 9092), vec![text(b"web"), peer.clone()]),
        (data(4, 80, 9094), vec![host]),
    ] {
        assert_eq!(outcome(&mut provider, at(0), &map(600, wish, &options)).0, ResultCode::SUCCESS);
    }
    let next = |internal: Ipv4Addr, map: MapData, more, options| {
        PcpOption::Next(NextMapping {
            nonce: map.nonce,
            protocol: map.protocol,
            more,
            internal_addr: internal.to_ipv6_mapped(),
            external_addr: EXTERNAL.to_ipv6_mapped(),
            lifetime: 590,
            internal_port: map.internal_port,
            external_port: map.external_port,
            options,
        })
    };
    let filters = GetData { external_addr: EXTERNAL.to_ipv6_mapped(), ..GetData::ALL };
    let expected = Response {
        result: ResultCode::SUCCESS,
        lifetime: 0,
        epoch: 10,
        body: Body::Get(filters),
        options: vec![
            next(HOST, data(4, 80, 9094), true, vec![]),
            next(CLIENT, data(1, 80, 9091), true, vec![]),
            next(CLIENT, data(2, 443, 9092), true, vec![peer, text(b"web")]),
            next(CLIENT, udp, false, vec![]),
        ],
    };
    assert_eq!(ask(&mut provider, at(10), &get(filters, &[])), expected);
    // After an address change it is what a renewal would say.
    provider.config_mut().external = OTHER;
    let response = ask(&mut provider, at(10), &get(GetData::ALL, &[]));
    assert!(listed(&response).iter().all(|next| next.external_addr == OTHER.to_ipv6_mapped()));
    provider.handle_timeout(at(600));
    assert_eq!(ports(&mut provider, &get(GetData::ALL, &[])), Err(ResultCode::NON_EXIST_MAPPING));
}

/// Zero lets everything through, in both spellings of no address; filters add up; none that fits is NON_EXIST_MAPPING.
#[test]
fn lists_are_filtered() {
    let mut provider = querying();
    let udp = MapData { protocol: Protocol::UDP, ..data(3, 80, 9093) };
    for wish in [data(1, 80, 9091), data(2, 443, 9092), udp] {
        outcome(&mut provider, at(0), &map(600, wish, &[]));
    }
    let all = GetData::ALL;
    let none = Err(ResultCode::NON_EXIST_MAPPING);
    let client = CLIENT.to_ipv6_mapped();
    let external = EXTERNAL.to_ipv6_mapped();
    for (what, filters, expected) in [
        ("none", all, Ok(vec![9091, 9092, 9093])),
        (
            "no address, as IPv4",
            GetData { internal_addr: NO_ADDR_V4, external_addr: NO_ADDR_V4, ..all },
            Ok(vec![9091, 9092, 9093]),
        ),
        ("TCP", GetData { protocol: Protocol::TCP, ..all }, Ok(vec![9091, 9092])),
        ("UDP", GetData { protocol: Protocol::UDP, ..all }, Ok(vec![9093])),
        ("SCTP", GetData { protocol: Protocol::SCTP, ..all }, none.clone()),
        ("internal port", GetData { internal_port: 80, ..all }, Ok(vec![9091, 9093])),
        ("external port", GetData { external_port: 9092, ..all }, Ok(vec![9092])),
        ("internal address", GetData { internal_addr: client, ..all }, Ok(vec![9091, 9092, 9093])),
        ("another internal address", GetData { internal_addr: external, ..all }, none.clone()),
        ("external address", GetData { external_addr: external, ..all }, Ok(vec![9091, 9092, 9093])),
        ("another external address", GetData { external_addr: client, ..all }, none.clone()),
        ("an IPv6 address", GetData { internal_addr: "2001:db8::1".parse().unwrap(), ..all }, none.clone()),
        ("two", GetData { protocol: Protocol::TCP, internal_port: 80, ..all }, Ok(vec![9091])),
        ("two that meet nowhere", GetData { protocol: Protocol::UDP, internal_port: 443, ..all }, none),
    ] {
        assert_eq!(ports(&mut provider, &get(filters, &[])), expected, "{what}");
    }
    // The last one that fits has no more behind it, though others stand there.
    let tcp = GetData { protocol: Protocol::TCP, ..all };
    let response = ask(&mut provider, at(10), &get(tcp, &[]));
    assert_eq!(listed(&response).iter().map(|next| next.more).collect::<Vec<_>>(), [true, false]);
}

/// A NEXT in the request is a place, whether a mapping stands there or not: what comes behind is told.
#[test]
fn a_list_goes_on_behind_a_place() {
    let mut provider = querying();
    let udp = MapData { protocol: Protocol::UDP, ..data(3, 80, 9093) };
    for wish in [data(1, 80, 9091), data(2, 443, 9092), udp] {
        outcome(&mut provider, at(0), &map(600, wish, &[]));
    }
    let none = Err(ResultCode::NON_EXIST_MAPPING);
    for (addr, protocol, port, expected) in [
        (CLIENT, Protocol::TCP, 79, Ok(vec![9091, 9092, 9093])),
        (CLIENT, Protocol::TCP, 80, Ok(vec![9092, 9093])),
        (CLIENT, Protocol::TCP, 100, Ok(vec![9092, 9093])),
        (CLIENT, Protocol::TCP, 443, Ok(vec![9093])),
        (CLIENT, Protocol::UDP, 80, none.clone()),
        (CLIENT, Protocol(255), 65535, none.clone()),
        (Ipv4Addr::UNSPECIFIED, Protocol::ALL, 0, Ok(vec![9091, 9092, 9093])),
        (HOST, Protocol(255), 65535, Ok(vec![9091, 9092, 9093])),
        (OTHER, Protocol::TCP, 1, none.clone()),
    ] {
        let request = get(GetData::ALL, &[seen(addr, protocol, port)]);
        assert_eq!(ports(&mut provider, &request), expected, "behind {addr} {protocol} {port}");
    }
    for (addr, expected) in [("::", Ok(vec![9091, 9092, 9093])), ("2001:db8::1", none)] {
        let PcpOption::Next(next) = seen(CLIENT, Protocol::TCP, 80) else { panic!("a NEXT") };
        let next = NextMapping { internal_addr: addr.parse().unwrap(), ..next };
        assert_eq!(ports(&mut provider, &get(GetData::ALL, &[PcpOption::Next(next)])), expected, "{addr}");
    }
}

/// As many as fit into 1100 octets, and the next request goes on; mappings that come and go meanwhile cost none of the
/// others.
#[test]
fn long_lists_come_in_parts() {
    let mut provider = querying();
    for n in 1..=40 {
        outcome(&mut provider, at(0), &map(600, data(1, 10 * n, 9000 + n), &[]));
    }
    let mut request = get(GetData::ALL, &[]);
    let (mut sizes, mut found) = (Vec::new(), Vec::new());
    loop {
        let response = ask(&mut provider, at(1), &request);
        assert_eq!((response.result, &response.body), (ResultCode::SUCCESS, &request.body));
        assert!(response.to_bytes().len() <= pcp::MAX_LEN);
        let next = listed(&response);
        assert_eq!(next.len(), response.options.len(), "the client's NEXT does not come back");
        sizes.push(next.len());
        found.extend(next.iter().map(|next| next.internal_port));
        let (last, others) = next.split_last().expect("never empty");
        assert!(others.iter().all(|next| next.more));
        if !last.more {
            break;
        }
        request.options = vec![PcpOption::Next((*last).clone())];
        // The last one seen goes, and one in front of it comes.
        let gone = last.internal_port;
        outcome(&mut provider, at(1), &map(0, data(1, gone, 0), &[]));
        let came = outcome(&mut provider, at(1), &map(600, data(1, gone - 5, 8000 + gone), &[]));
        assert_eq!(came.0, ResultCode::SUCCESS);
    }
    assert_eq!(sizes, [17, 17, 6]);
    assert_eq!(found, (1..=40).map(|n| 10 * n).collect::<Vec<u16>>());
    // What has gone behind the last one seen ends the list.
    let request = get(GetData::ALL, &[seen(CLIENT, Protocol::TCP, 390)]);
    assert_eq!(ports(&mut provider, &request), Ok(vec![9040]));
    outcome(&mut provider, at(10), &map(0, data(1, 400, 0), &[]));
    assert_eq!(ports(&mut provider, &request), Err(ResultCode::NON_EXIST_MAPPING));
}

/// The longest mapping there is fits with all that may stand beside it.
#[test]
fn the_longest_mapping_can_be_listed() {
    let mut provider = querying();
    provider.config_mut().third_party = true;
    let host = PcpOption::ThirdParty(HOST.to_ipv6_mapped());
    let peers = |n: u8| (0..n).map(|n| filter(Ipv4Addr::new(203, 0, 113, n).to_ipv6_mapped(), 128));
    for port in [80, 81] {
        let options: Vec<PcpOption> =
            [host.clone(), text(&[b'a'; 128])].into_iter().chain(peers(32)).collect();
        assert_eq!(
            outcome(&mut provider, at(0), &map(600, data(1, port, 9000 + port), &options)).0,
            ResultCode::SUCCESS
        );
    }
    let response =
        ask(&mut provider, at(10), &get(GetData::ALL, &[host.clone(), seen(HOST, Protocol::TCP, 1)]));
    let next = listed(&response);
    assert_eq!((next.len(), next[0].options.len(), next[0].more), (1, 33, true));
    assert_eq!(response.options[0], host, "it has been processed");
    let further = get(GetData::ALL, &[host, PcpOption::Next(next[0].clone())]);
    assert_eq!(ports(&mut provider, &further), Ok(vec![9081]));
}

/// Whose mappings a list has, and whose nonces: the packet's source sees what it has made; with THIRD_PARTY (RFC 6887
/// §13.1) it sees all of a host, and the nonces of what it has made itself.
#[test]
fn lists_are_the_subscribers_own() {
    let mut provider = querying();
    provider.config_mut().third_party = true;
    let third = |addr: Ipv4Addr| PcpOption::ThirdParty(addr.to_ipv6_mapped());
    let by = |client: Ipv4Addr, request: Request| Request { client_addr: client.to_ipv6_mapped(), ..request };
    for (client, wish, options) in [
        (CLIENT, data(1, 80, 9091), vec![]),
        (CLIENT, data(2, 80, 9092), vec![third(HOST)]),
        (OTHER, data(3, 81, 9093), vec![third(HOST)]),
        (OTHER, data(4, 80, 9094), vec![]),
        (OTHER, data(5, 82, 9095), vec![third(CLIENT)]),
    ] {
        let request = by(client, map(600, wish, &options));
        assert_eq!(outcome(&mut provider, at(0), &request), (ResultCode::SUCCESS, 600, wish.external_port));
    }
    for (client, host, expected) in [
        (CLIENT, None, vec![(9092, 2), (9091, 1)]),
        (OTHER, None, vec![(9093, 3), (9095, 5), (9094, 4)]),
        (CLIENT, Some(HOST), vec![(9092, 2), (9093, 0)]),
        (OTHER, Some(HOST), vec![(9092, 0), (9093, 3)]),
        (OTHER, Some(CLIENT), vec![(9091, 0), (9095, 5)]),
        (HOST, Some(CLIENT), vec![(9091, 0), (9095, 0)]),
    ] {
        let options: Vec<PcpOption> = host.map(third).into_iter().collect();
        let response = ask(&mut provider, at(10), &by(client, get(GetData::ALL, &options)));
        let got: Vec<(u16, Nonce)> =
            listed(&response).iter().map(|next| (next.external_port, next.nonce)).collect();
        let expected: Vec<(u16, Nonce)> =
            expected.into_iter().map(|(port, nonce)| (port, Nonce([nonce; 12]))).collect();
        assert_eq!(got, expected, "{client} asks for {host:?}");
        assert_eq!(response.options[..options.len()], options, "{client} asks for {host:?}");
    }
    // A place in front of the host, in it, and behind it.
    for (place, expected) in [
        (Ipv4Addr::new(1, 1, 1, 1), Ok(vec![9092, 9093])),
        (HOST, Ok(vec![9093])),
        (CLIENT, Err(ResultCode::NON_EXIST_MAPPING)),
    ] {
        let request = get(GetData::ALL, &[third(HOST), seen(place, Protocol::TCP, 80)]);
        assert_eq!(ports(&mut provider, &request), expected, "{place}");
    }
    for (what, option, expected) in [
        ("a host without mappings", third(EXTERNAL), ResultCode::NON_EXIST_MAPPING),
        (
            "an IPv6 host",
            PcpOption::ThirdParty("2001:db8::1".parse().unwrap()),
            ResultCode::NON_EXIST_MAPPING,
        ),
        ("the source itself", third(CLIENT), ResultCode::MALFORMED_REQUEST),
    ] {
        assert_eq!(ports(&mut provider, &get(GetData::ALL, &[option])), Err(expected), "{what}");
    }
    assert_eq!(ports(&mut provider, &by(HOST, get(GetData::ALL, &[]))), Err(ResultCode::NON_EXIST_MAPPING));
    provider.config_mut().third_party = false;
    let request = get(GetData::ALL, &[third(HOST)]);
    assert_eq!(ports(&mut provider, &request), Err(ResultCode::UNSUPP_OPTION));
}

/// RFC 6887 §7.3 in a GET: options that have no place in it.
#[test]
fn options_beside_get() {
    let unknown = |code| PcpOption::Unknown { code: OptionCode(code), data: vec![0; 4] };
    let next = seen(CLIENT, Protocol::TCP, 1);
    for (what, options, expected) in [
        ("NEXT twice", vec![next.clone(), next], Err(ResultCode::MALFORMED_OPTION)),
        ("PREFER_FAILURE", vec![PcpOption::PreferFailure], Err(ResultCode::UNSUPP_OPTION)),
        ("FILTER", vec![filter(OTHER.to_ipv6_mapped(), 128)], Err(ResultCode::UNSUPP_OPTION)),
        ("unknown and mandatory", vec![unknown(100)], Err(ResultCode::UNSUPP_OPTION)),
        ("unknown and optional", vec![unknown(200)], Ok(vec![9090])),
        ("131, NEXT's number elsewhere", vec![unknown(131)], Ok(vec![9090])),
        ("DESCRIPTION", vec![text(b"web")], Ok(vec![9090])),
    ] {
        let mut provider = querying();
        outcome(&mut provider, at(0), &map(600, data(1, 80, 9090), &[]));
        assert_eq!(ports(&mut provider, &get(GetData::ALL, &options)), expected, "{what}");
    }
}

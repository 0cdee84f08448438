use wire::pcp::{GetData, NextMapping};

use super::*;

fn querying() -> Bench {
    server().set(|config| config.query = true)
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
fn ports(bench: &mut Bench, request: &Request) -> Result<Vec<u16>, ResultCode> {
    let response = ask(bench, at(10), request);
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
            let mut bench = server();
            bench.config_mut().query = query;
            let answer = raw(&mut bench, at(7), CLIENT, &bytes).expect("no silence");
            assert_eq!((answer[1], answer[3]), (bytes[1] | 0x80, expected), "{what}, query {query}");
        }
    }
    assert!(!config().query);
}

/// The whole answer: filters as they came, then every mapping in the order of internal address, protocol and port, with
/// what it was made with.
#[test]
fn a_list_tells_all_there_is() {
    let mut bench = querying();
    bench.config_mut().third_party = anybody();
    let host = PcpOption::ThirdParty(HOST.to_ipv6_mapped());
    let peer = filter(OTHER.to_ipv6_mapped(), 128);
    let udp = MapData { protocol: Protocol::UDP, ..data(3, 70, 9093) };
    for (wish, options) in [
        (data(1, 80, 9091), vec![]),
        (udp, vec![]),
        (data(2, 443, 9092), vec![text(b"web"), peer.clone()]),
        (data(4, 80, 9094), vec![host]),
    ] {
        assert_eq!(outcome(&mut bench, at(0), &map(600, wish, &options)).0, ResultCode::SUCCESS);
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
    assert_eq!(ask(&mut bench, at(10), &get(filters, &[])), expected);
    // After an address change it is what a renewal would say.
    bench.config_mut().updates = false;
    bench.config_mut().pool = vec![OTHER];
    let response = ask(&mut bench, at(10), &get(GetData::ALL, &[]));
    assert!(listed(&response).iter().all(|next| next.external_addr == OTHER.to_ipv6_mapped()));
    bench.timeout(at(600));
    assert_eq!(ports(&mut bench, &get(GetData::ALL, &[])), Err(ResultCode::NON_EXIST_MAPPING));
}

/// Zero lets everything through, in both spellings of no address; filters add up; none that fits is NON_EXIST_MAPPING.
#[test]
fn lists_are_filtered() {
    let mut bench = querying();
    let udp = MapData { protocol: Protocol::UDP, ..data(3, 80, 9093) };
    for wish in [data(1, 80, 9091), data(2, 443, 9092), udp] {
        outcome(&mut bench, at(0), &map(600, wish, &[]));
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
        assert_eq!(ports(&mut bench, &get(filters, &[])), expected, "{what}");
    }
    // The last one that fits has no more behind it, though others stand there.
    let tcp = GetData { protocol: Protocol::TCP, ..all };
    let response = ask(&mut bench, at(10), &get(tcp, &[]));
    assert_eq!(listed(&response).iter().map(|next| next.more).collect::<Vec<_>>(), [true, false]);
}

/// A NEXT in the request is a place, whether a mapping stands there or not: what comes behind is told.
#[test]
fn a_list_goes_on_behind_a_place() {
    let mut bench = querying();
    let udp = MapData { protocol: Protocol::UDP, ..data(3, 80, 9093) };
    for wish in [data(1, 80, 9091), data(2, 443, 9092), udp] {
        outcome(&mut bench, at(0), &map(600, wish, &[]));
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
        assert_eq!(ports(&mut bench, &request), expected, "behind {addr} {protocol} {port}");
    }
    for (addr, expected) in [("::", Ok(vec![9091, 9092, 9093])), ("2001:db8::1", none)] {
        let PcpOption::Next(next) = seen(CLIENT, Protocol::TCP, 80) else { panic!("a NEXT") };
        let next = NextMapping { internal_addr: addr.parse().unwrap(), ..next };
        assert_eq!(ports(&mut bench, &get(GetData::ALL, &[PcpOption::Next(next)])), expected, "{addr}");
    }
}

/// As many as fit into 1100 octets, and the next request goes on; mappings that come and go meanwhile cost none of the
/// others.
#[test]
fn long_lists_come_in_parts() {
    let mut bench = querying();
    for n in 1..=40 {
        outcome(&mut bench, at(0), &map(600, data(1, 10 * n, 9000 + n), &[]));
    }
    let mut request = get(GetData::ALL, &[]);
    let (mut sizes, mut found) = (Vec::new(), Vec::new());
    loop {
        let response = ask(&mut bench, at(1), &request);
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
        outcome(&mut bench, at(1), &map(0, data(1, gone, 0), &[]));
        let came = outcome(&mut bench, at(1), &map(600, data(1, gone - 5, 8000 + gone), &[]));
        assert_eq!(came.0, ResultCode::SUCCESS);
    }
    assert_eq!(sizes, [17, 17, 6]);
    assert_eq!(found, (1..=40).map(|n| 10 * n).collect::<Vec<u16>>());
    // What has gone behind the last one seen ends the list.
    let request = get(GetData::ALL, &[seen(CLIENT, Protocol::TCP, 390)]);
    assert_eq!(ports(&mut bench, &request), Ok(vec![9040]));
    outcome(&mut bench, at(10), &map(0, data(1, 400, 0), &[]));
    assert_eq!(ports(&mut bench, &request), Err(ResultCode::NON_EXIST_MAPPING));
}

/// The longest mapping there is fits with all that may stand beside it.
#[test]
fn the_longest_mapping_can_be_listed() {
    let mut bench = querying();
    bench.config_mut().third_party = anybody();
    let host = PcpOption::ThirdParty(HOST.to_ipv6_mapped());
    let peers = |n: u8| (0..n).map(|n| filter(Ipv4Addr::new(203, 0, 113, n).to_ipv6_mapped(), 128));
    for port in [80, 81] {
        let options: Vec<PcpOption> =
            [host.clone(), text(&[b'a'; 128])].into_iter().chain(peers(32)).collect();
        assert_eq!(
            outcome(&mut bench, at(0), &map(600, data(1, port, 9000 + port), &options)).0,
            ResultCode::SUCCESS
        );
    }
    let response = ask(&mut bench, at(10), &get(GetData::ALL, &[host.clone(), seen(HOST, Protocol::TCP, 1)]));
    let next = listed(&response);
    assert_eq!((next.len(), next[0].options.len(), next[0].more), (1, 33, true));
    assert_eq!(response.options[0], host, "it has been processed");
    let further = get(GetData::ALL, &[host, PcpOption::Next(next[0].clone())]);
    assert_eq!(ports(&mut bench, &further), Ok(vec![9081]));
}

/// Whose mappings a list has, and whose nonces: the packet's source sees what it has made; with THIRD_PARTY (RFC 6887
/// §13.1) it sees all of a host, and the nonces of what it has made itself.
#[test]
fn lists_are_the_subscribers_own() {
    let mut bench = querying();
    bench.config_mut().third_party = anybody();
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
        assert_eq!(outcome(&mut bench, at(0), &request), (ResultCode::SUCCESS, 600, wish.external_port));
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
        let response = ask(&mut bench, at(10), &by(client, get(GetData::ALL, &options)));
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
        assert_eq!(ports(&mut bench, &request), expected, "{place}");
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
        assert_eq!(ports(&mut bench, &get(GetData::ALL, &[option])), Err(expected), "{what}");
    }
    assert_eq!(ports(&mut bench, &by(HOST, get(GetData::ALL, &[]))), Err(ResultCode::NON_EXIST_MAPPING));
    bench.config_mut().third_party.clear();
    let request = get(GetData::ALL, &[third(HOST)]);
    assert_eq!(ports(&mut bench, &request), Err(ResultCode::UNSUPP_OPTION));
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
        let mut bench = querying();
        outcome(&mut bench, at(0), &map(600, data(1, 80, 9090), &[]));
        assert_eq!(ports(&mut bench, &get(GetData::ALL, &options)), expected, "{what}");
    }
}

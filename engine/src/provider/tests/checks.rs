//! What is looked at before anything else: RFC 6887 §8.2 in its order, with the exact octets of each answer; the options'
//! general rules (O-1 to O-8).

use super::*;

/// The worked bytes: a request, its success, and its failure.
#[test]
fn worked_bytes() {
    let request = hex("02010000 00000e10 00000000 00000000 0000ffff c000020a 00010203 04050607 08090a0b
         06000000 1f901f90 00000000 00000000 0000ffff 00000000 02000000");
    let mut bench = server();
    let answer = raw(&mut bench, at(100), CLIENT, &request).expect("an answer");
    assert_eq!(
        answer,
        hex("02810000 00000e10 00000064 00000000 00000000 00000000 00010203 04050607 08090a0b
             06000000 1f901f90 00000000 00000000 0000ffff c6336407 02000000")
    );
    // The port is held for the one that has just given it back.
    let mut bench = server();
    outcome(&mut bench, at(0), &by(OTHER, map(600, data(1, 8080, 8080), &[])));
    outcome(&mut bench, at(99), &by(OTHER, map(0, data(1, 8080, 0), &[])));
    let answer = raw(&mut bench, at(100), CLIENT, &request).expect("an answer");
    assert_eq!(
        answer,
        hex("0281000b 0000001e 00000064 00000000 00000000 00000000 00010203 04050607 08090a0b
             06000000 1f901f90 00000000 00000000 0000ffff 00000000 02000000")
    );
    let announce = hex("02000000 00000000 00000000 00000000 0000ffff c000020a");
    let answer = raw(&mut bench, at(101), CLIENT, &announce).expect("an answer");
    assert_eq!(answer, hex("02800000 00000000 00000065 00000000 00000000 00000000"));
    // NAT-PMP: TCP 8080 for two hours.
    let mut bench = server();
    let answer = raw(&mut bench, at(100), CLIENT, &hex("00020000 1f901f90 00001c20")).expect("an answer");
    assert_eq!(answer, hex("00820000 00000064 1f901f90 00001c20"));
}

/// RFC 6887 §8.2: in its order, silence or the whole answer, and the counter of its reason.
#[test]
fn requests_are_checked_in_the_order_of_the_rfc() {
    let good = map(3600, data(1, 8080, 9090), &[]);
    let bytes = |forge: fn(&mut Vec<u8>)| {
        let mut bytes = good.to_bytes();
        forge(&mut bytes);
        bytes
    };
    let options = |options: &[PcpOption]| map(3600, data(1, 8080, 9090), options).to_bytes();
    let announce = |option| Request { body: Body::Announce, ..map(0, data(1, 1, 1), &[option]) }.to_bytes();
    let peer = |peer| Request { body: Body::Peer(peer), ..good.clone() }.to_bytes();
    for (what, from, bytes, reason) in [
        ("nothing", CLIENT, vec![], Reason::TooShort),
        ("one octet", CLIENT, vec![2], Reason::TooShort),
        ("R set", CLIENT, bytes(|b| b[1] |= 0x80), Reason::IsResponse),
        ("R set, of another version", CLIENT, vec![1, 0x81], Reason::IsResponse),
        ("R set, NAT-PMP", CLIENT, vec![0, 0x80], Reason::IsResponse),
        ("short and of another version", CLIENT, vec![1, 1, 0, 0], Reason::UnsupportedVersion),
        ("version 1", CLIENT, bytes(|b| b[0] = 1), Reason::UnsupportedVersion),
        ("version 3", CLIENT, bytes(|b| b[0] = 3), Reason::UnsupportedVersion),
        ("version 255, two octets", CLIENT, vec![255, 1], Reason::UnsupportedVersion),
        ("version 3 from another address", OTHER, bytes(|b| b[0] = 3), Reason::UnsupportedVersion),
        ("two octets", CLIENT, vec![2, 1], Reason::HeaderTooShort),
        ("shorter than a header", CLIENT, bytes(|b| b.truncate(23)), Reason::HeaderTooShort),
        ("longer than 1100", CLIENT, bytes(|b| b.resize(1104, 0)), Reason::MalformedRequest),
        ("longer, from another address", OTHER, bytes(|b| b.resize(1104, 0)), Reason::MalformedRequest),
        ("no multiple of 4", CLIENT, bytes(|b| b.push(0)), Reason::MalformedRequest),
        (
            "25 octets of ANNOUNCE",
            CLIENT,
            bytes(|b| (b[1], _) = (0, b.truncate(25))),
            Reason::MalformedRequest,
        ),
        ("shorter than MAP", CLIENT, bytes(|b| b.truncate(56)), Reason::MalformedRequest),
        ("a header alone for MAP", CLIENT, bytes(|b| b.truncate(24)), Reason::MalformedRequest),
        ("shorter than PEER", CLIENT, peer(peer_data(1, 80, 80))[..76].to_vec(), Reason::MalformedRequest),
        ("from another address", OTHER, bytes(|_| ()), Reason::AddressMismatch),
        ("an address that is IPv4 only at its end", CLIENT, bytes(|b| b[8] = 1), Reason::AddressMismatch),
        ("an address without ffff", CLIENT, bytes(|b| b[18..20].fill(0)), Reason::AddressMismatch),
        ("from another address, unknown opcode", OTHER, bytes(|b| b[1] = 77), Reason::AddressMismatch),
        ("unknown opcode", CLIENT, bytes(|b| b[1] = 77), Reason::UnsupportedOpcode),
        (
            "unknown opcode, a header alone",
            CLIENT,
            bytes(|b| (b[1], _) = (5, b.truncate(24))),
            Reason::UnsupportedOpcode,
        ),
        ("AUTHENTICATION", CLIENT, bytes(|b| b[1] = 3), Reason::UnsupportedOpcode),
        ("GET where it is off", CLIENT, bytes(|b| b[1] = 98), Reason::UnsupportedOpcode),
        ("O-1: option beyond the end", CLIENT, bytes(|b| b.extend([3, 0, 0, 20])), Reason::MalformedOption),
        (
            "O-1: optional option beyond the end",
            CLIENT,
            bytes(|b| b.extend([200, 0, 0, 1])),
            Reason::MalformedOption,
        ),
        (
            "O-1: broken structure behind an unknown one",
            CLIENT,
            bytes(|b| b.extend([100, 0, 0, 0, 3, 0, 0, 20])),
            Reason::MalformedOption,
        ),
        ("O-2: unknown mandatory option", CLIENT, options(&[unknown(100)]), Reason::UnsupportedOption),
        (
            "O-2: THIRD_PARTY_ID",
            CLIENT,
            options(&[PcpOption::ThirdPartyId(vec![1; 4])]),
            Reason::UnsupportedOption,
        ),
        ("O-2: NONCE of RFC 7652", CLIENT, options(&[PcpOption::Nonce(7)]), Reason::UnsupportedOption),
        ("O-2: THIRD_PARTY where it is off", CLIENT, options(&[third(HOST)]), Reason::ThirdPartyDenied),
        (
            "O-2: THIRD_PARTY of 15 octets",
            CLIENT,
            bytes(|b| b.extend([&[1, 0, 0, 15][..], &[0; 16]].concat())),
            Reason::MalformedOption,
        ),
        (
            "O-2: PREFER_FAILURE with data",
            CLIENT,
            bytes(|b| b.extend([2, 0, 0, 4, 0, 0, 0, 0])),
            Reason::MalformedOption,
        ),
        (
            "O-2: IPv4 prefix below 96",
            CLIENT,
            options(&[filter(EXTERNAL.to_ipv6_mapped(), 95)]),
            Reason::MalformedOption,
        ),
        (
            "O-2: prefix above 128",
            CLIENT,
            options(&[filter(EXTERNAL.to_ipv6_mapped(), 129)]),
            Reason::MalformedOption,
        ),
        (
            "a filter of the other family",
            CLIENT,
            options(&[filter("2001:db8::".parse().expect("one"), 32)]),
            Reason::MalformedOption,
        ),
        (
            "O-4: PREFER_FAILURE twice",
            CLIENT,
            options(&[PcpOption::PreferFailure, PcpOption::PreferFailure]),
            Reason::MalformedOption,
        ),
        ("O-4: DESCRIPTION twice", CLIENT, options(&[text(b"a"), text(b"b")]), Reason::MalformedOption),
        (
            "O-4: PORT_SET twice",
            CLIENT,
            options(&[port_set(2, 8080, false), port_set(2, 8080, false)]),
            Reason::MalformedOption,
        ),
        ("PORT_SET of none", CLIENT, options(&[port_set(0, 8080, false)]), Reason::MalformedOption),
        (
            "ANNOUNCE with a mandatory option",
            CLIENT,
            announce(PcpOption::PreferFailure),
            Reason::UnsupportedOption,
        ),
        (
            "ANNOUNCE with an unknown mandatory option",
            CLIENT,
            announce(unknown(99)),
            Reason::UnsupportedOption,
        ),
    ] {
        let mut bench = server();
        let answer = raw(&mut bench, at(7), from, &bytes);
        let expected = reason.result().map(|result| {
            let mut expected = bytes[..bytes.len().min(1100)].to_vec();
            expected.resize(expected.len().next_multiple_of(4).max(24), 0);
            (expected[0], expected[1], expected[2], expected[3]) = (2, expected[1] | 0x80, 0, result.0);
            expected[4..8].copy_from_slice(&1800_u32.to_be_bytes());
            expected[8..12].copy_from_slice(&7_u32.to_be_bytes());
            // What cannot be parsed keeps the end of the client's address, and so does what is of another version.
            if Request::parse(&bytes).is_ok() {
                expected[12..24].fill(0);
            }
            expected
        });
        assert_eq!(answer, expected, "{what}");
        assert_eq!(bench.refusals(reason), 1, "{what}: {:?}", bench.server.counters());
        assert_eq!(bench.server.counters().refused.values().sum::<u64>(), 1, "{what}");
        assert_eq!((bench.mappings().len(), bench.changes), (0, 0), "{what}: O-6, no state is changed");
        // RFC 6887 §8.2: not even the address is compared where nobody of the subscribers can be.
        let mut bench = server();
        let outside = Arrival { inside: false, ..arrival(from) };
        assert_eq!(bench.answer(at(7), &outside, &bytes), None, "{what}, from outside");
        assert_eq!(bench.refusals(Reason::WrongInterface), 1, "{what}");
    }
}

/// O-3, O-6: optional options are passed over where they mean nothing here, and the answer has exactly what was processed.
#[test]
fn answers_have_the_options_that_were_processed() {
    let prefix = |prefix: [u8; 12]| {
        PcpOption::Prefix64(pcp::Prefix64 { prefix: prefix.to_vec(), suffix: vec![], ipv4_prefixes: vec![] })
    };
    let host = || filter(Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped(), 128);
    for (what, options, processed) in [
        ("none", vec![], vec![]),
        ("an unknown one", vec![unknown(200)], vec![]),
        ("unknown ones around", vec![unknown(200), host(), unknown(130 + 3)], vec![host()]),
        ("131, which some use for NEXT", vec![unknown(131)], vec![]),
        ("NEXT beside MAP", vec![unknown(224)], vec![]),
        ("PREFIX64 without a NAT64", vec![prefix([1; 12])], vec![]),
        ("a set of one port", vec![port_set(1, 8080, false)], vec![]),
        (
            "in their order",
            vec![text(b"web"), host(), PcpOption::PreferFailure],
            vec![text(b"web"), host(), PcpOption::PreferFailure],
        ),
        ("what is not UTF-8", vec![text(b"\xff\xff")], vec![]),
    ] {
        let response = ask(&mut server(), at(7), &map(3600, data(1, 8080, 9090), &options));
        assert_eq!((response.result, response.options), (ResultCode::SUCCESS, processed), "{what}");
    }
    // O-6: a refusal returns them all.
    let options = vec![unknown(200), text(b"web"), PcpOption::PreferFailure];
    let response = ask(&mut server(), at(7), &map(3600, data(1, 8080, 80), &options));
    assert_eq!((response.result, response.options), (ResultCode::CANNOT_PROVIDE_EXTERNAL, options));
}

/// RFC 6887 §7.3: options are processed in their order, so the first flaw is the one that is told.
#[test]
fn the_first_flaw_is_told() {
    for (options, reason) in [
        ([third(HOST), unknown(100)], Reason::ThirdPartyDenied),
        ([unknown(100), third(HOST)], Reason::UnsupportedOption),
    ] {
        let mut bench = server();
        ask(&mut bench, at(0), &map(600, data(1, 80, 0), &options));
        assert_eq!(bench.refusals(reason), 1);
    }
}

/// O-8: what would not fit into 1100 octets is not begun.
#[test]
fn an_answer_that_would_be_too_long() {
    let prefix = |n: u16| pcp::Prefix64 {
        prefix: vec![0x20, 1, 0xd, 0xb8],
        suffix: vec![0; 8],
        ipv4_prefixes: (0..n).map(|n| (32, Ipv4Addr::from(u32::from(n)))).collect(),
    };
    let asked =
        PcpOption::Prefix64(pcp::Prefix64 { prefix: vec![0; 12], suffix: vec![], ipv4_prefixes: vec![] });
    let mut bench = server().set(|config| {
        config.prefix64 = vec![prefix(100), prefix(70), prefix(1)];
        config.filters = MAX_FILTERS;
    });
    let host = |n: u8| filter(Ipv4Addr::new(203, 0, 113, n).to_ipv6_mapped(), 128);
    let many: Vec<PcpOption> = (0..20).map(host).chain([asked.clone()]).collect();
    let request = map(600, data(1, 80, 9090), &many);
    assert_eq!(outcome(&mut bench, at(0), &request), (ResultCode::MALFORMED_REQUEST, 1800, 9090));
    assert_eq!(bench.mappings().len(), 0);
    // As many as fit.
    let response = ask(&mut bench, at(0), &map(600, data(1, 80, 9090), &[host(1), asked]));
    let expected = [host(1), PcpOption::Prefix64(prefix(100))];
    assert_eq!((response.result, &response.options[..]), (ResultCode::SUCCESS, &expected[..]));
}

/// What PCP and NAT-PMP are to each other: dispatch is by octet 0 (N-1).
#[test]
fn two_protocols_on_one_port() {
    for (natpmp, bytes, expected) in [
        (true, vec![0, 0], Some(hex("00800000 00000007 c6336407"))),
        // Four octets padded to a header: 2 and 3 read as NAT-PMP's "unsupported version".
        (false, vec![0, 0], Some(hex("02800001 00000708 00000007 00000000 00000000 00000000"))),
        (true, vec![0, 200], None),
        (false, vec![0, 200], None),
        (true, vec![1, 0], Some(hex("02800001 00000708 00000007 00000000 00000000 00000000"))),
        (true, vec![0, 1, 0, 0, 0, 80], None),
    ] {
        let mut bench = server().set(|config| config.natpmp = natpmp);
        assert_eq!(raw(&mut bench, at(7), CLIENT, &bytes), expected, "{natpmp} {bytes:?}");
    }
    // It is IPv4's.
    let ipv6: IpAddr = "2001:db8::10".parse().expect("an address");
    let answer = server().answer(at(7), &arrival(ipv6), &[0, 0]).expect("an answer");
    assert_eq!(answer[..4], [2, 0x80, 0, 1]);
}

/// Every reason has words of its own, and those with an answer a result that is not a success.
#[test]
fn reasons() {
    let words: BTreeSet<String> = Reason::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(words.len(), Reason::ALL.len());
    assert!(Reason::ALL.iter().all(|reason| reason.result() != Some(ResultCode::SUCCESS)));
    assert_eq!(Kind::ALL.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len(), Kind::ALL.len());
}

/// A link-local address is another host on each link, and nothing is forwarded to it: such a client may ask for an ANNOUNCE and has no
/// mapping, nor sees any. It has a bucket of its own on each link.
#[test]
fn link_local_clients() {
    let mut bench = server().set(|config| (config.firewall, config.query) = (true, true));
    let get = Body::Get(pcp::GetData::ALL);
    let peer = Body::Peer(peer_data(1, 80, 443));
    for from in ["fe80::1", "169.254.1.1"] {
        let from: IpAddr = from.parse().expect("an address");
        for (body, result) in [
            (Body::Map(data(1, 80, 0)), ResultCode::NOT_AUTHORIZED),
            (peer.clone(), ResultCode::NOT_AUTHORIZED),
            (get.clone(), ResultCode::NOT_AUTHORIZED),
            (Body::Announce, ResultCode::SUCCESS),
        ] {
            let request = by(from, Request { body, ..map(600, data(1, 1, 1), &[]) });
            assert_eq!(ask(&mut bench, at(0), &request).result, result, "{from} {request:?}");
        }
    }
    assert_eq!((bench.changes, bench.refusals(Reason::NotMapped)), (0, 6));
    let link_local = Ipv4Addr::new(169, 254, 1, 1);
    let natpmp = raw(&mut bench, at(0), link_local, &hex("00020000 00500000 00000e10")).expect("an answer");
    assert_eq!(natpmp[3], 2);
    assert_eq!(raw(&mut bench, at(0), link_local, &[0, 0]).expect("an answer")[3], 0);

    bench.config_mut().rate = Some(Rate { per_second: 1, burst: 10 });
    for (from, interface) in [("fe80::1", INTERFACE), ("fe80::2", INTERFACE), ("fe80::1", 4)] {
        let from: IpAddr = from.parse().expect("an address");
        bench.interface = interface;
        let arrival = Arrival { interface, ..arrival(from) };
        let announce = by(from, Request { body: Body::Announce, ..map(0, data(1, 1, 1), &[]) });
        let heard = (0..20).filter(|_| bench.answer(at(9), &arrival, &announce.to_bytes()).is_some());
        assert_eq!(heard.count(), 10, "{from} {interface}");
    }
}

/// The machine itself is nobody's host, by its own request or by THIRD_PARTY; behind a B4 the same address is another one.
#[test]
fn no_mapping_leads_to_the_machine_itself() {
    let b4: Ipv6Addr = "2001:db8:b4::1".parse().expect("an address");
    let mut bench = server().set(|config| {
        config.third_party = anybody();
        config.b4 = vec!["2001:db8:b4::/48".parse().expect("a prefix")];
        config.own = [CLIENT, HOST].map(IpAddr::V4).into();
    });
    for (from, options, result) in [
        (IpAddr::V4(CLIENT), vec![], ResultCode::NOT_AUTHORIZED),
        (OTHER.into(), vec![third(HOST)], ResultCode::UNSUPP_OPTION),
        (OTHER.into(), vec![third(Ipv4Addr::new(169, 254, 1, 1))], ResultCode::UNSUPP_OPTION),
        (OTHER.into(), vec![third(Ipv4Addr::new(240, 0, 0, 1))], ResultCode::UNSUPP_OPTION),
        (OTHER.into(), vec![third("fe80::1".parse::<IpAddr>().expect("one"))], ResultCode::UNSUPP_OPTION),
        (OTHER.into(), vec![], ResultCode::SUCCESS),
        (b4.into(), vec![third(HOST)], ResultCode::SUCCESS),
    ] {
        let request = by(from, map(600, data(1, 80, 0), &options));
        assert_eq!(ask(&mut bench, at(0), &request).result, result, "{from} {options:?}");
    }
    let within = Arrival { softwire: Some(b4), ..arrival(CLIENT) };
    let answer = bench.answer(at(0), &within, &map(600, data(1, 80, 0), &[]).to_bytes()).expect("an answer");
    assert_eq!(answer[3], 0);
    let natpmp = raw(&mut bench, at(0), CLIENT, &hex("00020000 00500000 00000e10")).expect("an answer");
    assert_eq!(natpmp[3], 2);
}

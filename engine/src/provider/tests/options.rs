use super::*;

/// RFC 6887 §13.1.
#[test]
fn third_party() {
    let mut bench = server();
    bench.config_mut().third_party = anybody();
    let host = third(HOST);
    let response = ask(&mut bench, at(0), &map(600, data(1, 80, 9090), std::slice::from_ref(&host)));
    assert_eq!((response.result, response.options), (ResultCode::SUCCESS, vec![host]));
    let internal: Vec<_> = bench
        .server
        .mappings()
        .map(|mapping| (mapping.inside, mapping.internal_port, mapping.requester.addr))
        .collect();
    assert_eq!(internal, [(Inside { softwire: None, addr: HOST.into() }, 80, IpAddr::V4(CLIENT))]);
    let got = outcome(&mut bench, at(0), &map(600, data(1, 80, 9091), &[third(CLIENT)]));
    assert_eq!(got.0, ResultCode::MALFORMED_REQUEST, "it equals the source");
    let ipv6 = PcpOption::ThirdParty("2001:db8::1".parse().expect("an address"));
    assert_eq!(
        outcome(&mut bench, at(0), &map(600, data(1, 80, 9091), &[ipv6])).0,
        ResultCode::UNSUPP_PROTOCOL
    );
}

/// RFC 6887 §13.1: off, or for these clients and these hosts; a delete is no exception, and a wrong interface is silence.
#[test]
fn third_parties_are_permitted_one_by_one() {
    let rule = ThirdParty {
        client: CLIENT.to_string().parse().expect("a prefix"),
        internal: vec!["10.0.0.0/24".parse().expect("a prefix"), "192.0.2.0/28".parse().expect("a prefix")],
    };
    for (what, client, host, off, on) in [
        ("permitted", CLIENT, HOST, 5, 0),
        ("another client", OTHER, HOST, 5, 5),
        ("another host", CLIENT, Ipv4Addr::new(10, 0, 1, 5), 5, 5),
        ("itself", CLIENT, CLIENT, 5, 3),
        ("another client itself", OTHER, OTHER, 5, 5),
        ("nobody", CLIENT, Ipv4Addr::UNSPECIFIED, 5, 5),
    ] {
        for (rules, expected) in [(vec![], off), (vec![rule.clone()], on)] {
            for lifetime in [600, 0] {
                let mut bench = server().set(|config| config.third_party = rules.clone());
                let request = by(client, map(lifetime, data(1, 80, 0), &[third(host)]));
                let (result, lifetime, _) = outcome(&mut bench, at(0), &request);
                assert_eq!(result.0, expected, "{what}");
                assert!(expected == 0 || lifetime == 1800, "{what}");
                let reason = match expected {
                    0 => continue,
                    3 => Reason::ThirdPartyIsSource,
                    _ => Reason::ThirdPartyDenied,
                };
                assert_eq!(bench.refusals(reason), 1, "{what}");
                let elsewhere = Arrival { inside: false, ..arrival(client) };
                assert_eq!(bench.answer(at(1), &elsewhere, &request.to_bytes()), None, "{what}");
                assert_eq!(bench.refusals(Reason::WrongInterface), 1, "{what}");
            }
        }
    }
}

/// RFC 6887 §13.3: filters accumulate, a prefix of 0 drops those before it, too many change nothing.
#[test]
fn filters() {
    let mut bench = server();
    let peer = |n: u8| Ipv4Addr::new(203, 0, 113, n);
    let host = |n| filter(peer(n).to_ipv6_mapped(), 128);
    let lets_in = |bench: &Bench, n| bench.mappings()[0].lets_in(SocketAddr::new(peer(n).into(), 7));
    let with = |options: &[PcpOption], bench: &mut Bench| {
        let response = ask(bench, at(0), &map(600, data(1, 80, 9090), options));
        assert_eq!(response.options, options, "what was processed comes back");
        (response.result, std::mem::take(&mut bench.changes))
    };
    let done = |events| (ResultCode::SUCCESS, events);
    assert_eq!(with(&[], &mut bench), done(1));
    assert!(lets_in(&bench, 1));
    assert_eq!(with(&[host(1)], &mut bench), done(1));
    assert_eq!((lets_in(&bench, 1), lets_in(&bench, 2)), (true, false));
    assert_eq!(with(&[host(1)], &mut bench), done(0));
    assert_eq!(with(&[host(2)], &mut bench), done(1));
    assert_eq!((lets_in(&bench, 1), lets_in(&bench, 2)), (true, true));
    assert_eq!(with(&[filter(Ipv6Addr::UNSPECIFIED, 0), host(3)], &mut bench), done(1));
    assert_eq!((lets_in(&bench, 1), lets_in(&bench, 3)), (false, true));
    assert_eq!(with(&[filter(peer(0).to_ipv6_mapped(), 96 + 24)], &mut bench), done(1));
    assert!(lets_in(&bench, 200));
    let many: Vec<PcpOption> = (0..40).map(host).collect();
    let before: Vec<ServerMapping> = bench.server.mappings().cloned().collect();
    assert_eq!(with(&many, &mut bench), (ResultCode::EXCESSIVE_REMOTE_PEERS, 0));
    assert_eq!(bench.server.mappings().cloned().collect::<Vec<_>>(), before);
}

fn provider_with(description: Description) -> Bench {
    let mut bench = server();
    bench.config_mut().description = description;
    bench
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
            let mut bench = provider_with(kind);
            let response = ask(&mut bench, at(0), &map(600, data(1, 80, 9090), &[text(sent)]));
            let kept = if kind == Description::Ignored { None } else { kept };
            if kind == Description::Malformed && !sent.len().is_multiple_of(4) {
                let got = (response.result, response.lifetime, response.options);
                assert_eq!(got, (ResultCode::MALFORMED_OPTION, 1800, vec![text(sent)]), "{kind:?}, {what}");
                assert_eq!(bench.mappings().len(), 0, "{kind:?}, {what}");
                continue;
            }
            let got = (response.result, response.options);
            assert_eq!(got, (ResultCode::SUCCESS, kept.map(text).into_iter().collect()), "{kind:?}, {what}");
            let kept = kept.filter(|kept| !kept.is_empty());
            let stored = bench.server.mappings().next().and_then(|mapping| mapping.description.clone());
            assert_eq!(stored.as_deref().map(str::as_bytes), kept, "{kind:?}, {what}");
        }
    }
}

/// RFC 7220: a renewal with a text changes it, with an empty one erases it, and without one leaves it.
#[test]
fn descriptions_change_by_renewal() {
    let mut bench = provider_with(Description::Stored);
    for (what, options, kept) in [
        ("made without", vec![], None),
        ("set", vec![text(b"one")], Some("one")),
        ("left out", vec![], Some("one")),
        ("changed", vec![text(b"another")], Some("another")),
        ("not UTF-8", vec![text(b"\xc3")], Some("another")),
        ("erased", vec![text(b"")], None),
        ("set again, beside another option", vec![PcpOption::PreferFailure, text(b"three")], Some("three")),
    ] {
        let response = ask(&mut bench, at(1), &map(600, data(1, 80, 9090), &options));
        assert_eq!(response.result, ResultCode::SUCCESS, "{what}");
        let unread = |option: &PcpOption| *option != text(b"\xc3");
        assert_eq!(response.options, options.into_iter().filter(unread).collect::<Vec<_>>(), "{what}");
        let mapping = bench.server.mappings().next().expect("it stands");
        assert_eq!(mapping.description.as_deref(), kept, "{what}");
    }
    assert_eq!(bench.changes, 1);
    assert_eq!(bench.changes, 1, "the NAT does not care");
    // A refused request changes nothing (O-6).
    let foreign = ask(&mut bench, at(2), &map(600, data(2, 80, 9090), &[text(b"mine now")]));
    assert_eq!(foreign.result, ResultCode::NOT_AUTHORIZED);
    let mapping = bench.server.mappings().next().expect("it stands");
    assert_eq!(mapping.description.as_deref(), Some("three"));
    // There is nothing to describe in a delete.
    let deleted = ask(&mut bench, at(3), &map(0, data(1, 80, 0), &[text(b"gone")]));
    assert_eq!((deleted.result, deleted.options), (ResultCode::SUCCESS, vec![]));
}

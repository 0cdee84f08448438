//! Who may have how much: quota, capacity, rules, rates.

use super::*;

/// RFC 6887 §7.4: USER_EX_QUOTA is one subscriber's.
#[test]
fn quotas_are_per_subscriber() {
    let mut bench = server();
    bench.config_mut().quota = 2;
    for port in [1, 2] {
        outcome(&mut bench, at(0), &map(600, data(1, port, 0), &[]));
    }
    let third = outcome(&mut bench, at(0), &map(600, data(1, 3, 9090), &[]));
    assert_eq!(third, (ResultCode::USER_EX_QUOTA, 30, 9090));
    let other = by(OTHER, map(600, data(1, 3, 9090), &[]));
    assert_eq!(outcome(&mut bench, at(0), &other), (ResultCode::SUCCESS, 600, 9090));
    let renewed = outcome(&mut bench, at(1), &map(600, data(1, 1, 0), &[]));
    assert_eq!(renewed.0, ResultCode::SUCCESS);
    outcome(&mut bench, at(2), &map(0, data(1, 1, 0), &[]));
    // What is held for it counts as well.
    assert_eq!(outcome(&mut bench, at(121), &map(600, data(1, 3, 0), &[])).0, ResultCode::USER_EX_QUOTA);
    assert_eq!(outcome(&mut bench, at(122), &map(600, data(1, 3, 0), &[])).0, ResultCode::SUCCESS);
    assert_eq!(bench.refusals(Reason::QuotaExceeded), 2);
    // PEER counts, too.
    let peer = Request { body: Body::Peer(peer_data(1, 9, 443)), ..map(600, data(1, 1, 1), &[]) };
    assert_eq!(ask(&mut bench, at(123), &peer).result, ResultCode::USER_EX_QUOTA);
    // A smaller quota takes nothing away.
    bench.config_mut().quota = 1;
    assert_eq!(outcome(&mut bench, at(124), &map(600, data(1, 3, 0), &[])).0, ResultCode::SUCCESS);
    assert_eq!(bench.mappings().len(), 3);
}

/// NO_RESOURCES is everybody's; it is told once each time the table fills.
#[test]
fn capacity() {
    let mut bench = server().set(|config| config.capacity = 2);
    for n in 1..=4 {
        let client = Ipv4Addr::new(192, 0, 2, n);
        let got = outcome(&mut bench, at(0), &by(client, map(600, data(1, 1, 0), &[])));
        assert_eq!(got.0 == ResultCode::SUCCESS, n <= 2, "{n}");
        assert!(n <= 2 || (got.0, got.1) == (ResultCode::NO_RESOURCES, 30));
    }
    assert_eq!(bench.refusals(Reason::TableFull), 2);
    let full = bench.notices.iter().filter(|notice| **notice == Notice::TableFull(2)).count();
    assert_eq!(full, 1);
}

/// The first rule that fits decides. No port at all is NOT_AUTHORIZED; only another than the suggested one is that one, or
/// CANNOT_PROVIDE_EXTERNAL where none but the suggestion is wanted.
/// Who has all of an address has what is denied, too: then nobody has all of it.
#[test]
fn a_denied_port_is_no_part_of_everything() {
    for (what, ports, denied) in [
        ("nothing", 0..=0, None),
        ("below the ports that are given out", 22..=22, Some(Protocol::TCP)),
        ("among them", 51820..=51820, Some(Protocol::UDP)),
        ("of any protocol", 22..=22, None),
    ] {
        let client = "0.0.0.0/0".parse().expect("a prefix");
        let acl = vec![AclRule { allow: false, client, ports: ports.clone(), protocol: denied }];
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::ALL] {
            let acl = acl.clone();
            let mut bench =
                Bench::new(ServerConfig { all_ports: true, all_protocols: true, acl, ..config() });
            let wanted = MapData { protocol, ..data(1, 0, 0) };
            let harmless = *ports.end() == 0
                || denied.is_some_and(|denied| ![denied, Protocol::ALL].contains(&protocol));
            let expected = if harmless { ResultCode::SUCCESS } else { ResultCode::NOT_AUTHORIZED };
            assert_eq!(
                outcome(&mut bench, at(0), &map(600, wanted, &[])).0,
                expected,
                "{what}, {protocol:?}"
            );
        }
    }
}

#[test]
fn rules() {
    let rule = |allow, client: &str, ports, protocol| AclRule {
        allow,
        client: client.parse().expect("a prefix"),
        ports,
        protocol,
    };
    let acl = vec![
        rule(true, "192.0.2.10", 3000..=3001, Some(Protocol::TCP)),
        rule(false, "192.0.2.0/28", 3000..=3999, None),
        rule(false, "192.0.2.0/28", 0..=2999, Some(Protocol::UDP)),
        rule(true, "192.0.2.0/28", 0..=65535, Some(Protocol::TCP)),
        rule(false, "0.0.0.0/0", 0..=65535, None),
    ];
    let ports = 2000..=4999;
    let mut bench = Bench::new(ServerConfig { ports, acl, ..config() });
    let mut n = 0;
    let mut wanted = |client: [u8; 4], protocol, port, strict: bool| {
        n += 1;
        let options = if strict { vec![PcpOption::PreferFailure] } else { vec![] };
        let wanted = MapData { protocol, ..data(1, n, port) };
        let (result, lifetime, got) =
            outcome(&mut bench, at(0), &by(Ipv4Addr::from(client), map(600, wanted, &options)));
        if result == ResultCode::SUCCESS { Ok(got) } else { Err((result.0, lifetime)) }
    };
    let (ten, eleven, far) = ([192, 0, 2, 10], [192, 0, 2, 11], [192, 0, 2, 200]);
    assert_eq!(wanted(ten, Protocol::TCP, 3000, true), Ok(3000));
    assert_eq!(wanted(eleven, Protocol::TCP, 3001, true), Err((11, 30)));
    assert_eq!(wanted(eleven, Protocol::TCP, 3001, false), Ok(2000), "another one");
    assert_eq!(wanted(ten, Protocol::TCP, 3002, true), Err((11, 30)));
    assert_eq!(wanted(ten, Protocol::TCP, 4000, true), Ok(4000));
    assert_eq!(wanted(ten, Protocol::UDP, 0, false), Err((2, 1800)), "no port of UDP is left");
    assert_eq!(wanted(far, Protocol::TCP, 2500, false), Err((2, 1800)));
    assert_eq!(bench.refusals(Reason::NotAllowed), 2);
    // NAT-PMP is under the same rules.
    let answer = raw(&mut bench, at(0), far.into(), &hex("00020000 00500c38 00000e10")).expect("an answer");
    assert_eq!(answer[3], 2);
    // A set takes what the rules leave.
    let set = by(Ipv4Addr::from(ten), map(600, data(1, 500, 2990), &[port_set(20, 500, false)]));
    let response = ask(&mut bench, at(0), &set);
    assert_eq!(response.options, [port_set(20, 500, false)]);
    let Body::Map(map) = response.body else { panic!("{response:?}") };
    assert!((2001..2981).contains(&map.external_port));
}

/// Silence, and the counter; another subscriber has its own bucket. What comes from outside takes no token.
#[test]
fn rates() {
    let rate = Some(Rate { per_second: 2, burst: 10 });
    let mut bench = Bench::new(ServerConfig { rate, ..config() });
    let announce =
        |client: Ipv4Addr| by(client, Request { body: Body::Announce, ..map(0, data(1, 1, 1), &[]) });
    let outside = Arrival { inside: false, ..arrival(CLIENT) };
    for _ in 0..100 {
        assert_eq!(bench.answer(at(0), &outside, &announce(CLIENT).to_bytes()), None);
    }
    let mut heard = |now, client: Ipv4Addr, times: usize| {
        (0..times)
            .filter(|_| bench.answer(now, &arrival(client), &announce(client).to_bytes()).is_some())
            .count()
    };
    assert_eq!(heard(at(0), CLIENT, 1000), 10);
    assert_eq!(heard(at(0), OTHER, 5), 5);
    assert_eq!(heard(at(3), CLIENT, 1000), 6);
    assert_eq!(bench.refusals(Reason::RateLimited), 990 + 994);
    // What is no request is no answer, but takes a token: versions, NAT-PMP.
    for (n, bytes) in [vec![0, 0], vec![3, 3], vec![0, 9]].into_iter().enumerate() {
        let from = Ipv4Addr::new(192, 0, 2, 100 + u8::try_from(n).expect("few"));
        let answers = (0..20).filter(|_| raw(&mut bench, at(3), from, &bytes).is_some()).count();
        assert_eq!(answers, 10, "{bytes:?}");
    }
}

/// A flood of requests for ever new mappings comes to a halt at the quota, whatever is suggested and whoever is named, and
/// another subscriber has everything it had before.
#[test]
fn a_flood_stays_within_its_quota() {
    let mut bench = server().set(|config| (config.quota, config.third_party) = (50, anybody()));
    for n in 0..400_u16 {
        let host = Ipv4Addr::new(10, 0, 0, u8::try_from(n % 250).expect("few") + 1);
        let request = map(600, data(1, n + 1, 2000 + n), &[third(host)]);
        bench.datagram(at(0), &arrival(CLIENT), &request.to_bytes());
    }
    assert_eq!((bench.mappings().len(), bench.refusals(Reason::QuotaExceeded)), (50, 350));
    let got = outcome(&mut bench, at(0), &by(OTHER, map(600, data(1, 80, 3000), &[])));
    assert_eq!(got, (ResultCode::SUCCESS, 600, 3000));
}

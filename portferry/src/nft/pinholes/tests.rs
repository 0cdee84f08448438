use super::*;

const HOST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 2);
const REMOTE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 3);

fn anybody(port: u16) -> PinholeRule {
    PinholeRule { protocol: TCP, internal: HOST, internal_port: port, remote: None, remote_port: None }
}

fn flow(source: (Ipv6Addr, u16), port: u16) -> Flow {
    let (source, destination) = (SocketAddr::from(source), SocketAddr::from((HOST, port)));
    Flow {
        protocol: TCP,
        source,
        destination,
        reply_source: destination,
        reply_destination: source,
        status: 0,
    }
}

fn kind(result: io::Result<Plan>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn a_pinhole_is_an_element_of_the_set_that_knows_its_remotes() {
    let key = |rest: &[&[u8]]| {
        let mut key = vec![6, 0, 0, 0];
        key.extend(HOST.octets());
        key.extend([0x1f, 0x90, 0, 0]);
        key.extend(rest.concat());
        key
    };
    let (addr, port) = (REMOTE.octets(), [0x04, 0xd2, 0, 0]);
    for (remote, remote_port, set, expected) in [
        (None, None, "pinholes", key(&[])),
        (Some(REMOTE), None, "pinholes_addr", key(&[&addr])),
        (None, Some(1234), "pinholes_port", key(&[&port])),
        (Some(REMOTE), Some(1234), "pinholes_addr_port", key(&[&addr, &port])),
    ] {
        let rule = PinholeRule { remote, remote_port, ..anybody(8080) };
        assert_eq!(ruleset::entry(&rule), (set, expected));
    }
}

#[test]
fn a_plan_is_the_difference() {
    let (a, b) = (anybody(80), anybody(81));
    let held = BTreeMap::from([(a, 0)]);
    let plan = |changes: &[Change]| Plan::new(&held, changes);
    assert_eq!(plan(&[Change::Open(a)]).unwrap(), Plan::default(), "it is open");
    assert_eq!(plan(&[Change::Close(a), Change::Open(a)]).unwrap(), Plan::default());
    assert_eq!(plan(&[Change::Open(b), Change::Close(b)]).unwrap(), Plan::default());
    let both = plan(&[Change::Open(b), Change::Close(a)]).unwrap();
    assert_eq!(both, Plan { opened: [b].into(), closed: [a].into() });
    for twice in [[Change::Close(a), Change::Close(a)], [Change::Close(b), Change::Open(b)]] {
        assert_eq!(kind(plan(&twice)), Some(ErrorKind::NotFound));
    }
}

#[test]
fn only_ports_of_hosts_are_opened() {
    let held = BTreeMap::new();
    let wrong =
        |rule| assert_eq!(kind(Plan::new(&held, &[Change::Open(rule)])), Some(ErrorKind::InvalidInput));
    let good = anybody(80);
    wrong(anybody(0));
    wrong(PinholeRule { protocol: 58, ..good });
    wrong(PinholeRule { remote_port: Some(0), ..good });
    for addr in ["::", "::1", "ff02::1", "fe80::1", "::ffff:192.0.2.1"].map(|addr| addr.parse().unwrap()) {
        wrong(PinholeRule { internal: addr, ..good });
        wrong(PinholeRule { remote: Some(addr), ..good });
    }
}

/// Which flows came in by which pinholes; those of others at the same port are told apart.
#[test]
fn a_flow_is_known_by_the_pinholes_that_let_it_in() {
    let ways = ways_in(&flow((REMOTE, 1234), 80));
    let limited = |remote, remote_port| PinholeRule { remote, remote_port, ..anybody(80) };
    let expected = [
        anybody(80),
        limited(None, Some(1234)),
        limited(Some(REMOTE), None),
        limited(Some(REMOTE), Some(1234)),
    ];
    assert_eq!(ways, expected);
    assert!(!ways.contains(&limited(None, Some(1235))) && !ways.contains(&limited(Some(HOST), None)));
    let udp = Flow { protocol: UDP, ..flow((REMOTE, 1234), 80) };
    assert!(!ways_in(&udp).contains(&anybody(80)));
    let own = flow((HOST, 80), 80);
    let own = Flow { source: own.destination, destination: SocketAddr::from((REMOTE, 1234)), ..own };
    assert!(!ways_in(&own).contains(&anybody(80)), "what the host began did not come in");
}

#[test]
fn a_configuration_is_checked() {
    let good = PinholesConfig {
        name: "t".to_owned(),
        wan_interfaces: vec!["wan0".to_owned()],
        lan_interfaces: vec!["lan0".to_owned()],
        filter: true,
        mark: Some(1),
    };
    assert!(good.check().is_ok());
    for wrong in [
        PinholesConfig { name: "a/b".to_owned(), ..good.clone() },
        PinholesConfig { wan_interfaces: Vec::new(), ..good.clone() },
        PinholesConfig { lan_interfaces: Vec::new(), ..good.clone() },
        PinholesConfig { lan_interfaces: vec!["sixteen_octets__".to_owned()], ..good.clone() },
        PinholesConfig { mark: Some(0), ..good.clone() },
    ] {
        assert_eq!(wrong.check().unwrap_err().kind(), ErrorKind::InvalidInput, "{wrong:?}");
    }
}

//! A provider's IPv6 firewall is asked as its NAT is, for a mapping of an address to itself (RFC 6887 §2.2, §11.1; decision 22).

use super::*;

const HOST: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 5);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const PEERS: [&str; 2] = ["2001:db8:9::1", "2001:db8:9::2"];

fn rig() -> Rig {
    let server = server_v6();
    let client = PcpClient::new(server, IpAddr::V6(ROUTER), Duration::from_secs(5));
    Rig { client, ..Rig::new() }
}

fn server_v6() -> SocketAddr {
    "[2001:db8::1]:5351".parse().unwrap()
}

fn pinhole() -> Want {
    let terms = Terms { prefer_failure: false, ..endless().terms };
    Want { third_party: Some(HOST.into()), terms, ..want() }
}

fn peer(n: usize, port: Option<u16>) -> RemotePeer {
    RemotePeer { addr: PEERS[n].parse().unwrap(), port }
}

fn filters(request: &Request) -> Vec<(u8, u16, Ipv6Addr)> {
    let one = |option: &PcpOption| match option {
        PcpOption::Filter(filter) => Some((filter.prefix_len, filter.remote_port, filter.remote_addr)),
        _ => None,
    };
    request.options.iter().filter_map(one).collect()
}

/// The server's answer about `request`: its own address and port, or those.
fn granted(rig: &Rig, request: &Request, external: Option<Ipv6Addr>) -> Vec<u8> {
    let Body::Map(map) = request.body else { panic!("{request:?}") };
    let body = Body::Map(MapData { external_addr: external.unwrap_or(HOST), ..map });
    Response { body, ..rig.error(request, ResultCode::SUCCESS, 3600) }.to_bytes()
}

fn from_server(rig: &mut Rig, bytes: &[u8]) -> Vec<Output> {
    rig.input(Input::Datagram(server_v6(), bytes))
}

fn only_sent(out: &[Output]) -> Request {
    match out {
        [Output::Transmit(bytes)] => Request::parse(bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// RFC 6887 §11.1: no address of IPv6 is all zeros; §13.1: the host; §5: in its own family.
#[test]
fn a_pinhole_is_a_mapping_to_the_host_itself() {
    let mut rig = rig();
    let request = rig.ask(FLOW, pinhole());
    assert_eq!(request.client_addr, ROUTER);
    assert_eq!(request.options, [PcpOption::ThirdParty(HOST)]);
    let Body::Map(map) = request.body else { panic!("{request:?}") };
    assert_eq!(
        (map.external_addr, map.external_port, map.internal_port),
        (Ipv6Addr::UNSPECIFIED, 8080, 8080)
    );
    let answer = granted(&rig, &request, None);
    let out = from_server(&mut rig, &answer);
    let Some(Output::Granted(FLOW, grant)) = out.last() else { panic!("{out:?}") };
    assert_eq!(grant.external, SocketAddr::from((HOST, 8080)));
    // The renewal suggests what is there.
    let at = rig.client.next_timeout().unwrap().as_millis();
    let renewal = only_sent(&rig.run(at).into_iter().map(|(_, output)| output).collect::<Vec<_>>());
    let Body::Map(map) = renewal.body else { panic!("{renewal:?}") };
    assert_eq!((map.external_addr, map.external_port), (HOST, 8080));
}

/// A prefix translator (RFC 6296) at the provider has its own address; an IPv4 address is no answer to what was asked.
#[test]
fn another_family_is_no_answer() {
    for (external, taken) in [("2001:db8:ff::5", true), ("::ffff:198.51.100.7", false)] {
        let mut rig = rig();
        let request = rig.ask(FLOW, pinhole());
        let answer = granted(&rig, &request, Some(external.parse().unwrap()));
        let out = from_server(&mut rig, &answer);
        assert_eq!(matches!(out.last(), Some(Output::Granted(..))), taken, "{external}: {out:?}");
        assert_eq!(rig.client.ignored() == 0, taken, "{external}");
    }
}

/// RFC 6887 §13.3: filters add up until one of prefix length 0 drops them; a port of 0 is any.
#[test]
fn remote_peers_add_up_and_are_dropped_together() {
    let mut rig = rig();
    let one = (128, 0, PEERS[0].parse().unwrap());
    let two = (128, 5000, PEERS[1].parse().unwrap());
    let all = (0, 0, Ipv6Addr::UNSPECIFIED);
    let request = rig.ask(FLOW, Want { remote_peers: vec![peer(0, None)], ..pinhole() });
    assert_eq!(filters(&request), [one]);
    let answer = granted(&rig, &request, None);
    from_server(&mut rig, &answer);
    for (peers, sent) in [
        (vec![peer(0, None), peer(1, Some(5000))], vec![one, two]),
        (vec![peer(1, Some(5000))], vec![all, two]),
        (vec![], vec![all]),
        (vec![peer(0, None)], vec![one]),
    ] {
        let request = only_sent(&rig.input(Input::Filter(FLOW, peers.clone())));
        assert_eq!(filters(&request), sent, "{peers:?}");
        let answer = granted(&rig, &request, None);
        from_server(&mut rig, &answer);
    }
    // A late answer to the request before says nothing of who is let in now.
    let before = only_sent(&rig.input(Input::Filter(FLOW, vec![peer(0, None), peer(1, None)])));
    let answer = granted(&rig, &before, None);
    from_server(&mut rig, &answer);
    assert!(rig.client.holds(FLOW));
    let third = RemotePeer { port: Some(53), ..peer(0, None) };
    let request = only_sent(&rig.input(Input::Filter(FLOW, vec![peer(0, None), peer(1, None), third])));
    from_server(&mut rig, &answer);
    assert!(!rig.client.holds(FLOW));
    let answer = granted(&rig, &request, None);
    from_server(&mut rig, &answer);
    assert!(rig.client.holds(FLOW));
    // A delete has none (RFC 6887 §15.1 asks for no option but THIRD_PARTY).
    let request = only_sent(&rig.input(Input::Delete(FLOW)));
    assert_eq!(request.options, [PcpOption::ThirdParty(HOST)]);
}

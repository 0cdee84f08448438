//! Mapping updates (RFC 6887 §14.2).

use super::*;

/// Told three times, a quarter and half a second apart, to where the client asked from last; with what it asked with, and the
/// epoch of the moment. Who asks meanwhile is told no more.
#[test]
fn a_mapping_that_moves() {
    let mut bench = server().set(|config| config.third_party = anybody());
    let host = filter(Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped(), 128);
    let options = [third(HOST), host, text(b"web")];
    ask(&mut bench, at(0), &map(600, data(1, 80, 9090), &options));
    ask(&mut bench, at(0), &map(600, data(2, 81, 9091), &[PcpOption::PreferFailure]));
    ask(&mut bench, at(0), &map(600, data(3, 82, 9092), &[port_set(4, 82, false)]));
    let peer = Request { body: Body::Peer(peer_data(4, 90, 443)), ..map(600, data(1, 1, 1), &[]) };
    ask(&mut bench, at(0), &peer);
    raw(&mut bench, at(0), CLIENT, &hex("00010000 00630c38 00000e10")).expect("an answer");
    bench.sent.clear();
    bench.config.pool = vec![EXTERNAL_2];
    bench.server.reconfigure(at(100), bench.config.clone());
    bench.perform(at(100));
    assert_eq!(bench.sent.len(), 0, "it is not answered, it is told in its own turn");
    let moved =
        |n, internal, port| MapData { external_addr: EXTERNAL_2.to_ipv6_mapped(), ..data(n, internal, port) };
    let told = |result, lifetime, epoch, body, options: &[PcpOption]| Response {
        result,
        lifetime,
        epoch,
        body,
        options: options.to_vec(),
    };
    let mut times = Vec::new();
    while let Some(next) = bench.server.next_timeout().filter(|&next| next < at(103)) {
        if next == at(102) {
            break;
        }
        bench.timeout(next);
        let sent = std::mem::take(&mut bench.sent);
        if sent.is_empty() {
            continue;
        }
        times.push(next.as_millis() - at(100).as_millis());
        let epoch = bench.server.epoch(next);
        let lifetime = at(600).secs_left(next);
        let heard: Vec<Response> = sent
            .iter()
            .map(|(to, from, softwire, bytes)| {
                let asked = arrival(CLIENT);
                assert_eq!((*to, *from, *softwire), (asked.from, asked.to, None));
                Response::parse(bytes).expect("well-formed")
            })
            .collect();
        let PeerData { nonce, internal_port, remote_port, remote_addr, .. } = peer_data(4, 90, 443);
        let external_port =
            bench.mappings().iter().find(|m| m.peer.is_some()).expect("it stands").external.port();
        let external_addr = EXTERNAL_2.to_ipv6_mapped();
        let protocol = Protocol::TCP;
        let gone = (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30);
        let peer = PeerData {
            nonce,
            protocol,
            internal_port,
            external_port,
            external_addr,
            remote_port,
            remote_addr,
        };
        let done = ResultCode::SUCCESS;
        let expected = [
            told(done, lifetime, epoch, Body::Map(moved(1, 80, 9090)), &options[..2]),
            told(gone.0, gone.1, epoch, Body::Map(data(2, 81, 9091)), &[PcpOption::PreferFailure]),
            told(done, lifetime, epoch, Body::Map(moved(3, 82, 9092)), &[port_set(4, 82, false)]),
            told(done, lifetime, epoch, Body::Peer(peer), &[]),
        ];
        // The third has asked.
        let expected: Vec<Response> = match times.len() {
            1 => expected.to_vec(),
            _ => expected.into_iter().enumerate().filter(|&(n, _)| n != 2).map(|(_, one)| one).collect(),
        };
        assert_eq!(heard, expected);
        if times.len() == 1 {
            ask(&mut bench, next, &map(500, data(3, 82, 0), &[port_set(4, 82, false)]));
            bench.sent.clear();
        }
    }
    assert_eq!(times, [0, 250, 750]);
}

/// Where it is off, and where nobody knows any more who has asked, nothing is told.
#[test]
fn nobody_to_tell() {
    let mut bench = server().set(|config| config.updates = false);
    outcome(&mut bench, at(0), &map(600, data(1, 80, 9090), &[]));
    bench.config_mut().pool = vec![EXTERNAL_2];
    bench.apply_settings(at(1));
    bench.sent.clear();
    bench.timeout(at(2));
    assert_eq!((bench.sent.len(), bench.mappings()[0].external), (0, (EXTERNAL_2, 9090).into()));
}

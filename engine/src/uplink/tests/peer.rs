//! PEER towards the provider (RFC 6887 §12): what goes out, when, what answers it, and what other protocols have to say.

use super::*;

const PEER: FlowId = FlowId(7);
const HOUR: u32 = 3600;

fn remote() -> SocketAddr {
    "203.0.113.9:3478".parse().unwrap()
}

/// A UDP flow that the router itself sends from port 5000.
fn flow() -> PeerWant {
    PeerWant {
        third_party: None,
        protocol: Protocol::UDP,
        internal_port: 5000,
        remote: remote(),
        suggested: "0.0.0.0:0".parse().unwrap(),
        lifetime: HOUR,
    }
}

fn ask(rig: &mut Rig, want: PeerWant) -> Request {
    only_sent(&rig.input(Input::Peer(PEER, want)))
}

fn peer_of(request: &Request) -> PeerData {
    match request.body {
        Body::Peer(data) => data,
        _ => panic!("{request:?}"),
    }
}

/// The flow goes out by port 40000 of the server's address.
fn found(rig: &Rig, request: &Request, lifetime: u32) -> Response {
    let data =
        PeerData { external_port: 40_000, external_addr: EXTERNAL.to_ipv6_mapped(), ..peer_of(request) };
    Response { body: Body::Peer(data), ..rig.error(request, ResultCode::SUCCESS, lifetime) }
}

/// RFC 6887 §12.1, octet by octet; §13.1 for the flow of a LAN host that nobody translates here.
#[test]
fn rfc6887_12_1_on_the_wire() {
    let mut rig = Rig { entropy: Box::new(Counting), ..Rig::new() };
    let out = rig.input(Input::Peer(PEER, flow()));
    let [Output::Transmit(bytes)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(
        hex(bytes),
        "02020000 00000e10 00000000 00000000 0000ffff c000020a 00010203 04050607 08090a0b \
         11000000 13880000 00000000 00000000 0000ffff 00000000 \
         0d960000 00000000 00000000 0000ffff cb007109"
    );
    let mut rig = Rig::new();
    let suggested = "198.51.100.7:40000".parse().unwrap();
    let request = ask(&mut rig, PeerWant { third_party: Some(LAN_HOST.into()), suggested, ..flow() });
    assert_eq!(request.options, [PcpOption::ThirdParty(LAN_HOST.to_ipv6_mapped())]);
    let data = peer_of(&request);
    assert_eq!((data.external_addr, data.external_port), (EXTERNAL.to_ipv6_mapped(), 40_000));
    let own = ask(&mut Rig::new(), PeerWant { third_party: Some(SOURCE.into()), ..flow() });
    assert_eq!(own.options, [], "nobody is a third party to himself");
}

/// RFC 6887 §8.1.1, the same octets each time; and a server that serves MAP alone is not silent for that.
#[test]
fn it_is_repeated_until_it_is_answered_or_forgotten() {
    for seed in 0..20 {
        let mut rig = Rig::with_seed(seed);
        let first = ask(&mut rig, flow());
        let out = rig.run(100_000);
        let repeated = sent(&out);
        assert!(out.iter().all(|(_, output)| matches!(output, Output::Transmit(_))), "{out:?}");
        assert!(repeated.len() > 3 && repeated.iter().all(|(_, request)| *request == first), "seed {seed}");
        assert_schedule(0, 3000, &repeated);
        assert_eq!(rig.input(Input::Forget(PEER)), []);
        assert_eq!((rig.run(10_000_000), rig.client.next_timeout()), (vec![], None));
    }
    // By its nonce the server knows the same flow again, whenever that is.
    let nonce = |want| peer_of(&ask(&mut Rig::new(), want)).nonce;
    assert_eq!(nonce(flow()), nonce(PeerWant { lifetime: 120, ..flow() }));
    for other in [
        PeerWant { internal_port: 5001, ..flow() },
        PeerWant { protocol: Protocol::TCP, ..flow() },
        PeerWant { third_party: Some(LAN_HOST.into()), ..flow() },
        PeerWant { remote: "203.0.113.9:3479".parse().unwrap(), ..flow() },
    ] {
        assert_ne!(nonce(flow()), nonce(other), "{other:?}");
    }
}

/// RFC 6887 §12.4: what is compared; one answer is enough.
#[test]
fn rfc6887_12_4_row_by_row() {
    let mut rig = Rig::new();
    let request = ask(&mut rig, flow());
    let good = found(&rig, &request, HOUR);
    let with = |data: PeerData| Response { body: Body::Peer(data), ..good.clone() };
    let Body::Peer(data) = good.body else { panic!("{good:?}") };
    let third_party = vec![PcpOption::ThirdParty(LAN_HOST.to_ipv6_mapped())];
    let map = MapData {
        nonce: data.nonce,
        protocol: data.protocol,
        internal_port: data.internal_port,
        external_port: data.external_port,
        external_addr: data.external_addr,
    };
    for (what, response) in [
        ("another nonce", with(PeerData { nonce: Nonce([9; 12]), ..data })),
        ("another protocol", with(PeerData { protocol: Protocol::TCP, ..data })),
        ("another internal port", with(PeerData { internal_port: 5001, ..data })),
        ("another remote port", with(PeerData { remote_port: 1, ..data })),
        ("another remote peer", with(PeerData { remote_addr: LAN_HOST.to_ipv6_mapped(), ..data })),
        ("a third party", Response { options: third_party, ..good.clone() }),
        ("MAP", Response { body: Body::Map(map), ..good.clone() }),
    ] {
        let ignored = rig.client.ignored();
        assert_eq!(rig.answer(&response), [], "{what}");
        assert_eq!(rig.client.ignored(), ignored + 1, "{what}");
    }
    assert_eq!(rig.input(Input::Datagram(remote(), &good.to_bytes())), [], "from somebody else");
    let grant = Grant {
        external: SocketAddr::from((EXTERNAL, 40_000)),
        lifetime: Duration::from_secs(u64::from(HOUR)),
        since: Instant::default(),
    };
    assert_eq!(rig.answer(&good), [Output::Answering, Output::PeerGranted(PEER, grant)]);
    assert_eq!((rig.answer(&good), rig.run(10_000_000)), (vec![], vec![]), "once");
}

/// RFC 6887 §8.3, §7.4: errors last as long as they say, within reason; a success without anything in it is none.
#[test]
fn what_is_no_success() {
    let long = Duration::from_secs(1800);
    let rows = [
        (ResultCode::UNSUPP_OPCODE, 1800, ResultCode::UNSUPP_OPCODE, long),
        (ResultCode::NOT_AUTHORIZED, u32::MAX, ResultCode::NOT_AUTHORIZED, long),
        (
            ResultCode::CANNOT_PROVIDE_EXTERNAL,
            30,
            ResultCode::CANNOT_PROVIDE_EXTERNAL,
            Duration::from_secs(30),
        ),
        (ResultCode::SUCCESS, 0, ResultCode::NETWORK_FAILURE, Duration::ZERO),
    ];
    for (result, lifetime, told, wait) in rows {
        let mut rig = Rig::new();
        let request = ask(&mut rig, flow());
        let answer = rig.error(&request, result, lifetime);
        assert_eq!(rig.answer(&answer), [Output::Answering, Output::PeerRefused(PEER, told, wait)]);
        assert_eq!(rig.client.next_timeout(), None);
    }
    let mut rig = Rig::new();
    let request = ask(&mut rig, flow());
    let mut answer = found(&rig, &request, HOUR);
    if let Body::Peer(data) = &mut answer.body {
        data.external_addr = Ipv6Addr::LOCALHOST;
    }
    let refused = Output::PeerRefused(PEER, ResultCode::NETWORK_FAILURE, Duration::ZERO);
    assert_eq!(rig.answer(&answer), [Output::Answering, refused], "of another family");
}

/// RFC 6887 §8.5: its answers tell of the server's age, too.
#[test]
fn its_answers_have_an_epoch() {
    let (mut rig, _) = Rig::holding(endless(), HOUR);
    rig.now = 100_000;
    let request = ask(&mut rig, flow());
    rig.epoch = 0;
    rig.now = 101_000;
    let answer = Response { epoch: 1, ..found(&rig, &request, HOUR) };
    let out = rig.answer(&answer);
    assert!(matches!(out[..], [Output::StateLost, Output::PeerGranted(PEER, _)]), "{out:?}");
}

/// RFC 7723: nobody hears of a flow who may be nobody.
#[test]
fn nobody_hears_of_it_who_may_be_nobody() {
    let client = PcpClient::new(server(), IpAddr::V4(SOURCE), Duration::from_secs(5)).that_may_be_nobody();
    let mut rig = Rig { client, ..Rig::new() };
    assert_eq!(ask(&mut rig, flow()).body, Body::Announce);
    let announce = rig.announce(1000);
    let out = rig.datagram(&announce);
    let [Output::Answering, Output::Transmit(bytes)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(peer_of(&Request::parse(bytes).unwrap()).remote_port, 3478);
}

/// RFC 6887 §12 is of PCP. Where this router's NAT is the last one, it knows itself where a flow goes out.
#[test]
fn other_protocols() {
    let (now, wait) = (Instant::default(), Duration::from_secs(1800));
    let refused = Output::PeerRefused(PEER, ResultCode::UNSUPP_OPCODE, wait);
    let mut entropy = SeededEntropy::new(1);
    let mut nat_pmp = NatPmpClient::new(now, server(), IpAddr::V4(SOURCE), Duration::from_secs(5));
    nat_pmp.handle_input(now, Input::Peer(PEER, flow()), &mut entropy);
    let all: Vec<Output> = std::iter::from_fn(|| nat_pmp.poll_output()).collect();
    assert!(all.contains(&refused), "{all:?}");
    let mut local = LocalNat::new(now, server(), SOURCE);
    local.handle_input(now, Input::Peer(PEER, flow()), &mut entropy);
    let all: Vec<Output> = std::iter::from_fn(|| local.poll_output()).collect();
    let lifetime = Duration::from_secs(u64::from(HOUR));
    let grant = Grant { external: SocketAddr::from((SOURCE, 5000)), lifetime, since: now };
    assert!(all.contains(&Output::PeerGranted(PEER, grant)), "{all:?}");
}

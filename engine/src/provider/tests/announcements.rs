//! The epoch, ANNOUNCE and announcements (RFC 6887 §8.5, §14.1; N-12, N-13).

use super::*;

fn announce() -> Request {
    Request { lifetime: 0, client_addr: CLIENT.to_ipv6_mapped(), body: Body::Announce, options: Vec::new() }
}

fn told(epoch: u32) -> Response {
    let (result, options) = (ResultCode::SUCCESS, Vec::new());
    Response { result, lifetime: 0, epoch, body: Body::Announce, options }
}

/// RFC 6887 §8.5 and §14.1.2: seconds since the state was lost; ANNOUNCE asks and tells.
#[test]
fn epoch_and_announce() {
    let mut bench = server();
    assert_eq!(ask(&mut bench, at(77), &announce()), told(77));
    assert_eq!(bench.server.counters().grants(Kind::Announce), 1);
    outcome(&mut bench, at(80), &map(600, data(1, 80, 9090), &[]));
    bench.server.lose_state(at(100));
    bench.perform(at(100));
    assert_eq!((bench.mappings().len(), bench.bindings.len(), bench.store.len()), (0, 0, 0));
    assert_eq!(bench.epoch_began, Some(at(100)));
    assert_eq!(bench.notices.last(), Some(&Notice::EpochBegan(NewEpoch::Lost)));
    assert_eq!(ask(&mut bench, at(103), &announce()), told(3));
    let got = outcome(&mut bench, at(104), &map(600, data(2, 80, 9090), &[PcpOption::PreferFailure]));
    assert_eq!(got, (ResultCode::SUCCESS, 600, 9090), "no hold is remembered either");
}

/// RFC 6887 §14.1.3, N-13: ten times, to the groups of both families and of both protocols, a quarter of a second after the first
/// and then twice as long each time, each with the epoch of its moment.
#[test]
fn a_start_is_announced() {
    let mut bench = server();
    assert_eq!(bench.multicasts, []);
    bench.server.announce(START);
    bench.perform(START);
    while let Some(next) = bench.server.next_timeout() {
        assert!(next > bench.multicasts.last().expect("the first").0, "it does not spin");
        bench.timeout(next);
    }
    let group = |text: &str| text.parse::<SocketAddr>().expect("an endpoint");
    let mut expected = Vec::new();
    let mut ms = 0;
    for n in 0..10 {
        let epoch = u32::try_from(ms / 1000).expect("not that long");
        let now = Instant::from_millis(1_000_000 + ms);
        let pcp = told(epoch).to_bytes();
        let natpmp = [&[0, 128, 0, 0][..], &epoch.to_be_bytes(), &EXTERNAL.octets()].concat();
        expected.push((now, group("224.0.0.1:5350"), pcp.clone()));
        expected.push((now, group("[ff02::1]:5350"), pcp));
        expected.push((now, group("224.0.0.1:5350"), natpmp));
        ms += 250 << n;
    }
    assert_eq!(bench.multicasts, expected);
}

/// The gaps count from when it was said: a late timer makes none of them shorter. N-3: no NAT, no word of NAT-PMP.
#[test]
fn late_announcements() {
    let mut bench = Bench::new(ServerConfig { pool: vec![], ..config() });
    bench.server.announce(START);
    bench.perform(START);
    assert_eq!(bench.multicasts.len(), 2);
    bench.timeout(at(60));
    assert_eq!(bench.multicasts.len(), 4);
    assert_eq!(bench.server.next_timeout(), Some(Instant::from_millis(1_060_500)));
}

/// RFC 6887 §8.5: another external address begins a new epoch, and so does one more; other settings do not.
#[test]
fn another_address_is_announced() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(600, data(1, 80, 9090), &[text(b"web")]));
    for (change, epoch, announced) in [
        (ServerConfig { quota: 5, ..config() }, 10, 0),
        // Which of them is whose, NAT-PMP cannot announce.
        (ServerConfig { pool: vec![EXTERNAL, EXTERNAL_2], ..config() }, 0, 2),
        (ServerConfig { pool: vec![EXTERNAL_2], ..config() }, 0, 3),
        (ServerConfig { pool: vec![EXTERNAL_2], hold: Duration::ZERO, ..config() }, 10, 0),
    ] {
        bench = Bench { server: bench.server, ..bench };
        let (age, _) = bench.server.epoch;
        let now = age + Duration::from_secs(10);
        bench.multicasts.clear();
        bench.server.reconfigure(now, change.clone());
        bench.config = change;
        bench.perform(now);
        assert_eq!((bench.server.epoch(now), bench.multicasts.len()), (epoch, announced));
    }
    // The mapping has moved, with its port.
    let expected: SocketAddr = (EXTERNAL_2, 9090).into();
    assert_eq!(bench.mappings()[0].external, expected);
    assert_eq!(bench.bindings[0].external, expected);
    let (_, stored) = bench.store.values().next().expect("it is stored");
    assert_eq!((stored.external, stored.description.as_deref()), (expected, Some("web")));
    let last = bench.notices.last();
    assert_eq!(last, Some(&Notice::EpochBegan(NewEpoch::Readdressed)));
}

/// RFC 7225: another prefix is announced; the epoch goes on.
#[test]
fn another_prefix_is_announced() {
    let prefix = pcp::Prefix64 {
        prefix: vec![0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0],
        suffix: vec![],
        ipv4_prefixes: vec![],
    };
    let mut bench = server();
    bench.server.reconfigure(at(9), ServerConfig { prefix64: vec![prefix.clone()], ..config() });
    bench.config.prefix64 = vec![prefix.clone()];
    bench.perform(at(9));
    let announced = Response { options: vec![PcpOption::Prefix64(prefix)], ..told(9) };
    assert_eq!(bench.multicasts[0].2, announced.to_bytes());
    assert_eq!(ask(&mut bench, at(9), &announce()), announced);
    let wrong = pcp::Prefix64 { prefix: vec![1; 12], suffix: vec![], ipv4_prefixes: vec![] };
    let request = Request { options: vec![PcpOption::Prefix64(wrong)], ..announce() };
    assert_eq!(ask(&mut bench, at(9), &request).result, ResultCode::MALFORMED_OPTION);
}

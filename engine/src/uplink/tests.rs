//! The PCP client in virtual time: what it sends, when, and what it believes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use wire::pcp::{
    Body, Filter, MapData, NO_ADDR_V4, Nonce, Opcode, PcpOption, PeerData, Protocol, Request, Response,
    ResultCode,
};

use super::*;
use crate::entropy::{Entropy, SeededEntropy};
use crate::time::{Duration, Instant};

const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const LAN_HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const FLOW: FlowId = FlowId(1);

fn server() -> SocketAddr {
    "192.0.2.1:5351".parse().unwrap()
}

/// TCP 8080 to 8080 with PREFER_FAILURE for an hour, by a control point that waits.
fn want() -> Want {
    Want {
        third_party: None,
        protocol: Protocol::TCP,
        internal_port: 8080,
        external_port: 8080,
        remote_peer: None,
        terms: Terms {
            prefer_failure: true,
            lease_ends: Some(Instant::from_secs(3600)),
            longest: u32::MAX,
            description: String::new(),
        },
        urgent: true,
    }
}

/// The same until `lease_ends`.
fn lasting(lease_ends: Option<Instant>) -> Want {
    Want { terms: Terms { lease_ends, ..want().terms }, ..want() }
}

/// The same until its owner or the server ends it.
fn endless() -> Want {
    lasting(None)
}

/// Terms of a mapping that its owner has just asked for again, until then.
fn extended(lease_ends: Option<Instant>) -> Terms {
    lasting(lease_ends).terms
}

/// The same on other terms.
fn with(terms: Terms) -> Want {
    Want { terms, ..want() }
}

/// Octets 00, 01, 02 … each time: pcp.md's nonce, and a roll of nearly 0.
struct Counting;

impl Entropy for Counting {
    fn fill(&mut self, bytes: &mut [u8]) {
        for (octet, n) in bytes.iter_mut().zip(0..) {
            *octet = n;
        }
    }

    fn derive(&self, _name: &[u8]) -> [u8; 16] {
        std::array::from_fn(|n| u8::try_from(n).unwrap())
    }
}

struct Rig {
    client: PcpClient,
    entropy: Box<dyn Entropy>,
    /// Milliseconds.
    now: u64,
    /// The server's epoch at time 0.
    epoch: u32,
}

impl Rig {
    fn new() -> Self {
        Self::with_seed(1)
    }

    fn with_seed(seed: u64) -> Self {
        let client = PcpClient::new(server(), IpAddr::V4(SOURCE), Duration::from_secs(5));
        Self { client, entropy: Box::new(SeededEntropy::new(seed)), now: 0, epoch: 1000 }
    }

    /// One with a mapping for [`FLOW`], granted at 0 for `lifetime` seconds; and its request.
    fn holding(want: Want, lifetime: u32) -> (Self, Request) {
        let mut rig = Self::new();
        let request = rig.ask(FLOW, want);
        let out = rig.answer(&rig.success(&request, lifetime));
        let granted = Grant {
            external: SocketAddrV4::new(EXTERNAL, 8080),
            lifetime: Duration::from_secs(u64::from(lifetime)),
            since: Instant::default(),
        };
        assert_eq!(out, [Output::Answering, Output::Granted(FLOW, granted)]);
        (rig, request)
    }

    /// What it wants, but for what is to be stored.
    fn drain(&mut self) -> Vec<Output> {
        let all: Vec<Output> = std::iter::from_fn(|| self.client.poll_output()).collect();
        all.into_iter().filter(|output| !matches!(output, Output::Filtered(_))).collect()
    }

    fn input(&mut self, input: Input<'_>) -> Vec<Output> {
        self.client.handle_input(Instant::from_millis(self.now), input, &mut *self.entropy);
        self.drain()
    }

    fn ask(&mut self, flow: FlowId, want: Want) -> Request {
        match &self.input(Input::Ask(flow, want))[..] {
            [Output::Transmit(bytes)] => Request::parse(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Lets time pass until `to`, in milliseconds; what happened, and when.
    fn run(&mut self, to: u64) -> Vec<(u64, Output)> {
        let mut out = Vec::new();
        while let Some(at) = self.client.next_timeout().map(Instant::as_millis).filter(|&at| at <= to) {
            assert!(at >= self.now, "an alarm in the past would never end");
            self.now = at;
            out.extend(self.input(Input::Timeout).into_iter().map(|output| (at, output)));
        }
        self.now = to;
        out
    }

    /// The server's answer `bytes` arrives now.
    fn datagram(&mut self, bytes: &[u8]) -> Vec<Output> {
        self.input(Input::Datagram(server(), bytes))
    }

    fn answer(&mut self, response: &Response) -> Vec<Output> {
        self.datagram(&response.to_bytes())
    }

    fn success(&self, request: &Request, lifetime: u32) -> Response {
        let Body::Map(map) = request.body else { panic!("{request:?}") };
        let port = if map.external_port == 0 { 40_000 } else { map.external_port };
        let assigned = MapData { external_port: port, external_addr: EXTERNAL.to_ipv6_mapped(), ..map };
        Response { body: Body::Map(assigned), ..self.error(request, ResultCode::SUCCESS, lifetime) }
    }

    fn error(&self, request: &Request, result: ResultCode, lifetime: u32) -> Response {
        let epoch = self.epoch + u32::try_from(self.now / 1000).unwrap();
        Response { result, lifetime, epoch, body: request.body.clone(), options: request.options.clone() }
    }

    fn announce(&self, epoch: u32) -> Vec<u8> {
        let body = Body::Announce;
        Response { result: ResultCode::SUCCESS, lifetime: 0, epoch, body, options: Vec::new() }.to_bytes()
    }
}

fn map_of(request: &Request) -> MapData {
    match request.body {
        Body::Map(map) => map,
        _ => panic!("{request:?}"),
    }
}

/// The requests among the outputs, and when they were sent.
fn sent(outputs: &[(u64, Output)]) -> Vec<(u64, Request)> {
    outputs
        .iter()
        .filter_map(|(at, output)| match output {
            Output::Transmit(bytes) => Some((*at, Request::parse(bytes).unwrap())),
            _ => None,
        })
        .collect()
}

fn only_sent(outputs: &[Output]) -> Request {
    match outputs {
        [Output::Transmit(bytes)] => Request::parse(bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    let groups: Vec<String> =
        bytes.chunks(4).map(|group| group.iter().map(|octet| format!("{octet:02x}")).collect()).collect();
    groups.join(" ")
}

// What goes out

/// and pcp.md 16: client 192.0.2.10, nonce 00..0b, TCP 8080 to 8080, 3600 s, PREFER_FAILURE.
#[test]
fn golden_map_request() {
    let mut rig = Rig { entropy: Box::new(Counting), ..Rig::new() };
    let out = rig.input(Input::Ask(FLOW, want()));
    let [Output::Transmit(bytes)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(
        hex(bytes),
        "02010000 00000e10 00000000 00000000 0000ffff c000020a 00010203 04050607 08090a0b \
         06000000 1f901f90 00000000 00000000 0000ffff 00000000 02000000"
    );
}

/// T-1, T-5, decision 22 and iwf.md 2.2, the table of what a MAP request carries; pcp.md 16's octets of
/// THIRD_PARTY and FILTER.
#[test]
fn options_and_fields_by_what_is_wanted() {
    let third_party = PcpOption::ThirdParty(LAN_HOST.to_ipv6_mapped());
    let peer = Ipv4Addr::new(203, 0, 113, 9);
    let filter =
        PcpOption::Filter(Filter { prefix_len: 128, remote_port: 0, remote_addr: peer.to_ipv6_mapped() });
    for (want, lifetime, port, options) in [
        (want(), 3600, 8080, vec![PcpOption::PreferFailure]),
        // AddAnyPortMapping: a suggestion.
        (with(Terms { prefer_failure: false, ..want().terms }), 3600, 8080, vec![]),
        // PREFER_FAILURE with port 0 would be MALFORMED_OPTION (RFC 6887 §13.2).
        (Want { external_port: 0, ..want() }, 3600, 0, vec![]),
        (
            Want { third_party: Some(LAN_HOST), ..want() },
            3600,
            8080,
            vec![third_party.clone(), PcpOption::PreferFailure],
        ),
        // T-5: it equals the packet's source.
        (Want { third_party: Some(SOURCE), ..want() }, 3600, 8080, vec![PcpOption::PreferFailure]),
        (
            Want { remote_peer: Some(peer), ..want() },
            3600,
            8080,
            vec![PcpOption::PreferFailure, filter.clone()],
        ),
        // T-1: for ever is 2^32 - 1.
        (endless(), u32::MAX, 8080, vec![PcpOption::PreferFailure]),
        (with(Terms { longest: 600, ..extended(None) }), 600, 8080, vec![PcpOption::PreferFailure]),
        (with(Terms { longest: 600, ..want().terms }), 600, 8080, vec![PcpOption::PreferFailure]),
    ] {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, want.clone());
        let map = map_of(&request);
        let expected = Request {
            lifetime,
            client_addr: SOURCE.to_ipv6_mapped(),
            body: Body::Map(MapData {
                nonce: map.nonce,
                protocol: Protocol::TCP,
                internal_port: 8080,
                external_port: port,
                external_addr: NO_ADDR_V4,
            }),
            options,
        };
        assert_eq!(request, expected, "{want:?}");
    }
    assert_eq!(hex(&octets(&third_party)), "01000010 00000000 00000000 0000ffff 0a000005");
    assert_eq!(hex(&octets(&filter)), "03000014 00800000 00000000 00000000 0000ffff cb007109");
}

fn octets(option: &PcpOption) -> Vec<u8> {
    let request = |options| Request { lifetime: 0, client_addr: NO_ADDR_V4, body: Body::Announce, options };
    request(vec![option.clone()]).to_bytes().split_off(24)
}

/// R-4, RFC 6887 §11.1: another nonce for every mapping, and the same for the same client in every life, so that no crash
/// makes the server refuse us.
#[test]
fn every_client_has_its_own_nonce_for_ever() {
    let hosts = [None, Some(LAN_HOST), Some(Ipv4Addr::new(10, 0, 0, 6))];
    let wants: Vec<Want> = hosts
        .into_iter()
        .flat_map(|third_party| [Protocol::TCP, Protocol::UDP].map(|protocol| (third_party, protocol)))
        .flat_map(|(third_party, protocol)| {
            (1..50).map(move |internal_port| Want { third_party, protocol, internal_port, ..want() })
        })
        .collect();
    let nonces = |seed, server: &str| -> Vec<Nonce> {
        let mut rig = Rig::with_seed(seed);
        let server = server.parse().unwrap();
        rig.client = PcpClient::new(server, IpAddr::V4(SOURCE), Duration::from_secs(5));
        (0..).zip(&wants).map(|(n, want)| map_of(&rig.ask(FlowId(n), want.clone())).nonce).collect()
    };
    let first = nonces(1, "192.0.2.1:5351");
    assert_eq!(first.iter().collect::<std::collections::BTreeSet<_>>().len(), wants.len());
    assert_eq!(nonces(2, "192.0.2.1:5351"), first);
    assert!(nonces(1, "192.0.2.2:5351").iter().zip(&first).all(|(one, other)| one != other));
}

/// The same client insists on another port while its last mapping is being deleted: it waits for that, for the server has
/// one mapping for a client. So does nobody else.
#[test]
fn another_port_waits_for_the_delete() {
    let (mut rig, first) = Rig::holding(endless(), 3600);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    let other = Want { external_port: 9090, ..endless() };
    assert_eq!(rig.input(Input::Ask(FlowId(2), other.clone())), []);
    assert!(rig.client.has(FlowId(2)));
    rig.ask(FlowId(3), Want { internal_port: 1, ..other.clone() });
    let out = rig.answer(&rig.error(&delete, ResultCode::SUCCESS, 0));
    let [Output::Deleted(FLOW), Output::Transmit(bytes)] = &out[..] else { panic!("{out:?}") };
    let sent = map_of(&Request::parse(bytes).unwrap());
    assert_eq!((sent.external_port, sent.nonce), (9090, map_of(&first).nonce));
    // When the server refuses to delete, the answer is that the port cannot be had.
    let (mut rig, _) = Rig::holding(endless(), 3600);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    rig.input(Input::Ask(FlowId(2), other.clone()));
    let out = rig.answer(&rig.error(&delete, ResultCode::NOT_AUTHORIZED, 30));
    let refused = Output::Refused(FlowId(2), ResultCode::CANNOT_PROVIDE_EXTERNAL, Duration::ZERO);
    assert_eq!(out, [Output::DeleteRefused(FLOW, ResultCode::NOT_AUTHORIZED), refused]);
    // Who gives up waiting leaves nothing behind.
    let (mut rig, _) = Rig::holding(endless(), 3600);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    rig.input(Input::Ask(FlowId(2), other));
    assert_eq!(rig.input(Input::Delete(FlowId(2))), [Output::Deleted(FlowId(2))]);
    assert_eq!(rig.answer(&rig.error(&delete, ResultCode::SUCCESS, 0)), [Output::Deleted(FLOW)]);
    assert!(!rig.client.has(FlowId(2)));
}

// Retransmission

/// Decision 1: at 0, 1 and 3 s, then RFC 6887 §8.1.1, each the same octets.
#[test]
fn urgent_requests_are_repeated_at_1_and_3_seconds() {
    for seed in 0..50 {
        let mut rig = Rig::with_seed(seed);
        let first = rig.input(Input::Ask(FLOW, want()));
        let repeated: Vec<(u64, Output)> =
            rig.run(5000).into_iter().filter(|(_, output)| *output != Output::Silent).collect();
        let again = first[0].clone();
        assert_eq!(repeated, [(1000, again.clone()), (3000, again)], "seed {seed}");
        let later = sent(&rig.run(100_000));
        assert_schedule(3000, 3000, &later);
    }
}

/// RFC 6887 §8.1.1: (1 + RAND) × 3 s, then (1 + RAND) × min(2 × RTprev, 1024 s), for ever, nonce included.
#[test]
fn requests_are_repeated_on_the_schedule_of_the_rfc() {
    for seed in 0..50 {
        let mut rig = Rig::with_seed(seed);
        let want = Want { urgent: false, ..endless() };
        let first = rig.ask(FLOW, want);
        let repeated = sent(&rig.run(10_000_000));
        assert!(repeated.len() > 15, "seed {seed}");
        assert!(repeated.iter().all(|(_, request)| *request == first), "seed {seed}: byte for byte");
        assert_schedule(0, 3000, &repeated);
    }
}

/// The waits from `start` on follow RFC 6887 §8.1.1, the first being around `first`.
fn assert_schedule(start: u64, first: u64, sent: &[(u64, Request)]) {
    let (mut at, mut around) = (start, first);
    for &(next, _) in sent {
        let rt = next - at;
        assert!(rt.abs_diff(around) * 10 <= around + 10, "{rt} ms is not around {around}");
        (at, around) = (next, (2 * rt).min(1_024_000));
    }
}

// Renewal

/// RFC 6887 §11.2.1: within [1/2, 5/8) of the granted lifetime, then [3/4, 13/16), …, never closer than 4 s; the
/// assigned values suggested, the nonce kept (§8.1.1), one datagram a try.
#[test]
fn renewals_by_the_granted_lifetime() {
    for seed in 0..50 {
        let mut rig = Rig::with_seed(seed);
        let request = rig.ask(FLOW, Want { external_port: 0, ..endless() });
        rig.answer(&rig.success(&request, 320));
        let out = rig.run(320_000);
        let mut renewals = sent(&out);
        assert_eq!(renewals.pop().map(|(at, last)| (at, last.lifetime)), Some((320_000, 0)), "given back");
        let windows = [(160, 200), (240, 260), (280, 290), (300, 305), (310, 313)];
        // After the five of the windows, 10 to 7 s before the end, there is room for one more at 4 s of distance, or two.
        assert!((6..=7).contains(&renewals.len()), "seed {seed}: {} renewals", renewals.len());
        for ((at, _), (from, to)) in renewals.iter().zip(windows) {
            assert!((from * 1000..=to * 1000).contains(at), "seed {seed}: {at} ms not in {from}..{to} s");
        }
        assert!(renewals.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 4000), "seed {seed}");
        let map =
            MapData { external_port: 40_000, external_addr: EXTERNAL.to_ipv6_mapped(), ..map_of(&request) };
        let expected = Request { body: Body::Map(map), options: vec![PcpOption::PreferFailure], ..request };
        assert!(renewals.iter().all(|(_, renewal)| *renewal == expected), "seed {seed}");
        assert!(out.contains(&(320_000, Output::Lost(FLOW))), "seed {seed}");
        assert_eq!(rig.run(400_000).last(), Some(&(350_000, Output::Deleted(FLOW))));
        assert_eq!(rig.client.next_timeout(), None);
    }
}

/// Renewed, the timetable starts anew from the answer, by the new lifetime.
#[test]
fn a_renewal_is_granted_anew() {
    let (mut rig, _) = Rig::holding(endless(), 400);
    let renewal = sent(&rig.run(250_000)).remove(0).1;
    let out = rig.answer(&rig.success(&renewal, 100));
    let since = Instant::from_secs(250);
    let grant =
        Grant { external: SocketAddrV4::new(EXTERNAL, 8080), lifetime: Duration::from_secs(100), since };
    assert_eq!(out, [Output::Granted(FLOW, grant)]);
    assert_eq!(rig.client.grant(FLOW), Some(grant));
    let (at, _) = sent(&rig.run(400_000)).remove(0);
    assert!((300_000..312_500).contains(&at), "{at}");
}

/// and iwf.md 2.5: renewals ask for what is left of the lease, so that both end together; when the grant
/// reaches to the end, nothing more is asked.
#[test]
fn the_last_renewal_asks_for_the_remainder() {
    let lease_ends = Some(Instant::from_secs(500));
    let (mut rig, first) = Rig::holding(lasting(lease_ends), 400);
    assert_eq!(first.lifetime, 500);
    let (at, renewal) = sent(&rig.run(250_000)).remove(0);
    assert_eq!(u64::from(renewal.lifetime), 500 - at / 1000);
    rig.now = at;
    rig.answer(&rig.success(&renewal, renewal.lifetime));
    let out = rig.run(600_000);
    assert_eq!(sent(&out), [], "the mapping now lasts as long as the lease");
    assert!(matches!(&out[..], [(at, Output::Lost(FLOW))] if (500_000..501_000).contains(at)), "{out:?}");
}

/// An owner who asks again moves the end; the timetable follows.
#[test]
fn an_extended_lease_is_renewed_again() {
    let lease_ends = Some(Instant::from_secs(400));
    let (mut rig, _) = Rig::holding(lasting(lease_ends), 400);
    assert_eq!(sent(&rig.run(100_000)), []);
    assert_eq!(rig.input(Input::Extend(FLOW, extended(Some(Instant::from_secs(4000))))), []);
    let (at, renewal) = sent(&rig.run(250_000)).remove(0);
    assert!((200_000..250_000).contains(&at), "{at}");
    assert_eq!(u64::from(renewal.lifetime), (4_000_000 - at).div_ceil(1000));
}

/// A client that asks again every second moves the end of its lease, never the renewal.
#[test]
fn refreshes_do_not_starve_renewals() {
    let (mut rig, request) = Rig::holding(endless(), 120);
    let mut renewals = 0;
    for second in 1..600_u64 {
        for (_, renewal) in sent(&rig.run(second * 1000)) {
            renewals += 1;
            rig.answer(&rig.success(&renewal, 120));
        }
        assert!(rig.client.has(FLOW), "lost after {second} s");
        rig.input(Input::Extend(FLOW, extended(Some(Instant::from_secs(second + 3600)))));
    }
    assert!((7..=11).contains(&renewals), "{renewals} in ten minutes of a lifetime of two: {request:?}");
}

/// Decision 15: a refused renewal is told, and tried again on the timetable until the lifetime ends.
#[test]
fn a_refused_renewal_is_tried_again() {
    let (mut rig, _) = Rig::holding(endless(), 400);
    let renewal = sent(&rig.run(250_000)).remove(0).1;
    let out = rig.answer(&rig.error(&renewal, ResultCode::NETWORK_FAILURE, 30));
    assert_eq!(out, [Output::RenewalRefused(FLOW, ResultCode::NETWORK_FAILURE)]);
    let out = rig.run(1_000_000);
    assert!((300_000..325_000).contains(&sent(&out)[0].0), "{out:?}");
    assert!(out.contains(&(400_000, Output::Lost(FLOW))), "{out:?}");
    // The last renewal was not answered, and may have got through: what it has made is taken back.
    assert_eq!(sent(&out).last().map(|(_, last)| last.lifetime), Some(0));
    assert_eq!(out.last(), Some(&(430_000, Output::Deleted(FLOW))));
}

/// RFC 6887 §13.2: PREFER_FAILURE insists on port and address. Another address would do (decision 15), so that is asked for
/// once; refused again, the port has another owner now.
#[test]
fn a_port_that_is_gone_is_lost_at_once() {
    let (mut rig, _) = Rig::holding(want(), 400);
    let renewal = sent(&rig.run(250_000)).remove(0).1;
    let out = rig.answer(&rig.error(&renewal, ResultCode::CANNOT_PROVIDE_EXTERNAL, 30));
    let [Output::Transmit(bytes)] = &out[..] else { panic!("{out:?}") };
    let again = Request::parse(bytes).unwrap();
    let (Body::Map(first), Body::Map(second)) = (&renewal.body, &again.body) else { panic!("{again:?}") };
    assert_eq!((second.external_port, second.nonce), (first.external_port, first.nonce));
    assert_eq!(second.external_addr, NO_ADDR_V4);
    let out = rig.answer(&rig.error(&again, ResultCode::CANNOT_PROVIDE_EXTERNAL, 30));
    assert_eq!(out, [Output::Lost(FLOW)]);
    assert!(!rig.client.has(FLOW));
}

// What is believed

/// RFC 6887 §15 and the security policy: a success lasts 24 h at most, an error 30 min at most.
#[test]
fn lifetimes_are_clamped() {
    for (granted, believed) in [(1, 1), (86_400, 86_400), (86_401, 86_400), (u32::MAX, 86_400)] {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, want());
        rig.answer(&rig.success(&request, granted));
        assert_eq!(rig.client.grant(FLOW).unwrap().lifetime, Duration::from_secs(believed), "{granted}");
    }
    for (said, believed) in [(0, 0), (30, 30), (1800, 1800), (u32::MAX, 1800)] {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, want());
        let out = rig.answer(&rig.error(&request, ResultCode::NOT_AUTHORIZED, said));
        let refused = Output::Refused(FLOW, ResultCode::NOT_AUTHORIZED, Duration::from_secs(believed));
        assert_eq!(out, [Output::Answering, refused], "{said}");
        assert!(!rig.client.has(FLOW));
    }
}

/// Security policy: 0 to a request for a mapping is no success.
#[test]
fn a_lifetime_of_0_is_a_failure() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, want());
    let out = rig.answer(&rig.success(&request, 0));
    let refused = Output::Refused(FLOW, ResultCode::NETWORK_FAILURE, Duration::ZERO);
    assert_eq!(out, [Output::Answering, refused]);

    let (mut rig, request) = Rig::holding(want(), 400);
    let out = rig.answer(&rig.success(&request, 0));
    assert_eq!(out, [Output::RenewalRefused(FLOW, ResultCode::NETWORK_FAILURE)]);
    assert!(rig.client.has(FLOW), "it stands until its lifetime ends");
}

/// T-6, RFC 6887 §8.3 and §11.4, and the security policy's never-believe row by row: ignored, counted, without an
/// effect; the right answer afterwards is accepted.
#[test]
fn what_is_never_believed() {
    let third_party = Want { third_party: Some(LAN_HOST), ..want() };
    type Forge = fn(&Rig, &Request) -> (SocketAddr, Vec<u8>);
    let map = |forge: fn(&mut MapData, &mut Response)| {
        move |rig: &Rig, request: &Request| {
            let mut response = rig.success(request, 3600);
            let Body::Map(mut map) = response.body else { unreachable!() };
            forge(&mut map, &mut response);
            if let Body::Map(_) = response.body {
                response.body = Body::Map(map);
            }
            (server(), response.to_bytes())
        }
    };
    let bytes = |forge: fn(&mut Vec<u8>)| {
        move |rig: &Rig, request: &Request| {
            let mut bytes = rig.success(request, 3600).to_bytes();
            forge(&mut bytes);
            (server(), bytes)
        }
    };
    let other_source: Forge =
        |rig, request| ("192.0.2.2:5351".parse().unwrap(), rig.success(request, 9).to_bytes());
    let other_port: Forge =
        |rig, request| ("192.0.2.1:5350".parse().unwrap(), rig.success(request, 9).to_bytes());
    let request_back: Forge = |_, request| (server(), request.to_bytes());
    type Row<'a> = (&'a str, Box<dyn Fn(&Rig, &Request) -> (SocketAddr, Vec<u8>)>);
    let rows: Vec<Row<'_>> = vec![
        ("another source", Box::new(other_source)),
        ("another port of the server", Box::new(other_port)),
        ("a request that comes back", Box::new(request_back)),
        ("R clear", Box::new(bytes(|bytes| bytes[1] = 1))),
        ("empty", Box::new(bytes(Vec::clear))),
        ("three octets", Box::new(bytes(|bytes| bytes.truncate(3)))),
        ("shorter than a header", Box::new(bytes(|bytes| bytes.truncate(20)))),
        ("shorter than MAP", Box::new(bytes(|bytes| bytes.truncate(56)))),
        ("not a multiple of 4", Box::new(bytes(|bytes| bytes.push(0)))),
        ("longer than 1100", Box::new(bytes(|bytes| bytes.resize(1104, 0)))),
        ("version 1", Box::new(bytes(|bytes| bytes[0] = 1))),
        ("another nonce", Box::new(map(|map, _| map.nonce.0[11] ^= 1))),
        ("another protocol", Box::new(map(|map, _| map.protocol = Protocol::UDP))),
        ("another internal port", Box::new(map(|map, _| map.internal_port += 1))),
        ("no THIRD_PARTY", Box::new(map(|_, response| response.options.clear()))),
        (
            "another THIRD_PARTY",
            Box::new(map(|_, response| {
                let other = Ipv4Addr::new(10, 0, 0, 6);
                response.options[0] = PcpOption::ThirdParty(other.to_ipv6_mapped());
            })),
        ),
        ("an IPv6 external address", Box::new(map(|map, _| map.external_addr = Ipv6Addr::LOCALHOST))),
        (
            "another opcode",
            Box::new(map(|map, response| {
                response.body = Body::Peer(PeerData {
                    nonce: map.nonce,
                    protocol: map.protocol,
                    internal_port: map.internal_port,
                    external_port: map.external_port,
                    external_addr: map.external_addr,
                    remote_port: 1,
                    remote_addr: NO_ADDR_V4,
                });
            })),
        ),
        ("an unknown opcode", Box::new(map(|_, r| r.body = Body::Other(Opcode(99), vec![0; 36])))),
        (
            "an error with another nonce",
            Box::new(map(|map, response| {
                map.nonce.0[0] ^= 1;
                response.result = ResultCode::NOT_AUTHORIZED;
            })),
        ),
        (
            "an ANNOUNCE that is refused",
            Box::new(map(|_, response| {
                response.body = Body::Announce;
                response.options.clear();
                response.result = ResultCode::UNSUPP_OPCODE;
            })),
        ),
    ];
    for (what, forge) in rows {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, third_party.clone());
        let due = rig.client.next_timeout();
        let (from, bytes) = forge(&rig, &request);
        assert_eq!(rig.input(Input::Datagram(from, &bytes)), [], "{what}");
        assert_eq!(rig.client.ignored(), 1, "{what}");
        assert_eq!((rig.client.is_answering(), rig.client.last_heard()), (None, None), "{what}");
        assert_eq!(rig.client.next_timeout(), due, "{what}");
        let out = rig.answer(&rig.success(&request, 3600));
        assert!(matches!(out[..], [Output::Answering, Output::Granted(FLOW, _)]), "{what}: {out:?}");
        assert_eq!(rig.client.ignored(), 1, "{what}");
    }
}

/// RFC 6887 §13.1: without the option in the request there is none in the answer.
#[test]
fn an_uninvited_third_party_is_not_believed() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, want());
    let mut response = rig.success(&request, 3600);
    response.options.push(PcpOption::ThirdParty(LAN_HOST.to_ipv6_mapped()));
    assert_eq!(rig.answer(&response), []);
    assert_eq!(rig.client.ignored(), 1);
}

/// RFC 6887 §11.4: an answer is judged by what was asked, not by the external port; the asker compares (§13.2).
#[test]
fn another_external_port_is_reported_as_it_came() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, want());
    let mut response = rig.success(&request, 3600);
    let Body::Map(map) = &mut response.body else { unreachable!() };
    map.external_port = 8081;
    rig.answer(&response);
    assert_eq!(rig.client.grant(FLOW).unwrap().external, SocketAddrV4::new(EXTERNAL, 8081));
}

/// RFC 6887 §14.2: an unsolicited MAP response is an ordinary one.
#[test]
fn a_mapping_update_is_a_renewal() {
    let (mut rig, request) = Rig::holding(want(), 3600);
    rig.now = 5000;
    let mut update = rig.success(&request, 600);
    let Body::Map(map) = &mut update.body else { unreachable!() };
    map.external_port = 9090;
    let since = Instant::from_secs(5);
    let grant =
        Grant { external: SocketAddrV4::new(EXTERNAL, 9090), lifetime: Duration::from_secs(600), since };
    assert_eq!(rig.answer(&update), [Output::Granted(FLOW, grant)]);
}

// Filters

const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// The prefix lengths of a request's FILTERs.
fn filters(request: &Request) -> Vec<u8> {
    let filter = |option: &PcpOption| match option {
        PcpOption::Filter(filter) => Some(filter.prefix_len),
        _ => None,
    };
    request.options.iter().filter_map(filter).collect()
}

/// RFC 6887 §13.3: filters of an earlier life are dropped by the first request for that mapping, and it is known before it is
/// sent that there may be some; once the server has confirmed that, and for other mappings, there is no more to drop.
#[test]
fn filters_of_an_earlier_life_are_dropped() {
    let known = Filtered {
        source: Some(IpAddr::V4(SOURCE)),
        third_party: None,
        protocol: Protocol::TCP,
        internal_port: 8080,
    };
    for (remote_peer, first) in [(None, &[0][..]), (Some(PEER), &[0, 128])] {
        let mut rig = Rig::new();
        rig.client.set_filters(Filters::restored([known]));
        let other = rig.ask(FlowId(2), Want { internal_port: 8081, ..endless() });
        assert_eq!(filters(&other), [] as [u8; 0]);
        let ask = Input::Ask(FLOW, Want { remote_peer, ..endless() });
        rig.client.handle_input(Instant::default(), ask, &mut *rig.entropy);
        assert_eq!(rig.client.poll_output(), Some(Output::Filtered(known)), "stored, then sent");
        let request = only_sent(&rig.drain());
        assert_eq!(filters(&request), first);
        // A late answer to what an earlier life has sent confirms nothing.
        let mut late = rig.success(&request, 3600);
        late.options.retain(|option| !matches!(option, PcpOption::Filter(filter) if filter.prefix_len == 0));
        let granted = rig.answer(&late).iter().any(|output| matches!(output, Output::Granted(..)));
        assert!(granted, "it stands");
        let mut again = sent(&rig.run(1000));
        again.retain(|(_, request)| map_of(request).internal_port == 8080);
        assert_eq!(
            again.len(),
            usize::from(remote_peer.is_some()),
            "a server that passes filters over has none"
        );
        assert!(again.iter().all(|(_, request)| filters(request) == first));
        rig.answer(&rig.success(&request, 3600));
        let renewed = sent(&rig.run(2_250_000));
        let renewed = renewed.iter().map(|(_, request)| filters(request)).next_back();
        assert_eq!(renewed.as_deref(), Some(&first[1..]), "once is enough");
    }
}

/// What a server without one option or the other is asked, step by step: only a refusal that is about the filters ends the
/// attempt to drop them, and a mapping that stands is not lost by it.
#[test]
fn refusals_while_filters_are_dropped() {
    let known = Filtered {
        source: Some(IpAddr::V4(SOURCE)),
        third_party: None,
        protocol: Protocol::TCP,
        internal_port: 8080,
    };
    let unsupported = ResultCode::UNSUPP_OPTION;
    // Whether a request has PREFER_FAILURE, and its filters.
    type Requests = &'static [(bool, &'static [u8])];
    let rows: [(ResultCode, Requests, Option<Ipv4Addr>); 4] = [
        // Without PREFER_FAILURE the server drops them.
        (unsupported, &[(true, &[0]), (false, &[0])], None),
        // It knows no FILTER: so there are none, and PREFER_FAILURE was not the fault.
        (unsupported, &[(true, &[0]), (false, &[0]), (true, &[])], None),
        // It knows FILTER, but not how to drop them.
        (unsupported, &[(true, &[0, 128]), (false, &[0, 128]), (true, &[128])], Some(PEER)),
        (ResultCode::EXCESSIVE_REMOTE_PEERS, &[(true, &[0, 128]), (true, &[128])], Some(PEER)),
    ];
    for (result, requests, remote_peer) in rows {
        let mut rig = Rig::new();
        rig.client.set_filters(Filters::restored([known]));
        let want = Want { remote_peer, ..want() };
        let mut request = rig.ask(FLOW, want);
        for (nth, &(strict, prefixes)) in requests.iter().enumerate() {
            let carries = request.options.contains(&PcpOption::PreferFailure);
            assert_eq!((carries, filters(&request)), (strict, prefixes.to_vec()), "{result}, request {nth}");
            if nth + 1 < requests.len() {
                let refused = rig.error(&request, result, 1800);
                let out = rig.answer(&refused);
                let sent = out.iter().find_map(|output| match output {
                    Output::Transmit(bytes) => Request::parse(bytes).ok(),
                    _ => None,
                });
                request = sent.unwrap_or_else(|| panic!("{out:?}"));
                // A copy of that refusal comes late: it is not about the request that lacks what was refused.
                assert_eq!(rig.answer(&refused), [], "{result}, request {nth}");
            }
        }
        let out = rig.answer(&rig.success(&request, 3600));
        assert!(matches!(out.last(), Some(Output::Granted(..))), "{out:?}");
    }
}

/// A late answer to a request that dropped filters before another remote peer was let in says nothing of that one.
#[test]
fn an_answer_counts_for_the_filters_that_it_repeats() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, Want { remote_peer: Some(PEER), ..endless() });
    rig.answer(&rig.success(&request, 3600));
    let second = only_sent(&rig.input(Input::Filter(FLOW, Some(Ipv4Addr::new(203, 0, 113, 10)))));
    let third = only_sent(&rig.input(Input::Filter(FLOW, Some(Ipv4Addr::new(203, 0, 113, 11)))));
    rig.answer(&rig.success(&second, 3600));
    let to = rig.now + 1500;
    let again = sent(&rig.run(to));
    assert_eq!(again.iter().map(|(_, request)| request).collect::<Vec<_>>(), [&third], "it is repeated");
    rig.answer(&rig.success(&third, 3600));
    let to = rig.now + 60_000;
    assert_eq!(sent(&rig.run(to)), []);
}

/// The same for an address of the router that it has had before; a third party's mapping is the same whoever asks.
#[test]
fn filters_of_an_earlier_address_are_dropped() {
    let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));
    for third_party in [None, Some(LAN_HOST)] {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, Want { third_party, remote_peer: Some(PEER), ..endless() });
        rig.answer(&rig.success(&request, 3600));
        let after_move = |rig: &mut Rig, source| {
            rig.input(Input::Source(source));
            let to = rig.now + 5000;
            let request = sent(&rig.run(to)).pop().expect("it is asked for again").1;
            rig.answer(&rig.success(&request, 3600));
            filters(&request)
        };
        assert_eq!(after_move(&mut rig, elsewhere), [128], "the server there has none");
        let dropped = only_sent(&rig.input(Input::Filter(FLOW, None)));
        assert_eq!(filters(&dropped), [0]);
        rig.answer(&rig.success(&dropped, 3600));
        let back = after_move(&mut rig, IpAddr::V4(SOURCE));
        assert_eq!(back, if third_party.is_none() { vec![0] } else { vec![] });
        assert_eq!(after_move(&mut rig, elsewhere), [] as [u8; 0]);
    }
}

/// A request with a filter of which each copy was refused leaves none; one whose first copy may have got through may have.
#[test]
fn a_refusal_leaves_no_filters_behind() {
    for copies in [1, 2] {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, Want { remote_peer: Some(PEER), ..endless() });
        if copies == 2 {
            assert_eq!(sent(&rig.run(1000)).len(), 1);
        }
        let refused = rig.answer(&rig.error(&request, ResultCode::NETWORK_FAILURE, 30));
        assert!(matches!(refused[..], [Output::Answering, Output::Refused(..)]), "{refused:?}");
        let next = rig.ask(FlowId(2), endless());
        assert_eq!(filters(&next), if copies == 1 { vec![] } else { vec![0] });
    }
}

// Epoch and announcements

/// A rig that holds four mappings of one day, and their first requests.
fn four_mappings() -> (Rig, Vec<Request>) {
    let mut rig = Rig::new();
    let mut requests = Vec::new();
    for n in 0..4 {
        let port = 8000 + u16::try_from(n).unwrap();
        let strict = n != 3;
        let request = rig.ask(
            FlowId(n),
            Want {
                internal_port: port,
                external_port: port,
                ..with(Terms { prefer_failure: strict, ..extended(None) })
            },
        );
        rig.answer(&rig.success(&request, 86_400));
        requests.push(request);
    }
    (rig, requests)
}

/// What the client sends for each mapping after a loss: the first request with the assigned values.
fn asked_again(first: &Request) -> Request {
    let map = map_of(first);
    Request { body: Body::Map(MapData { external_addr: EXTERNAL.to_ipv6_mapped(), ..map }), ..first.clone() }
}

/// The requests among the outputs by internal port, without repetitions.
fn by_port(outputs: &[(u64, Output)]) -> Vec<Request> {
    let mut requests: Vec<Request> = sent(outputs).into_iter().map(|(_, request)| request).collect();
    requests.sort_by_key(|request| map_of(request).internal_port);
    requests.dedup();
    requests
}

/// RFC 6887 §8.5: an epoch that fits says nothing.
#[test]
fn an_epoch_in_range_changes_nothing() {
    let (mut rig, requests) = four_mappings();
    rig.now = 100_000;
    let due = rig.client.next_timeout();
    for (multicast, epoch) in [(true, 1100), (false, 1102), (true, 1101)] {
        let bytes = rig.announce(epoch);
        let input =
            if multicast { Input::Multicast(server(), &bytes) } else { Input::Datagram(server(), &bytes) };
        assert_eq!(rig.input(input), [], "epoch {epoch}");
    }
    assert_eq!(rig.client.next_timeout(), due);
    assert_eq!(rig.answer(&rig.success(&requests[0], 86_400)).len(), 1);
}

/// RFC 6887 §8.5, §14.1.3, decision 16 and R-38: a lost state is made anew within recovery_wait, by the same nonces, the assigned
/// values, and PREFER_FAILURE where the owner counts on the port. The mapping whose answer told it is not asked again.
#[test]
fn a_lost_state_is_made_anew() {
    for by_announcement in [true, false] {
        let (mut rig, requests) = four_mappings();
        rig.now = 100_000;
        rig.epoch = 0; // the server lost its state 100 s ago
        let expected = if by_announcement {
            let bytes = rig.announce(100);
            assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [Output::StateLost]);
            vec![0, 1, 2, 3]
        } else {
            let out = rig.answer(&rig.success(&requests[2], 86_400));
            assert!(matches!(out[..], [Output::StateLost, Output::Granted(FlowId(2), _)]), "{out:?}");
            vec![0, 1, 3]
        };
        let asked = by_port(&rig.run(105_000));
        let expected: Vec<Request> = expected.iter().map(|&n: &usize| asked_again(&requests[n])).collect();
        assert_eq!(asked, expected, "by announcement: {by_announcement}");
        assert_eq!(asked.last().unwrap().options, [], "the AddAnyPortMapping one");
        for request in &asked {
            let out = rig.answer(&rig.success(request, 86_400));
            assert!(matches!(out.last(), Some(Output::Granted(..))), "{out:?}");
        }
        assert_eq!(rig.run(1_000_000), [], "and that is that");
    }
}

/// A server that restarts within seconds of its start shows nothing in its epoch (RFC 6887 §8.5 leaves 2 s of margin). But
/// it announces only after a loss (§14.1.2), and one that is younger than a mapping has lost it.
#[test]
fn an_announcement_by_a_server_younger_than_a_mapping_is_a_loss() {
    let mut rig = Rig::new();
    rig.epoch = 0;
    let request = rig.ask(FLOW, endless());
    rig.answer(&rig.success(&request, 3600));
    rig.now = 1_001;
    let bytes = rig.announce(0);
    assert_eq!(rig.input(Input::Datagram(server(), &bytes)), [], "an ordinary answer within the margin");
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [Output::StateLost]);
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [], "and its repetition says no more");
    assert_eq!(by_port(&rig.run(8_000)), [asked_again(&request)]);
}

/// A recovery that is not answered is repeated on the schedule of the RFC.
#[test]
fn recovery_is_repeated() {
    let (mut rig, _) = Rig::holding(endless(), 3600);
    rig.now = 100_000;
    let bytes = rig.announce(0);
    rig.input(Input::Datagram(server(), &bytes));
    let asked = sent(&rig.run(200_000));
    assert_schedule(asked[0].0, 3000, &asked[1..]);
    assert!(asked.len() >= 4);
}

/// Recovery refused for a passing reason: the mapping counts as standing until its lifetime ends.
#[test]
fn a_refused_recovery_is_tried_again() {
    let (mut rig, _) = Rig::holding(endless(), 3600);
    rig.now = 100_000;
    rig.epoch = 0;
    let bytes = rig.announce(100);
    rig.input(Input::Datagram(server(), &bytes));
    let (_, request) = sent(&rig.run(105_000)).remove(0);
    let out = rig.answer(&rig.error(&request, ResultCode::NETWORK_FAILURE, 30));
    assert_eq!(out, [Output::RenewalRefused(FLOW, ResultCode::NETWORK_FAILURE)]);
    let (at, again) = sent(&rig.run(3_500_000)).remove(0);
    assert!((1_800_000..2_250_000).contains(&at), "{at}");
    assert_eq!(map_of(&again).nonce, map_of(&request).nonce);
}

/// A recovery that has to wait (at most one in 10 s) comes all the same before the mapping ends.
#[test]
fn recovery_comes_before_the_end() {
    for seed in 0..20 {
        let mut rig = Rig::with_seed(seed);
        let request = rig.ask(FLOW, endless());
        rig.answer(&rig.success(&request, 3600));
        rig.run(100_000);
        rig.epoch = 0;
        let bytes = rig.announce(100);
        assert_eq!(rig.input(Input::Datagram(server(), &bytes)), [Output::StateLost]);
        let (_, again) = sent(&rig.run(105_000)).remove(0);
        rig.answer(&rig.success(&again, 6)); // it ends at 111 s
        rig.run(106_000);
        let bytes = rig.announce(5000);
        assert_eq!(rig.input(Input::Datagram(server(), &bytes)), [Output::StateLost]);
        assert_eq!(sent(&rig.run(108_500)).len(), 1, "seed {seed}: not at 110 s or later");
        assert!(rig.client.has(FLOW));
    }
}

/// Decision 16: after the wait at most four requests are unanswered at once, those whose owner asked last first.
#[test]
fn decision_16_four_in_flight_the_most_recently_used_first() {
    let mut rig = Rig::new();
    for n in 1..=10 {
        let port = 8000 + u16::try_from(n).unwrap();
        let want = Want { internal_port: port, external_port: port, ..endless() };
        let request = rig.ask(FlowId(n), want);
        rig.answer(&rig.success(&request, 86_400));
        rig.run(n * 1000);
    }
    rig.input(Input::Extend(FlowId(3), extended(None))); // its owner is the last one who asked
    rig.run(20_000);
    rig.epoch = 0;
    let bytes = rig.announce(20);
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [Output::StateLost]);
    let mut waiting: Vec<Request> = sent(&rig.run(25_000)).into_iter().map(|(_, request)| request).collect();
    let mut order: Vec<u16> = waiting.iter().map(|request| map_of(request).internal_port).collect();
    assert_eq!(order, [8003, 8010, 8009, 8008], "no more before one is answered");
    while let Some(request) = waiting.pop() {
        let out = rig.answer(&rig.success(&request, 86_400));
        let next: Vec<Request> = out
            .iter()
            .filter_map(|output| match output {
                Output::Transmit(bytes) => Some(Request::parse(bytes).unwrap()),
                _ => None,
            })
            .collect();
        assert!(next.len() <= 1, "one for one");
        order.extend(next.iter().map(|request| map_of(request).internal_port));
        waiting.extend(next);
    }
    assert_eq!(order, [8003, 8010, 8009, 8008, 8007, 8006, 8005, 8004, 8002, 8001]);
    assert_eq!(sent(&rig.run(rig.now + 60_000)).len(), 0, "each once");
}

/// Security policy: recovery at most every 10 s; a server whose epochs make no sense causes no storm.
#[test]
fn recovery_is_bounded() {
    let (mut rig, _) = four_mappings();
    let mut losses = 0;
    let mut asked = 0;
    for second in 1..=60 {
        let out = rig.run(second * 1000);
        for (_, request) in sent(&out) {
            asked += 1;
            let answer = rig.success(&request, 86_400); // with the first epoch again, to make it worse
            losses += rig.answer(&answer).iter().filter(|output| **output == Output::StateLost).count();
        }
        let bytes = rig.announce(if second % 2 == 0 { 5_000_000 } else { 0 });
        losses +=
            rig.input(Input::Multicast(server(), &bytes)).iter().filter(|o| **o == Output::StateLost).count();
    }
    assert!((2..=7).contains(&losses), "{losses}");
    assert!((8..=7 * 4).contains(&asked), "{asked}");
}

/// Security policy: an announcement counts only from the server's address and port.
#[test]
fn announcements_of_others_are_ignored() {
    let (mut rig, _) = four_mappings();
    rig.now = 100_000;
    let due = rig.client.next_timeout();
    let bytes = rig.announce(0);
    for from in ["192.0.2.2:5351", "192.0.2.1:5350"] {
        assert_eq!(rig.input(Input::Multicast(from.parse().unwrap(), &bytes)), []);
    }
    let map =
        Response { body: Body::Map(map_of(&rig.ask(FLOW, want()))), ..Response::parse(&bytes).unwrap() };
    assert_eq!(rig.input(Input::Multicast(server(), &map.to_bytes())), [], "no MAP response by multicast");
    assert_eq!(rig.client.ignored(), 3);
    rig.input(Input::Forget(FLOW));
    assert_eq!(rig.client.next_timeout(), due);
}

/// another address of ours; the server knows none of our mappings under it.
#[test]
fn a_new_source_address_makes_everything_anew() {
    let (mut rig, requests) = four_mappings();
    rig.now = 100_000;
    assert_eq!(rig.input(Input::Source(IpAddr::V4(SOURCE))), [], "the same address: they stand");
    assert_eq!(rig.run(110_000), []);
    let new = Ipv4Addr::new(192, 0, 2, 77);
    assert_eq!(rig.input(Input::Source(IpAddr::V4(new))), []);
    let asked = by_port(&rig.run(115_000));
    let expected: Vec<Request> = requests
        .iter()
        .map(|request| Request { client_addr: new.to_ipv6_mapped(), ..asked_again(request) })
        .collect();
    assert_eq!(asked, expected);
    // Another epoch is no loss: it may be another server behind the same address.
    rig.epoch = 7;
    let out = rig.answer(&rig.success(&expected[0], 600));
    assert!(!out.contains(&Output::StateLost), "{out:?}");
    assert!(matches!(out.last(), Some(Output::Granted(..))), "{out:?}");
}

// Versions

/// RFC 6887 §9 and pcp.md 10: a server of another version, PCP or NAT-PMP, in either layout: whoever waits hears it,
/// nothing is asked for the lifetime (30 s to 30 min), then PCP is tried again.
#[test]
fn a_server_of_another_version() {
    let pcp_v3 = |lifetime: u32| {
        let mut bytes = vec![3, 0x81, 0, 1];
        bytes.extend(lifetime.to_be_bytes());
        bytes.extend([0; 16]);
        bytes
    };
    for (bytes, version, wait) in [
        (pcp_v3(1800), 3, 1800),
        (pcp_v3(5), 3, 30),
        (pcp_v3(u32::MAX), 3, 1800),
        (vec![0, 0, 0, 1, 0, 0, 0, 9], 0, 30),   // RFC 6886's figure
        (vec![0, 129, 0, 1, 0, 0, 0, 9], 0, 30), // the common daemon
    ] {
        let mut rig = Rig::new();
        rig.ask(FLOW, want());
        rig.ask(FlowId(2), Want { internal_port: 1, ..want() });
        let refused = |flow| Output::Refused(flow, ResultCode::UNSUPP_VERSION, Duration::from_secs(wait));
        let out = rig.datagram(&bytes);
        assert_eq!(out, [refused(FLOW), refused(FlowId(2)), Output::VersionRefused(version)]);
        assert_eq!(rig.run(wait * 1000 - 1), [], "{bytes:?}");
        let held = Output::Refused(FLOW, ResultCode::UNSUPP_VERSION, Duration::from_millis(1));
        assert_eq!(rig.input(Input::Ask(FLOW, want())), [held]);
        rig.now += 1;
        rig.ask(FLOW, want());
    }
}

/// Security policy: no downgrade against better knowledge, and none that was not asked for.
#[test]
fn a_server_that_has_spoken_pcp_is_not_believed_to_be_another() {
    let nat_pmp = [0, 0, 0, 1, 0, 0, 0, 9];
    let mut rig = Rig::new();
    assert_eq!(rig.datagram(&nat_pmp), [], "nothing was asked");
    assert_eq!(rig.client.ignored(), 1);

    let (mut rig, _) = Rig::holding(endless(), 86_400);
    rig.ask(FlowId(2), Want { internal_port: 1, ..want() });
    rig.now = 3_599_999;
    assert_eq!(rig.datagram(&nat_pmp), []);
    assert_eq!(rig.client.ignored(), 1);
    rig.now = 3_600_000;
    let refused = Output::Refused(FlowId(2), ResultCode::UNSUPP_VERSION, Duration::from_secs(30));
    assert_eq!(rig.datagram(&nat_pmp), [refused, Output::VersionRefused(0)]);
    assert!(rig.client.grant(FLOW).is_some(), "what stands is kept");
}

/// A refusal that names our own version makes no sense.
#[test]
fn version_2_refused_by_version_2_is_ignored() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, want());
    assert_eq!(rig.answer(&rig.error(&request, ResultCode::UNSUPP_VERSION, 30)), []);
    assert_eq!(rig.client.ignored(), 1);
}

/// RFC 6887 §7.4 and pcp.md 7: after NO_RESOURCES no new mapping is asked for; those that stand are renewed.
#[test]
fn no_resources_holds_new_mappings_back() {
    let (mut rig, _) = Rig::holding(endless(), 400);
    let request = rig.ask(FlowId(2), Want { internal_port: 1, ..want() });
    let refused = |flow, secs| Output::Refused(flow, ResultCode::NO_RESOURCES, Duration::from_secs(secs));
    assert_eq!(rig.answer(&rig.error(&request, ResultCode::NO_RESOURCES, 300)), [refused(FlowId(2), 300)]);
    rig.now = 100_000;
    assert_eq!(rig.input(Input::Ask(FlowId(3), want())), [refused(FlowId(3), 200)]);
    let renewal = sent(&rig.run(260_000)).remove(0).1;
    // To a renewal it means the same.
    rig.answer(&rig.error(&renewal, ResultCode::NO_RESOURCES, 300));
    rig.now = 310_000;
    assert_eq!(rig.input(Input::Ask(FlowId(3), want())), [refused(FlowId(3), 250)]);
    rig.now = 560_000;
    rig.ask(FlowId(3), want());
}

// Deleting

/// RFC 6887 §15.1: lifetime 0, suggested fields zero, the same nonce, neither FILTER nor PREFER_FAILURE, THIRD_PARTY
/// as before; repeated until it is confirmed.
#[test]
fn a_delete_is_repeated_until_it_is_confirmed() {
    let want = Want { third_party: Some(LAN_HOST), remote_peer: Some(EXTERNAL), ..want() };
    let (mut rig, request) = Rig::holding(want, 3600);
    rig.now = 10_000;
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    let map = MapData { external_port: 0, external_addr: NO_ADDR_V4, ..map_of(&request) };
    let options = vec![PcpOption::ThirdParty(LAN_HOST.to_ipv6_mapped())];
    let expected = Request { lifetime: 0, body: Body::Map(map), options, ..request };
    assert_eq!(delete, expected);
    assert_eq!(rig.input(Input::Delete(FLOW)), [], "it is on its way");
    let again = sent(&rig.run(60_000));
    assert_eq!((again[0].0, again[1].0), (11_000, 13_000), "decision 1: somebody waits");
    assert!(again.iter().all(|(_, request)| *request == expected));
    assert_schedule(13_000, 3000, &again[2..]);
    let confirmed =
        Response { lifetime: 0, body: Body::Map(map), ..rig.error(&expected, ResultCode::SUCCESS, 0) };
    let out = rig.answer(&confirmed);
    assert_eq!(out.last(), Some(&Output::Deleted(FLOW)));
    assert!(!rig.client.has(FLOW));
    assert_eq!(rig.run(10_000_000), []);
}

/// What is never confirmed ends with its lifetime; without a grant it is tried for 30 s.
#[test]
fn an_unconfirmed_delete_ends_with_the_lifetime() {
    let (mut rig, _) = Rig::holding(want(), 100);
    rig.now = 10_000;
    rig.input(Input::Delete(FLOW));
    let out = rig.run(1_000_000);
    assert_eq!(out.last(), Some(&(100_000, Output::Deleted(FLOW))));
    assert_eq!(rig.client.next_timeout(), None);

    let mut rig = Rig::new();
    rig.ask(FLOW, want());
    rig.input(Input::Delete(FLOW));
    let out = rig.run(1_000_000);
    assert_eq!(out.last(), Some(&(30_000, Output::Deleted(FLOW))));
}

/// T-15, pcp.md 9: a server may keep a deleted mapping for its idle time and say so; but a late answer to the request
/// before looks the same, and is not believed at first.
#[test]
fn a_delete_answered_with_a_lifetime() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, want());
    rig.input(Input::Delete(FLOW));
    assert_eq!(rig.answer(&rig.success(&request, 3600)), [Output::Answering], "the answer to the request");
    assert!(rig.client.has(FLOW));
    assert_eq!(sent(&rig.run(1000)).len(), 1);
    assert_eq!(rig.answer(&rig.success(&request, 120)), [Output::Deleted(FLOW)]);
}

/// R-29, T-15, K-17: NO_RESOURCES is what the most deployed server says when there is nothing to delete. Any other refusal
/// leaves the mapping as it was.
#[test]
fn a_refused_delete() {
    let (mut rig, request) = Rig::holding(endless(), 400);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    let late = rig.error(&request, ResultCode::NETWORK_FAILURE, 30);
    assert_eq!(rig.answer(&late), [], "it echoes PREFER_FAILURE: the answer to the request before");
    assert_eq!(rig.answer(&rig.error(&delete, ResultCode::NO_RESOURCES, 30)), [Output::Deleted(FLOW)]);
    rig.ask(FLOW, want()); // and it is no reason to hold back

    let (mut rig, _) = Rig::holding(endless(), 400);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    let out = rig.answer(&rig.error(&delete, ResultCode::NOT_AUTHORIZED, 400));
    assert_eq!(out, [Output::DeleteRefused(FLOW, ResultCode::NOT_AUTHORIZED)]);
    let (at, renewal) = sent(&rig.run(300_000)).remove(0);
    assert!((200_000..250_000).contains(&at), "{at}: it is renewed as before");
    assert_eq!(map_of(&renewal).external_port, 8080);

    // The server has lost its state meanwhile, and then refuses to delete what it does not have: it is asked for again.
    let (mut rig, _) = Rig::holding(endless(), 3600);
    rig.run(100_000);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    rig.epoch = 0;
    let bytes = rig.announce(100);
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [Output::StateLost]);
    let out = rig.answer(&rig.error(&delete, ResultCode::NOT_AUTHORIZED, 400));
    assert_eq!(out, [Output::DeleteRefused(FLOW, ResultCode::NOT_AUTHORIZED)]);
    let again = sent(&rig.run(106_000));
    assert_eq!((again[0].1.lifetime, map_of(&again[0].1).external_port), (u32::MAX, 8080));

    let mut rig = Rig::new();
    rig.ask(FLOW, want());
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    let out = rig.answer(&rig.error(&delete, ResultCode::CANNOT_PROVIDE_EXTERNAL, 30));
    assert_eq!(out, [Output::Answering, Output::Deleted(FLOW)], "nothing was granted, so nothing is left");
}

#[test]
fn a_forgotten_flow_is_silent() {
    let (mut rig, request) = Rig::holding(want(), 400);
    assert_eq!(rig.input(Input::Forget(FLOW)), []);
    assert_eq!(rig.client.next_timeout(), None);
    assert_eq!(rig.answer(&rig.success(&request, 400)), []);
    for input in
        [Input::Delete(FLOW), Input::Extend(FLOW, extended(None)), Input::Forget(FLOW), Input::Timeout]
    {
        assert_eq!(rig.input(input), []);
    }
}

// Silence

/// Four datagrams without an answer over some seconds: silent, told once. Many at once are no silence.
#[test]
fn silence_takes_time() {
    let mut rig = Rig::new();
    for n in 0..20 {
        rig.ask(FlowId(n), Want { internal_port: 5000, ..want() });
    }
    assert_eq!(rig.client.is_answering(), None);
    let out = rig.run(20_000);
    let told: Vec<&(u64, Output)> = out.iter().filter(|(_, output)| *output == Output::Silent).collect();
    assert_eq!(told, [&(3000, Output::Silent)]);
    assert_eq!(rig.client.is_answering(), Some(false));
}

/// A server that answers again is asked soon for what was asked in vain, and hears nothing of what stands.
#[test]
fn an_answer_after_silence_nudges_what_waits() {
    let mut rig = Rig::new();
    let standing = rig.ask(FlowId(7), Want { internal_port: 7, ..endless() });
    rig.answer(&rig.success(&standing, 86_400));
    rig.ask(FLOW, want());
    let out = rig.run(300_000);
    assert!(out.iter().any(|(_, output)| *output == Output::Silent));
    let due = rig.client.next_timeout().unwrap();
    assert!(due > Instant::from_secs(310), "{due:?}");
    let bytes = rig.announce(rig.epoch + 300);
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [Output::Answering]);
    let asked = sent(&rig.run(301_000));
    assert_eq!(asked.len(), 1);
    assert_eq!(map_of(&asked[0].1).internal_port, 8080);
}

/// The same after an interruption of the link: the socket is a new one, the address the old one.
#[test]
fn a_new_socket_nudges_what_waits() {
    let mut rig = Rig::new();
    rig.ask(FLOW, Want { urgent: false, ..want() });
    rig.run(1_000_000);
    assert_eq!(rig.input(Input::Source(IpAddr::V4(SOURCE))), []);
    assert_eq!(sent(&rig.run(1_001_000)).len(), 1);
}

/// Without a socket nothing is sent, and silence says nothing of the server; timetables go on.
#[test]
fn a_closed_socket() {
    let (mut rig, _) = Rig::holding(endless(), 400);
    rig.ask(FlowId(2), Want { internal_port: 1, ..want() });
    assert_eq!(rig.input(Input::Closed), []);
    let out = rig.run(399_999);
    assert!(out.iter().all(|(_, output)| *output == Output::Unrenewed(FLOW)), "{out:?}");
    assert_eq!(rig.client.is_answering(), Some(true));
    assert_eq!(rig.run(400_000), [(400_000, Output::Lost(FLOW))]);
    rig.input(Input::Source(IpAddr::V4(SOURCE)));
    assert_eq!(sent(&rig.run(401_000)).len(), 1);
}

/// RFC 6887 §11.2.1 holds for what is nudged, too: renewals stay 4 s apart.
#[test]
fn nudged_renewals_keep_their_distance() {
    for seed in 0..20 {
        let mut rig = Rig::with_seed(seed);
        let request = rig.ask(FLOW, endless());
        rig.answer(&rig.success(&request, 3600));
        let mut last = 0;
        for second in 1..3500 {
            for (at, _) in sent(&rig.run(second * 1000)) {
                assert!(at - last >= 4000, "seed {seed}: {last} and {at}");
                last = at;
            }
            if second % 7 == 0 {
                rig.input(Input::Source(IpAddr::V4(SOURCE)));
            }
        }
        assert!(rig.client.has(FLOW));
    }
}
/// Deletes in turn after a silence: one answer does not let them all go.
#[test]
fn an_answer_after_a_silence_keeps_the_turns() {
    let mut rig = Rig::new();
    let mut requests = Vec::new();
    for n in 0..100_u16 {
        let request = rig.ask(
            FlowId(u64::from(n)),
            Want { internal_port: 6000 + n, external_port: 6000 + n, ..endless() },
        );
        let answer = rig.success(&request, 86_400);
        rig.answer(&answer);
        requests.push(request);
    }
    for n in 0..100 {
        rig.input(Input::DeleteInTurn(FlowId(n)));
    }
    rig.run(60_000);
    // The server is back: one answer.
    let announce = rig.announce(1060);
    rig.datagram(&announce);
    let sent = sent(&rig.run(61_500));
    assert!(sent.len() <= 12, "{} deletes within a second and a half, none answered", sent.len());
}

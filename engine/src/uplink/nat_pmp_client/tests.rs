//! The NAT-PMP client in virtual time: what it sends, when, and what it believes (RFC 6886; docs/spec/nat-pmp.md).

use super::*;
use crate::entropy::Entropy;

const SOURCE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const FLOW: FlowId = FlowId(1);

fn server() -> SocketAddr {
    "192.0.2.1:5351".parse().unwrap()
}

/// Rolls of nearly 0.
struct Lowest;

impl Entropy for Lowest {
    fn fill(&mut self, octets: &mut [u8]) {
        octets.fill(0);
    }

    fn derive(&self, _: &[u8]) -> [u8; 16] {
        [0; 16]
    }
}

/// TCP 8080 to 8080 for an hour, by a control point that waits.
fn want(port: u16) -> Want {
    Want {
        third_party: None,
        protocol: Protocol::TCP,
        internal_port: port,
        external_port: port,
        remote_peers: Vec::new(),
        terms: Terms {
            prefer_failure: true,
            lease_ends: Some(Instant::from_secs(3600)),
            longest: u32::MAX,
            description: "a game".to_owned(),
        },
        urgent: true,
    }
}

fn endless(port: u16) -> Want {
    let want = want(port);
    Want { terms: Terms { lease_ends: None, ..want.terms }, urgent: false, ..want }
}

struct Rig {
    client: NatPmpClient,
    /// Milliseconds.
    now: u64,
    /// When the gateway started.
    began: u64,
    sent: Vec<(u64, Vec<u8>)>,
    outputs: Vec<Output>,
}

impl Rig {
    /// One that has just begun to ask.
    fn new() -> Self {
        let client = NatPmpClient::new(Instant::default(), server(), SOURCE.into(), Duration::from_secs(5));
        let mut rig = Self { client, now: 0, began: 0, sent: Vec::new(), outputs: Vec::new() };
        rig.input(Input::Timeout);
        rig
    }

    /// One that knows the external address.
    fn told() -> Self {
        let mut rig = Self::new();
        rig.address(EXTERNAL);
        assert_eq!(rig.take(), [Output::Answering, Output::External(Some(EXTERNAL))]);
        rig.sent.clear();
        rig
    }

    fn at(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    fn input(&mut self, input: Input<'_>) {
        self.client.handle_input(Instant::from_millis(self.now), input, &mut Lowest);
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Transmit(bytes) => self.sent.push((self.now, bytes)),
                other => self.outputs.push(other),
            }
        }
    }

    fn take(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Requests of NAT-PMP that were sent since the last time, and when.
    fn requests(&mut self) -> Vec<(u64, Request)> {
        let sent = std::mem::take(&mut self.sent);
        sent.into_iter().filter_map(|(at, bytes)| Some((at, Request::parse(&bytes).ok()?))).collect()
    }

    fn run(&mut self, to: u64) {
        while let Some(at) = self.client.next_timeout().map(Instant::as_millis).filter(|&at| at <= to) {
            self.now = self.now.max(at);
            self.input(Input::Timeout);
        }
        self.now = to;
    }

    fn epoch(&self) -> u32 {
        u32::try_from((self.now - self.began) / 1000).unwrap()
    }

    fn hears(&mut self, response: &Response) {
        self.input(Input::Datagram(server(), &response.to_bytes()));
    }

    fn address(&mut self, addr: Ipv4Addr) {
        let (result, epoch) = (natpmp::ResultCode::SUCCESS, self.epoch());
        self.hears(&Response::ExternalAddress { result, epoch, addr });
    }

    fn mapped(&self, internal_port: u16, external_port: u16, lifetime: u32) -> Response {
        Response::Map {
            result: natpmp::ResultCode::SUCCESS,
            epoch: self.epoch(),
            protocol: Transport::Tcp,
            internal_port,
            external_port,
            lifetime,
        }
    }

    fn grants(&mut self, internal_port: u16, external_port: u16, lifetime: u32) {
        let response = self.mapped(internal_port, external_port, lifetime);
        self.hears(&response);
    }

    fn refuses(&mut self, internal_port: u16, result: u16) {
        let Response::Map { epoch, protocol, .. } = self.mapped(internal_port, 0, 0) else { unreachable!() };
        self.hears(&Response::Map {
            result: natpmp::ResultCode(result),
            epoch,
            protocol,
            internal_port,
            external_port: 0,
            lifetime: 0,
        });
    }

    fn granted(&self, port: u16, lifetime: u64) -> Output {
        self.granted_to(FLOW, port, lifetime)
    }

    fn granted_to(&self, flow: FlowId, port: u16, lifetime: u64) -> Output {
        let external = SocketAddr::from((EXTERNAL, port));
        Output::Granted(flow, Grant { external, lifetime: Duration::from_secs(lifetime), since: self.at() })
    }
}

fn map(internal_port: u16, external_port: u16, lifetime: u32) -> Request {
    Request::Map { protocol: Transport::Tcp, internal_port, external_port, lifetime }
}

/// Section 1's octets: TCP 8080 to 8080 for 7200 s, and the address that is asked for first.
#[test]
fn golden_requests() {
    let mut rig = Rig::new();
    assert_eq!(rig.sent, [(0, vec![0, 0])]);
    rig.address(EXTERNAL);
    rig.input(Input::Ask(FLOW, endless(8080)));
    assert_eq!(rig.sent[1].1, [0, 2, 0, 0, 0x1f, 0x90, 0x1f, 0x90, 0, 0, 0x1c, 0x20]);
    rig.now = 100_000;
    rig.input(Input::Datagram(server(), b"\x00\x82\x00\x00\x00\x00\x00\x64\x1f\x90\x1f\x90\x00\x00\x1c\x20"));
    assert_eq!(rig.take()[2..], [rig.granted(8080, 7200)]);
    assert_eq!((rig.client.server_epoch(), rig.client.ignored()), (Some(100), 0));
}

/// A grant is told with the external address, whichever comes first.
#[test]
fn no_grant_without_an_address() {
    let mut rig = Rig::new();
    rig.input(Input::Ask(FLOW, want(8080)));
    assert_eq!(rig.requests().len(), 2, "a control point waits");
    rig.grants(8080, 8080, 3600);
    assert_eq!(rig.take(), [Output::Answering]);
    assert_eq!((rig.client.grant(FLOW), rig.client.holds(FLOW), rig.client.has(FLOW)), (None, false, true));
    rig.address(EXTERNAL);
    assert_eq!(rig.take(), [Output::External(Some(EXTERNAL)), rig.granted(8080, 3600)]);
    assert!(rig.client.holds(FLOW));
    // A gateway that has none: whoever waits hears so, and what was given goes back.
    let mut rig = Rig::new();
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.grants(8080, 8080, 3600);
    let response = Response::ExternalAddress {
        result: natpmp::ResultCode::NETWORK_FAILURE,
        epoch: 0,
        addr: Ipv4Addr::UNSPECIFIED,
    };
    rig.hears(&response);
    let refused = Output::Refused(FLOW, ResultCode::NETWORK_FAILURE, ERROR_LIFETIME);
    assert_eq!(rig.take(), [Output::Answering, Output::External(None), refused.clone()]);
    assert_eq!(rig.requests().last().unwrap().1, map(8080, 0, 0));
    rig.grants(8080, 0, 0);
    assert_eq!(rig.take(), [Output::Deleted(FLOW)]);
    rig.input(Input::Ask(FLOW, want(8081)));
    rig.grants(8081, 8081, 3600);
    assert_eq!(rig.take(), [refused]);
    // It is asked again, and then all is well.
    rig.requests();
    rig.run(30_000);
    assert!(rig.requests().contains(&(30_000, Request::ExternalAddress)));
    rig.address(EXTERNAL);
    assert_eq!(rig.take().last(), Some(&Output::External(Some(EXTERNAL))));
}

/// §3.1: one request at a time; 250 ms, then twice as long each time, 64 s after the ninth. Who is asked in vain gives way to others
/// after four copies, and a control point to nobody.
#[test]
fn one_request_at_a_time() {
    let mut rig = Rig::told();
    rig.now = 1000;
    rig.input(Input::Ask(FLOW, endless(8080)));
    rig.run(1000 + 250 * 511 + 64_000 - 1);
    let sent: Vec<u64> = rig.requests().iter().map(|(at, _)| *at).collect();
    let gaps: Vec<u64> = sent.windows(2).map(|two| two[1] - two[0]).collect();
    assert_eq!(gaps, [250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000]);
    assert_eq!(rig.take(), [Output::Silent]);

    let mut rig = Rig::told();
    for (id, port) in [(1, 8080), (2, 8081), (3, 8082)] {
        rig.input(Input::Ask(FlowId(id), endless(port)));
    }
    rig.run(3749);
    let first = map(8080, 8080, 7200);
    assert!(rig.requests().iter().all(|(_, request)| *request == first));
    rig.run(3750);
    assert_eq!(rig.requests(), [(3750, map(8081, 8081, 7200))]);
    rig.grants(8081, 8081, 7200);
    assert_eq!(rig.requests(), [(3750, map(8082, 8082, 7200))], "the next one, at once");
    rig.input(Input::Ask(FlowId(4), want(9090)));
    assert_eq!(rig.requests(), [(3750, map(9090, 9090, 3597))], "a control point waits");
    rig.grants(9090, 9090, 3597);
    assert_eq!(rig.requests().len(), 1, "and the others go on");
    // A silent gateway is asked ever more slowly, however many wait.
    rig.run(60_000);
    rig.requests();
    rig.run(660_000);
    let sent = rig.requests().len();
    assert!((9..=12).contains(&sent), "{sent} in ten minutes");
    // It is there again: those who waited are asked at once.
    rig.hears(&Response::UnsupportedVersion { opcode: 0, epoch: rig.epoch() });
    assert_eq!(rig.requests().len(), 1);
}

/// §3.3: renewed from half the lifetime on with the mapped port, whatever was suggested; for what is left of a lease.
#[test]
fn renewals() {
    for (lifetime, due) in [(7200, 3_600_000), (60, 30_000)] {
        let mut rig = Rig::told();
        rig.input(Input::Ask(FLOW, endless(8080)));
        rig.grants(8080, 50_123, lifetime);
        rig.requests();
        rig.run(due - 1);
        assert_eq!(rig.requests(), []);
        rig.run(due);
        assert_eq!(rig.requests(), [(due, map(8080, 50_123, 7200))]);
        rig.grants(8080, 50_123, lifetime);
        assert_eq!(rig.take().last(), Some(&rig.granted(50_123, lifetime.into())));
        // In vain: again at three quarters, seven eighths …, and then it is over; perhaps not at the gateway.
        rig.run(due + u64::from(lifetime) * 1000);
        let outputs = rig.take();
        assert!(outputs.contains(&Output::Unrenewed(FLOW)) && outputs.contains(&Output::Lost(FLOW)));
        assert!(rig.requests().last().unwrap().1 == map(8080, 0, 0));
    }
    let mut rig = Rig::told();
    rig.input(Input::Ask(FLOW, want(8080)));
    assert_eq!(rig.requests(), [(0, map(8080, 8080, 3600))]);
    rig.grants(8080, 8080, 1800);
    rig.run(900_000);
    assert_eq!(rig.requests(), [(900_000, map(8080, 8080, 2700))]);
    rig.grants(8080, 8080, 2700);
    rig.run(3_600_000);
    assert_eq!((rig.requests(), rig.take().last()), (vec![], Some(&Output::Lost(FLOW))), "the lease is over");
}

/// §3.6: one-sided, with seven eighths of our time and 2 s to spare.
#[test]
fn the_clock_of_the_gateway() {
    for (epochs, elapsed, consistent) in [
        ((100, 180), 80, true),
        ((100, 168), 80, true),
        ((100, 167), 80, false),
        ((100, 5000), 80, true),
        ((100, 98), 0, true),
        ((100, 97), 0, false),
        ((u32::MAX, 0), 80, false),
    ] {
        let mut clock = Clock::default();
        assert!(clock.is_consistent(Instant::from_secs(1000), epochs.0));
        assert_eq!(
            clock.is_consistent(Instant::from_secs(1000 + elapsed), epochs.1),
            consistent,
            "{epochs:?}"
        );
    }
}

/// §3.7: after a restart everything is asked for again, in turn, with the mapped ports; and the address, and whether it speaks PCP
/// now.
#[test]
fn a_gateway_that_has_started_anew() {
    let mut rig = Rig::told();
    for (id, port) in [(1, 8080), (2, 8081), (3, 8082)] {
        rig.input(Input::Ask(FlowId(id), endless(port)));
        rig.grants(port, port + 1000, 7200);
        rig.run(rig.now + 1000);
    }
    rig.run(100_000);
    rig.took();
    let announcement = |rig: &Rig, addr| {
        let (result, epoch) = (natpmp::ResultCode::SUCCESS, rig.epoch());
        Response::ExternalAddress { result, epoch, addr }.to_bytes()
    };
    // §3.2.1: only what the gateway itself says.
    let foreign = announcement(&rig, Ipv4Addr::new(203, 0, 113, 66));
    rig.input(Input::Multicast("192.0.2.66:5351".parse().unwrap(), &foreign));
    assert_eq!((rig.take(), rig.client.ignored()), (vec![], 1));
    rig.began = 99_000;
    let bytes = announcement(&rig, EXTERNAL);
    rig.input(Input::Multicast("192.0.2.1:40000".parse().unwrap(), &bytes));
    assert_eq!((rig.take(), rig.client.ignored()), (vec![], 2));
    rig.input(Input::Multicast(server(), &bytes));
    assert_eq!(rig.take(), [Output::StateLost]);
    assert!(rig.sent.iter().any(|(_, bytes)| bytes[..2] == [2, 0]), "an ANNOUNCE of PCP");
    assert_eq!(rig.requests(), [(100_000, Request::ExternalAddress)]);
    rig.address(EXTERNAL);
    assert_eq!(rig.take(), [Output::External(Some(EXTERNAL))]);
    for (n, id) in [(0_u64, 3), (1, 2), (2, 1)] {
        let port = 8079 + u16::try_from(id).unwrap();
        assert_eq!(rig.requests(), [(100_000 + n, map(port, port + 1000, 7200))], "last used, first asked");
        rig.now += 1;
        rig.grants(port, port + 1000, 7200);
        assert_eq!(rig.take(), [rig.granted_to(FlowId(id), port + 1000, 7200)]);
    }
    // Another address: it is asked for by the socket, and all mappings are there.
    let other = Ipv4Addr::new(198, 51, 100, 8);
    let bytes = announcement(&rig, other);
    rig.input(Input::Multicast(server(), &bytes));
    assert_eq!((rig.take(), rig.requests()), (vec![], vec![(rig.now, Request::ExternalAddress)]));
    rig.address(other);
    let moved = rig.take();
    assert_eq!((moved.len(), &moved[0]), (4, &Output::External(Some(other))));
    assert!(rig.client.grant(FLOW).is_some_and(|grant| grant.external.ip() == other));
}

/// One that has started within seconds of its last start shows nothing in its clock (§3.6 leaves 2 s), but its announcement tells how
/// old it is: what it gave before is lost, and what it may have given before is asked for again without a word.
#[test]
fn a_gateway_that_starts_twice() {
    for (announced, outputs) in [(300, vec![]), (1_001, vec![Output::StateLost])] {
        let mut rig = Rig::told();
        rig.input(Input::Ask(FLOW, endless(8080)));
        rig.grants(8080, 9080, 7200);
        rig.run(announced);
        rig.took();
        rig.began = announced;
        let bytes =
            Response::ExternalAddress { result: natpmp::ResultCode::SUCCESS, epoch: 0, addr: EXTERNAL }
                .to_bytes();
        rig.input(Input::Multicast(server(), &bytes));
        rig.input(Input::Multicast(server(), &bytes));
        assert_eq!(rig.take(), outputs, "{announced} ms after the grant");
        assert_eq!(rig.requests(), [(announced, Request::ExternalAddress)]);
        rig.address(EXTERNAL);
        rig.run(announced + 10);
        assert_eq!(rig.requests(), [(announced, map(8080, 9080, 7200))]);
        rig.grants(8080, 9080, 7200);
        rig.input(Input::Multicast(server(), &bytes));
        rig.address(EXTERNAL);
        rig.run(announced + 30_000);
        assert_eq!(rig.requests(), [(announced + 10, Request::ExternalAddress)], "and no more");
    }
}

/// §3.4: internal port and protocol as they were, the rest 0, and never internal port 0, which would be everything.
#[test]
fn deletes() {
    let mut rig = Rig::told();
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.grants(8080, 8080, 3600);
    rig.took();
    rig.input(Input::Delete(FLOW));
    assert_eq!(rig.requests(), [(0, map(8080, 0, 0))]);
    // A late answer to the request before is none to this one.
    rig.grants(8080, 8080, 3600);
    assert_eq!((rig.take(), rig.client.ignored()), (vec![], 1));
    rig.run(250);
    assert_eq!(rig.requests(), [(250, map(8080, 0, 0))]);
    rig.grants(8080, 0, 0);
    assert_eq!((rig.take(), rig.client.has(FLOW)), (vec![Output::Deleted(FLOW)], false));
    rig.grants(8080, 0, 0);
    assert_eq!(rig.client.ignored(), 2, "nobody waits for it");

    // Refused: it stands, and is kept.
    let mut rig = Rig::told();
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.grants(8080, 8080, 3600);
    rig.input(Input::Delete(FLOW));
    rig.refuses(8080, 2);
    assert_eq!(rig.take()[1..], [Output::DeleteRefused(FLOW, ResultCode::NOT_AUTHORIZED)]);
    assert!(rig.client.holds(FLOW));
    // Not answered until it is over by itself.
    rig.input(Input::Delete(FLOW));
    rig.run(3_600_000);
    assert_eq!(rig.take().last(), Some(&Output::Deleted(FLOW)));
    // A port 0 is never asked for.
    rig.took();
    rig.input(Input::Ask(FlowId(2), want(0)));
    assert_eq!(
        (rig.take(), rig.requests()),
        (vec![Output::Refused(FlowId(2), ResultCode::UNSUPP_PROTOCOL, ERROR_LIFETIME)], vec![])
    );
}

/// N-5: the gateway has one mapping for an internal port, and tells that one whatever is suggested.
#[test]
fn another_external_port_waits_for_the_delete() {
    let mut rig = Rig::told();
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.grants(8080, 50_000, 3600);
    rig.input(Input::Delete(FLOW));
    rig.took();
    rig.input(Input::Ask(FlowId(2), want(8080)));
    assert_eq!((rig.requests(), rig.client.has(FlowId(2))), (vec![], true));
    rig.grants(8080, 0, 0);
    assert_eq!(rig.take(), [Output::Deleted(FLOW)]);
    assert_eq!(rig.requests(), [(0, map(8080, 8080, 3600))]);
    rig.grants(8080, 8080, 3600);
    assert_eq!(rig.take(), [rig.granted_to(FlowId(2), 8080, 3600)]);
    // The same one takes it over.
    rig.input(Input::Delete(FlowId(2)));
    rig.input(Input::Ask(FlowId(3), want(8080)));
    rig.grants(8080, 8080, 3600);
    assert_eq!(rig.take(), [Output::Deleted(FlowId(2)), rig.granted_to(FlowId(3), 8080, 3600)]);
}

/// Section 4's results; an unknown one is fatal for its request (§3.5). There are no third parties and no other protocols.
#[test]
fn refusals() {
    for (result, told) in [
        (2, ResultCode::NOT_AUTHORIZED),
        (3, ResultCode::NETWORK_FAILURE),
        (4, ResultCode::NO_RESOURCES),
        (77, ResultCode::NETWORK_FAILURE),
    ] {
        let mut rig = Rig::told();
        rig.input(Input::Ask(FLOW, want(8080)));
        rig.refuses(8080, result);
        assert_eq!(rig.take(), [Output::Refused(FLOW, told, ERROR_LIFETIME)]);
        assert!(!rig.client.has(FLOW));
    }
    let mut rig = Rig::told();
    rig.input(Input::Ask(FLOW, want(8080)));
    let rest = rig.sent.last().unwrap().1[4..].to_vec();
    rig.hears(&Response::UnsupportedOpcode { opcode: 2, rest });
    assert_eq!(rig.take(), [Output::Refused(FLOW, ResultCode::UNSUPP_OPCODE, ERROR_LIFETIME)]);
    // A renewal that is refused is tried again until its lifetime ends.
    let mut rig = Rig::told();
    rig.input(Input::Ask(FLOW, endless(8080)));
    rig.grants(8080, 8080, 1000);
    rig.run(500_000);
    rig.refuses(8080, 4);
    assert_eq!(rig.take().last(), Some(&Output::RenewalRefused(FLOW, ResultCode::NO_RESOURCES)));
    rig.run(1_000_000);
    assert_eq!(rig.take().last(), Some(&Output::Lost(FLOW)));

    let mut rig = Rig::told();
    let third = Want { third_party: Some(Ipv4Addr::new(10, 0, 0, 5).into()), ..want(8080) };
    let own = Want { third_party: Some(SOURCE.into()), ..want(8081) };
    let sctp = Want { protocol: Protocol::SCTP, ..want(8082) };
    for (id, want) in [(1, third), (2, own), (3, sctp)] {
        rig.input(Input::Ask(FlowId(id), want));
    }
    let refused = |id, result| Output::Refused(FlowId(id), result, ERROR_LIFETIME);
    assert_eq!(rig.take(), [refused(1, ResultCode::UNSUPP_OPTION), refused(3, ResultCode::UNSUPP_PROTOCOL)]);
    assert_eq!(rig.requests(), [(0, map(8081, 8081, 3600))]);
}

/// What repeats or contradicts itself, comes from elsewhere or makes no sense changes nothing.
#[test]
fn what_is_never_believed() {
    let mut rig = Rig::told();
    rig.input(Input::Ask(FLOW, want(8080)));
    let good = rig.mapped(8080, 8080, 3600).to_bytes();
    for (what, from, bytes) in [
        ("from elsewhere", "192.0.2.66:5351", good.clone()),
        ("from another port", "192.0.2.1:5350", good.clone()),
        ("a request", "192.0.2.1:5351", map(8080, 8080, 3600).to_bytes()),
        ("cut short", "192.0.2.1:5351", good[..15].to_vec()),
        ("another internal port", "192.0.2.1:5351", rig.mapped(8081, 8080, 3600).to_bytes()),
        ("for no time", "192.0.2.1:5351", rig.mapped(8080, 8080, 0).to_bytes()),
        ("nothing", "192.0.2.1:5351", Vec::new()),
        ("PCP, cut short", "192.0.2.1:5351", vec![2, 0x80, 0, 0]),
    ] {
        let before = rig.client.ignored();
        rig.input(Input::Datagram(from.parse().unwrap(), &bytes));
        assert_eq!((rig.take(), rig.client.ignored()), (vec![], before + 1), "{what}");
    }
    let udp = Response::Map {
        result: natpmp::ResultCode::SUCCESS,
        epoch: 0,
        protocol: Transport::Udp,
        internal_port: 8080,
        external_port: 8080,
        lifetime: 3600,
    };
    rig.hears(&udp);
    assert_eq!(rig.take(), []);
    // No external port at all.
    rig.grants(8080, 0, 3600);
    assert_eq!(rig.take(), [Output::Refused(FLOW, ResultCode::NETWORK_FAILURE, ERROR_LIFETIME)]);
    // Twice, and then with another port: the first word counts.
    rig.input(Input::Ask(FLOW, want(8080)));
    for (port, believed) in [(8080, true), (8080, false), (50_000, false)] {
        rig.grants(8080, port, 3600);
        let told = if believed { vec![rig.granted(port, 3600)] } else { vec![] };
        assert_eq!(rig.take(), told);
    }
    // An error that nobody has asked for.
    rig.refuses(8080, 2);
    assert_eq!(rig.take(), []);
    // A lifetime that is too good.
    rig.input(Input::Confirm(FLOW));
    rig.grants(8080, 8080, u32::MAX);
    assert_eq!(rig.take(), [rig.granted(8080, 86_400)]);
}

/// RFC 6886 §1.1: PCP is tried again, with an ANNOUNCE, which changes nothing; once a minute at most.
#[test]
fn pcp_is_noticed() {
    let mut rig = Rig::told();
    let knocks = |rig: &mut Rig| {
        let sent = std::mem::take(&mut rig.sent);
        sent.iter().filter(|(_, bytes)| bytes[..2] == [2, 0]).count()
    };
    for n in 0..30 {
        rig.input(Input::Ask(FlowId(n), endless(8080 + u16::try_from(n).unwrap())));
        rig.grants(8080 + u16::try_from(n).unwrap(), 8080, 7200);
        rig.run(rig.now + 10_000);
    }
    assert_eq!(knocks(&mut rig), 4, "in 300 s");
    rig.took();
    rig.hears(&Response::UnsupportedVersion { opcode: 0, epoch: rig.epoch() });
    assert_eq!((rig.take(), rig.client.ignored()), (vec![], 0));
    rig.input(Input::Source(SOURCE.into()));
    rig.took();
    let announce = pcp::Response {
        result: ResultCode::SUCCESS,
        lifetime: 0,
        epoch: 5,
        body: Body::Announce,
        options: Vec::new(),
    };
    rig.input(Input::Datagram(server(), &announce.to_bytes()));
    assert_eq!(rig.take(), [Output::Speaks(UplinkProtocol::Pcp)]);
    // Unasked it is not believed, nor is one that says that it does not speak this version.
    rig.input(Input::Datagram(server(), &announce.to_bytes()));
    rig.input(Input::Source(SOURCE.into()));
    rig.took();
    let version = pcp::Response { result: ResultCode::UNSUPP_VERSION, ..announce.clone() };
    rig.input(Input::Datagram(server(), &version.to_bytes()));
    assert_eq!((rig.take(), rig.client.ignored()), (vec![], 2));
    // One that does not know ANNOUNCE speaks PCP, too.
    let unknown = pcp::Response { result: ResultCode::UNSUPP_OPCODE, lifetime: 1800, ..announce };
    rig.input(Input::Datagram(server(), &unknown.to_bytes()));
    assert_eq!(rig.take(), [Output::Speaks(UplinkProtocol::Pcp)]);
}

/// A gateway that has lost its address takes nobody's mapping away: what stands waits for the address, and who asks anew is refused.
#[test]
fn what_stands_outlives_a_lost_address() {
    let mut rig = Rig::told();
    rig.input(Input::AskInTurn(FLOW, endless(8080), Instant::default()));
    rig.grants(8080, 8080, 7200);
    rig.input(Input::AskInTurn(FlowId(2), endless(8081), Instant::default()));
    rig.run(10_000);
    rig.took();
    rig.input(Input::Source(SOURCE.into()));
    let none = |rig: &Rig| Response::ExternalAddress {
        result: natpmp::ResultCode::SUCCESS,
        epoch: rig.epoch(),
        addr: Ipv4Addr::UNSPECIFIED,
    };
    let none = none(&rig);
    rig.hears(&none);
    rig.took();
    rig.input(Input::Confirm(FLOW));
    rig.input(Input::Hurry(FlowId(2)));
    for port in [8080, 8081] {
        rig.grants(port, port, 7200);
    }
    rig.input(Input::Ask(FlowId(3), want(8082)));
    rig.grants(8082, 8082, 3600);
    let told = rig.take();
    for id in [FLOW, FlowId(2)] {
        assert!(told.contains(&Output::RenewalRefused(id, ResultCode::NETWORK_FAILURE)), "{told:?}");
    }
    assert!(told.contains(&Output::Refused(FlowId(3), ResultCode::NETWORK_FAILURE, ERROR_LIFETIME)));
    assert!(rig.requests().iter().all(|(_, request)| ![map(8080, 0, 0), map(8081, 0, 0)].contains(request)));
}

/// Without a socket nothing is sent, whatever is heard from the group; with a new one it is asked.
#[test]
fn a_closed_socket() {
    let mut rig = Rig::told();
    rig.input(Input::Ask(FLOW, endless(8080)));
    rig.grants(8080, 8080, 7200);
    rig.run(100_000);
    rig.input(Input::Closed);
    rig.took();
    let (result, epoch) = (natpmp::ResultCode::SUCCESS, 0);
    let lost = Response::ExternalAddress { result, epoch, addr: EXTERNAL };
    rig.input(Input::Multicast(server(), &lost.to_bytes()));
    let pcp = pcp::Response {
        result: ResultCode::SUCCESS,
        lifetime: 0,
        epoch: 1,
        body: pcp::Body::Announce,
        options: Vec::new(),
    };
    rig.run(200_000);
    rig.input(Input::Multicast(server(), &pcp.to_bytes()));
    rig.run(3_000_000);
    assert_eq!(rig.sent, []);
    rig.input(Input::Source(SOURCE.into()));
    assert!(rig.sent.iter().any(|(_, bytes)| pcp::Request::parse(bytes).is_ok()));
}

/// A new socket, from another address: the gateway knows us by that, and no mapping is ours any more.
#[test]
fn another_address_of_ours() {
    let mut rig = Rig::told();
    rig.input(Input::Ask(FLOW, endless(8080)));
    rig.grants(8080, 8080, 7200);
    rig.took();
    rig.input(Input::Closed);
    rig.input(Input::Ask(FlowId(2), endless(8081)));
    rig.run(60_000);
    assert_eq!(rig.requests(), [], "nothing can be sent");
    rig.input(Input::Source(SOURCE.into()));
    rig.address(EXTERNAL);
    assert_eq!(rig.requests(), [(60_000, Request::ExternalAddress), (60_000, map(8081, 8081, 7200))]);
    rig.grants(8081, 8081, 7200);
    rig.input(Input::Source(Ipv4Addr::new(192, 0, 2, 11).into()));
    rig.address(EXTERNAL);
    rig.run(66_000);
    let asked: Vec<Request> = rig.requests().into_iter().map(|(_, request)| request).collect();
    assert!(asked.contains(&map(8080, 8080, 7200)) || asked.contains(&map(8081, 8081, 7200)), "{asked:?}");
    assert!(!rig.client.holds(FLOW));
}

impl Rig {
    /// What was sent and told so far is no matter.
    fn took(&mut self) {
        self.sent.clear();
        self.outputs.clear();
    }
}

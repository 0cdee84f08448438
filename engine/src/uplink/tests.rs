//! The PCP client in virtual time: what it sends, when, and what it believes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wire::pcp::{
    Body, Filter, MapData, NO_ADDR_V4, Nonce, Opcode, PcpOption, PeerData, Protocol, Request, Response,
    ResultCode,
};

use super::*;
use crate::entropy::{Entropy, SeededEntropy};
use crate::time::{Duration, Instant};

mod answers;
mod deleting;
mod epoch;
mod filters;
mod firewall;
mod peer;
mod renewal;
mod requests;
mod retransmission;
mod silence;
mod versions;

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
        remote_peers: Vec::new(),
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
            external: SocketAddr::from((EXTERNAL, 8080)),
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

/// The waits from `start` on follow RFC 6887 §8.1.1, the first being around `first`.
fn assert_schedule(start: u64, first: u64, sent: &[(u64, Request)]) {
    let (mut at, mut around) = (start, first);
    for &(next, _) in sent {
        let rt = next - at;
        assert!(rt.abs_diff(around) * 10 <= around + 10, "{rt} ms is not around {around}");
        (at, around) = (next, (2 * rt).min(1_024_000));
    }
}

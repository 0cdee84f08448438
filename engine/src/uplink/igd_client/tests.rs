//! The client in virtual time, at a model of a router with the faults of real ones: what it calls, when, and what it believes.

use super::*;
use crate::entropy::SeededEntropy;
use crate::uplink::igd_model::IgdModel;
use wire::error::UpnpError;
use wire::foreign::Url;

mod hostile;
mod mapping;
mod random;

const HERE: Ipv4Addr = Ipv4Addr::new(192, 168, 178, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 178, 66);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);
const FLOW: FlowId = FlowId(1);

fn server() -> SocketAddr {
    "192.168.178.1:5351".parse().unwrap()
}

/// TCP, only this port, for two hours, by a control point that waits.
fn want(port: u16) -> Want {
    Want {
        third_party: None,
        protocol: Protocol::TCP,
        internal_port: port,
        external_port: port,
        remote_peers: Vec::new(),
        terms: Terms {
            prefer_failure: true,
            lease_ends: Some(Instant::from_secs(7200)),
            longest: u32::MAX,
            description: "a game".to_owned(),
        },
        urgent: true,
    }
}

/// This port or any other, for ever.
fn any(port: u16) -> Want {
    let want = want(port);
    Want { terms: Terms { prefer_failure: false, lease_ends: None, ..want.terms }, ..want }
}

struct Rig {
    client: IgdClient,
    model: IgdModel,
    entropy: SeededEntropy,
    /// Milliseconds.
    now: u64,
    /// The router answers at once; else requests stay in `asked`.
    answers: bool,
    asked: Vec<HttpRequest>,
    outputs: Vec<Output>,
}

impl Rig {
    fn new(version: u8) -> Self {
        let found = FoundIgd {
            connection: Connection {
                control: Url::parse("http://192.168.178.1:49000/control").unwrap(),
                service_type: format!("urn:schemas-upnp-org:service:WANIPConnection:{version}"),
                version,
            },
            external: EXTERNAL,
        };
        let wait = Duration::from_secs(5);
        let client = IgdClient::new(Instant::default(), server(), HERE, found, wait, 1 << 32);
        let mut rig = Self {
            client,
            model: IgdModel::new("203.0.114.1"),
            entropy: SeededEntropy::new(1),
            now: 0,
            answers: true,
            asked: Vec::new(),
            outputs: Vec::new(),
        };
        rig.input(Input::Timeout);
        assert_eq!(rig.take(), [Output::Answering, Output::External(Some(EXTERNAL))]);
        rig.model.calls.clear();
        rig
    }

    fn at(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    fn input(&mut self, input: Input<'_>) {
        self.client.handle_input(Instant::from_millis(self.now), input, &mut self.entropy);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.client.poll_output() {
            match output {
                Output::Http(request) => {
                    assert!(self.asked.is_empty(), "one at a time");
                    assert_eq!(
                        (request.to.to_string(), &*request.path),
                        ("192.168.178.1:49000".into(), "/control")
                    );
                    self.asked.push(request);
                }
                other => self.outputs.push(other),
            }
        }
        if self.answers
            && let Some(request) = self.asked.pop()
        {
            let outcome = self.model.answer(self.at(), HERE, &request);
            self.input(Input::Http(request.id, &outcome));
        }
    }

    /// The outcome of what is out.
    fn answer(&mut self, outcome: &HttpOutcome) {
        let request = self.asked.pop().expect("something is out");
        self.input(Input::Http(request.id, outcome));
    }

    /// The model answers what is out.
    fn served(&mut self) {
        let request = self.asked.pop().expect("something is out");
        let outcome = self.model.answer(self.at(), HERE, &request);
        self.input(Input::Http(request.id, &outcome));
    }

    fn run(&mut self, to: u64) {
        let mut turns = 0;
        while let Some(at) = self.client.next_timeout().map(Instant::as_millis).filter(|&at| at <= to) {
            turns = if at > self.now { 0 } else { turns + 1 };
            assert!(turns < 10, "it does not spin");
            self.now = self.now.max(at);
            self.input(Input::Timeout);
        }
        self.now = to;
    }

    /// What came, but for what goes to PCP's port.
    fn take(&mut self) -> Vec<Output> {
        let outputs = std::mem::take(&mut self.outputs);
        outputs.into_iter().filter(|output| !matches!(output, Output::Transmit(_))).collect()
    }

    /// The calls about mappings since the last time.
    fn calls(&mut self) -> Vec<String> {
        let mut calls = self.model.take_calls();
        calls.retain(|call| call != "GetStatusInfo" && call != "GetExternalIPAddress");
        calls
    }

    fn granted(&self, flow: FlowId, port: u16, lifetime: u64) -> Output {
        let external = SocketAddr::from((EXTERNAL, port));
        Output::Granted(flow, Grant { external, lifetime: Duration::from_secs(lifetime), since: self.at() })
    }
}

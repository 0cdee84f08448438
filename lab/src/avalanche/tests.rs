use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use engine::entropy::{Entropy, SeededEntropy};
use engine::time::{Duration, Instant};
use engine::uplink::{FlowId, Input, Output, PcpClient, Terms, Uplink as _, Want};
use wire::pcp::{Body, MapData, Protocol, Request, Response, ResultCode};

use super::story::{CAPACITY, RULE};
use super::*;

const SOURCE: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const FIRST_PORT: u16 = 8000;

fn server() -> SocketAddr {
    "100.64.0.1:5351".parse().unwrap()
}

/// The engine's own PCP client in every router, with whole datagrams.
struct Real {
    mappings: u8,
    clients: Vec<(PcpClient, SeededEntropy)>,
    /// The last request for each mapping.
    requests: Vec<Vec<Option<Request>>>,
    ended: u64,
}

impl Real {
    fn new(setup: &Setup) -> Self {
        let client = |router| {
            let client = PcpClient::new(server(), IpAddr::V4(SOURCE), setup.wait);
            (client, SeededEntropy::new(seed_of(setup.seed, router)))
        };
        Self {
            mappings: setup.mappings,
            clients: (0..setup.routers).map(client).collect(),
            requests: vec![vec![None; usize::from(setup.mappings)]; setup.routers as usize],
            ended: 0,
        }
    }

    fn want(mapping: u8) -> Want {
        let port = FIRST_PORT + u16::from(mapping);
        Want {
            third_party: None,
            protocol: Protocol::TCP,
            internal_port: port,
            external_port: port,
            remote_peers: Vec::new(),
            terms: Terms {
                prefer_failure: true,
                lease_ends: None,
                longest: u32::MAX,
                description: "a game".to_owned(),
            },
            urgent: false,
        }
    }

    fn input(&mut self, router: u32, now: Instant, input: Input<'_>, sent: &mut Vec<u8>) {
        let (client, entropy) = &mut self.clients[router as usize];
        client.handle_input(now, input, entropy);
        while let Some(output) = client.poll_output() {
            match output {
                Output::Transmit(bytes) => {
                    let request = Request::parse(&bytes).unwrap();
                    let Body::Map(map) = &request.body else { panic!("{request:?}") };
                    let mapping = map.internal_port - FIRST_PORT;
                    sent.push(u8::try_from(mapping).unwrap());
                    self.requests[router as usize][usize::from(mapping)] = Some(request);
                }
                Output::Lost(_) => self.ended += 1,
                Output::Granted(..) | Output::Answering | Output::Silent | Output::StateLost => {}
                Output::Unrenewed(_) => {}
                other => panic!("nothing here leads to {other:?}"),
            }
        }
    }

    fn success(&self, router: u32, mapping: u8, answer: Answer) -> Vec<u8> {
        let request = self.requests[router as usize][usize::from(mapping)].clone().unwrap();
        let Body::Map(map) = request.body else { panic!("it maps") };
        let body = Body::Map(MapData { external_addr: EXTERNAL.to_ipv6_mapped(), ..map });
        let lifetime = u32::try_from(answer.lifetime.as_secs()).unwrap();
        let options = request.options;
        Response { result: ResultCode::SUCCESS, lifetime, epoch: answer.epoch, body, options }.to_bytes()
    }
}

impl Routers for Real {
    fn hold(&mut self, router: u32, now: Instant, answer: Answer) {
        for mapping in 0..self.mappings {
            self.input(router, now, Input::Ask(FlowId(mapping.into()), Self::want(mapping)), &mut Vec::new());
            let bytes = self.success(router, mapping, answer);
            self.input(router, now, Input::Datagram(server(), &bytes), &mut Vec::new());
        }
    }

    /// As `Gateway` does once its socket is there.
    fn start(&mut self, router: u32, now: Instant, wait: Duration, sent: &mut Vec<u8>) {
        let due = now + self.clients[router as usize].1.up_to(wait);
        self.input(router, now, Input::TurnsFrom(due), sent);
        for mapping in 0..self.mappings {
            let (flow, used) = (FlowId(mapping.into()), Instant::from_millis(mapping.into()));
            self.input(router, now, Input::AskInTurn(flow, Self::want(mapping), used), sent);
        }
    }

    fn on_loss(&mut self, router: u32, now: Instant, epoch: u32, sent: &mut Vec<u8>) {
        let (body, options) = (Body::Announce, Vec::new());
        let bytes = Response { result: ResultCode::SUCCESS, lifetime: 0, epoch, body, options }.to_bytes();
        self.input(router, now, Input::Multicast(server(), &bytes), sent);
    }

    fn on_answer(&mut self, router: u32, mapping: u8, now: Instant, answer: Answer, sent: &mut Vec<u8>) {
        let bytes = self.success(router, mapping, answer);
        self.input(router, now, Input::Datagram(server(), &bytes), sent);
    }

    fn on_timeout(&mut self, router: u32, now: Instant, sent: &mut Vec<u8>) {
        self.input(router, now, Input::Timeout, sent);
    }

    fn next_timeout(&self, router: u32) -> Option<Instant> {
        self.clients[router as usize].0.next_timeout()
    }

    fn ended(&self) -> u64 {
        self.ended
    }
}

const EVENTS: [Restart; 3] = [Restart::RoutersForgotten, Restart::Server, Restart::Routers];

/// Five hundred routers at a server that is slow enough for them to be many, with three mappings each or with nine, more than go at
/// once.
fn village(restart: Restart, wait: Duration, mappings: u8, seed: u64) -> Setup {
    let scale = Scale { routers: 500, mappings, seed, ..Scale::town() };
    let capacity =
        Capacity { making: Duration::from_millis(28), renewing: Duration::from_micros(1700), buffer: 20 };
    Setup { capacity, ..scale.setup(restart, wait) }
}

/// D-9, decisions 16 and 17: what is told of a million routers is what the engine's client does. Every request goes out in the same
/// microsecond, for the same mapping, whatever is lost.
#[test]
fn the_compact_router_sends_what_the_real_client_sends() {
    let mut most = 0;
    for restart in EVENTS {
        for (seed, mappings, wait) in [(1, 3, 0), (2, 3, 5), (3, 9, 30), (4, 9, 300), (5, 1, 1), (6, 64, 3)] {
            let mut setup = village(restart, Duration::from_secs(wait), mappings, seed);
            if mappings > 10 {
                setup.routers = 20;
            }
            let (mut compact, mut real) = (Vec::new(), Vec::new());
            let mut routers = Compact::new(setup.routers, mappings, setup.wait, seed);
            let ours =
                run_with(&setup, &mut routers, |at, router, mapping| compact.push((at, router, mapping)));
            let theirs = run_with(&setup, &mut Real::new(&setup), |at, router, mapping| {
                real.push((at, router, mapping));
            });
            let differs = compact.iter().zip(&real).find(|(ours, theirs)| ours != theirs);
            assert_eq!((differs, compact.len()), (None, real.len()), "{setup:?}");
            assert_eq!(ours, theirs);
            assert_eq!((ours.ended, ours.last.is_some()), (0, true), "{setup:?}");
            most = most.max(ours.drops());
        }
    }
    assert!(most > 10_000, "{most} lost at most, so little was compared");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for restart in EVENTS {
        let setup = village(restart, Duration::from_secs(5), 3, 7);
        assert_eq!(run(&setup), run(&setup));
        assert_ne!(run(&setup), run(&Setup { seed: 8, ..setup }));
    }
}

/// D-9, decision 16: with 1.25 × routers × mappings ÷ capacity nothing is lost, whatever restarts, and whoever has how many; every
/// router asks for each mapping once.
#[test]
fn with_the_rule_nothing_is_lost() {
    for restart in EVENTS {
        for (routers, mappings, seed) in
            [(20_000, 2, 1), (20_000, 2, 2), (40_000, 1, 3), (4000, 10, 4), (1000, 40, 5)]
        {
            let scale = Scale { routers, mappings, seed, ..Scale::hamlet() };
            let wait = scale.needs(restart).mul_f64(RULE);
            let outcome = run(&scale.setup(restart, wait));
            let requests = u64::from(routers) * u64::from(mappings);
            assert_eq!((outcome.datagrams(), outcome.drops()), (requests, 0), "{restart:?} {scale:?}");
            // The last one waits no longer than it was told to, but for what the server needs meanwhile.
            let last = outcome.last.expect("every router is whole");
            assert!(last < wait + Duration::from_secs(1), "{last:?} {wait:?}");
        }
    }
}

/// D-9: what is too short, also by a tenth only, floods the server, and its last customer waits longer than with the whole wait.
#[test]
fn a_wait_that_is_too_short_floods() {
    for restart in EVENTS {
        let scale = Scale::hamlet();
        let needs = scale.needs(restart);
        let lasts = |factor: f64| run(&scale.setup(restart, needs.mul_f64(factor)));
        let good = lasts(RULE);
        for factor in [0.0, 0.1] {
            let bad = lasts(factor);
            assert!(bad.drops() > u64::from(scale.routers) / 10, "{restart:?} {factor}: {}", bad.drops());
            assert!(bad.last > good.last, "{restart:?} {factor}: {:?} {:?}", bad.last, good.last);
        }
    }
}

/// Where the rule can't help: nobody waits longer for a mapping than half of what is left of it, of which 3/8 of its lifetime are
/// always left (RFC 6887 §11.2.1), so longer waits than 3/16 of the lifetime are not kept.
#[test]
fn lifetimes_bound_the_wait() {
    let mut setup = village(Restart::Server, Duration::from_secs(10_000), 1, 1);
    setup.lifetime = Duration::from_secs(1600);
    let mut times = Vec::new();
    let mut routers = Compact::new(setup.routers, 1, setup.wait, setup.seed);
    let outcome = run_with(&setup, &mut routers, |at, _, _| times.push(at - micros(setup.lifetime / 2)));
    assert_eq!(outcome.ended, 0);
    let latest = Duration::from_micros(times.into_iter().max().unwrap());
    assert!(latest <= setup.lifetime / 2, "{latest:?}");
}

#[test]
fn the_server_loses_what_its_buffer_cannot_take() {
    let mut server = Server::new(Capacity { buffer: 2, ..CAPACITY }, 1);
    assert_eq!([0, 1, 2, 3].map(|mapping| server.offer(1000, (0, mapping))), [true, true, true, false]);
    let mut answered = Vec::new();
    while let Some(at) = server.next() {
        answered.push((at, server.finish().unwrap()));
    }
    assert_eq!(answered, [(1280, (0, 0)), (1560, (0, 1)), (1840, (0, 2))]);
    assert!(server.offer(2000, (0, 1)), "it has room again");
    assert_eq!(server.next(), Some(2017), "the mapping is there");
}

fn docs(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(path).unwrap()
}

/// A number of the page's table, in the row of a wait and under an event.
fn cells<'a>(tables: &'a str, title: &str, wait: &str) -> Vec<&'a str> {
    let rest = tables.split_once(title).expect("the event is told").1;
    let row = rest.lines().find(|line| line.starts_with(&format!("| {wait} |"))).expect("the wait is there");
    row.trim_matches(['|', ' ']).split(" | ").collect()
}

/// docs/avalanche.md and its picture are what the program writes. A million routers take minutes without optimization, so here it is
/// their shape, and what is known of a run before it is made; `PF_AVALANCHE=1` makes them all, and compares every octet.
#[test]
fn the_page_is_what_the_program_writes() {
    let page = docs("avalanche.md");
    let written = between(&page).expect("the page has a place for the tables");
    let (town, picture) = (Scale::town(), docs("avalanche.svg"));
    assert!(picture.len() < 200_000 && !picture.contains("<script"));
    if std::env::var_os("PF_AVALANCHE").is_some() {
        let story = Story::tell(town, |_| {});
        assert!(story.tables() == written, "cargo run --release -p lab --bin lab-avalanche -- docs");
        assert!(story.picture() == picture, "cargo run --release -p lab --bin lab-avalanche -- docs");
        return;
    }
    let story = Story::tell(Scale::hamlet(), |_| {});
    let prose = |text: &str| -> Vec<String> {
        let is_figure = |c: char| c.is_ascii_digit() || matches!(c, '.' | ',');
        text.lines().map(|line| line.replace(is_figure, "")).collect()
    };
    assert_eq!(prose(&story.tables()), prose(written));
    let words = |svg: &str| -> Vec<String> {
        let texts = svg.lines().filter(|line| line.contains("<text") && !line.contains("\"middle\""));
        texts
            .filter_map(|line| Some(line.split_once('>')?.1.to_owned()))
            .filter(|line| !line.contains("/s<"))
            .collect()
    };
    assert_eq!(words(&story.picture()), words(&picture));
    // The parameters and the rule's row need no run.
    let first = story.tables().lines().next().unwrap().replace("25,000", "1,000,000");
    assert_eq!(written.lines().next(), Some(&first[..]));
    for restart in EVENTS {
        let (needs, title) = (town.needs(restart).as_secs_f64(), page::title(restart));
        assert!(written.contains(&format!("**{title}.** The server needs {needs:.1} s ")));
        let rule = cells(written, title, "the rule: 1.25 of it");
        assert_eq!(rule[1..4], [&format!("{:.1}", needs * RULE)[..], "2,000,000", "0"]);
    }
}

/// The rest of the repository says the same as the runs: the waits that nobody sets, and the decision.
#[test]
fn the_defaults_are_the_daemons() {
    let (town, example) = (Scale::town(), docs("portferry.example.toml"));
    for (key, wait) in [("service_wait", town.service_wait), ("recovery_wait", town.recovery_wait)] {
        assert!(example.contains(&format!("#= {key} = {:.1}\n", wait.as_secs_f64())), "{key}");
    }
    let decisions = docs("decisions.md");
    assert!(decisions.contains(&format!("{RULE} × routers × mappings ÷ server capacity")));
}

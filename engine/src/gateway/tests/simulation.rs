//! A seeded simulation: control points, lost datagrams, a flapping WAN, a server that forgets, a kernel that is slow
//! or refuses, another subscriber who takes ports; answers that come late, twice, in another order; invariants after every step, and agreement of everybody once it is calm. A failing seed replays exactly.

use std::collections::BTreeSet;

use super::*;
use crate::entropy::SeededEntropy;
use crate::table::Health;

struct Simulation {
    lab: Lab,
    dice: SeededEntropy,
    /// Requests that wait, and since when.
    waiting: BTreeMap<RequestId, u64>,
    last_update_id: u32,
    /// Answers of the provider take their time; what that is decided by.
    weather: Option<u64>,
    /// What was asked for last, to be asked for again.
    recent: VecDeque<(Ipv4Addr, u8, Add)>,
}

/// Answers of the provider come …
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answers {
    AtOnce,
    Late,
}

/// Another subscriber, who uses ports of the hosts' range.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
/// The provider's other external address.
const E2: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
/// The longest lifetime that the provider grants, in seconds.
const LONGEST: u32 = 600;

impl Simulation {
    fn new(nat: NatMode, answers: Answers, seed: u64) -> Self {
        let mut lab = Lab::seeded(config(nat), seed);
        lab.provider().config_mut().longest = LONGEST;
        lab.provider().config_mut().shortest = 10;
        lab.provider().config_mut().quota = 40;
        lab.bring_up();
        let dice = SeededEntropy::new(seed ^ 0x5eed);
        let weather = (answers == Answers::Late).then_some(seed ^ 0xfee1);
        lab.weather = weather.map(SeededEntropy::new);
        let (waiting, recent) = (BTreeMap::new(), VecDeque::new());
        Self { lab, dice, waiting, last_update_id: 0, weather, recent }
    }

    /// Uniform in `0..n`.
    fn roll(&mut self, n: u16) -> u16 {
        let mut bytes = [0; 2];
        self.dice.fill(&mut bytes);
        u16::from_be_bytes(bytes) % n
    }

    fn step(&mut self) {
        let host = [ALICE, BOB][usize::from(self.roll(2))];
        let version = 1 + u8::try_from(self.roll(2)).unwrap();
        let external = 5000 + self.roll(12);
        let id = match self.roll(40) {
            0..12 => {
                let lease = [0, 12, 60, 300, 3600][usize::from(self.roll(5))];
                let remote = if self.roll(10) == 0 { "203.0.113.9" } else { "" };
                let internal = 5000 + self.roll(8);
                let any = self.roll(3) == 0;
                let external = if any && self.roll(3) == 0 { 0 } else { external };
                let mut asked = (host, version, Add { any, lease, remote, ..port(external).to(internal) });
                let recent = self.roll(12);
                match self.recent.get(usize::from(recent)) {
                    Some(recent) => asked = *recent,
                    None => self.recent.push_front(asked),
                }
                self.recent.truncate(6);
                let (host, version, add) = asked;
                Some(self.lab.start_add(host, version, add))
            }
            12..18 => {
                // One of those that exist, or any.
                let mappings: Vec<_> = self.lab.mapped();
                let nth = usize::from(self.roll(50));
                match mappings.get(nth) {
                    Some(&(external, internal)) => {
                        Some(self.lab.start_delete(*internal.ip(), version, external))
                    }
                    None => Some(self.lab.start_delete(host, version, external)),
                }
            }
            18 => {
                let last = (external + 3).to_string();
                let first = external.to_string();
                let args = [
                    ("NewStartPort", &*first),
                    ("NewEndPort", &*last),
                    ("NewProtocol", "TCP"),
                    ("NewManage", "0"),
                ];
                Some(self.lab.start(host, 2, "DeletePortMappingRange", &args))
            }
            19 => Some(self.lab.start(host, version, "GetTotalBytesSent", &[])),
            20..22 => {
                let faults = [
                    Reaction::Lose,
                    Reaction::LoseAnswer,
                    Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 30),
                    Reaction::Refuse(ResultCode::NETWORK_FAILURE, 30),
                    Reaction::Refuse(ResultCode::NOT_AUTHORIZED, 30),
                    Reaction::Refuse(ResultCode::NO_RESOURCES, 30),
                ];
                let fault = faults[usize::from(self.roll(6))];
                self.lab.script.push_back(fault);
                None
            }
            22 => {
                self.lab.silent = self.roll(2) == 0;
                None
            }
            23 if self.roll(4) == 0 => {
                let up = self.roll(2) == 0;
                self.lab.event(Event::Wan(wan(if up { &[W] } else { &[] })));
                None
            }
            24 if self.roll(4) == 0 => {
                self.provider_restarts();
                None
            }
            29 => {
                self.stranger(external, 300);
                None
            }
            30 => {
                self.stranger(external, 0);
                None
            }
            31 if self.roll(20) == 0 => {
                self.refreshed_for_long();
                None
            }
            25 => {
                self.lab.slow_nat = self.roll(2) == 0;
                None
            }
            26 => {
                let port = (Protocol::TCP, 5000 + self.roll(8));
                let taken = self.lab.rules.iter().any(|rule| (rule.protocol, rule.port) == port);
                if !taken && !self.lab.in_use.contains(&port) {
                    self.lab.in_use.push(port);
                } else {
                    self.lab.in_use.clear();
                }
                None
            }
            28 if self.roll(4) == 0 => {
                self.crash();
                None
            }
            27 => {
                self.lab.mute = self.roll(2) == 0;
                None
            }
            _ => {
                let ms = [20, 200, 1000, 3000, 4000, 30_000, 150_000][usize::from(self.roll(7))];
                // Outcomes of the NAT do not take for ever.
                if self.roll(2) == 0 {
                    self.lab.release_nat();
                }
                self.pass(ms);
                self.lab.release_nat();
                None
            }
        };
        if let Some(id) = id
            && self.lab.heard(id).is_none()
        {
            self.waiting.insert(id, self.lab.now);
        }
        self.check();
    }

    /// It forgets everything, and may have another external address.
    fn provider_restarts(&mut self) {
        let now = self.lab.instant();
        let external = [E, E2][usize::from(self.roll(2))];
        let provider = self.lab.provider();
        provider.config_mut().external = external;
        let announcement = provider.lose_state(now);
        if !self.lab.silent {
            self.lab.event(Event::Announcement { from: server(), bytes: &announcement });
        }
    }

    /// The other subscriber takes a port, or gives it back when `lifetime` is 0; as far as the provider lets it.
    fn stranger(&mut self, port: u16, lifetime: u32) {
        let map = MapData {
            nonce: Nonce([0xee; 12]),
            protocol: Protocol::TCP,
            internal_port: port,
            external_port: if lifetime == 0 { 0 } else { port },
            external_addr: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
        };
        let options = if lifetime == 0 { vec![] } else { vec![PcpOption::PreferFailure] };
        let client_addr = STRANGER.to_ipv6_mapped();
        let request = Request { lifetime, client_addr, body: Body::Map(map), options };
        let now = self.lab.instant();
        let from = SocketAddr::from((STRANGER, 49_152));
        self.lab.provider().handle_datagram(now, from, &request.to_bytes());
    }

    /// Nothing goes wrong any more, except that answers may take their time.
    fn mend(&mut self) {
        self.lab.script.clear();
        (self.lab.silent, self.lab.slow_nat, self.lab.mute) = (false, false, false);
        self.lab.release_nat();
        self.lab.event(Event::Wan(wan(&[W])));
        for port in 5000..5012 {
            self.stranger(port, 0);
        }
    }

    /// An application that refreshes its mapping every few seconds keeps it, as long as there is a provider.
    fn refreshed_for_long(&mut self) {
        self.mend();
        self.pass(60_000);
        let external = 6000 + self.roll(4);
        let add = Add { lease: 3600, ..port(external) };
        self.lab.start_add(ALICE, 1, add);
        self.pass(30_000);
        let mapped = |lab: &Lab| lab.mapped().contains(&(external, at(ALICE, external)));
        if !mapped(&self.lab) {
            return; // it may be held for somebody, or the answers were lost
        }
        let restart = self.roll(400);
        for round in 0..2 * u64::from(LONGEST) / 3 {
            if round == u64::from(restart) {
                self.provider_restarts();
            }
            self.lab.start_add(ALICE, 1, add);
            let ms = 1000 + u64::from(self.roll(2000));
            self.pass(ms);
            assert!(mapped(&self.lab), "{external} is refreshed and lost");
        }
        let upstream = self.lab.upstream();
        assert!(
            upstream.iter().any(|(port, _)| *port == external),
            "{external} is refreshed and lost upstream"
        );
        let id = self.lab.start_delete(ALICE, 1, external);
        if self.lab.heard(id).is_none() {
            self.waiting.insert(id, self.lab.now);
        }
    }

    /// Kill -9 at this moment: what was acknowledged stands again, and nothing else.
    fn crash(&mut self) {
        let standing = |lab: &Lab| -> Vec<_> {
            let mappings = lab.gateway.mappings(lab.instant());
            let standing = mappings.filter(|m| m.health != Health::Deleting);
            standing.map(|m| (m.protocol, m.external.port(), m.internal, m.nat_port, m.description)).collect()
        };
        let before = standing(&self.lab);
        let nat = if self.lab.status().own_nat { NatMode::Own } else { NatMode::None };
        let config = config(nat);
        let seed = u64::from(self.roll(u16::MAX));
        self.lab.held.clear();
        self.lab.in_flight.clear();
        self.lab.crash(config, seed, 0);
        let after = standing(&self.lab);
        assert!(before.iter().all(|mapping| after.contains(mapping)), "{before:?} is not all in {after:?}");
        self.waiting.clear();
        self.last_update_id = 0;
        self.lab.event(Event::Lan(lan()));
        self.lab.event(Event::Wan(wan(&[W])));
    }

    fn pass(&mut self, ms: u64) {
        let to = self.lab.now + ms;
        while self.lab.now < to {
            let next = self.lab.next().unwrap_or(to);
            self.lab.run(next.clamp(self.lab.now, to).max(self.lab.now + 1).min(to));
            self.check();
        }
    }

    /// What holds after every step.
    fn check(&mut self) {
        let now = self.lab.now;
        // Answered once (the lab asserts it), and in time.
        let heard = &self.lab.heard;
        self.waiting.retain(|id, _| !heard.contains_key(id));
        for (id, since) in &self.waiting {
            assert!(now <= since + 3500 + 1, "{id:?} waits since {since}");
        }
        let mappings: Vec<MappingStatus> = self.lab.gateway.mappings(self.lab.instant()).collect();
        let unique = |keys: Vec<(Protocol, u16)>| keys.iter().collect::<BTreeSet<_>>().len() == keys.len();
        assert!(unique(mappings.iter().map(|m| (m.protocol, m.external.port())).collect()));
        assert!(unique(mappings.iter().filter_map(|m| Some((m.protocol, m.nat_port?))).collect()));
        assert_eq!(mappings.len(), self.lab.status().mappings);
        // What is shown is kept upstream, or asked for again.
        if let Some(client) = &self.lab.gateway.uplink {
            for mapping in self.lab.gateway.table.iter() {
                // What is deleted waits for the rest of its range.
                let kept = client.has(mapping.flow) || mapping.health == Health::Deleting;
                assert!(kept, "nobody keeps {mapping:?}");
            }
        }
        assert_eq!(
            std::mem::take(&mut self.lab.wrong_nonces),
            0,
            "a nonce that the provider knows is forgotten"
        );
        for (n, _) in mappings.iter().enumerate() {
            let index = n.to_string();
            let listed =
                self.lab.call(BOB, 1, "GetGenericPortMappingEntry", &[("NewPortMappingIndex", &index)]);
            assert!(listed.is_ok(), "indexes have no gaps");
        }
        // The kernel has what the table says, once it has done what it was told.
        if self.lab.held.is_empty() {
            let mut wanted: Vec<NatRule> = mappings
                .iter()
                .filter(|m| m.health != Health::Deleting)
                .filter_map(|m| {
                    let port = m.nat_port?;
                    Some(NatRule { remote_peer: m.remote_peer, ..tcp(port, m.internal) })
                })
                .collect();
            let mut installed = self.lab.rules.clone();
            wanted.sort_by_key(|rule| rule.port);
            installed.sort_by_key(|rule| rule.port);
            assert_eq!(installed, wanted, "rules are mappings");
        }
        let id = self.lab.status().system_update_id;
        assert!(id >= self.last_update_id);
        self.last_update_id = id;
        self.lab.effects.clear();
    }

    /// Everything works again, and time passes: everybody agrees.
    fn calm(&mut self) {
        self.lab.weather = None;
        self.mend();
        // Long enough for deletes that nobody confirmed, and for strays to lapse.
        for _ in 0..20 {
            self.pass(100_000);
        }
        assert_eq!(self.waiting, BTreeMap::new());
        assert!(self.lab.in_flight.is_empty());
        assert!(self.lab.gateway.mappings(self.lab.instant()).all(|m| m.health == Health::Active));
        let seen_upstream = |nat: NatMode, m: MappingStatus| match nat {
            NatMode::Own => (m.external.port(), at(W, m.nat_port.unwrap())),
            NatMode::None => (m.external.port(), m.internal),
        };
        let nat = if self.lab.status().own_nat { NatMode::Own } else { NatMode::None };
        let mine: Vec<(u16, SocketAddrV4)> =
            self.lab.gateway.mappings(self.lab.instant()).map(|m| seen_upstream(nat, m)).collect();
        assert_eq!(self.lab.upstream(), mine, "the provider's mappings are ours");
        let upstream = self.lab.providers[&server()].mappings().count();
        assert_eq!(upstream, mine.len().max(1), "the probe, as long as there is nothing else (decision 11)");
        let external = self.lab.provider().config_mut().external;
        assert_eq!(self.lab.connection(), ("Connected".into(), external.to_string()));
        let ports = mine.len() * usize::from(nat == NatMode::Own);
        assert_eq!(self.lab.gateway.nat_ports_in_use(), ports, "no port is lost");
        assert!(self.lab.gateway.is_idle(), "nothing is forgotten half-way");
    }

    fn run(mut self, rounds: usize, steps: usize) {
        for round in 0..rounds {
            self.lab.weather = self.weather.map(|seed| SeededEntropy::new(seed + (round as u64)));
            for _ in 0..steps {
                self.step();
            }
            self.calm();
        }
        self.lab.event(Event::Stop);
        self.lab.pass(3);
        assert_eq!(self.lab.effects.iter().filter(|(_, effect)| *effect == Effect::Stopped).count(), 1);
        assert_eq!((self.lab.mapped(), self.lab.upstream(), self.lab.rules.len()), (vec![], vec![], 0));
        assert_eq!(self.lab.providers[&server()].mappings().count(), 0);
    }
}

const ANSWERS: [Answers; 2] = [Answers::AtOnce, Answers::Late];

/// table, NAT rules and the provider's table agree, whatever happens; decisions 1 and 2: each request is
/// answered once and in time.
#[test]
fn own_nat() {
    for seed in 1..=2 {
        for answers in ANSWERS {
            Simulation::new(NatMode::Own, answers, seed).run(2, 300);
        }
    }
}

/// the same without a NAT of the router's own.
#[test]
fn no_nat() {
    for seed in 101..=102 {
        for answers in ANSWERS {
            Simulation::new(NatMode::None, answers, seed).run(2, 200);
        }
    }
}

/// `PF_SEEDS=1000 cargo test -p engine sweep` for a longer search, from `PF_FIRST_SEED` on.
#[test]
fn sweep() {
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
    let first = number(option_env!("PF_FIRST_SEED")).unwrap_or(1000);
    let mut failing = Vec::new();
    for seed in first..first + number(option_env!("PF_SEEDS")).unwrap_or(1) {
        for (nat, answers) in BOTH.into_iter().flat_map(|nat| ANSWERS.map(|answers| (nat, answers))) {
            let run = std::panic::catch_unwind(|| Simulation::new(nat, answers, seed).run(2, 300));
            if run.is_err() {
                failing.push((seed, nat, answers));
            }
        }
    }
    assert_eq!(failing, []);
}

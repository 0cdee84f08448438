//! A seeded simulation: control points, lost datagrams, a flapping WAN, a server that forgets, a kernel that is slow
//! or refuses; invariants after every step, and agreement of everybody once it is calm. A failing seed replays exactly.

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
}

impl Simulation {
    fn new(nat: NatMode, seed: u64) -> Self {
        let mut lab = Lab::seeded(config(nat), seed);
        lab.provider().config_mut().longest = 900;
        lab.provider().config_mut().quota = 40;
        lab.bring_up();
        let dice = SeededEntropy::new(seed ^ 0x5eed);
        Self { lab, dice, waiting: BTreeMap::new(), last_update_id: 0 }
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
                let lease = [0, 60, 300, 3600][usize::from(self.roll(4))];
                let remote = if self.roll(10) == 0 { "203.0.113.9" } else { "" };
                let internal = 5000 + self.roll(8);
                let any = self.roll(3) == 0;
                let wanted = Add { any, lease, remote, ..port(external).to(internal) };
                Some(self.lab.start_add(host, version, wanted))
            }
            12..18 => Some(self.lab.start_delete(host, version, external)),
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
                let now = self.lab.instant();
                let announcement = self.lab.provider().lose_state(now);
                if !self.lab.silent {
                    self.lab.event(Event::Announcement { from: server(), bytes: &announcement });
                }
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
                let ms = [100, 1000, 4000, 30_000, 200_000][usize::from(self.roll(5))];
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
            let next = self.lab.gateway.next_timeout().map_or(to, Instant::as_millis);
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
        self.lab.script.clear();
        (self.lab.silent, self.lab.slow_nat, self.lab.mute) = (false, false, false);
        self.lab.release_nat();
        self.lab.event(Event::Wan(wan(&[W])));
        // Long enough for deletes that nobody confirmed, and for strays to lapse.
        for _ in 0..20 {
            self.pass(100_000);
        }
        assert_eq!(self.waiting, BTreeMap::new());
        assert!(self.lab.gateway.mappings(self.lab.instant()).all(|m| m.health == Health::Active));
        let seen_upstream = |nat: NatMode, m: MappingStatus| match nat {
            NatMode::Own => (m.external.port(), at(W, m.nat_port.unwrap())),
            NatMode::None => (m.external.port(), m.internal),
        };
        let nat = if self.lab.status().own_nat { NatMode::Own } else { NatMode::None };
        let mine: Vec<(u16, SocketAddrV4)> =
            self.lab.gateway.mappings(self.lab.instant()).map(|m| seen_upstream(nat, m)).collect();
        assert_eq!(self.lab.upstream(), mine, "the provider's mappings are ours");
        assert_eq!(self.lab.providers[&server()].mappings().count(), mine.len() + 1, "and the probe");
        assert_eq!(self.lab.connection(), ("Connected".into(), E.to_string()));
        let ports = mine.len() * usize::from(nat == NatMode::Own);
        assert_eq!(self.lab.gateway.nat_ports_in_use(), ports, "no port is lost");
        assert!(self.lab.gateway.is_idle(), "nothing is forgotten half-way");
    }

    fn run(mut self, rounds: usize, steps: usize) {
        for _ in 0..rounds {
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

#[test]
fn own_nat() {
    for seed in 1..=4 {
        Simulation::new(NatMode::Own, seed).run(4, 500);
    }
}

#[test]
fn no_nat() {
    for seed in 101..=104 {
        Simulation::new(NatMode::None, seed).run(4, 500);
    }
}

/// `PF_SEEDS=1000 cargo test -p engine sweep` for a longer search.
#[test]
fn sweep() {
    let seeds = option_env!("PF_SEEDS").and_then(|seeds| seeds.parse().ok()).unwrap_or(1);
    for seed in 1000..1000 + seeds {
        for nat in BOTH {
            let run = std::panic::catch_unwind(|| Simulation::new(nat, seed).run(2, 400));
            assert!(run.is_ok(), "{nat:?}, seed {seed}");
        }
    }
}

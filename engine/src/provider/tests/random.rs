//! Seeded runs of everything at once, against a small model that knows only what clients were told: no external port for two
//! clients, nobody's mapping changed by another, quotas and bounds kept. [`Bench::check`] compares table, indexes, ports, data
//! plane and store after every step. A seed that fails is run again by its number.

use wire::natpmp::{self, Transport};

use super::*;
use crate::entropy::{Entropy as _, SeededEntropy};

const SEEDS: u64 = 12;
const STEPS: usize = 600;
const QUOTA: u32 = 12;
const PORTS: std::ops::RangeInclusive<u16> = 2000..=2039;

struct Dice(SeededEntropy);

impl Dice {
    fn roll(&mut self, sides: u16) -> u16 {
        let mut two = [0; 2];
        self.0.fill(&mut two);
        u16::from_be_bytes(two) % sides
    }

    fn one_in(&mut self, sides: u16) -> bool {
        self.roll(sides) == 0
    }
}

/// What a client was told last about one of its mappings.
#[derive(Clone, Debug)]
struct Claim {
    external: SocketAddr,
    ports: u16,
    nonce: Nonce,
    ends: Instant,
}

#[derive(Default)]
struct Model {
    claims: BTreeMap<MappingKey, Claim>,
    refused: BTreeMap<Reason, u64>,
}

impl Model {
    /// What is over is nobody's claim any more.
    fn pass(&mut self, now: Instant) {
        self.claims.retain(|_, claim| claim.ends > now);
    }

    fn granted(&mut self, key: MappingKey, claim: Claim) {
        if let Some(before) = self.claims.get(&key) {
            assert_eq!(
                (before.external, before.ports),
                (claim.external, claim.ports),
                "a mapping stays where it is"
            );
            assert_eq!(before.nonce, claim.nonce, "granted to another");
        }
        self.claims.insert(key, claim);
    }

    fn count(&mut self, bench: &Bench) {
        for (&reason, &count) in &bench.server.counters().refused {
            *self.refused.entry(reason).or_default() += count;
        }
    }

    /// Everything that clients were told is so.
    fn check(&self, bench: &Bench, now: Instant) {
        let there: BTreeMap<MappingKey, &ServerMapping> =
            bench.server.mappings().map(|mapping| (mapping.key(), mapping)).collect();
        for (key, claim) in &self.claims {
            let mapping =
                there.get(key).unwrap_or_else(|| panic!("{key:?} is gone before {:?}, {now:?}", claim.ends));
            assert_eq!(
                (mapping.external, mapping.ports, mapping.nonce),
                (claim.external, claim.ports, Some(claim.nonce))
            );
            assert!(mapping.ends >= claim.ends);
        }
        let mut subscribers: BTreeMap<Subscriber, (u32, BTreeSet<IpAddr>)> = BTreeMap::new();
        let mut ports: BTreeMap<(IpAddr, Protocol, u16), MappingKey> = BTreeMap::new();
        for (key, mapping) in &there {
            let (count, addresses) = subscribers.entry(mapping.subscriber).or_default();
            *count += u32::from(mapping.ports);
            addresses.insert(mapping.external.ip());
            for n in 0..mapping.ports {
                let port = mapping.external.port() + n;
                assert!(PORTS.contains(&port), "{mapping:?}");
                let internal = MappingKey { peer: None, port: key.port + n, ..*key };
                let other = ports.insert((mapping.external.ip(), key.protocol, port), internal);
                assert!(
                    other.is_none_or(|other| other == internal),
                    "{port} is {internal:?}'s and {other:?}'s"
                );
            }
        }
        for (subscriber, (count, addresses)) in subscribers {
            let held = bench.server.pool.held_by(subscriber);
            assert!(count + held <= QUOTA, "{subscriber:?} has {count}, and {held} are held for it");
            assert_eq!(addresses.len(), 1, "{subscriber:?} is in one address");
        }
    }
}

fn run(seed: u64) {
    let mut dice = Dice(SeededEntropy::new(seed));
    let pool = vec![EXTERNAL, EXTERNAL_2];
    let mut bench = Bench::new(ServerConfig {
        pool,
        ports: PORTS,
        quota: QUOTA,
        longest: 900,
        third_party: anybody(),
        port_set: 4,
        query: true,
        ..config()
    });
    let mut model = Model::default();
    let mut now = at(0);
    for _ in 0..STEPS {
        now = now + Duration::from_secs(if dice.one_in(10) { dice.roll(400) } else { dice.roll(20) }.into());
        model.pass(now);
        bench.nat = match dice.roll(36) {
            0..=2 => Nat::Refuses(NatRefused::Failed),
            3..=5 => Nat::Refuses(NatRefused::Full),
            6 => Nat::Refuses(NatRefused::Taken),
            7 => Nat::Refuses(NatRefused::Unfit),
            _ => Nat::Obeys,
        };
        if dice.one_in(8) {
            host_begins_a_flow(&mut dice, &mut bench);
        }
        match dice.roll(20) {
            0 => bench.timeout(now),
            1 => {
                bench.nat = Nat::Obeys;
                bench.timeout(now);
                model.count(&bench);
                restart(&mut bench, now);
            }
            2..=4 => natpmp_request(&mut dice, &mut bench, now, &mut model),
            5..=7 => peer_request(&mut dice, &mut bench, now, &mut model),
            _ => map_request(&mut dice, &mut bench, now, &mut model),
        }
        // What the data plane would not close, it closes now: then table and data plane agree.
        bench.nat = Nat::Obeys;
        bench.timeout(now);
        model.check(&bench, now);
    }
    model.count(&bench);
    bench.server.lose_state(now);
    bench.perform(now);
    assert_eq!((bench.mappings().len(), bench.bindings.len()), (0, 0));
    assert!(model.refused.len() > 5, "not much was refused: {:?}", model.refused);
}

fn client(dice: &mut Dice) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + u8::try_from(dice.roll(4)).expect("few"))
}

/// By a port of the pool, or by one that is nobody's to have.
fn host_begins_a_flow(dice: &mut Dice, bench: &mut Bench) {
    let from = (IpAddr::from(client(dice)), 80 + dice.roll(8));
    let remote = SocketAddr::from(([203, 0, 113, 9], 443 + dice.roll(3)));
    let addr = if dice.one_in(2) { EXTERNAL } else { EXTERNAL_2 };
    bench.flows.retain(|(other, to, _)| (*other, *to) != (from, remote));
    bench.flows.push((from, remote, SocketAddrV4::new(addr, 1998 + dice.roll(44))));
}

fn map_request(dice: &mut Dice, bench: &mut Bench, now: Instant, model: &mut Model) {
    let from = client(dice);
    let mut options = Vec::new();
    let mut host = from;
    if dice.one_in(6) {
        host = Ipv4Addr::new(10, 0, 0, 1 + u8::try_from(dice.roll(2)).expect("few"));
        options.push(third(host));
    }
    if dice.one_in(8) {
        options.push(PcpOption::PreferFailure);
    }
    if dice.one_in(6) {
        let peer = Ipv4Addr::new(203, 0, 113, u8::try_from(dice.roll(3)).expect("few"));
        options.push(filter(peer.to_ipv6_mapped(), 128));
    }
    let internal = 80 + dice.roll(8);
    if dice.one_in(4) {
        options.push(port_set(1 + dice.roll(6), internal, dice.one_in(2)));
    }
    let protocol = if dice.one_in(2) { Protocol::TCP } else { Protocol::UDP };
    let nonce = u8::try_from(dice.roll(2)).expect("few");
    let wanted =
        MapData { protocol, ..data(nonce, internal, if dice.one_in(3) { 0 } else { 1995 + dice.roll(50) }) };
    let lifetime = [0, 100, 300, 900][usize::from(dice.roll(4))];
    let request = by(from, map(lifetime, wanted, &options));
    bench.sent.clear();
    bench.datagram(now, &arrival(from), &request.to_bytes());
    let answers = std::mem::take(&mut bench.sent);
    assert!(!answers.is_empty(), "no silence");
    let inside = Inside { softwire: None, addr: host.into() };
    for (.., bytes) in answers {
        let response = Response::parse(&bytes).expect("well-formed");
        let Body::Map(map) = response.body else { panic!("{response:?}") };
        if response.result != ResultCode::SUCCESS {
            assert_eq!((response.body.clone(), &response.options), (request.body.clone(), &request.options));
            continue;
        }
        let key = MappingKey::new(inside, protocol, map.internal_port, None);
        if lifetime == 0 {
            if let Some(claim) = model.claims.remove(&key) {
                assert_eq!(claim.nonce, wanted.nonce, "deleted by another");
            }
            continue;
        }
        assert!((120..=900).contains(&response.lifetime));
        let ports = response.options.iter().find_map(|option| match option {
            PcpOption::PortSet(set) => Some(set.size),
            _ => None,
        });
        let external = SocketAddr::new(pcp::ip_from_wire(map.external_addr), map.external_port);
        let ends = now + Duration::from_secs(response.lifetime.into());
        model.granted(key, Claim { external, ports: ports.unwrap_or(1), nonce: wanted.nonce, ends });
    }
}

fn peer_request(dice: &mut Dice, bench: &mut Bench, now: Instant, model: &mut Model) {
    let from = client(dice);
    let nonce = u8::try_from(dice.roll(2)).expect("few");
    let wanted = PeerData {
        external_port: if dice.one_in(2) { 0 } else { 1995 + dice.roll(50) },
        ..peer_data(nonce, 80 + dice.roll(8), 1 + dice.roll(2))
    };
    let lifetime = [0, 100, 300, 900][usize::from(dice.roll(4))];
    let request = by(from, Request { body: Body::Peer(wanted), ..map(lifetime, data(1, 1, 1), &[]) });
    let response = ask(bench, now, &request);
    let Body::Peer(got) = response.body else { panic!("{response:?}") };
    if response.result != ResultCode::SUCCESS || response.lifetime == 0 {
        return;
    }
    let inside = Inside { softwire: None, addr: from.into() };
    let remote = SocketAddr::new(pcp::ip_from_wire(wanted.remote_addr), wanted.remote_port);
    let key = MappingKey::new(inside, wanted.protocol, wanted.internal_port, Some(remote));
    let ends = now + Duration::from_secs(response.lifetime.into());
    assert!(model.claims.get(&key).is_none_or(|claim| claim.ends <= ends), "PEER shortens nothing");
    let external = SocketAddr::new(pcp::ip_from_wire(got.external_addr), got.external_port);
    model.granted(key, Claim { external, ports: 1, nonce: wanted.nonce, ends });
}

/// NAT-PMP takes nothing from anybody; what it has itself PCP may take over.
fn natpmp_request(dice: &mut Dice, bench: &mut Bench, now: Instant, model: &mut Model) {
    let from = client(dice);
    let protocol = if dice.one_in(2) { Transport::Tcp } else { Transport::Udp };
    let (internal_port, external_port) = (80 + dice.roll(8), 1995 + dice.roll(50));
    let request = match dice.roll(5) {
        0 => natpmp::Request::Map { protocol, internal_port: 0, external_port: 0, lifetime: 0 },
        1 => natpmp::Request::Map { protocol, internal_port, external_port: 0, lifetime: 0 },
        _ => natpmp::Request::Map { protocol, internal_port, external_port, lifetime: 300 },
    };
    let claims = model.claims.len();
    let answer = raw(bench, now, from, &request.to_bytes()).expect("an answer");
    natpmp::Response::parse(&answer).expect("well-formed");
    assert_eq!(model.claims.len(), claims);
}

/// The server is killed, and everything that was stored stands again.
fn restart(bench: &mut Bench, now: Instant) {
    let began = bench.epoch_began.expect("it is stored");
    let mut server = Server::new(now, bench.server.config().clone(), began);
    let (mappings, holds) = bench.stored(now);
    bench.store = mappings.iter().map(|one| (one.key, (now, one.clone()))).collect();
    server.restore(now, mappings, holds);
    let lost: Vec<_> = server.outputs.iter().filter(|output| matches!(output, Output::Store(_))).collect();
    assert!(lost.is_empty(), "{lost:?}");
    bench.server.pool.end_holds(now, usize::MAX);
    assert_eq!(server.pool.owned_holds(), bench.server.pool.owned_holds());
    bench.server = server;
    bench.bindings.clear();
    bench.perform(now);
    assert!(
        bench.server.epoch(now) >= u32::try_from((now - began).as_secs()).expect("not that long"),
        "nothing was lost"
    );
}

#[test]
fn whatever_happens() {
    for seed in 0..SEEDS {
        assert!(std::panic::catch_unwind(|| run(seed)).is_ok(), "seed {seed}");
    }
}

//! Two hosts ask by all protocols at random, while the network loses and delays, the provider forgets, and the gateway is killed: what
//! somebody was told stands until then, as told, and in the end nothing is left that nobody was told of.

use wire::natpmp::{self, Transport};
use wire::pcp::{Nonce, PeerData};

use super::*;
use crate::gateway::LanArrival;

const HOSTS: [Ipv4Addr; 2] = [ALICE, BOB];

/// By whom it was asked: for UPnP's the port is the external one, for the others' the internal one.
type Who = (Ipv4Addr, &'static str, u16);

/// What was told: external port, internal port, and until when in milliseconds.
type Promise = (u16, u16, u64);

struct Storm {
    lab: Lab,
    dice: SeededEntropy,
    nat: NatMode,
    promises: BTreeMap<Who, Promise>,
    /// Control requests that are not answered yet: whose, internal port, lease; `None` for a deletion.
    asked: BTreeMap<RequestId, (Who, Option<(u16, u64)>)>,
    /// Effects that have been looked at.
    seen: usize,
    told: usize,
    /// PEER is said, too; and the provider forgets nothing, for it would give a flow's place, which is any, to the first who comes.
    asks_peer: bool,
    peers: usize,
}

impl Storm {
    fn new(nat: NatMode, seed: u64, asks_peer: bool) -> Self {
        let dice = SeededEntropy::new(seed ^ 0xd1ce);
        let (promises, asked) = (BTreeMap::new(), BTreeMap::new());
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().peer = asks_peer;
        Self { lab, asks_peer, dice, nat, promises, asked, seen: 0, told: 0, peers: 0 }
    }

    fn roll(&mut self, sides: usize) -> usize {
        let mut octets = [0; 2];
        self.dice.fill(&mut octets);
        usize::from(u16::from_be_bytes(octets)) % sides
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }

    fn nonce(who: Who) -> Nonce {
        let mut nonce = [7; 12];
        nonce[..4].copy_from_slice(&who.0.octets());
        nonce[4..6].copy_from_slice(&who.2.to_be_bytes());
        Nonce(nonce)
    }

    fn datagram(&mut self, host: Ipv4Addr, bytes: &[u8]) {
        let arrival =
            LanArrival { interface: 3, local: IpAddr::V4(LAN), from: SocketAddr::from((host, 4000)) };
        self.lab.event(Event::Lan5351 { arrival, bytes });
    }

    fn step(&mut self) {
        let (host, internal) = (self.one_of(&HOSTS), 5000 + u16::try_from(self.roll(4)).unwrap());
        let external = if self.roll(4) == 0 { internal + 10 } else { internal };
        let lifetime = self.one_of(&[120, 600, 3600, 0]);
        match self.roll(if self.asks_peer { 15 } else { 12 }).min(12) {
            0 | 1 => {
                let who = (host, "pcp", internal);
                let map = MapData {
                    nonce: Self::nonce(who),
                    protocol: Protocol::TCP,
                    internal_port: internal,
                    external_port: external,
                    external_addr: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
                };
                let strict = lifetime > 0 && self.roll(3) == 0;
                let options = if strict { vec![PcpOption::PreferFailure] } else { vec![] };
                let (client_addr, body) = (host.to_ipv6_mapped(), Body::Map(map));
                self.datagram(host, &Request { lifetime, client_addr, body, options }.to_bytes());
            }
            2 | 3 => {
                let (protocol, internal_port) = (Transport::Tcp, internal);
                let external_port = if lifetime == 0 { 0 } else { external };
                let request = natpmp::Request::Map { protocol, internal_port, external_port, lifetime };
                self.datagram(host, &request.to_bytes());
            }
            4 | 5 => {
                let lease = self.one_of(&[0, 300, 3600]);
                let add = Add { lease, ..port(external).to(internal) };
                let id = self.lab.start_add(host, 1, add);
                let lasts = if lease == 0 { u64::MAX } else { u64::from(lease) * 1000 };
                self.asked.insert(id, ((host, "igd", external), Some((internal, lasts))));
            }
            6 => {
                let id = self.lab.start_delete(host, 1, external);
                self.asked.insert(id, ((host, "igd", external), None));
            }
            7 => self.lab.silent ^= true,
            8 if !self.asks_peer => {
                let now = self.lab.instant();
                let bytes = self.lab.provider().lose_state(now);
                if !self.lab.silent {
                    self.lab.event(Event::Announcement { from: server(), bytes: &bytes });
                }
            }
            9 if self.roll(8) == 0 => {
                self.look(true);
                self.asked.clear(); // their connections end with the gateway
                // Where a PCP client was is forgotten. It hears of another epoch, and would ask again.
                for (who, promise) in &mut self.promises {
                    if who.1 == "pcp" {
                        promise.0 = 0;
                    }
                }
                self.lab.crash(config(self.nat), 77, 1000);
                self.lab.event(Event::Lan(lan()));
                self.lab.event(Event::Wan(wan(&[W])));
            }
            12 => {
                let protocol = self.one_of(&[Protocol::TCP, Protocol::UDP]);
                let (remote_addr, remote_port) = (Ipv4Addr::new(203, 0, 113, 9), 443);
                let flow = (protocol, at(host, internal), at(remote_addr, remote_port));
                match self.roll(3) {
                    0 => drop(self.lab.flows.remove(&flow)),
                    1 => drop(self.lab.flows.insert(flow, internal)),
                    _ => {}
                }
                let data = PeerData {
                    nonce: Self::nonce((host, "peer", internal)),
                    protocol,
                    internal_port: internal,
                    external_port: self.one_of(&[0, external]),
                    external_addr: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
                    remote_port,
                    remote_addr: remote_addr.to_ipv6_mapped(),
                };
                let (client_addr, body) = (host.to_ipv6_mapped(), Body::Peer(data));
                self.datagram(host, &Request { lifetime, client_addr, body, options: vec![] }.to_bytes());
            }
            _ => {
                let secs = if self.lab.silent { 1 } else { self.one_of(&[1, 5, 30, 200]) };
                self.lab.pass(secs);
            }
        }
        // It is never silent for so long that a mapping could end by that.
        if self.lab.silent && self.roll(3) == 0 {
            self.lab.silent = false;
        }
        self.look(false);
    }

    /// Takes in what was said since, and holds it against the table. `before_a_crash` nothing is compared.
    fn look(&mut self, before_a_crash: bool) {
        let sent: Vec<(u64, SocketAddr, Vec<u8>)> = self.lab.effects[self.seen..]
            .iter()
            .filter_map(|(at, effect)| match effect {
                Effect::LanSend { to, bytes, .. } if !to.ip().is_multicast() => {
                    Some((*at, *to, bytes.clone()))
                }
                _ => None,
            })
            .collect();
        let replied: BTreeMap<RequestId, u64> = self.lab.effects[self.seen..]
            .iter()
            .filter_map(|(at, effect)| match effect {
                Effect::Reply { request, .. } => Some((*request, *at)),
                _ => None,
            })
            .collect();
        self.seen = self.lab.effects.len();
        for (at, to, bytes) in sent {
            let IpAddr::V4(host) = to.ip() else { panic!("{to}") };
            match natpmp::Response::parse(&bytes) {
                Ok(natpmp::Response::Map { result, internal_port, external_port, lifetime, .. }) => {
                    if result == natpmp::ResultCode::SUCCESS {
                        self.promise(
                            (host, "nat-pmp", internal_port),
                            (external_port, internal_port),
                            at,
                            lifetime,
                        );
                    }
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => {
                    let answer = Response::parse(&bytes).expect("PCP");
                    let map = match answer.body {
                        Body::Map(map) => map,
                        // It may end with what others have made: only that it is told, and harms nobody, is looked at.
                        Body::Peer(peer) => {
                            self.peers += usize::from(answer.result == ResultCode::SUCCESS);
                            assert_eq!(peer.nonce, Self::nonce((host, "pcp", peer.internal_port)));
                            continue;
                        }
                        _ => panic!("{answer:?}"),
                    };
                    let who = (host, "pcp", map.internal_port);
                    assert_eq!(map.nonce, Self::nonce(who), "who has asked");
                    if answer.result == ResultCode::SUCCESS {
                        self.promise(who, (map.external_port, map.internal_port), at, answer.lifetime);
                    }
                }
            }
        }
        for (id, (who, wanted)) in std::mem::take(&mut self.asked) {
            match (self.lab.heard(id), wanted) {
                (None, wanted) => drop(self.asked.insert(id, (who, wanted))),
                (Some(Ok(_)), Some((internal, lasts))) => {
                    // The lease began when it was asked for.
                    let until = replied[&id].saturating_add(lasts).saturating_sub(5000);
                    self.promises.insert(who, (who.2, internal, until));
                    self.told += 1;
                }
                (Some(Ok(_)), None) => drop(self.promises.remove(&who)),
                // Refused, or perhaps changed all the same.
                (Some(Err(501)), _) => drop(self.promises.remove(&who)),
                (Some(Err(_)), _) => {}
            }
        }
        // What a control point leads elsewhere, or deletes, it is told of when that is done.
        let changing: Vec<Who> = self.asked.values().map(|(who, _)| *who).collect();
        if !before_a_crash {
            self.compare(&changing);
        }
    }

    fn promise(&mut self, who: Who, (external, internal): (u16, u16), at: u64, lifetime: u32) {
        if lifetime == 0 {
            self.promises.remove(&who);
        } else {
            self.promises.insert(who, (external, internal, at + u64::from(lifetime) * 1000));
            self.told += 1;
        }
    }

    fn compare(&mut self, changing: &[Who]) {
        let now = self.lab.now;
        self.promises.retain(|_, (.., until)| *until > now);
        // What is promised is all of TCP.
        let all = self.lab.gateway.mappings(self.lab.instant());
        let tcp = all.filter(|one| one.protocol == Protocol::TCP);
        let mapped: Vec<_> = tcp.map(|one| (one.external.port(), one.internal)).collect();
        for (who, (external, internal, _)) in &self.promises {
            if !changing.contains(who) {
                // NAT-PMP has no words for another port.
                let told = |port: u16| port == *external || *external == 0 || who.1 == "nat-pmp";
                let stands = mapped.iter().any(|&(port, to)| told(port) && to == at(who.0, *internal));
                let story = || {
                    let lines = self.lab.effects.iter().rev().take(1000).rev();
                    lines.map(|(at, effect)| format!("{at} {effect:?}\n")).collect::<String>()
                };
                assert!(stands, "{}\n{who:?} was told of {external}; {mapped:?}", story());
            }
        }
        let mut ports: Vec<u16> = mapped.iter().map(|(port, _)| *port).collect();
        ports.dedup();
        assert_eq!(ports.len(), mapped.len(), "one mapping for each port");
    }

    /// Everything works for long: all agree, and in the end nothing is left.
    fn calm(&mut self) {
        self.lab.silent = false;
        for _ in 0..60 {
            self.lab.pass(60);
            self.look(false);
        }
        for host in HOSTS {
            let all = natpmp::Request::Map {
                protocol: Transport::Tcp,
                internal_port: 0,
                external_port: 0,
                lifetime: 0,
            };
            self.datagram(host, &all.to_bytes());
            for external in
                self.lab.mapped().into_iter().filter(|(_, at)| *at.ip() == host).map(|(port, _)| port)
            {
                self.lab.start_delete(host, 1, external);
            }
        }
        self.lab.pass(4000);
        assert_eq!(self.lab.mapped(), [], "what has no end was deleted");
        assert_eq!(self.lab.upstream(), []);
        assert!(self.lab.rules.is_empty() && self.lab.gateway.is_idle());
        assert_eq!(self.lab.gateway.nat_ports_in_use(), 0);
    }
}

fn storms(asks_peer: bool) -> (usize, usize) {
    let (mut told, mut peers) = (0, 0);
    for seed in 0..120 {
        for nat in BOTH {
            let mut storm = Storm::new(nat, seed, asks_peer);
            for _ in 0..120 {
                storm.step();
            }
            storm.calm();
            told += storm.told;
            peers += storm.peers;
        }
    }
    (told, peers)
}

#[test]
fn what_was_told_stands() {
    let (told, _) = storms(false);
    assert!(told > 3000, "{told}");
}

/// What PEER gets does no harm to what others were told of, and nothing of it is left.
#[test]
fn what_was_told_stands_beside_peer() {
    let (told, peers) = storms(true);
    assert!(told > 2000 && peers > 1000, "{told}, {peers}");
}

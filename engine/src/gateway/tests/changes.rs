//! What others are told of who follow the mappings: every test of the gateway checks that what they know is what stands.

use super::*;
use crate::claims::AskedBy;
use crate::gateway::LanArrival;
use crate::notice::Cause;
use crate::status::MappingStatus;

/// Somebody who knows nothing but what he is told.
#[derive(Debug, Default)]
pub(super) struct Follower {
    external: Option<Ipv4Addr>,
    standing: BTreeMap<FlowId, MappingStatus>,
}

/// What makes a mapping another one for who follows it.
fn told(mapping: &MappingStatus) -> (Protocol, SocketAddrV4, SocketAddrV4, Option<Ipv4Addr>, &str, AskedBy) {
    let MappingStatus { protocol, external, internal, remote_peer, description, asked_by, .. } = mapping;
    (*protocol, *external, *internal, *remote_peer, description, *asked_by)
}

impl Follower {
    /// Each change is told once, and follows from what was told before.
    pub(super) fn follow(&mut self, change: Change) {
        match change {
            Change::External { before, now } => {
                assert_eq!(before, self.external);
                assert_ne!(before, now);
                self.external = now;
            }
            Change::Mapping { flow, what, mapping } => {
                assert!(!mapping.external.ip().is_unspecified(), "{mapping:?}");
                let known = match what {
                    What::Ended(_) => self.standing.remove(&flow),
                    _ => self.standing.insert(flow, mapping.clone()),
                };
                match (what, known) {
                    (What::Present | What::Began, None) => {}
                    (What::Moved(from), Some(known)) => {
                        assert_eq!(from, known.external);
                        assert_ne!(from, mapping.external);
                    }
                    (What::Changed, Some(known)) => {
                        assert_eq!(known.external, mapping.external);
                        assert_ne!(told(&known), told(&mapping));
                    }
                    (What::Ended(_), Some(known)) => assert_eq!(told(&known), told(&mapping)),
                    (what, known) => panic!("{what:?} of {known:?}"),
                }
            }
        }
    }

    /// Who began late knows the same as who was there all the time.
    pub(super) fn check(&self, gateway: &Gateway, now: Instant) {
        let mut late = Follower::default();
        gateway.standing(now).for_each(|change| late.follow(change));
        assert_eq!((self.external, self.external), (late.external, gateway.status(now).external));
        let all = |follower: &Follower| -> Vec<String> {
            follower.standing.iter().map(|(flow, mapping)| format!("{flow:?} {:?}", told(mapping))).collect()
        };
        assert_eq!(all(self), all(&late));
        let seen = |mapping: &MappingStatus| !mapping.external.ip().is_unspecified();
        assert_eq!(self.standing.len(), gateway.mappings(now).filter(seen).count());
        // Whoever counts on a mapping is known; who does no more may be, too.
        for mapping in gateway.mappings(now).filter(seen) {
            let key = |one: &MappingStatus| (one.protocol, one.external);
            let known = self.standing.values().find(|known| key(known) == key(&mapping));
            let (known, by) = (known.expect("counted above").asked_by, mapping.asked_by);
            assert!(by.igd <= known.igd && by.pcp <= known.pcp && by.nat_pmp <= known.nat_pmp);
        }
    }
}

impl Lab {
    /// A PCP client's MAP, the same external port as internal; with `lifetime` 0 a delete.
    fn map_tcp(&mut self, host: Ipv4Addr, port: u16, lifetime: u32) {
        let map = MapData {
            nonce: Nonce([1; 12]),
            protocol: Protocol::TCP,
            internal_port: port,
            external_port: if lifetime == 0 { 0 } else { port },
            external_addr: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
        };
        let (client_addr, body, options) = (host.to_ipv6_mapped(), Body::Map(map), Vec::new());
        self.lan_asks(host, &Request { lifetime, client_addr, body, options }.to_bytes());
    }

    fn nat_pmp_tcp(&mut self, host: Ipv4Addr, port: u16, lifetime: u32) {
        let (protocol, internal_port) = (wire::natpmp::Transport::Tcp, port);
        let external_port = if lifetime == 0 { 0 } else { port };
        let request = wire::natpmp::Request::Map { protocol, internal_port, external_port, lifetime };
        self.lan_asks(host, &request.to_bytes());
    }

    fn lan_asks(&mut self, host: Ipv4Addr, bytes: &[u8]) {
        let arrival =
            LanArrival { interface: 3, local: IpAddr::V4(LAN), from: SocketAddr::from((host, 4000)) };
        self.event(Event::Lan5351 { arrival, bytes });
    }

    /// What was told since the last time: the change, and the external and internal address and port.
    fn changes(&mut self) -> Vec<(What, SocketAddrV4, SocketAddrV4)> {
        let mappings = self.effects.drain(..).filter_map(|(_, effect)| match effect {
            Effect::Changed(Change::Mapping { what, mapping, .. }) => {
                Some((what, mapping.external, mapping.internal))
            }
            _ => None,
        });
        mappings.collect()
    }
}

/// The provider's lifetimes are short, so that renewals come soon.
pub(super) fn short_of_time(nat: NatMode) -> Lab {
    let mut lab = Lab::up(nat);
    lab.provider().config_mut().longest = 400;
    lab
}

#[test]
fn a_mapping_begins_changes_and_ends_once() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        assert_eq!(lab.changes(), [(What::Began, at(E, 8080), at(ALICE, 8080))]);
        // A lease that begins anew is none, nor is a renewal.
        lab.pass(1000);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        assert_eq!(lab.changes(), []);
        assert_eq!(lab.add(ALICE, 1, Add { description: "other", ..port(8080) }), done());
        assert_eq!(lab.changes(), [(What::Changed, at(E, 8080), at(ALICE, 8080))]);
        assert_eq!(lab.delete(ALICE, 1, 8080), done());
        assert_eq!(lab.changes(), [(What::Ended(Cause::Deleted), at(E, 8080), at(ALICE, 8080))]);
        assert_eq!(lab.add(BOB, 1, Add { lease: 100, ..port(9090) }), done());
        lab.changes();
        lab.pass(100);
        assert_eq!(lab.changes(), [(What::Ended(Cause::LeaseEnded), at(E, 9090), at(BOB, 9090))]);
    }
}

/// The application that was told of its external port listens there now, and asks for that one: our own NAT leads the mapping
/// there. Without one the provider's NAT has to, and ours will not: it keeps the port for who had it (RFC 6887 §15.1).
/// So what was there is asked for again, and all of it is told.
#[test]
fn the_internal_port_follows_the_external_one() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 2, any(8081).to(8080)), Ok(vec!["8081".to_owned()]));
        assert_eq!(lab.changes(), [(What::Began, at(E, 8081), at(ALICE, 8080))]);
        let (heard, changes, internal) = match nat {
            NatMode::Own => (done(), vec![(What::Changed, at(E, 8081), at(ALICE, 8081))], 8081),
            NatMode::None => (
                Err(718),
                vec![
                    (What::Ended(Cause::Replaced), at(E, 8081), at(ALICE, 8080)),
                    (What::Began, at(E, 8081), at(ALICE, 8080)),
                ],
                8080,
            ),
        };
        assert_eq!(lab.add(ALICE, 1, port(8081)), heard);
        assert_eq!(lab.changes(), changes);
        assert_eq!(lab.mapped(), [(8081, at(ALICE, internal))]);
    }
}

/// Decision 15: what AddAnyPortMapping made follows the provider; AddPortMapping's ends, and says where it would have gone.
#[test]
fn the_provider_moves_mappings() {
    for nat in BOTH {
        let mut lab = short_of_time(nat);
        assert_eq!(lab.add(ALICE, 2, any(8080)), Ok(vec!["8080".to_owned()]));
        lab.changes();
        lab.script.push_back(Reaction::Grant(E, 7000));
        lab.pass(250);
        assert_eq!(lab.changes(), [(What::Moved(at(E, 8080)), at(E, 7000), at(ALICE, 8080))]);

        let mut lab = short_of_time(nat);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        lab.changes();
        lab.script.push_back(Reaction::Grant(E, 7000));
        lab.pass(250);
        let cause = Cause::MovedUpstream(at(E, 7000));
        assert_eq!(lab.changes(), [(What::Ended(cause), at(E, 8080), at(ALICE, 8080))]);
    }
}

#[test]
fn another_external_address_moves_every_mapping_and_is_told_itself() {
    let other = Ipv4Addr::new(203, 0, 113, 9);
    for nat in BOTH {
        let mut lab = short_of_time(nat);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        lab.pass(50);
        assert_eq!(lab.add(BOB, 1, port(9090)), done());
        lab.effects.clear();
        lab.script.push_back(Reaction::Grant(other, 8080));
        lab.script.push_back(Reaction::Grant(other, 9090));
        while lab.sent().len() < 2 {
            lab.pass(1);
        }
        let external = lab.effects.iter().find_map(|(_, effect)| match effect {
            Effect::Changed(Change::External { before, now }) => Some((*before, *now)),
            _ => None,
        });
        assert_eq!(external, Some((Some(E), Some(other))));
        let mut told = lab.changes();
        told.sort_by_key(|(_, external, _)| external.port());
        assert_eq!(
            told,
            [
                (What::Moved(at(E, 8080)), at(other, 8080), at(ALICE, 8080)),
                (What::Moved(at(E, 9090)), at(other, 9090), at(BOB, 9090)),
            ]
        );
    }
}

/// What stood before the start is no news; and the external address is known again only from the provider.
#[test]
fn a_start_tells_what_stood_before() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        lab.changes();
        lab.crash(config(nat), 77, 1000);
        assert_eq!(lab.changes(), [(What::Present, at(E, 8080), at(ALICE, 8080))]);
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(wan(&[W])));
        lab.pass(60);
        assert_eq!(lab.changes(), [], "nothing has changed");
        lab.event(Event::Stop);
        lab.pass(10);
        assert_eq!(lab.changes(), [(What::Ended(Cause::Stopping), at(E, 8080), at(ALICE, 8080))]);
    }
}

/// What only this router knows of is nothing for people outside, until the provider has given it an address.
#[test]
fn a_mapping_of_this_router_alone_begins_with_the_provider() {
    let when_unreachable = WhenUnreachable::Local;
    let mut lab = Lab::up_with(Config { when_unreachable, ..config(NatMode::Own) });
    lab.silent = true;
    let id = lab.start_add(ALICE, 1, port(8080));
    lab.pass(30);
    assert_eq!(lab.heard(id), Some(done()));
    assert_eq!((lab.mapped().len(), lab.changes()), (1, vec![]));
    lab.silent = false;
    lab.pass(2000);
    assert_eq!(lab.changes(), [(What::Began, at(E, 8080), at(ALICE, 8080))]);
}

/// A success that was not stored is none; but it stood, and ends.
#[test]
fn what_cannot_be_stored_ends() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        lab.event(Event::StoreFailed("no space left".into()));
        assert_eq!(
            lab.changes(),
            [
                (What::Began, at(E, 8080), at(ALICE, 8080)),
                (What::Ended(Cause::NotStored), at(E, 8080), at(ALICE, 8080)),
            ]
        );
    }
}

/// Who follows one protocol's mappings (docs/hooks.md) hears when that joins what another one has made, and when it lets go. A claim that
/// ends by time is told of when somebody next asks for the mapping.
#[test]
fn protocols_that_join_and_leave() {
    let by = |igd, pcp, nat_pmp| AskedBy { igd, pcp, nat_pmp };
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        let told = |lab: &mut Lab| -> Vec<(What, AskedBy)> {
            let all = lab.effects.drain(..).filter_map(|(_, effect)| match effect {
                Effect::Changed(Change::Mapping { what, mapping, .. }) => Some((what, mapping.asked_by)),
                _ => None,
            });
            all.collect()
        };
        lab.map_tcp(ALICE, 8080, 600);
        assert_eq!(told(&mut lab), [(What::Began, by(false, true, false))], "{nat:?}");
        assert_eq!(lab.add(ALICE, 1, Add { description: "PCP", ..port(8080) }), done());
        assert_eq!(told(&mut lab), [(What::Changed, by(true, true, false))], "{nat:?}: UPnP joins");
        lab.pass(10); // or the provider would not be asked for more
        lab.nat_pmp_tcp(ALICE, 8080, 7200);
        assert_eq!(told(&mut lab), [(What::Changed, by(true, true, true))], "{nat:?}");
        // All of them again.
        lab.map_tcp(ALICE, 8080, 600);
        lab.nat_pmp_tcp(ALICE, 8080, 7200);
        assert_eq!(lab.add(ALICE, 1, Add { description: "PCP", ..port(8080) }), done());
        assert_eq!(told(&mut lab), [], "{nat:?}");
        // PCP's lifetime ends, and nobody says so until somebody asks.
        lab.pass(1000);
        assert_eq!(told(&mut lab), [], "{nat:?}");
        assert_eq!(lab.add(ALICE, 1, Add { description: "PCP", ..port(8080) }), done());
        assert_eq!(told(&mut lab), [(What::Changed, by(true, false, true))], "{nat:?}");
        lab.map_tcp(ALICE, 8080, 600);
        assert_eq!(told(&mut lab), [(What::Changed, by(true, true, true))], "{nat:?}: it has come back");
        // It comes back before anybody has noticed.
        lab.pass(1000);
        lab.map_tcp(ALICE, 8080, 600);
        assert_eq!(told(&mut lab), [], "{nat:?}");
        assert_eq!(lab.delete(ALICE, 1, 8080), done());
        assert_eq!(told(&mut lab), [(What::Changed, by(false, true, true))], "{nat:?}: UPnP leaves");
        lab.nat_pmp_tcp(ALICE, 8080, 0);
        assert_eq!(told(&mut lab), [(What::Changed, by(false, true, false))], "{nat:?}");
        lab.map_tcp(ALICE, 8080, 0);
        assert_eq!(told(&mut lab), [(What::Ended(Cause::Deleted), by(false, true, false))], "{nat:?}");
    }
}

//! Another WAN interface takes the place of the one so far (failover, decision 19): its servers are others, whatever they are called.

use super::*;
use crate::table::Health;

const E2: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);

fn second() -> SocketAddr {
    "198.51.100.1:5351".parse().unwrap()
}

fn other_provider(nat: NatMode) -> Provider {
    let settings = ProviderConfig { third_party: nat == NatMode::None, ..ProviderConfig::new(E2) };
    Provider::new(Instant::default(), settings)
}

/// The second line, whose server somebody has named.
fn lte() -> Wan {
    Wan { name: "wwan0".into(), is_spare: true, servers: Some(vec![second()]), router: None, ..wan(&[W]) }
}

fn ports_at(lab: &Lab, server: SocketAddr) -> Vec<u16> {
    let mappings = lab.providers[&server].mappings().filter(|mapping| mapping.internal.port() != 9);
    mappings.map(|mapping| mapping.external.port()).collect()
}

/// The nonces of the mappings asked for since `since`, deletes left out.
fn nonces(lab: &Lab, since: u64) -> Vec<(u16, Nonce)> {
    let asked = lab.all_sent().into_iter().filter(|(at, request)| *at >= since && request.lifetime > 0);
    let of_port = asked.map(|(_, request)| map_of(&request)).map(|map| (map.internal_port, map.nonce));
    let mut all: Vec<_> = of_port.filter(|(port, _)| *port >= 1024).collect();
    all.sort_unstable_by_key(|(port, nonce)| (*port, nonce.0));
    all.dedup();
    all
}

#[test]
fn mappings_follow_the_wan_and_come_back() {
    for nat in [NatMode::Own, NatMode::None] {
        let mut lab = Lab::up(nat);
        lab.providers.insert(second(), other_provider(nat));
        for n in 0..5 {
            assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080 + n) }), done());
        }
        lab.pass(1);
        let (before, went) = (nonces(&lab, 0), lab.now);
        lab.event(Event::Wan(lte()));
        assert!(lab.mapped().len() == 5, "nothing is lost on the way");
        lab.pass(10);
        let mut ports = ports_at(&lab, second());
        ports.sort_unstable();
        assert_eq!(ports, [8080, 8081, 8082, 8083, 8084], "{nat:?}");
        assert_eq!(lab.connection(), connected(E2));
        assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
        let there = nonces(&lab, went);
        assert!(there.iter().all(|nonce| !before.contains(nonce)), "another server hears other nonces");
        let from_to = Notice::OtherWan { from: "wan0".into(), to: "wwan0".into() };
        assert_eq!(lab.notices().iter().filter(|notice| **notice == from_to).count(), 1);

        let back = lab.now;
        lab.event(Event::Wan(wan(&[W])));
        lab.pass(10);
        assert_eq!((lab.connection(), lab.mapped().len()), (connected(E), 5));
        assert_eq!(nonces(&lab, back), before, "it knows us by the nonces of before");
        assert_eq!(ports_at(&lab, server()).len(), 5);
    }
}

/// Two routers of two providers are both 192.168.1.1, and give the same address: that is not the same line.
#[test]
fn the_same_addresses_on_another_interface_are_another_line() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    lab.pass(1);
    let (before, went) = (nonces(&lab, 0), lab.now);
    lab.providers.insert(server(), other_provider(NatMode::Own));
    lab.event(Event::Wan(Wan { name: "wan1".into(), ..wan(&[W]) }));
    lab.pass(10);
    assert_eq!((lab.connection(), ports_at(&lab, server())), (connected(E2), vec![8080]));
    assert!(nonces(&lab, went).iter().all(|nonce| !before.contains(nonce)));
}

/// Nobody answers on the second line: what an application asks for there is refused, and nothing of before is lost.
#[test]
fn a_second_line_without_a_server() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    lab.event(Event::Wan(lte()));
    lab.pass(60);
    let id = lab.start_add(ALICE, 2, port(9090));
    lab.pass(4);
    assert_eq!(lab.heard(id), Some(Err(501)));
    assert_eq!(lab.status().external, None, "the first line's address is not that of the second");
    lab.event(Event::Wan(Wan { addresses: Vec::new(), up: false, ..lte() }));
    lab.pass(60);
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(10);
    assert_eq!((lab.connection(), lab.mapped()), (connected(E), vec![(8080, at(ALICE, 8080))]));
}

/// A power cut while the spare line was in use; the first one is there again at the next start. Its server still has the mapping by the
/// nonce of before, and would refuse the other one's.
#[test]
fn a_crash_on_the_second_line_and_a_start_on_the_first() {
    for nat in [NatMode::Own, NatMode::None] {
        let mut lab = Lab::up(nat);
        lab.providers.insert(second(), other_provider(nat));
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        lab.pass(1);
        let before = nonces(&lab, 0);
        lab.event(Event::Wan(lte()));
        lab.pass(10);
        assert_eq!(ports_at(&lab, second()), [8080]);
        let crashed = lab.now;
        lab.crash(config(nat), 77, 1000);
        lab.bring_up();
        lab.pass(60);
        assert_eq!(nonces(&lab, crashed + 1), before, "{nat:?}");
        assert_eq!((lab.connection(), lab.mapped()), (connected(E), vec![(8080, at(ALICE, 8080))]));
        assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
    }
}

/// Others were about to be looked at, and there are others now: there is a pause between two looks all the same.
#[test]
fn a_look_that_was_due_when_the_wan_changed() {
    let third = "198.51.100.3:5351".parse().unwrap();
    let mut lab = Lab::new(Config { servers: vec![server(), third], ..config(NatMode::Own) });
    lab.silent = true;
    lab.bring_up();
    // No socket is there yet, or the wait for its first answer would begin anew.
    lab.gateway.handle(lab.instant(), Event::Wan(Wan { servers: Some(vec![second(), third]), ..lte() }));
    while lab.gateway.poll_effect().is_some() {}
    let end = lab.instant() + Duration::from_secs(60);
    let mut turns = 0;
    while let Some(due) = lab.gateway.next_timeout().filter(|due| *due < end) {
        lab.gateway.handle(due, Event::Timeout);
        while lab.gateway.poll_effect().is_some() {}
        turns += 1;
        assert!(turns < 1000, "it never sleeps");
    }
}

/// At the spare line somebody else has the port, or gets another one; or nobody is there at all, for longer than any lifetime. On the way
/// back everything is there again, whatever happened meanwhile.
#[test]
fn what_a_spare_line_does_not_give_is_kept_for_the_usual_one() {
    let refusals = [ResultCode::CANNOT_PROVIDE_EXTERNAL, ResultCode::NOT_AUTHORIZED];
    let refused = refusals.map(|result| (Some(Reaction::Refuse(result, 30)), 10));
    let others = [(Some(Reaction::Grant(E2, 40_000)), 10), (None, 10), (None, 3 * 86_400)];
    for nat in [NatMode::Own, NatMode::None] {
        for (reaction, away) in refused.into_iter().chain(others) {
            let mut lab = Lab::up(nat);
            if reaction.is_some() {
                lab.providers.insert(second(), other_provider(nat));
            }
            assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
            lab.script = reaction.into_iter().collect();
            lab.event(Event::Wan(lte()));
            lab.pass(away);
            assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))], "{nat:?} {reaction:?}");
            let health = |lab: &Lab| lab.gateway.mappings(lab.instant()).next().unwrap().health;
            assert_eq!(health(&lab), Health::Degraded);
            lab.script.clear();
            lab.event(Event::Wan(wan(&[W])));
            lab.pass(10);
            assert_eq!((lab.mapped(), health(&lab)), (vec![(8080, at(ALICE, 8080))], Health::Active));
            assert_eq!((lab.connection(), ports_at(&lab, server())), (connected(E), vec![8080]));
            assert!(lab.store.contains_key(&(Protocol::TCP, 8080)));
        }
    }
}

/// The spare line's server has it, and is silent for longer than that lasts: it is asked again for that, and gives it at once when it
/// answers.
#[test]
fn a_spare_line_that_was_silent() {
    for nat in [NatMode::Own, NatMode::None] {
        let mut lab = Lab::up(nat);
        lab.providers.insert(second(), other_provider(nat));
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        lab.event(Event::Wan(lte()));
        lab.pass(10);
        assert_eq!(ports_at(&lab, second()), [8080], "{nat:?}");
        let provider = lab.providers.remove(&second()).expect("it was inserted above");
        let is_over = |lab: &Lab| lab.notices().iter().any(|notice| matches!(notice, Notice::NotAtSpare(..)));
        while !is_over(&lab) {
            assert!(lab.now < 200_000_000, "{nat:?}: it cannot last so long");
            lab.pass(60);
        }
        assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))]);
        lab.providers.insert(second(), provider);
        assert_eq!(lab.add(BOB, 1, port(9090)), done());
        lab.pass(10);
        assert_eq!(ports_at(&lab, second()), [8080, 9090], "{nat:?}");
        assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
    }
}

/// Its owner may delete it there, and its lease may end there.
#[test]
fn what_is_kept_for_the_usual_line_can_end() {
    for nat in [NatMode::Own, NatMode::None] {
        for deletes in [true, false] {
            let mut lab = Lab::up(nat);
            lab.providers.insert(second(), other_provider(nat));
            assert_eq!(lab.add(ALICE, 1, Add { lease: 600, ..port(8080) }), done());
            lab.script = [Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 30)].into();
            lab.event(Event::Wan(lte()));
            lab.pass(10);
            if deletes {
                assert_eq!(lab.delete(ALICE, 1, 8080), done());
            } else {
                lab.pass(600);
            }
            assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0), "{nat:?} {deletes}");
            assert!(lab.store.is_empty() || !deletes, "what ends by itself ends in the store, too");
        }
    }
}

/// The spare line has nobody who could be asked. The usual one's server is the one of before when that is back.
#[test]
fn a_spare_line_with_nobody_to_ask() {
    for away in [10, 3500, 3650, 86_410, 3 * 86_400] {
        let mut lab = Lab::up_with(Config { anycast: false, ..config(NatMode::None) });
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        lab.event(Event::Wan(Wan { servers: Some(Vec::new()), ..lte() }));
        lab.pass(away);
        assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))], "{away}");
        lab.event(Event::Wan(wan(&[W])));
        lab.pass(10);
        assert_eq!((lab.connection(), ports_at(&lab, server())), (connected(E), vec![8080]), "{away}");
        assert!(
            lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active),
            "{away}"
        );
    }
}

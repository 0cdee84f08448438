//! Servers that are silent, slow or odd; answers in time all the same, and nothing left behind.

use super::*;
use crate::request::Refusal;
use crate::table::Health;

/// R-7, D-1, decisions 1 and 21: 501 exactly at answer_within; asked at 0, 1 and 3 s; after 20 s more, given up; deleted
/// upstream for 30 s, in case something is there.
#[test]
fn a_silent_server() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.silent = true;
        let start = lab.now;
        let id = lab.start_add(ALICE, 2, port(8080));
        lab.run(start + 3499);
        assert_eq!(lab.heard(id), None);
        lab.run(start + 3500);
        assert_eq!(lab.heard(id), Some(Err(501)));
        let asked: Vec<u64> = lab.sent().iter().map(|(at, _)| at - start).collect();
        assert_eq!(asked, [0, 1000, 3000]);
        lab.run(start + 23_499);
        assert!(lab.sent().iter().all(|(_, request)| request.lifetime > 0));
        lab.seen();
        lab.pass(60);
        let sent = lab.sent();
        assert!(sent.iter().all(|(at, request)| request.lifetime == 0 && *at < start + 54_000), "{sent:?}");
        assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
        lab.silent = false;
        lab.pass(300);
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    }
}

/// Decision 2: what needs no exchange is answered at once, however silent the server is.
#[test]
fn nobody_waits_for_another() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.silent = true;
    let waiting = lab.start_add(BOB, 2, port(9090));
    assert_eq!(lab.add(BOB, 2, port(8080)), Err(718));
    assert_eq!(lab.add(ALICE, 2, port(8080)), done(), "its own again");
    assert_eq!(lab.add(ALICE, 2, port(8080).to(8081)), done(), "decision 9");
    assert_eq!(lab.call(BOB, 1, "GetExternalIPAddress", &[]), Ok(vec!["198.51.100.7".into()]));
    assert_eq!(lab.heard(waiting), None);
}

/// T-7: one lost packet costs a second, two cost three; the control point hears success in time.
#[test]
fn lost_packets() {
    for reaction in [Reaction::Lose, Reaction::LoseAnswer] {
        for (lost, ms) in [(0, 0), (1, 1000), (2, 3000)] {
            let mut lab = Lab::up(NatMode::Own);
            lab.script = vec![reaction; lost].into();
            let start = lab.now;
            let id = lab.start_add(ALICE, 2, port(8080));
            lab.run(start + 3499);
            assert_eq!(lab.heard(id), Some(done()), "{lost} × {reaction:?}");
            let reply = lab.effects.iter().find(|(_, effect)| matches!(effect, Effect::Reply { .. }));
            assert_eq!(reply.unwrap().0, start + ms);
            assert_eq!(lab.upstream().len(), 1);
        }
    }
}

/// Decision 1 and T-7: a success that comes too late is kept 30 s for the same request again, then deleted upstream.
#[test]
fn a_late_success() {
    for nat in BOTH {
        let late = |nat| {
            let mut lab = Lab::up(nat);
            lab.silent = true;
            let id = lab.start_add(ALICE, 2, port(8080));
            lab.pass(5);
            assert_eq!(lab.heard(id), Some(Err(501)));
            lab.silent = false;
            lab.pass(10);
            assert_eq!((lab.upstream().len(), lab.mapped().len(), lab.rules.len()), (1, 0, 0));
            lab.seen();
            lab
        };
        // Asked again: it is there, without another exchange.
        let mut lab = late(nat);
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        assert_eq!(lab.sent(), []);
        assert_eq!((lab.mapped().len(), lab.upstream().len()), (1, 1));
        lab.pass(600);
        assert_eq!((lab.mapped().len(), lab.upstream().len()), (1, 1), "and stays");
        // By somebody else it is not to be had.
        let mut lab = late(nat);
        assert_eq!(lab.add(BOB, 2, port(8080)), Err(718));
        // Not asked again: it is given back.
        lab.pass(15);
        assert_eq!(lab.upstream().len(), 1, "30 s, from when it came");
        lab.pass(20);
        assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0));
        lab.pass(120);
        assert_eq!(lab.add(BOB, 2, port(8080)), done());
    }
}

/// Decisions 1 and 2: a second try while the first goes on in the background waits for the same exchange, its own full time.
#[test]
fn a_second_try_joins_the_first() {
    let mut lab = Lab::up(NatMode::Own);
    lab.silent = true;
    let first = lab.start_add(ALICE, 2, port(8080));
    lab.pass(23);
    let start = lab.now;
    let second = lab.start_add(ALICE, 2, port(8080));
    lab.run(start + 3499);
    assert_eq!((lab.heard(first), lab.heard(second)), (Some(Err(501)), None));
    lab.run(start + 3500);
    assert_eq!(lab.heard(second), Some(Err(501)));
    let third = lab.start_add(ALICE, 2, port(8080));
    lab.silent = false;
    lab.pass(3);
    assert_eq!(lab.heard(third), Some(done()));
    assert_eq!((lab.mapped().len(), lab.upstream().len()), (1, 1));
}

/// The router's own NAT takes too long: 501, and when it is done at last, all is taken back.
#[test]
fn a_late_nat() {
    for step in [0, 1] {
        let mut lab = Lab::up(NatMode::Own);
        lab.slow_nat = true;
        let id = lab.start_add(ALICE, 2, port(8080));
        for _ in 0..step {
            lab.release_nat();
        }
        lab.pass(4);
        assert_eq!(lab.heard(id), Some(Err(501)));
        lab.slow_nat = false;
        lab.release_nat();
        lab.pass(60);
        assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0), "step {step}");
        lab.pass(120);
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    }
}

/// T-6, K-17, decision 5: SUCCESS with another port to PREFER_FAILURE is no success: given back by its own nonce, and 718.
#[test]
fn a_server_that_passes_prefer_failure_over() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().prefer_failure = crate::provider::PreferFailure::PassedOver;
        lab.provider().config_mut().hold = Duration::ZERO;
        let other = Request {
            lifetime: 3600,
            client_addr: W.to_ipv6_mapped(),
            body: Body::Map(MapData {
                nonce: wire::pcp::Nonce([9; 12]),
                protocol: Protocol::TCP,
                internal_port: 1,
                external_port: 8080,
                external_addr: wire::pcp::NO_ADDR_V4,
            }),
            options: Vec::new(),
        };
        let now = lab.instant();
        lab.provider().handle_datagram(now, SocketAddr::from((W, 1)), &other.to_bytes());
        for version in [1, 2] {
            lab.effects.clear();
            assert_eq!(lab.add(ALICE, version, port(8080)), Err(718));
            let got = SocketAddrV4::new(E, map_of(&lab.sent()[0].1).external_port);
            assert_eq!(got.port(), 8080, "it was asked for");
            let told = lab.notices();
            assert!(matches!(told[0], Notice::OtherPort(_, Protocol::TCP, 8080, _)), "{told:?}");
            let refused = Notice::Refused(
                IpAddr::V4(ALICE),
                Protocol::TCP,
                Some(8080),
                at(ALICE, 8080),
                Refusal::Conflict,
            );
            assert_eq!(told[1..], [refused]);
            let sent = lab.sent();
            assert_eq!(sent.len(), 2);
            assert_eq!(map_of(&sent[0].1).nonce, map_of(&sent[1].1).nonce);
            assert_eq!(sent[1].1.lifetime, 0);
            assert_eq!(lab.upstream().len(), 1, "the other client's only");
            assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
        }
        assert_eq!(lab.add(ALICE, 2, port(9090)), done(), "a free port is no problem");
    }
}

/// Security policy: an external address that nobody can reach is given back, and 501.
#[test]
fn an_unusable_external_address() {
    for (addr, port_given) in
        [([0, 0, 0, 0], 8080), ([127, 0, 0, 1], 8080), ([224, 0, 0, 1], 8080), (E.octets(), 0)]
    {
        for wanted in [port(8080), any(8080)] {
            let mut lab = Lab::up(NatMode::Own);
            lab.script = [Reaction::Grant(addr.into(), port_given)].into();
            assert_eq!(lab.add(ALICE, 2, wanted), Err(501), "{addr:?}:{port_given}");
            let sent = lab.sent();
            assert_eq!((sent.len(), sent[1].1.lifetime), (2, 0));
            assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
            assert_eq!(lab.connection().1, "198.51.100.7", "what the probe has told stands");
        }
    }
}

/// Security policy: an external port that nobody may ask for is given back, by whatever wish it came; and so is a mapping that the server moves
/// there.
#[test]
fn an_external_port_that_nobody_may_have() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.script = [Reaction::Grant(E, 80)].into();
        assert_eq!(lab.add(ALICE, 2, any(8080)), Err(606));
        let sent = lab.sent();
        assert_eq!((sent.len(), sent[1].1.lifetime), (2, 0));
        assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
        lab.pass(60);
        assert!(lab.add(ALICE, 2, Add { lease: 0, ..any(8080) }).is_ok());
        assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))]);
        lab.script = [Reaction::Grant(E, 80)].into();
        lab.provider_forgets();
        lab.pass(20);
        assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
        assert!(!lab.upstream().iter().any(|(port, _)| *port == 80));
    }
}

/// The server gives a port that another mapping of ours has, as one that lost its state may do.
#[test]
fn a_port_that_is_ours_already() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.script = [Reaction::Grant(E, 8080)].into();
    assert_eq!(lab.add(BOB, 2, any(0).to(9090)), Err(718));
    assert_eq!((lab.mapped(), lab.rules.len()), (vec![(8080, at(ALICE, 8080))], 1));
}

/// R-29, decision 7: a delete that is not answered is 501; the entry stays, marked, closed in the router's own NAT,
/// and goes when the server confirms, or its lifetime ends.
#[test]
fn a_delete_that_is_not_answered() {
    for nat in BOTH {
        for answered in [true, false] {
            let mut lab = Lab::up(nat);
            assert_eq!(lab.add(ALICE, 2, port(8080)), done());
            lab.pass(100);
            lab.silent = true;
            let start = lab.now;
            let id = lab.start_delete(ALICE, 2, 8080);
            assert_eq!(lab.rules, [], "closed at once");
            lab.run(start + 3499);
            assert_eq!(lab.heard(id), None);
            lab.run(start + 3500);
            assert_eq!(lab.heard(id), Some(Err(501)));
            let health =
                |lab: &Lab| lab.gateway.mappings(lab.instant()).map(|m| m.health).collect::<Vec<_>>();
            assert_eq!(health(&lab), [Health::Deleting]);
            assert_eq!(lab.add(ALICE, 2, port(8080)), Err(501), "not while it is being deleted");
            assert_eq!(
                lab.add(BOB, 2, port(8080)),
                Err(718),
                "another host's, until it is gone (decision 3)"
            );
            // A second delete waits for the same exchange.
            let again = lab.start_delete(ALICE, 2, 8080);
            if answered {
                lab.silent = false;
                lab.pass(3);
                assert_eq!(lab.heard(again), Some(done()));
            } else {
                lab.run(3_609_000);
                assert_eq!(health(&lab), [Health::Deleting]);
                lab.run(3_610_000);
            }
            assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0));
        }
    }
}

/// Decision 3: a port that another host is giving back is that host's still, and any other one will do where any does.
#[test]
fn a_port_that_another_host_gives_back() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        lab.script = [Reaction::Lose].into();
        let deletes = lab.start_delete(ALICE, 2, 8080);
        assert_eq!(lab.heard(deletes), None);
        assert_eq!(lab.add(BOB, 1, port(8080)), Err(718), "{nat:?}");
        let heard = lab.add(BOB, 2, any(8080).to(9090)).unwrap();
        assert_ne!(heard, ["8080"], "{nat:?}");
        lab.pass(3);
        assert_eq!(lab.heard(deletes), Some(done()));
        assert_eq!(lab.mapped().len(), 1, "{nat:?}: Bob's");
    }
}

/// decision 7: a range whose deletes are answered one by one; the answer comes with the last, an error if
/// any was refused, and what is deleted goes all at once.
#[test]
fn a_range_that_is_answered_piecemeal() {
    let range =
        [("NewStartPort", "5000"), ("NewEndPort", "5002"), ("NewProtocol", "TCP"), ("NewManage", "0")];
    let mut lab = Lab::up(NatMode::Own);
    for n in 0..3 {
        assert_eq!(lab.add(ALICE, 2, port(5000 + n)), done());
    }
    lab.script = [Reaction::Serve, Reaction::Lose, Reaction::Refuse(ResultCode::NOT_AUTHORIZED, 30)].into();
    let id = lab.start(ALICE, 2, "DeletePortMappingRange", &range);
    assert_eq!(lab.heard(id), None);
    assert_eq!((lab.mapped().len(), lab.rules.len()), (3, 1), "closed here, and not gone before all are");
    lab.pass(1);
    assert_eq!(lab.heard(id), Some(Err(606)));
    assert_eq!((lab.mapped(), lab.rules.len()), (vec![(5002, at(ALICE, 5002))], 1));
}

/// The same, and the server says nothing to one of them: what it has confirmed goes when the control point has waited
/// long enough, the rest when it is confirmed.
#[test]
fn a_range_that_is_answered_in_part() {
    let range =
        [("NewStartPort", "5000"), ("NewEndPort", "5002"), ("NewProtocol", "TCP"), ("NewManage", "0")];
    let mut lab = Lab::up(NatMode::Own);
    for n in 0..3 {
        assert_eq!(lab.add(ALICE, 2, port(5000 + n)), done());
    }
    lab.script = [Reaction::Serve, Reaction::Lose, Reaction::Serve, Reaction::Lose, Reaction::Lose].into();
    let id = lab.start(ALICE, 2, "DeletePortMappingRange", &range);
    lab.run(lab.now + 3499);
    assert_eq!(lab.mapped().len(), 3);
    lab.run(lab.now + 1);
    assert_eq!((lab.heard(id), lab.mapped().len()), (Some(Err(501)), 1));
    lab.pass(5);
    assert_eq!((lab.mapped(), lab.upstream()), (vec![], vec![]));
    assert!(lab.gateway.is_idle());
}

/// R-31, D-14, decision 7: with `optimistic_delete` a range is answered at once, for whose it is and that it is there is
/// known here; until the server has confirmed it, it is shown as being deleted.
#[test]
fn r_31_a_range_answered_at_once() {
    let range =
        [("NewStartPort", "5000"), ("NewEndPort", "5002"), ("NewProtocol", "TCP"), ("NewManage", "0")];
    for nat in BOTH {
        let mut lab = Lab::up_with(Config { optimistic_delete: true, ..config(nat) });
        assert_eq!(lab.call(ALICE, 2, "DeletePortMappingRange", &range), Err(730));
        for n in 0..3 {
            assert_eq!(lab.add(ALICE, 2, port(5000 + n)), done());
        }
        lab.silent = true;
        assert_eq!(lab.call(BOB, 2, "DeletePortMappingRange", &range), Err(730), "not his");
        assert_eq!(lab.call(ALICE, 2, "DeletePortMappingRange", &range), done(), "{nat:?}");
        let health: Vec<Health> = lab.gateway.mappings(lab.instant()).map(|m| m.health).collect();
        assert_eq!((health, lab.rules.len()), (vec![Health::Deleting; 3], 0));
        lab.pass(4);
        lab.silent = false;
        lab.pass(10);
        assert_eq!((lab.mapped(), lab.upstream()), (vec![], vec![]));
        // A single mapping is deleted as ever: answered when the server has answered.
        assert_eq!(lab.add(ALICE, 2, port(5000)), Ok(vec![]));
        lab.silent = true;
        let id = lab.start_delete(ALICE, 2, 5000);
        assert_eq!(lab.heard(id), None);
        assert!(lab.gateway.waiting.len() == 1);
    }
}

/// A stop gives everything back, four at a time: a server that is sent hundreds of deletes at once loses most of them.
/// It waits on as long as they are confirmed, and what is stored is cleared at the end, in one go.
#[test]
fn a_stop_takes_its_turns() {
    let exchanges = crate::limits::Rate { per_second: 100, burst: 100 };
    let policy = Policy { exchanges, ..Policy::default() };
    let mut lab = Lab::up_with(Config { policy, ..config(NatMode::Own) });
    for n in 0..100 {
        assert_eq!(lab.add(ALICE, 2, port(5000 + n)), done());
    }
    lab.weather = Some(SeededEntropy::new(4));
    lab.effects.clear();
    lab.event(Event::Stop);
    assert_eq!((lab.sent().len(), lab.store.len()), (4, 100), "forgotten when it is gone");
    lab.pass(30);
    assert!(lab.effects.iter().any(|(_, effect)| *effect == Effect::Stopped));
    assert_eq!((lab.upstream(), lab.rules.len(), lab.store.len()), (vec![], 0, 0));
    let stores = lab.effects.iter().filter(|(_, effect)| matches!(effect, Effect::Store(_))).count();
    assert_eq!(stores, 1, "in one go");
}

/// A stop that a silent server does not confirm ends all the same, says what it leaves, and the next start has it.
#[test]
fn a_stop_that_is_not_confirmed() {
    let mut lab = Lab::up(NatMode::Own);
    for n in 0..3 {
        assert_eq!(lab.add(ALICE, 1, port(5000 + n)), done());
    }
    lab.script = [Reaction::Serve, Reaction::Serve].into();
    lab.script.extend([Reaction::Lose; 20]);
    lab.effects.clear();
    lab.event(Event::Stop);
    lab.pass(10);
    assert!(lab.notices().contains(&Notice::LeftBehind(1)));
    assert!(lab.effects.iter().any(|(_, effect)| *effect == Effect::Stopped));
    assert_eq!((lab.store.len(), lab.upstream().len(), lab.rules.len()), (1, 1, 0));
    lab.script.clear();
    lab.crash(config(NatMode::Own), 7, 1000);
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(40);
    assert_eq!((lab.mapped().len(), lab.upstream().len()), (1, 1));
}

/// `keep_on_stop`: nothing is given back, here or at the provider, and the next start goes on with it (decision 16).
#[test]
fn a_stop_that_keeps() {
    for nat in BOTH {
        let mut lab = Lab::up_with(Config { keep_on_stop: true, ..config(nat) });
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        let before = (lab.mapped(), lab.upstream(), lab.rules.clone());
        lab.silent = true;
        let waiting = lab.start_add(BOB, 1, port(9090));
        lab.silent = false;
        lab.event(Event::Stop);
        assert_eq!(lab.heard(waiting), Some(Err(501)), "who waits is told");
        lab.pass(3);
        assert!(lab.effects.iter().any(|(_, effect)| *effect == Effect::Stopped));
        assert_eq!((lab.mapped(), lab.upstream(), lab.rules.clone()), before, "{nat:?}");
        lab.crash(config(nat), 7, 20_000);
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(wan(&[W])));
        lab.pass(40);
        assert_eq!((lab.mapped(), lab.upstream(), lab.rules.clone()), before);
        assert!(lab.gateway.mappings(lab.instant()).all(|m| m.health == Health::Active));
    }
}

/// RFC 6887 §7.4: after NO_RESOURCES nothing new is asked for; those who ask hear it at once.
#[test]
fn no_resources() {
    let mut lab = Lab::up(NatMode::Own);
    lab.script = [Reaction::Refuse(ResultCode::NO_RESOURCES, 60)].into();
    assert_eq!(lab.add(ALICE, 2, port(8080)), Err(728));
    lab.seen();
    assert_eq!(lab.add(BOB, 1, port(9090)), Err(501));
    assert_eq!((lab.sent().len(), lab.rules.len()), (0, 0));
    lab.pass(60);
    assert_eq!(lab.add(BOB, 1, port(9090)), done());
}

/// RFC 6970 §4.3 row 1, and a server that speaks NAT-PMP only, to which a router without a NAT of its own is nobody: 501 both.
#[test]
fn a_server_of_another_version() {
    for (bytes, nat) in
        [(&[0, 129, 0, 1, 0, 0, 0, 9][..], NatMode::None), (&[3, 0x81, 0, 1, 0, 0, 0, 60], NatMode::Own)]
    {
        for version in [1, 2] {
            let mut settings = config(nat);
            settings.external_address_probe = false;
            let mut lab = Lab::up_with(settings);
            lab.silent = true;
            let id = lab.start_add(ALICE, version, port(8080));
            lab.event(Event::Uplink { from: server(), bytes });
            assert_eq!(lab.heard(id), Some(Err(501)));
            assert!(lab.notices().contains(&Notice::VersionRefused(server(), bytes[0])));
            assert_eq!(
                lab.add(ALICE, version, port(8080)),
                Err(501),
                "and it is not asked again for a while"
            );
            lab.silent = false;
            lab.pass(60);
            assert_eq!(lab.add(ALICE, version, port(8080)), done());
        }
    }
}

/// Odd events at odd times: nothing happens, nothing panics.
#[test]
fn events_out_of_order() {
    for nat in BOTH {
        let mut lab = Lab::new(config(nat));
        let odd = |lab: &mut Lab| {
            lab.event(Event::Timeout);
            for ticket in (0..50).chain([u64::MAX]).map(NatTicket) {
                let outcomes =
                    [Ok(()), Err(NatFailure::PortInUse), Err(NatFailure::Kernel("?".into())), Ok(()), Ok(())];
                for outcome in outcomes {
                    lab.event(Event::Nat { ticket, outcome });
                }
            }
            lab.event(Event::Counters { request: RequestId(77), counters: None });
            for bytes in [&b""[..], &[2, 0x81, 0, 0], &[0; 60], &[2; 64]] {
                lab.event(Event::Uplink { from: server(), bytes });
                lab.event(Event::Announcement { from: server(), bytes });
                lab.event(Event::Ssdp {
                    interface: 3,
                    local: None,
                    from: SocketAddr::from((ALICE, 1900)),
                    bytes,
                });
            }
            let other = "203.0.113.1:5351".parse().unwrap();
            lab.event(Event::UplinkOpened { server: other, source: IpAddr::V4(W) });
            lab.event(Event::UplinkFailed { server: other, error: "?".into() });
        };
        odd(&mut lab);
        lab.event(Event::Lan(lan()));
        assert_eq!(lab.add(ALICE, 2, port(8080)), Err(501), "R-6: no WAN yet");
        lab.bring_up();
        odd(&mut lab);
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        odd(&mut lab);
        lab.silent = true;
        lab.start_add(ALICE, 2, port(8081));
        lab.start_delete(ALICE, 2, 8080);
        odd(&mut lab);
        lab.event(Event::Wan(wan(&[])));
        odd(&mut lab);
        lab.event(Event::Stop);
        odd(&mut lab);
        lab.event(Event::Stop);
        lab.pass(100);
        odd(&mut lab);
        let stopped = lab.effects.iter().filter(|(_, effect)| *effect == Effect::Stopped).count();
        assert_eq!(stopped, 1);
    }
}

/// A control point that was told 501, whose grant came late.
fn late_grant(lab: &mut Lab, add: Add) {
    lab.silent = true;
    let id = lab.start_add(ALICE, 2, add);
    lab.pass(4);
    assert_eq!(lab.heard(id), Some(Err(501)));
    lab.silent = false;
    lab.pass(6);
    assert_eq!(lab.mapped(), []);
    assert!(lab.upstream().len() == 1, "granted, and kept for its next try");
}

/// Invariant 3: what was granted and lost again before it was acknowledged is never acknowledged.
#[test]
fn a_late_grant_that_is_lost_is_not_believed() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        late_grant(&mut lab, port(8080));
        let now = lab.instant();
        let announcement = lab.provider().lose_state(now);
        lab.script = [Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 30); 4].into();
        lab.event(Event::Announcement { from: server(), bytes: &announcement });
        lab.pass(7);
        assert_eq!(lab.add(ALICE, 2, port(8080)), Err(718), "{nat:?}");
        assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
    }
}

/// Two hosts never share a key: a grant that the server has forgotten loses against the mapping that it gave since.
#[test]
fn a_late_grant_that_was_given_to_another_host() {
    let mut lab = Lab::up(NatMode::Own);
    let any = Add { any: true, external: 0, ..port(8080) };
    late_grant(&mut lab, any);
    let given = lab.upstream()[0].0;
    assert_eq!(lab.add(BOB, 2, port(given)), Err(718), "it is kept for Alice");
    let now = lab.instant();
    lab.provider().lose_state(now); // quietly
    lab.script = [Reaction::Grant(E, given)].into();
    assert_eq!(lab.add(BOB, 2, Add { any: true, ..port(0) }.to(9090)), Ok(vec![given.to_string()]));
    assert_ne!(lab.add(ALICE, 2, any), Ok(vec![given.to_string()]));
    assert_eq!(lab.mapped().iter().filter(|(port, _)| *port == given).count(), 1);
}

/// The owner deletes what it is just replacing: neither the old one nor the new one is there afterwards.
#[test]
fn a_delete_during_an_overwriting() {
    let mut lab = Lab::up(NatMode::None);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.silent = true;
    let add = lab.start_add(ALICE, 2, port(8080).to(9090));
    let delete = lab.start_delete(ALICE, 2, 8080);
    lab.silent = false;
    lab.pass(2);
    assert_eq!((lab.heard(add), lab.heard(delete)), (Some(Err(718)), Some(done())));
    lab.pass(60);
    assert_eq!((lab.mapped(), lab.upstream()), (vec![], vec![]));
}

/// Decision 2: AddAnyPortMapping for a port that another host has, sent twice, is one exchange and one mapping.
#[test]
fn any_port_asked_for_twice() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(BOB, 2, port(8080)), done());
        lab.silent = true;
        let first = lab.start_add(ALICE, 2, Add { any: true, ..port(8080) });
        let second = lab.start_add(ALICE, 2, Add { any: true, ..port(8080) });
        lab.silent = false;
        lab.pass(2);
        assert!(lab.heard(first).unwrap().is_ok());
        assert_eq!(lab.heard(first), lab.heard(second), "{nat:?}");
        assert_eq!(lab.mapped().len(), 2);
    }
}

/// Decision 15 follows what its owner last asked for: a mapping that was refreshed by AddAnyPortMapping may move.
#[test]
fn a_refresh_decides_whether_the_port_counts() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    assert!(lab.add(ALICE, 2, Add { any: true, ..port(8080) }).is_ok());
    lab.sent();
    let now = lab.instant();
    let announcement = lab.provider().lose_state(now);
    lab.event(Event::Announcement { from: server(), bytes: &announcement });
    lab.pass(6);
    let asked = lab.sent();
    assert!(
        asked.iter().any(|(_, request)| !request.options.contains(&wire::pcp::PcpOption::PreferFailure)
            && !is_probe(request))
    );
    assert_eq!(lab.mapped().len(), 1);
}

/// T-3: without a NAT of ours there is one mapping for an internal port, also while it is being asked for; a second request
/// would carry another nonce, and the server would refuse it or the first one's repetition.
#[test]
fn one_question_for_one_internal_port() {
    let mut lab = Lab::up(NatMode::None);
    assert_eq!(lab.add(BOB, 2, port(5007)), done());
    lab.silent = true;
    let first = lab.start_add(ALICE, 2, port(5010).to(5006));
    assert_eq!(lab.add(ALICE, 2, Add { any: true, ..port(5007).to(5006) }), Err(718));
    lab.silent = false;
    lab.pass(2);
    assert_eq!(lab.heard(first), Some(done()));
    assert_eq!(lab.mapped().len(), 2);
}

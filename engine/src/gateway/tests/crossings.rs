//! Where two things cross: a loss and what is held, a stop and who waits, a pause and another server, two deletions.

use super::*;

fn carries_filter(request: &Request) -> bool {
    request.options.iter().any(|option| matches!(option, PcpOption::Filter(_)))
}

/// A server that does not know FILTER (mandatory to process: UNSUPP_OPTION): nothing was filtered, so nothing is reset.
#[test]
fn filter_refused_poisons() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.script = [Reaction::Refuse(ResultCode::UNSUPP_OPTION, 1800); 2].into();
        let with = Add { remote: "203.0.113.9", ..port(8080) };
        assert_eq!(lab.add(ALICE, 2, with), Err(501));
        lab.effects.clear();
        // Another host behind our own NAT, the same one without a NAT.
        let who = if nat == NatMode::Own { BOB } else { ALICE };
        assert_eq!(lab.add(who, 2, port(9090).to(8080)), done());
        let sent = lab.sent();
        assert!(
            !sent.iter().any(|(_, request)| carries_filter(request)),
            "{nat:?}: nothing was ever filtered: {sent:?}"
        );
    }
}

/// Ranges that were answered at once (D-14) leave no job that nobody waits for.
#[test]
fn optimistic_jobs_pile_up() {
    let mut lab = Lab::up_with(Config { optimistic_delete: true, ..config(NatMode::Own) });
    for n in 0..3 {
        assert_eq!(lab.add(ALICE, 2, port(5000 + n)), done());
    }
    lab.silent = true;
    let args = [("NewStartPort", "5000"), ("NewEndPort", "5010"), ("NewProtocol", "TCP"), ("NewManage", "0")];
    for _ in 0..1000 {
        assert_eq!(lab.call(ALICE, 2, "DeletePortMappingRange", &args), done());
    }
    lab.pass(10);
    assert!(lab.gateway.deletes.len() <= 1, "{} jobs that nobody waits for", lab.gateway.deletes.len());
}

/// What is confirmed of such a range is gone, whatever becomes of the rest.
#[test]
fn optimistic_confirmed_stays() {
    let mut lab = Lab::up_with(Config { optimistic_delete: true, ..config(NatMode::Own) });
    for n in 0..2 {
        assert_eq!(lab.add(ALICE, 2, port(5000 + n)), done());
    }
    let args = [("NewStartPort", "5000"), ("NewEndPort", "5010"), ("NewProtocol", "TCP"), ("NewManage", "0")];
    lab.script = std::iter::once(Reaction::Serve).chain(std::iter::repeat_n(Reaction::Lose, 40)).collect();
    assert_eq!(lab.call(ALICE, 2, "DeletePortMappingRange", &args), done());
    lab.pass(600);
    assert_eq!(lab.mapped().len(), 1, "5000 was confirmed ten minutes ago");
}

/// D-14, decision 7: a deletion that was answered before the provider did survives a crash.
#[test]
fn optimistic_then_crash() {
    for nat in BOTH {
        let settings = Config { optimistic_delete: true, ..config(nat) };
        let mut lab = Lab::up_with(settings.clone());
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(5000) }), done());
        lab.silent = true;
        let args =
            [("NewStartPort", "5000"), ("NewEndPort", "5010"), ("NewProtocol", "TCP"), ("NewManage", "0")];
        assert_eq!(lab.call(ALICE, 2, "DeletePortMappingRange", &args), done());
        lab.crash(settings, 8, 1000);
        lab.silent = false;
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(wan(&[W])));
        lab.pass(100);
        assert_eq!(
            (lab.mapped(), lab.rules.clone()),
            (vec![], vec![]),
            "{nat:?}: its owner was told that it is gone"
        );
    }
}

/// Two deletions of one mapping: who is told that it is gone finds it gone.
#[test]
fn two_deletions() {
    let mut lab = Lab::up(NatMode::Own);
    for n in 0..2 {
        assert_eq!(lab.add(ALICE, 2, port(5000 + n)), done());
    }
    let args = [("NewStartPort", "5000"), ("NewEndPort", "5010"), ("NewProtocol", "TCP"), ("NewManage", "0")];
    lab.script = std::iter::repeat_n(Reaction::Lose, 3)
        .chain([Reaction::Serve])
        .chain(std::iter::repeat_n(Reaction::Lose, 20))
        .collect();
    let range = lab.start(ALICE, 2, "DeletePortMappingRange", &args);
    let one = lab.start_delete(ALICE, 2, 5000);
    let other = lab.start_delete(ALICE, 2, 5001);
    let mut told = None;
    for _ in 0..34 {
        lab.run(lab.now + 100);
        told = [(one, 5000), (other, 5001)].into_iter().find(|(id, _)| lab.heard(*id) == Some(done()));
        if told.is_some() {
            break;
        }
    }
    let (_, gone) = told.expect("one is confirmed");
    assert_eq!(lab.heard(range), None);
    assert!(!lab.mapped().iter().any(|(port, _)| *port == gone), "told gone: {:?}", lab.mapped());
}

/// Invariant 5: a stop leaves nobody without an answer.
#[test]
fn stop_answers_everybody() {
    for keep_on_stop in [true, false] {
        let mut lab = Lab::up_with(Config { keep_on_stop, ..config(NatMode::Own) });
        assert_eq!(lab.add(ALICE, 2, port(5000)), done());
        lab.silent = true;
        let id = lab.start_delete(ALICE, 2, 5000);
        let mut args = port(8080).args(ALICE);
        args[0].1 = "peer.example.net".into();
        let name = lab.start(ALICE, 2, "AddPortMapping", &borrowed(&args));
        lab.event(Event::Stop);
        // Who comes while the last deletes are on their way hears it at once.
        assert_eq!(lab.call(ALICE, 2, "AddPortMapping", &borrowed(&args)), Err(501));
        assert_eq!(lab.delete(ALICE, 2, 5000), Err(501));
        assert_eq!(lab.call(ALICE, 1, "GetTotalBytesSent", &[]), Err(501));
        lab.pass(100);
        assert!(lab.gateway.said_stopped);
        let deleted = if keep_on_stop { Err(501) } else { done() };
        assert_eq!((lab.heard(id), lab.heard(name)), (Some(deleted), Some(Err(501))));
    }
}

/// AddAnyPortMapping gets the spare that is on its way (D-8).
#[test]
fn join_a_spare() {
    for nat in BOTH {
        let mut lab = Lab::up_with(Config { add_port_mapping: AddPortMapping::AnyThenHold, ..config(nat) });
        lab.script = [Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 600), Reaction::Lose].into();
        assert_eq!(lab.add(ALICE, 2, port(8080)), Err(718));
        let id = lab.start_add(ALICE, 2, any(0).to(8080));
        lab.pass(4);
        assert!(
            matches!(lab.heard(id), Some(Ok(_))),
            "{nat:?}: {:?}, held {}",
            lab.heard(id),
            lab.status().held
        );
    }
}

/// AddAnyPortMapping does not depend on what becomes of a probe.
#[test]
fn any_joins_a_probe() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.script = [Reaction::Lose, Reaction::Serve].into();
        lab.start(ALICE, 1, "GetSpecificPortMappingEntry", &borrowed(&key(8080)));
        let id = lab.start_add(ALICE, 2, any(8080));
        lab.pass(3);
        assert!(matches!(lab.heard(id), Some(Ok(_))), "{nat:?}: {:?}", lab.heard(id));
    }
}

/// What is held, after the server has lost it: asked for again before anybody hears of success (T-6).
#[test]
fn held_after_state_loss() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.call(ALICE, 1, "GetSpecificPortMappingEntry", &borrowed(&key(8080))), Err(714));
        let now = lab.instant();
        let announcement = lab.provider().lose_state(now);
        lab.event(Event::Announcement { from: server(), bytes: &announcement });
        lab.script = [Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 600); 3].into();
        let heard = lab.add(ALICE, 1, port(8080));
        assert!(
            heard != done() || !lab.upstream().is_empty(),
            "{nat:?}: told success, upstream has {:?}, health {:?}",
            lab.upstream(),
            lab.gateway.mappings(lab.instant()).map(|m| m.health).collect::<Vec<_>>()
        );
    }
}

/// What the server has refused to restore is not promised.
#[test]
fn held_after_refused_recovery() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.call(ALICE, 1, "GetSpecificPortMappingEntry", &borrowed(&key(8080))), Err(714));
        let now = lab.instant();
        let announcement = lab.provider().lose_state(now);
        lab.script = [Reaction::Refuse(ResultCode::NO_RESOURCES, 600); 3].into();
        lab.event(Event::Announcement { from: server(), bytes: &announcement });
        lab.pass(6);
        assert_eq!(lab.upstream(), []);
        lab.effects.clear();
        let heard = lab.add(ALICE, 1, port(8080));
        assert_ne!(heard, done(), "{nat:?}: the server has refused it; sent {:?}", lab.sent());
    }
}

fn orphan(lab: &mut Lab, internal: u16, external: u16) {
    let now = lab.instant();
    lab.provider().config_mut().query = true;
    let map = MapData {
        nonce: Nonce([5; 12]),
        protocol: Protocol::TCP,
        internal_port: internal,
        external_port: external,
        external_addr: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
    };
    let request =
        Request { lifetime: 86_400, client_addr: W.to_ipv6_mapped(), body: Body::Map(map), options: vec![] };
    lab.provider().handle_datagram(now, (W, 5350).into(), &request.to_bytes()).expect("an answer");
}

/// Decision 17: a mapping that a program of the router itself made (ssh, a VPN) is listed, too, and is nobody's on the LAN.
#[test]
fn orphan_of_the_router_itself() {
    for internal in [22, 51_820] {
        let mut lab = Lab::new(Config { list_mappings: true, ..config(NatMode::Own) });
        lab.in_use = vec![(Protocol::TCP, 22), (Protocol::TCP, 51_820)];
        orphan(&mut lab, internal, 5000);
        lab.bring_up();
        let heard = lab.add(BOB, 2, port(5000));
        assert!(
            !lab.rules.iter().any(|rule| rule.port == internal),
            "BOB has the router's own port {internal}: {heard:?} {:?}",
            lab.rules
        );
    }
}

/// The pause after a refusal of one server does not count at another.
#[test]
fn a_pause_outlives_its_server() {
    let second: SocketAddr = "192.0.2.2:5351".parse().unwrap();
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        let now = lab.instant();
        let settings =
            ProviderConfig { third_party: nat == NatMode::None, longest: 120, ..ProviderConfig::new(E) };
        lab.providers.insert(second, Provider::new(now, settings.clone()));
        let third: SocketAddr = "192.0.2.3:5351".parse().unwrap();
        lab.providers.insert(third, Provider::new(now, settings));
        // The second server refuses for a minute; the third one serves.
        lab.script = [Reaction::Refuse(ResultCode::USER_EX_QUOTA, 60)].into();
        lab.event(Event::Reconfigure(Box::new(Config { servers: vec![second], ..config(nat) })));
        lab.pass(1);
        lab.event(Event::Reconfigure(Box::new(Config { servers: vec![third], ..config(nat) })));
        lab.pass(50);
        assert_eq!(lab.mapped().len(), 1);
        lab.silent = true;
        lab.pass(1000);
        let health: Vec<_> =
            lab.gateway.mappings(lab.instant()).map(|m| (m.health, m.lifetime_left)).collect();
        assert_eq!(health, [], "{nat:?}: granted for 120 s, 1050 s ago");
    }
}

/// A new WAN address: the server knows nothing of us there, and says nothing.
#[test]
fn a_new_address_is_a_doubt() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        lab.silent = true;
        let new = Ipv4Addr::new(192, 0, 2, 11);
        lab.source = IpAddr::V4(new);
        lab.event(Event::Wan(wan(&[new])));
        lab.pass(600);
        let health: Vec<_> = lab.gateway.mappings(lab.instant()).map(|m| m.health).collect();
        assert_eq!(health, [crate::table::Health::Degraded], "{nat:?}");
    }
}

/// Decision 2: a range is deleted while four recoveries of another host are unanswered.
#[test]
fn a_range_waits_for_the_recovery_of_others() {
    let mut lab = Lab::up(NatMode::Own);
    for n in 0..8 {
        assert_eq!(lab.add(ALICE, 2, port(5000 + n)), done());
    }
    for n in 0..2 {
        assert_eq!(lab.add(BOB, 2, port(6000 + n)), done());
    }
    lab.pass(1);
    for n in 0..8 {
        assert_eq!(lab.add(ALICE, 2, port(5000 + n)), done()); // hers go first
    }
    let now = lab.instant();
    let announcement = lab.provider().lose_state(now);
    lab.event(Event::Announcement { from: server(), bytes: &announcement });
    lab.script = [Reaction::Lose; 4].into();
    while !lab.script.is_empty() {
        lab.run(lab.now + 10);
    }
    let args = [("NewStartPort", "6000"), ("NewEndPort", "6010"), ("NewProtocol", "TCP"), ("NewManage", "0")];
    let id = lab.start(BOB, 2, "DeletePortMappingRange", &args);
    lab.pass(1);
    assert_eq!(lab.heard(id), Some(done()), "the server would answer at once");
}

/// Orphans are given back four at a time (decisions 16 and 17).
#[test]
fn orphans_go_in_turn() {
    let mut lab = Lab::new(Config { list_mappings: true, ..config(NatMode::Own) });
    for n in 0..200 {
        orphan(&mut lab, 5000 + n, 5000 + n);
    }
    lab.bring_up();
    lab.silent = true;
    lab.effects.clear();
    lab.pass(610);
    let mut at: BTreeMap<u64, usize> = BTreeMap::new();
    for (when, _) in lab.sent() {
        *at.entry(when).or_default() += 1;
    }
    assert!(at.values().all(|&n| n <= 4), "{:?}", at.values().max());
}

/// A server without FILTER: who wants no filter is not refused for one.
#[test]
fn filter_refused_for_ever() {
    let mut lab = Lab::up(NatMode::Own);
    let answer = |lab: &mut Lab, who, add: Add| {
        lab.script = [Reaction::Refuse(ResultCode::UNSUPP_OPTION, 1800); 2].into();
        lab.effects.clear();
        let heard = lab.add(who, 2, add);
        let filtered = lab.sent().iter().all(|(_, request)| carries_filter(request));
        lab.script.clear();
        (heard, filtered)
    };
    assert_eq!(answer(&mut lab, ALICE, Add { remote: "203.0.113.9", ..port(8080) }), (Err(501), true));
    for n in 0..5 {
        lab.pass(3600);
        let (heard, filtered) = answer(&mut lab, BOB, port(9090 + n).to(8080));
        assert!(!filtered, "BOB wants no filter, round {n}: {heard:?}");
    }
}

/// T-3, T-4: a mapping is led to another internal port, and that one is held because its port was asked about. To the server
/// both are one mapping: it stands, and is not deleted with the probe.
#[test]
fn an_overwriting_meets_a_probe() {
    let mut lab = Lab::up(NatMode::None);
    lab.provider().config_mut().hold = Duration::ZERO;
    assert_eq!(lab.add(ALICE, 2, any(5005).to(5002)), Ok(vec!["5005".into()]));
    assert_eq!(lab.call(ALICE, 1, "GetSpecificPortMappingEntry", &borrowed(&key(5006))), Err(714));
    let heard = lab.add(ALICE, 2, any(5005).to(5006));
    assert!(heard.is_ok(), "{heard:?}");
    lab.pass(130);
    assert_eq!((lab.mapped(), lab.upstream().len()), (lab.upstream(), 1));
    lab.pass(3000);
    assert_eq!((lab.mapped(), lab.upstream().len()), (lab.upstream(), 1));
}

/// T-3, T-4: a mapping is being led to another internal port, and its owner asks for or about the one that it had. Should the server
/// refuse, that is what is restored: until then nothing else gets it, for to the server both would be one mapping, and what the
/// owner was told of stands.
#[test]
fn an_internal_port_that_may_be_restored_is_not_given_away() {
    let refuse = Reaction::Refuse(ResultCode::NETWORK_FAILURE, 30);
    let mut lab = Lab::up(NatMode::None);
    lab.provider().config_mut().hold = Duration::ZERO;
    assert_eq!(lab.add(ALICE, 2, port(5006).to(5003)), done());
    lab.script = [Reaction::Serve, Reaction::Lose, refuse].into();
    let moved = lab.start_add(ALICE, 2, port(5006).to(5005));
    assert_eq!((lab.heard(moved), lab.mapped()), (None, vec![]));
    let asked = lab.sent().len();
    assert_eq!(lab.call(ALICE, 1, "GetSpecificPortMappingEntry", &borrowed(&key(5003))), Err(714));
    assert_eq!(lab.add(ALICE, 2, port(5003)), Err(718));
    assert_eq!(lab.sent().len(), asked, "nobody is asked");
    lab.pass(2);
    assert_eq!(lab.heard(moved), Some(Err(718)));
    let old = vec![(5006, at(ALICE, 5003))];
    assert_eq!((lab.mapped(), lab.upstream()), (old.clone(), old.clone()));
    lab.pass(3000);
    assert_eq!((lab.mapped(), lab.upstream()), (old.clone(), old), "it is renewed");
}

//! Pinholes at the provider's firewall: what it is asked for and when, what it refuses, forgets or is silent about.

use super::*;

/// All pinholes of a port are one mapping at the provider, with a filter for each, or none where one lets in everybody.
#[test]
fn the_provider_lets_in_whom_the_pinholes_do() {
    let mut lab = Lab::up6(Some(model()));
    let there = |lab: &mut Lab| {
        let filters = &lab.model().open[&(CAROL, Protocol::TCP, 8080)].1;
        filters.iter().map(|one| (one.remote_addr.to_string(), one.remote_port)).collect::<BTreeSet<_>>()
    };
    let all = |pairs: &[(&str, u16)]| -> BTreeSet<(String, u16)> {
        pairs.iter().map(|&(addr, port)| (addr.to_owned(), port)).collect()
    };
    let other = "2001:db8:9::2";
    lab.open(CAROL, &Hole { remote: PEER, ..hole(8080) }).unwrap();
    assert_eq!(there(&mut lab), all(&[(PEER, 0)]));
    let second = lab.open(CAROL, &Hole { remote: other, remote_port: 53, ..hole(8080) }).unwrap();
    assert_eq!(there(&mut lab), all(&[(PEER, 0), (other, 53)]));
    lab.agrees();
    let third = lab.open(CAROL, &hole(8080)).unwrap();
    assert_eq!(there(&mut lab), all(&[]), "everybody");
    lab.of_id(CAROL, "DeletePinhole", &third[0]).unwrap();
    assert_eq!(there(&mut lab), all(&[(PEER, 0), (other, 53)]));
    lab.of_id(CAROL, "DeletePinhole", &second[0]).unwrap();
    assert_eq!(there(&mut lab), all(&[(PEER, 0)]));
    lab.agrees();
}

/// A provider that takes few filters, or none, lets in everybody; this router looks.
#[test]
fn where_filters_are_too_many() {
    for (most_filters, no_filters) in [(0, false), (1, false), (8, true)] {
        let mut lab = Lab::up6(Some(Model { most_filters, no_filters, ..model() }));
        for n in 1..4 {
            let remote: &'static str = ["2001:db8:9::1", "2001:db8:9::2", "2001:db8:9::3"][n - 1];
            assert!(lab.open(CAROL, &Hole { remote, ..hole(8080) }).is_ok(), "{most_filters}, {n}");
            assert_eq!(lab.pinholes.open.len(), n);
            lab.agrees();
        }
        assert!(lab.model().open[&(CAROL, Protocol::TCP, 8080)].1.is_empty());
    }
}

/// The provider's word counts, where it has a firewall; a server that has none is no hindrance.
#[test]
fn what_the_provider_refuses() {
    for (result, code) in [
        (ResultCode::NOT_AUTHORIZED, Err(606)),
        (ResultCode::NO_RESOURCES, Err(701)),
        (ResultCode::USER_EX_QUOTA, Err(701)),
        (ResultCode::CANNOT_PROVIDE_EXTERNAL, Err(501)),
        (ResultCode::NETWORK_FAILURE, Err(501)),
        (ResultCode::ADDRESS_MISMATCH, Err(501)),
        (ResultCode::UNSUPP_OPTION, Ok(())),
        (ResultCode::UNSUPP_OPCODE, Ok(())),
        (ResultCode::UNSUPP_PROTOCOL, Ok(())),
    ] {
        let mut lab = Lab::up6(Some(Model { refuses: Some(result), ..model() }));
        assert_eq!(lab.open(CAROL, &hole(8080)).map(drop), code, "{result}");
        assert_eq!(lab.pinholes.open.len(), usize::from(code.is_ok()), "{result}");
        let (pcp, ..) = lab.map6(CAROL, &map6(8081));
        assert_eq!(pcp == OK, code.is_ok(), "{result}: {pcp}");
        assert!(lab.gateway.is_idle());
    }
}

/// RFC 6296: a PCP client hears by which address it is reached, and no longer than that is granted (RFC 7648 §3.2).
#[test]
fn the_providers_address_and_lifetime_are_passed_on() {
    let mut lab = Lab::up6(Some(Model { prefix: Some(0xff), lifetime: 600, ..model() }));
    let outside = Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x10);
    assert_eq!(lab.map6(CAROL, &map6(8080)), (OK, 600, at6(outside, 8080)));
    lab.pass(599);
    assert_eq!(lab.pinholes.open.len(), 1);
    lab.agrees();
    let prefer = [PcpOption::PreferFailure];
    let insists = Map6 { external_addr: outside, ..map6(8080).with(&prefer) };
    for _ in 0..4 {
        // The provider is asked for the whole time again, as its grant is half over.
        assert_eq!(lab.map6(CAROL, &insists), (OK, 600, at6(outside, 8080)));
        lab.pass(300);
    }
    lab.agrees();
    // Before anything is known of the provider's address, it is the own one that is insisted on.
    let own = Map6 { external_addr: CAROL, ..map6(8081).with(&prefer) };
    assert_eq!(lab.map6(CAROL, &own).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    lab.run(lab.now + 100);
    lab.agrees();
    assert_eq!(lab.pinholes.open.len(), 1);
    // UPnP's lease is the client's, whatever the provider grants at a time.
    lab.open(CAROL, &Hole { lease: 7200, ..hole(9090) }).unwrap();
    lab.pass(7199);
    assert!(lab.pinholes.open.contains(&flows(CAROL, 9090)));
    lab.agrees();
}

/// Decision 21: a firewall that has answered and is silent now is waited for, and then it is 501, or this router's alone.
#[test]
fn a_silent_provider() {
    for (when_unreachable, opens) in [(WhenUnreachable::Refuse, false), (WhenUnreachable::Local, true)] {
        let mut lab = Lab::up6(Some(model()));
        let settings =
            Config { when_unreachable, firewall_servers: vec![firewall()], ..config(NatMode::Own) };
        lab.event(Event::Reconfigure(Box::new(settings)));
        lab.model().silent = true;
        let id = lab.start_hole(CAROL.into(), "AddPinhole", &hole(8080).args(CAROL));
        let begun = lab.now;
        while lab.heard(id).is_none() {
            lab.run(lab.now + 100);
        }
        assert!(lab.now - begun <= 3600, "decision 1");
        assert_eq!(lab.heard(id).unwrap().is_ok(), opens);
        assert_eq!(lab.pinholes.open.len(), usize::from(opens));
        lab.model().silent = false;
        lab.pass(120);
        if opens {
            lab.agrees();
            assert_eq!(lab.pinholes.open.len(), 1, "it is carried to the provider");
        } else {
            assert!(lab.open(CAROL, &hole(8080)).is_ok());
        }
    }
}

/// Where nobody is named, who may be there is looked for; nobody waits for long, and what stands is carried when there is one.
#[test]
fn a_provider_that_comes_later() {
    let mut lab = Lab::up6(None);
    lab.pass(120);
    let id = lab.start_hole(CAROL.into(), "AddPinhole", &hole(8080).args(CAROL));
    assert_eq!(lab.heard(id), None, "somebody may be there by now");
    lab.pass(2);
    assert!(lab.heard(id).unwrap().is_ok());
    lab.pinholes.provider = Some(model());
    let settings = Config { firewall_servers: vec![firewall()], ..config(NatMode::Own) };
    lab.event(Event::Reconfigure(Box::new(settings)));
    lab.pass(10);
    lab.agrees();
    assert_eq!(lab.model().open.len(), 1);
    let status = lab.gateway.pinholes(lab.instant()).remove(0);
    assert_eq!(status.at_provider, Some(at6(CAROL, 8080)));
    assert_eq!(lab.status().firewall, Some(firewall()));
}

/// ANNOUNCE tells nobody anything, so that is all that goes to who may be nobody; ever more seldom, and only for a pinhole's sake.
#[test]
fn nobody_is_bothered_without_need() {
    let scouts = |lab: &mut Lab| {
        let scouts = lab.effects.drain(..).filter_map(|(at, effect)| match effect {
            Effect::Scout { to, bytes } if to.is_ipv6() => {
                let request = Request::parse(&bytes).unwrap();
                assert!(matches!(request.body, Body::Announce));
                Some((at, to))
            }
            Effect::FirewallUplink(_) => panic!("there is nobody"),
            _ => None,
        });
        scouts.collect::<Vec<_>>()
    };
    let mut lab = Lab::new(Config { servers: Vec::new(), ..config(NatMode::Own) });
    lab.event(Event::Lan(lan6()));
    lab.event(Event::Wan(wan6()));
    lab.run(3_600_000);
    let first = scouts(&mut lab);
    let to: Vec<String> = first.iter().map(|(_, to)| to.ip().to_string()).collect();
    assert_eq!(to, ["fe80::1", "2001:1::1"], "the default router, and anycast (RFC 7723)");
    let id = lab.start_hole(CAROL.into(), "AddPinhole", &Hole { lease: 86_400, ..hole(8080) }.args(CAROL));
    assert_eq!(lab.heard(id), None, "somebody may be there by now");
    lab.pass(2);
    assert!(lab.heard(id).unwrap().is_ok());
    lab.run(lab.now + 86_000_000);
    assert!(lab.heard(id).unwrap().is_ok());
    let looks = scouts(&mut lab).len() / 2;
    assert!((40..60).contains(&looks), "{looks}");
}

/// The provider's firewall begins anew, says so, and is asked again; with the same nonce, or it would refuse.
#[test]
fn the_provider_loses_its_state() {
    let mut lab = Lab::up6(Some(model()));
    for port in [8080, 8081] {
        lab.open(CAROL, &Hole { lease: 86_400, ..hole(port) }).unwrap();
    }
    lab.pass(100);
    let before = std::mem::take(&mut lab.model().open);
    lab.model().began = lab.instant();
    let body = Body::Announce;
    let announce = Response { result: OK, lifetime: 0, epoch: 0, body, options: Vec::new() }.to_bytes();
    lab.event(Event::Announcement { from: firewall(), bytes: &announce });
    lab.pass(10);
    assert_eq!(lab.model().open, before);
    lab.agrees();
}

/// Another provider's firewall, or none any more: what stands here stays.
#[test]
fn the_wan_changes() {
    let mut lab = Lab::up6(Some(model()));
    lab.open(CAROL, &Hole { lease: 86_400, ..hole(8080) }).unwrap();
    lab.event(Event::Wan(Wan { up: false, addresses: Vec::new(), addresses_v6: Vec::new(), ..wan6() }));
    lab.pass(60);
    assert_eq!(lab.pinholes.open.len(), 1);
    lab.model().open.clear();
    lab.event(Event::Wan(Wan { name: "wan1".into(), ..wan6() }));
    lab.pass(10);
    lab.agrees();
    assert_eq!(lab.model().open.len(), 1, "it is asked for anew");
}

/// Decision 1: the exchange goes on when the control point has given up; what comes of it is kept for its next try, and not for longer.
#[test]
fn a_provider_that_is_slow() {
    for comes_back in [true, false] {
        let mut lab = Lab::up6(Some(model()));
        lab.model().silent = true;
        let id = lab.start_hole(CAROL.into(), "AddPinhole", &hole(8080).args(CAROL));
        lab.run(lab.now + 3600);
        assert_eq!(lab.heard(id), Some(Err(501)));
        lab.model().silent = false;
        lab.pass(10);
        assert_eq!((lab.model().open.len(), lab.pinholes.open.len()), (1, 1));
        assert!(lab.pinholes.stored.is_empty(), "nobody has been told of it");
        let requests = lab.model().requests;
        if comes_back {
            assert!(lab.open(CAROL, &hole(8080)).is_ok());
            assert_eq!(lab.model().requests, requests, "it is there");
        }
        lab.pass(40);
        lab.agrees();
        assert_eq!(lab.pinholes.open.len(), usize::from(comes_back));
    }
    // Nothing comes of it at all.
    let mut lab = Lab::up6(Some(model()));
    lab.model().silent = true;
    lab.start_hole(CAROL.into(), "AddPinhole", &hole(8080).args(CAROL));
    lab.pass(60);
    assert!(lab.gateway.pinholes(lab.instant()).is_empty());
}

/// A server that comes soon after nobody was found is found all the same, for the sake of what stands.
#[test]
fn a_provider_that_comes_soon() {
    let mut lab = Lab::up6(Some(Model { silent: true, ..model() }));
    lab.pass(10);
    lab.open(CAROL, &Hole { lease: 86_400, ..hole(8080) }).unwrap();
    lab.pass(5);
    lab.model().silent = false;
    lab.pass(120);
    lab.agrees();
    assert_eq!(lab.model().open.len(), 1);
}

/// RFC 7648 §3.2: nobody is promised what the provider has no more.
#[test]
fn what_is_lost_is_not_renewed() {
    let mut lab = Lab::up6(Some(Model { lifetime: 600, ..model() }));
    lab.open(CAROL, &Hole { lease: 86_400, ..hole(8080) }).unwrap();
    assert_eq!(lab.map6(CAROL, &map6(8080)).0, OK);
    lab.model().silent = true;
    lab.pass(700);
    assert_eq!(lab.pinholes.open.len(), 1, "it stands here, for UPnP counts on it");
    let status = lab.gateway.pinholes(lab.instant()).remove(0);
    assert_eq!(status.at_provider, None);
    assert_eq!(
        lab.pcp6(CAROL, &map6(8080).request(CAROL)),
        None,
        "when the provider is silent, so is the answer"
    );
    let id = lab.start_hole(CAROL.into(), "AddPinhole", &hole(8080).args(CAROL));
    lab.pass(4);
    assert_eq!(lab.heard(id), Some(Err(501)));
    assert_eq!(lab.pinholes.open.len(), 1);
    lab.model().silent = false;
    lab.pass(3600);
    assert_eq!(lab.map6(CAROL, &map6(8080)).1, 600);
    lab.agrees();
}

/// Decision 17, D-9: what was stored is asked for within `service_wait`, in turn.
#[test]
fn a_town_that_starts() {
    let mut lab = Lab::new(Config {
        firewall_servers: vec![firewall()],
        service_wait: Duration::from_secs(1000),
        ..config(NatMode::Own)
    });
    lab.pinholes.provider = Some(model());
    let stored = (1..40).map(|id| StoredPinhole {
        id,
        flows: flows(CAROL, 5000 + id),
        description: String::new(),
        claims: crate::claims::Claims::of(Asker::Igd, Some(Duration::from_secs(80_000))),
    });
    let stored: Vec<StoredPinhole> = stored.collect();
    lab.pinholes.stored = stored.iter().map(|one| (one.id, one.clone())).collect();
    lab.event(Event::RestorePinholes(stored));
    lab.event(Event::Lan(lan6()));
    lab.event(Event::Wan(wan6()));
    lab.pass(6);
    assert_eq!(lab.model().requests, 0, "one wait for all (seed 1)");
    assert!(lab.open(CAROL, &hole(9090)).is_ok(), "who asks sooner is served at once");
    lab.pass(1000);
    lab.agrees();
    assert_eq!(lab.pinholes.open.len(), 40);
}

/// Decision 4: what was refused is not asked for again as long as the server said.
#[test]
fn a_refusal_is_remembered() {
    let mut lab = Lab::up6(Some(Model { refuses: Some(ResultCode::NOT_AUTHORIZED), ..model() }));
    for _ in 0..5 {
        assert_eq!(lab.open(CAROL, &hole(8080)), Err(606));
        lab.pass(5);
    }
    assert_eq!(lab.model().requests, 1);
    lab.model().refuses = None;
    lab.pass(60);
    assert!(lab.open(CAROL, &hole(8080)).is_ok());
}

/// Sixteen remote hosts of one port that end at once are one delete.
#[test]
fn an_end_of_many_is_one_request() {
    let mut lab = Lab::up6(Some(Model { most_filters: 20, ..model() }));
    for last in 1..=16 {
        let remote: &'static str = format!("2001:db8:9::{last}").leak();
        lab.open(CAROL, &Hole { remote, ..hole(8080) }).unwrap();
    }
    let before = lab.model().requests;
    lab.event(Event::Stop);
    lab.pass(5);
    assert_eq!(lab.model().requests, before + 1);
    assert!(lab.model().open.is_empty());
}

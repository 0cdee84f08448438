//! The WAN as it comes and goes, the server as it changes, the external address, and the end.

use super::*;
use crate::provider::PreferFailure;

fn disconnected() -> (String, String) {
    ("Disconnected".into(), String::new())
}

fn second_server() -> SocketAddr {
    "192.0.2.2:5351".parse().unwrap()
}

/// Decisions 11 and 13, R-46, T-8, D-13: the external address is known before anybody asks, by UDP 9 for ten minutes, kept
/// alive.
#[test]
fn the_external_address_is_known_first() {
    let mut lab = Lab::new(config(NatMode::Own));
    assert_eq!(lab.connection(), disconnected());
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    assert_eq!(lab.connection(), connected(E));
    let (_, probe) = lab.all_sent().remove(0);
    let map = map_of(&probe);
    assert_eq!((probe.lifetime, probe.options.len()), (600, 0));
    assert_eq!((map.protocol, map.internal_port, map.external_port), (Protocol::UDP, 9, 0));
    lab.pass(10_000);
    assert_eq!(lab.connection(), connected(E));
    assert_eq!((lab.mapped(), lab.providers[&server()].mappings().count()), (vec![], 1), "it is not listed");
    assert_eq!(lab.call(ALICE, 1, "GetStatusInfo", &[]).unwrap()[2], "10000", "uptime");
}

/// Decision 13, igd.md 2: Uptime counts from when the connection was there, and anew after a loss: of the WAN's address, or of
/// the provider's server.
#[test]
fn uptime_is_that_of_the_connection() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        let uptime = |lab: &mut Lab| {
            let status = lab.call(ALICE, 1, "GetStatusInfo", &[]).unwrap();
            (status[0].clone(), status[2].clone())
        };
        let at = |status: &str, secs: &str| (status.to_owned(), secs.to_owned());
        lab.pass(90);
        assert_eq!(uptime(&mut lab), at("Connected", "100"));
        // A mapping more, another address: the same connection.
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        lab.pass(20);
        assert_eq!(uptime(&mut lab), at("Connected", "120"));
        lab.event(Event::Wan(wan(&[])));
        assert_eq!(uptime(&mut lab), at("Disconnected", "0"));
        lab.pass(60);
        assert_eq!(uptime(&mut lab), at("Disconnected", "0"));
        lab.event(Event::Wan(wan(&[W])));
        assert_eq!(uptime(&mut lab), at("Connected", "0"));
        lab.pass(30);
        assert_eq!(uptime(&mut lab), at("Connected", "30"));
        // The server falls silent, which shows when something is asked.
        lab.silent = true;
        lab.start_add(ALICE, 2, port(8081));
        lab.pass(60);
        assert_eq!(uptime(&mut lab), at("Disconnected", "0"));
        lab.silent = false;
        assert_eq!(lab.add(ALICE, 2, port(8082)), done());
        assert_eq!(uptime(&mut lab), at("Connected", "0"));
        lab.pass(5);
        assert_eq!(uptime(&mut lab), at("Connected", "5"));
        assert_eq!(lab.status().uptime, Some(Duration::from_secs(5)));
    }
}

/// decision 11: with the probe off the last answer tells, and nothing before the first.
#[test]
fn without_the_probe_the_first_mapping_tells() {
    let mut settings = config(NatMode::Own);
    settings.external_address_probe = false;
    let mut lab = Lab::up_with(settings.clone());
    assert_eq!(lab.connection(), disconnected());
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    assert_eq!(lab.connection(), connected(E));
    // It can be switched on and off.
    assert_eq!(lab.delete(ALICE, 2, 8080), done());
    for probe in [true, false] {
        settings.external_address_probe = probe;
        lab.event(Event::Reconfigure(Box::new(settings.clone())));
        assert_eq!(lab.providers[&server()].mappings().count(), usize::from(probe));
    }
}

/// Decision 11: the probe is kept only while no other mapping tells the address, and is there again when the last one
/// goes; nobody sees a difference.
#[test]
fn decision_11_the_probe_lapses_beside_a_mapping() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        let probes = |lab: &Lab| lab.all_sent().iter().filter(|(_, request)| is_probe(request)).count();
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        lab.effects.clear();
        lab.pass(1200);
        assert_eq!(probes(&lab), 0, "not renewed");
        assert_eq!(lab.providers[&server()].mappings().count(), 1, "{nat:?}");
        assert_eq!(lab.connection(), connected(E));
        assert_eq!(lab.delete(ALICE, 2, 8080), done());
        assert_eq!((probes(&lab), lab.connection()), (1, connected(E)), "at once");
        // A mapping that does not stay long lets the probe be.
        assert_eq!(lab.add(ALICE, 2, port(8081)), done());
        assert_eq!(lab.delete(ALICE, 2, 8081), done());
        lab.effects.clear();
        lab.pass(1200);
        assert!((2..=4).contains(&probes(&lab)), "renewed: {}", probes(&lab));
        // Neither does one that the server has lost come back for nothing.
        assert_eq!(lab.add(ALICE, 2, port(8082)), done());
        lab.effects.clear();
        let now = lab.instant();
        let announcement = lab.provider().lose_state(now);
        lab.event(Event::Announcement { from: server(), bytes: &announcement });
        lab.pass(10);
        assert_eq!((probes(&lab), lab.sent().len()), (0, 1));
    }
}

/// A server that maps no port below 1024 is asked for a high one; one that refuses that, too, later again. No port of
/// the router's NAT is lost over it.
#[test]
fn a_probe_that_is_refused() {
    let mut lab = Lab::new(config(NatMode::Own));
    let mut provider = lab.providers.remove(&server()).unwrap();
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    let (_, probe) = lab.all_sent().remove(0);
    let refuse = |lab: &mut Lab, request: &Request, result| {
        let (body, options) = (request.body.clone(), Vec::new());
        let bytes = Response { result, lifetime: 60, epoch: 1, body, options }.to_bytes();
        lab.effects.clear();
        lab.event(Event::Uplink { from: server(), bytes: &bytes });
    };
    refuse(&mut lab, &probe, ResultCode::NOT_AUTHORIZED);
    let (_, high) = lab.all_sent().remove(0);
    let port = map_of(&high).internal_port;
    assert!(port >= 49_152, "{port}");
    refuse(&mut lab, &high, ResultCode::NOT_AUTHORIZED);
    let wait = Duration::from_secs(60);
    assert_eq!(lab.notices().last(), Some(&Notice::ProbeRefused(server(), ResultCode::NOT_AUTHORIZED, wait)));
    assert_eq!(lab.all_sent(), []);
    for _ in 0..100 {
        lab.pass(60);
        let (_, again) = lab.all_sent().pop().unwrap();
        refuse(&mut lab, &again, ResultCode::NETWORK_FAILURE);
    }
    lab.pass(60);
    let (_, last) = lab.all_sent().pop().unwrap();
    let now = lab.instant();
    let answer = provider.handle_datagram(now, SocketAddr::from((W, 1)), &last.to_bytes()).unwrap();
    lab.event(Event::Uplink { from: server(), bytes: &answer });
    assert_eq!(lab.connection(), connected(E));
    assert_eq!(lab.gateway.nat_ports_in_use(), 1);
}

/// Security policy: what is no address that anybody could reach is not told, but given back, and asked for again later.
#[test]
fn a_probe_with_an_unusable_address() {
    let mut lab = Lab::new(config(NatMode::Own));
    lab.provider().config_mut().external = Ipv4Addr::UNSPECIFIED;
    lab.bring_up();
    assert_eq!(lab.connection(), disconnected());
    assert_eq!(lab.providers[&server()].mappings().count(), 0);
    lab.provider().config_mut().external = E;
    lab.pass(290);
    assert_eq!(lab.connection(), connected(E));
    // And when it becomes unusable later.
    lab.provider().config_mut().external = Ipv4Addr::LOCALHOST;
    lab.pass(400);
    assert_eq!(lab.connection(), disconnected());
    assert!(lab.notices().contains(&Notice::UnusableExternal(server(), Ipv4Addr::LOCALHOST)));
}

/// without a WAN address 501, and what was known is not told any more; with it everything is as before.
#[test]
fn the_wan_goes_and_comes_back() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        lab.script = [Reaction::Lose].into();
        let waiting = lab.start_add(ALICE, 2, port(8081));
        lab.event(Event::Wan(wan(&[])));
        assert_eq!(lab.heard(waiting), Some(Err(501)));
        assert_eq!(lab.connection(), disconnected());
        assert_eq!(lab.add(ALICE, 2, port(8082)), Err(501));
        assert_eq!(lab.delete(ALICE, 2, 8080), Err(501));
        assert_eq!(lab.call(ALICE, 2, "GetCommonLinkProperties", &[]).unwrap()[3], "Down");
        assert_eq!(lab.mapped().len(), 1, "the mapping stands");
        lab.pass(60);
        lab.event(Event::Wan(wan(&[W])));
        assert_eq!(lab.connection(), connected(E), "at once");
        assert_eq!(lab.call(ALICE, 1, "GetStatusInfo", &[]).unwrap()[2], "0", "uptime begins anew");
        assert_eq!(lab.add(ALICE, 2, port(8082)), done());
        lab.pass(1000);
        assert_eq!((lab.mapped().len(), lab.upstream().len()), (2, 2));
        // The same state again is no news.
        lab.effects.clear();
        lab.event(Event::Wan(wan(&[W])));
        assert_eq!(lab.seen(), []);
    }
}

/// Away for longer than the lifetimes: what is lost is told, and the address is asked for soon after.
#[test]
fn the_wan_is_away_for_long() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.event(Event::Wan(wan(&[])));
    lab.pass(100_000);
    assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(1);
    assert_eq!(lab.connection(), connected(E));
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
}

/// another WAN address: everything is asked for from there; a port that the old address still holds is lost to
/// AddPortMapping, replaced for AddAnyPortMapping.
#[test]
fn the_wan_address_changes() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    assert!(lab.add(ALICE, 1, Add { lease: 0, ..any(8081) }).is_ok());
    let source = Ipv4Addr::new(192, 0, 2, 77);
    lab.source = source.into();
    lab.event(Event::Wan(wan(&[source])));
    lab.pass(5);
    assert_eq!(lab.connection(), connected(E));
    let mapped = lab.mapped();
    assert_eq!(mapped.len(), 1);
    assert!(mapped[0].0 != 8081 && mapped[0].1 == at(ALICE, 8081), "{mapped:?}");
    assert_eq!(lab.rules, [tcp(8081, at(ALICE, 8081))]);
    lab.pass(90_000);
    assert_eq!(lab.upstream(), [(mapped[0].0, at(source, 8081))], "the old ones have lapsed");
}

/// R-37, RFC 6887 §13.3: what an earlier address of the router has left at the server has its filters still when the router
/// gets that address back.
#[test]
fn an_address_that_comes_back() {
    let mut lab = Lab::up(NatMode::Own);
    let filters = |lab: &mut Lab| -> Vec<(Ipv4Addr, usize)> {
        let mappings = lab.provider().mappings().filter(|m| m.internal.port() == 8080);
        mappings.map(|m| (*m.internal.ip(), m.filters.len())).collect()
    };
    assert!(lab.add(ALICE, 2, Add { remote: "203.0.113.9", lease: 0, ..any(8080) }).is_ok());
    let move_to = |lab: &mut Lab, source: Ipv4Addr| {
        lab.source = source.into();
        lab.event(Event::Wan(wan(&[source])));
        lab.pass(6);
    };
    let other = Ipv4Addr::new(192, 0, 2, 77);
    move_to(&mut lab, other);
    let port_there = lab.mapped()[0].0;
    let mut args = key(port_there);
    args[0].1 = "203.0.113.9".into();
    assert_eq!(lab.call(ALICE, 2, "DeletePortMapping", &borrowed(&args)), done());
    assert!(lab.add(ALICE, 2, Add { lease: 0, ..any(9090).to(8080) }).is_ok());
    assert_eq!(filters(&mut lab), [(W, 1), (other, 0)]);
    move_to(&mut lab, W);
    assert_eq!(filters(&mut lab), [(W, 0), (other, 0)]);
}

/// R-5, decision 19: the settings name another server: it is asked for everything; what it has not given when the old lifetimes
/// end is gone. Waiting control points hear 501, deletes are done.
#[test]
fn another_server() {
    for nat in BOTH {
        for silent in [false, true] {
            let mut lab = Lab::up(nat);
            for n in 0..3 {
                assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080 + n) }), done());
            }
            lab.script = [Reaction::Lose; 2].into();
            let adding = lab.start_add(ALICE, 2, port(8090));
            let deleting = lab.start_delete(ALICE, 2, 8082);
            let settings =
                ProviderConfig { third_party: true, ..ProviderConfig::new(Ipv4Addr::new(203, 0, 113, 77)) };
            let provider = Provider::new(Instant::default(), settings);
            if !silent {
                lab.providers.insert(second_server(), provider);
            }
            lab.event(Event::Reconfigure(Box::new(Config { servers: vec![second_server()], ..config(nat) })));
            assert_eq!((lab.heard(adding), lab.heard(deleting)), (Some(Err(501)), Some(done())));
            lab.pass(10);
            assert_eq!(lab.status().server, Some(second_server()));
            assert_eq!(lab.mapped().len(), 2);
            if silent {
                lab.pass(86_300);
                assert_eq!(lab.mapped().len(), 2);
                lab.pass(100);
                assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0), "nobody has granted them");
            } else {
                assert_eq!(lab.connection(), connected(Ipv4Addr::new(203, 0, 113, 77)));
                let ports: Vec<u16> =
                    lab.providers[&second_server()].mappings().map(|m| m.external.port()).collect();
                assert_eq!(ports.iter().filter(|port| [8080, 8081].contains(port)).count(), 2, "{ports:?}");
                lab.pass(200_000);
                assert_eq!(lab.mapped().len(), 2);
            }
        }
    }
}

/// A server that the old one's overwriting (T-4) does not know of gets the old mapping.
#[test]
fn another_server_during_an_overwriting() {
    let mut lab = Lab::up(NatMode::None);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.silent = true;
    let id = lab.start_add(ALICE, 2, port(8080).to(9090));
    let settings = ProviderConfig { third_party: true, ..ProviderConfig::new(E) };
    lab.providers.insert(second_server(), Provider::new(Instant::default(), settings));
    lab.silent = false;
    lab.event(Event::Reconfigure(Box::new(Config {
        servers: vec![second_server()],
        ..config(NatMode::None)
    })));
    lab.pass(60);
    assert_eq!((lab.heard(id), lab.mapped()), (Some(Err(501)), vec![(8080, at(ALICE, 8080))]));
    let there: Vec<SocketAddrV4> = lab.providers[&second_server()]
        .mappings()
        .filter(|m| m.internal.port() != 9)
        .map(|m| m.internal)
        .collect();
    assert_eq!(there, [at(ALICE, 8080)]);
}

/// The same while the old mapping is being restored.
#[test]
fn another_server_during_a_restoration() {
    let mut lab = Lab::up(NatMode::None);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.script = [Reaction::Serve, Reaction::Refuse(ResultCode::NETWORK_FAILURE, 30), Reaction::Lose].into();
    assert_eq!(lab.add(ALICE, 2, port(8080).to(9090)), Err(718));
    assert_eq!(lab.mapped(), [], "being restored");
    let settings = ProviderConfig { third_party: true, ..ProviderConfig::new(E) };
    lab.providers.insert(second_server(), Provider::new(Instant::default(), settings));
    lab.event(Event::Reconfigure(Box::new(Config {
        servers: vec![second_server()],
        ..config(NatMode::None)
    })));
    assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))]);
}

/// decision 19: without a configured server, the WAN's default router; without either, 501.
#[test]
fn the_default_router_is_the_server() {
    let mut lab = Lab::new(Config { servers: Vec::new(), anycast: false, ..config(NatMode::Own) });
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(Wan { router: None, ..wan(&[W]) }));
    assert_eq!(lab.seen(), []);
    assert_eq!(lab.add(ALICE, 2, port(8080)), Err(501));
    lab.event(Event::Wan(wan(&[W])));
    assert_eq!(lab.connection(), connected(E));
    assert_eq!(lab.status().server, Some(server()));
}

/// A socket that cannot be made is tried again every ten seconds.
#[test]
fn a_socket_that_fails() {
    let mut lab = Lab::up(NatMode::Own);
    lab.event(Event::UplinkFailed { server: server(), error: "no route".into() });
    assert!(lab.notices().contains(&Notice::UplinkFailed(server(), "no route".into())));
    assert_eq!(lab.connection().0, "Disconnected");
    assert_eq!(lab.add(ALICE, 2, port(8080)), Err(501));
    lab.effects.clear();
    lab.run(lab.now + 9999);
    assert_eq!(lab.seen(), []);
    lab.run(lab.now + 1);
    assert!(lab.seen().contains(&Effect::OpenUplink { server: server() }));
    assert_eq!(lab.connection(), connected(E));
}

/// Decision 13: a server that falls silent, and answers again.
#[test]
fn silence_is_a_status() {
    let mut lab = Lab::up(NatMode::Own);
    lab.silent = true;
    lab.start_add(ALICE, 2, port(8080));
    lab.pass(10);
    assert_eq!(lab.connection(), ("Disconnected".into(), "198.51.100.7".into()));
    assert!(lab.notices().contains(&Notice::Silent(server(), false)));
    assert_eq!(lab.status().answering, Some(false));
    lab.silent = false;
    lab.pass(60);
    assert_eq!(lab.connection(), connected(E));
    assert_eq!(lab.notices().iter().filter(|n| matches!(n, Notice::Answering(_))).count(), 1);
}

/// Many mappings deleted at once are no silence.
#[test]
fn a_burst_is_no_silence() {
    let mut lab = Lab::up(NatMode::Own);
    for n in 0..20 {
        assert_eq!(lab.add(ALICE, 2, port(8000 + n)), done());
    }
    lab.effects.clear();
    let range =
        [("NewStartPort", "8000"), ("NewEndPort", "8099"), ("NewProtocol", "TCP"), ("NewManage", "0")];
    assert_eq!(lab.call(ALICE, 2, "DeletePortMappingRange", &range), done());
    assert!(!lab.notices().iter().any(|notice| matches!(notice, Notice::Silent(..) | Notice::Answering(_))));
}

/// The security policy's "switching the service off deletes all its mappings, local and upstream"; Stopped once, as
/// soon as everything is confirmed; SSDP says goodbye before.
#[test]
fn stop() {
    for nat in BOTH {
        for silent in [false, true] {
            let mut lab = Lab::up(nat);
            for n in 0..3 {
                assert_eq!(lab.add(ALICE, 2, port(8080 + n)), done());
            }
            lab.script = [Reaction::Lose].into();
            let waiting = lab.start_add(BOB, 2, port(9090));
            lab.effects.clear();
            lab.silent = silent;
            lab.event(Event::Stop);
            assert_eq!(lab.heard(waiting), Some(Err(501)));
            assert_eq!(lab.rules, []);
            let stopped = |lab: &Lab| -> Vec<u64> {
                let stopped = lab.effects.iter().filter(|(_, effect)| *effect == Effect::Stopped);
                stopped.map(|(at, _)| at - 10_000).collect()
            };
            if silent {
                assert_eq!(lab.add(ALICE, 2, port(8080)), Err(501));
                assert_eq!(
                    lab.call(BOB, 1, "GetGenericPortMappingEntry", &[("NewPortMappingIndex", "0")]),
                    Err(713)
                );
                lab.pass(10);
                assert_eq!(stopped(&lab), [2000]);
                assert_eq!(
                    lab.all_sent().len(),
                    10,
                    "three mappings, the probe, the pending one; repeated once"
                );
            } else {
                assert_eq!(stopped(&lab), [0]);
                assert_eq!(lab.providers[&server()].mappings().count(), 0, "the probe, too");
            }
            let byebyes = lab.effects.iter().filter(|(_, effect)| matches!(effect, Effect::Ssdp(_))).count();
            assert_eq!(byebyes, 10);
            lab.event(Event::Stop);
            lab.event(Event::Lan(Vec::new()));
            lab.event(Event::Lan(lan()));
            lab.event(Event::Wan(wan(&[])));
            assert_eq!(lab.gateway.next_timeout(), None);
            lab.pass(1000);
            assert_eq!(stopped(&lab).len(), 1, "once");
        }
    }
}

/// Stopping in the middle of an overwriting (T-4) and of a deletion restores nothing.
#[test]
fn stop_in_the_middle() {
    for script in [[Reaction::Lose, Reaction::Serve], [Reaction::Serve, Reaction::Lose]] {
        let mut lab = Lab::up(NatMode::None);
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        assert_eq!(lab.add(ALICE, 2, port(8081)), done());
        lab.script = script.into();
        let adding = lab.start_add(ALICE, 2, port(8080).to(9090));
        lab.script = [Reaction::Lose].into();
        let deleting = lab.start_delete(ALICE, 2, 8081);
        lab.event(Event::Stop);
        lab.pass(3);
        assert_eq!((lab.heard(adding), lab.heard(deleting)), (Some(Err(501)), Some(done())));
        assert_eq!((lab.mapped(), lab.upstream()), (vec![], vec![]));
        assert_eq!(lab.effects.iter().filter(|(_, effect)| *effect == Effect::Stopped).count(), 1);
    }
}

/// With nothing to take back there is nothing to wait for.
#[test]
fn stop_before_anything() {
    let mut lab = Lab::new(config(NatMode::Own));
    lab.event(Event::Stop);
    assert_eq!(lab.seen(), [Effect::Stopped]);
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.event(Event::Wan(wan(&[])));
    lab.event(Event::Stop);
    lab.pass(1);
    assert!(lab.seen().contains(&Effect::Stopped), "without an uplink there is nobody to wait for");
    assert_eq!(lab.rules, []);
}

/// SSDP works through the gateway: announced by the interface, searches answered there.
#[test]
fn ssdp_through_the_gateway() {
    let mut lab = Lab::new(config(NatMode::Own));
    lab.event(Event::Lan(lan()));
    lab.run(1000);
    let sent = |lab: &Lab| {
        lab.effects.iter().filter(|(_, e)| matches!(e, Effect::Ssdp(out) if out.interface == 3)).count()
    };
    assert_eq!(sent(&lab), 30);
    lab.effects.clear();
    let search = wire::ssdp::search(wire::ssdp::HOST_V4, &wire::ssdp::Target::RootDevice, Some(1));
    lab.event(Event::Ssdp {
        interface: 3,
        local: None,
        from: SocketAddr::from((ALICE, 5000)),
        bytes: search.as_bytes(),
    });
    lab.event(Event::Ssdp {
        interface: 3,
        local: None,
        from: SocketAddr::from((ALICE, 53)),
        bytes: search.as_bytes(),
    });
    lab.run(3000);
    assert_eq!((sent(&lab), lab.status().ignored_ssdp), (1, 1));
}

/// what DHCP offers is shown as long as it stands (RFC 7291).
#[test]
fn offers_of_dhcp_are_shown() {
    let mut lab = Lab::up(NatMode::Own);
    let offered: Vec<Vec<IpAddr>> = vec![vec!["2001:db8::1".parse().unwrap()], vec![W.into(), E.into()]];
    lab.event(Event::Wan(Wan { offered: offered.clone(), ..wan(&[W]) }));
    assert_eq!(lab.status().offered, offered);
    lab.event(Event::Wan(wan(&[W])));
    assert_eq!(lab.status().offered, Vec::<Vec<IpAddr>>::new());
}

/// The whole of what `portferry status` shows.
#[test]
fn status() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.provider().config_mut().prefer_failure = PreferFailure::Honoured;
    lab.pass(60);
    let expected = Status {
        own_nat: true,
        lan: vec![("lan0".into(), vec![LAN])],
        wan: "wan0".into(),
        wan_addresses: vec![W],
        offered: Vec::new(),
        server: Some(server()),
        servers: vec![server()],
        protocol: Some(crate::uplink::UplinkProtocol::Pcp),
        nat_above: None,
        answering: Some(true),
        last_heard: Some(Duration::from_secs(60)),
        epoch: Some(10),
        external: Some(E),
        uptime: Some(Duration::from_secs(70)),
        mappings: 1,
        store_error: None,
        held: 0,
        ignored_upstream: 0,
        ignored_ssdp: 0,
        lan_served: crate::gateway::LanCounters::default(),
        searches: crate::ssdp::Heard::default(),
        pinholes: 0,
        firewall: None,
        policy: crate::status::PolicyStatus::default(),
        system_update_id: 1,
    };
    assert_eq!(lab.status(), expected);
    let mapping = MappingStatus {
        protocol: Protocol::TCP,
        external: SocketAddrV4::new(E, 8080),
        nat_port: Some(8080),
        internal: at(ALICE, 8080),
        remote_peer: None,
        remote_name: None,
        description: "test".into(),
        age: Duration::from_secs(60),
        asked_by: crate::claims::AskedBy { igd: true, ..Default::default() },
        lease_left: Some(Duration::from_secs(3540)),
        lifetime_left: Duration::from_secs(3540),
        health: crate::table::Health::Active,
    };
    assert_eq!(lab.gateway.mappings(lab.instant()).collect::<Vec<_>>(), [mapping]);
}

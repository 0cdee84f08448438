//! No server of the provider's is known, and none is found: an ordinary gateway of the local NAT (decision 21).

use super::*;
use crate::table::Health;
use crate::uplink::UplinkProtocol;

fn nobody(change: impl FnOnce(&mut Config)) -> Lab {
    let mut settings = Config { servers: Vec::new(), ..config(NatMode::Own) };
    change(&mut settings);
    let mut lab = Lab::new(settings);
    lab.providers.clear();
    lab
}

fn up(lab: &mut Lab, addr: Ipv4Addr) {
    lab.source = addr.into();
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[addr])));
    lab.pass(10);
}

/// Everything that a control point asks, at the WAN's own address.
#[test]
fn an_ordinary_gateway() {
    let mut lab = nobody(|_| {});
    up(&mut lab, W);
    assert_eq!((lab.status().external, lab.status().protocol), (Some(W), Some(UplinkProtocol::Local)));
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, internal: 8081, ..port(8080) }), done());
    assert_eq!((lab.rules.len(), lab.rules[0].port, lab.rules[0].internal), (1, 8080, at(ALICE, 8081)));
    assert_eq!(lab.add(BOB, 1, port(8080)), Err(718));
    assert_eq!(lab.add(BOB, 2, Add { any: true, ..port(8080) }).map(|ports| ports.len()), Ok(1));
    assert_eq!(lab.rules.len(), 2);
    // A port that the router itself uses.
    lab.in_use.push((Protocol::TCP, 9000));
    assert_eq!(lab.add(BOB, 1, port(9000)), Err(718));
    lab.pass(3 * 86_400);
    let (mapped, healthy) =
        (lab.mapped(), lab.gateway.mappings(lab.instant()).all(|m| m.health == Health::Active));
    assert_eq!((mapped.len(), healthy), (1, true), "the lease of the other one is over");
    assert_eq!(lab.delete(ALICE, 1, 8080), done());
    assert_eq!((lab.rules.len(), lab.mapped().len()), (0, 0));
}

/// A server comes up: whoever has a mapping keeps it if that gives the port.
#[test]
fn a_server_is_found_later() {
    let mut lab = nobody(|_| {});
    up(&mut lab, W);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    lab.providers.insert(server(), Provider::new(lab.instant(), ProviderConfig::new(E)));
    lab.pass(16 * 60);
    assert!(lab.notices().contains(&Notice::Found(server())));
    assert_eq!((lab.status().external, lab.status().protocol), (Some(E), Some(UplinkProtocol::Pcp)));
    assert_eq!(lab.upstream().iter().map(|(port, _)| *port).collect::<Vec<_>>(), [8080]);
    // It goes again: it is known now, so applications hear that it is silent.
    lab.providers.clear();
    lab.pass(3600);
    assert_eq!(lab.status().protocol, Some(UplinkProtocol::Pcp));
}

/// Who has named a server, has no address of its own, or does not want it, is not an ordinary gateway.
#[test]
fn when_it_is_not() {
    let behind = Ipv4Addr::new(100, 64, 0, 2);
    let named = |settings: &mut Config| settings.servers = vec![server()];
    let refuses = |settings: &mut Config| settings.when_none_found = WhenNoneFound::Refuse;
    for (what, mut lab, addr) in [
        ("a server is configured", nobody(named), W),
        ("it is not wanted", nobody(refuses), W),
        ("the WAN is behind a NAT", nobody(|_| {}), behind),
        ("no NAT of its own", nobody(|settings| settings.nat = NatMode::None), W),
    ] {
        up(&mut lab, addr);
        lab.pass(60);
        assert_eq!(lab.status().external, None, "{what}");
        assert_eq!(lab.rules, [], "{what}");
    }
    let mut lab = nobody(|_| {});
    let offered = vec![vec![server().ip()]];
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(Wan { offered, ..wan(&[W]) }));
    lab.pass(60);
    assert_eq!(lab.status().external, None, "DHCP has named one");
}

/// A link whose router is not known, where the anycast addresses are not to be asked, either: there is nobody to ask.
#[test]
fn nobody_to_ask() {
    let mut lab = nobody(|settings| settings.anycast = false);
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(Wan { router: None, ..wan(&[W]) }));
    lab.pass(9);
    assert_eq!((lab.status().external, lab.status().protocol), (None, None), "a route may still come");
    lab.pass(1);
    assert_eq!((lab.status().external, lab.status().protocol), (Some(W), Some(UplinkProtocol::Local)));
    assert_eq!(lab.status().server, None);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    assert_eq!((lab.rules.len(), lab.sent().len()), (1, 0));
    // The link comes back with another address.
    lab.event(Event::Wan(Wan { router: None, ..wan(&[]) }));
    assert_eq!(lab.status().external, None);
    let other = Ipv4Addr::new(192, 0, 2, 99);
    lab.event(Event::Wan(Wan { router: None, ..wan(&[other]) }));
    lab.pass(10);
    assert_eq!(lab.status().external, Some(other));
    assert!(lab.gateway.mappings(lab.instant()).all(|mapping| *mapping.external.ip() == other));
    assert_eq!(lab.rules.len(), 1);
    // And then with a router that is a server.
    lab.source = other.into();
    lab.providers.insert(server(), Provider::new(lab.instant(), ProviderConfig::new(E)));
    lab.event(Event::Wan(wan(&[other])));
    lab.pass(10);
    assert_eq!((lab.status().external, lab.status().protocol), (Some(E), Some(UplinkProtocol::Pcp)));
    assert_eq!(lab.upstream().iter().map(|(port, _)| *port).collect::<Vec<_>>(), [8080]);
    // Where that is behind a NAT, nobody can be reached.
    let mut lab = nobody(|settings| settings.anycast = false);
    lab.event(Event::Wan(Wan { router: None, ..wan(&[Ipv4Addr::new(100, 64, 0, 2)]) }));
    lab.pass(60);
    assert_eq!((lab.status().external, lab.status().protocol), (None, None));
    assert_eq!(lab.notices(), [Notice::NoServer]);
    // And the same when it gets there only later.
    let mut lab = nobody(|settings| settings.anycast = false);
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(Wan { router: None, ..wan(&[W]) }));
    lab.pass(10);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    lab.event(Event::Wan(Wan { router: None, ..wan(&[other]) }));
    assert_eq!(lab.status().external, None, "that is another address");
    lab.pass(10);
    assert_eq!(lab.status().external, Some(other));
    let behind = Ipv4Addr::new(100, 64, 0, 2);
    lab.event(Event::Wan(Wan { router: None, ..wan(&[behind]) }));
    lab.pass(60);
    assert_eq!((lab.status().external, lab.status().protocol), (None, None));
    lab.source = behind.into();
    assert_eq!(lab.add(ALICE, 2, port(8081)), Err(501));
    lab.event(Event::Wan(Wan { router: None, ..wan(&[W]) }));
    lab.source = W.into();
    lab.pass(10);
    assert_eq!((lab.status().external, lab.rules.len()), (Some(W), 1));
}

/// No socket to those that could be asked can be opened: nobody can be found that way, either. What comes later is found.
#[test]
fn nobody_can_be_asked() {
    for anycast in [false, true] {
        let mut lab = nobody(|settings| settings.anycast = anycast);
        lab.no_socket = true;
        up(&mut lab, W);
        assert_eq!((lab.status().external, lab.status().protocol), (Some(W), Some(UplinkProtocol::Local)));
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        assert_eq!((lab.rules.len(), lab.sent().len()), (1, 0));
        let failed = lab.notices().len();
        lab.pass(3600);
        assert_eq!(lab.notices().len(), failed, "it is said no more: {:?}", lab.notices());
        // One is there, and still no socket can be opened: what serves goes on.
        lab.providers.insert(server(), Provider::new(lab.instant(), ProviderConfig::new(E)));
        lab.pass(3600);
        assert_eq!((lab.status().external, lab.status().protocol), (Some(W), Some(UplinkProtocol::Local)));
        assert_eq!(lab.rules.len(), 1);
        lab.no_socket = false;
        lab.pass(16 * 60);
        assert_eq!((lab.status().external, lab.status().protocol), (Some(E), Some(UplinkProtocol::Pcp)));
        assert_eq!(lab.upstream().iter().map(|(port, _)| *port).collect::<Vec<_>>(), [8080]);

        // A link that goes and comes back is given as much time as the first; at another address it is the same.
        let mut lab = nobody(|settings| settings.anycast = anycast);
        lab.no_socket = true;
        up(&mut lab, W);
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        lab.event(Event::Wan(wan(&[])));
        assert_eq!(lab.status().external, None);
        lab.event(Event::Wan(wan(&[W])));
        lab.pass(9);
        assert_eq!(lab.status().external, None);
        lab.pass(1);
        assert_eq!(lab.status().external, Some(W));
        let other = Ipv4Addr::new(192, 0, 2, 99);
        lab.source = other.into();
        lab.event(Event::Wan(wan(&[other])));
        assert_eq!(lab.status().external, None, "that was another address");
        lab.pass(10);
        assert_eq!((lab.status().external, lab.rules.len()), (Some(other), 1));
        assert!(lab.gateway.mappings(lab.instant()).all(|mapping| *mapping.external.ip() == other));
        // It may be asked after all, and is not there.
        lab.no_socket = false;
        lab.event(Event::Wan(wan(&[other, W])));
        lab.pass(10);
        assert_eq!((lab.status().protocol, lab.mapped().len()), (Some(UplinkProtocol::Local), 1));
    }
    // Who has named one hears of it, from the start or later.
    for later in [false, true] {
        let named = || Config { servers: vec![server()], ..config(NatMode::Own) };
        let mut lab = if later { nobody(|_| {}) } else { Lab::new(named()) };
        lab.no_socket = true;
        up(&mut lab, W);
        assert_eq!(lab.status().external, Some(W).filter(|_| later));
        lab.event(Event::Reconfigure(Box::new(named())));
        lab.pass(60);
        assert_eq!((lab.status().external, lab.rules.len()), (None, 0));
        assert!(matches!(lab.notices().last(), Some(Notice::UplinkFailed(..))), "{:?}", lab.notices());
    }
}

/// What speaks against it is taken back: nobody has to touch the WAN for that.
#[test]
fn it_may_be_allowed_later() {
    for router in [None, Some(server().ip())] {
        let mut lab = nobody(|settings| {
            settings.anycast = false;
            settings.when_none_found = WhenNoneFound::Refuse;
        });
        let gone = || Event::Wan(Wan { router, ..wan(&[]) });
        let there = || Event::Wan(Wan { router, ..wan(&[W]) });
        let settings = |when_none_found| {
            let settings = Config { servers: Vec::new(), anycast: false, ..config(NatMode::Own) };
            Event::Reconfigure(Box::new(Config { when_none_found, ..settings }))
        };
        lab.event(Event::Lan(lan()));
        lab.event(there());
        lab.pass(60);
        assert_ne!(lab.status().protocol, Some(UplinkProtocol::Local));
        lab.event(settings(WhenNoneFound::Local));
        lab.pass(10);
        assert_eq!((lab.status().external, lab.status().protocol), (Some(W), Some(UplinkProtocol::Local)));
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        // It is taken back and given again; the mapping outlives that.
        lab.event(settings(WhenNoneFound::Refuse));
        lab.pass(60);
        assert_ne!(lab.status().protocol, Some(UplinkProtocol::Local));
        lab.event(settings(WhenNoneFound::Local));
        lab.pass(10);
        assert_eq!((lab.status().external, lab.mapped().len(), lab.rules.len()), (Some(W), 1, 1));
        // A lost link is said once, whatever else happens; and what is closed grants nothing.
        lab.event(gone());
        let before = lab.notices().len();
        for _ in 0..3 {
            lab.event(gone());
        }
        lab.pass(86_400);
        let notices = lab.notices().split_off(before);
        assert!(notices.iter().all(|notice| matches!(notice, Notice::Renewed(_))), "{notices:?}");
        assert_eq!(lab.status().external, None);
        lab.event(there());
        lab.pass(15);
        assert_eq!((lab.status().external, lab.mapped().len()), (Some(W), 1));
    }
}

/// Another WAN address: the same mappings there, as soon as it is clear that nobody is there, either.
#[test]
fn another_address() {
    let mut lab = nobody(|_| {});
    up(&mut lab, W);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    let other = Ipv4Addr::new(192, 0, 2, 99);
    up(&mut lab, other);
    assert_eq!(lab.status().external, Some(other));
    assert!(lab.gateway.mappings(lab.instant()).all(|mapping| *mapping.external.ip() == other));
    assert_eq!(lab.rules.len(), 1);
}

/// A server that is slow, or that is left alone after a restart, is no server that is not there: ten seconds count from the question.
#[test]
fn a_slow_server_is_one() {
    let mut lab = nobody(|_| {});
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(10);
    assert_eq!(lab.status().protocol, Some(UplinkProtocol::Local));
    let late = wire::natpmp::Response::ExternalAddress {
        result: wire::natpmp::ResultCode::SUCCESS,
        epoch: 9,
        addr: E,
    };
    lab.event(Event::Uplink { from: server(), bytes: &late.to_bytes() });
    assert_eq!(lab.status().protocol, Some(UplinkProtocol::NatPmp), "its answer was on the way");

    // Stored mappings wait for their turn; only then is anybody asked.
    let mut before = Lab::new(Config { servers: Vec::new(), ..config(NatMode::Own) });
    up(&mut before, W);
    assert_eq!(before.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    let stored: Vec<StoredMapping> = before.store.values().cloned().collect();
    let mut lab = Lab::new(Config { servers: Vec::new(), ..config(NatMode::Own) });
    lab.providers = before.providers;
    lab.now = before.now;
    lab.event(Event::Lan(lan()));
    lab.event(Event::Restore { mappings: stored, probe: before.probe_nonce, filtered: Vec::new() });
    lab.event(Event::Wan(wan(&[W])));
    for _ in 0..60 {
        lab.pass(1);
        assert_ne!(lab.status().protocol, Some(UplinkProtocol::Local));
    }
    assert_eq!((lab.mapped(), lab.status().external), (vec![(8080, at(ALICE, 8080))], Some(E)));
}

/// From a network with a server into one without: what served there says nothing of what is here. And the other way round, when a
/// server is named.
#[test]
fn from_network_to_network() {
    let mut lab = Lab::new(Config { servers: Vec::new(), ..config(NatMode::Own) });
    up(&mut lab, W);
    assert_eq!(lab.status().protocol, Some(UplinkProtocol::Pcp));
    let elsewhere = Ipv4Addr::new(192, 0, 2, 200);
    let router = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 201)));
    lab.source = elsewhere.into();
    lab.event(Event::Wan(Wan { router, ..wan(&[elsewhere]) }));
    lab.pass(15);
    assert_eq!(
        (lab.status().protocol, lab.status().external),
        (Some(UplinkProtocol::Local), Some(elsewhere))
    );
    let offered = vec![vec![server().ip()]];
    lab.event(Event::Wan(Wan { router, offered, ..wan(&[elsewhere]) }));
    lab.pass(5);
    assert_eq!((lab.status().protocol, lab.status().external), (Some(UplinkProtocol::Pcp), Some(E)));
}

//! Which server is asked, and who takes its place (decision 19; RFC 7291, RFC 7488, RFC 7723).

use super::*;
use crate::table::Health;

const SECOND: &str = "192.0.2.2:5351";

fn second() -> SocketAddr {
    SECOND.parse().unwrap()
}

/// Two servers are configured, both of which are there.
fn two(nat: NatMode) -> Lab {
    let mut lab = Lab::new(Config { servers: vec![server(), second()], ..config(nat) });
    let settings = ProviderConfig { third_party: nat == NatMode::None, ..ProviderConfig::new(E) };
    lab.providers.insert(second(), Provider::new(Instant::default(), settings));
    lab
}

fn up(lab: &mut Lab) {
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
}

fn looks(lab: &Lab) -> Vec<(u64, SocketAddr)> {
    let look = |(at, effect): &(u64, Effect)| match effect {
        Effect::Scout { to, bytes } if bytes[0] == 2 => Some((*at, *to)),
        _ => None,
    };
    lab.effects.iter().filter_map(look).collect()
}

/// Decision 19, RFC 7723 §2.1: configured and nothing else; else what DHCP offers, the router, anycast. Only what there is a way to.
#[test]
fn the_order() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let offered = vec![vec![ip("2001:db8::5"), ip("192.0.2.55")], vec![server().ip()]];
    let v6: Vec<Ipv6Addr> = vec!["2001:db8::a".parse().unwrap()];
    let wan = |v4: &[Ipv4Addr], v6: &[Ipv6Addr]| Wan {
        offered: offered.clone(),
        addresses_v6: v6.to_vec(),
        router: Some(ip("192.0.2.254")),
        ..super::wan(v4)
    };
    let (both, four) = (wan(&[W], &v6), wan(&[W], &[]));
    let all = ["2001:db8::5", "192.0.2.55", "192.0.2.1", "192.0.2.254", "192.0.0.9", "2001:1::1"];
    let only = |keep: &dyn Fn(&IpAddr) -> bool| all.map(ip).into_iter().filter(keep).collect::<Vec<_>>();
    let found = Config { servers: Vec::new(), ..config(NatMode::Own) };
    let without_anycast = Config { anycast: false, ..found.clone() };
    for (what, settings, wan, wanted) in [
        ("everything", without_nat(&found), both.clone(), only(&|_| true)),
        ("IPv4 only", without_nat(&found), four.clone(), only(&IpAddr::is_ipv4)),
        ("behind a NAT of our own", found.clone(), both.clone(), only(&IpAddr::is_ipv4)),
        ("IPv6 only", without_nat(&found), only_v6(&v6, &offered), vec![ip(all[0]), ip(all[5])]),
        ("without anycast", without_anycast, four, only(&|addr| addr.is_ipv4() && *addr != ip("192.0.0.9"))),
        ("configured", config(NatMode::Own), both, vec![server().ip()]),
    ] {
        let mut lab = Lab::new(settings);
        lab.event(Event::Wan(wan));
        let servers: Vec<IpAddr> = lab.status().servers.iter().map(SocketAddr::ip).collect();
        assert_eq!(servers, wanted, "{what}");
        assert_eq!(lab.status().server.map(|server| server.ip()), wanted.first().copied(), "{what}");
    }
}

fn without_nat(settings: &Config) -> Config {
    Config { nat: NatMode::None, ..settings.clone() }
}

fn only_v6(v6: &[Ipv6Addr], offered: &[Vec<IpAddr>]) -> Wan {
    Wan {
        addresses: Vec::new(),
        addresses_v6: v6.to_vec(),
        up: true,
        offered: offered.to_vec(),
        router: None,
        ..wan(&[W])
    }
}

/// The first does not answer: whoever does takes its place before a control point loses its patience, and nothing was made at any
/// other.
#[test]
fn the_first_that_answers_serves() {
    for nat in BOTH {
        let mut lab = two(nat);
        lab.providers.remove(&server());
        up(&mut lab);
        let early = lab.start_add(ALICE, 2, port(8080));
        assert_eq!(looks(&lab), []);
        lab.run(3000);
        assert_eq!(looks(&lab), [(3000, second())]);
        let away = Notice::OtherServer { from: server(), to: second(), preferred: false };
        assert!(lab.notices().contains(&away));
        assert_eq!((lab.heard(early), lab.status().server), (Some(done()), Some(second())), "{nat:?}");
        lab.pass(10);
        let there: Vec<u16> = lab.providers[&second()].mappings().map(|one| one.external.port()).collect();
        assert!(there.contains(&8080), "{there:?}");

        // Nobody there, says the machine itself (RFC 7488 §3): at once.
        let mut lab = two(nat);
        lab.providers.remove(&server());
        up(&mut lab);
        lab.event(Event::UplinkUnreachable(server()));
        assert_eq!(lab.status().server, Some(second()));
        // The socket cannot be made.
        let mut lab = two(nat);
        lab.event(Event::Lan(lan()));
        lab.gateway.handle(lab.instant(), Event::Wan(wan(&[W])));
        while lab.gateway.poll_effect().is_some() {}
        lab.event(Event::UplinkFailed { server: server(), error: "no route".into() });
        assert_eq!(lab.status().server, Some(second()));
    }
}

/// One that has served is left after half a minute of silence, and not before; everything is asked for at the other one. The first
/// is gone back to once it has answered three looks in a row.
#[test]
fn failover_and_back() {
    for nat in BOTH {
        let mut lab = two(nat);
        up(&mut lab);
        lab.pass(10);
        for number in 8000..8010 {
            assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(number) }), done());
        }
        let away = lab.providers.remove(&server()).unwrap();
        let asked = lab.start_add(BOB, 1, Add { lease: 0, ..port(9000) });
        lab.pass(25);
        assert_eq!((lab.heard(asked), lab.status().server), (Some(Err(501)), Some(server())));
        lab.pass(75);
        assert_eq!(lab.status().server, Some(second()));
        lab.pass(10);
        let there = |lab: &Lab, at: SocketAddr| {
            let mappings = lab.providers[&at].mappings();
            mappings.filter(|mapping| (8000..8010).contains(&mapping.external.port())).count()
        };
        assert_eq!(there(&lab, second()), 10, "{nat:?}");
        assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
        assert_eq!(lab.add(BOB, 1, Add { lease: 0, ..port(9000) }), done());

        // It is back, for a moment first.
        lab.providers.insert(server(), away);
        lab.pass(70);
        assert_eq!(lab.status().server, Some(second()));
        let away = lab.providers.remove(&server()).unwrap();
        lab.pass(130);
        lab.providers.insert(server(), away);
        lab.pass(100);
        assert_eq!(lab.status().server, Some(second()), "it has to stay");
        lab.pass(100);
        assert_eq!(lab.status().server, Some(server()), "{:?} {}", looks(&lab), lab.now);
        lab.pass(10);
        assert_eq!(there(&lab, server()), 10);
        assert!(lab.notices().contains(&Notice::OtherServer {
            from: second(),
            to: server(),
            preferred: true
        }));
        assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
    }
}

/// Of several that somebody has configured a dead one is noticed though nothing is asked; of those that are found nobody is looked at
/// without need.
#[test]
fn who_is_looked_at() {
    let mut lab = two(NatMode::Own);
    up(&mut lab);
    lab.pass(10);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    lab.providers.remove(&server());
    lab.pass(300);
    assert_eq!(lab.status().server, Some(second()));
    assert_eq!(
        lab.providers[&second()].mappings().filter(|mapping| mapping.external.port() == 8080).count(),
        1
    );

    let mut lab = Lab::new(Config { servers: Vec::new(), pinholes: false, ..config(NatMode::Own) });
    up(&mut lab);
    lab.pass(86_400);
    assert_eq!((lab.status().servers.len(), looks(&lab)), (2, vec![]));
}

/// A look is believed from where it was sent to, once, and only if it is an answer of such a server.
#[test]
fn what_is_no_answer_to_a_look() {
    let mut lab = two(NatMode::Own);
    lab.providers.clear();
    up(&mut lab);
    let good = Response {
        result: ResultCode::SUCCESS,
        lifetime: 0,
        epoch: 1,
        body: Body::Announce,
        options: Vec::new(),
    };
    let good = good.to_bytes();
    lab.event(Event::Scouted { from: second(), bytes: &good });
    assert_eq!(lab.status().server, Some(server()), "it was not looked at yet");
    lab.run(3000);
    let elsewhere: SocketAddr = "192.0.2.66:5351".parse().unwrap();
    let request =
        Request { lifetime: 0, client_addr: W.to_ipv6_mapped(), body: Body::Announce, options: Vec::new() };
    for (from, bytes) in [
        (elsewhere, good.clone()),
        (second(), vec![]),
        (second(), request.to_bytes()),
        (second(), vec![0, 128]),
    ] {
        lab.event(Event::Scouted { from, bytes: &bytes });
        assert_eq!(lab.status().server, Some(server()));
    }
    lab.event(Event::Scouted { from: second(), bytes: &good });
    assert_eq!(lab.status().server, Some(second()));
}

/// Nobody is there: looks get rarer, and whoever comes serves within a minute.
#[test]
fn nobody_is_there() {
    let mut lab = two(NatMode::Own);
    let late = lab.providers.remove(&second()).unwrap();
    lab.providers.clear();
    up(&mut lab);
    lab.pass(3600);
    let looks = looks(&lab).len();
    assert!((58..=70).contains(&looks), "{looks} in an hour");
    lab.providers.insert(second(), late);
    lab.pass(60);
    assert_eq!((lab.status().server, lab.status().external), (Some(second()), Some(E)));
}

/// A server that goes from the list is left, and one that is offered is used as soon as there is no better one.
#[test]
fn lists_change() {
    let mut lab = Lab::new(Config { servers: Vec::new(), anycast: false, ..config(NatMode::Own) });
    lab.providers.insert(second(), Provider::new(Instant::default(), ProviderConfig::new(E)));
    up(&mut lab);
    lab.pass(10);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    // DHCP offers another one: the one that serves goes on, and is left for the better one when that has answered for a while.
    let with = |offered: Vec<Vec<IpAddr>>| Wan { offered, ..wan(&[W]) };
    lab.event(Event::Wan(with(vec![vec![second().ip()]])));
    assert_eq!(lab.status().server, Some(server()));
    lab.pass(250);
    assert_eq!(lab.status().server, Some(second()));
    // At the start, with nothing mapped yet, it is used at once.
    let mut early = Lab::new(Config { servers: Vec::new(), anycast: false, ..config(NatMode::Own) });
    early.providers.insert(second(), Provider::new(Instant::default(), ProviderConfig::new(E)));
    up(&mut early);
    early.pass(2);
    early.event(Event::Wan(with(vec![vec![second().ip()]])));
    early.pass(4);
    assert_eq!(early.status().server, Some(second()));
    // It is offered no more.
    lab.event(Event::Wan(with(Vec::new())));
    assert_eq!(lab.status().server, Some(server()));
    lab.pass(10);
    assert_eq!((lab.upstream().len(), lab.mapped().len()), (1, 1));
}

/// RFC 7723: behind a link without a router that could be asked the anycast address is the first, and may be at home with somebody out
/// in the Internet. Nothing that tells of hosts and applications goes there before somebody has answered; who waits has its answer then.
#[test]
fn an_anycast_address_that_is_asked_first() {
    let anycast: SocketAddr = "192.0.0.9:5351".parse().unwrap();
    let without_router = || Wan { router: None, ..wan(&[W]) };
    let sent_maps = |lab: &Lab| lab.all_sent().len();
    let started = |settings: Config, wan: Wan| {
        let mut lab = Lab::new(settings);
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(wan));
        lab
    };
    let found =
        || Config { servers: Vec::new(), when_none_found: WhenNoneFound::Refuse, ..config(NatMode::Own) };
    for speaks in [Speaks::Pcp, Speaks::NatPmp, Speaks::NatPmpSilently] {
        let mut lab = started(found(), without_router());
        let early = lab.start_add(ALICE, 1, Add { lease: 0, ..port(8080) });
        lab.pass(3600);
        assert_eq!((lab.heard(early), sent_maps(&lab)), (Some(Err(501)), 0));
        let settings = ProviderConfig { speaks, ..ProviderConfig::new(E) };
        lab.providers.insert(anycast, Provider::new(lab.instant(), settings.clone()));
        lab.pass(1200);
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done(), "{speaks:?}");

        // Where it is there from the start nobody waits for anything.
        let mut lab = Lab::new(found());
        lab.providers.insert(anycast, Provider::new(lab.instant(), settings));
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(without_router()));
        let first = lab.effects.iter().find_map(|(_, effect)| match effect {
            Effect::Send { bytes, .. } => Some(bytes.clone()),
            _ => None,
        });
        assert!(first.is_some_and(|bytes| bytes[..2] == [2, 0]), "ANNOUNCE");
        let early = lab.start_add(ALICE, 1, Add { lease: 0, ..port(8080) });
        lab.pass(if speaks == Speaks::NatPmpSilently { 3 } else { 0 });
        assert_eq!(lab.heard(early), Some(done()), "{speaks:?}");
    }
    // Somebody has named it.
    let named = Config { servers: vec![anycast], ..found() };
    let offered = Wan { offered: vec![vec![anycast.ip()]], ..without_router() };
    for (settings, wan) in [(named, without_router()), (found(), offered)] {
        assert_eq!(sent_maps(&started(settings, wan)), 1, "the probe");
    }
}

/// The router has gone, and nobody has taken its place: nobody is asked any more, and after a while this is an ordinary gateway. A WAN
/// without an address says nothing of who is there.
#[test]
fn the_list_becomes_empty() {
    let found = || Config { servers: Vec::new(), anycast: false, ..config(NatMode::Own) };
    let without_router = |addresses: &[Ipv4Addr]| Wan { router: None, ..wan(addresses) };
    let mut lab = Lab::new(found());
    up(&mut lab);
    lab.pass(10);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    // The link flaps: first the route goes, then the address; and they come back the other way round.
    for flap in [without_router(&[]), wan(&[]), without_router(&[])] {
        lab.event(Event::Wan(flap));
        assert_eq!(lab.status().server, Some(server()));
    }
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(1);
    assert_eq!((lab.status().server, lab.status().external), (Some(server()), Some(E)));
    // The route is later than the address.
    lab.event(Event::Wan(wan(&[])));
    lab.event(Event::Wan(without_router(&[W])));
    lab.pass(5);
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(1);
    assert_eq!((lab.status().server, lab.status().external), (Some(server()), Some(E)));
    assert_eq!((lab.mapped(), lab.wrong_nonces), (vec![(8080, at(ALICE, 8080))], 0));
    assert_eq!(lab.upstream().len(), 1);

    lab.event(Event::Wan(without_router(&[W])));
    assert_eq!((lab.status().server, lab.status().servers.len()), (None, 0));
    lab.effects.clear();
    lab.pass(10);
    assert_eq!(lab.status().external, Some(W), "an ordinary gateway");
    assert_eq!((lab.mapped().len(), lab.rules.len()), (1, 1));
    lab.pass(3 * 86_400);
    assert_eq!(lab.all_sent(), []);
    assert_eq!(looks(&lab), []);
    // It comes back.
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(5);
    assert_eq!((lab.status().server, lab.status().external), (Some(server()), Some(E)));
    assert_eq!((lab.mapped(), lab.upstream().len()), (vec![(8080, at(ALICE, 8080))], 1));

    // Behind a NAT there is nobody, and that is said.
    let behind = Ipv4Addr::new(100, 64, 0, 2);
    let mut lab = Lab::new(found());
    lab.source = behind.into();
    lab.event(Event::Wan(wan(&[behind])));
    lab.pass(10);
    assert_eq!(lab.status().external, Some(E));
    lab.event(Event::Wan(without_router(&[behind])));
    lab.pass(60);
    assert_eq!((lab.status().server, lab.status().external), (None, None));
    assert_eq!(lab.notices().last(), Some(&Notice::NoServer));
    // A server that was configured is no more.
    let mut lab = Lab::new(Config { servers: vec![second()], ..found() });
    lab.event(Event::Wan(without_router(&[W])));
    assert_eq!(lab.status().server, Some(second()));
    lab.event(Event::Reconfigure(Box::new(found())));
    assert_eq!(lab.status().server, None);
    lab.pass(10);
    assert_eq!(lab.status().external, Some(W));
}

/// RFC 7488 §3: at each address of one server it is asked by the same nonces, so that what it holds is still ours.
#[test]
fn one_server_by_two_addresses() {
    let mut lab = Lab::new(Config { servers: Vec::new(), anycast: false, ..config(NatMode::Own) });
    let offered = vec![vec![server().ip(), second().ip()]];
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(Wan { offered, ..wan(&[W]) }));
    lab.pass(10);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    // The way to its first address breaks.
    let same = lab.providers.remove(&server()).unwrap();
    lab.providers.insert(second(), same);
    let asked = lab.start_add(BOB, 1, Add { lease: 0, ..port(9000) });
    lab.pass(90);
    assert_eq!((lab.heard(asked), lab.status().server), (Some(Err(501)), Some(second())));
    lab.pass(10);
    assert_eq!((lab.mapped().len(), lab.wrong_nonces), (1, 0));
    assert_eq!(lab.add(BOB, 1, Add { lease: 0, ..port(9000) }), done());
}

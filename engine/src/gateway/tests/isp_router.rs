//! A provider's router in front of us that speaks UPnP and nothing else (decision 20).

use super::*;
use crate::notice::IspRouterNews;
use crate::table::Health;
use crate::uplink::UplinkProtocol;

/// A home behind a router that knows nothing of PCP and NAT-PMP.
fn behind(change: impl FnOnce(&mut Config, &mut IgdModel)) -> Lab {
    let mut settings = config(NatMode::Own);
    let mut model = IgdModel::new("198.51.100.7");
    change(&mut settings, &mut model);
    let mut lab = Lab::new(settings);
    lab.providers.clear();
    lab.isp = Some(model);
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    lab
}

fn isp(lab: &mut Lab) -> &mut IgdModel {
    lab.isp.as_mut().expect("there is one")
}

fn news(lab: &Lab) -> Vec<IspRouterNews> {
    let notices = lab.notices().into_iter();
    notices
        .filter_map(|notice| if let Notice::IspRouter(_, news) = notice { Some(news) } else { None })
        .collect()
}

#[test]
fn everything_by_upnp() {
    let mut lab = behind(|_, _| {});
    lab.run(30_000);
    let status = lab.status();
    assert_eq!((status.protocol, status.answering), (Some(UplinkProtocol::Igd), Some(true)));
    assert_eq!(status.server, Some("192.0.2.1:5000".parse().unwrap()));
    assert_eq!(status.external, Some(E));
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    assert_eq!(lab.add(BOB, 2, Add { any: true, lease: 0, ..port(8080) }).expect("any will do").len(), 1);
    isp(&mut lab).maps("TCP", 9090, (Ipv4Addr::new(192, 0, 2, 77), 1));
    assert_eq!(lab.add(ALICE, 1, port(9090)), Err(718), "somebody else's");
    assert_eq!((lab.mapped().len(), lab.rules.len(), isp(&mut lab).entries.len()), (2, 2, 3));
    let external: Vec<u16> = lab.mapped().iter().map(|(number, _)| *number).collect();
    for number in external {
        let entry = &isp(&mut lab).entries[&("TCP".to_owned(), number)];
        assert_eq!(entry.internal.0, W, "to this router");
    }
    lab.pass(86_400);
    assert_eq!((lab.mapped().len(), isp(&mut lab).entries.len()), (2, 3));
    // It starts anew: all is there again within a minute.
    let now = lab.instant();
    isp(&mut lab).restart(now);
    lab.pass(60);
    assert_eq!(isp(&mut lab).entries.len(), 2);
    assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
    assert!(news(&lab).contains(&IspRouterNews::HasForgotten(2)));
    assert_eq!(lab.delete(ALICE, 1, 8080), done());
    assert_eq!(isp(&mut lab).entries.len(), 1);
    lab.event(Event::Stop);
    lab.pass(5);
    assert_eq!((isp(&mut lab).entries.len(), lab.rules.len()), (0, 0));
}

/// Only where nothing better is answered, and this router has a NAT of its own; and not when it is switched off.
#[test]
fn when_it_is_looked_for() {
    let mut lab = Lab::up(NatMode::Own);
    lab.isp = Some(IgdModel::new("198.51.100.7"));
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    lab.silent = true; // it has answered before
    lab.pass(4000);
    assert_eq!((lab.sought.len(), lab.status().protocol), (0, Some(UplinkProtocol::Pcp)));
    let mut off = behind(|settings, _| settings.isp_router = false);
    off.pass(600);
    assert_eq!((off.sought.len(), off.status().answering), (0, Some(false)));
    let mut routed = Lab::new(config(NatMode::None));
    routed.silent = true;
    routed.event(Event::Lan(lan()));
    routed.event(Event::Wan(wan(&[W])));
    routed.pass(600);
    assert_eq!((routed.sought.len(), routed.status().answering), (0, Some(false)));
    // Nobody there: ever more seldom.
    let mut nobody = behind(|_, _| {});
    nobody.isp = None;
    nobody.pass(3600);
    let searches = nobody.sought.len() / 12;
    assert!((7..=12).contains(&searches), "{searches} in an hour");
    // It comes later.
    nobody.isp = Some(IgdModel::new("198.51.100.7"));
    nobody.pass(700);
    assert_eq!(nobody.status().protocol, Some(UplinkProtocol::Igd));
}

/// A reserved address means another NAT above: it is shown, and nobody is told that it was public.
#[test]
fn another_nat_above() {
    let mut lab = behind(|_, model| model.external = "100.64.7.7");
    lab.run(30_000);
    let status = lab.status();
    assert_eq!((status.external, status.nat_above), (None, Some(Ipv4Addr::new(100, 64, 7, 7))));
    assert_eq!(news(&lab).last(), Some(&IspRouterNews::NatAbove(Ipv4Addr::new(100, 64, 7, 7))));
    assert_eq!(lab.add(ALICE, 1, port(8080)), Err(501));
    assert_eq!((isp(&mut lab).entries.len(), lab.rules.len()), (0, 0));
    isp(&mut lab).external = "198.51.100.7";
    lab.pass(40);
    assert_eq!((lab.status().external, lab.status().nat_above), (Some(E), None));
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
}

/// It is silent for a while, and has another place for its control then.
#[test]
fn silence_and_another_search() {
    let mut lab = behind(|_, _| {});
    lab.run(30_000);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    let model = lab.isp.take();
    let before = lab.sought.len();
    lab.pass(120);
    assert_eq!(
        (news(&lab).last(), lab.status().answering),
        (Some(&IspRouterNews::Silent(false)), Some(false))
    );
    assert!(lab.sought.len() > before, "it is looked for");
    assert_eq!(lab.mapped().len(), 1);
    lab.isp = model;
    isp(&mut lab).entries.clear();
    lab.pass(300);
    assert_eq!((lab.status().answering, isp(&mut lab).ports()), (Some(true), vec![8080]));
    assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
}

/// The router learns PCP: another link, or a look now and then, finds that out, and everything stands there.
#[test]
fn pcp_is_noticed() {
    for another_link in [false, true] {
        let mut lab = behind(|_, _| {});
        lab.run(30_000);
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        let provider = Provider::new(lab.instant(), ProviderConfig::new(E));
        lab.providers.insert(server(), provider);
        if another_link {
            lab.event(Event::Wan(wan(&[])));
            lab.pass(1);
            lab.event(Event::Wan(wan(&[W])));
            lab.pass(60);
        } else {
            lab.pass(700);
        }
        assert_eq!(lab.status().protocol, Some(UplinkProtocol::Pcp), "{another_link}");
        assert_eq!((lab.status().server, lab.status().external), (Some(server()), Some(E)));
        assert!(lab.upstream().iter().any(|(number, _)| *number == 8080));
    }
}

/// A home behind a router that knows no leases; some mappings are there, and one of a neighbour's.
fn without_leases() -> Lab {
    let mut lab = behind(|_, model| (model.version, model.only_permanent) = (1, true));
    lab.run(30_000);
    for number in [8080, 8081, 8082] {
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(number) }), done());
    }
    isp(&mut lab).maps("TCP", 9090, (Ipv4Addr::new(192, 0, 2, 77), 1));
    assert!(isp(&mut lab).entries.values().all(|entry| entry.ends.is_none()));
    lab.pass(10);
    isp(&mut lab).calls.clear();
    lab
}

fn learns_pcp(lab: &mut Lab) {
    let provider = Provider::new(lab.instant(), ProviderConfig::new(E));
    lab.providers.insert(server(), provider);
}

/// When PCP takes over, what would stand at the router for ever is taken back there, and PCP does not wait for that. What is not
/// ours any more, or was made by PCP meanwhile on the same list, is let be; and PCP is asked once more for what was deleted.
#[test]
fn nothing_is_left_behind_when_pcp_takes_over() {
    for another_link in [false, true] {
        let mut lab = without_leases();
        learns_pcp(&mut lab);
        if another_link {
            lab.event(Event::Wan(wan(&[])));
            lab.pass(1);
        }
        // One list for both protocols; somebody else has one of the ports by now.
        let ends = lab.instant() + Duration::from_secs(7200);
        isp(&mut lab).entries.get_mut(&("TCP".to_owned(), 8081)).unwrap().ends = Some(ends);
        isp(&mut lab).maps("TCP", 8082, (Ipv4Addr::new(192, 0, 2, 77), 8082));
        isp(&mut lab).calls.clear();
        lab.effects.clear();
        if another_link {
            lab.event(Event::Wan(wan(&[W])));
        }
        lab.pass(700);
        assert_eq!(lab.status().protocol, Some(UplinkProtocol::Pcp));
        assert_eq!(isp(&mut lab).ports(), [8081, 8082, 9090], "{another_link}");
        let deletes: Vec<String> =
            isp(&mut lab).take_calls().into_iter().filter(|call| call.starts_with("Delete")).collect();
        assert_eq!(deletes, ["DeletePortMapping 8080"]);
        let asked =
            |number| lab.sent().iter().filter(|(_, request)| map_of(request).external_port == number).count();
        assert_eq!([8080, 8081, 8082].map(asked), [2, 1, 1]);
        let place =
            |wanted: &dyn Fn(&Effect) -> bool| lab.effects.iter().position(|(_, effect)| wanted(effect));
        let map = place(&|effect| {
            matches!(effect, Effect::Send { bytes, .. }
                if Request::parse(bytes).is_ok_and(|request| matches!(request.body, Body::Map(_)) && map_of(&request).external_port == 8082))
        });
        let delete = place(&|effect| {
            matches!(effect, Effect::Http(request)
                if request.action.as_ref().is_some_and(|action| action.ends_with("#DeletePortMapping")))
        });
        assert!(map < delete, "PCP waits for nothing: {map:?} {delete:?}");
        assert_eq!((lab.upstream().len(), lab.mapped().len(), lab.rules.len()), (3, 3, 3));
        assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
        lab.pass(86_400);
        assert_eq!(isp(&mut lab).take_calls(), Vec::<String>::new());
    }
}

/// Entries that end by themselves are left to that; and nothing is asked of a router at another link, of one that is silent for
/// long, or on the word of one datagram.
#[test]
fn what_is_left_to_itself() {
    let mut lab = behind(|_, _| {});
    lab.run(30_000);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    lab.pass(10);
    isp(&mut lab).calls.clear();
    learns_pcp(&mut lab);
    lab.pass(7200);
    assert_eq!(lab.status().protocol, Some(UplinkProtocol::Pcp));
    assert!(
        !isp(&mut lab).take_calls().iter().any(|call| call.ends_with(" 8080") && call.starts_with("Delete"))
    );
    assert_eq!(isp(&mut lab).ports(), [8080]);

    let mut lab = without_leases();
    learns_pcp(&mut lab);
    let other = Ipv4Addr::new(192, 0, 2, 99);
    lab.source = other.into();
    lab.event(Event::Wan(wan(&[other])));
    lab.pass(700);
    assert_eq!(lab.status().protocol, Some(UplinkProtocol::Pcp));
    assert_eq!(isp(&mut lab).take_calls(), Vec::<String>::new());

    let mut lab = without_leases();
    let model = lab.isp.take();
    learns_pcp(&mut lab);
    lab.pass(700);
    assert_eq!(lab.status().protocol, Some(UplinkProtocol::Pcp));
    let tries =
        |lab: &Lab| lab.effects.iter().filter(|(_, effect)| matches!(effect, Effect::Http(_))).count();
    let before = tries(&lab);
    lab.pass(3600);
    assert_eq!(tries(&lab), before, "not for ever");
    lab.isp = model;
    lab.pass(3600);
    assert_eq!(isp(&mut lab).take_calls(), Vec::<String>::new());

    // Nobody speaks PCP there after all: everything goes on as before.
    let mut lab = without_leases();
    let forged = Response {
        result: ResultCode::SUCCESS,
        lifetime: 0,
        epoch: 1,
        body: Body::Announce,
        options: Vec::new(),
    };
    lab.event(Event::Uplink { from: server(), bytes: &forged.to_bytes() });
    assert_eq!(lab.status().protocol, Some(UplinkProtocol::Pcp));
    lab.pass(1200);
    assert_eq!(lab.status().protocol, Some(UplinkProtocol::Igd));
    assert_eq!(isp(&mut lab).ports(), [8080, 8081, 8082, 9090]);
    assert!(!isp(&mut lab).take_calls().iter().any(|call| call.starts_with("Delete")));
}

/// What LAN hosts and machines next to us say means nothing.
#[test]
fn answers_to_nobody() {
    let mut lab = behind(|_, _| {});
    lab.isp = None;
    let from = "192.0.2.66:1900".parse().unwrap();
    let bytes = b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nUSN: x\r\nLOCATION: http://192.0.2.66/x\r\n\r\n";
    lab.event(Event::SearchAnswer { from, bytes });
    assert_eq!(lab.status().ignored_upstream, 0, "nothing is sought");
    while lab.sought.is_empty() {
        lab.pass(1);
    }
    lab.event(Event::SearchAnswer { from, bytes });
    lab.event(Event::Http { id: HttpId(1), outcome: HttpOutcome::Failed });
    lab.pass(30);
    assert_eq!(lab.status().ignored_upstream, 1);
    assert!(!lab.effects.iter().any(|(_, effect)| matches!(effect, Effect::Http(_))), "nobody is asked");
}

/// Mappings of an earlier life stand again, and kill -9 leaves nothing behind that nobody knows.
#[test]
fn after_a_crash() {
    let mut lab = behind(|_, _| {});
    lab.run(30_000);
    for number in [8080, 8081] {
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(number) }), done());
    }
    let mappings: Vec<_> = lab.store.values().cloned().collect();
    let mut next = Lab::new(config(NatMode::Own));
    next.providers.clear();
    next.isp = lab.isp.take();
    next.event(Event::Lan(lan()));
    next.event(Event::Restore { mappings, probe: None, filtered: Vec::new() });
    next.event(Event::Wan(wan(&[W])));
    next.pass(120);
    assert_eq!((isp(&mut next).ports(), next.mapped().len()), (vec![8080, 8081], 2));
    assert!(next.gateway.mappings(next.instant()).all(|mapping| mapping.health == Health::Active));
    next.event(Event::Stop);
    next.pass(5);
    assert_eq!(isp(&mut next).ports(), []);
}

/// Nobody has named a server, and this router's own address is private: the usual home behind a provider's router. Neither the anycast
/// address nor this router's own NAT takes its place.
#[test]
fn where_no_server_is_named() {
    let here = Ipv4Addr::new(192, 168, 178, 2);
    let mut lab = Lab::new(Config { servers: Vec::new(), ..config(NatMode::Own) });
    lab.providers.clear();
    lab.source = here.into();
    lab.isp = Some(IgdModel::new("198.51.100.7"));
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[here])));
    let early = lab.start_add(ALICE, 1, Add { lease: 0, ..port(8080) });
    lab.pass(4);
    assert_eq!(lab.heard(early), Some(Err(501)), "it is not known yet who is to be asked");
    lab.pass(40);
    assert_eq!(lab.status().protocol, Some(UplinkProtocol::Igd));
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    lab.pass(86_400);
    assert_eq!((lab.status().protocol, lab.mapped().len()), (Some(UplinkProtocol::Igd), 1));
    assert_eq!(isp(&mut lab).entries[&("TCP".to_owned(), 8080)].internal.0, here);
    // Nobody at PCP's port, says the router: it is found at once.
    let mut lab = Lab::new(Config { servers: Vec::new(), ..config(NatMode::Own) });
    lab.providers.clear();
    lab.source = here.into();
    lab.isp = Some(IgdModel::new("198.51.100.7"));
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[here])));
    lab.event(Event::UplinkUnreachable(server()));
    lab.pass(3);
    assert_eq!(lab.status().external, Some(E));
}

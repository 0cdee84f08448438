//! Decision 17: a new server is asked what it holds for us (GET and NEXT); what nobody here knows may be claimed for ten
//! minutes and is then given back.

use super::*;

fn listing(nat: NatMode) -> Config {
    Config { list_mappings: true, ..config(nat) }
}

/// A gateway that has lost its state directory: the provider still holds `before` for ALICE, by nonces that nobody here
/// could derive.
fn after_a_loss(nat: NatMode, before: &[u16], query: bool) -> Lab {
    let mut lab = Lab::new(listing(nat));
    lab.provider().config_mut().query = query;
    let now = lab.instant();
    for &port in before {
        let map = MapData {
            nonce: Nonce([5; 12]),
            protocol: Protocol::TCP,
            internal_port: port,
            external_port: port,
            external_addr: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
        };
        let third_party = PcpOption::ThirdParty(ALICE.to_ipv6_mapped());
        let options = if nat == NatMode::None { vec![third_party] } else { vec![] };
        let client_addr = W.to_ipv6_mapped();
        let request = Request { lifetime: 86_400, client_addr, body: Body::Map(map), options };
        lab.provider().handle_datagram(now, (W, 5350).into(), &request.to_bytes()).expect("an answer");
    }
    lab.bring_up();
    lab.run(30_001); // service_wait
    lab
}

fn external_ports(lab: &Lab) -> Vec<u16> {
    lab.upstream().into_iter().map(|(port, _)| port).collect()
}

/// D-9, D-16: unknown ones are adopted, shown, and deleted by their own nonce after ten minutes, when nobody has asked.
#[test]
fn decision_17_orphans_are_given_back() {
    for nat in BOTH {
        let ports: Vec<u16> = (5000..5040).collect();
        let mut lab = after_a_loss(nat, &ports, true);
        assert_eq!((lab.status().held, lab.mapped()), (40, vec![]), "{nat:?}: over several pages");
        assert_eq!(external_ports(&lab), ports);
        lab.pass(565);
        assert_eq!(external_ports(&lab), ports, "not before");
        lab.pass(45);
        assert_eq!((external_ports(&lab), lab.status().held), (vec![], 0));
        assert!(lab.gateway.is_idle());
        assert_eq!(lab.gateway.nat_ports_in_use(), 0);
    }
}

/// The application that had it asks for it again, and has it: by the orphan's nonce, for with another one the server would
/// refuse. Its filters, which nobody here knows, are dropped.
#[test]
fn an_orphan_is_claimed() {
    for nat in BOTH {
        let mut lab = after_a_loss(nat, &[5000, 5001], true);
        assert_eq!(lab.add(ALICE, 2, port(5000)), done(), "{nat:?}");
        let (_, sent) = lab.sent().remove(0);
        assert_eq!(map_of(&sent).nonce, Nonce([5; 12]));
        let drops =
            |option: &PcpOption| matches!(option, PcpOption::Filter(filter) if filter.prefix_len == 0);
        assert!(sent.options.iter().any(drops));
        if nat == NatMode::None {
            assert_eq!(lab.add(BOB, 2, port(5001)), Err(718), "it was another host's");
        }
        lab.pass(1000);
        assert_eq!((lab.mapped(), external_ports(&lab)), (vec![(5000, at(ALICE, 5000))], vec![5000]));
        assert_eq!(lab.delete(ALICE, 2, 5000), done());
        assert_eq!(external_ports(&lab), []);
    }
}

/// A claimed one, while another line is in use for a time; with and without a crash there. The first line's server knows it by a nonce
/// that nobody can derive.
#[test]
fn an_orphan_is_still_known_when_its_line_is_back() {
    let other_line = || Wan { name: "wan1".into(), ..wan(&[W]) };
    for nat in BOTH {
        for crashes in [false, true] {
            let mut lab = after_a_loss(nat, &[5000], true);
            assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(5000) }), done());
            if crashes {
                lab.crash(listing(nat), 77, 0);
            }
            let settings = ProviderConfig { third_party: nat == NatMode::None, ..ProviderConfig::new(E) };
            let elsewhere = Provider::new(lab.instant(), settings);
            let provider = lab.providers.insert(server(), elsewhere).expect("it was asked before");
            lab.event(Event::Wan(other_line()));
            lab.pass(60);
            assert_eq!(
                (lab.mapped().len(), external_ports(&lab)),
                (1, vec![5000]),
                "{nat:?} {crashes}: there"
            );
            lab.providers.insert(server(), provider);
            let back = lab.now;
            lab.event(Event::Wan(wan(&[W])));
            lab.pass(60);
            let asked = lab.sent().into_iter().filter(|(at, request)| *at >= back && request.lifetime > 0);
            let nonces: Vec<Nonce> = asked.map(|(_, request)| map_of(&request).nonce).collect();
            assert_eq!(nonces, [Nonce([5; 12])], "{nat:?} {crashes}: back");
            assert_eq!(lab.mapped(), [(5000, at(ALICE, 5000))]);
        }
    }
}

/// What is stored is no orphan, and neither is what was asked for meanwhile.
#[test]
fn what_is_known_is_no_orphan() {
    for nat in BOTH {
        let mut lab = after_a_loss(nat, &[], true);
        for n in 0..3 {
            assert_eq!(lab.add(ALICE, 2, Add { lease: 0, ..port(5000 + n) }), done());
        }
        let before = lab.upstream();
        lab.crash(listing(nat), 8, 5000);
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(wan(&[W])));
        assert_eq!(lab.status().held, 0, "{nat:?}");
        lab.pass(1000);
        assert_eq!((lab.mapped().len(), lab.upstream()), (3, before));
    }
}

/// A server without GET, one that says nothing to it, and one that answers nonsense: everything else goes on.
#[test]
fn a_server_that_does_not_list() {
    for nat in BOTH {
        let mut lab = after_a_loss(nat, &[5000], false);
        assert_eq!((lab.status().held, lab.add(BOB, 2, port(8080))), (0, done()));
        lab.pass(100);
        assert!(!lab.effects.iter().any(|(at, effect)| *at > 20_000 && is_get(effect)), "once");

        let mut lab = Lab::new(listing(nat));
        lab.silent = true;
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(wan(&[W])));
        lab.pass(300);
        let asked = lab.effects.iter().filter(|(_, effect)| is_get(effect)).count();
        assert_eq!(asked, 4, "and no more");
        assert!(lab.notices().contains(&Notice::NotListed(server(), None)));
    }
}

fn is_get(effect: &Effect) -> bool {
    let get = |bytes: &[u8]| Request::parse(bytes).is_ok_and(|request| matches!(request.body, Body::Get(_)));
    matches!(effect, Effect::Send { bytes, .. } if get(bytes))
}

/// The same, and its owner changes it behind the other line: what is stored then must not be that line's nonce alone, which can be
/// derived again. After a crash the first line's server would refuse it.
#[test]
fn an_orphan_that_is_changed_behind_another_line_is_still_known_after_a_crash() {
    for nat in BOTH {
        for back_before in [false, true] {
            let mut lab = after_a_loss(nat, &[5000], true);
            assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(5000) }), done());
            let settings = ProviderConfig { third_party: nat == NatMode::None, ..ProviderConfig::new(E) };
            let elsewhere = Provider::new(lab.instant(), settings);
            let provider = lab.providers.insert(server(), elsewhere).expect("it was asked before");
            lab.event(Event::Wan(Wan { name: "wan1".into(), ..wan(&[W]) }));
            lab.pass(60);
            assert_eq!(lab.add(ALICE, 1, Add { lease: 7200, ..port(5000) }), done());
            lab.providers.insert(server(), provider);
            if back_before {
                lab.event(Event::Wan(wan(&[W])));
                lab.pass(60);
            }
            lab.crash(listing(nat), 77, 1000);
            lab.event(Event::Lan(lan()));
            lab.event(Event::Wan(wan(&[W])));
            lab.pass(60);
            assert_eq!(lab.mapped(), [(5000, at(ALICE, 5000))], "{nat:?} {back_before}");
            let known = map_of(&lab.sent().pop().expect("it is asked for").1).nonce;
            assert_eq!((known, lab.wrong_nonces), (Nonce([5; 12]), 0), "{nat:?} {back_before}");
        }
    }
}

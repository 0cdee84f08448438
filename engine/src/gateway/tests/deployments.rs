//! RFC 6970 §3: with and without a NAT in the router; what goes to it and to the PCP server, and in which order.

use wire::pcp::{Filter, NO_ADDR_V4, PcpOption};

use super::*;
use crate::notice::Cause;
use crate::request::Refusal;
use crate::table::Health;

fn request(client: Ipv4Addr, map: MapData, lifetime: u32, options: &[PcpOption]) -> Request {
    let client_addr = client.to_ipv6_mapped();
    Request { lifetime, client_addr, body: Body::Map(map), options: options.to_vec() }
}

fn map(nonce: wire::pcp::Nonce, internal_port: u16, external_port: u16) -> MapData {
    let (protocol, external_addr) = (Protocol::TCP, NO_ADDR_V4);
    MapData { nonce, protocol, internal_port, external_port, external_addr }
}

/// and the path of one AddPortMapping in ARCHITECTURE.md: reserve W:w, ask for it, install,
/// answer. R-40: no THIRD_PARTY.
#[test]
fn own_nat_step_by_step() {
    let mut lab = Lab::up(NatMode::Own);
    lab.slow_nat = true;
    let id = lab.start_add(ALICE, 2, port(8080).to(80 + 8000));
    let reserve = NatChange::Reserve { protocol: Protocol::TCP, port: 8080, addr: W };
    let ticket = |n| NatTicket(n);
    assert_eq!(lab.seen(), [Effect::Nat { ticket: ticket(1), change: reserve }]);
    lab.release_nat();
    let (_, sent) = lab.sent().remove(0);
    let options = [PcpOption::PreferFailure, PcpOption::Description(b"test".to_vec())];
    let expected = request(W, map(map_of(&sent).nonce, 8080, 8080), 3600, &options);
    assert_eq!(sent, expected, "R-13: internal address and port are W:w; no THIRD_PARTY");
    let install = NatChange::Install { rule: tcp(8080, at(ALICE, 8080)), external: Some(at(E, 8080)) };
    let send = Effect::Send { to: server(), bytes: sent.to_bytes() };
    assert_eq!(lab.seen(), [send, Effect::Nat { ticket: ticket(2), change: install }]);
    assert_eq!(lab.heard(id), None, "not before the router's own NAT is set up");
    lab.release_nat();
    let seen = lab.seen();
    assert!(
        matches!(&seen[..], [Effect::Store(_), Effect::Reply { request, answer: Ok(_) }] if *request == id),
        "stored, then answered: {seen:?}"
    );
    assert_eq!(lab.heard(id), Some(done()));
    assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))]);
    assert_eq!(lab.upstream(), [(8080, at(W, 8080))]);
}

/// decision 22 and iwf.md 2.2: without a NAT, the LAN host by THIRD_PARTY, all else unaltered; nothing goes
/// to a NAT.
#[test]
fn no_nat_step_by_step() {
    let mut lab = Lab::up(NatMode::None);
    assert_eq!(lab.add(ALICE, 2, port(8080).to(9090)), done());
    let (_, sent) = lab.sent().remove(0);
    let options = [
        PcpOption::ThirdParty(ALICE.to_ipv6_mapped()),
        PcpOption::PreferFailure,
        PcpOption::Description(b"test".to_vec()),
    ];
    assert_eq!(sent, request(W, map(map_of(&sent).nonce, 9090, 8080), 3600, &options));
    let seen = lab.seen();
    assert!(
        matches!(&seen[..], [Effect::Send { .. }, Effect::Store(_), Effect::Reply { answer: Ok(_), .. }]),
        "{seen:?}"
    );
    assert_eq!(
        (lab.mapped(), lab.upstream()),
        (vec![(8080, at(ALICE, 9090))], vec![(8080, at(ALICE, 9090))])
    );
}

/// AddAnyPortMapping has no PREFER_FAILURE, and answers with the assigned port.
#[test]
fn any_port() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 2, any(8080)), Ok(vec!["8080".into()]));
        assert_eq!(lab.add(BOB, 2, any(0).to(8080)), Ok(vec!["40001".into()]), "the probe has 40000");
        for (_, sent) in lab.sent() {
            assert!(!sent.options.contains(&PcpOption::PreferFailure));
        }
        // K-8: by an IGD:1 name it works, too.
        assert_eq!(lab.add(BOB, 1, any(8080).to(8081)), Ok(vec!["40002".into()]));
    }
}

/// Decision 23: the internal port, else the external one, else any; never one that the router's own programs use.
#[test]
fn the_port_of_the_own_nat() {
    let mut lab = Lab::up(NatMode::Own);
    lab.in_use = vec![(Protocol::TCP, 7000), (Protocol::TCP, 7001), (Protocol::TCP, 7002)];
    let ports = |lab: &Lab| lab.rules.iter().map(|rule| rule.port).collect::<Vec<_>>();
    assert_eq!(lab.add(ALICE, 2, port(8080).to(9090)), done());
    assert_eq!(ports(&lab), [9090]);
    assert_eq!(lab.add(BOB, 2, port(8081).to(9090)), done(), "two hosts, one internal port");
    assert_eq!(ports(&lab), [9090, 8081]);
    assert_eq!(lab.add(BOB, 2, port(8082).to(7000)), done(), "PortInUse: the external port is next");
    assert_eq!(ports(&lab), [9090, 8081, 8082]);
    assert_eq!(lab.add(BOB, 2, port(7001).to(7002)), done());
    assert!(ports(&lab)[3] >= 49_152, "any other: {:?}", lab.rules);
    assert_eq!(lab.rules[3].internal, at(BOB, 7002));
    assert_eq!(lab.upstream().len(), 4);
    // The ports are free again when their mappings are gone.
    for (host, external) in [(ALICE, 8080), (BOB, 8081), (BOB, 8082), (BOB, 7001)] {
        assert_eq!(lab.delete(host, 2, external), done());
    }
    assert_eq!(lab.rules, []);
    lab.pass(130);
    assert_eq!(lab.add(BOB, 2, port(8080).to(9090)), done());
    assert_eq!(ports(&lab), [9090]);
}

/// When no port of the WAN address can be had, or the kernel refuses, the answer is 501, and nothing is left behind.
#[test]
fn the_own_nat_refuses() {
    let mut lab = Lab::up(NatMode::Own);
    lab.in_use = (1024..=65535).map(|port| (Protocol::TCP, port)).collect();
    assert_eq!(lab.add(ALICE, 2, port(8080)), Err(501));
    assert_eq!(lab.sent(), []);
    assert!(lab.seen().len() < 10, "it does not try them all");
    lab.in_use.clear();
    lab.broken = true;
    assert_eq!(lab.add(ALICE, 2, port(8080)), Err(501));
    assert!(lab.notices().contains(&Notice::NatFailed("refused".into())));

    // Refused after the grant: what was got is given back.
    lab.broken = false;
    lab.slow_nat = true;
    let id = lab.start_add(ALICE, 2, port(8080));
    lab.release_nat();
    lab.held.clear(); // the Install
    let ticket = lab.effects.iter().rev().find_map(|(_, effect)| match effect {
        Effect::Nat { ticket, change: NatChange::Install { .. } } => Some(*ticket),
        _ => None,
    });
    lab.rules.clear();
    lab.event(Event::Nat { ticket: ticket.unwrap(), outcome: Err(NatFailure::Kernel("full".into())) });
    assert_eq!(lab.heard(id), Some(Err(501)));
    assert_eq!((lab.upstream(), lab.mapped(), lab.held.len()), (vec![], vec![], 0));
    lab.slow_nat = false;
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
}

/// 2.4, D-7 and decision 25: RemoteHost goes out as FILTER and into the router's own NAT.
#[test]
fn remote_host() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        let peer = Ipv4Addr::new(203, 0, 113, 9);
        assert_eq!(lab.add(ALICE, 2, Add { remote: "203.0.113.9", ..port(8080) }), done());
        let filter = Filter { prefix_len: 128, remote_port: 0, remote_addr: peer.to_ipv6_mapped() };
        assert!(lab.sent()[0].1.options.contains(&PcpOption::Filter(filter)));
        assert!(lab.rules.iter().all(|rule| rule.remote_peer == Some(peer)));
        // it is part of the key.
        assert_eq!(lab.delete(ALICE, 2, 8080), Err(714));
        let key = [("NewRemoteHost", "203.0.113.9"), ("NewExternalPort", "8080"), ("NewProtocol", "TCP")];
        assert_eq!(lab.call(ALICE, 2, "GetSpecificPortMappingEntry", &key).unwrap()[0], "8080");
        assert_eq!(lab.call(ALICE, 2, "DeletePortMapping", &key), done());
        assert_eq!((lab.upstream(), lab.rules.len()), (vec![], 0));
    }
}

/// T-3: one PCP mapping for an internal port. Without a NAT a second external port is 718; with one it gets another w.
#[test]
fn two_external_ports_for_one_internal_port() {
    let mut lab = Lab::up(NatMode::None);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    assert_eq!(lab.add(ALICE, 2, port(8081).to(8080)), Err(718));
    assert_eq!(lab.sent().len(), 1, "without a PCP packet");
    assert_eq!(lab.add(ALICE, 2, any(8081).to(8080)), Ok(vec!["8080".into()]), "the one there is");

    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    assert_eq!(lab.add(ALICE, 2, port(8081).to(8080)), done());
    assert_eq!(lab.rules, [tcp(8080, at(ALICE, 8080)), tcp(8081, at(ALICE, 8080))]);
    assert_eq!(lab.upstream(), [(8080, at(W, 8080)), (8081, at(W, 8081))]);
}

/// T-4, decision 9: with a NAT, overwriting with another internal port is one step of the NAT, without PCP.
#[test]
fn overwriting_with_own_nat() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.seen();
    let before = lab.status().system_update_id;
    lab.pass(100);
    assert_eq!(lab.add(ALICE, 2, Add { lease: 7200, description: "new", ..port(8080).to(9090) }), done());
    let (old, new) = (tcp(8080, at(ALICE, 8080)), tcp(8080, at(ALICE, 9090)));
    let seen = lab.seen();
    assert!(
        matches!(seen[..], [Effect::Nat { change, .. }, Effect::Store(_), Effect::Reply { .. }] if change == (NatChange::Replace { old, new, external: Some(at(E, 8080)) })),
        "{seen:?}"
    );
    assert_eq!((lab.rules.clone(), lab.mapped()), (vec![new], vec![(8080, at(ALICE, 9090))]));
    let mapping = lab.gateway.mappings(lab.instant()).next().unwrap();
    assert_eq!((mapping.lease_left, mapping.description.as_str()), (Some(Duration::from_secs(7200)), "new"));
    assert_eq!(lab.status().system_update_id, before + 1);
    // Refused by the kernel, nothing changes.
    lab.broken = true;
    assert_eq!(lab.add(ALICE, 2, port(8080).to(9091)), Err(501));
    assert_eq!(lab.mapped(), [(8080, at(ALICE, 9090))]);
}

/// Overwriting again, and deleting, while the NAT is still at work on the first: what is removed and replaced is what
/// is there by then.
#[test]
fn overwriting_while_the_nat_is_at_work() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.slow_nat = true;
    let first = lab.start_add(ALICE, 2, port(8080).to(9090));
    let second = lab.start_add(ALICE, 2, port(8080).to(9091));
    let third = lab.start_add(ALICE, 2, port(8080));
    assert_eq!((lab.heard(first), lab.heard(third)), (None, None));
    lab.release_nat();
    assert_eq!([first, second, third].map(|id| lab.heard(id)), [Some(done()), Some(done()), Some(done())]);
    assert_eq!(
        (lab.rules.clone(), lab.mapped()),
        (vec![tcp(8080, at(ALICE, 8080))], vec![(8080, at(ALICE, 8080))])
    );

    let moved = lab.start_add(ALICE, 2, port(8080).to(9090));
    let deleted = lab.start_delete(ALICE, 2, 8080);
    assert_eq!(lab.heard(deleted), Some(done()));
    lab.pass(130);
    // Another host has the port when the outcome comes.
    lab.slow_nat = false;
    assert_eq!(lab.add(BOB, 2, port(8080)), done());
    lab.release_nat();
    assert_eq!(lab.heard(moved), Some(Err(501)));
    assert_eq!(
        (lab.rules.clone(), lab.mapped()),
        (vec![tcp(8080, at(BOB, 8080))], vec![(8080, at(BOB, 8080))])
    );
}

/// Led there, away, and there again: when the first outcome comes, the last change is still on its way, though it leads to the same
/// port. What is removed then is what that made.
#[test]
fn overwriting_forth_and_back_while_the_nat_is_at_work() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.slow_nat = true;
    let moved = [9090, 9091, 9090].map(|internal| lab.start_add(ALICE, 2, port(8080).to(internal)));
    let last = lab.held.split_off(2);
    lab.release_nat();
    assert_eq!(moved.map(|id| lab.heard(id)), [Some(done()), Some(done()), None]);
    lab.held = last;
    let deleted = lab.start_delete(ALICE, 2, 8080);
    lab.release_nat();
    assert_eq!((lab.heard(deleted), lab.heard(moved[2])), (Some(done()), Some(Err(501))));
    assert_eq!((lab.rules.clone(), lab.mapped()), (vec![], vec![]));
}

/// T-4 without a NAT: delete, then add; the same external port, by the server's hold exempt only for the same client.
#[test]
fn overwriting_without_nat() {
    let mut lab = Lab::up(NatMode::None);
    lab.provider().config_mut().hold = Duration::ZERO;
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.seen();
    let id = lab.start_add(ALICE, 2, port(8080).to(9090));
    assert_eq!(lab.heard(id), Some(done()));
    let sent: Vec<(u32, u16)> =
        lab.sent().iter().map(|(_, r)| (r.lifetime, map_of(r).internal_port)).collect();
    assert_eq!(sent, [(0, 8080), (3600, 9090)]);
    assert_eq!(
        (lab.mapped(), lab.upstream()),
        (vec![(8080, at(ALICE, 9090))], vec![(8080, at(ALICE, 9090))])
    );
}

/// T-4, the rest of it: "on failure re-add the old one and answer 718"; with what was left of its lease.
#[test]
fn a_failed_overwriting_restores_what_was_there() {
    for version in [1, 2] {
        for script in [
            // The server holds the port for its last owner (RFC 6887 §15): internal address, port and nonce.
            vec![],
            vec![Reaction::Serve, Reaction::Refuse(ResultCode::NETWORK_FAILURE, 30)],
            vec![Reaction::Serve, Reaction::Grant(E, 8081), Reaction::Serve],
        ] {
            let mut lab = Lab::up(NatMode::None);
            assert_eq!(lab.add(ALICE, version, Add { description: "old", ..port(8080) }), done());
            lab.pass(600);
            lab.script = script.into();
            assert_eq!(lab.add(ALICE, version, port(8080).to(9090)), Err(718));
            let old = vec![(8080, at(ALICE, 8080))];
            assert_eq!((lab.mapped(), lab.upstream()), (old.clone(), old));
            let mapping = lab.gateway.mappings(lab.instant()).next().unwrap();
            assert_eq!(
                (mapping.description.as_str(), mapping.lease_left),
                ("old", Some(Duration::from_secs(3000)))
            );
        }
    }
    // What cannot be restored is told.
    let mut lab = Lab::up(NatMode::None);
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    let refuse = Reaction::Refuse(ResultCode::NETWORK_FAILURE, 30);
    lab.script = [Reaction::Serve, refuse, refuse].into();
    assert_eq!(lab.add(ALICE, 1, port(8080).to(9090)), Err(718));
    assert_eq!((lab.mapped(), lab.upstream()), (vec![], vec![]));
    let network = Refusal::Upstream(ResultCode::NETWORK_FAILURE);
    let told = Notice::Refused(IpAddr::V4(ALICE), Protocol::TCP, Some(8080), at(ALICE, 8080), network);
    assert_eq!(lab.notices().last(), Some(&told));
}

/// T-4 with a server that falls silent in the middle: 501 in time; the old mapping comes back when its delete is
/// through, and stays when the delete is refused.
#[test]
fn an_overwriting_that_is_not_answered() {
    let mut lab = Lab::up(NatMode::None);
    lab.provider().config_mut().hold = Duration::ZERO;
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.silent = true;
    let id = lab.start_add(ALICE, 2, port(8080).to(9090));
    let again = lab.start_add(ALICE, 2, port(8080).to(9090));
    lab.pass(60);
    assert_eq!((lab.heard(id), lab.heard(again)), (Some(Err(501)), Some(Err(501))));
    lab.silent = false;
    lab.pass(120);
    assert_eq!(
        (lab.mapped(), lab.upstream()),
        (vec![(8080, at(ALICE, 8080))], vec![(8080, at(ALICE, 8080))])
    );
    assert_eq!(lab.gateway.mappings(lab.instant()).next().unwrap().health, Health::Active);

    lab.script = [Reaction::Refuse(ResultCode::NOT_AUTHORIZED, 600)].into();
    assert_eq!(lab.add(ALICE, 2, port(8080).to(9090)), Err(606));
    assert_eq!(
        (lab.mapped(), lab.upstream()),
        (vec![(8080, at(ALICE, 8080))], vec![(8080, at(ALICE, 8080))])
    );

    // without an uplink nothing is begun.
    lab.event(Event::Wan(wan(&[])));
    assert_eq!(lab.add(ALICE, 2, port(8080).to(9090)), Err(501));
    assert_eq!(lab.gateway.mappings(lab.instant()).next().unwrap().health, Health::Active);
}

/// The old mapping's lease ends while it is being replaced: nothing is restored, nothing is stuck.
#[test]
fn an_overwriting_outlives_the_lease() {
    let mut lab = Lab::up(NatMode::None);
    assert_eq!(lab.add(ALICE, 2, Add { lease: 200, ..port(8080) }), done());
    lab.silent = true;
    let id = lab.start_add(ALICE, 2, port(8080).to(9090));
    lab.pass(300);
    assert_eq!((lab.heard(id), lab.mapped()), (Some(Err(501)), vec![]));
    lab.silent = false;
    lab.pass(60);
    assert_eq!((lab.mapped(), lab.upstream()), (vec![], vec![]));
    lab.pass(130);
    assert_eq!(lab.add(ALICE, 2, port(8080).to(9090)), done());
}

/// T-15: the error is that of the table, and the mapping stands, rule and all. A rule whose reinstallation fails takes
/// the mapping with it.
#[test]
fn a_refused_delete_puts_the_rule_back() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.script = [Reaction::Refuse(ResultCode::NOT_AUTHORIZED, 600)].into();
    assert_eq!(lab.delete(ALICE, 2, 8080), Err(606));
    assert_eq!((lab.rules.clone(), lab.mapped().len()), (vec![tcp(8080, at(ALICE, 8080))], 1));

    lab.slow_nat = true;
    lab.script = [Reaction::Refuse(ResultCode::NOT_AUTHORIZED, 600)].into();
    assert_eq!(lab.delete(ALICE, 1, 8080), Err(718));
    lab.rules.clear();
    let tickets: Vec<NatTicket> = lab
        .effects
        .iter()
        .filter_map(|(_, effect)| match effect {
            Effect::Nat { ticket, .. } => Some(*ticket),
            _ => None,
        })
        .collect();
    lab.held.clear();
    lab.event(Event::Nat {
        ticket: *tickets.last().unwrap(),
        outcome: Err(NatFailure::Kernel("gone".into())),
    });
    assert_eq!((lab.mapped(), lab.upstream()), (vec![], vec![]));
    assert!(lab.notices().iter().any(|notice| matches!(notice, Notice::Removed(_, Cause::LocalNat))));
}

/// R-1 (a), D-16, decision 22: DS-Lite. The AFTR is asked in plain IPv6, from a WAN that has no IPv4 address at all; every
/// mapping names its LAN host by THIRD_PARTY, and the router's own probe the router.
#[test]
fn ds_lite_in_plain_ipv6() {
    let aftr: SocketAddr = "[2001:db8::1]:5351".parse().unwrap();
    let b4: Ipv6Addr = "2001:db8:77::2".parse().unwrap();
    let mut lab = Lab::new(Config { servers: vec![aftr], ..config(NatMode::None) });
    let provider = lab.providers.remove(&server()).unwrap();
    lab.providers.insert(aftr, provider);
    lab.source = b4.into();
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    assert!(lab.notices().contains(&Notice::NoWanAddress("wan0".into(), "IPv6")), "R-6");
    assert_eq!((lab.socket, lab.add(ALICE, 2, port(8080))), (None, Err(501)), "R-7");
    lab.event(Event::Wan(Wan { addresses_v6: vec![b4], up: true, ..wan(&[]) }));
    assert_eq!(lab.socket, Some(aftr));
    assert_eq!(lab.connection(), ("Connected".into(), E.to_string()), "T-8: before anybody has asked");
    assert_eq!(lab.add(ALICE, 2, port(8080).to(9090)), done());
    let (_, sent) = lab.sent().remove(0);
    assert_eq!((sent.client_addr, map_of(&sent).internal_port), (b4, 9090));
    assert_eq!(sent.options[0], PcpOption::ThirdParty(ALICE.to_ipv6_mapped()));
    assert_eq!(lab.mapped(), [(8080, at(ALICE, 9090))]);
    let upstream: Vec<_> = lab.providers[&aftr].mappings().map(|m| m.internal).collect();
    assert!(upstream.contains(&at(ALICE, 9090)), "{upstream:?}");
    assert_eq!(lab.connection(), ("Connected".into(), E.to_string()));
    // Another IPv4 address on the WAN changes nothing; losing the IPv6 one does.
    lab.effects.clear();
    lab.event(Event::Wan(Wan { addresses_v6: vec![b4], ..wan(&[W]) }));
    assert_eq!(lab.seen(), []);
    lab.event(Event::Wan(wan(&[W])));
    assert_eq!(lab.socket, None);
}

/// Security policy, "what its owner closes is closed": a rule that the kernel would not remove is removed once it will, or gives
/// way to the next mapping of that port; it is told once.
#[test]
fn a_rule_that_the_kernel_would_not_remove() {
    for taken in [false, true] {
        let mut lab = Lab::up(NatMode::Own);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        lab.broken = true;
        assert_eq!(lab.delete(ALICE, 1, 8080), done());
        lab.pass(65);
        assert_eq!(lab.rules.len(), 1);
        lab.broken = false;
        if taken {
            assert_eq!(lab.add(BOB, 1, port(8080)), done());
        } else {
            lab.pass(11);
        }
        let rules = if taken { vec![tcp(8080, at(BOB, 8080))] } else { vec![] };
        assert_eq!(lab.rules, rules);
        lab.pass(60);
        assert_eq!(lab.rules, rules);
        assert_eq!(lab.notices().iter().filter(|told| matches!(told, Notice::NatFailed(_))).count(), 1);
        assert!(lab.gateway.is_idle());
    }
}

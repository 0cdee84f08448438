//! AddPortMapping's three ways to the provider (draft -00, 5.7.2; decision 5), what is asked for again, and options that
//! a server does not take.

use super::*;
use crate::provider::PreferFailure;

fn up(nat: NatMode, add_port_mapping: AddPortMapping) -> Lab {
    Lab::up_with(Config { add_port_mapping, ..config(nat) })
}

/// Another subscriber has this port.
fn taken(lab: &mut Lab, port: u16) {
    let now = lab.instant();
    let map = MapData {
        nonce: Nonce([9; 12]),
        protocol: Protocol::TCP,
        internal_port: port,
        external_port: port,
        external_addr: Ipv4Addr::UNSPECIFIED.to_ipv6_mapped(),
    };
    let other = Ipv4Addr::new(192, 0, 2, 99);
    let client_addr = other.to_ipv6_mapped();
    let options = Vec::new();
    let request = Request { lifetime: 86_400, client_addr, body: Body::Map(map), options };
    let provider = lab.provider();
    provider.handle_datagram(now, (other, 5350).into(), &request.to_bytes());
}

fn wanted_ports(lab: &Lab) -> Vec<(u16, bool)> {
    let strict = |request: &Request| request.options.contains(&PcpOption::PreferFailure);
    lab.sent().iter().map(|(_, request)| (map_of(request).external_port, strict(request))).collect()
}

/// The external ports that the provider has given us, the router's own probe apart.
fn ours(lab: &Lab) -> Vec<u16> {
    lab.upstream()
        .into_iter()
        .filter(|(_, internal)| internal.port() != 6881 || *internal.ip() != Ipv4Addr::new(192, 0, 2, 99))
        .map(|(port, _)| port)
        .collect()
}

/// D-8, alternative 1: no PREFER_FAILURE and a shortened lifetime; another port is a conflict and held; while it is,
/// everything about that internal port is answered from it, and the port itself is a success without an exchange.
#[test]
fn d_8_alternative_1_hold() {
    for nat in BOTH {
        let mut lab = up(nat, AddPortMapping::Hold);
        taken(&mut lab, 6881);
        assert_eq!(lab.add(ALICE, 1, port(6881)), Err(718));
        let sent = lab.sent();
        assert_eq!((wanted_ports(&lab), sent[0].1.lifetime), (vec![(6881, false)], 60), "{nat:?}");
        let held = ours(&lab)[0];
        lab.effects.clear();
        assert_eq!(lab.add(ALICE, 1, port(6881)), Err(718));
        assert_eq!(lab.add(ALICE, 1, port(6882).to(6881)), Err(718));
        assert_eq!(lab.add(BOB, 1, port(held).to(6881)), Err(718), "it is held for Alice");
        assert_eq!(lab.sent(), [], "nothing goes to the provider");
        assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
        assert_eq!(lab.add(ALICE, 1, port(held).to(6881)), done());
        assert_eq!(lab.sent(), []);
        assert_eq!(lab.mapped(), [(held, at(ALICE, 6881))]);
        // From now on it is a mapping like any other: kept until its own lease ends.
        lab.pass(3000);
        assert_eq!(ours(&lab), [held]);
        assert!(lab.sent().iter().all(|(_, request)| request.lifetime > 400), "{:?}", lab.sent());
        lab.pass(700);
        assert_eq!((lab.mapped(), ours(&lab)), (vec![], vec![]));
    }
}

/// The same: a port that is free is had in one exchange, and a control point that gives up costs the server nothing.
#[test]
fn hold_ends_by_itself() {
    for nat in BOTH {
        let mut lab = up(nat, AddPortMapping::Hold);
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        assert_eq!(wanted_ports(&lab), [(8080, false)]);
        taken(&mut lab, 6881);
        assert_eq!(lab.add(ALICE, 2, port(6881)), Err(718));
        assert_eq!(ours(&lab).len(), 2);
        lab.pass(115);
        assert_eq!(ours(&lab).len(), 2, "two minutes");
        lab.pass(10);
        assert_eq!(ours(&lab), [8080], "{nat:?}");
        assert_eq!(lab.gateway.nat_ports_in_use(), usize::from(nat == NatMode::Own));
        // AddAnyPortMapping gets what is held at once.
        assert_eq!(lab.add(ALICE, 2, port(6881)), Err(718));
        let held = ours(&lab).into_iter().find(|port| *port != 8080).unwrap();
        lab.effects.clear();
        assert_eq!(lab.add(ALICE, 2, any(6881)), Ok(vec![held.to_string()]));
        assert_eq!(lab.sent(), []);
    }
}

/// D-8, alternative 3: with PREFER_FAILURE first; after a refusal any port, which is held as in alternative 1.
#[test]
fn d_8_alternative_3_any_then_hold() {
    for nat in BOTH {
        let mut lab = up(nat, AddPortMapping::AnyThenHold);
        taken(&mut lab, 6881);
        assert_eq!(lab.add(ALICE, 1, port(6881)), Err(718));
        assert_eq!(wanted_ports(&lab), [(6881, true), (0, false)], "{nat:?}");
        assert_eq!(lab.sent()[1].1.lifetime, 60);
        let held = ours(&lab)[0];
        lab.effects.clear();
        assert_eq!(lab.add(ALICE, 1, port(6881)), Err(718));
        assert_eq!(lab.add(ALICE, 1, port(held).to(6881)), done());
        assert_eq!((lab.sent(), lab.mapped()), (vec![], vec![(held, at(ALICE, 6881))]));
    }
}

/// Decision 5, D-8: a server that answers UNSUPP_OPTION to PREFER_FAILURE is served by `hold`, found out once, in the first
/// exchange, and remembered.
#[test]
fn a_server_without_prefer_failure_is_served_by_hold() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().prefer_failure = PreferFailure::Unsupported;
        assert_eq!(lab.add(ALICE, 2, port(8080)), done(), "{nat:?}");
        assert_eq!(wanted_ports(&lab), [(8080, true), (8080, false)]);
        let lacks = Notice::Lacks(server(), wire::pcp::OptionCode::PREFER_FAILURE);
        assert!(lab.notices().contains(&lacks));
        lab.effects.clear();
        assert_eq!(lab.add(ALICE, 2, port(8081)), done());
        assert_eq!(wanted_ports(&lab), [(8081, false)], "remembered");
        taken(&mut lab, 6881);
        assert_eq!(lab.add(ALICE, 2, port(6881)), Err(718));
        assert_eq!(ours(&lab).len(), 3, "held");
        assert_eq!(lab.add(ALICE, 2, any(8080).to(9090)).map(|ports| ports.len()), Ok(1));
        // Renewals go without it, too.
        lab.effects.clear();
        lab.pass(2000);
        assert!(!lab.sent().is_empty() && wanted_ports(&lab).iter().all(|(_, strict)| !strict));
    }
}

/// UNSUPP_OPTION may be about THIRD_PARTY: then the same request without PREFER_FAILURE is refused, too, and that
/// option is not held against the server.
#[test]
fn unsupp_option_for_another_option() {
    let mut lab = Lab::up(NatMode::None);
    lab.provider().config_mut().third_party = false;
    assert_eq!(lab.add(ALICE, 2, port(8080)), Err(501));
    assert_eq!(wanted_ports(&lab), [(8080, true), (8080, false)]);
    lab.provider().config_mut().third_party = true;
    lab.effects.clear();
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    assert_eq!(wanted_ports(&lab), [(8080, true)]);
}

/// T-6, K-17: SUCCESS with another port in spite of PREFER_FAILURE: 718, and given back by its own nonce.
#[test]
fn prefer_failure_passed_over() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().prefer_failure = PreferFailure::PassedOver;
        taken(&mut lab, 6881);
        assert_eq!(lab.add(ALICE, 2, port(6881)), Err(718));
        let sent = lab.sent();
        assert_eq!((sent.len(), sent[1].1.lifetime), (2, 0), "{nat:?}");
        assert_eq!(map_of(&sent[0].1).nonce, map_of(&sent[1].1).nonce);
        assert_eq!((ours(&lab), lab.rules.len()), (vec![], 0));
    }
}

/// R-19, T-7, T-14: CANNOT_PROVIDE_EXTERNAL for a short time is asked again after that time, twice at most, as long as the
/// control point has patience; R-20: for a long time it is 718 at once.
#[test]
fn a_short_conflict_is_asked_again() {
    let refuse = |seconds| Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, seconds);
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.script = [refuse(1)].into();
        let id = lab.start_add(ALICE, 1, port(8080));
        assert_eq!(lab.heard(id), None);
        lab.run(lab.now + 999);
        assert_eq!((lab.heard(id), lab.sent().len()), (None, 1));
        lab.run(lab.now + 1);
        assert_eq!((lab.heard(id), lab.sent().len()), (Some(done()), 2), "{nat:?}");
        let nonces: Vec<Nonce> = lab.sent().iter().map(|(_, request)| map_of(request).nonce).collect();
        assert_eq!(nonces[0], nonces[1]);
        // Not when the answer would come too late for who waits.
        lab.script = [refuse(3)].into();
        assert_eq!(lab.add(ALICE, 1, port(8081)), Err(718));
        assert_eq!(lab.add(ALICE, 1, port(8081)), Err(718), "remembered (decision 4)");
        lab.script = [refuse(1800)].into();
        assert_eq!(lab.add(ALICE, 1, port(8082)), Err(718));
        // An administrator whose clients wait longer gets what the RFC describes: 30 s, twice.
        let mut lab = Lab::up_with(Config { answer_within: Duration::from_secs(100), ..config(nat) });
        lab.script = [refuse(30); 3].into();
        let id = lab.start_add(ALICE, 1, port(8080));
        lab.pass(59);
        assert_eq!((lab.heard(id), lab.sent().len()), (None, 2));
        lab.pass(1);
        assert_eq!((lab.heard(id), lab.sent().len()), (Some(Err(718)), 3));
    }
}

/// AddAnyPortMapping and an error that passes.
#[test]
fn a_passing_error_is_asked_again() {
    for result in [ResultCode::NETWORK_FAILURE, ResultCode::NO_RESOURCES] {
        let mut lab = Lab::up(NatMode::Own);
        lab.script = [Reaction::Refuse(result, 2)].into();
        let id = lab.start_add(ALICE, 2, any(8080));
        lab.run(lab.now + 1999);
        assert_eq!(lab.heard(id), None);
        lab.run(lab.now + 1);
        assert_eq!(lab.heard(id), Some(Ok(vec!["8080".into()])), "{result}");
        lab.script = [Reaction::Refuse(ResultCode::NETWORK_FAILURE, 30)].into();
        assert_eq!(lab.add(ALICE, 2, any(8081)), Err(501));
        // Once, then the error is relayed.
        lab.script = [Reaction::Refuse(ResultCode::NETWORK_FAILURE, 1); 3].into();
        lab.effects.clear();
        let id = lab.start_add(ALICE, 2, any(8082));
        lab.run(lab.now + 1001);
        assert_eq!((lab.heard(id), lab.sent().len()), (Some(Err(501)), 2));
    }
}

/// A request that pauses is deleted, refused or outlived like any other.
#[test]
fn a_pause_ends_with_its_request() {
    let mut lab = Lab::up(NatMode::Own);
    lab.script = [Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 2)].into();
    let id = lab.start_add(ALICE, 1, port(8080));
    let same = lab.start_add(ALICE, 1, port(8080));
    lab.event(Event::Wan(wan(&[])));
    assert_eq!((lab.heard(id), lab.heard(same)), (Some(Err(501)), Some(Err(501))));
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(10);
    assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
    assert!(lab.gateway.is_idle());
}

/// R-45, D-16, RFC 7220: the control point's words go along; a server that cannot bear them gets none (K-17); nor does any
/// when the administrator does not want it.
#[test]
fn descriptions() {
    let words = |lab: &Lab| -> Vec<Option<Vec<u8>>> {
        let description = |option: &PcpOption| match option {
            PcpOption::Description(text) => Some(text.clone()),
            _ => None,
        };
        lab.sent().iter().map(|(_, request)| request.options.iter().find_map(description)).collect()
    };
    let add = |external| Add { description: "Game", ..port(external) };
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 2, add(8080)), done());
        assert_eq!(lab.add(ALICE, 2, Add { description: "", ..port(8081) }), done());
        assert_eq!(words(&lab), [Some(b"Game".to_vec()), None]);
        assert_eq!(lab.delete(ALICE, 2, 8080), done());
        assert_eq!(words(&lab).last(), Some(&None), "in no delete");
        lab.effects.clear();
        lab.script = [Reaction::Refuse(ResultCode::MALFORMED_OPTION, 1800)].into();
        assert_eq!(lab.add(ALICE, 2, add(8082)), done(), "{nat:?}");
        assert_eq!(lab.add(ALICE, 2, add(8083)), done());
        assert_eq!(words(&lab), [Some(b"Game".to_vec()), None, None], "once, and remembered");
        let mut lab = Lab::up_with(Config { send_descriptions: false, ..config(nat) });
        assert_eq!(lab.add(ALICE, 2, add(8080)), done());
        assert_eq!(words(&lab), [None]);
    }
}

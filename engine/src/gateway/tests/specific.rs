//! GetSpecificPortMappingEntry (RFC 6970 §5.7, decision 6): the table, what is held, what was refused, then a probe that
//! the following AddPortMapping takes over.

use super::*;
use crate::provider::PreferFailure;

impl Lab {
    fn ask_for(&mut self, host: Ipv4Addr, port: u16) -> Heard {
        let id = self.start_ask_for(host, port);
        self.heard(id).expect("answered at once")
    }

    fn start_ask_for(&mut self, host: Ipv4Addr, port: u16) -> RequestId {
        self.start(host, 1, "GetSpecificPortMappingEntry", &borrowed(&key(port)))
    }
}

/// a port that is nobody's is asked for with PREFER_FAILURE, for 60 s; when it can be had, 714. T-2: the
/// AddPortMapping that follows takes it over without an exchange, and it is a mapping like any other.
#[test]
fn r_24_r_26_t_2_a_probe_is_taken_over() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.ask_for(ALICE, 8080), Err(714), "{nat:?}");
        let (_, sent) = lab.sent().remove(0);
        assert_eq!((sent.lifetime, map_of(&sent).external_port), (60, 8080));
        assert!(sent.options.contains(&PcpOption::PreferFailure));
        assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0), "no entry, no way in");
        lab.effects.clear();
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        assert_eq!(lab.sent(), [], "no second exchange");
        let internal = if nat == NatMode::Own { at(W, 8080) } else { at(ALICE, 8080) };
        assert_eq!((lab.mapped(), lab.upstream()), (vec![(8080, at(ALICE, 8080))], vec![(8080, internal)]));
        lab.pass(3000);
        assert_eq!(lab.upstream().len(), 1, "renewed until its own lease ends");
        assert_eq!(lab.delete(ALICE, 1, 8080), done());
        assert_eq!((lab.upstream(), lab.rules.len()), (vec![], 0));
        assert!(lab.gateway.is_idle());
    }
}

/// T-2 (b): with a NAT of our own any internal port can take the probe over. Without one it is another mapping to PCP:
/// the probe goes first.
#[test]
fn t_2_another_internal_port() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().hold = Duration::ZERO;
        assert_eq!(lab.ask_for(ALICE, 8080), Err(714));
        lab.effects.clear();
        assert_eq!(lab.add(ALICE, 1, port(8080).to(9090)), done(), "{nat:?}");
        assert_eq!(lab.mapped(), [(8080, at(ALICE, 9090))]);
        let lifetimes: Vec<u32> = lab.sent().iter().map(|(_, request)| request.lifetime).collect();
        match nat {
            NatMode::Own => {
                assert_eq!(lifetimes, [0; 0]);
                assert_eq!(lab.rules, [tcp(8080, at(ALICE, 9090))]);
            }
            NatMode::None => assert_eq!(lifetimes, [0, 3600]),
        }
        assert_eq!(lab.upstream().len(), 1);
    }
}

/// an entry of the table is the answer, whoever asks; D-12: nothing is sent.
#[test]
fn r_23_the_own_table_first() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        lab.effects.clear();
        for host in [ALICE, BOB] {
            assert_eq!(lab.ask_for(host, 8080).unwrap()[1], ALICE.to_string());
        }
        let foreign = [("NewRemoteHost", "203.0.113.9"), ("NewExternalPort", "8080"), ("NewProtocol", "TCP")];
        assert_eq!(lab.call(BOB, 1, "GetSpecificPortMappingEntry", &foreign), Err(714), "A-8");
        assert_eq!(lab.sent(), []);
    }
}

/// R-25, T-2 (a): a port that the provider refuses is 718, from the refusal cache as long as that counts.
#[test]
fn r_25_a_port_that_is_taken() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.script = [Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 600)].into();
        assert_eq!(lab.ask_for(ALICE, 8080), Err(718), "{nat:?}");
        assert_eq!(lab.sent().len(), 1);
        assert_eq!(lab.ask_for(ALICE, 8080), Err(718));
        assert_eq!(lab.ask_for(BOB, 8080), Err(718));
        assert_eq!(lab.add(ALICE, 1, port(8080)), Err(718));
        assert_eq!(lab.sent().len(), 1, "asked once");
        assert_eq!(lab.ask_for(ALICE, 8081), Err(714), "so the next one is tried");
        // A server that passes PREFER_FAILURE over: the port that nobody asked for goes back.
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().prefer_failure = PreferFailure::PassedOver;
        lab.script = [Reaction::Grant(E, 40_123)].into();
        assert_eq!(lab.ask_for(ALICE, 8080), Err(718));
        assert_eq!(lab.sent()[1].1.lifetime, 0);
        assert!(lab.gateway.is_idle());
    }
}

/// What is held for one LAN host is taken for the others; nobody's Add is answered by another's probe.
#[test]
fn a_probe_belongs_to_who_asked() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.ask_for(ALICE, 8080), Err(714));
        lab.effects.clear();
        assert_eq!(lab.ask_for(ALICE, 8080), Err(714));
        assert_eq!(lab.ask_for(BOB, 8080), Err(718));
        assert_eq!(lab.add(BOB, 1, port(8080)), Err(718), "decision 3");
        assert_eq!(lab.sent(), [], "{nat:?}");
        let taken = lab.add(BOB, 2, any(8080).to(9090)).unwrap();
        assert_ne!(taken, ["8080"]);
        // Until it is over.
        lab.pass(61);
        assert!(lab.upstream().iter().all(|(port, _)| *port != 8080), "given back");
        lab.pass(121);
        assert_eq!(lab.add(BOB, 1, port(8080)), done());
    }
}

/// Decision 6, D-11: `local` asks nobody. R-7: without an answer from the provider, 501.
#[test]
fn local_and_unreachable() {
    for nat in BOTH {
        let mut lab = Lab::up_with(Config { get_specific: GetSpecific::Local, ..config(nat) });
        assert_eq!(lab.ask_for(ALICE, 8080), Err(714));
        assert_eq!(lab.sent(), []);
        let mut lab = Lab::up(nat);
        lab.silent = true;
        let id = lab.start_ask_for(ALICE, 8080);
        lab.pass(4);
        assert_eq!(lab.heard(id), Some(Err(501)), "{nat:?}");
        // The answer comes late: the port is held for a moment all the same.
        lab.silent = false;
        lab.pass(6);
        lab.effects.clear();
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        assert_eq!(lab.sent(), []);
        lab.event(Event::Wan(wan(&[])));
        assert_eq!(lab.ask_for(ALICE, 9090), Err(501));
    }
}

/// A control point that does not wait for the answer: its AddPortMapping shares the probe's exchange.
#[test]
fn add_during_the_probe() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.script = [Reaction::Lose].into();
        let probe = lab.start_ask_for(ALICE, 8080);
        let again = lab.start_ask_for(ALICE, 8080);
        let other = lab.start_ask_for(BOB, 8080);
        assert_eq!(lab.heard(other), Some(Err(718)));
        let add = lab.start_add(ALICE, 1, port(8080));
        lab.pass(1);
        assert_eq!((lab.heard(probe), lab.heard(again)), (Some(Err(714)), Some(Err(714))), "{nat:?}");
        assert_eq!(lab.heard(add), Some(done()));
        assert_eq!((lab.mapped(), lab.sent().len()), (vec![(8080, at(ALICE, 8080))], 2));
    }
}

/// A remote host that the probe did not have goes to the provider before the control point hears of success.
#[test]
fn a_remote_host_after_the_probe() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.ask_for(ALICE, 8080), Err(714));
        lab.effects.clear();
        let add = Add { remote: "203.0.113.9", ..port(8080) };
        assert_eq!(lab.add(ALICE, 2, add), done());
        let sent = lab.sent();
        assert_eq!(sent.len(), 1);
        assert!(sent[0].1.options.iter().any(|option| matches!(option, PcpOption::Filter(_))));
        let filters: Vec<usize> = lab
            .provider()
            .mappings()
            .filter(|m| m.external.port() == 8080)
            .map(|m| m.filters.len())
            .collect();
        assert_eq!(filters, [1], "{nat:?}");
    }
}

/// R-41, T-13: probes count for the quota, and a control point has ten in a row; beyond, the table is the answer.
#[test]
fn r_41_t_13_probes_are_bounded() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        for n in 0..30 {
            assert_eq!(lab.ask_for(ALICE, 8000 + n), Err(714));
        }
        assert_eq!(lab.upstream().len(), 8, "{nat:?}: so many are held for one host");
        assert!(lab.sent().len() <= 10 + 2, "{:?}", lab.sent().len());
        assert_eq!(lab.ask_for(BOB, 9000), Err(714));
        assert_eq!(lab.upstream().len(), 9, "nobody else waits for that");
        lab.pass(61);
        assert_eq!(lab.upstream(), []);
        let policy = Policy { mappings_per_host: 1, ..Policy::default() };
        let mut lab = Lab::up_with(Config { policy, ..config(nat) });
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
        lab.effects.clear();
        assert_eq!(lab.ask_for(ALICE, 8081), Err(714));
        assert_eq!((lab.sent(), lab.add(ALICE, 2, port(8081))), (vec![], Err(728)));
        // What is held is one of them; to take it over is no second one.
        let policy = Policy { mappings_per_host: 1, ..Policy::default() };
        let mut lab = Lab::up_with(Config { policy, ..config(nat) });
        assert_eq!(lab.ask_for(ALICE, 8080), Err(714));
        assert_eq!(lab.add(ALICE, 2, port(8081)), Err(728));
        assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    }
}

/// Nothing that is held survives the end, another server or a restart of the provider that gave the port away.
#[test]
fn what_is_held_goes_with_its_server() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.ask_for(ALICE, 8080), Err(714));
        lab.event(Event::Stop);
        lab.pass(3);
        assert_eq!(lab.providers[&server()].mappings().count(), 0);

        let mut lab = Lab::up(nat);
        assert_eq!(lab.ask_for(ALICE, 8080), Err(714));
        let now = lab.instant();
        let announcement = lab.provider().lose_state(now);
        lab.script = [Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 600); 2].into();
        lab.event(Event::Announcement { from: server(), bytes: &announcement });
        lab.pass(6);
        assert_eq!(lab.gateway.nat_ports_in_use(), 0, "{nat:?}");
        assert!(lab.gateway.is_idle());
        assert_eq!(lab.add(ALICE, 1, port(8080)), done(), "asked for anew");
    }
}

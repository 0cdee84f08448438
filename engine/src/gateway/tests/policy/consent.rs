//! `policy.default = "ask"` where any port will do: what a rule gives to a host by name is no door for the ports that it does not name.

use super::*;

/// What the rule names both hosts may have; whatever else needs the owner's consent.
fn one_port_each() -> Config {
    let rules = ["allow 6000 192.168.1.10 8080", "allow 6000 192.168.1.11 9090"];
    let mut settings = with_rules(&rules);
    settings.policy.default = ByDefault::Ask;
    settings
}

/// What a client hears that has no consent, and asks for what the rule would give it, or anything beside.
type Ask = fn(&mut Lab) -> u16;

/// No consent is given by a port that a rule allows: what the provider gives in its place goes back, unless it is that port.
#[test]
fn any_port_without_consent() {
    let by_pcp: Ask = |lab| lab.map(ALICE, &Map { external: 0, ..map(8080) }).0.0.into();
    let by_denied: Ask = |lab| lab.map(ALICE, &Map { external: 7000, ..map(8080) }).0.0.into();
    let by_nat_pmp: Ask = |lab| lab.nat_pmp_map(ALICE, 8080, 0, 3600).0;
    let by_nat_pmp_denied: Ask = |lab| lab.nat_pmp_map(ALICE, 8080, 7000, 3600).0;
    let by_igd: Ask = |lab| lab.add(ALICE, 2, any(6000).to(8080)).map_or_else(|code| code, |_| 0);
    let ways = [
        ("PCP", by_pcp, 2),
        ("PCP, with a suggestion", by_denied, 2),
        ("NAT-PMP", by_nat_pmp, 2),
        ("NAT-PMP, with a suggestion", by_nat_pmp_denied, 2),
        ("IGD", by_igd, 606),
    ];
    for nat in BOTH {
        for (what, ask, refused) in ways {
            for (said, counted) in
                [(None, "waiting for your consent"), (Some(Verb::Deny), "you have denied the host")]
            {
                let mut lab = Lab::up_with(Config { nat, ..one_port_each() });
                if let Some(verb) = said {
                    lab.decide(Device::Address(ALICE.into()), verb);
                }
                // By AddAnyPortMapping it gets another port where its own is somebody's.
                assert_eq!(lab.add(BOB, 2, port(6000).to(9090)), done(), "{what}");
                let before = lab.gateway.nat_ports_in_use();
                lab.script.push_back(Reaction::Grant(E, 50_000));
                assert_eq!(ask(&mut lab), refused, "{what} {nat:?} {said:?}");
                assert_eq!(lab.mapped(), [(6000, at(BOB, 9090))], "{what} {nat:?} {said:?}");
                assert_eq!(lab.gateway.nat_ports_in_use(), before, "{what} {nat:?}");
                assert_eq!(lab.rules.len(), usize::from(nat == NatMode::Own), "{what}");
                let (_, last) = lab.sent().pop().unwrap();
                assert_eq!(last.lifetime, 0, "{what} {nat:?}: it is given back");
                assert_eq!(lab.refused(), [(counted.to_owned(), 1)], "{what} {nat:?}");
                assert_eq!(lab.waiting().len(), usize::from(said.is_none()), "{what}: the owner hears of it");
            }
        }
        // The very port that the rule names needs none.
        let mut lab = Lab::up_with(Config { nat, ..one_port_each() });
        lab.script.push_back(Reaction::Grant(E, 6000));
        assert_eq!(by_pcp(&mut lab), 0, "{nat:?}");
        assert_eq!(lab.mapped(), [(6000, at(ALICE, 8080))]);
    }
}

/// A no that was said while nobody was asked counts as soon as the owner is, for a device by whatever its network card is known to have;
/// and, where nothing is known of it then, as soon as somebody has looked.
#[test]
fn a_no_of_before_counts_when_asking_begins() {
    let carol = Device::Hardware(card(0x10));
    for known in [true, false] {
        let mut lab = up(config(NatMode::Own));
        if known {
            lab.is_known(ALICE, 0x10);
            lab.is_known(CAROL, 0x10);
        }
        lab.event(Event::Consent { device: carol, verb: Verb::Deny, addresses: Vec::new() });
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        assert_eq!(lab.add(BOB, 1, port(9090)), done());
        assert!(lab.open(CAROL, &hole(8080)).is_ok());
        lab.event(Event::Reconfigure(Box::new(asking())));
        if !known {
            assert_eq!((lab.mapped().len(), lab.pinholes.open.len()), (2, 1), "nobody knows whose it is");
            let addresses = vec![ALICE.into(), CAROL.into()];
            lab.event(Event::Consent { device: carol, verb: Verb::Deny, addresses });
        }
        assert_eq!(lab.mapped(), [(9090, at(BOB, 9090))], "{known}");
        assert!(lab.pinholes.open.is_empty(), "{known}");
        lab.is_known(ALICE, 0x10);
        assert_eq!(lab.add(ALICE, 2, port(8080)), Err(606), "{known}");
        lab.agrees();
    }
}

/// Nor is it given by this router alone, while the provider is silent.
#[test]
fn any_port_of_this_router_without_consent() {
    let mut lab = Lab::up_with(Config { when_unreachable: WhenUnreachable::Local, ..one_port_each() });
    lab.silent = true;
    let request = Map { external: 0, ..map(8080) }.request(ALICE).to_bytes();
    assert_eq!(lab.datagram(ALICE, &request).len(), 0);
    lab.pass(4);
    assert_eq!(lab.datagram(ALICE, &request).len(), 0);
    lab.pass(1);
    assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
    lab.decide(Device::Address(ALICE.into()), Verb::Allow);
    lab.datagram(ALICE, &request);
    lab.pass(4);
    assert_eq!(lab.mapped().len(), 1, "with it, it is");
}

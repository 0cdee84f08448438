//! A host is one by all of its addresses (decision 27): what is denied to one of them is denied to the host.

use super::*;

/// Who is denied by his IPv4 address gets no pinhole by his IPv6 address, and keeps none.
#[test]
fn denied_by_another_address() {
    let rules = ["deny 0-65535 192.168.1.10/32 0-65535"];
    let knows = |lab: &mut Lab| {
        lab.gateway.know(CAROL.into(), Known { also: vec![ALICE.into()], hardware: Some(card(0x10)) });
    };
    let mut lab = up(with_rules(&rules));
    knows(&mut lab);
    assert_eq!(lab.add(ALICE, 2, port(8080)), Err(606));
    assert_eq!(lab.open(CAROL, &hole(8080)), Err(606));
    assert_eq!(lab.map6(CAROL, &map6(8080)).0, NOT_AUTHORIZED);
    assert_eq!(lab.refused(), [(format!("by the rule \"{}\"", rules[0]), 3)]);
    assert!(lab.open(DAVE, &hole(8080)).is_ok(), "another host");
    lab.agrees();

    let mut lab = up(config(NatMode::Own));
    knows(&mut lab);
    assert!(lab.open(CAROL, &hole(8080)).is_ok());
    assert!(lab.open(DAVE, &hole(8080)).is_ok());
    lab.event(Event::Reconfigure(Box::new(with_rules(&rules))));
    assert_eq!(lab.pinholes.open.len(), 1, "a new rule counts for what stands");
    lab.agrees();
}

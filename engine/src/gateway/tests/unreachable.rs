//! `when_unreachable = "local"` (D-6, decision 21): what a silent provider cannot give, the router's own NAT does, until
//! the provider answers.

use super::*;
use crate::table::Health;

fn local(nat: NatMode) -> Config {
    Config { when_unreachable: WhenUnreachable::Local, ..config(nat) }
}

fn health(lab: &Lab) -> Vec<Health> {
    lab.gateway.mappings(lab.instant()).map(|m| m.health).collect()
}

/// D-6, decision 21: a local mapping at once when the server is known to be silent, and before the patience is over when that shows only
/// now; carried to the provider as soon as it answers.
#[test]
fn d_6_a_local_mapping_is_carried_upstream() {
    let mut lab = Lab::up_with(local(NatMode::Own));
    lab.silent = true;
    let first = lab.start_add(ALICE, 1, port(8080));
    assert_eq!(lab.heard(first), None);
    lab.run(lab.now + 3499);
    assert_eq!(lab.heard(first), Some(done()), "within the patience");
    assert_eq!(lab.add(BOB, 2, any(9090)), Ok(vec!["9090".into()]), "at once");
    assert_eq!(lab.add(ALICE, 1, port(9090)), Err(718));
    assert_eq!(lab.rules, [tcp(8080, at(ALICE, 8080)), tcp(9090, at(BOB, 9090))]);
    assert_eq!((health(&lab), lab.store.len()), (vec![Health::Degraded; 2], 2));
    assert_eq!(lab.connection().0, "Disconnected");
    lab.pass(3000);
    assert_eq!(lab.mapped().len(), 2, "as long as its lease");
    lab.silent = false;
    lab.pass(1200); // the next repetition
    assert_eq!(lab.upstream().len(), 0, "the leases are over by now");
    assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));

    lab.silent = true;
    let again = lab.start_add(ALICE, 1, Add { lease: 0, ..port(8080) });
    lab.pass(4);
    assert_eq!(lab.heard(again), Some(done()));
    lab.silent = false;
    assert_eq!(lab.add(BOB, 1, port(7070)), done(), "somebody else asks, and is answered");
    lab.pass(10);
    assert_eq!((lab.upstream().len(), health(&lab)), (2, vec![Health::Active; 2]));
    assert_eq!(lab.connection(), ("Connected".into(), E.to_string()));
    assert_eq!(lab.rules.len(), 2);
}

/// What the provider says when it answers counts: another port, or none, ends a mapping that AddPortMapping made, and
/// subscribers hear of it.
#[test]
fn a_local_mapping_that_the_provider_refuses() {
    let mut lab = Lab::up_with(local(NatMode::Own));
    lab.silent = true;
    let id = lab.start_add(ALICE, 1, Add { lease: 0, ..port(8080) });
    lab.pass(4);
    assert_eq!(lab.heard(id), Some(done()));
    let before = lab.status().system_update_id;
    lab.silent = false;
    lab.script = [Reaction::Refuse(ResultCode::CANNOT_PROVIDE_EXTERNAL, 600)].into();
    lab.pass(60);
    assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
    assert_eq!(lab.status().system_update_id, before + 1);
}

/// It is deleted like any other, and nobody waits for a server that does not answer; a crash keeps it.
#[test]
fn a_local_mapping_is_deleted_and_survives() {
    let mut lab = Lab::up_with(local(NatMode::Own));
    lab.silent = true;
    for n in 0..3 {
        lab.start_add(ALICE, 1, Add { lease: 0, ..port(8080 + n) });
        lab.pass(4);
    }
    assert_eq!(lab.delete(ALICE, 1, 8080), done());
    assert_eq!((lab.mapped().len(), lab.rules.len(), lab.store.len()), (2, 2, 2));
    let range = [("NewStartPort", "1"), ("NewEndPort", "8081"), ("NewProtocol", "TCP"), ("NewManage", "0")];
    assert_eq!(lab.call(ALICE, 2, "DeletePortMappingRange", &range), done());
    lab.crash(local(NatMode::Own), 9, 1000);
    lab.silent = false;
    lab.event(Event::Lan(lan()));
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(40);
    assert_eq!((lab.mapped(), lab.upstream()), (vec![(8082, at(ALICE, 8082))], vec![(8082, at(W, 8082))]));
    assert_eq!(health(&lab), [Health::Active]);
}

/// Without a NAT of its own the router has nothing to give; without a WAN nobody has. R-7 then.
#[test]
fn nothing_to_give() {
    let mut lab = Lab::up_with(local(NatMode::None));
    lab.silent = true;
    for _ in 0..2 {
        let id = lab.start_add(ALICE, 1, port(8080));
        lab.pass(4);
        assert_eq!(lab.heard(id), Some(Err(501)));
    }
    let mut lab = Lab::up_with(local(NatMode::Own));
    lab.event(Event::Wan(wan(&[])));
    assert_eq!(lab.add(ALICE, 1, port(8080)), Err(501));
    assert_eq!(lab.rules, []);
}

/// It leads in by the very port that its control point was told; when the router itself uses that, there is nothing to
/// give. Who asks first hears that the port is free.
#[test]
fn a_local_mapping_has_the_port_that_was_told() {
    let mut lab = Lab::up_with(local(NatMode::Own));
    lab.in_use = vec![(Protocol::TCP, 7000)];
    lab.silent = true;
    for (external, heard) in [(8080, done()), (7000, Err(501))] {
        let id = lab.start_add(ALICE, 1, port(external).to(9090));
        lab.pass(4);
        assert_eq!(lab.heard(id), Some(heard));
    }
    assert_eq!(lab.rules, [tcp(8080, at(ALICE, 9090))]);
    let asked = lab.call(ALICE, 1, "GetSpecificPortMappingEntry", &borrowed(&key(8081)));
    assert_eq!(asked, Err(714));
}

//! `[lan] pcp = false`, `nat_pmp = false` (security policy: switching the service off deletes all its mappings, local and upstream).

use super::*;

impl Lab {
    fn switch(&mut self, nat: NatMode, pcp: bool, nat_pmp: bool) {
        self.event(Event::Reconfigure(Box::new(Config { pcp, nat_pmp, ..config(nat) })));
    }

    fn ports(&self) -> Vec<u16> {
        self.mapped().into_iter().map(|(port, _)| port).collect()
    }
}

/// What others count on stands; what nobody else does goes here and at the provider, and its PCP client is told.
#[test]
fn what_a_protocol_had_goes_with_it() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.map(ALICE, &map(8080)).0, OK);
        assert_eq!(lab.nat_pmp_map(BOB, 8081, 8081, 3600).0, 0);
        assert_eq!(lab.map(ALICE, &map(8082)).0, OK);
        assert_eq!(lab.add(ALICE, 1, port(8082)), done());
        assert_eq!(lab.map(BOB, &map(8083)).0, OK);
        assert_eq!(lab.nat_pmp_map(BOB, 8083, 8083, 3600).0, 0);
        assert_eq!(lab.add(ALICE, 1, port(8084)), done());
        let before = lab.effects.len();
        lab.switch(nat, false, true);
        lab.pass(10);
        assert_eq!(lab.ports(), [8081, 8082, 8083, 8084], "{nat:?}");
        let stored: Vec<u16> = lab.store.keys().map(|&(_, port)| port).collect();
        assert_eq!((stored, lab.upstream().len()), (lab.ports(), 4), "{nat:?}");
        let told: Vec<_> = lab.sent_to(ALICE, before).iter().map(|b| Response::parse(b).unwrap()).collect();
        assert_eq!(told.len(), 3, "{nat:?}: it is gone (§14.2)");
        assert!(told.iter().all(|told| (told.result, told.lifetime) == (OK, 0)), "{told:?}");
        let by: Vec<_> = lab.gateway.mappings(lab.instant()).map(|mapping| mapping.asked_by).collect();
        assert!(by.iter().all(|by| !by.pcp), "{by:?}");

        lab.switch(nat, false, false);
        lab.pass(10);
        assert_eq!((lab.ports(), lab.upstream().len(), lab.store.len()), (vec![8082, 8084], 2, 2), "{nat:?}");
        // What has been switched on again begins anew.
        lab.switch(nat, true, true);
        assert_eq!(lab.map(ALICE, &Map { nonce: OTHERS, ..map(8082) }).0, OK, "{nat:?}");
        for port in [8082, 8084] {
            assert_eq!(lab.delete(ALICE, 1, port), done());
        }
        lab.pass(3600);
        assert_eq!((lab.ports(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0), "{nat:?}");
        assert!(lab.gateway.is_idle());
    }
}

/// The epoch is PCP's, too: whoever is left has lost nothing.
#[test]
fn nobody_else_notices() {
    let mut lab = Lab::up(NatMode::Own);
    lab.pass(1000);
    assert_eq!(lab.nat_pmp_map(BOB, 8081, 8081, 3600).0, 0);
    lab.switch(NatMode::Own, true, false);
    lab.pass(300);
    assert_eq!(lab.ports(), []);
    let answer = lab.pcp(ALICE, &map(8080).request(ALICE));
    assert!(answer.epoch > 1000, "{}", answer.epoch);
}

/// A request that waits hears so, and nothing comes of it later: neither of one that is new, nor of a renewal, nor of one that waits
/// for another protocol.
#[test]
fn what_is_on_its_way() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.map(ALICE, &map(8082)).0, OK);
        assert_eq!(lab.add(ALICE, 1, port(8082)), done());
        lab.pass(1800);
        lab.silent = true;
        let before = lab.effects.len();
        for port in [8080, 8082] {
            assert_eq!(lab.datagram(ALICE, &map(port).request(ALICE).to_bytes()).len(), 0);
        }
        let added = lab.start_add(ALICE, 1, port(8083));
        assert_eq!(lab.datagram(ALICE, &map(8083).request(ALICE).to_bytes()).len(), 0);
        lab.switch(nat, false, true);
        let told: Vec<_> =
            lab.sent_to(ALICE, before).iter().map(|b| Response::parse(b).unwrap().result).collect();
        assert_eq!(told, [ResultCode::NETWORK_FAILURE; 3], "{nat:?}");
        lab.silent = false;
        lab.pass(60);
        assert_eq!((lab.heard(added), lab.ports()), (Some(done()), vec![8082, 8083]), "{nat:?}");
        let by: Vec<_> = lab.gateway.mappings(lab.instant()).map(|mapping| mapping.asked_by).collect();
        assert!(by.iter().all(|by| by.igd && !by.pcp), "{nat:?} {by:?}");
        assert_eq!(lab.upstream().len(), 2, "{nat:?}");
    }
}

/// Likewise when it is off from the next start on.
#[test]
fn a_start_without_a_protocol() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.map(ALICE, &map(8080)).0, OK);
        assert_eq!(lab.map(ALICE, &map(8081)).0, OK);
        assert_eq!(lab.nat_pmp_map(ALICE, 8081, 8081, 7200).0, 0);
        lab.crash(Config { pcp: false, ..config(nat) }, 77, 1000);
        assert_eq!(lab.ports(), [8081], "{nat:?}");
        lab.bring_up();
        lab.pass(60);
        assert_eq!((lab.ports(), lab.upstream().len(), lab.store.len()), (vec![8081], 1, 1), "{nat:?}");
        assert_eq!(lab.nat_pmp_map(ALICE, 8081, 0, 0).0, 0);
        assert_eq!((lab.ports(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0), "{nat:?}");
    }
}

/// All that it was asked for by goes at once, and its PCP client hears so all the same.
#[test]
fn by_two_of_them() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.map(ALICE, &map(8080)).0, OK);
        assert_eq!(lab.nat_pmp_map(ALICE, 8080, 8080, 3600).0, 0);
        let before = lab.effects.len();
        lab.switch(nat, false, false);
        lab.pass(10);
        assert_eq!((lab.ports(), lab.upstream().len()), (vec![], 0), "{nat:?}");
        assert_eq!(lab.sent_to(ALICE, before).len(), 3, "{nat:?}: it is gone (§14.2)");
    }
}

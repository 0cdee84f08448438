//! PREFER_FAILURE with a suggested address insists on that, too (RFC 6887 §13.2).

use super::*;

const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

/// That port at this address, or nothing.
fn insists(port: u16, external_addr: Ipv4Addr) -> Map {
    Map { external_addr, ..map(port) }.with(PcpOption::PreferFailure)
}

impl Lab {
    fn is_empty(&self) -> bool {
        self.mapped().is_empty() && self.upstream().is_empty() && self.rules.is_empty()
    }
}

/// Where none is known yet, the grant tells; what is not at the suggested address is given back.
#[test]
fn an_address_that_nobody_knew() {
    for nat in BOTH {
        let up = || Lab::up_with(Config { external_address_probe: false, ..config(nat) });
        let mut lab = up();
        assert_eq!(lab.status().external, None);
        assert_eq!(lab.map(ALICE, &insists(8080, OTHER)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "{nat:?}");
        assert!(lab.is_empty(), "{nat:?}");
        // Who does not insist has a wish, and the provider another address.
        assert_eq!(lab.map(ALICE, &Map { external_addr: OTHER, ..map(8080) }), (OK, 3600, 8080));
        let mut lab = up();
        assert_eq!(lab.map(ALICE, &insists(8080, E)), (OK, 3600, 8080), "{nat:?}");
        assert_eq!(lab.map(ALICE, &insists(8080, E)), (OK, 3600, 8080), "again");
    }
}

/// The provider has several addresses, and gives another one than before.
#[test]
fn a_grant_at_another_address() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.script = [Reaction::Grant(OTHER, 8080)].into();
        assert_eq!(lab.map(ALICE, &insists(8080, E)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "{nat:?}");
        let gone = lab.sent().into_iter().filter(|(_, request)| request.lifetime == 0).count();
        assert_eq!((lab.is_empty(), gone), (true, 1), "{nat:?}: it is given back");
        assert!(lab.store.is_empty());
        // Nor does what another protocol has at another address do.
        lab.script = [Reaction::Grant(OTHER, 8081)].into();
        assert_eq!(lab.add(ALICE, 1, port(8081)), done());
        assert_eq!(lab.map(ALICE, &insists(8081, E)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "{nat:?}");
    }
}

/// What came too late is held for who asks again, but not for who wants it at another address.
#[test]
fn what_is_held_elsewhere() {
    for nat in BOTH {
        let mut lab = Lab::up_with(Config { external_address_probe: false, ..config(nat) });
        lab.silent = true;
        assert_eq!(lab.datagram(ALICE, &insists(8080, E).request(ALICE).to_bytes()).len(), 0);
        lab.pass(21);
        lab.silent = false;
        lab.pass(15);
        assert_eq!(lab.upstream().len(), 1, "{nat:?}");
        assert_eq!(lab.map(ALICE, &insists(8080, OTHER)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
        lab.pass(60);
        assert!(lab.is_empty(), "{nat:?}");
    }
}

/// `when_unreachable = "local"`: of this router alone there is no external address that could be the one.
#[test]
fn nothing_is_made_of_this_router_alone() {
    let when_unreachable = WhenUnreachable::Local;
    let settings = Config { when_unreachable, external_address_probe: false, ..config(NatMode::Own) };
    let mut lab = Lab::up_with(settings);
    lab.silent = true;
    let before = lab.effects.len();
    assert_eq!(lab.datagram(ALICE, &insists(8080, OTHER).request(ALICE).to_bytes()).len(), 0);
    lab.pass(15);
    assert!(lab.is_empty());
    lab.silent = false;
    lab.pass(30);
    assert_eq!(lab.sent_to(ALICE, before).len(), 0, "it is asked again, should it still be wanted");
    assert_eq!(lab.map(ALICE, &insists(8080, OTHER)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    assert!(lab.is_empty());
}

//! A port that a host is just giving back and asks for again, as file-sharing programs do that speak two protocols at once.

use super::*;

/// The request waits for the end of the delete, and gets the port then: the same mapping again, or one to another internal port.
#[test]
fn a_port_that_is_being_given_back_is_waited_for() {
    for nat in BOTH {
        for internal in [8080, 9090] {
            for strict in [false, true] {
                let mut lab = Lab::up(nat);
                assert_eq!(lab.add(ALICE, 1, port(8080)), done());
                lab.silent = true;
                let deleted = lab.start_delete(ALICE, 1, 8080);
                let before = lab.effects.len();
                let wish = Map { internal, ..map(8080) };
                let wish = if strict { wish.with(PcpOption::PreferFailure) } else { wish };
                assert_eq!(lab.datagram(ALICE, &wish.request(ALICE).to_bytes()).len(), 0, "{nat:?}");
                // A provider that gives a port to the next who asks: ours would keep it for who had it (§15.1).
                lab.script = [Reaction::Serve, Reaction::Grant(E, 8080)].into();
                lab.silent = false;
                lab.pass(5);
                let told: Vec<_> =
                    lab.sent_to(ALICE, before).iter().map(|b| Response::parse(b).unwrap()).collect();
                let [told] = &told[..] else { panic!("{nat:?} {internal}: {told:?}") };
                let Body::Map(data) = told.body else { panic!("{told:?}") };
                assert_eq!((told.result, data.external_port), (OK, 8080), "{nat:?} {internal} {strict}");
                assert_eq!(lab.heard(deleted), Some(done()), "{nat:?} {internal}");
                assert_eq!(lab.mapped(), [(8080, at(ALICE, internal))], "{nat:?}");
            }
        }
    }
}

/// The provider keeps what was to be deleted: the request goes on with what stands.
#[test]
fn a_delete_that_is_refused() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        lab.silent = true;
        lab.start_delete(ALICE, 1, 8080);
        let before = lab.effects.len();
        lab.datagram(ALICE, &map(8080).request(ALICE).to_bytes());
        lab.script = [Reaction::Refuse(ResultCode::NOT_AUTHORIZED, 30)].into();
        lab.silent = false;
        lab.pass(5);
        let told: Vec<_> = lab.sent_to(ALICE, before).iter().map(|b| Response::parse(b).unwrap()).collect();
        let results: Vec<_> = told.iter().map(|told| told.result).collect();
        assert_eq!((results, lab.mapped()), (vec![OK], vec![(8080, at(ALICE, 8080))]), "{nat:?}");
    }
}

/// Another host's port that is being given back is no reason to wait, nor does anybody wait for ever.
#[test]
fn nobody_waits_for_others() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(BOB, 1, port(8080)), done());
        lab.script = [Reaction::Lose].into();
        lab.start_delete(BOB, 1, 8080);
        let (result, _, other) = lab.map(ALICE, &map(8080));
        assert_eq!((result, other == 8080), (OK, false), "{nat:?}");

        let mut lab = Lab::up(nat);
        assert_eq!(lab.add(ALICE, 1, port(8080)), done());
        lab.silent = true;
        lab.start_delete(ALICE, 1, 8080);
        lab.datagram(ALICE, &map(8080).request(ALICE).to_bytes());
        lab.pass(4000);
        lab.silent = false;
        lab.pass(60);
        assert!(lab.gateway.is_idle(), "{nat:?}");
    }
}

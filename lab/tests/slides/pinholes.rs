//! "Add pinhole" and "delete pinhole".

use std::net::SocketAddrV4;

use lab::netns::{EXTERNAL, Host, LAN1};

use crate::bench::{Bench, Deployment, FILTER, PREFER_FAILURE, SUCCESS, Terms};
use crate::common::{BOTH, Told, reaches, reaches_nobody};

/// From the control point's action to bytes that arrive, and back to nothing.
fn a_pinhole_comes_and_goes(deployment: Deployment) {
    let Some(mut bench) = Bench::new(deployment, Terms::USUAL, "") else { return };
    let mut caller = bench.caller(Host::Lan1, 1);
    for protocol in BOTH {
        let _listener = bench.listeners(&[Host::Lan1], protocol, 7000);
        reaches_nobody(&bench.network, protocol, 8080);
        bench.asked_nothing();

        // Add.
        assert_eq!(caller.add(protocol, 8080, SocketAddrV4::new(LAN1, 7000), 3600, ""), Told::done());
        reaches(&bench.network, protocol, 8080, "lan1");
        let add = bench.asked_once();
        add.is_strict(protocol, 8080, 3600, SUCCESS);
        assert_eq!(add.map.internal_port, 7000, "{add:#?}");
        assert_eq!(add.map.client, Some(deployment.router()));
        let third_party = (deployment == Deployment::DsLite).then_some(LAN1);
        assert_eq!(add.map.third_party(), third_party, "{add:#?}");
        assert_eq!(add.answered().external_address, Some(EXTERNAL));
        let held = bench.held();
        let [one] = &held[..] else { panic!("{held:#?}") };
        assert_eq!((one.protocol, one.internal), (protocol, bench.internal(Host::Lan1, 7000)));
        assert_eq!(one.external, SocketAddrV4::new(EXTERNAL, 8080));

        // Delete.
        assert_eq!(caller.delete(protocol, 8080), Told::done());
        reaches_nobody(&bench.network, protocol, 8080);
        let delete = bench.asked_once();
        assert!(delete.map.lifetime.is_zero() && delete.result() == SUCCESS, "{delete:#?}");
        assert_eq!(delete.map.nonce, add.map.nonce, "by the nonce that proves it ours");
        assert_eq!((delete.map.protocol, delete.map.internal_port), (protocol, 7000));
        assert_eq!((delete.map.external_port, delete.map.external_address), (0, Some([0; 4].into())));
        assert_eq!(delete.map.third_party(), third_party, "{delete:#?}");
        for option in [PREFER_FAILURE, FILTER] {
            assert_eq!(delete.map.option(option), None, "{delete:#?}");
        }
        assert_eq!(bench.held(), []);
        assert_eq!(caller.delete(protocol, 8080), Told::Refused(714), "it is gone");
        bench.asked_nothing();
    }
}

/// D-16, R-1, R-12, R-18, R-28, R-29: the slides add a pinhole at an AFTR and delete it.
#[test]
fn a_pinhole_comes_and_goes_at_an_aftr() {
    a_pinhole_comes_and_goes(Deployment::DsLite);
}

/// D-16, R-1, R-13, R-14, R-18, R-28, R-29: the same through the router's NAT and the provider's.
#[test]
fn a_pinhole_comes_and_goes_at_a_nat44() {
    a_pinhole_comes_and_goes(Deployment::Nat44);
}

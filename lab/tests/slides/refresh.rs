//! "Refresh by lifetime": the server grants less than the control point asked for.

use std::net::SocketAddrV4;
use std::time::Duration;

use lab::netns::{EXTERNAL, Host, LAN1};
use lab::wait::eventually;

use crate::bench::{Bench, Deployment, SUCCESS, Terms};
use crate::common::{TCP, Told, reaches};

/// What is granted, and between which times of it the first renewal goes out (RFC 6887 §11.2.1).
const GRANTED: Duration = Duration::from_secs(8);
const FIRST: [Duration; 2] = [Duration::from_secs(4), Duration::from_secs(5)];
/// What a busy machine adds.
const LATE: Duration = Duration::from_millis(1500);

/// The mapping outlives what was granted, by renewals that change nothing, and the control point sees its own lease only.
fn a_lease_outlives_what_is_granted(deployment: Deployment) {
    let terms = Terms { lifetimes: (4, 8), ..Terms::USUAL };
    let Some(mut bench) = Bench::new(deployment, terms, "") else { return };
    let mut caller = bench.caller(Host::Lan1, 1);
    let _listener = bench.listeners(&[Host::Lan1], TCP, 7000);
    assert_eq!(caller.add(TCP, 8080, SocketAddrV4::new(LAN1, 7000), 3600, "refreshed"), Told::done());
    let mut all = Vec::new();
    eventually("two renewals", 3 * GRANTED, || {
        all.extend(bench.asked());
        (all.len() >= 3).then_some(())
    });
    all[0].is_strict(TCP, 8080, 3600, SUCCESS);
    for pair in all.windows(2) {
        let (granted, answer) = pair[0].answer.as_ref().expect("it was answered");
        assert_eq!((answer.result, answer.lifetime), (SUCCESS, GRANTED), "{all:#?}");
        let renewal = &pair[1];
        let after = renewal.packet.at - granted.at;
        assert!((FIRST[0]..FIRST[1] + LATE).contains(&after), "{after:?}: {all:#?}");
        let map = &renewal.map;
        assert_eq!((map.nonce, map.protocol, map.internal_port), (pair[0].map.nonce, TCP, 7000));
        assert_eq!((map.external_port, map.external_address), (8080, Some(EXTERNAL)), "what it has");
        // What is left of the lease.
        assert!((3580..3600).contains(&map.lifetime.as_secs()), "{all:#?}");
    }
    assert!(all[2].packet.at - all[0].packet.at >= GRANTED, "by now it would have ended");
    reaches(&bench.network, TCP, 8080, "lan1");
    let asked = [("NewRemoteHost", ""), ("NewExternalPort", "8080"), ("NewProtocol", "TCP")];
    let Told::Done(entry) = caller.call("GetSpecificPortMappingEntry", &asked) else {
        panic!("it is its own mapping");
    };
    let (_, lease) = entry.iter().find(|(name, _)| name == "NewLeaseDuration").expect("IGD has it");
    let lease: u64 = lease.parse().expect("seconds");
    assert!((3560..3600).contains(&lease), "{entry:?}");
}

/// D-16, R-11, R-32, R-33, R-34, decision 14: at an AFTR.
#[test]
fn a_lease_outlives_what_an_aftr_grants() {
    a_lease_outlives_what_is_granted(Deployment::DsLite);
}

/// D-16, R-11, R-15, R-32, R-33, R-34, decision 14: at a NAT44.
#[test]
fn a_lease_outlives_what_a_nat44_grants() {
    a_lease_outlives_what_is_granted(Deployment::Nat44);
}

//! Mappings at routers of all kinds, from the first look to the end.

use super::*;

#[test]
fn one_port_and_no_other() {
    for version in [1, 2] {
        let mut rig = Rig::new(version);
        rig.input(Input::Ask(FLOW, want(8080)));
        assert_eq!(rig.take(), [rig.granted(FLOW, 8080, 3600)]);
        let look = "GetSpecificPortMappingEntry 8080";
        assert_eq!(rig.calls(), [look, "AddPortMapping 8080", look]);
        assert!(rig.client.holds(FLOW) && rig.client.takes_prefer_failure());
        let entry = &rig.model.entries[&("TCP".to_owned(), 8080)];
        assert_eq!((entry.internal, &*entry.description), ((HERE, 8080), "a game"));
        // Somebody else's is neither overwritten nor deleted, also where the router would do that.
        for overwrites in [false, true] {
            rig.model.overwrites = overwrites;
            rig.model.maps("TCP", 9090, (OTHER, 1));
            rig.input(Input::Ask(FlowId(2), want(9090)));
            let refused = ResultCode::CANNOT_PROVIDE_EXTERNAL;
            assert_eq!(rig.take(), [Output::Refused(FlowId(2), refused, ERROR_LIFETIME)]);
            assert_eq!(rig.calls(), ["GetSpecificPortMappingEntry 9090"]);
        }
        // What leads here from an earlier life is taken over.
        rig.model.maps("TCP", 7070, (HERE, 5));
        rig.input(Input::Ask(FlowId(3), want(7070)));
        assert_eq!(rig.take(), [rig.granted(FlowId(3), 7070, 3600)]);
        assert_eq!(rig.model.entries[&("TCP".to_owned(), 7070)].internal, (HERE, 7070));
        for (flow, port) in [(FLOW, 8080), (FlowId(3), 7070)] {
            rig.calls();
            rig.input(Input::Delete(flow));
            assert_eq!(rig.take(), [Output::Deleted(flow)]);
            let look = format!("GetSpecificPortMappingEntry {port}");
            assert_eq!(rig.calls(), [look, format!("DeletePortMapping {port}")]);
            assert!(!rig.client.has(flow));
        }
        assert_eq!(rig.model.ports(), [9090]);
    }
}

#[test]
fn any_port_will_do() {
    // A router of :2 is asked for that.
    let mut rig = Rig::new(2);
    rig.model.maps("TCP", 8080, (OTHER, 1));
    rig.input(Input::Ask(FLOW, any(8080)));
    assert_eq!(rig.take(), [rig.granted(FLOW, 8081, 3600)]);
    assert_eq!(rig.calls(), ["AddAnyPortMapping 8080", "GetSpecificPortMappingEntry 8081"]);
    // It would give one mapping of ours for another: 8081 is not suggested.
    rig.input(Input::Ask(FlowId(2), Want { internal_port: 5, external_port: 8081, ..any(8081) }));
    let outputs = rig.take();
    let [Output::Granted(FlowId(2), grant)] = outputs[..] else { panic!("{outputs:?}") };
    assert_ne!(grant.external.port(), 8081);
    assert_eq!(rig.model.entries[&("TCP".to_owned(), 8081)].internal, (HERE, 8080));
    // One that says that it is of :2, and is not; and one of :1: other ports are tried.
    for version in [2, 1] {
        let mut rig = Rig::new(version);
        rig.model.refuses.insert("AddAnyPortMapping", UpnpError::INVALID_ACTION);
        rig.model.maps("TCP", 8080, (OTHER, 1));
        rig.input(Input::Ask(FLOW, any(8080)));
        let outputs = rig.take();
        let [Output::Granted(FLOW, grant)] = outputs[..] else { panic!("{outputs:?}") };
        assert!((10_000..30_000).contains(&grant.external.port()), "{grant:?}");
        // Without a wish, it is the internal one; and AddAnyPortMapping is not tried again.
        rig.calls();
        rig.input(Input::Ask(FlowId(2), Want { external_port: 0, ..any(9090) }));
        assert_eq!(rig.take(), [rig.granted(FlowId(2), 9090, 3600)]);
        assert!(!rig.calls().contains(&"AddAnyPortMapping 9090".to_owned()));
    }
    // Not for ever.
    let mut rig = Rig::new(1);
    rig.model.refuses.insert("AddPortMapping", UpnpError::CONFLICT);
    rig.input(Input::Ask(FLOW, any(8080)));
    let refused = ResultCode::CANNOT_PROVIDE_EXTERNAL;
    assert_eq!(rig.take(), [Output::Refused(FLOW, refused, ERROR_LIFETIME)]);
    assert_eq!(rig.calls().len(), 16);
}

/// 725, and 402 where that is meant: no lease, and an end by delete alone.
#[test]
fn leases_without_end() {
    for error in [UpnpError::ONLY_PERMANENT_LEASES, UpnpError::INVALID_ARGS] {
        let mut rig = Rig::new(1);
        rig.model.only_permanent = error == UpnpError::ONLY_PERMANENT_LEASES;
        if !rig.model.only_permanent {
            rig.model.refuses.insert("AddPortMapping", error);
        }
        rig.answers = false;
        rig.input(Input::Ask(FLOW, want(8080)));
        rig.served();
        rig.served();
        rig.model.refuses.clear();
        rig.answers = true;
        rig.served();
        assert_eq!(rig.take(), [rig.granted(FLOW, 8080, 3600)]);
        assert_eq!(rig.model.entries[&("TCP".to_owned(), 8080)].ends, None);
        // Looked after by the hour, and gone when the lease of its owner is over.
        rig.run(7_100_000);
        assert_eq!(rig.model.ports(), [8080]);
        rig.run(7_201_000);
        assert!(rig.take().contains(&Output::Lost(FLOW)));
        assert_eq!(rig.model.ports(), []);
    }
    // 402 that means something else.
    let mut rig = Rig::new(1);
    rig.model.refuses.insert("AddPortMapping", UpnpError::INVALID_ARGS);
    rig.input(Input::Ask(FLOW, want(8080)));
    assert_eq!(rig.take(), [Output::Refused(FLOW, ResultCode::MALFORMED_REQUEST, ERROR_LIFETIME)]);
}

#[test]
fn other_faults_of_real_routers() {
    // 718 to who renews: deleted, and added anew.
    let mut rig = Rig::new(1);
    rig.model.never_renews = true;
    rig.input(Input::Ask(FLOW, Want { terms: Terms { lease_ends: None, ..want(1).terms }, ..want(8080) }));
    rig.calls();
    rig.run(2_300_000);
    assert!(rig.calls().contains(&"DeletePortMapping 8080".to_owned()));
    assert_eq!(rig.model.ports(), [8080]);
    assert!(rig.take().iter().all(|output| matches!(output, Output::Granted(..))));
    // 724: both ports are one, or none.
    let mut rig = Rig::new(1);
    rig.model.same_port = true;
    rig.input(Input::Ask(FLOW, Want { external_port: 9090, ..want(8080) }));
    assert_eq!(rig.take(), [Output::Refused(FLOW, ResultCode::CANNOT_PROVIDE_EXTERNAL, ERROR_LIFETIME)]);
    rig.input(Input::Ask(FLOW, Want { external_port: 9090, ..any(8080) }));
    assert_eq!(rig.take(), [rig.granted(FLOW, 8080, 3600)]);
    // No GetSpecificPortMappingEntry.
    let mut rig = Rig::new(1);
    rig.model.refuses.insert("GetSpecificPortMappingEntry", UpnpError::INVALID_ACTION);
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.run(3_500_000);
    rig.input(Input::Delete(FLOW));
    let outputs = rig.take();
    assert!(!outputs.contains(&Output::StateLost) && outputs.contains(&Output::Deleted(FLOW)));
    assert_eq!(rig.model.ports(), []);
    // An uptime that says nothing: it is not taken for restarts.
    let mut rig = Rig::new(1);
    rig.model.never_counts = true;
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.calls();
    rig.run(590_000);
    assert_eq!(rig.calls(), Vec::<String>::new());
    // A shorter lease than was asked for, which only the entry tells.
    let mut rig = Rig::new(1);
    rig.model.longest = 600;
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.run(7_000_000);
    let outputs = rig.take();
    assert!(outputs.iter().all(|output| matches!(output, Output::Granted(..))), "{outputs:?}");
    assert_eq!(rig.model.ports(), [8080]);
}

#[test]
fn renewed_from_half_the_lease_on() {
    let mut rig = Rig::new(2);
    rig.input(Input::Ask(FLOW, Want { terms: Terms { lease_ends: None, ..want(1).terms }, ..want(8080) }));
    rig.run(599_999);
    rig.calls();
    rig.run(1_799_999);
    // Looked at now and then.
    assert_eq!(rig.calls(), ["GetSpecificPortMappingEntry 8080"; 2]);
    rig.run(2_250_000);
    assert!(rig.calls().contains(&"AddPortMapping 8080".to_owned()));
    rig.run(86_400_000);
    assert_eq!(rig.model.ports(), [8080]);
    // For what is left of a lease.
    let mut rig = Rig::new(2);
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.run(7_201_000); // in whole seconds
    assert_eq!(rig.take().last(), Some(&Output::Lost(FLOW)));
    assert_eq!((rig.client.has(FLOW), rig.model.ports().len()), (false, 1), "it ends by itself");
    rig.model.answer(Instant::from_millis(7_202_000), HERE, &status_request());
    assert_eq!(rig.model.ports(), []);
}

fn status_request() -> HttpRequest {
    let control = Url::parse("http://192.168.178.1:49000/control").unwrap();
    let service_type = "urn:schemas-upnp-org:service:WANIPConnection:1";
    HttpRequest::call(HttpId(0), &control, service_type, &Call::GetStatusInfo)
}

/// A restart is seen by the uptime; every mapping is there again soon, at its port.
#[test]
fn a_router_that_has_started_anew() {
    let mut rig = Rig::new(1);
    for (id, port) in [(1, 8080), (2, 8081), (3, 8082)] {
        rig.input(Input::Ask(FlowId(id), any(port)));
    }
    rig.run(100_000);
    rig.take();
    rig.model.restart(Instant::from_secs(100));
    // Another host was quicker.
    rig.model.maps("TCP", 8081, (OTHER, 1));
    rig.run(140_000);
    let outputs = rig.take();
    assert_eq!(outputs.iter().filter(|output| **output == Output::StateLost).count(), 1, "{outputs:?}");
    assert_eq!(rig.model.entries[&("TCP".to_owned(), 8081)].internal.0, OTHER);
    let ours = rig.model.entries.values().filter(|entry| entry.internal.0 == HERE).count();
    assert_eq!(ours, 3, "{:?}", rig.model.entries);
    assert!([1, 2, 3].iter().all(|&id| rig.client.holds(FlowId(id))));
    // So soon after its last start that the clock hardly tells.
    let mut rig = Rig::new(1);
    rig.run(1000);
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.run(3000);
    rig.model.restart(Instant::from_secs(3));
    rig.run(60_000);
    assert_eq!(rig.model.ports(), [8080]);
    // Who wants that port and no other has lost it.
    let mut rig = Rig::new(1);
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.model.restart(Instant::default());
    rig.model.maps("TCP", 8080, (OTHER, 1));
    rig.take();
    rig.run(700_000);
    assert_eq!(rig.take(), [Output::StateLost, Output::Lost(FLOW)]);
}

#[test]
fn deletes() {
    // Refused: it stands as before. 714: somebody was quicker.
    let mut rig = Rig::new(1);
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.model.refuses.insert("DeletePortMapping", UpnpError::NOT_AUTHORIZED);
    rig.take();
    rig.input(Input::Delete(FLOW));
    assert_eq!(rig.take(), [Output::DeleteRefused(FLOW, ResultCode::NOT_AUTHORIZED)]);
    assert!(rig.client.holds(FLOW));
    rig.model.refuses.clear();
    rig.model.entries.clear();
    rig.calls();
    rig.input(Input::DeleteInTurn(FLOW));
    assert_eq!((rig.take(), rig.calls().len()), (vec![Output::Deleted(FLOW)], 1));
    // What an earlier life may have left.
    rig.model.maps("TCP", 7070, (HERE, 7070));
    rig.input(Input::Assume(FLOW, want(7070)));
    assert_eq!(rig.calls().len(), 0);
    rig.input(Input::Delete(FLOW));
    assert_eq!((rig.take(), rig.model.ports()), (vec![Output::Deleted(FLOW)], vec![]));
    // While AddPortMapping is out: what it makes goes again.
    rig.answers = false;
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.served();
    rig.input(Input::Delete(FLOW));
    rig.answers = true;
    rig.served();
    assert_eq!((rig.take(), rig.model.ports()), (vec![Output::Deleted(FLOW)], vec![]));
    // The next wish for its port takes it over.
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.take();
    rig.answers = false;
    rig.run(30_000); // something else is out
    rig.input(Input::Delete(FLOW));
    rig.input(Input::Ask(FlowId(2), Want { internal_port: 5, ..want(8080) }));
    rig.client.line.leave(What::Flow(FLOW));
    rig.answers = true;
    rig.served();
    assert_eq!(rig.take(), [Output::Deleted(FLOW), rig.granted(FlowId(2), 8080, 3600)]);
    assert_eq!(rig.model.entries[&("TCP".to_owned(), 8080)].internal, (HERE, 5));
}

#[test]
fn what_it_cannot_map() {
    let mut rig = Rig::new(1);
    for (want, result) in [
        (Want { third_party: Some(OTHER.into()), ..want(1) }, ResultCode::UNSUPP_OPTION),
        (Want { protocol: Protocol(132), ..want(1) }, ResultCode::UNSUPP_PROTOCOL),
        (Want { internal_port: 0, ..want(1) }, ResultCode::UNSUPP_PROTOCOL),
    ] {
        rig.input(Input::Ask(FLOW, want));
        assert_eq!(rig.take(), [Output::Refused(FLOW, result, ERROR_LIFETIME)]);
    }
    assert_eq!(rig.calls(), Vec::<String>::new());
    let long = "ü".repeat(100);
    rig.input(Input::Ask(FLOW, Want { terms: Terms { description: long, ..want(1).terms }, ..want(8080) }));
    assert_eq!(rig.model.entries[&("TCP".to_owned(), 8080)].description, "ü".repeat(24));
}

//! Versions that a server does not speak: RFC 6887 §9.

use super::*;

/// RFC 6887 §9 and pcp.md 10: a server of another version, PCP or NAT-PMP, in either layout: whoever waits hears it,
/// nothing is asked for the lifetime (30 s to 30 min), then PCP is tried again.
#[test]
fn a_server_of_another_version() {
    let pcp_v3 = |lifetime: u32| {
        let mut bytes = vec![3, 0x81, 0, 1];
        bytes.extend(lifetime.to_be_bytes());
        bytes.extend([0; 16]);
        bytes
    };
    for (bytes, version, wait) in [
        (pcp_v3(1800), 3, 1800),
        (pcp_v3(5), 3, 30),
        (pcp_v3(u32::MAX), 3, 1800),
        (vec![0, 0, 0, 1, 0, 0, 0, 9], 0, 30),   // RFC 6886's figure
        (vec![0, 129, 0, 1, 0, 0, 0, 9], 0, 30), // the common daemon
    ] {
        let mut rig = Rig::new();
        rig.ask(FLOW, want());
        rig.ask(FlowId(2), Want { internal_port: 1, ..want() });
        let refused = |flow| Output::Refused(flow, ResultCode::UNSUPP_VERSION, Duration::from_secs(wait));
        let out = rig.datagram(&bytes);
        assert_eq!(out, [refused(FLOW), refused(FlowId(2)), Output::VersionRefused(version)]);
        assert_eq!(rig.run(wait * 1000 - 1), [], "{bytes:?}");
        let held = Output::Refused(FLOW, ResultCode::UNSUPP_VERSION, Duration::from_millis(1));
        assert_eq!(rig.input(Input::Ask(FLOW, want())), [held]);
        rig.now += 1;
        rig.ask(FLOW, want());
    }
}

/// Security policy: no downgrade against better knowledge, and none that was not asked for.
#[test]
fn a_server_that_has_spoken_pcp_is_not_believed_to_be_another() {
    let nat_pmp = [0, 0, 0, 1, 0, 0, 0, 9];
    let mut rig = Rig::new();
    assert_eq!(rig.datagram(&nat_pmp), [], "nothing was asked");
    assert_eq!(rig.client.ignored(), 1);

    let (mut rig, _) = Rig::holding(endless(), 86_400);
    rig.ask(FlowId(2), Want { internal_port: 1, ..want() });
    rig.now = 3_599_999;
    assert_eq!(rig.datagram(&nat_pmp), []);
    assert_eq!(rig.client.ignored(), 1);
    rig.now = 3_600_000;
    let refused = Output::Refused(FlowId(2), ResultCode::UNSUPP_VERSION, Duration::from_secs(30));
    assert_eq!(rig.datagram(&nat_pmp), [refused, Output::VersionRefused(0)]);
    assert!(rig.client.grant(FLOW).is_some(), "what stands is kept");
}

/// A refusal that names our own version makes no sense.
#[test]
fn version_2_refused_by_version_2_is_ignored() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, want());
    assert_eq!(rig.answer(&rig.error(&request, ResultCode::UNSUPP_VERSION, 30)), []);
    assert_eq!(rig.client.ignored(), 1);
}

/// RFC 6887 §7.4 and pcp.md 7: after NO_RESOURCES no new mapping is asked for; those that stand are renewed.
#[test]
fn no_resources_holds_new_mappings_back() {
    let (mut rig, _) = Rig::holding(endless(), 400);
    let request = rig.ask(FlowId(2), Want { internal_port: 1, ..want() });
    let refused = |flow, secs| Output::Refused(flow, ResultCode::NO_RESOURCES, Duration::from_secs(secs));
    assert_eq!(rig.answer(&rig.error(&request, ResultCode::NO_RESOURCES, 300)), [refused(FlowId(2), 300)]);
    rig.now = 100_000;
    assert_eq!(rig.input(Input::Ask(FlowId(3), want())), [refused(FlowId(3), 200)]);
    let renewal = sent(&rig.run(260_000)).remove(0).1;
    // To a renewal it means the same.
    rig.answer(&rig.error(&renewal, ResultCode::NO_RESOURCES, 300));
    rig.now = 310_000;
    assert_eq!(rig.input(Input::Ask(FlowId(3), want())), [refused(FlowId(3), 250)]);
    rig.now = 560_000;
    rig.ask(FlowId(3), want());
}

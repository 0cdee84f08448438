//! Routers that are silent, lie, or are somebody else; and addresses that come and go.

use super::*;

fn said(body: &str) -> HttpOutcome {
    HttpOutcome::Answer { status: 200, body: body.as_bytes().to_vec() }
}

/// What is no answer to what was asked is counted, and nothing of it believed; it is asked again, ever more slowly.
#[test]
fn what_is_no_answer() {
    let other = "<Envelope><Body><GetNATRSIPStatusResponse><NewUptime>1</NewUptime></GetNATRSIPStatusResponse></Body></Envelope>";
    for outcome in [
        said(""),
        said("<html>Log in</html>"),
        said(other),
        said(&"<a>".repeat(20_000)),
        HttpOutcome::Answer { status: 302, body: Vec::new() },
        HttpOutcome::Answer { status: 404, body: b"<h1>no</h1>".to_vec() },
        HttpOutcome::Failed,
    ] {
        let mut rig = Rig::new(1);
        rig.model.says = Some(outcome.clone());
        rig.input(Input::Ask(FLOW, want(8080)));
        rig.run(600_000);
        assert_eq!(rig.take(), [Output::Silent], "{outcome:?}");
        assert!(!rig.client.holds(FLOW));
        let calls = rig.model.take_calls().len();
        assert!((8..40).contains(&calls), "{calls} in ten minutes");
        let counted = rig.client.ignored() > 0;
        assert_eq!(counted, outcome != HttpOutcome::Failed);
        // All is well again at once when it answers.
        rig.model.says = None;
        rig.run(670_000);
        let outputs = rig.take();
        assert!(matches!(outputs[..], [Output::Answering, Output::Granted(FLOW, _)]), "{outputs:?}");
    }
}

/// An exchange that nobody tells the outcome of ends by itself, and a late outcome means nothing.
#[test]
fn outcomes_that_do_not_come() {
    let mut rig = Rig::new(1);
    rig.answers = false;
    rig.input(Input::Ask(FLOW, want(8080)));
    let first = rig.asked.pop().unwrap();
    rig.run(9999);
    assert_eq!(rig.asked, []);
    rig.run(11_000);
    assert_eq!(rig.asked.len(), 1, "once more");
    let late = rig.model.answer(rig.at(), HERE, &first);
    rig.input(Input::Http(first.id, &late));
    assert_eq!((rig.asked.len(), rig.take()), (1, vec![]));
    rig.answers = true;
    rig.served();
    assert_eq!(rig.take(), [rig.granted(FLOW, 8080, 3600)]);
}

/// Somebody who waits does not wait for the pause after a failure of something else.
#[test]
fn a_control_point_waits_for_no_pause() {
    let mut rig = Rig::new(1);
    rig.model.says = Some(HttpOutcome::Failed);
    rig.input(Input::Ask(FLOW, Want { urgent: false, ..want(8080) }));
    rig.run(40_000);
    rig.model.says = None;
    rig.model.take_calls();
    rig.run(41_100);
    rig.input(Input::Ask(FlowId(2), want(9090)));
    rig.run(41_500);
    assert!(rig.client.holds(FlowId(2)), "{:?}", rig.outputs);
}

/// It says that it maps, and does not: a control point does not go on believing it.
#[test]
fn a_router_that_lies() {
    let mut rig = Rig::new(1);
    rig.model.lies = true;
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.run(60_000);
    let outputs = rig.take();
    assert_eq!(outputs.last(), Some(&Output::Lost(FLOW)), "{outputs:?}");
    assert!(!rig.client.has(FLOW));
    let mut rig = Rig::new(2);
    rig.answers = false;
    rig.input(Input::Ask(FLOW, any(8080)));
    rig.answer(&said(
        "<Envelope><Body><AddAnyPortMappingResponse><NewReservedPort>0</NewReservedPort></AddAnyPortMappingResponse></Body></Envelope>",
    ));
    assert_eq!(rig.take(), [Output::Refused(FLOW, ResultCode::NETWORK_FAILURE, ERROR_LIFETIME)]);
    assert_eq!(rig.client.ignored(), 1);
}

/// Every refusal that there is ends the wish, or leads another way; none of them spins.
#[test]
fn faults_of_every_kind() {
    let actions = ["AddPortMapping", "AddAnyPortMapping", "DeletePortMapping", "GetSpecificPortMappingEntry"];
    let others = ["GetExternalIPAddress", "GetStatusInfo"];
    for action in actions.into_iter().chain(others) {
        for error in UpnpError::KNOWN {
            for (version, wish) in [(1, want(8080)), (1, any(8080)), (2, any(8080))] {
                let mut rig = Rig::new(version);
                rig.model.refuses.insert(action, *error);
                rig.input(Input::Ask(FLOW, wish));
                assert!(!rig.outputs.is_empty(), "{action} {error}");
                let calls = rig.model.take_calls().len();
                assert!(calls <= 40, "{action} {error}: {calls}");
                rig.run(100_000);
                rig.input(Input::Delete(FLOW));
                rig.run(200_000);
                assert!(!rig.client.has(FLOW) || action == "DeletePortMapping", "{action} {error}");
            }
        }
    }
}

#[test]
fn the_external_address() {
    let mut rig = Rig::new(1);
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.take();
    // Another one: told, and every mapping with it.
    rig.model.external = "203.0.114.9";
    rig.run(30_000);
    let outputs = rig.take();
    let addr = Ipv4Addr::new(203, 0, 114, 9);
    let moved = rig.client.grant(FLOW).unwrap();
    assert_eq!(moved.external.ip(), addr);
    assert_eq!(outputs, [Output::External(Some(addr)), Output::Granted(FLOW, moved)]);
    // None: nothing is mapped meanwhile.
    rig.model.external = "";
    rig.run(60_000);
    rig.calls();
    rig.input(Input::Ask(FlowId(2), want(9090)));
    rig.input(Input::Ask(FlowId(3), Want { urgent: false, ..want(9091) }));
    let refused = Output::Refused(FlowId(2), ResultCode::NETWORK_FAILURE, ERROR_LIFETIME);
    assert_eq!((rig.take(), rig.calls().len()), (vec![Output::External(None), refused.clone()], 0));
    // Of another NAT: never told as if it were public.
    for behind in ["10.1.2.3", "100.64.0.7", "192.168.1.20"] {
        rig.model.external = behind;
        rig.run(rig.now + 30_000);
        assert_eq!(rig.take(), [Output::NatAbove(behind.parse().unwrap())]);
        rig.input(Input::Ask(FlowId(2), want(9090)));
        assert_eq!(rig.take(), std::slice::from_ref(&refused));
    }
    // Garbage changes nothing.
    rig.model.external = "far away";
    let before = rig.client.ignored();
    rig.run(rig.now + 30_000);
    assert_eq!((rig.take(), rig.client.ignored()), (vec![], before + 1));
    // There is one: who waits in the background has a mapping at last.
    rig.model.external = "203.0.114.9";
    rig.run(rig.now + 30_000);
    let outputs = rig.take();
    assert!(matches!(outputs[..], [Output::External(Some(_)), Output::Granted(FlowId(3), _)]), "{outputs:?}");
}

/// The socket is gone, and there again: perhaps at another address.
#[test]
fn the_way_to_it() {
    let mut rig = Rig::new(1);
    rig.input(Input::Ask(FLOW, want(8080)));
    rig.answers = false;
    rig.input(Input::Ask(FlowId(2), want(9090)));
    rig.asked.clear();
    rig.input(Input::Closed);
    rig.run(100_000);
    assert_eq!(rig.asked, [], "nothing is asked");
    rig.answers = true;
    rig.input(Input::Source(IpAddr::V4(HERE)));
    assert!(rig.client.holds(FlowId(2)) && rig.client.holds(FLOW));
}

/// RFC 6887 or RFC 6886 at last.
#[test]
fn better_protocols_are_noticed() {
    let mut rig = Rig::new(1);
    rig.model.never_counts = true; // nothing else asks for it
    rig.run(599_000);
    assert!(!rig.outputs.iter().any(|output| matches!(output, Output::Transmit(_))));
    rig.run(601_000);
    let knocks: Vec<_> = rig.outputs.iter().filter(|output| matches!(output, Output::Transmit(_))).collect();
    let [Output::Transmit(knock)] = knocks[..] else { panic!("{knocks:?}") };
    let request = pcp::Request::parse(knock).unwrap();
    let answer = pcp::Response {
        result: ResultCode::SUCCESS,
        lifetime: 0,
        epoch: 1,
        body: Body::Announce,
        options: Vec::new(),
    };
    assert_eq!(request.body, Body::Announce);
    rig.take();
    rig.input(Input::Datagram("192.168.178.66:5351".parse().unwrap(), &answer.to_bytes()));
    rig.input(Input::Datagram(server(), b"nonsense"));
    assert_eq!((rig.take(), rig.client.ignored()), (vec![], 2));
    rig.input(Input::Datagram(server(), &answer.to_bytes()));
    assert_eq!(rig.take(), [Output::Speaks(UplinkProtocol::Pcp)]);
    rig.input(Input::Datagram(server(), b"\x00\x80\x00\x01\x00\x00\x00\x07"));
    assert_eq!(rig.take(), [Output::Speaks(UplinkProtocol::NatPmp)]);
}

/// Without a socket nothing is sent there; it is asked when there is one again.
#[test]
fn a_closed_socket_is_not_asked_for_better_protocols() {
    let is_knock = |output: &Output| matches!(output, Output::Transmit(_));
    let mut rig = Rig::new(1);
    rig.model.never_counts = true; // nothing else asks for it
    let announce = pcp::Response {
        result: ResultCode::SUCCESS,
        lifetime: 0,
        epoch: 1,
        body: Body::Announce,
        options: Vec::new(),
    };
    rig.input(Input::Closed);
    rig.run(2_000_000);
    rig.input(Input::Multicast(server(), &announce.to_bytes()));
    assert!(!rig.outputs.iter().any(is_knock), "{:?}", rig.outputs);
    rig.input(Input::Source(IpAddr::V4(HERE)));
    assert_eq!(rig.outputs.iter().filter(|output| is_knock(output)).count(), 1);
}

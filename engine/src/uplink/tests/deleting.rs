//! Deletes: RFC 6887 §15.

use super::*;

/// RFC 6887 §15.1: lifetime 0, suggested fields zero, the same nonce, neither FILTER nor PREFER_FAILURE, THIRD_PARTY
/// as before; repeated until it is confirmed.
#[test]
fn a_delete_is_repeated_until_it_is_confirmed() {
    let want =
        Want { third_party: Some(LAN_HOST.into()), remote_peers: RemotePeer::of(Some(EXTERNAL)), ..want() };
    let (mut rig, request) = Rig::holding(want, 3600);
    rig.now = 10_000;
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    let map = MapData { external_port: 0, external_addr: NO_ADDR_V4, ..map_of(&request) };
    let options = vec![PcpOption::ThirdParty(LAN_HOST.to_ipv6_mapped())];
    let expected = Request { lifetime: 0, body: Body::Map(map), options, ..request };
    assert_eq!(delete, expected);
    assert_eq!(rig.input(Input::Delete(FLOW)), [], "it is on its way");
    let again = sent(&rig.run(60_000));
    assert_eq!((again[0].0, again[1].0), (11_000, 13_000), "decision 1: somebody waits");
    assert!(again.iter().all(|(_, request)| *request == expected));
    assert_schedule(13_000, 3000, &again[2..]);
    let confirmed =
        Response { lifetime: 0, body: Body::Map(map), ..rig.error(&expected, ResultCode::SUCCESS, 0) };
    let out = rig.answer(&confirmed);
    assert_eq!(out.last(), Some(&Output::Deleted(FLOW)));
    assert!(!rig.client.has(FLOW));
    assert_eq!(rig.run(10_000_000), []);
}

/// What is never confirmed ends with its lifetime; without a grant it is tried for 30 s.
#[test]
fn an_unconfirmed_delete_ends_with_the_lifetime() {
    let (mut rig, _) = Rig::holding(want(), 100);
    rig.now = 10_000;
    rig.input(Input::Delete(FLOW));
    let out = rig.run(1_000_000);
    assert_eq!(out.last(), Some(&(100_000, Output::Deleted(FLOW))));
    assert_eq!(rig.client.next_timeout(), None);

    let mut rig = Rig::new();
    rig.ask(FLOW, want());
    rig.input(Input::Delete(FLOW));
    let out = rig.run(1_000_000);
    assert_eq!(out.last(), Some(&(30_000, Output::Deleted(FLOW))));
}

/// T-15, pcp.md 9: a server may keep a deleted mapping for its idle time and say so; but a late answer to the request
/// before looks the same, and is not believed at first.
#[test]
fn a_delete_answered_with_a_lifetime() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, want());
    rig.input(Input::Delete(FLOW));
    assert_eq!(rig.answer(&rig.success(&request, 3600)), [Output::Answering], "the answer to the request");
    assert!(rig.client.has(FLOW));
    assert_eq!(sent(&rig.run(1000)).len(), 1);
    assert_eq!(rig.answer(&rig.success(&request, 120)), [Output::Deleted(FLOW)]);
}

/// R-29, T-15, K-17: NO_RESOURCES is what the most deployed server says when there is nothing to delete. Any other refusal
/// leaves the mapping as it was.
#[test]
fn a_refused_delete() {
    let (mut rig, request) = Rig::holding(endless(), 400);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    let late = rig.error(&request, ResultCode::NETWORK_FAILURE, 30);
    assert_eq!(rig.answer(&late), [], "it echoes PREFER_FAILURE: the answer to the request before");
    assert_eq!(rig.answer(&rig.error(&delete, ResultCode::NO_RESOURCES, 30)), [Output::Deleted(FLOW)]);
    rig.ask(FLOW, want()); // and it is no reason to hold back

    let (mut rig, _) = Rig::holding(endless(), 400);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    let out = rig.answer(&rig.error(&delete, ResultCode::NOT_AUTHORIZED, 400));
    assert_eq!(out, [Output::DeleteRefused(FLOW, ResultCode::NOT_AUTHORIZED)]);
    let (at, renewal) = sent(&rig.run(300_000)).remove(0);
    assert!((200_000..250_000).contains(&at), "{at}: it is renewed as before");
    assert_eq!(map_of(&renewal).external_port, 8080);

    // The server has lost its state meanwhile, and then refuses to delete what it does not have: it is asked for again.
    let (mut rig, _) = Rig::holding(endless(), 3600);
    rig.run(100_000);
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    rig.epoch = 0;
    let bytes = rig.announce(100);
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [Output::StateLost]);
    let out = rig.answer(&rig.error(&delete, ResultCode::NOT_AUTHORIZED, 400));
    assert_eq!(out, [Output::DeleteRefused(FLOW, ResultCode::NOT_AUTHORIZED)]);
    let again = sent(&rig.run(106_000));
    assert_eq!((again[0].1.lifetime, map_of(&again[0].1).external_port), (u32::MAX, 8080));

    let mut rig = Rig::new();
    rig.ask(FLOW, want());
    let delete = only_sent(&rig.input(Input::Delete(FLOW)));
    let out = rig.answer(&rig.error(&delete, ResultCode::CANNOT_PROVIDE_EXTERNAL, 30));
    assert_eq!(out, [Output::Answering, Output::Deleted(FLOW)], "nothing was granted, so nothing is left");
}

#[test]
fn a_forgotten_flow_is_silent() {
    let (mut rig, request) = Rig::holding(want(), 400);
    assert_eq!(rig.input(Input::Forget(FLOW)), []);
    assert_eq!(rig.client.next_timeout(), None);
    assert_eq!(rig.answer(&rig.success(&request, 400)), []);
    for input in
        [Input::Delete(FLOW), Input::Extend(FLOW, extended(None)), Input::Forget(FLOW), Input::Timeout]
    {
        assert_eq!(rig.input(input), []);
    }
}

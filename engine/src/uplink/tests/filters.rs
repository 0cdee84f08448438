//! Filters that the server may have of an earlier life: RFC 6887 §13.3.

use super::*;

const PEER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// The prefix lengths of a request's FILTERs.
fn filters(request: &Request) -> Vec<u8> {
    let filter = |option: &PcpOption| match option {
        PcpOption::Filter(filter) => Some(filter.prefix_len),
        _ => None,
    };
    request.options.iter().filter_map(filter).collect()
}

/// RFC 6887 §13.3: filters of an earlier life are dropped by the first request for that mapping, and it is known before it is
/// sent that there may be some; once the server has confirmed that, and for other mappings, there is no more to drop.
#[test]
fn filters_of_an_earlier_life_are_dropped() {
    let known = Filtered {
        source: Some(IpAddr::V4(SOURCE)),
        third_party: None,
        protocol: Protocol::TCP,
        internal_port: 8080,
    };
    for (remote_peer, first) in [(None, &[0][..]), (Some(PEER), &[0, 128])] {
        let mut rig = Rig::new();
        rig.client.set_filters(Filters::restored([known]));
        let other = rig.ask(FlowId(2), Want { internal_port: 8081, ..endless() });
        assert_eq!(filters(&other), [] as [u8; 0]);
        let ask = Input::Ask(FLOW, Want { remote_peers: RemotePeer::of(remote_peer), ..endless() });
        rig.client.handle_input(Instant::default(), ask, &mut *rig.entropy);
        assert_eq!(rig.client.poll_output(), Some(Output::Filtered(known)), "stored, then sent");
        let request = only_sent(&rig.drain());
        assert_eq!(filters(&request), first);
        // A late answer to what an earlier life has sent confirms nothing.
        let mut late = rig.success(&request, 3600);
        late.options.retain(|option| !matches!(option, PcpOption::Filter(filter) if filter.prefix_len == 0));
        let granted = rig.answer(&late).iter().any(|output| matches!(output, Output::Granted(..)));
        assert!(granted, "it stands");
        let mut again = sent(&rig.run(1000));
        again.retain(|(_, request)| map_of(request).internal_port == 8080);
        assert_eq!(
            again.len(),
            usize::from(remote_peer.is_some()),
            "a server that passes filters over has none"
        );
        assert!(again.iter().all(|(_, request)| filters(request) == first));
        rig.answer(&rig.success(&request, 3600));
        let renewed = sent(&rig.run(2_250_000));
        let renewed = renewed.iter().map(|(_, request)| filters(request)).next_back();
        assert_eq!(renewed.as_deref(), Some(&first[1..]), "once is enough");
    }
}

/// What a server without one option or the other is asked, step by step: only a refusal that is about the filters ends the
/// attempt to drop them, and a mapping that stands is not lost by it.
#[test]
fn refusals_while_filters_are_dropped() {
    let known = Filtered {
        source: Some(IpAddr::V4(SOURCE)),
        third_party: None,
        protocol: Protocol::TCP,
        internal_port: 8080,
    };
    let unsupported = ResultCode::UNSUPP_OPTION;
    // Whether a request has PREFER_FAILURE, and its filters.
    type Requests = &'static [(bool, &'static [u8])];
    let rows: [(ResultCode, Requests, Option<Ipv4Addr>); 4] = [
        // Without PREFER_FAILURE the server drops them.
        (unsupported, &[(true, &[0]), (false, &[0])], None),
        // It knows no FILTER: so there are none, and PREFER_FAILURE was not the fault.
        (unsupported, &[(true, &[0]), (false, &[0]), (true, &[])], None),
        // It knows FILTER, but not how to drop them.
        (unsupported, &[(true, &[0, 128]), (false, &[0, 128]), (true, &[128])], Some(PEER)),
        (ResultCode::EXCESSIVE_REMOTE_PEERS, &[(true, &[0, 128]), (true, &[128])], Some(PEER)),
    ];
    for (result, requests, remote_peer) in rows {
        let mut rig = Rig::new();
        rig.client.set_filters(Filters::restored([known]));
        let want = Want { remote_peers: RemotePeer::of(remote_peer), ..want() };
        let mut request = rig.ask(FLOW, want);
        for (nth, &(strict, prefixes)) in requests.iter().enumerate() {
            let carries = request.options.contains(&PcpOption::PreferFailure);
            assert_eq!((carries, filters(&request)), (strict, prefixes.to_vec()), "{result}, request {nth}");
            if nth + 1 < requests.len() {
                let refused = rig.error(&request, result, 1800);
                let out = rig.answer(&refused);
                let sent = out.iter().find_map(|output| match output {
                    Output::Transmit(bytes) => Request::parse(bytes).ok(),
                    _ => None,
                });
                request = sent.unwrap_or_else(|| panic!("{out:?}"));
                // A copy of that refusal comes late: it is not about the request that lacks what was refused.
                assert_eq!(rig.answer(&refused), [], "{result}, request {nth}");
            }
        }
        let out = rig.answer(&rig.success(&request, 3600));
        assert!(matches!(out.last(), Some(Output::Granted(..))), "{out:?}");
    }
}

/// A late answer to a request that dropped filters before another remote peer was let in says nothing of that one.
#[test]
fn an_answer_counts_for_the_filters_that_it_repeats() {
    let mut rig = Rig::new();
    let request = rig.ask(FLOW, Want { remote_peers: RemotePeer::of(Some(PEER)), ..endless() });
    rig.answer(&rig.success(&request, 3600));
    let second =
        only_sent(&rig.input(Input::Filter(FLOW, RemotePeer::of(Some(Ipv4Addr::new(203, 0, 113, 10))))));
    let third =
        only_sent(&rig.input(Input::Filter(FLOW, RemotePeer::of(Some(Ipv4Addr::new(203, 0, 113, 11))))));
    rig.answer(&rig.success(&second, 3600));
    let to = rig.now + 1500;
    let again = sent(&rig.run(to));
    assert_eq!(again.iter().map(|(_, request)| request).collect::<Vec<_>>(), [&third], "it is repeated");
    rig.answer(&rig.success(&third, 3600));
    let to = rig.now + 60_000;
    assert_eq!(sent(&rig.run(to)), []);
}

/// A request of an earlier owner, by the same nonce, reaches the server after the one that dropped its filter, and sets that again. The
/// answer shows it, whatever mapping stands now.
#[test]
fn a_filter_that_was_set_again_by_a_late_request_is_dropped() {
    for remote_peer in [None, Some(Ipv4Addr::new(203, 0, 113, 10))] {
        let (mut rig, request) =
            Rig::holding(Want { remote_peers: RemotePeer::of(remote_peer), ..endless() }, 3600);
        let filter = Filter { prefix_len: 128, remote_port: 0, remote_addr: PEER.to_ipv6_mapped() };
        let mut late = rig.success(&request, 29);
        late.options = vec![PcpOption::Filter(filter)];
        let out = rig.answer(&late);
        let (granted, asked): (Vec<_>, Vec<_>) =
            out.into_iter().partition(|output| matches!(output, Output::Granted(..)));
        assert_eq!(granted.len(), 1, "it stands");
        let again = only_sent(&asked);
        assert_eq!(filters(&again), [0, 128][..1 + usize::from(remote_peer.is_some())], "{remote_peer:?}");
        assert_eq!(rig.answer(&late).len(), 1, "its copy says no more");
        rig.answer(&rig.success(&again, 3600));
        let to = rig.now + 60_000;
        assert_eq!(sent(&rig.run(to)), []);
        // A server that has it all the same is not asked without end.
        rig.answer(&late);
        let to = rig.now + 3_000_000;
        let asked = sent(&rig.run(to));
        assert!((2..20).contains(&asked.len()), "{}", asked.len());
    }
}

/// The same for an address of the router that it has had before; a third party's mapping is the same whoever asks.
#[test]
fn filters_of_an_earlier_address_are_dropped() {
    let elsewhere = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77));
    for third_party in [None, Some(LAN_HOST.into())] {
        let mut rig = Rig::new();
        let request =
            rig.ask(FLOW, Want { third_party, remote_peers: RemotePeer::of(Some(PEER)), ..endless() });
        rig.answer(&rig.success(&request, 3600));
        let after_move = |rig: &mut Rig, source| {
            rig.input(Input::Source(source));
            let to = rig.now + 5000;
            let request = sent(&rig.run(to)).pop().expect("it is asked for again").1;
            rig.answer(&rig.success(&request, 3600));
            filters(&request)
        };
        assert_eq!(after_move(&mut rig, elsewhere), [128], "the server there has none");
        let dropped = only_sent(&rig.input(Input::Filter(FLOW, RemotePeer::of(None))));
        assert_eq!(filters(&dropped), [0]);
        rig.answer(&rig.success(&dropped, 3600));
        let back = after_move(&mut rig, IpAddr::V4(SOURCE));
        assert_eq!(back, if third_party.is_none() { vec![0] } else { vec![] });
        assert_eq!(after_move(&mut rig, elsewhere), [] as [u8; 0]);
    }
}

/// A request with a filter of which each copy was refused leaves none; one whose first copy may have got through may have.
#[test]
fn a_refusal_leaves_no_filters_behind() {
    for copies in [1, 2] {
        let mut rig = Rig::new();
        let request = rig.ask(FLOW, Want { remote_peers: RemotePeer::of(Some(PEER)), ..endless() });
        if copies == 2 {
            assert_eq!(sent(&rig.run(1000)).len(), 1);
        }
        let refused = rig.answer(&rig.error(&request, ResultCode::NETWORK_FAILURE, 30));
        assert!(matches!(refused[..], [Output::Answering, Output::Refused(..)]), "{refused:?}");
        let next = rig.ask(FlowId(2), endless());
        assert_eq!(filters(&next), if copies == 1 { vec![] } else { vec![0] });
    }
}

//! Epoch and announcements: RFC 6887 §8.5, §14.1.

use super::*;

/// A rig that holds four mappings of one day, and their first requests.
fn four_mappings() -> (Rig, Vec<Request>) {
    let mut rig = Rig::new();
    let mut requests = Vec::new();
    for n in 0..4 {
        let port = 8000 + u16::try_from(n).unwrap();
        let strict = n != 3;
        let request = rig.ask(
            FlowId(n),
            Want {
                internal_port: port,
                external_port: port,
                ..with(Terms { prefer_failure: strict, ..extended(None) })
            },
        );
        rig.answer(&rig.success(&request, 86_400));
        requests.push(request);
    }
    (rig, requests)
}

/// What the client sends for each mapping after a loss: the first request with the assigned values.
fn asked_again(first: &Request) -> Request {
    let map = map_of(first);
    Request { body: Body::Map(MapData { external_addr: EXTERNAL.to_ipv6_mapped(), ..map }), ..first.clone() }
}

/// The requests among the outputs by internal port, without repetitions.
fn by_port(outputs: &[(u64, Output)]) -> Vec<Request> {
    let mut requests: Vec<Request> = sent(outputs).into_iter().map(|(_, request)| request).collect();
    requests.sort_by_key(|request| map_of(request).internal_port);
    requests.dedup();
    requests
}

/// RFC 6887 §8.5: an epoch that fits says nothing.
#[test]
fn an_epoch_in_range_changes_nothing() {
    let (mut rig, requests) = four_mappings();
    rig.now = 100_000;
    let due = rig.client.next_timeout();
    for (multicast, epoch) in [(true, 1100), (false, 1102), (true, 1101)] {
        let bytes = rig.announce(epoch);
        let input =
            if multicast { Input::Multicast(server(), &bytes) } else { Input::Datagram(server(), &bytes) };
        assert_eq!(rig.input(input), [], "epoch {epoch}");
    }
    assert_eq!(rig.client.next_timeout(), due);
    assert_eq!(rig.answer(&rig.success(&requests[0], 86_400)).len(), 1);
}

/// RFC 6887 §8.5, §14.1.3, decision 16 and R-38: a lost state is made anew within recovery_wait, by the same nonces, the assigned
/// values, and PREFER_FAILURE where the owner counts on the port. The mapping whose answer told it is not asked again.
#[test]
fn a_lost_state_is_made_anew() {
    for by_announcement in [true, false] {
        let (mut rig, requests) = four_mappings();
        rig.now = 100_000;
        rig.epoch = 0; // the server lost its state 100 s ago
        let expected = if by_announcement {
            let bytes = rig.announce(100);
            assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [Output::StateLost]);
            vec![0, 1, 2, 3]
        } else {
            let out = rig.answer(&rig.success(&requests[2], 86_400));
            assert!(matches!(out[..], [Output::StateLost, Output::Granted(FlowId(2), _)]), "{out:?}");
            vec![0, 1, 3]
        };
        let asked = by_port(&rig.run(105_000));
        let expected: Vec<Request> = expected.iter().map(|&n: &usize| asked_again(&requests[n])).collect();
        assert_eq!(asked, expected, "by announcement: {by_announcement}");
        assert_eq!(asked.last().unwrap().options, [], "the AddAnyPortMapping one");
        for request in &asked {
            let out = rig.answer(&rig.success(request, 86_400));
            assert!(matches!(out.last(), Some(Output::Granted(..))), "{out:?}");
        }
        assert_eq!(rig.run(1_000_000), [], "and that is that");
    }
}

/// A server that restarts within seconds of its start shows nothing in its epoch (RFC 6887 §8.5 leaves 2 s of margin). But
/// it announces only after a loss (§14.1.2), and one that is younger than a mapping has lost it.
#[test]
fn an_announcement_by_a_server_younger_than_a_mapping_is_a_loss() {
    let mut rig = Rig::new();
    rig.epoch = 0;
    let request = rig.ask(FLOW, endless());
    rig.answer(&rig.success(&request, 3600));
    rig.now = 1_001;
    let bytes = rig.announce(0);
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [Output::StateLost]);
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [], "and its repetition says no more");
    assert_eq!(by_port(&rig.run(8_000)), [asked_again(&request)]);
}

/// A whole second is all that such a server shows of its age. What it gave in less than that before it announces itself is asked for
/// again without a word: it may be gone, or not.
#[test]
fn an_announcement_by_a_server_that_may_be_younger_than_a_mapping() {
    let mut rig = Rig::new();
    rig.epoch = 1;
    let request = rig.ask(FLOW, endless());
    rig.answer(&rig.success(&request, 3600));
    let bytes = rig.announce(1);
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), []);
    assert_eq!(rig.run(300), [], "it has given that in this life");
    let bytes = rig.announce(0);
    for _ in 0..3 {
        assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [], "no loss that anybody has seen");
    }
    assert_eq!(by_port(&rig.run(7_000)), [asked_again(&request)], "once");
    rig.epoch = 0;
    rig.answer(&rig.success(&request, 3600));
    let bytes = rig.announce(7);
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), []);
    assert_eq!(rig.run(40_000), [], "given since");
}

/// An answer tells the server's age as well, though it may have been on its way for long: what may be lost is asked for again without a
/// word, at most once.
#[test]
fn an_answer_of_a_server_that_may_be_younger_than_a_mapping() {
    let rows =
        [(46_000, 45, false), (46_001, 45, true), (46_000, 44, true), (1000, 0, false), (1001, 0, true)];
    for (age, epoch, again) in rows {
        let mut rig = Rig::new();
        rig.epoch = 0;
        let request = rig.ask(FLOW, endless());
        rig.answer(&rig.success(&request, 3600));
        rig.run(age);
        let bytes = rig.announce(epoch);
        for _ in 0..3 {
            assert_eq!(rig.input(Input::Datagram(server(), &bytes)), [], "{age} ms, epoch {epoch}");
        }
        let asked = by_port(&rig.run(age + 6_000));
        assert_eq!(asked, [asked_again(&request)][..usize::from(again)], "{age} ms, epoch {epoch}");
        rig.epoch = 10;
        rig.answer(&rig.success(&request, 3600));
        let to = rig.now + 60_000;
        assert_eq!(rig.run(to), [], "{age} ms, epoch {epoch}");
    }
}

/// A recovery that is not answered is repeated on the schedule of the RFC.
#[test]
fn recovery_is_repeated() {
    let (mut rig, _) = Rig::holding(endless(), 3600);
    rig.now = 100_000;
    let bytes = rig.announce(0);
    rig.input(Input::Datagram(server(), &bytes));
    let asked = sent(&rig.run(200_000));
    assert_schedule(asked[0].0, 3000, &asked[1..]);
    assert!(asked.len() >= 4);
}

/// Recovery refused for a passing reason: the mapping counts as standing until its lifetime ends.
#[test]
fn a_refused_recovery_is_tried_again() {
    let (mut rig, _) = Rig::holding(endless(), 3600);
    rig.now = 100_000;
    rig.epoch = 0;
    let bytes = rig.announce(100);
    rig.input(Input::Datagram(server(), &bytes));
    let (_, request) = sent(&rig.run(105_000)).remove(0);
    let out = rig.answer(&rig.error(&request, ResultCode::NETWORK_FAILURE, 30));
    assert_eq!(out, [Output::RenewalRefused(FLOW, ResultCode::NETWORK_FAILURE)]);
    let (at, again) = sent(&rig.run(3_500_000)).remove(0);
    assert!((1_800_000..2_250_000).contains(&at), "{at}");
    assert_eq!(map_of(&again).nonce, map_of(&request).nonce);
}

/// A recovery that has to wait (at most one in 10 s) comes all the same before the mapping ends.
#[test]
fn recovery_comes_before_the_end() {
    for seed in 0..20 {
        let mut rig = Rig::with_seed(seed);
        let request = rig.ask(FLOW, endless());
        rig.answer(&rig.success(&request, 3600));
        rig.run(100_000);
        rig.epoch = 0;
        let bytes = rig.announce(100);
        assert_eq!(rig.input(Input::Datagram(server(), &bytes)), [Output::StateLost]);
        let (_, again) = sent(&rig.run(105_000)).remove(0);
        rig.answer(&rig.success(&again, 6)); // it ends at 111 s
        rig.run(106_000);
        let bytes = rig.announce(5000);
        assert_eq!(rig.input(Input::Datagram(server(), &bytes)), [Output::StateLost]);
        assert_eq!(sent(&rig.run(108_500)).len(), 1, "seed {seed}: not at 110 s or later");
        assert!(rig.client.has(FLOW));
    }
}

/// Decision 16: after the wait at most four requests are unanswered at once, those whose owner asked last first.
#[test]
fn decision_16_four_in_flight_the_most_recently_used_first() {
    let mut rig = Rig::new();
    for n in 1..=10 {
        let port = 8000 + u16::try_from(n).unwrap();
        let want = Want { internal_port: port, external_port: port, ..endless() };
        let request = rig.ask(FlowId(n), want);
        rig.answer(&rig.success(&request, 86_400));
        rig.run(n * 1000);
    }
    rig.input(Input::Extend(FlowId(3), extended(None))); // its owner is the last one who asked
    rig.run(20_000);
    rig.epoch = 0;
    let bytes = rig.announce(20);
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), [Output::StateLost]);
    let mut waiting: Vec<Request> = sent(&rig.run(25_000)).into_iter().map(|(_, request)| request).collect();
    let mut order: Vec<u16> = waiting.iter().map(|request| map_of(request).internal_port).collect();
    assert_eq!(order, [8003, 8010, 8009, 8008], "no more before one is answered");
    while let Some(request) = waiting.pop() {
        let out = rig.answer(&rig.success(&request, 86_400));
        let next: Vec<Request> = out
            .iter()
            .filter_map(|output| match output {
                Output::Transmit(bytes) => Some(Request::parse(bytes).unwrap()),
                _ => None,
            })
            .collect();
        assert!(next.len() <= 1, "one for one");
        order.extend(next.iter().map(|request| map_of(request).internal_port));
        waiting.extend(next);
    }
    assert_eq!(order, [8003, 8010, 8009, 8008, 8007, 8006, 8005, 8004, 8002, 8001]);
    assert_eq!(sent(&rig.run(rig.now + 60_000)).len(), 0, "each once");
}

/// Security policy: recovery at most every 10 s; a server whose epochs make no sense causes no storm.
#[test]
fn recovery_is_bounded() {
    let (mut rig, _) = four_mappings();
    let mut losses = 0;
    let mut asked = 0;
    for second in 1..=60 {
        let out = rig.run(second * 1000);
        for (_, request) in sent(&out) {
            asked += 1;
            let answer = rig.success(&request, 86_400); // with the first epoch again, to make it worse
            losses += rig.answer(&answer).iter().filter(|output| **output == Output::StateLost).count();
        }
        let bytes = rig.announce(if second % 2 == 0 { 5_000_000 } else { 0 });
        losses +=
            rig.input(Input::Multicast(server(), &bytes)).iter().filter(|o| **o == Output::StateLost).count();
    }
    assert!((2..=7).contains(&losses), "{losses}");
    assert!((8..=7 * 4).contains(&asked), "{asked}");
}

/// Security policy: an announcement counts only from the server's address and port.
#[test]
fn announcements_of_others_are_ignored() {
    let (mut rig, _) = four_mappings();
    rig.now = 100_000;
    let due = rig.client.next_timeout();
    let bytes = rig.announce(0);
    for from in ["192.0.2.2:5351", "192.0.2.1:5350"] {
        assert_eq!(rig.input(Input::Multicast(from.parse().unwrap(), &bytes)), []);
    }
    let map =
        Response { body: Body::Map(map_of(&rig.ask(FLOW, want()))), ..Response::parse(&bytes).unwrap() };
    assert_eq!(rig.input(Input::Multicast(server(), &map.to_bytes())), [], "no MAP response by multicast");
    assert_eq!(rig.client.ignored(), 3);
    rig.input(Input::Forget(FLOW));
    assert_eq!(rig.client.next_timeout(), due);
}

/// The socket was gone for a while, and with it an announcement, perhaps: one mapping is asked for again, and its answer tells what becomes
/// of the others. A link that comes and goes costs no more than one request in 10 s.
#[test]
fn a_new_socket_is_a_reason_to_ask() {
    for lost in [false, true] {
        let (mut rig, requests) = four_mappings();
        let mut out = Vec::new();
        for n in 0..5 {
            out.extend(rig.run(100_000 + n * 200));
            rig.input(Input::Closed);
            assert_eq!(rig.input(Input::Source(IpAddr::V4(SOURCE))), []);
        }
        out.extend(rig.run(102_200));
        let asked = sent(&out);
        let [(_, asked)] = &asked[..] else { panic!("{asked:?}") };
        assert_eq!(*asked, asked_again(&requests[3]), "the one whose owner asked last");
        if lost {
            rig.epoch = 0; // 100 s ago
        }
        let told = rig.answer(&rig.success(asked, 86_400)).contains(&Output::StateLost);
        let others = by_port(&rig.run(110_000));
        let expected: Vec<Request> = requests[..3].iter().map(asked_again).collect();
        assert_eq!((told, &others[..]), (lost, if lost { &expected[..] } else { &[] }));
    }
}

/// another address of ours; the server knows none of our mappings under it.
#[test]
fn a_new_source_address_makes_everything_anew() {
    let (mut rig, requests) = four_mappings();
    rig.now = 100_000;
    let new = Ipv4Addr::new(192, 0, 2, 77);
    assert_eq!(rig.input(Input::Source(IpAddr::V4(new))), []);
    let asked = by_port(&rig.run(115_000));
    let expected: Vec<Request> = requests
        .iter()
        .map(|request| Request { client_addr: new.to_ipv6_mapped(), ..asked_again(request) })
        .collect();
    assert_eq!(asked, expected);
    // Another epoch is no loss: it may be another server behind the same address.
    rig.epoch = 7;
    let out = rig.answer(&rig.success(&expected[0], 600));
    assert!(!out.contains(&Output::StateLost), "{out:?}");
    assert!(matches!(out.last(), Some(Output::Granted(..))), "{out:?}");
}

//! When a mapping is renewed, and what ends it: RFC 6887 §11.2.1, decision 15.

use super::*;

/// RFC 6887 §11.2.1: within [1/2, 5/8) of the granted lifetime, then [3/4, 13/16), …, never closer than 4 s; the
/// assigned values suggested, the nonce kept (§8.1.1), one datagram a try.
#[test]
fn renewals_by_the_granted_lifetime() {
    for seed in 0..50 {
        let mut rig = Rig::with_seed(seed);
        let request = rig.ask(FLOW, Want { external_port: 0, ..endless() });
        rig.answer(&rig.success(&request, 320));
        let out = rig.run(320_000);
        let mut renewals = sent(&out);
        assert_eq!(renewals.pop().map(|(at, last)| (at, last.lifetime)), Some((320_000, 0)), "given back");
        let windows = [(160, 200), (240, 260), (280, 290), (300, 305), (310, 313)];
        // After the five of the windows, 10 to 7 s before the end, there is room for one more at 4 s of distance, or two.
        assert!((6..=7).contains(&renewals.len()), "seed {seed}: {} renewals", renewals.len());
        for ((at, _), (from, to)) in renewals.iter().zip(windows) {
            assert!((from * 1000..=to * 1000).contains(at), "seed {seed}: {at} ms not in {from}..{to} s");
        }
        assert!(renewals.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 4000), "seed {seed}");
        let map =
            MapData { external_port: 40_000, external_addr: EXTERNAL.to_ipv6_mapped(), ..map_of(&request) };
        let expected = Request { body: Body::Map(map), options: vec![PcpOption::PreferFailure], ..request };
        assert!(renewals.iter().all(|(_, renewal)| *renewal == expected), "seed {seed}");
        assert!(out.contains(&(320_000, Output::Lost(FLOW))), "seed {seed}");
        assert_eq!(rig.run(400_000).last(), Some(&(350_000, Output::Deleted(FLOW))));
        assert_eq!(rig.client.next_timeout(), None);
    }
}

/// A renewal takes along those that may come then as well: which is in their windows, in number bounded, and no other.
#[test]
fn renewals_go_together() {
    let mut rig = Rig::with_seed(3);
    let made = |n: u64| FlowId(100 + n);
    for n in 0..40 {
        let port = 8000 + u16::try_from(n).unwrap();
        // The last ten come later, so that their windows begin when those of the others have ended; five have leases of their own.
        rig.now = if n < 30 { n * 10 } else { 60_000 };
        let want = if n < 5 { lasting(Some(Instant::from_secs(300))) } else { endless() };
        let request = rig.ask(made(n), Want { internal_port: port, external_port: port, ..want });
        rig.answer(&rig.success(&request, if n < 5 { 300 } else { 320 }));
    }
    let out = sent(&rig.run(215_000));
    let mut moments: Vec<(u64, usize)> = Vec::new();
    for (at, request) in &out {
        assert!((160_000..=200_300).contains(at), "{at}");
        assert!((8005..8030).contains(&map_of(request).internal_port));
        match moments.last_mut().filter(|(last, _)| last == at) {
            Some((_, number)) => *number += 1,
            None => moments.push((*at, 1)),
        }
    }
    assert_eq!(out.len(), 25, "each once");
    assert!(moments.len() <= 4 && moments.iter().all(|(_, number)| *number <= 16), "{moments:?}");
}

/// Renewed, the timetable starts anew from the answer, by the new lifetime.
#[test]
fn a_renewal_is_granted_anew() {
    let (mut rig, _) = Rig::holding(endless(), 400);
    let renewal = sent(&rig.run(250_000)).remove(0).1;
    let out = rig.answer(&rig.success(&renewal, 100));
    let since = Instant::from_secs(250);
    let grant =
        Grant { external: SocketAddr::from((EXTERNAL, 8080)), lifetime: Duration::from_secs(100), since };
    assert_eq!(out, [Output::Granted(FLOW, grant)]);
    assert_eq!(rig.client.grant(FLOW), Some(grant));
    let (at, _) = sent(&rig.run(400_000)).remove(0);
    assert!((300_000..312_500).contains(&at), "{at}");
}

/// and iwf.md 2.5: renewals ask for what is left of the lease, so that both end together; when the grant
/// reaches to the end, nothing more is asked.
#[test]
fn the_last_renewal_asks_for_the_remainder() {
    let lease_ends = Some(Instant::from_secs(500));
    let (mut rig, first) = Rig::holding(lasting(lease_ends), 400);
    assert_eq!(first.lifetime, 500);
    let (at, renewal) = sent(&rig.run(250_000)).remove(0);
    assert_eq!(u64::from(renewal.lifetime), 500 - at / 1000);
    rig.now = at;
    rig.answer(&rig.success(&renewal, renewal.lifetime));
    let out = rig.run(600_000);
    assert_eq!(sent(&out), [], "the mapping now lasts as long as the lease");
    assert!(matches!(&out[..], [(at, Output::Lost(FLOW))] if (500_000..501_000).contains(at)), "{out:?}");
}

/// An owner who asks again moves the end; the timetable follows.
#[test]
fn an_extended_lease_is_renewed_again() {
    let lease_ends = Some(Instant::from_secs(400));
    let (mut rig, _) = Rig::holding(lasting(lease_ends), 400);
    assert_eq!(sent(&rig.run(100_000)), []);
    assert_eq!(rig.input(Input::Extend(FLOW, extended(Some(Instant::from_secs(4000))))), []);
    let (at, renewal) = sent(&rig.run(250_000)).remove(0);
    assert!((200_000..250_000).contains(&at), "{at}");
    assert_eq!(u64::from(renewal.lifetime), (4_000_000 - at).div_ceil(1000));
}

/// A client that asks again every second moves the end of its lease, never the renewal.
#[test]
fn refreshes_do_not_starve_renewals() {
    let (mut rig, request) = Rig::holding(endless(), 120);
    let mut renewals = 0;
    for second in 1..600_u64 {
        for (_, renewal) in sent(&rig.run(second * 1000)) {
            renewals += 1;
            rig.answer(&rig.success(&renewal, 120));
        }
        assert!(rig.client.has(FLOW), "lost after {second} s");
        rig.input(Input::Extend(FLOW, extended(Some(Instant::from_secs(second + 3600)))));
    }
    assert!((7..=11).contains(&renewals), "{renewals} in ten minutes of a lifetime of two: {request:?}");
}

/// Decision 15: a refused renewal is told, and tried again on the timetable until the lifetime ends.
#[test]
fn a_refused_renewal_is_tried_again() {
    let (mut rig, _) = Rig::holding(endless(), 400);
    let renewal = sent(&rig.run(250_000)).remove(0).1;
    let out = rig.answer(&rig.error(&renewal, ResultCode::NETWORK_FAILURE, 30));
    assert_eq!(out, [Output::RenewalRefused(FLOW, ResultCode::NETWORK_FAILURE)]);
    let out = rig.run(1_000_000);
    assert!((300_000..325_000).contains(&sent(&out)[0].0), "{out:?}");
    assert!(out.contains(&(400_000, Output::Lost(FLOW))), "{out:?}");
    // The last renewal was not answered, and may have got through: what it has made is taken back.
    assert_eq!(sent(&out).last().map(|(_, last)| last.lifetime), Some(0));
    assert_eq!(out.last(), Some(&(430_000, Output::Deleted(FLOW))));
}

/// RFC 6887 §13.2: PREFER_FAILURE insists on port and address. Another address would do (decision 15), so that is asked for
/// once; refused again, the port has another owner now.
#[test]
fn a_port_that_is_gone_is_lost_at_once() {
    let (mut rig, _) = Rig::holding(want(), 400);
    let renewal = sent(&rig.run(250_000)).remove(0).1;
    let out = rig.answer(&rig.error(&renewal, ResultCode::CANNOT_PROVIDE_EXTERNAL, 30));
    let [Output::Transmit(bytes)] = &out[..] else { panic!("{out:?}") };
    let again = Request::parse(bytes).unwrap();
    let (Body::Map(first), Body::Map(second)) = (&renewal.body, &again.body) else { panic!("{again:?}") };
    assert_eq!((second.external_port, second.nonce), (first.external_port, first.nonce));
    assert_eq!(second.external_addr, NO_ADDR_V4);
    let out = rig.answer(&rig.error(&again, ResultCode::CANNOT_PROVIDE_EXTERNAL, 30));
    assert_eq!(out, [Output::Lost(FLOW)]);
    assert!(!rig.client.has(FLOW));
}

/// Four that are lost together are no silence, and nothing is brought forward that cannot be sent.
#[test]
fn renewals_that_go_together_count_as_one() {
    let together = |rig: &mut Rig| {
        for n in 0..6_u16 {
            let flow = FlowId(100 + u64::from(n));
            let request =
                rig.ask(flow, Want { internal_port: 8000 + n, external_port: 8000 + n, ..endless() });
            rig.answer(&rig.success(&request, 3200));
        }
    };
    let mut rig = Rig::with_seed(4);
    together(&mut rig);
    let first = rig.run(2_000_000);
    assert_eq!(sent(&first).len(), 6);
    // The next word, minutes later, is heard.
    rig.now = 2_200_000;
    let request = rig.input(Input::Ask(FLOW, endless()));
    assert!(request.iter().all(|output| matches!(output, Output::Transmit(_))), "{request:?}");

    let mut rig = Rig::with_seed(4);
    together(&mut rig);
    rig.input(Input::Closed);
    let due = rig.client.next_timeout().unwrap().as_millis();
    rig.run(due);
    let next = rig.client.next_timeout().unwrap().as_millis();
    assert!(next < 2_000_000, "the others keep their own times");
}

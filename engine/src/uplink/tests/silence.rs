//! A server that says nothing, and one that speaks again.

use super::*;

/// Four datagrams without an answer over some seconds: silent, told once. Many at once are no silence.
#[test]
fn silence_takes_time() {
    let mut rig = Rig::new();
    for n in 0..20 {
        rig.ask(FlowId(n), Want { internal_port: 5000, ..want() });
    }
    assert_eq!(rig.client.is_answering(), None);
    let out = rig.run(20_000);
    let told: Vec<&(u64, Output)> = out.iter().filter(|(_, output)| *output == Output::Silent).collect();
    assert_eq!(told, [&(3000, Output::Silent)]);
    assert_eq!(rig.client.is_answering(), Some(false));
}

/// A server that answers again is asked soon for what was asked in vain, and hears nothing of what stands.
#[test]
fn an_answer_after_silence_nudges_what_waits() {
    let mut rig = Rig::new();
    let standing = rig.ask(FlowId(7), Want { internal_port: 7, ..endless() });
    rig.answer(&rig.success(&standing, 86_400));
    rig.ask(FLOW, want());
    let out = rig.run(300_000);
    assert!(out.iter().any(|(_, output)| *output == Output::Silent));
    let due = rig.client.next_timeout().unwrap();
    assert!(due > Instant::from_secs(310), "{due:?}");
    let bytes = rig.announce(rig.epoch + 300);
    // An announcement is worth a try, and no answer.
    assert_eq!(rig.input(Input::Multicast(server(), &bytes)), []);
    assert_eq!(rig.client.is_answering(), Some(false));
    let asked = sent(&rig.run(301_000));
    assert_eq!(asked.len(), 1);
    assert_eq!(map_of(&asked[0].1).internal_port, 8080);
    assert_eq!(rig.input(Input::Datagram(server(), &bytes)), [Output::Answering]);
}

/// The same after an interruption of the link: the socket is a new one, the address the old one.
#[test]
fn a_new_socket_nudges_what_waits() {
    let mut rig = Rig::new();
    rig.ask(FLOW, Want { urgent: false, ..want() });
    rig.run(1_000_000);
    assert_eq!(rig.input(Input::Source(IpAddr::V4(SOURCE))), []);
    assert_eq!(sent(&rig.run(1_001_000)).len(), 1);
}

/// Without a socket nothing is sent, and silence says nothing of the server; timetables go on.
#[test]
fn a_closed_socket() {
    let (mut rig, _) = Rig::holding(endless(), 400);
    rig.ask(FlowId(2), Want { internal_port: 1, ..want() });
    assert_eq!(rig.input(Input::Closed), []);
    let out = rig.run(399_999);
    assert!(out.iter().all(|(_, output)| *output == Output::Unrenewed(FLOW)), "{out:?}");
    assert_eq!(rig.client.is_answering(), Some(true));
    assert_eq!(rig.run(400_000), [(400_000, Output::Lost(FLOW))]);
    rig.input(Input::Source(IpAddr::V4(SOURCE)));
    assert_eq!(sent(&rig.run(401_000)).len(), 1);
}

/// RFC 6887 §11.2.1 holds for what is nudged, too: renewals stay 4 s apart.
#[test]
fn nudged_renewals_keep_their_distance() {
    for seed in 0..20 {
        let mut rig = Rig::with_seed(seed);
        let request = rig.ask(FLOW, endless());
        rig.answer(&rig.success(&request, 3600));
        let mut last = 0;
        for second in 1..3500 {
            for (at, _) in sent(&rig.run(second * 1000)) {
                assert!(at - last >= 4000, "seed {seed}: {last} and {at}");
                last = at;
            }
            if second % 7 == 0 && last > 0 {
                rig.input(Input::Source(IpAddr::V4(SOURCE)));
            }
        }
        assert!(rig.client.has(FLOW));
    }
}
/// Deletes in turn after a silence: one answer does not let them all go.
#[test]
fn an_answer_after_a_silence_keeps_the_turns() {
    let mut rig = Rig::new();
    let mut requests = Vec::new();
    for n in 0..100_u16 {
        let request = rig.ask(
            FlowId(u64::from(n)),
            Want { internal_port: 6000 + n, external_port: 6000 + n, ..endless() },
        );
        let answer = rig.success(&request, 86_400);
        rig.answer(&answer);
        requests.push(request);
    }
    for n in 0..100 {
        rig.input(Input::DeleteInTurn(FlowId(n)));
    }
    rig.run(60_000);
    // The server is back: one answer.
    let announce = rig.announce(1060);
    rig.datagram(&announce);
    let sent = sent(&rig.run(61_500));
    assert!(sent.len() <= 12, "{} deletes within a second and a half, none answered", sent.len());
}

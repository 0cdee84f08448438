//! Random wishes at routers with random faults: what other hosts have is never touched, and in the end nothing is left behind.

use super::*;

/// Below `n`.
fn dice(entropy: &mut SeededEntropy, n: u64) -> u64 {
    let mut octets = [0; 8];
    entropy.fill(&mut octets);
    u64::from_le_bytes(octets) % n
}

#[test]
fn nothing_of_others_is_touched_and_nothing_is_left() {
    for seed in 0..80 {
        let mut entropy = SeededEntropy::new(seed);
        let mut roll = |n| dice(&mut entropy, n);
        let mut rig = Rig::new(if roll(2) == 0 { 1 } else { 2 });
        rig.model.only_permanent = rig.client.connection.version == 1 && roll(4) == 0;
        rig.model.overwrites = roll(3) == 0;
        rig.model.never_renews = roll(5) == 0;
        rig.model.same_port = roll(8) == 0;
        rig.model.longest = if roll(4) == 0 { 300 } else { u32::MAX };
        let foreign = [8001, 8003];
        let mut flows = 0;
        for _ in 0..60 {
            let port = 8000 + u16::try_from(roll(6)).unwrap();
            let flow = FlowId(1 + roll(flows + 1));
            match roll(16) {
                0..4 => {
                    flows += 1;
                    let wish = if roll(2) == 0 { want(port) } else { any(port) };
                    let lease_ends = (roll(2) == 0).then(|| rig.at() + Duration::from_secs(1 + roll(9000)));
                    let terms = Terms { lease_ends, ..wish.terms };
                    let urgent = roll(2) == 0;
                    rig.input(Input::Ask(FlowId(flows), Want { terms, urgent, ..wish }));
                }
                4 => rig.input(Input::Delete(flow)),
                5 => rig.input(Input::DeleteInTurn(flow)),
                6 => rig.input(Input::Confirm(flow)),
                7 => rig.input(Input::Hurry(flow)),
                8 => {
                    let now = rig.at();
                    rig.model.restart(now);
                }
                9 => rig.model.says = Some(HttpOutcome::Failed),
                10 => rig.model.says = Some(HttpOutcome::Answer { status: 200, body: b"<x/>".to_vec() }),
                11 => rig.input(Input::Closed),
                12 => rig.input(Input::Source(IpAddr::V4(HERE))),
                13 => {
                    rig.model.external =
                        ["", "10.0.0.1", "203.0.114.1", "203.0.114.2"][usize::try_from(roll(4)).unwrap()];
                }
                _ => rig.model.says = None,
            }
            for port in foreign {
                rig.model.maps("TCP", port, (OTHER, 1));
            }
            rig.model.take_calls();
            rig.run(rig.now + 1 + roll(200_000));
            for port in foreign {
                let entry = &rig.model.entries[&("TCP".to_owned(), port)];
                assert_eq!(entry.internal, (OTHER, 1), "seed {seed}");
            }
        }
        // All is well again, and everything is given back.
        rig.model.says = None;
        rig.model.external = "203.0.114.1";
        rig.input(Input::Source(IpAddr::V4(HERE)));
        rig.run(rig.now + 100_000);
        for flow in 1..=flows {
            rig.input(Input::Delete(FlowId(flow)));
        }
        rig.run(rig.now + 100_000);
        assert!((1..=flows).all(|flow| !rig.client.has(FlowId(flow))), "seed {seed}");
        assert_eq!(rig.client.by_port.len(), 0, "seed {seed}: {:?}", rig.client.by_port);
        // What an answer that got lost had made ends with its lease.
        rig.run(rig.now + 3_700_000);
        let ours = rig.model.ports().into_iter().filter(|port| !foreign.contains(port));
        assert_eq!(ours.collect::<Vec<_>>(), [], "seed {seed}");
    }
}

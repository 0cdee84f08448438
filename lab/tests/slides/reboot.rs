//! "On reboot fetch the CPE's mappings from the server": GET and NEXT.

use lab::capture::Packet;
use lab::netns::Host;
use lab::subject;
use lab::wait::eventually;

use crate::bench::{Bench, Deployment, SUCCESS, Terms, add};
use crate::common::{SECOND, TCP, Told, reaches, reaches_nobody, try_reach};

/// They are asked for at once.
const LISTING: &str = "list_mappings = true\nservice_wait = 0.1\n";
const PORTS: [u16; 3] = [7000, 7001, 7002];

/// Opcode 98 and option 224, of private use (`wire::pcp::query`).
const GET: u8 = 98;
const NEXT: u8 = 224;

/// Which of [`PORTS`] the answers to GET list, as external ports; `None` when there is no such answer.
fn listed(packets: &[Packet]) -> Option<Vec<u16>> {
    let mut all = None;
    for packet in packets.iter().filter(|packet| packet.payload.get(1) == Some(&(GET | 0x80))) {
        let all = all.get_or_insert_with(Vec::new);
        // Behind header and filters there are options, each a code, a length and padded data.
        let mut rest = packet.payload.get(64..).unwrap_or_default();
        while let [code, _, high, low, data @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if let (NEXT, Some(port)) = (*code, data.get(54..56)) {
                all.push(u16::from_be_bytes([port[0], port[1]]));
            }
            rest = data.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        all.retain(|port| PORTS.contains(port));
    }
    all
}

/// With an empty memory the router learns from the server what it had, keeps it for who asks for it again, by the nonce that
/// it had, and uses it for nobody else.
fn a_router_that_lost_its_memory_is_told(deployment: Deployment) {
    let Some(mut bench) = Bench::new(deployment, Terms::USUAL, LISTING) else { return };
    let mut caller = bench.caller(Host::Lan1, 1);
    for port in PORTS {
        assert_eq!(add(&mut caller, Host::Lan1, TCP, port, "before"), Told::done());
    }
    let before = bench.asked();
    assert_eq!(before.len(), PORTS.len());
    let there = bench.held();
    bench.crash();
    let heard = bench.datagrams().len();
    bench.reboot(false);
    eventually("the router's word that it knows them", 10 * SECOND, || {
        // And one that the router had of itself.
        bench.status()["held"].as_u64().filter(|held| *held >= 3)
    });
    assert_eq!(listed(&bench.datagrams()[heard..]), Some(PORTS.to_vec()));
    assert_eq!(bench.held(), there, "the server's table is as it was");
    assert_eq!(subject::listed(&bench.network), Some(Vec::new()), "they are nobody's here");
    bench.asked_nothing();

    let _listener = bench.listeners(&[Host::Lan1], TCP, PORTS[0]);
    let mut caller = bench.caller(Host::Lan1, 1);
    assert_eq!(add(&mut caller, Host::Lan1, TCP, PORTS[0], "after"), Told::done());
    let again = bench.asked_once();
    assert_eq!((again.result(), again.map.nonce), (SUCCESS, before[0].map.nonce));
    reaches(&bench.network, TCP, PORTS[0], "lan1");
    assert_eq!(bench.held().len(), PORTS.len(), "no second one");
}

/// D-9, D-16, decision 17: the slides' GET and GETNEXT at an AFTR.
#[test]
fn a_router_that_lost_its_memory_is_told_by_an_aftr() {
    a_router_that_lost_its_memory_is_told(Deployment::DsLite);
}

/// D-9, D-16, decision 17: the same at a NAT44.
#[test]
fn a_router_that_lost_its_memory_is_told_by_a_nat44() {
    a_router_that_lost_its_memory_is_told(Deployment::Nat44);
}

/// With its memory kept, it asks for the list, too; what the server has lost is made again, and what is there stays.
fn what_the_list_misses_is_made_again(deployment: Deployment) {
    let Some(mut bench) = Bench::new(deployment, Terms::USUAL, LISTING) else { return };
    let mut caller = bench.caller(Host::Lan1, 1);
    let _listeners = PORTS.map(|port| bench.listeners(&[Host::Lan1], TCP, port));
    for port in PORTS {
        assert_eq!(add(&mut caller, Host::Lan1, TCP, port, "kept"), Told::done());
    }
    let before = bench.asked();
    bench.crash();
    // Meanwhile the server loses one of them.
    let there = bench.held();
    let lost = there.iter().find(|held| held.external.port() == PORTS[1]).expect("it was made");
    let mut line = format!("delete tcp {} --nonce {}", lost.internal.port(), lost.nonce);
    if deployment == Deployment::DsLite {
        line += &format!(" --third-party {}", lost.internal.ip());
    }
    assert_eq!(bench.pcp(Host::Router, &line)["outcome"], "deleted");
    reaches_nobody(&bench.network, TCP, PORTS[1]);
    assert_eq!(bench.asked().len(), 1, "the delete");
    let heard = bench.datagrams().len();

    bench.reboot(true);
    eventually("what was lost", 10 * SECOND, || try_reach(&bench.network, TCP, PORTS[1]).then_some(()));
    let list = eventually("the list", 10 * SECOND, || listed(&bench.datagrams()[heard..]));
    assert!(list.starts_with(&[PORTS[0]]) && list.ends_with(&[PORTS[2]]), "{list:?}");
    assert_eq!(bench.held(), there, "nothing else came, and nothing went");
    let again = bench.asked();
    let lost: Vec<_> = again.iter().filter(|one| one.map.external_port == PORTS[1]).collect();
    assert_eq!(lost.len(), 1, "{again:#?}");
    assert_eq!(lost[0].map.nonce, before[1].map.nonce);
    for port in PORTS {
        reaches(&bench.network, TCP, port, "lan1");
    }
    assert_eq!(subject::listed(&bench.network).map(|all| all.len()), Some(PORTS.len()));
}

/// D-2, D-4, D-9, D-16, decision 17: at an AFTR.
#[test]
fn what_the_list_of_an_aftr_misses_is_made_again() {
    what_the_list_misses_is_made_again(Deployment::DsLite);
}

/// D-2, D-4, D-9, D-16, decision 17: at a NAT44.
#[test]
fn what_the_list_of_a_nat44_misses_is_made_again() {
    what_the_list_misses_is_made_again(Deployment::Nat44);
}

//! A gateway in front of us that speaks NAT-PMP and not PCP (decision 20; docs/spec/nat-pmp.md, section 4).

use super::*;
use crate::table::Health;
use crate::uplink::UplinkProtocol;

const NAT_PMP: [Speaks; 2] = [Speaks::NatPmp, Speaks::NatPmpSilently];

fn behind(speaks: Speaks, change: impl FnOnce(&mut Config)) -> Lab {
    let mut settings = config(NatMode::Own);
    change(&mut settings);
    let mut lab = Lab::new(settings);
    lab.provider().config_mut().speaks = speaks;
    lab
}

fn speaks(lab: &Lab) -> Vec<UplinkProtocol> {
    let notices = lab.notices().into_iter();
    notices.filter_map(|notice| if let Notice::Speaks(_, by) = notice { Some(by) } else { None }).collect()
}

/// Whether the provider answers that it does not speak PCP, or says nothing: what the router knows and does is the same.
#[test]
fn everything_by_nat_pmp() {
    for by in NAT_PMP {
        let mut lab = behind(by, |_| {});
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(wan(&[W])));
        lab.run(10_000);
        assert_eq!(speaks(&lab), [UplinkProtocol::NatPmp], "{by:?}");
        assert_eq!(lab.status().external, Some(E), "told without a mapping");
        assert_eq!(lab.upstream(), [], "nor is there one");
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        assert_eq!(lab.add(BOB, 1, Add { lease: 0, ..port(9090) }), done());
        let external: Vec<u16> = lab.upstream().iter().map(|(port, _)| *port).collect();
        assert_eq!((external, lab.mapped().len(), lab.rules.len()), (vec![8080, 9090], 2, 2));
        // Renewed for a day, and given back by the end.
        lab.pass(86_400);
        assert_eq!((lab.upstream().len(), lab.mapped().len()), (2, 2));
        assert_eq!(lab.delete(ALICE, 1, 8080), done());
        assert_eq!(lab.upstream().len(), 1);
        lab.event(Event::Stop);
        lab.pass(5);
        assert_eq!((lab.upstream().len(), lab.rules.len()), (0, 0));
    }
}

/// Decision 5: there is no PREFER_FAILURE, so another port than the one that is wanted is a conflict, held for who asks next.
#[test]
fn another_port_is_a_conflict_and_held() {
    let mut lab = behind(Speaks::NatPmp, |_| {});
    lab.bring_up();
    // Somebody else of the provider's has it.
    let foreign = SocketAddr::from(([192, 0, 2, 77], 49_152));
    let taken = wire::natpmp::Request::Map {
        protocol: wire::natpmp::Transport::Tcp,
        internal_port: 8080,
        external_port: 8080,
        lifetime: 7200,
    };
    let now = lab.instant();
    lab.provider().handle_datagram(now, foreign, &taken.to_bytes()).expect("granted");
    assert_eq!(lab.add(ALICE, 1, port(8080)), Err(718));
    let held: Vec<u16> = lab.upstream().iter().map(|(port, _)| *port).filter(|&port| port != 8080).collect();
    assert_eq!((held.len(), lab.status().held), (1, 1));
    assert_eq!(lab.add(ALICE, 1, Add { internal: 8080, ..port(held[0]) }), done());
    assert_eq!(lab.mapped().len(), 1);
    // Who leaves the port to the server gets one at once.
    let any = lab.add(BOB, 2, Add { any: true, ..port(8080) }).expect("any port will do");
    assert_ne!(any, ["8080"]);
}

/// A control point that asks before the protocol is known waits for the answer like any other.
#[test]
fn who_asks_early_is_served() {
    for by in NAT_PMP {
        let mut lab = behind(by, |settings| settings.external_address_probe = false);
        lab.event(Event::Lan(lan()));
        lab.event(Event::Wan(wan(&[W])));
        let early = lab.start_add(ALICE, 2, port(8080));
        lab.pass(4);
        assert_eq!(lab.heard(early), Some(done()), "{by:?}");
        lab.pass(10);
        assert_eq!(lab.add(ALICE, 2, port(8080)), done(), "again");
    }
}

/// RFC 6886 §1.1: a gateway that has learned PCP is asked by it. Everything stands again, whatever was there before.
#[test]
fn pcp_is_noticed() {
    let mut lab = behind(Speaks::NatPmp, |_| {});
    lab.bring_up();
    for (host, number) in [(ALICE, 8080), (BOB, 9090)] {
        assert_eq!(lab.add(host, 1, Add { lease: 0, ..port(number) }), done());
    }
    lab.provider().config_mut().speaks = Speaks::Both;
    let now = lab.instant();
    lab.provider().lose_state(now);
    // At the next renewal.
    lab.pass(4000);
    assert_eq!(speaks(&lab), [UplinkProtocol::Pcp], "{:?}", lab.notices());
    let mut external: Vec<u16> = lab.upstream().iter().map(|(port, _)| *port).collect();
    external.sort_unstable();
    assert_eq!(external, [8080, 9090]);
    assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
    // Nor back again while PCP is remembered.
    lab.provider().config_mut().speaks = Speaks::NatPmp;
    lab.pass(60);
    assert_eq!(speaks(&lab).len(), 1);
}

/// RFC 6886 §3.7: after a restart of the gateway all mappings are there again.
#[test]
fn a_restart_is_noticed() {
    let mut lab = behind(Speaks::NatPmp, |_| {});
    lab.bring_up();
    for number in 8000..8010 {
        assert_eq!(lab.add(ALICE, 2, port(number)), done());
    }
    let now = lab.instant();
    lab.provider().lose_state(now);
    let announcement = wire::natpmp::Response::ExternalAddress {
        result: wire::natpmp::ResultCode::SUCCESS,
        epoch: 0,
        addr: E,
    };
    lab.event(Event::Announcement { from: server(), bytes: &announcement.to_bytes() });
    assert!(lab.notices().contains(&Notice::StateLost(server(), 10)));
    lab.pass(8);
    assert_eq!(lab.upstream().len(), 10);
    assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
    // Another address, told the same way.
    let other = Ipv4Addr::new(198, 51, 100, 99);
    lab.provider().config_mut().external = other;
    let announcement = wire::natpmp::Response::ExternalAddress {
        result: wire::natpmp::ResultCode::SUCCESS,
        epoch: 8,
        addr: other,
    };
    lab.event(Event::Announcement { from: server(), bytes: &announcement.to_bytes() });
    assert_eq!(lab.status().external, Some(other));
    assert!(lab.gateway.mappings(lab.instant()).all(|mapping| *mapping.external.ip() == other));
}

/// The WAN goes and comes back; nobody has a mapping. The address is known again.
#[test]
fn the_address_is_known_again() {
    let mut lab = behind(Speaks::NatPmp, |_| {});
    lab.bring_up();
    assert_eq!(lab.status().external, Some(E));
    lab.event(Event::Wan(wan(&[])));
    assert_eq!(lab.status().external, None);
    lab.event(Event::Wan(wan(&[W])));
    lab.pass(2);
    assert_eq!(lab.status().external, Some(E));
}

/// At the stop everything is given back by the protocol that it was made with.
#[test]
fn no_other_protocol_at_the_stop() {
    let mut lab = behind(Speaks::NatPmp, |_| {});
    lab.bring_up();
    for number in 8000..8004 {
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(number) }), done());
    }
    lab.pass(61);
    lab.provider().config_mut().speaks = Speaks::Both;
    lab.event(Event::Stop);
    lab.pass(5);
    assert_eq!((lab.upstream().len(), lab.rules.len(), lab.store.len()), (0, 0, 0));
    assert_eq!(speaks(&lab), [], "and it is not even asked");
}

/// One datagram that looks like PCP does not end NAT-PMP: a gateway that speaks that alone is found again.
#[test]
fn back_from_what_was_no_pcp() {
    for by in NAT_PMP {
        let mut lab = behind(by, |_| {});
        lab.bring_up();
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        lab.pass(61);
        let forged = Response {
            result: ResultCode::SUCCESS,
            lifetime: 0,
            epoch: 1,
            body: Body::Announce,
            options: Vec::new(),
        };
        // While a knock is unanswered.
        lab.silent = true;
        lab.start_add(BOB, 1, port(9000));
        lab.event(Event::Uplink { from: server(), bytes: &forged.to_bytes() });
        assert_eq!(speaks(&lab), [UplinkProtocol::Pcp], "{by:?}");
        lab.silent = false;
        lab.pass(1200);
        assert_eq!(lab.status().protocol, Some(UplinkProtocol::NatPmp), "{by:?}");
        assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))]);
    }
}

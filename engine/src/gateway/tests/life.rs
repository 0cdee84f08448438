//! Mappings through time: leases against lifetimes, renewals, losses, moves (RFC 6970 §5.9, decisions 14 and 15).

use super::*;
use crate::notice::Cause;
use crate::table::Health;

/// What the control point asked for is left, what the provider granted is left.
fn left(lab: &Lab) -> (Option<u64>, u64) {
    let mapping = lab.gateway.mappings(lab.instant()).next().expect("there is one");
    (mapping.lease_left.map(|left| left.as_secs()), mapping.lifetime_left.as_secs())
}

/// decision 14: two timers. A short lifetime is renewed until the lease ends, the last time only for the
/// remainder, and nobody hears of it; then everything goes at once: entry, rule, upstream mapping. So the entry has its
/// lifetime, and the NAT's is that of the server (R-15, T-12, D-5).
#[test]
fn a_long_lease_of_short_lifetimes() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        lab.provider().config_mut().longest = 300;
        assert_eq!(lab.add(ALICE, 2, Add { lease: 3600, ..port(8080) }), done());
        assert_eq!(left(&lab), (Some(3600), 300));
        let start = lab.now;
        for second in 1..3600 {
            lab.run(start + second * 1000);
            let (lease, lifetime) = left(&lab);
            assert_eq!(lease, Some(3600 - second));
            assert!(lifetime > 300 * 3 / 8 - 2 || second > 3300, "renewed before 5/8: {lifetime}");
            assert_eq!(lab.upstream().len(), 1);
        }
        let asked: Vec<(u64, u32)> =
            lab.sent().iter().map(|(at, r)| ((at - start) / 1000, r.lifetime)).collect();
        assert!(asked.len() > 18, "{asked:?}");
        // none of this is heard by the control point; each asks for what is left of the lease.
        assert_eq!(lab.seen().iter().filter(|effect| matches!(effect, Effect::Reply { .. })).count(), 1);
        assert!(
            asked.iter().all(|&(at, lifetime)| u64::from(lifetime).abs_diff(3600 - at) <= 1),
            "{asked:?}"
        );
        assert_eq!(lab.rules.len(), usize::from(nat == NatMode::Own));
        lab.run(start + 3_600_000);
        assert_eq!((lab.mapped(), lab.upstream(), lab.rules.len()), (vec![], vec![], 0));
        let gone = lab.notices().into_iter().any(|n| matches!(n, Notice::Removed(_, Cause::LeaseEnded)));
        assert!(gone);
        lab.seen();
        lab.pass(10_000);
        assert_eq!(lab.sent(), []);
    }
}

/// What VPN providers give, by either protocol: a port of the server's own choice, for a minute. It is renewed for a day with the port
/// that was given, and half a minute without a server ends nothing.
#[test]
fn a_minute_at_a_time_for_a_day() {
    for speaks in [Speaks::NatPmp, Speaks::Pcp] {
        let mut lab = Lab::new(config(NatMode::Own));
        let provider = lab.provider().config_mut();
        (provider.shortest, provider.longest, provider.hold) = (1, 60, Duration::ZERO);
        provider.speaks = speaks;
        lab.bring_up();
        // Another subscriber has the port that is suggested.
        let other = SocketAddr::from(([192, 0, 2, 77], 49_152));
        let theirs = wire::natpmp::Request::Map {
            protocol: wire::natpmp::Transport::Tcp,
            internal_port: 8080,
            external_port: 8080,
            lifetime: 60,
        };
        lab.provider().config_mut().speaks = Speaks::Both;
        let now = lab.instant();
        lab.provider().handle_datagram(now, other, &theirs.to_bytes()).expect("granted");
        lab.provider().config_mut().speaks = speaks;
        let given = lab.add(ALICE, 2, Add { lease: 0, ..any(8080) }).expect("any port will do");
        assert_ne!(given, ["8080"], "{speaks:?}");
        let given: u16 = given[0].parse().unwrap();
        lab.seen();
        let start = lab.now;
        for second in 1..=86_400 {
            lab.silent = (43_200..43_215).contains(&second);
            lab.run(start + second * 1000);
            let upstream: Vec<u16> = lab.upstream().iter().map(|(port, _)| *port).collect();
            assert!(upstream.contains(&given), "{speaks:?}, after {second} s: {upstream:?}");
            assert_eq!(lab.mapped(), [(given, at(ALICE, 8080))]);
        }
        assert!(lab.gateway.mappings(lab.instant()).all(|mapping| mapping.health == Health::Active));
        // Between a half and five eighths of a minute, now and then a little later.
        let renewals = lab.notices().iter().filter(|notice| matches!(notice, Notice::Renewed(_))).count();
        assert!((2300..=2880).contains(&renewals), "{speaks:?}: {renewals}");
    }
}

/// the answer to AddPortMapping says nothing of the lifetime, and listings tell the lease. iwf.md 2.5: a server
/// grants more than was asked; the lease ends it all the same.
#[test]
fn a_short_lease_of_a_long_lifetime() {
    let mut lab = Lab::up_with(Config { get_specific: GetSpecific::Local, ..config(NatMode::Own) });
    assert_eq!(lab.add(ALICE, 2, Add { lease: 30, ..port(8080) }), done());
    assert_eq!(left(&lab), (Some(30), 120));
    let specific = |lab: &mut Lab| lab.call(BOB, 1, "GetSpecificPortMappingEntry", &borrowed(&key(8080)));
    lab.run(lab.now + 29_500);
    assert_eq!(specific(&mut lab).unwrap()[4], "1", "not 0, which means for ever");
    lab.run(lab.now + 500);
    assert_eq!(specific(&mut lab), Err(714));
    assert_eq!((lab.upstream(), lab.rules.len()), (vec![], 0));
}

/// R-32, T-1 and A-3: for ever on :1 is asked as 2^32 - 1 and renewed for ever; on :2 it is a week.
#[test]
fn lease_0() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    assert_eq!(lab.add(ALICE, 2, Add { lease: 0, ..port(8081) }), done());
    let asked: Vec<u32> = lab.sent().iter().map(|(_, request)| request.lifetime).collect();
    assert_eq!(asked, [u32::MAX, 604_800]);
    lab.pass(604_799);
    assert_eq!(lab.mapped().len(), 2);
    lab.pass(1);
    assert_eq!(lab.mapped(), [(8080, at(ALICE, 8080))]);
    lab.pass(30 * 86_400);
    assert_eq!((lab.mapped().len(), lab.upstream().len()), (1, 1));
    assert_eq!(left(&lab).0, None);
}

/// Its owner asks again: the lease starts anew, longer or shorter, without an exchange at that moment.
#[test]
fn a_lease_that_is_asked_for_again() {
    for (again, kept_at_90, kept_at_200) in [(3600, true, true), (60, false, false), (100, true, false)] {
        let mut lab = Lab::up(NatMode::None);
        assert_eq!(lab.add(ALICE, 2, Add { lease: 180, ..port(8080) }), done());
        lab.pass(30);
        lab.seen();
        assert_eq!(lab.add(ALICE, 2, Add { lease: again, ..port(8080) }), done());
        assert_eq!((lab.sent(), left(&lab).0), (vec![], Some(u64::from(again))));
        lab.pass(59);
        assert_eq!(lab.mapped().len(), 1, "{again}");
        lab.pass(2);
        assert_eq!(lab.mapped().len(), usize::from(kept_at_90), "{again}");
        lab.pass(110);
        assert_eq!(
            (lab.mapped().len(), lab.upstream().len()),
            (usize::from(kept_at_200), usize::from(kept_at_200))
        );
    }
}

/// R-35, decision 15: a renewal that is refused, or not answered: degraded, tried again; gone with the lifetime, once told. The
/// rule of the router's own NAT stands as long (R-15, T-12).
#[test]
fn a_mapping_that_cannot_be_kept() {
    for silent in [false, true] {
        let mut lab = Lab::up(NatMode::Own);
        lab.provider().config_mut().longest = 400;
        assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
        let before = lab.status().system_update_id;
        lab.silent = silent;
        lab.script = [Reaction::Refuse(ResultCode::NETWORK_FAILURE, 30); 20].into();
        // A refusal is known at the first renewal, silence at the second.
        lab.pass(if silent { 330 } else { 260 });
        let health = lab.gateway.mappings(lab.instant()).next().unwrap().health;
        assert_eq!(health, Health::Degraded);
        assert_eq!(lab.rules.len(), 1, "it stands until its lifetime ends");
        lab.pass(if silent { 69 } else { 139 });
        assert_eq!(lab.mapped().len(), 1);
        lab.pass(1);
        assert_eq!((lab.mapped(), lab.rules.len()), (vec![], 0));
        assert_eq!(lab.status().system_update_id, before + 1);
        let told = |n: &Notice| matches!(n, Notice::Removed(_, Cause::LostUpstream));
        assert_eq!(lab.notices().iter().filter(|n| told(n)).count(), 1);
        assert!(lab.sent().len() >= 4, "{:?}", lab.sent().len());
    }
    // A renewal that works again mends it.
    let mut lab = Lab::up(NatMode::Own);
    lab.provider().config_mut().longest = 400;
    assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8080) }), done());
    lab.script = [Reaction::Refuse(ResultCode::NETWORK_FAILURE, 30)].into();
    lab.pass(330);
    assert_eq!(lab.gateway.mappings(lab.instant()).next().unwrap().health, Health::Active);
}

/// Decision 15: a mapping that comes back on another port is gone if AddPortMapping made it, and is updated in place if
/// AddAnyPortMapping did; on another address it is updated in both cases. The table follows each answer, what control
/// points are told follows the table (R-42, T-9).
#[test]
fn a_mapping_that_moves() {
    let elsewhere = Ipv4Addr::new(198, 51, 100, 8);
    for nat in BOTH {
        for (wanted, to, expected) in [
            (port(8080), SocketAddrV4::new(E, 9999), None),
            (any(8080), SocketAddrV4::new(E, 9999), Some(9999)),
            (port(8080), SocketAddrV4::new(elsewhere, 8080), Some(8080)),
            (any(8080), SocketAddrV4::new(elsewhere, 9999), Some(9999)),
            (any(8080), SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 9999), None),
            (any(8080), SocketAddrV4::new(E, 0), None),
            (any(8080), SocketAddrV4::new(E, 7777), None), // another mapping of ours has it
        ] {
            let mut lab = Lab::up(nat);
            lab.provider().config_mut().longest = 400;
            assert!(lab.add(ALICE, 2, wanted).is_ok());
            lab.provider().config_mut().longest = 86_400; // nobody else is renewed meanwhile
            lab.pass(10);
            assert_eq!(lab.add(BOB, 1, Add { lease: 0, ..port(7777) }), done());
            let before = lab.status().system_update_id;
            lab.script = [Reaction::Grant(*to.ip(), to.port())].into();
            lab.run(10_000 + 250_000);
            let what = format!("{nat:?} {wanted:?} to {to}");
            let mine: Vec<u16> =
                lab.mapped().into_iter().filter(|(_, at)| *at.ip() == ALICE).map(|(port, _)| port).collect();
            assert_eq!(mine, expected.into_iter().collect::<Vec<_>>(), "{what}");
            assert_eq!(lab.status().system_update_id, before + 1, "{what}");
            let rules = 1 + usize::from(expected.is_some());
            assert_eq!(lab.rules.len(), if nat == NatMode::Own { rules } else { 0 }, "{what}");
            if expected.is_none() {
                assert!(!lab.upstream().iter().any(|(_, at)| at.port() == 8080), "{what}: given back");
            }
            let address = lab.connection().1;
            let told = if *to.ip() == elsewhere && expected.is_some() { elsewhere } else { E };
            assert_eq!(address, told.to_string(), "{what}: R-42");
        }
    }
}

/// R-38, decision 16: the server loses its state; everything is there again within recovery_wait, by the same nonces.
#[test]
fn a_server_that_loses_its_state() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        for n in 0..20 {
            assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8000 + n) }), done());
        }
        lab.pass(1000);
        lab.effects.clear();
        let before = (lab.mapped(), lab.upstream());
        let now = lab.instant();
        let announcement = lab.provider().lose_state(now);
        assert_eq!(lab.upstream(), []);
        lab.event(Event::Announcement { from: server(), bytes: &announcement });
        assert!(lab.notices().contains(&Notice::StateLost(server(), 20)));
        assert_eq!(lab.sent(), [], "not all at once");
        lab.run(lab.now + 5000);
        assert_eq!((lab.mapped(), lab.upstream()), before);
        let ports: Vec<u16> = lab.sent().iter().map(|(_, request)| map_of(request).internal_port).collect();
        assert_eq!(ports, (8000..8020).rev().collect::<Vec<_>>(), "whose owner asked last goes first");
        assert!(!lab.seen().iter().any(|effect| matches!(effect, Effect::Nat { .. })), "the rules stand");
        assert_eq!(lab.status().system_update_id, 20, "nothing has changed");
    }
}

/// Security policy: an announcement of somebody else changes nothing.
#[test]
fn somebody_elses_announcement() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 2, port(8080)), done());
    lab.pass(100);
    lab.effects.clear();
    let now = lab.instant();
    let forged = lab.provider().lose_state(now);
    for from in ["192.0.2.66:5351", "192.0.2.1:5350"] {
        lab.event(Event::Announcement { from: from.parse().unwrap(), bytes: &forged });
        lab.event(Event::Uplink { from: from.parse().unwrap(), bytes: &forged });
    }
    lab.pass(10);
    assert_eq!((lab.sent(), lab.status().ignored_upstream), (vec![], 4));
}

/// R-36, decision 18: the DHCP server has taken a host's address back: everything of that host goes, here and at the
/// provider, and nothing of anybody else.
#[test]
fn a_released_host_loses_its_mappings() {
    for nat in BOTH {
        let mut lab = Lab::up(nat);
        for n in 0..10 {
            assert_eq!(lab.add(ALICE, 1, Add { lease: 0, ..port(8000 + n) }), done());
        }
        assert_eq!(lab.add(BOB, 1, port(9000)), done());
        assert_eq!(lab.call(ALICE, 1, "GetSpecificPortMappingEntry", &borrowed(&key(8100))), Err(714));
        lab.script = [Reaction::Lose].into();
        let waiting = lab.start_add(ALICE, 1, port(8200));
        lab.event(Event::Release(ALICE.into()));
        assert_eq!(lab.heard(waiting), Some(Err(501)));
        assert_eq!(lab.mapped(), [(9000, at(BOB, 9000))], "{nat:?}");
        lab.pass(40);
        assert_eq!(lab.upstream().len(), 1, "{:?}", lab.upstream());
        assert_eq!((lab.store.len(), lab.gateway.is_idle()), (1, true));
        assert_eq!(lab.rules.len(), usize::from(nat == NatMode::Own));
        lab.event(Event::Release(Ipv4Addr::new(192, 168, 1, 99).into()));
        assert_eq!(lab.mapped().len(), 1);
        // What is half-way, by a name or in the place of another mapping, does not come to be.
        let mut by_name = port(8300).args(ALICE);
        by_name[0].1 = "peer.example.net".into();
        let named = lab.start(ALICE, 2, "AddPortMapping", &borrowed(&by_name));
        assert_eq!(lab.add(ALICE, 2, port(8400)), done());
        lab.silent = true;
        lab.start_add(ALICE, 2, port(8400).to(8401));
        lab.event(Event::Release(ALICE.into()));
        lab.silent = false;
        for (lookup, _) in std::mem::take(&mut lab.lookups) {
            lab.event(Event::Resolved { lookup, addresses: vec![Ipv4Addr::new(203, 0, 113, 9)] });
        }
        assert_eq!(lab.heard(named), Some(Err(501)));
        lab.pass(60);
        assert_eq!((lab.mapped(), lab.upstream().len()), (vec![(9000, at(BOB, 9000))], 1), "{nat:?}");
    }
}

/// Decision 12: another external address counts, though there is no mapping that shows it; the same one again does not.
#[test]
fn another_external_address_is_a_change() {
    let mut lab = Lab::up(NatMode::Own);
    let elsewhere = Ipv4Addr::new(198, 51, 100, 8);
    let before = lab.status().system_update_id;
    for (addr, counted) in [(elsewhere, 1), (elsewhere, 1), (E, 2)] {
        lab.provider().config_mut().external = addr;
        lab.event(Event::Wan(wan(&[])));
        lab.event(Event::Wan(wan(&[W])));
        lab.pass(700);
        assert_eq!((lab.connection().1, lab.status().system_update_id), (addr.to_string(), before + counted));
    }
}

/// A stop waits for the provider, and a kernel that takes its time meanwhile is no silence of the provider's: hundreds of rules on a
/// small router.
#[test]
fn a_stop_does_not_count_the_kernels_time() {
    let mut lab = Lab::up(NatMode::Own);
    assert_eq!(lab.add(ALICE, 1, port(8080)), done());
    lab.slow_nat = true;
    lab.silent = true;
    lab.event(Event::Stop);
    lab.now += 3000;
    lab.release_nat();
    lab.silent = false;
    lab.run(lab.now + 4000);
    assert_eq!(lab.upstream(), []);
    assert!(!lab.notices().iter().any(|told| matches!(told, Notice::LeftBehind(_))));
}

/// Decision 28: what leads off the LAN, or to this router itself by now, ends when that stays so; not before, and not where nobody knows.
#[test]
fn a_lan_that_is_renumbered() {
    let link = |addr: [u8; 4]| InterfaceAddress { addr: addr.into(), prefix_len: 24 };
    let interface = |index, name: &str, addresses: &[[u8; 4]]| {
        let addresses = addresses.iter().copied().map(link).collect();
        LanInterface { index, name: name.into(), addresses }
    };
    let old = || interface(3, "lan0", &[[192, 168, 1, 1]]);
    let other = || interface(4, "lan1", &[[192, 168, 7, 1]]);
    for nat in BOTH {
        for (new, left) in [
            (vec![interface(3, "lan0", &[[192, 168, 2, 1]]), other()], &[9090][..]),
            (vec![interface(3, "lan0", &[[192, 168, 1, 10]]), other()], &[8081, 9090]), // Alice's is ours
            (vec![interface(3, "lan0", &[[192, 168, 1, 2], [192, 168, 2, 1]]), other()], &[8080, 8081, 9090]),
            // Nobody knows who is on a link that is away.
            (vec![interface(3, "lan0", &[]), other()], &[8080, 8081, 9090]),
            (vec![other()], &[8080, 8081, 9090]),
            (vec![interface(3, "lan0", &[[192, 168, 2, 1]])], &[8080, 8081, 9090]),
            (vec![], &[8080, 8081, 9090]),
        ] {
            let mut lab = Lab::up(nat);
            lab.event(Event::Lan(vec![old(), other()]));
            let carol = Ipv4Addr::new(192, 168, 7, 12);
            for (host, number) in [(ALICE, 8080), (BOB, 8081), (carol, 9090)] {
                assert_eq!(lab.add(host, 1, Add { lease: 0, ..port(number) }), done());
            }
            lab.event(Event::Lan(new.clone()));
            lab.pass(300);
            lab.event(Event::Lan(vec![old(), other()]));
            lab.pass(700);
            assert_eq!(lab.mapped().len(), 3, "{nat:?} {new:?}: it has passed");
            lab.event(Event::Lan(new.clone()));
            lab.pass(590);
            assert_eq!(lab.mapped().len(), 3, "{nat:?} {new:?}");
            lab.event(Event::Lan(new.clone())); // the same, which the kernel tells now and then
            lab.pass(20);
            let ports: Vec<u16> = lab.mapped().into_iter().map(|(external, _)| external).collect();
            assert_eq!(ports, left, "{nat:?} {new:?}");
            assert_eq!(lab.upstream().len(), left.len(), "{nat:?} {new:?}");
            let gone = lab.notices().into_iter();
            let gone = gone.filter(|notice| matches!(notice, Notice::Removed(_, Cause::OffLan))).count();
            assert_eq!(gone, 3 - left.len());
        }
    }
}

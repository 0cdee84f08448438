//! THIRD_PARTY from the LAN (RFC 6887 §13.1): off unless `[lan] third_party` names who may ask for whom. The mapping is the third
//! party's in everything but who holds its nonce.

use super::*;
use crate::limits::Rate;
use crate::prefix::ThirdParty;

const CAROL: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 12);

fn rule(client: &str, internal: &str) -> ThirdParty {
    ThirdParty { client: client.parse().unwrap(), internal: vec![internal.parse().unwrap()] }
}

/// Alice and Carol may ask for the first half of the LAN.
fn settings(nat: NatMode) -> Config {
    let third_party = vec![
        rule("192.168.1.10", "192.168.1.0/25"),
        rule("192.168.1.12", "192.168.1.0/25"),
        rule("192.168.1.12", "10.0.0.0/8"),
    ];
    Config { third_party, ..config(nat) }
}

impl Map {
    fn of(self, host: Ipv4Addr) -> Self {
        self.with(PcpOption::ThirdParty(host.to_ipv6_mapped()))
    }

    fn gone(self) -> Self {
        Self { lifetime: 0, external: 0, ..self }
    }
}

/// O-6: the answer repeats the option, also that to a delete; the table, the provider and our own NAT have the third party.
#[test]
fn a_mapping_for_somebody_else() {
    for nat in BOTH {
        let mut lab = Lab::up_with(settings(nat));
        let request = map(8080).of(BOB).request(ALICE);
        let third_party = PcpOption::ThirdParty(BOB.to_ipv6_mapped());
        for (lifetime, told) in [(3600, 3600), (3600, 3600), (0, 0)] {
            let answer = lab.pcp(ALICE, &Request { lifetime, ..request.clone() });
            assert_eq!((answer.result, answer.lifetime), (OK, told), "{nat:?}");
            assert_eq!(answer.options, std::slice::from_ref(&third_party), "{nat:?} {lifetime}");
            let asks = |notice: &Notice| {
                *notice == Notice::ForThirdParty(ALICE.into(), Protocol::TCP, at(BOB, 8080).into())
            };
            assert_eq!(
                lab.notices().iter().filter(|notice| asks(notice)).count(),
                1,
                "who it was is said once"
            );
            let there = if lifetime > 0 { vec![(8080, at(BOB, 8080))] } else { vec![] };
            assert_eq!(lab.mapped(), there, "{nat:?}");
            assert_eq!((lab.upstream().len(), lab.store.len()), (there.len(), there.len()), "{nat:?}");
            if nat == NatMode::Own {
                let rules: Vec<_> = lab.rules.iter().map(|rule| rule.internal).collect();
                assert_eq!(rules, there.iter().map(|&(_, internal)| internal).collect::<Vec<_>>());
            }
        }
        // Any port, and the processed options in the order of the request.
        let peer = Ipv4Addr::new(203, 0, 113, 9);
        let answer = lab.pcp(ALICE, &map(8081).of(BOB).with(filter(128, peer)).request(ALICE));
        assert_eq!((answer.result, answer.options), (OK, vec![third_party.clone(), filter(128, peer)]));
        let mapping = lab.gateway.mappings(lab.instant()).next().unwrap();
        assert_eq!((mapping.internal, mapping.remote_peer), (at(BOB, 8081), Some(peer)));
        // It is Bob's to others: listed as his, nobody's to delete by UPnP, and counted for him.
        let listed = lab.call(CAROL, 1, "GetGenericPortMappingEntry", &[("NewPortMappingIndex", "0")]);
        assert_eq!(listed.unwrap()[4], BOB.to_string());
        for host in [ALICE, BOB] {
            assert!(lab.delete(host, 2, 8081).is_err(), "{nat:?}");
        }
        // He gets it by UPnP, too, and keeps it when she has let it go.
        assert_eq!(lab.add(BOB, 1, Add { remote: "203.0.113.9", ..port(8081) }), done(), "{nat:?}");
        assert_eq!(lab.map(ALICE, &map(8081).of(BOB).gone()).0, OK);
        assert_eq!(lab.mapped(), [(8081, at(BOB, 8081))], "{nat:?}");
    }
}

/// §13.1, O-2, O-4, and the security policy: where nobody may, the option is not supported; otherwise whoever may not is not authorised.
#[test]
fn rfc6887_13_1_row_by_row() {
    use ResultCode as R;
    let outside = Ipv4Addr::new(203, 0, 113, 9);
    let high = Ipv4Addr::new(192, 168, 1, 200);
    let rows = [
        (ALICE, BOB, R::SUCCESS, "as the list says"),
        (CAROL, BOB, R::SUCCESS, "as another entry says"),
        (ALICE, ALICE, R::MALFORMED_REQUEST, "she needs no option for herself"),
        (BOB, BOB, R::MALFORMED_REQUEST, "nor does he, whoever he is"),
        (BOB, ALICE, R::UNSUPP_OPTION, "he may not (§13.1)"),
        (ALICE, high, R::NOT_AUTHORIZED, "not for that host"),
        (ALICE, LAN, R::NOT_AUTHORIZED, "not for the router"),
        (ALICE, W, R::NOT_AUTHORIZED, "not for the router's other side"),
        (ALICE, Ipv4Addr::new(192, 168, 1, 0), R::NOT_AUTHORIZED, "not for the network"),
        (CAROL, Ipv4Addr::new(10, 0, 0, 7), R::NOT_AUTHORIZED, "on the list, and not on the LAN"),
        (CAROL, outside, R::NOT_AUTHORIZED, "somebody outside"),
        (CAROL, Ipv4Addr::UNSPECIFIED, R::NOT_AUTHORIZED, "nobody"),
    ];
    let mut lab = Lab::up_with(settings(NatMode::Own));
    for (from, of, result, what) in rows {
        // A delete is refused alike.
        for map in [map(8080).of(of), map(8080).of(of).gone()] {
            assert_eq!(lab.map(from, &map).0, result, "{what}");
        }
        lab.pass(1);
    }
    assert_eq!(lab.map(ALICE, &map(8080).of(BOB).of(BOB)).0, R::MALFORMED_OPTION, "twice");
    assert_eq!(lab.map(ALICE, &map(80).of(BOB)).0, R::NOT_AUTHORIZED, "a low port (decision 27)");
    let announce = Request { body: Body::Announce, lifetime: 0, ..map(8080).of(BOB).request(ALICE) };
    assert_eq!(lab.pcp(ALICE, &announce).result, R::UNSUPP_OPTION, "not of ANNOUNCE");
    assert_eq!(lab.mapped(), []);

    let mut lab = Lab::up(NatMode::Own);
    for (from, of, _, what) in rows {
        assert_eq!(lab.map(from, &map(8080).of(of)).0, R::UNSUPP_OPTION, "off: {what}");
        lab.pass(1);
    }
    assert_eq!(lab.sent().len(), 0);
}

/// Who comes second, for himself or for others, has another nonce (§11.3, the simple threat model).
#[test]
fn the_nonce_decides_between_two_who_may() {
    for nat in BOTH {
        let mut lab = Lab::up_with(settings(nat));
        let theirs = Map { nonce: OTHERS, ..map(8080) };
        assert_eq!(lab.map(ALICE, &map(8080).of(BOB)).0, OK);
        for (from, map) in [(CAROL, theirs.clone().of(BOB)), (BOB, theirs.clone())] {
            for map in [map.clone(), map.gone()] {
                let told = lab.map(from, &map);
                assert!(
                    told.0 == ResultCode::NOT_AUTHORIZED && (3590..=3600).contains(&told.1),
                    "{nat:?} {told:?}"
                );
            }
        }
        // It is the nonce, not who holds it.
        assert_eq!(lab.map(CAROL, &map(8080).of(BOB)).0, OK);
        assert_eq!(lab.map(BOB, &map(8080).gone()).0, OK);
        assert_eq!((lab.mapped(), lab.upstream().len()), (vec![], 0), "{nat:?}");
        // While it is not decided whose it is, the second hears nothing.
        lab.silent = true;
        assert_eq!(lab.datagram(ALICE, &map(8080).of(BOB).request(ALICE).to_bytes()).len(), 0);
        assert_eq!(lab.datagram(CAROL, &theirs.of(BOB).request(CAROL).to_bytes()).len(), 0);
        // She gives it up before anybody has answered.
        assert_eq!(lab.map(ALICE, &map(8080).of(BOB).gone()).0, OK);
        lab.silent = false;
        lab.pass(60);
        assert_eq!((lab.mapped(), lab.upstream().len()), (vec![], 0), "{nat:?}");
        assert!(lab.gateway.is_idle());
    }
}

/// Decision 27: what Alice has for Bob is his, and does not count as hers.
#[test]
fn the_quota_is_the_third_partys() {
    let mut lab = Lab::up(NatMode::Own);
    let mut settings = settings(NatMode::Own);
    settings.policy.mappings_per_host = 2;
    lab.event(Event::Reconfigure(Box::new(settings)));
    for port in [8080, 8081] {
        assert_eq!(lab.map(ALICE, &map(port).of(BOB)).0, OK, "by SIGHUP");
    }
    assert_eq!(lab.map(ALICE, &map(8082).of(BOB)).0, ResultCode::USER_EX_QUOTA);
    assert_eq!(lab.map(BOB, &map(8082)).0, ResultCode::USER_EX_QUOTA);
    assert_eq!(lab.add(BOB, 2, port(8082)), Err(728));
    assert_eq!(lab.map(ALICE, &map(8082)).0, OK);
    assert_eq!(lab.map(ALICE, &map(8083).of(CAROL)).0, OK);
    // What she has, she keeps; but she asks for it no more.
    lab.event(Event::Reconfigure(Box::new(config(NatMode::Own))));
    assert_eq!(lab.map(ALICE, &map(8080).of(BOB)).0, ResultCode::UNSUPP_OPTION);
    assert_eq!(lab.mapped().len(), 4);
    lab.pass(3600);
    assert_eq!(lab.mapped(), []);
}

/// Who asks is counted, named and held to its rate, not whom it asks for.
#[test]
fn the_asker_is_the_one_who_is_refused() {
    let mut limited = settings(NatMode::Own);
    limited.policy.exchanges = Rate { per_second: 10, burst: 5 };
    let mut lab = Lab::up_with(limited);
    assert_eq!(lab.map(ALICE, &map(80).of(BOB)).0, ResultCode::NOT_AUTHORIZED);
    let last = lab.status().policy.refused.remove(0);
    assert_eq!(last.last_by, IpAddr::V4(ALICE));
    let named = |notice: &Notice| matches!(notice, Notice::Denied(by, ..) if *by == IpAddr::V4(ALICE));
    assert!(lab.notices().iter().any(named));
    for port in 8080..8085 {
        assert_eq!(lab.map(ALICE, &map(port).of(BOB)).0, OK);
    }
    let hears = |lab: &mut Lab, host, map: Map| lab.datagram(host, &map.request(host).to_bytes()).len();
    assert_eq!(hears(&mut lab, ALICE, map(9000).of(BOB)), 0, "silence over the rate");
    assert_eq!(hears(&mut lab, ALICE, map(9000).of(CAROL)), 0, "for whomever");
    assert_eq!(hears(&mut lab, ALICE, map(9000)), 0);
    assert_eq!(lab.map(BOB, &map(9000)).0, OK, "he has asked for nothing yet");
    let refused = lab.status().policy.refused;
    assert!(refused.iter().all(|one| one.last_by == IpAddr::V4(ALICE)), "{refused:?}");
}

/// §14.2: who has asked is told, with THIRD_PARTY; who asks for himself, without.
#[test]
fn updates_go_to_who_has_asked() {
    for nat in BOTH {
        let mut lab = Lab::up_with(settings(nat));
        lab.provider().config_mut().longest = 600;
        assert_eq!(lab.map(ALICE, &map(8080).of(BOB)).0, OK);
        assert_eq!(lab.map(BOB, &map(8081)).0, OK);
        lab.pass(100);
        let before = lab.effects.len();
        lab.event(Event::Release(BOB.into()));
        lab.pass(10);
        let third_party = PcpOption::ThirdParty(BOB.to_ipv6_mapped());
        for (host, port, options) in [(ALICE, 8080, vec![third_party]), (BOB, 8081, vec![])] {
            let told: Vec<_> =
                lab.sent_to(host, before).iter().map(|bytes| Response::parse(bytes).unwrap()).collect();
            assert_eq!(told.len(), 3, "{nat:?} {host}");
            for told in told {
                let Body::Map(map) = told.body else { panic!("{told:?}") };
                assert_eq!((told.lifetime, map.internal_port, &told.options), (0, port, &options));
            }
        }
    }
}

/// What was acknowledged survives, and its nonce is known, whoever asks.
#[test]
fn a_crash_with_third_parties() {
    for nat in BOTH {
        let mut lab = Lab::up_with(settings(nat));
        assert_eq!(lab.map(ALICE, &map(8080).of(BOB)).0, OK);
        lab.crash(settings(nat), 77, 1000);
        lab.bring_up();
        lab.pass(60);
        let theirs = Map { nonce: OTHERS, ..map(8080) };
        assert_eq!(lab.map(CAROL, &theirs.of(BOB)).0, ResultCode::NOT_AUTHORIZED);
        assert_eq!(lab.map(ALICE, &map(8080).of(BOB).gone()).0, OK);
        assert_eq!((lab.mapped(), lab.upstream().len()), (vec![], 0), "{nat:?}");
    }
}

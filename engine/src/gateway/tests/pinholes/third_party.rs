//! MAP over IPv6 for somebody else (RFC 6887 §13.1): the pinhole is the third party's.

use super::*;
use crate::prefix::ThirdParty;

fn rule(client: &str, internal: &str) -> ThirdParty {
    ThirdParty { client: client.parse().unwrap(), internal: vec![internal.parse().unwrap()] }
}

fn up(provider: Option<Model>) -> Lab {
    let mut lab = Lab::up6(provider);
    let third_party =
        vec![rule("2001:db8:1::10", "2001:db8:1::/64"), rule("192.168.1.10", "2001:db8:1::/64")];
    let settings = Config { third_party, ..lab.gateway.config.clone() };
    lab.event(Event::Reconfigure(Box::new(settings)));
    lab
}

fn of(host: Ipv6Addr) -> [PcpOption; 1] {
    [PcpOption::ThirdParty(host)]
}

#[test]
fn a_pinhole_for_somebody_else() {
    for provider in [None, Some(model())] {
        let mut lab = up(provider);
        assert_eq!(lab.map6(CAROL, &map6(8080).with(&of(DAVE))), (OK, 3600, at6(DAVE, 8080)));
        assert_eq!(lab.pinholes.open, BTreeSet::from([flows(DAVE, 8080)]));
        lab.agrees();
        // Who has it is told apart by the nonce.
        let others = Map6 { nonce: OTHERS, ..map6(8080) };
        assert_eq!(lab.map6(DAVE, &others).0, ResultCode::NOT_AUTHORIZED);
        // Only that port of that host can be had.
        let strict = |external_addr| {
            let map = Map6 { external_addr, ..map6(8080) };
            map.with(&[PcpOption::ThirdParty(DAVE), PcpOption::PreferFailure])
        };
        assert_eq!(lab.map6(CAROL, &strict(CAROL)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
        assert_eq!(lab.map6(CAROL, &strict(DAVE)).0, OK);
        let gone = Map6 { lifetime: 0, external: 0, ..map6(8080) }.with(&of(DAVE));
        let answer = lab.pcp6(CAROL, &gone.request(CAROL)).unwrap();
        assert_eq!((answer.result, answer.options), (OK, of(DAVE).to_vec()));
        lab.run(lab.now + 10_000);
        lab.agrees();
        assert!(lab.pinholes.open.is_empty());
    }
}

/// An IPv4 client may ask for it, too, if the list says so.
#[test]
fn asked_for_over_ipv4() {
    let mut lab = up(None);
    let ask = |lab: &mut Lab, from: Ipv4Addr, host| {
        let before = lab.effects.len();
        let request =
            Request { client_addr: from.to_ipv6_mapped(), ..map6(8080).with(&of(host)).request(CAROL) };
        let from = SocketAddr::from((from, 4000));
        let arrival = LanArrival { interface: 3, local: IpAddr::V4(LAN), from };
        lab.event(Event::Lan5351 { arrival, bytes: &request.to_bytes() });
        let sent = lab.effects[before..].iter().find_map(|(_, effect)| match effect {
            Effect::LanSend { to, bytes, .. } if *to == from => Some(Response::parse(bytes).unwrap()),
            _ => None,
        });
        sent.expect("answered at once").result
    };
    assert_eq!(ask(&mut lab, BOB, DAVE), ResultCode::UNSUPP_OPTION);
    assert_eq!(ask(&mut lab, ALICE, DAVE), OK);
    assert_eq!(lab.pinholes.open, BTreeSet::from([flows(DAVE, 8080)]));
}

#[test]
fn who_may_have_one_for_whom() {
    let mut lab = up(None);
    for (from, host, result) in [
        (DAVE, CAROL, ResultCode::UNSUPP_OPTION),
        (CAROL, CAROL, ResultCode::MALFORMED_REQUEST),
        (DAVE, DAVE, ResultCode::MALFORMED_REQUEST),
        (CAROL, LAN6, ResultCode::NOT_AUTHORIZED),
        (CAROL, W6, ResultCode::NOT_AUTHORIZED),
        (CAROL, "2001:db8:2::1".parse().unwrap(), ResultCode::NOT_AUTHORIZED),
    ] {
        for lifetime in [3600, 0] {
            let map = Map6 { lifetime, ..map6(8080) }.with(&of(host));
            assert_eq!(lab.map6(from, &map).0, result, "{from} for {host}");
        }
    }
    assert!(lab.pinholes.open.is_empty());
}

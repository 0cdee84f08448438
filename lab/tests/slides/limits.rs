//! "120 s hold of a deleted external address and port", and the server's quota.

use std::net::{Ipv6Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use engine::time::Instant as Time;
use lab::aftr::Aftr;
use lab::carrier::{Carrier, ds_lite_server};
use lab::nat::Nat;
use lab::netns::{AFTR, EXTERNAL, Host, LAN1, OTHER_ACCESS, ROUTER_ACCESS};
use lab::packet::{Ipv6, udp_v6};
use lab::wait::eventually;
use wire::pcp::{Body, MapData, NO_ADDR_V4, Nonce, PcpOption, Protocol, Request, Response, ResultCode};

use crate::bench::{
    Bench, CANNOT_PROVIDE_EXTERNAL, Deployment, FOR_EVER, SUCCESS, Terms, USER_EX_QUOTA, add,
};
use crate::common::{TCP, Told, reaches, reaches_nobody};

// ── The hold ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// RFC 6887 §7.4, what a "short lifetime error" is recommended to be, in seconds: with no mapping in the way the server does
/// not tell how long the hold lasts.
const SHORT: u64 = 30;

/// A freed port is refused to another subscriber and given to who had it; after the hold it is anybody's.
fn a_freed_port_is_held(deployment: Deployment) {
    const HOLD: u32 = 8;
    let terms = Terms { hold: HOLD, ..Terms::USUAL };
    let Some(mut bench) = Bench::new(deployment, terms, "") else { return };
    let mut caller = bench.caller(Host::Lan1, 1);
    let _listeners = bench.listeners(&[Host::Lan1, bench.other_host()], TCP, 8080);
    assert_eq!(add(&mut caller, Host::Lan1, TCP, 8080, ""), Told::done());
    let first = bench.asked_once();
    assert_eq!(caller.delete(TCP, 8080), Told::done());
    bench.asked_once();

    let (result, left) = bench.other_asks(TCP, 8080);
    assert_eq!(result, CANNOT_PROVIDE_EXTERNAL, "another subscriber");
    assert_eq!(left, SHORT, "how long that holds");
    reaches_nobody(&bench.network, TCP, 8080);
    assert_eq!(add(&mut caller, Host::Lan1, TCP, 8080, ""), Told::done(), "the same client");
    let again = bench.asked_once();
    again.is_strict(TCP, 8080, FOR_EVER, SUCCESS);
    assert_eq!((again.map.nonce, again.map.internal_port), (first.map.nonce, first.map.internal_port));
    reaches(&bench.network, TCP, 8080, "lan1");

    assert_eq!(caller.delete(TCP, 8080), Told::done());
    let freed = Instant::now();
    bench.asked_once();
    // Refusals are remembered by nobody who asks on the command line.
    eventually("the end of the hold", Duration::from_secs(u64::from(HOLD) + 5), || {
        (bench.other_asks(TCP, 8080).0 == SUCCESS).then_some(())
    });
    assert!(freed.elapsed() > Duration::from_secs(u64::from(HOLD) - 1), "held until then");
    reaches(&bench.network, TCP, 8080, &bench.other_host().to_string());
    assert_eq!(add(&mut caller, Host::Lan1, TCP, 8080, ""), Told::Refused(718), "now it is the other's");
    bench.asked_once().is_strict(TCP, 8080, FOR_EVER, CANNOT_PROVIDE_EXTERNAL);
}

/// D-15, D-16: at an AFTR.
#[test]
fn a_freed_port_is_held_by_an_aftr() {
    a_freed_port_is_held(Deployment::DsLite);
}

/// D-15, D-16: at a NAT44.
#[test]
fn a_freed_port_is_held_by_a_nat44() {
    a_freed_port_is_held(Deployment::Nat44);
}

/// MAP in plain IPv6 for TCP port 7000 of [`LAN1`] and external port 8080, or its delete; result and lifetime.
fn ask(carrier: &mut Carrier<Aftr>, now: Time, b4: Ipv6Addr, lifetime: u32) -> (ResultCode, u32) {
    let (internal_port, external_port) = (7000, if lifetime == 0 { 0 } else { 8080 });
    let nonce = Nonce([u8::try_from(b4.segments()[7]).expect("a small number"); 12]);
    let data =
        MapData { nonce, protocol: Protocol::TCP, internal_port, external_port, external_addr: NO_ADDR_V4 };
    let mut options = vec![PcpOption::ThirdParty(LAN1.to_ipv6_mapped())];
    if lifetime > 0 {
        options.push(PcpOption::PreferFailure);
    }
    let request = Request { lifetime, client_addr: b4, body: Body::Map(data), options }.to_bytes();
    carrier.handle_timeout(now);
    while carrier.poll_packet().is_some() {}
    carrier.handle_packet(now, &udp_v6((b4, 5350), (AFTR, 5351), &request).to_bytes()).expect("it is heard");
    let answer = Ipv6::parse(&carrier.poll_packet().expect("an answer")).expect("a packet");
    let response = Response::parse(answer.udp_data().expect("a datagram")).expect("PCP");
    (response.result, response.lifetime)
}

/// D-15, D-16: the slides' 120 s are what the AFTR has when nobody tells it otherwise, in virtual time to the millisecond.
/// `portferry pcp-server` has the same (its example file, which is tested, says so).
#[test]
fn a_freed_port_is_held_for_120_s() {
    let plane = Aftr::new(AFTR, Nat::new(vec![EXTERNAL], None));
    let start = Time::from_secs(1000);
    let mut carrier =
        Carrier::new(start, plane, ds_lite_server(vec![EXTERNAL]), Vec::new()).expect("no bindings");
    let granted = |(result, _): (ResultCode, u32)| result == ResultCode::SUCCESS;
    let refused = |(result, _): (ResultCode, u32)| result == ResultCode::CANNOT_PROVIDE_EXTERNAL;
    for after in [0, 1, 60_000, 119_999, 120_000] {
        let freed = start + Duration::from_secs(10_000 * (1 + after / 1000));
        assert!(granted(ask(&mut carrier, freed, ROUTER_ACCESS, 3600)));
        assert!(granted(ask(&mut carrier, freed, ROUTER_ACCESS, 0)));
        let then = freed + Duration::from_millis(after);
        let other = ask(&mut carrier, then, OTHER_ACCESS, 3600);
        assert!(if after < 120_000 { refused(other) } else { granted(other) }, "{after} ms: {other:?}");
        if refused(other) {
            assert_eq!(u64::from(other.1), SHORT, "{after} ms: how long that holds");
            assert!(granted(ask(&mut carrier, then, ROUTER_ACCESS, 3600)), "{after} ms: the same client");
        }
        // Freed for the next round.
        for b4 in [ROUTER_ACCESS, OTHER_ACCESS] {
            ask(&mut carrier, then, b4, 0);
        }
    }
}

// ── The quota ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// What is above the quota is refused, and only to who has used it up.
fn a_quota_is_kept(deployment: Deployment) {
    // One is the router's own.
    let terms = Terms { quota: 3, ..Terms::USUAL };
    let Some(mut bench) = Bench::new(deployment, terms, "") else { return };
    let mut callers = [1, 2].map(|version| bench.caller(Host::Lan1, version));
    for port in [7000, 7001] {
        assert_eq!(add(&mut callers[0], Host::Lan1, TCP, port, ""), Told::done());
        bench.asked_once();
    }
    for (caller, port, error) in [(0, 7002, 501), (1, 7003, 728)] {
        assert_eq!(add(&mut callers[caller], Host::Lan1, TCP, port, ""), Told::Refused(error));
        let asked = bench.asked_once();
        assert_eq!((asked.map.external_port, asked.result()), (port, USER_EX_QUOTA), "{asked:#?}");
        reaches_nobody(&bench.network, TCP, port);
    }
    assert_eq!(bench.held().len(), 2);
    bench.other_takes(TCP, 7004);
    // What is given back can be had again; as long as it is held for that, it counts.
    assert_eq!(callers[0].delete(TCP, 7000), Told::done());
    bench.asked_once();
    assert_eq!(add(&mut callers[0], Host::Lan1, TCP, 7005, ""), Told::Refused(501));
    assert_eq!(bench.asked_once().result(), USER_EX_QUOTA);
    let _listener = bench.listeners(&[Host::Lan1], TCP, 7000);
    let told = callers[0].add(TCP, 7000, SocketAddrV4::new(LAN1, 7000), 0, "");
    assert_eq!(told, Told::done());
    assert_eq!(bench.asked_once().result(), SUCCESS);
    reaches(&bench.network, TCP, 7000, "lan1");
}

/// D-16, R-41: USER_EX_QUOTA is 501 to WANIPConnection:1 and 728 to version 2; at an AFTR.
#[test]
fn a_quota_is_kept_by_an_aftr() {
    a_quota_is_kept(Deployment::DsLite);
}

/// D-16, R-41: at a NAT44.
#[test]
fn a_quota_is_kept_by_a_nat44() {
    a_quota_is_kept(Deployment::Nat44);
}

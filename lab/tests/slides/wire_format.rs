//! "PREFER_FAILURE", "DESCRIPTION" and "plain IPv6 encapsulation": what the server is told, and how it travels.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use lab::netns::{AFTR, Host, LAN1, LAN2, ROUTER_ACCESS};

use crate::bench::{
    Bench, CANNOT_PROVIDE_EXTERNAL, DESCRIPTION, Deployment, PREFER_FAILURE, SUCCESS, THIRD_PARTY, Terms, add,
};
use crate::common::{BOTH, TCP, Told, name, reaches, reaches_nobody};

/// Granted when the port is free, refused when another subscriber has it; only who asks for any port gets another.
fn prefer_failure(deployment: Deployment) {
    let Some(mut bench) = Bench::new(deployment, Terms::USUAL, "") else { return };
    let mut caller = bench.caller(Host::Lan1, 2);
    for protocol in BOTH {
        let _listeners = bench.listeners(&[Host::Lan1, bench.other_host()], protocol, 8081);
        let internal = SocketAddrV4::new(LAN1, 8081);
        let what = name(protocol);

        assert_eq!(caller.add(protocol, 8080, internal, 3600, ""), Told::done(), "{what}: free");
        bench.asked_once().is_strict(protocol, 8080, 3600, SUCCESS);
        reaches(&bench.network, protocol, 8080, "lan1");
        assert_eq!(caller.delete(protocol, 8080), Told::done(), "{what}");
        bench.asked_once();

        bench.other_takes(protocol, 8081);
        assert_eq!(caller.add(protocol, 8081, internal, 3600, ""), Told::Refused(718), "{what}: taken");
        bench.asked_once().is_strict(protocol, 8081, 3600, CANNOT_PROVIDE_EXTERNAL);
        reaches(&bench.network, protocol, 8081, &bench.other_host().to_string());
        assert_eq!(bench.held(), [], "{what}: there is no other one instead");

        let any = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", "8081"),
            ("NewProtocol", &what.to_uppercase()),
            ("NewInternalPort", "8081"),
            ("NewInternalClient", &LAN1.to_string()),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", ""),
            ("NewLeaseDuration", "3600"),
        ];
        let told = caller.call("AddAnyPortMapping", &any);
        let Told::Done(reserved) = &told else { panic!("{what}: any will do: {told:?}") };
        let port: u16 = reserved[0].1.parse().expect("a port");
        assert_ne!(port, 8081);
        let asked = bench.asked_once();
        assert_eq!((asked.map.external_port, asked.map.option(PREFER_FAILURE)), (8081, None), "{asked:#?}");
        assert_eq!((asked.result(), asked.answered().external_port), (SUCCESS, port));
        reaches(&bench.network, protocol, port, "lan1");
        assert_eq!(caller.delete(protocol, port), Told::done());
        bench.asked_once();
    }
}

/// D-16, R-16, R-18, R-20, R-21: at an AFTR.
#[test]
fn prefer_failure_at_an_aftr() {
    prefer_failure(Deployment::DsLite);
}

/// D-16, R-16, R-18, R-20, R-21: at a NAT44.
#[test]
fn prefer_failure_at_a_nat44() {
    prefer_failure(Deployment::Nat44);
}

/// What the control point calls its mapping arrives at the server and can be read there.
fn a_description_arrives(deployment: Deployment) {
    const WORDS: &str = "Azureus UPnP 6881 TCP";
    let Some(mut bench) = Bench::new(deployment, Terms::USUAL, "") else { return };
    let mut caller = bench.caller(Host::Lan1, 1);
    assert_eq!(add(&mut caller, Host::Lan1, TCP, 6881, WORDS), Told::done());
    assert_eq!(add(&mut caller, Host::Lan1, TCP, 6882, ""), Told::done());
    let asked = bench.asked();
    // Blanks make its length one that no server takes offence at.
    let sent: Vec<_> =
        asked.iter().map(|one| one.map.option(DESCRIPTION).map(<[u8]>::trim_ascii_end)).collect();
    assert_eq!(sent, [Some(WORDS.as_bytes()), None], "{asked:#?}");
    assert!(asked.iter().all(|one| one.result() == SUCCESS), "{asked:#?}");
    let held = bench.held();
    let at = |port: u16| held.iter().find(|held| held.external.port() == port).expect("it was granted");
    assert_eq!(at(6881).description.as_deref(), Some(WORDS));
    assert_eq!(at(6882).description, None);
}

/// D-16, R-45: at an AFTR.
#[test]
fn a_description_arrives_at_an_aftr() {
    a_description_arrives(Deployment::DsLite);
}

/// D-16, R-45: at a NAT44.
#[test]
fn a_description_arrives_at_a_nat44() {
    a_description_arrives(Deployment::Nat44);
}

/// D-16, R-12, T-5, decision 22: the slides' "plain IPv6 encapsulation". PCP goes in IPv6 to the AFTR's address and port 5351,
/// beside the softwire, with the host's IPv4 address in THIRD_PARTY; the answer comes back the same way.
#[test]
fn plain_ipv6_as_seen_on_the_wire() {
    let Some(mut bench) = Bench::new(Deployment::DsLite, Terms::USUAL, "") else { return };
    let softwire = bench.softwire();
    let hosts = [(Host::Lan1, LAN1), (Host::Lan2, LAN2)];
    for (host, addr) in hosts {
        let mut caller = bench.caller(host, 1);
        for protocol in BOTH {
            // One port inside, so that only the address tells one host from the other.
            let external = 8080 + u16::from(host == Host::Lan2);
            let _listener = bench.listeners(&[host], protocol, 7000);
            assert_eq!(caller.add(protocol, external, SocketAddrV4::new(addr, 7000), 0, ""), Told::done());
            reaches(&bench.network, protocol, external, &host.to_string());
            let asked = bench.asked_once();
            let (request, (answer, answered)) = (&asked.packet, asked.answer.as_ref().expect("an answer"));
            assert_eq!(request.source.ip(), IpAddr::V6(ROUTER_ACCESS));
            assert_eq!(request.destination, SocketAddr::new(AFTR.into(), 5351));
            assert_eq!((answer.source, answer.destination), (request.destination, request.source));
            // RFC 6887 §7.1: PCP Client's IP Address is the packet's source; §13.1: ::ffff:a.b.c.d.
            assert_eq!(request.payload[8..24], ROUTER_ACCESS.octets());
            for map in [&asked.map, answered] {
                assert_eq!(map.option(THIRD_PARTY), Some(&addr.to_ipv6_mapped().octets()[..]), "{asked:#?}");
            }
        }
    }
    let (aftr, router) = (IpAddr::from(AFTR), IpAddr::from(ROUTER_ACCESS));
    for packet in bench.datagrams() {
        let ends = [packet.source.ip(), packet.destination.ip()];
        assert!(ends == [router, aftr] || ends == [aftr, router], "{packet:?}");
    }
    assert_eq!(softwire.packets(), [], "nothing of it is inside the softwire");
    for protocol in BOTH {
        reaches_nobody(&bench.network, protocol, 7000);
    }
}

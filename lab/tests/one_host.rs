//! K-3: a control point that speaks over IPv6, as those with libupnp do that have both, is the host that the router knows by the same
//! MAC. Real processes in network namespaces as in `end_to_end`, so it needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test one_host
//! ```

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};

use common::{
    CASCADED, Caller, ControlPoint, NAT, SECOND, TCP, Told, interworking_subject, link_local, listener,
    pings, reaches, ready, zone,
};
use lab::netns::{Host, LAN_INTERFACE, LAN1, LAN2, Network, ROUTER_LAN, ROUTER_LAN_V6};
use lab::provider::{Options, Provider};
use lab::subject::{self, HTTP_PORT, Subject};
use lab::wait::eventually;

/// The usual network with IPv6 on the LAN, or `None` (after saying so) where there is no laboratory.
fn laboratory() -> Option<(Network, Subject)> {
    let subject = interworking_subject()?;
    let network = Network::new(CASCADED);
    network.add_ipv6();
    Some((network, subject))
}

/// The gateway's addresses with the port, as LAN hosts reach them over IPv6: the network's, and the link-local one by lan1's number
/// for its interface.
fn literals(network: &Network, host: Host) -> [String; 2] {
    let (address, zone) = (link_local(network, Host::Router, LAN_INTERFACE), zone(network, host));
    [format!("[{ROUTER_LAN_V6}]:{HTTP_PORT}"), format!("[{address}%{zone}]:{HTTP_PORT}")]
}

fn at(host: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(host, port)
}

/// The router forgets which MACs its IPv4 neighbours have.
fn forget(network: &Network) {
    network.run(Host::Router, "ip", ["-4", "neigh", "flush", "dev", LAN_INTERFACE, "nud", "all"]);
}

/// Decision 27, K-3: by its link-local address and by a global one, a host maps its own IPv4 address, lists and deletes; what nothing
/// is known of it may not.
#[test]
fn a_control_point_over_ipv6_maps_its_own_ipv4_address() {
    let Some((network, subject)) = laboratory() else { return };
    let provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    for (literal, port) in literals(&network, Host::Lan1).iter().zip([9090, 9091]) {
        // The router knows it from what it has said before.
        assert!(pings(&network, Host::Lan1, ROUTER_LAN, 5 * SECOND));
        let mut caller = Caller::at(&control_point, literal, 2);
        assert_eq!(caller.add(TCP, port, at(LAN1, 8080), 3600, "over IPv6"), Told::done(), "{literal}");
        reaches(&network, TCP, port, "lan1");
        assert!(provider.forwarding(TCP, port).is_some());
        // Without an internal client: whoever asks.
        let arguments = [
            ("NewExternalPort", "9092"),
            ("NewProtocol", "TCP"),
            ("NewInternalPort", "8080"),
            ("NewInternalClient", ""),
        ];
        assert_eq!(caller.call("AddPortMapping", &arguments), Told::done());
        let listed = subject::listed(&network).expect("it runs");
        assert!(listed.iter().all(|mapping| mapping.internal == at(LAN1, 8080)), "{listed:?}");
        assert_eq!(caller.delete(TCP, 9092), Told::done());
        // Another host's.
        let other = caller.add(TCP, 9093, at(LAN2, 8080), 3600, "not mine");
        assert_eq!(other, Told::Refused(606), "{literal}");

        forget(&network);
        assert_eq!(caller.delete(TCP, port), Told::Refused(606), "{literal}");
        assert_eq!(caller.add(TCP, 9094, at(LAN1, 8080), 3600, "whose?"), Told::Refused(606), "{literal}");
        assert!(pings(&network, Host::Lan1, ROUTER_LAN, 5 * SECOND));
        assert_eq!(caller.delete(TCP, port), Told::done(), "{literal}");
    }
    assert_eq!(subject::listed(&network), Some(vec![]));
    assert!(daemon.terminate(30 * SECOND).success());
}

/// K-3: who says that he is somebody else is not, and who has very many addresses has none.
#[test]
fn a_liar_over_ipv6_is_himself() {
    let Some((network, subject)) = laboratory() else { return };
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let victim = ready(&network, &mut daemon, Host::Lan1);
    victim.adds(8080, 9090, "TCP", 3600);
    let liar = ControlPoint { host: Host::Lan2, ..victim.clone() };
    for literal in literals(&network, Host::Lan2) {
        for host in [Host::Lan1, Host::Lan2] {
            assert!(pings(&network, host, ROUTER_LAN, 5 * SECOND));
        }
        let mut caller = Caller::at(&liar, &literal, 2);
        for internal in [LAN1, ROUTER_LAN, Ipv4Addr::LOCALHOST, Ipv4Addr::new(198, 51, 100, 20)] {
            let told = caller.add(TCP, 9091, at(internal, 8080), 3600, "a lie");
            assert_eq!(told, Told::Refused(606), "{literal} {internal}");
        }
        assert_eq!(caller.delete(TCP, 9090), Told::Refused(606));
        assert_eq!(caller.add(TCP, 9091, at(LAN2, 8080), 3600, "true"), Told::done(), "{literal}");
        assert_eq!(caller.delete(TCP, 9091), Told::done());
    }

    // More addresses, all of them in the router's table: eight are his, of nine none is.
    let [literal, _] = literals(&network, Host::Lan2);
    let mut caller = Caller::at(&liar, &literal, 2);
    for (last, told) in
        (101..=108).map(|last| (last, if last < 108 { Told::done() } else { Told::Refused(606) }))
    {
        let address = Ipv4Addr::new(192, 168, 77, last);
        network.run(Host::Lan2, "ip", ["addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        eventually(&format!("{address} in the router's table"), 10 * SECOND, || {
            pings(&network, Host::Router, address, SECOND).then_some(())
        });
        assert_eq!(caller.add(TCP, 9092, at(LAN2, 8080), 3600, "one of many"), told, "{address}");
    }
    // Over IPv4 it is still itself.
    let mut caller = Caller::new(&liar, 2);
    assert_eq!(caller.add(TCP, 9092, at(LAN2, 8080), 3600, "itself"), Told::done());
    assert!(daemon.terminate(30 * SECOND).success());
}

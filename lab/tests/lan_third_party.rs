//! THIRD_PARTY from the LAN (docs/lan-pcp.md), and what becomes of PCP's mappings when that is switched off: `portferry pcp` asks for
//! another host, bytes come through to that one. Real processes in network namespaces as in `end_to_end`, so it needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test lan_third_party
//! ```

mod common;

use std::net::IpAddr;
use std::path::Path;

use common::{
    CASCADED, NAT, NO_NAT, ROUTED, SECOND, TCP, UDP, interworking_subject, listener, pcp, reaches,
    reaches_nobody, ready,
};
use lab::netns::{Host, LAN1, LAN1_V6, LAN2, LAN2_V6, Network, Process, ROUTER_LAN, ROUTER_LAN_V6};
use lab::provider::{Options, Provider};
use lab::subject::{self, Subject, listed};
use lab::wait::eventually;
use serde_json::{Value, json};

/// With these lines in `[lan]`, from now on.
fn reloads(network: &Network, daemon: &Process, nat: &str, lines: &str) {
    let text = subject::configuration(network, nat, "").replace("[wan]\n", &format!("{lines}[wan]\n"));
    let before = daemon.log().matches("read again").count();
    std::fs::write(network.directory().join("portferry.toml"), text).expect("the directory is ours");
    daemon.signal("HUP");
    eventually("the configuration is read", 10 * SECOND, || {
        (daemon.log().matches("read again").count() > before).then_some(())
    });
}

fn pinholes(network: &Network) -> Value {
    let answer = subject::ask(network, "pinholes").expect("the daemon answers");
    serde_json::from_str(&answer).expect("JSON")
}

#[test]
fn a_management_station_asks_for_another_host() {
    let Some(subject) = interworking_subject() else { return };
    let Subject::Portferry(program) = &subject else { return };
    let program: &Path = program;
    for (layout, nat) in [(CASCADED, NAT), (ROUTED, NO_NAT)] {
        let network = Network::new(layout);
        network.add_ipv6();
        let third_party = true; // of the provider's, without a NAT of the router's own
        let provider = Provider::start(&network, Options { third_party, ..Options::default() });
        let mut daemon = subject.start(&network, nat, "");
        let control_point = ready(&network, &mut daemon, Host::Lan1);
        let nonce = "0f0e0d0c0b0a090807060504";
        let map = format!("map tcp 8080 9090 --nonce {nonce} --third-party {LAN2}");
        let asks = |host, line: &str| pcp(&network, host, program, ROUTER_LAN.into(), line);
        let told = asks(Host::Lan1, &map);
        assert_eq!((&told["outcome"], &told["result"]["name"]), (&json!("refused"), &json!("UNSUPP_OPTION")));

        let lines = format!("third_party = [\"{LAN1} for {ROUTER_LAN}/24\", \"{LAN1_V6} for {LAN2_V6}\"]\n");
        reloads(&network, &daemon, nat, &lines);
        let told = asks(Host::Lan1, &map);
        assert_eq!(told["outcome"], "granted", "{nat}: {told:#}");
        let all: Vec<_> = listed(&network).expect("the daemon answers");
        assert_eq!(all.len(), 1, "{nat}: {all:?}");
        assert_eq!((*all[0].internal.ip(), all[0].external.port()), (LAN2, 9090), "{nat}");
        let _two = listener(&network, Host::Lan2, TCP, 8080);
        reaches(&network, TCP, 9090, "lan2");
        assert!(control_point.upnpc(&["-l"]).contains(&format!("TCP  9090->{LAN2}:8080")), "{nat}");
        for (host, line, result) in [
            (Host::Lan2, format!("map tcp 8081 8081 --third-party {LAN1}"), "UNSUPP_OPTION"),
            (Host::Lan1, format!("map tcp 8081 8081 --third-party {ROUTER_LAN}"), "NOT_AUTHORIZED"),
            (Host::Lan1, format!("map tcp 8081 8081 --third-party {LAN1}"), "MALFORMED_REQUEST"),
        ] {
            let told = asks(host, &line);
            assert_eq!(told["result"]["name"], result, "{nat}: {line}: {told:#}");
        }
        // Over IPv6 it is the other one's pinhole.
        let of_v6 = format!("map udp 8082 8082 --third-party {LAN2_V6}");
        let told = pcp(&network, Host::Lan1, program, IpAddr::V6(ROUTER_LAN_V6), &of_v6);
        assert_eq!(told["outcome"], "granted", "{nat}: {told:#}");
        let open = pinholes(&network);
        assert!(open.to_string().contains(&LAN2_V6.to_string()), "{nat}: {open}");

        // It is whose nonce it is: its owner on the LAN has none.
        let told = asks(Host::Lan2, "delete tcp 8080 --nonce 000000000000000000000001");
        assert_eq!(told["result"]["name"], "NOT_AUTHORIZED", "{nat}: {told:#}");
        let told = asks(Host::Lan1, &format!("delete tcp 8080 --nonce {nonce} --third-party {LAN2}"));
        assert_eq!(told["outcome"], "deleted", "{nat}: {told:#}");
        reaches_nobody(&network, TCP, 9090);

        // And all of it goes with PCP; UPnP's stands.
        for (protocol, port) in [("tcp", 9090), ("udp", 9091)] {
            let told = asks(Host::Lan1, &format!("map {protocol} 8080 {port} --third-party {LAN2}"));
            assert_eq!(told["outcome"], "granted", "{nat}: {told:#}");
        }
        control_point.adds(7000, 7000, "TCP", 3600);
        reloads(&network, &daemon, nat, "pcp = false\n");
        let ports = || -> Vec<u16> {
            let all = provider.forwardings().into_iter().filter(|one| one.to.port() != 9);
            all.map(|one| one.external_port).collect()
        };
        eventually("PCP's are gone at the provider", 10 * SECOND, || (ports() == [7000]).then_some(()));
        let left = listed(&network).expect("the daemon answers");
        assert_eq!(left.iter().map(|one| one.external.port()).collect::<Vec<_>>(), [7000], "{nat}");
        assert_eq!(pinholes(&network), json!([]), "{nat}");
        reaches_nobody(&network, TCP, 9090);
        reaches_nobody(&network, UDP, 9091);
        assert_eq!(daemon.ended(), None);
    }
}

//! IPv6 pinholes from the LAN to the Internet: real control points and PCP clients, this router's firewall in the kernel, and the
//! provider's. Real processes in network namespaces as in `end_to_end`, so it needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test pinholes
//! ```

mod common;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use common::{
    CASCADED, Caller, ControlPoint, NAT, NO_NAT, ROUTED, SECOND, TCP, Told, UDP, ask_within,
    interworking_subject, listener, pcp, reaches, ready, tagged,
};
use lab::netns::{
    Host, LAN1, LAN1_V6, LAN2_V6, Layout, Network, Process, ROUTER_LAN, ROUTER_LAN_V6, WAN_INTERFACE,
};
use lab::pcp_server::{PcpServer, SUBSCRIBERS};
use lab::provider::{Options, Provider};
use lab::subject::{self, HTTP_PORT, Subject};
use lab::wait::eventually;
use serde_json::Value;

const PROVIDER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const ROUTER_WAN_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const INTERNET_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x20);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 0x21);

/// IPv6 from the LAN to the Internet; nothing filters it.
fn dual_stack(network: &Network) {
    network.add_ipv6();
    let address = |host, interface: &str, address: &str| {
        for setting in ["accept_dad=0", "disable_ipv6=0"] {
            network.run(host, "sysctl", ["-qw", &format!("net.ipv6.conf.{interface}.{setting}")]);
        }
        network.run(host, "ip", ["addr", "add", &format!("{address}/64"), "dev", interface, "nodad"]);
    };
    address(Host::Router, WAN_INTERFACE, &ROUTER_WAN_V6.to_string());
    address(Host::Provider, "cust0", &PROVIDER_V6.to_string());
    address(Host::Provider, "inet0", "2001:db8:9::1");
    address(Host::Internet, "eth0", &INTERNET_V6.to_string());
    address(Host::Internet, "eth0", &OTHER_V6.to_string());
    for host in [Host::Router, Host::Provider] {
        network.run(host, "sysctl", ["-qw", "net.ipv6.conf.all.forwarding=1"]);
    }
    let route = |host, to: &str, via: Ipv6Addr| {
        network.run(host, "ip", ["-6", "route", "add", to, "via", &via.to_string()]);
    };
    route(Host::Router, "default", PROVIDER_V6);
    route(Host::Provider, "2001:db8:77::/64", ROUTER_WAN_V6);
    route(Host::Internet, "default", "2001:db8:9::1".parse().expect("an address"));
    for host in [Host::Lan1, Host::Lan2] {
        route(host, "default", ROUTER_LAN_V6);
    }
    eventually("IPv6 from end to end", 10 * SECOND, || {
        common::pings(network, Host::Internet, LAN1_V6, SECOND).then_some(())
    });
}

/// The provider has a firewall of IPv6, and lets this router ask for its LAN.
fn provider<'a>(network: &'a Network, program: &Path) -> PcpServer<'a> {
    let settings = format!(
        "[nat]\nipv6_firewall = true\n[access]\nthird_party = [\"{ROUTER_WAN_V6} for 2001:db8:77::/64\"]\n"
    );
    PcpServer::start(network, program, &[SUBSCRIBERS, "2001:db8::/64", "2001:db8:77::/64"], &settings)
}

fn laboratory(layout: Layout) -> Option<(Network, Subject)> {
    let subject = interworking_subject()?;
    let network = Network::new(layout);
    dual_stack(&network);
    Some((network, subject))
}

fn program(subject: &Subject) -> &Path {
    match subject {
        Subject::Portferry(program) => program,
        Subject::Miniupnpd => unreachable!("it is no interworking function"),
    }
}

/// What a program outside hears from that port of a LAN host.
fn knocks(network: &Network, protocol: u8, to: (Ipv6Addr, u16)) -> Option<String> {
    let to = SocketAddr::from(to);
    ask_within(Duration::from_millis(700), network, Host::Internet, protocol, to, "knock").ok()
}

#[track_caller]
fn lets_in(network: &Network, protocol: u8, to: (Ipv6Addr, u16), host: &str) {
    assert_eq!(knocks(network, protocol, to), Some(format!("{host}:knock")), "{to:?}");
}

#[track_caller]
fn keeps_out(network: &Network, protocol: u8, to: (Ipv6Addr, u16)) {
    assert_eq!(knocks(network, protocol, to), None, "{to:?}");
}

/// What `portferry pinholes --json` says.
fn listed(network: &Network) -> Vec<Value> {
    let answer = subject::ask(network, "pinholes").expect("the daemon answers");
    serde_json::from_str::<Value>(&answer).expect("JSON").as_array().expect("a list").clone()
}

fn number(said: &str) -> String {
    let number = said.split("Pinhole ID = ").nth(1).and_then(|rest| rest.split_whitespace().next());
    number.unwrap_or_else(|| panic!("{said}")).to_owned()
}

/// The pinholes at the provider: internal address and port.
fn at_provider(provider: &PcpServer<'_>) -> Vec<String> {
    let all = provider.mappings().into_iter();
    let internal = all.map(|one| one["internal"].as_str().expect("text").to_owned());
    let mut all: Vec<String> = internal.filter(|one| one.starts_with("[2001:db8:77:")).collect();
    all.sort();
    all
}

fn v6_listener(network: &Network, host: Host, protocol: u8, port: u16) -> Process {
    tagged(network, host, protocol, (Ipv6Addr::UNSPECIFIED, port), &host.to_string())
}

const FILTER: &str = "[nat]\nforward_filter = true\n";

/// igd.md 8 by a client that is not ours: both firewalls are closed, upnpc opens one port in both, and closes it.
#[test]
fn a_pinhole_by_upnpc_through_two_firewalls() {
    let Some((network, subject)) = laboratory(CASCADED) else { return };
    let server = provider(&network, program(&subject));
    let more = format!("firewall_servers = [\"{PROVIDER_V6}\"]\n{FILTER}");
    let mut daemon = subject.start(&network, NAT, &more);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    daemon.await_log("is asked for pinholes in the provider's IPv6 firewall", 10 * SECOND);
    let _one = v6_listener(&network, Host::Lan1, TCP, 8080);
    let _two = v6_listener(&network, Host::Lan1, UDP, 8080);
    keeps_out(&network, TCP, (LAN1_V6, 8080));
    assert!(control_point.upnpc(&["-S"]).contains("FirewallEnabled: 1 & Inbound Pinhole Allowed: 1"));

    let own = LAN1_V6.to_string();
    let said = control_point.upnpc(&["-A", "", "0", &own, "8080", "TCP", "3600"]);
    let id = number(&said);
    lets_in(&network, TCP, (LAN1_V6, 8080), "lan1");
    keeps_out(&network, UDP, (LAN1_V6, 8080));
    assert_eq!(at_provider(&server), [format!("[{own}]:8080")]);
    let all = listed(&network);
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!(all[0]["at_provider"], format!("[{own}]:8080"), "{all:?}");
    let working = control_point.upnpc(&["-C", &id]);
    assert!(working.contains("IsWorking = Yes"), "{working}");
    let packets = control_point.upnpc(&["-K", &id]);
    assert!(packets.contains("PinholePackets = ") && !packets.contains("PinholePackets = 0"), "{packets}");
    control_point.upnpc(&["-U", &id, "7200"]);
    assert!(listed(&network)[0]["lease_left"].as_u64().expect("seconds") > 3600);

    // Another host may neither have it nor end it.
    let other = ControlPoint { host: Host::Lan2, ..control_point.clone() };
    let said = other.upnpc(&["-A", "", "0", &own, "8081", "TCP", "3600"]);
    assert!(said.contains("606"), "{said}");
    let said = other.upnpc(&["-D", &id]);
    assert!(said.contains("606"), "{said}");
    lets_in(&network, TCP, (LAN1_V6, 8080), "lan1");

    control_point.upnpc(&["-D", &id]);
    keeps_out(&network, TCP, (LAN1_V6, 8080));
    eventually("the provider's is closed", 5 * SECOND, || at_provider(&server).is_empty().then_some(()));
    assert_eq!(listed(&network), Vec::<Value>::new());
    assert!(daemon.terminate(30 * SECOND).success());
}

/// One remote host, one of its ports: this router looks, whatever the provider does.
#[test]
fn only_those_come_in_who_shall() {
    let Some((network, subject)) = laboratory(ROUTED) else { return };
    let _provider = Provider::start(&network, Options { third_party: true, ..Options::default() });
    let filter = "table ip6 lab {\n chain forward { type filter hook forward priority 0; policy drop;\n\
                  ct state established,related accept; iifname \"br-lan\" accept;\n\
                  meta mark & 0x10 == 0x10 accept; meta l4proto ipv6-icmp accept;\n }\n}\n";
    network.nft(Host::Router, filter);
    let mut daemon = subject.start(&network, NO_NAT, "anycast = false\n[nat]\nmark = 0x10\n");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _one = v6_listener(&network, Host::Lan1, TCP, 8080);
    let own = LAN1_V6.to_string();
    let at = format!("{ROUTER_LAN}:{HTTP_PORT}");
    let mut caller = Caller::of_service(&control_point, &at, "WANIPv6FirewallControl", 1);
    let mut add = |remote: &str, port: &str| {
        let arguments = [
            ("RemoteHost", remote),
            ("RemotePort", port),
            ("InternalClient", &own),
            ("InternalPort", "8080"),
            ("Protocol", "6"),
            ("LeaseTime", "3600"),
        ];
        match caller.call("AddPinhole", &arguments) {
            Told::Done(values) => values,
            told => panic!("{told:?}"),
        }
    };
    keeps_out(&network, TCP, (LAN1_V6, 8080));
    add("2001:db8:9::77", "0");
    keeps_out(&network, TCP, (LAN1_V6, 8080));
    add(&INTERNET_V6.to_string(), "9");
    keeps_out(&network, TCP, (LAN1_V6, 8080));
    // Whichever of its addresses the kernel takes.
    for remote in [INTERNET_V6, OTHER_V6] {
        add(&remote.to_string(), "0");
    }
    lets_in(&network, TCP, (LAN1_V6, 8080), "lan1");
    assert_eq!(listed(&network).len(), 4);
    assert!(daemon.terminate(30 * SECOND).success());
    let left = network.run(Host::Router, "nft", ["list", "tables"]);
    assert_eq!(left.trim(), "table ip6 lab", "nothing is left behind");
}

/// RFC 6887 over IPv6, D-4: a PCP client's pinhole stands in both firewalls, also when the daemon is killed, and ends everywhere.
#[test]
fn a_pinhole_by_pcp_survives_a_kill() {
    let Some((network, subject)) = laboratory(CASCADED) else { return };
    let server = provider(&network, program(&subject));
    let more = format!("firewall_servers = [\"{PROVIDER_V6}\"]\nservice_wait = 1\n{FILTER}");
    let mut daemon = subject.start(&network, NAT, &more);
    ready(&network, &mut daemon, Host::Lan2);
    daemon.await_log("is asked for pinholes in the provider's IPv6 firewall", 10 * SECOND);
    let _one = v6_listener(&network, Host::Lan2, UDP, 7000);
    keeps_out(&network, UDP, (LAN2_V6, 7000));
    let gateway = IpAddr::V6(ROUTER_LAN_V6);
    let map = |line: &str| pcp(&network, Host::Lan2, program(&subject), gateway, line);
    let nonce = "000102030405060708090a0b";
    let told = map(&format!("map udp 7000 --lifetime 1800 --nonce {nonce}"));
    assert_eq!(told["outcome"], "granted", "{told}");
    assert_eq!(told["external_address"], LAN2_V6.to_string(), "{told}");
    lets_in(&network, UDP, (LAN2_V6, 7000), "lan2");
    assert_eq!(at_provider(&server), [format!("[{LAN2_V6}]:7000")]);
    let before = listed(&network);

    daemon.signal("KILL");
    daemon.wait(5 * SECOND);
    lets_in(&network, UDP, (LAN2_V6, 7000), "lan2");
    let mut daemon = subject.start(&network, NAT, &more);
    daemon.await_log("pinholes of before the start are opened again", 15 * SECOND);
    lets_in(&network, UDP, (LAN2_V6, 7000), "lan2");
    eventually("the provider is asked again", 15 * SECOND, || {
        (listed(&network)[0]["at_provider"] == before[0]["at_provider"]).then_some(())
    });
    assert_eq!(listed(&network)[0]["id"], before[0]["id"]);
    let told = map(&format!("delete udp 7000 --nonce {nonce}"));
    assert_eq!(told["outcome"], "deleted", "{told}");
    keeps_out(&network, UDP, (LAN2_V6, 7000));
    eventually("the provider's is closed", 5 * SECOND, || at_provider(&server).is_empty().then_some(()));
    assert!(daemon.terminate(30 * SECOND).success());
}

/// Clients of all protocols side by side: a pinhole is nobody's hindrance, and a provider without a firewall of IPv6 none.
#[test]
fn beside_mappings_of_all_protocols() {
    let Some((network, subject)) = laboratory(CASCADED) else { return };
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, FILTER);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _v4 = listener(&network, Host::Lan1, TCP, 8080);
    let _v6 = v6_listener(&network, Host::Lan2, TCP, 8080);
    control_point.adds(8080, 8080, "TCP", 3600);
    let natpmpc = network.run(
        Host::Lan2,
        "natpmpc",
        ["-g", &ROUTER_LAN.to_string(), "-a", "9090", "8080", "tcp", "3600"],
    );
    assert!(natpmpc.contains("Mapped public port 9090"), "{natpmpc}");
    let gateway = IpAddr::V6(ROUTER_LAN_V6);
    let told = pcp(&network, Host::Lan2, program(&subject), gateway, "map tcp 8080 --lifetime 600");
    assert_eq!(told["outcome"], "granted", "{told}");
    reaches(&network, TCP, 8080, "lan1");
    reaches(&network, TCP, 9090, "lan2");
    lets_in(&network, TCP, (LAN2_V6, 8080), "lan2");
    keeps_out(&network, TCP, (LAN1_V6, 8080));
    let mappings = subject::listed(&network).expect("it runs");
    assert_eq!(mappings.len(), 2, "{mappings:?}");
    assert!(mappings.iter().any(|mapping| *mapping.internal.ip() == LAN1));
    assert_eq!(listed(&network).len(), 1);
    assert!(daemon.terminate(30 * SECOND).success());
    let left = network.run(Host::Router, "nft", ["list", "tables"]);
    assert!(!left.contains("portferry"), "{left}");
}

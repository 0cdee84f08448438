//! The LAN over IPv6: control points that search there, and hear, and PCP. Real processes in network namespaces as in
//! `end_to_end`, so it needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test lan_ipv6
//! ```

mod common;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::Stdio;

use common::pcp::Pcp;
use common::{
    CASCADED, NAT, PROBE, SECOND, UDP, interworking_subject, link_local, pings, ready, tagged, zone,
};
use lab::netns::{self, EXTERNAL, Host, LAN_INTERFACE, LAN1, LAN1_V6, Network, ROUTER_LAN, ROUTER_LAN_V6};
use lab::provider::{Options, Provider};
use lab::subject::{self, HTTP_PORT, Subject};
use lab::wait::eventually;
use serde_json::Value;

const ALL: &str = "ssdp:all";
const ROOT: &str = "upnp:rootdevice";
const DEVICE_1: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:1";
const DEVICE_2: &str = "urn:schemas-upnp-org:device:InternetGatewayDevice:2";
const SERVICE: &str = "urn:schemas-upnp-org:service:WANIPConnection:1";

/// The usual network without IPv6, or `None` (after saying so) where there is no laboratory.
fn laboratory() -> Option<(Network, Subject)> {
    interworking_subject().map(|subject| (Network::new(CASCADED), subject))
}

/// What comes back within a second and a half of each of these searches, said at once: the sources, and LOCATION.
#[track_caller]
fn searches<const N: usize>(
    network: &Network,
    host: Host,
    address: &str,
    targets: [&str; N],
) -> [Vec<(IpAddr, String)>; N] {
    let asking = targets.map(|target| {
        let mut command = network.command(host, PROBE);
        command.args(["searches", address, target, "1500"]).stdout(Stdio::piped());
        command.spawn().expect("it runs")
    });
    asking.map(|child| {
        let output = child.wait_with_output().expect("a child can be waited for");
        assert!(output.status.success(), "{}", netns::text(&output));
        let answer = |line: &str| {
            let (from, location) = line.split_once(' ').expect("the probe prints two words");
            (from.parse().expect("an address"), location.to_owned())
        };
        String::from_utf8_lossy(&output.stdout).lines().map(answer).collect()
    })
}

/// Fetches a description, whose host a control point completes by its own number for the link.
#[track_caller]
fn describes(network: &Network, host: Host, own: IpAddr, path: &str) -> bool {
    let address = match own {
        IpAddr::V6(own) if own.is_unicast_link_local() => {
            format!("[{own}%{}]:{HTTP_PORT}", zone(network, host))
        }
        IpAddr::V6(own) => format!("[{own}]:{HTTP_PORT}"),
        IpAddr::V4(own) => format!("{own}:{HTTP_PORT}"),
    };
    let answer = network.run(host, PROBE, ["get", &address, path]);
    answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("InternetGatewayDevice")
}

/// uda.md 5, K-2, K-5: found over IPv6 by either group and at each address, each search answered once, from the
/// address that LOCATION holds; over IPv4 still once. Both groups hear of it from an address of their scope.
#[test]
fn a_gateway_is_found_over_ipv6() {
    let Some((network, subject)) = laboratory() else { return };
    network.add_ipv6();
    let (link, zone) = (link_local(&network, Host::Router, LAN_INTERFACE), zone(&network, Host::Lan1));
    let groups = [("ff02::c", IpAddr::V6(link)), ("ff05::c", ROUTER_LAN_V6.into())];
    let mut hearing = groups.map(|(group, own)| {
        let at = format!("[{group}%{zone}]:1900");
        let mut process =
            network.spawn(Host::Lan1, &format!("announcements-{group}"), PROBE, ["announcements", &at]);
        process.await_log("listening", 5 * SECOND);
        (process, own)
    });
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    daemon.await_log("is running", 10 * SECOND);
    // The first answers are those of a gateway that listens at all of its addresses.
    let to_groups = groups.map(|(group, own)| (format!("[{group}%{zone}]:1900"), own));
    let unicast = [
        (format!("[{link}%{zone}]:1900"), IpAddr::V6(link)),
        (format!("[{ROUTER_LAN_V6}]:1900"), ROUTER_LAN_V6.into()),
    ];
    let v4 = [("239.255.255.250:1900".to_owned(), IpAddr::V4(ROUTER_LAN))];
    for (address, own) in to_groups.iter().chain(&unicast).chain(&v4) {
        let literal = match own {
            IpAddr::V6(own) => format!("[{own}]"),
            IpAddr::V4(own) => own.to_string(),
        };
        let answer = |path: &str| vec![(*own, format!("http://{literal}:{HTTP_PORT}{path}"))];
        let heard = searches(&network, Host::Lan1, address, [ROOT, DEVICE_1, SERVICE, DEVICE_2, ALL]);
        let [root, device_1, service, device_2, all] = heard;
        for one in [root, device_1, service] {
            assert_eq!(one, answer("/v1/igd.xml"), "{address}");
        }
        assert_eq!(device_2, answer("/v2/igd.xml"), "{address}");
        assert_eq!(all.len(), 10, "{address}: {all:?}");
        for path in ["/v1/igd.xml", "/v2/igd.xml"] {
            assert!(describes(&network, Host::Lan1, *own, path), "{path} at {address}");
        }
    }
    // An application that is there, which completes the link-local address by its own name of the interface.
    let found = format!("Found valid IGD : http://[{link}%25eth0]:{HTTP_PORT}/");
    eventually("what upnpc -6 finds", 15 * SECOND, || {
        let mut command = network.command(Host::Lan1, "timeout");
        let output = command.args(["20", "upnpc", "-6", "-m", "eth0", "-s"]).output().expect("it runs");
        netns::text(&output).contains(&found).then_some(())
    });

    assert!(daemon.terminate(30 * SECOND).success());
    for (process, own) in &mut hearing {
        process.await_log("Byebye - upnp:rootdevice", 5 * SECOND);
        let log = process.log();
        let alive = log.lines().filter(|line| line.contains(" Alive ")).count();
        assert!(alive >= 20 && alive % 10 == 0, "{log}");
        let of_it = format!("{own} Alive http://[{own}]:{HTTP_PORT}/v1/igd.xml ");
        for line in log.lines().filter(|line| *line != "listening") {
            assert!(line.starts_with(&of_it) || line.starts_with(&format!("{own} Byebye - ")), "{line}");
        }
    }
}

/// An interface without IPv6 is served as ever; where IPv6 comes later, and where an address comes and goes, the daemon follows.
#[test]
fn ipv6_comes_later_and_goes_again() {
    let Some((network, subject)) = laboratory() else { return };
    let mut daemon = subject.start(&network, NAT, "");
    daemon.await_log("is running", 10 * SECOND);
    assert_eq!(searches(&network, Host::Lan1, "239.255.255.250:1900", [DEVICE_2])[0].len(), 1);
    assert!(!daemon.log().contains("IPv6"), "nothing is amiss: {}", daemon.log());

    network.add_ipv6();
    let zone = zone(&network, Host::Lan1);
    let group = format!("[ff05::c%{zone}]:1900");
    let found = |own: Ipv6Addr| {
        eventually(&format!("an answer of {own}"), 15 * SECOND, || {
            let [answers] = searches(&network, Host::Lan1, &group, [DEVICE_2]);
            assert!(answers.len() <= 1, "{answers:?}");
            answers.iter().any(|(from, _)| *from == own).then_some(())
        });
        assert!(describes(&network, Host::Lan1, own.into(), "/v2/igd.xml"));
    };
    found(ROUTER_LAN_V6);
    // The provider gives another prefix.
    let other = |host: u16| Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, host);
    for (host, interface, old, new) in
        [(Host::Router, LAN_INTERFACE, ROUTER_LAN_V6, other(1)), (Host::Lan1, "eth0", LAN1_V6, other(0x10))]
    {
        network.run(host, "ip", ["addr", "del", &format!("{old}/64"), "dev", interface]);
        network.run(host, "ip", ["addr", "add", &format!("{new}/64"), "dev", interface, "nodad"]);
    }
    found(other(1));
    // And none.
    network.run(Host::Router, "sysctl", ["-qw", &format!("net.ipv6.conf.{LAN_INTERFACE}.disable_ipv6=1")]);
    eventually("no answer over IPv6", 15 * SECOND, || {
        searches(&network, Host::Lan1, &group, [DEVICE_2])[0].is_empty().then_some(())
    });
    assert_eq!(searches(&network, Host::Lan1, "239.255.255.250:1900", [DEVICE_2])[0].len(), 1);
    network.run(Host::Router, "sysctl", ["-qw", &format!("net.ipv6.conf.{LAN_INTERFACE}.disable_ipv6=0")]);
    network.run(
        Host::Router,
        "ip",
        ["addr", "add", &format!("{}/64", other(1)), "dev", LAN_INTERFACE, "nodad"],
    );
    found(other(1));
    assert!(daemon.terminate(30 * SECOND).success());
}

/// A port over IPv6 that somebody else has is said and tried again; everything else is served meanwhile.
#[test]
fn a_taken_port_over_ipv6_is_no_end() {
    let Some((network, subject)) = laboratory() else { return };
    network.add_ipv6();
    let zone = zone(&network, Host::Lan1);
    let [link, site] = ["ff02::c", "ff05::c"].map(|group| format!("[{group}%{zone}]:1900"));
    let other = tagged(&network, Host::Router, UDP, (ROUTER_LAN_V6, 1900), "other");
    let mut daemon = subject.start(&network, NAT, "");
    daemon.await_log("is running", 10 * SECOND);
    let warning = format!("searches over IPv6 are not heard at {ROUTER_LAN_V6} on {LAN_INTERFACE}");
    daemon.await_log(&warning, SECOND);
    for address in [&link, "239.255.255.250:1900"] {
        assert_eq!(searches(&network, Host::Lan1, address, [DEVICE_2])[0].len(), 1, "{address}");
    }
    assert!(searches(&network, Host::Lan1, &site, [DEVICE_2])[0].is_empty());
    drop(other);
    eventually("an answer to the other group", 15 * SECOND, || {
        (searches(&network, Host::Lan1, &site, [DEVICE_2])[0].len() == 1).then_some(())
    });
    assert_eq!(daemon.log().matches(&warning).count(), 1, "{}", daemon.log());
    assert!(daemon.terminate(30 * SECOND).success());
}

/// E-10, K-3, K-10: events over IPv6, to the address that the subscriber speaks from, of whatever scope, and to its others, if the
/// router knows them.
#[test]
fn events_go_to_a_host_by_all_of_its_addresses() {
    let Some((network, subject)) = laboratory() else { return };
    network.add_ipv6();
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    ready(&network, &mut daemon, Host::Lan1);
    let zone = zone(&network, Host::Lan1);
    let by_link = format!("[{}%{zone}]:{HTTP_PORT}", link_local(&network, Host::Router, LAN_INTERFACE));
    let by_global = format!("[{ROUTER_LAN_V6}]:{HTTP_PORT}");
    // The router knows it from what it has said before.
    for own in [IpAddr::from(ROUTER_LAN), ROUTER_LAN_V6.into()] {
        assert!(pings(&network, Host::Lan1, own, 5 * SECOND));
    }
    let rows = [
        ("own-link", &by_link, None),
        ("own-global", &by_global, None),
        ("other-v6", &by_link, Some(LAN1_V6.to_string())),
        ("other-v4", &by_link, Some(LAN1.to_string())),
        ("other-v4-by-global", &by_global, Some(LAN1.to_string())),
    ];
    let mut subscribers = rows.map(|(name, address, callback)| {
        let arguments = ["subscribe", address, "/v2/igd.xml"].into_iter().map(str::to_owned).chain(callback);
        network.spawn(Host::Lan1, &format!("subscriber-{name}"), PROBE, arguments)
    });
    for subscriber in &mut subscribers {
        subscriber.await_log("event 0: ", 5 * SECOND);
        assert!(subscriber.log().contains(&format!("ExternalIPAddress={EXTERNAL}")), "{}", subscriber.log());
    }
    network.run(Host::Router, "ip", ["-4", "neigh", "flush", "dev", LAN_INTERFACE, "nud", "all"]);
    let stranger = ["subscribe", &by_link, "/v2/igd.xml", &LAN1.to_string()].map(str::to_owned);
    let mut stranger = network.spawn(Host::Lan1, "subscriber-unknown", PROBE, stranger);
    stranger.await_log("HTTP/1.1 412", 5 * SECOND);
    assert!(daemon.terminate(30 * SECOND).success());
}

/// RFC 6887 §8.2, §9 and §14.1.3: PCP at each of the router's IPv6 addresses; a start is announced over IPv6, from each of them; NAT-PMP
/// is a version that is not spoken there, and with NAT-PMP alone nobody listens.
#[test]
fn pcp_is_served_over_ipv6() {
    let Some((network, subject)) = laboratory() else { return };
    let Subject::Portferry(program) = &subject else { return };
    network.add_ipv6();
    let pcp = Pcp::new(&network, program);
    let (link, zone) = (link_local(&network, Host::Router, LAN_INTERFACE), zone(&network, Host::Lan1));
    let listening =
        network.spawn(Host::Lan1, "listen", program, ["pcp", "listen", "--interface", "eth0", "--json"]);
    eventually("a membership of the group", 5 * SECOND, || {
        let sockets = network.run(Host::Lan1, "cat", ["/proc/net/udp6"]);
        sockets.contains("000002FF000000000000000001000000:14E6").then_some(())
    });
    let _provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    daemon.await_log("is running", 10 * SECOND);
    for own in [IpAddr::V6(link), ROUTER_LAN_V6.into(), ROUTER_LAN.into()] {
        eventually(&format!("the announcement of {own}"), 10 * SECOND, || {
            let heard = |line: &str| {
                let heard: Value = serde_json::from_str(line).ok()?;
                heard["peer"].as_str()?.parse::<SocketAddr>().ok().map(|peer| (peer.ip(), peer.port()))
            };
            listening.log().lines().any(|line| heard(line) == Some((own, 5351))).then_some(())
        });
    }
    let servers = [format!("[{link}%{zone}]:5351"), format!("[{ROUTER_LAN_V6}]:5351")];
    for server in &servers {
        let said = pcp.say(Host::Lan1, &format!("announce --wait 3 --server {server}"));
        assert_eq!(said.code, 0, "{server}\n{}{}", said.out, said.errors);
        assert!(said.out.contains("< PCP ANNOUNCE SUCCESS, epoch "), "{server}\n{}", said.out);
        // Nobody outside reaches an address of the link alone.
        let said = pcp.say(Host::Lan1, &format!("map --wait 3 tcp 8080 --server {server}"));
        let refused = said.code == 75 && said.out.contains("NOT_AUTHORIZED");
        assert_eq!(refused, server.contains("fe80"), "{server}\n{}{}", said.out, said.errors);
        // Version 0, the external address: version 2, result 1.
        let answer = network.run(Host::Lan1, PROBE, ["udp-exchange", server, "0000", "3000"]);
        assert!(answer.starts_with("02") && answer.get(6..8) == Some("01"), "{server} {answer}");
    }
    assert!(daemon.terminate(30 * SECOND).success());
    // Nothing listens over IPv6 for NAT-PMP's sake.
    let configuration =
        subject::configuration(&network, NAT, "").replacen("[lan]\n", "[lan]\npcp = false\n", 1);
    let mut daemon = subject::run(&network, Host::Router, "nat-pmp", program, &configuration);
    daemon.await_log("is running", 10 * SECOND);
    let listens = |file: &str| network.run(Host::Router, "cat", [file]).contains(":14E7 ");
    assert!(listens("/proc/net/udp") && !listens("/proc/net/udp6"), "{}", daemon.log());
    assert!(daemon.terminate(30 * SECOND).success());
}

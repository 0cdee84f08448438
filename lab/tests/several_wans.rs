//! Routers with two lines (docs/uplinks.md), with real servers at the end of each. Needs root, see [`lab::netns`].
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test several_wans
//! ```

mod common;

use std::net::Ipv4Addr;

use common::{
    ControlPoint, SECOND, TCP, ask_within, interworking_subject, listener, name, ready, redirected_port,
};
use lab::netns::{
    EXTERNAL, Host, LAN1, LAN2, Network, Process, SECOND_EXTERNAL, SECOND_PROVIDER, SECOND_WAN,
};
use lab::pcp_server::{PROVIDER_SITE, PcpServer, Site};
use lab::subject::{self, Subject};
use lab::wait::eventually;
use serde_json::Value;

const SECOND_SITE: Site = Site {
    host: Host::Other,
    name: "second-server",
    inside: "cust0",
    outside: "inet0",
    external: SECOND_EXTERNAL,
};

/// Both providers, each with a server of its own.
fn providers<'a>(network: &'a Network, subject: &Subject) -> [PcpServer<'a>; 2] {
    let Subject::Portferry(program) = subject else { panic!("only portferry has two uplinks") };
    [
        PcpServer::start_in(network, program, PROVIDER_SITE, &["100.64.0.0/24"], &[], ""),
        PcpServer::start_in(network, program, SECOND_SITE, &["100.65.0.0/24"], &[], ""),
    ]
}

fn start(network: &Network, subject: &Subject, extra: &str) -> Process {
    subject.start(network, "nftables", extra)
}

fn extra(more: &str) -> String {
    // After a start nobody else is to be spared.
    format!(
        "service_wait = 0.5\n[[uplink.extra]]\ninterface = \"{SECOND_WAN}\"\nservers = [\"{SECOND_PROVIDER}\"]\n{more}\n"
    )
}

fn told(network: &Network, what: &str) -> Value {
    subject::ask(network, what).and_then(|answer| serde_json::from_str(&answer).ok()).unwrap_or_default()
}

/// What answers at an external address and port.
fn answer(network: &Network, at: Ipv4Addr, port: u16) -> Option<String> {
    ask_within(SECOND, network, Host::Internet, TCP, (at, port), "knock").ok()
}

#[track_caller]
fn reaches(network: &Network, at: Ipv4Addr, port: u16, host: &str) {
    assert_eq!(answer(network, at, port), Some(format!("{host}:knock")), "{} {at}:{port}", name(TCP));
}

#[track_caller]
fn comes_to_reach(network: &Network, at: Ipv4Addr, port: u16, host: &str) {
    eventually(&format!("a way in by {at}"), 10 * SECOND, || {
        (answer(network, at, port)? == format!("{host}:knock")).then_some(())
    });
}

/// The external ports that a provider has given, but the probe's.
fn given(server: &PcpServer<'_>) -> Vec<String> {
    let port =
        |mapping: &Value| mapping["external"].as_str()?.rsplit_once(':').map(|(_, port)| port.to_owned());
    let all = server.mappings();
    let mut ports: Vec<String> = all
        .iter()
        .filter(|one| !one["internal"].as_str().unwrap_or("").ends_with(":9"))
        .filter_map(port)
        .collect();
    ports.sort();
    ports
}

/// The default route goes to the second line and comes back, as what watches over lines moves it; then the first line is cut. Each time
/// every mapping is right again within ten seconds, without a restart.
#[test]
fn mappings_follow_the_default_route() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::two_lines();
    let [first, second] = providers(&network, &subject);
    let mut daemon = start(&network, &subject, &extra(""));
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 0);
    reaches(&network, EXTERNAL, 9090, "lan1");
    assert_eq!((given(&first), given(&second)), (vec!["9090".to_owned()], vec![]));

    let route = |what: &str| {
        network.run(Host::Router, "ip", format!("route {what} default via 100.64.0.1 metric 100").split(' '));
    };
    route("del");
    comes_to_reach(&network, SECOND_EXTERNAL, 9090, "lan1");
    assert!(daemon.log().contains("wan1 is the WAN now, in the place of wan0"), "{}", daemon.log());
    let status = told(&network, "status");
    assert_eq!((&status["wan"]["name"], &status["server"]), (&"wan1".into(), &"100.65.0.1:5351".into()));
    // The bytes may have overtaken the server's answer.
    eventually("the new external address", 5 * SECOND, || {
        control_point.upnpc(&["-s"]).contains(&format!("ExternalIPAddress = {SECOND_EXTERNAL}")).then_some(())
    });
    let rules = network.run(Host::Router, "nft", ["list", "table", "inet", "portferry"]);
    assert!(rules.contains("iifname \"wan1\"") && !rules.contains("iifname \"wan0\""), "{rules}");
    // What is asked for there is there.
    control_point.adds(8080, 7070, "TCP", 3600);
    reaches(&network, SECOND_EXTERNAL, 7070, "lan1");

    route("add");
    comes_to_reach(&network, EXTERNAL, 9090, "lan1");
    comes_to_reach(&network, EXTERNAL, 7070, "lan1");

    network.run(Host::Router, "ip", ["link", "set", "wan0", "down"]);
    comes_to_reach(&network, SECOND_EXTERNAL, 9090, "lan1");
    // A stop gives back what can be reached.
    daemon.terminate(20 * SECOND);
    assert_eq!(given(&second), Vec::<String>::new());
}

fn status_of_extra(network: &Network) -> Value {
    told(network, "status")["extra"][0].clone()
}

fn await_second(network: &Network) {
    eventually("the second uplink", 15 * SECOND, || {
        (status_of_extra(network)["external_address"] == SECOND_EXTERNAL.to_string()).then_some(())
    });
}

fn two_control_points<'a>(network: &'a Network, daemon: &mut Process) -> [ControlPoint<'a>; 2] {
    let first = ready(network, daemon, Host::Lan1);
    let second = ControlPoint { host: Host::Lan2, ..first.clone() };
    await_second(network);
    [first, second]
}

/// Two hosts have the same port, each at its own provider: listings, external addresses and what passes agree; a crash loses
/// neither, a line that is cut costs its own host alone, and a stop leaves nothing.
#[test]
fn each_host_has_its_own_uplink() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::two_lines();
    network.bind_to_second(LAN2);
    let servers = providers(&network, &subject);
    let bound = extra(&format!("hosts = [\"{LAN2}\"]"));
    let mut daemon = start(&network, &subject, &bound);
    let control_points = two_control_points(&network, &mut daemon);
    let _listeners = [Host::Lan1, Host::Lan2].map(|host| listener(&network, host, TCP, 8080));
    for (control_point, external) in control_points.iter().zip([EXTERNAL, SECOND_EXTERNAL]) {
        control_point.adds(8080, 9090, "TCP", 0);
        reaches(&network, external, 9090, &control_point.host.to_string());
        let listing = control_point.upnpc(&["-l"]);
        assert!(listing.contains(&format!("ExternalIPAddress = {external}")), "{listing}");
        let own = common::lan_address(control_point.host).to_string();
        let entries: Vec<&str> = listing.lines().filter(|line| line.contains("'libminiupnpc'")).collect();
        assert!(entries.len() == 1 && entries[0].contains(&own), "{listing}");
    }
    let mappings = told(&network, "mappings");
    assert_eq!(
        (&mappings[0]["uplink"], &mappings[1]["uplink"]),
        (&Value::Null, &SECOND_WAN.into()),
        "{mappings:#}"
    );
    assert_eq!(servers.each_ref().map(given), [["9090"], ["9090"]]);

    daemon.signal("KILL");
    daemon.wait(5 * SECOND);
    let mut daemon = start(&network, &subject, &bound);
    for (external, host) in [(EXTERNAL, "lan1"), (SECOND_EXTERNAL, "lan2")] {
        comes_to_reach(&network, external, 9090, host);
    }
    let [first, second] = two_control_points(&network, &mut daemon);

    network.run(Host::Router, "ip", ["link", "set", SECOND_WAN, "down"]);
    eventually("the loss of the second line", 10 * SECOND, || {
        (status_of_extra(&network)["external_address"] == Value::Null).then_some(())
    });
    assert_eq!(redirected_port(&second.add("-a", 8080, 7070, "TCP", 3600), "TCP"), None, "nothing elsewhere");
    first.adds(8080, 7070, "TCP", 3600);
    reaches(&network, EXTERNAL, 7070, "lan1");
    network.run(Host::Router, "ip", ["link", "set", SECOND_WAN, "up"]);
    network.bind_to_second(LAN2);
    await_second(&network);
    comes_to_reach(&network, SECOND_EXTERNAL, 9090, "lan2");

    daemon.terminate(20 * SECOND);
    assert_eq!(servers.each_ref().map(given), [Vec::<String>::new(), Vec::new()]);
    let tables = network.run(Host::Router, "nft", ["list", "tables"]);
    assert!(!tables.contains("portferry"), "{tables}");
}

/// SIGHUP says that the other host is bound to the second uplink: what both have is given back, and each gets its own.
#[test]
fn hosts_are_bound_anew_at_a_reload() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::two_lines();
    let servers = providers(&network, &subject);
    let mut daemon = start(&network, &subject, &extra(&format!("hosts = [\"{LAN2}\"]")));
    let [first, second] = two_control_points(&network, &mut daemon);
    first.adds(8080, 9090, "TCP", 0);
    second.adds(8080, 9090, "TCP", 0);
    assert_eq!(servers.each_ref().map(given), [["9090"], ["9090"]]);
    let configuration =
        subject::configuration(&network, "nftables", &extra(&format!("hosts = [\"{LAN1}\"]")));
    std::fs::write(network.directory().join("portferry.toml"), configuration).expect("the directory is ours");
    daemon.signal("HUP");
    eventually("both given back", 10 * SECOND, || {
        (servers.each_ref().map(given) == [Vec::<String>::new(), Vec::new()]).then_some(())
    });
    let log = daemon.log();
    assert!(log.contains("its host has another uplink now"), "{log}");
    first.adds(8080, 7071, "TCP", 0);
    second.adds(8080, 7072, "TCP", 0);
    assert_eq!(servers.each_ref().map(given), [["7072"], ["7071"]]);
}

/// As docs/uplinks.md has it: the second line's default route is in a table of its own, and its router is the server. While the daemon
/// was killed the configuration has lost that uplink: nothing of it leads in any more, and the next start can be trusted.
#[test]
fn an_uplink_that_finds_its_server_and_goes() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::two_lines();
    network.bind_to_second(LAN2);
    network.run(Host::Router, "ip", "route del default via 100.65.0.1 metric 200".split(' '));
    let _servers = providers(&network, &subject);
    let found =
        format!("service_wait = 0.5\n[[uplink.extra]]\ninterface = \"{SECOND_WAN}\"\nhosts = [\"{LAN2}\"]\n");
    let mut daemon = start(&network, &subject, &found);
    let [_, second] = two_control_points(&network, &mut daemon);
    assert_eq!(status_of_extra(&network)["server"], "100.65.0.1:5351");
    let _listener = listener(&network, Host::Lan2, TCP, 8080);
    second.adds(8080, 9090, "TCP", 0);
    reaches(&network, SECOND_EXTERNAL, 9090, "lan2");
    daemon.signal("KILL");
    daemon.wait(5 * SECOND);
    let mut daemon = start(&network, &subject, "service_wait = 0.5\n");
    ready(&network, &mut daemon, Host::Lan1);
    assert_eq!(answer(&network, SECOND_EXTERNAL, 9090), None);
    let tables = network.run(Host::Router, "nft", ["list", "tables"]);
    assert!(!tables.contains("portferry-wan1"), "{tables}");
    assert!(daemon.log().contains("wan1 is no uplink of its own any more"), "{}", daemon.log());
}

/// Who is bound to another uplink since the last start, after a crash, has nothing left at the old one.
#[test]
fn hosts_are_bound_anew_over_a_crash() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::two_lines();
    let servers = providers(&network, &subject);
    let mut daemon = start(&network, &subject, &extra(&format!("hosts = [\"{LAN2}\"]")));
    let [_, second] = two_control_points(&network, &mut daemon);
    second.adds(8080, 9090, "TCP", 0);
    assert_eq!(servers.each_ref().map(given), [vec![], vec!["9090".to_owned()]]);
    daemon.signal("KILL");
    daemon.wait(5 * SECOND);
    let mut daemon = start(&network, &subject, &extra(&format!("hosts = [\"{LAN1}\"]")));
    eventually("what is a stranger's given back", 15 * SECOND, || {
        (servers.each_ref().map(given) == [Vec::<String>::new(), Vec::new()]).then_some(())
    });
    daemon.terminate(20 * SECOND);
}

//! Every kind of uplink that a router is put behind, with real software at the other end. Needs root, see [`lab::netns`].
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test uplinks
//! ```

mod common;

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use common::{
    BOTH, CASCADED, ControlPoint, NAT, SECOND, TCP, ask_within, interworking_subject, listener, now, reaches,
    reaches_nobody, ready, redirected_port, requests,
};
use lab::capture::{Capture, Packet};
use lab::netns::{EXTERNAL, Host, Network, ROUTER_WAN};
use lab::pcp_server::PcpServer;
use lab::provider::{Options, Provider};
use lab::subject::{self, Subject};
use lab::wait::eventually;
use serde_json::Value;

/// What `portferry status --json` says in the router.
fn status(network: &Network, subject: &Subject) -> Value {
    let Subject::Portferry(program) = subject else { panic!("only portferry is asked") };
    let socket = network.directory().join("control.sock").display().to_string();
    let said = network.run(Host::Router, program, ["status", "--json", "--socket", &socket]);
    serde_json::from_str(&said).expect("JSON")
}

/// A gateway from before PCP: whatever begins with PCP's version meets silence.
fn without_pcp(network: &Network) {
    network.nft(
        Host::Provider,
        "table inet before-pcp {\n chain input {\n  type filter hook input priority 0\n  udp dport 5351 @th,64,8 2 drop\n }\n}\n",
    );
}

/// Decision 20: a gateway that speaks NAT-PMP alone. Applications notice nothing.
#[test]
fn a_provider_that_speaks_nat_pmp_alone() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    without_pcp(&network);
    let mut provider = Provider::start(&network, Options::default());
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let told = status(&network, &subject);
    assert_eq!((&told["protocol"], &told["uplink"]), (&"NAT-PMP".into(), &"answering".into()), "{told:#}");
    assert_eq!(told["external_address"], EXTERNAL.to_string());
    let _listeners = BOTH.map(|protocol| listener(&network, Host::Lan1, protocol, 8080));
    for protocol in BOTH {
        control_point.adds(8080, 9090, if protocol == TCP { "TCP" } else { "UDP" }, 3600);
        reaches(&network, protocol, 9090, "lan1");
    }
    let upstream = provider.forwardings();
    assert_eq!(upstream.iter().filter(|one| one.external_port == 9090).count(), 2, "{upstream:?}");
    assert!(upstream.iter().all(|one| *one.to.ip() == ROUTER_WAN), "{upstream:?}");
    control_point.deletes(9090, "UDP");
    assert_eq!(provider.forwardings().len(), 1);

    // Another firmware: it has learned PCP, and forgotten its mappings. It is asked by that from then on.
    network.nft(Host::Provider, "delete table inet before-pcp\n");
    provider.stop();
    provider.forget();
    provider.restart();
    eventually("PCP", 15 * SECOND, || {
        control_point.adds(7070, 7070, "TCP", 3600);
        (status(&network, &subject)["protocol"] == "PCP").then_some(())
    });
    eventually("all mappings", 15 * SECOND, || {
        let ports: Vec<u16> = provider.forwardings().iter().map(|one| one.external_port).collect();
        (ports.contains(&7070) && ports.contains(&9090)).then_some(())
    });
    reaches(&network, TCP, 9090, "lan1");
    daemon.terminate(10 * SECOND);
    reaches_nobody(&network, TCP, 9090);
    assert_eq!(provider.forwardings().len(), 0, "everything is given back");
}

/// How long a mapping stands unless it is renewed, in seconds; what VPN providers grant is 60, which
/// `a_minute_at_a_time_for_a_day` in the engine's tests has.
const SHORT: u64 = 12;

/// Map requests of NAT-PMP and of PCP that ask for something: when, the internal port, and the external one that is suggested.
fn asked(wire: &Capture, by: &str) -> Vec<(Duration, u16, u16)> {
    if by == "PCP" {
        let all = requests(wire, TCP).into_iter();
        return all.map(|(packet, map)| (packet.at, map.internal_port, map.external_port)).collect();
    }
    // RFC 6886 §3.3: version 0, opcode 2 for TCP, two reserved octets, the ports, the lifetime.
    let read = |packet: &Packet| match packet.payload[..] {
        [0, 2, _, _, a, b, c, d, ref lifetime @ ..] if lifetime.len() == 4 && *lifetime != [0; 4] => {
            Some((packet.at, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
        }
        _ => None,
    };
    wire.packets().iter().filter_map(read).collect()
}

/// What many VPN providers give: a server that gives out ports of its own choice, for a moment only. Whoever asks for any port has one at
/// once, who asks for port after port hears of conflicts until it asks for the one that is held (decision 5), and both stand as long as
/// they are wanted. The program of `[hooks]` hears the ports.
fn picks_the_port(by: &str) {
    let Some(subject) = interworking_subject() else { return };
    let Subject::Portferry(program) = &subject else { return };
    let network = Network::new(CASCADED);
    if by == "NAT-PMP" {
        without_pcp(&network);
    }
    let settings = format!("[mappings]\nports = \"40000-49999\"\nmin_lifetime = 4\nmax_lifetime = {SHORT}\n");
    let server = PcpServer::start(&network, program, &["100.64.0.0/24"], &settings);
    let told = network.directory().join("told");
    let hook = format!("cat >> {}", told.display());
    let more = format!(
        "[igd]\nadd_port_mapping = \"hold\"\n[hooks]\non_change = [\"/bin/sh\", \"-c\", {}]\n",
        Value::from(hook)
    );
    // NAT-PMP has nothing else than `hold`, whatever is set.
    let more = if by == "PCP" { more } else { more.replace("\"hold\"", "\"prefer-failure\"") };
    let mut daemon = subject.start(&network, NAT, &more);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    assert_eq!(status(&network, &subject)["protocol"], by);
    let wire = Capture::start(&network, Host::Provider, "cust0", "udp port 5351");
    let _listeners = [8080, 6881].map(|port| listener(&network, Host::Lan1, TCP, port));

    let answer = control_point.add("-n", 8080, 8080, "TCP", 0);
    let any = redirected_port(&answer, "TCP").unwrap_or_else(|| panic!("{answer}"));
    assert!((40_000..50_000).contains(&any), "{answer}");
    reaches(&network, TCP, any, "lan1");

    for wanted in 6881..6884 {
        let answer = control_point.add("-a", 6881, wanted, "TCP", 0);
        assert!(answer.contains("failed with code 718"), "{answer}");
    }
    assert_eq!(status(&network, &subject)["held"], 1);
    assert_eq!(asked(&wire, by).iter().filter(|(_, internal, _)| *internal == 6881).count(), 1);
    let ports = || -> Vec<u16> {
        let all = server.mappings();
        let external = all.iter().filter(|one| one["protocol"] == "TCP").map(|one| one["external"].as_str());
        external
            .map(|at| at.and_then(|at| at.parse::<SocketAddr>().ok()).expect("an endpoint").port())
            .collect()
    };
    let held = ports().into_iter().find(|&port| port != any).expect("it is held");
    reaches_nobody(&network, TCP, held);
    control_point.adds(6881, held, "TCP", 0);
    reaches(&network, TCP, held, "lan1");

    // Renewed before the end, with the port that was given, and no other one has been asked for.
    let both = [(8080, any), (6881, held)];
    let granted = both.map(|(internal, _)| {
        asked(&wire, by).iter().find(|one| one.1 == internal).copied().expect("it was asked for")
    });
    let over = granted.iter().map(|one| one.0).max().expect("two") + Duration::from_secs(SHORT);
    for ((internal, external), first) in both.into_iter().zip(granted) {
        let renewed = eventually("a renewal", 15 * SECOND, || {
            asked(&wire, by).into_iter().find(|one| one.1 == internal && one.2 == external)
        });
        let after = renewed.0 - first.0;
        assert!(after >= Duration::from_secs(SHORT / 2) && after < Duration::from_secs(SHORT), "{after:?}");
    }
    // What nobody has renewed would be gone by now.
    eventually("the end of what was granted first", 20 * SECOND, || (now() > over + SECOND).then_some(()));
    for (_, external) in both {
        reaches(&network, TCP, external, "lan1");
    }
    assert_eq!(ports().len(), 2);

    control_point.deletes(any, "TCP");
    daemon.terminate(10 * SECOND);
    assert_eq!(ports(), [0; 0], "everything is given back");
    let told: Vec<Value> = fs::read_to_string(&told)
        .expect("the program has run")
        .lines()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .filter(|line: &Value| !line["external_port"].is_null())
        .collect();
    let said =
        told.iter().map(|line| (line["event"].as_str(), &line["external_port"], &line["internal_port"]));
    let (any, held) = (Value::from(any), Value::from(held));
    let (a, b) = (Value::from(8080), Value::from(6881));
    let wanted = [
        (Some("began"), &any, &a),
        (Some("began"), &held, &b),
        (Some("ended"), &any, &a),
        (Some("ended"), &held, &b),
    ];
    assert_eq!(said.collect::<Vec<_>>(), wanted, "{told:#?}");
}

#[test]
fn a_nat_pmp_server_that_picks_the_port() {
    picks_the_port("NAT-PMP");
}

#[test]
fn a_pcp_server_that_picks_the_port() {
    picks_the_port("PCP");
}

/// The router among real ones whose servers are those that it finds, or these.
fn start(network: &Network, subject: &Subject, servers: &[&str]) -> lab::netns::Process {
    let Subject::Portferry(program) = subject else { panic!("only portferry looks for servers") };
    let configuration = subject::configuration(network, NAT, "");
    let configured = configuration.lines().map(|line| {
        if line.starts_with("servers = ") { format!("servers = {servers:?}") } else { line.to_owned() }
    });
    let configuration = configured.collect::<Vec<_>>().join("\n");
    subject::run(network, Host::Router, "portferry", program, &configuration)
}

/// RFC 7723: the default router says nothing, and a server is found at the anycast address.
#[test]
fn anycast_is_found_where_the_router_is_silent() {
    let Some(subject) = interworking_subject() else { return };
    let Subject::Portferry(program) = &subject else { return };
    let network = Network::new(CASCADED);
    network.run(Host::Provider, "ip", ["addr", "add", "192.0.0.9/32", "dev", "lo"]);
    network.nft(
        Host::Provider,
        "table inet silent {\n chain input {\n  type filter hook input priority 0\n  \
         ip daddr 100.64.0.1 udp dport 5351 drop\n }\n}\n",
    );
    let server = PcpServer::start_at(&network, program, &["100.64.0.0/24"], &["192.0.0.9"], "");
    let mut daemon = start(&network, &subject, &[]);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let told = status(&network, &subject);
    assert_eq!((&told["server"], &told["protocol"]), (&"192.0.0.9:5351".into(), &"PCP".into()), "{told:#}");
    assert_eq!(told["servers"], serde_json::json!(["100.64.0.1:5351", "192.0.0.9:5351"]));
    assert!(daemon.log().contains("takes the place of 100.64.0.1:5351"), "{}", daemon.log());
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 3600);
    reaches(&network, TCP, 9090, "lan1");
    control_point.deletes(9090, "TCP");
    assert!(server.mappings().iter().all(|one| !one["external"].as_str().expect("text").ends_with(":9090")));
}

/// RFC 7488 §3: nobody listens at the first server, as its machine says; the second is asked at once.
#[test]
fn a_server_that_is_not_there_is_passed_over() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let mut daemon = start(&network, &subject, &["100.64.0.3", "100.64.0.1"]);
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    assert_eq!(status(&network, &subject)["server"], "100.64.0.1:5351");
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 3600);
    reaches(&network, TCP, 9090, "lan1");
    daemon.terminate(10 * SECOND);
    assert_eq!(provider.forwardings().len(), 0, "everything is given back");
}

/// Decision 21: an address of its own in the Internet, and nobody at the provider who gives mappings: an ordinary gateway.
#[test]
fn an_ordinary_gateway_where_there_is_no_server() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    for (host, line) in [
        (Host::Provider, "addr add 203.0.115.1/30 dev cust0"),
        (Host::Internet, "route add 203.0.115.0/30 via 198.51.100.1"),
        (Host::Router, "addr flush dev wan0"),
        (Host::Router, "addr add 203.0.115.2/30 dev wan0"),
        (Host::Router, "route add default via 203.0.115.1"),
    ] {
        network.run(host, "ip", line.split(' '));
    }
    let mut daemon = start(&network, &subject, &[]);
    daemon.await_log("is running", 10 * SECOND);
    let told = eventually("an ordinary gateway", 30 * SECOND, || {
        assert_eq!(daemon.ended(), None, "{}", daemon.log());
        let told = status(&network, &subject);
        (told["protocol"] == "none").then_some(told)
    });
    assert_eq!(told["external_address"], "203.0.115.2", "{told:#}");
    let control_point = ControlPoint { network: &network, host: Host::Lan1, location: None };
    let knock = |port: u16| {
        let to = SocketAddr::from(([203, 0, 115, 2], port));
        ask_within(SECOND, &network, Host::Internet, TCP, to, "knock")
    };
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    assert!(knock(9090).is_err());
    control_point.adds(8080, 9090, "TCP", 3600);
    assert_eq!(knock(9090), Ok("lan1:knock".to_owned()));
    assert!(control_point.upnpc(&["-s"]).contains("ExternalIPAddress = 203.0.115.2"));
    control_point.deletes(9090, "TCP");
    assert!(knock(9090).is_err());
    daemon.terminate(10 * SECOND);
}

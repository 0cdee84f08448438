//! LAN hosts that reach each other by external addresses, and that are seen by their mappings outside: behind the router's own NAT and
//! a provider's, with real packets. Needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test hairpin
//! ```

mod common;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Stdio;
use std::time::Duration;

use common::pcp::Pcp;
use common::{
    BOTH, CASCADED, Caller, ControlPoint, NAT, PROBE, SECOND, TCP, Told, UDP, answer_to, ask_within,
    interworking_subject, lan_address, listener, name, ready, redirected_port,
};
use lab::capture::Capture;
use lab::netns::{EXTERNAL, Host, INTERNET, LAN_INTERFACE, LAN1, Network, ROUTER_LAN, ROUTER_WAN};
use lab::pcp_server::{PcpServer, SUBSCRIBERS};
use lab::provider::QuickProvider;
use lab::subject::{self, Subject};
use lab::wait::eventually;

const PCP_SERVER: &str = env!("CARGO_BIN_EXE_lab-pcp-server");
/// How long nobody may answer.
const SILENCE: Duration = Duration::from_millis(500);

/// Both LAN hosts come to the first one by a port of the external address, at once.
#[track_caller]
fn come_back(network: &Network, protocol: u8, port: u16) {
    for from in [Host::Lan2, Host::Lan1] {
        let answer = answer_to(network, from, protocol, port, 3 * SECOND);
        assert_eq!(answer, Some("lan1:knock".to_owned()), "{} {port} from {from}", name(protocol));
    }
}

/// No LAN host comes to anybody by it.
#[track_caller]
fn reach_nobody(network: &Network, protocol: u8, port: u16) {
    for from in [Host::Lan2, Host::Lan1] {
        assert_eq!(answer_to(network, from, protocol, port, SILENCE), None, "{} {port}", name(protocol));
    }
}

/// The external port of the mapping of `protocol`, when there is one.
fn external_port(network: &Network, protocol: u8) -> Option<u16> {
    let listed = subject::listed(network)?;
    let mapping = listed.into_iter().find(|mapping| mapping.protocol == protocol)?;
    assert_eq!(*mapping.external.ip(), EXTERNAL);
    Some(mapping.external.port())
}

fn of(protocol: u8) -> String {
    name(protocol).to_uppercase()
}

/// AddAnyPortMapping, which stays when the provider moves it; its external port.
#[track_caller]
fn any_port(control_point: &ControlPoint<'_>, internal: u16, external: u16, protocol: u8) -> u16 {
    let answer = control_point.add("-n", internal, external, &of(protocol), 3600);
    redirected_port(&answer, &of(protocol)).unwrap_or_else(|| panic!("{answer}"))
}

/// Decision 26, RFC 7648: the outermost address and port, which are on no interface of this router, from a mapping's first moment to its
/// last; nothing of it leaves the router.
#[test]
fn lan_hosts_come_back_by_the_external_address() {
    let Some(subject) = interworking_subject() else { return };
    let Subject::Portferry(program) = &subject else { return };
    let network = Network::new(CASCADED);
    let mut provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listeners = BOTH.map(|protocol| listener(&network, Host::Lan1, protocol, 8080));
    let filter = format!("host {EXTERNAL} and not icmp");
    let wire = Capture::start(&network, Host::Provider, "cust0", &filter);

    for protocol in BOTH {
        assert_eq!(any_port(&control_point, 8080, 9090, protocol), 9090);
        come_back(&network, protocol, 9090);
        // By the router's own NAT, too: its port there is the internal one.
        let by_wan = ask_within(3 * SECOND, &network, Host::Lan2, protocol, (ROUTER_WAN, 8080), "knock");
        assert_eq!(by_wan, Ok("lan1:knock".to_owned()));
        let by_lan = ask_within(SILENCE, &network, Host::Lan2, protocol, (ROUTER_LAN, 8080), "knock");
        assert!(by_lan.is_err(), "the router's own address is its own: {by_lan:?}");
    }
    assert_eq!(wire.packets(), [], "none of it went to the provider");
    drop(wire);

    // The provider forgets, and somebody else is there first.
    daemon.signal("STOP");
    provider.lose_state();
    let pcp = Pcp::new(&network, program);
    for protocol in BOTH {
        let taken = pcp.say(Host::Other, &format!("map {} 9999 9090 --prefer-failure", name(protocol)));
        assert_eq!(taken.code, 0, "{}{}", taken.out, taken.errors);
    }
    daemon.signal("CONT");
    let moved = BOTH.map(|protocol| {
        eventually("another external port", 20 * SECOND, || {
            external_port(&network, protocol).filter(|&port| port != 9090)
        })
    });
    for (protocol, port) in BOTH.into_iter().zip(moved) {
        come_back(&network, protocol, port);
        reach_nobody(&network, protocol, 9090);
    }

    drop(daemon); // SIGKILL
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    for (protocol, port) in BOTH.into_iter().zip(moved) {
        assert_eq!(external_port(&network, protocol), Some(port));
        come_back(&network, protocol, port);
        control_point.deletes(port, &of(protocol));
        reach_nobody(&network, protocol, port);
        assert!(ask_within(SILENCE, &network, Host::Lan2, protocol, (ROUTER_WAN, 8080), "knock").is_err());
    }
}

/// Decision 25: a mapping for one remote host is for nobody of the LAN; and all of it can be left to others.
#[test]
fn who_does_not_come_back() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listeners = BOTH.map(|protocol| listener(&network, Host::Lan1, protocol, 8080));
    let mut caller = Caller::new(&control_point, 1);
    let internal = SocketAddrV4::new(LAN1, 8080);
    for protocol in BOTH {
        let told = caller.add_for(&INTERNET.to_string(), protocol, 9090, internal, 3600, "for one");
        assert_eq!(told, Told::done());
        reach_nobody(&network, protocol, 9090);
        let inside = answer_to(&network, Host::Internet, protocol, 9090, 3 * SECOND);
        assert_eq!(inside, Some("lan1:knock".to_owned()));
        assert!(ask_within(SILENCE, &network, Host::Lan2, protocol, (ROUTER_WAN, 8080), "knock").is_err());
    }
    drop((caller, daemon));

    let mut daemon = subject.start(&network, NAT, "[nat]\nhairpin = false\n");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    for protocol in BOTH {
        control_point.adds(8081, 9091, &of(protocol), 3600);
        let _listener = listener(&network, Host::Lan1, protocol, 8081);
        let inside = answer_to(&network, Host::Internet, protocol, 9091, 3 * SECOND);
        assert_eq!(inside, Some("lan1:knock".to_owned()));
        reach_nobody(&network, protocol, 9091);
    }
}

/// Sends a datagram from a port of a host.
#[track_caller]
fn send_from(network: &Network, host: Host, port: u16, to: (Ipv4Addr, u16), text: &str) {
    let (from, to) = (format!("{}:{port}", lan_address(host)), format!("{}:{}", to.0, to.1));
    let mut child = network
        .command(host, PROBE)
        .args(["udp-blast", &from, &to])
        .stdin(Stdio::piped())
        .spawn()
        .expect("the probe runs");
    let hex: String = text.bytes().map(|octet| format!("{octet:02x}")).collect();
    let mut stdin = child.stdin.take().expect("piped above");
    stdin.write_all(format!("{hex}\n").as_bytes()).expect("it reads");
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
}

/// RFC 6887 §11: a mapping is bidirectional. Two consoles with one port: each is seen by the port that it was told, by somebody on
/// the Internet and by the other one, behind a masquerade that is not ours.
#[test]
fn two_consoles_on_one_port() {
    let Some(subject) = interworking_subject() else { return };
    let Subject::Portferry(program) = &subject else { return };
    let network = Network::new(CASCADED);
    let _provider = PcpServer::start(&network, program, &[SUBSCRIBERS], "");
    let mut daemon = subject.start(&network, NAT, "");
    let first = ready(&network, &mut daemon, Host::Lan1);
    let second = ControlPoint { host: Host::Lan2, ..first.clone() };
    let mut server = listener(&network, Host::Internet, UDP, 7000);
    let mut is_seen = |host, port: u16, text: &str| {
        send_from(&network, host, 3074, (INTERNET, 7000), text);
        server.await_log(&format!("{EXTERNAL}:{port} {text}"), 5 * SECOND);
    };
    // They have spoken to the server before.
    for host in [Host::Lan1, Host::Lan2] {
        send_from(&network, host, 3074, (INTERNET, 7000), "early");
    }
    let one = any_port(&first, 3074, 3074, UDP);
    let two = any_port(&second, 3074, 3074, UDP);
    assert!(one == 3074 && two != 3074, "{one} {two}");
    is_seen(Host::Lan1, one, "one");
    is_seen(Host::Lan2, two, "two");

    let mut console = listener(&network, Host::Lan2, UDP, 3074);
    send_from(&network, Host::Lan1, 3074, (EXTERNAL, two), "hello");
    console.await_log(&format!("{EXTERNAL}:{one} hello"), 5 * SECOND);
    drop(console);
    let mut console = listener(&network, Host::Lan1, UDP, 3074);
    send_from(&network, Host::Lan2, 3074, (EXTERNAL, one), "hello");
    console.await_log(&format!("{EXTERNAL}:{two} hello"), 5 * SECOND);
    // What an unmapped port would be seen by outside, nobody here knows.
    send_from(&network, Host::Lan2, 3075, (EXTERNAL, one), "hello");
    console.await_log(&format!("{ROUTER_LAN}:"), 5 * SECOND);
    drop(console);

    drop(daemon); // SIGKILL
    let mut daemon = subject.start(&network, NAT, "");
    let first = ready(&network, &mut daemon, Host::Lan1);
    is_seen(Host::Lan1, one, "one again");
    is_seen(Host::Lan2, two, "two again");
    // Of several for one port the first counts, and then the next.
    let next = any_port(&first, 3074, 5000, UDP);
    assert_eq!(next, 5000);
    is_seen(Host::Lan1, one, "the first");
    first.deletes(one, "UDP");
    is_seen(Host::Lan1, next, "the next");
    is_seen(Host::Lan2, two, "two as before");
}

/// What the LAN is may change with SIGHUP: hosts of a new interface come back, too.
#[test]
fn a_lan_interface_that_comes_later_counts() {
    let Some(subject) = interworking_subject() else { return };
    let network = Network::new(CASCADED);
    let _provider = QuickProvider::start(&network, PCP_SERVER);
    let mut daemon = subject.start(&network, NAT, "");
    let control_point = ready(&network, &mut daemon, Host::Lan1);
    let _listener = listener(&network, Host::Lan1, TCP, 8080);
    control_point.adds(8080, 9090, "TCP", 3600);
    // The second host moves to a port of its own.
    network.run(Host::Router, "ip", ["link", "set", "port2", "nomaster"]);
    network.run(Host::Router, "ip", ["addr", "add", "192.168.78.1/24", "dev", "port2"]);
    network.run(Host::Lan2, "ip", ["addr", "flush", "dev", "eth0"]);
    network.run(Host::Lan2, "ip", ["addr", "add", "192.168.78.11/24", "dev", "eth0"]);
    network.run(Host::Lan2, "ip", ["route", "add", "default", "via", "192.168.78.1"]);
    assert_eq!(answer_to(&network, Host::Lan2, TCP, 9090, SILENCE), None);
    let file = network.directory().join("portferry.toml");
    let settings = std::fs::read_to_string(&file).expect("it was written");
    let one = format!("interfaces = [\"{LAN_INTERFACE}\"]");
    let both = format!("interfaces = [\"{LAN_INTERFACE}\", \"port2\"]");
    assert!(settings.contains(&one));
    std::fs::write(&file, settings.replace(&one, &both)).expect("the directory is ours");
    daemon.signal("HUP");
    eventually("a host of the new interface", 10 * SECOND, || {
        (answer_to(&network, Host::Lan2, TCP, 9090, SILENCE)? == "lan1:knock").then_some(())
    });
}

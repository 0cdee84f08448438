//! DS-Lite (RFC 6333) in network namespaces: homes without IPv4 from their provider, whose hosts share the AFTR's addresses.
//! The data plane alone first, then portferry asking the AFTR's PCP server. Real processes as in `end_to_end`, so it needs
//! root, and TUN devices.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test dslite
//! ```

mod common;

use std::fs;
use std::net::{IpAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::ds_lite::{aftr, b4s, network};
use common::{
    BOTH, Caller, ControlPoint, NO_NAT, SECOND, TCP, Told, UDP, answer_to, ask, ask_within,
    interworking_subject, listener, name, pings, reaches, reaches_nobody, ready, requests,
};
use lab::aftr::AFTR_ADDRESS;
use lab::b4::B4_ADDRESS;
use lab::capture::Capture;
use lab::netns::{
    ACCESS_INTERFACE, AFTR, B4_DEVICE, EXTERNAL, Host, INTERNET, LAN1, Network, OTHER_ACCESS,
    PROVIDER_INTERNET, Process, ROUTER_ACCESS, WAN_INTERFACE,
};
use lab::subject::{self, Subject, configuration_for};
use lab::wait::eventually;

const NONCE: &str = "000102030405060708090a0b";
const OTHER_NONCE: &str = "ffffffffffffffffffffffff";

/// A host of each home; both have the same address.
const HOMES: [Host; 2] = [Host::Lan1, Host::OtherLan];

/// The AFTR with these bindings, and both homes' ends of their softwires.
fn data_plane(network: &Network, bindings: &[String]) -> [Process; 3] {
    let [one, other] = b4s(network);
    [aftr(network, "aftr", &[], bindings), one, other]
}

// ── The data plane ─────────────────────────────────────────────────────────────────────────────────────────────────

/// RFC 6333: out through softwire and NAT, and answers back in, for two homes with the same addresses.
#[test]
fn homes_with_the_same_addresses_reach_the_internet() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let listeners = BOTH.map(|protocol| listener(&network, Host::Internet, protocol, 7000));
    for home in HOMES {
        assert!(pings(&network, home, INTERNET, 3 * SECOND), "ping from {home}");
        assert!(pings(&network, home, AFTR_ADDRESS, 3 * SECOND), "the AFTR itself answers {home}");
        for protocol in BOTH {
            let heard = ask(&network, home, protocol, (INTERNET, 7000), &format!("from-{home}"));
            assert_eq!(heard, Ok(format!("internet:from-{home}")), "{} {home}", name(protocol));
        }
    }
    // Everybody is the external address outside.
    for listener in &listeners {
        let log = listener.log();
        assert_eq!(log.matches(&format!("{EXTERNAL}:")).count(), 2, "{log}");
    }
}

/// Packets as long as Ethernet has them, whether they may be fragmented or not (RFC 6333 §5.3, §6.3).
#[test]
fn long_packets_fit_the_softwire() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[format!("udp/{LAN1}:7000@{ROUTER_ACCESS}={EXTERNAL}:8080")]);
    let _listener = listener(&network, Host::Internet, TCP, 7000);
    let text = "x".repeat(100_000);
    let heard = ask(&network, Host::Lan1, TCP, (INTERNET, 7000), &text);
    assert!(heard == Ok(format!("internet:{text}")), "100,000 octets there and back");

    let mut listeners = [Host::Internet, Host::Lan1].map(|host| listener(&network, host, UDP, 7000));
    let ways = [(Host::Lan1, (INTERNET, 7000)), (Host::Internet, (EXTERNAL, 8080))];
    // Linux marks every datagram as one that must not be fragmented, or with this none.
    for (may_be_fragmented, mark) in [("0", 'w'), ("1", 'f')] {
        let setting = format!("net.ipv4.ip_no_pmtu_disc={may_be_fragmented}");
        for ((from, to), listener) in ways.into_iter().zip(&mut listeners) {
            network.run(from, "sysctl", ["-qw", &setting]);
            // With 28 octets of headers, up to a link's 1,500. Not every answer, which is longer, fits: nobody waits for it.
            for length in [1400, 1440, 1472] {
                let text = format!("{mark}{}", "x".repeat(length - 1));
                let _ = ask_within(SECOND / 1000, &network, from, UDP, to, &text);
                listener.await_log(&format!(" {text}\n"), 3 * SECOND);
            }
        }
    }
}

/// An ICMP error finds the flow it is about, through NAT and softwire.
#[test]
fn a_closed_port_is_told_to_who_asked() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let heard = ask(&network, Host::Lan1, UDP, (INTERNET, 7000), "knock");
    assert!(heard.as_ref().is_err_and(|heard| heard.contains("refused")), "{heard:?}");
}

/// An explicit binding leads into its own softwire, whatever else has that inner address, and nothing else is open.
#[test]
fn a_binding_leads_to_its_home_and_nowhere_else() {
    let Some(network) = network() else { return };
    let mut bindings = Vec::new();
    for protocol in BOTH.map(name) {
        bindings.push(format!("{protocol}/{LAN1}:80@{ROUTER_ACCESS}={EXTERNAL}:8080"));
        bindings.push(format!("{protocol}/{LAN1}:80@{OTHER_ACCESS}={EXTERNAL}:8081"));
    }
    let _plane = data_plane(&network, &bindings);
    let _listeners = HOMES.map(|home| BOTH.map(|protocol| listener(&network, home, protocol, 80)));
    for protocol in BOTH {
        reaches(&network, protocol, 8080, "lan1");
        reaches(&network, protocol, 8081, "other-lan");
        reaches_nobody(&network, protocol, 8082);
        reaches_nobody(&network, protocol, 80);
        // Hairpin: each home reaches both by the external address.
        for home in HOMES {
            for (port, expected) in [(8080, "lan1:hello"), (8081, "other-lan:hello")] {
                let heard = ask(&network, home, protocol, (EXTERNAL, port), "hello");
                assert_eq!(heard, Ok(expected.to_owned()), "{} from {home} to {port}", name(protocol));
            }
        }
    }
    assert!(!pings(&network, Host::Internet, EXTERNAL, Duration::from_millis(300)));
}

// ── portferry asks the AFTR ────────────────────────────────────────────────────────────────────────────────────────

/// How portferry reaches the AFTR's PCP server (decision 22): by which interface, and where.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// In IPv6 beside the softwire, for its hosts by THIRD_PARTY.
    Plain,
    /// In IPv4 inside of it.
    Encapsulated,
}

/// portferry on a home's router; a program without a NAT of its own.
#[track_caller]
fn home<'a>(network: &'a Network, program: &Path, lan: Host, mode: Mode) -> (Process, ControlPoint<'a>) {
    home_with(network, program, lan, mode, "")
}

/// Likewise with more keys of `[uplink]`.
#[track_caller]
fn home_with<'a>(
    network: &'a Network,
    program: &Path,
    lan: Host,
    mode: Mode,
    more: &str,
) -> (Process, ControlPoint<'a>) {
    let router = if lan == Host::Lan1 { Host::Router } else { Host::Other };
    let directory = network.directory().join(lan.to_string());
    fs::create_dir_all(directory.join("state")).expect("the directory is ours");
    let (wan, server) = match mode {
        Mode::Plain => (WAN_INTERFACE, format!("[{AFTR}]:5351")),
        Mode::Encapsulated => (B4_DEVICE, "192.0.0.1".to_owned()),
    };
    let configuration = configuration_for(&directory, (wan, NO_NAT), &server, more);
    let mut daemon = subject::run(network, router, &format!("portferry-{router}"), program, &configuration);
    let control_point = ready(network, &mut daemon, lan);
    (daemon, control_point)
}

fn program() -> Option<PathBuf> {
    match interworking_subject()? {
        Subject::Portferry(program) => Some(program),
        Subject::Miniupnpd => None,
    }
}

/// A control point in each of two homes with the same addresses; bytes arrive where they should, no home gets a port of the
/// other, and what is deleted is closed.
fn control_points_map_ports_at_the_aftr(mode: Mode) {
    let Some(program) = program() else { return };
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let (interface, source): (_, IpAddr) = match mode {
        Mode::Plain => (WAN_INTERFACE, ROUTER_ACCESS.into()),
        Mode::Encapsulated => (B4_DEVICE, B4_ADDRESS.into()),
    };
    let wire = Capture::start(&network, Host::Router, interface, "udp port 5351");
    let homes = HOMES.map(|lan| home(&network, &program, lan, mode));
    let _listeners = HOMES.map(|lan| BOTH.map(|protocol| listener(&network, lan, protocol, 7000)));

    for (protocol, name) in [(TCP, "TCP"), (UDP, "UDP")] {
        for (port, (_, control_point)) in [8080, 8081].into_iter().zip(&homes) {
            reaches_nobody(&network, protocol, port);
            control_point.adds(7000, port, name, 3600);
        }
        reaches(&network, protocol, 8080, "lan1");
        reaches(&network, protocol, 8081, "other-lan");
        let taken = homes[1].1.add("-a", 7001, 8080, name, 3600);
        assert!(taken.contains("718"), "the other home has it: {taken}");
        // From one home into the other.
        let heard = ask(&network, Host::OtherLan, protocol, (EXTERNAL, 8080), "hello");
        assert_eq!(heard, Ok("lan1:hello".to_owned()), "{name}");
        homes[0].1.deletes(8080, name);
        reaches_nobody(&network, protocol, 8080);
        reaches(&network, protocol, 8081, "other-lan");
    }
    // Nothing but its way tells one mode from the other.
    for protocol in BOTH {
        let mut all = requests(&wire, protocol).into_iter();
        let (packet, map) = all.find(|(_, map)| map.internal_port == 7000).expect("it was asked for");
        assert_eq!((packet.source.ip(), map.client), (source, Some(source)));
        assert_eq!(map.third_party(), Some(LAN1));
    }
}

/// R-1, R-12, decision 22: DS-Lite in the slides' plain IPv6.
#[test]
fn control_points_map_ports_in_plain_ipv6() {
    control_points_map_ports_at_the_aftr(Mode::Plain);
}

/// R-1, R-12, decision 22: where it is so configured, PCP goes inside the softwire.
#[test]
fn control_points_map_ports_inside_the_softwire() {
    control_points_map_ports_at_the_aftr(Mode::Encapsulated);
}

/// Decision 25 without a NAT in the router: the AFTR enforces the FILTER that RemoteHost became.
#[test]
fn a_remote_host_is_let_in_and_nobody_else() {
    let Some(program) = program() else { return };
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let (_daemon, control_point) = home(&network, &program, Host::Lan1, Mode::Plain);
    let mut caller = Caller::new(&control_point, 2);
    for protocol in BOTH {
        let mut listeners = [7000, 7001].map(|port| listener(&network, Host::Lan1, protocol, port));
        let hosts = [(INTERNET, 7000), (PROVIDER_INTERNET, 7001)];
        for (remote_host, port) in hosts {
            let internal = SocketAddrV4::new(LAN1, port);
            let told = caller.add_for(&remote_host.to_string(), protocol, port, internal, 3600, "for one");
            assert_eq!(told, Told::done());
        }
        reaches(&network, protocol, 7000, "lan1");
        reaches_nobody(&network, protocol, 7001);
        // The provider has the other one of these addresses, and sends from it.
        let from_provider = |port| answer_to(&network, Host::Provider, protocol, port, SECOND);
        assert_eq!(from_provider(7001), Some("lan1:knock".to_owned()), "{}", name(protocol));
        listeners[1].await_log(&format!("{PROVIDER_INTERNET}:"), SECOND);
        assert_eq!(from_provider(7000), None, "{}", name(protocol));
    }
}

/// Decision 22, RFC 6333 §8.5: a home is the same subscriber in both modes. What it made in one for a host it lists for that
/// host (GET and NEXT), and deletes, in the other; and it is told nothing of the other home, whose hosts have the same addresses.
#[test]
fn a_home_is_the_same_subscriber_in_both_modes() {
    let Some(program) = program() else { return };
    let Some(network) = network() else { return };
    let (_aftr, _b4s) = (aftr(&network, "aftr", &["--list".to_owned()], &[]), b4s(&network));
    let homes = [(Host::Router, 8080), (Host::Other, 8081)];
    let pcp = |router, mode, line: &str| {
        let server = match mode {
            Mode::Plain => AFTR.into(),
            Mode::Encapsulated => AFTR_ADDRESS.into(),
        };
        common::pcp(&network, router, &program, server, line)
    };
    let listed = |router, mode| -> Vec<u64> {
        let answer = pcp(router, mode, &format!("get --third-party {LAN1}"));
        assert_eq!(answer["outcome"], "listed", "{answer:#}");
        let all = answer["mappings"].as_array().expect("docs/pcp-json.md has it");
        all.iter().map(|mapping| mapping["external"]["port"].as_u64().expect("a number")).collect()
    };
    let _listeners = HOMES.map(|lan| listener(&network, lan, TCP, 7000));
    for (made, used) in [(Mode::Plain, Mode::Encapsulated), (Mode::Encapsulated, Mode::Plain)] {
        let job = |what: &str, nonce: &str| format!("{what} --third-party {LAN1} --nonce {nonce}");
        for (router, port) in homes {
            let map = pcp(router, made, &job(&format!("map tcp 7000 {port}"), NONCE));
            assert_eq!(map["mapping"]["external"]["port"], port, "{map:#}");
        }
        for (router, port) in homes {
            assert_eq!([made, used].map(|mode| listed(router, mode)), [[port], [port]], "{router} {made:?}");
            let wrong = pcp(router, used, &job("delete tcp 7000", OTHER_NONCE));
            assert_eq!(wrong["result"]["name"], "NOT_AUTHORIZED", "{wrong:#}");
        }
        reaches(&network, TCP, 8080, "lan1");
        reaches(&network, TCP, 8081, "other-lan");
        for (router, _) in homes {
            pcp(router, used, &job("delete tcp 7000", NONCE));
            assert_eq!([made, used].map(|mode| listed(router, mode)), [[], []] as [[u64; 0]; 2]);
        }
        reaches_nobody(&network, TCP, 8080);
        reaches_nobody(&network, TCP, 8081);
    }
}

/// An AFTR that begins anew is given the mappings it has lost. In plain IPv6 that happens with the next answer that shows it,
/// or, where the AFTR is on the router's link, by its announcement (RFC 6887 §14.1.3). Inside of the softwire that is heard,
/// too, as soon as any packet tells the AFTR of the softwire.
fn an_aftr_that_lost_its_mappings_gets_them_again(mode: Mode, on_the_link: bool) {
    let Some(program) = program() else { return };
    let Some(network) = network() else { return };
    let switches = ["--link".to_owned(), ACCESS_INTERFACE.to_owned()];
    let switches = if on_the_link { &switches[..] } else { &[] };
    let mut before = aftr(&network, "aftr", switches, &[]);
    let _b4s = b4s(&network);
    let began = Instant::now();
    let settings = "recovery_wait = 0.1\n";
    let (_daemon, control_point) = home_with(&network, &program, Host::Lan1, mode, settings);
    let _listener = listener(&network, Host::Lan1, TCP, 7000);
    // Old enough that a new epoch is seen to be one (RFC 6887 §8.5).
    eventually("five seconds", 10 * SECOND, || (began.elapsed() > 5 * SECOND).then_some(()));
    control_point.adds(7000, 8080, "TCP", 3600);
    reaches(&network, TCP, 8080, "lan1");
    before.terminate(5 * SECOND);
    assert!(!common::try_reach(&network, TCP, 8080), "there is no AFTR");
    let _after = aftr(&network, "aftr-again", switches, &[]);
    if !on_the_link {
        reaches_nobody(&network, TCP, 8080);
    }
    match mode {
        Mode::Plain if on_the_link => {}
        Mode::Plain => control_point.adds(7001, 8081, "TCP", 3600),
        Mode::Encapsulated => assert!(pings(&network, Host::Lan1, INTERNET, 3 * SECOND)),
    }
    eventually("the mapping", 10 * SECOND, || common::try_reach(&network, TCP, 8080).then_some(()));
}

/// R-38, decision 16.
#[test]
fn an_aftr_that_lost_its_mappings_gets_them_again_in_plain_ipv6() {
    an_aftr_that_lost_its_mappings_gets_them_again(Mode::Plain, false);
}

/// R-38, decision 16: nobody asks anything, the announcement to [ff02::1]:5350 alone tells.
#[test]
fn an_aftr_that_lost_its_mappings_and_announces_itself_on_the_link_gets_them_again() {
    an_aftr_that_lost_its_mappings_gets_them_again(Mode::Plain, true);
}

/// R-38, decision 16.
#[test]
fn an_aftr_that_lost_its_mappings_gets_them_again_inside_the_softwire() {
    an_aftr_that_lost_its_mappings_gets_them_again(Mode::Encapsulated, false);
}

/// A client that nobody here wrote, on a LAN host, asks the AFTR for itself: 192.0.0.1 is a way through the softwire, and NAT-PMP
/// (RFC 6886) has no other client address than the packet's source.
#[test]
fn natpmpc_maps_ports_inside_the_softwire() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let _listeners = HOMES.map(|home| BOTH.map(|protocol| listener(&network, home, protocol, 7000)));
    let natpmpc = |home: Host, external: &str, protocol: u8, lifetime: &str| {
        let arguments = ["-g", "192.0.0.1", "-a", external, "7000", name(protocol), lifetime];
        network.run(home, "natpmpc", arguments)
    };
    for protocol in BOTH {
        for (home, port) in HOMES.into_iter().zip(["8080", "8081"]) {
            let answer = natpmpc(home, port, protocol, "3600");
            assert!(answer.contains(&format!("Public IP address : {EXTERNAL}")), "{answer}");
            assert!(answer.contains(&format!("Mapped public port {port}")), "{answer}");
        }
        reaches(&network, protocol, 8080, "lan1");
        reaches(&network, protocol, 8081, "other-lan");
        natpmpc(Host::Lan1, "0", protocol, "0");
        reaches_nobody(&network, protocol, 8080);
        reaches(&network, protocol, 8081, "other-lan");
    }
}

//! DS-Lite (RFC 6333) in network namespaces: homes without IPv4 from their provider, whose hosts share the AFTR's addresses.
//! The data plane alone first, then portferry asking the AFTR's PCP server. Real processes as in `end_to_end`, so it needs
//! root, and TUN devices.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test dslite
//! ```

mod common;

use std::time::Duration;

use common::{BOTH, PROBE, SECOND, TCP, UDP, listener, name, reaches, reaches_nobody, skipped};
use lab::netns::{
    self, AFTR, AFTR_DEVICE, B4_DEVICE, EXTERNAL, Host, INTERNET, LAN1, Network, OTHER_ACCESS, Process,
    ROUTER_ACCESS,
};

const LAB_AFTR: &str = env!("CARGO_BIN_EXE_lab-aftr");
const LAB_B4: &str = env!("CARGO_BIN_EXE_lab-b4");

/// A host of each home; both have the same address.
const HOMES: [Host; 2] = [Host::Lan1, Host::OtherLan];

fn network() -> Option<Network> {
    if let Some(reason) = netns::reason_to_skip_tun() {
        skipped(reason);
        return None;
    }
    Some(Network::ds_lite())
}

/// The AFTR with these bindings, and both homes' ends of their softwires.
fn data_plane(network: &Network, bindings: &[String]) -> [Process; 3] {
    let mut arguments = vec![AFTR_DEVICE.to_owned(), AFTR.to_string(), EXTERNAL.to_string()];
    arguments.extend_from_slice(bindings);
    let aftr = network.spawn(Host::Provider, "aftr", LAB_AFTR, arguments);
    let b4 = |router, own: std::net::Ipv6Addr| {
        let arguments = [B4_DEVICE.to_owned(), own.to_string(), AFTR.to_string()];
        network.spawn(router, &format!("b4-{router}"), LAB_B4, arguments)
    };
    let mut all = [aftr, b4(Host::Router, ROUTER_ACCESS), b4(Host::Other, OTHER_ACCESS)];
    all.iter_mut().for_each(|process| process.await_log("ready", 5 * SECOND));
    all
}

/// What a host hears when it sends to somebody.
fn ask(network: &Network, from: Host, protocol: u8, to: &str, text: &str) -> Result<String, String> {
    let mode = format!("{}-send", name(protocol));
    let output =
        network.command(from, PROBE).args([&mode, to, text, "3000"]).output().expect("the probe runs");
    let heard = netns::text(&output).trim().to_owned();
    if output.status.success() { Ok(heard) } else { Err(heard) }
}

fn pings(network: &Network, from: Host, to: &str, wait: Duration) -> bool {
    let wait = wait.as_millis().to_string();
    network.command(from, PROBE).args(["ping", to, &wait]).output().expect("the probe runs").status.success()
}

// ── The data plane ─────────────────────────────────────────────────────────────────────────────────────────────────

/// RFC 6333: out through softwire and NAT, and answers back in, for two homes with the same addresses.
#[test]
fn homes_with_the_same_addresses_reach_the_internet() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let listeners = BOTH.map(|protocol| listener(&network, Host::Internet, protocol, 7000));
    for home in HOMES {
        assert!(pings(&network, home, &INTERNET.to_string(), 3 * SECOND), "ping from {home}");
        assert!(pings(&network, home, "192.0.0.1", 3 * SECOND), "the AFTR itself answers {home}");
        for protocol in BOTH {
            let heard = ask(&network, home, protocol, &format!("{INTERNET}:7000"), &format!("from-{home}"));
            assert_eq!(heard, Ok(format!("internet:from-{home}")), "{} {home}", name(protocol));
        }
    }
    // Everybody is the external address outside.
    for listener in &listeners {
        let log = listener.log();
        assert_eq!(log.matches(&format!("{EXTERNAL}:")).count(), 2, "{log}");
    }
}

/// Packets of every length: what does not fit the softwire is announced to be too big, and no fragment is lost.
#[test]
fn long_packets_fit_the_softwire() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let _listener = listener(&network, Host::Internet, TCP, 7000);
    let text = "x".repeat(100_000);
    let heard = ask(&network, Host::Lan1, TCP, &format!("{INTERNET}:7000"), &text);
    assert!(heard == Ok(format!("internet:{text}")), "100,000 octets there and back");
}

/// An ICMP error finds the flow it is about, through NAT and softwire.
#[test]
fn a_closed_port_is_told_to_who_asked() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let heard = ask(&network, Host::Lan1, UDP, &format!("{INTERNET}:7000"), "knock");
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
                let heard = ask(&network, home, protocol, &format!("{EXTERNAL}:{port}"), "hello");
                assert_eq!(heard, Ok(expected.to_owned()), "{} from {home} to {port}", name(protocol));
            }
        }
    }
    assert!(!pings(&network, Host::Internet, &EXTERNAL.to_string(), Duration::from_millis(300)));
}

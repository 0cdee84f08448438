//! A NAT64 (RFC 6146) in network namespaces: IPv6-only hosts, and an Internet that has IPv4 only. Real processes as in
//! `end_to_end`, so it needs root, and TUN devices.
//!
//! ```text
//! cargo test -p lab --test nat64
//! ```

mod common;

use std::net::Ipv6Addr;

use common::{BOTH, PROBE, SECOND, TCP, UDP, name, reaches, reaches_nobody, skipped};
use lab::netns::{
    self, EXTERNAL, Host, INTERNET, LAN1_V6, LAN2_V6, NAT64_DEVICE, NAT64_PREFIX, NAT64_SERVER, Network,
    Process,
};

const LAB_NAT64: &str = env!("CARGO_BIN_EXE_lab-nat64");

fn network() -> Option<Network> {
    if let Some(reason) = netns::reason_to_skip_tun() {
        skipped(reason);
        return None;
    }
    Some(Network::nat64())
}

fn data_plane(network: &Network, bindings: &[String]) -> Process {
    let mut arguments = vec![
        NAT64_DEVICE.to_owned(),
        NAT64_SERVER.to_string(),
        NAT64_PREFIX.to_string(),
        EXTERNAL.to_string(),
    ];
    arguments.extend_from_slice(bindings);
    let mut process = network.spawn(Host::Provider, "nat64", LAB_NAT64, arguments);
    process.await_log("ready", 5 * SECOND);
    process
}

/// The Internet's host as IPv6-only hosts know it.
fn internet() -> Ipv6Addr {
    lab::packet::Prefix64::from(NAT64_PREFIX).embed(INTERNET)
}

/// Answers with the host's name, to whatever version of IP.
fn listener(network: &Network, host: Host, protocol: u8, port: u16) -> Process {
    let (mode, address) = (format!("{}-listen", name(protocol)), format!("[::]:{port}"));
    let log = format!("{mode}-{host}-{port}");
    let mut process = network.spawn(host, &log, PROBE, [&mode, &address, &host.to_string()]);
    process.await_log("listening", 5 * SECOND);
    process
}

fn ask(network: &Network, from: Host, protocol: u8, to: &str, text: &str) -> Result<String, String> {
    let mode = format!("{}-send", name(protocol));
    let output =
        network.command(from, PROBE).args([&mode, to, text, "3000"]).output().expect("the probe runs");
    let heard = netns::text(&output).trim().to_owned();
    if output.status.success() { Ok(heard) } else { Err(heard) }
}

fn pings(network: &Network, from: Host, to: Ipv6Addr) -> bool {
    let (to, wait) = (to.to_string(), "3000");
    network.command(from, PROBE).args(["ping", &to, wait]).output().expect("the probe runs").status.success()
}

// ── The data plane ─────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn ipv6_only_hosts_reach_the_internet() {
    let Some(network) = network() else { return };
    let _plane = data_plane(&network, &[]);
    let listeners = BOTH.map(|protocol| common::listener(&network, Host::Internet, protocol, 7000));
    let to = format!("[{}]:7000", internet());
    for host in [Host::Lan1, Host::Lan2] {
        assert!(pings(&network, host, internet()), "ping from {host}");
        assert!(pings(&network, host, NAT64_SERVER), "the NAT64 itself answers {host}");
        for protocol in BOTH {
            let heard = ask(&network, host, protocol, &to, &format!("from-{host}"));
            assert_eq!(heard, Ok(format!("internet:from-{host}")), "{} {host}", name(protocol));
        }
    }
    for listener in &listeners {
        let log = listener.log();
        assert_eq!(log.matches(&format!("{EXTERNAL}:")).count(), 2, "{log}");
    }
    let text = "x".repeat(100_000);
    let heard = ask(&network, Host::Lan1, TCP, &to, &text);
    assert!(heard == Ok(format!("internet:{text}")), "100,000 octets there and back");
    let heard = ask(&network, Host::Lan1, UDP, &format!("[{}]:7001", internet()), "knock");
    assert!(heard.as_ref().is_err_and(|heard| heard.contains("refused")), "{heard:?}");
}

#[test]
fn a_binding_leads_to_its_host_and_nowhere_else() {
    let Some(network) = network() else { return };
    let mut bindings = Vec::new();
    for protocol in BOTH.map(name) {
        bindings.push(format!("{protocol}/[{LAN1_V6}]:80={EXTERNAL}:8080"));
        bindings.push(format!("{protocol}/[{LAN2_V6}]:80={EXTERNAL}:8081"));
    }
    let _plane = data_plane(&network, &bindings);
    let hosts = [Host::Lan1, Host::Lan2];
    let _listeners = hosts.map(|host| BOTH.map(|protocol| listener(&network, host, protocol, 80)));
    let external = lab::packet::Prefix64::from(NAT64_PREFIX).embed(EXTERNAL);
    for protocol in BOTH {
        reaches(&network, protocol, 8080, "lan1");
        reaches(&network, protocol, 8081, "lan2");
        reaches_nobody(&network, protocol, 8082);
        for host in hosts {
            let heard = ask(&network, host, protocol, &format!("[{external}]:8081"), "hello");
            assert_eq!(heard, Ok("lan2:hello".to_owned()), "{} from {host}", name(protocol));
        }
    }
}

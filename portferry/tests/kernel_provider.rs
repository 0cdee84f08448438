//! The provider's NAT and firewall against a real kernel: two subscribers, a provider's router and the Internet (see
//! `common`).

#![allow(clippy::unwrap_used)] // in helpers too, which `allow-unwrap-in-tests` doesn't reach

mod common;

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use common::{HOST, OTHER_HOST, OTHER_REMOTE, REMOTE, TCP, UDP, WAN, World, in_router, run};
use portferry::nft::provider::{Binding, Change, Filter, Pair, Prefix, ProviderConfig, ProviderNat};

/// External addresses that are routed to the provider's router, and no interface's.
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OTHER_EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const DEFAULT_EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 77, 0, 0, 0, 0, 2);
const REMOTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 51, 0, 0, 0, 0, 2);
const OTHER_REMOTE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 51, 0, 0, 0, 0, 3);

fn config() -> ProviderConfig {
    ProviderConfig {
        name: "portferry-provider".to_owned(),
        outside_interfaces: vec!["wan0".to_owned()],
        inside_interfaces: vec!["lan0".to_owned()],
        subscribers: vec![Prefix { addr: Ipv4Addr::new(192, 168, 77, 0), len: 24 }],
        pool: vec![EXTERNAL, OTHER_EXTERNAL, DEFAULT_EXTERNAL],
        pairs: Vec::new(),
        default_external: Some(DEFAULT_EXTERNAL),
        dynamic_ports: 1024..=65535,
        ipv4_filter: true,
        ipv6_firewall: true,
    }
}

fn binding(protocol: u8, external: (Ipv4Addr, u16), internal: (Ipv4Addr, u16)) -> Binding {
    Binding {
        protocol,
        softwire: None,
        internal: internal.into(),
        external: external.into(),
        ports: 1,
        filters: Vec::new(),
        peer: None,
    }
}

fn filter(addr: Ipv4Addr, len: u8, port: u16) -> Filter {
    Filter { prefix: addr.to_ipv6_mapped().into(), len: 96 + len, port }
}

async fn open(nat: &mut ProviderNat, bindings: &[&Binding]) {
    let changes: Vec<_> = bindings.iter().map(|binding| Change::Open((*binding).clone())).collect();
    nat.apply(&changes).await.unwrap();
}

/// The provider's router: routes for the pool outside, and IPv6.
fn provided(world: &World) {
    let (lan, wan) = (world.namespace("lan"), world.namespace("wan"));
    run("ip", &["-n", &wan, "route", "add", "203.0.113.0/24", "via", "198.51.100.1"]);
    for (namespace, device, addr) in [
        (None, "wan0", "2001:db8:51::1/64"),
        (None, "lan0", "2001:db8:77::1/64"),
        (Some(&wan), "eth0", "2001:db8:51::2/64"),
        (Some(&wan), "eth0", "2001:db8:51::3/64"),
        (Some(&lan), "eth0", "2001:db8:77::2/64"),
    ] {
        let mut args = namespace.map_or(Vec::new(), |namespace| vec!["-n", namespace.as_str()]);
        args.extend(["-6", "addr", "add", addr, "dev", device, "nodad"]);
        run("ip", &args);
    }
    run("ip", &["-n", &lan, "-6", "route", "add", "default", "via", "2001:db8:77::1"]);
    run("ip", &["-n", &wan, "-6", "route", "add", "2001:db8:77::/64", "via", "2001:db8:51::1"]);
    run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
}

#[test]
fn mapped_ports_lead_in_and_out() {
    in_router("mapped_ports_lead_in_and_out", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        let (web, game) = (
            binding(TCP, (EXTERNAL, 8080), (HOST, 80)),
            Binding {
                filters: vec![filter(REMOTE, 24, 0), filter(REMOTE, 32, 99)],
                ..binding(UDP, (EXTERNAL, 5000), (HOST, 6000))
            },
        );
        open(&mut nat, &[&web, &game]).await;
        println!("{}", run("nft", &["list", "ruleset"]));
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (http, udp, remote) = (lan.listen(HOST, 80), lan.udp(HOST, 6000), wan.udp(REMOTE, 0));
        let client = wan.connect(EXTERNAL, 8080).unwrap();
        let (server, _) = lan.accept(http).unwrap();
        wan.send(client, "question");
        assert_eq!(lan.recv(server), "question");
        wan.send_to(remote, EXTERNAL, 5000, "ping");
        let (text, from) = lan.recv_from(udp).unwrap();
        lan.send_to(udp, REMOTE, from.port(), "pong");
        assert_eq!(wan.recv_from(remote).unwrap(), ("pong".to_owned(), (EXTERNAL, 5000).into()));
        assert_eq!(text, "ping");
    });
}

//! The provider's NAT and firewall against a real kernel: two subscribers, a provider's router and the Internet (see
//! `common`).

#![allow(clippy::unwrap_used)] // in helpers too, which `allow-unwrap-in-tests` doesn't reach

mod common;

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use common::{
    HOST, HOST6, OTHER_HOST, OTHER_REMOTE, OTHER_REMOTE6, REMOTE, REMOTE6, TCP, UDP, WAN, World, in_router,
    run,
};
use portferry::nft::provider::{
    Binding, Change, Filter, FlowFrom, Pair, Prefix, ProviderConfig, ProviderNat,
};

/// External addresses that are routed to the provider's router, and no interface's.
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The provider's router, inside.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const OTHER_EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const DEFAULT_EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

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
    let wan = world.namespace("wan");
    run("ip", &["-n", &wan, "route", "add", "203.0.113.0/24", "via", "198.51.100.1"]);
    world.with_ipv6();
}

/// How many elements a set or map has.
fn elements(set: &str) -> usize {
    let kind = if ["ports", "sources", "pairs", "peers"].contains(&set) { "map" } else { "set" };
    let listed = run("nft", &["-n", "list", kind, "inet", "portferry-provider", set]);
    listed.split_once("elements = {").map_or(0, |(_, rest)| rest.split(',').count())
}

/// In by the mapped port, and out by it: RFC 6887 §11.3, RFC 4787 REQ-1 and REQ-8.
#[test]
fn mapped_ports_lead_in_and_out() {
    in_router("mapped_ports_lead_in_and_out", async |world| {
        provided(world);
        // The provider's addresses are routed to it, or its interface's own.
        let own = ProviderConfig { pool: vec![WAN], default_external: Some(WAN), ..config() };
        for (external, port, config) in [(EXTERNAL, 80, config()), (WAN, 81, own)] {
            let mut nat = ProviderNat::open(config).await.unwrap();
            let web = binding(TCP, (external, 8080), (HOST, port));
            let game = binding(UDP, (external, 5000), (HOST, 6000 + port));
            let caller = binding(TCP, (external, 8090), (HOST, port + 10));
            open(&mut nat, &[&web, &game, &caller]).await;
            let (lan, wan) = (&mut world.lan, &mut world.wan);
            let (http, udp) = (lan.listen(HOST, port), lan.udp(HOST, 6000 + port));
            let (remote, server) = (wan.udp(REMOTE, 7000), wan.listen(REMOTE, 7001));

            let client = wan.connect(external, 8080).unwrap();
            let (accepted, peer) = lan.accept(http).unwrap();
            assert_eq!(peer.ip(), REMOTE, "the host sees who calls");
            wan.send(client, "question");
            assert_eq!(lan.recv(accepted), "question");
            lan.send(accepted, "answer");
            assert_eq!(wan.recv(client), "answer");
            wan.send_to(remote, external, 5000, "ping");
            assert_eq!(lan.recv_from(udp).unwrap(), ("ping".to_owned(), (REMOTE, 7000).into()));
            lan.send_to(udp, REMOTE, 7000, "pong");
            assert_eq!(wan.recv_from(remote).unwrap(), ("pong".to_owned(), (external, 5000).into()));

            // What the mapped host begins carries the mapped port; what others do, another one.
            let other_remote = wan.udp(OTHER_REMOTE, 7000);
            lan.send_to(udp, OTHER_REMOTE, 7000, "hello");
            assert_eq!(wan.recv_from(other_remote).unwrap().1, (external, 5000).into());
            let free = lan.udp(HOST, 6100 + port);
            lan.send_to(free, REMOTE, 7000, "hello");
            assert_eq!(wan.recv_from(remote).unwrap().1, (external, 6100 + port).into(), "the port is kept");
            lan.connect_from(HOST, port + 10, REMOTE, 7001).unwrap();
            assert_eq!(wan.accept(server).unwrap().1, (external, 8090).into());

            assert!(wan.connect(external, 8081).is_err(), "another port");
            assert!(wan.connect(HOST, port).is_err(), "the host itself, though a route leads there");
            for (address, port) in [(external, 5001), (external, 6000 + port), (HOST, 6000 + port)] {
                wan.send_to(remote, address, port, "nobody asked for this");
            }
            assert_eq!(lan.recv_from(udp), None);
            for socket in [http, udp, accepted, free] {
                lan.close(socket);
            }
            for socket in [remote, server, client, other_remote] {
                wan.close(socket);
            }
            nat.clear().await.unwrap();
        }
    });
}

/// RFC 6887 §11.1 leaves the protocol open: what has ports like UDP, has mappings like UDP.
#[test]
fn other_protocols_have_ports_too() {
    const UDP_LITE: u8 = 136;
    in_router("other_protocols_have_ports_too", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        let game = binding(UDP_LITE, (EXTERNAL, 5000), (HOST, 6000));
        open(&mut nat, &[&game, &binding(UDP, (EXTERNAL, 5000), (OTHER_HOST, 6000))]).await;
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (Ok(inside), Ok(outside)) =
            (lan.datagrams(HOST, 6000, UDP_LITE), wan.datagrams(REMOTE, 7000, UDP_LITE))
        else {
            println!("this kernel has no UDP-Lite");
            return;
        };
        // Linux 6.18 finds good checksums of UDP-Lite bad. So connection tracking is told not to look, and those who
        // receive take the packets as they are.
        run("sysctl", &["-qw", "net.netfilter.nf_conntrack_checksum=0"]);
        let (at_host, at_remote) = (lan.raw(HOST, UDP_LITE), wan.raw(REMOTE, UDP_LITE));
        wan.send_to(outside, EXTERNAL, 5000, "ping");
        let (packet, from) = lan.recv_from(at_host).unwrap();
        assert_eq!(from.ip(), REMOTE);
        assert!(packet.contains("\u{17}\u{70}") && packet.ends_with("ping"), "to port 6000: {packet:?}");
        lan.send_to(inside, REMOTE, 7000, "pong");
        let (packet, from) = wan.recv_from(at_remote).unwrap();
        assert_eq!(from.ip(), EXTERNAL);
        assert!(packet.ends_with("pong"));
        nat.apply(&[Change::Close(game)]).await.unwrap();
        wan.send_to(outside, EXTERNAL, 5000, "ping");
        assert_eq!(lan.recv_from(at_host), None);
    });
}

/// FILTER, RFC 6887 §13.3: only who is listed gets in; another list takes its place, and ends flows of who is no more.
#[test]
fn filters_let_in_who_is_listed() {
    in_router("filters_let_in_who_is_listed", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        let open_to =
            |filters: Vec<Filter>| Binding { filters, ..binding(UDP, (EXTERNAL, 5000), (HOST, 6000)) };
        let first = open_to(vec![filter(REMOTE, 32, 0), filter(Ipv4Addr::new(10, 0, 0, 0), 8, 0)]);
        let web = Binding {
            filters: vec![filter(OTHER_REMOTE, 32, 0)],
            ..binding(TCP, (EXTERNAL, 8080), (HOST, 80))
        };
        open(&mut nat, &[&first, &web]).await;
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (udp, http) = (lan.udp(HOST, 6000), lan.listen(HOST, 80));
        let (one, two) = (wan.udp(REMOTE, 7000), wan.udp(OTHER_REMOTE, 7000));
        let reaches = |lan: &mut common::Agent, wan: &mut common::Agent, socket: usize| {
            wan.send_to(socket, EXTERNAL, 5000, "knock");
            lan.recv_from(udp).is_some()
        };
        assert!(reaches(lan, wan, one) && !reaches(lan, wan, two));
        assert!(wan.connect_from(REMOTE, 0, EXTERNAL, 8080).is_err());
        let kept = wan.connect_from(OTHER_REMOTE, 0, EXTERNAL, 8080).unwrap();
        let (accepted, _) = lan.accept(http).unwrap();

        // The flow of the first one is known to the kernel, and ends all the same.
        let second = open_to(vec![filter(OTHER_REMOTE, 32, 7000)]);
        nat.apply(&[Change::Replace { old: first, new: second.clone() }]).await.unwrap();
        assert!(!reaches(lan, wan, one) && reaches(lan, wan, two));
        let other_port = wan.udp(OTHER_REMOTE, 7001);
        assert!(!reaches(lan, wan, other_port), "another remote port");
        // Answers to what the host itself asks are no business of filters.
        let asked = wan.udp(REMOTE, 7002);
        lan.send_to(udp, REMOTE, 7002, "question");
        assert_eq!(wan.recv_from(asked).unwrap().1, (EXTERNAL, 5000).into());
        assert!(reaches(lan, wan, asked));

        let both = open_to(vec![filter(Ipv4Addr::new(198, 51, 100, 2), 31, 0)]);
        nat.apply(&[Change::Replace { old: second, new: both.clone() }]).await.unwrap();
        assert!(reaches(lan, wan, one) && reaches(lan, wan, two) && reaches(lan, wan, other_port));
        let nobody = open_to(vec![Filter { prefix: 0x2001 << 112, len: 16, port: 0 }]);
        nat.apply(&[Change::Replace { old: both, new: nobody.clone() }]).await.unwrap();
        assert!(!reaches(lan, wan, one) && !reaches(lan, wan, two));
        nat.apply(&[Change::Replace { old: nobody, new: open_to(Vec::new()) }]).await.unwrap();
        assert!(reaches(lan, wan, one) && reaches(lan, wan, two));

        wan.send(kept, "still here");
        assert_eq!(lan.recv(accepted), "still here", "another mapping's flow went on");
        // Who stays listed keeps its connection, too.
        let wider = Binding { filters: vec![filter(OTHER_REMOTE, 24, 0)], ..web.clone() };
        nat.apply(&[Change::Replace { old: web, new: wider }]).await.unwrap();
        wan.send(kept, "and here");
        assert_eq!(lan.recv(accepted), "and here");
        assert!(wan.connect_from(REMOTE, 0, EXTERNAL, 8080).is_ok());
    });
}

/// RFC 4787 REQ-9: by the external address from inside, and seen as an external address there.
#[test]
fn subscribers_reach_each_other_by_external_addresses() {
    in_router("subscribers_reach_each_other_by_external_addresses", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        let game = binding(UDP, (EXTERNAL, 5000), (HOST, 6000));
        let other = binding(UDP, (OTHER_EXTERNAL, 5001), (OTHER_HOST, 6001));
        let web = binding(TCP, (EXTERNAL, 8080), (HOST, 80));
        open(&mut nat, &[&game, &other, &web]).await;
        let lan = &mut world.lan;
        let (udp, there, http) = (lan.udp(HOST, 6000), lan.udp(OTHER_HOST, 6001), lan.listen(HOST, 80));
        lan.send_to(there, EXTERNAL, 5000, "from a mapped port");
        assert_eq!(lan.recv_from(udp).unwrap().1, (OTHER_EXTERNAL, 5001).into());
        lan.send_to(udp, OTHER_EXTERNAL, 5001, "back");
        assert_eq!(lan.recv_from(there).unwrap(), ("back".to_owned(), (EXTERNAL, 5000).into()));
        let free = lan.udp(OTHER_HOST, 6002);
        lan.send_to(free, EXTERNAL, 5000, "from another");
        let (_, from) = lan.recv_from(udp).unwrap();
        assert_eq!(from.ip(), OTHER_EXTERNAL);
        lan.send_to(udp, OTHER_EXTERNAL, from.port(), "back");
        assert_eq!(lan.recv_from(free).unwrap().1, (EXTERNAL, 5000).into());

        // A host reaches itself.
        let itself = lan.udp(HOST, 6003);
        lan.send_to(itself, EXTERNAL, 5000, "me");
        assert_eq!(lan.recv_from(udp).unwrap(), ("me".to_owned(), (EXTERNAL, 6003).into()));
        let client = lan.connect_from(HOST, 0, EXTERNAL, 8080).unwrap();
        let (accepted, peer) = lan.accept(http).unwrap();
        assert_eq!(peer.ip(), EXTERNAL);
        lan.send(accepted, "answer");
        assert_eq!(lan.recv(client), "answer");

        // Filters hold for subscribers as whom they come out, port included.
        let to_other = Binding { filters: vec![filter(OTHER_EXTERNAL, 32, 5001)], ..game.clone() };
        nat.apply(&[Change::Replace { old: game, new: to_other.clone() }]).await.unwrap();
        lan.send_to(there, EXTERNAL, 5000, "1");
        assert_eq!(lan.recv_from(udp).unwrap().0, "1");
        for stranger in [free, itself] {
            lan.send_to(stranger, EXTERNAL, 5000, "2");
            assert_eq!(lan.recv_from(udp), None);
        }
        // An internal address is not what they come out as.
        let to_inside = Binding { filters: vec![filter(OTHER_HOST, 32, 0)], ..to_other.clone() };
        nat.apply(&[Change::Replace { old: to_other, new: to_inside }]).await.unwrap();
        lan.send_to(there, EXTERNAL, 5000, "3");
        assert_eq!(lan.recv_from(udp), None);
    });
}

/// RFC 4787 REQ-2 (paired), and RFC 6887 §11.3: one external address for all that is a subscriber's. What has no
/// mapping keeps off mapped ports.
#[test]
fn each_subscriber_has_its_external_address() {
    in_router("each_subscriber_has_its_external_address", async |world| {
        provided(world);
        let inside = Prefix { addr: OTHER_HOST, len: 32 };
        let pairs = vec![Pair { inside, external: OTHER_EXTERNAL }];
        let mut nat = ProviderNat::open(ProviderConfig { pairs, ..config() }).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (remote, other_remote) = (wan.udp(REMOTE, 7000), wan.udp(OTHER_REMOTE, 7000));
        let (one, two) = (lan.udp(HOST, 6100), lan.udp(OTHER_HOST, 6100));
        let seen = |lan: &mut common::Agent, wan: &mut common::Agent, socket: usize| {
            lan.send_to(socket, REMOTE, 7000, "who am I?");
            wan.recv_from(remote).unwrap().1
        };
        assert_eq!(seen(lan, wan, one), (DEFAULT_EXTERNAL, 6100).into(), "neither mapping nor pair");
        assert_eq!(seen(lan, wan, two), (OTHER_EXTERNAL, 6100).into(), "paired beforehand");
        let mapped = binding(UDP, (EXTERNAL, 5000), (HOST, 6000));
        let moved = binding(UDP, (EXTERNAL, 5001), (OTHER_HOST, 6000));
        open(&mut nat, &[&mapped, &moved]).await;
        let (one, two) = (lan.udp(HOST, 6200), lan.udp(OTHER_HOST, 6201));
        assert_eq!(seen(lan, wan, one), (EXTERNAL, 6200).into(), "as the mapping says");
        assert_eq!(seen(lan, wan, two), (EXTERNAL, 6201).into());
        nat.apply(&[Change::Close(moved)]).await.unwrap();
        let two = lan.udp(OTHER_HOST, 6202);
        assert_eq!(seen(lan, wan, two), (OTHER_EXTERNAL, 6202).into(), "as before");
        nat.clear().await.unwrap();

        // Two subscribers behind one address: the second one's own port 5000 is the first one's outside.
        let everybody = Prefix { addr: HOST, len: 24 };
        let pairs = vec![Pair { inside: everybody, external: EXTERNAL }];
        let crowded = ProviderConfig { pairs, dynamic_ports: 20_000..=20_009, ..config() };
        let mut nat = ProviderNat::open(crowded).await.unwrap();
        let squatter = lan.udp(OTHER_HOST, 5000);
        assert_eq!(seen(lan, wan, squatter), (EXTERNAL, 5000).into());
        let nine: Vec<_> = (20_000..20_009).map(|n| binding(UDP, (EXTERNAL, n), (HOST, n))).collect();
        open(&mut nat, &nine.iter().chain([&mapped]).collect::<Vec<_>>()).await;
        // The flow that had the port ends, and the host gets another one, which is the only free one of ten.
        let mut port = None;
        for _ in 0..200 {
            lan.send_to(squatter, REMOTE, 7000, "me?");
            port = port.or_else(|| wan.recv_from_now(remote));
            if port.is_some() {
                break;
            }
        }
        assert_eq!(port.unwrap().1, (EXTERNAL, 20_009).into());
        let udp = lan.udp(HOST, 6000);
        wan.send_to(other_remote, EXTERNAL, 5000, "for the mapped host");
        assert_eq!(lan.recv_from(udp).unwrap().0, "for the mapped host");
        wan.send_to(remote, EXTERNAL, 5000, "for the mapped host");
        assert_eq!(lan.recv_from(udp).unwrap().0, "for the mapped host", "from the squatter's friend, too");
        assert_eq!(seen(lan, wan, udp), (EXTERNAL, 5000).into());
    });
}

/// RFC 6887 §11.1: all ports of a protocol, and all protocols.
#[test]
fn whole_hosts_and_protocols() {
    in_router("whole_hosts_and_protocols", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        let host = binding(0, (EXTERNAL, 0), (HOST, 0));
        let web = binding(TCP, (EXTERNAL, 8080), (OTHER_HOST, 80));
        open(&mut nat, &[&host, &web]).await;
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (udp, http, there) = (lan.udp(HOST, 6000), lan.listen(HOST, 81), lan.listen(OTHER_HOST, 80));
        let remote = wan.udp(REMOTE, 7000);
        wan.send_to(remote, EXTERNAL, 6000, "any port");
        assert_eq!(lan.recv_from(udp).unwrap().0, "any port");
        lan.send_to(udp, REMOTE, 7000, "back");
        assert_eq!(wan.recv_from(remote).unwrap().1, (EXTERNAL, 6000).into());
        wan.connect(EXTERNAL, 81).unwrap();
        assert!(lan.accept(http).is_some());
        wan.connect(EXTERNAL, 8080).unwrap();
        assert!(lan.accept(there).is_some(), "a port's own mapping goes before");
        // A protocol that has no ports.
        let (inside, outside) = (lan.raw(HOST, 253), wan.raw(REMOTE, 253));
        wan.send_to(outside, EXTERNAL, 0, "no ports");
        let (text, from) = lan.recv_from(inside).unwrap();
        assert!(text.ends_with("no ports") && from.ip() == REMOTE);
        lan.send_to(inside, REMOTE, 0, "back");
        assert_eq!(wan.recv_from(outside).unwrap().1.ip(), EXTERNAL);

        // The end of everything leaves what has its own mapping, flows included.
        let client = wan.connect(EXTERNAL, 8080).unwrap();
        let (accepted, _) = lan.accept(there).unwrap();
        let all_udp = binding(UDP, (EXTERNAL, 0), (HOST, 0));
        nat.apply(&[Change::Replace { old: host, new: all_udp.clone() }]).await.unwrap();
        wan.send(client, "still here");
        assert_eq!(lan.recv(accepted), "still here");
        wan.send_to(remote, EXTERNAL, 6000, "any port");
        assert_eq!(lan.recv_from(udp).unwrap().0, "any port", "the new mapping leads there, too");
        assert!(wan.connect(EXTERNAL, 81).is_err(), "another protocol");
        wan.send_to(outside, EXTERNAL, 0, "no ports");
        assert_eq!(lan.recv_from(inside), None);
        // With filters, and without.
        let only = Binding { filters: vec![filter(OTHER_REMOTE, 32, 0)], ..all_udp.clone() };
        nat.apply(&[Change::Replace { old: all_udp, new: only }]).await.unwrap();
        wan.send_to(remote, EXTERNAL, 6000, "a stranger now");
        assert_eq!(lan.recv_from(udp), None);
        let friend = wan.udp(OTHER_REMOTE, 0);
        wan.send_to(friend, EXTERNAL, 6000, "a friend");
        assert_eq!(lan.recv_from(udp).unwrap().0, "a friend");
        open(&mut nat, &[&binding(UDP, (EXTERNAL, 9000), (HOST, 6001))]).await;
        let open_port = lan.udp(HOST, 6001);
        wan.send_to(remote, EXTERNAL, 9000, "a stranger, to a port of its own");
        assert!(lan.recv_from(open_port).is_some());
    });
}

/// RFC 7753: ports in a row, as one.
#[test]
fn a_port_set_is_one_mapping() {
    in_router("a_port_set_is_one_mapping", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        let set = Binding { ports: 3, ..binding(UDP, (EXTERNAL, 5000), (HOST, 6000)) };
        open(&mut nat, &[&set]).await;
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let sockets: Vec<_> = (0..4).map(|n| lan.udp(HOST, 6000 + n)).collect();
        let remote = wan.udp(REMOTE, 7000);
        for (n, socket) in (0..).zip(&sockets) {
            wan.send_to(remote, EXTERNAL, 5000 + n, "in");
            assert_eq!(lan.recv_from(*socket).is_some(), n < 3, "port {n}");
            let other_remote = wan.udp(OTHER_REMOTE, 7000 + n);
            lan.send_to(*socket, OTHER_REMOTE, 7000 + n, "out");
            let port = if n < 3 { 5000 } else { 6000 } + n;
            assert_eq!(wan.recv_from(other_remote).unwrap().1, (EXTERNAL, port).into());
        }
        let inside = binding(UDP, (EXTERNAL, 5002), (OTHER_HOST, 1));
        let error = nat.apply(&[Change::Open(inside)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        nat.apply(&[Change::Close(set.clone())]).await.unwrap();
        wan.send_to(remote, EXTERNAL, 5001, "in");
        assert_eq!(lan.recv_from(sockets[1]), None, "its flow ended");
        assert_eq!((elements("ports"), elements("sources"), elements("owners")), (0, 0, 0));

        let large = Binding { ports: 700, ..set };
        open(&mut nat, &[&large]).await;
        assert_eq!((elements("ports"), elements("reserved"), elements("taken")), (700, 700, 700));
        let too_large = Binding { ports: 60_000, ..binding(TCP, (EXTERNAL, 5000), (HOST, 5000)) };
        let error = nat.apply(&[Change::Open(too_large)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(nat.bindings().collect::<Vec<_>>(), [&large]);
        nat.apply(&[Change::Close(large)]).await.unwrap();
        assert_eq!(elements("taken"), 0);
    });
}

/// An IPv6 firewall's pinholes, RFC 6887 §2.2 and §13.3.
#[test]
fn pinholes_open_an_ipv6_firewall() {
    in_router("pinholes_open_an_ipv6_firewall", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (udp, http) = (lan.udp(HOST6, 6000), lan.listen(HOST6, 80));
        let (one, two) = (wan.udp(REMOTE6, 7000), wan.udp(OTHER_REMOTE6, 7000));
        let reaches = |lan: &mut common::Agent, wan: &mut common::Agent, socket: usize| {
            wan.send_to(socket, HOST6, 6000, "knock");
            lan.recv_from(udp).is_some()
        };
        assert!(!reaches(lan, wan, one));
        assert!(wan.connect(HOST6, 80).is_err());
        lan.send_to(udp, REMOTE6, 7000, "question");
        assert_eq!(wan.recv_from(one).unwrap().1, (HOST6, 6000).into());
        assert!(reaches(lan, wan, one), "an answer");

        let pinhole = |protocol, port| Binding {
            internal: (HOST6, port).into(),
            external: (HOST6, port).into(),
            ..binding(protocol, (EXTERNAL, 1), (HOST, 1))
        };
        let web = pinhole(TCP, 80);
        let closed = Binding {
            filters: vec![Filter { prefix: OTHER_REMOTE6.into(), len: 128, port: 0 }],
            ..pinhole(UDP, 6000)
        };
        open(&mut nat, &[&web, &closed]).await;
        let client = wan.connect_from(REMOTE6, 0, HOST6, 80).unwrap();
        let (accepted, peer) = lan.accept(http).unwrap();
        assert_eq!(peer.ip(), REMOTE6);
        let stranger = wan.udp(REMOTE6, 7001);
        assert!(reaches(lan, wan, two) && !reaches(lan, wan, stranger));
        let opened = Binding { filters: Vec::new(), ..closed.clone() };
        nat.apply(&[Change::Replace { old: closed.clone(), new: opened.clone() }]).await.unwrap();
        assert!(reaches(lan, wan, stranger));
        nat.apply(&[Change::Replace { old: opened, new: closed }]).await.unwrap();
        assert!(reaches(lan, wan, two) && !reaches(lan, wan, stranger), "its flow ended");

        nat.apply(&[Change::Close(web)]).await.unwrap();
        wan.send(client, "more");
        assert_eq!(lan.recv(accepted), "(nothing)", "no further octet reaches the host");
        lan.send(accepted, "more");
        assert_ne!(lan.recv(accepted), "(nothing)", "the host learns that it is over");

        let peer = Some((REMOTE6, 7001).into());
        let third = lan.udp(HOST6, 6001);
        open(&mut nat, &[&Binding { peer, ..pinhole(UDP, 6001) }]).await;
        for (socket, gets_in) in [(stranger, true), (one, false)] {
            wan.send_to(socket, HOST6, 6001, "knock");
            assert_eq!(lan.recv_from(third).is_some(), gets_in);
        }
        // All ports, and everything.
        let fourth = lan.udp(HOST6, 6002);
        for protocol in [UDP, 0] {
            let all = pinhole(protocol, 0);
            open(&mut nat, &[&all]).await;
            let any = wan.udp(REMOTE6, 0);
            wan.send_to(any, HOST6, 6002, "any port");
            assert!(lan.recv_from(fourth).is_some());
            let fresh = wan.udp(REMOTE6, 0);
            assert!(!reaches(lan, wan, fresh), "a port's own mapping goes before");
            nat.apply(&[Change::Close(all)]).await.unwrap();
            wan.send_to(any, HOST6, 6002, "any port");
            assert!(lan.recv_from(fourth).is_none());
        }

        // Off by configuration: all passes, and no mapping can be had.
        let left: Vec<_> = nat.bindings().cloned().map(Change::Close).collect();
        assert_eq!(left.len(), 2);
        let off = ProviderConfig { ipv6_firewall: false, ..config() };
        assert_eq!(nat.reconfigure(off.clone()).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        nat.apply(&left).await.unwrap();
        nat.reconfigure(off).await.unwrap();
        let fresh = wan.udp(REMOTE6, 0);
        assert!(reaches(lan, wan, fresh));
        let refused = nat.apply(&[Change::Open(pinhole(TCP, 80))]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
    });
}

/// RFC 6887 §15: after the end of a mapping nothing comes in by it, also what had been coming in.
#[test]
fn flows_end_with_their_mapping() {
    in_router("flows_end_with_their_mapping", async |world| {
        provided(world);
        for many in [0, 40] {
            let mut nat = ProviderNat::open(config()).await.unwrap();
            let (web, game) =
                (binding(TCP, (EXTERNAL, 80), (HOST, 80)), binding(UDP, (EXTERNAL, 5000), (HOST, 5000)));
            let kept = binding(UDP, (EXTERNAL, 7777), (HOST, 7777));
            // With many, the kernel's table is read as a whole.
            let others = (0..many).map(|n| binding(UDP, (EXTERNAL, 20_000 + n), (HOST, 20_000 + n)));
            let doomed: Vec<_> = others.chain([web, game.clone()]).collect();
            open(&mut nat, &doomed.iter().chain([&kept]).collect::<Vec<_>>()).await;
            let (lan, wan) = (&mut world.lan, &mut world.wan);
            let (http, udp, other) = (lan.listen(HOST, 80), lan.udp(HOST, 5000), lan.udp(HOST, 7777));
            let remote = wan.udp(REMOTE, 7000);
            let (client, waiting) = (wan.connect(EXTERNAL, 80).unwrap(), wan.connect(EXTERNAL, 80).unwrap());
            let (server, talking) = (lan.accept(http).unwrap().0, lan.accept(http).unwrap().0);
            wan.send_to(remote, EXTERNAL, 5000, "1");
            assert_eq!(lan.recv_from(udp).unwrap().0, "1");
            wan.send_to(remote, EXTERNAL, 7777, "1");
            assert_eq!(lan.recv_from(other).unwrap().0, "1");

            let closed: Vec<_> = doomed.iter().cloned().map(Change::Close).collect();
            nat.apply(&closed).await.unwrap();
            wan.send(client, "2");
            assert_eq!(lan.recv(server), "(nothing)", "no further octet reaches the host");
            lan.send(talking, "3");
            assert_eq!(wan.recv(waiting), "(nothing)", "nor does the host's reach the remote one");
            assert_ne!(lan.recv(talking), "(nothing)", "the host learns that it is over");
            wan.send_to(remote, EXTERNAL, 5000, "4");
            assert_eq!(lan.recv_from(udp), None);
            wan.send_to(remote, EXTERNAL, 7777, "5");
            assert_eq!(lan.recv_from(other).unwrap().0, "5", "another mapping's flow goes on");

            // Replacing moves the flow to the new host with its next packet.
            let moved = binding(UDP, (EXTERNAL, 7777), (OTHER_HOST, 1));
            let there = lan.udp(OTHER_HOST, 1);
            nat.apply(&[Change::Replace { old: kept, new: moved.clone() }]).await.unwrap();
            wan.send_to(remote, EXTERNAL, 7777, "6");
            assert_eq!(lan.recv_from(there).unwrap().0, "6");
            assert_eq!(lan.recv_from(other), None);
            assert_eq!(nat.bindings().collect::<Vec<_>>(), [&moved]);
            for socket in [http, udp, other, there, server, talking] {
                lan.close(socket);
            }
            for socket in [remote, client, waiting] {
                wan.close(socket);
            }
        }

        // Who came too early is let in, though the kernel has a flow that nobody answered.
        let own = ProviderConfig { pool: vec![WAN], default_external: Some(WAN), ..config() };
        let mut nat = ProviderNat::open(own).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (udp, remote) = (lan.udp(HOST, 6000), wan.udp(REMOTE, 0));
        wan.send_to(remote, WAN, 5000, "too early");
        assert_eq!(lan.recv_from(udp), None);
        open(&mut nat, &[&binding(UDP, (WAN, 5000), (HOST, 6000))]).await;
        wan.send_to(remote, WAN, 5000, "now");
        assert_eq!(lan.recv_from(udp).unwrap().0, "now");
    });
}

/// PEER, RFC 6887 §12: one remote endpoint, in both directions.
#[test]
fn a_peer_mapping_is_for_one_remote_endpoint() {
    in_router("a_peer_mapping_is_for_one_remote_endpoint", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        let peer = |addr| Some(SocketAddr::from((addr, 7000)));
        let one = Binding { peer: peer(REMOTE), ..binding(UDP, (EXTERNAL, 5000), (HOST, 6000)) };
        let two = Binding { peer: peer(OTHER_REMOTE), ..binding(UDP, (EXTERNAL, 5001), (HOST, 6000)) };
        open(&mut nat, &[&one, &two]).await;
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let udp = lan.udp(HOST, 6000);
        let (remote, other) = (wan.udp(REMOTE, 7000), wan.udp(OTHER_REMOTE, 7000));
        wan.send_to(remote, EXTERNAL, 5000, "the peer");
        assert_eq!(lan.recv_from(udp).unwrap(), ("the peer".to_owned(), (REMOTE, 7000).into()));
        let same_host = wan.udp(REMOTE, 7001);
        for (stranger, port) in [(other, 5000), (same_host, 5000), (remote, 5001)] {
            wan.send_to(stranger, EXTERNAL, port, "a stranger");
        }
        assert_eq!(lan.recv_from(udp), None);
        for (socket, addr, port) in [(remote, REMOTE, 5000), (other, OTHER_REMOTE, 5001)] {
            lan.send_to(udp, addr, 7000, "hello");
            assert_eq!(wan.recv_from(socket).unwrap().1, (EXTERNAL, port).into());
        }
        lan.send_to(udp, REMOTE, 7001, "no mapping leads there");
        assert_eq!(wan.recv_from(same_host).unwrap().1.ip(), EXTERNAL);

        // Beside a MAP mapping with filters, which the peer has not to pass.
        let third = wan.udp(Ipv4Addr::new(198, 51, 100, 3), 7002);
        let map = Binding {
            filters: vec![filter(OTHER_REMOTE, 32, 7002)],
            ..binding(UDP, (EXTERNAL, 5000), (HOST, 6000))
        };
        let fresh = wan.udp(REMOTE, 7003);
        let fresh_peer = Some((REMOTE, 7003).into());
        let three = Binding { peer: fresh_peer, ..one.clone() };
        open(&mut nat, &[&map, &three]).await;
        for (socket, port, text) in [(remote, 5000, "known"), (fresh, 5000, "new"), (third, 5000, "listed")] {
            wan.send_to(socket, EXTERNAL, port, text);
            assert_eq!(lan.recv_from(udp).unwrap().0, text);
        }
        // The flow that the peer had begun ends with its mapping.
        nat.apply(&[Change::Close(one)]).await.unwrap();
        wan.send_to(remote, EXTERNAL, 5000, "no more");
        assert_eq!(lan.recv_from(udp), None);
        assert_eq!((elements("peers"), elements("mapped4-peers")), (2, 2));
    });
}

/// Decision 24: what somebody else did to the table is made good.
#[test]
fn a_flushed_table_is_made_anew() {
    in_router("a_flushed_table_is_made_anew", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        let game =
            Binding { filters: vec![filter(REMOTE, 24, 0)], ..binding(UDP, (EXTERNAL, 5000), (HOST, 6000)) };
        let many: Vec<_> =
            (0..600).map(|n| binding(TCP, (EXTERNAL, 10_000 + n), (HOST, 10_000 + n))).collect();
        open(&mut nat, &[&game]).await;
        open(&mut nat, &many.iter().collect::<Vec<_>>()).await;
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let udp = lan.udp(HOST, 6000);
        for how in ["a change", "a look"] {
            run("nft", &["flush ruleset"]);
            let remote = wan.udp(REMOTE, 0);
            wan.send_to(remote, EXTERNAL, 5000, "lost");
            assert_eq!(lan.recv_from(udp), None);
            if how == "a look" {
                assert!(nat.heal().await.unwrap());
            } else {
                open(&mut nat, &[&binding(TCP, (EXTERNAL, 80), (HOST, 80))]).await;
            }
            wan.send_to(remote, EXTERNAL, 5000, how);
            assert_eq!(lan.recv_from(udp).unwrap().0, how);
            assert_eq!((elements("ports"), elements("owners"), nat.bindings().count()), (602, 602, 602));
            assert!(!nat.heal().await.unwrap());
        }
        // Somebody has put an element of his own where one of ours is to be, or has taken one away.
        let ours = binding(TCP, (EXTERNAL, 81), (HOST, 81));
        run(
            "nft",
            &["add element inet portferry-provider ports { tcp . 203.0.113.1 . 81 : 192.168.77.3 . 1 }"],
        );
        open(&mut nat, &[&ours]).await;
        let listed = run("nft", &["-n", "list", "map", "inet", "portferry-provider", "ports"]);
        assert!(listed.contains("192.168.77.2 . 81") && !listed.contains("192.168.77.3"));
        run("nft", &["delete element inet portferry-provider ports { tcp . 203.0.113.1 . 81 }"]);
        nat.apply(&[Change::Close(ours)]).await.unwrap();
        assert_eq!((elements("ports"), elements("mapped4-ports"), nat.bindings().count()), (602, 602, 602));
    });
}

/// RFC 6887 §11.3, §12.3: where a host's own flows go out, so that a mapping can be there.
#[test]
fn flows_are_found() {
    in_router("flows_are_found", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        // Somebody else's mapping of the port number, so that the flow gets another one.
        let others = binding(UDP, (OTHER_EXTERNAL, 6000), (OTHER_HOST, 6000));
        open(&mut nat, &[&others]).await;
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (udp, remote, second) = (lan.udp(HOST, 6000), wan.udp(REMOTE, 7000), wan.udp(OTHER_REMOTE, 7000));
        let internal = std::net::SocketAddrV4::new(HOST, 6000);
        let from = |protocol, internal: std::net::SocketAddrV4, remote| FlowFrom {
            protocol,
            internal: internal.into(),
            remote,
        };
        assert_eq!(nat.flows(&[from(UDP, internal, None)]).await.unwrap(), [None], "before the first packet");
        lan.send_to(udp, REMOTE, 7000, "hello");
        let (_, seen) = wan.recv_from(remote).unwrap();
        let to = |addr: Ipv4Addr, port: u16| Some(SocketAddr::from((addr, port)));
        assert_ne!(seen.port(), 6000);
        let found = [from(UDP, internal, None), from(UDP, internal, to(REMOTE, 7000))];
        let others = [
            from(TCP, internal, None),
            from(UDP, std::net::SocketAddrV4::new(HOST, 6001), None),
            from(UDP, std::net::SocketAddrV4::new(OTHER_HOST, 6000), None),
            from(UDP, internal, to(REMOTE, 7001)),
            from(UDP, internal, to(OTHER_REMOTE, 7000)),
        ];
        let all: Vec<_> = found.into_iter().chain(others).collect();
        let mut places = Vec::new();
        for one in &all {
            places.extend(nat.flows(std::slice::from_ref(one)).await.unwrap());
        }
        assert_eq!(nat.flows(&all).await.unwrap(), places, "one by one and together");
        let (found, others) = places.split_at(2);
        assert!(found.iter().all(|place| place.map(SocketAddr::from) == Some(seen)), "{found:?} {seen}");
        assert!(others.iter().all(Option::is_none), "{others:?}");
        // Not by an address that is none of the pool's.
        let mut elsewhere = ProviderNat::open(ProviderConfig {
            name: "elsewhere".to_owned(),
            pool: vec![WAN],
            default_external: None,
            ..config()
        })
        .await
        .unwrap();
        assert_eq!(elsewhere.flows(&all).await.unwrap(), vec![None; 7]);
        elsewhere.clear().await.unwrap();
        // A mapping there: the flow goes on as it is, and others reach the host at the same place.
        open(&mut nat, &[&binding(UDP, (DEFAULT_EXTERNAL, seen.port()), (HOST, 6000))]).await;
        lan.send_to(udp, REMOTE, 7000, "still");
        assert_eq!(wan.recv_from(remote).unwrap(), ("still".to_owned(), seen));
        lan.send_to(udp, OTHER_REMOTE, 7000, "new");
        assert_eq!(wan.recv_from(second).unwrap(), ("new".to_owned(), seen));
        let third = wan.udp(OTHER_REMOTE, 7001);
        wan.send_to(third, DEFAULT_EXTERNAL, seen.port(), "called");
        assert_eq!(lan.recv_from(udp).unwrap().0, "called");
    });
}

/// The PCP server is no server to the Internet: what comes there from outside is dropped and counted; a mapping of the same
/// port is a mapping like any other.
#[test]
fn strangers_to_the_pcp_server_are_counted() {
    in_router("strangers_to_the_pcp_server_are_counted", async |world| {
        provided(world);
        let own = ProviderConfig { pool: vec![WAN, EXTERNAL], default_external: Some(WAN), ..config() };
        let mut nat = ProviderNat::open(own.clone()).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        // Somebody who listens everywhere would hear them.
        let everywhere = tokio::net::UdpSocket::bind("[::]:5351").await.unwrap();
        let remote = wan.udp(REMOTE, 0);
        let hears = async || {
            let mut bytes = [0; 16];
            let heard = tokio::time::timeout(Duration::from_millis(300), everywhere.recv(&mut bytes)).await;
            heard.ok().map(|len| String::from_utf8_lossy(&bytes[..len.unwrap()]).into_owned())
        };
        for _ in 0..3 {
            wan.send_to(remote, WAN, 5351, "stranger");
        }
        assert_eq!(hears().await, None);
        assert_eq!(nat.strangers().await, 3);
        // By another port the same router is reached.
        let other = tokio::net::UdpSocket::bind("0.0.0.0:5352").await.unwrap();
        wan.send_to(remote, WAN, 5352, "guest");
        let mut bytes = [0; 16];
        let heard = tokio::time::timeout(Duration::from_secs(5), other.recv(&mut bytes)).await;
        assert_eq!(heard.unwrap().unwrap(), 5);

        // A table that is made anew goes on counting.
        nat.reconfigure(ProviderConfig { ipv6_firewall: false, ..own }).await.unwrap();
        assert_eq!(nat.strangers().await, 3);
        wan.send_to(remote, WAN, 5351, "stranger");
        assert_eq!(hears().await, None);
        assert_eq!(nat.strangers().await, 4);

        // Mappings of the port lead to a host, or to a program of this router.
        let host = lan.udp(HOST, 5351);
        open(&mut nat, &[&binding(UDP, (WAN, 5351), (HOST, 5351))]).await;
        wan.send_to(remote, WAN, 5351, "mapped");
        assert_eq!(lan.recv_from(host).unwrap().0, "mapped");
        open(&mut nat, &[&binding(UDP, (EXTERNAL, 7), (ROUTER, 5351))]).await;
        for word in ["first", "second"] {
            wan.send_to(remote, EXTERNAL, 7, word);
            assert_eq!(hears().await.as_deref(), Some(word));
        }
        // So do answers to a program that asks from there, and what comes by IPv6 is no other.
        let answering = wan.udp(REMOTE, 7100);
        everywhere.send_to(b"question", (REMOTE.to_ipv6_mapped(), 7100)).await.unwrap();
        let (_, asker) = wan.recv_from(answering).unwrap();
        wan.send_to(answering, WAN, asker.port(), "answer");
        assert_eq!(hears().await.as_deref(), Some("answer"));
        let remote6 = wan.udp(REMOTE6, 0);
        wan.send_to(remote6, "2001:db8:51::1".parse::<Ipv6Addr>().unwrap(), 5351, "stranger");
        assert_eq!(hears().await, None);
        assert_eq!(nat.strangers().await, 5);
        // Nor does the number go back when somebody else takes the table away.
        run("nft", &["delete table inet portferry-provider"]);
        assert_eq!(nat.strangers().await, 5);
        assert!(nat.heal().await.unwrap());
        assert_eq!(nat.strangers().await, 5);
        wan.send_to(remote6, "2001:db8:51::1".parse::<Ipv6Addr>().unwrap(), 5351, "stranger");
        assert_eq!(hears().await, None);
        assert_eq!(nat.strangers().await, 6);
    });
}

/// Decision 24: elements of maps, never rules; a change costs the same in a large table.
#[test]
fn ten_thousand_mappings() {
    in_router("ten_thousand_mappings", async |world| {
        provided(world);
        let mut nat = ProviderNat::open(config()).await.unwrap();
        // Without a single flow the kernel would not even look for those to end.
        let (asking, asked) = (world.lan.udp(HOST, 1000), world.wan.udp(REMOTE, 1000));
        world.lan.send_to(asking, REMOTE, 1000, "hello");
        assert!(world.wan.recv_from(asked).is_some());
        let mut one_by_one = Vec::new();
        let rules =
            || run("nft", &["list", "ruleset"]).lines().filter(|line| line.contains("accept")).count();
        let mut before = 0;
        for n in 0..10_000_u16 {
            let subscriber = Ipv4Addr::new(192, 168, 77, (n % 200) as u8 + 2);
            let mut one =
                binding(if n % 2 == 0 { TCP } else { UDP }, (EXTERNAL, 2000 + n), (subscriber, 2000 + n));
            if n % 10 == 0 {
                one.filters = vec![filter(Ipv4Addr::from(u32::from(n) << 8), 24, 0)];
            }
            let took = Instant::now();
            nat.apply(&[Change::Open(one)]).await.unwrap();
            one_by_one.push(took.elapsed());
            if n == 0 {
                before = rules();
            }
        }
        let median = |some: &[Duration]| {
            let mut some = some.to_vec();
            some.sort();
            some[some.len() / 2]
        };
        let (first, last) = (median(&one_by_one[..1000]), median(&one_by_one[9000..]));
        println!(
            "10,000 mappings one by one in {:?}; the median of the first thousand {first:?}, of the last {last:?}: {:.2}",
            one_by_one.iter().sum::<Duration>(),
            last.as_secs_f64() / first.as_secs_f64()
        );
        assert_eq!(
            (elements("ports"), elements("allowed4-ports-24"), nat.bindings().count()),
            (10_000, 1000, 10_000)
        );
        assert_eq!(rules(), before, "no rule came with a mapping");

        let took = Instant::now();
        run("nft", &["flush ruleset"]);
        assert!(nat.heal().await.unwrap());
        println!("made anew in {:?}", took.elapsed());
        assert_eq!((elements("ports"), elements("owners")), (10_000, 10_000));
        let all: Vec<_> = nat.bindings().cloned().map(Change::Close).collect();
        for some in all.chunks(500) {
            nat.apply(some).await.unwrap();
        }
        for set in
            ["ports", "sources", "pairs", "owners", "reserved", "taken", "mapped4-ports", "filtered4-ports"]
        {
            assert_eq!(elements(set), 0, "{set}");
        }
        assert_eq!(elements("allowed4-ports-24"), 0);
    });
}

/// Our table is ours alone, and nobody else's is touched; an error changes nothing.
#[test]
fn the_table_is_adopted_and_cleared() {
    in_router("the_table_is_adopted_and_cleared", async |_| {
        run("nft", &["add table inet other; add chain inet other c { type filter hook input priority 0; }"]);
        let mut first = ProviderNat::open(config()).await.unwrap();
        let game = binding(UDP, (EXTERNAL, 5000), (HOST, 6000));
        open(&mut first, &[&game]).await;
        drop(first);
        assert_eq!(elements("ports"), 1, "a table outlives its program");
        let mut nat = ProviderNat::open(config()).await.unwrap();
        assert_eq!(elements("ports"), 0);
        let others = [33, 132, 136].map(|protocol| binding(protocol, (EXTERNAL, 5000), (HOST, 6000)));
        open(&mut nat, &others.iter().chain([&game, &game]).collect::<Vec<_>>()).await;

        let fresh = binding(TCP, (EXTERNAL, 81), (HOST, 81));
        for (wrong, kind) in [
            (Change::Open(binding(UDP, (EXTERNAL, 5000), (OTHER_HOST, 1))), ErrorKind::AlreadyExists),
            (Change::Open(binding(UDP, (EXTERNAL, 5001), (HOST, 6000))), ErrorKind::AlreadyExists),
            (Change::Close(binding(UDP, (EXTERNAL, 5000), (HOST, 1))), ErrorKind::NotFound),
            (Change::Close(binding(TCP, (EXTERNAL, 5000), (HOST, 6000))), ErrorKind::NotFound),
            (Change::Open(binding(1, (EXTERNAL, 5000), (HOST, 6000))), ErrorKind::InvalidInput),
        ] {
            let error = nat.apply(&[Change::Open(fresh.clone()), wrong]).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert_eq!((elements("ports"), nat.bindings().count()), (4, 4));
        }
        nat.reconfigure(ProviderConfig {
            name: "renamed".to_owned(),
            inside_interfaces: Vec::new(),
            ..config()
        })
        .await
        .unwrap();
        let listed = run("nft", &["list", "ruleset"]);
        assert!(!listed.contains("portferry-provider") && listed.contains("table inet renamed"), "{listed}");
        assert!(listed.contains("udp . 203.0.113.1 . 5000 : 192.168.77.2 . 6000"), "{listed}");
        nat.clear().await.unwrap();
        assert_eq!(run("nft", &["list", "tables"]).trim(), "table inet other");
        nat.clear().await.unwrap();
        assert_eq!(nat.bindings().count(), 0);
    });
}

//! The router's own NAT and the kernel's news against a real kernel: a LAN host, a router and an Internet host, each a
//! network namespace (see `common`).

#![allow(clippy::unwrap_used)] // in helpers too, which `allow-unwrap-in-tests` doesn't reach

mod common;

use std::{
    env,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use common::{HOST, OTHER_HOST, OTHER_REMOTE, REMOTE, TCP, UDP, WAN, in_router, run};
use portferry::{
    netlink::{Interface, Neighbour, Netlink, Snapshot, neighbours},
    nft::{self, Change, Nat1Rule, Nft, TableConfig},
};

/// At the provider's NAT; no interface has it.
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const WAN_AGAIN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);

/// What `nft list table inet portferry` prints, but for the counter.
const RULESET: &str = "\
table inet portferry {
	map ports {
		type inet_proto . inet_service : ipv4_addr . inet_service
		elements = { tcp . 443 : 192.168.77.2 . 443,
			     tcp . 8080 : 192.168.77.2 . 80 }
	}

	map peers {
		type inet_proto . inet_service . ipv4_addr : ipv4_addr . inet_service
		elements = { udp . 5000 . 198.51.100.2 : 192.168.77.2 . 6000 }
	}

	set lan {
		type ifname
		elements = { \"lan0\" }
	}

	set wan {
		type ifname
		elements = { \"wan0\",
			     \"wan1\" }
	}

	map sources {
		type inet_proto . ipv4_addr . inet_service : inet_service
		elements = { tcp . 192.168.77.2 . 80 : 8080,
			     udp . 192.168.77.2 . 6000 : 5000 }
	}

	set kept {
		type inet_proto . ipv4_addr . inet_service
		elements = { tcp . 192.168.77.2 . 443 }
	}

	set mapped {
		type inet_proto . inet_service
		elements = { tcp . 443,
			     udp . 5000,
			     tcp . 8080 }
	}

	map hairpin {
		type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
		elements = { tcp . 203.0.113.1 . 7080 : 192.168.77.2 . 80 }
	}

	map hairpin_peers {
		type inet_proto . ipv4_addr . inet_service . ipv4_addr : ipv4_addr . inet_service
		elements = { udp . 203.0.113.1 . 7000 . 198.51.100.2 : 192.168.77.2 . 6000 }
	}

	map hairpin_sources {
		type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
		elements = { tcp . 192.168.77.2 . 80 : 203.0.113.1 . 7080,
			     udp . 192.168.77.2 . 6000 : 203.0.113.1 . 7000 }
	}

	set hairpin_addresses {
		type ipv4_addr
		elements = { 198.51.100.1,
			     203.0.113.1 }
	}

	set wan_addresses {
		type ipv4_addr
		elements = { 198.51.100.1 }
	}

	set hairpin_links {
		type ifname . ifname
		elements = { \"lan0\" . \"lan0\" }
	}

	chain prerouting {
		type nat hook prerouting priority dstnat + 1; policy accept;
		meta nfproto ipv4 iifname \"wan0\" fib daddr type local dnat ip to meta l4proto . th dport . ip saddr map @peers
		meta nfproto ipv4 iifname \"wan0\" fib daddr type local dnat ip to meta l4proto . th dport map @ports
		meta nfproto ipv4 iifname @lan dnat ip to meta l4proto . ip daddr . th dport . ip saddr map @hairpin_peers
		meta nfproto ipv4 iifname @lan dnat ip to meta l4proto . ip daddr . th dport map @hairpin
		meta nfproto ipv4 iifname @lan ip daddr @wan_addresses dnat ip to meta l4proto . th dport . ip saddr map @peers
		meta nfproto ipv4 iifname @lan ip daddr @wan_addresses dnat ip to meta l4proto . th dport map @ports
	}

	chain forward {
		type filter hook forward priority filter - 5; policy accept;
		ct state established,related accept
		iifname @wan oifname @lan ct state new ct status dnat accept
		iifname @wan oifname @lan counter packets 0 bytes 0 drop
		iifname @lan oifname @wan ct state new tcp flags != syn / fin,syn,rst,ack reject with tcp reset
	}

	chain postrouting {
		type nat hook postrouting priority srcnat - 1; policy accept;
		meta nfproto ipv4 iifname @lan oifname @lan ct status dnat ct original ip daddr @hairpin_addresses snat ip to meta l4proto . ip saddr . th sport map @hairpin_sources
		meta nfproto ipv4 iifname . oifname @hairpin_links ct status dnat ct original ip daddr @hairpin_addresses masquerade
		meta nfproto ipv4 iifname @lan oifname \"wan0\" meta l4proto . ip saddr . th sport @kept masquerade
		meta nfproto ipv4 iifname @lan oifname \"wan0\" masquerade to :meta l4proto . ip saddr . th sport map @sources
		meta nfproto ipv4 iifname @lan oifname \"wan0\" meta l4proto . th sport @mapped masquerade to :1024-65535
		meta nfproto ipv4 iifname @lan oifname @wan masquerade
	}
}
";

/// What a mark adds to that.
const MARKS: &str = "\
	set marked {
		type inet_proto . ipv4_addr . inet_service
		elements = { tcp . 192.168.77.2 . 80,
			     tcp . 192.168.77.2 . 443 }
	}

	set marked_peers {
		type inet_proto . ipv4_addr . inet_service . ipv4_addr
		elements = { udp . 192.168.77.2 . 6000 . 198.51.100.2 }
	}

	chain mark {
		meta nfproto ipv4 meta l4proto . ip daddr . th dport @marked meta mark set meta mark | 0x00100000 accept
		meta nfproto ipv4 meta l4proto . ip daddr . th dport . ip saddr @marked_peers meta mark set meta mark | 0x00100000 accept
	}

		meta nfproto ipv4 ct status dnat iifname @wan oifname @lan jump mark
		meta nfproto ipv4 ct status dnat iifname @lan oifname @lan jump mark
";

/// and decision 24, on the way of the packets: in by the mapped port and back, by nothing else.
#[test]
fn mapped_traffic_passes_and_nothing_else() {
    in_router("mapped_traffic_passes_and_nothing_else", async |world| {
        let mut nft = Nft::open(config()).await.unwrap();
        let (web, game) = (rule(TCP, 8080, HOST, 80), rule(UDP, 5000, HOST, 6000));
        nft.apply(&[Change::Add(web), Change::Add(game)]).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (http, udp) = (lan.listen(HOST, 80), lan.udp(HOST, 6000));
        let remote = wan.udp(REMOTE, 0);

        for address in [WAN, WAN_AGAIN] {
            run("ip", &["addr", "replace", &format!("{address}/24"), "dev", "wan0"]);
            let client = wan.connect(address, 8080).unwrap();
            let (server, peer) = lan.accept(http).unwrap();
            assert_eq!(peer.ip(), IpAddr::V4(REMOTE), "the LAN host sees who calls");
            wan.send(client, "question");
            assert_eq!(lan.recv(server), "question");
            lan.send(server, "answer");
            assert_eq!(wan.recv(client), "answer");

            wan.send_to(remote, address, 5000, "ping");
            let (text, from) = lan.recv_from(udp).unwrap();
            assert_eq!((text.as_str(), from.ip()), ("ping", IpAddr::V4(REMOTE)));
            lan.send_to(udp, REMOTE, from.port(), "pong");
            let (text, from) = wan.recv_from(remote).unwrap();
            assert_eq!((text.as_str(), from), ("pong", SocketAddr::from((address, 5000))));
        }

        assert!(wan.connect(WAN, 8081).is_err(), "another port");
        assert!(wan.connect(HOST, 80).is_err(), "the LAN host itself, though a route leads there");
        for (address, port) in [(WAN, 5001), (WAN, 6000), (HOST, 6000)] {
            wan.send_to(remote, address, port, "nobody asked for this");
        }
        assert_eq!(lan.recv_from(udp), None);
        assert_eq!(lan.accept(http), None);
        let dropped = run("nft", &["list", "chain", "inet", "portferry", "forward"]);
        assert!(!dropped.contains("counter packets 0 "), "{dropped}");
    });
}

#[test]
fn masquerade_keeps_the_external_port() {
    in_router("masquerade_keeps_the_external_port", async |world| {
        let mut nft = Nft::open(config()).await.unwrap();
        nft.apply(&[Change::Add(rule(UDP, 5000, HOST, 6000)), Change::Add(rule(TCP, 5001, HOST, 6001))])
            .await
            .unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (mapped, unmapped, remote) = (lan.udp(HOST, 6000), lan.udp(HOST, 6002), wan.udp(REMOTE, 7000));
        lan.send_to(mapped, REMOTE, 7000, "from a mapped port");
        assert_eq!(wan.recv_from(remote).unwrap().1, SocketAddr::from((WAN, 5000)));
        lan.send_to(unmapped, REMOTE, 7000, "from another");
        let (_, from) = wan.recv_from(remote).unwrap();
        assert_eq!(from.ip(), IpAddr::V4(WAN));
        wan.send_to(remote, WAN, from.port(), "reply");
        assert_eq!(lan.recv_from(unmapped).unwrap().0, "reply");

        let listener = wan.listen(REMOTE, 7001);
        lan.connect_from(HOST, 6001, REMOTE, 7001).unwrap();
        assert_eq!(wan.accept(listener).unwrap().1, SocketAddr::from((WAN, 5001)));
        lan.connect_from(HOST, 0, REMOTE, 7001).unwrap();
        assert_eq!(wan.accept(listener).unwrap().1.ip(), IpAddr::V4(WAN));

        // Without masquerade the LAN's addresses go out as they are, but for what is mapped: as answers do.
        let mut nft = Nft::open(TableConfig { masquerade: false, ..config() }).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        nft.apply(&[Change::Add(rule(UDP, 5005, HOST, 6003))]).await.unwrap();
        let (plain, mapped) = (lan.udp(HOST, 6004), lan.udp(HOST, 6003));
        lan.send_to(plain, REMOTE, 7000, "as I am");
        assert_eq!(wan.recv_from(remote).unwrap().1, SocketAddr::from((HOST, 6004)));
        lan.send_to(mapped, REMOTE, 7000, "as I am known");
        assert_eq!(wan.recv_from(remote).unwrap().1, SocketAddr::from((WAN, 5005)));
    });
}

/// RFC 6887 §11: a mapping is for both directions. Two hosts with one port, before somebody else's masquerade and after it has
/// had the flow; and whose mapping of several counts.
#[test]
fn a_mapped_host_is_seen_by_its_external_port() {
    in_router("a_mapped_host_is_seen_by_its_external_port", async |world| {
        let masquerade = "add table ip other; add chain ip other post { type nat hook postrouting priority 100; }; \
                          add rule ip other post oifname wan0 masquerade random";
        for ours in [false, true] {
            let mut nft = Nft::open(TableConfig { masquerade: ours, ..config() }).await.unwrap();
            if !ours {
                run("nft", &[masquerade]);
            }
            let (lan, wan) = (&mut world.lan, &mut world.wan);
            let (first, second) = (lan.udp(HOST, 3074), lan.udp(OTHER_HOST, 3074));
            let [remote, other] = [7000, 7001].map(|port| wan.udp(REMOTE, port));
            let mut seen = |from, to, by, lan: &mut common::Agent| {
                lan.send_to(from, REMOTE, to, "hello");
                wan.recv_from(by).unwrap().1
            };
            for host in [first, second] {
                seen(host, 7000, remote, lan); // some port or other
            }
            let all = [
                rule(UDP, 3074, HOST, 3074),
                rule(UDP, 40_000, OTHER_HOST, 3074),
                rule(UDP, 3000, HOST, 3074),
            ];
            nft.apply(&all.map(Change::Add)).await.unwrap();
            for (to, by) in [(7000, remote), (7001, other)] {
                assert_eq!(seen(first, to, by, lan), SocketAddr::from((WAN, 3074)), "{ours}");
                assert_eq!(seen(second, to, by, lan), SocketAddr::from((WAN, 40_000)), "{ours}");
            }
            nft.apply(&[Change::Remove(all[0])]).await.unwrap();
            assert_eq!(seen(first, 7000, remote, lan), SocketAddr::from((WAN, 3000)), "the next of several");
            assert_eq!(seen(second, 7000, remote, lan), SocketAddr::from((WAN, 40_000)));

            let listener = wan.listen(REMOTE, 7002);
            nft.apply(&[Change::Add(rule(TCP, 3075, HOST, 3074))]).await.unwrap();
            let stream = lan.connect_from(HOST, 3074, REMOTE, 7002).unwrap();
            assert_eq!(wan.accept(listener).unwrap().1, SocketAddr::from((WAN, 3075)));

            // Nobody else leaves by a mapped port, where we can help it.
            let squatter = lan.udp(OTHER_HOST, 3000);
            let (_, from) = {
                lan.send_to(squatter, REMOTE, 7000, "me too");
                wan.recv_from(remote).unwrap()
            };
            assert!(!ours || from != SocketAddr::from((WAN, 3000)), "{from}");
            wan.send_to(remote, WAN, from.port(), "answer");
            assert_eq!(lan.recv_from(squatter).unwrap().0, "answer");
            for socket in [first, second, squatter, stream] {
                lan.close(socket);
            }
            for socket in [remote, other, listener] {
                wan.close(socket);
            }
            if !ours {
                run("nft", &["delete", "table", "ip", "other"]);
            }
        }
    });
}

/// Without a masquerade of ours a mapped host whose port somebody else's flow has is still heard, by another port.
#[test]
fn a_port_that_a_flow_has_is_no_reason_to_drop() {
    in_router("a_port_that_a_flow_has_is_no_reason_to_drop", async |world| {
        run(
            "nft",
            &["add table ip other; add chain ip other post { type nat hook postrouting priority 100; }; \
                      add rule ip other post oifname wan0 masquerade"],
        );
        let mut nft = Nft::open(TableConfig { masquerade: false, ..config() }).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (mapped, other, remote) = (lan.udp(HOST, 3074), lan.udp(OTHER_HOST, 3074), wan.udp(REMOTE, 7000));
        lan.send_to(other, REMOTE, 7000, "first");
        assert_eq!(wan.recv_from(remote).unwrap().1, SocketAddr::from((WAN, 3074)));
        nft.apply(&[Change::Add(rule(UDP, 3074, HOST, 3074))]).await.unwrap();
        lan.send_to(mapped, REMOTE, 7000, "second");
        let (text, from) = wan.recv_from(remote).unwrap();
        assert_eq!(text, "second");
        wan.send_to(remote, WAN, from.port(), "answer");
        assert_eq!(lan.recv_from(mapped).unwrap().0, "answer");
    });
}

/// Decision 26, RFC 4787 REQ-9 and RFC 7648: by the outermost address and port, and by the WAN's, there and back.
#[test]
fn hosts_reach_each_other_by_external_addresses() {
    in_router("hosts_reach_each_other_by_external_addresses", async |world| {
        // With many changes at once the kernel's flows are read, and not selected.
        for many in [false, true] {
            let mut nft = Nft::open(config()).await.unwrap();
            let (web, game) = (by(7080, rule(TCP, 8080, HOST, 80)), by(7000, rule(UDP, 5000, HOST, 6000)));
            let others: Vec<_> = (0..if many { 40 } else { 0 })
                .map(|n| by(20_000 + n, rule(UDP, 20_000 + n, HOST, 1)))
                .collect();
            let all: Vec<_> = others.iter().chain([&web, &game]).copied().collect();
            let lan = &mut world.lan;
            let (http, udp) = (lan.listen(HOST, 80), lan.udp(HOST, 6000));
            let asking = lan.udp(OTHER_HOST, 0);
            lan.send_to(asking, EXTERNAL, 7000, "too early");
            assert_eq!(lan.recv_from(udp), None);
            nft.apply(&all.iter().map(|r| Change::Add(*r)).collect::<Vec<_>>()).await.unwrap();

            for (addr, tcp_port, udp_port) in [(EXTERNAL, 7080, 7000), (WAN, 8080, 5000)] {
                for from in [OTHER_HOST, HOST] {
                    let client = lan.connect_from(from, 0, addr, tcp_port).unwrap();
                    let (server, peer) = lan.accept(http).unwrap();
                    assert_eq!(peer.ip(), IpAddr::V4(ROUTER), "answers come back through the router");
                    lan.send(client, "question");
                    assert_eq!(lan.recv(server), "question");
                    lan.send(server, "answer");
                    assert_eq!(lan.recv(client), "answer");
                }
                // The same socket all along, also the one that was early.
                lan.send_to(asking, addr, udp_port, "ping");
                let (text, from) = lan.recv_from(udp).unwrap();
                assert_eq!((text.as_str(), from.ip()), ("ping", IpAddr::V4(ROUTER)));
                lan.send_to(udp, ROUTER, from.port(), "pong");
                let (text, from) = lan.recv_from(asking).unwrap();
                assert_eq!((text.as_str(), from), ("pong", SocketAddr::from((addr, udp_port))));
            }
            // Neither by the other's ports, nor by an address that is not the WAN's, nor what the router itself has.
            for (addr, port) in [(EXTERNAL, 5000), (EXTERNAL, 6000), (WAN, 7000), (WAN, 6000), (ROUTER, 5000)]
            {
                lan.send_to(asking, addr, port, "nobody asked for this");
            }
            assert_eq!(lan.recv_from(udp), None);

            // Moved to another port at the provider: that one from now on, and what came by the old one is over.
            let (stream, kept) =
                (lan.connect_from(OTHER_HOST, 0, EXTERNAL, 7080), lan.connect_from(OTHER_HOST, 0, WAN, 8080));
            let (stream, kept) = (stream.unwrap(), kept.unwrap());
            let (server, other) = (lan.accept(http).unwrap().0, lan.accept(http).unwrap().0);
            let moved: Vec<_> = all.iter().map(|r| by(r.outermost.unwrap().port() + 1000, *r)).collect();
            nft.apply(&moved.iter().map(|r| Change::Add(*r)).collect::<Vec<_>>()).await.unwrap();
            lan.send(stream, "1");
            assert_eq!(lan.recv(server), "(nothing)");
            lan.send(kept, "1");
            assert_eq!(lan.recv(other), "1", "by the WAN address nothing has changed");
            lan.send_to(asking, EXTERNAL, 7000, "2");
            assert_eq!(lan.recv_from(udp), None);
            lan.send_to(asking, EXTERNAL, 8000, "3");
            assert_eq!(lan.recv_from(udp).unwrap().0, "3");
            let client = lan.connect_from(OTHER_HOST, 0, EXTERNAL, 8080).unwrap();
            let server = lan.accept(http).unwrap().0;

            // Gone, with its flows.
            nft.apply(&moved.iter().map(|r| Change::Remove(*r)).collect::<Vec<_>>()).await.unwrap();
            lan.send_to(asking, EXTERNAL, 8000, "4");
            lan.send_to(asking, WAN, 5000, "5");
            assert_eq!(lan.recv_from(udp), None);
            lan.send(client, "6");
            assert_eq!(lan.recv(server), "(nothing)");
            assert!(lan.connect_from(OTHER_HOST, 0, EXTERNAL, 8080).is_err());
            assert!(lan.connect_from(OTHER_HOST, 0, WAN, 8080).is_err());
            assert_eq!(["hairpin", "hairpin_sources", "sources"].map(elements), [0; 3]);
            for socket in [http, udp, asking] {
                lan.close(socket);
            }
        }
    });
}

/// RFC 4787 REQ-9: a host that has a mapping is seen by that, whatever the other one is reached by.
#[test]
fn a_mapped_sender_is_known_by_its_external_address() {
    in_router("a_mapped_sender_is_known_by_its_external_address", async |world| {
        let mut nft = Nft::open(config()).await.unwrap();
        let (one, two) =
            (by(7001, rule(UDP, 3074, HOST, 3074)), by(7002, rule(UDP, 40_000, OTHER_HOST, 3074)));
        nft.apply(&[Change::Add(one), Change::Add(two)]).await.unwrap();
        let lan = &mut world.lan;
        let (first, second) = (lan.udp(HOST, 3074), lan.udp(OTHER_HOST, 3074));
        lan.send_to(first, EXTERNAL, 7002, "1");
        assert_eq!(lan.recv_from(second), Some(("1".to_owned(), SocketAddr::from((EXTERNAL, 7001)))));
        lan.send_to(second, EXTERNAL, 7001, "2");
        assert_eq!(lan.recv_from(first), Some(("2".to_owned(), SocketAddr::from((EXTERNAL, 7002)))));
        // Moved, and it is known by the new one.
        nft.apply(&[Change::Add(by(7003, one))]).await.unwrap();
        lan.send_to(first, EXTERNAL, 7002, "3");
        assert_eq!(lan.recv_from(second), Some(("3".to_owned(), SocketAddr::from((EXTERNAL, 7003)))));
        // A TCP client that is not mapped, from the port whose UDP is.
        nft.apply(&[Change::Add(by(7080, rule(TCP, 8080, OTHER_HOST, 80)))]).await.unwrap();
        let http = lan.listen(OTHER_HOST, 80);
        lan.connect_from(HOST, 3074, EXTERNAL, 7080).unwrap();
        assert_eq!(lan.accept(http).unwrap().1.ip(), IpAddr::V4(ROUTER));
    });
}

/// Where the way back leads through the router anyway, a host is seen as it is.
#[test]
fn hosts_on_different_links_see_each_other() {
    in_router("hosts_on_different_links_see_each_other", async |world| {
        let far = world.namespace("wan");
        run("ip", &["link", "add", "lan1", "type", "veth", "peer", "eth1", "netns", &far]);
        for (namespace, interface, addr) in
            [(None, "lan1", "192.168.78.1/24"), (Some(&far), "eth1", "192.168.78.2/24")]
        {
            let at: Vec<&str> = namespace.into_iter().flat_map(|name| ["-n", name.as_str()]).collect();
            run("ip", &[&at[..], &["addr", "add", addr, "dev", interface]].concat());
            run("ip", &[&at[..], &["link", "set", interface, "up"]].concat());
        }
        for to in ["203.0.113.1", "198.51.100.9"] {
            run("ip", &["-n", &far, "route", "add", to, "via", "192.168.78.1"]);
        }
        run("ip", &["addr", "add", &format!("{WAN_AGAIN}/24"), "dev", "wan0"]);
        let lans = vec!["lan0".to_owned(), "lan1".to_owned()];
        let mut nft = Nft::open(TableConfig { lan_interfaces: lans, ..config() }).await.unwrap();
        nft.apply(&[Change::Add(by(7000, rule(UDP, 5000, HOST, 6000)))]).await.unwrap();
        let guest = Ipv4Addr::new(192, 168, 78, 2);
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (udp, asking) = (lan.udp(HOST, 6000), wan.udp(guest, 9000));
        wan.send_to(asking, EXTERNAL, 7000, "1");
        assert_eq!(lan.recv_from(udp), Some(("1".to_owned(), SocketAddr::from((guest, 9000)))));
        lan.send_to(udp, guest, 9000, "2");
        assert_eq!(wan.recv_from(asking), Some(("2".to_owned(), SocketAddr::from((EXTERNAL, 7000)))));
        // An address that the WAN gets later.
        wan.send_to(asking, WAN_AGAIN, 5000, "3");
        assert_eq!(lan.recv_from(udp), None);
        nft.readdress(vec![WAN, WAN_AGAIN]).await.unwrap();
        let asking = wan.udp(guest, 9001);
        wan.send_to(asking, WAN_AGAIN, 5000, "4");
        assert_eq!(lan.recv_from(udp), Some(("4".to_owned(), SocketAddr::from((guest, 9001)))));
        nft.readdress(vec![WAN]).await.unwrap();
        let asking = wan.udp(guest, 9002);
        wan.send_to(asking, WAN_AGAIN, 5000, "5");
        assert_eq!(lan.recv_from(udp), None);
    });
}

/// A firewall whose chain comes later and drops lets in what has the mark: what comes by our mappings, and not by anybody's DNAT.
#[test]
fn a_foreign_firewall_accepts_by_the_mark() {
    in_router("a_foreign_firewall_accepts_by_the_mark", async |world| {
        run(
            "nft",
            &["add table inet foreign; \
               add chain inet foreign forward { type filter hook forward priority 0; policy drop; }; \
               add rule inet foreign forward meta mark & 0x100000 == 0x100000 accept; \
               add rule inet foreign forward ct state established accept; \
               add table ip admin; \
               add chain ip admin pre { type nat hook prerouting priority -100; }; \
               add rule ip admin pre iifname wan0 udp dport 9000 dnat to 192.168.77.2:6009; \
               add rule ip admin pre iifname wan0 udp dport 9001 dnat to 192.168.77.2:6001"],
        );
        for forward_filter in [false, true] {
            let unmarked = TableConfig { forward_filter, ..config() };
            let marked = TableConfig { mark: Some(0x10_0000), ..unmarked.clone() };
            let (web, game) = (by(7080, rule(TCP, 8080, HOST, 80)), by(7000, rule(UDP, 5000, HOST, 6000)));
            let private = Nat1Rule { remote_peer: Some(REMOTE), ..rule(UDP, 5001, HOST, 6001) };
            let (lan, wan) = (&mut world.lan, &mut world.wan);
            let http = lan.listen(HOST, 80);
            let udp = [6000, 6001, 6009].map(|port| lan.udp(HOST, port));
            let (friend, stranger) = (wan.udp(REMOTE, 0), wan.udp(OTHER_REMOTE, 0));
            let asking = lan.udp(OTHER_HOST, 0);
            let mut nft = Nft::open(unmarked).await.unwrap();
            nft.apply(&[web, game, private].map(Change::Add)).await.unwrap();
            assert!(wan.connect(WAN, 8080).is_err());
            wan.send_to(friend, WAN, 5000, "dropped");
            assert_eq!(lan.recv_from(udp[0]), None);

            let mut nft = Nft::open(marked).await.unwrap();
            nft.apply(&[web, game, private].map(Change::Add)).await.unwrap();
            let client = wan.connect(WAN, 8080).unwrap();
            let (server, _) = lan.accept(http).unwrap();
            wan.send(client, "question");
            assert_eq!(lan.recv(server), "question");
            lan.send(server, "answer");
            assert_eq!(wan.recv(client), "answer");
            for (from, port, to, let_in) in [
                (friend, 5000, udp[0], true),
                (stranger, 5000, udp[0], true),
                (friend, 5001, udp[1], true),
                (stranger, 5001, udp[1], false),
                // An administrator's own: to where none of ours leads, and to where one leads somebody else.
                (friend, 9000, udp[2], false),
                (stranger, 9001, udp[1], false),
            ] {
                wan.send_to(from, WAN, port, "knock");
                assert_eq!(lan.recv_from(to).is_some(), let_in, "{port}");
            }
            // LAN hosts among themselves, by whichever address.
            for (addr, tcp_port, udp_port) in [(EXTERNAL, 7080, 7000), (WAN, 8080, 5000)] {
                let client = lan.connect_from(OTHER_HOST, 0, addr, tcp_port).unwrap();
                let (server, _) = lan.accept(http).unwrap();
                lan.send(client, "question");
                assert_eq!(lan.recv(server), "question");
                lan.send(server, "answer");
                assert_eq!(lan.recv(client), "answer");
                lan.send_to(asking, addr, udp_port, "knock");
                assert!(lan.recv_from(udp[0]).is_some());
            }
            nft.apply(&[web, game, private].map(Change::Remove)).await.unwrap();
            assert_eq!(["marked", "marked_peers"].map(members), [0; 2]);
            wan.send(client, "more");
            assert_eq!(lan.recv(server), "(nothing)");
            wan.send_to(friend, WAN, 5000, "dropped");
            assert_eq!(lan.recv_from(udp[0]), None);
            for socket in [http, asking, udp[0], udp[1], udp[2]] {
                lan.close(socket);
            }
            for socket in [friend, stranger] {
                wan.close(socket);
            }
        }
    });
}

/// Decision 25: RemoteHost is enforced here, whatever the provider does.
#[test]
fn only_the_remote_peer_gets_in() {
    in_router("only_the_remote_peer_gets_in", async |world| {
        let mut nft = Nft::open(config()).await.unwrap();
        let only = |rule: Nat1Rule, peer| Nat1Rule { remote_peer: Some(peer), ..rule };
        nft.apply(&[
            Change::Add(only(rule(UDP, 5000, HOST, 6000), REMOTE)),
            Change::Add(only(rule(TCP, 8080, HOST, 80), REMOTE)),
            // The same external port leads this peer to another host.
            Change::Add(only(rule(UDP, 5000, OTHER_HOST, 6000), Ipv4Addr::new(198, 51, 100, 4))),
        ])
        .await
        .unwrap();
        run("ip", &["-n", &world.namespace("wan"), "addr", "add", "198.51.100.4/24", "dev", "eth0"]);
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (http, udp, other) = (lan.listen(HOST, 80), lan.udp(HOST, 6000), lan.udp(OTHER_HOST, 6000));
        let (friend, stranger, third) =
            (wan.udp(REMOTE, 0), wan.udp(OTHER_REMOTE, 0), wan.udp(Ipv4Addr::new(198, 51, 100, 4), 0));
        wan.send_to(stranger, WAN, 5000, "stranger");
        assert_eq!(lan.recv_from(udp), None);
        wan.send_to(friend, WAN, 5000, "friend");
        assert_eq!(lan.recv_from(udp).unwrap().0, "friend");
        wan.send_to(third, WAN, 5000, "third");
        assert_eq!(lan.recv_from(other).unwrap().0, "third");
        assert!(wan.connect_from(OTHER_REMOTE, 0, WAN, 8080).is_err());
        assert!(wan.connect_from(REMOTE, 0, WAN, 8080).is_ok());
        assert!(lan.accept(http).is_some());

        // Nor by hairpin, unless a host of the LAN is the one.
        nft.apply(&[
            Change::Add(by(7000, only(rule(UDP, 5000, HOST, 6000), REMOTE))),
            Change::Add(by(7001, only(rule(UDP, 5001, HOST, 6001), OTHER_HOST))),
        ])
        .await
        .unwrap();
        let private = lan.udp(HOST, 6001);
        let (asking, own) = (lan.udp(OTHER_HOST, 9000), lan.udp(HOST, 9000));
        for socket in [asking, own] {
            for (addr, port) in [(EXTERNAL, 7000), (WAN, 5000)] {
                lan.send_to(socket, addr, port, "stranger");
            }
        }
        assert_eq!(lan.recv_from(udp), None);
        for (addr, port) in [(EXTERNAL, 7001), (WAN, 5001)] {
            lan.send_to(own, addr, port, "stranger");
            assert_eq!(lan.recv_from(private), None);
            lan.send_to(asking, addr, port, "friend");
            assert_eq!(lan.recv_from(private).unwrap().0, "friend");
        }
    });
}

#[test]
fn removal_stops_flows() {
    in_router("removal_stops_flows", async |world| {
        // One at a time, the kernel selects the flows; with many, we read its table and select ourselves.
        for many in [false, true] {
            // With equal ports a flow would go on by plain masquerade if nothing stopped it.
            for (external, internal) in [(80, 80), (8080, 80)] {
                let mut nft = Nft::open(config()).await.unwrap();
                let (web, game) = (rule(TCP, external, HOST, internal), rule(UDP, external, HOST, internal));
                let kept = rule(UDP, 7777, HOST, 7777);
                let others: Vec<_> =
                    (0..if many { 40 } else { 0 }).map(|n| rule(UDP, 20_000 + n, HOST, 1)).collect();
                let all: Vec<_> = others.iter().chain([&web, &game]).copied().collect();
                nft.apply(&all.iter().chain([&kept]).map(|r| Change::Add(*r)).collect::<Vec<_>>())
                    .await
                    .unwrap();
                let (lan, wan) = (&mut world.lan, &mut world.wan);
                let (http, udp, kept) =
                    (lan.listen(HOST, internal), lan.udp(HOST, internal), lan.udp(HOST, 7777));
                let (remote, client) = (wan.udp(REMOTE, 0), wan.connect(WAN, external).unwrap());
                let waiting = wan.connect(WAN, external).unwrap();
                let server = lan.accept(http).unwrap().0;
                let talking = lan.accept(http).unwrap().0;
                wan.send(client, "1");
                assert_eq!(lan.recv(server), "1");
                wan.send_to(remote, WAN, external, "2");
                assert_eq!(lan.recv_from(udp).unwrap().0, "2");
                // Flows that must not end: another mapping's, and one that the LAN began to an equal port.
                wan.send_to(remote, WAN, 7777, "2");
                assert_eq!(lan.recv_from(kept).unwrap().0, "2");
                let (asking, asked) = (lan.udp(HOST, 0), wan.udp(REMOTE, external));
                lan.send_to(asking, REMOTE, external, "2");
                let (_, own) = wan.recv_from(asked).unwrap();
                wan.send_to(asked, WAN, own.port(), "2");
                assert_eq!(lan.recv_from(asking).unwrap().0, "2");

                nft.apply(&all.iter().map(|r| Change::Remove(*r)).collect::<Vec<_>>()).await.unwrap();
                wan.send(client, "3");
                assert_eq!(lan.recv(server), "(nothing)", "no further octet reaches the LAN host");
                assert_ne!(wan.recv(client), "(nothing)", "the remote host learns that it is over");
                lan.send(talking, "4");
                assert_eq!(wan.recv(waiting), "(nothing)", "nor does the LAN host's reach the remote one");
                assert_ne!(lan.recv(talking), "(nothing)", "the LAN host learns that it is over");
                wan.send_to(remote, WAN, external, "5");
                assert_eq!(lan.recv_from(udp), None);
                wan.send_to(remote, WAN, 7777, "6");
                assert_eq!(lan.recv_from(kept).unwrap().0, "6");
                wan.send_to(asked, WAN, own.port(), "6");
                assert_eq!(lan.recv_from(asking).unwrap().0, "6");
                wan.close(asked);
                lan.close(asking);
                for socket in [http, udp, kept, server, talking] {
                    lan.close(socket);
                }
                for socket in [remote, client, waiting] {
                    wan.close(socket);
                }
            }
        }
    });
}

/// Changes that follow upon each other: what the first leaves ends at once, what the next ones leave a moment later, and before anything else
/// has their ports.
#[test]
fn removals_one_after_the_other_stop_flows() {
    in_router("removals_one_after_the_other_stop_flows", async |world| {
        let mut nft = Nft::open(config()).await.unwrap();
        let all: Vec<_> = (0..3).map(|n| rule(TCP, 8080 + n, HOST, 9000 + n)).collect();
        nft.apply(&all.iter().map(|r| Change::Add(*r)).collect::<Vec<_>>()).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let mut flows = Vec::new();
        for one in &all {
            let http = lan.listen(HOST, one.internal.port());
            let client = wan.connect(WAN, one.external_port).unwrap();
            flows.push((client, lan.accept(http).unwrap().0));
        }
        let mut goes_on = |(client, server): (_, _)| {
            wan.send(client, "1");
            lan.recv(server) == "1"
        };
        assert!(flows.iter().all(|flow| goes_on(*flow)));
        nft.change(&[Change::Remove(all[0])]).await.unwrap();
        assert!(nft.flows_due().is_some_and(|at| at <= tokio::time::Instant::now()), "nobody waits for one");
        nft.end_flows().await;
        assert!(!goes_on(flows[0]));
        nft.change(&[Change::Remove(all[1])]).await.unwrap();
        nft.change(&[Change::Remove(all[2])]).await.unwrap();
        // One comes back as it was, and has its flows back; another's port is somebody else's, which its flows must not see.
        nft.change(&[Change::Add(all[1])]).await.unwrap();
        nft.change(&[Change::Add(rule(TCP, all[2].external_port, HOST, 9100))]).await.unwrap();
        assert_eq!(nft.flows_due(), None, "they had to end before");
        assert!(goes_on(flows[1]));
        assert!(!goes_on(flows[2]));
        // What was to come back and could not has none.
        nft.end_flows().await;
        nft.change(&[Change::Remove(all[1])]).await.unwrap();
        let conflict = rule(TCP, all[2].external_port, HOST, 9200);
        nft.change(&[Change::Add(all[1]), Change::Add(conflict)]).await.unwrap_err();
        assert!(nft.flows_due().is_some());
        nft.end_flows().await;
        assert!(!goes_on(flows[1]));
    });
}

/// T-4, decision 9: the next packet goes to the new internal client.
#[test]
fn replacing_moves_a_mapping() {
    in_router("replacing_moves_a_mapping", async |world| {
        let mut nft = Nft::open(config()).await.unwrap();
        let (old, new) = (rule(UDP, 5000, HOST, 6000), rule(UDP, 5000, OTHER_HOST, 6001));
        nft.apply(&[Change::Add(old)]).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (here, there) = (lan.udp(HOST, 6000), lan.udp(OTHER_HOST, 6001));
        let remote = wan.udp(REMOTE, 0);
        wan.send_to(remote, WAN, 5000, "1");
        assert_eq!(lan.recv_from(here).unwrap().0, "1");

        nft.apply(&[Change::Replace { old, new }]).await.unwrap();
        wan.send_to(remote, WAN, 5000, "2");
        assert_eq!(lan.recv_from(there).unwrap().0, "2");
        assert_eq!(lan.recv_from(here), None);

        let moved = Nat1Rule { external_port: 5001, ..new };
        nft.apply(&[Change::Replace { old: new, new: moved }]).await.unwrap();
        wan.send_to(remote, WAN, 5000, "3");
        assert_eq!(lan.recv_from(there), None);
        wan.send_to(remote, WAN, 5001, "4");
        assert_eq!(lan.recv_from(there).unwrap().0, "4");
        let back = wan.udp(REMOTE, 7000);
        lan.send_to(there, REMOTE, 7000, "5");
        assert_eq!(wan.recv_from(back).unwrap().1, SocketAddr::from((WAN, 5001)));
        assert_eq!(nft.rules().collect::<Vec<_>>(), [moved]);
    });
}

#[test]
fn a_sender_that_was_early_is_let_in() {
    in_router("a_sender_that_was_early_is_let_in", async |world| {
        let mut nft = Nft::open(config()).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (udp, remote) = (lan.udp(HOST, 6000), wan.udp(REMOTE, 0));
        wan.send_to(remote, WAN, 5000, "too early");
        assert_eq!(lan.recv_from(udp), None);
        // A flow of the LAN's to the same port elsewhere, just as unanswered, is none of our business.
        let (asking, asked) = (lan.udp(HOST, 0), wan.udp(REMOTE, 5000));
        lan.send_to(asking, REMOTE, 5000, "question");
        let (_, from) = wan.recv_from(asked).unwrap();
        nft.apply(&[Change::Add(rule(UDP, 5000, HOST, 6000))]).await.unwrap();
        wan.send_to(remote, WAN, 5000, "now");
        assert_eq!(lan.recv_from(udp).unwrap().0, "now");
        wan.send_to(asked, WAN, from.port(), "answer");
        assert_eq!(lan.recv_from(asking).unwrap().0, "answer");
    });
}

/// Decision 24: elements of a map, never rules; a change is one transaction.
#[test]
fn five_thousand_mappings() {
    in_router("five_thousand_mappings", async |_| {
        let mut nft = Nft::open(config()).await.unwrap();
        let all: Vec<_> = (0..5000)
            .map(|n| {
                let protocol = if n % 2 == 0 { TCP } else { UDP };
                by(1024 + n, rule(protocol, 1024 + n, if n % 3 == 0 { HOST } else { OTHER_HOST }, 2048 + n))
            })
            .collect();
        let took = Instant::now();
        for chunk in all.chunks(nft::MAX_CHANGES) {
            nft.apply(&chunk.iter().map(|r| Change::Add(*r)).collect::<Vec<_>>()).await.unwrap();
        }
        println!("5,000 mappings in {:?}", took.elapsed());
        assert_eq!((elements("ports"), elements("sources"), nft.rules().count()), (5000, 5000, 5000));
        assert_eq!((elements("hairpin"), elements("hairpin_sources")), (5000, 5000));

        let took = Instant::now();
        for n in 0..100 {
            let one = rule(TCP, 40_000 + n, HOST, 40_000);
            nft.apply(&[Change::Add(one)]).await.unwrap();
            nft.apply(&[Change::Remove(one)]).await.unwrap();
        }
        println!("adding and removing one of 5,001: {:?}", took.elapsed() / 100);

        let too_many = vec![Change::Add(all[0]); nft::MAX_CHANGES + 1];
        assert_eq!(nft.apply(&too_many).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        // The most a batch can weigh: everything is replaced, by other keys.
        for chunk in all.chunks(nft::MAX_CHANGES) {
            let changes = chunk.iter().map(|old| {
                let internal = SocketAddrV4::new(HOST, 20_001 + old.external_port);
                let new = Nat1Rule {
                    external_port: 20_000 + old.external_port,
                    internal,
                    remote_peer: Some(REMOTE),
                    ..*old
                };
                Change::Replace { old: *old, new }
            });
            nft.apply(&changes.collect::<Vec<_>>()).await.unwrap();
        }
        assert_eq!((elements("ports"), elements("peers"), elements("sources")), (0, 5000, 5000));
        let left: Vec<_> = nft.rules().skip(7).collect();
        for chunk in left.chunks(nft::MAX_CHANGES) {
            nft.apply(&chunk.iter().map(|r| Change::Remove(*r)).collect::<Vec<_>>()).await.unwrap();
        }
        assert_eq!((elements("ports"), elements("peers"), elements("sources")), (0, 7, 7));
    });
}

/// Decision 24: the whole table, which is ours alone; nobody else's is touched.
#[test]
fn the_table_is_adopted_listed_and_cleared() {
    in_router("the_table_is_adopted_listed_and_cleared", async |_| {
        run("nft", &["add table inet other; add chain inet other c { type filter hook input priority 0; }"]);
        let mut first = Nft::open(config()).await.unwrap();
        first.apply(&[Change::Add(rule(TCP, 1, HOST, 1))]).await.unwrap();
        drop(first);
        assert_eq!(elements("ports"), 1, "a table outlives its program");

        let mut second = Nft::open(config()).await.unwrap();
        let game = Nat1Rule { remote_peer: Some(REMOTE), ..by(7000, rule(UDP, 5000, HOST, 6000)) };
        let web = [by(7080, rule(TCP, 8080, HOST, 80)), rule(TCP, 443, HOST, 443)];
        second.apply(&[web[0], web[1], game].map(Change::Add)).await.unwrap();
        let listed = run("nft", &["list", "table", "inet", "portferry"]);
        println!("{listed}");
        assert_eq!(sorted(&listed), sorted(RULESET));

        second.clear().await.unwrap();
        assert_eq!(run("nft", &["list", "tables"]).trim(), "table inet other");
        second.clear().await.unwrap();
        let gone = second.apply(&[Change::Add(rule(TCP, 1, HOST, 1))]).await.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::NotFound, "{gone}");

        let bare = TableConfig { forward_filter: false, masquerade: false, hairpin: false, ..config() };
        let mut bare = Nft::open(bare).await.unwrap();
        bare.apply(&[Change::Add(rule(TCP, 1, HOST, 1))]).await.unwrap();
        let listed = run("nft", &["list", "table", "inet", "portferry"]);
        assert!(
            listed.contains("chain prerouting") && !listed.contains("forward") && !listed.contains("hairpin")
        );
        bare.apply(&[Change::Remove(rule(TCP, 1, HOST, 1))]).await.unwrap();
        bare.clear().await.unwrap();

        let mut marks = Nft::open(TableConfig { mark: Some(0x10_0000), ..config() }).await.unwrap();
        marks.apply(&[web[0], web[1], game].map(Change::Add)).await.unwrap();
        let listed = run("nft", &["list", "table", "inet", "portferry"]);
        let marked = sorted(&listed);
        let expected = sorted(MARKS);
        let missing: Vec<_> = expected.iter().filter(|line| !marked.contains(line)).collect();
        assert!(missing.is_empty(), "{missing:?} in {listed}");
        assert_eq!(marked.len(), sorted(RULESET).len() + expected.len(), "and nothing else");
    });
}

/// Decision 24: a transaction is atomic.
#[test]
fn an_error_leaves_everything_as_it_was() {
    in_router("an_error_leaves_everything_as_it_was", async |_| {
        let mut nft = Nft::open(config()).await.unwrap();
        let held = rule(TCP, 80, HOST, 8080);
        nft.apply(&[Change::Add(held), Change::Add(held)]).await.unwrap();
        nft.apply(&[Change::Add(held)]).await.unwrap();
        // Found out by ourselves …
        let conflict = [Change::Add(rule(TCP, 81, HOST, 81)), Change::Add(rule(TCP, 80, OTHER_HOST, 80))];
        assert_eq!(nft.apply(&conflict).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(elements("ports"), 1);
        // … and by the kernel, in one of many messages: somebody meddled with our table.
        run("nft", &["add element inet portferry ports { tcp . 200 : 192.168.77.3 . 1 }"]);
        let many: Vec<_> = (100..350).map(|n| Change::Add(rule(TCP, n, HOST, n + 1))).collect();
        let error = nft.apply(&many).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        assert_eq!((elements("ports"), elements("sources"), nft.rules().count()), (2, 1, 1));
        run("nft", &["delete element inet portferry ports { tcp . 200 }"]);
        nft.apply(&many).await.unwrap();
        assert_eq!((elements("ports"), elements("sources"), nft.rules().count()), (251, 251, 251));
        run("nft", &["flush ruleset"]);
        let error = nft.apply(&[Change::Remove(held)]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        assert_eq!(nft.rules().count(), 251);

        for wrong in ["", "a/b", "sixteen_octets__"] {
            let config = TableConfig { wan_interface: wrong.to_owned(), ..config() };
            assert_eq!(Nft::open(config).await.err().unwrap().kind(), ErrorKind::InvalidInput, "{wrong}");
        }
    });
}

/// Decision 24: whatever another program does to the table is undone, and nothing else is.
#[test]
fn what_others_do_to_the_table_is_undone() {
    in_router("what_others_do_to_the_table_is_undone", async |_| {
        // Enough for several transactions.
        const MANY: u16 = 600;
        let config =
            TableConfig { forward_filter: true, masquerade: true, hairpin: true, mark: Some(1), ..config() };
        let mut nft = Nft::open(config.clone()).await.unwrap();
        let outermost = |n| Some(SocketAddrV4::new(EXTERNAL, n));
        let all: Vec<_> = (0..MANY)
            .map(|n| Nat1Rule {
                outermost: outermost(n + 1),
                ..rule([TCP, UDP][usize::from(n % 2)], 2000 + n, HOST, 3000 + n / 3)
            })
            .chain([Nat1Rule { remote_peer: Some(REMOTE), ..rule(TCP, 80, OTHER_HOST, 81) }])
            .map(Change::Add)
            .collect();
        for some in all.chunks(nft::MAX_CHANGES) {
            nft.apply(some).await.unwrap();
        }
        let Change::Add(first) = all[0] else { panic!("they are added") };
        nft.apply(&[Change::Remove(first)]).await.unwrap();
        nft.readdress(vec![WAN, WAN_AGAIN]).await.unwrap();
        assert!(!nft.restore().await.unwrap(), "what is done by us is no damage");
        let listing = || run("nft", &["list table inet portferry"]);
        let before = listing();
        let rules: Vec<_> = nft.rules().collect();
        let handle = |chain: &str| {
            let listing = run("nft", &["-a", "list", "chain", "inet", "portferry", chain]);
            let rule = listing.lines().nth(4).unwrap().to_owned();
            rule.rsplit_once("# handle ").unwrap().1.to_owned()
        };
        for damage in [
            "flush ruleset".to_owned(),
            "delete table inet portferry".to_owned(),
            "flush table inet portferry".to_owned(),
            "flush chain inet portferry prerouting".to_owned(),
            format!("delete rule inet portferry forward handle {}", handle("forward")),
            "insert rule inet portferry forward accept".to_owned(),
            "chain inet portferry forward { policy drop; }".to_owned(),
            "add table inet portferry { flags dormant; }".to_owned(),
            "delete element inet portferry ports { tcp . 2002 }".to_owned(),
            "add element inet portferry ports { tcp . 4000 : 192.168.77.2 . 22 }".to_owned(),
            "delete element inet portferry lan { lan0 }".to_owned(),
            "flush map inet portferry hairpin".to_owned(),
            "flush set inet portferry wan_addresses".to_owned(),
            "add chain inet portferry another".to_owned(),
        ] {
            run("nft", &[&damage]);
            assert!(nft.restore().await.unwrap(), "{damage}");
            // Which elements come first is the kernel's, by chance.
            let sorted = |listing: &str| {
                let mut words: Vec<String> = listing
                    .split([',', '\n'])
                    .map(|word| {
                        word.trim().trim_start_matches("elements = {").trim_end_matches('}').trim().to_owned()
                    })
                    .collect();
                words.sort_unstable();
                words
            };
            assert_eq!(sorted(&listing()), sorted(&before), "{damage}");
            assert!(!nft.restore().await.unwrap(), "{damage}: once");
            assert_eq!(nft.rules().collect::<Vec<_>>(), rules);
        }
        // What others have beside it is theirs.
        run("nft", &["add table inet another"]);
        assert!(!nft.restore().await.unwrap());
        nft.apply(&[Change::Add(first)]).await.unwrap();
        assert!(!nft.restore().await.unwrap());
    });
}

#[test]
fn without_privilege_reading_works_and_changing_says_why_not() {
    const NAME: &str = "without_privilege_reading_works_and_changing_says_why_not";
    in_router(NAME, async |_| {
        if env::var_os("PFK_BARE").is_some() {
            let error = Nft::open(config()).await.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
            assert!(!Netlink::open().unwrap().snapshot().await.unwrap().interfaces.is_empty());
            return;
        }
        let this = env::current_exe().unwrap();
        let dropped = ["--bounding-set=-net_admin", "--inh-caps=-net_admin"];
        let mut bare = Command::new("setpriv");
        bare.args(dropped).arg(this).args([NAME, "--exact", "--nocapture"]).env("PFK_BARE", "1");
        assert!(bare.status().unwrap().success());
    });
}

#[test]
fn interfaces_addresses_and_routes_are_watched() {
    in_router("interfaces_addresses_and_routes_are_watched", async |world| {
        let mut netlink = Netlink::open().unwrap();
        let snapshot = netlink.snapshot().await.unwrap();
        let wan = interface(&snapshot, "wan0");
        assert!(wan.up && wan.mac.is_some());
        assert!(wan.addresses.contains(&(IpAddr::V4(WAN), 24)));
        let lo = interface(&snapshot, "lo");
        assert_eq!((lo.up, lo.mac), (true, None));
        assert_eq!(snapshot.default_routes.len(), 1, "{snapshot:?}");
        let route = &snapshot.default_routes[0];
        assert_eq!((route.interface, route.gateway, route.metric), (wan.index, Some(IpAddr::V4(REMOTE)), 0));
        let quiet = async |netlink: &mut Netlink| {
            tokio::time::timeout(Duration::from_millis(200), netlink.changed()).await.is_err()
        };
        while !quiet(&mut netlink).await {} // IPv6 addresses settle

        run("ip", &["addr", "add", "198.51.100.77/25", "dev", "wan0"]);
        netlink.changed().await.unwrap();
        assert!(quiet(&mut netlink).await, "a flock of events is one change");
        let snapshot = netlink.snapshot().await.unwrap();
        assert!(
            interface(&snapshot, "wan0").addresses.contains(&(Ipv4Addr::new(198, 51, 100, 77).into(), 25))
        );

        // What is announced on an interface names the address that it leaves from (K-5): the kernel's first.
        run("ip", &["addr", "add", "1.0.0.1/24", "dev", "wan0"]);
        netlink.changed().await.unwrap();
        let snapshot = netlink.snapshot().await.unwrap();
        assert_eq!(interface(&snapshot, "wan0").addresses[0], (IpAddr::V4(WAN), 24));

        run("ip", &["route", "add", "203.0.113.0/24", "via", "198.51.100.2"]);
        assert!(quiet(&mut netlink).await, "only default routes count");
        let both = ["nexthop", "via", "198.51.100.3", "nexthop", "via", "inet6", "fe80::1", "dev", "lan0"];
        run("ip", &[&["route", "add", "default", "metric", "9"][..], &both].concat());
        run("ip", &["-6", "route", "add", "default", "via", "fe80::2", "dev", "wan0", "metric", "5"]);
        run("ip", &["route", "add", "default", "via", "198.51.100.2", "table", "77"]);
        // A cancelled wait loses nothing.
        assert!(tokio::time::timeout(Duration::from_millis(20), netlink.changed()).await.is_err());
        tokio::time::timeout(Duration::from_secs(10), netlink.changed()).await.unwrap().unwrap();
        let snapshot = netlink.snapshot().await.unwrap();
        let (wan, lan) = (interface(&snapshot, "wan0").index, interface(&snapshot, "lan0").index);
        let mut seen: Vec<_> = snapshot
            .default_routes
            .iter()
            .map(|r| (r.metric, r.interface, r.gateway.unwrap().to_string()))
            .collect();
        seen.sort();
        let mut wanted = vec![
            (0, wan, "198.51.100.2".to_owned()),
            (5, wan, "fe80::2".to_owned()),
            (9, wan, "198.51.100.3".to_owned()),
            (9, lan, "fe80::1".to_owned()),
        ];
        wanted.sort();
        assert_eq!(seen, wanted);

        // On a point-to-point link no route names the router: it is the other side, if that has told its address.
        run("ip", &["addr", "add", "100.64.0.2", "peer", "100.64.0.1", "dev", "lan0"]);
        run("ip", &["route", "add", "default", "dev", "lan0", "metric", "20"]);
        run("ip", &["-6", "route", "add", "default", "dev", "lan0", "metric", "21"]);
        run("ip", &["route", "add", "default", "dev", "wan0", "metric", "22"]);
        netlink.changed().await.unwrap();
        let snapshot = netlink.snapshot().await.unwrap();
        assert!(interface(&snapshot, "lan0").addresses.contains(&(Ipv4Addr::new(100, 64, 0, 2).into(), 32)));
        let unnamed = snapshot.default_routes.iter().filter(|route| route.metric >= 20);
        let unnamed: Vec<_> = unnamed.map(|route| (route.metric, route.gateway)).collect();
        assert_eq!(unnamed, [(20, Some(Ipv4Addr::new(100, 64, 0, 1).into())), (21, None), (22, None)]);

        run("ip", &["link", "set", "wan0", "down"]);
        netlink.changed().await.unwrap();
        assert!(!interface(&netlink.snapshot().await.unwrap(), "wan0").up);
        run("ip", &["link", "set", "wan0", "up"]);
        run("ip", &["-n", &world.namespace("wan"), "link", "set", "eth0", "down"]);
        netlink.changed().await.unwrap();
        assert!(!interface(&netlink.snapshot().await.unwrap(), "wan0").up, "no carrier");

        // More events than the socket holds: what is lost counts as a change.
        for n in 0..1000 {
            let alias = format!("alias {n} {}", "x".repeat(200));
            run("ip", &["link", "set", "lan0", "alias", &alias]);
        }
        netlink.changed().await.unwrap();

        let udp = world.lan.udp(HOST, 0);
        let before = netlink.link_stats(lan).await.unwrap();
        world.lan.send_to(udp, Ipv4Addr::new(192, 168, 77, 1), 9, &"x".repeat(500));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let after = netlink.link_stats(lan).await.unwrap();
        assert!(after.rx_bytes >= before.rx_bytes + 500 && after.rx_packets > before.rx_packets);
        assert!(after.tx_packets > 0 && after.tx_bytes > 0);
        for missing in [0, 4_000_000, u32::MAX] {
            assert_eq!(netlink.link_stats(missing).await.unwrap_err().kind(), ErrorKind::NotFound);
        }
        assert!(nft::port_is_free(TCP, WAN, 80));
        let held = UdpSocket::bind("0.0.0.0:5353").unwrap();
        assert!(!nft::port_is_free(UDP, WAN, 5353));
        assert!(nft::port_is_free(TCP, WAN, 5353));
        drop(held);
    });
}

/// K-3: only neighbours whose MAC the kernel knows count, of both families.
#[test]
fn neighbours_are_those_whose_mac_is_known() {
    in_router("neighbours_are_those_whose_mac_is_known", async |_| {
        let snapshot = Netlink::open().unwrap().snapshot().await.unwrap();
        let lan = interface(&snapshot, "lan0").index;
        let mac = |last: u8| [2, 0, 0, 0, 0, last];
        for (address, last, state, known) in [
            ("192.168.77.50", 0x50, "permanent", true),
            ("192.168.77.51", 0x51, "reachable", true),
            ("192.168.77.52", 0x52, "stale", true),
            ("192.168.77.53", 0x53, "delay", true),
            ("192.168.77.54", 0x54, "probe", true),
            ("192.168.77.55", 0x55, "failed", false),
            ("192.168.77.56", 0x56, "incomplete", false),
            ("192.168.77.57", 0x57, "noarp", false),
            ("fe80::50", 0x50, "stale", true),
            ("fd00::50", 0x50, "permanent", true),
        ] {
            let lladdr = format!("02:00:00:00:00:{last:02x}");
            run("ip", &["neigh", "replace", address, "lladdr", &lladdr, "dev", "lan0", "nud", state]);
            let addr: IpAddr = address.parse().unwrap();
            let found = neighbours().await.unwrap().into_iter().find(|one| one.addr == addr);
            let expected = known.then_some(Neighbour { interface: lan, addr, mac: mac(last) });
            assert_eq!(found, expected, "{address} {state}");
        }
        run("ip", &["neigh", "add", "proxy", "192.168.77.58", "dev", "lan0"]);
        let proxied = IpAddr::from([192, 168, 77, 58]);
        assert!(!neighbours().await.unwrap().iter().any(|one| one.addr == proxied));
    });
}

fn config() -> TableConfig {
    TableConfig {
        name: "portferry".to_owned(),
        wan_interface: "wan0".to_owned(),
        spare_interfaces: vec!["wan1".to_owned()],
        wan_addresses: vec![WAN],
        lan_interfaces: vec!["lan0".to_owned()],
        forward_filter: true,
        masquerade: true,
        hairpin: true,
        mark: None,
    }
}

fn rule(protocol: u8, external_port: u16, host: Ipv4Addr, port: u16) -> Nat1Rule {
    Nat1Rule {
        protocol,
        external_port,
        internal: SocketAddrV4::new(host, port),
        remote_peer: None,
        outermost: None,
    }
}

/// The same at a port of [`EXTERNAL`], too.
fn by(port: u16, rule: Nat1Rule) -> Nat1Rule {
    Nat1Rule { outermost: Some(SocketAddrV4::new(EXTERNAL, port)), ..rule }
}

fn interface<'a>(snapshot: &'a Snapshot, name: &str) -> &'a Interface {
    snapshot.interfaces.iter().find(|one| one.name == name).unwrap()
}

/// How many elements a map of our table has.
fn elements(set: &str) -> usize {
    let listed = run("nft", &["-n", "list", "map", "inet", "portferry", set]);
    let inside = listed.split_once("elements = {").map_or("", |(_, rest)| rest);
    inside.split(',').filter(|element| element.contains(" : ")).count()
}

/// How many elements a set of our table has.
fn members(set: &str) -> usize {
    let listed = run("nft", &["-n", "list", "set", "inet", "portferry", set]);
    listed.split_once("elements = {").map_or(0, |(_, rest)| rest.split(',').count())
}

/// The lines of a ruleset, the order of elements set aside: a hash table's is random. nft leaves out `meta nfproto ipv4`
/// where the rule says as much elsewhere.
fn sorted(ruleset: &str) -> Vec<String> {
    let mut lines: Vec<String> = ruleset
        .replace("elements = {", "")
        .replace("meta nfproto ipv4 ", "")
        .replace(", ", "\n")
        .lines()
        .map(|line| line.trim_matches(|c: char| c.is_whitespace() || "},".contains(c)).to_owned())
        .collect();
    lines.sort();
    lines
}

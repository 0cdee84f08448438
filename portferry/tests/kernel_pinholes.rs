//! Pinholes of the IPv6 firewall against a real kernel: a LAN host, a router and an Internet host, each a network namespace
//! (see `common`).

#![allow(clippy::unwrap_used)] // in helpers too, which `allow-unwrap-in-tests` doesn't reach

mod common;

use std::{
    io::{BufRead, BufReader, ErrorKind},
    net::Ipv6Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{Agent, HOST6, OTHER_HOST6, OTHER_REMOTE6, REMOTE6, TCP, UDP, World, in_router, run};
use portferry::nft::{
    MAX_CHANGES,
    pinholes::{Change, PinholeRule, Pinholes, PinholesConfig},
};

const BIT: u32 = 0x0010_0000;

/// What `nft list table ip6 portferry` prints.
const RULESET: &str = "\
table ip6 portferry {
	set lan {
		type ifname
		elements = { \"lan0\" }
	}

	set wan {
		type ifname
		elements = { \"wan0\",
			     \"wan1\" }
	}

	set pinholes {
		type inet_proto . ipv6_addr . inet_service
		counter
		elements = { tcp . 2001:db8:77::2 . 80 counter packets 0 bytes 0 }
	}

	set pinholes_addr {
		type inet_proto . ipv6_addr . inet_service . ipv6_addr
		counter
		elements = { udp . 2001:db8:77::2 . 6000 . 2001:db8:51::2 counter packets 0 bytes 0 }
	}

	set pinholes_port {
		type inet_proto . ipv6_addr . inet_service . inet_service
		counter
		elements = { udp . 2001:db8:77::2 . 6000 . 7000 counter packets 0 bytes 0 }
	}

	set pinholes_addr_port {
		type inet_proto . ipv6_addr . inet_service . ipv6_addr . inet_service
		counter
		elements = { udp . 2001:db8:77::2 . 6000 . 2001:db8:51::3 . 7000 counter packets 0 bytes 0 }
	}

	chain pinholes {
		meta l4proto . ip6 daddr . th dport @pinholes meta mark set meta mark | 0x00100000 accept
		meta l4proto . ip6 daddr . th dport . ip6 saddr @pinholes_addr meta mark set meta mark | 0x00100000 accept
		meta l4proto . ip6 daddr . th dport . th sport @pinholes_port meta mark set meta mark | 0x00100000 accept
		meta l4proto . ip6 daddr . th dport . ip6 saddr . th sport @pinholes_addr_port meta mark set meta mark | 0x00100000 accept
	}

	chain forward {
		type filter hook forward priority filter - 6; policy accept;
		ct direction original iifname @wan oifname @lan jump pinholes
		ct state established,related accept
		iifname @wan oifname @lan ct state new ct status dnat accept
		iifname @wan oifname @lan icmpv6 type echo-request accept
		iifname @wan oifname @lan counter packets 0 bytes 0 drop
		iifname @lan oifname @wan ct state new tcp flags != syn / fin,syn,rst,ack reject with tcp reset
	}
}
";

fn config() -> PinholesConfig {
    PinholesConfig {
        name: "portferry".to_owned(),
        wan_interfaces: vec!["wan0".to_owned(), "wan1".to_owned()],
        lan_interfaces: vec!["lan0".to_owned()],
        filter: true,
        mark: None,
    }
}

fn pinhole(protocol: u8, port: u16) -> PinholeRule {
    PinholeRule { protocol, internal: HOST6, internal_port: port, remote: None, remote_port: None }
}

fn only(remote: Option<Ipv6Addr>, remote_port: Option<u16>, rule: PinholeRule) -> PinholeRule {
    PinholeRule { remote, remote_port, ..rule }
}

async fn open(pinholes: &mut Pinholes, rules: &[PinholeRule]) {
    pinholes.apply(&rules.iter().copied().map(Change::Open).collect::<Vec<_>>()).await.unwrap();
}

async fn close(pinholes: &mut Pinholes, rules: &[PinholeRule]) {
    pinholes.apply(&rules.iter().copied().map(Change::Close).collect::<Vec<_>>()).await.unwrap();
}

/// Whether a datagram from there reaches the LAN's host.
fn reaches(lan: &mut Agent, wan: &mut Agent, (from, to): (usize, usize), port: u16) -> bool {
    wan.send_to(from, HOST6, port, "knock");
    lan.recv_from(to).is_some()
}

/// A firewall of somebody's that knows nothing of ours but the mark.
fn foreign() {
    run(
        "nft",
        &[&format!(
            "add table inet foreign; \
             add chain inet foreign forward {{ type filter hook forward priority 0; policy drop; }}; \
             add rule inet foreign forward meta mark & {BIT} == {BIT} accept; \
             add rule inet foreign forward ct state established accept"
        )],
    );
}

/// RFC 6092 §3 and RFC 4890 §4.3.1: what has not been asked for stays out; answers, errors and echo requests pass.
#[test]
fn nothing_comes_in_but_by_pinholes() {
    in_router("nothing_comes_in_but_by_pinholes", async |world| {
        world.with_ipv6();
        beyond(world);
        let mut pinholes = Pinholes::open(config()).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (http, udp) = (lan.listen(HOST6, 80), lan.udp(HOST6, 6000));
        let remote = wan.udp(REMOTE6, 7000);
        assert!(wan.connect(HOST6, 80).is_err());
        assert!(!reaches(lan, wan, (remote, udp), 6000));

        assert!(wan.ping(HOST6), "an echo request");
        lan.send_to(udp, REMOTE6, 7000, "question");
        assert_eq!(wan.recv_from(remote).unwrap().1, (HOST6, 6000).into());
        assert!(reaches(lan, wan, (remote, udp), 6000), "an answer");
        let listener = wan.listen(REMOTE6, 7001);
        let client = lan.connect(REMOTE6, 7001).unwrap();
        let server = wan.accept(listener).unwrap().0;
        wan.send(server, "answer");
        assert_eq!(lan.recv(client), "answer");
        // The socket's owner is still at it when the error comes, and does not hear of it.
        assert!(lan.connect("2001:db8:52::1".parse::<Ipv6Addr>().unwrap(), 80).is_err());
        let errors = run("nft", &["list", "table", "inet", "other"]);
        assert!(errors.contains("counter packets 1 "), "{errors}");

        open(&mut pinholes, &[pinhole(TCP, 80), pinhole(UDP, 6001)]).await;
        let client = wan.connect_from(REMOTE6, 0, HOST6, 80).unwrap();
        let (accepted, peer) = lan.accept(http).unwrap();
        assert_eq!(peer.ip(), REMOTE6);
        wan.send(client, "question");
        assert_eq!(lan.recv(accepted), "question");
        lan.send(accepted, "answer");
        assert_eq!(wan.recv(client), "answer");
        let (other, fresh) = (lan.udp(HOST6, 6001), wan.udp(REMOTE6, 7002));
        assert!(reaches(lan, wan, (fresh, other), 6001));
        assert!(!reaches(lan, wan, (fresh, udp), 6000), "another port");
        assert!(wan.connect(OTHER_HOST6, 80).is_err(), "another host");
        let dropped = run("nft", &["list", "chain", "ip6", "portferry", "forward"]);
        assert!(!dropped.contains("counter packets 0 "), "{dropped}");

        // Without the filter there is nothing that drops.
        pinholes.reconfigure(PinholesConfig { filter: false, ..config() }).await.unwrap();
        assert!(reaches(lan, wan, (fresh, udp), 6000));
    });
}

/// A network behind the Internet host that is not to be reached, as it says, and who counts that.
fn beyond(world: &World) {
    let wan = world.namespace("wan");
    run("ip", &["-6", "route", "add", "2001:db8:52::/64", "via", "2001:db8:51::2"]);
    run("ip", &["-n", &wan, "-6", "route", "add", "prohibit", "2001:db8:52::/64"]);
    run("ip", &["netns", "exec", &wan, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"]);
    run(
        "nft",
        &["add table inet other; \
           add chain inet other after { type filter hook forward priority 5; }; \
           add rule inet other after icmpv6 type destination-unreachable counter"],
    );
}

/// AddPinhole's RemoteHost and RemotePort, PCP's FILTER.
#[test]
fn only_who_is_meant_gets_in() {
    in_router("only_who_is_meant_gets_in", async |world| {
        world.with_ipv6();
        let mut pinholes = Pinholes::open(config()).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let remotes = [(REMOTE6, 7000), (REMOTE6, 7001), (OTHER_REMOTE6, 7000), (OTHER_REMOTE6, 7001)];
        for (n, (remote, remote_port, let_in)) in [
            (Some(REMOTE6), None, [true, true, false, false]),
            (None, Some(7000), [true, false, true, false]),
            (Some(OTHER_REMOTE6), Some(7001), [false, false, false, true]),
            (None, None, [true; 4]),
        ]
        .into_iter()
        .enumerate()
        {
            let port = 6000 + u16::try_from(n).unwrap();
            open(&mut pinholes, &[only(remote, remote_port, pinhole(UDP, port))]).await;
            let udp = lan.udp(HOST6, port);
            for ((addr, from_port), let_in) in remotes.into_iter().zip(let_in) {
                let from = wan.udp(addr, from_port);
                assert_eq!(reaches(lan, wan, (from, udp), port), let_in, "{port} from {addr} {from_port}");
                wan.close(from);
            }
        }
        open(&mut pinholes, &[only(Some(REMOTE6), None, pinhole(TCP, 80))]).await;
        let http = lan.listen(HOST6, 80);
        assert!(wan.connect_from(OTHER_REMOTE6, 0, HOST6, 80).is_err());
        wan.connect_from(REMOTE6, 0, HOST6, 80).unwrap();
        assert!(lan.accept(http).is_some());
    });
}

#[test]
fn a_close_ends_what_came_in_and_nothing_else() {
    in_router("a_close_ends_what_came_in_and_nothing_else", async |world| {
        world.with_ipv6();
        // A few at a time, the kernel selects the flows; with many, we read its table.
        for many in [0, 40] {
            let mut pinholes = Pinholes::open(config()).await.unwrap();
            let (lan, wan) = (&mut world.lan, &mut world.wan);
            let (web, game) = (pinhole(TCP, 80), pinhole(UDP, 6000));
            let kept = [pinhole(UDP, 6001), PinholeRule { internal: OTHER_HOST6, ..game }];
            let mut closed: Vec<_> = (0..many).map(|n| pinhole(TCP, 20_000 + n)).collect();
            closed.extend([web, game]);
            open(&mut pinholes, &closed).await;
            open(&mut pinholes, &kept).await;
            let (http, udp, other) = (lan.listen(HOST6, 80), lan.udp(HOST6, 6000), lan.udp(HOST6, 6001));
            let third = lan.udp(OTHER_HOST6, 6000);
            let remote = wan.udp(REMOTE6, 7000);
            let client = wan.connect(HOST6, 80).unwrap();
            let waiting = wan.connect(HOST6, 80).unwrap();
            let (accepted, also) = (lan.accept(http).unwrap().0, lan.accept(http).unwrap().0);
            assert!(reaches(lan, wan, (remote, udp), 6000) && reaches(lan, wan, (remote, other), 6001));
            // The host's own, also by the ports that are open.
            let (listener, asked) = (wan.listen(REMOTE6, 7001), wan.udp(REMOTE6, 7002));
            let own = lan.connect_from(HOST6, 0, REMOTE6, 7001).unwrap();
            let server = wan.accept(listener).unwrap().0;
            lan.send_to(udp, REMOTE6, 7002, "question");
            assert!(wan.recv_from(asked).is_some());

            close(&mut pinholes, &closed).await;
            wan.send(client, "more");
            assert_eq!(lan.recv(accepted), "(nothing)", "no further octet reaches the host");
            lan.send(accepted, "more");
            assert_ne!(lan.recv(accepted), "(nothing)", "the host learns that it is over");
            wan.send(waiting, "more");
            assert_eq!(lan.recv(also), "(nothing)");
            assert!(wan.connect(HOST6, 80).is_err());
            assert!(!reaches(lan, wan, (remote, udp), 6000));

            assert!(reaches(lan, wan, (remote, other), 6001), "another pinhole's");
            wan.send_to(remote, OTHER_HOST6, 6000, "another host's");
            assert!(lan.recv_from(third).is_some());
            wan.send(server, "answer");
            assert_eq!(lan.recv(own), "answer");
            assert!(reaches(lan, wan, (asked, udp), 6000), "an answer to the host");
            for socket in [http, udp, other, third, accepted, also, own] {
                lan.close(socket);
            }
            for socket in [remote, client, waiting, listener, asked, server] {
                wan.close(socket);
            }
        }
    });
}

/// What several pinholes let in stays until the last of them is closed.
#[test]
fn another_pinhole_keeps_a_flow() {
    in_router("another_pinhole_keeps_a_flow", async |world| {
        world.with_ipv6();
        let mut pinholes = Pinholes::open(config()).await.unwrap();
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let all = pinhole(TCP, 80);
        let (friend, port) = (only(Some(REMOTE6), None, all), only(None, Some(7000), all));
        open(&mut pinholes, &[all, friend, port]).await;
        let http = lan.listen(HOST6, 80);
        let connected = |lan: &mut Agent, wan: &mut Agent, from: (Ipv6Addr, u16)| {
            let client = wan.connect_from(from.0, from.1, HOST6, 80).unwrap();
            (client, lan.accept(http).unwrap().0)
        };
        let by_addr = connected(lan, wan, (REMOTE6, 7001));
        let by_port = connected(lan, wan, (OTHER_REMOTE6, 7000));
        let by_both = connected(lan, wan, (REMOTE6, 7000));
        let stranger = connected(lan, wan, (OTHER_REMOTE6, 7001));
        let lives = |lan: &mut Agent, wan: &mut Agent, (client, accepted): (usize, usize)| {
            wan.send(client, "1");
            lan.recv(accepted) == "1"
        };
        close(&mut pinholes, &[all]).await;
        assert!(!lives(lan, wan, stranger));
        assert!([by_addr, by_port, by_both].into_iter().all(|one| lives(lan, wan, one)));
        close(&mut pinholes, &[friend]).await;
        assert!(!lives(lan, wan, by_addr));
        assert!([by_port, by_both].into_iter().all(|one| lives(lan, wan, one)));
        close(&mut pinholes, &[port]).await;
        assert!(!lives(lan, wan, by_port) && !lives(lan, wan, by_both));
    });
}

/// A firewall whose chain comes later and drops lets in what has the mark, with and without our filter.
#[test]
fn a_foreign_firewall_accepts_by_the_mark() {
    in_router("a_foreign_firewall_accepts_by_the_mark", async |world| {
        world.with_ipv6();
        foreign();
        for filter in [false, true] {
            let unmarked = PinholesConfig { filter, ..config() };
            let mut pinholes = Pinholes::open(unmarked.clone()).await.unwrap();
            let rules = [
                pinhole(TCP, 80),
                only(Some(REMOTE6), None, pinhole(UDP, 6000)),
                only(None, Some(7000), pinhole(UDP, 6001)),
                only(Some(REMOTE6), Some(7000), pinhole(UDP, 6002)),
            ];
            open(&mut pinholes, &rules).await;
            let (lan, wan) = (&mut world.lan, &mut world.wan);
            let http = lan.listen(HOST6, 80);
            let remote = wan.udp(REMOTE6, 7000);
            let udp = [6000, 6001, 6002, 6003].map(|port| (lan.udp(HOST6, port), port));
            assert!(wan.connect(HOST6, 80).is_err());

            pinholes.reconfigure(PinholesConfig { mark: Some(BIT), ..unmarked }).await.unwrap();
            let client = wan.connect(HOST6, 80).unwrap();
            let accepted = lan.accept(http).unwrap().0;
            wan.send(client, "question");
            assert_eq!(lan.recv(accepted), "question");
            lan.send(accepted, "answer");
            assert_eq!(wan.recv(client), "answer");
            let passed = udp.map(|(to, port)| reaches(lan, wan, (remote, to), port));
            assert_eq!(passed, [true, true, true, false]);
            close(&mut pinholes, &rules).await;
            wan.send(client, "more");
            assert_eq!(lan.recv(accepted), "(nothing)");
            assert!(!reaches(lan, wan, (remote, udp[0].0), 6000));
            for (socket, _) in udp {
                lan.close(socket);
            }
            lan.close(http);
            wan.close(remote);
        }
    });
}

/// The other bits of a mark are somebody else's.
#[test]
fn a_mark_keeps_the_bits_of_others() {
    in_router("a_mark_keeps_the_bits_of_others", async |world| {
        world.with_ipv6();
        run(
            "nft",
            &["add table inet other; \
               add chain inet other before { type filter hook prerouting priority -150; }; \
               add rule inet other before meta mark set 0x00f000f1; \
               add chain inet other after { type filter hook forward priority 5; }; \
               add rule inet other after meta mark 0x00f000f1 counter; \
               add rule inet other after meta mark != 0x00f000f1 counter drop"],
        );
        let mut pinholes = Pinholes::open(PinholesConfig { mark: Some(BIT), ..config() }).await.unwrap();
        open(&mut pinholes, &[pinhole(UDP, 6000)]).await;
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (udp, remote) = (lan.udp(HOST6, 6000), wan.udp(REMOTE6, 0));
        assert!(reaches(lan, wan, (remote, udp), 6000));
        pinholes.reconfigure(PinholesConfig { mark: Some(0x8000_0000), ..config() }).await.unwrap();
        assert!(!reaches(lan, wan, (remote, udp), 6000), "it has one bit more");
    });
}

/// GetPinholePackets and CheckPinholeWorking: all that came in, established flows, too; what the LAN began is not it.
#[test]
fn packets_are_counted() {
    in_router("packets_are_counted", async |world| {
        world.with_ipv6();
        let mut pinholes = Pinholes::open(config()).await.unwrap();
        let limited = only(Some(OTHER_REMOTE6), Some(7000), pinhole(UDP, 6001));
        let rules = [pinhole(UDP, 6000), limited, pinhole(TCP, 80)];
        open(&mut pinholes, &rules).await;
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (udp, other) = (lan.udp(HOST6, 6000), lan.udp(HOST6, 6001));
        let (remote, friend) = (wan.udp(REMOTE6, 0), wan.udp(OTHER_REMOTE6, 7000));
        for _ in 0..3 {
            assert!(reaches(lan, wan, (remote, udp), 6000));
            lan.send_to(udp, REMOTE6, 7001, "not an answer to anybody");
        }
        assert!(reaches(lan, wan, (friend, other), 6001));
        assert!(!reaches(lan, wan, (remote, other), 6001));
        let asked = wan.udp(REMOTE6, 7002);
        lan.send_to(udp, REMOTE6, 7002, "question");
        assert!(wan.recv_from(asked).is_some());
        assert!(reaches(lan, wan, (asked, udp), 6000));
        let mut counts = Vec::new();
        for rule in &rules {
            counts.push(pinholes.packets(rule).await.unwrap());
        }
        assert_eq!(counts, [3, 1, 0]);
        let unknown = pinholes.packets(&pinhole(UDP, 9)).await.unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::NotFound);

        // Another table goes on where the last one was.
        pinholes
            .reconfigure(PinholesConfig { filter: false, name: "other".to_owned(), ..config() })
            .await
            .unwrap();
        assert_eq!(run("nft", &["list", "tables"]).trim(), "table ip6 other");
        assert_eq!(pinholes.packets(&rules[0]).await.unwrap(), 3);
        assert!(reaches(lan, wan, (remote, udp), 6000));
        assert_eq!(pinholes.packets(&rules[0]).await.unwrap(), 4);
        pinholes.reconfigure(config()).await.unwrap();
        assert_eq!(pinholes.packets(&rules[0]).await.unwrap(), 4);
        // One that is opened again begins anew.
        close(&mut pinholes, &rules[..1]).await;
        open(&mut pinholes, &rules[..1]).await;
        assert_eq!(pinholes.packets(&rules[0]).await.unwrap(), 0);
    });
}

/// What an earlier run has left is replaced, what somebody has flushed is made anew, what is cleared is gone; nobody else's
/// table is touched.
#[test]
fn the_table_is_replaced_made_anew_listed_and_cleared() {
    in_router("the_table_is_replaced_made_anew_listed_and_cleared", async |world| {
        world.with_ipv6();
        run("nft", &["add table ip6 other; add table inet portferry; add table ip portferry"]);
        let mut killed = Pinholes::open(config()).await.unwrap();
        open(&mut killed, &[pinhole(TCP, 1)]).await;
        drop(killed);
        let mut pinholes = Pinholes::open(PinholesConfig { mark: Some(BIT), ..config() }).await.unwrap();
        let game = pinhole(UDP, 6000);
        let rules = [
            pinhole(TCP, 80),
            only(Some(REMOTE6), None, game),
            only(None, Some(7000), game),
            only(Some(OTHER_REMOTE6), Some(7000), game),
        ];
        open(&mut pinholes, &rules).await;
        open(&mut pinholes, &rules).await;
        let listed = || sorted(&run("nft", &["list", "table", "ip6", "portferry"]));
        println!("{}", run("nft", &["list", "table", "ip6", "portferry"]));
        assert_eq!(listed(), sorted(RULESET));
        assert_eq!(pinholes.rules().count(), 4);

        run("nft", &["flush ruleset"]);
        let one = pinhole(TCP, 81);
        for change in [Change::Open(one), Change::Close(rules[0])] {
            let error = pinholes.apply(&[change]).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        }
        assert_eq!(pinholes.packets(&rules[0]).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(pinholes.holds(&rules[0]) && !pinholes.holds(&one));
        pinholes.reconfigure(pinholes.config().clone()).await.unwrap();
        assert_eq!(listed(), sorted(RULESET));

        // Or by itself, when there is something to do.
        assert!(!pinholes.restore().await.unwrap());
        for damage in [
            "flush ruleset",
            "flush chain ip6 portferry forward",
            "flush set ip6 portferry pinholes",
            "flush set ip6 portferry wan",
            "add element ip6 portferry pinholes { tcp . 2001:db8:77::2 . 22 }",
        ] {
            run("nft", &[damage]);
            assert!(pinholes.restore().await.unwrap(), "{damage}");
            assert_eq!(listed(), sorted(RULESET), "{damage}");
            assert!(!pinholes.restore().await.unwrap(), "{damage}: once");
        }

        run("nft", &["add table ip6 other"]);
        pinholes.clear().await.unwrap();
        assert_eq!(run("nft", &["list", "tables"]).trim(), "table ip6 other");
        pinholes.clear().await.unwrap();
        Pinholes::open(config()).await.unwrap();
        Pinholes::remove("portferry").await.unwrap();
        Pinholes::remove("portferry").await.unwrap();
        assert_eq!(run("nft", &["list", "tables"]).trim(), "table ip6 other");
    });
}

/// An error leaves everything as it was; many pinholes are made anew in several transactions.
#[test]
fn five_thousand_pinholes() {
    in_router("five_thousand_pinholes", async |world| {
        world.with_ipv6();
        let mut pinholes = Pinholes::open(config()).await.unwrap();
        let all: Vec<_> = (0..5000)
            .map(|n| {
                let (remote, port) = ((n % 2 == 0).then_some(REMOTE6), (n % 3 == 0).then_some(7000));
                only(remote, port, pinhole(if n % 5 == 0 { TCP } else { UDP }, 1024 + n))
            })
            .collect();
        let took = Instant::now();
        for chunk in all.chunks(MAX_CHANGES) {
            open(&mut pinholes, chunk).await;
        }
        println!("5,000 pinholes in {:?}", took.elapsed());
        assert_eq!(elements(), 5000);
        let took = Instant::now();
        for n in 0..100 {
            open(&mut pinholes, &[pinhole(TCP, 40_000 + n)]).await;
            close(&mut pinholes, &[pinhole(TCP, 40_000 + n)]).await;
        }
        println!("opening and closing one of 5,001: {:?}", took.elapsed() / 100);
        let too_many = vec![Change::Open(all[0]); MAX_CHANGES + 1];
        assert_eq!(pinholes.apply(&too_many).await.unwrap_err().kind(), ErrorKind::InvalidInput);
        let wrong = [Change::Open(pinhole(TCP, 9)), Change::Close(pinhole(TCP, 10))];
        assert_eq!(pinholes.apply(&wrong).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!((elements(), pinholes.rules().count()), (5000, 5000));

        run("nft", &["delete", "table", "ip6", "portferry"]);
        let took = Instant::now();
        pinholes.reconfigure(PinholesConfig { mark: Some(BIT), ..config() }).await.unwrap();
        println!("made anew in {:?}", took.elapsed());
        assert_eq!(elements(), 5000);
        for chunk in all.chunks(MAX_CHANGES) {
            close(&mut pinholes, chunk).await;
        }
        assert_eq!((elements(), pinholes.rules().count()), (0, 0));
    });
}

/// How many pinholes the kernel has.
fn elements() -> usize {
    ["pinholes", "pinholes_addr", "pinholes_port", "pinholes_addr_port"]
        .map(|set| {
            let listed = run("nft", &["-n", "list", "set", "ip6", "portferry", set]);
            listed.split_once("elements = {").map_or(0, |(_, rest)| rest.split(',').count())
        })
        .into_iter()
        .sum()
}

/// The lines of a ruleset, the order of elements set aside: a hash table's is random.
fn sorted(ruleset: &str) -> Vec<String> {
    let mut lines: Vec<String> = ruleset
        .replace("elements = {", "")
        .replace(", ", "\n")
        .lines()
        .map(|line| line.trim_matches(|c: char| c.is_whitespace() || "},".contains(c)).to_owned())
        .collect();
    lines.sort();
    lines
}

/// The daemon, killed when this goes.
struct Daemon(std::process::Child);

impl Daemon {
    fn start(directory: &Path, settings: &str) -> Self {
        let file = directory.join("portferry.toml");
        let (state, socket) = (directory.join("state"), directory.join("control.sock"));
        let text = format!(
            "{settings}[uplink]\nanycast = false\ndhcp = \"off\"\nigd = false\n[state]\ndirectory = {state:?}\n[control]\nsocket = {socket:?}\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_portferry"));
        let mut process =
            command.args(["run", "--config"]).arg(&file).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap());
        let daemon = Self(process);
        let mut said = lines.lines().map(|line| line.unwrap());
        assert!(said.any(|line| line.contains("is running")), "it did not start with {settings}");
        std::thread::spawn(move || said.for_each(|line| println!("{line}")));
        daemon
    }

    fn signal(&self, signal: &str) {
        run("kill", &[signal, &self.0.id().to_string()]);
    }

    fn stop(mut self) {
        self.signal("-TERM");
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory of one test, gone when this is.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The table stands beside the NAT's and without it, filters when that does, is replaced after a crash, follows the LAN, and goes.
#[test]
fn the_daemon_keeps_the_table() {
    in_router("the_daemon_keeps_the_table", async |world| {
        world.with_ipv6();
        let path = std::env::temp_dir().join(format!("portferry-pinholes-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let directory = Directory(path);
        let tables = || {
            let mut tables: Vec<_> = run("nft", &["list", "tables"]).lines().map(str::to_owned).collect();
            tables.sort();
            tables
        };
        let listed = || run("nft", &["list", "table", "ip6", "portferry"]);
        let settings = |lan: &str, wan: &str| {
            format!("[lan]\ninterfaces = [\"lan0\"]\n{lan}[wan]\ninterface = \"wan0\"\n{wan}")
        };
        let both = ["table inet portferry", "table ip6 portferry"];

        let daemon = Daemon::start(&directory.0, &settings("", ""));
        assert_eq!(tables(), both);
        assert!(!listed().contains("drop") && !listed().contains("mark"));
        run("nft", &["add element ip6 portferry pinholes { tcp . 2001:db8:77::2 . 80 }"]);
        daemon.signal("-KILL");
        drop(daemon);
        assert_eq!(tables(), both, "a table outlives its program");

        let filtered = settings("ipv6_pinholes = false\n", "[nat]\nforward_filter = true\nmark = 0x100000\n");
        let daemon = Daemon::start(&directory.0, &filtered);
        assert_eq!(tables(), both);
        assert!(listed().contains("drop") && listed().contains("0x00100000"), "{}", listed());
        assert!(!listed().contains("2001:db8:77::2"), "what was left is gone");
        let (lan, wan) = (&mut world.lan, &mut world.wan);
        let (udp, remote) = (lan.udp(HOST6, 6000), wan.udp(REMOTE6, 0));
        assert!(!reaches(lan, wan, (remote, udp), 6000));
        let file = directory.0.join("portferry.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace("[\"lan0\"]", "[\"lan0\", \"lan1\"]")).unwrap();
        daemon.signal("-HUP");
        let patience = Instant::now();
        while !listed().contains("lan1") {
            assert!(patience.elapsed() < Duration::from_secs(10), "{}", listed());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon.stop();
        assert_eq!(tables(), [""; 0], "a stop leaves nothing behind");

        let daemon = Daemon::start(&directory.0, &settings("", "nat = \"none\"\n"));
        assert_eq!(tables(), both[1..]);
        daemon.signal("-KILL");
        drop(daemon);
        let daemon = Daemon::start(&directory.0, &settings("ipv6_pinholes = false\n", ""));
        assert_eq!(tables(), both[..1], "what nobody wants any more goes");
        daemon.stop();
    });
}

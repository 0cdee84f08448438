//! `portferry pcp-server` under floods, and with as many mappings as an external address has ports. Needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test pcp_server_load
//! PF_MAPPINGS=65000 cargo test -p lab --test pcp_server_load -- --nocapture many
//! ```
//!
//! What is asserted is what is answered and what memory is taken, never how long that lasts.

mod common;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use common::pcp::Pcp;
use common::{BOTH, SECOND, TCP, UDP, listener, reaches, reaches_nobody, say, skipped, subject};
use lab::netns::{Host, Layout, Network, OTHER, PROVIDER, ROUTER_WAN};
use lab::pcp_load;
use lab::pcp_server::PcpServer;
use lab::subject::Subject;
use lab::wait::eventually;
use serde_json::Value;

const LOAD: &str = env!("CARGO_BIN_EXE_lab-pcp-load");
const TABLE: &str = "portferry-provider";

/// Datagrams of one round of a flood, and most rounds.
const ROUND: u64 = 20_000;
const ROUNDS: u64 = 40;

/// KiB that the server may take at most, in a build without optimization: the test fails when something grows without bound, not
/// when something is a little larger.
const MEMORY: u64 = 256 * 1024;

fn laboratory() -> Option<(PathBuf, Network)> {
    match subject()? {
        Subject::Portferry(program) => Some((program, Network::new(Layout { router_nat: true, lan: false }))),
        Subject::Miniupnpd => {
            skipped("the subject is no portferry");
            None
        }
    }
}

fn ip(network: &Network, host: Host, arguments: &str) {
    network.run(host, "ip", arguments.split(' '));
}

/// What became of one MAP request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Answer {
    result: u8,
    external_port: u16,
    lifetime: u32,
}

/// MAP requests of one subscriber for `wanted` (protocol, first port, count), one answer for each.
#[track_caller]
fn work(
    network: &Network,
    host: Host,
    from: Ipv4Addr,
    wanted: &[(u8, u16, u16)],
    lifetime: u32,
    window: u32,
) -> BTreeMap<(u8, u16), Answer> {
    let mut child = network
        .command(host, LOAD)
        .args([
            "work",
            &format!("{PROVIDER}:5351"),
            &from.to_string(),
            &lifetime.to_string(),
            &window.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let lines: String =
        wanted.iter().map(|(protocol, first, count)| format!("{protocol} {first} {count}\n")).collect();
    child.stdin.take().expect("piped above").write_all(lines.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "every request is answered");
    let said = String::from_utf8(output.stdout).expect("text");
    let answer = |line: &str| {
        let words: Vec<u32> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
        let [protocol, internal_port, result, external_port, lifetime] = words[..] else { panic!("{line}") };
        let short = |number: u32| u16::try_from(number).expect("a port");
        let octet = |number: u32| u8::try_from(number).expect("an octet");
        let answer = Answer { result: octet(result), external_port: short(external_port), lifetime };
        ((octet(protocol), short(internal_port)), answer)
    };
    let answers: BTreeMap<_, _> = said.lines().map(answer).collect();
    assert_eq!(answers.len(), wanted.iter().map(|(_, _, count)| usize::from(*count)).sum::<usize>());
    answers
}

/// The server's mappings of one host: protocol and internal port to the external one.
fn of_host(server: &PcpServer<'_>, host: IpAddr) -> BTreeMap<(String, u16), u16> {
    let port = |text: &Value| -> (IpAddr, u16) {
        let addr: std::net::SocketAddr = text.as_str().expect("text").parse().expect("an address");
        (addr.ip(), addr.port())
    };
    let mappings = server.mappings();
    let all = mappings
        .iter()
        .map(|one| (one["protocol"].as_str().expect("text"), port(&one["internal"]), port(&one["external"])));
    all.filter(|(_, internal, _)| internal.0 == host)
        .map(|(protocol, internal, external)| ((protocol.to_owned(), internal.1), external.1))
        .collect()
}

/// RFC 6887 §17.2 wants that a server's limits are each subscriber's own: one floods in its own name, then under the addresses of
/// two thousand neighbours, from each network of its IPv6 prefix, and under addresses that nobody has, while another maps, renews, is reached and deletes.
#[test]
fn a_flood_starves_nobody() {
    let Some((program, network)) = laboratory() else { return };
    // Other's neighbours are behind it, each with an address of its own; their answers end there.
    let everywhere = ["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.cust0.rp_filter=0"];
    network.run(Host::Provider, "sysctl", ["-qw", everywhere[0], everywhere[1]]);
    ip(&network, Host::Provider, &format!("route add 100.64.8.0/21 via {OTHER}"));
    ip(&network, Host::Other, "route add blackhole 100.64.8.0/21");
    for host in [Host::Provider, Host::Other] {
        network.run(
            host,
            "sysctl",
            ["-qw", "net.ipv6.conf.all.disable_ipv6=0", "net.ipv6.conf.default.disable_ipv6=0"],
        );
    }
    ip(&network, Host::Provider, "addr add 2001:db8:1::1/64 dev cust0 nodad");
    ip(&network, Host::Other, "addr add 2001:db8:1::3/64 dev wan0 nodad");
    ip(&network, Host::Provider, "route add 2001:db8:2::/48 via 2001:db8:1::3");
    ip(&network, Host::Other, "route add blackhole 2001:db8:2::/48");
    // The ports that the one who is not starved wants are kept free of the others; a port is nobody's right.
    let settings = "[nat]\nipv6_firewall = true\n[mappings]\nhold = 0\nlist = true\n\
                    [access]\nipv6_subscriber_bits = 48\nrules = [\"allow 100.64.0.2 1-65535\", \"deny 100.64.0.0/16 7000-7019\"]\n";
    let prefixes = ["100.64.0.0/16", "2001:db8:1::/48", "2001:db8:2::/48"];
    let mut server = PcpServer::start(&network, &program, &prefixes, settings);
    let before = server.usage();
    let _listener = BOTH.map(|protocol| listener(&network, Host::Router, protocol, 7000));

    for (what, to, from) in [
        ("one subscriber", PROVIDER.to_string(), OTHER.to_string()),
        ("2,048 addresses", PROVIDER.to_string(), "100.64.8.0/21".to_owned()),
        (
            "65,536 networks of one IPv6 subscriber",
            "[2001:db8:1::1]".to_owned(),
            "2001:db8:2::9/48".to_owned(),
        ),
        ("2,048 addresses that are no subscriber's", PROVIDER.to_string(), "100.65.8.0/21".to_owned()),
    ] {
        let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
        let received = server.status()["received"].as_u64().expect("a number");
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let arguments =
                        ["flood", &format!("{to}:5351"), &from, &ROUND.to_string(), &round.to_string()];
                    let said = network.run(Host::Other, LOAD, arguments);
                    sent.fetch_add(said.trim().parse().expect("a number"), Ordering::Relaxed);
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            // Also when an assertion below fails: the flood ends with its round.
            let _done = Finally(&done);
            let mapped = [(TCP, 7000, 20), (UDP, 7000, 20)];
            for lifetime in [600, 1200] {
                let answers = work(&network, Host::Router, ROUTER_WAN, &mapped, lifetime, 4);
                for ((_, port), answer) in answers {
                    assert_eq!(answer, Answer { result: 0, external_port: port, lifetime }, "{what}");
                }
            }
            let held = of_host(&server, ROUTER_WAN.into());
            assert_eq!(held.len(), 40, "{what}");
            assert!(held.iter().all(|((_, internal), external)| internal == external), "{what}: {held:?}");
            reaches(&network, TCP, 7000, "router");
            reaches(&network, UDP, 7000, "router");
            let deleted = work(&network, Host::Router, ROUTER_WAN, &mapped, 0, 4);
            assert!(
                deleted.values().all(|answer| (answer.result, answer.lifetime) == (0, 0)),
                "{what}: {deleted:?}"
            );
        });
        assert!(server.is_alive(), "{what}");
        let (usage, status) = (server.usage(), server.status());
        let heard = status["received"].as_u64().expect("a number") - received;
        say(&format!(
            "flood from {what}: {} sent in {:?}, {heard} heard, {} mappings; memory {} KiB before, {} KiB now, {} KiB at most",
            sent.load(Ordering::Relaxed),
            began.elapsed(),
            status["mappings"],
            before.rss,
            usage.rss,
            usage.peak,
        ));
        assert!(sent.load(Ordering::Relaxed) >= ROUND, "{what}: there was a flood");
        // Everybody's connections need that table.
        let flows: u64 = network
            .run(Host::Provider, "cat", ["/proc/sys/net/netfilter/nf_conntrack_count"])
            .trim()
            .parse()
            .expect("a number");
        assert!(flows < 1000, "{what}: {flows} flows in the kernel's table");
        assert!(usage.peak < MEMORY, "{what}: {usage:?}");
        assert_eq!(of_host(&server, ROUTER_WAN.into()), BTreeMap::new(), "{what}");
        for protocol in BOTH {
            reaches_nobody(&network, protocol, 7000);
        }
        let quota = of_host(&server, OTHER.into()).len();
        assert!(quota <= 1000, "{what}: {quota} mappings of one subscriber");
    }

    // Afterwards all is as it should be: who flooded is served like everybody else, the table and the kernel agree.
    let status = server.status();
    assert!(status["refused"]["too many requests"].as_u64().is_some_and(|count| count > 0), "{status:#}");
    assert_eq!(status["store_error"], Value::Null);
    // Strangers take nobody's place: each that the socket had room for is counted.
    let strangers = server.refused("not from a subscriber");
    assert!(strangers > ROUND / 10, "{strangers} strangers were heard");
    let of_strangers = server
        .mappings()
        .into_iter()
        .filter(|one| one["requester"].as_str().is_some_and(|from| from.starts_with("100.65.")));
    assert_eq!(of_strangers.count(), 0);
    let pcp = Pcp::new(&network, &program);
    let announce = pcp.json_of(Host::Other, "announce --wait 20");
    assert_eq!(announce["outcome"], "alive", "{announce:#}");
    let kernel = network.elements(Host::Provider, TABLE, "ports4");
    let in_v4 =
        server.mappings().iter().filter(|one| one["external"].as_str().expect("text").contains('.')).count();
    if let Some(kernel) = kernel {
        assert_eq!(kernel.len(), in_v4);
    }
    server.stop();
}

/// Sets it whatever happens.
struct Finally<'a>(&'a AtomicBool);

impl Drop for Finally<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Issue 4, "Show": as many mappings as one external address has ports, over the wire, by four subscribers; listed by GET and NEXT;
/// there again after the server was killed, with the same epoch. 65,000 with `PF_MAPPINGS=65000`; the ordinary test has fewer.
#[test]
fn many_mappings_are_listed_and_come_back() {
    let Some((program, network)) = laboratory() else { return };
    let wanted: u16 =
        std::env::var("PF_MAPPINGS").map_or(4_000, |text| text.parse().expect("a number of mappings"));
    let settings = "[mappings]\nlist = true\nper_subscriber = 70000\n[access]\nrequests_per_second = 1000000\nburst = 1000000\n";
    let mut server = PcpServer::start(&network, &program, &["100.64.0.0/24"], settings);
    let extra = [Ipv4Addr::new(100, 64, 0, 12), Ipv4Addr::new(100, 64, 0, 13)];
    // The router would hide a second address of its own.
    for extra in extra {
        ip(&network, Host::Other, &format!("addr add {extra}/24 dev wan0"));
    }
    let each = wanted / 4;
    let subscribers = [
        (Host::Router, ROUTER_WAN, TCP, 1024),
        (Host::Other, extra[0], UDP, 10_000),
        (Host::Other, OTHER, TCP, 1024 + each),
        (Host::Other, extra[1], UDP, 10_000 + each),
    ];
    let pcp = Pcp::new(&network, &program);
    let figures = |what: &str, began: Instant, cpu: std::time::Duration, server: &PcpServer<'_>| {
        let usage = server.usage();
        say(&format!(
            "{wanted} mappings, {what}: {:.1?}, of which {:.1?} of the server's processor time; memory {} KiB, {} KiB at most",
            began.elapsed(),
            usage.cpu - cpu,
            usage.rss,
            usage.peak
        ));
    };

    let (began, cpu) = (Instant::now(), server.usage().cpu);
    std::thread::scope(|scope| {
        for (host, from, protocol, first) in subscribers {
            let network = &network;
            scope.spawn(move || {
                let answers = work(network, host, from, &[(protocol, first, each)], 7200, 32);
                for ((_, port), answer) in answers {
                    assert_eq!(answer, Answer { result: 0, external_port: port, lifetime: 7200 });
                }
            });
        }
    });
    figures("made over the wire", began, cpu, &server);
    let epoch = server.status()["epoch"].as_u64().expect("a number");

    // Each port of the kernel's table, with whom it leads to.
    let kernel = |server: &PcpServer<'_>| {
        let rules = network.run(Host::Provider, "nft", ["-j", "list", "table", "inet", TABLE]);
        let rules: Value = serde_json::from_str(&rules).expect("a document");
        let maps = rules["nftables"].as_array().expect("a list").iter().filter_map(|one| one.get("map"));
        let ports = maps.filter(|map| map["name"] == "ports").filter_map(|map| map["elem"].as_array());
        let count: usize = ports.map(Vec::len).sum();
        assert_eq!(count, usize::from(each) * 4, "elements of the kernel's map");
        assert_eq!(server.status()["mappings"], u64::from(each) * 4);
    };
    kernel(&server);

    // What each subscriber is told, without what is left of its lifetime.
    let lists = |server: &PcpServer<'_>| -> Vec<Vec<Value>> {
        let list = |(host, from, protocol, first): (Host, Ipv4Addr, u8, u16)| {
            let listed = pcp.json_of(host, &format!("get --source {from} --wait 20"));
            assert_eq!(listed["outcome"], "listed", "{}", listed["message"]);
            let mut list = listed["mappings"].as_array().expect("a list").clone();
            for (number, one) in (0..).zip(&mut list) {
                let left = one["lifetime"].as_u64().expect("a number");
                // What is stored may stand a renewal longer, which then need not be stored.
                assert!((6000..=14_400).contains(&left), "{one}");
                one["lifetime"] = 0.into();
                let port: u16 = first + number;
                assert_eq!(
                    (&one["internal"]["port"], &one["external"]["port"]),
                    (&port.into(), &port.into())
                );
                let nonce = pcp_load::nonce(from.into(), protocol, port);
                let nonce: String = nonce.iter().map(|octet| format!("{octet:02x}")).collect();
                assert_eq!((&one["transport"]["number"], &one["nonce"]), (&protocol.into(), &nonce.into()));
            }
            assert_eq!(list.len(), usize::from(each), "of {from}");
            list
        };
        let (began, cpu) = (Instant::now(), server.usage().cpu);
        let lists = subscribers.map(list).to_vec();
        figures("listed by GET and NEXT", began, cpu, server);
        lists
    };
    let before = lists(&server);

    // A page costs the same at the end of a list: one question for what is last, and one for what is not there.
    let (began, cpu) = (Instant::now(), server.usage().cpu);
    let last =
        pcp.json_of(Host::Other, &format!("get --source {OTHER} --internal {}", 1024 + each + each - 1));
    assert_eq!(last["mappings"].as_array().map(Vec::len), Some(1));
    figures("the last one of a subscriber", began, cpu, &server);

    // SIGKILL, and again: nothing was lost, so the epoch goes on (RFC 6887 §8.5).
    server.kill();
    let began = Instant::now();
    server.restart();
    // Nobody waits for the last of them: the server answers meanwhile.
    assert_eq!(pcp.json_of(Host::Router, "announce")["outcome"], "alive");
    let status = eventually("all mappings", 120 * SECOND, || {
        let status = server.status();
        (status["mappings"] == u64::from(each) * 4).then_some(status)
    });
    figures("there again after a kill", began, std::time::Duration::ZERO, &server);
    let now = status["epoch"].as_u64().expect("a number");
    assert!((epoch..epoch + 600).contains(&now), "{epoch}, then {now}");
    kernel(&server);
    assert_eq!(lists(&server), before, "the same list");
    let _listener = listener(&network, Host::Router, TCP, 1024);
    reaches(&network, TCP, 1024, "router");

    // A renewal and a delete among all of them, and one more.
    let (began, cpu) = (Instant::now(), server.usage().cpu);
    for lifetime in [7200, 0, 7200] {
        let answers = work(&network, Host::Router, ROUTER_WAN, &[(TCP, 1024, 100)], lifetime, 4);
        assert!(
            answers.values().all(|answer| (answer.result, answer.lifetime) == (0, lifetime)),
            "{answers:?}"
        );
    }
    figures("300 requests among them", began, cpu, &server);
    reaches(&network, TCP, 1024, "router");
    assert_eq!(server.status()["refused"], serde_json::json!({}));
    let began = Instant::now();
    server.stop();
    say(&format!("{wanted} mappings, an orderly stop: {:.1?}", began.elapsed()));
}

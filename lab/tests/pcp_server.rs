//! `portferry pcp-server` in network namespaces, with clients that others wrote, with our own, and with datagrams that no client
//! sends. Needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test pcp_server
//! ```
//!
//! The others' clients, none of which shares a line with portferry or with each other:
//!
//! | client | version | licence | from |
//! |---|---|---|---|
//! | natpmpc (NAT-PMP) | Debian's | BSD-3-Clause | Debian: natpmpc |
//! | crab_nat (PCP, NAT-PMP) | 0.8 | MIT | cargo, by `lab-crab-nat` |
//! | libtorrent-rasterbar (PCP) | Debian's 2.0 | BSD-3-Clause | Debian: python3-libtorrent |

mod common;

use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::pcp::Pcp;
use common::{
    BOTH, PROBE, SECOND, TCP, UDP, answer_to, listener, name, reaches, reaches_nobody, skipped, subject,
};
use lab::netns::{
    self, EXTERNAL, Host, INTERNET, Layout, Network, OTHER, PROVIDER, PROVIDER_INTERNET, ROUTER_WAN,
    WAN_INTERFACE,
};
use lab::pcp_load::{self, ANNOUNCE, GET, MAP, PEER, Wish};
use lab::pcp_server::{PcpServer, SUBSCRIBERS};
use lab::subject::Subject;
use lab::wait::eventually;
use serde_json::{Value, json};

const LOAD: &str = env!("CARGO_BIN_EXE_lab-pcp-load");
const CRAB_NAT: &str = env!("CARGO_BIN_EXE_lab-crab-nat");

const NONCE: &str = "000102030405060708090a0b";
const SUBSCRIBERS_ONLY: &[&str] = &[SUBSCRIBERS];

/// Exit codes of `portferry pcp`.
const REFUSED: i32 = 75;

/// Everything that a configuration can allow.
const GENEROUS: &str = "[mappings]\nlist = true\nall_ports = true\nall_protocols = true\nmin_lifetime = 4\nhold = 0\n\
                        [access]\nthird_party = [\"100.64.0.3 for 100.64.0.2\"]\n";

/// The program that is tested and where, or `None` (after saying so).
fn laboratory() -> Option<(PathBuf, Network)> {
    match subject()? {
        Subject::Portferry(program) => Some((program, Network::new(Layout { router_nat: true, lan: false }))),
        Subject::Miniupnpd => {
            skipped("the subject is no portferry");
            None
        }
    }
}

fn address(host: Host) -> IpAddr {
    if host == Host::Router { ROUTER_WAN.into() } else { OTHER.into() }
}

// ── Clients that others wrote ──────────────────────────────────────────────────────────────────────────────────────

/// RFC 6886, by libnatpmp: external address, both protocols, a delete.
fn natpmpc(network: &Network, server: &PcpServer<'_>) {
    let gateway = PROVIDER.to_string();
    let natpmpc = |arguments: &[&str]| {
        let mut command = network.command(Host::Other, "timeout");
        command.args(["20", "natpmpc", "-g", &gateway]).args(arguments);
        let output = command.output().expect("it runs");
        (output.status.success(), netns::text(&output))
    };
    let (ok, said) = natpmpc(&[]);
    assert!(ok && said.contains(&format!("Public IP address : {EXTERNAL}")), "{said}");
    for protocol in BOTH {
        let (ok, said) = natpmpc(&["-a", "8181", "8080", name(protocol), "600"]);
        assert!(ok && said.contains("Mapped public port 8181 protocol"), "{said}");
        let _listener = listener(network, Host::Other, protocol, 8080);
        reaches(network, protocol, 8181, "other");
        let by: Vec<Value> = server.mappings().iter().map(|mapping| mapping["made_by"].clone()).collect();
        assert_eq!(by, ["NAT-PMP"]);
        let (ok, said) = natpmpc(&["-a", "0", "8080", name(protocol), "0"]);
        assert!(ok && server.mappings().is_empty(), "{said}");
        reaches_nobody(network, protocol, 8181);
    }
}

/// RFC 6887 and 6886, by crab_nat: a mapping, its renewal, its end.
fn crab_nat(network: &Network, server: &PcpServer<'_>) {
    let said = network.run(Host::Router, CRAB_NAT, ["external", &PROVIDER.to_string()]);
    assert_eq!(said.trim(), EXTERNAL.to_string());
    // A listener's port is new each time: its log says "listening" from the first one on.
    for (which, made_by, addr, internal) in
        [("pcp", "PCP", format!(" {EXTERNAL}"), 8001), ("nat-pmp", "NAT-PMP", " ".to_owned(), 8002)]
    {
        for protocol in BOTH {
            let (gateway, client) = (PROVIDER.to_string(), ROUTER_WAN.to_string());
            let mut child = network
                .command(Host::Router, CRAB_NAT)
                .args([which, &gateway, &client, name(protocol), &internal.to_string(), "9090", "600"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("it runs");
            let mapping = eventually("its mapping", 10 * SECOND, || server.mappings().pop());
            assert_eq!(mapping["made_by"], made_by);
            assert_eq!(
                (&mapping["internal"], &mapping["external"]),
                (&json!(format!("{ROUTER_WAN}:{internal}")), &json!(format!("{EXTERNAL}:9090")))
            );
            let _listener = listener(network, Host::Router, protocol, internal);
            reaches(network, protocol, 9090, "router");
            child.stdin.take().expect("piped above").write_all(b"renew\ndrop\n").expect("it reads");
            let output = child.wait_with_output().expect("it ends");
            let said = String::from_utf8_lossy(&output.stdout);
            let expected = format!("mapped 9090 600{addr}\nrenewed 9090 600{addr}\ndropped\n");
            assert_eq!((said.as_ref(), output.status.success()), (&*expected, true), "{which}");
            assert_eq!(server.mappings(), [] as [Value; 0], "{which}");
            reaches_nobody(network, protocol, 9090);
        }
    }
}

/// RFC 6887 by libtorrent, the client met most often in the field: it finds its default router by itself, maps TCP and UDP, and
/// is a peer for BitTorrent and DHT there.
fn libtorrent(network: &Network, server: &PcpServer<'_>) {
    // Debian's own interpreter: another one does not have the module.
    const PYTHON: &str = "/usr/bin/python3";
    let found = Command::new(PYTHON).args(["-c", "import libtorrent"]).output();
    assert!(
        found.is_ok_and(|output| output.status.success()),
        "the lab needs libtorrent: apt-get install python3-libtorrent"
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/libtorrent-client.py");
    let log = network.directory().join("libtorrent.log");
    let mut child = network
        .command(Host::Other, PYTHON)
        .arg(script)
        .current_dir(network.directory())
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(&log).expect("the directory is ours"))
        .spawn()
        .expect("it runs");
    let mapped = eventually("both mappings", 30 * SECOND, || {
        let all = server.mappings();
        (all.len() == 2).then_some(all)
    });
    let says = |protocol: &str| {
        eventually(&format!("what it makes of {protocol}"), 10 * SECOND, || {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let line = log
                .lines()
                .find(|line| line.starts_with("mapped ") && line.to_lowercase().contains(protocol))?;
            Some(line.to_lowercase())
        })
    };
    for mapping in &mapped {
        assert_eq!(
            (&mapping["made_by"], &mapping["internal"]),
            (&json!("PCP"), &json!(format!("{OTHER}:6881")))
        );
        let external = mapping["external"].as_str().expect("text");
        let (_, port) = external.rsplit_once(':').expect("a port");
        let port: u16 = port.parse().expect("a number");
        let said = says(&mapping["protocol"].as_str().expect("text").to_lowercase());
        assert!(said.contains(&format!(" {port} ")), "{said} is not {external}");
        if mapping["protocol"] == "UDP" {
            // BEP 5: whoever asks is answered.
            let mut probe = network.command(Host::Internet, PROBE);
            let ping = "d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe";
            probe.args(["udp-send", &format!("{EXTERNAL}:{port}"), ping, "5000"]);
            let answer = netns::text(&probe.output().expect("it runs"));
            assert!(answer.contains("1:y1:r"), "{answer}");
        } else {
            // BEP 3: a handshake for a torrent that it does not have ends the connection, so there was one.
            let mut probe = network.command(Host::Internet, PROBE);
            probe
                .args(["tcp-blast", &format!("{EXTERNAL}:{port}")])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let mut probe = probe.spawn().expect("it runs");
            let handshake = [&[19][..], b"BitTorrent protocol", &[0; 8], &[7; 40]].concat();
            let line = hex(&handshake) + "\n";
            probe.stdin.take().expect("piped above").write_all(line.as_bytes()).expect("it reads");
            assert!(probe.wait().expect("it ends").success(), "TCP {port} is open");
        }
    }
    drop(child.stdin.take());
    let ended = eventually("its end", 30 * SECOND, || child.try_wait().expect("a child can be waited for"));
    assert!(ended.success());
    eventually("the end of its mappings", 10 * SECOND, || server.mappings().is_empty().then_some(()));
}

/// Both kinds of NAT: bytes arrive by each mapping, and by none that is gone.
#[test]
fn clients_that_others_wrote() {
    for plane in ["nftables", "memory"] {
        let Some((program, network)) = laboratory() else { return };
        let settings = format!("[nat]\nplane = \"{plane}\"\n[mappings]\nhold = 0\n");
        let server = PcpServer::start(&network, &program, SUBSCRIBERS_ONLY, &settings);
        assert_eq!(server.status()["plane"], plane);
        natpmpc(&network, &server);
        crab_nat(&network, &server);
        libtorrent(&network, &server);
        let status = server.status();
        assert_eq!(status["refused"], json!({}), "nobody was refused anything, with {plane}");
    }
}

// ── Our own client ─────────────────────────────────────────────────────────────────────────────────────────────────

/// MAP with every option, PEER, ANNOUNCE, GET, the external address: what is granted is what the packets find.
#[test]
fn our_client_with_every_option() {
    let Some((program, network)) = laboratory() else { return };
    let server = PcpServer::start(&network, &program, SUBSCRIBERS_ONLY, GENEROUS);
    let pcp = Pcp::new(&network, &program);
    let other = |line: &str| pcp.json_of(Host::Other, line);
    let granted = |document: &Value, port: u16| {
        assert_eq!(
            (&document["outcome"], &document["spoken"]),
            (&json!("granted"), &json!("PCP")),
            "{document:#}"
        );
        assert_eq!(
            document["mapping"]["external"],
            json!({ "address": EXTERNAL, "port": port }),
            "{document:#}"
        );
    };
    let names = |document: &Value| -> Vec<String> {
        let options = document["options"].as_array().expect("a list");
        options.iter().map(|option| option["name"].as_str().unwrap_or("?").to_owned()).collect()
    };

    let announce = other("announce");
    assert_eq!((&announce["outcome"], &announce["result"]["name"]), (&json!("alive"), &json!("SUCCESS")));
    assert_eq!(announce["datagrams"][1]["octets"].as_str().expect("text").len(), 48, "a header");
    assert_eq!(other("external")["external_address"], EXTERNAL.to_string());
    assert_eq!(other("external --protocol nat-pmp")["external_address"], EXTERNAL.to_string());
    assert_eq!(server.mappings(), [] as [Value; 0], "the question leaves nothing behind");
    let nothing = other("get");
    assert_eq!(nothing["outcome"], "listed", "{nothing:#}");
    assert_eq!(nothing["mappings"], json!([]));

    // PREFER_FAILURE, DESCRIPTION, FILTER, an option that nobody knows: enforced, told, kept.
    let _listener = BOTH.map(|protocol| listener(&network, Host::Other, protocol, 7000));
    let map = other(&format!(
        "map tcp 7000 7100 --lifetime 300 --nonce {NONCE} --prefer-failure --description four --filter 198.51.100.0/24 \
         --option 224:01020304 --prefix64"
    ));
    granted(&map, 7100);
    assert_eq!((&map["lifetime"], &map["mapping"]["nonce"]), (&json!(300), &json!(NONCE)));
    assert_eq!(names(&map), ["PREFER_FAILURE", "FILTER", "DESCRIPTION"], "{map:#}");
    reaches(&network, TCP, 7100, "other");
    let listed = server.mappings();
    assert_eq!(
        (&listed[0]["description"], &listed[0]["filters"]),
        (&json!("four"), &json!(["198.51.100.0/24"]))
    );
    // RFC 6887 §13.3: filters add up; one message drops those before and sets others.
    let only = format!("map tcp 7000 7100 --nonce {NONCE} --reset-filters --filter 203.0.113.9");
    granted(&other(&only), 7100);
    reaches_nobody(&network, TCP, 7100);
    granted(&other(&format!("map tcp 7000 7100 --nonce {NONCE} --filter {INTERNET}")), 7100);
    reaches(&network, TCP, 7100, "other");
    granted(&other(&format!("map tcp 7000 7100 --nonce {NONCE} --reset-filters")), 7100);
    assert_eq!(server.mappings()[0]["filters"], json!([]));
    let strict = pcp.json_of(Host::Router, "map tcp 7000 7100 --prefer-failure");
    assert_eq!((&strict["outcome"], &strict["exit_code"]), (&json!("refused"), &json!(REFUSED)));
    assert_eq!(strict["result"]["name"], "CANNOT_PROVIDE_EXTERNAL");

    // PORT_SET: each of its ports.
    let set = other(&format!("map udp 7000 7200 --nonce {NONCE} --port-set 4 --port-set-parity"));
    granted(&set, 7200);
    assert_eq!(
        (&set["options"][0]["size"], &set["options"][0]["first_internal_port"]),
        (&json!(4), &json!(7000))
    );
    let _rest = [7001, 7002, 7003].map(|port| listener(&network, Host::Other, UDP, port));
    (7200..7204).for_each(|port| reaches(&network, UDP, port, "other"));

    // THIRD_PARTY: who may, and for whom.
    let _third = listener(&network, Host::Router, TCP, 7000);
    let third = other(&format!("map tcp 7000 7300 --nonce {NONCE} --third-party {ROUTER_WAN}"));
    granted(&third, 7300);
    assert_eq!(names(&third), ["THIRD_PARTY"]);
    reaches(&network, TCP, 7300, "router");
    let denied = pcp.json_of(Host::Router, &format!("map tcp 7001 --third-party {OTHER}"));
    assert_eq!(denied["result"]["name"], "UNSUPP_OPTION");

    // GET: one's own, in order, with their options; filtered; a third party's.
    let list = other("get");
    let ports = |list: &Value| -> Vec<(u64, u64)> {
        let mappings = list["mappings"].as_array().expect("a list").iter();
        mappings
            .map(|one| (&one["transport"]["number"], &one["external"]["port"]))
            .map(|(protocol, port)| (protocol.as_u64().expect("a number"), port.as_u64().expect("a number")))
            .collect()
    };
    assert_eq!(ports(&list), [(6, 7300), (6, 7100), (17, 7200)], "by internal address: {list:#}");
    assert!(list["mappings"].as_array().expect("a list").iter().all(|one| one["nonce"] == NONCE));
    assert_eq!(list["mappings"][2]["options"][0]["size"], 4);
    assert_eq!(list["mappings"][1]["options"][0]["text"], "four");
    assert_eq!(ports(&other("get --transport udp")), [(17, 7200)]);
    assert_eq!(ports(&other("get --internal 100.64.0.3:7000")), [(6, 7100), (17, 7200)]);
    assert_eq!(ports(&other("get --external 7300")), [(6, 7300)]);
    assert_eq!(ports(&other(&format!("get --third-party {ROUTER_WAN}"))), [(6, 7300)]);
    assert_eq!(ports(&pcp.json_of(Host::Router, "get")), [], "another's are not told");

    // PEER: the flow to that peer leaves by the port that was granted.
    let peer = other(&format!("peer udp 7500 {INTERNET}:7500 --nonce {NONCE} --lifetime 600"));
    assert_eq!(
        (&peer["outcome"], &peer["mapping"]["remote_peer"]["port"]),
        (&json!("granted"), &json!(7500))
    );
    let port = peer["mapping"]["external"]["port"].as_u64().expect("a number");
    let mut internet = listener(&network, Host::Internet, UDP, 7500);
    let says = |from: u16, word: &str| {
        let mut blast = network.command(Host::Other, PROBE);
        blast
            .args(["udp-blast", &format!("{OTHER}:{from}"), &format!("{INTERNET}:7500")])
            .stdin(Stdio::piped());
        let mut blast = blast.spawn().expect("it runs");
        let line = format!("{}\n", hex(word.as_bytes()));
        blast.stdin.take().expect("piped above").write_all(line.as_bytes()).expect("it reads");
        assert!(blast.wait().expect("it ends").success());
    };
    says(7500, "hi");
    internet.await_log(&format!("{EXTERNAL}:{port} hi"), 5 * SECOND);

    // Wrong nonce, wrong client address; then everything goes, and nothing gets in.
    let foreign = other("delete tcp 7000 --nonce ffffffffffffffffffffffff");
    assert_eq!(foreign["result"]["name"], "NOT_AUTHORIZED");
    let elsewhere = other("map tcp 7009 --client-address 192.0.2.9");
    assert_eq!(elsewhere["result"]["name"], "ADDRESS_MISMATCH");
    for line in [
        format!("delete tcp 7000 --nonce {NONCE}"),
        format!("delete udp 7000 --nonce {NONCE} --port-set 4"),
        format!("delete tcp 7000 --nonce {NONCE} --third-party {ROUTER_WAN}"),
    ] {
        assert_eq!(other(&line)["outcome"], "deleted", "{line}");
    }
    reaches_nobody(&network, TCP, 7100);
    reaches_nobody(&network, UDP, 7203);
    reaches_nobody(&network, TCP, 7300);

    // All ports of a protocol, then everything; only for who shares the external address with nobody (§11.3).
    for (line, protocol) in [("map udp all", UDP), ("map all all", TCP)] {
        let all = other(&format!("{line} --nonce {NONCE}"));
        assert_eq!(
            (&all["outcome"], &all["mapping"]["external"]["port"]),
            (&json!("granted"), &json!(0)),
            "{all:#}"
        );
        let _listener = listener(&network, Host::Other, protocol, 7400);
        reaches(&network, protocol, 7400, "other");
        let line = line.replace("map", "delete");
        assert_eq!(other(&format!("{line} --nonce {NONCE}"))["outcome"], "deleted");
        reaches_nobody(&network, protocol, 7400);
    }

    // A flow that was there first, by a port of its own, since another has this one: PEER and MAP tell where it is (§11.3, §12.3).
    let taken = pcp.json_of(Host::Router, "map udp 7600 7600 --prefer-failure --lifetime 600");
    assert_eq!(taken["outcome"], "granted");
    says(7600, "first");
    let peer = other(&format!("peer udp 7600 {INTERNET}:7500 9999 --nonce {NONCE} --lifetime 600"));
    let port = peer["mapping"]["external"]["port"].as_u64().expect("a number");
    internet.await_log(&format!("{EXTERNAL}:{port} first"), 5 * SECOND);
    let map = other(&format!("map udp 7600 --nonce {NONCE} --lifetime 600"));
    assert_eq!(map["mapping"]["external"]["port"], port);
}

/// `--keep` renews and deletes; `listen` hears a server that starts (RFC 6887 §14.1), and NAT-PMP's announcement beside it (N-13).
#[test]
fn our_client_stays() {
    let Some((program, network)) = laboratory() else { return };
    let mut server = PcpServer::start(&network, &program, SUBSCRIBERS_ONLY, GENEROUS);
    let arguments = ["pcp", "map", "tcp", "7000", "7000", "--lifetime", "8", "--keep"];
    let mut keeping = network.spawn(Host::Other, "keep", &program, arguments);
    keeping.await_log("renewed for 8s", 20 * SECOND);
    let _listener = listener(&network, Host::Other, TCP, 7000);
    reaches(&network, TCP, 7000, "other");

    let arguments = ["pcp", "listen", "--count", "2", "--interface", WAN_INTERFACE, "--json"];
    let mut listening = network.spawn(Host::Router, "listen", &program, arguments);
    eventually("a membership of the group", 5 * SECOND, || {
        network.run(Host::Router, "cat", ["/proc/net/udp"]).contains("010000E0:14E6").then_some(())
    });
    let epoch = server.status()["epoch"].as_u64().expect("a number");
    server.stop();
    reaches_nobody(&network, TCP, 7000);
    server.restart();
    reaches(&network, TCP, 7000, "other");
    assert!(listening.wait(20 * SECOND).success(), "{}", listening.log());
    let heard: Vec<Value> =
        listening.log().lines().map(|line| serde_json::from_str(line).expect("a document")).collect();
    let protocols: Vec<&str> =
        heard.iter().map(|one| one["message"]["protocol"].as_str().expect("text")).collect();
    assert!(protocols.contains(&"PCP") && protocols.contains(&"NAT-PMP"), "{heard:#?}");
    assert!(heard.iter().all(|one| one["peer"] == format!("{PROVIDER}:5351")));
    let now = server.status()["epoch"].as_u64().expect("a number");
    assert!((epoch..epoch + 60).contains(&now), "nothing was lost: {epoch}, then {now}");

    keeping.signal("INT");
    assert!(keeping.wait(10 * SECOND).success(), "{}", keeping.log());
    assert_eq!(server.mappings(), [] as [Value; 0]);
    reaches_nobody(&network, TCP, 7000);
}

/// A port that a program of the server's own machine listens at goes to nobody, for its packets would.
#[test]
fn a_port_of_the_machine_itself_goes_to_nobody() {
    let Some((program, network)) = laboratory() else { return };
    let server = PcpServer::start(&network, &program, SUBSCRIBERS_ONLY, "");
    let pcp = Pcp::new(&network, &program);
    let own = listener(&network, Host::Provider, TCP, 8080);
    let strict = pcp.json_of(Host::Router, "map tcp 8080 8080 --prefer-failure");
    assert_eq!(strict["exit_code"], REFUSED, "{strict:#}");
    assert_eq!(strict["result"]["name"], "CANNOT_PROVIDE_EXTERNAL", "{strict:#}");
    let map = pcp.json_of(Host::Router, "map tcp 8080 8080");
    let port = map["mapping"]["external"]["port"].as_u64().expect("a port");
    assert_ne!(port, 8080, "{map:#}");
    let _listener = listener(&network, Host::Router, TCP, 8080);
    reaches(&network, TCP, u16::try_from(port).expect("a port"), "router");
    // Over UDP it is nobody's.
    let map = pcp.json_of(Host::Router, "map udp 8080 8080");
    assert_eq!(map["mapping"]["external"]["port"], 8080, "{map:#}");
    assert_eq!(server.mappings().len(), 2);
    drop(own);
}

// ── What no client sends ───────────────────────────────────────────────────────────────────────────────────────────

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let octet =
        |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("text"), 16).expect("digits");
    text.as_bytes().chunks(2).map(octet).collect()
}

/// Sends each from a subscriber, and says what was answered.
#[track_caller]
fn exchange(network: &Network, host: Host, datagrams: &[Vec<u8>]) -> Vec<Option<Vec<u8>>> {
    let mut child = network
        .command(host, LOAD)
        .args(["exchange", &format!("{PROVIDER}:5351"), &address(host).to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let lines: String = datagrams.iter().map(|datagram| hex(datagram) + "\n").collect();
    child.stdin.take().expect("piped above").write_all(lines.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).expect("text");
    said.lines().map(|line| (line != "silence").then(|| unhex(line))).collect()
}

/// Sends each as if it came from `source`.
#[track_caller]
fn spoof(network: &Network, host: Host, server: IpAddr, source: IpAddr, datagrams: &[Vec<u8>]) {
    let mut child = network
        .command(host, LOAD)
        .args(["spoof", &format!("{server}:5351"), &source.to_string()])
        .stdin(Stdio::piped())
        .spawn()
        .expect("it runs");
    let lines: String = datagrams.iter().map(|datagram| hex(datagram) + "\n").collect();
    child.stdin.take().expect("piped above").write_all(lines.as_bytes()).expect("it reads");
    assert!(child.wait().expect("it ends").success());
}

/// RFC 6887 §8.2: what the answer to a request is that is refused, `result` and its lifetime in it. `keeps`: what cannot be parsed
/// keeps the end of the client's address.
fn refusal(request: &[u8], result: u8, keeps: bool) -> Vec<u8> {
    let mut answer = request[..request.len().min(1100)].to_vec();
    answer.resize(answer.len().next_multiple_of(4).max(24), 0);
    (answer[0], answer[2], answer[3]) = (2, 0, result);
    answer[1] |= 0x80;
    answer[4..8].copy_from_slice(&1800_u32.to_be_bytes());
    if !keeps {
        answer[12..24].fill(0);
    }
    answer
}

/// What is said about the epoch in an answer of PCP or NAT-PMP, taken out of it.
fn without_epoch(answer: &[u8]) -> (Vec<u8>, Option<u32>) {
    let at = match answer {
        [2, _, _, _, ..] => 8,
        [0, _, 0, 0 | 2, ..] => 4,
        _ => return (answer.to_vec(), None),
    };
    let mut rest = answer.to_vec();
    let epoch: Vec<u8> = rest.splice(at..at + 4, [0; 4]).collect();
    (rest, Some(epoch.iter().fold(0, |epoch, octet| epoch << 8 | u32::from(*octet))))
}

const SILENT: u8 = 0;
const UNSUPP_VERSION: u8 = 1;
const MALFORMED_REQUEST: u8 = 3;
const UNSUPP_OPCODE: u8 = 4;
const UNSUPP_OPTION: u8 = 5;
const MALFORMED_OPTION: u8 = 6;
const UNSUPP_PROTOCOL: u8 = 9;
const ADDRESS_MISMATCH: u8 = 12;

/// RFC 6887 §8.2 in its order, §7.3 (O-1 to O-5), §11.1, §12.1, §13, RFC 7753: the answer to the octet, or silence, and its
/// counter.
#[test]
fn malformed_requests() {
    let Some((program, network)) = laboratory() else { return };
    let itself = "[access]\nthird_party = [\"100.64.0.3 for 100.64.0.3\"]\n";
    let server = PcpServer::start(&network, &program, SUBSCRIBERS_ONLY, itself);
    let client = address(Host::Other);
    let wish = Wish { protocol: TCP, internal_port: 8080, suggested: 9090, lifetime: 3600 };
    let good = pcp_load::map(client, wish);
    let forge = |forge: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        forge(&mut bytes);
        bytes
    };
    let with = |options: &[u8]| [&good[..], options].concat();
    let delete =
        |options: &[u8]| [&pcp_load::map(client, Wish { lifetime: 0, ..wish })[..], options].concat();
    let filter = |len: u8, addr: &str| {
        let addr: IpAddr = addr.parse().expect("an address");
        [&[3, 0, 0, 20, 0, len, 0, 0][..], &pcp_load::mapped(addr)].concat()
    };
    let peer = |remote: &str, port: u16| {
        let remote: IpAddr = remote.parse().expect("an address");
        let mut bytes = forge(&|bytes| bytes[1] = PEER);
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(pcp_load::mapped(remote));
        bytes
    };
    let third = |addr: IpAddr| with(&[&[1, 0, 0, 16][..], &pcp_load::mapped(addr)].concat());
    const PREFER_FAILURE: [u8; 4] = [2, 0, 0, 0];
    let set = |size: u16, first: u16| {
        let [a, b] = size.to_be_bytes();
        let [c, d] = first.to_be_bytes();
        [130, 0, 0, 5, a, b, c, d, 0, 0, 0, 0]
    };
    let announce = |options: &[u8]| [&pcp_load::header(ANNOUNCE, 0, client)[..], options].concat();
    // What, the datagram, the result, whether the answer keeps the client's address (the request cannot be read, the contents of
    // its options included), and the counter.
    let cases: Vec<(&str, Vec<u8>, u8, bool, &str)> = vec![
        ("nothing", vec![], SILENT, false, "too short"),
        ("one octet", vec![2], SILENT, false, "too short"),
        ("R set", forge(&|b| b[1] |= 0x80), SILENT, false, "a response"),
        ("R set, of another version", vec![1, 0x81], SILENT, false, "a response"),
        ("R set, NAT-PMP", vec![0, 0x80], SILENT, false, "a response"),
        ("a response that we might have sent", refusal(&good, 3, false), SILENT, false, "a response"),
        ("short and of another version", vec![1, 1, 0, 0], UNSUPP_VERSION, true, "unsupported version"),
        ("version 1", forge(&|b| b[0] = 1), UNSUPP_VERSION, true, "unsupported version"),
        ("version 3", forge(&|b| b[0] = 3), UNSUPP_VERSION, true, "unsupported version"),
        ("version 255, two octets", vec![255, 1], UNSUPP_VERSION, true, "unsupported version"),
        ("two octets", vec![2, 1], SILENT, false, "without a whole header"),
        ("shorter than a header", good[..23].to_vec(), SILENT, false, "without a whole header"),
        ("1104 octets", forge(&|b| b.resize(1104, 0)), MALFORMED_REQUEST, true, "malformed request"),
        ("1400 octets", forge(&|b| b.resize(1400, 0)), MALFORMED_REQUEST, true, "malformed request"),
        ("no multiple of 4", forge(&|b| b.push(0)), MALFORMED_REQUEST, true, "malformed request"),
        ("25 octets of ANNOUNCE", announce(&[0]), MALFORMED_REQUEST, true, "malformed request"),
        ("shorter than MAP", good[..56].to_vec(), MALFORMED_REQUEST, true, "malformed request"),
        ("a header alone for MAP", good[..24].to_vec(), MALFORMED_REQUEST, true, "malformed request"),
        (
            "shorter than PEER",
            peer("192.0.2.1", 1)[..76].to_vec(),
            MALFORMED_REQUEST,
            true,
            "malformed request",
        ),
        (
            "another address",
            forge(&|b| b[23] ^= 1),
            ADDRESS_MISMATCH,
            false,
            "another client address than the source",
        ),
        (
            "IPv4 only at its end",
            forge(&|b| b[8] = 1),
            ADDRESS_MISMATCH,
            false,
            "another client address than the source",
        ),
        (
            "an address without ffff",
            forge(&|b| b[18..20].fill(0)),
            ADDRESS_MISMATCH,
            false,
            "another client address than the source",
        ),
        (
            "another address, unknown opcode",
            forge(&|b| (b[1], b[23]) = (77, 9)),
            ADDRESS_MISMATCH,
            false,
            "another client address than the source",
        ),
        ("unknown opcode", forge(&|b| b[1] = 77), UNSUPP_OPCODE, false, "unsupported opcode"),
        ("AUTHENTICATION", forge(&|b| b[1] = 3), UNSUPP_OPCODE, true, "unsupported opcode"),
        (
            "GET where it is off",
            forge(&|b| (b[1], _) = (GET, b.resize(64, 0))),
            UNSUPP_OPCODE,
            false,
            "unsupported opcode",
        ),
        ("O-1: option beyond the end", with(&[3, 0, 0, 20]), MALFORMED_OPTION, true, "malformed option"),
        (
            "O-1: optional option beyond the end",
            with(&[200, 0, 0, 1]),
            MALFORMED_OPTION,
            true,
            "malformed option",
        ),
        (
            "O-1: broken behind an unknown one",
            with(&[100, 0, 0, 0, 3, 0, 0, 20]),
            MALFORMED_OPTION,
            true,
            "malformed option",
        ),
        ("O-2: unknown mandatory option", with(&[100, 0, 0, 0]), UNSUPP_OPTION, false, "unsupported option"),
        (
            "O-2: THIRD_PARTY that is not allowed",
            third(address(Host::Router)),
            UNSUPP_OPTION,
            false,
            "third party not allowed",
        ),
        (
            "O-2: THIRD_PARTY of 15 octets",
            with(&[&[1, 0, 0, 15][..], &[0; 16]].concat()),
            MALFORMED_OPTION,
            true,
            "malformed option",
        ),
        (
            "§13.1: THIRD_PARTY is the source",
            third(client),
            MALFORMED_REQUEST,
            false,
            "third party is the source",
        ),
        (
            "O-2: PREFER_FAILURE with data",
            with(&[2, 0, 0, 4, 0, 0, 0, 0]),
            MALFORMED_OPTION,
            true,
            "malformed option",
        ),
        (
            "§13.2: PREFER_FAILURE without a port",
            forge(&|b| (b[42..44].fill(0), b.extend(PREFER_FAILURE)).1),
            MALFORMED_OPTION,
            false,
            "malformed option",
        ),
        (
            "O-4: PREFER_FAILURE twice",
            with(&[PREFER_FAILURE, PREFER_FAILURE].concat()),
            MALFORMED_OPTION,
            true,
            "malformed option",
        ),
        (
            "O-5: PREFER_FAILURE in a delete",
            delete(&PREFER_FAILURE),
            MALFORMED_OPTION,
            false,
            "malformed option",
        ),
        (
            "§13.2: PREFER_FAILURE in PEER",
            [&peer("192.0.2.1", 1)[..], &PREFER_FAILURE].concat(),
            MALFORMED_REQUEST,
            false,
            "malformed request",
        ),
        (
            "§13.3: IPv4 prefix below 96",
            with(&filter(95, "192.0.2.1")),
            MALFORMED_OPTION,
            true,
            "malformed option",
        ),
        (
            "§13.3: prefix above 128",
            with(&filter(129, "192.0.2.1")),
            MALFORMED_OPTION,
            true,
            "malformed option",
        ),
        (
            "§13.3: of the other family",
            with(&filter(32, "2001:db8::")),
            MALFORMED_OPTION,
            false,
            "malformed option",
        ),
        (
            "O-5: FILTER in a delete",
            delete(&filter(128, "192.0.2.1")),
            MALFORMED_OPTION,
            false,
            "malformed option",
        ),
        ("RFC 7753: a set of none", with(&set(0, 8080)), MALFORMED_OPTION, true, "malformed option"),
        ("RFC 7753: another first port", with(&set(4, 8081)), MALFORMED_OPTION, false, "malformed option"),
        (
            "RFC 7753: twice",
            with(&[set(4, 8080), set(4, 8080)].concat()),
            MALFORMED_OPTION,
            true,
            "malformed option",
        ),
        (
            "RFC 7753: with PREFER_FAILURE",
            with(&[&set(4, 8080)[..], &PREFER_FAILURE].concat()),
            MALFORMED_OPTION,
            false,
            "malformed option",
        ),
        (
            "§11.1: protocol 0 and a port",
            forge(&|b| b[36] = 0),
            MALFORMED_REQUEST,
            false,
            "malformed request",
        ),
        (
            "§11.3: all ports, where they are off",
            forge(&|b| b[40..42].fill(0)),
            UNSUPP_PROTOCOL,
            false,
            "unsupported protocol",
        ),
        (
            "§11.3: all protocols, where they are off",
            forge(&|b| (b[36], _) = (0, b[40..42].fill(0))),
            UNSUPP_PROTOCOL,
            false,
            "unsupported protocol",
        ),
        ("§11.3: ICMP", forge(&|b| b[36] = 1), UNSUPP_PROTOCOL, false, "unsupported protocol"),
        ("§12.1: PEER without a port", peer("192.0.2.1", 0), MALFORMED_REQUEST, false, "malformed request"),
        (
            "§12.1: PEER of the other family",
            peer("2001:db8::1", 1),
            MALFORMED_REQUEST,
            false,
            "malformed request",
        ),
        (
            "ANNOUNCE with a mandatory option",
            announce(&PREFER_FAILURE),
            UNSUPP_OPTION,
            false,
            "unsupported option",
        ),
    ];
    let datagrams: Vec<Vec<u8>> = cases.iter().map(|(_, datagram, ..)| datagram.clone()).collect();
    // Fifty in a second from one subscriber, and some at once.
    let mut answers = Vec::new();
    for part in datagrams.chunks(20) {
        answers.extend(exchange(&network, Host::Other, part));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(answers.len(), cases.len());
    let (mut counted, mut wrong) = (std::collections::BTreeMap::<&str, u64>::new(), Vec::new());
    for ((what, datagram, result, keeps, counter), answer) in cases.iter().zip(answers) {
        *counted.entry(counter).or_default() += 1;
        let expected = (*result != SILENT).then(|| refusal(datagram, *result, *keeps));
        let (answer, epoch) = answer.map(|answer| without_epoch(&answer)).unzip();
        let expected = expected.map(|expected| without_epoch(&expected).0);
        if answer != expected {
            wrong.push(format!(
                "{what}\n  {:?}\n  {:?}",
                answer.map(|it| hex(&it)),
                expected.map(|it| hex(&it))
            ));
        }
        assert!(epoch.flatten().is_none_or(|epoch| epoch < 120), "{what}");
    }
    assert!(wrong.is_empty(), "answered, and expected:\n{}", wrong.join("\n"));
    assert_eq!(server.status()["refused"], json!(counted), "each counted once");
    assert_eq!(server.mappings(), [] as [Value; 0], "O-6");
}

/// RFC 6886 (N-1, N-2, N-8, N-9, N-10), to the octet.
#[test]
fn malformed_nat_pmp() {
    let Some((program, network)) = laboratory() else { return };
    let server = PcpServer::start(&network, &program, SUBSCRIBERS_ONLY, "");
    let addr = hex(&EXTERNAL.octets());
    let cases: Vec<(&str, &str, Option<String>)> = vec![
        ("external address", "0000", Some(format!("0080000000000000{addr}"))),
        ("and octets behind it", "0000ffff", Some(format!("0080000000000000{addr}"))),
        ("N-2: unknown opcode", "0003", Some("00830005".to_owned())),
        ("N-2: unknown opcode, returned whole", "007f010203040506", Some("00ff000503040506".to_owned())),
        ("N-2: a response", "0080", None),
        ("N-2: a response to a map request", "008200000000006400501f9000000e10", None),
        ("a map request cut short", "0001000000500050000000", None),
        (
            "N-9: port 0, and not a delete",
            "0001000000000c3800000e10",
            Some("00810002000000000000000000000000".to_owned()),
        ),
        (
            "N-9: delete all, of which there are none",
            "000100000000000000000000",
            Some("00810000000000000000000000000000".to_owned()),
        ),
        (
            "N-8: a delete of what is not there",
            "000200001f90ffff00000000",
            Some("0082000000000000 1f90000000000000".replace(' ', "")),
        ),
    ];
    let datagrams: Vec<Vec<u8>> = cases.iter().map(|(_, datagram, _)| unhex(datagram)).collect();
    let answers = exchange(&network, Host::Other, &datagrams);
    assert_eq!(answers.len(), cases.len());
    for ((what, _, expected), answer) in cases.iter().zip(answers) {
        let answer = answer.map(|answer| hex(&without_epoch(&answer).0));
        assert_eq!(answer, *expected, "{what}");
    }
    let counted = json!({ "unsupported opcode": 2, "a response": 2, "without a whole header": 1, "malformed request": 1 });
    assert_eq!(server.status()["refused"], counted);
    assert_eq!(server.mappings(), [] as [Value; 0]);
}

/// RFC 6887 §8.2 (step 1 and the address check), §18.1; N-3, N-4: who is nobody's subscriber, who says to be somebody else, and who
/// has another's nonce. All of it is counted, and another's mapping stays as it is.
#[test]
fn somebody_elses_requests() {
    let Some((program, network)) = laboratory() else { return };
    network.run(
        Host::Provider,
        "sysctl",
        ["-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.cust0.rp_filter=0"],
    );
    let server = PcpServer::start(&network, &program, SUBSCRIBERS_ONLY, "");
    let pcp = Pcp::new(&network, &program);
    let map = pcp.json_of(Host::Router, &format!("map tcp 8080 8080 --nonce {NONCE} --lifetime 600"));
    assert_eq!(map["outcome"], "granted");
    let _listener = listener(&network, Host::Router, TCP, 8080);
    let before = server.mappings();
    let unchanged = |what: &str| {
        let same = |mappings: Vec<Value>| -> Vec<Value> {
            mappings
                .into_iter()
                .map(|mut mapping| {
                    mapping["left"] = json!(0);
                    mapping
                })
                .collect()
        };
        assert_eq!(same(server.mappings()), same(before.clone()), "{what}");
        reaches(&network, TCP, 8080, "router");
    };

    // From the Internet, to each address of the server: nobody hears it there.
    network.run(
        Host::Internet,
        "ip",
        ["route", "add", "100.64.0.0/24", "via", &PROVIDER_INTERNET.to_string()],
    );
    let received = server.status()["received"].as_u64().expect("a number");
    for to in [PROVIDER, PROVIDER_INTERNET, EXTERNAL] {
        for datagram in [pcp_load::header(ANNOUNCE, 0, INTERNET.into()), vec![0, 0]] {
            let mut probe = network.command(Host::Internet, PROBE);
            let output = probe.args(["udp-exchange", &format!("{to}:5351"), &hex(&datagram), "500"]).output();
            let output = output.expect("it runs");
            assert!(!output.status.success(), "{to}: {}", netns::text(&output));
        }
    }
    // And with a subscriber's source, which no filter of the network stops here.
    let delete = {
        let mut bytes = pcp_load::map(
            ROUTER_WAN.into(),
            Wish { protocol: TCP, internal_port: 8080, suggested: 0, lifetime: 0 },
        );
        bytes[24..36].copy_from_slice(&unhex(NONCE));
        bytes
    };
    spoof(&network, Host::Internet, PROVIDER.into(), ROUTER_WAN.into(), std::slice::from_ref(&delete));
    // To each of three addresses two, and the one that was made up.
    let strangers = server.refused("by an outside interface");
    assert_eq!(strangers, 3 * 2 + 1);
    assert_eq!(server.status()["received"], received + strangers);
    unchanged("from the Internet");

    // By the subscribers' interface, from somewhere else, or from no host at all.
    let sources = ["192.0.2.9", "100.64.1.3", "198.51.100.20", "224.0.0.1", "0.0.0.0", "255.255.255.255"];
    for source in sources {
        let source: IpAddr = source.parse().expect("an address");
        spoof(
            &network,
            Host::Other,
            PROVIDER.into(),
            source,
            &[pcp_load::header(ANNOUNCE, 0, source), vec![0, 0]],
        );
    }
    // The kernel itself takes no packet from a group or from everybody.
    let counted = eventually("the datagrams from elsewhere", 5 * SECOND, || {
        let refused = server.refused("not from a subscriber");
        (refused >= 6).then_some(refused)
    });
    assert!((6..=12).contains(&counted), "{counted}");

    // Another client's address inside a packet of one's own, for each opcode that can change something.
    let foreign = [delete.clone(), [&pcp_load::header(PEER, 600, ROUTER_WAN.into())[..], &[1; 56]].concat()];
    let answers = exchange(&network, Host::Other, &foreign);
    for (request, answer) in foreign.iter().zip(&answers) {
        let answer = answer.as_ref().map(|answer| without_epoch(answer).0);
        assert_eq!(answer, Some(without_epoch(&refusal(request, ADDRESS_MISMATCH, false)).0));
    }
    assert_eq!(server.refused("another client address than the source"), 2);

    // The owner's address and another nonce: RFC 6887 §11.3; the answer goes to the owner.
    let stolen: Vec<Vec<u8>> = [0, 60, 86_400]
        .map(|lifetime| {
            pcp_load::map(
                ROUTER_WAN.into(),
                Wish { protocol: TCP, internal_port: 8080, suggested: 0, lifetime },
            )
        })
        .to_vec();
    spoof(&network, Host::Other, PROVIDER.into(), ROUTER_WAN.into(), &stolen);
    eventually("the refusals", 5 * SECOND, || (server.refused("another's nonce") == 3).then_some(()));
    let own = exchange(&network, Host::Router, &stolen);
    for answer in own.iter().flatten() {
        assert_eq!(answer[..4], [2, MAP | 0x80, 0, 2], "NOT_AUTHORIZED");
        let lifetime = u32::from_be_bytes(answer[4..8].try_into().expect("four"));
        assert!((500..=600).contains(&lifetime), "as long as the mapping has left: {lifetime}");
    }
    assert_eq!((own.iter().flatten().count(), server.refused("another's nonce")), (3, 6));
    // NAT-PMP cannot shorten or delete it either (N-8).
    let natpmp = exchange(&network, Host::Router, &[unhex("000200001f90000000000000")]);
    assert_eq!(natpmp[0].as_ref().map(|answer| answer[..4].to_vec()), Some(vec![0, 0x82, 0, 2]));
    assert_eq!(server.refused("made by other means"), 1);
    // A response is no request, wherever it comes from.
    let mut response =
        pcp_load::map(OTHER.into(), Wish { protocol: TCP, internal_port: 1, suggested: 1, lifetime: 60 });
    response[1] |= 0x80;
    assert_eq!(exchange(&network, Host::Other, &[response]), [None]);
    assert_eq!(server.refused("a response"), 1);
    unchanged("in the end");
    assert_eq!(answer_to(&network, Host::Internet, TCP, 8081, Duration::from_millis(300)), None);
}

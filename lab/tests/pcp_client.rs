//! `portferry pcp …` against Debian's miniupnpd, in network namespaces: a PCP and NAT-PMP server that others wrote. Needs root.
//!
//! ```text
//! cargo build -p portferry && cargo test -p lab --test pcp_client
//! ```

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use common::pcp::Pcp;
use common::{CASCADED, SECOND, TCP, UDP, subject};
use lab::capture::Capture;
use lab::netns::{
    ACCESS_INTERFACE, EXTERNAL, Host, INTERNET, Network, OTHER, PROVIDER, PROVIDER_ACCESS, ROUTER_WAN,
    WAN_INTERFACE,
};
use lab::provider::{Options, Provider};
use lab::subject::Subject;
use lab::wait::eventually;
use serde_json::Value;

const NONCE: &str = "000102030405060708090a0b";
const OTHER_NONCE: &str = "ffffffffffffffffffffffff";

/// Exit codes of the help.
const NOBODY: i32 = 69;
const REFUSED: i32 = 75;
const NOT_AS_ASKED: i32 = 76;

/// The program that is tested, or `None` (after saying so) where there is no laboratory or it is another's.
fn program() -> Option<PathBuf> {
    match subject()? {
        Subject::Portferry(program) => Some(program),
        Subject::Miniupnpd => {
            common::skipped("the subject has no PCP client");
            None
        }
    }
}

/// RFC 6887 §14.1, §11, §15: the default router is asked, by its kernel's routes.
#[test]
fn announce_map_and_delete() {
    let Some(program) = program() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let pcp = Pcp::new(&network, &program);

    let announce = pcp.does("announce");
    assert!(announce.contains(&format!("asking {PROVIDER}:5351 from {ROUTER_WAN}:")), "{announce}");
    assert!(announce.contains("< PCP ANNOUNCE SUCCESS, epoch "), "{announce}");

    let map = pcp.does(&format!("map tcp 8080 8080 --lifetime 600 --nonce {NONCE}"));
    assert!(map.contains(&format!("mapping      TCP {ROUTER_WAN}:8080 -> {EXTERNAL}:8080\n")), "{map}");
    assert!(map.contains("lifetime     600 s (10m 00s)\n"), "{map}");
    assert_eq!(provider.forwarding(TCP, 8080).map(|to| to.to_string()), Some(format!("{ROUTER_WAN}:8080")));

    let wrong = pcp.say(Host::Router, &format!("delete tcp 8080 --nonce {OTHER_NONCE}"));
    assert_eq!(wrong.code, REFUSED, "{}", wrong.out);
    assert!(wrong.errors.contains("NOT_AUTHORIZED (2)"), "{}", wrong.errors);
    assert!(wrong.errors.contains("another nonce") && wrong.errors.contains("--nonce"), "{}", wrong.errors);
    assert!(provider.forwarding(TCP, 8080).is_some(), "it is still there");

    // The line that the client itself suggests.
    let (_, line) = map.split_once("delete with  portferry pcp ").expect("it says how");
    pcp.does(line.trim());
    assert_eq!(provider.forwarding(TCP, 8080), None);
}

/// RFC 6887 §13.2; K-17: miniupnpd answers SUCCESS with another port where it should fail. That is no success.
#[test]
fn prefer_failure() {
    let Some(program) = program() else { return };
    let network = Network::new(CASCADED);
    let rules = "deny 1-1023 0.0.0.0/0 0-65535\nallow 0-65535 0.0.0.0/0 0-65535";
    let provider = Provider::start(&network, Options { rules, ..Options::default() });
    let pcp = Pcp::new(&network, &program);

    let granted = pcp.json("map tcp 8080 8080 --prefer-failure");
    assert_eq!(granted["outcome"], "granted");
    assert_eq!(granted["mapping"]["external"]["port"], 8080);
    assert_eq!(granted["options"][0]["name"], "PREFER_FAILURE");

    let taken = pcp.say(Host::Other, "map tcp 9090 8080 --prefer-failure");
    assert_eq!(taken.code, NOT_AS_ASKED, "{}{}", taken.out, taken.errors);
    assert!(taken.errors.contains("which was given back"), "{}", taken.errors);
    let all = provider.forwardings();
    assert_eq!(all.iter().filter(|forwarding| forwarding.protocol == TCP).count(), 1, "{all:?}");

    let denied = pcp.json("map tcp 80 80 --prefer-failure");
    assert_eq!((&denied["outcome"], &denied["exit_code"]), (&"refused".into(), &REFUSED.into()));
    let name = &denied["result"]["name"];
    assert!(*name == "CANNOT_PROVIDE_EXTERNAL" || *name == "NOT_AUTHORIZED", "{denied:#}");
    assert!(denied["what_to_do"].as_str().is_some_and(|hint| !hint.is_empty()));
}

/// RFC 6886: external address, mapping, delete.
#[test]
fn nat_pmp() {
    let Some(program) = program() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let pcp = Pcp::new(&network, &program);

    let external = pcp.json("external --protocol nat-pmp");
    assert_eq!(external["external_address"], EXTERNAL.to_string());
    assert_eq!((&external["spoken"], &external["outcome"]), (&"NAT-PMP".into(), &"external".into()));

    let map = pcp.json("map udp 4662 4662 --protocol nat-pmp --lifetime 300");
    assert_eq!((&map["mapping"]["external"]["port"], &map["lifetime"]), (&4662.into(), &300.into()));
    assert_eq!(map["datagrams"][0]["octets"], "00010000123612360000012c");
    assert_eq!(map["datagrams"][1]["message"]["result"]["name"], "SUCCESS");
    assert!(provider.forwarding(UDP, 4662).is_some());

    pcp.does("delete udp 4662 --protocol nat-pmp");
    assert_eq!(provider.forwarding(UDP, 4662), None);
}

/// PCP has no question for the external address: the probe does not stay.
#[test]
fn the_external_address_leaves_nothing_behind() {
    let Some(program) = program() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options::default());
    let pcp = Pcp::new(&network, &program);
    let said = pcp.does("external");
    assert!(said.contains(&format!("external  {EXTERNAL}\n")), "{said}");
    assert_eq!(provider.forwardings(), []);
}

/// What `--hex` shows is what was on the wire, both ways; so is what `--json` has.
#[test]
fn octets_are_those_of_the_wire() {
    let Some(program) = program() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let pcp = Pcp::new(&network, &program);
    let wire = Capture::start(&network, Host::Router, WAN_INTERFACE, "udp port 5351");

    let hex =
        pcp.does(&format!("map tcp 8080 --nonce {NONCE} --description four --option 224:01020304 --hex"));
    let packets = eventually("both datagrams", 5 * SECOND, || {
        let packets = wire.packets();
        (packets.len() == 2).then_some(packets)
    });
    // Indented lines of groups; a message's are together.
    let mut shown = vec![String::new()];
    for line in hex.lines().skip(1).take_while(|line| !line.is_empty()) {
        match line.strip_prefix("           ") {
            Some(groups) => {
                assert!(groups.split(' ').all(|group| group.len() == 8), "groups of four octets: {groups}");
                shown.last_mut().expect("never empty").push_str(&groups.replace(' ', ""));
            }
            None => shown.push(String::new()),
        }
    }
    let digits = |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
    let captured: Vec<_> = packets.iter().map(|packet| digits(&packet.payload)).collect();
    assert_eq!(shown[1..], captured, "{hex}");

    let json = pcp.json("announce");
    let packets = eventually("two more", 5 * SECOND, || {
        let packets = wire.packets();
        (packets.len() == 4).then_some(packets)
    });
    for (datagram, packet) in [(&json["datagrams"][0], &packets[2]), (&json["datagrams"][1], &packets[3])] {
        assert_eq!(datagram["octets"], digits(&packet.payload), "{json:#}");
    }
    assert_eq!(json["source"], packets[2].source.to_string());
    wire.stop();
}

/// RFC 6887 §11.2.1: renewed while it is kept; §15: deleted at the end.
#[test]
fn a_kept_mapping_is_renewed_and_deleted_at_the_end() {
    let Some(program) = program() else { return };
    let network = Network::new(CASCADED);
    let provider = Provider::start(&network, Options { min_lifetime: 6, ..Options::default() });
    let arguments = ["pcp", "map", "tcp", "8080", "8080", "--lifetime", "8", "--keep"];
    let mut keeping = network.spawn(Host::Router, "keep", program, arguments);
    keeping.await_log("held for 8s; next renewal in ", 5 * SECOND);
    assert!(provider.forwarding(TCP, 8080).is_some());
    keeping.await_log("renewed for 8s", 10 * SECOND);
    keeping.signal("INT");
    assert!(keeping.wait(5 * SECOND).success(), "{}", keeping.log());
    assert!(keeping.log().contains("deleted  the mapping is gone"), "{}", keeping.log());
    assert_eq!(provider.forwarding(TCP, 8080), None);
}

/// RFC 6887 §14.1.3: who keeps a mapping hears that the server has lost its state, and asks again within 5 s.
#[test]
fn a_kept_mapping_is_asked_for_again_when_the_server_starts_anew() {
    let Some(program) = program() else { return };
    let network = Network::new(CASCADED);
    let mut provider = Provider::start(&network, Options::default());
    let mut keeping =
        network.spawn(Host::Router, "keep", &program, ["pcp", "map", "tcp", "8080", "8080", "--keep"]);
    keeping.await_log("held for 1h 00m", 5 * SECOND);
    // The epoch has to have advanced by more than the 2 s that clocks may differ.
    let pcp = Pcp::new(&network, &program);
    eventually("an epoch that tells", 15 * SECOND, || {
        pcp.json("announce")["epoch"].as_u64().filter(|epoch| *epoch > 5)
    });
    provider.stop();
    provider.forget();
    assert_eq!(provider.forwarding(TCP, 8080), None);
    provider.restart();
    keeping.await_log("(unasked)", 5 * SECOND);
    keeping.await_log("lost its state", 5 * SECOND);
    keeping.await_log("renewed for 1h 00m", 10 * SECOND);
    assert!(provider.forwarding(TCP, 8080).is_some());
}

/// A server that starts says so to everybody; one that is gone or silent has an exit code.
#[test]
fn announcements_silence_and_closed_ports() {
    let Some(program) = program() else { return };
    let network = Network::new(CASCADED);
    let mut provider = Provider::start(&network, Options::default());
    let pcp = Pcp::new(&network, &program);

    provider.stop();
    let closed = pcp.say(Host::Router, "announce");
    assert_eq!(closed.code, NOBODY);
    assert!(closed.errors.contains("the port is closed"), "{}", closed.errors);

    let arguments = ["pcp", "listen", "--count", "1", "--interface", WAN_INTERFACE, "--json"];
    let mut listening = network.spawn(Host::Router, "listen", &program, arguments);
    // With --json it says nothing before there is something: the kernel knows when it listens.
    eventually("a membership of the group", 5 * SECOND, || {
        network.run(Host::Router, "cat", ["/proc/net/udp"]).contains("010000E0:14E6").then_some(())
    });
    provider.restart();
    assert!(listening.wait(10 * SECOND).success(), "{}", listening.log());
    let heard: Value = serde_json::from_str(&listening.log()).expect("one document");
    assert_eq!((&heard["message"]["kind"], &heard["state"]), (&"response".into(), &"first heard".into()));
    assert_eq!(heard["peer"], format!("{PROVIDER}:5351"));

    provider.freeze();
    let silent = pcp.say(Host::Router, "announce --wait 1.5");
    provider.thaw();
    assert_eq!(silent.code, NOBODY);
    assert!(silent.errors.contains("does not answer (2 tries, 1.5 s)"), "{}", silent.errors);
}

/// What miniupnpd does not have, by its code and with a hint (RFC 6887 §7.4).
#[test]
fn refusals_say_why_and_what_to_do() {
    let Some(program) = program() else { return };
    let network = Network::new(CASCADED);
    let _provider = Provider::start(&network, Options::default());
    let pcp = Pcp::new(&network, &program);
    for (line, code, hint) in [
        ("get", "UNSUPP_OPCODE (4)", "do without"),
        ("map tcp 8080 --third-party 192.168.77.10", "UNSUPP_OPTION (5)", "--third-party"),
        ("map tcp 8080 --option 99:", "UNSUPP_OPTION (5)", "--option"),
        ("map tcp 8080 --client-address 192.0.2.9", "ADDRESS_MISMATCH (12)", "--client-address"),
    ] {
        let said = pcp.say(Host::Router, line);
        assert_eq!(said.code, REFUSED, "{line}\n{}{}", said.out, said.errors);
        assert!(said.errors.contains(code) && said.errors.contains(hint), "{line}\n{}", said.errors);
    }
    let wrong = pcp.say(Host::Router, "map tcp");
    assert_eq!(wrong.code, 64, "{}", wrong.errors);
}

/// RFC 6887 §14.1.3: our own server announces itself from each address that a client may know it by, in IPv6 from the
/// link-local one, too, which is what a default router has.
#[test]
fn a_server_announces_itself_from_all_of_its_addresses() {
    let Some(program) = program() else { return };
    let Some(network) = common::ds_lite::network() else { return };
    let directory = network.directory().join("provider");
    fs::create_dir_all(directory.join("state")).expect("the directory is ours");
    let file = directory.join("pcp-server.toml").display().to_string();
    let configuration = format!(
        "[inside]\ninterfaces = [\"{ACCESS_INTERFACE}\"]\n[outside]\ninterfaces = [\"inet0\"]\n\
         [state]\ndirectory = \"{directory}/state\"\n[control]\nsocket = \"{directory}/control.sock\"\n",
        directory = directory.display()
    );
    fs::write(&file, configuration).expect("the directory is ours");
    let arguments = ["pcp", "listen", "--interface", WAN_INTERFACE, "--json"];
    let listening = network.spawn(Host::Router, "listen", &program, arguments);
    eventually("a membership of the group", 5 * SECOND, || {
        let sockets = network.run(Host::Router, "cat", ["/proc/net/udp6"]);
        sockets.contains("000002FF000000000000000001000000:14E6").then_some(())
    });
    let _server = network.spawn(Host::Provider, "pcp-server", &program, ["pcp-server", "--config", &file]);
    let heard = eventually("announcements from both addresses", 10 * SECOND, || {
        let log = listening.log();
        let peers: BTreeSet<String> = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|heard| Some(heard["peer"].as_str()?.to_owned()))
            .collect();
        (peers.len() >= 2).then_some(peers)
    });
    assert!(heard.contains(&format!("[{PROVIDER_ACCESS}]:5351")), "{heard:?}");
    assert!(heard.iter().any(|peer| peer.starts_with("[fe80::")), "{heard:?}");
}

/// What miniupnpd does not have, at `portferry pcp-server`: RFC 6887 §12 (PEER), §13.1 (THIRD_PARTY), §13.3 (FILTER), RFC 7753
/// (PORT_SET), RFC 7220 (DESCRIPTION), and the list.
#[test]
fn every_option_at_our_own_server() {
    let Some(program) = program() else { return };
    let network = Network::new(CASCADED);
    // It masquerades by itself.
    network.nft(Host::Provider, "table ip labnat\ndelete table ip labnat\n");
    let directory = network.directory().display().to_string();
    let file = format!("{directory}/pcp-server.toml");
    let configuration = format!(
        "[inside]\ninterfaces = [\"cust0\"]\n[outside]\ninterfaces = [\"inet0\"]\naddresses = [\"{EXTERNAL}\"]\n\
         [mappings]\nlist = true\n[access]\nthird_party = [\"{ROUTER_WAN} for {OTHER}\"]\n\
         [state]\ndirectory = \"{directory}/state\"\n[control]\nsocket = \"{directory}/control.sock\"\n"
    );
    fs::write(&file, configuration).expect("the directory is ours");
    let mut server = network.spawn(Host::Provider, "pcp-server", &program, ["pcp-server", "--config", &file]);
    server.await_log("serves PCP", 60 * SECOND);
    let pcp = Pcp::new(&network, &program);
    let names = |document: &Value| -> Vec<String> {
        let options = document["options"].as_array().expect("a list");
        options.iter().filter_map(|option| option["name"].as_str().map(str::to_owned)).collect()
    };

    let filtered = format!("map tcp 8080 8080 --nonce {NONCE} --description web");
    let map = pcp.json(&format!("{filtered} --filter {INTERNET} --filter 203.0.113.0/24,443"));
    assert_eq!((&map["outcome"], &map["notes"]), (&"granted".into(), &Value::Array(vec![])), "{map:#}");
    assert_eq!(names(&map), ["FILTER", "FILTER", "DESCRIPTION"]);
    assert_eq!(map["options"][1]["filter"], "203.0.113.0/24 port 443");
    let map = pcp.json(&format!("{filtered} --reset-filters --filter 203.0.113.9"));
    assert_eq!(names(&map), ["FILTER", "FILTER", "DESCRIPTION"], "{map:#}");
    let many: String = (1..=33).map(|host| format!(" --filter 203.0.113.{host}")).collect();
    let refused = pcp.say(Host::Router, &format!("{filtered}{many}"));
    assert!(refused.errors.contains("EXCESSIVE_REMOTE_PEERS (13)"), "{}", refused.errors);

    let set = pcp.does("map udp 5000 5000 --port-set 4");
    assert!(set.contains(&format!("-> {EXTERNAL}:5000, 4 ports from these on\n")), "{set}");
    let third = pcp.does(&format!("map tcp 81 8181 --third-party {OTHER}"));
    assert!(third.contains(&format!("mapping      TCP {OTHER}:81 -> {EXTERNAL}:8181\n")), "{third}");
    let listed = |all: Value| {
        let all = all["mappings"].as_array().expect("a list").clone();
        all.iter().map(|one| one["external"]["port"].as_u64().expect("a port")).collect::<BTreeSet<_>>()
    };
    assert_eq!(listed(pcp.json("get")), BTreeSet::from([5000, 8080, 8181]), "all that we have made");
    assert_eq!(listed(pcp.json(&format!("get --third-party {OTHER}"))), BTreeSet::from([8181]));
    // The lines that the client itself suggests.
    for said in [set, third] {
        let (_, line) = said.split_once("delete with  portferry pcp ").expect("it says how");
        pcp.does(line.trim());
    }
    assert_eq!(listed(pcp.json("get")), BTreeSet::from([8080]));
    assert!(listed(pcp.json(&format!("get --third-party {OTHER}"))).is_empty());

    let peer = pcp.json(&format!("peer udp 6000 {INTERNET}:443 --lifetime 120"));
    assert_eq!(peer["outcome"], "granted", "{peer:#}");
    assert_eq!(peer["mapping"]["remote_peer"]["address"], INTERNET.to_string());
    assert_eq!(peer["mapping"]["external"]["address"], EXTERNAL.to_string());
}

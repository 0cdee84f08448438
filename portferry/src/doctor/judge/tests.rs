//! A healthy network, and what one thing after the other makes of it: a row for each fault and each warning.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::config::{Integrate, NatMode};
use crate::doctor::facts::{
    Bridge, Candidate, Client, ControlPoint, Gateway, Granted, Holder, Igd, Leaving, NatPmpSays, Neighbour,
    Origin, PcpSays, Port, Probe, Role, Says, Setup, Unread, UplinkFacts, UplinkSetup,
};
use crate::doctor::finding::Verdict;
use crate::doctor::ids;
use crate::firewall::{Foreign, State};
use crate::netlink::{DefaultRoute, Interface, Snapshot};
use crate::nft::reading::{
    Base, Chain, Compare, Element, Family, Load, Ruleset, Set, Step, TableName, Verdict as Decides,
};

fn interface(index: u32, name: &str, address: &str) -> Interface {
    let addresses = match address.split_once('/') {
        Some((addr, len)) => vec![(addr.parse().unwrap(), len.parse().unwrap())],
        None => vec![],
    };
    Interface { index, name: name.to_owned(), up: true, addresses, mac: None }
}

fn table(family: Family, name: &str) -> TableName {
    TableName { family, name: name.to_owned() }
}

/// A base chain of type filter at a hook.
fn filter(table: TableName, name: &str, hook: u32, drops: bool) -> Chain {
    let base = Some(Base { hook, priority: 0, kind: "filter".to_owned(), drops });
    Chain { table, name: name.to_owned(), base, rules: Vec::new() }
}

fn masquerading() -> Chain {
    let base = Some(Base { hook: 4, priority: 100, kind: "nat".to_owned(), drops: false });
    Chain {
        table: table(Family::Ip, "nat"),
        name: "POSTROUTING".to_owned(),
        base,
        rules: vec![vec![
            Step::Load { to: 0, len: 16, what: Load::Meta(7) },
            Step::Compare { from: 0, how: Compare::Equal, value: b"wan0\0".to_vec() },
            Step::Masquerade,
        ]],
    }
}

/// Our rule, as it is read.
fn accepts_mark(bit: u32) -> Vec<Step> {
    let bit = bit.to_ne_bytes().to_vec();
    vec![
        Step::Load { to: 0, len: 4, what: Load::Meta(3) },
        Step::Mask { from: 0, to: 0, mask: bit.clone(), xor: vec![0; 4] },
        Step::Compare { from: 0, how: Compare::Equal, value: bit },
        Step::Verdict(Decides::Accept),
    ]
}

fn accepts_answers() -> Vec<Step> {
    vec![
        Step::Load { to: 0, len: 4, what: Load::Conntrack(0) },
        Step::Mask { from: 0, to: 0, mask: 2_u32.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Step::Compare { from: 0, how: Compare::Unequal, value: vec![0; 4] },
        Step::Verdict(Decides::Accept),
    ]
}

fn status() -> serde_json::Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"), "nat": "nftables",
        "lan": [{ "name": "br-lan", "addresses": ["192.168.77.1"] }],
        "wan": { "name": "wan0", "addresses": ["100.64.0.2"] },
        "server": "100.64.0.1:5351", "servers": ["100.64.0.1:5351"], "protocol": "PCP", "uplink": "answering",
        "last_heard": 3, "epoch": 9, "external_address": "203.0.114.1", "uptime": 60, "mappings": 1, "held": 0,
        "ignored_upstream": 0, "ignored_ssdp": 0, "searches": 4, "own_searches": 0, "system_update_id": 1,
    })
}

fn mapping() -> serde_json::Value {
    json!({
        "protocol": "TCP", "external": "203.0.114.1:9090", "nat_port": 8080, "internal": "192.168.77.10:8080",
        "remote_host": null, "remote_name": null, "description": "", "age": 1, "lease_left": 3000, "lifetime_left": 3000,
        "state": "active",
    })
}

/// One more uplink, as healthy as the first.
fn second(facts: &mut Facts, role: Role) {
    let first = facts.setup.uplinks[0].clone();
    facts.setup.uplinks.push(UplinkSetup { interface: "wg0".to_owned(), role, ..first });
    facts.links.interfaces.push(interface(9, "wg0", "10.8.0.2/24"));
    facts.uplinks.push(facts.uplinks[0].clone());
    // It is translated as the first is.
    let mut chain = masquerading();
    chain.rules[0][1] = Step::Compare { from: 0, how: Compare::Equal, value: b"wg0\0".to_vec() };
    chain.rules.push(masquerading().rules.remove(0));
    rules(facts).retain(|chain| chain.name != "POSTROUTING");
    rules(facts).push(chain);
}

/// A host of this prefix is bound to the second uplink.
fn astray(prefix: &str, leaves_by: Option<&str>) -> Leaving {
    Leaving {
        prefix: prefix.parse().unwrap(),
        host: "192.168.77.11".parse().unwrap(),
        bound_to: "wg0".to_owned(),
        interface: leaves_by.map(str::to_owned),
    }
}

fn healthy() -> Facts {
    let ports = Set {
        key_len: 8,
        elements: vec![Element {
            key: vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0],
            key_end: None,
            ends: false,
            value: None,
            verdict: None,
        }],
        ..Set::default()
    };
    let own = table(Family::Inet, "portferry");
    Facts {
        setup: Setup {
            lan: vec!["br-lan".to_owned()],
            http_port: 5431,
            pcp: true,
            igd: true,
            mark: 0,
            integrate: Integrate::None,
            uplinks: vec![UplinkSetup {
                interface: "wan0".to_owned(),
                servers: vec!["100.64.0.1:5351".parse().unwrap()],
                nat: NatMode::Nftables,
                table: "portferry".to_owned(),
                role: Role::Usual,
            }],
        },
        gateway: Gateway::Running {
            status: Box::new(serde_json::from_value(status()).unwrap()),
            mappings: vec![serde_json::from_value(mapping()).unwrap()],
            own_searches: Some((0, 2)),
        },
        links: Snapshot {
            other_default_routes: Vec::new(),
            interfaces: vec![
                interface(1, "lo", "127.0.0.1/8"),
                interface(2, "wan0", "100.64.0.2/24"),
                interface(3, "br-lan", "192.168.77.1/24"),
                interface(4, "wan1", ""),
            ],
            default_routes: vec![DefaultRoute {
                interface: 2,
                gateway: Some("100.64.0.1".parse().unwrap()),
                is_ipv6: false,
                metric: 0,
                table: 254,
            }],
        },
        ports: [
            ("wan0".to_owned(), Port { multicast: true, forwarding: Some(true), bridge: None }),
            (
                "br-lan".to_owned(),
                Port {
                    multicast: true,
                    forwarding: Some(true),
                    bridge: Some(Bridge { snooping: true, querier: false }),
                },
            ),
        ]
        .into(),
        rules: Ok(Ruleset {
            chains: vec![masquerading()],
            sets: [((own, "ports".to_owned()), ports)].into(),
        }),
        foreign: Vec::new(),
        legacy: vec![],
        ssdp: vec![Holder { address: IpAddr::from([0; 4]), process: Some((7, "portferry".to_owned())) }],
        http: vec![],
        joined: Some(["br-lan".to_owned()].into()),
        uplinks: vec![UplinkFacts {
            candidates: vec![answering()],
            igd: None,
            probe: Probe::Granted(Granted {
                server: "100.64.0.1:5351".parse().unwrap(),
                protocol: "PCP",
                external: Some("203.0.114.1".parse().unwrap()),
                port: 40_000,
                lifetime: 120,
                third_party: None,
                left: None,
            }),
            prefer_failure: Some(true),
        }],
        leaving: Vec::new(),
        way_out: None,
        neighbours: vec![],
        control_points: vec![control_point("Connected", Some("203.0.114.1"))],
        clients: vec![client(Says::Accepts)],
    }
}

fn client(says: Says) -> Client {
    Client { at: "192.168.77.10:8080".parse().unwrap(), says }
}

fn answering() -> Candidate {
    Candidate {
        server: "100.64.0.1:5351".parse().unwrap(),
        origin: Origin::Configured,
        pcp: Some((1.5, PcpSays::Success)),
        nat_pmp: None,
        closed: false,
        unreachable: None,
    }
}

fn control_point(status: &str, external: Option<&str>) -> ControlPoint {
    let address = [192, 168, 77, 1].into();
    let external = external.map(|addr| addr.parse().unwrap());
    let answer = Some(Igd { address, server: None, status: Some(status.to_owned()), external });
    ControlPoint { interface: "br-lan".to_owned(), address, answer }
}

fn bad(facts: &Facts) -> BTreeSet<&'static str> {
    let findings = judge(facts).into_iter();
    let bad = findings.filter(|finding| matches!(finding.verdict, Verdict::Warning | Verdict::Fault));
    bad.inspect(|finding| assert!(finding.todo.is_some(), "{} says what to do", finding.id))
        .map(|finding| finding.id)
        .collect()
}

fn with_status(facts: &mut Facts, key: &str, value: serde_json::Value) {
    let Gateway::Running { status: own, .. } = &mut facts.gateway else { panic!("it runs") };
    let mut changed = status();
    changed[key] = value;
    **own = serde_json::from_value(changed).unwrap();
}

fn silence(facts: &mut Facts) {
    let uplink = &mut facts.uplinks[0];
    uplink.candidates[0].pcp = None;
    uplink.probe = Probe::Skipped("nobody".to_owned());
}

fn rules(facts: &mut Facts) -> &mut Vec<Chain> {
    &mut facts.rules.as_mut().unwrap().chains
}

fn wan(facts: &mut Facts) -> &mut Interface {
    &mut facts.links.interfaces[1]
}

fn lan(facts: &mut Facts) -> &mut Interface {
    &mut facts.links.interfaces[2]
}

fn address(text: &str) -> Vec<(IpAddr, u8)> {
    vec![(text.parse().unwrap(), 24)]
}

type Change = fn(&mut Facts);

/// What is changed, and the faults and warnings that come of it.
const ROWS: &[(&str, Change, &[&str])] = &[
    ("nothing", |_| {}, &[]),
    (
        "no gateway",
        |facts| {
            facts.gateway = Gateway::NotRunning;
            facts.control_points.clear();
        },
        &["gateway-not-running"],
    ),
    (
        "one that does not answer",
        |facts| {
            facts.gateway = Gateway::Unanswering("timed out".to_owned());
            facts.control_points.clear();
        },
        &["gateway-unanswering"],
    ),
    (
        "its socket is for others",
        |facts| {
            facts.gateway = Gateway::NotAllowed;
            facts.control_points.clear();
            facts.rules = Err(Unread::NotAllowed);
        },
        &[],
    ),
    ("another NAT", |facts| with_status(facts, "nat", json!("none")), &["gateway-other-configuration"]),
    (
        "another server",
        |facts| with_status(facts, "server", json!("100.64.0.9:5351")),
        &["gateway-other-configuration"],
    ),
    (
        "another LAN interface",
        |facts| with_status(facts, "lan", json!([{ "name": "eth7", "addresses": [] }])),
        &["gateway-other-configuration"],
    ),
    ("another version", |facts| with_status(facts, "version", json!("0.0.1")), &[]),
    ("a full file system", |facts| with_status(facts, "store_error", json!("no space")), &["store-error"]),
    (
        "no forwarding",
        |facts| facts.ports.get_mut("br-lan").unwrap().forwarding = Some(false),
        &["forwarding-off"],
    ),
    (
        "forwarding that cannot be seen",
        |facts| facts.ports.values_mut().for_each(|port| port.forwarding = None),
        &[],
    ),
    (
        "no LAN",
        |facts| {
            facts.links.interfaces.remove(2);
            facts.ports.remove("br-lan");
            facts.control_points.clear();
        },
        &["lan-interface-missing"],
    ),
    ("the LAN is down", |facts| lan(facts).up = false, &["lan-interface-down"]),
    ("the LAN has no address", |facts| lan(facts).addresses.clear(), &["lan-address-none"]),
    ("LAN and WAN overlap", |facts| lan(facts).addresses = address("100.64.0.200"), &["lan-wan-overlap"]),
    (
        "no WAN",
        |facts| {
            facts.links.interfaces.remove(1);
            facts.links.default_routes.clear();
        },
        &["wan-interface-missing"],
    ),
    ("the WAN is down", |facts| wan(facts).up = false, &["wan-interface-down"]),
    ("the WAN has no address", |facts| wan(facts).addresses.clear(), &["wan-address-none"]),
    ("the WAN has IPv6 only", |facts| wan(facts).addresses = address("2001:db8::2"), &["wan-address-none"]),
    (
        "nobody gave an address",
        |facts| wan(facts).addresses = address("169.254.1.2"),
        &["wan-address-link-local"],
    ),
    (
        "an address of documents",
        |facts| wan(facts).addresses = address("192.0.2.2"),
        &["wan-address-reserved"],
    ),
    ("a public address", |facts| wan(facts).addresses = address("9.1.1.1"), &[]),
    ("a private address", |facts| wan(facts).addresses = address("10.1.1.1"), &[]),
    (
        "another uplink beside it, without a default route",
        |facts| {
            let first = facts.setup.uplinks[0].clone();
            let other =
                UplinkSetup { interface: "wan1".to_owned(), servers: vec![], role: Role::Spare, ..first };
            facts.setup.uplinks.push(other);
            facts.links.interfaces[3].addresses = address("9.1.1.1");
            facts.uplinks.push(UplinkFacts {
                candidates: vec![],
                igd: None,
                probe: Probe::Skipped("nobody".to_owned()),
                prefer_failure: None,
            });
        },
        &["masquerade-none"],
    ),
    ("no default route", |facts| facts.links.default_routes.clear(), &["default-route-none"]),
    (
        "another default route",
        |facts| facts.links.default_routes[0].interface = 4,
        &["default-route-elsewhere"],
    ),
    (
        "a default route of IPv6 alone",
        |facts| facts.links.default_routes = vec![via("fe80::1", true, 2, 254)],
        &["default-route-none"],
    ),
    ("IPv6 has another way", |facts| facts.links.default_routes.insert(0, via("fe80::1", true, 4, 254)), &[]),
    (
        "a VPN as the WAN, with 0.0.0.0/1 and 128.0.0.0/1",
        |facts| {
            facts.links.default_routes[0].interface = 4;
            facts.way_out = Some("wan0".to_owned());
        },
        &[],
    ),
    (
        "the WAN's default route is in a table of its own",
        |facts| facts.links.other_default_routes = std::mem::take(&mut facts.links.default_routes),
        &[],
    ),
    (
        "a VPN takes what should go by the WAN",
        |facts| facts.way_out = Some("wan1".to_owned()),
        &["default-route-elsewhere"],
    ),
    (
        "a better default route",
        |facts| {
            facts.links.default_routes[0].metric = 100;
            let other = DefaultRoute {
                interface: 4,
                gateway: Some([10, 0, 0, 1].into()),
                is_ipv6: false,
                metric: 0,
                table: 254,
            };
            facts.links.default_routes.insert(0, other);
        },
        &["default-route-elsewhere"],
    ),
    (
        "two servers, one of them silent",
        |facts| {
            let other = Candidate { server: "100.64.0.7:5351".parse().unwrap(), pcp: None, ..answering() };
            facts.uplinks[0].candidates.push(other);
        },
        &["server-configured-silent"],
    ),
    (
        "it speaks NAT-PMP",
        |facts| {
            let candidate = &mut facts.uplinks[0].candidates[0];
            candidate.pcp = Some((1.0, PcpSays::Version(0)));
            candidate.nat_pmp = Some((1.0, NatPmpSays::External([203, 0, 114, 1].into())));
        },
        &[],
    ),
    ("it is slow", |facts| facts.uplinks[0].candidates[0].pcp = Some((1800.0, PcpSays::Success)), &[]),
    (
        "nobody answers",
        |facts| {
            silence(facts);
            with_status(facts, "uplink", json!("silent"));
        },
        &["server-configured-silent", "uplink-none", "gateway-uplink-silent"],
    ),
    (
        "nobody answers who was only guessed at",
        |facts| {
            silence(facts);
            facts.setup.uplinks[0].servers.clear();
            facts.uplinks[0].candidates[0].origin = Origin::Router;
            with_status(facts, "uplink", json!("unknown"));
        },
        &["uplink-none"],
    ),
    (
        "nobody has to answer",
        |facts| {
            silence(facts);
            facts.setup.uplinks[0].servers.clear();
            facts.uplinks[0].candidates[0].origin = Origin::Router;
            wan(facts).addresses = address("9.1.1.1");
            with_status(facts, "protocol", json!("none"));
        },
        &[],
    ),
    (
        "a router without an address",
        |facts| {
            silence(facts);
            facts.setup.uplinks[0].servers.clear();
            facts.uplinks[0].candidates.clear();
            facts.uplinks[0].igd =
                Some(Igd { address: [100, 64, 0, 1].into(), server: None, status: None, external: None });
        },
        &["isp-router-disconnected"],
    ),
    (
        "a refusal",
        |facts| {
            let words = || "words".to_owned();
            facts.uplinks[0].probe =
                Probe::Refused { code: words(), why: words(), todo: words(), third_party: false };
        },
        &["probe-refused"],
    ),
    (
        "no answer to the probe",
        |facts| {
            facts.uplinks[0].probe = Probe::Failed("silence".to_owned());
        },
        &["probe-failed"],
    ),
    (
        "no THIRD_PARTY",
        |facts| {
            facts.setup.uplinks[0].nat = NatMode::None;
            with_status(facts, "nat", json!("none"));
            rules(facts).clear();
            let words = || "words".to_owned();
            facts.uplinks[0].probe =
                Probe::Refused { code: words(), why: words(), todo: words(), third_party: true };
        },
        &["third-party-refused"],
    ),
    (
        "THIRD_PARTY is passed over",
        |facts| {
            facts.setup.uplinks[0].nat = NatMode::None;
            with_status(facts, "nat", json!("none"));
            rules(facts).clear();
            facts.uplinks[0].probe = Probe::NoThirdParty("words".to_owned());
        },
        &["third-party-refused"],
    ),
    ("a NAT above", |facts| with_status(facts, "nat_above", json!("10.2.3.4")), &[]),
    (
        "a NAT above, and no better word",
        |facts| {
            facts.uplinks[0].probe = Probe::Skipped("by UPnP".to_owned());
            with_status(facts, "nat_above", json!("10.2.3.4"));
        },
        &["nat-above"],
    ),
    (
        "the spare line has the default route",
        |facts| {
            second(facts, Role::Spare);
            facts.links.default_routes =
                vec![DefaultRoute { interface: 9, gateway: None, metric: 0, is_ipv6: false, table: 254 }];
        },
        &[],
    ),
    (
        "the spare line is down",
        |facts| {
            second(facts, Role::Spare);
            facts.links.interfaces.pop();
        },
        &[],
    ),
    (
        "a bound host whose traffic goes elsewhere",
        |facts| {
            second(facts, Role::Bound(vec!["192.168.77.11".parse().unwrap()]));
            facts.leaving = vec![astray("192.168.77.11", Some("wan0"))];
        },
        &["bound-host-elsewhere"],
    ),
    (
        "a bound host whose traffic goes nowhere, and no table for it",
        |facts| {
            second(facts, Role::Bound(vec!["192.168.77.11".parse().unwrap()]));
            facts.setup.uplinks[1].table = "portferry-wg0".to_owned();
            facts.leaving = vec![astray("192.168.77.11", None)];
        },
        &["own-nat-missing", "bound-host-elsewhere"],
    ),
    ("the own table is gone", |facts| facts.rules.as_mut().unwrap().sets.clear(), &["own-nat-missing"]),
    ("nobody masquerades", |facts| rules(facts).clear(), &["masquerade-none"]),
    (
        "somebody masquerades",
        |facts| {
            facts.setup.uplinks[0].nat = NatMode::None;
            with_status(facts, "nat", json!("none"));
        },
        &["masquerade-unexpected"],
    ),
    (
        "FORWARD drops",
        |facts| rules(facts).push(filter(table(Family::Ip, "filter"), "FORWARD", 2, true)),
        &["firewall-forward-drops"],
    ),
    (
        "fw4 has no rule of ours",
        |facts| facts.foreign = vec![(Foreign::Fw4, State::Missing), (Foreign::Ufw, State::Absent)],
        &["firewall-rule-missing"],
    ),
    (
        "firewalld keeps its table to itself",
        |facts| facts.foreign = vec![(Foreign::Firewalld, State::Closed)],
        &["firewall-rule-closed"],
    ),
    (
        "fw4 with our rule, where somebody else sets marks, too",
        |facts| {
            facts.setup.mark = 0x2000_0000;
            facts.foreign = vec![(Foreign::Fw4, State::There)];
            let mut marks = filter(table(Family::Inet, "other"), "forward", 2, false);
            marks.rules.push(vec![Step::SetsMark]);
            let mut chain = filter(table(Family::Inet, "fw4"), "forward", 2, true);
            chain.rules.push(accepts_mark(0x2000_0000));
            chain.rules.push(accepts_answers());
            rules(facts).extend([marks, chain]);
        },
        &[],
    ),
    (
        "the same with another bit, which is that somebody's",
        |facts| {
            facts.setup.mark = 0x2000_0000;
            let mut marks = filter(table(Family::Inet, "other"), "forward", 2, false);
            marks.rules.push(vec![Step::SetsMark]);
            let mut chain = filter(table(Family::Inet, "fw4"), "forward", 2, true);
            chain.rules.push(accepts_mark(0x1000_0000));
            chain.rules.push(accepts_answers());
            rules(facts).extend([marks, chain]);
        },
        &["firewall-forward-unclear"],
    ),
    (
        "it may",
        |facts| {
            let mut chain = filter(table(Family::Inet, "mine"), "forward", 2, true);
            chain.rules.push(vec![Step::Unknown("socket".to_owned()), Step::Verdict(Decides::Accept)]);
            rules(facts).push(chain);
        },
        &["firewall-forward-unclear"],
    ),
    (
        "an uplink that nothing passes but what is of the hosts that are bound to it, on one LAN of two",
        |facts| {
            facts.setup.lan.push("guests".to_owned());
            facts.links.interfaces.push(interface(12, "guests", "192.168.88.1/24"));
            facts.joined.as_mut().expect("it was read").insert("guests".to_owned());
            facts.ports.insert("guests".to_owned(), facts.ports["br-lan"].clone());
            second(facts, Role::Bound(vec!["192.168.88.64/26".parse().unwrap()]));
            let load = |what, len| Step::Load { to: 0, len, what };
            let equal = |value: &[u8]| Step::Compare { from: 0, how: Compare::Equal, value: value.to_vec() };
            let mut chain = filter(table(Family::Inet, "mine"), "forward", 2, true);
            for rule in [
                vec![load(Load::Meta(6), 16), equal(b"wan0\0")],
                vec![load(Load::Meta(7), 16), equal(b"wan0\0")],
                vec![
                    load(Load::Meta(6), 16),
                    equal(b"wg0\0"),
                    load(Load::Payload { base: 1, offset: 16 }, 4),
                    Step::Mask { from: 0, to: 0, mask: vec![255, 255, 255, 192], xor: vec![0; 4] },
                    equal(&[192, 168, 88, 64]),
                ],
                vec![
                    load(Load::Meta(7), 16),
                    equal(b"wg0\0"),
                    load(Load::Payload { base: 1, offset: 12 }, 4),
                    Step::Mask { from: 0, to: 0, mask: vec![255, 255, 255, 192], xor: vec![0; 4] },
                    equal(&[192, 168, 88, 64]),
                ],
            ] {
                chain.rules.push([rule, vec![Step::Verdict(Decides::Accept)]].concat());
            }
            let nat = rules(facts).iter_mut().find(|chain| chain.name == "POSTROUTING").unwrap();
            let of_hosts = [load(Load::Payload { base: 1, offset: 12 }, 3), equal(&[192, 168, 88])];
            nat.rules[0].splice(0..0, of_hosts);
            rules(facts).push(chain);
        },
        &[],
    ),
    (
        "some sources are dropped",
        |facts| {
            let mut chain = filter(table(Family::Inet, "mine"), "forward", 2, false);
            chain.rules.push(vec![
                Step::Load { to: 0, len: 1, what: Load::Payload { base: 1, offset: 12 } },
                Step::Compare { from: 0, how: Compare::Equal, value: vec![73] },
                Step::Verdict(Decides::Drop),
            ]);
            rules(facts).push(chain);
        },
        &["firewall-forward-sources"],
    ),
    (
        "a list that has a server that everybody knows",
        |facts| {
            let mut chain = filter(table(Family::Inet, "mine"), "forward", 2, false);
            chain.rules.push(vec![
                Step::Load { to: 0, len: 4, what: Load::Payload { base: 1, offset: 12 } },
                Step::Compare { from: 0, how: Compare::Equal, value: vec![9, 9, 9, 9] },
                Step::Verdict(Decides::Drop),
            ]);
            rules(facts).push(chain);
        },
        &[],
    ),
    (
        "the LAN's answers are dropped",
        |facts| {
            let mut chain = filter(table(Family::Inet, "mine"), "forward", 2, false);
            chain.rules.push(vec![
                Step::Load { to: 0, len: 16, what: Load::Meta(6) },
                Step::Compare { from: 0, how: Compare::Equal, value: b"br-lan\0".to_vec() },
                Step::Verdict(Decides::Drop),
            ]);
            rules(facts).push(chain);
        },
        &["firewall-replies-drop"],
    ),
    (
        "INPUT drops",
        |facts| rules(facts).push(filter(table(Family::Ip, "filter"), "INPUT", 1, true)),
        &["firewall-search-drops", "firewall-http-drops", "firewall-uplink-drops"],
    ),
    (
        "it may drop there",
        |facts| {
            let mut chain = filter(table(Family::Inet, "mine"), "input", 1, true);
            chain.rules.push(vec![Step::Unknown("socket".to_owned()), Step::Verdict(Decides::Accept)]);
            rules(facts).push(chain);
        },
        &["firewall-input-unclear"],
    ),
    (
        "UDP may pass, and TCP does not",
        |facts| {
            let mut chain = filter(table(Family::Inet, "mine"), "forward", 2, true);
            chain.rules.push(vec![
                Step::Load { to: 0, len: 1, what: Load::Meta(16) },
                Step::Compare { from: 0, how: Compare::Equal, value: vec![17] },
                Step::Unknown("socket".to_owned()),
                Step::Verdict(Decides::Accept),
            ]);
            rules(facts).push(chain);
        },
        &["firewall-forward-drops"],
    ),
    ("the older iptables", |facts| facts.legacy = vec!["filter".to_owned()], &["firewall-legacy"]),
    ("the port of searches is not ours", |facts| facts.ssdp.clear(), &["ssdp-port-not-ours"]),
    ("it is somebody's, who cannot be seen", |facts| facts.ssdp[0].process = None, &[]),
    (
        "miniupnpd has it, too",
        |facts| {
            let process = Some((9, "miniupnpd".to_owned()));
            facts.ssdp.push(Holder { address: IpAddr::from([0; 4]), process });
        },
        &["ssdp-port-shared"],
    ),
    (
        "minidlnad has it, too",
        |facts| {
            let process = Some((9, "minidlnad".to_owned()));
            facts.ssdp.push(Holder { address: IpAddr::from([0; 4]), process });
        },
        &[],
    ),
    (
        "the port of requests is taken",
        |facts| {
            facts.gateway = Gateway::NotRunning;
            facts.control_points.clear();
            facts.http.push(Holder { address: IpAddr::from([0; 4]), process: None });
        },
        &["gateway-not-running", "http-port-taken"],
    ),
    (
        "the port of requests is taken on all addresses of both families",
        |facts| {
            facts.gateway = Gateway::NotRunning;
            facts.control_points.clear();
            facts.http.push(Holder { address: IpAddr::from([0; 16]), process: None });
        },
        &["gateway-not-running", "http-port-taken"],
    ),
    (
        "the port of requests is taken elsewhere",
        |facts| {
            facts.gateway = Gateway::NotRunning;
            facts.control_points.clear();
            for address in ["127.0.0.1", "::1", "100.64.0.2"] {
                facts.http.push(Holder { address: address.parse().unwrap(), process: None });
            }
        },
        &["gateway-not-running"],
    ),
    ("no group", |facts| facts.joined = Some(BTreeSet::new()), &["ssdp-group-missing"]),
    ("groups that cannot be seen", |facts| facts.joined = None, &[]),
    (
        "no multicast",
        |facts| facts.ports.get_mut("br-lan").unwrap().multicast = false,
        &["lan-multicast-off"],
    ),
    ("no search yet", |facts| with_status(facts, "searches", json!(0)), &["bridge-snooping-unqueried"]),
    (
        "no search yet, and no snooping",
        |facts| {
            with_status(facts, "searches", json!(0));
            facts.ports.get_mut("br-lan").unwrap().bridge = None;
        },
        &[],
    ),
    (
        "our own search is lost",
        |facts| {
            let Gateway::Running { own_searches, .. } = &mut facts.gateway else { panic!("it runs") };
            *own_searches = Some((2, 2));
        },
        &["search-lost"],
    ),
    (
        "an older gateway, which does not count",
        |facts| {
            with_status(facts, "version", json!("0.0.1"));
            let Gateway::Running { own_searches, .. } = &mut facts.gateway else { panic!("it runs") };
            *own_searches = Some((0, 0));
        },
        &[],
    ),
    (
        "another gateway",
        |facts| {
            facts.neighbours.push(Neighbour {
                interface: "br-lan".to_owned(),
                address: [192, 168, 77, 11].into(),
                location: "http://192.168.77.11/".to_owned(),
                server: Some("another".to_owned()),
            });
        },
        &["other-gateway"],
    ),
    ("no description", |facts| facts.control_points[0].answer = None, &["control-point-http-silent"]),
    (
        "not connected",
        |facts| facts.control_points = vec![control_point("Disconnected", Some("203.0.114.1"))],
        &["control-point-disconnected"],
    ),
    (
        "no address",
        |facts| facts.control_points = vec![control_point("Connected", None)],
        &["control-point-disconnected"],
    ),
    (
        "an address that is refused",
        |facts| facts.control_points = vec![control_point("Connected", Some("198.51.100.7"))],
        &["control-point-address-refused"],
    ),
    ("nobody listens", |facts| facts.clients = vec![client(Says::Refuses)], &["mapping-client-refuses"]),
    (
        "nobody is heard",
        |facts| {
            facts.clients = vec![client(Says::Silent)];
            rules(facts).push(filter(table(Family::Ip, "filter"), "INPUT", 1, true));
        },
        &["firewall-search-drops", "firewall-http-drops", "firewall-uplink-drops"],
    ),
    ("nobody is there", |facts| facts.clients = vec![client(Says::Silent)], &["mapping-client-silent"]),
    (
        "a degraded mapping",
        |facts| {
            let Gateway::Running { mappings, .. } = &mut facts.gateway else { panic!("it runs") };
            mappings[0].state = "degraded".to_owned();
        },
        &["mapping-degraded"],
    ),
    (
        "a mapping without an element",
        |facts| {
            let Gateway::Running { mappings, .. } = &mut facts.gateway else { panic!("it runs") };
            mappings[0].nat_port = Some(8081);
        },
        &["mapping-nat-missing"],
    ),
];

#[test]
fn each_fault_has_its_finding() {
    let mut seen = BTreeSet::new();
    for (what, change, expected) in ROWS {
        let mut facts = healthy();
        change(&mut facts);
        let found = bad(&facts);
        assert_eq!(found, expected.iter().copied().collect(), "{what}");
        seen.extend(found);
    }
    let all = ids::ALL.iter().filter(|known| matches!(known.verdict, Verdict::Warning | Verdict::Fault));
    let without_a_row: Vec<&str> =
        all.map(|known| known.id).filter(|id| !seen.contains(id) && *id != "configuration-bad").collect();
    assert_eq!(without_a_row, [""; 0]);
}

/// portferry can do it by itself, where somebody knows how; what to type is said all the same.
#[test]
fn integration_is_named_first() {
    let advice = |chain: Chain, change: fn(&mut Facts)| {
        let mut facts = healthy();
        rules(&mut facts).push(chain);
        change(&mut facts);
        let finding = judge(&facts).into_iter().find(|finding| finding.id == "firewall-forward-drops");
        let finding = finding.expect("it drops");
        assert!(!finding.commands.is_empty(), "{finding:?}");
        finding.todo.expect("it says what to do").starts_with("set integrate = \"auto\" in [firewall]")
    };
    let fw4 = || filter(table(Family::Inet, "fw4"), "forward", 2, true);
    assert!(advice(fw4(), |_| {}));
    assert!(advice(fw4(), |facts| facts.setup.integrate = Integrate::Ufw));
    assert!(!advice(fw4(), |facts| facts.setup.integrate = Integrate::Auto));
    assert!(!advice(fw4(), |facts| facts.setup.uplinks[0].nat = NatMode::None), "nothing has a mark there");
    assert!(!advice(filter(table(Family::Inet, "mine"), "forward", 2, true), |_| {}));
}

/// What commands name is what was found.
#[test]
fn commands_for_each_firewall() {
    let command = |chains: Vec<Chain>| {
        let mut facts = healthy();
        rules(&mut facts).extend(chains);
        let finding = judge(&facts).into_iter().find(|finding| finding.id == "firewall-forward-drops");
        finding.expect("it drops").commands.join("\n")
    };
    let ip = || table(Family::Ip, "filter");
    let plain = |name: &str| Chain { table: ip(), name: name.to_owned(), base: None, rules: Vec::new() };
    let forward = || filter(ip(), "FORWARD", 2, true);
    for (chains, expected) in [
        (vec![forward()], "iptables -I FORWARD -i wan0 -o br-lan -m conntrack --ctstate DNAT -j ACCEPT"),
        (
            vec![forward(), plain("DOCKER-USER")],
            "iptables -I DOCKER-USER -i wan0 -o br-lan -m conntrack --ctstate DNAT -j ACCEPT",
        ),
        (
            vec![forward(), plain("DOCKER-USER"), plain("ufw-before-forward")],
            "sed -i '/^# End required lines/a -A ufw-before-forward -i wan0 -o br-lan -m conntrack --ctstate DNAT -j ACCEPT' /etc/ufw/before.rules\nufw reload",
        ),
        (
            vec![filter(table(Family::Inet, "mine"), "through", 2, true)],
            "nft 'insert rule inet mine through meta nfproto ipv4 iifname \"wan0\" oifname \"br-lan\" ct status dnat accept'",
        ),
        (
            vec![filter(table(Family::Inet, "fw4"), "forward", 2, true)],
            "mkdir -p /usr/share/nftables.d/chain-pre/forward\n\
             echo 'meta nfproto ipv4 iifname \"wan0\" oifname \"br-lan\" ct status dnat accept' >> /usr/share/nftables.d/chain-pre/forward/portferry.nft\n\
             fw4 reload",
        ),
    ] {
        assert_eq!(command(chains), expected);
    }
}

/// Without a NAT here, what comes for the LAN passes over IPv4 only.
#[test]
fn commands_open_no_more_than_ipv4() {
    let ip = || table(Family::Ip, "filter");
    let ufw = Chain { table: ip(), name: "ufw-before-forward".to_owned(), base: None, rules: Vec::new() };
    for (chains, expected) in [
        (vec![filter(table(Family::Inet, "mine"), "through", 2, true)], "meta nfproto ipv4 iifname \"wan0\""),
        (vec![filter(table(Family::Inet, "fw4"), "forward", 2, true)], "meta nfproto ipv4 iifname \"wan0\""),
        (vec![filter(ip(), "FORWARD", 2, true), ufw], "-A ufw-before-forward -i wan0 -o br-lan -j ACCEPT"),
        (vec![filter(table(Family::Inet, "firewalld"), "filter_FORWARD", 2, true)], "family=\"ipv4\" accept"),
    ] {
        let mut facts = healthy();
        facts.setup.uplinks[0].nat = NatMode::None;
        rules(&mut facts).extend(chains);
        let finding = judge(&facts).into_iter().find(|finding| finding.id == "firewall-forward-drops");
        let commands = finding.expect("it drops").commands.join("\n");
        assert!(commands.contains(expected), "{commands}");
        assert!(!commands.contains("route allow") && !commands.contains("target=ACCEPT"), "{commands}");
    }
}

/// A port is not opened in a zone that the WAN is in.
#[test]
fn the_lan_has_a_zone_of_its_own_first() {
    let commands = |zones: &[(&[u8], &str)]| {
        let mut facts = healthy();
        let mut chain = filter(table(Family::Inet, "firewalld"), "filter_INPUT", 1, true);
        chain.rules.extend(zones.iter().map(|(name, zone)| {
            vec![
                Step::Load { to: 0, len: 16, what: Load::Meta(6) },
                Step::Compare { from: 0, how: Compare::Equal, value: name.to_vec() },
                Step::Verdict(Decides::Goto(format!("filter_IN_{zone}"))),
            ]
        }));
        rules(&mut facts).push(chain);
        let finding = judge(&facts).into_iter().find(|finding| finding.id == "firewall-http-drops");
        finding.expect("it drops").commands.join("\n")
    };
    assert!(commands(&[]).contains("--zone=internal --change-interface=br-lan"));
    assert!(commands(&[(b"br-", "home"), (b"wan0\0", "home")]).contains("--change-interface"));
    let own = commands(&[(b"br-lan\0", "home")]);
    assert!(!own.contains("--change-interface") && own.contains("--add-port=5431/tcp"), "{own}");
}

/// The one finding with this id.
fn only(facts: &Facts, id: &str) -> Finding {
    let mut found = judge(facts).into_iter().filter(|finding| finding.id == id);
    let first = found.next().unwrap_or_else(|| panic!("there is no {id}"));
    assert_eq!(found.next(), None);
    first
}

/// Of the interface that it is off on, and of no other.
#[test]
fn forwarding_of_each_interface() {
    let mut facts = healthy();
    facts.ports.get_mut("wan0").unwrap().forwarding = Some(false);
    let finding = only(&facts, "forwarding-off");
    assert!(finding.seen.contains("come in by wan0 ("), "{}", finding.seen);
    assert_eq!(finding.commands, ["sysctl -w net/ipv4/conf/wan0/forwarding=1"]);
}

/// The whole prefix is led there, through the uplink's own table, and never by a route that could not work.
#[test]
fn routes_of_bound_hosts() {
    let commands = |change: Change| {
        let mut facts = healthy();
        second(&mut facts, Role::Bound(vec!["192.168.77.0/28".parse().unwrap()]));
        facts.leaving = vec![astray("192.168.77.0/28", Some("wan0"))];
        change(&mut facts);
        only(&facts, "bound-host-elsewhere").commands
    };
    let rules = |table: &str| {
        let main = "ip rule show | grep -q '^100:.*suppress_prefixlength 1' || \
                    ip rule add priority 100 lookup main suppress_prefixlength 1";
        vec![main.to_owned(), format!("ip rule add priority 105 from 192.168.77.0/28 lookup {table}")]
    };
    let with = |route: &str, table: &str| [vec![route.to_owned()], rules(table)].concat();
    assert_eq!(commands(|_| {}), with("ip route replace default dev wg0 table 101", "101"));
    assert_eq!(
        commands(|facts| facts.links.default_routes.push(via("fe80::1", true, 9, 254))),
        with("ip route replace default dev wg0 table 101", "101"),
        "IPv6 has its own"
    );
    assert_eq!(
        commands(|facts| facts.links.default_routes.push(via("10.8.0.1", false, 9, 254))),
        with("ip route replace default via 10.8.0.1 dev wg0 table 101", "101")
    );
    assert_eq!(
        commands(|facts| facts.links.other_default_routes.push(via("10.8.0.1", false, 9, 51820))),
        rules("51820"),
        "it has a table"
    );
    assert_eq!(
        commands(|facts| facts.links.other_default_routes.push(via("10.9.0.1", false, 2, 101))),
        with("ip route replace default dev wg0 table 103", "103"),
        "101 is somebody else's"
    );
    assert_eq!(
        commands(|facts| facts.links.interfaces.last_mut().unwrap().mac = Some([2; 6])),
        rules("101"),
        "Ethernet needs a router's address, and nobody knows it"
    );
}

fn via(gateway: &str, is_ipv6: bool, interface: u32, table: u32) -> DefaultRoute {
    DefaultRoute { interface, gateway: Some(gateway.parse().unwrap()), metric: 0, is_ipv6, table }
}

/// Another program is told from a portferry that another configuration runs.
#[test]
fn a_portferry_with_another_control_socket() {
    let mut facts = healthy();
    facts.gateway = Gateway::NotRunning;
    let process = Some((7, "portferry".to_owned()));
    facts.http.push(Holder { address: [192, 168, 77, 1].into(), process });
    let todo = only(&facts, "http-port-taken").todo.unwrap();
    assert!(todo.contains("control socket"), "{todo}");
}

#[test]
fn a_probe_that_was_left() {
    let mut facts = healthy();
    let Probe::Granted(granted) = &mut facts.uplinks[0].probe else { panic!("it is granted") };
    granted.left = Some(90);
    assert_eq!(only(&facts, "probe-left").data["seconds"], 90);
    assert_eq!(bad(&facts), BTreeSet::new());
}

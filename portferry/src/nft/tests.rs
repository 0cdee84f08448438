use super::conntrack::Flows;
use super::ruleset::Entry;
use super::*;

const OUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

fn config() -> TableConfig {
    TableConfig {
        name: "t".to_owned(),
        wan_interface: "wan0".to_owned(),
        spare_interfaces: Vec::new(),
        wan_addresses: vec![Ipv4Addr::new(100, 64, 0, 2)],
        lan_interfaces: vec!["lan0".to_owned()],
        forward_filter: false,
        masquerade: false,
        hairpin: false,
        mark: None,
    }
}

/// What may be marked is known by where mappings lead, and by whom they let in; it stays until the last of them goes.
#[test]
fn a_mark_follows_where_mappings_lead() {
    let mut table = Table::new(&TableConfig { mark: Some(1), ..config() });
    let (first, second) = (tcp(80, 2, 8080), tcp(81, 2, 8080));
    let peer = Ipv4Addr::new(192, 0, 2, 1);
    let private = Nat1Rule { remote_peer: Some(peer), ..tcp(82, 2, 8080) };
    let marked = |peer| ruleset::marked(TCP, first.internal, peer);
    let added = |plan: Plan, peer| plan.added.contains(&marked(peer));
    assert!(added(table.change(&[Change::Add(first)]).unwrap(), None));
    assert!(!added(table.change(&[Change::Add(second)]).unwrap(), None), "it is there");
    assert!(added(table.change(&[Change::Add(private)]).unwrap(), Some(peer)));
    let removed = |plan: Plan, peer| plan.removed.contains(&marked(peer));
    assert!(!removed(table.change(&[Change::Remove(first)]).unwrap(), None));
    assert!(removed(table.change(&[Change::Remove(private)]).unwrap(), Some(peer)));
    assert!(removed(table.change(&[Change::Remove(second)]).unwrap(), None));
}

fn table(hairpin: bool) -> Table {
    Table::new(&TableConfig { hairpin, ..config() })
}

fn tcp(external_port: u16, host: u8, port: u16) -> Nat1Rule {
    let internal = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, host), port);
    Nat1Rule { protocol: TCP, external_port, internal, remote_peer: None, outermost: None }
}

fn by(rule: Nat1Rule, port: u16) -> Nat1Rule {
    Nat1Rule { outermost: Some(SocketAddrV4::new(OUTER, port)), ..rule }
}

fn udp(rule: Nat1Rule) -> Nat1Rule {
    Nat1Rule { protocol: UDP, ..rule }
}

/// In no order: that of the kernel's sets is the transaction's business.
fn entries<const N: usize>(entries: [Entry; N]) -> Vec<Entry> {
    sorted(entries.into())
}

fn sorted(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|entry| (entry.set, entry.element.key.clone()));
    entries
}

fn mapped(rule: Nat1Rule) -> Flows {
    let Nat1Rule { protocol, external_port, internal, remote_peer, .. } = rule;
    Flows::Mapped { protocol, external_port, internal, remote_peer }
}

#[test]
fn a_batch_is_the_difference_of_two_tables() {
    let mut table = table(false);
    let (a, b) = (tcp(80, 2, 8080), tcp(80, 3, 8080));
    let way_in = |rule: Nat1Rule| ruleset::port(TCP, 80, None, rule.internal);
    let way_out = |rule: Nat1Rule| ruleset::source(TCP, rule.internal, 80);
    let plan = table.change(&[Change::Add(a), Change::Add(a)]).unwrap();
    assert_eq!(sorted(plan.added), entries([way_in(a), way_out(a)]));
    assert!(table.change(&[Change::Add(a)]).unwrap().changes_nothing(), "an equal mapping is no change");
    assert!(table.change(&[Change::Remove(a), Change::Add(a)]).unwrap().changes_nothing());

    let plan = table.change(&[Change::Replace { old: a, new: b }]).unwrap();
    assert_eq!(sorted(plan.removed.clone()), entries([way_in(a), way_out(a)]));
    assert_eq!(sorted(plan.added.clone()), entries([way_in(b), way_out(b)]));
    assert_eq!(plan.flows, [mapped(a)].into());
    table.undo(&plan);
    assert_eq!(table.rules().collect::<Vec<_>>(), [a]);
    assert!(table.change(&[Change::Add(a)]).unwrap().changes_nothing());
}

#[test]
fn a_source_keeps_its_oldest_port_and_then_takes_the_next() {
    let mut table = table(false);
    let (first, second) = (tcp(81, 2, 8080), tcp(80, 2, 8080));
    let way_out = |port| ruleset::source(TCP, first.internal, port);
    let plan = table.change(&[Change::Add(first), Change::Add(second)]).unwrap();
    assert!(plan.added.contains(&way_out(81)) && !plan.added.contains(&way_out(80)));
    // One that is led elsewhere and back is as old as it was.
    let elsewhere = tcp(81, 2, 9);
    table.change(&[Change::Replace { old: first, new: elsewhere }]).unwrap();
    let plan = table.change(&[Change::Replace { old: elsewhere, new: first }]).unwrap();
    assert!(plan.added.contains(&way_out(81)) && plan.removed.contains(&way_out(80)));
    assert_eq!(table.rules().collect::<Vec<_>>(), [first, second], "the oldest first");

    let plan = table.change(&[Change::Remove(first)]).unwrap();
    assert!(plan.removed.contains(&way_out(81)) && plan.added == [way_out(80)]);
    let plan = table.change(&[Change::Remove(second)]).unwrap();
    assert!(plan.removed.contains(&way_out(80)) && table.rules().next().is_none());
}

/// RFC 6887: a mapping is bidirectional. UDP's flows that began otherwise begin anew; TCP's cannot.
#[test]
fn a_hosts_own_flows_follow_its_mapping() {
    let mut table = table(true);
    let (first, second) = (udp(tcp(81, 2, 8080)), udp(tcp(80, 2, 8080)));
    let from = Flows::From { protocol: UDP, internal: first.internal };
    assert!(table.change(&[Change::Add(first)]).unwrap().flows.contains(&from));
    assert!(!table.change(&[Change::Add(second)]).unwrap().flows.contains(&from), "the first counts");
    assert!(table.change(&[Change::Remove(first)]).unwrap().flows.contains(&from));
    assert!(table.change(&[Change::Remove(second)]).unwrap().flows.contains(&from));
    assert!(table.change(&[Change::Add(tcp(81, 2, 8080))]).unwrap().flows.is_empty());
}

/// Decision 26: what comes and goes with the outermost address and port, and nothing besides.
#[test]
fn an_outermost_address_and_port_come_move_and_go() {
    let mut table = table(true);
    let game = by(udp(tcp(5000, 2, 6000)), 7000);
    let outermost = game.outermost.unwrap();
    let way = |outermost| ruleset::hairpin(UDP, outermost, None, game.internal);
    let shown = |outermost| ruleset::hairpin_source(UDP, game.internal, outermost);
    let plan = table.change(&[Change::Add(game)]).unwrap();
    let plain = [ruleset::port(UDP, 5000, None, game.internal), ruleset::source(UDP, game.internal, 5000)];
    let [port, source] = plain;
    assert_eq!(
        sorted(plan.added),
        entries([port, source, way(outermost), shown(outermost), ruleset::hairpin_address(OUTER)])
    );
    assert!(plan.flows.contains(&Flows::Missed { protocol: UDP, outermost }));

    let moved = by(game, 7001);
    let plan = table.change(&[Change::Add(moved)]).unwrap();
    let next = moved.outermost.unwrap();
    assert_eq!(sorted(plan.removed), entries([way(outermost), shown(outermost)]));
    assert_eq!(sorted(plan.added), entries([way(next), shown(next)]), "the address stays");
    let gone = Flows::Hairpin { protocol: UDP, outermost, internal: game.internal, remote_peer: None };
    assert!(plan.flows.contains(&gone) && !plan.flows.contains(&mapped(game)));

    // Who is to be removed need not be named by where he stands now.
    let plan = table.change(&[Change::Remove(game)]).unwrap();
    assert!(plan.removed.contains(&ruleset::hairpin_address(OUTER)) && plan.added.is_empty());
    assert!(plan.flows.contains(&Flows::Hairpin {
        protocol: UDP,
        outermost: next,
        internal: game.internal,
        remote_peer: None
    }));
}

/// Decision 25: who may come in by the port of the WAN address, may by the outermost one.
#[test]
fn a_remote_peer_counts_for_hairpin_too() {
    let mut table = table(true);
    let peer = Ipv4Addr::new(10, 0, 0, 9);
    let only = Nat1Rule { remote_peer: Some(peer), ..by(tcp(80, 2, 8080), 7000) };
    let plan = table.change(&[Change::Add(only)]).unwrap();
    let way = ruleset::hairpin(TCP, only.outermost.unwrap(), Some(peer), only.internal);
    assert!(plan.added.contains(&way));
    assert_ne!(way.set, ruleset::hairpin(TCP, only.outermost.unwrap(), None, only.internal).set);
}

/// The provider gives a port to one at a time; who had it before and could not be removed here is in nobody's way.
#[test]
fn the_newest_has_an_outermost_port() {
    let mut table = table(true);
    let (old, new) = (by(tcp(80, 2, 8080), 7000), by(tcp(81, 3, 8080), 7000));
    table.change(&[Change::Add(old)]).unwrap();
    let plan = table.change(&[Change::Add(new)]).unwrap();
    let way = |rule: Nat1Rule| ruleset::hairpin(TCP, rule.outermost.unwrap(), None, rule.internal);
    assert!(plan.removed == [way(old)] && plan.added.contains(&way(new)));
    let plan = table.change(&[Change::Remove(old)]).unwrap();
    assert!(!plan.removed.contains(&way(new)) && plan.added.is_empty());
}

#[test]
fn the_wans_addresses_are_shared_with_mappings() {
    let mut table = table(true);
    let wan = config().wan_addresses[0];
    let shown = ruleset::hairpin_address;
    assert!(table.readdress(&[wan]).changes_nothing());
    let plan = table.readdress(&[OUTER]);
    assert_eq!(sorted(plan.removed), entries([ruleset::wan_address(wan), shown(wan)]));
    assert_eq!(sorted(plan.added), entries([ruleset::wan_address(OUTER), shown(OUTER)]));
    let plan = table.change(&[Change::Add(by(tcp(80, 2, 8080), 7000))]).unwrap();
    assert!(!plan.added.contains(&shown(OUTER)), "it is there");
    let plan = table.readdress(&[]);
    assert_eq!(plan.removed, [ruleset::wan_address(OUTER)], "a mapping has it");
    let plan = table.change(&[Change::Remove(tcp(80, 2, 8080))]).unwrap();
    assert!(plan.removed.contains(&shown(OUTER)));
}

#[test]
fn without_hairpin_nothing_of_it_is_there() {
    let mut table = table(false);
    let plan = table.change(&[Change::Add(by(tcp(80, 2, 8080), 7000))]).unwrap();
    assert_eq!(plan.added.len(), 2);
    assert!(table.readdress(&[OUTER]).changes_nothing());
    assert!(table.change(&[Change::Add(by(tcp(80, 2, 8080), 7001))]).unwrap().changes_nothing());
}

/// Also by what is taken back, and by a port that goes from one host to another.
#[test]
fn what_each_host_has_is_counted() {
    let mut table = table(true);
    let host = |last| Ipv4Addr::new(10, 0, 0, last);
    let counts = |table: &Table| {
        let all: Vec<Nat1Rule> = table.rules().collect();
        [2, 3, 4].map(|last| {
            let scanned = all.iter().filter(|rule| *rule.internal.ip() == host(last)).count();
            assert_eq!(table.held_by(host(last)), scanned);
            scanned
        })
    };
    let rules = [tcp(80, 2, 80), tcp(81, 2, 81), udp(tcp(80, 2, 80)), tcp(82, 3, 80)];
    table.change(&rules.map(Change::Add)).unwrap();
    assert_eq!(counts(&table), [3, 1, 0]);
    table.change(&[Change::Add(by(rules[0], 8080))]).unwrap();
    assert_eq!(counts(&table), [3, 1, 0], "the same mapping, with an outermost port");
    let plan = table.change(&[Change::Replace { old: rules[1], new: tcp(81, 4, 81) }]).unwrap();
    assert_eq!(counts(&table), [2, 1, 1]);
    table.undo(&plan);
    assert_eq!(counts(&table), [3, 1, 0]);
    table.change(&[Change::Remove(rules[3]), Change::Remove(rules[3])]).unwrap_err();
    assert_eq!(counts(&table), [3, 1, 0]);
    table.change(&rules.map(Change::Remove)).unwrap();
    assert_eq!(counts(&table), [0, 0, 0]);
}

#[test]
fn wrong_changes_are_named() {
    let mut table = table(true);
    let held = by(tcp(80, 2, 8080), 7000);
    table.change(&[Change::Add(held)]).unwrap();
    let mut kind = |change| table.change(&[Change::Add(tcp(90, 2, 90)), change]).err().map(|e| e.kind());
    assert_eq!(kind(Change::Add(tcp(80, 3, 8080))), Some(ErrorKind::AlreadyExists));
    assert_eq!(kind(Change::Remove(tcp(80, 3, 8080))), Some(ErrorKind::NotFound));
    assert_eq!(kind(Change::Remove(tcp(81, 2, 8080))), Some(ErrorKind::NotFound));
    assert_eq!(kind(Change::Add(tcp(0, 2, 8080))), Some(ErrorKind::InvalidInput));
    assert_eq!(kind(Change::Add(by(tcp(82, 2, 1), 0))), Some(ErrorKind::InvalidInput));
    assert_eq!(kind(Change::Add(Nat1Rule { protocol: 1, ..tcp(82, 2, 1) })), Some(ErrorKind::InvalidInput));
    assert_eq!(table.rules().collect::<Vec<_>>(), [held], "none of it counts");
    let peer = Nat1Rule { remote_peer: Some(Ipv4Addr::new(192, 0, 2, 1)), ..tcp(80, 3, 8080) };
    assert!(table.change(&[Change::Add(peer)]).is_ok(), "another remote peer is another key");
}

#[test]
fn port_probe_sees_programs_of_this_router() {
    let held = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = held.local_addr().unwrap().port();
    assert!(!port_is_free(UDP, Ipv4Addr::LOCALHOST, port));
    drop(held);
    assert!(port_is_free(UDP, Ipv4Addr::LOCALHOST, port));
    let held = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    assert!(!port_is_free(TCP, Ipv4Addr::LOCALHOST, held.local_addr().unwrap().port()));
    assert!(!port_is_free(1, Ipv4Addr::LOCALHOST, 9));
}

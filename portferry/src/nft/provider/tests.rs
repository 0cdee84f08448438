use std::net::{Ipv4Addr, Ipv6Addr};

use netlink_bindings::conntrack::NfCtStatus;

use super::super::conntrack::{Flow, UNANSWERED_MASK};
use super::flows::{Scopes, selections};
use super::ruleset::{Family, Level, Set, Shape, intervals};
use super::state::{Delta, Slot, State, Step};
use super::*;

const TCP: u8 = 6;
const UDP: u8 = 17;
const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);

fn config() -> ProviderConfig {
    ProviderConfig {
        name: "portferry-provider".to_owned(),
        outside_interfaces: vec!["wan0".to_owned()],
        inside_interfaces: vec!["lan0".to_owned()],
        subscribers: Vec::new(),
        pool: vec![EXTERNAL],
        pairs: Vec::new(),
        default_external: None,
        dynamic_ports: 1024..=65535,
        ipv4_filter: true,
        ipv6_firewall: true,
    }
}

fn endpoint(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn binding(protocol: u8, external: &str, internal: &str) -> Binding {
    Binding {
        protocol,
        softwire: None,
        internal: endpoint(internal),
        external: endpoint(external),
        ports: 1,
        filters: Vec::new(),
        peer: None,
    }
}

fn web() -> Binding {
    binding(TCP, "203.0.113.1:8080", "10.0.0.2:80")
}

fn filter(text: &str, len: u8, port: u16) -> Filter {
    let prefix = match text.parse().unwrap() {
        IpAddr::V4(addr) => u128::from(addr.to_ipv6_mapped()),
        IpAddr::V6(addr) => u128::from(addr),
    };
    Filter { prefix, len, port }
}

fn filtered(of: Binding, filters: &[Filter]) -> Binding {
    Binding { filters: filters.to_vec(), ..of }
}

fn step(state: &mut State, changes: &[Change]) -> (Step, Delta) {
    let mut step = Step::default();
    for change in changes {
        state.change(&mut step, change).unwrap();
    }
    let delta = state.delta(&mut step);
    (step, delta)
}

/// Names of sets with the number of elements that go and that come.
fn counted(delta: &Delta) -> Vec<(String, usize, usize)> {
    let mut sets: Vec<Set> =
        delta.removed.iter().map(|one| one.0).chain(delta.elements.iter().map(|one| one.0)).collect();
    sets.sort_unstable();
    sets.dedup();
    let count = |set: Set| {
        (
            set.name(),
            delta.removed.iter().filter(|one| one.0 == set).count(),
            delta.elements.iter().filter(|one| one.0 == set).count(),
        )
    };
    sets.into_iter().map(count).collect()
}

fn counts(expected: &[(&str, usize, usize)]) -> Vec<(String, usize, usize)> {
    expected.iter().map(|&(name, gone, come)| (name.to_owned(), gone, come)).collect()
}

/// RFC 6887 §11.1, §12, §13.3, RFC 7753: what there is of each kind of mapping.
#[test]
fn a_mapping_is_elements() {
    let mapped = |binding: Binding| counted(&step(&mut State::default(), &[Change::Open(binding)]).1);
    let port = |n| {
        [
            ("ports", 0, n),
            ("sources", 0, n),
            ("pairs", 0, 1),
            ("reserved", 0, n),
            ("owners", 0, n),
            ("taken", 0, n),
            ("mapped4-ports", 0, n),
        ]
    };
    assert_eq!(mapped(web()), counts(&port(1)));
    assert_eq!(mapped(Binding { ports: 9, ..web() }), counts(&port(9)));
    let both = [filter("192.0.2.0", 120, 0), filter("192.0.2.9", 128, 99), filter("192.0.2.77", 120, 0)];
    let mut with_filters = port(1).to_vec();
    with_filters.extend([
        ("filtered4-ports", 0, 1),
        ("allowed4-ports-24", 0, 1),
        ("allowed4-ports-32-port", 0, 1),
    ]);
    assert_eq!(mapped(filtered(web(), &both)), counts(&with_filters));
    assert_eq!(
        mapped(binding(TCP, "203.0.113.1:0", "10.0.0.2:0")),
        counts(&[("protocols", 0, 1), ("pairs", 0, 1), ("mapped4-protocols", 0, 1)])
    );
    assert_eq!(
        mapped(filtered(binding(0, "203.0.113.1:0", "10.0.0.2:0"), &[filter("192.0.2.0", 120, 0)])),
        counts(&[
            ("hosts", 0, 1),
            ("pairs", 0, 1),
            ("mapped4-hosts", 0, 1),
            ("filtered4-hosts", 0, 1),
            ("allowed4-hosts-24", 0, 1)
        ])
    );
    assert_eq!(
        mapped(Binding { peer: Some(endpoint("192.0.2.1:9")), ..web() }),
        counts(&[("peers", 0, 1), ("peer-sources", 0, 1), ("pairs", 0, 1), ("mapped4-peers", 0, 1)])
    );
    let pinhole = binding(UDP, "[2001:db8::2]:5000", "[2001:db8::2]:5000");
    assert_eq!(
        mapped(filtered(pinhole.clone(), &[filter("2001:db8:1::", 48, 0)])),
        counts(&[("mapped6-ports", 0, 1), ("filtered6-ports", 0, 1), ("allowed6-ports-48", 0, 1)])
    );
    let peer = Some(endpoint("[2001:db8::9]:9"));
    assert_eq!(mapped(Binding { peer, ..pinhole }), counts(&[("mapped6-peers", 0, 1)]));
}

#[test]
fn elements_are_octet_by_octet() {
    let mut state = State::default();
    let wanted = filtered(web(), &[filter("192.0.2.9", 120, 99)]);
    let (_, delta) = step(&mut state, &[Change::Open(wanted)]);
    let of = |set: Set| delta.elements.iter().find(|one| one.0 == set).unwrap().1.clone();
    let (outer, inner) =
        ([6, 0, 0, 0, 203, 0, 113, 1, 0x1f, 0x90, 0, 0], [6, 0, 0, 0, 10, 0, 0, 2, 0, 80, 0, 0]);
    assert_eq!(of(Set::Ports), (outer.to_vec(), inner[4..].to_vec()));
    assert_eq!(of(Set::Sources), (inner.to_vec(), outer[4..].to_vec()));
    assert_eq!(of(Set::Owners), ([&outer[..], &[10, 0, 0, 2]].concat(), Vec::new()));
    assert_eq!(of(Set::Taken), (vec![6, 0, 0, 0, 0x1f, 0x90, 0, 0], Vec::new()));
    let shape = Shape { family: Family::V4, level: Level::Port, len: 24, with_port: true };
    assert_eq!(delta.shapes, [shape]);
    assert_eq!(of(Set::Allowed(shape)).0, [&inner[..], &[192, 0, 2, 0, 0, 99, 0, 0]].concat());
}

#[test]
fn a_transaction_is_the_difference_of_two_tables() {
    let mut state = State::default();
    let (_, delta) = step(&mut state, &[Change::Open(web())]);
    assert!(!delta.is_empty());
    assert!(step(&mut state, &[Change::Open(web())]).1.is_empty(), "an equal mapping is no change");
    assert!(step(&mut state, &[Change::Close(web()), Change::Open(web())]).1.is_empty());

    // New filters are their elements only, and a rule only for a prefix length that is new.
    let one = filtered(web(), &[filter("192.0.2.0", 120, 0)]);
    let (_, delta) = step(&mut state, &[Change::Replace { old: web(), new: one.clone() }]);
    assert_eq!(counted(&delta), counts(&[("filtered4-ports", 0, 1), ("allowed4-ports-24", 0, 1)]));
    assert_eq!(delta.shapes.len(), 1);
    let two = filtered(web(), &[filter("192.0.3.0", 120, 0)]);
    let (_, delta) = step(&mut state, &[Change::Replace { old: one, new: two.clone() }]);
    assert_eq!(counted(&delta), counts(&[("allowed4-ports-24", 1, 1)]));
    assert!(delta.shapes.is_empty());

    // Another host, same port outside.
    let moved = binding(TCP, "203.0.113.1:8080", "10.0.0.3:80");
    let (_, delta) = step(&mut state, &[Change::Replace { old: two, new: moved.clone() }]);
    let expected = [
        ("ports", 1, 1),
        ("sources", 1, 1),
        ("pairs", 1, 1),
        ("owners", 1, 1),
        ("mapped4-ports", 1, 1),
        ("filtered4-ports", 1, 0),
        ("allowed4-ports-24", 1, 0),
    ];
    assert_eq!(counted(&delta), counts(&expected), "reserved and taken stay");

    // A port is taken as long as one external address has it, a host paired as long as it has a mapping.
    let second = binding(TCP, "203.0.113.2:8080", "10.0.0.3:81");
    let (_, delta) = step(&mut state, &[Change::Open(second.clone())]);
    assert!(delta.elements.iter().all(|one| !matches!(one.0, Set::Taken | Set::Pairs)));
    let (_, delta) = step(&mut state, &[Change::Close(moved)]);
    assert!(!counted(&delta).iter().any(|one| one.0 == "taken"));
    assert!(counted(&delta).contains(&("pairs".to_owned(), 1, 1)), "the host moves to its other address");
    let (_, delta) = step(&mut state, &[Change::Close(second)]);
    assert!(counted(&delta).contains(&("taken".to_owned(), 1, 0)));
    assert_eq!(state.bindings().count(), 0);
    assert_eq!(state.everything(), Delta::default());
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let mut state = State::default();
    let set = Binding { ports: 3, ..binding(UDP, "203.0.113.1:5000", "10.0.0.2:6000") };
    let peer = Binding { peer: Some(endpoint("192.0.2.1:9")), ..set.clone() };
    let peer = Binding { ports: 1, ..peer };
    step(&mut state, &[Change::Open(set.clone()), Change::Open(peer)]);
    let before = state.everything();
    for (wrong, kind) in [
        (Change::Open(binding(UDP, "203.0.113.1:5002", "10.0.0.3:1")), ErrorKind::AlreadyExists),
        (Change::Open(binding(UDP, "203.0.113.1:4999", "10.0.0.2:6001")), ErrorKind::AlreadyExists),
        (Change::Open(Binding { ports: 4, ..set.clone() }), ErrorKind::AlreadyExists),
        (Change::Open(filtered(set.clone(), &[filter("::", 0, 0)])), ErrorKind::AlreadyExists),
        (Change::Close(binding(UDP, "203.0.113.1:5000", "10.0.0.2:6000")), ErrorKind::NotFound),
        (Change::Close(Binding { ports: 0, ..set.clone() }), ErrorKind::NotFound),
        (Change::Close(web()), ErrorKind::NotFound),
        (Change::Replace { old: web(), new: set.clone() }, ErrorKind::NotFound),
    ] {
        let mut step = Step::default();
        let other = filtered(binding(TCP, "203.0.113.9:1", "10.0.0.2:1"), &[filter("192.0.2.0", 120, 0)]);
        state.change(&mut step, &Change::Open(other)).unwrap();
        state.change(&mut step, &Change::Close(set.clone())).unwrap();
        state.change(&mut step, &Change::Open(set.clone())).unwrap();
        assert_eq!(state.change(&mut step, &wrong).map_err(|e| e.kind()), Err(kind), "{wrong:?}");
        state.undo(step);
        assert_eq!(state.everything(), before);
    }
}

/// What a [`Binding`] may be.
#[test]
fn wrong_bindings_are_named() {
    let good = |binding: &Binding| config().check_binding(binding).is_ok();
    let pinhole = || binding(TCP, "[2001:db8::2]:80", "[2001:db8::2]:80");
    let peer = |text| Some(endpoint(text));
    let host = || binding(0, "203.0.113.1:0", "10.0.0.2:0");
    for right in [
        web(),
        pinhole(),
        host(),
        binding(47, "203.0.113.1:0", "10.0.0.2:0"),
        Binding { ports: 16, ..binding(132, "203.0.113.1:65520", "10.0.0.2:1") },
        Binding { peer: peer("192.0.2.1:9"), ..web() },
        Binding { peer: peer("[2001:db8::9]:9"), ..pinhole() },
        filtered(web(), &[filter("192.0.2.0", 120, 9)]),
        filtered(host(), &[filter("192.0.2.0", 120, 0)]),
    ] {
        assert!(good(&right), "{right:?}");
    }
    for wrong in [
        Binding { softwire: Some(Ipv6Addr::LOCALHOST), ..web() },
        binding(TCP, "203.0.113.1:80", "[2001:db8::2]:80"),
        binding(TCP, "[2001:db8::3]:80", "[2001:db8::2]:80"),
        binding(TCP, "[2001:db8::2]:81", "[2001:db8::2]:80"),
        binding(TCP, "203.0.113.1:0", "10.0.0.2:80"),
        binding(TCP, "203.0.113.1:80", "10.0.0.2:0"),
        binding(0, "203.0.113.1:80", "10.0.0.2:80"),
        binding(47, "203.0.113.1:80", "10.0.0.2:80"),
        binding(TCP, "203.0.113.1:80", "127.0.0.1:80"),
        binding(TCP, "203.0.113.1:80", "224.0.0.1:80"),
        binding(TCP, "0.0.0.0:80", "10.0.0.2:80"),
        binding(TCP, "[::ffff:10.0.0.2]:80", "[::ffff:10.0.0.2]:80"),
        Binding { ports: 0, ..web() },
        Binding { ports: 2, ..host() },
        Binding { ports: 17, ..binding(TCP, "203.0.113.1:65520", "10.0.0.2:1") },
        Binding { ports: 17, ..binding(TCP, "203.0.113.1:1", "10.0.0.2:65520") },
        Binding { peer: peer("192.0.2.1:0"), ..web() },
        Binding { peer: peer("[2001:db8::9]:9"), ..web() },
        Binding { peer: peer("192.0.2.1:9"), ports: 2, ..web() },
        Binding { peer: peer("192.0.2.1:9"), ..filtered(web(), &[filter("192.0.2.0", 120, 0)]) },
        Binding { peer: peer("192.0.2.1:9"), ..host() },
        filtered(web(), &[filter("192.0.2.0", 129, 0)]),
        filtered(host(), &[filter("192.0.2.0", 120, 9)]),
    ] {
        assert!(!good(&wrong), "{wrong:?}");
    }
    let off = ProviderConfig { ipv6_firewall: false, ..config() };
    assert!(off.check_binding(&pinhole()).is_err() && off.check_binding(&web()).is_ok());
}

#[test]
fn wrong_configurations_are_named() {
    let pair = |addr, len| Pair { inside: Prefix { addr, len }, external: EXTERNAL };
    let ten = Ipv4Addr::new(10, 0, 0, 0);
    assert!(config().check().is_ok());
    let neighbours = vec![pair(ten, 24), pair(Ipv4Addr::new(10, 0, 1, 0), 24)];
    assert!(ProviderConfig { pairs: neighbours, ..config() }.check().is_ok());
    for wrong in [
        ProviderConfig { name: "a/b".to_owned(), ..config() },
        ProviderConfig { outside_interfaces: Vec::new(), ..config() },
        ProviderConfig { outside_interfaces: vec!["sixteen_octets__".to_owned()], ..config() },
        ProviderConfig { inside_interfaces: vec!["wan0".to_owned()], ..config() },
        ProviderConfig { subscribers: vec![Prefix { addr: ten, len: 33 }], ..config() },
        ProviderConfig { pairs: vec![pair(ten, 24), pair(Ipv4Addr::new(10, 0, 0, 77), 32)], ..config() },
        ProviderConfig { dynamic_ports: 0..=9, ..config() },
        ProviderConfig { dynamic_ports: std::ops::RangeInclusive::new(9, 8), ..config() },
    ] {
        assert_eq!(wrong.check().map_err(|e| e.kind()), Err(ErrorKind::InvalidInput), "{wrong:?}");
    }
}

#[test]
fn prefixes_become_intervals() {
    let prefix = |text: &str, len| (Prefix { addr: text.parse().unwrap(), len }, Vec::new());
    let of = |prefixes: Vec<(Prefix, Vec<u8>)>| -> Vec<_> {
        let addr = |key: Vec<u8>| Ipv4Addr::from(<[u8; 4]>::try_from(key).unwrap()).to_string();
        intervals(prefixes.into_iter())
            .into_iter()
            .map(|(first, end)| (addr(first.key), end.map(addr)))
            .collect()
    };
    let some = |first: &str, end: &str| (first.to_owned(), Some(end.to_owned()));
    assert_eq!(
        of(vec![
            prefix("10.0.1.9", 24),
            prefix("10.0.0.0", 24),
            prefix("10.0.0.128", 25),
            prefix("10.0.0.7", 24)
        ]),
        [some("10.0.0.0", "10.0.1.0"), some("10.0.1.0", "10.0.2.0")]
    );
    assert_eq!(of(vec![prefix("255.0.0.0", 8)]), [("255.0.0.0".to_owned(), None)]);
    assert_eq!(of(vec![prefix("9.9.9.9", 0), prefix("1.0.0.0", 32)]), [("0.0.0.0".to_owned(), None)]);
}

/// A flow that came in from outside, translated to `internal`, or not at all.
fn inbound(protocol: u8, remote: &str, external: &str, internal: Option<&str>) -> Flow {
    Flow {
        protocol,
        source: endpoint(remote),
        destination: endpoint(external),
        reply_source: endpoint(internal.unwrap_or(external)),
        reply_destination: endpoint(remote),
        status: if internal.is_some() { NfCtStatus::DstNat as u32 } else { 0 },
    }
}

/// A flow that a subscriber began.
fn outbound(protocol: u8, internal: &str, external: &str, remote: &str) -> Flow {
    Flow {
        protocol,
        source: endpoint(internal),
        destination: endpoint(remote),
        reply_source: endpoint(remote),
        reply_destination: endpoint(external),
        status: NfCtStatus::SrcNat as u32 | NfCtStatus::SeenReply as u32,
    }
}

/// A changed mapping ends the flows that it would not let in any more, and no other.
#[test]
fn flows_end_that_the_table_would_treat_otherwise() {
    let remote = "192.0.2.1:7000";
    let game = || binding(UDP, "203.0.113.1:5000", "10.0.0.2:6000");
    let came = || inbound(UDP, remote, "203.0.113.1:5000", Some("10.0.0.2:6000"));
    let all = || binding(0, "203.0.113.1:0", "10.0.0.2:0");
    let by_all = || inbound(UDP, remote, "203.0.113.1:5000", Some("10.0.0.2:5000"));
    let peer = || Binding { peer: Some(endpoint(remote)), ..game() };
    let early = || inbound(UDP, remote, "203.0.113.1:5000", None);
    let only = |text, port| filtered(game(), &[filter(text, 128, port)]);
    let replace = |old: Binding, new: Binding| vec![Change::Replace { old, new }];
    let open = |binding: Binding| vec![Change::Open(binding)];
    let close = |binding: Binding| vec![Change::Close(binding)];
    let squatter = || outbound(UDP, "10.0.0.9:5000", "203.0.113.1:5000", remote);
    let pinhole = || binding(UDP, "[2001:db8::2]:6000", "[2001:db8::2]:6000");
    let by_pinhole = || inbound(UDP, "[2001:db8::9]:7", "[2001:db8::2]:6000", None);
    // Subscriber 10.0.0.9 comes out as 203.0.113.1:9.
    let hairpin =
        || Flow { reply_destination: endpoint("203.0.113.1:9"), source: endpoint("10.0.0.9:1"), ..came() };
    for (what, before, changes, flow, ends) in [
        ("closed", vec![game()], close(game()), came(), true),
        ("another one closed", vec![game(), web()], close(web()), came(), false),
        (
            "moved",
            vec![game()],
            replace(game(), binding(UDP, "203.0.113.1:5000", "10.0.0.3:6000")),
            came(),
            true,
        ),
        ("filtered out", vec![game()], replace(game(), only("192.0.2.2", 0)), came(), true),
        ("filtered by port", vec![game()], replace(game(), only("192.0.2.1", 7001)), came(), true),
        ("let in", vec![game()], replace(game(), only("192.0.2.1", 7000)), came(), false),
        ("closed over all ports", vec![all(), game()], close(game()), came(), true),
        ("all ports closed over one", vec![all(), game()], close(all()), came(), false),
        ("all ports closed", vec![all()], close(all()), by_all(), true),
        (
            "one port out of all",
            vec![all()],
            open(binding(UDP, "203.0.113.1:5000", "10.0.0.3:1")),
            by_all(),
            true,
        ),
        ("another port out of all", vec![all()], open(web()), by_all(), false),
        ("closed beside PEER", vec![game(), peer()], close(game()), came(), false),
        ("PEER closed", vec![peer()], close(peer()), came(), true),
        ("filtered beside PEER", vec![game(), peer()], replace(game(), only("192.0.2.2", 0)), came(), false),
        ("too early", vec![], open(game()), early(), true),
        ("too early for a filter", vec![], open(only("192.0.2.2", 0)), early(), false),
        ("the router's own", vec![game()], close(game()), early(), false),
        ("somebody else's port", vec![], open(game()), squatter(), true),
        (
            "the host's own",
            vec![],
            open(game()),
            outbound(UDP, "10.0.0.2:6000", "203.0.113.1:5000", remote),
            false,
        ),
        (
            "what the host began",
            vec![game()],
            close(game()),
            outbound(UDP, "10.0.0.2:6000", "203.0.113.1:5000", remote),
            false,
        ),
        (
            "a subscriber's, elsewhere",
            vec![],
            open(game()),
            outbound(UDP, "10.0.0.9:5000", "203.0.113.2:5000", remote),
            false,
        ),
        ("hairpin", vec![game()], replace(game(), only("203.0.113.1", 9)), hairpin(), false),
        ("hairpin filtered out", vec![game()], replace(game(), only("10.0.0.9", 0)), hairpin(), true),
        ("pinhole closed", vec![pinhole()], close(pinhole()), by_pinhole(), true),
        (
            "pinhole kept",
            vec![pinhole()],
            replace(pinhole(), filtered(pinhole(), &[filter("2001:db8::", 64, 0)])),
            by_pinhole(),
            false,
        ),
        (
            "pinhole filtered",
            vec![pinhole()],
            replace(pinhole(), filtered(pinhole(), &[filter("2001:db9::", 64, 0)])),
            by_pinhole(),
            true,
        ),
    ] {
        let mut state = State::default();
        let opened: Vec<_> = before.into_iter().map(Change::Open).collect();
        step(&mut state, &opened);
        let (step, _) = step(&mut state, &changes);
        assert_eq!(Scopes::of(&step).doom(&state, &flow), ends, "{what}");
        // Where the kernel is told which flows to end, these are among them; or else they are listed and asked for.
        for (slot, was) in step.slots() {
            let Some(selections) = selections(&state, slot, was) else { continue };
            let selected = selections.iter().any(|one| {
                let towards = if one.towards.answers { flow.reply_destination } else { flow.destination };
                (towards.ip(), Some(towards.port()), Some(flow.protocol))
                    == (one.towards.addr, one.towards.port, one.towards.protocol)
                    && flow.status & one.status.1 == one.status.0
            });
            // Harmless: a UDP flow of the mapping's own host, or one that nobody answered, begins again as it was.
            let harmless = matches!(what, "the host's own" | "too early for a filter");
            assert!(selected == ends || (selected && harmless), "{what}: {selections:?}");
        }
    }
}

/// A table that was away: flows of other tables' DNAT are none of its business.
#[test]
fn after_healing_only_what_is_mapped_is_judged() {
    let mut state = State::default();
    step(&mut state, &[Change::Open(web())]);
    let doom = |flow| Scopes::everything().doom(&state, &flow);
    let remote = "192.0.2.1:7000";
    assert!(!doom(inbound(TCP, remote, "203.0.113.1:8080", Some("10.0.0.2:80"))));
    assert!(doom(inbound(TCP, remote, "203.0.113.1:8080", Some("10.0.0.3:80"))));
    assert!(doom(inbound(TCP, remote, "203.0.113.1:8080", None)));
    assert!(!doom(inbound(TCP, remote, "203.0.113.1:81", Some("10.0.0.3:80"))));
    assert!(!doom(inbound(TCP, "[2001:db8::9]:7", "[2001:db8::2]:6000", None)));
}

/// TCP's open connections are not ended for a new mapping's sake, since they could not go on.
#[test]
fn a_new_mapping_of_tcp_leaves_connections() {
    let mut state = State::default();
    let (step, _) = step(&mut state, &[Change::Open(web())]);
    let squatter = outbound(TCP, "10.0.0.9:8080", "203.0.113.1:8080", "192.0.2.1:7000");
    assert!(!Scopes::of(&step).doom(&state, &squatter));
    let slot = Slot { external: EXTERNAL.into(), protocol: TCP, port: 8080, peer: None };
    let selected = selections(&state, &slot, None).unwrap();
    assert_eq!(
        selected.iter().map(|one| (one.towards.answers, one.status)).collect::<Vec<_>>(),
        [(false, (0, UNANSWERED_MASK))]
    );
}

use std::net::Ipv6Addr;

use proptest::prelude::*;
use wire::pcp::Filter;

use super::*;

const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(203, 0, 114, 1), Ipv4Addr::new(203, 0, 114, 2)];
const T0: Instant = Instant::from_secs(0);
const SYN: TcpFlags = TcpFlags { syn: true, ack: false, end: false };
const SYN_ACK: TcpFlags = TcpFlags { syn: true, ack: true, end: false };
const ACK: TcpFlags = TcpFlags { syn: false, ack: true, end: false };
const FIN: TcpFlags = TcpFlags { syn: false, ack: true, end: true };
const NONE: TcpFlags = TcpFlags { syn: false, ack: false, end: false };
const BOTH: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

fn nat() -> Nat {
    Nat::new(POOL.to_vec(), None)
}

/// The same address behind each softwire.
fn host(softwire: u16) -> Inside {
    host_at(softwire, 10)
}

fn host_at(softwire: u16, last: u8) -> Inside {
    let softwire = Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, softwire));
    Inside { softwire, addr: Ipv4Addr::new(192, 168, 77, last).into() }
}

fn remote(last: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, last), port)
}

fn external(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(POOL[0], port)
}

fn binding(protocol: Protocol, inside: Inside, internal_port: u16, port: u16) -> Binding {
    let external = external(port).into();
    Binding { protocol, inside, internal_port, external, ports: 1, filters: Vec::new(), peer: None }
}

fn filter(text: &str, prefix_len: u8, remote_port: u16) -> Filter {
    Filter { prefix_len, remote_port, remote_addr: text.parse().unwrap() }
}

/// RFC 4787 REQ-1, RFC 5382 REQ-1: one external port for all destinations. RFC 6888 REQ-2: one address for one host.
#[test]
fn the_mapping_is_the_same_for_every_destination() {
    let mut nat = nat();
    for protocol in BOTH {
        let first = nat.outbound(T0, protocol, (host(1), 5000), remote(20, 80), SYN).unwrap();
        assert_eq!(nat.outbound(T0, protocol, (host(1), 5000), remote(21, 81), SYN), Ok(first));
        let other = nat.outbound(T0, protocol, (host(1), 5001), remote(20, 80), SYN).unwrap();
        assert_ne!(other, first);
        assert_eq!(other.ip(), first.ip());
        assert!(DYNAMIC.contains(&first.port()));
    }
}

/// RFC 6333 §6.6: the same inner address behind two softwires is two hosts.
#[test]
fn equal_addresses_of_two_subscribers_are_kept_apart() {
    let mut nat = nat();
    for protocol in BOTH {
        let [one, two] = [1, 2]
            .map(|softwire| nat.outbound(T0, protocol, (host(softwire), 5000), remote(20, 80), SYN).unwrap());
        assert_ne!(one, two);
        assert_eq!(nat.inbound(T0, protocol, one, remote(20, 80), SYN_ACK), Ok((host(1), 5000)));
        assert_eq!(nat.inbound(T0, protocol, two, remote(20, 80), SYN_ACK), Ok((host(2), 5000)));
    }
}

/// Address- and port-dependent filtering (RFC 4787 §5).
#[test]
fn only_answers_come_in_without_a_binding() {
    let mut nat = nat();
    for protocol in BOTH {
        let own = nat.outbound(T0, protocol, (host(1), 5000), remote(20, 80), SYN).unwrap();
        assert_eq!(nat.inbound(T0, protocol, own, remote(20, 80), SYN_ACK), Ok((host(1), 5000)));
        assert_eq!(nat.inbound(T0, protocol, own, remote(20, 81), SYN), Err(Refused::NoMapping));
        assert_eq!(nat.inbound(T0, protocol, own, remote(21, 80), SYN), Err(Refused::NoMapping));
        let next = SocketAddrV4::new(*own.ip(), own.port() + 1);
        assert_eq!(nat.inbound(T0, protocol, next, remote(20, 80), SYN), Err(Refused::NoMapping));
    }
}

/// RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 5508 REQ-1: seconds that a flow lasts with nothing happening.
#[test]
fn idle_flows_are_forgotten() {
    let mut out_only = vec![(Protocol::UDP, 300), (Protocol::TCP, 240), (ICMP, 60)];
    for (protocol, seconds) in out_only.drain(..) {
        let mut nat = nat();
        let own = nat.outbound(T0, protocol, (host(1), 5000), remote(20, 80), SYN).unwrap();
        assert_eq!(nat.next_timeout(), Some(Instant::from_secs(seconds)));
        nat.handle_timeout(Instant::from_millis(seconds * 1000 - 1));
        assert_eq!(nat.inside(protocol, own, remote(20, 80)), Some((host(1), 5000)), "{protocol:?}");
        nat.handle_timeout(Instant::from_secs(seconds));
        assert_eq!(nat.inside(protocol, own, remote(20, 80)), None, "{protocol:?}");
        assert_eq!((nat.flows(), nat.next_timeout()), (0, None));
        let later = Instant::from_secs(seconds);
        assert_eq!(nat.inbound(later, protocol, own, remote(20, 80), ACK), Err(Refused::NoMapping));
    }
}

/// RFC 5382 §5: a connection is established when both ends were heard, and ends with FIN or RST.
#[test]
fn a_connection_lasts_longer_while_it_is_established() {
    let (mut nat, tcp) = (nat(), Protocol::TCP);
    let minute = |minutes: u64| Instant::from_secs(minutes * 60);
    let own = nat.outbound(T0, tcp, (host(1), 5000), remote(20, 80), SYN).unwrap();
    assert_eq!(nat.next_timeout(), Some(minute(4)));
    nat.inbound(T0, tcp, own, remote(20, 80), SYN_ACK).unwrap();
    assert_eq!(nat.next_timeout(), Some(minute(124)));
    nat.outbound(minute(100), tcp, (host(1), 5000), remote(20, 80), ACK).unwrap();
    assert_eq!(nat.next_timeout(), Some(minute(224)));
    nat.inbound(minute(101), tcp, own, remote(20, 80), FIN).unwrap();
    assert_eq!(nat.next_timeout(), Some(minute(105)));
    nat.outbound(minute(102), tcp, (host(1), 5000), remote(20, 80), ACK).unwrap();
    assert_eq!(nat.next_timeout(), Some(minute(106)));
    nat.outbound(minute(103), tcp, (host(1), 5000), remote(20, 80), SYN).unwrap();
    assert_eq!(nat.next_timeout(), Some(minute(227)));
}

/// RFC 7857 §2, RFC 5382 §4.3: a segment that begins nothing makes no mapping.
#[test]
fn tcp_begins_with_a_syn() {
    let mut nat = nat();
    for flags in [ACK, SYN_ACK, FIN, NONE] {
        let refused = nat.outbound(T0, Protocol::TCP, (host(1), 5000), remote(20, 80), flags);
        assert_eq!(refused, Err(Refused::NoMapping), "{flags:?}");
    }
    assert_eq!(nat.flows(), 0);
    let gre = nat.outbound(T0, Protocol(47), (host(1), 0), remote(20, 0), NONE);
    assert_eq!(gre, Err(Refused::Protocol));
}

/// RFC 6887 §11.3: explicit mappings are endpoint-independent, bidirectional, and don't end with a connection.
#[test]
fn a_binding_lets_everybody_in_and_is_what_its_host_comes_from() {
    let mut nat = nat();
    for protocol in BOTH {
        nat.open(binding(protocol, host(1), 80, 8080)).unwrap();
        for peer in [remote(20, 1), remote(21, 2)] {
            assert_eq!(nat.inbound(T0, protocol, external(8080), peer, SYN), Ok((host(1), 80)));
            assert_eq!(nat.outbound(T0, protocol, (host(1), 80), peer, SYN_ACK), Ok(external(8080)));
            assert_eq!(nat.inbound(T0, protocol, external(8080), peer, FIN), Ok((host(1), 80)));
        }
        // It needs no SYN: the mapping is there without the flow.
        assert_eq!(nat.outbound(T0, protocol, (host(1), 80), remote(22, 3), ACK), Ok(external(8080)));
        nat.handle_timeout(Instant::from_secs(1_000_000));
        assert_eq!(nat.inbound(T0, protocol, external(8080), remote(20, 1), ACK), Ok((host(1), 80)));
        assert_eq!(nat.inbound(T0, protocol, external(8081), remote(20, 1), SYN), Err(Refused::NoMapping));
        let other = SocketAddrV4::new(POOL[1], 8080);
        assert_eq!(nat.inbound(T0, protocol, other, remote(20, 1), SYN), Err(Refused::NoMapping));
    }
}

/// RFC 6887 §15: what is deleted is closed, also to those who were in; other flows of the host go on.
#[test]
fn a_closed_binding_ends_its_flows_and_no_others() {
    let (mut nat, udp) = (nat(), Protocol::UDP);
    let closing = binding(udp, host(1), 80, 8080);
    nat.open(closing.clone()).unwrap();
    nat.open(binding(udp, host(1), 81, 8081)).unwrap();
    for port in [8080, 8081] {
        nat.inbound(T0, udp, external(port), remote(20, 1), NONE).unwrap();
    }
    let own = nat.outbound(T0, udp, (host(1), 5000), remote(20, 1), NONE).unwrap();
    nat.close(&closing);
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(20, 1), NONE), Err(Refused::NoMapping));
    assert_eq!(nat.inbound(T0, udp, external(8081), remote(20, 1), NONE), Ok((host(1), 81)));
    assert_eq!(nat.inbound(T0, udp, own, remote(20, 1), NONE), Ok((host(1), 5000)));
    let now_dynamic = nat.outbound(T0, udp, (host(1), 80), remote(20, 1), NONE).unwrap();
    assert!(DYNAMIC.contains(&now_dynamic.port()));
    nat.close(&closing); // once more is no harm
}

/// RFC 6887 §13.3.
#[test]
fn filters_are_enforced() {
    let (mut nat, udp) = (nat(), Protocol::UDP);
    let filters = vec![filter("::ffff:198.51.100.20", 128, 0), filter("::ffff:198.51.100.64", 122, 77)];
    nat.open(Binding { filters, ..binding(udp, host(1), 80, 8080) }).unwrap();
    let rows = [
        (remote(20, 1), true),
        (remote(20, 65_535), true),
        (remote(21, 1), false),
        (remote(64, 77), true),
        (remote(127, 77), true),
        (remote(64, 78), false),
        (remote(128, 77), false),
    ];
    for (peer, allowed) in rows {
        let expected = if allowed { Ok((host(1), 80)) } else { Err(Refused::Filtered) };
        assert_eq!(nat.inbound(T0, udp, external(8080), peer, NONE), expected, "{peer}");
    }
    // Whom the host itself has asked may answer.
    assert_eq!(nat.outbound(T0, udp, (host(1), 80), remote(21, 1), NONE), Ok(external(8080)));
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(21, 1), NONE), Ok((host(1), 80)));
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(22, 1), NONE), Err(Refused::Filtered));
}

/// RFC 6887 §13.3: the filter's address has the family of the internal one, which a NAT64's prefix gives it.
#[test]
fn a_nat64_knows_peers_by_its_prefix_too() {
    let (udp, inside) = (Protocol::UDP, Inside { softwire: None, addr: Ipv6Addr::LOCALHOST.into() });
    let mut nat = Nat::new(POOL.to_vec(), Some(Prefix64::WELL_KNOWN));
    let filters = vec![filter("64:ff9b::198.51.100.20", 128, 0)];
    nat.open(Binding { filters, ..binding(udp, inside, 80, 8080) }).unwrap();
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(20, 1), NONE), Ok((inside, 80)));
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(21, 1), NONE), Err(Refused::Filtered));
    let peer = "[64:ff9b::198.51.100.22]:5".parse().unwrap();
    nat.open(Binding { peer: Some(peer), ..binding(udp, inside, 81, 8081) }).unwrap();
    assert_eq!(nat.inbound(T0, udp, external(8081), remote(22, 5), NONE), Ok((inside, 81)));
    assert_eq!(nat.inbound(T0, udp, external(8081), remote(22, 6), NONE), Err(Refused::Filtered));
}

/// RFC 6887 §12: PEER's mapping is for its remote peer; several of them, and a MAP, may share a port.
#[test]
fn a_peer_binding_is_for_its_remote_peer() {
    let (mut nat, udp) = (nat(), Protocol::UDP);
    let to = |last| Binding { peer: Some(remote(last, 9).into()), ..binding(udp, host(1), 80, 8080) };
    nat.open(to(20)).unwrap();
    nat.open(to(21)).unwrap();
    assert_eq!(nat.open(to(20)), Err(Taken), "it is there already");
    assert_eq!(nat.open(Binding { inside: host(2), ..to(22) }), Err(Taken));
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(20, 9), NONE), Ok((host(1), 80)));
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(21, 9), NONE), Ok((host(1), 80)));
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(22, 9), NONE), Err(Refused::Filtered));
    assert_eq!(nat.outbound(T0, udp, (host(1), 80), remote(22, 9), NONE), Ok(external(8080)));
    nat.close(&to(20));
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(20, 9), NONE), Err(Refused::Filtered));
    nat.open(binding(udp, host(1), 80, 8080)).unwrap();
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(20, 9), NONE), Ok((host(1), 80)));
}

/// RFC 7753.
#[test]
fn a_set_of_ports_is_mapped_one_to_one() {
    let (mut nat, udp) = (nat(), Protocol::UDP);
    let set = Binding { ports: 4, ..binding(udp, host(1), 100, 8080) };
    nat.open(set.clone()).unwrap();
    for at in 0..4 {
        let (port, internal) = (8080 + at, 100 + at);
        assert_eq!(nat.inbound(T0, udp, external(port), remote(20, 1), NONE), Ok((host(1), internal)));
        assert_eq!(nat.outbound(T0, udp, (host(1), internal), remote(21, 1), NONE), Ok(external(port)));
        assert_eq!(nat.open(binding(udp, host(2), 7, port)), Err(Taken));
    }
    assert_eq!(nat.inbound(T0, udp, external(8084), remote(20, 1), NONE), Err(Refused::NoMapping));
    assert_eq!(nat.open(Binding { ports: 2, ..binding(udp, host(2), 1, 8079) }), Err(Taken));
    nat.close(&set);
    nat.open(Binding { ports: 2, ..binding(udp, host(2), 1, 8079) }).unwrap();
    let bad = [
        Binding { ports: 0, ..set.clone() },
        Binding { ports: 2, ..binding(udp, host(1), 65_535, 90) },
        Binding { ports: 2, ..binding(udp, host(1), 90, 65_535) },
        binding(udp, host(1), 0, 90),
        binding(udp, host(1), 90, 0),
        binding(Protocol::ALL, host(1), 90, 90),
        Binding { external: "192.0.2.1:90".parse().unwrap(), ..set.clone() },
        Binding { external: "[2001:db8::1]:90".parse().unwrap(), ..set },
    ];
    for binding in bad {
        assert_eq!(nat.open(binding.clone()), Err(Taken), "{binding:?}");
    }
}

/// RFC 6887 §11.1: all ports of a protocol, and a "DMZ host", get what nobody else has.
#[test]
fn a_binding_that_is_not_there_is_passed_over() {
    let mut nat = nat();
    let udp = Protocol::UDP;
    for unknown in [
        binding(udp, host(1), 80, 8080),
        Binding { ports: 2, ..binding(udp, host(1), 80, 65_535) },
        Binding { ports: 2, ..binding(udp, host(1), 65_535, 80) },
        Binding { ports: 0, ..binding(udp, host(1), 80, 8080) },
        Binding { ports: u16::MAX, ..binding(Protocol::ALL, host(1), 0, 0) },
    ] {
        nat.close(&unknown);
        assert!(nat.bindings.is_empty(), "{unknown:?}");
    }
}

#[test]
fn a_binding_for_everything_gets_what_is_left() {
    let (mut nat, udp) = (nat(), Protocol::UDP);
    nat.open(binding(udp, host(2), 80, 8080)).unwrap();
    let dynamic = nat.outbound(T0, udp, (host(3), 5000), remote(20, 1), NONE).unwrap();
    let dmz = Binding {
        external: SocketAddrV4::new(*dynamic.ip(), 0).into(),
        ..binding(Protocol::ALL, host(1), 0, 0)
    };
    nat.open(dmz.clone()).unwrap();
    let at = |port| SocketAddrV4::new(*dynamic.ip(), port);
    assert_eq!(nat.inbound(T0, udp, at(5000), remote(20, 1), NONE), Ok((host(1), 5000)));
    assert_eq!(nat.inbound(T0, Protocol(47), at(0), remote(20, 0), NONE), Ok((host(1), 0)));
    assert_eq!(nat.outbound(T0, Protocol(47), (host(1), 0), remote(21, 0), NONE), Ok(at(0)));
    assert_eq!(nat.inbound(T0, udp, dynamic, remote(20, 1), NONE), Ok((host(3), 5000)));
    assert_eq!(nat.inbound(T0, udp, dynamic, remote(21, 1), NONE), Err(Refused::NoMapping));
    assert_eq!(nat.outbound(T0, udp, (host(1), 9), remote(21, 1), NONE), Ok(at(9)));
    let taken = nat.outbound(T0, udp, (host(1), dynamic.port()), remote(21, 1), NONE).unwrap();
    assert_ne!(taken, dynamic, "that port is another host's");
    nat.close(&dmz);
    assert_eq!(nat.inbound(T0, udp, at(5000), remote(20, 1), NONE), Err(Refused::NoMapping));
}

/// What "DMZ hosts" use of their own accord gives way to a binding, and not to what other hosts send.
#[test]
fn a_binding_takes_a_port_from_who_has_all_of_them() {
    let (mut nat, udp) = (Nat::new(vec![POOL[0]], None), Protocol::UDP);
    nat.open(binding(Protocol::ALL, host(1), 0, 0)).unwrap();
    let first = *DYNAMIC.start();
    assert_eq!(nat.outbound(T0, udp, (host(1), first), remote(20, 1), NONE), Ok(external(first)));
    let theirs = nat.outbound(T0, udp, (host(2), 7), remote(20, 1), NONE).unwrap();
    assert_ne!(theirs, external(first));
    nat.open(binding(udp, host(2), 80, first)).unwrap();
    assert_eq!(nat.inbound(T0, udp, external(first), remote(20, 1), NONE), Ok((host(2), 80)));
    let moved = nat.outbound(T0, udp, (host(1), first), remote(20, 1), NONE).unwrap();
    assert_eq!(nat.inbound(T0, udp, moved, remote(20, 1), NONE), Ok((host(1), first)));
}

#[test]
fn an_external_port_is_one_hosts() {
    let (mut nat, udp) = (nat(), Protocol::UDP);
    let theirs = nat.outbound(T0, udp, (host(1), 5000), remote(20, 1), NONE).unwrap();
    let at = |inside, port| Binding { external: theirs.into(), ..binding(udp, inside, port, 1) };
    assert_eq!(nat.open(at(host(2), 5000)), Err(Taken));
    assert_eq!(nat.open(at(host(1), 5001)), Err(Taken));
    nat.open(at(host(1), 5000)).unwrap(); // RFC 6887 §11.3: a mapping it has becomes explicit
    assert_eq!(nat.inbound(T0, udp, theirs, remote(21, 1), NONE), Ok((host(1), 5000)));
    // A binding among the dynamic ports is stepped over.
    let next = SocketAddrV4::new(*theirs.ip(), theirs.port() + 1);
    nat.open(Binding { external: next.into(), ..binding(udp, host(1), 7, 1) }).unwrap();
    let other = nat.outbound(T0, udp, (host(1), 6000), remote(20, 1), NONE).unwrap();
    assert_ne!(other, next);
}

#[test]
fn a_replacement_takes_the_place_or_leaves_it() {
    let (mut nat, udp) = (nat(), Protocol::UDP);
    let (old, other) = (binding(udp, host(1), 80, 8080), binding(udp, host(2), 80, 8081));
    nat.open(old.clone()).unwrap();
    nat.open(other.clone()).unwrap();
    let onto = Binding { external: other.external, ..old.clone() };
    assert_eq!(nat.replace(&old, onto), Err(Taken));
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(20, 1), NONE), Ok((host(1), 80)));
    let new = Binding { filters: vec![filter("::ffff:198.51.100.21", 128, 0)], ..old.clone() };
    assert_eq!(nat.replace(&old, new), Ok(()));
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(20, 1), NONE), Err(Refused::Filtered));
    assert_eq!(nat.inbound(T0, udp, external(8080), remote(21, 1), NONE), Ok((host(1), 80)));
}

#[test]
fn every_port_can_be_used_and_not_one_more() {
    let mut nat = Nat::new(vec![POOL[0]], None);
    let mut seen = std::collections::BTreeSet::new();
    for port in DYNAMIC {
        let own = nat.outbound(T0, Protocol::UDP, (host(1), port), remote(20, 1), NONE).unwrap();
        assert!(seen.insert(own) && DYNAMIC.contains(&own.port()));
    }
    let full = nat.outbound(T0, Protocol::UDP, (host(2), 1), remote(20, 1), NONE);
    assert_eq!(full, Err(Refused::NoPort));
    nat.outbound(T0, Protocol::TCP, (host(2), 1), remote(20, 1), SYN).unwrap(); // another protocol's ports are free
    nat.handle_timeout(T0 + idle::UDP);
    nat.outbound(T0, Protocol::UDP, (host(2), 1), remote(20, 1), NONE).unwrap();
}

#[test]
fn bindings_are_read_as_they_are_written() {
    let inside = host(2);
    let expected = Binding { protocol: Protocol::TCP, ..binding(Protocol::UDP, inside, 80, 8080) };
    let text = "tcp/192.168.77.10:80@2001:db8::2=203.0.114.1:8080";
    assert_eq!(read_binding(text), Some(expected.clone()));
    let inside = Inside { softwire: None, addr: Ipv6Addr::LOCALHOST.into() };
    let expected = Binding { protocol: Protocol(17), inside, ..expected };
    assert_eq!(read_binding("17/[::1]:80=203.0.114.1:8080"), Some(expected));
    for text in
        ["", "tcp/192.168.77.10:80", "tcp/192.168.77.10=203.0.114.1:80", "x/192.168.77.10:1=203.0.114.1:1"]
    {
        assert_eq!(read_binding(text), None, "{text}");
    }
}

/// What holds at any moment.
fn check(nat: &Nat) {
    assert_eq!(nat.dynamic.len(), nat.by_external.len());
    for ((inside, protocol, port), dynamic) in &nat.dynamic {
        let key = (*protocol, *dynamic.external.ip(), dynamic.external.port());
        assert_eq!(nat.by_external.get(&key), Some(&(*inside, *port)));
        let uses = |(flow, session): &(&Flow, &Session)| {
            (flow.inside, flow.protocol, flow.port) == (*inside, *protocol, *port)
                && session.external == dynamic.external
        };
        assert_eq!(nat.sessions.iter().filter(uses).count(), dynamic.flows);
        assert!(dynamic.flows > 0);
    }
    let mut owners = BTreeMap::new();
    for (flow, session) in &nat.sessions {
        let host = (flow.inside, flow.port);
        let owner = owners.entry((flow.protocol, session.external)).or_insert(host);
        assert_eq!(*owner, host, "{:?} is two hosts'", session.external);
        let back = nat.inside(flow.protocol, session.external, flow.remote);
        assert_eq!(back, Some(host), "{flow:?} {session:?}");
        let used = (flow.protocol, *session.external.ip(), session.external.port());
        assert_eq!(nat.in_use.get(&used).map(|(host, _)| *host), Some(host));
    }
    assert_eq!(nat.in_use.values().map(|(_, flows)| flows).sum::<usize>(), nat.sessions.len());
    assert_eq!(nat.next_timeout().is_some(), !nat.sessions.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Out(Protocol, u16, u16, u8),
    In(Protocol, u16, u8),
    Open(Binding),
    Close(prop::sample::Index),
    Pass(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    let protocol = || prop::sample::select(vec![Protocol::TCP, Protocol::UDP]);
    let port = || prop::sample::select(vec![80_u16, 81, 82, 32_768, 32_769, 32_770, 32_771]);
    let any_binding = (protocol(), 1..4_u16, port(), port(), 1..3_u16, 0..8_u8, any::<bool>());
    prop_oneof![
        4 => (protocol(), 1..4_u16, port(), 1..4_u8).prop_map(|(p, host, port, to)| Step::Out(p, host, port, to)),
        4 => (protocol(), port(), 1..4_u8).prop_map(|(p, port, from)| Step::In(p, port, from)),
        2 => any_binding.prop_map(|(p, softwire, internal, port, ports, kind, peer)| {
            let mut binding = Binding { ports, ..binding(p, host(softwire), internal, port) };
            if kind == 0 {
                binding = Binding { ports: 1, ..super::tests::binding(p, host(softwire), 0, 0) };
            } else if kind == 1 {
                binding = super::tests::binding(Protocol::ALL, host(softwire), 0, 0);
            }
            binding.peer = peer.then(|| remote(1, 9).into());
            Step::Open(binding)
        }),
        1 => any::<prop::sample::Index>().prop_map(Step::Close),
        1 => (0..400_u64).prop_map(Step::Pass),
    ]
}

proptest! {
    // A failure becomes a test of its own.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_every_flow_has_its_own_way_back(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut nat = Nat::new(vec![POOL[0]], None);
        let (mut now, mut open) = (T0, Vec::<Binding>::new());
        for step in steps {
            match step {
                Step::Out(protocol, softwire, port, to) => {
                    let (own, to) = ((host(softwire), port), remote(to, 9));
                    let external = nat.outbound(now, protocol, own, to, SYN).unwrap();
                    prop_assert_eq!(nat.inbound(now, protocol, external, to, ACK), Ok(own));
                }
                Step::In(protocol, port, from) => {
                    let (external, from) = (external(port), remote(from, 9));
                    if let Ok(own) = nat.inbound(now, protocol, external, from, SYN) {
                        prop_assert_eq!(nat.outbound(now, protocol, own, from, ACK), Ok(external));
                    }
                }
                Step::Open(binding) => {
                    if nat.open(binding.clone()).is_ok() {
                        open.push(binding);
                    }
                }
                Step::Close(index) if !open.is_empty() => nat.close(&open.swap_remove(index.index(open.len()))),
                Step::Close(_) => {}
                Step::Pass(seconds) => {
                    now = now + Duration::from_secs(seconds);
                    nat.handle_timeout(now);
                }
            }
            check(&nat);
        }
        for binding in open {
            nat.close(&binding);
        }
        nat.handle_timeout(now + Duration::from_secs(100_000));
        check(&nat);
        prop_assert!(nat.sessions.is_empty() && nat.bindings.is_empty() && nat.in_use.is_empty());
    }
}

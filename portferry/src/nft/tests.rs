use super::*;

fn tcp(external_port: u16, host: u8, port: u16) -> Nat1Rule {
    let internal = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, host), port);
    Nat1Rule { protocol: TCP, external_port, internal, remote_peer: None }
}

fn apply(table: &mut Table, changes: &[Change]) -> Plan {
    let mut plan = table.plan(changes).unwrap();
    table.commit(std::mem::take(&mut plan.after));
    plan
}

#[test]
fn a_batch_is_the_difference_of_two_tables() {
    let mut table = Table::default();
    let (a, b) = (tcp(80, 2, 8080), tcp(80, 3, 8080));
    assert_eq!(apply(&mut table, &[Change::Add(a), Change::Add(a)]).added, [a]);
    assert!(table.plan(&[Change::Add(a)]).unwrap().is_empty(), "an equal mapping is no change");
    assert!(table.plan(&[Change::Remove(a), Change::Add(a)]).unwrap().removed.is_empty());

    let plan = apply(&mut table, &[Change::Replace { old: a, new: b }]);
    assert_eq!((plan.removed.as_slice(), plan.added.as_slice()), ([a].as_slice(), [b].as_slice()));
    assert_eq!(plan.sources_removed, [(TCP, a.internal)]);
    assert_eq!(plan.sources_added, [((TCP, b.internal), 80)]);
    assert_eq!(plan.flows(), [Flows::Mapped(a)]);
}

#[test]
fn a_source_keeps_its_oldest_port_and_then_takes_the_next() {
    let mut table = Table::default();
    let (first, second) = (tcp(81, 2, 8080), tcp(80, 2, 8080));
    let plan = apply(&mut table, &[Change::Add(first), Change::Add(second)]);
    assert_eq!(plan.sources_added, [((TCP, first.internal), 81)]);
    let plan = apply(&mut table, &[Change::Remove(first)]);
    assert_eq!(plan.sources_removed, [(TCP, first.internal)]);
    assert_eq!(plan.sources_added, [((TCP, first.internal), 80)]);
    apply(&mut table, &[Change::Remove(second)]);
    assert!(table.mappings.is_empty() && table.sources.is_empty());
}

#[test]
fn wrong_changes_are_named() {
    let mut table = Table::default();
    apply(&mut table, &[Change::Add(tcp(80, 2, 8080))]);
    let kind = |change| table.plan(&[change]).err().map(|e| e.kind());
    assert_eq!(kind(Change::Add(tcp(80, 3, 8080))), Some(ErrorKind::AlreadyExists));
    assert_eq!(kind(Change::Remove(tcp(80, 3, 8080))), Some(ErrorKind::NotFound));
    assert_eq!(kind(Change::Remove(tcp(81, 2, 8080))), Some(ErrorKind::NotFound));
    assert_eq!(kind(Change::Add(tcp(0, 2, 8080))), Some(ErrorKind::InvalidInput));
    assert_eq!(kind(Change::Add(Nat1Rule { protocol: 1, ..tcp(82, 2, 1) })), Some(ErrorKind::InvalidInput));
    let peer = Nat1Rule { remote_peer: Some(Ipv4Addr::new(192, 0, 2, 1)), ..tcp(80, 3, 8080) };
    assert_eq!(kind(Change::Add(peer)), None, "another remote peer is another key");
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

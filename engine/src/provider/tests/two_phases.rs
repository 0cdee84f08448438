//! The data plane does what it is told before anybody hears of it; when it does not, nothing has changed.

use super::*;

fn hesitating() -> Bench {
    let mut bench = server();
    bench.nat = Nat::Hesitates;
    bench
}

fn results(bench: &mut Bench) -> Vec<(u8, u32)> {
    let answers = std::mem::take(&mut bench.sent);
    let read = |bytes: &[u8]| {
        let response = Response::parse(bytes).expect("well-formed");
        (response.result.0, response.lifetime)
    };
    answers.iter().map(|(.., bytes)| read(bytes)).collect()
}

/// Nothing is told, listed or stored before the data plane has answered; the lifetime counts from then.
#[test]
fn an_answer_waits() {
    let mut bench = hesitating();
    let request = map(600, data(1, 80, 9090), &[]);
    assert_eq!(bench.answer(at(0), &arrival(CLIENT), &request.to_bytes()), None);
    assert_eq!((bench.mappings().len(), bench.store.len(), bench.tickets.len()), (0, 0, 1));
    bench.nat_answers_all(at(2));
    assert_eq!(results(&mut bench), [(0, 600)]);
    assert_eq!((bench.mappings()[0].ends, bench.store.len()), (at(602), 1));
    // A renewal changes nothing there, so it waits for nothing.
    assert!(bench.answer(at(3), &arrival(CLIENT), &request.to_bytes()).is_some());
    // Filters do, and a delete does.
    let host = filter(OTHER.to_ipv6_mapped(), 128);
    let filtered = map(600, data(1, 80, 0), &[host]);
    assert_eq!(bench.answer(at(4), &arrival(CLIENT), &filtered.to_bytes()), None);
    assert!(bench.mappings()[0].filters.is_empty());
    bench.nat_answers_all(at(5));
    assert_eq!((results(&mut bench), bench.mappings()[0].filters.len()), (vec![(0, 600)], 1));
    assert_eq!(bench.answer(at(6), &arrival(CLIENT), &map(0, data(1, 80, 0), &[]).to_bytes()), None);
    assert_eq!(bench.mappings().len(), 1);
    bench.nat_answers_all(at(7));
    assert_eq!((results(&mut bench), bench.mappings().len(), bench.store.len()), (vec![(0, 0)], 0, 0));
}

/// NETWORK_FAILURE or NO_RESOURCES, for 30 seconds; nothing has changed, and no port is held. Told once.
#[test]
fn a_refusal_changes_nothing() {
    let strict = |n: u8, internal, port| map(600, data(n, internal, port), &[PcpOption::PreferFailure]);
    for (refused, result) in
        [(NatRefused::Failed, ResultCode::NETWORK_FAILURE), (NatRefused::Full, ResultCode::NO_RESOURCES)]
    {
        let mut bench = server();
        outcome(&mut bench, at(0), &strict(1, 80, 9090));
        let before = format!("{:?} {:?}", bench.mappings(), bench.store);
        bench.nat = Nat::Refuses(refused);
        let host = filter(OTHER.to_ipv6_mapped(), 128);
        for (what, request) in [
            ("new", strict(2, 81, 9091)),
            ("filters", map(900, data(1, 80, 9092), &[host, text(b"other")])),
            ("delete", map(0, data(1, 80, 9093), &[])),
        ] {
            let response = ask(&mut bench, at(1), &request);
            assert_eq!((response.result, response.lifetime), (result, 30), "{what}");
            assert_eq!((response.body, response.options), (request.body, request.options), "{what}");
            assert_eq!(format!("{:?} {:?}", bench.mappings(), bench.store), before, "{what}");
        }
        let natpmp = raw(&mut bench, at(1), CLIENT, &hex("00010000 00630c38 00000e10")).expect("an answer");
        assert_eq!(natpmp[3], if refused == NatRefused::Failed { 3 } else { 4 });
        bench.nat = Nat::Obeys;
        assert_eq!(outcome(&mut bench, at(1), &by(OTHER, strict(3, 80, 9091))).0, ResultCode::SUCCESS);
        let told: Vec<_> = bench.notices.iter().skip(1).copied().collect();
        assert_eq!(told, [Notice::NatRefuses(refused), Notice::NatWorks]);
        assert_eq!(bench.server.counters().nat_refusals, 4);
    }
}

/// The same request again while it is being done is done once, and answered once; another one about the same mapping waits for its
/// turn, and too many do not.
#[test]
fn requests_about_what_is_being_done() {
    let mut bench = hesitating();
    let send =
        |bench: &mut Bench, request: &Request| bench.datagram(at(0), &arrival(CLIENT), &request.to_bytes());
    let make = map(600, data(1, 80, 9090), &[]);
    for _ in 0..5 {
        send(&mut bench, &make);
    }
    assert_eq!((bench.tickets.len(), bench.refusals(Reason::Retransmission)), (1, 4));
    let foreign = map(600, data(2, 80, 9090), &[]);
    send(&mut bench, &foreign);
    assert_eq!(results(&mut bench), [(2, 600)], "another's nonce is refused at once");
    send(&mut bench, &map(300, data(1, 80, 9090), &[]));
    send(&mut bench, &map(0, data(1, 80, 0), &[]));
    send(&mut bench, &map(0, data(1, 80, 0), &[]));
    send(&mut bench, &map(900, data(1, 80, 9090), &[]));
    assert_eq!((bench.tickets.len(), bench.refusals(Reason::Retransmission)), (1, 5));
    send(&mut bench, &map(901, data(1, 80, 0), &[]));
    send(&mut bench, &map(902, data(1, 80, 0), &[]));
    assert_eq!(bench.refusals(Reason::Busy), 1);
    bench.nat_answers_all(at(1));
    // Made, shortened, deleted, made again with the two that came behind.
    assert_eq!(results(&mut bench), [(0, 600), (0, 300), (0, 0), (0, 900), (0, 901)]);
    assert_eq!(bench.mappings()[0].external.port(), 9090);
    assert!(bench.server.waiting.is_empty());
}

/// What waits is bounded, for each and for all; nobody's flood takes the turn of another.
#[test]
fn what_waits_is_bounded() {
    let mut bench = hesitating().set(|config| config.quota = 10_000);
    for port in 1..=1000 {
        bench.datagram(at(0), &arrival(CLIENT), &map(600, data(1, port, 0), &[]).to_bytes());
    }
    assert_eq!((bench.tickets.len(), bench.refusals(Reason::Busy)), (64, 936));
    bench.datagram(at(0), &arrival(OTHER), &by(OTHER, map(600, data(1, 1, 0), &[])).to_bytes());
    assert_eq!(bench.tickets.len(), 65);
    bench.nat_answers_all(at(1));
    assert_eq!((bench.mappings().len(), bench.server.asked), (65, 0));
    assert_eq!(results(&mut bench).len(), 65);
}

/// A mapping that ends while the data plane is out of order stays closed to everybody else, and is closed as soon as that works.
#[test]
fn an_end_that_is_refused() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(600, data(1, 80, 9090), &[]));
    bench.nat = Nat::Refuses(NatRefused::Failed);
    bench.timeout(at(600));
    let strict = by(OTHER, map(600, data(2, 80, 9090), &[PcpOption::PreferFailure]));
    assert_eq!(outcome(&mut bench, at(601), &strict).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    assert_eq!((bench.bindings.len(), bench.server.next_timeout()), (1, Some(at(605))));
    bench.nat = Nat::Obeys;
    bench.timeout(at(605));
    assert_eq!((bench.bindings.len(), bench.store.len(), bench.server.counters().ended), (0, 0, 1));
    // Its owner may take it up again instead.
    outcome(&mut bench, at(700), &map(600, data(1, 81, 9191), &[]));
    bench.nat = Nat::Refuses(NatRefused::Failed);
    bench.timeout(at(1300));
    assert_eq!(
        outcome(&mut bench, at(1301), &map(600, data(1, 81, 0), &[])),
        (ResultCode::SUCCESS, 600, 9191)
    );
    bench.nat = Nat::Obeys;
    bench.timeout(at(1400));
    assert_eq!(bench.mappings()[0].ends, at(1901));
}

/// The same where there is no external address any more: the data plane is asked once, and again after a while, not all the time.
#[test]
fn an_end_without_a_place_that_is_refused() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(600, data(1, 80, 9090), &[]));
    bench.nat = Nat::Refuses(NatRefused::Full);
    bench.config_mut().pool.clear();
    bench.apply_settings(at(10));
    assert_eq!((bench.bindings.len(), bench.server.counters().nat_refusals), (1, 1));
    assert_eq!(bench.server.next_timeout(), Some(at(10)));
    bench.timeout(at(10));
    assert_eq!((bench.server.counters().nat_refusals, bench.server.next_timeout()), (2, Some(at(15))));
    bench.nat = Nat::Obeys;
    bench.timeout(at(15));
    assert_eq!((bench.bindings.len(), bench.mappings().len()), (0, 0));
}

/// A request about a mapping that is just ending waits, and has a new one with its old port.
#[test]
fn a_renewal_that_is_late() {
    let mut bench = hesitating();
    let request = map(600, data(1, 80, 9090), &[]);
    bench.datagram(at(0), &arrival(CLIENT), &request.to_bytes());
    bench.nat_answers_all(at(0));
    bench.datagram(at(600), &arrival(CLIENT), &map(600, data(1, 80, 0), &[]).to_bytes());
    assert_eq!(bench.tickets.len(), 1, "it is being closed");
    bench.sent.clear();
    bench.nat_answers_all(at(601));
    assert_eq!(results(&mut bench), [(0, 600)]);
    assert_eq!((bench.mappings().len(), bench.server.counters().ended), (1, 1));
}

/// State that is lost while the data plane is at work: its late word changes nothing.
#[test]
fn an_outcome_that_nobody_waits_for() {
    let mut bench = hesitating();
    bench.datagram(at(0), &arrival(CLIENT), &map(600, data(1, 80, 9090), &[]).to_bytes());
    bench.datagram(at(0), &arrival(CLIENT), &map(300, data(1, 80, 9090), &[]).to_bytes());
    bench.server.lose_state(at(1));
    bench.perform(at(1));
    bench.nat_answers_all(at(2));
    assert_eq!((results(&mut bench), bench.mappings().len(), bench.bindings.len()), (vec![], 0, 0));
}

/// The same in the middle of a change, a move and a deletion, whatever the data plane has made of them: nothing stays open.
#[test]
fn state_that_is_lost_in_the_middle_of_a_change() {
    let mut bench = hesitating();
    for port in [80, 81, 82] {
        bench.datagram(at(0), &arrival(CLIENT), &map(600, data(1, port, 9000 + port), &[]).to_bytes());
    }
    bench.nat_answers_all(at(0));
    let host = filter(OTHER.to_ipv6_mapped(), 128);
    bench.datagram(at(1), &arrival(CLIENT), &map(600, data(1, 80, 0), &[host]).to_bytes());
    bench.datagram(at(1), &arrival(CLIENT), &map(0, data(1, 81, 0), &[]).to_bytes());
    bench.config_mut().pool = vec![EXTERNAL_2];
    bench.apply_settings(at(2));
    assert_eq!(bench.tickets.len(), 3, "a filter, a deletion, another address");
    bench.server.lose_state(at(3));
    bench.perform(at(3));
    bench.nat_answers_all(at(4));
    assert_eq!((bench.mappings().len(), &*bench.bindings), (0, &[][..]));
    // What could not be done has changed nothing.
    let mut bench = Bench { nat: Nat::Obeys, ..hesitating() };
    bench.datagram(at(0), &arrival(CLIENT), &map(600, data(1, 80, 9080), &[]).to_bytes());
    bench.nat = Nat::Hesitates;
    let before = bench.bindings.clone();
    bench.datagram(
        at(1),
        &arrival(CLIENT),
        &map(600, data(1, 80, 0), &[filter(OTHER.to_ipv6_mapped(), 128)]).to_bytes(),
    );
    let (ticket, ..) = bench.tickets.pop_front().unwrap();
    bench.bindings = before;
    bench.server.lose_state(at(2));
    bench.server.handle_nat(at(3), ticket, Err(NatRefused::Failed));
    bench.perform(at(3));
    bench.nat_answers_all(at(4));
    assert_eq!(bench.bindings, []);
}

/// An external address that goes while a mapping is being made, changed or closed there.
#[test]
fn an_address_that_goes_meanwhile() {
    let mut bench = hesitating();
    for port in [80, 81, 82] {
        bench.datagram(at(0), &arrival(CLIENT), &map(600, data(1, port, 9000 + port), &[]).to_bytes());
    }
    bench.nat_answers_all(at(0));
    bench.sent.clear();
    let host = filter(OTHER.to_ipv6_mapped(), 128);
    bench.datagram(at(1), &arrival(CLIENT), &map(600, data(1, 80, 0), &[host]).to_bytes());
    bench.datagram(at(1), &arrival(CLIENT), &map(0, data(1, 81, 0), &[]).to_bytes());
    bench.datagram(at(1), &arrival(CLIENT), &map(600, data(1, 83, 9083), &[]).to_bytes());
    bench.config_mut().pool = vec![EXTERNAL_2];
    bench.apply_settings(at(2));
    bench.nat_answers_all(at(3));
    bench.nat = Nat::Obeys;
    bench.check();
    let external: Vec<_> = bench.mappings().iter().map(|m| (m.external, m.filters.len())).collect();
    let there = |port, filters| (SocketAddr::from((EXTERNAL_2, port)), filters);
    assert_eq!(external, [there(9080, 1), there(9082, 0), there(9083, 0)]);
    // No address at all: nothing is left, and who asks is told.
    bench.config_mut().pool.clear();
    assert_eq!(
        outcome(&mut bench, at(4), &map(600, data(1, 80, 0), &[])),
        (ResultCode::NETWORK_FAILURE, 30, 0)
    );
    assert_eq!((bench.mappings().len(), bench.bindings.len()), (0, 0));
}

/// A port that something else on this machine has: the client gets the next one, and nobody gets that one for ten minutes. Who
/// insists on it is told that it cannot be had.
#[test]
fn a_port_that_is_taken_on_this_machine() {
    let mut bench = hesitating().set(|config| config.ports = 2000..=2049);
    let strict = [PcpOption::PreferFailure];
    let send = |bench: &mut Bench, now, request: &Request| {
        bench.datagram(now, &arrival(pcp::ip_from_wire(request.client_addr)), &request.to_bytes());
    };
    let refuse = |bench: &mut Bench, now| {
        let (ticket, _) = bench.tickets.pop_front().expect("it is tried");
        bench.server.handle_nat(now, ticket, Err(NatRefused::Taken));
        bench.perform(now);
    };
    let port = |bench: &mut Bench| {
        let (.., bytes) = bench.sent.pop_front().expect("an answer");
        let response = Response::parse(&bytes).expect("well-formed");
        let Body::Map(map) = response.body else { panic!("{response:?}") };
        assert!(bench.sent.is_empty(), "one answer");
        (response.result, map.external_port)
    };
    send(&mut bench, at(0), &map(600, data(1, 80, 2010), &[]));
    refuse(&mut bench, at(0));
    send(&mut bench, at(0), &map(600, data(1, 80, 2010), &[]));
    assert_eq!((bench.tickets.len(), bench.refusals(Reason::Retransmission)), (1, 1));
    bench.nat_answers_all(at(1));
    assert_eq!(port(&mut bench), (ResultCode::SUCCESS, 2000));
    assert_eq!(bench.server.pool.held_by(Subscriber::V4(CLIENT)), 0, "that is not its fault");
    send(&mut bench, at(2), &by(OTHER, map(600, data(2, 80, 2010), &strict)));
    assert_eq!(port(&mut bench), (ResultCode::CANNOT_PROVIDE_EXTERNAL, 2010));
    send(&mut bench, at(2), &map(600, data(1, 81, 2020), &strict));
    refuse(&mut bench, at(2));
    assert_eq!(port(&mut bench), (ResultCode::CANNOT_PROVIDE_EXTERNAL, 2020));
    // So often and no more.
    send(&mut bench, at(3), &map(600, data(1, 82, 0), &[]));
    for _ in 0..9 {
        refuse(&mut bench, at(3));
    }
    assert_eq!((port(&mut bench), bench.tickets.len()), ((ResultCode::NO_RESOURCES, 0), 0));
    assert_eq!((bench.mappings().len(), bench.server.pool.holds()), (1, 11));
    let told = |notice: &Notice| matches!(notice, Notice::NatRefuses(_) | Notice::NatWorks);
    assert!(!bench.notices.iter().any(told), "the data plane is in order");
    send(&mut bench, at(599), &by(OTHER, map(600, data(2, 80, 2010), &strict)));
    assert_eq!(port(&mut bench).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    send(&mut bench, at(600), &by(OTHER, map(600, data(2, 80, 2010), &strict)));
    bench.nat_answers_all(at(600));
    assert_eq!(port(&mut bench), (ResultCode::SUCCESS, 2010));
    // NAT-PMP gets another one, too, and a set another place.
    bench.datagram(at(601), &arrival(CLIENT), &hex("00020000 005007e4 00000e10"));
    refuse(&mut bench, at(601));
    bench.nat_answers_all(at(601));
    let (.., bytes) = bench.sent.pop_front().expect("an answer");
    assert_eq!(bytes[3], 0);
    assert_ne!(bytes[10..12], 2020_u16.to_be_bytes());
    send(&mut bench, at(602), &map(600, data(1, 200, 0), &[port_set(4, 200, false)]));
    refuse(&mut bench, at(602));
    bench.nat_answers_all(at(602));
    assert_eq!((port(&mut bench).0, bench.mappings()[1].ports), (ResultCode::SUCCESS, 4));
}

/// What one binding is refused for is its client's business: the data plane is in order.
#[test]
fn a_binding_that_the_data_plane_cannot_make() {
    let host = filter(OTHER.to_ipv6_mapped(), 128);
    let all = MapData { protocol: Protocol::ALL, ..data(1, 0, 0) };
    for (what, request, result) in [
        (
            "filters",
            map(600, data(1, 80, 0), std::slice::from_ref(&host)),
            ResultCode::EXCESSIVE_REMOTE_PEERS,
        ),
        ("everything", map(600, all, &[]), ResultCode::UNSUPP_PROTOCOL),
        ("something else", map(600, data(1, 80, 0), &[]), ResultCode::NETWORK_FAILURE),
    ] {
        let mut bench = server().set(|config| config.all_protocols = true);
        bench.nat = Nat::Refuses(NatRefused::Unfit);
        assert_eq!(outcome(&mut bench, at(0), &request).0, result, "{what}");
        bench.nat = Nat::Obeys;
        assert_eq!(outcome(&mut bench, at(1), &map(600, data(2, 443, 0), &[])).0, ResultCode::SUCCESS);
        bench.nat = Nat::Refuses(NatRefused::Unfit);
        let renewed = outcome(&mut bench, at(2), &map(600, data(2, 443, 0), std::slice::from_ref(&host)));
        assert_eq!(renewed.0, ResultCode::EXCESSIVE_REMOTE_PEERS);
        assert_eq!((bench.mappings().len(), bench.mappings()[0].filters.len()), (1, 0));
        let told = |notice: &Notice| matches!(notice, Notice::NatRefuses(_) | Notice::NatWorks);
        assert!(!bench.notices.iter().any(told), "{what}");
    }
}

/// Whatever clients do, the person who runs it is told of full tables and of a full NAT once a minute at most.
#[test]
fn notices_do_not_flood() {
    let mut bench = server().set(|config| (config.capacity, config.hold) = (1, Duration::ZERO));
    let count = |bench: &Bench, told: fn(&Notice) -> bool| bench.notices.iter().filter(|n| told(n)).count();
    for n in 0..=120 {
        outcome(&mut bench, at(n), &map(600, data(1, 80, 0), &[]));
        outcome(&mut bench, at(n), &map(600, data(1, 81, 0), &[]));
        outcome(&mut bench, at(n), &map(0, data(1, 80, 0), &[]));
    }
    assert_eq!(count(&bench, |notice| matches!(notice, Notice::TableFull(_))), 3);
    let mut bench = server().set(|config| (config.ports, config.hold) = (2000..=2000, Duration::ZERO));
    for n in 0..=120 {
        outcome(&mut bench, at(n), &map(600, data(1, 80, 0), &[]));
        outcome(&mut bench, at(n), &map(600, data(1, 81, 0), &[]));
        outcome(&mut bench, at(n), &map(0, data(1, 80, 0), &[]));
    }
    assert_eq!(count(&bench, |notice| matches!(notice, Notice::PortsUsedUp(_))), 3);
    let mut bench = server();
    for n in 0..=120 {
        bench.nat = Nat::Refuses(NatRefused::Full);
        outcome(&mut bench, at(n), &map(600, data(1, 80, 0), &[]));
        bench.nat = Nat::Obeys;
        outcome(&mut bench, at(n), &map(600, data(1, 80, 0), &[]));
        outcome(&mut bench, at(n), &map(0, data(1, 80, 0), &[]));
    }
    assert_eq!(count(&bench, |notice| matches!(notice, Notice::NatRefuses(NatRefused::Full))), 3);
    assert_eq!(count(&bench, |notice| *notice == Notice::NatWorks), 3);
    // A refusal that could not be told at first is told when it lasts.
    bench.nat = Nat::Refuses(NatRefused::Full);
    for n in [121, 179, 180, 240] {
        outcome(&mut bench, at(n), &map(600, data(1, 80, 0), &[]));
    }
    assert_eq!(count(&bench, |notice| matches!(notice, Notice::NatRefuses(_))), 4);
}

/// Mappings that end all at once are closed a number at a time, so that requests have their turn in between.
#[test]
fn many_ends_at_once() {
    let mut bench = hesitating().set(|config| config.rate = None);
    for port in 1..=200 {
        bench.datagram(at(0), &arrival(CLIENT), &map(600, data(1, port, 0), &[]).to_bytes());
        bench.nat_answers_all(at(0));
    }
    assert_eq!((bench.server.mapping_count(), bench.server.subscriber_count()), (200, 1));
    for closed in [64, 128, 192, 200] {
        assert!(bench.server.next_timeout().is_some_and(|due| due <= at(600)));
        bench.server.handle_timeout(at(600));
        bench.perform(at(600));
        assert_eq!(bench.tickets.len(), closed);
    }
    assert_eq!(bench.server.next_timeout(), Some(at(605)));
    bench.nat_answers_all(at(601));
    assert_eq!((bench.server.mapping_count(), bench.server.subscriber_count()), (0, 0));
}

/// The same for PEER that wants one address and any of its ports: the tries have an end.
#[test]
fn a_peer_whose_ports_are_taken() {
    let mut bench = server();
    bench.nat = Nat::Refuses(NatRefused::Taken);
    for (port, result, changes) in
        [(0, ResultCode::NO_RESOURCES, 9), (9090, ResultCode::CANNOT_PROVIDE_EXTERNAL, 1)]
    {
        let wanted = PeerData {
            external_addr: EXTERNAL.to_ipv6_mapped(),
            external_port: port,
            ..peer_data(1, 80, 443)
        };
        let request = Request { body: Body::Peer(wanted), ..map(600, data(1, 1, 1), &[]) };
        let before = bench.changes;
        assert_eq!(ask(&mut bench, at(0), &request).result, result);
        assert_eq!(bench.changes - before, changes);
    }
}

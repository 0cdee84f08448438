//! Over a restart: what was stored stands again and the epoch goes on, or it begins anew.

use super::*;

/// The server is started again, with what the store has.
fn restarted(old: &Bench, now: Instant) -> Bench {
    let epoch_began = old.epoch_began.expect("it is stored");
    let mut bench = Bench::started(now, old.config.clone(), epoch_began);
    bench.store = old.store.clone();
    bench.epoch_began = old.epoch_began;
    bench.held = old.held.clone();
    let (mappings, holds) = old.stored(now);
    bench.server.restore(now, mappings, holds);
    bench.perform(now);
    bench
}

/// Everything of a mapping comes back, of whatever kind it is: who owned it still does, and nobody else.
#[test]
fn nothing_is_lost() {
    let change = |config: &mut ServerConfig| {
        config.third_party = anybody();
        config.b4 = vec!["2001:db8:b4::/48".parse().expect("a prefix")];
        (config.firewall, config.all_ports, config.query) = (true, true, true);
    };
    let mut bench = server().set(change);
    let b4: IpAddr = "2001:db8:b4::1".parse().expect("an address");
    let v6: IpAddr = "2001:db8:1::1".parse().expect("an address");
    let host = filter(OTHER.to_ipv6_mapped(), 128);
    let peer = Request { body: Body::Peer(peer_data(3, 80, 443)), ..map(3600, data(1, 1, 1), &[]) };
    for request in [
        map(3600, data(1, 80, 9090), &[host, text(b"web")]),
        map(3600, data(2, 100, 9100), &[port_set(8, 100, false)]),
        peer,
        by(OTHER, map(3600, data(4, 80, 9190), &[third(HOST)])),
        by(b4, map(3600, data(5, 80, 9191), &[third(HOST)])),
        by(v6, map(3600, MapData { external_addr: Ipv6Addr::UNSPECIFIED, ..data(6, 443, 0) }, &[])),
    ] {
        assert_eq!(ask(&mut bench, at(0), &request).result, ResultCode::SUCCESS);
    }
    raw(&mut bench, at(0), OTHER, &hex("00010000 00500c38 00000e10")).expect("an answer");
    assert_eq!(bench.mappings().len(), 7);
    let mut again = restarted(&bench, at(1000));
    let words = |bench: &Bench| {
        let of = |mapping: &&ServerMapping| {
            let ServerMapping { requester, subscriber, nonce, description, companion, .. } = mapping;
            format!(
                "{:?} {requester:?} {subscriber:?} {nonce:?} {description:?} {companion}",
                mapping.binding()
            )
        };
        bench.mappings().iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(words(&again), words(&bench));
    assert_eq!(again.server.epoch(at(1000)), 1000);
    assert_eq!((&again.notices[..], again.multicasts.len()), (&[Notice::Restored(7)][..], 0));
    assert_eq!(again.records, 0, "nothing has to be stored for it");
    let foreign = map(600, data(9, 80, 0), &[]);
    assert_eq!(outcome(&mut again, at(1001), &foreign).0, ResultCode::NOT_AUTHORIZED);
    let strict = by(OTHER, map(600, data(9, 1, 9103), &[PcpOption::PreferFailure]));
    assert_eq!(outcome(&mut again, at(1001), &strict).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    let udp = MapData { protocol: Protocol::TCP, ..data(9, 1, 3128) };
    let strict = map(600, udp, &[PcpOption::PreferFailure]);
    assert_eq!(outcome(&mut again, at(1001), &strict).0, ResultCode::CANNOT_PROVIDE_EXTERNAL, "a companion");
    assert_eq!(
        outcome(&mut again, at(1001), &map(600, data(1, 80, 0), &[])),
        (ResultCode::SUCCESS, 600, 9090)
    );
}

/// D-15: what was freed is held over a restart for as long as it would have been, and no longer than the settings say.
#[test]
fn holds_outlive_a_restart() {
    let strict = [PcpOption::PreferFailure];
    let mut bench = server();
    for (nonce, internal, external) in [(1, 80, 9090), (2, 81, 9091), (3, 82, 9092)] {
        outcome(&mut bench, at(0), &map(3600, data(nonce, internal, external), &strict));
        outcome(&mut bench, at(10), &map(0, data(nonce, internal, 0), &[]));
    }
    // One of them has it again.
    outcome(&mut bench, at(20), &map(3600, data(3, 82, 9092), &strict));
    let taken = (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 9090);
    let mut again = restarted(&bench, at(100));
    assert_eq!(outcome(&mut again, at(129), &map(600, data(9, 90, 9090), &strict)), taken);
    assert_eq!(outcome(&mut again, at(129), &map(600, data(1, 80, 9090), &strict)).0, ResultCode::SUCCESS);
    let quota = again.server.pool.held_by(again.mappings()[0].subscriber);
    assert_eq!(quota, 1, "9091 counts for who had it");
    assert_eq!(outcome(&mut again, at(130), &map(600, data(9, 90, 9091), &strict)).0, ResultCode::SUCCESS);
    let (mappings, holds) = bench.stored(at(129));
    assert_eq!((mappings.len(), holds.len(), bench.stored(at(130)).1.len()), (1, 3, 0));

    let change = |config: &mut ServerConfig| config.hold = Duration::from_secs(5);
    let mut shorter = restarted(&bench.set(change), at(100));
    assert_eq!(outcome(&mut shorter, at(104), &map(600, data(9, 90, 9090), &strict)), taken);
    assert_eq!(outcome(&mut shorter, at(105), &map(600, data(9, 90, 9090), &strict)).0, ResultCode::SUCCESS);
}

/// What cannot be set up again is lost, and then the epoch must not go on (RFC 6887 §8.5).
#[test]
fn what_is_lost_begins_a_new_epoch() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(3600, data(1, 80, 9090), &[]));
    outcome(&mut bench, at(0), &map(3600, data(2, 81, 9091), &[]));
    let all = bench.stored(at(100)).0;
    let with = |change: &dyn Fn(&mut StoredMapping)| {
        let mut all = all.clone();
        change(&mut all[1]);
        all
    };
    for (what, config, mappings, stands) in [
        ("whole", config(), all.clone(), 2),
        ("nothing", config(), vec![], 0),
        ("another's port", config(), with(&|one| one.external.set_port(9090)), 1),
        ("beside the pool", config(), with(&|one| one.external.set_ip(OTHER.into())), 1),
        ("a port that is never given out", config(), with(&|one| one.external.set_port(80)), 1),
        ("an IPv6 address", config(), with(&|one| one.external.set_ip(Ipv6Addr::LOCALHOST.into())), 1),
        ("no ports", config(), with(&|one| one.ports = 0), 1),
        ("more ports than there are", config(), with(&|one| one.ports = u16::MAX), 1),
        ("over another", config(), with(&|one| (one.key.port, one.ports) = (79, 2)), 1),
        ("twice", config(), with(&|one| one.key = all[0].key), 1),
        (
            "a protocol that is off",
            ServerConfig { protocols: BTreeSet::from([Protocol::UDP]), ..config() },
            all.clone(),
            0,
        ),
        ("another pool", ServerConfig { pool: vec![EXTERNAL_2], ..config() }, all.clone(), 0),
        ("no pool", ServerConfig { pool: vec![], ..config() }, all.clone(), 0),
    ] {
        let lost = mappings.len() - stands;
        let mut again = Bench::started(at(100), config, at(0));
        again.store = mappings.iter().map(|one| (one.key, (at(100), one.clone()))).collect();
        again.server.restore(at(100), mappings, Vec::new());
        // A line that is there twice in a list is one line of the store.
        if what == "twice" {
            again.store.clear();
            again.store.insert(all[0].key, (at(100), all[0].clone()));
            again.server.outputs.retain(|output| !matches!(output, Output::Store(Record::Remove(_))));
        }
        let records = again.server.outputs.iter().filter(|output| matches!(output, Output::Store(_)));
        let first = records.take(1).all(|record| *record == Output::Store(Record::Epoch));
        assert!(first, "the new epoch is stored before the loss: {what}");
        again.perform(at(100));
        assert_eq!(again.mappings().len(), stands, "{what}");
        let epoch = if lost == 0 { 100 } else { 0 };
        assert_eq!(again.server.epoch(at(100)), epoch, "{what}");
        assert_eq!(again.multicasts.is_empty(), lost == 0, "{what}");
        assert_eq!(again.epoch_began.is_some(), lost > 0, "{what}");
        let told = again.notices.contains(&Notice::EpochBegan(NewEpoch::NotRestored(lost)));
        assert_eq!(told, lost > 0, "{what}");
    }
}

/// The data plane may refuse one, too; until it has spoken, who asks for a mapping waits.
#[test]
fn a_restored_mapping_waits_for_the_data_plane() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(3600, data(1, 80, 9090), &[]));
    for (nat, epoch, answer) in [
        (Nat::Obeys, 102, (0, 9090)),
        // It is made again.
        (Nat::Refuses(NatRefused::Failed), 0, (7, 0)),
    ] {
        let mut again = Bench::started(at(100), bench.config.clone(), at(0));
        again.store = bench.store.clone();
        again.nat = Nat::Hesitates;
        again.server.restore(at(100), bench.stored(at(100)).0, Vec::new());
        again.perform(at(100));
        let request = map(600, data(1, 80, 0), &[]);
        again.datagram(at(101), &arrival(CLIENT), &request.to_bytes());
        assert_eq!((again.sent.len(), again.mappings().len()), (0, 0));
        again.nat = nat;
        again.nat_answers_all(at(102));
        assert_eq!(again.server.epoch(at(102)), epoch, "{nat:?}");
        let (.., bytes) = again.sent.pop_front().expect("an answer");
        let response = Response::parse(&bytes).expect("well-formed");
        let Body::Map(map) = response.body else { panic!("{response:?}") };
        assert_eq!((response.result.0, map.external_port), answer, "{nat:?}");
    }
}

/// One record for each change, and most renewals cost none: what is stored is never shorter than what was promised ([`Bench::check`]
/// sees to that after each datagram), and never longer than twice as long.
#[test]
fn renewals_are_seldom_stored() {
    let mut bench = server();
    let before = bench.records;
    outcome(&mut bench, at(0), &map(3600, data(1, 80, 9090), &[]));
    assert_eq!(bench.records - before, 1);
    for n in 1..=20 {
        outcome(&mut bench, at(n * 1800), &map(3600, data(1, 80, 9090), &[]));
        let (stored_at, stored) = bench.store.values().next().expect("it is stored");
        assert!(*stored_at + stored.left <= at(n * 1800 + 2 * 3600));
    }
    assert_eq!(bench.records - before, 1 + 6);
    // What is not only its end is stored at once.
    let before = bench.records;
    outcome(&mut bench, at(37_000), &map(3600, data(1, 80, 9090), &[text(b"web")]));
    assert_eq!(bench.records - before, 1);
    bench.timeout(at(50_000));
    assert_eq!(
        (bench.records - before, bench.store.len(), bench.held.len()),
        (3, 0, 1),
        "it goes, and is held"
    );
    // A clock that began later than the epoch did.
    let server = Server::with_age(Instant::from_secs(5), config(), Duration::from_secs(1_000_000));
    assert_eq!(server.epoch(Instant::from_secs(7)), 1_000_002);
}

/// The new epoch is stored before the first loss, whoever finds it, so that no stop in between leaves the old epoch without one
/// of its mappings (RFC 6887 §8.5).
#[test]
fn the_epoch_is_stored_before_a_loss() {
    let mut bench = server();
    for port in [80, 81, 82] {
        outcome(&mut bench, at(0), &map(3600, data(1, port, 9000 + port), &[]));
    }
    let records = |server: &mut Server| {
        let mut records = Vec::new();
        while let Some(output) = server.poll_output() {
            match output {
                Output::Store(record) => records.push(record),
                Output::Nat { ticket, .. } => server.handle_nat(at(101), ticket, Err(NatRefused::Failed)),
                _ => {}
            }
        }
        records
    };
    let all = bench.stored(at(100)).0;
    let mut again = Server::new(at(100), config(), at(0));
    again.restore(at(100), all.clone(), Vec::new());
    let lost = |n: usize| Record::Remove(all[n].key);
    assert_eq!(records(&mut again), [Record::Epoch, lost(0), lost(1), lost(2)]);
    assert_eq!(again.epoch(at(111)), 10);
    let other_pool = ServerConfig { pool: vec![EXTERNAL_2], ..config() };
    let mut again = Server::new(at(100), other_pool, at(0));
    again.restore(at(100), all.clone(), Vec::new());
    assert_eq!(records(&mut again), [Record::Epoch, lost(0), lost(1), lost(2)]);
    again.lose_state(at(200));
    assert_eq!(records(&mut again), [Record::Epoch, Record::Clear]);
}

/// A lifetime that was shortened is not stored as a long one.
#[test]
fn a_shorter_lifetime_is_stored() {
    let mut bench = server();
    outcome(&mut bench, at(0), &map(86_400, data(1, 80, 9090), &[]));
    outcome(&mut bench, at(10), &map(120, data(1, 80, 9090), &[]));
    let (stored_at, stored) = bench.store.values().next().expect("it is stored");
    assert_eq!((*stored_at, stored.left), (at(10), Duration::from_secs(240)));
    // Not each time that it is a little shorter.
    let before = bench.records;
    outcome(&mut bench, at(11), &map(3600, data(1, 80, 9090), &[]));
    outcome(&mut bench, at(12), &map(2500, data(1, 80, 9090), &[]));
    assert_eq!(bench.records - before, 1);
}

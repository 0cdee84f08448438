use super::*;

/// RFC 6887 §11.3, §15 and D-15: which ports are given out. UDP 5350 and 5351 never, none below 1024, none that is
/// taken or was freed less than 120 s ago, except to who had it: same internal address, port and nonce.
#[test]
fn ports_that_are_not_given_out() {
    let strict = [PcpOption::PreferFailure];
    let mut bench = server();
    for (protocol, port, free) in [
        (Protocol::UDP, 5350, false),
        (Protocol::UDP, 5351, false),
        (Protocol::UDP, 5352, true),
        (Protocol::TCP, 5351, true),
        (Protocol::TCP, 80, false),
        (Protocol::TCP, 1023, false),
        (Protocol::TCP, 1024, true),
        (Protocol::TCP, 65535, true),
    ] {
        let wanted = MapData { protocol, ..data(9, port, port) };
        let (result, ..) = outcome(&mut bench, at(0), &map(600, wanted, &strict));
        assert_eq!(result == ResultCode::SUCCESS, free, "{protocol} {port}");
    }
    outcome(&mut bench, at(0), &map(3600, data(1, 8080, 9090), &strict));
    outcome(&mut bench, at(100), &map(0, data(1, 8080, 0), &[]));
    let taken = (ResultCode::CANNOT_PROVIDE_EXTERNAL, 30, 9090);
    for other in [data(2, 8080, 9090), data(1, 8081, 9090)] {
        assert_eq!(outcome(&mut bench, at(219), &map(600, other, &strict)), taken);
    }
    let again = outcome(&mut bench, at(219), &map(600, data(1, 8080, 9090), &strict));
    assert_eq!(again, (ResultCode::SUCCESS, 600, 9090), "its last owner");
    outcome(&mut bench, at(220), &map(0, data(1, 8080, 0), &[]));
    assert_eq!(outcome(&mut bench, at(339), &map(600, data(2, 8081, 9090), &strict)), taken);
    let freed = outcome(&mut bench, at(340), &map(600, data(2, 8081, 9090), &strict));
    assert_eq!(freed, (ResultCode::SUCCESS, 600, 9090));
    // What ends by itself is held, too.
    bench.timeout(at(2000));
    assert_eq!(outcome(&mut bench, at(2001), &map(600, data(3, 8082, 9090), &strict)), taken);
}

/// RFC 6887 §15 and D-15: holds that are over are forgotten, two for each new one, and holds that last are not.
#[test]
fn holds_do_not_pile_up() {
    let mut bench = server();
    bench.config_mut().quota = 5000;
    for port in 1..=500 {
        outcome(&mut bench, at(0), &map(600, data(1, port, 0), &[]));
    }
    for port in 1..=500 {
        outcome(&mut bench, at(1), &map(0, data(1, port, 0), &[]));
    }
    assert_eq!(bench.server.pool.holds(), 500);
    for n in 0..250 {
        outcome(&mut bench, at(121), &map(600, data(2, 1000 + n, 20_000 + n), &[]));
        outcome(&mut bench, at(121), &map(0, data(2, 1000 + n, 0), &[]));
    }
    assert_eq!(bench.server.pool.holds(), 250, "the new ones");
    let strict = |n: u16| map(600, data(3, 9, 20_000 + n), &[PcpOption::PreferFailure]);
    assert_eq!(outcome(&mut bench, at(240), &strict(0)).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    assert_eq!(outcome(&mut bench, at(241), &strict(0)).0, ResultCode::SUCCESS);
    // Its last owner may have it at once, and then it is not held: the old hold's end does not matter any more.
    outcome(&mut bench, at(242), &map(0, data(3, 9, 0), &[]));
    assert_eq!(outcome(&mut bench, at(300), &strict(0)).0, ResultCode::SUCCESS);
    outcome(&mut bench, at(350), &map(0, data(3, 9, 0), &[]));
    for n in 0..250 {
        outcome(&mut bench, at(363), &map(600, data(2, 1000 + n, 30_000 + n), &[]));
        outcome(&mut bench, at(363), &map(0, data(2, 1000 + n, 0), &[]));
    }
    let other = map(600, data(4, 10, 20_000), &[PcpOption::PreferFailure]);
    assert_eq!(outcome(&mut bench, at(469), &other).0, ResultCode::CANNOT_PROVIDE_EXTERNAL);
    assert_eq!(outcome(&mut bench, at(470), &other).0, ResultCode::SUCCESS);
    let holds = bench.server.pool.holds();
    assert_eq!(bench.server.pool.hold_alarms(), holds, "an alarm for each");
}

/// What is held counts in its last owner's quota, so that nobody has the whole pool by making and deleting; taken up again
/// by its owner it counts once.
#[test]
fn held_ports_count_in_the_quota() {
    let (ports, quota) = (2000..=2999, 100);
    let mut bench = Bench::new(ServerConfig { ports, quota, ..config() });
    let set = |port, lifetime| map(lifetime, data(1, port, 0), &[port_set(64, port, false)]);
    let mut refused = 0;
    for n in 0..100 {
        let port = 1 + 64 * n;
        let (result, ..) = outcome(&mut bench, at(n.into()), &set(port, 600));
        if result == ResultCode::SUCCESS {
            outcome(&mut bench, at(n.into()), &set(port, 0));
        } else {
            assert_eq!(result, ResultCode::USER_EX_QUOTA);
            refused += 1;
        }
    }
    assert_eq!((refused, bench.server.pool.held_by(Subscriber::V4(CLIENT))), (98, 100));
    let other = by(OTHER, map(600, data(7, 80, 2500), &[]));
    assert_eq!(outcome(&mut bench, at(100), &other), (ResultCode::SUCCESS, 600, 2500));
    // NAT-PMP is under the same quota.
    let natpmp = raw(&mut bench, at(100), CLIENT, &hex("00020000 00500000 00000001")).expect("an answer");
    assert_eq!(natpmp[3], 4);
    // All of the first set is taken up again, where it was, and nothing beside it.
    let again = map(600, data(1, 1, 2000), &[port_set(64, 1, false)]);
    assert_eq!(outcome(&mut bench, at(101), &again), (ResultCode::SUCCESS, 600, 2000));
    assert_eq!((bench.mappings()[0].ports, bench.server.pool.held_by(Subscriber::V4(CLIENT))), (64, 36));
    assert_eq!(outcome(&mut bench, at(101), &map(600, data(1, 9999, 0), &[])).0, ResultCode::USER_EX_QUOTA);
    // Part of the second one: the rest of it stays held.
    let part = map(600, data(1, 65, 2064), &[port_set(10, 65, false)]);
    assert_eq!(outcome(&mut bench, at(102), &part), (ResultCode::SUCCESS, 600, 2064));
    assert_eq!(bench.server.pool.held_by(Subscriber::V4(CLIENT)), 26);
    // What is held no more counts no more.
    assert_eq!(outcome(&mut bench, at(300), &map(600, data(1, 9999, 0), &[])).0, ResultCode::SUCCESS);
    assert_eq!(bench.server.pool.held_by(Subscriber::V4(CLIENT)), 0);
}

/// Nobody keeps the ports of a set for the price of one by leaving a mapping of PEER there.
#[test]
fn what_is_left_of_a_set_counts_whole() {
    let mut bench = server().set(|config| (config.quota, config.hold) = (100, Duration::ZERO));
    let peer = Request { body: Body::Peer(peer_data(1, 120, 443)), ..map(600, data(1, 1, 1), &[]) };
    outcome(&mut bench, at(0), &map(600, data(1, 100, 0), &[port_set(64, 100, false)]));
    assert_eq!(ask(&mut bench, at(0), &peer).result, ResultCode::SUCCESS);
    outcome(&mut bench, at(1), &map(0, data(1, 100, 0), &[port_set(64, 100, false)]));
    assert_eq!(bench.mappings().len(), 1);
    let more = ask(&mut bench, at(2), &map(600, data(1, 200, 0), &[port_set(64, 200, false)]));
    assert_eq!(more.options, [port_set(36, 200, false)]);
}

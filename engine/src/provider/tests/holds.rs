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

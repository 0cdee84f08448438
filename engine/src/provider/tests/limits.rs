use super::*;

/// RFC 6887 §7.4: USER_EX_QUOTA is one subscriber's.
#[test]
fn quotas_are_per_subscriber() {
    let mut bench = server();
    bench.config_mut().quota = 2;
    for port in [1, 2] {
        outcome(&mut bench, at(0), &map(600, data(1, port, 0), &[]));
    }
    let third = outcome(&mut bench, at(0), &map(600, data(1, 3, 9090), &[]));
    assert_eq!(third, (ResultCode::USER_EX_QUOTA, 30, 9090));
    let other = Request { client_addr: OTHER.to_ipv6_mapped(), ..map(600, data(1, 3, 9090), &[]) };
    assert_eq!(outcome(&mut bench, at(0), &other), (ResultCode::SUCCESS, 600, 9090));
    let renewed = outcome(&mut bench, at(1), &map(600, data(1, 1, 0), &[]));
    assert_eq!(renewed.0, ResultCode::SUCCESS);
    outcome(&mut bench, at(2), &map(0, data(1, 1, 0), &[]));
    assert_eq!(outcome(&mut bench, at(3), &map(600, data(1, 3, 0), &[])).0, ResultCode::SUCCESS);
}

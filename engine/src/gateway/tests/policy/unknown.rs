//! Who speaks from an IPv6 address that the neighbour table does not show, as none is that a datagram has just come from: one host has as
//! many of them as it wants, so that all on a link share what one host may have.

use super::*;

fn host(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, last)
}

/// What two hundred addresses, each of them new, get at once: the results, `None` for silence.
fn flood(lab: &mut Lab) -> Vec<Option<ResultCode>> {
    let map = map6(8080);
    (0..200).map(|last| Some(lab.pcp6(host(last), &map.request(host(last)))?.result)).collect()
}

/// One burst of exchanges; who is known by a network card is another host.
#[test]
fn one_rate_for_all_of_them() {
    let mut lab = up(config(NatMode::Own));
    let heard = flood(&mut lab);
    assert_eq!(heard.iter().filter(|result| **result == Some(OK)).count(), 50);
    assert_eq!(heard.iter().filter(|result| result.is_none()).count(), 150, "silence: it is asked again");
    assert_eq!(lab.pinholes.open.len(), 50);
    assert_eq!(lab.refused(), [("more often than policy.exchanges_per_second".to_owned(), 150)]);
    lab.is_known(CAROL, 0x10);
    assert_eq!(lab.map6(CAROL, &map6(8080)).0, OK);
    assert_eq!(lab.map(ALICE, &map(8080)).0, OK);
    lab.agrees();
}

/// One quota of pinholes.
#[test]
fn one_quota_for_all_of_them() {
    let exchanges = Rate { per_second: 1000, burst: 1000 };
    let settings = Config { policy: Policy { exchanges, ..Policy::default() }, ..config(NatMode::Own) };
    let mut lab = up(settings);
    let heard = flood(&mut lab);
    assert_eq!(heard.iter().filter(|result| **result == Some(OK)).count(), 100);
    assert_eq!(heard.iter().filter(|result| **result == Some(ResultCode::USER_EX_QUOTA)).count(), 100);
    assert_eq!(lab.pinholes.open.len(), 100);
    assert_eq!(lab.map6(host(0), &map6(8080)).0, OK, "what is there is renewed");
    // Who was answered is in the table by then.
    lab.is_known(host(150), 0x50);
    assert_eq!(lab.map6(host(150), &map6(8080)).0, OK);
    lab.agrees();
}

/// Nor are more datagrams looked at than of one host.
#[test]
fn one_rate_of_datagrams() {
    let mut lab = up(config(NatMode::Own));
    let announce = |host| Request { body: Body::Announce, lifetime: 0, ..map6(8080).request(host) };
    let heard = (0..1000).filter(|&last| lab.pcp6(host(last), &announce(host(last))).is_some()).count();
    assert_eq!(heard, 500);
    lab.is_known(CAROL, 0x10);
    assert!(lab.pcp6(CAROL, &announce(CAROL)).is_some(), "another host");
}

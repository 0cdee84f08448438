//! The tables of RFC 7291, and the laws of the messages.

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::v4::{Ack, Inform};
use super::v6::{InformationRequest, Reply};
use super::*;

fn addresses(text: &str) -> Vec<ServerAddresses> {
    let server = |server: &str| server.split(' ').map(|addr| addr.parse().unwrap()).collect();
    text.split(';').filter(|server| !server.is_empty()).map(server).collect()
}

/// RFC 7291 §4.1, §4.2.
#[test]
fn option_158() {
    let good: [(&str, &[u8], &str); 8] = [
        ("one server", &[4, 192, 0, 2, 1], "192.0.2.1"),
        ("two addresses of one", &[8, 192, 0, 2, 1, 192, 0, 2, 2], "192.0.2.1 192.0.2.2"),
        (
            "two servers",
            &[4, 192, 0, 2, 1, 8, 198, 51, 100, 1, 198, 51, 100, 2],
            "192.0.2.1;198.51.100.1 198.51.100.2",
        ),
        ("multicast is discarded (§4.2)", &[8, 224, 0, 0, 1, 192, 0, 2, 1], "192.0.2.1"),
        ("loopback is discarded (§4.2)", &[4, 127, 0, 0, 1, 4, 192, 0, 2, 1], "192.0.2.1"),
        ("nobody's address", &[8, 0, 0, 0, 0, 255, 255, 255, 255], ""),
        ("the same twice", &[8, 192, 0, 2, 1, 192, 0, 2, 1], "192.0.2.1"),
        ("private and shared ones may be", &[8, 10, 0, 0, 1, 100, 64, 0, 1], "10.0.0.1 100.64.0.1"),
    ];
    for (what, value, expected) in good {
        assert_eq!(decode_option_158(value), Ok(addresses(expected)), "{what}");
    }
    let bad: [(&str, &[u8]); 8] = [
        ("nothing: 5 octets are the least (§4.1)", &[]),
        ("an empty list: one address at least (§4.1)", &[0]),
        ("an empty list behind a good one", &[4, 192, 0, 2, 1, 0]),
        ("no multiple of 4 (§4.1)", &[5, 192, 0, 2, 1, 7]),
        ("no multiple of 4, odd and cut", &[3, 192, 0, 2]),
        ("a list behind the end", &[8, 192, 0, 2, 1]),
        ("an octet too many", &[4, 192, 0, 2, 1, 4]),
        ("addresses without their length", &[192, 0, 2, 1]),
    ];
    for (what, value) in bad {
        assert_eq!(decode_option_158(value), Err(Malformed), "{what}");
    }
}

/// RFC 7291 §3.1, §3.2.
#[test]
fn option_86() {
    let octets = |text: &str| -> Vec<u8> {
        let octets = |addr: &str| addr.parse::<std::net::Ipv6Addr>().unwrap().octets();
        text.split(' ').flat_map(octets).collect()
    };
    for (what, value, expected) in [
        ("one address", "2001:db8::1", "2001:db8::1"),
        ("two of one server", "2001:db8::1 2001:db8::2", "2001:db8::1 2001:db8::2"),
        ("IPv4-mapped is IPv4 (§3.2)", "::ffff:192.0.2.1", "192.0.2.1"),
        ("loopback is discarded (§3.2)", "::1 2001:db8::1", "2001:db8::1"),
        ("multicast is discarded (§3.2)", "ff02::1 2001:db8::1", "2001:db8::1"),
        ("so are those of IPv4", "::ffff:127.0.0.1 ::ffff:224.0.0.1 2001:db8::1", "2001:db8::1"),
        ("the link's own router may be one", "fe80::1", "fe80::1"),
    ] {
        assert_eq!(decode_option_86(&octets(value)), Ok(addresses(expected).remove(0)), "{what}");
    }
    assert_eq!(decode_option_86(&octets("::1 :: ff02::1")), Ok(Vec::new()));
    for len in (0..64).filter(|len| *len == 0 || len % 16 != 0) {
        assert_eq!(decode_option_86(&octets("2001:db8::1").repeat(4)[..len]), Err(Malformed), "{len} octets");
    }
}

#[test]
fn an_offer_is_bounded() {
    let list: Vec<u8> = (1..=10).flat_map(|n| [192, 0, 2, n]).collect();
    let value = [&[40], &list[..]].concat().repeat(20);
    let servers = decode_option_158(&value).unwrap();
    assert_eq!((servers.len(), servers[0].len()), (MAX_SERVERS, MAX_ADDRESSES));
    let many: Vec<u8> = (1..=30).flat_map(|n| std::net::Ipv6Addr::from(n + (1 << 100)).octets()).collect();
    assert_eq!(decode_option_86(&many).map(|server| server.len()), Ok(MAX_ADDRESSES));
}

const XID: u32 = 0x0102_0304;
const CLIENT: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);

fn inform() -> Inform {
    Inform { xid: XID, secs: 5, client: CLIENT, hardware: Some([2, 0, 0, 0, 0, 7]) }
}

/// RFC 2131 §2 (the fields), §4.4.3 and table 5 (what a DHCPINFORM has and has not).
#[test]
fn a_dhcpinform_octet_by_octet() {
    let bytes = inform().to_bytes();
    assert_eq!(bytes.len(), 300);
    assert_eq!(bytes[..12], [1, 1, 6, 0, 1, 2, 3, 4, 0, 5, 0, 0], "op, hardware, xid, secs, flags");
    assert_eq!(bytes[12..16], [100, 64, 0, 2], "ciaddr");
    assert_eq!(bytes[16..28], [0; 12], "yiaddr, siaddr, giaddr");
    assert_eq!(bytes[28..36], [2, 0, 0, 0, 0, 7, 0, 0], "chaddr");
    assert_eq!(bytes[44..236], [0; 192], "sname, file");
    assert_eq!(bytes[236..240], [99, 130, 83, 99]);
    assert_eq!(bytes[240..251], [53, 1, 8, 55, 1, 158, 57, 2, 5, 220, 255], "no lease time, no server");
    assert!(bytes[251..].iter().all(|octet| *octet == 0));
    assert_eq!(Inform::parse(&bytes), Ok(inform()));
    let without = Inform { hardware: None, ..inform() };
    assert_eq!(Inform::parse(&without.to_bytes()), Ok(without));
    for len in 0..251 {
        assert_eq!(Inform::parse(&bytes[..len]), Err(Malformed), "{len} octets");
    }
}

fn ack(pcp_servers: Option<Vec<u8>>) -> Ack {
    Ack { xid: XID, client: CLIENT, server: SERVER, pcp_servers }
}

/// The law of codecs; RFC 3396 §6, §7 for the long one.
#[test]
fn every_dhcpack_comes_back_and_none_of_its_prefixes() {
    let long = [&[252], &[192, 0, 2, 1].repeat(63)[..]].concat().repeat(2);
    for pcp_servers in [None, Some(vec![]), Some(vec![4, 192, 0, 2, 1]), Some(vec![9; 255]), Some(long)] {
        let ack = ack(pcp_servers);
        let bytes = ack.to_bytes();
        assert_eq!(Ack::parse(&bytes), Ok(ack.clone()));
        for len in 0..bytes.len() {
            assert_eq!(Ack::parse(&bytes[..len]), Err(Malformed), "{len} octets of {ack:?}");
        }
        let padded = [&bytes[..], &[0; 60]].concat();
        assert_eq!(Ack::parse(&padded), Ok(ack), "servers fill up to 300 octets");
    }
}

/// RFC 3396 §5, §7 and RFC 2131 §4.1: one option in parts, in `options`, `file` and `sname`, in that order.
#[test]
fn an_option_in_three_places() {
    let mut bytes = ack(None).to_bytes();
    bytes.truncate(bytes.len() - 1);
    bytes.extend([52, 1, 3, 0, 158, 2, 8, 192, 255]);
    bytes[108..116].copy_from_slice(&[158, 5, 0, 2, 1, 192, 0, 255]);
    bytes[44..49].copy_from_slice(&[158, 2, 2, 2, 255]);
    let parsed = Ack::parse(&bytes).unwrap();
    assert_eq!(
        parsed.pcp_servers.as_deref().map(decode_option_158),
        Some(Ok(addresses("192.0.2.1 192.0.2.2")))
    );
    let overload = bytes.len() - 7;
    assert_eq!(bytes[overload], 3);
    for (value, expected) in [(1, 2 + 5), (2, 2 + 2)] {
        bytes[overload] = value;
        let parsed = Ack::parse(&bytes).unwrap();
        assert_eq!(parsed.pcp_servers.map(|value| value.len()), Some(expected), "overload {value}");
    }
    bytes[overload] = 4;
    assert_eq!(Ack::parse(&bytes), Err(Malformed), "RFC 2132 §9.3 knows 1 to 3");
    bytes[overload] = 3;
    bytes[48] = 0;
    assert_eq!(Ack::parse(&bytes), Err(Malformed), "each field has its end");
}

/// RFC 2131 §2, table 3.
#[test]
fn what_is_no_dhcpack() {
    let good = ack(Some(vec![4, 192, 0, 2, 1])).to_bytes();
    let changed = |at: usize, octet: u8| {
        let mut bytes = good.clone();
        bytes[at] = octet;
        Ack::parse(&bytes)
    };
    assert!(changed(0, 2).is_ok());
    assert_eq!(changed(0, 1), Err(Malformed), "a request");
    assert_eq!(changed(236, 0), Err(Malformed), "no magic cookie: BOOTP without options");
    assert_eq!(changed(242, 6), Err(Malformed), "a DHCPNAK");
    assert_eq!(changed(240, 61), Err(Malformed), "no message type");
    assert_eq!(changed(243, 61), Err(Malformed), "no server identifier");
}

fn request() -> InformationRequest {
    InformationRequest { transaction: [1, 2, 3], client: vec![0, 4, 7, 7], elapsed_time: 258 }
}

/// RFC 8415 §18.2.6, §21.7, §21.9.
#[test]
fn an_information_request_octet_by_octet() {
    let bytes = request().to_bytes();
    let expected = [
        &[11, 1, 2, 3][..],
        &[0, 1, 0, 4, 0, 4, 7, 7],
        &[0, 6, 0, 6, 0, 83, 0, 32, 0, 86],
        &[0, 8, 0, 2, 1, 2],
    ];
    assert_eq!(bytes, expected.concat());
    assert_eq!(InformationRequest::parse(&bytes), Ok(request()));
    for len in 0..bytes.len() {
        assert_eq!(InformationRequest::parse(&bytes[..len]), Err(Malformed), "{len} octets");
    }
}

#[test]
fn every_reply_comes_back_and_no_option_that_is_cut() {
    let full = Reply {
        transaction: [1, 2, 3],
        client: Some(vec![0, 4, 7]),
        server: vec![0, 3, 0, 1, 9],
        status: Some(0),
        refresh: Some(86_400),
        max_timeout: Some(600),
        pcp_servers: vec![vec![1; 16], vec![2; 32]],
    };
    let least = Reply { transaction: [9, 9, 9], server: vec![0, 3, 1], ..Reply::default() };
    for reply in [full, least] {
        let bytes = reply.to_bytes();
        assert_eq!(Reply::parse(&bytes), Ok(reply.clone()));
        // What ends between two options is a shorter message of its own.
        let mut ends = vec![];
        let mut at = 4;
        while at < bytes.len() {
            at += 4 + usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
            ends.push(at);
        }
        for len in 0..bytes.len() {
            let parsed = Reply::parse(&bytes[..len]);
            assert!(parsed.is_err() || ends.contains(&len), "{len} octets of {reply:?}");
            assert_ne!(parsed, Ok(reply.clone()));
        }
    }
}

/// RFC 8415 §16 (unknown options are ignored), §16.10 (a server identifier), §21 (lengths).
#[test]
fn what_a_reply_has_and_has_not() {
    let head = [7, 1, 2, 3];
    let server = [0, 2, 0, 3, 0, 3, 1];
    let parse = |options: &[u8]| Reply::parse(&[&head, options].concat());
    assert_eq!(parse(&[]), Err(Malformed), "no server identifier");
    assert_eq!(parse(&[0, 2, 0, 0]), Err(Malformed), "an empty one");
    let with = |options: &[u8]| parse(&[&server, options].concat()).unwrap();
    assert_eq!(with(&[0, 99, 0, 1, 7]), with(&[]), "an unknown option");
    assert_eq!(with(&[0, 13, 0, 5, 0, 1, b's', b'a', b'd']).status, Some(1));
    for option in [&[0, 32, 0, 3, 0, 0, 1][..], &[0, 83, 0, 5, 0, 0, 0, 60, 0], &[0, 13, 0, 1, 0]] {
        assert_eq!(with(option), with(&[]), "a wrong length counts as absent: {option:?}");
    }
    assert_eq!(Reply::parse(&[&[2, 1, 2, 3], &server[..]].concat()), Err(Malformed), "an Advertise");
}

#[test]
fn who_can_be_a_server() {
    for (addr, usable) in [
        ("192.0.2.1", true),
        ("192.0.0.9", true),
        ("240.0.0.1", true),
        ("127.1.2.3", false),
        ("239.1.2.3", false),
        ("0.0.0.0", false),
        ("255.255.255.255", false),
        ("2001:db8::1", true),
        ("fe80::1", true),
        ("::", false),
        ("::1", false),
        ("ff0e::1", false),
    ] {
        assert_eq!(is_usable(addr.parse::<IpAddr>().unwrap()), usable, "{addr}");
    }
}

fn octets(most: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 1..most)
}

fn reply() -> impl Strategy<Value = Reply> {
    let first = (any::<[u8; 3]>(), proptest::option::of(octets(20)), octets(20));
    let numbers = (any::<Option<u16>>(), any::<Option<u32>>(), any::<Option<u32>>());
    let servers = proptest::collection::vec(octets(70), 0..4);
    (first, numbers, servers).prop_map(|((transaction, client, server), numbers, pcp_servers)| {
        let (status, refresh, max_timeout) = numbers;
        Reply { transaction, client, server, status, refresh, max_timeout, pcp_servers }
    })
}

proptest! {
    #[test]
    fn acks_round_trip_and_their_prefixes_are_refused(
        xid: u32,
        client: Ipv4Addr,
        server: Ipv4Addr,
        pcp_servers in proptest::option::of(octets(600)),
    ) {
        let ack = Ack { xid, client, server, pcp_servers };
        let bytes = ack.to_bytes();
        prop_assert_eq!(Ack::parse(&bytes), Ok(ack));
        for len in 0..bytes.len() {
            prop_assert_eq!(Ack::parse(&bytes[..len]), Err(Malformed));
        }
    }

    #[test]
    fn informs_round_trip(xid: u32, secs: u16, client: Ipv4Addr, hardware: Option<[u8; 6]>) {
        let inform = Inform { xid, secs, client, hardware };
        let bytes = inform.to_bytes();
        prop_assert_eq!(Inform::parse(&bytes), Ok(inform));
        for len in 0..240 {
            prop_assert_eq!(Inform::parse(&bytes[..len]), Err(Malformed));
        }
    }

    #[test]
    fn information_requests_round_trip_and_their_prefixes_are_refused(
        transaction: [u8; 3],
        client in octets(30),
        elapsed_time: u16,
    ) {
        let request = InformationRequest { transaction, client, elapsed_time };
        let bytes = request.to_bytes();
        prop_assert_eq!(InformationRequest::parse(&bytes), Ok(request));
        for len in 0..bytes.len() {
            prop_assert_eq!(InformationRequest::parse(&bytes[..len]), Err(Malformed));
        }
    }

    #[test]
    fn replies_round_trip_and_no_prefix_is_taken_for_the_whole(reply in reply()) {
        let bytes = reply.to_bytes();
        prop_assert_eq!(Reply::parse(&bytes), Ok(reply.clone()));
        for len in 0..bytes.len() {
            prop_assert_ne!(Reply::parse(&bytes[..len]), Ok(reply.clone()));
        }
    }

    #[test]
    fn no_octets_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = (Ack::parse(&bytes), Reply::parse(&bytes), Inform::parse(&bytes));
        let _ = InformationRequest::parse(&bytes);
        for servers in [decode_option_158(&bytes), decode_option_86(&bytes).map(|one| vec![one])].into_iter().flatten() {
            prop_assert!(servers.iter().flatten().all(|addr| is_usable(*addr)));
        }
    }

    #[test]
    fn no_options_behind_a_good_header_panic(options in proptest::collection::vec(any::<u8>(), 0..300)) {
        let ack = Ack { xid: 7, client: Ipv4Addr::LOCALHOST, server: Ipv4Addr::LOCALHOST, pcp_servers: None };
        let head = ack.to_bytes();
        let _ = Ack::parse(&[&head[..240], options.as_slice()].concat());
        let _ = Reply::parse(&[&[7, 1, 2, 3][..], options.as_slice()].concat());
    }
}

//! The IP/ICMP translation algorithm (RFC 7915) for TCP, UDP, ICMP echo and ICMP errors, and addresses with an IPv4 one
//! inside (RFC 6052, prefixes of 96 bits).
//!
//! Addresses are the caller's business, hop limits are the kernel's: it forwards what comes out.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::icmp::{self, Quoted, become_type};
use super::ip::{HEADER_V4, MIN_MTU_V6};
use super::protocol::{ICMP, ICMPV6, TCP, UDP};
use super::transport::adjust;
use super::{Ipv4, Ipv6, Refused, Segment, Sum};

/// How much longer IPv6's header is.
const DIFFERENCE: u32 = 20;
/// A packet that is longer than this in IPv4 has been cut to the path's MTU by its sender, so it must not be fragmented (RFC
/// 7915 §5.1).
const SMALL: usize = 1260;
/// Path MTUs to try when a router tells none (RFC 1191 §7.1).
const PLATEAUS: [u16; 11] = [65_535, 32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296, 68];

/// A NAT64's prefix of 96 bits (RFC 6052 §2.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Prefix64([u8; 12]);

impl Prefix64 {
    /// 64:ff9b::/96 (RFC 6052 §2.1).
    pub const WELL_KNOWN: Self = Self([0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0]);

    /// The IPv6 address of an IPv4 host.
    #[must_use]
    pub fn embed(self, addr: Ipv4Addr) -> Ipv6Addr {
        let mut octets = [0; 16];
        octets[..12].copy_from_slice(&self.0);
        octets[12..].copy_from_slice(&addr.octets());
        octets.into()
    }

    /// The prefix itself.
    #[must_use]
    pub fn octets(self) -> [u8; 12] {
        self.0
    }

    /// The IPv4 host that an address with this prefix stands for.
    #[must_use]
    pub fn extract(self, addr: Ipv6Addr) -> Option<Ipv4Addr> {
        let octets = addr.octets();
        let (prefix, host) = octets.split_first_chunk::<12>().expect("sixteen octets");
        let host: [u8; 4] = host.try_into().expect("sixteen octets");
        (*prefix == self.0).then(|| host.into())
    }
}

/// The bits of `addr` that are the prefix.
impl From<Ipv6Addr> for Prefix64 {
    fn from(addr: Ipv6Addr) -> Self {
        let octets = addr.octets();
        Self(*octets.first_chunk().expect("sixteen octets"))
    }
}

/// Translates a packet (RFC 7915 §4), whole or quoted. Ports stay.
///
/// # Errors
///
/// [`Refused::Fragment`], [`Refused::SourceRoute`], [`Refused::Protocol`] (ICMP errors among others: see [`error_to_v6`]),
/// [`Refused::Malformed`].
pub fn to_v6(packet: &Ipv4, src: Ipv6Addr, dst: Ipv6Addr) -> Result<Ipv6, Refused> {
    if packet.is_fragment() {
        return Err(Refused::Fragment);
    }
    if packet.is_source_routed() {
        return Err(Refused::SourceRoute);
    }
    let mut payload = packet.payload.clone();
    let protocol = match (packet.protocol, Segment::parse(packet.protocol, &payload)?) {
        (protocol @ (TCP | UDP), _) => {
            if protocol == UDP && payload[6..8] == [0, 0] {
                give_checksum(packet, &mut payload);
            }
            let old = Sum::default().octets(&packet.src.octets()).octets(&packet.dst.octets());
            adjust(protocol, &mut payload, old, Sum::default().octets(&src.octets()).octets(&dst.octets()));
            protocol
        }
        (ICMP, Segment::EchoRequest(_)) => echo_to_v6(&mut payload, icmp::V6_ECHO, src, dst),
        (ICMP, Segment::EchoReply(_)) => echo_to_v6(&mut payload, icmp::V6_ECHO_REPLY, src, dst),
        _ => return Err(Refused::Protocol),
    };
    let header = Ipv6::new(src, dst, protocol, payload);
    Ok(Ipv6 { traffic_class: packet.tos, hop_limit: packet.ttl, ..header })
}

/// Translates a packet (RFC 7915 §5), whole or quoted. Ports stay. `id` is for one that may be fragmented on its way.
///
/// # Errors
///
/// As [`to_v6`].
pub fn to_v4(packet: &Ipv6, src: Ipv4Addr, dst: Ipv4Addr, id: u16) -> Result<Ipv4, Refused> {
    let (protocol, at) = packet.upper()?;
    let mut payload = packet.payload[at..].to_vec();
    let protocol = match (protocol, Segment::parse(protocol, &payload)?) {
        (protocol @ (TCP | UDP), _) => {
            let old = Sum::default().octets(&packet.src.octets()).octets(&packet.dst.octets());
            adjust(protocol, &mut payload, old, Sum::default().octets(&src.octets()).octets(&dst.octets()));
            protocol
        }
        (ICMPV6, Segment::EchoRequest(_)) => echo_to_v4(&mut payload, icmp::V4_ECHO, packet),
        (ICMPV6, Segment::EchoReply(_)) => echo_to_v4(&mut payload, icmp::V4_ECHO_REPLY, packet),
        _ => return Err(Refused::Protocol),
    };
    let dont = HEADER_V4 + payload.len() > SMALL;
    Ok(Ipv4 {
        tos: packet.traffic_class,
        id: if dont { 0 } else { id },
        fragmentation: Ipv4::fragmentation(dont),
        ttl: packet.hop_limit,
        ..Ipv4::new(src, dst, protocol, payload)
    })
}

/// Translates an ICMP error (RFC 7915 §4.2), whose quote is translated already.
///
/// # Errors
///
/// [`Refused::Protocol`] for what has no counterpart.
pub fn error_to_v6(
    error: &Ipv4,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    quoted: &Quoted<Ipv6>,
) -> Result<Ipv6, Refused> {
    let [kind, code, _, _, pointer, _, high, low] = head(&error.payload)?;
    let plain = |kind, code| [kind, code, 0, 0, 0, 0, 0, 0];
    let header = match (kind, code) {
        (icmp::V4_UNREACHABLE, 0 | 1 | 5..=8 | 11 | 12) => plain(icmp::V6_UNREACHABLE, 0),
        (icmp::V4_UNREACHABLE, 2) => with_number(icmp::V6_PARAMETER_PROBLEM, 1, 6), // its Next Header
        (icmp::V4_UNREACHABLE, 3) => plain(icmp::V6_UNREACHABLE, 4),
        (icmp::V4_UNREACHABLE, 4) => {
            let mtu = match u16::from_be_bytes([high, low]) {
                0 => plateau(20 + quoted.len),
                told => told,
            };
            let least = u32::try_from(MIN_MTU_V6).expect("1280");
            with_number(icmp::V6_TOO_BIG, 0, least.max(u32::from(mtu) + DIFFERENCE))
        }
        (icmp::V4_UNREACHABLE, 9 | 10 | 13 | 15) => plain(icmp::V6_UNREACHABLE, 1),
        (icmp::V4_TIME_EXCEEDED, code) => plain(icmp::V6_TIME_EXCEEDED, code),
        (icmp::V4_PARAMETER_PROBLEM, 0 | 2) => {
            let pointer = match pointer {
                0 | 1 => pointer,
                2 | 3 => 4,
                8 => 7,
                9 => 6,
                12..=15 => 8,
                16..=19 => 24,
                _ => return Err(Refused::Protocol),
            };
            with_number(icmp::V6_PARAMETER_PROBLEM, 0, pointer.into())
        }
        _ => return Err(Refused::Protocol),
    };
    let message = icmp::message_v6(header, src, dst, quoted);
    Ok(Ipv6 { traffic_class: error.tos, hop_limit: error.ttl, ..Ipv6::new(src, dst, ICMPV6, message) })
}

/// Translates an ICMPv6 error (RFC 7915 §5.2), whose quote is translated already.
///
/// # Errors
///
/// [`Refused::Protocol`] for what has no counterpart.
pub fn error_to_v4(
    error: &Ipv6,
    src: Ipv4Addr,
    dst: Ipv4Addr,
    quoted: &Quoted<Ipv4>,
) -> Result<Ipv4, Refused> {
    let (_, at) = error.upper()?;
    let [kind, code, _, _, number @ ..] = head(&error.payload[at..])?;
    let number = u32::from_be_bytes(number);
    let header = match (kind, code) {
        (icmp::V6_UNREACHABLE, 0 | 2 | 3) => with_number(icmp::V4_UNREACHABLE, 1, 0),
        (icmp::V6_UNREACHABLE, 1) => with_number(icmp::V4_UNREACHABLE, 10, 0),
        (icmp::V6_UNREACHABLE, 4) => with_number(icmp::V4_UNREACHABLE, 3, 0),
        (icmp::V6_TOO_BIG, _) => {
            let mtu = number.saturating_sub(DIFFERENCE).min(u16::MAX.into());
            with_number(icmp::V4_UNREACHABLE, 4, mtu)
        }
        (icmp::V6_TIME_EXCEEDED, code) => with_number(icmp::V4_TIME_EXCEEDED, code, 0),
        (icmp::V6_PARAMETER_PROBLEM, 0) => {
            let pointer: u32 = match number {
                0 | 1 => number,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return Err(Refused::Protocol),
            };
            with_number(icmp::V4_PARAMETER_PROBLEM, 0, pointer << 24)
        }
        (icmp::V6_PARAMETER_PROBLEM, 1) => with_number(icmp::V4_UNREACHABLE, 2, 0),
        _ => return Err(Refused::Protocol),
    };
    let message = icmp::message_v4(header, quoted);
    Ok(Ipv4 { tos: error.traffic_class, ttl: error.hop_limit, ..Ipv4::new(src, dst, ICMP, message) })
}

fn head(message: &[u8]) -> Result<[u8; 8], Refused> {
    message.first_chunk().copied().ok_or(Refused::Malformed)
}

fn with_number(kind: u8, code: u8, number: u32) -> [u8; 8] {
    let [a, b, c, d] = number.to_be_bytes();
    [kind, code, 0, 0, a, b, c, d]
}

/// The greatest usual MTU that a packet of this length did not fit (RFC 1191 §7).
fn plateau(len: usize) -> u16 {
    PLATEAUS.into_iter().find(|&mtu| usize::from(mtu) < len).unwrap_or(PLATEAUS[PLATEAUS.len() - 1])
}

/// RFC 6146 §3.4: a datagram without checksum gets one, where all of it is there to be counted.
fn give_checksum(packet: &Ipv4, payload: &mut [u8]) {
    if usize::from(u16::from_be_bytes([payload[4], payload[5]])) != payload.len() {
        return;
    }
    let sum = Sum::default().pseudo_v4(packet.src, packet.dst, UDP, payload.len()).octets(payload);
    let checksum = match sum.checksum() {
        0 => 0xffff,
        checksum => checksum,
    };
    payload[6..8].copy_from_slice(&checksum.to_be_bytes());
}

/// ICMPv6's checksum counts a pseudo-header, ICMP's does not. A quoted echo may have been longer than it is here, which the
/// checksum then does not tell; nobody looks at it.
fn echo_to_v6(payload: &mut [u8], kind: u8, src: Ipv6Addr, dst: Ipv6Addr) -> u8 {
    become_type(ICMP, payload, kind);
    let pseudo = Sum::default().pseudo_v6(src, dst, ICMPV6, payload.len());
    adjust(ICMP, payload, Sum::default(), pseudo);
    ICMPV6
}

fn echo_to_v4(payload: &mut [u8], kind: u8, packet: &Ipv6) -> u8 {
    let pseudo = Sum::default().pseudo_v6(packet.src, packet.dst, ICMPV6, payload.len());
    adjust(ICMPV6, payload, pseudo, Sum::default());
    become_type(ICMP, payload, kind);
    ICMP
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::transport::tests::{is_valid_v4, is_valid_v6};
    use super::super::{echo_reply_v4, quoted_v4, quoted_v6, udp_v4, udp_v6};
    use super::*;

    const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);
    const INSIDE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x77, 0, 0, 0, 0, 0x10);

    fn host() -> Ipv6Addr {
        Prefix64::WELL_KNOWN.embed(HOST)
    }

    /// RFC 6052 §2.4, the last rows of tables 2 and 3.
    #[test]
    fn addresses_of_the_standard() {
        let host = Ipv4Addr::new(192, 0, 2, 33);
        let own = Prefix64::from("2001:db8:122:344::".parse::<Ipv6Addr>().unwrap());
        for (prefix, expected) in
            [(own, "2001:db8:122:344::192.0.2.33"), (Prefix64::WELL_KNOWN, "64:ff9b::c000:221")]
        {
            let expected: Ipv6Addr = expected.parse().unwrap();
            assert_eq!(prefix.embed(host), expected);
            assert_eq!(prefix.extract(expected), Some(host));
        }
        assert_eq!(own.extract("64:ff9b::c000:221".parse().unwrap()), None);
    }

    /// RFC 7915 §4.2 and §5.2, one row for each line: type, code, the four octets behind the checksum.
    #[test]
    fn icmp_errors_as_the_standard_has_them() {
        let about_v4 = udp_v4((OUTSIDE, 4000), (HOST, 53), &[7; 1400]).to_bytes();
        let about_v6 = udp_v6((INSIDE, 4000), (host(), 53), &[7; 1400]);
        let quoted_v6_one = Quoted { len: about_v6.payload.len(), packet: about_v6.clone() };
        let to_v6 = |kind, code, rest: [u8; 4]| {
            let payload = [&[kind, code, 0, 0], &rest[..], &about_v4[..28]].concat();
            let packet = Ipv4::new(HOST, OUTSIDE, ICMP, payload);
            let translated = error_to_v6(&packet, host(), INSIDE, &quoted_v6_one);
            translated.map(|packet| {
                assert!(is_valid_v6(&packet));
                assert!(packet.to_bytes().len() <= 1280, "RFC 4443 §2.4 (c)");
                (
                    packet.payload[0],
                    packet.payload[1],
                    u32::from_be_bytes(packet.payload[4..8].try_into().unwrap()),
                )
            })
        };
        let none = [0; 4];
        let rows = [
            (3, 0, none, Ok((1, 0, 0))),
            (3, 1, none, Ok((1, 0, 0))),
            (3, 2, none, Ok((4, 1, 6))),
            (3, 3, none, Ok((1, 4, 0))),
            (3, 4, [0, 0, 0x05, 0xb4], Ok((2, 0, 1480))),
            (3, 4, [0, 0, 0x02, 0x40], Ok((2, 0, 1280))), // never below the least MTU
            (3, 4, none, Ok((2, 0, 1280))),               // the plateau below 1428 is 1006
            (3, 5, none, Ok((1, 0, 0))),
            (3, 6, none, Ok((1, 0, 0))),
            (3, 7, none, Ok((1, 0, 0))),
            (3, 8, none, Ok((1, 0, 0))),
            (3, 9, none, Ok((1, 1, 0))),
            (3, 10, none, Ok((1, 1, 0))),
            (3, 11, none, Ok((1, 0, 0))),
            (3, 12, none, Ok((1, 0, 0))),
            (3, 13, none, Ok((1, 1, 0))),
            (3, 14, none, Err(Refused::Protocol)),
            (3, 15, none, Ok((1, 1, 0))),
            (4, 0, none, Err(Refused::Protocol)),
            (5, 0, none, Err(Refused::Protocol)),
            (11, 0, none, Ok((3, 0, 0))),
            (11, 1, none, Ok((3, 1, 0))),
            (12, 0, [0, 0, 0, 0], Ok((4, 0, 0))),
            (12, 0, [1, 0, 0, 0], Ok((4, 0, 1))),
            (12, 0, [2, 0, 0, 0], Ok((4, 0, 4))),
            (12, 2, [3, 0, 0, 0], Ok((4, 0, 4))),
            (12, 0, [4, 0, 0, 0], Err(Refused::Protocol)),
            (12, 0, [8, 0, 0, 0], Ok((4, 0, 7))),
            (12, 0, [9, 0, 0, 0], Ok((4, 0, 6))),
            (12, 0, [10, 0, 0, 0], Err(Refused::Protocol)),
            (12, 0, [12, 0, 0, 0], Ok((4, 0, 8))),
            (12, 0, [16, 0, 0, 0], Ok((4, 0, 24))),
            (12, 0, [20, 0, 0, 0], Err(Refused::Protocol)),
            (12, 1, none, Err(Refused::Protocol)),
        ];
        for (kind, code, rest, expected) in rows {
            assert_eq!(to_v6(kind, code, rest), expected, "ICMP {kind} {code} {rest:?}");
        }

        let quoted = Quoted { packet: Ipv4::parse(&about_v4).unwrap(), len: about_v4.len() - 20 };
        let to_v4 = |kind, code, number: u32| {
            let payload =
                [&[kind, code, 0, 0], &number.to_be_bytes()[..], &about_v6.to_bytes()[..48]].concat();
            let translated = error_to_v4(&Ipv6::new(INSIDE, host(), ICMPV6, payload), OUTSIDE, HOST, &quoted);
            translated.map(|packet| {
                assert!(is_valid_v4(&packet));
                assert!(packet.to_bytes().len() <= 576, "RFC 1812 §4.3.2.3");
                (
                    packet.payload[0],
                    packet.payload[1],
                    u32::from_be_bytes(packet.payload[4..8].try_into().unwrap()),
                )
            })
        };
        let rows = [
            (1, 0, 0, Ok((3, 1, 0))),
            (1, 1, 0, Ok((3, 10, 0))),
            (1, 2, 0, Ok((3, 1, 0))),
            (1, 3, 0, Ok((3, 1, 0))),
            (1, 4, 0, Ok((3, 3, 0))),
            (1, 5, 0, Err(Refused::Protocol)),
            (2, 0, 1480, Ok((3, 4, 1460))),
            (3, 0, 0, Ok((11, 0, 0))),
            (3, 1, 0, Ok((11, 1, 0))),
            (4, 0, 0, Ok((12, 0, 0))),
            (4, 0, 1, Ok((12, 0, 1 << 24))),
            (4, 0, 2, Err(Refused::Protocol)),
            (4, 0, 4, Ok((12, 0, 2 << 24))),
            (4, 0, 6, Ok((12, 0, 9 << 24))),
            (4, 0, 7, Ok((12, 0, 8 << 24))),
            (4, 0, 23, Ok((12, 0, 12 << 24))),
            (4, 0, 39, Ok((12, 0, 16 << 24))),
            (4, 0, 40, Err(Refused::Protocol)),
            (4, 1, 0, Ok((3, 2, 0))),
            (4, 2, 0, Err(Refused::Protocol)),
            (130, 0, 0, Err(Refused::Protocol)),
        ];
        for (kind, code, number, expected) in rows {
            assert_eq!(to_v4(kind, code, number), expected, "ICMPv6 {kind} {code} {number}");
        }
    }

    #[test]
    fn a_translated_error_is_read_as_one() {
        let about = udp_v6((INSIDE, 4000), (host(), 53), &[7; 40]);
        let quoted = Quoted { len: about.payload.len(), packet: about };
        let payload =
            [&[3, 3, 0, 0, 0, 0, 0, 0], &udp_v4((OUTSIDE, 1), (HOST, 53), &[]).to_bytes()[..]].concat();
        let error = Ipv4::new(HOST, OUTSIDE, ICMP, payload);
        let translated = error_to_v6(&error, host(), INSIDE, &quoted).unwrap();
        assert_eq!(quoted_v6(&translated), Ok(quoted));
        let about = udp_v4((OUTSIDE, 1), (HOST, 53), &[]);
        let quoted = Quoted { len: about.payload.len(), packet: about };
        let back = error_to_v4(&translated, HOST, OUTSIDE, &quoted).unwrap();
        assert_eq!(quoted_v4(&back), Ok(quoted));
    }

    /// RFC 7915 §5.1: what is small, headers of IPv4 and UDP counted, may be fragmented, and has an identification for it.
    #[test]
    fn large_packets_must_not_be_fragmented() {
        for (data, dont) in [(1260 - 28, false), (1261 - 28, true)] {
            let packet = udp_v6((INSIDE, 1), (host(), 2), &vec![7; data]);
            let expected = Ipv4 {
                id: if dont { 0 } else { 77 },
                fragmentation: if dont { 0x4000 } else { 0 },
                ..udp_v4((OUTSIDE, 1), (HOST, 2), &vec![7; data])
            };
            assert_eq!(to_v4(&packet, OUTSIDE, HOST, 77), Ok(expected.clone()));
            // An extension header stays behind, and does not count.
            let extended = [&[UDP, 0, 1, 4, 0, 0, 0, 0], &packet.payload[..]].concat();
            let extended = Ipv6 { next_header: 60, payload: extended, ..packet };
            assert_eq!(to_v4(&extended, OUTSIDE, HOST, 77), Ok(expected));
        }
    }

    /// RFC 6146 §3.4.
    #[test]
    fn a_datagram_without_checksum_gets_one() {
        let mut packet = udp_v4((HOST, 1), (OUTSIDE, 2), b"data");
        packet.payload[6..8].copy_from_slice(&[0, 0]);
        assert_eq!(to_v6(&packet, host(), INSIDE), Ok(udp_v6((host(), 1), (INSIDE, 2), b"data")));
    }

    #[test]
    fn what_is_not_translated() {
        let packet = udp_v4((HOST, 1), (OUTSIDE, 2), b"data");
        let refused = |packet| to_v6(&packet, host(), INSIDE).unwrap_err();
        assert_eq!(refused(Ipv4 { fragmentation: 0x2000, ..packet.clone() }), Refused::Fragment);
        assert_eq!(refused(Ipv4 { fragmentation: 1, ..packet.clone() }), Refused::Fragment);
        let options = vec![131, 7, 4, 192, 0, 2, 1, 0];
        assert_eq!(refused(Ipv4 { options, ..packet.clone() }), Refused::SourceRoute);
        assert_eq!(refused(Ipv4 { protocol: 47, ..packet.clone() }), Refused::Protocol);
        assert_eq!(refused(Ipv4 { payload: vec![0; 7], ..packet }), Refused::Malformed);
    }

    proptest! {
        #[test]
        fn udp_and_echo_there_and_back(
            ports: (u16, u16), data in proptest::collection::vec(any::<u8>(), 0..64), echo: bool, ttl: u8, tos: u8,
        ) {
            let mut sent = udp_v4((HOST, ports.0), (OUTSIDE, ports.1), &data);
            if echo {
                let message = [&[8, 0, 0, 0], &ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &data].concat();
                let checksum = Sum::default().octets(&message).checksum().to_be_bytes();
                sent = Ipv4::new(HOST, OUTSIDE, ICMP, message);
                sent.payload[2..4].copy_from_slice(&checksum);
                prop_assert!(is_valid_v4(&echo_reply_v4(&sent)));
            }
            (sent.ttl, sent.tos) = (ttl, tos);
            let through = to_v6(&sent, host(), INSIDE).unwrap();
            prop_assert!(is_valid_v6(&through));
            prop_assert_eq!((through.hop_limit, through.traffic_class), (ttl, tos));
            let back = to_v4(&through, HOST, OUTSIDE, 0).unwrap();
            prop_assert_eq!(back, Ipv4 { fragmentation: 0, ..sent });
        }

        #[test]
        fn tcp_there_and_back(mut segment in proptest::collection::vec(any::<u8>(), 20..64)) {
            let sum = Sum::default().pseudo_v4(HOST, OUTSIDE, TCP, segment.len());
            segment[16..18].copy_from_slice(&[0, 0]);
            let checksum = sum.octets(&segment).checksum();
            segment[16..18].copy_from_slice(&checksum.to_be_bytes());
            let sent = Ipv4::new(HOST, OUTSIDE, TCP, segment);
            let through = to_v6(&sent, host(), INSIDE).unwrap();
            prop_assert!(is_valid_v6(&through));
            let back = to_v4(&through, HOST, OUTSIDE, 0).unwrap();
            prop_assert!(is_valid_v4(&back));
        }

        #[test]
        fn any_octets_are_survived(payload in proptest::collection::vec(any::<u8>(), 0..128), protocol in 0..60u8) {
            let v4 = Ipv4::new(HOST, OUTSIDE, protocol, payload.clone());
            let _ = to_v6(&v4, host(), INSIDE);
            let _ = quoted_v4(&v4);
            let v6 = Ipv6::new(INSIDE, host(), protocol, payload);
            let _ = to_v4(&v6, HOST, OUTSIDE, 0);
            let _ = quoted_v6(&v6);
        }
    }
}

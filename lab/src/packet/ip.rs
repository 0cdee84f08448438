//! The headers of IPv4 (RFC 791) and IPv6 (RFC 8200), each with what it carries.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Refused, Sum};

/// The MTU that every IPv6 link has (RFC 8200 §5).
pub(super) const MIN_MTU_V6: usize = 1280;

pub(super) const HEADER_V4: usize = 20;
const HEADER_V6: usize = 40;

const DONT_FRAGMENT: u16 = 0x4000;
/// More fragments, and the offset.
const FRAGMENT: u16 = 0x3fff;

/// Extension headers that a translator or the end of a tunnel steps over (RFC 8200 §4.1).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT_V6: u8 = 44;
const DESTINATION: u8 = 60;

/// Options of IPv4 (RFC 791 §3.1).
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_ROUTE: u8 = 131;
const STRICT_ROUTE: u8 = 137;

/// An IPv4 packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ipv4 {
    /// Differentiated services and congestion notification.
    pub tos: u8,
    /// Of its fragments.
    pub id: u16,
    /// The flags and the fragment offset as they stand there.
    pub fragmentation: u16,
    /// Time to live.
    pub ttl: u8,
    /// What `payload` is.
    pub protocol: u8,
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// A multiple of four octets, 40 at most.
    pub options: Vec<u8>,
    /// Everything after the header.
    pub payload: Vec<u8>,
}

impl Ipv4 {
    /// A packet with usual header fields, that must not be fragmented.
    #[must_use]
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: Vec<u8>) -> Self {
        let options = Vec::new();
        Self { tos: 0, id: 0, fragmentation: DONT_FRAGMENT, ttl: 64, protocol, src, dst, options, payload }
    }

    /// Reads a whole packet; octets after its end are no part of it.
    ///
    /// # Errors
    ///
    /// [`Refused::Malformed`].
    pub fn parse(packet: &[u8]) -> Result<Self, Refused> {
        let (parsed, len) = Self::parse_quoted(packet)?;
        if parsed.payload.len() == len { Ok(parsed) } else { Err(Refused::Malformed) }
    }

    /// Reads a packet whose end may be cut off, as in an ICMP error; also how many octets its payload had at first.
    pub(super) fn parse_quoted(packet: &[u8]) -> Result<(Self, usize), Refused> {
        let (header, _) = packet.split_first_chunk::<HEADER_V4>().ok_or(Refused::Malformed)?;
        let [
            version,
            tos,
            len_high,
            len_low,
            id_high,
            id_low,
            frag_high,
            frag_low,
            ttl,
            protocol,
            _,
            _,
            rest @ ..,
        ] = *header;
        let header_len = usize::from(version & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([len_high, len_low]));
        let options = packet.get(HEADER_V4..header_len).ok_or(Refused::Malformed)?.to_vec();
        let valid = Sum::default().octets(&packet[..header_len]).is_valid();
        if version >> 4 != 4 || total < header_len || !valid {
            return Err(Refused::Malformed);
        }
        let payload = packet[header_len..packet.len().min(total)].to_vec();
        let [a, b, c, d, e, f, g, h] = rest;
        let parsed = Self {
            tos,
            id: u16::from_be_bytes([id_high, id_low]),
            fragmentation: u16::from_be_bytes([frag_high, frag_low]),
            ttl,
            protocol,
            src: Ipv4Addr::new(a, b, c, d),
            dst: Ipv4Addr::new(e, f, g, h),
            options,
            payload,
        };
        Ok((parsed, total - header_len))
    }

    /// The packet, with a fresh header checksum.
    ///
    /// # Panics
    ///
    /// If it is longer than 65,535 octets, or the options are not a multiple of four octets.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_bytes_quoted(self.payload.len())
    }

    /// Likewise with a header that tells of another length of the payload.
    pub(super) fn to_bytes_quoted(&self, payload_len: usize) -> Vec<u8> {
        let header_len = HEADER_V4 + self.options.len();
        assert!(
            self.options.len() <= 40 && self.options.len().is_multiple_of(4),
            "options as they were read"
        );
        let total = u16::try_from(header_len + payload_len).expect("no device has packets that long");
        let words = u8::try_from(header_len / 4).expect("at most 15");
        let mut bytes = Vec::with_capacity(header_len + self.payload.len());
        bytes.extend([4 << 4 | words, self.tos]);
        bytes.extend(total.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragmentation.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(self.src.octets());
        bytes.extend(self.dst.octets());
        bytes.extend(&self.options);
        let checksum = Sum::default().octets(&bytes).checksum();
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// Whether this is not the whole of what its sender sent.
    #[must_use]
    pub fn is_fragment(&self) -> bool {
        self.fragmentation & FRAGMENT != 0
    }

    /// Marks it as one that must not be fragmented, or not.
    #[must_use]
    pub(super) fn fragmentation(dont: bool) -> u16 {
        if dont { DONT_FRAGMENT } else { 0 }
    }

    /// Whether a source route has hops left (RFC 7915 §4.1). Options that make no sense count as one.
    pub(super) fn is_source_routed(&self) -> bool {
        let mut options = &self.options[..];
        while let [kind, rest @ ..] = options {
            match *kind {
                END_OF_OPTIONS => return false,
                NO_OPERATION => options = rest,
                kind => {
                    let Some(&len) = rest.first() else { return true };
                    let Some((option, rest)) = options.split_at_checked(len.into()) else { return true };
                    if len < 2 {
                        return true;
                    }
                    // The pointer counts from one, and is behind the end when the route is used up.
                    if matches!(kind, LOOSE_ROUTE | STRICT_ROUTE)
                        && option.get(2).is_none_or(|&pointer| pointer <= len)
                    {
                        return true;
                    }
                    options = rest;
                }
            }
        }
        false
    }
}

/// An IPv6 packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ipv6 {
    /// Differentiated services and congestion notification.
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    /// What `payload` begins with.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: Ipv6Addr,
    /// Destination.
    pub dst: Ipv6Addr,
    /// Everything after the fixed header.
    pub payload: Vec<u8>,
}

impl Ipv6 {
    /// A packet with usual header fields.
    #[must_use]
    pub fn new(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, payload: Vec<u8>) -> Self {
        Self { traffic_class: 0, flow_label: 0, next_header, hop_limit: 64, src, dst, payload }
    }

    /// Reads a whole packet; octets after its end are no part of it.
    ///
    /// # Errors
    ///
    /// [`Refused::Malformed`].
    pub fn parse(packet: &[u8]) -> Result<Self, Refused> {
        let (parsed, len) = Self::parse_quoted(packet)?;
        if parsed.payload.len() == len { Ok(parsed) } else { Err(Refused::Malformed) }
    }

    /// Reads a packet whose end may be cut off, as in an ICMP error; also how many octets its payload had at first.
    pub(super) fn parse_quoted(packet: &[u8]) -> Result<(Self, usize), Refused> {
        let (header, rest) = packet.split_first_chunk::<HEADER_V6>().ok_or(Refused::Malformed)?;
        let (first, addresses) = header.split_first_chunk::<8>().expect("40 octets");
        let (src, dst) = addresses.split_first_chunk::<16>().expect("32 octets");
        let [v, c, f1, f0, len_high, len_low, next_header, hop_limit] = *first;
        if v >> 4 != 6 {
            return Err(Refused::Malformed);
        }
        let len = usize::from(u16::from_be_bytes([len_high, len_low]));
        let dst: [u8; 16] = dst.try_into().expect("16 octets");
        let parsed = Self {
            traffic_class: v << 4 | c >> 4,
            flow_label: u32::from_be_bytes([0, c & 0xf, f1, f0]),
            next_header,
            hop_limit,
            src: (*src).into(),
            dst: dst.into(),
            payload: rest[..rest.len().min(len)].to_vec(),
        };
        Ok((parsed, len))
    }

    /// The packet.
    ///
    /// # Panics
    ///
    /// If the payload is longer than 65,535 octets.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_bytes_quoted(self.payload.len())
    }

    /// Likewise with a header that tells of another length of the payload.
    pub(super) fn to_bytes_quoted(&self, payload_len: usize) -> Vec<u8> {
        let len = u16::try_from(payload_len).expect("no device has packets that long");
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
        let mut bytes = Vec::with_capacity(HEADER_V6 + self.payload.len());
        bytes.extend(first.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        bytes.extend([self.next_header, self.hop_limit]);
        bytes.extend(self.src.octets());
        bytes.extend(self.dst.octets());
        bytes.extend(&self.payload);
        bytes
    }

    /// Steps over extension headers: the protocol, and where in `payload` it begins (RFC 8200 §4).
    ///
    /// # Errors
    ///
    /// [`Refused::Fragment`], [`Refused::SourceRoute`], [`Refused::Malformed`].
    pub fn upper(&self) -> Result<(u8, usize), Refused> {
        let (mut next, mut at) = (self.next_header, 0);
        loop {
            match next {
                HOP_BY_HOP | ROUTING | DESTINATION => {
                    let header = self.payload.get(at..at + 4).ok_or(Refused::Malformed)?;
                    let segments_left = header[3];
                    if next == ROUTING && segments_left != 0 {
                        return Err(Refused::SourceRoute);
                    }
                    next = header[0];
                    at += 8 + usize::from(header[1]) * 8;
                    if at > self.payload.len() {
                        return Err(Refused::Malformed);
                    }
                }
                FRAGMENT_V6 => return Err(Refused::Fragment),
                protocol => return Ok((protocol, at)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::protocol::{TCP, UDP};
    use super::*;

    /// Addresses, protocol and flags of the header that many textbooks compute (there 115 octets long, checksum b861).
    const KNOWN: [u8; 20] = [
        0x45, 0x00, 0x00, 0x14, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0xc0, 0xc0, 0xa8, 0x00, 0x01, 0xc0,
        0xa8, 0x00, 0xc7,
    ];

    #[test]
    fn a_known_header_of_ipv4() {
        let packet = Ipv4::new([192, 168, 0, 1].into(), [192, 168, 0, 199].into(), UDP, Vec::new());
        assert_eq!(packet.to_bytes(), KNOWN);
        assert_eq!(Ipv4::parse(&KNOWN), Ok(packet));
    }

    #[test]
    fn a_damaged_header_is_refused() {
        for at in 0..KNOWN.len() {
            let mut damaged = KNOWN;
            damaged[at] ^= 1;
            assert_eq!(Ipv4::parse(&damaged), Err(Refused::Malformed), "octet {at}");
        }
    }

    #[test]
    fn a_known_header_of_ipv6() {
        let (src, dst) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let packet = Ipv6 { traffic_class: 0xb8, flow_label: 0x12345, ..Ipv6::new(src, dst, TCP, vec![7]) };
        let mut expected = vec![0x6b, 0x81, 0x23, 0x45, 0, 1, 6, 64];
        expected.extend(src.octets());
        expected.extend(dst.octets());
        expected.push(7);
        assert_eq!(packet.to_bytes(), expected);
        assert_eq!(Ipv6::parse(&expected), Ok(packet));
    }

    #[test]
    fn extension_headers_are_stepped_over_and_fragments_are_not() {
        let packet = |next_header, payload: &[u8]| {
            let (src, dst) = (Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
            Ipv6::new(src, dst, next_header, payload.to_vec()).upper()
        };
        let tunnel_limit = [4, 0, 4, 1, 4, 1, 0, 0, 0x45]; // RFC 2473 §5.1, as Linux has it
        assert_eq!(packet(DESTINATION, &tunnel_limit), Ok((4, 8)));
        assert_eq!(
            packet(HOP_BY_HOP, &[DESTINATION, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0]),
            Ok((17, 16))
        );
        assert_eq!(packet(ROUTING, &[6, 0, 0, 0, 0, 0, 0, 0]), Ok((6, 8)));
        assert_eq!(packet(ROUTING, &[6, 0, 0, 1, 0, 0, 0, 0]), Err(Refused::SourceRoute));
        assert_eq!(packet(FRAGMENT_V6, &[6, 0, 0, 1, 0, 0, 0, 0]), Err(Refused::Fragment));
        assert_eq!(packet(DESTINATION, &[6, 1, 0, 0, 0, 0, 0, 0]), Err(Refused::Malformed));
        assert_eq!(packet(DESTINATION, &[6]), Err(Refused::Malformed));
    }

    #[test]
    fn only_a_source_route_with_hops_left_is_one() {
        let packet = |options: &[u8]| {
            let (src, dst) = (Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST);
            Ipv4 { options: options.to_vec(), ..Ipv4::new(src, dst, UDP, Vec::new()) }.is_source_routed()
        };
        assert!(!packet(&[]));
        assert!(!packet(&[NO_OPERATION, NO_OPERATION, END_OF_OPTIONS, LOOSE_ROUTE]));
        assert!(!packet(&[148, 4, 0, 0])); // router alert
        assert!(packet(&[LOOSE_ROUTE, 7, 4, 192, 0, 2, 1, 0]));
        assert!(!packet(&[LOOSE_ROUTE, 7, 8, 192, 0, 2, 1, 0]));
        assert!(packet(&[NO_OPERATION, STRICT_ROUTE, 7, 4, 192, 0, 2, 1]));
        assert!(packet(&[148, 9, 0, 0]));
        assert!(packet(&[148, 0, 0, 0]));
    }

    proptest! {
        #[test]
        fn ipv4_round_trip(
            tos: u8, id: u16, fragmentation: u16, ttl: u8, protocol: u8, src: [u8; 4], dst: [u8; 4],
            options in (0..=10usize).prop_flat_map(|words| proptest::collection::vec(any::<u8>(), words * 4)),
            payload in proptest::collection::vec(any::<u8>(), 0..64), padding in 0..8usize,
        ) {
            let packet = Ipv4 {
                tos, id, fragmentation, ttl, protocol, src: src.into(), dst: dst.into(), options, payload,
            };
            let mut bytes = packet.to_bytes();
            for end in 0..bytes.len() {
                prop_assert_eq!(Ipv4::parse(&bytes[..end]), Err(Refused::Malformed));
            }
            bytes.resize(bytes.len() + padding, 0);
            prop_assert_eq!(Ipv4::parse(&bytes), Ok(packet));
        }

        #[test]
        fn ipv6_round_trip(
            traffic_class: u8, flow_label in 0..1u32 << 20, next_header: u8, hop_limit: u8, src: [u8; 16],
            dst: [u8; 16], payload in proptest::collection::vec(any::<u8>(), 0..64), padding in 0..8usize,
        ) {
            let (src, dst) = (src.into(), dst.into());
            let packet = Ipv6 { traffic_class, flow_label, next_header, hop_limit, src, dst, payload };
            let mut bytes = packet.to_bytes();
            for end in 0..bytes.len() {
                prop_assert_eq!(Ipv6::parse(&bytes[..end]), Err(Refused::Malformed));
            }
            bytes.resize(bytes.len() + padding, 0);
            prop_assert_eq!(Ipv6::parse(&bytes), Ok(packet.clone()));
            let _ = packet.upper(); // whatever it says, it does not panic
        }

        #[test]
        fn any_octets_are_survived(octets in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = Ipv4::parse(&octets).map(|packet| packet.is_source_routed());
            let _ = Ipv6::parse(&octets).map(|packet| packet.upper());
        }
    }
}

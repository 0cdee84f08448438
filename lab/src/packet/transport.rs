//! What a translator reads and writes in TCP (RFC 9293), UDP (RFC 768) and ICMP headers.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::protocol::{ICMP, ICMPV6, TCP, UDP};
use super::{Ipv4, Ipv6, Refused, Sum, icmp};

/// Which end of a flow a field is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

/// The flags that a NAT goes by.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TcpFlags {
    /// A connection's first segment.
    pub syn: bool,
    /// Not its first.
    pub ack: bool,
    /// Its end, or one half of it.
    pub end: bool,
}

/// The beginning of a transport header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Segment {
    /// TCP.
    Tcp(u16, u16, TcpFlags),
    /// UDP.
    Udp(u16, u16),
    /// An echo request, by its identifier.
    EchoRequest(u16),
    /// An echo reply, by its identifier.
    EchoReply(u16),
    /// An ICMP message about another packet.
    Error,
    /// Anything else.
    Other,
}

impl Segment {
    /// Reads it. The payload may be cut off behind eight octets, as in an ICMP error; flags are then none.
    ///
    /// # Errors
    ///
    /// [`Refused::Malformed`], when it is shorter.
    pub fn parse(protocol: u8, payload: &[u8]) -> Result<Self, Refused> {
        if !matches!(protocol, TCP | UDP | ICMP | ICMPV6) {
            return Ok(Self::Other);
        }
        let [a, b, c, d, e, f, _, _, ..] = *payload else { return Err(Refused::Malformed) };
        let (first, second, third) =
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), u16::from_be_bytes([e, f]));
        Ok(match protocol {
            TCP => {
                let flags = payload.get(13).copied().unwrap_or_default();
                let flag = |bits| flags & bits != 0;
                Self::Tcp(first, second, TcpFlags { syn: flag(2), ack: flag(0x10), end: flag(1 | 4) })
            }
            UDP => Self::Udp(first, second),
            ICMP if a == icmp::V4_ECHO => Self::EchoRequest(third),
            ICMP if a == icmp::V4_ECHO_REPLY => Self::EchoReply(third),
            ICMP if icmp::V4_ERRORS.contains(&a) => Self::Error,
            ICMPV6 if a == icmp::V6_ECHO => Self::EchoRequest(third),
            ICMPV6 if a == icmp::V6_ECHO_REPLY => Self::EchoReply(third),
            ICMPV6 if icmp::V6_ERRORS.contains(&a) => Self::Error,
            _ => Self::Other,
        })
    }
}

impl Segment {
    /// The port at the end `near`, and the other one. An echo's identifier is the near port, its far one is 0.
    #[must_use]
    pub fn ports(self, near: End) -> (u16, u16) {
        match (self, near) {
            (Self::Tcp(src, dst, _) | Self::Udp(src, dst), End::Source) => (src, dst),
            (Self::Tcp(src, dst, _) | Self::Udp(src, dst), End::Destination) => (dst, src),
            (Self::EchoRequest(id) | Self::EchoReply(id), _) => (id, 0),
            (Self::Error | Self::Other, _) => (0, 0),
        }
    }

    /// TCP's flags; none for others.
    #[must_use]
    pub fn flags(self) -> TcpFlags {
        if let Self::Tcp(_, _, flags) = self { flags } else { TcpFlags::default() }
    }
}

/// Changes one port, or the identifier of an echo, and the checksum with it. A quoted header may lack its checksum.
pub(super) fn set_port(protocol: u8, payload: &mut [u8], end: End, port: u16) {
    let at = match (protocol, end) {
        (TCP | UDP, End::Source) => 0,
        (TCP | UDP, End::Destination) => 2,
        (ICMP | ICMPV6, _) => 4,
        _ => return,
    };
    let Some(field) = payload.get_mut(at..at + 2) else { return };
    let old = Sum::default().octets(field);
    field.copy_from_slice(&port.to_be_bytes());
    adjust(protocol, payload, old, Sum::default().word(port));
}

/// Brings the checksum to where words that it counts have changed from `old` to `new`. UDP's may be absent, and stays so.
pub(super) fn adjust(protocol: u8, payload: &mut [u8], old: Sum, new: Sum) {
    let at = match protocol {
        TCP => 16,
        UDP => 6,
        ICMP | ICMPV6 => 2,
        _ => return,
    };
    let Some(field) = payload.get_mut(at..at + 2) else { return };
    let checksum = u16::from_be_bytes([field[0], field[1]]);
    if protocol == UDP && checksum == 0 {
        return;
    }
    let changed = match old.update(checksum, new) {
        0 if protocol == UDP => 0xffff, // zero means none (RFC 768)
        changed => changed,
    };
    field.copy_from_slice(&changed.to_be_bytes());
}

impl Ipv4 {
    /// Puts another address and port (or identifier) at one end, with the checksums that cover them.
    pub fn readdress(&mut self, end: End, addr: Ipv4Addr, port: u16) {
        let old = self.address(end, addr);
        set_port(self.protocol, &mut self.payload, end, port);
        if matches!(self.protocol, TCP | UDP) {
            let (old, new) = (Sum::default().octets(&old.octets()), Sum::default().octets(&addr.octets()));
            adjust(self.protocol, &mut self.payload, old, new);
        }
    }

    /// Puts another address at one end; the old one. No checksum of the payload changes.
    pub(super) fn address(&mut self, end: End, addr: Ipv4Addr) -> Ipv4Addr {
        let field = match end {
            End::Source => &mut self.src,
            End::Destination => &mut self.dst,
        };
        std::mem::replace(field, addr)
    }
}

impl Ipv6 {
    /// Puts another port (or identifier) at one end, with the checksum that covers it.
    ///
    /// # Errors
    ///
    /// Those of [`Ipv6::upper`].
    pub fn set_port(&mut self, end: End, port: u16) -> Result<(), Refused> {
        let (protocol, at) = self.upper()?;
        set_port(protocol, &mut self.payload[at..], end, port);
        Ok(())
    }
}

/// A datagram over IPv4.
#[must_use]
pub fn udp_v4(src: (Ipv4Addr, u16), dst: (Ipv4Addr, u16), data: &[u8]) -> Ipv4 {
    let mut datagram = datagram(src.1, dst.1, data);
    let sum = Sum::default().pseudo_v4(src.0, dst.0, UDP, datagram.len());
    complete(&mut datagram, sum);
    Ipv4::new(src.0, dst.0, UDP, datagram)
}

/// A datagram over IPv6.
#[must_use]
pub fn udp_v6(src: (Ipv6Addr, u16), dst: (Ipv6Addr, u16), data: &[u8]) -> Ipv6 {
    let mut datagram = datagram(src.1, dst.1, data);
    let sum = Sum::default().pseudo_v6(src.0, dst.0, UDP, datagram.len());
    complete(&mut datagram, sum);
    Ipv6::new(src.0, dst.0, UDP, datagram)
}

fn datagram(src: u16, dst: u16, data: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + data.len()).expect("no device has packets that long");
    [&src.to_be_bytes()[..], &dst.to_be_bytes(), &len.to_be_bytes(), &[0, 0], data].concat()
}

fn complete(datagram: &mut [u8], pseudo: Sum) {
    let checksum = match pseudo.octets(datagram).checksum() {
        0 => 0xffff,
        checksum => checksum,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
}

impl Ipv4 {
    /// What a UDP datagram carries.
    ///
    /// # Errors
    ///
    /// [`Refused::Malformed`], also when there is a checksum and it is wrong.
    pub fn udp_data(&self) -> Result<&[u8], Refused> {
        udp_data(&self.payload, |len| Sum::default().pseudo_v4(self.src, self.dst, UDP, len), true)
    }
}

impl Ipv6 {
    /// What a UDP datagram carries.
    ///
    /// # Errors
    ///
    /// [`Refused::Malformed`], also when the checksum is wrong or absent (RFC 8200 §8.1), and those of [`Ipv6::upper`].
    pub fn udp_data(&self) -> Result<&[u8], Refused> {
        let (_, at) = self.upper()?;
        udp_data(&self.payload[at..], |len| Sum::default().pseudo_v6(self.src, self.dst, UDP, len), false)
    }

    /// Whether it is a UDP datagram without a checksum, which nobody in IPv6 takes (RFC 8200 §8.1).
    #[must_use]
    pub fn lacks_checksum(&self) -> bool {
        self.upper().is_ok_and(|(protocol, at)| {
            protocol == UDP && self.payload.get(at + 6..at + 8).is_none_or(|checksum| checksum == [0, 0])
        })
    }
}

/// `pseudo` is the pseudo-header's sum for a datagram of a length, `optional` whether it may have no checksum.
fn udp_data(packet: &[u8], pseudo: impl Fn(usize) -> Sum, optional: bool) -> Result<&[u8], Refused> {
    let [_, _, _, _, len_high, len_low, sum_high, sum_low, ..] = *packet else {
        return Err(Refused::Malformed);
    };
    let len = usize::from(u16::from_be_bytes([len_high, len_low]));
    let datagram = packet.get(..len).ok_or(Refused::Malformed)?;
    let absent = [sum_high, sum_low] == [0, 0];
    let valid = if absent { optional } else { pseudo(len).octets(datagram).is_valid() };
    datagram.get(8..).filter(|_| valid).ok_or(Refused::Malformed)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether the transport checksum is what the addresses and the payload make it.
    pub(in crate::packet) fn is_valid_v4(packet: &Ipv4) -> bool {
        let len = packet.payload.len();
        match packet.protocol {
            ICMP => Sum::default(),
            protocol => Sum::default().pseudo_v4(packet.src, packet.dst, protocol, len),
        }
        .octets(&packet.payload)
        .is_valid()
    }

    pub(in crate::packet) fn is_valid_v6(packet: &Ipv6) -> bool {
        let (protocol, at) = packet.upper().unwrap();
        let payload = &packet.payload[at..];
        Sum::default().pseudo_v6(packet.src, packet.dst, protocol, payload.len()).octets(payload).is_valid()
    }

    /// A TCP SYN as Linux sends it, with its own checksum.
    #[test]
    fn tcp_is_read() {
        let payload = [0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xfa, 0xf0, 0, 0, 0, 0];
        let flags = TcpFlags { syn: true, ack: false, end: false };
        assert_eq!(Segment::parse(TCP, &payload), Ok(Segment::Tcp(40_000, 8080, flags)));
        assert_eq!(Segment::parse(TCP, &payload[..8]), Ok(Segment::Tcp(40_000, 8080, TcpFlags::default())));
        assert_eq!(Segment::parse(TCP, &payload[..7]), Err(Refused::Malformed));
        for (flags, expected) in
            [(0x10, (false, true, false)), (0x11, (false, true, true)), (0x04, (false, false, true))]
        {
            let mut payload = payload;
            payload[13] = flags;
            let (syn, ack, end) = expected;
            assert_eq!(
                Segment::parse(TCP, &payload),
                Ok(Segment::Tcp(40_000, 8080, TcpFlags { syn, ack, end }))
            );
        }
    }

    #[test]
    fn icmp_is_told_apart_by_its_version() {
        let message = |kind| [kind, 0, 0, 0, 0x12, 0x34, 0, 1];
        let rows = [
            (ICMP, 8, Segment::EchoRequest(0x1234)),
            (ICMP, 0, Segment::EchoReply(0x1234)),
            (ICMP, 3, Segment::Error),
            (ICMP, 11, Segment::Error),
            (ICMP, 12, Segment::Error),
            (ICMP, 5, Segment::Other), // a redirect is for the link it is on
            (ICMP, 128, Segment::Other),
            (ICMPV6, 128, Segment::EchoRequest(0x1234)),
            (ICMPV6, 129, Segment::EchoReply(0x1234)),
            (ICMPV6, 1, Segment::Error),
            (ICMPV6, 2, Segment::Error),
            (ICMPV6, 3, Segment::Error),
            (ICMPV6, 4, Segment::Error),
            (ICMPV6, 135, Segment::Other),
            (47, 0, Segment::Other),
        ];
        for (protocol, kind, expected) in rows {
            assert_eq!(Segment::parse(protocol, &message(kind)), Ok(expected), "{protocol} {kind}");
        }
    }

    /// RFC 768: an absent checksum stays absent, and a computed zero is sent as ones.
    #[test]
    fn the_zeros_of_udp() {
        let mut none = [0, 1, 0, 2, 0, 8, 0, 0];
        set_port(UDP, &mut none, End::Source, 77);
        assert_eq!(none, [0, 77, 0, 2, 0, 8, 0, 0]);
        let mut data = *b"\0\0\0\0\0\0\0\0\0\0";
        let pseudo = Sum::default().word(0xffff - 8 - 1);
        data[5] = 8;
        data[1] = 1;
        complete(&mut data, pseudo);
        assert_eq!(data[6..8], [0xff, 0xff]);
    }

    /// RFC 768; RFC 8200 §8.1, by which it is not absent in IPv6. The pseudo-header has the datagram's own length.
    #[test]
    fn a_datagram_is_read_only_with_the_right_checksum() {
        let v4 = udp_v4(([192, 0, 0, 2].into(), 5350), ([192, 0, 0, 1].into(), 5351), b"odd");
        let v6 = udp_v6((Ipv6Addr::LOCALHOST, 5350), (Ipv6Addr::LOCALHOST, 5351), b"odd");
        let read = |change: fn(&mut Vec<u8>)| {
            let (mut v4, mut v6) = (v4.clone(), v6.clone());
            change(&mut v4.payload);
            change(&mut v6.payload);
            [v4.udp_data().map(<[u8]>::to_vec), v6.udp_data().map(<[u8]>::to_vec)]
        };
        let (data, malformed) = (Ok(b"odd".to_vec()), Err(Refused::Malformed));
        assert_eq!(read(|_| {}), [data.clone(), data.clone()]);
        assert_eq!(read(|payload| payload.push(7)), [data.clone(), data.clone()]);
        assert_eq!(read(|payload| payload[8] ^= 1), [malformed.clone(), malformed.clone()]);
        assert_eq!(read(|payload| payload.truncate(10)), [malformed.clone(), malformed.clone()]);
        assert_eq!(read(|payload| payload[6..8].fill(0)), [data, malformed]);
        assert!(!v6.lacks_checksum());
        let mut without = v6;
        without.payload[6..8].fill(0);
        assert!(without.lacks_checksum());
    }

    proptest! {
        #[test]
        fn a_readdressed_packet_is_as_valid_as_before(
            src: [u8; 4], dst: [u8; 4], to: [u8; 4], port: u16, source: bool,
            data in proptest::collection::vec(any::<u8>(), 0..40), damage in 0..3u16,
        ) {
            let mut packet = udp_v4((src.into(), 7), (dst.into(), 9), &data);
            let checksum = u16::from_be_bytes([packet.payload[6], packet.payload[7]]);
            let damaged = checksum.checked_add(damage).filter(|sum| *sum != 0xffff).unwrap_or(checksum);
            packet.payload[6..8].copy_from_slice(&damaged.to_be_bytes());
            prop_assume!(damaged != 0);
            let end = if source { End::Source } else { End::Destination };
            packet.readdress(end, to.into(), port);
            prop_assert_eq!(is_valid_v4(&packet), damaged == checksum);
            let Ok(Segment::Udp(src_port, dst_port)) = Segment::parse(UDP, &packet.payload) else { panic!() };
            let expected = if source { (packet.src, src_port) } else { (packet.dst, dst_port) };
            prop_assert_eq!(expected, (to.into(), port));
        }
    }
}

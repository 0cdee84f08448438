//! ICMP messages about packets, and echoes that a router itself answers (RFC 792, RFC 4443).

use super::ip::MIN_MTU_V6;
use super::protocol::{ICMP, ICMPV6};
use super::transport::adjust;
use super::{Ipv4, Ipv6, Refused, Sum};

pub(super) const V4_ECHO_REPLY: u8 = 0;
pub(super) const V4_UNREACHABLE: u8 = 3;
pub(super) const V4_ECHO: u8 = 8;
pub(super) const V4_TIME_EXCEEDED: u8 = 11;
pub(super) const V4_PARAMETER_PROBLEM: u8 = 12;
pub(super) const V4_ERRORS: [u8; 3] = [V4_UNREACHABLE, V4_TIME_EXCEEDED, V4_PARAMETER_PROBLEM];

pub(super) const V6_UNREACHABLE: u8 = 1;
pub(super) const V6_TOO_BIG: u8 = 2;
pub(super) const V6_TIME_EXCEEDED: u8 = 3;
pub(super) const V6_PARAMETER_PROBLEM: u8 = 4;
pub(super) const V6_ECHO: u8 = 128;
pub(super) const V6_ECHO_REPLY: u8 = 129;
pub(super) const V6_ERRORS: [u8; 4] = [V6_UNREACHABLE, V6_TOO_BIG, V6_TIME_EXCEEDED, V6_PARAMETER_PROBLEM];

/// Octets before the packet that an error is about.
const HEADER: usize = 8;
/// The longest quote: the message is no longer than 576 octets (RFC 1812 §4.3.2.3), in IPv6 than the least MTU.
const QUOTE_V4: usize = 576 - 20 - HEADER;
const QUOTE_V6: usize = MIN_MTU_V6 - 40 - HEADER;

/// The beginning of a packet that an ICMP error is about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Quoted<P> {
    /// As far as it was quoted.
    pub packet: P,
    /// Octets of its payload when it was whole.
    pub len: usize,
}

/// What an ICMP error is about. Extensions behind it (RFC 4884) are not read.
///
/// # Errors
///
/// [`Refused::Malformed`], also when the message's checksum is wrong: it is made anew when the quote has been changed.
pub fn quoted_v4(error: &Ipv4) -> Result<Quoted<Ipv4>, Refused> {
    let valid = Sum::default().octets(&error.payload).is_valid();
    let (header, quote) = error.payload.split_first_chunk::<HEADER>().ok_or(Refused::Malformed)?;
    let quote = without_extensions(quote, usize::from(header[5]) * 4);
    let (packet, len) = Ipv4::parse_quoted(quote)?;
    if !valid {
        Err(Refused::Malformed)
    } else {
        whole(packet.is_fragment()).map(|()| Quoted { packet, len })
    }
}

/// Likewise in IPv6.
///
/// # Errors
///
/// Those of [`quoted_v4`] and [`Ipv6::upper`].
pub fn quoted_v6(error: &Ipv6) -> Result<Quoted<Ipv6>, Refused> {
    let (protocol, at) = error.upper()?;
    let message = &error.payload[at..];
    let sum = Sum::default().pseudo_v6(error.src, error.dst, protocol, message.len()).octets(message);
    let (header, quote) = message.split_first_chunk::<HEADER>().ok_or(Refused::Malformed)?;
    let extended = matches!(header[0], V6_UNREACHABLE | V6_TIME_EXCEEDED);
    let quote = without_extensions(quote, if extended { usize::from(header[4]) * 8 } else { 0 });
    let (packet, len) = Ipv6::parse_quoted(quote)?;
    packet.upper()?;
    if sum.is_valid() { Ok(Quoted { packet, len }) } else { Err(Refused::Malformed) }
}

fn without_extensions(quote: &[u8], len: usize) -> &[u8] {
    quote.get(..len).filter(|_| len > 0).unwrap_or(quote)
}

fn whole(fragment: bool) -> Result<(), Refused> {
    if fragment { Err(Refused::Fragment) } else { Ok(()) }
}

/// Puts another quote into an ICMP error, with a fresh checksum.
///
/// # Panics
///
/// If `error` is shorter than the header of a message, which [`quoted_v4`] would not have read.
pub fn requote_v4(error: &mut Ipv4, quoted: &Quoted<Ipv4>) {
    let header: [u8; HEADER] = error.payload[..HEADER].try_into().expect("it was read before");
    error.payload = message_v4(header, quoted);
}

/// An ICMP error: `header` as it is wanted but for the checksum and RFC 4884's length.
pub(super) fn message_v4(mut header: [u8; HEADER], quoted: &Quoted<Ipv4>) -> Vec<u8> {
    (header[2], header[3], header[5]) = (0, 0, 0);
    let mut quote = quoted.packet.to_bytes_quoted(quoted.len);
    quote.truncate(QUOTE_V4);
    with_checksum([&header[..], &quote].concat(), Sum::default())
}

/// Likewise in IPv6; RFC 4884's length, where there is one, is the caller's to leave out.
pub(super) fn message_v6(
    mut header: [u8; HEADER],
    src: std::net::Ipv6Addr,
    dst: std::net::Ipv6Addr,
    quoted: &Quoted<Ipv6>,
) -> Vec<u8> {
    (header[2], header[3]) = (0, 0);
    let mut quote = quoted.packet.to_bytes_quoted(quoted.len);
    quote.truncate(QUOTE_V6);
    let message = [&header[..], &quote].concat();
    let pseudo = Sum::default().pseudo_v6(src, dst, ICMPV6, message.len());
    with_checksum(message, pseudo)
}

fn with_checksum(mut message: Vec<u8>, pseudo: Sum) -> Vec<u8> {
    let checksum = pseudo.octets(&message).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    message
}

/// The answer to an echo request; the caller has seen that it is one.
#[must_use]
pub fn echo_reply_v4(request: &Ipv4) -> Ipv4 {
    let mut payload = request.payload.clone();
    become_type(ICMP, &mut payload, V4_ECHO_REPLY);
    Ipv4::new(request.dst, request.src, ICMP, payload)
}

/// The answer to an echo request in IPv6; the caller has seen that it is one.
#[must_use]
pub fn echo_reply_v6(request: &Ipv6) -> Ipv6 {
    let mut payload = request.payload.clone();
    become_type(ICMPV6, &mut payload, V6_ECHO_REPLY);
    Ipv6::new(request.dst, request.src, ICMPV6, payload)
}

/// Gives a message another type, and the checksum for it.
pub(super) fn become_type(protocol: u8, payload: &mut [u8], kind: u8) {
    let Some(field) = payload.get_mut(..2) else { return };
    let old = Sum::default().octets(field);
    field[0] = kind;
    let new = Sum::default().octets(field);
    adjust(protocol, payload, old, new);
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::super::protocol::UDP;
    use super::super::transport::tests::{is_valid_v4, is_valid_v6};
    use super::super::{End, udp_v4};
    use super::*;

    const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 20);
    const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 114, 1);
    const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);

    /// A whole message about a datagram from `OUTSIDE`, of which `octets` are quoted.
    fn error(octets: usize) -> Ipv4 {
        let about = udp_v4((OUTSIDE, 40_000), (HOST, 53), &[7; 600]).to_bytes();
        let payload = [&[V4_UNREACHABLE, 3, 0, 0, 0, 0, 0, 0], &about[..octets]].concat();
        Ipv4::new(HOST, OUTSIDE, ICMP, with_checksum(payload, Sum::default()))
    }

    #[test]
    fn a_quote_is_read_changed_and_written_with_every_checksum() {
        for octets in [28, 29, 300, 548] {
            let mut message = error(octets);
            let mut quoted = quoted_v4(&message).unwrap();
            assert_eq!((quoted.packet.src, quoted.packet.dst, quoted.len), (OUTSIDE, HOST, 608));
            quoted.packet.readdress(End::Source, INSIDE, 5000);
            requote_v4(&mut message, &quoted);
            message.dst = INSIDE;
            assert!(is_valid_v4(&message));
            let expected = udp_v4((INSIDE, 5000), (HOST, 53), &[7; 600]).to_bytes();
            assert_eq!(message.payload[8..], expected[..octets], "{octets} octets are quoted");
        }
    }

    #[test]
    fn a_damaged_message_and_a_quoted_fragment_are_refused() {
        let mut damaged = error(28);
        damaged.payload[35] ^= 1;
        assert_eq!(quoted_v4(&damaged), Err(Refused::Malformed));
        let mut short = error(27);
        short.payload.truncate(7);
        assert_eq!(quoted_v4(&short), Err(Refused::Malformed));
        let about = Ipv4 { fragmentation: 1, ..udp_v4((OUTSIDE, 1), (HOST, 2), &[]) }.to_bytes();
        let payload =
            with_checksum([&[V4_UNREACHABLE, 3, 0, 0, 0, 0, 0, 0], &about[..]].concat(), Sum::default());
        assert_eq!(quoted_v4(&Ipv4::new(HOST, OUTSIDE, ICMP, payload)), Err(Refused::Fragment));
    }

    /// RFC 4884 §5: the length is in words of 32 bits, and what follows is no part of the quote.
    #[test]
    fn extensions_are_left_out() {
        let about = udp_v4((OUTSIDE, 1), (HOST, 2), &[7; 200]).to_bytes();
        let payload =
            [&[V4_UNREACHABLE, 3, 0, 0, 0, 32, 0, 0], &about[..128], &[0x20, 0, 0, 0, 9, 9, 9, 9]].concat();
        let message = Ipv4::new(HOST, OUTSIDE, ICMP, with_checksum(payload, Sum::default()));
        let quoted = quoted_v4(&message).unwrap();
        assert_eq!((quoted.packet.payload.len(), quoted.len), (108, 208));
        let mut requoted = message.clone();
        requote_v4(&mut requoted, &quoted);
        assert_eq!(requoted.payload[5], 0);
        assert!(is_valid_v4(&requoted));
    }

    #[test]
    fn echoes_are_answered() {
        let payload = with_checksum(vec![V4_ECHO, 0, 0, 0, 0x12, 0x34, 0, 1, 7], Sum::default());
        let reply = echo_reply_v4(&Ipv4::new(HOST, OUTSIDE, ICMP, payload));
        assert_eq!((reply.src, reply.dst, reply.payload[0]), (OUTSIDE, HOST, V4_ECHO_REPLY));
        assert_eq!(reply.payload[4..], [0x12, 0x34, 0, 1, 7]);
        assert!(is_valid_v4(&reply));
        let (src, dst) = (Ipv6Addr::LOCALHOST, Ipv6Addr::from(1 << 64));
        let message = vec![V6_ECHO, 0, 0, 0, 0x12, 0x34, 0, 1, 7];
        let pseudo = Sum::default().pseudo_v6(src, dst, ICMPV6, message.len());
        let reply = echo_reply_v6(&Ipv6::new(src, dst, ICMPV6, with_checksum(message, pseudo)));
        assert_eq!((reply.src, reply.dst, reply.payload[0]), (dst, src, V6_ECHO_REPLY));
        assert!(is_valid_v6(&reply));
        assert_ne!(reply.next_header, UDP);
    }
}

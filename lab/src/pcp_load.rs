//! PCP requests by the thousand, for `lab-pcp-load` and the suites that try a server with it.
//!
//! Octets are written here without the `wire` crate: who tries a server must not share a mistake with it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// ANNOUNCE's opcode (RFC 6887 §14.1).
pub const ANNOUNCE: u8 = 0;
/// MAP's opcode (RFC 6887 §11).
pub const MAP: u8 = 1;
/// PEER's opcode (RFC 6887 §12).
pub const PEER: u8 = 2;
/// GET's opcode, of private use.
pub const GET: u8 = 98;

/// What one MAP request is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wish {
    /// 6 TCP, 17 UDP.
    pub protocol: u8,
    /// The port inside.
    pub internal_port: u16,
    /// The port outside to suggest; 0: any.
    pub suggested: u16,
    /// Seconds; 0 deletes.
    pub lifetime: u32,
}

/// The header of a request, 24 octets (RFC 6887 §7.1).
#[must_use]
pub fn header(opcode: u8, lifetime: u32, client: IpAddr) -> Vec<u8> {
    [&[2, opcode, 0, 0][..], &lifetime.to_be_bytes(), &mapped(client)].concat()
}

/// A MAP request, 60 octets (RFC 6887 §11.1), with [`nonce`].
#[must_use]
pub fn map(client: IpAddr, wish: Wish) -> Vec<u8> {
    let Wish { protocol, internal_port, suggested, lifetime } = wish;
    let any: IpAddr =
        if client.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut request = header(MAP, lifetime, client);
    request.extend(nonce(client, protocol, internal_port));
    request.extend([protocol, 0, 0, 0]);
    request.extend(internal_port.to_be_bytes());
    request.extend(suggested.to_be_bytes());
    request.extend(mapped(any));
    request
}

/// Each mapping's own, and the same whenever it is asked for: nobody here has to keep them. Never like this where it matters.
#[must_use]
pub fn nonce(client: IpAddr, protocol: u8, internal_port: u16) -> [u8; 12] {
    let mut nonce = *b"lab.....\0\0\0\0";
    nonce[3..8].copy_from_slice(&mapped(client)[11..]);
    nonce[8] = protocol;
    nonce[10..].copy_from_slice(&internal_port.to_be_bytes());
    nonce
}

/// An address as PCP has it (RFC 6887 §5).
#[must_use]
pub fn mapped(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A prefix of either family, whose addresses are numbered.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    first: IpAddr,
    /// How many addresses; the last number is one less.
    pub addresses: u64,
    /// Distance between two of them: in IPv6, that of two subscribers.
    step: u128,
}

impl Range {
    /// `10.0.0.0/24`: its hosts. `2001:db8::/48`: the first host of each /64 in it. An address alone: that one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (addr, len) = text.split_once('/').map_or((text, None), |(addr, len)| (addr, Some(len)));
        let first: IpAddr = addr.parse().ok()?;
        let Some(len) = len else { return Some(Self { first, addresses: 1, step: 0 }) };
        let len: u32 = len.parse().ok()?;
        let (bits, step): (u32, u128) = if first.is_ipv4() { (32, 1) } else { (64, 1 << 64) };
        Some(Self { first, addresses: 1 << bits.checked_sub(len)?, step })
    }

    /// The address of that number, which may exceed the last one: then it begins anew.
    #[must_use]
    pub fn address(&self, number: u64) -> IpAddr {
        let offset = u128::from(number % self.addresses) * self.step;
        match self.first {
            IpAddr::V4(v4) => {
                Ipv4Addr::from(u32::from(v4).wrapping_add(u32::try_from(offset).unwrap_or(0))).into()
            }
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6).wrapping_add(offset)).into(),
        }
    }
}

/// Numbers that look random, the same for the same seed (xorshift).
#[derive(Clone, Copy, Debug)]
pub struct Dice(u64);

impl Dice {
    /// Any seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Below `sides`, which is not 0.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// One datagram of a flood: half of them requests that could be granted, the others wrong in one way or another.
#[must_use]
pub fn flood(dice: &mut Dice, client: IpAddr) -> Vec<u8> {
    let mut octet = |sides: u64| u8::try_from(dice.roll(sides)).unwrap_or(u8::MAX);
    let (kind, protocol) = (octet(16), [6, 17][usize::from(octet(2))]);
    let port = u16::from_be_bytes([octet(256), octet(256)]).max(1);
    let garbage: Vec<u8> = (0..=octet(255)).map(|_| octet(256)).collect();
    let wish = |lifetime| map(client, Wish { protocol, internal_port: port, suggested: port, lifetime });
    match kind {
        0..=2 => wish(600),
        // Of which the NAT is asked whether it has a flow.
        3 | 4 => map(client, Wish { protocol, internal_port: port, suggested: 0, lifetime: 600 }),
        5 => wish(u32::MAX),
        6 => wish(0),
        7 => header(ANNOUNCE, 0, client),
        8 => [header(GET, 0, client), vec![0; 40]].concat(),
        9 => [&[0, 1 + port.to_be_bytes()[1] % 2, 0, 0][..], &port.to_be_bytes(), &[0; 6]].concat(),
        10 => wish(600)[..usize::from(port) % 60].to_vec(),
        11 => [wish(600), vec![0; 1044]].concat(),
        12 => [&wish(600)[..], &[3, 0, 0, 200]].concat(),
        13 => [&[2, MAP | 0x80][..], &wish(600)[2..]].concat(),
        14 => [&[port.to_be_bytes()[1]][..], &wish(600)[1..]].concat(),
        _ => garbage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6887 §11.1: the worked example of docs/spec, but for nonce and option.
    #[test]
    fn a_request_is_that_of_the_rfc() {
        let wish = Wish { protocol: 6, internal_port: 8080, suggested: 8080, lifetime: 3600 };
        let request = map(IpAddr::from([192, 0, 2, 10]), wish);
        assert_eq!(request.len(), 60);
        assert_eq!(request[..24], *b"\x02\x01\0\0\0\0\x0e\x10\0\0\0\0\0\0\0\0\0\0\xff\xff\xc0\0\x02\x0a");
        assert_eq!(request[36..], *b"\x06\0\0\0\x1f\x90\x1f\x90\0\0\0\0\0\0\0\0\0\0\xff\xff\0\0\0\0");
    }

    #[test]
    fn nonces_differ() {
        let client = IpAddr::from([192, 0, 2, 10]);
        let other = IpAddr::from([192, 0, 2, 11]);
        let all = [nonce(client, 6, 1), nonce(client, 6, 256), nonce(client, 17, 1), nonce(other, 6, 1)];
        assert_eq!(std::collections::BTreeSet::from(all).len(), 4);
    }

    #[test]
    fn ranges() {
        let range = Range::parse("100.64.8.0/21").unwrap();
        assert_eq!((range.addresses, range.address(257)), (2048, IpAddr::from([100, 64, 9, 1])));
        let range = Range::parse("2001:db8::1/48").unwrap();
        assert_eq!((range.addresses, range.address(1)), (65_536, "2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(Range::parse("192.0.2.1").unwrap().address(7), IpAddr::from([192, 0, 2, 1]));
        assert!(Range::parse("192.0.2.1/33").is_none());
    }

    /// A flood that had no valid request, or no invalid one, would show nothing.
    #[test]
    fn a_flood_is_mixed() {
        let client = IpAddr::from([192, 0, 2, 10]);
        let mut dice = Dice::new(1);
        let all: Vec<_> = (0..1000).map(|_| flood(&mut dice, client)).collect();
        let good = all.iter().filter(|datagram| datagram.len() == 60 && datagram[..2] == [2, MAP]).count();
        assert!((300..600).contains(&good), "{good}");
        assert!(
            all.iter().any(|datagram| datagram.len() > 1100)
                && all.iter().any(|datagram| datagram.len() < 24)
        );
    }
}

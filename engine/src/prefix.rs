//! Prefixes of addresses, as rules name them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A prefix of IPv4 or IPv6 addresses: `198.51.100.0/24`, `2001:db8::/32`; an address alone is the longest one.
///
/// IPv4 has no place in an IPv6 prefix, `::/0` and `::ffff:0:0/96` included: an address that travelled as an IPv4-mapped one
/// is IPv4.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

/// What is not a prefix: neither address nor address, slash and length.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotAPrefix;

impl fmt::Display for NotAPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an address or prefix, such as 198.51.100.0/24")
    }
}

impl std::error::Error for NotAPrefix {}

impl Prefix {
    /// Every IPv4 address.
    pub const ALL_V4: Self = Self { addr: IpAddr::V4(Ipv4Addr::UNSPECIFIED), len: 0 };
    /// Every IPv6 address.
    pub const ALL_V6: Self = Self { addr: IpAddr::V6(Ipv6Addr::UNSPECIFIED), len: 0 };

    /// The first `len` bits of `addr`; a longer `len` than the address has bits means all of them.
    #[must_use]
    pub fn new(addr: IpAddr, len: u8) -> Self {
        let addr = addr.to_canonical();
        let len = len.min(if addr.is_ipv4() { 32 } else { 128 });
        Self { addr: first_bits(addr, len), len }
    }

    /// Whether `addr` is in it.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        addr.is_ipv4() == self.addr.is_ipv4() && first_bits(addr, self.len) == self.addr
    }

    /// Its first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.addr
    }

    /// How many bits count.
    #[must_use]
    pub fn bits(&self) -> u8 {
        self.len
    }
}

/// Who may use THIRD_PARTY (RFC 6887 §13.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ThirdParty {
    /// The packet's source; inside a softwire, the B4's IPv6 address.
    pub client: Prefix,
    /// The internal addresses that it may name.
    pub internal: Vec<Prefix>,
}

impl ThirdParty {
    /// Whether `client` may name `host`.
    #[must_use]
    pub fn allows(&self, client: IpAddr, host: IpAddr) -> bool {
        self.client.contains(client) && self.internal.iter().any(|internal| internal.contains(host))
    }
}

fn first_bits(addr: IpAddr, len: u8) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0);
            IpAddr::V4((u32::from(addr) & mask).into())
        }
        IpAddr::V6(addr) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0);
            IpAddr::V6((u128::from(addr) & mask).into())
        }
    }
}

impl From<IpAddr> for Prefix {
    fn from(addr: IpAddr) -> Self {
        Self::new(addr, 128)
    }
}

impl FromStr for Prefix {
    type Err = NotAPrefix;

    fn from_str(text: &str) -> Result<Self, NotAPrefix> {
        let (addr, len) = text.split_once('/').map_or((text, None), |(addr, len)| (addr, Some(len)));
        let addr: IpAddr = addr.parse().map_err(|_| NotAPrefix)?;
        let longest = if addr.is_ipv4() { 32 } else { 128 };
        let len = len.map_or(Ok(longest), |len| len.parse().map_err(|_| NotAPrefix))?;
        if len <= longest { Ok(Self::new(addr, len)) } else { Err(NotAPrefix) }
    }
}

/// `198.51.100.0/24`
impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_hold_what_begins_like_them() {
        for (prefix, addr, within) in [
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.1.2.3/8", "10.9.9.9", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "203.0.113.9", false),
            ("::/0", "::ffff:203.0.113.9", false),
            ("203.0.113.0/24", "::ffff:203.0.113.9", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("2001:db8:0:ff00::/56", "2001:db8:0:ff42::1", true),
            ("2001:db8:0:ff00::/56", "2001:db8:1::1", false),
        ] {
            let prefix: Prefix = prefix.parse().expect("a prefix");
            assert_eq!(prefix.contains(addr.parse().expect("an address")), within, "{prefix} {addr}");
        }
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0/8", "10.0.0.0/-1", "a/8"] {
            assert_eq!(text.parse::<Prefix>(), Err(NotAPrefix), "{text}");
        }
        assert_eq!("10.1.2.3/8".parse::<Prefix>().expect("one").to_string(), "10.0.0.0/8");
    }
}

//! Who asks: hosts of the LAN, and the links that they are on.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address of the gateway with the length of its prefix.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct InterfaceAddress {
    /// The gateway's own address there.
    pub addr: IpAddr,
    /// Bits of the prefix that all hosts on the link share.
    pub prefix_len: u8,
}

impl InterfaceAddress {
    /// Whether `host` is on this link.
    pub fn contains(&self, host: IpAddr) -> bool {
        match (self.addr, host) {
            (IpAddr::V4(own), IpAddr::V4(host)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0);
                u32::from(own) & mask == u32::from(host) & mask
            }
            (IpAddr::V6(own), IpAddr::V6(host)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix_len.min(128))).unwrap_or(0);
                u128::from(own) & mask == u128::from(host) & mask
            }
            _ => false,
        }
    }

    /// Whether `host` is the first address of this link, which is all of its routers' (RFC 4291 §2.6.1).
    pub(super) fn is_first(&self, host: Ipv6Addr) -> bool {
        let host_bits = u128::MAX.checked_shr(u32::from(self.prefix_len)).unwrap_or(0);
        self.prefix_len < 127 && u128::from(host) & host_bits == 0
    }

    /// Whether `host` is the first or the last address of this link: the network's own and the directed broadcast.
    pub fn is_edge(&self, host: Ipv4Addr) -> bool {
        let host_bits = u32::MAX.checked_shr(u32::from(self.prefix_len)).unwrap_or(0);
        let part = u32::from(host) & host_bits;
        self.prefix_len < 31 && self.contains(IpAddr::V4(host)) && (part == 0 || part == host_bits)
    }
}

/// The address of a network card (MAC), which a host has one of whatever its IP addresses are.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct HardwareAddress(pub [u8; 6]);

/// `02:00:5e:10:00:01`
impl fmt::Display for HardwareAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, octet) in self.0.iter().enumerate() {
            let colon = if place == 0 { "" } else { ":" };
            write!(f, "{colon}{octet:02x}")?;
        }
        Ok(())
    }
}

/// What is neither a hardware address nor an IP address.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NotADevice;

impl fmt::Display for NotADevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a hardware address such as 02:00:5e:10:00:01, nor an IP address")
    }
}

impl std::error::Error for NotADevice {}

impl FromStr for HardwareAddress {
    type Err = NotADevice;

    fn from_str(text: &str) -> Result<Self, NotADevice> {
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or(NotADevice)?;
            let is_hex = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *octet = u8::from_str_radix(part, 16).ok().filter(|_| is_hex).ok_or(NotADevice)?;
        }
        if parts.next().is_none() { Ok(Self(octets)) } else { Err(NotADevice) }
    }
}

/// A host as an owner knows it: by its network card, where the neighbour table shows one, else by its address.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Device {
    /// By its network card.
    Hardware(HardwareAddress),
    /// By its address.
    Address(IpAddr),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware(hardware) => hardware.fmt(f),
            Self::Address(addr) => addr.fmt(f),
        }
    }
}

impl FromStr for Device {
    type Err = NotADevice;

    fn from_str(text: &str) -> Result<Self, NotADevice> {
        let addr = text.parse::<IpAddr>().map(|addr| Self::Address(addr.to_canonical()));
        addr.or_else(|_| text.parse().map(Self::Hardware))
    }
}

/// What the neighbour table shows of a host.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Known {
    /// Its other addresses (K-3), none of link-local scope.
    pub also: Vec<IpAddr>,
    /// Its network card.
    pub hardware: Option<HardwareAddress>,
}

/// Who asks: a host is one host by all of its addresses (K-3, decision 27).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Requester {
    source: IpAddr,
    /// The source, if that is one, and others.
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
    hardware: Option<HardwareAddress>,
    /// Who asks for it, where that is another host.
    asker: Option<Box<Requester>>,
}

impl Requester {
    /// Who speaks from `source`, and has these addresses, too.
    pub fn new(source: IpAddr, also: &[IpAddr]) -> Self {
        let source = source.to_canonical();
        let mut new = Self { source, v4: Vec::new(), v6: Vec::new(), hardware: None, asker: None };
        for addr in std::iter::once(source).chain(also.iter().map(IpAddr::to_canonical)) {
            match addr {
                IpAddr::V4(addr) if !new.v4.contains(&addr) => new.v4.push(addr),
                IpAddr::V6(addr) if !new.v6.contains(&addr) => new.v6.push(addr),
                _ => {}
            }
        }
        new
    }

    /// The same, whose network card has this address.
    #[must_use]
    pub fn with_hardware(self, hardware: Option<HardwareAddress>) -> Self {
        Self { hardware, ..self }
    }

    /// The same, for whom another host asks (THIRD_PARTY, RFC 6887 §13.1).
    #[must_use]
    pub fn asked_for_by(self, asker: Requester) -> Self {
        Self { asker: Some(Box::new(asker)), ..self }
    }

    /// Who asks for it: itself, most of the time.
    pub fn asker(&self) -> &Self {
        self.asker.as_deref().unwrap_or(self)
    }

    /// The address of its network card, where that is known.
    pub fn hardware(&self) -> Option<HardwareAddress> {
        self.hardware
    }

    /// By what it is known again.
    pub fn device(&self) -> Device {
        self.hardware.map_or(Device::Address(self.source), Device::Hardware)
    }

    /// Where the request came from.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// The IPv4 addresses that it is known to have.
    pub fn addresses(&self) -> &[Ipv4Addr] {
        &self.v4
    }

    /// The IPv6 addresses that it is known to have.
    pub fn v6_addresses(&self) -> impl Iterator<Item = Ipv6Addr> {
        self.v6.iter().copied()
    }

    /// All addresses that it is known to have.
    pub(super) fn all_addresses(&self) -> Vec<IpAddr> {
        let v4 = self.v4.iter().copied().map(IpAddr::V4);
        v4.chain(self.v6_addresses().map(IpAddr::V6)).collect()
    }

    /// Whether the host with this address is the one that asks.
    pub fn is(&self, host: Ipv4Addr) -> bool {
        self.v4.contains(&host)
    }

    /// Whether this is an address of the one that asks: the one that it speaks from, or any other.
    pub fn has(&self, addr: IpAddr) -> bool {
        match addr.to_canonical() {
            IpAddr::V4(addr) => self.v4.contains(&addr),
            IpAddr::V6(addr) => self.v6.contains(&addr),
        }
    }

    /// Whether both are one host, as far as is known.
    pub fn is_same_host(&self, other: &Self) -> bool {
        self.v4.iter().any(|addr| other.v4.contains(addr))
            || self.v6.iter().any(|addr| other.v6.contains(addr))
    }

    /// The address that it means when it names none: the one that it speaks from, or the only one that it has.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match (self.source, &self.v4[..]) {
            (IpAddr::V4(own), _) => Some(own),
            (IpAddr::V6(_), [only]) => Some(*only),
            (IpAddr::V6(_), _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_by_both_names() {
        for (text, shown) in [
            ("02:00:5e:10:00:0a", Some("02:00:5e:10:00:0a")),
            ("02-00-5E-10-00-0A", Some("02:00:5e:10:00:0a")),
            ("192.168.1.10", Some("192.168.1.10")),
            ("::ffff:192.168.1.10", Some("192.168.1.10")),
            ("2001:db8::10", Some("2001:db8::10")),
            ("02:00:5e:10:00", None),
            ("02:00:5e:10:00:0a:0b", None),
            ("2:0:5e:10:0:a", None),
            ("02:00:5e:10:00:+a", None),
            ("02005e10000a", None),
            ("192.168.1.010", None),
            ("laptop", None),
            ("", None),
        ] {
            let device = text.parse::<Device>().ok();
            assert_eq!(device.map(|device| device.to_string()).as_deref(), shown, "{text}");
        }
    }
}

//! Rules of an administrator: which ports which hosts may have, in the order in which they are written; the first that fits decides.
//!
//! The syntax is miniupnpd's, `allow|deny EXTERNAL ADDRESS[/MASK] INTERNAL`, so that its rules can be taken over as they are. IPv6
//! addresses, and a protocol as the last word, are ours.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use wire::pcp::Protocol;

use super::Ports;
use crate::prefix::Prefix;

/// Bits of an IPv6 prefix that is one link's.
const LINK: u8 = 64;

/// Ports from one to another, both included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// From `first` to `last`; `None` when that is the wrong way round.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// The first of them.
    #[must_use]
    pub fn first(&self) -> u16 {
        self.first
    }

    /// The last of them.
    #[must_use]
    pub fn last(&self) -> u16 {
        self.last
    }

    /// Whether all of `other` are among them.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.contains(other.first) && self.contains(other.last)
    }

    /// Whether any of `other` is among them.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The first beyond them, if there is one.
    #[must_use]
    pub fn beyond(&self) -> Option<u16> {
        self.last.checked_add(1)
    }
}

/// `1024-65535`, or one port alone.
impl FromStr for PortRange {
    type Err = NotARule;

    fn from_str(text: &str) -> Result<Self, NotARule> {
        // Digits only: no sign, no spaces, nothing that another parser reads as another number.
        let number = |text: &str| match text.bytes().all(|octet| octet.is_ascii_digit()) {
            true => text.parse().map_err(|_| NotARule::Ports),
            false => Err(NotARule::Ports),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::new(number(first)?, number(last)?).ok_or(NotARule::Ports)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// Why a line is no rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotARule {
    /// It does not begin with `allow` or `deny`.
    Verb,
    /// It has too few words.
    Short,
    /// A port, or a range of ports, is none.
    Ports,
    /// The address or its mask is none.
    Address,
    /// The last word is neither `tcp` nor `udp`.
    Protocol,
    /// It ends with a regular expression for descriptions, which miniupnpd takes.
    Description,
}

impl fmt::Display for NotARule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verb => "it has to begin with allow or deny",
            Self::Short => "a word is missing: external ports, address, or internal ports",
            Self::Ports => "ports are numbers from 0 to 65535, the smaller one first, such as 1024-65535",
            Self::Address => {
                "the address is IPv4 or IPv6, with the length of a prefix or a netmask, such as 192.168.1.0/24"
            }
            Self::Protocol => "behind the internal ports only tcp or udp can stand",
            Self::Description => {
                "a regular expression for descriptions is not taken: the description is the application's own word, and whoever wants to get past the rule says what it wants to read"
            }
        })
    }
}

impl std::error::Error for NotARule {}

/// One line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// Whether what it names may be had.
    pub allows: bool,
    /// External ports.
    pub external: PortRange,
    /// Internal clients.
    pub hosts: Prefix,
    /// Internal ports.
    pub internal: PortRange,
    /// The only protocol that it is about; `None`: both.
    pub protocol: Option<Protocol>,
}

impl Rule {
    /// Whether it is about this internal client and port, whatever the external port.
    pub(super) fn is_about(&self, host: IpAddr, internal: u16, protocol: Protocol) -> bool {
        // `deny … 0.0.0.0/0 …` means everybody to who writes it, and a list that ends so must not leave IPv6 open. What an `allow` opens
        // is what it names.
        let everybody = !self.allows && self.hosts == Prefix::ALL_V4;
        (everybody || self.hosts.contains(host))
            && self.internal.contains(internal)
            && self.protocol.is_none_or(|only| only == protocol)
    }

    /// Whether it is a `deny` for all hosts and protocols that `other` is about, whatever their ports.
    pub(super) fn denies_all_of(&self, other: &Rule) -> bool {
        let hosts = self.hosts == Prefix::ALL_V4
            || self.hosts.bits() <= other.hosts.bits() && self.hosts.contains(other.hosts.first());
        !self.allows && hosts && (self.protocol.is_none() || self.protocol == other.protocol)
    }

    /// Whether it denies `ports` to their host because of another address of that host. An IPv6 prefix of a link or more is a network,
    /// which a host is in with one address and not with another: it says nothing of those.
    pub(super) fn denies_host(&self, other: IpAddr, ports: &Ports) -> bool {
        let is_network = other.is_ipv6() && self.hosts.bits() <= LINK;
        !self.allows && !is_network && self.is_about(other, ports.internal, ports.protocol)
    }
}

impl FromStr for Rule {
    type Err = NotARule;

    fn from_str(text: &str) -> Result<Self, NotARule> {
        let mut words = text.split_whitespace();
        let allows = match words.next() {
            Some("allow") => true,
            Some("deny") => false,
            _ => return Err(NotARule::Verb),
        };
        let external = words.next().ok_or(NotARule::Short)?.parse()?;
        let hosts = hosts(words.next().ok_or(NotARule::Short)?).ok_or(NotARule::Address)?;
        let internal = words.next().ok_or(NotARule::Short)?.parse()?;
        let protocol = match words.next() {
            None => None,
            Some(word) if word.eq_ignore_ascii_case("tcp") => Some(Protocol::TCP),
            Some(word) if word.eq_ignore_ascii_case("udp") => Some(Protocol::UDP),
            Some(word) if word.starts_with(['"', '\'']) => return Err(NotARule::Description),
            Some(_) => return Err(NotARule::Protocol),
        };
        match words.next() {
            None => Ok(Self { allows, external, hosts, internal, protocol }),
            Some(word) if word.starts_with(['"', '\'']) => Err(NotARule::Description),
            Some(_) => Err(NotARule::Protocol),
        }
    }
}

/// The rule as it could be written, which is what counters are shown with.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.allows { "allow" } else { "deny" };
        write!(f, "{verb} {} {} {}", self.external, self.hosts, self.internal)?;
        match self.protocol {
            None => Ok(()),
            Some(only) => f.write_str(if only == Protocol::UDP { " udp" } else { " tcp" }),
        }
    }
}

/// An address, a prefix, or an IPv4 address with its netmask.
fn hosts(text: &str) -> Option<Prefix> {
    let Some((addr, mask)) = text.split_once('/') else { return text.parse().ok() };
    let Ok(mask) = mask.parse::<Ipv4Addr>() else {
        let digits = mask.bytes().all(|octet| octet.is_ascii_digit());
        return text.parse().ok().filter(|_| digits);
    };
    let addr: Ipv4Addr = addr.parse().ok()?;
    let bits = u32::from(mask);
    // A mask with holes is a slip of the pen.
    (bits.leading_ones() + bits.trailing_zeros() == 32)
        .then(|| Prefix::new(addr.into(), u8::try_from(bits.leading_ones()).unwrap_or(32)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// miniupnpd's lines as they stand in its own example, and ours; beside them how they read.
    #[test]
    fn lines_that_are_rules() {
        for (line, shown) in [
            ("allow 1024-65535 192.168.0.0/24 1024-65535", "allow 1024-65535 192.168.0.0/24 1024-65535"),
            (
                "allow 1024-65535 192.168.1.0/255.255.255.0 1024-65535",
                "allow 1024-65535 192.168.1.0/24 1024-65535",
            ),
            ("allow 12345 192.168.7.113/32 54321", "allow 12345 192.168.7.113/32 54321"),
            ("allow 22 192.168.7.113 22", "allow 22 192.168.7.113/32 22"),
            ("deny 0-65535 0.0.0.0/0 0-65535", "deny 0-65535 0.0.0.0/0 0-65535"),
            ("deny 0-65535 0.0.0.0/0.0.0.0 0-65535", "deny 0-65535 0.0.0.0/0 0-65535"),
            ("deny 6881-6889 10.1.2.3/255.255.255.255 0-65535", "deny 6881-6889 10.1.2.3/32 0-65535"),
            ("  deny\t80   192.168.1.77/24 80 ", "deny 80 192.168.1.0/24 80"),
            ("allow 5000-5000 192.168.1.5 5000", "allow 5000 192.168.1.5/32 5000"),
            ("allow 443 192.168.1.5 443 tcp", "allow 443 192.168.1.5/32 443 tcp"),
            ("allow 443 192.168.1.5 443 UDP", "allow 443 192.168.1.5/32 443 udp"),
            ("deny 0-65535 2001:db8:1::/64 0-65535", "deny 0-65535 2001:db8:1::/64 0-65535"),
            ("allow 22 2001:db8:1::5 22 tcp", "allow 22 2001:db8:1::5/128 22 tcp"),
        ] {
            let rule: Rule = line.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!(rule.to_string(), shown, "{line}");
            assert_eq!(shown.parse(), Ok(rule), "what is shown is the same rule");
        }
    }

    #[test]
    fn lines_that_are_none_say_why() {
        for (line, why) in [
            ("", NotARule::Verb),
            ("permit 80 192.168.1.1 80", NotARule::Verb),
            ("Allow 80 192.168.1.1 80", NotARule::Verb),
            ("allow", NotARule::Short),
            ("allow 80", NotARule::Short),
            ("allow 80 192.168.1.1", NotARule::Short),
            ("allow 80-70 192.168.1.1 80", NotARule::Ports),
            ("allow 65536 192.168.1.1 80", NotARule::Ports),
            ("allow -80 192.168.1.1 80", NotARule::Ports),
            ("allow 80- 192.168.1.1 80", NotARule::Ports),
            ("allow 80-90-100 192.168.1.1 80", NotARule::Ports),
            ("allow +80 192.168.1.1 80", NotARule::Ports),
            ("allow 0x50 192.168.1.1 80", NotARule::Ports),
            ("allow http 192.168.1.1 80", NotARule::Ports),
            ("allow 80 192.168.1.1 80-", NotARule::Ports),
            ("allow 80 192.168.1 80", NotARule::Address),
            ("allow 80 192.168.1.01 80", NotARule::Address),
            ("allow 80 192.168.1.0/33 80", NotARule::Address),
            ("allow 80 192.168.1.0/+24 80", NotARule::Address),
            ("allow 80 192.168.1.0/255.0.255.0 80", NotARule::Address),
            ("allow 80 2001:db8::/255.255.255.0 80", NotARule::Address),
            ("allow 80 2001:db8::/129 80", NotARule::Address),
            ("allow 80 laptop 80", NotARule::Address),
            ("allow 80 fe80::1%lan0 80", NotARule::Address),
            ("allow 80 192.168.1.1 80 sctp", NotARule::Protocol),
            ("allow 80 192.168.1.1 80 tcp udp", NotARule::Protocol),
            ("allow 80 192.168.1.1 80 \"^game\"", NotARule::Description),
            ("allow 80 192.168.1.1 80 tcp \"^game .*\"", NotARule::Description),
        ] {
            assert_eq!(line.parse::<Rule>(), Err(why), "{line}");
        }
        assert!(NotARule::Description.to_string().contains("the application's own word"));
    }

    #[test]
    fn what_a_rule_is_about() {
        for (line, host, internal, protocol, is_about) in [
            ("allow 80 192.168.1.0/24 80", "192.168.1.5", 80, Protocol::TCP, true),
            ("allow 80 192.168.1.0/24 80", "192.168.1.5", 81, Protocol::TCP, false),
            ("allow 80 192.168.1.0/24 80", "192.168.2.5", 80, Protocol::TCP, false),
            ("allow 80 192.168.1.0/24 80 udp", "192.168.1.5", 80, Protocol::TCP, false),
            ("allow 80 192.168.1.0/24 80 udp", "192.168.1.5", 80, Protocol::UDP, true),
            ("allow 80 0.0.0.0/0 80", "203.0.113.5", 80, Protocol::TCP, true),
            ("allow 80 0.0.0.0/0 80", "2001:db8::5", 80, Protocol::TCP, false), // opens what it names
            ("deny 80 0.0.0.0/0 80", "2001:db8::5", 80, Protocol::TCP, true),   // everybody
            ("deny 80 0.0.0.0/0 80 udp", "2001:db8::5", 80, Protocol::TCP, false),
            ("deny 80 0.0.0.0/1 80", "2001:db8::5", 80, Protocol::TCP, false),
            ("deny 80 ::/0 80", "192.168.1.5", 80, Protocol::TCP, false),
            ("deny 80 ::/0 80", "2001:db8::5", 80, Protocol::TCP, true),
            ("deny 80 2001:db8::/32 80", "2001:db9::5", 80, Protocol::TCP, false),
        ] {
            let rule: Rule = line.parse().unwrap();
            assert_eq!(rule.is_about(host.parse().unwrap(), internal, protocol), is_about, "{line} {host}");
        }
    }
}

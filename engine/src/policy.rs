//! Who may map what (R-39, R-41, decisions 27 and 28): evaluated in one place, for every protocol, before anything is
//! sent.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::pinholes::is_of_the_internet;
use crate::request::MappingRequest;

/// What an administrator may set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// External and internal ports below this are refused.
    pub lowest_port: u16,
    /// Mappings of one host.
    pub mappings_per_host: usize,
    /// Mappings in all.
    pub mappings: usize,
    /// The LAN is the loopback interface: for the demonstration, which runs on one machine.
    pub loopback_lan: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { lowest_port: 1024, mappings_per_host: 100, mappings: 65_000, loopback_lan: false }
    }
}

/// Why policy says no.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Denied {
    /// The internal client is not the host that asks.
    OtherHost,
    /// The internal client is one of the addresses that are never mapped.
    NeverMapped,
    /// The internal client is not on the LAN.
    OffLan,
    /// The external or the internal port is below the lowest one allowed.
    LowPort(u16),
    /// The host has as many mappings as it may.
    HostQuota(usize),
    /// The gateway has as many mappings as it may.
    TableFull(usize),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::OtherHost => write!(f, "a host may map to its own address only"),
            Denied::NeverMapped => write!(f, "this address is never mapped"),
            Denied::OffLan => write!(f, "this address is not on the LAN"),
            Denied::LowPort(lowest) => write!(f, "ports below {lowest} are not allowed"),
            Denied::HostQuota(most) => write!(f, "the host has {most} mappings already"),
            Denied::TableFull(most) => write!(f, "there are {most} mappings already"),
        }
    }
}

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
    fn is_first(&self, host: Ipv6Addr) -> bool {
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

/// Who asks: a host is one host by all of its addresses (K-3, decision 27).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Requester {
    source: IpAddr,
    /// The source, if that is one, and others.
    v4: Vec<Ipv4Addr>,
    v6: Vec<Ipv6Addr>,
}

impl Requester {
    /// Who speaks from `source`, and has these addresses, too.
    pub fn new(source: IpAddr, also: &[IpAddr]) -> Self {
        let source = source.to_canonical();
        let mut new = Self { source, v4: Vec::new(), v6: Vec::new() };
        for addr in std::iter::once(source).chain(also.iter().map(IpAddr::to_canonical)) {
            match addr {
                IpAddr::V4(addr) if !new.v4.contains(&addr) => new.v4.push(addr),
                IpAddr::V6(addr) if !new.v6.contains(&addr) => new.v6.push(addr),
                _ => {}
            }
        }
        new
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

/// What policy needs to know of the moment.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The gateway's addresses on the LAN.
    pub lan: &'a [InterfaceAddress],
    /// The gateway's addresses on the WAN side.
    pub wan: &'a [Ipv4Addr],
    /// Mappings that the host has.
    pub held_by_host: usize,
    /// Mappings in all.
    pub held: usize,
}

/// The same for a pinhole.
#[derive(Clone, Copy, Debug)]
pub struct PinholeFacts<'a> {
    /// The gateway's addresses on the LAN.
    pub lan: &'a [InterfaceAddress],
    /// The gateway's IPv6 addresses on the WAN side.
    pub wan: &'a [Ipv6Addr],
    /// Pinholes that the host has.
    pub held_by_host: usize,
    /// Pinholes in all.
    pub held: usize,
}

impl Policy {
    /// May this host have a pinhole to `port` of `addr`? One that is there counts in `facts` as not yet held.
    pub fn check_pinhole(
        &self,
        who: &Requester,
        addr: Ipv6Addr,
        port: u16,
        facts: PinholeFacts<'_>,
    ) -> Result<(), Denied> {
        self.check_address(addr, facts)?;
        let host = IpAddr::V6(addr);
        if !who.has(host) {
            return Err(Denied::OtherHost);
        }
        self.check_share(port, facts.held_by_host, facts.held)
    }

    /// A port of one's own, and one's share of all there are.
    fn check_share(&self, port: u16, held_by_host: usize, held: usize) -> Result<(), Denied> {
        if port < self.lowest_port {
            return Err(Denied::LowPort(self.lowest_port));
        }
        if held_by_host >= self.mappings_per_host {
            return Err(Denied::HostQuota(self.mappings_per_host));
        }
        if held >= self.mappings {
            return Err(Denied::TableFull(self.mappings));
        }
        Ok(())
    }

    /// Whether pinholes may lead to this address at all.
    pub fn check_address(&self, addr: Ipv6Addr, facts: PinholeFacts<'_>) -> Result<(), Denied> {
        let host = IpAddr::V6(addr);
        let own = facts.wan.contains(&addr) || facts.lan.iter().any(|link| link.addr == host);
        // Whom nobody outside can reach needs no pinhole.
        let anycast = facts.lan.iter().any(|link| link.contains(host) && link.is_first(addr));
        if own || anycast || !is_of_the_internet(addr) {
            return Err(Denied::NeverMapped);
        }
        if !facts.lan.iter().any(|link| link.contains(host)) {
            return Err(Denied::OffLan);
        }
        Ok(())
    }

    /// May this host have this mapping? A mapping that replaces the host's own one counts in `facts` as not yet held.
    pub fn check(&self, who: &Requester, wanted: &MappingRequest, facts: Facts<'_>) -> Result<(), Denied> {
        let host = *wanted.internal.ip();
        if self.is_never_mapped(host, facts) {
            return Err(Denied::NeverMapped);
        }
        if !facts.lan.iter().any(|link| link.contains(IpAddr::V4(host))) {
            return Err(Denied::OffLan);
        }
        if !who.is(host) {
            return Err(Denied::OtherHost);
        }
        let lowest = wanted.external_port.unwrap_or(u16::MAX).min(wanted.internal.port());
        self.check_share(lowest, facts.held_by_host, facts.held)
    }

    fn is_never_mapped(&self, host: Ipv4Addr, facts: Facts<'_>) -> bool {
        let own = facts.wan.contains(&host) || facts.lan.iter().any(|link| link.addr == IpAddr::V4(host));
        let edge = facts.lan.iter().any(|link| link.is_edge(host));
        own || edge
            || host.is_unspecified()
            || host.is_multicast()
            || host.is_link_local()
            || host.octets()[0] >= 240
            || (host.is_loopback() && !self.loopback_lan)
    }
}

/// Whether an address that a server gave is one that the world could reach: a unicast address. What is reserved but
/// unicast (another NAT's address, say) is passed on: the owner must see it.
pub fn is_usable_external(addr: Ipv4Addr) -> bool {
    !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() || addr.octets()[0] >= 240)
}

/// Whether nobody in the Internet can reach this address, so that there is a NAT between it and them: RFC 1918, RFC 6598, RFC 3927,
/// and others of RFC 6890.
pub fn is_behind_nat(addr: Ipv4Addr) -> bool {
    let [first, second, third, _] = addr.octets();
    addr.is_private()
        || addr.is_link_local()
        || addr.is_loopback()
        || first == 0
        || first == 100 && (64..128).contains(&second)
        || (first, second, third) == (192, 0, 0)
        || first == 198 && (18..20).contains(&second)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use wire::pcp::Protocol;

    use super::*;
    use crate::claims::Asker;

    #[test]
    fn addresses_behind_a_nat() {
        for (addr, behind) in [
            ("0.1.2.3", true),
            ("10.0.0.1", true),
            ("100.63.255.255", false),
            ("100.64.0.1", true),
            ("100.127.255.255", true),
            ("100.128.0.0", false),
            ("169.254.1.1", true),
            ("172.15.0.1", false),
            ("172.16.0.1", true),
            ("172.32.0.0", false),
            ("192.0.0.8", true),
            ("192.168.178.1", true),
            ("198.17.255.255", false),
            ("198.18.0.1", true),
            ("198.19.255.255", true),
            ("198.51.100.7", false),
            ("203.0.114.1", false),
        ] {
            assert_eq!(is_behind_nat(addr.parse().unwrap()), behind, "{addr}");
        }
    }

    fn request(host: [u8; 4], internal: u16, external: Option<u16>) -> MappingRequest {
        MappingRequest {
            protocol: Protocol::TCP,
            internal: SocketAddrV4::new(host.into(), internal),
            external_port: external,
            strict: true,
            external_addr: None,
            lease: None,
            remote_peer: None,
            remote_name: None,
            description: String::new(),
            by: Asker::Igd,
        }
    }

    #[test]
    fn decisions_27_and_28_row_by_row() {
        let link = |addr: [u8; 4], prefix_len| InterfaceAddress { addr: IpAddr::from(addr), prefix_len };
        let lan = [link([192, 168, 1, 1], 24), link([169, 254, 0, 1], 16), link([127, 0, 0, 1], 8)];
        let wan = [Ipv4Addr::new(100, 64, 0, 2)];
        let facts = Facts { lan: &lan, wan: &wan, held_by_host: 0, held: 0 };
        let me = [192, 168, 1, 10];
        for (from, host, internal, external, verdict) in [
            (me, me, 8080, Some(8080), Ok(())),
            (me, me, 8080, None, Ok(())),
            (me, me, 1024, Some(1024), Ok(())),
            (me, [192, 168, 1, 11], 8080, Some(8080), Err(Denied::OtherHost)),
            (me, me, 1023, Some(8080), Err(Denied::LowPort(1024))),
            (me, me, 8080, Some(80), Err(Denied::LowPort(1024))),
            (me, [192, 168, 2, 10], 8080, Some(8080), Err(Denied::OffLan)),
            (me, [8, 8, 8, 8], 8080, Some(8080), Err(Denied::OffLan)),
            (me, [192, 168, 1, 1], 8080, Some(8080), Err(Denied::NeverMapped)), // the router
            (me, [100, 64, 0, 2], 8080, Some(8080), Err(Denied::NeverMapped)),  // the router's WAN side
            (me, [192, 168, 1, 255], 8080, Some(8080), Err(Denied::NeverMapped)), // broadcast
            (me, [192, 168, 1, 0], 8080, Some(8080), Err(Denied::NeverMapped)), // network
            ([127, 0, 0, 2], [127, 0, 0, 2], 8080, Some(8080), Err(Denied::NeverMapped)),
            (me, [224, 0, 0, 1], 8080, Some(8080), Err(Denied::NeverMapped)),
            (me, [255, 255, 255, 255], 8080, Some(8080), Err(Denied::NeverMapped)),
            (me, [0, 0, 0, 0], 8080, Some(8080), Err(Denied::NeverMapped)),
            (me, [169, 254, 7, 7], 8080, Some(8080), Err(Denied::NeverMapped)),
            (me, [241, 0, 0, 1], 8080, Some(8080), Err(Denied::NeverMapped)),
        ] {
            let wanted = request(host, internal, external);
            let who = Requester::new(IpAddr::from(from), &[]);
            assert_eq!(Policy::default().check(&who, &wanted, facts), verdict, "{wanted:?}");
        }
    }

    /// K-3, decision 27: who speaks over IPv6 may map to the IPv4 addresses of the same host, and to no other.
    #[test]
    fn a_host_is_one_by_all_of_its_addresses() {
        let lan = [InterfaceAddress { addr: IpAddr::from([192, 168, 1, 1]), prefix_len: 24 }];
        let facts = Facts { lan: &lan, wan: &[], held_by_host: 0, held: 0 };
        let (one, two, other) = ([192, 168, 1, 10], [192, 168, 1, 11], [192, 168, 1, 12]);
        let router = [192, 168, 1, 1];
        for (source, also, host, verdict, means) in [
            ("fe80::10", vec![one], one, Ok(()), Some(one)),
            ("fd00::10", vec![one], one, Ok(()), Some(one)),
            ("2001:db8::10", vec![one], one, Ok(()), Some(one)),
            ("::ffff:192.168.1.10", vec![], one, Ok(()), Some(one)),
            ("fe80::10", vec![one], other, Err(Denied::OtherHost), Some(one)),
            ("fe80::10", vec![], one, Err(Denied::OtherHost), None), // nothing is known of it
            ("fe80::10", vec![one, two], two, Ok(()), None),
            ("fe80::10", vec![one, one], one, Ok(()), Some(one)),
            ("fe80::10", vec![one, two], other, Err(Denied::OtherHost), None),
            ("192.168.1.10", vec![two], two, Ok(()), Some(one)),
            ("192.168.1.10", vec![two], other, Err(Denied::OtherHost), Some(one)),
            ("fe80::10", vec![router], router, Err(Denied::NeverMapped), Some(router)),
            ("fe80::10", vec![[8, 8, 8, 8]], [8, 8, 8, 8], Err(Denied::OffLan), Some([8, 8, 8, 8])),
        ] {
            let addresses: Vec<IpAddr> = also.into_iter().map(IpAddr::from).collect();
            let who = Requester::new(source.parse().unwrap(), &addresses);
            let wanted = request(host, 8080, Some(8080));
            assert_eq!(Policy::default().check(&who, &wanted, facts), verdict, "{who:?} {host:?}");
            assert_eq!(who.address(), means.map(Ipv4Addr::from), "{who:?}");
        }
    }

    /// Decisions 27 and 28 for pinholes; the subnet-router anycast address (RFC 4291 §2.6.1) is the router's.
    #[test]
    fn who_may_have_which_pinhole() {
        let link = |addr: &str| InterfaceAddress { addr: addr.parse().unwrap(), prefix_len: 64 };
        let lan = [link("2001:db8:1::1"), link("fe80::1"), link("fd00::1")];
        let wan = ["2001:db8::2".parse().unwrap()];
        let me = "2001:db8:1::10";
        for (from, addr, port, held, verdict) in [
            (me, me, 1024, (99, 100), Ok(())),
            (me, me, 1023, (0, 0), Err(Denied::LowPort(1024))),
            (me, me, 0, (0, 0), Err(Denied::LowPort(1024))),
            (me, "2001:db8:1::11", 8080, (0, 0), Err(Denied::OtherHost)),
            ("192.168.1.10", me, 8080, (0, 0), Err(Denied::OtherHost)), // nothing is known of it
            (me, "2001:db8:1::1", 8080, (0, 0), Err(Denied::NeverMapped)), // the router
            (me, "2001:db8::2", 8080, (0, 0), Err(Denied::NeverMapped)), // its WAN side
            ("2001:db8:1::", "2001:db8:1::", 8080, (0, 0), Err(Denied::NeverMapped)),
            (me, "2001:db8:2::10", 8080, (0, 0), Err(Denied::OffLan)),
            ("fe80::10", "fe80::10", 8080, (0, 0), Err(Denied::NeverMapped)),
            ("fd00::10", "fd00::10", 8080, (0, 0), Err(Denied::NeverMapped)),
            (me, "::1", 8080, (0, 0), Err(Denied::NeverMapped)),
            (me, "::", 8080, (0, 0), Err(Denied::NeverMapped)),
            (me, "ff02::1", 8080, (0, 0), Err(Denied::NeverMapped)),
            (me, "::ffff:192.168.1.10", 8080, (0, 0), Err(Denied::NeverMapped)),
            (me, me, 8080, (100, 100), Err(Denied::HostQuota(100))),
            (me, me, 8080, (0, 65_000), Err(Denied::TableFull(65_000))),
        ] {
            let facts = PinholeFacts { lan: &lan, wan: &wan, held_by_host: held.0, held: held.1 };
            let who = Requester::new(from.parse().unwrap(), &[]);
            let checked = Policy::default().check_pinhole(&who, addr.parse().unwrap(), port, facts);
            assert_eq!(checked, verdict, "{from} for {addr} port {port}");
        }
    }

    /// K-3, both ways: what is whose, whoever speaks by which of his addresses.
    #[test]
    fn whose_an_address_is() {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap();
        let who = |source: &str, also: &[&str]| {
            Requester::new(addr(source), &also.iter().map(|text| addr(text)).collect::<Vec<_>>())
        };
        let all = ["192.168.1.10", "192.168.1.11", "fe80::10", "2001:db8::10", "fd00::10"];
        for (source, also, own) in [
            ("192.168.1.10", &[][..], &["192.168.1.10"][..]),
            ("::ffff:192.168.1.10", &[], &["192.168.1.10"]),
            ("192.168.1.10", &["2001:db8::10", "fd00::10"], &["192.168.1.10", "2001:db8::10", "fd00::10"]),
            ("fe80::10", &["192.168.1.10", "192.168.1.10"], &["fe80::10", "192.168.1.10"]),
            ("2001:db8::10", &["fd00::10", "192.168.1.11"], &["2001:db8::10", "fd00::10", "192.168.1.11"]),
            ("fd00::10", &["::ffff:192.168.1.11"], &["fd00::10", "192.168.1.11"]),
        ] {
            let one = who(source, also);
            for known in all {
                assert_eq!(one.has(addr(known)), own.contains(&known), "{one:?} {known}");
                assert_eq!(one.is_same_host(&who(known, &[])), own.contains(&known), "{one:?} {known}");
            }
            assert!(one.has("::ffff:192.168.1.10".parse().unwrap()) == own.contains(&"192.168.1.10"));
            // What mappings lead to is IPv4, as ever.
            let v4 = own.iter().filter(|own| own.parse::<Ipv4Addr>().is_ok()).count();
            assert_eq!(one.addresses().len(), v4, "{one:?}");
            assert_eq!(one.source(), addr(source).to_canonical());
        }
        let (left, right) = (who("fe80::10", &["2001:db8::10"]), who("fd00::10", &["2001:db8::10"]));
        assert!(left.is_same_host(&right), "by an address that neither speaks from");
        assert!(!left.is_same_host(&who("fd00::10", &["192.168.1.10"])));
    }

    #[test]
    fn decision_27_quotas() {
        let lan = [InterfaceAddress { addr: IpAddr::from([10, 0, 0, 1]), prefix_len: 8 }];
        let host = [10, 9, 8, 7];
        let check = |held_by_host, held| {
            let facts = Facts { lan: &lan, wan: &[], held_by_host, held };
            let who = Requester::new(IpAddr::from(host), &[]);
            Policy::default().check(&who, &request(host, 5000, None), facts)
        };
        assert_eq!(check(99, 64_999), Ok(()));
        assert_eq!(check(100, 100), Err(Denied::HostQuota(100)));
        assert_eq!(check(0, 65_000), Err(Denied::TableFull(65_000)));
    }

    #[test]
    fn external_addresses_that_are_given_back() {
        for (addr, usable) in [
            ([198, 51, 100, 7], true),
            ([10, 0, 0, 1], true), // another NAT above: true as far as it goes, and shown
            ([0, 0, 0, 0], false),
            ([127, 0, 0, 1], false),
            ([224, 0, 0, 1], false),
            ([255, 255, 255, 255], false),
        ] {
            assert_eq!(is_usable_external(addr.into()), usable, "{addr:?}");
        }
    }
}

//! Who may map what (R-39, R-41, decisions 27 and 28): evaluated in one place, for every protocol, before anything is
//! sent; and, of ports that nobody has asked for, once they are granted.

mod consent;
mod counters;
mod host;
mod lifted;
mod rules;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wire::pcp::Protocol;

use crate::limits::Rate;
use crate::pinholes::{Endpoint, is_of_the_internet};
use crate::request::MappingRequest;

pub use consent::{Consent, Consents, Decided, MOST_WAITING, Verb, Waiting, Wish};
pub use counters::{Count, Counted, Refusals};
pub use host::{Device, HardwareAddress, InterfaceAddress, Known, NotADevice, Requester};
pub use lifted::Lifted;
pub use rules::{NotARule, PortRange, Rule};

/// Ports that are refused outside and inside, unless a rule allows them: what is attacked as soon as it can be reached, by worms, by
/// ransomware and by those who make other people's machines send floods; and no port of a game's or of BitTorrent's (docs/policy.md has each).
pub const NEVER: &[&str] = &[
    "21",
    "23",
    "53",
    "69",
    "111",
    "135",
    "137-139",
    "161",
    "389",
    "445",
    "512-514",
    "548",
    "1433-1434",
    "1900",
    "2049",
    "2375-2376",
    "3306",
    "3389",
    "3702",
    "5353",
    "5432",
    "5555",
    "5900-5901",
    "5985-5986",
    "6379",
    "7547",
    "8291",
    "9100",
    "9200",
    "11211",
];

/// What becomes of a request that no rule is about.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ByDefault {
    /// It is allowed, but for [`Policy::lowest_port`] and [`Policy::never`].
    #[default]
    Allow,
    /// It is refused.
    Deny,
    /// The same as `Allow`, once the owner has said yes to the host.
    Ask,
}

/// What an administrator may set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Policy {
    /// The first that fits decides.
    pub rules: Vec<Rule>,
    /// What becomes of the rest.
    pub default: ByDefault,
    /// External and internal ports below this are refused, unless a rule allows them.
    pub lowest_port: u16,
    /// Likewise these.
    pub never: Vec<PortRange>,
    /// Mappings of one host.
    pub mappings_per_host: usize,
    /// Mappings in all.
    pub mappings: usize,
    /// How often one host may want what the provider, or this router's NAT or firewall, has to be asked for.
    pub exchanges: Rate,
    /// The LAN is the loopback interface: for the demonstration, which runs on one machine.
    pub loopback_lan: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            default: ByDefault::Allow,
            lowest_port: 1024,
            never: NEVER.iter().filter_map(|ports| ports.parse().ok()).collect(),
            mappings_per_host: 100,
            mappings: 65_000,
            exchanges: Rate { per_second: 10, burst: 50 },
            loopback_lan: false,
        }
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
    /// The external or the internal port, this one, is one that is never to be open.
    NeverPort(u16),
    /// The rule of this number, counted from 1.
    Rule(usize),
    /// No rule is about it.
    Default,
    /// The owner has not been asked about the host, or has not answered.
    AwaitsConsent,
    /// The owner has said no to the host.
    NoConsent,
    /// The host has as many mappings as it may.
    HostQuota(usize),
    /// The gateway has as many mappings as it may.
    TableFull(usize),
    /// The host asks more often than it may.
    TooOften,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denied::OtherHost => write!(f, "a host may map to its own address only"),
            Denied::NeverMapped => write!(f, "this address is never mapped"),
            Denied::OffLan => write!(f, "this address is not on the LAN"),
            Denied::LowPort(lowest) => write!(f, "ports below {lowest} are not allowed"),
            Denied::NeverPort(port) => write!(f, "port {port} is one of policy.never"),
            Denied::Rule(number) => write!(f, "rule {number} of policy.rules denies it"),
            Denied::Default => write!(f, "no rule allows it, and policy.default is \"deny\""),
            Denied::AwaitsConsent => write!(f, "the host waits for your consent"),
            Denied::NoConsent => write!(f, "you have denied the host (`portferry consent`)"),
            Denied::HostQuota(most) => write!(f, "the host has {most} mappings already"),
            Denied::TableFull(most) => write!(f, "there are {most} mappings already"),
            Denied::TooOften => write!(f, "it asks too often"),
        }
    }
}

/// What of a mapping or a pinhole rules are about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ports {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The internal client.
    pub host: IpAddr,
    /// Its port.
    pub internal: u16,
    /// The external port; `None`: which one is not known yet.
    pub external: Option<u16>,
}

impl Ports {
    /// Those of a mapping that is wanted.
    pub fn of(wanted: &MappingRequest) -> Self {
        let MappingRequest { protocol, internal, external_port: external, .. } = *wanted;
        Self { protocol, host: IpAddr::V4(*internal.ip()), internal: internal.port(), external }
    }

    /// Those of a pinhole: nothing is translated, so that both ports are one.
    pub fn of_pinhole(to: Endpoint) -> Self {
        let Endpoint { addr, protocol, port } = to;
        Self { protocol, host: IpAddr::V6(addr), internal: port, external: Some(port) }
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
    /// What the owner has said about the host.
    pub consent: Consent,
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
    /// What the owner has said about the host.
    pub consent: Consent,
}

impl Policy {
    /// What rules, ports and the owner say; quotas and addresses are looked at apart, and no rule lifts those. Where the external port
    /// is not known yet: whether there is any that would do. Of the host that address alone is known.
    pub fn judge(&self, ports: &Ports, consent: Consent) -> Result<(), Denied> {
        self.judge_host(ports, &[], consent)
    }

    /// The same of what `who` asks for: a host is one by all of its addresses, so that what is denied to one of them is denied.
    pub fn judge_of(&self, who: &Requester, ports: &Ports, consent: Consent) -> Result<(), Denied> {
        self.judge_host(ports, &who.all_addresses(), consent)
    }

    fn judge_host(&self, ports: &Ports, also: &[IpAddr], consent: Consent) -> Result<(), Denied> {
        let of_host = |rule: &Rule| {
            rule.is_about(ports.host, ports.internal, ports.protocol)
                || also.iter().any(|&addr| rule.denies_host(addr, ports))
        };
        let rules: Vec<(usize, &Rule)> = (1..).zip(&self.rules).filter(|(_, rule)| of_host(rule)).collect();
        let judge = |external: u16| {
            if let Some((number, rule)) = rules.iter().find(|(_, rule)| rule.external.contains(external)) {
                return if rule.allows { Ok(()) } else { Err(Denied::Rule(*number)) };
            }
            self.judge_unruled(ports.internal, external, consent)
        };
        if let Some(external) = ports.external {
            return judge(external);
        }
        // Between these nothing changes.
        let edges = rules.iter().map(|(_, rule)| rule.external).chain(self.never.iter().copied());
        let mut edges = edges.flat_map(|range| [Some(range.first()), range.beyond()]).flatten();
        let by_own = judge(ports.internal);
        if by_own.is_ok() || judge(self.lowest_port).is_ok() || edges.any(|port| judge(port.max(1)).is_ok()) {
            return Ok(());
        }
        by_own
    }

    /// What no rule is about.
    fn judge_unruled(&self, internal: u16, external: u16, consent: Consent) -> Result<(), Denied> {
        if self.default == ByDefault::Deny {
            return Err(Denied::Default);
        }
        if internal.min(external) < self.lowest_port {
            return Err(Denied::LowPort(self.lowest_port));
        }
        let is_never = |port: &u16| self.never.iter().any(|range| range.contains(*port));
        if let Some(port) = [external, internal].into_iter().find(is_never) {
            return Err(Denied::NeverPort(port));
        }
        match consent {
            _ if self.default != ByDefault::Ask => Ok(()),
            Consent::Given => Ok(()),
            Consent::Refused => Err(Denied::NoConsent),
            Consent::Unknown => Err(Denied::AwaitsConsent),
        }
    }

    /// May this host have this pinhole? One that is there counts in `facts` as not yet held.
    pub fn check_pinhole(
        &self,
        who: &Requester,
        to: Endpoint,
        facts: PinholeFacts<'_>,
    ) -> Result<(), Denied> {
        self.check_address(to.addr, facts)?;
        if !who.has(IpAddr::V6(to.addr)) {
            return Err(Denied::OtherHost);
        }
        self.judge_of(who, &Ports::of_pinhole(to), facts.consent)?;
        self.check_share(facts.held_by_host, facts.held)
    }

    /// One's share of all there are.
    fn check_share(&self, held_by_host: usize, held: usize) -> Result<(), Denied> {
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
        self.check_host(host, facts)?;
        if !who.is(host) {
            return Err(Denied::OtherHost);
        }
        self.judge_of(who, &Ports::of(wanted), facts.consent)?;
        self.check_share(facts.held_by_host, facts.held)
    }

    /// Whether mappings may lead to this address at all.
    pub fn check_host(&self, host: Ipv4Addr, facts: Facts<'_>) -> Result<(), Denied> {
        if self.is_never_mapped(host, facts) {
            return Err(Denied::NeverMapped);
        }
        if !facts.lan.iter().any(|link| link.contains(IpAddr::V4(host))) {
            return Err(Denied::OffLan);
        }
        Ok(())
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

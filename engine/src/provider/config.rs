//! What a provider sets up.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use wire::pcp::{Prefix64, Protocol};

use super::interface::Inside;
pub use crate::limits::Rate;
use crate::prefix::{Prefix, ThirdParty};
use crate::time::Duration;

/// What a [`Server`](super::Server) is to do, and for whom. [`ServerConfig::new`] has what a careful provider would begin
/// with; whatever else is put into it, nothing panics.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerConfig {
    /// The external IPv4 addresses. All mappings of one subscriber have the same one (RFC 4787 calls that paired). While
    /// there is none, requests for one are answered NETWORK_FAILURE.
    pub pool: Vec<Ipv4Addr>,
    /// The addresses of this machine itself, which are nobody's host inside: neither a client nor THIRD_PARTY gets a mapping to
    /// them.
    pub own: BTreeSet<IpAddr>,
    /// The external ports of each of them that are given out. UDP 5350 and 5351 never are, nor as pinholes (RFC 6887
    /// §11.3).
    pub ports: RangeInclusive<u16>,
    /// What can be mapped.
    pub protocols: BTreeSet<Protocol>,
    /// Whether one mapping may be for all ports of a protocol (internal port 0). All ports of UDP are PCP's own among them,
    /// 5350 and 5351, which RFC 6887 §11.3 allows nobody outside: but it also wants all ports or none, so whoever switches
    /// this on has a data plane that keeps these two to itself, or no harm from them.
    pub all_ports: bool,
    /// Whether one mapping may be for everything (protocol 0); of UDP 5350 and 5351 the same is true.
    pub all_protocols: bool,
    /// Whether IPv6 hosts get pinholes: the same address and port outside as inside.
    pub firewall: bool,
    /// Whether IPv6 hosts get IPv4 addresses and ports from the pool. Beside `firewall`, an IPv6 host that suggests
    /// an IPv4 address (`::ffff:0.0.0.0` will do) means this.
    pub nat64: bool,
    /// What PREFIX64 tells of that NAT64 (RFC 7225). Empty: nothing.
    pub prefix64: Vec<Prefix64>,
    /// The shortest lifetime that is granted, in seconds (RFC 6887 §15: 120). NAT-PMP's are not made longer (N-7).
    pub shortest: u32,
    /// The longest lifetime that is granted, in seconds. `shortest`, if that is longer.
    pub longest: u32,
    /// How long a freed external port goes to nobody but its last owner (RFC 6887 §15, D-15).
    pub hold: Duration,
    /// Who may use THIRD_PARTY, and for whom. Empty: nobody (RFC 6887 §13.1).
    pub third_party: Vec<ThirdParty>,
    /// DS-Lite in plain mode: a B4 of these IPv6 addresses names its IPv4 hosts by THIRD_PARTY, whatever they are.
    pub b4: Vec<Prefix>,
    /// How many bits of an IPv6 source tell one subscriber from another; a B4 is one by all 128.
    pub subscriber_bits: u8,
    /// External ports of one subscriber, those among them that are [held](Self::hold) for it; a mapping without a port of its
    /// own counts as one.
    pub quota: u32,
    /// Mappings of all subscribers together.
    pub capacity: usize,
    /// Who may have which external ports: the first rule that fits. What fits none is allowed.
    pub acl: Vec<AclRule>,
    /// How much one subscriber may ask; what is above it is met with silence. `None`: as much as it likes.
    pub rate: Option<Rate>,
    /// Mappings that somebody else has set up; the NAT is not told of them.
    pub statics: Vec<StaticMapping>,
    /// Remote peers of one mapping, at most [`MAX_FILTERS`], at least one (RFC 6887 §13.3).
    pub filters: usize,
    /// Ports of one PORT_SET at most (RFC 7753), [`MAX_PORT_SET`] whatever it says; below 2 the option is ignored.
    pub port_set: u16,
    /// Whether there is PEER; UNSUPP_OPCODE if not.
    pub peer: bool,
    /// Whether there is NAT-PMP beside PCP (RFC 6886); UNSUPP_VERSION if not.
    pub natpmp: bool,
    /// How often a new epoch or external address is announced, at most 10 times; at least once.
    pub announcements: u32,
    /// Whether clients are told when their mapping had to move (RFC 6887 §14.2).
    pub updates: bool,
    /// Whether a subscriber may list its mappings with GET ([`wire::pcp::query`]); UNSUPP_OPCODE if not.
    pub query: bool,
    /// What is made of PREFER_FAILURE.
    pub prefer_failure: PreferFailure,
    /// What is made of DESCRIPTION.
    pub description: Description,
    /// How long a CANNOT_PROVIDE_EXTERNAL is said to last, in seconds. `None`: as long as the mapping in the way has left,
    /// or 30 where there is none.
    pub conflict_lifetime: Option<u32>,
}

/// Remote peers that one mapping can have at most, however it is set up: so many can be listed by one GET.
pub const MAX_FILTERS: usize = 32;

/// What one mapping may cost the data plane, a port and each of its FILTERs counting as one: half of what the kernel's table
/// surely takes at once, for a change of it has the old and the new.
pub(super) const MAX_ELEMENTS: usize = 384;

/// Ports that one PORT_SET can have at most, however it is set up.
pub const MAX_PORT_SET: u16 = 256;

/// Octets of a text that are kept (RFC 7220: at least 128).
pub(super) const MAX_DESCRIPTION: usize = 128;

impl ServerConfig {
    /// What a careful provider would have, with these external addresses.
    pub fn new(pool: Vec<Ipv4Addr>) -> Self {
        Self {
            pool,
            own: BTreeSet::new(),
            ports: 1024..=65535,
            protocols: BTreeSet::from([Protocol::TCP, Protocol::UDP]),
            all_ports: false,
            all_protocols: false,
            firewall: false,
            nat64: false,
            prefix64: Vec::new(),
            shortest: 120,
            longest: 24 * 3600,
            hold: Duration::from_secs(120),
            third_party: Vec::new(),
            b4: Vec::new(),
            subscriber_bits: 64,
            quota: 1000,
            capacity: 1 << 20,
            acl: Vec::new(),
            rate: Some(Rate { per_second: 50, burst: 200 }),
            statics: Vec::new(),
            filters: MAX_FILTERS,
            port_set: 64,
            peer: true,
            natpmp: true,
            announcements: 10,
            updates: true,
            query: false,
            prefer_failure: PreferFailure::Honoured,
            description: Description::Stored,
            conflict_lifetime: None,
        }
    }

    /// Ports that one mapping has at most.
    pub(super) fn most_ports(&self) -> u16 {
        self.port_set.clamp(1, MAX_PORT_SET)
    }

    /// What is granted to who asks for `lifetime` seconds.
    pub(super) fn granted(&self, lifetime: u32) -> Duration {
        Duration::from_secs(lifetime.min(self.longest).max(self.shortest).into())
    }

    /// The external ports that `client` may have of `protocol`, from the lowest on.
    pub(super) fn allowed(&self, client: IpAddr, protocol: Protocol) -> super::runs::Runs {
        let mut allowed = super::runs::Runs::default();
        if !self.ports.is_empty() {
            allowed.add(*self.ports.start(), *self.ports.end());
        }
        self.restrict(&mut allowed, client, protocol);
        allowed
    }

    /// Whether the rules leave `client` all ports, also those that are given to nobody one by one.
    pub(super) fn allows_everything(&self, client: IpAddr, protocol: Protocol) -> bool {
        let mut all = super::runs::Runs::default();
        all.add(1, u16::MAX);
        self.restrict(&mut all, client, protocol);
        all.contains(1, u16::MAX)
    }

    /// Leaves of `ports` what the rules allow `client`.
    pub(super) fn restrict(&self, ports: &mut super::runs::Runs, client: IpAddr, protocol: Protocol) {
        // What no rule before has decided.
        let mut open = super::runs::Runs::default();
        open.add(0, u16::MAX);
        for rule in &self.acl {
            // Who has every protocol has the one that is denied, too.
            let concerns = |named| named == protocol || protocol == Protocol::ALL && !rule.allow;
            let fits = rule.client.contains(client) && rule.protocol.is_none_or(concerns);
            if !fits || rule.ports.is_empty() {
                continue;
            }
            let (first, last) = (*rule.ports.start(), *rule.ports.end());
            if !rule.allow {
                let denied: Vec<(u16, u16)> = open.within(first, last).collect();
                denied.into_iter().for_each(|(first, last)| ports.cut(first, last));
            }
            open.cut(first, last);
        }
    }
}

/// One rule about external ports.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AclRule {
    /// Allows, or denies.
    pub allow: bool,
    /// The packet's source; inside a softwire, the B4's IPv6 address.
    pub client: Prefix,
    /// External ports.
    pub ports: RangeInclusive<u16>,
    /// `None`: whatever it is.
    pub protocol: Option<Protocol>,
}

/// A mapping from outside of PCP: who asks for it is told where it is, nobody can change or delete it, and its external
/// port is not given out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StaticMapping {
    /// 0: all protocols, with internal port 0.
    pub protocol: Protocol,
    /// The host.
    pub inside: Inside,
    /// 0: all ports.
    pub internal_port: u16,
    /// Address and port outside.
    pub external: SocketAddr,
}

/// What a server makes of DESCRIPTION, which it may ignore (RFC 7220).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Description {
    /// It is not looked at, and not in the answer.
    Ignored,
    /// The first 128 octets are kept, cut between two characters, and are in the answer. A renewal may change them, and erases
    /// them with an empty text. What is not UTF-8 changes nothing and is not in the answer.
    Stored,
    /// Stored, but MALFORMED_OPTION when the length is no multiple of 4, as the most deployed server does
    /// (spec/clients.md, K-17).
    Malformed,
}

/// What a server makes of PREFER_FAILURE; all three are met in the field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PreferFailure {
    /// As RFC 6887 §13.2 has it.
    Honoured,
    /// SUCCESS with another port, as the most deployed server does (spec/clients.md, K-17).
    PassedOver,
    /// UNSUPP_OPTION.
    Unsupported,
}

//! The configuration file of `portferry pcp-server`: TOML, every key with a default but the interfaces. What does not fit
//! is refused with file, line, key and what was expected.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use engine::provider::{self, AclRule, Prefix, Rate, ServerConfig, StaticMapping};
use engine::time::Duration;
use serde::Deserialize;
use wire::pcp::{Prefix64, Protocol};

use crate::config::{self, ConfigError, Interfaces, Log, TableName, ThirdPartyText, checked};
use crate::nft::provider as nft;

/// Where the configuration is read from unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/portferry/pcp-server.toml";
/// Where the running server listens for `portferry pcp-server status`.
pub const DEFAULT_SOCKET: &str = "/run/portferry/pcp-server.sock";
/// Octets of the file; mappings that are always there may be many.
const MAX_LEN: usize = 16 * 1024 * 1024;

/// The whole file.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the subscribers are.
    pub inside: Inside,
    /// Where the Internet is.
    pub outside: Outside,
    /// What the server steers.
    #[serde(default)]
    pub nat: Nat,
    /// What can be mapped, and for how long.
    #[serde(default)]
    pub mappings: Mappings,
    /// Who may do what.
    #[serde(default)]
    pub access: Access,
    /// What is kept over restarts.
    #[serde(default)]
    pub state: State,
    /// The local control socket.
    #[serde(default)]
    pub control: Control,
    /// Logging.
    #[serde(default)]
    pub log: Log,
}

/// `[inside]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Inside {
    /// Interfaces on which subscribers are served; at least one.
    pub interfaces: Interfaces,
    /// Their addresses; what comes from others is not answered. Empty: whoever is behind those interfaces.
    #[serde(default)]
    pub prefixes: Vec<PrefixText>,
    /// Addresses to listen on beside those of the interfaces, such as PCP's anycast address (RFC 7723).
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// `[outside]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Outside {
    /// The interfaces towards the Internet; at least one.
    pub interfaces: Interfaces,
    /// The external addresses that are given out. Empty: the IPv4 addresses of those interfaces.
    #[serde(default)]
    pub addresses: Vec<Ipv4Addr>,
    /// What clients are told instead, one by one, where somebody in front of this machine translates. Empty: the same.
    #[serde(default)]
    pub public: Vec<Ipv4Addr>,
}

/// `[nat]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Nat {
    /// What carries the mappings out.
    pub plane: Plane,
    /// Name of the nftables table (family inet) that belongs to the server alone.
    pub table: TableName,
    /// Translate everything that subscribers send out, too.
    pub masquerade: bool,
    /// Drop IPv4 from outside that is neither mapped nor an answer.
    pub forward_filter: bool,
    /// Drop IPv6 from outside that is neither mapped nor an answer, and give pinholes by PCP.
    pub ipv6_firewall: bool,
}

impl Default for Nat {
    fn default() -> Self {
        Self {
            plane: Plane::default(),
            table: TableName("portferry-provider".into()),
            masquerade: true,
            forward_filter: false,
            ipv6_firewall: false,
        }
    }
}

/// `nat.plane`
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum Plane {
    /// The kernel, by nftables.
    #[default]
    Nftables,
    /// Sockets of the server itself; for trying out, needs no privilege.
    Memory,
}

/// `[mappings]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Mappings {
    /// The external ports that are given out.
    pub ports: Ports,
    /// The protocols.
    pub protocols: Vec<ProtocolText>,
    /// One mapping may be for all ports of a protocol.
    pub all_ports: bool,
    /// One mapping may be for everything that comes to an address.
    pub all_protocols: bool,
    /// The shortest lifetime, in seconds.
    pub min_lifetime: Lifetime,
    /// The longest lifetime, in seconds.
    pub max_lifetime: Lifetime,
    /// Seconds that a freed port goes to nobody but who had it.
    pub hold: Hold,
    /// External ports of one subscriber.
    pub per_subscriber: Number,
    /// Mappings of all of them.
    pub in_all: Number,
    /// Remote peers that one mapping may be restricted to.
    pub filters: Filters,
    /// Ports of one PORT_SET.
    pub port_set: PortSet,
    /// Keep what clients call their mappings.
    pub descriptions: bool,
    /// Serve PEER, too.
    pub peer: bool,
    /// Serve NAT-PMP, too.
    pub nat_pmp: bool,
    /// Tell a client which mappings it has (GET and NEXT).
    pub list: bool,
    /// Tell clients of this NAT64 (PREFIX64).
    pub prefix64: Vec<Prefix64Text>,
    /// Mappings that somebody else has set up.
    #[serde(rename = "static")]
    pub fixed: Vec<StaticText>,
}

impl Default for Mappings {
    fn default() -> Self {
        let usual = ServerConfig::new(Vec::new());
        let number = |n: u32| Number(n);
        Self {
            ports: Ports(usual.ports.clone()),
            protocols: usual.protocols.iter().copied().map(ProtocolText).collect(),
            all_ports: usual.all_ports,
            all_protocols: usual.all_protocols,
            min_lifetime: Lifetime(usual.shortest),
            max_lifetime: Lifetime(usual.longest),
            hold: Hold(u32::try_from(usual.hold.as_secs()).unwrap_or(u32::MAX)),
            per_subscriber: number(usual.quota),
            in_all: number(u32::try_from(usual.capacity).unwrap_or(u32::MAX)),
            filters: Filters(usual.filters),
            port_set: PortSet(usual.port_set),
            descriptions: true,
            peer: usual.peer,
            nat_pmp: usual.natpmp,
            list: usual.query,
            prefix64: Vec::new(),
            fixed: Vec::new(),
        }
    }
}

/// `[access]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Access {
    /// Who may have which external ports: the first rule that fits.
    pub rules: Vec<Rule>,
    /// Who may ask for mappings of other hosts (THIRD_PARTY).
    pub third_party: Vec<ThirdPartyText>,
    /// How many bits of an IPv6 address tell one subscriber from another.
    pub ipv6_subscriber_bits: Bits,
    /// What one subscriber may ask in a second, and at once.
    pub requests_per_second: Number,
    /// See there.
    pub burst: Number,
}

impl Default for Access {
    fn default() -> Self {
        let usual = ServerConfig::new(Vec::new());
        let rate = usual.rate.unwrap_or(Rate { per_second: 50, burst: 200 });
        Self {
            rules: Vec::new(),
            third_party: Vec::new(),
            ipv6_subscriber_bits: Bits(usual.subscriber_bits),
            requests_per_second: Number(rate.per_second),
            burst: Number(rate.burst),
        }
    }
}

/// `[state]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    /// Where mappings are kept.
    pub directory: PathBuf,
    /// A stop leaves the NAT as it is, so that a restart cuts nothing.
    pub keep_on_stop: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { directory: "/var/lib/portferry-pcp-server".into(), keep_on_stop: false }
    }
}

/// `[control]`
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// The socket that `portferry pcp-server status` and `mappings` ask.
    pub socket: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: DEFAULT_SOCKET.into() }
    }
}

/// Three hours, in seconds: of `mappings.hold`.
pub const LONGEST_HOLD: u32 = 10_800;

checked!(
    /// An address or a prefix.
    PrefixText(Prefix) from String, |text| {
        text.parse().map_err(|_| format!("expected an address or prefix such as \"10.8.0.0/24\", got {text:?}"))
    }
);

checked!(
    /// A range of ports, or one.
    Ports(RangeInclusive<u16>) from String, |text| ports(&text).ok_or_else(|| {
        format!("expected ports such as \"1024-65535\", got {text:?}")
    })
);

checked!(
    /// A protocol by its name.
    ProtocolText(Protocol) from String, |text| protocol(&text).ok_or_else(|| {
        format!("expected \"tcp\", \"udp\", \"dccp\", \"sctp\" or \"udplite\", got {text:?}")
    })
);

checked!(
    /// Seconds, from four to a week.
    Lifetime(u32) from i64, |n| match u32::try_from(n) {
        Ok(seconds @ 4..=604_800) => Ok(seconds),
        _ => Err(format!("expected seconds from 4 to 604800, got {n}")),
    }
);

checked!(
    /// Seconds, none to the longest.
    Hold(u32) from i64, |n| match u32::try_from(n) {
        Ok(seconds @ 0..=LONGEST_HOLD) => Ok(seconds),
        _ => Err(format!("expected seconds from 0 to {LONGEST_HOLD}, got {n}")),
    }
);

checked!(
    /// A number of things, at least one.
    Number(u32) from i64, |n| match u32::try_from(n) {
        Ok(number @ 1..=4_194_304) => Ok(number),
        _ => Err(format!("expected a number from 1 to 4194304, got {n}")),
    }
);

checked!(
    /// Remote peers of one mapping.
    Filters(usize) from i64, |n| match usize::try_from(n) {
        Ok(number @ 1..=provider::MAX_FILTERS) => Ok(number),
        _ => Err(format!("expected a number from 1 to {}, got {n}", provider::MAX_FILTERS)),
    }
);

checked!(
    /// Ports of one PORT_SET, 1 for none.
    PortSet(u16) from i64, |n| match u16::try_from(n) {
        Ok(number @ 1..=256) => Ok(number),
        _ => Err(format!("expected a number from 1 to 256, got {n}")),
    }
);

checked!(
    /// The prefix of a NAT64.
    Prefix64Text(Prefix64) from String, |text| prefix64(&text).ok_or_else(|| {
        format!("expected the prefix of a NAT64 such as \"64:ff9b::/96\", got {text:?}")
    })
);

checked!(
    /// `PROTOCOL INTERNAL EXTERNAL`
    StaticText(StaticMapping) from String, |text| fixed(&text).ok_or_else(|| {
        format!("expected a mapping such as \"tcp 10.8.0.2:80 198.51.100.7:8080\", got {text:?}")
    })
);

checked!(
    /// Bits of an IPv6 address.
    Bits(u8) from i64, |n| match u8::try_from(n) {
        Ok(bits @ 1..=128) => Ok(bits),
        _ => Err(format!("expected a number from 1 to 128, got {n}")),
    }
);

checked!(
    /// `allow|deny CLIENT PORTS [PROTOCOL]`
    Rule(AclRule) from String, |text| rule(&text).ok_or_else(|| {
        format!("expected a rule such as \"deny 10.8.0.0/24 1-1023 tcp\", got {text:?}")
    })
);

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.trim().parse::<u16>().ok()?..=last.trim().parse().ok()?;
    (*range.start() > 0 && !range.is_empty()).then_some(range)
}

fn protocol(text: &str) -> Option<Protocol> {
    Some(match text {
        "tcp" => Protocol::TCP,
        "udp" => Protocol::UDP,
        "dccp" => Protocol(33),
        "sctp" => Protocol(132),
        "udplite" => Protocol(136),
        _ => return None,
    })
}

fn prefix64(text: &str) -> Option<Prefix64> {
    let prefix: Prefix = text.parse().ok()?;
    let IpAddr::V6(first) = prefix.first() else { return None };
    let len = match prefix.bits() {
        bits @ (32 | 40 | 48 | 56 | 64 | 96) => usize::from(bits / 8),
        _ => return None,
    };
    let octets = first.octets();
    let (prefix, suffix) = (octets[..len].to_vec(), octets[len..12].to_vec());
    Some(Prefix64 { prefix, suffix, ipv4_prefixes: Vec::new() })
}

fn fixed(text: &str) -> Option<StaticMapping> {
    let [named, internal, external] = text.split_whitespace().collect::<Vec<_>>()[..] else { return None };
    let internal: SocketAddr = internal.parse().ok()?;
    let external: SocketAddr = external.parse().ok()?;
    let inside = provider::Inside { softwire: None, addr: internal.ip() };
    let ports = internal.port() != 0 && external.port() != 0;
    ports.then_some(StaticMapping {
        protocol: protocol(named)?,
        inside,
        internal_port: internal.port(),
        external,
    })
}

fn rule(text: &str) -> Option<AclRule> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (verdict, client, range, named) = match words[..] {
        [verdict, client, range] => (verdict, client, range, None),
        [verdict, client, range, named] => (verdict, client, range, Some(protocol(named)?)),
        _ => return None,
    };
    let allow = match verdict {
        "allow" => true,
        "deny" => false,
        _ => return None,
    };
    Some(AclRule { allow, client: client.parse().ok()?, ports: ports(range)?, protocol: named })
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(path, &config::read(path, MAX_LEN)?)
    }

    /// Checks a file's content.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        config::parse(path, text, Self::contradiction)
    }

    /// What is good by itself and makes no sense together: the key, and what is wrong with it.
    fn contradiction(&self) -> Option<(&'static str, String)> {
        let inside = &self.inside.interfaces.0;
        if let Some(twice) = self.outside.interfaces.0.iter().find(|name| inside.contains(name)) {
            let message = format!("expected other interfaces than those of [inside], got {:?}", twice.0);
            return Some(("outside.interfaces", message));
        }
        let Outside { addresses, public, .. } = &self.outside;
        let nobodys = |addr: &&Ipv4Addr| {
            let loopback = addr.is_loopback() && self.nat.plane == Plane::Nftables;
            addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast() || loopback
        };
        for (key, list) in [("outside.addresses", addresses), ("outside.public", public)] {
            if let Some(addr) = list.iter().find(nobodys) {
                return Some((key, format!("expected addresses that can be reached, got {addr}")));
            }
        }
        // One alone may belong to whatever address there is; of several, the order says which is which.
        if public.len() != addresses.len()
            && (public.len() > 1 || !public.is_empty() && !addresses.is_empty())
        {
            let message = format!(
                "expected one for each of outside.addresses, {}, got {}",
                addresses.len(),
                public.len()
            );
            return Some(("outside.public", message));
        }
        if self.nat.plane == Plane::Memory && !public.is_empty() {
            let message = "expected none: nat.plane = \"memory\" listens at the address itself".to_owned();
            return Some(("outside.public", message));
        }
        if public.iter().collect::<BTreeSet<_>>().len() != public.len() {
            return Some(("outside.public", "expected different addresses".to_owned()));
        }
        if self.mappings.max_lifetime.0 < self.mappings.min_lifetime.0 {
            let message = format!(
                "expected at least mappings.min_lifetime, {}, got {}",
                self.mappings.min_lifetime.0, self.mappings.max_lifetime.0
            );
            return Some(("mappings.max_lifetime", message));
        }
        if self.nat.plane == Plane::Memory && (self.mappings.all_ports || self.mappings.all_protocols) {
            let message = "expected false: nat.plane = \"memory\" knows single ports only".to_owned();
            let key = if self.mappings.all_ports { "mappings.all_ports" } else { "mappings.all_protocols" };
            return Some((key, message));
        }
        if self.nat.plane == Plane::Memory && self.nat.ipv6_firewall {
            let message = "expected false: nat.plane = \"memory\" is no firewall".to_owned();
            return Some(("nat.ipv6_firewall", message));
        }
        let other =
            self.mappings.protocols.iter().find(|named| !matches!(named.0, Protocol::TCP | Protocol::UDP));
        if self.nat.plane == Plane::Memory && other.is_some() {
            let message = "expected \"tcp\" and \"udp\": nat.plane = \"memory\" knows no other".to_owned();
            return Some(("mappings.protocols", message));
        }
        None
    }

    /// How long a freed port goes to nobody but who had it.
    pub fn hold(&self) -> Duration {
        Duration::from_secs(self.mappings.hold.0.into())
    }

    /// What the engine needs of it, with these external addresses.
    pub fn engine(&self, pool: Vec<Ipv4Addr>) -> ServerConfig {
        let Mappings { ports, protocols, all_ports, all_protocols, .. } = &self.mappings;
        let count = |number: &Number| usize::try_from(number.0).unwrap_or(usize::MAX);
        ServerConfig {
            ports: ports.0.clone(),
            protocols: protocols.iter().map(|named| named.0).collect::<BTreeSet<Protocol>>(),
            all_ports: *all_ports,
            all_protocols: *all_protocols,
            firewall: self.nat.ipv6_firewall,
            shortest: self.mappings.min_lifetime.0,
            longest: self.mappings.max_lifetime.0,
            hold: self.hold(),
            third_party: self.access.third_party.iter().map(|allowed| allowed.0.clone()).collect(),
            subscriber_bits: self.access.ipv6_subscriber_bits.0,
            quota: self.mappings.per_subscriber.0,
            capacity: count(&self.mappings.in_all),
            acl: self.access.rules.iter().map(|rule| rule.0.clone()).collect(),
            rate: Some(Rate { per_second: self.access.requests_per_second.0, burst: self.access.burst.0 }),
            filters: self.mappings.filters.0,
            port_set: self.mappings.port_set.0,
            prefix64: self.mappings.prefix64.iter().map(|prefix| prefix.0.clone()).collect(),
            statics: self.mappings.fixed.iter().map(|fixed| fixed.0).collect(),
            peer: self.mappings.peer && self.nat.plane == Plane::Nftables,
            natpmp: self.mappings.nat_pmp,
            query: self.mappings.list,
            description: if self.mappings.descriptions {
                provider::Description::Stored
            } else {
                provider::Description::Ignored
            },
            ..ServerConfig::new(pool)
        }
    }

    /// What the kernel's table is to be like, with these external addresses.
    pub fn table(&self, pool: &[Ipv4Addr]) -> nft::ProviderConfig {
        let names = |interfaces: &Interfaces| interfaces.0.iter().map(|one| one.0.clone()).collect();
        let v4 = self.inside.prefixes.iter().filter_map(|prefix| match prefix.0.first() {
            IpAddr::V4(addr) => Some(nft::Prefix { addr, len: prefix.0.bits() }),
            IpAddr::V6(_) => None,
        });
        let mut subscribers: Vec<nft::Prefix> = v4.collect();
        if subscribers.is_empty() && !self.inside.prefixes.is_empty() {
            // None at all would mean everybody.
            subscribers.push(nft::Prefix { addr: Ipv4Addr::UNSPECIFIED, len: 32 });
        }
        nft::ProviderConfig {
            name: self.nat.table.0.clone(),
            outside_interfaces: names(&self.outside.interfaces),
            inside_interfaces: names(&self.inside.interfaces),
            subscribers,
            pool: pool.to_vec(),
            pairs: Vec::new(),
            default_external: pool.first().copied().filter(|_| self.nat.masquerade),
            dynamic_ports: 1024..=65535,
            ipv4_filter: self.nat.forward_filter,
            ipv6_firewall: self.nat.ipv6_firewall,
        }
    }

    /// The keys whose new values only count from the next start on.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        [
            ("inside.interfaces", self.inside.interfaces != new.inside.interfaces),
            ("nat.plane", self.nat.plane != new.nat.plane),
            // Its mappings would stand in a firewall that is none.
            ("nat.ipv6_firewall", self.nat.ipv6_firewall != new.nat.ipv6_firewall),
            ("state.directory", self.state.directory != new.state.directory),
            ("control.socket", self.control != new.control),
            ("log.level", self.log != new.log),
        ]
        .into_iter()
        .filter_map(|(key, changed)| changed.then_some(key))
        .collect()
    }

    /// The new configuration as far as it counts without a restart.
    ///
    /// # Errors
    /// It contradicts what stays as it is: the key, and what is wrong with it.
    pub fn taken_over(&self, new: Self) -> Result<Self, (&'static str, String)> {
        let taken = Self {
            inside: Inside { interfaces: self.inside.interfaces.clone(), ..new.inside },
            nat: Nat { plane: self.nat.plane, ipv6_firewall: self.nat.ipv6_firewall, ..new.nat },
            state: State { directory: self.state.directory.clone(), ..new.state },
            control: self.control.clone(),
            log: self.log.clone(),
            ..new
        };
        taken.contradiction().map_or(Ok(taken), Err)
    }
}

#[cfg(test)]
mod tests {
    use engine::provider::ThirdParty;

    use super::*;

    const GOOD: &str = "[inside]\ninterfaces = [\"tun0\"]\n[outside]\ninterfaces = [\"eth0\"]\n";

    fn refused(more: &str) -> String {
        let text = format!("{GOOD}{more}");
        Config::parse(Path::new("s.toml"), &text).expect_err("it should be refused").to_string()
    }

    #[test]
    fn errors_name_the_key_and_what_was_expected() {
        for (more, wanted) in [
            (
                "[mappings]\nports = \"0-9\"\n",
                "s.toml, line 6, mappings.ports: expected ports such as \"1024-65535\", got \"0-9\"",
            ),
            (
                "[mappings]\nport_set = 300\n",
                "s.toml, line 6, mappings.port_set: expected a number from 1 to 256, got 300",
            ),
            (
                "[mappings]\nprefix64 = [\"64:ff9b::/95\"]\n",
                "s.toml, line 6, mappings.prefix64: expected the prefix of a NAT64 such as \"64:ff9b::/96\", got \"64:ff9b::/95\"",
            ),
            (
                "[mappings]\nstatic = [\"tcp 10.8.0.2 80\"]\n",
                "s.toml, line 6, mappings.static: expected a mapping such as \"tcp 10.8.0.2:80 198.51.100.7:8080\", got \"tcp 10.8.0.2 80\"",
            ),
            (
                "[mappings]\nports = \"9-3\"\n",
                "s.toml, line 6, mappings.ports: expected ports such as \"1024-65535\", got \"9-3\"",
            ),
            (
                "[access]\nrules = [\"deny 10.8.0.0/24\"]\n",
                "s.toml, line 6, access.rules: expected a rule such as \"deny 10.8.0.0/24 1-1023 tcp\", got \"deny 10.8.0.0/24\"",
            ),
            (
                "[access]\nthird_party = [\"10.8.0.2\"]\n",
                "s.toml, line 6, access.third_party: expected who for whom such as \"10.8.0.2 for 192.168.1.0/24\", got \"10.8.0.2\"",
            ),
            (
                "[mappings]\nmin_lifetime = 600\nmax_lifetime = 300\n",
                "s.toml, line 7, mappings.max_lifetime: expected at least mappings.min_lifetime, 600, got 300",
            ),
            (
                "[nat]\nplane = \"memory\"\n[mappings]\nall_ports = true\n",
                "s.toml, line 8, mappings.all_ports: expected false: nat.plane = \"memory\" knows single ports only",
            ),
            (
                "[mappings]\nprotocols = [\"icmp\"]\n",
                "s.toml, line 6, mappings.protocols: expected \"tcp\", \"udp\", \"dccp\", \"sctp\" or \"udplite\", got \"icmp\"",
            ),
        ] {
            assert_eq!(refused(more), wanted);
        }
        let outside = |more: &str| {
            Config::parse(Path::new("s.toml"), &format!("{GOOD}{more}")).unwrap_err().to_string()
        };
        assert_eq!(
            outside("addresses = [\"10.0.0.5\", \"10.0.0.6\"]\npublic = [\"203.0.113.1\"]\n"),
            "s.toml, line 6, outside.public: expected one for each of outside.addresses, 2, got 1"
        );
        assert_eq!(
            outside("public = [\"203.0.113.1\", \"203.0.113.2\"]\n"),
            "s.toml, line 5, outside.public: expected one for each of outside.addresses, 0, got 2"
        );
        assert_eq!(
            outside(
                "addresses = [\"10.0.0.5\", \"10.0.0.6\"]\npublic = [\"203.0.113.1\", \"203.0.113.1\"]\n"
            ),
            "s.toml, line 6, outside.public: expected different addresses"
        );
        assert_eq!(
            outside("public = [\"203.0.113.1\"]\n[nat]\nplane = \"memory\"\n"),
            "s.toml, line 5, outside.public: expected none: nat.plane = \"memory\" listens at the address itself"
        );
        let same = GOOD.replace("eth0", "tun0");
        assert_eq!(
            Config::parse(Path::new("s.toml"), &same).unwrap_err().to_string(),
            "s.toml, line 4, outside.interfaces: expected other interfaces than those of [inside], got \"tun0\""
        );
    }

    #[test]
    fn what_is_refused_beside_what_stays() {
        let parse = |text: &str| Config::parse(Path::new("s.toml"), text).unwrap();
        let running = parse(&format!("{GOOD}[nat]\nplane = \"memory\"\n"));
        let new = parse(&format!("{GOOD}[mappings]\nall_ports = true\n"));
        assert_eq!(running.needs_restart(&new), ["nat.plane"]);
        assert_eq!(running.taken_over(new).unwrap_err().0, "mappings.all_ports");
        let swapped = parse("[inside]\ninterfaces = [\"eth0\"]\n[outside]\ninterfaces = [\"tun0\"]\n");
        assert_eq!(parse(GOOD).taken_over(swapped).unwrap_err().0, "outside.interfaces");
    }

    /// Who names IPv6 subscribers only has no IPv4 translated.
    #[test]
    fn subscribers_of_the_table() {
        let table = |prefixes: &str| {
            let text = GOOD.replacen('\n', &format!("\nprefixes = [{prefixes}]\n"), 1);
            Config::parse(Path::new("s.toml"), &text).unwrap().table(&[]).subscribers
        };
        let prefix = |addr: [u8; 4], len| nft::Prefix { addr: addr.into(), len };
        assert_eq!(table(""), []);
        assert_eq!(table("\"10.8.0.0/24\", \"2001:db8::/32\""), [prefix([10, 8, 0, 0], 24)]);
        assert_eq!(table("\"2001:db8::/32\""), [prefix([0; 4], 32)]);
    }

    #[test]
    fn rules_and_third_parties() {
        let text = format!(
            "{GOOD}[access]\nrules = [\"allow 10.8.0.7 80 tcp\", \"deny 0.0.0.0/0 1-1023\"]\n\
             third_party = [\"10.8.0.2 for 192.168.1.0/24 192.168.2.0/24\"]\n"
        );
        let engine = Config::parse(Path::new("s.toml"), &text).unwrap().engine(Vec::new());
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        assert_eq!(
            engine.acl,
            [
                AclRule {
                    allow: true,
                    client: prefix("10.8.0.7"),
                    ports: 80..=80,
                    protocol: Some(Protocol::TCP)
                },
                AclRule { allow: false, client: prefix("0.0.0.0/0"), ports: 1..=1023, protocol: None },
            ]
        );
        let internal = vec![prefix("192.168.1.0/24"), prefix("192.168.2.0/24")];
        assert_eq!(engine.third_party, [ThirdParty { client: prefix("10.8.0.2"), internal }]);
    }

    /// The example file names every key there is, with its default.
    #[test]
    fn the_example_file_is_complete_and_holds_the_defaults() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/pcp-server.example.toml"));
        let text = std::fs::read_to_string(path).unwrap();
        let minimal = Config::parse(Path::new("s.toml"), GOOD).unwrap();
        assert_eq!(Config::parse(path, &text).unwrap(), minimal);
        let all: String = text
            .lines()
            .map(|line| line.strip_prefix("#= ").unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        assert_eq!(Config::parse(path, &all).unwrap(), minimal);
        // What the decoder takes, it names when it meets something else.
        for section in ["inside", "outside", "nat", "mappings", "access", "state", "control", "log"] {
            let wrong =
                all.replacen(&format!("[{section}]\n"), &format!("[{section}]\nno_such_key = 1\n"), 1);
            let refused = Config::parse(path, &wrong).unwrap_err().to_string();
            let known = refused.split("expected").nth(1).expect("serde lists them");
            let keys: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
            assert!(!keys.is_empty(), "{refused}");
            for key in keys {
                let line = format!("{key} = ");
                assert!(all.lines().any(|text| text.starts_with(&line)), "{section}.{key}");
            }
        }
    }
}

//! What the network process may ask for. It is where hostile octets are read, so nothing that it says is believed: each message is held
//! against the configuration and against what the kernel itself says of interfaces, addresses and routes.
//!
//! What cannot be known here is who has asked for a mapping, whether the provider has granted it, and what its outermost address
//! really is. So a hostile network process can map any LAN host's allowed ports, take mappings away, and lead LAN hosts that call
//! an allowed port of some outside address to another LAN host; it can do none of that for ports that policy closes. It can call LAN
//! hosts as subscribers, and send datagrams by the sockets that it has.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use engine::claims::Asker;
use engine::pinholes::{Endpoint, is_of_the_internet};
use engine::policy::{Consent, Facts, InterfaceAddress, PinholeFacts, Policy, Requester};
use engine::prefix::Prefix;
use engine::request::MappingRequest;
use wire::pcp::{CLIENT_PORT, Protocol, SERVER_PORT};

use crate::config::{Config, DhcpMode};
use crate::netlink::{Interface, Snapshot};
use crate::nft::Nat1Rule;
use crate::nft::pinholes::PinholeRule;
use crate::sockets::Spec;

/// Links of the LAN that are remembered after they are gone.
const MOST_LINKS: usize = 256;
/// Ports below are programs' of the router itself, whatever policy allows hosts.
const FIRST_FREE_PORT: u16 = 1024;
/// The quotas are the network process's to keep, for it alone knows which rules are mappings and which hold a flow's port (PEER). So
/// many times as much is what a hostile one can have.
const SLACK: usize = 2;

/// Why not, in words.
pub(super) type Refused = String;

/// What messages are held against.
pub(super) struct Known {
    policy: Policy,
    lan_interfaces: Vec<String>,
    wan_interfaces: Vec<String>,
    servers: BTreeSet<SocketAddr>,
    /// Whose each uplink is.
    hosts: Vec<Vec<Prefix>>,
    pinholes: bool,
    serves_pcp: bool,
    asks_dhcp: bool,
    snapshot: Snapshot,
    /// Every link that the LAN's interfaces have had: a mapping stands while its interface is down.
    lan: BTreeSet<(String, InterfaceAddress)>,
}

/// What is in the kernel already where a mapping is to go.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// Mappings of the uplink's NAT.
    pub(super) all: usize,
    /// Those of the host.
    pub(super) of_host: usize,
}

impl Known {
    /// Nothing is known of interfaces yet.
    pub(super) fn new(config: &Config) -> Self {
        let mut new = Self {
            policy: Policy::default(),
            lan_interfaces: Vec::new(),
            wan_interfaces: Vec::new(),
            servers: BTreeSet::new(),
            hosts: Vec::new(),
            pinholes: false,
            serves_pcp: false,
            asks_dhcp: false,
            snapshot: Snapshot::default(),
            lan: BTreeSet::new(),
        };
        new.configure(config);
        new
    }

    /// The configuration is this now.
    pub(super) fn configure(&mut self, config: &Config) {
        self.policy = config.policy.engine();
        self.lan_interfaces = config.lan.interfaces.0.iter().map(|name| name.0.clone()).collect();
        let lines = config.lines();
        let ways = || lines.iter().flat_map(|line| &line.ways);
        self.wan_interfaces = ways().map(|way| way.interface.clone()).collect();
        let firewalls = config.uplink.firewall_servers.iter().map(|server| server.0);
        self.servers = ways().flat_map(|way| way.servers.iter().copied()).chain(firewalls).collect();
        self.hosts = lines.iter().map(|line| line.hosts.clone()).collect();
        self.pinholes = config.lan.ipv6_pinholes;
        self.serves_pcp = config.lan.pcp || config.lan.nat_pmp;
        self.asks_dhcp = matches!(config.uplink.dhcp, DhcpMode::Auto | DhcpMode::Inform);
        self.lan.retain(|(name, _)| self.lan_interfaces.contains(name));
    }

    /// The kernel's interfaces, addresses and routes are these now.
    pub(super) fn look(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot;
        let all = self.snapshot.interfaces.iter();
        let of_lan = all.filter(|interface| self.lan_interfaces.contains(&interface.name));
        let now: Vec<(String, InterfaceAddress)> =
            of_lan.flat_map(|found| links(found).map(|link| (found.name.clone(), link))).collect();
        if self.lan.len() + now.len() > MOST_LINKS {
            self.lan.clear();
        }
        self.lan.extend(now.iter().cloned());
        // Hosts of a link that the LAN had once are not the LAN's when another interface has it.
        let others = self.snapshot.interfaces.iter().filter(|one| !self.lan_interfaces.contains(&one.name));
        let others: Vec<InterfaceAddress> =
            others.flat_map(links).filter(|link| link.prefix_len > 0).collect();
        self.lan
            .retain(|known| now.contains(known) || !others.iter().any(|other| other.contains(known.1.addr)));
    }

    /// Whether a LAN interface that is configured has had no address of this kind yet, as after a start: what was stored of its hosts
    /// comes back before it. Then hosts that are on no other interface's link pass for its own.
    fn is_early(&self, host: IpAddr, is_such: impl Fn(&IpAddr) -> bool) -> bool {
        let early = |name: &String| !self.lan.iter().any(|(of, link)| of == name && is_such(&link.addr));
        let elsewhere =
            self.snapshot.interfaces.iter().filter(|found| !self.lan_interfaces.contains(&found.name));
        self.lan_interfaces.iter().any(early)
            && !elsewhere.flat_map(links).any(|link| link.prefix_len > 0 && link.contains(host))
    }

    fn named(&self, name: &str) -> Option<&Interface> {
        self.snapshot.interfaces.iter().find(|interface| interface.name == name)
    }

    /// The interface's IPv4 addresses, while it is up.
    pub(super) fn addresses(&self, name: &str) -> Vec<Ipv4Addr> {
        let found = self.named(name).filter(|found| found.up);
        let v4 = |addr: &IpAddr| match addr {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        };
        found.into_iter().flat_map(|found| &found.addresses).filter_map(|(addr, _)| v4(addr)).collect()
    }

    fn own_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.snapshot.interfaces.iter().flat_map(|interface| &interface.addresses).map(|(addr, _)| *addr)
    }

    /// On whichever interface: one that floats between two routers (VRRP) may be on one of its own.
    fn is_own(&self, host: IpAddr) -> bool {
        self.own_addresses().any(|own| own == host)
    }

    /// A new mapping of the NAT of the uplink at `place`, or one that has another outermost address.
    pub(super) fn rule(&self, place: usize, rule: &Nat1Rule, held: Held) -> Result<(), Refused> {
        transport(rule.protocol)?;
        if let Some(outermost) = rule.outermost {
            self.outermost(outermost)?;
        }
        let host = *rule.internal.ip();
        if self.is_own(host.into()) {
            return Err(format!("{host} is this router's own"));
        }
        let is_of = |place: usize| {
            self.hosts.get(place).is_some_and(|hosts| hosts.iter().any(|of| of.contains(host.into())))
        };
        let is_elsewhere = (1..self.hosts.len()).any(|other| other != place && is_of(other));
        if is_elsewhere || place > 0 && !is_of(place) {
            return Err(format!("{host} is another uplink's"));
        }
        if rule.protocol == Protocol::UDP.0 && matches!(rule.external_port, CLIENT_PORT | SERVER_PORT) {
            return Err(format!("UDP port {} is PCP's own", rule.external_port));
        }
        if held.of_host >= self.policy.mappings_per_host.saturating_mul(SLACK) {
            return Err(format!("{host} has {} mappings already", held.of_host));
        }
        let mut lan: Vec<InterfaceAddress> = self.lan.iter().map(|(_, link)| *link).collect();
        if host.is_private() && self.is_early(host.into(), IpAddr::is_ipv4) {
            lan.push(InterfaceAddress { addr: Ipv4Addr::UNSPECIFIED.into(), prefix_len: 0 });
        }
        let wan: Vec<Ipv4Addr> = self.wan_interfaces.iter().flat_map(|name| self.addresses(name)).collect();
        // Whom the owner lets in, the network process knows.
        let consent = Consent::Given;
        let facts = Facts { lan: &lan, wan: &wan, held_by_host: 0, held: held.all / SLACK, consent };
        let who = Requester::new(host.into(), &[]);
        // The port on the WAN address is ours to choose, but for those of the router's own programs.
        let own = Some(rule.external_port).filter(|port| *port < FIRST_FREE_PORT);
        for external_port in [rule.outermost.map(|outermost| outermost.port()), own] {
            let request = MappingRequest {
                protocol: Protocol(rule.protocol),
                internal: rule.internal,
                external_port,
                strict: true,
                external_addr: None,
                lease: None,
                remote_peer: rule.remote_peer,
                remote_name: None,
                description: String::new(),
                by: Asker::Igd,
            };
            let checked = self.policy.check(&who, &request, facts);
            checked.map_err(|denied| format!("{}: {denied}", rule.internal))?;
        }
        Ok(())
    }

    /// Where LAN hosts are led to a mapping from: never an address of the LAN itself.
    fn outermost(&self, outermost: SocketAddrV4) -> Result<(), Refused> {
        let addr = IpAddr::V4(*outermost.ip());
        if self.lan.iter().any(|(_, link)| link.contains(addr)) {
            return Err(format!("{outermost} is an address of the LAN, not of the provider"));
        }
        Ok(())
    }

    /// A pinhole that is to be opened while there are `held`.
    pub(super) fn pinhole(&self, rule: &PinholeRule, held: usize) -> Result<(), Refused> {
        transport(rule.protocol)?;
        if !self.pinholes {
            return Err("[lan] ipv6_pinholes is off".to_owned());
        }
        if self.is_own(rule.internal.into()) {
            return Err(format!("{} is this router's own", rule.internal));
        }
        let mut lan: Vec<InterfaceAddress> = self.lan.iter().map(|(_, link)| *link).collect();
        let of_the_internet = |addr: &IpAddr| matches!(addr, IpAddr::V6(v6) if is_of_the_internet(*v6));
        if self.is_early(rule.internal.into(), of_the_internet) {
            lan.push(InterfaceAddress { addr: Ipv6Addr::UNSPECIFIED.into(), prefix_len: 0 });
        }
        let v6 = |name: &String| {
            let found = self.named(name).into_iter().flat_map(|found| &found.addresses);
            let v6 = found.filter_map(|(addr, _)| match addr {
                IpAddr::V6(v6) => Some(*v6),
                IpAddr::V4(_) => None,
            });
            v6.collect::<Vec<Ipv6Addr>>()
        };
        let wan: Vec<Ipv6Addr> = self.wan_interfaces.iter().flat_map(v6).collect();
        let consent = Consent::Given;
        let facts = PinholeFacts { lan: &lan, wan: &wan, held_by_host: 0, held: held / SLACK, consent };
        let who = Requester::new(rule.internal.into(), &[]);
        let to =
            Endpoint { addr: rule.internal, protocol: Protocol(rule.protocol), port: rule.internal_port };
        self.policy
            .check_pinhole(&who, to, facts)
            .map_err(|denied| format!("{} port {}: {denied}", rule.internal, rule.internal_port))
    }

    /// A flow that is looked for: of a LAN host.
    pub(super) fn flow(&self, internal: SocketAddrV4) -> Result<(), Refused> {
        let addr = IpAddr::V4(*internal.ip());
        match self.lan.iter().any(|(_, link)| link.contains(addr)) {
            true => Ok(()),
            false => Err(format!("{internal} is not on the LAN")),
        }
    }

    /// A socket; the kernel's number of its interface.
    pub(super) fn socket(&self, spec: &Spec) -> Result<u32, Refused> {
        let name = spec.interface();
        let (side, interfaces) = match spec {
            Spec::Ssdp { .. }
            | Spec::SsdpGroup { .. }
            | Spec::SsdpAt { .. }
            | Spec::Pcp { .. }
            | Spec::Http { .. }
            | Spec::Callback { .. } => ("the LAN", &self.lan_interfaces),
            Spec::Uplink { .. }
            | Spec::Scout { .. }
            | Spec::Announcements { .. }
            | Spec::Search { .. }
            | Spec::Router { .. }
            | Spec::Dhcp { .. } => ("the WAN", &self.wan_interfaces),
        };
        if !interfaces.iter().any(|interface| interface == name) {
            return Err(format!("{name:?} is no interface of {side}"));
        }
        let found = self.named(name).ok_or_else(|| format!("there is no interface {name:?}"))?;
        let has = |addr: IpAddr| match found.addresses.iter().any(|(own, _)| *own == addr) {
            true => Ok(()),
            false => Err(format!("{addr} is no address of {name}")),
        };
        match *spec {
            Spec::Ssdp { .. } | Spec::Scout { .. } | Spec::Announcements { .. } | Spec::Search { .. } => {}
            Spec::SsdpGroup { group, .. } => {
                if group != wire::ssdp::GROUP_V6_LINK && group != wire::ssdp::GROUP_V6_SITE {
                    return Err(format!("{group} is no group of SSDP"));
                }
            }
            Spec::SsdpAt { own, .. } => has(own.into())?,
            Spec::Pcp { .. } if !self.serves_pcp => return Err("[lan] pcp and nat_pmp are off".to_owned()),
            Spec::Pcp { addr, .. } | Spec::Http { addr, .. } => has(addr)?,
            Spec::Dhcp { .. } if !self.asks_dhcp => return Err("[uplink] dhcp has nobody asked".to_owned()),
            Spec::Dhcp { source, .. } => {
                if !matches!((source.is_ipv4(), source.port()), (true, 68) | (false, 546)) {
                    return Err(format!("{source} has no port of DHCP clients"));
                }
                if !source.ip().is_unspecified() {
                    has(source.ip())?;
                }
            }
            Spec::Uplink { server, .. } => {
                let usual = server.port() == wire::pcp::SERVER_PORT;
                if !usual && !self.servers.contains(&server) || server.ip().is_multicast() {
                    return Err(format!("{server} is no PCP server"));
                }
            }
            Spec::Callback { to, .. } => self.callback(found, to)?,
            Spec::Router { to, .. } => {
                let routes = self.snapshot.default_routes.iter().chain(&self.snapshot.other_default_routes);
                let mut own = routes.filter(|route| route.interface == found.index);
                if !own.any(|route| route.gateway == Some(IpAddr::V4(*to.ip()))) {
                    return Err(format!("{to} is not the default router of {name}"));
                }
            }
        }
        Ok(found.index)
    }

    /// A subscriber is a host on the link, and none of ours.
    fn callback(&self, interface: &Interface, to: SocketAddr) -> Result<(), Refused> {
        let refused = || Err(format!("{to} is no host on {}", interface.name));
        let addr = to.ip().to_canonical();
        let is_on_link = links(interface).any(|link| link.contains(addr));
        let is_edge = match addr {
            IpAddr::V4(v4) => links(interface).any(|link| link.is_edge(v4)),
            IpAddr::V6(_) => false,
        };
        let scoped = match to {
            SocketAddr::V6(v6) => v6.scope_id() == 0 || v6.scope_id() == interface.index,
            SocketAddr::V4(_) => true,
        };
        let own = self.is_own(addr) || addr.is_loopback() || addr.is_multicast();
        if !is_on_link || own || is_edge || !scoped || to.port() == 0 {
            return refused();
        }
        Ok(())
    }
}

fn links(interface: &Interface) -> impl Iterator<Item = InterfaceAddress> {
    interface.addresses.iter().map(|&(addr, prefix_len)| InterfaceAddress { addr, prefix_len })
}

/// TCP or UDP.
fn transport(protocol: u8) -> Result<(), Refused> {
    match Protocol(protocol) {
        Protocol::TCP | Protocol::UDP => Ok(()),
        other => Err(format!("protocol {} has no ports", other.0)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::netlink::DefaultRoute;

    fn known() -> Known {
        let text = "[lan]\ninterfaces = [\"lan0\"]\n[wan]\ninterface = \"wan0\"\n[uplink]\nservers = [\"203.0.113.5:9999\"]\n";
        let mut known = Known::new(&Config::parse(Path::new("test"), text).unwrap());
        let interface = |index, name: &str, addresses: &[(&str, u8)]| Interface {
            index,
            name: name.to_owned(),
            up: true,
            addresses: addresses.iter().map(|(addr, len)| (addr.parse().unwrap(), *len)).collect(),
            mac: None,
        };
        let route = |interface, gateway: &str| DefaultRoute {
            interface,
            gateway: Some(gateway.parse().unwrap()),
            metric: 0,
            is_ipv6: false,
            table: 254,
        };
        known.look(Snapshot {
            interfaces: vec![
                interface(1, "lo", &[("127.0.0.1", 8)]),
                interface(
                    2,
                    "lan0",
                    &[("192.168.1.1", 24), ("fe80::1", 64), ("2001:db8:1::1", 64), ("192.168.7.1", 24)],
                ),
                interface(3, "wan0", &[("100.64.0.2", 24), ("2001:db8::2", 64), ("fe80::2", 64)]),
                interface(4, "other", &[("10.0.0.1", 24)]),
                interface(5, "vrrp", &[("192.168.1.254", 32), ("2001:db8:1::fe", 128)]),
            ],
            default_routes: vec![route(3, "100.64.0.1")],
            other_default_routes: Vec::new(),
        });
        known
    }

    fn rule(internal: &str, port: u16, outermost: Option<&str>) -> Nat1Rule {
        Nat1Rule {
            protocol: 6,
            external_port: port,
            internal: internal.parse().unwrap(),
            remote_peer: None,
            outermost: outermost.map(|to| to.parse().unwrap()),
        }
    }

    /// A LAN that is renumbered keeps what leads to its former addresses, until they are another interface's.
    #[test]
    fn a_link_that_another_interface_has_is_not_the_lans() {
        let mut known = known();
        let mapping = rule("192.168.7.9:8080", 50000, None);
        let allowed = |known: &Known| known.rule(0, &mapping, Held::default()).is_ok();
        let mut snapshot = known.snapshot.clone();
        snapshot.interfaces[1].addresses.pop();
        known.look(snapshot.clone());
        assert!(allowed(&known), "it may come back");
        snapshot.interfaces[3].addresses = vec![("192.168.7.2".parse().unwrap(), 24)];
        known.look(snapshot.clone());
        assert!(!allowed(&known));
        // Two interfaces with the same link: it is the LAN's as well.
        snapshot.interfaces[1].addresses.push(("192.168.7.1".parse().unwrap(), 24));
        known.look(snapshot);
        assert!(allowed(&known));
    }

    /// Decisions 27 and 28, as far as they can be held against a process that lies about who asks.
    #[test]
    fn mappings_inside_policy() {
        let known = known();
        for (rule, good) in [
            (rule("192.168.1.10:8080", 8080, Some("198.51.100.7:8080")), true),
            (rule("192.168.1.10:8080", 8080, None), true),
            (rule("192.168.7.9:8080", 50000, None), true),
            (rule("192.168.1.10:80", 8080, None), false),
            (rule("192.168.1.10:8080", 22, None), false),
            (rule("192.168.1.10:8080", 22, Some("198.51.100.7:8080")), false),
            (rule("192.168.1.10:8080", 8080, Some("198.51.100.7:443")), false),
            (rule("192.168.1.10:8080", 8080, Some("192.168.1.20:8080")), false),
            (rule("192.168.1.1:8080", 8080, None), false),
            (rule("192.168.1.254:8080", 8080, None), false),
            (rule("192.168.1.255:8080", 8080, None), false),
            (rule("100.64.0.2:8080", 8080, None), false),
            (rule("10.0.0.9:8080", 8080, None), false),
            (rule("8.8.8.8:8080", 8080, None), false),
            (rule("127.0.0.1:8080", 8080, None), false),
            (Nat1Rule { protocol: 1, ..rule("192.168.1.10:8080", 8080, None) }, false),
        ] {
            assert_eq!(known.rule(0, &rule, Held::default()).is_ok(), good, "{rule:?}");
            let full = Held { all: 130_000, of_host: 0 };
            assert!(known.rule(0, &rule, full).is_err(), "full: {rule:?}");
            assert!(known.rule(0, &rule, Held { of_host: 200, ..full }).is_err());
            assert!(known.rule(1, &rule, Held::default()).is_err(), "no such uplink: {rule:?}");
        }
        for (protocol, port, good) in
            [(17, 5351, false), (17, 5350, false), (6, 5351, true), (17, 5352, true)]
        {
            let rule = Nat1Rule { protocol, ..rule("192.168.1.10:8080", port, None) };
            assert_eq!(known.rule(0, &rule, Held::default()).is_ok(), good, "{rule:?}");
        }
    }

    /// A host that is bound to one uplink has no mapping by another.
    #[test]
    fn mappings_by_ones_own_uplink() {
        let mut known = known();
        known.hosts = vec![Vec::new(), vec!["192.168.1.16/28".parse().unwrap()]];
        for (place, host, good) in [
            (0, "192.168.1.10", true),
            (0, "192.168.1.17", false),
            (1, "192.168.1.17", true),
            (1, "192.168.1.10", false),
            (2, "192.168.1.10", false),
        ] {
            let rule = rule(&format!("{host}:8080"), 8080, None);
            assert_eq!(known.rule(place, &rule, Held::default()).is_ok(), good, "{place} {host}");
        }
    }

    #[test]
    fn pinholes_inside_policy() {
        let known = known();
        for (internal, port, good) in [
            ("2001:db8:1::10", 8080, true),
            ("2001:db8:1::10", 80, false),
            ("2001:db8:1::1", 8080, false),
            ("2001:db8:1::fe", 8080, false),
            ("2001:db8::2", 8080, false),
            ("2001:db8:2::10", 8080, false),
            ("fe80::10", 8080, false),
            ("::1", 8080, false),
        ] {
            let rule = PinholeRule {
                protocol: 17,
                internal: internal.parse().unwrap(),
                internal_port: port,
                remote: None,
                remote_port: None,
            };
            assert_eq!(known.pinhole(&rule, 0).is_ok(), good, "{internal} {port}");
            assert!(known.pinhole(&rule, 130_000).is_err());
        }
        let rule = PinholeRule {
            protocol: 6,
            internal: "2001:db8:1::10".parse().unwrap(),
            internal_port: 8080,
            remote: None,
            remote_port: None,
        };
        let mut known = known;
        known.pinholes = false;
        assert!(known.pinhole(&rule, 0).is_err(), "nobody is offered any");
    }

    /// A link that is gone is still the LAN's; one that never came is no reason to lose what was stored.
    #[test]
    fn mappings_while_the_lan_is_down() {
        let mut known = known();
        let whole = known.snapshot.clone();
        let good = |known: &Known, host: &str| {
            known.rule(0, &rule(&format!("{host}:8080"), 8080, None), Held::default()).is_ok()
        };
        let pinhole = |known: &Known, host: &str| {
            let internal = host.parse().unwrap();
            let rule =
                PinholeRule { protocol: 6, internal, internal_port: 8080, remote: None, remote_port: None };
            known.pinhole(&rule, 0).is_ok()
        };
        known.look(Snapshot::default());
        assert!(good(&known, "192.168.1.10") && !good(&known, "192.168.9.10"));
        assert!(pinhole(&known, "2001:db8:1::10") && !pinhole(&known, "2001:db8:9::10"));
        // After a start, with the other interfaces there and this one not yet.
        known.lan.clear();
        let mut others = whole;
        others.interfaces.retain(|interface| interface.name != "lan0");
        known.look(others);
        assert!(good(&known, "192.168.9.10") && pinhole(&known, "2001:db8:9::10"));
        for elsewhere in ["10.0.0.9", "100.64.0.9", "8.8.8.8"] {
            assert!(!good(&known, elsewhere), "{elsewhere}");
        }
        assert!(!pinhole(&known, "2001:db8::9") && !pinhole(&known, "fd00::9"));
        // What a reload has taken out of the LAN is forgotten.
        known.look(self::known().snapshot);
        assert!(!known.lan.is_empty());
        let text = "[lan]\ninterfaces = [\"other\"]\n[wan]\ninterface = \"wan0\"\n";
        known.configure(&Config::parse(Path::new("test"), text).unwrap());
        assert!(known.lan.is_empty());
    }

    #[test]
    fn sockets_where_the_configuration_has_them() {
        let known = known();
        let (lan, wan) = ("lan0".to_owned(), "wan0".to_owned());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let to = |text: &str| text.parse::<SocketAddr>().unwrap();
        let http = |interface: &str, addr| Spec::Http { interface: interface.to_owned(), addr: ip(addr) };
        let callback = |addr| Spec::Callback { interface: "lan0".to_owned(), to: to(addr) };
        let server = |addr| Spec::Uplink { interface: "wan0".to_owned(), server: to(addr), from: None };
        let dhcp = |source| Spec::Dhcp { interface: "wan0".to_owned(), source: to(source) };
        let router = |addr: &str| Spec::Router { interface: "wan0".to_owned(), to: addr.parse().unwrap() };
        let own = |addr: &str| Spec::SsdpAt { interface: "lan0".to_owned(), own: addr.parse().unwrap() };
        for (spec, index) in [
            (Spec::Ssdp { interface: lan.clone() }, Some(2)),
            (Spec::Ssdp { interface: wan.clone() }, None),
            (Spec::Ssdp { interface: "other".into() }, None),
            (Spec::SsdpGroup { interface: lan.clone(), group: "ff02::c".parse().unwrap() }, Some(2)),
            (Spec::SsdpGroup { interface: lan.clone(), group: "ff02::1".parse().unwrap() }, None),
            (own("fe80::1"), Some(2)),
            (own("::"), None),
            (http("lan0", "192.168.1.1"), Some(2)),
            (http("lan0", "0.0.0.0"), None),
            (http("lan0", "100.64.0.2"), None),
            (http("wan0", "100.64.0.2"), None),
            (Spec::Pcp { interface: lan.clone(), addr: ip("2001:db8:1::1") }, Some(2)),
            (Spec::Pcp { interface: lan.clone(), addr: ip("::") }, None),
            (callback("192.168.1.10:5000"), Some(2)),
            (callback("[fe80::10%2]:5000"), Some(2)),
            (callback("[fe80::10%3]:5000"), None),
            (callback("192.168.1.10:0"), None),
            (callback("192.168.1.1:80"), None),
            (callback("192.168.1.255:80"), None),
            (callback("127.0.0.1:80"), None),
            (callback("100.64.0.1:80"), None),
            (callback("8.8.8.8:80"), None),
            (callback("224.0.0.1:80"), None),
            (server("100.64.0.1:5351"), Some(3)),
            (server("[2001:db8::1]:5351"), Some(3)),
            (server("203.0.113.5:9999"), Some(3)),
            (server("8.8.8.8:53"), None),
            (server("224.0.0.1:5351"), None),
            (Spec::Scout { interface: wan.clone(), v6: true, from: None }, Some(3)),
            (Spec::Scout { interface: lan.clone(), v6: false, from: None }, None),
            (Spec::Announcements { interface: wan.clone(), v6: false }, Some(3)),
            (Spec::Search { interface: wan.clone() }, Some(3)),
            (Spec::Search { interface: lan }, None),
            (router("100.64.0.1:5000"), Some(3)),
            (router("100.64.0.9:5000"), None),
            (router("8.8.8.8:80"), None),
            (dhcp("100.64.0.2:68"), Some(3)),
            (dhcp("0.0.0.0:68"), Some(3)),
            (dhcp("[fe80::2]:546"), Some(3)),
            (dhcp("100.64.0.2:53"), None),
            (dhcp("192.168.1.1:68"), None),
        ] {
            assert_eq!(known.socket(&spec).ok(), index, "{spec:?}");
        }
        let mut off = self::known();
        (off.serves_pcp, off.asks_dhcp) = (false, false);
        for spec in [dhcp("100.64.0.2:68"), Spec::Pcp { interface: "lan0".into(), addr: ip("192.168.1.1") }] {
            assert!(off.socket(&spec).is_err(), "{spec:?}");
        }
        assert!(known.flow("192.168.1.10:5000".parse().unwrap()).is_ok());
        assert!(known.flow("8.8.8.8:53".parse().unwrap()).is_err());
    }
}

//! What the network process may ask for. It is where hostile octets are read, so nothing that it says is believed: each message is held
//! against the configuration and against what the kernel itself says of interfaces, addresses and routes.
//!
//! What cannot be known here is who has asked for a mapping, whether the provider has granted it, and what its outermost address
//! really is. So a hostile network process can map any LAN host's allowed ports, take mappings away, and lead LAN hosts that call
//! an allowed port of some outside address to another LAN host; it can do none of that for ports that policy closes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use engine::claims::Asker;
use engine::policy::{Facts, InterfaceAddress, PinholeFacts, Policy, Requester};
use engine::request::MappingRequest;
use wire::pcp::Protocol;

use super::message::NatChange;
use crate::config::Config;
use crate::netlink::{Interface, Snapshot};
use crate::nft::Nat1Rule;
use crate::nft::pinholes::PinholeRule;
use crate::sockets::Spec;

/// Links of the LAN that are remembered after they are gone.
const MOST_LINKS: usize = 256;
/// Ports below are programs' of the router itself, whatever policy allows hosts.
const FIRST_FREE_PORT: u16 = 1024;

/// Why not, in words.
pub(super) type Refused = String;

/// What messages are held against.
pub(super) struct Known {
    policy: Policy,
    lan_interfaces: Vec<String>,
    wan_interfaces: Vec<String>,
    servers: BTreeSet<SocketAddr>,
    snapshot: Snapshot,
    /// Every link that the LAN has had: a mapping stands while its interface is down.
    lan: BTreeSet<InterfaceAddress>,
}

impl Known {
    /// Nothing is known of interfaces yet.
    pub(super) fn new(config: &Config) -> Self {
        let mut new = Self {
            policy: Policy::default(),
            lan_interfaces: Vec::new(),
            wan_interfaces: Vec::new(),
            servers: BTreeSet::new(),
            snapshot: Snapshot::default(),
            lan: BTreeSet::new(),
        };
        new.configure(config);
        new
    }

    /// The configuration is this now.
    pub(super) fn configure(&mut self, config: &Config) {
        self.policy = config.policy();
        self.lan_interfaces = config.lan.interfaces.0.iter().map(|name| name.0.clone()).collect();
        let lines = config.lines();
        let ways = || lines.iter().flat_map(|line| &line.ways);
        self.wan_interfaces = ways().map(|way| way.interface.clone()).collect();
        let firewalls = config.uplink.firewall_servers.iter().map(|server| server.0);
        self.servers = ways().flat_map(|way| way.servers.iter().copied()).chain(firewalls).collect();
    }

    /// The kernel's interfaces, addresses and routes are these now.
    pub(super) fn look(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot;
        let now: Vec<InterfaceAddress> = self
            .of_lan()
            .flat_map(|interface| &interface.addresses)
            .map(|&(addr, prefix_len)| InterfaceAddress { addr, prefix_len })
            .collect();
        if self.lan.len() + now.len() > MOST_LINKS {
            self.lan.clear();
        }
        self.lan.extend(now);
    }

    fn of_lan(&self) -> impl Iterator<Item = &Interface> {
        let all = self.snapshot.interfaces.iter();
        all.filter(|interface| self.lan_interfaces.contains(&interface.name))
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

    /// A change of the NAT that has `held` mappings. To take one away is always right.
    pub(super) fn nat(&self, change: &NatChange, held: usize) -> Result<(), Refused> {
        match change {
            NatChange::Reserve { protocol, .. } => transport(*protocol),
            NatChange::Remove(_) => Ok(()),
            NatChange::Install(rule) => self.rule(rule, held),
            NatChange::Replace { new, .. } => self.rule(new, held.saturating_sub(1)),
            NatChange::Move { outermost, .. } => {
                outermost.map_or(Ok(()), |outermost| self.outermost(outermost))
            }
        }
    }

    fn rule(&self, rule: &Nat1Rule, held: usize) -> Result<(), Refused> {
        transport(rule.protocol)?;
        if let Some(outermost) = rule.outermost {
            self.outermost(outermost)?;
        }
        let lan: Vec<InterfaceAddress> = self.lan.iter().copied().collect();
        let host = *rule.internal.ip();
        // Its interface may not be up yet, after a start: then it is one of those that no link out there has.
        let unknown = !lan.iter().any(|link| link.addr.is_ipv4()) && host.is_private();
        let wan: Vec<Ipv4Addr> = self.wan_interfaces.iter().flat_map(|name| self.addresses(name)).collect();
        let own_link = [InterfaceAddress { addr: Ipv4Addr::UNSPECIFIED.into(), prefix_len: 0 }];
        let facts = Facts { lan: if unknown { &own_link } else { &lan }, wan: &wan, held_by_host: 0, held };
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
        if self.lan.iter().any(|link| link.contains(addr)) {
            return Err(format!("{outermost} is an address of the LAN, not of the provider"));
        }
        Ok(())
    }

    /// A pinhole that is to be opened while there are `held`.
    pub(super) fn pinhole(&self, rule: &PinholeRule, held: usize) -> Result<(), Refused> {
        transport(rule.protocol)?;
        let lan: Vec<InterfaceAddress> = self.lan.iter().copied().collect();
        let v6 = |name: &String| {
            let found = self.named(name).into_iter().flat_map(|found| &found.addresses);
            let v6 = found.filter_map(|(addr, _)| match addr {
                IpAddr::V6(v6) => Some(*v6),
                IpAddr::V4(_) => None,
            });
            v6.collect::<Vec<Ipv6Addr>>()
        };
        let wan: Vec<Ipv6Addr> = self.wan_interfaces.iter().flat_map(v6).collect();
        let facts = PinholeFacts { lan: &lan, wan: &wan, held_by_host: 0, held };
        let who = Requester::new(rule.internal.into(), &[]);
        self.policy
            .check_pinhole(&who, rule.internal, rule.internal_port, facts)
            .map_err(|denied| format!("{} port {}: {denied}", rule.internal, rule.internal_port))
    }

    /// A flow that is looked for: of a LAN host.
    pub(super) fn flow(&self, internal: SocketAddrV4) -> Result<(), Refused> {
        let addr = IpAddr::V4(*internal.ip());
        match self.lan.iter().any(|link| link.contains(addr)) {
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
            Spec::Pcp { addr, .. } | Spec::Http { addr, .. } => has(addr)?,
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
        let mut links = interface
            .addresses
            .iter()
            .map(|&(addr, prefix_len)| InterfaceAddress { addr, prefix_len })
            .filter(|link| link.contains(addr));
        let is_edge = match addr {
            IpAddr::V4(v4) => interface
                .addresses
                .iter()
                .any(|&(addr, prefix_len)| InterfaceAddress { addr, prefix_len }.is_edge(v4)),
            IpAddr::V6(_) => false,
        };
        let scoped = match to {
            SocketAddr::V6(v6) => v6.scope_id() == 0 || v6.scope_id() == interface.index,
            SocketAddr::V4(_) => true,
        };
        let own = self.own_addresses().any(|own| own == addr) || addr.is_loopback() || addr.is_multicast();
        if links.next().is_none() || own || is_edge || !scoped || to.port() == 0 {
            return refused();
        }
        Ok(())
    }
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
            (rule("192.168.1.255:8080", 8080, None), false),
            (rule("100.64.0.2:8080", 8080, None), false),
            (rule("10.0.0.9:8080", 8080, None), false),
            (rule("8.8.8.8:8080", 8080, None), false),
            (rule("127.0.0.1:8080", 8080, None), false),
            (Nat1Rule { protocol: 1, ..rule("192.168.1.10:8080", 8080, None) }, false),
        ] {
            assert_eq!(known.nat(&NatChange::Install(rule), 0).is_ok(), good, "{rule:?}");
            assert_eq!(known.nat(&NatChange::Replace { old: rule, new: rule }, 1).is_ok(), good, "{rule:?}");
            assert!(known.nat(&NatChange::Install(rule), 65_000).is_err(), "full: {rule:?}");
            assert!(known.nat(&NatChange::Remove(rule), 65_000).is_ok(), "{rule:?}");
        }
        for (outermost, good) in
            [(None, true), (Some("198.51.100.7:8080"), true), (Some("192.168.1.1:80"), false)]
        {
            let outermost = outermost.map(|to| to.parse().unwrap());
            let change = NatChange::Move { protocol: 6, port: 8080, outermost };
            assert_eq!(known.nat(&change, 0).is_ok(), good, "{outermost:?}");
        }
    }

    #[test]
    fn pinholes_inside_policy() {
        let known = known();
        for (internal, port, good) in [
            ("2001:db8:1::10", 8080, true),
            ("2001:db8:1::10", 80, false),
            ("2001:db8:1::1", 8080, false),
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
            assert!(known.pinhole(&rule, 65_000).is_err());
        }
    }

    /// A link that is gone is still the LAN's; one that never came is no reason to lose what was stored.
    #[test]
    fn mappings_while_the_lan_is_down() {
        let mut known = known();
        known.look(Snapshot::default());
        let lan = NatChange::Install(rule("192.168.1.10:8080", 8080, None));
        let elsewhere = NatChange::Install(rule("192.168.9.10:8080", 8080, None));
        assert!(known.nat(&lan, 0).is_ok());
        assert!(known.nat(&elsewhere, 0).is_err());
        known.lan.clear();
        assert!(known.nat(&elsewhere, 0).is_ok());
        assert!(known.nat(&NatChange::Install(rule("8.8.8.8:8080", 8080, None)), 0).is_err());
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
        assert!(known.flow("192.168.1.10:5000".parse().unwrap()).is_ok());
        assert!(known.flow("8.8.8.8:53".parse().unwrap()).is_err());
    }
}

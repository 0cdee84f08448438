//! What was seen of the machine and its networks, before anybody judges it: plain values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use engine::prefix::Prefix;

use crate::config::{Config, Integrate, Line, NatMode};
use crate::control::{MappingReport, StatusReport, UplinkReport};
use crate::firewall::{Foreign, State};
use crate::netlink::Snapshot;
use crate::nft::reading::Ruleset;

/// What of the configuration counts here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setup {
    pub(crate) lan: Vec<String>,
    pub(crate) http_port: u16,
    /// Whether PCP or NAT-PMP is served to the LAN.
    pub(crate) pcp: bool,
    /// Whether a router of the provider's is asked by UPnP.
    pub(crate) igd: bool,
    /// The bit of the packet mark that what belongs to a mapping has; 0: none.
    pub(crate) mark: u32,
    /// Whose rules are to have one of ours.
    pub(crate) integrate: Integrate,
    /// The usual one first.
    pub(crate) uplinks: Vec<UplinkSetup>,
}

/// One way to a provider.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UplinkSetup {
    pub(crate) interface: String,
    /// Those that are configured.
    pub(crate) servers: Vec<SocketAddr>,
    pub(crate) nat: NatMode,
    /// The name of the router's own NAT's table.
    pub(crate) table: String,
    pub(crate) role: Role,
}

/// Whose traffic takes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Everybody's that takes no other one.
    Usual,
    /// The same while the usual one is down.
    Spare,
    /// These hosts'.
    Bound(Vec<Prefix>),
}

impl Setup {
    /// The one place that knows how uplinks are written in a configuration.
    pub(crate) fn of(config: &Config) -> Self {
        let of_line = |line: Line| {
            let Line { ways, hosts, nat, table, .. } = line;
            ways.into_iter().enumerate().map(move |(n, way)| UplinkSetup {
                interface: way.interface,
                servers: way.servers,
                nat,
                table: table.clone(),
                role: match n {
                    0 if hosts.is_empty() => Role::Usual,
                    0 => Role::Bound(hosts.clone()),
                    _ => Role::Spare,
                },
            })
        };
        Self {
            lan: config.lan.interfaces.0.iter().map(|interface| interface.0.clone()).collect(),
            http_port: config.lan.http_port.0,
            pcp: config.lan.pcp || config.lan.nat_pmp,
            igd: config.uplink.igd,
            mark: config.mark(),
            integrate: config.firewall.integrate,
            uplinks: config.lines().into_iter().flat_map(of_line).collect(),
        }
    }
}

/// By which interface a bound host's traffic leaves, by the router's rules and tables for routes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Leaving {
    /// What is bound.
    pub(crate) prefix: Prefix,
    /// One of it.
    pub(crate) host: Ipv4Addr,
    /// That of its uplink.
    pub(crate) bound_to: String,
    /// `None`: it does not leave at all.
    pub(crate) interface: Option<String>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    pub(crate) setup: Setup,
    pub(crate) gateway: Gateway,
    pub(crate) links: Snapshot,
    /// By name.
    pub(crate) ports: BTreeMap<String, Port>,
    pub(crate) rules: Result<Ruleset, Unread>,
    /// Tables of the older iptables, which cannot be read here.
    pub(crate) legacy: Vec<String>,
    /// What those that are to have a rule of ours have of it, as far as that can be seen.
    pub(crate) foreign: Vec<(Foreign, State)>,
    /// Who has UDP port 1900, and TCP port `lan.http_port`.
    pub(crate) ssdp: Vec<Holder>,
    pub(crate) http: Vec<Holder>,
    /// Interfaces on which the group of SSDP is joined, where that can be seen.
    pub(crate) joined: Option<BTreeSet<String>>,
    /// In the order of the setup's.
    pub(crate) uplinks: Vec<UplinkFacts>,
    /// One host of each prefix that is bound to an uplink.
    pub(crate) leaving: Vec<Leaving>,
    /// By which interface what a host of the LAN sends leaves that is bound to none; `None`: it does not, or was not to be found out.
    pub(crate) way_out: Option<String>,
    /// Other gateways that answered a search on the LAN.
    pub(crate) neighbours: Vec<Neighbour>,
    /// What a control point hears, for each LAN interface that was asked.
    pub(crate) control_points: Vec<ControlPoint>,
    /// Internal clients of TCP mappings that were knocked at.
    pub(crate) clients: Vec<Client>,
}

/// Why the packet filter's rules were not read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Unread {
    /// CAP_NET_ADMIN is missing.
    NotAllowed,
    /// What the kernel says.
    Failed(String),
}

/// The running gateway.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Gateway {
    Running {
        status: Box<StatusReport>,
        mappings: Vec<MappingReport>,
        /// Searches of this router itself that it had heard before and after one was sent.
        own_searches: Option<(u64, u64)>,
    },
    NotRunning,
    /// The socket is there, and nobody answers; why.
    Unanswering(String),
    /// Its socket is for others.
    NotAllowed,
}

impl Gateway {
    pub(crate) fn status(&self) -> Option<&StatusReport> {
        match self {
            Gateway::Running { status, .. } => Some(status),
            _ => None,
        }
    }

    /// What it says of the uplink by this interface.
    pub(crate) fn uplink(&self, interface: &str) -> Option<&UplinkReport> {
        let status = self.status()?;
        let all = std::iter::once(&status.usual).chain(status.extra.iter().map(|extra| &extra.uplink));
        all.into_iter().find(|uplink| uplink.wan.name == interface)
    }
}

/// What netlink does not tell of an interface.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Port {
    pub(crate) multicast: bool,
    /// Whether IPv4 packets are forwarded that come in by it.
    pub(crate) forwarding: Option<bool>,
    pub(crate) bridge: Option<Bridge>,
}

/// A bridge's care for multicast.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Bridge {
    pub(crate) snooping: bool,
    pub(crate) querier: bool,
}

/// A program that has a port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Holder {
    pub(crate) address: IpAddr,
    /// Number and name, where they can be seen.
    pub(crate) process: Option<(u32, String)>,
}

impl Holder {
    /// Whether it is a portferry.
    pub(crate) fn is_portferry(&self) -> bool {
        self.process.as_ref().is_some_and(|(_, name)| name == "portferry")
    }
}

/// One uplink.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UplinkFacts {
    pub(crate) candidates: Vec<Candidate>,
    /// A router of the provider's that speaks UPnP.
    pub(crate) igd: Option<Igd>,
    pub(crate) probe: Probe,
    pub(crate) prefer_failure: Option<bool>,
}

/// A server that may be there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) server: SocketAddr,
    pub(crate) origin: Origin,
    /// Milliseconds until PCP was answered, and with what.
    pub(crate) pcp: Option<(f64, PcpSays)>,
    pub(crate) nat_pmp: Option<(f64, NatPmpSays)>,
    /// Nobody listens, said the machine itself.
    pub(crate) closed: bool,
    /// It cannot be sent to.
    pub(crate) unreachable: Option<String>,
}

impl Candidate {
    /// Whether either protocol can be spoken with it, and how fast that was.
    pub(crate) fn answers(&self) -> Option<(&'static str, f64)> {
        match (&self.pcp, &self.nat_pmp) {
            (Some((ms, PcpSays::Success)), _) => Some(("PCP", *ms)),
            (_, Some((ms, NatPmpSays::External(_)))) => Some(("NAT-PMP", *ms)),
            (Some((ms, PcpSays::Refused(_))), _) => Some(("PCP", *ms)),
            _ => None,
        }
    }
}

/// Why a server is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Origin {
    Configured,
    Offered,
    Router,
    Anycast,
}

/// The answer to ANNOUNCE.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PcpSays {
    Success,
    /// It speaks this version instead.
    Version(u8),
    /// By the code's name.
    Refused(String),
}

/// The answer to NAT-PMP's question for the external address.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum NatPmpSays {
    External(Ipv4Addr),
    Refused(String),
}

/// What became of the probe mapping.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Probe {
    /// Not made; why.
    Skipped(String),
    Granted(Granted),
    /// The code, why, and what to do about it.
    Refused {
        code: String,
        why: String,
        todo: String,
        third_party: bool,
    },
    /// The server maps for nobody but the router itself, where it should for a LAN host; how that was seen.
    NoThirdParty(String),
    /// Anything else; in words.
    Failed(String),
}

/// A probe mapping that stood for a moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Granted {
    pub(crate) server: SocketAddr,
    pub(crate) protocol: &'static str,
    /// NAT-PMP tells it apart.
    pub(crate) external: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) lifetime: u32,
    pub(crate) third_party: Option<IpAddr>,
    /// Seconds that it stands for still, as it could not be deleted.
    pub(crate) left: Option<u32>,
}

/// A gateway that speaks UPnP, as it describes itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Igd {
    pub(crate) address: Ipv4Addr,
    /// The SERVER line of its answer.
    pub(crate) server: Option<String>,
    /// "Connected" and the like.
    pub(crate) status: Option<String>,
    pub(crate) external: Option<Ipv4Addr>,
}

/// Another gateway on the LAN.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Neighbour {
    pub(crate) interface: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) location: String,
    pub(crate) server: Option<String>,
}

/// The internal client of a TCP mapping, as it answers the router.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Client {
    pub(crate) at: SocketAddrV4,
    pub(crate) says: Says,
}

/// What a knock is answered with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Says {
    /// A connection.
    Accepts,
    /// Nobody listens there.
    Refuses,
    /// Nothing.
    Silent,
}

/// What one LAN interface's control points hear.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ControlPoint {
    pub(crate) interface: String,
    pub(crate) address: Ipv4Addr,
    /// Nothing when the description could not be had.
    pub(crate) answer: Option<Igd>,
}

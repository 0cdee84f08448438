//! What the gateway is doing, for people and programs that look from outside: plain values, no behaviour.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use wire::pcp::Protocol;

use crate::claims::AskedBy;
use crate::gateway::LanCounters;
use crate::pinholes::Flows;
use crate::policy::{Counted, Decided, Waiting};
use crate::table::Health;
use crate::time::Duration;
use crate::uplink::UplinkProtocol;

/// The gateway at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Whether the router's own NAT stands in between.
    pub own_nat: bool,
    /// LAN interfaces and the gateway's IPv4 addresses there.
    pub lan: Vec<(String, Vec<Ipv4Addr>)>,
    /// WAN interface.
    pub wan: String,
    /// Its IPv4 addresses.
    pub wan_addresses: Vec<Ipv4Addr>,
    /// The PCP servers that DHCP offered there, each by its addresses.
    pub offered: Vec<Vec<IpAddr>>,
    /// The server in use.
    pub server: Option<SocketAddr>,
    /// All that may be asked, the best first.
    pub servers: Vec<SocketAddr>,
    /// How it is asked, once there is a way to it.
    pub protocol: Option<UplinkProtocol>,
    /// Whether it answers; `None` before the first answer or silence.
    pub answering: Option<bool>,
    /// How long ago it last answered.
    pub last_heard: Option<Duration>,
    /// Its last Epoch Time.
    pub epoch: Option<u32>,
    /// The external address.
    pub external: Option<Ipv4Addr>,
    /// The external address of the provider's router, when that is of another NAT above it, so that nobody out there can reach it.
    pub nat_above: Option<Ipv4Addr>,
    /// For how long it has been connected.
    pub uptime: Option<Duration>,
    /// Mappings.
    pub mappings: usize,
    /// Mappings at the server that no control point has been told of, kept for a while should one ask for them.
    pub held: usize,
    /// Why nothing can be stored at the moment, in the system's own words, so that no new mapping stands.
    pub store_error: Option<String>,
    /// Datagrams on the uplink that were not believed.
    pub ignored_upstream: u64,
    /// Datagrams to SSDP that were not answered: malformed, foreign, too many.
    pub ignored_ssdp: u64,
    /// What was asked in PCP and NAT-PMP by LAN hosts.
    pub lan_served: LanCounters,
    /// Searches that came in on the LAN.
    pub searches: crate::ssdp::Heard,
    /// Pinholes.
    pub pinholes: usize,
    /// The PCP server of the provider's IPv6 firewall, if there is one.
    pub firewall: Option<SocketAddr>,
    /// What policy has refused.
    pub policy: PolicyStatus,
    /// WANIPConnection:2's SystemUpdateID.
    pub system_update_id: u32,
}

/// What policy has refused since the start, and who waits for the owner.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PolicyStatus {
    /// By reason and by rule; only what there is.
    pub refused: Vec<RefusedStatus>,
    /// How many devices wait for the owner.
    pub waiting: usize,
}

/// What one reason, or one rule, has refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RefusedStatus {
    /// Which.
    pub what: Counted,
    /// How often.
    pub times: u64,
    /// Who asked last.
    pub last_by: IpAddr,
    /// How long ago that was.
    pub last: Duration,
}

/// Whom the owner has to decide on, and has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ConsentStatus {
    /// Decisions count: `policy.default` is to ask.
    pub asks: bool,
    /// Who waits, the longest first.
    pub waiting: Vec<WaitingStatus>,
    /// Decisions.
    pub decided: Vec<Decided>,
}

/// Somebody who waits, at one moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WaitingStatus {
    /// Who, and what for.
    pub of: Waiting,
    /// For how long.
    pub since: Duration,
    /// How long ago it asked last.
    pub last: Duration,
}

/// One mapping at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct MappingStatus {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address and port at the provider's NAT.
    pub external: SocketAddrV4,
    /// The port of the router's own NAT, if there is one.
    pub nat_port: Option<u16>,
    /// The LAN host and its port.
    pub internal: SocketAddrV4,
    /// The only remote host that may come in.
    pub remote_peer: Option<Ipv4Addr>,
    /// The name that it was given by.
    pub remote_name: Option<String>,
    /// The control point's own words.
    pub description: String,
    /// How long it has been there.
    pub age: Duration,
    /// By which protocols its host has asked for it.
    pub asked_by: AskedBy,
    /// What is left of the lease; `None` for ever.
    pub lease_left: Option<Duration>,
    /// What is left of the lifetime that the provider granted.
    pub lifetime_left: Duration,
    /// How it is doing.
    pub health: Health,
}

/// One pinhole at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct PinholeStatus {
    /// `UniqueID`.
    pub id: u16,
    /// What it lets in.
    pub flows: Flows,
    /// The client's own words.
    pub description: String,
    /// Whether this router lets that in; it is being asked for otherwise.
    pub is_open: bool,
    /// How long it has been there.
    pub age: Duration,
    /// By which protocols its host has asked for it.
    pub asked_by: AskedBy,
    /// What is left of the lease.
    pub lease_left: Option<Duration>,
    /// Address and port at the provider's firewall, where that was asked and lets it in.
    pub at_provider: Option<SocketAddr>,
    /// That has not been renewed the last time.
    pub is_degraded: bool,
}

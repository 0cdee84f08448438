//! The narrow waist: who wants which mapping, how strictly and for how long, whatever protocol it was asked in; and
//! why it cannot be had.

use std::net::{Ipv4Addr, SocketAddrV4};

use wire::pcp::{Protocol, ResultCode};

use crate::claims::Asker;
use crate::time::Duration;

/// A mapping that a LAN host asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MappingRequest {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Internal client and internal port.
    pub internal: SocketAddrV4,
    /// The external port that is wanted; `None` when any will do.
    pub external_port: Option<u16>,
    /// That port or none (AddPortMapping, R-18); otherwise it is a wish (AddAnyPortMapping, R-16).
    pub strict: bool,
    /// The external address that is wanted with that port; `None` when any will do (RFC 6887 §13.2).
    pub external_addr: Option<Ipv4Addr>,
    /// How long; `None` for ever.
    pub lease: Option<Duration>,
    /// The only remote host that may come in; `None` for all.
    pub remote_peer: Option<Ipv4Addr>,
    /// The name that it was given by, in small letters.
    pub remote_name: Option<String>,
    /// The control point's own words about it.
    pub description: String,
    /// In which protocol it is asked for.
    pub by: Asker,
}

impl MappingRequest {
    /// Whether a mapping at this external address is one that was asked for.
    pub fn takes_address(&self, addr: Ipv4Addr) -> bool {
        self.external_addr.is_none_or(|wanted| wanted == addr)
    }
}

/// Why a mapping, or its deletion, was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// Another internal client, or another remote host, has the external port.
    Conflict,
    /// Policy: not this host, not this port, not this address.
    NotAuthorized,
    /// Policy: this host has as many mappings as it may.
    Quota,
    /// Policy: the gateway has as many mappings as it may.
    Full,
    /// Policy: this host asks more often than it may.
    TooOften,
    /// The mapping lets another remote host in, or more of them than can be told apart.
    OtherPeer,
    /// There is no such mapping.
    NoSuchEntry,
    /// The PCP server said so.
    Upstream(ResultCode),
    /// The PCP server did not answer in time, or cannot be reached.
    NoAnswer,
    /// The server's answer was of no use: another address family, an address nobody can reach.
    Unusable,
    /// The router's own NAT could not be set up.
    LocalNat,
    /// The LAN host is gone, says who gave it its address.
    Released,
    /// The gateway is stopping.
    Stopping,
}

//! What has to survive a crash (R-10, D-4): the mappings that were acknowledged, and the nonces that prove they are ours.
//!
//! Renewals, counters and the end of leases stay out of it: they are worked out again from what is here.

use std::net::{Ipv4Addr, SocketAddrV4};

use wire::pcp::{Nonce, Protocol};

use crate::claims::Claims;
use crate::pinholes::Flows;
use crate::policy::{Decided, Device};
use crate::time::Duration;
use crate::uplink::Filtered;

/// A mapping as it is stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredMapping {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address and port at the provider's NAT.
    pub external: SocketAddrV4,
    /// The LAN host and its port.
    pub internal: SocketAddrV4,
    /// The port of the router's own NAT, if there is one.
    pub nat_port: Option<u16>,
    /// The only remote host that may come in.
    pub remote_peer: Option<Ipv4Addr>,
    /// The name that it was given by.
    pub remote_name: Option<String>,
    /// The control point's own words.
    pub description: String,
    /// Made by AddPortMapping.
    pub strict: bool,
    /// Who counts on it, and what was left of that when it was stored.
    pub claims: Claims<Duration>,
    /// Which of all mappings it was; 0 where the store does not tell.
    pub made: u64,
    /// What the PCP server knows the owner by.
    pub nonce: StoredNonce,
}

/// A pinhole as it is stored. The nonce that it has at the provider can be worked out again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredPinhole {
    /// `UniqueID`, by which control points know it.
    pub id: u16,
    /// What it lets in.
    pub flows: Flows,
    /// The client's own words.
    pub description: String,
    /// Who counts on it, and what was left of that when it was stored.
    pub claims: Claims<Duration>,
}

/// What a PCP server knows somebody by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredNonce {
    /// The nonce.
    pub nonce: Nonce,
    /// The WAN interface that the server is behind: another one's server is not told it. `None`: nobody knows any more.
    pub wan: Option<String>,
}

/// One change of what is stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record {
    /// This mapping stands; an older one with the same protocol and external port is replaced.
    Put(StoredMapping),
    /// The same of one that had this external port until now: there is no moment at which neither is stored.
    Move(u16, StoredMapping),
    /// The mapping with this protocol and external port is gone.
    Remove(Protocol, u16),
    /// The lease of that mapping is over. What was stored says when, so nothing has to be written for it.
    Ended(Protocol, u16),
    /// No mapping stands any more.
    Clear,
    /// This pinhole is open; an older one of the same number is replaced.
    PutPinhole(StoredPinhole),
    /// That pinhole is no more.
    RemovePinhole(u16),
    /// The owner of the router has decided about a device; an older decision is replaced.
    Consent(Decided),
    /// Nothing is decided about this device any more.
    NoConsent(Device),
    /// The nonce of the router's own mapping that tells the external address.
    Probe(StoredNonce),
    /// The server may have filters for this mapping; true for as long as a server keeps a mapping without a renewal.
    Filtered(Filtered),
}

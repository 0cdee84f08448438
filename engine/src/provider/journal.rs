//! What has to survive a restart, so that the epoch may go on counting (RFC 6887 §8.5): every mapping, for at least as long as
//! its client was told.
//!
//! A change costs one record. A renewal costs none most of the time: what is stored says that the mapping stands for twice
//! the lifetime that was granted, so only every second or third renewal of a client outlives that and is stored again, or one
//! that makes the lifetime much shorter.
//! The price is paid after a restart alone: a mapping whose client has gone may stand for one lifetime more.
//!
//! What is held back after it was freed is stored, too, as one record that ends by itself: a restart gives nobody a port to
//! which packets for its last owner may be on their way still.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4};

use wire::pcp::{Filter, Nonce, Protocol};

use super::interface::{Inside, Requester};
use crate::time::Duration;

/// What tells mappings apart: the internal endpoint, and for PEER the remote one. Their order is that of GET's lists: internal
/// address, protocol, internal port; mappings of PEER stand behind those of MAP.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct MappingKey {
    /// As it travels.
    pub(super) addr: Ipv6Addr,
    pub(super) softwire: Option<Ipv6Addr>,
    pub(super) protocol: Protocol,
    pub(super) peer: Option<SocketAddr>,
    pub(super) port: u16,
}

impl MappingKey {
    /// The key of the mapping of that internal endpoint; `peer` for one that PEER made.
    #[must_use]
    pub fn new(inside: Inside, protocol: Protocol, internal_port: u16, peer: Option<SocketAddr>) -> Self {
        let addr = wire::pcp::ip_to_wire(inside.addr);
        Self { addr, softwire: inside.softwire, protocol, peer, port: internal_port }
    }

    /// The host inside.
    #[must_use]
    pub fn inside(&self) -> Inside {
        Inside { softwire: self.softwire, addr: wire::pcp::ip_from_wire(self.addr) }
    }

    /// 0: all protocols.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// 0: all ports.
    #[must_use]
    pub fn internal_port(&self) -> u16 {
        self.port
    }

    /// The remote endpoint, if PEER made it.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }
}

/// A mapping as it is stored.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredMapping {
    /// What it is for; an older one with the same key is replaced.
    pub key: MappingKey,
    /// Address and port outside; port 0: all ports.
    pub external: SocketAddr,
    /// 1, or the size of a PORT_SET.
    pub ports: u16,
    /// What proves that it is the client's; `None` for one of NAT-PMP, which is its source address'.
    pub nonce: Option<Nonce>,
    /// Whether its external port of the other protocol is kept for the same host (N-6).
    pub companion: bool,
    /// Whose packet asked for it first.
    pub requester: Requester,
    /// Who may come in; empty: everybody.
    pub filters: Vec<Filter>,
    /// A text for people.
    pub description: Option<String>,
    /// How long it stands from the moment it is stored; never shorter than its client was told.
    pub left: Duration,
}

/// Freed ports that go to nobody but their last owner.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredHold {
    /// The owner's internal endpoint, which has a port. An older hold of exactly the same external ports is replaced.
    pub key: MappingKey,
    /// Address and first port outside.
    pub external: SocketAddrV4,
    /// How many of them in a row.
    pub ports: u16,
    /// What its owner proves to be it with.
    pub nonce: Option<Nonce>,
    /// Whose quota they count in: somebody of that subscriber.
    pub requester: Requester,
    /// How long, from the moment it is stored.
    pub left: Duration,
}

/// One change of what is stored. Whoever stores them writes down when: `left` counts from there, and so does the epoch.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Record {
    /// The epoch begins now. Mappings that are stored stay.
    ///
    /// A server whose store is whole after a restart begins with the age of the last one of these; without it, with a new
    /// epoch. A server that begins with a new epoch says so by this record.
    Epoch,
    /// No mapping stands any more, and nothing is held.
    Clear,
    /// This mapping stands.
    Put(StoredMapping),
    /// The mapping with this key is gone.
    Remove(MappingKey),
    /// These ports are held, until that is over or a mapping has them.
    Hold(StoredHold),
}

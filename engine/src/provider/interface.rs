//! What a [`Server`](super::Server) is told, and what it wants done.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use wire::pcp::{Filter, Protocol};

use super::flows::FlowQuery;
use super::journal::Record;
use super::notice::Notice;

/// Where a datagram came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Arrival {
    /// Source as on the wire.
    pub from: SocketAddr,
    /// Destination as on the wire; the answer comes from it, anycast or not.
    pub to: IpAddr,
    /// The B4's IPv6 address, when the datagram came inside of a DS-Lite softwire.
    pub softwire: Option<Ipv6Addr>,
    /// What the caller calls the interface that it came by, such as the kernel's number; the answer leaves by that one. 0: it is
    /// not known, or there is only one.
    pub interface: u32,
    /// False: it came by an interface that is none of the subscribers'.
    pub inside: bool,
}

/// A host inside, as the NAT tells it apart. In DS-Lite that takes the softwire and the inner IPv4 address (RFC 6333).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Inside {
    /// The B4's IPv6 address.
    pub softwire: Option<Ipv6Addr>,
    /// Its own address.
    pub addr: IpAddr,
}

/// What the data plane has to do for one mapping.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Binding {
    /// 0: all protocols, and then all ports.
    pub protocol: Protocol,
    /// The host inside.
    pub inside: Inside,
    /// 0: all ports.
    pub internal_port: u16,
    /// Port 0: all ports. A pinhole of an IPv6 firewall has the internal address and port here; a NAT64 an IPv4 address, with
    /// an IPv6 one inside.
    pub external: SocketAddr,
    /// 1, or the size of a PORT_SET: internal port `+ i` is external port `+ i`.
    pub ports: u16,
    /// Who may come in (RFC 6887 §13.3); empty: everybody.
    pub filters: Vec<Filter>,
    /// Made by PEER, for this remote endpoint only. It may have its external port in common with a binding of the same
    /// internal endpoint without a peer, or with others.
    pub peer: Option<SocketAddr>,
}

impl Binding {
    /// Whether a packet from `remote` may come in; its port only counts where a filter or PEER names one.
    #[must_use]
    pub fn lets_in(&self, remote: SocketAddr) -> bool {
        self.peer.is_none_or(|peer| peer == remote) && filters_let_in(&self.filters, remote)
    }
}

/// RFC 6887 §13.3: no filter lets everybody in, several let in whom one of them does.
pub(super) fn filters_let_in(filters: &[Filter], remote: SocketAddr) -> bool {
    let address = u128::from(wire::pcp::ip_to_wire(remote.ip()));
    filters.is_empty()
        || filters.iter().any(|filter| {
            let mask = u128::MAX.checked_shl(128 - u32::from(filter.prefix_len.min(128))).unwrap_or(0);
            let port = filter.remote_port == 0 || remote.port() == 0 || filter.remote_port == remote.port();
            port && address & mask == u128::from(filter.remote_addr) & mask
        })
}

/// What changes in the NAT. Changes are carried out in their order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NatChange {
    /// Let this in. Packets that go out from there carry the external address and port.
    Open(Binding),
    /// Other filters, or another external address or port; at no moment neither.
    Replace {
        /// What there is.
        old: Binding,
        /// What there shall be.
        new: Binding,
    },
    /// Let it in no more.
    Close(Binding),
}

/// Names one [`NatChange`] until its outcome is told, or one [`FlowQuery`] until its answer is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Ticket(pub(super) u64);

/// Why the data plane did not do it; it is then as it was before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NatRefused {
    /// Out of order: NETWORK_FAILURE.
    Failed,
    /// No room: NO_RESOURCES.
    Full,
    /// Something else on this machine has the external port: another one may do.
    Taken,
    /// It cannot do what this binding says, though others are no trouble.
    Unfit,
}

/// What a [`Server`](super::Server) wants done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// An answer, or an unsolicited response to one client; from port 5351.
    Send {
        /// The client.
        to: SocketAddr,
        /// The address that its request came to.
        from: IpAddr,
        /// Inside of this B4's softwire.
        softwire: Option<Ipv6Addr>,
        /// The interface that its request came by ([`Arrival::interface`]): another one may have the same addresses, or lead
        /// the answer elsewhere.
        interface: u32,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// An announcement, to every interface of subscribers, from port 5351.
    Multicast {
        /// `224.0.0.1:5350` or `[ff02::1]:5350`.
        group: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// A change of the NAT. Its outcome is told to [`Server::handle_nat`](super::Server::handle_nat); the answer to the
    /// client waits for it.
    Nat {
        /// Names it.
        ticket: Ticket,
        /// What.
        change: NatChange,
    },
    /// A question that [`Server::handle_flow`](super::Server::handle_flow) is told the answer to; a client waits for it.
    Flow {
        /// Names it.
        ticket: Ticket,
        /// What is asked.
        flow: FlowQuery,
    },
    /// To be stored before anything behind it is done.
    Store(Record),
    /// A line for the person who runs it.
    Notice(Notice),
}

/// Who a packet's sender is, and so who may list a mapping and learn its nonce: its source address and, inside of a
/// softwire, the B4.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Requester {
    /// Source of the packet.
    pub addr: IpAddr,
    /// The B4's IPv6 address, when it came inside of a softwire.
    pub softwire: Option<Ipv6Addr>,
}

impl Requester {
    /// What the rules of the configuration look at: the B4, where there is one.
    pub(super) fn client(&self) -> IpAddr {
        self.softwire.map_or(self.addr, IpAddr::V6)
    }
}

impl Subscriber {
    /// A requester that is this subscriber.
    pub(super) fn as_requester(self) -> Requester {
        match self {
            Self::V4(addr) => Requester { addr: addr.into(), softwire: None },
            Self::Softwire(b4) => Requester { addr: b4.into(), softwire: Some(b4) },
            Self::V6(first) => Requester { addr: first.into(), softwire: None },
            Self::OnLink { addr, .. } => Requester { addr, softwire: None },
        }
    }
}

/// Who shares a quota and an external address.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Subscriber {
    /// One IPv4 address.
    V4(Ipv4Addr),
    /// One B4, by its IPv6 address, whichever way it talks.
    Softwire(Ipv6Addr),
    /// One IPv6 prefix: its first address.
    V6(Ipv6Addr),
    /// A link-local address, which is another host on each link; it has no mappings.
    OnLink {
        /// The address.
        addr: IpAddr,
        /// [`Arrival::interface`].
        interface: u32,
    },
}

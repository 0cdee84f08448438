//! What the gateway is told, and what it wants done: the whole of its contact with the world.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use wire::description::Uuid;
use wire::error::UpnpError;
use wire::pcp::Protocol;
use wire::services::{Face, Service};
use wire::soap;

use super::{Change, Config, LanArrival, LookupId, PinholeReading, UplinkEffect, UplinkEvent};
use crate::gena::{Delivery, Notification, SubscribeError};
use crate::journal::{Record, StoredMapping, StoredNonce, StoredPinhole};
use crate::nat::{NatChange, NatFailure};
use crate::notice::Notice;
use crate::pinholes::FirewallChange;
use crate::policy::{Decided, Device, InterfaceAddress, Verb};
use crate::ssdp::Outgoing;
use crate::time::Duration;
use crate::uplink::{Filtered, HttpId, HttpOutcome, HttpRequest};

/// Handle of a control request that waits for its answer; the caller numbers them, below 2^63.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct RequestId(pub u64);

/// Handle of a change of the router's own NAT that waits for its outcome.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct NatTicket(pub u64);

/// A LAN interface as it is now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LanInterface {
    /// The kernel's number for it.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The gateway's addresses on it.
    pub addresses: Vec<InterfaceAddress>,
}

/// The WAN interface as it is now. One of another name takes the place of the one before: nothing that was learned of servers
/// behind that holds for those behind this.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wan {
    /// Its name.
    pub name: String,
    /// Whether it exists and has a carrier.
    pub up: bool,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// Its IPv6 addresses of more than the link's scope, for a PCP server that is reached by IPv6 (DS-Lite).
    pub addresses_v6: Vec<Ipv6Addr>,
    /// The default router behind it.
    pub router: Option<IpAddr>,
    /// The same of IPv6, at PCP's port, which may be the firewall that lets in what is for the LAN.
    pub router_v6: Option<SocketAddrV6>,
    /// The PCP servers that DHCP offered on it (RFC 7291), in the order in which they are to be tried: DHCPv6's, then
    /// DHCPv4's. Each is one server by its addresses, at least one, of either version whichever DHCP it was.
    pub offered: Vec<Vec<IpAddr>>,
    /// The servers that somebody has chosen for it, in the place of [`Config::servers`].
    pub servers: Option<Vec<SocketAddr>>,
    /// It stands in for the usual one.
    pub is_spare: bool,
    /// Its speed in bit/s, where the kernel knows it.
    pub bits_per_second: Option<u64>,
}

/// Traffic of the WAN interface since it came up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counters {
    /// Octets out.
    pub bytes_sent: u64,
    /// Octets in.
    pub bytes_received: u64,
    /// Packets out.
    pub packets_sent: u64,
    /// Packets in.
    pub packets_received: u64,
}

/// A control request that the HTTP server took in and the decoder accepted.
#[derive(Clone, Debug)]
pub struct ControlRequest {
    /// The caller's handle for it.
    pub id: RequestId,
    /// The control point.
    pub from: IpAddr,
    /// Addresses that the same host has beside that (K-3), as far as the caller knows them; none of link-local scope.
    pub also: Vec<IpAddr>,
    /// Which of the two root devices it speaks to.
    pub face: Face,
    /// What it wants.
    pub request: soap::Request,
}

/// Everything that happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// [`Gateway::next_timeout`](super::Gateway::next_timeout) has come.
    Timeout,
    /// What was stored when the gateway last ran; before the first [`Event::UplinkOpened`].
    Restore {
        /// The mappings, the rest of their leases as of now.
        mappings: Vec<StoredMapping>,
        /// The nonce of the mapping that tells the external address.
        probe: Option<StoredNonce>,
        /// What the server may have filters for.
        filtered: Vec<Filtered>,
    },
    /// The pinholes that were stored, the rest of their leases as of now; before the first [`Event::Wan`].
    RestorePinholes(Vec<StoredPinhole>),
    /// What the owner had decided about devices; before [`Event::Restore`].
    RestoreConsents(Vec<Decided>),
    /// The owner decides about a device (`policy.default = "ask"`).
    Consent {
        /// Which: as [`Gateway::resolve_device`](super::Gateway::resolve_device) knows it.
        device: Device,
        /// What.
        verb: Verb,
        /// The addresses that it is known to have: what they have goes when the answer is no.
        addresses: Vec<IpAddr>,
    },
    /// Storing failed, in the system's own words. It is the turn right after the one whose [`Effect::Store`] it was.
    StoreFailed(String),
    /// Everything that was to be stored meanwhile is, and storing works again.
    StoreWorks,
    /// The LAN interfaces are these now.
    Lan(Vec<LanInterface>),
    /// The WAN interface is this now.
    Wan(Wan),
    /// A control point asks.
    Control(ControlRequest),
    /// A datagram came to SSDP's port on this interface.
    Ssdp {
        /// The kernel's number of the interface that it came in by.
        interface: u32,
        /// Our address that it was sent to, where the caller knows it; not of what came to a group.
        local: Option<IpAddr>,
        /// Its source.
        from: SocketAddr,
        /// Its content.
        bytes: &'a [u8],
    },
    /// A datagram came to the port of PCP and NAT-PMP (5351) at one of the gateway's LAN addresses.
    Lan5351 {
        /// Where, and from whom.
        arrival: LanArrival,
        /// Its content.
        bytes: &'a [u8],
    },
    /// Likewise a PCP request for a host that has another uplink than who asks, so that it is not this gateway's.
    Lan5351Elsewhere {
        /// Where, and from whom.
        arrival: LanArrival,
        /// Its content.
        bytes: &'a [u8],
    },
    /// What became of an [`Effect::FindFlow`].
    FlowFound {
        /// The request that waits for it.
        request: RequestId,
        /// The port of the WAN address that the flow leaves by; `None`: there is none, or it is not known.
        port: Option<u16>,
    },
    /// The socket that [`Effect::OpenUplink`] asked for is there.
    UplinkOpened {
        /// The server that it leads to.
        server: SocketAddr,
        /// Its own address.
        source: IpAddr,
    },
    /// The socket that [`Effect::OpenUplink`] asked for could not be made, in the system's own words.
    UplinkFailed {
        /// The server that it was to lead to.
        server: SocketAddr,
        /// Why.
        error: String,
    },
    /// A datagram came on the uplink's socket.
    Uplink {
        /// Its source.
        from: SocketAddr,
        /// Its content.
        bytes: &'a [u8],
    },
    /// A datagram came from where an [`Effect::Scout`] was sent to.
    Scouted {
        /// Its source.
        from: SocketAddr,
        /// Its content.
        bytes: &'a [u8],
    },
    /// Nobody listens at the server's port, says the machine that it is on (an ICMP error).
    UplinkUnreachable(SocketAddr),
    /// A datagram came to the multicast group for PCP announcements, on the WAN interface.
    Announcement {
        /// Its source.
        from: SocketAddr,
        /// Its content.
        bytes: &'a [u8],
    },
    /// A datagram came to the socket of [`Effect::Search`].
    SearchAnswer {
        /// Its source.
        from: SocketAddr,
        /// Its content.
        bytes: &'a [u8],
    },
    /// What became of an [`Effect::Http`].
    Http {
        /// The exchange.
        id: HttpId,
        /// What became of it.
        outcome: HttpOutcome,
    },
    /// What becomes of the socket of [`Effect::FirewallUplink`].
    FirewallUplink(UplinkEvent<'a>),
    /// What became of an [`Effect::ReadPinhole`]; `None` when it could not be read.
    PinholeRead {
        /// The request that waits for it.
        request: RequestId,
        /// Packets, or seconds.
        value: Option<u32>,
    },
    /// What became of an [`Effect::Nat`] or [`Effect::Firewall`].
    Nat {
        /// Its ticket.
        ticket: NatTicket,
        /// Done, or why not.
        outcome: Result<(), NatFailure>,
    },
    /// What became of an [`Effect::ReadCounters`]; `None` when they could not be read.
    Counters {
        /// The request that waits for them.
        request: RequestId,
        /// The counters.
        counters: Option<Counters>,
    },
    /// What became of an [`Effect::Resolve`]; every one has its answer, and soon.
    Resolved {
        /// Its handle.
        lookup: LookupId,
        /// The IPv4 addresses of the name; none when it has none, or nobody knows.
        addresses: Vec<Ipv4Addr>,
    },
    /// A control point subscribes to a service's variables, or renews that.
    Subscribe {
        /// The caller's handle for it.
        request: RequestId,
        /// The control point.
        from: IpAddr,
        /// As [`ControlRequest::also`].
        also: Vec<IpAddr>,
        /// The LAN interface that it is on.
        interface: u32,
        /// The root device and the service.
        of: (Face, Service),
        /// The headers.
        subscribe: wire::gena::Subscribe,
    },
    /// A control point ends its subscription.
    Unsubscribe {
        /// The caller's handle for it.
        request: RequestId,
        /// The control point.
        from: IpAddr,
        /// As [`ControlRequest::also`].
        also: Vec<IpAddr>,
        /// The service.
        service: Service,
        /// The subscription.
        sid: Uuid,
    },
    /// What became of an [`Effect::Notify`].
    Delivered {
        /// The subscription.
        sid: Uuid,
        /// What became of it.
        delivery: Delivery,
    },
    /// This LAN host is gone, says who gave it its address: so are its mappings (RFC 6970 §5.10), or pinholes.
    Release(IpAddr),
    /// These LAN hosts are another gateway's now ([`Gateways`](crate::gateways::Gateways)): what they have here goes.
    Rebound(Vec<Ipv4Addr>),
    /// The settings are these now. Those of the NAT, of the devices and of the HTTP port stay as they were.
    Reconfigure(Box<Config>),
    /// Take everything back and stop.
    Stop,
}

/// Everything that is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Answer a control request: with this SOAP envelope, or with a fault.
    Reply {
        /// The request's handle.
        request: RequestId,
        /// The envelope of a success, or the error.
        answer: Result<String, UpnpError>,
    },
    /// Answer a [`Event::Subscribe`] or [`Event::Unsubscribe`].
    Subscribed {
        /// The request's handle.
        request: RequestId,
        /// The subscription and the time it is granted for; nothing for one that has ended.
        answer: Result<Option<(Uuid, Duration)>, SubscribeError>,
    },
    /// Deliver an event to a subscriber.
    Notify(Notification),
    /// Read the traffic counters of the WAN interface.
    ReadCounters {
        /// The request that waits for them.
        request: RequestId,
    },
    /// Look up the IPv4 addresses of a name.
    Resolve {
        /// To be named in the outcome.
        lookup: LookupId,
        /// A host name in small letters.
        name: String,
    },
    /// Open a UDP socket connected to this server, from a random port, on the WAN interface; an older one is closed.
    OpenUplink {
        /// The server.
        server: SocketAddr,
    },
    /// Close the socket: nothing of it is believed any more.
    CloseUplink,
    /// Send this on the uplink's socket.
    Send {
        /// The server.
        to: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Send this from a UDP socket of the WAN interface that is there until [`Effect::EndSearch`]; what comes back to it is an
    /// [`Event::SearchAnswer`].
    Search {
        /// The default router, or the multicast group of SSDP.
        to: SocketAddrV4,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Close that socket.
    EndSearch,
    /// Ask this by HTTP over the WAN interface, without following a redirect. Its outcome is an [`Event::Http`].
    Http(HttpRequest),
    /// Send this on the WAN interface, from a random port that is not the uplink's; answers are [`Event::Scouted`].
    Scout {
        /// A server that may be there.
        to: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Send this from SSDP's port.
    Ssdp(Outgoing),
    /// Send this from port 5351 of that address of ours.
    LanSend {
        /// The kernel's number of the LAN interface.
        interface: u32,
        /// Our address.
        local: IpAddr,
        /// A client, or the multicast group of announcements.
        to: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Look whether a LAN host has begun this flow, and by which port of the WAN address it leaves.
    FindFlow {
        /// The request that waits for it.
        request: RequestId,
        /// TCP or UDP.
        protocol: Protocol,
        /// The host and its port.
        internal: SocketAddrV4,
        /// Whom it goes to.
        remote: SocketAddrV4,
    },
    /// Change the router's own NAT.
    Nat {
        /// To be named in the outcome.
        ticket: NatTicket,
        /// The change.
        change: NatChange,
    },
    /// Something about the socket towards the provider's IPv6 firewall.
    FirewallUplink(UplinkEffect),
    /// Change this router's own IPv6 firewall.
    Firewall {
        /// To be named in the outcome, an [`Event::Nat`].
        ticket: NatTicket,
        /// The change.
        change: FirewallChange,
    },
    /// Look this up about a pinhole.
    ReadPinhole {
        /// The request that waits for it.
        request: RequestId,
        /// What.
        what: PinholeReading,
    },
    /// Store this before any later effect that is seen outside this router is carried out: an answer that follows counts
    /// on it. When that fails, whoever would hear of success by a later effect of the same turn hears 501 instead, and
    /// [`Event::StoreFailed`] comes next.
    Store(Record),
    /// Tell who follows the mappings: once for each change, at the end of the turn that brought it.
    Changed(Change),
    /// Tell the person who runs the router.
    Notice(Notice),
    /// Everything is taken back: the caller may end.
    Stopped,
}

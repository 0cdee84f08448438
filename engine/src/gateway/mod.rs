//! The interworking function itself: events in, effects out. It is the only module that knows all the others.
//!
//! One turn is one [`Gateway::handle`], then [`Gateway::poll_effect`] until nothing is left, then sleep until
//! [`Gateway::next_timeout`] or the next event. It never blocks, sleeps, sends, reads a clock or draws randomness:
//! all of that is its caller's.

mod admission;
mod changes;
mod control;
mod events;
mod external;
mod held;
mod isp_router;
mod link;
mod mappings;
mod names;
mod own_nat;
mod pending;
mod refusals;
mod restore;
mod servers;
mod settings;
mod specific;
mod unreachable;
mod waiting;
mod ways;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use wire::description::Uuid;
use wire::error::UpnpError;
use wire::pcp::Protocol;
use wire::services::{Face, Service};
use wire::soap;

use crate::device::Devices;
use crate::entropy::Entropy;
use crate::gena::{Delivery, Notification, SubscribeError, Subscriptions};
use crate::journal::{Record, StoredMapping, StoredNonce};
use crate::nat::{NatChange, NatFailure, NatPorts, NatRule};
use crate::notice::{Cause, Notice};
use crate::policy::InterfaceAddress;
use crate::ssdp::SsdpServer;
use crate::status::{MappingStatus, Status};
use crate::table::{Key, Mapping, MappingTable};
use crate::time::{Duration, Instant, Timers};
use crate::uplink::{Filtered, FlowId, HttpId, HttpOutcome, HttpRequest, Uplink};

pub use changes::{Change, What};
pub use names::LookupId;
pub use settings::{AddPortMapping, Config, GetSpecific, NatMode, WhenNoneFound, WhenUnreachable};
pub use ways::{Way, preferred};

use control::Counting;
use mappings::DeleteJob;
use own_nat::NatPurpose;
use pending::Pending;
use waiting::Waiter;

/// Handle of a control request that waits for its answer; the caller numbers them.
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
    /// The PCP servers that DHCP offered on it (RFC 7291), in the order in which they are to be tried: DHCPv6's, then
    /// DHCPv4's. Each is one server by its addresses, at least one, of either version whichever DHCP it was.
    pub offered: Vec<Vec<IpAddr>>,
    /// The servers that somebody has chosen for it, in the place of [`Config::servers`].
    pub servers: Option<Vec<SocketAddr>>,
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
    /// Which of the two root devices it speaks to.
    pub face: Face,
    /// What it wants.
    pub request: soap::Request,
}

/// Everything that happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// [`Gateway::next_timeout`] has come.
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
        /// Its source.
        from: SocketAddr,
        /// Its content.
        bytes: &'a [u8],
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
    /// What became of an [`Effect::Nat`].
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
    /// This LAN host is gone, says who gave it its address: so are its mappings (RFC 6970 §5.10).
    Release(Ipv4Addr),
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
    /// Send this from SSDP's port by this interface.
    Ssdp {
        /// The kernel's number of the interface.
        interface: u32,
        /// A control point, or the multicast group.
        to: SocketAddr,
        /// The datagram.
        bytes: Vec<u8>,
    },
    /// Change the router's own NAT.
    Nat {
        /// To be named in the outcome.
        ticket: NatTicket,
        /// The change.
        change: NatChange,
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

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Alarm {
    /// A waiting control point has waited long enough.
    Patience(RequestId),
    /// An exchange that nobody waits for any more has gone on long enough.
    Background(FlowId),
    /// A wanted mapping that was refused for a short time may be asked for again.
    Again(FlowId),
    /// A control point is about to lose its patience; the router's own NAT may have to do.
    Local(FlowId),
    /// What is held for a control point has been held long enough.
    Held(FlowId),
    /// A lease is over.
    Lease(FlowId),
    /// The lifetime that a former server granted is over.
    Lifetime(FlowId),
    /// Ask the kernel again to remove what it would not.
    Remove,
    /// Try the uplink's socket again.
    Uplink,
    /// Look at other servers.
    Scout,
    /// Nobody has been found.
    Alone,
    /// Ask again for the mapping that tells the external address.
    Probe,
    /// Stop waiting for the last deletes.
    Stop,
}

/// More than one gateway numbers in its life; no number is too long for JSON, with a thousand of them.
const FLOWS_EACH: u64 = 1 << 42;

/// See the module's description.
pub struct Gateway {
    config: Config,
    entropy: Box<dyn Entropy>,
    devices: Devices,
    lan: Vec<LanInterface>,
    wan: Wan,
    servers: servers::Servers,
    uplink: Option<Box<dyn Uplink>>,
    /// The socket of the uplink is open.
    uplink_open: bool,
    /// The WAN interface that [`Self::uplink`] was made for.
    uplink_on: String,
    isp_router: isp_router::IspRouter,
    external: Option<Ipv4Addr>,
    /// The last one that was known.
    told_external: Option<Ipv4Addr>,
    /// The one that the last [`Change`] told.
    changed_external: Option<Ipv4Addr>,
    connected_since: Option<Instant>,
    probe: external::Probe,
    table: MappingTable,
    pending: BTreeMap<FlowId, Pending>,
    /// Flows that are only kept until their delete is confirmed.
    strays: BTreeSet<FlowId>,
    /// What was stored and the PCP client has not been told yet.
    restored: restore::Restored,
    /// Why nothing can be stored at the moment.
    store_error: Option<String>,
    refusals: refusals::Refusals,
    held: held::HeldMappings,
    probe_limits: specific::ProbeLimits,
    lookups: names::Lookups,
    waiting: BTreeMap<RequestId, Waiter>,
    deletes: BTreeMap<RequestId, DeleteJob>,
    counting: BTreeMap<RequestId, Counting>,
    nat_ports: NatPorts,
    nat_tickets: BTreeMap<NatTicket, NatPurpose>,
    /// What has come to stand in the last turn.
    stood: Vec<FlowId>,
    /// Rules that the kernel would not remove.
    unremoved: BTreeMap<(Protocol, u16), NatRule>,
    /// Those that another one is to replace.
    displaced: BTreeMap<NatTicket, NatRule>,
    /// Rules that are on their way to replace those of mappings.
    repointing: BTreeMap<FlowId, NatRule>,
    system_update_id: u32,
    next_flow: u64,
    next_ticket: u64,
    stopping: bool,
    stopped: bool,
    /// [`Effect::Stopped`] is out.
    said_stopped: bool,
    /// The gateway stops then, whatever is unconfirmed.
    stop_by: Instant,
    /// What the end gives back.
    given_back: BTreeMap<FlowId, Key>,
    ssdp: SsdpServer,
    /// Another gateway of the same device is found by SSDP.
    beside: bool,
    subscriptions: Subscriptions,
    /// What subscribers were told, or are about to be.
    evented: events::Evented,
    timers: Timers<Alarm>,
    effects: VecDeque<Effect>,
}

impl Gateway {
    /// A gateway that knows no interface yet: tell it by [`Event::Lan`] and [`Event::Wan`].
    pub fn new(config: Config, entropy: Box<dyn Entropy>) -> Self {
        let devices = Devices::new(&config.device);
        let ssdp = SsdpServer::new(&devices, &config.device);
        let mut new = Self {
            config,
            entropy,
            devices,
            lan: Vec::new(),
            wan: Wan::default(),
            servers: servers::Servers::default(),
            uplink: None,
            uplink_open: false,
            uplink_on: String::new(),
            isp_router: isp_router::IspRouter::default(),
            external: None,
            told_external: None,
            changed_external: None,
            connected_since: None,
            probe: external::Probe::default(),
            table: MappingTable::default(),
            pending: BTreeMap::new(),
            strays: BTreeSet::new(),
            restored: restore::Restored::default(),
            store_error: None,
            refusals: refusals::Refusals::default(),
            held: held::HeldMappings::default(),
            probe_limits: specific::ProbeLimits::default(),
            lookups: names::Lookups::default(),
            waiting: BTreeMap::new(),
            deletes: BTreeMap::new(),
            counting: BTreeMap::new(),
            nat_ports: NatPorts::default(),
            nat_tickets: BTreeMap::new(),
            stood: Vec::new(),
            unremoved: BTreeMap::new(),
            displaced: BTreeMap::new(),
            repointing: BTreeMap::new(),
            system_update_id: 0,
            next_flow: 0,
            next_ticket: 0,
            stopping: false,
            stopped: false,
            said_stopped: false,
            stop_by: Instant::default(),
            given_back: BTreeMap::new(),
            ssdp,
            beside: false,
            subscriptions: Subscriptions::default(),
            evented: events::Evented::default(),
            timers: Timers::default(),
            effects: VecDeque::new(),
        };
        new.list_servers();
        new
    }

    /// The same as the `place`-th of several behind one device, whose first one is found: it says nothing by SSDP, and its flows are
    /// numbered apart from those of all others.
    #[must_use]
    pub(crate) fn beside(self, place: usize) -> Self {
        Self { beside: place > 0, next_flow: FLOWS_EACH.saturating_mul(place as u64), ..self }
    }

    /// What the HTTP server serves.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Takes in one event. All effects of the last one have been polled.
    pub fn handle(&mut self, now: Instant, event: Event<'_>) {
        debug_assert!(self.effects.is_empty(), "a turn ends when its effects are drained");
        if self.said_stopped {
            return;
        }
        let stood = std::mem::take(&mut self.stood);
        let began = if matches!(event, Event::Restore { .. }) { What::Present } else { What::Began };
        match event {
            Event::Timeout => self.on_timeout(now),
            Event::Lan(lan) => {
                self.lan = lan;
                if self.ssdp.set_interfaces(now, &self.lan, &mut *self.entropy) {
                    self.subscriptions.clear(); // a new BOOTID says so (E-9)
                }
            }
            Event::Restore { mappings, probe, filtered } => self.on_restore(now, mappings, probe, filtered),
            Event::StoreFailed(error) => self.on_store_failed(now, error, stood),
            Event::StoreWorks => self.on_store_works(),
            Event::Wan(wan) => self.on_wan(now, wan),
            Event::Control(request) => self.on_control(now, request),
            Event::Ssdp { interface, from, bytes } => {
                self.ssdp.handle_datagram(now, interface, from, bytes, &mut *self.entropy);
            }
            Event::UplinkOpened { server, source } => self.on_uplink_opened(now, server, source),
            Event::UplinkFailed { server, error } => self.on_uplink_failed(now, server, error),
            Event::Uplink { from, bytes } => self.on_uplink_datagram(now, from, bytes, false),
            Event::UplinkUnreachable(server) => self.on_unreachable(now, server),
            Event::Scouted { from, bytes } => self.on_scouted(now, from, bytes),
            Event::Announcement { from, bytes } => self.on_uplink_datagram(now, from, bytes, true),
            Event::SearchAnswer { from, bytes } => self.on_search_answer(from, bytes),
            Event::Http { id, outcome } => self.on_http(now, id, &outcome),
            Event::Nat { ticket, outcome } => self.on_nat(now, ticket, outcome),
            Event::Counters { request, counters } => self.on_counters(request, counters),
            Event::Resolved { lookup, addresses } => self.on_resolved(now, lookup, &addresses),
            Event::Subscribe { request, from, of, subscribe } => {
                self.on_subscribe(now, request, from, of, subscribe);
            }
            Event::Unsubscribe { request, from, service, sid } => {
                self.on_unsubscribe(request, from, service, sid);
            }
            Event::Delivered { sid, delivery } => self.subscriptions.delivered(now, sid, delivery),
            Event::Release(host) => self.on_release(now, host, Cause::Released),
            Event::Rebound(hosts) => {
                for host in hosts {
                    self.on_release(now, host, Cause::Rebound);
                    self.subscriptions.forget(host.into());
                }
            }
            Event::Reconfigure(config) => self.on_reconfigure(now, *config),
            Event::Stop => self.on_stop(now),
        }
        self.drain_uplink(now);
        while self.tend_probe(now) || self.tend_isp_router(now) {
            self.drain_uplink(now);
        }
        self.tell_subscribers(now);
        self.tell_changes(now, began);
        while let Some((interface, to, bytes)) = self.ssdp.poll_transmit() {
            if !self.beside {
                self.effects.push_back(Effect::Ssdp { interface, to, bytes });
            }
        }
        // The caller may end at this: it is the last effect of its turn, and of all.
        if self.stopped && !self.said_stopped {
            self.said_stopped = true;
            self.effects.push_back(Effect::Stopped);
        }
    }

    /// The next thing to do; call until `None`.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Event::Timeout`] is due; `None` when nothing is to be waited for.
    pub fn next_timeout(&self) -> Option<Instant> {
        if self.said_stopped {
            return None;
        }
        let uplink = self.uplink.as_ref().and_then(|client| client.next_timeout());
        let others =
            [self.ssdp.next_timeout(), self.subscriptions.next_timeout(), self.isp_router.next_timeout()];
        others.into_iter().chain([self.timers.next(), uplink]).flatten().min()
    }

    fn on_timeout(&mut self, now: Instant) {
        while let Some(alarm) = self.timers.pop_due(now) {
            match alarm {
                Alarm::Patience(request) => self.on_patience_over(now, request),
                Alarm::Background(flow) => self.on_background_over(now, flow),
                Alarm::Again(flow) => self.on_pause_over(now, flow),
                Alarm::Local(flow) => self.map_locally(flow),
                Alarm::Held(flow) => self.release(now, flow),
                Alarm::Lease(flow) => self.on_lease_over(now, flow),
                Alarm::Lifetime(flow) => self.on_lifetime_over(now, flow),
                Alarm::Remove => self.remove_again(),
                Alarm::Uplink => self.open_uplink(now),
                Alarm::Scout => self.scout(now),
                Alarm::Alone => self.go_alone(now),
                Alarm::Probe => self.probe_without_pause(),
                Alarm::Stop => self.finish_stop(),
            }
        }
        self.ssdp.on_timeout(now, &mut *self.entropy);
        self.subscriptions.on_timeout(now);
        self.input(now, crate::uplink::Input::Timeout);
    }

    /// The gateway at this moment.
    pub fn status(&self, now: Instant) -> Status {
        // Who was alone at an address that is gone has nobody, and is nobody's.
        let uplink = self.uplink.as_ref().filter(|_| self.uplink_open || !self.is_alone());
        Status {
            own_nat: self.config.nat == NatMode::Own,
            lan: self
                .lan
                .iter()
                .map(|lan| {
                    let v4 = lan.addresses.iter().filter_map(|a| match a.addr {
                        IpAddr::V4(v4) => Some(v4),
                        IpAddr::V6(_) => None,
                    });
                    (lan.name.clone(), v4.collect())
                })
                .collect(),
            wan: self.wan.name.clone(),
            wan_addresses: self.wan.addresses.clone(),
            offered: self.wan.offered.clone(),
            server: if self.asks_isp_router() {
                uplink.map(|client| client.asked_at())
            } else {
                self.server()
            },
            servers: self.servers.all().collect(),
            protocol: uplink.map(|client| client.protocol()),
            answering: uplink.and_then(|client| client.is_answering()),
            last_heard: uplink.and_then(|client| client.last_heard()).map(|then| now - then),
            epoch: uplink.and_then(|client| client.server_epoch()),
            external: self.external,
            nat_above: self.isp_router.nat_above(),
            uptime: self.is_connected().then_some(self.connected_since).flatten().map(|then| now - then),
            mappings: self.table.len(),
            held: self.held.len(),
            store_error: self.store_error.clone(),
            ignored_upstream: uplink.map_or(0, |client| client.ignored()) + self.isp_router.ignored(),
            ignored_ssdp: self.ssdp.ignored(),
            searches: self.ssdp.heard(),
            system_update_id: self.system_update_id,
        }
    }

    /// All mappings at this moment, by protocol and external port.
    pub fn mappings(&self, now: Instant) -> impl Iterator<Item = MappingStatus> {
        self.table.iter().map(move |mapping: &Mapping| mapping.status(now))
    }

    /// The LAN hosts that have something here: a mapping, one that is being made, one that is held for them, a subscription.
    pub fn clients(&self) -> BTreeSet<Ipv4Addr> {
        let mapped = self.table.iter().map(|mapping| *mapping.internal.ip());
        let wanted = self.pending.values().map(|pending| *pending.request.internal.ip());
        let subscribed = self.subscriptions.hosts().filter_map(mappings::v4);
        mapped.chain(wanted).chain(self.held.hosts()).chain(subscribed).collect()
    }

    /// How many ports of the router's own NAT are taken; for simulations, which see that none is lost.
    pub fn nat_ports_in_use(&self) -> usize {
        self.nat_ports.len()
    }

    /// Whether nothing is on its way: no request, no exchange, no change of the NAT. For simulations, which see that nothing is
    /// forgotten half-way.
    pub fn is_idle(&self) -> bool {
        let half_way = [self.pending.len(), self.strays.len(), self.waiting.len(), self.deletes.len()];
        let outcomes =
            [self.counting.len(), self.nat_tickets.len(), self.repointing.len() + self.unremoved.len()];
        half_way == [0; 4] && outcomes == [0; 3] && self.held.len() + self.lookups.len() == 0
    }

    fn notice(&mut self, notice: Notice) {
        self.effects.push_back(Effect::Notice(notice));
    }

    fn lan_addresses(&self) -> Vec<InterfaceAddress> {
        self.lan.iter().flat_map(|lan| lan.addresses.iter().copied()).collect()
    }
}

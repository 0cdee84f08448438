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
mod interface;
mod isp_router;
mod lan;
mod link;
mod mappings;
mod names;
mod own_nat;
mod pending;
mod pinholes;
mod policing;
mod refusals;
mod restore;
mod servers;
mod settings;
mod specific;
mod strangers;
mod unreachable;
mod waiting;
mod ways;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use wire::error::UpnpError;
use wire::pcp::Protocol;

use crate::device::Devices;
use crate::entropy::Entropy;
use crate::gena::{SubscribeError, Subscriber, Subscriptions};
use crate::journal::StoredNonce;
use crate::nat::{NatPorts, NatRule};
use crate::notice::{Cause, Notice, PinholeEnd};
use crate::policy::InterfaceAddress;
use crate::ssdp::SsdpServer;
use crate::status::{MappingStatus, Status};
use crate::table::{Key, Mapping, MappingTable};
use crate::time::{Duration, Instant, Timers};
use crate::uplink::{FlowId, Input, Uplink, Want};

pub use changes::{Change, What};
pub use interface::{ControlRequest, Counters, Effect, Event, LanInterface, NatTicket, RequestId, Wan};
pub use lan::{LanArrival, LanCounters};
pub use names::LookupId;
pub use pinholes::{PinholeReading, UplinkEffect, UplinkEvent};
pub use settings::{AddPortMapping, Config, GetSpecific, NatMode, WhenNoneFound, WhenUnreachable};
pub use ways::{Way, preferred};

use control::Counting;
use mappings::DeleteJob;
use own_nat::NatPurpose;
use pending::Pending;
use waiting::Waiter;

/// Who looks so much too late has not been running: the machine slept.
const SLEPT: Duration = Duration::from_secs(10);

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
    /// A pinhole's lease is over.
    Pinhole(u16),
    /// The provider's firewall has not answered about a pinhole; this router's may have to do.
    PinholeLocal(u16),
    /// An exchange about a pinhole that nobody waits for any more has gone on long enough.
    PinholeBackground(u16),
    /// What has come to stand is stored: what it replaces may go.
    PinholeStood,
    /// The LAN's addresses have been others for a while.
    Strangers,
    /// Ask the kernel again to close what it would not.
    Unclosed,
    /// Look for the provider's IPv6 firewall.
    Firewall,
    /// Look no longer.
    FirewallLooked,
    /// Wait for its last answers no longer.
    FirewallLeft,
    /// Ask it again for what it does not have.
    Carry,
    /// Stop waiting for the last deletes.
    Stop,
}

/// More than one gateway numbers in its life; no number is too long for JSON, with a thousand of them.
const FLOWS_EACH: u64 = 1 << 42;

/// See the module's description.
pub struct Gateway {
    config: Config,
    entropy: Box<dyn Entropy>,
    devices: Rc<Devices>,
    lan: Vec<LanInterface>,
    wan: Wan,
    servers: servers::Servers,
    uplink: Option<Box<dyn Uplink>>,
    /// The socket of the uplink is open.
    uplink_open: bool,
    /// The WAN interface that [`Self::uplink`] was made for, and whether that stands in for another one.
    uplink_on: String,
    on_spare: bool,
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
    /// By what the servers of other WAN interfaces know our mappings.
    nonces_elsewhere: Vec<(Want, StoredNonce)>,
    /// Why nothing can be stored at the moment.
    store_error: Option<String>,
    refusals: refusals::Refusals,
    held: held::HeldMappings,
    probe_limits: specific::ProbeLimits,
    lan_server: lan::LanServer,
    pinholes: pinholes::Pinholes,
    policing: policing::Policing,
    strangers: strangers::Strangers,
    lookups: names::Lookups,
    waiting: BTreeMap<RequestId, Waiter>,
    deletes: BTreeMap<RequestId, DeleteJob>,
    counting: BTreeMap<RequestId, Counting>,
    nat_ports: NatPorts,
    nat_tickets: BTreeMap<NatTicket, NatPurpose>,
    /// What has come to stand in the last turn.
    stood: Vec<FlowId>,
    /// Rules that the kernel would not remove.
    unremoved: BTreeSet<NatRule>,
    /// By which external address and port LAN hosts come to the mapping at a port of the WAN address, as the kernel was told.
    hairpins: BTreeMap<(Protocol, u16), SocketAddrV4>,
    /// Mappings of which the kernel may not know that.
    unmoved: BTreeSet<FlowId>,
    /// Those that another one is to replace.
    displaced: BTreeMap<NatTicket, NatRule>,
    /// Rules that are on their way to replace those of mappings, the last one of each.
    repointing: BTreeMap<FlowId, (NatTicket, NatRule)>,
    system_update_id: u32,
    next_flow: u64,
    /// How many mappings were ever made.
    made: u64,
    next_ticket: u64,
    stopping: bool,
    stopped: bool,
    /// When an event was last taken in.
    last_turn: Instant,
    /// When it last turned out that the machine had slept.
    woke: Option<Instant>,
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
        let devices = Rc::new(Devices::new(&config.device));
        Self::with_devices(config, devices, entropy)
    }

    /// The same, where what [`Config::device`] makes is there already: several gateways behind one device share it.
    pub fn with_devices(config: Config, devices: Rc<Devices>, entropy: Box<dyn Entropy>) -> Self {
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
            on_spare: false,
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
            nonces_elsewhere: Vec::new(),
            store_error: None,
            refusals: refusals::Refusals::default(),
            held: held::HeldMappings::default(),
            probe_limits: specific::ProbeLimits::default(),
            lan_server: lan::LanServer::default(),
            pinholes: pinholes::Pinholes::default(),
            policing: policing::Policing::default(),
            strangers: strangers::Strangers::default(),
            lookups: names::Lookups::default(),
            waiting: BTreeMap::new(),
            deletes: BTreeMap::new(),
            counting: BTreeMap::new(),
            nat_ports: NatPorts::default(),
            nat_tickets: BTreeMap::new(),
            stood: Vec::new(),
            unremoved: BTreeSet::new(),
            hairpins: BTreeMap::new(),
            unmoved: BTreeSet::new(),
            displaced: BTreeMap::new(),
            repointing: BTreeMap::new(),
            system_update_id: 0,
            next_flow: 0,
            made: 0,
            next_ticket: 0,
            stopping: false,
            stopped: false,
            last_turn: Instant::default(),
            woke: None,
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

    /// There are others behind the same device.
    pub(crate) fn is_not_alone(&mut self) {
        self.lan_server.is_not_alone();
    }

    /// What the HTTP server serves.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Takes in one event. All effects of the last one have been polled.
    pub fn handle(&mut self, now: Instant, event: Event<'_>) {
        debug_assert!(self.effects.is_empty(), "a turn ends when its effects are drained");
        if self.said_stopped {
            return self.refuse_late(&event);
        }
        self.lan_server.begin_turn(now);
        let (stood, pinholes_stood) = (std::mem::take(&mut self.stood), self.pinholes.begin_turn());
        let began = if matches!(event, Event::Restore { .. }) { What::Present } else { What::Began };
        match event {
            Event::Timeout => self.on_timeout(now),
            Event::Lan(lan) => {
                self.on_lan(now, lan);
                if self.ssdp.set_interfaces(now, &self.lan, &mut *self.entropy) {
                    self.subscriptions.clear(); // a new BOOTID says so (E-9)
                }
            }
            Event::Restore { mappings, probe, filtered } => {
                self.on_restore(now, mappings, probe, filtered);
                self.let_go_switched_off(now);
                self.give_back_denied(now);
            }
            Event::RestorePinholes(pinholes) => {
                self.on_restore_pinholes(now, pinholes);
                self.let_go_switched_off(now);
                self.give_back_denied(now);
            }
            Event::RestoreConsents(decided) => self.on_restore_consents(decided),
            Event::Consent { device, verb, addresses } => self.on_consent(now, device, verb, &addresses),
            Event::StoreFailed(error) => {
                self.on_store_failed(now, error, stood);
                self.close_unstored(now, &pinholes_stood);
            }
            Event::StoreWorks => self.on_store_works(),
            Event::Wan(wan) => {
                self.on_wan(now, wan);
                self.find_firewall(now);
            }
            Event::Control(request) => self.on_control(now, request),
            Event::Ssdp { interface, local, from, bytes } => {
                self.ssdp.handle_datagram(now, (interface, local), from, bytes, &mut *self.entropy);
            }
            Event::FlowFound { request, port } => self.on_flow_found(now, request, port),
            Event::Lan5351 { arrival, bytes } => self.on_lan_datagram(now, arrival, bytes),
            Event::Lan5351Elsewhere { arrival, bytes } => self.refuse_elsewhere(now, arrival, bytes),
            Event::UplinkOpened { server, source } => self.on_uplink_opened(now, server, source),
            Event::UplinkFailed { server, error } => self.on_uplink_failed(now, server, error),
            Event::Uplink { from, bytes } => self.on_uplink_datagram(now, from, bytes, false),
            Event::UplinkUnreachable(server) => self.on_unreachable(now, server),
            Event::Scouted { from, bytes } => {
                self.on_scouted(now, from, bytes);
                self.on_firewall_scouted(now, from, bytes);
            }
            Event::Announcement { from, bytes } => {
                self.on_uplink_datagram(now, from, bytes, true);
                self.firewall_input(now, Input::Multicast(from, bytes));
            }
            Event::FirewallUplink(event) => self.on_firewall_uplink(now, event),
            Event::PinholeRead { request, value } => self.on_pinhole_read(request, value),
            Event::SearchAnswer { from, bytes } => self.on_search_answer(from, bytes),
            Event::Http { id, outcome } => self.on_http(now, id, &outcome),
            Event::Nat { ticket, outcome } => self.on_nat(now, ticket, outcome),
            Event::Counters { request, counters } => self.on_counters(request, counters),
            Event::Resolved { lookup, addresses } => self.on_resolved(now, lookup, &addresses),
            Event::Subscribe { request, from, also, interface, of, subscribe } => {
                let subscriber = Subscriber { who: self.requester(from, &also), interface };
                self.on_subscribe(now, request, subscriber, of, subscribe);
            }
            Event::Unsubscribe { request, from, also, service, sid } => {
                let who = self.requester(from, &also);
                self.on_unsubscribe(request, &who, service, sid);
            }
            Event::Delivered { sid, delivery } => self.subscriptions.delivered(now, sid, delivery),
            Event::Release(IpAddr::V4(host)) => self.on_release(now, host, Cause::Released),
            Event::Release(IpAddr::V6(host)) => self.release_pinholes(now, host, PinholeEnd::Released),
            Event::Rebound(hosts) => {
                for host in hosts {
                    self.on_release(now, host, Cause::Rebound);
                    self.subscriptions.forget(host);
                }
            }
            Event::Reconfigure(config) => {
                self.on_reconfigure(now, *config);
                self.policing.on_reconfigure(&self.config.policy);
                self.strangers.on_reconfigure();
                if !self.allows_pinholes() {
                    self.close_all_pinholes(now, PinholeEnd::SwitchedOff);
                }
                self.let_go_switched_off(now);
                self.give_back_denied(now);
                self.policing.forget_known();
                self.find_firewall(now);
            }
            Event::Stop => self.on_stop(now),
        }
        self.last_turn = now;
        self.drain_uplink(now);
        while self.tend_probe(now) || self.tend_isp_router(now) {
            self.drain_uplink(now);
        }
        while self.resume_deferred(now) {
            self.drain_uplink(now);
        }
        self.drain_firewall(now);
        self.tell_subscribers(now);
        self.tell_changes(now, began);
        self.tend_lan();
        while let Some(outgoing) = self.ssdp.poll_transmit() {
            if !self.beside {
                self.effects.push_back(Effect::Ssdp(outgoing));
            }
        }
        // The caller may end at this: it is the last effect of its turn, and of all.
        if self.stopped && !self.said_stopped {
            self.said_stopped = true;
            self.effects.push_back(Effect::Stopped);
        }
    }

    /// Others may not have stopped yet, so that somebody can still ask.
    fn refuse_late(&mut self, event: &Event<'_>) {
        match *event {
            Event::Control(ControlRequest { id: request, .. }) => {
                self.effects.push_back(Effect::Reply { request, answer: Err(UpnpError::ACTION_FAILED) });
            }
            Event::Subscribe { request, .. } | Event::Unsubscribe { request, .. } => {
                let answer = Err(SubscribeError::PreconditionFailed);
                self.effects.push_back(Effect::Subscribed { request, answer });
            }
            _ => {}
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
        let others = [
            self.ssdp.next_timeout(),
            self.subscriptions.next_timeout(),
            self.isp_router.next_timeout(),
            self.lan_server.next_timeout(),
            self.pinholes.next_timeout(),
        ];
        others.into_iter().chain([self.timers.next(), uplink]).flatten().min()
    }

    fn on_timeout(&mut self, now: Instant) {
        // What was due when it was last this gateway's turn would have been done then.
        let overdue = self.next_timeout().map_or(Duration::ZERO, |due| now - due.max(self.last_turn));
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
                Alarm::Pinhole(pinhole) => self.on_pinhole_lease_over(now, pinhole),
                Alarm::PinholeLocal(pinhole) => self.open_locally(pinhole),
                Alarm::PinholeBackground(pinhole) => self.on_pinhole_background_over(now, pinhole),
                Alarm::PinholeStood => self.replace_by_what_stands(now),
                Alarm::Strangers => self.end_strangers(now),
                Alarm::Unclosed => self.close_again(),
                Alarm::Firewall => self.look_for_firewall(now),
                Alarm::FirewallLooked => self.on_firewall_looked(now),
                Alarm::FirewallLeft => self.find_firewall(now),
                Alarm::Carry => self.carry_all(now),
                Alarm::Stop => self.finish_stop(),
            }
        }
        self.ssdp.on_timeout(now, &mut *self.entropy);
        self.subscriptions.on_timeout(now);
        // After the leases: what has ended is not asked for again.
        if overdue >= SLEPT {
            self.woke = Some(now);
            self.notice(Notice::Woke(overdue, self.table.len()));
            // Without a socket there is nothing to ask with; what opens the next one asks for everything.
            if self.uplink_open {
                self.input(now, Input::Woke);
            }
            self.firewall_input(now, Input::Woke);
        }
        self.input(now, Input::Timeout);
        self.firewall_input(now, Input::Timeout);
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
            lan_served: self.lan_server.counters(),
            pinholes: self.pinhole_count(),
            firewall: self.firewall_server(),
            policy: self.policy_status(now),
            system_update_id: self.system_update_id,
        }
    }

    /// All mappings at this moment, by protocol and external port.
    pub fn mappings(&self, now: Instant) -> impl Iterator<Item = MappingStatus> {
        self.table.iter().map(move |mapping: &Mapping| mapping.status(now))
    }

    /// The LAN hosts that have something here: a mapping, one that is being made, one that is held for them, a flow, a subscription.
    pub fn clients(&self) -> BTreeSet<Ipv4Addr> {
        let mapped = self.table.iter().map(|mapping| *mapping.internal.ip());
        let wanted = self.pending.values().map(|pending| *pending.request.internal.ip());
        let subscribed = self.subscriptions.hosts();
        let known = self.held.hosts().chain(self.lan_server.hosts());
        mapped.chain(wanted).chain(known).chain(subscribed).collect()
    }

    /// Whether it is here that this subscription is one.
    pub(crate) fn has_subscription(&self, sid: wire::description::Uuid) -> bool {
        self.subscriptions.contains(sid)
    }

    /// How many ports of the router's own NAT are taken; for simulations, which see that none is lost.
    pub fn nat_ports_in_use(&self) -> usize {
        self.nat_ports.len()
    }

    /// Whether nothing is on its way: no request, no exchange, no change of the NAT. For simulations, which see that nothing is
    /// forgotten half-way.
    pub fn is_idle(&self) -> bool {
        let half_way = [self.pending.len(), self.strays.len(), self.waiting.len(), self.deletes.len()];
        let rules = self.repointing.len() + self.unremoved.len() + self.unmoved.len();
        let outcomes = [self.counting.len(), self.nat_tickets.len(), rules];
        half_way == [0; 4]
            && outcomes == [0; 3]
            && self.pinholes.is_idle()
            && self.held.len() + self.lookups.len() == 0
    }

    fn notice(&mut self, notice: Notice) {
        self.effects.push_back(Effect::Notice(notice));
    }

    fn lan_addresses(&self) -> Vec<InterfaceAddress> {
        self.lan.iter().flat_map(|lan| lan.addresses.iter().copied()).collect()
    }
}

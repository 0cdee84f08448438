//! PCP and NAT-PMP on the LAN side: hosts that do not speak UPnP get their ports through the same door, from the same table
//! (RFC 6887, RFC 6886, and RFC 7648 for what stands between them and the provider's server).
//!
//! The epoch is this server's own, never the provider's: what the provider forgets, the gateway asks for again, and clients need not
//! know. Nonces are the clients', and stay here. What a client is told lasts no longer than what the provider has granted.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use wire::natpmp;
use wire::pcp::{self, CLIENT_PORT, Protocol, ResultCode, SERVER_PORT};

use super::policing::CountedAs;
use super::waiting::{BACKGROUND, Form, Waiter};
use super::{Alarm, Effect, Gateway, RequestId};
use crate::announcements::Announcements;
use crate::claims::{Asker, Claims};
use crate::igd::Asked;
use crate::limits::{Limits, Rate};
use crate::policy::Device;
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Key, Mapping};
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Input};

mod deferred;
mod nat_pmp;
mod pcp_server;
pub(super) mod peer;
pub(super) mod pinholes;
mod switched_off;
mod third_party;
mod unsolicited;

use nat_pmp::NatPmpQuestion;
use pcp_server::MapQuestion;
use peer::{PeerQuestion, Peers};
use unsolicited::Update;

/// So many datagrams of one host are looked at: what they cost without an exchange is little, and no reason for a host to be unheard
/// (`policy.exchanges` has those with one).
const RATE: Rate = Rate { per_second: 100, burst: 500 };
/// Our numbers for requests; the caller's are below.
const FIRST_REQUEST: u64 = 1 << 63;
/// How long an error lasts that passes by itself, and one that does not, in seconds (RFC 6887 §7.4).
const SHORT: u32 = 30;
const LONG: u32 = 30 * 60;
/// No mapping is promised for longer, nor a shorter one made (RFC 6887 §15), in seconds.
const LONGEST: u32 = 24 * 3600;
const SHORTEST: u32 = 120;
/// The provider is not asked again about a mapping that it has given so lately (security policy).
const MIN_GAP: Duration = Duration::from_secs(4);

/// Where a datagram came in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LanArrival {
    /// The kernel's number of the LAN interface.
    pub interface: u32,
    /// Our address that it was sent to; the answer comes from there.
    pub local: IpAddr,
    /// Its source.
    pub from: SocketAddr,
}

/// What has been served, since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LanCounters {
    /// PCP requests that were answered with success.
    pub pcp: u64,
    /// NAT-PMP requests that were answered with success.
    pub nat_pmp: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Datagrams without an answer: no requests, not from the LAN, too many.
    pub ignored: u64,
}

/// A request that waits for its answer.
#[derive(Debug)]
pub(super) struct Question {
    arrival: LanArrival,
    payload: Vec<u8>,
    what: What,
}

#[derive(Debug)]
enum What {
    Map(MapQuestion),
    Peer(PeerQuestion),
    NatPmp(NatPmpQuestion),
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct LanServer {
    next_request: u64,
    /// The time of this turn.
    now: Instant,
    /// When the epoch began.
    began: Instant,
    announcements: Announcements,
    /// What was last announced.
    announced: Option<Ipv4Addr>,
    /// There has been a LAN interface.
    is_up: bool,
    /// There are other gateways of the same device, so that neither the epoch nor an external address is everybody's.
    not_alone: bool,
    limits: Limits<CountedAs>,
    counters: LanCounters,
    /// What is to let in another remote host, and whom it has let in.
    letting_in: BTreeMap<FlowId, Option<Ipv4Addr>>,
    /// Who waits for the provider to confirm a mapping that stands.
    confirming: BTreeMap<FlowId, Vec<RequestId>>,
    /// Requests about what another protocol is just asking for.
    deferred: BTreeMap<RequestId, (FlowId, IpAddr, MappingRequest)>,
    /// Where the PCP client of a mapping last asked from.
    asked_from: BTreeMap<FlowId, LanArrival>,
    updates: BTreeMap<FlowId, Update>,
    peers: Peers,
}

impl LanServer {
    pub(super) fn begin_turn(&mut self, now: Instant) {
        self.now = now;
    }

    pub(super) fn counters(&self) -> LanCounters {
        self.counters
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let update = self.updates.values().map(Update::due).min();
        [self.announcements.next(), update, self.peers.next_timeout()].into_iter().flatten().min()
    }

    /// Whose flows are known.
    pub(super) fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.peers.hosts()
    }

    pub(super) fn is_not_alone(&mut self) {
        self.not_alone = true;
    }

    /// Seconds since the epoch began.
    fn epoch(&self) -> u32 {
        u32::try_from((self.now - self.began).as_secs()).unwrap_or(u32::MAX)
    }

    fn begin_epoch(&mut self) {
        self.began = self.now;
    }
}

impl Gateway {
    /// A datagram to port 5351 was dropped unread.
    pub(crate) fn ignored_on_lan(&mut self) {
        self.lan_server.counters.ignored += 1;
    }

    /// A datagram came to port 5351 of one of our LAN addresses.
    pub(super) fn on_lan_datagram(&mut self, now: Instant, arrival: LanArrival, bytes: &[u8]) {
        let arrival = LanArrival { from: canonical(arrival.from), ..arrival };
        if !self.is_lan_request(now, &arrival, bytes) {
            self.lan_server.counters.ignored += 1;
            return;
        }
        let repeats = |waiter: &Waiter| match &waiter.form {
            Form::Lan(question) => (question.arrival, &question.payload[..]) == (arrival, bytes),
            Form::Upnp(_) => false,
        };
        if self.waiting.values().any(repeats) {
            return; // it is being worked on
        }
        self.hasten_probe(now);
        // NAT-PMP is of IPv4; over IPv6 it is another version of PCP, which nobody speaks (RFC 6887 §9).
        if bytes.first() == Some(&natpmp::VERSION) && self.config.nat_pmp && arrival.from.is_ipv4() {
            self.serve_nat_pmp(now, arrival, bytes);
        } else {
            self.serve_pcp(now, arrival, bytes);
        }
    }

    /// Where it comes from, whether it can be a request, and how many there are of it (RFC 6887 §8.2, security policy).
    fn is_lan_request(&mut self, now: Instant, arrival: &LanArrival, bytes: &[u8]) -> bool {
        let from = arrival.from.ip();
        let counted_as = match from {
            IpAddr::V4(_) => CountedAs::Device(Device::Address(from)),
            IpAddr::V6(_) => self.counted_as(&self.requester(from, &[])),
        };
        let Some(lan) = self.lan.iter().find(|lan| lan.index == arrival.interface) else { return false };
        let own = self.lan.iter().flat_map(|lan| &lan.addresses).any(|own| own.addr == from);
        let on_link = lan.addresses.iter().any(|link| match from {
            IpAddr::V4(host) => link.contains(from) && !link.is_edge(host),
            IpAddr::V6(_) => link.contains(from),
        });
        let here = lan.addresses.iter().any(|own| own.addr == arrival.local);
        let may_be_own = own && !self.config.policy.loopback_lan;
        let [_version, opcode, ..] = *bytes else { return false };
        (self.config.pcp || self.config.nat_pmp && from.is_ipv4())
            && !self.stopping
            && on_link
            && here
            && !may_be_own
            && !from.is_multicast()
            && opcode & 0x80 == 0
            && self.lan_server.limits.admit(now, RATE, counted_as)
    }

    /// It waits for its answer from now on.
    fn ask_for_lan(&mut self, now: Instant, arrival: LanArrival, payload: &[u8], what: What) -> RequestId {
        self.lan_server.next_request += 1;
        let id = RequestId(FIRST_REQUEST + self.lan_server.next_request);
        let question = Question { arrival, payload: payload.to_vec(), what };
        self.waiting.insert(id, Waiter { form: Form::Lan(Box::new(question)), asked: Asked::Add });
        // It asks again and again meanwhile, and wants nothing but the answer.
        self.timers.set(Alarm::Patience(id), now + BACKGROUND);
        id
    }

    fn send_to_lan(&mut self, arrival: &LanArrival, bytes: Vec<u8>) {
        let LanArrival { interface, local, from: to } = *arrival;
        self.effects.push_back(Effect::LanSend { interface, local, to, bytes });
    }

    /// The way of a request for a mapping, past what its protocol alone says.
    fn map_for_lan(&mut self, now: Instant, id: RequestId, from: IpAddr, request: MappingRequest) {
        let Some(request) = self.wait_for_pending(now, id, from, request) else { return };
        match self.mapping_for(now, &request) {
            Some(mapping) => self.renew_for_lan(now, id, from, &mapping, request),
            None => self.make_for_lan(now, id, from, request),
        }
    }

    /// There is none.
    fn make_for_lan(&mut self, now: Instant, id: RequestId, from: IpAddr, request: MappingRequest) {
        let who = self.host_of_request(&request, from);
        let key = request.external_port.map(|port| Key { protocol: request.protocol, external_port: port });
        // Also what policy leaves to nobody, and what PCP itself needs (RFC 6887 §11.3): there are others.
        let denied = self.wants_denied_port(&who, &request);
        let taken = denied.is_some()
            || key.is_some_and(|key| {
                self.table.find(key).is_some()
                    || key.protocol == Protocol::UDP
                        && [CLIENT_PORT, SERVER_PORT].contains(&key.external_port)
            });
        let only = self.find_own(&request).is_some();
        match (request.strict && taken) || only {
            true if request.strict && denied.is_some() => {
                if let Some(denied) = denied {
                    self.deny_mapping(now, &who, &request, denied);
                }
                self.refuse(id, Refusal::Conflict); // this port cannot be had: others may (RFC 6887 §13.2)
            }
            true => self.refuse_request(id, from, &request, Refusal::Conflict),
            // A wish that cannot be met is none.
            false if taken => {
                self.add(now, id, &who, MappingRequest { external_port: None, ..request });
            }
            false => self.add(now, id, &who, request),
        }
    }

    /// The mapping that serves a request: there is one for each internal port (RFC 6887 §11.3, N-5), whoever made it. What lets
    /// only one remote host in serves who asked for that.
    fn mapping_for(&self, now: Instant, request: &MappingRequest) -> Option<Mapping> {
        let all = || self.table.of_internal(request.protocol, request.internal);
        let own = all().find(|mapping| match request.by {
            Asker::Pcp(_) => mapping.claims.at(now).pcp.is_some(),
            Asker::NatPmp => mapping.claims.at(now).nat_pmp.is_some(),
            Asker::Igd | Asker::Peer(_) => false,
        });
        // Whom PEER alone has made it for may have it for everybody (§11.3: a MAP gets the place of what goes out), but for another place.
        let any = request.external_port.is_none();
        let outward = |mapping: &Mapping| {
            let wished = any || request.external_port == Some(mapping.external.port());
            wished && request.remote_peer.is_none() && mapping.claims.at(now).inward() == Claims::default()
        };
        let fits = |mapping: &&Mapping| mapping.remote_peer == request.remote_peer || outward(mapping);
        let wished = |mapping: &&Mapping| request.external_port == Some(mapping.external.port());
        own.or_else(|| all().filter(fits).find(wished)).or_else(|| all().find(fits)).cloned()
    }

    /// There is one: it lasts longer, if the provider has granted that or does now (RFC 7648 §3.2).
    fn renew_for_lan(
        &mut self,
        now: Instant,
        id: RequestId,
        from: IpAddr,
        mapping: &Mapping,
        request: MappingRequest,
    ) {
        if mapping.health == Health::Deleting {
            return self.defer(id, mapping.flow, from, request);
        }
        if self.repointing.contains_key(&mapping.flow) {
            return self.forget_question(id); // asked again, it is decided
        }
        // PEER's does not care who else may come in.
        let claims = if request.remote_peer.is_none() { mapping.claims.inward() } else { mapping.claims };
        let others = claims.has_others_than(request.by, now);
        if mapping.remote_peer != request.remote_peer && others {
            return self.refuse_request(id, from, &request, Refusal::OtherPeer);
        }
        let is_wanted = request.external_port == Some(mapping.external.port())
            && request.takes_address(*mapping.external.ip());
        if request.strict && !is_wanted {
            return self.refuse_request(id, from, &request, Refusal::Conflict);
        }
        let asked = request.lease.unwrap_or_default();
        let (key, flow) = (mapping.key(), mapping.flow);
        let left = mapping.lifetime_ends - now;
        let grant = self.uplink.as_ref().and_then(|client| client.grant(flow));
        let just_now = grant.is_some_and(|grant| now - grant.since < MIN_GAP);
        let is_as_asked = mapping.remote_peer == request.remote_peer
            && mapping.health == Health::Active
            && (left * 4 >= asked * 3 || just_now);
        // It may have it; what was promised is renewed by asking the provider, which counts.
        let who = self.host_of_request(&request, from);
        let denied = self.deny_renewal(now, &who, &request, mapping.external.port());
        if let Some(refusal) = denied {
            return self.refuse(id, refusal);
        }
        if !is_as_asked && !self.may_exchange(now, id, &who, &request) {
            return;
        }
        self.describe(id, key);
        self.claim(now, key, request.by, now + asked);
        if mapping.remote_peer != request.remote_peer {
            self.lan_server.confirming.entry(flow).or_default().push(id);
            self.lan_server.letting_in.insert(flow, mapping.remote_peer);
            return self.let_in(now, mapping, request.remote_peer);
        }
        if is_as_asked {
            return self.answer_added(id, mapping.external);
        }
        self.lan_server.confirming.entry(flow).or_default().push(id);
        self.input(now, if grant.is_some() { Input::Confirm(flow) } else { Input::Hurry(flow) });
    }

    /// The words of a PCP client about a mapping that stands: kept and repeated, unless a control point has said what it is.
    fn describe(&mut self, id: RequestId, key: Key) {
        let says_igd = self.table.find(key).is_some_and(|mapping| mapping.claims.igd.is_some());
        let Some(Waiter { form: Form::Lan(question), .. }) = self.waiting.get_mut(&id) else { return };
        let What::Map(map) = &mut question.what else { return };
        if says_igd {
            map.forget_description();
        } else if let Some(words) = map.description() {
            self.table.update(key, |mapping| mapping.description = words);
        }
    }

    /// `asker` counts on the mapping until then.
    fn claim(&mut self, now: Instant, key: Key, asker: Asker, ends: Instant) {
        self.table.update(key, |mapping| {
            mapping.claims = mapping.claims.at(now);
            mapping.claims.renew(asker, Some(ends));
            mapping.asked_at = now;
        });
        let Some(mapping) = self.table.find(key).cloned() else { return };
        self.set_lease_alarm(&mapping);
        self.input(now, Input::Extend(mapping.flow, self.terms(&mapping)));
        self.store(now, &mapping);
    }

    /// `asker` counts on it no more; it goes when nobody else does.
    pub(super) fn let_go(&mut self, now: Instant, id: RequestId, key: Key, asker: Asker) {
        let Some(mapping) = self.table.find(key) else { return self.answer(id, &[]) };
        if !mapping.claims.has_others_than(asker, now) {
            return self.delete_all(now, id, vec![key]);
        }
        self.give_up_claim(now, key, asker);
        self.answer(id, &[]);
    }

    /// `asker` counts on it no more, and others do.
    pub(super) fn give_up_claim(&mut self, now: Instant, key: Key, asker: Asker) {
        self.table.update(key, |mapping| {
            mapping.claims = mapping.claims.at(now);
            mapping.claims.give_up(asker);
            if asker == Asker::Igd {
                // What a control point insisted on.
                (mapping.strict, mapping.remote_name) = (false, None);
            }
        });
        if matches!(asker, Asker::Pcp(_))
            && let Some(mapping) = self.table.find(key)
        {
            self.lan_server.asked_from.remove(&mapping.flow);
        }
        let Some(mapping) = self.table.find(key).cloned() else { return };
        self.set_lease_alarm(&mapping);
        self.input(now, Input::Extend(mapping.flow, self.terms(&mapping)));
        self.store(now, &mapping);
        self.system_update_id = self.system_update_id.wrapping_add(1);
    }

    /// The provider has said what it has to say about a mapping: whoever waits for that hears how long it stands.
    pub(super) fn on_confirmed(&mut self, flow: FlowId) {
        self.lan_server.letting_in.remove(&flow);
        let waiters = self.lan_server.confirming.remove(&flow).unwrap_or_default();
        for id in waiters {
            match self.table.find_flow(flow).map(|mapping| mapping.external) {
                Some(external) => self.answer_added(id, external),
                None => self.refuse(id, Refusal::NoAnswer),
            }
        }
    }

    /// The provider, or this router's own NAT, will not do what was asked of a mapping that stands: it is as it was.
    pub(super) fn on_unconfirmed(&mut self, now: Instant, flow: FlowId, refusal: Refusal) {
        let Some(before) = self.lan_server.letting_in.remove(&flow) else { return self.on_confirmed(flow) };
        if let Some(mapping) = self.table.find_flow(flow).cloned() {
            let enforced = mapping.nat_port.is_some() && refusal != Refusal::LocalNat;
            if enforced {
                return self.on_confirmed(flow); // this router lets in whom it shall
            }
            if mapping.remote_peer != before {
                self.readmit(now, flow, before);
            }
        }
        self.refuse_confirming(flow, refusal);
    }

    /// A mapping has gone while somebody waited for it.
    pub(super) fn refuse_confirming(&mut self, flow: FlowId, refusal: Refusal) {
        self.lan_server.letting_in.remove(&flow);
        for id in self.lan_server.confirming.remove(&flow).unwrap_or_default() {
            self.refuse(id, refusal);
        }
    }

    /// A question has waited long enough. The client asks again, and finds what has come of it; but what stands is said.
    pub(super) fn on_lan_patience_over(&mut self, id: RequestId) {
        let waits = |waiters: &Vec<RequestId>| waiters.contains(&id);
        let confirmed = self.lan_server.confirming.iter().find(|(_, ids)| waits(ids)).map(|(&flow, _)| flow);
        match confirmed {
            Some(flow) if self.table.find_flow(flow).is_some_and(|mapping| mapping.confirmed) => {
                self.on_confirmed(flow);
            }
            // How long it stands nobody has said.
            Some(flow) => {
                if let Some(waiters) = self.lan_server.confirming.get_mut(&flow) {
                    waiters.retain(|&waiter| waiter != id);
                }
                self.forget_question(id);
            }
            None => self.forget_question(id),
        }
    }

    pub(super) fn forget_question(&mut self, id: RequestId) {
        self.forget_peer_question(id);
        self.timers.cancel(Alarm::Patience(id));
        self.waiting.remove(&id);
    }

    /// What was asked for stands with this external address and port.
    pub(super) fn answer_mapped(&mut self, question: &Question, external: SocketAddrV4) {
        let protocol = match &question.what {
            What::Map(map) => map.protocol(),
            What::Peer(peer) => peer.protocol(),
            What::NatPmp(asked) => asked.protocol(),
        };
        let key = Key { protocol, external_port: external.port() };
        let Some(mapping) = self.table.find(key).cloned() else { return };
        if external.ip().is_unspecified() {
            return; // of this router alone until the provider answers; the client repeats itself
        }
        let now = self.lan_server.now;
        let left = whole_seconds(mapping.lifetime_ends - now);
        let (asker, asked) = match &question.what {
            What::Map(map) => (Asker::Pcp(map.nonce()), map.lifetime()),
            What::Peer(peer) => (Asker::Peer(peer.nonce()), peer.lifetime()),
            What::NatPmp(asked) => (Asker::NatPmp, asked.lifetime()),
        };
        let granted = asked.min(left);
        let ends = now + Duration::from_secs(u64::from(granted));
        self.table.update(key, |mapping| mapping.claims.renew(asker, Some(ends)));
        let before = mapping.claims;
        let mapping = self.table.find(key).expect("it was found above").clone();
        self.set_lease_alarm(&mapping);
        self.input(now, Input::Extend(mapping.flow, self.terms(&mapping)));
        if mapping.claims != before {
            self.store(now, &mapping); // by what is stored it ends, too
        }
        let bytes = match &question.what {
            What::Map(map) => {
                self.lan_server.updates.remove(&mapping.flow);
                self.lan_server.asked_from.insert(mapping.flow, question.arrival);
                self.lan_server.counters.pcp += 1;
                map.granted(external.into(), granted, self.lan_server.epoch()).to_bytes()
            }
            What::Peer(peer) => {
                self.lan_server.peers.by_mapping(peer, IpAddr::V4(*mapping.internal.ip()), external, ends);
                self.lan_server.counters.pcp += 1;
                peer.granted(external.into(), granted, self.lan_server.epoch()).to_bytes()
            }
            What::NatPmp(asked) => {
                self.lan_server.counters.nat_pmp += 1;
                asked.granted(external.port(), granted, self.lan_server.epoch()).to_bytes()
            }
        };
        self.send_to_lan(&question.arrival, bytes);
    }

    /// What was to be deleted is.
    pub(super) fn answer_let_go(&mut self, question: &Question) {
        let epoch = self.lan_server.epoch();
        let bytes = match &question.what {
            What::Map(map) => {
                self.lan_server.counters.pcp += 1;
                map.deleted(epoch).to_bytes()
            }
            What::Peer(peer) => peer.nothing(epoch).to_bytes(), // it deletes nothing
            What::NatPmp(asked) => {
                self.lan_server.counters.nat_pmp += 1;
                asked.granted(0, 0, epoch).to_bytes()
            }
        };
        self.send_to_lan(&question.arrival, bytes);
    }

    /// What was asked for cannot be had.
    pub(super) fn refuse_question(&mut self, question: &Question, refusal: Refusal) {
        if refusal == Refusal::TooOften {
            self.lan_server.counters.ignored += 1;
            return;
        }
        match &question.what {
            What::Map(map) => {
                let (result, lifetime) = pcp_result(refusal, map.is_strict());
                self.refuse_pcp(&question.arrival, &question.payload, result, lifetime);
            }
            What::Peer(_) => {
                let (result, lifetime) = peer::peer_result(refusal);
                self.refuse_pcp(&question.arrival, &question.payload, result, lifetime);
            }
            What::NatPmp(asked) => {
                let refused = asked.refused(nat_pmp_result(refusal), self.lan_server.epoch());
                self.lan_server.counters.refused += 1;
                self.send_to_lan(&question.arrival, refused.to_bytes());
            }
        }
    }

    fn refuse_pcp(&mut self, arrival: &LanArrival, payload: &[u8], result: ResultCode, lifetime: u32) {
        self.lan_server.counters.refused += 1;
        let bytes = pcp::error_response(payload, result, lifetime, self.lan_server.epoch());
        self.send_to_lan(arrival, bytes);
    }
}

/// An IPv4 address is one, however the socket shows it; a link-local one keeps its zone.
fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(host) => SocketAddr::new(host.into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// What a client may be told is left: nobody counts on a part of a second that there is not.
fn whole_seconds(left: Duration) -> u32 {
    u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1)
}

/// RFC 6887 §7.4: why, and for how long.
fn pcp_result(refusal: Refusal, strict: bool) -> (ResultCode, u32) {
    match refusal {
        Refusal::Conflict | Refusal::Upstream(ResultCode::CANNOT_PROVIDE_EXTERNAL) if strict => {
            (ResultCode::CANNOT_PROVIDE_EXTERNAL, SHORT)
        }
        Refusal::NotAuthorized | Refusal::Upstream(ResultCode::NOT_AUTHORIZED) => {
            (ResultCode::NOT_AUTHORIZED, LONG)
        }
        Refusal::Quota | Refusal::Upstream(ResultCode::USER_EX_QUOTA) => (ResultCode::USER_EX_QUOTA, SHORT),
        Refusal::OtherPeer | Refusal::Upstream(ResultCode::EXCESSIVE_REMOTE_PEERS) => {
            (ResultCode::EXCESSIVE_REMOTE_PEERS, LONG)
        }
        Refusal::Upstream(ResultCode::UNSUPP_PROTOCOL) => (ResultCode::UNSUPP_PROTOCOL, LONG),
        Refusal::Conflict
        | Refusal::Full
        | Refusal::LocalNat
        | Refusal::Upstream(ResultCode::NO_RESOURCES | ResultCode::CANNOT_PROVIDE_EXTERNAL) => {
            (ResultCode::NO_RESOURCES, SHORT)
        }
        // It gets no answer: see Gateway::may_exchange.
        Refusal::TooOften
        | Refusal::NoSuchEntry
        | Refusal::Upstream(_)
        | Refusal::NoAnswer
        | Refusal::Unusable
        | Refusal::Released
        | Refusal::Stopping => (ResultCode::NETWORK_FAILURE, SHORT),
    }
}

/// RFC 6886 §3.5.
fn nat_pmp_result(refusal: Refusal) -> natpmp::ResultCode {
    match pcp_result(refusal, false).0 {
        ResultCode::NOT_AUTHORIZED => natpmp::ResultCode::NOT_AUTHORIZED,
        ResultCode::NETWORK_FAILURE => natpmp::ResultCode::NETWORK_FAILURE,
        _ => natpmp::ResultCode::OUT_OF_RESOURCES,
    }
}

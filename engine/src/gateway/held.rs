//! Mappings at the PCP server that no control point has been told of, kept for a while because one is about to ask for
//! them: the port that GetSpecificPortMappingEntry probed (spec T-2), a success that came too late (decision 1), another
//! port than the one that was asked for (decision 5, "hold"), an orphan that the server has and nobody here knows
//! (decision 17).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use super::own_nat::NatPurpose;
use super::pending::{Pending, Purpose, Stage, who_is_named};
use super::{Alarm, Gateway, NatMode, RequestId};
use crate::nat::NatChange;
use crate::notice::Notice;
use crate::policy::Requester;
use crate::request::{MappingRequest, Refusal};
use crate::table::Key;
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Grant, Input, RemotePeer, Terms, Unknown, Want};

/// Orphans that are adopted; whose server holds more has the rest until their lifetimes end.
const MOST_ORPHANS: usize = 1000;
/// One host's mappings that are held; beyond, the oldest is given back.
const MOST_OF_ONE_HOST: usize = 8;

/// Why a mapping is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Why {
    /// GetSpecificPortMappingEntry asked whether the port is free.
    Probe,
    /// Granted after everybody who waited was told 501.
    Late,
    /// The server gave this port where another one was asked for.
    OtherPort,
    /// The server has it, of an installation before this one.
    Orphan,
}

impl Why {
    /// How long it is kept.
    fn kept(self) -> Duration {
        Duration::from_secs(match self {
            Why::Late => 30,  // decision 1
            Why::Probe => 60, // RFC 6970 §4.2
            Why::OtherPort => 120,
            Why::Orphan => 600, // decision 17
        })
    }
}

/// A mapping at the server that is in nobody's table.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) protocol: wire::pcp::Protocol,
    /// The host that it is kept for, and the port that it leads to there; behind our own NAT nobody knows whose an
    /// orphan was.
    pub(super) internal: Option<SocketAddrV4>,
    pub(super) nat_port: Option<u16>,
    pub(super) remote_peer: Option<Ipv4Addr>,
    pub(super) grant: Grant,
    pub(super) why: Why,
}

impl Held {
    pub(super) fn key(&self) -> Key {
        Key { protocol: self.protocol, external_port: self.grant.external_v4().port() }
    }

    /// Whether it is kept for this host.
    pub(super) fn is_for(&self, host: Ipv4Addr) -> bool {
        self.internal.is_none_or(|internal| *internal.ip() == host)
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct HeldMappings {
    by_flow: BTreeMap<FlowId, Held>,
    by_key: BTreeMap<Key, FlowId>,
    by_host: BTreeSet<(Ipv4Addr, FlowId)>,
}

impl HeldMappings {
    pub(super) fn len(&self) -> usize {
        self.by_flow.len()
    }

    pub(super) fn at(&self, key: Key) -> Option<(FlowId, &Held)> {
        let flow = *self.by_key.get(&key)?;
        self.by_flow.get(&flow).map(|held| (flow, held))
    }

    pub(super) fn get(&self, flow: FlowId) -> Option<&Held> {
        self.by_flow.get(&flow)
    }

    pub(super) fn flows(&self) -> Vec<FlowId> {
        self.by_flow.keys().copied().collect()
    }

    /// Whoever has something held for him.
    pub(super) fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.by_host.iter().map(|&(host, _)| host)
    }

    /// Those of one host, the oldest first.
    pub(super) fn of_host(&self, host: Ipv4Addr) -> impl Iterator<Item = (FlowId, &Held)> {
        let range = self.by_host.range((host, FlowId(0))..=(host, FlowId(u64::MAX)));
        range.filter_map(|&(_, flow)| self.by_flow.get(&flow).map(|held| (flow, held)))
    }

    fn insert(&mut self, flow: FlowId, held: Held) {
        self.by_key.insert(held.key(), flow);
        if let Some(internal) = held.internal {
            self.by_host.insert((*internal.ip(), flow));
        }
        self.by_flow.insert(flow, held);
    }

    fn remove(&mut self, flow: FlowId) -> Option<Held> {
        let held = self.by_flow.remove(&flow)?;
        self.by_key.remove(&held.key());
        if let Some(internal) = held.internal {
            self.by_host.remove(&(*internal.ip(), flow));
        }
        Some(held)
    }
}

impl Gateway {
    /// What was granted is nobody's yet: it is held for the control point that it was asked for.
    pub(super) fn hold(&mut self, now: Instant, flow: FlowId, grant: Grant, why: Why) {
        let Some(pending) = self.pending.remove(&flow) else { return };
        self.timers.cancel(Alarm::Background(flow));
        if let (Stage::Installing(_) | Stage::Local(_), Some(rule)) = (pending.stage, pending.rule()) {
            self.remove_rule(rule); // granted before, and moved since
        }
        let MappingRequest { protocol, internal, remote_peer, .. } = pending.request;
        let host = *internal.ip();
        // One for each internal port: a client that scans asks for the newest (decision 5).
        let same =
            |held: &Held| held.why == why && held.protocol == protocol && held.internal == Some(internal);
        let older = self.held.of_host(host).find(|(_, held)| same(held)).map(|(flow, _)| flow);
        let oldest = self.held.of_host(host).map(|(flow, _)| flow).next();
        let full = self.held.of_host(host).count() >= MOST_OF_ONE_HOST;
        if let Some(gone) = older.or(oldest.filter(|_| full)) {
            self.release(now, gone);
        }
        let until = (now + why.kept()).min(grant.ends());
        let (internal, nat_port) = (Some(internal), pending.nat_port);
        self.held.insert(flow, Held { protocol, internal, nat_port, remote_peer, grant, why });
        self.timers.set(Alarm::Held(flow), until);
        // It is not renewed.
        let terms = Terms {
            prefer_failure: pending.request.strict,
            lease_ends: Some(until),
            longest: u32::MAX,
            description: String::new(),
        };
        self.input(now, Input::Extend(flow, terms));
    }

    /// The server has listed what it holds for us: what nobody here knows may be claimed for a while, then it is given
    /// back, for it would use up the quota (decision 17).
    pub(super) fn adopt(&mut self, now: Instant, unknown: Vec<Unknown>) {
        let mut orphans = 0;
        for unknown in unknown.into_iter().take(MOST_ORPHANS) {
            let Unknown { third_party, protocol, internal_port: port, .. } = unknown;
            let flow = self.new_flow();
            match (self.config.nat, third_party, self.wan.addresses.first().copied()) {
                // With a NAT of ours its mappings are for the packet's own source. So are those of the router's own
                // programs, which are none of our business.
                (NatMode::Own, None, Some(addr)) if self.nat_ports.claim(protocol, port, flow) => {
                    let reserve = NatChange::Reserve { protocol, port, addr };
                    self.change_nat(reserve, NatPurpose::Adopt(flow, unknown));
                }
                // Without one they are for LAN hosts.
                (NatMode::None, Some(_), _) => self.hold_orphan(now, flow, unknown),
                _ => continue,
            }
            orphans += 1;
        }
        if let (Some(server), 1..) = (self.server(), orphans) {
            self.notice(Notice::Orphans(server, orphans));
        }
    }

    pub(super) fn hold_orphan(&mut self, now: Instant, flow: FlowId, unknown: Unknown) {
        let Unknown { third_party, protocol, internal_port, grant, .. } = unknown;
        let key = Key { protocol, external_port: grant.external_v4().port() };
        let nat_port = third_party.is_none().then_some(internal_port);
        if self.table.find(key).is_some() || self.held.at(key).is_some() || grant.ends() <= now {
            if let Some(port) = nat_port {
                self.nat_ports.release(protocol, port);
            }
            return;
        }
        let until = (now + Why::Orphan.kept()).min(grant.ends());
        let internal = third_party.map(|host| SocketAddrV4::new(host, internal_port));
        let (remote_peer, why) = (None, Why::Orphan);
        self.held.insert(flow, Held { protocol, internal, nat_port, remote_peer, grant, why });
        self.timers.set(Alarm::Held(flow), until);
        self.input(now, Input::Adopt(flow, unknown, until));
    }

    /// Nobody has asked for it: the server may have it back.
    pub(super) fn release(&mut self, now: Instant, flow: FlowId) {
        let Some(held) = self.take_held(flow) else { return };
        if let Some(port) = held.nat_port {
            self.nat_ports.release(held.protocol, port);
        }
        self.give_back_in_turn(now, flow);
    }

    /// To the server there is one mapping for an internal port (T-3): what is held of it goes, and what is asked for now takes
    /// its place there.
    pub(super) fn release_same_client(&mut self, now: Instant, want: &Want) {
        let Some(IpAddr::V4(host)) = want.third_party else { return };
        let internal = Some(SocketAddrV4::new(host, want.internal_port));
        let same = |held: &Held| held.protocol == want.protocol && held.internal == internal;
        let found = self.held.of_host(host).find(|(_, held)| same(held)).map(|(flow, _)| flow);
        if let Some(flow) = found {
            self.release(now, flow);
        }
    }

    /// The server has given this port anew, so it has forgotten that it gave it before.
    pub(super) fn forget_held_at(&mut self, now: Instant, key: Key) {
        if let Some((flow, _)) = self.held.at(key) {
            self.release(now, flow);
        }
    }

    pub(super) fn release_all(&mut self, now: Instant) {
        for flow in self.held.flows() {
            self.release(now, flow);
        }
    }

    /// It is held no longer; its port of our own NAT is the caller's now.
    fn take_held(&mut self, flow: FlowId) -> Option<Held> {
        self.timers.cancel(Alarm::Held(flow));
        self.held.remove(flow)
    }

    /// The server was asked again, after it lost its state or we our address.
    pub(super) fn on_held_granted(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let Some(held) = self.held.get(flow) else { return };
        if held.grant.external_v4() != grant.external_v4() {
            return self.release(now, flow);
        }
        let held = Held { grant, ..held.clone() };
        self.held.insert(flow, held);
    }

    /// Answers AddPortMapping or AddAnyPortMapping by what is held, if that says anything; false when it does not.
    pub(super) fn add_from_held(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        request: &MappingRequest,
    ) -> bool {
        let from = who_is_named(who, request);
        let own_nat = self.config.nat == NatMode::Own;
        let host = *request.internal.ip();
        let key = |external_port| Key { protocol: request.protocol, external_port };
        let at_port = request.external_port.and_then(|port| self.held.at(key(port)));
        let of_host = |which: &dyn Fn(&Held) -> bool| {
            let same =
                |held: &Held| held.protocol == request.protocol && held.internal == Some(request.internal);
            self.held.of_host(host).find(|(_, held)| same(held) && which(held)).map(|(flow, _)| flow)
        };
        let at_port = at_port.map(|(flow, held)| {
            (flow, held.is_for(host), request.takes_address(*held.grant.external_v4().ip()))
        });
        match at_port {
            Some((_, false, _)) | Some((_, true, false)) if request.strict => {
                self.refuse_request(id, from, request, Refusal::Conflict);
                return true;
            }
            Some((flow, true, _)) => {
                self.take_over(now, id, who, request, flow);
                return true;
            }
            _ => {}
        }
        let found = if request.strict {
            // Alternative 1 of draft -00, 5.7.2: while that port is held, it is the answer.
            if of_host(&|held| held.why == Why::OtherPort).is_some() {
                self.refuse_request(id, from, request, Refusal::Conflict);
                return true;
            }
            // Without a NAT of ours the server has one mapping for an internal port (T-3): this one has to go.
            of_host(&|_| !own_nat)
        } else {
            of_host(&|held| !own_nat || held.why != Why::Probe || request.external_port.is_none())
        };
        match found {
            Some(flow) if request.strict => self.clear_held(now, id, who, request, flow),
            Some(flow) => self.take_over(now, id, who, request, flow),
            None => return false,
        }
        true
    }

    /// The control point gets what was held for it, without another exchange (spec T-2).
    fn take_over(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        request: &MappingRequest,
        flow: FlowId,
    ) {
        let Some(held) = self.held.get(flow) else { return };
        if self.config.nat == NatMode::None && held.internal != Some(request.internal) {
            // To PCP that would be another mapping.
            return self.clear_held(now, id, who, request, flow);
        }
        let held = self.take_held(flow).expect("found above");
        let mut pending = self.wanted(now, who, request.clone(), Purpose::Add, vec![id]);
        pending.nat_port = held.nat_port;
        pending.stage = Stage::Asking;
        let external_port = held.grant.external_v4().port();
        self.pending.insert(flow, pending);
        if self.refuses_grant(now, flow, external_port) {
            return;
        }
        let certain = self.uplink.as_ref().is_some_and(|client| client.holds(flow));
        if held.remote_peer != request.remote_peer || held.why == Why::Orphan {
            // An orphan's filters are unknown, so it is asked for again in any case.
            self.input(now, Input::Filter(flow, RemotePeer::of(request.remote_peer)));
        } else if certain {
            self.accept(now, flow, held.grant);
        } else {
            self.input(now, Input::Confirm(flow)); // the server has lost its state since
        }
    }

    /// The control point wants something else of the same internal port: what is held goes first.
    fn clear_held(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        request: &MappingRequest,
        held: FlowId,
    ) {
        if !self.may_exchange(now, id, who, request) {
            return;
        }
        let pending = Pending {
            stage: Stage::Clearing(held),
            ..self.wanted(now, who, request.clone(), Purpose::Add, vec![id])
        };
        let flow = self.new_flow();
        self.pending.insert(flow, pending);
        self.release(now, held);
    }
}

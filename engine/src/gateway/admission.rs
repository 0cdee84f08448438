//! AddPortMapping and AddAnyPortMapping at the door: what policy, the table, what is held and what is on its way already say,
//! before anything is sent (decision 3, D-12).

use std::net::Ipv4Addr;

use wire::pcp::Protocol;

use super::own_nat::NatPurpose;
use super::pending::{Pending, Purpose, Stage, who_is_named};
use super::{Alarm, Gateway, NatMode, RequestId};
use crate::claims::Asker;
use crate::nat::NatRule;
use crate::policy::{Facts, InterfaceAddress, Requester};
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Key, Mapping};
use crate::time::Instant;
use crate::uplink::{FlowId, Input};

impl Gateway {
    /// Adds the mapping that a control point wants; the waiter is there under `id`.
    pub(super) fn add(&mut self, now: Instant, id: RequestId, who: &Requester, request: MappingRequest) {
        if let Err(refusal) = self.admit(now, who, &request) {
            return self.refuse(id, refusal);
        }
        let from = who_is_named(who, &request);
        let companion = self.is_companion_of_another(now, &request);
        if companion && request.strict {
            return self.refuse_request(id, from, &request, Refusal::Conflict);
        }
        if let Some(flow) = self.find_joinable(&request) {
            return self.join(now, id, flow, request);
        }
        let other_protocol = |pending: &Pending| {
            (pending.request.protocol, pending.request.internal) == (request.protocol, request.internal)
                && !pending.request.by.speaks_like(request.by)
                && pending.purpose == Purpose::Add
        };
        if let Some(flow) = self.find_pending(other_protocol) {
            return self.defer(id, flow, from, request);
        }
        let own_nat = self.config.nat == NatMode::Own;
        let same_protocol = |pending: &Pending| pending.request.protocol == request.protocol;
        let same_internal = |pending: &Pending| same_protocol(pending) && pending.needs(request.internal);
        let probe = |pending: &Pending| pending.purpose == Purpose::Probe && same_internal(pending);
        if let (false, Some(probe)) = (own_nat, self.find_pending(probe)) {
            // What its control point has just asked about is of no use to it: that goes first.
            if !self.may_exchange(now, id, who, &request) {
                return;
            }
            let wanted = self.wanted(now, who, request, Purpose::Add, vec![id]);
            let flow = self.new_flow();
            self.pending.insert(flow, Pending { stage: Stage::Clearing(probe), ..wanted });
            return self.fail(now, probe, Refusal::NoAnswer);
        }
        if !own_nat && self.find_pending(same_internal).is_some() {
            return self.refuse_request(id, from, &request, Refusal::Conflict); // T-3: before anything begins
        }
        if let Some(existing) = self.find_own(&request).or_else(|| self.find_at(&request)) {
            return self.add_to_existing(now, id, who, request, existing);
        }
        if self.add_from_held(now, id, who, &request) {
            return;
        }
        let key = request.external_port.map(|port| Key { protocol: request.protocol, external_port: port });
        let refused = key.filter(|_| request.strict).and_then(|key| self.refusals.find(now, key));
        if let Some(result) = refused {
            return self.refuse_request(id, from, &request, Refusal::Upstream(result));
        }
        let same_port = |pending: &Pending| {
            same_protocol(pending)
                && !pending.any_port
                && request.external_port.is_some()
                && pending.request.external_port == request.external_port
        };
        let taken = self.find_pending(same_port).is_some()
            || key.is_some_and(|key| self.held.at(key).is_some())
            || companion;
        if taken && request.strict {
            return self.refuse_request(id, from, &request, Refusal::Conflict);
        }
        if !self.may_exchange(now, id, who, &request) {
            return;
        }
        // AddAnyPortMapping: when its wish is taken, any other port will do.
        let wanted = self.wanted(now, who, request, Purpose::Add, vec![id]);
        self.begin(now, Pending { any_port: taken, ..wanted });
    }

    /// What is on its way and would serve `request`, too.
    fn find_joinable(&self, request: &MappingRequest) -> Option<FlowId> {
        self.find_pending(|pending| is_same(&pending.request, request) || self.may_become(pending, request))
    }

    /// Whether what is on its way would serve `request`: the port that its control point has just asked about.
    fn may_become(&self, pending: &Pending, request: &MappingRequest) -> bool {
        let port = |request: &MappingRequest| (request.protocol, request.external_port);
        pending.purpose == Purpose::Probe
            && request.strict
            && pending.request.internal.ip() == request.internal.ip()
            && port(&pending.request) == port(request)
            && (self.config.nat == NatMode::Own || pending.request.internal == request.internal)
            && request.remote_peer.is_none()
            && !matches!(pending.stage, Stage::Clearing(_))
    }

    /// The same request again, before there is a mapping: it shares the exchange of the first (decision 2).
    pub(super) fn join(&mut self, now: Instant, id: RequestId, flow: FlowId, request: MappingRequest) {
        let pending = self.pending.get_mut(&flow).expect("the caller found it");
        pending.request = request;
        pending.asked_at = now;
        if matches!(pending.purpose, Purpose::Probe | Purpose::Spare) {
            pending.purpose = Purpose::Add;
        }
        self.join_exchange(now, id, flow);
    }

    /// One more waits for what is on its way.
    pub(super) fn join_exchange(&mut self, now: Instant, id: RequestId, flow: FlowId) {
        let answer_by = now + self.config.answer_within;
        let pending = self.pending.get_mut(&flow).expect("the caller found it");
        let nobody_waited = pending.waiters.is_empty();
        pending.waiters.push(id);
        self.timers.cancel(Alarm::Background(flow));
        if nobody_waited {
            pending.answer_by = answer_by;
            if pending.stage == Stage::Asking {
                // Its repetitions have become rare by now.
                self.input(now, Input::Hurry(flow));
            }
        }
    }

    /// What can be said before anything is sent (decision 3, D-12).
    pub(super) fn admit(
        &mut self,
        now: Instant,
        who: &Requester,
        request: &MappingRequest,
    ) -> Result<(), Refusal> {
        let lan = self.lan_addresses();
        if let Err(denied) = self.config.policy.check(who, request, self.facts(now, who, request, &lan)) {
            return Err(self.deny_mapping(now, who, request, denied));
        }
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        Ok(())
    }

    /// What policy has to know of the gateway to judge `request`.
    pub(super) fn facts<'a>(
        &'a self,
        now: Instant,
        who: &Requester,
        request: &MappingRequest,
        lan: &'a [InterfaceAddress],
    ) -> Facts<'a> {
        let host = *request.internal.ip();
        let at = request.external_port.map(|port| Key { protocol: request.protocol, external_port: port });
        let there = self.find_own(request).or_else(|| self.find_at(request));
        // AddPortMapping never makes a mapping beside one that the host has at that port.
        let own = |there: &Mapping| there.internal.ip() == &host;
        let replaces = there
            .is_some_and(|there| takes_the_place_of(now, request, &there) || request.strict && own(&there))
            || at.is_some_and(|key| self.held.at(key).is_some_and(|(_, held)| held.is_for(host)))
            || self.find_joinable(request).is_some();
        // Everything that takes a port at the provider counts, for whichever of the host's addresses.
        let of_address = |&host: &Ipv4Addr| {
            let pending = self.pending.values().filter(|pending| *pending.request.internal.ip() == host);
            self.table.held_by(host) + self.held.of_host(host).count() + pending.count()
        };
        let held: usize = who.addresses().iter().map(of_address).sum();
        let all = self.table.len() + self.held.len() + self.pending.len();
        Facts {
            lan,
            wan: &self.wan.addresses,
            held_by_host: held.saturating_sub(usize::from(replaces)),
            held: all.saturating_sub(usize::from(replaces)),
            consent: self.consent_of(who),
        }
    }

    /// The mapping with the external port that is asked for.
    pub(super) fn find_at(&self, request: &MappingRequest) -> Option<Mapping> {
        let key = Key { protocol: request.protocol, external_port: request.external_port? };
        self.table.find(key).cloned()
    }

    /// Without a NAT of its own there is one mapping for each internal port (spec T-3): the one there is.
    pub(super) fn find_own(&self, request: &MappingRequest) -> Option<Mapping> {
        if self.config.nat == NatMode::Own {
            return None;
        }
        self.table.find_internal(request.protocol, request.internal).cloned()
    }

    /// Whether the external port of the other protocol is another host's by NAT-PMP, which keeps this one for it (N-6).
    fn is_companion_of_another(&self, now: Instant, request: &MappingRequest) -> bool {
        let other = if request.protocol == Protocol::TCP { Protocol::UDP } else { Protocol::TCP };
        let Some(external_port) = request.external_port else { return false };
        let companion = self.table.find(Key { protocol: other, external_port });
        companion.is_some_and(|mapping| {
            mapping.claims.at(now).nat_pmp.is_some() && mapping.internal.ip() != request.internal.ip()
        })
    }

    pub(super) fn find_pending(&self, which: impl Fn(&Pending) -> bool) -> Option<FlowId> {
        self.pending.iter().find(|(_, pending)| which(pending)).map(|(&flow, _)| flow)
    }

    /// Spec A-2: there is a mapping with this external port, or (without a NAT of our own) for this internal port.
    pub(super) fn add_to_existing(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        request: MappingRequest,
        existing: Mapping,
    ) {
        let from = who_is_named(who, &request);
        let same_owner = existing.internal.ip() == request.internal.ip();
        if same_owner && existing.health == Health::Deleting {
            return self.refuse_request(id, from, &request, Refusal::NoAnswer);
        }
        if !takes_the_place_of(now, &request, &existing) {
            if request.strict {
                return self.refuse_request(id, from, &request, Refusal::Conflict);
            }
            if self.config.nat == NatMode::None && existing.internal == request.internal {
                return self.refuse_request(id, from, &request, Refusal::Conflict);
            }
            if !self.may_exchange(now, id, who, &request) {
                return;
            }
            // AddAnyPortMapping: any other port will do.
            let wanted = self.wanted(now, who, request, Purpose::Add, vec![id]);
            return self.begin(now, Pending { any_port: true, ..wanted });
        }
        let unmoved = existing.internal == request.internal && !self.repointing.contains_key(&existing.flow);
        match self.rule(&existing) {
            _ if unmoved => {
                let peer = request.remote_peer;
                self.update(now, existing.key(), request);
                // Over its rate it hears what the table says; the provider is asked in its own time.
                if existing.health == Health::Degraded && self.takes_exchange(now, who) {
                    self.input(now, Input::Hurry(existing.flow));
                }
                self.on_remote_host(now, existing.flow, peer.as_slice());
                self.answer_added(id, existing.external);
            }
            _ if !self.may_exchange(now, id, who, &request) => {}
            Some(old) => {
                let new = NatRule { internal: request.internal, ..old };
                let purpose = NatPurpose::Repoint { flow: existing.flow, old, request, id };
                self.repoint(existing.flow, old, new, purpose);
            }
            None if !self.uplink_open => self.refuse_request(id, from, &request, Refusal::NoAnswer),
            // To PCP that is another mapping: the old one has to go first (spec T-4).
            None => {
                let wanted = self.wanted(now, who, request, Purpose::Add, vec![id]);
                let flow = self.new_flow();
                let (key, old) = (existing.key(), existing.flow);
                let stage = Stage::Clearing(old);
                self.assume_held(now, &existing);
                self.pending.insert(flow, Pending { stage, replaces: Some(existing), ..wanted });
                self.table.update(key, |mapping| mapping.health = Health::Deleting);
                self.input(now, Input::Delete(old));
            }
        }
    }
}

/// Whether the mapping that a request meets becomes what it wants. Otherwise it is another one's, or AddAnyPortMapping makes a
/// new one beside it.
fn takes_the_place_of(now: Instant, request: &MappingRequest, existing: &Mapping) -> bool {
    let same_owner = existing.internal.ip() == request.internal.ip();
    let same_port = request.external_port.is_none_or(|port| port == existing.external.port());
    let same_name = request.remote_name.is_some() && existing.remote_name == request.remote_name;
    let same_peer = same_name || existing.remote_peer == request.remote_peer;
    // What PCP or NAT-PMP was told leads to one internal port.
    let fixed = (existing.internal != request.internal || request.remote_name.is_some())
        && existing.claims.has_others_than(Asker::Igd, now);
    same_owner && same_peer && (same_port || !request.strict) && !fixed
}

/// Whether two requests are one that was sent twice; only lease and words may differ. The internal client says who
/// sent it, for nobody maps to another host.
fn is_same(one: &MappingRequest, other: &MappingRequest) -> bool {
    let key = |request: &MappingRequest| {
        let MappingRequest { protocol, internal, external_port, strict, external_addr, remote_peer, .. } =
            *request;
        (protocol, internal, external_port, strict, external_addr, remote_peer)
    };
    key(one) == key(other) && one.by == other.by
}

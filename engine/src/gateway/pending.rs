//! A wanted mapping on its way into the table: admitted, a port of the router's own NAT taken, asked for upstream,
//! granted, installed; or given back.

use std::net::IpAddr;

use super::mappings::NatPurpose;
use super::{Alarm, Gateway, NatMode, RequestId};
use crate::nat::{NatChange, NatRule};
use crate::notice::Notice;
use crate::policy::{Denied, Facts, is_usable_external};
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Key, Mapping};
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Grant, Input, Want};

/// How long a success that came too late is kept for the same control point's next try (decision 1).
const LATE_KEPT: Duration = Duration::from_secs(30);
/// How many ports of the WAN address are tried before giving up.
const NAT_TRIES: usize = 8;

/// How far a wanted mapping has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// The router's own NAT is asked whether its port is free.
    Reserving,
    /// The mapping that this one replaces is being deleted upstream.
    Clearing(FlowId),
    /// The PCP server is asked.
    Asking,
    /// Granted after everybody who waited was told 501.
    Late(Grant),
    /// Granted; the router's own NAT is being set up.
    Installing(Grant),
}

/// A wanted mapping that is not in the table yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) request: MappingRequest,
    pub(super) from: IpAddr,
    /// Who waits for it; empty when all have been told 501.
    pub(super) waiters: Vec<RequestId>,
    pub(super) nat_port: Option<u16>,
    /// Ports of the WAN address that the router itself uses.
    pub(super) refused_ports: Vec<u16>,
    /// The port that was wished for is somebody's: any other is asked for (AddAnyPortMapping).
    pub(super) any_port: bool,
    pub(super) stage: Stage,
    pub(super) asked_at: Instant,
    /// It restores what was there before, so it is kept though nobody waits for it.
    pub(super) keep: bool,
    /// What to restore when this one cannot be had.
    pub(super) replaces: Option<Mapping>,
}

impl Gateway {
    /// Adds the mapping that a control point wants; the waiter is there under `id`.
    pub(super) fn add(&mut self, now: Instant, id: RequestId, from: IpAddr, request: MappingRequest) {
        if let Err(refusal) = self.admit(from, &request) {
            return self.refuse(id, refusal);
        }
        if let Some(flow) = self.find_pending(|pending| is_same(&pending.request, &request)) {
            return self.join(now, id, flow, request);
        }
        let own_nat = self.config.nat == NatMode::Own;
        let same_protocol = |pending: &Pending| pending.request.protocol == request.protocol;
        let same_internal =
            |pending: &Pending| same_protocol(pending) && pending.request.internal == request.internal;
        if !own_nat && self.find_pending(same_internal).is_some() {
            return self.refuse_request(id, from, &request, Refusal::Conflict); // T-3: before anything begins
        }
        if let Some(existing) = self.find_own(&request).or_else(|| self.find_at(&request)) {
            return self.add_to_existing(now, id, from, request, existing);
        }
        let same_port = |pending: &Pending| {
            same_protocol(pending)
                && !pending.any_port
                && request.external_port.is_some()
                && pending.request.external_port == request.external_port
        };
        let refused = request.external_port.filter(|_| request.strict).and_then(|external_port| {
            self.refusals.find(now, Key { protocol: request.protocol, external_port })
        });
        if let Some(result) = refused {
            return self.refuse_request(id, from, &request, Refusal::Upstream(result));
        }
        match self.find_pending(same_port) {
            None => self.begin(now, vec![id], from, request, false, None),
            Some(_) if request.strict => self.refuse_request(id, from, &request, Refusal::Conflict),
            // AddAnyPortMapping: any other port will do.
            Some(_) => {
                self.begin(now, vec![id], from, request, true, None);
            }
        }
    }

    /// The same request again, before there is a mapping: it shares the exchange of the first (decision 2).
    pub(super) fn join(&mut self, now: Instant, id: RequestId, flow: FlowId, request: MappingRequest) {
        let pending = self.pending.get_mut(&flow).expect("the caller found it");
        let nobody_waited = pending.waiters.is_empty();
        pending.request = request;
        pending.asked_at = now;
        pending.waiters.push(id);
        self.timers.cancel(Alarm::Background(flow));
        match pending.stage {
            Stage::Late(grant) => self.accept(now, flow, grant),
            // Its repetitions have become rare by now.
            Stage::Asking if nobody_waited => self.input(now, Input::Hurry(flow)),
            _ => {}
        }
    }

    /// What can be said before anything is sent (decision 3, D-12).
    pub(super) fn admit(&mut self, from: IpAddr, request: &MappingRequest) -> Result<(), Refusal> {
        let host = *request.internal.ip();
        let replaces = self.find_at(request).is_some_and(|m| m.internal.ip() == &host)
            || self.find_own(request).is_some()
            || self.find_pending(|pending| is_same(&pending.request, request)).is_some();
        let held = self.table.held_by(host) + self.pending.values().filter(|p| p.from == from).count();
        let lan = self.lan_addresses();
        let facts = Facts {
            lan: &lan,
            wan: &self.wan.addresses,
            held_by_host: held - usize::from(replaces && held > 0),
            held: self.table.len() + self.pending.len() - usize::from(replaces),
        };
        if let Err(denied) = self.config.policy.check(from, request, facts) {
            let MappingRequest { protocol, external_port, internal, .. } = *request;
            self.notice(Notice::Denied(from, protocol, external_port, internal, denied));
            return Err(match denied {
                Denied::HostQuota(_) | Denied::TableFull(_) => Refusal::Quota,
                _ => Refusal::NotAuthorized,
            });
        }
        if self.stopping {
            return Err(Refusal::Stopping);
        }
        Ok(())
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

    pub(super) fn find_pending(&self, which: impl Fn(&Pending) -> bool) -> Option<FlowId> {
        self.pending.iter().find(|(_, pending)| which(pending)).map(|(&flow, _)| flow)
    }

    /// Spec A-2: there is a mapping with this external port, or (without a NAT of our own) for this internal port.
    pub(super) fn add_to_existing(
        &mut self,
        now: Instant,
        id: RequestId,
        from: IpAddr,
        request: MappingRequest,
        existing: Mapping,
    ) {
        let same_owner = existing.internal.ip() == request.internal.ip();
        let same_port = request.external_port.is_none_or(|port| port == existing.external.port());
        let same_peer = existing.remote_peer == request.remote_peer;
        if existing.health == Health::Deleting {
            return self.refuse_request(id, from, &request, Refusal::NoAnswer);
        }
        if !(same_owner && same_peer) || (request.strict && !same_port) {
            if request.strict {
                return self.refuse_request(id, from, &request, Refusal::Conflict);
            }
            if self.config.nat == NatMode::None && existing.internal == request.internal {
                return self.refuse_request(id, from, &request, Refusal::Conflict);
            }
            // AddAnyPortMapping: any other port will do.
            return self.begin(now, vec![id], from, request, true, None);
        }
        let unmoved = existing.internal == request.internal && !self.repointing.contains_key(&existing.flow);
        match self.rule(&existing) {
            _ if unmoved => {
                self.update(now, existing.key(), request);
                self.answer_added(id, existing.external);
            }
            Some(old) => {
                let new = NatRule { internal: request.internal, ..old };
                self.repointing.insert(existing.flow, new);
                let purpose = NatPurpose::Repoint { flow: existing.flow, old, new, request, id };
                self.change_nat(NatChange::Replace { old, new }, purpose);
            }
            None if !self.uplink_open => self.refuse_request(id, from, &request, Refusal::NoAnswer),
            // To PCP that is another mapping: the old one has to go first (spec T-4).
            None => self.begin(now, vec![id], from, request, false, Some(existing)),
        }
    }

    /// Starts the way of a new mapping, after the one that it replaces is out of the way.
    pub(super) fn begin(
        &mut self,
        now: Instant,
        waiters: Vec<RequestId>,
        from: IpAddr,
        request: MappingRequest,
        any_port: bool,
        replaces: Option<Mapping>,
    ) {
        let flow = self.new_flow();
        let keep = waiters.is_empty();
        let stage = match &replaces {
            Some(old) => Stage::Clearing(old.flow),
            None if self.config.nat == NatMode::Own => Stage::Reserving,
            None => Stage::Asking,
        };
        let old = replaces.as_ref().map(|old| (old.key(), old.flow));
        let pending = Pending {
            request,
            from,
            waiters,
            nat_port: None,
            refused_ports: Vec::new(),
            any_port,
            stage,
            asked_at: now,
            keep,
            replaces,
        };
        self.pending.insert(flow, pending);
        if let Some((key, old)) = old {
            self.table.update(key, |mapping| mapping.health = Health::Deleting);
            self.input(now, Input::Delete(old));
        } else if stage == Stage::Reserving {
            self.reserve(now, flow);
        } else {
            self.ask(now, flow);
        }
    }

    /// Takes a port of the WAN address for a pending mapping, and asks the kernel whether it is really free.
    pub(super) fn reserve(&mut self, now: Instant, flow: FlowId) {
        let pending = self.pending.get_mut(&flow).expect("the caller has put it there");
        let protocol = pending.request.protocol;
        // Decision 23: the internal port, else the external one, else any.
        let wishes = [Some(pending.request.internal.port()), pending.request.external_port];
        let wishes: Vec<u16> = wishes.into_iter().flatten().collect();
        let tried = pending.refused_ports.len();
        let port = (tried < NAT_TRIES)
            .then(|| self.nat_ports.take(protocol, &wishes, &pending.refused_ports, flow, &mut *self.entropy))
            .flatten();
        pending.nat_port = port;
        match (port, self.wan.addresses.first().copied()) {
            (Some(port), Some(addr)) => {
                self.change_nat(NatChange::Reserve { protocol, port, addr }, NatPurpose::Reserve(flow));
            }
            (None, _) => self.fail(now, flow, Refusal::LocalNat),
            (_, None) => self.fail(now, flow, Refusal::NoAnswer),
        }
    }

    /// Sends the request to the PCP server.
    pub(super) fn ask(&mut self, now: Instant, flow: FlowId) {
        let pending = self.pending.get_mut(&flow).expect("the caller has put it there");
        let lease_ends = pending.request.lease.map(|lease| pending.asked_at + lease);
        pending.stage = Stage::Asking;
        let request = &pending.request;
        let want = Want {
            third_party: pending.nat_port.is_none().then_some(*request.internal.ip()),
            protocol: request.protocol,
            internal_port: pending.nat_port.unwrap_or(request.internal.port()),
            external_port: request.external_port.filter(|_| !pending.any_port).unwrap_or(0),
            strict: request.strict,
            lease_ends,
            longest: u32::MAX,
            remote_peer: request.remote_peer,
            urgent: !pending.waiters.is_empty(),
        };
        if self.uplink.is_none() || !self.uplink_open || lease_ends.is_some_and(|end| end <= now) {
            return self.fail(now, flow, Refusal::NoAnswer);
        }
        self.input(now, Input::Ask(flow, want));
    }

    pub(super) fn on_first_grant(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let pending = &self.pending[&flow];
        let request = &pending.request;
        let key = Key { protocol: request.protocol, external_port: grant.external.port() };
        if !is_usable_external(*grant.external.ip()) || grant.external.port() == 0 {
            return self.fail(now, flow, Refusal::Unusable);
        }
        if let (true, Some(wanted)) = (request.strict, request.external_port)
            && wanted != grant.external.port()
        {
            // T-6, K-17, decision 5: a server that passes PREFER_FAILURE over.
            if let Some(server) = self.server() {
                self.notice(Notice::OtherPort(server, key.protocol, wanted, grant.external));
            }
            return self.fail(now, flow, Refusal::Conflict);
        }
        if self.table.find(key).is_some() {
            return self.fail(now, flow, Refusal::Conflict);
        }
        self.learn_external(now, *grant.external.ip());
        let pending = self.pending.get_mut(&flow).expect("it was there above");
        if let Stage::Installing(before) = &mut pending.stage {
            *before = grant; // the answer to a repetition; this router's NAT is at work already
            return;
        }
        if pending.waiters.is_empty() && !pending.keep {
            // Too late: the control point was told 501. It may ask again.
            let first = !matches!(pending.stage, Stage::Late(_));
            pending.stage = Stage::Late(grant);
            if first {
                self.timers.set(Alarm::Background(flow), now + LATE_KEPT);
            }
            return;
        }
        self.accept(now, flow, grant);
    }

    /// What is pending was granted and is wanted: the router's own NAT comes next, if there is one.
    pub(super) fn accept(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let pending = self.pending.get_mut(&flow).expect("the callers found it");
        pending.stage = Stage::Installing(grant);
        match pending.rule() {
            Some(rule) => self.change_nat(NatChange::Install(rule), NatPurpose::Install(flow)),
            None => self.finish(now, flow, grant),
        }
    }

    /// Everything stands: into the table, and tell whoever waits.
    pub(super) fn finish(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let pending = &self.pending[&flow];
        let key = Key { protocol: pending.request.protocol, external_port: grant.external.port() };
        if self.table.find(key).is_some() {
            // The server has forgotten this grant, and given the port to another host since.
            return self.fail(now, flow, Refusal::Conflict);
        }
        let pending = self.pending.remove(&flow).expect("the caller found it");
        self.timers.cancel(Alarm::Background(flow));
        let request = pending.request;
        let mapping = Mapping {
            protocol: request.protocol,
            external: grant.external,
            internal: request.internal,
            nat_port: pending.nat_port,
            remote_peer: request.remote_peer,
            description: request.description,
            strict: request.strict,
            created: now,
            lease_ends: request.lease.map(|lease| pending.asked_at + lease),
            lifetime_ends: grant.ends(),
            health: Health::Active,
            flow,
        };
        self.table.insert(mapping.clone());
        self.system_update_id = self.system_update_id.wrapping_add(1);
        self.set_lease_alarm(&mapping);
        self.input(now, Input::Extend(flow, mapping.lease_ends, mapping.strict));
        self.store(now, &mapping);
        for id in pending.waiters {
            self.answer_added(id, grant.external);
        }
        self.notice(Notice::Granted(mapping));
    }

    /// A pending mapping cannot be had: give back what was got, and tell whoever waits.
    pub(super) fn fail(&mut self, now: Instant, flow: FlowId, refusal: Refusal) {
        let Some(mut pending) = self.pending.remove(&flow) else { return };
        self.timers.cancel(Alarm::Background(flow));
        if let Some(rule) = pending.rule() {
            if let Stage::Installing(_) = pending.stage {
                self.change_nat(NatChange::Remove(rule), NatPurpose::Quiet);
            }
            self.nat_ports.release(rule.protocol, rule.port);
        }
        self.give_back(now, flow);
        let replaces = pending.replaces.take().filter(|_| !self.stopping);
        let refusal = match refusal {
            Refusal::Upstream(_) if replaces.is_some() => Refusal::Conflict, // T-4
            refusal => refusal,
        };
        if let Some((first, others)) = pending.waiters.split_first() {
            for &id in others {
                self.refuse(id, refusal);
            }
            self.refuse_request(*first, pending.from, &pending.request, refusal);
        } else if pending.keep {
            let MappingRequest { protocol, external_port, internal, .. } = pending.request;
            self.notice(Notice::Refused(pending.from, protocol, external_port, internal, refusal));
        }
        let Some(old) = replaces.filter(|old| old.lease_ends.is_none_or(|end| end > now)) else { return };
        let restore = request_of(now, &old);
        if let Stage::Clearing(_) = pending.stage {
            // Its delete is on the way: it comes back as soon as that is through.
            let (waiters, stage) = (Vec::new(), pending.stage);
            let restoring = Pending {
                request: restore,
                waiters,
                stage,
                asked_at: now,
                keep: true,
                replaces: None,
                ..pending
            };
            self.pending.insert(flow, restoring);
        } else {
            self.begin(now, Vec::new(), pending.from, restore, false, None);
        }
    }

    pub(super) fn refuse_all_pending(&mut self, now: Instant) {
        // What restores an older mapping goes on when there is a server again.
        let refused = |pending: &Pending| self.stopping || !pending.keep;
        let flows: Vec<FlowId> =
            self.pending.iter().filter(|(_, pending)| refused(pending)).map(|(&flow, _)| flow).collect();
        for flow in flows {
            self.fail(now, flow, Refusal::NoAnswer);
        }
    }

    /// Asks a new server for everything that is pending still.
    pub(super) fn ask_again(&mut self, now: Instant) {
        for flow in self.pending.keys().copied().collect::<Vec<_>>() {
            self.ask(now, flow);
        }
    }

    pub(super) fn on_background_over(&mut self, now: Instant, flow: FlowId) {
        self.fail(now, flow, Refusal::NoAnswer);
    }
}

impl Pending {
    pub(super) fn rule(&self) -> Option<NatRule> {
        let MappingRequest { protocol, internal, remote_peer, .. } = self.request;
        self.nat_port.map(|port| NatRule { protocol, port, internal, remote_peer })
    }
}

/// Whether two requests are one that was sent twice; only lease and words may differ. The internal client says who
/// sent it, for nobody maps to another host.
fn is_same(one: &MappingRequest, other: &MappingRequest) -> bool {
    let key = |request: &MappingRequest| {
        let MappingRequest { protocol, internal, external_port, strict, remote_peer, .. } = *request;
        (protocol, internal, external_port, strict, remote_peer)
    };
    key(one) == key(other)
}

/// What would get this very mapping again.
fn request_of(now: Instant, mapping: &Mapping) -> MappingRequest {
    MappingRequest {
        protocol: mapping.protocol,
        internal: mapping.internal,
        external_port: Some(mapping.external.port()),
        strict: true,
        lease: mapping.lease_ends.map(|end| end - now),
        remote_peer: mapping.remote_peer,
        description: mapping.description.clone(),
    }
}

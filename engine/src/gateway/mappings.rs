//! The life of a mapping: asked for, granted, kept, changed, deleted, lost.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use wire::error::UpnpError;
use wire::pcp::ResultCode;
use wire::services::Value;
use wire::soap::Call;

use super::{Alarm, Effect, Gateway, NatMode, NatTicket, RequestId};
use crate::igd::{Asked, Entry, Range, upnp_error};
use crate::nat::{NatChange, NatFailure, NatRule};
use crate::notice::{Cause, Notice};
use crate::policy::{Denied, Facts, is_usable_external};
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Key, Mapping};
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Grant, Input, Want};

/// How long an exchange goes on when nobody waits for it any more (decision 1).
const BACKGROUND: Duration = Duration::from_secs(20);
/// How long a success that came too late is kept for the same control point's next try (decision 1).
const LATE_KEPT: Duration = Duration::from_secs(30);
/// How many ports of the WAN address are tried before giving up.
const NAT_TRIES: usize = 8;

/// A control point that waits for its answer.
#[derive(Debug)]
pub(super) struct Waiter {
    /// What it said, which the answer's form follows.
    pub call: Call,
    /// What for, when it comes to errors.
    pub asked: Asked,
}

/// How far a wanted mapping has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
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
    request: MappingRequest,
    from: IpAddr,
    /// Who waits for it; empty when all have been told 501.
    waiters: Vec<RequestId>,
    nat_port: Option<u16>,
    /// Ports of the WAN address that the router itself uses.
    refused_ports: Vec<u16>,
    stage: Stage,
    asked_at: Instant,
    /// It restores what was there before, so it is kept though nobody waits for it.
    keep: bool,
    /// What to restore when this one cannot be had.
    replaces: Option<Mapping>,
}

/// What an outcome of the router's own NAT belongs to.
#[derive(Debug)]
pub(super) enum NatPurpose {
    /// The port of a pending mapping.
    Reserve(FlowId),
    /// The rule of a pending mapping.
    Install(FlowId),
    /// Its owner led a mapping to another internal port (spec T-4): this rule in place of that one.
    Repoint { flow: FlowId, old: NatRule, new: NatRule, request: MappingRequest, id: RequestId },
    /// The rule of a mapping whose deletion was refused.
    Reinstall(FlowId),
    /// Nobody waits for it.
    Quiet,
}

/// A control point's deletion of one or more mappings.
#[derive(Debug)]
pub(super) struct DeleteJob {
    left: BTreeSet<FlowId>,
    refusal: Option<Refusal>,
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
        if let Some(existing) = self.find_own(&request).or_else(|| self.find_at(&request)) {
            return self.add_to_existing(now, id, from, request, existing);
        }
        let own_nat = self.config.nat == NatMode::Own;
        let same_protocol = |pending: &Pending| pending.request.protocol == request.protocol;
        let same_internal =
            |pending: &Pending| same_protocol(pending) && pending.request.internal == request.internal;
        let same_port = |pending: &Pending| {
            same_protocol(pending)
                && request.external_port.is_some()
                && pending.request.external_port == request.external_port
        };
        if !own_nat && self.find_pending(same_internal).is_some() {
            return self.refuse_request(id, from, &request, Refusal::Conflict); // T-3
        }
        match self.find_pending(same_port) {
            None => self.begin(now, vec![id], from, request, None),
            Some(_) if request.strict => self.refuse_request(id, from, &request, Refusal::Conflict),
            // AddAnyPortMapping: any other port will do.
            Some(_) => {
                self.begin(now, vec![id], from, MappingRequest { external_port: None, ..request }, None);
            }
        }
    }

    /// The same request again, before there is a mapping: it shares the exchange of the first.
    fn join(&mut self, now: Instant, id: RequestId, flow: FlowId, request: MappingRequest) {
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

    /// What can be said before anything is sent.
    fn admit(&mut self, from: IpAddr, request: &MappingRequest) -> Result<(), Refusal> {
        let host = *request.internal.ip();
        let replaces = self.find_at(request).is_some_and(|m| m.internal.ip() == &host)
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
    fn find_at(&self, request: &MappingRequest) -> Option<Mapping> {
        let key = Key { protocol: request.protocol, external_port: request.external_port? };
        self.table.find(key).cloned()
    }

    /// Without a NAT of its own there is one mapping for each internal port (spec T-3): the one there is.
    fn find_own(&self, request: &MappingRequest) -> Option<Mapping> {
        if self.config.nat == NatMode::Own {
            return None;
        }
        self.table.find_internal(request.protocol, request.internal).cloned()
    }

    fn find_pending(&self, which: impl Fn(&Pending) -> bool) -> Option<FlowId> {
        self.pending.iter().find(|(_, pending)| which(pending)).map(|(&flow, _)| flow)
    }

    /// Spec A-2: there is a mapping with this external port, or (without a NAT of our own) for this internal port.
    fn add_to_existing(
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
            return self.begin(now, vec![id], from, MappingRequest { external_port: None, ..request }, None);
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
            None => self.begin(now, vec![id], from, request, Some(existing)),
        }
    }

    /// Its owner asks again for what it has: the lease starts anew.
    fn update(&mut self, now: Instant, key: Key, request: MappingRequest) {
        let lease_ends = request.lease.map(|lease| now + lease);
        self.table.update(key, |mapping| {
            mapping.description = request.description;
            mapping.strict = request.strict;
            mapping.lease_ends = lease_ends;
        });
        self.table.repoint(key, request.internal);
        let mapping = self.table.find(key).expect("the caller found it").clone();
        self.set_lease_alarm(&mapping);
        self.input(now, Input::Extend(mapping.flow, lease_ends));
        self.system_update_id = self.system_update_id.wrapping_add(1);
        self.notice(Notice::Changed(mapping));
    }

    /// Starts the way of a new mapping, after the one that it replaces is out of the way.
    fn begin(
        &mut self,
        now: Instant,
        waiters: Vec<RequestId>,
        from: IpAddr,
        request: MappingRequest,
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
    fn reserve(&mut self, now: Instant, flow: FlowId) {
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
    fn ask(&mut self, now: Instant, flow: FlowId) {
        let pending = self.pending.get_mut(&flow).expect("the caller has put it there");
        let lease_ends = pending.request.lease.map(|lease| pending.asked_at + lease);
        pending.stage = Stage::Asking;
        let request = &pending.request;
        let want = Want {
            third_party: pending.nat_port.is_none().then_some(*request.internal.ip()),
            protocol: request.protocol,
            internal_port: pending.nat_port.unwrap_or(request.internal.port()),
            external_port: request.external_port.unwrap_or(0),
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

    /// What a PCP server that knows nothing of us is asked, to keep a mapping that stands.
    pub(super) fn want_to_keep(&self, mapping: &Mapping) -> Want {
        Want {
            third_party: mapping.nat_port.is_none().then_some(*mapping.internal.ip()),
            protocol: mapping.protocol,
            internal_port: mapping.nat_port.unwrap_or(mapping.internal.port()),
            external_port: mapping.external.port(),
            strict: mapping.strict,
            lease_ends: mapping.lease_ends,
            longest: u32::MAX,
            remote_peer: mapping.remote_peer,
            urgent: false,
        }
    }

    pub(super) fn on_granted(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        if self.pending.contains_key(&flow) {
            self.on_first_grant(now, flow, grant);
        } else if let Some(mapping) = self.table.find_flow(flow).cloned() {
            self.on_renewed(now, &mapping, grant);
        } else {
            self.give_back(now, flow);
        }
    }

    fn on_first_grant(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let pending = &self.pending[&flow];
        let request = &pending.request;
        let key = Key { protocol: request.protocol, external_port: grant.external.port() };
        if !is_usable_external(*grant.external.ip()) || grant.external.port() == 0 {
            return self.fail(now, flow, Refusal::Unusable);
        }
        if let (true, Some(wanted)) = (request.strict, request.external_port)
            && wanted != grant.external.port()
        {
            // T-6, K-17: a server that passes PREFER_FAILURE over.
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
    fn accept(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let pending = self.pending.get_mut(&flow).expect("the callers found it");
        pending.stage = Stage::Installing(grant);
        match pending.rule() {
            Some(rule) => self.change_nat(NatChange::Install(rule), NatPurpose::Install(flow)),
            None => self.finish(now, flow, grant),
        }
    }

    /// Everything stands: into the table, and tell whoever waits.
    fn finish(&mut self, now: Instant, flow: FlowId, grant: Grant) {
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
        self.input(now, Input::Extend(flow, mapping.lease_ends));
        for id in pending.waiters {
            self.answer_added(id, grant.external);
        }
        self.notice(Notice::Granted(mapping));
    }

    fn on_renewed(&mut self, now: Instant, mapping: &Mapping, grant: Grant) {
        let key = mapping.key();
        if mapping.health == Health::Deleting {
            return;
        }
        if !is_usable_external(*grant.external.ip()) || grant.external.port() == 0 {
            return self.drop_mapping(now, key, Cause::LostUpstream);
        }
        if grant.external != mapping.external {
            // Decision 15: its owner counts on the port, or it was told one and hears of another by event.
            let other_port = grant.external.port() != key.external_port;
            if (mapping.strict && other_port) || !self.table.rekey(key, grant.external) {
                return self.drop_mapping(now, key, Cause::MovedUpstream(grant.external));
            }
            self.system_update_id = self.system_update_id.wrapping_add(1);
        }
        self.learn_external(now, *grant.external.ip());
        let key = Key { external_port: grant.external.port(), ..key };
        self.timers.cancel(Alarm::Lifetime(mapping.flow));
        self.table.update(key, |mapping| {
            mapping.lifetime_ends = grant.ends();
            mapping.health = Health::Active;
        });
        let renewed = self.table.find(key).expect("it was found above").clone();
        if grant.external == mapping.external {
            self.notice(Notice::Renewed(renewed));
        } else {
            self.notice(Notice::Moved(renewed, mapping.external));
        }
    }

    pub(super) fn on_refused(&mut self, now: Instant, flow: FlowId, result: ResultCode) {
        if self.pending.contains_key(&flow) {
            self.fail(now, flow, Refusal::Upstream(result));
        } else {
            // A mapping that a new server was asked to take over.
            self.on_lost(now, flow, Cause::LostUpstream);
        }
    }

    /// A pending mapping cannot be had: give back what was got, and tell whoever waits.
    fn fail(&mut self, now: Instant, flow: FlowId, refusal: Refusal) {
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
            self.begin(now, Vec::new(), pending.from, restore, None);
        }
    }

    /// Has the server drop what it may have given for a flow that is wanted no more.
    pub(super) fn give_back(&mut self, now: Instant, flow: FlowId) {
        if self.uplink.as_ref().is_some_and(|client| client.has(flow)) {
            self.strays.insert(flow);
            self.input(now, Input::Delete(flow));
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

    pub(super) fn on_nat(&mut self, now: Instant, ticket: NatTicket, outcome: Result<(), NatFailure>) {
        let Some(purpose) = self.nat_tickets.remove(&ticket) else { return };
        if let Err(NatFailure::Kernel(error)) = &outcome {
            self.notice(Notice::NatFailed(error.clone()));
        }
        match (purpose, outcome) {
            (NatPurpose::Reserve(flow), Ok(())) if self.pending.contains_key(&flow) => self.ask(now, flow),
            (NatPurpose::Reserve(flow), Err(NatFailure::PortInUse)) => {
                if let Some(pending) = self.pending.get_mut(&flow) {
                    let port = pending.nat_port.take().expect("a port was reserved");
                    pending.refused_ports.push(port);
                    self.nat_ports.release(pending.request.protocol, port);
                    self.reserve(now, flow);
                }
            }
            (NatPurpose::Reserve(flow) | NatPurpose::Install(flow), Err(_)) => {
                if let Some(pending) = self.pending.get_mut(&flow) {
                    pending.stage = Stage::Asking; // there is no rule to remove
                }
                self.fail(now, flow, Refusal::LocalNat);
            }
            (NatPurpose::Install(flow), Ok(())) => match self.pending.get(&flow) {
                Some(pending) if pending.waiters.is_empty() && !pending.keep => {
                    self.fail(now, flow, Refusal::NoAnswer);
                }
                Some(Pending { stage: Stage::Installing(grant), .. }) => {
                    let grant = *grant;
                    self.finish(now, flow, grant);
                }
                _ => {}
            },
            (NatPurpose::Repoint { flow, new, request, id, .. }, Ok(())) => {
                self.repointed(flow, new);
                match self.table.find_flow(flow).filter(|mapping| mapping.health != Health::Deleting) {
                    Some(mapping) => {
                        let (key, external) = (mapping.key(), mapping.external);
                        self.update(now, key, request);
                        self.answer_added(id, external);
                    }
                    None => self.refuse(id, Refusal::NoAnswer),
                }
            }
            (NatPurpose::Repoint { flow, old, new, id, .. }, Err(_)) => {
                self.repointed(flow, new);
                if self.table.find_flow(flow).is_none_or(|mapping| mapping.health == Health::Deleting) {
                    // It was deleted meanwhile, by the rule that never came to be.
                    self.change_nat(NatChange::Remove(old), NatPurpose::Quiet);
                }
                self.refuse(id, Refusal::LocalNat);
            }
            (NatPurpose::Reinstall(flow), Err(_)) => {
                if let Some(key) = self.table.find_flow(flow).map(Mapping::key) {
                    self.table.update(key, |mapping| mapping.health = Health::Deleting);
                    self.drop_mapping(now, key, Cause::LocalNat);
                }
            }
            (NatPurpose::Reserve(_) | NatPurpose::Reinstall(_) | NatPurpose::Quiet, _) => {}
        }
    }

    /// The outcome of a repointing is there; a later one may be on its way.
    fn repointed(&mut self, flow: FlowId, new: NatRule) {
        if self.repointing.get(&flow) == Some(&new) {
            self.repointing.remove(&flow);
        }
    }

    /// The rule that the router's own NAT has, or is about to have, for a mapping.
    fn rule(&self, mapping: &Mapping) -> Option<NatRule> {
        let asked = self.repointing.get(&mapping.flow).copied();
        asked.or_else(|| mapping.nat_port.map(|port| rule(mapping, port)))
    }

    /// DeletePortMapping, by the mapping's owner only.
    pub(super) fn delete(&mut self, now: Instant, id: RequestId, from: IpAddr, entry: Entry) {
        let key = Key { protocol: entry.protocol, external_port: entry.external_port };
        match self.table.find(key) {
            None => self.refuse(id, Refusal::NoSuchEntry),
            Some(mapping) if mapping.remote_peer != entry.remote_peer => {
                self.refuse(id, Refusal::NoSuchEntry);
            }
            Some(mapping) if IpAddr::V4(*mapping.internal.ip()) != from => {
                self.refuse(id, Refusal::NotAuthorized);
            }
            Some(_) => self.delete_all(now, id, vec![key]),
        }
    }

    /// DeletePortMappingRange: those of the range that belong to the control point (spec A-10).
    pub(super) fn delete_range(&mut self, now: Instant, id: RequestId, from: IpAddr, range: Range) {
        let keys: Vec<Key> = self
            .table
            .range(range.protocol, range.first, range.last)
            .filter(|mapping| IpAddr::V4(*mapping.internal.ip()) == from)
            .map(Mapping::key)
            .collect();
        if keys.is_empty() {
            return self.refuse(id, Refusal::NoSuchEntry);
        }
        self.delete_all(now, id, keys);
    }

    fn delete_all(&mut self, now: Instant, id: RequestId, keys: Vec<Key>) {
        if !self.uplink_open {
            return self.refuse(id, Refusal::NoAnswer);
        }
        let mut job = DeleteJob { left: BTreeSet::new(), refusal: None };
        for key in keys {
            let mapping = self.table.find(key).expect("the caller found it").clone();
            job.left.insert(mapping.flow);
            if mapping.health == Health::Deleting {
                continue;
            }
            self.table.update(key, |mapping| mapping.health = Health::Deleting);
            // What its owner closes is closed here at once, however long the provider takes.
            if let Some(rule) = self.rule(&mapping) {
                self.change_nat(NatChange::Remove(rule), NatPurpose::Quiet);
            }
            self.input(now, Input::Delete(mapping.flow));
        }
        self.deletes.insert(id, job);
    }

    pub(super) fn on_deleted(&mut self, now: Instant, flow: FlowId) {
        self.strays.remove(&flow);
        let next = self.find_pending(|pending| pending.stage == Stage::Clearing(flow));
        if let Some(mapping) = self.table.find_flow(flow).cloned() {
            self.take_out(&mapping);
            if next.is_none() {
                self.notice(Notice::Removed(mapping, Cause::Deleted));
            }
            self.finish_deletes(flow, None);
        }
        if let Some(next) = next {
            self.ask(now, next);
        }
        self.stop_if_done();
    }

    pub(super) fn on_delete_refused(&mut self, now: Instant, flow: FlowId, result: ResultCode) {
        if self.strays.remove(&flow) {
            self.input(now, Input::Forget(flow));
        }
        if let Some(next) = self.find_pending(|pending| pending.stage == Stage::Clearing(flow)) {
            // The old mapping stands, so there is nothing to restore.
            let pending = self.pending.get_mut(&next).expect("found just now");
            pending.replaces = None;
            self.fail(now, next, Refusal::Upstream(result));
        }
        let Some(mapping) = self.table.find_flow(flow).cloned() else { return self.stop_if_done() };
        self.table.update(mapping.key(), |mapping| mapping.health = Health::Active);
        if let Some(port) = mapping.nat_port {
            self.change_nat(NatChange::Install(rule(&mapping, port)), NatPurpose::Reinstall(flow));
        }
        self.notice(Notice::DeleteRefused(mapping, result));
        self.finish_deletes(flow, Some(Refusal::Upstream(result)));
    }

    /// Answers the deletions that waited for nothing else than this flow.
    fn finish_deletes(&mut self, flow: FlowId, refusal: Option<Refusal>) {
        let mut done = Vec::new();
        for (&id, job) in &mut self.deletes {
            if job.left.remove(&flow) {
                job.refusal = job.refusal.or(refusal);
                if job.left.is_empty() {
                    done.push((id, job.refusal));
                }
            }
        }
        for (id, refusal) in done {
            self.deletes.remove(&id);
            match refusal {
                Some(refusal) => self.refuse(id, refusal),
                None => self.answer(id, &[]),
            }
        }
    }

    pub(super) fn on_renewal_refused(&mut self, flow: FlowId, result: ResultCode) {
        let Some(mapping) = self.table.find_flow(flow).cloned() else { return };
        self.table.update(mapping.key(), |mapping| {
            if mapping.health == Health::Active {
                mapping.health = Health::Degraded;
            }
        });
        self.notice(Notice::RenewalRefused(mapping, result));
    }

    pub(super) fn on_lost(&mut self, now: Instant, flow: FlowId, cause: Cause) {
        self.strays.remove(&flow);
        if let Some(key) = self.table.find_flow(flow).map(Mapping::key) {
            self.drop_mapping(now, key, cause);
        }
        self.stop_if_done();
    }

    /// Another server was asked to take the mapping over, and has not until the first one's lifetime ended.
    pub(super) fn on_lifetime_over(&mut self, now: Instant, flow: FlowId) {
        self.on_lost(now, flow, Cause::LostUpstream);
    }

    /// Another server is in use: what is being deleted at the old one ends there by itself.
    pub(super) fn abandon_deletes(&mut self, now: Instant) {
        for flow in self.pending.keys().copied().collect::<Vec<_>>() {
            let pending = self.pending.get(&flow).expect("one of the keys");
            if let Stage::Clearing(old) = pending.stage {
                self.pending.remove(&flow);
                if let Some(key) = self.table.find_flow(old).map(Mapping::key) {
                    self.table.update(key, |mapping| mapping.health = Health::Active);
                }
            }
        }
        let deleting = |mapping: &&Mapping| mapping.health == Health::Deleting;
        for key in self.table.iter().filter(deleting).map(Mapping::key).collect::<Vec<_>>() {
            self.drop_mapping(now, key, Cause::Deleted);
        }
    }

    pub(super) fn on_lease_over(&mut self, now: Instant, flow: FlowId) {
        if let Some(key) = self.table.find_flow(flow).map(Mapping::key) {
            self.drop_mapping(now, key, Cause::LeaseEnded);
        }
    }

    /// Removes a mapping here at once, and upstream as soon as the server confirms it.
    pub(super) fn drop_mapping(&mut self, now: Instant, key: Key, cause: Cause) {
        let Some(mapping) = self.table.find(key).cloned() else { return };
        if let (Some(rule), true) = (self.rule(&mapping), mapping.health != Health::Deleting) {
            self.change_nat(NatChange::Remove(rule), NatPurpose::Quiet);
        }
        self.take_out(&mapping);
        self.give_back(now, mapping.flow);
        self.finish_deletes(mapping.flow, None);
        self.notice(Notice::Removed(mapping, cause));
    }

    fn take_out(&mut self, mapping: &Mapping) {
        self.table.remove(mapping.key());
        self.timers.cancel(Alarm::Lease(mapping.flow));
        self.timers.cancel(Alarm::Lifetime(mapping.flow));
        if let Some(port) = mapping.nat_port {
            self.nat_ports.release(mapping.protocol, port);
        }
        self.system_update_id = self.system_update_id.wrapping_add(1);
    }

    /// A control point has waited as long as it can: 501. What it asked for goes on without it.
    pub(super) fn on_patience_over(&mut self, now: Instant, id: RequestId) {
        let pending = self.pending.iter_mut().find(|(_, pending)| pending.waiters.contains(&id));
        match pending {
            Some((&flow, pending)) => {
                pending.waiters.retain(|&waiter| waiter != id);
                let (from, request) = (pending.from, pending.request.clone());
                if pending.waiters.is_empty() {
                    self.timers.set(Alarm::Background(flow), now + BACKGROUND);
                }
                self.refuse_request(id, from, &request, Refusal::NoAnswer);
            }
            None if self.counting.contains_key(&id) => self.on_counters(id, None),
            None => {
                self.deletes.remove(&id);
                self.refuse(id, Refusal::NoAnswer);
            }
        }
    }

    pub(super) fn on_background_over(&mut self, now: Instant, flow: FlowId) {
        self.fail(now, flow, Refusal::NoAnswer);
    }

    fn set_lease_alarm(&mut self, mapping: &Mapping) {
        match mapping.lease_ends {
            Some(end) => self.timers.set(Alarm::Lease(mapping.flow), end),
            None => self.timers.cancel(Alarm::Lease(mapping.flow)),
        }
    }

    fn change_nat(&mut self, change: NatChange, purpose: NatPurpose) {
        self.next_ticket += 1;
        let ticket = NatTicket(self.next_ticket);
        self.nat_tickets.insert(ticket, purpose);
        self.effects.push_back(Effect::Nat { ticket, change });
    }

    pub(super) fn new_flow(&mut self) -> FlowId {
        self.next_flow += 1;
        FlowId(self.next_flow)
    }

    /// AddPortMapping hears nothing but success, AddAnyPortMapping its port.
    fn answer_added(&mut self, id: RequestId, external: SocketAddrV4) {
        self.answer(id, &[Value::Number(u32::from(external.port()))]);
    }

    /// Answers with as many of `values` as the action has out arguments.
    pub(super) fn answer(&mut self, id: RequestId, values: &[Value]) {
        self.timers.cancel(Alarm::Patience(id));
        if let Some(waiter) = self.waiting.remove(&id) {
            let values = &values[..waiter.call.action.outputs.len().min(values.len())];
            let answer = Ok(waiter.call.response(values));
            self.effects.push_back(Effect::Reply { request: id, answer });
        }
    }

    pub(super) fn refuse(&mut self, id: RequestId, refusal: Refusal) {
        if let Some(waiter) = self.waiting.get(&id) {
            let error = upnp_error(refusal, waiter.asked, waiter.call.version);
            self.answer_error(id, error);
        }
    }

    fn refuse_request(&mut self, id: RequestId, from: IpAddr, request: &MappingRequest, refusal: Refusal) {
        let MappingRequest { protocol, external_port, internal, .. } = *request;
        self.notice(Notice::Refused(from, protocol, external_port, internal, refusal));
        self.refuse(id, refusal);
    }

    pub(super) fn answer_error(&mut self, id: RequestId, error: UpnpError) {
        self.timers.cancel(Alarm::Patience(id));
        if self.waiting.remove(&id).is_some() {
            self.effects.push_back(Effect::Reply { request: id, answer: Err(error) });
        }
    }
}

impl Pending {
    fn rule(&self) -> Option<NatRule> {
        let MappingRequest { protocol, internal, remote_peer, .. } = self.request;
        self.nat_port.map(|port| NatRule { protocol, port, internal, remote_peer })
    }
}

/// Whether two requests are one that was sent twice; only lease and words may differ. The internal client says who
/// sent it, for nobody maps to another host.
fn is_same(one: &MappingRequest, other: &MappingRequest) -> bool {
    let words = |request: &MappingRequest| MappingRequest {
        lease: None,
        description: String::new(),
        ..request.clone()
    };
    words(one) == words(other)
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

fn rule(mapping: &Mapping, port: u16) -> NatRule {
    NatRule { protocol: mapping.protocol, port, internal: mapping.internal, remote_peer: mapping.remote_peer }
}

/// The IPv4 address of a control point, if it came by IPv4.
pub(super) fn v4(from: IpAddr) -> Option<Ipv4Addr> {
    match from.to_canonical() {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

//! The life of a mapping that stands: kept, changed, deleted, lost.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use wire::pcp::ResultCode;

use super::pending::{Pending, Stage};
use super::{AddPortMapping, Alarm, Effect, Gateway, RequestId};
use crate::claims::Asker;
use crate::igd::{Entry, Range};
use crate::journal::Record;
use crate::notice::{Cause, Notice};
use crate::policy::{Requester, is_usable_external};
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Key, Mapping};
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Grant, Input, RemotePeer, Terms, Want};

/// How soon a mapping that a server has refused for a while is asked for again.
const REFUSED_RETRY: Duration = Duration::from_secs(30);
/// How often a spare line's server is asked for what it would not give.
const SPARE_RETRY: Duration = Duration::from_secs(30 * 60);

/// A control point's deletion of one or more mappings.
#[derive(Debug)]
pub(super) struct DeleteJob {
    pub(super) left: BTreeSet<FlowId>,
    /// Confirmed by the server. They leave the table together with the last one (A-10: a range is deleted atomically).
    pub(super) confirmed: Vec<FlowId>,
    pub(super) refusal: Option<Refusal>,
}

impl Gateway {
    /// Its owner asks again for what it has: the lease starts anew.
    pub(super) fn update(&mut self, now: Instant, key: Key, request: MappingRequest) {
        let ends = request.lease.map(|lease| now + lease);
        let before = self.table.find(key).expect("the caller found it").clone();
        self.table.update(key, |mapping| {
            mapping.claims = mapping.claims.at(now);
            mapping.claims.renew(request.by, ends);
            mapping.description = request.description;
            mapping.remote_name = request.remote_name;
            mapping.strict = request.strict;
            mapping.asked_at = now;
        });
        self.table.repoint(key, request.internal);
        let mapping = self.table.find(key).expect("the caller found it").clone();
        self.set_lease_alarm(&mapping);
        self.input(now, Input::Extend(mapping.flow, self.terms(&mapping)));
        // Some applications ask for the same every minute: what changes nothing writes nothing.
        let same = Mapping { asked_at: before.asked_at, ..mapping.clone() } == before;
        if !same || mapping.lease_ends().is_some() {
            self.store(now, &mapping);
            self.system_update_id = self.system_update_id.wrapping_add(1);
            self.notice(Notice::Changed(mapping));
        } else if self.store_error.is_some() {
            self.store(now, &mapping); // what could not be stored before is no success yet
        }
    }

    /// What a PCP server that knows nothing of us is asked, to keep a mapping that stands.
    pub(super) fn want_to_keep(&self, mapping: &Mapping) -> Want {
        Want {
            third_party: mapping.nat_port.is_none().then_some(IpAddr::V4(*mapping.internal.ip())),
            protocol: mapping.protocol,
            internal_port: mapping.nat_port.unwrap_or(mapping.internal.port()),
            external_port: mapping.external.port(),
            remote_peers: RemotePeer::of(mapping.remote_peer),
            terms: self.terms(mapping),
            urgent: false,
        }
    }

    /// The terms on which a mapping is kept.
    pub(super) fn terms(&self, mapping: &Mapping) -> Terms {
        Terms {
            prefer_failure: mapping.strict && self.config.add_port_mapping != AddPortMapping::Hold,
            lease_ends: mapping.lease_ends(),
            longest: u32::MAX,
            description: self.description(&mapping.description),
        }
    }

    pub(super) fn on_granted(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        if self.pending.contains_key(&flow) {
            self.on_first_grant(now, flow, grant);
        } else if let Some(mapping) = self.table.find_flow(flow).cloned() {
            self.on_renewed(now, &mapping, grant);
            self.on_confirmed(flow);
        } else if self.held.get(flow).is_some() {
            self.on_held_granted(now, flow, grant);
        } else {
            self.give_back(now, flow);
        }
    }

    /// The table follows the answer; no control point hears of it.
    pub(super) fn on_renewed(&mut self, now: Instant, mapping: &Mapping, grant: Grant) {
        let key = mapping.key();
        if mapping.health == Health::Deleting {
            return;
        }
        if !is_usable_external(*grant.external_v4().ip()) || grant.external_v4().port() == 0 {
            return self.on_unkept(now, mapping, Cause::LostUpstream, true);
        }
        if grant.external_v4() != mapping.external {
            // Decision 15: its owner counts on the port, or it was told one and hears of another by event.
            let other_port = grant.external_v4().port() != key.external_port;
            self.forget_held_at(now, Key { external_port: grant.external_v4().port(), ..key });
            if other_port && self.judge_standing(mapping, grant.external_v4().port()).is_err() {
                return self.on_unkept(now, mapping, Cause::Policy, true);
            }
            if (mapping.strict && other_port) || !self.table.rekey(key, grant.external_v4()) {
                return self.on_unkept(now, mapping, Cause::MovedUpstream(grant.external_v4()), true);
            }
            self.system_update_id = self.system_update_id.wrapping_add(1);
            self.told_external = Some(*grant.external_v4().ip()); // one change, counted
        }
        self.learn_external(now, *grant.external_v4().ip());
        let key = Key { external_port: grant.external_v4().port(), ..key };
        self.timers.cancel(Alarm::Lifetime(mapping.flow));
        self.table.update(key, |mapping| {
            mapping.lifetime_ends = grant.ends();
            mapping.health = Health::Active;
            mapping.confirmed = true;
        });
        self.table.note_external(key);
        let renewed = self.table.find(key).expect("it was found above").clone();
        self.look_up_again(&renewed);
        if mapping.external.ip().is_unspecified() {
            self.store(now, &renewed);
            self.notice(Notice::Granted(renewed));
        } else if grant.external_v4() == mapping.external {
            self.notice(Notice::Renewed(renewed));
        } else {
            self.store_moved(now, &renewed, mapping.external.port());
            self.notice(Notice::Moved(renewed, mapping.external));
        }
    }

    pub(super) fn on_refused(&mut self, now: Instant, flow: FlowId, result: ResultCode, wait: Duration) {
        if let Some(pending) = self.pending.get(&flow) {
            let strict = pending.request.strict;
            if let (ResultCode::CANNOT_PROVIDE_EXTERNAL, Some(external_port)) =
                (result, pending.request.external_port.filter(|_| strict))
            {
                let key = Key { protocol: pending.request.protocol, external_port };
                self.refusals.remember(now, key, result, wait);
            }
            if self.pause(now, flow, result, wait) {
                return;
            }
            self.fail(now, flow, Refusal::Upstream(result));
        } else if result == ResultCode::CANNOT_PROVIDE_EXTERNAL || result == ResultCode::NOT_AUTHORIZED {
            // A mapping of before the start, or one that a new server was asked to take over.
            self.on_lost(now, flow, true);
        } else if let Some(mapping) = self.table.find_flow(flow).cloned() {
            // What passes is no reason to give it up before its lifetime has ended (decision 15).
            self.timers.set(Alarm::Again(flow), now + wait.max(REFUSED_RETRY));
            self.notice(Notice::RenewalRefused(mapping, result));
        }
    }

    /// What is to be deleted has a flow, even when it is not asked for just now: the server may hold it from before.
    pub(super) fn assume_held(&mut self, now: Instant, mapping: &Mapping) {
        let paused = self.timers.cancel(Alarm::Again(mapping.flow));
        if paused {
            self.input(now, Input::Assume(mapping.flow, self.want_to_keep(mapping)));
        }
    }

    /// The pause after a refusal is over.
    pub(super) fn ask_again_to_keep(&mut self, now: Instant, flow: FlowId) {
        if self.uplink.as_ref().is_some_and(|client| client.has(flow)) {
            return;
        }
        let Some(mapping) = self.table.find_flow(flow) else { return };
        let (want, asked_at) = (self.want_to_keep(mapping), mapping.asked_at);
        self.input(now, Input::AskInTurn(flow, want, asked_at));
    }

    /// Has the server drop what it may have given for a flow that is wanted no more.
    pub(super) fn give_back(&mut self, now: Instant, flow: FlowId) {
        if self.uplink.as_ref().is_some_and(|client| client.has(flow)) {
            self.strays.insert(flow);
            self.input(now, Input::Delete(flow));
        }
    }

    /// The same for one of many: a server that is sent thousands of deletes at once loses most of them.
    pub(super) fn give_back_in_turn(&mut self, now: Instant, flow: FlowId) {
        if self.uplink.as_ref().is_some_and(|client| client.has(flow)) {
            self.strays.insert(flow);
            self.input(now, Input::DeleteInTurn(flow));
        }
    }

    /// DeletePortMapping, by the mapping's owner only (R-27, R-28, R-29, decision 7).
    pub(super) fn delete(&mut self, now: Instant, id: RequestId, who: &Requester, entry: Entry) {
        let key = Key { protocol: entry.protocol, external_port: entry.external_port };
        match self.table.find(key) {
            None => self.refuse(id, Refusal::NoSuchEntry),
            Some(mapping) if !entry.names_remote_host_of(mapping) => {
                self.refuse(id, Refusal::NoSuchEntry);
            }
            Some(mapping) if !who.is(*mapping.internal.ip()) => {
                self.refuse(id, Refusal::NotAuthorized);
            }
            // PCP's and NAT-PMP's are let go by those who made them.
            Some(mapping) if mapping.claims.at(now).igd.is_none() => self.refuse(id, Refusal::NotAuthorized),
            Some(_) => self.let_go(now, id, key, Asker::Igd),
        }
    }

    /// DeletePortMappingRange: those of the range that belong to the control point (spec, D-10).
    pub(super) fn delete_range(&mut self, now: Instant, id: RequestId, who: &Requester, range: Range) {
        let keys: Vec<Key> = self
            .table
            .range(range.protocol, range.first, range.last)
            .filter(|mapping| who.is(*mapping.internal.ip()))
            .filter(|mapping| mapping.claims.at(now).igd.is_some())
            .map(Mapping::key)
            .collect();
        if keys.is_empty() {
            return self.refuse(id, Refusal::NoSuchEntry);
        }
        let others = |key: &Key| {
            self.table.find(*key).is_some_and(|mapping| mapping.claims.has_others_than(Asker::Igd, now))
        };
        if !self.uplink_open {
            return self.refuse(id, Refusal::NoAnswer);
        }
        let (shared, keys): (Vec<Key>, Vec<Key>) = keys.into_iter().partition(others);
        for key in shared {
            self.give_up_claim(now, key, Asker::Igd);
        }
        self.delete_all(now, id, keys);
        if let (true, Some(job)) = (self.config.optimistic_delete, self.deletes.get(&id)) {
            // whose they are and that they are there is known here (D-14). They stay, marked, until it is done, and
            // a crash does not bring them back.
            for flow in job.left.clone() {
                if let Some(mapping) = self.table.find_flow(flow).cloned() {
                    self.unstore(&mapping);
                }
            }
            self.answer(id, &[]);
            self.end_deletion(id);
        }
    }

    pub(super) fn delete_all(&mut self, now: Instant, id: RequestId, keys: Vec<Key>) {
        if !self.uplink_open {
            return self.refuse(id, Refusal::NoAnswer);
        }
        let mut job = DeleteJob { left: BTreeSet::new(), confirmed: Vec::new(), refusal: None };
        let one = keys.len() == 1;
        for key in keys {
            let mapping = self.table.find(key).expect("the caller found it").clone();
            if self.is_local_only(&mapping) {
                self.drop_mapping(now, key, Cause::Deleted);
                continue;
            }
            job.left.insert(mapping.flow);
            if let Some(next) = self.find_pending(|pending| pending.stage == Stage::Clearing(mapping.flow)) {
                // It is being replaced: what would take its place is not wanted any more either.
                self.pending.get_mut(&next).expect("found just now").replaces = None;
                self.fail(now, next, Refusal::Conflict);
            }
            if mapping.health == Health::Deleting {
                continue;
            }
            self.table.update(key, |mapping| mapping.health = Health::Deleting);
            // What its owner closes is closed here at once, however long the provider takes.
            self.close(&mapping);
            self.assume_held(now, &mapping);
            let delete = if one { Input::Delete } else { Input::DeleteInTurn };
            self.input(now, delete(mapping.flow));
        }
        if job.left.is_empty() {
            return self.answer(id, &[]);
        }
        self.deletes.insert(id, job);
    }

    pub(super) fn on_deleted(&mut self, now: Instant, flow: FlowId) {
        self.strays.remove(&flow);
        let next = self.find_pending(|pending| pending.stage == Stage::Clearing(flow));
        if next.is_some() {
            if let Some(mapping) = self.table.find_flow(flow).cloned() {
                self.unstore(&mapping);
                self.take_out(&mapping, Cause::Replaced);
                self.finish_deletes(flow, None);
            }
        } else if self.deletes.values().any(|job| job.left.contains(&flow)) {
            for job in self.deletes.values_mut().filter(|job| job.left.contains(&flow)) {
                job.confirmed.push(flow);
            }
            self.finish_deletes(flow, None);
        } else if self.table.find_flow(flow).is_some_and(|mapping| self.waits_to_be_given_again(mapping)) {
            // What is left of one that has ended (see `on_unkept`) is away, and the next request cannot be taken for it.
            self.ask_again_to_keep(now, flow);
        } else {
            self.remove_deleted(flow);
        }
        if let Some(next) = next {
            self.ask(now, next);
        }
        self.stop_if_done(now);
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
        let Some(mapping) = self.table.find_flow(flow).cloned() else { return self.stop_if_done(now) };
        if self.waits_to_be_given_again(&mapping) {
            return self.stop_if_done(now); // nobody here wanted it gone; its flow ends by itself
        }
        if self.judge_standing(&mapping, mapping.external.port()).is_err() {
            // The rules are others since: it does not come back, whatever the provider does with its part.
            self.finish_deletes(flow, Some(Refusal::Upstream(result)));
            return self.drop_mapping(now, mapping.key(), Cause::Policy);
        }
        self.table.update(mapping.key(), |mapping| mapping.health = Health::Active);
        self.reopen(&mapping);
        if self.config.optimistic_delete {
            self.store(now, &mapping); // it was forgotten too early
        }
        self.notice(Notice::DeleteRefused(mapping, result));
        self.finish_deletes(flow, Some(Refusal::Upstream(result)));
        // It may have been renewed just before its owner wanted it gone.
        if let Some(grant) = self.uplink.as_ref().and_then(|client| client.grant(flow))
            && let Some(mapping) = self.table.find_flow(flow).cloned()
            && (grant.ends(), grant.external_v4()) != (mapping.lifetime_ends, mapping.external)
        {
            self.on_renewed(now, &mapping, grant);
        }
    }

    /// Answers the deletions that waited for nothing else than this flow.
    pub(super) fn finish_deletes(&mut self, flow: FlowId, refusal: Option<Refusal>) {
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
            self.end_deletion(id);
            match refusal {
                Some(refusal) => self.refuse(id, refusal),
                None => self.answer(id, &[]),
            }
        }
    }

    /// What is confirmed of a deletion leaves the table; the rest goes when it is.
    pub(super) fn end_deletion(&mut self, id: RequestId) {
        let Some(job) = self.deletes.remove(&id) else { return };
        for flow in job.confirmed {
            self.remove_deleted(flow);
        }
    }

    fn remove_deleted(&mut self, flow: FlowId) {
        if let Some(mapping) = self.table.find_flow(flow).cloned() {
            if mapping.health != Health::Deleting {
                self.close(&mapping); // nobody here wanted it gone
            }
            self.unstore(&mapping);
            self.take_out(&mapping, Cause::Deleted);
            self.notice(Notice::Removed(mapping, Cause::Deleted));
        }
    }

    pub(super) fn on_renewal_refused(&mut self, now: Instant, flow: FlowId, result: ResultCode) {
        if self.pending.contains_key(&flow) {
            // What was held for a control point, and is asked for again or with a remote host.
            return self.fail(now, flow, Refusal::Upstream(result));
        }
        if self.held.get(flow).is_some() {
            return self.release(now, flow); // it is nothing to rely on
        }
        let Some(mapping) = self.table.find_flow(flow).cloned() else { return };
        self.table.update(mapping.key(), |mapping| {
            if mapping.health == Health::Active {
                mapping.health = Health::Degraded;
            }
        });
        self.notice(Notice::RenewalRefused(mapping, result));
        self.on_unconfirmed(now, flow, Refusal::Upstream(result));
    }

    pub(super) fn on_lost(&mut self, now: Instant, flow: FlowId, refused: bool) {
        self.strays.remove(&flow);
        if self.pending.contains_key(&flow) {
            // Granted, and taken away again before it was acknowledged.
            self.fail(now, flow, Refusal::Upstream(ResultCode::CANNOT_PROVIDE_EXTERNAL));
        } else if let Some(key) = self.table.find_flow(flow).map(Mapping::key) {
            let mapping = self.table.find(key).expect("it was found by its flow").clone();
            self.on_unkept(now, &mapping, Cause::LostUpstream, refused);
        } else {
            self.release(now, flow);
        }
        self.stop_if_done(now);
    }

    /// The server does not give what stands. That is its end (decision 15), unless the server is that of a spare line: then it stays,
    /// shown as degraded, for the usual one, which has it or gives it again. Should that be given meanwhile which is not wanted, it ends by
    /// itself. What was not `refused`, but has ended without an answer, is there again as soon as there is one. So is what has ended while
    /// the machine slept, and nobody could ask.
    fn on_unkept(&mut self, now: Instant, mapping: &Mapping, cause: Cause, refused: bool) {
        let is_spare = self.keeps(mapping);
        let is_wanted = mapping.health != Health::Deleting && !self.stopping;
        let overslept = self.woke == Some(now) && !refused && is_wanted;
        if !is_spare && !overslept {
            return self.drop_mapping(now, mapping.key(), cause);
        }
        self.timers.cancel(Alarm::Lifetime(mapping.flow));
        self.table.update(mapping.key(), |mapping| {
            mapping.health = Health::Degraded;
            mapping.confirmed = false;
        });
        if refused {
            self.input(now, Input::Forget(mapping.flow));
            self.timers.set(Alarm::Again(mapping.flow), now + SPARE_RETRY);
        } else {
            self.ask_again_to_keep(now, mapping.flow);
        }
        if is_spare {
            self.notice(Notice::NotAtSpare(mapping.clone(), self.wan.name.clone()));
        }
    }

    /// Whether the mapping stands also without the server that is in use.
    fn keeps(&self, mapping: &Mapping) -> bool {
        self.wan.is_spare && mapping.health != Health::Deleting && !self.stopping
    }

    /// Whether the server has not given it, or not again, and is to.
    fn waits_to_be_given_again(&self, mapping: &Mapping) -> bool {
        mapping.health != Health::Deleting && !self.stopping && !mapping.confirmed
    }

    /// The server has lost its state, or is another one: until it answers for a mapping, that is in doubt.
    pub(super) fn doubt_all(&mut self, also: impl Fn(&mut Mapping)) {
        for key in self.table.iter().map(Mapping::key).collect::<Vec<_>>() {
            self.table.update(key, |mapping| {
                also(mapping);
                if mapping.health == Health::Active {
                    mapping.health = Health::Degraded;
                }
            });
        }
    }

    /// A renewal was not answered until the next one: shown, and tried again (R-35, decision 15).
    pub(super) fn on_unrenewed(&mut self, flow: FlowId) {
        let Some(mapping) = self.table.find_flow(flow) else { return };
        if mapping.health == Health::Active {
            let key = mapping.key();
            self.table.update(key, |mapping| mapping.health = Health::Degraded);
        }
    }

    /// Another server was asked to take the mapping over, and has not until the first one's lifetime ended.
    pub(super) fn on_lifetime_over(&mut self, now: Instant, flow: FlowId) {
        self.on_lost(now, flow, false);
    }

    /// Another server is in use: what is being deleted at the old one ends there by itself.
    pub(super) fn abandon_deletes(&mut self, now: Instant) {
        for flow in self.pending.keys().copied().collect::<Vec<_>>() {
            let pending = self.pending.get(&flow).expect("one of the keys");
            if let Stage::Clearing(old) = pending.stage {
                self.pending.remove(&flow);
                let Some(old) = self.table.find_flow(old).cloned() else { continue };
                // The rules may be others since.
                match self.judge_standing(&old, old.external.port()) {
                    Ok(()) => self.table.update(old.key(), |old| old.health = Health::Active),
                    Err(_) => self.drop_mapping(now, old.key(), Cause::Policy),
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

    /// Everything that a LAN host has or is about to have goes: its address may be another host's soon (R-36, decision 18).
    pub(super) fn on_release(&mut self, now: Instant, host: Ipv4Addr, cause: Cause) {
        let of_host = |pending: &Pending| *pending.request.internal.ip() == host;
        let wanted: Vec<FlowId> =
            self.pending.iter().filter(|(_, pending)| of_host(pending)).map(|(&flow, _)| flow).collect();
        for flow in wanted {
            // Nor does what it was to replace come back.
            self.pending.get_mut(&flow).expect("found above").replaces = None;
            self.fail(now, flow, Refusal::Released);
        }
        self.forget_lookups_of(host);
        self.refuse_deferred_of(host);
        self.drop_peers(Some(host), Refusal::Released, false);
        for flow in self.held.of_host(host).map(|(flow, _)| flow).collect::<Vec<_>>() {
            self.release(now, flow);
        }
        let of_host = |mapping: &&Mapping| *mapping.internal.ip() == host;
        for key in self.table.iter().filter(of_host).map(Mapping::key).collect::<Vec<_>>() {
            self.drop_mapping(now, key, cause);
        }
    }

    /// Removes a mapping here at once, and upstream as soon as the server confirms it.
    pub(super) fn drop_mapping(&mut self, now: Instant, key: Key, cause: Cause) {
        let Some(mapping) = self.table.find(key).cloned() else { return };
        if mapping.health != Health::Deleting {
            self.close(&mapping);
            self.assume_held(now, &mapping);
        }
        match cause {
            Cause::LeaseEnded => {
                self.effects.push_back(Effect::Store(Record::Ended(key.protocol, key.external_port)));
            }
            // At the end; but who deleted it was told so, or is about to be.
            Cause::Stopping if mapping.health != Health::Deleting => {}
            _ => self.unstore(&mapping),
        }
        self.take_out(&mapping, cause);
        match cause {
            Cause::Stopping => {
                if mapping.health != Health::Deleting {
                    self.given_back.insert(mapping.flow, key);
                }
                self.give_back_in_turn(now, mapping.flow);
            }
            // After a start, before there is anybody to be told.
            Cause::Released | Cause::Rebound | Cause::OffLan | Cause::ProtocolOff | Cause::Policy
                if self.uplink.is_none() =>
            {
                self.restored.unwanted.push((mapping.flow, self.want_to_keep(&mapping)));
            }
            // Many leases may end at once, after a sleep for instance.
            Cause::LeaseEnded
            | Cause::Released
            | Cause::Rebound
            | Cause::OffLan
            | Cause::ProtocolOff
            | Cause::Policy => {
                self.give_back_in_turn(now, mapping.flow);
            }
            _ => self.give_back(now, mapping.flow),
        }
        self.finish_deletes(mapping.flow, None);
        if cause == Cause::LostUpstream && self.table.is_empty() && !self.is_connected() {
            self.forget_external(); // nothing tells it until the server answers again
        }
        self.notice(Notice::Removed(mapping, cause));
    }

    /// Forgets a mapping here.
    pub(super) fn take_out(&mut self, mapping: &Mapping, cause: Cause) {
        self.table.remove(mapping.key(), cause);
        self.lookups.forget(mapping.flow);
        self.timers.cancel(Alarm::Lease(mapping.flow));
        self.timers.cancel(Alarm::Lifetime(mapping.flow));
        self.timers.cancel(Alarm::Again(mapping.flow));
        self.refuse_confirming(mapping.flow, Refusal::NoAnswer);
        if let Some(port) = mapping.nat_port {
            self.nat_ports.release(mapping.protocol, port);
        }
        self.system_update_id = self.system_update_id.wrapping_add(1);
    }

    pub(super) fn set_lease_alarm(&mut self, mapping: &Mapping) {
        match mapping.lease_ends() {
            Some(end) => self.timers.set(Alarm::Lease(mapping.flow), end),
            None => {
                self.timers.cancel(Alarm::Lease(mapping.flow));
            }
        }
    }

    pub(super) fn new_flow(&mut self) -> FlowId {
        self.next_flow += 1;
        FlowId(self.next_flow)
    }
}

/// The IPv4 address of a control point, if it came by IPv4.
pub(super) fn v4(from: IpAddr) -> Option<Ipv4Addr> {
    match from.to_canonical() {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

//! The router's own NAT as the gateway steers it: rules that follow the table, and what became of each change.

use std::net::SocketAddrV4;

use wire::pcp::Protocol;

use super::pending::{Pending, Purpose, Stage};
use super::{Alarm, Effect, Gateway, NatTicket, RequestId};
use crate::nat::{NatChange, NatFailure, NatRule};
use crate::notice::{Cause, Notice};
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Mapping};
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Input, Unknown};

/// What an outcome of the router's own NAT belongs to.
#[derive(Debug)]
pub(super) enum NatPurpose {
    /// The port of a pending mapping.
    Reserve(FlowId),
    /// The rule of a pending mapping.
    Install(FlowId),
    /// Its owner led a mapping to another internal port (spec T-4, decision 9): this rule in place of that one.
    Repoint { flow: FlowId, old: NatRule, request: MappingRequest, id: RequestId },
    /// The rule of a mapping whose remote host has another address now: this rule in place of that one.
    Readmit { flow: FlowId, old: NatRule, new: NatRule },
    /// The same, and the mapping was deleted meanwhile: by the new rule, so that the old one is still there should the
    /// change have failed.
    Overtaken { flow: FlowId, old: NatRule, id: Option<RequestId> },
    /// The port of an orphan: is it ours, or that of a program of the router?
    Adopt(FlowId, Unknown),
    /// The rule of a mapping whose deletion was refused.
    Reinstall(FlowId),
    /// Another external address or port, by which LAN hosts come to it.
    Move(FlowId),
    /// The port of a flow that is no mapping's.
    PeerPort(FlowId, NatRule),
    /// The rule of such a flow.
    Peer(FlowId, NatRule),
    /// The end of a rule; nobody waits for it.
    Remove(NatRule),
}

/// When the kernel is asked again to remove a rule, or to lead LAN hosts by another external address or port.
const REMOVE_AGAIN: Duration = Duration::from_secs(10);

impl Gateway {
    pub(super) fn on_nat(&mut self, now: Instant, ticket: NatTicket, outcome: Result<(), NatFailure>) {
        let Some(purpose) = self.nat_tickets.remove(&ticket) else {
            return self.on_firewall(now, ticket, outcome);
        };
        let displaced = self.displaced.remove(&ticket).filter(|_| outcome.is_err());
        self.repointing.retain(|_, (last, _)| *last != ticket);
        self.on_outcome(now, purpose, outcome);
        if let Some(old) = displaced {
            self.note_unremoved(now, old);
        }
        // What the kernel takes its time for is no silence of the provider's.
        self.stop_if_done(now);
    }

    fn on_outcome(&mut self, now: Instant, purpose: NatPurpose, outcome: Result<(), NatFailure>) {
        // One that has failed before was told of.
        let again = match &purpose {
            NatPurpose::Remove(rule) => self.unremoved.contains(rule),
            NatPurpose::Move(flow) => self.unmoved.contains(flow),
            _ => false,
        };
        if let (Err(NatFailure::Kernel(error)), false) = (&outcome, again) {
            self.notice(Notice::NatFailed(error.clone()));
        }
        match (purpose.standing(), &outcome) {
            (Some(flow), Err(_)) => self.note_unmoved(now, flow),
            (Some(flow), Ok(())) => drop(self.unmoved.remove(&flow)),
            (None, _) => {}
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
                Some(pending) if pending.waiters.is_empty() && pending.purpose != Purpose::Restore => {
                    self.fail(now, flow, Refusal::NoAnswer);
                }
                Some(Pending { stage: Stage::Local(external), .. }) => {
                    let external = *external;
                    self.finish_locally(now, flow, external);
                }
                Some(Pending { stage: Stage::Installing(grant), .. }) => {
                    let grant = *grant;
                    self.finish(now, flow, grant);
                }
                _ => {}
            },
            (NatPurpose::Repoint { flow, request, id, .. }, Ok(())) => {
                match self.table.find_flow(flow) {
                    // The provider has moved it meanwhile; it stands for whoever hears of that by event.
                    Some(mapping)
                        if request.strict && request.external_port != Some(mapping.external.port()) =>
                    {
                        let key = mapping.key();
                        self.update(now, key, MappingRequest { strict: false, ..request });
                        self.hurry_degraded(now, flow);
                        self.refuse(id, Refusal::Conflict);
                    }
                    Some(mapping) => {
                        let (key, external) = (mapping.key(), mapping.external);
                        self.update(now, key, request);
                        self.hurry_degraded(now, flow);
                        // The rules may be others since it was asked for.
                        let moved = self.table.find(key);
                        if moved.is_some_and(|one| self.judge_standing(one, key.external_port).is_err()) {
                            self.refuse(id, Refusal::NotAuthorized);
                            return self.drop_mapping(now, key, Cause::Policy);
                        }
                        self.answer_added(id, external);
                    }
                    None => self.refuse(id, Refusal::NoAnswer),
                }
            }
            (NatPurpose::Repoint { id, .. }, Err(_)) => self.refuse(id, Refusal::LocalNat),
            (NatPurpose::Readmit { flow, new, .. }, Ok(())) => self.readmit(now, flow, new.remote_peer),
            (NatPurpose::Readmit { flow, .. }, Err(_)) => self.on_unconfirmed(now, flow, Refusal::LocalNat),
            (NatPurpose::Adopt(flow, unknown), Ok(())) => self.hold_orphan(now, flow, unknown),
            (NatPurpose::Adopt(_, unknown), Err(_)) => {
                self.nat_ports.release(unknown.protocol, unknown.internal_port);
            }
            (NatPurpose::Overtaken { flow, old, id }, outcome) => {
                let gone = |mapping: &Mapping| mapping.health == Health::Deleting;
                if outcome.is_err() && self.table.find_flow(flow).is_none_or(gone) {
                    self.remove_rule(old);
                }
                if let Some(id) = id {
                    self.refuse(id, Refusal::NoAnswer);
                }
            }
            (NatPurpose::Reinstall(flow), Err(_)) => {
                if let Some(key) = self.table.find_flow(flow).map(Mapping::key) {
                    self.table.update(key, |mapping| mapping.health = Health::Deleting);
                    self.drop_mapping(now, key, Cause::LocalNat);
                }
            }
            (NatPurpose::Remove(rule), Err(_)) => {
                self.note_unremoved(now, rule);
            }
            (NatPurpose::PeerPort(flow, rule), outcome) => self.on_peer_port(now, flow, rule, outcome),
            (NatPurpose::Peer(flow, rule), outcome) => self.on_peer_held(now, flow, rule, outcome.is_ok()),
            (NatPurpose::Remove(rule), Ok(())) => drop(self.unremoved.remove(&rule)),
            (NatPurpose::Reserve(_) | NatPurpose::Reinstall(_) | NatPurpose::Move(_), _) => {}
        }
    }

    /// Somebody counts on it again: the provider is asked at once for what is in doubt.
    fn hurry_degraded(&mut self, now: Instant, flow: FlowId) {
        if self.table.find_flow(flow).is_some_and(|mapping| mapping.health == Health::Degraded) {
            self.input(now, Input::Hurry(flow));
        }
    }

    /// The rule of a mapping, which may be on its way still, gives way to another one.
    pub(super) fn repoint(&mut self, flow: FlowId, old: NatRule, new: NatRule, purpose: NatPurpose) {
        let external = self.table.find_flow(flow).and_then(outermost);
        self.change_nat(NatChange::Replace { old, new, external }, purpose);
        self.repointing.insert(flow, (NatTicket(self.next_ticket), new));
    }

    /// A mapping is closed here: its rule goes, and what was to replace that rule counts no more.
    pub(super) fn close(&mut self, mapping: &Mapping) {
        let Some(rule) = self.rule(mapping) else { return };
        self.remove_rule(rule);
        self.repointing.remove(&mapping.flow);
        for purpose in self.nat_tickets.values_mut() {
            match *purpose {
                NatPurpose::Repoint { flow, old, id, .. } if flow == mapping.flow => {
                    *purpose = NatPurpose::Overtaken { flow, old, id: Some(id) };
                }
                NatPurpose::Readmit { flow, old, .. } if flow == mapping.flow => {
                    *purpose = NatPurpose::Overtaken { flow, old, id: None };
                }
                _ => {}
            }
        }
    }

    /// A mapping that was closed stands after all.
    pub(super) fn reopen(&mut self, mapping: &Mapping) {
        if let Some(port) = mapping.nat_port {
            let install = NatChange::Install { rule: rule(mapping, port), external: outermost(mapping) };
            self.change_nat(install, NatPurpose::Reinstall(mapping.flow));
        }
    }

    /// The rule that the router's own NAT has, or is about to have, for a mapping.
    pub(super) fn rule(&self, mapping: &Mapping) -> Option<NatRule> {
        let asked = self.repointing.get(&mapping.flow).map(|&(_, rule)| rule);
        asked.or_else(|| mapping.nat_port.map(|port| rule(mapping, port)))
    }

    /// What it let in is let in no more.
    pub(super) fn remove_rule(&mut self, rule: NatRule) {
        self.change_nat(NatChange::Remove(rule), NatPurpose::Remove(rule));
    }

    /// Changes are made and told in their order, so that a later rule of that port is not there yet, unless its mapping stands.
    fn note_unremoved(&mut self, now: Instant, rule: NatRule) {
        let holder = self.nat_ports.holder(rule.protocol, rule.port);
        let standing = holder.and_then(|flow| self.table.find_flow(flow));
        if standing
            .is_some_and(|mapping| mapping.health != Health::Deleting && self.rule(mapping) == Some(rule))
        {
            return;
        }
        if self.peer_rules().any(|one| one == rule) {
            return;
        }
        self.unremoved.insert(rule);
        self.timers.set(Alarm::Remove, now + REMOVE_AGAIN);
    }

    /// What is at the place of this rule, for the kernel would not remove it.
    fn unremoved_at(&self, new: &NatRule) -> Option<NatRule> {
        let at = |rule: &&NatRule| place(rule) == place(new);
        let mut all = self.unremoved.iter().filter(at);
        // The very place, if that is taken: others are only for other remote hosts.
        all.clone().find(|rule| rule.remote_peer == new.remote_peer).or_else(|| all.next()).copied()
    }

    /// The kernel would not remove or move these before.
    pub(super) fn remove_again(&mut self) {
        for rule in self.unremoved.iter().copied().collect::<Vec<_>>() {
            self.remove_rule(rule);
        }
        for flow in self.unmoved.iter().copied().collect::<Vec<_>>() {
            self.move_hairpin(flow);
        }
    }

    /// Whether the kernel leads LAN hosts by the external address and port of this mapping is unknown.
    fn note_unmoved(&mut self, now: Instant, flow: FlowId) {
        let Some(mapping) = self.table.find_flow(flow) else { return };
        let Some(port) = mapping.nat_port else { return };
        self.hairpins.remove(&(mapping.protocol, port));
        self.unmoved.insert(flow);
        self.timers.set(Alarm::Remove, now + REMOVE_AGAIN);
    }

    /// Ends a turn: LAN hosts are led by the external address and port that a mapping has now (decision 26). Seen by
    /// comparing, for a grant may change while the kernel is at work.
    pub(super) fn move_hairpin(&mut self, flow: FlowId) {
        let open = |mapping: &&Mapping| mapping.health != Health::Deleting;
        let Some(mapping) = self.table.find_flow(flow).filter(open) else {
            self.unmoved.remove(&flow);
            return;
        };
        let (protocol, external) = (mapping.protocol, outermost(mapping));
        let Some(port) = mapping.nat_port else { return };
        let told = self.hairpins.get(&(protocol, port)).copied();
        if told != external || self.unmoved.contains(&flow) {
            self.change_nat(NatChange::Move { protocol, port, external }, NatPurpose::Move(flow));
        }
    }

    pub(super) fn change_nat(&mut self, change: NatChange, purpose: NatPurpose) {
        if let NatChange::Install { rule: new, .. } = change {
            // One is replaced below; those that PEER's flows had beside it go first.
            let replaced = self.unremoved_at(&new);
            let beside = |rule: &&NatRule| place(rule) == place(&new) && Some(**rule) != replaced;
            for rule in self.unremoved.iter().filter(beside).copied().collect::<Vec<_>>() {
                self.remove_rule(rule);
            }
        }
        self.next_ticket += 1;
        let ticket = NatTicket(self.next_ticket);
        let change = match change {
            // Its port is free but for rules that should be gone.
            NatChange::Install { rule: new, external } => match self.unremoved_at(&new) {
                Some(old) => {
                    self.unremoved.remove(&old);
                    self.displaced.insert(ticket, old);
                    NatChange::Replace { old, new, external }
                }
                None => change,
            },
            change => change,
        };
        match change {
            NatChange::Reserve { .. } => {}
            NatChange::Install { rule, external } | NatChange::Replace { new: rule, external, .. } => {
                self.note_hairpin(place(&rule), external);
            }
            NatChange::Move { protocol, port, external } => self.note_hairpin((protocol, port), external),
            NatChange::Remove(rule) => self.note_hairpin(place(&rule), None),
        }
        self.nat_tickets.insert(ticket, purpose);
        self.effects.push_back(Effect::Nat { ticket, change });
    }

    fn note_hairpin(&mut self, place: (Protocol, u16), external: Option<SocketAddrV4>) {
        match external {
            Some(external) => drop(self.hairpins.insert(place, external)),
            None => drop(self.hairpins.remove(&place)),
        }
    }
}

impl NatPurpose {
    /// The mapping that stands, or is about to, whose rule it is about.
    fn standing(&self) -> Option<FlowId> {
        match *self {
            Self::Install(flow)
            | Self::Reinstall(flow)
            | Self::Move(flow)
            | Self::Repoint { flow, .. }
            | Self::Readmit { flow, .. } => Some(flow),
            Self::Reserve(_)
            | Self::Overtaken { .. }
            | Self::Adopt(..)
            | Self::PeerPort(..)
            | Self::Peer(..)
            | Self::Remove(_) => None,
        }
    }
}

/// Where the mapping stands at the provider's NAT, if it does.
pub(super) fn outermost(mapping: &Mapping) -> Option<SocketAddrV4> {
    Some(mapping.external).filter(|external| !external.ip().is_unspecified())
}

fn place(rule: &NatRule) -> (Protocol, u16) {
    (rule.protocol, rule.port)
}

fn rule(mapping: &Mapping, port: u16) -> NatRule {
    NatRule { protocol: mapping.protocol, port, internal: mapping.internal, remote_peer: mapping.remote_peer }
}

//! The life of pinholes (igd.md 8, RFC 6887 for IPv6): asked for by whichever protocol, allowed by policy, opened at the provider's
//! firewall where that has a PCP server (`carried`), then in this router's own, then stored and answered.
//!
//! Where the provider has no such server, which is the rule, this router's firewall is the only one. A server that comes later is asked
//! for what stands by then; whoever asked has been answered, and what that server does not open is told in the log and the status.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use wire::error::UpnpError;
use wire::pcp::Protocol;
use wire::services::{ActionId, Value};
use wire::soap::Call;

use super::lan::pinholes::own;
use super::unreachable::KERNEL;
use super::waiting::BACKGROUND;
use super::{Alarm, Effect, Gateway, NatTicket, RequestId, WhenUnreachable};
use crate::claims::{Asker, Claims, PcpClaim};
use crate::igd::{Asked, PinholeAction, upnp_error};
use crate::journal::{Record, StoredPinhole};
use crate::nat::NatFailure;
use crate::notice::{Notice, PinholeEnd, PinholeNews};
use crate::pinholes::{Endpoint, FirewallChange, Flows, Pinhole, PinholeTable, Stage};
use crate::policy::{Denied, PinholeFacts, Ports, Requester, Wish};
use crate::request::Refusal;
use crate::status::PinholeStatus;
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Uplink};

mod carried;
mod provider;

use carried::Carriage;
use provider::Provider;
pub use provider::{UplinkEffect, UplinkEvent};

/// What came too late for who asked is held so long for its next try (decision 1).
const HELD: Duration = Duration::from_secs(30);
/// The kernel is asked again to close what it would not.
const CLOSE_AGAIN: Duration = Duration::from_secs(10);

/// What has to be looked up outside about pinholes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PinholeReading {
    /// How many packets this pinhole has let in.
    Packets(Flows),
    /// After how many seconds without a packet the firewall forgets a flow that a LAN host began.
    Timeout(Protocol),
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Pinholes {
    table: PinholeTable,
    /// Who waits for what is not open, or for the provider to grant it anew; and by which protocol.
    waiters: BTreeMap<u16, Vec<(RequestId, Asker)>>,
    carriage: Carriage,
    opening: BTreeMap<NatTicket, u16>,
    closing: BTreeMap<NatTicket, Flows>,
    /// What the kernel would not close.
    unclosed: BTreeSet<Flows>,
    reading: BTreeMap<RequestId, Call>,
    /// What has come to stand in the last turn.
    stood: Vec<u16>,
    /// What takes the place of other pinholes of its PCP client, as soon as it is stored.
    replacing: Vec<u16>,
    /// The provider has not confirmed their end, which the gateway waits for at its own.
    given_back: BTreeMap<FlowId, Vec<u16>>,
    pub(super) provider: Provider,
}

/// A pinhole that is asked for.
pub(super) struct Wanted {
    pub(super) flows: Flows,
    pub(super) by: Asker,
    pub(super) lease: Duration,
    pub(super) description: Option<String>,
}

impl Pinholes {
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.provider.client.as_ref().and_then(|client| client.next_timeout())
    }

    /// Whether nothing of them is on its way.
    pub(super) fn is_idle(&self) -> bool {
        let half_way = [self.waiters.len(), self.opening.len(), self.closing.len(), self.unclosed.len()];
        half_way == [0; 4] && self.is_given_back() && self.reading.is_empty()
    }

    /// Whether the provider has confirmed every end.
    pub(super) fn is_given_back(&self) -> bool {
        self.carriage.strays.is_empty()
    }

    pub(super) fn begin_turn(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.stood)
    }
}

impl Gateway {
    /// Whether control points and PCP clients may have pinholes at all.
    pub(super) fn allows_pinholes(&self) -> bool {
        self.config.pinholes
    }

    /// How many there are.
    pub(super) fn pinhole_count(&self) -> usize {
        self.pinholes.table.len()
    }

    /// All of them, as they are shown.
    pub fn pinholes(&self, now: Instant) -> Vec<PinholeStatus> {
        let status = |pinhole: &Pinhole| {
            let carried = self.pinholes.carriage.find(pinhole.flows.to);
            PinholeStatus {
                id: pinhole.id,
                flows: pinhole.flows,
                description: pinhole.description.clone(),
                is_open: pinhole.stage == Stage::Open,
                age: now - pinhole.created,
                asked_by: pinhole.claims.asked_by(now),
                lease_left: pinhole.claims.end().map(|end| end - now),
                at_provider: carried.and_then(|carried| carried.grant).map(|grant| grant.external),
                is_degraded: carried.is_some_and(|carried| carried.degraded),
            }
        };
        self.pinholes.table.iter().map(status).collect()
    }

    /// The provider's IPv6 firewall that is asked, if one has been found.
    pub fn firewall_server(&self) -> Option<SocketAddr> {
        self.pinholes.provider.client.as_ref().map(|client| client.server())
    }

    /// Each of them, also what is being asked for.
    pub(super) fn all_pinholes(&self) -> impl Iterator<Item = &Pinhole> {
        self.pinholes.table.iter()
    }

    /// What a PCP client has of this port, and by what it shows that it was it.
    pub(super) fn pinhole_by_pcp(&self, now: Instant, to: Endpoint) -> Option<(Pinhole, PcpClaim<Instant>)> {
        let claimed = |pinhole: &Pinhole| Some((pinhole.clone(), pinhole.claims.at(now).pcp?));
        self.pinholes.table.of(to).find_map(claimed)
    }

    /// What lets in exactly these.
    pub(super) fn pinhole_at(&self, flows: &Flows) -> Option<&Pinhole> {
        self.pinholes.table.at(flows)
    }

    /// Whether there are any of this port.
    pub(super) fn has_pinholes(&self, to: Endpoint) -> bool {
        self.pinholes.table.of(to).next().is_some()
    }

    /// By what address and port it is reached from outside.
    pub(super) fn external_of_pinhole(&self, to: Endpoint) -> SocketAddr {
        let grant = self.pinholes.carriage.find(to).and_then(|carried| carried.grant);
        grant.map_or_else(|| own(to), |grant| grant.external)
    }

    pub(super) fn on_pinhole_action(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        call: Call,
        action: Result<PinholeAction, UpnpError>,
    ) {
        let reply = |answer: Result<Vec<Value>, UpnpError>| Effect::Reply {
            request: id,
            answer: answer.map(|values| call.response(&values)),
        };
        let allowed = self.allows_pinholes();
        let answer = match action {
            Ok(PinholeAction::Status) => Ok(vec![Value::Boolean(true), Value::Boolean(allowed)]),
            _ if !allowed => Err(UpnpError::INBOUND_PINHOLE_NOT_ALLOWED),
            Err(error) => Err(error),
            _ if self.stopping => Err(UpnpError::ACTION_FAILED), // there would be nobody left to answer
            Ok(PinholeAction::Add(flows, lease)) => {
                self.wait(now, id, call, Asked::Pinhole);
                let wanted = Wanted { flows, by: Asker::Igd, lease, description: None };
                return self.want_pinhole(now, id, who, wanted);
            }
            Ok(PinholeAction::Update(pinhole, lease)) => {
                self.own_pinhole(now, who, pinhole).and_then(|flows| {
                    let denied =
                        |denied| Notice::Pinhole(PinholeNews::Denied(who.asker().source(), flows, denied));
                    let told = (wish(&flows, Asker::Igd), denied);
                    self.deny_pinhole_renewal(now, who, &Ports::of_pinhole(flows.to), told)
                        .map_err(|refusal| upnp_error(refusal, Asked::Pinhole, call.version))?;
                    self.renew_pinhole(now, pinhole, Asker::Igd, lease);
                    self.pinhole_extended(now, pinhole);
                    Ok(Vec::new())
                })
            }
            Ok(PinholeAction::Delete(pinhole)) => self.own_pinhole(now, who, pinhole).map(|_| {
                self.let_pinhole_go(now, pinhole, Asker::Igd, PinholeEnd::Deleted);
                Vec::new()
            }),
            Ok(PinholeAction::Packets(pinhole) | PinholeAction::Check(pinhole)) => {
                match self.own_pinhole(now, who, pinhole) {
                    Ok(flows) => return self.read_of_pinhole(now, id, call, PinholeReading::Packets(flows)),
                    Err(error) => Err(error),
                }
            }
            Ok(PinholeAction::Timeout(protocol)) => {
                return self.read_of_pinhole(now, id, call, PinholeReading::Timeout(protocol));
            }
        };
        self.effects.push_back(reply(answer));
    }

    /// The flows of a control point's own pinhole. What a PCP client of the same host has made it never heard the number of.
    fn own_pinhole(&self, now: Instant, who: &Requester, id: u16) -> Result<Flows, UpnpError> {
        let found = self.pinholes.table.find(id).filter(|pinhole| pinhole.claims.at(now).igd.is_some());
        let pinhole = found.ok_or(UpnpError::NO_SUCH_PINHOLE)?;
        let is_own = who.has(IpAddr::V6(pinhole.flows.to.addr));
        is_own.then_some(pinhole.flows).ok_or(UpnpError::NOT_AUTHORIZED)
    }

    fn read_of_pinhole(&mut self, now: Instant, id: RequestId, call: Call, what: PinholeReading) {
        self.pinholes.reading.insert(id, call);
        self.timers.set(Alarm::Patience(id), now + self.config.answer_within);
        self.effects.push_back(Effect::ReadPinhole { request: id, what });
    }

    pub(super) fn on_pinhole_read(&mut self, request: RequestId, value: Option<u32>) {
        let Some(call) = self.pinholes.reading.remove(&request) else { return };
        self.timers.cancel(Alarm::Patience(request));
        let value = match (call.action.id, value) {
            (_, None) => Err(UpnpError::ACTION_FAILED),
            (ActionId::CheckPinholeWorking, Some(0)) => Err(UpnpError::NO_TRAFFIC_RECEIVED),
            (ActionId::CheckPinholeWorking, Some(_)) => Ok(Value::Boolean(true)),
            (_, Some(number)) => Ok(Value::Number(number)),
        };
        let answer = value.map(|value| call.response(&[value]));
        self.effects.push_back(Effect::Reply { request, answer });
    }

    /// Somebody has waited long enough; false when it was for something else. The exchange goes on for a while (decision 1).
    pub(super) fn on_pinhole_patience_over(&mut self, now: Instant, id: RequestId) -> bool {
        if self.pinholes.reading.contains_key(&id) {
            self.on_pinhole_read(id, None);
            return true;
        }
        let waits = self.waits_no_more_for_pinhole(now, id);
        if waits {
            self.refuse_or_forget(id);
        }
        waits
    }

    /// Somebody who waits for a pinhole does no more; false when it was for something else.
    pub(super) fn waits_no_more_for_pinhole(&mut self, now: Instant, id: RequestId) -> bool {
        let waits = |(_, all): &(&u16, &mut Vec<(RequestId, Asker)>)| all.iter().any(|(one, _)| *one == id);
        let Some((&pinhole, waiters)) = self.pinholes.waiters.iter_mut().find(waits) else { return false };
        let place = waiters.iter().position(|(one, _)| *one == id).expect("it was just found");
        let (_, by) = waiters.remove(place);
        let (nobody, alike) = (waiters.is_empty(), waiters.iter().any(|(_, other)| other.speaks_like(by)));
        if nobody {
            self.pinholes.waiters.remove(&pinhole);
        }
        let Some(found) = self.pinholes.table.find_mut(pinhole) else { return true };
        if found.stage == Stage::Open || found.stored {
            return true;
        }
        if nobody {
            self.timers.set(Alarm::PinholeBackground(pinhole), now + BACKGROUND);
        } else if !alike {
            found.claims.give_up(by); // whoever gets it, it is not this one
        }
        true
    }

    /// It has gone on long enough without anybody who waits.
    pub(super) fn on_pinhole_background_over(&mut self, now: Instant, id: u16) {
        let unwanted = |pinhole: &&Pinhole| pinhole.stage != Stage::Open && !pinhole.stored;
        if self.pinholes.table.find(id).filter(unwanted).is_some() && !self.pinholes.waiters.contains_key(&id)
        {
            self.fail_pinhole(now, id, Refusal::NoAnswer);
        }
    }

    /// A pinhole is wanted; the waiter is there under `id`.
    pub(super) fn want_pinhole(&mut self, now: Instant, id: RequestId, who: &Requester, wanted: Wanted) {
        let Wanted { flows, by, lease, description } = wanted;
        if let Err(refusal) = self.admit_pinhole(now, who, &flows, by) {
            return self.refuse(id, refusal);
        }
        let stands = self.pinholes.table.at(&flows).filter(|pinhole| pinhole.stage == Stage::Open);
        let costs = stands.is_none() || self.must_ask_again(now, flows.to, by, lease);
        let denied = PinholeNews::Denied(who.asker().source(), flows, Denied::TooOften);
        let told = (wish(&flows, by), Notice::Pinhole(denied));
        if costs && !self.may_exchange_for_pinhole(now, id, who, told) {
            return;
        }
        if let Some(found) = self.pinholes.table.at(&flows).map(|pinhole| pinhole.id) {
            self.renew_pinhole(now, found, by, lease);
            let pinhole = self.pinholes.table.find_mut(found).expect("it was just found");
            pinhole.hardware = who.hardware().or(pinhole.hardware);
            if let Some(description) = description {
                pinhole.description = description;
            }
            let is_open = pinhole.stage == Stage::Open;
            self.timers.cancel(Alarm::PinholeBackground(found));
            if is_open && !self.must_ask_again(now, flows.to, by, lease) {
                return self.answer_pinhole(now, id, found);
            }
            self.pinholes.waiters.entry(found).or_default().push((id, by));
            return if is_open { self.confirm_at_provider(now, flows.to) } else { self.carry(now, flows.to) };
        }
        if self.pinholes.table.is_empty() {
            let mut start = [0; 2];
            self.entropy.fill(&mut start);
            self.pinholes.table.begin_after(u16::from_be_bytes(start));
        }
        let Some(new) = self.pinholes.table.free_id() else { return self.refuse(id, Refusal::Full) };
        self.pinholes.table.insert(Pinhole {
            id: new,
            flows,
            description: description.unwrap_or_default(),
            hardware: who.hardware(),
            claims: Claims::of(by, Some(now + lease)),
            created: now,
            asked_at: now,
            stage: Stage::Asking,
            stored: false,
        });
        self.pinholes.waiters.insert(new, vec![(id, by)]);
        self.timers.set(Alarm::Pinhole(new), now + lease);
        if self.config.when_unreachable == WhenUnreachable::Local {
            let patience = self.config.answer_within.saturating_sub(KERNEL);
            self.timers.set(Alarm::PinholeLocal(new), now + patience);
        }
        self.look_for_firewall_if_due(now);
        self.carry(now, flows.to);
    }

    fn admit_pinhole(
        &mut self,
        now: Instant,
        who: &Requester,
        flows: &Flows,
        by: Asker,
    ) -> Result<(), Refusal> {
        let lan = self.lan_addresses();
        let replaces = usize::from(self.pinholes.table.at(flows).is_some());
        // A host has as many addresses as it wants; by its network card it is one, and of those whose card nobody knows all on a link are.
        let link = self.link_of(flows.to.addr);
        let is_its = |pinhole: &Pinhole| {
            pinhole.hardware == who.hardware()
                && (who.hardware().is_some() || self.link_of(pinhole.flows.to.addr) == link)
        };
        let elsewhere = self.pinholes.table.iter();
        let elsewhere =
            elsewhere.filter(|pinhole| is_its(pinhole) && !who.has(IpAddr::V6(pinhole.flows.to.addr)));
        let held = who.v6_addresses().map(|addr| self.pinholes.table.held_by(addr)).sum::<usize>();
        let held = held + elsewhere.count();
        let facts = PinholeFacts {
            lan: &lan,
            wan: &self.wan.addresses_v6,
            held_by_host: held.saturating_sub(replaces),
            held: self.pinholes.table.len() - replaces,
            consent: self.consent_of(who),
        };
        if let Err(denied) = self.config.policy.check_pinhole(who, flows.to, facts) {
            let notice = Notice::Pinhole(PinholeNews::Denied(who.asker().source(), *flows, denied));
            return Err(self.deny(now, who, wish(flows, by), denied, notice));
        }
        if self.stopping { Err(Refusal::Stopping) } else { Ok(()) }
    }

    /// Its owner asks for it again.
    fn renew_pinhole(&mut self, now: Instant, id: u16, by: Asker, lease: Duration) {
        let Some(pinhole) = self.pinholes.table.find_mut(id) else { return };
        pinhole.claims = pinhole.claims.at(now);
        pinhole.claims.renew(by, Some(now + lease));
        pinhole.asked_at = now;
        self.extend_at_provider(now, id);
    }

    /// Until when somebody counts on it is another time.
    fn pinhole_extended(&mut self, now: Instant, id: u16) {
        self.extend_at_provider(now, id);
        let Some(pinhole) = self.pinholes.table.find(id).filter(|pinhole| pinhole.stored) else { return };
        self.effects.push_back(Effect::Store(Record::PutPinhole(stored(now, pinhole))));
    }

    fn extend_at_provider(&mut self, now: Instant, id: u16) {
        let Some(pinhole) = self.pinholes.table.find(id) else { return };
        let to = pinhole.flows.to;
        if let Some(end) = pinhole.claims.end() {
            self.timers.set(Alarm::Pinhole(id), end);
        }
        self.extend_carried(now, to);
    }

    /// One of those who count on it does no more.
    pub(super) fn let_pinhole_go(&mut self, now: Instant, id: u16, by: Asker, end: PinholeEnd) {
        let Some(pinhole) = self.pinholes.table.find_mut(id) else { return };
        pinhole.claims = pinhole.claims.at(now);
        pinhole.claims.give_up(by);
        if pinhole.claims == Claims::default() {
            self.close_pinholes(now, &[id], end);
        } else {
            self.pinhole_extended(now, id);
        }
    }

    /// A PCP client lets go of its port: whatever it has of that, and has just asked for (RFC 6887 §15).
    pub(super) fn let_pcp_go(&mut self, now: Instant, to: Endpoint, by: Asker) {
        for id in self.pinholes.table.of(to).map(|pinhole| pinhole.id).collect::<Vec<_>>() {
            let waiters = self.pinholes.waiters.get(&id).into_iter().flatten();
            let own = waiters.filter(|(_, other)| *other == by).map(|(question, _)| *question);
            for question in own.collect::<Vec<RequestId>>() {
                self.waits_no_more_for_pinhole(now, question);
                self.forget_question(question);
            }
            let claimed = |pinhole: &Pinhole| {
                pinhole.claims.at(now).pcp.is_some_and(|claim| Asker::Pcp(claim.nonce) == by)
            };
            if self.pinholes.table.find(id).is_some_and(claimed) {
                self.let_pinhole_go(now, id, by, PinholeEnd::Deleted);
            }
        }
    }

    pub(super) fn on_pinhole_lease_over(&mut self, now: Instant, id: u16) {
        let Some(pinhole) = self.pinholes.table.find(id) else { return };
        match pinhole.claims.at(now).end() {
            Some(end) => self.timers.set(Alarm::Pinhole(id), end),
            None => self.close_pinholes(now, &[id], PinholeEnd::LeaseEnded),
        }
    }

    /// Who waits is about to lose patience: this router's firewall has to do (decision 21).
    pub(super) fn open_locally(&mut self, id: u16) {
        self.open_one(id);
    }

    /// Opens in this router what waits for that.
    fn open_here(&mut self, to: Endpoint) {
        for id in self.pinholes.table.of(to).map(|pinhole| pinhole.id).collect::<Vec<_>>() {
            self.open_one(id);
        }
    }

    fn open_one(&mut self, id: u16) {
        let asking = |pinhole: &&mut Pinhole| pinhole.stage == Stage::Asking;
        let Some(pinhole) = self.pinholes.table.find_mut(id).filter(asking) else { return };
        pinhole.stage = Stage::Opening;
        let flows = pinhole.flows;
        self.pinholes.unclosed.remove(&flows);
        let ticket = self.change_firewall(FirewallChange::Open(flows));
        self.pinholes.opening.insert(ticket, id);
    }

    fn change_firewall(&mut self, change: FirewallChange) -> NatTicket {
        self.next_ticket += 1;
        let ticket = NatTicket(self.next_ticket);
        self.effects.push_back(Effect::Firewall { ticket, change });
        ticket
    }

    fn close_here(&mut self, flows: Flows) {
        let ticket = self.change_firewall(FirewallChange::Close(flows));
        self.pinholes.closing.insert(ticket, flows);
    }

    /// Asks the kernel again to close what it would not.
    pub(super) fn close_again(&mut self) {
        for flows in std::mem::take(&mut self.pinholes.unclosed) {
            self.close_here(flows);
        }
    }

    /// What became of a change of this router's firewall.
    pub(super) fn on_firewall(&mut self, now: Instant, ticket: NatTicket, outcome: Result<(), NatFailure>) {
        if let Some(flows) = self.pinholes.closing.remove(&ticket) {
            let wanted_again =
                self.pinholes.table.at(&flows).is_some_and(|pinhole| pinhole.stage != Stage::Asking);
            if let (Err(NatFailure::Kernel(error)), false) = (outcome, wanted_again) {
                self.notice(Notice::Pinhole(PinholeNews::NotClosed(flows, error)));
                self.pinholes.unclosed.insert(flows);
                self.timers.set(Alarm::Unclosed, now + CLOSE_AGAIN);
            }
            return;
        }
        let Some(id) = self.pinholes.opening.remove(&ticket) else { return };
        let Some(pinhole) = self.pinholes.table.find_mut(id) else { return };
        if pinhole.stage != Stage::Opening {
            return;
        }
        match outcome {
            Ok(()) => self.on_opened(now, id),
            Err(error) => {
                let error = match error {
                    NatFailure::Kernel(error) => error,
                    NatFailure::PortInUse => String::from("in use"),
                };
                let flows = pinhole.flows;
                self.notice(Notice::Pinhole(PinholeNews::NotOpened(flows, error)));
                self.fail_pinhole(now, id, Refusal::LocalNat);
            }
        }
    }

    fn on_opened(&mut self, now: Instant, id: u16) {
        let waiters = self.pinholes.waiters.remove(&id).unwrap_or_default();
        let Some(pinhole) = self.pinholes.table.find_mut(id) else { return };
        pinhole.stage = Stage::Open;
        self.timers.cancel(Alarm::PinholeLocal(id));
        self.timers.cancel(Alarm::PinholeBackground(id));
        if waiters.is_empty() && !pinhole.stored {
            // Nobody has been told of it: should the same one ask again soon, it is there.
            pinhole.claims = pinhole.claims.map(|_| Some(now + HELD));
            return self.extend_at_provider(now, id);
        }
        for (waiter, _) in waiters {
            self.answer_pinhole(now, waiter, id);
        }
    }

    /// A PCP client has one mapping for each port (RFC 6887 §11.3): another filter is another pinhole to us, in the place of that one.
    pub(super) fn replace_by_what_stands(&mut self, now: Instant) {
        for new in std::mem::take(&mut self.pinholes.replacing) {
            let Some(new) = self.pinholes.table.find(new).cloned() else { continue };
            let Some(claim) = new.claims.at(now).pcp else { continue };
            let older = self.pinholes.table.of(new.flows.to).filter(|pinhole| pinhole.id != new.id);
            let is_same =
                |pinhole: &&Pinhole| pinhole.claims.at(now).pcp.is_some_and(|one| one.nonce == claim.nonce);
            for id in older.filter(is_same).map(|pinhole| pinhole.id).collect::<Vec<_>>() {
                self.let_pinhole_go(now, id, Asker::Pcp(claim.nonce), PinholeEnd::Replaced);
            }
        }
    }

    /// It is not to be had: nothing is left of it.
    fn fail_pinhole(&mut self, now: Instant, id: u16, refusal: Refusal) {
        for (waiter, _) in self.pinholes.waiters.remove(&id).unwrap_or_default() {
            self.refuse(waiter, refusal);
        }
        if let Some(pinhole) = self.take_pinhole_out(id) {
            self.notice(Notice::Pinhole(PinholeNews::Refused(pinhole.flows, refusal)));
            self.close_at_provider(now, pinhole.flows.to);
        }
    }

    pub(super) fn close_pinholes(&mut self, now: Instant, ids: &[u16], end: PinholeEnd) {
        let mut ports = BTreeSet::new();
        for &id in ids {
            for (waiter, _) in self.pinholes.waiters.remove(&id).unwrap_or_default() {
                self.refuse(waiter, Refusal::NoAnswer);
            }
            if let Some(pinhole) = self.take_pinhole_out(id) {
                ports.insert(pinhole.flows.to);
                self.notice(Notice::Pinhole(PinholeNews::Closed(pinhole, end)));
            }
        }
        // Once for each port, however many there were.
        for to in ports {
            self.close_at_provider(now, to);
        }
    }

    fn take_pinhole_out(&mut self, id: u16) -> Option<Pinhole> {
        let pinhole = self.pinholes.table.remove(id)?;
        for alarm in [Alarm::Pinhole(id), Alarm::PinholeLocal(id), Alarm::PinholeBackground(id)] {
            self.timers.cancel(alarm);
        }
        if pinhole.stage != Stage::Asking {
            self.close_here(pinhole.flows);
        }
        let carried = self.pinholes.carriage.find(pinhole.flows.to).map(|carried| carried.flow);
        match carried.filter(|_| self.stopping && pinhole.stored) {
            // Until the provider has confirmed it, the next start has to know of it.
            Some(flow) => self.pinholes.given_back.entry(flow).or_default().push(id),
            None if pinhole.stored => self.effects.push_back(Effect::Store(Record::RemovePinhole(id))),
            None => {}
        }
        Some(pinhole)
    }

    /// The provider has let go of what a flow had.
    fn on_given_back(&mut self, flow: FlowId) {
        for id in self.pinholes.given_back.remove(&flow).unwrap_or_default() {
            self.effects.push_back(Effect::Store(Record::RemovePinhole(id)));
        }
    }

    /// How many pinholes the provider has not let go of, at the end.
    pub(super) fn pinholes_left_behind(&self) -> usize {
        self.pinholes.given_back.values().map(Vec::len).sum()
    }

    /// Answers with the pinhole's number, or as PCP has it; what is answered is stored before.
    fn answer_pinhole(&mut self, now: Instant, waiter: RequestId, id: u16) {
        let Some(pinhole) = self.pinholes.table.find(id).cloned() else {
            return self.refuse(waiter, Refusal::NoAnswer);
        };
        let grant = self.pinholes.carriage.find(pinhole.flows.to).and_then(|carried| carried.grant);
        let of_lan = self.is_of_lan_client(waiter);
        let promised = match of_lan.then(|| self.promise_to_lan(now, waiter, grant)) {
            None => None,
            Some(Some(promised)) => Some(promised),
            // It insists on another address than the provider has for it (RFC 6887 §13.2).
            Some(None) => {
                self.refuse(waiter, Refusal::Conflict);
                if let Some(claim) = pinhole.claims.at(now).pcp {
                    self.let_pinhole_go(now, id, Asker::Pcp(claim.nonce), PinholeEnd::Replaced);
                }
                return;
            }
        };
        let Some(pinhole) = self.pinholes.table.find_mut(id) else { return };
        if let Some((asker, ends)) = promised {
            pinhole.claims.renew(asker, Some(ends));
        }
        let first = !std::mem::replace(&mut pinhole.stored, true);
        let pinhole = pinhole.clone();
        self.pinhole_extended(now, id);
        if first {
            self.pinholes.stood.push(id);
            self.pinholes.replacing.push(id);
            self.timers.set(Alarm::PinholeStood, now);
            let carried = self.is_carried(pinhole.flows.to);
            self.notice(Notice::Pinhole(PinholeNews::Opened(pinhole, carried)));
        }
        if of_lan {
            self.answer_mapped_v6(now, waiter, self.external_of_pinhole_id(id), promised);
        } else {
            self.answer(waiter, &[Value::Number(u32::from(id))]);
        }
    }

    fn external_of_pinhole_id(&self, id: u16) -> Option<SocketAddr> {
        self.pinholes.table.find(id).map(|pinhole| self.external_of_pinhole(pinhole.flows.to))
    }

    /// What has come to stand in this turn could not be stored.
    pub(super) fn close_unstored(&mut self, now: Instant, stood: &[u16]) {
        self.pinholes.replacing.retain(|id| !stood.contains(id));
        self.close_pinholes(now, stood, PinholeEnd::NotStored);
    }

    /// Every stored pinhole is opened again here, at once; the provider is asked when there is a way to it.
    pub(super) fn on_restore_pinholes(&mut self, now: Instant, all: Vec<StoredPinhole>) {
        for one in all {
            let id = one.id;
            let claims = one.claims.from_now(now);
            let (flows, description) = (one.flows, one.description);
            let (created, asked_at, stage, stored) = (now, now, Stage::Asking, true);
            let pinhole =
                Pinhole { id, flows, description, hardware: None, claims, created, asked_at, stage, stored };
            match claims.end().filter(|_| self.allows_pinholes()) {
                Some(end) if self.pinholes.table.insert(pinhole) => {
                    self.pinholes.table.begin_after(id);
                    self.timers.set(Alarm::Pinhole(id), end);
                    self.open_one(id);
                }
                _ => {
                    if !self.allows_pinholes() {
                        self.pinholes.carriage.unwanted.insert(flows.to);
                    }
                    self.effects.push_back(Effect::Store(Record::RemovePinhole(id)));
                }
            }
        }
        self.pinholes.provider.restored = !self.pinholes.table.is_empty();
        if !self.pinholes.table.is_empty() {
            self.notice(Notice::Pinhole(PinholeNews::Restored(self.pinholes.table.len())));
        }
    }

    /// The host with this address is gone, or may have none any more.
    pub(super) fn release_pinholes(&mut self, now: Instant, host: Ipv6Addr, end: PinholeEnd) {
        let of_host = |pinhole: &&Pinhole| pinhole.flows.to.addr == host;
        let ids: Vec<u16> = self.pinholes.table.iter().filter(of_host).map(|pinhole| pinhole.id).collect();
        self.close_pinholes(now, &ids, end);
    }

    /// All of them end.
    pub(super) fn close_all_pinholes(&mut self, now: Instant, end: PinholeEnd) {
        let all: Vec<u16> = self.pinholes.table.iter().map(|pinhole| pinhole.id).collect();
        self.close_pinholes(now, &all, end);
    }

    /// The gateway stops: who waits is answered, and what stands is given back or left where it is.
    pub(super) fn stop_pinholes(&mut self, now: Instant) {
        for id in std::mem::take(&mut self.pinholes.reading).into_keys() {
            self.timers.cancel(Alarm::Patience(id));
            self.effects.push_back(Effect::Reply { request: id, answer: Err(UpnpError::ACTION_FAILED) });
        }
        for (_, waiters) in std::mem::take(&mut self.pinholes.waiters) {
            for (waiter, _) in waiters {
                self.refuse(waiter, Refusal::Stopping);
            }
        }
        let untold = |pinhole: &&Pinhole| !pinhole.stored;
        let untold: Vec<u16> = self.pinholes.table.iter().filter(untold).map(|pinhole| pinhole.id).collect();
        self.close_pinholes(now, &untold, PinholeEnd::Stopping);
        if !self.config.keep_on_stop {
            self.close_all_pinholes(now, PinholeEnd::Stopping);
        }
    }
}

/// What is wanted, as it is shown to the owner.
fn wish(flows: &Flows, by: Asker) -> Wish {
    let Endpoint { protocol, port, .. } = flows.to;
    Wish { protocol, internal: own(flows.to), external_port: Some(port), by }
}

fn stored(now: Instant, pinhole: &Pinhole) -> StoredPinhole {
    StoredPinhole {
        id: pinhole.id,
        flows: pinhole.flows,
        description: pinhole.description.clone(),
        claims: pinhole.claims.left(now),
    }
}

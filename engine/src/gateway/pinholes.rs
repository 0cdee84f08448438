//! The life of pinholes (igd.md 8, RFC 6887 for IPv6): asked for by whichever protocol, allowed by policy, opened at the provider's
//! firewall where that has a PCP server, then in this router's own, then stored and answered.
//!
//! Where the provider has no such server, which is the rule, this router's firewall is the only one. A server that comes later is asked
//! for what stands by then; whoever asked has been answered, and what that server does not open is told in the log and the status.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use wire::error::UpnpError;
use wire::pcp::{Protocol, ResultCode};
use wire::services::Value;
use wire::soap::Call;

use super::lan::pinholes::own;
use super::unreachable::KERNEL;
use super::{Alarm, Effect, Gateway, NatTicket, RequestId, WhenUnreachable};
use crate::claims::{Asker, Claims, PcpClaim};
use crate::igd::{Asked, PinholeAction};
use crate::journal::{Record, StoredPinhole};
use crate::nat::NatFailure;
use crate::notice::{Notice, PinholeEnd, PinholeNews};
use crate::pinholes::{Endpoint, FirewallChange, Flows, MOST_REMOTES, Pinhole, PinholeTable, Stage};
use crate::policy::{Denied, PinholeFacts, Requester};
use crate::request::Refusal;
use crate::status::PinholeStatus;
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Grant, Input, RemotePeer, Terms, Uplink, Want};

mod provider;

use provider::{Provider, Standing};
pub use provider::{UplinkEffect, UplinkEvent};

/// What a server did not give is asked for again after this time, unless it says how long its refusal lasts.
const ASK_AGAIN: Duration = Duration::from_secs(60);

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
    /// Who waits for those that are not open.
    waiters: BTreeMap<u16, Vec<RequestId>>,
    /// What the provider is asked for.
    carried: BTreeMap<Endpoint, Carried>,
    by_flow: BTreeMap<FlowId, Endpoint>,
    /// Flows that are only kept until their delete is confirmed.
    pub(super) strays: BTreeSet<FlowId>,
    opening: BTreeMap<NatTicket, u16>,
    closing: BTreeMap<NatTicket, Flows>,
    reading: BTreeMap<RequestId, (Call, PinholeReading)>,
    /// What has come to stand in the last turn.
    stood: Vec<u16>,
    pub(super) provider: Provider,
}

/// A port as the provider's firewall knows it.
#[derive(Debug)]
struct Carried {
    flow: FlowId,
    /// Whom it was last asked to let in.
    peers: Vec<RemotePeer>,
    /// It does not take as many filters, or none: this router's own firewall looks alone.
    unfiltered: bool,
    grant: Option<Grant>,
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
        let half_way = [self.waiters.len(), self.strays.len(), self.opening.len(), self.closing.len()];
        half_way == [0; 4] && self.reading.is_empty()
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
            let carried = self.pinholes.carried.get(&pinhole.flows.to);
            PinholeStatus {
                id: pinhole.id,
                flows: pinhole.flows,
                description: pinhole.description.clone(),
                is_open: pinhole.stage == Stage::Open,
                age: now - pinhole.created,
                asked_by: pinhole.claims.asked_by(now),
                lease_left: pinhole.claims.end().map(|end| end - now),
                at_provider: carried.and_then(|carried| carried.grant).map(|grant| grant.external),
            }
        };
        self.pinholes.table.iter().map(status).collect()
    }

    /// The provider's IPv6 firewall that is asked, if one has been found.
    pub fn firewall_server(&self) -> Option<SocketAddr> {
        self.pinholes.provider.client.as_ref().map(|client| client.server())
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
        let grant = self.pinholes.carried.get(&to).and_then(|carried| carried.grant);
        grant.map_or_else(|| own(to), |grant| grant.external)
    }

    pub(super) fn on_pinhole_action(
        &mut self,
        now: Instant,
        id: RequestId,
        who: &Requester,
        call: Call,
        action: PinholeAction,
    ) {
        let reply = |answer: Result<Vec<Value>, UpnpError>| Effect::Reply {
            request: id,
            answer: answer.map(|values| call.response(&values)),
        };
        let allowed = self.allows_pinholes();
        let answer = match action {
            PinholeAction::Status => Ok(vec![Value::Boolean(true), Value::Boolean(allowed)]),
            _ if !allowed => Err(UpnpError::INBOUND_PINHOLE_NOT_ALLOWED),
            _ if self.stopping => Err(UpnpError::ACTION_FAILED), // there would be nobody left to answer
            PinholeAction::Add(flows, lease) => {
                self.wait(now, id, call, Asked::Pinhole);
                let wanted = Wanted { flows, by: Asker::Igd, lease, description: None };
                return self.want_pinhole(now, id, who, wanted);
            }
            PinholeAction::Update(pinhole, lease) => self.own_pinhole(now, who, pinhole).map(|_| {
                self.renew_pinhole(now, pinhole, Asker::Igd, lease, None);
                Vec::new()
            }),
            PinholeAction::Delete(pinhole) => self.own_pinhole(now, who, pinhole).map(|_| {
                self.let_pinhole_go(now, pinhole, Asker::Igd, PinholeEnd::Deleted);
                Vec::new()
            }),
            PinholeAction::Packets(pinhole) | PinholeAction::Check(pinhole) => {
                match self.own_pinhole(now, who, pinhole) {
                    Ok(flows) => return self.read_of_pinhole(now, id, call, PinholeReading::Packets(flows)),
                    Err(error) => Err(error),
                }
            }
            PinholeAction::Timeout(protocol) => {
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
        self.pinholes.reading.insert(id, (call, what));
        self.timers.set(Alarm::Patience(id), now + self.config.answer_within);
        self.effects.push_back(Effect::ReadPinhole { request: id, what });
    }

    pub(super) fn on_pinhole_read(&mut self, request: RequestId, value: Option<u32>) {
        let Some((call, _)) = self.pinholes.reading.remove(&request) else { return };
        self.timers.cancel(Alarm::Patience(request));
        let values = match (call.action.id, value) {
            (_, None) => Err(UpnpError::ACTION_FAILED),
            (wire::services::ActionId::CheckPinholeWorking, Some(0)) => Err(UpnpError::NO_TRAFFIC_RECEIVED),
            (wire::services::ActionId::CheckPinholeWorking, Some(_)) => Ok(Value::Boolean(true)),
            (_, Some(number)) => Ok(Value::Number(number)),
        };
        let answer = values.map(|value| call.response(&[value]));
        self.effects.push_back(Effect::Reply { request, answer });
    }

    /// Somebody has waited long enough; false when it was for something else.
    pub(super) fn on_pinhole_patience_over(&mut self, now: Instant, id: RequestId) -> bool {
        if self.pinholes.reading.contains_key(&id) {
            self.on_pinhole_read(id, None);
            return true;
        }
        let waits = |(_, ids): &(&u16, &mut Vec<RequestId>)| ids.contains(&id);
        let Some((&pinhole, waiters)) = self.pinholes.waiters.iter_mut().find(waits) else { return false };
        waiters.retain(|waiter| *waiter != id);
        let nobody = waiters.is_empty();
        self.refuse_or_forget(id);
        if nobody {
            // It asks again, should it still want it; the provider may have opened it by then.
            self.fail_pinhole(now, pinhole, Refusal::NoAnswer);
        }
        true
    }

    /// A pinhole is wanted; the waiter is there under `id`.
    pub(super) fn want_pinhole(&mut self, now: Instant, id: RequestId, who: &Requester, wanted: Wanted) {
        let Wanted { flows, by, lease, description } = wanted;
        if let Err(refusal) = self.admit_pinhole(who, &flows) {
            return self.refuse(id, refusal);
        }
        if let Some(found) = self.pinholes.table.at(&flows).map(|pinhole| pinhole.id) {
            self.renew_pinhole(now, found, by, lease, description);
            if self.pinholes.table.find(found).is_some_and(|pinhole| pinhole.stage == Stage::Open) {
                self.answer_pinhole(now, id, found);
            } else {
                self.pinholes.waiters.entry(found).or_default().push(id);
            }
            return;
        }
        if self.pinholes.table.is_empty() {
            let mut start = [0; 2];
            self.entropy.fill(&mut start);
            self.pinholes.table.begin_after(u16::from_be_bytes(start));
        }
        let Some(new) = self.pinholes.table.free_id() else { return self.refuse(id, Refusal::Quota) };
        self.pinholes.table.insert(Pinhole {
            id: new,
            flows,
            description: description.unwrap_or_default(),
            claims: Claims::of(by, Some(now + lease)),
            created: now,
            asked_at: now,
            stage: Stage::Asking,
        });
        self.pinholes.waiters.insert(new, vec![id]);
        self.timers.set(Alarm::Pinhole(new), now + lease);
        if self.config.when_unreachable == WhenUnreachable::Local {
            let patience = self.config.answer_within.saturating_sub(KERNEL);
            self.timers.set(Alarm::PinholeLocal(new), now + patience);
        }
        self.look_for_firewall_if_due(now);
        self.carry(now, flows.to);
    }

    fn admit_pinhole(&mut self, who: &Requester, flows: &Flows) -> Result<(), Refusal> {
        let lan = self.lan_addresses();
        let replaces = usize::from(self.pinholes.table.at(flows).is_some());
        let held = who.v6_addresses().map(|addr| self.pinholes.table.held_by(addr)).sum::<usize>();
        let facts = PinholeFacts {
            lan: &lan,
            wan: &self.wan.addresses_v6,
            held_by_host: held.saturating_sub(replaces),
            held: self.pinholes.table.len() - replaces,
        };
        if let Err(denied) = self.config.policy.check_pinhole(who, flows.to.addr, flows.to.port, facts) {
            self.notice(Notice::Pinhole(PinholeNews::Denied(who.source(), *flows, denied)));
            return Err(match denied {
                Denied::HostQuota(_) | Denied::TableFull(_) => Refusal::Quota,
                _ => Refusal::NotAuthorized,
            });
        }
        if self.stopping { Err(Refusal::Stopping) } else { Ok(()) }
    }

    /// Its owner asks for it again.
    fn renew_pinhole(
        &mut self,
        now: Instant,
        id: u16,
        by: Asker,
        lease: Duration,
        description: Option<String>,
    ) {
        let Some(pinhole) = self.pinholes.table.find_mut(id) else { return };
        pinhole.claims = pinhole.claims.at(now);
        pinhole.claims.renew(by, Some(now + lease));
        pinhole.asked_at = now;
        if let Some(description) = description {
            pinhole.description = description;
        }
        self.pinhole_extended(now, id);
    }

    /// Until when somebody counts on it is another time.
    fn pinhole_extended(&mut self, now: Instant, id: u16) {
        let Some(pinhole) = self.pinholes.table.find(id).cloned() else { return };
        if let Some(end) = pinhole.claims.end() {
            self.timers.set(Alarm::Pinhole(id), end);
        }
        if pinhole.stage == Stage::Open {
            self.store_pinhole(now, &pinhole);
        }
        self.extend_at_provider(now, pinhole.flows.to);
    }

    /// One of those who count on it does no more.
    pub(super) fn let_pinhole_go(&mut self, now: Instant, id: u16, by: Asker, end: PinholeEnd) {
        let Some(pinhole) = self.pinholes.table.find_mut(id) else { return };
        pinhole.claims = pinhole.claims.at(now);
        pinhole.claims.give_up(by);
        if pinhole.claims == Claims::default() {
            self.close_pinhole(now, id, end);
        } else {
            self.pinhole_extended(now, id);
        }
    }

    pub(super) fn on_pinhole_lease_over(&mut self, now: Instant, id: u16) {
        let Some(pinhole) = self.pinholes.table.find(id) else { return };
        match pinhole.claims.at(now).end() {
            Some(end) => self.timers.set(Alarm::Pinhole(id), end),
            None => self.close_pinhole(now, id, PinholeEnd::LeaseEnded),
        }
    }

    /// Goes on with the pinholes of a port that are not open: first the provider, then this router.
    fn carry(&mut self, now: Instant, to: Endpoint) {
        match self.pinholes.provider.standing() {
            Standing::Looking => {}
            Standing::Nobody => self.open_here(to),
            Standing::Serving => self.ask_firewall(now, to, true),
        }
    }

    /// `urgent`: somebody waits.
    fn ask_firewall(&mut self, now: Instant, to: Endpoint, urgent: bool) {
        let wanted = self.pinholes.table.remote_peers(to);
        let wanted = if wanted.len() > MOST_REMOTES { Vec::new() } else { wanted };
        let terms = self.pinhole_terms(to);
        let asked = self.pinholes.table.of(to).map(|pinhole| pinhole.asked_at).max().unwrap_or(now);
        match self.pinholes.carried.get_mut(&to) {
            None => {
                let flow = self.new_flow();
                let carried = Carried { flow, peers: wanted.clone(), unfiltered: false, grant: None };
                self.pinholes.carried.insert(to, carried);
                self.pinholes.by_flow.insert(flow, to);
                let want = want(to, wanted, terms, urgent);
                let input = if urgent { Input::Ask(flow, want) } else { Input::AskInTurn(flow, want, asked) };
                self.firewall_input(now, input);
            }
            Some(carried) => {
                let (flow, peers) = (carried.flow, if carried.unfiltered { Vec::new() } else { wanted });
                // Before there is a grant one request after the other would cross.
                let asks = carried.grant.is_some() && carried.peers != peers;
                let stands = carried.grant.is_some() && carried.peers == peers;
                if asks {
                    carried.peers.clone_from(&peers);
                }
                self.firewall_input(now, Input::Extend(flow, terms));
                if asks {
                    self.firewall_input(now, Input::Filter(flow, peers));
                } else if stands {
                    self.open_here(to);
                }
            }
        }
    }

    fn pinhole_terms(&self, to: Endpoint) -> Terms {
        let described = self.pinholes.table.of(to).find(|pinhole| !pinhole.description.is_empty());
        let description = described.filter(|_| self.config.send_descriptions);
        Terms {
            prefer_failure: false, // it is this port of this host, or nothing
            lease_ends: self.pinholes.table.last_claim(to),
            longest: u32::MAX,
            description: description.map(|pinhole| pinhole.description.clone()).unwrap_or_default(),
        }
    }

    fn extend_at_provider(&mut self, now: Instant, to: Endpoint) {
        if let Some(flow) = self.pinholes.carried.get(&to).map(|carried| carried.flow) {
            let terms = self.pinhole_terms(to);
            self.firewall_input(now, Input::Extend(flow, terms));
        }
    }

    /// Who waits is about to lose patience: this router's firewall has to do (decision 21).
    pub(super) fn open_locally(&mut self, id: u16) {
        if let Some(to) = self.pinholes.table.find(id).map(|pinhole| pinhole.flows.to) {
            self.open_here(to);
        }
    }

    /// Opens in this router what waits for that.
    fn open_here(&mut self, to: Endpoint) {
        let asking = self.pinholes.table.of(to).filter(|pinhole| pinhole.stage == Stage::Asking);
        for (id, flows) in asking.map(|pinhole| (pinhole.id, pinhole.flows)).collect::<Vec<_>>() {
            self.pinholes.table.find_mut(id).expect("it was just listed").stage = Stage::Opening;
            let ticket = self.change_firewall(FirewallChange::Open(flows));
            self.pinholes.opening.insert(ticket, id);
        }
    }

    fn change_firewall(&mut self, change: FirewallChange) -> NatTicket {
        self.next_ticket += 1;
        let ticket = NatTicket(self.next_ticket);
        self.effects.push_back(Effect::Firewall { ticket, change });
        ticket
    }

    /// What became of a change of this router's firewall.
    pub(super) fn on_firewall(&mut self, now: Instant, ticket: NatTicket, outcome: Result<(), NatFailure>) {
        if let Some(flows) = self.pinholes.closing.remove(&ticket) {
            if let Err(NatFailure::Kernel(error)) = outcome {
                // It goes with the next change of the table, or the next start.
                self.notice(Notice::Pinhole(PinholeNews::NotClosed(flows, error)));
            }
            return;
        }
        let Some(id) = self.pinholes.opening.remove(&ticket) else { return };
        let Some(pinhole) = self.pinholes.table.find_mut(id) else { return };
        if pinhole.stage != Stage::Opening {
            return;
        }
        match outcome {
            Ok(()) => {
                pinhole.stage = Stage::Open;
                let pinhole = pinhole.clone();
                // What nobody waits for is of before the start.
                let Some(waiters) = self.pinholes.waiters.remove(&id) else { return };
                self.pinholes.stood.push(id);
                self.store_pinhole(now, &pinhole);
                let carried = self.is_carried(pinhole.flows.to);
                self.notice(Notice::Pinhole(PinholeNews::Opened(pinhole.clone(), carried)));
                self.replace_own_of_pcp(now, &pinhole);
                for waiter in waiters {
                    self.answer_pinhole(now, waiter, id);
                }
            }
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

    fn is_carried(&self, to: Endpoint) -> bool {
        self.pinholes.carried.get(&to).is_some_and(|carried| carried.grant.is_some())
    }

    /// A PCP client has one mapping for each port (RFC 6887 §11.3): another filter is another pinhole to us, in the place of that one.
    fn replace_own_of_pcp(&mut self, now: Instant, new: &Pinhole) {
        let Some(claim) = new.claims.at(now).pcp else { return };
        let older = self.pinholes.table.of(new.flows.to).filter(|pinhole| pinhole.id != new.id);
        let same =
            older.filter(|pinhole| pinhole.claims.at(now).pcp.is_some_and(|one| one.nonce == claim.nonce));
        for id in same.map(|pinhole| pinhole.id).collect::<Vec<_>>() {
            self.let_pinhole_go(now, id, Asker::Pcp(claim.nonce), PinholeEnd::Replaced);
        }
    }

    /// It is not to be had: nothing is left of it.
    fn fail_pinhole(&mut self, now: Instant, id: u16, refusal: Refusal) {
        let waiters = self.pinholes.waiters.remove(&id).unwrap_or_default();
        for &waiter in &waiters {
            self.refuse(waiter, refusal);
        }
        if let Some(pinhole) = self.pinholes.table.find(id) {
            self.notice(Notice::Pinhole(PinholeNews::Refused(pinhole.flows, refusal)));
        }
        self.take_pinhole_out(now, id);
    }

    fn close_pinhole(&mut self, now: Instant, id: u16, end: PinholeEnd) {
        for waiter in self.pinholes.waiters.remove(&id).unwrap_or_default() {
            self.refuse(waiter, Refusal::NoSuchEntry);
        }
        if let Some(pinhole) = self.take_pinhole_out(now, id) {
            self.notice(Notice::Pinhole(PinholeNews::Closed(pinhole, end)));
        }
    }

    fn take_pinhole_out(&mut self, now: Instant, id: u16) -> Option<Pinhole> {
        let pinhole = self.pinholes.table.remove(id)?;
        self.timers.cancel(Alarm::Pinhole(id));
        self.timers.cancel(Alarm::PinholeLocal(id));
        if pinhole.stage != Stage::Asking {
            let ticket = self.change_firewall(FirewallChange::Close(pinhole.flows));
            self.pinholes.closing.insert(ticket, pinhole.flows);
        }
        if pinhole.stage == Stage::Open {
            self.effects.push_back(Effect::Store(Record::RemovePinhole(id)));
        }
        self.close_at_provider(now, pinhole.flows.to);
        Some(pinhole)
    }

    /// One of the pinholes of this port is gone.
    fn close_at_provider(&mut self, now: Instant, to: Endpoint) {
        if !self.pinholes.carried.contains_key(&to) {
            return;
        }
        if self.pinholes.table.of(to).next().is_some() {
            return self.ask_firewall(now, to, false);
        }
        let carried = self.pinholes.carried.remove(&to).expect("looked at above");
        self.pinholes.by_flow.remove(&carried.flow);
        if self.pinholes.provider.client.as_ref().is_some_and(|client| client.has(carried.flow)) {
            self.pinholes.strays.insert(carried.flow);
            self.firewall_input(now, Input::DeleteInTurn(carried.flow));
        }
    }

    pub(super) fn on_pinhole_granted(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let Some(&to) = self.pinholes.by_flow.get(&flow) else { return };
        let Some(carried) = self.pinholes.carried.get_mut(&to) else { return };
        // Another port would be of no use to whoever was told this one.
        if grant.external.port() != to.port || !is_usable(grant.external.ip()) {
            self.forget_carried(now, to, true);
            return self.on_pinhole_not_carried(now, to, Refusal::Unusable, ASK_AGAIN);
        }
        let first = carried.grant.replace(grant).is_none();
        if first && self.pinholes.table.of(to).any(|pinhole| pinhole.stage == Stage::Open) {
            self.notice(Notice::Pinhole(PinholeNews::Carried(to)));
        }
        self.ask_firewall(now, to, true);
    }

    pub(super) fn on_pinhole_refused(
        &mut self,
        now: Instant,
        flow: FlowId,
        result: ResultCode,
        wait: Duration,
    ) {
        let Some(&to) = self.pinholes.by_flow.get(&flow) else { return };
        let Some(carried) = self.pinholes.carried.get_mut(&to) else { return };
        if result == ResultCode::EXCESSIVE_REMOTE_PEERS && !carried.peers.is_empty() {
            self.forget_carried(now, to, false);
            self.ask_firewall_unfiltered(now, to);
            return;
        }
        self.forget_carried(now, to, false);
        if is_no_firewall(result) {
            // It is a NAT's alone, or does not serve third parties: there is nobody to be asked about pinholes.
            self.notice(Notice::Pinhole(PinholeNews::NoFirewall(to, result)));
            return self.open_here(to);
        }
        self.on_pinhole_not_carried(now, to, Refusal::Upstream(result), wait.max(ASK_AGAIN));
    }

    fn ask_firewall_unfiltered(&mut self, now: Instant, to: Endpoint) {
        let flow = self.new_flow();
        let carried = Carried { flow, peers: Vec::new(), unfiltered: true, grant: None };
        self.pinholes.carried.insert(to, carried);
        self.pinholes.by_flow.insert(flow, to);
        let want = want(to, Vec::new(), self.pinhole_terms(to), true);
        self.firewall_input(now, Input::Ask(flow, want));
    }

    /// Another filter, or another lifetime, was refused: what the provider has stays as it was.
    pub(super) fn on_pinhole_renewal_refused(&mut self, now: Instant, flow: FlowId, result: ResultCode) {
        let Some(&to) = self.pinholes.by_flow.get(&flow) else { return };
        let Some(carried) = self.pinholes.carried.get_mut(&to) else { return };
        if result == ResultCode::EXCESSIVE_REMOTE_PEERS && !carried.unfiltered {
            carried.unfiltered = true;
            carried.peers.clear();
            return self.firewall_input(now, Input::Filter(flow, Vec::new()));
        }
        self.on_pinhole_not_carried(now, to, Refusal::Upstream(result), ASK_AGAIN);
    }

    /// The provider does not keep what it had given.
    pub(super) fn on_pinhole_lost(&mut self, now: Instant, flow: FlowId) {
        let Some(&to) = self.pinholes.by_flow.get(&flow) else { return };
        self.forget_carried(now, to, true);
        self.on_pinhole_not_carried(now, to, Refusal::NoAnswer, ASK_AGAIN);
    }

    /// Who waits hears why; what stands here stays, for the host counts on it, and the provider is asked again.
    fn on_pinhole_not_carried(&mut self, now: Instant, to: Endpoint, refusal: Refusal, wait: Duration) {
        let all: Vec<(u16, Stage)> =
            self.pinholes.table.of(to).map(|pinhole| (pinhole.id, pinhole.stage)).collect();
        for &(id, stage) in &all {
            if stage == Stage::Asking {
                self.fail_pinhole(now, id, refusal);
            }
        }
        if all.iter().any(|(_, stage)| *stage != Stage::Asking) {
            self.notice(Notice::Pinhole(PinholeNews::NotCarried(to, refusal)));
            self.timers.set(Alarm::Carry, now + wait);
        }
    }

    fn forget_carried(&mut self, now: Instant, to: Endpoint, delete: bool) {
        let Some(carried) = self.pinholes.carried.remove(&to) else { return };
        self.pinholes.by_flow.remove(&carried.flow);
        if delete && self.pinholes.provider.client.as_ref().is_some_and(|client| client.has(carried.flow)) {
            self.pinholes.strays.insert(carried.flow);
            self.firewall_input(now, Input::DeleteInTurn(carried.flow));
        }
    }

    /// What stands here and not at the provider is asked for, in turn.
    pub(super) fn carry_all(&mut self, now: Instant) {
        if self.pinholes.provider.standing() != Standing::Serving || self.stopping {
            return;
        }
        for to in self.pinholes.table.endpoints() {
            if !self.pinholes.carried.contains_key(&to) {
                self.ask_firewall(now, to, false);
            }
        }
    }

    /// The look for a server is over, or there is another one: whatever waits for that goes on.
    fn carry_what_waits(&mut self, now: Instant) {
        for to in self.pinholes.table.endpoints() {
            if self.pinholes.table.of(to).any(|pinhole| pinhole.stage == Stage::Asking) {
                self.carry(now, to);
            }
        }
    }

    /// Answers with the pinhole's number, or as PCP has it.
    fn answer_pinhole(&mut self, now: Instant, waiter: RequestId, id: u16) {
        let Some(pinhole) = self.pinholes.table.find(id) else {
            return self.refuse(waiter, Refusal::NoAnswer);
        };
        let grant = self.pinholes.carried.get(&pinhole.flows.to).and_then(|carried| carried.grant);
        match self.is_of_lan_client(waiter) {
            false => self.answer(waiter, &[Value::Number(u32::from(id))]),
            true => {
                let pinhole = pinhole.clone();
                let granted = self.answer_mapped_v6(now, waiter, &pinhole, grant);
                if let Some((asker, ends)) = granted
                    && let Some(pinhole) = self.pinholes.table.find_mut(id)
                {
                    pinhole.claims.renew(asker, Some(ends));
                    self.pinhole_extended(now, id);
                }
            }
        }
    }

    fn store_pinhole(&mut self, now: Instant, pinhole: &Pinhole) {
        self.effects.push_back(Effect::Store(Record::PutPinhole(StoredPinhole {
            id: pinhole.id,
            flows: pinhole.flows,
            description: pinhole.description.clone(),
            claims: pinhole.claims.left(now),
        })));
    }

    /// What has come to stand in this turn could not be stored.
    pub(super) fn close_unstored(&mut self, now: Instant, stood: Vec<u16>) {
        for id in stood {
            self.close_pinhole(now, id, PinholeEnd::NotStored);
        }
    }

    /// Every stored pinhole is opened again here, at once; the provider is asked when there is a way to it.
    pub(super) fn on_restore_pinholes(&mut self, now: Instant, stored: Vec<StoredPinhole>) {
        for one in stored {
            let id = one.id;
            let claims = one.claims.from_now(now);
            let Some(end) = claims.end().filter(|_| self.allows_pinholes()) else {
                self.effects.push_back(Effect::Store(Record::RemovePinhole(id)));
                continue;
            };
            let (flows, description) = (one.flows, one.description);
            let (created, asked_at, stage) = (now, now, Stage::Asking);
            let pinhole = Pinhole { id, flows, description, claims, created, asked_at, stage };
            if self.pinholes.table.insert(pinhole) {
                self.pinholes.table.begin_after(id);
                self.timers.set(Alarm::Pinhole(id), end);
                self.open_here(flows.to);
            } else {
                self.effects.push_back(Effect::Store(Record::RemovePinhole(id)));
            }
        }
        if !self.pinholes.table.is_empty() {
            self.notice(Notice::Pinhole(PinholeNews::Restored(self.pinholes.table.len())));
        }
    }

    /// All of them end.
    pub(super) fn close_all_pinholes(&mut self, now: Instant, end: PinholeEnd) {
        let all: Vec<u16> = self.pinholes.table.iter().map(|pinhole| pinhole.id).collect();
        for id in all {
            self.close_pinhole(now, id, end);
        }
    }

    /// The gateway stops: who waits is answered, and what stands is given back or left where it is.
    pub(super) fn stop_pinholes(&mut self, now: Instant) {
        for id in std::mem::take(&mut self.pinholes.reading).into_keys() {
            self.timers.cancel(Alarm::Patience(id));
            self.effects.push_back(Effect::Reply { request: id, answer: Err(UpnpError::ACTION_FAILED) });
        }
        let unfinished: Vec<u16> = self.pinholes.waiters.keys().copied().collect();
        for id in unfinished {
            self.fail_pinhole(now, id, Refusal::Stopping);
        }
        if !self.config.keep_on_stop {
            self.close_all_pinholes(now, PinholeEnd::Stopping);
        }
    }
}

fn want(to: Endpoint, remote_peers: Vec<RemotePeer>, terms: Terms, urgent: bool) -> Want {
    Want {
        third_party: Some(to.addr.into()),
        protocol: to.protocol,
        internal_port: to.port,
        external_port: to.port,
        remote_peers,
        terms,
        urgent,
    }
}

/// Whether such an answer means that the server has no firewall that it could open, as against one that it will not.
fn is_no_firewall(result: ResultCode) -> bool {
    matches!(
        result,
        ResultCode::UNSUPP_OPCODE
            | ResultCode::UNSUPP_OPTION
            | ResultCode::UNSUPP_PROTOCOL
            | ResultCode::UNSUPP_VERSION
    )
}

fn is_usable(addr: IpAddr) -> bool {
    !(addr.is_unspecified() || addr.is_loopback() || addr.is_multicast())
}

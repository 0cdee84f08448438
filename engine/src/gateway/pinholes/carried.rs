//! Pinholes at the provider's firewall: one flow of the PCP client for each port, whose filters are the remote hosts of all of its
//! pinholes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use wire::pcp::ResultCode;

use super::super::{Alarm, Gateway, WhenUnreachable};
use super::provider::Standing;
use crate::claims::Asker;
use crate::notice::{Notice, PinholeNews};
use crate::pinholes::{Endpoint, MOST_REMOTES, Pinhole, Stage, is_of_the_internet};
use crate::request::Refusal;
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Grant, Input, MIN_RENEWAL_GAP, RemotePeer, Terms, Uplink, Want};

/// What a server did not give is asked for again after this time, unless it says how long its refusal lasts; what it gave and is of no
/// use, after that.
const ASK_AGAIN: Duration = Duration::from_secs(60);
const OF_NO_USE: Duration = Duration::from_secs(30 * 60);
/// More refusals are not remembered.
const MOST_REFUSED: usize = 1024;

/// A port as the provider's firewall knows it.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) flow: FlowId,
    pub(super) grant: Option<Grant>,
    /// The last renewal was refused or not answered.
    pub(super) degraded: bool,
    /// Whom it was last asked to let in.
    peers: Vec<RemotePeer>,
    /// It does not take as many filters, or none: this router's own firewall looks alone.
    unfiltered: bool,
}

/// All ports there.
#[derive(Debug, Default)]
pub(super) struct Carriage {
    carried: BTreeMap<Endpoint, Carried>,
    by_flow: BTreeMap<FlowId, Endpoint>,
    /// Flows that are only kept until their delete is confirmed.
    pub(super) strays: BTreeSet<FlowId>,
    /// What has been refused, why, and until when it is not asked for again (decision 4).
    refused: BTreeMap<Endpoint, (Instant, Refusal)>,
    /// The server has no firewall for these.
    declined: BTreeSet<Endpoint>,
    /// What was stored and nobody may have any more: the server is told.
    pub(super) unwanted: BTreeSet<Endpoint>,
    /// When [`Alarm::Carry`] is due.
    carry_at: Option<Instant>,
}

impl Carriage {
    pub(super) fn find(&self, to: Endpoint) -> Option<&Carried> {
        self.carried.get(&to)
    }

    /// Ports there.
    pub(super) fn len(&self) -> usize {
        self.carried.len()
    }

    /// There is another server, or none.
    pub(super) fn forget(&mut self) {
        let unwanted = std::mem::take(&mut self.unwanted);
        *self = Self { unwanted, ..Self::default() };
    }

    fn insert(&mut self, to: Endpoint, carried: Carried) {
        self.by_flow.insert(carried.flow, to);
        self.carried.insert(to, carried);
    }

    fn remove(&mut self, to: Endpoint) -> Option<Carried> {
        let carried = self.carried.remove(&to)?;
        self.by_flow.remove(&carried.flow);
        Some(carried)
    }

    fn refusal(&self, now: Instant, to: Endpoint) -> Option<Refusal> {
        self.refused.get(&to).filter(|(until, _)| *until > now).map(|(_, refusal)| *refusal)
    }

    fn refuse(&mut self, now: Instant, to: Endpoint, wait: Duration, refusal: Refusal) {
        if self.refused.len() >= MOST_REFUSED {
            self.refused.retain(|_, (until, _)| *until > now);
        }
        if self.refused.len() < MOST_REFUSED {
            self.refused.insert(to, (now + wait, refusal));
        }
    }
}

impl Gateway {
    /// Goes on with the pinholes of a port that are not open: first the provider, then this router.
    pub(super) fn carry(&mut self, now: Instant, to: Endpoint) {
        match self.pinholes.provider.standing() {
            Standing::Looking => {}
            Standing::Nobody => self.open_here(to),
            Standing::Serving => self.ask_firewall(now, to, true),
        }
    }

    /// Whether the provider has to be asked before a pinhole that is open counts as renewed: it has not got it, or not for as long as a PCP
    /// client wants it (RFC 7648 §3.2).
    pub(super) fn must_ask_again(&self, now: Instant, to: Endpoint, by: Asker, lease: Duration) -> bool {
        let carriage = &self.pinholes.carriage;
        if self.pinholes.provider.standing() != Standing::Serving || carriage.declined.contains(&to) {
            return false;
        }
        match carriage.find(to).and_then(|carried| carried.grant) {
            None => self.config.when_unreachable != WhenUnreachable::Local,
            Some(grant) => {
                let left = grant.ends() - now;
                let lately = now - grant.since < MIN_RENEWAL_GAP;
                matches!(by, Asker::Pcp(_) | Asker::Peer(_)) && left * 4 < lease * 3 && !lately
            }
        }
    }

    /// See there; whoever waits hears what comes of it.
    pub(super) fn confirm_at_provider(&mut self, now: Instant, to: Endpoint) {
        match self.pinholes.carriage.find(to).filter(|carried| carried.grant.is_some()) {
            Some(carried) => {
                let flow = carried.flow;
                self.extend_carried(now, to);
                self.firewall_input(now, Input::Confirm(flow));
            }
            None => self.ask_firewall(now, to, true),
        }
    }

    /// `urgent`: somebody waits.
    fn ask_firewall(&mut self, now: Instant, to: Endpoint, urgent: bool) {
        if self.pinholes.carriage.declined.contains(&to) {
            return self.stands_at_provider(now, to);
        }
        let wanted = self.pinholes.table.remote_peers(to);
        let wanted = if wanted.len() > MOST_REMOTES { Vec::new() } else { wanted };
        let Some(carried) = self.pinholes.carriage.carried.get_mut(&to) else {
            if let Some(refusal) = self.pinholes.carriage.refusal(now, to) {
                return self.fail_waiting(now, to, refusal);
            }
            return self.begin_to_carry(now, to, wanted, false, urgent);
        };
        let (flow, granted) = (carried.flow, carried.grant.is_some());
        let peers = if carried.unfiltered { Vec::new() } else { wanted };
        // Before there is a grant one request after the other would cross.
        let differs = granted && carried.peers != peers;
        if differs {
            carried.peers.clone_from(&peers);
        }
        self.extend_carried(now, to);
        let holds = self.pinholes.provider.client.as_ref().is_some_and(|client| client.holds(flow));
        if differs {
            self.firewall_input(now, Input::Filter(flow, peers));
        } else if granted && holds {
            self.stands_at_provider(now, to);
        } else if urgent && !granted {
            self.firewall_input(now, Input::Hurry(flow));
        }
    }

    fn begin_to_carry(
        &mut self,
        now: Instant,
        to: Endpoint,
        peers: Vec<RemotePeer>,
        unfiltered: bool,
        urgent: bool,
    ) {
        let flow = self.new_flow();
        let want = want(to, peers.clone(), self.pinhole_terms(to), urgent);
        let asked = self.pinholes.table.of(to).map(|pinhole| pinhole.asked_at).max().unwrap_or(now);
        let carried = Carried { flow, grant: None, degraded: false, peers, unfiltered };
        self.pinholes.carriage.insert(to, carried);
        let input = if urgent { Input::Ask(flow, want) } else { Input::AskInTurn(flow, want, asked) };
        self.firewall_input(now, input);
    }

    /// What the provider lets in this router does, too; and who waits for that hears so.
    fn stands_at_provider(&mut self, now: Instant, to: Endpoint) {
        self.open_here(to);
        let open = self.pinholes.table.of(to).filter(|pinhole| pinhole.stage == Stage::Open);
        for id in open.map(|pinhole| pinhole.id).collect::<Vec<_>>() {
            for (waiter, _) in self.pinholes.waiters.remove(&id).unwrap_or_default() {
                self.answer_pinhole(now, waiter, id);
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

    pub(super) fn extend_carried(&mut self, now: Instant, to: Endpoint) {
        if let Some(flow) = self.pinholes.carriage.find(to).map(|carried| carried.flow) {
            let terms = self.pinhole_terms(to);
            self.firewall_input(now, Input::Extend(flow, terms));
        }
    }

    pub(super) fn is_carried(&self, to: Endpoint) -> bool {
        self.pinholes.carriage.find(to).is_some_and(|carried| carried.grant.is_some())
    }

    /// One of the pinholes of this port is gone.
    pub(super) fn close_at_provider(&mut self, now: Instant, to: Endpoint) {
        if self.has_pinholes(to) {
            if self.pinholes.carriage.find(to).is_some() {
                self.ask_firewall(now, to, false);
            }
            return;
        }
        self.pinholes.carriage.declined.remove(&to);
        self.drop_carried(now, to);
    }

    /// The provider is to have it no more.
    fn drop_carried(&mut self, now: Instant, to: Endpoint) {
        let Some(carried) = self.pinholes.carriage.remove(to) else { return };
        if self.pinholes.provider.client.as_ref().is_some_and(|client| client.has(carried.flow)) {
            self.pinholes.carriage.strays.insert(carried.flow);
            self.firewall_input(now, Input::DeleteInTurn(carried.flow));
        } else {
            self.on_given_back(carried.flow);
        }
    }

    pub(super) fn on_pinhole_granted(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let Some(&to) = self.pinholes.carriage.by_flow.get(&flow) else { return };
        let usable = matches!(grant.external.ip(), IpAddr::V6(addr) if is_of_the_internet(addr));
        // Another port would be of no use to whoever was told this one.
        if grant.external.port() != to.port || !usable {
            self.drop_carried(now, to);
            self.pinholes.carriage.refuse(now, to, OF_NO_USE, Refusal::Unusable);
            return self.on_pinhole_not_carried(now, to, Refusal::Unusable, OF_NO_USE);
        }
        let Some(carried) = self.pinholes.carriage.carried.get_mut(&to) else { return };
        let first = carried.grant.replace(grant).is_none();
        carried.degraded = false;
        if first && self.pinholes.table.of(to).any(|pinhole| pinhole.stored) {
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
        let Some(&to) = self.pinholes.carriage.by_flow.get(&flow) else { return };
        let Some(carried) = self.pinholes.carriage.remove(to) else { return };
        if !carried.peers.is_empty() && may_be_for_filters(result) {
            return self.begin_to_carry(now, to, Vec::new(), true, true);
        }
        if is_no_firewall(result) {
            // It is a NAT's alone, or does not serve third parties: there is nobody to be asked about pinholes.
            if self.pinholes.carriage.declined.is_empty() {
                self.notice(Notice::Pinhole(PinholeNews::NoFirewall(to, result)));
            }
            self.pinholes.carriage.declined.insert(to);
            return self.stands_at_provider(now, to);
        }
        let (wait, refusal) = (wait.max(ASK_AGAIN), Refusal::Upstream(result));
        self.pinholes.carriage.refuse(now, to, wait, refusal);
        self.on_pinhole_not_carried(now, to, refusal, wait);
    }

    pub(super) fn on_pinhole_unrenewed(&mut self, flow: FlowId) {
        let carriage = &mut self.pinholes.carriage;
        let Some(to) = carriage.by_flow.get(&flow) else { return };
        if let Some(carried) = carriage.carried.get_mut(to) {
            carried.degraded = true;
        }
    }

    /// Another filter, or another lifetime, was refused: what the provider has stays as it was.
    pub(super) fn on_pinhole_renewal_refused(&mut self, now: Instant, flow: FlowId, result: ResultCode) {
        let Some(&to) = self.pinholes.carriage.by_flow.get(&flow) else { return };
        let Some(carried) = self.pinholes.carriage.carried.get_mut(&to) else { return };
        if may_be_for_filters(result) && !carried.unfiltered && !carried.peers.is_empty() {
            carried.unfiltered = true;
            carried.peers.clear();
            return self.firewall_input(now, Input::Filter(flow, Vec::new()));
        }
        if !std::mem::replace(&mut carried.degraded, true) {
            self.notice(Notice::Pinhole(PinholeNews::RenewalRefused(to, result)));
        }
        // Who is to be let in there beside those that are is not; who asked for more time has what is left.
        self.fail_asking(now, to, Refusal::Upstream(result));
        self.stands_at_provider(now, to);
    }

    /// The provider does not keep what it had given.
    pub(super) fn on_pinhole_lost(&mut self, now: Instant, flow: FlowId) {
        let Some(&to) = self.pinholes.carriage.by_flow.get(&flow) else { return };
        self.drop_carried(now, to);
        self.on_pinhole_not_carried(now, to, Refusal::NoAnswer, ASK_AGAIN);
    }

    /// Who waits hears why; what stands here stays, for the host counts on it, and the provider is asked again.
    fn on_pinhole_not_carried(&mut self, now: Instant, to: Endpoint, refusal: Refusal, wait: Duration) {
        self.fail_waiting(now, to, refusal);
        if self.has_pinholes(to) {
            self.notice(Notice::Pinhole(PinholeNews::NotCarried(to, refusal)));
            self.carry_at(now + wait);
        }
    }

    /// Whoever waits for the provider hears this.
    fn fail_waiting(&mut self, now: Instant, to: Endpoint, refusal: Refusal) {
        self.fail_asking(now, to, refusal);
        for id in self.pinholes.table.of(to).map(|pinhole| pinhole.id).collect::<Vec<_>>() {
            let opening = self.pinholes.table.find(id).is_some_and(|pinhole| pinhole.stage == Stage::Opening);
            if !opening {
                for (waiter, _) in self.pinholes.waiters.remove(&id).unwrap_or_default() {
                    self.refuse(waiter, refusal);
                }
            }
        }
    }

    fn fail_asking(&mut self, now: Instant, to: Endpoint, refusal: Refusal) {
        let asking = self.pinholes.table.of(to).filter(|pinhole| pinhole.stage == Stage::Asking);
        for id in asking.map(|pinhole| pinhole.id).collect::<Vec<_>>() {
            self.fail_pinhole(now, id, refusal);
        }
    }

    fn carry_at(&mut self, at: Instant) {
        let at = self.pinholes.carriage.carry_at.map_or(at, |before| before.min(at));
        self.pinholes.carriage.carry_at = Some(at);
        self.timers.set(Alarm::Carry, at);
    }

    /// What stands here and not at the provider is asked for, in turn.
    pub(in super::super) fn carry_all(&mut self, now: Instant) {
        self.pinholes.carriage.carry_at = None;
        if self.pinholes.provider.standing() != Standing::Serving || self.stopping {
            return;
        }
        for to in self.pinholes.table.endpoints() {
            let carriage = &self.pinholes.carriage;
            if carriage.find(to).is_some() || carriage.declined.contains(&to) {
                continue;
            }
            match carriage.refused.get(&to).map(|(until, _)| *until).filter(|until| *until > now) {
                Some(until) => self.carry_at(until),
                None => self.ask_firewall(now, to, false),
            }
        }
    }

    /// The look for a server is over, or there is another one: whatever waits for that goes on.
    pub(super) fn carry_what_waits(&mut self, now: Instant) {
        for to in self.pinholes.table.endpoints() {
            let waits = |pinhole: &Pinhole| pinhole.stage == Stage::Asking;
            if self.pinholes.table.of(to).any(waits) {
                self.carry(now, to);
            }
        }
    }

    /// What nobody may have any more is given back: the server knows it by what can be worked out again.
    pub(super) fn give_back_unwanted(&mut self, now: Instant) {
        for to in std::mem::take(&mut self.pinholes.carriage.unwanted) {
            let flow = self.new_flow();
            let want = want(to, Vec::new(), self.pinhole_terms(to), false);
            self.pinholes.carriage.strays.insert(flow);
            self.firewall_input(now, Input::Assume(flow, want));
            self.firewall_input(now, Input::DeleteInTurn(flow));
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

/// Whether a request may have been refused for its filters: it is worth a try without.
fn may_be_for_filters(result: ResultCode) -> bool {
    matches!(
        result,
        ResultCode::EXCESSIVE_REMOTE_PEERS | ResultCode::UNSUPP_OPTION | ResultCode::MALFORMED_OPTION
    )
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

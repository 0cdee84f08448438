//! A NAT-PMP client for one gateway (RFC 6886), without socket or clock: flows in, datagrams out, and back.
//!
//! NAT-PMP has no nonce, no option and no third party: an answer belongs to the flow with its protocol and internal port, a mapping
//! is the sender's own, and the external address is told apart from mappings. So a grant is only reported once that address is
//! known. One request is out at a time (§3.1); the others wait in a line, those first that somebody waits for.
//!
//! A gateway that has learned PCP meanwhile is noticed (RFC 6886 §1.1): now and then a PCP ANNOUNCE goes along, which changes nothing.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wire::natpmp::{self, Request, Response, Transport};
use wire::pcp::{self, Body, Protocol, ResultCode};

use super::epoch::{BegunSince, Recoveries, begun_since};
use super::filters::Filters;
use super::flow::{FlowId, Grant, Terms, Want, lifetime_to_ask};
use super::interface::{Input, Output, Uplink, UplinkProtocol};
use super::line::{Line, Rank};
use super::schedule::{BLIND_DELETE, MIN_RENEWAL_GAP, delete_until, next_wake};
use crate::entropy::Entropy;
use crate::time::{Duration, Instant, Timers};

mod answers;

/// The wait after the first copy of a request; it doubles (RFC 6886 §3.1).
const FIRST_RT: Duration = Duration::from_millis(250);
/// No wait is longer: that after the ninth copy.
const LONGEST_RT: Duration = Duration::from_secs(64);
/// After so many copies another request has its turn, for a gateway may answer that.
const COPIES_IN_A_ROW: u32 = 4;
/// So many datagrams without any answer, the first of them so long ago, and the gateway counts as silent.
const SILENT_AFTER: u32 = 4;
const SILENT_FOR: Duration = Duration::from_secs(3);
/// A success is never believed for longer.
const MAX_LIFETIME: u32 = 24 * 3600;
/// The gateway's clock may be slower by one part in so many (RFC 6886 §3.6: seven eighths of our time).
const CLOCK_SLACK: u32 = 7;
/// NAT-PMP's errors have no lifetime of their own.
const ERROR_LIFETIME: Duration = Duration::from_secs(30);
/// How often it is looked whether the gateway speaks PCP now, at most.
const KNOCK_GAP: Duration = Duration::from_secs(60);
/// A gateway without an external address is asked again so often.
const ADDRESS_RETRY: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// It is asked for, or waits in the line for that.
    Asking,
    /// Granted; so many renewals have been tried since.
    Held { attempts: u32 },
    /// It is given back; that makes no sense after `until`.
    Deleting { until: Instant },
}

#[derive(Clone, Debug)]
struct Flow {
    want: Want,
    phase: Phase,
    grant: Option<Grant>,
    /// Granted, and not reported: the external address is not known yet.
    unreported: bool,
    /// Its owner has been told that it stands, by this client or before.
    stands: bool,
    /// A request went out, and no answer came since.
    unanswered: bool,
    /// Copies of the delete that went out.
    deletes: u32,
    /// When the last copy went out.
    sent_at: Instant,
    /// When its owner last asked for it.
    used_at: Instant,
}

impl Flow {
    fn new(now: Instant, want: Want) -> Self {
        Self {
            want,
            phase: Phase::Asking,
            grant: None,
            unreported: false,
            stands: false,
            unanswered: false,
            deletes: 0,
            sent_at: now,
            used_at: now,
        }
    }

    fn is_deleting(&self) -> bool {
        matches!(self.phase, Phase::Deleting { .. })
    }

    fn key(&self) -> Key {
        (self.want.protocol, self.want.internal_port)
    }

    fn is_over(&self, now: Instant) -> bool {
        self.grant.is_some_and(|grant| grant.ends() <= now)
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum What {
    /// The external address.
    Address,
    /// A mapping, or its end.
    Flow(FlowId),
}

/// What an answer is matched by.
type Key = (Protocol, u16);

/// The request that is out.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    what: What,
    rank: Rank,
    copies: u32,
    rt: Duration,
    due: Instant,
}

/// What is known of the gateway's clock (RFC 6886 §3.6).
#[derive(Clone, Copy, Debug, Default)]
struct Clock {
    last: Option<(Instant, u32)>,
}

impl Clock {
    /// Takes in Seconds Since Start Of Epoch; false when the gateway must have lost its state since the last time: seven eighths
    /// of our time have not passed there, with 2 s to spare.
    fn is_consistent(&mut self, now: Instant, epoch: u32) -> bool {
        let before = self.last.replace((now, epoch));
        before.is_none_or(|(then, before)| {
            let passed = (now - then).as_secs();
            u64::from(epoch) + 2 >= u64::from(before) + passed * 7 / 8
        })
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct NatPmpClient {
    server: SocketAddr,
    source: IpAddr,
    open: bool,
    recovery_wait: Duration,
    flows: BTreeMap<FlowId, Flow>,
    by_key: BTreeMap<Key, FlowId>,
    /// What waits until a flow that is being given back is gone, and what has waited.
    behind: BTreeMap<FlowId, (FlowId, Want)>,
    unblocked: VecDeque<(FlowId, Want)>,
    line: Line<What>,
    out: Option<Exchange>,
    /// How long the last request waited that another one has taken the place of.
    pace: Duration,
    /// Renewals, and ends.
    timers: Timers<FlowId>,
    /// `None` before the first answer; `Some(None)`: the gateway has none.
    external: Option<Option<Ipv4Addr>>,
    ask_address_at: Option<Instant>,
    clock: Clock,
    /// When the gateway was last found to have lost its state.
    recoveries: Recoveries,
    /// When it was last asked whether it speaks PCP, and whether an answer to that is due.
    knocked: Instant,
    knocking: bool,
    unanswered: u32,
    unanswered_since: Option<Instant>,
    answering: Option<bool>,
    last_heard: Option<Instant>,
    filters: Filters,
    ignored: u64,
    outputs: VecDeque<Output>,
}

impl NatPmpClient {
    /// A client for the gateway at `server`, sending from `source`. It asks for the external address at once.
    pub fn new(now: Instant, server: SocketAddr, source: IpAddr, recovery_wait: Duration) -> Self {
        let mut new = Self {
            server,
            source,
            open: true,
            recovery_wait,
            flows: BTreeMap::new(),
            by_key: BTreeMap::new(),
            behind: BTreeMap::new(),
            unblocked: VecDeque::new(),
            line: Line::default(),
            out: None,
            pace: FIRST_RT,
            timers: Timers::default(),
            external: None,
            ask_address_at: None,
            clock: Clock::default(),
            recoveries: Recoveries::default(),
            // Whoever makes it has just heard that the gateway does not speak PCP.
            knocked: now,
            knocking: false,
            unanswered: 0,
            unanswered_since: None,
            answering: None,
            last_heard: None,
            filters: Filters::default(),
            ignored: 0,
            outputs: VecDeque::new(),
        };
        new.line.join(Rank::Address, What::Address);
        new
    }

    fn add_flow(&mut self, now: Instant, id: FlowId, want: Want) -> bool {
        // No third parties (RFC 6886 §3.3): a mapping is for the packet's own source.
        if want.third_party.is_some_and(|host| host != self.source) {
            self.outputs.push_back(Output::Refused(id, ResultCode::UNSUPP_OPTION, ERROR_LIFETIME));
            return false;
        }
        if Transport::try_from(want.protocol).is_err() || want.internal_port == 0 {
            self.outputs.push_back(Output::Refused(id, ResultCode::UNSUPP_PROTOCOL, ERROR_LIFETIME));
            return false;
        }
        let flow = Flow::new(now, want);
        if let Some(&old) = self.by_key.get(&flow.key()) {
            // The gateway has one mapping for an internal port, and goes on with it whatever is suggested (N-5): another external
            // port has to wait until the old one is gone.
            let granted = self.flows.get(&old).and_then(|old| old.grant).map(|grant| grant.external.port());
            let suggested = flow.want.external_port;
            if suggested != 0 && granted.is_none_or(|port| port != suggested) {
                self.behind.insert(old, (id, flow.want));
                return false;
            }
            self.remove(old);
            self.outputs.push_back(Output::Deleted(old));
        }
        self.by_key.insert(flow.key(), id);
        self.flows.insert(id, flow);
        true
    }

    fn ask(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get(&id) else { return };
        self.line.join(if flow.want.urgent { Rank::Urgent } else { Rank::Renewal }, What::Flow(id));
    }

    fn ask_in_turn(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get(&id) else { return };
        self.line.join(Rank::in_turn(flow.used_at), What::Flow(id));
    }

    fn extend(&mut self, now: Instant, id: FlowId, terms: Terms, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.want.terms = terms;
        flow.used_at = now;
        if let Phase::Held { .. } = flow.phase {
            self.schedule_renewal(now, id, entropy);
        }
    }

    /// Asks for a mapping that stands, because somebody waits for that.
    fn confirm(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if flow.grant.is_some() && !flow.is_deleting() {
            flow.want.urgent = true;
            flow.phase = Phase::Asking;
            self.ask(id);
        }
    }

    /// Whether there is something to give back that is not being given back.
    fn begin_delete(&mut self, now: Instant, id: FlowId) -> bool {
        let waiting = self.behind.len();
        self.behind.retain(|_, (waiting, _)| *waiting != id);
        if self.behind.len() < waiting {
            self.outputs.push_back(Output::Deleted(id)); // nothing has been sent for it
            return false;
        }
        let Some(flow) = self.flows.get_mut(&id) else { return false };
        if flow.is_deleting() {
            return false;
        }
        let until = delete_until(now, flow.grant);
        (flow.phase, flow.deletes) = (Phase::Deleting { until }, 0);
        self.leave_line(id);
        self.timers.set(id, until);
        true
    }

    /// What was asked for it is asked no more.
    fn leave_line(&mut self, id: FlowId) {
        self.line.leave(What::Flow(id));
        if self.out.is_some_and(|out| out.what == What::Flow(id)) {
            self.out = None;
        }
    }

    fn remove(&mut self, id: FlowId) {
        self.leave_line(id);
        self.timers.cancel(id);
        if let Some(flow) = self.flows.remove(&id) {
            if self.by_key.get(&flow.key()) == Some(&id) {
                self.by_key.remove(&flow.key());
            }
            self.unblocked.extend(self.behind.remove(&id));
        }
    }

    fn on_alarm(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        match flow.phase {
            Phase::Deleting { until } if until <= now && self.open => {
                self.remove(id);
                self.outputs.push_back(Output::Deleted(id));
            }
            // As long as nothing can be sent, the time for it does not pass.
            Phase::Deleting { .. } => {
                flow.phase = Phase::Deleting { until: now + BLIND_DELETE };
                self.timers.set(id, now + BLIND_DELETE);
            }
            Phase::Asking | Phase::Held { .. } if flow.is_over(now) => {
                // A renewal that was not answered may have got through all the same.
                if flow.unanswered && self.begin_delete(now, id) {
                    self.line.join(Rank::Delete, What::Flow(id));
                } else {
                    self.remove(id);
                }
                self.outputs.push_back(Output::Lost(id));
            }
            Phase::Held { attempts } => {
                if attempts > 0 {
                    self.outputs.push_back(Output::Unrenewed(id));
                }
                flow.phase = Phase::Held { attempts: attempts + 1 };
                flow.sent_at = now;
                self.ask(id);
                self.schedule_renewal(now, id, entropy);
            }
            Phase::Asking => {
                if let Some(grant) = flow.grant {
                    self.timers.set(id, grant.ends());
                }
            }
        }
    }

    /// Sets the alarm of a held flow.
    fn schedule_renewal(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get(&id) else { return };
        let (Some(grant), Phase::Held { attempts }) = (flow.grant, flow.phase) else { return };
        let wake = next_wake(now, grant, &flow.want.terms, flow.sent_at, attempts, entropy);
        self.timers.set(id, wake);
    }

    /// Sends the next copy of what is out, or the first one of who is next in the line.
    fn go_on(&mut self, now: Instant) {
        if !self.open {
            return;
        }
        let silent = self.answering == Some(false);
        if let Some(out) = self.out {
            let longer = (out.rt * 2).min(LONGEST_RT);
            let had_its_turn = out.copies >= COPIES_IN_A_ROW;
            // Somebody has come who cannot wait as long as this one does.
            let gives_way = self.line.best().is_some_and(|best| {
                best < out.rank && (had_its_turn || best == Rank::Urgent)
                    || best == Rank::Urgent && had_its_turn
            });
            let may_others = silent || out.copies.is_multiple_of(COPIES_IN_A_ROW);
            if gives_way || out.due <= now && may_others && !self.line.is_empty(now) {
                // While nobody answers, nobody is urgent for more than one turn.
                let rank = if silent { Rank::AfterOthers } else { out.rank.after_others() };
                self.line.join(rank, out.what);
                (self.out, self.pace) = (None, longer);
            } else if out.due <= now {
                self.out = Some(Exchange { rt: longer, ..out });
                self.send(now);
            }
        }
        while self.out.is_none() {
            let Some((rank, what)) = self.line.next(now) else { return };
            // A silent gateway is asked for one after the other, ever more slowly.
            let rt = if silent && rank != Rank::Urgent { self.pace.max(FIRST_RT) } else { FIRST_RT };
            self.out = Some(Exchange { what, rank, copies: 0, rt, due: now });
            self.send(now);
        }
    }

    fn send(&mut self, now: Instant) {
        let Some(out) = &mut self.out else { return };
        let request = match out.what {
            What::Address => Request::ExternalAddress,
            What::Flow(id) => {
                let Some(request) = self.flows.get_mut(&id).and_then(|flow| flow.request(now)) else {
                    self.out = None;
                    return;
                };
                request
            }
        };
        out.copies += 1;
        out.due = now + out.rt;
        let first = out.copies == 1;
        let keeps = match out.what {
            What::Address => false,
            What::Flow(id) => self.flows.get(&id).is_some_and(|flow| !flow.is_deleting()),
        };
        if first && keeps && now - self.knocked >= KNOCK_GAP {
            self.knock(now);
        }
        self.outputs.push_back(Output::Transmit(request.to_bytes()));
        self.unanswered += 1;
        let since = *self.unanswered_since.get_or_insert(now);
        if self.unanswered >= SILENT_AFTER && now - since >= SILENT_FOR {
            self.is_silent();
        }
    }

    fn is_silent(&mut self) {
        if self.answering != Some(false) {
            self.answering = Some(false);
            self.outputs.push_back(Output::Silent);
        }
    }

    /// Does it speak PCP now?
    fn knock(&mut self, now: Instant) {
        if !self.open {
            return;
        }
        (self.knocked, self.knocking) = (now, true);
        let client_addr = pcp::ip_to_wire(self.source);
        let announce = pcp::Request { lifetime: 0, client_addr, body: Body::Announce, options: Vec::new() };
        self.outputs.push_back(Output::Transmit(announce.to_bytes()));
    }

    fn ask_address(&mut self) {
        self.ask_address_at = None;
        if self.out.is_none_or(|out| out.what != What::Address) {
            self.line.join(Rank::Address, What::Address);
        }
    }

    /// Asks again for every mapping but `confirmed`, in turn, after a random wait from `start` on (RFC 6886 §3.7).
    fn recover(
        &mut self,
        now: Instant,
        start: Instant,
        confirmed: Option<FlowId>,
        entropy: &mut dyn Entropy,
    ) {
        let mut due = start + entropy.up_to(self.recovery_wait);
        let mut lost = Vec::new();
        for (&id, flow) in &mut self.flows {
            if let (Phase::Held { .. }, Some(grant), true) = (flow.phase, flow.grant, Some(id) != confirmed) {
                flow.phase = Phase::Asking;
                due = due.min(now + (grant.ends() - now) / 2);
                self.timers.set(id, grant.ends());
                lost.push(id);
            }
        }
        self.line.turns_from(now, due);
        for id in lost {
            self.line.leave(What::Flow(id));
            self.ask_in_turn(id);
        }
    }
}

impl Flow {
    /// What is sent for it; `None` when there is nothing to say any more.
    fn request(&mut self, now: Instant) -> Option<Request> {
        let protocol = Transport::try_from(self.want.protocol).ok()?;
        let internal_port = self.want.internal_port;
        (self.unanswered, self.sent_at) = (true, now);
        if self.is_deleting() {
            // Never internal port 0: that would be everybody's mappings of this router (N-9).
            self.deletes += 1;
            return Some(Request::Map { protocol, internal_port, external_port: 0, lifetime: 0 });
        }
        let external_port = self.grant.map_or(self.want.external_port, |grant| grant.external.port());
        let endless = self.want.terms.lease_ends.is_none();
        let longest = if endless { natpmp::RECOMMENDED_LIFETIME } else { u32::MAX };
        let lifetime = lifetime_to_ask(now, &self.want.terms).min(longest);
        Some(Request::Map { protocol, internal_port, external_port, lifetime })
    }
}

impl Uplink for NatPmpClient {
    fn protocol(&self) -> UplinkProtocol {
        UplinkProtocol::NatPmp
    }

    fn server(&self) -> SocketAddr {
        self.server
    }

    fn source(&self) -> IpAddr {
        self.source
    }

    fn handle_input(&mut self, now: Instant, input: Input<'_>, entropy: &mut dyn Entropy) {
        match input {
            Input::Ask(id, want) => {
                if self.add_flow(now, id, want) {
                    self.ask(id);
                }
            }
            Input::AskInTurn(id, want, used) => {
                if self.add_flow(now, id, want) {
                    let flow = self.flows.get_mut(&id).expect("just added");
                    (flow.used_at, flow.stands) = (used, true);
                    self.ask_in_turn(id);
                }
            }
            Input::Assume(id, want) => drop(self.add_flow(now, id, want)),
            Input::TurnsFrom(due) => self.line.turns_from(now, due),
            Input::Hurry(id) => {
                if let Some(flow) = self.flows.get_mut(&id).filter(|flow| flow.phase == Phase::Asking) {
                    flow.want.urgent = true;
                    self.leave_line(id);
                    self.ask(id);
                }
            }
            Input::Extend(id, terms) => self.extend(now, id, terms, entropy),
            Input::Confirm(id) => self.confirm(id),
            Input::Filter(id, peers) => {
                // The router's own NAT lets in whom it says; the gateway cannot be told.
                if let Some(flow) = self.flows.get_mut(&id) {
                    flow.want.remote_peers = peers;
                }
                self.confirm(id);
            }
            Input::Delete(id) => {
                if self.begin_delete(now, id) {
                    self.line.join(Rank::Urgent, What::Flow(id));
                }
            }
            Input::DeleteInTurn(id) => {
                if self.begin_delete(now, id) {
                    self.line.join(Rank::Delete, What::Flow(id));
                }
            }
            Input::Peer(id, _) => self.outputs.push_back(super::peer::not_served(id)),
            // NAT-PMP tells nobody what it holds.
            Input::Adopt(..) | Input::List(_) | Input::Http(..) => {}
            Input::Forget(id) => {
                self.behind.retain(|_, (waiting, _)| *waiting != id);
                self.remove(id);
            }
            Input::Datagram(from, bytes) if from == self.server => self.on_datagram(now, bytes, entropy),
            Input::Multicast(from, bytes) if from == self.server => self.on_multicast(now, bytes, entropy),
            Input::Datagram(..) | Input::Multicast(..) => self.ignored += 1,
            // RFC 6886 §3.1: there is nobody to wait for.
            Input::Unreachable => {
                if self.unanswered > 0 {
                    self.is_silent();
                }
            }
            Input::Closed => self.open = false,
            Input::Source(source) => {
                self.open = true;
                let moved = source != self.source;
                self.source = source;
                // Whoever uses it may have forgotten the address, or it is another one by now.
                self.external = None;
                self.again();
                self.knock(now);
                self.ask_address();
                if moved {
                    self.clock = Clock::default();
                    self.recover(now, now, None, entropy);
                }
            }
            Input::Woke => self.recover(now, now, None, entropy),
            Input::Timeout => {
                while let Some(id) = self.timers.pop_due(now) {
                    self.on_alarm(now, id, entropy);
                }
                if self.ask_address_at.is_some_and(|at| at <= now) {
                    self.ask_address();
                }
            }
        }
        while let Some((id, want)) = self.unblocked.pop_front() {
            if self.add_flow(now, id, want) {
                self.ask(id);
            }
        }
        self.go_on(now);
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn next_timeout(&self) -> Option<Instant> {
        let out = self.out.filter(|_| self.open).map(|out| out.due);
        let line = self.line.next_timeout().filter(|_| self.open && self.out.is_none());
        [self.timers.next(), out, line, self.ask_address_at].into_iter().flatten().min()
    }

    fn is_answering(&self) -> Option<bool> {
        self.answering
    }

    fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    fn server_epoch(&self) -> Option<u32> {
        self.clock.last.map(|(_, epoch)| epoch)
    }

    fn ignored(&self) -> u64 {
        self.ignored
    }

    fn unanswered_since(&self) -> Option<Instant> {
        self.unanswered_since
    }

    fn grant(&self, flow: FlowId) -> Option<Grant> {
        self.flows.get(&flow).filter(|flow| !flow.unreported)?.grant
    }

    fn holds(&self, flow: FlowId) -> bool {
        self.flows.get(&flow).is_some_and(|flow| matches!(flow.phase, Phase::Held { .. }) && !flow.unreported)
    }

    fn has(&self, flow: FlowId) -> bool {
        self.flows.contains_key(&flow) || self.behind.values().any(|(waiting, _)| *waiting == flow)
    }

    fn set_recovery_wait(&mut self, wait: Duration) {
        self.recovery_wait = wait;
    }

    fn set_filters(&mut self, filters: Filters) {
        self.filters = filters;
    }

    fn take_filters(&mut self) -> Filters {
        std::mem::take(&mut self.filters)
    }
}

#[cfg(test)]
mod tests;

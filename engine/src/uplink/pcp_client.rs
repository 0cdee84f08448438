//! A PCP client for one server (RFC 6887), without socket or clock: flows in, datagrams out, and back.
//!
//! It never judges what a grant is worth to a control point: a success is reported as it came, and whoever asked
//! compares it with what was asked (RFC 6887 §13.2).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use wire::natpmp;
use wire::pcp::{
    self, Body, Filter, MapData, NO_ADDR_V4, NextMapping, Nonce, OptionCode, PcpOption, Protocol, Response,
    ResultCode,
};

use super::epoch::{BegunSince, EpochClock, Recoveries, begun_since};
use super::filters::{Filtered, Filters};
use super::flow::{
    Carried, Flow, FlowId, Grant, Omitted, Phase, RemotePeer, Terms, Unknown, Want, client, lifetime_to_ask,
    third_party,
};
use super::interface::{Input, Output, Uplink, UplinkProtocol};
use super::nonces::{Client, ServerIdentity};
use super::peer::Peers;
use super::query::{Answer, Query};
use super::remembered::Remembered;
use super::schedule::{
    BLIND_DELETE, IMPATIENT, MIN_RENEWAL_GAP, delete_until, first_rt, may_renew, next_rt, next_wake,
};
use super::turns::Turns;
use crate::entropy::Entropy;
use crate::time::{Duration, Instant, Timers};

mod answers;
mod listing;
mod peering;

/// A success is never believed for longer (RFC 6887 §15).
const MAX_LIFETIME: u32 = 24 * 3600;
/// An error is never obeyed for longer.
const MAX_ERROR_LIFETIME: u32 = 30 * 60;
/// So many datagrams without any answer, the first of them so long ago, and the server counts as silent.
pub const SILENT_AFTER: u32 = 4;
/// See [`SILENT_AFTER`].
pub const SILENT_FOR: Duration = Duration::from_secs(3);
/// What was asked in vain is asked again within this time once the server answers somebody, where an owner waits.
pub const NUDGE_SPREAD: Duration = Duration::from_secs(1);
/// A server's clock may be slower by one part in so many (RFC 6887 §8.5).
const CLOCK_SLACK: u32 = 16;
/// A server that has spoken PCP is not believed to speak something else only, until it was silent for so long.
const PCP_REMEMBERED: Duration = Duration::from_secs(3600);
/// So long after it has shown that it speaks PCP an answer to the first request may take.
const SPOKEN: Duration = Duration::from_secs(60);
/// A server that takes longer for its first answer may not speak PCP.
const FIRST_DOUBT: Duration = Duration::from_secs(1);
/// It is asked by NAT-PMP ever more seldom, at last so seldom.
const LAST_DOUBT: Duration = Duration::from_secs(15 * 60);
/// Nonces of mappings that are gone: the server holds a port for two hours at most, and nobody has this many at once.
const MOST_NONCES: usize = 4096;
/// So many renewals, beside those that are due, go together …
const TOGETHER: usize = 15;
/// … of so many that come next.
const LOOKED_AT: usize = 64;

/// See the module's description.
#[derive(Debug)]
pub struct PcpClient {
    server: SocketAddr,
    /// By what nonces are derived.
    identity: ServerIdentity,
    source: IpAddr,
    open: bool,
    recovery_wait: Duration,
    /// Boxed, for the map's places are empty by half: numbers only rise.
    flows: BTreeMap<FlowId, Box<Flow>>,
    /// By what an answer is matched with (RFC 6887 §11.4): nonce, protocol, internal port.
    by_nonce: BTreeMap<(Nonce, Protocol, u16), FlowId>,
    /// Of mappings that are gone, where it is another one than is derived.
    nonces: Remembered<Client, Nonce>,
    filters: Filters,
    /// Flows whose delete is on the way.
    deleting: BTreeMap<Client, FlowId>,
    /// What waits until such a flow is gone, and what has waited.
    behind: BTreeMap<FlowId, (FlowId, Want)>,
    unblocked: VecDeque<(FlowId, Want)>,
    timers: Timers<FlowId>,
    turns: Turns,
    query: Option<Query>,
    peers: Peers,
    epoch: EpochClock,
    /// When the server was last found to have lost its state, or the recovery from that is to begin.
    recoveries: Recoveries,
    /// When one mapping was asked for again to see whether that is needed.
    soundings: Recoveries,
    /// No mapping that is held was granted before.
    oldest: Instant,
    /// Options that the server has refused, and done what was asked without.
    lacks: Omitted,
    /// Whether it repeats FILTERs in its answers, as RFC 6887 §7.3 asks of what is processed.
    repeats_filters: bool,
    unanswered: u32,
    unanswered_since: Option<Instant>,
    /// What is sent goes along with something else.
    goes_along: bool,
    answering: Option<bool>,
    last_heard: Option<Instant>,
    /// No new mapping is asked for before this (RFC 6887 §7.4, NO_RESOURCES; §9, unsupported version).
    hold: Option<(Instant, ResultCode)>,
    ignored: u64,
    /// Nothing that tells of anybody is sent before the server has answered something else.
    knocks: bool,
    /// A server that speaks NAT-PMP instead is of use.
    fallback: bool,
    /// When it has shown to somebody else that it speaks PCP.
    spoke_at: Option<Instant>,
    /// It is not asked by NAT-PMP before; and the gap until then.
    doubt_at: Instant,
    doubt_gap: Duration,
    outputs: VecDeque<Output>,
}

impl Uplink for PcpClient {
    fn protocol(&self) -> UplinkProtocol {
        UplinkProtocol::Pcp
    }

    fn needs_probe(&self) -> bool {
        true
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
                if self.add_flow(now, id, want, entropy) {
                    self.on_timer(now, id, entropy);
                }
            }
            Input::AskInTurn(id, want, used) => {
                if self.add_flow(now, id, want, entropy) {
                    self.flows.get_mut(&id).expect("just added").used_at = used;
                    self.turns.enqueue(used, id);
                }
            }
            Input::Assume(id, want) => {
                let hold = self.hold.take();
                self.add_flow(now, id, want, entropy);
                self.hold = hold;
            }
            Input::TurnsFrom(due) => self.turns.begin(now, due),
            Input::Hurry(id) => self.hurry(now, id, entropy),
            Input::Extend(id, terms) => self.extend(now, id, terms, entropy),
            Input::Confirm(id) => self.confirm(now, id, entropy),
            Input::Filter(id, peers) => self.filter(now, id, peers, entropy),
            Input::Delete(id) => {
                if self.begin_delete(now, id) {
                    self.on_timer(now, id, entropy);
                }
            }
            Input::DeleteInTurn(id) => {
                if self.begin_delete(now, id) {
                    self.turns.enqueue_delete(id);
                }
            }
            Input::Adopt(id, unknown, until) => self.adopt(now, id, unknown, until, entropy),
            Input::List(due) => self.query = Some(Query::new(due)),
            Input::Peer(id, want) => self.ask_peer(now, id, want, entropy),
            Input::Forget(id) => {
                self.behind.retain(|_, (waiting, _)| *waiting != id);
                self.peers.forget(id);
                self.remove(id);
            }
            Input::Datagram(from, bytes) if from == self.server => self.on_datagram(now, bytes, entropy),
            Input::Multicast(from, bytes) if from == self.server => self.on_multicast(now, bytes, entropy),
            // Some other host, or another port of the server: silence (RFC 6887 §8.3).
            Input::Datagram(..) | Input::Multicast(..) => self.ignored += 1,
            Input::Http(..) => {}
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
                // A new socket at least: nothing has got through for a while.
                self.nudge(now, entropy);
                if moved {
                    self.epoch = EpochClock::default();
                    // The server knows us by another address, perhaps from an earlier time.
                    for flow in self.flows.values_mut() {
                        let filtered = Filtered::new(source, client(&flow.want));
                        if filtered.source.is_some() {
                            flow.reset_filters = self.filters.are_at(filtered);
                        }
                    }
                    self.recover(now, now, None, entropy);
                } else {
                    self.sound(now, entropy);
                }
            }
            Input::Woke => self.recover(now, now, None, entropy),
            Input::Timeout => {
                let mut renews = false;
                while let Some(id) = self.timers.pop_due(now) {
                    renews |=
                        self.flows.get(&id).is_some_and(|flow| matches!(flow.phase, Phase::Held { .. }));
                    self.on_timer(now, id, entropy);
                }
                if renews && self.open && !self.knocks {
                    self.renew_others(now, entropy);
                }
            }
        }
        while let Some((id, want)) = self.unblocked.pop_front() {
            if self.add_flow(now, id, want, entropy) {
                self.on_timer(now, id, entropy);
            }
        }
        while let Some(id) = self.turns.next(now) {
            self.on_timer(now, id, entropy);
        }
        self.go_on_with_query(now, entropy);
        self.go_on_with_peers(now, entropy);
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn next_timeout(&self) -> Option<Instant> {
        let query = self.query.as_ref().map(Query::next_timeout);
        let peers = self.peers.next_timeout();
        [self.timers.next(), self.turns.next_timeout(), query, peers].into_iter().flatten().min()
    }

    fn is_answering(&self) -> Option<bool> {
        self.answering
    }

    fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    fn server_epoch(&self) -> Option<u32> {
        self.epoch.last()
    }

    fn ignored(&self) -> u64 {
        self.ignored
    }

    fn unanswered_since(&self) -> Option<Instant> {
        self.unanswered_since
    }

    fn grant(&self, flow: FlowId) -> Option<Grant> {
        self.flows.get(&flow)?.grant
    }

    fn holds(&self, flow: FlowId) -> bool {
        self.flows.get(&flow).is_some_and(|flow| matches!(flow.phase, Phase::Held { .. }))
    }

    fn has(&self, flow: FlowId) -> bool {
        self.flows.contains_key(&flow) || self.behind.values().any(|(waiting, _)| *waiting == flow)
    }

    fn set_recovery_wait(&mut self, wait: Duration) {
        self.recovery_wait = wait;
    }

    fn takes_prefer_failure(&self) -> bool {
        !self.lacks.prefer_failure
    }

    fn nonce(&self, flow: FlowId) -> Option<Nonce> {
        self.flows.get(&flow).map(|flow| flow.nonce)
    }

    fn remembered(&self, want: &Want) -> Option<Nonce> {
        self.nonces.peek(client(want)).copied()
    }

    fn remember(&mut self, want: &Want, nonce: Nonce) {
        self.nonces.keep(client(want), nonce);
    }

    fn set_filters(&mut self, filters: Filters) {
        self.filters = filters;
    }

    fn take_filters(&mut self) -> Filters {
        std::mem::take(&mut self.filters)
    }
}

impl PcpClient {
    /// A client for the server at `server`, sending from `source`.
    pub fn new(server: SocketAddr, source: IpAddr, recovery_wait: Duration) -> Self {
        Self {
            server,
            identity: ServerIdentity { addr: server.ip(), interface: String::new() },
            source,
            open: true,
            recovery_wait,
            flows: BTreeMap::new(),
            by_nonce: BTreeMap::new(),
            nonces: Remembered::new(MOST_NONCES),
            filters: Filters::default(),
            deleting: BTreeMap::new(),
            behind: BTreeMap::new(),
            unblocked: VecDeque::new(),
            timers: Timers::default(),
            turns: Turns::default(),
            query: None,
            peers: Peers::default(),
            epoch: EpochClock::default(),
            recoveries: Recoveries::default(),
            soundings: Recoveries::default(),
            oldest: Instant::default(),
            lacks: Omitted::default(),
            repeats_filters: false,
            unanswered: 0,
            unanswered_since: None,
            goes_along: false,
            answering: None,
            last_heard: None,
            hold: None,
            ignored: 0,
            knocks: false,
            fallback: false,
            spoke_at: None,
            doubt_at: Instant::default(),
            doubt_gap: Duration::ZERO,
            outputs: VecDeque::new(),
        }
    }

    /// The same, of a server that is known as this: at each of its addresses it is asked by the same nonces (RFC 7488 §3).
    #[must_use]
    pub fn known_as(self, identity: ServerIdentity) -> Self {
        Self { identity, ..self }
    }

    /// The same, of a server that may be nobody, or somebody whom nobody knows: until it answers, ANNOUNCE goes out in the place of every
    /// request (RFC 7723).
    #[must_use]
    pub fn that_may_be_nobody(self) -> Self {
        Self { knocks: true, ..self }
    }

    /// The same, which has just shown that it speaks PCP: as long as its first answer may be on its way, its word for another
    /// protocol is not believed.
    #[must_use]
    pub fn that_has_spoken(self, now: Instant) -> Self {
        Self { spoke_at: Some(now), ..self }
    }

    /// Whether there is no reason to believe that it speaks PCP.
    fn may_speak_another(&self, now: Instant) -> bool {
        let since = |at: Option<Instant>, long: Duration| at.is_none_or(|at| now - at >= long);
        since(self.last_heard, PCP_REMEMBERED) && since(self.spoke_at, SPOKEN)
    }

    /// The same, which finds out whether a server that does not speak PCP speaks NAT-PMP (RFC 6887 §9, appendix A).
    #[must_use]
    pub fn with_fallback(self) -> Self {
        Self { fallback: self.server.is_ipv4(), ..self }
    }

    fn filtered(&self, want: &Want) -> Filtered {
        Filtered::new(self.source, client(want))
    }

    /// Takes in a flow that nothing has been sent for yet; false when the server asked to be left alone.
    fn add_flow(&mut self, now: Instant, id: FlowId, want: Want, entropy: &mut dyn Entropy) -> bool {
        if let Some((until, result)) = self.hold {
            if now < until {
                self.outputs.push_back(Output::Refused(id, result, until - now));
                return false;
            }
            self.hold = None;
        }
        if let Some(old) = self.take_over(&want) {
            self.behind.insert(old, (id, want));
            return false;
        }
        // Derived from a secret of the installation, a nonce is the same after a crash, whatever was written by then: a
        // server would refuse another one as long as the mapping lives, or is held.
        let client = client(&want);
        let (nonce, derived) = match self.nonces.take(client) {
            Some(nonce) => (nonce, false),
            None => (super::nonces::derived(&self.identity, client, entropy), true),
        };
        let reset_filters = self.filters.are_at(self.filtered(&want));
        let flow = Flow { reset_filters, ..Flow::new(now, nonce, derived, want) };
        self.by_nonce.insert(flow.answers(), id);
        self.flows.insert(id, Box::new(flow));
        true
    }

    /// The same client asks anew while the delete of its last mapping is on the way: the new request takes that mapping
    /// over, nonce and all. Not one that insists on another port, or the old mapping would be left to nobody: that one
    /// waits until the flow that is given back is gone.
    fn take_over(&mut self, want: &Want) -> Option<FlowId> {
        let old = *self.deleting.get(&client(want))?;
        let grant = self.flows.get(&old).and_then(|flow| flow.grant);
        if want.terms.prefer_failure && grant.is_some_and(|grant| grant.external.port() != want.external_port)
        {
            return Some(old);
        }
        self.remove(old);
        self.outputs.push_back(Output::Deleted(old));
        None
    }

    /// What goes out in the place of everything to a server that may be nobody.
    fn knock(&self) -> Vec<u8> {
        let (client_addr, body) = (pcp::ip_to_wire(self.source), Body::Announce);
        pcp::Request { lifetime: 0, client_addr, body, options: Vec::new() }.to_bytes()
    }

    fn hurry(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if let Phase::Asking { sent, .. } = &mut flow.phase {
            *sent = 0;
            flow.want.urgent = true;
            self.on_timer(now, id, entropy);
        }
    }

    fn extend(&mut self, now: Instant, id: FlowId, terms: Terms, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.want.terms = terms;
        let used = std::mem::replace(&mut flow.used_at, now);
        if self.turns.take_out(used, id) {
            self.turns.enqueue(now, id);
        }
        if let Phase::Held { .. } = flow.phase {
            self.schedule_renewal(now, id, entropy);
        }
    }

    fn filter(&mut self, now: Instant, id: FlowId, peers: Vec<RemotePeer>, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let same = flow.want.remote_peers == peers && !flow.reset_filters;
        if same || flow.is_deleting() {
            return;
        }
        let before = std::mem::replace(&mut flow.want.remote_peers, peers);
        // They add up: only what is left out has to be dropped, but for where everybody is let in.
        let all = flow.want.remote_peers.is_empty();
        flow.reset_filters |= before.iter().any(|peer| all || !flow.want.remote_peers.contains(peer));
        self.confirm(now, id, entropy);
    }

    fn confirm(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if flow.grant.is_some() && !flow.is_deleting() {
            flow.want.urgent = true;
            flow.phase = Phase::ASK;
            flow.requested = lifetime_to_ask(now, &flow.want.terms);
            self.on_timer(now, id, entropy);
        }
    }

    /// Whether there is something to delete that is not being deleted.
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
        flow.phase = Phase::Deleting { rt: Duration::ZERO, sent: 0, until };
        self.turns.take_out(flow.used_at, id);
        self.turns.answered(id);
        // Somebody waits: a control point, or the gateway at its end.
        flow.want.urgent = true;
        self.deleting.insert(client(&flow.want), id);
        self.timers.set(id, until);
        true
    }

    fn on_timer(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let over = flow.grant.is_some_and(|grant| grant.ends() <= now);
        match &mut flow.phase {
            Phase::Asking { .. } | Phase::Held { .. } if over => {
                // A renewal that was not answered may have got through all the same.
                if flow.unanswered && self.begin_delete(now, id) {
                    self.turns.enqueue_delete(id);
                } else {
                    self.remove(id);
                }
                return self.outputs.push_back(Output::Lost(id));
            }
            Phase::Deleting { until, .. } if *until <= now && self.open => {
                self.remove(id);
                return self.outputs.push_back(Output::Deleted(id));
            }
            // As long as nothing can be sent, the time for it does not pass.
            Phase::Deleting { until, .. } if *until <= now => {
                *until = now + BLIND_DELETE;
                return self.timers.set(id, *until);
            }
            Phase::Asking { rt, sent } | Phase::Deleting { rt, sent, .. } => {
                if *sent >= 2 && self.last_heard.is_some_and(|heard| heard > flow.sent_at) {
                    // The server answers others and not this one, which must not keep them waiting.
                    self.turns.answered(id);
                }
                self.turns.take_out(flow.used_at, id);
                *rt = match (*sent, flow.want.urgent) {
                    (0, true) => IMPATIENT[0],
                    (1, true) => IMPATIENT[1],
                    (0, false) | (2, true) => first_rt(entropy.unit()),
                    _ => next_rt(*rt, entropy.unit()),
                };
                *sent += 1;
                let mut wake = now + *rt;
                if let Phase::Deleting { until, .. } = flow.phase {
                    wake = wake.min(until);
                } else if let Some(grant) = flow.grant {
                    wake = wake.min(grant.ends());
                }
                self.timers.set(id, wake);
            }
            Phase::Held { attempts } => {
                if *attempts > 0 {
                    self.outputs.push_back(Output::Unrenewed(id));
                }
                *attempts += 1;
                flow.sent_at = now;
                flow.requested = lifetime_to_ask(now, &flow.want.terms);
                self.schedule_renewal(now, id, entropy);
            }
        }
        self.transmit(now, id);
    }

    /// The machine is awake, and the server hears of one renewal: those that may come as well by RFC 6887 §11.2.1 come now, the
    /// next to be due first. A thousand mappings of two hours wake it once in a minute then, not fifteen times. (§11.2.1 recommends that each
    /// comes at a random time of its own, so that clients do not fall into step; here it is the first of some that does.)
    fn renew_others(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        let may_be_renewed = |id: &FlowId| {
            self.flows.get(id).is_some_and(|flow| {
                flow.phase == Phase::Held { attempts: 0 }
                    && flow.grant.is_some_and(|grant| may_renew(now, grant, &flow.want.terms, flow.sent_at))
            })
        };
        let others = self.timers.upcoming().take(LOOKED_AT).filter(may_be_renewed).take(TOGETHER);
        let others: Vec<FlowId> = others.collect();
        self.goes_along = true;
        for id in others {
            self.on_timer(now, id, entropy);
        }
        self.goes_along = false;
    }

    /// Sets the alarm of a held flow.
    fn schedule_renewal(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get(&id) else { return };
        let (Some(grant), Phase::Held { attempts }) = (flow.grant, &flow.phase) else { return };
        let wake = next_wake(now, grant, &flow.want.terms, flow.sent_at, *attempts, entropy);
        self.timers.set(id, wake);
    }

    fn heard(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        self.last_heard = Some(now);
        self.doubt_gap = Duration::ZERO;
        self.unanswered = 0;
        self.unanswered_since = None;
        if self.answering == Some(false) {
            self.nudge(now, entropy);
        }
        if self.answering != Some(true) {
            self.answering = Some(true);
            self.outputs.push_back(Output::Answering);
        }
    }

    /// There is somebody: what was to be asked is asked.
    fn speak_up(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        self.knocks = false;
        let knocked = |flow: &Flow| matches!(flow.phase, Phase::Asking { sent: 1.., .. });
        let flows = self.flows.iter().filter(|(_, flow)| knocked(flow));
        for id in flows.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.flows.get_mut(&id).expect("it was listed").phase = Phase::ASK;
            self.on_timer(now, id, entropy);
        }
        self.peers.begin_again(now);
    }

    /// What was asked in vain need not wait for its next repetition, up to 18 minutes away.
    fn nudge(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        for (&id, flow) in &self.flows {
            let earliest = match flow.phase {
                Phase::Held { attempts: 0 } => continue,
                Phase::Deleting { sent: 0, .. } => continue,
                // The recovery after a loss is paced.
                Phase::Asking { sent: 0, .. } => continue,
                Phase::Held { .. } => now.max(flow.sent_at + MIN_RENEWAL_GAP),
                Phase::Asking { .. } | Phase::Deleting { .. } => now,
            };
            let waited_for = flow.grant.is_none() || flow.want.urgent;
            let spread = if waited_for { NUDGE_SPREAD } else { self.recovery_wait };
            let wake = earliest + entropy.up_to(spread);
            self.timers.set(id, flow.grant.map_or(wake, |grant| wake.min(grant.ends())));
        }
    }

    /// Has the server lost its state, by what it says of its age? An `announced` age is that of a server that has something to tell. An
    /// answer may have been on its way for long.
    fn check_epoch(
        &mut self,
        now: Instant,
        epoch: u32,
        announced: bool,
        confirmed: Option<FlowId>,
        entropy: &mut dyn Entropy,
    ) {
        let begun = self.begun_since_a_grant(now, epoch, confirmed);
        if !self.epoch.is_consistent(now, epoch) || announced && begun == BegunSince::Yes {
            if self.doubt(now, confirmed, entropy) {
                self.outputs.push_back(Output::StateLost);
            }
        } else if begun >= if announced { BegunSince::Perhaps } else { BegunSince::Probably } {
            self.doubt(now, confirmed, entropy);
        }
    }

    /// Whether the server has begun since it gave a mapping that counts as held, and is not `confirmed` just now.
    fn begun_since_a_grant(&mut self, now: Instant, epoch: u32, confirmed: Option<FlowId>) -> BegunSince {
        if begun_since(self.oldest, now, epoch, CLOCK_SLACK) == BegunSince::No {
            return BegunSince::No;
        }
        let is_held = |flow: &Flow| matches!(flow.phase, Phase::Held { .. });
        let held = self.flows.iter().filter(|(id, flow)| Some(**id) != confirmed && is_held(flow));
        self.oldest = held.filter_map(|(_, flow)| flow.grant).map(|grant| grant.since).min().unwrap_or(now);
        begun_since(self.oldest, now, epoch, CLOCK_SLACK)
    }

    /// The server may have lost its state: asks again for every mapping but `confirmed`. False when that is due already, and will find
    /// out what there is.
    fn doubt(&mut self, now: Instant, confirmed: Option<FlowId>, entropy: &mut dyn Entropy) -> bool {
        let (start, another) = self.recoveries.begin(now);
        self.recover(now, start, confirmed, entropy);
        another
    }

    /// Asks again for every mapping but `confirmed`, in turn, after a random wait from `start` on (RFC 6887 §14.1.3).
    fn recover(
        &mut self,
        now: Instant,
        start: Instant,
        confirmed: Option<FlowId>,
        entropy: &mut dyn Entropy,
    ) {
        let mut lost = Vec::new();
        for (&id, flow) in &mut self.flows {
            if Some(id) != confirmed {
                flow.doubtful = flow.is_deleting();
                lost.push(id);
            }
        }
        self.ask_again(now, start + entropy.up_to(self.recovery_wait), lost);
    }

    /// Announcements may have been missed: asks again for one mapping, unless another answer is waited for. If the server has lost its
    /// state, an answer tells, and there is to be time left for the others.
    fn sound(&mut self, now: Instant, entropy: &mut dyn Entropy) {
        let asks = |flow: &Flow| matches!(flow.phase, Phase::Asking { .. } | Phase::Held { attempts: 1.. });
        let held = self.flows.iter().filter(|(_, flow)| matches!(flow.phase, Phase::Held { attempts: 0 }));
        let last_used = held.max_by_key(|(_, flow)| flow.used_at).map(|(&id, _)| id);
        if let Some(id) = last_used.filter(|_| !self.flows.values().any(|flow| asks(flow))) {
            let (start, _) = self.soundings.begin(now);
            self.ask_again(now, start + entropy.up_to(self.recovery_wait / 4), vec![id]);
        }
    }

    /// Asks again, in turn and from `due` on, for those of these mappings that are held.
    fn ask_again(&mut self, now: Instant, mut due: Instant, ids: Vec<FlowId>) {
        let mut lost = Vec::new();
        for id in ids {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            if let (Phase::Held { .. }, Some(grant)) = (&flow.phase, flow.grant) {
                flow.requested = lifetime_to_ask(now, &flow.want.terms);
                flow.phase = Phase::ASK;
                // Not so late that the mapping ends before it was asked for.
                due = due.min(now + (grant.ends() - now) / 2);
                self.timers.set(id, grant.ends());
                lost.push((flow.used_at, id));
            }
        }
        self.turns.begin(now, due);
        for (used, id) in lost {
            self.turns.enqueue(used, id);
        }
    }

    fn remove(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.remove(&id) {
            self.by_nonce.remove(&flow.answers());
            self.timers.cancel(id);
            self.turns.take_out(flow.used_at, id);
            self.turns.answered(id);
            let client = client(&flow.want);
            if !flow.derived {
                self.nonces.keep(client, flow.nonce);
            }
            if self.deleting.get(&client) == Some(&id) {
                self.deleting.remove(&client);
            }
            self.unblocked.extend(self.behind.remove(&id));
        }
    }

    fn transmit(&mut self, now: Instant, id: FlowId) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.sent_at = now;
        if !self.open {
            return;
        }
        if self.knocks {
            let announce = self.knock();
            return self.sent(now, announce);
        }
        flow.unanswered = true;
        flow.carried = Carried {
            prefer_failure: flow.prefers_failure(self.lacks),
            description: flow.describes(self.lacks),
            reset: flow.resets(),
        };
        flow.copies = flow.copies.saturating_add(1);
        let filters = !flow.filters().is_empty();
        let (filtered, request) =
            (Filtered::new(self.source, client(&flow.want)), flow.request(self.source, self.lacks));
        if filters && self.filters.note(now, filtered) {
            self.outputs.push_back(Output::Filtered(filtered));
        }
        self.sent(now, request.to_bytes());
    }

    fn sent(&mut self, now: Instant, bytes: Vec<u8>) {
        self.outputs.push_back(Output::Transmit(bytes));
        // Renewals that go together are lost together: that is no more silence than if one were.
        self.unanswered += u32::from(!self.goes_along);
        let since = *self.unanswered_since.get_or_insert(now);
        if self.unanswered >= SILENT_AFTER && now - since >= SILENT_FOR {
            self.is_silent();
        }
        let doubts = self.unanswered > 1 && now - since >= FIRST_DOUBT && self.doubt_at <= now;
        if self.fallback && doubts && self.may_speak_another(now) {
            self.doubt_gap = (self.doubt_gap * 2).clamp(FIRST_DOUBT, LAST_DOUBT);
            self.doubt_at = now + self.doubt_gap;
            // Some gateways are silent about a version that they do not know. Ever more seldom, for the server may just be drowned in
            // requests.
            self.outputs.push_back(Output::Transmit(natpmp::Request::ExternalAddress.to_bytes()));
        }
    }

    fn is_silent(&mut self) {
        if self.answering != Some(false) {
            self.answering = Some(false);
            self.outputs.push_back(Output::Silent);
        }
    }
}

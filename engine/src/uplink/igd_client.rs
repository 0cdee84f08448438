//! A control point for one router of the provider's that maps ports by UPnP (`WANIPConnection`, `WANPPPConnection`), without socket
//! or clock: flows in, exchanges of HTTP out, and back.
//!
//! IGD has no nonce; a mapping belongs to whom it leads to, which is this router. Some routers overwrite another host's mapping
//! without a word where the standard says 718, and some forget all of them in a restart without a word, too. So the entry is
//! looked at before each AddPortMapping and each DeletePortMapping, after the first success, and now and then; nothing that leads
//! to somebody else is ever overwritten or deleted. The remote host is always anybody, for deployed routers differ in what they
//! make of one; this router's own NAT lets in whom it says.
//!
//! One exchange is out at a time; the others wait in a line, those first that somebody waits for.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use wire::foreign::{Call, Connection, Mapping};
use wire::pcp::{self, Body, Protocol, ResultCode};

use super::epoch::Recoveries;
use super::filters::Filters;
use super::flow::{FlowId, Grant, Terms, Want, lifetime_to_ask};
use super::http::{GRACE, HttpId, HttpOutcome, HttpRequest};
use super::igd_finder::FoundIgd;
use super::interface::{Input, Output, Uplink, UplinkProtocol};
use super::line::{Line, Rank};
use super::schedule::{BLIND_DELETE, delete_until, next_wake};
use crate::entropy::Entropy;
use crate::time::{Duration, Instant, Timers};

mod answers;
mod asking;
mod errors;
mod flow;
mod leftover;

pub use leftover::Leftover;

use flow::{Flow, Looked, Phase};

/// The longest lease that is asked for, in seconds, and how long one without end is taken to last until it is looked after.
const LEASE: u32 = 3600;
/// How often the router is asked for its address and since when it is up.
const POLL: Duration = Duration::from_secs(30);
/// A mapping is looked at again after this time, whatever its lease.
const LOOK_AGAIN: Duration = Duration::from_secs(600);
/// The waits after exchanges that failed: it doubles from the first to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(64);
/// So many exchanges failed, the first of them begun so long ago, and the router counts as silent.
const SILENT_AFTER: u32 = 2;
const SILENT_FOR: Duration = Duration::from_secs(3);
/// IGD's errors have no lifetime of their own.
const ERROR_LIFETIME: Duration = Duration::from_secs(30);
/// How often it is looked whether the router speaks PCP now.
const KNOCK_GAP: Duration = Duration::from_secs(600);
/// How many ports are tried for whoever takes any.
const MOST_TRIES: u32 = 8;
/// A mapping that was gone so often when it was looked at is given up.
const MOST_VANISHED: u32 = 3;

/// What is asked.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum What {
    /// The external address.
    Address,
    /// Since when the connection is up.
    Uptime,
    /// A mapping, or its end.
    Flow(FlowId),
    /// Whether a mapping is still there.
    Look(FlowId),
}

/// What one exchange does for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Doing {
    Address,
    Uptime,
    Look(u16),
    Add(u16, u32),
    AddAny(u16, u32),
    Delete(u16),
}

/// The exchange that is out.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    id: HttpId,
    what: What,
    rank: Rank,
    doing: Doing,
    began: Instant,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Alarm {
    /// A renewal, or an end.
    Flow(FlowId),
    Poll,
    /// The exchange has failed.
    Due,
    /// After a failure, the next one may begin.
    Resume,
}

/// See the module's description.
#[derive(Debug)]
pub struct IgdClient {
    /// Where PCP was spoken to in vain, and still is now and then.
    server: SocketAddr,
    source: Ipv4Addr,
    connection: Connection,
    open: bool,
    /// Another protocol has taken its place: it takes back what would stand for ever, and nothing else.
    leaving: bool,
    recovery_wait: Duration,
    flows: BTreeMap<FlowId, Flow>,
    /// Whose external ports they are, as far as that is known.
    by_port: BTreeMap<(Protocol, u16), FlowId>,
    line: Line<What>,
    out: Option<Exchange>,
    next_id: u64,
    timers: Timers<Alarm>,
    external: Option<Ipv4Addr>,
    /// What was told last, which may be of another NAT.
    told: Option<Option<Ipv4Addr>>,
    uptime: Option<(Instant, u32)>,
    /// It refuses leases that end (725).
    only_permanent: bool,
    /// It does not know AddAnyPortMapping.
    lacks_any: bool,
    recoveries: Recoveries,
    knocked: Instant,
    failures: u32,
    failing_since: Option<Instant>,
    /// Nothing begins before, and what somebody waits for not before the second.
    resume: (Instant, Instant),
    answering: Option<bool>,
    last_heard: Option<Instant>,
    filters: Filters,
    ignored: u64,
    outputs: VecDeque<Output>,
}

impl IgdClient {
    /// A client for what was found at `server`'s address, asking on behalf of `source`. Its exchanges are numbered from `first_id`
    /// on.
    pub fn new(
        now: Instant,
        server: SocketAddr,
        source: Ipv4Addr,
        found: FoundIgd,
        recovery_wait: Duration,
        first_id: u64,
    ) -> Self {
        let mut new = Self {
            server,
            source,
            connection: found.connection,
            open: true,
            leaving: false,
            recovery_wait,
            flows: BTreeMap::new(),
            by_port: BTreeMap::new(),
            line: Line::default(),
            out: None,
            next_id: first_id,
            timers: Timers::default(),
            external: None,
            told: None,
            uptime: None,
            only_permanent: false,
            lacks_any: false,
            recoveries: Recoveries::default(),
            knocked: now,
            failures: 0,
            failing_since: None,
            resume: (now, now),
            answering: None,
            last_heard: None,
            filters: Filters::default(),
            ignored: 0,
            outputs: VecDeque::new(),
        };
        new.heard(now);
        new.on_address(Some(found.external));
        new.line.join(Rank::Address, What::Uptime);
        new.timers.set(Alarm::Poll, now + POLL);
        new
    }

    fn add_flow(&mut self, now: Instant, id: FlowId, want: Want) -> bool {
        // A mapping that leads to another host than the one that asks is refused by most routers, and that is well.
        let result = if want.third_party.is_some_and(|host| host != self.source) {
            ResultCode::UNSUPP_OPTION
        } else if name(want.protocol).is_none() || want.internal_port == 0 {
            ResultCode::UNSUPP_PROTOCOL
        } else {
            self.remove(id);
            self.flows.insert(id, Flow::new(now, want));
            return true;
        };
        self.outputs.push_back(Output::Refused(id, result, ERROR_LIFETIME));
        false
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
            flow.begin(Phase::Asking);
            self.ask(id);
        }
    }

    /// Whether there may be something to give back that is not being given back.
    fn begin_delete(&mut self, now: Instant, id: FlowId) -> bool {
        let Some(flow) = self.flows.get_mut(&id).filter(|flow| !flow.is_deleting()) else { return false };
        if flow.port == 0 && flow.want.external_port == 0 {
            // Nothing was asked for, or no answer told which port it became; its lease ends by itself.
            self.remove(id);
            self.outputs.push_back(Output::Deleted(id));
            return false;
        }
        if flow.port == 0 {
            flow.port = flow.want.external_port;
        }
        let until = delete_until(now, flow.grant);
        flow.begin(Phase::Deleting { until });
        self.leave_line(id);
        self.timers.set(Alarm::Flow(id), until);
        true
    }

    /// What was asked for it is asked no more.
    fn leave_line(&mut self, id: FlowId) {
        for what in [What::Flow(id), What::Look(id)] {
            self.line.leave(what);
        }
    }

    fn remove(&mut self, id: FlowId) {
        self.leave_line(id);
        self.timers.cancel(Alarm::Flow(id));
        if let Some(flow) = self.flows.remove(&id) {
            self.leave_port((flow.want.protocol, flow.port), id);
        }
    }

    fn leave_port(&mut self, key: (Protocol, u16), id: FlowId) {
        if self.by_port.get(&key) == Some(&id) {
            self.by_port.remove(&key);
        }
    }

    fn on_alarm(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        match flow.phase {
            Phase::Deleting { until } if until <= now && self.open => {
                self.remove(id);
                self.outputs.push_back(Output::Deleted(id));
            }
            // As long as nothing can be asked, the time for it does not pass.
            Phase::Deleting { .. } => {
                flow.phase = Phase::Deleting { until: now + BLIND_DELETE };
                self.timers.set(Alarm::Flow(id), now + BLIND_DELETE);
            }
            Phase::Asking | Phase::Held { .. } if flow.is_over(now) => {
                // It may still be there: a renewal may have got through, and one without end has none.
                if (flow.unanswered || flow.permanent) && self.begin_delete(now, id) {
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
                flow.begin(Phase::Held { attempts: attempts + 1 });
                flow.sent_at = now;
                self.ask(id);
                self.schedule_renewal(now, id, entropy);
            }
            Phase::Asking => {
                if let Some(grant) = flow.grant {
                    self.timers.set(Alarm::Flow(id), grant.ends());
                }
            }
        }
    }

    /// Sets the alarm of a held flow.
    fn schedule_renewal(&mut self, now: Instant, id: FlowId, entropy: &mut dyn Entropy) {
        let Some(flow) = self.flows.get(&id) else { return };
        let (Some(grant), Phase::Held { attempts }) = (flow.grant, flow.phase) else { return };
        let wake = next_wake(now, grant, &flow.want.terms, flow.sent_at, attempts, entropy);
        self.timers.set(Alarm::Flow(id), wake);
    }

    /// Does it speak PCP now? While there is no socket, that waits for one.
    fn knock(&mut self, now: Instant) {
        if !self.open {
            return;
        }
        self.knocked = now;
        let client_addr = pcp::ip_to_wire(self.source.into());
        let announce = pcp::Request { lifetime: 0, client_addr, body: Body::Announce, options: Vec::new() };
        self.outputs.push_back(Output::Transmit(announce.to_bytes()));
    }

    fn poll(&mut self, now: Instant) {
        self.timers.set(Alarm::Poll, now + POLL);
        self.line.join(Rank::Address, What::Address);
        self.line.join(Rank::Address, What::Uptime);
        if now - self.knocked >= KNOCK_GAP {
            self.knock(now);
        }
        let held = self.flows.iter().filter(|(_, flow)| matches!(flow.phase, Phase::Held { .. }));
        let oldest = held.map(|(&id, flow)| (flow.seen_at, id)).min();
        if let Some((_, id)) = oldest.filter(|&(seen_at, _)| now - seen_at >= LOOK_AGAIN) {
            self.line.join(Rank::Renewal, What::Look(id));
        }
    }

    /// Looks at every mapping that stands, in turn: the router may have started anew.
    fn look_at_all(&mut self, now: Instant) {
        self.line.turns_from(now, now);
        for (&id, flow) in &self.flows {
            if let Phase::Held { .. } = flow.phase {
                self.line.join(Rank::in_turn(flow.used_at), What::Look(id));
            }
        }
    }

    /// Asks again for every mapping but `known`, in turn, after a random wait from `start` on.
    fn recover(&mut self, now: Instant, start: Instant, known: Option<FlowId>, entropy: &mut dyn Entropy) {
        let mut due = start + entropy.up_to(self.recovery_wait);
        let mut lost = Vec::new();
        for (&id, flow) in &mut self.flows {
            if let (Phase::Held { .. }, Some(grant), true) = (flow.phase, flow.grant, Some(id) != known) {
                flow.begin(Phase::Asking);
                due = due.min(now + (grant.ends() - now) / 2);
                self.timers.set(Alarm::Flow(id), grant.ends());
                lost.push(id);
            }
        }
        self.line.turns_from(now, due);
        for id in lost {
            self.leave_line(id);
            self.ask_in_turn(id);
        }
    }
}

/// As the standard writes it; `None` for what it does not map.
fn name(protocol: Protocol) -> Option<&'static str> {
    match protocol {
        Protocol::TCP => Some("TCP"),
        Protocol::UDP => Some("UDP"),
        _ => None,
    }
}

impl Uplink for IgdClient {
    fn protocol(&self) -> UplinkProtocol {
        UplinkProtocol::Igd
    }

    fn server(&self) -> SocketAddr {
        self.server
    }

    fn asked_at(&self) -> SocketAddr {
        self.connection.control.at.into()
    }

    fn source(&self) -> IpAddr {
        self.source.into()
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
                    self.flows.get_mut(&id).expect("just added").used_at = used;
                    self.ask_in_turn(id);
                }
            }
            Input::Assume(id, want) => drop(self.add_flow(now, id, want)),
            Input::TurnsFrom(due) => self.line.turns_from(now, due),
            Input::Hurry(id) => {
                if let Some(flow) = self.flows.get_mut(&id).filter(|flow| flow.phase == Phase::Asking) {
                    flow.want.urgent = true;
                    if self.out.is_none_or(|out| out.what != What::Flow(id)) {
                        self.ask(id);
                    }
                }
            }
            Input::Extend(id, terms) => self.extend(now, id, terms, entropy),
            Input::Confirm(id) => self.confirm(id),
            Input::Filter(id, peers) => {
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
            // Whose mappings are whose is not to be told for sure.
            Input::Adopt(..) | Input::List(_) => {}
            Input::Forget(id) => self.remove(id),
            Input::Datagram(from, bytes) if from == self.server => self.on_datagram(bytes),
            Input::Multicast(from, bytes)
                if from.ip() == self.server.ip() && pcp::Response::parse(bytes).is_ok() =>
            {
                self.knock(now);
            }
            Input::Datagram(..) | Input::Multicast(..) => self.ignored += 1,
            Input::Http(id, outcome) => self.on_http(now, id, outcome, entropy),
            // Nobody speaks PCP there, as is known.
            Input::Unreachable => {}
            Input::Closed => {
                self.open = false;
                self.stop_waiting();
            }
            Input::Source(source) => {
                self.open = true;
                self.resume = (now, now);
                if let IpAddr::V4(source) = source
                    && source != self.source
                {
                    // What leads to the old one is not ours any more.
                    self.source = source;
                    self.recover(now, now, None, entropy);
                }
                self.knock(now);
                self.poll(now);
            }
            Input::Woke => self.recover(now, now, None, entropy),
            Input::Timeout => {
                while let Some(alarm) = self.timers.pop_due(now) {
                    match alarm {
                        Alarm::Flow(id) => self.on_alarm(now, id, entropy),
                        Alarm::Poll => self.poll(now),
                        Alarm::Due => {
                            if let Some(out) = self.out {
                                self.on_http(now, out.id, &HttpOutcome::Failed, entropy);
                            }
                        }
                        Alarm::Resume => {}
                    }
                }
            }
        }
        self.go_on(now, entropy);
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn next_timeout(&self) -> Option<Instant> {
        let line = self.line.next_timeout().filter(|_| self.open && self.out.is_none());
        let line = line.map(|at| {
            at.max(if self.line.best() == Some(Rank::Urgent) { self.resume.1 } else { self.resume.0 })
        });
        [self.timers.next(), line].into_iter().flatten().min()
    }

    fn is_answering(&self) -> Option<bool> {
        self.answering
    }

    fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    fn server_epoch(&self) -> Option<u32> {
        None
    }

    fn ignored(&self) -> u64 {
        self.ignored
    }

    fn unanswered_since(&self) -> Option<Instant> {
        self.failing_since
    }

    fn grant(&self, flow: FlowId) -> Option<Grant> {
        self.flows.get(&flow)?.grant
    }

    fn holds(&self, flow: FlowId) -> bool {
        self.flows.get(&flow).is_some_and(|flow| matches!(flow.phase, Phase::Held { .. }))
    }

    fn has(&self, flow: FlowId) -> bool {
        self.flows.contains_key(&flow)
    }

    fn set_recovery_wait(&mut self, wait: Duration) {
        self.recovery_wait = wait;
    }

    /// AddPortMapping gives the wanted port or none, and the entry is looked at before it is asked for.
    fn takes_prefer_failure(&self) -> bool {
        true
    }

    fn set_filters(&mut self, filters: Filters) {
        self.filters = filters;
    }

    fn take_filters(&mut self) -> Filters {
        std::mem::take(&mut self.filters)
    }

    fn retire(self: Box<Self>) -> Option<Leftover> {
        Leftover::of(*self)
    }
}

#[cfg(test)]
mod tests;

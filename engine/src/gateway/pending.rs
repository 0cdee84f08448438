//! A wanted mapping on its way into the table: a port of the router's own NAT taken, asked for upstream, granted,
//! installed; or given back.

use std::net::{IpAddr, SocketAddrV4};

use wire::pcp::ResultCode;

use super::held::Why;
use super::own_nat::NatPurpose;
use super::restore::LONGEST;
use super::waiting::BACKGROUND;
use super::{AddPortMapping, Alarm, Gateway, NatMode, RequestId, WhenUnreachable};
use crate::claims::{Asker, Claims};
use crate::nat::{NatChange, NatRule};
use crate::notice::Notice;
use crate::policy::{Requester, is_usable_external};
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Key, Mapping};
use crate::time::{Duration, Instant};
use crate::uplink::{FlowId, Grant, Input, RemotePeer, Terms, Want};

/// Requested Lifetime, in seconds, of what may turn out to be another port than the one that is wanted (decision 5).
const SHORTENED: u32 = 60;
/// An error's lifetime that counts as short (spec T-14).
const SHORT: Duration = Duration::from_secs(60);
/// A request that was refused for a short time is sent so many times more: by AddPortMapping (RFC 6970 §5.6.2) and by
/// AddAnyPortMapping (§5.6.1).
const RETRIES: u32 = 2;
const RETRIES_OF_ANY: u32 = 1;
/// What an exchange takes that is to be through before a control point loses its patience.
const EXCHANGE: Duration = Duration::from_secs(1);
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
    /// It has refused for a short time, and is asked again after that.
    Pausing,
    /// Granted; the router's own NAT is being set up.
    Installing(Grant),
    /// The server is silent; the router's own NAT is being set up all the same, for this external address and port.
    Local(SocketAddrV4),
}

/// What a wanted mapping is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// A control point asked for it.
    Add,
    /// A control point asks whether its port is free.
    Probe,
    /// A control point was refused its port; it may want this one instead (decision 5, alternative 3).
    Spare,
    /// It restores what was there before, so it is kept though nobody waits for it.
    Restore,
}

/// A wanted mapping that is not in the table yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) request: MappingRequest,
    /// Who asks: what the owner has said of it counts for the port that is granted, too.
    pub(super) who: Requester,
    /// Who waits for it; empty when all have been told 501.
    pub(super) waiters: Vec<RequestId>,
    pub(super) nat_port: Option<u16>,
    /// Ports of the WAN address that the router itself uses.
    pub(super) refused_ports: Vec<u16>,
    /// The port that was wished for is somebody's: any other is asked for (AddAnyPortMapping).
    pub(super) any_port: bool,
    pub(super) stage: Stage,
    pub(super) asked_at: Instant,
    /// When the first of those who wait loses its patience.
    pub(super) answer_by: Instant,
    /// How often it was asked for again after a pause.
    pub(super) retries: u32,
    pub(super) purpose: Purpose,
    /// What to restore when this one cannot be had.
    pub(super) replaces: Option<Mapping>,
}

impl Gateway {
    /// A wanted mapping at the beginning of its way.
    pub(super) fn wanted(
        &self,
        now: Instant,
        who: &Requester,
        request: MappingRequest,
        purpose: Purpose,
        waiters: Vec<RequestId>,
    ) -> Pending {
        Pending {
            request,
            who: who.clone(),
            waiters,
            nat_port: None,
            refused_ports: Vec::new(),
            any_port: false,
            stage: if self.config.nat == NatMode::Own { Stage::Reserving } else { Stage::Asking },
            asked_at: now,
            answer_by: now + self.config.answer_within,
            retries: 0,
            purpose,
            replaces: None,
        }
    }

    /// Starts the way of a wanted mapping.
    pub(super) fn begin(&mut self, now: Instant, wanted: Pending) {
        let flow = self.new_flow();
        let reserves = wanted.stage == Stage::Reserving;
        if wanted.waiters.is_empty() && wanted.purpose != Purpose::Restore {
            self.timers.set(Alarm::Background(flow), now + BACKGROUND);
        }
        self.pending.insert(flow, wanted);
        if reserves {
            self.reserve(now, flow);
        } else {
            self.ask(now, flow);
        }
    }

    /// Takes a port of the WAN address for a pending mapping, and asks the kernel whether it is really free.
    pub(super) fn reserve(&mut self, now: Instant, flow: FlowId) {
        self.reserve_from(
            now,
            flow,
            self.config.when_unreachable == WhenUnreachable::Local || self.is_alone(),
        );
    }

    fn reserve_from(&mut self, now: Instant, flow: FlowId, outermost: bool) {
        let pending = self.pending.get_mut(&flow).expect("the caller has put it there");
        let protocol = pending.request.protocol;
        // Decision 23: the internal port, else the external one, else any.
        let mut wishes = [Some(pending.request.internal.port()), pending.request.external_port];
        if outermost {
            wishes.reverse(); // while nobody else translates, this is the port that people come to
        }
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

    /// Decision 5, for the server in use: one that does not know PREFER_FAILURE is served by `hold`.
    fn strategy(&self) -> AddPortMapping {
        let knows = self.uplink.as_ref().is_none_or(|client| client.takes_prefer_failure());
        if knows { self.config.add_port_mapping } else { AddPortMapping::Hold }
    }

    /// Sends the request to the PCP server.
    pub(super) fn ask(&mut self, now: Instant, flow: FlowId) {
        let hold = self.strategy() == AddPortMapping::Hold;
        self.pending.get_mut(&flow).expect("the caller has put it there").stage = Stage::Asking;
        let pending = &self.pending[&flow];
        let lease_ends = pending.request.lease.map(|lease| pending.asked_at + lease);
        let request = &pending.request;
        let external_port = request.external_port.filter(|_| !pending.any_port);
        let want = Want {
            third_party: pending.nat_port.is_none().then_some(IpAddr::V4(*request.internal.ip())),
            protocol: request.protocol,
            internal_port: pending.nat_port.unwrap_or(request.internal.port()),
            external_port: external_port.unwrap_or(0),
            remote_peers: RemotePeer::of(request.remote_peer),
            terms: Terms {
                prefer_failure: request.strict && self.config.add_port_mapping != AddPortMapping::Hold,
                lease_ends,
                longest: if request.strict && hold { SHORTENED } else { u32::MAX },
                description: self.description(&request.description),
            },
            urgent: !pending.waiters.is_empty(),
        };
        if self.uplink.is_none() || !self.uplink_open || lease_ends.is_some_and(|end| end <= now) {
            return self.fail(now, flow, Refusal::NoAnswer);
        }
        self.release_same_client(now, &want);
        self.input(now, Input::Ask(flow, want));
        self.prepare_locally(now, flow);
    }

    /// The text that the provider is told.
    pub(super) fn description(&self, words: &str) -> String {
        if self.config.send_descriptions { words.to_owned() } else { String::new() }
    }

    pub(super) fn on_first_grant(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let pending = &self.pending[&flow];
        let request = &pending.request;
        let key = Key { protocol: request.protocol, external_port: grant.external_v4().port() };
        if !is_usable_external(*grant.external_v4().ip()) || grant.external_v4().port() == 0 {
            return self.fail(now, flow, Refusal::Unusable);
        }
        // A conflict is one, whatever policy says of the port that is not wanted.
        let is_other = request.strict && request.external_port.is_some_and(|port| port != key.external_port);
        let is_wanted = !is_other && pending.purpose != Purpose::Spare;
        if is_wanted && self.refuses_grant(now, flow, key.external_port) {
            return;
        }
        let (pending, taken) = (&self.pending[&flow], self.table.find(key).is_some());
        let request = &pending.request;
        if let (true, Some(wanted)) = (request.strict, request.external_port)
            && wanted != key.external_port
        {
            let hold = self.strategy() != AddPortMapping::PreferFailure && !taken && !self.stopping;
            return self.on_other_port(now, flow, wanted, grant, hold);
        }
        if !request.takes_address(*grant.external_v4().ip()) {
            return self.fail(now, flow, Refusal::Conflict);
        }
        if taken {
            return self.fail(now, flow, Refusal::Conflict);
        }
        self.forget_held_at(now, key);
        self.learn_external(now, *grant.external_v4().ip());
        let pending = self.pending.get_mut(&flow).expect("it was there above");
        if let Stage::Installing(before) = &mut pending.stage {
            *before = grant; // the answer to a repetition; this router's NAT is at work already
            return;
        }
        if let Stage::Local(_) = pending.stage {
            pending.stage = Stage::Installing(grant);
            return;
        }
        match pending.purpose {
            Purpose::Probe => {
                for id in std::mem::take(&mut pending.waiters) {
                    self.refuse(id, Refusal::NoSuchEntry); // the port is free
                }
                self.hold(now, flow, grant, Why::Probe);
            }
            Purpose::Spare => self.hold(now, flow, grant, Why::OtherPort),
            // Too late: the control point was told 501. It may ask again.
            Purpose::Add if pending.waiters.is_empty() => self.hold(now, flow, grant, Why::Late),
            Purpose::Add | Purpose::Restore => self.accept(now, flow, grant),
        }
    }

    /// The server gave another port than the only one that is wanted (spec T-6, K-17): the control point hears 718, and
    /// the port goes back, or is held for it (decision 5).
    fn on_other_port(&mut self, now: Instant, flow: FlowId, wanted: u16, grant: Grant, hold: bool) {
        let server = self.uplink.as_ref().map(|client| client.server()).expect("it has granted something");
        let pending = self.pending.get_mut(&flow).expect("the caller found it");
        let (protocol, from) = (pending.request.protocol, pending.from());
        if !hold || pending.purpose == Purpose::Restore {
            self.notice(Notice::OtherPort(server, protocol, wanted, grant.external_v4()));
            return self.fail(now, flow, Refusal::Conflict);
        }
        for id in std::mem::take(&mut pending.waiters) {
            self.refuse(id, Refusal::Conflict);
        }
        self.notice(Notice::PortHeld(server, protocol, wanted, grant.external_v4(), from));
        self.forget_held_at(now, Key { protocol, external_port: grant.external_v4().port() });
        self.learn_external(now, *grant.external_v4().ip());
        self.hold(now, flow, grant, Why::OtherPort);
    }

    /// The server has refused. For a short time, and while the control point has patience for one more exchange, that
    /// is not the last word; `true` when it is asked again.
    pub(super) fn pause(&mut self, now: Instant, flow: FlowId, result: ResultCode, wait: Duration) -> bool {
        let strategy = self.strategy();
        let Some(pending) = self.pending.get_mut(&flow) else { return false };
        let passing = match result {
            ResultCode::CANNOT_PROVIDE_EXTERNAL => {
                pending.request.strict && strategy != AddPortMapping::AnyThenHold
            }
            ResultCode::NETWORK_FAILURE | ResultCode::NO_RESOURCES => !pending.request.strict,
            _ => false,
        };
        let short = !wait.is_zero() && wait <= SHORT && now + wait + EXCHANGE <= pending.answer_by;
        let waited_for = pending.purpose == Purpose::Add && !pending.waiters.is_empty();
        let most = if pending.request.strict { RETRIES } else { RETRIES_OF_ANY };
        if !(passing && short && waited_for && pending.retries < most) {
            return false;
        }
        pending.retries += 1;
        pending.stage = Stage::Pausing;
        self.timers.set(Alarm::Again(flow), now + wait);
        true
    }

    pub(super) fn on_pause_over(&mut self, now: Instant, flow: FlowId) {
        if self.pending.get(&flow).is_some_and(|pending| pending.stage == Stage::Pausing) {
            self.ask(now, flow);
        } else {
            self.ask_again_to_keep(now, flow);
        }
    }

    /// Alternative 3 of decision 5: after a refusal any port is asked for and held.
    pub(super) fn ask_for_a_spare(&mut self, now: Instant, refused: Pending) {
        if self.strategy() != AddPortMapping::AnyThenHold || refused.purpose != Purpose::Add || self.stopping
        {
            return;
        }
        let lease = Some(Duration::from_secs(u64::from(SHORTENED)));
        let request = MappingRequest {
            strict: false,
            external_addr: None,
            external_port: None,
            lease,
            ..refused.request
        };
        let wanted = self.wanted(now, &refused.who, request, Purpose::Spare, Vec::new());
        self.begin(now, wanted);
    }

    /// What is pending was granted and is wanted: the router's own NAT comes next, if there is one.
    pub(super) fn accept(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let pending = self.pending.get_mut(&flow).expect("the callers found it");
        pending.stage = Stage::Installing(grant);
        match pending.rule() {
            Some(rule) => {
                let install = NatChange::Install { rule, external: Some(grant.external_v4()) };
                self.change_nat(install, NatPurpose::Install(flow));
            }
            None => self.finish(now, flow, grant),
        }
    }

    /// Everything stands: into the table, and tell whoever waits.
    pub(super) fn finish(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let pending = &self.pending[&flow];
        let key = Key { protocol: pending.request.protocol, external_port: grant.external_v4().port() };
        self.forget_held_at(now, key);
        if self.refuses_grant(now, flow, key.external_port) {
            return;
        }
        if self.table.find(key).is_some() {
            // The server has forgotten this grant, and given the port to another host since.
            return self.fail(now, flow, Refusal::Conflict);
        }
        let mapping = self.stand(now, flow, grant.external_v4(), Some(grant));
        self.notice(Notice::Granted(mapping));
    }

    /// A pending mapping stands from now on; it is in doubt without a grant.
    pub(super) fn stand(
        &mut self,
        now: Instant,
        flow: FlowId,
        external: SocketAddrV4,
        grant: Option<Grant>,
    ) -> Mapping {
        let pending = self.pending.remove(&flow).expect("the callers found it");
        self.made += 1;
        self.timers.cancel(Alarm::Background(flow));
        let request = pending.request;
        // The server may have lost its state while this router's NAT was set up.
        let certain = grant.is_some() && self.uplink.as_ref().is_some_and(|client| client.holds(flow));
        let mapping = Mapping {
            protocol: request.protocol,
            external,
            internal: request.internal,
            nat_port: pending.nat_port,
            remote_peer: request.remote_peer,
            remote_name: request.remote_name,
            description: request.description,
            strict: request.strict,
            created: now,
            made: self.made,
            asked_at: pending.asked_at,
            claims: Claims::of(request.by, request.lease.map(|lease| pending.asked_at + lease)),
            lifetime_ends: grant.map_or(now + LONGEST, |grant| grant.ends()),
            health: if certain { Health::Active } else { Health::Degraded },
            confirmed: grant.is_some(),
            flow,
        };
        self.table.insert(mapping.clone());
        self.stood.push(flow);
        self.system_update_id = self.system_update_id.wrapping_add(1);
        self.set_lease_alarm(&mapping);
        self.input(now, Input::Extend(flow, self.terms(&mapping)));
        self.store(now, &mapping);
        for id in pending.waiters {
            self.answer_added(id, external);
        }
        mapping
    }

    /// A pending mapping cannot be had: give back what was got, and tell whoever waits.
    pub(super) fn fail(&mut self, now: Instant, flow: FlowId, refusal: Refusal) {
        let Some(mut pending) = self.pending.remove(&flow) else { return };
        self.timers.cancel(Alarm::Background(flow));
        self.timers.cancel(Alarm::Again(flow));
        if let Some(rule) = pending.rule() {
            if let Stage::Installing(_) | Stage::Local(_) = pending.stage {
                self.remove_rule(rule);
            }
            self.nat_ports.release(rule.protocol, rule.port);
        }
        self.give_back(now, flow);
        let replaces = pending.replaces.take().filter(|_| !self.stopping);
        let refusal = match refusal {
            Refusal::Upstream(_) if replaces.is_some() => Refusal::Conflict, // T-4
            refusal => refusal,
        };
        let told = match pending.purpose {
            Purpose::Add => !pending.waiters.is_empty(),
            Purpose::Restore => true,
            Purpose::Probe | Purpose::Spare => false,
        };
        // What policy refuses has a line of its own.
        if told && refusal != Refusal::NotAuthorized {
            self.notice_refusal(pending.from(), &pending.request, refusal);
        }
        for &id in &pending.waiters {
            self.refuse(id, refusal);
        }
        if refusal == Refusal::Upstream(ResultCode::CANNOT_PROVIDE_EXTERNAL) && replaces.is_none() {
            return self.ask_for_a_spare(now, pending);
        }
        let Some(old) = replaces.filter(|old| old.lease_ends().is_none_or(|end| end > now)) else { return };
        let restore = request_of(now, &old);
        if let Stage::Clearing(_) = pending.stage {
            // Its delete is on the way: it comes back as soon as that is through.
            let (waiters, stage) = (Vec::new(), pending.stage);
            let restoring = Pending {
                request: restore,
                waiters,
                stage,
                asked_at: now,
                purpose: Purpose::Restore,
                replaces: None,
                ..pending
            };
            self.pending.insert(flow, restoring);
        } else {
            let wanted = self.wanted(now, &pending.who, restore, Purpose::Restore, Vec::new());
            self.begin(now, wanted);
        }
    }

    pub(super) fn refuse_all_pending(&mut self, now: Instant) {
        // What restores an older mapping goes on when there is a server again.
        let refused = |pending: &Pending| self.stopping || pending.purpose != Purpose::Restore;
        let flows: Vec<FlowId> =
            self.pending.iter().filter(|(_, pending)| refused(pending)).map(|(&flow, _)| flow).collect();
        for flow in flows {
            self.fail(now, flow, Refusal::NoAnswer);
        }
    }

    /// What an earlier uplink has answered already is not carried over to another one.
    pub(super) fn refuse_half_done(&mut self, now: Instant) {
        let asks = |stage| matches!(stage, Stage::Reserving | Stage::Asking | Stage::Pausing);
        let half_done = |pending: &Pending| !asks(pending.stage) && pending.purpose != Purpose::Restore;
        let flows: Vec<FlowId> =
            self.pending.iter().filter(|(_, pending)| half_done(pending)).map(|(&flow, _)| flow).collect();
        for flow in flows {
            self.fail(now, flow, Refusal::NoAnswer);
        }
    }

    /// Nobody else translates from now on, so the port of the WAN address is the one that people come to: who waits with another one
    /// than is wanted begins anew.
    pub(super) fn reserve_as_outermost(&mut self, now: Instant) {
        let elsewhere = |pending: &Pending| {
            let wanted = pending.request.external_port.filter(|_| !pending.any_port);
            pending.stage == Stage::Asking && wanted.is_some_and(|wanted| pending.nat_port != Some(wanted))
        };
        let flows: Vec<FlowId> =
            self.pending.iter().filter(|(_, pending)| elsewhere(pending)).map(|(&flow, _)| flow).collect();
        for flow in flows {
            let pending = self.pending.get_mut(&flow).expect("one of the keys");
            pending.stage = Stage::Reserving;
            let (protocol, port) = (pending.request.protocol, pending.nat_port.take());
            if let Some(port) = port {
                self.nat_ports.release(protocol, port);
            }
            self.reserve_from(now, flow, true);
        }
    }

    /// Asks a new server for everything that is pending still, unless the router's own NAT is asked first.
    pub(super) fn ask_again(&mut self, now: Instant) {
        let asks = |pending: &Pending| pending.stage != Stage::Reserving;
        let flows: Vec<FlowId> =
            self.pending.iter().filter(|(_, pending)| asks(pending)).map(|(&flow, _)| flow).collect();
        for flow in flows {
            self.ask(now, flow);
        }
    }

    pub(super) fn on_background_over(&mut self, now: Instant, flow: FlowId) {
        self.fail(now, flow, Refusal::NoAnswer);
    }
}

impl Pending {
    /// Who is named when something of it is told.
    pub(super) fn from(&self) -> IpAddr {
        who_is_named(&self.who, &self.request)
    }

    /// Whether it leads there, or may have to restore what did (spec T-4).
    pub(super) fn needs(&self, internal: SocketAddrV4) -> bool {
        self.request.internal == internal
            || self.replaces.as_ref().is_some_and(|old| old.internal == internal)
    }

    pub(super) fn rule(&self) -> Option<NatRule> {
        let MappingRequest { protocol, internal, remote_peer, .. } = self.request;
        self.nat_port.map(|port| NatRule { protocol, port, internal, remote_peer })
    }
}

/// By whichever of its addresses a host asks: it is the one that the mapping leads to, unless another one asks for it.
pub(super) fn who_is_named(who: &Requester, request: &MappingRequest) -> IpAddr {
    let host = *request.internal.ip();
    if who.asker().is(host) || who.asker() == who { IpAddr::V4(host) } else { who.asker().source() }
}

/// What would get this very mapping again.
fn request_of(now: Instant, mapping: &Mapping) -> MappingRequest {
    MappingRequest {
        protocol: mapping.protocol,
        internal: mapping.internal,
        external_port: Some(mapping.external.port()),
        strict: true,
        external_addr: None,
        lease: mapping.lease_ends().map(|end| end - now),
        remote_peer: mapping.remote_peer,
        remote_name: mapping.remote_name.clone(),
        description: mapping.description.clone(),
        by: Asker::Igd,
    }
}

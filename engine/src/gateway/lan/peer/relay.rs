//! What the provider is asked of a flow, and what becomes of its answer.

use super::*;
use crate::gateway::own_nat::NatPurpose;
use crate::gateway::waiting::BACKGROUND;
use crate::nat::{NatChange, NatFailure};
use crate::table::Key;
use crate::uplink::{Input, PeerWant};

impl Gateway {
    /// The provider is asked about a flow that comes to it from this port; or it has said so for long enough (RFC 7648 §3.2).
    pub(super) fn relay(&mut self, now: Instant, id: RequestId, wish: Wish, port: u16) {
        let Wish { tuple, suggested, lifetime, .. } = wish;
        let peers = &mut self.lan_server.peers;
        let holding = peers.holding.values_mut().map(|(relay, ..)| relay);
        let same = peers.relaying.values_mut().chain(holding).find(|relay| relay.wish.tuple == tuple);
        if let Some(relay) = same {
            return relay.waiters.push(id);
        }
        let lasts = |standing: &&Standing| {
            let as_said = matches!(standing.way, Way::Relayed { port: by, said: Some(_), .. } if by == port);
            as_said && (standing.ends - now) * 4 >= Duration::from_secs(u64::from(lifetime)) * 3
        };
        if let Some((external, ends)) =
            peers.standing.get(&tuple).filter(lasts).map(|standing| (standing.external, standing.ends))
        {
            return self.answer_peer(now, id, external, ends);
        }
        if self.uplink.is_none() || !self.uplink_open {
            return self.refuse(id, Refusal::NoAnswer);
        }
        // To the provider it would be that mapping's.
        let is_own = |rule: NatRule| {
            (rule.protocol, rule.internal, rule.port) == (tuple.protocol, tuple.internal, port)
        };
        let may = self.nat_ports.is_free(tuple.protocol, port) || self.lan_server.peers.rules().any(is_own);
        if self.config.nat == NatMode::Own && !may {
            return self.refuse(id, Refusal::Conflict);
        }
        // What the provider may have forgotten just now is not to be had by being first: a place that is suggested, or any.
        let wished = Key { protocol: tuple.protocol, external_port: suggested.port() };
        let in_doubt = |mapping: &Mapping| mapping.health != Health::Active;
        let recovers = now < self.lan_server.peers.not_before && self.table.iter().any(in_doubt);
        if recovers || self.table.find(wished).is_some_and(in_doubt) {
            return self.forget_question(id); // asked again, it is decided
        }
        if let Some((result, _)) = self.lan_server.peers.not_served.filter(|&(_, until)| now < until) {
            return self.refuse(id, Refusal::Upstream(result));
        }
        let request = MappingRequest { external_port: None, ..wish.mapping() };
        let who = self.host_of_request(&request, wish.from);
        if !self.may_exchange(now, id, &who, &request) {
            return;
        }
        let flow = self.new_flow();
        self.lan_server.peers.relaying.insert(flow, Relay { wish, port, waiters: vec![id] });
        let third_party = (self.config.nat == NatMode::None).then_some(IpAddr::V4(*tuple.internal.ip()));
        let (protocol, remote) = (tuple.protocol, tuple.remote.into());
        let want = PeerWant { third_party, protocol, internal_port: port, remote, suggested, lifetime };
        self.input(now, Input::Peer(flow, want));
    }

    pub(in super::super::super) fn on_peer_granted(&mut self, now: Instant, flow: FlowId, grant: Grant) {
        let Some(relay) = self.lan_server.peers.relaying.remove(&flow) else { return };
        if !is_usable_external(*grant.external_v4().ip()) || grant.external.port() == 0 {
            return self.refuse_peer(relay, Refusal::Unusable);
        }
        if self.denies_peer(&relay.wish.tuple) {
            return self.refuse_peer(relay, Refusal::NotAuthorized);
        }
        let Tuple { internal, protocol, remote } = relay.wish.tuple;
        let before = self.lan_server.peers.rule_of(&relay.wish.tuple);
        if self.config.nat == NatMode::None {
            return self.peer_stands(now, &relay, grant, None, LONGEST);
        }
        let rule = NatRule { protocol, port: relay.port, internal, remote_peer: Some(*remote.ip()) };
        if before.is_some_and(|held| held.rule == rule) {
            return self.peer_stands(now, &relay, grant, before, LONGEST);
        }
        // The same remote host, another port of it: one rule is for both.
        let same = self.lan_server.peers.held().find(|held| held.rule == rule);
        if same.is_some() {
            return self.peer_stands(now, &relay, grant, same, LONGEST);
        }
        // Two flows of one port leave by one port.
        let others = |one: NatRule| (one.protocol, one.port, one.internal) == (protocol, rule.port, internal);
        let is_ours = self.lan_server.peers.rules().any(others);
        if !is_ours && !self.nat_ports.claim(protocol, rule.port, flow) {
            return self.refuse_peer(relay, Refusal::Conflict); // somebody has taken the port meanwhile
        }
        self.made += 1;
        let held = Held { rule, made: self.made };
        self.lan_server.peers.holding.insert(flow, (relay, grant, held));
        match self.wan.addresses.first().copied().filter(|_| !is_ours) {
            // The kernel lets a flow leave by a port that a program of the router listens on.
            Some(addr) => {
                let reserve = NatChange::Reserve { protocol, port: rule.port, addr };
                self.change_nat(reserve, NatPurpose::PeerPort(flow, rule));
            }
            None => self.install_for_peer(flow, rule),
        }
    }

    fn install_for_peer(&mut self, flow: FlowId, rule: NatRule) {
        self.change_nat(NatChange::Install { rule, external: None }, NatPurpose::Peer(flow, rule));
    }

    /// Whether the router itself uses the port that a flow leaves by.
    pub(in super::super::super) fn on_peer_port(
        &mut self,
        now: Instant,
        flow: FlowId,
        rule: NatRule,
        outcome: Result<(), NatFailure>,
    ) {
        if !self.lan_server.peers.holding.contains_key(&flow) {
            return self.release_port(rule); // it is wanted no more
        }
        match outcome {
            Ok(()) => self.install_for_peer(flow, rule),
            // What comes for that port is the router's.
            Err(NatFailure::PortInUse) => {
                let held = self.lan_server.peers.holding.remove(&flow);
                self.release_port(rule);
                held.into_iter().for_each(|(relay, ..)| self.refuse_peer(relay, Refusal::Conflict));
            }
            Err(NatFailure::Kernel(_)) => self.on_peer_held(now, flow, rule, false),
        }
    }

    pub(in super::super::super) fn on_peer_refused(
        &mut self,
        now: Instant,
        flow: FlowId,
        result: ResultCode,
        wait: Duration,
    ) {
        // Not asked again for as long as the server has said so (RFC 6887 §8.3); the others may be about this flow alone.
        if [ResultCode::UNSUPP_OPCODE, ResultCode::NO_RESOURCES].contains(&result) {
            self.lan_server.peers.not_served = Some((result, now + wait));
        }
        if let Some(relay) = self.lan_server.peers.relaying.remove(&flow) {
            self.refuse_peer(relay, Refusal::Upstream(result));
        }
    }

    fn refuse_peer(&mut self, relay: Relay, refusal: Refusal) {
        for id in relay.waiters {
            self.refuse(id, refusal);
        }
    }

    /// The router's own NAT has a rule for a flow, or has not.
    pub(in super::super::super) fn on_peer_held(
        &mut self,
        now: Instant,
        flow: FlowId,
        rule: NatRule,
        done: bool,
    ) {
        let holding = self.lan_server.peers.holding.remove(&flow);
        let denied = holding.as_ref().is_some_and(|(relay, ..)| self.denies_peer(&relay.wish.tuple));
        let wanted = match holding {
            Some((relay, ..)) if denied => {
                self.refuse_peer(relay, Refusal::NotAuthorized);
                None
            }
            holding => holding,
        };
        match wanted {
            Some((relay, grant, held)) if done => self.peer_stands(now, &relay, grant, Some(held), LONGEST),
            Some((relay, grant, _)) => {
                // It lasts as long as the kernel remembers it by itself.
                self.release_port(rule);
                self.peer_stands(now, &relay, grant, None, SHORTEST);
            }
            // It is wanted no more.
            None if done => self.end_rule(rule),
            None => self.release_port(rule),
        }
    }

    /// The provider has granted it, and this router's NAT can keep it for `most` seconds at least.
    fn peer_stands(&mut self, now: Instant, relay: &Relay, grant: Grant, rule: Option<Held>, most: u32) {
        let Wish { tuple, nonce, lifetime, .. } = relay.wish;
        let before = self.lan_server.peers.standing.remove(&tuple);
        let granted = lifetime.min(whole_seconds(grant.ends() - now)).min(most);
        let (external, port) = (grant.external_v4(), relay.port);
        let mut ends = now + Duration::from_secs(u64::from(granted));
        if let Some(Standing {
            external: at, ends: promised, way: Way::Relayed { said: Some(_), .. }, ..
        }) = before
            && at == external
        {
            ends = ends.max(promised); // §12.1: it does not become shorter
        }
        let way = Way::Relayed { port, said: Some(now), rule };
        self.lan_server.peers.stand(tuple, Standing { nonce, external, ends, way });
        if let Some(Standing { way: Way::Relayed { rule: Some(old), .. }, .. }) = before {
            self.end_rule(old.rule);
        }
        for &id in &relay.waiters {
            self.answer_peer(now, id, external, ends);
        }
    }

    fn answer_peer(&mut self, now: Instant, id: RequestId, external: SocketAddrV4, ends: Instant) {
        let Some(Waiter { form: Form::Lan(question), .. }) = self.take_waiter(id) else { return };
        if let What::Peer(peer) = &question.what {
            self.tell_peer(now, &question.arrival, peer, Some((external, ends)));
        }
    }

    /// Nobody counts on this rule any more, unless another flow does.
    fn end_rule(&mut self, rule: NatRule) {
        if !self.lan_server.peers.rules().any(|one| one == rule) {
            self.remove_rule(rule);
            self.release_port(rule);
        }
    }

    fn release_port(&mut self, rule: NatRule) {
        let mut rules = self.lan_server.peers.rules();
        if !rules.any(|one| (one.protocol, one.port) == (rule.protocol, rule.port)) {
            drop(rules);
            self.nat_ports.release(rule.protocol, rule.port);
        }
    }

    /// At the end of a turn: what was promised until now.
    pub(in super::super) fn end_peers(&mut self, now: Instant) {
        while let Some(tuple) = self.lan_server.peers.ends.pop_due(now) {
            self.end_standing(&tuple);
        }
    }

    fn end_standing(&mut self, tuple: &Tuple) {
        self.lan_server.peers.ends.cancel(*tuple);
        let ended = self.lan_server.peers.standing.remove(tuple);
        if let Some(Standing { way: Way::Relayed { rule: Some(held), .. }, .. }) = ended {
            self.end_rule(held.rule);
        }
    }

    /// Nobody waits for this answer any more.
    pub(in super::super) fn forget_peer_question(&mut self, id: RequestId) {
        let peers = &mut self.lan_server.peers;
        peers.finding.remove(&id);
        for (relay, ..) in peers.holding.values_mut() {
            relay.waiters.retain(|&waiter| waiter != id);
        }
        for relay in peers.relaying.values_mut() {
            relay.waiters.retain(|&waiter| waiter != id);
        }
        let unwanted: Vec<FlowId> = peers
            .relaying
            .iter()
            .filter(|(_, relay)| relay.waiters.is_empty())
            .map(|(&flow, _)| flow)
            .collect();
        for flow in unwanted {
            self.lan_server.peers.relaying.remove(&flow);
            self.input(self.lan_server.now, Input::Forget(flow));
        }
    }

    /// What was found out about flows, and is asked about them, is worth nothing any more: of a host that is gone, or of all. With
    /// `keeps` the router's own NAT stays as it is.
    pub(in super::super::super) fn drop_peers(
        &mut self,
        host: Option<Ipv4Addr>,
        refusal: Refusal,
        keeps: bool,
    ) {
        let of_host = |tuple: &Tuple| host.is_none_or(|host| *tuple.internal.ip() == host);
        let peers = &mut self.lan_server.peers;
        let asked: Vec<RequestId> =
            peers.finding.iter().filter(|(_, wish)| of_host(&wish.tuple)).map(|(&id, _)| id).collect();
        let (mut waiters, now) = (asked, self.lan_server.now);
        let peers = &mut self.lan_server.peers;
        waiters.iter().for_each(|id| drop(peers.finding.remove(id)));
        let relaying = peers.relaying.iter().filter(|(_, relay)| of_host(&relay.wish.tuple));
        for flow in relaying.map(|(&flow, _)| flow).collect::<Vec<_>>() {
            waiters
                .extend(self.lan_server.peers.relaying.remove(&flow).into_iter().flat_map(|one| one.waiters));
            self.input(now, Input::Forget(flow));
        }
        let peers = &mut self.lan_server.peers;
        let holding = peers.holding.iter().filter(|(_, (relay, ..))| of_host(&relay.wish.tuple));
        // Their rules go when the kernel has said what has become of them.
        for flow in holding.map(|(&flow, _)| flow).collect::<Vec<_>>() {
            let held = self.lan_server.peers.holding.remove(&flow);
            waiters.extend(held.into_iter().flat_map(|(relay, ..)| relay.waiters));
        }
        for id in waiters {
            self.refuse(id, refusal);
        }
        if keeps {
            return;
        }
        let standing = self.lan_server.peers.standing.keys().filter(|tuple| of_host(tuple));
        for tuple in standing.copied().collect::<Vec<_>>() {
            self.end_standing(&tuple);
        }
    }

    /// The provider has forgotten what it had said, or is another one. Nothing of that is made anew from here, so clients hear that there
    /// is another epoch, and ask again (RFC 7648 §3.2, RFC 6887 §16.3.1).
    pub(in super::super::super) fn doubt_peers(&mut self, now: Instant) {
        self.lan_server.peers.not_served = None;
        self.lan_server.peers.not_before = now + (self.config.recovery_wait * 2).min(BACKGROUND);
        let mut any = false;
        for standing in self.lan_server.peers.standing.values_mut() {
            if let Way::Relayed { said, .. } = &mut standing.way {
                any |= said.take().is_some();
            }
        }
        if any {
            self.lan_server.begin_epoch();
            self.lan_server.announcements.begin(now);
        }
    }

    /// Whether the rules are others since it was asked for, and deny it.
    fn denies_peer(&self, tuple: &Tuple) -> bool {
        self.judge_kept(&tuple.ports(), None).is_err()
    }

    /// What policy denies by now is promised no longer.
    pub(in super::super::super) fn end_denied_peers(&mut self) {
        let standing = self.lan_server.peers.standing.keys().copied();
        let denied: Vec<Tuple> = standing.filter(|tuple| self.denies_peer(tuple)).collect();
        for tuple in denied {
            self.end_standing(&tuple);
        }
    }

    /// The rules of this router's NAT that flows have, which are no mappings'.
    pub fn peer_rules(&self) -> impl Iterator<Item = NatRule> {
        self.lan_server.peers.rules()
    }
}

//! PEER on the LAN side (RFC 6887 §12, RFC 7648): by which external address and port a flow of a LAN host is seen, and that it lasts
//! though nothing is said for a while.
//!
//! A flow that the host has begun by itself is the provider's to tell of: it is asked about the flow as that comes to it, and asked
//! again when the client asks again, never by ourselves. This router's own NAT would forget a silent flow long before; so it has a rule
//! for it as long as it was promised, for that remote host alone, and its port is no mapping's.
//! Where there is no flow yet, what the host will send has to leave by a port that is known: that of a mapping, which is the one there
//! is for its port (§12.3), or a new one on the way of MAP, for that remote host alone.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use wire::pcp::{
    self, Body, Nonce, OptionCode, PcpOption, PeerData, Protocol, Request, Response, ResultCode,
};

use super::pcp_server::Refused;
use super::{LONG, LONGEST, LanArrival, MIN_GAP, SHORT, SHORTEST, What, pcp_result, whole_seconds};
use crate::claims::Asker;
use crate::gateway::waiting::{Form, Waiter};
use crate::gateway::{Effect, Gateway, NatMode, RequestId};
use crate::nat::NatRule;
use crate::policy::{Denied, Facts, Ports, is_usable_external};
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Mapping};
use crate::time::{Duration, Instant, Timers};
use crate::uplink::{FlowId, Grant};

mod relay;

/// So many may be asked about at once, of one host and in all.
const MOST_OF_HOST: usize = 16;
const MOST: usize = 256;

/// A flow: RFC 6887 §12.3's five-tuple.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Tuple {
    internal: SocketAddrV4,
    protocol: Protocol,
    remote: SocketAddrV4,
}

/// What a client wants to know, and for how long.
#[derive(Clone, Debug)]
struct Wish {
    /// Who asks for it.
    from: IpAddr,
    tuple: Tuple,
    nonce: Nonce,
    suggested: SocketAddrV4,
    lifetime: u32,
    words: Option<String>,
}

/// A PEER request that waits.
#[derive(Debug)]
pub(super) struct PeerQuestion {
    data: PeerData,
    /// Seconds, as far as they can be granted.
    lifetime: u32,
    /// The options that the answer repeats.
    processed: Vec<PcpOption>,
}

/// The provider is asked.
#[derive(Debug)]
struct Relay {
    wish: Wish,
    /// By which port the provider sees it come.
    port: u16,
    waiters: Vec<RequestId>,
}

/// What a client was told, until then.
#[derive(Debug)]
struct Standing {
    nonce: Nonce,
    external: SocketAddrV4,
    ends: Instant,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// By a mapping, which has a life of its own.
    Mapping,
    /// As the provider has said, at that time; not any more if it has lost its state since.
    Relayed { port: u16, said: Option<Instant>, rule: Option<Held> },
}

/// A rule of this router's own NAT, and when it was made, counted as mappings are.
#[derive(Clone, Copy, Debug)]
struct Held {
    rule: NatRule,
    made: u64,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Peers {
    /// By which port of the WAN address does it leave?
    finding: BTreeMap<RequestId, Wish>,
    relaying: BTreeMap<FlowId, Relay>,
    /// The provider has answered; the router's own NAT is being set up.
    holding: BTreeMap<FlowId, (Relay, Grant, Held)>,
    standing: BTreeMap<Tuple, Standing>,
    ends: Timers<Tuple>,
    /// Mappings go first until then, after a loss.
    not_before: Instant,
    /// What the provider says to everybody, until then.
    not_served: Option<(ResultCode, Instant)>,
}

impl PeerQuestion {
    pub(super) fn new(data: PeerData, lifetime: u32, processed: Vec<PcpOption>) -> Self {
        Self { data, lifetime, processed }
    }

    pub(super) fn data(&self) -> &PeerData {
        &self.data
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.data.protocol
    }

    pub(super) fn nonce(&self) -> Nonce {
        self.data.nonce
    }

    pub(super) fn lifetime(&self) -> u32 {
        self.lifetime
    }

    pub(super) fn granted(&self, external: SocketAddr, lifetime: u32, epoch: u32) -> Response {
        let external_addr = pcp::ip_to_wire(external.ip());
        let data = PeerData { external_port: external.port(), external_addr, ..self.data };
        let (result, body) = (ResultCode::SUCCESS, Body::Peer(data));
        Response { result, lifetime, epoch, body, options: self.processed.clone() }
    }

    /// There is nothing of it.
    pub(super) fn nothing(&self, epoch: u32) -> Response {
        let (result, body) = (ResultCode::SUCCESS, Body::Peer(self.data));
        Response { result, lifetime: 0, epoch, body, options: self.processed.clone() }
    }

    fn tuple(&self, host: Ipv4Addr) -> Option<Tuple> {
        let IpAddr::V4(remote) = pcp::ip_from_wire(self.data.remote_addr) else { return None };
        Some(Tuple {
            internal: SocketAddrV4::new(host, self.data.internal_port),
            protocol: self.data.protocol,
            remote: SocketAddrV4::new(remote, self.data.remote_port),
        })
    }
}

impl Tuple {
    /// What of it rules are about: its external port is nobody's choice.
    fn ports(&self) -> Ports {
        let (host, internal) = (IpAddr::V4(*self.internal.ip()), self.internal.port());
        Ports { protocol: self.protocol, host, internal, external: None }
    }
}

impl Wish {
    /// A mapping that would do. A wish that cannot be met is refused (RFC 6887 §12.3).
    fn mapping(&self) -> MappingRequest {
        let Tuple { internal, protocol, remote } = self.tuple;
        let wish = self.suggested.port();
        MappingRequest {
            protocol,
            internal,
            external_port: (wish != 0).then_some(wish),
            strict: wish != 0,
            external_addr: None,
            lease: Some(Duration::from_secs(u64::from(self.lifetime))),
            remote_peer: Some(*remote.ip()),
            remote_name: None,
            description: self.words.clone().unwrap_or_else(|| "PCP".to_owned()),
            by: Asker::Peer(self.nonce),
        }
    }
}

impl Peers {
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.ends.next()
    }

    /// The hosts that were told something.
    pub(super) fn hosts(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.standing.keys().chain(self.wishes().map(|wish| &wish.tuple)).map(|tuple| *tuple.internal.ip())
    }

    /// Those that are not decided.
    fn wishes(&self) -> impl Iterator<Item = &Wish> {
        let asked = self.relaying.values().chain(self.holding.values().map(|(relay, ..)| relay));
        self.finding.values().chain(asked.map(|relay| &relay.wish))
    }

    fn standing_of(&self, host: Ipv4Addr) -> usize {
        let bound = |port, protocol, remote| Tuple {
            internal: SocketAddrV4::new(host, port),
            protocol,
            remote: SocketAddrV4::new(remote, port),
        };
        let first = bound(0, Protocol(0), Ipv4Addr::UNSPECIFIED);
        let last = bound(u16::MAX, Protocol(u8::MAX), Ipv4Addr::BROADCAST);
        self.standing.range(first..=last).count()
    }

    fn rules(&self) -> impl Iterator<Item = NatRule> {
        self.held().map(|held| held.rule)
    }

    fn held(&self) -> impl Iterator<Item = Held> {
        self.made().chain(self.holding.values().map(|(.., held)| *held))
    }

    fn made(&self) -> impl Iterator<Item = Held> {
        self.standing.values().filter_map(|standing| match standing.way {
            Way::Relayed { rule, .. } => rule,
            Way::Mapping => None,
        })
    }

    fn rule_of(&self, tuple: &Tuple) -> Option<Held> {
        match self.standing.get(tuple)?.way {
            Way::Relayed { rule, .. } => rule,
            Way::Mapping => None,
        }
    }

    /// The oldest rule of an internal port: by that it sends what it says to somebody new.
    fn oldest_rule(&self, protocol: Protocol, internal: SocketAddrV4) -> Option<Held> {
        let of_port = |held: &Held| (held.rule.protocol, held.rule.internal) == (protocol, internal);
        self.made().filter(of_port).min_by_key(|held| held.made)
    }

    /// Whether the flow of this question was told of to somebody else, who may have been so by the process before this one: whose
    /// flow that was nobody knows then, but to which host.
    fn is_anothers(&self, now: Instant, question: &PeerQuestion, mapping: &Mapping) -> bool {
        let Some(tuple) = question.tuple(*mapping.internal.ip()) else { return false };
        let other = |nonce: Nonce| nonce != question.nonce();
        if let Some(standing) = self.standing.get(&tuple).filter(|standing| standing.ends > now) {
            return other(standing.nonce);
        }
        let claim = mapping.claims.at(now).peer;
        claim.is_some_and(|claim| {
            let is_known = |(of, standing): (&Tuple, &Standing)| {
                (of.protocol, of.internal, standing.nonce) == (tuple.protocol, tuple.internal, claim.nonce)
            };
            let left = mapping.remote_peer == Some(*tuple.remote.ip()) && !self.standing.iter().any(is_known);
            other(claim.nonce) && left
        })
    }

    fn stand(&mut self, tuple: Tuple, standing: Standing) {
        self.ends.set(tuple, standing.ends);
        self.standing.insert(tuple, standing);
    }

    /// The flow of this question stands by a mapping.
    pub(super) fn by_mapping(
        &mut self,
        question: &PeerQuestion,
        host: IpAddr,
        external: SocketAddrV4,
        ends: Instant,
    ) {
        let IpAddr::V4(host) = host else { return };
        let Some(tuple) = question.tuple(host) else { return };
        // What the provider was asked about before stands until it ends.
        if self.rule_of(&tuple).is_none() {
            self.stand(tuple, Standing { nonce: question.nonce(), external, ends, way: Way::Mapping });
        }
    }
}

impl Gateway {
    /// RFC 6887 §12.3, in its order.
    pub(super) fn peer(
        &mut self,
        now: Instant,
        (arrival, payload): (LanArrival, &[u8]),
        request: &Request,
        data: PeerData,
    ) -> Result<(), Refused> {
        let (strict, filters, words, mut processed) = self.options(request)?;
        if strict {
            return Err(Refused(ResultCode::MALFORMED_REQUEST, LONG)); // §13.2
        }
        if !filters.is_empty() {
            return Err(Refused(ResultCode::MALFORMED_OPTION, LONG)); // §7.3: it would have no meaning
        }
        let (host, remote) = (self.host_of(request)?, pcp::ip_from_wire(data.remote_addr));
        let no_ports = data.protocol == Protocol::ALL || data.internal_port == 0 || data.remote_port == 0;
        if no_ports || remote.is_ipv4() != host.is_ipv4() || !self.may_be_peer(remote) {
            return Err(Refused(ResultCode::MALFORMED_REQUEST, LONG));
        }
        if ![Protocol::TCP, Protocol::UDP].contains(&data.protocol) {
            return Err(Refused(ResultCode::UNSUPP_PROTOCOL, LONG));
        }
        let lifetime = if request.lifetime == 0 { 0 } else { request.lifetime.clamp(SHORTEST, LONGEST) };
        let (host, remote) = match (host, remote) {
            (IpAddr::V6(host), IpAddr::V6(remote)) => {
                let question = PeerQuestion::new(data, lifetime, processed);
                return self.peer_v6(now, (arrival, payload), (question, words), host, remote);
            }
            (IpAddr::V4(host), IpAddr::V4(remote)) => (host, SocketAddrV4::new(remote, data.remote_port)),
            _ => return Err(Refused(ResultCode::MALFORMED_REQUEST, LONG)),
        };
        let internal = SocketAddrV4::new(host, data.internal_port);
        let tuple = Tuple { internal, protocol: data.protocol, remote };
        let before = self.lan_server.peers.standing.get(&tuple).filter(|standing| standing.ends > now);
        // The simple threat model: another nonce is somebody else.
        if let Some(standing) = before.filter(|standing| standing.nonce != data.nonce) {
            return Err(Refused(ResultCode::NOT_AUTHORIZED, standing.ends.secs_left(now)));
        }
        let others = |wish: &Wish| wish.tuple == tuple && wish.nonce != data.nonce;
        if self.lan_server.peers.wishes().any(others) {
            return Ok(()); // asked again, it is decided whose it is
        }
        // Words are kept where a mapping is made, which is not known yet: so they are not repeated (RFC 7220).
        processed.retain(|option| option.code() != OptionCode::DESCRIPTION);
        let question = PeerQuestion::new(data, lifetime, processed);
        if lifetime == 0 {
            let left = before.filter(|before| self.still_stands(&tuple, before));
            let left = left.map(|standing| (standing.external, standing.ends));
            let left = left.or_else(|| self.left_by_mapping(now, &tuple, data.nonce));
            self.tell_peer(now, &arrival, &question, left);
            return Ok(());
        }
        if let Some((external, ends)) = before.and_then(|before| before.said_lately(now)) {
            self.tell_peer(now, &arrival, &question, Some((external, ends)));
            return Ok(());
        }
        let suggested = match pcp::ip_from_wire(data.external_addr) {
            IpAddr::V4(addr) => SocketAddrV4::new(addr, data.external_port),
            IpAddr::V6(_) => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, data.external_port),
        };
        let wish = Wish { from: arrival.from.ip(), tuple, nonce: data.nonce, suggested, lifetime, words };
        let is_new = before.is_none() && !self.lan_server.peers.wishes().any(|wish| wish.tuple == tuple);
        self.admit_peer(now, &wish)?;
        if is_new {
            self.note_third_party(arrival.from.ip(), tuple.protocol, internal.into());
        }
        let id = self.ask_for_lan(now, arrival, payload, What::Peer(question));
        self.lan_server.peers.finding.insert(id, wish);
        match self.config.nat {
            NatMode::None => self.on_flow_found(now, id, Some(internal.port())),
            NatMode::Own => {
                let Tuple { internal, protocol, remote } = tuple;
                self.effects.push_back(Effect::FindFlow { request: id, protocol, internal, remote });
            }
        }
        Ok(())
    }

    /// Whether what was told of a flow is so, as far as this router knows.
    fn still_stands(&self, tuple: &Tuple, standing: &Standing) -> bool {
        match standing.way {
            Way::Relayed { said, .. } => said.is_some(),
            Way::Mapping => {
                let mut all = self.table.of_internal(tuple.protocol, tuple.internal);
                all.any(|mapping| mapping.health != Health::Deleting && mapping.external == standing.external)
            }
        }
    }

    /// Whether somebody out there may have this address (RFC 6887 §12.3).
    fn may_be_peer(&self, remote: IpAddr) -> bool {
        let is_here = self.lan.iter().flat_map(|lan| &lan.addresses).any(|link| link.contains(remote));
        let is_host = match remote {
            IpAddr::V4(remote) => is_usable_external(remote) && !remote.is_link_local(),
            IpAddr::V6(remote) => {
                !(remote.is_unspecified()
                    || remote.is_loopback()
                    || remote.is_multicast()
                    || remote.is_unicast_link_local())
            }
        };
        is_host && !is_here
    }

    /// What can be said before anybody is asked. A flow that is only told of takes nothing from others, so that it does not count as a
    /// mapping; but there is an end to how many are remembered.
    fn admit_peer(&mut self, now: Instant, wish: &Wish) -> Result<(), Refused> {
        let host = *wish.tuple.internal.ip();
        // Which external port it has is nobody's choice.
        let wanted = MappingRequest { external_port: None, ..wish.mapping() };
        let (lan, who) = (self.lan_addresses(), self.host_of_request(&wanted, wish.from));
        let facts = Facts {
            lan: &lan,
            wan: &self.wan.addresses,
            held_by_host: 0,
            held: 0,
            consent: self.consent_of(&who),
        };
        if let Err(denied) = self.config.policy.check(&who, &wanted, facts) {
            self.deny_mapping(now, &who, &wanted, denied);
            return Err(Refused(ResultCode::NOT_AUTHORIZED, LONG));
        }
        let peers = &self.lan_server.peers;
        let is_new = !peers.standing.contains_key(&wish.tuple);
        let asked = peers.wishes().filter(|other| *other.tuple.internal.ip() == host).count();
        let all_asked = peers.wishes().count();
        let policy = &self.config.policy;
        let full = if !is_new {
            None
        } else if peers.standing_of(host) >= policy.mappings_per_host {
            Some(Denied::HostQuota(policy.mappings_per_host))
        } else if peers.standing.len() >= policy.mappings {
            Some(Denied::TableFull(policy.mappings))
        } else {
            None
        };
        if let Some(denied) = full {
            let (result, lifetime) = peer_result(self.deny_mapping(now, &who, &wanted, denied));
            return Err(Refused(result, lifetime));
        }
        if asked >= MOST_OF_HOST {
            return Err(Refused(ResultCode::USER_EX_QUOTA, SHORT));
        }
        if all_asked >= MOST {
            return Err(Refused(ResultCode::NO_RESOURCES, SHORT));
        }
        Ok(())
    }

    /// What a mapping was promised by PEER that the process before this one has heard.
    fn left_by_mapping(&self, now: Instant, tuple: &Tuple, nonce: Nonce) -> Option<(SocketAddrV4, Instant)> {
        let mut all = self.table.of_internal(tuple.protocol, tuple.internal);
        all.find_map(|mapping| {
            let claim = mapping.claims.at(now).peer.filter(|claim| claim.nonce == nonce)?;
            (mapping.remote_peer == Some(*tuple.remote.ip())).then_some((mapping.external, claim.ends))
        })
    }

    /// Answers at once: where it goes out, until when; `None`: nothing is known of it, which is no error (§12.1: PEER does not delete,
    /// and 0 asks for nothing).
    fn tell_peer(
        &mut self,
        now: Instant,
        arrival: &LanArrival,
        question: &PeerQuestion,
        stands: Option<(SocketAddrV4, Instant)>,
    ) {
        let epoch = self.lan_server.epoch();
        let answer = match stands {
            Some((external, ends)) => question.granted(external.into(), whole_seconds(ends - now), epoch),
            None => question.nothing(epoch),
        };
        self.lan_server.counters.pcp += 1;
        self.send_to_lan(arrival, answer.to_bytes());
    }

    /// By this port of the WAN address the flow leaves that somebody asks about; `None`: there is none, or it is not known.
    pub(in super::super) fn on_flow_found(&mut self, now: Instant, id: RequestId, port: Option<u16>) {
        let Some(wish) = self.lan_server.peers.finding.remove(&id) else { return };
        let Tuple { internal, protocol, .. } = wish.tuple;
        // A rule of ours keeps the port when the kernel has forgotten the flow.
        let port = port.or_else(|| Some(self.lan_server.peers.rule_of(&wish.tuple)?.rule.port));
        let port = port.or_else(|| {
            let held = self.lan_server.peers.oldest_rule(protocol, internal)?;
            let mut mapped = self.table.of_internal(protocol, internal);
            (!mapped.any(|mapping| mapping.made < held.made)).then_some(held.rule.port)
        });
        // The provider would give one place to both, whichever is asked for first.
        let own_nat = self.config.nat == NatMode::Own;
        let by = |nat_port: Option<u16>| if own_nat { nat_port } else { Some(internal.port()) };
        let by_mapping = |port: &u16| {
            let mut mapped = self.table.of_internal(protocol, internal).map(|mapping| mapping.nat_port);
            let same = |one: &MappingRequest| (one.protocol, one.internal) == (protocol, internal);
            let wanted = self.pending.values().filter(|pending| same(&pending.request));
            let mut wanted = wanted.map(|pending| pending.nat_port);
            mapped.any(|nat_port| by(nat_port) == Some(*port))
                || wanted.any(|nat_port| by(nat_port) == Some(*port))
        };
        match port.filter(|port| !by_mapping(port)) {
            Some(port) => self.relay(now, id, wish, port),
            None => {
                let other =
                    |addr: Ipv4Addr| !wish.suggested.ip().is_unspecified() && addr != *wish.suggested.ip();
                let is_mapped = self.table.find_internal(protocol, internal).is_some();
                if !is_mapped && self.external.is_some_and(other) {
                    return self.refuse(id, Refusal::Conflict);
                }
                self.peer_by_mapping(now, id, wish.from, wish.mapping());
            }
        }
    }

    /// What the host sends from that port leaves, or will leave, by a mapping.
    pub(super) fn peer_by_mapping(
        &mut self,
        now: Instant,
        id: RequestId,
        from: IpAddr,
        request: MappingRequest,
    ) {
        let Asker::Peer(nonce) = request.by else { return };
        let Some(request) = self.wait_for_pending(now, id, from, request) else { return };
        // Of several the oldest counts for what the host sends.
        let all = self.table.of_internal(request.protocol, request.internal);
        let Some(mapping) = all.min_by_key(|mapping| mapping.made).cloned() else {
            return match self.config.nat {
                NatMode::Own => self.make_for_lan(now, id, from, request),
                NatMode::None => self.forget_question(id), // it was waited for in vain; asked again, the provider is
            };
        };
        if mapping.health == Health::Deleting || self.repointing.contains_key(&mapping.flow) {
            return self.forget_question(id); // asked again, it is decided
        }
        let claims = mapping.claims.at(now);
        if claims.pcp.into_iter().chain(claims.peer).any(|claim| claim.nonce == nonce) {
            let remote_peer = mapping.remote_peer;
            let request = MappingRequest { remote_peer, strict: false, ..request };
            return self.renew_for_lan(now, id, from, &mapping, request);
        }
        // Who has asked about this flow first has it.
        let Some(Waiter { form: Form::Lan(question), .. }) = self.waiting.get(&id) else { return };
        let What::Peer(peer) = &question.what else { return };
        if self.lan_server.peers.is_anothers(now, peer, &mapping) {
            return self.refuse(id, Refusal::NotAuthorized);
        }
        // Somebody else's, or UPnP's: it lasts as long as that.
        let Mapping { external, confirmed, lifetime_ends, .. } = mapping;
        if !confirmed || external.ip().is_unspecified() {
            return self.forget_question(id); // nobody knows
        }
        let ends = claims.end().map_or(lifetime_ends, |end| end.min(lifetime_ends));
        let Some(Waiter { form: Form::Lan(question), .. }) = self.take_waiter(id) else { return };
        let What::Peer(peer) = &question.what else { return };
        let ends = ends.min(now + Duration::from_secs(u64::from(peer.lifetime)));
        self.lan_server.peers.by_mapping(peer, IpAddr::V4(*request.internal.ip()), external, ends);
        self.tell_peer(now, &question.arrival, peer, Some((external, ends)));
    }
}

impl Standing {
    /// What the provider has said of it, if that is so lately.
    fn said_lately(&self, now: Instant) -> Option<(SocketAddrV4, Instant)> {
        match self.way {
            Way::Relayed { said: Some(said), .. } if now - said < MIN_GAP => Some((self.external, self.ends)),
            _ => None,
        }
    }
}

/// RFC 6887 §7.4: why, and for how long.
pub(super) fn peer_result(refusal: Refusal) -> (ResultCode, u32) {
    match refusal {
        // Nobody there serves PEER, so that there is no use in asking again.
        Refusal::Upstream(ResultCode::UNSUPP_OPCODE) => (ResultCode::UNSUPP_OPCODE, LONG),
        refusal => pcp_result(refusal, true),
    }
}

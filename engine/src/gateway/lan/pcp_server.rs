//! PCP on the LAN side: MAP and ANNOUNCE (RFC 6887 §11, §14.1), and the way to PEER.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use wire::pcp::{
    self, Body, Filter, MapData, Nonce, Opcode, OptionCode, PcpOption, Protocol, Rejection, Request,
    RequestHeader, Response, ResultCode,
};

use super::{LONG, LONGEST, LanArrival, SHORTEST, What};
use crate::claims::Asker;
use crate::gateway::Gateway;
use crate::request::MappingRequest;
use crate::time::{Duration, Instant};

/// A description that a client gives is kept up to so many octets (RFC 7220).
const MAX_DESCRIPTION: usize = 256;

/// A MAP request that waits.
#[derive(Debug)]
pub(super) struct MapQuestion {
    map: MapData,
    /// Seconds, as far as they can be granted.
    lifetime: u32,
    strict: bool,
    /// The options that the answer repeats.
    processed: Vec<PcpOption>,
}

/// Why a request is refused before it is asked of anybody, and for how long.
pub(super) struct Refused(pub(super) ResultCode, pub(super) u32);

impl MapQuestion {
    pub(super) fn new(map: MapData, lifetime: u32, strict: bool, processed: Vec<PcpOption>) -> Self {
        Self { map, lifetime, strict, processed }
    }

    pub(super) fn protocol(&self) -> Protocol {
        self.map.protocol
    }

    pub(super) fn nonce(&self) -> Nonce {
        self.map.nonce
    }

    pub(super) fn lifetime(&self) -> u32 {
        self.lifetime
    }

    /// Whether this external address is one that it asks for.
    pub(super) fn may_be(&self, external: IpAddr) -> bool {
        let suggested = pcp::ip_from_wire(self.map.external_addr);
        suggested.is_unspecified() || suggested == external
    }

    pub(super) fn is_strict(&self) -> bool {
        self.strict
    }

    /// The client's own words, if it has said any.
    pub(super) fn description(&self) -> Option<String> {
        self.processed.iter().find_map(|option| match option {
            PcpOption::Description(octets) => String::from_utf8(octets.clone()).ok(),
            _ => None,
        })
    }

    /// They are not kept, so they are not repeated (RFC 7220).
    pub(super) fn forget_description(&mut self) {
        self.processed.retain(|option| option.code() != OptionCode::DESCRIPTION);
    }

    pub(super) fn granted(&self, external: SocketAddr, lifetime: u32, epoch: u32) -> Response {
        let external_addr = pcp::ip_to_wire(external.ip());
        let map = MapData { external_port: external.port(), external_addr, ..self.map };
        let (result, body) = (ResultCode::SUCCESS, Body::Map(map));
        Response { result, lifetime, epoch, body, options: self.processed.clone() }
    }

    /// The assigned fields are those of the request (RFC 6887 §15.1).
    pub(super) fn deleted(&self, epoch: u32) -> Response {
        let (result, body) = (ResultCode::SUCCESS, Body::Map(self.map));
        Response { result, lifetime: 0, epoch, body, options: self.processed.clone() }
    }
}

impl Gateway {
    pub(super) fn serve_pcp(&mut self, now: Instant, arrival: LanArrival, payload: &[u8]) {
        if let Err(Refused(result, lifetime)) = self.try_pcp(now, arrival, payload) {
            self.refuse_pcp(&arrival, payload, result, lifetime);
        }
    }

    /// RFC 6887 §8.2, in its order.
    fn try_pcp(&mut self, now: Instant, arrival: LanArrival, payload: &[u8]) -> Result<(), Refused> {
        if !self.config.pcp {
            // There is NAT-PMP only, and to that the version is not supported (RFC 6886 §3.5).
            let epoch = self.lan_server.epoch();
            self.lan_server.counters.refused += 1;
            let result = wire::natpmp::ResultCode::UNSUPPORTED_VERSION;
            self.send_to_lan(&arrival, wire::natpmp::error_response(payload, result, epoch));
            return Ok(());
        }
        let header = match RequestHeader::parse(payload) {
            Ok(header) => header,
            Err(Rejection::Silence) => {
                self.lan_server.counters.ignored += 1;
                return Ok(());
            }
            Err(Rejection::Answer(result)) => return Err(Refused(result, LONG)),
        };
        if pcp::ip_from_wire(header.client_addr) != arrival.from.ip() {
            return Err(Refused(ResultCode::ADDRESS_MISMATCH, LONG));
        }
        if ![Opcode::ANNOUNCE, Opcode::MAP, Opcode::PEER].contains(&header.opcode) {
            return Err(Refused(ResultCode::UNSUPP_OPCODE, LONG));
        }
        let request = match Request::parse(payload) {
            Ok(request) => request,
            Err(Rejection::Silence) => return Ok(()),
            Err(Rejection::Answer(result)) => return Err(Refused(result, LONG)),
        };
        match request.body {
            Body::Map(map) => self.map(now, arrival, payload, &request, map),
            Body::Peer(peer) => self.peer(now, (arrival, payload), &request, peer),
            _ => self.announce_to(&arrival, &request),
        }
    }

    fn announce_to(&mut self, arrival: &LanArrival, request: &Request) -> Result<(), Refused> {
        if request.options.iter().any(|option| option.code().is_mandatory()) {
            return Err(Refused(ResultCode::UNSUPP_OPTION, LONG));
        }
        let (result, epoch) = (ResultCode::SUCCESS, self.lan_server.epoch());
        let answer = Response { result, lifetime: 0, epoch, body: Body::Announce, options: Vec::new() };
        self.lan_server.counters.pcp += 1;
        self.send_to_lan(arrival, answer.to_bytes());
        Ok(())
    }

    /// RFC 6887 §11.3, in its order.
    fn map(
        &mut self,
        now: Instant,
        arrival: LanArrival,
        payload: &[u8],
        request: &Request,
        map: MapData,
    ) -> Result<(), Refused> {
        let host = match self.host_of(request)? {
            IpAddr::V4(host) => host,
            IpAddr::V6(host) => return self.map_v6(now, (arrival, payload), request, map, host),
        };
        let deletes = request.lifetime == 0;
        let (strict, filters, description, processed) = self.options(request)?;
        let wildcard = is_for_all(map, deletes)?;
        let internal = SocketAddrV4::new(host, map.internal_port);
        let claimed = || {
            let all = self.table.of_internal(map.protocol, internal);
            all.filter_map(|mapping| Some((mapping.key(), mapping.claims.at(now).pcp?))).next()
        };
        // The simple threat model: another nonce is somebody else.
        if let Some((_, claim)) = claimed().filter(|(_, claim)| claim.nonce != map.nonce) {
            return Err(Refused(ResultCode::NOT_AUTHORIZED, claim.ends.secs_left(now)));
        }
        let same = |one: &MappingRequest| (one.protocol, one.internal) == (map.protocol, internal);
        let others = |by: Asker| matches!(by, Asker::Pcp(nonce) if nonce != map.nonce);
        if self.find_pending(|pending| same(&pending.request) && others(pending.request.by)).is_some() {
            return Ok(()); // asked again, it is decided whose it is
        }
        if deletes {
            if strict || !filters.is_empty() {
                return Err(Refused(ResultCode::MALFORMED_OPTION, LONG));
            }
            let claimed = claimed();
            let is_anothers = claimed.is_none() && self.table.find_internal(map.protocol, internal).is_some();
            if is_anothers && !wildcard {
                return Err(Refused(ResultCode::NOT_AUTHORIZED, LONG)); // it was not made by PCP
            }
            let question = MapQuestion { map, lifetime: 0, strict, processed };
            let id = self.ask_for_lan(now, arrival, payload, What::Map(question));
            self.abandon(now, Asker::Pcp(map.nonce), map.protocol, (host, Some(map.internal_port)));
            match claimed {
                Some((key, _)) if !wildcard => self.let_go(now, id, key, Asker::Pcp(map.nonce)),
                _ => self.answer(id, &[]),
            }
            return Ok(());
        }
        if strict && map.external_port == 0 {
            return Err(Refused(ResultCode::MALFORMED_OPTION, LONG)); // §13.2
        }
        let stands = claimed().and_then(|(key, _)| self.table.find(key));
        let asked = self.find_pending(|pending| same(&pending.request) && !others(pending.request.by));
        let before = stands
            .map(|found| found.remote_peer)
            .or_else(|| Some(self.pending.get(&asked?)?.request.remote_peer))
            .flatten();
        let at = stands.map(|found| *found.external.ip()).or(self.external);
        let is_new = stands.is_none() && asked.is_none();
        let remote_peer = match filters[..] {
            // A renewal without one changes none (RFC 6887 §13.3).
            [] => before,
            [Filter { prefix_len: 0, .. }] => None,
            // They add up, and there is room for one.
            [one] if before.is_some() && before != Some(only_host(one)?) => {
                return Err(Refused(ResultCode::EXCESSIVE_REMOTE_PEERS, LONG));
            }
            [one] | [Filter { prefix_len: 0, .. }, one] => Some(only_host(one)?),
            _ => return Err(Refused(ResultCode::EXCESSIVE_REMOTE_PEERS, LONG)),
        };
        let lifetime = request.lifetime.clamp(SHORTEST, LONGEST);
        let wish = map.external_port;
        let suggested = pcp::ip_from_wire(map.external_addr);
        let insists_on = match suggested {
            IpAddr::V4(addr) if strict && !addr.is_unspecified() => Some(addr),
            IpAddr::V6(addr) if strict && !addr.is_unspecified() => {
                return Err(Refused(ResultCode::CANNOT_PROVIDE_EXTERNAL, super::SHORT));
            }
            _ => None,
        };
        if insists_on.is_some_and(|addr| at.is_some_and(|at| addr != at)) {
            return Err(Refused(ResultCode::CANNOT_PROVIDE_EXTERNAL, super::SHORT));
        }
        let wanted = MappingRequest {
            protocol: map.protocol,
            internal,
            external_port: (wish != 0).then_some(wish),
            strict,
            external_addr: insists_on,
            lease: Some(Duration::from_secs(u64::from(lifetime))),
            remote_peer,
            remote_name: None,
            description: description.unwrap_or_else(|| "PCP".to_owned()),
            by: Asker::Pcp(map.nonce),
        };
        if is_new {
            self.note_third_party(arrival.from.ip(), map.protocol, internal.into());
        }
        let question = MapQuestion { map, lifetime, strict: wanted.strict, processed };
        let id = self.ask_for_lan(now, arrival, payload, What::Map(question));
        self.map_for_lan(now, id, arrival.from.ip(), wanted);
        Ok(())
    }

    /// In the order of their appearance (RFC 6887 §7.3).
    #[expect(clippy::type_complexity, reason = "what four options say, read once")]
    pub(super) fn options(
        &self,
        request: &Request,
    ) -> Result<(bool, Vec<Filter>, Option<String>, Vec<PcpOption>), Refused> {
        let (mut strict, mut filters, mut description, mut processed) = (false, Vec::new(), None, Vec::new());
        for option in &request.options {
            match option {
                PcpOption::PreferFailure => strict = true,
                PcpOption::Filter(filter) => filters.push(*filter),
                PcpOption::Description(octets) => {
                    let Some(text) = text(octets).filter(|_| request.lifetime != 0) else { continue };
                    processed.push(PcpOption::Description(text.clone().into()));
                    description = Some(text);
                    continue;
                }
                PcpOption::ThirdParty(_) => drop(self.host_of(request)?),
                other if other.code().is_mandatory() => return Err(Refused(ResultCode::UNSUPP_OPTION, LONG)),
                _ => continue,
            }
            processed.push(option.clone());
        }
        Ok((strict, filters, description, processed))
    }
}

/// Whether it is for all ports; they can be deleted at once, and nothing else.
pub(super) fn is_for_all(map: MapData, deletes: bool) -> Result<bool, Refused> {
    match (map.protocol, map.internal_port) {
        (Protocol::ALL, 1..) => Err(Refused(ResultCode::MALFORMED_REQUEST, LONG)),
        (_, 0) if deletes => Ok(true),
        (Protocol::TCP | Protocol::UDP, 1..) => Ok(false),
        _ => Err(Refused(ResultCode::UNSUPP_PROTOCOL, LONG)),
    }
}

/// One remote host, all of its ports: more the router's own NAT and most providers' do not tell apart.
fn only_host(filter: Filter) -> Result<std::net::Ipv4Addr, Refused> {
    let addr = filter.remote_addr.to_ipv4_mapped();
    if addr.is_none() {
        return Err(Refused(ResultCode::MALFORMED_OPTION, LONG)); // nobody who could come by IPv4
    }
    let one = addr.filter(|_| filter.prefix_len == 128 && filter.remote_port == 0);
    one.ok_or(Refused(ResultCode::EXCESSIVE_REMOTE_PEERS, LONG))
}

/// What of a description is kept: text, without control characters, cut at a character (RFC 7220, security policy).
fn text(octets: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(octets).ok()?;
    let mut kept = String::new();
    for char in text.chars().map(|char| if char.is_control() { ' ' } else { char }) {
        if kept.len() + char.len_utf8() > MAX_DESCRIPTION {
            break;
        }
        kept.push(char);
    }
    Some(kept)
}

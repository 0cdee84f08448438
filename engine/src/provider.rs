//! A provider's side in small: a PCP server (RFC 6887, server half) on a NAT with one external address, without socket,
//! clock or thread. The demonstration runs on it, and the tests that need a server which does what it is told.
//!
//! MAP and ANNOUNCE, with THIRD_PARTY, PREFER_FAILURE, FILTER and DESCRIPTION, and if it is wanted GET; other opcodes and
//! mandatory options are refused as the RFC asks. It gives out ports 1024–65535.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use wire::pcp::{
    self, Body, CLIENT_PORT, MapData, Nonce, Opcode, PcpOption, Protocol, Rejection, Request, RequestHeader,
    Response, ResultCode, SERVER_PORT,
};

use crate::time::{Duration, Instant, Timers};

mod query;

/// What the provider has set up.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// The external address of all mappings.
    pub external: Ipv4Addr,
    /// The shortest lifetime that is granted, in seconds.
    pub shortest: u32,
    /// The longest lifetime that is granted, in seconds.
    pub longest: u32,
    /// How long a freed external port goes to nobody but its last owner (RFC 6887 §15, D-15).
    pub hold: Duration,
    /// Whether THIRD_PARTY is allowed.
    pub third_party: bool,
    /// What is made of PREFER_FAILURE.
    pub prefer_failure: PreferFailure,
    /// Mappings of one subscriber, which is one packet source.
    pub quota: usize,
    /// What is made of DESCRIPTION.
    pub description: Description,
    /// How long a CANNOT_PROVIDE_EXTERNAL is said to last, in seconds. `None`: as long as the mapping in the way has left,
    /// or 30 where there is none.
    pub conflict_lifetime: Option<u32>,
    /// Whether a subscriber may list its mappings with GET ([`wire::pcp::query`]); UNSUPP_OPCODE if not.
    pub query: bool,
}

/// What a server makes of DESCRIPTION, which it may ignore (RFC 7220).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Description {
    /// It is not looked at, and not in the answer.
    Ignored,
    /// The first 128 octets are kept, cut between two characters, and are in the answer. A renewal may change them, and erases
    /// them with an empty text. What is not UTF-8 changes nothing and is not in the answer.
    Stored,
    /// Stored, but MALFORMED_OPTION when the length is no multiple of 4, as the most deployed server does
    /// (spec/clients.md, K-17).
    Malformed,
}

/// What a server makes of PREFER_FAILURE; all three are met in the field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PreferFailure {
    /// As RFC 6887 §13.2 has it.
    Honoured,
    /// SUCCESS with another port, as the most deployed server does (spec/clients.md, K-17).
    PassedOver,
    /// UNSUPP_OPTION.
    Unsupported,
}

impl ProviderConfig {
    /// What a well-behaved provider would have, with this external address.
    pub fn new(external: Ipv4Addr) -> Self {
        Self {
            external,
            shortest: 120,
            longest: 24 * 3600,
            hold: Duration::from_secs(120),
            third_party: false,
            prefer_failure: PreferFailure::Honoured,
            quota: 1000,
            description: Description::Ignored,
            conflict_lifetime: None,
            query: false,
        }
    }
}

/// A mapping of the provider's NAT.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProviderMapping {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Address and port outside.
    pub external: SocketAddrV4,
    /// Address and port inside, as the provider sees them.
    pub internal: SocketAddrV4,
    /// The packet source that asked for it.
    pub subscriber: IpAddr,
    /// The only remote addresses that may come in; empty for all.
    pub filters: Vec<pcp::Filter>,
    /// A text for people, at most 128 octets, never empty.
    pub description: Option<String>,
    /// When it ends unless it is renewed.
    pub ends: Instant,
    nonce: Nonce,
}

/// What has become of the provider's NAT.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NatEvent {
    /// Let this in.
    Opened(ProviderMapping),
    /// Let it in no more.
    Closed(ProviderMapping),
}

#[derive(Debug)]
struct Held {
    nonce: Nonce,
    internal: SocketAddrV4,
    until: Instant,
}

type Port = (Protocol, u16);

/// What a mapping is for: internal address, protocol and port. Lists are in this order ([`wire::pcp::query`]).
type Internal = (Ipv6Addr, Protocol, u16);

/// Remote peers of one mapping (RFC 6887 §13.3: at least one).
const MAX_FILTERS: usize = 32;

/// Octets of a text that is kept (RFC 7220: at least 128).
const MAX_DESCRIPTION: usize = 128;

/// See the module's description.
#[derive(Debug)]
pub struct Provider {
    config: ProviderConfig,
    started: Instant,
    mappings: BTreeMap<Port, ProviderMapping>,
    by_internal: BTreeMap<Internal, Port>,
    /// A subscriber without mappings is not in it.
    by_subscriber: BTreeMap<IpAddr, BTreeMap<Internal, Port>>,
    held: BTreeMap<Port, Held>,
    /// One for each of `held`.
    hold_ends: Timers<Port>,
    ends: Timers<Port>,
    next_port: u16,
    events: VecDeque<NatEvent>,
}

/// The options of a MAP request, read.
#[derive(Default)]
struct MapOptions {
    third_party: Option<IpAddr>,
    strict: bool,
    filters: Vec<pcp::Filter>,
    /// An empty one erases.
    description: Option<String>,
    /// As the answer repeats them.
    processed: Vec<PcpOption>,
}

struct Refused(ResultCode, u32);

impl From<ResultCode> for Refused {
    fn from(result: ResultCode) -> Self {
        Refused(result, result.recommended_lifetime())
    }
}

impl Provider {
    /// A server that has lost all state just now.
    pub fn new(now: Instant, config: ProviderConfig) -> Self {
        Self {
            config,
            started: now,
            mappings: BTreeMap::new(),
            by_internal: BTreeMap::new(),
            by_subscriber: BTreeMap::new(),
            held: BTreeMap::new(),
            hold_ends: Timers::default(),
            ends: Timers::default(),
            next_port: 40_000,
            events: VecDeque::new(),
        }
    }

    /// Its settings, to be changed while it runs.
    pub fn config_mut(&mut self) -> &mut ProviderConfig {
        &mut self.config
    }

    /// All mappings, by protocol and external port.
    pub fn mappings(&self) -> impl Iterator<Item = &ProviderMapping> {
        self.mappings.values()
    }

    /// What has become of the NAT; call until `None`.
    pub fn poll_event(&mut self) -> Option<NatEvent> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.ends.next()
    }

    /// Ends the mappings whose lifetime is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(port) = self.ends.pop_due(now) {
            self.close(now, port);
        }
    }

    /// Forgets everything, as a restart without storage does. The answer is the announcement (RFC 6887 §14.1.2).
    pub fn lose_state(&mut self, now: Instant) -> Vec<u8> {
        for (_, mapping) in std::mem::take(&mut self.mappings) {
            self.events.push_back(NatEvent::Closed(mapping));
        }
        self.by_internal.clear();
        self.by_subscriber.clear();
        self.held.clear();
        self.hold_ends = Timers::default();
        self.ends = Timers::default();
        self.started = now;
        self.response(now, ResultCode::SUCCESS, 0, Body::Announce, Vec::new()).to_bytes()
    }

    /// The answer to one datagram from the subscribers' side; `None` for silence.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        self.handle_timeout(now);
        match self.serve(now, from.ip(), payload) {
            Ok(response) => Some(response.to_bytes()),
            Err(None) => None,
            Err(Some(Refused(result, lifetime))) => {
                Some(pcp::error_response(payload, result, lifetime, self.epoch(now)))
            }
        }
    }

    /// RFC 6887 §8.2, in its order.
    fn serve(&mut self, now: Instant, from: IpAddr, payload: &[u8]) -> Result<Response, Option<Refused>> {
        let rejected = |rejection| match rejection {
            Rejection::Silence => None,
            Rejection::Answer(result) => Some(Refused::from(result)),
        };
        let header = RequestHeader::parse(payload).map_err(rejected)?;
        if pcp::ip_from_wire(header.client_addr) != from.to_canonical() {
            return Err(Some(ResultCode::ADDRESS_MISMATCH.into()));
        }
        let supported = match header.opcode {
            Opcode::ANNOUNCE | Opcode::MAP => true,
            Opcode::GET => self.config.query,
            _ => false,
        };
        if !supported {
            return Err(Some(ResultCode::UNSUPP_OPCODE.into()));
        }
        let request = Request::parse(payload).map_err(rejected)?;
        match request.body {
            Body::Map(map) => self.map(now, from.to_canonical(), map, &request).map_err(Some),
            Body::Get(filters) => self.get(now, from.to_canonical(), filters, &request).map_err(Some),
            Body::Other(..) => Err(Some(ResultCode::MALFORMED_REQUEST.into())), // A GET cut short.
            // No mandatory option is for ANNOUNCE, and those that we do not process are refused (§7.3).
            _ if request.options.iter().any(|option| option.code().is_mandatory()) => {
                Err(Some(ResultCode::UNSUPP_OPTION.into()))
            }
            _ => Ok(self.response(now, ResultCode::SUCCESS, 0, Body::Announce, Vec::new())),
        }
    }

    fn map(
        &mut self,
        now: Instant,
        from: IpAddr,
        map: MapData,
        request: &Request,
    ) -> Result<Response, Refused> {
        let MapOptions { third_party, strict, filters, description, processed } =
            self.map_options(from, request)?;
        let mandatory = strict || !filters.is_empty();
        if (request.lifetime == 0 && mandatory) || (strict && map.external_port == 0) {
            return Err(ResultCode::MALFORMED_OPTION.into()); // §13.2, §13.3
        }
        match (map.protocol, map.internal_port) {
            (Protocol::ALL, 1..) => return Err(ResultCode::MALFORMED_REQUEST.into()), // §11.1
            (Protocol::TCP | Protocol::UDP, 1..) => {}
            _ => return Err(ResultCode::UNSUPP_PROTOCOL.into()),
        }
        let IpAddr::V4(host) = third_party.unwrap_or(from) else {
            return Err(ResultCode::UNSUPP_PROTOCOL.into());
        };
        let internal = SocketAddrV4::new(host, map.internal_port);
        let existing =
            self.by_internal.get(&(host.to_ipv6_mapped(), map.protocol, map.internal_port)).copied();
        if let Some(port) = existing {
            let mapping = &self.mappings[&port];
            if mapping.nonce != map.nonce {
                return Err(Refused(ResultCode::NOT_AUTHORIZED, mapping.ends.secs_left(now))); // §11.3
            }
        }
        if request.lifetime == 0 {
            if let Some(port) = existing {
                self.close(now, port);
            }
            return Ok(self.response(now, ResultCode::SUCCESS, 0, Body::Map(map), processed));
        }
        if let Some(port) = existing
            && strict
            && !(port.1 == map.external_port && self.is_own_address(&map))
        {
            return Err(self.conflict(None, now));
        }
        let before = existing.map_or(Vec::new(), |port| self.mappings[&port].filters.clone());
        let after = filters.into_iter().fold(before.clone(), add_filter);
        if after.len() > MAX_FILTERS {
            return Err(ResultCode::EXCESSIVE_REMOTE_PEERS.into());
        }
        let port = match existing {
            Some(port) => port,
            None => self.open(now, from, internal, &map, strict)?,
        };
        let lifetime = request.lifetime.min(self.config.longest).max(self.config.shortest);
        let ends = now + Duration::from_secs(u64::from(lifetime));
        let mapping = self.mappings.get_mut(&port).expect("found or opened just now");
        mapping.ends = ends;
        mapping.filters = after;
        if let Some(text) = description {
            mapping.description = Some(text).filter(|text| !text.is_empty());
        }
        if existing.is_none() || mapping.filters != before {
            self.events.push_back(NatEvent::Opened(mapping.clone()));
        }
        self.ends.set(port, ends);
        let assigned =
            MapData { external_port: port.1, external_addr: self.config.external.to_ipv6_mapped(), ..map };
        Ok(self.response(now, ResultCode::SUCCESS, lifetime, Body::Map(assigned), processed))
    }

    /// What the options of a MAP request ask.
    fn map_options(&self, from: IpAddr, request: &Request) -> Result<MapOptions, Refused> {
        let mut asked = MapOptions::default();
        for option in &request.options {
            match option {
                PcpOption::ThirdParty(addr) => asked.third_party = Some(self.third_party(from, *addr)?),
                PcpOption::PreferFailure => match self.config.prefer_failure {
                    PreferFailure::Honoured => asked.strict = true,
                    PreferFailure::PassedOver => {}
                    PreferFailure::Unsupported => return Err(ResultCode::UNSUPP_OPTION.into()),
                },
                PcpOption::Filter(filter) => asked.filters.push(*filter),
                PcpOption::Description(octets) => {
                    let Some(text) = self.description(octets)?.filter(|_| request.lifetime != 0) else {
                        continue;
                    };
                    asked.processed.push(PcpOption::Description(text.clone().into()));
                    asked.description = Some(text);
                    continue;
                }
                other if other.code().is_mandatory() => return Err(ResultCode::UNSUPP_OPTION.into()),
                _ => continue,
            }
            asked.processed.push(option.clone());
        }
        Ok(asked)
    }

    /// The host that THIRD_PARTY names (RFC 6887 §13.1).
    fn third_party(&self, from: IpAddr, addr: Ipv6Addr) -> Result<IpAddr, Refused> {
        let host = pcp::ip_from_wire(addr);
        if !self.config.third_party {
            Err(ResultCode::UNSUPP_OPTION.into())
        } else if host == from {
            Err(ResultCode::MALFORMED_REQUEST.into())
        } else {
            Ok(host)
        }
    }

    /// What is kept of a description; `None` if it is passed over (RFC 7220).
    fn description(&self, octets: &[u8]) -> Result<Option<String>, Refused> {
        match self.config.description {
            Description::Ignored => return Ok(None),
            Description::Malformed if !octets.len().is_multiple_of(4) => {
                return Err(ResultCode::MALFORMED_OPTION.into());
            }
            Description::Stored | Description::Malformed => {}
        }
        Ok(std::str::from_utf8(octets).ok().map(|text| {
            let end = text.floor_char_boundary(MAX_DESCRIPTION);
            text.get(..end).unwrap_or_default().to_owned()
        }))
    }

    /// Opens the suggested port, or another one (RFC 6887 §11.3).
    fn open(
        &mut self,
        now: Instant,
        subscriber: IpAddr,
        internal: SocketAddrV4,
        map: &MapData,
        strict: bool,
    ) -> Result<Port, Refused> {
        let protocol = map.protocol;
        if self.by_subscriber.get(&subscriber).map_or(0, BTreeMap::len) >= self.config.quota {
            return Err(ResultCode::USER_EX_QUOTA.into());
        }
        let wish = (protocol, map.external_port);
        let port = if (!strict || self.is_own_address(map)) && self.is_free(now, wish, internal, map.nonce) {
            wish
        } else if strict {
            return Err(self.conflict(self.mappings.get(&wish), now));
        } else {
            let start = self.next_port;
            let found = (start..=65535)
                .chain(1024..start)
                .find(|&port| self.is_free(now, (protocol, port), internal, map.nonce))
                .ok_or(ResultCode::NO_RESOURCES)?;
            self.next_port = found.checked_add(1).unwrap_or(40_000);
            (protocol, found)
        };
        self.held.remove(&port);
        self.hold_ends.cancel(port);
        let mapping = ProviderMapping {
            protocol,
            external: SocketAddrV4::new(self.config.external, port.1),
            internal,
            subscriber,
            filters: Vec::new(),
            description: None,
            ends: now,
            nonce: map.nonce,
        };
        self.by_internal.insert(mapping.key(), port);
        self.by_subscriber.entry(subscriber).or_default().insert(mapping.key(), port);
        self.mappings.insert(port, mapping);
        Ok(port)
    }

    /// CANNOT_PROVIDE_EXTERNAL, because of that mapping or of nobody's (RFC 6887 §13.2).
    fn conflict(&self, other: Option<&ProviderMapping>, now: Instant) -> Refused {
        let left = || other.map_or(ResultCode::SHORT, |mapping| mapping.ends.secs_left(now));
        Refused(ResultCode::CANNOT_PROVIDE_EXTERNAL, self.config.conflict_lifetime.unwrap_or_else(left))
    }

    /// Whether the suggested external address is the one there is, or none.
    fn is_own_address(&self, map: &MapData) -> bool {
        let suggested = pcp::ip_from_wire(map.external_addr);
        suggested.is_unspecified() || suggested == IpAddr::V4(self.config.external)
    }

    fn is_free(&self, now: Instant, port: Port, internal: SocketAddrV4, nonce: Nonce) -> bool {
        let own = |held: &Held| held.internal == internal && held.nonce == nonce;
        port.1 >= 1024
            && port != (Protocol::UDP, CLIENT_PORT)
            && port != (Protocol::UDP, SERVER_PORT)
            && !self.mappings.contains_key(&port)
            && self.held.get(&port).is_none_or(|held| held.until <= now || own(held))
    }

    fn close(&mut self, now: Instant, port: Port) {
        let Some(mapping) = self.mappings.remove(&port) else { return };
        self.by_internal.remove(&mapping.key());
        if let Entry::Occupied(mut own) = self.by_subscriber.entry(mapping.subscriber) {
            own.get_mut().remove(&mapping.key());
            if own.get().is_empty() {
                own.remove();
            }
        }
        self.ends.cancel(port);
        // Two that are over go for each new one: they do not pile up, and no call has to clear a pile away.
        for _ in 0..2 {
            if let Some(over) = self.hold_ends.pop_due(now) {
                self.held.remove(&over);
            }
        }
        let until = now + self.config.hold;
        self.hold_ends.set(port, until);
        self.held.insert(port, Held { nonce: mapping.nonce, internal: mapping.internal, until });
        self.events.push_back(NatEvent::Closed(mapping));
    }

    fn epoch(&self, now: Instant) -> u32 {
        u32::try_from((now - self.started).as_secs()).unwrap_or(u32::MAX)
    }

    fn response(
        &self,
        now: Instant,
        result: ResultCode,
        lifetime: u32,
        body: Body,
        options: Vec<PcpOption>,
    ) -> Response {
        Response { result, lifetime, epoch: self.epoch(now), body, options }
    }
}

/// FILTERs accumulate; one of prefix length 0 drops those before it (RFC 6887 §13.3).
fn add_filter(mut filters: Vec<pcp::Filter>, filter: pcp::Filter) -> Vec<pcp::Filter> {
    if filter.prefix_len == 0 {
        filters.clear();
    } else if !filters.contains(&filter) {
        filters.push(filter);
    }
    filters
}

impl ProviderMapping {
    fn key(&self) -> Internal {
        (self.internal.ip().to_ipv6_mapped(), self.protocol, self.internal.port())
    }

    /// Whether a packet of `remote` may come in.
    pub fn lets_in(&self, remote: Ipv4Addr) -> bool {
        let address = u128::from(remote.to_ipv6_mapped());
        self.filters.is_empty()
            || self.filters.iter().any(|filter| {
                let mask = u128::MAX.checked_shl(128 - u32::from(filter.prefix_len.min(128))).unwrap_or(0);
                address & mask == u128::from(filter.remote_addr) & mask
            })
    }
}

#[cfg(test)]
mod tests;

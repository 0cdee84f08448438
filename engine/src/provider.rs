//! A provider's side in small: a PCP server (RFC 6887, server half) on a NAT with one external address, without socket,
//! clock or thread. The demonstration runs on it, and the tests that need a server which does what it is told.
//!
//! MAP and ANNOUNCE, with THIRD_PARTY, PREFER_FAILURE and FILTER; other opcodes and mandatory options are refused as
//! the RFC asks. It gives out ports 1024–65535.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use wire::pcp::{
    self, Body, CLIENT_PORT, MapData, Nonce, Opcode, PcpOption, Protocol, Rejection, Request, RequestHeader,
    Response, ResultCode, SERVER_PORT,
};

use crate::time::{Duration, Instant, Timers};

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

/// Remote peers of one mapping (RFC 6887 §13.3: at least one).
const MAX_FILTERS: usize = 32;

/// See the module's description.
#[derive(Debug)]
pub struct Provider {
    config: ProviderConfig,
    started: Instant,
    mappings: BTreeMap<Port, ProviderMapping>,
    by_internal: BTreeMap<(Protocol, SocketAddrV4), Port>,
    held: BTreeMap<Port, Held>,
    ends: Timers<Port>,
    next_port: u16,
    events: VecDeque<NatEvent>,
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
            held: BTreeMap::new(),
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
        self.held.clear();
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
        if !matches!(header.opcode, Opcode::ANNOUNCE | Opcode::MAP) {
            return Err(Some(ResultCode::UNSUPP_OPCODE.into()));
        }
        let request = Request::parse(payload).map_err(rejected)?;
        match request.body {
            Body::Map(map) => self.map(now, from.to_canonical(), map, &request).map_err(Some),
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
        let mut third_party = None;
        let (mut strict, mut filters, mut processed) = (false, Vec::new(), Vec::new());
        for option in &request.options {
            match option {
                PcpOption::ThirdParty(addr) => {
                    if !self.config.third_party {
                        return Err(ResultCode::UNSUPP_OPTION.into());
                    }
                    if pcp::ip_from_wire(*addr) == from {
                        return Err(ResultCode::MALFORMED_REQUEST.into()); // §13.1
                    }
                    third_party = Some(pcp::ip_from_wire(*addr));
                }
                PcpOption::PreferFailure => match self.config.prefer_failure {
                    PreferFailure::Honoured => strict = true,
                    PreferFailure::PassedOver => {}
                    PreferFailure::Unsupported => return Err(ResultCode::UNSUPP_OPTION.into()),
                },
                PcpOption::Filter(filter) => filters.push(*filter),
                other if other.code().is_mandatory() => return Err(ResultCode::UNSUPP_OPTION.into()),
                _ => continue,
            }
            processed.push(option.clone());
        }
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
        let existing = self.by_internal.get(&(map.protocol, internal)).copied();
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
            return Err(Refused(ResultCode::CANNOT_PROVIDE_EXTERNAL, 30));
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
        if existing.is_none() || mapping.filters != before {
            self.events.push_back(NatEvent::Opened(mapping.clone()));
        }
        self.ends.set(port, ends);
        let assigned =
            MapData { external_port: port.1, external_addr: self.config.external.to_ipv6_mapped(), ..map };
        Ok(self.response(now, ResultCode::SUCCESS, lifetime, Body::Map(assigned), processed))
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
        if self.mappings.values().filter(|mapping| mapping.subscriber == subscriber).count()
            >= self.config.quota
        {
            return Err(ResultCode::USER_EX_QUOTA.into());
        }
        let wish = (protocol, map.external_port);
        let port = if (!strict || self.is_own_address(map)) && self.is_free(now, wish, internal, map.nonce) {
            wish
        } else if strict {
            let left = self.mappings.get(&wish).map_or(30, |mapping| mapping.ends.secs_left(now));
            return Err(Refused(ResultCode::CANNOT_PROVIDE_EXTERNAL, left));
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
        self.by_internal.insert((protocol, internal), port);
        self.mappings.insert(
            port,
            ProviderMapping {
                protocol,
                external: SocketAddrV4::new(self.config.external, port.1),
                internal,
                subscriber,
                filters: Vec::new(),
                ends: now,
                nonce: map.nonce,
            },
        );
        Ok(port)
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
        self.by_internal.remove(&(mapping.protocol, mapping.internal));
        self.ends.cancel(port);
        self.held.retain(|_, held| held.until > now);
        let until = now + self.config.hold;
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

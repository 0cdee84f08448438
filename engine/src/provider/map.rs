//! MAP (RFC 6887 §11, §15), with port sets (RFC 7753).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use wire::pcp::{CLIENT_PORT, MapData, Protocol, Request, ResultCode, SERVER_PORT};

use super::admission::{Client, Served};
use super::config::MAX_ELEMENTS;
use super::interface::Inside;
use super::journal::MappingKey;
use super::nat::{Asked, Asker, Elsewhere, Renewal, endpoint};
use super::notice::Notice;
use super::options::{MapOptions, add_filter};
use super::pool::Want;
use super::reason::{Reason, Refused};
use super::runs::Runs;
use super::table::{LastAsked, ServerMapping};
use super::{Output, Server, unless_unspecified};
use crate::time::Instant;

/// A MAP request whose options are read.
#[derive(Clone, Debug)]
struct Map<'a> {
    client: Client,
    payload: &'a [u8],
    data: MapData,
    lifetime: u32,
    options: MapOptions,
    asked: Asked,
    /// Octets that the answer has left beside all that and a PORT_SET; `None`: it has no room for these.
    room: Option<usize>,
}

/// Where a new mapping is outside.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) external: SocketAddr,
    pub(super) ports: u16,
    /// What was wanted, where another port may do as well.
    pub(super) elsewhere: Option<Elsewhere>,
}

impl Place {
    fn fixed(external: SocketAddr, ports: u16) -> Self {
        Self { external, ports, elsewhere: None }
    }
}

/// What kind of external endpoint a host gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Realm {
    /// An address and port of the pool.
    Pool,
    /// Its own.
    Pinhole,
}

impl Server {
    /// RFC 6887 §11.3, in its order.
    pub(super) fn map(
        &mut self,
        now: Instant,
        client: &Client,
        payload: &[u8],
        data: MapData,
        request: &Request,
    ) -> Result<Served, Refused> {
        let options = self.map_options(client, request)?;
        if data.protocol == Protocol::ALL && data.internal_port != 0 {
            return Err(Reason::MalformedRequest.into());
        }
        let room = self.room(request, &options);
        let prefixes = if options.prefix64 { self.prefixes(room.unwrap_or(0)) } else { Vec::new() };
        let parity = options.port_set.is_some_and(|set| set.parity);
        let asked = Asked::Map { data, options: options.processed.clone(), parity, prefixes };
        let lifetime = request.lifetime;
        let map = Map { client: *client, payload, data, lifetime, options, asked, room };
        if request.lifetime != 0 {
            self.is_mappable(data.protocol, data.internal_port)?;
            self.realm(&map.options.inside, map.data.external_addr.to_canonical())?;
        }
        let most = self.config.most_ports();
        let wants = map.wants(most);
        if let Some(key) = self.flows.first_in(map.options.inside, data.protocol, data.internal_port, wants) {
            return self.wait(key, client, payload);
        }
        let found = self.table.overlapping(map.options.inside, data.protocol, data.internal_port, wants);
        match found[..] {
            [] => self.map_what_is_not_there(now, &map),
            [key] => self.map_what_is_there(now, &map, key),
            _ => self.map_several(now, &map, &found),
        }
    }

    /// Each is renewed, or deleted, by itself, with an answer (RFC 7753 §4.4.1). Each but the first costs a token, as if it had
    /// been asked for by itself; what is refused is answered once, for all these answers are the same.
    fn map_several(&mut self, now: Instant, map: &Map<'_>, found: &[MappingKey]) -> Result<Served, Refused> {
        // While one of them is being changed, all wait: else what waits for several would be done several times.
        let is_busy = |key: &&MappingKey| {
            self.table.get(key).is_some_and(|mapping| map.is_of_owner(mapping) && mapping.busy.is_some())
        };
        if let Some(&busy) = found.iter().find(is_busy) {
            return self.wait(busy, &map.client, map.payload);
        }
        let mut answered = BTreeSet::new();
        for (n, &key) in found.iter().enumerate() {
            if n > 0 && !self.has_token(now, &map.client) {
                self.counters.refuse(Reason::RateLimited);
                break;
            }
            match self.map_what_is_there(now, map, key) {
                Ok(Served::Answer(bytes)) => self.send(&map.client.arrival, bytes),
                Ok(Served::Waits) => {}
                Err(refused) if !answered.insert(refused.reason) => self.counters.refuse(refused.reason),
                Err(refused) => match self.refused(now, map.payload, refused) {
                    Ok(Served::Answer(bytes)) => self.send(&map.client.arrival, bytes),
                    Ok(Served::Waits) => {}
                    Err(silence) => self.counters.refuse(silence),
                },
            }
        }
        Ok(Served::Waits)
    }

    /// What cannot be mapped at all.
    pub(super) fn is_mappable(&self, protocol: Protocol, internal_port: u16) -> Result<(), Refused> {
        let supported = match (protocol, internal_port) {
            (Protocol::ALL, _) => self.config.all_protocols,
            (protocol, 0) => self.config.all_ports && self.config.protocols.contains(&protocol),
            (protocol, _) => self.config.protocols.contains(&protocol),
        };
        if supported { Ok(()) } else { Err(Reason::UnsupportedProtocol.into()) }
    }

    /// What kind of external endpoint a host gets that suggests this address.
    pub(super) fn realm(&self, inside: &Inside, suggested: IpAddr) -> Result<Realm, Refused> {
        match (inside.addr, inside.softwire) {
            (IpAddr::V4(_), _) => Ok(Realm::Pool),
            (IpAddr::V6(_), Some(_)) => Err(Reason::UnsupportedProtocol.into()),
            (IpAddr::V6(_), None) => match (self.config.firewall, self.config.nat64) {
                (true, true) if suggested.is_ipv4() => Ok(Realm::Pool),
                (true, _) => Ok(Realm::Pinhole),
                (false, true) => Ok(Realm::Pool),
                (false, false) => Err(Reason::UnsupportedProtocol.into()),
            },
        }
    }

    fn map_what_is_there(&mut self, now: Instant, map: &Map<'_>, key: MappingKey) -> Result<Served, Refused> {
        let Some(mapping) = self.table.get(&key) else { return self.map_what_is_not_there(now, map) };
        if !map.is_of_owner(mapping) {
            return Err(Refused::lasting(Reason::ForeignNonce, mapping.ends.secs_left(now)));
        }
        map.makes_sense()?;
        // O-8: the answer tells of the whole set, though the request did not.
        if mapping.ports > 1 && map.options.port_set.is_none() && map.room.is_none() {
            return Err(Reason::MalformedRequest.into());
        }
        if mapping.busy.is_some() {
            return self.wait(key, &map.client, map.payload);
        }
        let asker = map.asker();
        if map.lifetime == 0 {
            self.may_begin(&map.client)?;
            self.close(now, key, Some(asker));
            return Ok(Served::Waits);
        }
        if map.options.strict && !map.suggests(mapping.external) {
            return Err(self.conflict(now, None));
        }
        let filters = self.filters(map, mapping.filters.clone(), mapping.ports)?;
        let description = match &map.options.description {
            Some(text) => Some(text.clone()).filter(|text| !text.is_empty()),
            None => mapping.description.clone(),
        };
        if filters != mapping.filters {
            self.may_begin(&map.client)?;
        }
        let renewal = Renewal {
            granted: self.config.granted(map.lifetime),
            extends_only: false,
            filters,
            description,
            nonce: Some(map.data.nonce),
            asked: map.last_asked(),
        };
        self.change(now, key, renewal, asker);
        Ok(Served::Waits)
    }

    fn map_what_is_not_there(&mut self, now: Instant, map: &Map<'_>) -> Result<Served, Refused> {
        let inside = map.options.inside;
        let key = MappingKey::new(inside, map.data.protocol, map.data.internal_port, None);
        if let Some(&external) = self.statics.get(&key) {
            return self.map_what_is_static(now, map, external);
        }
        map.makes_sense()?;
        if map.lifetime == 0 {
            if self.table.has_outbound(&key) {
                return Err(Reason::IsAnothers.into());
            }
            self.answer_deleted(now, &map.asker(), map.data.internal_port, 1);
            return Ok(Served::Waits);
        }
        self.may_begin(&map.client)?;
        let filters = self.filters(map, Vec::new(), 1)?;
        let realm = self.realm(&inside, map.data.external_addr.to_canonical())?;
        let parity = map.options.port_set.is_some_and(|set| set.parity);
        let most_ports = u16::try_from(MAX_ELEMENTS / (1 + filters.len())).unwrap_or(u16::MAX);
        let mut want = Want {
            endpoint: endpoint(&key),
            subscriber: map.client.subscriber,
            nonce: Some(map.data.nonce),
            suggested: self.suggestion(map.data.external_addr, map.data.external_port, map.options.strict),
            strict: map.options.strict,
            // The more filters, the fewer ports a set has.
            ports: map.wants(self.config.most_ports()).min(most_ports),
            parity: parity.then_some(map.data.internal_port % 2),
            companion: false,
            has_flow: false,
            allowed: Runs::default(),
        };
        if realm == Realm::Pool
            && (map.data.external_port, want.ports) == (0, 1)
            && !self.join_flow(now, &map.client, map.payload, key, &mut want)?
        {
            return Ok(Served::Waits);
        }
        let Place { external, ports, elsewhere } =
            self.assign(now, &map.client, realm, want, map.data.external_addr.to_canonical())?;
        let granted = self.config.granted(map.lifetime);
        let mapping = ServerMapping {
            protocol: map.data.protocol,
            inside,
            internal_port: map.data.internal_port,
            external,
            ports,
            peer: None,
            nonce: Some(map.data.nonce),
            requester: map.client.requester,
            subscriber: map.client.subscriber,
            filters,
            description: map.options.description.clone().filter(|text| !text.is_empty()),
            ends: now + granted,
            granted,
            stored_until: now,
            companion: false,
            asked: Some(map.last_asked()),
            open: false,
            busy: None,
        };
        self.open(mapping, Some(map.asker()), elsewhere);
        Ok(Served::Waits)
    }

    fn map_what_is_static(
        &mut self,
        now: Instant,
        map: &Map<'_>,
        external: SocketAddr,
    ) -> Result<Served, Refused> {
        if map.lifetime == 0 {
            return Err(Reason::IsStatic.into());
        }
        map.makes_sense()?;
        if !map.options.filters.is_empty() {
            // It is not ours to change.
            return Err(Reason::UnsupportedOption.into());
        }
        if map.options.strict && !map.suggests(external) {
            return Err(self.conflict(now, None));
        }
        self.answer_with(now, &map.asker(), external, map.data.internal_port, 1, u32::MAX);
        Ok(Served::Waits)
    }

    fn filters(
        &self,
        map: &Map<'_>,
        before: Vec<wire::pcp::Filter>,
        ports: u16,
    ) -> Result<Vec<wire::pcp::Filter>, Refused> {
        let is_v4 = map.options.inside.addr.is_ipv4();
        let of_family = |filter: &wire::pcp::Filter| {
            filter.prefix_len == 0 || filter.remote_addr.to_ipv4_mapped().is_some() == is_v4
        };
        // RFC 6887 §13.3: of the internal address' family.
        if !map.options.filters.iter().all(of_family) {
            return Err(Reason::MalformedOption.into());
        }
        let after = map.options.filters.iter().copied().fold(before, add_filter);
        let most = self.config.filters.clamp(1, super::MAX_FILTERS);
        if after.len() > most || usize::from(ports) * (1 + after.len()) > MAX_ELEMENTS {
            return Err(Reason::TooManyPeers.into());
        }
        Ok(after)
    }

    /// What is suggested, as the pool knows it. An address that is none of the pool's is no preference, unless it is insisted on.
    pub(super) fn suggestion(
        &self,
        addr: std::net::Ipv6Addr,
        port: u16,
        strict: bool,
    ) -> (Option<std::net::Ipv4Addr>, u16) {
        match unless_unspecified(addr) {
            Some(IpAddr::V4(addr)) => (Some(addr), port),
            // No address of the pool: it cannot be had.
            Some(IpAddr::V6(_)) if strict => (Some(std::net::Ipv4Addr::UNSPECIFIED), port),
            Some(IpAddr::V6(_)) | None => (None, port),
        }
    }

    /// An external endpoint for a new mapping; it is taken.
    pub(super) fn assign(
        &mut self,
        now: Instant,
        client: &Client,
        realm: Realm,
        mut want: Want,
        suggested: IpAddr,
    ) -> Result<Place, Refused> {
        let wanted = want.clone();
        let has = self.charged(now, client);
        let quota = self.config.quota;
        let most = |back: u16| quota.saturating_add(back.into()).saturating_sub(has);
        let left = most(self.pool.suggested_hold(&want));
        if left == 0 {
            return Err(Reason::QuotaExceeded.into());
        }
        if self.table.len() >= self.config.capacity {
            if self.table_full.begins(now) {
                self.outputs.push_back(Output::Notice(Notice::TableFull(self.table.len())));
            }
            return Err(Reason::TableFull.into());
        }
        want.ports = want.ports.min(u16::try_from(left).unwrap_or(u16::MAX));
        let asks = client.requester.client();
        let (addr, port) = (want.endpoint.inside.addr, want.endpoint.port);
        if realm == Realm::Pinhole {
            let mut allowed = Runs::default();
            allowed.add(1, u16::MAX);
            self.config.restrict(&mut allowed, asks, want.endpoint.protocol);
            if want.endpoint.protocol == Protocol::UDP && port != 0 {
                allowed.cut(CLIENT_PORT, SERVER_PORT);
            }
            let ports = match port {
                0 => u16::from(allowed.contains(1, u16::MAX)),
                port => allowed.in_a_row(port).min(want.ports),
            };
            if ports == 0 {
                return Err(Reason::NotAllowed.into());
            }
            let elsewhere = !suggested.is_unspecified() && suggested != addr;
            if want.strict && (elsewhere || want.suggested.1 != port) {
                return Err(self.conflict(now, None));
            }
            return Ok(Place::fixed(SocketAddr::new(addr, port), ports));
        }
        if !self.may_have(client, &want) {
            return Err(Reason::NotAllowed.into());
        }
        want.allowed = self.config.allowed(asks, want.endpoint.protocol);
        // An outbound mapping has an external endpoint already, which the new one shares.
        if let Some((first, of)) = self.pool.of(want.endpoint) {
            let port = if first.port == 0 { 0 } else { of.external.port() + (port - first.port) };
            let (suggested_addr, suggested_port) = want.suggested;
            let elsewhere = suggested_addr.is_some_and(|addr| addr != *of.external.ip());
            if want.strict && (elsewhere || suggested_port != port) {
                return Err(self.conflict(now, None));
            }
            self.pool.share(first);
            if want.companion {
                self.pool.accompany(first);
            }
            return Ok(Place::fixed(SocketAddr::new((*of.external.ip()).into(), port), 1));
        }
        want.ports = want.ports.min(self.pool.gap_behind(want.endpoint));
        match self.pool.find(now, &want) {
            Ok((external, ports)) => {
                // Held ports that it does not get back go on counting.
                let back = self.pool.held_for(&want, external, ports);
                let ports = ports.min(u16::try_from(most(back)).unwrap_or(u16::MAX));
                if ports == 0 {
                    return Err(Reason::QuotaExceeded.into());
                }
                self.pool.take(&want, external, ports);
                let elsewhere = Some(Elsewhere { want: Box::new(wanted), tries: 0 });
                Ok(Place { external: external.into(), ports, elsewhere })
            }
            Err(Reason::CannotProvide) => Err(self.conflict(now, self.in_the_way(&want))),
            Err(Reason::NoPort) => {
                if let Some(addr) = self.pool.address_of(want.subscriber)
                    && self.used_up.entry(addr).or_default().begins(now)
                {
                    self.outputs.push_back(Output::Notice(Notice::PortsUsedUp(addr)));
                }
                Err(Reason::NoPort.into())
            }
            Err(other) => Err(other.into()),
        }
    }

    /// What counts in a subscriber's quota. What is held for it is in it: else who makes and deletes has the whole pool in the
    /// end.
    fn charged(&mut self, now: Instant, client: &Client) -> u32 {
        let of = client.subscriber;
        let ports = self.table.account(of).ports;
        if ports.saturating_add(self.pool.charged(of)) >= self.config.quota {
            // Holds that are over count no more.
            self.pool.end_holds(now, usize::MAX);
        }
        ports.saturating_add(self.pool.charged(of))
    }

    /// Whether there is no room for one more mapping of this client.
    pub(super) fn is_full(&mut self, now: Instant, client: &Client) -> bool {
        self.charged(now, client) >= self.config.quota || self.table.len() >= self.config.capacity
    }

    /// Whether the rules leave an external port, or all of them where that is asked for.
    pub(super) fn may_have(&self, client: &Client, want: &Want) -> bool {
        let (asks, protocol) = (client.requester.client(), want.endpoint.protocol);
        match want.endpoint.port {
            0 => self.config.allows_everything(asks, protocol),
            _ => self.config.allowed(asks, protocol).first_in(0, u16::MAX).is_some(),
        }
    }

    /// How long the mapping lasts that has the suggested port.
    fn in_the_way(&self, want: &Want) -> Option<Instant> {
        let (addr, port) = want.suggested;
        let addr = addr.or_else(|| self.pool.address_of(want.subscriber))?;
        let user = self.pool.user_of(addr, want.endpoint.protocol, port)?;
        let key = MappingKey::new(user.inside, user.protocol, user.port, None);
        self.table.get(&key).map(|mapping| mapping.ends)
    }

    /// CANNOT_PROVIDE_EXTERNAL, because of a mapping that ends then, or of none (RFC 6887 §13.2).
    pub(super) fn conflict(&self, now: Instant, ends: Option<Instant>) -> Refused {
        let left = ends.map_or(ResultCode::SHORT, |ends| ends.secs_left(now));
        Refused::lasting(Reason::CannotProvide, self.config.conflict_lifetime.unwrap_or(left))
    }
}

impl Map<'_> {
    /// Whether a mapping belongs to who sent this.
    fn is_of_owner(&self, mapping: &ServerMapping) -> bool {
        match mapping.nonce {
            Some(nonce) => nonce == self.data.nonce,
            // It belongs to its address.
            None => self.client.host() == mapping.inside,
        }
    }

    /// Internal ports that are asked for (RFC 7753 §4.2), and no more than that.
    fn wants(&self, most: u16) -> u16 {
        match (self.options.port_set, self.data.internal_port) {
            (Some(set), 1..) => set.size.min(u16::MAX - self.data.internal_port + 1).clamp(1, most),
            (None, _) | (_, 0) => 1,
        }
    }

    /// Mandatory options where they have no meaning (RFC 6887 §11.3, §13.2, §13.3; RFC 7753 §4.2).
    fn makes_sense(&self) -> Result<(), Refused> {
        let MapOptions { strict, filters, port_set, .. } = &self.options;
        let delete = self.lifetime == 0;
        let nothing_to_insist_on = *strict && self.data.external_port == 0 && !delete;
        let set = port_set.is_some_and(|set| set.first_internal_port != self.data.internal_port || *strict);
        if delete && (*strict || !filters.is_empty()) || nothing_to_insist_on || set && !delete {
            return Err(Reason::MalformedOption.into());
        }
        Ok(())
    }

    /// Whether `external` is what is suggested.
    fn suggests(&self, external: SocketAddr) -> bool {
        self.data.external_port == external.port()
            && unless_unspecified(self.data.external_addr).is_none_or(|addr| addr == external.ip())
    }

    fn asker(&self) -> Asker {
        Asker { arrival: self.client.arrival, payload: self.payload.to_vec(), asked: self.asked.clone() }
    }

    fn last_asked(&self) -> LastAsked {
        LastAsked {
            arrival: self.client.arrival,
            strict: self.options.strict,
            suggested: (self.data.external_addr.to_canonical(), self.data.external_port),
        }
    }
}

//! NAT-PMP (RFC 6886), on the same table as PCP.
//!
//! A mapping belongs to its source address. One that PCP has made is told (N-5) and may be made to last longer, but is neither
//! shortened nor deleted: its owner is known by a nonce that NAT-PMP has no place for.

use wire::natpmp::{self, Rejection, Request, Transport};
use wire::pcp::{NO_ADDR_V4, Protocol};

use super::Server;
use super::admission::{Client, Served};
use super::journal::MappingKey;
use super::map::{Place, Realm};
use super::nat::{Asked, Asker, Batch, Renewal, endpoint};
use super::pool::Want;
use super::reason::{Kind, Reason, Refused};
use super::runs::Runs;
use super::table::{LastAsked, ServerMapping};
use crate::time::{Duration, Instant};

/// What a client asks of its mapping.
#[derive(Clone, Copy, Debug)]
struct Asks {
    protocol: Protocol,
    internal_port: u16,
    external_port: u16,
    lifetime: u32,
}

impl Server {
    /// RFC 6886 §3.5; the answer to what is refused is NAT-PMP's own.
    pub(super) fn serve_natpmp(
        &mut self,
        now: Instant,
        client: &Client,
        payload: &[u8],
    ) -> Result<Served, Reason> {
        let epoch = self.epoch(now);
        let request = match Request::parse(payload) {
            Ok(request) => request,
            Err(Rejection::Silence) => return Err(Reason::HeaderTooShort),
            Err(Rejection::Answer(result)) => {
                self.counters.refuse(Reason::UnsupportedOpcode);
                return Ok(Served::Answer(natpmp::error_response(payload, result, epoch)));
            }
        };
        let served = match request {
            Request::ExternalAddress => self.external_address(now, client),
            Request::Map { protocol, internal_port: 0, external_port, lifetime } => {
                self.delete_all(now, client, protocol, external_port, lifetime, request)
            }
            Request::Map { protocol, internal_port, external_port, lifetime } => {
                let asks = Asks { protocol: protocol.into(), internal_port, external_port, lifetime };
                let asked = Asked::NatPmp(request);
                let asker = Asker { arrival: client.arrival, payload: payload.to_vec(), asked };
                match lifetime {
                    0 => self.delete_one(now, client, asks, asker),
                    _ => self.can_have_mappings(client).and_then(|()| self.map_one(now, client, asks, asker)),
                }
            }
        };
        served.or_else(|refused| {
            refused.reason.result().ok_or(refused.reason)?;
            self.counters.refuse(refused.reason);
            Ok(Served::Answer(request.refused(refused.reason.natpmp_result(), epoch).to_bytes()))
        })
    }

    fn external_address(&mut self, now: Instant, client: &Client) -> Result<Served, Refused> {
        let addr = self.pool.address_of(client.subscriber).ok_or(Reason::NoAddress)?;
        let (result, epoch) = (natpmp::ResultCode::SUCCESS, self.epoch(now));
        self.counters.grant(Kind::NatPmpAddress);
        Ok(Served::Answer(natpmp::Response::ExternalAddress { result, epoch, addr }.to_bytes()))
    }

    /// N-9: all of the client's, those of one protocol.
    fn delete_all(
        &mut self,
        now: Instant,
        client: &Client,
        protocol: Transport,
        external_port: u16,
        lifetime: u32,
        request: Request,
    ) -> Result<Served, Refused> {
        if (external_port, lifetime) != (0, 0) {
            return Err(Reason::MalformedRequest.into());
        }
        let key = |port| MappingKey::new(client.host(), protocol.into(), port, None);
        let all = self.table.from(key(0)..=key(u16::MAX));
        let (ours, others): (Vec<_>, Vec<_>) = all
            .map(|mapping| (mapping.key(), mapping.busy.is_some(), mapping.nonce.is_none()))
            .partition(|&(.., ours)| ours);
        if let Some(&(busy, ..)) = ours.iter().find(|&&(_, busy, _)| busy) {
            return self.wait(busy, client, &request.to_bytes());
        }
        if let Some(asked) = self.flows.first_in(client.host(), protocol.into(), 0, u16::MAX) {
            return self.wait(asked, client, &request.to_bytes());
        }
        let fixed = self.statics.range(key(0)..=key(u16::MAX)).next().map(|_| Reason::IsStatic);
        let failed = fixed.or(others.first().map(|_| Reason::IsAnothers));
        let number = self.number();
        // One more than there are, so that it is answered here when there are none.
        let batch = Batch { left: ours.len() + 1, failed, arrival: client.arrival, request };
        self.batches.insert(number, batch);
        for (key, ..) in ours {
            let (arrival, asked) = (client.arrival, Asked::Batch(number));
            self.close(now, key, Some(Asker { arrival, payload: Vec::new(), asked }));
        }
        self.one_of_batch(now, number, None);
        Ok(Served::Waits)
    }

    fn delete_one(
        &mut self,
        now: Instant,
        client: &Client,
        asks: Asks,
        asker: Asker,
    ) -> Result<Served, Refused> {
        let key = MappingKey::new(client.host(), asks.protocol, asks.internal_port, None);
        if self.flows.asker(&key).is_some() {
            return self.wait(key, client, &asker.payload);
        }
        let found = self.table.overlapping(client.host(), asks.protocol, asks.internal_port, 1);
        match found.first().and_then(|key| self.table.get(key)) {
            Some(mapping) if mapping.nonce.is_some() => return Err(Reason::IsAnothers.into()),
            Some(mapping) if mapping.busy.is_some() => return self.wait(key, client, &asker.payload),
            Some(_) => {
                self.may_begin(client)?;
                self.close(now, key, Some(asker));
            }
            None if self.statics.contains_key(&key) => return Err(Reason::IsStatic.into()),
            None => self.answer_deleted(now, &asker, asks.internal_port, 1),
        }
        Ok(Served::Waits)
    }

    fn map_one(
        &mut self,
        now: Instant,
        client: &Client,
        asks: Asks,
        asker: Asker,
    ) -> Result<Served, Refused> {
        let host = client.host();
        // N-7: it may be shorter than was asked, and is not longer.
        let seconds = asks.lifetime.min(self.config.longest.max(self.config.shortest)).max(1);
        let granted = Duration::from_secs(seconds.into());
        let last_asked = LastAsked {
            arrival: client.arrival,
            strict: false,
            suggested: (std::net::Ipv4Addr::UNSPECIFIED.into(), asks.external_port),
        };
        self.is_mappable(asks.protocol, asks.internal_port)?;
        let key = MappingKey::new(host, asks.protocol, asks.internal_port, None);
        if self.flows.asker(&key).is_some() {
            return self.wait(key, client, &asker.payload);
        }
        let found = self.table.overlapping(host, asks.protocol, asks.internal_port, 1);
        if let Some(mapping) = found.first().and_then(|key| self.table.get(key)) {
            let key = mapping.key();
            if mapping.busy.is_some() {
                return self.wait(key, client, &asker.payload);
            }
            let renewal = Renewal {
                granted,
                extends_only: mapping.nonce.is_some(),
                filters: mapping.filters.clone(),
                description: mapping.description.clone(),
                nonce: None,
                asked: last_asked,
            };
            self.change(now, key, renewal, asker);
            return Ok(Served::Waits);
        }
        if let Some(&external) = self.statics.get(&key) {
            self.answer_with(now, &asker, external, asks.internal_port, 1, asks.lifetime);
            return Ok(Served::Waits);
        }
        self.may_begin(client)?;
        let mut want = Want {
            endpoint: endpoint(&key),
            subscriber: client.subscriber,
            nonce: None,
            suggested: self.suggestion(NO_ADDR_V4, asks.external_port, false),
            strict: false,
            ports: 1,
            parity: None,
            companion: true,
            has_flow: false,
            allowed: Runs::default(),
        };
        if asks.external_port == 0 && !self.join_flow(now, client, &asker.payload, key, &mut want)? {
            return Ok(Served::Waits);
        }
        let Place { external, ports, elsewhere } =
            self.assign(now, client, Realm::Pool, want, NO_ADDR_V4.to_canonical())?;
        let mapping = ServerMapping {
            protocol: asks.protocol,
            inside: host,
            internal_port: asks.internal_port,
            external,
            ports,
            peer: None,
            nonce: None,
            requester: client.requester,
            subscriber: client.subscriber,
            filters: Vec::new(),
            description: None,
            ends: now + granted,
            granted,
            stored_until: now,
            companion: true,
            asked: Some(last_asked),
            open: false,
            busy: None,
        };
        self.open(mapping, Some(asker), elsewhere);
        Ok(Served::Waits)
    }
}

//! PEER (RFC 6887 §12): a mapping towards one remote endpoint, as if the host inside had sent a packet there.

use std::net::SocketAddr;

use wire::pcp::{self, PeerData, Protocol, Request};

use super::admission::{Client, Served, is_host};
use super::journal::MappingKey;
use super::map::{Place, Realm};
use super::nat::{Asked, Asker, Renewal, endpoint};
use super::pool::Want;
use super::reason::{Reason, Refused};
use super::runs::Runs;
use super::table::{LastAsked, ServerMapping};
use super::{Server, unless_unspecified};
use crate::time::{Duration, Instant};

impl Server {
    /// RFC 6887 §12.3, in its order.
    pub(super) fn peer(
        &mut self,
        now: Instant,
        client: &Client,
        payload: &[u8],
        data: PeerData,
        request: &Request,
    ) -> Result<Served, Refused> {
        let options = self.map_options(client, request)?;
        let inside = options.inside;
        if request.option(pcp::OptionCode::PREFER_FAILURE).is_some() {
            return Err(Reason::MalformedRequest.into());
        }
        // RFC 6887 §7.3: it would have no meaning.
        if !options.filters.is_empty() {
            return Err(Reason::MalformedOption.into());
        }
        let remote = SocketAddr::new(pcp::ip_from_wire(data.remote_addr), data.remote_port);
        if data.protocol == Protocol::ALL
            || data.internal_port == 0
            || remote.port() == 0
            || remote.is_ipv4() != inside.addr.is_ipv4()
            || !is_host(remote.ip())
        {
            return Err(Reason::MalformedRequest.into());
        }
        self.is_mappable(data.protocol, data.internal_port)?;
        let suggested = data.external_addr.to_canonical();
        let realm = self.realm(&inside, suggested)?;
        let key = MappingKey::new(inside, data.protocol, data.internal_port, Some(remote));
        let inbound = MappingKey { peer: None, ..key };
        let asked = Asked::Peer { data, options: options.processed.clone() };
        let asker = Asker { arrival: client.arrival, payload: payload.to_vec(), asked };
        // It can neither shorten nor delete: with 0 it asks how long there is left.
        let granted = match request.lifetime {
            0 => Duration::ZERO,
            lifetime => self.config.granted(lifetime),
        };
        let last_asked =
            LastAsked { arrival: client.arrival, strict: false, suggested: (suggested, data.external_port) };
        let text = options.description.map(|text| Some(text).filter(|text| !text.is_empty()));
        if let Some(mapping) = self.table.get(&key) {
            if mapping.nonce != Some(data.nonce) {
                return Err(Refused::lasting(Reason::ForeignNonce, mapping.ends.secs_left(now)));
            }
            if mapping.busy.is_some() {
                return self.wait(key, client, payload);
            }
            let renewal = Renewal {
                granted,
                extends_only: true,
                filters: Vec::new(),
                description: text.unwrap_or_else(|| mapping.description.clone()),
                nonce: Some(data.nonce),
                asked: last_asked,
            };
            self.change(now, key, renewal, asker);
            return Ok(Served::Waits);
        }
        if let Some(&external) = self.statics.get(&inbound) {
            self.answer_with(now, &asker, external, data.internal_port, 1, u32::MAX);
            return Ok(Served::Waits);
        }
        if request.lifetime == 0 {
            self.answer_deleted(now, &asker, data.internal_port, 1);
            return Ok(Served::Waits);
        }
        self.may_begin(client)?;
        // What is mapped for everybody is mapped for this one: where, is told whatever was suggested.
        let is_mapped = !self.table.overlapping(inside, data.protocol, data.internal_port, 1).is_empty();
        let has_wish = unless_unspecified(data.external_addr).is_some() || data.external_port != 0;
        let mut want = Want {
            endpoint: endpoint(&inbound),
            subscriber: client.subscriber,
            nonce: Some(data.nonce),
            suggested: self.suggestion(data.external_addr, data.external_port, has_wish),
            strict: has_wish && !is_mapped,
            ports: 1,
            parity: None,
            companion: false,
            has_flow: false,
            allowed: Runs::default(),
        };
        if realm == Realm::Pool && !self.join_flow(now, client, payload, key, &mut want)? {
            return Ok(Served::Waits);
        }
        let Place { external, ports, elsewhere } = self.assign(now, client, realm, want, suggested)?;
        let mapping = ServerMapping {
            protocol: data.protocol,
            inside,
            internal_port: data.internal_port,
            external,
            ports,
            peer: Some(remote),
            nonce: Some(data.nonce),
            requester: client.requester,
            subscriber: client.subscriber,
            filters: Vec::new(),
            description: text.flatten(),
            ends: now + granted,
            granted,
            stored_until: now,
            companion: false,
            asked: Some(last_asked),
            open: false,
            busy: None,
        };
        self.open(mapping, Some(asker), elsewhere);
        Ok(Served::Waits)
    }
}

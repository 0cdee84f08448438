//! Mapping updates (RFC 6887 §14.2): a mapping that had to move to another external endpoint is told to its client, unasked, at
//! the address and port that it asked from last.

use std::collections::BTreeMap;

use wire::pcp::{self, Body, MapData, Nonce, PcpOption, PeerData, PortSet, Response, ResultCode};

use super::Server;
use super::journal::MappingKey;
use super::table::{LastAsked, ServerMapping};
use crate::time::{Duration, Instant, Timers};

/// So often; the first gap, which doubles.
const TIMES: u32 = 3;
const FIRST_GAP: Duration = Duration::from_millis(250);
/// So many in one turn: between two turns, somebody may ask something.
const AT_ONCE: usize = 64;

/// Whom there is something to tell.
#[derive(Debug, Default)]
pub(super) struct Updates {
    due: Timers<MappingKey>,
    told: BTreeMap<MappingKey, u32>,
}

impl Updates {
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.next()
    }

    /// The client has asked meanwhile, or there is no such mapping any more.
    pub(super) fn cancel(&mut self, key: MappingKey) {
        if self.due.cancel(key) {
            self.told.remove(&key);
        }
    }
}

impl Server {
    /// The mapping has moved.
    pub(super) fn has_moved(&mut self, now: Instant, key: MappingKey) {
        // NAT-PMP has an announcement for it (N-13).
        let is_told =
            self.table.get(&key).is_some_and(|moved| moved.asked.is_some() && moved.nonce.is_some());
        if self.config.updates && is_told {
            self.updates.due.set(key, now);
            self.updates.told.insert(key, 0);
        }
    }

    pub(super) fn tell_updates(&mut self, now: Instant) {
        for _ in 0..AT_ONCE {
            let Some(key) = self.updates.due.pop_due(now) else { return };
            let told = self.updates.told.remove(&key).unwrap_or(0) + 1;
            let Some((asked, response)) = self.update(now, &key) else { continue };
            self.send(&asked.arrival, response.to_bytes());
            if told < TIMES {
                self.updates.told.insert(key, told);
                self.updates.due.set(key, now + FIRST_GAP * 2_u32.pow(told - 1));
            }
        }
    }

    /// What the last request would be answered now. Who has asked for one external endpoint and no other is told that it has
    /// gone; the mapping stands where it is now, until it is asked about or ends.
    fn update(&self, now: Instant, key: &MappingKey) -> Option<(LastAsked, Response)> {
        let mapping = self.table.get(key).filter(|mapping| mapping.is_open())?;
        let (asked, nonce) = (mapping.asked?, mapping.nonce?);
        let is_same = asked.suggested == (mapping.external.ip(), mapping.external.port());
        let (result, lifetime, external) = if asked.strict && !is_same {
            (ResultCode::CANNOT_PROVIDE_EXTERNAL, ResultCode::SHORT, asked.suggested)
        } else {
            let external = (mapping.external.ip(), mapping.external.port());
            (ResultCode::SUCCESS, mapping.ends.secs_left(now), external)
        };
        let (external_addr, external_port) = (pcp::ip_to_wire(external.0), external.1);
        let body = body(mapping, nonce, external_addr, external_port);
        let mut options = Vec::new();
        if mapping.inside.addr != asked.arrival.from.ip().to_canonical() {
            options.push(PcpOption::ThirdParty(pcp::ip_to_wire(mapping.inside.addr)));
        }
        if result != ResultCode::SUCCESS {
            options.push(PcpOption::PreferFailure);
        }
        options.extend(mapping.filters.iter().copied().map(PcpOption::Filter));
        if mapping.ports > 1 {
            let (size, first_internal_port) = (mapping.ports, mapping.internal_port);
            options.push(PcpOption::PortSet(PortSet { size, first_internal_port, parity: false }));
        }
        Some((asked, Response { result, lifetime, epoch: self.epoch(now), body, options }))
    }
}

fn body(
    mapping: &ServerMapping,
    nonce: Nonce,
    external_addr: std::net::Ipv6Addr,
    external_port: u16,
) -> Body {
    let (protocol, internal_port) = (mapping.protocol, mapping.internal_port);
    match mapping.peer {
        None => Body::Map(MapData { nonce, protocol, internal_port, external_port, external_addr }),
        Some(remote) => Body::Peer(PeerData {
            nonce,
            protocol,
            internal_port,
            external_port,
            external_addr,
            remote_port: remote.port(),
            remote_addr: pcp::ip_to_wire(remote.ip()),
        }),
    }
}

//! NAT-PMP on the LAN side (RFC 6886; rows N-1 to N-14).

use std::net::{Ipv4Addr, SocketAddrV4};

use wire::natpmp::{self, Rejection, Request, Response, Transport};
use wire::pcp::Protocol;

use super::{LONGEST, LanArrival, What};
use crate::claims::Asker;
use crate::gateway::Gateway;
use crate::gateway::mappings::v4;
use crate::request::{MappingRequest, Refusal};
use crate::table::{Key, Mapping};
use crate::time::{Duration, Instant};

/// A request that waits; that for the external address never does.
#[derive(Debug)]
pub(super) struct NatPmpQuestion {
    request: Request,
    protocol: Transport,
    internal_port: u16,
    /// Seconds, as far as they can be granted.
    lifetime: u32,
}

impl NatPmpQuestion {
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol.into()
    }

    pub(super) fn lifetime(&self) -> u32 {
        self.lifetime
    }

    pub(super) fn granted(&self, external_port: u16, lifetime: u32, epoch: u32) -> Response {
        let (result, protocol, internal_port) =
            (natpmp::ResultCode::SUCCESS, self.protocol, self.internal_port);
        Response::Map { result, epoch, protocol, internal_port, external_port, lifetime }
    }

    pub(super) fn refused(&self, result: natpmp::ResultCode, epoch: u32) -> Response {
        self.request.refused(result, epoch)
    }
}

impl Gateway {
    pub(super) fn serve_nat_pmp(&mut self, now: Instant, arrival: LanArrival, payload: &[u8]) {
        let epoch = self.lan_server.epoch();
        let request = match Request::parse(payload) {
            Ok(request) => request,
            Err(Rejection::Silence) => {
                self.lan_server.counters.ignored += 1;
                return;
            }
            Err(Rejection::Answer(result)) => {
                self.lan_server.counters.refused += 1;
                return self.send_to_lan(&arrival, natpmp::error_response(payload, result, epoch));
            }
        };
        let Some(host) = v4(arrival.from.ip()) else { return };
        match request {
            Request::ExternalAddress => self.tell_external(&arrival, request, host),
            Request::Map { protocol, internal_port, external_port, lifetime } => {
                let lifetime = lifetime.min(LONGEST);
                let question = NatPmpQuestion { request, protocol, internal_port, lifetime };
                let id = self.ask_for_lan(now, arrival, payload, What::NatPmp(question));
                let internal = SocketAddrV4::new(host, internal_port);
                match (internal_port, external_port, lifetime) {
                    (0, 0, 0) => self.delete_all_nat_pmp(now, id, protocol.into(), host),
                    (0, ..) => self.refuse(id, Refusal::NotAuthorized),
                    (_, _, 0) => self.delete_nat_pmp(now, id, protocol.into(), internal),
                    _ => {
                        let wanted = MappingRequest {
                            protocol: protocol.into(),
                            internal,
                            external_port: (external_port != 0).then_some(external_port),
                            strict: false,
                            external_addr: None,
                            lease: Some(Duration::from_secs(u64::from(lifetime))),
                            remote_peer: None,
                            remote_name: None,
                            description: "NAT-PMP".to_owned(),
                            by: Asker::NatPmp,
                        };
                        self.map_for_lan(now, id, arrival.from.ip(), wanted);
                    }
                }
            }
        }
    }

    /// RFC 6886 §3.2: as this host knows it.
    fn tell_external(&mut self, arrival: &LanArrival, request: Request, host: Ipv4Addr) {
        let epoch = self.lan_server.epoch();
        let answer = match self.external.map(|all| self.table.external_of(host).unwrap_or(all)) {
            Some(addr) => {
                self.lan_server.counters.nat_pmp += 1;
                Response::ExternalAddress { result: natpmp::ResultCode::SUCCESS, epoch, addr }
            }
            None => {
                self.lan_server.counters.refused += 1;
                request.refused(natpmp::ResultCode::NETWORK_FAILURE, epoch)
            }
        };
        self.send_to_lan(arrival, answer.to_bytes());
    }

    /// N-8: what is not there is deleted; what another protocol made is not ours to delete.
    fn delete_nat_pmp(
        &mut self,
        now: Instant,
        id: super::RequestId,
        protocol: Protocol,
        internal: SocketAddrV4,
    ) {
        self.abandon(now, Asker::NatPmp, protocol, (*internal.ip(), Some(internal.port())));
        let all = self.table.of_internal(protocol, internal);
        let claimed = all.clone().find(|mapping| mapping.claims.at(now).nat_pmp.is_some()).map(Mapping::key);
        let anothers = all.count() > 0;
        match claimed {
            Some(key) => self.let_go(now, id, key, Asker::NatPmp),
            None if anothers => self.refuse(id, Refusal::NotAuthorized),
            None => self.answer(id, &[]),
        }
    }

    /// N-9: all of the host's of one protocol.
    fn delete_all_nat_pmp(&mut self, now: Instant, id: super::RequestId, protocol: Protocol, host: Ipv4Addr) {
        self.abandon(now, Asker::NatPmp, protocol, (host, None));
        let claimed = |mapping: &&Mapping| {
            mapping.protocol == protocol
                && *mapping.internal.ip() == host
                && mapping.claims.at(now).nat_pmp.is_some()
        };
        let (shared, alone): (Vec<Mapping>, Vec<Mapping>) = self
            .table
            .iter()
            .filter(claimed)
            .cloned()
            .partition(|mapping| mapping.claims.has_others_than(Asker::NatPmp, now));
        for mapping in shared {
            self.give_up_claim(now, mapping.key(), Asker::NatPmp);
        }
        let keys: Vec<Key> = alone.iter().map(Mapping::key).collect();
        if keys.is_empty() { self.answer(id, &[]) } else { self.delete_all(now, id, keys) }
    }
}

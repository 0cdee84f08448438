//! Requests for what another protocol of the same host has just asked for, or is just giving back: they wait for what comes of that.

use std::net::{IpAddr, Ipv4Addr};

use wire::pcp::Protocol;

use crate::claims::Asker;
use crate::gateway::pending::{Pending, Purpose};
use crate::gateway::{Gateway, RequestId};
use crate::request::{MappingRequest, Refusal};
use crate::table::{Health, Mapping};
use crate::time::Instant;
use crate::uplink::FlowId;

impl Gateway {
    /// One mapping is wanted of which another protocol of the same host is asking for just now, or which it is just giving back: both are
    /// about the same, so this one waits for what comes of that.
    pub(in super::super) fn defer(
        &mut self,
        id: RequestId,
        flow: FlowId,
        from: IpAddr,
        request: MappingRequest,
    ) {
        self.lan_server.deferred.insert(id, (flow, from, request));
    }

    /// Whether it waits for what another protocol has asked for; it does no more.
    pub(in super::super) fn undefer(&mut self, id: RequestId) -> bool {
        self.lan_server.deferred.remove(&id).is_some()
    }

    /// The host is gone.
    pub(in super::super) fn refuse_deferred_of(&mut self, host: Ipv4Addr) {
        let of_host = |(_, (_, _, request)): &(&RequestId, &(FlowId, IpAddr, MappingRequest))| {
            *request.internal.ip() == host
        };
        let gone: Vec<RequestId> =
            self.lan_server.deferred.iter().filter(of_host).map(|(&id, _)| id).collect();
        for id in gone {
            self.lan_server.deferred.remove(&id);
            self.refuse(id, Refusal::Released);
        }
    }

    /// At the end of a turn: what has become of those.
    pub(in super::super) fn resume_deferred(&mut self, now: Instant) -> bool {
        let decided = |(_, (flow, ..)): &(&RequestId, &(FlowId, IpAddr, MappingRequest))| {
            let goes = |mapping: &Mapping| mapping.health == Health::Deleting;
            !self.pending.contains_key(flow) && !self.table.find_flow(*flow).is_some_and(goes)
        };
        let Some((&id, _)) = self.lan_server.deferred.iter().find(decided) else { return false };
        let (_, from, request) = self.lan_server.deferred.remove(&id).expect("it has just been found");
        match request.by {
            Asker::Igd => self.add(now, id, &self.host_of_request(&request, from), request),
            Asker::Pcp(_) | Asker::NatPmp => self.map_for_lan(now, id, from, request),
            Asker::Peer(_) => self.peer_by_mapping(now, id, from, request),
        }
        true
    }

    /// What is on its way for the same internal port is waited for; otherwise the request comes back.
    pub(super) fn wait_for_pending(
        &mut self,
        now: Instant,
        id: RequestId,
        from: IpAddr,
        request: MappingRequest,
    ) -> Option<MappingRequest> {
        let same =
            |one: &MappingRequest| (one.protocol, one.internal) == (request.protocol, request.internal);
        if let Some(flow) = self.find_pending(|pending| same(&pending.request)) {
            let wants = |one: &MappingRequest| {
                (one.external_port, one.strict, one.external_addr, one.remote_peer, one.by)
            };
            let joins = |pending: &Pending| {
                pending.purpose == Purpose::Add && wants(&pending.request) == wants(&request)
            };
            match self.pending.get(&flow).is_some_and(joins) {
                true => self.join(now, id, flow, request),
                false => self.defer(id, flow, from, request),
            }
            return None;
        }
        match self.given_back_for(&request) {
            Some(flow) => self.defer(id, flow, from, request),
            None => return Some(request),
        }
        None
    }

    /// What the host is just giving back of the port that it suggests, or of its internal port when it has no other mapping for that: a
    /// program that speaks two protocols at once would end with a second one.
    fn given_back_for(&self, request: &MappingRequest) -> Option<FlowId> {
        let goes = |mapping: &&Mapping| mapping.health == Health::Deleting;
        let suggested = self
            .find_at(request)
            .filter(|mapping| goes(&mapping) && mapping.internal.ip() == request.internal.ip());
        let mut all = self.table.of_internal(request.protocol, request.internal);
        let none_stays = all.clone().all(|mapping| goes(&mapping));
        let internal = all.next().filter(|_| none_stays).map(|mapping| mapping.flow);
        suggested.map(|mapping| mapping.flow).or(internal)
    }

    /// Its client wants no more what it has asked for and has not got: nothing comes of it.
    pub(super) fn abandon(
        &mut self,
        now: Instant,
        by: Asker,
        protocol: Protocol,
        (host, port): (Ipv4Addr, Option<u16>),
    ) {
        let is_it = |request: &MappingRequest| {
            request.by == by
                && request.protocol == protocol
                && *request.internal.ip() == host
                && port.is_none_or(|port| request.internal.port() == port)
        };
        let deferred = self.lan_server.deferred.iter().filter(|(_, (.., request))| is_it(request));
        for id in deferred.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.lan_server.deferred.remove(&id);
            self.forget_question(id);
        }
        while let Some(flow) = self.find_pending(|pending| is_it(&pending.request)) {
            let waiters = self.pending.get_mut(&flow).map(|pending| std::mem::take(&mut pending.waiters));
            for id in waiters.unwrap_or_default() {
                self.forget_question(id);
            }
            self.fail(now, flow, Refusal::NoAnswer);
        }
    }
}

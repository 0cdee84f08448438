//! MAP and PEER over IPv6 (RFC 6887 §2.2, §11, §12): the client's address is its own out there, so what it gets is a pinhole.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use wire::pcp::{self, Filter, MapData, Request, ResultCode};

use super::super::pinholes::Wanted;
use super::super::waiting::Form;
use super::super::{Gateway, RequestId};
use super::pcp_server::{MapQuestion, Refused, is_for_all};
use super::peer::PeerQuestion;
use super::{LONG, LONGEST, LanArrival, SHORT, SHORTEST, What, whole_seconds};
use crate::claims::Asker;
use crate::pinholes::{Endpoint, Flows, is_of_the_internet};
use crate::time::{Duration, Instant};
use crate::uplink::Grant;

/// Who may come in: a remote host and a remote port.
type Remote = (Option<Ipv6Addr>, Option<u16>);

impl Gateway {
    /// RFC 6887 §11.3, in its order, as far as [`Gateway::map`](super::pcp_server) has not looked.
    pub(super) fn map_v6(
        &mut self,
        now: Instant,
        (arrival, payload): (LanArrival, &[u8]),
        request: &Request,
        map: MapData,
        addr: Ipv6Addr,
    ) -> Result<(), Refused> {
        if !self.allows_pinholes() {
            return Err(Refused(ResultCode::NOT_AUTHORIZED, LONG));
        }
        let deletes = request.lifetime == 0;
        let (strict, filters, description, processed) = self.options(request)?;
        is_for_all(map, deletes)?;
        let to = Endpoint { addr, protocol: map.protocol, port: map.internal_port };
        let claimed = self.pinhole_by_pcp(now, to);
        // The simple threat model: another nonce is somebody else.
        if let Some((_, claim)) = claimed.as_ref().filter(|(_, claim)| claim.nonce != map.nonce) {
            return Err(Refused(ResultCode::NOT_AUTHORIZED, claim.ends.secs_left(now)));
        }
        let by = Asker::Pcp(map.nonce);
        if deletes {
            if strict || !filters.is_empty() {
                return Err(Refused(ResultCode::MALFORMED_OPTION, LONG));
            }
            if claimed.is_none() && self.has_pinholes(to) {
                return Err(Refused(ResultCode::NOT_AUTHORIZED, LONG)); // they were not made by PCP
            }
            let question = MapQuestion::new(map, 0, strict, processed);
            let id = self.ask_for_lan(now, arrival, payload, What::Map(question));
            self.let_pcp_go(now, to, by);
            self.answer(id, &[]);
            return Ok(());
        }
        if strict && map.external_port == 0 {
            return Err(Refused(ResultCode::MALFORMED_OPTION, LONG)); // §13.2
        }
        // Nothing but this port of this address can be given, or what the provider makes of it.
        let suggested = pcp::ip_from_wire(map.external_addr);
        let given = self.external_of_pinhole(to);
        let other =
            map.external_port != given.port() || !suggested.is_unspecified() && suggested != given.ip();
        if strict && other {
            return Err(Refused(ResultCode::CANNOT_PROVIDE_EXTERNAL, SHORT));
        }
        let before = claimed.map(|(pinhole, _)| (pinhole.flows.remote, pinhole.flows.remote_port));
        let is_filtered = before.is_some_and(|before| before != (None, None));
        let (remote, remote_port) = match filters[..] {
            // A renewal without one changes none (RFC 6887 §13.3).
            [] => before.unwrap_or_default(),
            [Filter { prefix_len: 0, .. }] => (None, None),
            // They add up, and there is room for one.
            [one] if is_filtered && before != Some(only_remote(one)?) => {
                return Err(Refused(ResultCode::EXCESSIVE_REMOTE_PEERS, LONG));
            }
            [one] | [Filter { prefix_len: 0, .. }, one] => only_remote(one)?,
            _ => return Err(Refused(ResultCode::EXCESSIVE_REMOTE_PEERS, LONG)),
        };
        if before.is_none() {
            self.note_third_party(arrival.from.ip(), map.protocol, own(to));
        }
        let lifetime = request.lifetime.clamp(SHORTEST, LONGEST);
        let question = MapQuestion::new(map, lifetime, strict, processed);
        let id = self.ask_for_lan(now, arrival, payload, What::Map(question));
        let lease = Duration::from_secs(u64::from(lifetime));
        let flows = Flows { to, remote, remote_port };
        let who = self.asked_for(IpAddr::V6(addr), arrival.from.ip());
        self.want_pinhole(now, id, &who, Wanted { flows, by, lease, description });
        Ok(())
    }

    /// RFC 6887 §12.3 where nothing is translated: what the host sends out is let in again anyway, and this makes it last. A pinhole of one
    /// remote host and port is no other's.
    pub(super) fn peer_v6(
        &mut self,
        now: Instant,
        (arrival, payload): (LanArrival, &[u8]),
        (question, description): (PeerQuestion, Option<String>),
        addr: Ipv6Addr,
        remote: Ipv6Addr,
    ) -> Result<(), Refused> {
        if !self.allows_pinholes() {
            return Err(Refused(ResultCode::NOT_AUTHORIZED, LONG));
        }
        let data = *question.data();
        let to = Endpoint { addr, protocol: data.protocol, port: data.internal_port };
        let flows = Flows { to, remote: Some(remote), remote_port: Some(data.remote_port) };
        let before = self.pinhole_at(&flows).map(|pinhole| pinhole.claims.at(now).peer);
        if let Some(claim) = before.flatten().filter(|claim| claim.nonce != data.nonce) {
            return Err(Refused(ResultCode::NOT_AUTHORIZED, claim.ends.secs_left(now)));
        }
        let given = self.external_of_pinhole(to);
        if question.lifetime() == 0 {
            let epoch = self.lan_server.epoch();
            let answer = match before.flatten() {
                Some(claim) => question.granted(given, whole_seconds(claim.ends - now), epoch),
                None => question.nothing(epoch),
            };
            self.lan_server.counters.pcp += 1;
            self.send_to_lan(&arrival, answer.to_bytes());
            return Ok(());
        }
        // Nothing but this port of this address can be given; what is there already is told whatever is suggested.
        let suggested = pcp::ip_from_wire(data.external_addr);
        let other_port = data.external_port != 0 && data.external_port != given.port();
        if before.is_none() && (other_port || !suggested.is_unspecified() && suggested != given.ip()) {
            return Err(Refused(ResultCode::CANNOT_PROVIDE_EXTERNAL, SHORT));
        }
        if before.flatten().is_none() {
            self.note_third_party(arrival.from.ip(), data.protocol, own(to));
        }
        let lease = Duration::from_secs(u64::from(question.lifetime()));
        let id = self.ask_for_lan(now, arrival, payload, What::Peer(question));
        let who = self.asked_for(IpAddr::V6(addr), arrival.from.ip());
        let by = Asker::Peer(data.nonce);
        self.want_pinhole(now, id, &who, Wanted { flows, by, lease, description });
        Ok(())
    }

    /// What can be promised to a PCP client whose port is open: by whom and until when. `None`: it insists on another address than the
    /// provider has for it (RFC 6887 §13.2).
    pub(in super::super) fn promise_to_lan(
        &self,
        now: Instant,
        id: RequestId,
        grant: Option<Grant>,
    ) -> Option<(Asker, Instant)> {
        let Form::Lan(question) = &self.waiting.get(&id)?.form else { return None };
        let (asker, asked) = match &question.what {
            What::Map(map) => {
                let other = |grant: Grant| !map.may_be(grant.external.ip());
                if map.is_strict() && grant.is_some_and(other) {
                    return None;
                }
                (Asker::Pcp(map.nonce()), map.lifetime())
            }
            What::Peer(peer) => (Asker::Peer(peer.nonce()), peer.lifetime()),
            What::NatPmp(_) => return None, // it is of IPv4
        };
        // What the provider has granted is renewed, but nobody is promised more than it has (RFC 7648 §3.2).
        let left = grant.map_or(u32::MAX, |grant| whole_seconds(grant.ends() - now));
        let lifetime = Duration::from_secs(u64::from(asked.min(left)));
        Some((asker, now + lifetime))
    }

    /// And promises it.
    pub(in super::super) fn answer_mapped_v6(
        &mut self,
        now: Instant,
        id: RequestId,
        external: Option<SocketAddr>,
        promised: Option<(Asker, Instant)>,
    ) {
        let Some(Form::Lan(question)) = self.take_waiter(id).map(|waiter| waiter.form) else { return };
        let (Some(external), Some((_, ends))) = (external, promised) else { return };
        let (lifetime, epoch) = (whole_seconds(ends - now), self.lan_server.epoch());
        let bytes = match &question.what {
            What::Peer(peer) => peer.granted(external, lifetime, epoch).to_bytes(),
            What::Map(map) => map.granted(external, lifetime, epoch).to_bytes(),
            What::NatPmp(_) => return, // it is of IPv4
        };
        self.lan_server.counters.pcp += 1;
        self.send_to_lan(&question.arrival, bytes);
    }
}

/// Without a firewall of the provider's that says otherwise.
pub(in super::super) fn own(to: Endpoint) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(to.addr), to.port)
}

/// One remote host, and perhaps one of its ports.
fn only_remote(filter: Filter) -> Result<Remote, Refused> {
    if filter.prefix_len != 128 && filter.remote_addr.to_ipv4_mapped().is_none() {
        return Err(Refused(ResultCode::EXCESSIVE_REMOTE_PEERS, LONG));
    }
    if !is_of_the_internet(filter.remote_addr) {
        return Err(Refused(ResultCode::MALFORMED_OPTION, LONG)); // nobody who could come by IPv6, from outside
    }
    Ok((Some(filter.remote_addr), Some(filter.remote_port).filter(|&port| port != 0)))
}

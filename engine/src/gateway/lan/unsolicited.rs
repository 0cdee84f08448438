//! What LAN clients hear unasked: that the server has begun, or has another external address (RFC 6887 §14.1, RFC 6886 §3.2.1), and what
//! has become of a mapping of theirs (RFC 6887 §14.2).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use wire::natpmp;
use wire::pcp::{
    self, ANNOUNCE_GROUP_V4, ANNOUNCE_GROUP_V6, Body, CLIENT_PORT, Filter, MapData, PcpOption, Response,
    ResultCode,
};

use super::{LanArrival, SHORT, whole_seconds};
use crate::announcements::{Announcements, TIMES};
use crate::claims::PcpClaim;
use crate::gateway::{Effect, Gateway};
use crate::notice::Cause;
use crate::table::{Mapping, Touched};
use crate::time::{Duration, Instant};
use crate::uplink::FlowId;

/// How often a client is told what became of its mapping, and the gaps (RFC 6887 §14.2).
const UPDATES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(250), Duration::from_millis(500)];

/// A client is to be told what became of its mapping.
#[derive(Clone, Debug)]
pub(super) struct Update {
    client: LanArrival,
    mapping: Mapping,
    /// `None`: it is gone.
    external: Option<SocketAddrV4>,
    /// How often it was told.
    told: usize,
    due: Instant,
}

impl Update {
    pub(super) fn due(&self) -> Instant {
        self.due
    }
}

impl Gateway {
    /// At the end of a turn, before anybody else is told of what was `touched`: PCP clients hear what became of theirs (RFC 6887
    /// §14.2).
    pub(in super::super) fn note_updates(&mut self, touched: &BTreeMap<FlowId, Touched>) {
        let now = self.lan_server.now;
        for (&flow, Touched { before, cause }) in touched {
            let after = self.table.find_flow(flow);
            let wanted_gone = matches!(
                cause,
                Some(
                    Cause::Deleted
                        | Cause::LeaseEnded
                        | Cause::Replaced
                        | Cause::Stopping
                        | Cause::ProtocolOff
                )
            );
            let by_nat_pmp = before.as_ref().filter(|before| before.claims.at(now).nat_pmp.is_some());
            if by_nat_pmp.is_some_and(|before| after.is_none_or(|after| after.external != before.external))
                && !wanted_gone
            {
                // There is no other way to tell (N-12, N-13).
                self.lan_server.begin_epoch();
                self.lan_server.announcements.begin(now);
            }
            if after.is_none_or(|after| after.claims.at(now).pcp.is_none()) {
                // What was to be said again is not so any more.
                self.lan_server.updates.remove(&flow);
            }
            let client = self.lan_server.asked_from.get(&flow).copied();
            if after.is_none() {
                self.lan_server.asked_from.remove(&flow);
            }
            let Some(client) = client else { continue };
            let Some(before) = before.as_ref().filter(|before| before.claims.at(now).pcp.is_some()) else {
                continue;
            };
            let moved = after.filter(|after| after.external != before.external);
            match (moved, after) {
                (Some(after), _) => {
                    let (mapping, external) = (after.clone(), Some(after.external));
                    let update = Update { client, mapping, external, told: 0, due: now };
                    self.lan_server.updates.insert(flow, update);
                }
                (None, Some(_)) => {}
                (None, None)
                    if !matches!(cause, Some(Cause::Deleted | Cause::LeaseEnded | Cause::Replaced)) =>
                {
                    let mapping = before.clone();
                    let update = Update { client, mapping, external: None, told: 0, due: now };
                    self.lan_server.updates.insert(flow, update);
                }
                (None, None) => {}
            }
        }
        self.tell_updates();
    }

    fn tell_updates(&mut self) {
        let now = self.lan_server.now;
        let due: Vec<FlowId> = self
            .lan_server
            .updates
            .iter()
            .filter(|(_, update)| update.due <= now)
            .map(|(&flow, _)| flow)
            .collect();
        for flow in due {
            let Some(update) = self.lan_server.updates.get_mut(&flow) else { continue };
            update.told += 1;
            let gap = UPDATES.get(update.told).copied();
            update.due = now + gap.unwrap_or_default();
            let update = update.clone();
            if gap.is_none() {
                self.lan_server.updates.remove(&flow);
            }
            let Some(claim) = update.mapping.claims.pcp else { continue };
            let left = claim.ends.min(update.mapping.lifetime_ends) - now;
            if update.external.is_some() && left < Duration::from_secs(1) {
                // A lifetime is whole seconds, and the mapping does not stand for one.
                self.lan_server.updates.remove(&flow);
                continue;
            }
            let bytes = mapping_update(
                update.client.from.ip(),
                &update.mapping,
                claim,
                update.external,
                (now, self.lan_server.epoch()),
            );
            self.send_to_lan(&update.client, bytes);
        }
    }

    /// At the end of a turn: has the server begun, or another address (RFC 6887 §8.5, N-13)?
    pub(in super::super) fn tend_lan(&mut self) {
        let now = self.lan_server.now;
        if !self.lan_server.is_up && self.lan.iter().any(|lan| !lan.addresses.is_empty()) {
            self.lan_server.is_up = true;
            self.lan_server.begin_epoch();
            self.lan_server.announcements.begin(now);
        }
        // With several addresses the one that was announced is as good as the others.
        let stands = |addr: Ipv4Addr| {
            self.table.iter().any(|mapping| mapping.confirmed && *mapping.external.ip() == addr)
        };
        let other = self.external.filter(|addr| self.lan_server.announced != Some(*addr));
        if let Some(addr) = other.filter(|_| !self.lan_server.announced.is_some_and(stands)) {
            if self.lan_server.announced.replace(addr).is_some() {
                self.lan_server.begin_epoch();
            }
            self.lan_server.announcements.begin(now);
        }
        self.tell_updates();
        self.end_peers(now);
        // Several gateways have several epochs, and one address.
        if self.lan_server.not_alone || self.stopping || !(self.config.pcp || self.config.nat_pmp) {
            return self.lan_server.announcements = Announcements::default();
        }
        if self.lan_server.announcements.is_due(now, TIMES) {
            self.announce();
        }
    }

    fn announce(&mut self) {
        let epoch = self.lan_server.epoch();
        let (mut all, mut of_pcp) = (Vec::new(), Vec::new());
        if self.config.pcp {
            let (result, body) = (ResultCode::SUCCESS, Body::Announce);
            of_pcp = Response { result, lifetime: 0, epoch, body, options: Vec::new() }.to_bytes();
            all.push(of_pcp.clone());
        }
        if let Some(addr) = self.external.filter(|_| self.config.nat_pmp) {
            let result = natpmp::ResultCode::SUCCESS;
            all.push(natpmp::Response::ExternalAddress { result, epoch, addr }.to_bytes());
        }
        let to = SocketAddr::new(ANNOUNCE_GROUP_V4.into(), CLIENT_PORT);
        let to_v6 = SocketAddr::new(ANNOUNCE_GROUP_V6.into(), CLIENT_PORT);
        for lan in &self.lan {
            // A client believes only the address that it knows its server by, which need not be the link-local one.
            for own in lan.addresses.iter().filter(|own| own.addr.is_ipv6() && self.config.pcp) {
                let (interface, local, to, bytes) = (lan.index, own.addr, to_v6, of_pcp.clone());
                self.effects.push_back(Effect::LanSend { interface, local, to, bytes });
            }
            let Some(own) = lan.addresses.iter().find(|own| own.addr.is_ipv4()) else { continue };
            for bytes in &all {
                let (interface, local, bytes) = (lan.index, own.addr, bytes.clone());
                self.effects.push_back(Effect::LanSend { interface, local, to, bytes });
            }
        }
    }
}

/// What a client hears unasked: where its mapping is now, or that it is gone (RFC 6887 §14.2).
fn mapping_update(
    client: IpAddr,
    mapping: &Mapping,
    claim: PcpClaim<Instant>,
    external: Option<SocketAddrV4>,
    (now, epoch): (Instant, u32),
) -> Vec<u8> {
    let at = external.unwrap_or(mapping.external);
    let map = MapData {
        nonce: claim.nonce,
        protocol: mapping.protocol,
        internal_port: mapping.internal.port(),
        external_port: at.port(),
        external_addr: at.ip().to_ipv6_mapped(),
    };
    let lifetime = external.map_or(0, |_| whole_seconds(claim.ends.min(mapping.lifetime_ends) - now));
    let filter = |peer: Ipv4Addr| {
        PcpOption::Filter(Filter { prefix_len: 128, remote_port: 0, remote_addr: peer.to_ipv6_mapped() })
    };
    let of = IpAddr::V4(*mapping.internal.ip());
    let third_party = (client != of).then(|| PcpOption::ThirdParty(pcp::ip_to_wire(of)));
    let options = third_party.into_iter().chain(mapping.remote_peer.map(filter)).collect();
    let insists = external.is_none() && mapping.strict && mapping.claims.igd.is_none();
    let (result, lifetime) = match insists {
        true => (ResultCode::CANNOT_PROVIDE_EXTERNAL, SHORT),
        false => (ResultCode::SUCCESS, lifetime),
    };
    Response { result, lifetime, epoch, body: Body::Map(map), options }.to_bytes()
}

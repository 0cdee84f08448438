//! Announcements by multicast: the server has begun anew, or has another address (RFC 6887 §14.1.3, N-13).

use std::net::SocketAddr;

use wire::natpmp;
use wire::pcp::{
    ANNOUNCE_GROUP_V4, ANNOUNCE_GROUP_V6, Body, CLIENT_PORT, HEADER_LEN, MAX_LEN, PcpOption, Response,
    ResultCode,
};

use super::Server;
use super::interface::Output;
use crate::time::Instant;

impl Server {
    /// Announces the epoch and the external address, now and nine times more, the last time two minutes from now. For the start,
    /// after [`restore`](Self::restore) if there is anything to restore.
    pub fn announce(&mut self, now: Instant) {
        self.announcements.begin(now);
        self.continue_announcing(now);
    }

    pub(super) fn continue_announcing(&mut self, now: Instant) {
        if self.announcements.is_due(now, self.config.announcements) {
            self.announce_once(now);
        }
    }

    fn announce_once(&mut self, now: Instant) {
        let bytes = self.announcement(now).to_bytes();
        for group in [ANNOUNCE_GROUP_V4.into(), ANNOUNCE_GROUP_V6.into()] {
            let group = SocketAddr::new(group, CLIENT_PORT);
            self.outputs.push_back(Output::Multicast { group, bytes: bytes.clone() });
        }
        // Without an address there is none to tell. With several there is none that is everybody's: who has another one would
        // hear that its own has changed.
        let [addr] = self.config.pool[..] else { return };
        if !self.config.natpmp {
            return;
        }
        let result = natpmp::ResultCode::SUCCESS;
        let bytes = natpmp::Response::ExternalAddress { result, epoch: self.epoch(now), addr }.to_bytes();
        let group = SocketAddr::new(natpmp::ANNOUNCE_GROUP.into(), natpmp::CLIENT_PORT);
        self.outputs.push_back(Output::Multicast { group, bytes });
    }

    /// The answer to an ANNOUNCE, and the announcement unasked: with the prefixes of the NAT64, where there is one (RFC 7225).
    pub(super) fn announcement(&self, now: Instant) -> Response {
        let options = self.prefixes(MAX_LEN - HEADER_LEN);
        let epoch = self.epoch(now);
        Response { result: ResultCode::SUCCESS, lifetime: 0, epoch, body: Body::Announce, options }
    }

    /// As many prefixes as fit into so many octets.
    pub(super) fn prefixes(&self, mut room: usize) -> Vec<PcpOption> {
        let all = self.config.prefix64.iter().cloned().map(PcpOption::Prefix64);
        all.take_while(|option| {
            let mut octets = Vec::new();
            wire::codec::Wire::encode(option, &mut octets);
            let fits = octets.len() <= room;
            room = room.saturating_sub(octets.len());
            fits
        })
        .collect()
    }
}

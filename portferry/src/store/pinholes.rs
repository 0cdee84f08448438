//! Pinholes as they stand in the file.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Duration;

use engine::claims::{Claims, PcpClaim};
use engine::journal::StoredPinhole;
use engine::pinholes::{Endpoint, Flows};
use serde::{Deserialize, Serialize};
use wire::pcp::{Nonce, Protocol};

use super::seconds;
use crate::journal_file::Stamp;

/// A pinhole; times are the seconds that were left when it was written.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct Pinhole {
    pub(super) id: u16,
    protocol: u8,
    internal: SocketAddrV6,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remote: Option<Ipv6Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remote_port: Option<u16>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    description: String,
    /// A control point's lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    igd: Option<u64>,
    /// A PCP client's nonce and lifetime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pcp: Option<([u8; 12], u64)>,
    /// The same of PEER.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<([u8; 12], u64)>,
    #[serde(flatten)]
    written: Stamp,
}

impl Pinhole {
    pub(super) fn new(stored: &StoredPinhole, written: Stamp) -> Self {
        let Flows { to: Endpoint { addr, protocol, port }, remote, remote_port } = stored.flows;
        let claims = seconds(stored.claims);
        Self {
            id: stored.id,
            protocol: protocol.0,
            internal: SocketAddrV6::new(addr, port, 0, 0),
            remote,
            remote_port,
            description: stored.description.clone(),
            igd: claims.igd.flatten(),
            pcp: claims.pcp.map(|claim| (claim.nonce.0, claim.ends)),
            peer: claims.peer.map(|claim| (claim.nonce.0, claim.ends)),
            written,
        }
    }

    pub(super) fn is_over(&self, now: Stamp) -> bool {
        self.claims(now) == Claims::default()
    }

    fn claims(&self, now: Stamp) -> Claims<Duration> {
        let of_pcp = |(nonce, ends)| PcpClaim { nonce: Nonce(nonce), ends };
        let (pcp, peer) = (self.pcp.map(of_pcp), self.peer.map(of_pcp));
        let written = Claims { igd: self.igd.map(Some), pcp, nat_pmp: None, peer };
        written
            .map(|left| Some(Duration::from_secs(left)))
            .after(Duration::from_secs(now.since(self.written)))
    }

    pub(super) fn stored(&self, now: Stamp) -> StoredPinhole {
        let to = Endpoint {
            addr: *self.internal.ip(),
            protocol: Protocol(self.protocol),
            port: self.internal.port(),
        };
        StoredPinhole {
            id: self.id,
            flows: Flows { to, remote: self.remote, remote_port: self.remote_port },
            description: self.description.clone(),
            claims: self.claims(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::claims::Asker;
    use engine::journal::Record;

    use super::super::Store;
    use super::*;
    use crate::scratch::Directory;

    fn pinhole(id: u16, claims: Claims<Duration>) -> StoredPinhole {
        let addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
        let to = Endpoint { addr, protocol: Protocol::UDP, port: 5000 + id };
        let flows = Flows { to, remote: (id == 2).then_some(addr), remote_port: (id == 3).then_some(53) };
        StoredPinhole { id, flows, description: "a\n\"b\"".into(), claims }
    }

    /// D-4 for pinholes: they come back with what is left; what is over, or was taken out, does not.
    #[test]
    fn what_was_stored_comes_back() {
        let left = Duration::from_secs;
        let mut both = Claims::of(Asker::Igd, Some(left(7200)));
        both.renew(Asker::Pcp(Nonce([3; 12])), Some(left(6000)));
        both.renew(Asker::Peer(Nonce([5; 12])), Some(left(600)));
        let pcp = Claims::of(Asker::Pcp(Nonce([4; 12])), Some(left(6000)));
        let igd = Claims::of(Asker::Igd, Some(left(7200)));
        let directory = Directory::new("pinholes");
        let mut store = Store::open(&directory.0).unwrap().0;
        for (id, claims) in [(1, both), (2, pcp), (3, igd), (4, igd)] {
            store.append(&Record::PutPinhole(pinhole(id, claims))).unwrap();
        }
        store.append(&Record::PutPinhole(pinhole(3, both))).unwrap();
        store.append(&Record::RemovePinhole(4)).unwrap();
        store.append(&Record::RemovePinhole(9)).unwrap();
        drop(store);
        for _ in 0..2 {
            let loaded = Store::open(&directory.0).unwrap().1;
            let about = |claims: Claims<Duration>| claims.map(|left| Some((left.as_secs() + 50) / 100));
            let all: Vec<_> = loaded.pinholes.iter().map(|one| (one.id, about(one.claims))).collect();
            assert_eq!(all, [(1, about(both)), (2, about(pcp)), (3, about(both))]);
            let again = |one: &StoredPinhole| StoredPinhole { claims: one.claims, ..pinhole(one.id, both) };
            assert!(loaded.pinholes.iter().all(|one| *one == again(one)));
            assert_eq!(loaded.damage.count(), 0);
        }
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let now = Stamp::now();
        let over = Pinhole::new(&pinhole(1, Claims::default()), now);
        assert!(over.is_over(now));
        let left = Claims::of(Asker::Igd, Some(Duration::from_secs(60)));
        assert!(!Pinhole::new(&pinhole(1, left), now).is_over(now));
    }
}

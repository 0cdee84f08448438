//! After a restart: what was stored stands again, or the epoch begins anew.

use super::Server;
use super::interface::{Output, Subscriber};
use super::journal::{Record, StoredHold, StoredMapping};
use super::map::Realm;
use super::nat::endpoint;
use super::notice::{NewEpoch, Notice};
use super::pool::{Owner, Want};
use super::runs::Runs;
use super::table::ServerMapping;
use crate::time::{Duration, Instant};

/// How far that is.
#[derive(Debug, Default)]
pub(super) struct Restoring {
    /// The data plane has not answered yet.
    left: usize,
    stands: usize,
    lost: usize,
}

impl Server {
    /// What was stored, before the first datagram. Each mapping is opened again; whoever asks for one meanwhile waits.
    ///
    /// One that cannot be, because its external port is not there any more, is another's, or is refused by the data plane,
    /// is lost: the epoch begins anew, and that is announced.
    ///
    /// What was held goes on being held, as far as no mapping has it, for as long as it would have been, and no longer than the
    /// settings say.
    pub fn restore(&mut self, now: Instant, mut mappings: Vec<StoredMapping>, holds: Vec<StoredHold>) {
        // What PEER made may have its place within a set.
        mappings.sort_by_key(|stored| stored.key.peer.is_some());
        // Until all have been looked at, so that nothing is told early.
        self.restoring = Restoring { left: 1, stands: 0, lost: 0 };
        let mut accompanied = Vec::new();
        for stored in mappings {
            match self.revived(now, &stored) {
                Some(mapping) => {
                    self.restoring.left += 1;
                    accompanied.extend(mapping.companion.then_some(endpoint(&stored.key)));
                    self.open(mapping, None, None);
                }
                None => {
                    self.restored_less(now);
                    self.outputs.push_back(Output::Store(Record::Remove(stored.key)));
                }
            }
        }
        // No companion takes what is held for another.
        self.restore_holds(now, holds);
        // Some had a companion that was another's already.
        for endpoint in accompanied {
            if let Some((first, _)) = self.pool.of(endpoint) {
                self.pool.accompany(first);
            }
        }
        self.restoring_goes_on(now);
    }

    fn restore_holds(&mut self, now: Instant, mut holds: Vec<StoredHold>) {
        // Of two, one of which has a part of the other's ports, the later one counts there.
        holds.sort_by_key(|stored| std::cmp::Reverse(stored.left));
        for StoredHold { key, external, ports, nonce, requester, left } in holds {
            let left = left.min(self.config.hold);
            if key.port == 0 || left.is_zero() || external.port() == 0 || ports == 0 {
                continue;
            }
            let subscriber = Subscriber::of(requester, &self.config);
            self.pool.restore_hold(
                external,
                ports,
                Owner { endpoint: endpoint(&key), nonce, subscriber },
                now + left,
            );
        }
    }

    /// The mapping, its external endpoint taken; `None` if that cannot be had.
    fn revived(&mut self, now: Instant, stored: &StoredMapping) -> Option<ServerMapping> {
        let StoredMapping { key, external, ports, nonce, companion, requester, .. } = stored.clone();
        let inside = key.inside();
        if stored.left.is_zero()
            || ports == 0
            || self.table.get(&key).is_some()
            || self.statics.contains_key(&key)
            || key.port == 0 && (ports != 1 || key.peer.is_some())
            || key.port != 0 && key.port.checked_add(ports - 1).is_none()
            || self.is_mappable(key.protocol, key.port).is_err()
        {
            return None;
        }
        if key.peer.is_none() && !self.table.overlapping(inside, key.protocol, key.port, ports).is_empty() {
            return None;
        }
        let subscriber = Subscriber::of(requester, &self.config);
        let realm = self.realm(&inside, external.ip()).ok()?;
        match (realm, external) {
            (Realm::Pinhole, external) if external != (inside.addr, key.port).into() => return None,
            (Realm::Pinhole, _) => {}
            (Realm::Pool, std::net::SocketAddr::V6(_)) => return None,
            (Realm::Pool, std::net::SocketAddr::V4(external)) => {
                if let Some((first, of)) = self.pool.of(endpoint(&key)) {
                    let port = if first.port == 0 { 0 } else { of.external.port() + (key.port - first.port) };
                    if (*of.external.ip(), port) != (*external.ip(), external.port()) || ports != 1 {
                        return None;
                    }
                    self.pool.share(first);
                } else {
                    let mut allowed = Runs::default();
                    allowed.add(1, u16::MAX);
                    let want = Want {
                        endpoint: endpoint(&key),
                        subscriber,
                        nonce,
                        suggested: (Some(*external.ip()), external.port()),
                        strict: true,
                        ports,
                        parity: None,
                        companion: false,
                        has_flow: false,
                        allowed,
                    };
                    let found = self.pool.find(now, &want).ok()?;
                    if found != (external, ports) {
                        return None;
                    }
                    self.pool.take(&want, external, ports);
                }
            }
        }
        let ends = now + stored.left;
        Some(ServerMapping {
            protocol: key.protocol,
            inside,
            internal_port: key.port,
            external,
            ports,
            peer: key.peer,
            nonce,
            requester,
            subscriber,
            filters: stored.filters.clone(),
            description: stored.description.clone(),
            ends,
            granted: stored.left,
            stored_until: ends,
            companion,
            asked: None,
            open: false,
            busy: None,
        })
    }

    /// One of them is lost: with the first, the epoch begins anew. That is stored before the loss is: were the server to stop
    /// in between, what is stored would else be whole, and the old epoch go on.
    pub(super) fn restored_less(&mut self, now: Instant) {
        if self.restoring.lost == 0 {
            self.epoch = (now, Duration::ZERO);
            self.outputs.push_back(Output::Store(Record::Epoch));
        }
        self.restoring.lost += 1;
    }

    /// The data plane has answered for one of them.
    pub(super) fn restored(&mut self, now: Instant, stands: bool) {
        self.restoring.stands += usize::from(stands);
        self.restoring_goes_on(now);
    }

    /// Whether stored mappings wait for the data plane still ([`restore`](Self::restore)).
    #[must_use]
    pub fn is_restoring(&self) -> bool {
        self.restoring.left > 0
    }

    fn restoring_goes_on(&mut self, now: Instant) {
        self.restoring.left = self.restoring.left.saturating_sub(1);
        if self.restoring.left > 0 {
            return;
        }
        let Restoring { stands, lost, .. } = std::mem::take(&mut self.restoring);
        if stands > 0 {
            self.outputs.push_back(Output::Notice(Notice::Restored(stands)));
        }
        if lost > 0 {
            self.outputs.push_back(Output::Notice(Notice::EpochBegan(NewEpoch::NotRestored(lost))));
            self.announce(now);
        }
    }
}

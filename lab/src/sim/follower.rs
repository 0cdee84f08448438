//! Who follows the mappings of a [`World`] by what he is told alone, as the daemon's hook does. What he knows is what stands,
//! after every turn.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use engine::claims::AskedBy;
use engine::gateway::{Change, Gateway, What};
use engine::status::MappingStatus;
use engine::time::Instant;
use engine::uplink::FlowId;
use wire::pcp::Protocol;

/// What he knows.
#[derive(Debug, Default)]
pub(super) struct Follower {
    external: Option<Ipv4Addr>,
    mappings: BTreeMap<FlowId, Known>,
}

type Known = (Protocol, SocketAddrV4, SocketAddrV4, Option<Ipv4Addr>, String, AskedBy);

fn known(mapping: &MappingStatus) -> Known {
    let MappingStatus { protocol, external, internal, remote_peer, description, asked_by, .. } = mapping;
    (*protocol, *external, *internal, *remote_peer, description.clone(), *asked_by)
}

impl Follower {
    /// Takes in a change; in words, what is wrong with it.
    pub(super) fn follow(&mut self, change: Change) -> Option<String> {
        match change {
            Change::External { before, now } => {
                let fits = before == self.external && before != now;
                self.external = now;
                (!fits).then(|| format!("external address {now:?} after {before:?}"))
            }
            Change::Mapping { flow, what, mapping } => {
                let now = known(&mapping);
                let before = match what {
                    What::Ended(_) => self.mappings.remove(&flow),
                    _ => self.mappings.insert(flow, now.clone()),
                };
                let fits = match (what, &before) {
                    (What::Present | What::Began, None) => true,
                    (What::Moved(from), Some(before)) => before.1 == from && now.1 != from,
                    (What::Changed, Some(before)) => before.1 == now.1 && *before != now,
                    (What::Ended(_), Some(before)) => *before == now,
                    _ => false,
                };
                (!fits).then(|| format!("{what:?} to {now:?} of {before:?}"))
            }
        }
    }

    /// In words, where he knows something else than what stands.
    pub(super) fn error(&self, gateway: &Gateway, now: Instant) -> Option<String> {
        let external = gateway.status(now).external;
        if self.external != external {
            return Some(format!("external address {external:?}, and told was {:?}", self.external));
        }
        let told: BTreeMap<_, _> = self.mappings.values().map(|it| ((it.0, it.1.port()), it)).collect();
        let standing: BTreeMap<_, _> = gateway
            .standing(now)
            .filter_map(|change| match change {
                Change::Mapping { mapping, .. } => {
                    Some(((mapping.protocol, mapping.external.port()), known(&mapping)))
                }
                Change::External { .. } => None,
            })
            .collect();
        let seen = |mapping: &MappingStatus| !mapping.external.ip().is_unspecified();
        if standing.len() != gateway.mappings(now).filter(seen).count() {
            return Some(format!("{standing:?} are not all that stand"));
        }
        let same =
            told.len() == self.mappings.len() && told.into_iter().eq(standing.iter().map(|(&k, v)| (k, v)));
        (!same).then(|| format!("{standing:?} stand, and told were {:?}", self.mappings))
    }
}

//! What others are told of who follow the mappings (the daemon's hook): seen at the end of a turn by comparing, not by whoever
//! changed something. The table knows which of its mappings were touched, and what they were before.
//!
//! Who begins late asks for [`Gateway::standing`]; with it, and every [`Effect::Changed`] after it, he knows at any moment
//! what people outside can reach.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Effect, Gateway};
use crate::notice::Cause;
use crate::status::MappingStatus;
use crate::table::{Mapping, Touched};
use crate::time::Instant;
use crate::uplink::FlowId;

/// One change that people outside would notice, or whoever is told of it for them.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// The gateway's external address; `None` when nothing tells it.
    External {
        /// What it was.
        before: Option<Ipv4Addr>,
        /// What it is.
        now: Option<Ipv4Addr>,
    },
    /// A mapping with an external address; one of this router alone (`when_unreachable = "local"`) begins when the provider
    /// has given it one.
    Mapping {
        /// The same in all changes of one mapping, and never another one's in the life of a gateway.
        flow: FlowId,
        /// What became of it.
        what: What,
        /// As it is now; of one that has ended, as it was. `asked_by` is by whom it was asked for and not let go, see
        /// [`What::Changed`]: whoever counts on it is among them.
        mapping: MappingStatus,
    },
}

/// What became of a mapping.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// It stood before: it was stored, or was there when somebody began to listen.
    Present,
    /// It stands from now on.
    Began,
    /// It had this external address and port before.
    Moved(SocketAddrV4),
    /// Its internal port, remote host or description is another one, or it is asked for by other protocols: one has joined, or has let it
    /// go. A lease that begins anew is no change, nor is one that ends while others count on the mapping: that is seen, and told, when
    /// somebody next asks for it or lets it go.
    Changed,
    /// It is no more.
    Ended(Cause),
}

impl Gateway {
    /// Ends a turn: what is different from the last one. `began` is what a new mapping is called.
    pub(super) fn tell_changes(&mut self, now: Instant, began: What) {
        if self.changed_external != self.external {
            let before = std::mem::replace(&mut self.changed_external, self.external);
            self.effects.push_back(Effect::Changed(Change::External { before, now: self.external }));
        }
        let touched = self.table.take_touched();
        self.note_updates(&touched);
        for &flow in touched.keys() {
            self.move_hairpin(flow);
        }
        let mut changes: Vec<(FlowId, What, MappingStatus)> = touched
            .into_iter()
            .filter_map(|(flow, Touched { before, cause })| {
                let before = before.filter(is_seen);
                let after = self.table.find_flow(flow).filter(|mapping| is_seen(mapping));
                match (before, after) {
                    (None, None) => None,
                    (None, Some(after)) => Some((flow, began, told(after, now))),
                    (Some(before), None) => {
                        let cause = cause.expect("the table is told why a mapping is taken out");
                        Some((flow, What::Ended(cause), told(&before, now)))
                    }
                    (Some(before), Some(after)) if before.external != after.external => {
                        Some((flow, What::Moved(before.external), told(after, now)))
                    }
                    (Some(before), Some(after)) => {
                        let key = |mapping: &Mapping| {
                            (mapping.internal, mapping.remote_peer, mapping.claims.protocols())
                        };
                        let same = key(&before) == key(after) && before.description == after.description;
                        (!same).then(|| (flow, What::Changed, told(after, now)))
                    }
                }
            })
            .collect();
        // A port is free before it is another mapping's.
        changes.sort_by_key(|(_, what, _)| match what {
            What::Ended(_) => 0,
            What::Moved(_) | What::Changed => 1,
            What::Present | What::Began => 2,
        });
        for (flow, what, mapping) in changes {
            self.effects.push_back(Effect::Changed(Change::Mapping { flow, what, mapping }));
        }
    }

    /// For who has heard of no [`Effect::Changed`] yet: the external address, if it is known, and every mapping that has one.
    /// Ask between two turns.
    pub fn standing(&self, now: Instant) -> impl Iterator<Item = Change> {
        let external = self.external.map(|addr| Change::External { before: None, now: Some(addr) });
        let mappings = self.table.iter().filter(|mapping| is_seen(mapping));
        external.into_iter().chain(mappings.map(move |mapping| Change::Mapping {
            flow: mapping.flow,
            what: What::Present,
            mapping: told(mapping, now),
        }))
    }
}

/// As who follows it is told: he sees no claim end by time, so that is no part of it.
fn told(mapping: &Mapping, now: Instant) -> MappingStatus {
    MappingStatus { asked_by: mapping.claims.protocols(), ..mapping.status(now) }
}

/// Whether somebody outside could come in by it.
fn is_seen(mapping: &Mapping) -> bool {
    !mapping.external.ip().is_unspecified()
}

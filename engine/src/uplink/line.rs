//! The line of requests: one is out at a time, and who goes next is decided by who waits for it.

use std::collections::{BTreeMap, BTreeSet};

use crate::time::Instant;

/// Who goes first; among equals, who came first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Rank {
    /// A control point waits.
    Urgent,
    /// Without it no grant can be told.
    Address,
    /// A mapping would end.
    Renewal,
    /// Nobody waits for what is given back, but its port is wanted.
    Delete,
    /// One of many, those first whose owners asked last (decision 16): so many milliseconds before the end of time.
    InTurn(u64),
    /// It was asked several times in vain, and others go first now.
    AfterOthers,
}

impl Rank {
    pub(super) fn in_turn(used_at: Instant) -> Self {
        Self::InTurn(u64::MAX - used_at.as_millis())
    }

    pub(super) fn after_others(self) -> Self {
        match self {
            // Somebody counts on an answer.
            Self::Urgent | Self::Address => self,
            _ => Self::AfterOthers,
        }
    }

    fn is_in_turn(self) -> bool {
        matches!(self, Self::InTurn(_))
    }
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Line<What> {
    /// By rank and number.
    order: BTreeMap<(Rank, u64), What>,
    there: BTreeSet<What>,
    next_number: u64,
    /// Nobody whose rank is [`Rank::InTurn`] goes before.
    due: Instant,
}

impl<What> Default for Line<What> {
    fn default() -> Self {
        Self { order: BTreeMap::new(), there: BTreeSet::new(), next_number: 0, due: Instant::default() }
    }
}

impl<What: Copy + Ord> Line<What> {
    /// It waits, unless it waits already; with a better rank it moves forward.
    pub(super) fn join(&mut self, rank: Rank, what: What) {
        if !self.there.insert(what) {
            let place = self.order.iter().find(|(_, there)| **there == what).map(|(&place, _)| place);
            match place {
                Some(place) if place.0 > rank => drop(self.order.remove(&place)),
                _ => return,
            }
        }
        self.next_number += 1;
        self.order.insert((rank, self.next_number), what);
    }

    pub(super) fn leave(&mut self, what: What) {
        if self.there.remove(&what) {
            self.order.retain(|_, there| *there != what);
        }
    }

    /// Nobody goes in turn before `due`; who is to go sooner anyway still does.
    pub(super) fn turns_from(&mut self, now: Instant, due: Instant) {
        let waiting = self.due > now && self.order.keys().any(|(rank, _)| rank.is_in_turn());
        self.due = if waiting { due.min(self.due) } else { due };
    }

    /// Who goes next, if anybody may.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Rank, What)> {
        let place = self.first(now)?;
        let what = self.order.remove(&place)?;
        self.there.remove(&what);
        Some((place.0, what))
    }

    /// The best rank of those that wait for nothing but their place.
    pub(super) fn best(&self) -> Option<Rank> {
        self.order.keys().map(|(rank, _)| *rank).find(|rank| !rank.is_in_turn())
    }

    /// Whether nobody may go now.
    pub(super) fn is_empty(&self, now: Instant) -> bool {
        self.first(now).is_none()
    }

    /// When [`next`](Self::next) has somebody, if nothing is out.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let in_turn = self.order.keys().all(|(rank, _)| rank.is_in_turn());
        (!self.order.is_empty()).then_some(if in_turn { self.due } else { Instant::default() })
    }

    fn first(&self, now: Instant) -> Option<(Rank, u64)> {
        self.order.keys().find(|(rank, _)| !rank.is_in_turn() || self.due <= now).copied()
    }
}

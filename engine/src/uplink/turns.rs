//! Turns: what goes to the server in large numbers goes with at most four requests unanswered at once, so that ten
//! thousand routers with a thousand mappings each do not bury it.
//!
//! Mappings that a server is asked for again after it lost its state, or after we did, wait first, and those whose owners
//! asked last begin (decision 16). Deletes wait for nothing but their turn.

use std::collections::BTreeSet;

use super::flow::FlowId;
use crate::time::Instant;

/// So many requests that went in turn may be unanswered at once.
pub const IN_FLIGHT: usize = 4;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Turns {
    deletes: BTreeSet<FlowId>,
    /// Nothing of `queue` is sent before.
    due: Instant,
    /// By the time their owners last asked.
    queue: BTreeSet<(Instant, FlowId)>,
    asking: BTreeSet<FlowId>,
    /// Deletes that are unanswered; a control point may wait for them, so they have places of their own.
    deleting: BTreeSet<FlowId>,
}

impl Turns {
    /// Nothing more is sent before `due`; what is to begin sooner anyway still does.
    pub(super) fn begin(&mut self, now: Instant, due: Instant) {
        let waiting = !self.queue.is_empty() && self.due > now;
        self.due = if waiting { due.min(self.due) } else { due };
    }

    /// `flow`, whose owner last asked at `used`, waits for its turn.
    pub(super) fn enqueue(&mut self, used: Instant, flow: FlowId) {
        self.asking.remove(&flow);
        self.queue.insert((used, flow));
    }

    /// `flow`, which is to be deleted, waits for its turn.
    pub(super) fn enqueue_delete(&mut self, flow: FlowId) {
        self.deletes.insert(flow);
    }

    /// `flow` does not wait for its turn any more; whether it did.
    pub(super) fn take_out(&mut self, used: Instant, flow: FlowId) -> bool {
        let asks = self.queue.remove(&(used, flow));
        self.deletes.remove(&flow) || asks
    }

    /// `flow` is answered, or gone.
    pub(super) fn answered(&mut self, flow: FlowId) {
        self.asking.remove(&flow);
        self.deleting.remove(&flow);
    }

    /// The next flow to ask for, if one may go.
    pub(super) fn next(&mut self, now: Instant) -> Option<FlowId> {
        if self.deleting.len() < IN_FLIGHT
            && let Some(flow) = self.deletes.pop_first()
        {
            self.deleting.insert(flow);
            return Some(flow);
        }
        if now < self.due || self.asking.len() >= IN_FLIGHT {
            return None;
        }
        let (_, flow) = self.queue.pop_last()?;
        self.asking.insert(flow);
        Some(flow)
    }

    /// When [`next`](Self::next) has something to say.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        // Deletes go in the turn in which they can.
        (!self.queue.is_empty() && self.asking.len() < IN_FLIGHT).then_some(self.due)
    }
}

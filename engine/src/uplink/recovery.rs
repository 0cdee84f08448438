//! Mappings that a server is asked for again after it lost its state, or after we did: those whose owners asked last
//! go first, and at most four are on their way at once (decision 16), so that ten thousand routers with a thousand
//! mappings each do not bury the server that has just come back.

use std::collections::BTreeSet;

use super::flow::FlowId;
use crate::time::Instant;

/// So many requests of a recovery may be unanswered at once.
const IN_FLIGHT: usize = 4;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// Nothing is sent before.
    due: Instant,
    /// By the time their owners last asked.
    queue: BTreeSet<(Instant, FlowId)>,
    asking: BTreeSet<FlowId>,
}

impl Recovery {
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

    /// `flow` does not wait for its turn any more; whether it did.
    pub(super) fn take_out(&mut self, used: Instant, flow: FlowId) -> bool {
        self.queue.remove(&(used, flow))
    }

    /// `flow` is answered, or gone.
    pub(super) fn answered(&mut self, flow: FlowId) {
        self.asking.remove(&flow);
    }

    /// The next flow to ask for, if one may go.
    pub(super) fn next(&mut self, now: Instant) -> Option<FlowId> {
        if now < self.due || self.asking.len() >= IN_FLIGHT {
            return None;
        }
        let (_, flow) = self.queue.pop_last()?;
        self.asking.insert(flow);
        Some(flow)
    }

    /// When [`next`](Self::next) has something to say.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        (!self.queue.is_empty() && self.asking.len() < IN_FLIGHT).then_some(self.due)
    }
}

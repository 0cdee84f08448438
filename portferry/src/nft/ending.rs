//! Flows that changes of the table leave to be ended, and when that is done.
//!
//! The kernel looks through its whole table of flows for each of them: that takes some twenty microseconds on a small router and a millisecond
//! on one with much memory, however few flows there are. So after a change that comes alone it is done at once, and after
//! changes that come one upon the other it is done for several together.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

use super::conntrack::Flows;

/// From the end of one walk to the next.
const APART: Duration = Duration::from_millis(100);
/// A walk takes no more than this part of the time, however long it takes.
const SHARE: u32 = 20;

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Ending {
    flows: BTreeSet<Flows>,
    not_before: Option<Instant>,
}

impl Ending {
    pub(super) fn add(&mut self, flows: BTreeSet<Flows>) {
        if self.flows.is_empty() {
            self.flows = flows;
        } else {
            self.flows.extend(flows);
        }
    }

    /// When the next walk is due; `None`: there is nothing to end.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        (!self.flows.is_empty()).then(|| self.not_before.map_or(now, |at| at.max(now)))
    }

    /// What is to be ended, once.
    pub(super) fn take(&mut self) -> BTreeSet<Flows> {
        std::mem::take(&mut self.flows)
    }

    /// A walk has ended that began then.
    pub(super) fn walked(&mut self, since: Instant, now: Instant) {
        self.not_before = Some(now + APART.max((now - since) * (SHARE - 1)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_at_once_and_many_together() {
        let flows = |port| BTreeSet::from([Flows::Unanswered { protocol: 17, external_port: port }]);
        let ms = Duration::from_millis;
        let (mut ending, start) = (Ending::default(), Instant::now());
        assert_eq!(ending.due(start), None);
        ending.add(flows(1));
        assert_eq!(ending.due(start), Some(start), "nobody waits for one");
        assert_eq!(ending.take(), flows(1));
        ending.walked(start, start + ms(1));
        assert_eq!(ending.due(start + ms(1)), None);
        ending.add(flows(2));
        ending.add(flows(3));
        assert_eq!(ending.due(start + ms(2)), Some(start + ms(101)));
        assert_eq!(ending.take().len(), 2);
        // A kernel that takes long is asked seldom.
        ending.walked(start + ms(200), start + ms(220));
        ending.add(flows(4));
        assert_eq!(ending.due(start + ms(221)), Some(start + ms(220 + 19 * 20)));
        assert_eq!(ending.due(start + ms(5000)), Some(start + ms(5000)), "and now");
    }
}
